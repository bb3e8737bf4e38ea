package app_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/cmd/internal/app"
	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
)

// On a cluster that keeps everything three times, subscribers get events as they do
// elsewhere, also those who take one at a time.
func TestDeliveryOnACluster(t *testing.T) {
	c, in := brokertest.NewCluster(t), newInbox(t)
	cfg, err := config.Parse("gridfan.yaml", fmt.Appendf(nil, `listen: { public: { addr: "127.0.0.1:0" }, admin: { addr: "127.0.0.1:0" } }
broker: { url: %q, replicas: 3, durability: sync-always }
%s
subscribers:
%s%s`, c.URL(), sources, subscriber("one", in.url+"/one", "limits: { concurrency: 1 }"), subscriber("many", in.url+"/many", "")), config.System())
	if err != nil {
		t.Fatal(err)
	}
	a, err := app.New(context.Background(), cfg, app.Options{Version: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	g := &gridfan{t: t, app: a, admin: &admin.Client{URL: "http://" + a.AdminAddr()}}
	t.Cleanup(g.stop)
	ids := names("A", 60)
	g.accept(ids...)
	in.wantAll(t, "many", ids)
	in.wantAll(t, "one", ids)
}

// A cluster that loses its leaders just when gridfan starts is waited for: first all of
// them at the moment in which the broker is reached, then one of a stream's.
func TestStartWhileLeadersAreElected(t *testing.T) {
	c, in := brokertest.NewCluster(t), newInbox(t)
	cfg, err := config.Parse("gridfan.yaml", fmt.Appendf(nil, `listen: { public: { addr: "127.0.0.1:0" }, admin: { addr: "127.0.0.1:0" } }
broker: { url: %q, replicas: 3 }
%s
subscribers:
%s`, c.URL(), sources, subscriber("one", in.url+"/one", "")), config.System())
	if err != nil {
		t.Fatal(err)
	}
	var again func()
	var waited int
	var back sync.WaitGroup
	start := func(stop func() func()) *gridfan {
		t.Helper()
		waited, again = 0, nil
		log := eachRecord(func(r slog.Record) {
			switch {
			case strings.HasPrefix(r.Message, "durability"): // the broker is reached, and nothing is read yet
				again = stop()
			case strings.HasPrefix(r.Message, "the broker does not do what the start needs"):
				if waited++; waited == 1 && again != nil {
					back.Go(again)
				}
			}
		})
		a, err := app.New(context.Background(), cfg, app.Options{Version: "test", Log: slog.New(log)})
		if err != nil {
			t.Fatal(err)
		}
		g := &gridfan{t: t, app: a, admin: &admin.Client{URL: "http://" + a.AdminAddr()}}
		t.Cleanup(g.stop)
		return g
	}
	g := start(c.StopTwo)
	back.Wait()
	if waited == 0 {
		t.Error("the start has not met a cluster without leaders, so this shows nothing")
	}
	g.accept(names("A", 10)...)
	in.wantAll(t, "one", names("A", 10))
	g.stop()

	g = start(func() func() { return c.StopLeader("ATTEMPTS") })
	g.accept(names("B", 10)...)
	in.wantAll(t, "one", names("B", 10))
	g.stop()
}

// eachRecord is a log that is told each line.
type eachRecord func(slog.Record)

func (eachRecord) Enabled(context.Context, slog.Level) bool { return true }

func (f eachRecord) Handle(_ context.Context, r slog.Record) error { f(r); return nil }

func (f eachRecord) WithAttrs([]slog.Attr) slog.Handler { return f }

func (f eachRecord) WithGroup(string) slog.Handler { return f }
