package poll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
)

// checkpoint is what is kept of a source between two pages. It moves only after
// everything that it stands for is on disk.
type checkpoint struct {
	Layout int `json:"layout"`
	// Holder is who wrote it. Whoever takes over writes it at once, so that one who
	// still believes to be the holder cannot any more.
	Holder string `json:"holder"`
	// Table is what it is of; empty in those that were written before there was more
	// than one.
	Table string `json:"table,omitempty"`
	Phase phase  `json:"phase"`
	// Mode says what a baseline does with rows.
	Mode Baseline `json:"mode,omitempty"`
	// Silent is when a baseline ended whose rows were not published.
	Silent time.Time `json:"silent,omitzero"`
	// Cursor is where to go on; nil: at the beginning.
	Cursor json.RawMessage `json:"cursor,omitempty"`
	// Since is when the phase began, Rows and Pages how far its listing has come,
	// and Reason why it is read again.
	Since  time.Time `json:"since,omitzero"`
	Rows   int64     `json:"rows,omitempty"`
	Pages  int64     `json:"pages,omitempty"`
	Reason string    `json:"reason,omitempty"`
	// Confirmed says that rows may be missing, however many.
	Confirmed bool  `json:"confirmed,omitempty"`
	Missing   int64 `json:"missing,omitempty"`

	Newest time.Time `json:"newest,omitzero"`
	Bound  time.Time `json:"bound,omitzero"`
	// Columns are those seen, Gone those that were and are not any more.
	Columns []string `json:"columns,omitempty"`
	Gone    []string `json:"gone,omitempty"`
	Known   known    `json:"known"`
}

// phase is what the pages of a source are.
type phase string

const (
	phaseNew         phase = ""            // never read
	phaseBaseline    phase = "baseline"    // all rows, for the first time
	phaseChanges     phase = "changes"     // what has changed
	phaseResync      phase = "resync"      // all rows, to be compared
	phaseUnconfirmed phase = "unconfirmed" // many were missing
)

// layout is the version of checkpoints and blocks. A newer one is not touched.
const layout = 1

// held is a lease.
type held interface {
	Context() context.Context
	Note([]byte)
	Release()
}

// keeper keeps what must outlive a process, by ID: on the broker, and in tests of timing,
// which need a clock that a broker does not have, in memory.
type keeper interface {
	// lease gives nil when somebody else has it.
	lease(ctx context.Context, source string, ttl time.Duration) (held, error)
	// load gives the zero checkpoint and revision 0 when there is none.
	load(ctx context.Context, source string) (checkpoint, uint64, error)
	// save returns when it is durable. It fails with errFenced when revision is
	// not the last one.
	save(ctx context.Context, source string, c checkpoint, revision uint64) (uint64, error)
	// last is the sequence of the newest block, 0 for none.
	last(ctx context.Context, source string) (uint64, error)
	// remember stores a block behind the one of a sequence, and returns when it is
	// durable. It fails with errFenced when that is not the last one, and with
	// errNoRoom.
	remember(ctx context.Context, source string, block []byte, behind uint64) (uint64, error)
	// recall gives blocks in order, from a sequence on.
	recall(ctx context.Context, source string, from uint64, each func(sequence uint64, block []byte) error) error
	// forget drops blocks before a sequence.
	forget(ctx context.Context, source string, before uint64) error
	// hold tells other processes that an identity, by its key, is to be left alone for
	// a while, and heldFor how long it still is.
	// Both give the number of the hold.
	hold(ctx context.Context, key string, d time.Duration) (uint64, error)
	heldFor(ctx context.Context, key string) (time.Duration, uint64, error)
}

var (
	errFenced = errors.New("another router has taken the source over")
	errNoRoom = errors.New("there is no room for remembering rows")
)

// brokerKeeper keeps it on the broker.
type brokerKeeper struct {
	broker *broker.Broker
	conn   *nats.Conn
	js     jetstream.JetStream
	kv     jetstream.KeyValue
	known  jetstream.Stream
}

func openKeeper(ctx context.Context, b *broker.Broker) (*brokerKeeper, error) {
	conn, js, err := b.Connect("poll")
	if err != nil {
		return nil, err
	}
	k := &brokerKeeper{broker: b, conn: conn, js: js}
	if k.kv, err = js.KeyValue(ctx, broker.BucketPolls); err != nil {
		conn.Close()
		return nil, fmt.Errorf("bucket %s: %w", broker.BucketPolls, err)
	}
	if k.known, err = js.Stream(ctx, broker.StreamKnown); err != nil {
		conn.Close()
		return nil, fmt.Errorf("stream %s: %w", broker.StreamKnown, err)
	}
	return k, nil
}

// leaseKey names the lease of a table, by its ID.
func leaseKey(id string) string { return "poll." + id }

func (k *brokerKeeper) lease(ctx context.Context, source string, ttl time.Duration) (held, error) {
	l, err := k.broker.TryLease(ctx, leaseKey(source), ttl)
	if l == nil {
		return nil, err // not a held that is a nil *Lease
	}
	return l, err
}

func (k *brokerKeeper) load(ctx context.Context, source string) (c checkpoint, revision uint64, _ error) {
	e, err := k.kv.Get(ctx, source)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return c, 0, nil
	}
	if err != nil {
		return c, 0, err
	}
	if err := json.Unmarshal(e.Value(), &c); err != nil {
		return c, 0, fmt.Errorf("checkpoint %s: %w", source, err)
	}
	if c.Layout > layout {
		return c, 0, fmt.Errorf("checkpoint %s was written by a newer gridfan (layout %d, this one knows %d); use that version or newer", source, c.Layout, layout)
	}
	return c, e.Revision(), nil
}

func (k *brokerKeeper) save(ctx context.Context, source string, c checkpoint, revision uint64) (now uint64, _ error) {
	value, err := json.Marshal(c)
	if err != nil {
		return 0, err
	}
	err = k.broker.Change(ctx, func() (err error) {
		if revision == 0 {
			now, err = k.kv.Create(ctx, source, value)
		} else {
			now, err = k.kv.Update(ctx, source, value, revision)
		}
		return err
	})
	if broker.IsFenced(err) {
		return 0, errFenced
	}
	return now, err
}

func (k *brokerKeeper) last(ctx context.Context, source string) (uint64, error) {
	m, err := k.known.GetLastMsgForSubject(ctx, broker.Known(source))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return m.Sequence, nil
}

func (k *brokerKeeper) remember(ctx context.Context, source string, block []byte, behind uint64) (sequence uint64, _ error) {
	err := k.broker.Change(ctx, func() error {
		ack, err := k.js.Publish(ctx, broker.Known(source), block, jetstream.WithExpectLastSequencePerSubject(behind))
		if err == nil {
			sequence = ack.Sequence
		}
		return err
	})
	switch {
	case broker.IsFenced(err):
		return 0, errFenced
	case broker.IsFull(err) && !errors.Is(err, broker.ErrDiskFull):
		return 0, errNoRoom
	}
	return sequence, err
}

// recallWait is how long the next block may take.
const recallWait = 10 * time.Second

func (k *brokerKeeper) recall(ctx context.Context, source string, from uint64, each func(uint64, []byte) error) error {
	last, err := k.last(ctx, source)
	if err != nil || last == 0 || last < from {
		return err
	}
	cons, err := k.js.OrderedConsumer(ctx, broker.StreamKnown, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{broker.Known(source)}, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(from, 1),
	})
	if err != nil {
		return err
	}
	messages, err := cons.Messages(jetstream.PullMaxMessages(16))
	if err != nil {
		return err
	}
	defer messages.Stop()
	for {
		next, cancel := context.WithTimeout(ctx, recallWait)
		m, err := messages.Next(jetstream.NextContext(next))
		cancel()
		if err != nil {
			return fmt.Errorf("read what is known of %s: %w", source, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		if err := each(meta.Sequence.Stream, m.Data()); err != nil {
			return err
		}
		if meta.Sequence.Stream >= last {
			return nil
		}
	}
}

func (k *brokerKeeper) forget(ctx context.Context, source string, before uint64) error {
	return k.known.Purge(ctx, jetstream.WithPurgeSubject(broker.Known(source)), jetstream.WithPurgeSequence(before))
}

func (k *brokerKeeper) hold(ctx context.Context, key string, d time.Duration) (uint64, error) {
	return k.broker.Hold(ctx, key, d)
}

func (k *brokerKeeper) heldFor(ctx context.Context, key string) (time.Duration, uint64, error) {
	return k.broker.Held(ctx, key)
}

func (k *brokerKeeper) close() { k.conn.Close() }
