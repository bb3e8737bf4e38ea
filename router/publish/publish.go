// Package publish writes accepted events to the EVENTS stream, and what nobody
// understood to QUARANTINE. When Publish returns without an error, everything
// it was given is on disk.
//
// An event's way through it: Publish waits for room, looks its identity up in
// the index of what was published before, sends it off, waits for the broker's
// ack, and then, once for the whole request, for the disk.
package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/dedup"
	"github.com/gridfan/gridfan/schemas/event"
)

// maxInFlight is how many publishes may wait for the broker at once, over all
// sources; beyond it senders wait, and after maxQueueWait are turned away.
// 4,096 events of 1 KB are 4 MiB.
const (
	maxInFlight  = 4096
	maxQueueWait = 5 * time.Second
	// maxShare is what one source may have of them, so that the others find
	// room without waiting for it.
	maxShare = 1024
	// slice is how many events of one request go together. Event Grid sends up
	// to 5,000 at once, between which others must have their turn.
	slice = 256
)

// publishTimeout is how long all of a request may take once it has its slots.
// Together with maxQueueWait it stays below the 30 seconds after which a sender
// like Event Grid gives up; a cluster that has lost a leader is back in 4 to 9
// (measured, nats-server v2.15.2), so it is waited for.
const publishTimeout = 20 * time.Second

// Errors that Publish tells apart. All but ErrTooLarge mean: not stored, send
// again.
var (
	ErrQuarantineFull = errors.New("quarantine is full for this source")
	ErrStorageFull    = errors.New("the storage is full")
	ErrOverloaded     = errors.New("too many events are waiting for the broker")
	ErrBroker         = errors.New("the broker does not answer")
	// ErrTooLarge is final: what is not understood, or an event by itself, is
	// more than the broker takes in one message.
	ErrTooLarge = errors.New("larger than the broker's max_payload")
)

// Origin is where and how a batch of results came in.
type Origin struct {
	Source      string // configured name
	Kind        string
	Environment string // scope of identity
	Via         string // push, poll, reconcile, replay
	Accepted    time.Time
	// Late: its source had given up on it, and it was read back there.
	Late bool
	// Header holds the request's headers that help to understand a
	// quarantined body later. No secrets.
	Header map[string]string
	// Redriven: it was in quarantine, and was counted when it came.
	Redriven bool
	// Kept: it was accepted before, and nobody is to be told how this ends.
	Kept bool
}

// Status says what became of one result.
type Status string

// What can become of a result.
const (
	Published   Status = "published"
	Duplicate   Status = "duplicate"
	Quarantined Status = "quarantined"
	Control     Status = "control" // not stored: it was for the router
	// Completing: it is kept on disk until it is completed or, if it is whole, until
	// those of its record are that came before it. Publish itself never says so; see
	// package complete.
	Completing Status = "completing"
)

// Config is how a Publisher works.
type Config struct {
	Dedup Dedup
	// IndexDir is where the index of identities is kept over a restart. Empty:
	// it is read again from the stream, which takes about ten seconds a million
	// events.
	IndexDir string
	// Spool takes events while the broker is away; nil: senders are told to
	// come back.
	Spool *broker.Broker
	Tally *Tally       // counts for the books; nil: nobody does
	Log   *slog.Logger // nil: nothing is logged
}

// Dedup is how events are recognised that come again.
type Dedup struct {
	// Horizon is how long. Default 24h, as long as Event Grid retries
	// (delivery-and-retry, learn.microsoft.com; read 2026-11).
	Horizon time.Duration
	// Memory bounds what the index of identities takes, in bytes. Beyond it the
	// oldest are forgotten before their time, which is reported. Default 512
	// MiB: 22 million events, or 260 a second over 24 hours.
	Memory int64
}

// Validate sets defaults and reports every problem, each beginning with the
// path of its key in the configuration file.
func (c *Dedup) Validate() error {
	var errs []error
	if c.Horizon == 0 {
		c.Horizon = 24 * time.Hour
	}
	if c.Horizon < broker.DedupWindow || c.Horizon > 30*24*time.Hour {
		errs = append(errs, fmt.Errorf("storage.dedup.horizon: want 2m to 30d, got %s", c.Horizon))
	}
	if c.Memory == 0 {
		c.Memory = 512 << 20
	}
	if c.Memory < 1<<20 {
		errs = append(errs, errors.New("storage.dedup.memory: want at least 1MiB"))
	}
	return errors.Join(errs...)
}

// Publisher stores events. It is safe for concurrent use.
type Publisher struct {
	main  *target
	spool *spool // nil for none
	index *index
	tally *Tally
	log   *slog.Logger
	slots *semaphore.Weighted

	mu     sync.Mutex // guards shares
	shares map[string]*semaphore.Weighted
}

// New makes a Publisher with a connection of its own. It returns when the index
// of published identities has caught up with the stream, or after a while: what
// is missing then is read meanwhile. The caller closes the Publisher.
func New(ctx context.Context, b *broker.Broker, cfg Config) (*Publisher, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	main, err := newTarget(ctx, b)
	if err != nil {
		return nil, err
	}
	p := &Publisher{
		main: main, tally: cfg.Tally, log: cfg.Log,
		slots:  semaphore.NewWeighted(maxInFlight),
		shares: map[string]*semaphore.Weighted{},
	}
	if p.index, err = openIndex(ctx, cfg, main); err != nil {
		main.conn.Close()
		return nil, err
	}
	if cfg.Spool != nil {
		if p.spool, err = openSpool(ctx, cfg.Spool, p); err != nil {
			defer main.conn.Close()
			return nil, errors.Join(err, p.index.close())
		}
	}
	return p, nil
}

// Close stops what runs besides Publish, and writes the index. No Publish runs
// or follows.
func (p *Publisher) Close() error {
	if p.spool != nil {
		p.spool.close()
	}
	return p.index.close()
}

// Dedup tells how the index of published identities is doing.
func (p *Publisher) Dedup() dedup.Stats { return p.index.Stats() }

// Publish stores every event of results and quarantines every fault, and says
// what became of each, in order. Events with the same partition key are stored
// in the order of results. With an error some may be stored already: the sender
// repeats all, and those are then duplicates.
func (p *Publisher) Publish(ctx context.Context, o Origin, results []event.Result) ([]Status, error) {
	ctx, cancel := context.WithTimeout(ctx, maxQueueWait+publishTimeout)
	defer cancel()
	out, err := p.publishAny(ctx, o, results)
	p.tally.count(o, out, len(results), err != nil)
	if err != nil {
		return nil, err
	}
	statuses := make([]Status, len(out))
	for i := range out {
		statuses[i] = out[i].status
	}
	return statuses, nil
}

// Known gives what identifies an event, and says whether it was published already, as
// far as this process can tell.
func (p *Publisher) Known(o Origin, r *event.Result) (id string, published bool) {
	id = identity(o.Environment, r.Key)
	return id, p.index.Lookup(dedup.KeyOf(id, r.Digest)) == dedup.Same
}

// publishAny stores results on the broker, or in the spool while that is away.
func (p *Publisher) publishAny(ctx context.Context, o Origin, results []event.Result) ([]outgoing, error) {
	if p.spool == nil {
		return p.publish(ctx, p.main, o, results)
	}
	// While anything is spooled, what comes after it is spooled too: the order
	// stays.
	if release, ok := p.spool.use(); ok {
		defer release()
		return p.publish(ctx, p.spool.target, o, results)
	}
	// A sender that gives up after 30 seconds must still find the spool.
	short, cancel := context.WithTimeout(ctx, leaderWait)
	defer cancel()
	out, err := p.publish(short, p.main, o, results)
	if errors.Is(err, ErrBroker) && ctx.Err() == nil {
		release := p.spool.begin()
		defer release()
		p.spool.doubt(out)
		return p.publish(ctx, p.spool.target, o, results)
	}
	return out, err
}

// leaderWait is how long a broker that does not answer is waited for when there
// is a spool: longer than a cluster takes for a new leader.
const leaderWait = 15 * time.Second

// publish stores results on one target. With an error it gives those that it
// came to.
func (p *Publisher) publish(ctx context.Context, t *target, o Origin, results []event.Result) ([]outgoing, error) {
	if err := t.broker.Room(); err != nil {
		return nil, t.failure(err)
	}
	write := t.broker.Begin()
	defer write.End()
	var last uint64
	stored := make([]outgoing, 0, len(results))
	for first := true; len(results) > 0; first = false {
		n := min(len(results), slice)
		begin := len(stored)
		stored = stored[:begin+n]
		through, err := p.publishSlice(ctx, t, o, results[:n], stored[begin:], first)
		if err != nil {
			return stored, err
		}
		last = max(last, through)
		results = results[n:]
	}
	if err := write.Durable(ctx, last); err != nil {
		return stored, t.failure(err)
	}
	for i := range stored {
		w := &stored[i]
		if w.sequence != 0 && t == p.main {
			p.index.known(w.sequence, w.key, w.match, o.Accepted)
		}
	}
	return stored, nil
}

// publishSlice stores so many results as may be on their way together, and
// gives the highest sequence among them.
func (p *Publisher) publishSlice(ctx context.Context, t *target, o Origin, results []event.Result, out []outgoing, first bool) (through uint64, _ error) {
	release, err := p.acquire(ctx, o.Source, int64(len(results)), first)
	if err != nil {
		return 0, err
	}
	defer release()
	var tooLarge error
	for i := range results {
		if err := p.prepare(t, o, &results[i], &out[i]); err != nil {
			tooLarge = err
		}
	}
	if err = t.sendAll(ctx, out); err == nil {
		err = tooLarge // final, so only when nothing else is to be repeated
	}
	for i := range out {
		through = max(through, out[i].sequence)
	}
	return through, err
}

// acquire takes n slots of the source's share and of all. A source that sends
// more than its share waits for itself; the first slice of a request is turned
// away when it would wait for long.
func (p *Publisher) acquire(ctx context.Context, source string, n int64, first bool) (release func(), err error) {
	p.mu.Lock()
	own := p.shares[source]
	if own == nil {
		own = semaphore.NewWeighted(maxShare)
		p.shares[source] = own
	}
	p.mu.Unlock()
	release = func() { p.slots.Release(n); own.Release(n) }
	if own.TryAcquire(n) {
		if p.slots.TryAcquire(n) {
			return release, nil
		}
		own.Release(n)
	}
	if first {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, maxQueueWait)
		defer cancel()
	}
	if own.Acquire(ctx, n) != nil {
		return nil, ErrOverloaded
	}
	if p.slots.Acquire(ctx, n) != nil {
		own.Release(n)
		return nil, ErrOverloaded
	}
	return release, nil
}

// prepare decides what one result becomes: nothing, a duplicate, an event, or an
// entry in quarantine.
func (p *Publisher) prepare(t *target, o Origin, r *event.Result, w *outgoing) error {
	switch {
	case r.Control != nil:
		w.status = Control
		return nil
	case r.Fault != nil:
		return t.prepareQuarantine(o, r, w)
	}
	id := identity(o.Environment, r.Key)
	*w = outgoing{
		status: Published, identity: id, digest: r.Digest, key: dedup.KeyOf(id, r.Digest),
	}
	seen := p.index.Lookup(w.key)
	if seen == dedup.Same {
		w.status = Duplicate
		w.late = t.unsure.take(w.id())
		w.kept = w.late
		return nil
	}
	own, other := match(o, r.Event)
	if other != "" && p.index.Lookup(dedup.KeyOf(other, "")) == dedup.Same {
		w.status = Duplicate
		return nil
	}
	w.match = own
	w.event = stamp(r.Event, o)
	if seen == dedup.Reused {
		w.rename()
	}
	w.order = w.event.Get(event.ExtPartitionKey)
	w.encode(event.Subject(o.Kind, o.Source, r.Scope, r.Name))
	if size, limit := messageSize(w.msg), t.maxPayload-deliveryHeaderRoom; size > limit {
		r.Fault = event.Faultf(event.FaultTooLarge, "the event takes %d bytes with its attributes, the broker stores at most %d", size, limit)
		r.Event = nil
		*w = outgoing{}
		return t.prepareQuarantine(o, r, w)
	}
	return nil
}

// stamp adds what gridfan knows to an event: where, how and when it came in.
// A sender's own values under these names are kept as sender….
func stamp(e *event.Event, o Origin) *event.Event {
	for _, a := range []struct{ name, value string }{
		{event.ExtSource, o.Source},
		{event.ExtVia, o.Via},
		{event.ExtRecordedTime, event.FormatTime(o.Accepted.UTC())},
	} {
		if theirs := e.Get(a.name); theirs != "" && theirs != a.value {
			e.Set("sender"+a.name, theirs)
		}
		e.Set(a.name, a.value)
	}
	if o.Late {
		if theirs := e.Get(event.ExtLate); theirs != "" && theirs != "true" {
			e.Set("sender"+event.ExtLate, theirs)
		}
		e.SetExtension(event.Extension{Name: event.ExtLate, Value: "true", Type: event.Boolean})
	}
	return e
}
