package sqlrows

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// form is how a value that the database sends becomes JSON.
type form int

const (
	asText   form = iota // text: a string
	asWide               // text that SQL Server has in UTF-16: a string
	asBool               // a boolean, or its text
	asNumber             // an integer or its text, or a decimal's text: a number, all digits kept
	asFloat              // a double
	asReal               // a single-precision number, sent as a double
	asBytes              // bytes: base64
	asBase64             // base64 with line breaks
	asJSON               // JSON, kept as it is
	asStamp              // the text of a time without a zone
	asZoned              // the text of a time with an offset
)

// column is one of a table's columns.
type column struct {
	name      string
	base      string // its type's name, lower case
	declared  string // its type as a CAST wants it
	collation string
	nullable  bool
	primary   bool   // it is part of the primary key (SQL Server)
	category  string // PostgreSQL's typcategory
}

var (
	errNotUTF8 = errors.New("is not UTF-8; repair the value, or leave the column out with columns")
	errNotJSON = errors.New("is no valid JSON; repair the value, or leave the column out with columns")
)

// appendJSON appends a value. An error says what the column is; a value that is there
// is appended all the same, in base64.
func appendJSON(b []byte, v any, as form, zone *time.Location) ([]byte, error) {
	if v == nil {
		return append(b, "null"...), nil
	}
	switch v := v.(type) {
	case bool:
		return strconv.AppendBool(b, v), nil
	case int64:
		return strconv.AppendInt(b, v, 10), nil
	case float64:
		return appendFloat(b, v, as), nil
	case time.Time:
		return append(append(append(b, '"'), v.Format(time.RFC3339Nano)...), '"'), nil
	case []byte:
		if as == asBytes {
			return append(base64.StdEncoding.AppendEncode(append(b, '"'), v), '"'), nil
		}
		return appendText(b, string(v), as, zone)
	case string:
		return appendText(b, v, as, zone)
	default:
		return append(b, "null"...), fmt.Errorf("has a type of the driver that is unknown (%T); leave the column out with columns", v)
	}
}

func appendFloat(b []byte, v float64, as form) []byte {
	// JSON has no such numbers.
	switch {
	case math.IsNaN(v):
		return append(b, `"NaN"`...)
	case math.IsInf(v, 1):
		return append(b, `"Infinity"`...)
	case math.IsInf(v, -1):
		return append(b, `"-Infinity"`...)
	}
	bits := 64
	if as == asReal {
		bits = 32
	}
	return strconv.AppendFloat(b, v, 'g', -1, bits)
}

func appendText(b []byte, s string, as form, zone *time.Location) ([]byte, error) {
	switch as {
	case asBool:
		if s == "true" || s == "false" {
			return append(b, s...), nil
		}
	case asNumber:
		if number(s) {
			return append(b, s...), nil
		}
		// NaN and the infinities.
	case asBase64:
		b = append(b, '"')
		for line := range strings.SplitSeq(s, "\n") {
			b = append(b, line...)
		}
		return append(b, '"'), nil
	case asJSON:
		if json.Valid([]byte(s)) && utf8.ValidString(s) {
			return append(b, s...), nil
		}
		return appendForeign(b, s), errNotJSON
	case asStamp, asZoned:
		if t, err := parseTime(s, as, zone); err == nil {
			return append(t.AppendFormat(append(b, '"'), time.RFC3339Nano), '"'), nil
		}
		// Infinity, and years that RFC 3339 does not have.
	}
	quoted, err := jsontext.AppendQuote(b, s)
	if err != nil {
		return appendForeign(b, s), errNotUTF8
	}
	return quoted, nil
}

// appendForeign appends what is no text, marked as such.
func appendForeign(b []byte, s string) []byte {
	b = append(b, `{"base64":"`...)
	b = base64.StdEncoding.AppendEncode(b, []byte(s))
	return append(b, `"}`...)
}

// number says whether s is one in JSON.
func number(s string) bool {
	return s != "" && (s[0] == '-' || s[0] >= '0' && s[0] <= '9') && json.Valid([]byte(s))
}

// The spellings of times: PostgreSQL's with a blank and an offset of whole hours, and
// SQL Server's.
var (
	stampLayout  = "2006-01-02T15:04:05.999999999"
	zonedLayouts = []string{"2006-01-02T15:04:05.999999999Z07:00", "2006-01-02T15:04:05.999999999Z07"}
)

// parseTime reads a time as the database spells it. One without a zone is in zone.
func parseTime(s string, as form, zone *time.Location) (time.Time, error) {
	if len(s) > 10 && s[10] == ' ' {
		s = s[:10] + "T" + s[11:]
	}
	if as == asStamp {
		return time.ParseInLocation(stampLayout, s, zone)
	}
	var err error
	for _, layout := range zonedLayouts {
		var t time.Time
		if t, err = time.Parse(layout, s); err == nil {
			if _, offset := t.Zone(); offset == 0 {
				t = t.UTC()
			} else {
				t = t.In(time.FixedZone("", offset))
			}
			return t, nil
		}
	}
	return time.Time{}, err
}

// size is how many bytes a value has, about.
func size(v any) int64 {
	switch v := v.(type) {
	case string:
		return int64(len(v))
	case []byte:
		return int64(len(v))
	default:
		return 8
	}
}

// cut says whether SQL Server may have cut a text in UTF-16 off at so many bytes.
func cut(v any, at int64) bool {
	s, ok := v.(string)
	if !ok || 2*int64(len(s)) < at {
		return false
	}
	units := int64(0)
	for _, r := range s {
		units += int64(max(1, utf16.RuneLen(r)))
	}
	return 2*units >= at
}

// keyOf spells a key: its parts as the database spells them, with commas between.
// Commas and percent signs in a part are percent-encoded, so that two keys never
// look alike.
func keyOf(parts []string) string {
	if len(parts) == 1 {
		return parts[0]
	}
	escape := strings.NewReplacer("%", "%25", ",", "%2C")
	escaped := make([]string, len(parts))
	for i, p := range parts {
		escaped[i] = escape.Replace(p)
	}
	return strings.Join(escaped, ",")
}
