package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

func TestWhoHolds(t *testing.T) {
	now := time.Now()
	status := func(bytes uint64, subscribers ...admin.Subscriber) *admin.Status {
		return &admin.Status{
			Broker:      admin.BrokerStatus{Streams: []broker.StreamUse{{Stream: broker.StreamEvents, Bytes: bytes, MaxBytes: 100 << 20}}},
			Subscribers: subscribers,
		}
	}
	subscriber := func(name, state string, bytes int64) admin.Subscriber {
		s := admin.Subscriber{Definition: registry.Definition{Name: name}, State: state}
		if bytes > 0 {
			s.Held = &registry.Held{Sequence: 1, Since: now.Add(-3 * time.Hour), Bytes: bytes}
		}
		return s
	}
	tests := []struct {
		name string
		s    *admin.Status
		want string
	}{
		{"room enough", status(69<<20, subscriber("a", admin.Paused, 60<<20)), ""},
		{"nobody", status(86<<20, subscriber("a", admin.Active, 0)), "EVENTS is 86 % full of what everybody has got; it is trimmed when room is short."},
		{
			"most first",
			status(70<<20, subscriber("a", admin.Active, 1<<20), subscriber("b", admin.Paused, 60<<20), subscriber("c", admin.Parked, 2<<20), subscriber("d", admin.Active, 0)),
			`EVENTS is 70 % full. It is held by:
  b  60.0 MiB, its oldest event 3 h old: gridfan subscribers resume b
  c  2.0 MiB, its oldest event 3 h old: declare it again, or gridfan subscribers delete c
  a  1.0 MiB, its oldest event 3 h old: see gridfan subscribers show a
Otherwise raise storage.maxBytes, lower their limits.backlog, or delete them.`,
		},
	}
	for _, tt := range tests {
		if d := cmp.Diff(tt.want, whoHolds(tt.s, now)); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
}

// TestReplicas tells who serves a subscriber, and what other replicas find.
func TestReplicas(t *testing.T) {
	now := time.Now()
	yes, no := true, false
	closed := &deliver.BreakerStatus{State: deliver.BreakerClosed, Since: now}
	down := &deliver.BreakerStatus{State: deliver.BreakerOpen, Since: now.Add(-time.Hour), NextProbe: &now, Failures: 5}
	others := []admin.Replica{
		{Instance: "beta", State: deliver.BreakerOpen, Since: now.Add(-4 * time.Minute)},
		{Instance: "gamma", State: deliver.BreakerHalfOpen, Since: now.Add(-3 * time.Hour)},
	}
	const found = "open 4 min on beta, half-open 3 h on gamma"
	tests := []struct {
		name       string
		s          admin.Subscriber
		ordering   deliver.Ordering
		rows       map[string]string // empty: there is none
		next, none string
	}{
		{"alone", admin.Subscriber{Breaker: closed, Serving: &yes}, deliver.Unordered, map[string]string{"doing": "closed", "served": "", "elsewhere": ""}, "", ""},
		{"down elsewhere", admin.Subscriber{Breaker: closed, Serving: &yes, Replicas: others}, deliver.Unordered,
			map[string]string{"doing": "closed", "served": "", "elsewhere": found}, "", ""},
		{"serves", admin.Subscriber{Breaker: closed, Serving: &yes}, deliver.Strict,
			map[string]string{"doing": "closed", "served": "by this replica; any other one stands by", "elsewhere": ""}, "", ""},
		// What this replica found when it served is over.
		{"stands by", admin.Subscriber{Breaker: down, Serving: &no}, deliver.ByKey,
			map[string]string{"doing": "stands by", "served": "by another replica; this one stands by", "elsewhere": ""}, "", "look at the endpoint"},
		{"stands by, down there", admin.Subscriber{Breaker: closed, Serving: &no, Replicas: others}, deliver.ByKey,
			map[string]string{"doing": "stands by; " + found, "elsewhere": ""}, "ask that one:  gridfan subscribers show a --admin URL", ""},
		{"stands by, draining", admin.Subscriber{State: admin.Draining, Breaker: closed, Serving: &no}, deliver.ByKey,
			map[string]string{"doing": "draining, stands by"}, "", ""},
		{"starting", admin.Subscriber{}, deliver.ByKey, map[string]string{"doing": "starting", "served": ""}, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.s.Definition = registry.Definition{Name: "a", Config: deliver.Config{Ordering: tt.ordering}}
			var out strings.Builder
			if err := writeSubscriber(&out, tt.s, now); err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for line := range strings.Lines(out.String()) {
				name, value, _ := strings.Cut(strings.TrimSpace(line), "  ")
				got[name] = strings.TrimSpace(value)
			}
			for name, want := range tt.rows {
				if got[name] != want {
					t.Errorf("%s: got %q, want %q", name, got[name], want)
				}
			}
			if !strings.Contains(out.String(), tt.next) || tt.none != "" && strings.Contains(out.String(), tt.none) {
				t.Errorf("want %q and not %q in:\n%s", tt.next, tt.none, out.String())
			}
		})
	}
}

func TestWriteShed(t *testing.T) {
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.Local)
	events := []admin.ShedEvent{{ID: "e-2", Subject: "events.a.b.c.d", Sequence: 17, Time: at}}
	tests := []struct {
		s    admin.Shed
		want string
	}{
		{admin.Shed{Since: at, Complete: true}, "No event of a was shed since 2026-11-01 12:00:00, where the records begin"},
		{admin.Shed{Since: at}, "no time to read older records"},
		{admin.Shed{Since: at, Complete: true, Events: events}, "2026-11-01 12:00:00  17        events.a.b.c.d  e-2\n"},
		{admin.Shed{Since: at, Events: events}, "--limit shows more"},
	}
	for _, tt := range tests {
		var out strings.Builder
		if err := writeShed(&out, "a", &tt.s, 1); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), tt.want) {
			t.Errorf("got %q, want %q in it", out.String(), tt.want)
		}
	}
}
