package deliver

import (
	"fmt"
	"strings"
	"time"
)

// The states of a breaker.
const (
	BreakerClosed        = "closed"
	BreakerOpen          = "open"          // the subscriber is down; events wait
	BreakerHalfOpen      = "half-open"     // a probe may go, or is under way
	BreakerMisconfigured = "misconfigured" // it refuses everything, or may not be reached; events wait
	BreakerRampingUp     = "ramping-up"    // closed again, with fewer attempts at first
)

// BreakerStatus is a breaker for people.
type BreakerStatus struct {
	// State is one of the above.
	State string `json:"state"`
	// Since is when it closed or opened last, or was found misconfigured.
	Since time.Time `json:"since"`
	// NextProbe is when one attempt is let through; nil when that is now, or
	// when the breaker is closed.
	NextProbe *time.Time `json:"nextProbe,omitempty"`
	// Failures is how many attempts failed in a row; when events wait, those
	// that are to blame and all since. Causes tells them apart, the most
	// frequent first, and LastError is the last one in full.
	Failures  int     `json:"failures"`
	Causes    []Cause `json:"causes,omitempty"`
	LastError string  `json:"lastError,omitempty"`
	// Trips is how often it opened in a row: once, and for each failed probe.
	Trips int `json:"trips,omitempty"`
	// Ramp is how far the ramp-up has come.
	Ramp *Ramp `json:"ramp,omitempty"`
}

// Ramp is how far a ramp-up has come.
type Ramp struct {
	// Limit is how many attempts may run now, Of how many in the end.
	Limit int `json:"limit"`
	Of    int `json:"of"`
	// Rate is how many attempts may begin in a second now.
	Rate float64 `json:"rate"`
	// Until is when the end is.
	Until time.Time `json:"until"`
}

// Flowing says whether events go out: the breaker is closed, ramping up or not.
func (s BreakerStatus) Flowing() bool {
	return s.State == BreakerClosed || s.State == BreakerRampingUp
}

func (b *breaker) status() BreakerStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.statusLocked(time.Now())
}

func (b *breaker) statusLocked(now time.Time) BreakerStatus {
	toll := &b.toll
	s := BreakerStatus{Since: onClock(b.since, now), LastError: b.lastErr, Trips: b.trips}
	switch {
	case b.mode == misconfigured:
		s.State = BreakerMisconfigured
	case b.mode == down && now.Before(b.until):
		s.State = BreakerOpen
	case b.mode == down:
		s.State = BreakerHalfOpen
	default:
		s.State, toll = BreakerClosed, &b.run
		if r := b.ramp.Load(); r != nil {
			s.State = BreakerRampingUp
			s.Ramp = &Ramp{Limit: r.limit(now), Of: r.concurrency, Rate: r.rate(now), Until: onClock(r.began.Add(r.span), now)}
		}
	}
	s.Failures, s.Causes = toll.n, toll.causes()
	if b.mode != flowing && now.Before(b.until) {
		until := onClock(b.until, now)
		s.NextProbe = &until
	}
	return s
}

// onClock gives t, which was taken from the monotonic clock, as the wall clock
// now has it. It stays the same as long as that was not set.
func onClock(t, now time.Time) time.Time {
	was, is := t.Round(0), now.Add(t.Sub(now)).Round(0)
	if d := is.Sub(was); d > -time.Second && d < time.Second {
		return was
	}
	return is
}

// Words says how it is in one line: "open 4 min, 12 × HTTP 503, next probe in
// 20 s".
func (s BreakerStatus) Words(now time.Time) string {
	var words []string
	say := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	switch s.State {
	case BreakerClosed:
		say("closed")
	case BreakerRampingUp:
		say("ramping up since %s", Roughly(now.Sub(s.Since)))
		if s.Ramp != nil {
			say("%d of %d attempts at once", s.Ramp.Limit, s.Ramp.Of)
		}
	default:
		say("%s %s", s.State, Roughly(now.Sub(s.Since)))
	}
	const most = 3
	for i, c := range s.Causes {
		if i == most {
			rest := 0
			for _, c := range s.Causes[most:] {
				rest += c.Count
			}
			say("%d × others", rest)
			break
		}
		say("%d × %s", c.Count, c.Reason)
	}
	switch {
	case s.Flowing():
	case s.NextProbe != nil:
		say("next probe in %s", Roughly(s.NextProbe.Sub(now)))
	default:
		say("probing now")
	}
	return strings.Join(words, ", ")
}
