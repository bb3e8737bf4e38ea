package books_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/books"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// rig is everything on the subscribers' side of a broker.
type rig struct {
	t        testing.TB
	b        *broker.Broker
	r        *registry.Registry
	recorder *deliver.Recorder
	fleet    *registry.Fleet // nil while stopped
	books    *books.Books    // nil while closed
	metrics  *prometheus.Registry

	believe time.Duration

	mu      sync.Mutex // guards answers
	answers map[string]func(e *event.Event) deliver.Attempt
}

func newRig(t testing.TB) *rig {
	t.Helper()
	g := &rig{t: t, b: brokertest.New(t), answers: map[string]func(*event.Event) deliver.Attempt{}}
	g.start()
	t.Cleanup(g.stop)
	return g
}

// start is what a process does on the broker.
func (g *rig) start() {
	g.t.Helper()
	log := slog.New(slog.DiscardHandler)
	ctx := context.Background()
	g.metrics = prometheus.NewRegistry()
	var err error
	if g.r, err = registry.Open(ctx, g.b, log); err != nil {
		g.t.Fatal(err)
	}
	if g.recorder, err = deliver.NewRecorder(ctx, g.b, log); err != nil {
		g.t.Fatal(err)
	}
	if err := g.r.Sweep(ctx); err != nil {
		g.t.Fatal(err)
	}
	g.fleet, err = registry.StartFleet(ctx, g.r, deliver.Parts{
		Broker: g.b, Recorder: g.recorder, Metrics: deliver.NewMetrics(g.metrics), Log: log,
	}, func(d registry.Definition, _ bool) (deliver.Sender, error) { return &sender{g, d.Name}, nil }, log)
	if err != nil {
		g.t.Fatal(err)
	}
	g.open()
}

func (g *rig) open() {
	g.t.Helper()
	var err error
	g.books, err = books.Open(context.Background(), books.Parts{
		Broker: g.b, Registry: g.r, Log: slog.New(slog.DiscardHandler), Breaker: g.fleet.Breaker, Every: 20 * time.Millisecond,
	}.Believe(g.believe))
	if err != nil {
		g.t.Fatal(err)
	}
}

// stop can be called again.
func (g *rig) stop() {
	g.close()
	if g.fleet != nil {
		g.fleet.Stop(time.Second)
		g.recorder.Close()
		g.fleet = nil
	}
}

func (g *rig) close() {
	g.t.Helper()
	if g.books != nil {
		g.books.Close(context.Background())
		g.books = nil
	}
}

// sender answers what the test says.
type sender struct {
	g    *rig
	name string
}

func (s *sender) Send(_ context.Context, e *event.Event) deliver.Attempt {
	s.g.mu.Lock()
	answer := s.g.answers[s.name]
	s.g.mu.Unlock()
	if answer == nil {
		return deliver.Attempt{Outcome: deliver.Delivered, Status: 200}
	}
	return answer(e)
}

func (s *sender) Close() {}

func (g *rig) answer(name string, with func(*event.Event) deliver.Attempt) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answers[name] = with
}

func down(*event.Event) deliver.Attempt {
	return deliver.Attempt{Outcome: deliver.Failed, Status: 503, Fault: deliver.FaultServer, Reason: "HTTP 503"}
}

func refuses(*event.Event) deliver.Attempt {
	return deliver.Attempt{Outcome: deliver.Rejected, Status: 422, Fault: deliver.FaultRefused, Reason: "HTTP 422"}
}

func definition(name string, subjects ...string) registry.Definition {
	ms := func(n int) deliver.Duration { return deliver.Duration(time.Duration(n) * time.Millisecond) }
	d := registry.Definition{
		Name: name, Subjects: subjects,
		Deliver: registry.Deliver{Webhook: &webhook.Config{URL: "https://example.com/" + name}},
	}
	d.Limits = deliver.Limits{Concurrency: 4, Timeout: ms(2000)}
	d.Retry = deliver.Retry{Schedule: []deliver.Duration{ms(20), ms(40), ms(80)}}
	d.Breaker = deliver.Breaker{Failures: 3, OpenFor: ms(20), MaxOpenFor: ms(40)}
	return d
}

func (g *rig) add(d registry.Definition) registry.Entry {
	g.t.Helper()
	e, err := g.r.Add(g.t.Context(), d)
	if err != nil {
		g.t.Fatal(err)
	}
	return e
}

func (g *rig) delete(name string) {
	g.t.Helper()
	if _, err := g.r.Delete(g.t.Context(), name, true); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) pause(name string, paused bool) {
	g.t.Helper()
	if _, err := g.r.SetPaused(g.t.Context(), name, paused); err != nil {
		g.t.Fatal(err)
	}
}

// publish stores events as any NATS client can.
func (g *rig) publish(subject string, n int) { g.t.Helper(); g.put(subject, n, nil) }

// route stores events as a router does, whose source is the subject's.
func (g *rig) route(subject string, n int) {
	g.t.Helper()
	g.put(subject, n, nats.Header{"Gridfan-Digest": {"x"}, "ce-gridfansource": {strings.Split(subject, ".")[2]}})
}

func (g *rig) put(subject string, n int, more nats.Header) {
	g.t.Helper()
	for range n {
		e := event.Event{ID: fmt.Sprint(time.Now().UnixNano()), Source: "/test", Type: "test"}
		h, body := e.Encode()
		maps.Copy(h, more)
		if _, err := g.b.JetStream().PublishMsg(g.t.Context(), &nats.Msg{Subject: subject, Header: h, Data: body}); err != nil {
			g.t.Fatal(err)
		}
	}
}

func (g *rig) read() *books.Reading {
	g.t.Helper()
	r, err := g.books.Read(g.t.Context())
	if err != nil {
		g.t.Fatal(err)
	}
	return r
}

// tell saves the counts of a router that runs; final: it has ended.
func (g *rig) tell(run string, final bool, sources map[string]broker.SourceTally) {
	g.t.Helper()
	s, err := g.b.JetStream().Stream(g.t.Context(), broker.StreamEvents)
	if err != nil {
		g.t.Fatal(err)
	}
	kv, err := g.b.JetStream().KeyValue(g.t.Context(), broker.BucketBooks)
	if err != nil {
		g.t.Fatal(err)
	}
	value, err := json.Marshal(broker.Tally{
		Instance: "one", Started: time.Now(), Saved: time.Now(), Final: final, Events: s.CachedInfo().Created, Sources: sources,
	})
	if err != nil {
		g.t.Fatal(err)
	}
	if _, err := kv.Put(g.t.Context(), broker.TallyPrefix+run, value); err != nil {
		g.t.Fatal(err)
	}
}

// subscriber finds a live one in a reading.
func subscriber(t testing.TB, r *books.Reading, name string) books.Subscriber {
	t.Helper()
	for _, s := range r.Subscribers {
		if s.Name == name && s.State != books.StateDeleted {
			return s
		}
	}
	t.Fatalf("no %s in %+v", name, r.Subscribers)
	return books.Subscriber{}
}

func source(t testing.TB, r *books.Reading, name string) books.Source {
	t.Helper()
	for _, s := range r.Sources {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no %s in %+v", name, r.Sources)
	return books.Source{}
}

// rest reads until nothing of a subscriber is under way.
func (g *rig) rest(name string) (*books.Reading, books.Subscriber) {
	g.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		r := g.read()
		s := subscriber(g.t, r, name)
		if r.Settled && s.Pending+s.InRetry == 0 {
			return r, s
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("%s does not come to rest: %+v", name, s)
		}
	}
}

var ignored = cmpopts.IgnoreFields(books.Subscriber{}, "Created", "Verdict")

func TestEveryOutcome(t *testing.T) {
	g := newRig(t)
	g.add(definition("all", "events.>"))
	g.add(definition("some", "events.fno.prod.usmf.>", "events.fno.*.usmf.A"))
	g.add(definition("picky", "events.fno.>"))
	g.add(definition("down", "events.fno.>"))
	g.answer("picky", refuses)
	d := definition("flaky", "events.fno.>")
	d.Breaker.Failures = 1000
	g.add(d)
	var mu sync.Mutex
	tries := map[string]int{}
	g.answer("flaky", func(e *event.Event) deliver.Attempt {
		mu.Lock()
		defer mu.Unlock()
		if tries[e.ID]++; tries[e.ID] <= 3 {
			return down(e)
		}
		return deliver.Attempt{Outcome: deliver.Delivered}
	})
	g.pause("down", true)
	g.route("events.fno.prod.usmf.A", 10)
	g.route("events.fno.prod.brmf.A", 5)
	g.route("events.fno.test.usmf.A", 3)
	g.publish("events.fno.test.usmf.B", 2)
	g.publish("events.cloudevents.shop.orders.X", 7)
	counts := broker.SourceTally{Received: 21, Published: 15, Duplicate: 4, Control: 2, Refused: 9}
	g.tell("r1", true, map[string]broker.SourceTally{"prod": counts, "test": {Received: 3, Published: 3}})
	g.rest("picky")
	r, _ := g.rest("flaky")
	want := map[string]books.Subscriber{
		"all":   {Counts: books.Counts{Matched: 27, Delivered: 27, Attempts: 27}},
		"some":  {Counts: books.Counts{Matched: 13, Delivered: 13, Attempts: 13}},
		"picky": {Counts: books.Counts{Matched: 20, DeadLettered: 20, Attempts: 20}, DeadLetters: 20},
		"down":  {Counts: books.Counts{Matched: 20}, Parked: 20, State: books.StatePaused},
		"flaky": {Counts: books.Counts{Matched: 20, Delivered: 20, Retries: 20, Attempts: 80}},
	}
	for name, w := range want {
		w.Name = name
		if w.State == "" {
			w.State = books.StateActive
		}
		s := subscriber(t, r, name)
		if d := cmp.Diff(w, s, ignored); d != "" || s.Balance != 0 || !s.Settled || len(s.Problems) > 0 {
			t.Errorf("%s: %+v (-want +got):\n%s", name, s.Verdict, d)
		}
	}
	if s := source(t, r, "prod"); s.Received != 21 || s.Duplicate != 4 || s.Control != 2 || s.Refused != 9 || s.Balance != 0 || !r.Balanced || !r.Settled {
		t.Errorf("balanced %v, settled %v: %+v", r.Balanced, r.Settled, s)
	}
}

// TestRestart closes and opens the books at odd moments: the sums are those of
// the streams all the same.
func TestRestart(t *testing.T) {
	g := newRig(t)
	g.add(definition("all", "events.>"))
	for range 5 {
		g.publish("events.fno.prod.usmf.A", 20)
		g.close()
		g.publish("events.fno.prod.usmf.A", 20)
		g.open()
	}
	_, s := g.rest("all")
	if s.Matched != 200 || s.Delivered != 200 || s.Balance != 0 {
		t.Errorf("%+v", s)
	}
	// Another replica comes to the same, and neither spoils what the other keeps.
	other, err := books.Open(t.Context(), books.Parts{Broker: g.b, Registry: g.r, Log: slog.New(slog.DiscardHandler), Every: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	g.publish("events.fno.prod.usmf.A", 20)
	r, _ := g.rest("all")
	theirs, err := other.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(r.Subscribers, theirs.Subscribers, cmpopts.IgnoreUnexported(books.Verdict{})); d != "" {
		t.Errorf("two replicas (-one +other):\n%s", d)
	}
	other.Close(t.Context())
	g.close()
	g.open()
	if _, s := g.rest("all"); s.Matched != 220 || s.Balance != 0 {
		t.Errorf("%+v", s)
	}
}

// TestStartInThePast adds subscribers whose first event the books have passed.
func TestStartInThePast(t *testing.T) {
	g := newRig(t)
	g.publish("events.fno.prod.usmf.A", 30)
	g.publish("events.fno.prod.usmf.B", 30)
	if err := g.books.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := definition("past", "events.*.*.usmf.A")
	d.Start = registry.Beginning
	g.add(d)
	g.publish("events.fno.prod.usmf.A", 3)
	if _, s := g.rest("past"); s.Matched != 33 || s.Delivered != 33 || s.Balance != 0 {
		t.Errorf("%+v", s)
	}
	// Added and gone on at once: the fold sees some events before it knows.
	for i := range 10 {
		name := fmt.Sprintf("new-%d", i)
		g.add(definition(name, "events.fno.>"))
		g.publish("events.fno.prod.usmf.A", 2)
		defer func() {
			if _, s := g.rest(name); s.Matched != int64(2*(10-i)) || s.Balance != 0 {
				t.Errorf("%s: %+v", name, s)
			}
		}()
	}
}

func TestDeleteAndAddAgain(t *testing.T) {
	g := newRig(t)
	d := definition("one", "events.>")
	g.add(d)
	g.publish("events.fno.prod.usmf.A", 10)
	g.rest("one")
	g.delete("one")
	g.publish("events.fno.prod.usmf.A", 10)
	g.add(d)
	g.publish("events.fno.prod.usmf.A", 4)
	r, s := g.rest("one")
	if s.Matched != 4 || s.Delivered != 4 || s.Balance != 0 {
		t.Errorf("%+v", s)
	}
	old := r.Subscribers[len(r.Subscribers)-1]
	if old.State != books.StateDeleted || old.Delivered != 10 || len(old.Problems) > 0 {
		t.Errorf("the one before: %+v", old)
	}
}

// TestDifferences takes things away behind gridfan's back.
func TestDifferences(t *testing.T) {
	g := newRig(t)
	g.close()
	g.believe = 200 * time.Millisecond
	g.open()
	js := g.b.JetStream()
	purge := func(stream, subject string) {
		t.Helper()
		s, err := js.Stream(t.Context(), stream)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Purge(t.Context(), jetstream.WithPurgeSubject(subject)); err != nil {
			t.Fatal(err)
		}
	}
	g.add(definition("picky", "events.fno.a.>"))
	g.answer("picky", refuses)
	g.add(definition("paused", "events.fno.b.>"))
	g.pause("paused", true)
	g.publish("events.fno.a.x.Y", 5)
	g.publish("events.fno.b.x.Y", 6)
	if r, _ := g.rest("picky"); !r.Balanced {
		t.Fatalf("%+v", r)
	}
	purge(broker.StreamDeadLetters, broker.DeadLetterAll("picky"))
	purge(broker.StreamEvents, "events.fno.b.>")
	r := g.read()
	want := map[string]string{
		"picky":  "5 of its dead letters were removed by other means than gridfan",
		"paused": "6 events matched its subjects and are neither settled nor waiting",
	}
	for name, words := range want {
		if s := subscriber(t, r, name); len(s.Problems) != 1 || !strings.HasPrefix(s.Problems[0], words) || !s.Settled {
			t.Errorf("%s: %+v", name, s.Verdict)
		}
	}
	if r.Balanced || !r.Settled {
		t.Errorf("balanced %v, settled %v", r.Balanced, r.Settled)
	}

	// Somebody says that this was meant; then it is carried on, and only what
	// comes after counts.
	for name := range want {
		if n, err := g.books.Accept(t.Context(), name); err != nil || n == 0 {
			t.Errorf("accept %s: %d, %v", name, n, err)
		}
	}
	g.publish("events.fno.a.x.Y", 2)
	r, s := g.rest("picky")
	if !r.Balanced || s.DeadLetters != 2 || s.Balance != 0 || s.Carried != 5 || len(s.Notes) != 1 {
		t.Errorf("balanced %v: %+v", r.Balanced, s)
	}
	purge(broker.StreamDeadLetters, broker.DeadLetterAll("picky"))
	if s := subscriber(t, g.read(), "picky"); len(s.Problems) != 1 || !strings.HasPrefix(s.Problems[0], "2 of its dead letters") {
		t.Errorf("%+v", s.Verdict)
	}
	if _, err := g.books.Accept(t.Context(), "nobody"); err == nil {
		t.Error("accepted for nobody")
	}
}

// TestKilledRouter: what a process stored and did not count is named.
func TestKilledRouter(t *testing.T) {
	g := newRig(t)
	g.close()
	g.believe = 200 * time.Millisecond
	g.open()
	g.route("events.fno.prod.x.Y", 17)
	g.tell("killed", false, map[string]broker.SourceTally{"prod": {Received: 10, Published: 10}})
	time.Sleep(time.Millisecond) // sleep: the next one starts later
	g.tell("next", false, nil)
	r := g.read()
	s := source(t, r, "prod")
	if !r.Balanced || len(s.Notes) != 1 || !strings.Contains(s.Notes[0], "7 events were stored by a process that was killed before it saved its counts") {
		t.Errorf("balanced %v: %+v", r.Balanced, s)
	}
	// Counted and not there is another matter.
	g.tell("liar", true, map[string]broker.SourceTally{"prod": {Received: 8, Published: 8}})
	r = g.read()
	if s = source(t, r, "prod"); r.Balanced || len(s.Problems) != 1 || !strings.HasPrefix(s.Problems[0], "1 event were counted") {
		t.Errorf("balanced %v: %+v", r.Balanced, s)
	}
}

// TestHeldBack counts what waits for those that are paused, by what they wanted
// when it came.
func TestHeldBack(t *testing.T) {
	g := newRig(t)
	g.close()
	g.believe = 200 * time.Millisecond
	g.open()
	g.add(definition("changed", "events.fno.>"))
	g.add(definition("overlap", "events.fno.>", "events.*.*.usmf.A"))
	for _, name := range []string{"changed", "overlap"} {
		g.pause(name, true)
		waitFor(t, "the pause is seen", func() bool { return subscriber(t, g.read(), name).State == books.StatePaused })
		waitFor(t, "nobody asks for events", func() bool {
			c, err := g.b.JetStream().Consumer(t.Context(), broker.StreamEvents, name)
			return err == nil && c.CachedInfo().NumWaiting == 0
		})
	}
	g.publish("events.fno.prod.usmf.A", 5)
	if _, _, err := g.r.Replace(t.Context(), definition("changed", "events.cloudevents.>"), 0); err != nil {
		t.Fatal(err)
	}
	g.publish("events.fno.prod.usmf.A", 4)
	g.publish("events.cloudevents.shop.orders.X", 3)
	r := g.read()
	if s := subscriber(t, r, "changed"); !r.Balanced || s.Matched != 8 || s.Parked != 8 || s.Balance != 0 || len(s.Problems)+len(s.Notes) > 0 {
		t.Errorf("balanced %v: %+v", r.Balanced, s)
	}
	// The broker counts those twice; that is no reason for alarm.
	if s := subscriber(t, r, "overlap"); s.Matched != 9 || s.Balance != 0 || len(s.Problems) > 0 ||
		s.Parked > 9 && (len(s.Notes) != 1 || !strings.HasPrefix(s.Notes[0], fmt.Sprintf("what waits is counted too high, by %d", s.Parked-9))) {
		t.Errorf("%+v", s)
	}
}

// TestLost loses records that were not counted yet: the books say so, and go on
// from there.
func TestLost(t *testing.T) {
	g := newRig(t)
	g.add(definition("one", "events.>"))
	g.publish("events.fno.a.x.Y", 5)
	g.rest("one")
	g.close()
	g.publish("events.fno.a.x.Y", 4)
	waitFor(t, "delivery", func() bool {
		b, err := g.r.Backlog(t.Context(), "one")
		return err == nil && b.Empty()
	})
	s, err := g.b.JetStream().Stream(t.Context(), broker.StreamAttempts)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.believe = 200 * time.Millisecond
	g.open()
	var r *books.Reading
	waitFor(t, "the difference is carried", func() bool {
		r = g.read()
		return subscriber(t, r, "one").CarriedAt != nil
	})
	one := subscriber(t, r, "one")
	if len(r.Losses) != 1 || r.Losses[0].Stream != broker.StreamAttempts || one.Incomplete == nil || one.Carried != 4 || one.Balance != 0 || !r.Balanced ||
		len(one.Notes) != 1 || !strings.Contains(one.Notes[0], "a difference of 4 is carried since") {
		t.Errorf("%+v, lost %+v", one, r.Losses)
	}
	g.publish("events.fno.a.x.Y", 3)
	if _, s := g.rest("one"); s.Matched != 12 || s.Delivered != 8 || s.Balance != 0 {
		t.Errorf("%+v", s)
	}
}

// TestStreamMadeAnew begins again with the streams.
func TestStreamMadeAnew(t *testing.T) {
	g := newRig(t)
	g.believe = 200 * time.Millisecond
	g.add(definition("one", "events.>"))
	g.publish("events.fno.a.x.Y", 5)
	r, _ := g.rest("one")
	g.stop()
	js := g.b.JetStream()
	s, err := js.Stream(t.Context(), broker.StreamAttempts)
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteStream(t.Context(), broker.StreamAttempts); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), s.CachedInfo().Config); err != nil {
		t.Fatal(err)
	}
	g.start()
	g.publish("events.fno.a.x.Y", 2)
	var again *books.Reading
	waitFor(t, "the difference is carried", func() bool {
		again = g.read()
		return subscriber(t, again, "one").CarriedAt != nil
	})
	if one := subscriber(t, again, "one"); !again.Since.After(r.Since) || one.Matched != 7 || one.Delivered != 2 || one.Carried != 5 || one.Balance != 0 {
		t.Errorf("since %v, before %v: %+v", again.Since, r.Since, one)
	}
}

// TestTallies adds up what many runs of routers have counted, and leaves no key
// of those that are gone.
func TestTallies(t *testing.T) {
	g := newRig(t)
	g.route("events.fno.prod.x.Y", 30)
	for i := range 30 {
		g.tell(fmt.Sprint("run-", i), true, map[string]broker.SourceTally{"prod": {Received: 2, Published: 1, Duplicate: 1}})
	}
	kv, err := g.b.JetStream().KeyValue(t.Context(), broker.BucketBooks)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the runs are gathered", func() bool {
		keys, err := kv.Keys(t.Context())
		if err != nil && !errors.Is(err, jetstream.ErrNoKeysFound) {
			t.Fatal(err)
		}
		if s := source(t, g.read(), "prod"); s.Received != 60 || s.Duplicate != 30 || s.Balance != 0 {
			t.Fatalf("%+v", s)
		}
		return !slices.ContainsFunc(keys, func(k string) bool { return strings.HasPrefix(k, broker.TallyPrefix) })
	})
}
