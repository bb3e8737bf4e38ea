package rawjson

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// Sum condenses a JSON value: equal values have equal sums, whatever their
// white space, the order of their members and the escapes in their strings.
// Numbers are equal when they are written alike. What is not JSON is summed as
// the bytes it is.
//
// The time is linear in len(v), at any depth: an object's sum is taken over its
// members' sums, so nothing is copied level by level.
//
// Sums are stored, so they must never change. What is summed of a value is its
// representation: a scalar's text, and of an object or array the bracket that
// opens it and the SHA-256 of what it holds, each part after its size in four
// bytes: the members' names and representations, sorted by name, or those of the
// elements.
func Sum(v []byte) [sha256.Size]byte {
	if sum, ok := sumFast(v); ok {
		return sum
	}
	return sumStrict(v)
}

// sumFast is Sum for what the scanner takes.
func sumFast(v []byte) (sum [sha256.Size]byte, ok bool) {
	if len(v) > maxFast || !utf8.Valid(v) {
		return sum, false
	}
	s := summers.Get().(*summer)
	defer s.free()
	s.v, s.replaced = v, bytes.Contains(v, replacement)
	repr, end := s.represent(space(v, 0), maxDepth)
	if end < 0 || space(v, end) < len(v) {
		return sum, false
	}
	return sha256.Sum256(s.bytes(repr)), true
}

// replacement stands in decoded text for what is no character; see text.
var replacement = []byte("\ufffd")

// A summer works out a representation. It is kept for the next value.
type summer struct {
	v        []byte
	replaced bool // replacement stands somewhere in v

	// Objects are summed over sorted members. Those of all open objects stand
	// here, the innermost's last.
	members []summed
	// made holds what does not stand in v as it is: unescaped texts, and
	// representations of objects and arrays. Like members it shrinks when an
	// object closes.
	made []byte
	// message is what is summed of the open arrays or of a closing object.
	message []byte
}

// A part is where bytes begin and end: in v, or, beyond its length, in made.
type part struct{ start, end uint32 }

// maxFast is the longest value that is summed fast. What is made of it, at most
// 33 bytes for a member of 5, stays far within 32 bits.
const maxFast = 1 << 28

func span(start, end int) part { return part{uint32(start), uint32(end)} }

// A summed is a member of an object. It holds no pointers, which keeps the
// garbage collector out of a hot loop.
type summed struct {
	key        uint64 // how the name begins: decides most comparisons
	name, repr part
}

var summers = sync.Pool{New: func() any {
	return &summer{
		members: make([]summed, 0, 64),
		made:    make([]byte, 0, 1<<10),
		message: make([]byte, 0, 2*maxMessage),
	}
}}

// free puts s back, but not what a huge value made of it, nor the value.
func (s *summer) free() {
	if cap(s.members) > 1<<10 || cap(s.made) > 64<<10 || cap(s.message) > 64<<10 {
		return
	}
	s.v, s.members, s.made, s.message = nil, s.members[:0], s.made[:0], s.message[:0]
	summers.Put(s)
}

func (s *summer) bytes(p part) []byte {
	start, end := int(p.start), int(p.end)
	if start < len(s.v) {
		return s.v[start:end]
	}
	return s.made[start-len(s.v) : end-len(s.v)]
}

// lastMade is what stands in made from start on.
func (s *summer) lastMade(start int) part { return span(len(s.v)+start, len(s.v)+len(s.made)) }

// represent gives the representation of the value at i, and the position behind
// it or -1.
func (s *summer) represent(i, depth int) (repr part, end int) {
	if i >= len(s.v) {
		return part{}, -1
	}
	switch s.v[i] {
	case '"':
		return s.text(i)
	case '{':
		return s.object(i, depth)
	case '[':
		return s.array(i, depth)
	}
	end = skipScalar(s.v, i)
	return span(i, end), end
}

// text represents a string: a quote and its text, or as it was sent if parts of
// it are no text. Halves of surrogate pairs would all decode to the same
// character.
func (s *summer) text(i int) (repr part, end int) {
	end, plain := skipString(s.v, i)
	switch {
	case end < 0:
		return part{}, -1
	case plain && s.replaced && bytes.Contains(s.v[i:end], replacement):
		return span(i, end), end
	case plain:
		return span(i, end-1), end
	}
	start := len(s.made)
	var err error
	s.made, err = jsontext.AppendUnquote(append(s.made, '"'), s.v[i:end])
	if err != nil || bytes.Contains(s.made[start:], replacement) {
		return span(i, end), end
	}
	return s.lastMade(start), end
}

// name gives the text of the member name that stands from i to end.
func (s *summer) name(i, end int, plain bool) part {
	if plain {
		return span(i+1, end-1)
	}
	start := len(s.made)
	s.made, _ = jsontext.AppendUnquote(s.made, s.v[i:end])
	return s.lastMade(start)
}

func (s *summer) object(i, depth int) (repr part, end int) {
	if depth == 0 {
		return part{}, -1
	}
	first, made := len(s.members), len(s.made)
	sorted := true
	i, item := enter(s.v, i+1, '}')
	for item {
		end, value, plain := memberName(s.v, i)
		if value < 0 {
			return part{}, -1
		}
		m := summed{name: s.name(i, end, plain)}
		m.key = sortKey(s.bytes(m.name))
		if m.repr, i = s.represent(value, depth-1); i < 0 {
			return part{}, -1
		}
		if n := len(s.members); n > first && s.members[n-1].key >= m.key {
			sorted = false // or it may be
		}
		s.members = append(s.members, m)
		i, item = more(s.v, i, '}')
	}
	if i < 0 {
		return part{}, -1
	}
	members := s.members[first:]
	if !sorted {
		s.sort(members)
	}
	m := s.open()
	for i := range members {
		m.add(s.bytes(members[i].name))
		m.add(s.bytes(members[i].repr))
	}
	s.members, s.made = s.members[:first], s.made[:made]
	return m.close('{'), i
}

// sortKey gives the first eight bytes of a name as a number that sorts like it.
func sortKey(name []byte) (key uint64) {
	if len(name) >= 8 {
		return binary.BigEndian.Uint64(name)
	}
	for i, c := range name {
		key |= uint64(c) << (56 - 8*i)
	}
	return key
}

// sort sorts members by name, and equal ones as they came. For as many as
// objects commonly have, insertion is twice as fast as the library.
func (s *summer) sort(members []summed) {
	if len(members) > 32 {
		slices.SortStableFunc(members, s.compare)
		return
	}
	for i, m := range members {
		for ; i > 0 && s.compare(members[i-1], m) > 0; i-- {
			members[i] = members[i-1]
		}
		members[i] = m
	}
}

func (s *summer) compare(a, b summed) int {
	if a.key != b.key {
		return cmp.Compare(a.key, b.key)
	}
	return bytes.Compare(s.bytes(a.name), s.bytes(b.name))
}

func (s *summer) array(i, depth int) (repr part, end int) {
	if depth == 0 {
		return part{}, -1
	}
	made := len(s.made)
	m := s.open()
	i, item := enter(s.v, i+1, ']')
	for item {
		var repr part
		if repr, i = s.represent(i, depth-1); i < 0 {
			return part{}, -1
		}
		m.add(s.bytes(repr))
		s.made = s.made[:made]
		i, item = more(s.v, i, ']')
	}
	if i < 0 {
		return part{}, -1
	}
	return m.close('['), i
}

// A message collects what is summed of one object or array, in s.message from
// start on. To sum it in one go is cheaper than piece by piece, up to a size.
type message struct {
	s     *summer
	start int
	h     hash.Hash // what did not fit; nil as long as it does
}

// maxMessage keeps arrays of very many elements from being copied as a whole.
const maxMessage = 4 << 10

func (s *summer) open() message { return message{s: s, start: len(s.message)} }

func (m *message) add(b []byte) {
	s := m.s
	n := len(s.message)
	if n-m.start+len(b) > maxMessage {
		m.addLarge(b)
		return
	}
	s.message = slices.Grow(s.message, 4+len(b))[:n+4+len(b)]
	binary.LittleEndian.PutUint32(s.message[n:], uint32(len(b)))
	copy(s.message[n+4:], b)
}

func (m *message) addLarge(b []byte) {
	s := m.s
	if m.h == nil {
		m.h = sha256.New()
	}
	m.h.Write(binary.LittleEndian.AppendUint32(s.message[m.start:], uint32(len(b))))
	m.h.Write(b)
	s.message = s.message[:m.start]
}

// close gives the representation, which lies in s.made.
func (m *message) close(bracket byte) part {
	s := m.s
	start := len(s.made)
	s.made = append(s.made, bracket)
	if m.h == nil {
		sum := sha256.Sum256(s.message[m.start:])
		s.made = append(s.made, sum[:]...)
	} else {
		m.h.Write(s.message[m.start:])
		s.made = m.h.Sum(s.made)
	}
	s.message = s.message[:m.start]
	return s.lastMade(start)
}

// sumStrict is Sum by jsontext, which decides what is JSON.
func sumStrict(v []byte) [sha256.Size]byte {
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
