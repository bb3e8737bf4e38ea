package dev

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/cmd/internal/samples"
	"github.com/gridfan/gridfan/schemas/businessevent"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// TestSubject compares what is shown of an event with what the ingress makes
// of it.
func TestSubject(t *testing.T) {
	kinds := map[string]string{"prod": event.KindFnO, "files": event.KindEventGrid}
	check := func(name, kind string, results []event.Result) {
		t.Helper()
		for _, r := range results {
			if r.Fault != nil {
				t.Errorf("%s: %v", name, r.Fault)
			}
			if r.Event == nil {
				continue
			}
			source := sourceOf[kind]
			want := event.Subject(kind, source, r.Scope, r.Name)
			r.Event.Set(event.ExtSource, source)
			if got := subject(r.Event, kinds); got != want {
				t.Errorf("%s: got %s, want %s", name, got, want)
			}
		}
	}
	for _, s := range samples.All() {
		header, body := s.Request(time.Now())
		switch s.Kind {
		case event.KindFnO:
			check(s.Name, s.Kind, businessevent.Parse("prod", header, body))
		case event.KindEventGrid:
			check(s.Name, s.Kind, eventgrid.Parse("files", header, body))
		}
	}
	check("no topic", event.KindEventGrid, eventgrid.Parse("files", nil, []byte(`{"id":"1","eventType":"a.b","subject":"s"}`)))
	check("odd names", event.KindEventGrid, eventgrid.Parse("files", nil, []byte(`{"id":"1","eventType":"a b.*","topic":"/x/Y.z/"}`)))
}

func TestSamplesOfTheDemo(t *testing.T) {
	for _, name := range firstRound {
		if _, ok := samples.Find(name); !ok {
			t.Errorf("no sample %q", name)
		}
	}
	for _, name := range events() {
		if s, _ := samples.Find(name); s.Control {
			t.Errorf("%s is no event", name)
		}
	}
}

func TestInWords(t *testing.T) {
	tests := []struct{ answer, want string }{
		{`{"received":1,"published":1}`, "published 1"},
		{`{"received":3,"published":1,"duplicate":1,"quarantined":1}`, "published 1, duplicate 1, quarantined 1"},
		{`{"received":1,"control":1}`, "control 1"},
		{`{"validationResponse":"512d38b6"}`, "handshake answered"},
		{`{"detail":"the storage is full","status":503}`, "the storage is full"},
		{`<html>`, "answer not understood"},
	}
	for _, tt := range tests {
		if got := inWords([]byte(tt.answer)); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.answer, got, tt.want)
		}
	}
}

// TestConfigOfOddFolders: a temporary folder's name is its user's business.
func TestConfigOfOddFolders(t *testing.T) {
	for _, dir := range []string{`/tmp/a b`, `/tmp/"q" # x`, `C:\Temp\new`, `/tmp/${env:HOME}`, "/tmp/\u00fc\t"} {
		text, err := settings{
			Public: "127.0.0.1:1", Admin: "127.0.0.1:2", NATS: "none", Data: dir,
			Healthy: "http://127.0.0.1:3/", Slow: "http://127.0.0.1:4/", Failing: "http://127.0.0.1:5/",
		}.yaml()
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Parse("gridfan.yaml", text, config.Lookup{Env: func(string) (string, bool) { return "0123456789abcdef", true }})
		if err != nil {
			t.Errorf("%s: %v", dir, err)
			continue
		}
		if cfg.Broker.Dir != dir {
			t.Errorf("got %q, want %q", cfg.Broker.Dir, dir)
		}
	}
}

func TestQuoteShell(t *testing.T) {
	for in, want := range map[string]string{
		"@/tmp/gridfan-dev-1/x.json": "@/tmp/gridfan-dev-1/x.json",
		"/tmp/a b":                   "'/tmp/a b'",
		"/tmp/it's":                  `'/tmp/it'\''s'`,
	} {
		if got := quoteShell(in); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestBaseURL(t *testing.T) {
	for in, want := range map[string]string{
		"127.0.0.1:8080": "http://127.0.0.1:8080",
		"[::]:8080":      "http://127.0.0.1:8080",
		"[::1]:8080":     "http://[::1]:8080",
	} {
		if got := baseURL(in); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestDurations(t *testing.T) {
	for _, tt := range []struct {
		d              time.Duration
		latency, waits string
	}{
		{-time.Second, "0s", "1s"},
		{1600 * time.Microsecond, "2ms", "1s"},
		{1640 * time.Millisecond, "1.6s", "2s"},
		{5 * time.Second, "5.0s", "5s"},
		{61100 * time.Millisecond, "1m1s", "62s"},
	} {
		if latency, waits := roughly(tt.d), seconds(tt.d); latency != tt.latency || waits != tt.waits {
			t.Errorf("%s: got %s and %s, want %s and %s", tt.d, latency, waits, tt.latency, tt.waits)
		}
	}
}

func TestScreenHold(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out}
	release := s.hold()
	s.text("effect")
	if out.Len() > 0 {
		t.Errorf("got %q during a hold", out.String())
	}
	release(plain, "cause")
	release(plain, "")
	s.text("later")
	var got []string
	for line := range strings.Lines(out.String()) {
		got = append(got, line[strings.LastIndexByte(line, ' ')+1:])
	}
	if d := cmp.Diff([]string{"cause\n", "effect\n", "later\n"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestWatcher(t *testing.T) {
	now := time.Now()
	in := func(d time.Duration) *time.Time { at := now.Add(d); return &at }
	sub := func(state string, b *deliver.BreakerStatus) []admin.Subscriber {
		return []admin.Subscriber{{
			Definition: registry.Definition{Name: "a", Subjects: []string{"events.x.>", "events.y.>"}},
			State:      state, Breaker: b, Backlog: registry.Backlog{Pending: 2, Retry: 1},
		}}
	}
	closed := &deliver.BreakerStatus{State: "closed"}
	tests := []struct {
		list []admin.Subscriber
		want string // after the time
	}{
		{sub(admin.Active, nil), "a: subscribed to events.x.> events.y.>"},
		{sub(admin.Active, closed), ""},
		{sub(admin.Active, &deliver.BreakerStatus{State: "open", Failures: 3, LastError: "HTTP 503", NextProbe: in(4100 * time.Millisecond)}),
			"a: breaker open after 3 failures (HTTP 503), next probe in 5s; others are not affected"},
		{sub(admin.Active, &deliver.BreakerStatus{State: "open", Failures: 3, LastError: "HTTP 503", NextProbe: in(4100 * time.Millisecond)}), ""},
		{sub(admin.Active, &deliver.BreakerStatus{State: "half-open", Failures: 3}), ""},
		{sub(admin.Active, &deliver.BreakerStatus{State: "open", Failures: 4, LastError: "HTTP 500", NextProbe: in(10 * time.Second)}),
			"a: probe failed (HTTP 500), next in 10s; 3 events parked"},
		{sub(admin.Active, &deliver.BreakerStatus{State: "half-open", Failures: 4}), ""},
		{sub(admin.Active, closed), "a: breaker closed, a probe got through; 3 events still to go"},
		{sub(admin.Paused, closed), "a: paused; its events wait"},
		{sub(admin.Active, closed), "a: resumed; its events go on"},
		{nil, "a: deleted"},
	}
	var out bytes.Buffer
	w := newWatcher(nil, &screen{out: &out})
	for i, tt := range tests {
		out.Reset()
		w.look(tt.list, now)
		got := strings.TrimSuffix(out.String(), "\n")
		if got != "" {
			got = got[len("12:00:00  "):]
		}
		if got != tt.want {
			t.Errorf("step %d: got %q, want %q", i, got, tt.want)
		}
	}
	select {
	case <-w.opened:
	default:
		t.Error("the open breaker is not reported")
	}
}
