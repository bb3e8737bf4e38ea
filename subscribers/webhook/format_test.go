package webhook

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// readingGrid is a receiver of the Event Grid schema before one of CloudEvents: it
// holds every request to what Event Grid promises.
func readingGrid(t *testing.T, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the Sender went away
		}
		if ct := r.Header.Get("Content-Type"); ct != "application/json; charset=utf-8" || r.Header.Get("aeg-event-type") != "Notification" || !bytes.HasPrefix(body, []byte("[{")) {
			t.Errorf("%v: not as Event Grid sends it: %.100s", r.Header, body)
		}
		var all [][]byte
		for _, r := range eventgrid.Parse("", r.Header, body) {
			if r.Event == nil {
				t.Errorf("unreadable: %v: %.200s", r.Fault, r.Raw)
				continue
			}
			all = append(all, r.Event.JSON())
		}
		r.Header.Set("Content-Type", mediaStructured)
		joined := bytes.Join(all, []byte(","))
		if len(all) > 1 {
			r.Header.Set("Content-Type", mediaBatch)
			joined = append(append([]byte("["), joined...), ']')
		}
		r.Body = io.NopCloser(bytes.NewReader(joined))
		next.ServeHTTP(w, r)
	})
}

// throughGrid is what the Event Grid schema makes of an event. That it is right is
// tested in schemas/eventgrid.
func throughGrid(e *event.Event) *event.Event {
	return eventgrid.Parse("", nil, eventgrid.AppendArray(nil, e))[0].Event
}

// decodeOriginal and asOriginal are what is left of an event whose data go alone.
func decodeOriginal(h map[string][]string, body []byte) (*event.Event, error) {
	for name := range h {
		if strings.HasPrefix(name, "Ce-") {
			panic("panic: a test's receiver got an attribute") // net/http turns it into a failed request
		}
	}
	e := &event.Event{ID: http.Header(h).Get("Webhook-Id"), DataContentType: http.Header(h).Get("Content-Type")}
	if len(body) > 0 {
		e.Data = body
	}
	return e, nil
}

func asOriginal(e *event.Event) *event.Event {
	o := &event.Event{ID: webhookID(e.ID), Data: e.Data}
	if e.Data != nil {
		o.DataContentType = bodyType(e)
	}
	return o
}

func TestFormats(t *testing.T) {
	order := &event.Event{
		ID: "1", Source: "/topics/shop", Type: "Order.Placed", Subject: "orders/1", Time: time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC),
		DataContentType: "application/json", Data: []byte(`{"n": 1.10}`), DataJSON: true,
	}
	order.Set("dataversion", "2")
	const orderJSON = `{"id":"1","topic":"/topics/shop","subject":"orders/1","eventType":"Order.Placed","eventTime":"2026-11-01T10:00:00Z","dataVersion":"2","metadataVersion":"1","data":{"n": 1.10}}`
	edit := func(f func(*event.Event)) *event.Event { e := order.Clone(); f(e); return e }
	for _, tt := range []struct {
		name   string
		format Format
		e      *event.Event
		want   string
	}{
		{"Event Grid", EventGrid, order, "Aeg-Data-Version: 2\nAeg-Event-Type: Notification\nAeg-Metadata-Version: 1\nAeg-Subscription-Name: WMS-EU\nContent-Type: application/json; charset=utf-8\n[" + orderJSON + "]"},
		{"Event Grid, a version that is no header", EventGrid, edit(func(e *event.Event) { e.Set("dataversion", "a\r\nX-Evil: 1") }),
			"Aeg-Data-Version: a%0D%0AX-Evil:%201\nAeg-Event-Type: Notification\nAeg-Metadata-Version: 1\nAeg-Subscription-Name: WMS-EU\nContent-Type: application/json; charset=utf-8\n[" + strings.Replace(orderJSON, `"dataVersion":"2"`, `"dataVersion":"a\r\nX-Evil: 1"`, 1) + "]"},
		{"original", Original, order, "Content-Type: application/json\nWebhook-Id: 1\n{\"n\": 1.10}"},
		{"original, text", Original, edit(func(e *event.Event) {
			e.ID, e.Data, e.DataJSON, e.DataContentType = "a.b\n", []byte("a;b"), false, "text/csv"
		}),
			"Content-Type: text/csv\nWebhook-Id: a%2Eb%0A\na;b"},
		{"original, JSON without a type", Original, edit(func(e *event.Event) { e.DataContentType = "" }), "Content-Type: application/json\nWebhook-Id: 1\n{\"n\": 1.10}"},
		{"original, data that calls itself an event", Original, edit(func(e *event.Event) { e.DataContentType = "application/cloudevents+json" }), "Content-Type: application/json\nWebhook-Id: 1\n{\"n\": 1.10}"},
		{"original, no data", Original, edit(func(e *event.Event) { e.Data = nil }), "Webhook-Id: 1\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := &captured{}
			s := sender(t, got.serve, Config{Format: tt.format}, Options{Subscriber: "wms-eu"})
			for range 2 { // what one leaves behind for the next
				if a := s.Send(t.Context(), tt.e); a.Outcome != deliver.Delivered {
					t.Fatalf("%+v", a)
				}
				if d := cmp.Diff(tt.want, got.text()); d != "" {
					t.Errorf("-want +got:\n%s", d)
				}
			}
		})
	}
	t.Run("arrays", func(t *testing.T) {
		got := &captured{}
		s := sender(t, got.serve, Config{Format: EventGrid}, Options{})
		for name, tt := range map[string]struct {
			second *event.Event
			data   string
		}{
			"one version":  {edit(func(e *event.Event) { e.ID = "2" }), "2"},
			"two versions": {edit(func(e *event.Event) { e.Set("dataversion", "3") }), ""},
		} {
			if a := s.SendBatch(t.Context(), []*event.Event{order, tt.second}); a.Outcome != deliver.Delivered {
				t.Fatalf("%+v", a)
			}
			if h := got.header; h.Get("aeg-data-version") != tt.data || h.Get("aeg-metadata-version") != "1" || h.Get("aeg-subscription-name") != "" {
				t.Errorf("%s: %v", name, h)
			}
			if want := string(eventgrid.AppendArray(nil, order, tt.second)); string(got.body) != want {
				t.Errorf("%s: got %s, want %s", name, got.body, want)
			}
		}
	})
}

func TestValidateBatch(t *testing.T) {
	for format, ok := range map[Format]bool{"": true, Structured: true, EventGrid: true, Binary: false, Original: false} {
		c := Config{URL: "https://h", Format: format, Headers: map[string]string{"X-Team": "wms"}}
		if err := c.ValidateBatch("subscribers.a.deliver.webhook"); (err == nil) != ok {
			t.Errorf("%q: %v", format, err)
		} else if err != nil && !strings.HasPrefix(err.Error(), "subscribers.a.deliver.webhook.format: ") {
			t.Errorf("the error does not begin with its path: %v", err)
		}
	}
	c := Config{URL: "https://h", Headers: map[string]string{"X-Team": "wms", "X-Type": "{{type}}"}}
	if err := c.ValidateBatch("x"); err == nil || !strings.HasPrefix(err.Error(), "x.headers.X-Type: several events") {
		t.Errorf("got %v", err)
	}
	c = Config{URL: "https://h", Format: "cloudevent"}
	if err := c.Validate("x"); err == nil || err.Error() != `x.format: want cloudevents, cloudevents-binary, eventgrid or original, got "cloudevent"` {
		t.Errorf("got %v", err)
	}
}
