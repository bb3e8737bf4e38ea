package deliver_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// startWith starts a worker of a subscriber that is more than a configuration.
func (r *rig) startWith(sub deliver.Subscriber) *deliver.Worker {
	r.t.Helper()
	if err := sub.Config.Validate("subscribers." + sub.Name); err != nil {
		r.t.Fatal(err)
	}
	w, err := deliver.Start(r.t.Context(), sub, r.parts)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { w.Stop(time.Second) })
	return w
}

// batchSender takes batches.
type batchSender struct {
	*fakeSender
	mu      sync.Mutex
	sizes   []int
	respond func(ids []string) deliver.Attempt
}

func (s *batchSender) SendBatch(_ context.Context, events []*event.Event) deliver.Attempt {
	var ids []string
	for _, e := range events {
		ids = append(ids, e.ID)
	}
	a := s.respond(ids)
	s.mu.Lock()
	s.sizes = append(s.sizes, len(events))
	s.mu.Unlock()
	if a.Outcome == deliver.Delivered {
		s.fakeSender.mu.Lock()
		for _, id := range ids {
			s.got[id]++
		}
		s.fakeSender.mu.Unlock()
	}
	return a
}

func TestBatches(t *testing.T) {
	r := newRig(t)
	r.publish(0, 95)
	s := &batchSender{fakeSender: newSender(ok), respond: func([]string) deliver.Attempt { return deliver.Attempt{Outcome: deliver.Delivered, Status: 200} }}
	cfg := fastConfig()
	cfg.Limits.Batch = deliver.Batch{Events: 10, Linger: deliver.Duration(100 * time.Millisecond)}
	r.start("a", cfg, s)
	waitFor(t, "all events", func() bool { got, _ := s.count(); return got == 95 })
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sizes) > 15 {
		t.Errorf("95 events came in %d batches %v, want about 10", len(s.sizes), s.sizes)
	}
	for _, n := range s.sizes {
		if n > 10 {
			t.Errorf("a batch has %d events, want at most 10", n)
		}
	}
	waitFor(t, "the records", func() bool { return r.settled(deliver.RecordDelivered) == 95 })
}

// TestOneBadEventInABatch wants it alone to become a dead letter.
func TestOneBadEventInABatch(t *testing.T) {
	r := newRig(t)
	r.publish(0, 20)
	s := &batchSender{fakeSender: newSender(ok), respond: func(ids []string) deliver.Attempt {
		if slices.Contains(ids, "7") {
			return deliver.Attempt{Outcome: deliver.Rejected, Fault: deliver.FaultRefused, Status: 422, Reason: "HTTP 422"}
		}
		return deliver.Attempt{Outcome: deliver.Delivered}
	}}
	cfg := fastConfig()
	cfg.Limits.Batch = deliver.Batch{Events: 20, Linger: deliver.Duration(200 * time.Millisecond)}
	r.start("a", cfg, s)
	waitFor(t, "the others", func() bool { return r.settled(deliver.RecordDelivered) == 19 })
	waitFor(t, "the dead letter", func() bool { return r.settled(deliver.RecordDeadLetter) == 1 })
	for _, rec := range r.records() {
		if rec.Outcome == deliver.RecordDeadLetter && (rec.ID != "7" || rec.Cause != "rejected" || len(rec.Earlier) == 0) {
			t.Errorf("got %+v, want event 7 with the refusal of its batch among the attempts", rec)
		}
	}
}

func TestBatchesNeedASenderForThem(t *testing.T) {
	r := newRig(t)
	cfg := fastConfig()
	cfg.Limits.Batch.Events = 10
	if err := cfg.Validate("x"); err != nil {
		t.Fatal(err)
	}
	_, err := deliver.Start(t.Context(), deliver.Subscriber{Name: "a", Subjects: []string{"events.>"}, Config: cfg, Sender: newSender(ok)}, r.parts)
	if err == nil || !strings.Contains(err.Error(), "limits.batch") {
		t.Errorf("got %v, want an error that names limits.batch", err)
	}
}

func TestRate(t *testing.T) {
	r := newRig(t)
	r.publish(0, 60)
	s := newSender(ok)
	cfg := fastConfig()
	cfg.Limits.Rate = 100
	begin := time.Now()
	r.start("a", cfg, s)
	waitFor(t, "all events", func() bool { got, _ := s.count(); return got == 60 })
	// Ten go at once, the others take ten milliseconds each.
	if took := time.Since(begin); took < 450*time.Millisecond {
		t.Errorf("60 events at 100/s took %s", took)
	}
}

// limitedSender is one whose destination says how much it takes, from some attempt on.
type limitedSender struct {
	*fakeSender
	rate atomic.Uint64 // a second
}

func (s *limitedSender) Rate() float64 { return float64(s.rate.Load()) }

// What the destination asks for holds as soon as it is known, and never lets more
// through than the operator does.
func TestRateOfTheDestination(t *testing.T) {
	for name, tt := range map[string]struct {
		own   deliver.Rate
		asked uint64
	}{"asked for": {0, 100}, "own is lower": {100, 100000}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.publish(0, 60)
			s := &limitedSender{}
			s.fakeSender = newSender(func(context.Context, *event.Event, int) deliver.Attempt {
				s.rate.Store(tt.asked) // with the first answer
				return deliver.Attempt{Outcome: deliver.Delivered, Status: 200}
			})
			cfg := fastConfig()
			cfg.Limits.Rate, cfg.Limits.Concurrency = tt.own, 1
			begin := time.Now()
			r.start("a", cfg, s)
			waitFor(t, "all events", func() bool { got, _ := s.count(); return got == 60 })
			// Some ten go at once, the others take ten milliseconds each.
			if took := time.Since(begin); took < 400*time.Millisecond {
				t.Errorf("60 events at 100/s took %s", took)
			}
		})
	}
}

func TestFilterAndTransform(t *testing.T) {
	r := newRig(t)
	r.publish(0, 12)
	var mu sync.Mutex
	bodies := map[string]string{}
	s := newSender(func(_ context.Context, e *event.Event, _ int) deliver.Attempt {
		mu.Lock()
		defer mu.Unlock()
		bodies[e.ID] = string(e.Data)
		return deliver.Attempt{Outcome: deliver.Delivered}
	})
	r.startWith(deliver.Subscriber{
		Name: "a", Subjects: []string{"events.>"}, Config: fastConfig(), Sender: s,
		Filter: func(e *event.Event) (bool, error) {
			switch e.ID {
			case "3":
				return false, errors.New("no such key: amount")
			case "4":
				var nothing *event.Event
				return nothing.ID == "", nil // panics
			}
			return e.ID != "5" && e.ID != "6", nil
		},
		Transform: func(e *event.Event) (*event.Event, error) {
			if e.ID == "7" {
				return nil, errors.New("two results")
			}
			changed := *e
			changed.Data = []byte(`{"was":1}`)
			return &changed, nil
		},
	})
	waitFor(t, "12 settlements", func() bool {
		return r.settled(deliver.RecordDelivered) == 7 && r.settled(deliver.RecordFiltered) == 2 && r.settled(deliver.RecordDeadLetter) == 3
	})
	causes := map[string]string{}
	for _, rec := range r.records() {
		if rec.Outcome == deliver.RecordDeadLetter {
			causes[rec.ID] = rec.Cause + ", " + rec.Reason
		}
	}
	for id, want := range map[string]string{"3": "filter, the filter fails: no such key: amount", "4": "filter, the filter fails: panic", "7": "transform, the transform fails: two results"} {
		if !strings.HasPrefix(causes[id], want) {
			t.Errorf("event %s: got %q, want %q", id, causes[id], want)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for id, body := range bodies {
		if body != `{"was":1}` {
			t.Errorf("event %s was sent as %s", id, body)
		}
	}
	// The dead letter has the event as it came.
	stream, err := r.b.JetStream().Stream(t.Context(), broker.StreamDeadLetters)
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.GetLastMsgForSubject(t.Context(), broker.DeadLetter("a", "transform"))
	if err != nil || string(m.Data) != "1" || m.Header.Get(deliver.HeaderHop) != "0" {
		t.Errorf("got %+v, %v", m, err)
	}
}

func TestWants(t *testing.T) {
	for _, o := range []deliver.Ordering{deliver.Unordered, deliver.ByKey, deliver.Strict} {
		t.Run(string(o), func(t *testing.T) {
			r := newRig(t)
			r.publishKeys(o, 2, 0, 20)
			s := newSender(ok)
			r.startWith(deliver.Subscriber{
				Name: "a", Subjects: []string{"events.>"}, Config: orderedConfig(o), Sender: s,
				Wants: func(_ string, sequence uint64) bool { return sequence%2 == 0 },
			})
			waitFor(t, "what it wants", func() bool { return r.settled(deliver.RecordDelivered) == 10 && r.unsettled("a") == 0 })
			for _, rec := range r.records() {
				if rec.Sequence%2 == 1 {
					t.Errorf("there is a record of what it does not want: %+v", rec)
				}
			}
		})
	}
}

func TestFaults(t *testing.T) {
	ms := func(n int) deliver.Duration { return deliver.Duration(time.Duration(n) * time.Millisecond) }
	for _, tt := range []struct {
		name   string
		answer deliver.Attempt
		faults map[deliver.Fault]deliver.Rule
		cause  string
		tries  int
	}{
		{"schedule", deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultServer}, nil, "exhausted", 2 + 2},
		{"own schedule", deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultThrottled},
			map[deliver.Fault]deliver.Rule{deliver.FaultThrottled: {Schedule: []deliver.Duration{ms(5)}}}, "exhausted", 2 + 2},
		{"given up", deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultTLS},
			map[deliver.Fault]deliver.Rule{deliver.FaultTLS: {GiveUp: true}}, "given-up", 2},
		{"refused", deliver.Attempt{Outcome: deliver.Rejected, Fault: deliver.FaultRefused}, nil, "rejected", 1},
		{"refused, and tried again", deliver.Attempt{Outcome: deliver.Rejected, Fault: deliver.FaultRefused},
			map[deliver.Fault]deliver.Rule{deliver.FaultRefused: {Schedule: []deliver.Duration{ms(5), ms(5)}}}, "rejected", 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			cfg := fastConfig()
			cfg.Breaker.Failures, cfg.Breaker.Ratio = 100, 1
			cfg.Retry = deliver.Retry{Schedule: []deliver.Duration{ms(10)}, Faults: tt.faults}
			s := newSender(func(context.Context, *event.Event, int) deliver.Attempt { return tt.answer })
			r.start("a", cfg, s)
			r.publish(0, 1)
			waitFor(t, "the dead letter", func() bool { return r.settled(deliver.RecordDeadLetter) == 1 })
			records := r.records()
			last := records[len(records)-1]
			if _, tries := s.count(); last.Cause != tt.cause || tries != tt.tries || last.Attempts != tt.tries || last.Fault != tt.answer.Fault {
				t.Errorf("%d attempts, last record %+v; want %d and cause %s", tries, last, tt.tries, tt.cause)
			}
			// Every attempt is in some record.
			seen := 0
			for _, rec := range records {
				seen += 1 + len(rec.Earlier)
			}
			if seen != tt.tries {
				t.Errorf("records tell of %d attempts, there were %d", seen, tt.tries)
			}
		})
	}
}

func TestMaxAge(t *testing.T) {
	r := newRig(t)
	publish := func(id string, age time.Duration) {
		e := &event.Event{ID: id, Source: "/s", Type: "t", Data: []byte("1"), DataJSON: true, DataContentType: "application/json"}
		e.Set(event.ExtSource, "test")
		e.Set(event.ExtRecordedTime, event.FormatTime(time.Now().Add(-age).UTC()))
		h, body := e.Encode()
		if _, err := r.b.JetStream().PublishMsg(t.Context(), &nats.Msg{Subject: "events.fno.test.usmf.Thing", Header: h, Data: body}); err != nil {
			t.Fatal(err)
		}
	}
	publish("old", time.Hour)
	publish("young", 0)
	publish("from the future", -365*24*time.Hour)
	s := newSender(func(_ context.Context, e *event.Event, _ int) deliver.Attempt {
		if e.ID == "young" {
			return deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultServer, Reason: "HTTP 500"}
		}
		return deliver.Attempt{Outcome: deliver.Delivered}
	})
	cfg := fastConfig()
	cfg.Retry.MaxAge = deliver.Duration(time.Minute)
	cfg.Retry.Schedule = []deliver.Duration{deliver.Duration(10 * time.Millisecond), deliver.Duration(time.Hour)}
	r.start("a", cfg, s)
	waitFor(t, "two dead letters", func() bool {
		return r.settled(deliver.RecordDeadLetter) == 2 && r.settled(deliver.RecordDelivered) == 1
	})
	for _, rec := range r.records() {
		if rec.Outcome == deliver.RecordDeadLetter && (rec.Cause != "expired" || !strings.Contains(rec.Reason, "retry.maxAge is 1m")) {
			t.Errorf("got %+v", rec)
		}
	}
	if _, tries := s.count(); tries < 2 {
		t.Error("the young one was not tried")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tries["old"] > 0 {
		t.Error("the old one was sent")
	}
}

// TestBackAgain wants what failed in an outage to go out when it is over, however
// long it was to wait.
func TestBackAgain(t *testing.T) {
	for _, o := range []deliver.Ordering{deliver.Unordered, deliver.ByKey, deliver.Strict} {
		t.Run(string(o), func(t *testing.T) {
			r := newRig(t)
			var mu sync.Mutex
			down := true
			s := newSender(func(context.Context, *event.Event, int) deliver.Attempt {
				mu.Lock()
				defer mu.Unlock()
				if down {
					return deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultNetwork, Reason: "connection refused"}
				}
				return deliver.Attempt{Outcome: deliver.Delivered}
			})
			cfg := orderedConfig(o)
			cfg.Retry.Schedule = []deliver.Duration{deliver.Duration(20 * time.Millisecond), deliver.Duration(24 * time.Hour)}
			if o == deliver.Unordered {
				cfg.Retry.Schedule = cfg.Retry.Schedule[1:]
			}
			r.start("a", cfg, s)
			r.publishKeys(o, 10, 0, 100)
			waitFor(t, "some failures", func() bool { _, tries := s.count(); return tries >= 6 })
			mu.Lock()
			down = false
			mu.Unlock()
			waitFor(t, fmt.Sprint("all events of order ", o), func() bool { return r.settled(deliver.RecordDelivered) == 100 })
		})
	}
}

// TestForbidden: while our own rules keep us from a subscriber, its events wait,
// however often it is tried, and none is given up.
func TestForbidden(t *testing.T) {
	for _, o := range []deliver.Ordering{deliver.Unordered, deliver.ByKey, deliver.Strict} {
		t.Run(string(o), func(t *testing.T) {
			r := newRig(t)
			var allowed atomic.Bool
			s := newSender(func(context.Context, *event.Event, int) deliver.Attempt {
				if !allowed.Load() {
					return deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultAddress, Reason: "not sent: 10.0.0.1 is a private address"}
				}
				return deliver.Attempt{Outcome: deliver.Delivered}
			})
			cfg := orderedConfig(o)
			cfg.Limits.Concurrency = 1
			// What any other failure would use up at once.
			cfg.Retry = deliver.Retry{
				Schedule: []deliver.Duration{deliver.Duration(time.Millisecond)},
				Faults:   map[deliver.Fault]deliver.Rule{deliver.FaultAddress: {GiveUp: true}},
			}
			w := r.start("a", cfg, s)
			r.publishKeys(o, 10, 0, 20)
			for n := 1; n <= 10; n++ {
				waitFor(t, fmt.Sprintf("attempt %d", n), func() bool { _, tries := s.count(); return tries >= n })
				waitFor(t, "the breaker", func() bool { return w.Breaker().State == deliver.BreakerMisconfigured && w.Breaker().NextProbe != nil })
				if _, tries := s.count(); tries != n {
					t.Fatalf("%d attempts after %d probes", tries, n-1)
				}
				if n == 10 {
					allowed.Store(true)
				}
				w.RetryNow()
			}
			waitFor(t, "all events", func() bool { return r.settled(deliver.RecordDelivered) == 20 })
			if n := r.settled(deliver.RecordDeadLetter); n != 0 {
				t.Errorf("%d dead letters", n)
			}
		})
	}
}
