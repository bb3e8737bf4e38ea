package dataverse_test

import (
	"testing"

	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/schematest"
)

func TestSchemas(t *testing.T) {
	schematest.Goldens(t, &schematest.Data{ID: dataverse.SchemaID, Schema: dataverse.Schema})
}
