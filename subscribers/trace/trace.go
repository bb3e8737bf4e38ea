// Package trace tells what became of an event: from its source to every
// subscriber's every attempt.
//
// There is no index. EVENTS is read backwards, headers only, until the event is
// found or the time asked for is over; then the records of its subscribers are
// picked out of ATTEMPTS, and what still waits out of RETRY and DEADLETTERS. That
// takes seconds, and costs nothing when nobody asks.
package trace

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// Finder finds events. It is safe for concurrent use.
type Finder struct {
	Broker   *broker.Broker
	Registry *registry.Registry
	// Breaker tells how a subscriber's breaker stands in this process; nil:
	// nobody knows.
	Breaker func(name string) (deliver.BreakerStatus, bool)
}

// Query says what to look for.
type Query struct {
	// What is an event's id, or a record: a business key, a record's id, a match
	// key, or a part of one of them between slashes; of a GUID at least the first
	// eight digits. Case does not matter.
	What string
	// Since is how far back to look.
	Since time.Duration
	// Limit is how many events to give, the newest first.
	Limit int
}

// Answer is what was found.
type Answer struct {
	What   string  `json:"what"`
	Events []Event `json:"events"`
	// Quarantined are entries with it in their body, looked for when it is in no
	// event.
	Quarantined []Entry `json:"quarantined,omitempty"`
	// Held were accepted and are not events yet: they are to be completed, or wait
	// behind one that is.
	Held   []Held `json:"held,omitempty"`
	Looked Looked `json:"looked"`
	// Complete: all that was asked for was looked at.
	Complete bool     `json:"complete"`
	Notes    []string `json:"notes,omitempty"`
}

// Looked says what was looked at.
type Looked struct {
	// Since is how far back EVENTS was read, Events how many.
	Since  time.Time `json:"since"`
	Events int       `json:"events"`
	// Records is up to when ATTEMPTS was read, from the oldest event found on;
	// Blocks how many of its messages.
	Records *time.Time `json:"records,omitempty"`
	Blocks  int        `json:"blocks"`
	// Quarantine is how many entries there were read.
	Quarantine int `json:"quarantine"`
}

// Event is one event with what became of it.
type Event struct {
	// Sequence and Subject are its place in EVENTS.
	Sequence   uint64 `json:"sequence"`
	Subject    string `json:"subject"`
	ID         string `json:"id"`
	OriginalID string `json:"originalID,omitempty"`
	Type       string `json:"type"`
	// About is the event's own subject, a business key or a record's id.
	About        string `json:"about,omitempty"`
	PartitionKey string `json:"partitionKey,omitempty"`
	MatchKey     string `json:"matchKey,omitempty"`
	// Source is the configured source it came from, Via the way.
	Source string `json:"source"`
	Via    string `json:"via,omitempty"`
	// Time is the event's own, Accepted when its request came, Stored when the
	// broker had it.
	Time     *time.Time `json:"time,omitempty"`
	Accepted *time.Time `json:"accepted,omitempty"`
	Stored   time.Time  `json:"stored"`
	// Completed is when its row was read, because the source had cut it short;
	// Incomplete why that could not be, as a word of docs/receiving.md, or "unasked".
	Completed  *time.Time `json:"completed,omitempty"`
	Incomplete string     `json:"incomplete,omitempty"`
	// Deliveries are what became of it, by subscriber.
	Deliveries []Delivery `json:"deliveries"`
}

// Delivery is one event for one subscriber.
type Delivery struct {
	Subscriber string `json:"subscriber"`
	// State is one of those below; Detail says more in words.
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"`
	// Attempts were made in all.
	Attempts int `json:"attempts"`
	// Took is the time from acceptance to delivery.
	Took string `json:"took,omitempty"`
	// Next is when the next attempt is due.
	Next *time.Time `json:"next,omitempty"`
	// DeadLetter is its place in DEADLETTERS, if it is there.
	DeadLetter uint64 `json:"deadLetter,omitempty"`
	Steps      []Step `json:"steps"`
}

// The states of a delivery.
const (
	NotMatched = "not matched" // the subscriber does not want it
	Waiting    = "waiting"     // never tried, or being tried
	Retry      = "retry"       // waits for its next attempt
	Behind     = "behind"      // waits for events before it
	Redriven   = "redriven"    // a dead letter that is on its way again
	Unknown    = "unknown"     // there is no record

	Delivered  = deliver.RecordDelivered
	Locked     = deliver.RecordLocked // a receiver has it, until Next at the latest
	Filtered   = deliver.RecordFiltered
	DeadLetter = deliver.RecordDeadLetter
	Shed       = deliver.RecordShed
	Dropped    = deliver.RecordDropped
)

// Held is one event in HELD.
type Held struct {
	Sequence uint64 `json:"sequence"`
	Source   string `json:"source"`
	ID       string `json:"id"`
	Type     string `json:"type"`
	About    string `json:"about,omitempty"`
	// For is "completion", or "order": it waits for one before it.
	For string `json:"for"`
	// Since is when it was accepted, Until when it is published as it is.
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
}

// Step is one attempt or settlement.
type Step struct {
	Time time.Time `json:"time"`
	// Outcome is a record's, or "failed" for an attempt that was repeated at once.
	Outcome string        `json:"outcome"`
	Hop     int           `json:"hop"`
	Attempt int           `json:"attempt,omitempty"` // its number; 0: none was made
	Status  int           `json:"status,omitempty"`
	Fault   deliver.Fault `json:"fault,omitempty"`
	Reason  string        `json:"reason,omitempty"`
	Millis  int64         `json:"ms"`
	Cause   string        `json:"cause,omitempty"`
	Probe   bool          `json:"probe,omitempty"`
	Next    *time.Time    `json:"next,omitempty"`
}

// failed is the outcome of an attempt that has no record of its own.
const failed = "failed"

// Entry is one of the quarantine.
type Entry struct {
	Sequence uint64    `json:"sequence"`
	Source   string    `json:"source"`
	Reason   string    `json:"reason"`
	Detail   string    `json:"detail"`
	Stored   time.Time `json:"stored"`
}

// hit is an event that was found.
type hit struct {
	sequence uint64
	subject  string
	stored   time.Time
	header   nats.Header
}

// Find looks for events. When ctx has a deadline it stops some time before and
// says how far it came.
func (f *Finder) Find(ctx context.Context, q Query) (*Answer, error) {
	a := &Answer{What: q.What, Events: []Event{}, Complete: true}
	what := newNeedle(q.What)
	since := time.Now().Add(-q.Since)
	budget := newBudget(ctx)
	hits, err := f.events(ctx, budget, what, since, q.Limit, a)
	if err != nil {
		return nil, err
	}
	if err := f.held(ctx, what, q.Limit, a); err != nil {
		return nil, err
	}
	if len(hits) == 0 && len(a.Held) > 0 {
		return a, nil
	}
	if len(hits) == 0 {
		err := f.quarantine(ctx, budget, what, since, q.Limit, a)
		return a, err
	}
	entries, err := f.Registry.List(ctx)
	if err != nil {
		return nil, err
	}
	records, err := f.records(ctx, budget, hits, a)
	if err != nil {
		return nil, err
	}
	stand, err := f.standing(ctx)
	if err != nil {
		return nil, err
	}
	for _, h := range hits {
		e := decode(h)
		if e.Deliveries, err = f.deliveries(ctx, h, e, entries, records[h.sequence], stand, a.Complete); err != nil {
			return nil, err
		}
		a.Events = append(a.Events, e)
	}
	return a, nil
}

// budget is the time that a search has: most of what ctx leaves, so that there
// is some for the answer.
type budget struct{ until time.Time }

func newBudget(ctx context.Context) budget {
	end, ok := ctx.Deadline()
	if !ok {
		return budget{time.Now().Add(time.Minute)}
	}
	return budget{end.Add(-time.Until(end) / 4)}
}

func (b budget) spent() bool { return time.Now().After(b.until) }

// needle is what is looked for in headers.
type needle struct {
	text string // lower case
	guid string // lower case, empty if there is none in it
	// begins: text is how a GUID begins, as screens show it.
	begins bool
}

var guidPattern = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)

var guidBeginning = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]*){0,4}$`)

func newNeedle(what string) needle {
	text := strings.ToLower(strings.Trim(strings.TrimSpace(what), "{}"))
	guid := guidPattern.FindString(text)
	return needle{text, guid, guid == "" && guidBeginning.MatchString(text)}
}

// headerNames are those that name an event or what it is about.
var headerNames = []string{
	"ce-id", "ce-" + event.ExtOriginalID, "ce-subject", "ce-" + event.ExtPartitionKey, "ce-" + event.ExtMatchKey,
}

// in says whether headers have it.
func (n needle) in(h nats.Header) bool {
	for _, name := range headerNames {
		if v := h[name]; len(v) > 0 && n.is(v[0]) {
			return true
		}
	}
	return false
}

// is compares with one value: all of it, or a part of it between slashes, or a
// GUID anywhere in it or how the first one begins.
func (n needle) is(value string) bool {
	if len(value) < len(n.text) && n.guid == "" {
		return false
	}
	value = strings.ToLower(plain(value))
	switch i := strings.Index(value, n.text); {
	case value == n.text:
		return true
	case i >= 0:
		end := i + len(n.text)
		if (i == 0 || value[i-1] == '/') && (end == len(value) || value[end] == '/') {
			return true
		}
	}
	if n.begins {
		return strings.HasPrefix(guidPattern.FindString(value), n.text)
	}
	return n.guid != "" && strings.Contains(value, n.guid)
}

// plain undoes the percent-encoding of headers.
func plain(v string) string {
	if strings.IndexByte(v, '%') < 0 {
		return v
	}
	if text, err := url.PathUnescape(v); err == nil {
		return text
	}
	return v
}

// stride is how many events are read at once, from the newest back.
const stride = 10_000

// maxStructured bounds how many events are read whole: those whose attributes
// are too large for headers.
const maxStructured = 500

// events finds what was asked for, the newest first.
func (f *Finder) events(ctx context.Context, b budget, what needle, since time.Time, limit int, a *Answer) ([]hit, error) {
	js := f.Broker.JetStream()
	s, err := js.Stream(ctx, broker.StreamEvents)
	if err != nil {
		return nil, err
	}
	state := s.CachedInfo().State
	a.Looked.Since = time.Now().UTC()
	var hits []hit
	structured := 0
	for through := state.LastSeq; through >= state.FirstSeq && through > 0 && state.Msgs > 0; {
		if b.spent() {
			a.Complete = false
			a.Notes = append(a.Notes, fmt.Sprintf("the time was up when the events since %s were read; name a shorter --since, or ask again when the machine has less to do", a.Looked.Since.Local().Format(time.DateTime)))
			return hits, nil
		}
		from := max(state.FirstSeq, through-min(through-1, stride-1))
		var found []hit
		oldest := time.Time{}
		err := read(ctx, js, broker.StreamEvents, window{from: from, through: through, headers: true}, func(m jetstream.Msg, meta *jetstream.MsgMetadata) bool {
			if oldest.IsZero() {
				oldest = meta.Timestamp
			}
			a.Looked.Events++
			h := m.Headers()
			if v := h["content-type"]; len(v) > 0 && strings.HasPrefix(v[0], event.MediaStructured) {
				if structured++; structured <= maxStructured {
					if h, err = whole(ctx, s, meta.Sequence.Stream); err != nil {
						return false
					}
				}
			}
			if meta.Timestamp.Before(since) || !what.in(h) {
				return true
			}
			found = append(found, hit{meta.Sequence.Stream, m.Subject(), meta.Timestamp, h})
			return true
		})
		if err != nil {
			return nil, err
		}
		slices.Reverse(found)
		hits = append(hits, found...)
		if !oldest.IsZero() {
			a.Looked.Since = oldest.UTC()
		}
		if len(hits) > limit {
			a.Notes = append(a.Notes, fmt.Sprintf("there are more than %d; these are the newest", limit))
			hits, a.Complete = hits[:limit], false
			break
		}
		if len(hits) == limit && from > state.FirstSeq {
			a.Notes = append(a.Notes, fmt.Sprintf("older ones than these %d were not looked for", limit))
			a.Complete = false
			break
		}
		if !oldest.IsZero() && oldest.Before(since) {
			a.Looked.Since = since.UTC()
			break
		}
		through = from - 1
	}
	if structured > maxStructured {
		a.Complete = false
		a.Notes = append(a.Notes, fmt.Sprintf("%d events have their attributes in their body, and only %d of them were read", structured, maxStructured))
	}
	return hits, nil
}

// whole gives the attributes of an event that has them in its body.
func whole(ctx context.Context, s jetstream.Stream, sequence uint64) (nats.Header, error) {
	m, err := s.GetMsg(ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	e, err := event.Decode(m.Header, m.Data)
	if err != nil {
		return m.Header, nil
	}
	h := nats.Header{}
	e.Header(h)
	return h, nil
}

func decode(h hit) Event {
	get := func(name string) string {
		if v := h.header["ce-"+name]; len(v) > 0 {
			return plain(v[0])
		}
		return ""
	}
	e := Event{
		Sequence: h.sequence, Subject: h.subject, Stored: h.stored.UTC(),
		ID: get("id"), OriginalID: get(event.ExtOriginalID), Type: get("type"), About: get("subject"),
		PartitionKey: get(event.ExtPartitionKey), MatchKey: get(event.ExtMatchKey),
		Source: get(event.ExtSource), Via: get(event.ExtVia),
	}
	if get(dataverse.ExtIncomplete) == "true" {
		e.Incomplete = cmp.Or(get(dataverse.ExtIncompleteReason), "unasked")
	}
	for name, to := range map[string]**time.Time{"time": &e.Time, event.ExtRecordedTime: &e.Accepted, dataverse.ExtCompleted: &e.Completed} {
		if t, err := event.ParseTime(get(name)); err == nil {
			t = t.UTC()
			*to = &t
		}
	}
	return e
}

// accepted is when an event came in.
func (e Event) accepted() time.Time {
	if e.Accepted != nil {
		return *e.Accepted
	}
	return e.Stored
}

// held finds what was asked for among what is not an event yet.
func (f *Finder) held(ctx context.Context, what needle, limit int, a *Answer) error {
	return read(ctx, f.Broker.JetStream(), broker.StreamHeld, window{headers: true}, func(m jetstream.Msg, meta *jetstream.MsgMetadata) bool {
		h := m.Headers()
		if !what.in(h) {
			return true
		}
		if len(a.Held) == limit {
			a.Complete = false
			a.Notes = append(a.Notes, fmt.Sprintf("more than %d are still to be completed; these are the oldest", limit))
			return false
		}
		e := decode(hit{sequence: meta.Sequence.Stream, subject: m.Subject(), stored: meta.Timestamp, header: h})
		one := Held{Sequence: e.Sequence, Source: broker.HeldSource(m.Subject()), ID: e.ID, Type: e.Type, About: e.About, For: h.Get(broker.HeldFor)}
		one.Since, _ = event.ParseTime(h.Get(broker.HeldSince))
		one.Until, _ = event.ParseTime(h.Get(broker.HeldUntil))
		a.Held = append(a.Held, one)
		return true
	})
}

// window is a part of a stream: by sequences, or from a time on.
type window struct {
	from, through uint64
	since         time.Time
	headers       bool // without bodies
	filter        string
	batch         int
}

// maxEmpty is how often in a row nothing may come before the rest counts as
// deleted.
const maxEmpty = 3

// read gives the messages of a part of a stream, in order, until yield says no.
func read(ctx context.Context, js jetstream.JetStream, stream string, w window, yield func(jetstream.Msg, *jetstream.MsgMetadata) bool) error {
	cfg := jetstream.ConsumerConfig{
		Description: "gridfan: why", AckPolicy: jetstream.AckNonePolicy, FilterSubject: w.filter, HeadersOnly: w.headers,
		MemoryStorage: true, Replicas: 1, InactiveThreshold: time.Minute,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(1, w.from),
	}
	if !w.since.IsZero() {
		cfg.DeliverPolicy, cfg.OptStartSeq, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, 0, &w.since
	}
	c, err := js.CreateConsumer(ctx, stream, cfg)
	if err != nil {
		return fmt.Errorf("stream %s: %w", stream, err)
	}
	defer func() {
		_ = js.DeleteConsumer(ctx, stream, c.CachedInfo().Name) // it goes by itself
	}()
	if w.through == 0 {
		w.through = ^uint64(0)
	}
	left := c.CachedInfo().NumPending
	delivered := uint64(0)
	for empty := 0; left > 0 && empty < maxEmpty; {
		n := cmp.Or(w.batch, 1000)
		if w.through != ^uint64(0) {
			// Not far beyond the end.
			n = min(n, int(w.through-min(w.through, max(w.from, 1))+1))
		}
		batch, err := c.FetchNoWait(n)
		if err != nil {
			return fmt.Errorf("stream %s: %w", stream, err)
		}
		came := false
		for m := range batch.Messages() {
			meta, err := m.Metadata()
			if err != nil {
				return err
			}
			if delivered++; meta.Sequence.Consumer != delivered {
				return fmt.Errorf("stream %s: messages were missed on the way; ask again", stream)
			}
			came, left, w.from = true, meta.NumPending, meta.Sequence.Stream+1
			if meta.Sequence.Stream > w.through || !yield(m, meta) || ctx.Err() != nil {
				return ctx.Err()
			}
		}
		if err := batch.Error(); err != nil && !errors.Is(err, nats.ErrTimeout) {
			return fmt.Errorf("stream %s: %w", stream, err)
		}
		if empty++; came {
			empty = 0
		}
		if w.from > w.through {
			return nil
		}
	}
	return nil
}

// skew is how far the clocks of two replicas may be apart.
const skew = 10 * time.Second

// attemptsBatch keeps what is on its way below what a connection may hold back.
const attemptsBatch = 32

// records picks what was recorded of events, by sequence.
func (f *Finder) records(ctx context.Context, b budget, hits []hit, a *Answer) (map[uint64][]deliver.Record, error) {
	wanted := map[uint64]bool{}
	oldest := hits[0].stored
	for _, h := range hits {
		wanted[h.sequence] = true
		if h.stored.Before(oldest) {
			oldest = h.stored
		}
	}
	all := map[uint64][]deliver.Record{}
	last := oldest
	js := f.Broker.JetStream()
	err := read(ctx, js, broker.StreamAttempts, window{since: oldest.Add(-skew), batch: attemptsBatch}, func(m jetstream.Msg, meta *jetstream.MsgMetadata) bool {
		last = meta.Timestamp
		a.Looked.Blocks++
		pick(m.Data(), wanted, func(r deliver.Record) { all[r.Sequence] = append(all[r.Sequence], r) })
		if b.spent() {
			a.Complete = false
			a.Notes = append(a.Notes, fmt.Sprintf("the time was up when the records up to %s were read: what happened later is not shown", last.Local().Format(time.DateTime)))
			return false
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	last = last.UTC()
	a.Looked.Records = &last
	s, err := js.Stream(ctx, broker.StreamAttempts)
	if err != nil {
		return nil, err
	}
	if st := s.CachedInfo().State; st.FirstSeq > 1 && st.FirstTime.After(oldest) {
		a.Complete = false
		a.Notes = append(a.Notes, fmt.Sprintf("records are there from %s on only; earlier ones went to make room (ATTEMPTS keeps 4 %% of storage.maxBytes)", st.FirstTime.Local().Format(time.DateTime)))
	}
	return all, nil
}

// pick gives the records of some events. Most lines are of others, so the number
// is read before anything is decoded.
func pick(block []byte, wanted map[uint64]bool, yield func(deliver.Record)) {
	member := []byte(`"seq":`)
	for text := range bytes.Lines(block) {
		_, after, ok := bytes.Cut(text, member)
		if !ok {
			continue
		}
		sequence := uint64(0)
		for _, c := range after {
			if c < '0' || c > '9' {
				break
			}
			sequence = 10*sequence + uint64(c-'0')
		}
		if !wanted[sequence] {
			continue
		}
		records, err := deliver.ParseRecords(text)
		if err != nil {
			continue
		}
		for _, r := range records {
			if wanted[r.Sequence] && r.Hop >= 0 {
				yield(r)
			}
		}
	}
}

// quarantine looks for entries with it in their body.
func (f *Finder) quarantine(ctx context.Context, b budget, what needle, since time.Time, limit int, a *Answer) error {
	if what.text == "" {
		return nil
	}
	return read(ctx, f.Broker.JetStream(), broker.StreamQuarantine, window{since: since, batch: 8}, func(m jetstream.Msg, meta *jetstream.MsgMetadata) bool {
		a.Looked.Quarantine++
		body := strings.ToLower(string(m.Data()))
		if strings.Contains(body, what.text) || what.guid != "" && strings.Contains(body, what.guid) {
			h := m.Headers()
			a.Quarantined = append(a.Quarantined, Entry{
				Sequence: meta.Sequence.Stream, Source: strings.TrimPrefix(m.Subject(), broker.Quarantine("")),
				Reason: h.Get("Gridfan-Reason"), Detail: plain(h.Get("Gridfan-Detail")), Stored: meta.Timestamp.UTC(),
			})
		}
		if b.spent() || len(a.Quarantined) >= limit {
			a.Complete = false
			a.Notes = append(a.Notes, fmt.Sprintf("not all of the quarantine was read: %d entries, up to %s", a.Looked.Quarantine, meta.Timestamp.Local().Format(time.DateTime)))
			return false
		}
		return true
	})
}
