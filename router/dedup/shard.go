package dedup

import (
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// shards is how many parts the table has. Each has its lock and grows by
// itself: with 20 million ids one part is 1.7 MB and made anew in about two
// milliseconds, and that is the longest anybody waits.
const shards = 256

// A part is made anew when more than maxLoad of its slots are taken, with as
// many slots that minLoad of them are. So an id takes between 18 and 22.3 bytes.
// Linear probing looks at 7 slots on average for an unknown id at minLoad and
// at 33 at maxLoad, which are 9 adjacent cache lines.
const (
	maxLoadNum, maxLoadDen = 7, 8   // 0.875
	minLoadNum, minLoadDen = 18, 25 // 0.72
	// evictLoad is what a part is emptied to when it may not grow: a sixteenth
	// of its ids goes at a time, so that making it anew is paid for by as many
	// new ids.
	evictLoadNum, evictLoadDen = 105, 128 // 0.82 = 15/16 of 0.875
)

// minSlots is what an empty part has; all of them are 64 KiB.
const minSlots = 16

const entrySize = 16 // bytes, in memory and on disk

// entry is one slot. Its time is never zero unless the slot is free, so that
// fingerprints may have any value.
type entry struct {
	id     uint64
	digest uint32
	at     uint32 // Unix seconds, good until 2106
}

// seconds is t as entries hold it.
func seconds(t time.Time) uint32 {
	return uint32(min(max(t.Unix(), 1), math.MaxUint32))
}

type shard struct {
	mu     sync.Mutex // guards what follows
	slots  []entry
	used   int
	oldest uint32 // no entry is older

	touched uint32 // see fill
	_       [64 - 48]byte
}

// table is the ids in memory: open addressing with linear probing, in shards.
// Nothing is ever taken out of a shard but by making it anew, so that a run of
// taken slots stays whole.
type table struct {
	// seed makes the order of slots another one in each process: senders cannot
	// aim at one place, and a log written in the order of slots does not come
	// back in that order, which would fill a growing table from one end.
	seed    uint64
	horizon uint32           // seconds
	room    int              // slots that a shard may have
	now     func() time.Time // of Config

	forced  atomic.Uint32 // newest time of what the cap forced out
	dropped atomic.Uint64 // how many it forced out

	shards [shards]shard
}

// init makes an empty table; seed is any random number.
func (t *table) init(seed uint64) {
	t.seed = seed | 1
	for i := range t.shards {
		t.shards[i].slots = make([]entry, minSlots)
		t.shards[i].oldest = math.MaxUint32
	}
}

func (t *table) shard(id uint64) *shard { return &t.shards[id>>56] }

// slot is where the search for id begins in a shard of n slots.
func (t *table) slot(id uint64, n int) uint64 {
	i, _ := bits.Mul64(id*t.seed, uint64(n))
	return i
}

// cut is the newest time that is past the horizon at now. Times are whole
// seconds; an id is remembered for the horizon and up to a second longer.
func (t *table) cut(now uint32) uint32 {
	if now <= t.horizon+1 {
		return 0
	}
	return now - t.horizon - 1
}

// times gives when id was stored: with this digest, with another one, and with
// such as are under their Pair. Zero means never. The caller holds s.mu.
func (t *table) times(s *shard, id uint64, digest uint32) (same, other, marked uint32) {
	slots := s.slots
	for i := t.slot(id, len(slots)); ; {
		e := &slots[i]
		switch {
		case e.at == 0:
			return same, other, marked
		case e.id != id:
		case e.digest == digest:
			same = e.at
		case e.digest == reused:
			marked = e.at
		default:
			other = max(other, e.at)
		}
		if i++; i == uint64(len(slots)) {
			i = 0
		}
	}
}

// put remembers e, or that it came again when e is later. The caller holds s.mu.
func (t *table) put(s *shard, e entry, now uint32) {
	if s.used >= len(s.slots)*maxLoadNum/maxLoadDen {
		t.rebuild(s, 1, now)
	}
	slots := s.slots
	for i := t.slot(e.id, len(slots)); ; {
		have := &slots[i]
		if have.at == 0 {
			*have = e
			s.used++
			s.oldest = min(s.oldest, e.at)
			return
		}
		if have.id == e.id && have.digest == e.digest {
			have.at = max(have.at, e.at)
			return
		}
		if i++; i == uint64(len(slots)) {
			i = 0
		}
	}
}

// lookup says what is known of k. It locks one shard, or two after another for
// an identity that was reused.
func (t *table) lookup(k Key) Seen {
	s := t.shard(k.ID)
	s.mu.Lock()
	same, other, marked := t.times(s, k.ID, k.Digest)
	s.mu.Unlock()
	if same|other|marked == 0 {
		return New // most are; they need not know the time
	}
	cut := t.cut(seconds(t.now()))
	if same > cut {
		return Same
	}
	if marked > cut {
		s := t.shard(k.Pair)
		s.mu.Lock()
		same, _, _ := t.times(s, k.Pair, k.Digest)
		s.mu.Unlock()
		if same > cut {
			return Same
		}
		return Reused
	}
	if other > cut {
		return Reused
	}
	return New
}

// add remembers k and appends what it put to entries. The log gets all of that,
// also what was there already: it may be there from a file that is damaged later,
// and a session must not rely on more than it says.
//
// An identity's first digest is under its ID. Further ones are under their Pair,
// with a mark under the ID that is as late as the latest of them: a sender that
// uses one id for everything fills no long run of slots, and its events are
// told apart by 96 bits instead of the 32 of their digests.
func (t *table) add(k Key, at uint32, entries []entry) []entry {
	now := seconds(t.now())
	cut := t.cut(now)
	if at <= cut {
		return entries
	}
	put := func(s *shard, e entry) {
		t.put(s, e, now)
		entries = append(entries, e)
	}
	s := t.shard(k.ID)
	s.mu.Lock()
	same, other, marked := t.times(s, k.ID, k.Digest)
	if same != 0 || max(other, marked) <= cut {
		put(s, entry{id: k.ID, digest: k.Digest, at: at})
		s.mu.Unlock()
		return entries
	}
	put(s, entry{id: k.ID, digest: reused, at: at})
	s.mu.Unlock()
	s = t.shard(k.Pair)
	s.mu.Lock()
	put(s, entry{id: k.Pair, digest: k.Digest, at: at})
	s.mu.Unlock()
	return entries
}

// slotsFor is how many slots n ids get.
func slotsFor(n int) int {
	return max(minSlots, n*minLoadDen/minLoadNum+1)
}

// rebuild makes s anew without what is past the horizon, with room for more ids
// beside those it has. When s would pass its room the oldest ids go too. The
// caller holds s.mu.
func (t *table) rebuild(s *shard, more int, now uint32) {
	cut := t.cut(now)
	live := 0
	for i := range s.slots {
		e := &s.slots[i]
		// Stored in the future: the clock was set back. It counts from here.
		e.at = min(e.at, now)
		if e.at > cut {
			live++
		}
	}
	n := slotsFor(live + more)
	var out eviction
	if n > t.room {
		n = t.room
		out = t.evict(s, live+more-n*evictLoadNum/evictLoadDen, cut, now)
	}
	old := s.slots
	s.slots, s.used, s.oldest = make([]entry, n), 0, math.MaxUint32
	for _, e := range old {
		if e.at <= cut || out.drops(e.at) { // a free slot's time is 0
			continue
		}
		i := t.slot(e.id, n)
		for s.slots[i].at != 0 {
			if i++; i == uint64(n) {
				i = 0
			}
		}
		s.slots[i] = e
		s.used++
		s.oldest = min(s.oldest, e.at)
	}
	if out.dropped > 0 {
		t.dropped.Add(uint64(out.dropped))
		raise(&t.forced, out.newest)
	}
}

// eviction chooses the oldest ids of a shard, to the precision of a bucket.
type eviction struct {
	from, width uint32 // of the buckets
	whole       uint32 // buckets before it go as a whole
	part        int    // and so many of this one
	dropped     int
	newest      uint32 // of what was dropped
}

// evict finds the cut-off for n ids of s. n may be less than one: then there
// are none to drop.
func (t *table) evict(s *shard, n int, cut, now uint32) eviction {
	if n <= 0 {
		return eviction{}
	}
	// 256 buckets make a cut-off precise to six minutes in a day; in a bucket it
	// is arbitrary which ids go.
	var count [256]int
	ev := eviction{from: cut + 1, width: (now-cut)/uint32(len(count)) + 1}
	for i := range s.slots {
		if at := s.slots[i].at; at > cut {
			count[(at-ev.from)/ev.width]++
		}
	}
	for n > count[ev.whole] {
		n -= count[ev.whole]
		if ev.whole++; int(ev.whole) == len(count) {
			n = 0
			break
		}
	}
	ev.part = n
	return ev
}

// drops says whether an id of this time goes.
func (ev *eviction) drops(at uint32) bool {
	if ev.width == 0 {
		return false
	}
	switch b := (at - ev.from) / ev.width; {
	case b > ev.whole:
		return false
	case b == ev.whole:
		if ev.part == 0 {
			return false
		}
		ev.part--
	}
	ev.dropped++
	ev.newest = max(ev.newest, at)
	return true
}

// reserve makes room for n ids spread over all shards, so that loading them
// moves none twice. It is called before anything else uses t.
func (t *table) reserve(n int) {
	// A shard's count strays by its square root; 1/32 more holds that from a
	// quarter million ids on, and below growing is cheap.
	each := min(slotsFor((n+n/32)/shards), t.room)
	for i := range t.shards {
		t.shards[i].slots = make([]entry, each)
	}
}

// sweep drops what is past the horizon from one shard if that is worth it, so
// that memory is given back when traffic ebbs.
func (t *table) sweep(i int) {
	s := &t.shards[i]
	now := seconds(t.now())
	cut := t.cut(now)
	s.mu.Lock()
	defer s.mu.Unlock()
	live, oldest := 0, uint32(math.MaxUint32)
	for i := range s.slots {
		if at := s.slots[i].at; at > cut {
			live++
			oldest = min(oldest, at)
		}
	}
	s.oldest = oldest
	if s.used-live > len(s.slots)/8 || slotsFor(live) < len(s.slots)/2 {
		t.rebuild(s, 0, now)
	}
}

// snapshot appends a shard's entries to b, encoded, without what is past the
// horizon.
func (t *table) snapshot(i int, b []byte) []byte {
	cut := t.cut(seconds(t.now()))
	s := &t.shards[i]
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.slots {
		if e.at > cut {
			b = e.encode(b)
		}
	}
	return b
}

// raise sets v to n if n is higher.
func raise(v *atomic.Uint32, n uint32) {
	for {
		old := v.Load()
		if old >= n || v.CompareAndSwap(old, n) {
			return
		}
	}
}
