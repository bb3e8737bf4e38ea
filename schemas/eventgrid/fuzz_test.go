package eventgrid_test

import (
	"testing"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
	"github.com/gridfan/gridfan/schemas/schematest"
)

var invariants = schematest.Invariants{Kind: event.KindEventGrid}

func FuzzParse(f *testing.F) {
	invariants.Fuzz(f, eventgrid.Parse,
		`[{"id":"\ud800","eventType":"t","data":"\ud800","source":{},"x":"\udc00"},{"eventType":1}]`,
		`{"specversion":"1.0","id":"1","source":"s","type":"t","datacontenttype":"text/plain","data_base64":"AA=="}`,
	)
}
