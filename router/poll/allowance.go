package poll

import (
	"context"
	"time"
)

// Allowance is what others than the Poller may ask of a source whose identity is
// polled, too: all of them share its budget and its Retry-After. It is safe for
// concurrent use, and lasts as long as the process.
type Allowance struct{ budget *budget }

// Allowance gives the one of an identity. full is its budget, in requests a second,
// where no source of the identity is polled; otherwise those say.
func (p *Poller) Allowance(identity string, full float64) *Allowance {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.budgets[identity]
	if b == nil {
		b = newBudget(full)
		p.budgets[identity] = b
	}
	return &Allowance{b}
}

// Wait returns when a request may go, or with ctx's error.
func (a *Allowance) Wait(ctx context.Context) error {
	_, err := a.budget.wait(ctx)
	return err
}

// Throttled is told that a request which began at a time was answered with "too
// much": nobody asks until after has passed, and less for a while then.
func (a *Allowance) Throttled(began time.Time, after time.Duration) {
	a.budget.throttled(time.Now(), began, after)
}
