package eventgrid_test

import (
	"testing"

	"github.com/gridfan/gridfan/schemas/eventgrid"
	"github.com/gridfan/gridfan/schemas/schematest"
)

// TestAllocations keeps the way of an event cheap. Seven allocations it needs:
// the event, its extensions, one string of its attributes, one of its members'
// names, the value of dataVersion, key and digest. What the batch shares is a
// tenth. The race detector takes things out of pools at random, which costs one
// more.
func TestAllocations(t *testing.T) {
	const events, ceiling = 100, 9.0
	body := schematest.Batch(order, events)
	got := testing.AllocsPerRun(20, func() { eventgrid.Parse(schematest.Source, nil, body) }) / events
	if got > ceiling {
		t.Errorf("%.1f allocations for each event, want at most %.0f", got, ceiling)
	}
}
