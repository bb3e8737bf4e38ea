package registry_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

func reached(name, endpoint, path string) registry.Definition {
	d := definition(name, "events.>")
	d.Deliver.Webhook = &webhook.Config{Endpoint: endpoint, Path: path}
	return d
}

// sentTo tells where an event of a subscriber was sent.
func (g *rig) sentTo(name, id string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.at[name+" "+id]
}

func TestEndpoint(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	if _, err := g.r.Add(ctx, reached("one", "wms", "/orders")); !errors.Is(err, registry.ErrNoEndpoint) {
		t.Errorf("added without its endpoint: %v", err)
	}
	set := func(url string, revision uint64, replace bool) (registry.EndpointEntry, error) {
		return g.r.SetEndpoint(ctx, registry.Endpoint{Name: "wms", URL: url}, revision, replace)
	}
	if _, err := set("https://a.example.com/", 0, true); err == nil {
		t.Error("replaced, although there is none")
	}
	e, err := set("https://a.example.com/base/?code=secret", 0, false)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := set("https://a.example.com/base/?code=secret", 0, false); err != nil || again.Revision != e.Revision {
		t.Errorf("the same again: %+v, %v", again, err)
	}
	if _, err := set("https://b.example.com/", 0, false); !errors.Is(err, registry.ErrEndpointExists) {
		t.Errorf("another URL: %v", err)
	}
	if _, err := set("ftp://b.example.com/", 0, true); err == nil {
		t.Error("a bad URL is taken")
	}
	g.add(reached("one", "wms", "/orders?kind=x"))
	g.publish("events.a.b.c.D", "1")
	g.want("one", "1")
	if got := g.sentTo("one", "1"); got != "https://a.example.com/base/orders?code=secret&kind=x" {
		t.Errorf("sent to %s", got)
	}

	// It moves: what is not delivered goes to the new place.
	if _, err := set("https://b.example.com", e.Revision, true); err != nil {
		t.Fatal(err)
	}
	if stale, ok := errors.AsType[*registry.StaleError](last(set("https://c.example.com", e.Revision, true))); !ok || stale.Revision <= e.Revision {
		t.Errorf("stale: %v", stale)
	}
	want := []string{"1"}
	waitFor(t, "it is sent to the new place", func() bool {
		id := fmt.Sprint(len(want) + 1)
		want = append(want, id)
		g.publish("events.a.b.c.D", id)
		g.want("one", want...)
		return g.sentTo("one", id) == "https://b.example.com/orders?kind=x"
	})

	err = g.r.DeleteEndpoint(ctx, "wms", 0)
	if !errors.Is(err, registry.ErrEndpointInUse) || !strings.Contains(err.Error(), "by one") {
		t.Errorf("deleted while in use: %v", err)
	}
	if _, err := g.r.Delete(ctx, "one", true); err != nil {
		t.Fatal(err)
	}
	if err := g.r.DeleteEndpoint(ctx, "wms", 0); err != nil {
		t.Error(err)
	}
	if err := g.r.DeleteEndpoint(ctx, "wms", 0); !errors.Is(err, registry.ErrNoEndpoint) {
		t.Errorf("again: %v", err)
	}
}

func last[A any](_ A, err error) error { return err }

// TestEndpointMissing parks who can't be reached, and lets go when it can.
func TestEndpointMissing(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	d := reached("one", "wms", "")
	g.declare(d)
	waitFor(t, "it is parked", func() bool {
		states, err := g.r.States(ctx)
		_, ok := g.fleet.Breaker("one")
		return err == nil && states[0].Missing == "wms" && !ok
	})
	g.publish("events.a.b.c.D", "1", "2")
	time.Sleep(100 * time.Millisecond) // sleep: to see that nothing comes
	if got := g.of("one"); len(got) != 0 {
		t.Errorf("sent to nowhere: %v", got)
	}
	if err := g.r.Sync(ctx, []registry.Endpoint{{Name: "wms", URL: "https://a.example.com/"}}, []registry.Definition{valid(t, d)}); err != nil {
		t.Fatal(err)
	}
	g.want("one", "1", "2")
	if _, err := g.r.SetEndpoint(ctx, registry.Endpoint{Name: "wms", URL: "https://b.example.com/"}, 0, true); !errors.Is(err, registry.ErrFileDeclared) {
		t.Errorf("a file-declared one: %v", err)
	}

	// The file no longer has it: it stays as long as it is used.
	if err := g.r.Sync(ctx, nil, []registry.Definition{valid(t, d)}); err != nil {
		t.Fatal(err)
	}
	all, err := g.r.Endpoints(ctx)
	if err != nil || len(all) != 1 || !all[0].Orphaned {
		t.Errorf("endpoints %+v, %v", all, err)
	}
	d.Deliver.Webhook = &webhook.Config{URL: "https://c.example.com/"}
	if err := g.r.Sync(ctx, nil, []registry.Definition{valid(t, d)}); err != nil {
		t.Fatal(err)
	}
	if all, err := g.r.Endpoints(ctx); err != nil || len(all) != 0 {
		t.Errorf("endpoints %+v, %v", all, err)
	}
	g.publish("events.a.b.c.D", "3")
	g.want("one", "1", "2", "3")
	if d := gocmp.Diff("https://c.example.com/", g.sentTo("one", "3")); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func valid(t *testing.T, d registry.Definition) registry.Definition {
	t.Helper()
	if err := d.Validate(); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestEndpointMovesWhileEventsCome wants each event once, and each at one place.
func TestEndpointMovesWhileEventsCome(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	move := func(i int) {
		if _, err := g.r.SetEndpoint(ctx, registry.Endpoint{Name: "wms", URL: fmt.Sprintf("https://%d.example.com/", i)}, 0, i > 0); err != nil {
			t.Fatal(err)
		}
	}
	move(0)
	g.add(reached("one", "wms", "/in"))
	var want []string
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i := range 400 {
		<-tick.C
		if i%50 == 49 {
			move(i)
		}
		want = append(want, fmt.Sprintf("%05d", i))
		g.publish("events.a.b.c.D", want[i])
	}
	g.want("one", want...)
}
