package amqptest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The codes of what the server reads and writes (OASIS AMQP 1.0, transport and
// security; docs.oasis-open.org/amqp/core/v1.0).
const (
	codeOpen        = 0x10
	codeBegin       = 0x11
	codeAttach      = 0x12
	codeFlow        = 0x13
	codeTransfer    = 0x14
	codeDisposition = 0x15
	codeDetach      = 0x16
	codeEnd         = 0x17
	codeClose       = 0x18
	codeError       = 0x1d
	codeAccepted    = 0x24
	codeRejected    = 0x25
	codeReleased    = 0x26
	codeModified    = 0x27
	codeSource      = 0x28

	codeMechanisms = 0x40
	codeInit       = 0x41
	codeOutcome    = 0x44
)

const (
	frameAMQP = 0
	frameSASL = 1
	maxFrame  = 64 << 10
)

// frame is one that came: its performative's fields, undecoded, and what follows.
type frame struct {
	channel uint16
	code    uint64
	fields  []raw
	payload []byte
}

// raw is an encoded value.
type raw []byte

// symbol is an AMQP symbol.
type symbol string

// described is a value with a descriptor.
type described struct {
	code  uint64
	value []any
}

// tagged is a value with a descriptor of a vendor's.
type tagged struct {
	code  uint64
	value any
}

// dictionary is a map whose keys are symbols, as keys and values in turn.
type dictionary []any

var errShort = errors.New("amqp: cut short")

// readFrame reads one frame; code is 0 for an empty one.
func readFrame(r io.Reader) (f frame, err error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return f, err
	}
	size, offset := binary.BigEndian.Uint32(head[:]), int(head[4])*4
	if size < 8 || size > maxFrame || offset < 8 || offset > int(size) {
		return f, fmt.Errorf("amqp: a frame of %d bytes with %d of header", size, offset)
	}
	f.channel = binary.BigEndian.Uint16(head[6:])
	body := make([]byte, size-8)
	if _, err := io.ReadFull(r, body); err != nil {
		return f, err
	}
	body = body[offset-8:]
	if len(body) == 0 {
		return f, nil
	}
	if body[0] != 0 {
		return f, errors.New("amqp: a frame without a performative")
	}
	descriptor, rest, err := next(body[1:])
	if err != nil {
		return f, err
	}
	list, payload, err := next(rest)
	if err != nil {
		return f, err
	}
	f.code, f.payload = number(descriptor), payload
	f.fields, err = items(list)
	return f, err
}

// next cuts one value off b.
func next(b []byte) (v raw, rest []byte, err error) {
	if len(b) == 0 {
		return nil, nil, errShort
	}
	n := 1
	switch c := b[0]; {
	case c == 0: // described: descriptor and value
		_, after, err := next(b[1:])
		if err != nil {
			return nil, nil, err
		}
		_, after, err = next(after)
		if err != nil {
			return nil, nil, err
		}
		n = len(b) - len(after)
	case c>>4 == 4:
	case c>>4 >= 5 && c>>4 <= 9: // 1, 2, 4, 8 or 16 bytes
		n += 1 << (c>>4 - 5)
	case c>>4 == 0xa || c>>4 == 0xc || c>>4 == 0xe: // with their size in a byte
		if len(b) < 2 {
			return nil, nil, errShort
		}
		n += 1 + int(b[1])
	case c>>4 == 0xb || c>>4 == 0xd || c>>4 == 0xf: // or in four
		if len(b) < 5 {
			return nil, nil, errShort
		}
		n += 4 + int(binary.BigEndian.Uint32(b[1:]))
	default:
		return nil, nil, fmt.Errorf("amqp: type %#x", c)
	}
	if n > len(b) {
		return nil, nil, errShort
	}
	return raw(b[:n]), b[n:], nil
}

// items gives the members of a list.
func items(list raw) ([]raw, error) {
	var count int
	var b []byte
	switch {
	case len(list) >= 1 && list[0] == 0x45:
		return nil, nil
	case len(list) >= 3 && list[0] == 0xc0:
		count, b = int(list[2]), list[3:]
	case len(list) >= 9 && list[0] == 0xd0:
		count, b = int(binary.BigEndian.Uint32(list[5:])), list[9:]
	default:
		return nil, errors.New("amqp: not a list")
	}
	var all []raw
	for range count {
		v, rest, err := next(b)
		if err != nil {
			return nil, err
		}
		all, b = append(all, v), rest
	}
	return all, nil
}

// field gives a field, nil if it is null or left out.
func (f frame) field(i int) raw {
	if i >= len(f.fields) || f.fields[i][0] == 0x40 {
		return nil
	}
	return f.fields[i]
}

// number reads an integer that is not negative, 0 for anything else.
func number(v raw) uint64 {
	if len(v) == 0 {
		return 0
	}
	var n uint64
	switch v[0] {
	case 0x43, 0x44, 0x50, 0x52, 0x53, 0x54, 0x55, 0x60, 0x70, 0x71, 0x80, 0x81:
		for _, b := range v[1:] {
			n = n<<8 | uint64(b)
		}
	}
	return n
}

func truth(v raw) bool {
	return len(v) == 1 && v[0] == 0x41 || len(v) == 2 && v[0] == 0x56 && v[1] == 1
}

// text reads a string, symbol or binary.
func text(v raw) string {
	switch {
	case len(v) >= 2 && v[0]>>4 == 0xa:
		return string(v[2:])
	case len(v) >= 5 && v[0]>>4 == 0xb:
		return string(v[5:])
	}
	return ""
}

// inside gives the fields of a described list.
func inside(v raw) []raw {
	_, rest := undescribed(v)
	fields, err := items(rest)
	if err != nil {
		return nil
	}
	return fields
}

// undescribed takes a value's descriptor off.
func undescribed(v raw) (code uint64, value raw) {
	if len(v) == 0 || v[0] != 0 {
		return 0, v
	}
	descriptor, rest, err := next(v[1:])
	if err != nil {
		return 0, nil
	}
	return number(descriptor), rest
}

// pairs gives the members of a map by the texts of their keys.
func pairs(m raw) map[string]raw {
	var b []byte
	switch {
	case len(m) >= 3 && m[0] == 0xc1:
		b = m[3:]
	case len(m) >= 9 && m[0] == 0xd1:
		b = m[9:]
	}
	all := map[string]raw{}
	for len(b) > 0 {
		key, rest, err := next(b)
		if err != nil {
			return all
		}
		value, rest, err := next(rest)
		if err != nil {
			return all
		}
		all[text(key)], b = value, rest
	}
	return all
}

// address reads that of a source or target.
func address(terminus raw) string {
	fields := inside(terminus)
	if len(fields) == 0 {
		return ""
	}
	return text(fields[0])
}

// appendValue encodes v.
func appendValue(b []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return append(b, 0x40)
	case raw:
		if v == nil {
			return append(b, 0x40)
		}
		return append(b, v...)
	case bool:
		return append(b, map[bool]byte{true: 0x41, false: 0x42}[v])
	case uint8:
		return append(b, 0x50, v)
	case uint16:
		return binary.BigEndian.AppendUint16(append(b, 0x60), v)
	case uint32:
		return binary.BigEndian.AppendUint32(append(b, 0x70), v)
	case uint64:
		return binary.BigEndian.AppendUint64(append(b, 0x80), v)
	case string:
		return append(binary.BigEndian.AppendUint32(append(b, 0xb1), uint32(len(v))), v...)
	case symbol:
		return append(binary.BigEndian.AppendUint32(append(b, 0xb3), uint32(len(v))), v...)
	case []byte:
		return append(binary.BigEndian.AppendUint32(append(b, 0xb0), uint32(len(v))), v...)
	case int64:
		return binary.BigEndian.AppendUint64(append(b, 0x81), uint64(v))
	case tagged:
		return appendValue(binary.BigEndian.AppendUint64(append(b, 0, 0x80), v.code), v.value)
	case dictionary:
		var list []byte
		for i, item := range v {
			if name, ok := item.(string); ok && i%2 == 0 {
				item = symbol(name)
			}
			list = appendValue(list, item)
		}
		b = binary.BigEndian.AppendUint32(append(b, 0xd1), uint32(len(list)+4))
		b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
		return append(b, list...)
	case described:
		b = append(b, 0, 0x53, byte(v.code)) // all codes here fit; go-amqp reads no other form
		var list []byte
		for _, item := range v.value {
			list = appendValue(list, item)
		}
		b = binary.BigEndian.AppendUint32(append(b, 0xd0), uint32(len(list)+4))
		b = binary.BigEndian.AppendUint32(b, uint32(len(v.value)))
		return append(b, list...)
	}
	return append(b, 0x40) // of no other type is anything written here
}

// appendFrame encodes a frame.
func appendFrame(b []byte, kind uint8, channel uint16, code uint64, fields []any, payload []byte) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, 2, kind)
	b = binary.BigEndian.AppendUint16(b, channel)
	b = appendValue(b, described{code, fields})
	b = append(b, payload...)
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}
