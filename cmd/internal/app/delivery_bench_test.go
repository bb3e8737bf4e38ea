//go:build unix

package app_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// deliveryBodies are the bodies of n deliveries: what a subscriber gets of the
// events of batch, as a program would post them that has nothing else to do.
func deliveryBodies(n int) [][]byte {
	bodies := make([][]byte, n)
	filler := strings.Repeat("x", 700)
	for i := range bodies {
		bodies[i] = fmt.Appendf(nil, `{"specversion":"1.0","id":%q,"source":"/topics/shop","type":"Order.Placed","subject":"orders/%d","time":"2026-11-01T10:00:00Z","datacontenttype":"application/json","gridfansource":"eg","via":"push","partitionkey":"orders/%d","recordedtime":"2026-11-01T10:00:00.000000000Z","data":{"filler":%q}}`,
			stamped(), i, i, filler)
	}
	return bodies
}

// rawPosts posts bodies over as many connections as a subscriber's concurrency,
// with a plain client, and returns how long it took.
func rawPosts(b *testing.B, url string, connections int, bodies [][]byte) time.Duration {
	b.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{MaxConnsPerHost: connections, MaxIdleConnsPerHost: connections}}
	defer client.CloseIdleConnections()
	work := make(chan []byte, len(bodies))
	for _, body := range bodies {
		work <- body
	}
	close(work)
	begin := time.Now()
	var wg sync.WaitGroup
	for range connections {
		wg.Go(func() {
			for body := range work {
				resp, err := client.Post(url, "application/cloudevents+json; charset=utf-8", bytes.NewReader(body))
				if err != nil {
					b.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	wg.Wait()
	return time.Since(begin)
}

// BenchmarkDelivery compares what is delivered in a second, of events that were
// accepted before, with a plain client that posts the same bodies to the same
// receiver, in turns. cpu-times-raw is the CPU of a delivery over that of one of its
// posts, which tells more than the rates where the machine is busy with other things.
func BenchmarkDelivery(b *testing.B) {
	const connections, rounds, posts = 32, 6, 100
	const filter = `, filter: "event.type == 'Order.Placed' && event.data.filler != 'y'"`
	for _, tt := range []struct{ name, webhook, more string }{
		{"plain", "", ""},
		{"signed-filtered", ", sign: true", filter},
		{"transformed-too", ", sign: true", filter + `, transform: ". + {seen: true}"`},
	} {
		b.Run(tt.name, func(b *testing.B) {
			for b.Loop() {
				r := startReceivers(b)
				url := "http://" + r.addr + "/ok/one"
				g := start(b, sources, fmt.Sprintf("subscribers:\n  one: { subjects: [ \"events.>\" ], deliver: { webhook: { url: %q%s } }, limits: { concurrency: %d, timeout: 5s }%s }\n", url, tt.webhook, connections, tt.more))
				pause := func(on bool) {
					if _, err := g.admin.SetPaused(b.Context(), "one", on); err != nil {
						b.Fatal(err)
					}
				}
				bodies := deliveryBodies(posts * 100)
				var ratios, ours, theirs, costs, times []float64
				for round := range rounds + 1 {
					pause(true)
					for range posts {
						mustPost(b, g.app.PublicAddr(), "eg", batch(100))
					}
					// The books' share of the intake is done, too.
					if _, err := g.admin.Books(b.Context()); err != nil {
						b.Fatal(err)
					}
					runtime.GC()
					before, begin := cpu(b), time.Now()
					pause(false)
					n := r.await(len(bodies)).N
					took, cost := time.Since(begin), cpu(b)-before
					runtime.GC()
					before = cpu(b)
					raw := rawPosts(b, url, connections, bodies)
					r.await(len(bodies))
					rawCost := cpu(b) - before
					if round == 0 {
						continue // warm up
					}
					rate, plain := float64(n)/took.Seconds(), float64(len(bodies))/raw.Seconds()
					ours, theirs, ratios = append(ours, rate), append(theirs, plain), append(ratios, rate/plain)
					costs, times = append(costs, cost.Seconds()*1e6/float64(n)), append(times, cost.Seconds()/rawCost.Seconds())
				}
				b.ReportMetric(median(ours), "delivered/s")
				b.ReportMetric(median(theirs), "raw-posts/s")
				b.ReportMetric(median(ratios), "ratio")
				b.ReportMetric(median(costs), "cpu-µs/delivery")
				b.ReportMetric(median(times), "cpu-times-raw")
				g.stop()
			}
		})
	}
}

// BenchmarkArrayDelivery compares what is delivered in a second as arrays of a hundred
// with what is delivered one by one. Each time a new subscriber gets the same stored
// events from the first on, in turns, at the same receiver, which takes the arrays
// apart.
func BenchmarkArrayDelivery(b *testing.B) {
	const rounds, posts = 4, 100
	ways := []struct {
		name, path string
		format     webhook.Format
		batch      deliver.Batch
	}{
		{"one-by-one", "ok", webhook.Structured, deliver.Batch{}},
		{"cloudevents", "array", webhook.Structured, deliver.Batch{Events: 100}},
		{"eventgrid", "array", webhook.EventGrid, deliver.Batch{Events: 100}},
	}
	for b.Loop() {
		r := startReceivers(b)
		g := start(b, sources)
		for range posts {
			mustPost(b, g.app.PublicAddr(), "eg", batch(100))
		}
		rates, costs, ratios := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
		for round := range rounds + 1 {
			for _, way := range ways {
				d := registry.Definition{
					Name: way.name, Subjects: []string{"events.>"}, Start: registry.Beginning,
					Deliver: registry.Deliver{Webhook: &webhook.Config{URL: "http://" + r.addr + "/" + way.path + "/" + way.name, Format: way.format}},
				}
				d.Limits.Concurrency, d.Limits.Batch = 32, way.batch
				runtime.GC()
				before, begin := cpu(b), time.Now()
				if _, err := g.admin.Subscribe(b.Context(), d); err != nil {
					b.Fatal(err)
				}
				n := r.await(posts * 100).N
				rate, cost := float64(n)/time.Since(begin).Seconds(), (cpu(b)-before).Seconds()*1e6/float64(n)
				g.drained() // nothing comes after it was counted
				if _, err := g.admin.Delete(b.Context(), way.name, false); err != nil {
					b.Fatal(err)
				}
				if round > 0 { // the first warms up
					rates[way.name], costs[way.name] = append(rates[way.name], rate), append(costs[way.name], cost)
					ratios[way.name] = append(ratios[way.name], rate/rates["one-by-one"][round-1])
				}
			}
		}
		for _, way := range ways {
			b.ReportMetric(median(rates[way.name]), way.name+"/s")
			b.ReportMetric(median(costs[way.name]), "cpu-µs/"+way.name)
		}
		for _, way := range ways[1:] {
			b.ReportMetric(median(ratios[way.name]), "ratio-"+way.name)
		}
		g.stop()
	}
}
