package deliver

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
)

// eventually polls until done says so.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !done(); {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
		time.Sleep(5 * time.Millisecond) // sleep: polling with a deadline
	}
}

func openBoard(t *testing.T, b *broker.Broker) *Board {
	t.Helper()
	d, err := NewBoard(t.Context(), b, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// onBoard makes a breaker that shows, with long pauses unless somebody ends
// them.
func onBoard(t *testing.T, d *Board, rampUp Duration) *breaker {
	t.Helper()
	cfg := breakerConfig()
	cfg.OpenFor, cfg.MaxOpenFor, cfg.RampUp = Duration(time.Hour), Duration(time.Hour), rampUp
	b := newBreaker(cfg, 8, d, "a", func(BreakerStatus) {})
	t.Cleanup(b.stop)
	return b
}

func states(views []View) string {
	var s strings.Builder
	for _, v := range views {
		s.WriteString(v.Status.State + " ")
	}
	return s.String()
}

func TestBoard(t *testing.T) {
	for _, rampUp := range []Duration{None, Duration(time.Hour)} {
		t.Run(fmt.Sprint("ramp ", rampUp), func(t *testing.T) {
			t.Parallel()
			b := brokertest.New(t)
			one, two := openBoard(t, b), openBoard(t, b)
			here, there := onBoard(t, one, rampUp), onBoard(t, two, rampUp)

			for range 5 {
				here.attempt(t, busy)
			}
			eventually(t, "the other's view", func() bool { return states(two.Views("a")) == "open " })
			v := two.Views("a")[0]
			if v.Instance != broker.Instance() || v.Status.Failures != 5 || v.Status.LastError != busy.Reason || v.Status.NextProbe == nil {
				t.Errorf("got %+v", v)
			}
			if n := len(one.Views("a")) + len(two.Views("b")); n != 0 {
				t.Errorf("%d views too many: its own, or of another subscriber", n)
			}
			// There one failure is enough, because here there were five.
			there.attempt(t, busy)
			there.wantState(t, BreakerOpen)
			eventually(t, "both views", func() bool { return states(one.Views("a")) == "open " })

			// When one recovers, the other tries at once, and not in an hour.
			here.retryNow()
			here.probeNext(t, delivered)
			there.probeNext(t, delivered)
			if s := here.status(); !s.Flowing() {
				t.Errorf("got %+v", s)
			}
			want := map[bool]string{true: "", false: "ramping-up "}[rampUp == None]
			eventually(t, "closed views", func() bool { return states(one.Views("a")) == want && states(two.Views("a")) == want })
			// And then one failure is one failure.
			there.attempt(t, busy)
			if !there.closed() {
				t.Error("opened by one failure though the other has recovered")
			}
		})
	}
}

// A replica that goes away has not found the subscriber well.
func TestBoardProcessEnds(t *testing.T) {
	b := brokertest.New(t)
	one, two := openBoard(t, b), openBoard(t, b)
	here, there := onBoard(t, one, None), onBoard(t, two, None)
	for range 5 {
		here.attempt(t, busy)
	}
	eventually(t, "the other's view", func() bool { return states(two.Views("a")) == "open " })
	there.attempt(t, busy)
	there.wantState(t, BreakerOpen)
	// A worker that is replaced takes its view away, and a process all of its.
	here.stop()
	eventually(t, "no view", func() bool { return len(two.Views("a")) == 0 })
	here = onBoard(t, one, None)
	here.attempt(t, busy) // because of what is there
	here.wantState(t, BreakerOpen)
	eventually(t, "the next one's view", func() bool { return states(two.Views("a")) == "open " })
	closed := time.Now()
	one.Close()
	eventually(t, "no view", func() bool { return len(two.Views("a")) == 0 })
	if took := time.Since(closed); took > boardExpiry*2/3 {
		t.Errorf("gone after %v: it was left to expire", took)
	}
	if s := there.wantState(t, BreakerOpen); s.Trips != 1 || s.NextProbe == nil || time.Until(*s.NextProbe) < 50*time.Minute {
		t.Errorf("it did not stay as it was: %+v", s)
	}
}

// What is written stays as long as it is renewed, and goes when it is closed.
func TestBoardRenews(t *testing.T) {
	b := brokertest.New(t)
	kv, err := b.JetStream().KeyValue(t.Context(), broker.BucketBreakers)
	if err != nil {
		t.Fatal(err)
	}
	d := newBoard() // writes when it is told
	br := onBoard(t, d, None)
	write := func(renew bool) {
		t.Helper()
		if err := d.write(t.Context(), kv, renew); err != nil {
			t.Fatal(err)
		}
	}
	revision := func() uint64 {
		t.Helper()
		e, err := kv.Get(t.Context(), d.key("a"))
		if err != nil {
			return 0
		}
		return e.Revision()
	}
	write(true)
	write(false)
	if s, err := kv.Status(t.Context()); err != nil || s.Values() != 0 {
		t.Errorf("a closed breaker writes (%v)", err)
	}
	for range 5 {
		br.attempt(t, busy)
	}
	write(false)
	first := revision()
	write(false)
	if r := revision(); first == 0 || r != first {
		t.Errorf("revisions %d and %d, want one and the same", first, r)
	}
	write(true)
	if r := revision(); r <= first {
		t.Error("not renewed")
	}
	br.retryNow()
	br.probeNext(t, delivered)
	write(false)
	if e, err := kv.Get(t.Context(), d.key("a")); err != nil || e.Revision() <= first {
		t.Errorf("the recovery is not written (%v)", err)
	}
	write(true)
	if r := revision(); r != 0 {
		t.Error("a closed one is not taken off")
	}
	s, err := kv.Status(t.Context())
	if err != nil || s.TTL() != boardExpiry || boardExpiry < 2*boardRenew {
		t.Errorf("entries live for %v (%v), want %v, in which they are renewed every %v", s.TTL(), err, boardExpiry, boardRenew)
	}
}

// view is what another process would have written.
func view(t *testing.T, d *Board, process, state string) {
	t.Helper()
	d.read("a."+process, fmt.Appendf(nil, `{"instance":"host","status":{"state":%q}}`, state), true)
}

func TestBoardAdvice(t *testing.T) {
	bubble := func(name string, f func(t *testing.T, d *Board, b *breaker)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newBoard()
				b := onBoard(t, d, None)
				time.Sleep(time.Second) // sleep: the bubble's clock
				f(t, d, b)
			})
		})
	}
	bubble("expired", func(t *testing.T, d *Board, b *breaker) {
		view(t, d, "p", BreakerOpen)
		if len(d.Views("a")) != 1 {
			t.Error("not seen")
		}
		time.Sleep(boardExpiry) // sleep: the bubble's clock
		if len(d.Views("a")) != 0 {
			t.Error("seen though nobody renews it")
		}
		b.attempt(t, busy)
		b.wantState(t, BreakerClosed)
		d.expire()
		if len(d.seen) != 0 {
			t.Error("kept though expired")
		}
	})
	bubble("half open is still open", func(t *testing.T, d *Board, b *breaker) {
		view(t, d, "p", BreakerHalfOpen)
		b.attempt(t, busy)
		b.wantState(t, BreakerOpen)
	})
	bubble("misconfigured there is no reason to open here", func(t *testing.T, d *Board, b *breaker) {
		view(t, d, "p", BreakerMisconfigured)
		b.attempt(t, busy)
		b.wantState(t, BreakerClosed)
		// But no event more needs to be refused to know of the configuration.
		if !b.attempt(t, denied) {
			t.Error("not parked")
		}
		b.wantState(t, BreakerMisconfigured)
	})
	bubble("open there is no reason to park here", func(t *testing.T, d *Board, b *breaker) {
		view(t, d, "p", BreakerOpen)
		if b.attempt(t, denied) {
			t.Error("parked")
		}
		b.wantState(t, BreakerClosed)
	})
	bubble("what was taken here since speaks against it", func(t *testing.T, d *Board, b *breaker) {
		view(t, d, "p", BreakerOpen)
		time.Sleep(time.Second) // sleep: the bubble's clock
		b.attempt(t, delivered)
		time.Sleep(time.Second) // sleep: the bubble's clock
		// Its own way there may be broken; each renewal says the same.
		view(t, d, "p", BreakerHalfOpen)
		view(t, d, "p", BreakerOpen)
		for range 4 {
			b.attempt(t, busy)
			b.wantState(t, BreakerClosed)
		}
		b.attempt(t, busy)
		b.wantState(t, BreakerOpen)
	})
	bubble("found down again", func(t *testing.T, d *Board, b *breaker) {
		view(t, d, "p", BreakerOpen)
		time.Sleep(time.Second) // sleep: the bubble's clock
		b.attempt(t, delivered)
		view(t, d, "p", BreakerRampingUp)
		time.Sleep(time.Second) // sleep: the bubble's clock
		view(t, d, "p", BreakerOpen)
		b.attempt(t, busy)
		b.wantState(t, BreakerOpen)
	})
	bubble("gone is not recovered", func(t *testing.T, d *Board, b *breaker) {
		view(t, d, "p", BreakerOpen)
		b.attempt(t, busy)
		d.read("a.p", nil, false)
		view(t, d, "p", BreakerClosed) // nor is one that was not known to be down
		view(t, d, "q", BreakerRampingUp)
		d.read("a.r", []byte(`{"status":`), true)
		d.read("a.r", []byte(`{}`), true)
		d.read("odd", nil, true)
		if s := b.wantState(t, BreakerOpen); time.Until(*s.NextProbe) < time.Minute {
			t.Errorf("it probes: %+v", s)
		}
	})
	bubble("recovered while it was away", func(t *testing.T, d *Board, b *breaker) {
		view(t, d, "p", BreakerMisconfigured)
		view(t, d, "p", BreakerOpen)
		b.attempt(t, busy)
		view(t, d, "p", BreakerClosed)
		began := time.Now()
		b.probeNext(t, delivered)
		if time.Since(began) > time.Second {
			t.Errorf("it waited %v", time.Since(began))
		}
	})
}

// Without the broker everything goes on as if there were no board, at once; and
// the board comes back with it, though its bucket, in memory, is gone.
func TestBoardWithoutBroker(t *testing.T) {
	s := brokertest.NewServer(t)
	b := s.Connect()
	one, two := openBoard(t, b), openBoard(t, s.Connect())
	here, there := onBoard(t, one, None), onBoard(t, two, None)
	for range 5 {
		here.attempt(t, busy)
	}
	eventually(t, "the other's view", func() bool { return states(two.Views("a")) == "open " })
	s.Stop()

	began := time.Now()
	here.retryNow()
	here.probeNext(t, delivered)
	here.wantState(t, BreakerClosed)
	for range 5 {
		here.attempt(t, busy)
	}
	here.wantState(t, BreakerOpen)
	there.attempt(t, delivered)
	for range 4 {
		there.attempt(t, busy)
	}
	there.wantState(t, BreakerClosed)
	there.attempt(t, busy)
	there.wantState(t, BreakerOpen)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the breakers were held up for %v", took)
	}

	s.Start()
	eventually(t, "the views again", func() bool {
		return states(one.Views("a")) == "open " && states(two.Views("a")) == "open " && hasEntries(t, b, 2)
	})
	here.retryNow()
	here.probeNext(t, delivered)
	there.probeNext(t, delivered)
}

func hasEntries(t *testing.T, b *broker.Broker, n int) bool {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	kv, err := b.JetStream().KeyValue(ctx, broker.BucketBreakers)
	if err != nil {
		return false
	}
	keys, err := kv.Keys(ctx, jetstream.MetaOnly())
	return err == nil && len(keys) == n
}

// Close returns soon when there is nobody to take anything off.
func TestBoardCloseWithoutBroker(t *testing.T) {
	s := brokertest.NewServer(t)
	d := openBoard(t, s.Connect())
	b := onBoard(t, d, None)
	for range 5 {
		b.attempt(t, busy)
	}
	s.Stop()
	began := time.Now()
	d.Close()
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestNewBoardRefuses(t *testing.T) {
	b := brokertest.New(t)
	if err := b.JetStream().DeleteKeyValue(t.Context(), broker.BucketBreakers); err != nil {
		t.Fatal(err)
	}
	if d, err := NewBoard(t.Context(), b, slog.New(slog.DiscardHandler)); err == nil {
		d.Close()
		t.Error("joined a board that is not there")
	}
	var none *Board
	none.Close()
	if none.Views("a") != nil || none.sees("a", BreakerOpen, time.Time{}) {
		t.Error("a nil Board sees something")
	}
}
