package dev

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// output is what Run printed so far.
type output struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// want waits for a line and gives its groups.
func (o *output) want(t *testing.T, pattern string) []string {
	t.Helper()
	const limit = 15 * time.Second // a probe can be 5 s away, and the machine slow
	re := regexp.MustCompile(`(?m)` + pattern)
	for deadline := time.Now().Add(limit); ; {
		text := o.String()
		if m := re.FindStringSubmatch(text); m != nil {
			return m
		}
		if time.Now().After(deadline) {
			t.Fatalf("no line matches %s after %s in:\n%s", pattern, limit, text)
		}
		time.Sleep(5 * time.Millisecond) // sleep: between looks, until a deadline
	}
}

// settled waits until no more goroutines run than before.
func settled(t *testing.T, before int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), stacks[:runtime.Stack(stacks, true)])
		}
		time.Sleep(5 * time.Millisecond) // sleep: between looks, until a deadline
	}
}

// options never use the default ports: somebody may run a gridfan here.
func options(o Options) Options {
	o.Public, o.Admin, o.NATS = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	o.Version = "test"
	return o
}

func TestRun(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	before := runtime.NumGoroutine()
	var out, logged output
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	started := time.Now()
	go func() {
		done <- Run(ctx, options(Options{
			Out: &out, Interval: 300 * time.Millisecond,
			Log: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
		}))
	}()

	// The first round.
	out.want(t, `^\d\d:\d\d:\d\d  → POST /ingress/prod   purchase-order-confirmed  200  published 1$`)
	out.want(t, `^\d\d:\d\d:\d\d  healthy  ← events\.fno\.prod\.usmf\.PurchaseOrderConfirmed +200 +\S+s  [0-9A-F]{8}$`)
	if took := time.Since(started); took > 10*time.Second {
		t.Errorf("the first delivery came after %s", took)
	}
	out.want(t, `→ POST /ingress/files  validation                200  handshake answered$`)
	out.want(t, `→ POST /ingress/files  batch-of-three            200  published 3$`)
	out.want(t, `  failing  ← events\.fno\.prod\.usmf\.PurchaseOrderConfirmed +503 `)
	out.want(t, `  failing: breaker open after 3 failures \(HTTP 503\), next probe in \d+s; others are not affected$`)
	out.want(t, `^Ctrl-C ends everything and removes `)

	// What it says to try.
	sub := out.want(t, `^  bin/gridfan subscribe audit --subject '(\S+)' --url (\S+) --admin (\S+)$`)
	client := &admin.Client{URL: sub[3]}
	d := registry.Definition{Name: "audit", Subjects: []string{sub[1]}}
	d.Deliver.Webhook = &webhook.Config{URL: sub[2]}
	if _, err := client.Subscribe(ctx, d); err != nil {
		t.Fatal(err)
	}
	out.want(t, `  audit: subscribed to events\.fno\.\*\.usmf\.>$`)
	curl := out.want(t, `^  curl -X POST (\S+/ingress/prod) -H 'X-Gridfan-Key: (\S+)' -H 'Content-Type: (\S+)' --data @(\S+)$`)
	body, err := os.ReadFile(curl[4])
	if err != nil {
		t.Fatal(err)
	}
	key := curl[2]
	for _, want := range []string{`"published":1`, `"duplicate":1`} {
		if got := post(t, curl[1], key, curl[3], body); !strings.Contains(got, want) {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	out.want(t, `  audit    ← events\.fno\.prod\.usmf\.PurchaseOrderConfirmed +200 `)
	trigger := out.want(t, `^  bin/gridfan trigger free-text-invoice-posted --source prod --key (\S+) --ingress (\S+)$`)
	if trigger[1] != key || trigger[2]+"/ingress/prod" != curl[1] {
		t.Errorf("trigger and curl do not agree: %q, %q", trigger, curl)
	}
	out.want(t, `^  bin/gridfan status --admin `+regexp.QuoteMeta(sub[3])+`$`)
	metrics := out.want(t, `^  curl (\S+/metrics)$`)
	if got := get(t, metrics[1]); !strings.Contains(got, `gridfan_registry_pending_events{subscriber="failing"}`) {
		t.Error("no backlog of failing among the metrics")
	}
	watchNATS(t, out.want(t, `^  nats sub 'events\.>' -s (\S+)$`)[1])
	checkConfig(t, out.want(t, `^  cat (\S+)$`)[1], key)

	if _, err := client.SetPaused(ctx, "slow", true); err != nil {
		t.Fatal(err)
	}
	out.want(t, `  slow: paused; its events wait$`)
	if _, err := client.SetPaused(ctx, "slow", false); err != nil {
		t.Fatal(err)
	}
	out.want(t, `  slow: resumed; its events go on$`)

	// Healing drains the backlog.
	heal := out.want(t, `^  curl -X POST (\S+/heal)$`)
	if got := post(t, heal[1], "", "", nil); got != "failing answers 200 now\n" {
		t.Errorf("heal answers %q", got)
	}
	out.want(t, `  failing: answers 200 from now on; gridfan finds out with the next `)
	out.want(t, `  failing  ← events\.\S+ +200 `)
	out.want(t, `  failing: breaker closed, a probe got through; (it has all its events|\d+ events? still to go)$`)
	out.want(t, `  failing  ← events\.fno\.prod\.-\.BusinessEventsAlertEvent +200 `)

	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	out.want(t, `^stopped: \d+ events accepted; delivered: healthy \d+, slow \d+, failing \d+, audit \d+; still parked for failing: \d+$`)
	settled(t, before)
	checkGone(t, temp)
	checkText(t, out.String(), key)
	if strings.Contains(logged.String(), key) {
		t.Error("the key is in the log")
	}
}

func TestOnce(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	before := runtime.NumGoroutine()
	var out output
	if err := Run(t.Context(), options(Options{Out: &out, Once: true, Color: true, Program: "gridfan"})); err != nil {
		t.Fatal(err)
	}
	out.want(t, `^stopped: 9 events accepted; delivered: healthy 9, slow 5, failing 0; still parked for failing: 9$`)
	out.want(t, `^  gridfan status --admin `)
	for _, colored := range []string{"\x1b[32mhealthy  ", "\x1b[31mfailing  ", "\x1b[33mfailing: breaker open", "\x1b[34m→ POST"} {
		if !strings.Contains(out.String(), colored) {
			t.Errorf("no %q", colored)
		}
	}
	settled(t, before)
	checkGone(t, temp)
}

func TestInterruptedAtOnce(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, options(Options{Out: io.Discard})); err != nil {
		t.Errorf("got error %v", err)
	}
	settled(t, before)
	checkGone(t, temp)
}

func TestTakenPort(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := taken.Addr().String()

	for what, change := range map[string]func(*Options){
		"listen.public.addr":     func(o *Options) { o.Public = addr },
		"listen.admin.addr":      func(o *Options) { o.Admin = addr },
		"broker.embedded.listen": func(o *Options) { o.NATS = addr },
	} {
		o := options(Options{Out: io.Discard})
		change(&o)
		err := Run(t.Context(), o)
		if err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), addr) {
			t.Errorf("%s: got error %v, want one that names the address", what, err)
		}
	}
	checkGone(t, temp)

	a, err := choose(Options{Admin: "127.0.0.1:0", NATS: "none"}, addresses{public: addr, admin: addr, nats: addr})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{fmt.Sprintf("%s is taken, so the ingress is at %s", addr, a.public)}
	if len(a.notes) != 1 || a.notes[0] != want[0] {
		t.Errorf("got notes %q, want %q", a.notes, want)
	}
	if !a.chosen || a.public == addr || a.admin == addr || strings.HasSuffix(a.admin, ":0") || a.nats != "none" {
		t.Errorf("got %+v", a)
	}
}

func post(t *testing.T, url, key, contentType string, body []byte) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("X-Gridfan-Key", key)
	return answer(t, req)
}

func get(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	return answer(t, req)
}

func answer(t *testing.T, req *http.Request) string {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Errorf("%s answers %s: %s", req.URL.Path, resp.Status, b)
	}
	return string(b)
}

// watchNATS does what the nats command in the hints does.
func watchNATS(t *testing.T, url string) {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	s, err := nc.SubscribeSync("events.>")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.NextMsg(10 * time.Second); err != nil {
		t.Errorf("no event on NATS: %v", err)
	}
}

// checkConfig reads the shown configuration as somebody would who copied it.
func checkConfig(t *testing.T, name, key string) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(text, []byte(key)) {
		t.Error("the key is in the configuration")
	}
	cfg, err := config.Parse(name, text, config.Lookup{Env: func(string) (string, bool) { return "0123456789abcdef", true }})
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Sources) != 2 || len(cfg.Subscribers) != 3 || cfg.Warnings != nil {
		t.Errorf("got %d sources, %d subscribers, warnings %v", len(cfg.Sources), len(cfg.Subscribers), cfg.Warnings)
	}
}

func checkGone(t *testing.T, temp string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(temp, "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// checkText: the key only in commands, and no letters that a terminal may not
// have.
func checkText(t *testing.T, text, key string) {
	t.Helper()
	for line := range strings.Lines(text) {
		if strings.Contains(line, key) && !strings.HasPrefix(line, "  curl ") && !strings.HasPrefix(line, "  bin/gridfan ") {
			t.Errorf("the key is in the line %q", line)
		}
		for _, r := range line {
			if r > 0x7e && r != '→' && r != '←' || r < 0x20 && r != '\n' {
				t.Errorf("%q in the line %q", r, line)
			}
		}
	}
}
