package event

import (
	"errors"
	"slices"
	"strings"

	"github.com/gridfan/gridfan/schemas/rawjson"
)

// FaultOf gives the Fault that err is or wraps, and for any other error, as
// Validate's, one of code FaultInvalid, on one line.
func FaultOf(err error) *Fault {
	var f *Fault
	if errors.As(err, &f) {
		return f
	}
	return Faultf(FaultInvalid, "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
}

// CheckDepth gives a Fault if data, which is JSON, could not be read again from
// inside a CloudEvent in a batch, which is two levels deeper.
func CheckDepth(data []byte) *Fault {
	const safe = 5000 // half of what the JSON decoder takes
	opening := 0
	for _, c := range data {
		if c == '{' || c == '[' {
			opening++
		}
	}
	if opening < safe {
		return nil
	}
	if _, _, err := rawjson.Elements(slices.Concat([]byte("[["), data, []byte("]]"))); err != nil {
		return Faultf(FaultInvalid, "the JSON is nested deeper than an event can carry")
	}
	return nil
}
