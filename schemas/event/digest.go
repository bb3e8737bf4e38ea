package event

import (
	"crypto/sha256"
	"encoding/hex"

	"github.com/gridfan/gridfan/schemas/rawjson"
)

// Digest condenses what an event says (not when or how it was sent) into 32
// hexadecimal digits: two sendings of one event have the same digest, two
// events that reuse an id do not. Layout and member order of JSON data do not
// count. 128 bits of SHA-256: even among 10^12 events the odds that any two
// different ones agree are below 10^-14.
func Digest(typ, subject string, data []byte, isJSON bool) string {
	if isJSON {
		sum := rawjson.Sum(data)
		data = sum[:]
	}
	h := sha256.New()
	for _, part := range [][]byte{[]byte(typ), []byte(subject), data} {
		n := len(part)
		h.Write([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)})
		h.Write(part)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
