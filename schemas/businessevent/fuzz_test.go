package businessevent_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/businessevent"
	"github.com/gridfan/gridfan/schemas/event"
)

// sameBytes spares go-cmp the megabytes, which it would go through one by one.
var sameBytes = cmp.Comparer(func(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) })

// check tests what holds for every result of any body.
func check(t *testing.T, r event.Result) {
	t.Helper()
	n := 0
	for _, set := range []bool{r.Event != nil, r.Control != nil, r.Fault != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		t.Fatalf("%d of Event, Control and Fault are set", n)
	}
	if r.Event == nil {
		return
	}
	if err := r.Event.Validate(); err != nil {
		t.Errorf("invalid: %v", err)
	}
	if r.Key == "" || r.Digest == "" {
		t.Error("no identity")
	}
	subject := event.Subject(event.KindFnO, "src", r.Scope, r.Name)
	if len(subject) > event.MaxSubject || strings.ContainsAny(subject, "*> \t\r\n\x00") {
		t.Errorf("bad subject %q", subject)
	}
	e := r.Event.Clone()
	e.Set(event.ExtSource, "src") // as the router does before it publishes
	got, err := event.Decode(e.Encode())
	if err != nil {
		t.Fatalf("decode: %v", err)
	}
	if d := cmp.Diff(e, got, sameBytes); d != "" {
		t.Errorf("through NATS (-want +got):\n%s", d)
	}
	got, err = event.ParseJSON(e.JSON())
	if err != nil {
		t.Fatalf("parse: %v", err)
	}
	if d := cmp.Diff(e, got, sameBytes); d != "" {
		t.Errorf("through JSON (-want +got):\n%s", d)
	}
}

func FuzzParse(f *testing.F) {
	for _, g := range goldens(f) {
		f.Add(g.body)
	}
	f.Add([]byte(`{"EventId":"{c}","ControlNumber":-9223372036854775808,"EventTime":"\/Date(-1+0200)\/","Company":"\ud800"}`))
	f.Add([]byte(`{"specversion":"1.0","id":"1","source":"s","type":"A","datacontenttype":"text/plain","data":"{\"EventId\":\"1\"}","legalentity":"X","unmapped":"y","envelopesource":"z"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		before := string(body)
		results := businessevent.Parse("src", nil, body)
		again := businessevent.Parse("src", nil, body)
		if len(results) != len(again) {
			t.Fatalf("%d results, then %d", len(results), len(again))
		}
		for i, r := range results {
			check(t, r)
			if r.Key != again[i].Key || r.Digest != again[i].Digest {
				t.Errorf("identity changes: %q %s, then %q %s", r.Key, r.Digest, again[i].Key, again[i].Digest)
			}
		}
		if string(body) != before {
			t.Error("the body was changed")
		}
	})
}
