//go:build torture && linux

package torture_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestPowerCut cuts the power in the middle of the work, again and again: the
// disk stops with whatever has reached it, and so does the program. In half of
// the rounds the program sees the dead disk for a moment before.
func TestPowerCut(t *testing.T) {
	d := newDisk(t, 1<<30)
	w := newWorld(t, d.dir, everybody...)
	w.crashes(*cuts, func(round int) {
		if round%2 == 0 && honest {
			d.die()
			w.load.dead.Store(time.Now().UnixNano())
		} else {
			w.g.halt()
			d.die()
		}
		w.kill()
		d.remount()
		w.load.dead.Store(0)
	})
}

// TestKill kills the program at any moment. What it wrote stays.
func TestKill(t *testing.T) {
	d := newDisk(t, 1<<30)
	w := newWorld(t, d.dir, everybody...)
	w.crashes(*kills, func(int) { w.kill() })
}

// crashes works through so many crashes under load. Each fourth time it crashes
// once more while it starts.
func (w *world) crashes(n int, crash func(round int)) {
	w.t.Helper()
	w.load.start(usual)
	o := &operator{w: w, known: map[string]bool{}}
	var gaps []time.Duration // between a start and the first event accepted
	for round := range n {
		w.misread = round%2 == 1
		if round%4 == 3 {
			// Also while it starts.
			w.g = w.begin()
			anyMoment(0, 400*time.Millisecond)
			crash(round)
		}
		w.start()
		o.check()
		ctx, cancel := context.WithCancel(context.Background())
		var working sync.WaitGroup
		working.Go(func() { o.work(ctx) })
		w.load.more(1)
		gaps = append(gaps, time.Since(w.g.started))
		anyMoment(200*time.Millisecond, 1800*time.Millisecond)
		w.still()
		crash(round)
		cancel()
		working.Wait()
	}
	w.misread = false
	w.start()
	o.check()
	o.leave()
	w.load.more(1)
	w.settle()
	slices.Sort(gaps)
	w.t.Logf("%d crashes under load; from a start to the next accepted event %v, at most %v", n, gaps[n/2].Round(time.Millisecond), gaps[n-1].Round(time.Millisecond))
}
