package broker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func newBarrier(flush func() error) (b *barrier, through *atomic.Uint64, broke *atomic.Int32) {
	through, broke = new(atomic.Uint64), new(atomic.Int32)
	done := func(n uint64) { through.Store(max(through.Load(), n)) } // rounds end one after another
	return &barrier{flush: flush, done: done, broken: func(error) { broke.Add(1) }}, through, broke
}

func TestBarrierIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		syncs := 0
		b, through, _ := newBarrier(func() error {
			syncs++
			time.Sleep(time.Millisecond) // sleep: what a disk takes, in fake time
			return nil
		})
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				if err := b.wait(t.Context(), 0, uint64(i)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		// The first one's, and one for all who came while it was under way; or one
		// for all, if all came before it began.
		if syncs < 1 || syncs > 2 || through.Load() != 99 {
			t.Errorf("%d syncs, durable through %d; want 1 or 2, and 99", syncs, through.Load())
		}
	})
}

func TestIdleBarrierDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _, _ := newBarrier(func() error {
			time.Sleep(time.Millisecond) // sleep: what a disk takes, in fake time
			return nil
		})
		for range 3 {
			began := time.Now()
			if err := b.wait(t.Context(), 0, 1); err != nil || time.Since(began) != time.Millisecond {
				t.Errorf("took %v, %v; want one sync and no more", time.Since(began), err)
			}
		}
	})
}

// A sync that began before a write may have passed over it.
func TestBarrierBeginsAfterTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var written, synced atomic.Int64
		b, _, _ := newBarrier(func() error {
			seen := written.Load()
			time.Sleep(time.Millisecond) // sleep: what a disk takes, in fake time
			synced.Store(seen)
			return nil
		})
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 130 * time.Microsecond) // sleep: they come one after another, in fake time
				mine := written.Add(1)
				if err := b.wait(t.Context(), 0, 0); err != nil || synced.Load() < mine {
					t.Errorf("write %d: returned when %d were synced, %v", mine, synced.Load(), err)
				}
			})
		}
		wg.Wait()
	})
}

func TestFailedBarrierIsFinal(t *testing.T) {
	fails := errors.New("input/output error")
	var err error
	b, through, broke := newBarrier(func() error { return err })
	if err := b.wait(t.Context(), 0, 7); err != nil {
		t.Fatal(err)
	}
	err = fails
	if got := b.wait(t.Context(), 0, 8); !errors.Is(got, fails) {
		t.Errorf("got %v", got)
	}
	err = nil // the kernel has forgotten; we have not
	if got := b.wait(t.Context(), 0, 9); !errors.Is(got, fails) {
		t.Errorf("after a failed sync: %v, want its error for ever", got)
	}
	if through.Load() != 7 || broke.Load() != 1 {
		t.Errorf("durable through %d, broken told %d times; want 7 and once", through.Load(), broke.Load())
	}
	b.reset()
	if got := b.wait(t.Context(), 0, 9); !errors.Is(got, ErrReopened) {
		t.Errorf("what was written before the store was opened again: %v, want %v", got, ErrReopened)
	}
	if got := b.wait(t.Context(), b.now(), 9); got != nil || through.Load() != 9 {
		t.Errorf("what was written after it: %v", got)
	}
}

func TestBarrierHonoursDeadline(t *testing.T) {
	hang := make(chan struct{})
	b, _, _ := newBarrier(func() error { <-hang; return nil })
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	for range 2 {
		if err := b.wait(ctx, 0, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	}
	close(hang)
}
