package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/dedup"
	"github.com/gridfan/gridfan/schemas/event"
)

// spool takes events on this machine's disk while the broker is away, with the
// same promise, and brings them over in order when it is back. As long as there
// is anything in it, new events go behind it.
type spool struct {
	*target
	p   *Publisher
	log *slog.Logger

	// gate is held for reading by those who spool, for writing to say that
	// there is no more.
	gate   sync.RWMutex
	active atomic.Bool // changes to false only under gate

	cursor  atomic.Pointer[jetstream.Consumer]
	brought uint64 // deliveries of the cursor that are done with
	// doubtful were sent to the broker before they were spooled: what is there
	// already may be their first copy.
	doubtful recent
	wake     chan struct{} // holds at most one token
	ctx      context.Context
	stop     context.CancelFunc
	running  sync.WaitGroup
}

// drainCursor remembers what was brought over.
const drainCursor = "drain"

// drainBatch is how many messages are brought over together, as far as their
// order lets them, and drainBytes about how much: a client drops what comes
// beyond 64 MiB.
const (
	drainBatch = 256
	drainBytes = 16 << 20
)

func openSpool(ctx context.Context, b *broker.Broker, p *Publisher) (*spool, error) {
	t, err := newTarget(ctx, b)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	s := &spool{target: t, p: p, log: p.log.With("part", "spool"), wake: make(chan struct{}, 1)}
	if err := s.rewind(ctx); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	if n := s.waiting(ctx); n > 0 {
		s.log.Info("events of an earlier outage are waiting in the spool", "events", n)
		s.begin()()
	}
	s.running.Go(s.drain)
	return s, nil
}

func (s *spool) close() {
	s.stop()
	s.running.Wait()
}

// waiting counts what is in the spool and not brought over.
func (s *spool) waiting(ctx context.Context) uint64 {
	info, err := (*s.cursor.Load()).Info(ctx)
	if err != nil {
		s.log.Warn("spool", "error", err)
		return 0
	}
	return info.NumPending + uint64(info.NumAckPending)
}

// use says whether events must go to the spool now; the caller then calls
// release when they are there.
func (s *spool) use() (release func(), ok bool) {
	if s.active.Load() || !s.p.main.conn.IsConnected() {
		return s.begin(), true
	}
	return nil, false
}

// begin is use for a caller that knows the broker to be away.
func (s *spool) begin() (release func()) {
	s.gate.RLock()
	if !s.active.Swap(true) {
		s.log.Warn("the broker does not answer; events are kept in the spool until it does")
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return s.gate.RUnlock
}

// doubt is told what was sent to the broker before it is spooled.
func (s *spool) doubt(out []outgoing) {
	for i := range out {
		if w := &out[i]; (w.msg != nil || w.identity != "") && (s.p.main.unsure.take(w.id()) || w.kept) {
			s.doubtful.put(w.id())
		}
	}
}

// repeated corrects the tally: what was counted when it was spooled is there
// already, from another replica.
func (s *spool) repeated(h nats.Header) {
	if s.doubtful.take(h.Get(headerMsgID)) {
		return
	}
	if source := h.Get("ce-" + event.ExtSource); source != "" {
		s.p.tally.add(source, broker.SourceTally{Published: -1, Duplicate: 1})
	} else if source := h.Get(headerSource); source != "" {
		s.p.tally.add(source, broker.SourceTally{Quarantined: -1, Duplicate: 1})
	}
}

// drain brings events over whenever there are any and the broker answers.
func (s *spool) drain() {
	for wait := time.Duration(0); ; {
		select {
		case <-s.ctx.Done():
			return
		case <-s.wake:
		case <-time.After(wait):
		}
		wait = time.Hour // nothing to do until somebody spools
		if !s.active.Load() {
			continue
		}
		err := s.drainAll()
		switch {
		case s.ctx.Err() != nil:
			return
		case err != nil:
			// Twice a second: the first events back should not wait long.
			wait = 500 * time.Millisecond
			s.log.Debug("spool not drained yet", "error", err)
		default:
			s.log.Info("the broker is back and the spool is empty")
		}
	}
}

// drainAll brings everything over and ends the spooling.
func (s *spool) drainAll() error {
	moved := 0
	for {
		if !s.p.main.conn.IsConnected() {
			return errAway
		}
		n, err := s.drainSome()
		moved += n
		if err != nil {
			return err
		}
		if n > 0 {
			continue
		}
		if s.end() {
			s.log.Info("spool drained", "events", moved)
			return nil
		}
	}
}

// end says that there is no more, unless there is.
func (s *spool) end() bool {
	s.gate.Lock() // waits for those who are just spooling
	defer s.gate.Unlock()
	info, err := (*s.cursor.Load()).Info(s.ctx)
	if err != nil || info.NumPending+uint64(info.NumAckPending) > 0 {
		return false
	}
	s.active.Store(false)
	return true
}

// drainSome brings the next messages over, and says how many.
func (s *spool) drainSome() (int, error) {
	ctx, cancel := context.WithTimeout(s.ctx, publishTimeout)
	defer cancel()
	info, err := s.events.Info(ctx)
	if err != nil {
		return 0, err
	}
	n := drainBatch
	if st := info.State; st.Msgs > 0 {
		n = min(max(1, int(drainBytes/(st.Bytes/st.Msgs+1))), drainBatch)
	}
	batch, err := (*s.cursor.Load()).FetchNoWait(n)
	if err != nil {
		return 0, err
	}
	var msgs []jetstream.Msg
	var last *jetstream.MsgMetadata
	gap := false
	for m := range batch.Messages() {
		meta, err := m.Metadata()
		if err != nil {
			return 0, err
		}
		// One that the client dropped must not be acked with those after it.
		if gap = gap || last != nil && meta.Sequence.Consumer != last.Sequence.Consumer+1; !gap {
			msgs, last = append(msgs, m), meta
		}
	}
	if err = batch.Error(); err == nil && len(msgs) > 0 && last.Sequence.Consumer-uint64(len(msgs)) != s.brought {
		err, msgs = errors.New("the spool's first message did not arrive"), nil
	}
	if err == nil && len(msgs) > 0 {
		err = s.bring(ctx, msgs)
	}
	if err == nil && len(msgs) > 0 {
		err = msgs[len(msgs)-1].DoubleAck(ctx)
	}
	if err != nil {
		// From the first of them again: the order stays.
		return 0, errors.Join(err, s.rewind(s.ctx))
	}
	if len(msgs) == 0 {
		return 0, nil
	}
	s.brought = last.Sequence.Consumer
	if gap {
		if err := s.rewind(s.ctx); err != nil {
			return len(msgs), err
		}
	}
	// The space is free again; the last message stays, so that a store which
	// lost its end can be told from an empty one.
	return len(msgs), s.events.Purge(ctx, jetstream.WithPurgeSequence(last.Sequence.Stream))
}

// rewind makes the cursor anew at the first message that was not brought over:
// those that it handed out would come back late and in any order.
func (s *spool) rewind(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	from := uint64(1)
	c, err := s.js.Consumer(ctx, s.broker.Main(), drainCursor)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound):
	case err != nil:
		return err
	default:
		from = c.CachedInfo().AckFloor.Stream + 1
		if err := s.js.DeleteConsumer(ctx, s.broker.Main(), drainCursor); err != nil {
			return err
		}
	}
	c, err = s.js.CreateConsumer(ctx, s.broker.Main(), jetstream.ConsumerConfig{
		Durable: drainCursor, AckPolicy: jetstream.AckAllPolicy,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from,
		MaxDeliver: -1, AckWait: time.Minute, MaxAckPending: 4 * drainBatch,
	})
	if err != nil {
		return err
	}
	s.cursor.Store(&c)
	s.brought = 0
	return nil
}

// bring publishes spooled messages on the real broker.
func (s *spool) bring(ctx context.Context, msgs []jetstream.Msg) error {
	out := make([]outgoing, len(msgs))
	for i, m := range msgs {
		h := m.Headers()
		w := &out[i]
		w.status, w.order, w.digest = Published, h.Get("ce-"+event.ExtPartitionKey), h.Get(headerDigest)
		if w.digest != "" { // an event
			w.identity = h.Get(headerIdentity)
			if w.renamed = w.identity != ""; !w.renamed {
				w.identity = h.Get(headerMsgID)
			}
			w.key, w.match = dedup.KeyOf(w.identity, w.digest), h.Get(headerMatch)
			// It was stored just before the broker went, and only its ack
			// was lost.
			if s.p.index.Lookup(w.key) == dedup.Same {
				s.repeated(h)
				continue
			}
		}
		w.msg = &nats.Msg{Subject: m.Subject(), Header: h, Data: m.Data()}
	}
	t := s.p.main
	write := t.broker.Begin()
	defer write.End()
	if err := t.sendAll(ctx, out); err != nil {
		return err
	}
	if err := write.Durable(ctx, 0); err != nil {
		return err
	}
	now := time.Now()
	for i := range out {
		w := &out[i]
		if w.sequence != 0 {
			s.p.index.known(w.sequence, w.key, w.match, now)
		}
		if w.msg != nil && (w.status == Duplicate || w.repeated) && !w.late {
			s.repeated(msgs[i].Headers())
		}
	}
	return nil
}

// SpoolStatus is how the spool stands.
type SpoolStatus struct {
	// Active: the broker is away, or not everything is brought over yet.
	Active bool `json:"active"`
	// Waiting counts the events to be brought over.
	Waiting  uint64 `json:"waiting"`
	Bytes    uint64 `json:"bytes"`
	MaxBytes int64  `json:"maxBytes"`
}

// Spool tells how the spool stands; ok is false when there is none.
func (p *Publisher) Spool(ctx context.Context) (st SpoolStatus, ok bool) {
	if p.spool == nil {
		return st, false
	}
	st = SpoolStatus{Active: p.spool.active.Load()}
	if st.Active {
		st.Waiting = p.spool.waiting(ctx)
	}
	if use, err := p.spool.broker.Use(ctx); err == nil && len(use) > 0 {
		st.Bytes, st.MaxBytes = use[0].Bytes, use[0].MaxBytes
	}
	return st, true
}
