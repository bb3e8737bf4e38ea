package poll

import (
	"context"
	"time"
)

// Allowance is what others than the Poller may ask of a source whose identity is
// polled, too: all of them share its budget and its Retry-After. It is safe for
// concurrent use, and lasts as long as the process.
type Allowance struct {
	poller *Poller
	budget *budget
}

// Allowance gives the one of an identity. full is its budget, in requests a second,
// where no source of the identity is polled; otherwise those say.
func (p *Poller) Allowance(identity string, full float64) *Allowance {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.budgets[identity]
	if b == nil {
		b = newBudget(identity, full)
		p.budgets[identity] = b
	}
	return &Allowance{p, b}
}

// Wait returns when a request may go, or with ctx's error.
func (a *Allowance) Wait(ctx context.Context) error {
	for {
		if _, err := a.budget.wait(ctx); err != nil {
			return err
		}
		if a.poller.keeper == nil { // it is not started, so there are no others
			return ctx.Err()
		}
		if _, held := a.budget.elsewhereHeld(ctx, a.poller.keeper, a.poller.parts.Log); !held {
			return ctx.Err()
		}
	}
}

// Throttled is told that a request which began at a time was answered with "too
// much": nobody asks until after has passed, on any router, and less for a while then.
func (a *Allowance) Throttled(began time.Time, after time.Duration) {
	now := time.Now()
	until := a.budget.throttled(now, began, after)
	if a.poller.keeper == nil {
		return
	}
	a.budget.tell(a.poller.hard, a.poller.keeper, until.Sub(now), a.poller.parts.Log)
}
