// Package publish writes accepted events to the EVENTS stream, and what nobody
// understood to QUARANTINE. When Publish returns without an error, everything
// it was given is stored as durably as the broker stores.
package publish

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
)

// Headers of stored messages that are not CloudEvents attributes.
const (
	headerMsgID  = "Nats-Msg-Id"
	headerDigest = "Gridfan-Digest" // of the event's content, see event.Digest

	headerSource   = "Gridfan-Source"
	headerReason   = "Gridfan-Reason"
	headerDetail   = "Gridfan-Detail"
	headerReceived = "Gridfan-Received"
	headerRequest  = "Gridfan-Request-" // prefix for headers of the request
)

// maxInFlight is how many publishes may wait for the broker at once, over all
// sources; beyond it senders wait, and after maxQueueWait are turned away.
// 4,096 events of 1 KB are 4 MiB.
const (
	maxInFlight  = 4096
	maxQueueWait = 5 * time.Second
	// maxShare is what one source may have of them: with one disk sync for each,
	// what it has on its way holds others up for less than a second.
	maxShare = 1024
	// slice is how many events of one request go together. Event Grid sends up
	// to 5,000 at once, between which others must have their turn.
	slice = 256
)

// ackTimeout is how long one publish may wait for its ack. A sender of Event
// Grid gives up after 30 seconds, so an answer must be ready before.
const ackTimeout = 15 * time.Second

// publishTimeout is how long all of a request may take once it has its slots.
// Together with maxQueueWait it stays below the sender's 30 seconds too.
const publishTimeout = 20 * time.Second

// Errors that Publish tells apart. All but ErrTooLarge mean: not stored, send
// again.
var (
	ErrQuarantineFull = errors.New("quarantine is full for this source")
	ErrStorageFull    = errors.New("the broker's storage is full")
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
	// Header holds the request's headers that help to understand a
	// quarantined body later. No secrets.
	Header map[string]string
}

// Status says what became of one result.
type Status string

// What can become of a result.
const (
	Published   Status = "published"
	Duplicate   Status = "duplicate"
	Quarantined Status = "quarantined"
	Control     Status = "control" // not stored: it was for the router
)

// Publisher stores events. It is safe for concurrent use.
type Publisher struct {
	broker     *broker.Broker
	conn       *nats.Conn
	js         jetstream.JetStream
	stream     jetstream.Stream
	quarantine jetstream.Stream
	maxPayload int
	slots      *semaphore.Weighted

	mu     sync.Mutex // guards shares
	shares map[string]*semaphore.Weighted
}

// New makes a Publisher with a connection of its own.
func New(ctx context.Context, b *broker.Broker) (*Publisher, error) {
	nc, js, err := b.Connect("publish",
		jetstream.WithPublishAsyncMaxPending(maxInFlight),
		jetstream.WithPublishAsyncTimeout(ackTimeout))
	if err != nil {
		return nil, err
	}
	stream, err := js.Stream(ctx, broker.StreamEvents)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", broker.StreamEvents, err)
	}
	quarantine, err := js.Stream(ctx, broker.StreamQuarantine)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", broker.StreamQuarantine, err)
	}
	return &Publisher{
		broker: b, conn: nc, js: js, stream: stream, quarantine: quarantine,
		maxPayload: int(b.MaxPayload()),
		slots:      semaphore.NewWeighted(maxInFlight),
		shares:     map[string]*semaphore.Weighted{},
	}, nil
}

// deliveryHeaderRoom is more than the headers that a retry or a dead letter adds
// to an event, so that what was accepted can also be kept there.
const deliveryHeaderRoom = 16 << 10

// quarantineHeaderRoom is more than a quarantine entry's headers take.
const quarantineHeaderRoom = 48 << 10

// Publish stores every event of results and quarantines every fault, and says
// what became of each, in order. With an error some may be stored already:
// the sender repeats all, and those are then duplicates.
func (p *Publisher) Publish(ctx context.Context, o Origin, results []event.Result) ([]Status, error) {
	if !p.conn.IsConnected() {
		// The client would keep the messages until it is back, which may be
		// long after the sender has stopped waiting.
		return nil, ErrBroker
	}
	ctx, cancel := context.WithTimeout(ctx, maxQueueWait+publishTimeout)
	defer cancel()
	if err := p.broker.Room(); err != nil {
		return nil, brokerError(err)
	}
	epoch := p.broker.Epoch()
	var last uint64
	statuses := make([]Status, 0, len(results))
	for first := true; len(results) > 0; first = false {
		n := min(len(results), slice)
		got, through, err := p.publishSlice(ctx, o, results[:n], first)
		statuses = append(statuses, got...)
		if err != nil {
			return statuses, err
		}
		last = max(last, through)
		results = results[n:]
	}
	if err := p.broker.Durable(ctx, epoch, last); err != nil {
		return statuses, brokerError(err)
	}
	return statuses, nil
}

// publishSlice stores so many results as may be on their way together.
func (p *Publisher) publishSlice(ctx context.Context, o Origin, results []event.Result, first bool) (_ []Status, through uint64, _ error) {
	release, err := p.acquire(ctx, o.Source, int64(len(results)), first)
	if err != nil {
		return nil, 0, err
	}
	defer release()
	pending := make([]publishing, len(results))
	for i := range results {
		pending[i] = p.start(ctx, o, &results[i])
	}
	statuses := make([]Status, len(results))
	var failed error
	for i := range pending {
		s, err := p.finish(ctx, o, &pending[i])
		if err != nil && failed == nil {
			failed = err
		}
		statuses[i] = s
		through = max(through, pending[i].sequence)
	}
	return statuses, through, failed
}

// acquire takes n slots of the source's share and of all. A source that sends
// more than its share waits for itself; the first slice of a request is turned
// away when it would wait for long.
func (p *Publisher) acquire(ctx context.Context, source string, n int64, first bool) (release func(), err error) {
	if first {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, maxQueueWait)
		defer cancel()
	}
	p.mu.Lock()
	own := p.shares[source]
	if own == nil {
		own = semaphore.NewWeighted(maxShare)
		p.shares[source] = own
	}
	p.mu.Unlock()
	if own.Acquire(ctx, n) != nil {
		return nil, ErrOverloaded
	}
	if p.slots.Acquire(ctx, n) != nil {
		own.Release(n)
		return nil, ErrOverloaded
	}
	return func() { p.slots.Release(n); own.Release(n) }, nil
}

// publishing is one result on its way.
type publishing struct {
	result *event.Result
	event  *event.Event // nil when the result goes to quarantine
	future jetstream.PubAckFuture
	err    error
	// sequence is its place in EVENTS once it is there.
	sequence uint64
}

// start sends one result off without waiting.
func (p *Publisher) start(ctx context.Context, o Origin, r *event.Result) publishing {
	switch {
	case r.Control != nil:
		return publishing{result: r}
	case r.Fault != nil:
		return p.startQuarantine(ctx, o, r)
	}
	e := stamp(r.Event, o)
	msg := p.message(o, r, e, identity(o.Environment, r.Key))
	if size, limit := messageSize(msg), p.maxPayload-deliveryHeaderRoom; size > limit {
		r.Fault = event.Faultf(event.FaultTooLarge, "the event takes %d bytes with its attributes, the broker stores at most %d", size, limit)
		r.Event = nil
		return p.startQuarantine(ctx, o, r)
	}
	f, err := p.send(ctx, msg)
	return publishing{result: r, event: e, future: f, err: err}
}

// send publishes m without waiting for its ack.
func (p *Publisher) send(ctx context.Context, m *nats.Msg) (jetstream.PubAckFuture, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// The client's default of 200 ms is less than a slow disk takes for a sync.
	return p.js.PublishMsgAsync(m, jetstream.WithStallWait(ackTimeout))
}

func (p *Publisher) message(o Origin, r *event.Result, e *event.Event, msgID string) *nats.Msg {
	header, body := e.Encode()
	header[headerMsgID] = []string{msgID}
	header[headerDigest] = []string{r.Digest}
	return &nats.Msg{Subject: event.Subject(o.Kind, o.Source, r.Scope, r.Name), Header: header, Data: body}
}

// messageSize counts a message as the server does, headers included.
func messageSize(m *nats.Msg) int {
	const line = len(": \r\n")
	n := len("NATS/1.0\r\n\r\n") + len(m.Data)
	for k, v := range m.Header {
		for _, v := range v {
			n += len(k) + len(v) + line
		}
	}
	return n
}

// finish waits for one result's ack and settles what a duplicate means.
func (p *Publisher) finish(ctx context.Context, o Origin, w *publishing) (Status, error) {
	if w.result.Control != nil {
		return Control, nil
	}
	ack, err := wait(ctx, w.future, w.err)
	if w.event == nil {
		if err == nil && ack.Duplicate {
			err = p.stillQuarantined(ctx, o, w, ack.Sequence)
		}
		return Quarantined, quarantineError(err)
	}
	p.broker.Suspect(err)
	if err != nil {
		return "", brokerError(err)
	}
	w.sequence = ack.Sequence
	if !ack.Duplicate {
		return Published, nil
	}
	same, err := p.sameContent(ctx, ack.Sequence, w.result.Digest)
	if err != nil {
		return "", brokerError(err)
	}
	if same {
		return Duplicate, nil
	}
	return p.publishReused(ctx, o, w)
}

// sameContent compares with what is stored under an id already.
func (p *Publisher) sameContent(ctx context.Context, sequence uint64, digest string) (bool, error) {
	stored, err := p.stream.GetMsg(ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		// Gone, so nobody can say that it was the same: keep this one.
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return stored.Header.Get(headerDigest) == digest, nil
}

// publishReused stores a second, different event whose sender gave it the id
// of an earlier one. It gets an id of its own, so that subscribers which
// dedupe on the id keep both.
func (p *Publisher) publishReused(ctx context.Context, o Origin, w *publishing) (Status, error) {
	e := w.event.Clone()
	e.Set(event.ExtOriginalID, e.ID)
	e.ID += "~" + w.result.Digest[:16]
	f, err := p.send(ctx, p.message(o, w.result, e, identity(o.Environment, w.result.Key, w.result.Digest)))
	ack, err := wait(ctx, f, err)
	switch {
	case err != nil:
		return "", brokerError(err)
	case ack.Duplicate:
		return Duplicate, nil
	}
	return Published, nil
}

// stillQuarantined makes sure that a repeated body is in quarantine: the broker
// remembers its id for a while even after somebody dropped the entry.
func (p *Publisher) stillQuarantined(ctx context.Context, o Origin, w *publishing, sequence uint64) error {
	_, err := p.quarantine.GetMsg(ctx, sequence)
	if !errors.Is(err, jetstream.ErrMsgNotFound) {
		return err
	}
	m := quarantineMessage(o, w.result)
	m.Header.Del(headerMsgID)
	f, err := p.send(ctx, m)
	_, err = wait(ctx, f, err)
	return err
}

func (p *Publisher) startQuarantine(ctx context.Context, o Origin, r *event.Result) publishing {
	if len(r.Raw) > p.maxPayload-quarantineHeaderRoom {
		return publishing{result: r, err: ErrTooLarge}
	}
	f, err := p.send(ctx, quarantineMessage(o, r))
	return publishing{result: r, future: f, err: err}
}

func quarantineMessage(o Origin, r *event.Result) *nats.Msg {
	h := nats.Header{
		headerMsgID:    {identity("quarantine", o.Source, string(r.Raw))},
		headerSource:   {o.Source},
		headerReason:   {string(r.Fault.Code)},
		headerDetail:   {url.PathEscape(r.Fault.Detail)},
		headerReceived: {event.FormatTime(o.Accepted)},
	}
	for name, value := range o.Header {
		h[headerRequest+name] = []string{url.PathEscape(value)}
	}
	return &nats.Msg{Subject: broker.Quarantine(o.Source), Header: h, Data: r.Raw}
}

// Quarantine is what the headers of an entry in quarantine say.
type Quarantine struct {
	Source   string          `json:"source"`
	Reason   event.FaultCode `json:"reason"`
	Detail   string          `json:"detail"`
	Received time.Time       `json:"received"`
	// Request holds the headers of the request that explain the body.
	Request map[string]string `json:"request,omitempty"`
}

// DecodeQuarantine reads the headers of an entry back. What is unreadable in
// them stays empty.
func DecodeQuarantine(h map[string][]string) Quarantine {
	q := Quarantine{Request: map[string]string{}}
	for name, values := range h {
		if len(values) == 0 {
			continue
		}
		text, err := url.PathUnescape(values[0])
		if err != nil {
			text = values[0]
		}
		switch name {
		case headerSource:
			q.Source = text
		case headerReason:
			q.Reason = event.FaultCode(text)
		case headerDetail:
			q.Detail = text
		case headerReceived:
			q.Received, _ = event.ParseTime(text)
		default:
			if r, ok := strings.CutPrefix(name, headerRequest); ok {
				q.Request[r] = text
			}
		}
	}
	return q
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
	return e
}

// identity condenses what makes an event itself into a message id.
func identity(parts ...string) string {
	h := sha256.New()
	for _, s := range parts {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:18])
}

func wait(ctx context.Context, f jetstream.PubAckFuture, err error) (*jetstream.PubAck, error) {
	if err != nil {
		return nil, err
	}
	select {
	case ack := <-f.Ok():
		return ack, nil
	case err := <-f.Err():
		return nil, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func brokerError(err error) error {
	if broker.IsFull(err) {
		return ErrStorageFull
	}
	return fmt.Errorf("%w: %w", ErrBroker, err)
}

func quarantineError(err error) error {
	switch {
	case err == nil:
		return nil
	case broker.IsFull(err):
		return ErrQuarantineFull
	case errors.Is(err, ErrTooLarge):
		return err
	}
	return fmt.Errorf("%w: %w", ErrBroker, err)
}
