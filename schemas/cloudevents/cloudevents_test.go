package cloudevents_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/cloudevents"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/schematest"
)

const (
	structured = "Content-Type: application/cloudevents+json\n"
	batch      = "Content-Type: application/cloudevents-batch+json\n"
	// required are the headers of the least event in binary mode.
	required = "ce-specversion: 1.0\nce-id: 1\nce-source: /s\nce-type: t\n"
	// least is the least event in the JSON format, without its braces.
	least = `"specversion":"1.0","id":"1","source":"/s","type":"t"`
)

// TestConformance holds what cloudevents/conformance asks of a receiver over
// HTTP (features/http-protocol-binding.feature, read 2026-11): one event, sent
// in binary and in structured mode, each with and without a charset.
func TestConformance(t *testing.T) {
	const (
		data       = "{\n    \"message\": \"Hello World!\"\n}\n"
		attributes = "ce-specversion: 1.0\nce-type: com.example.someevent\nce-time: 2018-04-05T03:56:24Z\nce-id: 1234-1234-1234\nce-source: /mycontext/subcontext\n"
		inside     = `{"specversion": "1.0", "type": "com.example.someevent", "time": "2018-04-05T03:56:24Z", "id": "1234-1234-1234",
			"source": "/mycontext/subcontext", "datacontenttype": "application/json", "data": ` + data + `}`
	)
	tests := []struct{ name, head, body, datacontenttype string }{
		{"binary", attributes + "Content-Type: application/json", data, "application/json"},
		{"binary with a charset", attributes + "Content-Type: application/json; charset=utf-8", data, "application/json; charset=utf-8"},
		{"structured", "Content-Type: application/cloudevents+json", inside, "application/json"},
		{"structured with a charset", "Content-Type: application/cloudevents+json; charset=utf-8", inside, "application/json"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			results := cloudevents.Parse("src", schematest.Header("POST: /someresource\nHost: example.com\n"+tt.head), []byte(tt.body))
			if len(results) != 1 || results[0].Event == nil {
				t.Fatalf("no event: %v", schematest.Briefs(results))
			}
			invariants.Check(t, results[0])
			e := results[0].Event
			got := map[string]string{
				"id": e.ID, "type": e.Type, "source": e.Source, "time": event.FormatTime(e.Time),
				"datacontenttype": e.DataContentType, "data": strings.TrimSpace(string(e.Data)),
			}
			want := map[string]string{
				"id": "1234-1234-1234", "type": "com.example.someevent", "source": "/mycontext/subcontext", "time": "2018-04-05T03:56:24Z",
				"datacontenttype": tt.datacontenttype, "data": strings.TrimSpace(data),
			}
			if d := cmp.Diff(want, got); d != "" || !e.DataJSON || len(e.Extensions) != 0 {
				t.Errorf("JSON %v, extensions %v (-want +got):\n%s", e.DataJSON, e.Extensions, d)
			}
		})
	}
}

func TestBinary(t *testing.T) {
	const (
		out     = `{"specversion":"1.0","id":"1","source":"/s","type":"t"`
		least   = out + `}`
		json    = `,"datacontenttype":"application/json","data":`
		badUTF8 = `the value is not UTF-8, percent-encoded or plain`
	)
	tests := []struct {
		name, head, body, want string
	}{
		{"least", required, "", least},
		{"names in any case", "CE-SPECVERSION: 1.0\nCe-Id: 1\ncE-sOURCE: /s\nce-Type: t\nCe-Some: x", "", out + `,"some":"x"}`},
		{"attributes", required + "ce-subject: s\nce-time: 2018-04-05T03:56:24+02:00\nce-dataschema: #\nce-partitionkey: k\nce-num: 007\nce-yes: true", "",
			out + `,"subject":"s","time":"2018-04-05T03:56:24+02:00","dataschema":"#","num":"007","partitionkey":"k","yes":"true"}`},
		{"partition key", required + "ce-subject: s", "", out + `,"subject":"s","partitionkey":"s"}`},
		{"empty values are unset", required + "ce-subject:\nce-time:\nce-dataschema:\nce-x:\nce-x-y: \nContent-Type:", "", least},
		{"other headers are nobody's", required + "traceparent: x\nX-Ce-Id: 2\nce: 3\nContent-Type: text/plain", "", out + `,"datacontenttype":"text/plain"}`},
		{"a time that is none", required + "ce-time: soon", "", out + `,"originaltime":"soon"}`},
		{"a null time", required + "ce-time: 1900-01-01T00:00:00Z", "", least},

		{"percent", required + "ce-subject: Euro%20%E2%82%AC%20%F0%9F%98%80", "", out + `,"subject":"Euro € 😀","partitionkey":"Euro € 😀"}`},
		{"percent in lower case, and without need", required + "ce-a: %e2%82%ac%41", "", out + `,"a":"€A"}`},
		{"one round only", required + "ce-a: %2541", "", out + `,"a":"%41"}`},
		{"percent that begins nothing", required + "ce-a: 50% off %\nce-b: 5%4\nce-c: %zz", "", out + `,"a":"50% off %","b":"5%4","c":"%zz"}`},
		{"overlong", required + "ce-a: %C0%A0", "", `invalid-event: header "ce-a": ` + badUTF8},
		{"half a character", required + "ce-id: %E2%82", "", `invalid-event: header "ce-id": ` + badUTF8},
		{"Latin-1", required + "ce-a: \xe9", "", `invalid-event: header "ce-a": ` + badUTF8},
		{"raw UTF-8", required + "ce-a: é", "", out + `,"a":"é"}`},
		{"quoted", required + `ce-a: "b \"c\" \\%41"`, "", out + `,"a":"b \"c\" \\A"}`},
		{"quotes inside", required + `ce-a: b "c"`, "", out + `,"a":"b \"c\""}`},
		{"one quote", required + `ce-a: "`, "", out + `,"a":"\""}`},
		{"an encoded quote is no quote", required + "ce-a: %22b%22", "", out + `,"a":"\"b\""}`},
		{"control characters", required + "ce-a: %00%0D%0A", "", out + `,"a":"\u0000\r\n"}`},

		{"twice the same", required + "ce-id: 1\nce-id: %31\nce-id:", "", least},
		{"twice in two cases", required + "CE-ID: 2", "", `ambiguous: header "ce-id" stands twice with different values`},
		{"an extension twice", required + "ce-a: 1\nce-a: 2", "", `ambiguous: header "ce-a" stands twice with different values`},
		{"Content-Type twice", required + "Content-Type: a/b\ncontent-type: a/c", "", `ambiguous: header Content-Type stands twice with different values`},
		{"Content-Type twice the same", required + "Content-Type: a/b\ncontent-type: a/b\nCONTENT-TYPE:", "", out + `,"datacontenttype":"a/b"}`},

		{"no attribute's name", required + "ce-my-attr: 1\nce-my_attr: 2\nce-: 3\nce-data: 4\nce-data_base64: 5", "",
			out + `,"unmapped":"{\"\":\"3\",\"data\":\"4\",\"data_base64\":\"5\",\"my-attr\":\"1\",\"my_attr\":\"2\"}"}`},
		{"a long name", required + "ce-" + strings.Repeat("a", 33) + ": 1", "", out + `,"unmapped":"{\"` + strings.Repeat("a", 33) + `\":\"1\"}"}`},
		{"unmapped from before", required + "ce-unmapped: %7B%22X%22:1%7D", "", out + `,"unmapped":"{\"X\":1}"}`},
		{"datacontenttype alone", required + "ce-datacontenttype: text/plain", "x", out + `,"datacontenttype":"text/plain","data":"x"}`},
		{"datacontenttype beside the same", required + "ce-datacontenttype: text/plain\nContent-Type: text/plain", "x", out + `,"datacontenttype":"text/plain","data":"x"}`},
		{"datacontenttype beside another", required + "ce-datacontenttype: a/b\nContent-Type: text/plain", "x",
			out + `,"datacontenttype":"text/plain","unmapped":"{\"datacontenttype\":\"a/b\"}","data":"x"}`},

		{"JSON", required + "Content-Type: application/json", `{"n":-9223372036854775808,"n":1.10}`, out + json + `{"n":-9223372036854775808,"n":1.10}}`},
		{"JSON that is an array", required + "Content-Type: application/json", `[{` + least + `]`, out + `,"datacontenttype":"application/json","data_base64":"W3t7InNwZWN2ZXJzaW9uIjoiMS4wIiwiaWQiOiIxIiwic291cmNlIjoiL3MiLCJ0eXBlIjoidCJ9XQ=="}`},
		{"JSON that is a scalar", required + "Content-Type: application/x+json", ` "x"`, out + `,"datacontenttype":"application/x+json","data": "x"}`},
		{"JSON null", required + "Content-Type: application/json", `null`, out + json + `null}`},
		{"JSON in Latin-1", required + "Content-Type: application/json", "\"\xe9\"", out + `,"datacontenttype":"application/json","data_base64":"Iuki"}`},
		{"JSON in name only", required + "Content-Type: application/json", `{"a"`, out + `,"datacontenttype":"application/json","data_base64":"eyJhIg=="}`},
		{"JSON without a content type", required, `{"a":1}`, out + json + `{"a":1}}`},
		{"bytes without a content type", required, `{"a"`, out + `,"data_base64":"eyJhIg=="}`},
		{"text", required + "Content-Type: text/plain", `{"a":1}`, out + `,"datacontenttype":"text/plain","data":"{\"a\":1}"}`},
		{"bytes", required + "Content-Type: application/octet-stream", "\xff\x00", out + `,"datacontenttype":"application/octet-stream","data_base64":"/wA="}`},
		{"no data, but a content type", required + "Content-Type: application/json", "", out + `,"datacontenttype":"application/json"}`},
		{"an event as data", required + "Content-Type: application/json", `{"specversion":"1.0","id":"2"}`, out + json + `{"specversion":"1.0","id":"2"}}`},
		{"a content type that is none", required + "Content-Type: é", "x", `invalid-event: attribute datacontenttype is not a media type`},
		{"too deep", required + "Content-Type: application/json", strings.Repeat("[", 9999) + strings.Repeat("]", 9999), `invalid-event: the JSON is nested deeper than an event can carry`},

		{"no specversion", "ce-id: 1\nce-source: /s\nce-type: t", "", `missing-member: header ce-specversion is missing or empty`},
		{"no id", "ce-specversion: 1.0\nce-source: /s\nce-type: t", "", `missing-member: header ce-id is missing or empty`},
		{"empty source", required[:strings.Index(required, "/s")] + "\nce-type: t", "{}", `missing-member: header ce-source is missing or empty`},
		{"no type", "ce-specversion: 1.0\nce-id: 1\nce-source: /s", "", `missing-member: header ce-type is missing or empty`},
		{"version 0.3", "ce-specversion: 0.3\nce-id: 1\nce-source: /s\nce-type: t", "", `unsupported: specversion is "0.3"; only CloudEvents 1.0 is understood`},
		{"version 1.0.2", "ce-specversion: 1.0.2\nce-id: 1\nce-source: /s\nce-type: t", "", `unsupported: specversion is "1.0.2"; only CloudEvents 1.0 is understood`},

		// Declared like an event; see isDeclaredLikeEvent.
		{"declared like an event", required + structured, `{"a":1}`, out + `,"datacontenttype":"application/cloudevents+json","data":{"a":1}}`},
		{"declared like an event, no JSON", required + structured, `a`, out + `,"datacontenttype":"application/cloudevents+json","data_base64":"YQ=="}`},
		{"declared like an event, nothing", required + structured, ``, out + `,"datacontenttype":"application/cloudevents+json"}`},
		{"an event after all", required + structured, `{` + strings.Replace(least[1:], `"id":"1"`, `"id":"2"`, 1), `{"specversion":"1.0","id":"2","source":"/s","type":"t"}`},
		{"not all headers", "ce-specversion: 1.0\nce-id: 1\nce-source: /s\n" + structured, `{"a":1}`,
			`not-an-event: neither specversion (an event in the JSON format) nor ce- headers (binary mode) are there; send a CloudEvent`},

		{"validation", required[:strings.Index(required, "ce-type")] + "ce-type: microsoft.eventgrid.SubscriptionValidationEvent\nContent-Type: application/json", ` {"validationCode":"c"} `, `validation c`},
		{"deletion", required[:strings.Index(required, "ce-type")] + "ce-type: Microsoft.EventGrid.SubscriptionDeletedEvent\nContent-Type: application/json", `{"eventSubscriptionId":"e"}`, `deletion e`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			results := cloudevents.Parse("src", schematest.Header(tt.head), []byte(tt.body))
			if d := cmp.Diff([]string{tt.want}, schematest.Briefs(results)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			for _, r := range results {
				invariants.Check(t, r)
				if string(r.Raw) != tt.body {
					t.Errorf("Raw is %q", r.Raw)
				}
			}
		})
	}
}

func TestJSON(t *testing.T) {
	const (
		one     = `{` + least + `}`
		none    = `not-an-event: neither specversion (an event in the JSON format) nor ce- headers (binary mode) are there; send a CloudEvent`
		version = `unsupported: specversion is "0.3"; only CloudEvents 1.0 is understood`
	)
	with := func(more string) string { return `{` + least + more + `}` }
	tests := []struct {
		name, head, body string
		want             []string
	}{
		{"structured", structured, one, []string{one}},
		{"batch", batch, `[` + one + ` , ` + one + `]`, []string{one, one}},
		{"array where one was announced", structured, `[` + one + `,` + one + `]`, []string{one, one}},
		{"one where an array was announced", batch, one, []string{one}},
		{"plain", "Content-Type: application/json", one, []string{one}},
		{"plain array", "content-type: application/json; charset=utf-8", `[` + one + `]`, []string{one}},
		{"text", "Content-Type: text/plain", one, []string{one}},
		{"no content type", "", "\xef\xbb\xbf " + one + "\n", []string{one}},
		{"some ce- headers do not make it binary", "ce-id: 2\nce-source: /x\nContent-Type: application/json", one, []string{one}},
		{"empty batch", batch, `[]`, nil},
		{"null batch", batch, ` null `, nil},
		{"null in an odd announcement", "", `null`, nil},
		{"empty array where one was announced", structured, ` [ ] `, nil},
		{"null where one was announced", structured, ` null `, []string{`not-an-event: want a JSON object, got null`}},

		{"content type in odd case", "CONTENT-TYPE: Application/CloudEvents+JSON ; Charset=\"UTF-8\"", one, []string{one}},
		{"single quotes", "Content-Type: application/cloudevents-batch+json;charset='utf8';x=y", `[` + one + `]`, []string{one}},
		{"ASCII", "Content-Type: application/cloudevents+json;charset=us-ascii", one, []string{one}},
		{"another charset that is ASCII here", "Content-Type: application/cloudevents+json;charset=iso-8859-1", one, []string{one}},
		{"another charset", "Content-Type: application/cloudevents+json;charset=ISO-8859-1", with(",\"a\":\"\xe9\""), []string{`encoded-body: the body is in charset "iso-8859-1"; JSON is read in UTF-8 only`}},
		{"UTF-16", "Content-Type: application/json;charset=utf-16", "{\x00}\x00", []string{`encoded-body: the body is in charset "utf-16"; JSON is read in UTF-8 only`}},
		{"no format named", "Content-Type: application/cloudevents", one, []string{one}},
		{"no batch format named", "Content-Type: application/cloudevents-batch; charset=utf-8", `[` + one + `]`, []string{one}},
		{"Avro", "Content-Type: application/cloudevents+avro", "\x00", []string{`unsupported: Content-Type "application/cloudevents+avro": of the event formats only JSON is understood; send application/cloudevents+json or application/cloudevents-batch+json, or binary mode`}},
		{"XML in odd case, with all headers", "Content-Type: Application/CloudEvents+XML; charset=utf-8\n" + required, "<event/>", []string{`unsupported: Content-Type "application/cloudevents+xml": of the event formats only JSON is understood; send application/cloudevents+json or application/cloudevents-batch+json, or binary mode`}},
		{"protobuf batch", "Content-Type: application/cloudevents-batch+protobuf", "", []string{`unsupported: Content-Type "application/cloudevents-batch+protobuf": of the event formats only JSON is understood; send application/cloudevents+json or application/cloudevents-batch+json, or binary mode`}},
		{"only begins alike", "Content-Type: application/cloudeventsx", one, []string{one}},

		{"nothing", structured, ``, []string{`not-json: the body is empty`}},
		{"nothing at all", "", ``, []string{`not-json: the body is empty`}},
		{"a form", "Content-Type: application/x-www-form-urlencoded", `a=1`, []string{`not-json: not JSON at byte 0; its Content-Type is "application/x-www-form-urlencoded", and there are no ce- headers that would make it an event in binary mode`}},
		{"cut off", batch, `[` + one + `,{"id"`, []string{`not-json: the JSON ends early, at byte 62`}},
		{"two bodies", structured, one + one, []string{`not-json: there is more after the JSON value`}},
		{"not objects", batch, `[1,"x",null,[]]`, []string{
			`not-an-event: want a JSON object, got a number`, `not-an-event: want a JSON object, got a string`,
			`not-an-event: want a JSON object, got null`, `not-an-event: want a JSON object, got an array`}},
		{"one bad element costs only itself", batch, "[{" + least + `,"id":"2"},` + one + ",{\"a\":\"\xff\"},{\"a\":1}," + one + `]`, []string{
			`not-an-event: member "id" stands twice with different values`, one, `not-an-event: the text is not valid UTF-8`, none, one}},
		{"another schema", batch, `[{"id":"1","eventType":"t","subject":"s"},` + one + `]`, []string{
			`not-an-event: an event in the Event Grid schema; this source's kind is cloudevents, and kind eventgrid takes both`, one}},
		{"no specversion", structured, `{"id":"1","source":"/s","type":"t"}`, []string{`missing-member: attribute specversion is missing`}},
		{"null specversion", structured, `{"specversion":null,"id":"1","source":"/s","type":"t"}`, []string{`missing-member: attribute specversion is missing`}},
		{"version 0.3", structured, `{"specversion":"0.3","id":"1","source":"/s","type":"t"}`, []string{version}},
		{"version that is a number", structured, `{"specversion":1.0,"id":"1"}`, []string{`wrong-type: attribute specversion: want a string, got a number`}},
		{"missing", batch, `[{"specversion":"1.0"},{"specversion":"1.0","id":"1","source":""},{"specversion":"1.0","id":"1","source":"/s","type":null}]`, []string{
			`missing-member: attribute id is missing or empty`, `missing-member: attribute source is missing or empty`, `missing-member: attribute type is missing or empty`}},
		{"wrong types", batch, `[{"specversion":"1.0","id":1},` + with(`,"subject":[]`) + `,` + with(`,"time":0`) + `,` + with(`,"data_base64":{}`) + `]`, []string{
			`wrong-type: attribute id: want a string, got a number`, `wrong-type: attribute subject: want a string, got an array`,
			`wrong-type: attribute time: want a string, got a number`, `wrong-type: data_base64: want a string, got an object`}},

		{"nulls are unset", structured, with(`,"subject":null,"time":null,"datacontenttype":null,"dataschema":null,"x":null,"data_base64":null`), []string{one}},
		{"names that are none", structured, with(`,"My":{"a":1},"Subject":"s","my_attr":1,"UPPER":2`), []string{with(`,"unmapped":"{\"My\":{\"a\":1},\"Subject\":\"s\",\"my_attr\":1}","upper":2`)}},
		{"a time that is none", structured, with(`,"time":"soon"`), []string{with(`,"originaltime":"soon"`)}},
		{"partition key", batch, `[` + with(`,"subject":"s"`) + `,` + with(`,"subject":"s","partitionkey":"k"`) + `]`, []string{with(`,"subject":"s","partitionkey":"s"`), with(`,"subject":"s","partitionkey":"k"`)}},
		{"data of any type", batch, `[` + with(`,"data":null`) + `,` + with(`,"data":[ 1e400 , -0 ]`) + `,` + with(`,"data":"x"`) + `,` + with(`,"datacontenttype":"text/plain","data":"x"`) + `,` + with(`,"datacontenttype":"text/plain","data":{}`) + `]`, []string{
			with(`,"datacontenttype":"application/json","data":null`), with(`,"datacontenttype":"application/json","data":[ 1e400 , -0 ]`), with(`,"datacontenttype":"application/json","data":"x"`),
			with(`,"datacontenttype":"text/plain","data":"x"`), with(`,"datacontenttype":"text/plain","data":{}`)}},
		{"base64", batch, `[` + with(`,"datacontenttype":"application/json","data_base64":"eyJhIjoxfQ=="`) + `,` + with(`,"data_base64":"/wA="`) + `,` + with(`,"data_base64":"?"`) + `,` + with(`,"data":1,"data_base64":"AA=="`) + `]`, []string{
			with(`,"datacontenttype":"application/json","data":{"a":1}`), with(`,"data_base64":"/wA="`), `wrong-type: data_base64 is not base64`, `ambiguous: both data and data_base64 are set`}},

		// @azure/eventgrid-namespaces 1.0.0 declares any data like this
		// (recorded 2026-11).
		{"data declared like an event", structured, with(`,"datacontenttype":"application/cloudevents+json; charset=utf-8","data":{"a":1}`), []string{with(`,"datacontenttype":"application/cloudevents+json; charset=utf-8","data":{"a":1}`)}},
		{"text declared like an event", structured, with(`,"datacontenttype":"application/cloudevents+json; charset=utf-8","data":"x"`), []string{with(`,"datacontenttype":"application/cloudevents+json; charset=utf-8","data":"x"`)}},

		{"validation in odd case", structured, `{"specversion":"1.0","id":"1","source":"/s","type":"MICROSOFT.eventgrid.SubscriptionValidationEvent","data":{"validationCode":"c"}}`, []string{`validation c`}},
		{"validation without a code", structured, `{"specversion":"1.0","id":"1","source":"/s","type":"Microsoft.EventGrid.SubscriptionValidationEvent"}`, []string{
			`bad-handshake: data.validationCode is missing or not a string, so the subscription cannot be confirmed`}},
		{"validation with a long code", structured, `{"specversion":"1.0","id":"1","source":"/s","type":"Microsoft.EventGrid.SubscriptionValidationEvent","data":{"validationCode":"` + strings.Repeat("c", 1025) + `"}}`, []string{
			`bad-handshake: data.validationCode has 1025 bytes; at most 1024 are echoed`}},
		{"deletion that names nothing", structured, `{"specversion":"1.0","id":"1","source":"/s","type":"Microsoft.EventGrid.SubscriptionDeletedEvent","data":"x"}`, []string{`deletion `}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			results := cloudevents.Parse("src", schematest.Header(tt.head), []byte(tt.body))
			if d := cmp.Diff(tt.want, schematest.Briefs(results)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			for _, r := range results {
				invariants.Check(t, r)
			}
		})
	}
}

// TestIdentity is about what the router tells events apart by.
func TestIdentity(t *testing.T) {
	one := func(head, body string) event.Result {
		t.Helper()
		r := cloudevents.Parse("src", schematest.Header(head), []byte(body))
		if len(r) != 1 || r[0].Event == nil {
			t.Fatalf("no event: %v", schematest.Briefs(r))
		}
		return r[0]
	}
	const headers = "ce-specversion: 1.0\nce-id: 1\nce-source: https://Shop.example/x/Orders/\nce-type: a.B\nce-subject: s\nContent-Type: application/json\n"
	a := one(headers, `{"a":1,"b":2}`)
	if a.Key != "https://Shop.example/x/Orders/\n1" || a.Scope != "orders" || a.Name != "a.B" {
		t.Errorf("got key %q, scope %q, name %q", a.Key, a.Scope, a.Name)
	}
	if got := event.Subject(event.KindCloudEvents, "shop", a.Scope, a.Name); got != "events.cloudevents.shop.orders.a.B" {
		t.Errorf("got subject %s", got)
	}
	// The same again, in another mode.
	const inside = `{"specversion":"1.0","id":"1","source":"https://Shop.example/x/Orders/","type":"a.B","subject":"s","time":"2023-10-16T15:42:46Z","data": {"b": 2, "a": 1} }`
	for _, b := range []event.Result{one(structured, inside), one(batch, `[`+inside+`]`), one(headers+"ce-time: 2023-10-16T15:42:46Z", ` {"b":2,"a":1}`)} {
		if a.Key != b.Key || a.Digest != b.Digest {
			t.Errorf("got key %q and digest %s, want %q and %s", b.Key, b.Digest, a.Key, a.Digest)
		}
	}
	// Others that reuse the id.
	for _, b := range []event.Result{
		one(headers, `{"a":1,"b":3}`), one(headers, ``), one(strings.Replace(headers, "subject: s", "subject: S", 1), `{"a":1,"b":2}`), one(strings.Replace(headers, "a.B", "a.b", 1), `{"a":1,"b":2}`),
	} {
		if a.Key != b.Key || a.Digest == b.Digest {
			t.Errorf("got key %q and digest %s, want %q and another", b.Key, b.Digest, a.Key)
		}
	}
}

// TestHostile sends what no client does. Whatever the text, it must come
// through unharmed, in both modes, and no NATS subject may become a wildcard or
// a second line.
func TestHostile(t *testing.T) {
	for _, text := range []string{
		"\x00", "a\r\nb", "*", ">", "a.>", "..", " ", "%", "%0A", "\u2028", "\ufeff", "é😀", "\"\\", `"x"`, strings.Repeat("x", 64<<10), strings.Repeat("a.", 32<<10),
	} {
		for _, name := range []string{"id", "type", "subject", "source", "some"} {
			sent := &event.Event{ID: "1", Type: "t", Subject: "s", Source: "/s"}
			value := map[string]*string{"id": &sent.ID, "type": &sent.Type, "subject": &sent.Subject, "source": &sent.Source}[name]
			if value != nil {
				*value = text
			} else {
				sent.Set(name, text)
			}
			header := map[string][]string{}
			sent.Header(header)
			sent.Set(event.ExtPartitionKey, sent.Subject)
			for _, r := range [][]event.Result{cloudevents.Parse("src", header, nil), cloudevents.Parse("src", nil, sent.JSON())} {
				if len(r) != 1 || r[0].Event == nil {
					t.Fatalf("%s %.20q: no event: %v", name, text, schematest.Briefs(r))
				}
				if d := cmp.Diff(sent, r[0].Event); d != "" {
					t.Errorf("%s (-want +got):\n%.500s", name, d)
				}
				invariants.Check(t, r[0])
			}
		}
	}
}

func TestDeep(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 9000) + "1" + strings.Repeat("}", 9000)
	for _, r := range [][]event.Result{
		cloudevents.Parse("src", schematest.Header(required+"Content-Type: application/json"), []byte(deep)),
		cloudevents.Parse("src", nil, []byte(`[{`+least+`,"data":`+deep+`,"x":`+deep+`}]`)),
		cloudevents.Parse("src", nil, []byte(`{`+least+`,"datacontenttype":"a/json","data_base64":"`+base64.StdEncoding.EncodeToString([]byte(deep))+`"}`)),
	} {
		if len(r) != 1 || r[0].Event == nil || string(r[0].Event.Data) != deep {
			t.Fatalf("got %v", r[0].Fault)
		}
		invariants.Check(t, r[0])
	}
	tooDeep := strings.Repeat("[", 9999) + strings.Repeat("]", 9999)
	for _, data := range []string{`"data":` + tooDeep, `"datacontenttype":"a/json","data_base64":"` + base64.StdEncoding.EncodeToString([]byte(tooDeep)) + `"`} {
		got := schematest.Briefs(cloudevents.Parse("src", nil, []byte(`{`+least+`,`+data+`}`)))
		if d := cmp.Diff([]string{`invalid-event: the JSON is nested deeper than an event can carry`}, got); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
}

// TestDuplicateIDs: a batch may hold two events under one id, and one event
// twice.
func TestDuplicateIDs(t *testing.T) {
	r := cloudevents.Parse("src", nil, []byte(`[{`+least+`,"data":1},{`+least+`,"data":2},{`+least+`,"data":1}]`))
	if len(r) != 3 || r[0].Key != r[1].Key || r[0].Digest == r[1].Digest || r[0].Key != r[2].Key || r[0].Digest != r[2].Digest {
		t.Errorf("got %+v", r)
	}
}
