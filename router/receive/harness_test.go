package receive

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/infra/amqptest"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
)

// What the configuration must keep to itself.
const canaryKey = "Y2FuYXJ5LWtleS1vZi1hLW5hbWVzcGFjZQ=="

func connectionTo(addr string) credentials.AzureAuth {
	return credentials.AzureAuth{ConnectionString: "Endpoint=sb://" + addr + ";SharedAccessKeyName=listen;SharedAccessKey=" + canaryKey + ";UseDevelopmentEmulator=true;"}
}

// hall is a router with receivers only.
type hall struct {
	t      testing.TB
	broker *broker.Broker
	pub    *publish.Publisher
	*Receivers

	mu      sync.Mutex // guards all below
	fail    error      // what publishing says instead of doing it
	calls   int
	reports []string
	log     strings.Builder
}

// Write takes log lines.
func (h *hall) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.log.Write(b)
}

func (h *hall) failing(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fail = err
}

func (h *hall) publish(ctx context.Context, o publish.Origin, results []event.Result) ([]publish.Status, error) {
	h.mu.Lock()
	err := h.fail
	h.calls++
	h.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return h.pub.Publish(ctx, o, results)
}

func (h *hall) attempts() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls
}

func (h *hall) reported() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.reports...)
}

func (h *hall) report(what, about string, _ map[string]any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reports = append(h.reports, what+" "+about)
}

// newHall makes one for sources that are in a hurry; nothing is started.
func newHall(t testing.TB, sources ...Source) *hall {
	t.Helper()
	h := &hall{t: t, broker: brokertest.New(t)}
	var err error
	if h.pub, err = publish.New(t.Context(), h.broker, publish.Config{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.pub.Close() })
	h.Receivers = h.receivers(sources...)
	return h
}

// receivers makes more of them, as another process has.
func (h *hall) receivers(sources ...Source) *Receivers {
	h.t.Helper()
	for i := range sources {
		if err := sources[i].Validate("sources." + sources[i].Name); err != nil {
			h.t.Fatal(err)
		}
	}
	r, err := New(sources, Parts{
		Broker: h.broker, Publish: h.publish, Metrics: NewMetrics(prometheus.NewRegistry()), Report: h.report, Version: "1.2.3",
		Log: slog.New(slog.NewTextHandler(h, nil)),
	})
	if err != nil {
		h.t.Fatal(err)
	}
	for _, s := range r.sources {
		s.least, s.most, s.renew = 20*time.Millisecond, 100*time.Millisecond, 50*time.Millisecond
		if s.hub != nil {
			s.hub.tick, s.hub.refresh, s.hub.wait = 30*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond
		}
	}
	h.t.Cleanup(func() {
		r.Stop()
		h.mu.Lock()
		defer h.mu.Unlock()
		if text := h.log.String(); strings.Contains(text, canaryKey) || strings.Contains(text, "sig=") && !strings.Contains(text, "sig=<redacted>") {
			h.t.Errorf("a secret is in the log:\n%s", text)
		}
		if h.t.Failed() {
			h.t.Log(h.log.String())
		}
	})
	return r
}

// stored gives the messages of a stream.
func (h *hall) stored(stream string) []*jetstream.RawStreamMsg {
	h.t.Helper()
	s, err := h.broker.JetStream().Stream(context.Background(), stream)
	if err != nil {
		h.t.Fatal(err)
	}
	info, err := s.Info(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	var all []*jetstream.RawStreamMsg
	for seq := info.State.FirstSeq; seq != 0 && seq <= info.State.LastSeq; seq++ {
		m, err := s.GetMsg(context.Background(), seq)
		if err != nil {
			continue // deleted
		}
		all = append(all, m)
	}
	return all
}

// eventually waits until something is so.
func (h *hall) eventually(what string, ok func() bool) {
	h.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			h.t.Fatalf("not so in time: %s; status %+v", what, h.Status())
		}
		time.Sleep(5 * time.Millisecond) // sleep: between two looks
	}
}

func (h *hall) one(name string) Status { return h.sources[name].status.status() }

// order is a message with one CloudEvent.
func order(id string) *amqp.Message {
	contentType := "application/cloudevents+json"
	return &amqp.Message{
		Properties: &amqp.MessageProperties{MessageID: "m-" + id, ContentType: &contentType},
		Data:       [][]byte{fmt.Appendf(nil, `{"specversion":"1.0","id":%q,"source":"/crm/orders","type":"order.placed","subject":"o/1","data":{"n":9007199254740993}}`, id)},
	}
}

func orders(n int) []*amqp.Message {
	var all []*amqp.Message
	for i := range n {
		all = append(all, order(fmt.Sprint("o-", i)))
	}
	return all
}

// queueSource receives CloudEvents from queue orders.
func queueSource(srv *amqptest.Server) Source {
	return Source{Name: "shop", Kind: event.KindCloudEvents, From: &Config{ServiceBus: &ServiceBus{Queue: "orders", Auth: connectionTo(srv.Addr)}}}
}

func contextFor(t testing.TB, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}
