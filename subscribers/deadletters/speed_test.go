package deadletters_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deadletters"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// BenchmarkMany has 100,000 dead letters: how long it takes to see them, to send
// them to a subscriber that takes them at once, and to drop them.
func BenchmarkMany(b *testing.B) {
	const n = 100_000
	for b.Loop() {
		g := newRig(b)
		bury := func(base int) {
			for i := range n {
				h := nats.Header{
					"ce-specversion": {"1.0"}, "ce-id": {fmt.Sprintf("order-%d", base+i)}, "ce-source": {"/s"}, "ce-type": {"Order.Placed"}, "content-type": {"application/json"},
					deliver.HeaderOriginSequence: {fmt.Sprint(base + i + 1)}, deliver.HeaderOriginSubject: {"events.eventgrid.files.shop.even"}, deliver.HeaderHop: {"0"},
					deliver.HeaderAttempts: {"2"}, deliver.HeaderStatus: {"422"}, deliver.HeaderReason: {fmt.Sprintf("HTTP%%20422:%%20order%%20%d", base+i)},
				}
				if _, err := g.js.PublishMsgAsync(&nats.Msg{Subject: broker.DeadLetter(name, "rejected"), Header: h, Data: make([]byte, 1000)}); err != nil {
					b.Fatal(err)
				}
				if i%2000 == 0 {
					<-g.js.PublishAsyncComplete()
				}
			}
			<-g.js.PublishAsyncComplete()
		}
		bury(0)
		s, err := deadletters.Open(b.Context(), g.parts)
		if err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		if groups, err := s.Groups(b.Context(), name); err != nil || groups.Total != n {
			b.Fatal(groups.Total, err)
		}
		b.ReportMetric(time.Since(began).Seconds(), "group-s")
		began = time.Now()
		if page, err := s.List(b.Context(), name, deadletters.Selection{}, n/2, 100); err != nil || len(page) != 100 {
			b.Fatal(len(page), err)
		}
		b.ReportMetric(time.Since(began).Seconds()*1000, "page-ms")
		began = time.Now()
		if j := g.await(s, g.redrive(s, deadletters.Selection{All: true}).ID); j.Done != n {
			b.Fatalf("%+v", j)
		}
		b.ReportMetric(n/time.Since(began).Seconds(), "redriven/s")
		g.waitFor("all of them", func() bool { return len(g.received()) == n })
		bury(n)
		began = time.Now()
		j, err := s.Drop(b.Context(), name, deadletters.Selection{All: true})
		if err != nil {
			b.Fatal(err)
		}
		if j := g.await(s, j.ID); j.Done != n {
			b.Fatalf("%+v", j)
		}
		b.ReportMetric(n/time.Since(began).Seconds(), "dropped/s")
		s.Close()
	}
}
