package poll

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// burst is how many requests may go at once after a silence: the first pages of a
// few sources, without a second between them.
const burst = 5

// How a budget answers to a source that has been asked too much: half of it, and
// then a tenth of the whole more every five minutes.
const (
	regainStep  = 0.1
	regainEvery = 5 * time.Minute
	leastFactor = 1.0 / 64
	// leastHold is waited also when a source says 0.
	leastHold = time.Second
	// mostHold bounds what a source may ask for: a date in a wrong century must
	// not end polling.
	mostHold = 24 * time.Hour
)

// budget is what this process's sources of one identity may ask. It holds back; nobody
// is refused.
type budget struct {
	key string // of the identity, without a secret or a name in it

	mu      sync.Mutex // guards all below
	limiter *rate.Limiter
	full    float64 // requests a second, of all processes together
	all     int     // sources of the identity, whoever polls them; 0: not known
	factor  float64 // of full, when it was lowered last
	lowered time.Time
	until   time.Time // nobody asks before
	mine    uint64    // the number of this process's last wait, for other processes
	others  uint64    // the last one of another's
	members map[*pace]bool
	changed chan struct{} // closed when until moves

	elsewhere map[string]bool // sources of the identity that another process polls
}

func newBudget(identity string, full float64) *budget {
	sum := sha256.Sum256([]byte(identity))
	return &budget{
		key: hex.EncodeToString(sum[:16]), limiter: rate.NewLimiter(rate.Limit(full), burst), full: full, factor: 1,
		members: map[*pace]bool{}, changed: make(chan struct{}), elsewhere: map[string]bool{},
	}
}

// declare says how many sources the identity has, and the lowest budget that any of
// them asks for.
func (b *budget) declare(all int, lowest float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all, b.full = all, lowest
}

// join counts a source in that this process polls.
func (b *budget) join(p *pace) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.members[p] = true
}

// leave counts it out.
func (b *budget) leave(p *pace) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.members, p)
}

// away says of a source of the identity whether another process polls it.
func (b *budget) away(id string, away bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if away {
		b.elsewhere[id] = true
	} else {
		delete(b.elsewhere, id)
	}
}

// share is the part of the budget that is this process's: that of the sources which no
// other polls. Each is polled by one process, so all parts are one budget, but for the
// moments in which a source changes hands. The caller holds mu.
func (b *budget) share() float64 {
	if b.all == 0 {
		return b.full
	}
	return b.full * float64(max(b.all-len(b.elsewhere), 1)) / float64(b.all)
}

// rateAt is this process's part of the budget at a time, in requests a second. The caller holds mu.
func (b *budget) rateAt(now time.Time) float64 {
	if b.factor < 1 {
		steps := math.Floor(now.Sub(b.lowered).Seconds() / regainEvery.Seconds())
		return b.share() * min(1, b.factor+regainStep*max(0, steps))
	}
	return b.share()
}

// throttled is told that a request that began at a time was answered with "too
// much". It gives the time until which all wait. Requests that were under way
// together lower the budget once.
func (b *budget) throttled(now, began time.Time, after time.Duration) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !began.Before(b.lowered) {
		b.lower(now)
	}
	hold := min(max(after, leastHold), mostHold)
	hold += time.Duration(rand.Float64() * jitter * float64(hold))
	b.hold(now.Add(hold))
	return b.until
}

// elsewhereWait is how long the broker may take to say whether another process was told
// to wait. Without it nothing could be stored either.
const elsewhereWait = 2 * time.Second

// tell tells other processes that all are to wait for a while.
func (b *budget) tell(ctx context.Context, k keeper, d time.Duration, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, elsewhereWait)
	defer cancel()
	number, err := k.hold(ctx, b.key, d)
	if err != nil {
		log.Warn("other routers do not know that the source wants to be left alone", "error", err)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mine = number
}

// elsewhereHeld says whether another process was told to wait, and until when that is. It
// is asked before each request, so that nobody acts on what is no longer so.
func (b *budget) elsewhereHeld(ctx context.Context, k keeper, log *slog.Logger) (until time.Time, held bool) {
	asking, cancel := context.WithTimeout(ctx, elsewhereWait)
	defer cancel()
	left, number, err := k.heldFor(asking, b.key)
	if err != nil && ctx.Err() == nil {
		log.Debug("whether another router was told to wait is not known", "error", err)
	}
	if err != nil || left <= 0 {
		return until, false
	}
	return b.throttledElsewhere(time.Now(), left, number)
}

// throttledElsewhere is told that some process was answered so, and that all are to wait
// for another while. Of this process's own wait it knows better. The budget is lowered
// here, too, once for each number.
func (b *budget) throttledElsewhere(now time.Time, left time.Duration, number uint64) (until time.Time, held bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if number == b.mine {
		return b.until, b.until.After(now)
	}
	if number != b.others {
		b.others = number
		b.lower(now)
	}
	b.hold(now.Add(min(left, mostHold)))
	return b.until, true
}

// lower halves the budget. The caller holds mu.
func (b *budget) lower(now time.Time) {
	b.factor = max(leastFactor, b.rateAt(now)/b.share()/2)
	b.lowered = now
}

// hold makes all wait until a time at least. The caller holds mu.
func (b *budget) hold(until time.Time) {
	if until.After(b.until) {
		b.until = until
		close(b.changed)
		b.changed = make(chan struct{})
	}
}

// reserve is one request's place in the queue.
type reserve struct {
	wait    time.Duration
	held    bool // the source has asked for the wait; ask again after it
	place   *rate.Reservation
	changed <-chan struct{} // the wait is another one now; ask again
}

// take gives the next place in the queue.
func (b *budget) take(now time.Time) reserve {
	b.mu.Lock()
	defer b.mu.Unlock()
	if d := b.until.Sub(now); d > 0 {
		return reserve{wait: d, held: true, changed: b.changed}
	}
	if r := rate.Limit(b.rateAt(now)); r != b.limiter.Limit() {
		b.limiter.SetLimitAt(now, r)
	}
	place := b.limiter.ReserveN(now, 1)
	return reserve{wait: place.DelayFrom(now), place: place, changed: b.changed}
}

// wait returns when a request may go, and how long the source has kept it waiting.
// Who came first goes first, but for a wait that the source has asked for.
func (b *budget) wait(ctx context.Context) (lost time.Duration, _ error) {
	for {
		if err := ctx.Err(); err != nil {
			return lost, err
		}
		began := time.Now()
		r := b.take(began)
		if r.wait == 0 {
			return lost, nil
		}
		t := time.NewTimer(r.wait)
		select {
		case <-t.C:
		case <-r.changed:
		case <-ctx.Done():
		}
		t.Stop()
		now := time.Now()
		switch {
		case r.held:
			lost += now.Sub(began)
		case ctx.Err() != nil, b.heldUntil().After(now):
			r.place.CancelAt(now)
		case now.Sub(began) >= r.wait:
			return lost, nil
		default:
			r.place.CancelAt(now)
		}
	}
}

// heldUntil is until when the source wants to be left alone; zero or past: it does
// not mind.
func (b *budget) heldUntil() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.until
}

// observe tells a member's pace how many rows a poll has brought. A pace that is a
// member is used only under the budget's lock.
func (b *budget) observe(now time.Time, p *pace, rows int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p.observe(now, rows)
}

// interval is how often a member may be polled: as often as it asks for, unless
// all of them together ask for more than there is. Then each gets a part by the
// root of its rate, which makes the sum of all delays least.
func (b *budget) interval(now time.Time, p *pace) (d time.Duration, rate float64, why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var asked, weights float64
	for m := range b.members {
		asked += 1 / m.d.Seconds()
		weights += m.weight()
	}
	have := b.rateAt(now)
	if asked <= have {
		return p.d, p.rate(), p.why()
	}
	part := time.Duration(weights / (have * p.weight()) * float64(time.Second))
	if part <= p.d {
		return p.d, p.rate(), p.why()
	}
	return min(part, mostInterval), p.rate(), fmt.Sprintf("its part of %.3g requests/s, which %d sources share", have, len(b.members))
}
