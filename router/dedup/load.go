package dedup

import (
	"math"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
)

// loadUnit is how much of the log is read at once by one core. Sorted into
// shards, half a million entries are 2,000 for each, which go into a part of
// memory that a core's cache holds.
const loadUnit = 8 << 20

// stored is a file of the log as it is read.
type stored struct {
	segment
	path   string
	blocks []block
	whole  bool // the file ends with the last block
}

// block is what is known of one.
type block struct {
	header
	offset  int64
	sound   bool
	foreign bool // of another stream, or beyond its end
}

// load fills x from the log. Nothing else uses x yet.
func (x *Index) load(s Stream) {
	j := x.journal
	segments, err := j.list()
	if err != nil {
		// Collecting stays off, so the first tick tries to make a new log.
		x.sayLog(err)
		return
	}
	x.pending.collecting = true
	now := seconds(x.table.now())
	files := make([]stored, len(segments))
	live := 0
	for i, seg := range segments {
		files[i] = scan(filepath.Join(j.dir, seg.name()), seg)
		for _, b := range files[i].blocks {
			if b.newest > x.table.cut(now) {
				live += int(b.count)
			}
		}
	}
	x.table.reserve(live)
	x.readBlocks(files, s, now)

	r := judge(files)
	for i := range files {
		f := &files[i]
		for _, b := range f.blocks {
			f.newest = max(f.newest, min(b.newest, now))
		}
		j.segments = append(j.segments, f.segment)
		j.next = f.number + 1
	}
	j.next = max(j.next, 1)
	j.base, j.covered = r.covered, r.covered
	x.highest.Store(max(r.highest, r.covered))
	x.coverage.covered = r.covered
	if r.covered > 0 {
		x.coverage.since, x.coverage.hole = min(r.since, now+1), math.MaxUint64
	}
	j.pieces, j.damaged = r.small >= maxSmall, r.damaged != ""
	if r.damaged != "" {
		x.log.Warn("the log of ids is damaged; all that is sound was read, the rest is in the stream",
			"file", filepath.Join(j.dir, r.damaged), "covered", r.covered)
	}
	if r.foreign {
		x.log.Warn("ids of another stream, or beyond the end of this one, are forgotten; it was made anew or restored",
			"ids", r.forgotten, "last", s.Last, "covered", r.covered)
		// They must be gone before the stream grows past them and they are
		// believed at the next Open.
		x.pending.collecting = false
		x.sayLog(x.rewrite())
	}
}

// list gives the files to read and clears away what is of no use any more.
func (j *journal) list() ([]segment, error) {
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return nil, err
	}
	names, segments, err := listDir(j.dir)
	if err != nil {
		return nil, err
	}
	for i := len(segments) - 1; i > 0; i-- {
		if segments[i].base {
			segments = segments[i:]
			break
		}
	}
	for _, name := range names {
		s, unfinished, _ := parseSegment(name)
		if unfinished || s.number < segments[0].number {
			// What cannot be removed is passed over at each Open.
			_ = os.Remove(filepath.Join(j.dir, name))
		}
	}
	return segments, nil
}

// scan finds the blocks of a file by their headers.
func scan(name string, seg segment) stored {
	st := stored{segment: seg, path: name}
	f, err := os.Open(name)
	if err != nil {
		return st
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return st
	}
	var buf [headerSize]byte
	var offset int64
	for offset+headerSize <= info.Size() {
		b := block{offset: offset}
		if _, err := f.ReadAt(buf[:], offset); err != nil {
			return st
		}
		if !b.decode(buf[:]) || offset+b.size() > info.Size() {
			return st
		}
		st.blocks = append(st.blocks, b)
		offset += b.size()
	}
	st.whole = offset == info.Size()
	return st
}

// readBlocks checks all blocks and puts the ids of those to believe in into the
// table.
func (x *Index) readBlocks(files []stored, s Stream, now uint32) {
	type unit struct {
		path   string
		blocks []block
	}
	var units []unit
	for _, f := range files {
		for rest := f.blocks; len(rest) > 0; {
			n, size := 0, int64(0)
			for n < len(rest) && (n == 0 || size+rest[n].size() <= loadUnit) {
				size += rest[n].size()
				n++
			}
			units = append(units, unit{f.path, rest[:n]})
			rest = rest[n:]
		}
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	// More cores than four wait for memory, and for each other's locks.
	workers := min(runtime.GOMAXPROCS(0), 4, len(units))
	for w := range workers {
		wg.Go(func() {
			l := loader{x: x, stream: s, hash: x.journal.stream, now: now, first: w * shards / workers}
			for {
				i := int(next.Add(1)) - 1
				if i >= len(units) {
					return
				}
				l.load(units[i].path, units[i].blocks)
			}
		})
	}
	wg.Wait()
}

// loader is one core's part of loading.
type loader struct {
	x      *Index
	stream Stream
	hash   uint64
	now    uint32
	first  int // shard to begin with, so that loaders do not queue for the same

	raw    []byte
	sorted []entry
}

// load reads adjacent blocks of a file. When it cannot, none of them is sound.
func (l *loader) load(name string, blocks []block) {
	f, err := os.Open(name)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	last := &blocks[len(blocks)-1]
	start := blocks[0].offset
	size := int(last.offset + last.size() - start)
	if cap(l.raw) < size {
		l.raw = make([]byte, size)
	}
	raw := l.raw[:size]
	if _, err := f.ReadAt(raw, start); err != nil {
		return
	}
	cut := l.x.table.cut(l.now)
	var end [shards + 1]int // of each shard's entries, one further on
	total := 0
	for i := range blocks {
		b := &blocks[i]
		at := raw[b.offset-start:][:b.size()]
		// What the header says was read a moment ago; the checksum is over what
		// is here now.
		if b.sound = b.decode(at) && int(b.size()) == len(at) && sound(at); !b.sound {
			continue
		}
		if b.foreign = b.stream != l.hash || b.highest > l.stream.Last || b.covered > l.stream.Last; b.foreign {
			continue
		}
		for at = at[headerSize:]; len(at) > 0; at = at[entrySize:] {
			end[int(at[7])+1]++ // the id's highest byte
		}
		total += int(b.count)
	}
	if cap(l.sorted) < total {
		l.sorted = make([]entry, total)
	}
	sorted := l.sorted[:total]
	for i := range shards {
		end[i+1] += end[i]
	}
	begin := end
	for i := range blocks {
		b := &blocks[i]
		if !b.sound || b.foreign {
			continue
		}
		at := raw[b.offset-start:][:b.size()]
		for at = at[headerSize:]; len(at) > 0; at = at[entrySize:] {
			e := decodeEntry(at)
			n := &end[e.id>>56]
			sorted[*n] = e
			*n++
		}
	}
	for i := range shards {
		i = (i + l.first) % shards
		l.x.table.fill(i, sorted[begin[i]:begin[i+1]], cut, l.now)
	}
}

// ahead is how many entries' slots are looked at before any of them is used. The
// processor then waits for memory once for several and not for each, because
// nothing depends on what it finds; that halves the time of loading.
const ahead = 32

// fill puts entries into one shard, without those that are past the horizon.
func (t *table) fill(i int, entries []entry, cut, now uint32) {
	s := &t.shards[i]
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(entries) > 0 {
		some := entries[:min(ahead, len(entries))]
		entries = entries[len(some):]
		var seen uint32
		for _, e := range some {
			seen |= s.slots[t.slot(e.id, len(s.slots))].at
		}
		s.touched = seen // or the compiler leaves the reading out
		for _, e := range some {
			e.at = min(e.at, now) // see rebuild
			if e.at > cut {
				t.put(s, e, now)
			}
		}
	}
}

// result is what the log says beside its ids.
type result struct {
	covered uint64
	since   uint32 // with covered
	highest uint64
	damaged string // first file with damage
	small   int    // files

	foreign   bool // there are such blocks
	forgotten int  // ids in them
}

// judge finds how far the log covers the stream. See header for sessions.
func judge(files []stored) result {
	var r result
	var session, base uint64
	broken := true
	for i, f := range files {
		if i > 0 && f.number != files[i-1].number+1 {
			broken = true
			r.damage(f)
		}
		entries := 0
		for n, b := range f.blocks {
			if !b.sound {
				broken = true
				r.damage(f)
				continue
			}
			if b.foreign {
				broken, r.foreign = true, true
				r.forgotten += int(b.count)
				continue
			}
			entries += int(b.count)
			r.highest = max(r.highest, b.highest)
			switch begins := n == 0 && (i == 0 || b.session == f.number && b.base <= r.covered); {
			case begins:
				// Or it is the first file that is not past the horizon.
				session, base, broken = b.session, b.base, false
			case b.session != session || b.base != base:
				broken = true
				r.damage(f) // or rather before it: it builds on what is not there
			}
			if !broken && b.covered >= r.covered {
				r.covered, r.since = b.covered, b.since
			}
		}
		if !f.whole {
			broken = true
			r.damage(f)
		}
		if entries < smallSegment && !f.base {
			r.small++
		}
	}
	return r
}

func (r *result) damage(f stored) {
	if r.damaged == "" {
		r.damaged = f.name()
	}
}
