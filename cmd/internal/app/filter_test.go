package app_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// accepting posts F&O events of amounts that their ids end in.
func (g *gridfan) accepting(prefix string, amounts ...int) {
	g.t.Helper()
	for _, n := range amounts {
		id := fmt.Sprintf("%s-%d", prefix, n)
		body := strings.Replace(string(businessEvent(id)), "90055.6", fmt.Sprint(n), 1)
		if a := g.post("fo", nil, []byte(body)); a.status != http.StatusOK {
			g.t.Fatalf("event %s: HTTP %d %s", id, a.status, a.body)
		}
	}
}

// TestFilterAndTransform: a subscriber gets what its filter wants, with the data
// that its transform makes; what either fails on becomes a dead letter, with the
// reason.
func TestFilterAndTransform(t *testing.T) {
	in := newInbox(t)
	g := start(t, sources, "subscribers:\n",
		subscriber("large", in.url+"/large", `filter: "event.data.TransactionCurrencyAmount > 1000.0 && event.legalentity == 'usmf'"`),
		subscriber("shaped", in.url+"/shaped", `filter: event.data.TransactionCurrencyAmount == 2000, transform: '{order: .PurchaseOrderNumber, company: $event.legalentity, number: .ControlNumber}'`),
		subscriber("picky", in.url+"/picky", `filter: event.data.Missing == 1`),
		subscriber("broken", in.url+"/broken", `transform: .PurchaseOrderNumber + .TransactionCurrencyAmount`),
	)
	g.accepting("F", 500, 1000, 1001, 2000)
	in.wantOnce(t, "large", []string{"F-1001", "F-2000"})
	in.wantOnce(t, "shaped", []string{"F-2000"})
	g.drained()
	if n := len(in.of("large")); n != 2 {
		t.Errorf("large got %d events, want 2", n)
	}
	got := in.of("shaped")
	if len(got) != 1 {
		t.Fatalf("shaped got %d events, want 1", len(got))
	}
	if d := cmp.Diff(`{"company":"usmf","number":5637144576,"order":"PO-F-2000"}`, string(got[0].data)); d != "" {
		t.Errorf("data (-want +got):\n%s", d)
	}
	if got[0].attributes["dataschema"] != nil || got[0].attributes["datacontenttype"] != "application/json" || got[0].attributes["subject"] != in.of("large")[1].attributes["subject"] {
		t.Errorf("attributes: %v", got[0].attributes)
	}
	if n := len(in.of("picky")) + len(in.of("broken")); n != 0 {
		t.Errorf("picky and broken got %d events", n)
	}
	// The dead letters hold the events as they were.
	waitFor(t, "8 dead letters", func() bool { return len(g.stored(broker.StreamDeadLetters)) == 8 })
	causes := map[string]int{}
	for _, m := range g.stored(broker.StreamDeadLetters) {
		causes[m.Header.Get(deliver.HeaderSubscriber)+" "+m.Header.Get(deliver.HeaderCause)+" "+m.Header.Get(deliver.HeaderReason)]++
		if !strings.Contains(string(m.Data), "TransactionCurrencyAmount") {
			t.Errorf("the dead letter has %s", m.Data)
		}
	}
	want := map[string]int{
		"picky filter the filter fails: 1:11: event.data.Missing is absent; guard with has(event.data.Missing)": 4,
		"broken transform the transform fails: the expression fails: cannot add: string":                        4,
	}
	for text, n := range want {
		found := 0
		for cause, count := range causes {
			if strings.HasPrefix(unescape(t, cause), text) {
				found += count
			}
		}
		if found != n {
			t.Errorf("%q: got %d, want %d of %v", text, found, n, causes)
		}
	}

	s, err := g.admin.Subscriber(t.Context(), "shaped")
	if err != nil || !strings.HasPrefix(s.Definition.Transform, "{order:") || s.Definition.Filter == "" {
		t.Errorf("got %+v, %v", s, err)
	}
	d := definition("wrong", in.url)
	d.Filter, d.Transform = "event.legalEntity == 'x'", "{"
	_, err = g.admin.Subscribe(t.Context(), d)
	if problemCode(err) != "bad-definition" || !strings.Contains(err.Error(), "subscribers.wrong.filter: 1:6: undefined field 'legalEntity'") || !strings.Contains(err.Error(), "subscribers.wrong.transform: not jq") {
		t.Errorf("got %v", err)
	}
}

// TestTrial runs filters and transforms on stored events.
func TestTrial(t *testing.T) {
	ctx := t.Context()
	in := newInbox(t)
	g := start(t, sources, "subscribers:\n", subscriber("large", in.url+"/large", "filter: event.data.TransactionCurrencyAmount > 5"))
	g.accepting("A", 1, 2, 3, 4, 5)
	g.post("eg", nil, eventGridEvent("E-1"))
	// Only what comes from here on, by the time it was stored.
	waitFor(t, "the clock moves on", func() bool { return len(g.stored(broker.StreamEvents)) == 6 })
	between := time.Now()
	g.accepting("B", 6, 7, 8, 9)
	text := func(s string) *string { return &s }

	t.Run("all", func(t *testing.T) {
		r, err := g.admin.Try(ctx, admin.TrialRequest{Filter: text(`event.data.TransactionCurrencyAmount >= 4`)})
		if err != nil {
			t.Fatal(err)
		}
		if r.Events != 10 || !r.Complete || r.Counts != (admin.Counts{Matched: 6, Filtered: 3, Failed: 1}) || r.Shadow != nil {
			t.Errorf("got %+v", r)
		}
		if len(r.Failures) != 1 || r.Failures[0].Stage != "filter" || r.Failures[0].Sequence != 6 || !strings.Contains(r.Failures[0].Reason, "TransactionCurrencyAmount is absent") {
			t.Errorf("failures: %+v", r.Failures)
		}
		if len(r.BySubject) != 2 || r.BySubject[1].Subject != "events.fno.fo.usmf.PurchaseOrderConfirmed" || r.BySubject[1].Matched != 6 || r.BySubject[1].Filtered != 3 {
			t.Errorf("by subject: %+v", r.BySubject)
		}
	})
	t.Run("the newest on a subject", func(t *testing.T) {
		for _, n := range []int{1, 4, 5, 9} {
			r, err := g.admin.Try(ctx, admin.TrialRequest{Subjects: []string{"events.fno.>", "events.fno.*.usmf.>"}, Filter: text(`event.data.TransactionCurrencyAmount > 8`), Last: n})
			if err != nil {
				t.Fatal(err)
			}
			if r.Events != n || r.Matched != 1 || r.Filtered != n-1 || !r.Complete {
				t.Errorf("last %d: got %+v", n, r)
			}
		}
	})
	t.Run("since", func(t *testing.T) {
		r, err := g.admin.Try(ctx, admin.TrialRequest{Filter: text(`true`), Since: &between})
		if err != nil {
			t.Fatal(err)
		}
		if r.Events != 4 || r.Matched != 4 || r.From.Before(between) || !r.Complete {
			t.Errorf("got %+v", r)
		}
		r, err = g.admin.Try(ctx, admin.TrialRequest{Filter: text(`true`), Since: &between, Last: 3})
		if err != nil || r.Events != 3 || r.Complete || r.Stopped == "" {
			t.Errorf("got %+v, %v", r, err)
		}
		later := time.Now().Add(time.Hour)
		r, err = g.admin.Try(ctx, admin.TrialRequest{Filter: text(`true`), Since: &later})
		if err != nil || r.Events != 0 || !r.Complete {
			t.Errorf("got %+v, %v", r, err)
		}
	})
	t.Run("shadow", func(t *testing.T) {
		r, err := g.admin.Try(ctx, admin.TrialRequest{Subscriber: "large", Subjects: []string{"events.fno.>"}, Filter: text(`event.data.TransactionCurrencyAmount > 7 || event.data.TransactionCurrencyAmount == 1`)})
		if err != nil {
			t.Fatal(err)
		}
		s := r.Shadow
		if s == nil || s.Present != (admin.Counts{Matched: 4, Filtered: 5}) || r.Matched != 3 || s.More != 1 || s.Fewer != 2 {
			t.Fatalf("got %+v of %+v", s, r)
		}
		ids := []string{}
		for _, d := range s.Examples {
			ids = append(ids, d.ID+" "+d.Present+" "+d.New)
		}
		if d := cmp.Diff([]string{"A-1 filtered matched", "B-6 matched filtered", "B-7 matched filtered"}, ids); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		// And the present filter by itself.
		r, err = g.admin.Try(ctx, admin.TrialRequest{Subscriber: "large", Subjects: []string{"events.fno.>"}})
		if err != nil || r.Shadow != nil || r.Matched != 4 || r.Origin != "file" {
			t.Errorf("got %+v, %v", r, err)
		}
	})
	t.Run("transform", func(t *testing.T) {
		r, err := g.admin.Try(ctx, admin.TrialRequest{Transform: text(`if .TransactionCurrencyAmount == 3 then error("not three") else {n: .TransactionCurrencyAmount} end`), Subjects: []string{"events.fno.>"}})
		if err != nil {
			t.Fatal(err)
		}
		if r.Matched != 8 || r.Failed != 1 || len(r.Failures) != 1 || r.Failures[0].Reason != "the expression fails: not three" || r.Failures[0].Stage != "transform" || r.Failures[0].ID != "A-3" {
			t.Errorf("got %+v", r)
		}
		if r.Example == nil || !strings.Contains(string(r.Example.After), `"n": 9`) || !strings.Contains(string(r.Example.Before), `"TransactionCurrencyAmount": 9`) {
			t.Errorf("example: %s", r.Example.After)
		}
	})
	t.Run("mistakes", func(t *testing.T) {
		for _, tt := range []struct {
			req  admin.TrialRequest
			code string
			text string
		}{
			{admin.TrialRequest{Filter: text(`event.id`), Transform: text("{")}, "bad-definition", "filter: 1:1: the result is of type string"},
			{admin.TrialRequest{Filter: text(`true`), Last: 1_000_000}, "bad-parameter", "last"},
			{admin.TrialRequest{Filter: text(`true`), Subjects: []string{"orders.>"}}, "bad-parameter", "subjects[0]"},
			{admin.TrialRequest{Subscriber: "nobody"}, "no-such-subscriber", ""},
		} {
			if _, err := g.admin.Try(ctx, tt.req); problemCode(err) != tt.code || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%+v: got %v", tt.req, err)
			}
		}
	})
	// Nothing is left on the broker, and nothing was delivered but by the worker.
	g.drained()
	if n := len(in.of("large")); n != 4 {
		t.Errorf("large got %d events, want 4", n)
	}
	_, js := g.nats()
	stream, err := js.Stream(ctx, broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	var consumers []string
	for name := range stream.ConsumerNames(ctx).Name() {
		consumers = append(consumers, name)
	}
	// The books have a reader too.
	if len(consumers) > 2 || !slices.Contains(consumers, "large") {
		t.Errorf("left on the broker: %v", consumers)
	}
}

func eventGridEvent(id string) []byte {
	return fmt.Appendf(nil, `[{"topic":"/subscriptions/s/resourceGroups/r/providers/Microsoft.Storage/storageAccounts/mine","subject":"/x","eventType":"Microsoft.Storage.BlobCreated","eventTime":"2026-11-02T10:00:00Z","id":%q,"data":{"api":"PutBlob"},"dataVersion":"","metadataVersion":"1"}]`, id)
}

func unescape(t *testing.T, s string) string {
	t.Helper()
	text, err := url.PathUnescape(s)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
