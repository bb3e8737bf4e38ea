package dataverse_test

import (
	"testing"

	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/schematest"
)

var invariants = schematest.Invariants{Kind: event.KindDataverse}

func FuzzParse(f *testing.F) {
	invariants.Fuzz(f, dataverse.Parse,
		`{"MessageName":"Update","PrimaryEntityName":"A","PrimaryEntityId":"{0}","InputParameters":[{"Key":"Target","Value":{"__type":"Entity:http:\/\/schemas.microsoft.com\/xrm\/2011\/Contracts","Attributes":[{"key":"a\ud800","value":"\/Date(-1+0200)\/"},{"key":"versionnumber","value":9223372036854775807}],"columns":1}}]}`,
		`{"specversion":"1.0","id":"1","source":"s","type":"A","datacontenttype":"text/plain","data":"{\"MessageName\":\"m\",\"PrimaryEntityName\":\"t\"}","legalentity":"X","unmapped":"y","envelopesource":"z","incomplete":false,"matchkey":"k"}`,
	)
}
