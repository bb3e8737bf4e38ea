package broker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// mark remembers on disk how far the stream of events was acknowledged, so that
// a store which lost some of it is noticed at the next start. The server itself
// takes what it finds for all there was.
//
// It is written after each sync with what that made durable, into the page
// cache: after a kill it is exact. The next sync takes it to the disk, so after a
// power cut it is one group of events behind, and never ahead.
type mark struct {
	mu      sync.Mutex // guards all below
	file    *os.File
	now     marked
	written marked
}

// marked is what a mark says.
type marked struct {
	created time.Time // of the stream
	last    uint64    // durable up to here
	deleted uint64    // events that people deleted, in the middle
}

const markName = "gridfan.mark"

// markFormat has a fixed width, so that each write replaces the one before.
const markFormat = "created %020d last %020d deleted %020d\n"

// readMark gives what the last process knew; ok is false when there is no mark.
func readMark(dir string) (m marked, ok bool, err error) {
	b, err := os.ReadFile(filepath.Join(dir, markName))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(b) == 0 {
		return m, false, nil
	}
	if err != nil {
		return m, false, fmt.Errorf("mark of the store: %w", err)
	}
	var nano int64
	if _, err := fmt.Sscanf(string(b), markFormat, &nano, &m.last, &m.deleted); err != nil {
		return m, false, fmt.Errorf("mark of the store %s is not readable: %w; delete the file if the store is as it should be", filepath.Join(dir, markName), err)
	}
	m.created = time.Unix(0, nano)
	return m, true, nil
}

// openMark begins to keep a mark of a stream.
func openMark(dir string, now marked) (*mark, error) {
	f, err := os.OpenFile(filepath.Join(dir, markName), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("mark of the store: %w", err)
	}
	m := &mark{file: f, now: now}
	return m, m.write()
}

// advance says that everything up to a sequence is durable.
func (m *mark) advance(last uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.last = max(m.now.last, last)
}

// look compares with the stream as it is. again says that it was made anew.
func (m *mark) look(created time.Time, deleted uint64) (again bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if again = !created.Equal(m.now.created); again {
		m.now = marked{created: created}
	}
	m.now.deleted = deleted
	return again
}

func (m *mark) durable() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now.last
}

// write puts the mark into the page cache.
func (m *mark) write() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now == m.written {
		return nil
	}
	if _, err := fmt.Fprintf(writerAt{m.file}, markFormat, m.now.created.UnixNano(), m.now.last, m.now.deleted); err != nil {
		return fmt.Errorf("mark of the store: %w", err)
	}
	m.written = m.now
	return nil
}

func (m *mark) close() error {
	return errors.Join(m.write(), m.file.Sync(), m.file.Close())
}

// writerAt writes at the beginning of a file.
type writerAt struct{ f *os.File }

func (w writerAt) Write(b []byte) (int, error) { return w.f.WriteAt(b, 0) }
