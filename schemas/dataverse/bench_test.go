package dataverse_test

import (
	"testing"

	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/schematest"
)

func BenchmarkParse(b *testing.B) {
	for _, g := range schematest.Load(b) {
		if g.Name == "contact-update-async-postimage" || g.Name == "fno-data-event-created-assembled" {
			b.Run(g.Name, func(b *testing.B) {
				b.SetBytes(int64(len(g.Body)))
				schematest.Bench(b, dataverse.Parse, g.Header, g.Body, 1)
			})
		}
	}
}
