package poll

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/record"
)

func TestBlocks(t *testing.T) {
	type row struct {
		Key     string
		Version uint64
	}
	want := []row{
		{"1f7e4a3c-0000-4abc-9def-0123456789ab", 7},
		{"1f7e4a3c-0000-4abc-9def-0123456789ab", 0},
		{"1F7E4A3C-0000-4ABC-9DEF-0123456789AB", 9}, // another spelling is another key
		{"------------------------------------", 1},
		{"1f7e4a3c-0000-4abc-9def-0123456789-b", 1},
		{"usmf|PO-000123", 1<<64 - 1},
		{"x", 0},
		{strings.Repeat("k", mostKey), 3},
		{"16 bytes, plain!", 5},
	}
	var block []byte
	for _, r := range want {
		block = appendEntry(block, r.Key, r.Version)
	}
	var got []row
	if err := entries(block, func(key []byte, version uint64) { got = append(got, row{string(key), version}) }); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if n := len(appendEntry(nil, want[0].Key, 7)); n != 1+1+16+8 {
		t.Errorf("a GUID takes %d bytes", n)
	}
	for _, bad := range [][]byte{nil, {}, {layout + 1}, {layout, 0x80}, {layout, 40, 'x'}, block[:len(block)-1], {layout, 4<<flagBits | flagGUID, 1, 2, 3, 4}} {
		if err := entries(bad, func([]byte, uint64) {}); err == nil {
			t.Errorf("%v passes", bad[:min(len(bad), 8)])
		}
	}
}

// FuzzEntries: a damaged block is an error or other entries, and what was read is
// written the same again.
func FuzzEntries(f *testing.F) {
	f.Add(appendEntry(appendEntry(nil, "1f7e4a3c-0000-4abc-9def-0123456789ab", 7), "key", 0))
	f.Add([]byte{layout, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, block []byte) {
		var again []byte
		type row struct {
			key     string
			version uint64
		}
		var rows []row
		if entries(block, func(key []byte, version uint64) {
			rows = append(rows, row{string(key), version})
			again = appendEntry(again, string(key), version)
		}) != nil {
			return
		}
		i := 0
		if len(rows) == 0 {
			return
		}
		if err := entries(again, func(key []byte, version uint64) {
			if rows[i] != (row{string(key), version}) {
				t.Errorf("entry %d: %q %d, want %v", i, key, version, rows[i])
			}
			i++
		}); err != nil || i != len(rows) {
			t.Errorf("%v after %d of %d", err, i, len(rows))
		}
	})
}

func TestFingerprints(t *testing.T) {
	row := func(version string, deleted, byContent bool, data string) uint64 {
		_, v := fingerprintOf(&record.Row{Key: "k", Version: version, Deleted: deleted, ByContent: byContent, Data: json.RawMessage(data)})
		return v
	}
	if row("1", true, false, "") != 0 || row("1", false, false, "") == 0 {
		t.Error("only a deleted row has version 0")
	}
	if row("1", false, false, "a") != row("1", false, false, "b") || row("1", false, false, "a") == row("2", false, false, "a") {
		t.Error("a version is not what tells")
	}
	if row("1", false, true, "a") != row("2", false, true, "a") || row("1", false, true, "a") == row("1", false, true, "b") || row("", false, false, "a") != row("2", false, true, "a") {
		t.Error("content is not what tells")
	}
}

func TestIndex(t *testing.T) {
	m := newMemory()
	var behind uint64
	add := func(key string, version uint64) {
		var err error
		if behind, err = m.remember(t.Context(), "a", appendEntry(nil, key, version), behind); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 100 {
		add(fmt.Sprint(i), 1)
	}
	add("5", 3)  // changed
	add("6", 0)  // deleted
	add("7", 0)  // deleted,
	add("7", 5)  // and there again
	add("x", 0)  // never known but as deleted
	add("99", 1) // the same again
	x, err := loadIndex(t.Context(), m, "a", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if x.live != 99 || x.stored != 106 {
		t.Errorf("%d live of %d", x.live, x.stored)
	}
	f := func(key string) uint64 { return fingerprint('k', []byte(key)) }
	if !x.same(f("5"), 3) || x.same(f("5"), 1) || !x.same(f("7"), 5) || x.same(f("nobody"), 1) || !x.same(f("6"), 0) {
		t.Error("the last entry of a key does not count")
	}
	if x.unlisted(f("6")) || !x.unlisted(f("7")) || x.unlisted(f("nobody")) {
		t.Error("only rows that are there can be missing")
	}
	if x.missing() != 99 || !x.suspicious() {
		t.Error("all are missing, and nobody wonders")
	}
	for i := range 79 {
		if i != 6 {
			x.list(f(fmt.Sprint(i)), 1, false)
		}
	}
	x.list(f("0"), 1, false) // twice
	if x.missing() != 21 || !x.suspicious() {
		t.Errorf("%d missing of %d", x.missing(), x.live)
	}
	x.list(f("79"), 1, false)
	x.list(f("80"), 1, false)
	if x.missing() != 19 || x.suspicious() {
		t.Errorf("%d missing of %d", x.missing(), x.live)
	}
	behind, err = m.remember(t.Context(), "a", bytes.Repeat([]byte{0xff}, 9), behind)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := loadIndex(t.Context(), m, "a", 0, 0); err == nil {
		t.Error("a damaged block passes")
	}
}

// BenchmarkKnown measures what comparing takes of memory: one row is one operation.
func BenchmarkKnown(b *testing.B) {
	m := newMemory()
	var block []byte
	for i := range b.N {
		if block = appendEntry(block, fmt.Sprintf("%08x-0000-4abc-9def-0123456789ab", i), uint64(i)|1); len(block) > blockSize {
			m.sequence++
			m.blocks["a"] = append(m.blocks["a"], blockOf(m.sequence, block))
			block = nil
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	if _, err := loadIndex(b.Context(), m, "a", 0, int64(b.N)); err != nil {
		b.Fatal(err)
	}
}

func blockOf(sequence uint64, data []byte) block { return block{sequence, data} }
