package businessevent_test

import (
	"testing"

	"github.com/gridfan/gridfan/schemas/businessevent"
	"github.com/gridfan/gridfan/schemas/schematest"
)

func TestSchemas(t *testing.T) {
	schematest.Goldens(t, &schematest.Data{ID: businessevent.SchemaID, Schema: businessevent.Schema})
}
