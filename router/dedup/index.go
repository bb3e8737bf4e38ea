// Package dedup remembers which events were stored within a horizon, so that
// none is published twice.
//
// The broker does that itself for as long as its duplicate window lasts, at
// about 110 bytes an id. Event Grid repeats an event for 24 hours, for which
// that is too much, so this index stands behind a short window. It keeps an
// event's identity and content as a fingerprint in 24 bytes of memory or less,
// and a log of the fingerprints on disk, from which it is back within a second
// of a restart.
//
// The stream stays what counts: an index may be behind it, and its owner then
// adds what it lacks. Covered says from where. Everything may be added twice.
package dedup

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Config of an index. Its zero value is an index in memory only, with defaults.
type Config struct {
	// Dir is where the log is; it is made if it is missing, and nothing else
	// should be in it. Empty: in memory only, and empty after each Open.
	Dir string
	// Horizon is how long an id is remembered after it was stored. Default: 24
	// hours, for which Event Grid repeats. At most ten years.
	Horizon time.Duration
	// MaxBytes is the most memory that ids may take, beside buffers of the log.
	// When it is full the oldest are forgotten before their time. Default: 512
	// MiB, which is 27 million ids. 64 KiB are taken in any case.
	MaxBytes int64
	// Now is the clock by which ids age. It is called under locks. Nil: time.Now.
	Now func() time.Time
}

const (
	defaultHorizon  = 24 * time.Hour
	maxHorizon      = 10 * 365 * 24 * time.Hour // entries' 32 bits hold more
	defaultMaxBytes = 512 << 20
)

// Stream says which stream the ids are of. Ids that were logged for another one,
// or beyond its last sequence, are not believed: it was made anew, or restored
// from a backup.
type Stream struct {
	// ID is another one for a stream that was made anew under the same name,
	// such as its name and time of creation.
	ID string
	// Last is its last sequence when gridfan starts, before it publishes anything.
	Last uint64
}

// Index remembers keys. All its methods are safe for concurrent use, and none
// but Open and Close waits for the disk.
type Index struct {
	table table
	log   *slog.Logger

	// highest is the highest sequence of anything in the table; it is raised
	// before the table changes.
	highest atomic.Uint64

	mu       sync.Mutex // guards coverage and pending
	coverage coverage
	pending  pending

	// What follows belongs to run, and before it starts to Open, and after it
	// ended to Close.
	journal *journal // nil: in memory only
	swept   int      // next shard to sweep
	forced  struct { // what was last said about ids that the cap forced out
		ids uint64
		at  time.Time
	}

	wake  chan struct{} // a block is full
	stop  chan struct{}
	done  chan struct{}
	close func() error
}

// pending is what the log does not have yet.
type pending struct {
	// collecting is false when there is no log, or it has a gap: then it makes
	// no sense to add to it until all is written anew.
	collecting bool
	entries    []byte // encoded
	highest    uint64 // sequence among them
}

// maxPending is how much may wait for the disk: at 20,000 events a second, that
// is what comes in while it stands still for 50 seconds.
const maxPending = 16 << 20

// tick is how often the log is written when no block fills up. What it lacks
// after a crash is read from the stream, 20,000 events at most.
const tick = time.Second

// Open makes an index and fills it from the log. It fails only for a Config that
// makes no sense: when the disk does not read or write, the index is empty or
// stays in memory, says so in the log, and the owner fills it from the stream.
// The caller closes it.
func Open(cfg Config, s Stream, log *slog.Logger) (*Index, error) {
	return open(cfg, s, log, createFile)
}

func open(cfg Config, s Stream, log *slog.Logger, create func(string) (file, error)) (*Index, error) {
	x, err := newIndex(cfg, s, log, create)
	if err != nil {
		return nil, err
	}
	x.close = sync.OnceValue(func() error {
		close(x.stop)
		<-x.done
		return x.closeLog()
	})
	go x.run()
	return x, nil
}

// newIndex is open without the goroutine.
func newIndex(cfg Config, s Stream, log *slog.Logger, create func(string) (file, error)) (*Index, error) {
	var problems []error
	if cfg.Horizon < 0 || cfg.Horizon > maxHorizon {
		problems = append(problems, fmt.Errorf("horizon %s is not between 0 and %s", cfg.Horizon, maxHorizon))
	}
	if cfg.MaxBytes < 0 {
		problems = append(problems, fmt.Errorf("memory of %d bytes is less than none", cfg.MaxBytes))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("dedup index: %w", err)
	}
	if cfg.Horizon == 0 {
		cfg.Horizon = defaultHorizon
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = defaultMaxBytes
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	x := &Index{
		log:  log,
		wake: make(chan struct{}, 1),
		stop: make(chan struct{}),
		done: make(chan struct{}),
	}
	x.table.horizon = uint32((cfg.Horizon + time.Second - 1) / time.Second)
	x.table.room = int(max(minSlots, min(cfg.MaxBytes/entrySize/shards, math.MaxInt32)))
	x.table.now = cfg.Now
	x.table.init(rand.Uint64())
	x.coverage.since = seconds(cfg.Now())
	if cfg.Dir != "" {
		x.journal = newJournal(cfg.Dir, s, create)
		x.load(s)
	}
	return x, nil
}

// Lookup says what the index knows of k.
func (x *Index) Lookup(k Key) Seen { return x.table.lookup(k.tabled()) }

// Add remembers that the event of k was stored under this sequence, and what else
// it is known by. To add it again changes nothing, and an event that was stored
// twice counts from the later time.
func (x *Index) Add(sequence uint64, k Key, at time.Time, also ...Key) {
	for {
		old := x.highest.Load()
		if old >= sequence || x.highest.CompareAndSwap(old, sequence) {
			break
		}
	}
	var room [4]entry
	t := seconds(at)
	entries := x.table.add(k.tabled(), t, room[:0])
	for _, k := range also {
		entries = x.table.add(k.tabled(), t, entries)
	}

	x.mu.Lock()
	defer x.mu.Unlock()
	// In one critical section, so that no block says that it covers a sequence
	// whose entry comes in a later one.
	x.collect(sequence, entries)
	x.coverage.cover(sequence)
	if sequence > x.coverage.hole && t < x.coverage.since {
		x.coverage.since = t
	}
}

// collect puts entries down for the log. The caller holds x.mu.
func (x *Index) collect(sequence uint64, entries []entry) {
	p := &x.pending
	if !p.collecting || len(entries) == 0 {
		return
	}
	if len(p.entries) >= maxPending {
		p.collecting, p.entries, p.highest = false, nil, 0
		return
	}
	before := len(p.entries)
	for _, e := range entries {
		p.entries = e.encode(p.entries)
	}
	p.highest = max(p.highest, sequence)
	const block = maxBlock * entrySize
	if before/block != len(p.entries)/block {
		select {
		case x.wake <- struct{}{}:
		default:
		}
	}
}

// Cover says that this sequence holds nothing to remember: it was deleted, or is
// not one of ours.
func (x *Index) Cover(sequence uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.coverage.cover(sequence)
}

// Skip says that nothing at or below this sequence is to come any more, because
// the stream was trimmed. Where that passes over sequences that were not added,
// Stats.Since moves to what comes after them.
func (x *Index) Skip(through uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.coverage.skip(through, seconds(x.table.now()))
}

// Covered is the sequence up to which all are in the index. The owner adds what
// comes after it from the stream. A gap is held open for 1,048,576 sequences; of
// what came in beyond those, all is to be added once more after it was filled.
func (x *Index) Covered() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.coverage.covered
}

// Stats are an index's figures at one time.
type Stats struct {
	// IDs includes what is past the horizon and not cleared away yet, and one
	// more for each identity that came with several digests.
	IDs int
	// Bytes is the memory that ids take.
	Bytes int64
	// Oldest is about the time of the oldest id; zero when there is none.
	Oldest time.Time
	// Since is the time from which on no id is missing, so far as sequences up
	// to Covered go. That is the horizon, or later if the cap forced ids out,
	// the log was lost or Skip passed over some.
	Since   time.Time
	Covered uint64
	// Dropped is how many ids the cap forced out since Open.
	Dropped uint64
}

// Stats gives the figures. It locks parts of the index one after another.
func (x *Index) Stats() Stats {
	var st Stats
	oldest := uint32(math.MaxUint32)
	for i := range x.table.shards {
		s := &x.table.shards[i]
		s.mu.Lock()
		st.IDs += s.used
		st.Bytes += int64(len(s.slots)) * entrySize
		oldest = min(oldest, s.oldest)
		s.mu.Unlock()
	}
	x.mu.Lock()
	st.Covered = x.coverage.covered
	st.Since = time.Unix(int64(x.since()), 0)
	x.mu.Unlock()
	if st.IDs > 0 && oldest != math.MaxUint32 {
		first := x.table.cut(seconds(x.table.now())) + 1
		st.Oldest = time.Unix(int64(max(oldest, first)), 0)
	}
	st.Dropped = x.table.dropped.Load()
	return st
}

// since is Stats.Since. The caller holds x.mu.
func (x *Index) since() uint32 {
	t := max(x.coverage.since, x.table.cut(seconds(x.table.now()))+1)
	if forced := x.table.forced.Load(); forced > 0 {
		t = max(t, forced+1)
	}
	return t
}

// Close writes what the log lacks, syncs it, and ends the index's goroutine. It
// may be called again. Its error says that a part of the log was not written;
// that part is to come from the stream again. Other methods still work after
// it, in memory.
func (x *Index) Close() error { return x.close() }

// run does what takes time.
func (x *Index) run() {
	defer close(x.done)
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-x.stop:
			return
		case <-x.wake:
			x.writeLog()
		case <-t.C:
			x.writeLog()
			// One shard each second is a round in four minutes.
			x.table.sweep(x.swept)
			x.swept = (x.swept + 1) % shards
			x.sayForced()
		}
	}
}

// repeat is how often a lasting trouble is logged.
const repeat = 5 * time.Minute

// sayForced warns when the cap forced ids out.
func (x *Index) sayForced() {
	n := x.table.dropped.Load()
	if n == x.forced.ids || !x.forced.at.IsZero() && time.Since(x.forced.at) < repeat {
		return
	}
	horizon := time.Duration(x.table.horizon) * time.Second
	reach := x.table.now().Sub(time.Unix(int64(x.table.forced.Load())+1, 0))
	x.log.Warn("memory for ids is full; repeats of older events are published again; raise storage.dedup.memory",
		"horizon", max(0, reach).Round(time.Second), "configured", horizon,
		"dropped", n-x.forced.ids, "bytes", int64(x.table.room)*entrySize*shards)
	x.forced.ids, x.forced.at = n, time.Now()
}
