package registry_test

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// declare makes the subjects of a file-declared subscriber others.
func (g *rig) declare(d registry.Definition) registry.Entry {
	g.t.Helper()
	if err := d.Validate(); err != nil {
		g.t.Fatal(err)
	}
	if err := g.r.SyncFile(g.t.Context(), []registry.Definition{d}); err != nil {
		g.t.Fatal(err)
	}
	e, err := g.r.Get(g.t.Context(), d.Name)
	if err != nil {
		g.t.Fatal(err)
	}
	return e
}

func TestWants(t *testing.T) {
	e := registry.Entry{Epochs: []registry.Epoch{
		{From: 5, Subjects: []string{"events.a.>"}},
		{From: 10, Subjects: []string{"events.a.>", "events.b.*.x"}},
		{From: 20},
		{From: 30, Subjects: []string{"events.b.>"}},
		{From: 0, Subjects: []string{"events.>"}}, // where it begins is not known
	}}
	for _, tt := range []struct {
		subject  string
		sequence uint64
		want     bool
	}{
		{"events.a.x.y.Z", 4, false},
		{"events.a.x.y.Z", 5, true},
		{"events.b.a.x", 9, false},
		{"events.b.a.x", 10, true},
		{"events.b.a.y", 10, false},
		{"events.a.x.y.Z", 19, true},
		{"events.a.x.y.Z", 20, false},
		{"events.b.x.y.Z", 29, false},
		{"events.b.x.y.Z", 30, true},
		{"events.a.x.y.Z", 1000, false},
	} {
		if got := e.Wants(tt.subject, tt.sequence); got != tt.want {
			t.Errorf("%s at %d: %v", tt.subject, tt.sequence, got)
		}
	}
}

// TestSubjectsChange changes the subjects while events of both kinds wait.
func TestSubjectsChange(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	d := definition("one", "events.a.>")
	g.declare(d)
	if _, err := g.r.SetPaused(ctx, "one", true); err != nil {
		t.Fatal(err)
	}
	g.publish("events.a.x.y.Z", "a1")
	g.publish("events.b.x.y.Z", "b2")
	d.Subjects = []string{"events.b.>"}
	e := g.declare(d)
	if d := gocmp.Diff([]registry.Epoch{{From: 1, Subjects: []string{"events.a.>"}}, {From: 3, Subjects: []string{"events.b.>"}}}, e.Epochs); d != "" {
		t.Errorf("epochs (-want +got):\n%s", d)
	}
	g.publish("events.a.x.y.Z", "a3")
	g.publish("events.b.x.y.Z", "b4", "b5")
	waitFor(t, "what is counted is what is wanted", func() bool {
		b, err := g.r.Backlog(ctx, "one")
		return err == nil && b == (registry.Backlog{Pending: 3})
	})
	look, err := g.r.Look(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if p := look.Positions[0]; p.Pending != 3 || p.Got != 0 || p.Held == nil || p.Held.Sequence != 1 {
		t.Errorf("position %+v", p)
	}
	if _, err := g.r.SetPaused(ctx, "one", false); err != nil {
		t.Fatal(err)
	}
	g.want("one", "a1", "b4", "b5")

	// Twice more without an event in between: the epoch without events goes.
	d.Subjects = []string{"events.c.>"}
	g.declare(d)
	d.Subjects = []string{"events.a.>", "events.b.>"}
	e = g.declare(d)
	if n := len(e.Epochs); n != 3 || e.Epochs[2].From != 6 {
		t.Errorf("epochs %+v", e.Epochs)
	}
	// The same in another order is no change.
	d.Subjects = []string{"events.b.>", "events.a.>", "events.a.x.>"}
	if again := g.declare(d); !gocmp.Equal(again.Epochs, e.Epochs) {
		t.Errorf("epochs %+v, then %+v", e.Epochs, again.Epochs)
	}
	g.publish("events.a.x.y.Z", "a6")
	g.publish("events.c.x.y.Z", "c7")
	g.want("one", "a1", "b4", "b5", "a6")
}

// TestDrain lets a subscriber have what waits and nothing new, and then what comes.
func TestDrain(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	g.wait = 50 * time.Millisecond
	d := definition("one", "events.>")
	d.Retry.Schedule = slices.Repeat([]deliver.Duration{deliver.Duration(50 * time.Millisecond)}, 100)
	g.add(d)
	g.setDown(true)
	g.publish("events.a.b.c.D", "1", "2")
	e, err := g.r.Drain(ctx, "one")
	if err != nil {
		t.Fatal(err)
	}
	if !e.Drains() || len(e.Epochs) != 2 || e.Epochs[1].From != 3 || len(e.Epochs[1].Subjects) != 0 {
		t.Errorf("entry %+v", e)
	}
	if again, err := g.r.Drain(ctx, "one"); err != nil || again.Revision != e.Revision {
		t.Errorf("again: %+v, %v", again, err)
	}
	g.publish("events.a.b.c.D", "3", "4")
	g.setDown(false)
	g.want("one", "1", "2")
	waitFor(t, "nothing is left", func() bool {
		b, err := g.r.Backlog(ctx, "one")
		return err == nil && b.Empty()
	})
	// What comes is in nobody's way, also before the filter is narrowed.
	look, err := g.r.Look(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if p := look.Positions[0]; p.Got != 4 || p.Held != nil || p.Pending != 0 {
		t.Errorf("position %+v", p)
	}
	if e, err = g.r.Resume(ctx, "one"); err != nil || e.Drains() || e.Note != "it was drained: it does not get what was stored as event 3 to 4" {
		t.Errorf("%+v, %v", e, err)
	}
	g.publish("events.a.b.c.D", "5")
	g.want("one", "1", "2", "5")

	// By its definition.
	d.Drain = true
	if _, _, err := g.r.Replace(ctx, d, 0); err != nil {
		t.Fatal(err)
	}
	g.publish("events.a.b.c.D", "6")
	if _, err := g.r.Resume(ctx, "one"); !errors.Is(err, registry.ErrDrainDeclared) {
		t.Errorf("got %v", err)
	}
	d.Drain = false
	if _, _, err := g.r.Replace(ctx, d, 0); err != nil {
		t.Fatal(err)
	}
	g.publish("events.a.b.c.D", "7")
	g.want("one", "1", "2", "5", "7")
}

// TestUnwantedHoldsNothing: what an epoch does not want is in nobody's way, also
// while the cursor does not move.
func TestUnwantedHoldsNothing(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	d := definition("one", "events.a.>")
	g.declare(d)
	g.publish("events.a.x.y.Z", "a1")
	g.want("one", "a1")
	if _, err := g.r.SetPaused(ctx, "one", true); err != nil {
		t.Fatal(err)
	}
	d.Subjects = []string{"events.b.>"}
	g.declare(d)
	g.publish("events.a.x.y.Z", "a2", "a3")
	look, err := g.r.Look(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if p := look.Positions[0]; p.Pending != 0 || p.Got != 3 || p.Held != nil {
		t.Errorf("position %+v", p)
	}
	g.publish("events.b.x.y.Z", "b4")
	if look, err = g.r.Look(ctx); err != nil {
		t.Fatal(err)
	}
	if p := look.Positions[0]; p.Pending != 1 || p.Got != 3 || p.Held == nil || p.Held.Sequence != 4 {
		t.Errorf("position %+v", p)
	}
}

// TestTooManyChanges refuses the change that would make a filter too long.
func TestTooManyChanges(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	d := definition("one", "events.a.>")
	g.declare(d)
	if _, err := g.r.SetPaused(ctx, "one", true); err != nil {
		t.Fatal(err)
	}
	g.publish("events.a.x.y.Z", "a")
	var want []string
	change := func(i int) error {
		id := fmt.Sprint("s", i)
		d.Subjects = []string{"events." + id + ".>"}
		if err := d.Validate(); err != nil {
			t.Fatal(err)
		}
		if err := g.r.SyncFile(ctx, []registry.Definition{d}); err != nil {
			return err
		}
		g.publish("events."+id+".x.y.Z", id)
		want = append(want, id)
		return nil
	}
	for i := range 15 {
		if err := change(i); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
	}
	if err := change(15); err == nil || !errors.Is(err, registry.ErrEpochs) || err.Error() != `subscriber "one": `+registry.ErrEpochs.Error() {
		t.Errorf("got %v", err)
	}
	if _, err := g.r.SetPaused(ctx, "one", false); err != nil {
		t.Fatal(err)
	}
	g.want("one", append([]string{"a"}, want...)...)
	if err := change(15); err != nil {
		t.Errorf("after it has got past all: %v", err)
	}
	g.want("one", append([]string{"a"}, want...)...)
}

// TestFilterSpoilt: somebody else, or a power cut, has given the cursor another
// filter, with which it passes events.
func TestFilterSpoilt(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	d := definition("one", "events.a.>")
	g.declare(d)
	g.publish("events.a.x.y.Z", "a1", "a2")
	g.want("one", "a1", "a2")
	d.Subjects = []string{"events.a.>", "events.b.>"}
	g.declare(d)
	g.publish("events.b.x.y.Z", "b3")
	g.want("one", "a1", "a2", "b3")
	g.stop()
	js := g.broker.JetStream()
	c, err := js.Consumer(ctx, broker.StreamEvents, "one")
	if err != nil {
		t.Fatal(err)
	}
	cfg := c.CachedInfo().Config
	cfg.FilterSubjects = []string{"events.a.>"}
	if c, err = js.UpdateConsumer(ctx, broker.StreamEvents, cfg); err != nil {
		t.Fatal(err)
	}
	g.publish("events.b.x.y.Z", "b4")
	g.publish("events.a.x.y.Z", "a5")
	m, err := c.Next()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Nak(); err != nil {
		t.Fatal(err)
	}
	again := openRig(t, g.broker)
	waitFor(t, "the event that was passed", func() bool {
		return slices.Contains(again.of("one"), "b4") && slices.Contains(again.of("one"), "a5")
	})
	if slices.Contains(again.of("one"), "a1") {
		t.Errorf("set back too far: %v", again.of("one"))
	}
}

// TestDiedWhileChanging: a process died before it knew where an epoch begins.
func TestDiedWhileChanging(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	d := definition("one", "events.a.>")
	g.declare(d)
	g.publish("events.a.x.y.Z", "a1")
	g.want("one", "a1")
	kv, err := g.broker.JetStream().KeyValue(ctx, broker.BucketSubscribers)
	if err != nil {
		t.Fatal(err)
	}
	v, err := kv.Get(ctx, "one")
	if err != nil {
		t.Fatal(err)
	}
	half := []byte(string(v.Value()[:len(v.Value())-1]) + `,"epochs":[{"from":1,"subjects":["events.a.>"]},{"from":0,"subjects":["events.b.>"]}]}`)
	if _, err := kv.Update(ctx, "one", half, v.Revision()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the epoch begins", func() bool {
		e, err := g.r.Get(ctx, "one")
		return err == nil && e.Epochs[1].From == 2
	})
	g.publish("events.a.x.y.Z", "a2")
	g.publish("events.b.x.y.Z", "b3")
	g.want("one", "a1", "b3")
}

// TestSubjectsAtRandom changes subjects, pauses, breaks and restarts while events
// come, and wants that each is delivered if, and only if, the subjects in force at
// its sequence match.
func TestSubjectsAtRandom(t *testing.T) {
	for _, replicas := range []int{1, 2} {
		seed := uint64(time.Now().UnixNano())
		t.Run(fmt.Sprint(replicas, "-replicas-", seed), func(t *testing.T) { subjectsAtRandom(t, replicas, rand.New(rand.NewPCG(seed, 0))) })
	}
}

func subjectsAtRandom(t *testing.T, replicas int, random *rand.Rand) {
	ctx := t.Context()
	dir, memory := t.TempDir(), ""
	if replicas == 1 {
		memory = dir
	}
	var log strings.Builder
	handler := slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn})
	open := func(b *broker.Broker, got map[string][]string) *rig {
		return openRigWith(t, b, &rig{log: slog.New(handler), dir: memory, got: got, wait: 50 * time.Millisecond})
	}
	g := open(brokertest.Open(t, dir), map[string][]string{})
	other := g
	if replicas > 1 {
		other = open(g.broker, map[string][]string{})
	}
	patterns := []string{"events.a.>", "events.b.>", "events.*.x.y.Z", "events.c.*.y.Z", "events.>", "events.c.w.>"}
	leaves := []string{"events.a.x.y.Z", "events.a.w.y.Z", "events.b.x.y.Z", "events.b.w.y.Z", "events.c.x.y.Z", "events.c.w.y.Z"}
	d := definition("one", patterns[0])
	d.Retry.Schedule = slices.Repeat([]deliver.Duration{deliver.Duration(50 * time.Millisecond)}, 100)
	// The entry forgets what is long past.
	all := registry.Entry{}
	note := func(e registry.Entry) {
		for _, epoch := range e.Epochs {
			all.Epochs = slices.DeleteFunc(all.Epochs, func(other registry.Epoch) bool { return other.From == epoch.From })
			all.Epochs = append(all.Epochs, epoch)
		}
		slices.SortFunc(all.Epochs, func(a, b registry.Epoch) int { return cmp.Compare(a.From, b.From) })
	}
	note(g.declare(d))

	// Events come all the time, except when the broker is away.
	var mu sync.Mutex // held while an event is stored; guards js and published
	js := g.broker.JetStream()
	published := map[uint64]string{}
	subjects := rand.New(rand.NewPCG(random.Uint64(), 0))
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-tick.C:
			case <-stop:
				return
			}
			subject := leaves[subjects.IntN(len(leaves))]
			mu.Lock()
			e := event.Event{ID: fmt.Sprintf("%05d", i), Source: "/test", Type: "test"}
			h, body := e.Encode()
			ack, err := js.PublishMsg(ctx, &nats.Msg{Subject: subject, Header: h, Data: body})
			if err == nil {
				published[ack.Sequence] = e.ID
			}
			mu.Unlock()
			if err != nil {
				t.Error(err)
				return
			}
		}
	}()
	end := func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		last := uint64(0)
		for s := range published {
			last = max(last, s)
		}
		return last
	}
	for range 25 {
		op := random.IntN(10)
		switch op {
		case 0, 1, 2, 3:
			var chosen []string
			for _, i := range random.Perm(len(patterns))[:1+random.IntN(3)] {
				chosen = append(chosen, patterns[i])
			}
			was := d.Subjects
			d.Subjects = chosen
			before := end()
			e := g.declare(d)
			note(e)
			// It holds for what came after the call, and not for what came before. One
			// event may be stored and not counted yet.
			last := e.Epochs[len(e.Epochs)-1]
			t.Logf("from %d on %v", last.From, last.Subjects)
			if gocmp.Equal(last.Subjects, chosen) && !alike(was, chosen) && (last.From <= before || last.From > end()+2) {
				t.Errorf("the change made between %d and %d begins at %d", before, end(), last.From)
			}
		case 4:
			if _, err := g.r.SetPaused(ctx, "one", random.IntN(2) == 0); err != nil {
				t.Fatal(err)
			}
		case 8:
			e, err := g.r.Drain(ctx, "one")
			if err != nil {
				t.Fatal(err)
			}
			note(e)
		case 9:
			e, err := g.r.Resume(ctx, "one")
			if err != nil {
				t.Fatal(err)
			}
			note(e)
		case 5:
			down := random.IntN(2) == 0
			g.setDown(down)
			other.setDown(down)
		case 6:
			g.stop()
			if again := open(g.broker, g.got); other == g {
				g, other = again, again
			} else {
				g, other = other, again
			}
		case 7:
			mu.Lock()
			g.stop()
			other.stop()
			g.broker.Close()
			again := open(brokertest.Open(t, dir), g.got)
			if other == g {
				other = again
			} else {
				other = open(again.broker, other.got)
			}
			g, js = again, again.broker.JetStream()
			mu.Unlock()
		}
		t.Logf("operation %d at %d", op, end())
		time.Sleep(time.Duration(random.IntN(60)) * time.Millisecond) // sleep: events come meanwhile
	}
	close(stop)
	<-stopped
	g.setDown(false)
	other.setDown(false)
	e, err := g.r.Resume(ctx, "one")
	if err != nil {
		t.Fatal(err)
	}
	note(e)
	waitFor(t, "everything is delivered", func() bool {
		b, err := g.r.Backlog(ctx, "one")
		return err == nil && b == (registry.Backlog{})
	})
	stream, err := g.broker.JetStream().Stream(ctx, broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, seq := range slices.Sorted(maps.Keys(published)) {
		m, err := stream.GetMsg(ctx, seq)
		if err != nil {
			t.Fatal(err)
		}
		if all.Wants(m.Subject, seq) {
			want = append(want, published[seq])
		}
	}
	slices.Sort(want)
	got := g.of("one")
	if other != g {
		got = slices.Sorted(slices.Values(append(got, other.of("one")...)))
	}
	twice := len(got)
	got = slices.Compact(got)
	t.Logf("%d published, %d wanted, %d delivered twice, epochs %d", len(published), len(want), twice-len(got), len(all.Epochs))
	if d := gocmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	g.stop()
	other.stop()
	// Two replicas may collide now and then, which costs duplicates.
	if strings.Count(log.String(), "set back") > 2 {
		t.Errorf("cursors were narrower than they had to be:\n%s", &log)
	}
	if len(published) == 0 {
		t.Error("nothing was tried")
	}
}

// alike says whether two lists match the same events.
func alike(a, b []string) bool {
	return gocmp.Equal(slices.Sorted(slices.Values(deliver.MinimiseSubjects(a))), slices.Sorted(slices.Values(deliver.MinimiseSubjects(b))))
}
