package registry_test

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
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// rig is a registry with a fleet that serves it.
type rig struct {
	t      *testing.T
	broker *broker.Broker
	r      *registry.Registry
	fleet  *registry.Fleet
	stop   func() // stops the fleet; it can be called again

	log  *slog.Logger
	dir  string     // of the store, to keep cursors in memory as a process with a broker of its own does; empty: in files
	mu   sync.Mutex // guards all below
	got  map[string][]string
	at   map[string]string // the URL that an event was sent to, by subscriber and id
	down bool              // the subscribers answer 503
	wait time.Duration     // that they then ask for
}

func newRig(t *testing.T) *rig {
	t.Helper()
	return openRig(t, brokertest.New(t))
}

func openRig(t *testing.T, b *broker.Broker) *rig {
	t.Helper()
	return openRigWith(t, b, &rig{log: slog.New(slog.DiscardHandler), got: map[string][]string{}, at: map[string]string{}, wait: time.Minute})
}

// openRigWith makes g a rig on b.
func openRigWith(t *testing.T, b *broker.Broker, g *rig) *rig {
	t.Helper()
	log := g.log
	r, err := registry.Open(t.Context(), b, log)
	if err != nil {
		t.Fatal(err)
	}
	g.t, g.broker, g.r = t, b, r
	recorder, err := deliver.NewRecorder(t.Context(), b, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	var positions *deliver.Positions
	if g.dir != "" {
		if positions, err = deliver.OpenPositions(t.Context(), g.dir, b, recorder, log); err != nil {
			t.Fatal(err)
		}
	}
	g.fleet, err = registry.StartFleet(t.Context(), r, deliver.Parts{
		Broker: b, Recorder: recorder, Positions: positions, Metrics: deliver.NewMetrics(prometheus.NewRegistry()), Log: log,
	}, func(d registry.Definition, _ bool) (deliver.Sender, error) {
		return &sender{g, d.Name, d.Deliver.Webhook.URL}, nil
	}, log)
	if err != nil {
		t.Fatal(err)
	}
	g.stop = sync.OnceFunc(func() {
		g.fleet.Stop(5 * time.Second)
		if positions != nil {
			positions.Close()
		}
		recorder.Close()
	})
	t.Cleanup(g.stop)
	return g
}

// sender keeps what a subscriber gets.
type sender struct {
	rig  *rig
	name string
	url  string
}

func (s *sender) Send(_ context.Context, e *event.Event) deliver.Attempt {
	s.rig.mu.Lock()
	defer s.rig.mu.Unlock()
	if s.rig.down {
		return deliver.Attempt{Outcome: deliver.Failed, Status: 503, Reason: "HTTP 503", RetryAfter: s.rig.wait}
	}
	s.rig.got[s.name] = append(s.rig.got[s.name], e.ID)
	if s.rig.at != nil {
		s.rig.at[s.name+" "+e.ID] = s.url
	}
	return deliver.Attempt{Outcome: deliver.Delivered, Status: 200}
}

func (s *sender) Close() {}

func (g *rig) setDown(down bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.down = down
}

// of gives what a subscriber got, sorted.
func (g *rig) of(name string) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Sorted(slices.Values(g.got[name]))
}

// publish stores events on a subject.
func (g *rig) publish(subject string, ids ...string) {
	g.t.Helper()
	for _, id := range ids {
		e := event.Event{ID: id, Source: "/test", Type: "test"}
		h, body := e.Encode()
		if _, err := g.broker.JetStream().PublishMsg(g.t.Context(), &nats.Msg{Subject: subject, Header: h, Data: body}); err != nil {
			g.t.Fatal(err)
		}
	}
}

// want waits until a subscriber has nothing to come, and wants that it then has
// exactly ids.
func (g *rig) want(name string, ids ...string) {
	g.t.Helper()
	waitFor(g.t, name+" has its events", func() bool {
		b, err := g.r.Backlog(g.t.Context(), name)
		return err == nil && b.Pending+b.Retry == 0 && len(g.of(name)) >= len(ids)
	})
	slices.Sort(ids)
	if d := cmp.Diff(ids, g.of(name)); d != "" {
		g.t.Errorf("%s (-want +got):\n%s", name, d)
	}
}

func (g *rig) add(d registry.Definition) registry.Entry {
	g.t.Helper()
	e, err := g.r.Add(g.t.Context(), d)
	if err != nil {
		g.t.Fatal(err)
	}
	return e
}

// backlogs gives those of all subscribers.
func (g *rig) backlogs() map[string]registry.Backlog {
	g.t.Helper()
	states, err := g.r.States(g.t.Context())
	if err != nil {
		g.t.Fatal(err)
	}
	all := map[string]registry.Backlog{}
	for _, s := range states {
		all[s.Definition.Name] = s.Backlog
	}
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

func definition(name string, subjects ...string) registry.Definition {
	d := registry.Definition{
		Name: name, Subjects: subjects,
		Deliver: registry.Deliver{Webhook: &webhook.Config{URL: "https://example.com/" + name + "?code=secret"}},
	}
	d.Breaker.Failures = 1000
	return d
}

func TestAdd(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	g.publish("events.fno.a.b.C", "early-1", "early-2")
	e := g.add(definition("one", "events.>"))
	if e.Origin != registry.FromAPI || e.StartSequence != 3 || e.Definition.Limits.Concurrency == 0 {
		t.Errorf("entry %+v", e)
	}
	all := definition("all", "events.>")
	all.Start = registry.Beginning
	g.add(all)
	g.publish("events.fno.a.b.C", "1", "2")
	g.want("one", "1", "2")
	g.want("all", "early-1", "early-2", "1", "2")

	again, err := g.r.Add(ctx, definition("one", "events.>"))
	if err != nil {
		t.Fatal(err)
	}
	if !again.Created.Equal(e.Created) {
		t.Errorf("adding the same again made another one: %+v", again)
	}
	if _, err := g.r.Add(ctx, definition("one", "events.fno.>")); !errors.Is(err, registry.ErrExists) {
		t.Errorf("another definition: %v", err)
	}
	if _, err := g.r.Add(ctx, definition("Bad Name", "events.>")); err == nil {
		t.Error("a bad name is taken")
	}
	if _, err := g.r.Get(ctx, "nobody"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	if _, err := g.r.Delete(ctx, "nobody", true); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("delete: %v", err)
	}
	list, err := g.r.List(ctx)
	if err != nil || len(list) != 2 || list[0].Definition.Name != "all" || list[1].Definition.Name != "one" {
		t.Errorf("list %+v, %v", list, err)
	}
}

// TestAddAtOnce has replicas and repeated calls add the same subscriber at the
// same time.
func TestAddAtOnce(t *testing.T) {
	g := newRig(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := g.r.Add(t.Context(), definition("one", "events.>")); err != nil {
				t.Error(err)
			}
		})
	}
	for range 8 {
		wg.Go(func() {
			d := definition("two", "events.>")
			if err := d.Validate(); err != nil {
				t.Error(err)
			}
			if err := g.r.SyncFile(t.Context(), []registry.Definition{d}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	g.publish("events.fno.a.b.C", "1")
	g.want("one", "1")
	g.want("two", "1")
}

func TestPause(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	g.add(definition("one", "events.>"))
	g.publish("events.a.b.c.d", "1")
	g.want("one", "1")
	e, err := g.r.SetPaused(ctx, "one", true)
	if err != nil || !e.Paused {
		t.Fatalf("%+v, %v", e, err)
	}
	// The change reaches the worker by way of the bucket.
	time.Sleep(200 * time.Millisecond) // sleep: for the watcher; nothing shows outside that it was told
	g.publish("events.a.b.c.d", "2")
	time.Sleep(200 * time.Millisecond) // sleep: to see that nothing comes
	if d := cmp.Diff([]string{"1"}, g.of("one")); d != "" {
		t.Errorf("while paused (-want +got):\n%s", d)
	}
	if b, err := g.r.Backlog(ctx, "one"); err != nil || b != (registry.Backlog{Pending: 1}) {
		t.Errorf("backlog %+v, %v", b, err)
	}
	if _, err := g.r.SetPaused(ctx, "one", false); err != nil {
		t.Fatal(err)
	}
	g.want("one", "1", "2")
	if _, err := g.r.SetPaused(ctx, "nobody", true); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("pause nobody: %v", err)
	}
}

func TestDelete(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	g.add(definition("one", "events.>"))
	g.add(definition("two", "events.>"))
	g.setDown(true)
	g.publish("events.a.b.c.d", "1", "2")
	for _, name := range []string{"one", "two"} {
		waitFor(t, "the retries of "+name+" wait", func() bool {
			b, err := g.r.Backlog(ctx, name)
			return err == nil && b == registry.Backlog{Retry: 2}
		})
	}
	if b, err := g.r.Delete(ctx, "one", false); !errors.Is(err, registry.ErrBacklog) || b.Retry != 2 {
		t.Errorf("delete with a backlog: %+v, %v", b, err)
	}
	if b, err := g.r.Delete(ctx, "one", true); err != nil || b != (registry.Backlog{Retry: 2}) {
		t.Errorf("discard: %+v, %v", b, err)
	}
	if _, err := g.r.Get(ctx, "one"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	waitFor(t, "its worker is gone", func() bool { _, ok := g.fleet.Breaker("one"); return !ok })
	if d := cmp.Diff(map[string]registry.Backlog{"two": {Retry: 2}}, g.backlogs()); d != "" {
		t.Errorf("backlogs (-want +got):\n%s", d)
	}
	for _, stream := range []string{broker.StreamEvents, broker.StreamRetry} {
		if _, err := g.broker.JetStream().Consumer(ctx, stream, "one"); !errors.Is(err, jetstream.ErrConsumerNotFound) {
			t.Errorf("its cursor on %s: %v", stream, err)
		}
	}

	// Under its old name and definition it is a new one: it gets new events.
	g.setDown(false)
	g.add(definition("one", "events.>"))
	g.publish("events.a.b.c.d", "3")
	g.want("one", "3")
}

// TestDeleteAndAddAgain does so at once, while events come.
func TestDeleteAndAddAgain(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	d := definition("one", "events.>")
	g.add(d)
	var want []string
	for round := range 10 {
		if _, err := g.r.Delete(ctx, "one", true); err != nil {
			t.Fatal(err)
		}
		g.add(d)
		ids := []string{fmt.Sprint(round, "-a"), fmt.Sprint(round, "-b")}
		g.publish("events.a.b.c.d", ids...)
		want = append(want, ids...)
		g.want("one", want...)
	}
}

func TestSyncFile(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	a, b := definition("a", "events.>"), definition("b", "events.>")
	sync := func(declared ...registry.Definition) {
		t.Helper()
		for i := range declared {
			if err := declared[i].Validate(); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.r.SyncFile(ctx, declared); err != nil {
			t.Fatal(err)
		}
	}
	sync(a, b)
	g.publish("events.x.y.z.w", "1")
	g.want("a", "1")
	g.want("b", "1")
	if _, err := g.r.Add(ctx, a); !errors.Is(err, registry.ErrFileDeclared) {
		t.Errorf("add: %v", err)
	}
	if _, err := g.r.Delete(ctx, "a", true); !errors.Is(err, registry.ErrFileDeclared) {
		t.Errorf("delete: %v", err)
	}

	// b is no longer declared: parked, and what comes is kept.
	sync(a)
	waitFor(t, "the worker of b is gone", func() bool { _, ok := g.fleet.Breaker("b"); return !ok })
	g.publish("events.x.y.z.w", "2")
	g.want("a", "1", "2")
	e, err := g.r.Get(ctx, "b")
	if err != nil || !e.Orphaned || e.Origin != registry.FromFile {
		t.Errorf("entry %+v, %v", e, err)
	}
	if l, err := g.r.Backlog(ctx, "b"); err != nil || l != (registry.Backlog{Pending: 1}) {
		t.Errorf("backlog %+v, %v", l, err)
	}
	created := e.Created

	// Declared again, with other subjects: it goes on where it was.
	b.Subjects = []string{"events.x.>"}
	sync(a, b)
	g.want("b", "1", "2")
	if e, err = g.r.Get(ctx, "b"); err != nil || e.Orphaned || !e.Created.Equal(created) || !slices.Equal(e.Definition.Subjects, b.Subjects) {
		t.Errorf("entry %+v, %v", e, err)
	}

	// Orphans can be deleted, and one added by API can move into the file.
	sync(a)
	if _, err := g.r.Delete(ctx, "b", false); err != nil {
		t.Errorf("delete an orphan: %v", err)
	}
	c := definition("c", "events.>")
	g.add(c)
	sync(a, c)
	if e, err := g.r.Get(ctx, "c"); err != nil || e.Origin != registry.FromFile {
		t.Errorf("entry %+v, %v", e, err)
	}
	g.publish("events.x.y.z.w", "3")
	g.want("c", "3")
	g.want("a", "1", "2", "3")
}

// TestSweep finishes a deletion whose process died in the middle.
func TestSweep(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	g.add(definition("gone", "events.>"))
	g.add(definition("stays", "events.>"))
	g.setDown(true)
	g.publish("events.a.b.c.d", "1")
	waitFor(t, "the retries wait", func() bool {
		all := g.backlogs()
		return all["gone"].Retry == 1 && all["stays"].Retry == 1
	})
	g.stop()
	js := g.broker.JetStream()
	kv, err := js.KeyValue(ctx, broker.BucketSubscribers)
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Delete(ctx, "gone"); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateConsumer(ctx, broker.StreamEvents, jetstream.ConsumerConfig{Durable: "somebodys-own", AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
		t.Fatal(err)
	}
	if err := g.r.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if all := g.backlogs(); all["gone"] != (registry.Backlog{}) || all["stays"].Retry != 1 {
		t.Errorf("backlogs %+v", all)
	}
	for name, want := range map[string]bool{"gone": false, "stays": true, "somebodys-own": true} {
		_, err := js.Consumer(ctx, broker.StreamEvents, name)
		if got := err == nil; got != want {
			t.Errorf("cursor %s: %v, %v", name, got, err)
		}
	}
}

// TestOverlappingSubjects delivers an event that matches several patterns once,
// also where neither pattern covers the other.
func TestOverlappingSubjects(t *testing.T) {
	for _, tt := range []struct {
		name      string
		subjects  []string
		published []string
		want      []string // ids are the subjects
	}{
		{
			"one covers the other", []string{"events.fno.>", "events.fno.prod.usmf.>", "events.fno.prod.*.Paid"},
			[]string{"events.fno.prod.usmf.Paid", "events.fno.prod.brmf.Paid", "events.eventgrid.x.y.Z"},
			[]string{"events.fno.prod.usmf.Paid", "events.fno.prod.brmf.Paid"},
		},
		{
			"the same twice", []string{"events.fno.prod.usmf.>", "events.fno.prod.usmf.>"},
			[]string{"events.fno.prod.usmf.Paid"}, []string{"events.fno.prod.usmf.Paid"},
		},
		{
			"crossing", []string{"events.fno.*.usmf.>", "events.fno.prod.*.>"},
			[]string{"events.fno.prod.usmf.Paid", "events.fno.test.usmf.Paid", "events.fno.prod.brmf.Paid", "events.fno.test.brmf.Paid"},
			[]string{"events.fno.prod.usmf.Paid", "events.fno.test.usmf.Paid", "events.fno.prod.brmf.Paid"},
		},
		{
			"crossing without >", []string{"events.*.prod.usmf.Paid", "events.fno.*.usmf.Paid", "events.fno.prod.*.Paid"},
			[]string{"events.fno.prod.usmf.Paid", "events.fno.test.usmf.Paid", "events.fno.prod.brmf.Paid", "events.x.prod.usmf.Paid", "events.x.y.usmf.Paid"},
			[]string{"events.fno.prod.usmf.Paid", "events.fno.test.usmf.Paid", "events.fno.prod.brmf.Paid", "events.x.prod.usmf.Paid"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newRig(t)
			g.add(definition("one", tt.subjects...))
			for _, subject := range tt.published {
				g.publish(subject, subject)
			}
			g.publish("events.fno.prod.usmf.Paid", "last")
			g.want("one", append(tt.want, "last")...)
		})
	}
}

// TestCursorDeletedByOthers: somebody with a NATS client deletes a cursor. The
// subscriber may get something twice then, but misses nothing.
func TestCursorDeletedByOthers(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	g.add(definition("one", "events.>"))
	g.publish("events.a.b.c.d", "1", "2")
	g.want("one", "1", "2")
	for _, stream := range []string{broker.StreamEvents, broker.StreamRetry} {
		if err := g.broker.JetStream().DeleteConsumer(ctx, stream, "one"); err != nil {
			t.Fatal(err)
		}
		id := "after " + stream
		g.publish("events.a.b.c.d", id)
		waitFor(t, id+" is delivered and the cursor is back", func() bool {
			_, err := g.broker.JetStream().Consumer(ctx, stream, "one")
			return err == nil && slices.Contains(g.of("one"), id)
		})
	}
	// It also heals when it happened while nobody ran.
	g.stop()
	if err := g.broker.JetStream().DeleteConsumer(ctx, broker.StreamEvents, "one"); err != nil {
		t.Fatal(err)
	}
	g.publish("events.a.b.c.d", "while stopped")
	g = openRig(t, g.broker)
	waitFor(t, "it has what came while nobody ran", func() bool { return slices.Contains(g.of("one"), "while stopped") })
}

func TestRedacted(t *testing.T) {
	if got := definition("one", "events.>").Redacted().Deliver.Webhook.URL; got == "" || got == definition("one").Deliver.Webhook.URL {
		t.Errorf("the URL shows as %q", got)
	}
}

// Headers of a definition that was read can be sent back as they were shown, and
// those that are hidden are not taken for a value.
func TestHeadersAreRevealed(t *testing.T) {
	stored := definition("one", "events.>")
	stored.Deliver.Webhook.Headers = map[string]string{"X-Key": "canary", "X-Type": "{{type}}"}
	shown := stored.Redacted()
	if shown.Deliver.Webhook.Headers["X-Key"] != "<redacted>" || shown.Deliver.Webhook.Headers["X-Type"] != "{{type}}" {
		t.Errorf("shown as %v", shown.Deliver.Webhook.Headers)
	}
	shown.Deliver.Webhook.Headers["X-New"] = "1"
	shown.Deliver.Webhook.Headers["X-Other"] = "<redacted>"
	shown.Reveal(stored)
	want := map[string]string{"X-Key": "canary", "X-Type": "{{type}}", "X-New": "1", "X-Other": "<redacted>"}
	if got := shown.Deliver.Webhook.Headers; !maps.Equal(got, want) {
		t.Errorf("revealed as %v", got)
	}
	if err := shown.Validate(); err == nil || !strings.Contains(err.Error(), "subscribers.one.deliver.webhook.headers.X-Other: its value is hidden") {
		t.Errorf("got %v", err)
	}
	grid := definition("grid", "events.>")
	grid.Deliver.Webhook.Format = "eventgrid"
	grid.Limits.Batch.Events, grid.Limits.Batch.Bytes = 10, 2<<20
	if err := grid.Validate(); err == nil || !strings.Contains(err.Error(), "subscribers.grid.limits.batch.bytes: with format eventgrid want at most 1MiB") {
		t.Errorf("got %v", err)
	}
}
