package deliver

import (
	"bytes"
	"context"
	"encoding/json"
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

// Record is one line of the ATTEMPTS stream: how the broker's message of one
// event was settled for one subscriber.
//
// There is one record per (Subscriber, Sequence, Hop), and one of a final
// outcome per (Subscriber, Sequence): the books count those.
type Record struct {
	Subscriber string `json:"subscriber"`
	// Sequence is the event's place in EVENTS.
	Sequence uint64 `json:"seq"`
	// Hop is 0 for the event itself and counts its trips over the retry lane.
	Hop int `json:"hop"`
	// ID and Subject are the event's.
	ID      string `json:"id"`
	Subject string `json:"subject"`
	// Outcome is one of those below.
	Outcome string `json:"outcome"`
	// Attempts were made so far in all.
	Attempts int `json:"attempts"`
	// Status, Fault, Reason and Millis are those of the last attempt.
	Status int    `json:"status,omitempty"`
	Fault  Fault  `json:"fault,omitempty"`
	Reason string `json:"reason,omitempty"`
	Millis int64  `json:"ms"`
	// Cause says why a dead letter is one.
	Cause string `json:"cause,omitempty"`
	// Probe: the last attempt was made to see whether the subscriber is back.
	Probe bool `json:"probe,omitempty"`
	// Earlier are the attempts since the record before, without the last.
	Earlier []Try `json:"earlier,omitempty"`
	// Time is when that attempt ended; Next when the next one is due.
	Time time.Time  `json:"time"`
	Next *time.Time `json:"next,omitempty"`
}

// Try is one attempt in a Record.
type Try struct {
	Time   time.Time `json:"time"` // when it ended
	Status int       `json:"status,omitempty"`
	Fault  Fault     `json:"fault,omitempty"`
	Reason string    `json:"reason,omitempty"`
	Millis int64     `json:"ms"`
}

// The outcomes in records. The first ones begin or continue something, the
// others end an event for the subscriber.
const (
	RecordTried    = "tried"    // failed, and kept in hand: no settlement, and Hop stays
	RecordRetry    = "retry"    // failed, and waits for its next attempt
	RecordBehind   = "behind"   // waits on the retry lane until those before it are settled
	RecordRedriven = "redriven" // a dead letter that is sent out anew; Hop is the dead letter's
	RecordReplayed = "replayed" // an event that is sent once more because somebody asked; Hop is the new one's

	RecordDelivered  = "delivered"
	RecordDeadLetter = "dead-letter"
	RecordFiltered   = "filtered" // the subscriber's filter does not want it
	RecordShed       = "shed"     // dropped to make room, where the operator chose that
	RecordDropped    = "dropped"  // a dead letter that an operator deleted; Hop is the dead letter's
)

// place is an event of one subscriber.
type place struct {
	subscriber string
	sequence   uint64
}

// progress is how far an event has come: the highest hop that was settled, and
// whether that ended it.
type progress struct {
	hop   int
	final bool
}

// passed says whether a message of a hop has nothing to do any more. It was
// settled itself and its ack got lost; or a later one was; or it is the retry of
// a hop whose record a crash prevented, and that was ended when it came again.
// Whoever sends an event out anew after its end gives it a hop further on.
func (p progress) passed(hop int) bool {
	return hop <= p.hop || p.final && hop == p.hop+1
}

// then is the progress after another settlement. An event that is sent out anew
// has not ended any more, however its life before did.
func (p progress) then(q progress) progress {
	switch {
	case q.hop > p.hop:
		return q
	case q.hop < p.hop:
		return p
	}
	return progress{p.hop, p.final || q.final}
}

// progress is what a record says of its event, and nothing if it settles none.
func (r Record) progress() (p progress, ok bool) {
	switch r.Outcome {
	case RecordTried, RecordRedriven, RecordReplayed, RecordDropped:
		return progress{}, false
	}
	return progress{r.Hop, r.Outcome != RecordRetry && r.Outcome != RecordBehind}, true
}

// Recorder writes records in blocks: while one block is on its way to the
// disk the next one gathers, so that thousands of settlements share one sync
// and a single one does not wait. It is safe for concurrent use.
type Recorder struct {
	broker *broker.Broker
	js     jetstream.JetStream
	log    *slog.Logger

	mu     sync.Mutex // guards queue, then closed
	queue  []recording
	closed bool
	wake   chan struct{} // holds at most one token
	room   chan struct{} // a token for each record that may wait
	done   chan struct{}

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
	_, js, err := b.Connect("recorder")
	if err != nil {
		return nil, err
	}
	rec := &Recorder{
		broker: b, js: js, log: log,
		wake: make(chan struct{}, 1), room: make(chan struct{}, maxQueued), done: make(chan struct{}),
		settled: map[place][]recalled{},
	}
	if err := rec.refresh(ctx); err != nil {
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
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	stream, err := rec.js.Stream(ctx, broker.StreamAttempts)
	if err != nil {
		return err
	}
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

// ParseRecords reads the body of a message of the ATTEMPTS stream: one JSON
// object a line.
func ParseRecords(block []byte) ([]Record, error) {
	var records []Record
	d := json.NewDecoder(bytes.NewReader(block))
	for d.More() {
		var r Record
		if err := d.Decode(&r); err != nil {
			return records, err
		}
		records = append(records, r)
	}
	return records, nil
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
// are queued; after Close it drops both, and the event comes again.
func (rec *Recorder) add(r Record, then func()) {
	select {
	case rec.room <- struct{}{}:
	case <-rec.done:
		return
	}
	rec.mu.Lock()
	rec.queue = append(rec.queue, recording{r, then})
	rec.mu.Unlock()
	select {
	case rec.wake <- struct{}{}:
	default:
	}
}

// Write records what did not come from a worker, and returns when it is on the
// disk.
func (rec *Recorder) Write(ctx context.Context, records ...Record) error {
	var left sync.WaitGroup
	for _, r := range records {
		left.Add(1)
		rec.add(r, left.Done)
	}
	stored := make(chan struct{})
	go func() { left.Wait(); close(stored) }()
	select {
	case <-stored:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-rec.done:
		return errors.New("stopping")
	}
}

func (rec *Recorder) run() {
	defer close(rec.done)
	for range rec.wake {
		for {
			rec.mu.Lock()
			batch, closed := rec.queue, rec.closed
			rec.queue = nil
			rec.mu.Unlock()
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
		var block bytes.Buffer
		enc := json.NewEncoder(&block)
		n := 0
		for n < len(batch) && block.Len() < maxBlock {
			if err := enc.Encode(batch[n].r); err != nil {
				rec.log.Error("encode attempt record", "error", err) // cannot happen: plain fields
			}
			n++
		}
		if !rec.store(block.Bytes()) {
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
	select {
	case rec.wake <- struct{}{}:
	default:
	}
	<-rec.done
}
