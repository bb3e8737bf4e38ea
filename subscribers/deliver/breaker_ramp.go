package deliver

import (
	"context"
	"math"
	"sync"
	"time"
)

// ramp is the slow start after a recovery. A subscriber that came back a second
// ago has cold caches, one instance of several, and everything that waited
// before its door; all of it at once would throw it down again.
//
// Two bounds rise together over its span: how many attempts run at once, from
// one to all, evenly; and how many begin in a second, from rampRate, doubling
// every tenth of the span, to a thousand times as many. Concurrency alone does
// not hold back a flood of quick answers: a subscriber that answers in a
// millisecond takes a thousand a second one after another.
type ramp struct {
	began       time.Time
	span        time.Duration
	concurrency int
	end         *time.Timer
	over        chan struct{} // closed when it ends, by time or by a trip
	door        chan struct{} // holds one token: who waits does so one at a time
	left        chan struct{} // holds one token when somebody has left

	mu      sync.Mutex // guards all below
	running int
	next    time.Time // when the next attempt may begin
}

// rampRate is how many attempts begin in the first second or so: little to
// anything that is up, and enough to see that it stays up. Ten doublings later
// it is more than one subscriber commonly takes.
const (
	rampRate      = 10
	rampDoublings = 10
)

// rampSlack is how far behind its rate the ramp may fall and catch up, because
// timers fire late. It is below a tenth of the wait at the first rate.
const rampSlack = 5 * time.Millisecond

func newRamp(concurrency int, span time.Duration, now time.Time) *ramp {
	return &ramp{
		began: now, span: span, concurrency: concurrency, next: now,
		over: make(chan struct{}), door: make(chan struct{}, 1), left: make(chan struct{}, 1),
	}
}

// progress is from 0 to 1.
func (r *ramp) progress(now time.Time) float64 {
	return min(1, max(0, float64(now.Sub(r.began))/float64(r.span)))
}

// limit is how many attempts may run at once.
func (r *ramp) limit(now time.Time) int {
	return min(r.concurrency, 1+int(r.progress(now)*float64(r.concurrency)))
}

// rate is how many attempts may begin in a second.
func (r *ramp) rate(now time.Time) float64 {
	return rampRate * math.Exp2(rampDoublings*r.progress(now))
}

// admit lets one attempt begin, or says how long to wait before asking again,
// unless somebody leaves earlier.
func (r *ramp) admit(now time.Time) (wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.limit(now); r.running >= n {
		// Until the limit rises; a moment more, because of rounding.
		at := time.Duration(float64(n) / float64(r.concurrency) * float64(r.span))
		return max(time.Millisecond, at-now.Sub(r.began)+time.Microsecond)
	}
	if wait := r.next.Sub(now); wait > 0 {
		return wait
	}
	r.running++
	if earliest := now.Add(-rampSlack); r.next.Before(earliest) {
		r.next = earliest
	}
	r.next = r.next.Add(time.Duration(float64(time.Second) / r.rate(now)))
	return 0
}

func (r *ramp) enter(ctx context.Context) (leave func(), err error) {
	nobody := func() {}
	select {
	case r.door <- struct{}{}: // soon after the end, too: nobody waits behind it then
		defer func() { <-r.door }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		select {
		case <-r.over:
			return nobody, nil
		default:
		}
		wait := r.admit(time.Now())
		if wait == 0 {
			return sync.OnceFunc(r.leave), nil
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-r.left:
		case <-r.over:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

func (r *ramp) leave() {
	r.mu.Lock()
	r.running--
	r.mu.Unlock()
	select {
	case r.left <- struct{}{}:
	default:
	}
}
