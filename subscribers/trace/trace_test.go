package trace_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/trace"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

const record = "6F9619FF-8B86-D011-B42D-00C04FC964FF"

// rig is a fleet whose subscribers answer by their names.
type rig struct {
	t     *testing.T
	b     *broker.Broker
	r     *registry.Registry
	fleet *registry.Fleet
	stop  func() // ends the fleet, once

	mu    sync.Mutex // guards tries
	tries map[string]int
}

func newRig(t *testing.T) *rig {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	g := &rig{t: t, b: brokertest.New(t), tries: map[string]int{}}
	var err error
	if g.r, err = registry.Open(t.Context(), g.b, log); err != nil {
		t.Fatal(err)
	}
	recorder, err := deliver.NewRecorder(t.Context(), g.b, log)
	if err != nil {
		t.Fatal(err)
	}
	g.fleet, err = registry.StartFleet(t.Context(), g.r, deliver.Parts{
		Broker: g.b, Recorder: recorder, Metrics: deliver.NewMetrics(prometheus.NewRegistry()), Log: log,
	}, func(d registry.Definition, _ bool) (deliver.Sender, error) { return &sender{g, d.Name}, nil }, log)
	if err != nil {
		t.Fatal(err)
	}
	g.stop = sync.OnceFunc(func() { g.fleet.Stop(time.Second); recorder.Close() })
	t.Cleanup(g.stop)
	return g
}

type sender struct {
	g    *rig
	name string
}

func (s *sender) Send(_ context.Context, e *event.Event) deliver.Attempt {
	s.g.mu.Lock()
	s.g.tries[s.name+e.ID]++
	n := s.g.tries[s.name+e.ID]
	s.g.mu.Unlock()
	switch {
	case s.name == "picky":
		return deliver.Attempt{Outcome: deliver.Rejected, Status: 422, Fault: deliver.FaultRefused, Reason: "HTTP 422: no such order"}
	case s.name == "down", s.name == "flaky" && n <= 2:
		return deliver.Attempt{Outcome: deliver.Failed, Status: 503, Fault: deliver.FaultServer, Reason: "HTTP 503", RetryAfter: map[bool]time.Duration{true: time.Minute}[s.name == "down"]}
	}
	return deliver.Attempt{Outcome: deliver.Delivered, Status: 200}
}

func (s *sender) Close() {}

func (g *rig) add(name, subject string) {
	g.t.Helper()
	d := registry.Definition{Name: name, Subjects: []string{subject}, Deliver: registry.Deliver{Webhook: &webhook.Config{URL: "https://example.com/"}}}
	d.Retry.Schedule = []deliver.Duration{deliver.Duration(20 * time.Millisecond), deliver.Duration(time.Minute)}
	d.Breaker.Failures = 1000
	if _, err := g.r.Add(g.t.Context(), d); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) publish(subject string, e event.Event) {
	g.t.Helper()
	e.Source, e.Type = "/s", "t"
	h, body := e.Encode()
	if _, err := g.b.JetStream().PublishMsg(g.t.Context(), &nats.Msg{Subject: subject, Header: h, Data: body}); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) find(what string, since time.Duration) *trace.Answer {
	g.t.Helper()
	f := trace.Finder{Broker: g.b, Registry: g.r, Breaker: g.fleet.Breaker}
	a, err := f.Find(g.t.Context(), trace.Query{What: what, Since: since, Limit: 20})
	if err != nil {
		g.t.Fatal(err)
	}
	return a
}

// told gives a subscriber's delivery of the only event found.
func told(t *testing.T, a *trace.Answer, name string) trace.Delivery {
	t.Helper()
	if len(a.Events) != 1 {
		t.Fatalf("found %+v", a)
	}
	for _, d := range a.Events[0].Deliveries {
		if d.Subscriber == name {
			return d
		}
	}
	t.Fatalf("nothing of %s in %+v", name, a.Events[0])
	return trace.Delivery{}
}

func outcomes(d trace.Delivery) (s []string) {
	for _, p := range d.Steps {
		s = append(s, fmt.Sprintf("%s %d %d", p.Outcome, p.Attempt, p.Status))
	}
	return s
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func TestWay(t *testing.T) {
	g := newRig(t)
	for _, name := range []string{"good", "flaky", "picky", "down", "paused"} {
		g.add(name, "events.dataverse.>")
	}
	g.add("other", "events.fno.>")
	if _, err := g.r.SetPaused(t.Context(), "paused", true); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the workers", func() bool { _, ok := g.fleet.Breaker("other"); return ok })
	e := event.Event{ID: "op-1/2 3", Subject: strings.ToLower(record), Time: time.Now().Add(-time.Hour)}
	e.Set(event.ExtSource, "crm")
	e.Set(event.ExtVia, "push")
	e.Set(event.ExtRecordedTime, event.FormatTime(time.Now().UTC()))
	e.Set(event.ExtMatchKey, "account/"+strings.ToLower(record)+"/2026-11-23T05:00:00Z")
	g.publish("events.dataverse.crm.account.Update", event.Event{ID: "before"})
	g.publish("events.dataverse.crm.account.Update", e)
	g.publish("events.dataverse.crm.account.Update", event.Event{ID: "after"})
	g.add("late", "events.dataverse.>")
	waitFor(t, "all attempts", func() bool {
		a := g.find("op-1/2 3", time.Hour)
		return told(t, a, "flaky").State == trace.Delivered && told(t, a, "good").State == trace.Delivered &&
			told(t, a, "down").Next != nil && told(t, a, "picky").DeadLetter > 0
	})
	for _, what := range []string{"OP-1/2 3", record, "{" + record + "}", "Account/" + record, "account/" + record + "/2026-11-23T05:00:00Z"} {
		a := g.find(what, time.Hour)
		if len(a.Events) != 1 || a.Events[0].Sequence != 2 || !a.Complete {
			t.Errorf("%q: %+v", what, a)
		}
	}
	a := g.find("op-1/2 3", time.Hour)
	if e := a.Events[0]; e.ID != "op-1/2 3" || e.Source != "crm" || e.Via != "push" || e.Subject != "events.dataverse.crm.account.Update" ||
		e.Accepted == nil || e.Time == nil || !e.Time.Before(*e.Accepted) {
		t.Errorf("event %+v", e)
	}
	tests := []struct {
		name, state, steps, detail string
	}{
		{"good", trace.Delivered, "[delivered 1 200]", ""},
		{"flaky", trace.Delivered, "[failed 1 503 retry 2 503 delivered 3 200]", ""},
		{"picky", trace.DeadLetter, "[dead-letter 1 422]", ""},
		{"down", trace.Retry, "[retry 1 503]", ""},
		{"paused", trace.Waiting, "[]", "the subscriber is paused: gridfan subscribers resume paused"},
		{"other", trace.NotMatched, "[]", "another subject than it wants"},
		{"late", trace.NotMatched, "[]", "it was added later, and begins with event 4"},
	}
	for _, tt := range tests {
		d := told(t, a, tt.name)
		if d.State != tt.state || fmt.Sprint(outcomes(d)) != tt.steps || d.Detail != tt.detail {
			t.Errorf("%s: %+v", tt.name, d)
		}
	}
	if d := told(t, a, "good"); d.Took == "" || d.Attempts != 1 {
		t.Errorf("good: %+v", d)
	}

	// One that is gone has its records.
	if _, err := g.r.Delete(t.Context(), "good", true); err != nil {
		t.Fatal(err)
	}
	if d := told(t, g.find("op-1/2 3", time.Hour), "good"); d.State != trace.Delivered || d.Detail != "the subscriber is not there any more" {
		t.Errorf("good: %+v", d)
	}
}

func TestNotFound(t *testing.T) {
	g := newRig(t)
	for i := range 5 {
		g.publish("events.fno.prod.usmf.A", event.Event{ID: fmt.Sprint("e-", i)})
	}
	m := &nats.Msg{Subject: broker.Quarantine("prod"), Data: []byte(`{"EventId":"Q-17"}`), Header: nats.Header{"Gridfan-Reason": {"not-an-event"}, "Gridfan-Detail": {"no%20kind"}}}
	if _, err := g.b.JetStream().PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	a := g.find("nothing", time.Hour)
	if len(a.Events)+len(a.Quarantined) > 0 || !a.Complete || a.Looked.Events != 5 || a.Looked.Quarantine != 1 {
		t.Errorf("%+v", a)
	}
	a = g.find("q-17", time.Hour)
	if len(a.Quarantined) != 1 || a.Quarantined[0].Source != "prod" || a.Quarantined[0].Detail != "no kind" {
		t.Errorf("%+v", a)
	}
	// What is older than asked for is not looked at.
	time.Sleep(20 * time.Millisecond) // sleep: the events become that old
	if a = g.find("e-1", 10*time.Millisecond); len(a.Events) > 0 {
		t.Errorf("%+v", a)
	}
	if a = g.find("e-1", time.Hour); len(a.Events) != 1 || len(a.Events[0].Deliveries) != 0 {
		t.Errorf("%+v", a)
	}
	// An empty question finds nothing in particular.
	if a = g.find("e", time.Hour); len(a.Events) > 0 {
		t.Errorf("a part of an id: %+v", a)
	}
}

// TestMany finds the newest of many, over several strides.
func TestMany(t *testing.T) {
	g := newRig(t)
	js := g.b.JetStream()
	const n = 25_000
	for i := range n {
		e := event.Event{ID: fmt.Sprint("e-", i), Subject: map[bool]string{true: "PO-1"}[i%1000 == 0], Source: "/s", Type: "t"}
		h, body := e.Encode()
		if _, err := js.PublishMsgAsync(&nats.Msg{Subject: "events.fno.prod.usmf.A", Header: h, Data: body}); err != nil {
			t.Fatal(err)
		}
		if i%1000 == 999 {
			<-js.PublishAsyncComplete()
		}
	}
	a := g.find("po-1", time.Hour)
	if len(a.Events) != 20 || a.Complete || a.Events[0].ID != "e-24000" || a.Events[19].ID != "e-5000" || len(a.Notes) != 1 {
		t.Errorf("%d events, %v, notes %q", len(a.Events), a.Complete, a.Notes)
	}
	if a = g.find("e-17", time.Hour); len(a.Events) != 1 || !a.Complete || a.Looked.Events != n {
		t.Errorf("%d events, %+v, notes %q", len(a.Events), a.Looked, a.Notes)
	}
	// With little time it says how far it came.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	f := trace.Finder{Broker: g.b, Registry: g.r}
	if a, err := f.Find(ctx, trace.Query{What: "e-17", Since: time.Hour, Limit: 20}); err == nil && (a.Complete && len(a.Events) == 0) {
		t.Errorf("%+v", a)
	}
}

// TestBehind names the event that another one waits for.
func TestBehind(t *testing.T) {
	g := newRig(t)
	g.add("held", "events.fno.>")
	if _, err := g.r.SetPaused(t.Context(), "held", true); err != nil {
		t.Fatal(err)
	}
	// Its worker would tidy up what is put on the retry lane here.
	g.stop()
	for i := range 4 {
		e := event.Event{ID: fmt.Sprint("e-", i)}
		e.Set(event.ExtPartitionKey, []string{"a", "b"}[i%2])
		g.publish("events.fno.prod.usmf.A", e)
	}
	put := func(subject string, sequence int, id, key string) {
		t.Helper()
		m := &nats.Msg{Subject: subject, Header: nats.Header{
			deliver.HeaderOriginSequence: {fmt.Sprint(sequence)}, "ce-id": {id}, "ce-partitionkey": {key},
		}}
		if _, err := g.b.JetStream().PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	put(broker.RetryWaiting("held", 1), 1, "e-0", "a")
	put(broker.RetryWaiting("held", 2), 2, "e-1", "b")
	put(broker.RetryBehind("held", 3, "k"), 3, "e-2", "a")
	put(broker.RetryDue("held"), 4, "e-3", "b")
	if d := told(t, g.find("e-2", time.Hour), "held"); d.State != trace.Behind || d.Detail != "it waits behind event e-0 (1), which is to be tried again" {
		t.Errorf("%+v", d)
	}
	if d := told(t, g.find("e-3", time.Hour), "held"); d.State != trace.Retry || !strings.HasPrefix(d.Detail, "its next attempt is due; the subscriber is paused") {
		t.Errorf("%+v", d)
	}
}
