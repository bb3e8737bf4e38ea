package deliver

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/gridfan/gridfan/schemas/event"
)

// What a subscriber holds back beyond its limit, or must be shed for the sake of
// all, is given up here without an attempt. It goes the way of every other
// delivery: fetched through the subscriber's own cursor, held, recorded, acked.
// So it works with the breaker open and while paused, and an event that is being
// delivered at that moment is not touched. Somebody else decides how much.

// surplus is what a worker is to give up.
type surplus struct {
	expire order         // dead letters
	shed   order         // records only
	wake   chan struct{} // holds at most one token

	expired, gone atomic.Uint64 // settled so
}

// order is to give up the events up to a sequence.
type order struct {
	through atomic.Uint64
	open    atomic.Bool // given, and not worked on yet
}

// GivenUp counts what a worker has settled without an attempt.
type GivenUp struct {
	Expired uint64 // dead letters of its backlog
	Shed    uint64
}

// Expire makes dead letters of the events up to a sequence, with the cause
// backlog, except those in flight and in retry. It does not block: ask again
// until it is done.
func (w *Worker) Expire(through uint64) {
	w.with(func(now *worker) { now.surplus.want(&now.surplus.expire, through) })
}

// Shed drops the events up to a sequence, each with its record, except those
// that are being sent. It does not block: ask again until it is done, and then
// with 0, or what waits for room later is dropped too.
func (w *Worker) Shed(through uint64) {
	w.with(func(now *worker) { now.surplus.want(&now.surplus.shed, through) })
}

// GivenUp counts since the start.
func (w *Worker) GivenUp() GivenUp {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.before
	if w.now != nil {
		now := w.now.surplus.given()
		g.Expired += now.Expired
		g.Shed += now.Shed
	}
	return g
}

func (s *surplus) given() GivenUp { return GivenUp{s.expired.Load(), s.gone.Load()} }

func (s *surplus) want(what *order, through uint64) {
	what.through.Store(through)
	if what.open.Store(through > 0); through == 0 {
		return
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// The rounds begin small, so that few fresh events are fetched in vain, and grow
// to what one sync of the disk and one block of records carry well: 256 dead
// letters a round were 10,000 a second, more than a subscriber gets in the long
// run.
const (
	firstRound = 16
	lastRound  = 256
)

// surplusLoop gives up what it is told to.
func (w *worker) surplusLoop() {
	defer w.fetching.Done()
	for {
		select {
		case <-w.surplus.wake:
		case <-w.stopped.Done():
			return
		}
		r := run{
			w: w, n: firstRound, given: map[uint64]bool{},
			expire: w.surplus.expire.open.Swap(false), shed: w.surplus.shed.open.Swap(false),
		}
		for w.stopped.Err() == nil {
			more, err := r.round()
			if err != nil && w.stopped.Err() == nil {
				w.log.Warn("surplus not fetched", "error", err)
				w.sleep(100 * time.Millisecond)
				w.lanes[0].heal(err)
			}
			if err != nil || !more {
				break
			}
		}
	}
}

// run is a number of rounds in a row.
type run struct {
	w            *worker
	n            int
	expire, shed bool // which orders it works on
	// given are the events that were fetched and given back. The broker hands
	// those out first the next time, in any order, so older ones may come behind
	// them: only when one comes around again has everything been seen.
	given map[uint64]bool
	last  uint64 // the newest that was given up
}

// round fetches some events, gives up what it may of them, and says whether
// another round may find more.
func (r *run) round() (more bool, err error) {
	w, l := r.w, r.w.lanes[0]
	through := uint64(0)
	if r.shed {
		through = w.surplus.shed.through.Load()
	}
	// Without room for dead letters their events stay where they are.
	if expire := w.surplus.expire.through.Load(); r.expire && expire > through && !w.dead.spent(w.stopped) {
		through = expire
	}
	if through == 0 {
		return false, nil
	}
	// There can't be more than there are sequences left.
	n := r.n
	if r.last > 0 {
		n = min(n, int(through-min(through-1, r.last)))
	}
	fetched, around := 0, false
	var blocked atomic.Bool
	var settling sync.WaitGroup
	err = l.reading().ready(w.stopped, n, func(m message) {
		fetched++
		d := l.take(m, nil)
		if d == nil {
			return
		}
		seq := d.origin.sequence
		if seq > through {
			around = around || r.given[seq]
			r.given[seq] = true
			l.giveBack(d)
			return
		}
		r.last = max(r.last, seq)
		d.surplus = true
		settling.Add(1)
		w.sending.Go(func() {
			defer settling.Done()
			if !w.giveUp(d) {
				blocked.Store(true)
			}
		})
	})
	settling.Wait()
	if r.n = min(2*r.n, lastRound); len(r.given) > 0 {
		r.n = firstRound
	}
	return err == nil && fetched > 0 && !around && !blocked.Load(), err
}

// giveUp settles one event without an attempt, or gives it back and says so.
func (w *worker) giveUp(d *delivery) bool {
	if !w.onDisk(d) {
		d.lane.giveBack(d)
		return false
	}
	if !w.wants(d) {
		w.skip(d)
		return true
	}
	var err error
	if d.event, err = d.decode(); err != nil {
		d.event = &event.Event{ID: d.get("ce-id")}
	}
	switch seq := d.origin.sequence; {
	case seq <= w.surplus.expire.through.Load():
		return w.deadLetter(d, causeBacklog, Attempt{Reason: "over the limit of the backlog"}, 0)
	case seq <= w.surplus.shed.through.Load():
		w.shed(d, Attempt{}, 0)
		return true
	}
	// It is no longer wanted.
	d.lane.giveBack(d)
	return false
}

// toShed says whether an event is to be shed. It is asked for those, too, whose
// delivery waits for room: they would hold the room of all the others.
func (w *worker) toShed(d *delivery) bool {
	return d.lane == w.lanes[0] && d.origin.sequence <= w.surplus.shed.through.Load()
}
