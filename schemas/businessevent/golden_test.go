package businessevent_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/gridfan/gridfan/schemas/businessevent"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

var update = flag.Bool("update", false, "rewrite want.json in testdata")

// golden is one testdata/<case>.txtar: a vendor's request in headers and
// body.json, and in want.json what Parse makes of each element.
type golden struct {
	name, path string
	archive    *txtar.Archive
	header     map[string][]string
	body       []byte
}

func (g *golden) file(name string) []byte {
	for _, f := range g.archive.Files {
		if f.Name == name {
			return f.Data
		}
	}
	return nil
}

func goldens(t testing.TB) []*golden {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	var all []*golden
	for _, path := range paths {
		a, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		g := &golden{name: strings.TrimSuffix(filepath.Base(path), ".txtar"), path: path, archive: a, header: map[string][]string{}}
		g.body = g.file("body.json")
		for line := range strings.Lines(string(g.file("headers"))) {
			name, value, _ := strings.Cut(line, ":")
			g.header[name] = append(g.header[name], strings.TrimSpace(value))
		}
		all = append(all, g)
	}
	return all
}

// show writes results as golden files hold them. The event is in CloudEvents'
// JSON format, its numbers and strings exactly as they go out.
func show(kind string, results []event.Result) []byte {
	out := []byte("[")
	for i, r := range results {
		if i > 0 {
			out = append(out, ',')
		}
		sep := byte('{')
		member := func(name string, value []byte) {
			out = append(out, sep)
			out, _ = jsontext.AppendQuote(out, name)
			out = append(append(out, ':'), value...)
			sep = ','
		}
		text := func(name, value string) {
			v, _ := jsontext.AppendQuote(nil, value)
			member(name, v)
		}
		switch {
		case r.Event != nil:
			text("natsSubject", event.Subject(kind, "src", r.Scope, r.Name))
			text("scope", r.Scope)
			text("name", r.Name)
			text("key", r.Key)
			text("digest", r.Digest)
			member("event", r.Event.JSON())
		case r.Control != nil:
			v, _ := json.Marshal(r.Control)
			member("control", v)
		case r.Fault != nil:
			text("fault", r.Fault.Error())
		}
		out = append(out, '}')
	}
	v := jsontext.Value(append(out, ']'))
	if err := v.Indent(jsontext.WithIndent("  ")); err != nil {
		panic(err)
	}
	return append(v, '\n')
}

func TestGolden(t *testing.T) {
	for _, g := range goldens(t) {
		t.Run(g.name, func(t *testing.T) {
			results := businessevent.Parse("src", g.header, g.body)
			got := show(event.KindFnO, results)
			if *update {
				files := g.archive.Files[:0]
				for _, f := range g.archive.Files {
					if f.Name != "want.json" {
						files = append(files, f)
					}
				}
				g.archive.Files = append(files, txtar.File{Name: "want.json", Data: got})
				if err := os.WriteFile(g.path, txtar.Format(g.archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if d := cmp.Diff(string(g.file("want.json")), string(got)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// A leaf is a string, number or boolean somewhere in a JSON value, with the
// text it was written in.
type leaf struct{ path, text string }

func leaves(t *testing.T, path string, v []byte) []leaf {
	t.Helper()
	switch v[0] {
	case 'n':
		return nil
	case '{':
		members, err := rawjson.Members(v)
		if err != nil {
			t.Fatal(err)
		}
		var all []leaf
		for _, m := range members {
			all = append(all, leaves(t, path+"/"+m.Name, m.Value)...)
		}
		return all
	case '[':
		elems, _, err := rawjson.Elements(v)
		if err != nil {
			t.Fatal(err)
		}
		var all []leaf
		for _, e := range elems {
			all = append(all, leaves(t, path+"/-", e)...)
		}
		return all
	case '"':
		s, ok := rawjson.Text(v)
		if !ok {
			t.Fatalf("%s: not a string", path)
		}
		return []leaf{{path, s}}
	}
	return []leaf{{path, string(v)}}
}

// TestNothingDropped finds every leaf of every golden body in its event: those
// of the business event in data, under the same path; those of an envelope in
// some attribute. The only exceptions are the ones the package comment lists:
// /Date()/ strings become RFC 3339; of an envelope, empty strings, null dates,
// and the case of its id.
func TestNothingDropped(t *testing.T) {
	for _, g := range goldens(t) {
		elems, _, err := rawjson.Elements(g.body)
		if err != nil {
			t.Fatalf("%s: %v", g.name, err)
		}
		for i, r := range businessevent.Parse("src", g.header, g.body) {
			if !bytes.Equal(r.Raw, elems[i]) {
				t.Errorf("%s: Raw is not the element", g.name)
			}
			if r.Event == nil {
				continue
			}
			envelope, flat := split(t, elems[i])
			wantData := leaves(t, "", flat)
			for j, l := range wantData {
				if ms, ok := strings.CutPrefix(l.text, "/Date("); ok {
					n, err := strconv.ParseInt(strings.TrimSuffix(ms, ")/"), 10, 64)
					if err != nil {
						t.Fatal(err)
					}
					wantData[j].text = time.UnixMilli(n).UTC().Format(time.RFC3339Nano)
				}
			}
			if d := cmp.Diff(wantData, leaves(t, "", r.Event.Data), cmp.AllowUnexported(leaf{})); d != "" {
				t.Errorf("%s: data (-want +got):\n%s", g.name, d)
			}
			var attributes []string
			for _, l := range leaves(t, "", r.Event.JSON()) {
				if !strings.HasPrefix(l.path, "/data/") {
					attributes = append(attributes, l.text)
				}
			}
			for _, l := range envelope {
				gone := l.text != "" && l.text != "1900-01-01T00:00:00Z" && !slices.Contains(attributes, l.text)
				if gone && !(l.path == "/id" && strings.EqualFold(l.text, r.Event.ID)) {
					t.Errorf("%s: %s (%s) is gone", g.name, l.path, l.text)
				}
			}
		}
	}
}

// split gives the leaves of an envelope and the business event in its data.
func split(t *testing.T, elem []byte) (envelope []leaf, flat []byte) {
	t.Helper()
	members, err := rawjson.Members(elem)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		if m.Name != "data" {
			envelope = append(envelope, leaves(t, "/"+m.Name, m.Value)...)
			continue
		}
		flat = m.Value
		if s, ok := rawjson.Text(m.Value); ok {
			flat = []byte(s)
		}
	}
	if flat == nil {
		return nil, elem
	}
	return envelope, flat
}
