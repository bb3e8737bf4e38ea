package deliver_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// overtaking checks that no event of a key is sent before all those before it
// are done with. Event ids are "key/number", numbered from 0.
type overtaking struct {
	mu    sync.Mutex
	whole bool // one key for all
	done  map[string]map[int]bool
	next  map[string]int // all below are done
	found []string
}

func newOvertaking(o deliver.Ordering) *overtaking {
	return &overtaking{whole: o == deliver.Strict, done: map[string]map[int]bool{}, next: map[string]int{}}
}

func (o *overtaking) parse(id string) (key string, n int) {
	key, number, _ := strings.Cut(id, "/")
	if _, err := fmt.Sscan(number, &n); err != nil {
		o.found = append(o.found, "no number in id "+id)
	}
	if o.whole {
		key = ""
	}
	return key, n
}

func (o *overtaking) sent(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if key, n := o.parse(id); n > o.next[key] {
		o.found = append(o.found, fmt.Sprintf("%s is sent and %d of its key is not done with", id, o.next[key]))
	}
}

// ended says that an event is delivered or given up.
func (o *overtaking) ended(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	key, n := o.parse(id)
	if o.done[key] == nil {
		o.done[key] = map[int]bool{}
	}
	o.done[key][n] = true
	for o.done[key][o.next[key]] {
		delete(o.done[key], o.next[key])
		o.next[key]++
	}
}

func (o *overtaking) first() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.found) == 0 {
		return ""
	}
	return fmt.Sprintf("%d times, first: %s", len(o.found), o.found[0])
}

// shaky is a subscriber that fails at random.
func shaky(o *overtaking, seed uint64) func(ctx context.Context, e *event.Event, try int) deliver.Attempt {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 1))
	return func(ctx context.Context, e *event.Event, _ int) deliver.Attempt {
		o.sent(e.ID)
		mu.Lock()
		luck, wait := r.Float64(), time.Duration(r.IntN(3000))*time.Microsecond
		mu.Unlock()
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return deliver.Attempt{Outcome: deliver.Aborted}
		}
		switch {
		case luck < 0.15:
			return deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultServer, Status: 503, Reason: "HTTP 503"}
		case luck < 0.18:
			o.ended(e.ID)
			return deliver.Attempt{Outcome: deliver.Rejected, Fault: deliver.FaultRefused, Status: 422, Reason: "HTTP 422"}
		}
		o.ended(e.ID)
		return deliver.Attempt{Outcome: deliver.Delivered, Status: 200}
	}
}

// publishKeys publishes events of keys in turns, with ids "key/number", from one
// place in their row to another.
func (r *rig) publishKeys(o deliver.Ordering, keys, from, to int) {
	r.t.Helper()
	numbers := map[string]int{}
	for i := range to {
		key := fmt.Sprintf("k%d", i*7%keys)
		number := numbers[key]
		if o == deliver.Strict {
			number = i
		}
		if numbers[key]++; i < from {
			continue
		}
		e := &event.Event{ID: fmt.Sprintf("%s/%d", key, number), Source: "/s", Type: "t", Data: []byte("1"), DataJSON: true, DataContentType: "application/json"}
		e.Set(event.ExtSource, "test")
		e.Set("partitionkey", key)
		h, body := e.Encode()
		if _, err := r.b.JetStream().PublishMsg(r.t.Context(), &nats.Msg{Subject: "events.fno.test.usmf.Thing", Header: h, Data: body}); err != nil {
			r.t.Fatal(err)
		}
	}
}

func orderedConfig(o deliver.Ordering) deliver.Config {
	cfg := fastConfig()
	cfg.Ordering = o
	// Never used up: what is given up is not counted as done by the checker.
	cfg.Retry.Schedule = nil
	for range 30 {
		cfg.Retry.Schedule = append(cfg.Retry.Schedule, deliver.Duration(20*time.Millisecond))
	}
	return cfg
}

// finals counts the records that end an event, by event.
func (r *rig) finals() map[uint64]int {
	all := map[uint64]int{}
	for _, rec := range r.records() {
		switch rec.Outcome {
		case deliver.RecordDelivered, deliver.RecordDeadLetter:
			all[rec.Sequence]++
		}
	}
	return all
}

// atRest waits until n events are settled and nothing is left on the retry lane.
func (r *rig) atRest(n int) {
	r.t.Helper()
	waitFor(r.t, fmt.Sprintf("%d events to be settled", n), func() bool { return len(r.finals()) == n && r.unsettled("a") == 0 })
	waitFor(r.t, "an empty retry lane", func() bool { return len(r.stored(broker.StreamRetry)) == 0 })
	for sequence, times := range r.finals() {
		if times != 1 {
			r.t.Errorf("event %d has %d final records", sequence, times)
		}
	}
}

func TestOrder(t *testing.T) {
	for _, o := range []deliver.Ordering{deliver.ByKey, deliver.Strict} {
		t.Run(string(o), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			const n = 300
			check := newOvertaking(o)
			s := newSender(shaky(check, 1))
			r.publishKeys(o, 10, 0, n/2)
			r.start("a", orderedConfig(o), s)
			r.publishKeys(o, 10, n/2, n)
			r.atRest(n)
			if found := check.first(); found != "" {
				t.Error("overtaken", found)
			}
		})
	}
	// The checker can tell: without order it finds something.
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		check := newOvertaking(deliver.ByKey)
		s := newSender(shaky(check, 1))
		r.publishKeys(deliver.ByKey, 3, 0, 100)
		r.start("a", orderedConfig(deliver.Unordered), s)
		r.atRest(100)
		if check.first() == "" {
			t.Error("the checker finds nothing where no order is kept")
		}
	})
}

// TestOrderOverReplicas has three replicas, of which one dies again and again:
// its attempts are given up and what it has in hand comes back by itself.
func TestOrderOverReplicas(t *testing.T) {
	for _, o := range []deliver.Ordering{deliver.ByKey, deliver.Strict} {
		t.Run(string(o), func(t *testing.T) {
			t.Parallel()
			server := brokertest.NewServer(t)
			check := newOvertaking(o)
			const n = 400
			respond := shaky(check, 7)
			var rigs []*rig
			for range 3 {
				rigs = append(rigs, openRig(t, server.Connect()))
			}
			rigs[0].publishKeys(o, 12, 0, n)
			workers := make([]*deliver.Worker, 3)
			begin := func(i int) {
				cfg := orderedConfig(o)
				if err := cfg.Validate(""); err != nil {
					t.Fatal(err)
				}
				w, err := deliver.Start(t.Context(), deliver.Subscriber{Name: "a", Subjects: []string{"events.>"}, Config: cfg, Sender: newSender(respond)}, rigs[i].parts)
				if err != nil {
					t.Fatal(err)
				}
				workers[i] = w
			}
			for i := range workers {
				begin(i)
			}
			serving := func() int {
				found := -1
				for i, w := range workers {
					if w.Serving() {
						if found >= 0 {
							t.Errorf("replicas %d and %d serve at once", found, i)
						}
						found = i
					}
				}
				return found
			}
			for round := range 4 {
				waitFor(t, "a replica to serve", func() bool { return serving() >= 0 })
				done := func() int { return len(rigs[0].finals()) }
				before := done()
				waitFor(t, "some progress", func() bool { return done() > before || done() == n })
				i := serving()
				if i < 0 {
					continue
				}
				workers[i].Stop(time.Duration(round%2) * time.Second)
				begin(i)
			}
			rigs[0].atRest(n)
			if found := check.first(); found != "" {
				t.Error("overtaken", found)
			}
			for _, w := range workers {
				w.Stop(time.Second)
			}
		})
	}
}

// TestKeyInTroubleHoldsUpNoOther has one key that fails for a while with many
// events behind it.
func TestKeyInTroubleHoldsUpNoOther(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	down := true
	check := newOvertaking(deliver.ByKey)
	s := newSender(func(_ context.Context, e *event.Event, _ int) deliver.Attempt {
		check.sent(e.ID)
		mu.Lock()
		defer mu.Unlock()
		if down && strings.HasPrefix(e.ID, "k0/") {
			return deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultServer, Status: 500, Reason: "HTTP 500"}
		}
		check.ended(e.ID)
		return deliver.Attempt{Outcome: deliver.Delivered}
	})
	cfg := orderedConfig(deliver.ByKey)
	cfg.Breaker.Failures, cfg.Breaker.Ratio = 1000, 1
	r.start("a", cfg, s)
	const n, keys = 900, 3
	r.publishKeys(deliver.ByKey, keys, 0, n)
	waitFor(t, "the other keys", func() bool { got, _ := s.count(); return got == n/keys*(keys-1) })
	if len(r.stored(broker.StreamRetry)) < n/keys-10 {
		t.Errorf("%d messages wait on the retry lane, want those of the key", len(r.stored(broker.StreamRetry)))
	}
	mu.Lock()
	down = false
	mu.Unlock()
	r.atRest(n)
	if found := check.first(); found != "" {
		t.Error("overtaken", found)
	}
}

// Each event has a key of its own and the subscriber is down. What it has no use
// for now stays in the stream: the worker's hands and the retry lane hold no more
// than it was tried with.
func TestManyKeysBehindASubscriberThatIsDown(t *testing.T) {
	r := newRig(t)
	var up atomic.Bool
	check := newOvertaking(deliver.ByKey)
	s := newSender(func(_ context.Context, e *event.Event, _ int) deliver.Attempt {
		check.sent(e.ID)
		if !up.Load() {
			return deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultServer, Status: 503, Reason: "HTTP 503"}
		}
		check.ended(e.ID)
		return deliver.Attempt{Outcome: deliver.Delivered, Status: 200}
	})
	const keys, n = 1499, 2000
	r.publishKeys(deliver.ByKey, keys, 0, n)
	cfg := orderedConfig(deliver.ByKey)
	cfg.Breaker.OpenFor = deliver.Duration(200 * time.Millisecond)
	cfg.Breaker.MaxOpenFor = cfg.Breaker.OpenFor
	r.start("a", cfg, s)
	waitFor(t, "probes", func() bool { _, tries := s.count(); return tries > 10 })
	_, tries := s.count()
	c, err := r.b.JetStream().Consumer(t.Context(), broker.StreamEvents, "a")
	if err != nil {
		t.Fatal(err)
	}
	if held, most := c.CachedInfo().NumAckPending, 100; held > most { // 32 for its 4 slots, and what is acked together
		t.Errorf("%d events are in the worker's hands, want at most %d", held, most)
	}
	waiting := len(r.stored(broker.StreamRetry))
	// One that comes behind another of its key waits there too, and few do.
	if _, after := s.count(); waiting > after+100 {
		t.Errorf("%d events are on the retry lane after %d to %d attempts", waiting, tries, after)
	}
	up.Store(true)
	r.atRest(n)
	if found := check.first(); found != "" {
		t.Error("overtaken", found)
	}
}

// Each event has a key of its own and the subscriber wants none of them now, which
// opens no breaker: so many wait for their retry, and the others in the stream.
func TestManyKeysOnTheRetryLane(t *testing.T) {
	const most, keys, n = 200, 701, 2500
	// 656 may be on their way there when there is no more room: as many as the
	// cursor hands out.
	const margin = 700
	deliver.RetriesMost(t, most)
	r := newRig(t)
	var wanted atomic.Bool
	check := newOvertaking(deliver.ByKey)
	s := newSender(func(_ context.Context, e *event.Event, _ int) deliver.Attempt {
		check.sent(e.ID)
		if !wanted.Load() {
			return deliver.Attempt{Outcome: deliver.Rejected, Fault: deliver.FaultRefused, Status: 422, Reason: "HTTP 422"}
		}
		check.ended(e.ID)
		return deliver.Attempt{Outcome: deliver.Delivered, Status: 200}
	})
	cfg := orderedConfig(deliver.ByKey)
	var later []deliver.Duration
	for range 50 {
		later = append(later, deliver.Duration(2*time.Second))
	}
	cfg.Retry.Faults = map[deliver.Fault]deliver.Rule{deliver.FaultRefused: {Schedule: later}}
	r.publishKeys(deliver.ByKey, keys, 0, n)
	w := r.start("a", cfg, s)
	full := func(times uint64) {
		t.Helper()
		waitFor(t, "the retry lane is full", func() bool {
			return r.stored(broker.StreamOps)[broker.Ops(broker.Instance(), "subscriber.retries-full.a")] >= times
		})
		if got := len(r.stored(broker.StreamRetry)); got < most/2 || got > most+margin {
			t.Errorf("%d subjects are on the retry lane, want %d to %d", got, most/2, most+margin)
		}
		if got := r.unsettled("a"); got < n-most-margin {
			t.Errorf("%d of %d events are still in the stream, want %d at least", got, n, n-most-margin)
		}
	}
	full(1)
	// The next one finds as many there, and in order.
	w.Stop(time.Second)
	r.start("a", cfg, s)
	full(2)
	wanted.Store(true)
	r.atRest(n)
	if found := check.first(); found != "" {
		t.Error("overtaken", found)
	}
}

// TestOrderIsGivenUp changes a subscriber from key to none while events wait
// behind others: they must not be left there.
func TestOrderIsGivenUp(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	down := true
	s := newSender(func(context.Context, *event.Event, int) deliver.Attempt {
		mu.Lock()
		defer mu.Unlock()
		if down {
			return deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultServer, Reason: "HTTP 500"}
		}
		return deliver.Attempt{Outcome: deliver.Delivered}
	})
	cfg := orderedConfig(deliver.ByKey)
	cfg.Breaker.Failures, cfg.Breaker.Ratio = 1000, 1
	w := r.start("a", cfg, s)
	r.publishKeys(deliver.ByKey, 1, 0, 50)
	waitFor(t, "events behind others", func() bool { return len(r.stored(broker.StreamRetry)) == 50 })
	w.Stop(time.Second)
	mu.Lock()
	down = false
	mu.Unlock()
	cfg.Ordering = deliver.Unordered
	r.start("a", cfg, s)
	r.atRest(50)
}
