package app_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/eventgrid/azsystemevents"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// An endpoint that has not agreed is sent nothing and loses nothing: its events wait
// through a restart, none is a dead letter, and they come when it agrees, as they
// came in. This one reads them with Microsoft's own types.
func TestHandshake(t *testing.T) {
	var agrees atomic.Bool
	var mu sync.Mutex // guards got
	got := map[string]int{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var events []azsystemevents.EventGridEvent
		if err == nil {
			err = json.Unmarshal(body, &events)
		}
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if r.Header.Get("aeg-event-type") == "SubscriptionValidation" {
			var data azsystemevents.SubscriptionValidationEventData
			raw, _ := events[0].Data.([]byte)
			if err := json.Unmarshal(raw, &data); err != nil || !agrees.Load() {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			_ = json.NewEncoder(w).Encode(azsystemevents.SubscriptionValidationResponse{ValidationResponse: data.ValidationCode})
			return
		}
		if !agrees.Load() || r.Header.Get("X-From") != "/topics/shop" && r.URL.Path == "/one" {
			t.Errorf("%s: an event before the agreement, or without its header: %v", r.URL.Path, r.Header)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, e := range events {
			if *e.EventType != "Order.Placed" || *e.DataVersion != "1" || *e.Topic != "/topics/shop" {
				t.Errorf("%+v", e)
			}
			got[r.URL.Path+*e.ID]++
		}
	}))
	t.Cleanup(srv.Close)
	entry := func(name, own, more string) string {
		return fmt.Sprintf("  %s: { subjects: [ \"events.eventgrid.>\" ], deliver: { webhook: { url: \"%s/%s\", format: eventgrid, handshake: true, sign: ed25519, headers: { %s } } }, %s %s }\n",
			name, srv.URL, name, own, more, quickRetry)
	}
	config := "subscribers:\n" + entry("one", `X-From: "{{source}}"`, "") + entry("array", "X-Key: canary", "limits: { batch: { events: 10 } }, ")
	g := start(t, sources, config)
	const n = 40
	refused := func() {
		t.Helper()
		waitFor(t, "both are misconfigured", func() bool {
			for _, name := range []string{"one", "array"} {
				s, err := g.admin.Subscriber(t.Context(), name)
				if err != nil || s.Breaker == nil || s.Breaker.State != deliver.BreakerMisconfigured || s.Backlog.Pending+s.Backlog.Retry != n || s.Backlog.DeadLetters != 0 {
					return false
				}
			}
			return true
		})
	}
	mustPost(t, g.app.PublicAddr(), "eg", batch(n))
	refused()
	g.restart(sources, config)
	refused()

	agrees.Store(true)
	for _, name := range []string{"one", "array"} {
		s, err := g.admin.Probe(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Keys) != 1 || s.Keys[0].PublicKey == "" {
			t.Errorf("no public key: %+v", s.Keys)
		}
	}
	g.drained()
	mu.Lock()
	defer mu.Unlock()
	if len(got) != 2*n {
		t.Errorf("%d events came, want %d", len(got), 2*n)
	}
	if letters := g.stored(broker.StreamDeadLetters); len(letters) > 0 {
		t.Errorf("%d dead letters", len(letters))
	}
}
