package deliver

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
)

// breaker stands between a worker and a subscriber that may be down. It wraps
// gobreaker's two-step breaker and adds what that one leaves out: a pause that
// grows, waiting instead of polling, and words for what it knows.
type breaker struct {
	cfg Breaker
	// onChange is called after every change of state, outside the lock.
	onChange func(BreakerStatus)

	mu       sync.Mutex // guards all below
	cb       *gobreaker.TwoStepCircuitBreaker[struct{}]
	isOpen   bool      // open or half open
	trips    int       // in a row, without a success between
	since    time.Time // when isOpen last changed
	until    time.Time // when an open breaker lets a probe through
	failures int       // since the last success
	lastErr  string
	// gate ends at the next trip or recovery; turns hang on it.
	gate   context.Context
	regate context.CancelFunc

	probe chan struct{} // holds one token: the right to probe
}

var (
	errSubscriberDown = errors.New("subscriber down")
	errNoVerdict      = errors.New("no verdict")
)

func newBreaker(cfg Breaker, onChange func(BreakerStatus)) *breaker {
	b := &breaker{cfg: cfg, onChange: onChange, since: time.Now(), probe: make(chan struct{}, 1)}
	b.cb = b.build(cfg.OpenFor.Std())
	b.gate, b.regate = context.WithCancel(context.Background())
	b.probe <- struct{}{}
	return b
}

// build makes a closed breaker that stays open for openFor when it trips.
// gobreaker's open time is fixed, so each trip takes a new one.
func (b *breaker) build(openFor time.Duration) *gobreaker.TwoStepCircuitBreaker[struct{}] {
	return gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		MaxRequests: 1,
		Timeout:     openFor,
		ReadyToTrip: func(c gobreaker.Counts) bool {
			return int(c.ConsecutiveFailures) >= b.cfg.Failures
		},
		IsExcluded: func(err error) bool { return errors.Is(err, errNoVerdict) },
	})
}

// pause is how long the nth trip in a row keeps the breaker open.
func (b *breaker) pause(trip int) time.Duration {
	d, limit := b.cfg.OpenFor.Std(), b.cfg.MaxOpenFor.Std()
	for i := 1; i < trip && d < limit; i++ {
		d *= 2
	}
	return min(d, limit)
}

// permit is the leave to make one attempt. It must be reported or aborted, or
// a half-open breaker never lets another probe through.
type permit struct {
	b     *breaker
	done  func(error)
	probe bool // the breaker is half open and this attempt decides
}

// allow asks to make one attempt now. probing says that the caller holds the
// right to probe; without it a breaker that is not closed says no.
func (b *breaker) allow(probing bool) (permit, bool) {
	b.mu.Lock()
	cb, isOpen := b.cb, b.isOpen
	b.mu.Unlock()
	if isOpen && !probing {
		return permit{}, false
	}
	done, err := cb.Allow()
	if err != nil {
		return permit{}, false
	}
	return permit{b: b, done: done, probe: isOpen}, true
}

// report says how the attempt ended. ok means that the subscriber is up,
// whatever it thought of the event.
func (p permit) report(ok bool, reason string) {
	if ok {
		p.done(nil)
	} else {
		p.done(errSubscriberDown)
	}
	p.b.reported(ok, p.probe, reason)
}

// abort gives the permit back: our own stop says nothing about the subscriber.
func (p permit) abort() { p.done(errNoVerdict) }

func (b *breaker) reported(ok, probe bool, reason string) {
	b.mu.Lock()
	if b.isOpen && !probe {
		// A late answer to an attempt from before the trip changes nothing.
		b.mu.Unlock()
		return
	}
	if ok {
		b.failures, b.lastErr = 0, ""
	} else {
		b.failures++
		b.lastErr = reason
	}
	was := b.isOpen
	switch {
	case probe && ok:
		b.isOpen, b.trips = false, 0
		b.cb = b.build(b.pause(1))
	case probe:
		b.trip()
	case b.cb.State() == gobreaker.StateOpen:
		b.isOpen, b.trips = true, 0
		b.trip()
	default:
		b.mu.Unlock()
		return
	}
	changed := b.isOpen != was
	if changed {
		b.since = time.Now()
	}
	b.regate()
	b.gate, b.regate = context.WithCancel(context.Background())
	status := b.statusLocked()
	b.mu.Unlock()
	if changed {
		b.onChange(status)
	}
}

// trip opens a new breaker for the next pause. The caller holds mu.
func (b *breaker) trip() {
	b.trips++
	pause := b.pause(b.trips)
	b.cb = b.build(pause)
	for range b.cfg.Failures {
		if done, err := b.cb.Allow(); err == nil {
			done(errSubscriberDown)
		}
	}
	// A moment later than gobreaker's own clock, so that it agrees.
	b.until = time.Now().Add(pause + time.Millisecond)
}

// turn waits until messages may be fetched: at once when the breaker is
// closed; alone, with the right to probe, when it is half open. The returned
// context ends when that is no longer so. The caller calls done.
func (b *breaker) turn(ctx context.Context) (turn context.Context, probing bool, done func(), err error) {
	for {
		b.mu.Lock()
		isOpen, until, gate := b.isOpen, b.until, b.gate
		b.mu.Unlock()
		if err := ctx.Err(); err != nil {
			return nil, false, nil, err
		}
		if !isOpen {
			turn, cancel := context.WithCancel(ctx)
			stop := context.AfterFunc(gate, cancel)
			return turn, false, func() { stop(); cancel() }, nil
		}
		if wait := time.Until(until); wait > 0 {
			t := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case <-gate.Done():
			case <-t.C:
			}
			t.Stop()
			continue
		}
		select {
		case <-ctx.Done():
		case <-gate.Done():
		case <-b.probe:
			return ctx, true, func() { b.probe <- struct{}{} }, nil
		}
	}
}

// enter waits until one attempt more may run beside those running.
func (b *breaker) enter(context.Context) (leave func(), err error) { return func() {}, nil }

// closed says whether attempts flow freely.
func (b *breaker) closed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.isOpen
}

// BreakerStatus is a breaker for people.
type BreakerStatus struct {
	// State is closed, open or half-open.
	State string `json:"state"`
	// Since is when it closed or opened last.
	Since time.Time `json:"since"`
	// NextProbe is when an open breaker lets one attempt through.
	NextProbe *time.Time `json:"nextProbe,omitempty"`
	// Failures is how many attempts failed since the last success, and
	// LastError how the last one did.
	Failures  int    `json:"failures"`
	LastError string `json:"lastError,omitempty"`
}

func (b *breaker) status() BreakerStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.statusLocked()
}

func (b *breaker) statusLocked() BreakerStatus {
	s := BreakerStatus{State: "closed", Since: b.since, Failures: b.failures, LastError: b.lastErr}
	if b.isOpen {
		s.State = "half-open"
		if until := b.until; time.Now().Before(until) {
			s.State, s.NextProbe = "open", &until
		}
	}
	return s
}
