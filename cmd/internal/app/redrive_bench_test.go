//go:build unix

package app_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deadletters"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// BenchmarkRedrive has 100,000 dead letters of one of several subscribers. In
// turns it measures what a live delivery costs without a redrive, with one, and
// what a redriven one costs when nothing else happens; with the cost of its own
// deliveries taken off, a redrive must leave live traffic as it was. Then the
// rest goes as fast as it can.
func BenchmarkRedrive(b *testing.B) {
	const letters, healthy, rounds, events = 100_000, 8, 12, 40
	for b.Loop() {
		r := startReceivers(b)
		var parts strings.Builder
		parts.WriteString("subscribers:\n" + binary("shop", "http://"+r.addr+"/take", ""))
		for i := range healthy {
			name := fmt.Sprintf("well-%d", i)
			parts.WriteString(binary(name, "http://"+r.addr+"/ok/"+name, ""))
		}
		g := start(b, sources, parts.String())
		bury(b, g, "shop", letters)

		round := func() (used time.Duration, p99 time.Duration) {
			before := cpu(b)
			pace := time.NewTicker(25 * time.Millisecond)
			defer pace.Stop()
			for range events {
				<-pace.C
				mustPost(b, g.app.PublicAddr(), "fo", businessEvent(stamped()))
			}
			f := r.await(healthy * events)
			return cpu(b) - before, f.P99
		}
		quiet := func() time.Duration {
			before := cpu(b)
			time.Sleep(time.Second) // sleep: a span of time is measured
			return cpu(b) - before
		}
		job := func(o *admin.Ordered, err error) *deadletters.Job {
			if err != nil {
				b.Fatal(err)
			}
			return o.Job
		}
		rate := deliver.Rate(200)
		j := job(g.admin.RedriveDeadLetters(b.Context(), "shop", admin.LetterOrder{Selection: deadletters.Selection{All: true}, Rate: &rate}))
		done := func() int {
			now, err := g.admin.Job(b.Context(), j.ID)
			if err != nil {
				b.Fatal(err)
			}
			return now.Done
		}
		running := func(on bool) {
			order := g.admin.StopJob
			if on {
				order = g.admin.ResumeJob
			}
			if _, err := order(b.Context(), j.ID); err != nil {
				b.Fatal(err)
			}
			at := done()
			waitFor(b, "the job obeys", func() bool {
				now, err := g.admin.Job(b.Context(), j.ID)
				if err != nil {
					b.Fatal(err)
				}
				return !on && now.State == deadletters.Stopped || on && now.Done > at
			})
		}
		round() // warm up
		const live = healthy * events
		var without, alone, ratios, raw, tails []float64
		for range rounds {
			running(false)
			cost, tail := round()
			idle := quiet()
			running(true)
			at := done()
			beside, tailBeside := round()
			sent := done() - at
			at = done()
			own := (quiet() - idle).Seconds() / float64(done()-at)
			without = append(without, cost.Seconds()*1e6/live)
			alone = append(alone, own*1e6)
			ratios = append(ratios, (beside.Seconds()-own*float64(sent))/cost.Seconds())
			raw = append(raw, beside.Seconds()/float64(live+sent)/(cost.Seconds()/live))
			tails = append(tails, tailBeside.Seconds()/tail.Seconds())
		}
		b.ReportMetric(median(without), "cpu-µs/delivery")
		b.ReportMetric(median(alone), "cpu-µs/redriven")
		b.ReportMetric(median(ratios), "cpu-ratio")
		b.ReportMetric(median(raw), "cpu-ratio-all")
		b.ReportMetric(median(tails), "p99-ratio")

		running(false)
		left := letters - done()
		began := time.Now()
		j = job(g.admin.RedriveDeadLetters(b.Context(), "shop", admin.LetterOrder{Selection: deadletters.Selection{All: true}}))
		for {
			now, err := g.admin.Job(b.Context(), j.ID)
			if err != nil {
				b.Fatal(err)
			}
			if now.State == deadletters.Done {
				if now.Done != left {
					b.Fatalf("%d of %d were redriven", now.Done, left)
				}
				break
			}
			time.Sleep(100 * time.Millisecond) // sleep: it takes as long as it takes
		}
		b.ReportMetric(float64(left)/time.Since(began).Seconds(), "redriven/s")
		g.stop()
	}
}

// bury makes dead letters of a subscriber, as its worker would.
func bury(b *testing.B, g *gridfan, subscriber string, n int) {
	nc, err := nats.Connect(g.natsURL)
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	body := fmt.Appendf(nil, `{"filler":%q}`, strings.Repeat("x", 1000))
	for i := range n {
		_, err := js.PublishMsgAsync(&nats.Msg{
			Subject: broker.DeadLetter(subscriber, "rejected"), Data: body,
			Header: nats.Header{
				"ce-specversion": {"1.0"}, "ce-id": {stamped()}, "ce-source": {"/s"}, "ce-type": {"Order.Placed"}, "content-type": {"application/json"},
				deliver.HeaderSubscriber: {subscriber}, deliver.HeaderOriginSequence: {fmt.Sprint(1<<40 + i)}, deliver.HeaderOriginSubject: {"events.eventgrid.eg.shop.Order.Placed"},
				deliver.HeaderHop: {"0"}, deliver.HeaderAttempts: {"1"}, deliver.HeaderStatus: {"422"}, deliver.HeaderReason: {"HTTP%20422"},
			},
		})
		if err != nil {
			b.Fatal(err)
		}
		if i%2000 == 1999 {
			<-js.PublishAsyncComplete()
		}
	}
	<-js.PublishAsyncComplete()
}
