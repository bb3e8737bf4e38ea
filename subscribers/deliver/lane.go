package deliver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// delivery is one message on its way to the subscriber.
type delivery struct {
	message // its content; the broker may have sent a newer copy since
	lane    *lane
	origin  origin
	broken  error  // the message is not one of ours
	epoch   uint64 // of the store when it came
	surplus bool   // to be given up without an attempt
	// probed is set when it was fetched to find out whether the subscriber is
	// back: it gives the right to probe to the next one.
	probed func()

	// What the broker listens to for this message; guarded by lane.mu.
	handle   message
	lastHold time.Time
}

// lane is one of the two ways by which a worker's events come: fresh ones, and
// those whose next attempt is due. Each has a small queue of its own, and both
// share the worker's slots in turn, so a flood on one does not starve the
// other.
type lane struct {
	w        *Worker
	stream   string
	consumer jetstream.ConsumerConfig
	// origin reads where a message of this lane comes from.
	origin func(message) (origin, error)

	queue  chan *delivery
	window int // how many may be queued

	mu     sync.Mutex // guards all below
	reader reader
	fresh  bool                 // the cursor was made by this process
	held   map[uint64]*delivery // by sequence in the lane's stream
	queued int
	space  chan struct{} // holds one token when queued has gone down
	// arrived holds one token when something is held after nothing was.
	arrived chan struct{}
}

func newLane(w *Worker, stream string, consumer jetstream.ConsumerConfig, o func(message) (origin, error)) *lane {
	window := max(2, w.sub.Config.Limits.Concurrency)
	return &lane{
		w: w, stream: stream, consumer: consumer, origin: o,
		queue: make(chan *delivery, 2*window), window: window,
		held: map[uint64]*delivery{}, space: make(chan struct{}, 1), arrived: make(chan struct{}, 1),
	}
}

// declare creates the lane's cursor or brings its changeable settings up to
// date, and says whether it was not there. Where an existing one stands in the
// stream is its own affair.
func (l *lane) declare(ctx context.Context) (made bool, err error) {
	cfg := l.consumer
	c, err := l.w.js.Consumer(ctx, l.stream, cfg.Durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		c, err = l.w.js.CreateConsumer(ctx, l.stream, cfg)
		made = true
	} else if err == nil {
		have := c.CachedInfo().Config
		cfg.DeliverPolicy, cfg.OptStartSeq = have.DeliverPolicy, have.OptStartSeq
		if !sameSettings(have, cfg) {
			c, err = l.w.js.UpdateConsumer(ctx, l.stream, cfg)
		}
	}
	if err != nil {
		return false, fmt.Errorf("consumer %q on %s: %w", cfg.Durable, l.stream, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if made {
		// What was settled before was settled for another cursor, perhaps even
		// on another stream, whose sequences say nothing of this one's.
		l.fresh = true
		l.w.settled.clear()
	}
	l.reader = consumerReader{c, l.w.link}
	return made, nil
}

func (l *lane) reading() reader {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reader
}

// heal makes the cursor again after somebody deleted it. It begins at the
// subscriber's first event: rather everything twice than something never.
func (l *lane) heal(err error) {
	if !errors.Is(err, jetstream.ErrConsumerDeleted) && !errors.Is(err, jetstream.ErrConsumerNotFound) &&
		!errors.Is(err, nats.ErrNoResponders) {
		return
	}
	ctx, cancel := context.WithTimeout(l.w.stopped, 10*time.Second)
	defer cancel()
	made, err := l.declare(ctx)
	switch {
	case err != nil:
		l.w.log.Warn("cursor not made again", "error", err)
	case made:
		l.w.log.Error("the cursor was deleted by somebody else; the subscriber gets its events from its first one on", "stream", l.stream)
	}
}

// fetchLoop asks for messages while the breaker lets it and there is room.
func (l *lane) fetchLoop() {
	defer l.w.fetching.Done()
	defer close(l.queue)
	for wait := time.Duration(0); l.w.stopped.Err() == nil; {
		err := l.fetchOnce()
		if err == nil || l.w.stopped.Err() != nil {
			wait = 0
			continue
		}
		wait = min(max(2*wait, 100*time.Millisecond), 5*time.Second)
		l.w.log.Warn("fetch", "stream", l.stream, "error", err, "again_in", wait)
		l.w.sleep(wait)
		l.heal(err)
	}
}

// fetchOnce waits for its turn and makes one request for messages.
func (l *lane) fetchOnce() error {
	running, done, err := l.w.pause.wait(l.w.stopped)
	if err != nil {
		return nil // stopped
	}
	defer done()
	turn, probing, done, err := l.w.breaker.turn(running)
	if err != nil {
		return nil // paused or stopped
	}
	if probing {
		return l.fetchProbe(turn, done)
	}
	defer done()
	return l.fetchSome(turn)
}

// fetchSome fills the queue up once it is half empty.
func (l *lane) fetchSome(turn context.Context) error {
	n := l.room(turn)
	if n == 0 {
		return nil // the turn is over
	}
	if l == l.w.lanes[0] && !l.w.roomToRetry(turn) {
		return nil
	}
	return l.reading().fetch(turn, n, fetchWait, func(m message) { l.accept(m, nil) })
}

// probeWait is how long one lane looks for an event to probe with before the
// other lane has its turn.
const probeWait = time.Second

// fetchProbe fetches one event to try the subscriber with. done gives the
// right to probe back, here or when the attempt is over.
func (l *lane) fetchProbe(ctx context.Context, done func()) error {
	got := false
	err := l.reading().fetch(ctx, 1, probeWait, func(m message) { got = l.accept(m, done) })
	if !got {
		done()
	}
	return err
}

// room waits until at least half of the window is free, and tells how much.
func (l *lane) room(ctx context.Context) int {
	for {
		l.mu.Lock()
		queued := l.queued
		l.mu.Unlock()
		if free := l.window - queued; free*2 >= l.window {
			return free
		}
		select {
		case <-l.space:
		case <-ctx.Done():
			return 0
		}
	}
}

// accept takes a message over and queues it. It answers false for one that needs
// no delivery.
func (l *lane) accept(m message, probed func()) bool {
	d := l.take(m, probed)
	if d == nil {
		return false
	}
	l.mu.Lock()
	l.queued++
	l.mu.Unlock()
	l.queue <- d
	return true
}

// take takes a message over: from here on it is held until it is settled or
// given back. It answers nil for one that needs no delivery.
func (l *lane) take(m message, probed func()) *delivery {
	seq := m.sequence()
	o, broken := l.origin(m)
	d := &delivery{message: m, handle: m, lane: l, origin: o, broken: broken, epoch: l.w.parts.Broker.Epoch(), probed: probed, lastHold: time.Now()}
	l.mu.Lock()
	if earlier := l.held[seq]; earlier != nil {
		// It came again while we work on it: a sign of life was late. The
		// newer copy is the one the broker listens to.
		earlier.handle, earlier.lastHold = m, d.lastHold
		l.mu.Unlock()
		return nil
	}
	if broken == nil && l.w.passed(o, l.fresh) {
		l.mu.Unlock()
		if err := m.ack(); err != nil {
			l.w.log.Warn("ack", "error", err)
		}
		return nil
	}
	// Another message for the same event may be in hand; this one comes again
	// when it is known how that ended.
	if broken == nil && !l.w.settled.begin(o.sequence) {
		l.mu.Unlock()
		return nil
	}
	l.held[seq] = d
	first := len(l.held) == 1
	l.mu.Unlock()
	if first {
		select {
		case l.arrived <- struct{}{}:
		default:
		}
	}
	return d
}

// dispatchLoop moves deliveries from the queue to free slots.
func (l *lane) dispatchLoop() {
	defer l.w.fetching.Done()
	for d := range l.queue {
		// First come, first served between the lanes.
		err := l.w.slots.Acquire(l.w.stopped, 1)
		l.mu.Lock()
		l.queued--
		l.mu.Unlock()
		select {
		case l.space <- struct{}{}:
		default:
		}
		if err != nil {
			l.giveBack(d)
			d.endProbe()
			continue
		}
		l.w.sending.Go(func() {
			defer d.endProbe()
			defer l.w.slots.Release(1)
			l.w.deliver(d)
		})
	}
}

// endProbe gives the right to probe to the next one, once.
func (d *delivery) endProbe() {
	if d.probed != nil {
		d.probed()
		d.probed = nil
	}
}

// holdLoop tells the broker of every message that is still being worked on. It
// sleeps while there is none: a thousand quiet subscribers cost nothing. It goes
// on until the last one is settled, also while stopping.
func (l *lane) holdLoop() {
	defer l.w.fetching.Done()
	t := time.NewTicker(holdEvery / 2)
	defer t.Stop()
	for {
		due, held := l.due(time.Now())
		for _, m := range due {
			if err := m.hold(); err != nil {
				l.w.log.Debug("hold", "error", err)
			}
		}
		tick := t.C
		var stopped <-chan struct{}
		if held == 0 {
			if l.w.stopped.Err() != nil {
				return
			}
			t.Stop()
			tick, stopped = nil, l.w.stopped.Done()
		}
		select {
		case <-tick:
		case <-l.arrived:
			t.Reset(holdEvery / 2)
		case <-stopped:
		case <-l.w.gone.Done():
			return
		}
	}
}

// due gives the messages that need a sign of life now, and how many are held.
func (l *lane) due(now time.Time) (due []message, held int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.held {
		if now.Sub(d.lastHold) >= holdEvery {
			d.lastHold = now
			due = append(due, d.handle)
		}
	}
	return due, len(l.held)
}

// settled acks a delivery after all that depends on it is stored.
func (l *lane) settled(d *delivery) {
	m := l.letGo(d)
	if err := m.ack(); err != nil {
		l.w.log.Warn("ack", "error", err)
	}
}

// giveBack returns a delivery unsettled: it comes again.
func (l *lane) giveBack(d *delivery) {
	if err := l.letGo(d).release(); err != nil {
		l.w.log.Debug("release", "error", err)
	}
}

// letGo ends the holding of a delivery, and gives what the broker listens to.
func (l *lane) letGo(d *delivery) message {
	if d.broken == nil {
		l.w.settled.end(d.origin.sequence)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, d.handle.sequence())
	return d.handle
}

// pause holds fetching while the operator wants it held.
type pause struct {
	mu      sync.Mutex // guards all below
	paused  bool
	running context.Context // ends at a pause
	halt    context.CancelFunc
	resumed chan struct{} // closed at a resumption
}

func newPause() *pause {
	p := &pause{}
	p.running, p.halt = context.WithCancel(context.Background())
	return p
}

func (p *pause) set(paused bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case paused == p.paused:
	case paused:
		p.paused, p.resumed = true, make(chan struct{})
		p.halt()
	default:
		p.paused = false
		p.running, p.halt = context.WithCancel(context.Background())
		close(p.resumed)
	}
}

// wait returns, once there is no pause, a context that ends with ctx or at the
// next pause. The caller calls done. The error is ctx's.
func (p *pause) wait(ctx context.Context) (until context.Context, done func(), err error) {
	for {
		p.mu.Lock()
		paused, running, resumed := p.paused, p.running, p.resumed
		p.mu.Unlock()
		if !paused {
			until, cancel := context.WithCancel(ctx)
			stop := context.AfterFunc(running, cancel)
			return until, func() { stop(); cancel() }, ctx.Err()
		}
		select {
		case <-resumed:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// passed says whether a message needs no delivery, because what it stands for
// was settled. fresh: not by the process before this one.
func (w *Worker) passed(o origin, fresh bool) bool {
	if p, ok := w.settled.get(o.sequence); ok {
		return p.passed(o.hop)
	}
	if fresh {
		return false
	}
	p, ok := w.parts.Recorder.recall(w.sub.Name, o.sequence, w.sub.Created)
	return ok && p.passed(o.hop)
}

// settledLast is how many events a worker remembers that it has settled: more
// than can be in flight when an ack is lost or a retry comes twice.
const settledLast = 8192

// settled remembers the progress of the events settled last, and which ones are
// in hand.
type settled struct {
	mu     sync.Mutex // guards all below
	order  []uint64
	next   int
	of     map[uint64]progress
	inHand map[uint64]bool
}

// begin takes an event in hand, unless it is already.
func (s *settled) begin(sequence uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inHand[sequence] {
		return false
	}
	if s.inHand == nil {
		s.inHand = map[uint64]bool{}
	}
	s.inHand[sequence] = true
	return true
}

func (s *settled) end(sequence uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.inHand, sequence)
}

func (s *settled) get(sequence uint64) (progress, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.of[sequence]
	return p, ok
}

func (s *settled) put(sequence uint64, p progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if was, ok := s.of[sequence]; ok {
		s.of[sequence] = was.then(p)
		return
	}
	if s.of == nil {
		s.of = map[uint64]progress{}
	}
	if len(s.order) < settledLast {
		s.order = append(s.order, sequence)
	} else {
		delete(s.of, s.order[s.next])
		s.order[s.next] = sequence
		s.next = (s.next + 1) % settledLast
	}
	s.of[sequence] = p
}

func (s *settled) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.order, s.next, s.of = nil, 0, nil
}
