package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/gridfan/gridfan/infra/broker"
)

// Recorder writes records in blocks: while one block is on its way to the
// disk the next one gathers, so that thousands of settlements share one sync
// and a single one does not wait. It is safe for concurrent use.
type Recorder struct {
	broker *broker.Broker
	js     jetstream.JetStream
	log    *slog.Logger

	mu     sync.Mutex // guards queue, urgent, closed
	queue  []recording
	urgent bool // somebody in the queue waits for its settlement
	closed bool
	wake   chan struct{} // holds at most one token
	hurry  chan struct{} // holds one token when urgent or closed was set
	room   chan struct{} // a token for each record that may wait
	done   chan struct{}

	// workers holds what the workers of this process have settled last, by
	// subscriber.
	telling sync.Mutex // guards workers
	workers map[string]*settled

	// settled holds what was recorded lately, by other processes too that may
	// have died since, and when: the broker may not have seen the acks. last is the block up to which
	// it was read.
	recalling sync.Mutex // guards all three
	settled   map[place][]recalled
	last      uint64
	refreshed time.Time
}

type recalled struct {
	progress
	at time.Time
}

type recording struct {
	r    Record
	then func()
}

// maxQueued records may wait for the disk; more than that and workers wait.
const maxQueued = 8192

// maxBlock keeps a block well under the broker's payload limit.
const maxBlock = 512 << 10

// recallWindow is how far back from the last record the acks of a dead process
// may be missing. The broker writes acks to the disk every 100 ms; ten seconds
// cover a disk that was busy, and at 5,000 settlements a second cost 5 MB.
const recallWindow = 10 * time.Second

// refreshEvery bounds how often the records of other replicas are read, and
// recallMost what is remembered of them: twice what is settled in recallWindow.
const (
	refreshEvery = 200 * time.Millisecond
	recallMost   = 100_000
)

// NewRecorder starts a Recorder with a connection of its own, after reading
// what the process before it recorded last.
func NewRecorder(ctx context.Context, b *broker.Broker, log *slog.Logger) (*Recorder, error) {
	nc, js, err := b.Connect("recorder")
	if err != nil {
		return nil, err
	}
	rec := &Recorder{
		broker: b, js: js, log: log,
		wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), room: make(chan struct{}, maxQueued), done: make(chan struct{}),
		settled: map[place][]recalled{}, workers: map[string]*settled{},
	}
	if err := rec.refresh(ctx); err != nil {
		nc.Close()
		return nil, fmt.Errorf("read the last settlements: %w", err)
	}
	go rec.run()
	return rec, nil
}

// refresh reads the records of the last recallWindow that were not read yet.
func (rec *Recorder) refresh(ctx context.Context) error {
	return rec.recallFrom(ctx, time.Time{})
}

// recallFrom is refresh from an earlier time on, if it is not zero.
func (rec *Recorder) recallFrom(ctx context.Context, since time.Time) error {
	rec.recalling.Lock()
	defer rec.recalling.Unlock()
	if !since.IsZero() {
		clear(rec.settled)
		rec.last, rec.refreshed = 0, time.Time{}
	}
	if time.Since(rec.refreshed) < refreshEvery {
		return nil
	}
	// A cluster without a leader does not answer; this much it would.
	looking, looked := context.WithTimeout(ctx, 10*time.Second)
	stream, err := rec.js.Stream(looking, broker.StreamAttempts)
	looked()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	state := stream.CachedInfo().State
	rec.refreshed = time.Now()
	if state.Msgs == 0 || state.LastSeq == rec.last {
		return nil
	}
	if len(rec.settled) > recallMost {
		clear(rec.settled)
		rec.last = 0
	}
	from := state.LastTime.Add(-recallWindow)
	if !since.IsZero() && since.Before(from) {
		from = since
	}
	c, err := rec.js.OrderedConsumer(ctx, broker.StreamAttempts, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &from,
	})
	if err != nil {
		return err
	}
	for {
		batch, err := c.Fetch(256, jetstream.FetchMaxWait(5*time.Second))
		if err != nil {
			return err
		}
		for m := range batch.Messages() {
			meta, err := m.Metadata()
			if err != nil {
				return err
			}
			if meta.Sequence.Stream <= rec.last && meta.Sequence.Stream < state.LastSeq {
				continue
			}
			records, err := ParseRecords(m.Data())
			if err != nil {
				// A block we can't read costs duplicates, not events.
				rec.log.Warn("unreadable block of attempts", "sequence", meta.Sequence.Stream, "error", err)
			}
			for _, r := range records {
				if p, ok := r.progress(); ok && r.Hop >= 0 { // else it says nothing of an event
					at := place{r.Subscriber, r.Sequence}
					rec.settled[at] = append(rec.settled[at], recalled{p, r.Time})
				}
			}
			if rec.last = meta.Sequence.Stream; rec.last >= state.LastSeq {
				return nil
			}
		}
		if err := batch.Error(); err != nil {
			return err
		}
	}
}

// recall tells how far the process before this one had brought an event, for a
// subscriber that was added at the given time: one that was deleted and added
// again under its old name gets its events anew. The cursor's own time of
// creation will not do: after a restart the server gives the restart's instead
// (nats-server v2.15.2, as seen).
func (rec *Recorder) recall(subscriber string, sequence uint64, added time.Time) (p progress, ok bool) {
	rec.recalling.Lock()
	defer rec.recalling.Unlock()
	for _, r := range rec.settled[place{subscriber, sequence}] {
		if !r.at.After(added) {
			continue
		}
		p, ok = p.then(r.progress), true
	}
	return p, ok
}

// add queues a record and calls then when it is stored. It waits when too many
// are queued; after Close it drops both, and the event comes again. urgent says
// that something waits for it: other records do not, for a moment.
func (rec *Recorder) add(r Record, urgent bool, then func()) {
	select {
	case rec.room <- struct{}{}:
	case <-rec.done:
		return
	}
	rec.mu.Lock()
	rec.queue = append(rec.queue, recording{r, then})
	hurry := urgent && !rec.urgent
	rec.urgent = rec.urgent || urgent
	rec.mu.Unlock()
	poke(rec.wake)
	if hurry {
		poke(rec.hurry)
	}
}

// poke puts a token into a channel that holds one.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// settledOf gives what the subscriber's workers before have settled last.
func (rec *Recorder) settledOf(subscriber string, added time.Time) *settled {
	rec.telling.Lock()
	defer rec.telling.Unlock()
	s := rec.workers[subscriber]
	if s == nil || !s.added.Equal(added) {
		s = &settled{added: added}
		rec.workers[subscriber] = s
	}
	return s
}

// Forget drops what is remembered of a subscriber that is gone.
func (rec *Recorder) Forget(subscriber string) {
	rec.telling.Lock()
	defer rec.telling.Unlock()
	delete(rec.workers, subscriber)
}

// Write records what did not come from a worker, and returns when it is on the
// disk.
func (rec *Recorder) Write(ctx context.Context, records ...Record) error {
	stored := make(chan struct{}, len(records))
	for _, r := range records {
		rec.add(r, true, func() { stored <- struct{}{} })
	}
	for range records {
		select {
		case <-stored:
		case <-ctx.Done():
			return ctx.Err()
		case <-rec.done:
			return errors.New("stopping")
		}
	}
	return nil
}

// Under load each block costs a sync, which costs the system more than all
// records in it. Nobody waits for a settlement but the broker, which forgets an
// ack that a crash prevents either way, so a block gathers for gatherFor while
// blocks are of gatherFrom records or more.
const (
	gatherFor  = 10 * time.Millisecond
	gatherFrom = 8
)

// gather waits until a block is worth a sync.
func (rec *Recorder) gather() {
	rec.mu.Lock()
	at := rec.urgent || rec.closed
	rec.mu.Unlock()
	if at {
		return
	}
	t := time.NewTimer(gatherFor)
	defer t.Stop()
	select {
	case <-rec.hurry:
	case <-t.C:
	}
}

func (rec *Recorder) run() {
	defer close(rec.done)
	many := false
	for range rec.wake {
		for {
			if many {
				rec.gather()
			}
			rec.mu.Lock()
			batch, closed := rec.queue, rec.closed
			rec.queue, rec.urgent = nil, false
			rec.mu.Unlock()
			many = len(batch) >= gatherFrom
			if len(batch) == 0 {
				if closed {
					return
				}
				break
			}
			rec.write(batch)
		}
	}
}

func (rec *Recorder) write(batch []recording) {
	for len(batch) > 0 {
		var block []byte
		n := 0
		for n < len(batch) && len(block) < maxBlock {
			block = batch[n].r.appendTo(block)
			n++
		}
		if !rec.store(block) {
			return // closing: the events come again
		}
		for _, q := range batch[:n] {
			q.then()
			<-rec.room
		}
		batch = batch[n:]
	}
}

// store publishes a block until it is on the disk, or Close gives up on it.
func (rec *Recorder) store(block []byte) bool {
	// The same block again is one block.
	m := &nats.Msg{
		Subject: broker.Attempts(broker.Instance()), Data: block,
		Header: nats.Header{nats.MsgIdHdr: {nuid.Next()}},
	}
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		err := rec.broker.Store(ctx, rec.js, m)
		cancel()
		if err == nil {
			return true
		}
		rec.mu.Lock()
		closed := rec.closed
		rec.mu.Unlock()
		rec.log.Warn("settlements not recorded, trying again", "error", err, "in", wait)
		if closed {
			return false
		}
		time.Sleep(wait)
	}
}

// Close writes what is queued and stops. Workers stop before.
func (rec *Recorder) Close() {
	rec.mu.Lock()
	rec.closed = true
	rec.mu.Unlock()
	poke(rec.wake)
	poke(rec.hurry)
	<-rec.done
}
