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

// mark remembers on disk how far EVENTS was acknowledged, so that a store which
// lost its end is noticed at the next start. The server itself takes what it
// finds for all there was.
//
// It is written before each sync with what the sync before it has made durable:
// written with its own, a power cut in between could leave a mark of events
// that nobody was told about. So it may be one group of events behind.
type mark struct {
	mu      sync.Mutex // guards all below
	file    *os.File
	created time.Time // of the stream
	last    uint64    // durable
	written uint64
}

const markName = "gridfan.mark"

// markFormat has a fixed width, so that each write replaces the one before.
const markFormat = "EVENTS %020d %020d\n"

// readMark gives what the last process knew; ok is false when there is no mark.
func readMark(dir string) (created time.Time, last uint64, ok bool, err error) {
	b, err := os.ReadFile(filepath.Join(dir, markName))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(b) == 0 {
		return created, 0, false, nil
	}
	if err != nil {
		return created, 0, false, fmt.Errorf("mark of the store: %w", err)
	}
	var nano int64
	if _, err := fmt.Sscanf(string(b), markFormat, &nano, &last); err != nil {
		return created, 0, false, fmt.Errorf("mark of the store %s is not readable: %w; delete the file if the store is as it should be", filepath.Join(dir, markName), err)
	}
	return time.Unix(0, nano), last, true, nil
}

// openMark begins to keep a mark of the stream made at a time.
func openMark(dir string, created time.Time, last uint64) (*mark, error) {
	f, err := os.OpenFile(filepath.Join(dir, markName), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("mark of the store: %w", err)
	}
	m := &mark{file: f, created: created, last: last, written: ^uint64(0)}
	return m, m.write()
}

// advance says that everything up to a sequence is durable.
func (m *mark) advance(last uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = max(m.last, last)
}

// restart is for a stream that was made anew under us.
func (m *mark) restart(created time.Time) error {
	m.mu.Lock()
	m.created, m.last, m.written = created, 0, ^uint64(0)
	m.mu.Unlock()
	return m.write()
}

func (m *mark) stream() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.created
}

func (m *mark) durable() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last
}

// write puts the mark into the page cache; the next sync takes it to the disk.
func (m *mark) write() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last == m.written {
		return nil
	}
	if _, err := fmt.Fprintf(writerAt{m.file}, markFormat, m.created.UnixNano(), m.last); err != nil {
		return fmt.Errorf("mark of the store: %w", err)
	}
	m.written = m.last
	return nil
}

func (m *mark) close() error {
	return errors.Join(m.write(), m.file.Sync(), m.file.Close())
}

// writerAt writes at the beginning of a file.
type writerAt struct{ f *os.File }

func (w writerAt) Write(b []byte) (int, error) { return w.f.WriteAt(b, 0) }
