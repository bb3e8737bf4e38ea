package books

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// tail reads a stream from a message on, in order, as an ordered consumer does;
// that one makes a consumer anew for each fetch (nats.go v1.55.0,
// jetstream/ordered.go).
type tail struct {
	js      jetstream.JetStream
	stream  string
	headers bool // without bodies
	filter  []string
	batch   int

	c    jetstream.Consumer // nil: to be made
	last uint64             // delivery of the consumer
	next uint64             // message of the stream, as the reader stands
	// read were fetched, and are behind what was asked for.
	read []message
}

// idleConsumer is how long the server keeps a consumer that nobody asks: so long
// that one round may take its time, and short enough for what a dead process
// leaves.
const idleConsumer = 2 * time.Minute

// message is one of a stream.
type message struct {
	jetstream.Msg
	sequence uint64
	stored   time.Time
}

// errMissed means that messages were missed on the way: read again.
var errMissed = errors.New("messages were missed on the way")

// lateEvery is how often a message is asked for that the consumer does not know
// of yet, although the stream has it.
const lateEvery = 5 * time.Millisecond

// take gives the next messages from a sequence on and up to another one; none
// means that there are no more. What it gives is good until it is called again.
func (t *tail) take(ctx context.Context, from, through uint64) ([]message, error) {
	for {
		list, err := t.some(ctx, from, through)
		if err != nil || len(list) > 0 || len(t.read) > 0 || len(t.filter) > 0 {
			return list, err
		}
		s, err := t.js.Stream(ctx, t.stream)
		if err != nil {
			return nil, err
		}
		m, err := s.GetMsg(ctx, from, jetstream.WithGetMsgSubject(">"))
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound), err == nil && m.Sequence > through:
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("stream %s: %w", t.stream, err)
		}
		late := time.NewTimer(lateEvery)
		select {
		case <-late.C:
		case <-ctx.Done():
			late.Stop()
			return nil, ctx.Err()
		}
	}
}

func (t *tail) some(ctx context.Context, from, through uint64) ([]message, error) {
	if t.c == nil || t.next != from {
		if err := t.begin(ctx, from); err != nil {
			return nil, err
		}
	}
	if len(t.read) == 0 {
		if err := t.fetch(); err != nil {
			t.c = nil // the next one begins with another consumer
			return nil, fmt.Errorf("stream %s: %w", t.stream, err)
		}
	}
	n := 0
	for n < len(t.read) && t.read[n].sequence <= through {
		n++
	}
	list := t.read[:n]
	if t.read = t.read[n:]; n > 0 {
		t.next = list[n-1].sequence + 1
	}
	return list, nil
}

// begin makes a consumer.
func (t *tail) begin(ctx context.Context, from uint64) error {
	t.drop(ctx)
	c, err := t.js.CreateConsumer(ctx, t.stream, jetstream.ConsumerConfig{
		Description: "gridfan: what the books are kept from", AckPolicy: jetstream.AckNonePolicy,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from,
		FilterSubjects: t.filter, HeadersOnly: t.headers, MemoryStorage: true, Replicas: 1,
		InactiveThreshold: idleConsumer,
	})
	if err != nil {
		return fmt.Errorf("stream %s from %d on: %w", t.stream, from, err)
	}
	t.c, t.next, t.last, t.read = c, from, 0, nil
	return nil
}

// fetch gets what is there, up to a batch.
func (t *tail) fetch() error {
	batch, err := t.c.FetchNoWait(t.batch)
	if err != nil {
		return err
	}
	t.read = make([]message, 0, t.batch)
	for m := range batch.Messages() {
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		if t.last++; meta.Sequence.Consumer != t.last {
			return errMissed
		}
		t.read = append(t.read, message{m, meta.Sequence.Stream, meta.Timestamp})
	}
	if err := batch.Error(); err != nil && !errors.Is(err, nats.ErrTimeout) {
		return err
	}
	return nil
}

// drop removes the consumer.
func (t *tail) drop(ctx context.Context) {
	if t.c != nil {
		_ = t.js.DeleteConsumer(ctx, t.stream, t.c.CachedInfo().Name) // it goes by itself, see idleConsumer
		t.c = nil
	}
}
