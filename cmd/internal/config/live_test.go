package config_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/subscribers/registry"
)

const declaring = `
sources: { s: { kind: eventgrid, limits: { rate: %s }, push: { auth: none } } }
subscribers: { one: { subjects: events.>, deliver: { webhook: { url: "https://example.com/${file:%s}" } } } }
`

// TestLive follows a file, and what it refers to, through changes and mistakes.
func TestLive(t *testing.T) {
	dir := t.TempDir()
	file, referred := filepath.Join(dir, "gridfan.yaml"), filepath.Join(dir, "path")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(referred, "first")
	write(file, fmt.Sprintf(declaring, "5/s", referred))
	r, err := registry.Open(t.Context(), brokertest.New(t), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	load := func() (*config.Config, error) { return config.Load(file) }
	c, err := load()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Sync(t.Context(), c.Endpoints, c.Subscribers); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var reports []string
	var taken []config.Sources
	var refuse error
	take := func(_ context.Context, s config.Sources) error {
		mu.Lock()
		defer mu.Unlock()
		if refuse == nil {
			taken = append(taken, s)
		}
		return refuse
	}
	live := config.NewLive(config.Following{
		File: file, Load: load, Started: c, Sections: c.Sections(), Take: take, Registry: r, Declares: true, Log: slog.New(slog.DiscardHandler),
		Report: func(what, _ string, _ map[string]any) {
			mu.Lock()
			defer mu.Unlock()
			reports = append(reports, what)
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	signals, ended := make(chan os.Signal), make(chan struct{})
	go func() { defer close(ended); live.Run(ctx, signals) }()
	defer func() { cancel(); <-ended }()
	postedTo := func(want string) {
		t.Helper()
		await(t, "events are posted to "+want, func() bool {
			e, err := r.Get(t.Context(), "one")
			return err == nil && e.Definition.Deliver.Webhook.URL == "https://example.com/"+want
		})
	}

	write(referred, "second")
	postedTo("second")
	write(file, fmt.Sprintf(declaring, "6/s", referred))
	limited := func(want ...float64) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			var got []float64
			for _, s := range taken {
				got = append(got, s.Pushed[0].Limits.Rate)
			}
			return slices.Equal(got, want)
		}
	}
	await(t, "the sources are taken over", limited(6))
	write(file, fmt.Sprintf(declaring, "6/s", referred)+"listen: { public: { addr: \":9090\" } }\n")
	await(t, "a section needs a restart", func() bool { return slices.Equal(live.State().NeedsRestart, []string{"listen"}) })
	// When they cannot be taken over, nothing of the file is.
	mu.Lock()
	refuse = errors.New("no room")
	mu.Unlock()
	write(file, strings.Replace(fmt.Sprintf(declaring, "7/s", referred), "events.>", "events.fno.>", 1))
	await(t, "that is noticed", func() bool {
		return slices.Equal(live.State().Problems, []string{file + ":1:1: sources: no room"})
	})
	if e, err := r.Get(t.Context(), "one"); err != nil || !slices.Equal(e.Definition.Subjects, []string{"events.>"}) {
		t.Errorf("%v, %v", e.Definition.Subjects, err)
	}
	if res, err := live.Reload(t.Context(), true); err != nil || len(res.Changes) != 2 || res.Changes[0].Kind != "source" || res.Changes[0].Keys[0] != (registry.Difference{Key: "limits.rate", From: "6/s", To: "7/s"}) {
		t.Errorf("a dry run: %+v, %v", res, err)
	}
	mu.Lock()
	refuse = nil
	mu.Unlock()
	write(file, "sources: {}\n")
	await(t, "a mistake is noticed", func() bool {
		p := live.State().Problems
		return len(p) == 1 && strings.HasPrefix(p[0], file+":1:1: sources: want at least one")
	})
	postedTo("second") // as before
	if _, err := live.Reload(t.Context(), true); err == nil {
		t.Error("a dry run of a file with mistakes")
	}

	// At a signal at once, although nothing is to be seen from outside.
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	write(referred, "third")
	write(file, fmt.Sprintf(declaring, "5/s", referred))
	if err := os.Chtimes(file, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	signals <- syscall.SIGHUP
	postedTo("third")
	await(t, "the sources are taken over", limited(6, 5))
	await(t, "all is well", func() bool {
		s := live.State()
		return len(s.Problems) == 0 && len(s.NeedsRestart) == 0
	})
	mu.Lock()
	defer mu.Unlock()
	if n := len(slices.DeleteFunc(slices.Clone(reports), func(s string) bool { return s != "config.rejected" })); n != 2 {
		t.Errorf("reports %v", reports)
	}
}

func TestLiveWithoutFile(t *testing.T) {
	r, err := registry.Open(t.Context(), brokertest.New(t), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	live := config.NewLive(config.Following{Started: &config.Config{}, Registry: r, Declares: true})
	live.Run(t.Context(), nil)
	if _, err := live.Reload(t.Context(), false); !errors.Is(err, config.ErrNoFile) {
		t.Errorf("got %v", err)
	}
}

// What differs between sources is told by key, secrets are compared and not shown, and
// what only another secret has changed is a change.
func TestSourceChanges(t *testing.T) {
	read := func(sources string) config.Sources {
		t.Helper()
		c, err := config.Parse("gridfan.yaml", []byte("sources:\n"+sources), config.Lookup{Env: func(name string) (string, bool) { return "canary-" + name + "-0123456789", true }})
		if err != nil {
			t.Fatal(err)
		}
		return c.From()
	}
	const before = `
  shop: { kind: cloudevents, push: { auth: { anyOf: [ { key: "${env:A}" } ] } } }
  crm:
    kind: dataverse
    poll: { odata: { url: "https://x.example", table: account, auth: { apiKey: { header: X-Key, value: "${env:A}" } } } }
  gone: { kind: eventgrid, push: { auth: none } }
  bus: { kind: fno, receive: { serviceBus: { namespace: contoso.servicebus.windows.net, queue: q, auth: { managedIdentity: {} } } } }
  same: { kind: fno, rationale: x, push: { auth: none } }
`
	const after = `
  shop: { kind: cloudevents, limits: { rate: 5/s }, push: { auth: { anyOf: [ { key: "${env:B}" } ] } } }
  crm:
    kind: dataverse
    pattern: hybrid
    push: { auth: none }
    poll:
      - odata: { url: "https://x.example", table: contact }
      - odata: { url: "https://x.example", table: account, auth: { apiKey: { header: X-Key, value: "${env:A}" } } }
  new: { kind: eventgrid, push: { auth: none } }
  bus: { kind: fno, receive: { serviceBus: { namespace: contoso.servicebus.windows.net, queue: other, auth: { managedIdentity: {} } } } }
  same: { kind: fno, rationale: x, push: { auth: none } }
`
	a, b := read(before), read(after)
	var got []string
	for _, c := range a.Changes(b) {
		got = append(got, c.What+" "+c.Kind+" "+c.Name)
		for _, d := range c.Keys {
			got = append(got, fmt.Sprintf("  %s: %q to %q", d.Key, d.From, d.To))
		}
	}
	want := []string{
		"changed source bus", `  receive: "as it was" to "changed"`,
		"changed source crm", `  complete: "" to "added"`, `  limits.body: "" to "4194304"`, `  limits.concurrency: "" to "256"`,
		`  pattern: "poll" to "hybrid"`, `  poll contact: "" to "added"`, `  push: "" to "added"`,
		"removed source gone",
		"added source new",
		"changed source shop", `  limits.rate: "" to "5/s"`, `  push: "as it was" to "changed"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if c := a.Changes(read(before)); len(c) > 0 {
		t.Errorf("the same: %+v", c)
	}
	rotated := strings.Replace(before, `value: "${env:A}"`, `value: "${env:B}"`, 1)
	if c := a.Changes(read(rotated)); len(c) != 1 || c[0].Name != "crm" || a.Polled[0].Version() == read(rotated).Polled[0].Version() {
		t.Errorf("another secret: %+v", c)
	}
	if slices.Compare(a.Names(), []string{"bus", "crm", "gone", "same", "shop"}) != 0 || slices.Compare(a.NotPushed(), []string{"bus", "crm"}) != 0 {
		t.Errorf("got %v, %v", a.Names(), a.NotPushed())
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// TestSections wants a digest to change with its section and no other, and to tell
// nothing of secrets.
func TestSections(t *testing.T) {
	sections := func(text string) map[string]string {
		t.Helper()
		c, err := config.Parse("f", []byte(text), config.Lookup{})
		if err != nil {
			t.Fatal(err)
		}
		return c.Sections()
	}
	const base = "sources: { s: { kind: eventgrid, push: { auth: { anyOf: [ { key: 0123456789abcdef } ] } } } }\n"
	for _, tt := range []struct {
		text string
		want []string
	}{
		{base, nil},
		{strings.Replace(base, "0123456789abcdef", "fedcba9876543210", 1), nil},
		{strings.Replace(base, "kind: eventgrid", "kind: eventgrid, limits: { rate: 5/s }", 1), []string{"sources"}},
		{base + "listen: { public: { addr: ':9000' } }\n", []string{"listen"}},
		{base + "broker: { embedded: { listen: none } }\n", []string{"broker"}},
		{base + "broker: { url: 'nats://a:4222' }\n", []string{"broker"}},
		{base + "storage: { maxBytes: 1GiB }\n", []string{"storage"}},
		{base + "storage: { replay: 1h, dedup: { horizon: 2h } }\n", []string{"storage"}},
		{base + "endpoints: { wms: { url: 'https://h/' } }\n", nil},
	} {
		if got := config.Differing(sections(base), sections(tt.text)); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.text, got, tt.want)
		}
	}
}
