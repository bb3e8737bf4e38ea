package publish

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/dedup"
	"github.com/gridfan/gridfan/schemas/event"
)

// Headers of stored messages that are not CloudEvents attributes.
const (
	headerMsgID  = "Nats-Msg-Id"
	headerDigest = "Gridfan-Digest" // of the event's content, see event.Digest
	// headerIdentity is the identity that the Msg-Id of another event has
	// already.
	headerIdentity = "Gridfan-Identity"
	// headerMatch is what the same change is found by that comes the other way;
	// see match.
	headerMatch = "Gridfan-Match"
)

// deliveryHeaderRoom is more than the headers that a retry or a dead letter adds
// to an event, so that what was accepted can also be kept there.
const deliveryHeaderRoom = 16 << 10

// outgoing is one result on its way to the broker.
type outgoing struct {
	status Status // what it becomes when it is stored
	// msg is nil for what is not stored.
	msg *nats.Msg
	// order is shared by those that must be stored one after another; empty for
	// none.
	order string

	// Of an event, not of an entry in quarantine:
	event    *event.Event // nil until needed for one that comes from the spool
	key      dedup.Key
	match    string // empty for none
	identity string
	digest   string
	renamed  bool

	future jetstream.PubAckFuture
	begun  time.Time
	sent   bool
	resent bool
	done   bool
	// For the tally: it was stored by this call, or was there already although
	// nobody knew (late); an entry in quarantine was there before (repeated).
	kept, late, repeated bool
	// sequence is its place in EVENTS once it is there; 0 for anything else.
	sequence uint64
}

// identity condenses what makes an event itself into a message id.
func identity(parts ...string) string {
	var b []byte
	for _, s := range parts {
		b = strconv.AppendInt(b, int64(len(s)), 10)
		b = append(b, ':')
		b = append(b, s...)
	}
	h := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(h[:18])
}

// The two ways by which one change can come.
const (
	waySent = "sent" // by the source: pushed, or through a queue
	waySeen = "seen" // by looking at the source: polled, reconciled
)

// match condenses what an event and the same change that comes the other way have
// in common, as what is found by each: two rows of one version are one change if
// one was sent and the other seen, but two that were sent may be two steps of it,
// and two that were seen are told apart by their keys. Both are empty for an event
// without a match key. The kind keeps senders of their own extensions from having
// a say in what is polled.
func match(o Origin, e *event.Event) (own, other string) {
	key := e.Get(event.ExtMatchKey)
	if key == "" {
		return "", ""
	}
	way, opposite := waySent, waySeen
	if o.Via == "poll" || o.Via == "reconcile" {
		way, opposite = waySeen, waySent
	}
	return identity("match", way, o.Environment, o.Kind, key), identity("match", opposite, o.Environment, o.Kind, key)
}

// known is what the index remembers of what was stored.
func (x *index) known(sequence uint64, k dedup.Key, match string, at time.Time) {
	if match == "" {
		x.Add(sequence, k, at)
		return
	}
	x.Add(sequence, k, at, dedup.KeyOf(match, ""))
}

// rename gives a second, different event whose sender gave it the id of an
// earlier one an id of its own, so that subscribers which dedupe on the id keep
// both.
func (w *outgoing) rename() {
	e := w.event.Clone()
	e.Set(event.ExtOriginalID, e.ID)
	e.ID += "~" + w.digest[:16]
	w.event, w.renamed = e, true
}

// encode makes the message.
func (w *outgoing) encode(subject string) {
	header, body := w.event.Encode()
	header[headerDigest] = []string{w.digest}
	if w.match != "" {
		header[headerMatch] = []string{w.match}
	}
	if w.renamed {
		header[headerIdentity] = []string{w.identity}
		header[headerMsgID] = []string{identity(w.identity, w.digest)}
	} else {
		header[headerMsgID] = []string{w.identity}
	}
	w.msg = &nats.Msg{Subject: subject, Header: header, Data: body}
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

// id is the message id of what is stored.
func (w *outgoing) id() string {
	if w.msg != nil {
		return w.msg.Header.Get(headerMsgID)
	}
	if w.renamed {
		return identity(w.identity, w.digest)
	}
	return w.identity
}

// target is a broker that takes events.
type target struct {
	broker     *broker.Broker
	conn       *nats.Conn
	js         jetstream.JetStream
	events     jetstream.Stream
	quarantine jetstream.Stream
	maxPayload int
	resent     atomic.Int64 // messages
	unsure     recent       // sent, and nobody knows whether they are stored
}

// newTarget opens a connection for publishing.
func newTarget(ctx context.Context, b *broker.Broker) (*target, error) {
	nc, js, err := b.Connect("publish",
		jetstream.WithPublishAsyncMaxPending(maxInFlight),
		jetstream.WithPublishAsyncTimeout(ackTimeout))
	if err != nil {
		return nil, err
	}
	t := &target{broker: b, conn: nc, js: js, maxPayload: int(b.MaxPayload())}
	if t.events, err = js.Stream(ctx, b.Main()); err != nil {
		nc.Close()
		return nil, fmt.Errorf("stream %s: %w", b.Main(), err)
	}
	t.quarantine = t.events
	if b.Main() == broker.StreamEvents {
		if t.quarantine, err = js.Stream(ctx, broker.StreamQuarantine); err != nil {
			nc.Close()
			return nil, fmt.Errorf("stream %s: %w", broker.StreamQuarantine, err)
		}
	}
	return t, nil
}

// How long one publish waits for its ack before it is sent again, and how often
// one that failed is.
const (
	ackTimeout  = 5 * time.Second
	resendFirst = 20 * time.Millisecond
	resendMost  = time.Second
	// resendFor is how long one event is sent again before its sender is told
	// to come back: longer than a cluster takes for a new leader, and F&O gives
	// up after three answers of 503.
	resendFor = 16 * time.Second
)

// sendAll stores what is to be stored, together as far as the order lets it.
// One that fails does not keep the others from being stored; the error is the
// first one's.
func (t *target) sendAll(ctx context.Context, out []outgoing) error {
	var failed error
	fail := func(err error) {
		if failed == nil {
			failed = err
		}
	}
	var before map[string]int // by order: the last one sent off
	for i := range out {
		w := &out[i]
		if w.msg == nil {
			continue
		}
		if w.order != "" {
			if before == nil {
				before = make(map[string]int, len(out))
			}
			if j, ok := before[w.order]; ok {
				// Sent off together, one that is repeated would be overtaken.
				if err := t.finish(ctx, &out[j]); err != nil {
					fail(err)
					w.done = true // nor may it go before one that is missing
					continue
				}
			}
			before[w.order] = i
		}
		w.begun = time.Now()
		t.send(w)
	}
	for i := range out {
		if err := t.finish(ctx, &out[i]); err != nil {
			fail(err)
		}
	}
	return failed
}

// send sends a message off without waiting for its ack.
func (t *target) send(w *outgoing) {
	w.future = nil
	if !t.conn.IsConnected() {
		return // the client would keep it until it is back, which may be long
	}
	// The client's default of 200 ms is less than a busy disk takes.
	if f, err := t.js.PublishMsgAsync(w.msg, jetstream.WithStallWait(ackTimeout)); err == nil {
		w.future, w.sent = f, true
	}
}

// finish waits until a message is stored, and sends it again while the broker
// looks for a leader, restarts or is away.
func (t *target) finish(ctx context.Context, w *outgoing) error {
	if w.msg == nil || w.done {
		return nil
	}
	w.done = true
	for wait := resendFirst; ; wait = min(2*wait, resendMost) {
		ack, err := await(ctx, w.future)
		if t.conn.IsClosed() && err != nil {
			err = nats.ErrConnectionClosed
		}
		if err == nil {
			return t.stored(ctx, w, ack)
		}
		t.broker.Suspect(err)
		if !passes(err) || ctx.Err() != nil || time.Since(w.begun) > resendFor {
			return t.failureOf(w, err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return t.failureOf(w, err)
		}
		w.resent = true
		t.resent.Add(1)
		t.send(w)
	}
}

var errAway = errors.New("not connected")

func await(ctx context.Context, f jetstream.PubAckFuture) (*jetstream.PubAck, error) {
	if f == nil {
		return nil, errAway
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

// passes says whether a failure to store may pass by itself within seconds. A
// full stream does not, and one that is frozen is opened again with the store.
func passes(err error) bool {
	if errors.Is(err, nats.ErrConnectionClosed) {
		return false
	}
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return !broker.IsFull(err) && api.Code != 400 && api.Code != 404
	}
	return true
}

// stored settles what an ack means: stored now, or something was there already.
func (t *target) stored(ctx context.Context, w *outgoing, ack *jetstream.PubAck) error {
	if w.digest == "" {
		if ack.Duplicate {
			return t.stillQuarantined(ctx, w, ack.Sequence)
		}
		w.kept = true
		return nil
	}
	w.sequence = ack.Sequence
	if !ack.Duplicate {
		w.kept = true
		return nil
	}
	same, err := t.sameContent(ctx, ack.Sequence, w.digest)
	switch {
	case err != nil:
		return t.failure(err)
	case same || w.renamed:
		w.late = w.resent || t.unsure.take(w.id())
		w.kept = w.late
		if !w.resent { // else it is the first copy, whose ack was lost
			w.status = Duplicate
		}
		return nil
	}
	if w.event == nil {
		if w.event, err = event.Decode(w.msg.Header, w.msg.Data); err != nil {
			return fmt.Errorf("%w: spooled message: %w", ErrBroker, err)
		}
	}
	w.rename()
	w.encode(w.msg.Subject)
	w.done, w.begun = false, time.Now()
	t.send(w)
	return t.finish(ctx, w)
}

// sameContent compares with what is stored under an identity already.
func (t *target) sameContent(ctx context.Context, sequence uint64, digest string) (bool, error) {
	stored, err := t.events.GetMsg(ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		// Gone, so nobody can say that it was the same: keep this one.
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return stored.Header.Get(headerDigest) == digest, nil
}

// failure words an error of the broker for whoever asked.
func (t *target) failure(err error) error {
	if broker.IsFull(err) {
		return fmt.Errorf("%w: %w", ErrStorageFull, err)
	}
	return fmt.Errorf("%w: %w", ErrBroker, err)
}

func (t *target) failureOf(w *outgoing, err error) error {
	var api *jetstream.APIError
	if w.sent && (w.resent || !errors.As(err, &api)) {
		t.unsure.put(w.id())
	}
	if w.digest == "" && broker.IsFull(err) && !errors.Is(err, broker.ErrDiskFull) {
		return fmt.Errorf("%w: %w", ErrQuarantineFull, err)
	}
	return t.failure(err)
}
