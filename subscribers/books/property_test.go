package books_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/books"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// world is a rig that things happen to.
type world struct {
	*rig
	*rand.Rand
	there map[string]bool // subscribers
}

// step is something that can happen. Add one here for whatever must not make an
// event vanish.
type step struct {
	name   string
	weight int
	do     func(*world)
}

var (
	names    = []string{"a", "b", "c", "d", "e"}
	subjects = []string{"events.fno.prod.usmf.A", "events.fno.prod.usmf.B", "events.fno.test.brmf.A", "events.cloudevents.shop.orders.X"}
	patterns = []string{"events.>", "events.fno.>", "events.*.*.usmf.A", "events.fno.test.>", "events.cloudevents.shop.orders.X"}
)

var steps = []step{
	{"publish", 12, func(w *world) { w.publish(subjects[w.IntN(len(subjects))], 1+w.IntN(20)) }},
	{"add", 4, func(w *world) {
		name := names[w.IntN(len(names))]
		if w.there[name] {
			return
		}
		// Only the time tells a subscriber from the one before it, so that one's
		// attempts must have ended.
		waitFor(w.t, "the worker before is gone", func() bool { _, running := w.fleet.Breaker(name); return !running })
		d := definition(name, patterns[w.IntN(len(patterns))])
		if w.IntN(2) == 0 {
			d.Subjects = append(d.Subjects, patterns[w.IntN(len(patterns))])
		}
		if w.IntN(3) == 0 {
			d.Start = registry.Beginning
		}
		w.add(d)
		w.there[name] = true
	}},
	{"delete", 1, func(w *world) {
		if name := w.somebody(); name != "" {
			w.delete(name)
			delete(w.there, name)
		}
	}},
	{"pause", 2, func(w *world) {
		if name := w.somebody(); name != "" {
			w.pause(name, w.IntN(2) == 0)
		}
	}},
	{"outage", 5, func(w *world) {
		if name := w.somebody(); name != "" {
			w.answer(name, w.mood())
		}
	}},
	{"restart", 1, func(w *world) { w.stop(); w.start() }},
	{"restart of the books", 1, func(w *world) { w.close(); w.open() }},
	{"kill of the books", 1, func(w *world) { w.books.Crash(); w.open() }},
	{"reading", 1, func(w *world) {
		// It waits for a quiet moment, and here is none.
		ctx, cancel := context.WithTimeout(w.t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, err := w.books.Read(ctx); err != nil && ctx.Err() == nil {
			w.t.Error(err)
		}
	}},
	{"nothing", 4, func(w *world) {
		time.Sleep(time.Duration(w.IntN(100)) * time.Millisecond) // sleep: something happens meanwhile
	}},
}

// somebody gives a subscriber, if there is one.
func (w *world) somebody() string {
	var there []string
	for _, name := range names {
		if w.there[name] {
			there = append(there, name)
		}
	}
	if len(there) == 0 {
		return ""
	}
	return there[w.IntN(len(there))]
}

// mood is how a subscriber answers from now on.
func (w *world) mood() func(*event.Event) deliver.Attempt {
	share, kind := w.Float64(), w.IntN(4)
	return func(e *event.Event) deliver.Attempt {
		switch bad := rand.Float64() < share; {
		case kind == 0 || !bad:
			return deliver.Attempt{Outcome: deliver.Delivered, Status: 200}
		case kind == 1:
			return down(e)
		case kind == 2:
			return refuses(e)
		}
		return deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultTimeout, Reason: "no answer"}
	}
}

func (w *world) run(n int) (story []string) {
	total := 0
	for _, s := range steps {
		total += s.weight
	}
	for range n {
		at := w.IntN(total)
		for _, s := range steps {
			if at -= s.weight; at < 0 {
				story = append(story, s.name)
				s.do(w)
				break
			}
		}
	}
	return story
}

// calm ends all trouble and gives the books when nothing is under way.
func (w *world) calm() *books.Reading {
	w.t.Helper()
	for name := range w.there {
		w.answer(name, nil)
		w.pause(name, false)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		r := w.read()
		busy := func(s books.Subscriber) bool { return s.Pending+s.InRetry+s.Parked > 0 }
		if r.Settled && !slices.ContainsFunc(r.Subscribers, busy) {
			return r
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("it does not come to rest: %+v", r)
		}
	}
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// TestBalance lets anything happen: when it is over, every book balances.
// GRIDFAN_SEED repeats one run.
func TestBalance(t *testing.T) {
	seeds := []uint64{uint64(time.Now().UnixNano()), uint64(time.Now().UnixNano()) + 1}
	if s, err := strconv.ParseUint(os.Getenv("GRIDFAN_SEED"), 10, 64); err == nil {
		seeds = []uint64{s}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := &world{newRig(t), rand.New(rand.NewPCG(seed, 1)), map[string]bool{}}
			story := w.run(100)
			r := w.calm()
			if !r.Balanced || len(r.Losses) > 0 {
				t.Errorf("after %q: lost %+v", story, r.Losses)
			}
			for _, s := range r.Subscribers {
				if s.State == books.StateDeleted {
					continue
				}
				if s.Balance != 0 || len(s.Problems)+len(s.Notes) > 0 || s.Matched != s.Delivered+s.DeadLetters {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}

// TestBalanceCanFail settles one event without a record.
func TestBalanceCanFail(t *testing.T) {
	g := newRig(t)
	g.close()
	g.believe = 200 * time.Millisecond
	g.open()
	g.add(definition("one", "events.>"))
	g.publish("events.fno.prod.usmf.A", 3)
	g.rest("one")
	g.pause("one", true)
	waitFor(t, "the pause is seen", func() bool { return subscriber(t, g.read(), "one").State == books.StatePaused })
	// What it had asked for before the pause is with the server for some time.
	g.fleet.Stop(time.Second)
	g.fleet = nil
	g.publish("events.fno.prod.usmf.A", 2)
	c, err := g.b.JetStream().Consumer(t.Context(), broker.StreamEvents, "one")
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Next(jetstream.FetchMaxWait(10 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := g.read()
	if s := subscriber(t, r, "one"); r.Balanced || s.Balance != 1 || s.Parked != 1 || len(s.Problems) != 1 {
		t.Errorf("balanced %v: %+v", r.Balanced, s)
	}
	g.recorder.Close()
}
