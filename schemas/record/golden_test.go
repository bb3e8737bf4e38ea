package record_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
	"github.com/gridfan/gridfan/schemas/record"
	"github.com/gridfan/gridfan/schemas/schematest"
)

var update = flag.Bool("update", false, "rewrite want.json in testdata")

// row is a record.Row as golden files have it.
type row struct {
	Key               string
	Deleted           bool
	Version           string
	Ordered           bool
	Created, Modified time.Time
	Data              json.RawMessage
}

// shapeOf reads the headers of a golden file.
func shapeOf(g *schematest.Golden) *record.Shape {
	one := func(name string) string {
		if v := g.Header[name]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	return &record.Shape{
		Kind: one("kind"), Source: schematest.Source, Table: one("table"), Scope: one("scope"), ScopeColumn: one("scopeColumn"), Key: g.Header["key"],
	}
}

func results(t *testing.T, g *schematest.Golden) (rows []row, all []event.Result) {
	t.Helper()
	if err := json.Unmarshal(g.Body, &rows); err != nil {
		t.Fatal(err)
	}
	s := shapeOf(g)
	for _, r := range rows {
		all = append(all, s.Event(record.Row(r)))
	}
	return rows, all
}

func TestGolden(t *testing.T) {
	for _, g := range schematest.Load(t) {
		t.Run(g.Name, func(t *testing.T) {
			_, all := results(t, g)
			g.Compare(t, shapeOf(g).Kind, all, *update, os.WriteFile)
			for _, r := range all {
				schematest.Invariants{Kind: shapeOf(g).Kind}.Check(t, r)
				validate(t, r)
			}
		})
	}
}

var compiled = func() map[string]*jsonschema.Schema {
	all := map[string]*jsonschema.Schema{}
	c := jsonschema.NewCompiler()
	for id, text := range map[string][]byte{record.SchemaID: record.Schema, dataverse.SchemaID: dataverse.Schema, event.SchemaID: event.Schema} {
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err == nil {
			err = c.AddResource(id, doc)
		}
		if err == nil {
			all[id], err = c.Compile(id)
		}
		if err != nil {
			all[id] = nil
		}
	}
	return all
}()

// validate holds an event against its schemas.
func validate(t *testing.T, r event.Result) {
	t.Helper()
	if r.Event == nil {
		return
	}
	whole, err := jsonschema.UnmarshalJSON(bytes.NewReader(r.Event.JSON()))
	if err != nil {
		t.Fatal(err)
	}
	if err := compiled[event.SchemaID].Validate(whole); err != nil {
		t.Error(err)
	}
	if err := compiled[r.Event.DataSchema].Validate(whole.(map[string]any)["data"]); err != nil {
		t.Errorf("data: %v", err)
	}
}

// TestNothingDropped finds every leaf of every golden row in its event's data, with
// its text: under columns, or where the package comment says.
func TestNothingDropped(t *testing.T) {
	for _, g := range schematest.Load(t) {
		rows, all := results(t, g)
		for i, r := range all {
			if r.Event == nil || len(rows[i].Data) == 0 || rawjson.IsNull(rows[i].Data) {
				continue
			}
			got := schematest.Leaves(t, "", r.Event.Data)
			for _, l := range schematest.Leaves(t, "", rows[i].Data) {
				if strings.HasPrefix(l.Text, "1900-01-01T") && shapeOf(g).Kind == event.KindFnO {
					continue
				}
				name := strings.TrimPrefix(l.Path, "/")
				base, annotation, annotated := strings.Cut(name, "@")
				column := strings.TrimSuffix(strings.TrimPrefix(base, "_"), "_value")
				places := []string{"/columns/" + name, "/columns/" + column + "/id", "/context/" + name, "/annotations/" + name}
				if annotated && annotation == "OData.Community.Display.V1.FormattedValue" {
					places = append(places, "/formatted/"+base, "/columns/"+column+"/name")
				}
				if annotated && annotation == "Microsoft.Dynamics.CRM.lookuplogicalname" {
					places = append(places, "/columns/"+column+"/table")
				}
				if !slices.ContainsFunc(got, func(have schematest.Leaf) bool { return have.Text == l.Text && slices.Contains(places, have.Path) }) {
					t.Errorf("%s: %s (%s) is gone", g.Name, l.Path, l.Text)
				}
			}
		}
	}
}
