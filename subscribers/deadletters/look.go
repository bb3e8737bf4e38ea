package deadletters

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
)

// Group is the dead letters of one subscriber that have a cause and a reason in
// common.
type Group struct {
	Subscriber string `json:"subscriber"`
	Cause      string `json:"cause"`
	// Reason has … where letters differ in numbers and names of their own. It
	// is empty for what is left when there are too many reasons.
	Reason string    `json:"reason"`
	Count  int       `json:"count"`
	Oldest time.Time `json:"oldest"` // when it was given up
	Newest time.Time `json:"newest"`
	// Example is the newest of them.
	Example Letter `json:"example"`
}

// Groups is what there is, the largest group first.
type Groups struct {
	Groups []Group `json:"groups"`
	Total  int     `json:"total"`
	// Complete: there was time to look at all of them.
	Complete bool `json:"complete"`
}

// maxGroups of one subscriber are told apart; the smallest beyond that share
// one.
const maxGroups = 50

// Groups looks at the dead letters of one subscriber, or of all for an empty
// name. It stops early, without an error, when ctx ends.
func (s *Store) Groups(ctx context.Context, subscriber string) (Groups, error) {
	type key struct{ subscriber, cause, reason string }
	all := map[key]*Group{}
	g := Groups{Groups: []Group{}, Complete: true}
	subject := broker.DeadLetterAll(cmp.Or(subscriber, "*"))
	err := s.each(ctx, subject, 1, false, func(m *stored) (bool, error) {
		l := m.letter()
		g.Total++
		k := key{l.Subscriber, l.Cause, alike(l.Reason)}
		have := all[k]
		if have == nil {
			have = &Group{Subscriber: l.Subscriber, Cause: l.Cause, Reason: k.reason, Oldest: l.Failed, Newest: l.Failed, Example: l}
			all[k] = have
		}
		have.add(Group{Count: 1, Oldest: l.Failed, Newest: l.Failed, Example: l})
		return true, nil
	})
	if ctx.Err() != nil {
		g.Complete, err = false, nil
	}
	if err != nil {
		return g, err
	}
	for _, one := range all {
		g.Groups = append(g.Groups, *one)
	}
	slices.SortFunc(g.Groups, func(a, b Group) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Subscriber, b.Subscriber), cmp.Compare(a.Cause, b.Cause), cmp.Compare(a.Reason, b.Reason))
	})
	g.Groups = few(g.Groups)
	return g, nil
}

func (g *Group) add(more Group) {
	g.Count += more.Count
	if more.Oldest.Before(g.Oldest) {
		g.Oldest = more.Oldest
	}
	if !more.Newest.Before(g.Newest) {
		g.Newest, g.Example = more.Newest, more.Example
	}
}

// few puts the smallest groups of a subscriber and cause together where there
// are too many.
func few(groups []Group) []Group {
	type key struct{ subscriber, cause string }
	n := map[string]int{}
	rest := map[key]int{} // where their group is
	var out []Group
	for _, g := range groups {
		if n[g.Subscriber]++; n[g.Subscriber] <= maxGroups {
			out = append(out, g)
			continue
		}
		k := key{g.Subscriber, g.Cause}
		i, ok := rest[k]
		if !ok {
			rest[k] = len(out)
			g.Reason = ""
			out = append(out, g)
			continue
		}
		out[i].add(g)
	}
	if out == nil {
		return []Group{}
	}
	return out
}

// alike makes reasons equal that differ in what belongs to one event or moment:
// words with a digit, except for short numbers such as a status.
func alike(reason string) string {
	inWord := func(r rune) bool {
		return unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_'
	}
	var out strings.Builder
	for rest := reason; rest != ""; {
		n := strings.IndexFunc(rest, inWord)
		if n < 0 {
			n = len(rest)
		}
		out.WriteString(rest[:n])
		rest = rest[n:]
		n = strings.IndexFunc(rest, func(r rune) bool { return !inWord(r) })
		if n < 0 {
			n = len(rest)
		}
		word := rest[:n]
		rest = rest[n:]
		if digits := strings.IndexFunc(word, unicode.IsDigit) >= 0; digits && len(word) > 3 {
			word = "…"
		}
		out.WriteString(word)
	}
	return out.String()
}

// each calls f for the messages of DEADLETTERS under a subject, from a sequence
// on, until it says no.
func (s *Store) each(ctx context.Context, subject string, from uint64, bodies bool, f func(*stored) (more bool, err error)) error {
	r := &source{js: s.js, stream: broker.StreamDeadLetters, subjects: []string{subject}, from: from, headers: !bodies}
	defer r.close()
	for {
		m, err := r.next(ctx)
		if err != nil || m == nil {
			return err
		}
		if more, err := f(m); err != nil || !more {
			return err
		}
	}
}

// List gives up to limit dead letters of one subscriber, oldest first, that come
// after a sequence. sel may be empty, for all of them.
func (s *Store) List(ctx context.Context, subscriber string, sel Selection, after uint64, limit int) ([]Letter, error) {
	sel.All = sel.All || reflect.ValueOf(sel).IsZero()
	if _, _, err := s.check(ctx, subscriber, &sel); err != nil {
		return nil, err
	}
	letters := []Letter{}
	_, err := s.selected(ctx, subscriber, sel, after, func(m *stored) bool {
		letters = append(letters, m.letter())
		return len(letters) < limit
	})
	return letters, err
}

// selected calls f for the selected letters after a sequence until it says no.
// failed counts those that the filter could not judge.
func (s *Store) selected(ctx context.Context, subscriber string, sel Selection, after uint64, f func(*stored) bool) (failed int, err error) {
	filter, err := s.filter(sel.Filter)
	if err != nil {
		return 0, err
	}
	for _, seq := range sel.Sequences {
		if seq <= after {
			continue
		}
		m, err := s.one(ctx, subscriber, seq)
		if err != nil {
			return 0, err
		}
		if !f(m) {
			return 0, nil
		}
	}
	if len(sel.Sequences) > 0 {
		return 0, nil
	}
	err = s.each(ctx, sel.subject(subscriber), after+1, filter != nil, func(m *stored) (bool, error) {
		if !sel.matches(m.letter()) {
			return true, nil
		}
		ok, err := wants(filter, m)
		if err != nil {
			failed++
			return true, nil
		}
		return !ok || f(m), nil
	})
	return failed, err
}

// one reads one dead letter of a subscriber.
func (s *Store) one(ctx context.Context, subscriber string, sequence uint64) (*stored, error) {
	m, err := get(ctx, s.letters, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && broker.SubscriberOf(m.subject) != subscriber {
		return nil, fmt.Errorf("dead letter %d of %q: %w", sequence, subscriber, ErrNotFound)
	}
	return m, err
}

// Preview is what an order would do.
type Preview struct {
	Selected int `json:"selected"`
	// Causes counts them by cause, for dead letters.
	Causes map[string]int `json:"causes,omitempty"`
	// Subjects counts them by subject, for events.
	Subjects map[string]int `json:"subjects,omitempty"`
	// Skipped counts those that are selected and would not be sent, by why.
	Skipped map[string]int `json:"skipped,omitempty"`
	// Failed counts those that the filter could not judge; they are left alone.
	Failed int `json:"failed,omitempty"`
	// Examples are the first ones.
	Examples []Letter `json:"examples"`
	// Notes say what else to know before.
	Notes []string `json:"notes,omitempty"`
	// Complete: there was time to look at all of them.
	Complete bool `json:"complete"`
}

// maxExamples is how many examples a preview has.
const maxExamples = 3

// Preview says what a redrive of a selection would do.
func (s *Store) Preview(ctx context.Context, subscriber string, sel Selection) (Preview, error) {
	p := Preview{Causes: map[string]int{}, Skipped: map[string]int{}, Examples: []Letter{}, Complete: true}
	e, _, err := s.check(ctx, subscriber, &sel)
	if err != nil {
		return p, err
	}
	p.Notes = notes(e)
	p.Failed, err = s.selected(ctx, subscriber, sel, 0, func(m *stored) bool {
		l := m.letter()
		p.Selected++
		p.Causes[l.Cause]++
		if l.Hop == unknownOrigin {
			p.Skipped[whyNoOrigin]++
		}
		if len(p.Examples) < maxExamples {
			p.Examples = append(p.Examples, l)
		}
		return true
	})
	if ctx.Err() != nil {
		p.Complete, err = false, nil
	}
	return p, err
}

// Detail is a dead letter with all that is known of it.
type Detail struct {
	Letter
	// Attributes are the event's, by their names in CloudEvents.
	Attributes map[string]string `json:"attributes"`
	// Headers are the message's own, without those of the attributes.
	Headers map[string][]string `json:"headers"`
	// Data is the event's, as text where it is text; Truncated says that there
	// is more of it, Binary that it is in base64.
	Data      string `json:"data"`
	Truncated bool   `json:"truncated,omitempty"`
	Binary    bool   `json:"binary,omitempty"`
	// Undecodable says why the message is no event.
	Undecodable string `json:"undecodable,omitempty"`
	// History has what was recorded of its attempts, oldest first.
	History History `json:"history"`
}

// maxData is how much of an event's data is shown.
const maxData = 64 << 10

// Show tells everything about one dead letter.
func (s *Store) Show(ctx context.Context, subscriber string, sequence uint64) (Detail, error) {
	if _, err := s.Registry.Get(ctx, subscriber); err != nil {
		return Detail{}, fmt.Errorf("subscriber %q: %w", subscriber, err)
	}
	m, err := s.one(ctx, subscriber, sequence)
	if err != nil {
		return Detail{}, err
	}
	d := Detail{Letter: m.letter(), Attributes: map[string]string{}, Headers: map[string][]string{}}
	for name, values := range m.header {
		if lower := strings.ToLower(name); !strings.HasPrefix(lower, "ce-") && lower != "content-type" {
			d.Headers[name] = values
		}
	}
	data, since := m.data, time.Time{}
	if e, err := event.Decode(m.header, m.data); err != nil {
		d.Undecodable = err.Error()
	} else {
		data = e.Data
		d.Attributes = attributes(e)
		since, _ = event.ParseTime(e.Get(event.ExtRecordedTime)) // else from the stream
	}
	d.show(data)
	if since.IsZero() {
		if original, err := get(ctx, s.events, d.Event); err == nil {
			since = original.time
		}
	}
	d.History, err = s.history(ctx, subscriber, d.Event, since, d.Failed)
	return d, err
}

func attributes(e *event.Event) map[string]string {
	all := map[string]string{
		"specversion": event.SpecVersion, "id": e.ID, "source": e.Source, "type": e.Type,
		"subject": e.Subject, "datacontenttype": e.DataContentType, "dataschema": e.DataSchema,
	}
	if !e.Time.IsZero() {
		all["time"] = event.FormatTime(e.Time)
	}
	for _, x := range e.Extensions {
		all[x.Name] = x.Value
	}
	for name, value := range all {
		if value == "" {
			delete(all, name)
		}
	}
	return all
}

// show puts data into the detail, as much of it as is shown.
func (d *Detail) show(data []byte) {
	if len(data) > maxData {
		data, d.Truncated = data[:maxData], true
	}
	d.Data, d.Binary = text(data, d.Truncated)
}

// text gives data as text, or in base64 where it is none. Data that was cut may
// end in the middle of a character.
func text(data []byte, cut bool) (s string, binary bool) {
	for n := range utf8.UTFMax {
		if whole := data[:len(data)-n]; utf8.Valid(whole) {
			return string(whole), false
		}
		if !cut {
			break
		}
	}
	return base64.StdEncoding.EncodeToString(data), true
}
