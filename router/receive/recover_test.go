package receive

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/amqptest"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/publish"
)

// Dead letters are looked at, read back as late events, and taken out once stored.
func TestRecover(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{MaxMessage: 32 << 20})
	q := srv.Queue("orders", amqptest.QueueOptions{})
	q.Put(order("o-0"))
	h := newHall(t, queueSource(srv))
	h.Start()
	h.eventually("it is stored", func() bool { return q.Len() == 0 })
	h.Stop()
	bad := order("bad")
	bad.Data = [][]byte{[]byte("no JSON")}
	huge := order("huge")
	huge.Data = [][]byte{make([]byte, 9<<20)}
	for _, m := range append(orders(120), bad, huge) {
		m.ApplicationProperties = map[string]any{"DeadLetterReason": "MaxDeliveryCountExceeded", "DeadLetterErrorDescription": "often"}
		q.DeadLetters.Put(m)
	}
	want := &Recovery{
		Source: "shop", From: "127.0.0.1/orders/$DeadLetterQueue", DryRun: true, Messages: 122, Published: 120, Quarantined: 2,
		Reasons: map[string]int{"MaxDeliveryCountExceeded": 122},
	}
	got, err := h.Recover(t.Context(), "shop", true, 1000)
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if q.DeadLetters.Len() != 122 || q.DeadLetters.Given() != 0 || len(h.stored(broker.StreamEvents)) != 1 {
		t.Error("a look has changed something")
	}
	// While nothing can be stored, nothing is taken out.
	h.failing(publish.ErrStorageFull)
	if got, err := h.Recover(t.Context(), "shop", false, 1000); err != nil || got.Problem != "the storage is full" || !got.More || q.DeadLetters.Len() != 122 {
		t.Errorf("%+v %v, %d left", got, err, q.DeadLetters.Len())
	}
	h.failing(nil)
	// It goes on where it stopped.
	if got, err := h.Recover(t.Context(), "shop", false, 50); err != nil || got.Messages != 50 || !got.More || got.Published+got.Duplicate != 50 {
		t.Errorf("%+v %v", got, err)
	}
	got, err = h.Recover(t.Context(), "shop", false, 1000)
	if err != nil || got.Messages != 72 || got.TooLarge != 1 || got.Quarantined != 1 || got.More || got.Problem != "" {
		t.Errorf("%+v %v", got, err)
	}
	if n := q.DeadLetters.Len(); n != 1 {
		t.Errorf("%d dead letters are left", n)
	}
	all := h.stored(broker.StreamEvents)
	late := 0
	for _, m := range all {
		if m.Header.Get("ce-late") == "true" && m.Header.Get("ce-via") == "push" {
			late++
		}
	}
	if len(all) != 120 || late != 119 {
		t.Errorf("%d events are stored, %d of them late", len(all), late)
	}
	if _, err := h.Recover(t.Context(), "nobody", false, 1); !errors.Is(err, ErrUnknown) {
		t.Errorf("nobody: %v", err)
	}
	space := newSpace(t)
	if _, err := newHall(t, space.source()).Recover(t.Context(), "shop", false, 1); !errors.Is(err, ErrNoDeadLetters) {
		t.Errorf("a namespace: %v", err)
	}
}
