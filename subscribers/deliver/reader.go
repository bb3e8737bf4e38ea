package deliver

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
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
	// get gives one header, without the others.
	get(name string) string
	// decode gives the event that it is.
	decode() (*event.Event, error)
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
