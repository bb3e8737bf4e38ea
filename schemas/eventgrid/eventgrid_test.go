package eventgrid_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
	"github.com/gridfan/gridfan/schemas/schematest"
)

func TestParse(t *testing.T) {
	const (
		min   = `"id":"1","eventType":"t"`
		out   = `{"specversion":"1.0","id":"1","source":"/gridfan/src","type":"t"`
		event = out + `}`
	)
	tests := []struct {
		name, body string
		want       []string
	}{
		{"empty array", `[]`, nil},
		{"null", `null`, nil},
		{"nothing", ``, []string{`not-json: the body is empty`}},
		{"cut off", `[{` + min + `},{"id"`, []string{`not-json: the JSON ends early, at byte 33`}},
		{"two bodies", `{` + min + `}{}`, []string{`not-json: there is more after the JSON value`}},
		{"NUL", "\x00", []string{`not-json: not JSON at byte 0`}},
		{"UTF-16", "\xff\xfe{\x00}\x00", []string{`not-json: not JSON at byte 0`}},
		{"not objects", `[1,"x",null,[]]`, []string{
			`not-an-event: want a JSON object, got a number`, `not-an-event: want a JSON object, got a string`,
			`not-an-event: want a JSON object, got null`, `not-an-event: want a JSON object, got an array`}},
		{"no schema", `{"a":1}`, []string{`not-an-event: neither eventType (Event Grid schema) nor specversion (CloudEvents) is there; send one of these schemas`}},

		{"least", `{` + min + `}`, []string{event}},
		{"nulls are unset", `{` + min + `,"topic":null,"source":null,"subject":null,"eventTime":null,"dataVersion":null,"x":null}`, []string{event}},
		{"empty is unset", `{` + min + `,"topic":"","source":"","subject":"","eventTime":"","dataVersion":""}`, []string{event}},
		{"a null date", `{` + min + `,"eventTime":"1900-01-01T00:00:00Z"}`, []string{event}},
		{"the other null date", `{` + min + `,"eventTime":"0001-01-01T00:00:00"}`, []string{event}},
		{"no zone", `{` + min + `,"eventTime":"2023-10-16T15:42:46.3440655"}`, []string{out + `,"time":"2023-10-16T15:42:46.3440655Z"}`}},
		{"no time at all", `{` + min + `,"eventTime":"soon"}`, []string{out + `,"originaltime":"soon"}`}},
		{"the year 0", `{` + min + `,"eventTime":"0000-06-01T00:00:00Z"}`, []string{out + `,"originaltime":"0000-06-01T00:00:00Z"}`}},
		{"id missing", `{"eventType":"t"}`, []string{`missing-member: member id is missing or empty`}},
		{"id empty", `{"id":"","eventType":"t"}`, []string{`missing-member: member id is missing or empty`}},
		{"type missing", `{"id":"1","eventType":null}`, []string{`missing-member: member eventType is missing or empty`}},
		{"wrong types", `[{"id":1,"eventType":"t"},{"id":"1","eventType":{}},{` + min + `,"subject":[]},{` + min + `,"topic":true},{` + min + `,"eventTime":0}]`, []string{
			`wrong-type: member id: want a string, got a number`, `wrong-type: member eventType: want a string, got an object`,
			`wrong-type: member subject: want a string, got an array`, `wrong-type: member topic: want a string, got a boolean`,
			`wrong-type: member eventTime: want a string, got a number`}},
		{"half a character", `{"id":"\ud800","eventType":"t"}`, []string{`wrong-type: member id holds half of a surrogate pair, which is no text`}},
		{"an id twice, the same", `{` + min + `,"id":"1"}`, []string{event}},
		{"an id twice, different", `[{` + min + `,"id":"2"},{` + min + `}]`, []string{`not-an-event: member "id" stands twice with different values`, event}},
		{"a bad byte costs its element only", "[{\"id\":\"\xff\",\"eventType\":\"t\"},{" + min + "}]", []string{`not-an-event: the text is not valid UTF-8`, event}},

		{"source of its own", `{` + min + `,"source":"/a/B"}`, []string{strings.Replace(event, "/gridfan/src", "/a/B", 1)}},
		{"topic and source", `{` + min + `,"topic":"/t","source":"/s"}`, []string{`{"specversion":"1.0","id":"1","source":"/t","type":"t","egsource":"/s"}`}},
		{"source that is no text", `{` + min + `,"source":{"a":1}}`, []string{out + `,"unmapped":"{\"egsource\":{\"a\":1}}"}`}},
		{"versions", `{` + min + `,"dataVersion":"1.0","metadataVersion":"1"}`, []string{out + `,"dataversion":"1.0","metadataversion":"1"}`}},
		{"a version that is a number", `{` + min + `,"dataVersion":2}`, []string{out + `,"dataversion":2}`}},
		{"more members", `{` + min + `,"publishTime":"x","deliveryAttempts":1,"Deep":{"a": 1},"big":9223372036854775807,"flag":true}`, []string{
			out + `,"big":"9223372036854775807","deliveryattempts":1,"flag":true,"publishtime":"x","unmapped":"{\"Deep\":{\"a\":1}}"}`}},
		{"partition key", `[{` + min + `,"subject":"s"},{` + min + `,"subject":"s","partitionKey":"k"}]`, []string{
			`{"specversion":"1.0","id":"1","source":"/gridfan/src","type":"t","subject":"s","partitionkey":"s"}`,
			`{"specversion":"1.0","id":"1","source":"/gridfan/src","type":"t","subject":"s","partitionkey":"k"}`}},
		{"data of any type", `[{` + min + `,"data":null},{` + min + `,"data":[ 1e400 , -0 ]},{` + min + `,"data":"x"},{` + min + `,"data":{"n":-9223372036854775808,"n":2}}]`, []string{
			out + `,"datacontenttype":"application/json","data":null}`, out + `,"datacontenttype":"application/json","data":[ 1e400 , -0 ]}`,
			out + `,"datacontenttype":"application/json","data":"x"}`, out + `,"datacontenttype":"application/json","data":{"n":-9223372036854775808,"n":2}}`}},

		{"both schemas with a type", `{` + min + `,"specversion":"1.0","source":"/s","type":"ce"}`, []string{
			`{"specversion":"1.0","id":"1","source":"/s","type":"ce","eventtype":"t"}`}},
		{"both schemas without a type", `{` + min + `,"specversion":"1.0"}`, []string{out + `,"unmapped":"{\"specversion\":\"1.0\"}"}`}},
		{"CloudEvents without source", `{"specversion":"1.0","id":"1","type":"t"}`, []string{`missing-member: attribute source is missing or empty`}},
		{"CloudEvents without type", `{"specversion":"1.0","id":"1","source":"/s"}`, []string{`missing-member: attribute type is missing or empty`}},
		{"a mix", `[{` + min + `},{"specversion":"1.0","id":"1","source":"/s","type":"ce"},7]`, []string{
			event, `{"specversion":"1.0","id":"1","source":"/s","type":"ce"}`, `not-an-event: want a JSON object, got a number`}},

		{"validation in odd case", `{"id":"1","eventType":"MICROSOFT.eventgrid.SubscriptionValidationEvent","data":{"validationCode":"c"}}`, []string{`validation c`}},
		{"validation without a code", `{"id":"1","eventType":"Microsoft.EventGrid.SubscriptionValidationEvent","data":{}}`, []string{
			`bad-handshake: data.validationCode is missing or not a string, so the subscription cannot be confirmed`}},
		{"validation without data", `{"id":"1","eventType":"Microsoft.EventGrid.SubscriptionValidationEvent"}`, []string{
			`bad-handshake: data.validationCode is missing or not a string, so the subscription cannot be confirmed`}},
		{"validation with a number", `{"specversion":"1.0","id":"1","source":"/s","type":"Microsoft.EventGrid.SubscriptionValidationEvent","data":{"validationCode":7}}`, []string{
			`bad-handshake: data.validationCode is missing or not a string, so the subscription cannot be confirmed`}},
		{"validation with a long code", `{"id":"1","eventType":"Microsoft.EventGrid.SubscriptionValidationEvent","data":{"validationCode":"` + strings.Repeat("c", 1025) + `"}}`, []string{
			`bad-handshake: data.validationCode has 1025 bytes; at most 1024 are echoed`}},
		{"deletion that names nothing", `{"id":"1","eventType":"Microsoft.EventGrid.SubscriptionDeletedEvent","data":"x"}`, []string{`deletion `}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := schematest.Briefs(eventgrid.Parse("src", nil, []byte(tt.body)))
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestBinaryMode(t *testing.T) {
	got := schematest.Briefs(eventgrid.Parse("src", map[string][]string{"Ce-Specversion": {"1.0"}}, []byte(`{"message":"Hello World!"}`)))
	want := []string{`unsupported: CloudEvents in binary mode (ce- headers); sources of kind cloudevents take these, this one application/cloudevents+json`}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestIdentity is about what the router tells events apart by.
func TestIdentity(t *testing.T) {
	one := func(body string) event.Result {
		t.Helper()
		r := eventgrid.Parse("src", nil, []byte(body))
		if len(r) != 1 || r[0].Event == nil {
			t.Fatalf("no event: %v", schematest.Briefs(r))
		}
		return r[0]
	}
	a := one(`{"id":"1","topic":"/x/Store","eventType":"a.B","subject":"s","eventTime":"2023-10-16T15:42:46Z","data":{"a":1,"b":2}}`)
	if a.Key != "/x/Store\n1" || a.Scope != "store" || a.Name != "a.B" {
		t.Errorf("got key %q, scope %q, name %q", a.Key, a.Scope, a.Name)
	}
	// The same again, in other words and in the other schema.
	for _, body := range []string{
		`{ "data": {"b": 2, "a": 1}, "eventType":"a.B","subject":"s","topic":"/x/Store","id":"1" }`,
		`{"specversion":"1.0","id":"1","source":"/x/Store","type":"a.B","subject":"s","data":{"a":1,"b":2}}`,
	} {
		if b := one(body); a.Key != b.Key || a.Digest != b.Digest {
			t.Errorf("%s: got key %q and digest %s, want %q and %s", body, b.Key, b.Digest, a.Key, a.Digest)
		}
	}
	// Others that reuse the id.
	for _, body := range []string{
		`{"id":"1","topic":"/x/Store","eventType":"a.B","subject":"s","data":{"a":1,"b":3}}`,
		`{"id":"1","topic":"/x/Store","eventType":"a.B","subject":"S","data":{"a":1,"b":2}}`,
		`{"id":"1","topic":"/x/Store","eventType":"a.b","subject":"s","data":{"a":1,"b":2}}`,
		`{"id":"1","topic":"/x/Store","eventType":"a.B","subject":"s"}`,
	} {
		if b := one(body); a.Key != b.Key || a.Digest == b.Digest {
			t.Errorf("%s: got key %q and digest %s, want %q and another", body, b.Key, b.Digest, a.Key)
		}
	}
	// Without a source, the scope says so.
	if b := one(`{"id":"1","eventType":"t"}`); b.Key != "/gridfan/src\n1" || b.Scope != "" {
		t.Errorf("got key %q, scope %q", b.Key, b.Scope)
	}
}

func jsonQuote(s string) string {
	b, err := jsontext.AppendQuote(nil, s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// TestHostile sends what no service does. Whatever the text, it must come
// through unharmed, and no NATS subject may become a wildcard or a second line.
func TestHostile(t *testing.T) {
	for _, text := range []string{
		"\x00", "a\r\nb", "*", ">", "a.>", "..", " ", "%", "%0A", "\u2028", "\ufeff", "é😀", "\"\\", strings.Repeat("x", 64<<10), strings.Repeat("a.", 32<<10),
	} {
		for _, member := range []string{"id", "eventType", "subject", "topic"} {
			values := map[string]string{"id": "1", "eventType": "t", "subject": "s", "topic": "/t"}
			values[member] = text
			var body strings.Builder
			body.WriteString("{")
			for i, name := range []string{"id", "eventType", "subject", "topic"} {
				if i > 0 {
					body.WriteString(",")
				}
				body.WriteString(fmt.Sprintf("%q:%s", name, jsonQuote(values[name])))
			}
			r := eventgrid.Parse("src", nil, []byte(body.String()+"}"))
			if len(r) != 1 || r[0].Event == nil {
				t.Fatalf("%s %.20q: no event: %v", member, text, r[0].Fault)
			}
			e := r[0].Event
			got := map[string]string{"id": e.ID, "eventType": e.Type, "subject": e.Subject, "topic": e.Source}[member]
			if got != text {
				t.Errorf("%s: got %.40q, want %.40q", member, got, text)
			}
			invariants.Check(t, r[0])
		}
	}
}

func TestDeep(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 9000) + "1" + strings.Repeat("}", 9000)
	r := eventgrid.Parse("src", nil, []byte(`[{"id":"1","eventType":"t","data":`+deep+`,"x":`+deep+`}]`))
	if len(r) != 1 || r[0].Event == nil || string(r[0].Event.Data) != deep {
		t.Fatalf("got %v", r[0].Fault)
	}
	invariants.Check(t, r[0])
	tooDeep := strings.Repeat(`[`, 11000) + strings.Repeat("]", 11000)
	r = eventgrid.Parse("src", nil, []byte(`{"id":"1","eventType":"t","data":`+tooDeep+`}`))
	if len(r) != 1 || r[0].Fault == nil || r[0].Fault.Code != event.FaultNotJSON {
		t.Errorf("got %v", schematest.Briefs(r))
	}
}

// TestDuplicateIDs: a batch may hold two events under one id, and one event
// twice.
func TestDuplicateIDs(t *testing.T) {
	r := eventgrid.Parse("src", nil, []byte(`[{"id":"1","eventType":"t","data":1},{"id":"1","eventType":"t","data":2},{"id":"1","eventType":"t","data":1}]`))
	if len(r) != 3 || r[0].Key != r[1].Key || r[0].Digest == r[1].Digest || r[0].Key != r[2].Key || r[0].Digest != r[2].Digest {
		t.Errorf("got %+v", r)
	}
}
