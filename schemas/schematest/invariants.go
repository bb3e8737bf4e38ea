package schematest

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/event"
)

// Invariants are what holds for every result of a parser, whatever it reads.
type Invariants struct {
	Kind string // of the source
	// Layout is set where JSON data can have white space around it. That
	// survives only as a message's payload, not as a member of an object.
	Layout bool
	// Also checks what holds for this parser alone; it may be nil.
	Also func(t *testing.T, r event.Result)
}

// Check tests one result: it is exactly one of event, control and fault, and
// an event is valid, has an identity and a subject that is no wildcard, and
// comes back unchanged from the stream and from JSON.
func (v Invariants) Check(t *testing.T, r event.Result) {
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
	if v.Also != nil {
		v.Also(t, r)
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
	subject := event.Subject(v.Kind, Source, r.Scope, r.Name)
	if len(subject) > event.MaxSubject || strings.ContainsAny(subject, "*> \t\r\n\x00") {
		t.Errorf("bad subject %q", subject)
	}
	e := r.Event.Clone()
	e.Set(event.ExtSource, Source) // as the router does before it publishes
	wantNATS, wantJSON := e, e
	if v.Layout {
		wantJSON = layoutGone(e)
		if strings.HasPrefix(strings.ToLower(e.DataContentType), event.MediaStructured) {
			wantNATS = wantJSON // it went in structured mode
		}
	}
	got, err := event.Decode(e.Encode())
	if err != nil {
		t.Fatalf("decode: %v", err)
	}
	if d := cmp.Diff(wantNATS, got, sameBytes); d != "" {
		t.Errorf("through NATS (-want +got):\n%s", d)
	}
	got, err = event.ParseJSON(e.JSON())
	if err != nil {
		t.Fatalf("parse: %v", err)
	}
	if d := cmp.Diff(wantJSON, got, sameBytes); d != "" {
		t.Errorf("through JSON (-want +got):\n%s", d)
	}
}

// sameBytes spares go-cmp the megabytes, which it would go through one by one.
var sameBytes = cmp.Comparer(func(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) })

// layoutGone gives e without the white space around its JSON data.
func layoutGone(e *event.Event) *event.Event {
	if e.DataJSON {
		e = e.Clone()
		e.Data = bytes.Trim(e.Data, " \t\r\n")
	}
	return e
}

// Request checks every result of a request, that parsing it again gives the
// same identities and faults, and that the body is left as it was.
func (v Invariants) Request(t *testing.T, p Parser, header map[string][]string, body []byte) {
	t.Helper()
	before := string(body)
	results := p(Source, header, body)
	again := p(Source, header, body)
	if len(results) != len(again) {
		t.Fatalf("%d results, then %d", len(results), len(again))
	}
	for i, r := range results {
		v.Check(t, r)
		if r.Key != again[i].Key || r.Digest != again[i].Digest {
			t.Errorf("identity changes: %q %s, then %q %s", r.Key, r.Digest, again[i].Key, again[i].Digest)
		}
		if r.Fault != nil && (again[i].Fault == nil || *r.Fault != *again[i].Fault) {
			t.Errorf("the fault changes: %v, then %v", r.Fault, again[i].Fault)
		}
	}
	if string(body) != before {
		t.Error("the body was changed")
	}
}

// Fuzz checks bodies without headers, beginning with the golden ones and more.
func (v Invariants) Fuzz(f *testing.F, p Parser, more ...string) {
	f.Helper()
	for _, g := range Load(f) {
		f.Add(g.Body)
	}
	for _, body := range more {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) { v.Request(t, p, nil, body) })
}
