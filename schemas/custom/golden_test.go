package custom_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/custom"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/schematest"
)

var update = flag.Bool("update", false, "rewrite want.json in testdata")

// mappingOf reads the source's Mapping, which golden files have in mapping.json.
func mappingOf(t *testing.T, g *schematest.Golden) custom.Mapping {
	t.Helper()
	var m custom.Mapping
	d := json.NewDecoder(bytes.NewReader(g.File("mapping.json")))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		t.Fatalf("%s: mapping.json: %v", g.Name, err)
	}
	return m
}

func TestGolden(t *testing.T) {
	for _, g := range schematest.Load(t) {
		t.Run(g.Name, func(t *testing.T) {
			results := compile(t, mappingOf(t, g)).Parse(schematest.Source, g.Header, g.Body)
			g.Compare(t, event.KindCustom, results, *update, os.WriteFile)
		})
	}
}

// TestNothingDropped finds every leaf of every golden element in its event's
// data, under the same path, and every mapped text among the leaves, unless the
// mapping makes it.
func TestNothingDropped(t *testing.T) {
	for _, g := range schematest.Load(t) {
		t.Run(g.Name, func(t *testing.T) {
			mapping := mappingOf(t, g)
			for _, r := range compile(t, mapping).Parse(schematest.Source, g.Header, g.Body) {
				if r.Event == nil {
					continue
				}
				if d := cmp.Diff(schematest.Leaves(t, "", r.Raw), schematest.Leaves(t, "", r.Event.Data)); d != "" {
					t.Errorf("data (-want +got):\n%s", d)
				}
				if !strings.Contains(mapping.Each, "{") && !bytes.Contains(g.Body, r.Event.Data) {
					t.Error("data is not byte for byte as it was sent")
				}
			}
		})
	}
}
