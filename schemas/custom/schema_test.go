package custom_test

import (
	"testing"

	"github.com/gridfan/gridfan/schemas/schematest"
)

func TestSchemas(t *testing.T) { schematest.Goldens(t, nil) }
