package app_test

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gridfan/gridfan/subscribers/pull"
)

// BenchmarkPull measures what a thousand receivers cost that wait, how long after
// its post an event is in a receiver's answer, and how many events a few receivers
// take and acknowledge. The receivers are in this process, and count with it.
func BenchmarkPull(b *testing.B) {
	const waiting, samples = 1000, 200
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: waiting}}
	receive := func(ctx context.Context, addr string, n string) (got []heldEvent, err error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+pull.Path("reader")+":receive?maxWaitTime=120&maxEvents="+n, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "SharedAccessKey "+pullKey)
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return nil, err
	}
	b.Run("waiting", func(b *testing.B) {
		for b.Loop() {
			g := start(b, sources, "subscribers:\n", fetching("reader", "lockDuration: 60s"))
			addr := g.app.PublicAddr()
			idle := func() time.Duration {
				before := cpu(b)
				time.Sleep(3 * time.Second) // sleep: what it costs meanwhile is measured
				return (cpu(b) - before) / 3
			}
			none := idle()
			ctx, cancel := context.WithCancel(b.Context())
			answered := make(chan time.Time, waiting)
			var receivers sync.WaitGroup
			for range waiting {
				receivers.Go(func() {
					if _, err := receive(ctx, addr, "1"); err == nil {
						answered <- time.Now()
					}
				})
			}
			waitFor(b, "all wait", func() bool {
				resp, err := http.Get(g.admin.URL + "/metrics")
				if err != nil {
					return false
				}
				defer resp.Body.Close()
				text, _ := io.ReadAll(resp.Body)
				return strings.Contains(string(text), `gridfan_pull_receivers_waiting{subscriber="reader"} 1000`)
			})
			all := idle()
			var took []time.Duration
			for range samples {
				began := time.Now()
				g.accept(stamped())
				took = append(took, (<-answered).Sub(began))
				time.Sleep(5 * time.Millisecond) // sleep: one after another
			}
			slices.Sort(took)
			b.ReportMetric(none.Seconds()*1000, "cpu-ms/s-none-waiting")
			b.ReportMetric(all.Seconds()*1000, "cpu-ms/s-1000-waiting")
			b.ReportMetric(took[samples/2].Seconds()*1000, "p50-ms")
			b.ReportMetric(took[samples*99/100].Seconds()*1000, "p99-ms")
			cancel()
			receivers.Wait()
			g.stop()
		}
	})
	b.Run("throughput", func(b *testing.B) {
		for b.Loop() {
			g := start(b, sources, "subscribers:\n", fetching("reader", "lockDuration: 60s"))
			addr := g.app.PublicAddr()
			const events = 5000
			for n := 0; n < events; n += 100 {
				mustPost(b, addr, "eg", batch(100))
			}
			var mu sync.Mutex // guards done
			done := 0
			ctx, stop := context.WithTimeout(b.Context(), patience)
			began := time.Now()
			var receivers sync.WaitGroup
			for range 4 {
				receivers.Go(func() {
					for ctx.Err() == nil {
						got, err := fetch100(ctx, addr)
						if err != nil || len(got) == 0 {
							continue
						}
						var tokens []string
						for _, h := range got {
							tokens = append(tokens, h.token)
						}
						succeeded, _, err := acknowledge(ctx, addr, tokens)
						if err != nil {
							continue
						}
						mu.Lock()
						if done += len(succeeded); done == events {
							stop()
						}
						mu.Unlock()
					}
				})
			}
			receivers.Wait()
			stop()
			if done != events {
				b.Fatalf("%d of %d events are acknowledged", done, events)
			}
			b.ReportMetric(events/time.Since(began).Seconds(), "acknowledged/s")
			g.stop()
		}
	})
}
