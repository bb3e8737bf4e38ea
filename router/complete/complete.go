// Package complete makes events of Dataverse whole from which Dataverse has taken
// parts out, because they were too large to send: it reads the row and puts its
// columns into the event, once for all subscribers.
//
// No sender waits for that. Such an event is kept durably in the stream HELD, and that
// is what its sender is told. Then the row is read, within the budget that all share
// who ask this Dataverse, and the event is published. What holds:
//
//   - Accepted is durable, whether or not Dataverse can be asked.
//   - Events of one record are published in the order in which they were accepted. So
//     while one is kept, those of the same record that come after it are kept behind
//     it. Other records are not affected.
//   - Nothing waits for longer than Source.Within. What could not be completed by then
//     is published as it came, with the extension incomplete and the reason.
//   - A crash at any moment repeats and never loses: an event leaves HELD only when it
//     is on disk in EVENTS, and what is published twice is recognised there.
//   - One router completes, the one that has the lease; all of them keep.
//
// The row is read after the event was accepted, so it is as new as the event or newer;
// package record says how that shows. There is one exception to mind: a synchronous
// step sends its event before the transaction is committed. Its row is read only some
// seconds later (settle), and read again for as long as it is older than the event.
package complete

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/record"
)

// Source is one whose events are completed.
type Source struct {
	Name string
	// Within is how long an event may be kept at most.
	Within time.Duration
	// Read reads a row as it is now; one that is gone is Deleted. It waits for the
	// source's budget. Its errors are those of a poll.Fetcher.
	Read func(ctx context.Context, table, id string) (record.Row, error)
}

// Parts are what a Completer works with.
type Parts struct {
	Broker *broker.Broker
	// Publish stores events, as publish.Publisher's does, and Known is the
	// Publisher's.
	Publish func(context.Context, publish.Origin, []event.Result) ([]publish.Status, error)
	Known   func(publish.Origin, *event.Result) (id string, published bool)
	// Spool says that Publish takes events also while the broker is away.
	Spool bool
	// Tally counts for the books what is not given to Publish; nil: nobody does.
	Tally   *publish.Tally
	Metrics *Metrics
	// Report tells the operator what happened; see broker.Broker.Report.
	Report func(what, about string, attrs map[string]any)
	Log    *slog.Logger
}

// Completer keeps and completes events. It is safe for concurrent use.
type Completer struct {
	parts   Parts
	mu      sync.RWMutex // guards sources
	sources map[string]*source
	conn    *nats.Conn
	js      jetstream.JetStream
	held    jetstream.Stream
	// least is the shortest wait between two tries. Tests are in a hurry.
	least time.Duration

	work atomic.Pointer[worker] // nil while another router completes
	stop context.CancelFunc
	done sync.WaitGroup
}

// source is a Source and what is known of asking it.
type source struct {
	Source
	// settle is how long the row of an uncommitted event is left alone, and old by
	// how much it may be older than the event. Tests have less time.
	settle, old time.Duration
}

const (
	// settle is longer than what comes after a synchronous step usually takes. It need
	// not be right: a row that is older than its event is read again.
	settle = 5 * time.Second
	// old is by how much modifiedon may be before OperationCreatedOn of the same
	// change: 0.8 to 6 seconds in the captures there are (package dataverse).
	old = 10 * time.Second
)

// New makes a Completer. It keeps events from here on, and completes them from Start
// on. The caller calls Stop.
func New(ctx context.Context, sources []Source, parts Parts) (*Completer, error) {
	c := &Completer{parts: parts, stop: func() {}, least: leastWait}
	c.Replace(sources)
	var err error
	if c.conn, c.js, err = parts.Broker.Connect("complete"); err != nil {
		return nil, err
	}
	if c.held, err = c.js.Stream(ctx, broker.StreamHeld); err != nil {
		c.conn.Close()
		return nil, fmt.Errorf("stream %s: %w", broker.StreamHeld, err)
	}
	return c, nil
}

// Replace makes sources those whose events are completed. What is kept of one that is not
// among them any more is published as it came.
func (c *Completer) Replace(sources []Source) {
	all := map[string]*source{}
	for _, s := range sources {
		all[s.Name] = &source{Source: s, settle: settle, old: old}
		c.parts.Metrics.init(s.Name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sources = all
}

// source is a source of now, nil for one whose events are not completed.
func (c *Completer) source(name string) *source {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.sources[name]
}

// Start begins to complete what is kept, whenever no other router does.
func (c *Completer) Start() {
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.done.Go(func() { c.run(ctx) })
}

// Stop ends it; what is kept stays, for the next one. No Publish runs or follows.
func (c *Completer) Stop() {
	c.stop()
	c.done.Wait()
	c.conn.Close()
}

// The reasons why an event was published as it came.
const (
	reasonLate       = "late"          // Within was over; the source was not reached, or throttled
	reasonGone       = "gone"          // its row is not there any more
	reasonDeleted    = "deleted"       // it is a deletion: no row is left to read
	reasonParameters = "parameters"    // what is missing is in no row
	reasonLarge      = "too-large"     // completed, it is more than the broker stores
	reasonUnread     = "unread"        // the row cannot be made an event of
	reasonOld        = "uncommitted"   // the row was still as before the event
	reasonRoom       = "no-room"       // HELD is full
	reasonAway       = "broker-away"   // it went to the spool
	reasonOff        = "not-completed" // the source is not completed any more
)

// ways to keep an event.
const (
	forCompletion = "completion"
	forOrder      = "order"
)

// Publish stores results as publish.Publisher's does, but keeps what has to be
// completed first, and what has to wait behind that. When it returns without an error,
// everything is on disk.
func (c *Completer) Publish(ctx context.Context, o publish.Origin, results []event.Result) ([]publish.Status, error) {
	s := c.source(o.Source)
	if s == nil || o.Redriven {
		return c.parts.Publish(ctx, o, results)
	}
	p, err := c.plan(ctx, s, o, results)
	if err != nil {
		c.parts.Tally.Refused(o.Source, len(results))
		return nil, err
	}
	statuses := make([]publish.Status, len(results))
	var through []event.Result
	var at []int
	for i := range results {
		if p[i].why == "" {
			through, at = append(through, results[i]), append(at, i)
		}
	}
	// Those first: what is kept may be published at any time from then on.
	if len(through) > 0 {
		done, err := c.through(ctx, o, through)
		if err != nil {
			return nil, err
		}
		for i, st := range done {
			statuses[at[i]] = st
		}
	}
	for i := range results {
		if p[i].why == "" {
			continue
		}
		statuses[i], err = c.keep(ctx, s, o, &results[i], p[i])
		if errors.Is(err, errNoRoom) && p[i].why == forCompletion && !p[i].behind {
			// No other of its record waits, so it may go as it is.
			results[i].Event = incomplete(results[i].Event, reasonRoom)
			done, err := c.through(ctx, o, results[i:i+1])
			if err != nil {
				return nil, err
			}
			statuses[i] = done[0]
			continue
		}
		if err != nil {
			c.parts.Tally.Refused(o.Source, 1)
			return nil, err
		}
	}
	return statuses, nil
}

// through publishes what is not kept.
func (c *Completer) through(ctx context.Context, o publish.Origin, results []event.Result) ([]publish.Status, error) {
	statuses, err := c.parts.Publish(ctx, o, results)
	if err != nil {
		return nil, err
	}
	for i, st := range statuses {
		if e := results[i].Event; e != nil && st == publish.Published {
			if reason := e.Get(dataverse.ExtIncompleteReason); reason != "" && e.Get(dataverse.ExtIncomplete) == "true" {
				c.parts.Metrics.event(o.Source, reason)
			}
		}
	}
	return statuses, nil
}

// way is what is to become of one result: why it is kept, empty for not at all.
type way struct {
	why    string
	id     string // of its identity
	line   string
	behind bool // others of its record are kept
}

// plan decides what is kept. What cannot be completed anyway is marked.
func (c *Completer) plan(ctx context.Context, s *source, o publish.Origin, results []event.Result) ([]way, error) {
	p := make([]way, len(results))
	asked := false
	waiting := map[string]bool{} // lines of records of which some are kept
	looked := map[string]bool{}
	none := false // nothing is kept of this source
	for i := range results {
		e := results[i].Event
		if e == nil {
			continue
		}
		missing, readable := dataverse.Missing(e)
		if missing && !readable {
			results[i].Event = incomplete(e, reasonFor(e))
			e = results[i].Event
		}
		key := e.Get(event.ExtPartitionKey)
		if key == "" || !c.fits(e) {
			continue // Publish has a word for what is too large
		}
		line := lineOf(key)
		if !asked {
			asked = true
			if c.parts.Spool && !c.parts.Broker.Connected() {
				return c.away(results, p), nil
			}
			some, err := c.keeps(ctx, broker.Held(s.Name, "*"))
			if err != nil {
				if c.parts.Spool && ctx.Err() == nil {
					return c.away(results, p), nil
				}
				return nil, fmt.Errorf("%w: %w", publish.ErrBroker, err)
			}
			none = !some
		}
		if !none && !looked[line] {
			some, err := c.keeps(ctx, broker.Held(s.Name, line))
			if err != nil {
				return nil, fmt.Errorf("%w: %w", publish.ErrBroker, err)
			}
			looked[line], waiting[line] = true, waiting[line] || some
		}
		switch {
		case missing && readable:
			p[i] = way{why: forCompletion, line: line, behind: waiting[line]}
		case waiting[line]:
			p[i] = way{why: forOrder, line: line, behind: true}
		default:
			continue
		}
		id, published := c.parts.Known(o, &results[i])
		if p[i].id = id; published {
			p[i] = way{} // Publish recognises it
			continue
		}
		waiting[line] = true
	}
	return p, nil
}

// away lets all go as they are while the broker is away: the spool keeps their order.
func (c *Completer) away(results []event.Result, p []way) []way {
	for i := range results {
		p[i] = way{}
		if e := results[i].Event; e != nil {
			if missing, readable := dataverse.Missing(e); missing && readable {
				results[i].Event = incomplete(e, reasonAway)
			}
		}
	}
	return p
}

// reasonFor says why an event cannot be completed by reading a row.
func reasonFor(e *event.Event) string {
	if e.Get(event.ExtAction) == "deleted" {
		return reasonDeleted
	}
	return reasonParameters
}

// incomplete marks an event with the reason why it is not whole.
func incomplete(e *event.Event, reason string) *event.Event {
	e = e.Clone()
	e.Set(dataverse.ExtIncompleteReason, reason)
	return e
}

// lineOf stands for a record in subjects.
func lineOf(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:12])
}

// room is more than what is added to an event on its way: by Publish, and by keep.
const room = 24 << 10

// fits says whether the broker takes an event with all that is added to it.
func (c *Completer) fits(e *event.Event) bool {
	return int64(len(e.Data)+e.HeaderSize()+room) <= c.parts.Broker.MaxPayload()
}

// lookWait bounds a look into HELD. With what Publish takes afterwards it stays below
// the 30 seconds after which senders give up.
const lookWait = 5 * time.Second

// keeps says whether HELD has a message whose subject matches.
func (c *Completer) keeps(ctx context.Context, subject string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, lookWait)
	defer cancel()
	_, err := c.held.GetMsg(ctx, 1, jetstream.WithGetMsgSubject(subject))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, nil
	}
	return err == nil, err
}
