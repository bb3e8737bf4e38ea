package registry

import (
	"log/slog"
	"testing"
	"time"

	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// TestJudge has a worker that has not heard of a change yet judge events that
// came after it.
func TestJudge(t *testing.T) {
	ctx := t.Context()
	b := brokertest.New(t)
	r, err := Open(ctx, b, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	d := Definition{Name: "one", Subjects: []string{"events.a.>"}, Deliver: Deliver{Webhook: &webhook.Config{URL: "https://example.com/"}}}
	old, err := r.Add(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	publish := func(subject string) uint64 {
		ack, err := b.JetStream().Publish(ctx, subject, nil)
		if err != nil {
			t.Fatal(err)
		}
		return ack.Sequence
	}
	j := &judge{registry: r, entry: old}
	want := func(subject string, sequence uint64, want bool) {
		t.Helper()
		if got := j.wants(subject, sequence); got != want {
			t.Errorf("%s at %d: %v", subject, sequence, got)
		}
	}
	a1, b2 := publish("events.a.x.y.Z"), publish("events.b.x.y.Z")
	want("events.a.x.y.Z", a1, true)
	want("events.b.x.y.Z", b2, false)
	if j.sure != b2 {
		t.Errorf("sure up to %d", j.sure)
	}
	if _, err := r.update(ctx, "one", func(e *Entry) error { e.Definition.Subjects = []string{"events.b.>"}; return nil }); err != nil {
		t.Fatal(err)
	}
	b3 := publish("events.b.x.y.Z")
	want("events.b.x.y.Z", b3, true)
	want("events.b.x.y.Z", b2, false)

	// In the middle of a change it waits.
	e, err := r.Get(ctx, "one")
	if err != nil {
		t.Fatal(err)
	}
	e.Epochs = append(e.Epochs, Epoch{Subjects: []string{"events.c.>"}})
	if err := r.store(ctx, &e); err != nil {
		t.Fatal(err)
	}
	c4 := publish("events.c.x.y.Z")
	verdict := make(chan bool)
	go func() { verdict <- j.wants("events.c.x.y.Z", c4) }()
	select {
	case v := <-verdict:
		t.Errorf("%v, before it can be known", v)
	case <-time.After(3 * quietPoll):
	}
	if _, err := r.settle(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	if <-verdict {
		t.Error("wanted, although it came before the change was complete")
	}
	want("events.c.x.y.Z", publish("events.c.x.y.Z"), true)

	// A deleted one wants nothing more than it did.
	if _, err := r.Delete(ctx, "one", true); err != nil {
		t.Fatal(err)
	}
	want("events.b.x.y.Z", publish("events.b.x.y.Z"), false)
	if _, err := r.latest(ctx, "one"); err != ErrNotFound {
		t.Errorf("latest: %v", err)
	}
}
