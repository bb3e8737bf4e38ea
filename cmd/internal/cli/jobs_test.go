package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/subscribers/deadletters"
)

func TestFollowJob(t *testing.T) {
	for _, tt := range []struct {
		name     string
		end      deadletters.State // empty: it never ends
		terminal bool
		want     []string
		wantErr  string
	}{
		{"screen", deadletters.Done, true, []string{"\r", "job 3, redrive", "%", "60 dead letters sent out anew", "2 skipped: is gone", "gridfan subscribers show shop"}, ""},
		{"pipe", deadletters.Done, false, []string{"60 dead letters sent out anew"}, ""},
		{"stopped", deadletters.Stopped, false, []string{"60 dead letters"}, "go on with it: gridfan jobs resume 3"},
		{"failed", deadletters.Failed, false, nil, "job 3 failed: the subscriber was deleted"},
		{"interrupted", "", true, []string{"waits: its breaker is open"}, "stop it: gridfan jobs stop 3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var asked atomic.Int64
			job := func() deadletters.Job {
				n := int(min(3, asked.Add(1)))
				j := deadletters.Job{
					ID: "3", Kind: deadletters.Redrive, Subscriber: "shop", State: deadletters.Running, Waiting: "its breaker is open",
					Counts: deadletters.Counts{Total: 62, Looked: 20 * n, Done: 20 * n},
				}
				if n == 3 && tt.end != "" {
					j.State, j.Looked, j.Skipped = tt.end, 62, map[string]int{"is gone": 2}
				}
				if tt.end == deadletters.Failed {
					j.Error = "the subscriber was deleted"
				}
				return j
			}
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				j := job()
				if tt.end == "" && asked.Load() > 3 {
					interrupt()
				}
				_ = json.NewEncoder(w).Encode(j) // the client sees what is missing
			}))
			defer s.Close()
			var out bytes.Buffer
			first := job()
			err := followJob(ctx, Env{Out: &out, OutIsTerminal: tt.terminal}, &admin.Client{URL: s.URL}, &first, false)
			if (err == nil) != (tt.wantErr == "") || err != nil && !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("error %v, want %q", err, tt.wantErr)
			}
			for _, want := range tt.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in:\n%s", want, out.String())
				}
			}
			if !tt.terminal && strings.Contains(out.String(), "\r") {
				t.Errorf("a progress bar in a pipe:\n%q", out.String())
			}
		})
	}
}

func TestWhen(t *testing.T) {
	near := func(got, want time.Time) bool { return got.Sub(want).Abs() < time.Minute }
	for _, tt := range []struct {
		in   string
		want time.Time
	}{
		{"2h", time.Now().Add(-2 * time.Hour)},
		{"7d", time.Now().Add(-7 * 24 * time.Hour)},
		{"2026-11-01T10:00:00Z", time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)},
		{"2026-11-01 10:00", time.Date(2026, 11, 1, 10, 0, 0, 0, time.Local)},
		{"2026-11-01", time.Date(2026, 11, 1, 0, 0, 0, 0, time.Local)},
	} {
		if got, err := when("--since", tt.in); err != nil || !near(got, tt.want) {
			t.Errorf("%q: got %v, %v", tt.in, got, err)
		}
	}
	for _, in := range []string{"yesterday", "-2h", "2026-13-01", "10:00"} {
		if got, err := when("--since", in); err == nil || !strings.Contains(err.Error(), "--since") {
			t.Errorf("%q: got %v, %v", in, got, err)
		}
	}
	if p, err := point("--from", "17"); err != nil || p.Sequence != 17 {
		t.Errorf("%v, %v", p, err)
	}
	if _, err := point("--from", "0"); err == nil {
		t.Error("0 is a place")
	}
}
