// Package books keeps the books: what became of every event, for every
// subscriber and every source, so that nothing leaves quietly.
//
// They are a fold over durable streams and never what is left after a
// subtraction. EVENTS says what was published and whose subjects it matches;
// ATTEMPTS says how each of those was settled; QUARANTINE what was not
// understood. The broker says what still waits. Only then both sides are
// compared: what came must be what went and what is there.
//
// The sums are kept in one value of a bucket together with how far they reach,
// so that a start goes on where the last process was. Every replica folds the
// same streams and comes to the same sums.
package books

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// Parts are what the books are kept from.
type Parts struct {
	Broker   *broker.Broker
	Registry *registry.Registry
	// Sources are the configured ones, which are in the books before they have
	// sent anything.
	Sources []string
	Log     *slog.Logger
	// Breaker tells how a subscriber's breaker stands in this process; nil:
	// nobody knows.
	Breaker func(name string) (deliver.BreakerStatus, bool)
	// Counted makes this process's router save what it has counted; nil: it has
	// none.
	Counted func(ctx context.Context) error
	// Spooled tells how many events of this process wait for the broker; nil:
	// none can.
	Spooled func(ctx context.Context) uint64
	// Every is how often new messages are looked for. Default one second: often
	// enough for metrics, and little for a program that has nothing to do.
	Every time.Duration

	believe time.Duration // tests want it shorter than believeAfter
}

// Books are kept from Open to Close. All methods are safe for concurrent use.
type Books struct {
	Parts
	conn *nats.Conn
	js   jetstream.JetStream
	kv   jetstream.KeyValue

	wake chan struct{} // holds at most one token
	ctx  context.Context
	stop context.CancelFunc
	done sync.WaitGroup

	mu      sync.Mutex // guards all below
	fold    *fold
	begun   uint64        // rounds
	ended   uint64        // the last round that reached what was there when it began
	turn    chan struct{} // closed when a round ends
	trouble error         // of the last round
	lag     Lag
	entered []registry.Entry // the registry's, as the accounts follow it
	known   map[string]int64 // balances as audit last found them, by row

	// Only the loop touches what follows.
	events, attempts, quarantine *tail
	epoch                        uint64 // of the store
	entries                      uint64 // last sequence of the registry's bucket
	entriesOf                    time.Time
	revision                     uint64 // of the kept sums; 0: there are none
	keptAt                       time.Time
	changed                      bool // also guarded by mu
}

// Lag is how much the sums are behind the streams.
type Lag struct {
	Events uint64 `json:"events"`
	Blocks uint64 `json:"blocks"` // of ATTEMPTS, with up to thousands of records
}

// How much is read at once: headers are some hundred bytes, and 32 of the
// largest blocks stay below what a connection may hold back.
const (
	eventsBatch     = 1024
	attemptsBatch   = 32
	quarantineBatch = 1024
)

// saveEvery is how often the sums are kept when they have changed: what a start
// has to fold again.
const saveEvery = 5 * time.Second

// auditRounds is after how many rounds the books are balanced for the metrics:
// once a minute.
const auditRounds = 60

// Open reads what is kept and begins to fold. The caller calls Close.
func Open(ctx context.Context, p Parts) (*Books, error) {
	if p.Every == 0 {
		p.Every = time.Second
	}
	if p.believe == 0 {
		p.believe = believeAfter
	}
	nc, js, err := p.Broker.Connect("books")
	if err != nil {
		return nil, err
	}
	b := &Books{
		Parts: p, conn: nc, js: js, wake: make(chan struct{}, 1), turn: make(chan struct{}),
		events:     &tail{js: js, stream: broker.StreamEvents, headers: true, batch: eventsBatch},
		attempts:   &tail{js: js, stream: broker.StreamAttempts, batch: attemptsBatch},
		quarantine: &tail{js: js, stream: broker.StreamQuarantine, headers: true, batch: quarantineBatch},
	}
	if b.kv, err = js.KeyValue(ctx, broker.BucketBooks); err == nil {
		err = b.load(ctx)
	}
	var e streamEnds
	if err == nil {
		if e, err = b.ends(ctx); err == nil {
			b.meet(e)
		}
	}
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("books: %w", err)
	}
	b.ctx, b.stop = context.WithCancel(context.Background())
	b.done.Go(b.run)
	b.done.Go(b.audit)
	return b, nil
}

// stopTimeout is how long a stop waits for a broker that does not answer.
const stopTimeout = 3 * time.Second

// Close folds no more, and keeps what was folded. When the broker does not take
// it, the next start folds it again.
func (b *Books) Close(ctx context.Context) {
	b.stop()
	b.done.Wait()
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := b.save(ctx); err != nil {
		b.Log.Warn("the next start folds the books again from where they were kept last", "error", err)
	}
	for _, t := range []*tail{b.events, b.attempts, b.quarantine} {
		t.drop(ctx)
	}
	b.conn.Close()
}

func (b *Books) run() {
	for failures := 0; ; {
		err := b.round(b.ctx)
		if b.ctx.Err() != nil {
			return
		}
		wait := b.Every
		if errors.Is(err, errMore) {
			wait, failures = 0, 0
		} else if err != nil {
			// The broker is away or restarts: it says so itself.
			failures++
			wait = max(wait, min(time.Duration(failures)*100*time.Millisecond, 5*time.Second))
			b.Log.Debug("books not kept, trying again", "error", err, "in", wait)
		} else {
			failures = 0
		}
		t := time.NewTimer(wait)
		select {
		case <-b.ctx.Done():
			t.Stop()
			return
		case <-t.C:
		case <-b.wake:
			t.Stop()
		}
	}
}

// roundTimeout bounds a round; the next one goes on where it ended.
const roundTimeout = time.Minute

// round folds everything up to where the streams end when it begins.
func (b *Books) round(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	b.mu.Lock()
	b.begun++
	number := b.begun
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		if b.trouble = err; err == nil {
			b.ended = number
		}
		close(b.turn)
		b.turn = make(chan struct{})
		b.mu.Unlock()
	}()
	if b.Broker.Epoch() != b.epoch {
		// The store was opened again: what was folded may be gone, and its
		// place in the stream be another's. What is kept is on the disk.
		b.events.c, b.attempts.c, b.quarantine.c = nil, nil, nil
		if err := b.load(ctx); err != nil {
			return err
		}
	}
	// First where the streams end, then who there is: whoever has a record up to
	// there is known.
	ends, err := b.ends(ctx)
	if err != nil {
		return err
	}
	b.meet(ends)
	if err := b.follow(ctx); err != nil {
		return err
	}
	for _, fold := range []func(context.Context, streamEnds) error{b.foldEvents, b.foldAttempts, b.foldQuarantine} {
		if err := errors.Join(fold(ctx, ends), b.saveSometimes(ctx)); err != nil {
			return err
		}
	}
	return errors.Join(b.fillGaps(ctx), b.saveSometimes(ctx))
}

// streamEnds are the states of the streams at one moment.
type streamEnds struct{ events, attempts, quarantine jetstream.StreamInfo }

func (b *Books) ends(ctx context.Context) (e streamEnds, err error) {
	for _, q := range []struct {
		name string
		to   *jetstream.StreamInfo
	}{{broker.StreamAttempts, &e.attempts}, {broker.StreamQuarantine, &e.quarantine}, {broker.StreamEvents, &e.events}} {
		s, err := b.js.Stream(ctx, q.name)
		if err != nil {
			return e, fmt.Errorf("stream %s: %w", q.name, err)
		}
		*q.to = *s.CachedInfo()
	}
	return e, nil
}

// meet compares the sums' positions with the streams as they are.
func (b *Books) meet(e streamEnds) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.fold
	again := false
	for _, p := range []struct {
		at *position
		is jetstream.StreamInfo
	}{{&f.Events, e.events}, {&f.Attempts, e.attempts}} {
		again = again || !p.at.Created.IsZero() && !p.at.Created.Equal(p.is.Created)
	}
	now := time.Now().UTC()
	if again || f.Since.IsZero() {
		if again {
			b.Log.Warn("a stream was made anew, so the books begin again", "since", f.Since)
		}
		f = newFold(&sums{Since: now})
		f.anew = again
		b.fold, b.changed, b.entries = f, true, 0
	}
	for _, p := range []struct {
		at *position
		is jetstream.StreamInfo
	}{{&f.Events, e.events}, {&f.Attempts, e.attempts}, {&f.Quarantine, e.quarantine}} {
		if !p.at.Created.Equal(p.is.Created) {
			*p.at = position{Created: p.is.Created.UTC(), Next: 1}
		}
		if name := p.is.Config.Name; p.is.State.LastSeq+1 < p.at.Next {
			// The stream is shorter than it was.
			f.lost(name, p.is.State.LastSeq+1, p.at.Next-1, now)
			p.at.Next, b.changed = p.is.State.LastSeq+1, true
		}
	}
	for _, name := range b.Sources {
		f.source(name, now)
	}
}

// Declare makes sources those that are configured now. The books of others stay.
func (b *Books) Declare(sources []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.Sources = sources
	if b.fold == nil {
		return // the first round sees to it
	}
	now := time.Now()
	for _, name := range sources {
		b.fold.source(name, now)
	}
	b.changed = true
}

// follow brings the accounts up to date with the registry.
func (b *Books) follow(ctx context.Context) error {
	s, err := b.js.Stream(ctx, "KV_"+broker.BucketSubscribers)
	if err != nil {
		return err
	}
	info := s.CachedInfo()
	if b.entries != 0 && info.State.LastSeq+1 == b.entries && info.Created.Equal(b.entriesOf) {
		return nil
	}
	entries, err := b.Registry.List(ctx)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fold.follow(entries, time.Now().UTC())
	b.entered = entries
	b.entries, b.entriesOf, b.changed = info.State.LastSeq+1, info.Created, true
	return nil
}

// foldStream gives a stream's messages to add, up to its end.
func (b *Books) foldStream(ctx context.Context, t *tail, at func() *position, end jetstream.StreamInfo, add func(message)) error {
	last := end.State.LastSeq
	for at().Next <= last {
		list, err := t.take(ctx, at().Next, last)
		if err != nil {
			return err
		}
		b.mu.Lock()
		now := time.Now().UTC()
		p := at()
		for _, m := range list {
			if m.sequence > p.Next {
				b.fold.lost(t.stream, p.Next, m.sequence-1, now)
			}
			add(m)
			p.Next = m.sequence + 1
		}
		if len(list) == 0 {
			// What there was is gone.
			b.fold.lost(t.stream, p.Next, last, now)
			p.Next = last + 1
		}
		b.changed = true
		b.mu.Unlock()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// Headers of events. A router stores a digest with each.
const (
	headerSource = "ce-" + event.ExtSource
	headerDigest = "Gridfan-Digest"
)

func (b *Books) foldEvents(ctx context.Context, e streamEnds) error {
	defer func() {
		b.mu.Lock()
		b.fold.flush()
		b.lag.Events = e.events.State.LastSeq + 1 - min(b.fold.Events.Next, e.events.State.LastSeq+1)
		b.mu.Unlock()
	}()
	return b.foldStream(ctx, b.events, func() *position { return &b.fold.Events }, e.events, func(m message) {
		h := m.Headers()
		from := ""
		if v := h[headerSource]; len(v) > 0 {
			from = v[0]
		}
		b.fold.event(m.sequence, m.Subject(), from, len(h[headerDigest]) == 0, m.stored)
	})
}

func (b *Books) foldAttempts(ctx context.Context, e streamEnds) error {
	defer func() {
		b.mu.Lock()
		b.lag.Blocks = e.attempts.State.LastSeq + 1 - min(b.fold.Attempts.Next, e.attempts.State.LastSeq+1)
		b.mu.Unlock()
	}()
	return b.foldStream(ctx, b.attempts, func() *position { return &b.fold.Attempts }, e.attempts, func(m message) {
		b.fold.Unreadable += eachLine(m.Data(), b.fold.record)
	})
}

func (b *Books) foldQuarantine(ctx context.Context, e streamEnds) error {
	prefix := broker.Quarantine("")
	return b.foldStream(ctx, b.quarantine, func() *position { return &b.fold.Quarantine }, e.quarantine, func(m message) {
		s := b.fold.source(strings.TrimPrefix(m.Subject(), prefix), m.stored)
		s.Quarantined++
	})
}

// gapSlice is how much of a gap is read before the streams have their turn
// again.
const gapSlice = 50_000

// fillGaps counts what subscribers want of events that were folded before that
// was known.
func (b *Books) fillGaps(ctx context.Context) error {
	for {
		b.mu.Lock()
		var a *account
		for _, one := range b.fold.Accounts {
			if len(one.Gaps) > 0 {
				a = one
				break
			}
		}
		var g gap
		if a != nil {
			g = a.Gaps[0]
		}
		b.mu.Unlock()
		if a == nil {
			return nil
		}
		if err := b.fillGap(ctx, a, g); err != nil {
			return err
		}
	}
}

func (b *Books) fillGap(ctx context.Context, a *account, g gap) error {
	var subjects []string
	for _, s := range slices.Concat(g.Was, g.Now) {
		subjects = append(subjects, s.Subjects...)
	}
	t := &tail{js: b.js, stream: broker.StreamEvents, headers: true, batch: eventsBatch, filter: deliver.MinimiseSubjects(subjects)}
	defer t.drop(ctx)
	for from, n := g.From, 0; n < gapSlice; {
		list, err := t.take(ctx, from, g.Through)
		if err != nil {
			return err
		}
		b.mu.Lock()
		for _, m := range list {
			a.recount(m.Subject(), m.sequence)
			from = m.sequence + 1
		}
		if n += len(list); len(list) == 0 || from > g.Through {
			a.Gaps = a.Gaps[1:]
		}
		done := len(list) == 0 || from > g.Through
		b.changed = true
		b.mu.Unlock()
		if done {
			return nil
		}
	}
	// The rest when the streams had their turn.
	return errors.Join(ctx.Err(), errMore)
}

// errMore ends a round early.
var errMore = errors.New("a new subscriber's past is being counted")

// Wait returns when everything is folded that was stored before the call.
func (b *Books) Wait(ctx context.Context) error {
	b.mu.Lock()
	want := b.begun + 1
	b.mu.Unlock()
	for {
		select {
		case b.wake <- struct{}{}:
		default:
		}
		b.mu.Lock()
		ended, turn, trouble := b.ended, b.turn, b.trouble
		b.mu.Unlock()
		if ended >= want {
			return nil
		}
		select {
		case <-turn:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), trouble)
		case <-b.ctx.Done():
			return errors.New("the books are closed")
		}
	}
}
