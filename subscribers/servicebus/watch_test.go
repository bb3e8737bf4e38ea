package servicebus

import (
	"encoding/binary"
	"testing"
)

// amqpFrame makes a frame of a body.
func amqpFrame(kind byte, body ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	return append(append(b, 2, kind, 0, 0), body...)
}

// Outcomes are found however the bytes are cut and the numbers written, and nothing
// else is taken for one.
func TestOutcomes(t *testing.T) {
	opening := []byte("AMQP\x00\x01\x00\x00")
	disposition := func(state ...byte) []byte {
		fields := append([]byte{0x41, 0x43, 0x52, 7, 0x41}, state...)
		return amqpFrame(0, append([]byte{0, 0x53, 0x15, 0xc0, byte(1 + len(fields)), 5}, fields...)...)
	}
	long := amqpFrame(0, append([]byte{
		0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x15, 0xd0, 0, 0, 0, 30, 0, 0, 0, 5,
		0x56, 1, 0x70, 0, 0, 0, 1, 0x40, 0x56, 1, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x26, 0x45,
	}, make([]byte, 200)...)...)
	bySender := disposition(0, 0x53, 0x26, 0x45)
	bySender[14] = 0x42
	for name, tt := range map[string]struct {
		frame []byte
		want  bool
	}{
		"accepted":         {disposition(0, 0x53, 0x24, 0x45), false},
		"rejected":         {disposition(0, 0x53, 0x25, 0x45), false},
		"released":         {disposition(0, 0x53, 0x26, 0x45), true},
		"modified":         {disposition(0, 0x53, 0x27, 0xc0, 3, 1, 0x41, 0x40), true},
		"received":         {disposition(0, 0x53, 0x23, 0x45), true},
		"in long form":     {long, true},
		"without a state":  {disposition(0x40), false},
		"of a sender":      {bySender, false},
		"of another layer": {amqpFrame(1, disposition(0, 0x53, 0x26, 0x45)[8:]...), false},
		"a heartbeat":      {amqpFrame(0), false},
		"a transfer":       {amqpFrame(0, append([]byte{0, 0x53, 0x14, 0xc0, 2, 0}, make([]byte, 5000)...)...), false},
		"no frame":         {[]byte{0, 0, 0, 1, 0, 0, 0, 0}, false},
	} {
		stream := append(append(append([]byte{}, opening...), disposition(0, 0x53, 0x24, 0x45)...), tt.frame...)
		for _, chunk := range []int{1, 7, len(stream)} {
			var o outcomes
			got := false
			for rest := stream; len(rest) > 0; {
				n := min(chunk, len(rest))
				got = o.neither(rest[:n]) || got
				rest = rest[n:]
			}
			if got != tt.want {
				t.Errorf("%s, %d bytes at a time: %v", name, chunk, got)
			}
		}
	}
}

func FuzzOutcomes(f *testing.F) {
	f.Add([]byte("AMQP\x00\x01\x00\x00\x00\x00\x00\x08\x02\x00\x00\x00"))
	f.Add(amqpFrame(0, 0, 0x53, 0x15, 0xc0, 9, 5, 0x41, 0x43, 0x52, 7, 0x41, 0, 0x53, 0x26, 0x45))
	f.Fuzz(func(t *testing.T, b []byte) {
		var whole, parts outcomes
		want, got := whole.neither(b), false
		for i := range b {
			if parts.neither(b[i : i+1]) {
				got = true
				break
			}
		}
		if got != want {
			t.Errorf("whole %v, in parts %v", want, got)
		}
	})
}
