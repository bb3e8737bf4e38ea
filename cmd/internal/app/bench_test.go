//go:build unix

package app_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The benchmarks have their receivers in another process, so that the CPU time
// of this one is gridfan's and, where events are posted meanwhile, that of the
// few requests. One operation is a whole load, so -benchtime=1x says it all.

// cpu is the CPU time of this process so far.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// receivers are subscribers in another process.
type receivers struct {
	b    testing.TB
	addr string
}

func startReceivers(b testing.TB) *receivers {
	return &receivers{b, startChild(b, childReceivers).addresses.Receivers}
}

// await waits until n events have come since the last call.
func (r *receivers) await(n int) figures {
	r.b.Helper()
	client := http.Client{Timeout: 2 * patience}
	resp, err := client.Get(fmt.Sprintf("http://%s/await?n=%d", r.addr, n))
	if err != nil {
		r.b.Fatal(err)
	}
	defer resp.Body.Close()
	var f figures
	if err := json.NewDecoder(resp.Body).Decode(&f); err != nil {
		r.b.Fatal(err)
	}
	return f
}

// binary is a subscriber that gets its events in binary mode.
func binary(name, url, more string) string {
	return fmt.Sprintf("  %s: { subjects: [ \"events.>\" ], deliver: { webhook: { url: %q, format: cloudevents-binary } }, limits: { concurrency: 32, timeout: 1s }%s }\n", name, url, more)
}

func (r *receivers) three() string {
	var parts strings.Builder
	parts.WriteString("subscribers:\n")
	for _, name := range []string{"one", "two", "three"} {
		parts.WriteString(binary(name, "http://"+r.addr+"/ok/"+name, ""))
	}
	return parts.String()
}

var serial atomic.Int64

// stamped is an id that begins with the time.
func stamped() string { return fmt.Sprintf("%d-%d", time.Now().UnixNano(), serial.Add(1)) }

// mustPost posts a body with n events and wants all of them published.
func mustPost(b testing.TB, addr, source string, body []byte) {
	a, err := send(addr, source, nil, body)
	if err != nil || a.status != http.StatusOK || strings.Contains(string(a.body), `"published":0`) {
		b.Errorf("HTTP %d %s, %v", a.status, a.body, err)
	}
}

// batch is a request of n Event Grid events of 1 KB.
func batch(n int) []byte {
	var s strings.Builder
	filler := strings.Repeat("x", 700)
	for range n {
		fmt.Fprintf(&s, `,{"id":%q,"topic":"/topics/shop","subject":"orders/%d","eventType":"Order.Placed","eventTime":"2026-11-01T10:00:00Z","dataVersion":"1","data":{"filler":%q}}`, stamped(), serial.Load(), filler)
	}
	return []byte("[" + s.String()[1:] + "]")
}

// flood posts over 16 connections for a while and returns the number of events.
func flood(g *gridfan, d time.Duration, source string, perPost int, body func() []byte) int {
	addr := g.app.PublicAddr()
	var n atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(d)
	for range 16 {
		wg.Go(func() {
			for time.Now().Before(end) {
				mustPost(g.t, addr, source, body())
				n.Add(int64(perPost))
			}
		})
	}
	wg.Wait()
	return int(n.Load())
}

func BenchmarkThroughput(b *testing.B) {
	for _, load := range []struct {
		name, source string
		perPost      int
		body         func() []byte
	}{
		{"one-event-per-post", "fo", 1, func() []byte { return businessEvent(stamped()) }},
		{"hundred-events-per-post", "eg", 100, func() []byte { return batch(100) }},
	} {
		b.Run(load.name, func(b *testing.B) {
			for b.Loop() {
				r := startReceivers(b)
				g := start(b, sources, r.three())
				begin := time.Now()
				n := flood(g, 3*time.Second, load.source, load.perPost, load.body)
				accepted := time.Since(begin)
				f := r.await(3 * n)
				b.ReportMetric(float64(n)/accepted.Seconds(), "accepted/s")
				b.ReportMetric(float64(f.N)/time.Since(begin).Seconds(), "delivered/s")
				g.stop()
			}
		})
	}

	// Well below the limit, the time from a post to a subscriber is not that
	// of a queue.
	b.Run("hundred-events-per-second", func(b *testing.B) {
		for b.Loop() {
			r := startReceivers(b)
			g := start(b, sources, r.three())
			const n = 300
			pace := time.NewTicker(10 * time.Millisecond)
			for range n {
				<-pace.C
				mustPost(b, g.app.PublicAddr(), "fo", businessEvent(stamped()))
			}
			pace.Stop()
			f := r.await(3 * n)
			b.ReportMetric(f.P50.Seconds()*1000, "p50-ms")
			b.ReportMetric(f.P99.Seconds()*1000, "p99-ms")
			g.stop()
		}
	})

	// Nothing is posted while the CPU time is taken.
	b.Run("delivery-only", func(b *testing.B) {
		for b.Loop() {
			r := startReceivers(b)
			g := start(b, sources, r.three())
			for _, name := range []string{"one", "two", "three"} {
				if _, err := g.admin.SetPaused(b.Context(), name, true); err != nil {
					b.Fatal(err)
				}
			}
			const posts = 40
			for range posts {
				mustPost(b, g.app.PublicAddr(), "eg", batch(100))
			}
			before, begin := cpu(b), time.Now()
			for _, name := range []string{"one", "two", "three"} {
				if _, err := g.admin.SetPaused(b.Context(), name, false); err != nil {
					b.Fatal(err)
				}
			}
			f := r.await(3 * posts * 100)
			b.ReportMetric(float64(f.N)/time.Since(begin).Seconds(), "delivered/s")
			b.ReportMetric((cpu(b)-before).Seconds()*1000/float64(f.N)*1000, "cpu-ms/1000-deliveries")
			g.stop()
		}
	})
}

// BenchmarkIsolation serves 48 subscribers with and without two more that fail,
// in turns, and compares what a delivery to the 48 costs.
func BenchmarkIsolation(b *testing.B) {
	const healthy, rounds, events = 48, 8, 40
	for b.Loop() {
		r := startReceivers(b)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		nobody := l.Addr().String()
		l.Close()
		const failing = ", breaker: { openFor: 1s, maxOpenFor: 1s }"
		var parts strings.Builder
		parts.WriteString("subscribers:\n" + binary("dead", "http://"+nobody, failing) + binary("hanging", "http://"+r.addr+"/hang", failing))
		for i := range healthy {
			name := fmt.Sprintf("well-%d", i)
			parts.WriteString(binary(name, "http://"+r.addr+"/ok/"+name, ""))
		}
		g := start(b, sources, parts.String())

		// One round at a steady pace; what it costs for each delivery.
		round := func() (perDelivery, p99 time.Duration) {
			before := cpu(b)
			pace := time.NewTicker(25 * time.Millisecond)
			defer pace.Stop()
			for range events {
				<-pace.C
				mustPost(b, g.app.PublicAddr(), "fo", businessEvent(stamped()))
			}
			f := r.await(healthy * events)
			return (cpu(b) - before) / time.Duration(f.N), f.P99
		}
		failures := func(on bool) {
			for _, name := range []string{"dead", "hanging"} {
				if _, err := g.admin.SetPaused(b.Context(), name, !on); err != nil {
					b.Fatal(err)
				}
			}
		}

		// Warm up until both breakers are open.
		failures(true)
		round()
		waitFor(b, "both breakers are open", func() bool {
			for _, name := range []string{"dead", "hanging"} {
				if s, err := g.admin.Subscriber(b.Context(), name); err != nil || s.Breaker.State == "closed" {
					return false
				}
			}
			return true
		})
		var with, without, ratios, tails []float64
		for range rounds {
			failures(false)
			cost, tail := round()
			failures(true)
			costWith, tailWith := round()
			without = append(without, cost.Seconds()*1e6)
			with = append(with, costWith.Seconds()*1e6)
			ratios = append(ratios, costWith.Seconds()/cost.Seconds())
			tails = append(tails, tailWith.Seconds()/tail.Seconds())
		}
		b.ReportMetric(median(without), "cpu-µs/delivery")
		b.ReportMetric(median(with), "cpu-µs/delivery-beside-failing")
		b.ReportMetric(median(ratios), "cpu-ratio")
		b.ReportMetric(median(tails), "p99-ratio")
		g.stop()
	}
}

func median(v []float64) float64 {
	slices.Sort(v)
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}
