package deliver

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// breaker stands between a worker and a subscriber that may be down. It wraps
// gobreaker's two-step breaker, which counts failures in a row and decides
// between open, half open and closed, and adds what that one leaves out: a
// ratio over a window, a pause that grows, waiting instead of polling, a slow
// start, subscribers that refuse everything, and words for what it knows.
type breaker struct {
	cfg         Breaker
	concurrency int
	board       *Board // nil: there are no other replicas to look at
	subscriber  string
	// onChange is called after every change of state, outside the lock, one
	// call at a time and in order.
	onChange func(BreakerStatus)

	// ramp is nil unless the subscriber has just come back.
	ramp atomic.Pointer[ramp]

	mu   sync.Mutex // guards all below
	cb   *gobreaker.TwoStepCircuitBreaker[struct{}]
	mode mode
	// round counts trips and recoveries. What a permit of an earlier round
	// reports is late.
	round   uint64
	probing bool // a probe is under way
	stopped bool
	// force makes the next failure trip cb.
	force   bool
	trips   int       // in a row, without a recovery between
	since   time.Time // when the mode last changed
	until   time.Time // when a breaker that is not flowing lets a probe through
	run     tally     // failures in a row
	window  window
	toll    tally // the failures that opened it, and those since
	refused tally // refusals in a row that look like a wrong configuration
	lastErr string
	lastOK  time.Time // when it last took an event, or refused just that one
	// gate ends at the next trip or recovery; turns hang on it.
	gate   context.Context
	regate context.CancelFunc
	news   []BreakerStatus // for onChange

	telling sync.Mutex    // held while onChange is called; before mu
	probe   chan struct{} // holds one token: the right to probe
}

// mode is what a breaker does with attempts.
type mode int

const (
	flowing       mode = iota // they may be made
	down                      // one at a time, after a pause
	misconfigured             // likewise, because it refuses everything, or we may not reach it
)

// What makes a configuration fault. Twenty in a row without one event taken are
// no coincidence of events; nineteen dead letters are soon redriven.
// Somebody has to repair it, and looking every five minutes finds that out soon
// enough without filling a stranger's log with refusals.
const (
	maxRefusals    = 20
	misconfigEvery = 5 * time.Minute
)

var (
	errSubscriberDown = errors.New("subscriber down")
	errNoVerdict      = errors.New("no verdict")
)

// newBreaker makes a closed breaker for a valid cfg. The caller stops it.
func newBreaker(cfg Breaker, concurrency int, board *Board, subscriber string, onChange func(BreakerStatus)) *breaker {
	now := time.Now()
	b := &breaker{
		cfg: cfg, concurrency: concurrency, board: board, subscriber: subscriber, onChange: onChange,
		since: now, probe: make(chan struct{}, 1),
	}
	b.cb = b.build(cfg.OpenFor.Std(), cfg.Probes)
	b.window.reset(now, cfg.Window.Std())
	b.gate, b.regate = context.WithCancel(context.Background())
	b.probe <- struct{}{}
	board.join(subscriber, b)
	return b
}

// stop ends its timers and takes it off the board. Nothing else changes: what
// is still reported is counted.
func (b *breaker) stop() {
	b.mu.Lock()
	b.stopped = true
	b.endRamp()
	b.mu.Unlock()
	b.board.leave(b.subscriber, b)
}

// build makes a closed breaker that stays open for openFor when it trips.
// gobreaker's open time is fixed, so each trip takes a new one.
//
// Its rolling window (v2.4.0) is not used. It counts an answer in the bucket of
// its request and drops it when that bucket is gone, so time-outs as long as
// the window would never count; and failures in a row older than the window are
// forgotten, so a slow trickle of them would never open it.
func (b *breaker) build(openFor time.Duration, probes int) *gobreaker.TwoStepCircuitBreaker[struct{}] {
	return gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		MaxRequests: uint32(probes),
		Timeout:     openFor,
		// Called in a report, with mu held.
		ReadyToTrip: func(c gobreaker.Counts) bool {
			return b.force || int(c.ConsecutiveFailures) >= b.cfg.Failures || b.tooMany()
		},
		IsExcluded: func(err error) bool { return errors.Is(err, errNoVerdict) },
	})
}

// tooMany says whether the ratio is reached.
func (b *breaker) tooMany() bool {
	all, failed := b.window.sum()
	return all >= 2*b.cfg.Failures && float64(failed) >= b.cfg.Ratio*float64(all)
}

// pause is how long the nth trip in a row keeps the breaker open.
func (b *breaker) pause(trip int) time.Duration {
	d, limit := b.cfg.OpenFor.Std(), b.cfg.MaxOpenFor.Std()
	for i := 1; i < trip && d < limit; i++ {
		d *= 2
	}
	return min(d, limit)
}

// permit is the leave to make one attempt. It must be reported or aborted, once,
// or a half-open breaker never lets another probe through.
type permit struct {
	b     *breaker
	round uint64
	done  func(error)
	probe bool // the breaker is half open and this attempt decides
}

// allow asks to make one attempt now. probing says that the caller holds the
// right to probe; without it a breaker that is not closed says no.
func (b *breaker) allow(probing bool) (permit, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	probe := b.mode != flowing
	if probe && (!probing || b.probing) {
		return permit{}, false
	}
	done, err := b.cb.Allow()
	if err != nil {
		return permit{}, false
	}
	b.probing = probe
	return permit{b: b, round: b.round, done: done, probe: probe}, true
}

// abort gives the permit back: our own stop says nothing about the subscriber.
func (p permit) abort() { p.report(Attempt{Outcome: Aborted}) }

// report says how the attempt ended. park means that the fault was taken for the
// configuration's and not for the event's: the event is to wait, using up nothing,
// and is no dead letter.
func (p permit) report(a Attempt) (park bool) {
	b := p.b
	b.mu.Lock()
	park = b.reported(p, a, time.Now())
	news := len(b.news) > 0
	b.mu.Unlock()
	if news {
		b.tell()
	}
	return park
}

// reported is report under mu.
func (b *breaker) reported(p permit, a Attempt, now time.Time) (park bool) {
	// A refusal of the kind that a wrong key or address brings.
	barred := a.Outcome == Rejected && (a.Fault == FaultAccess || a.Fault == FaultAddress)
	// One that was not sent at all needs no others to prove that it is not at fault.
	unsent := a.Outcome == Rejected && a.Fault == FaultHandshake || a.forbidden()
	if p.round != b.round {
		// A late answer to an attempt from before the trip changes nothing.
		return unsent || barred && b.mode == misconfigured
	}
	if p.probe {
		b.probing = false
	}
	switch {
	case a.Outcome == Aborted:
		p.done(errNoVerdict)
		return false
	case a.Outcome == Failed && !unsent:
		// It says nothing about the configuration: refused stays as it is.
		b.failed(p, a, now)
		return false
	case barred, unsent:
		b.refused.add(shortReason(a))
		if unsent || b.mode == misconfigured || b.refused.n >= maxRefusals || b.board.sees(b.subscriber, BreakerMisconfigured, b.lastOK) {
			b.barred(a, now)
			return true
		}
	default:
		b.refused, b.lastOK = tally{}, now
	}
	p.done(nil)
	switch {
	case b.mode == flowing:
		b.window.add(now, "")
		b.run, b.lastErr = tally{}, ""
	case b.mode == misconfigured, b.cb.State() == gobreaker.StateClosed:
		b.recover(now)
	}
	return false
}

// failed counts a failure, which may open the breaker. The caller holds mu.
func (b *breaker) failed(p permit, a Attempt, now time.Time) {
	reason := shortReason(a)
	b.lastErr = a.Reason
	switch b.mode {
	case misconfigured:
		// Whatever is wrong now, it is something else.
		toll := tally{}
		toll.add(reason)
		b.open(down, toll, a.RetryAfter, now)
	case down:
		b.toll.add(reason)
		b.shut(a.RetryAfter, now)
		b.announce(false)
	default:
		b.run.add(reason)
		b.window.add(now, reason)
		// Another replica has found it down, and nothing here has spoken
		// against that since: no need to find it out again.
		b.force = b.board.sees(b.subscriber, BreakerOpen, b.lastOK)
		p.done(errSubscriberDown)
		b.force = false
		if b.cb.State() != gobreaker.StateClosed {
			toll := b.run
			if w := b.window.causes(); w.n > toll.n {
				toll = w
			}
			b.open(down, toll, a.RetryAfter, now)
		}
	}
}

// barred parks everything for a wrong configuration. The caller holds mu.
func (b *breaker) barred(a Attempt, now time.Time) {
	b.lastErr = a.Reason
	if b.mode == misconfigured {
		b.toll = b.refused
		b.shut(0, now)
		b.announce(false)
		return
	}
	b.open(misconfigured, b.refused, 0, now)
}

// open ends the flow, or changes why there is none. The caller holds mu.
func (b *breaker) open(m mode, toll tally, asked time.Duration, now time.Time) {
	b.mode, b.since, b.trips, b.toll = m, now, 0, toll
	b.run = tally{}
	b.endRamp()
	b.shut(asked, now)
	b.announce(true)
}

// shut begins the pause before the next probe, not shorter than the subscriber
// asked for within what is allowed. The caller holds mu.
func (b *breaker) shut(asked time.Duration, now time.Time) {
	b.round++
	b.trips++
	b.probing = false
	pause := misconfigEvery
	if b.mode == down {
		pause = b.pause(b.trips)
	}
	// Jitter, so that the many breakers of one dead host do not probe together.
	b.shutFor(max(jitter(pause), min(asked, b.cfg.MaxOpenFor.Std())), now)
}

func (b *breaker) shutFor(pause time.Duration, now time.Time) {
	probes := 1
	if b.mode == down {
		probes = b.cfg.Probes
	}
	b.cb = b.build(pause, probes)
	if done, err := b.cb.Allow(); err == nil {
		b.force = true
		done(errSubscriberDown)
		b.force = false
	}
	// A moment later than gobreaker's own clock, so that it agrees.
	b.until = now.Add(pause + time.Millisecond)
	b.wake()
}

// recover lets events flow again. The caller holds mu.
func (b *breaker) recover(now time.Time) {
	b.round++
	b.mode, b.since, b.trips, b.toll, b.run, b.lastErr = flowing, now, 0, tally{}, tally{}, ""
	b.window.reset(now, b.cfg.Window.Std())
	b.cb = b.build(b.cfg.OpenFor.Std(), b.cfg.Probes)
	if span := b.cfg.RampUp.Std(); span > 0 && !b.stopped {
		r := newRamp(b.concurrency, span, now)
		r.end = time.AfterFunc(span, func() { b.rampOver(r) })
		b.ramp.Store(r)
	}
	b.wake()
	b.announce(true)
}

// endRamp ends the ramp-up, if there is one. The caller holds mu.
func (b *breaker) endRamp() bool {
	r := b.ramp.Swap(nil)
	if r == nil {
		return false
	}
	r.end.Stop()
	close(r.over)
	return true
}

func (b *breaker) rampOver(r *ramp) {
	b.mu.Lock()
	if b.ramp.Load() == r {
		b.endRamp()
		b.announce(true)
	}
	b.mu.Unlock()
	b.tell()
}

// wake makes all turns look again. The caller holds mu.
func (b *breaker) wake() {
	b.regate()
	b.gate, b.regate = context.WithCancel(context.Background())
}

// announce shows the others how it is now, and onChange, if the state changed.
// The caller holds mu, and calls tell without it.
func (b *breaker) announce(changed bool) {
	s := b.statusLocked(time.Now())
	b.board.post(b.subscriber, b, s)
	if changed {
		b.news = append(b.news, s)
	}
}

// tell calls onChange for what was announced. The caller does not hold mu.
func (b *breaker) tell() {
	b.telling.Lock()
	defer b.telling.Unlock()
	b.mu.Lock()
	news := b.news
	b.news = nil
	b.mu.Unlock()
	for _, s := range news {
		b.onChange(s)
	}
}

// retryNow ends the pause: the next turn probes. It does nothing to a breaker
// that is closed or probing.
func (b *breaker) retryNow() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := time.Now(); b.mode != flowing && !b.probing && now.Before(b.until) {
		b.shutFor(time.Nanosecond, now)
		b.announce(false)
	}
}

// turn waits until messages may be fetched: at once when the breaker is
// closed; alone, with the right to probe, when it is half open. The returned
// context ends when that is no longer so. The caller calls done, for a probe
// after it was reported.
func (b *breaker) turn(ctx context.Context) (turn context.Context, probing bool, done func(), err error) {
	for {
		b.mu.Lock()
		m, until, gate := b.mode, b.until, b.gate
		b.mu.Unlock()
		if err := ctx.Err(); err != nil {
			return nil, false, nil, err
		}
		if m == flowing {
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
			return ctx, true, sync.OnceFunc(func() { b.probe <- struct{}{} }), nil
		}
	}
}

// enter waits until one more attempt may run beside those that do: at once,
// unless the subscriber has just come back. The caller calls leave when the
// attempt has ended. The error is ctx's.
func (b *breaker) enter(ctx context.Context) (leave func(), err error) {
	r := b.ramp.Load()
	if r == nil {
		return func() {}, nil
	}
	return r.enter(ctx)
}

// closed says whether attempts flow freely.
func (b *breaker) closed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mode == flowing
}
