package eventgrid_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
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
			results := eventgrid.Parse("src", g.header, g.body)
			got := show(event.KindEventGrid, results)
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
			// The documented answer to a validation is the code we read.
			if answer := g.file("response.json"); answer != nil {
				var want struct{ ValidationResponse string }
				if err := json.Unmarshal(answer, &want); err != nil {
					t.Fatal(err)
				}
				if got := results[0].Control.ValidationCode; got != want.ValidationResponse {
					t.Errorf("validation code %q, want %q", got, want.ValidationResponse)
				}
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
// of data under the same path, those of the envelope in some attribute. The
// only exceptions are the ones the package comment lists: an empty string and
// a null date in the envelope, and the notation of a time.
func TestNothingDropped(t *testing.T) {
	for _, g := range goldens(t) {
		elems, _, err := rawjson.Elements(g.body)
		if err != nil {
			t.Fatalf("%s: %v", g.name, err)
		}
		for i, r := range eventgrid.Parse("src", g.header, g.body) {
			if !bytes.Equal(r.Raw, elems[i]) {
				t.Errorf("%s: Raw is not the element", g.name)
			}
			if r.Event == nil {
				continue
			}
			var gotData, attributes, wantData []leaf
			for _, l := range leaves(t, "", r.Event.JSON()) {
				switch {
				case strings.HasPrefix(l.path, "/data/") || l.path == "/data":
					gotData = append(gotData, l)
				case l.path == "/unmapped":
					attributes = append(attributes, leaves(t, l.path, []byte(l.text))...)
				default:
					attributes = append(attributes, l)
				}
			}
			for _, l := range leaves(t, "", elems[i]) {
				if strings.HasPrefix(l.path, "/data/") || l.path == "/data" {
					wantData = append(wantData, l)
				} else if !kept(l, r.Event, attributes) {
					t.Errorf("%s: %s (%s) is gone", g.name, l.path, l.text)
				}
			}
			if d := cmp.Diff(wantData, gotData, cmp.AllowUnexported(leaf{})); d != "" {
				t.Errorf("%s: data (-want +got):\n%s", g.name, d)
			}
			if r.Event.DataJSON && !bytes.Contains(elems[i], r.Event.Data) {
				t.Errorf("%s: data is not byte for byte as it was sent", g.name)
			}
		}
	}
}

func kept(l leaf, e *event.Event, attributes []leaf) bool {
	if l.text == "" {
		return true
	}
	if l.path == "/eventTime" || l.path == "/time" {
		at, err := event.ParseTime(l.text)
		if err == nil && (event.IsNullTime(at) && e.Time.IsZero() || at.Equal(e.Time)) {
			return true
		}
	}
	for _, a := range attributes {
		if a.text == l.text {
			return true
		}
	}
	return false
}
