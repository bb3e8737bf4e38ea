// Package rawjson takes JSON bodies apart without touching what is inside.
//
// Webhook bodies carry 64-bit record ids and money amounts that a float64
// would damage, member names in an order people rely on when they compare
// payloads, and now and then the same member twice. So the parsers never
// decode data into Go values: they split arrays into elements and objects into
// members, read the few members they need, and pass every other byte on.
//
// All functions are pure and safe for concurrent use.
package rawjson

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// Lenient options: a repeated name or a bad byte inside one element must not
// cost the elements beside it, so both are found later, element by element.
var lenient = []jsontext.Options{
	jsontext.AllowDuplicateNames(true),
	jsontext.AllowInvalidUTF8(true),
}

var bom = []byte("\xef\xbb\xbf")

// Elements splits body into the JSON values it holds: the elements of an array,
// or the one value itself when body is no array. A byte order mark is skipped;
// the literal null is an empty array, which is how Go clients send a nil slice.
//
// The elements share body's memory. The error names the byte offset.
func Elements(body []byte) (elems [][]byte, array bool, err error) {
	body = bytes.TrimPrefix(body, bom)
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, false, errors.New("the body is empty")
	}
	d := jsontext.NewDecoder(bytes.NewBuffer(body), lenient...)
	switch d.PeekKind() {
	case 'n':
		_, err = d.ReadToken()
		array = true
	case '[':
		array = true
		if _, err = d.ReadToken(); err != nil {
			break
		}
		for d.PeekKind() != ']' {
			var v jsontext.Value
			if v, err = d.ReadValue(); err != nil {
				break
			}
			// The decoder reads ahead in its own buffer: point into body.
			end := int(d.InputOffset())
			elems = append(elems, body[end-len(v):end:end])
		}
		if err == nil {
			_, err = d.ReadToken()
		}
	default:
		var v jsontext.Value
		if v, err = d.ReadValue(); err == nil {
			end := int(d.InputOffset())
			elems = append(elems, body[end-len(v):end:end])
		}
	}
	if err != nil {
		return nil, array, describe(err)
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return nil, array, errors.New("there is more after the JSON value")
	}
	return elems, array, nil
}

// describe turns the decoder's error into one sentence without the text of
// the body, which may be confidential.
func describe(err error) error {
	var se *jsontext.SyntacticError
	if errors.As(err, &se) {
		if errors.Is(se.Err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("the JSON ends early, at byte %d", se.ByteOffset)
		}
		return fmt.Errorf("not JSON at byte %d", se.ByteOffset)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the JSON ends early")
	}
	return errors.New("not JSON")
}

// A Member is one name and value of an object. Value is raw JSON.
type Member struct {
	Name  string
	Value []byte
}

// Members splits a JSON object into its members, in order. A name that stands
// twice with the same value counts once; with different values it is an error,
// because two readers would then see two different events.
func Members(obj []byte) ([]Member, error) {
	if !utf8.Valid(obj) {
		return nil, errors.New("the text is not valid UTF-8")
	}
	d := jsontext.NewDecoder(bytes.NewBuffer(obj), lenient...)
	if d.PeekKind() != '{' {
		return nil, fmt.Errorf("want a JSON object, got %s", Kind(obj))
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, describe(err)
	}
	var members []Member
	for d.PeekKind() == '"' {
		name, err := d.ReadToken()
		if err != nil {
			return nil, describe(err)
		}
		n := name.String()
		v, err := d.ReadValue()
		if err != nil {
			return nil, describe(err)
		}
		end := int(d.InputOffset())
		members = append(members, Member{Name: n, Value: obj[end-len(v) : end : end]})
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, describe(err)
	}
	return dedupe(members)
}

// Find gives the value of the first member of that name, nil if there is none.
func Find(members []Member, name string) []byte {
	for _, m := range members {
		if m.Name == name {
			return m.Value
		}
	}
	return nil
}

func dedupe(members []Member) ([]Member, error) {
	seen := make(map[string]int, len(members))
	out := members[:0]
	for _, m := range members {
		i, twice := seen[m.Name]
		if !twice {
			seen[m.Name] = len(out)
			out = append(out, m)
			continue
		}
		if Sum(out[i].Value) != Sum(m.Value) {
			return nil, fmt.Errorf("member %s stands twice with different values", quote(m.Name))
		}
	}
	return out, nil
}

// quote shows a member name in an error, shortened.
func quote(name string) string {
	if len(name) > 64 {
		name = strings.ToValidUTF8(name[:64], "") + "…"
	}
	return fmt.Sprintf("%q", name)
}

// Kind names v's JSON type for an error message.
func Kind(v []byte) string {
	v = bytes.TrimSpace(v)
	if len(v) == 0 {
		return "nothing"
	}
	switch v[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	return "a number"
}

// Text decodes a JSON string. ok is false when v is any other value.
func Text(v []byte) (s string, ok bool) {
	if len(v) == 0 || v[0] != '"' {
		return "", false
	}
	b, err := jsontext.AppendUnquote(nil, v)
	if err != nil {
		return "", false
	}
	return string(b), true
}

// IsNull says whether v is the literal null.
func IsNull(v []byte) bool { return string(v) == "null" }

// Valid says whether v is exactly one JSON value in valid UTF-8.
func Valid(v []byte) bool {
	return jsontext.Value(v).IsValid(jsontext.AllowDuplicateNames(true))
}

// Compact gives v without white space. v is not changed; what is not JSON comes
// back as it is.
func Compact(v []byte) []byte {
	c := jsontext.Value(bytes.Clone(v))
	if c.Compact(append(lenient[:len(lenient):len(lenient)], jsontext.PreserveRawStrings(true))...) != nil {
		return v
	}
	return c
}

// Sum condenses a JSON value: equal values have equal sums, whatever their
// white space, the order of their members and the escapes in their strings.
// Numbers are equal when they are written alike. What is not JSON is summed as
// the bytes it is.
//
// The time is linear in len(v), at any depth: an object's sum is taken over its
// members' sums, so nothing is copied level by level.
func Sum(v []byte) [sha256.Size]byte {
	d := jsontext.NewDecoder(bytes.NewBuffer(v), lenient...)
	repr, err := represent(d)
	if err != nil {
		return sha256.Sum256(v)
	}
	return sha256.Sum256(repr)
}

// represent reads one value and gives its text if it is a scalar, and a sum
// otherwise. The first byte tells them apart.
func represent(d *jsontext.Decoder) ([]byte, error) {
	if d.PeekKind() == '"' {
		raw, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		text, err := jsontext.AppendUnquote([]byte{'"'}, raw)
		if err != nil || bytes.ContainsRune(text, utf8.RuneError) {
			// Halves of surrogate pairs all decode to the same character.
			return bytes.Clone(raw), nil
		}
		return text, nil
	}
	tok, err := d.ReadToken()
	if err != nil {
		return nil, err
	}
	switch tok.Kind() {
	case '{':
		type member struct {
			name string
			repr []byte
		}
		var members []member
		for d.PeekKind() == '"' {
			name, err := d.ReadToken()
			if err != nil {
				return nil, err
			}
			m := member{name: name.String()}
			if m.repr, err = represent(d); err != nil {
				return nil, err
			}
			members = append(members, m)
		}
		if _, err := d.ReadToken(); err != nil {
			return nil, err
		}
		slices.SortStableFunc(members, func(a, b member) int { return strings.Compare(a.name, b.name) })
		h := sha256.New()
		for _, m := range members {
			writeSized(h, []byte(m.name))
			writeSized(h, m.repr)
		}
		return h.Sum([]byte{'{'}), nil
	case '[':
		h := sha256.New()
		for d.PeekKind() != ']' {
			repr, err := represent(d)
			if err != nil {
				return nil, err
			}
			writeSized(h, repr)
		}
		_, err := d.ReadToken()
		return h.Sum([]byte{'['}), err
	}
	return []byte(tok.String()), nil
}

func writeSized(h hash.Hash, b []byte) {
	n := len(b)
	h.Write([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)})
	h.Write(b)
}

// RewriteStrings returns v with every string value (not member names, at any
// depth) replaced by what f gives, where f answers true. Every other byte is
// kept, white space included. v must be valid JSON; it is not changed, and is
// returned itself when nothing was replaced.
func RewriteStrings(v []byte, f func(s string) (string, bool)) []byte {
	d := jsontext.NewDecoder(bytes.NewBuffer(v), lenient...)
	var out []byte
	last := 0
	for {
		tok, err := d.ReadToken()
		if err != nil {
			break
		}
		if tok.Kind() != '"' {
			continue
		}
		if kind, n := d.StackIndex(d.StackDepth()); kind == '{' && n%2 == 1 {
			continue // a member name
		}
		s, ok := f(tok.String())
		if !ok {
			continue
		}
		end := int(d.InputOffset())
		start := stringStart(v, end)
		out = append(out, v[last:start]...)
		out, _ = jsontext.AppendQuote(out, s)
		last = end
	}
	if out == nil {
		return v
	}
	return append(out, v[last:]...)
}

// stringStart finds the opening quote of the JSON string that ends before end.
func stringStart(v []byte, end int) int {
	for i := end - 2; i > 0; i-- {
		if v[i] != '"' {
			continue
		}
		// A quote is escaped when an odd number of backslashes stands before it.
		n := 0
		for j := i - 1; j >= 0 && v[j] == '\\'; j-- {
			n++
		}
		if n%2 == 0 {
			return i
		}
	}
	return 0
}
