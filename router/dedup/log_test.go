package dedup

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// session opens the index, adds the numbered keys from sequence first to last,
// and closes it.
func session(t testing.TB, cfg Config, s Stream, first, last uint64) {
	t.Helper()
	x := mustOpen(t, cfg, s, quiet)
	addRange(x, first, last)
	mustClose(t, x)
}

func addRange(x *Index, first, last uint64) {
	for n := first; n <= last; n++ {
		x.Add(n, numbered(n), x.table.now())
	}
}

// found counts the numbered keys from first to last that the index has.
func found(x *Index, first, last uint64) int {
	n := 0
	for i := first; i <= last; i++ {
		if x.Lookup(numbered(i)) == Same {
			n++
		}
	}
	return n
}

// snapshot copies a log as it would be after a crash.
func snapshot(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	names := logFiles(t, dir)
	slices.Reverse(names) // a file is whole once there is a next one
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func TestReopen(t *testing.T) {
	c := newClock()
	cfg := Config{Dir: filepath.Join(t.TempDir(), "new", "ids"), Horizon: time.Hour, Now: c.now}
	s := Stream{ID: "s", Last: 100_000}
	x := mustOpen(t, cfg, s, quiet)
	x.Skip(9)
	addRange(x, 10, 49_999)
	x.Cover(50_000)
	x.Add(50_001, Key{ID: 1, Pair: 2, Digest: 3}, c.now())
	x.Add(50_002, Key{ID: 1, Pair: 4, Digest: 5}, c.now())
	x.Add(50_005, Key{ID: 1, Pair: 6, Digest: 7}, c.now())
	before := x.Stats()
	mustClose(t, x)

	info, err := os.Stat(cfg.Dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder is %v, %v", info.Mode(), err)
	}
	info, err = os.Stat(filepath.Join(cfg.Dir, logFiles(t, cfg.Dir)[0]))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info.Mode(), err)
	}

	var said lines
	x = mustOpen(t, cfg, s, said.logger())
	after := x.Stats()
	before.Bytes, after.Bytes = 0, 0 // depends on how it grew
	if d := cmp.Diff(before, after); d != "" {
		t.Errorf("(-before +after):\n%s", d)
	}
	if got := found(x, 10, 49_999); got != 49_990 {
		t.Errorf("%d ids", got)
	}
	for k, want := range map[Key]Seen{
		{ID: 1, Pair: 2, Digest: 3}: Same,
		{ID: 1, Pair: 4, Digest: 5}: Same,
		{ID: 1, Pair: 6, Digest: 7}: Same,
		{ID: 1, Pair: 8, Digest: 9}: Reused,
		numbered(9):                 New,
	} {
		if got := x.Lookup(k); got != want {
			t.Errorf("%+v: got %s, want %s", k, got, want)
		}
	}
	if got := said.count("level="); got != 0 {
		t.Errorf("a sound log is no news:\n%s", said.buf.String())
	}
	mustClose(t, x)

	c.advance(time.Hour + time.Second)
	x = mustOpen(t, cfg, s, quiet)
	if got := used(x); got != 0 {
		t.Errorf("%d ids are there after the horizon", got)
	}
	if got := x.Covered(); got != 50_002 {
		t.Errorf("covered is %d after the horizon: the whole stream would be read", got)
	}
}

func TestOtherStream(t *testing.T) {
	cfg := Config{Dir: t.TempDir()}
	session(t, cfg, Stream{ID: "first"}, 1, 10_000)
	var said lines
	x := mustOpen(t, cfg, Stream{ID: "second", Last: 1000}, said.logger())
	if st := x.Stats(); st.IDs != 0 || st.Covered != 0 {
		t.Errorf("got %+v", st)
	}
	if said.count("another stream") != 1 {
		t.Error("nobody is told")
	}
	addRange(x, 1, 20)
	mustClose(t, x)
	x = mustOpen(t, cfg, Stream{ID: "first", Last: 10_000}, quiet)
	if st := x.Stats(); st.IDs != 0 || st.Covered != 0 {
		t.Errorf("what was forgotten is back: %+v", st)
	}
}

func TestRestoredStream(t *testing.T) {
	c := newClock()
	cfg := Config{Dir: t.TempDir(), Now: c.now}
	s := Stream{ID: "s"}
	session(t, cfg, s, 1, 100)
	s.Last = 100
	session(t, cfg, s, 101, 200)
	// 202 is logged before 201, in a block that covers no more than the last.
	s.Last = 200
	session(t, cfg, s, 202, 210)
	// A block without ids says that 201 to 210 are covered.
	s.Last = 210
	x := mustOpen(t, cfg, s, quiet)
	x.Cover(201)
	x.Add(202, numbered(202), c.now())
	for n := range uint64(8) {
		x.Cover(203 + n)
	}
	mustClose(t, x)

	s.Last = 205
	var said lines
	x = mustOpen(t, cfg, s, said.logger())
	if got := found(x, 1, 300); got != 200 || x.Covered() != 200 {
		t.Errorf("got %d ids, covered is %d", got, x.Covered())
	}
	if said.count("beyond the end") != 1 {
		t.Error("nobody is told")
	}
	mustClose(t, x)
	// The stream grows over them, with other events.
	s.Last = 1000
	x = mustOpen(t, cfg, s, quiet)
	if got := found(x, 1, 300); got != 200 || x.Covered() != 200 {
		t.Errorf("what was forgotten is back: %d ids, covered is %d", got, x.Covered())
	}
}

func TestTornTail(t *testing.T) {
	cfg := Config{Dir: t.TempDir()}
	s := Stream{ID: "s"}
	session(t, cfg, s, 1, 500)
	s.Last = 1000
	session(t, cfg, s, 501, 503)
	names := logFiles(t, cfg.Dir)
	last := names[len(names)-1]
	whole, err := os.ReadFile(filepath.Join(cfg.Dir, last))
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		for _, zeros := range []bool{false, true} {
			b := slices.Clone(whole[:n])
			if zeros {
				// The file is as long as it should be, but not all of it is on disk.
				b = append(b, make([]byte, len(whole)-n)...)
			}
			if slices.Equal(b, whole) {
				continue
			}
			torn := Config{Dir: snapshot(t, cfg.Dir)}
			if err := os.WriteFile(filepath.Join(torn.Dir, last), b, 0o600); err != nil {
				t.Fatal(err)
			}
			x := mustOpen(t, torn, s, quiet)
			if got := found(x, 1, 500); got != 500 || x.Covered() != 500 {
				t.Fatalf("%d of %d bytes: got %d ids, covered is %d", n, len(whole), got, x.Covered())
			}
			mustClose(t, x)
			if zeros || n%16 != 0 {
				continue
			}
			// The next session builds on what was left.
			session(t, torn, s, 501, 510)
			x = mustOpen(t, torn, s, quiet)
			if got := found(x, 1, 510); got != 510 || x.Covered() != 510 {
				t.Errorf("%d bytes: got %d ids, covered is %d", n, got, x.Covered())
			}
		}
	}
}

func TestDamage(t *testing.T) {
	// Each of three sessions is a file with three blocks of a thousand ids.
	const block = headerSize + 1000*entrySize
	tests := []struct {
		name    string
		hurt    func(t *testing.T, dir string, names []string)
		found   int
		covered uint64
	}{
		{"none", func(*testing.T, string, []string) {}, 9000, 9000},
		{"magic", flip(0, 0), 6000, 0},
		{"first block", flip(0, 20), 8000, 0},
		{"entry", flip(0, block+headerSize+100), 8000, 1000},
		{"count", flip(0, block+12), 7000, 1000},
		{"last block", flip(0, 2*block+40), 8000, 2000},
		{"second session", flip(1, 100), 8000, 3000},
		{"third session", flip(2, 100), 8000, 6000},
		{"second file is gone", func(t *testing.T, dir string, names []string) {
			if err := os.Remove(filepath.Join(dir, names[1])); err != nil {
				t.Fatal(err)
			}
		}, 6000, 3000},
		{"second file is empty", func(t *testing.T, dir string, names []string) {
			if err := os.Truncate(filepath.Join(dir, names[1]), 0); err != nil {
				t.Fatal(err)
			}
		}, 6000, 3000},
		{"second file is a folder", func(t *testing.T, dir string, names []string) {
			if err := os.Remove(filepath.Join(dir, names[1])); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(dir, names[1]), 0o700); err != nil {
				t.Fatal(err)
			}
		}, 6000, 3000},
		{"others' files", func(t *testing.T, dir string, names []string) {
			for _, name := range []string{"dedup-1.log", "dedup-x.log", "lost+found", "dedup-00000000000000000009.log", "dedup-00000009.log.bak"} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}, 9000, 9000},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := Config{Dir: t.TempDir(), Now: newClock().now}
			s := Stream{ID: "s", Last: 9000}
			synctest.Test(t, func(t *testing.T) {
				for n := range uint64(3) {
					x := mustOpen(t, cfg, s, quiet)
					for k := n * 3000; k < n*3000+3000; k += 1000 {
						addRange(x, k+1, k+1000)
						wait(tick)
					}
					mustClose(t, x)
				}
			})
			names := logFiles(t, cfg.Dir)
			if len(names) != 3 {
				t.Fatalf("got %v", names)
			}
			tt.hurt(t, cfg.Dir, names)
			for _, when := range []string{"first", "second"} { // which finds it written anew
				var said lines
				x := mustOpen(t, cfg, s, said.logger())
				if got := found(x, 1, 9000); got != tt.found || x.Covered() != tt.covered {
					t.Errorf("%s open: got %d ids, covered is %d; want %d, %d", when, got, x.Covered(), tt.found, tt.covered)
				}
				if got, want := said.count("damaged"), map[bool]int{true: 1}[tt.covered < 9000 && when == "first"]; got != want {
					t.Errorf("damage was logged %d times, want %d", got, want)
				}
				mustClose(t, x)
			}
			// What was lost comes from the stream, and is there to stay.
			session(t, cfg, s, tt.covered+1, 9000)
			x := mustOpen(t, cfg, s, quiet)
			if got := found(x, 1, 9000); got != 9000 || x.Covered() != 9000 {
				t.Errorf("caught up: got %d ids, covered is %d", got, x.Covered())
			}
		})
	}
}

// flip changes one byte of the n-th file; a negative place counts from its end.
func flip(n, place int) func(*testing.T, string, []string) {
	return func(t *testing.T, dir string, names []string) {
		t.Helper()
		name := filepath.Join(dir, names[n])
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if place < 0 {
			place += len(b)
		}
		b[place] ^= 0x10
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFewFiles restarts often.
func TestFewFiles(t *testing.T) {
	cfg := Config{Dir: t.TempDir()}
	s := Stream{ID: "s"}
	for n := range uint64(100) {
		session(t, cfg, s, n+1, n+1)
		s.Last++
		mustClose(t, mustOpen(t, cfg, s, quiet)) // nothing to say
		if names := logFiles(t, cfg.Dir); len(names) > maxSmall+1 {
			t.Fatalf("%d files after %d restarts", len(names), n)
		}
	}
	x := mustOpen(t, cfg, s, quiet)
	if got := found(x, 1, 100); got != 100 || x.Covered() != 100 {
		t.Errorf("got %d ids, covered is %d", got, x.Covered())
	}
}

// TestUnfinished leaves behind what crashes while the log is written anew leave.
func TestUnfinished(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Now: newClock().now}
	s := Stream{ID: "s", Last: 30}
	session(t, cfg, s, 1, 10)
	old := snapshot(t, cfg.Dir)
	session(t, cfg, s, 11, 20)
	synctest.Test(t, func(t *testing.T) {
		x := mustOpen(t, cfg, s, quiet)
		x.journal.pieces = true // nothing moves between ticks
		addRange(x, 21, 30)
		mustClose(t, x)
	})
	want := []string{"dedup-00000003.base", "dedup-00000004.log"}
	if d := cmp.Diff(want, logFiles(t, cfg.Dir)); d != "" {
		t.Fatalf("(-want +got):\n%s", d)
	}
	// The files that the base makes obsolete were not removed, and another base
	// was begun.
	for _, name := range logFiles(t, old) {
		if err := os.Rename(filepath.Join(old, name), filepath.Join(cfg.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"dedup-00000001.base.tmp", "dedup-00000005.base.tmp"} {
		if err := os.WriteFile(filepath.Join(cfg.Dir, name), []byte("gfdd"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	x := mustOpen(t, cfg, s, quiet)
	if got := found(x, 1, 30); got != 30 || x.Covered() != 30 {
		t.Errorf("got %d ids, covered is %d", got, x.Covered())
	}
	if d := cmp.Diff(want, logFiles(t, cfg.Dir)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestCrash looks at copies of the log that were taken while many added: what a
// copy says is covered must be there.
func TestCrash(t *testing.T) {
	cfg := Config{Dir: t.TempDir()}
	s := Stream{ID: "s", Last: math.MaxUint64}
	x := mustOpen(t, cfg, s, quiet)
	const n = 200_000
	var next atomic.Uint64
	var wg sync.WaitGroup
	at := time.Now()
	for range 4 {
		wg.Go(func() {
			for i := next.Add(1); i <= n; i = next.Add(1) {
				x.Add(i, numbered(i), at)
			}
		})
	}
	covered := uint64(0)
	for part := range uint64(6) {
		for x.Covered() < (part+1)*n/8 {
			time.Sleep(time.Millisecond) // sleep: others work meanwhile, and what matters is how far they got
		}
		y := mustOpen(t, Config{Dir: snapshot(t, cfg.Dir)}, s, quiet)
		if y.Covered() < covered {
			t.Errorf("covered was %d and is %d", covered, y.Covered())
		}
		covered = y.Covered()
		if got := found(y, 1, covered); uint64(got) != covered {
			t.Errorf("%d ids up to %d", got, covered)
		}
		mustClose(t, y)
	}
	wg.Wait()
	if covered == 0 {
		t.Error("no copy covers anything")
	}
	if got := x.Covered(); got != n {
		t.Errorf("covered is %d at last", got)
	}
}

// disk is one that can be full, or fail to sync.
type disk struct {
	room    atomic.Int64 // bytes
	sick    atomic.Bool
	lazy    bool // syncs nothing
	created atomic.Int64
}

func (d *disk) create(name string) (file, error) {
	if d.room.Load() <= 0 {
		return nil, syscall.ENOSPC
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	d.created.Add(1)
	return &diskFile{f, d}, nil
}

type diskFile struct {
	*os.File
	disk *disk
}

func (f *diskFile) WriteAt(p []byte, at int64) (int, error) {
	n := min(int64(len(p)), f.disk.room.Load())
	f.disk.room.Add(-n) // one goroutine writes
	written, err := f.File.WriteAt(p[:n], at)
	if err == nil && n < int64(len(p)) {
		err = syscall.ENOSPC
	}
	return written, err
}

func (f *diskFile) Sync() error {
	if f.disk.sick.Load() {
		return syscall.EIO
	}
	if f.disk.lazy {
		return nil
	}
	return f.File.Sync()
}

// wait lets the index's goroutine work for d of a bubble's time.
func wait(d time.Duration) {
	time.Sleep(d) // sleep: the bubble's clock, which costs nothing
	synctest.Wait()
}

func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Dir: dir, Now: newClock().now}
	synctest.Test(t, func(t *testing.T) {
		d := &disk{}
		d.room.Store(1 << 30)
		var said lines
		x, err := open(cfg, Stream{ID: "s"}, said.logger(), d.create)
		if err != nil {
			t.Fatal(err)
		}
		addRange(x, 1, 1000)
		wait(2 * tick)
		d.room.Store(1000) // a part of the next block
		addRange(x, 1001, 2000)
		wait(time.Minute)
		if got := said.count("cannot be written"); got != 1 {
			t.Errorf("it was logged %d times, want once", got)
		}
		wait(10 * time.Minute)
		if got := said.count("cannot be written"); got != 3 {
			t.Errorf("it was logged %d times in 11 minutes, want 3", got)
		}
		y := mustOpen(t, Config{Dir: snapshot(t, dir), Now: cfg.Now}, Stream{ID: "s", Last: 2000}, quiet)
		if got := found(y, 1, 2000); got != 1000 || y.Covered() != 1000 {
			t.Errorf("a crash would leave %d ids, covered is %d", got, y.Covered())
		}
		mustClose(t, y)

		d.room.Store(1 << 30)
		addRange(x, 2001, 3000)
		wait(2 * tick)
		if got := said.count("written again"); got != 1 {
			t.Errorf("that it is over was logged %d times", got)
		}
		if got := d.created.Load(); got != 1 {
			t.Errorf("%d files: the batch that failed goes where it belongs", got)
		}
		mustClose(t, x)
	})
	x := mustOpen(t, cfg, Stream{ID: "s", Last: 3000}, quiet)
	if got := found(x, 1, 3000); got != 3000 || x.Covered() != 3000 {
		t.Errorf("got %d ids, covered is %d", got, x.Covered())
	}
}

// TestGap has the log lose something, in each way that it can.
func TestGap(t *testing.T) {
	tests := []struct {
		name string
		hurt func(x *Index, d *disk)
		heal func(d *disk)
	}{
		{"sync fails", func(x *Index, d *disk) {
			d.sick.Store(true)
			addRange(x, 1001, 2000)
			wait(2 * syncEvery)
		}, func(d *disk) { d.sick.Store(false) }},
		{"more waits than may", func(x *Index, d *disk) {
			d.room.Store(0)
			addRange(x, 1001, 1500)
			wait(2 * tick)
			x.mu.Lock()
			x.pending.entries = make([]byte, maxPending)
			x.mu.Unlock()
			addRange(x, 1501, 2000)
			if got := x.backlog(); got != 0 {
				t.Errorf("%d bytes still wait", got)
			}
			wait(2 * rewritePause)
		}, func(d *disk) { d.room.Store(1 << 30) }},
		{"full when all is written anew", func(x *Index, d *disk) {
			x.losePending()
			addRange(x, 1001, 2000)
			d.room.Store(5000)
			wait(2 * rewritePause)
		}, func(d *disk) { d.room.Store(1 << 30) }},
	}
	for _, tt := range tests {
		for _, heals := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s %v", tt.name, heals), func(t *testing.T) {
				dir := t.TempDir()
				cfg := Config{Dir: dir, Now: newClock().now}
				synctest.Test(t, func(t *testing.T) {
					d := &disk{}
					d.room.Store(1 << 30)
					var said lines
					x, err := open(cfg, Stream{ID: "s"}, said.logger(), d.create)
					if err != nil {
						t.Fatal(err)
					}
					addRange(x, 1, 1000)
					wait(2 * syncEvery)
					tt.hurt(x, d)
					addRange(x, 2001, 3000)
					if said.count("cannot be written") == 0 {
						t.Error("nobody is told")
					}
					if !heals {
						if err := x.Close(); err == nil {
							t.Error("close does not tell")
						}
						return
					}
					tt.heal(d)
					wait(2 * rewritePause)
					if got := said.count("written again"); got != 1 {
						t.Errorf("that it is over was logged %d times", got)
					}
					addRange(x, 3001, 4000)
					mustClose(t, x)
				})
				x := mustOpen(t, cfg, Stream{ID: "s", Last: 4000}, quiet)
				covered := x.Covered()
				if heals && covered != 4000 || covered < 1000 {
					t.Errorf("covered is %d", covered)
				}
				if got := found(x, 1, covered); uint64(got) != covered {
					t.Errorf("%d ids up to %d", got, covered)
				}
				for _, name := range logFiles(t, dir) {
					if filepath.Ext(name) == ".tmp" {
						t.Errorf("%s is left over", name)
					}
				}
			})
		}
	}
}

// TestUntidy has no room for writing the log anew, but for going on with it.
func TestUntidy(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Now: newClock().now}
	s := Stream{ID: "s", Last: 1010}
	session(t, cfg, s, 1, 1000)
	synctest.Test(t, func(t *testing.T) {
		d := &disk{}
		d.room.Store(5000)
		var said lines
		x, err := open(cfg, s, said.logger(), d.create)
		if err != nil {
			t.Fatal(err)
		}
		x.journal.pieces = true // nothing moves between ticks
		addRange(x, 1001, 1005)
		wait(tick)
		d.room.Store(5000) // what the base took is free again
		wait(time.Minute)
		addRange(x, 1006, 1010)
		mustClose(t, x)
		if got := said.count("goes on as it is"); got != 1 {
			t.Errorf("it was logged %d times, want once", got)
		}
	})
	x := mustOpen(t, cfg, s, quiet)
	if got := found(x, 1, 1010); got != 1010 || x.Covered() != 1010 {
		t.Errorf("got %d ids, covered is %d", got, x.Covered())
	}
}

// TestNoDir has a file where the folder should be.
func TestNoDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ids")
	cfg := Config{Dir: dir, Now: newClock().now}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		var said lines
		x := mustOpen(t, cfg, Stream{ID: "s"}, said.logger())
		addRange(x, 1, 1000)
		if got := found(x, 1, 1000); got != 1000 || x.Covered() != 1000 {
			t.Errorf("got %d ids, covered is %d", got, x.Covered())
		}
		wait(time.Minute)
		if got := said.count("cannot be written"); got != 1 {
			t.Errorf("it was logged %d times, want once", got)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		wait(time.Minute)
		mustClose(t, x)
	})
	x := mustOpen(t, cfg, Stream{ID: "s", Last: 1000}, quiet)
	if got := found(x, 1, 1000); got != 1000 || x.Covered() != 1000 {
		t.Errorf("got %d ids, covered is %d", got, x.Covered())
	}
}

// TestRotation fills files and lets them grow old.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	c := newClock()
	cfg := Config{Dir: dir, Horizon: time.Hour, Now: c.now}
	synctest.Test(t, func(t *testing.T) {
		x := mustOpen(t, cfg, Stream{ID: "s"}, quiet)
		for n := range uint64(4) {
			addRange(x, n*10+1, n*10+10)
			wait(2 * tick)
			x.journal.entries = maxSegment // as if; nothing moves between ticks
			c.advance(20 * time.Minute)
		}
		want := []string{"dedup-00000001.log", "dedup-00000002.log", "dedup-00000003.log", "dedup-00000004.log"}
		if d := cmp.Diff(want, logFiles(t, dir)); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		// The first is as old as 80 minutes and the second as 60.
		addRange(x, 41, 50)
		wait(2 * syncEvery)
		want = append(want[1:], "dedup-00000005.log")
		if d := cmp.Diff(want, logFiles(t, dir)); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		mustClose(t, x)
	})
	x := mustOpen(t, cfg, Stream{ID: "s", Last: 50}, quiet)
	if got := found(x, 1, 50); got != 40 || x.Covered() != 50 {
		t.Errorf("got %d ids, covered is %d", got, x.Covered())
	}
}

// TestSweep sees that memory is given back and that the cap is spoken of.
func TestSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said lines
		x := mustOpen(t, Config{Horizon: time.Hour, MaxBytes: 1 << 20}, Stream{}, said.logger())
		addRange(x, 1, 30_000)
		wait(30 * time.Minute)
		if st := x.Stats(); st.IDs != 30_000 || said.count("storage.dedup.memory") != 0 {
			t.Errorf("got %+v", st)
		}
		addRange(x, 30_001, 90_000)
		wait(2 * tick)
		if said.count("storage.dedup.memory") != 1 || said.count("configured=1h0m0s") != 1 {
			t.Errorf("of the cap it is said:\n%s", said.buf.String())
		}
		addRange(x, 90_001, 120_000)
		wait(time.Minute)
		if got := said.count("storage.dedup.memory"); got != 1 {
			t.Errorf("the cap was logged %d times in a minute", got)
		}
		wait(repeat)
		if got := said.count("storage.dedup.memory"); got != 2 {
			t.Errorf("the cap was logged %d times, want 2", got)
		}
		wait(time.Hour + shards*tick)
		if d := cmp.Diff(Stats{Bytes: 64 << 10, Covered: 120_000}, x.Stats(), cmp.FilterPath(func(p cmp.Path) bool {
			return p.Last().String() == ".Since" || p.Last().String() == ".Dropped"
		}, cmp.Ignore())); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		mustClose(t, x)
	})
}

// TestLost sees that Since remembers a lost log over a restart.
func TestLost(t *testing.T) {
	c := newClock()
	cfg := Config{Dir: t.TempDir(), Horizon: time.Hour, Now: c.now}
	start := c.now()
	x := mustOpen(t, cfg, Stream{ID: "s", Last: 100}, quiet)
	x.Skip(100)
	c.advance(time.Minute)
	addRange(x, 101, 110)
	mustClose(t, x)
	c.advance(time.Minute)
	x = mustOpen(t, cfg, Stream{ID: "s", Last: 110}, quiet)
	addRange(x, 111, 120)
	if got := x.Stats().Since; !got.Equal(start) {
		t.Errorf("got %s, want %s", got, start)
	}
}

// TestWiderHorizon sees that Since tells what an earlier, shorter horizon or a
// smaller cap has cost, also from a log that was written anew.
func TestWiderHorizon(t *testing.T) {
	c := newClock()
	cfg := Config{Dir: t.TempDir(), Horizon: time.Hour, MaxBytes: 1 << 20, Now: c.now}
	reopen := func(s Stream) *Index {
		var x *Index
		synctest.Test(t, func(t *testing.T) {
			x = mustOpen(t, cfg, s, quiet)
			x.journal.pieces = true // nothing moves between ticks
			mustClose(t, x)
		})
		return mustOpen(t, cfg, s, quiet)
	}
	x := mustOpen(t, cfg, Stream{ID: "s"}, quiet)
	addRange(x, 1, 10)
	c.advance(2 * time.Hour)
	x.Cover(11)
	mustClose(t, x)
	cfg.Horizon = 24 * time.Hour
	x = reopen(Stream{ID: "s", Last: 11})
	if got, want := x.Stats().Since, c.now().Add(-time.Hour); !got.Equal(want) {
		t.Errorf("got %s, want %s", got, want)
	}
	addRange(x, 12, 100_000)
	want := x.Stats().Since
	if want.Before(c.now()) {
		t.Errorf("the cap did not move it from %s", want)
	}
	mustClose(t, x)
	cfg.MaxBytes = 16 << 20
	x = reopen(Stream{ID: "s", Last: 100_000})
	c.advance(time.Hour)
	if got := x.Stats().Since; !got.Equal(want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzLog(f *testing.F) {
	dir := f.TempDir()
	cfg := Config{Dir: dir, Now: newClock().now}
	// Small ones, which the fuzzer takes apart sooner.
	session(f, cfg, Stream{ID: "s"}, 1, 3)
	session(f, cfg, Stream{ID: "s", Last: 3}, 4, 5)
	var all []byte
	for _, name := range logFiles(f, dir) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint64(100))
		all = append(all, b...)
	}
	f.Add(all, uint64(100))
	f.Add(all, uint64(4))
	f.Add([]byte{}, uint64(0))
	h := header{count: maxBlock, stream: streamHash("s"), session: 1, covered: math.MaxUint64, newest: math.MaxUint32}
	f.Add(h.encode(nil, nil), uint64(math.MaxUint64))
	f.Fuzz(func(t *testing.T, b []byte, last uint64) {
		cfg := Config{Dir: t.TempDir(), Now: newClock().now}
		// Half of what the fuzzer makes gets past the checksum.
		if len(b) >= headerSize && b[len(b)-1]%2 == 0 {
			sum(b)
		}
		name := filepath.Join(cfg.Dir, segment{number: 1}.name())
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		// Without its goroutine, which would make each run another one.
		d := &disk{lazy: true}
		d.room.Store(math.MaxInt64)
		x, err := newIndex(cfg, Stream{ID: "s", Last: last}, quiet, d.create)
		if err != nil {
			t.Fatal(err)
		}
		st := x.Stats()
		if st.IDs*entrySize > len(b) || st.Bytes > int64(64<<10+3*len(b)) || st.Covered > last {
			t.Errorf("got %+v of %d bytes", st, len(b))
		}
		x.Lookup(numbered(1))
		x.Add(st.Covered+1, numbered(1), cfg.Now())
	})
}

// sum gives all blocks in b that can be found a checksum that is right.
func sum(b []byte) {
	var h header
	for len(b) >= headerSize && h.decode(b) && h.size() <= int64(len(b)) {
		block := b[:h.size()]
		copy(block[4:8], h.encode(nil, block[headerSize:])[4:8])
		b = b[len(block):]
	}
}
