package registry_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

func TestReplace(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	d := definition("one", "events.>")
	e := g.add(d)
	if e.Revision == 0 {
		t.Fatalf("no revision: %+v", e)
	}
	d.Limits.Concurrency, d.Limits.Rate = 3, 100
	next, changed, err := g.r.Replace(ctx, d, e.Revision)
	if err != nil {
		t.Fatal(err)
	}
	want := []registry.Difference{{Key: "limits.concurrency", From: "8", To: "3"}, {Key: "limits.rate", From: "", To: "100/s"}}
	if d := gocmp.Diff(want, changed); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if got, err := g.r.Get(ctx, "one"); err != nil || got.Revision != next.Revision || got.Definition.Limits.Concurrency != 3 || next.Revision <= e.Revision {
		t.Errorf("%+v, %v", got, err)
	}

	// The version that was read is not there any more.
	stale, isStale := errors.AsType[*registry.StaleError](second(g.r.Replace(ctx, d, e.Revision)))
	if !isStale || stale.Revision != next.Revision {
		t.Errorf("got %v", stale)
	}
	if _, err := g.r.DeleteIf(ctx, "one", false, e.Revision); !errors.As(err, &stale) {
		t.Errorf("delete: %v", err)
	}
	if stale, ok := errors.AsType[*registry.StaleError](second(g.r.Replace(ctx, definition("nobody", "events.>"), 0))); !ok || stale.Revision != 0 {
		t.Errorf("nobody: %v", stale)
	}
	// The same again is no change.
	if same, changed, err := g.r.Replace(ctx, d, 0); err != nil || same.Revision != next.Revision || len(changed) != 0 {
		t.Errorf("%+v, %v, %v", same, changed, err)
	}
	if _, _, err := g.r.Replace(ctx, definition("one", "orders.>"), 0); err == nil || !strings.Contains(err.Error(), "subjects[0]") {
		t.Errorf("an invalid one: %v", err)
	}
	g.declare(definition("file", "events.>"))
	if _, _, err := g.r.Replace(ctx, definition("file", "events.a.>"), 0); !errors.Is(err, registry.ErrFileDeclared) {
		t.Errorf("a file-declared one: %v", err)
	}
	if _, err := g.r.DeleteIf(ctx, "one", false, next.Revision); err != nil {
		t.Errorf("delete: %v", err)
	}
}

func second[A, B any](_ A, _ B, err error) error { return err }

// TestReplaceWhileEventsCome changes everything but the subjects, again and
// again, and wants every event once.
func TestReplaceWhileEventsCome(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	g.add(definition("one", "events.>"))
	var changing sync.WaitGroup
	changing.Go(func() {
		for i := range 10 {
			d := definition("one", "events.>")
			d.Limits.Concurrency = 1 + i
			d.Limits.Timeout = deliver.Duration(time.Duration(i+1) * time.Second)
			d.Deliver.Webhook.URL = fmt.Sprintf("https://example.com/%d", i)
			if _, _, err := g.r.Replace(ctx, d, 0); err != nil {
				t.Error(err)
			}
			time.Sleep(20 * time.Millisecond) // sleep: events come meanwhile
		}
	})
	var want []string
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i := range 400 {
		<-tick.C
		want = append(want, fmt.Sprintf("%05d", i))
		g.publish("events.a.b.c.D", want[i])
	}
	changing.Wait()
	g.want("one", want...)
}

func TestDifferences(t *testing.T) {
	from, to := definition("one", "events.>"), definition("one", "events.>")
	for _, d := range []*registry.Definition{&from, &to} {
		if err := d.Validate(); err != nil {
			t.Fatal(err)
		}
	}
	if got := registry.Differences(from, to); len(got) != 0 {
		t.Errorf("got %v", got)
	}
	to.Subjects = []string{"events.a.>", "events.b.>"}
	to.Start = registry.Beginning
	to.Retry.Faults = map[deliver.Fault]deliver.Rule{deliver.FaultTLS: {GiveUp: true}}
	to.Deliver.Webhook.URL = strings.ReplaceAll(to.Deliver.Webhook.URL, "secret", "another")
	want := []registry.Difference{
		{Key: "deliver.webhook.url", From: "https://example.com/one?<redacted>", To: "https://example.com/one?<redacted> (its secret part is another)"},
		{Key: "retry.faults.tls.giveUp", To: "true"},
		{Key: "subjects", From: "[ events.> ]", To: "[ events.a.>, events.b.> ]"},
	}
	if d := gocmp.Diff(want, registry.Differences(from, to)); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestReveal(t *testing.T) {
	stored := definition("one", "events.>")
	shown := stored.Redacted()
	shown.Reveal(stored)
	if shown.Deliver.Webhook.URL != stored.Deliver.Webhook.URL {
		t.Errorf("got %s", shown.Deliver.Webhook.URL)
	}
	if err := stored.Redacted().Deliver.Webhook.Validate("x"); err != nil {
		t.Errorf("the message should be that of the definition: %v", err)
	}
	hidden := stored.Redacted()
	if err := hidden.Validate(); err == nil || !strings.Contains(err.Error(), "deliver.webhook.url: its secret part is hidden") {
		t.Errorf("got %v", err)
	}
	other := definition("one", "events.>")
	other.Deliver.Webhook.URL = "https://example.org/"
	other.Reveal(stored)
	if other.Deliver.Webhook.URL != "https://example.org/" {
		t.Errorf("got %s", other.Deliver.Webhook.URL)
	}
}
