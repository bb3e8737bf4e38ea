package poll

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// price is what a request is worth, in event-seconds of delay. With λ rows a second,
// polling every d costs price/d for requests and λd/2 for delay, each second; the
// sum is least at d = sqrt(2 price/λ).
const price = 10

// How fast the rate is learnt and forgotten. The larger one of two means counts: the
// short one sees a burst while it lasts, the long one remembers a morning over a
// coffee break.
const (
	shortMean = 5 * time.Minute
	longMean  = time.Hour
)

// jitter keeps sources that began together from staying together.
const jitter = 0.1

// pace says how long to wait between two polls of one source. It has no clock.
type pace struct {
	every       Every
	short, long float64 // rows a second
	last        time.Time
	d           time.Duration
}

func newPace(every Every) *pace { return &pace{every: every, d: every.Min} }

// observe is told how many rows a poll has brought. The first one only begins the
// count: what it brought came in a time that nobody knows.
func (p *pace) observe(now time.Time, rows int) {
	dt := now.Sub(p.last).Seconds()
	if p.last.IsZero() || dt <= 0 {
		p.last = now
		return
	}
	p.last = now
	rate := float64(rows) / dt
	for _, m := range []struct {
		mean *float64
		over time.Duration
	}{{&p.short, shortMean}, {&p.long, longMean}} {
		keep := math.Exp(-dt / m.over.Seconds())
		*m.mean = keep**m.mean + (1-keep)*rate
	}
	p.d = p.next()
}

// rate is how many rows arrive a second.
func (p *pace) rate() float64 { return max(p.short, p.long) }

// next is the interval that the rate asks for, at most twice the one before.
func (p *pace) next() time.Duration {
	if p.every.Fixed() {
		return p.every.Min
	}
	d := p.every.Max
	if best := math.Sqrt(2*price/p.rate()) * float64(time.Second); best < float64(d) { // Inf when nothing comes
		d = time.Duration(best)
	}
	return max(p.every.Min, min(d, 2*p.d))
}

// weight is what the source gets of a budget that is too small for all: the root of
// its rate, or of the one that its interval stands for.
func (p *pace) weight() float64 {
	least := math.Sqrt(2*price) / p.every.Max.Seconds()
	if p.every.Fixed() {
		return least
	}
	return max(math.Sqrt(p.rate()), least)
}

// why says where the interval comes from.
func (p *pace) why() string {
	switch {
	case p.every.Fixed():
		return "fixed by every"
	case p.d == p.every.Max:
		return "every.max, because little happens"
	case p.d == p.every.Min:
		return "every.min, because much may happen"
	}
	return fmt.Sprintf("%.2g rows/s arrive", p.rate())
}

// spread is d, up to a tenth longer or shorter.
func spread(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 - jitter + 2*jitter*rand.Float64()))
}

// retryAfter is how long to wait after so many failures in a row: anything from a
// second to twice the last limit, so that what failed together is not asked again
// together.
func retryAfter(failures int, most time.Duration) time.Duration {
	limit := min(most, time.Second<<min(failures, 20))
	return time.Second + time.Duration(rand.Float64()*float64(max(0, limit-time.Second)))
}
