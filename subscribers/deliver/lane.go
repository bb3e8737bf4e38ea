package deliver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
)

// delivery is one message on its way to the subscriber.
type delivery struct {
	message // its content; the broker may have sent a newer copy since
	lane    *lane
	origin  origin
	line    string       // of the gate; empty for none
	broken  error        // the message is not one of ours
	epoch   uint64       // of the store when it came
	surplus bool         // to be given up without an attempt
	event   *event.Event // from prepare on
	out     *event.Event // what is sent: event, or what a transform made of it
	date    time.Time    // see accepted
	dated   bool
	// attempts were made in all; tries are those since the last record, without
	// the last.
	attempts int
	tries    []Try
	taken    time.Time
	repeat   bool      // it may have been here before
	due      time.Time // in strict order, when the next attempt is not free
	// probed is set when it was fetched to find out whether the subscriber is
	// back: it gives the right to probe to the next one.
	probed func()
	// done is told, at the very end, whether it was settled or given back; nil for
	// nobody.
	done func(settled bool)

	// What the broker listens to for this message; guarded by lane.mu.
	handle   message
	lastHold time.Time
}

// hop counts the event's trips over the retry lane.
func (d *delivery) hop() int { return d.origin.hop }

// lane is one of the two ways by which a worker's events come: fresh ones, and
// those whose next attempt is due. Each has a small queue of its own, and both
// share the worker's slots in turn, so a flood on one does not starve the
// other.
type lane struct {
	w        *worker
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
	// ready is how many may be queued now: as many as leave again soon, see paced.
	ready int
	ended bool // nothing more is dispatched
	// early counts down the messages that a cursor made anew may hand out once
	// more: it does not know.
	early int
	// next is the number of the broker's next delivery; missing are those before
	// it that have not arrived. Only a lane of a gate counts.
	next    uint64
	missing map[uint64]bool
	space   chan struct{} // holds one token when queued has gone down
	// arrived holds one token when something is held after nothing was.
	arrived chan struct{}
}

func newLane(w *worker, stream string, consumer jetstream.ConsumerConfig, window int, o func(message) (origin, error)) *lane {
	l := &lane{
		w: w, stream: stream, consumer: consumer, origin: o,
		// Everything that may be in hand has its place, so that queueing never waits.
		queue: make(chan *delivery, 4*window+16), window: window, ready: window,
		held: map[uint64]*delivery{}, space: make(chan struct{}, 1), arrived: make(chan struct{}, 1),
	}
	if l.counts() {
		l.missing = map[uint64]bool{0: true} // whatever was handed out before
		w.gate.close()
	}
	return l
}

// counts says whether the lane has to know that nothing is missing: fresh events
// that want order. What is on the retry lane is known to the gate.
func (l *lane) counts() bool { return l.w.gate != nil && l.stream == broker.StreamEvents }

// declare creates the lane's cursor or brings its changeable settings up to
// date, and says whether it was not there. Where an existing one stands in the
// stream is its own affair.
func (l *lane) declare(ctx context.Context) (made bool, err error) {
	cfg := l.consumer
	at := otherStream
	if l.w.parts.Positions != nil {
		cfg.MemoryStorage = true
		if at, err = l.begin(ctx, &cfg); err != nil {
			return false, err
		}
	}
	c, err := l.w.js.Consumer(ctx, l.stream, cfg.Durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		_, err = l.w.js.CreateConsumer(ctx, l.stream, cfg)
		made = true
	} else if err == nil {
		have := c.CachedInfo().Config
		cfg.DeliverPolicy, cfg.OptStartSeq = have.DeliverPolicy, have.OptStartSeq
		if !sameSettings(have, cfg) {
			_, err = l.w.js.UpdateConsumer(ctx, l.stream, cfg)
		}
	}
	if err != nil {
		return false, fmt.Errorf("consumer %q on %s: %w", cfg.Durable, l.stream, err)
	}
	if made {
		l.w.leftovers.Store(nil) // what this process put there since is not among them
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case made && at == otherStream:
		// What was settled before was settled for another cursor, perhaps even
		// on another stream, whose sequences say nothing of this one's.
		l.fresh = true
		l.w.settled.clear()
	case made && at == known:
		l.early = cfg.MaxAckPending
	}
	if l.reader == nil { // a cursor that is made again has the same name
		l.reader = newPullReader(l.w.conn, l.w.link, l.stream, cfg.Durable, l.window)
	}
	return made, nil
}

// forwardMost bounds what a start asks the server for; the worker passes over the
// rest when it comes.
const forwardMost = 2000

// forward moves the beginning past what the records say is settled, so that it
// does not count as pending, however long the subscriber is paused.
func (l *lane) forward(ctx context.Context, s jetstream.Stream, cfg *jetstream.ConsumerConfig) error {
	for range forwardMost {
		next := uint64(0)
		for _, subject := range cfg.FilterSubjects {
			m, err := s.GetMsg(ctx, cfg.OptStartSeq, jetstream.WithGetMsgSubject(subject))
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if next == 0 || m.Sequence < next {
				next = m.Sequence
			}
		}
		p, ok := l.w.parts.Recorder.recall(l.w.sub.Name, next, l.w.sub.Created)
		if next == 0 || !ok || !p.passed(0) {
			return nil
		}
		cfg.OptStartSeq = next + 1
	}
	return nil
}

// whence is what is known of where a subscriber has got to.
type whence int

const (
	unknown     whence = iota // it begins
	known                     // it has got events of this stream before
	otherStream               // what is known says nothing of this stream
)

// begin finds out where a cursor is to begin that is kept in memory.
func (l *lane) begin(ctx context.Context, cfg *jetstream.ConsumerConfig) (at whence, err error) {
	s, err := l.w.js.Stream(ctx, l.stream)
	if err != nil {
		return unknown, err
	}
	// An earlier version had it in a file: it goes on from there.
	inFile := false
	c, err := s.Consumer(ctx, cfg.Durable)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound):
	case err != nil:
		return unknown, err
	case c.CachedInfo().Config.MemoryStorage:
		return known, nil
	default:
		inFile, at = true, known
	}
	if l.stream == broker.StreamEvents {
		stream, p := s.CachedInfo().Created, l.w.parts.Positions
		from, other := p.begin(&l.w.sub, stream)
		switch {
		case inFile:
			from = max(from, c.CachedInfo().AckFloor.Stream+1)
		case other:
			at = otherStream
		case from > 0:
			at = known
		}
		cfg.OptStartSeq = max(cfg.OptStartSeq, from)
		if at == known {
			if err := l.forward(ctx, s, cfg); err != nil {
				return at, err
			}
		}
		if err := p.set(&l.w.sub, stream, cfg.OptStartSeq-1); err != nil {
			return at, err
		}
	} else if s.CachedInfo().State.Msgs > 0 {
		at = known // what is there is what is not settled
	}
	if inFile {
		l.w.log.Info("the cursor is kept in memory from now on", "stream", l.stream)
		return at, s.DeleteConsumer(ctx, cfg.Durable)
	}
	return at, nil
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
		l.w.log.Error("the cursor was deleted by somebody else; the subscriber gets its events again from where it was last known to be", "stream", l.stream)
	}
}

// fetchLoop asks for messages while the breaker lets it and there is room.
func (l *lane) fetchLoop() {
	defer l.w.fetching.Done()
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
	if l.w.gate != nil {
		return l.fetchInOrder(running)
	}
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

// fetchInOrder fetches for lines: while the subscriber is down, no more than what
// it can be probed with. The deliveries themselves wait for their turn.
func (l *lane) fetchInOrder(running context.Context) error {
	if l.gapped() {
		return l.gather(running)
	}
	switch {
	case !l.w.breaker.closed() && l.w.held() > 0:
		l.w.sleep(downEvery)
		return nil
	case !l.counts() && l.w.gate.closed():
		// What stood about here could keep those out that are first.
		l.w.sleep(inPlace)
		return nil
	}
	ctx, cancel := context.WithCancel(running)
	defer cancel()
	n := l.room(ctx)
	if n == 0 {
		return nil // paused or stopped
	}
	if l == l.w.lanes[0] && !l.w.roomToRetry(running) {
		return nil
	}
	return l.reading().fetch(running, n, fetchWait, func(m message) { l.accept(m, nil) })
}

// downEvery is how often a lane looks whether a subscriber is back that gets its
// events in order.
const downEvery = 250 * time.Millisecond

// gapped says whether the broker has handed out something that is not here: its
// way was cut, or somebody else had it before.
func (l *lane) gapped() bool {
	if !l.counts() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.missing) > 0
}

// gatherEvery is how often it is asked whether something is still missing.
const gatherEvery = 200 * time.Millisecond

// gather fetches until everything that the broker has handed out is here, in
// whatever order it came, and opens the gate. What is missing comes again within
// ackWait.
func (l *lane) gather(ctx context.Context) error {
	for ctx.Err() == nil && l.w.stopped.Err() == nil {
		// In this order: what is let go meanwhile is missing for one more round.
		ask, cancel := context.WithTimeout(ctx, 5*time.Second)
		info, err := l.info(ask)
		cancel()
		if err != nil {
			return err
		}
		l.mu.Lock()
		out := info.NumAckPending - len(l.held)
		gap := len(l.missing) > 0
		if out <= 0 {
			l.next = max(l.next, info.Delivered.Consumer+1)
			clear(l.missing)
		}
		l.mu.Unlock()
		switch {
		case !gap:
			return nil // it has come meanwhile
		case out <= 0:
			l.openGate()
			return nil
		}
		err = l.reading().fetch(ctx, min(out, l.window), gatherEvery, func(m message) { l.accept(m, nil) })
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *lane) info(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	c, err := l.w.js.Consumer(ctx, l.stream, l.consumer.Durable)
	if err != nil {
		return nil, err
	}
	return c.CachedInfo(), nil
}

func (l *lane) openGate() {
	l.w.gate.open()
	l.look()
}

// look lets pass who may after something that concerned all lines.
func (l *lane) look() {
	for _, t := range l.w.gate.look() {
		l.w.do(t)
	}
}

// unqueue takes deliveries out of the count of those that are ready.
func (l *lane) unqueue(n int) {
	l.mu.Lock()
	l.queued -= n
	l.mu.Unlock()
	select {
	case l.space <- struct{}{}:
	default:
	}
}

// arrivedAs notes the number of a delivery, and says what that means for the
// gate. The caller holds mu.
func (l *lane) arrivedAs(n uint64) (gap, whole bool) {
	if !l.counts() {
		return false, false
	}
	before := len(l.missing)
	if n < l.next {
		delete(l.missing, n)
	} else {
		if !l.missing[0] { // else it is not known yet where to count from
			for i := l.next; i < n; i++ {
				l.missing[i] = true
			}
		}
		l.next = n + 1
	}
	return before == 0 && len(l.missing) > 0, before > 0 && len(l.missing) == 0
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

// An event that waits longer than longWait for a slot costs signs of life and comes
// again after a crash, and the subscriber has nothing of it. Those that waited less
// than shortWait may be short of successors.
const (
	longWait  = holdEvery / 2
	shortWait = holdEvery / 4
)

// paced makes the queue as long as suits how long an event has waited in it. Where
// events are in order, sent in batches or lent, how long one waits is not the
// subscriber's pace alone, and the length stays.
func (l *lane) paced(waited time.Duration) {
	if l.w.gate != nil || l.w.lender != nil || l.w.sub.Config.Limits.Batch.Events > 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case waited > longWait:
		l.ready = max(1, l.ready/2)
	case waited < shortWait:
		l.ready = min(l.window, l.ready+1)
	}
}

// room waits until more than half of what may be queued has left, and tells how much
// there is room for: a short queue too is filled by one request for all of it.
func (l *lane) room(ctx context.Context) int {
	for {
		l.mu.Lock()
		queued, ready := l.queued, l.ready
		l.mu.Unlock()
		if free := ready - queued; free*2 > ready {
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
	if l.w.gate != nil {
		l.w.do(l.w.gate.offer(d))
	} else {
		l.enqueue(d)
	}
	return true
}

// enqueue lets a delivery go to the next free slot.
func (l *lane) enqueue(d *delivery) {
	l.mu.Lock()
	if !l.ended {
		l.queue <- d // there is room for all that may be in hand
		l.mu.Unlock()
		return
	}
	l.mu.Unlock()
	l.giveBack(d)
	d.endProbe()
}

// take takes a message over: from here on it is held until it is settled or
// given back. It answers nil for one that needs no delivery.
func (l *lane) take(m message, probed func()) *delivery {
	seq := m.sequence()
	o, broken := l.origin(m)
	d := &delivery{
		message: m, handle: m, lane: l, origin: o, broken: broken, epoch: l.w.parts.Broker.Epoch(), probed: probed, lastHold: time.Now(),
		attempts: o.attempts, taken: time.Now(), repeat: m.again(),
	}
	if l.w.gate != nil && broken == nil && m.subject() != broker.RetryDue(l.w.sub.Name) {
		d.line = lineOf(l.w.sub.Config.Ordering, m.header())
	}
	l.mu.Lock()
	if l.early > 0 {
		l.early--
		d.repeat = true
	}
	gap, whole := l.arrivedAs(m.serial())
	if gap {
		l.w.gate.close()
	}
	if whole {
		defer l.openGate()
	}
	if earlier := l.held[seq]; earlier != nil {
		// It came again while we work on it: a sign of life was late. The
		// newer copy is the one the broker listens to.
		earlier.handle, earlier.lastHold = m, d.lastHold
		l.mu.Unlock()
		return nil
	}
	// Somebody may have put it on the retry lane while its subscriber was being
	// deleted, which is not this one.
	strange := o.added != "" && o.added != Added(l.w.sub.Created)
	if broken == nil && (strange || l.w.passed(o, l.fresh)) {
		l.mu.Unlock()
		if strange {
			l.w.log.Info("left on the retry lane by a subscriber of this name that was deleted; dropped", "event", o.sequence)
			l.w.ended(d)
		}
		if l.w.gate != nil && o.hop == 0 && l.w.gate.passed(o.sequence) {
			l.look()
		}
		if err := m.ack(); err != nil {
			l.w.log.Warn("ack", "error", err)
		}
		return nil
	}
	// Another message for the same event may be in hand; this one comes again
	// when it is known how that ended.
	if broken == nil && !l.w.hands.begin(o.sequence) {
		l.mu.Unlock()
		return nil
	}
	l.held[seq] = d
	first := len(l.held) == 1
	if l.w.gate != nil && l.w.gate.take(d) {
		defer l.look()
	}
	l.mu.Unlock()
	if first {
		select {
		case l.arrived <- struct{}{}:
		default:
		}
	}
	return d
}

// dispatchLoop moves deliveries from the queue to free slots, one by one or in
// batches.
func (l *lane) dispatchLoop() {
	defer l.w.fetching.Done()
	defer l.endQueue()
	for {
		var ds []*delivery
		select {
		case d := <-l.queue:
			ds = l.batch(d)
		case <-l.w.stopped.Done():
			return
		}
		// First come, first served between the lanes.
		err := l.w.slots.acquire(l.w.stopped)
		l.paced(time.Since(ds[0].taken))
		l.unqueue(len(ds))
		if err != nil {
			for _, d := range ds {
				l.giveBack(d)
				d.endProbe()
			}
			continue
		}
		l.w.sending.Add(1)
		l.w.slots.run(func() {
			defer l.w.sending.Done()
			l.w.work(ds)
		})
	}
}

// batch adds to a delivery what else comes within the linger.
func (l *lane) batch(d *delivery) []*delivery {
	cfg := l.w.sub.Config.Limits.Batch
	ds := []*delivery{d}
	if cfg.Events == 0 || d.probed != nil {
		return ds
	}
	size := int64(len(d.body()))
	t := time.NewTimer(cfg.Linger.Std())
	defer t.Stop()
	for len(ds) < cfg.Events && size < int64(cfg.Bytes) {
		select {
		case d := <-l.queue:
			ds = append(ds, d)
			size += int64(len(d.body()))
		case <-t.C:
			return ds
		case <-l.w.stopped.Done():
			return ds
		}
	}
	return ds
}

// endQueue gives back what has got no slot. Nothing is queued afterwards.
func (l *lane) endQueue() {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	for {
		select {
		case d := <-l.queue:
			l.giveBack(d)
			d.endProbe()
			continue
		default:
		}
		break
	}
	if l.w.gate != nil {
		giveBack(l.w.gate.leave())
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
	if p := l.w.parts.Positions; p != nil && l.stream == broker.StreamEvents {
		p.changed.Store(true)
	}
	m := l.letGo(d)
	if err := m.ack(); err != nil {
		l.w.log.Warn("ack", "error", err)
	}
	d.tell(true)
}

func (d *delivery) tell(settled bool) {
	if d.done != nil {
		d.done(settled)
	}
}

// giveBack returns a delivery unsettled: it comes again.
func (l *lane) giveBack(d *delivery) {
	if l.w.gate != nil {
		l.w.gate.givenBack(d)
	}
	if err := l.letGo(d).release(); err != nil {
		l.w.log.Debug("release", "error", err)
	}
	d.tell(false)
}

// letGo ends the holding of a delivery, and gives what the broker listens to.
func (l *lane) letGo(d *delivery) message {
	if d.broken == nil {
		l.w.hands.end(d.origin.sequence)
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
func (w *worker) passed(o origin, fresh bool) bool {
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

// hands are which events a worker has in hand.
type hands struct {
	mu sync.Mutex // guards in
	in map[uint64]bool
}

// begin takes an event in hand, unless it is already.
func (h *hands) begin(sequence uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.in[sequence] {
		return false
	}
	if h.in == nil {
		h.in = map[uint64]bool{}
	}
	h.in[sequence] = true
	return true
}

func (h *hands) end(sequence uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.in, sequence)
}

// settled remembers the progress of the events settled last, for all workers that
// one subscriber has in this process, one after another: what a worker acked last
// may come once more to the next one.
type settled struct {
	added time.Time // of the subscriber

	mu    sync.Mutex // guards all below
	order []uint64
	next  int
	of    map[uint64]progress
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
