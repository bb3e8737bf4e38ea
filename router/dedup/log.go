package dedup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// maxSegment is how many entries a file of the log gets: 16 MiB, so that with
// 10 million ids a day the disk holds a tenth more than it must.
const maxSegment = 1 << 20

// smallSegment and maxSmall say when the log is written anew because it is in
// too many pieces: each Open that has something to log begins a file.
const (
	smallSegment = maxSegment / 4
	maxSmall     = 16
)

// syncEvery is how often what was written is synced. What is lost with the power
// comes from the stream: at 20,000 events a second that are 200,000.
const syncEvery = 10 * time.Second

// rewritePause is how long to wait after the log could not be written anew:
// each try may write all ids before it fails.
const rewritePause = 30 * time.Second

// tidyPause is how long to wait when that was only for tidiness: what there is
// serves as well.
const tidyPause = time.Hour

// file is what the log needs of a file; tests have one on a full disk.
type file interface {
	io.WriterAt
	Sync() error
	Close() error
}

// createFile makes a file that is not there yet.
func createFile(name string) (file, error) {
	return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

// journal is the log as it is written. One goroutine uses it, without locks.
type journal struct {
	dir    string
	stream uint64
	create func(name string) (file, error)

	segments []segment // oldest first; the last is the one in file if that is open
	next     uint64    // number of the next one
	session  uint64    // zero until it has a file
	base     uint64    // see header
	covered  uint64    // of the last block

	file    file
	size    int64
	entries int       // in file
	made    bool      // file is not synced into its folder yet
	dirty   bool      // file is not synced
	synced  time.Time // when it was

	out   []byte // blocks that belong at size; stays when the disk refuses it
	spare []byte // the buffer that pending does not use

	pieces  bool      // there are too many of them
	damaged bool      // what was read at Open
	retry   time.Time // no writing before
	tidy    time.Time // no writing anew before, if only for these two
	said    time.Time // when trouble was last logged; zero when there is none
}

func newJournal(dir string, s Stream, create func(string) (file, error)) *journal {
	return &journal{dir: dir, stream: streamHash(s.ID), create: create, synced: time.Now()}
}

// writeLog brings the log up to date if the disk lets it.
func (x *Index) writeLog() {
	if x.journal != nil && !time.Now().Before(x.journal.retry) {
		x.sayLog(x.tryLog(false))
	}
}

// closeLog does so for the last time.
func (x *Index) closeLog() error {
	j := x.journal
	if j == nil {
		return nil
	}
	err := x.tryLog(true)
	x.losePending()
	if j.file != nil {
		err = errors.Join(err, j.file.Close())
		j.file = nil
	}
	if err != nil {
		return fmt.Errorf("close the log of ids: %w", err)
	}
	return nil
}

// sayLog logs trouble with the disk, and its end.
func (x *Index) sayLog(err error) {
	j := x.journal
	switch {
	case err == nil && !j.said.IsZero():
		j.said = time.Time{}
		x.log.Info("the log of ids is written again")
	case err != nil && (j.said.IsZero() || time.Since(j.said) >= repeat):
		j.said = time.Now()
		x.log.Warn("the log of ids cannot be written; they stay in memory, and the next start reads them from the stream", "error", err)
	}
}

func (x *Index) tryLog(last bool) error {
	j := x.journal
	x.mu.Lock()
	gap := !x.pending.collecting
	x.mu.Unlock()
	if gap || (j.pieces || j.damaged) && !time.Now().Before(j.tidy) {
		if err := x.rewrite(); err != nil {
			if gap {
				j.retry = time.Now().Add(rewritePause)
				return err
			}
			j.tidy = time.Now().Add(tidyPause)
			x.log.Warn("the log of ids cannot be written anew; it goes on as it is", "error", err)
		}
	}
	if err := x.appendLog(); err != nil {
		j.retry = time.Now().Add(tick)
		return err
	}
	if !j.dirty || !last && time.Since(j.synced) < syncEvery {
		return nil
	}
	if err := x.syncLog(); err != nil {
		return err
	}
	return j.expire(x.table.cut(seconds(x.table.now())))
}

// losePending gives up what the log lacks: from here on it has a gap.
func (x *Index) losePending() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.pending = pending{}
}

// appendLog writes pending. When that fails, what was taken stays in out, and the
// next call writes it to the same place, over what may be there of it.
func (x *Index) appendLog() error {
	j := x.journal
	if err := j.writeOut(); err != nil {
		return err
	}
	x.mu.Lock()
	idle := !x.pending.collecting || len(x.pending.entries) == 0 && x.coverage.covered == j.covered
	x.mu.Unlock()
	if idle {
		return nil
	}
	if err := x.ready(); err != nil {
		return err
	}
	x.take()
	return j.writeOut()
}

func (j *journal) writeOut() error {
	if len(j.out) == 0 {
		return nil
	}
	if _, err := j.file.WriteAt(j.out, j.size); err != nil {
		return err
	}
	j.dirty = true
	j.size += int64(len(j.out))
	j.out = reuse(j.out)
	return nil
}

// take makes blocks of pending.
func (x *Index) take() {
	j := x.journal
	x.mu.Lock()
	if !x.pending.collecting { // since we looked
		x.mu.Unlock()
		return
	}
	h := header{
		stream: j.stream, session: j.session, base: j.base, covered: j.covered,
		highest: x.pending.highest, since: x.since(),
	}
	covered, entries := x.coverage.covered, x.pending.entries
	x.pending.entries, x.pending.highest = j.spare, 0
	x.mu.Unlock()

	j.entries += len(entries) / entrySize
	s := &j.segments[len(j.segments)-1]
	rest := entries
	for {
		n := min(len(rest), maxBlock*entrySize)
		if n == len(rest) {
			h.covered = covered // only with the last is all there
		}
		j.out = h.block(j.out, rest[:n])
		s.newest = max(s.newest, h.newest)
		if rest = rest[n:]; len(rest) == 0 {
			break
		}
	}
	j.covered = covered
	j.spare = reuse(entries)
}

// block appends a block with these entries to b.
func (h *header) block(b, entries []byte) []byte {
	h.count, h.newest = uint32(len(entries)/entrySize), 0
	for i := 0; i < len(entries); i += entrySize {
		h.newest = max(h.newest, binary.LittleEndian.Uint32(entries[i+12:]))
	}
	return h.encode(b, entries)
}

// reuse empties a buffer, and lets it go if a stall made it large.
func reuse(b []byte) []byte {
	if cap(b) > 1<<20 {
		return nil
	}
	return b[:0]
}

// ready makes sure that there is a file to append to.
func (x *Index) ready() error {
	j := x.journal
	if j.file != nil && j.entries < maxSegment {
		return nil
	}
	if j.file != nil {
		if j.dirty {
			if err := x.syncLog(); err != nil {
				return err
			}
		}
		_ = j.file.Close() // all of it is synced
		j.file = nil
	}
	s := segment{number: j.next}
	f, err := j.create(filepath.Join(j.dir, s.name()))
	if err != nil {
		return err
	}
	if j.session == 0 {
		j.session = s.number
	}
	j.segments = append(j.segments, s)
	j.next++
	j.file, j.size, j.entries, j.made = f, 0, 0, true
	return nil
}

// syncLog makes what was written durable.
func (x *Index) syncLog() error {
	j := x.journal
	err := j.file.Sync()
	if err == nil && j.made {
		err = syncDir(j.dir)
	}
	if err != nil {
		// What the file holds now is unknown, even if the next sync succeeds.
		x.losePending()
		return err
	}
	j.dirty, j.made, j.synced = false, false, time.Now()
	return nil
}

// expire removes files in which everything is older than cut, but for the last:
// that says what is covered. While the log is damaged the first of them shows
// what the others lack.
func (j *journal) expire(cut uint32) error {
	for !j.damaged && len(j.segments) > 1 && j.segments[0].newest <= cut {
		if err := remove(filepath.Join(j.dir, j.segments[0].name())); err != nil {
			return err
		}
		j.segments = j.segments[1:]
	}
	return nil
}

// rewrite replaces the log with a new one of all that is in the table. It closes
// a gap, and gets rid of what is not to be believed.
func (x *Index) rewrite() error {
	x.mu.Lock()
	had := x.pending.collecting
	// What is added from here on goes to the log after the base. It may be in
	// both; all that was covered before is in the table already.
	x.pending.collecting = true
	covered, since := x.coverage.covered, x.since()
	x.mu.Unlock()
	err := x.writeBase(covered, since)
	if err != nil && !had {
		x.losePending()
	}
	return err
}

func (x *Index) writeBase(covered uint64, since uint32) error {
	j := x.journal
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return err
	}
	names, segments, err := listDir(j.dir)
	if err != nil {
		return err
	}
	s := segment{number: max(j.next, 1), base: true}
	if n := len(segments); n > 0 {
		s.number = max(s.number, segments[n-1].number+1)
	}
	unfinished := filepath.Join(j.dir, s.unfinished())
	if s.newest, err = x.writeAll(unfinished, header{stream: j.stream, session: s.number, since: since}, covered); err != nil {
		return errors.Join(err, remove(unfinished))
	}
	if err := os.Rename(unfinished, filepath.Join(j.dir, s.name())); err != nil {
		return errors.Join(err, remove(unfinished))
	}
	if j.file != nil {
		_ = j.file.Close() // it is obsolete
	}
	j.segments, j.next, j.session, j.base, j.covered = []segment{s}, s.number+1, s.number, 0, covered
	j.file, j.dirty, j.made, j.out = nil, false, false, nil
	j.pieces, j.damaged = false, false
	if err := syncDir(j.dir); err != nil {
		return err
	}
	for _, name := range names {
		// The next Open passes over what is still there.
		_ = os.Remove(filepath.Join(j.dir, name))
	}
	return nil
}

// writeAll writes all ids to a new file and gives the time of the newest.
func (x *Index) writeAll(name string, h header, covered uint64) (newest uint32, err error) {
	f, err := x.journal.create(name)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var out, entries []byte
	var size int64
	flush := func() error {
		_, err := f.WriteAt(out, size)
		size += int64(len(out))
		out = out[:0]
		return err
	}
	for i := range x.table.shards {
		entries = x.table.snapshot(i, entries)
		h.highest = x.highest.Load() // after the entries: none is of a higher one
		rest := entries
		for ; len(rest) >= maxBlock*entrySize; rest = rest[maxBlock*entrySize:] {
			out = h.block(out, rest[:maxBlock*entrySize])
			newest = max(newest, h.newest)
		}
		entries = append(entries[:0], rest...)
		if len(out) >= 1<<20 { // long writes without holding much
			if err := flush(); err != nil {
				return 0, err
			}
		}
	}
	h.covered = covered // only with the last is all there
	out = h.block(out, entries)
	newest = max(newest, h.newest)
	if err := flush(); err != nil {
		return 0, err
	}
	return newest, f.Sync()
}

// listDir gives the files of the log: all their names, and those that are
// finished in order.
func listDir(dir string) (names []string, segments []segment, err error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, d := range list {
		s, unfinished, ok := parseSegment(d.Name())
		if !ok {
			continue
		}
		names = append(names, d.Name())
		if !unfinished {
			segments = append(segments, s)
		}
	}
	slices.SortFunc(segments, func(a, b segment) int {
		if a.number < b.number {
			return -1
		}
		return 1
	})
	return names, segments, nil
}

// remove is os.Remove for what may be gone already.
func remove(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// syncDir makes the names in a folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
