package dedup

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"regexp"
	"strconv"
)

// The log is a row of numbered files. dedup-<n>.log is appended to;
// dedup-<n>.base holds everything that was known when it was written and makes
// all files with lower numbers obsolete. Each is a row of blocks: a header and
// up to maxBlock entries of 16 bytes.
//
// What is written between one Open and the next is a session. Its blocks say
// what the session began with, so that a reader knows whether it can build on
// what it read before: a session that began at sequence 500 is complete only for
// a reader who knows all up to 500. Damage in a session makes what the rest of
// it says about coverage worthless, but not its ids. The next session counts
// again if it did not rely on what was damaged.

// maxBlock is how many entries a block has at most; 4,096 are 64 KiB, which is
// also what a bad bit costs.
const maxBlock = 4096

const headerSize = 64

// header of a block, little-endian on disk in the order of the fields, after
// magic and checksum and with version before count.
type header struct {
	count   uint32 // of entries
	stream  uint64 // fingerprint of Stream.ID
	session uint64 // number of the file that the session began with
	base    uint64 // all up to this sequence was known before the session
	covered uint64 // and all up to this one once this block is read
	highest uint64 // sequence in this block; entries do not have theirs
	since   uint32 // Stats.Since; later ones may have another horizon or cap
	newest  uint32 // time of an entry
}

const (
	magic   = "gfdd"
	version = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli) // the one that processors have

// encode appends the block with these entries to b.
func (h *header) encode(b, entries []byte) []byte {
	start := len(b)
	b = append(b, magic...)
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = binary.LittleEndian.AppendUint32(b, h.count)
	b = binary.LittleEndian.AppendUint64(b, h.stream)
	b = binary.LittleEndian.AppendUint64(b, h.session)
	b = binary.LittleEndian.AppendUint64(b, h.base)
	b = binary.LittleEndian.AppendUint64(b, h.covered)
	b = binary.LittleEndian.AppendUint64(b, h.highest)
	b = binary.LittleEndian.AppendUint32(b, h.since)
	b = binary.LittleEndian.AppendUint32(b, h.newest)
	b = append(b, entries...)
	binary.LittleEndian.PutUint32(b[start+4:], crc32.Checksum(b[start+8:], castagnoli))
	return b
}

// decode reads a header. That it is one does not say that its block is sound.
func (h *header) decode(b []byte) bool {
	if len(b) < headerSize || string(b[:4]) != magic || binary.LittleEndian.Uint32(b[8:]) != version {
		return false
	}
	*h = header{
		count:   binary.LittleEndian.Uint32(b[12:]),
		stream:  binary.LittleEndian.Uint64(b[16:]),
		session: binary.LittleEndian.Uint64(b[24:]),
		base:    binary.LittleEndian.Uint64(b[32:]),
		covered: binary.LittleEndian.Uint64(b[40:]),
		highest: binary.LittleEndian.Uint64(b[48:]),
		since:   binary.LittleEndian.Uint32(b[56:]),
		newest:  binary.LittleEndian.Uint32(b[60:]),
	}
	return h.count <= maxBlock
}

// size is how long the whole block is.
func (h *header) size() int64 { return headerSize + int64(h.count)*entrySize }

// sound checks a whole block.
func sound(b []byte) bool {
	return crc32.Checksum(b[8:], castagnoli) == binary.LittleEndian.Uint32(b[4:])
}

func (e entry) encode(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, e.id)
	b = binary.LittleEndian.AppendUint32(b, e.digest)
	return binary.LittleEndian.AppendUint32(b, e.at)
}

func decodeEntry(b []byte) entry {
	_ = b[15]
	return entry{
		id:     binary.LittleEndian.Uint64(b),
		digest: binary.LittleEndian.Uint32(b[8:]),
		at:     binary.LittleEndian.Uint32(b[12:]),
	}
}

// streamHash is the fingerprint of a stream's ID.
func streamHash(id string) uint64 {
	h := sha256.Sum256([]byte(id))
	return binary.LittleEndian.Uint64(h[:])
}

// segment is a file of the log.
type segment struct {
	number uint64
	base   bool
	newest uint32 // time of an entry
}

func (s segment) name() string {
	if s.base {
		return fmt.Sprintf("dedup-%08d.base", s.number)
	}
	return fmt.Sprintf("dedup-%08d.log", s.number)
}

// unfinished is the name of a base while it is written.
func (s segment) unfinished() string { return s.name() + ".tmp" }

var segmentName = regexp.MustCompile(`^dedup-([0-9]{8,19})\.(log|base)(\.tmp)?$`)

// parseSegment tells which file of the log has this name, if any.
func parseSegment(name string) (s segment, unfinished, ok bool) {
	m := segmentName.FindStringSubmatch(name)
	if m == nil {
		return segment{}, false, false
	}
	n, err := strconv.ParseUint(m[1], 10, 64)
	s = segment{number: n, base: m[2] == "base"}
	// A number with more zeros in front would be another file's.
	return s, m[3] != "", err == nil && s.name()+m[3] == name
}
