package app_test

import (
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/eventgrid"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/servicebus"
)

// TestEgress takes the leave from subscribers that were added by API, and gives it
// back. Nothing comes meanwhile, nothing is given up, and those of the file go on.
func TestEgress(t *testing.T) {
	ctx := t.Context()
	in := newInbox(t)
	file := []string{sources, "subscribers:\n" + subscriber("filed", in.url+"/filed", "") +
		"  moved: { subjects: [ \"events.>\" ], deliver: { webhook: { endpoint: wms, path: /moved } } }\n"}
	g := start(t, file...)
	if _, _, err := g.admin.SetEndpoint(ctx, registry.Endpoint{Name: "wms", URL: in.url}, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := g.admin.Subscribe(ctx, definition("added", in.url)); err != nil {
		t.Fatal(err)
	}
	g.accept(names("A", 5)...)
	for _, name := range []string{"filed", "added", "moved"} {
		in.wantOnce(t, name, names("A", 5))
	}
	g.drained()

	g.stop()
	guarded := func(parts ...string) {
		cfg := parse(t, g.dir, parts...)
		cfg.Egress.Allow = nil
		g.runWith(cfg)
	}
	guarded(file...)
	g.accept(names("B", 20)...)
	in.wantOnce(t, "filed", names("B", 20))
	const why = "not sent: 127.0.0.1 is a loopback address (RFC 1122) that egress.allow does not name"
	for _, name := range []string{"added", "moved"} {
		waitFor(t, name+" is found misconfigured, and its events wait", func() bool {
			s, err := g.admin.Subscriber(ctx, name)
			return err == nil && s.Breaker != nil && s.Breaker.State == deliver.BreakerMisconfigured && s.Breaker.LastError == why &&
				s.Backlog.Pending+s.Backlog.Retry == 20 && s.Backlog.DeadLetters == 0
		})
		for range 3 {
			if _, err := g.admin.Probe(ctx, name); err != nil {
				t.Error(err)
			}
		}
		if got := len(in.of(name)); got != 5 {
			t.Errorf("%s got %d events", name, got-5)
		}
	}

	// What says so itself is refused at once, wherever it is said.
	host := strings.TrimPrefix(in.url, "http://")
	_, port, _ := net.SplitHostPort(host)
	refused := func(what string, err error, errs ...string) {
		t.Helper()
		p, _ := errors.AsType[*admin.Problem](err)
		if p == nil || p.Status != http.StatusUnprocessableEntity || p.Code != "forbidden-address" || !strings.Contains(p.Detail, "egress.allow") {
			t.Errorf("%s: %v", what, err)
			return
		}
		if d := cmp.Diff(errs, p.Errors); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
	}
	for url, said := range map[string]string{
		in.url:                              "127.0.0.1 is a loopback address (RFC 1122) that egress.allow does not name",
		"http://localhost:" + port:          "localhost leads to 127.0.0.1, a loopback address (RFC 1122) that egress.allow does not name",
		"http://0x7f000001:" + port:         "0x7f000001 is a number and no host name; write it as 127.0.0.1 if that is meant",
		"http://[::ffff:7f00:1]:" + port:    "::ffff:127.0.0.1 leads to 127.0.0.1, a loopback address (RFC 1122) that egress.allow does not name",
		"http://169.254.169.254":            "169.254.169.254 is a link-local address (RFC 3927), which is always refused",
		"http://x:hunter2@10.0.0.1:" + port: "10.0.0.1 is a private address (RFC 1918) that egress.allow does not name",
	} {
		_, err := g.admin.Subscribe(ctx, definition("new", url))
		refused(url, err, "subscribers.new.deliver.webhook.url: "+said)
	}
	for key, to := range map[string]registry.Deliver{
		"eventGrid.endpoint":          {EventGrid: &eventgrid.Config{Endpoint: "https://127.0.0.1:1/", Auth: credentials.AzureAuth{Key: "k"}}},
		"eventGridNamespace.endpoint": {EventGridNamespace: &eventgrid.NamespaceConfig{Endpoint: "https://127.0.0.1:1/", Topic: "t", Auth: credentials.AzureAuth{Key: "k"}}},
		"serviceBus.namespace":        {ServiceBus: &servicebus.Config{Namespace: "127.0.0.1:1", Queue: "q", Auth: credentials.AzureAuth{Default: true}}},
		"serviceBus.auth.connectionString": {ServiceBus: &servicebus.Config{
			Queue: "q", Auth: credentials.AzureAuth{ConnectionString: "Endpoint=sb://127.0.0.1:1/;SharedAccessKeyName=n;SharedAccessKey=k"},
		}},
	} {
		_, err := g.admin.Subscribe(ctx, registry.Definition{Name: "new", Subjects: []string{"events.>"}, Deliver: to})
		refused(key, err, "subscribers.new.deliver."+key+": 127.0.0.1 is a loopback address (RFC 1122) that egress.allow does not name")
	}
	s, tag, err := g.admin.Read(ctx, "added")
	if err != nil {
		t.Fatal(err)
	}
	s.Definition.Deliver.Webhook.URL = "http://10.0.0.1/"
	_, _, err = g.admin.Replace(ctx, s.Definition, tag)
	refused("update", err, "subscribers.added.deliver.webhook.url: 10.0.0.1 is a private address (RFC 1918) that egress.allow does not name")
	_, _, err = g.admin.SetEndpoint(ctx, registry.Endpoint{Name: "new", URL: "http://192.168.0.1/"}, "")
	refused("endpoint", err, "endpoints.new.url: 192.168.0.1 is a private address (RFC 1918) that egress.allow does not name")
	filed, err := g.admin.Subscriber(ctx, "filed")
	if err != nil {
		t.Fatal(err)
	}
	moved, err := g.admin.Subscriber(ctx, "moved")
	if err != nil {
		t.Fatal(err)
	}
	// What gridfan's own file says may be repeated; the rest of a file that is sent
	// is not its word.
	declared := &admin.Declared{Subscribers: []registry.Definition{filed.Definition, moved.Definition}}
	if _, err := g.admin.Apply(ctx, admin.ApplyRequest{Declared: declared}); err != nil {
		t.Errorf("a file that says the same: %v", err)
	}
	more := &admin.Declared{
		Subscribers: append(slices.Clone(declared.Subscribers), definition("new", in.url)),
		Endpoints:   []registry.Endpoint{{Name: "wms", URL: in.url}},
	}
	for _, dry := range []bool{true, false} {
		_, err := g.admin.Apply(ctx, admin.ApplyRequest{Declared: more, DryRun: dry})
		refused("a file that is sent", err,
			"endpoints.wms.url: 127.0.0.1 is a loopback address (RFC 1122) that egress.allow does not name",
			"subscribers.new.deliver.webhook.url: 127.0.0.1 is a loopback address (RFC 1122) that egress.allow does not name")
	}
	g.accept("C")
	in.wantOnce(t, "filed", []string{"C"})

	// The operator says it in the file, or allows it.
	g.stop()
	guarded(append(slices.Clone(file), subscriber("added", in.url+"/added", ""))...)
	in.wantOnce(t, "added", append(names("B", 20), "C"))
	if got := len(in.of("moved")); got != 5 {
		t.Errorf("moved got %d events", got-5)
	}
	g.restart(file...)
	in.wantOnce(t, "moved", append(names("B", 20), "C"))
	g.drained()
	for _, name := range []string{"filed", "added", "moved"} {
		if s, err := g.admin.Subscriber(ctx, name); err != nil || s.Backlog.DeadLetters != 0 {
			t.Errorf("%s: %d dead letters, %v", name, s.Backlog.DeadLetters, err)
		}
	}
}
