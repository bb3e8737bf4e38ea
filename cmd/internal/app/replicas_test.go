package app_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/cmd/internal/app"
	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// TestReplicasTellOfEachOther asks two replicas on one broker who serves a
// subscriber that wants order, and how the other one finds it.
func TestReplicasTellOfEachOther(t *testing.T) {
	s := brokertest.NewServer(t)
	in := newInbox(t)
	var down atomic.Bool
	in.handle = func(w http.ResponseWriter, _ *http.Request, _ received) bool {
		if down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return down.Load()
	}
	replica := func() *gridfan {
		t.Helper()
		cfg, err := config.Parse("gridfan.yaml", fmt.Appendf(nil, `listen: { public: { addr: "127.0.0.1:0" }, admin: { addr: "127.0.0.1:0" } }
broker: { url: %q, durability: sync-always }
%s
subscribers:
%s%s`, s.URL(), sources,
			subscriber("ordered", in.url+"/ordered", "ordering: strict, breaker: { failures: 2, openFor: 200ms, maxOpenFor: 200ms, rampUp: none }, "+quickRetry),
			subscriber("any", in.url+"/any", "")), config.System())
		if err != nil {
			t.Fatal(err)
		}
		a, err := app.New(context.Background(), cfg, app.Options{Version: "test", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		g := &gridfan{t: t, app: a, admin: &admin.Client{URL: "http://" + a.AdminAddr()}}
		t.Cleanup(g.stop)
		return g
	}
	ask := func(g *gridfan, name string) *admin.Subscriber {
		t.Helper()
		v, err := g.admin.Subscriber(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	serves := func(g *gridfan, name string) bool { v := ask(g, name); return v.Serving != nil && *v.Serving }

	one := replica()
	waitFor(t, "the first one serves it", func() bool { return serves(one, "ordered") })
	two := replica()
	waitFor(t, "the second one stands by", func() bool { return ask(two, "ordered").StandsBy() })
	waitFor(t, "both serve the other one", func() bool { return serves(one, "any") && serves(two, "any") })
	if v := ask(two, "ordered"); len(v.Replicas) > 0 {
		t.Errorf("all is well, and another one finds %+v", v.Replicas)
	}

	down.Store(true)
	one.accept("A", "B")
	waitFor(t, "the one that stands by hears of it", func() bool {
		v := ask(two, "ordered")
		if len(v.Replicas) == 0 {
			return false
		}
		r := v.Replicas[0]
		if len(v.Replicas) > 1 || r.Instance != broker.Instance() || r.Since.IsZero() || r.State == deliver.BreakerClosed {
			t.Fatalf("%+v", v.Replicas)
		}
		return r.State == deliver.BreakerOpen && !serves(two, "ordered")
	})
	if v := ask(one, "ordered"); !serves(one, "ordered") || v.Breaker.Flowing() || len(v.Replicas) > 0 {
		t.Errorf("the one that serves it: %+v, others %+v", v.Breaker, v.Replicas)
	}
	newDescribed(t, two.admin.URL).call("GET", "/api/v1/subscribers/ordered", "", 200, "")
	var p *admin.Problem
	if _, err := two.admin.Probe(t.Context(), "ordered"); !errors.As(err, &p) || p.Code != "not-served" {
		t.Errorf("a probe where it is not served: %v", err)
	}
	if _, err := one.admin.Probe(t.Context(), "ordered"); err != nil {
		t.Errorf("a probe where it is served: %v", err)
	}

	one.stop()
	waitFor(t, "the second one takes over", func() bool { return serves(two, "ordered") })
	waitFor(t, "the first one is heard of no more", func() bool { return len(ask(two, "ordered").Replicas) == 0 })
	down.Store(false)
	in.wantAll(t, "ordered", []string{"A", "B"})
}
