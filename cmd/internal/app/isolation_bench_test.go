//go:build unix

package app_test

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/admin"
)

// BenchmarkIsolationAt500 serves 500 subscribers, of which 50 die, 50 get slow,
// and one each answers with garbage, never closes its response, and answers byte
// by byte; in turns with rounds in which all are well. Every event must reach
// the others, and what a delivery that is taken costs is compared. The slow ones'
// are among these: they take what they are sent, only late.
func BenchmarkIsolationAt500(b *testing.B) {
	// Eight seconds of each, because a trouble costs most when it begins and when the
	// breakers try again.
	const all, dead, slow, rounds, events = 500, 50, 50, 6, 160
	const concurrency, failures = 4, 5
	for b.Loop() {
		r := startReceivers(b)
		var parts strings.Builder
		parts.WriteString("subscribers:\n")
		kinds := map[string]string{}
		for i := range all {
			name, kind := fmt.Sprintf("s%d", i), ""
			switch {
			case i < dead:
				kind = "dead"
			case i < dead+slow:
				kind = "slow"
			case i < dead+slow+3:
				kind = []string{"garbage", "open", "drip"}[i-dead-slow]
			}
			url := "http://" + r.addr + "/ok/" + name
			if kind != "" {
				url, kinds[name] = "http://"+r.addr+"/trouble/"+kind+"/"+name, kind
			}
			fmt.Fprintf(&parts, "  %s: { subjects: [ \"events.>\" ], deliver: { webhook: { url: %q, format: cloudevents-binary } }, limits: { concurrency: %d, timeout: 1s }, breaker: { failures: %d, openFor: 2s, maxOpenFor: 2s, rampUp: none } }\n", name, url, concurrency, failures)
		}
		g := start(b, sources, parts.String())
		r.troubled("false")
		well := all - len(kinds)

		// One round at a steady pace.
		pace := func(events int) {
			t := time.NewTicker(50 * time.Millisecond)
			defer t.Stop()
			for range events {
				<-t.C
				mustPost(b, g.app.PublicAddr(), "fo", businessEvent(stamped()))
			}
		}
		// drain waits until everybody has everything.
		drain := func(least int) {
			r.await(least)
			waitFor(b, "everybody has got everything", func() bool {
				list, err := g.admin.Subscribers(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				return !slices.ContainsFunc(list, func(s admin.Subscriber) bool { return s.Backlog.Pending+s.Backlog.Retry > 0 })
			})
			r.await(0) // what has come meanwhile is not counted in the next round
		}
		pace(5)
		r.await(all * 5)
		// What a round in which all are well costs in all.
		calm := func() float64 {
			before := cpu(b)
			pace(events)
			r.await(all * events)
			return (cpu(b) - before).Seconds()
		}
		var without, with float64
		var took int
		var recoveries, heaps []float64
		before := calm()
		for range rounds {
			r.troubled("true")
			pace(1) // the breakers find out
			r.await(0)
			began := cpu(b)
			pace(events)
			n := r.await(well * events).N
			cost := (cpu(b) - began).Seconds()
			var mem runtime.MemStats
			runtime.ReadMemStats(&mem)
			heaps = append(heaps, float64(mem.HeapInuse)/(1<<20))
			seen := r.troubled("false")
			for name, p := range seen {
				// Two seconds open: at most three probes in 8 s, and what was under
				// way when it opened.
				if most := failures + concurrency + 4; kinds[name] == "dead" && p.Early > most {
					b.Errorf("%s is dead and was tried %d times in 8 s, want at most %d", name, p.Early, most)
				}
			}
			drain(1)
			// From the first event that was taken to the last one.
			for name, p := range r.troubled("false") {
				if kinds[name] == "dead" {
					recoveries = append(recoveries, p.Last.Sub(p.First).Seconds())
				}
			}
			// The machine's pace changes: the rounds before and after it are what one
			// is compared with.
			after := calm()
			without += (before + after) / 2
			with += cost
			took += n
			b.Logf("beside trouble: %d deliveries taken, %d of them by those that are well; %.0f µs each, %.0f beside none",
				n, well*events, cost*1e6/float64(n), (before+after)/2*1e6/float64(all*events))
			before = after
		}
		// All rounds together: single ones are a tenth apart even where nothing differs.
		undisturbed := without / float64(rounds*all*events)
		b.ReportMetric(undisturbed*1e6, "cpu-µs/delivery")
		b.ReportMetric(with*1e6/float64(took), "cpu-µs/delivery-beside-trouble")
		b.ReportMetric(with/float64(took)/undisturbed, "cpu-ratio")
		b.ReportMetric(with/float64(rounds*well*events)/undisturbed, "cpu-ratio-if-slow-count-for-nothing")
		b.ReportMetric(slices.Max(recoveries), "s-to-catch-up")
		b.ReportMetric(slices.Max(heaps), "heap-MiB")
		g.stop()
	}
}
