package businessevent_test

import (
	"bytes"
	"flag"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/businessevent"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/schematest"
)

var update = flag.Bool("update", false, "rewrite want.json in testdata")

func TestGolden(t *testing.T) {
	schematest.Run(t, event.KindFnO, businessevent.Parse, *update, os.WriteFile)
}

// TestNothingDropped finds every leaf of every golden body in its event: those
// of the business event in data, under the same path; those of an envelope in
// some attribute. The only exceptions are the ones the package comment lists:
// /Date()/ strings become RFC 3339; of an envelope, empty strings, null dates,
// and the case of its id.
func TestNothingDropped(t *testing.T) {
	for _, g := range schematest.Load(t) {
		t.Run(g.Name, func(t *testing.T) {
			elems := schematest.Elements(t, g.Body)
			for i, r := range businessevent.Parse(schematest.Source, g.Header, g.Body) {
				if !bytes.Equal(r.Raw, elems[i]) {
					t.Error("Raw is not the element")
				}
				if r.Event == nil {
					continue
				}
				envelope, flat := schematest.Split(t, elems[i])
				wantData := schematest.Leaves(t, "", flat)
				for j, l := range wantData {
					if ms, ok := strings.CutPrefix(l.Text, "/Date("); ok {
						n, err := strconv.ParseInt(strings.TrimSuffix(ms, ")/"), 10, 64)
						if err != nil {
							t.Fatal(err)
						}
						wantData[j].Text = time.UnixMilli(n).UTC().Format(time.RFC3339Nano)
					}
				}
				if d := cmp.Diff(wantData, schematest.Leaves(t, "", r.Event.Data)); d != "" {
					t.Errorf("data (-want +got):\n%s", d)
				}
				schematest.Kept(t, envelope, schematest.Attributes(t, r.Event), func(l schematest.Leaf) bool {
					return l.Text == "1900-01-01T00:00:00Z" || l.Path == "/id" && strings.EqualFold(l.Text, r.Event.ID)
				})
			}
		})
	}
}
