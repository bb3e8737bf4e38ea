package deliver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
)

// reader hands a worker its messages. It hides how they are read from the
// stream, so that one reader shared by many subscribers can take the place of
// a consumer for each.
type reader interface {
	// fetch calls yield for up to max messages as they arrive, and returns
	// when it has had that many, when ctx ends, or after a while without any.
	fetch(ctx context.Context, max int, wait time.Duration, yield func(message)) error
}

// message is one delivery of one stored event, held by this process until it
// is acked or its ack wait ends.
type message interface {
	header() nats.Header
	body() []byte
	subject() string
	// sequence is the message's place in its stream.
	sequence() uint64
	// ack settles it: it does not come again. It does not wait.
	ack() error
	// hold extends the time until it comes again.
	hold() error
	// release gives it back at once.
	release() error
}

// ackWait is how long the broker waits for a sign of life about a message it
// handed out. It is short so that after a crash the events in flight come
// back soon, and the worker holds each message while it works on it.
const (
	ackWait   = 1500 * time.Millisecond
	holdEvery = 500 * time.Millisecond
)

// fetchWait is how long one request for messages stays with the server.
const fetchWait = 30 * time.Second

// fetchBytes bounds what one request brings: two messages of the largest kind.
const fetchBytes = 2*broker.MaxPayload + 1<<20

// consumerReader reads through a durable JetStream consumer.
type consumerReader struct{ c jetstream.Consumer }

func (r consumerReader) fetch(ctx context.Context, max int, wait time.Duration, yield func(message)) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	// Fetch, not Consume: that one can lose its last request and stop for 30
	// seconds (nats.go v1.55.0, jetstream/pull.go).
	batch, err := r.c.Fetch(max, jetstream.FetchContext(ctx), jetstream.FetchMaxBytes(fetchBytes))
	if err != nil {
		return err
	}
	for m := range batch.Messages() {
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("metadata of a fetched message: %w", err)
		}
		yield(consumed{m, meta})
	}
	if err := batch.Error(); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

type consumed struct {
	m    jetstream.Msg
	meta *jetstream.MsgMetadata
}

func (c consumed) header() nats.Header { return c.m.Headers() }
func (c consumed) body() []byte        { return c.m.Data() }
func (c consumed) subject() string     { return c.m.Subject() }
func (c consumed) sequence() uint64    { return c.meta.Sequence.Stream }
func (c consumed) ack() error          { return c.m.Ack() }
func (c consumed) hold() error         { return c.m.InProgress() }
func (c consumed) release() error      { return c.m.Nak() }

// consumerConfig is the cursor of one subscriber on EVENTS.
func consumerConfig(name string, subjects []string, startSequence uint64, inFlight int) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:        name,
		Description:    "gridfan subscriber " + name,
		FilterSubjects: subjects,
		DeliverPolicy:  jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:    max(1, startSequence),
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        ackWait,
		// We count attempts ourselves: the server's count includes prefetch,
		// crashes and pauses, and at its limit the event stops coming.
		MaxDeliver:    -1,
		MaxAckPending: inFlight,
	}
}

// retryConfig is the cursor of one subscriber on its due retries.
func retryConfig(name string, inFlight int) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:       name,
		Description:   "gridfan subscriber " + name + ": due retries",
		FilterSubject: broker.RetryDue(name),
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       ackWait,
		MaxDeliver:    -1,
		MaxAckPending: inFlight,
	}
}
