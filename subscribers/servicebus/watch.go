package servicebus

import (
	"encoding/binary"
	"errors"
)

// errNeither is the end of a connection over which the service said of a message
// neither that it was accepted nor that it was rejected.
var errNeither = errors.New("the service neither accepted nor rejected a message")

// outcomes looks for the outcomes of messages in what the service sends. The client
// takes every one but a rejection for success (go-amqp v1.7.0, Sender.Send) and shows
// nobody which it was (azservicebus v1.11.0, Sender.SendMessage), so what is neither
// must not get as far as the client.
//
// It reads frames by their first bytes and keeps no more of them. What it does not
// understand it leaves to the client.
type outcomes struct {
	head []byte // of the frame at hand
	skip uint32 // bytes of it that are still to come
	lost bool   // where a frame begins is no longer known
}

// enoughOfFrame holds a disposition up to the name of its outcome.
const enoughOfFrame = 64

// neither says whether with b there came an outcome that is neither.
func (o *outcomes) neither(b []byte) bool {
	for len(b) > 0 && !o.lost {
		if o.skip > 0 {
			n := min(o.skip, uint32(len(b)))
			o.skip, b = o.skip-n, b[n:]
			continue
		}
		o.head, b = append(o.head, b[0]), b[1:]
		if len(o.head) < 8 {
			continue
		}
		if string(o.head[:4]) == "AMQP" { // what opens a layer (§2.2 of the transport)
			o.head = o.head[:0]
			continue
		}
		size := binary.BigEndian.Uint32(o.head)
		if size < 8 {
			o.lost = true
			return false
		}
		if n := uint32(len(o.head)); n < min(size, enoughOfFrame) {
			continue
		}
		found := unsettledOutcome(o.head)
		o.skip, o.head = size-uint32(len(o.head)), o.head[:0]
		if found {
			return true
		}
	}
	return false
}

// The descriptors of what is looked for (OASIS AMQP 1.0, part 2 §2.7.6 and part 3
// §3.4; docs.oasis-open.org/amqp/core/v1.0).
const (
	codeDisposition = 0x15
	codeReceived    = 0x23
	codeReleased    = 0x26
	codeModified    = 0x27
)

// unsettledOutcome says whether a frame that begins so is a receiver's disposition
// with an outcome that is neither.
func unsettledOutcome(frame []byte) bool {
	start := 4 * int(frame[4])
	if frame[5] != 0 || start < 8 || start >= len(frame) {
		return false // of another layer
	}
	code, rest, ok := descriptor(frame[start:])
	if !ok || code != codeDisposition || len(rest) == 0 {
		return false
	}
	header := map[byte]int{0xc0: 3, 0xd0: 9}[rest[0]] // a list's code, size and count
	if header == 0 || len(rest) <= header {
		return false
	}
	rest = rest[header:]
	receiver := rest[0] == 0x41 || rest[0] == 0x56 && len(rest) > 1 && rest[1] == 1
	for range 4 { // role, first, last, settled
		if rest = afterFixed(rest); rest == nil {
			return false
		}
	}
	code, _, ok = descriptor(rest)
	return ok && receiver && (code == codeReceived || code == codeReleased || code == codeModified)
}

// descriptor reads that of a described value, and gives what follows it.
func descriptor(b []byte) (code uint64, rest []byte, ok bool) {
	switch {
	case len(b) >= 3 && b[0] == 0 && b[1] == 0x53:
		return uint64(b[2]), b[3:], true
	case len(b) >= 10 && b[0] == 0 && b[1] == 0x80:
		return binary.BigEndian.Uint64(b[2:]), b[10:], true
	}
	return 0, nil, false
}

// afterFixed gives what follows a value of fixed width; nil if there is none, or
// nothing follows.
func afterFixed(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	width, ok := map[byte]int{4: 0, 5: 1, 6: 2, 7: 4, 8: 8}[b[0]>>4]
	if !ok || len(b) <= 1+width {
		return nil
	}
	return b[1+width:]
}
