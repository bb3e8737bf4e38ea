package ingress_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
)

// withMember is a good event with one member changed or added, as raw JSON.
func withMember(id, name, value string) string {
	members := []string{
		`"topic":"/topics/shop"`, `"subject":"orders/1"`, `"eventType":"Order.Placed"`,
		`"eventTime":"2026-11-01T10:00:00Z"`, `"data":{"n":1}`, `"dataVersion":"1"`, fmt.Sprintf(`"id":%q`, id),
	}
	out := []string{fmt.Sprintf("%q:%s", name, value)}
	for _, m := range members {
		if !strings.HasPrefix(m, fmt.Sprintf("%q:", name)) {
			out = append(out, m)
		}
	}
	return "[{" + strings.Join(out, ",") + "}]"
}

func text(s string) io.Reader { return strings.NewReader(s) }

// onlyReader hides the length, so that the body is sent in chunks.
type onlyReader struct{ io.Reader }

func gzipped(s string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = io.WriteString(w, s) // into memory
	w.Close()
	return b.String()
}

// TestQuarantine posts what nobody can understand: the sender is told 200,
// because 400 is final for Event Grid, and the bytes are kept.
func TestQuarantine(t *testing.T) {
	e := open(t)
	const nested = 100_000
	for _, tt := range []struct {
		name, source, body string
		header             map[string]string
		fault              event.FaultCode
		raw                string // what is kept; empty: the body
	}{
		{name: "truncated", body: good("q1")[:80], fault: event.FaultNotJSON},
		{name: "truncated business event", source: "fo", body: `{"BusinessEventId":"X","EventId":`, fault: event.FaultNotJSON},
		{name: "no JSON", body: "hello", fault: event.FaultNotJSON},
		{name: "empty body", body: "", fault: event.FaultNotJSON},
		{name: "blank body", body: " \n", fault: event.FaultNotJSON},
		{name: "two values", body: good("q2") + good("q3"), fault: event.FaultNotJSON},
		{name: "nested too deep", body: strings.Repeat("[", nested) + strings.Repeat("]", nested), fault: event.FaultNotJSON},
		{name: "data nested too deep", body: withMember("q4", "data", strings.Repeat("[", nested)+strings.Repeat("]", nested)), fault: event.FaultNotJSON},
		{name: "a number", body: "17", fault: event.FaultNotEvent},
		{name: "an array of a number", body: "[18]", raw: "18", fault: event.FaultNotEvent},
		{name: "an empty object", body: "[{}]", raw: "{}", fault: event.FaultNotEvent},
		{name: "an empty object to fno", source: "fo", body: "{}", fault: event.FaultNotEvent},
		{name: "id is a number", body: withMember("", "id", "5"), fault: event.FaultType},
		{name: "eventType is an object", body: withMember("q5", "eventType", "{}"), fault: event.FaultType},
		{name: "subject is an array", body: withMember("q6", "subject", "[]"), fault: event.FaultType},
		{name: "id is empty", body: withMember("", "id", `""`), fault: event.FaultMissing},
		{name: "id is null", body: withMember("", "id", "null"), fault: event.FaultMissing},
		{name: "id twice", body: `[{"id":"q7","id":"q8","eventType":"T","data":1}]`, fault: event.FaultNotEvent},
		{name: "BusinessEventId is a number", source: "fo", body: `{"BusinessEventId":1,"EventId":"Q9"}`, fault: event.FaultType},
		{name: "invalid UTF-8", body: withMember("q10", "subject", "\"a\xff\xfe\""), fault: event.FaultNotEvent},
		{name: "half a surrogate pair", body: withMember("q11", "subject", `"\ud800"`), fault: event.FaultType},
		{name: "broken gzip", body: gzipped(good("q12"))[:40], header: map[string]string{"Content-Encoding": "gzip"}, fault: event.FaultEncodedBody},
		{name: "gzip that is none", body: good("q12"), header: map[string]string{"Content-Encoding": "gzip"}, fault: event.FaultEncodedBody},
		{name: "deflate", body: "x\x9c\x8b\x8e\x05\x00\x01\x15\x00\xb9", header: map[string]string{"Content-Encoding": "deflate"}, fault: event.FaultEncodedBody},
		{name: "gzip twice", body: gzipped(gzipped(good("q12"))), header: map[string]string{"Content-Encoding": "gzip, gzip"}, fault: event.FaultEncodedBody},
		{name: "Brotli", body: "\x0b\x02\x80hello\x03", header: map[string]string{"Content-Encoding": "br"}, fault: event.FaultEncodedBody},
		{name: "gzip without saying so", body: gzipped(good("q13")), fault: event.FaultNotJSON},
		{name: "XML", body: "<event/>", header: map[string]string{"Content-Type": "text/xml"}, fault: event.FaultNotJSON},
		{name: "validation without a code", body: withMember("q14", "eventType", `"Microsoft.EventGrid.SubscriptionValidationEvent"`), fault: event.FaultControlFailed},
		{name: "CloudEvents in binary mode", body: `{"a":1}`, header: map[string]string{"ce-specversion": "1.0", "ce-id": "1"}, fault: event.FaultUnsupported},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e.t = t
			source := tt.source
			if source == "" {
				source = "eg"
			}
			before := len(e.stored(broker.StreamQuarantine))
			a := e.do(request{path: "/ingress/" + source, header: tt.header, body: text(tt.body)})
			if a.status != http.StatusOK || a.header.Get("Content-Type") != "application/json" {
				t.Fatalf("HTTP %d %s %s", a.status, a.header.Get("Content-Type"), a.body)
			}
			if a.field(t, "received") != 1.0 || a.field(t, "quarantined") != 1.0 || a.field(t, "published") != 0.0 {
				t.Fatalf("answer %s", a.body)
			}
			faults, _ := a.field(t, "faults").([]any)
			if len(faults) != 1 || faults[0].(map[string]any)["code"] != string(tt.fault) {
				t.Errorf("faults %v, want %s", faults, tt.fault)
			}
			held := e.stored(broker.StreamQuarantine)
			if len(held) != before+1 {
				t.Fatalf("%d entries more in quarantine, want 1", len(held)-before)
			}
			m, want := held[len(held)-1], tt.raw
			if want == "" {
				want = strings.Trim(tt.body, "[]")
				if tt.fault == event.FaultNotJSON || tt.fault == event.FaultEncodedBody {
					want = tt.body
				}
			}
			if string(m.Data) != want {
				t.Errorf("kept %.200q, want %.200q", m.Data, want)
			}
			if m.Subject != broker.Quarantine(source) || m.Header.Get("Gridfan-Reason") != string(tt.fault) {
				t.Errorf("kept on %s with reason %s", m.Subject, m.Header.Get("Gridfan-Reason"))
			}
			e.works()
		})
	}
}

// TestHostileEvents posts events that are odd but right: they go through, on
// subjects that no broker refuses.
func TestHostileEvents(t *testing.T) {
	long := strings.Repeat("x", 64<<10)
	e := open(t)
	for _, tt := range []struct {
		name, body string
		data       string // as it must be stored
	}{
		{name: "NUL in the id", body: withMember("", "id", `"a\u0000b"`)},
		{name: "NUL in the type", body: withMember("h1", "eventType", `"a\u0000b"`)},
		{name: "NUL in the subject", body: withMember("h2", "subject", `"a\u0000b"`)},
		{name: "wildcards in the type", body: withMember("h3", "eventType", `"*.>.a*b.>"`)},
		{name: "wildcards in the topic", body: withMember("h4", "topic", `"/a/*.>"`)},
		{name: "dots in the type", body: withMember("h5", "eventType", `"..a..b.."`)},
		{name: "newlines in the id", body: withMember("", "id", `"a\r\nNats-Msg-Id: x\r\n\r\nPUB x 1\r\n"`)},
		{name: "newlines in the type", body: withMember("h6", "eventType", `"a\r\n-ERR\r\nb c"`)},
		{name: "newlines in the subject", body: withMember("h7", "subject", `"a\r\nce-id: 2\r\nb"`)},
		{name: "newlines in the topic", body: withMember("h8", "topic", `"/a\r\nb c\td"`)},
		{name: "newlines in a member's name", body: withMember("h9", `a\r\nb`, `"c\r\nd"`)},
		{name: "64 KiB in the id", body: withMember("", "id", `"`+long+`"`)},
		{name: "64 KiB in the type", body: withMember("h10", "eventType", `"`+long+`"`)},
		{name: "64 KiB of dots in the type", body: withMember("h11", "eventType", `"`+strings.Repeat("a.", 32<<10)+`"`)},
		{name: "64 KiB in the subject", body: withMember("h12", "subject", `"`+long+`"`)},
		{name: "64 KiB in the topic", body: withMember("h13", "topic", `"/`+long+`"`)},
		{name: "a member of 64 KiB", body: withMember("h14", "own", `"`+long+`"`)},
		{name: "a member whose name has 64 KiB", body: withMember("h15", long, `1`)},
		{name: "emoji", body: withMember("h16", "eventType", `"🚚.\u00e9"`)},
		{
			name: "numbers at the ends of int64",
			body: withMember("h17", "data", `{"min":-9223372036854775808,"max":9223372036854775807,"u":18446744073709551615,"m":90055.60,"e":1E400}`),
			data: `{"min":-9223372036854775808,"max":9223372036854775807,"u":18446744073709551615,"m":90055.60,"e":1E400}`,
		},
		{name: "data twice the same", body: withMember("h18", "data", `{"a":1},"data":{"a":1}`), data: `{"a":1}`},
		{name: "members of data twice", body: withMember("h19", "data", `{"a":1,"a":2}`), data: `{"a":1,"a":2}`},
		{name: "no data", body: `{"id":"h20","eventType":"T"}`},
		{name: "data nested deep", body: withMember("h21", "data", strings.Repeat("[", 1000)+strings.Repeat("]", 1000)), data: strings.Repeat("[", 1000) + strings.Repeat("]", 1000)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e.t = t
			a := e.do(request{path: "/ingress/eg", body: text(tt.body)})
			if a.status != http.StatusOK || a.field(t, "published") != 1.0 {
				t.Fatalf("HTTP %d %s", a.status, a.body)
			}
			stored := e.stored(broker.StreamEvents)
			m := stored[len(stored)-1]
			if !strings.HasPrefix(m.Subject, "events.eventgrid.eg.") || len(m.Subject) > event.MaxSubject || strings.ContainsAny(m.Subject, "*> \r\n\x00") {
				t.Errorf("subject %q", m.Subject)
			}
			got, err := event.Decode(m.Header, m.Data)
			if err != nil {
				t.Fatalf("not a CloudEvent: %v", err)
			}
			if tt.data != "" && string(got.Data) != tt.data {
				t.Errorf("data %s", got.Data)
			}
			if tt.data == "" && got.Data != nil && string(got.Data) != `{"n":1}` {
				t.Errorf("data %s", got.Data)
			}
			e.works()
		})
	}
}

// TestOneBadElement keeps the neighbours of a bad element.
func TestOneBadElement(t *testing.T) {
	e := open(t)
	one := func(id string) string { return strings.Trim(good(id), "[]") }
	a := e.do(request{path: "/ingress/eg", body: text("[" + one("n1") + `,{"id":5,"eventType":"T"},` + one("n2") + "," + one("n1") + "]")})
	for name, want := range map[string]float64{"received": 4, "published": 2, "duplicate": 1, "quarantined": 1, "control": 0} {
		if got := a.field(t, name); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if a := e.do(request{path: "/ingress/eg", body: text("[]")}); a.status != http.StatusOK || a.field(t, "received") != 0.0 {
		t.Errorf("an empty array: HTTP %d %s", a.status, a.body)
	}
}

// TestLargestBatch posts as many events at once as Event Grid may
// (maxEventsPerBatch, learn.microsoft.com; read 2026-11).
func TestLargestBatch(t *testing.T) {
	e := open(t)
	var batch strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&batch, `,{"id":"b%d","eventType":"T","subject":"s","data":{"n":%d}}`, i, i)
	}
	for _, result := range []string{"published", "duplicate"} {
		a := e.do(request{path: "/ingress/eg", body: text("[" + batch.String()[1:] + "]")})
		if a.status != http.StatusOK || a.field(t, result) != 5000.0 {
			t.Fatalf("HTTP %d %s, want 5000 %s", a.status, a.body, result)
		}
	}
}
