package broker

import (
	"context"
	"sync"
)

// barrier makes one sync serve everybody who waits at that moment. A sync that
// began before a caller came may have passed over what the caller wrote, so
// each caller waits for one that begins after it came: at most the rest of the
// one under way and one more. When none is under way the caller's own begins at
// once; there is no timer.
type barrier struct {
	// done is told that everything up to an EVENTS sequence is on disk, before
	// those who waited go on.
	done func(through uint64)
	// broken is told of the first failure. It must not block or call back.
	broken func(error)

	mu      sync.Mutex // guards all below
	flush   func() error
	running bool
	next    *round // those who wait for the next sync; nil if nobody does
	// failed is final until reset: a second sync may succeed although the
	// kernel has dropped what the first could not write.
	failed error
	epoch  uint64 // counts resets
}

// round is one sync and those who wait for it.
type round struct {
	through uint64 // the highest EVENTS sequence among them
	done    chan struct{}
	err     error
}

// wait returns when everything written before the call is on disk. through is
// the highest EVENTS sequence the caller knows to be written. epoch is what it
// was when the caller wrote: if there was a reset since, nobody knows.
func (b *barrier) wait(ctx context.Context, epoch, through uint64) error {
	b.mu.Lock()
	switch {
	case b.failed != nil:
		err := b.failed
		b.mu.Unlock()
		return err
	case epoch != b.epoch:
		b.mu.Unlock()
		return ErrReopened
	}
	r := b.next
	if r == nil {
		r = &round{done: make(chan struct{})}
	}
	r.through = max(r.through, through)
	if b.running {
		b.next = r
		b.mu.Unlock()
	} else {
		b.running = true
		b.mu.Unlock()
		// Not here: the caller's deadline holds also when the disk hangs.
		go b.lead(r)
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lead makes the sync of r, and then those of the rounds that gathered
// meanwhile.
func (b *barrier) lead(r *round) {
	for r != nil {
		b.mu.Lock()
		flush := b.flush
		b.mu.Unlock()
		err := flush()
		b.mu.Lock()
		if b.failed != nil {
			err = b.failed
		} else if err != nil {
			b.failed = err
			b.broken(err)
		}
		next := b.next
		b.next = nil
		b.running = next != nil
		b.mu.Unlock()
		if err == nil {
			b.done(r.through)
		}
		r.err = err
		close(r.done)
		r = next
	}
}

// reset lets a barrier work again after what a failed sync lost was written
// once more.
func (b *barrier) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failed = nil
	b.epoch++
}

// stop makes every wait fail until the next reset.
func (b *barrier) stop(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failed == nil {
		b.failed = err
	}
}

func (b *barrier) now() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.epoch
}
