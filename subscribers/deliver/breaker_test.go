package deliver

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
)

var (
	delivered = Attempt{Outcome: Delivered, Status: 200}
	refused   = Attempt{Outcome: Rejected, Fault: FaultRefused, Status: 422, Reason: "HTTP 422: no such order"}
	denied    = Attempt{Outcome: Rejected, Fault: FaultAccess, Status: 401, Reason: "HTTP 401: who are you"}
	nowhere   = Attempt{Outcome: Rejected, Fault: FaultAddress, Status: 404, Reason: "HTTP 404"}
	busy      = Attempt{Outcome: Failed, Fault: FaultServer, Status: 503, Reason: "HTTP 503: come back later"}
	timedOut  = Attempt{Outcome: Failed, Fault: FaultTimeout, Reason: "timed out after 30s"}
	aborted   = Attempt{Outcome: Aborted, Reason: "stopped"}
	unasked   = Attempt{Outcome: Rejected, Fault: FaultHandshake, Status: 405, Reason: "handshake refused, HTTP 405: no"}
	forbidden = Attempt{Outcome: Failed, Fault: FaultAddress, Reason: "not sent: 10.0.0.1 is a private address"}
)

// letters are attempts in the tables below.
var letters = map[rune]Attempt{
	'd': delivered, 'r': refused, 'x': denied, 'n': nowhere, 'f': busy, 't': timedOut, 'a': aborted, 'h': unasked, 'z': forbidden,
}

func breakerConfig() Breaker {
	c := Config{Breaker: Breaker{RampUp: None}}
	if err := c.Validate("test"); err != nil {
		panic(err) // panic: the test itself is wrong
	}
	return c.Breaker
}

// An event that was not sent for want of an agreement waits, whatever the breaker
// has come to meanwhile.
func TestNoAgreement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := testBreaker(t, breakerConfig())
		late, ok := b.allow(false)
		if !ok {
			t.Fatal("not allowed")
		}
		for range 5 {
			b.attempt(t, busy)
		}
		b.wantState(t, BreakerOpen)
		if !late.report(unasked) {
			t.Error("a late refusal of the handshake does not park its event")
		}
		b.wantState(t, BreakerOpen)
		time.Sleep(11*time.Second + time.Millisecond) // sleep: the bubble's clock
		if !b.probeNext(t, unasked) {
			t.Error("nor does that of a probe")
		}
		b.wantState(t, BreakerMisconfigured)
		time.Sleep(misconfigEvery*11/10 + time.Second) // sleep: the bubble's clock
		if b.probeNext(t, delivered) {
			t.Error("a delivery parks")
		}
		b.wantState(t, BreakerClosed)
	})
}

// changes are the states that onChange was told.
type changes struct {
	mu     sync.Mutex
	states []string
}

func (c *changes) add(s BreakerStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.states = append(c.states, s.State)
}

func (c *changes) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.states)
}

func (c *changes) want(t *testing.T, want ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := cmp.Diff(want, c.states); d != "" {
		t.Errorf("changes told (-want +got):\n%s", d)
	}
}

func testBreaker(t *testing.T, cfg Breaker) (*breaker, *changes) {
	c := &changes{}
	b := newBreaker(cfg, 8, nil, "a", c.add)
	t.Cleanup(b.stop)
	return b, c
}

// attempt makes one that must be allowed.
func (b *breaker) attempt(t *testing.T, a Attempt) (park bool) {
	t.Helper()
	p, ok := b.allow(false)
	if !ok {
		t.Fatalf("no attempt allowed: %s", b.status().Words(time.Now()))
	}
	return p.report(a)
}

// probeNext waits for the right to probe and tries once.
func (b *breaker) probeNext(t *testing.T, a Attempt) (park bool) {
	t.Helper()
	_, probing, done, err := b.turn(t.Context())
	if err != nil || !probing {
		t.Fatalf("turn: probing %v, %v", probing, err)
	}
	defer done()
	if _, ok := b.allow(false); ok {
		t.Error("an attempt without the right to probe was allowed")
	}
	p, ok := b.allow(true)
	if !ok || !p.probe {
		t.Fatalf("no probe allowed at %s", b.status().Words(time.Now()))
	}
	if _, ok := b.allow(true); ok {
		t.Error("a second probe beside the first was allowed")
	}
	return p.report(a)
}

func (b *breaker) wantState(t *testing.T, want string) BreakerStatus {
	t.Helper()
	s := b.status()
	if s.State != want {
		t.Errorf("it is %s (%s), want %s", s.State, s.Words(time.Now()), want)
	}
	return s
}

func TestBreakerOpens(t *testing.T) {
	tests := []struct {
		name     string
		attempts string
		want     string
		words    string
	}{
		{"four failures", "ffff", BreakerClosed, "closed, 4 × HTTP 503"},
		{"five failures", "ffftf", BreakerOpen, "open 1 s, 4 × HTTP 503, 1 × timed out, next probe in 10 s"},
		{"a success between", "ffffdffff", BreakerClosed, "closed, 4 × HTTP 503"},
		{"a refusal between", "ffffrffff", BreakerClosed, "closed, 4 × HTTP 503"},
		{"aborted ones say nothing", "ffffaaaaf", BreakerOpen, "open 1 s, 5 × HTTP 503, next probe in 10 s"},
		{"half of nine", "fdfdfdfdf", BreakerClosed, "closed, 1 × HTTP 503"},
		{"half of ten", "dfdfdfdfdf", BreakerOpen, "open 1 s, 5 × HTTP 503, next probe in 10 s"},
		{"less than half", "ddfddfddfddfddfddfddf", BreakerClosed, "closed, 1 × HTTP 503"},
		{"aborted ones do not count as attempts", "aafadaafaadaaafdaaa", BreakerClosed, "closed"},
		{"only refusals of events", "rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr", BreakerClosed, "closed"},
		{"nineteen of access", "xnxnxnxnxnxnxnxnxnx", BreakerClosed, "closed"},
		{"twenty of access", "xnxnxnxnxnxnxnxnxnxn", BreakerMisconfigured, "misconfigured 1 s, 10 × HTTP 401, 10 × HTTP 404, next probe in 5 min"},
		{"a delivery between", "xxxxxxxxxxxxxxxxxxxdxxxxxxxxxxxxxxxxxxx", BreakerClosed, "closed"},
		{"another refusal between", "xxxxxxxxxxxxxxxxxxxrxxxxxxxxxxxxxxxxxxx", BreakerClosed, "closed"},
		{"without an agreement", "ddfh", BreakerMisconfigured, "misconfigured 1 s, 1 × handshake refused, HTTP 405, next probe in 5 min"},
		{"one that may not be reached", "ddz", BreakerMisconfigured, "misconfigured 1 s, 1 × not sent: 10.0.0.1 is a private address, next probe in 5 min"},
		// It does not say that the key is right.
		{"a time-out between", "xxxxxxxxxxxxxxxxxxxtx", BreakerMisconfigured, "misconfigured 1 s, 20 × HTTP 401, next probe in 5 min"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, told := testBreaker(t, breakerConfig())
				var want []string
				for i, l := range tt.attempts {
					park := b.attempt(t, letters[l])
					last := i == len(tt.attempts)-1
					if park != (last && tt.want == BreakerMisconfigured) {
						t.Errorf("attempt %d: park is %v", i+1, park)
					}
					if !last && !b.closed() {
						t.Fatalf("not closed after attempt %d", i+1)
					}
				}
				s := b.wantState(t, tt.want)
				if tt.want != BreakerClosed {
					want = []string{tt.want}
				}
				told.want(t, want...)
				// Jitter makes 9 to 11 s of 10: not what this is about.
				if s.NextProbe != nil {
					round := 10 * time.Second
					if tt.want == BreakerMisconfigured {
						round = misconfigEvery
					}
					if d := time.Until(*s.NextProbe); d < round*9/10 || d > round*11/10+time.Millisecond {
						t.Errorf("next probe in %v, want %v ± 10 %%", d, round)
					}
					at := time.Now().Add(round)
					s.NextProbe = &at
				}
				if got := s.Words(time.Now()); got != tt.words {
					t.Errorf("got %q\nwant %q", got, tt.words)
				}
			})
		})
	}
}

// The window forgets, and it counts attempts when they end: those that time out
// only after it would not count at all otherwise.
func TestBreakerWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := breakerConfig()
		b, _ := testBreaker(t, cfg)
		for range 4 {
			b.attempt(t, busy)
			b.attempt(t, delivered)
		}
		time.Sleep(cfg.Window.Std() + time.Millisecond) // sleep: the bubble's clock
		for range 4 {
			b.attempt(t, busy)
			b.attempt(t, delivered)
		}
		b.wantState(t, BreakerClosed)
		b.attempt(t, busy)
		b.wantState(t, BreakerClosed)
		b.attempt(t, delivered)
		b.attempt(t, busy)
		if s := b.wantState(t, BreakerOpen); s.Failures != 6 {
			t.Errorf("%d failures, want the 6 of the window", s.Failures)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		cfg := breakerConfig()
		b, _ := testBreaker(t, cfg)
		slow := func(a Attempt) {
			p, ok := b.allow(false)
			if !ok {
				t.Fatal("not allowed")
			}
			time.Sleep(2 * cfg.Window.Std()) // sleep: the bubble's clock
			p.report(a)
		}
		for range 4 {
			slow(timedOut)
		}
		b.wantState(t, BreakerClosed)
		slow(timedOut)
		if s := b.wantState(t, BreakerOpen); s.Failures != 5 {
			t.Errorf("%d failures, want 5", s.Failures)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		b, _ := testBreaker(t, breakerConfig())
		var permits []permit
		for range 10 {
			p, _ := b.allow(false)
			permits = append(permits, p)
		}
		time.Sleep(time.Hour) // sleep: the bubble's clock
		for i, p := range permits {
			p.report(map[bool]Attempt{true: delivered, false: timedOut}[i%2 == 0])
		}
		b.wantState(t, BreakerOpen)
	})
}

func TestBreakerPauseGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, told := testBreaker(t, breakerConfig())
		for range 5 {
			b.attempt(t, busy)
		}
		opened := time.Now()
		different := map[time.Duration]bool{}
		for i, want := range []time.Duration{10, 20, 40, 80, 160, 300, 300, 300, 300} {
			want *= time.Second
			s := b.wantState(t, BreakerOpen)
			if s.Trips != i+1 || s.Failures != 5+i || !s.Since.Equal(opened.Round(0)) {
				t.Errorf("probe %d: %+v", i, s)
			}
			began := time.Now()
			_, probing, done, err := b.turn(t.Context())
			if !probing || err != nil {
				t.Fatal(probing, err)
			}
			took := time.Since(began)
			different[took/want] = true
			if took < want*9/10 || took > want*11/10+time.Millisecond {
				t.Errorf("pause %d is %v, want %v ± 10 %%", i+1, took, want)
			}
			b.wantState(t, BreakerHalfOpen)
			p, ok := b.allow(true)
			if !ok {
				t.Fatal("half open, and no probe")
			}
			p.report(busy)
			done()
		}
		b.probeNext(t, delivered)
		b.wantState(t, BreakerClosed)
		told.want(t, BreakerOpen, BreakerClosed)
		for range 5 {
			b.attempt(t, busy)
		}
		if s := b.status(); s.Trips != 1 || time.Until(*s.NextProbe) > 12*time.Second {
			t.Errorf("after a recovery the pause begins anew: %+v", s)
		}
	})
}

func TestBreakerJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := map[time.Time]bool{}
		for range 20 {
			b, _ := testBreaker(t, breakerConfig())
			for range 5 {
				b.attempt(t, busy)
			}
			at[*b.status().NextProbe] = true
		}
		if len(at) < 10 {
			t.Errorf("20 breakers probe at %d times", len(at))
		}
	})
}

// What a subscriber asks for is honoured, within what is allowed.
func TestBreakerRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for asked, want := range map[time.Duration]time.Duration{
			time.Second: 10 * time.Second, time.Minute: time.Minute, time.Hour: 5 * time.Minute,
		} {
			b, _ := testBreaker(t, breakerConfig())
			a := busy
			a.RetryAfter = asked
			for range 5 {
				b.attempt(t, a)
			}
			if got := time.Until(*b.status().NextProbe); got < want*9/10 || got > want*11/10+time.Millisecond {
				t.Errorf("asked for %v: next probe in %v, want about %v", asked, got, want)
			}
		}
	})
}

func TestBreakerProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := breakerConfig()
		cfg.Probes = 3
		b, told := testBreaker(t, cfg)
		for range 5 {
			b.attempt(t, busy)
		}
		for _, probes := range []string{"ddf", "rf", "f"} {
			for _, l := range probes {
				b.probeNext(t, letters[l])
				if b.closed() {
					t.Fatalf("closed amid %s", probes)
				}
			}
			b.wantState(t, BreakerOpen)
		}
		for _, l := range "aadaaaraa" {
			b.probeNext(t, letters[l])
			b.wantState(t, BreakerHalfOpen)
		}
		b.probeNext(t, delivered)
		b.wantState(t, BreakerClosed)
		told.want(t, BreakerOpen, BreakerClosed)
	})
}

func TestBreakerLateAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, told := testBreaker(t, breakerConfig())
		var late []permit
		for range 30 {
			p, _ := b.allow(false)
			late = append(late, p)
		}
		report := func(a Attempt) {
			t.Helper()
			before := b.status()
			for range 5 {
				if late[0].report(a) {
					t.Error("a late answer parks its event")
				}
				late = late[1:]
			}
			if d := cmp.Diff(before, b.status()); d != "" {
				t.Errorf("late answers changed (-before +after):\n%s", d)
			}
		}
		for range 5 {
			b.attempt(t, busy)
		}
		report(delivered)
		report(busy)
		report(denied)
		b.probeNext(t, delivered)
		b.wantState(t, BreakerClosed)
		report(busy)
		report(aborted)
		told.want(t, BreakerOpen, BreakerClosed)
		// Nor does the one that was late make the next round's count.
		for range 4 {
			b.attempt(t, busy)
		}
		report(busy)
		b.wantState(t, BreakerClosed)
	})
}

func TestBreakerMisconfigured(t *testing.T) {
	// park makes twenty refusals, with three attempts in flight at the last.
	parked := func(t *testing.T) (*breaker, *changes, []permit) {
		b, told := testBreaker(t, breakerConfig())
		var flying []permit
		for range 3 {
			p, _ := b.allow(false)
			flying = append(flying, p)
		}
		for i := range maxRefusals {
			if park := b.attempt(t, denied); park != (i == maxRefusals-1) {
				t.Errorf("refusal %d: park is %v", i+1, park)
			}
		}
		b.wantState(t, BreakerMisconfigured)
		return b, told, flying
	}
	t.Run("in flight", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, _, flying := parked(t)
			if !flying[0].report(nowhere) || flying[1].report(refused) || flying[2].report(busy) {
				t.Error("only refusals of that kind wait with the others")
			}
			if s := b.wantState(t, BreakerMisconfigured); s.Failures != maxRefusals || s.LastError != denied.Reason {
				t.Errorf("got %+v", s)
			}
		})
	})
	t.Run("probes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, told, _ := parked(t)
			for range 3 {
				began := time.Now()
				if !b.probeNext(t, denied) {
					t.Error("a refused probe is no dead letter")
				}
				if d := time.Since(began); d < misconfigEvery*9/10 || d > misconfigEvery*11/10+time.Millisecond {
					t.Errorf("probed after %v, want %v ± 10 %%", d, misconfigEvery)
				}
				b.wantState(t, BreakerMisconfigured)
			}
			began := time.Now()
			b.retryNow()
			if b.probeNext(t, delivered) || time.Since(began) > time.Second {
				t.Errorf("an operator waited %v", time.Since(began))
			}
			b.wantState(t, BreakerClosed)
			told.want(t, BreakerMisconfigured, BreakerClosed)
			for range maxRefusals - 1 {
				if b.attempt(t, denied) {
					t.Error("the count did not begin anew")
				}
			}
		})
	})
	t.Run("another refusal ends it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, told, _ := parked(t)
			if b.probeNext(t, refused) {
				t.Error("a refusal of this event parks it")
			}
			told.want(t, BreakerMisconfigured, BreakerClosed)
		})
	})
	t.Run("a failure makes it an ordinary open one", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, told, _ := parked(t)
			b.probeNext(t, busy)
			s := b.wantState(t, BreakerOpen)
			if s.Trips != 1 || s.Failures != 1 || time.Until(*s.NextProbe) > 12*time.Second {
				t.Errorf("got %+v", s)
			}
			b.probeNext(t, timedOut)
			b.wantState(t, BreakerOpen)
			// And nineteen more events are not lost when it is up and the key still wrong.
			if !b.probeNext(t, denied) {
				t.Error("the probe was not parked")
			}
			b.wantState(t, BreakerMisconfigured)
			told.want(t, BreakerMisconfigured, BreakerOpen, BreakerMisconfigured)
		})
	})
	t.Run("aborted probes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, _, _ := parked(t)
			for range 10 {
				b.probeNext(t, aborted)
				b.wantState(t, BreakerMisconfigured)
			}
			b.probeNext(t, delivered)
			b.wantState(t, BreakerClosed)
		})
	})
	t.Run("while half open", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, _ := testBreaker(t, breakerConfig())
			for range maxRefusals - 1 {
				b.attempt(t, denied)
			}
			for range 5 {
				b.attempt(t, busy)
			}
			b.wantState(t, BreakerOpen)
			if !b.probeNext(t, denied) {
				t.Error("the twentieth was not parked")
			}
			b.wantState(t, BreakerMisconfigured)
		})
	})
}

func TestBreakerRetryNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, told := testBreaker(t, breakerConfig())
		b.retryNow() // closed: nothing to do
		b.wantState(t, BreakerClosed)
		for range 5 {
			b.attempt(t, busy)
		}
		got := make(chan time.Time)
		go func() {
			_, _, done, err := b.turn(t.Context())
			if err == nil {
				done()
			}
			got <- time.Now()
		}()
		synctest.Wait()
		asked := time.Now()
		b.retryNow()
		if d := (<-got).Sub(asked); d > 10*time.Millisecond {
			t.Errorf("a turn under way waited %v more", d)
		}
		b.retryNow() // half open: it may go already
		p, ok := b.allow(true)
		if !ok {
			t.Fatal("no probe")
		}
		b.retryNow() // a probe is under way: its answer counts
		p.report(busy)
		s := b.wantState(t, BreakerOpen)
		if d := time.Until(*s.NextProbe); s.Trips != 2 || d < 18*time.Second {
			t.Errorf("the pause did not go on growing: %v, %+v", d, s)
		}
		told.want(t, BreakerOpen)
	})
}

// What failed before a recovery is not held against it after.
func TestBreakerForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := testBreaker(t, breakerConfig())
		for range 5 {
			b.attempt(t, busy)
		}
		b.retryNow()
		b.probeNext(t, delivered)
		for _, a := range []Attempt{busy, delivered, busy, delivered, busy} {
			b.attempt(t, a)
		}
		b.wantState(t, BreakerClosed)
	})
}

// All that wait go on when it closes, not one after another.
func TestBreakerTurnsGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := testBreaker(t, breakerConfig())
		for range 5 {
			b.attempt(t, busy)
		}
		_, _, done, err := b.turn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer done()
		got := make(chan bool, 3)
		for range 3 {
			go func() {
				_, probing, done, err := b.turn(t.Context())
				if err == nil {
					defer done()
				}
				got <- probing
			}()
		}
		synctest.Wait()
		p, ok := b.allow(true)
		if !ok {
			t.Fatal("no probe")
		}
		p.report(delivered)
		synctest.Wait()
		if len(got) != 3 {
			t.Errorf("%d of 3 go on", len(got))
		}
		for range len(got) {
			if <-got {
				t.Error("a closed breaker gave the right to probe")
			}
		}
	})
}

func TestBreakerTurnEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := testBreaker(t, breakerConfig())
		turn, probing, done, err := b.turn(t.Context())
		if probing || err != nil {
			t.Fatal(probing, err)
		}
		defer done()
		for range 5 {
			b.attempt(t, busy)
		}
		synctest.Wait()
		if turn.Err() == nil {
			t.Error("a trip does not end the turn")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, _, err := b.turn(ctx); err == nil {
			t.Error("a turn outlives its context")
		}
		b.probeNext(t, busy)
		// Giving the right to probe back twice does not block.
		_, _, give, err := b.turn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		give()
		give()
	})
}

func TestBreakerStatusJSON(t *testing.T) {
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	got, err := json.Marshal(BreakerStatus{
		State: BreakerOpen, Since: at, NextProbe: &at, Failures: 12, Causes: []Cause{{"HTTP 503", 12}}, LastError: "HTTP 503: no", Trips: 2,
	})
	want := `{"state":"open","since":"2026-11-23T12:00:00Z","nextProbe":"2026-11-23T12:00:00Z","failures":12,` +
		`"causes":[{"reason":"HTTP 503","count":12}],"lastError":"HTTP 503: no","trips":2}`
	if err != nil || string(got) != want {
		t.Errorf("got  %s (%v)\nwant %s", got, err, want)
	}
}

func TestBreakerWords(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) *time.Time { u := now.Add(d); return &u }
	tests := []struct {
		s    BreakerStatus
		want string
	}{
		{BreakerStatus{State: BreakerClosed, Since: now}, "closed"},
		{BreakerStatus{State: BreakerOpen, Since: *at(-4 * time.Minute), NextProbe: at(20 * time.Second), Failures: 12, Causes: []Cause{{"HTTP 503", 12}}},
			"open 4 min, 12 × HTTP 503, next probe in 20 s"},
		{BreakerStatus{State: BreakerHalfOpen, Since: *at(-3 * time.Hour), Failures: 7, Causes: []Cause{{"HTTP 503", 4}, {"timed out", 3}}},
			"half-open 3 h, 4 × HTTP 503, 3 × timed out, probing now"},
		{BreakerStatus{State: BreakerMisconfigured, Since: *at(-72 * time.Hour), NextProbe: at(100 * time.Second), Causes: []Cause{{"a", 4}, {"b", 3}, {"c", 2}, {"d", 1}, {"e", 1}}},
			"misconfigured 3 days, 4 × a, 3 × b, 2 × c, 2 × others, next probe in 100 s"},
		{BreakerStatus{State: BreakerRampingUp, Since: *at(-10 * time.Second), Ramp: &Ramp{Limit: 3, Of: 8}}, "ramping up since 10 s, 3 of 8 attempts at once"},
		// A clock that was set back.
		{BreakerStatus{State: BreakerOpen, Since: *at(time.Hour), NextProbe: at(-time.Hour)}, "open 1 s, next probe in 1 s"},
	}
	for _, tt := range tests {
		if got := tt.s.Words(now); got != tt.want {
			t.Errorf("got  %q\nwant %q", got, tt.want)
		}
	}
}

func TestRoughly(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "1 s", 0: "1 s", 1499 * time.Millisecond: "1 s", 1500 * time.Millisecond: "2 s",
		119400 * time.Millisecond: "119 s", 2 * time.Minute: "2 min", 90*time.Minute + 30*time.Second: "91 min",
		2 * time.Hour: "2 h", 47 * time.Hour: "47 h", 48 * time.Hour: "2 days", 84 * time.Hour: "4 days",
	} {
		if got := Roughly(d); got != want {
			t.Errorf("%v: got %q, want %q", d, got, want)
		}
	}
}

// setClock is what time.Now would have given at t's moment, had the wall clock
// been set forward by d before. Only time itself can do that by its API: this
// writes the seconds of the wall clock and leaves the monotonic reading (Go 1.26,
// src/time/time.go).
func setClock(t time.Time, d time.Duration) time.Time {
	*(*uint64)(unsafe.Pointer(&t)) += uint64(d/time.Second) << 30
	return t
}

// A clock that is set while a breaker is open changes neither its pause nor
// what it says of it.
func TestBreakerClockJump(t *testing.T) {
	for _, jump := range []time.Duration{-time.Hour, 0, time.Hour} {
		b := newBreaker(breakerConfig(), 8, nil, "a", func(BreakerStatus) {})
		for range 5 {
			b.attempt(t, busy)
		}
		before := b.status()
		b.mu.Lock()
		b.since, b.until = setClock(b.since, -jump), setClock(b.until, -jump)
		b.mu.Unlock()
		after := b.wantState(t, BreakerOpen)
		now := time.Now()
		if got, want := after.Words(now), before.Words(now); got != want {
			t.Errorf("clock set by %v: got %q, want %q", jump, got, want)
		}
		if again := b.status(); jump == 0 && !again.NextProbe.Equal(*after.NextProbe) {
			t.Errorf("the next probe moves: %v, %v", after.NextProbe, again.NextProbe)
		}
		b.stop()
	}
}

func TestShortReason(t *testing.T) {
	for want, a := range map[string]Attempt{
		"HTTP 503":      busy,
		"timed out":     timedOut,
		"no such host":  {Reason: "no such host"},
		"TLS: not ours": {Reason: "TLS: not ours"},
		"network":       {Fault: FaultNetwork},
		"äääääääääääääääääääääääääääääääü…": {Reason: "äääääääääääääääääääääääääääääääüxxx"},
	} {
		if got := shortReason(a); got != want {
			t.Errorf("%+v: got %q, want %q", a, got, want)
		}
	}
	var many tally
	for i := range 1000 {
		many.add(fmt.Sprint("reason ", i))
	}
	if c := many.causes(); many.n != 1000 || len(c) != maxCauses || c[0] != (Cause{otherCauses, 1000 - maxCauses + 1}) {
		t.Errorf("a thousand reasons: %+v", c)
	}
}

// Whatever happens, at most one probe is under way, nothing else is when the
// breaker is not closed, and a subscriber that is well again gets its events.
func TestBreakerRandom(t *testing.T) {
	const seeds = 120
	visited := map[string]int{}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) { randomBreaker(t, uint64(seed), visited) })
	}
	for _, s := range []string{BreakerOpen, BreakerMisconfigured, BreakerRampingUp, BreakerClosed} {
		if visited[s] < seeds/5 {
			t.Errorf("the state %s was entered %d times in %d runs: they tell little", s, visited[s], seeds)
		}
	}
}

func randomBreaker(t *testing.T, seed uint64, visited map[string]int) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	between := func(a, b int) int { return a + rnd.IntN(b-a+1) }
	ms := func(a, b int) Duration { return Duration(time.Duration(between(a, b)) * time.Millisecond) }
	cfg := breakerConfig()
	cfg.Failures, cfg.Probes = between(1, 8), between(1, 4)
	cfg.Window, cfg.OpenFor = ms(1000, 60000), ms(10, 20000)
	cfg.MaxOpenFor = cfg.OpenFor * Duration(between(1, 10))
	if rnd.IntN(2) == 0 {
		cfg.RampUp = ms(100, 30000)
	}
	var mu sync.Mutex // guards rnd, visited and mood
	mood := "d"       // what the subscriber answers
	told := func(s BreakerStatus) {
		mu.Lock()
		defer mu.Unlock()
		visited[s.State]++
	}
	concurrency := between(1, 6)
	b := newBreaker(cfg, concurrency, nil, "a", told)
	defer b.stop()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	var probes, taken atomic.Int32
	attempt := func(probing bool) {
		leave, err := b.enter(ctx)
		if err != nil {
			return
		}
		defer leave()
		p, ok := b.allow(probing)
		if !ok {
			return
		}
		if p.probe && !probing {
			t.Errorf("seed %d: a probe without the right to", seed)
		}
		if p.probe {
			if probes.Add(1) > 1 {
				t.Errorf("seed %d: two probes at once", seed)
			}
		}
		mu.Lock()
		a, took := letters[rune(mood[rnd.IntN(len(mood))])], time.Duration(rnd.IntN(400))*time.Millisecond
		mu.Unlock()
		time.Sleep(took) // sleep: the bubble's clock
		if p.probe {
			probes.Add(-1)
		}
		if a.Outcome == Delivered {
			taken.Add(1)
		}
		if a.Outcome == Aborted {
			p.abort()
		} else {
			p.report(a)
		}
	}
	var wg sync.WaitGroup
	for range concurrency {
		wg.Go(func() {
			for ctx.Err() == nil {
				_, probing, done, err := b.turn(ctx)
				if err != nil {
					return
				}
				attempt(probing)
				done()
				time.Sleep(time.Millisecond) // sleep: the bubble's clock
			}
		})
	}
	moods := []string{"d", "f", "x", "df", "dddf", "a", "fa", "xn", "xxxxxxxxxt", "daf", "r", "rxnftda", "t", "ax", "z", "zd", "fz"}
	for range 30 {
		mu.Lock()
		mood = moods[rnd.IntN(len(moods))]
		wait, now := time.Duration(rnd.IntN(60000))*time.Millisecond, rnd.IntN(4) == 0
		mu.Unlock()
		time.Sleep(wait) // sleep: the bubble's clock
		if now {
			b.retryNow()
		}
		switch s := b.status(); s.State {
		case BreakerClosed, BreakerOpen, BreakerHalfOpen, BreakerMisconfigured, BreakerRampingUp:
			if s.Words(time.Now()) == "" || (s.NextProbe != nil) != (s.State == BreakerOpen || s.State == BreakerMisconfigured && s.NextProbe != nil) {
				t.Errorf("seed %d: %+v", seed, s)
			}
		default:
			t.Errorf("seed %d: state %q", seed, s.State)
		}
	}
	mu.Lock()
	mood = "d"
	mu.Unlock()
	// One pause of the longest kind, the probes, and the ramp.
	time.Sleep(misconfigEvery*11/10 + cfg.MaxOpenFor.Std()*2 + 10*time.Second + max(0, cfg.RampUp.Std())) // sleep: the bubble's clock
	if s := b.status(); s.State != BreakerClosed {
		t.Errorf("seed %d: stuck: %s", seed, s.Words(time.Now()))
	}
	before := taken.Load()
	time.Sleep(time.Second) // sleep: the bubble's clock
	if taken.Load() == before {
		t.Errorf("seed %d: nothing is delivered to a subscriber that is well", seed)
	}
	cancel()
	wg.Wait()
}

// floodRamp runs quick or slow attempts through a ramp, as many at once as may,
// and counts those that began in each tenth of it and the most at once.
func floodRamp(t *testing.T, concurrency int, took time.Duration) (began [10]int, most [10]int) {
	cfg := breakerConfig()
	cfg.RampUp = Duration(30 * time.Second)
	b := newBreaker(cfg, concurrency, nil, "a", func(BreakerStatus) {})
	defer b.stop()
	for range 5 {
		b.attempt(t, busy)
	}
	b.probeNext(t, delivered)
	b.wantState(t, BreakerRampingUp)
	start := time.Now()
	var mu sync.Mutex
	running := 0
	tenth := func() int { return int(time.Since(start) / (3 * time.Second)) }
	var wg sync.WaitGroup
	for range concurrency {
		wg.Go(func() {
			for {
				leave, err := b.enter(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				i := tenth()
				if i > 9 {
					mu.Unlock()
					leave()
					return
				}
				running++
				began[i]++
				most[i] = max(most[i], running)
				mu.Unlock()
				b.attempt(t, delivered)
				time.Sleep(took) // sleep: the bubble's clock
				mu.Lock()
				running--
				mu.Unlock()
				leave()
			}
		})
	}
	wg.Wait()
	b.wantState(t, BreakerClosed)
	return began, most
}

func TestRampConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, most := floodRamp(t, 10, time.Second)
		if want := [10]int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}; most != want {
			t.Errorf("at once by tenths of the ramp: got %v, want %v", most, want)
		}
	})
}

func TestRampRate(t *testing.T) {
	for _, concurrency := range []int{1, 8} {
		synctest.Test(t, func(t *testing.T) {
			began, _ := floodRamp(t, concurrency, time.Millisecond)
			t.Logf("concurrency %d, answers after 1 ms, attempts by tenths of the ramp: %v", concurrency, began)
			// Ten a second and twice that after a tenth are 43 in three seconds.
			limit := 45
			for i, n := range began {
				if n > limit || i < 6 && n < limit/2 {
					t.Errorf("%d attempts in tenth %d, want at most %d and most of that", n, i+1, limit)
				}
				limit *= 2
			}
			if began[9] < 2000 {
				t.Errorf("only %d at the end, which is a step of the rate", began[9])
			}
		})
	}
}

func TestRampTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := breakerConfig()
		cfg.RampUp = Duration(30 * time.Second)
		b, told := testBreaker(t, cfg)
		for range 5 {
			b.attempt(t, busy)
		}
		b.probeNext(t, delivered)
		time.Sleep(20 * time.Second) // sleep: the bubble's clock
		s := b.wantState(t, BreakerRampingUp)
		if s.Ramp == nil || s.Ramp.Limit != 6 || s.Ramp.Of != 8 || !s.Ramp.Until.Equal(time.Now().Add(10*time.Second).Round(0)) {
			t.Errorf("ramp %+v after two thirds", s.Ramp)
		}
		var leaves []func()
		for range 6 {
			leave, err := b.enter(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			leaves = append(leaves, leave)
		}
		// Those that wait do so no longer after the trip.
		var waiting sync.WaitGroup
		for range 5 {
			waiting.Go(func() {
				leave, err := b.enter(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				leave()
				if _, ok := b.allow(false); ok {
					t.Error("allowed after the trip")
				}
			})
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.enter(short); err == nil {
			t.Error("entered beside as many as may run")
		}
		for range 5 {
			b.attempt(t, busy)
		}
		waiting.Wait()
		b.probeNext(t, delivered)
		if s := b.wantState(t, BreakerRampingUp); s.Ramp.Limit != 1 {
			t.Errorf("the ramp did not start over: %+v", s.Ramp)
		}
		for _, leave := range leaves {
			leave() // of the ramp before
			leave()
		}
		if r := b.ramp.Load(); r.running != 0 {
			t.Errorf("%d run in a new ramp", r.running)
		}
		told.want(t, BreakerOpen, BreakerRampingUp, BreakerOpen, BreakerRampingUp)
		time.Sleep(30 * time.Second) // sleep: the bubble's clock
		synctest.Wait()
		told.want(t, BreakerOpen, BreakerRampingUp, BreakerOpen, BreakerRampingUp, BreakerClosed)
		// As cheap as can be.
		if n := testing.AllocsPerRun(100, func() {
			leave, _ := b.enter(t.Context())
			leave()
		}); n != 0 {
			t.Errorf("enter allocates %v times when there is no ramp", n)
		}
	})
}

// A stopped breaker leaves no timer behind, which the bubble would wait for.
func TestBreakerStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := breakerConfig()
		cfg.RampUp = Duration(time.Hour)
		b, told := testBreaker(t, cfg)
		for range 5 {
			b.attempt(t, busy)
		}
		b.probeNext(t, delivered)
		b.stop()
		b.stop()
		time.Sleep(2 * time.Hour) // sleep: the bubble's clock
		told.want(t, BreakerOpen, BreakerRampingUp)
	})
}

// Changes are told in the order in which they came about, one at a time.
func TestBreakerTellsInOrder(t *testing.T) {
	cfg := breakerConfig()
	cfg.Failures, cfg.OpenFor, cfg.MaxOpenFor = 1, Duration(10*time.Microsecond), Duration(10*time.Microsecond)
	var inside atomic.Int32
	c := &changes{}
	var b *breaker
	b = newBreaker(cfg, 8, nil, "a", func(s BreakerStatus) {
		if inside.Add(1) != 1 {
			t.Error("two calls at once")
		}
		_ = b.status() // it may ask
		c.add(s)
		inside.Add(-1)
	})
	defer b.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := 0; len(c.all()) < 40; j++ {
				_, probing, done, err := b.turn(ctx)
				if err != nil {
					t.Error(err)
					return
				}
				if p, ok := b.allow(probing); ok {
					p.report([]Attempt{delivered, busy}[(i+j)%2])
				}
				done()
			}
		})
	}
	wg.Wait()
	for i, s := range c.all() {
		if want := []string{BreakerOpen, BreakerClosed}[i%2]; s != want {
			t.Fatalf("change %d is %s, want %s", i, s, want)
		}
	}
}

func BenchmarkBreaker(b *testing.B) {
	br := newBreaker(breakerConfig(), 8, nil, "a", func(BreakerStatus) {})
	defer br.stop()
	b.ReportAllocs()
	for b.Loop() {
		leave, _ := br.enter(b.Context())
		p, _ := br.allow(false)
		p.report(delivered)
		leave()
	}
}
