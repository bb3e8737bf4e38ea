package jq

import (
	"encoding/json"
	"maps"
	"math"
	"math/big"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/itchyny/gojq"

	"github.com/gridfan/gridfan/schemas/event"
)

// Append appends a value that Run gave, compactly and with sorted members, to b,
// which may become limit bytes long. Numbers stay as they are written, unless
// they were reckoned with. What JSON cannot say (infinity) is a fault.
func Append(b []byte, v any, limit int) ([]byte, *event.Fault) {
	tooLarge := func() ([]byte, *event.Fault) {
		return nil, event.Faultf(event.FaultTooLarge, "the result has more than %d bytes", limit)
	}
	var f *event.Fault
	switch v := v.(type) {
	case string:
		if len(v) > limit-len(b) {
			return tooLarge()
		}
		b = appendText(b, v)
	case json.Number:
		b = append(b, v...)
	case *big.Int:
		if v.BitLen() > maxDigits*4 {
			return nil, event.Faultf(event.FaultInvalid, "the result has %s", longNumber)
		}
		b = v.Append(b, 10)
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, event.Faultf(event.FaultInvalid, "the result has a number that is not finite")
		}
		text, err := gojq.Marshal(v)
		if err != nil {
			return nil, event.Faultf(event.FaultInvalid, "the result cannot be written")
		}
		b = append(b, text...)
	case []any:
		b = append(b, '[')
		for i, v := range v {
			if i > 0 {
				b = append(b, ',')
			}
			if b, f = Append(b, v, limit); f != nil {
				return nil, f
			}
		}
		b = append(b, ']')
	case map[string]any:
		b = append(b, '{')
		for i, name := range slices.Sorted(maps.Keys(v)) {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendText(b, name), ':')
			if b, f = Append(b, v[name], limit); f != nil {
				return nil, f
			}
		}
		b = append(b, '}')
	default:
		text, err := gojq.Marshal(v)
		if err != nil {
			return nil, event.Faultf(event.FaultInvalid, "the result cannot be written")
		}
		b = append(b, text...)
	}
	if len(b) > limit {
		return tooLarge()
	}
	return b, nil
}

// appendText appends s as a JSON string. Bytes that are no text become U+FFFD.
func appendText(b []byte, s string) []byte {
	if quoted, err := jsontext.AppendQuote(b, s); err == nil {
		return quoted
	}
	b, _ = jsontext.AppendQuote(b, strings.ToValidUTF8(s, "\uFFFD")) // which is valid
	return b
}
