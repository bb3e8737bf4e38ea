package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/filter"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// Listening is reading along: each listener has a cursor of its own on EVENTS
// that the broker keeps in memory and forgets soon after nobody asks it any
// more. It is no subscriber: nothing is kept for it, and no book knows of it.

// Listen says what a listener wants to hear.
type Listen struct {
	// Subjects are patterns as those of a subscriber; none means every event.
	Subjects []string
	// Filter is a CEL expression over the event; empty: every event of the subjects.
	Filter string
	// From is where to begin; see ParseFrom.
	From string
	// Stream is the name of the store that From was read from, as a line gave
	// it. Another store is listened to from its beginning, because a sequence of
	// the old one says nothing of it. Empty: whichever it is.
	Stream string
}

// Heard is one line of the answer to GET /api/v1/listen: an event, a heartbeat
// or the end.
type Heard struct {
	// Sequence is the event's place in EVENTS, Subject its NATS subject, Stored
	// when it was accepted.
	Sequence uint64    `json:"sequence,omitempty"`
	Subject  string    `json:"subject,omitempty"`
	Stored   time.Time `json:"stored,omitzero"`
	// Event is what a webhook would get in structured mode, byte for byte but
	// for line feeds between its values, which are blanks here.
	Event json.RawMessage `json:"event,omitempty"`
	// Problem says why there is no event, or that the filter failed on it.
	Problem string `json:"problem,omitempty"`

	// Heartbeat is set every 15 seconds, and at once: the listener has heard
	// everything before Next, and comes back with that after a break.
	Heartbeat time.Time `json:"heartbeat,omitzero"`
	Next      uint64    `json:"next,omitempty"`
	// Stream names the store; see Listen.Stream.
	Stream string `json:"stream,omitempty"`

	// End says why the server ends the answer.
	End string `json:"end,omitempty"`
}

// From is where listening begins; the zero value is now.
type From struct {
	Sequence  uint64
	Time      time.Time
	Beginning bool
}

// ParseFrom reads now, beginning, a duration ago (1h, 7d), an RFC 3339 time, or
// a sequence of EVENTS. Empty means now.
func ParseFrom(s string) (From, error) {
	switch s {
	case "", "now":
		return From{}, nil
	case "beginning":
		return From{Beginning: true}, nil
	}
	if n, err := strconv.ParseUint(s, 10, 63); err == nil {
		return From{Sequence: n, Beginning: n == 0}, nil
	}
	if d, err := deliver.ParseDuration(s); err == nil {
		return From{Time: time.Now().Add(-d)}, nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return From{Time: t}, nil
	}
	return From{}, fmt.Errorf("%q: want now, beginning, a time ago as in 30m or 7d, a time as in 2026-11-01T10:00:00Z, or the number of an event", s)
}

const (
	// maxListeners bounds what listening may cost: each has a connection to the
	// broker, a cursor there, and at most two batches of events in memory.
	maxListeners = 32
	// maxPatterns is far above any real use; a cursor with hundreds is slow.
	maxPatterns = 64
	// listenBatch is how many events one request to the broker brings at most;
	// listenBytes has room for one of the largest.
	listenBatch = 64
	listenBytes = broker.MaxPayload + 1<<20

	// heartbeatEvery is below the minute after which proxies cut off an answer
	// that says nothing.
	heartbeatEvery = 15 * time.Second
	// stalledAfter is how long a listener may take nothing before it loses its
	// place to others. It comes back where it was.
	stalledAfter = 2 * time.Minute
	// forgottenAfter is when the broker forgets the cursor of a listener whose
	// gridfan died. A request for events that waits keeps a cursor alive, and so
	// does nothing else: one whose listener is slow is made again.
	forgottenAfter = 10 * time.Second
	// askTimeout is that of every other request; see handle.
	askTimeout = 20 * time.Second
	// awayFor is how long a listener waits for a broker that does not answer.
	awayFor = 30 * time.Second
)

var (
	errStopping = errors.New("gridfan is stopping")
	errGap      = errors.New("events were lost on the way from the broker")
)

// newFilter compiles a listener's filter expression.
func newFilter(expression string) (func(*event.Event) (bool, error), error) {
	f, err := filter.Compile(expression)
	if err != nil {
		return nil, problem(http.StatusBadRequest, "bad-parameter", "filter: "+err.Error())
	}
	return f.Match, nil
}

// listening serves listeners.
type listening struct {
	Parts
	places chan struct{} // holds a token for each listener

	// What tests set otherwise.
	heartbeat, stalled time.Duration
	filter             func(expression string) (func(*event.Event) (bool, error), error)
}

func listenRoutes(api *routes, p Parts) {
	l := &listening{Parts: p, places: make(chan struct{}, maxListeners), heartbeat: heartbeatEvery, stalled: stalledAfter, filter: newFilter}
	l.routes(api)
}

func (l *listening) routes(api *routes) {
	api.Handle("GET /api/v1/listen", http.HandlerFunc(l.listen))
	api.Handle("GET /api/v1/listen/{sequence}", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, err := l.one(r)
		if err != nil {
			writeProblem(w, asProblem(err))
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(h.line()) // the caller is gone if this fails
	}))
}

// one finds a single stored event.
func (l *listening) one(r *http.Request) (Heard, error) {
	seq, err := strconv.ParseUint(r.PathValue("sequence"), 10, 63)
	if err != nil || seq == 0 {
		return Heard{}, problem(http.StatusBadRequest, "bad-parameter", "an event is named by its number in the stream")
	}
	ctx, cancel := context.WithTimeout(r.Context(), askTimeout)
	defer cancel()
	s, err := l.Broker.JetStream().Stream(ctx, broker.StreamEvents)
	if err != nil {
		return Heard{}, err
	}
	m, err := s.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		there := "nothing is"
		if state := s.CachedInfo().State; state.Msgs > 0 {
			there = fmt.Sprintf("%d to %d are", state.FirstSeq, state.LastSeq)
		}
		return Heard{}, problem(http.StatusNotFound, "no-such-event",
			fmt.Sprintf("event %d is not stored, %s; what everybody has got is trimmed after storage.replay", seq, there))
	}
	if err != nil {
		return Heard{}, err
	}
	h := Heard{Sequence: seq, Subject: m.Subject, Stored: m.Time.UTC()}
	h.take(m.Header, m.Data, nil)
	return h, nil
}

// listen streams events until the listener goes away.
func (l *listening) listen(w http.ResponseWriter, r *http.Request) {
	// A page from elsewhere cannot read the answer, but it could use up the
	// places.
	if r.Header.Get("Sec-Fetch-Site") == "cross-site" {
		writeProblem(w, problem(http.StatusForbidden, "wrong-site", "the admin API does not serve pages from elsewhere"))
		return
	}
	select {
	case l.places <- struct{}{}:
		defer func() { <-l.places }()
	default:
		writeProblem(w, problem(http.StatusServiceUnavailable, "too-many-listeners", fmt.Sprintf("%d listeners are there already; end one of them", cap(l.places))))
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer context.AfterFunc(l.Stopping, func() { cancel(errStopping) })()

	f, err := l.feed(ctx, r.URL.Query())
	if err != nil {
		writeProblem(w, asProblem(err))
		return
	}
	defer f.close()

	out := http.NewResponseController(w)
	// The server's limits are those of a short exchange. With the one for
	// reading, which has ended, it would take the listener for gone.
	if err := out.SetReadDeadline(time.Time{}); err != nil {
		writeProblem(w, asProblem(err))
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	send := func(lines ...Heard) error {
		for _, h := range lines {
			if err := out.SetWriteDeadline(time.Now().Add(l.stalled)); err != nil {
				return err
			}
			if _, err := w.Write(h.line()); err != nil {
				return err
			}
		}
		return out.Flush()
	}
	next := f.next
	alive := func() Heard { return Heard{Heartbeat: time.Now().UTC(), Next: next, Stream: f.id} }
	if send(alive()) != nil {
		return
	}

	batches := make(chan batch)
	ended := make(chan error, 1)
	go func() { ended <- f.run(ctx, batches) }()
	tick := time.NewTicker(l.heartbeat)
	defer tick.Stop()
	for {
		var err error
		select {
		case b := <-batches:
			next = b.next
			err = send(b.lines...)
		case <-tick.C:
			err = send(alive())
		case err := <-ended:
			_ = send(Heard{End: err.Error(), Next: next, Stream: f.id}) // it may have gone
			return
		}
		if err != nil {
			cancel(err)
			<-ended
			return
		}
	}
}

// feed reads EVENTS for one listener.
type feed struct {
	broker   *broker.Broker
	js       jetstream.JetStream
	conn     *nats.Conn
	id       string // of the stream
	subjects []string
	filter   func(*event.Event) (bool, error)
	next     uint64 // everything before it was handed on

	cursor jetstream.Consumer // nil: to be made
	served uint64             // messages the cursor has handed out
}

// batch is some events, and what comes after them.
type batch struct {
	lines []Heard
	next  uint64
}

// feed reads the parameters and finds where to begin.
func (l *listening) feed(ctx context.Context, q url.Values) (*feed, error) {
	f := &feed{broker: l.Broker}
	bad := func(name string, err error) error {
		return problem(http.StatusBadRequest, "bad-parameter", name+": "+err.Error())
	}
	subjects := q["subject"]
	if len(subjects) == 0 {
		subjects = []string{broker.SubjectEvents}
	}
	if len(subjects) > maxPatterns {
		return nil, bad("subject", fmt.Errorf("%d patterns, want at most %d", len(subjects), maxPatterns))
	}
	for _, s := range subjects {
		if err := registry.ValidSubject(s); err != nil {
			return nil, bad("subject", err)
		}
	}
	f.subjects = deliver.MinimiseSubjects(subjects)
	from, err := ParseFrom(q.Get("from"))
	if err != nil {
		return nil, bad("from", err)
	}
	if expression := q.Get("filter"); expression != "" {
		if f.filter, err = l.filter(expression); err != nil {
			return nil, err
		}
	}

	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	space, err := l.Registry.Space(ctx)
	if err != nil {
		return nil, err
	}
	s, err := l.Broker.JetStream().Stream(ctx, broker.StreamEvents)
	if err != nil {
		return nil, err
	}
	f.id = s.CachedInfo().Created.UTC().Format(time.RFC3339Nano)
	first := max(1, space.First)
	switch known := q.Get("stream"); {
	case known != "" && known != f.id, from.Beginning:
		f.next = first
	case from.Sequence > space.Last+1:
		return nil, bad("from", fmt.Errorf("there is no event %d yet; the last one is %d", from.Sequence, space.Last))
	case from.Sequence > 0:
		f.next = max(first, from.Sequence)
	case !from.Time.IsZero():
		last, err := space.Before(ctx, from.Time)
		if err != nil {
			return nil, err
		}
		f.next = max(first, last+1)
	default:
		f.next = space.Last + 1
	}
	if f.conn, f.js, err = l.Broker.Connect("listen"); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *feed) close() {
	f.drop()
	f.conn.Close()
}

// run reads until ctx ends, and says why it ended. It asks the broker for no
// more while nobody takes what it has.
func (f *feed) run(ctx context.Context, out chan<- batch) error {
	trouble := time.Time{} // since when
	for wait := time.Duration(0); ; {
		err := f.read(ctx, func(b batch) error {
			trouble, wait = time.Time{}, 0
			select {
			case out <- b:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			trouble, wait = time.Time{}, 0
			continue
		}
		// What was not handed on is read again by a new cursor.
		f.drop()
		if trouble.IsZero() {
			trouble = time.Now()
		}
		if time.Since(trouble) > awayFor {
			return fmt.Errorf("the broker does not answer: %w", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		wait = min(max(2*wait, 100*time.Millisecond), 2*time.Second)
	}
}

// read makes one request for events and hands on what it brings.
func (f *feed) read(ctx context.Context, yield func(batch) error) error {
	epoch := f.broker.Epoch()
	if err := f.make(ctx); err != nil {
		return err
	}
	// Fetch, not Consume; see package deliver. Its signs of life tell within
	// ten seconds that the cursor is gone.
	fetched, err := f.cursor.Fetch(listenBatch, jetstream.FetchContext(ctx), jetstream.FetchMaxBytes(listenBytes))
	if err != nil {
		return err
	}
	messages := fetched.Messages()
	for {
		b, err := f.gather(messages)
		if err != nil {
			return err
		}
		if b.next == 0 {
			return fetched.Error()
		}
		// Until an event is on the disk, a power cut can give its sequence to
		// another one, which a listener that comes back would never hear.
		if through := b.next - 1; through > f.broker.DurableThrough() {
			if err := f.broker.Durable(ctx, epoch, through); err != nil {
				return err
			}
		}
		if err := yield(b); err != nil {
			return err
		}
		f.next = b.next
	}
}

// make makes the cursor if there is none.
func (f *feed) make(ctx context.Context) error {
	if f.cursor != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := f.js.CreateConsumer(ctx, broker.StreamEvents, jetstream.ConsumerConfig{
		// No subscriber's name has an underscore.
		Name:        "gridfan_listen_" + nuid.Next(),
		Description: "gridfan listen: reads along for a while",
		// What is not handed on is read again from next.
		AckPolicy:      jetstream.AckNonePolicy,
		DeliverPolicy:  jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:    f.next,
		FilterSubjects: f.subjects,
		// In memory: it costs no disk, and a restart leaves nothing of it.
		MemoryStorage: true, Replicas: 1,
		InactiveThreshold: forgottenAfter,
	})
	if err != nil {
		return err
	}
	f.cursor, f.served = c, 0
	return nil
}

// drop deletes the cursor. If that fails, the broker forgets it by itself.
func (f *feed) drop() {
	if f.cursor == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = f.js.DeleteConsumer(ctx, broker.StreamEvents, f.cursor.CachedInfo().Name)
	f.cursor = nil
}

// gather waits for a message and takes those that are there by then. A batch
// whose next is 0 is the end.
func (f *feed) gather(messages <-chan jetstream.Msg) (batch, error) {
	var b batch
	m, more := <-messages
	for n := 1; more; n++ {
		meta, err := m.Metadata()
		if err != nil {
			return batch{}, err
		}
		if f.served++; meta.Sequence.Consumer != f.served {
			return batch{}, errGap
		}
		h := Heard{Sequence: meta.Sequence.Stream, Subject: m.Subject(), Stored: meta.Timestamp.UTC()}
		if h.take(m.Headers(), m.Data(), f.filter) {
			b.lines = append(b.lines, h)
		}
		b.next = h.Sequence + 1
		if n == listenBatch {
			return b, nil
		}
		select {
		case m, more = <-messages:
		default:
			return b, nil
		}
	}
	return b, nil
}

// take decodes a stored message, and says whether it is to be heard.
func (h *Heard) take(header map[string][]string, body []byte, filter func(*event.Event) (bool, error)) bool {
	e, err := event.Decode(header, body)
	if err != nil {
		h.Problem = "not an event of ours: " + err.Error()
		return true
	}
	if filter != nil {
		ok, err := filter(e)
		if err != nil {
			h.Problem = "filter: " + err.Error()
		} else if !ok {
			return false
		}
	}
	// A line feed in JSON stands between values only, but it would end the line.
	raw := e.JSON()
	for i, c := range raw {
		if c == '\n' || c == '\r' {
			raw[i] = ' '
		}
	}
	h.Event = raw
	return true
}

// line writes h without touching the bytes of its event, as json.Marshal would.
func (h Heard) line() []byte {
	raw := h.Event
	h.Event = nil
	b, _ := json.Marshal(h) // strings and numbers: it cannot fail
	if raw != nil {
		b = append(b[:len(b)-1], `,"event":`...)
		b = append(append(b, raw...), '}')
	}
	return append(b, '\n')
}

// listenClient has no limit of time: an answer goes on as long as its heart
// beats.
var listenClient = &http.Client{Transport: &http.Transport{
	Proxy:                 http.ProxyFromEnvironment,
	ResponseHeaderTimeout: 30 * time.Second,
}}

// ErrSilent means that nothing came for three heartbeats.
var ErrSilent = errors.New("it has said nothing for 45 seconds")

// Listen calls yield for every line, until ctx ends, the connection does, the
// server ends the answer (an *Ended), or yield returns an error. What yield does
// not take in time stays with the server.
func (c *Client) Listen(ctx context.Context, o Listen, yield func(Heard) error) error {
	q := url.Values{"subject": o.Subjects}
	for name, v := range map[string]string{"filter": o.Filter, "from": o.From, "stream": o.Stream} {
		if v != "" {
			q.Set(name, v)
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(c.URL, "/")+"/api/v1/listen?"+q.Encode(), nil)
	if err != nil {
		return fmt.Errorf("admin URL %q: %w", c.URL, err)
	}
	if !c.Token.IsZero() {
		req.Header.Set("Authorization", "Bearer "+c.Token.Reveal())
	}
	resp, err := listenClient.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		return fmt.Errorf("no gridfan answers at %s: %w; start one with gridfan serve, or say where it is with --admin", c.URL, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if err != nil {
			return fmt.Errorf("read the answer of %s: %w", c.URL, err)
		}
		p := &Problem{}
		if json.Unmarshal(b, p) != nil || p.Detail == "" {
			return fmt.Errorf("%s answers HTTP %d, not like a gridfan's admin listener; check --admin", c.URL, resp.StatusCode)
		}
		return p
	}
	silent := time.AfterFunc(time.Hour, func() { cancel(ErrSilent) })
	defer silent.Stop()
	for lines := json.NewDecoder(resp.Body); ; {
		var h Heard
		silent.Reset(3 * heartbeatEvery)
		err := lines.Decode(&h)
		silent.Stop() // yield may take its time
		switch {
		case err == nil && h.End != "":
			return &Ended{h.End}
		case err == nil:
			if err := yield(h); err != nil {
				return err
			}
		case errors.Is(err, io.EOF):
			return io.ErrUnexpectedEOF
		default:
			return cmp.Or(context.Cause(ctx), err)
		}
	}
}

// Ended is the error of an answer that the server ended, and says why.
type Ended struct{ Why string }

func (e *Ended) Error() string { return e.Why }

// Event asks for one stored event by its sequence.
func (c *Client) Event(ctx context.Context, sequence uint64) (*Heard, error) {
	var h Heard
	return &h, c.call(ctx, http.MethodGet, "/api/v1/listen/"+strconv.FormatUint(sequence, 10), nil, &h)
}
