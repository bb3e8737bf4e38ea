package app_test

import (
	"context"
	"fmt"
	"log/slog"
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
