//go:build clients

package clients_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// delivery is what a library made of one request.
type delivery struct {
	Subscriber string
	Headers    map[string]string
	Value      json.RawMessage
	Error      *fault
}

// deliveries waits for one of each of these subscribers' events and gives them by
// subscriber and id. Arrays are taken apart.
func (p *program) deliveries(want map[string][]string) map[string]map[string]object {
	p.t.Helper()
	left := 0
	got := map[string]map[string]object{}
	for subscriber, ids := range want {
		left += len(ids)
		got[subscriber] = map[string]object{}
	}
	for left > 0 {
		var d delivery
		p.next(&d)
		if d.Error != nil {
			p.t.Fatalf("%s cannot read what has come with %v: %v", d.Subscriber, d.Headers, d.Error)
		}
		list := []object{{}}
		var err error
		if strings.HasPrefix(string(d.Value), "[") {
			err = decode(d.Value, &list)
		} else {
			err = decode(d.Value, &list[0])
		}
		if err != nil {
			p.t.Fatalf("%s: %s: %v", d.Subscriber, d.Value, err)
		}
		for _, ev := range list {
			id := fmt.Sprint(ev["id"])
			if !slices.Contains(want[d.Subscriber], id) || got[d.Subscriber][id] != nil {
				p.t.Fatalf("%s got %s", d.Subscriber, d.Value)
			}
			got[d.Subscriber][id] = ev
			left--
		}
	}
	return got
}

// TestWebhooks has JavaScript libraries read what subscribers are posted in each
// format: cloudevents, and the deserializer of @azure/eventgrid.
func TestWebhooks(t *testing.T) {
	// With this the library reads what JavaScript's numbers cannot hold as BigInt,
	// which the program prints with an n. It does so for one event, not for a batch.
	p, batches := node(t, "webhook.js", "CE_USE_BIG_INT=true"), node(t, "webhook.js", "CE_USE_BIG_INT=true")
	var url, batchURL string
	p.do(&url, "listen")
	batches.do(&batchURL, "listen")
	webhook := func(name, url, library, format, more string) string {
		return fmt.Sprintf("  %s: { subjects: \"events.>\", deliver: { webhook: { url: %q, format: %s } }%s }\n", name, url+"/"+library+"/"+name, format, more)
	}
	g := start(t, "\n"+
		webhook("structured", url, "cloudevents", "cloudevents", "")+
		webhook("binary", url, "cloudevents", "cloudevents-binary", "")+
		webhook("batch", batchURL, "cloudevents", "cloudevents", ", limits: { batch: { events: 10 } }")+
		webhook("grid", url, "eventgrid", "eventgrid", "")+
		webhook("grids", url, "eventgrid", "eventgrid", ", limits: { batch: { events: 10 } }")+
		webhook("cloud", url, "gridcloud", "cloudevents", "")+
		webhook("clouds", url, "gridcloud", "cloudevents", ", limits: { batch: { events: 10 } }"))

	g.post("shop", "application/cloudevents-batch+json", `[
		{"specversion":"1.0","id":"W-1","source":"/shop","type":"order.placed","subject":"orders/1","time":"2026-11-01T12:00:00.25+02:00","dataschema":"https://example.com/order.json",
		 "tenant":"t1","number":2147483647,"negative":-7,"flag":true,"place":"Köln, 50 %","data":{"n":9007199254740993,"amount":90055.6,"name":"Größe"}},
		{"specversion":"1.0","id":"W-2","source":"/shop","type":"picture.taken","time":"2026-11-01T10:00:00Z","datacontenttype":"application/octet-stream","data_base64":"AAH/"},
		{"specversion":"1.0","id":"W-3","source":"/shop","type":"order.forgotten","time":"2026-11-01T10:00:00Z"},
		{"specversion":"1.0","id":"W-4","source":"/shop","type":"note.written","time":"2026-11-01T10:00:00Z","datacontenttype":"text/plain","data":"Größe"}]`)
	g.post("topic", "application/json", `[{"id":"W-5","topic":"/subscriptions/s/x","subject":"files/1","eventType":"File.Stored","eventTime":"2026-11-01T10:00:00.25Z","dataVersion":"2","metadataVersion":"1","data":{"size":7}}]`)
	ids := []string{"W-1", "W-2", "W-3", "W-4", "W-5"}
	got := p.deliveries(map[string][]string{"structured": ids, "binary": ids, "grid": ids, "grids": ids, "cloud": ids, "clouds": ids})
	maps.Copy(got, batches.deliveries(map[string][]string{"batch": ids}))

	const at, sharp = "2026-11-01T10:00:00.250Z", "2026-11-01T10:00:00.000Z"
	data := func(n any) object {
		return object{"n": n, "amount": json.Number("90055.6"), "name": "Größe"}
	}
	structured := object{
		"specversion": "1.0", "id": "W-1", "source": "/shop", "type": "order.placed", "subject": "orders/1", "time": at,
		"dataschema": "https://example.com/order.json", "datacontenttype": "application/json",
		"tenant": "t1", "number": json.Number("2147483647"), "negative": json.Number("-7"), "flag": true, "place": "Köln, 50 %",
		"data": data("9007199254740993n"), "gridfansource": "shop", "partitionkey": "orders/1", "via": "push",
	}
	// In binary mode everything is text, and what the library does not decode.
	binary := maps.Clone(structured)
	maps.Copy(binary, object{"number": "2147483647", "negative": "-7", "flag": "true", "place": "K%C3%B6ln,%2050%20%25"})
	batch := maps.Clone(structured)
	batch["data"] = data(json.Number("9007199254740992")) // what is left of it in a number of JavaScript
	cloud := object{
		"specversion": "1.0", "id": "W-1", "source": "/shop", "type": "order.placed", "subject": "orders/1", "time": at, "dataschema": "https://example.com/order.json",
	}
	grid := object{"id": "W-1", "eventType": "order.placed", "subject": "orders/1", "topic": "/shop", "eventTime": at, "dataVersion": "", "metadataVersion": "1"}
	for subscriber, want := range map[string]object{"structured": structured, "binary": binary, "batch": batch, "cloud": cloud, "clouds": cloud, "grid": grid, "grids": grid} {
		t.Run(subscriber, func(t *testing.T) { has(t, got[subscriber]["W-1"], want) })
	}
	for _, subscriber := range []string{"cloud", "clouds"} {
		extensions, _ := got[subscriber]["W-1"]["extensionAttributes"].(object)
		has(t, extensions, object{"tenant": "t1", "number": json.Number("2147483647"), "negative": json.Number("-7"), "flag": true, "place": "Köln, 50 %"})
	}
	for subscriber, events := range got {
		t.Run("other data of "+subscriber, func(t *testing.T) {
			size := object{"size": json.Number("7")}
			switch subscriber {
			case "structured", "binary", "batch":
				has(t, events["W-2"], object{"type": "picture.taken", "datacontenttype": "application/octet-stream", "data_base64": "AAH/", "time": sharp})
				has(t, events["W-3"], object{"type": "order.forgotten", "datacontenttype": nil, "time": sharp})
				has(t, events["W-4"], object{"type": "note.written", "datacontenttype": "text/plain", "data": "Größe"})
				has(t, events["W-5"], object{"type": "File.Stored", "subject": "files/1", "source": "/subscriptions/s/x", "time": at, "data": size})
			case "grid", "grids":
				has(t, events["W-2"], object{"eventType": "picture.taken", "topic": "/shop", "eventTime": sharp})
				has(t, events["W-3"], object{"eventType": "order.forgotten", "data": nil, "subject": ""})
				has(t, events["W-5"], object{"eventType": "File.Stored", "subject": "files/1", "topic": "/subscriptions/s/x", "eventTime": at, "dataVersion": "2", "metadataVersion": "1", "data": size})
			case "cloud", "clouds":
				has(t, events["W-2"], object{"datacontenttype": "application/octet-stream", "data": object{"type": "Buffer", "data": []any{json.Number("0"), json.Number("1"), json.Number("255")}}})
				has(t, events["W-3"], object{"type": "order.forgotten", "data": nil})
				has(t, events["W-5"], object{"type": "File.Stored", "subject": "files/1", "source": "/subscriptions/s/x", "time": at, "data": size})
			}
		})
	}
}

// TestSignatures verifies deliveries with standardwebhooks: with the one key there is,
// with both while one replaces the other, and with the new one alone. A body that was
// changed passes with none.
func TestSignatures(t *testing.T) {
	p := node(t, "webhook.js")
	var url string
	p.do(&url, "listen")
	g := start(t, fmt.Sprintf(`
  signed: { subjects: "events.>", deliver: { webhook: { url: %q, sign: true } } }
`, url+"/signed/signed"))
	rotate := func(name string, more ...string) {
		t.Helper()
		var sub struct{ SigningKey string }
		g.cli(&sub, append([]string{"subscribers", "rotate-key", "signed"}, more...)...)
		if !strings.HasPrefix(sub.SigningKey, "whsec_") {
			t.Fatal("no key was shown")
		}
		p.do(nil, "key", name, sub.SigningKey)
	}
	// Each round's event must verify with these keys, and no others.
	verifies := func(id string, keys ...string) {
		t.Helper()
		g.structured(id)
		var d delivery
		p.next(&d)
		if d.Error != nil {
			t.Fatal(d.Error)
		}
		type verdict struct {
			Value object
			Error *fault
		}
		var verdicts map[string]struct{ Same, Changed verdict }
		if err := decode(d.Value, &verdicts); err != nil {
			t.Fatal(err)
		}
		var passed []string
		for name, v := range verdicts {
			if v.Same.Error == nil && v.Same.Value["id"] == id {
				passed = append(passed, name)
			} else if v.Same.Error == nil || v.Same.Error.Name != "WebhookVerificationError" {
				t.Errorf("%s: %s: %+v", id, name, v.Same)
			}
			if v.Changed.Error == nil || v.Changed.Error.Name != "WebhookVerificationError" {
				t.Errorf("%s: another body passes with %s: %+v", id, name, v.Changed)
			}
		}
		slices.Sort(passed)
		if !slices.Equal(passed, keys) {
			t.Errorf("%s verifies with %q, want %q", id, passed, keys)
		}
		if n := len(strings.Fields(d.Headers["webhook-signature"])); n != len(keys) {
			t.Errorf("%s has %d signatures, want %d", id, n, len(keys))
		}
	}
	rotate("first", "--overlap", "0s") // its own first one nobody has seen
	verifies("K-1", "first")
	rotate("second", "--overlap", "1h")
	verifies("K-2", "first", "second")
	rotate("third", "--overlap", "0s")
	verifies("K.3", "third")
}
