package deadletters

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// Point is a place in EVENTS: a sequence or a time. Its zero value is none.
type Point struct {
	Sequence uint64
	Time     time.Time
}

// IsZero says whether p is none.
func (p Point) IsZero() bool { return p.Sequence == 0 && p.Time.IsZero() }

func (p Point) String() string {
	switch {
	case p.Sequence > 0:
		return strconv.FormatUint(p.Sequence, 10)
	case p.Time.IsZero():
		return ""
	}
	return event.FormatTime(p.Time)
}

// MarshalText writes p as ParsePoint reads it.
func (p Point) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (p *Point) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*p = Point{}
		return nil
	}
	v, err := ParsePoint(string(b))
	*p = v
	return err
}

// ParsePoint reads a sequence, or a time in RFC 3339.
func ParsePoint(s string) (Point, error) {
	if n, err := strconv.ParseUint(s, 10, 63); err == nil && n > 0 {
		return Point{Sequence: n}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.IsZero() {
		return Point{}, fmt.Errorf("%q is neither a sequence nor a time: write a number, or a time as in 2026-11-01T10:00:00Z", s)
	}
	return Point{Time: t}, nil
}

// Range says which stored events a replay is about.
type Range struct {
	// From is the first one, To the last; no To means all there are.
	From Point `json:"from"`
	To   Point `json:"to,omitzero"`
	// Subject narrows the subscriber's own subjects further.
	Subject string `json:"subject,omitempty"`
	// Filter is an expression over the event, beside the subscriber's own.
	Filter string `json:"filter,omitempty"`
}

// Validate reports what is wrong.
func (r Range) Validate() error {
	switch {
	case r.From.IsZero():
		return bad("from: missing; say where to begin, a sequence or a time")
	case !r.From.Time.IsZero() && r.From.Time.After(time.Now()):
		return bad("from: %s is still to come", r.From)
	case r.From.Sequence > 0 && r.To.Sequence > 0 && r.From.Sequence > r.To.Sequence,
		!r.From.Time.IsZero() && !r.To.Time.IsZero() && r.From.Time.After(r.To.Time):
		return bad("from (%s) is after to (%s)", r.From, r.To)
	}
	if r.Subject != "" && !validPattern(r.Subject) {
		return bad("subject: %q is no pattern of events; want one as in events.fno.*.usmf.> (* is one token, > the rest)", r.Subject)
	}
	return nil
}

// validPattern says whether a pattern can match an event.
func validPattern(p string) bool {
	tokens := strings.Split(p, ".")
	for i, t := range tokens {
		if t == "" || strings.ContainsAny(t, " \t\r\n\x00") || len(t) > 1 && strings.ContainsAny(t, "*>") || t == ">" && i < len(tokens)-1 {
			return false
		}
	}
	return tokens[0] == event.SubjectPrefix && len(tokens) > 1
}

// Why something is not sent although it was selected.
const (
	whyRetry    = "waits for its next attempt anyway"
	whyLetter   = "is a dead letter: redrive it"
	whyNoOrigin = "its event is not known by its place"
	whyGone     = "is gone"
	whyBroken   = "is no event of ours"
)

// span is a range in sequences, for one subscriber.
type span struct {
	entry    registry.Entry
	from     uint64
	through  uint64
	subjects []string // of the stream
	subject  string   // and of the range
	notes    []string
}

// span finds out what a range means now.
func (s *Store) span(ctx context.Context, subscriber string, r Range) (span, error) {
	if err := r.Validate(); err != nil {
		return span{}, err
	}
	if _, err := s.filter(r.Filter); err != nil {
		return span{}, err
	}
	e, err := s.Registry.Get(ctx, subscriber)
	if err != nil {
		return span{}, fmt.Errorf("subscriber %q: %w", subscriber, err)
	}
	if e.Definition.Native() {
		return span{}, fmt.Errorf("subscriber %q: %w", subscriber, ErrNative)
	}
	info, err := s.events.Info(ctx)
	if err != nil {
		return span{}, err
	}
	state := info.State
	sp := span{
		entry: e, from: r.From.Sequence, through: state.LastSeq, notes: notes(e),
		subjects: deliver.MinimiseSubjects(e.Definition.Subjects), subject: r.Subject,
	}
	if r.From.Sequence == 0 {
		if sp.from, err = s.at(ctx, r.From.Time, state.LastSeq); err != nil {
			return sp, err
		}
	}
	switch {
	case r.To.Sequence > 0:
		sp.through = min(sp.through, r.To.Sequence)
	case !r.To.Time.IsZero():
		after, err := s.at(ctx, r.To.Time.Add(time.Nanosecond), state.LastSeq)
		if err != nil {
			return sp, err
		}
		sp.through = after - 1
	}
	if state.FirstSeq > 1 && sp.from < state.FirstSeq {
		sp.notes = append(sp.notes, fmt.Sprintf("the oldest event that is still stored is %d, of %s", state.FirstSeq, event.FormatTime(state.FirstTime)))
		sp.from = state.FirstSeq
	}
	// What the subscriber has not got comes by itself: sent now, it would come
	// twice.
	got, err := s.Registry.State(ctx, e)
	if err != nil {
		return sp, err
	}
	if h := got.Held; h != nil && h.Sequence <= sp.through {
		sp.through = h.Sequence - 1
		sp.notes = append(sp.notes, fmt.Sprintf("from event %d on it is getting them for the first time, so this ends before", h.Sequence))
	}
	return sp, nil
}

// at gives the sequence of the first event stored at a time or after it.
func (s *Store) at(ctx context.Context, t time.Time, last uint64) (uint64, error) {
	r := &source{js: s.js, stream: broker.StreamEvents, since: t, headers: true}
	defer r.close()
	m, err := r.next(ctx)
	if err != nil || m == nil {
		return last + 1, err
	}
	return m.sequence, nil
}

// source reads the span's events from a sequence on.
func (sp span) source(js jetstream.JetStream, from uint64, bodies bool) *source {
	r := &source{js: js, stream: broker.StreamEvents, subjects: sp.subjects, from: from, headers: !bodies}
	if sp.subject != "" {
		r.subjects = []string{sp.subject}
	}
	return r
}

// has says whether a message is in the span.
func (sp span) has(m *stored) bool {
	return sp.subject == "" || slices.ContainsFunc(sp.subjects, func(p string) bool { return deliver.MatchSubject(p, m.subject) })
}

// length counts the events that a span's source reads.
func (s *Store) length(ctx context.Context, sp span) (int, error) {
	count := func(from uint64) (uint64, error) {
		r := sp.source(s.js, from, false)
		defer r.close()
		return r.pending(ctx)
	}
	if sp.through < sp.from {
		return 0, nil
	}
	all, err := count(sp.from)
	if err != nil {
		return 0, err
	}
	after, err := count(sp.through + 1)
	return int(all - min(all, after)), err
}

// busy are the events that must not be sent once more now, by why: those whose
// end is still to come would end twice, and dead letters would stay behind.
type busy map[uint64]string

func (s *Store) busy(ctx context.Context, subscriber string) (busy, error) {
	b := busy{}
	// Waiting ones come due meanwhile and due ones wait again, so one of them is
	// looked at twice.
	for range 2 {
		for _, subjects := range []string{broker.RetryWaitingAll(subscriber), broker.RetryBehindAll(subscriber), broker.RetryDueAll(subscriber)} {
			counts, err := s.Broker.SubjectCounts(ctx, broker.StreamRetry, subjects)
			if err != nil {
				return nil, err
			}
			for subject := range counts {
				if n, ok := broker.RetrySequence(subject); ok {
					b[n] = whyRetry
				}
			}
		}
		if err := s.due(ctx, subscriber, b); err != nil {
			return nil, err
		}
	}
	err := s.each(ctx, broker.DeadLetterAll(subscriber), 1, false, func(m *stored) (bool, error) {
		if l := m.letter(); l.Hop != unknownOrigin {
			b[l.Event] = whyLetter
		}
		return true, nil
	})
	return b, err
}

// due adds the events whose retries are due. RETRY is a work queue, so there is
// no reading it but one message after the other; there are few.
func (s *Store) due(ctx context.Context, subscriber string, b busy) error {
	retries, err := s.js.Stream(ctx, broker.StreamRetry)
	if err != nil {
		return err
	}
	for seq := uint64(1); ; {
		m, err := retries.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(broker.RetryDue(subscriber)))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if n, err := strconv.ParseUint(m.Header.Get(deliver.HeaderOriginSequence), 10, 64); err == nil {
			b[n] = whyRetry
		}
		seq = m.Sequence + 1
	}
}

// PreviewReplay says what a replay would do.
func (s *Store) PreviewReplay(ctx context.Context, subscriber string, r Range) (Preview, error) {
	p := Preview{Subjects: map[string]int{}, Skipped: map[string]int{}, Examples: []Letter{}, Complete: true}
	sp, err := s.span(ctx, subscriber, r)
	if err != nil {
		return p, err
	}
	p.Notes = sp.notes
	filter, err := s.filter(r.Filter)
	if err != nil {
		return p, err
	}
	err = s.previewSpan(ctx, sp, filter, &p)
	if ctx.Err() != nil {
		p.Complete, err = false, nil
	}
	return p, err
}

func (s *Store) previewSpan(ctx context.Context, sp span, filter func(*event.Event) (bool, error), p *Preview) error {
	busy, err := s.busy(ctx, sp.entry.Definition.Name)
	if err != nil {
		return err
	}
	events := sp.source(s.js, sp.from, filter != nil)
	defer events.close()
	for {
		m, err := events.next(ctx)
		if err != nil || m == nil || m.sequence > sp.through {
			return err
		}
		if !sp.has(m) {
			continue
		}
		switch ok, err := wants(filter, m); {
		case err != nil:
			p.Failed++
			continue
		case !ok:
			continue
		}
		p.Selected++
		p.Subjects[m.subject]++
		if len(p.Subjects) > maxGroups { // too many to tell apart
			p.Subjects[""] += p.Subjects[m.subject]
			delete(p.Subjects, m.subject)
		}
		if why := busy[m.sequence]; why != "" {
			p.Skipped[why]++
		}
		if len(p.Examples) < maxExamples {
			l := m.letter()
			p.Examples = append(p.Examples, Letter{ID: l.ID, Type: l.Type, Source: l.Source, Event: m.sequence, Subject: m.subject, Size: m.size})
		}
	}
}

// Replay starts a job that sends stored events once more to one subscriber. The
// job is nil when there are none.
func (s *Store) Replay(ctx context.Context, subscriber string, r Range, rate deliver.Rate) (*Job, []string, error) {
	sp, err := s.span(ctx, subscriber, r)
	if err != nil {
		return nil, nil, err
	}
	j := Job{
		Kind: Replay, Subscriber: subscriber, Added: sp.entry.Created, Range: &r, Rate: rate,
		Cursor: max(1, sp.from) - 1, Through: sp.through,
	}
	if j.Total, err = s.length(ctx, sp); err != nil || j.Total == 0 {
		return nil, sp.notes, err
	}
	added, err := s.add(ctx, j)
	return added, sp.notes, err
}
