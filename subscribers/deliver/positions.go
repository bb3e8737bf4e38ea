package deliver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
)

// Positions remembers how far each subscriber has come, for a broker in this
// process.
//
// The server keeps a file for each cursor and replaces it up to ten times a
// second: with some hundred subscribers that takes most of the CPU, and the
// syncs of the disk wait for it (500 subscribers of all events came to a halt).
// So here cursors are kept in memory and made anew at each start. Where each
// begins is in one file, written every second; what was settled since is in the
// records, which were on the disk before any ack.
type Positions struct {
	path string
	js   jetstream.JetStream
	log  *slog.Logger

	stop context.CancelFunc
	done sync.WaitGroup
	// changed: something was settled since the file was written.
	changed atomic.Bool

	mu      sync.Mutex // guards all below
	known   positions
	workers map[string]*worker
	written []byte
}

// positions is the file.
type positions struct {
	// Stream is when EVENTS was made: the sequences are of that one.
	Stream time.Time `json:"stream"`
	// Since is from when on records may tell of events behind a floor.
	Since  time.Time        `json:"since"`
	Floors map[string]floor `json:"floors"`
}

// floor is how far one subscriber has come.
type floor struct {
	// Created is the subscriber's. One that is added again begins anew.
	Created time.Time `json:"created"`
	// Through: all events up to here are settled.
	Through uint64 `json:"through"`
}

// positionsEvery is how often the file is written. What is settled meanwhile is
// read from the records at the next start.
const positionsEvery = time.Second

// OpenPositions reads the file in dir, and lets the recorder read what was settled
// since it was written. The caller calls Close, after all workers have stopped
// and before the broker does.
func OpenPositions(ctx context.Context, dir string, b *broker.Broker, rec *Recorder, log *slog.Logger) (*Positions, error) {
	_, js, err := b.Connect("positions")
	if err != nil {
		return nil, err
	}
	p := &Positions{path: filepath.Join(dir, "gridfan.positions"), js: js, log: log, workers: map[string]*worker{}}
	text, err := os.ReadFile(p.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("positions of the subscribers: %w", err)
	default:
		if err := json.Unmarshal(text, &p.known); err != nil {
			// Rather everything twice than something never.
			log.Error("the positions of the subscribers can't be read; they get everything again from their first stored event on", "file", p.path, "error", err)
			p.known = positions{}
		}
	}
	if p.known.Floors == nil {
		// Whoever dies before the file is written for the first time has settled
		// nothing before now that the server's own cursors do not know of.
		p.known = positions{Since: time.Now().Add(-recallWindow).UTC(), Floors: map[string]floor{}}
	}
	if err := rec.recallFrom(ctx, p.known.Since); err != nil {
		return nil, fmt.Errorf("read what was settled lately: %w", err)
	}
	loop, stop := context.WithCancel(context.Background())
	p.stop = stop
	p.done.Go(func() { p.run(loop) })
	return p, nil
}

// Close writes the file once more.
func (p *Positions) Close() {
	p.stop()
	p.done.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := p.save(ctx); err != nil {
		p.log.Warn("positions of the subscribers not written; the next start reads more records", "error", err)
	}
}

func (p *Positions) run(ctx context.Context) {
	t := time.NewTicker(positionsEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		if !p.changed.Swap(false) {
			continue
		}
		if err := p.save(ctx); err != nil && ctx.Err() == nil {
			p.changed.Store(true)
			p.log.Warn("positions of the subscribers not written, trying again", "error", err)
		}
	}
}

// begin gives the first event that a subscriber may not have got, 0 if that is not
// known. other says that the sequences known are of another stream, which
// somebody deleted.
func (p *Positions) begin(sub *Subscriber, stream time.Time) (sequence uint64, other bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.known.Stream.Equal(stream) {
		return 0, !p.known.Stream.IsZero()
	}
	f, ok := p.known.Floors[sub.Name]
	if !ok || !f.Created.Equal(sub.Created) {
		return 0, false
	}
	return f.Through + 1, false
}

// set notes where a subscriber begins, and writes it down: what knew it before
// may be about to go.
func (p *Positions) set(sub *Subscriber, stream time.Time, through uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.known.Stream.Equal(stream) {
		p.known.Stream = stream
		clear(p.known.Floors)
	}
	if f := p.known.Floors[sub.Name]; f.Created.Equal(sub.Created) && f.Through >= through {
		return nil
	}
	p.known.Floors[sub.Name] = floor{sub.Created, through}
	return p.write()
}

func (p *Positions) join(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.workers[w.sub.Name] = w
}

func (p *Positions) leave(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.workers[w.sub.Name] == w {
		delete(p.workers, w.sub.Name)
	}
}

// save asks the server how far everybody has come, and writes it down.
func (p *Positions) save(ctx context.Context) error {
	// Before the server is asked: what is taken later has not got behind a floor.
	now := time.Now()
	since := p.oldest(now)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s, err := p.js.Stream(ctx, broker.StreamEvents)
	if err != nil {
		return err
	}
	list := s.ListConsumers(ctx)
	through := map[string]uint64{}
	for info := range list.Info() {
		through[info.Name] = info.AckFloor.Stream
	}
	if err := list.Err(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if stream := s.CachedInfo().Created; !p.known.Stream.Equal(stream) {
		p.known.Stream = stream
		clear(p.known.Floors)
	}
	for name, f := range p.known.Floors {
		if _, ok := through[name]; !ok && p.workers[name] == nil {
			delete(p.known.Floors, name) // deleted, or served no more
		} else if w := p.workers[name]; w != nil && !f.Created.Equal(w.sub.Created) {
			delete(p.known.Floors, name)
		}
	}
	for name, w := range p.workers {
		if _, ok := through[name]; ok {
			p.known.Floors[name] = floor{w.sub.Created, p.known.Floors[name].Through}
		}
	}
	for name, f := range p.known.Floors { // at the end the workers have gone, and their cursors have not
		f.Through = max(f.Through, through[name])
		p.known.Floors[name] = f
	}
	p.known.Since = since
	return p.write()
}

// write replaces the file. The caller holds mu.
func (p *Positions) write() error {
	text, err := json.Marshal(p.known)
	if err != nil {
		return err
	}
	if bytes.Equal(text, p.written) {
		return nil
	}
	if err := broker.ReplaceFile(p.path, bytes.NewReader(text), 0o600); err != nil {
		return err
	}
	p.written = text
	return nil
}

// oldest gives the time from which on records may tell of events that are not
// settled in a row.
func (p *Positions) oldest(now time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	oldest := now
	for _, w := range p.workers {
		if w.sub.Config.Ordering == Strict {
			continue // in a row they are
		}
		l := w.lanes[0]
		l.mu.Lock()
		for _, d := range l.held {
			if d.taken.Before(oldest) {
				oldest = d.taken
			}
		}
		l.mu.Unlock()
	}
	return oldest.Add(-recallWindow).UTC()
}
