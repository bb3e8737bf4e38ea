package poll

import (
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/gridfan/gridfan/infra/broker/brokertest"
)

// BenchmarkThousandSources polls 1,000 sources in one process, each every 30 seconds,
// half of them with a change in each poll, and measures what they take once all have
// begun.
func BenchmarkThousandSources(b *testing.B) {
	const n = 1000
	br := brokertest.New(b)
	in := &inbox{}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	goroutines := runtime.NumGoroutine()
	var sources []Source
	for i := range n {
		tab := newTable(fmt.Sprintf("s%04d", i), 20)
		if i%2 == 0 {
			tab.answer = func(int) error {
				tab.log = append(tab.log, "k00001")
				tab.rows["k00001"] = version{len(tab.log), time.Now()}
				return nil
			}
		}
		src := tab.source(func(c *Config) { c.Every = Every{Min: 30 * time.Second, Max: 30 * time.Second} })
		src.Identity = fmt.Sprint(i % 50)
		sources = append(sources, src)
	}
	p := startPoller(b, br, in.Publish, sources...)
	waitFor(b, "all sources", func() bool {
		for _, st := range p.here(time.Now()) {
			if st.Polls < 1 {
				return false
			}
		}
		return true
	})
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	began, used := time.Now(), cpu()
	for b.Loop() {
		time.Sleep(20 * time.Second) // sleep: the sources work
	}
	b.ReportMetric(100*float64(cpu()-used)/float64(time.Since(began)), "%cpu")
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/n, "goroutines/source")
	b.ReportMetric(float64(after.HeapAlloc+after.StackInuse-before.HeapAlloc-before.StackInuse)/n/1024, "KiB/source")
	requests := int64(0)
	for _, st := range p.here(time.Now()) {
		requests += st.Requests
	}
	b.ReportMetric(float64(requests), "requests")
}
