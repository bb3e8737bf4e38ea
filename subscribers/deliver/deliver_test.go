package deliver_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// fakeSender answers what respond says and remembers what it was sent.
type fakeSender struct {
	mu      sync.Mutex
	got     map[string]int // successful, by id
	tries   map[string]int
	respond func(ctx context.Context, e *event.Event, try int) deliver.Attempt
	changed chan struct{}
}

func newSender(respond func(ctx context.Context, e *event.Event, try int) deliver.Attempt) *fakeSender {
	return &fakeSender{got: map[string]int{}, tries: map[string]int{}, respond: respond, changed: make(chan struct{}, 1)}
}

func ok(context.Context, *event.Event, int) deliver.Attempt {
	return deliver.Attempt{Outcome: deliver.Delivered, Status: 200}
}

func (s *fakeSender) Send(ctx context.Context, e *event.Event) deliver.Attempt {
	s.mu.Lock()
	s.tries[e.ID]++
	try := s.tries[e.ID]
	s.mu.Unlock()
	a := s.respond(ctx, e, try)
	s.mu.Lock()
	if a.Outcome == deliver.Delivered {
		s.got[e.ID]++
	}
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return a
}

func (s *fakeSender) Close() {}

func (s *fakeSender) count() (delivered, tries int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.tries {
		tries += n
	}
	return len(s.got), tries
}

// waitFor polls until done says so.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
		time.Sleep(5 * time.Millisecond) // sleep: polling with a deadline
	}
}

type rig struct {
	t     *testing.T
	b     *broker.Broker
	parts deliver.Parts
}

func newRig(t *testing.T) *rig { return openRig(t, brokertest.New(t)) }

func openRig(t *testing.T, b *broker.Broker) *rig {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	rec, err := deliver.NewRecorder(t.Context(), b, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rec.Close)
	return &rig{t: t, b: b, parts: deliver.Parts{
		Broker: b, Recorder: rec, Metrics: deliver.NewMetrics(prometheus.NewRegistry()), Log: log,
	}}
}

func fastConfig() deliver.Config {
	ms := func(n int) deliver.Duration { return deliver.Duration(time.Duration(n) * time.Millisecond) }
	return deliver.Config{
		Limits:  deliver.Limits{Concurrency: 4, Timeout: ms(2000)},
		Retry:   deliver.Retry{Schedule: []deliver.Duration{ms(20), ms(40), ms(80)}},
		Breaker: deliver.Breaker{Failures: 3, OpenFor: ms(20), MaxOpenFor: ms(40), RampUp: deliver.None},
	}
}

func (r *rig) start(name string, cfg deliver.Config, s deliver.Sender) *deliver.Worker {
	r.t.Helper()
	if err := cfg.Validate("subscribers." + name); err != nil {
		r.t.Fatal(err)
	}
	w, err := deliver.Start(r.t.Context(), deliver.Subscriber{
		Name: name, Subjects: []string{"events.>"}, Config: cfg, Sender: s,
	}, r.parts)
	if err != nil {
		r.t.Fatal(err)
	}
	var once sync.Once
	r.t.Cleanup(func() { once.Do(func() { w.Stop(time.Second) }) })
	return w
}

func (r *rig) publish(from, to int) {
	r.t.Helper()
	for i := from; i < to; i++ {
		e := &event.Event{ID: fmt.Sprint(i), Source: "/s", Type: "t", Data: []byte("1"), DataJSON: true, DataContentType: "application/json"}
		e.Set(event.ExtSource, "test")
		h, body := e.Encode()
		m := &nats.Msg{Subject: "events.fno.test.usmf.Thing", Header: h, Data: body}
		if _, err := r.b.JetStream().PublishMsg(r.t.Context(), m); err != nil {
			r.t.Fatal(err)
		}
	}
}

// stored counts the messages of a stream by subject.
func (r *rig) stored(stream string) map[string]uint64 {
	r.t.Helper()
	s, err := r.b.JetStream().Stream(r.t.Context(), stream)
	if err != nil {
		r.t.Fatal(err)
	}
	info, err := s.Info(r.t.Context(), jetstream.WithSubjectFilter(">"))
	if err != nil {
		r.t.Fatal(err)
	}
	return info.State.Subjects
}

// records reads the whole ATTEMPTS stream.
func (r *rig) records() []deliver.Record {
	r.t.Helper()
	s, err := r.b.JetStream().Stream(r.t.Context(), broker.StreamAttempts)
	if err != nil {
		r.t.Fatal(err)
	}
	info, err := s.Info(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	var all []deliver.Record
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq && info.State.Msgs > 0; seq++ {
		m, err := s.GetMsg(r.t.Context(), seq)
		if err != nil {
			r.t.Fatal(err)
		}
		rs, err := deliver.ParseRecords(m.Data)
		if err != nil {
			r.t.Fatal(err)
		}
		all = append(all, rs...)
	}
	return all
}

func (r *rig) settled(outcome string) int {
	n := 0
	for _, rec := range r.records() {
		if rec.Outcome == outcome {
			n++
		}
	}
	return n
}

func (r *rig) unsettled(name string) int {
	c, err := r.b.JetStream().Consumer(r.t.Context(), broker.StreamEvents, name)
	if err != nil {
		r.t.Fatal(err)
	}
	info, err := c.Info(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return int(info.NumPending) + info.NumAckPending
}

func TestDelivers(t *testing.T) {
	r := newRig(t)
	s := newSender(ok)
	r.start("a", fastConfig(), s)
	r.publish(0, 200)
	waitFor(t, "200 settlements", func() bool { return r.settled("delivered") == 200 })
	if n, tries := s.count(); n != 200 || tries != 200 {
		t.Errorf("%d events in %d attempts", n, tries)
	}
	waitFor(t, "the acks", func() bool { return r.unsettled("a") == 0 })
}

func TestPassingFailureIsRepeatedInPlace(t *testing.T) {
	r := newRig(t)
	s := newSender(func(_ context.Context, _ *event.Event, try int) deliver.Attempt {
		if try == 1 {
			return deliver.Attempt{Outcome: deliver.Failed, Status: 503, Reason: "HTTP 503"}
		}
		return deliver.Attempt{Outcome: deliver.Delivered}
	})
	r.start("a", fastConfig(), s)
	r.publish(0, 1)
	waitFor(t, "delivery", func() bool { return r.settled("delivered") == 1 })
	if n := r.settled("retry"); n != 0 {
		t.Errorf("%d trips over the retry lane, want none", n)
	}
}

func TestRetryLane(t *testing.T) {
	r := newRig(t)
	s := newSender(func(_ context.Context, e *event.Event, try int) deliver.Attempt {
		if e.ID == "0" && try <= 5 { // two in place, and then some
			return deliver.Attempt{Outcome: deliver.Failed, Status: 500, Reason: "HTTP 500"}
		}
		return deliver.Attempt{Outcome: deliver.Delivered}
	})
	cfg := fastConfig()
	cfg.Breaker.Failures = 100
	r.start("a", cfg, s)
	r.publish(0, 20)
	waitFor(t, "delivery", func() bool { return r.settled("delivered") == 20 })
	var hops []int
	for _, rec := range r.records() {
		if rec.ID == "0" {
			hops = append(hops, rec.Hop)
			if rec.Sequence != 1 || rec.Subject != "events.fno.test.usmf.Thing" {
				t.Errorf("record %+v does not point to the event", rec)
			}
		}
	}
	if d := cmp.Diff([]int{0, 1, 2}, hops); d != "" {
		t.Errorf("hops (-want +got):\n%s", d)
	}
	waitFor(t, "an empty retry lane", func() bool { return len(r.stored(broker.StreamRetry)) == 0 })
}

func TestScheduleUsedUpBecomesDeadLetter(t *testing.T) {
	r := newRig(t)
	s := newSender(func(_ context.Context, e *event.Event, _ int) deliver.Attempt {
		if e.ID == "0" {
			return deliver.Attempt{Outcome: deliver.Failed, Status: 500, Reason: "HTTP 500"}
		}
		return deliver.Attempt{Outcome: deliver.Delivered}
	})
	cfg := fastConfig()
	cfg.Breaker.Failures = 100
	r.start("a", cfg, s)
	r.publish(0, 3)
	waitFor(t, "the dead letter", func() bool { return r.stored(broker.StreamDeadLetters)["gridfan.deadletters.a.exhausted"] == 1 })
	waitFor(t, "the other events", func() bool { return r.settled("delivered") == 2 })
	// A first attempt and one for each wait of the schedule, each made twice.
	if got := s.tries["0"]; got != 8 {
		t.Errorf("%d attempts, want 8", got)
	}
}

func TestRefusalIsOneEventsAffair(t *testing.T) {
	r := newRig(t)
	s := newSender(func(_ context.Context, e *event.Event, _ int) deliver.Attempt {
		if e.ID != "7" {
			return deliver.Attempt{Outcome: deliver.Rejected, Status: 422, Reason: "HTTP 422: bad, bad event"}
		}
		return deliver.Attempt{Outcome: deliver.Delivered}
	})
	w := r.start("a", fastConfig(), s)
	r.publish(0, 10)
	waitFor(t, "settlements", func() bool { return r.settled("dead-letter") == 9 && r.settled("delivered") == 1 })
	if got := r.stored(broker.StreamDeadLetters)["gridfan.deadletters.a.rejected"]; got != 9 {
		t.Errorf("%d dead letters, want 9", got)
	}
	if b := w.Breaker(); b.State != "closed" {
		t.Errorf("breaker %+v: a refusal means that the subscriber is up", b)
	}
	stream, err := r.b.JetStream().Stream(t.Context(), broker.StreamDeadLetters)
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.GetMsg(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if m.Header.Get("ce-id") == "" || string(m.Data) != "1" || m.Header.Get(deliver.HeaderStatus) != "422" ||
		m.Header.Get(deliver.HeaderOriginSequence) == "" || m.Header.Get("Nats-Msg-Id") == "" {
		t.Errorf("dead letter %v %q lacks what a redrive needs", m.Header, m.Data)
	}
}

// A subscriber that is down through many breaker cycles gets everything once
// it is back: a probe uses up nothing of an event's schedule.
func TestDownThroughTwentyCycles(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	up, probes := false, 0
	s := newSender(func(context.Context, *event.Event, int) deliver.Attempt {
		mu.Lock()
		defer mu.Unlock()
		if up {
			return deliver.Attempt{Outcome: deliver.Delivered}
		}
		probes++
		return deliver.Attempt{Outcome: deliver.Failed, Reason: "connection refused"}
	})
	w := r.start("a", fastConfig(), s)
	r.publish(0, 50)
	seen := func() int { mu.Lock(); defer mu.Unlock(); return probes }
	waitFor(t, "the breaker to open", func() bool { return w.Breaker().State != "closed" })
	atOpen := seen()
	waitFor(t, "20 probes", func() bool { return seen() >= atOpen+20 })
	mu.Lock()
	up = true
	mu.Unlock()
	waitFor(t, "all events", func() bool { n, _ := s.count(); return n == 50 })
	waitFor(t, "all settlements", func() bool { return r.settled("delivered") == 50 })
	if n := len(r.stored(broker.StreamDeadLetters)); n != 0 {
		t.Errorf("%d dead letters", n)
	}
	for id, n := range s.got {
		if n != 1 {
			t.Errorf("event %s delivered %d times", id, n)
		}
	}
}

// While the breaker is open nothing is fetched, so nothing is tried.
func TestOpenBreakerStopsFetching(t *testing.T) {
	r := newRig(t)
	s := newSender(func(context.Context, *event.Event, int) deliver.Attempt {
		return deliver.Attempt{Outcome: deliver.Failed, Reason: "down"}
	})
	cfg := fastConfig()
	cfg.Breaker.OpenFor, cfg.Breaker.MaxOpenFor = deliver.Duration(time.Hour), deliver.Duration(time.Hour)
	w := r.start("a", cfg, s)
	r.publish(0, 100)
	waitFor(t, "an open breaker", func() bool { return w.Breaker().State == "open" })
	_, before := s.count()
	if before > 12 {
		t.Errorf("%d attempts before the breaker opened at 3 failures with 4 slots", before)
	}
	st := w.Breaker()
	if st.NextProbe == nil || st.Failures < 3 || st.LastError != "down" {
		t.Errorf("status %+v does not say what is wrong", st)
	}
	time.Sleep(300 * time.Millisecond) // sleep: to see that nothing happens
	if _, after := s.count(); after != before {
		t.Errorf("%d attempts while open", after-before)
	}
}

// What waits long for a slot is held by signs of life, and comes again after a
// crash: the slower a subscriber, the less is taken from the stream for it.
func TestSlowSubscriberHoldsLittle(t *testing.T) {
	r := newRig(t)
	const all, enough = 300, 8
	r.publish(0, all)
	well := make(chan struct{})
	s := newSender(func(ctx context.Context, e *event.Event, n int) deliver.Attempt {
		select {
		case <-well:
		case <-time.After(300 * time.Millisecond): // so slow is it
		}
		return ok(ctx, e, n)
	})
	r.start("slow", fastConfig(), s)
	cursor, err := r.b.JetStream().Consumer(t.Context(), broker.StreamEvents, "slow")
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "little in hand", func() bool {
		info, err := cursor.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if info.NumPending < enough {
			t.Fatal("nearly all was taken from the stream, and much of it in hand")
		}
		return info.NumPending < all && info.NumAckPending <= enough
	})
	close(well)
	waitFor(t, "everything", func() bool { n, _ := s.count(); return n == all })
	if _, tries := s.count(); tries != all {
		t.Errorf("made %d attempts for %d events", tries, all)
	}
}

func TestPause(t *testing.T) {
	r := newRig(t)
	s := newSender(ok)
	w := r.start("a", fastConfig(), s)
	r.publish(0, 5)
	waitFor(t, "the first five", func() bool { n, _ := s.count(); return n == 5 })
	w.SetPaused(true)
	r.publish(5, 10)
	time.Sleep(200 * time.Millisecond) // sleep: to see that nothing happens
	if n, _ := s.count(); n != 5 {
		t.Errorf("%d delivered while paused", n-5)
	}
	w.SetPaused(false)
	waitFor(t, "the rest", func() bool { n, _ := s.count(); return n == 10 })
}

// An attempt may last much longer than the broker's patience.
func TestSlowAttemptIsNotRepeated(t *testing.T) {
	r := newRig(t)
	s := newSender(func(ctx context.Context, _ *event.Event, _ int) deliver.Attempt {
		select {
		case <-time.After(4 * time.Second):
		case <-ctx.Done():
		}
		return deliver.Attempt{Outcome: deliver.Delivered}
	})
	cfg := fastConfig()
	cfg.Limits.Timeout = deliver.Duration(20 * time.Second)
	cfg.Limits.Concurrency = 2
	r.start("a", cfg, s)
	r.publish(0, 4) // two in slots, two waiting in the queue
	waitFor(t, "delivery", func() bool { return r.settled("delivered") == 4 })
	if n, tries := s.count(); n != 4 || tries != 4 {
		t.Errorf("%d events in %d attempts", n, tries)
	}
}

// What one process had in its hands when it went away comes back to the next
// one within two seconds, and what was settled does not.
func TestNextProcessTakesOver(t *testing.T) {
	dir := t.TempDir()
	b := brokertest.Open(t, dir)
	r := openRig(t, b)
	hang := make(chan struct{})
	s := newSender(func(ctx context.Context, e *event.Event, _ int) deliver.Attempt {
		if e.ID == "3" {
			<-hang
		}
		return deliver.Attempt{Outcome: deliver.Delivered}
	})
	r.start("a", fastConfig(), s)
	r.publish(0, 20)
	waitFor(t, "all but one", func() bool { return r.settled("delivered") == 19 })
	b.Close() // as good as a kill for the worker: nothing more gets through
	close(hang)

	b = brokertest.Open(t, dir)
	start := time.Now()
	r2 := openRig(t, b)
	s2 := newSender(ok)
	r2.start("a", fastConfig(), s2)
	waitFor(t, "the event in flight", func() bool { n, _ := s2.count(); return n >= 1 })
	// The broker's patience is 1.5 s; the rest is for a machine that stands still.
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it came back after %v", took)
	}
	waitFor(t, "an empty cursor", func() bool { return r2.unsettled("a") == 0 })
	if len(s2.got) != 1 || s2.got["3"] != 1 {
		t.Errorf("the next process delivered %v, want just event 3", s2.got)
	}
}

func TestStopGivesAttemptsTimeToEnd(t *testing.T) {
	r := newRig(t)
	started := make(chan struct{}, 10)
	s := newSender(func(ctx context.Context, e *event.Event, _ int) deliver.Attempt {
		started <- struct{}{}
		select {
		case <-time.After(300 * time.Millisecond):
			return deliver.Attempt{Outcome: deliver.Delivered}
		case <-ctx.Done():
			return deliver.Attempt{Outcome: deliver.Aborted}
		}
	})
	w := r.start("a", fastConfig(), s)
	r.publish(0, 1)
	<-started
	w.Stop(5 * time.Second)
	if got := r.settled("delivered"); got != 1 {
		t.Errorf("%d settled, want the attempt under way to end well", got)
	}
}

// What other clients put onto our subjects must not stop a subscriber.
func TestForeignMessagesBecomeDeadLetters(t *testing.T) {
	r := newRig(t)
	s := newSender(ok)
	r.start("a", fastConfig(), s)
	for _, subject := range []string{"events.x", broker.RetryDue("a")} {
		if _, err := r.b.JetStream().Publish(t.Context(), subject, []byte("hello")); err != nil {
			t.Fatal(err)
		}
	}
	r.publish(0, 1)
	waitFor(t, "settlements", func() bool { return r.settled("dead-letter") == 2 && r.settled("delivered") == 1 })
	if got := r.stored(broker.StreamDeadLetters)["gridfan.deadletters.a.undecodable"]; got != 2 {
		t.Errorf("%d dead letters, want 2", got)
	}
}

// What was put on the retry lane while its subscriber was being deleted is not for
// the one that is added under its name afterwards.
func TestLeftByTheOneBefore(t *testing.T) {
	for _, o := range []deliver.Ordering{deliver.Unordered, deliver.Strict} {
		t.Run(string(o), func(t *testing.T) {
			r := newRig(t)
			r.publish(0, 1)
			for i, subject := range []string{broker.RetryDue("a"), broker.RetryDueIn("a", 6, "all-"), broker.RetryBehind("a", 7, "all-")} {
				e := event.Event{ID: "old", Source: "/s", Type: "t"}
				h, body := e.Encode()
				m := &nats.Msg{Subject: subject, Header: h, Data: body}
				for name, value := range map[string]string{
					deliver.HeaderAdded: deliver.Added(time.Now().Add(-time.Hour)), deliver.HeaderOriginSequence: strconv.Itoa(5 + i), deliver.HeaderOriginSubject: "events.x",
					deliver.HeaderHop: strconv.Itoa(i + 1), deliver.HeaderRounds: "0", deliver.HeaderAttempts: "1",
				} {
					m.Header.Set(name, value)
				}
				if _, err := r.b.JetStream().PublishMsg(t.Context(), m); err != nil {
					t.Fatal(err)
				}
			}
			s := newSender(ok)
			cfg := fastConfig()
			cfg.Ordering = o
			r.start("a", cfg, s)
			waitFor(t, "an empty retry lane", func() bool { return len(r.stored(broker.StreamRetry)) == 0 && r.settled("delivered") == 1 })
			r.publish(1, 3)
			waitFor(t, "what is its own", func() bool { return r.settled("delivered") == 3 })
			if n, _ := s.count(); n != 3 {
				t.Errorf("%d were sent, want 3", n)
			}
		})
	}
}

func TestMinimiseSubjects(t *testing.T) {
	tests := []struct{ in, want []string }{
		{[]string{"events.>"}, []string{"events.>"}},
		{[]string{"events.fno.>", "events.fno.prod.>", "events.*.a.b.c"}, []string{"events.fno.>", "events.*.a.b.c"}},
		{[]string{"events.a", "events.a"}, []string{"events.a"}},
		{[]string{"events.*", "events.a", "events.*.b"}, []string{"events.*", "events.*.b"}},
		{[]string{"events.*.>", "events.a.*"}, []string{"events.*.>"}},
		{[]string{"events.a.*", "events.*.b"}, []string{"events.a.*", "events.*.b"}}, // crossing, not covering
	}
	for _, tt := range tests {
		if d := cmp.Diff(tt.want, deliver.MinimiseSubjects(tt.in)); d != "" {
			t.Errorf("%v (-want +got):\n%s", tt.in, d)
		}
	}
}

// A stream that somebody deleted and made again begins at sequence 1, like the
// old one: what was settled there says nothing of the events here.
func TestStreamMadeAgain(t *testing.T) {
	r := newRig(t)
	s := newSender(ok)
	r.start("a", fastConfig(), s)
	r.publish(0, 5)
	waitFor(t, "the first five", func() bool { return r.settled("delivered") == 5 })
	js := r.b.JetStream()
	stream, err := js.Stream(t.Context(), broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	if err := js.DeleteStream(t.Context(), cfg.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	r.publish(5, 10)
	waitFor(t, "the events of the new stream", func() bool { n, _ := s.count(); return n == 10 })
}

// small opens a rig whose broker a test can fill.
func small(t *testing.T) *rig { return openRig(t, brokertest.OpenSmall(t, t.TempDir())) }

// publishOn stores events of a size on a subject of their own.
func (r *rig) publishOn(subject string, from, to, size int) {
	r.t.Helper()
	for i := from; i < to; i++ {
		e := &event.Event{ID: fmt.Sprint(i), Source: "/s", Type: "t", Data: make([]byte, size), DataContentType: "application/octet-stream"}
		h, body := e.Encode()
		if _, err := r.b.JetStream().PublishMsg(r.t.Context(), &nats.Msg{Subject: subject, Header: h, Data: body}); err != nil {
			r.t.Fatal(err)
		}
	}
}

// serve starts a worker for a subject of its own.
func (r *rig) serve(name, subject string, cfg deliver.Config, s deliver.Sender) *deliver.Worker {
	r.t.Helper()
	if err := cfg.Validate("subscribers." + name); err != nil {
		r.t.Fatal(err)
	}
	w, err := deliver.Start(r.t.Context(), deliver.Subscriber{Name: name, Subjects: []string{subject}, Config: cfg, Sender: s}, r.parts)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(sync.OnceFunc(func() { w.Stop(time.Second) }))
	return w
}

func (r *rig) bytes(stream string) int64 {
	r.t.Helper()
	s, err := r.b.JetStream().Stream(r.t.Context(), stream)
	if err != nil {
		r.t.Fatal(err)
	}
	return int64(s.CachedInfo().State.Bytes)
}

func reject(context.Context, *event.Event, int) deliver.Attempt {
	return deliver.Attempt{Outcome: deliver.Rejected, Status: 422, Reason: "HTTP 422"}
}

// One subscriber that rejects everything fills its half of DEADLETTERS and then
// waits; what another one rejects still settles.
func TestDeadLettersHaveShares(t *testing.T) {
	r := small(t)
	const n, size = 120, 64 << 10 // 7.5 MiB, of 4.6 that it may have
	w := r.serve("greedy", "events.greedy.>", fastConfig(), newSender(reject))
	r.publishOn("events.greedy.a.b.c", 0, n, size)
	limit := r.b.DeadLetterShare()
	waitFor(t, "its share is used up", func() bool {
		return r.stored(broker.StreamOps)[broker.Ops(broker.Instance(), "subscriber.deadletters-full.greedy")] == 1
	})
	r.serve("modest", "events.modest.>", fastConfig(), newSender(reject))
	r.publishOn("events.modest.a.b.c", 0, 20, size)
	waitFor(t, "modest's dead letters", func() bool {
		return r.stored(broker.StreamDeadLetters)["gridfan.deadletters.modest.rejected"] == 20
	})
	waitFor(t, "modest is done", func() bool { return r.unsettled("modest") == 0 })
	kept := int(r.stored(broker.StreamDeadLetters)["gridfan.deadletters.greedy.rejected"])
	if used := int64(kept) * size; used > limit || used < limit/2 {
		t.Errorf("greedy has %d dead letters of %d bytes, its share is %d", kept, size, limit)
	}
	if left := r.unsettled("greedy"); left != n-kept {
		t.Errorf("%d of %d are unsettled with %d dead letters", left, n, kept)
	}
	// Those that wait for room can be shed like all others.
	w.Shed(n + 20)
	waitFor(t, "greedy holds nothing", func() bool { return r.unsettled("greedy") == 0 })
	if got := r.settled("shed"); got != n-kept {
		t.Errorf("%d shed, want %d", got, n-kept)
	}
	if got := w.GivenUp(); got != (deliver.GivenUp{Shed: uint64(n - kept)}) {
		t.Errorf("given up %+v", got)
	}
}

// One whose attempts all fail keeps a share of RETRY; when its retries come due
// they find slots, and everything is delivered in the end.
func TestRetriesHaveShares(t *testing.T) {
	r := small(t)
	const n, size = 100, 64 << 10 // 6.4 MiB, of 1.8 that may wait for a retry
	var mu sync.Mutex
	up := false
	s := newSender(func(context.Context, *event.Event, int) deliver.Attempt {
		mu.Lock()
		defer mu.Unlock()
		if up {
			return deliver.Attempt{Outcome: deliver.Delivered}
		}
		return deliver.Attempt{Outcome: deliver.Failed, Reason: "down"}
	})
	cfg := fastConfig()
	cfg.Limits.Concurrency = 2
	cfg.Breaker.Failures = 10000
	cfg.Retry.Schedule = nil
	for range 50 {
		cfg.Retry.Schedule = append(cfg.Retry.Schedule, deliver.Duration(time.Second))
	}
	r.serve("a", "events.>", cfg, s)
	r.publishOn("events.a.b.c.d", 0, n, size)
	limit := r.b.RetryShare()
	waitFor(t, "its share is used up", func() bool {
		return r.stored(broker.StreamOps)[broker.Ops(broker.Instance(), "subscriber.retries-full.a")] >= 1
	})
	// What was in the slots and in the queue then may be over it.
	if used := r.bytes(broker.StreamRetry); used < limit/2 || used > limit+6*(size+1024) {
		t.Errorf("%d bytes wait, the share is %d", used, limit)
	}
	if got := r.unsettled("a"); got < n/2 {
		t.Errorf("%d events still in the stream, want most of %d", got, n)
	}
	mu.Lock()
	up = true
	mu.Unlock()
	waitFor(t, "everything", func() bool { got, _ := s.count(); return got == n })
	waitFor(t, "all settlements", func() bool { return r.settled("delivered") == n })
}

// Surplus is given up with the breaker open, and what is in flight is not.
func TestExpireLeavesWhatIsInFlight(t *testing.T) {
	r := newRig(t)
	hang := make(chan struct{})
	started := make(chan struct{}, 500)
	s := newSender(func(_ context.Context, _ *event.Event, _ int) deliver.Attempt {
		started <- struct{}{}
		<-hang
		return deliver.Attempt{Outcome: deliver.Delivered}
	})
	cfg := fastConfig()
	cfg.Limits.Timeout = deliver.Duration(time.Minute)
	w := r.start("a", cfg, s)
	r.publish(0, 500)
	<-started
	waitFor(t, "all but those in flight and some that came after", func() bool {
		w.Expire(400)
		return w.GivenUp().Expired >= 380
	})
	close(hang)
	waitFor(t, "the others", func() bool { return r.unsettled("a") == 0 })
	expired := int(w.GivenUp().Expired)
	if got, tries := s.count(); got != 500-expired || tries != got {
		t.Errorf("%d delivered in %d attempts and %d expired, of 500", got, tries, expired)
	}
	final := map[uint64]int{}
	for _, rec := range r.records() {
		final[rec.Sequence]++
	}
	for seq, n := range final {
		if n != 1 {
			t.Errorf("event %d has %d records", seq, n)
		}
	}
	if len(final) != 500 {
		t.Errorf("%d events are recorded", len(final))
	}
}
