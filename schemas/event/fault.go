package event

import (
	"bytes"
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
	if len(data) < safe || bytes.Count(data, []byte("{"))+bytes.Count(data, []byte("[")) < safe {
		return nil
	}
	if _, _, err := rawjson.Elements(slices.Concat([]byte("[["), data, []byte("]]"))); err != nil {
		return Faultf(FaultInvalid, "the JSON is nested deeper than an event can carry")
	}
	return nil
}
