package deliver

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// slots bound how many deliveries of a subscriber run at once. The goroutines
// stay for a while when they are done: a new one for each delivery would grow its
// stack anew each time, which costs a twentieth of all.
type slots struct {
	free *semaphore.Weighted
	// idle is how long a goroutine stays without work.
	idle time.Duration
	work chan func()
	quit chan struct{} // closed when they need not stay any more
	over sync.Once     // closes it

	mu sync.Mutex // guards staying
	// staying counts the goroutines that wait for work and were not promised any.
	staying int
}

// slotIdle is longer than a busy subscriber ever lets a slot wait, and short
// enough that a thousand quiet ones keep none.
const slotIdle = 200 * time.Millisecond

func newSlots(n int) *slots {
	return &slots{free: semaphore.NewWeighted(int64(n)), idle: slotIdle, work: make(chan func(), n), quit: make(chan struct{})}
}

// acquire waits for a free slot. The error is ctx's.
func (s *slots) acquire(ctx context.Context) error { return s.free.Acquire(ctx, 1) }

// run calls f in a slot that the caller has acquired, and frees the slot after.
func (s *slots) run(f func()) {
	s.mu.Lock()
	if s.staying > 0 {
		s.staying--
		s.mu.Unlock()
		s.work <- f // there is room for one for each slot
		return
	}
	s.mu.Unlock()
	go s.serve(f)
}

// close lets the goroutines go that have nothing to do, now and later.
func (s *slots) close() { s.over.Do(func() { close(s.quit) }) }

func (s *slots) serve(f func()) {
	t := time.NewTimer(s.idle)
	defer t.Stop()
	for {
		f()
		s.mu.Lock()
		s.staying++
		s.mu.Unlock()
		s.free.Release(1) // after that, so that whoever gets the slot finds us
		t.Reset(s.idle)
		select {
		case f = <-s.work:
			continue
		case <-t.C:
		case <-s.quit:
		}
		s.mu.Lock()
		leave := s.staying > 0
		if leave {
			s.staying--
		}
		s.mu.Unlock()
		if leave {
			return
		}
		f = <-s.work // it was promised
	}
}
