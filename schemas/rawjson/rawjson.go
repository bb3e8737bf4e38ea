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
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
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
	d := newReader(body)
	defer d.free()
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

// A reader is a jsontext decoder that is used again.
type reader struct {
	jsontext.Decoder
	buf bytes.Buffer
}

var readers = sync.Pool{New: func() any { return new(reader) }}

func newReader(v []byte) *reader {
	r := readers.Get().(*reader)
	r.buf = *bytes.NewBuffer(v)
	r.Reset(&r.buf, lenient...)
	return r
}

// free puts r back without what it has read.
func (r *reader) free() {
	r.buf = bytes.Buffer{}
	r.Reset(&r.buf)
	readers.Put(r)
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
func Members(obj []byte) ([]Member, error) { return MembersIn(nil, obj) }

// MembersIn is Members that puts them into room, as far as it goes. Whoever
// splits one object after the other does not need a slice for each.
func MembersIn(room []Member, obj []byte) ([]Member, error) {
	if !utf8.Valid(obj) {
		return nil, errors.New("the text is not valid UTF-8")
	}
	members, ok := membersFast(room, obj)
	if !ok {
		var err error
		if members, err = membersStrict(obj); err != nil {
			return nil, err
		}
	}
	return dedupe(members)
}

// few is how many members an envelope or a business event has, and more. For so
// many, what allocates nothing beats what scales.
const few = 32

// membersFast splits what the scanner takes.
func membersFast(members []Member, obj []byte) (_ []Member, ok bool) {
	type bounds struct {
		name, nameEnd, value, valueEnd int
		plain                          bool
	}
	var room [few]bounds
	found, text := room[:0], 0
	i := space(obj, 0)
	if i >= len(obj) || obj[i] != '{' {
		return nil, false
	}
	i, item := enter(obj, i+1, '}')
	for item {
		m := bounds{name: i}
		if m.nameEnd, m.value, m.plain = memberName(obj, i); m.value < 0 {
			return nil, false
		}
		if m.valueEnd = skip(obj, m.value, maxDepth); m.valueEnd < 0 {
			return nil, false
		}
		text += m.nameEnd - m.name
		found = append(found, m)
		i, item = more(obj, m.valueEnd, '}')
	}
	if i < 0 || space(obj, i) < len(obj) {
		return nil, false
	}
	if len(found) == 0 {
		return nil, true
	}
	// One string holds all names.
	var names strings.Builder
	names.Grow(text)
	members = slices.Grow(members[:0], len(found))
	for _, m := range found {
		start := names.Len()
		if m.plain {
			names.Write(obj[m.name+1 : m.nameEnd-1])
		} else {
			name, _ := jsontext.AppendUnquote(nil, obj[m.name:m.nameEnd])
			names.Write(name)
		}
		members = append(members, Member{Name: names.String()[start:], Value: obj[m.value:m.valueEnd:m.valueEnd]})
	}
	return members, true
}

// membersStrict is membersFast by jsontext, which decides what is JSON.
func membersStrict(obj []byte) ([]Member, error) {
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
	return members, nil
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
	if len(members) <= few && !repeats(members) {
		return members, nil
	}
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

// repeats says whether a name stands twice. It compares each with each.
func repeats(members []Member) bool {
	for i := range members {
		for j := range i {
			if members[i].Name == members[j].Name {
				return true
			}
		}
	}
	return false
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
	if end, plain := skipString(v, 0); plain && end == len(v) && utf8.Valid(v) {
		return string(v[1 : end-1]), true
	}
	b, err := jsontext.AppendUnquote(nil, v)
	if err != nil {
		return "", false
	}
	return string(b), true
}

// Texts decodes JSON strings into memory that they share, which is cheaper than
// one piece for each where all live and die together: an envelope's attributes.
type Texts struct{ b strings.Builder }

// maxShared keeps a large text from being counted although nobody reads it.
const maxShared = 512

// Grow makes room for the values of members. It is called once, before Text.
func (t *Texts) Grow(members []Member) {
	n := 0
	for _, m := range members {
		if m.Value[0] == '"' && len(m.Value) <= maxShared {
			n += len(m.Value)
		}
	}
	t.b.Grow(n)
}

// Text is like the function Text.
func (t *Texts) Text(v []byte) (s string, ok bool) {
	if len(v) > maxShared || len(v) > t.b.Cap()-t.b.Len() || len(v) == 0 || v[0] != '"' {
		return Text(v)
	}
	if end, plain := skipString(v, 0); !plain || end != len(v) || !utf8.Valid(v) {
		return Text(v)
	}
	start := t.b.Len()
	t.b.Write(v[1 : len(v)-1])
	return t.b.String()[start:], true
}

// IsNull says whether v is the literal null.
func IsNull(v []byte) bool { return string(v) == "null" }

// Valid says whether v is exactly one JSON value in valid UTF-8.
func Valid(v []byte) bool {
	return jsontext.Value(v).IsValid(jsontext.AllowDuplicateNames(true))
}

// Compact gives v without white space. v is not changed; what is compact already
// or not JSON comes back as it is.
func Compact(v []byte) []byte {
	end := skip(v, space(v, 0), maxDepth)
	if end < 0 || space(v, end) < len(v) {
		return compactStrict(v)
	}
	var out []byte
	last := 0
	for i := 0; i < len(v); {
		if v[i] == '"' {
			i, _ = skipString(v, i)
			continue
		}
		next := space(v, i)
		if next == i {
			i++
			continue
		}
		if out == nil {
			out = make([]byte, 0, len(v))
		}
		out = append(out, v[last:i]...)
		i, last = next, next
	}
	if out == nil {
		return v
	}
	return append(out, v[last:]...)
}

// compactStrict is Compact by jsontext, which decides what is JSON.
func compactStrict(v []byte) []byte {
	c := jsontext.Value(bytes.Clone(v))
	if c.Compact(append(lenient[:len(lenient):len(lenient)], jsontext.PreserveRawStrings(true))...) != nil {
		return v
	}
	return c
}

// RewritePrefixed returns v with every string value (not member names, at any
// depth) that begins with prefix and for which f answers true replaced. Everything
// else is kept, white space included. v must be valid JSON; it is not changed, and
// is returned itself when nothing was replaced.
func RewritePrefixed(v []byte, prefix string, f func(s string) (string, bool)) []byte {
	var out, text []byte
	last := 0
	for i := 0; ; {
		quote := bytes.IndexByte(v[i:], '"')
		if quote < 0 {
			break
		}
		start := i + quote
		end, plain := skipString(v, start)
		if end < 0 {
			break
		}
		i = end
		if plain {
			text = v[start+1 : end-1]
		} else {
			text, _ = jsontext.AppendUnquote(nil, v[start:end])
		}
		if len(text) < len(prefix) || string(text[:len(prefix)]) != prefix {
			continue
		}
		if next := space(v, end); next < len(v) && v[next] == ':' {
			continue // a member name
		}
		s, ok := f(string(text))
		if !ok {
			continue
		}
		if out == nil {
			out = make([]byte, 0, len(v)+len(v)/8+16)
		}
		out = append(out, v[last:start]...)
		out, _ = jsontext.AppendQuote(out, s)
		last = end
	}
	if out == nil {
		return v
	}
	return append(out, v[last:]...)
}
