package books_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/books"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// BenchmarkCatchUp opens new books on a store with 50,000 events and a record of
// each: all of what folding costs, the broker's part with it.
func BenchmarkCatchUp(b *testing.B) {
	const n, perBlock = 50_000, 500
	br := brokertest.New(b)
	js := br.JetStream()
	var futures []jetstream.PubAckFuture
	put := func(m *nats.Msg) {
		f, err := js.PublishMsgAsync(m, jetstream.WithStallWait(time.Minute))
		if err != nil {
			b.Fatal(err)
		}
		futures = append(futures, f)
	}
	var block []byte
	for i := range n {
		e := event.Event{ID: fmt.Sprint(i), Source: "/d365/fno/prod", Type: "PurchaseOrderConfirmedBusinessEvent", Data: make([]byte, 600), Time: time.Now()}
		e.Set(event.ExtSource, "prod")
		e.Set(event.ExtVia, "push")
		h, body := e.Encode()
		h["Gridfan-Digest"] = []string{"x"}
		put(&nats.Msg{Subject: fmt.Sprintf("events.fno.prod.usmf.Thing%d", i%100), Header: h, Data: body})
		line, err := json.Marshal(deliver.Record{Subscriber: "s0", Sequence: uint64(i + 1), ID: e.ID, Subject: "events.fno.prod.usmf.Thing", Outcome: deliver.RecordDelivered, Attempts: 1, Status: 200, Millis: 3, Time: time.Now().Add(time.Hour)})
		if err != nil {
			b.Fatal(err)
		}
		if block = append(append(block, line...), '\n'); (i+1)%perBlock == 0 {
			put(&nats.Msg{Subject: broker.Attempts("x"), Data: block})
			block = nil
		}
	}
	for _, f := range futures {
		select {
		case <-f.Ok():
		case err := <-f.Err():
			b.Fatal(err)
		}
	}
	log := slog.New(slog.DiscardHandler)
	r, err := registry.Open(b.Context(), br, log)
	if err != nil {
		b.Fatal(err)
	}
	have := 0
	for _, subscribers := range []int{3, 100, 1000} {
		for ; have < subscribers; have++ {
			d := definition(fmt.Sprintf("s%d", have), "events.fno.prod.>")
			d.Start = registry.Beginning
			if _, err := r.Add(b.Context(), d); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(fmt.Sprintf("subscribers=%d", subscribers), func(b *testing.B) {
			for b.Loop() {
				kv, err := js.KeyValue(b.Context(), broker.BucketBooks)
				if err != nil {
					b.Fatal(err)
				}
				if err := kv.Purge(b.Context(), "sums"); err != nil {
					b.Fatal(err)
				}
				k, err := books.Open(b.Context(), books.Parts{Broker: br, Registry: r, Log: log})
				if err != nil {
					b.Fatal(err)
				}
				if err := k.Wait(b.Context()); err != nil {
					b.Fatal(err)
				}
				k.Close(context.Background())
			}
			b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/event")
		})
	}
}
