// Package schematest holds what the tests of the parsers share: golden files,
// what holds for every result, and the check of events against the JSON Schemas
// that gridfan publishes. What is true of one wire format only stays with it.
package schematest

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/gridfan/gridfan/schemas/event"
)

// Data names the schema of a parser's data.
type Data struct {
	ID     string // its $id, and the dataschema of every event
	Schema []byte
}

// Goldens checks every event in the want.json of testdata/*.txtar against the
// event's schema, and its data against that of data, nil for parsers that take
// any data.
func Goldens(t *testing.T, data *Data) {
	t.Helper()
	c := jsonschema.NewCompiler()
	envelope := compile(t, c, event.SchemaID, event.Schema)
	var inner *jsonschema.Schema
	if data != nil {
		inner = compile(t, c, data.ID, data.Schema)
	}
	checked := 0
	for _, g := range Load(t) {
		for _, e := range events(t, g) {
			checked++
			if err := envelope.Validate(e); err != nil {
				t.Errorf("%s: %v", g.Name, err)
			}
			if inner == nil {
				continue
			}
			if err := inner.Validate(e["data"]); err != nil {
				t.Errorf("%s: data: %v", g.Name, err)
			}
			if e["dataschema"] != data.ID {
				t.Errorf("%s: dataschema is %v", g.Name, e["dataschema"])
			}
		}
	}
	if checked == 0 {
		t.Error("no golden file has an event")
	}
}

func compile(t *testing.T, c *jsonschema.Compiler, id string, text []byte) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AddResource(id, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// events gives the events that a golden file wants.
func events(t *testing.T, g *Golden) []map[string]any {
	t.Helper()
	wanted := g.File(want)
	if wanted == nil {
		return nil
	}
	var results []struct{ Event json.RawMessage }
	if err := json.Unmarshal(wanted, &results); err != nil {
		t.Fatalf("%s: %v", g.Name, err)
	}
	var all []map[string]any
	for _, r := range results {
		if r.Event == nil {
			continue
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(r.Event))
		if err != nil {
			t.Fatalf("%s: %v", g.Name, err)
		}
		all = append(all, v.(map[string]any))
	}
	return all
}
