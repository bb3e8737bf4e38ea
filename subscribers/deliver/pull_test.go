package deliver

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/schemas/event"
)

func TestPulledFrom(t *testing.T) {
	for reply, want := range map[string]*pulled{
		"$JS.ACK.EVENTS.one.1.7.9.1700000000.3":                {stream: 7, consumer: 9},
		"$JS.ACK.EVENTS.one.2.7.9.1700000000.3":                {stream: 7, consumer: 9, repeated: true},
		"$JS.ACK._.hash.EVENTS.one.3.7.9.1700000000.3.random":  {stream: 7, consumer: 9, repeated: true},
		"$JS.ACK.hub.hash.EVENTS.one.1.7.9.1700000000.3":       {stream: 7, consumer: 9},
		"$JS.ACK.hub.hash.EVENTS.one.1.7.9.1700000000.3.a.b.c": {stream: 7, consumer: 9},
		"":                                       nil,
		"_INBOX.x.1":                             nil,
		"$JS.ACK.EVENTS.one.1.7.9.1700000000":    nil,
		"$JS.ACK.EVENTS.one.1.7.9.170.3.4":       nil,
		"$JS.ACK.EVENTS.one.x.7.9.1700000000.3":  nil,
		"$JS.ACK.EVENTS.one.1.-7.9.1700000000.3": nil,
		"$JS.ACK.EVENTS.one.1.7..1700000000.3":   nil,
	} {
		m := &nats.Msg{Reply: reply}
		got, err := pulledFrom(nil, m)
		if want == nil {
			if err == nil {
				t.Errorf("%q: got %+v", reply, got)
			}
			continue
		}
		if err != nil || got.stream != want.stream || got.consumer != want.consumer || got.repeated != want.repeated || got.reply != reply {
			t.Errorf("%q: got %+v, %v", reply, got, err)
		}
	}
}

// FuzzHeaders: of headers as they came we make what the client makes of them.
func FuzzHeaders(f *testing.F) {
	for _, block := range []string{
		"NATS/1.0\r\nce-specversion: 1.0\r\nce-id:1\r\nce-source:  /s\r\nce-type: t\r\nce-time: 2026-11-01T10:00:00Z\r\nce-x: a%20b\r\nGridfan-Anew: later\r\nGridfan-Data: json\r\n\r\n",
		"NATS/1.0\r\nce-id: 1\r\nce-id: 2\r\nCE-ID: 3\r\nce-specversion: 1.0\r\nce-source: s\r\nce-type: t\r\nce-x: 1\r\nce-x: 2\r\n\r\n",
		"NATS/1.0 503\r\n\r\n", "NATS/1.0\r\n\r\nce-id: 1\r\n\r\n", "NATS/1.0\r\n: x\r\nce-id: \r\n\r\n", "NATS/1.0\nce-id: 1\n\n", "NATS/1.0\r\nce-id", "HTTP/1.1\r\n\r\n", "",
		"NATS/1.0\r\nContent-Type: application/cloudevents+json\r\n\r\n", "NATS/1.0\r\nce-specversion: 1.0\r\nce-id: \r\nce-id: x\r\n\r\n", "NATS/1.0\r\nce-id: a\rb\r\r\n\r\n",
	} {
		f.Add(block, "Gridfan-Anew")
	}
	f.Fuzz(func(t *testing.T, block, name string) {
		h, err := nats.DecodeHeadersMsg([]byte(block))
		if err != nil {
			h = nats.Header{}
		}
		different := map[string]bool{} // names that differ in their case alone come in any order out of a map
		for n := range h {
			if n = strings.ToLower(n); different[n] {
				return
			}
			different[n] = true
		}
		body := []byte(`{"specversion":"1.0","id":"1","source":"s","type":"t"}`)
		want, wantErr := event.Decode(h, body)
		p := &pulled{m: &nats.Msg{}, raw: []byte(block), data: body}
		if got := p.get(name); err == nil && name != "" && !strings.Contains(name, ":") && got != h.Get(name) && name != "Status" && name != "Description" {
			t.Errorf("%q of %q: got %q, want %q", name, block, got, h.Get(name))
		}
		got, gotErr := p.decode()
		if d := cmp.Diff(want, got); d != "" && wantErr == nil || (wantErr == nil) != (gotErr == nil) {
			t.Errorf("%q: %v and %v (-want +got):\n%s", block, wantErr, gotErr, d)
		}
		if d := cmp.Diff(h, p.header()); d != "" {
			t.Errorf("%q (-want +got):\n%s", block, d)
		}
	})
}

// TestPullReader reads from a real server: what comes, what a stopped request leaves
// behind, and what the server says.
func TestPullReader(t *testing.T) {
	nc := brokertest.InProcess(t, t.TempDir(), false)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}}); err != nil {
		t.Fatal(err)
	}
	cfg := consumerConfig("c", []string{"s.>"}, 1, 1000)
	cfg.AckWait = time.Hour // what comes again was given back
	if _, err := js.CreateConsumer(ctx, "S", cfg); err != nil {
		t.Fatal(err)
	}
	publish := func(from, to int) {
		for i := from; i <= to; i++ {
			if _, err := js.PublishMsg(ctx, &nats.Msg{Subject: "s.x", Header: nats.Header{"ce-id": {fmt.Sprint(i)}}, Data: fmt.Append(nil, i)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := newPullReader(nc, newLink(nc), "S", "c", 20)
	subscriptions := nc.NumSubscriptions()

	publish(1, 30)
	var got []uint64
	take := func(m message) {
		if string(m.body()) != fmt.Sprint(m.sequence()) || m.header().Get("ce-id") != fmt.Sprint(m.sequence()) || m.subject() != "s.x" {
			t.Errorf("message %d is %q with %v on %s", m.sequence(), m.body(), m.header(), m.subject())
		}
		got = append(got, m.sequence())
		if err := m.ack(); err != nil {
			t.Error(err)
		}
	}
	for range 3 { // 10 each, on one subscription
		if err := r.fetch(ctx, 10, fetchWait, take); err != nil {
			t.Fatal(err)
		}
	}
	if len(got) != 30 || nc.NumSubscriptions() > subscriptions+1 {
		t.Errorf("got %v on %d subscriptions", got, nc.NumSubscriptions()-subscriptions)
	}

	// Stopped amid a request, whose messages are there already: those that nobody has
	// taken come again at once, and no others.
	publish(31, 40)
	running, stop := context.WithCancel(ctx)
	first := map[uint64]bool{}
	if err := r.fetch(running, 20, fetchWait, func(m message) {
		if first[m.sequence()] = true; len(first) == 1 {
			deadline := time.Now().Add(20 * time.Second)
			for info := (&jetstream.ConsumerInfo{}); info.NumAckPending < 10 && time.Now().Before(deadline); {
				if info, err = consumerInfo(ctx, js); err != nil {
					t.Error(err)
					return
				}
			}
			if err := nc.Flush(); err != nil { // all are here
				t.Error(err)
			}
			stop()
		}
		if err := m.ack(); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	got = nil
	if err := r.fetch(ctx, 20, time.Second, func(m message) {
		if first[m.sequence()] || !m.again() {
			t.Errorf("message %d came again; it was taken: %v", m.sequence(), first[m.sequence()])
		}
		take(m)
	}); err != nil {
		t.Fatal(err)
	}
	if len(first) != 1 || len(got) != 9 {
		t.Errorf("%d were taken and %d came again, want 1 and 9", len(first), len(got))
	}

	// What is there now, and no more.
	publish(41, 70)
	got = nil
	if err := r.ready(ctx, 25, take); err != nil || len(got) != 25 {
		t.Errorf("got %v, %v; want 25", got, err)
	}
	if err := r.ready(ctx, 25, take); err != nil || len(got) != 30 {
		t.Errorf("got %v, %v; want all 30", got, err)
	}
	if err := r.fetch(ctx, 20, 50*time.Millisecond, take); err != nil || len(got) != 30 {
		t.Errorf("got %v, %v; there is nothing", got, err)
	}

	// A request ends with its consumer, and finds none.
	deleted := make(chan error, 1)
	go func() {
		for {
			info, err := consumerInfo(ctx, js)
			if err != nil || info.NumWaiting > 0 {
				deleted <- js.DeleteConsumer(ctx, "S", "c")
				return
			}
		}
	}()
	if err := r.fetch(ctx, 20, fetchWait, take); err != jetstream.ErrConsumerDeleted {
		t.Errorf("got %v", err)
	}
	if err := <-deleted; err != nil {
		t.Fatal(err)
	}
	if err := r.fetch(ctx, 20, fetchWait, take); err != nats.ErrNoResponders {
		t.Errorf("got %v", err)
	}
}

func consumerInfo(ctx context.Context, js jetstream.JetStream) (*jetstream.ConsumerInfo, error) {
	c, err := js.Consumer(ctx, "S", "c")
	if err != nil {
		return nil, err
	}
	return c.CachedInfo(), nil
}
