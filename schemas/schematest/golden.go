package schematest

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/gridfan/gridfan/schemas/event"
)

// Source is the name of the source in golden files and fuzz targets.
const Source = "src"

// A Parser reads a request body, as the Parse functions do.
type Parser func(source string, header map[string][]string, body []byte) []event.Result

// A WriteFile writes a golden file: os.WriteFile, which only tests hand in
// because packages below schemas do no I/O.
type WriteFile func(name string, data []byte, perm fs.FileMode) error

// want is the file that -update rewrites.
const want = "want.json"

// Golden is one testdata/<case>.txtar: a request in headers and body.json, and
// in want.json what the parser makes of each element.
type Golden struct {
	Name   string
	Header map[string][]string
	Body   []byte

	path    string
	archive *txtar.Archive
}

// Load reads testdata/*.txtar.
func Load(t testing.TB) []*Golden {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	var all []*Golden
	for _, path := range paths {
		a, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		g := &Golden{Name: strings.TrimSuffix(filepath.Base(path), ".txtar"), path: path, archive: a}
		g.Header, g.Body = Header(string(g.File("headers"))), g.File("body.json")
		all = append(all, g)
	}
	return all
}

// File gives a file of the archive, nil if there is none.
func (g *Golden) File(name string) []byte {
	for _, f := range g.archive.Files {
		if f.Name == name {
			return f.Data
		}
	}
	return nil
}

// Header reads header lines as golden files have them, names as they stand.
func Header(text string) map[string][]string {
	header := map[string][]string{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		header[name] = append(header[name], strings.TrimSpace(value))
	}
	return header
}

// Run compares what p makes of every golden request with its want.json, or
// rewrites these files first if update is set.
func Run(t *testing.T, kind string, p Parser, update bool, write WriteFile) {
	t.Helper()
	for _, g := range Load(t) {
		t.Run(g.Name, func(t *testing.T) {
			g.Compare(t, kind, p(Source, g.Header, g.Body), update, write)
		})
	}
}

// Compare is Run for one file, where the parser depends on the file.
func (g *Golden) Compare(t *testing.T, kind string, results []event.Result, update bool, write WriteFile) {
	t.Helper()
	got := show(t, kind, results)
	if update {
		files := slices.DeleteFunc(g.archive.Files, func(f txtar.File) bool { return f.Name == want })
		g.archive.Files = append(files, txtar.File{Name: want, Data: got})
		if err := write(g.path, txtar.Format(g.archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(string(g.File(want)), string(got)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// show writes results as golden files hold them. The event is in CloudEvents'
// JSON format, its numbers and strings exactly as they go out.
func show(t *testing.T, kind string, results []event.Result) []byte {
	t.Helper()
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
			text("natsSubject", event.Subject(kind, Source, r.Scope, r.Name))
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
		t.Fatal(err)
	}
	return append(v, '\n')
}

// Brief shows a result on one line: the event's JSON, the control or the fault.
func Brief(r event.Result) string {
	switch {
	case r.Event != nil:
		return string(r.Event.JSON())
	case r.Control != nil:
		return fmt.Sprintf("%s %s%s", r.Control.Kind, r.Control.ValidationCode, r.Control.Subscription)
	}
	return r.Fault.Error()
}

// Briefs is Brief for each of results.
func Briefs(results []event.Result) []string {
	var all []string
	for _, r := range results {
		all = append(all, Brief(r))
	}
	return all
}
