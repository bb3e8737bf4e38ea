package deliver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
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
	// ready calls yield for up to max messages that are there now.
	ready(ctx context.Context, max int, yield func(message)) error
}

// message is one delivery of one stored event, held by this process until it
// is acked or its ack wait ends.
type message interface {
	header() nats.Header
	body() []byte
	subject() string
	// sequence is the message's place in its stream.
	sequence() uint64
	// serial counts the deliveries of its cursor.
	serial() uint64
	// again says that it was handed out before.
	again() bool
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
type consumerReader struct {
	c    jetstream.Consumer
	link *link
}

// link notices that a connection was lost and found again. A request for messages
// that was with the server before is not any more, and would be waited for in
// vain.
type link struct {
	mu    sync.Mutex // guards all below
	ctx   context.Context
	renew context.CancelFunc
}

// newLink watches nc until it is closed.
func newLink(nc *nats.Conn) *link {
	l := &link{}
	l.ctx, l.renew = context.WithCancel(context.Background())
	changes := nc.StatusChanged(nats.CONNECTED, nats.CLOSED)
	go func() {
		for status := range changes {
			l.mu.Lock()
			l.renew()
			if status == nats.CLOSED {
				l.mu.Unlock()
				return
			}
			l.ctx, l.renew = context.WithCancel(context.Background())
			l.mu.Unlock()
		}
	}()
	return l
}

// with gives a context that ends with ctx or when the connection is another one.
func (l *link) with(ctx context.Context) (context.Context, context.CancelFunc) {
	l.mu.Lock()
	link := l.ctx
	l.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(link, cancel)
	return ctx, func() { stop(); cancel() }
}

func (r consumerReader) fetch(ctx context.Context, max int, wait time.Duration, yield func(message)) error {
	ctx, unlink := r.link.with(ctx)
	defer unlink()
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	// Fetch, not Consume: that one can lose its last request and stop for 30
	// seconds (nats.go v1.55.0, jetstream/pull.go).
	options := []jetstream.FetchOpt{jetstream.FetchContext(ctx), jetstream.FetchMaxBytes(fetchBytes)}
	if r.replicated() {
		max, options = min(max, readyBatch), options[:1]
	}
	batch, err := r.c.Fetch(max, options...)
	if err != nil {
		return err
	}
	_, err = yieldAll(batch, yield)
	return err
}

// replicated says whether several servers keep the cursor. A request with a limit of
// bytes is then of no use: when it has had all its messages the server says "Batch
// Completed", and that overtakes the last of them, which waits for the quorum. The
// client ends the request there and drops what comes after; for a subscriber that
// takes one at a time, that is everything (nats-server v2.15.2, consumer.go,
// deliverMsg and JsPullRequestRemainingBytesT; seen 2026-11).
func (r consumerReader) replicated() bool {
	info := r.c.CachedInfo()
	return info != nil && info.Cluster != nil && len(info.Cluster.Replicas) > 0
}

// readyBatch bounds the memory of one request, which can have no limit of bytes:
// 16 messages of the largest kind fit the connection's own limit.
const readyBatch = 16

// ready does not use a deadline: what the server had sent when it ended would
// come again only after ackWait. Here the server says when there is no more.
func (r consumerReader) ready(ctx context.Context, max int, yield func(message)) error {
	for max > 0 && ctx.Err() == nil {
		n := min(max, readyBatch)
		batch, err := r.c.FetchNoWait(n)
		if err != nil {
			return err
		}
		came, err := yieldAll(batch, yield)
		if err != nil || came < n {
			return err
		}
		max -= n
	}
	return nil
}

func yieldAll(batch jetstream.MessageBatch, yield func(message)) (n int, err error) {
	for m := range batch.Messages() {
		meta, err := m.Metadata()
		if err != nil {
			return n, fmt.Errorf("metadata of a fetched message: %w", err)
		}
		yield(consumed{m, meta})
		n++
	}
	if err := batch.Error(); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return n, err
	}
	return n, nil
}

type consumed struct {
	m    jetstream.Msg
	meta *jetstream.MsgMetadata
}

func (c consumed) header() nats.Header { return c.m.Headers() }
func (c consumed) body() []byte        { return c.m.Data() }
func (c consumed) subject() string     { return c.m.Subject() }
func (c consumed) sequence() uint64    { return c.meta.Sequence.Stream }
func (c consumed) serial() uint64      { return c.meta.Sequence.Consumer }
func (c consumed) again() bool         { return c.meta.NumDelivered > 1 }
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
		Durable:        name,
		Description:    "gridfan subscriber " + name + ": due retries",
		FilterSubjects: []string{broker.RetryDue(name), broker.RetryDueAll(name)},
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        ackWait,
		MaxDeliver:     -1,
		MaxAckPending:  inFlight,
	}
}

// sameSettings compares what can change of a cursor; the server adds defaults.
func sameSettings(have, want jetstream.ConsumerConfig) bool {
	return have.Description == want.Description && have.FilterSubject == want.FilterSubject &&
		slices.Equal(have.FilterSubjects, want.FilterSubjects) && have.AckWait == want.AckWait &&
		have.MaxDeliver == want.MaxDeliver && have.MaxAckPending == want.MaxAckPending
}
