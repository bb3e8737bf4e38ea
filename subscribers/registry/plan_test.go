package registry_test

import (
	"errors"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/subscribers/registry"
)

// TestPlan says beforehand what Sync then does, and nothing afterwards.
func TestPlan(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	stays, goes, api, other := definition("stays", "events.>"), definition("goes", "events.>"), definition("api", "events.>"), definition("other", "events.>")
	wms := registry.Endpoint{Name: "wms", URL: "https://a.example.com/?code=secret"}
	if err := g.r.Sync(ctx, []registry.Endpoint{wms, {Name: "old", URL: "https://b.example.com/?code=secret"}},
		[]registry.Definition{valid(t, stays), valid(t, goes)}); err != nil {
		t.Fatal(err)
	}
	g.add(api)
	g.add(other)
	stays.Limits.Concurrency = 3
	added := valid(t, definition("added", "events.a.>"))
	wms.URL = "https://a.example.com/?code=another"
	endpoints, subscribers := []registry.Endpoint{wms}, []registry.Definition{valid(t, stays), valid(t, api), added}
	plan := func() []registry.Change {
		t.Helper()
		changes, err := g.r.Plan(ctx, endpoints, subscribers)
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range changes {
			if c.What == registry.Added {
				changes[i].Keys = nil // all there are
			}
		}
		return changes
	}
	want := []registry.Change{
		{Kind: "endpoint", Name: "wms", What: registry.Changed, Keys: []registry.Difference{
			{Key: "url", From: "https://a.example.com/?<redacted>", To: "https://a.example.com/?<redacted> (its secret part is another)"},
		}},
		{Kind: "endpoint", Name: "old", What: registry.Removed, Keys: []registry.Difference{{Key: "url", From: "https://b.example.com/?<redacted>"}}},
		{Kind: "subscriber", Name: "stays", What: registry.Changed, Keys: []registry.Difference{{Key: "limits.concurrency", From: "8", To: "3"}}},
		{Kind: "subscriber", Name: "api", What: registry.Changed, Keys: []registry.Difference{{Key: "declared", From: "by API", To: "in the file"}}},
		{Kind: "subscriber", Name: "added", What: registry.Added},
		{Kind: "subscriber", Name: "goes", What: registry.Removed, Backlog: &registry.Backlog{}},
	}
	if d := gocmp.Diff(want, plan()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if err := g.r.Sync(ctx, endpoints, subscribers); err != nil {
		t.Fatal(err)
	}
	want = []registry.Change{{Kind: "subscriber", Name: "goes", What: registry.Parked, Backlog: &registry.Backlog{}}}
	if d := gocmp.Diff(want, plan()); d != "" {
		t.Errorf("afterwards (-want +got):\n%s", d)
	}
	g.publish("events.a.b.c.D", "1")
	pruned, err := g.r.Prune(ctx)
	if d := gocmp.Diff([]registry.Change{{Kind: "subscriber", Name: "goes", What: registry.Removed, Backlog: &registry.Backlog{Pending: 1}}}, pruned); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if got := plan(); len(got) != 0 {
		t.Errorf("then %+v", got)
	}
	g.want("other", "1")
}

// TestSyncRefused does all that can be done.
func TestSyncRefused(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	ahead := definition("ahead", "events.>")
	ahead.Start = "2999-01-01T00:00:00Z"
	err := g.r.Sync(ctx, nil, []registry.Definition{valid(t, ahead), valid(t, definition("one", "events.>"))})
	refused, ok := errors.AsType[*registry.RefusedError](err)
	if !ok || len(refused.Errors) != 1 || !errors.Is(err, registry.ErrStart) {
		t.Errorf("got %v", err)
	}
	g.publish("events.a.b.c.D", "1")
	g.want("one", "1")
	if _, err := g.r.Get(ctx, "ahead"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}
