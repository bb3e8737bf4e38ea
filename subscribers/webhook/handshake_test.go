package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// agreeing is an endpoint that agrees to deliveries, in either way.
func agreeing(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodOptions:
			w.Header().Set("WebHook-Allowed-Origin", r.Header.Get("WebHook-Request-Origin"))
			w.Header().Set("WebHook-Allowed-Rate", "*")
		case r.Header.Get("aeg-event-type") == "SubscriptionValidation":
			echo(w, r, http.StatusOK)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// echo answers a validation event as Azure's own receivers do.
func echo(w http.ResponseWriter, r *http.Request, status int) {
	body, _ := io.ReadAll(r.Body)
	results := eventgrid.Parse("", r.Header, body)
	if len(results) != 1 || results[0].Control == nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"validationResponse": results[0].Control.ValidationCode})
}

// The request that asks, and that those after it say whose they are.
func TestHandshakeRequest(t *testing.T) {
	var asked, sent captured
	var uri string
	s := sender(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodOptions {
			sent.serve(w, r)
			return
		}
		asked.serve(w, r)
		uri = r.RequestURI
		w.Header().Set("WebHook-Allowed-Origin", "EVENTS.example.com")
		w.Header().Set("WebHook-Allowed-Rate", "90")
		w.WriteHeader(http.StatusMethodNotAllowed) // the status means nothing
	}, Config{Handshake: Handshake{On: true, Origin: "events.example.com"}, Headers: map[string]string{"X-Key": "secret"}}, Options{Rate: 1.01, Keys: []Key{newerKey}})
	s.request.URL.RawQuery = "code=1"
	s.header.Set("Authorization", "Basic x")
	s.plain = newPlain(s.request, s.transport, 0) // it has copied them
	if a := s.Send(t.Context(), signedEvent("1")); a.Outcome != deliver.Delivered {
		t.Fatalf("%+v", a)
	}
	if d := cmp.Diff("Webhook-Request-Origin: events.example.com\nWebhook-Request-Rate: 61\n", asked.text()); d != "" || uri != "/?code=1" {
		t.Errorf("%s: -want +got\n%s", uri, d)
	}
	if o := sent.header.Get("WebHook-Request-Origin"); o != "events.example.com" {
		t.Errorf("a delivery from %q", o)
	}
	if s.Rate() != 1.5 {
		t.Errorf("%v attempts a second, want 1.5", s.Rate())
	}
	s.SendBatch(t.Context(), []*event.Event{signedEvent("1")})
	if o := sent.header.Get("WebHook-Request-Origin"); o != "events.example.com" {
		t.Errorf("a batch from %q", o)
	}
}

func TestGridHandshakeRequest(t *testing.T) {
	var asked captured
	s := sender(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("aeg-event-type") != "SubscriptionValidation" {
			return
		}
		asked.header = r.Header.Clone()
		echo(w, r, http.StatusOK)
	}, Config{Format: EventGrid, Handshake: Handshake{On: true}, Headers: map[string]string{"X-Key": "secret", "X-Type": "{{type}}"}}, Options{Subscriber: "wms", Keys: []Key{newerKey}})
	if a := s.Send(t.Context(), signedEvent("1")); a.Outcome != deliver.Delivered {
		t.Fatalf("%+v", a)
	}
	h := asked.header
	if h.Get("aeg-subscription-name") != "WMS" || h.Get("Content-Type") != eventgrid.MediaType || h.Get("X-Key") != "secret" || h.Get("Webhook-Signature") == "" {
		t.Errorf("%v", h)
	}
	if s.Rate() != 0 {
		t.Errorf("a rate of %v", s.Rate())
	}
}

// Until the endpoint agrees nothing is sent, and what is said tells whether it does
// not want to or cannot. As soon as it agrees, all goes on.
func TestHandshakeRefused(t *testing.T) {
	answer := func(status int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
		}
	}
	const no = "the answer to OPTIONS has no WebHook-Allowed-Origin, so deliveries are not wanted"
	refused := func(status int, why string) deliver.Attempt {
		return deliver.Attempt{Outcome: deliver.Rejected, Fault: deliver.FaultHandshake, Status: status, Reason: fmt.Sprintf("handshake refused, HTTP %d: %s", status, why)}
	}
	for _, tt := range []struct {
		name   string
		format Format
		answer http.HandlerFunc
		want   deliver.Attempt
	}{
		{"silent", Structured, answer(200), refused(200, no)},
		{"unknown", Binary, answer(405), refused(405, no)},
		{"not found", Original, answer(404), refused(404, no)},
		{"not let in", Structured, answer(401), refused(401, no)},
		{"moved", Structured, answer(307, "Location", "/elsewhere"), refused(307, no)},
		{"of somebody else", Structured, answer(200, "WebHook-Allowed-Origin", "eventgrid.azure.net"), refused(200, "WebHook-Allowed-Origin is not gridfan: eventgrid.azure.net")},
		{"no rate", Structured, answer(200, "WebHook-Allowed-Origin", "*", "WebHook-Allowed-Rate", "0"), refused(200, "WebHook-Allowed-Rate is neither * nor a number of requests per minute from 1")},
		{"no number", Structured, answer(200, "WebHook-Allowed-Origin", "*", "WebHook-Allowed-Rate", "1e3"), refused(200, "WebHook-Allowed-Rate is neither * nor a number of requests per minute from 1")},
		{"in trouble", Structured, answer(503, "Retry-After", "7"), deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultServer, Status: 503, Reason: "handshake, HTTP 503", RetryAfter: 7 * time.Second}},
		{"throttled", Structured, answer(429), deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultThrottled, Status: 429, Reason: "handshake, HTTP 429"}},
		{"cut off", Structured, func(w http.ResponseWriter, _ *http.Request) { c, _, _ := w.(http.Hijacker).Hijack(); c.Close() },
			deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultNetwork, Reason: "handshake: connection closed without an answer"}},

		{"grid: no code", EventGrid, answer(200), refused(200, "the answer to the validation event has not its code as validationResponse")},
		{"grid: another code", EventGrid, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"validationResponse":"x"}`) },
			refused(200, "the answer to the validation event has not its code as validationResponse")},
		{"grid: 202", EventGrid, func(w http.ResponseWriter, r *http.Request) { echo(w, r, http.StatusAccepted) },
			refused(202, "a validation event is answered 200 with its code as validationResponse, and with no other status")},
		{"grid: 400", EventGrid, answer(400), refused(400, "the validation event was not taken")},
		{"grid: 401", EventGrid, answer(401), refused(401, "the validation event was not taken")},
		{"grid: in trouble", EventGrid, answer(500), deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultServer, Status: 500, Reason: "handshake, HTTP 500"}},
		{"grid: endless", EventGrid, func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, strings.Repeat(" ", 1000)); err != nil {
					return
				}
			}
		}, refused(200, "the answer to the validation event has not its code as validationResponse")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var agrees atomic.Bool
			var events atomic.Int32
			taking := agreeing(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { events.Add(1) }))
			s := sender(t, func(w http.ResponseWriter, r *http.Request) {
				if !agrees.Load() {
					if r.Method == http.MethodPost && r.Header.Get("aeg-event-type") != "SubscriptionValidation" {
						t.Error("an event was sent without an agreement")
					}
					tt.answer(w, r)
					return
				}
				taking.ServeHTTP(w, r)
			}, Config{Format: tt.format, Handshake: Handshake{On: true}}, Options{})
			for range 2 {
				if d := cmp.Diff(tt.want, s.Send(t.Context(), signedEvent("1"))); d != "" {
					t.Errorf("-want +got:\n%s", d)
				}
			}
			agrees.Store(true)
			if a := s.Send(t.Context(), signedEvent("1")); a.Outcome != deliver.Delivered || events.Load() != 1 {
				t.Errorf("after it agreed: %+v, %d events", a, events.Load())
			}
		})
	}
}

// However many attempts begin at once, the endpoint is asked once, and they share
// what it says.
func TestHandshakeOnce(t *testing.T) {
	for _, agrees := range []bool{true, false} {
		var asked, events atomic.Int32
		hold := make(chan struct{})
		s := sender(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				events.Add(1)
				return
			}
			asked.Add(1)
			<-hold
			if agrees {
				w.Header().Set("WebHook-Allowed-Origin", "*")
			}
		}, Config{Handshake: Handshake{On: true}}, Options{})
		const n = 16
		var wg sync.WaitGroup
		var waiting atomic.Int32
		for range n {
			wg.Go(func() {
				waiting.Add(1)
				a := s.Send(t.Context(), signedEvent("1"))
				if want := map[bool]deliver.Outcome{true: deliver.Delivered, false: deliver.Rejected}[agrees]; a.Outcome != want {
					t.Errorf("%+v", a)
				}
			})
		}
		// One that waits gives up by itself.
		for asked.Load() == 0 || waiting.Load() < n {
			time.Sleep(time.Millisecond) // sleep: until all are there
		}
		short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		if a := s.Send(short, signedEvent("1")); a.Outcome != deliver.Failed || a.Fault != deliver.FaultTimeout {
			t.Errorf("%+v", a)
		}
		cancel()
		if a := s.Send(short, signedEvent("1")); a.Outcome == deliver.Delivered {
			t.Errorf("%+v", a)
		}
		close(hold)
		wg.Wait()
		if agrees && (asked.Load() != 1 || events.Load() != n) {
			t.Errorf("asked %d times for %d events", asked.Load(), events.Load())
		}
		if !agrees && events.Load() != 0 {
			t.Errorf("%d events without an agreement", events.Load())
		}
	}
}

func TestHandshakeDeadline(t *testing.T) {
	for _, format := range []Format{Structured, EventGrid} {
		s := sender(t, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}, Config{Format: format, Handshake: Handshake{On: true}}, Options{})
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if a := s.Send(ctx, signedEvent("1")); a.Outcome != deliver.Failed || a.Fault != deliver.FaultTimeout || !strings.HasPrefix(a.Reason, "handshake: timed out") {
			t.Errorf("%+v", a)
		}
		cancel()
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		if a := s.Send(ctx, signedEvent("1")); a.Outcome != deliver.Aborted {
			t.Errorf("%+v", a)
		}
	}
}

// What an endpoint says in its refusal shows nothing that is ours, and is printable.
func TestHandshakeReasons(t *testing.T) {
	s := sender(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WebHook-Allowed-Origin", r.URL.RawQuery+"\t\x7f"+strings.Repeat("é", 200))
	}, Config{Handshake: Handshake{On: true}}, Options{})
	u, _ := url.Parse("https://h/?code=canary")
	s.secrets = hide(u, nil, nil)
	s.request.URL.RawQuery = u.RawQuery
	if a := s.Send(t.Context(), signedEvent("1")); strings.Contains(a.Reason, "canary") || len(a.Reason) > 300 || strings.ContainsAny(a.Reason, "\t\x7f") {
		t.Errorf("%q", a.Reason)
	}
}

func TestHandshakeForms(t *testing.T) {
	for _, tt := range []struct{ in, out, problem string }{
		{in: `false`, out: `false`},
		{in: `true`, out: `true`},
		{in: `{}`, out: `true`},
		{in: `{"origin":"events.example.com"}`, out: `{"origin":"events.example.com"}`},
		{in: `"x"`, problem: "handshake: want true, or"},
		{in: `{"rate":1}`, problem: "handshake: want true, or"},
		{in: `{"origin":"a b"}`, problem: "x.handshake.origin: want a DNS name"},
		{in: `{"origin":"a..b"}`, problem: "x.handshake.origin: want a DNS name"},
		{in: `{"origin":"-a"}`, problem: "x.handshake.origin: want a DNS name"},
		{in: `{"origin":"*"}`, problem: "x.handshake.origin: want a DNS name"},
		{in: `{"origin":"` + strings.Repeat("a.", 127) + `a"}`, problem: "x.handshake.origin: want a DNS name"},
	} {
		c := Config{URL: "https://h/"}
		err := json.Unmarshal([]byte(tt.in), &c.Handshake)
		if err == nil {
			err = c.Validate("x")
		}
		if tt.problem != "" {
			if err == nil || !strings.Contains(err.Error(), tt.problem) {
				t.Errorf("%s: got %v", tt.in, err)
			}
			continue
		}
		got, _ := json.Marshal(c.Handshake)
		if err != nil || string(got) != tt.out {
			t.Errorf("%s: %s, %v", tt.in, got, err)
		}
	}
}
