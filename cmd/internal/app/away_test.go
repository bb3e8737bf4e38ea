package app_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"testing"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/cmd/internal/app"
	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
)

// gridfan starts without its external broker, answers handshakes, and takes
// events as soon as the broker is there. When it goes away later, events are
// spooled, and arrive once and in order when it is back.
func TestBrokerAway(t *testing.T) {
	s := brokertest.NewServer(t)
	s.Stop()
	in := newInbox(t)
	public := freeAddress(t)
	cfg, err := config.Parse("gridfan.yaml", fmt.Appendf(nil, `listen: { public: { addr: %q }, admin: { addr: "127.0.0.1:0" } }
broker:
  url: %q
  durability: sync-always
  spool: { dir: %q }
%s
subscribers:
%s`, public, s.URL(), t.TempDir(), sources, subscriber("all", in.url+"/all", "limits: { concurrency: 1 }")), config.System())
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	var a *app.App
	go func() {
		var err error
		a, err = app.New(context.Background(), cfg, app.Options{Version: "test", Log: slog.New(slog.DiscardHandler)})
		started <- err
	}()
	handshakes := func() {
		t.Helper()
		req, err := http.NewRequest(http.MethodOptions, "http://"+public+"/ingress/eg", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("WebHook-Request-Origin", "eventgrid.azure.net")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.Header.Get("WebHook-Allowed-Origin") == "" {
			t.Errorf("CloudEvents handshake: HTTP %d", resp.StatusCode)
		}
		v, err := send(public, "eg", nil, []byte(`[{"id":"v","topic":"t","subject":"","eventType":"Microsoft.EventGrid.SubscriptionValidationEvent","eventTime":"2026-11-01T10:00:00Z","data":{"validationCode":"512d38b6"},"dataVersion":"1"}]`))
		if err != nil || v.status != http.StatusOK || v.json(t)["validationResponse"] != "512d38b6" {
			t.Errorf("Event Grid handshake: HTTP %d %s, %v", v.status, v.body, err)
		}
	}

	answers(t, public)
	handshakes()
	if r, err := send(public, "fo", nil, businessEvent("EARLY")); err != nil || r.status != http.StatusServiceUnavailable || r.header.Get("Retry-After") == "" {
		t.Errorf("an event before there is a broker: HTTP %d, %v", r.status, err)
	}
	s.Start()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	g := &gridfan{t: t, app: a, admin: &admin.Client{URL: "http://" + a.AdminAddr()}}
	t.Cleanup(g.stop)
	ids := names("A", 60)
	g.accept(ids[:20]...)

	s.Stop()
	waitFor(t, "the broker's absence is noticed", func() bool {
		st, err := g.admin.Status(t.Context())
		return err == nil && !st.Healthy
	})
	handshakes()
	g.accept(ids[20:40]...)
	s.Start()
	g.accept(ids[40:]...)
	in.wantAll(t, "all", ids)
	var order []string
	seen := map[string]bool{}
	for _, r := range in.of("all") {
		if !seen[r.id()] {
			order = append(order, r.id())
		}
		seen[r.id()] = true
	}
	for i, id := range order {
		if id != ids[i] {
			t.Fatalf("event %d is %s, want %s", i, id, ids[i])
		}
	}
}

// freeAddress is one that was free a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
