package registry_test

import (
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// TestStrange: who says where a subscriber is decides whether its address is
// judged, whatever way the word takes, and a change of that reaches its sender.
func TestStrange(t *testing.T) {
	ctx := t.Context()
	b := brokertest.New(t)
	log := slog.New(slog.DiscardHandler)
	r, err := registry.Open(ctx, b, log)
	if err != nil {
		t.Fatal(err)
	}
	recorder, err := deliver.NewRecorder(ctx, b, log)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	last := map[string]string{} // what the last sender of each was made for
	fleet, err := registry.StartFleet(ctx, r, deliver.Parts{
		Broker: b, Recorder: recorder, Metrics: deliver.NewMetrics(prometheus.NewRegistry()), Log: log,
	}, func(d registry.Definition, strange bool) (deliver.Sender, error) {
		mu.Lock()
		defer mu.Unlock()
		last[d.Name] = fmt.Sprint(d.Deliver.Webhook.URL, " ", strange)
		return &sender{&rig{got: map[string][]string{}}, d.Name, ""}, nil
	}, log)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { fleet.Stop(time.Second); recorder.Close() }()
	want := func(step, name, want string) {
		t.Helper()
		waitFor(t, fmt.Sprintf("%s: %s is sent to %s", step, name, want), func() bool {
			mu.Lock()
			defer mu.Unlock()
			return last[name] == want
		})
	}
	at := func(name, url string) registry.Definition {
		d := definition(name, "events.>")
		d.Deliver.Webhook = &webhook.Config{URL: url}
		return valid(t, d)
	}
	const a, other = "https://a.example.com/", "https://b.example.com/"
	file := func(step string, sync func() error) {
		t.Helper()
		if err := sync(); err != nil {
			t.Fatalf("%s: %v", step, err)
		}
	}
	own := func(endpoints []registry.Endpoint, d ...registry.Definition) func() error {
		return func() error { return r.Sync(ctx, endpoints, d) }
	}
	sent := func(endpoints []registry.Endpoint, d ...registry.Definition) func() error {
		return func() error { return r.SyncSent(ctx, endpoints, d) }
	}

	if _, err := r.Add(ctx, at("one", a)); err != nil {
		t.Fatal(err)
	}
	want("by API", "one", a+" true")
	file("own", own(nil, at("one", a)))
	want("taken over by the file, all else the same", "one", a+" false")
	file("sent", sent(nil, at("one", a), at("two", a)))
	want("a file that is sent brings a new one", "two", a+" true")
	mu.Lock()
	if d := gocmp.Diff(a+" false", last["one"]); d != "" {
		t.Errorf("a file that is sent repeats what ours says: %s", d)
	}
	mu.Unlock()
	file("sent", sent(nil, at("one", other), at("two", a)))
	want("a file that is sent leads it elsewhere", "one", other+" true")
	file("sent", sent(nil, at("one", a), at("two", a)))
	want("and back: nobody knows that any more", "one", a+" true")
	file("own", own(nil, at("one", a), at("two", a)))
	want("our own file", "one", a+" false")
	want("our own file", "two", a+" false")

	// By endpoint: who named its URL counts, not who uses it.
	wms := registry.Endpoint{Name: "wms", URL: a}
	if _, err := r.SetEndpoint(ctx, wms, 0, false); err != nil {
		t.Fatal(err)
	}
	declared, added := valid(t, reached("declared", "wms", "")), valid(t, reached("added", "wms", "/x"))
	file("own", own(nil, declared))
	if _, err := r.Add(ctx, added); err != nil {
		t.Fatal(err)
	}
	want("an endpoint by API", "declared", a+" true")
	want("an endpoint by API", "added", a+"x true")
	file("own", own([]registry.Endpoint{wms}, declared))
	want("an endpoint of the file", "declared", a+" false")
	want("an endpoint of the file", "added", a+"x false")
	foreign, strangers, err := r.Strange(ctx, []registry.Endpoint{wms, {Name: "new", URL: a}}, []registry.Definition{declared, added, at("new", a)})
	if err != nil || len(foreign) != 1 || foreign[0].Name != "new" || len(strangers) != 2 {
		t.Errorf("strange are %v and %v, %v", foreign, strangers, err)
	}
	moved := registry.Endpoint{Name: "wms", URL: other}
	file("sent", sent([]registry.Endpoint{moved}, declared))
	want("an endpoint of a file that is sent", "declared", other+" true")
	want("an endpoint of a file that is sent", "added", other+"x true")
	file("own", own([]registry.Endpoint{moved}, declared))
	want("the endpoint of the file", "declared", other+" false")
	file("sent", sent([]registry.Endpoint{moved}, declared))
	file("own, without", own(nil, declared))
	if _, err := r.SetEndpoint(ctx, wms, 0, true); err != nil {
		t.Fatal(err)
	}
	want("one that the file no longer has is moved by API", "declared", a+" true")
}
