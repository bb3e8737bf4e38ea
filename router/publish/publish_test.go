package publish_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
)

var accepted = time.Date(2026, 11, 23, 5, 0, 0, 0, time.UTC)

func origin(source, env string) publish.Origin {
	return publish.Origin{Source: source, Kind: "fno", Environment: env, Via: "push", Accepted: accepted}
}

func result(id, data string) event.Result {
	e := &event.Event{ID: id, Source: "/s", Type: "t", Data: []byte(data), DataJSON: true, DataContentType: "application/json"}
	return event.Result{
		Event: e, Raw: []byte(data), Scope: "usmf", Name: "Thing",
		Key: "k" + id, Digest: event.Digest("t", "", e.Data, true),
	}
}

func newPublisher(t *testing.T, b *broker.Broker) *publish.Publisher {
	t.Helper()
	p, err := publish.New(t.Context(), b, publish.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func stored(t *testing.T, b *broker.Broker, stream string, seq uint64) (*event.Event, string) {
	t.Helper()
	s, err := b.JetStream().Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.GetMsg(t.Context(), seq)
	if err != nil {
		t.Fatal(err)
	}
	e, err := event.Decode(m.Header, m.Data)
	if err != nil {
		t.Fatal(err)
	}
	return e, m.Subject
}

func TestPublish(t *testing.T) {
	b := brokertest.New(t)
	p := newPublisher(t, b)
	got, err := p.Publish(t.Context(), origin("prod", "env"), []event.Result{
		result("1", `{"a":1}`),
		result("1", `{ "a": 1 }`), // the same once more
		result("1", `{"a":2}`),    // another under the same id
		{Control: &event.Control{Kind: event.Test}},
		{Fault: event.Faultf(event.FaultNotEvent, "so\nso"), Raw: []byte("{}")},
	})
	want := []publish.Status{publish.Published, publish.Duplicate, publish.Published, publish.Control, publish.Quarantined}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Fatalf("err %v, statuses (-want +got):\n%s", err, d)
	}
	first, subject := stored(t, b, broker.StreamEvents, 1)
	if first.ID != "1" || subject != "events.fno.prod.usmf.Thing" || first.Get("gridfansource") != "prod" ||
		first.Get("via") != "push" || first.Get("recordedtime") != "2026-11-23T05:00:00Z" {
		t.Errorf("stored %+v on %s", first, subject)
	}
	second, _ := stored(t, b, broker.StreamEvents, 2)
	if !strings.HasPrefix(second.ID, "1~") || second.Get("originalid") != "1" || string(second.Data) != `{"a":2}` {
		t.Errorf("the event that reuses an id is stored as %+v", second)
	}

	// The same again, from another source of the environment and after a
	// restart of the publisher: nothing new.
	p = newPublisher(t, b)
	got, err = p.Publish(t.Context(), origin("other", "env"), []event.Result{result("1", `{"a":2}`), result("1", `{"a":1}`)})
	if d := cmp.Diff([]publish.Status{publish.Duplicate, publish.Duplicate}, got); d != "" || err != nil {
		t.Errorf("err %v, statuses (-want +got):\n%s", err, d)
	}
	// Another environment has events of its own.
	got, err = p.Publish(t.Context(), origin("other", "env2"), []event.Result{result("1", `{"a":1}`)})
	if d := cmp.Diff([]publish.Status{publish.Published}, got); d != "" || err != nil {
		t.Errorf("err %v, statuses (-want +got):\n%s", err, d)
	}
}

func TestSendersOwnStampsAreKept(t *testing.T) {
	b := brokertest.New(t)
	r := result("1", "1")
	r.Event.Set("via", "carrier pigeon")
	if _, err := newPublisher(t, b).Publish(t.Context(), origin("prod", "e"), []event.Result{r}); err != nil {
		t.Fatal(err)
	}
	if e, _ := stored(t, b, broker.StreamEvents, 1); e.Get("via") != "push" || e.Get("sendervia") != "carrier pigeon" {
		t.Errorf("stored %+v", e)
	}
}

func TestTooLargeGoesToQuarantine(t *testing.T) {
	b := brokertest.New(t)
	r := result("1", `"`+strings.Repeat("x", broker.MaxPayload)+`"`)
	r.Raw = r.Raw[:4<<20] // what the ingress would have let in
	got, err := newPublisher(t, b).Publish(t.Context(), origin("prod", "e"), []event.Result{r, result("2", "2")})
	if d := cmp.Diff([]publish.Status{publish.Quarantined, publish.Published}, got); d != "" || err != nil {
		t.Fatalf("err %v, statuses (-want +got):\n%s", err, d)
	}
}

// A broker with a small max_payload must be no reason to come back for ever.
func TestSmallBroker(t *testing.T) {
	b := brokertest.NewExternal(t, 128<<10)
	p := newPublisher(t, b)
	big := result("1", `"`+strings.Repeat("x", 200<<10)+`"`)
	if _, err := p.Publish(t.Context(), origin("prod", "e"), []event.Result{big}); !errors.Is(err, publish.ErrTooLarge) {
		t.Errorf("a large event: %v, want ErrTooLarge", err)
	}
	if _, err := p.Publish(t.Context(), origin("prod", "e"), []event.Result{result("2", "2")}); err != nil {
		t.Errorf("a small one after it: %v", err)
	}
}

func TestHugeAttributes(t *testing.T) {
	b := brokertest.New(t)
	r := result("1", "1")
	r.Event.Subject = strings.Repeat("\n", 64<<10)
	r.Name = strings.Repeat("*.", 64<<10)
	got, err := newPublisher(t, b).Publish(t.Context(), origin("prod", "e"), []event.Result{r, result("2", "2")})
	if d := cmp.Diff([]publish.Status{publish.Published, publish.Published}, got); d != "" || err != nil {
		t.Fatalf("err %v, statuses (-want +got):\n%s", err, d)
	}
	if e, _ := stored(t, b, broker.StreamEvents, 1); e.Subject != r.Event.Subject {
		t.Error("the subject attribute did not survive")
	}
	if !b.Connected() {
		t.Error("the broker cut the connection")
	}
}

func TestQuarantineQuota(t *testing.T) {
	b := brokertest.New(t)
	p := newPublisher(t, b)
	js := b.JetStream()
	s, err := js.Stream(t.Context(), broker.StreamQuarantine)
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	cfg.MaxMsgsPerSubject = 3
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	fault := func(i int) []event.Result {
		return []event.Result{{Fault: event.Faultf(event.FaultNotJSON, "x"), Raw: fmt.Append(nil, i)}}
	}
	for i := range 3 {
		if _, err := p.Publish(t.Context(), origin("prod", "e"), fault(i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Publish(t.Context(), origin("prod", "e"), fault(2)); err != nil {
		t.Errorf("a repeated body: %v", err)
	}
	if _, err := p.Publish(t.Context(), origin("prod", "e"), fault(4)); !errors.Is(err, publish.ErrQuarantineFull) {
		t.Errorf("a fourth body: %v, want ErrQuarantineFull", err)
	}
	if _, err := p.Publish(t.Context(), origin("other", "e"), fault(5)); err != nil {
		t.Errorf("another source: %v", err)
	}
}

func TestStorageFull(t *testing.T) {
	b := brokertest.New(t)
	p := newPublisher(t, b)
	js := b.JetStream()
	s, err := js.Stream(t.Context(), broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	cfg.MaxBytes = 64 << 10
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	big := `"` + string(bytes.Repeat([]byte("x"), 20<<10)) + `"`
	accepted := 0
	for i := range 10 {
		_, err = p.Publish(t.Context(), origin("prod", "e"), []event.Result{result(fmt.Sprint(i), big)})
		if err != nil {
			break
		}
		accepted++
	}
	if !errors.Is(err, publish.ErrStorageFull) {
		t.Fatalf("after %d events: %v, want ErrStorageFull", accepted, err)
	}
	info, err := s.Info(t.Context())
	if err != nil || info.State.Msgs != uint64(accepted) {
		t.Errorf("%d events stored of %d accepted, %v", info.State.Msgs, accepted, err)
	}
}

func TestBrokerGone(t *testing.T) {
	b := brokertest.New(t)
	p := newPublisher(t, b)
	b.Close()
	if _, err := p.Publish(t.Context(), origin("prod", "e"), []event.Result{result("1", "1")}); !errors.Is(err, publish.ErrBroker) {
		t.Errorf("got %v, want ErrBroker", err)
	}
}

// A source that floods waits for itself: another one's events get through.
func TestFloodDoesNotStarveOthers(t *testing.T) {
	b := brokertest.New(t)
	p := newPublisher(t, b)
	ctx, stop := context.WithCancel(t.Context())
	var flooding sync.WaitGroup
	for f := range 20 {
		flooding.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				batch := make([]event.Result, 2000)
				for i := range batch {
					batch[i] = result(fmt.Sprintf("f%d-%d-%d", f, n, i), "1")
				}
				// Its own senders are turned away now and then, as they should.
				_, err := p.Publish(ctx, origin("flood", "flood"), batch)
				if err != nil && ctx.Err() == nil && !errors.Is(err, publish.ErrOverloaded) && !errors.Is(err, publish.ErrBroker) {
					t.Errorf("flood: %v", err)
				}
			}
		})
	}
	defer flooding.Wait()
	defer stop()
	s, err := b.JetStream().Stream(t.Context(), broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	for {
		info, err := s.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if info.State.Msgs > 500 {
			break
		}
		time.Sleep(10 * time.Millisecond) // sleep: polling; the flood is on its way
	}
	var slowest time.Duration
	for i := range 10 {
		start := time.Now()
		if _, err := p.Publish(t.Context(), origin("quiet", "quiet"), []event.Result{result(fmt.Sprint(i), "1")}); err != nil {
			t.Errorf("event %d of the quiet source: %v", i, err)
		}
		slowest = max(slowest, time.Since(start))
	}
	t.Logf("slowest event of the quiet source: %v", slowest)
}
