package schematest

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

// A Leaf is a scalar somewhere in a JSON value, with the text it was written
// in. All elements of an array have one path.
type Leaf struct{ Path, Text string }

// Leaves gives the strings, numbers and booleans in v, which stands at path.
func Leaves(t testing.TB, path string, v []byte) []Leaf {
	t.Helper()
	return leaves(t, path, v, false)
}

// LeavesAndNulls is Leaves with v's nulls.
func LeavesAndNulls(t testing.TB, path string, v []byte) []Leaf {
	t.Helper()
	return leaves(t, path, v, true)
}

func leaves(t testing.TB, path string, v []byte, nulls bool) []Leaf {
	t.Helper()
	var all []Leaf
	switch v[0] {
	case 'n':
		if !nulls {
			return nil
		}
	case '{':
		for _, m := range Members(t, v) {
			all = append(all, leaves(t, path+"/"+m.Name, m.Value, nulls)...)
		}
		return all
	case '[':
		for _, e := range Elements(t, v) {
			all = append(all, leaves(t, path+"/-", e, nulls)...)
		}
		return all
	case '"':
		s, ok := rawjson.Text(v)
		if !ok {
			t.Fatalf("%s: not a string", path)
		}
		return []Leaf{{path, s}}
	}
	return []Leaf{{path, string(v)}}
}

// Members is rawjson.Members for an object that must be good.
func Members(t testing.TB, v []byte) []rawjson.Member {
	t.Helper()
	members, err := rawjson.Members(v)
	if err != nil {
		t.Fatal(err)
	}
	return members
}

// Elements is rawjson.Elements for a body that must be good.
func Elements(t testing.TB, v []byte) [][]byte {
	t.Helper()
	elems, _, err := rawjson.Elements(v)
	if err != nil {
		t.Fatal(err)
	}
	return elems
}

// Split gives the leaves of an Event Grid or CloudEvents envelope and the
// object in its data, which may be a string that holds it. An element without
// data has no envelope.
func Split(t testing.TB, elem []byte) (envelope []Leaf, inner []byte) {
	t.Helper()
	for _, m := range Members(t, elem) {
		if m.Name != "data" {
			envelope = append(envelope, LeavesAndNulls(t, "/"+m.Name, m.Value)...)
			continue
		}
		inner = m.Value
		if s, ok := rawjson.Text(m.Value); ok {
			inner = []byte(s)
		}
	}
	if inner == nil {
		return nil, elem
	}
	return envelope, inner
}

func inData(l Leaf) bool { return l.Path == "/data" || strings.HasPrefix(l.Path, "/data/") }

// Attributes gives the texts of e's attributes.
func Attributes(t testing.TB, e *event.Event) []string {
	t.Helper()
	var all []string
	for _, l := range Leaves(t, "", e.JSON()) {
		if !inData(l) {
			all = append(all, l.Text)
		}
	}
	return all
}

// Kept finds the text of every leaf of an envelope among attributes. Empty
// texts may be gone, and those that same finds in the event in another form.
func Kept(t testing.TB, envelope []Leaf, attributes []string, same func(Leaf) bool) {
	t.Helper()
	for _, l := range envelope {
		if l.Text != "" && !slices.Contains(attributes, l.Text) && !same(l) {
			t.Errorf("%s (%s) is gone", l.Path, l.Text)
		}
	}
}

// KeptAll finds every leaf of an event as it was sent in e: those of data under
// the same path, all others as Kept does, also inside attribute unmapped.
func KeptAll(t testing.TB, sent []Leaf, e *event.Event, same func(Leaf) bool) {
	t.Helper()
	var gotData, wantData, envelope []Leaf
	var attributes []string
	for _, l := range Leaves(t, "", e.JSON()) {
		switch {
		case inData(l):
			gotData = append(gotData, l)
		case l.Path == "/unmapped":
			for _, u := range Leaves(t, l.Path, []byte(l.Text)) {
				attributes = append(attributes, u.Text)
			}
		default:
			attributes = append(attributes, l.Text)
		}
	}
	for _, l := range sent {
		if inData(l) {
			wantData = append(wantData, l)
		} else {
			envelope = append(envelope, l)
		}
	}
	Kept(t, envelope, attributes, same)
	if d := cmp.Diff(wantData, gotData); d != "" {
		t.Errorf("data (-want +got):\n%s", d)
	}
}
