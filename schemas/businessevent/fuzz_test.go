package businessevent_test

import (
	"testing"

	"github.com/gridfan/gridfan/schemas/businessevent"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/schematest"
)

var invariants = schematest.Invariants{Kind: event.KindFnO}

func FuzzParse(f *testing.F) {
	invariants.Fuzz(f, businessevent.Parse,
		`{"EventId":"{c}","ControlNumber":-9223372036854775808,"EventTime":"\/Date(-1+0200)\/","Company":"\ud800"}`,
		`{"specversion":"1.0","id":"1","source":"s","type":"A","datacontenttype":"text/plain","data":"{\"EventId\":\"1\"}","legalentity":"X","unmapped":"y","envelopesource":"z"}`,
	)
}
