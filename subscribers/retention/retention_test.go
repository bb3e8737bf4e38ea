package retention_test

import (
	"context"
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
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/retention"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// rig is a broker with subscribers whose behaviour the test decides.
type rig struct {
	t      *testing.T
	broker *broker.Broker
	js     jetstream.JetStream // for publishing
	r      *registry.Registry
	fleet  *registry.Fleet
	stop   func()

	mu     sync.Mutex // guards all below
	got    map[string]map[string]int
	down   map[string]bool
	broken map[string]bool          // no worker starts for them
	hangs  map[string]chan struct{} // by event
}

func newRig(t *testing.T, b *broker.Broker) *rig {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	g := &rig{
		t: t, broker: b, got: map[string]map[string]int{},
		down: map[string]bool{}, broken: map[string]bool{}, hangs: map[string]chan struct{}{},
	}
	var err error
	if _, g.js, err = b.Connect("test"); err != nil {
		t.Fatal(err)
	}
	if g.r, err = registry.Open(t.Context(), b, log); err != nil {
		t.Fatal(err)
	}
	recorder, err := deliver.NewRecorder(t.Context(), b, log)
	if err != nil {
		t.Fatal(err)
	}
	g.fleet, err = registry.StartFleet(t.Context(), g.r, deliver.Parts{
		Broker: b, Recorder: recorder, Metrics: deliver.NewMetrics(prometheus.NewRegistry()), Log: log,
	}, g.newSender, log)
	if err != nil {
		t.Fatal(err)
	}
	g.stop = sync.OnceFunc(func() {
		g.fleet.Stop(time.Second)
		recorder.Close()
	})
	t.Cleanup(g.stop)
	return g
}

func (g *rig) newSender(d registry.Definition, _ bool) (deliver.Sender, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.broken[d.Name] {
		return nil, errors.New("broken for the test")
	}
	return &sender{g, d.Name}, nil
}

type sender struct {
	rig  *rig
	name string
}

func (s *sender) Send(ctx context.Context, e *event.Event) deliver.Attempt {
	s.rig.mu.Lock()
	hang := s.rig.hangs[s.name+" "+e.ID]
	s.rig.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return deliver.Attempt{Outcome: deliver.Aborted}
		}
	}
	s.rig.mu.Lock()
	defer s.rig.mu.Unlock()
	if s.rig.down[s.name] {
		return deliver.Attempt{Outcome: deliver.Failed, Status: 503, Reason: "HTTP 503"}
	}
	if s.rig.got[s.name] == nil {
		s.rig.got[s.name] = map[string]int{}
	}
	s.rig.got[s.name][e.ID]++
	return deliver.Attempt{Outcome: deliver.Delivered, Status: 200}
}

func (s *sender) Close() {}

// set changes how subscribers behave.
func (g *rig) set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

// of gives what a subscriber got, and how often.
func (g *rig) of(name string) map[string]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := map[string]int{}
	maps.Copy(all, g.got[name])
	return all
}

func definition(name string, subjects ...string) registry.Definition {
	d := registry.Definition{
		Name: name, Subjects: subjects,
		Deliver: registry.Deliver{Webhook: &webhook.Config{URL: "https://example.com/" + name}},
	}
	// Once down, down until the test says otherwise.
	d.Breaker.Failures, d.Breaker.OpenFor = 1, deliver.Duration(200*time.Millisecond)
	d.Limits.Concurrency = 16
	d.Retry.Schedule = []deliver.Duration{deliver.Duration(time.Hour)}
	return d
}

func (g *rig) add(d registry.Definition) {
	g.t.Helper()
	if _, err := g.r.Add(g.t.Context(), d); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) pause(name string, paused bool) {
	g.t.Helper()
	if _, err := g.r.SetPaused(g.t.Context(), name, paused); err != nil {
		g.t.Fatal(err)
	}
	// Nothing shows outside that the worker was told.
	time.Sleep(200 * time.Millisecond) // sleep: for the watcher
}

// put stores one event; it is not on the disk yet.
func (g *rig) put(subject, id string, size int) (uint64, error) {
	e := event.Event{ID: id, Source: "/test", Type: "test", Data: make([]byte, size), DataContentType: "application/octet-stream"}
	h, body := e.Encode()
	ack, err := g.js.PublishMsg(g.t.Context(), &nats.Msg{Subject: subject, Header: h, Data: body})
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// publish accepts events from..to-1 on a subject.
func (g *rig) publish(subject string, from, to, size int) {
	g.t.Helper()
	epoch := g.broker.Epoch()
	for i := from; i < to; i++ {
		seq, err := g.put(subject, fmt.Sprint(i), size)
		if err != nil {
			g.t.Fatalf("event %d was refused: %v", i, err)
		}
		if (i-from)%16 == 15 || i == to-1 {
			if err := g.broker.Durable(g.t.Context(), epoch, seq); err != nil {
				g.t.Fatal(err)
			}
		}
	}
}

// upToDate waits until a healthy subscriber has got n events, and until there is
// room for a few more: on a busy machine a test fills so small a stream quicker
// than anybody can look. If nobody made room it would wait in vain.
func (g *rig) upToDate(name string, n int) {
	g.t.Helper()
	waitFor(g.t, fmt.Sprintf("%s has %d events", name, n), func() bool { return len(g.of(name)) == n })
	waitFor(g.t, fmt.Sprintf("room after %d events", n), func() bool { return g.state().Bytes < eventsLimit/100*94 })
}

// eventsLimit is how much brokertest.OpenSmall has for EVENTS.
const eventsLimit = 64 << 20 / 100 * 60

func (g *rig) state() jetstream.StreamState {
	g.t.Helper()
	s, err := g.broker.JetStream().Stream(g.t.Context(), broker.StreamEvents)
	if err != nil {
		g.t.Fatal(err)
	}
	return s.CachedInfo().State
}

func (g *rig) backlog(name string) registry.Backlog {
	g.t.Helper()
	b, err := g.r.Backlog(g.t.Context(), name)
	if err != nil {
		g.t.Fatal(err)
	}
	return b
}

func (g *rig) held(name string) int64 {
	g.t.Helper()
	states, err := g.r.States(g.t.Context())
	if err != nil {
		g.t.Fatal(err)
	}
	for _, s := range states {
		if s.Definition.Name == name && s.Held != nil {
			return s.Held.Bytes
		}
	}
	return 0
}

// idle makes a loop that runs only when the test says so.
func (g *rig) idle(cfg retention.Config, now func() time.Time) *retention.Loop {
	return retention.NewIdle(cfg, g.broker, g.r, g.fleet, retention.NewMetrics(prometheus.NewRegistry()), now)
}

// start runs one as gridfan does.
func (g *rig) start(cfg retention.Config) *retention.Loop {
	g.t.Helper()
	if err := cfg.Validate(); err != nil {
		g.t.Fatal(err)
	}
	l := retention.Start(cfg, g.broker, g.r, g.fleet, retention.NewMetrics(prometheus.NewRegistry()), slog.New(slog.DiscardHandler))
	g.t.Cleanup(sync.OnceFunc(l.Stop))
	return l
}

// records reads the final records of all subscribers: how often each event was
// settled with which outcome, by subscriber.
func (g *rig) records() map[string]map[uint64][]deliver.Record {
	g.t.Helper()
	s, err := g.broker.JetStream().Stream(g.t.Context(), broker.StreamAttempts)
	if err != nil {
		g.t.Fatal(err)
	}
	all := map[string]map[uint64][]deliver.Record{}
	state := s.CachedInfo().State
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		m, err := s.GetMsg(g.t.Context(), seq)
		if err != nil {
			g.t.Fatal(err)
		}
		records, err := deliver.ParseRecords(m.Data)
		if err != nil {
			g.t.Fatal(err)
		}
		for _, r := range records {
			if r.Outcome == deliver.RecordRetry {
				continue
			}
			if all[r.Subscriber] == nil {
				all[r.Subscriber] = map[uint64][]deliver.Record{}
			}
			all[r.Subscriber][r.Sequence] = append(all[r.Subscriber][r.Sequence], r)
		}
	}
	return all
}

// settled wants that each event was settled at most once for a subscriber, that
// what was given up was not delivered, and the reverse, and counts by outcome.
func (g *rig) settled(name string) map[string]int {
	g.t.Helper()
	counts := map[string]int{}
	got := g.of(name)
	for seq, records := range g.records()[name] {
		if len(records) != 1 {
			g.t.Errorf("%s: event %d has %d final records: %+v", name, seq, len(records), records)
		}
		r := records[0]
		counts[r.Outcome]++
		if times := got[r.ID]; (r.Outcome == deliver.RecordDelivered) != (times == 1) {
			g.t.Errorf("%s: event %s is recorded as %s and was delivered %d times", name, r.ID, r.Outcome, times)
		}
	}
	return counts
}

// reports reads what was told on OPS, without the process' name.
func (g *rig) reports() []string {
	g.t.Helper()
	counts, err := g.broker.SubjectCounts(g.t.Context(), broker.StreamOps, ">")
	if err != nil {
		g.t.Fatal(err)
	}
	var all []string
	for subject, n := range counts {
		_, what, _ := strings.Cut(strings.TrimPrefix(subject, "gridfan.ops."), ".")
		all = append(all, fmt.Sprint(what, " ", n))
	}
	slices.Sort(all)
	return all
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// noReplay keeps nothing for its own sake.
var noReplay = retention.Config{Replay: 1, OnFull: retention.Reject}

// TestTrimWaitsForEverySubscriber goes through all the ways in which one has not
// got something.
func TestTrimWaitsForEverySubscriber(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	g := newRig(t, brokertest.New(t))
	l := g.idle(noReplay, time.Now)
	const subject = "events.fno.a.b.C"
	next := 1
	// more publishes 20 events and wants that the first one kept then is first.
	more := func() { t.Helper(); g.publish(subject, next, next+20, 10); next += 20 }
	want := func(why string, first int) {
		t.Helper()
		waitFor(t, fmt.Sprintf("%s: the stream begins at %d", why, first), func() bool {
			if err := l.Once(ctx); err != nil {
				t.Fatal(err)
			}
			return g.state().FirstSeq >= uint64(first)
		})
		for range 3 {
			if err := l.Once(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if got := g.state().FirstSeq; got != uint64(first) {
			t.Errorf("%s: the stream begins at %d, want %d", why, got, first)
		}
	}

	// Somebody's own reader has no say.
	if _, err := g.broker.JetStream().CreateConsumer(ctx, broker.StreamEvents, jetstream.ConsumerConfig{Durable: "somebodys-own", AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
		t.Fatal(err)
	}
	g.add(definition("well", "events.>"))
	g.add(definition("quiet", "events.dataverse.>"))
	more()
	want("all have got everything, and the last event stays", 20)

	hang := make(chan struct{})
	g.set(func() { g.hangs["slow 30"] = hang })
	g.add(definition("slow", "events.>"))
	more()
	want("slow hangs on event 30", 30)
	close(hang)
	want("slow goes on", 40)

	g.pause("well", true)
	more()
	want("well is paused", 41)
	g.pause("well", false)
	want("well is resumed", 60)

	parked := definition("parked", "events.fno.>")
	if err := parked.Validate(); err != nil {
		t.Fatal(err)
	}
	if err := g.r.SyncFile(ctx, []registry.Definition{parked}); err != nil {
		t.Fatal(err)
	}
	more()
	want("parked is served", 80)
	if err := g.r.SyncFile(ctx, nil); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "it is parked", func() bool { _, ok := g.fleet.Breaker("parked"); return !ok })
	more()
	want("parked is parked", 81)
	if err := g.r.SyncFile(ctx, []registry.Definition{parked}); err != nil {
		t.Fatal(err)
	}
	want("it is declared again", 100)

	// One whose worker can't start has no cursor yet.
	g.set(func() { g.broken["new"] = true })
	g.add(definition("new", "events.>"))
	more()
	want("new has begun at its start sequence", 101)
	g.set(func() { g.broken["new"] = false })
	waitFor(t, "new has its first event", func() bool { return len(g.of("new")) == 20 })
	want("new has its events", 120)

	// One that fails holds nothing: its retries are copies.
	g.set(func() { g.down["slow"] = true })
	g.publish(subject, next, next+1, 10)
	waitFor(t, "a retry", func() bool { return g.backlog("slow").Retry >= 1 })
	want("the retry is a copy", 121)
}

// TestTrimKeepsReplayAndWhatIsNotOnDisk has no subscriber at all.
func TestTrimKeepsReplayAndWhatIsNotOnDisk(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	g := newRig(t, brokertest.New(t))
	now := time.Now()
	l := g.idle(retention.Config{Replay: deliver.Duration(time.Hour), OnFull: retention.Reject}, func() time.Time { return now })
	run := func(want uint64) {
		t.Helper()
		if err := l.Once(ctx); err != nil {
			t.Fatal(err)
		}
		if got := g.state().FirstSeq; got != want {
			t.Errorf("the stream begins at %d, want %d", got, want)
		}
	}
	g.publish("events.a.b.c.d", 1, 11, 10)
	// The clock that counts is the broker's.
	time.Sleep(20 * time.Millisecond) // sleep: for a moment between the events
	between := time.Now()
	time.Sleep(20 * time.Millisecond) // sleep: for a moment between the events
	last := uint64(0)
	for i := range 10 {
		var err error
		if last, err = g.put("events.a.b.c.d", fmt.Sprint("not-on-disk-", i), 10); err != nil {
			t.Fatal(err)
		}
	}
	now = between.Add(time.Minute)
	run(1) // nothing is older than an hour
	now = time.Now().Add(2 * time.Hour)
	run(10) // all is, and only the first ten are known to be on the disk
	if err := g.broker.Durable(ctx, g.broker.Epoch(), last); err != nil {
		t.Fatal(err)
	}
	run(20)

	// Somebody has deleted events in the middle, and the boundary is among them.
	g.publish("events.a.b.c.d", 21, 31, 10)
	time.Sleep(20 * time.Millisecond) // sleep: for a moment between the events
	between = time.Now()
	g.publish("events.a.b.c.d", 31, 41, 10)
	s, err := g.broker.JetStream().Stream(ctx, broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(25); seq < 35; seq++ {
		if err := s.DeleteMsg(ctx, seq); err != nil {
			t.Fatal(err)
		}
	}
	now = between.Add(time.Hour)
	run(35)
}

// TestBacklogBytes keeps three subscribers that take nothing within their limit:
// one is down, one is paused, one is no longer declared.
func TestBacklogBytes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	g := newRig(t, brokertest.OpenSmall(t, t.TempDir()))
	dead := []string{"open", "paused", "parked"}
	var declared []registry.Definition
	for _, name := range dead {
		d := definition(name, "events.>")
		d.Limits.Backlog.Bytes = 2 << 20
		d.Breaker.OpenFor = deliver.Duration(time.Hour)
		d.Breaker.MaxOpenFor = d.Breaker.OpenFor
		if err := d.Validate(); err != nil {
			t.Fatal(err)
		}
		declared = append(declared, d)
	}
	g.set(func() { g.down["open"] = true })
	if err := g.r.SyncFile(ctx, declared); err != nil {
		t.Fatal(err)
	}
	if err := g.r.SyncFile(ctx, declared[:2]); err != nil {
		t.Fatal(err)
	}
	g.pause("paused", true)
	g.add(definition("well", "events.>"))
	l := g.start(retention.Config{})

	// 4 MiB, twice the limit.
	const n = 512
	g.publish("events.fno.a.b.C", 0, n, 8<<10)
	for _, name := range dead {
		waitFor(t, name+" is within its limit", func() bool { h := g.held(name); return h > 1<<20 && h <= 2<<20 })
	}
	waitFor(t, "well has everything", func() bool { return len(g.of("well")) == n && g.backlog("well").Pending == 0 })
	l.Stop()
	waitFor(t, "the reports", func() bool {
		got := g.reports()
		return slices.Contains(got, "subscriber.backlog-expired.open 2") && slices.Contains(got, "subscriber.backlog-expired.paused 2") &&
			slices.Contains(got, "subscriber.backlog-expired.parked 2")
	})
	for _, name := range dead {
		counts, b := g.settled(name), g.backlog(name)
		expired := counts[deliver.RecordDeadLetter]
		if expired < n*4/10 || expired > n*7/10 || b.DeadLetters != expired {
			t.Errorf("%s: %d of %d expired, %d dead letters; want about half, each once", name, expired, n, b.DeadLetters)
		}
		if all := expired + b.Pending + b.Retry; all != n || len(g.of(name)) != 0 {
			t.Errorf("%s: %+v with %d expired makes %d, want %d", name, b, expired, all, n)
		}
	}

	// Back again, each gets what is left and nothing else.
	g.set(func() { g.down["open"] = false })
	g.pause("paused", false)
	if err := g.r.SyncFile(ctx, declared); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"paused", "parked"} {
		waitFor(t, name+" has the rest", func() bool { return g.backlog(name).Pending == 0 })
		counts := g.settled(name)
		if counts[deliver.RecordDelivered]+counts[deliver.RecordDeadLetter] != n || len(g.of(name)) != counts[deliver.RecordDelivered] {
			t.Errorf("%s: %v", name, counts)
		}
	}
	if got := g.settled("well"); got[deliver.RecordDelivered] != n || len(got) != 1 {
		t.Errorf("well: %v", got)
	}
}

func TestBacklogAge(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	g := newRig(t, brokertest.New(t))
	d := definition("paused", "events.>")
	d.Limits.Backlog.Age = deliver.Duration(time.Hour)
	g.add(d)
	g.add(definition("unlimited", "events.>"))
	g.pause("paused", true)
	g.pause("unlimited", true)
	g.publish("events.a.b.c.d", 0, 40, 10)
	time.Sleep(20 * time.Millisecond) // sleep: for a moment between the events
	now := time.Now().Add(time.Hour)
	time.Sleep(20 * time.Millisecond) // sleep: for a moment between the events
	g.publish("events.a.b.c.d", 40, 50, 10)
	l := g.idle(noReplay, func() time.Time { return now })
	waitFor(t, "the old ones are expired", func() bool {
		if err := l.Once(ctx); err != nil {
			t.Fatal(err)
		}
		return g.backlog("paused") == registry.Backlog{Pending: 10, DeadLetters: 40}
	})
	if err := l.Once(ctx); err != nil {
		t.Fatal(err)
	}
	counts, err := g.broker.SubjectCounts(ctx, broker.StreamDeadLetters, ">")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]uint64{"gridfan.deadletters.paused.backlog": 40}, counts); d != "" {
		t.Errorf("dead letters (-want +got):\n%s", d)
	}
	if b := g.backlog("unlimited"); b != (registry.Backlog{Pending: 50}) {
		t.Errorf("unlimited: %+v", b)
	}
	g.pause("paused", false)
	waitFor(t, "the young ones", func() bool { return g.backlog("paused").Pending == 0 })
	if got := g.settled("paused"); got[deliver.RecordDelivered] != 10 || got[deliver.RecordDeadLetter] != 40 {
		t.Errorf("%v", got)
	}
}

// TestDeadSubscriberFillsNothing publishes more than EVENTS can hold past a
// subscriber that takes nothing: no event is refused.
func TestDeadSubscriberFillsNothing(t *testing.T) {
	t.Parallel()
	g := newRig(t, brokertest.OpenSmall(t, t.TempDir()))
	d := definition("dead", "events.fno.dead.>")
	d.Limits.Backlog.Bytes = 2 << 20
	g.add(d)
	g.pause("dead", true)
	g.add(definition("well", "events.>"))
	g.start(retention.Config{})
	const rounds, each, size = 44, 16, 64 << 10 // 44 MiB
	for i := range rounds {
		from := i * each
		g.publish("events.fno.dead.a.b", from, from+1, size)
		g.publish("events.fno.well.a.b", from+1, from+each, size)
		g.upToDate("well", from+each)
	}
	waitFor(t, "well has everything", func() bool { return len(g.of("well")) == rounds*each })
	waitFor(t, "dead is within its limit", func() bool { return g.held("dead") <= 2<<20 })
	waitFor(t, "the settlements are counted", func() bool {
		b := g.backlog("dead")
		return b.Pending+g.settled("dead")[deliver.RecordDeadLetter] == rounds
	})
	if s := g.state(); s.FirstSeq == 1 {
		t.Errorf("%+v", s)
	}
}

// TestShed fills EVENTS with what a subscriber does not take, and restarts in the
// middle of it.
func TestShed(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dir := t.TempDir()
	b := brokertest.OpenSmall(t, dir)
	g := newRig(t, b)
	g.add(definition("dead", "events.>"))
	g.pause("dead", true)
	g.add(definition("well", "events.>"))
	cfg := retention.Config{OnFull: retention.Shed}
	l := g.start(cfg)
	const n, round, size = 736, 16, 64 << 10 // 46 MiB
	shed := func() int { return int(g.fleet.GivenUp()["dead"].Shed) }
	i := 0
	for ; shed() == 0; i += round {
		if i >= n {
			t.Fatal("nothing was shed")
		}
		g.publish("events.fno.a.b.C", i, i+round, size)
		g.upToDate("well", i+round)
	}
	waitFor(t, "well has its events", func() bool { return len(g.of("well")) == i && g.backlog("well").Pending == 0 })
	b.Close() // as good as a kill
	l.Stop()
	go g.stop() // it waits in vain for what can't be settled any more

	got := g.of("well")
	b = brokertest.OpenSmall(t, dir)
	g = newRig(t, b)
	g.set(func() { g.got["well"] = got })
	l = g.start(cfg)
	g.upToDate("well", i)
	for ; i < n; i += round {
		g.publish("events.fno.a.b.C", i, i+round, size)
		g.upToDate("well", i+round)
	}
	waitFor(t, "well has everything", func() bool { return len(g.of("well")) == n && g.backlog("well").Pending == 0 })
	waitFor(t, "there is room", func() bool { return g.state().Bytes < eventsLimit/100*90 })
	waitFor(t, "all settlements are counted", func() bool {
		c := g.settled("dead")
		return c[deliver.RecordShed]+c[deliver.RecordDeadLetter]+g.backlog("dead").Pending == n
	})
	l.Stop()
	waitFor(t, "the reports", func() bool {
		return slices.ContainsFunc(g.reports(), func(r string) bool { return strings.HasPrefix(r, "storage.shed.EVENTS ") })
	})

	// Nothing was deleted that is not settled, and the list says what was shed.
	dead := g.records()["dead"]
	for seq := uint64(1); seq < g.state().FirstSeq; seq++ {
		if len(dead[seq]) != 1 {
			t.Errorf("event %d is gone and has %d records", seq, len(dead[seq]))
		}
	}
	h, err := deliver.ReadHistory(ctx, b, "dead", deliver.RecordShed, n)
	if err != nil || !h.Complete {
		t.Fatalf("%v, complete %v", err, h.Complete)
	}
	want := 0
	for _, r := range dead {
		if r[0].Outcome == deliver.RecordShed {
			want++
		}
	}
	if len(h.Records) != want || want == 0 {
		t.Errorf("%d shed events are listed, %d are recorded", len(h.Records), want)
	}
	g.pause("dead", false)
	waitFor(t, "dead has the rest", func() bool { return g.backlog("dead").Pending == 0 })
	c := g.settled("dead")
	if c[deliver.RecordShed] != want || c[deliver.RecordShed]+c[deliver.RecordDeadLetter]+c[deliver.RecordDelivered] != n {
		t.Errorf("%v of %d", c, n)
	}
	if c := g.settled("well"); c[deliver.RecordDelivered] != n || len(c) != 1 {
		t.Errorf("well: %v", c)
	}
}

// TestRejectShedsNothing fills EVENTS to the end.
func TestRejectShedsNothing(t *testing.T) {
	t.Parallel()
	g := newRig(t, brokertest.OpenSmall(t, t.TempDir()))
	g.add(definition("dead", "events.>"))
	g.pause("dead", true)
	g.start(retention.Config{})
	stored := 0
	for ; stored < 2048; stored++ {
		if _, err := g.put("events.a.b.c.d", fmt.Sprint(stored), 64<<10); err != nil {
			if !broker.IsFull(err) {
				t.Fatal(err)
			}
			break
		}
	}
	waitFor(t, "its dead letters have filled their share", func() bool {
		return slices.Contains(g.reports(), "subscriber.deadletters-full.dead 1")
	})
	c := g.settled("dead")
	if c[deliver.RecordShed] != 0 || c[deliver.RecordDeadLetter] == 0 {
		t.Errorf("%v", c)
	}
	waitFor(t, "nothing is lost", func() bool {
		return g.backlog("dead").Pending+g.settled("dead")[deliver.RecordDeadLetter] == stored
	})
}
