package event_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/event"
)

func TestSubject(t *testing.T) {
	long := strings.Repeat("x", 70000)
	tests := []struct{ name, kind, source, scope, event, want string }{
		{"fno", "fno", "prod", "usmf", "PurchaseOrderConfirmed", "events.fno.prod.usmf.PurchaseOrderConfirmed"},
		{"dots of the name separate", "eventgrid", "files", "mystore", "Microsoft.Storage.BlobCreated", "events.eventgrid.files.mystore.Microsoft.Storage.BlobCreated"},
		{"dots elsewhere do not", "eventgrid", "files", "a.b", "x", "events.eventgrid.files.a%2Eb.x"},
		{"empty", "fno", "prod", "", "", "events.fno.prod.-.-"},
		{"empty tokens of a name", "fno", "prod", "-", ".a..b.", "events.fno.prod.-.-.a.-.b.-"},
		{"wildcards, blanks, controls", "fno", "p", "*", "> a\r\n\x00\u00a0%", "events.fno.p.%2A.%3E%20a%0D%0A%00%C2%A0%25"},
		{"letters of any script", "fno", "p", "é", "Bestätigt", "events.fno.p.é.Bestätigt"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := event.Subject(tt.kind, tt.source, tt.scope, tt.event); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	for _, name := range []string{long, strings.Repeat("a.", 40000), strings.Repeat("ö", 40000), strings.Repeat("%", 600)} {
		a := event.Subject("fno", "prod", long, name+"1")
		b := event.Subject("fno", "prod", long, name+"2")
		if len(a) > event.MaxSubject || a == b || !strings.HasPrefix(a, "events.fno.prod.x") {
			t.Errorf("long names: %d bytes, distinct %v: %q", len(a), a != b, a)
		}
	}
}

func TestParseTime(t *testing.T) {
	for in, want := range map[string]string{
		"2017-08-16T01:57:26.005121Z":      "2017-08-16T01:57:26.005121Z",
		"2018-07-03T23:20:52.646434+00:00": "2018-07-03T23:20:52.646434Z",
		"2023-10-16T15:42:46.3440655":      "2023-10-16T15:42:46.3440655Z",
		"2023-10-16T15:42:46+02:00":        "2023-10-16T15:42:46+02:00",
		"2023-10-16 15:42:46z":             "2023-10-16T15:42:46Z",
	} {
		got, err := event.ParseTime(in)
		if err != nil || event.FormatTime(got) != want {
			t.Errorf("%s: got %v, %v, want %s", in, event.FormatTime(got), err, want)
		}
	}
	for _, in := range []string{"", "yesterday", "1700000000", "0000-01-01T00:00:00+10:00", "0000-06-01T00:00:00Z", "0000-12-31T23:00:00-05:00", "2023-13-01T00:00:00Z"} {
		if got, err := event.ParseTime(in); err == nil {
			t.Errorf("%q: got %v, want an error", in, got)
		}
	}
}

func full() *event.Event {
	e := &event.Event{
		ID: "a b\"%\n\x00ü", Source: "/s", Type: "t", Subject: "su",
		Time:            time.Date(2023, 10, 16, 15, 42, 46, 344065500, time.UTC),
		DataContentType: "application/json", DataSchema: "urn:x",
		Data: []byte(`{"n":9223372036854775807}`), DataJSON: true,
	}
	e.Set(event.ExtSource, "prod")
	e.Set(event.ExtLegalEntity, "usmf")
	e.SetExtension(event.Extension{Name: "count", Value: "5", Type: event.Integer})
	e.SetExtension(event.Extension{Name: "flag", Value: "true", Type: event.Boolean})
	return e
}

func TestRoundTrip(t *testing.T) {
	big := full()
	big.Subject = strings.Repeat("\n", 64<<10) // more than headers can hold
	text := full()
	text.DataContentType, text.Data, text.DataJSON = "text/plain", []byte("{not json"), false
	odd := full()
	odd.DataContentType = "text/plain" // and yet JSON
	binary := full()
	binary.DataContentType, binary.Data, binary.DataJSON = "application/json", []byte{0xff, 0}, false
	inner := full()
	inner.DataContentType = event.MediaStructured // data is itself an event
	inner.Data = full().JSON()
	bare := &event.Event{ID: "1", Source: "s", Type: "t"}
	for name, e := range map[string]*event.Event{"full": full(), "big": big, "text": text, "odd": odd, "binary": binary, "inner": inner, "bare": bare} {
		t.Run(name, func(t *testing.T) {
			h, body := e.Encode()
			size := 0
			for k, v := range h {
				size += len(k) + len(v[0]) + 4
				if strings.ContainsAny(v[0], "\r\n\x00") {
					t.Errorf("header %s holds a control character", k)
				}
			}
			if size > 60<<10 {
				t.Errorf("headers take %d bytes", size)
			}
			got, err := event.Decode(h, body)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(e, got); d != "" {
				t.Errorf("through NATS (-want +got):\n%s", d)
			}
			got, err = event.ParseJSON(e.JSON())
			if err != nil {
				t.Fatalf("%v\n%s", err, e.JSON())
			}
			if d := cmp.Diff(e, got); d != "" {
				t.Errorf("through JSON (-want +got):\n%s", d)
			}
		})
	}
}

func TestParseJSON(t *testing.T) {
	const ok = `"specversion":"1.0","id":"1","source":"/s","type":"t"`
	tests := []struct{ name, in, want string }{
		{"nulls are unset", `{` + ok + `,"subject":null,"x":null,"time":null}`,
			`{"specversion":"1.0","id":"1","source":"/s","type":"t"}`},
		{"no content type means JSON", `{` + ok + `,"data":"s"}`,
			`{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"application/json","data":"s"}`},
		{"what is no attribute is kept", `{` + ok + `,"Deep":{"a": 1},"My Name":"x","Count":7,"big":12345678901234,"empty":""}`,
			`{"specversion":"1.0","id":"1","source":"/s","type":"t","big":"12345678901234","count":7,"unmapped":"{\"Deep\":{\"a\":1},\"My Name\":\"x\",\"empty\":\"\"}"}`},
		{"integers are of 32 bits", `{` + ok + `,"a":2147483647,"b":-2147483648,"c":2147483648,"d":-2147483649,"e":1000000000,"f":-0,"g":1e3,"h":0}`,
			`{"specversion":"1.0","id":"1","source":"/s","type":"t","a":2147483647,"b":-2147483648,"c":"2147483648","d":"-2147483649","e":1000000000,"f":"-0","g":"1e3","h":0}`},
		{"empty data is none", `{` + ok + `,"datacontenttype":"text/plain","data":""}`,
			`{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"text/plain"}`},
		{"a time nobody can read", `{` + ok + `,"time":"soon"}`,
			`{"specversion":"1.0","id":"1","source":"/s","type":"t","originaltime":"soon"}`},
		{"the same member twice", `{` + ok + `,"specversion":"1.0"}`,
			`{"specversion":"1.0","id":"1","source":"/s","type":"t"}`},
		{"ambiguous id", `{` + ok + `,"id":"2"}`, `not-an-event: member "id" stands twice with different values`},
		{"old version", `{"specversion":"0.3","id":"1","source":"/s","type":"t"}`, `unsupported: specversion is "0.3"; only CloudEvents 1.0 is understood`},
		{"id missing", `{"specversion":"1.0","id":"","source":"/s","type":"t"}`, `missing-member: attribute id is missing or empty`},
		{"wrong type", `{"specversion":"1.0","id":7,"source":"/s","type":"t"}`, `wrong-type: attribute id: want a string, got a number`},
		{"both kinds of data", `{` + ok + `,"data":1,"data_base64":"AA=="}`, `ambiguous: both data and data_base64 are set`},
		{"not base64", `{` + ok + `,"data_base64":"…"}`, `wrong-type: data_base64 is not base64`},
		{"content type of two lines", `{` + ok + `,"datacontenttype":"a\r\nb: c"}`, `invalid-event: attribute datacontenttype is not a media type`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			e, err := event.ParseJSON([]byte(tt.in))
			if err != nil {
				got = err.Error()
			} else {
				got = string(e.JSON())
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestDecodeDoubtsTypes(t *testing.T) {
	e, err := event.Decode(map[string][]string{
		"ce-specversion": {"1.0"}, "ce-id": {"1"}, "ce-source": {"s"}, "ce-type": {"t"},
		"ce-a": {"x"}, "ce-b": {"7"}, "ce-c": {"007"}, "ce-d": {"+7"}, "Gridfan-Types": {"a=integer,b=integer,c=integer,d=integer"},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(e.JSON()), `{"specversion":"1.0","id":"1","source":"s","type":"t","a":"x","b":7,"c":"007","d":"+7"}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestDigest(t *testing.T) {
	a := event.Digest("t", "s", []byte(`{"a":1,"b":2}`), true)
	if b := event.Digest("t", "s", []byte("{ \"b\": 2,\n\"a\": 1 }"), true); a != b {
		t.Error("layout changes the digest")
	}
	for _, b := range []string{
		event.Digest("t", "s", []byte(`{"a":1,"b":2.0}`), true),
		event.Digest("ts", "", []byte(`{"a":1,"b":2}`), true),
		event.Digest("t", "", []byte(`{"a":1,"b":2}`), true),
	} {
		if a == b {
			t.Error("different events have the same digest")
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("id", "src", "type", "text/plain", "ext", "val%20ue", []byte("data"))
	f.Add("id", "s", "t", "", "empty", "", []byte("0"))
	f.Add("%00", "s", "t", "application/json", "gridfansource", "x", []byte("{}"))
	f.Add("", "", "", event.MediaStructured, "", "", full().JSON())
	f.Fuzz(func(t *testing.T, id, source, typ, ct, name, value string, body []byte) {
		h := map[string][]string{"ce-specversion": {"1.0"}, "ce-id": {id}, "ce-source": {source}, "CE-Type": {typ}, "content-type": {ct}, "ce-" + name: {value}}
		e, err := event.Decode(h, body)
		if err != nil {
			return
		}
		h2, body2 := e.Encode()
		again, err := event.Decode(h2, body2)
		if err != nil {
			t.Fatalf("%v: %+v", err, e)
		}
		if d := cmp.Diff(e, again); d != "" {
			t.Errorf("(-first +again):\n%s", d)
		}
	})
}

func FuzzParseJSON(f *testing.F) {
	f.Add(full().JSON())
	f.Add([]byte(`{"specversion":"1.0","id":"1","source":"/s","type":"t","A":1,"a":2,"data":{"x":1e400}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := event.ParseJSON(raw)
		if err != nil {
			return
		}
		again, err := event.ParseJSON(e.JSON())
		if err != nil {
			t.Fatalf("%v\n%s", err, e.JSON())
		}
		if d := cmp.Diff(e, again); d != "" {
			t.Errorf("(-first +again):\n%s", d)
		}
	})
}
