//go:build clients

package clients_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type object = map[string]any

// fetched takes so many events of a pull subscriber, as they are on the wire, and
// gives them by their ids.
func (g *gridfan) fetched(subscriber string, n int) map[string]object {
	g.t.Helper()
	events := map[string]object{}
	deadline := time.Now().Add(patience)
	for len(events) < n {
		if time.Now().After(deadline) {
			g.t.Fatalf("not within %v: %d events, got %v", patience, n, events)
		}
		var got struct {
			Value []struct {
				BrokerProperties struct{ LockToken string }
				Event            object
			}
		}
		g.operate(subscriber, "receive?maxEvents=100&maxWaitTime=10", "", &got)
		for _, d := range got.Value {
			id := fmt.Sprint(d.Event["id"])
			if _, twice := events[id]; twice {
				g.t.Fatalf("%s comes twice", id)
			}
			events[id] = d.Event
			g.operate(subscriber, "acknowledge", fmt.Sprintf(`{"lockTokens":[%q]}`, d.BrokerProperties.LockToken), &object{})
		}
	}
	return events
}

func (g *gridfan) operate(subscriber, operation, body string, into any) {
	g.t.Helper()
	r, err := http.NewRequestWithContext(g.t.Context(), http.MethodPost, g.public+"/topics/events/eventsubscriptions/"+subscriber+":"+operation, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	r.Header.Set("X-Gridfan-Key", receiverKey)
	resp, err := g.client.Do(r)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		g.t.Fatalf("%s: HTTP %d: %s, %v", operation, resp.StatusCode, b, err)
	}
	if err := decode(b, into); err != nil {
		g.t.Fatalf("%s: %s: %v", operation, b, err)
	}
}

// has compares the attributes of an event that want names.
func has(t *testing.T, ev, want object) {
	t.Helper()
	got := object{}
	for name := range want {
		got[name] = ev[name]
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s\nof %v", d, ev)
	}
}

// TestPublishers sends events with @azure/eventgrid, in each of its schemas, with
// @azure/eventgrid-namespaces and with the emitter of cloudevents, and looks at what
// a subscriber gets.
func TestPublishers(t *testing.T) {
	g := start(t, `
  all: { subjects: "events.>", deliver: { pull: { keys: `+receiverKey+` } } }
`)
	p := node(t, "publish.js", g.env)
	at := func(source, schema string) object {
		return object{"endpoint": g.public + "/ingress/" + source, "schema": schema, "key": senderKey}
	}
	grid := func(id string) object {
		return object{"id": id, "eventType": "Order.Placed", "subject": "orders/1", "eventTime": "2026-11-01T10:00:00.250Z", "dataVersion": "1.0", "data": object{"amount": 90055.6, "name": "Größe"}}
	}
	cloud := func(id string) object {
		return object{"id": id, "type": "order.placed", "source": "/shop", "subject": "orders/1", "time": "2026-11-01T10:00:00.250Z", "data": object{"amount": 90055.6, "name": "Größe"}}
	}
	with := func(ev, more object) object {
		maps.Copy(ev, more)
		return ev
	}
	data := object{"amount": json.Number("90055.6"), "name": "Größe"}
	want := map[string]object{}

	// @azure/eventgrid: Event Grid schema, with the key and with a SAS token of its own
	// making.
	p.do(nil, "grid", at("topic", "EventGrid"), []object{grid("P-1"), grid("P-2")})
	p.do(nil, "signed", with(at("topic", "EventGrid"), object{"until": time.Now().Add(time.Hour)}), []object{grid("P-3")})
	for _, id := range []string{"P-1", "P-2", "P-3"} {
		want[id] = object{"type": "Order.Placed", "subject": "orders/1", "time": "2026-11-01T10:00:00.25Z", "dataversion": "1.0", "data": data}
	}
	// CloudEvents, with extensions and binary data.
	extended := object{"extensionAttributes": object{"tenant": "t1", "number": 2147483647, "flag": true}}
	p.do(nil, "grid", at("shop", "CloudEvent"), []object{with(cloud("P-4"), extended), {"id": "P-5", "type": "order.placed", "source": "/shop", "bytes": "AAH/", "datacontenttype": "application/octet-stream"}})
	want["P-4"] = object{"type": "order.placed", "source": "/shop", "subject": "orders/1", "tenant": "t1", "number": json.Number("2147483647"), "flag": true, "data": data}
	want["P-5"] = object{"type": "order.placed", "datacontenttype": "application/octet-stream", "data_base64": "AAH/"}
	p.do(nil, "grid", at("topic", "CloudEvent"), []object{cloud("P-6")})
	want["P-6"] = object{"type": "order.placed", "source": "/shop", "data": data}
	// Custom schema.
	p.do(nil, "grid", at("own", "Custom"), []object{{"no": "P-7", "kind": "order", "n": 9007199254740991}, {"no": "P-8", "kind": "order"}})
	want["P-7"] = object{"type": "order", "data": object{"no": "P-7", "kind": "order", "n": json.Number("9007199254740991")}}
	want["P-8"] = object{"type": "order"}

	// @azure/eventgrid-namespaces: one and several.
	n := node(t, "namespaces.js", g.env)
	sender := object{"endpoint": g.public, "topic": "shop", "key": senderKey}
	n.do(nil, "sender", sender, cloud("P-9"))
	n.do(nil, "sender", sender, []object{cloud("P-10"), with(cloud("P-11"), extended)})
	n.do(nil, "sender", sender, []object{})
	for _, id := range []string{"P-9", "P-10"} {
		// What that client says of any data unless it is told otherwise.
		want[id] = object{"type": "order.placed", "source": "/shop", "subject": "orders/1", "data": data, "datacontenttype": "application/cloudevents+json; charset=utf-8"}
	}
	want["P-11"] = object{"type": "order.placed", "data": data}

	// The emitter of cloudevents, which tells no status.
	sink := func(mode string) object {
		return object{"sink": g.public + "/ingress/shop", "mode": mode, "headers": object{"X-Gridfan-Key": senderKey}}
	}
	for i, mode := range []string{"BINARY", "STRUCTURED"} {
		id := fmt.Sprintf("P-%d", 12+i)
		var answer struct{ Body string }
		p.do(&answer, "emit", sink(mode), with(cloud(id), object{"tenant": "t1", "number": 2147483647, "flag": true}))
		if !strings.Contains(answer.Body, `"published":1`) {
			t.Errorf("%s is answered %s", mode, answer.Body)
		}
		want[id] = with(object{"type": "order.placed", "source": "/shop", "subject": "orders/1", "tenant": "t1", "data": data}, map[string]object{
			// In headers everything is text.
			"BINARY":     {"number": "2147483647", "flag": "true"},
			"STRUCTURED": {"number": json.Number("2147483647"), "flag": true},
		}[mode])
		id = fmt.Sprintf("P-%d", 14+i)
		p.do(&answer, "emit", sink(mode), object{"id": id, "type": "order.placed", "source": "/shop", "bytes": "AAH/", "datacontenttype": "application/octet-stream"})
		if !strings.Contains(answer.Body, `"published":1`) {
			t.Errorf("%s with bytes is answered %s", mode, answer.Body)
		}
		want[id] = object{"datacontenttype": "application/octet-stream", "data_base64": "AAH/"}
	}

	got := g.fetched("all", len(want))
	for id, w := range want {
		t.Run(id, func(t *testing.T) { has(t, got[id], w) })
	}
}

// TestPublishersRefused: what a client did wrong shows in its errors, and keys do not.
func TestPublishersRefused(t *testing.T) {
	g := start(t, `
  all: { subjects: "events.>", deliver: { pull: { keys: `+receiverKey+` } } }
`)
	p, n := node(t, "publish.js", g.env), node(t, "namespaces.js", g.env)
	event := object{"eventType": "T", "subject": "s", "dataVersion": "1", "data": object{}}
	at := func(source, key string) object {
		return object{"endpoint": g.public + "/ingress/" + source, "schema": "EventGrid", "key": key}
	}
	signed := at("topic", senderKey)
	signed["until"] = time.Now().Add(-time.Hour)
	refused(t, p.try(nil, "grid", at("topic", wrongKey), []object{event}), 401, "unauthorized")
	refused(t, p.try(nil, "signed", signed, []object{event}), 401, "unauthorized")
	event["data"] = object{"text": strings.Repeat("x", 5<<20)}
	refused(t, p.try(nil, "grid", at("topic", senderKey), []object{event}), 413, "body-too-large")
	cloud := object{"type": "t", "source": "/s"}
	refused(t, n.try(nil, "sender", object{"endpoint": g.public, "topic": "shop", "key": wrongKey}, cloud), 401, "unauthorized")
}
