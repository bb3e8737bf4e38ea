package deliver

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestSlots runs more than there are slots, and then nothing.
func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most, all = 4, 1000
		s := newSlots(most)
		var running, highest, done atomic.Int64
		begin := func() {
			t.Helper()
			if err := s.acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.run(func() {
				if n := running.Add(1); n > highest.Load() {
					highest.Store(n)
				}
				time.Sleep(time.Duration(done.Load()%7) * slotIdle / 3) // sleep: some end at once, some after others left
				running.Add(-1)
				done.Add(1)
			})
		}
		for range all {
			begin()
		}
		synctest.Wait()
		time.Sleep(4 * slotIdle) // sleep: until the last have ended
		if done.Load() != all || highest.Load() != most {
			t.Fatalf("%d done, %d at once", done.Load(), highest.Load())
		}
		staying := func() int {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.staying
		}
		if n := staying(); n != 0 {
			t.Errorf("%d goroutines stay although there is nothing to do", n)
		}
		begin()
		synctest.Wait()
		s.close()
		time.Sleep(4 * slotIdle) // sleep: until it has ended
		if n := staying(); n != 0 || done.Load() != all+1 {
			t.Errorf("%d goroutines stay after the end, %d done", n, done.Load())
		}
		begin() // a settlement can still come
		synctest.Wait()
		if done.Load() != all+2 {
			t.Error("not run after the end")
		}
	})
}
