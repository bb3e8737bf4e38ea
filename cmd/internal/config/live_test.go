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
	live := config.NewLive(config.Following{
		File: file, Load: load, Started: c, Sections: c.Sections(), Registry: r, Declares: true, Log: slog.New(slog.DiscardHandler),
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
	await(t, "a section needs a restart", func() bool { return slices.Equal(live.State().NeedsRestart, []string{"sources"}) })
	write(file, "sources: {}\n")
	await(t, "a mistake is noticed", func() bool { return len(live.State().Problems) == 1 })
	if p := live.State().Problems[0]; !strings.HasPrefix(p, file+":1:1: sources: ") {
		t.Errorf("got %s", p)
	}
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
	await(t, "all is well", func() bool {
		s := live.State()
		return len(s.Problems) == 0 && len(s.NeedsRestart) == 0
	})
	mu.Lock()
	defer mu.Unlock()
	if n := len(slices.DeleteFunc(slices.Clone(reports), func(s string) bool { return s != "config.rejected" })); n != 1 {
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
