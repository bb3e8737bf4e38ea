package poll

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"

	"github.com/gridfan/gridfan/schemas/record"
)

// known is how much is remembered of a source's rows: which there are, and in which
// version each was seen last. That is needed when all rows have to be read again, and
// for deletions that only show in that. It is kept as blocks of entries in the order
// in which rows were seen; the last entry of a key counts. Memory is taken only while
// rows are compared: 16 bytes each.
type known struct {
	// From is the first block that counts.
	From uint64 `json:"from,omitempty"`
	// Live is how many rows there were when they were counted last, Stored how many
	// entries there are.
	Live   int64 `json:"live"`
	Stored int64 `json:"stored"`
	// Full: not all rows are remembered, so nothing can be compared.
	Full bool `json:"full,omitempty"`
}

const (
	// mostKnown bounds the rows remembered of one source: 160 MB of memory while
	// they are compared.
	mostKnown = 10_000_000
	// mostKey bounds a row's key.
	mostKey = 4 << 10
	// blockSize is what a block has at most, but for one entry.
	blockSize = 512 << 10
	// fewStale is never worth writing all anew.
	fewStale = 1000
)

// fingerprint condenses text to 64 bits. Among 10 million keys two agree with a
// chance of 1 in 370,000; then one of the two may miss a comparison.
func fingerprint(kind byte, text []byte) uint64 {
	b := make([]byte, 0, 256)
	h := sha256.Sum256(append(append(b, kind), text...))
	return binary.LittleEndian.Uint64(h[:])
}

// fingerprintOf gives a row's key and version. Of a deleted row the version is 0, of
// any other one it is not.
func fingerprintOf(r *record.Row) (key, version uint64) {
	key = fingerprint('k', []byte(r.Key))
	switch {
	case r.Deleted:
		return key, 0
	case r.Version != "" && !r.ByContent:
		return key, fingerprint('v', []byte(r.Version)) | 1
	}
	return key, fingerprint('d', r.Data) | 1
}

// A block is its layout, one byte, and then entries: a number that has the length of
// the key and below that whether it is a GUID, which has 16 bytes then, and whether the
// row is deleted; the key; and the version, 8 bytes, unless it is deleted.
const (
	flagGUID    = 1
	flagDeleted = 2
	flagBits    = 2
)

// appendEntry adds an entry to a block.
func appendEntry(block []byte, key string, version uint64) []byte {
	if len(block) == 0 {
		block = append(block, layout)
	}
	flags := uint64(0)
	if version == 0 {
		flags |= flagDeleted
	}
	var guid [16]byte
	if packGUID(key, &guid) {
		block = binary.AppendUvarint(block, 16<<flagBits|flags|flagGUID)
		block = append(block, guid[:]...)
	} else {
		block = binary.AppendUvarint(block, uint64(len(key))<<flagBits|flags)
		block = append(block, key...)
	}
	if version != 0 {
		block = binary.LittleEndian.AppendUint64(block, version)
	}
	return block
}

var errBlock = errors.New("a block of known rows is damaged")

// entries gives what is in a block. key is good until each returns.
func entries(block []byte, each func(key []byte, version uint64)) error {
	if len(block) == 0 || block[0] != layout {
		return errBlock
	}
	var text [36]byte
	for b := block[1:]; len(b) > 0; {
		head, n := binary.Uvarint(b)
		size := head >> flagBits
		if n <= 0 || size > uint64(len(b)-n) {
			return errBlock
		}
		b = b[n:]
		key := b[:size]
		b = b[size:]
		if head&flagGUID != 0 {
			if size != 16 {
				return errBlock
			}
			key = unpackGUID(key, &text)
		}
		version := uint64(0)
		if head&flagDeleted == 0 {
			if len(b) < 8 {
				return errBlock
			}
			version, b = binary.LittleEndian.Uint64(b), b[8:]
		}
		each(key, version)
	}
	return nil
}

// packGUID packs a key that is a GUID in lower case with hyphens.
func packGUID(key string, guid *[16]byte) bool {
	if len(key) != 36 || key[8] != '-' || key[13] != '-' || key[18] != '-' || key[23] != '-' {
		return false
	}
	digits := make([]byte, 0, 32)
	for i := range len(key) {
		switch c := key[i]; {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f':
			digits = append(digits, c)
		case c != '-':
			return false
		}
	}
	if len(digits) != 32 {
		return false
	}
	_, err := hex.Decode(guid[:], digits)
	return err == nil
}

func unpackGUID(guid []byte, text *[36]byte) []byte {
	at := 0
	for i, span := range [][2]int{{0, 4}, {4, 6}, {6, 8}, {8, 10}, {10, 16}} {
		if i > 0 {
			text[at] = '-'
			at++
		}
		at += hex.Encode(text[at:], guid[span[0]:span[1]])
	}
	return text[:]
}

// index is what is known of all rows, for as long as they are compared.
type index struct {
	rows   []entry // by key
	live   int64
	stored int64
	listed []uint64 // bits, by place in rows
	found  int64    // live rows that are listed
	all    int64    // rows listed, new ones too
}

type entry struct{ key, version uint64 }

// loadIndex reads what is known of a source, which is about so many entries.
func loadIndex(ctx context.Context, k keeper, source string, from uint64, stored int64) (*index, error) {
	x := &index{rows: make([]entry, 0, min(max(stored, 0), 2*mostKnown))}
	err := k.recall(ctx, source, from, func(_ uint64, block []byte) error {
		err := entries(block, func(key []byte, version uint64) {
			x.stored++
			x.rows = append(x.rows, entry{fingerprint('k', key), version})
		})
		if len(x.rows) > 2*mostKnown {
			x.settle()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	x.settle()
	for _, e := range x.rows {
		if e.version != 0 {
			x.live++
		}
	}
	x.listed = make([]uint64, (len(x.rows)+63)/64)
	return x, nil
}

// settle leaves the last entry of each key.
func (x *index) settle() {
	slices.SortStableFunc(x.rows, func(a, b entry) int {
		switch {
		case a.key < b.key:
			return -1
		case a.key > b.key:
			return 1
		}
		return 0
	})
	n := 0
	for i, e := range x.rows {
		if i+1 < len(x.rows) && x.rows[i+1].key == e.key {
			continue
		}
		x.rows[n] = e
		n++
	}
	x.rows = x.rows[:n]
}

// find gives the place of a key.
func (x *index) find(key uint64) (int, bool) {
	return slices.BinarySearchFunc(x.rows, key, func(e entry, key uint64) int {
		switch {
		case e.key < key:
			return -1
		case e.key > key:
			return 1
		}
		return 0
	})
}

// same says whether a row is known in this version.
func (x *index) same(key, version uint64) bool {
	i, ok := x.find(key)
	return ok && x.rows[i].version == version
}

// list notes that a row is there, and says whether it is known in this version.
func (x *index) list(key, version uint64, deleted bool) bool {
	if !deleted {
		x.all++
	}
	i, ok := x.find(key)
	if !ok {
		return false
	}
	e := x.rows[i]
	if bit := uint64(1) << (i % 64); e.version != 0 && x.listed[i/64]&bit == 0 {
		x.listed[i/64] |= bit
		x.found++
	}
	return e.version == version
}

// unlisted says of an entry whether its row is known and was not listed.
func (x *index) unlisted(key uint64) bool {
	i, ok := x.find(key)
	return ok && x.rows[i].version != 0 && x.listed[i/64]>>(i%64)&1 == 0
}

// missing is how many rows are known and were not listed.
func (x *index) missing() int64 { return x.live - x.found }

// suspicious says whether so many rows are missing that somebody has to confirm it:
// a full push of F&O's deletes and inserts a whole table. Of a handful of rows a
// few may go, but not all.
func (x *index) suspicious() bool {
	return x.all == 0 && x.live > 0 || x.missing() >= 5 && x.missing()*5 > x.live
}
