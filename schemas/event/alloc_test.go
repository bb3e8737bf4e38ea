package event_test

import (
	"testing"

	"github.com/gridfan/gridfan/schemas/event"
)

// TestAllocations keeps the way to and from the stream cheap. Encode needs four
// for the map, one for its values and one for its names; Decode the event and
// its extensions; Digest one for its text, and where the race detector takes
// things out of pools at random, four more now and then. Each may have one more
// before somebody has to look.
func TestAllocations(t *testing.T) {
	e := order()
	header, body := e.Encode()
	for _, tt := range []struct {
		name    string
		ceiling float64
		f       func()
	}{
		{"Encode", 7, func() { e.Encode() }},
		{"Decode", 3, func() {
			if _, err := event.Decode(header, body); err != nil {
				t.Error(err)
			}
		}},
		{"Subject", 2, func() { event.Subject(event.KindEventGrid, "orders", "orders", e.Type) }},
		{"Digest", 3, func() { event.Digest(e.Type, e.Subject, e.Data, true) }},
	} {
		got := testing.AllocsPerRun(200, tt.f)
		if got > tt.ceiling {
			t.Errorf("%s: %.0f allocations, want at most %.0f", tt.name, got, tt.ceiling)
		}
	}
}
