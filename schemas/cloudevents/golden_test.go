package cloudevents_test

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/gridfan/gridfan/schemas/cloudevents"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/schematest"
)

var update = flag.Bool("update", false, "rewrite want.json in testdata")

func TestGolden(t *testing.T) {
	schematest.Run(t, event.KindCloudEvents, cloudevents.Parse, *update, os.WriteFile)
}

// TestNothingDropped finds every leaf of every golden request in its event:
// those of data under the same path, those of the envelope, be it the body or
// the ce- headers, in some attribute. The only exceptions are the ones the
// package comment lists.
func TestNothingDropped(t *testing.T) {
	for _, g := range schematest.Load(t) {
		t.Run(g.Name, func(t *testing.T) {
			elems := schematest.Elements(t, g.Body)
			for i, r := range cloudevents.Parse(schematest.Source, g.Header, g.Body) {
				binary := g.Header["ce-id"] != nil
				if raw := map[bool][]byte{true: g.Body, false: elems[i]}[binary]; !bytes.Equal(r.Raw, raw) {
					t.Error("Raw is not the element")
				}
				if r.Event == nil {
					continue
				}
				var want []schematest.Leaf
				if binary {
					want = schematest.Leaves(t, "/data", elems[i])
					for name, values := range g.Header {
						if attribute, ok := strings.CutPrefix(name, "ce-"); ok {
							want = append(want, schematest.Leaf{Path: "/" + attribute, Text: values[0]})
						}
					}
					want = append(want, schematest.Leaf{Path: "/datacontenttype", Text: g.Header["Content-Type"][0]})
				} else {
					want = schematest.Leaves(t, "", elems[i])
				}
				schematest.KeptAll(t, want, r.Event, func(l schematest.Leaf) bool {
					at, err := event.ParseTime(l.Text)
					return l.Path == "/time" && err == nil && at.Equal(r.Event.Time)
				})
				if r.Event.DataJSON && !bytes.Contains(g.Body, r.Event.Data) {
					t.Error("data is not byte for byte as it was sent")
				}
			}
		})
	}
}
