package dedup

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// mix spreads n over 64 bits (the finalizer of SplitMix64), as KeyOf does for
// less time.
func mix(n uint64) uint64 {
	n += 0x9e3779b97f4a7c15
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// numbered is a key as good as any.
func numbered(n uint64) Key {
	return Key{ID: mix(n), Pair: mix(^n), Digest: uint32(mix(n * 3))}
}

// filled is an index in memory of n numbered keys.
func filled(tb testing.TB, n int) *Index {
	tb.Helper()
	x, err := Open(Config{}, Stream{}, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = x.Close() })
	at := time.Now()
	for i := range n {
		x.Add(uint64(i)+1, numbered(uint64(i)), at)
	}
	return x
}

func BenchmarkKeyOf(b *testing.B) {
	b.ReportAllocs()
	const id, digest = "0123456789abcdef0123456789abcdef0123456789a", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for b.Loop() {
		_ = KeyOf(id, digest)
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{1_000, 100_000, 1_000_000, 10_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			x := filled(b, n)
			b.Run("hit", func(b *testing.B) {
				r := rand.New(rand.NewPCG(1, 2))
				for b.Loop() {
					if x.Lookup(numbered(r.Uint64N(uint64(n)))) != Same {
						b.Fatal("lost")
					}
				}
			})
			b.Run("miss", func(b *testing.B) {
				i := uint64(n)
				for b.Loop() {
					if i++; x.Lookup(numbered(i)) != New {
						b.Fatal("found")
					}
				}
			})
			b.Run("parallel", func(b *testing.B) {
				var start atomic.Uint64
				b.RunParallel(func(p *testing.PB) {
					i := uint64(n) + start.Add(1)<<40
					for p.Next() {
						i++
						_ = x.Lookup(numbered(i))
					}
				})
			})
		})
	}
}

func BenchmarkAdd(b *testing.B) {
	for name, dir := range map[string]string{"memory": "", "log": b.TempDir()} {
		b.Run(name, func(b *testing.B) {
			// New ids, of which the index holds up to 27 million.
			x, err := Open(Config{Dir: dir}, Stream{}, slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			at := time.Now()
			b.ReportAllocs()
			i := uint64(0)
			for b.Loop() {
				i++
				x.Add(i, numbered(i), at)
			}
			b.StopTimer()
			if err := x.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkOpen10M reads a log of ten million ids from the page cache.
func BenchmarkOpen10M(b *testing.B) {
	const n = 10_000_000
	cfg, s, log := Config{Dir: b.TempDir()}, Stream{ID: "s", Last: n}, slog.New(slog.DiscardHandler)
	x, err := Open(cfg, s, log)
	if err != nil {
		b.Fatal(err)
	}
	at := time.Now()
	for i := range uint64(n) {
		x.Add(i+1, numbered(i), at)
		for i%100_000 == 0 && x.backlog() > maxPending/2 {
			time.Sleep(10 * time.Millisecond) // sleep: the disk may be slower than this loop, and what it cannot take is dropped
		}
	}
	if err := x.Close(); err != nil {
		b.Fatal(err)
	}
	var st Stats
	x = nil
	for b.Loop() {
		b.StopTimer()
		runtime.GC()
		b.StartTimer()
		x, err := Open(cfg, s, log)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		st = x.Stats()
		if err := x.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	if st.IDs != n || st.Covered != n {
		b.Fatalf("got %+v", st)
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/open")
	b.ReportMetric(float64(st.Bytes)/float64(st.IDs), "bytes/id")
}

// backlog is how many bytes wait for the log.
func (x *Index) backlog() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.pending.entries)
}
