package eventgrid_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
	"github.com/gridfan/gridfan/schemas/schematest"
)

var update = flag.Bool("update", false, "rewrite want.json in testdata")

func TestGolden(t *testing.T) {
	schematest.Run(t, event.KindEventGrid, eventgrid.Parse, *update, os.WriteFile)
}

// TestValidationAnswer: the documented answer to a validation is the code we
// read.
func TestValidationAnswer(t *testing.T) {
	checked := 0
	for _, g := range schematest.Load(t) {
		answer := g.File("response.json")
		if answer == nil {
			continue
		}
		checked++
		var want struct{ ValidationResponse string }
		if err := json.Unmarshal(answer, &want); err != nil {
			t.Fatal(err)
		}
		r := eventgrid.Parse(schematest.Source, g.Header, g.Body)
		if got := r[0].Control.ValidationCode; got != want.ValidationResponse {
			t.Errorf("%s: validation code %q, want %q", g.Name, got, want.ValidationResponse)
		}
	}
	if checked == 0 {
		t.Error("no golden file has a response.json")
	}
}

// TestNothingDropped finds every leaf of every golden body in its event: those
// of data under the same path, those of the envelope in some attribute. The
// only exceptions are the ones the package comment lists: an empty string and
// a null date in the envelope, and the notation of a time.
func TestNothingDropped(t *testing.T) {
	for _, g := range schematest.Load(t) {
		t.Run(g.Name, func(t *testing.T) {
			elems := schematest.Elements(t, g.Body)
			for i, r := range eventgrid.Parse(schematest.Source, g.Header, g.Body) {
				if !bytes.Equal(r.Raw, elems[i]) {
					t.Error("Raw is not the element")
				}
				if r.Event == nil {
					continue
				}
				schematest.KeptAll(t, schematest.Leaves(t, "", elems[i]), r.Event, func(l schematest.Leaf) bool {
					if l.Path != "/eventTime" && l.Path != "/time" {
						return false
					}
					at, err := event.ParseTime(l.Text)
					return err == nil && (event.IsNullTime(at) && r.Event.Time.IsZero() || at.Equal(r.Event.Time))
				})
				if r.Event.DataJSON && !bytes.Contains(elems[i], r.Event.Data) {
					t.Error("data is not byte for byte as it was sent")
				}
			}
		})
	}
}
