//go:build unix

package app_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// BenchmarkSubscribers shows what many subscribers cost: the start, memory and CPU
// time while nothing happens, and deliveries, when each has events of its own
// and when all get the same ones. The program is a process of its own, so its
// figures are no one else's; they hold the intake too, which subscribers=0 shows
// alone.
func BenchmarkSubscribers(b *testing.B) {
	var base float64 // MiB without subscribers
	for _, n := range []int{0, 3, 100, 500, 1000} {
		for _, load := range []struct {
			name    string
			subject func(i int) string // of the i-th subscriber
			event   func(i int) string // type of the i-th event
			events  int
			each    int // deliveries of an event
		}{
			{"own", func(i int) string { return fmt.Sprintf("events.cloudevents.ce.shop.t%d", i) }, func(i int) string { return fmt.Sprintf("t%d", i%max(1, n)) }, 10_000, min(1, n)},
			{"broadcast", func(int) string { return "events.cloudevents.ce.shop.all" }, func(int) string { return "all" }, 50_000 / max(1, n), n},
		} {
			if n == 0 && load.name == "broadcast" {
				continue
			}
			b.Run(fmt.Sprintf("subscribers=%d/%s", n, load.name), func(b *testing.B) {
				for b.Loop() {
					r := startReceivers(b)
					dir := b.TempDir()
					var parts strings.Builder
					if n > 0 {
						parts.WriteString("subscribers:\n")
					}
					for i := range n {
						fmt.Fprintf(&parts, "  s%d: { subjects: [ %q ], deliver: { webhook: { url: \"http://%s/ok/s%d\", format: cloudevents-binary } } }\n",
							i, load.subject(i), r.addr, i)
					}
					file := filepath.Join(dir, "gridfan.yaml")
					config := configuration(filepath.Join(dir, "data"), "sources: { ce: { kind: cloudevents, push: { auth: none } } }", parts.String())
					if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
						b.Fatal(err)
					}
					began := time.Now()
					c := startChild(b, childGridfan, file)
					b.ReportMetric(ms(time.Since(began)), "first-start-ms")
					c.end()
					began = time.Now()
					c = startChild(b, childGridfan, file)
					b.ReportMetric(ms(time.Since(began)), "start-ms")
					pid := c.cmd.Process.Pid

					idle := func() float64 {
						before := spent(b, pid)
						const quiet = 5 * time.Second
						time.Sleep(quiet) // sleep: what it costs while nothing happens
						return (spent(b, pid) - before).Seconds() / quiet.Seconds() * 100
					}
					b.ReportMetric(idle(), "idle-cpu-%")
					rss := resident(b, pid)
					if n == 0 {
						base = rss
					} else if base > 0 {
						b.ReportMetric((rss-base)*1024/float64(n), "idle-KiB/subscriber")
					}

					if n > 0 { // connections are made once, in the first seconds
						warm := 20 * max(1, n/load.each)
						postAll(b, c.addresses.Public, warm, load.event)
						awaitAll(r, warm*load.each)
					}
					before, began := spent(b, pid), time.Now()
					postAll(b, c.addresses.Public, load.events, load.event)
					accepted := time.Since(began)
					if n == 0 {
						b.ReportMetric((spent(b, pid)-before).Seconds()*1e6/float64(load.events), "cpu-ms/1000-accepted")
						b.ReportMetric(float64(load.events)/accepted.Seconds(), "accepted/s")
						c.kill()
						continue
					}
					f := awaitAll(r, load.events*load.each)
					b.ReportMetric(float64(f.N)/time.Since(began).Seconds(), "delivered/s")
					b.ReportMetric((spent(b, pid)-before).Seconds()*1e6/float64(f.N), "cpu-ms/1000-deliveries")
					b.ReportMetric(f.P99.Seconds()*1000, "p99-ms")
					b.ReportMetric(resident(b, pid), "rss-MiB")
					c.kill()
				}
			})
		}
	}
}

// awaitAll is await for a load that may take longer than one request should. The
// percentiles are those of its slowest part.
func awaitAll(r *receivers, n int) (sum figures) {
	r.b.Helper()
	for sum.N < n {
		f := r.await(min(1000, n-sum.N))
		sum.N += f.N
		sum.P50, sum.P99 = max(sum.P50, f.P50), max(sum.P99, f.P99)
	}
	return sum
}

// postAll posts n CloudEvents in batches over four connections.
func postAll(b *testing.B, addr string, n int, kind func(i int) string) {
	b.Helper()
	const connections, perPost = 4, 100
	var wg sync.WaitGroup
	posts := make(chan []byte)
	for range connections {
		wg.Go(func() {
			for body := range posts {
				a, err := send(addr, "ce", http.Header{"Content-Type": {"application/cloudevents-batch+json"}}, body)
				if err != nil || a.status != http.StatusOK {
					b.Errorf("HTTP %d %s, %v", a.status, a.body, err)
				}
			}
		})
	}
	filler := strings.Repeat("x", 700)
	for i := 0; i < n; i += perPost {
		var s bytes.Buffer
		for j := i; j < min(n, i+perPost); j++ {
			fmt.Fprintf(&s, `,{"specversion":"1.0","id":%q,"source":"/shop","type":%q,"data":{"filler":%q}}`, stamped(), kind(j), filler)
		}
		posts <- append(append([]byte("["), s.Bytes()[1:]...), ']')
	}
	close(posts)
	wg.Wait()
}

// spent is the CPU time of another process so far; 0 where the system does not
// tell.
func spent(b *testing.B, pid int) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const utime, stime, tick = 11, 12, 10 * time.Millisecond
	var sum time.Duration
	for _, i := range []int{utime, stime} {
		ticks, err := strconv.Atoi(fields[i])
		if err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(ticks) * tick
	}
	return sum
}
