// Package sendertest is what every deliver.Sender has to pass. A new Sender
// brings a Harness: how to make one that sends to a destination which the suite
// plays. Senders over HTTP let Handler play it.
//
//	sendertest.Run(t, sendertest.Harness{
//		New: func(t *testing.T, respond sendertest.Respond) deliver.Sender {
//			srv := httptest.NewServer(sendertest.Handler(t, event.Decode, respond))
//			t.Cleanup(srv.Close)
//			…
//		},
//	})
package sendertest

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// Harness is what a Sender brings to be tested. Its functions are called from
// parallel tests.
type Harness struct {
	// New makes a Sender, able to run 32 Sends at once, to a destination that
	// shows what it receives to respond and then does as the Reply says. Both
	// last until t ends; the suite closes the Sender.
	New func(t *testing.T, respond Respond) deliver.Sender
	// Secrets are texts in the Sender's configuration that no Reason may show.
	Secrets []string
	// Arrives gives what a destination makes of e when the format cannot carry
	// all of it. Nil means e itself. It may change e.
	Arrives func(e *event.Event) *event.Event
	// InBatch is Arrives for events in a batch.
	InBatch func(e *event.Event) *event.Event
	// Lists says that the protocol knows nothing but lists: what Send sends is a
	// batch of one.
	Lists bool
	// Limit is the most bytes of JSON that the destination takes, 0 for any number.
	// The Sender refuses what has more, and does not send it.
	Limit int
	// Single says that SendBatch sends a single event as Send does, or that nobody can
	// tell them apart.
	Single bool
	// Statuses are those that the destination has an answer for. Nil means all of
	// HTTP.
	Statuses []int
	// NoHeaders says that the protocol knows neither Retry-After nor redirects.
	NoHeaders bool
	// Busy is the RetryAfter of a destination that throttles without saying for how
	// long.
	Busy time.Duration
	// Faults are those that can happen to an answer. Nil means all.
	Faults []Fault
}

// says tells whether the destination has an answer for a status.
func (h Harness) says(status int) bool {
	return h.Statuses == nil || slices.Contains(h.Statuses, status)
}

// suffers tells whether a fault can happen to the destination.
func (h Harness) suffers(f Fault) bool {
	return f == "" || h.Faults == nil || slices.Contains(h.Faults, f)
}

// wait is the RetryAfter that a fault has without a word of the destination.
func (h Harness) wait(f deliver.Fault) time.Duration {
	if f == deliver.FaultThrottled {
		return h.Busy
	}
	return 0
}

// Respond decides how the destination reacts. It is called once for every
// request and by several goroutines at once.
type Respond func(Received) Reply

// Received is a request as the destination understood it.
type Received struct {
	// Event is what came, the first one of a batch.
	Event *event.Event
	// Events are all that came in this request.
	Events []*event.Event
	// Batch says that the request was one, be it of a single event.
	Batch bool
}

// Reply is how a destination reacts. The zero value accepts the event.
type Reply struct {
	// Status is an HTTP status or its counterpart; 0 means 200.
	Status int
	// Header holds Retry-After and Location, or their counterparts.
	Header http.Header
	Body   string
	// Fault is what goes wrong on the way.
	Fault Fault
}

// Fault is how a reply fails to arrive whole.
type Fault string

// The faults of a destination.
const (
	Hangs    Fault = "hangs"    // no answer until the Sender goes away
	Trickles Fault = "trickles" // an answer that never gets to its end, before any status
	Resets   Fault = "resets"   // the connection is reset amid the header
	Cuts     Fault = "cuts"     // status, part of the body, and the connection ends
	Stalls   Fault = "stalls"   // status, part of the body, and then silence
	Endless  Fault = "endless"  // status, and a body without end
)

const (
	// patience is the deadline of attempts that have no reason to come near it.
	patience = time.Minute
	// soon is when something that must not wait for its deadline is over, on a
	// busy machine.
	soon = 20 * time.Second
)

// Run tests h. Its subtests run in parallel.
func Run(t *testing.T, h Harness) {
	t.Run("statuses", func(t *testing.T) { t.Parallel(); statuses(t, h) })
	if !h.NoHeaders {
		t.Run("retry after", func(t *testing.T) { t.Parallel(); retryAfter(t, h) })
		t.Run("redirect", func(t *testing.T) { t.Parallel(); redirect(t, h) })
	}
	t.Run("deadline", func(t *testing.T) { t.Parallel(); deadline(t, h) })
	t.Run("cancel", func(t *testing.T) { t.Parallel(); cancelled(t, h) })
	t.Run("bad replies", func(t *testing.T) { t.Parallel(); badReplies(t, h) })
	t.Run("secrets", func(t *testing.T) { t.Parallel(); secrets(t, h) })
	t.Run("content", func(t *testing.T) { t.Parallel(); content(t, h) })
	t.Run("concurrent", func(t *testing.T) { t.Parallel(); concurrent(t, h) })
	// Of Senders that are a deliver.BatchSender.
	t.Run("batch", func(t *testing.T) { t.Parallel(); batches(t, h) })
}

// checked sends and holds every Attempt, whatever the test is about, to what
// deliver.Attempt promises.
type checked struct {
	t       *testing.T
	h       Harness
	sender  deliver.Sender
	patient time.Duration
}

func start(t *testing.T, h Harness, respond Respond) *checked {
	t.Helper()
	s := h.New(t, respond)
	t.Cleanup(func() {
		done := make(chan struct{})
		go func() { defer close(done); s.Close() }()
		select {
		case <-done:
		case <-time.After(soon):
			t.Error("Close blocks")
		}
	})
	return &checked{t: t, h: h, sender: s, patient: patience}
}

// send makes one attempt under a generous deadline.
func (c *checked) send(e *event.Event) deliver.Attempt {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), c.patient)
	defer cancel()
	return c.sendCtx(ctx, e)
}

func (c *checked) sendCtx(ctx context.Context, e *event.Event) deliver.Attempt {
	c.t.Helper()
	before := e.Clone()
	before.Data = bytes.Clone(e.Data)
	a := c.sender.Send(ctx, e)
	if d := cmp.Diff(before, e, cmp.Comparer(bytes.Equal)); d != "" {
		c.t.Errorf("Send changed the event (-before +after):\n%s", d)
	}
	c.hold(a)
	return a
}

// hold holds an Attempt to what deliver.Attempt promises.
func (c *checked) hold(a deliver.Attempt) {
	c.t.Helper()
	if failed := a.Outcome == deliver.Failed || a.Outcome == deliver.Rejected; failed != slices.Contains(deliver.Faults, a.Fault) || !failed && a.Fault != "" {
		c.t.Errorf("outcome %s with fault %q (%s)", a.Outcome, a.Fault, a.Reason)
	}
	switch a.Outcome {
	case deliver.Delivered:
		if a.Reason != "" || a.RetryAfter != 0 {
			c.t.Errorf("delivered, and yet there is a reason or a wait: %+v", a)
		}
	case deliver.Failed, deliver.Rejected, deliver.Aborted:
		if a.Reason == "" {
			c.t.Errorf("no reason: %+v", a)
		}
	default:
		c.t.Errorf("no outcome: %+v", a)
	}
	if a.RetryAfter < 0 {
		c.t.Errorf("RetryAfter is negative: %v", a.RetryAfter)
	}
	// 512 bytes of the answer and some words of ours.
	if len(a.Reason) > 600 {
		c.t.Errorf("the reason has %d bytes: %.700s", len(a.Reason), a.Reason)
	}
	if !utf8.ValidString(a.Reason) || strings.ContainsFunc(a.Reason, unicode.IsControl) {
		c.t.Errorf("the reason is not printable: %q", a.Reason)
	}
	for _, s := range c.h.Secrets {
		if strings.Contains(a.Reason, s) {
			c.t.Errorf("the reason shows a secret: %q", a.Reason)
		}
	}
}

func (c *checked) want(what string, a deliver.Attempt, outcome deliver.Outcome, status int) {
	c.t.Helper()
	if a.Outcome != outcome || a.Status != status {
		c.t.Errorf("%s: got %s with status %d (%s), want %s with %d", what, a.Outcome, a.Status, a.Reason, outcome, status)
	}
}

// counter counts requests per event, to see that one Send is one request.
type counter struct {
	mu sync.Mutex
	n  map[string]int // guarded by mu
}

func (c *counter) count(r Received) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[r.Event.ID]++
}

func (c *counter) once(t *testing.T, id string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n[id] != 1 {
		t.Errorf("event %s was sent %d times, want once", id, c.n[id])
	}
}

func simple(id string) *event.Event {
	return &event.Event{
		ID: id, Source: "/d365/fno/prod", Type: "PurchaseOrderConfirmed",
		DataContentType: "application/json", Data: []byte(`{"order":"PO-1"}`), DataJSON: true,
	}
}

// kind is what a status means.
type kind struct {
	outcome deliver.Outcome
	fault   deliver.Fault
}

var meaning = map[kind][]int{
	{deliver.Delivered, ""}:                  {200, 201, 202, 204},
	{deliver.Rejected, deliver.FaultRefused}: {400, 402, 406, 409, 411, 412, 413, 414, 415, 417, 421, 422, 423, 424, 426, 428, 431, 451, 499},
	{deliver.Rejected, deliver.FaultAccess}:  {401, 403},
	{deliver.Rejected, deliver.FaultAddress}: {300, 304, 404, 405, 410},
	{deliver.Failed, deliver.FaultThrottled}: {429},
	{deliver.Failed, deliver.FaultServer}:    {408, 425, 500, 501, 502, 503, 504, 505, 507, 508, 510, 599},
	// These never got to the destination, so it can't have refused the event.
	{deliver.Failed, deliver.FaultNetwork}: {407, 511},
}

func statuses(t *testing.T, h Harness) {
	var count counter
	s := start(t, h, func(r Received) Reply {
		count.count(r)
		var status int
		_, _ = fmt.Sscanf(r.Event.ID, "status-%d", &status)
		return Reply{Status: status, Body: "a short answer"}
	})
	for k, list := range meaning {
		for _, status := range list {
			if !h.says(status) {
				continue
			}
			id := fmt.Sprintf("status-%d", status)
			a := s.send(simple(id))
			s.want(id, a, k.outcome, status)
			if a.Fault != k.fault {
				t.Errorf("%s: fault %q, want %q", id, a.Fault, k.fault)
			}
			if a.RetryAfter != h.wait(k.fault) {
				t.Errorf("%s: RetryAfter is %v though the answer names none", id, a.RetryAfter)
			}
			count.once(t, id)
		}
	}
}

func retryAfter(t *testing.T, h Harness) {
	tests := []struct {
		name, value string
		min, max    time.Duration
	}{
		{"seconds", "7", 7 * time.Second, 7 * time.Second},
		{"zero", "0", 0, 0},
		// A date has whole seconds, and some time passes on the way.
		{"date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat), time.Hour - time.Minute, time.Hour},
		{"past date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat), 0, 0},
		{"negative", "-5", 0, 0},
		{"garbage", "soon", 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status := 0
			s := start(t, h, func(Received) Reply {
				return Reply{Status: status, Header: http.Header{"Retry-After": {tt.value}}}
			})
			for _, status = range []int{429, 503} {
				a := s.send(simple("1"))
				s.want(tt.value, a, deliver.Failed, status)
				if a.RetryAfter < tt.min || a.RetryAfter > tt.max {
					t.Errorf("status %d: RetryAfter is %v, want %v to %v", status, a.RetryAfter, tt.min, tt.max)
				}
			}
		})
	}
}

// redirect: an event and its credentials go where the configuration says.
func redirect(t *testing.T, h Harness) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, location := range []string{"/elsewhere", "https://u:p@elsewhere.invalid/x?key=k", "http://%zz/"} {
			var count counter
			s := start(t, h, func(r Received) Reply {
				count.count(r)
				return Reply{Status: status, Header: http.Header{"Location": {location}}}
			})
			a := s.send(simple("1"))
			s.want(location, a, deliver.Rejected, status)
			count.once(t, "1")
			if strings.Contains(a.Reason, "key=") || strings.Contains(a.Reason, "u:p") {
				t.Errorf("the reason shows more than the host of Location: %s", a.Reason)
			}
		}
	}
}

func deadline(t *testing.T, h Harness) {
	for _, fault := range []Fault{Hangs, Trickles} {
		t.Run(string(fault), func(t *testing.T) {
			s := start(t, h, func(Received) Reply { return Reply{Fault: fault} })
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			begin := time.Now()
			a := s.sendCtx(ctx, simple("1"))
			s.want("at the deadline", a, deliver.Failed, 0)
			if a.Fault != deliver.FaultTimeout {
				t.Errorf("fault %q, want %q", a.Fault, deliver.FaultTimeout)
			}
			if took := time.Since(begin); took > soon {
				t.Errorf("took %v with a deadline of 200ms", took)
			}
		})
	}
	t.Run("passed", func(t *testing.T) {
		s := start(t, h, func(Received) Reply {
			t.Error("an event came although its deadline had passed")
			return Reply{}
		})
		ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
		defer cancel()
		s.want("after the deadline", s.sendCtx(ctx, simple("1")), deliver.Failed, 0)
	})
}

func cancelled(t *testing.T, h Harness) {
	for _, fault := range []Fault{Hangs, Trickles} {
		t.Run(string(fault), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			s := start(t, h, func(Received) Reply {
				cancel() // the request is on its way: now we stop
				return Reply{Fault: fault}
			})
			begin := time.Now()
			s.want("stopped", s.sendCtx(ctx, simple("1")), deliver.Aborted, 0)
			if took := time.Since(begin); took > soon {
				t.Errorf("took %v to stop", took)
			}
		})
	}
	t.Run("before", func(t *testing.T) {
		s := start(t, h, func(Received) Reply {
			t.Error("an event came although its attempt was stopped before")
			return Reply{}
		})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s.want("stopped before", s.sendCtx(ctx, simple("1")), deliver.Aborted, 0)
	})
}

// badReplies: the status decides, once there is one. Every Sender is used again
// afterwards, because a bad answer must not spoil the connections of the next.
func badReplies(t *testing.T, h Harness) {
	huge := strings.Repeat("x", 1<<20)
	dirty := "a\x00b\r\nc\x1b[31m\xff\u202e\u2028" + strings.Repeat("é", 400)
	tests := []struct {
		name   string
		reply  Reply
		want   deliver.Outcome
		status int
	}{
		{"oversized, delivered", Reply{Body: huge}, deliver.Delivered, 200},
		{"oversized, failed", Reply{Status: 503, Body: huge}, deliver.Failed, 503},
		{"oversized, rejected", Reply{Status: 400, Body: huge}, deliver.Rejected, 400},
		{"unprintable", Reply{Status: 500, Body: dirty}, deliver.Failed, 500},
		{"endless, delivered", Reply{Fault: Endless}, deliver.Delivered, 200},
		{"endless, failed", Reply{Status: 500, Fault: Endless}, deliver.Failed, 500},
		{"stalled, delivered", Reply{Fault: Stalls}, deliver.Delivered, 200},
		{"stalled, rejected", Reply{Status: 422, Fault: Stalls}, deliver.Rejected, 422},
		{"cut, delivered", Reply{Fault: Cuts}, deliver.Delivered, 200},
		{"cut, failed", Reply{Status: 503, Fault: Cuts}, deliver.Failed, 503},
		{"reset", Reply{Fault: Resets}, deliver.Failed, 0},
	}
	for _, tt := range tests {
		if !h.suffers(tt.reply.Fault) || !h.says(max(tt.status, http.StatusOK)) {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // several wait for a second
			var count counter
			s := start(t, h, func(r Received) Reply {
				count.count(r)
				if strings.HasPrefix(r.Event.ID, "good") {
					return Reply{}
				}
				return tt.reply
			})
			for i := range 2 {
				// The good one first, so that the bad one meets a used connection.
				good, bad := fmt.Sprint("good", i), fmt.Sprint("bad", i)
				s.want(good, s.send(simple(good)), deliver.Delivered, 200)
				begin := time.Now()
				s.want(bad, s.send(simple(bad)), tt.want, tt.status)
				if took := time.Since(begin); took > soon {
					t.Errorf("took %v after a status", took)
				}
				count.once(t, good)
				count.once(t, bad)
			}
		})
	}
}

// secrets: a destination may quote the request that it complains about. (That
// errors show none either is checked after every attempt of every test.)
func secrets(t *testing.T, h Harness) {
	for _, secret := range h.Secrets {
		for _, status := range []int{302, 400, 401, 503} {
			if !h.says(status) {
				continue
			}
			s := start(t, h, func(Received) Reply {
				return Reply{
					Status: status,
					Header: http.Header{"Location": {"https://elsewhere.invalid/?x=" + secret}},
					Body:   "cannot POST /hook?code=" + secret + "&x=1 " + strings.Repeat("-", 480) + secret,
				}
			})
			s.send(simple("1"))
		}
	}
}

// sample is an event that is hard to carry.
type sample struct {
	name string
	e    *event.Event
}

func samples() []sample {
	every := byteRange()
	full := &event.Event{
		ID: "a b\"%\x00\n\rü\U0001F600", Source: "/d365/fno/prod?x=1#y", Type: "Purchase Order.Confirmed\n",
		Subject: "PO-1\x00\ttail", Time: time.Date(2026, 11, 5, 15, 42, 46, 344065500, time.FixedZone("", 2*60*60)),
		DataContentType: "application/json; charset=utf-8", DataSchema: "urn:gridfan:schema:1",
		Data: []byte(`{"a":1}`), DataJSON: true,
	}
	full.Set(event.ExtSource, "prod")
	full.Set(event.ExtLegalEntity, "usmf")
	full.Set(event.ExtAction, "created")
	full.Set(event.ExtPartitionKey, "line\nbreak\x00, \"quote\", 100% ")
	full.Set(event.ExtTraceParent, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	full.SetExtension(event.Extension{Name: "count", Value: "-5", Type: event.Integer})
	full.SetExtension(event.Extension{Name: "flag", Value: "true", Type: event.Boolean})

	with := func(contentType string, data []byte, isJSON bool) *event.Event {
		e := simple("1")
		e.Set(event.ExtSource, "prod")
		e.DataContentType, e.Data, e.DataJSON = contentType, data, isJSON
		return e
	}
	subject := func(s string) *event.Event {
		e := full.Clone()
		e.Subject = s
		return e
	}
	return []sample{
		{"all attributes", full},
		{"required attributes alone", &event.Event{ID: "1", Source: "s", Type: "t"}},
		{"numbers", with("application/json", []byte(`{"max":9223372036854775807,"min":-9223372036854775808,"big":123456789012345678901234567890.10,"zero":-0,"exp":1E400}`), true)},
		{"layout of JSON", with("application/json", []byte("{ \"b\" : 1 ,\r\n\t\"a\":\"\\u00e9\\/\" }"), true)},
		{"JSON string", with("application/json", []byte(`"text"`), true)},
		{"JSON null", with("application/json", []byte(`null`), true)},
		{"JSON of a vendor", with("application/vnd.contoso+json", []byte(`[]`), true)},
		{"XML", with("application/xml", []byte("<a>\n\u00e9</a>"), false)},
		{"binary", with("application/octet-stream", every, false)},
		{"text that is no UTF-8", with("text/plain", every, false)},
		{"no data", with("", nil, false)},
		{"no data, but its type", with("application/json", nil, false)},
		{"1 MiB", with("application/octet-stream", []byte(strings.Repeat(string(every), 4096)), false)},
		{"10 KB subject", subject(strings.Repeat("s", 10<<10))},
		{"64 KB subject", subject(strings.Repeat("s", 64<<10))},
		{"64 KB of line breaks", subject(strings.Repeat("\n", 64<<10))},
	}
}

func content(t *testing.T, h Harness) {
	for _, tt := range samples() {
		t.Run(tt.name, func(t *testing.T) {
			var got *event.Event
			s := start(t, h, func(r Received) Reply {
				got = r.Event
				return Reply{}
			})
			if h.tooBig(tt.e) {
				s.refuses(s.send(tt.e))
				if got != nil {
					t.Error("it was sent all the same")
				}
				return
			}
			s.want("send", s.send(tt.e), deliver.Delivered, 200)
			want := tt.e.Clone()
			if h.Arrives != nil {
				want = h.Arrives(want)
			}
			// bytes.Equal because cmp alone takes seconds for a MiB.
			if d := cmp.Diff(want, got, cmp.Comparer(bytes.Equal)); d != "" {
				t.Errorf("arrived differently (-sent +arrived):\n%s", d)
			}
		})
	}
}

// tooBig says whether no request of the destination has room for e.
func (h Harness) tooBig(e *event.Event) bool { return h.Limit > 0 && len(e.JSON()) > h.Limit }

// refuses wants an Attempt that blames the event, without a word to the destination.
func (c *checked) refuses(a deliver.Attempt) {
	c.t.Helper()
	if a.Outcome != deliver.Rejected || a.Fault != deliver.FaultRefused {
		c.t.Errorf("of more than the destination takes: %+v, want a refusal", a)
	}
}

func byteRange() []byte {
	b := make([]byte, 256)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// concurrent is for the race detector, and for answers that get mixed up.
func concurrent(t *testing.T, h Harness) {
	const senders, each = 32, 8
	var count counter
	s := start(t, h, func(r Received) Reply {
		count.count(r)
		if strings.HasSuffix(r.Event.ID, "odd") {
			return Reply{Status: 503, Body: r.Event.ID}
		}
		return Reply{}
	})
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			for j := range each {
				id := fmt.Sprintf("%d-%d-even", i, j)
				s.want(id, s.send(simple(id)), deliver.Delivered, 200)
				id = fmt.Sprintf("%d-%d-odd", i, j)
				a := s.send(simple(id))
				s.want(id, a, deliver.Failed, 503)
				if !strings.Contains(a.Reason, id) {
					t.Errorf("%s got the answer of another: %s", id, a.Reason)
				}
			}
		})
	}
	wg.Wait()
	for i := range senders {
		for j := range each {
			count.once(t, fmt.Sprintf("%d-%d-even", i, j))
			count.once(t, fmt.Sprintf("%d-%d-odd", i, j))
		}
	}
}

func (c *checked) sendBatch(ctx context.Context, events []*event.Event) deliver.Attempt {
	c.t.Helper()
	var before []*event.Event
	for _, e := range events {
		e = e.Clone()
		e.Data = bytes.Clone(e.Data)
		before = append(before, e)
	}
	a := c.sender.(deliver.BatchSender).SendBatch(ctx, events)
	if d := cmp.Diff(before, events, cmp.Comparer(bytes.Equal)); d != "" {
		c.t.Errorf("SendBatch changed its events (-before +after):\n%s", d)
	}
	c.hold(a)
	return a
}

// batches: several events are one request with one answer.
func batches(t *testing.T, h Harness) {
	if _, ok := start(t, h, func(Received) Reply { return Reply{} }).sender.(deliver.BatchSender); !ok {
		return
	}
	some := func(n int) []*event.Event {
		var events []*event.Event
		for i := range n {
			events = append(events, simple(fmt.Sprint(i)))
		}
		return events
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)

	every := []*event.Event{}
	for _, s := range samples() {
		if !h.tooBig(s.e) {
			every = append(every, s.e)
		}
	}
	for name, events := range map[string][]*event.Event{
		"content": every, "one": some(1), "a thousand": some(1000), "the same twice": {simple("1"), simple("1")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []Received
			s := start(t, h, func(r Received) Reply {
				got = append(got, r)
				return Reply{}
			})
			s.want(name, s.sendBatch(ctx, events), deliver.Delivered, 200)
			if len(got) != 1 || !got[0].Batch && !(h.Single && len(events) == 1) {
				t.Fatalf("%d requests, want one batch", len(got))
			}
			want := slices.Clone(events)
			for i := range want {
				if h.InBatch != nil {
					want[i] = h.InBatch(want[i].Clone())
				}
			}
			if d := cmp.Diff(want, got[0].Events, cmp.Comparer(bytes.Equal)); d != "" {
				t.Errorf("arrived differently, or in another order (-sent +arrived):\n%.2000s", d)
			}
		})
	}
	t.Run("statuses", func(t *testing.T) {
		t.Parallel()
		for k, list := range meaning {
			for _, status := range list {
				if !h.says(status) {
					continue
				}
				s := start(t, h, func(Received) Reply {
					return Reply{Status: status, Header: http.Header{"Retry-After": {"7"}}}
				})
				a := s.sendBatch(ctx, some(3))
				s.want("batch", a, k.outcome, status)
				wait := h.wait(k.fault)
				if a.Outcome == deliver.Failed && !h.NoHeaders {
					wait = 7 * time.Second
				}
				if a.Fault != k.fault || a.RetryAfter != wait {
					t.Errorf("status %d: got %+v", status, a)
				}
			}
		}
	})
	t.Run("deadline", func(t *testing.T) {
		t.Parallel()
		s := start(t, h, func(Received) Reply { return Reply{Fault: Hangs} })
		short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		s.want("at the deadline", s.sendBatch(short, some(3)), deliver.Failed, 0)
	})
	t.Run("cancel", func(t *testing.T) {
		t.Parallel()
		stop, cancel := context.WithCancel(ctx)
		defer cancel()
		s := start(t, h, func(Received) Reply {
			cancel()
			return Reply{Fault: Hangs}
		})
		s.want("stopped", s.sendBatch(stop, some(3)), deliver.Aborted, 0)
	})
	if h.Limit > 0 {
		t.Run("too big", func(t *testing.T) { t.Parallel(); tooBig(t, h) })
	}
	// Beside single ones, which share its connections.
	t.Run("concurrent", func(t *testing.T) {
		t.Parallel()
		s := start(t, h, func(r Received) Reply {
			if r.Batch != (len(r.Events) == 3 || h.Lists) {
				t.Errorf("a batch of %d events", len(r.Events))
			}
			return Reply{}
		})
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() { s.want("single", s.send(simple("1")), deliver.Delivered, 200) })
			wg.Go(func() { s.want("batch", s.sendBatch(ctx, some(3)), deliver.Delivered, 200) })
		}
		wg.Wait()
	})
}

// tooBig: of a batch that the destination does not take, nothing is sent, and the
// one event that is to blame shows when they are sent alone. Pack says how many go
// together.
func tooBig(t *testing.T, h Harness) {
	var count counter
	s := start(t, h, func(r Received) Reply {
		count.count(r)
		return Reply{}
	})
	of := func(id string, size int) *event.Event {
		e := simple(id)
		e.Data = []byte(`"` + strings.Repeat("x", size) + `"`)
		return e
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	big := of("big", h.Limit)
	s.refuses(s.sendBatch(ctx, []*event.Event{simple("1"), big, simple("2")}))
	s.refuses(s.send(big))
	if len(count.n) > 0 {
		t.Errorf("some were sent: %v", count.n)
	}
	p, ok := s.sender.(deliver.Packer)
	if !ok {
		t.Fatal("a Sender with a limit does not say how much fits: want a deliver.Packer")
	}
	if n := p.Pack([]*event.Event{big, simple("1")}); n != 1 {
		t.Errorf("Pack puts %d into one beside an event that is too big, want 1", n)
	}
	// However the sizes are, what Pack puts together is taken.
	var all []*event.Event
	for i := range 40 {
		e := of(fmt.Sprint("part-", i), h.Limit/(3+i%17))
		if i%3 == 0 {
			e.DataContentType, e.DataJSON = "application/octet-stream", false
		}
		if i%5 == 0 {
			e.Data = []byte(`"` + strings.Repeat("<\u2028é", h.Limit/90) + `"`)
		}
		all = append(all, e)
	}
	requests := 0
	for rest := all; len(rest) > 0; requests++ {
		n := p.Pack(rest)
		if n < 1 || n > len(rest) {
			t.Fatalf("Pack gives %d of %d", n, len(rest))
		}
		s.want("packed", s.sendBatch(ctx, rest[:n]), deliver.Delivered, 200)
		rest = rest[n:]
	}
	if requests > len(all)/2 {
		t.Errorf("%d events took %d requests: too few go together", len(all), requests)
	}
}
