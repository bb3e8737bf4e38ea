package dedup

import (
	"bytes"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// clock is one that tests move.
type clock struct{ nanos atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.nanos.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) now() time.Time          { return time.Unix(0, c.nanos.Load()) }
func (c *clock) advance(d time.Duration) { c.nanos.Add(int64(d)) }

// lines is a log that tests read.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

var quiet = slog.New(slog.DiscardHandler)

func mustOpen(t testing.TB, cfg Config, s Stream, log *slog.Logger) *Index {
	t.Helper()
	x, err := Open(cfg, s, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	return x
}

func mustClose(t testing.TB, x *Index) {
	t.Helper()
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
}

// used counts entries.
func used(x *Index) int { return x.Stats().IDs }

func TestKeyOf(t *testing.T) {
	// Keys are on disk: these values stay for ever.
	golden := Key{ID: 0x22197c7632329304, Pair: 0x537c671bb6bf02dc, Digest: 0xbe94167a}
	if d := cmp.Diff(golden, KeyOf("identity", "digest")); d != "" {
		t.Errorf("keys in logs would not be found any more (-want +got):\n%s", d)
	}
	a := KeyOf("identity", "digest")
	for _, other := range [][2]string{{"identity", "digest2"}, {"identity", ""}, {"identityd", "igest"}, {"", "identitydigest"}, {"identity\x00", "digest"}, {"identit", "y\x00digest"}} {
		b := KeyOf(other[0], other[1])
		if (a.ID == b.ID) != (other[0] == "identity") {
			t.Errorf("%q: got %+v beside %+v", other, b, a)
		}
		if a.Pair == b.Pair || a.Digest == b.Digest {
			t.Errorf("%q: got %+v beside %+v", other, b, a)
		}
	}
	if long := strings.Repeat("x", 1000); KeyOf(long, "") == KeyOf(long[1:], "") {
		t.Error("long identities are cut off")
	}
	if n := testing.AllocsPerRun(100, func() { _ = KeyOf("identity", "digest") }); n != 0 {
		t.Errorf("got %v allocations", n)
	}
}

func TestLookup(t *testing.T) {
	tests := []struct {
		name string
		add  []Key
		look Key
		want Seen
	}{
		{"empty", nil, KeyOf("a", "1"), New},
		{"same", []Key{KeyOf("a", "1")}, KeyOf("a", "1"), Same},
		{"other", []Key{KeyOf("a", "1")}, KeyOf("b", "1"), New},
		{"reused", []Key{KeyOf("a", "1")}, KeyOf("a", "2"), Reused},
		{"first of two", []Key{KeyOf("a", "1"), KeyOf("a", "2")}, KeyOf("a", "1"), Same},
		{"second of two", []Key{KeyOf("a", "1"), KeyOf("a", "2")}, KeyOf("a", "2"), Same},
		{"third", []Key{KeyOf("a", "1"), KeyOf("a", "2")}, KeyOf("a", "3"), Reused},
		{"zero in an empty index", nil, Key{}, New},
		{"zero", []Key{{}}, Key{}, Same},
		{"zero reused", []Key{{}}, Key{Digest: 1, Pair: 1}, Reused},
		{"zero as second", []Key{{Digest: 1, Pair: 1}}, Key{}, Reused},
		{"ones", []Key{{math.MaxUint64, math.MaxUint64, math.MaxUint32}}, Key{math.MaxUint64, math.MaxUint64, math.MaxUint32}, Same},
		{"ones are no mark", []Key{{ID: 1, Pair: 2, Digest: reused}}, Key{ID: 1, Pair: 3, Digest: 4}, Reused},
		{"ones beside others", []Key{{ID: 1, Pair: 2, Digest: 5}, {ID: 1, Pair: 3, Digest: reused}}, Key{ID: 1, Pair: 3, Digest: reused}, Same},
		{"equal digests of two pairs", []Key{{ID: 1, Pair: 2, Digest: 5}, {ID: 1, Pair: 3, Digest: 6}}, Key{ID: 1, Pair: 4, Digest: 6}, Reused},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x := mustOpen(t, Config{}, Stream{}, quiet)
			for i, k := range tt.add {
				x.Add(uint64(i)+1, k, time.Now())
			}
			if got := x.Lookup(tt.look); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestHorizon(t *testing.T) {
	c := newClock()
	x := mustOpen(t, Config{Horizon: time.Hour, Now: c.now}, Stream{}, quiet)
	a1, a2, a3 := KeyOf("a", "1"), KeyOf("a", "2"), KeyOf("a", "3")
	check := func(when string, want ...Seen) {
		t.Helper()
		if d := cmp.Diff(want, []Seen{x.Lookup(a1), x.Lookup(a2), x.Lookup(a3)}); d != "" {
			t.Errorf("%s (-want +got):\n%s", when, d)
		}
	}
	x.Add(1, a1, c.now().Add(900*time.Millisecond))
	c.advance(30 * time.Minute)
	x.Add(2, a2, c.now())
	check("both are there", Same, Same, Reused)
	c.advance(30*time.Minute + 900*time.Millisecond)
	check("the first is as old as the horizon", Same, Same, Reused)
	c.advance(time.Second)
	check("the first is past it", Reused, Same, Reused)
	x.Add(3, a1, c.now())
	check("the first came again", Same, Same, Reused)
	c.advance(30 * time.Minute)
	check("the second is past it", Same, Reused, Reused)
	c.advance(time.Hour)
	check("all are", New, New, New)
	x.Add(4, a2, c.now())
	check("the second is the first now", Reused, Same, Reused)
	x.Add(5, a3, c.now().Add(-2*time.Hour))
	check("what is past the horizon is not added", Reused, Same, Reused)
}

func TestLatestTimeWins(t *testing.T) {
	for name, k := range map[string]Key{"first": KeyOf("a", "1"), "second": KeyOf("a", "2")} {
		for _, later := range []bool{true, false} {
			t.Run(fmt.Sprint(name, later), func(t *testing.T) {
				c := newClock()
				x := mustOpen(t, Config{Horizon: time.Hour, Now: c.now}, Stream{}, quiet)
				x.Add(1, KeyOf("a", "1"), c.now())
				early, late := c.now(), c.now().Add(10*time.Minute)
				c.advance(10 * time.Minute)
				if later {
					x.Add(2, k, early)
					x.Add(3, k, late)
				} else {
					x.Add(2, k, late)
					x.Add(3, k, early)
				}
				n := used(x)
				x.Add(2, k, early)
				x.Add(3, k, late)
				if got := used(x); got != n {
					t.Errorf("got %d entries and then %d", n, got)
				}
				c.advance(time.Hour)
				if got := x.Lookup(k); got != Same {
					t.Errorf("got %s, want same", got)
				}
				c.advance(time.Second)
				if got := x.Lookup(k); got != New {
					t.Errorf("got %s, want new", got)
				}
			})
		}
	}
}

// TestOneIDForAll is a sender that does not know what an id is for.
func TestOneIDForAll(t *testing.T) {
	c := newClock()
	dir := t.TempDir()
	cfg := Config{Dir: dir, Now: c.now}
	x := mustOpen(t, cfg, Stream{}, quiet)
	const n = 50_000
	key := func(i int) Key { return Key{ID: 7, Pair: mix(uint64(i)), Digest: uint32(i % 100)} }
	for i := range n {
		x.Add(uint64(i)+1, key(i), c.now())
	}
	check := func(x *Index) {
		t.Helper()
		for i := 1; i < n; i++ {
			if i%100 == 0 {
				continue // it has the digest of the first one
			}
			if got := x.Lookup(key(i)); got != Same {
				t.Fatalf("%d: got %s", i, got)
			}
			if got := x.Lookup(key(n + i)); got != Reused {
				t.Fatalf("%d: got %s", n+i, got)
			}
		}
	}
	check(x)
	longest := 0
	for i := range x.table.shards {
		run := 0
		for _, e := range x.table.shards[i].slots {
			if run++; e.at == 0 {
				run = 0
			}
			longest = max(longest, run)
		}
	}
	if longest > 400 {
		t.Errorf("a run of %d slots: every look-up in it goes through half of them", longest)
	}
	mustClose(t, x)
	check(mustOpen(t, cfg, Stream{Last: n}, quiet))
}

func TestConfig(t *testing.T) {
	for _, cfg := range []Config{{Horizon: -1}, {Horizon: 11 * 365 * 24 * time.Hour}, {MaxBytes: -1}} {
		if x, err := Open(cfg, Stream{}, quiet); err == nil {
			t.Errorf("%+v passes", cfg)
			_ = x.Close()
		}
	}
}

func TestCap(t *testing.T) {
	c := newClock()
	x := mustOpen(t, Config{Now: c.now, MaxBytes: 1 << 20}, Stream{}, quiet)
	const n = 100_000 // the cap holds 55,000
	start := c.now()
	for i := range n {
		if i%100 == 0 {
			c.advance(time.Minute)
		}
		x.Add(uint64(i)+1, numbered(uint64(i)), c.now())
	}
	st := x.Stats()
	if st.Bytes > 1<<20 {
		t.Errorf("%d bytes", st.Bytes)
	}
	if st.IDs < 52_000 {
		t.Errorf("%d ids are fewer than the cap holds", st.IDs)
	}
	// All came within the horizon, so that none went for its age.
	if int(st.Dropped)+st.IDs != n {
		t.Errorf("%d dropped, %d left of %d", st.Dropped, st.IDs, n)
	}
	for i := range n {
		at := start.Add(time.Duration(i/100+1) * time.Minute)
		if got := x.Lookup(numbered(uint64(i))); got != Same && !at.Before(st.Since) {
			t.Fatalf("%d is %s, though it is not from before %s", i, got, st.Since)
		}
	}
	if reach := c.now().Sub(st.Since); reach < 7*time.Hour || reach > 10*time.Hour {
		// 55,000 ids are 9.2 hours; shards differ.
		t.Errorf("it reaches back for %s", reach)
	}
	if st.Oldest.After(st.Since) {
		t.Errorf("the oldest of %s is from after %s", st.Oldest, st.Since)
	}
}

// TestCapInOneSecond is a burst beyond the cap: times do not say what is older.
func TestCapInOneSecond(t *testing.T) {
	c := newClock()
	x := mustOpen(t, Config{Now: c.now, MaxBytes: 1 << 20}, Stream{}, quiet)
	for i := range 100_000 {
		x.Add(uint64(i)+1, numbered(uint64(i)), c.now())
	}
	st := x.Stats()
	if st.Bytes > 1<<20 || st.IDs < 52_000 || !st.Since.Equal(c.now().Truncate(time.Second).Add(time.Second)) {
		t.Errorf("got %+v at %s", st, c.now())
	}
}

func TestSmallestCap(t *testing.T) {
	x := mustOpen(t, Config{MaxBytes: 1}, Stream{}, quiet)
	for i := range uint64(50_000) {
		x.Add(i+1, numbered(i), time.Now())
		if got := x.Lookup(numbered(i)); got != Same {
			t.Fatalf("%d: got %s", i, got)
		}
	}
	if st := x.Stats(); st.Bytes != 64<<10 {
		t.Errorf("got %+v", st)
	}
}

// TestClockSetBack sees that what was stored "in the future" goes too.
func TestClockSetBack(t *testing.T) {
	c := newClock()
	dir := t.TempDir()
	cfg := Config{Dir: dir, Horizon: time.Hour, Now: c.now}
	x := mustOpen(t, cfg, Stream{}, quiet)
	k := KeyOf("a", "1")
	x.Add(1, k, c.now().Add(1000*time.Hour))
	if got := x.Lookup(k); got != Same {
		t.Errorf("got %s, want same", got)
	}
	mustClose(t, x)
	x = mustOpen(t, cfg, Stream{Last: 1}, quiet)
	if got := x.Lookup(k); got != Same {
		t.Errorf("got %s after a restart, want same", got)
	}
	c.advance(time.Hour + time.Second)
	if got := x.Lookup(k); got != New {
		t.Errorf("got %s, want new", got)
	}
}

func TestStats(t *testing.T) {
	c := newClock()
	x := mustOpen(t, Config{Horizon: time.Hour, Now: c.now}, Stream{}, quiet)
	start := c.now()
	empty := Stats{Bytes: 64 << 10, Since: start}
	if d := cmp.Diff(empty, x.Stats()); d != "" {
		t.Errorf("empty (-want +got):\n%s", d)
	}
	// Its owner reads the stream, which begins at 11.
	x.Skip(10)
	x.Add(12, KeyOf("b", ""), start.Add(-20*time.Minute))
	x.Add(11, KeyOf("a", ""), start.Add(-30*time.Minute))
	want := Stats{IDs: 2, Bytes: 64 << 10, Oldest: start.Add(-30 * time.Minute), Since: start.Add(-30 * time.Minute), Covered: 12}
	if d := cmp.Diff(want, x.Stats()); d != "" {
		t.Errorf("caught up (-want +got):\n%s", d)
	}
	c.advance(time.Hour)
	x.Add(13, KeyOf("c", ""), c.now())
	want = Stats{IDs: 3, Bytes: 64 << 10, Oldest: start, Since: start, Covered: 13}
	if d := cmp.Diff(want, x.Stats()); d != "" {
		t.Errorf("an hour later (-want +got):\n%s", d)
	}
	// 14 to 19 are trimmed before anybody read them.
	c.advance(time.Minute)
	x.Skip(19)
	x.Add(20, KeyOf("d", ""), c.now().Add(-time.Second))
	want = Stats{IDs: 4, Bytes: 64 << 10, Oldest: start.Add(time.Minute), Since: c.now().Add(-time.Second), Covered: 20}
	if d := cmp.Diff(want, x.Stats()); d != "" {
		t.Errorf("skipped (-want +got):\n%s", d)
	}
}

// TestMemory holds the promise of the package comment.
func TestMemory(t *testing.T) {
	const n = 1_000_000
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	x := mustOpen(t, Config{}, Stream{}, quiet)
	var wg sync.WaitGroup
	at := time.Now()
	for part := range uint64(2) {
		wg.Go(func() {
			for i := part; i < n; i += 2 {
				x.Add(i+1, numbered(i), at)
			}
		})
	}
	wg.Wait()
	st := x.Stats()
	if each := float64(st.Bytes) / n; st.IDs != n || each > 24 {
		t.Errorf("%d ids, %.1f bytes each", st.IDs, each)
	}
	// The race detector's own memory is not on the heap.
	if each := float64(heap()-before) / n; each > 26 {
		t.Errorf("%.1f bytes of heap an id", each)
	}
	i := uint64(0)
	if allocs := testing.AllocsPerRun(1000, func() { i++; _ = x.Lookup(numbered(i)) }); allocs != 0 {
		t.Errorf("%v allocations a hit", allocs)
	}
	if allocs := testing.AllocsPerRun(1000, func() { i++; _ = x.Lookup(numbered(n + i)) }); allocs != 0 {
		t.Errorf("%v allocations a miss", allocs)
	}
	if allocs := testing.AllocsPerRun(1000, func() { i++; x.Add(n+i, numbered(n+i), at) }); allocs != 0 {
		t.Errorf("%v allocations an added id", allocs)
	}
}

func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	x := mustOpen(t, Config{Dir: dir}, Stream{}, quiet)
	const each, writers = 20_000, 4
	at := time.Now()
	var wg sync.WaitGroup
	for w := range uint64(writers) {
		wg.Go(func() {
			for i := w; i < each*writers; i += writers {
				x.Add(i+1, numbered(i), at)
				if x.Lookup(numbered(i)) != Same {
					t.Errorf("%d is lost", i)
					return
				}
				x.Lookup(numbered(i + 1))
			}
		})
	}
	wg.Go(func() {
		for range 100 {
			_ = x.Stats()
			x.table.sweep(int(x.Covered() % shards))
		}
	})
	wg.Wait()
	for range 2 {
		wg.Go(func() { x.Add(each*writers+1, KeyOf("late", ""), at) })
		wg.Go(func() { mustClose(t, x) })
	}
	wg.Wait()
	if got := x.Covered(); got != each*writers+1 {
		t.Errorf("covered is %d", got)
	}
	x = mustOpen(t, Config{Dir: dir}, Stream{Last: each*writers + 1}, quiet)
	if got := x.Covered(); got < each*writers {
		t.Errorf("covered is %d after a restart", got)
	}
	for i := range uint64(each * writers) {
		if x.Lookup(numbered(i)) != Same {
			t.Fatalf("%d is lost", i)
		}
	}
}

// TestModel compares an index with a map of what was stored, over restarts,
// crashes that cost a part of the log, and gaps.
func TestModel(t *testing.T) {
	for range 20 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) { model(t, rand.New(rand.NewPCG(seed, 0))) })
	}
}

func model(t *testing.T, r *rand.Rand) {
	type stored struct {
		key Key
		at  time.Time
	}
	const horizon = time.Hour
	c := newClock()
	cfg := Config{Dir: t.TempDir(), Horizon: horizon, Now: c.now}
	var stream []stored // by sequence, from 1
	var late []uint64   // not added yet
	ids := uint64(1 + r.IntN(50))
	key := func() Key {
		id, digest := r.Uint64N(ids), r.Uint64N(4)
		return Key{ID: id << 58, Pair: mix(id<<8 | digest), Digest: uint32(digest)}
	}
	x := mustOpen(t, cfg, Stream{ID: "s"}, quiet)
	add := func(sequence uint64) { e := stream[sequence-1]; x.Add(sequence, e.key, e.at) }
	flush := func() {
		for _, s := range late {
			add(s)
		}
		late = nil
	}
	alive := func(at time.Time) bool { return c.now().Unix()-at.Unix() <= int64(horizon/time.Second) }
	check := func() {
		t.Helper()
		flush()
		for range 20 {
			k, want := key(), New
			for _, e := range stream {
				if e.key.ID != k.ID || !alive(e.at) {
					continue
				}
				if e.key == k {
					want = Same
					break
				}
				want = Reused
			}
			if got := x.Lookup(k); got != want {
				t.Fatalf("%+v: got %s, want %s", k, got, want)
			}
		}
		if got := x.Covered(); got != uint64(len(stream)) {
			t.Fatalf("covered is %d of %d", got, len(stream))
		}
	}
	for range 400 {
		switch n := r.IntN(100); {
		case n < 70:
			stream = append(stream, stored{key(), c.now()})
			if s := uint64(len(stream)); r.IntN(4) == 0 {
				late = append(late, s)
			} else {
				add(s)
			}
		case n < 80:
			r.Shuffle(len(late), func(i, j int) { late[i], late[j] = late[j], late[i] })
			flush()
		case n < 85:
			c.advance(time.Duration(r.Int64N(int64(horizon) / 4)))
		case n < 88:
			x.table.sweep(r.IntN(64) << 2)
		case n < 95:
			check()
		default:
			mustClose(t, x)
			damage := r.IntN(3) == 0
			if damage {
				hurt(t, r, cfg.Dir)
			}
			x = mustOpen(t, cfg, Stream{ID: "s", Last: uint64(len(stream))}, quiet)
			if !damage {
				for _, s := range late {
					if x.Covered() >= s {
						t.Fatalf("covered is %d without %d", x.Covered(), s)
					}
				}
			}
			late = nil
			for s := x.Covered() + 1; s <= uint64(len(stream)); s++ {
				add(s)
			}
			check()
		}
	}
	check()
}

// hurt damages a random file of the log.
func hurt(t *testing.T, r *rand.Rand, dir string) {
	t.Helper()
	names := logFiles(t, dir)
	if len(names) == 0 {
		return
	}
	name := filepath.Join(dir, names[r.IntN(len(names))])
	if r.IntN(8) == 0 {
		// The last file may be lost with the power. That one in the middle is
		// missing shows in the numbers, but not that the first one is.
		if err := os.Remove(filepath.Join(dir, names[len(names)-1])); err != nil {
			t.Fatal(err)
		}
		return
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) == 0 {
		return
	}
	at := r.IntN(len(b))
	if r.IntN(2) == 0 {
		b = b[:at]
	} else {
		b[at] ^= 1 << r.IntN(8)
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// logFiles are the names in dir, oldest first.
func logFiles(t testing.TB, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range list {
		names = append(names, d.Name())
	}
	return names
}
