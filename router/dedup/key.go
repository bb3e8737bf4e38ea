package dedup

import (
	"crypto/sha256"
	"encoding/binary"
)

// Key condenses an event's identity and content. Make it with KeyOf.
//
// An index of n identities takes a new event for one of them by mistake with a
// probability of n·2^-96 for Same, which would lose the event, and of n·2^-64
// for Reused, which costs an unneeded suffix. With 20 million ids that is one
// loss in 4·10^21 events. An identity that was used before, with other content,
// differs from its first content in Digest alone (2^-32) and from all later
// ones in Pair and Digest (2^-96 each), so that even a sender that gives all its
// events one id loses none.
type Key struct {
	ID     uint64 // of the identity
	Pair   uint64 // of the identity and the content's digest together
	Digest uint32 // of the same, from other bits
}

// KeyOf gives the key of an event. It is a pure function and stays as it is for
// ever, because keys are on disk. SHA-256 keeps senders from choosing events
// that take the place of others'.
func KeyOf(identity, digest string) Key {
	var room [256]byte // more than our identities and digests take: no allocation
	text := binary.LittleEndian.AppendUint64(room[:0], uint64(len(identity)))
	text = append(text, identity...)
	id := sha256.Sum256(text)
	// The length in front tells this text from every identity's, and where in
	// it the digest begins. The byte between keeps an empty digest apart.
	text = append(text, 0)
	text = append(text, digest...)
	pair := sha256.Sum256(text)
	return Key{
		ID:     binary.LittleEndian.Uint64(id[:]),
		Pair:   binary.LittleEndian.Uint64(pair[:]),
		Digest: binary.LittleEndian.Uint32(pair[8:]),
	}
}

// reused in place of a digest marks an identity that came with further digests:
// those are under their Pair.
const reused = 1<<32 - 1

// tabled is k as tables hold it. Giving the mark's value away costs one digest
// in four billion a neighbour's.
func (k Key) tabled() Key {
	if k.Digest == reused {
		k.Digest--
	}
	return k
}

// Seen says what an index knows of a key.
type Seen int

// What an index can know of a key.
const (
	New    Seen = iota // nothing within the horizon
	Same               // this identity with this digest
	Reused             // this identity, but only with other digests
)

func (s Seen) String() string {
	switch s {
	case New:
		return "new"
	case Same:
		return "same"
	default:
		return "reused"
	}
}
