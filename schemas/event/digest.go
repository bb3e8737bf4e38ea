package event

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"

	"github.com/gridfan/gridfan/schemas/rawjson"
)

// Digest condenses what an event says (not when or how it was sent) into 32
// hexadecimal digits: two sendings of one event have the same digest, two
// events that reuse an id do not. Layout and member order of JSON data do not
// count. 128 bits of SHA-256: even among 10^12 events the odds that any two
// different ones agree are below 10^-14.
func Digest(typ, subject string, data []byte, isJSON bool) string {
	// What is hashed is every part after its length. The room is for a type and
	// a subject as most are, and a sum.
	var room [512]byte
	b := appendSize(room[:0], len(typ))
	b = append(b, typ...)
	b = appendSize(b, len(subject))
	b = append(b, subject...)
	var sum [sha256.Size]byte
	switch {
	case isJSON:
		sum = rawjson.Sum(data)
		sum = sha256.Sum256(append(appendSize(b, len(sum)), sum[:]...))
	case len(data) <= len(room):
		sum = sha256.Sum256(append(appendSize(b, len(data)), data...))
	default:
		h := sha256.New()
		h.Write(bytes.Clone(appendSize(b, len(data)))) // b itself stays on the stack
		h.Write(data)
		copy(sum[:], h.Sum(nil))
	}
	var digits [32]byte
	hex.Encode(digits[:], sum[:16])
	return string(digits[:])
}

func appendSize(b []byte, n int) []byte { return binary.LittleEndian.AppendUint32(b, uint32(n)) }
