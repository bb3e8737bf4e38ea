package broker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// watch is what the broker knows of its own state.
type watch struct {
	ctx     context.Context // ends with the Broker
	stop    context.CancelFunc
	running sync.WaitGroup
	causes  chan error // holds at most one: why the store must be opened again
	syncs   prometheus.Histogram

	mu       sync.Mutex // guards all below
	err      error      // why the broker does not work now
	space    Space
	lastSync time.Time // when the last sync that succeeded began
	levels   map[string]int
}

func (w *watch) init() {
	w.ctx, w.stop = context.WithCancel(context.Background())
	w.causes = make(chan error, 1)
	w.levels = map[string]int{}
	w.syncs = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "gridfan_broker_sync_seconds", Help: "Time of one sync of the disk, which all who wait share.",
		Buckets: prometheus.ExponentialBuckets(.00025, 2, 17), // to 16 s
	})
	w.lastSync = time.Now()
}

func (w *watch) problem() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *watch) setProblem(err error) {
	w.mu.Lock()
	w.err = err
	w.mu.Unlock()
}

// sync makes a sync and notes when it began.
func (w *watch) sync(f func() error) error {
	began := time.Now()
	if err := f(); err != nil {
		return err
	}
	w.syncs.Observe(time.Since(began).Seconds())
	w.mu.Lock()
	w.lastSync = began
	w.mu.Unlock()
	return nil
}

// Space is the room on the disk under the embedded server's store.
type Space struct {
	Free  uint64 `json:"free"`
	Total uint64 `json:"total"`
	// Reserve is kept free: below it no event is accepted, so that what was
	// accepted can still be delivered, recorded and given up.
	Reserve uint64 `json:"reserve"`
}

// The reserve is a twentieth of the disk within these bounds. The server
// freezes a stream whose write fails, so it must never come to that: 16 MiB are
// a quarter of a second of the fastest intake measured, and the space is looked
// at more often.
const (
	minReserve = 16 << 20
	maxReserve = 512 << 20
	spaceEvery = 200 * time.Millisecond
)

// measure looks at the disk.
func (b *Broker) measure() Space {
	free, total, err := diskSpace(b.node.dir)
	if err != nil {
		b.log.Warn("free space of the disk", "error", err)
		return b.Space()
	}
	s := Space{Free: free, Total: total, Reserve: min(max(total/20, minReserve), maxReserve)}
	b.watch.mu.Lock()
	b.watch.space = s
	b.watch.mu.Unlock()
	return s
}

// Space tells the room on the disk; it is zero for an external server, whose
// disks are not ours to see.
func (b *Broker) Space() Space {
	b.watch.mu.Lock()
	defer b.watch.mu.Unlock()
	return b.watch.space
}

// Errors that tell why nothing can be written now.
var (
	// ErrDiskFull: free space has fallen below the reserve.
	ErrDiskFull = errors.New("the disk under the store is full")
	// ErrReopening: the store failed and is being opened again.
	ErrReopening = errors.New("the store failed and is being opened again")
)

// Room returns nil when new events may be written.
func (b *Broker) Room() error { return b.room(1) }

// room asks for a part of the reserve: what settles deliveries may use most of
// it, because it is what makes room.
func (b *Broker) room(part uint64) error {
	if b.node == nil {
		return nil
	}
	if b.watch.problem() != nil {
		return ErrReopening
	}
	if s := b.Space(); s.Free < s.Reserve/part {
		return fmt.Errorf("%w: %d MiB free, %d MiB are kept in reserve", ErrDiskFull, s.Free>>20, s.Reserve/part>>20)
	}
	return nil
}

// trouble asks for the store to be opened again. It does not block.
func (b *Broker) trouble(cause error) {
	select {
	case b.watch.causes <- cause:
	default: // somebody has asked already
	}
}

// alarmEvery is how often fill levels are looked at.
const alarmEvery = 5 * time.Second

// lookEvery is how often the server is asked whether a stream is frozen, and its
// small files are copied if they changed.
const lookEvery = time.Second

// supervise watches the store of the server in this process.
func (b *Broker) supervise() {
	space := time.NewTicker(spaceEvery)
	defer space.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	alarm := time.NewTicker(alarmEvery)
	defer alarm.Stop()
	said := ""
	for {
		select {
		case <-b.watch.ctx.Done():
			return
		case cause := <-b.watch.causes:
			b.reopen(cause)
		case <-space.C:
			b.measure()
			if err := b.alive(); err != nil {
				b.reopen(err)
			}
		case <-look.C:
			if err := b.frozen(); err != nil {
				b.reopen(err)
			}
			if b.barrier != nil { // else the server syncs before it renames
				err := errors.Join(b.node.states.keep(), b.node.blocks.keep())
				if err != nil && err.Error() != said {
					said = err.Error() // not every second
					b.log.Warn("no copies of the server's files, so a power cut may spoil some", "error", err)
				}
			}
		case <-alarm.C:
			b.alarm()
			if err := b.keepMark(); err != nil {
				b.log.Warn("mark of the store", "error", err)
			}
		}
	}
}

// alive says whether the server still has its JetStream: it switches it off when
// a disk is full or read-only (nats-server v2.15.2, server/jetstream.go
// handleOutOfSpace, handleWritePermissionError).
func (b *Broker) alive() error {
	if s := b.node.server(); s == nil || !s.JetStreamEnabled() {
		return errors.New("the server has switched JetStream off")
	}
	return nil
}

// frozen says whether a stream takes nothing more because a write of its file
// has failed. The server answers a publish to it by silence, so that only this
// tells (nats-server v2.15.2, server/monitor.go healthz).
func (b *Broker) frozen() error {
	s := b.node.server()
	if s == nil {
		return nil
	}
	if err := healthz(b.watch.ctx, s); err != nil && strings.Contains(err.Error(), "write error") {
		return err
	}
	return nil
}

// keepMark writes the mark when nobody publishes, and begins a new one when
// somebody deleted the stream and it was made again.
func (b *Broker) keepMark() error {
	ctx, cancel := context.WithTimeout(b.watch.ctx, 2*time.Second)
	defer cancel()
	s, err := b.js.Stream(ctx, b.Main())
	if err != nil {
		return err
	}
	info := s.CachedInfo()
	if b.mark.look(info.Created, uint64(info.State.NumDeleted)) {
		b.log.Error("the stream was deleted by somebody else and made again; what was in it is gone", "stream", b.Main())
	}
	return b.mark.write()
}

// reopen stops the server and starts one on the same store, until that works.
// Meanwhile nothing is accepted and nothing settled.
func (b *Broker) reopen(cause error) {
	began := time.Now()
	b.watch.setProblem(fmt.Errorf("%w: %w", ErrReopening, cause))
	b.log.Error("the store failed: the embedded broker is stopped and started again on it; senders are told to come back", "cause", cause)
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := b.tryReopen()
		if err == nil {
			break
		}
		b.watch.setProblem(fmt.Errorf("%w: %w; last try: %w", ErrReopening, cause, err))
		b.log.Error("the store can't be opened again yet", "error", err, "again_in", wait)
		select {
		case <-b.watch.ctx.Done():
			return
		case <-time.After(wait):
		}
	}
	select { // what was reported meanwhile is settled with it
	case <-b.watch.causes:
	default:
	}
	if b.barrier != nil {
		b.barrier.reset()
	}
	b.watch.setProblem(nil)
	b.Report("broker.reopened", Instance(), map[string]any{
		"cause": cause.Error(), "took": time.Since(began).Round(time.Millisecond).String(),
	})
}

func (b *Broker) tryReopen() error {
	if b.barrier != nil {
		b.barrier.stop(ErrReopening)
	}
	b.node.stop()
	if s := b.measure(); s.Free < s.Reserve {
		return fmt.Errorf("%w: %d MiB free; free at least %d MiB of the disk that %s is on", ErrDiskFull, s.Free>>20, s.Reserve>>20, b.node.dir)
	}
	if err := writable(b.node.dir); err != nil {
		return err
	}
	if b.syncer != nil {
		b.watch.mu.Lock()
		since := b.watch.lastSync
		b.watch.mu.Unlock()
		if err := rewrite(b.node.dir, since); err != nil {
			return err
		}
		if err := b.watch.sync(b.syncer.sync); err != nil {
			return err
		}
	}
	if err := b.node.start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(b.watch.ctx, time.Minute)
	defer cancel()
	if err := b.reconnected(ctx); err != nil {
		return err
	}
	if err := b.verify(ctx); err != nil {
		return err
	}
	if b.spool {
		return nil
	}
	return b.declareBuckets(ctx, true)
}

// reconnected waits until the control connection has found the new server.
func (b *Broker) reconnected(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !b.control.IsConnected() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("connect to the embedded broker again: %w", ctx.Err())
		}
	}
	return nil
}

// writable tries a write.
func writable(dir string) error {
	name := filepath.Join(dir, "gridfan.try")
	if err := os.WriteFile(name, []byte("may this disk be written?\n"), 0o600); err != nil {
		return fmt.Errorf("the store can't be written: %w", err)
	}
	return os.Remove(name)
}

// levelsAt are the shares of a limit in per cent at which an operator is told.
var levelsAt = []int{70, 85, 100}

// alarm reports streams, and the disk, that have come near their limits or
// fallen back.
func (b *Broker) alarm() {
	ctx, cancel := context.WithTimeout(b.watch.ctx, 2*time.Second)
	defer cancel()
	use, err := b.Use(ctx)
	if err != nil {
		b.log.Debug("fill levels", "error", err)
		return
	}
	for _, u := range use {
		// These two forget their oldest by themselves and are full for ever.
		if u.Stream != StreamAttempts && u.Stream != StreamOps && u.MaxBytes > 0 {
			b.level(u.Stream, u.Bytes, uint64(u.MaxBytes))
		}
	}
	if b.node == nil {
		return
	}
	// The disk counts where it has less room than storage.maxBytes.
	var used uint64
	for _, u := range use {
		used += u.Bytes
	}
	s := b.Space()
	room := used + s.Free - min(s.Free, s.Reserve)
	if room >= uint64(b.cfg.MaxBytes) {
		used = 0
	}
	b.level("disk", used, max(room, 1))
}

// level reports when what fills up passes a level. It must fall five per cent
// below one to count as lower, so that it does not report all the time.
func (b *Broker) level(what string, used, limit uint64) {
	percent := float64(used) / float64(limit) * 100
	now := 0
	b.watch.mu.Lock()
	was := b.watch.levels[what]
	for _, l := range levelsAt {
		if percent >= float64(l) || l <= was && percent >= float64(l)-5 {
			now = l
		}
	}
	b.watch.levels[what] = now
	b.watch.mu.Unlock()
	if now == was {
		return
	}
	kind := "storage.filling"
	if now < was {
		kind = "storage.easing"
	}
	b.Report(kind, what, map[string]any{"percent": int(percent), "bytes": used, "limit": limit, "fix": "gridfan status says who holds the space"})
}
