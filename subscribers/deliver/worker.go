// Package deliver brings the events of the stream to the subscribers. Each
// subscriber has one Worker: it asks the breaker, fetches what may be sent,
// makes attempts through a Sender, and settles each event by an ack that
// always comes after whatever it depends on is stored.
//
// Nothing a subscriber does can hold up another: every Worker has its own
// cursor, slots, breaker and connections.
package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/time/rate"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
)

// Subscriber is what a Worker needs to know.
type Subscriber struct {
	Name string
	// Subjects do not overlap (see MinimiseSubjects).
	Subjects []string
	// StartSequence is the first event of a new subscriber.
	StartSequence uint64
	// Created is when it was added. What was settled before was settled for
	// another one of the same name.
	Created time.Time
	// Paused stops fetching; what is in flight is finished.
	Paused bool
	// Wants says whether the subscriber wants an event of its subjects at all: what
	// it wanted when they changed may be another matter before and after. Others
	// are acked without a record. nil means every one. It may ask the broker.
	Wants func(subject string, sequence uint64) bool
	// Filter says whether the subscriber wants an event; nil means every one.
	// An error makes a dead letter of the event.
	Filter func(*event.Event) (bool, error)
	// Transform gives what is sent in an event's place; nil means the event as
	// it is. It does not change its argument. An error makes a dead letter.
	Transform func(*event.Event) (*event.Event, error)
	Config    Config
	Sender    Sender
}

// Parts are what all Workers of a process share.
type Parts struct {
	Broker   *broker.Broker
	Recorder *Recorder
	Metrics  *Metrics
	// Positions keeps the cursors' places; nil where the server keeps them.
	Positions *Positions
	// Board shows breakers to the other replicas; nil for none.
	Board *Board
	Log   *slog.Logger
}

// Worker serves one subscriber. Start it once, Stop it once.
//
// Where order is wanted only one of several replicas serves it: the one with the
// lease. Both of a subscriber's cursors must be with the same one, which
// JetStream's pinned consumers, each for itself, do not see to.
type Worker struct {
	sub     Subscriber
	parts   Parts
	log     *slog.Logger
	breaker *breaker
	limiter *rate.Limiter
	pause   *pause
	metrics *series
	lender  Lender // nil: events are sent

	holding sync.Mutex // guards held and idle
	held    bool       // the operator wants it
	idle    bool       // nobody asks for events

	stopping context.Context // ends when Stop is called
	halt     context.CancelFunc
	owning   sync.WaitGroup

	mu     sync.Mutex // guards all below
	now    *worker    // nil while another replica serves
	before GivenUp    // by the workers before this one
	grace  time.Duration
}

// limitOf reads a rate, of which 0 means none.
func limitOf(r float64) rate.Limit {
	if r == 0 {
		return rate.Inf
	}
	return rate.Limit(r)
}

// burstOf is how many may go at once, a tenth of a second's worth: timers are not
// finer.
func burstOf(limit rate.Limit) int { return max(1, int(min(float64(limit), maxRate)/10)) }

// Start makes the subscriber's cursors, if they are not there yet, and begins
// to deliver; for one that wants order, as soon as this replica has the lease.
// ctx bounds only the start.
func Start(ctx context.Context, sub Subscriber, parts Parts) (*Worker, error) {
	lender, _ := sub.Sender.(Lender)
	if lender != nil {
		sub.Config = lendConfig(sub.Config)
	}
	limit := limitOf(float64(sub.Config.Limits.Rate))
	w := &Worker{
		sub: sub, parts: parts, log: parts.Log.With("subscriber", sub.Name), pause: newPause(), lender: lender,
		held: sub.Paused, idle: lender != nil,
		limiter: rate.NewLimiter(limit, burstOf(limit)),
	}
	if _, ok := sub.Sender.(BatchSender); sub.Config.Limits.Batch.Events > 0 && !ok {
		return nil, errors.New("limits.batch: this way of delivery takes one event at a time; remove the key")
	}
	w.breaker = newBreaker(sub.Config.Breaker, sub.Config.Limits.Concurrency, parts.Board, sub.Name, w.breakerChanged)
	w.stopping, w.halt = context.WithCancel(context.Background())
	w.pause.set(w.held || w.idle)
	w.metrics = parts.Metrics.of(sub.Name)
	if sub.Config.Ordering != Unordered && sub.Config.Ordering != "" {
		w.owning.Go(w.own)
		return w, nil
	}
	now, err := start(ctx, w)
	if err != nil {
		w.breaker.stop()
		return nil, err
	}
	w.mu.Lock() // its breaker may have opened already
	w.now = now
	w.mu.Unlock()
	if lender != nil {
		lender.Serve(w)
	}
	return w, nil
}

// own serves whenever the lease is ours.
func (w *Worker) own() {
	for {
		lease, err := w.parts.Broker.Lease(w.stopping, "deliver-"+w.sub.Name, w.log)
		if err != nil {
			return // stopping
		}
		if err := w.serve(lease.Context()); err != nil {
			w.log.Warn("not started, trying again", "error", err)
			t := time.NewTimer(time.Second)
			select {
			case <-t.C:
			case <-w.stopping.Done():
			}
			t.Stop()
		}
		lease.Release()
	}
}

// serve delivers until ctx ends, or Stop is called.
func (w *Worker) serve(ctx context.Context) error {
	// What another replica settled last is in its records alone.
	if err := w.parts.Recorder.refresh(ctx); err != nil {
		return err
	}
	now, err := start(ctx, w)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.now = now
	w.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-w.stopping.Done():
	}
	w.mu.Lock()
	w.now = nil
	grace := w.grace
	w.mu.Unlock()
	if w.stopping.Err() == nil {
		grace = 0
	}
	now.stopAll(grace)
	given := now.surplus.given()
	w.mu.Lock()
	w.before.Expired += given.Expired
	w.before.Shed += given.Shed
	w.mu.Unlock()
	return nil
}

// with calls do if this replica serves the subscriber.
func (w *Worker) with(do func(*worker)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.now != nil {
		do(w.now)
	}
}

// Stop stops fetching, lets attempts under way end within grace, and returns
// when everything is settled or given back. Given back means that it comes
// again, to this process or the next.
func (w *Worker) Stop(grace time.Duration) {
	w.mu.Lock()
	w.grace = grace
	w.mu.Unlock()
	w.halt()
	w.owning.Wait()
	w.mu.Lock()
	now := w.now
	w.mu.Unlock()
	if now != nil {
		now.stopAll(grace)
	}
	w.breaker.stop()
	w.sub.Sender.Close()
}

// SetPaused pauses or resumes fetching. Attempts under way are finished.
func (w *Worker) SetPaused(paused bool) {
	w.holding.Lock()
	defer w.holding.Unlock()
	w.held = paused
	w.pause.set(w.held || w.idle)
}

// Breaker tells how the subscriber is doing.
func (w *Worker) Breaker() BreakerStatus { return w.breaker.status() }

// Serving says whether this replica serves the subscriber. Where order is
// wanted, only one does.
func (w *Worker) Serving() bool {
	serving := false
	w.with(func(*worker) { serving = true })
	return serving
}

// RetryNow lets a subscriber whose breaker is open be tried at once, with whatever
// its Sender has put off.
func (w *Worker) RetryNow() {
	if r, ok := w.sub.Sender.(Renewer); ok {
		r.RetryNow()
	}
	w.breaker.retryNow()
}

func (w *Worker) breakerChanged(s BreakerStatus) {
	w.metrics.breaker.Set(map[bool]float64{false: 1}[s.Flowing()])
	what, attrs := "breaker.closed", map[string]any{}
	switch s.State {
	case BreakerRampingUp:
		what = "breaker.ramping-up"
	case BreakerClosed:
	case BreakerMisconfigured:
		what = "subscriber.misconfigured"
		attrs = map[string]any{
			"refusals": s.Failures, "lastError": s.LastError, "nextProbe": s.NextProbe,
			"fix": "it refuses everything, or egress.allow keeps us from it: see the last error, its key and address. Events wait; the first that it takes lets the others go. Those it refused before are dead letters: gridfan deadletters redrive " + w.sub.Name,
		}
	default:
		what = "breaker.opened"
		attrs = map[string]any{"failures": s.Failures, "causes": s.Causes, "lastError": s.LastError, "nextProbe": s.NextProbe}
	}
	w.parts.Broker.Report(what, w.sub.Name, attrs)
	if !s.Flowing() {
		return
	}
	w.with(func(now *worker) {
		if now.stopped.Err() == nil {
			now.sending.Go(now.hasten)
		}
	})
}

// worker is what serves the subscriber for as long as this replica may.
type worker struct {
	*Worker
	conn *nats.Conn
	js   jetstream.JetStream
	link *link

	slots   *slots
	lanes   [2]*lane
	gate    *gate  // nil unless order is wanted
	dead    *share // of DEADLETTERS
	retries *share // of RETRY
	surplus surplus
	settled *settled
	hands   hands
	outage  outage
	// leftovers is nil when anything may be left over.
	leftovers atomic.Pointer[leftovers]

	stopped   context.Context // ends when no more may be fetched
	stop      context.CancelFunc
	abandoned context.Context // ends when attempts under way are given up
	abandon   context.CancelFunc
	fetching  sync.WaitGroup // the loops that take messages
	sending   sync.WaitGroup // deliveries, until their settlement is queued

	gone  context.Context // ends when stopAll returns
	leave context.CancelFunc

	lending   sync.Mutex       // guards retryLane
	retryLane jetstream.Stream // nil until it is asked for
}

func start(ctx context.Context, of *Worker) (*worker, error) {
	sub := of.sub
	nc, js, err := of.parts.Broker.ConnectReading("deliver-"+sub.Name, sub.Name)
	if err != nil {
		return nil, err
	}
	w := &worker{
		Worker: of, conn: nc, js: js, link: newLink(nc),
		slots: newSlots(sub.Config.Limits.Concurrency), settled: of.parts.Recorder.settledOf(sub.Name, sub.Created),
	}
	w.stopped, w.stop = context.WithCancel(context.Background())
	w.abandoned, w.abandon = context.WithCancel(context.Background())
	w.gone, w.leave = context.WithCancel(context.Background())
	w.surplus.wake = make(chan struct{}, 1)
	w.shares()

	window := w.window()
	if o := sub.Config.Ordering; o == Strict {
		w.gate = newGate(math.MaxInt)
	} else if o == ByKey {
		w.gate = newGate(window / 2)
	}
	// Twice the prefetch: some are in the queue and some in slots.
	inFlight := 4*window + 16
	w.lanes = [2]*lane{
		// And two rounds of surplus: one being settled and one acked.
		newLane(w, broker.StreamEvents, consumerConfig(sub.Name, sub.Subjects, sub.StartSequence, inFlight+2*lastRound), window, eventOrigin),
		newLane(w, broker.StreamRetry, retryConfig(sub.Name, inFlight), window, retryOrigin),
	}
	for _, l := range w.lanes {
		declaring, cancel := context.WithTimeout(ctx, declarePatience)
		_, err := l.declare(declaring)
		cancel()
		if err != nil {
			nc.Close()
			return nil, err
		}
	}
	if p := w.parts.Positions; p != nil {
		p.join(w)
	}
	sorting, cancel := context.WithTimeout(ctx, sortPatience)
	if err = w.sortRetries(sorting); err == nil {
		err = w.findLeftovers(sorting)
	}
	cancel()
	if w.gate != nil {
		// What comes behind others goes to the retry lane untried, hundreds at a
		// time, so the first one would be too late to ask whether there is room.
		w.retries.begin(ctx)
	}
	if err != nil {
		if p := w.parts.Positions; p != nil {
			p.leave(w)
		}
		nc.Close()
		return nil, fmt.Errorf("what waits on the retry lane: %w", err)
	}
	for _, l := range w.lanes {
		w.fetching.Add(3)
		go l.fetchLoop()
		go l.dispatchLoop()
		go l.holdLoop()
	}
	w.fetching.Add(1)
	go w.surplusLoop()
	return w, nil
}

const (
	declarePatience = 10 * time.Second
	// sortPatience is for retriesMost of them, on a busy machine.
	sortPatience = 2 * time.Minute
)

const (
	// maxWindow bounds the events that one lane holds ready, whatever the batch.
	maxWindow = 4096
	// strictWindow is the prefetch of a subscriber that gets one event after
	// another: enough that it never waits for the next one.
	strictWindow = 64
	// readyFor is how many events are held ready for each attempt that may run, so
	// that none waits for the next request to the broker, and requests are few.
	readyFor = 4
	// keyWindow gives events of other keys a chance to be fetched while those of
	// some wait for their turn.
	keyWindow = 2
)

// window is how many events one lane holds ready.
func (w *worker) window() int {
	if w.lender != nil {
		return lendWindow
	}
	n := readyFor * w.sub.Config.Limits.Concurrency
	switch w.sub.Config.Ordering {
	case Strict:
		return strictWindow
	case ByKey:
		n *= keyWindow
	}
	return min(n*max(1, w.sub.Config.Limits.Batch.Events), maxWindow)
}

// How old a count of a subscriber's messages may be when it says that there is
// no more room. RETRY's take long, because each message has a subject of its
// own; in return this process knows what it stored and what came due.
const (
	countDeadEvery  = 10 * time.Second
	countDeadAfter  = 1000
	countRetryEvery = time.Minute
)

// retriesMost is how many events one subscriber may have on the retry lane,
// however small they are: each takes half a kilobyte of the broker's memory for
// its subject and its time, and where order is wanted a fifth of one for its place
// in the line. What comes after them waits in EVENTS, where it takes none. Only
// tests change it.
var retriesMost int64 = 250_000

func (w *worker) shares() {
	name, b := w.sub.Name, w.parts.Broker
	report := func(what, fix string) func(bool, int64, int64) {
		return func(full bool, used, messages int64) {
			if !full {
				b.Report("subscriber."+what+"-eased", name, map[string]any{"bytes": used, "events": messages})
				return
			}
			b.Report("subscriber."+what+"-full", name, map[string]any{"bytes": used, "events": messages, "fix": fix})
		}
	}
	w.dead = &share{
		limit: b.DeadLetterShare(), count: deadLetters(b, name),
		every: countDeadEvery, after: countDeadAfter, log: w.log,
		changed: report("deadletters", fmt.Sprintf("its further dead letters wait and slow it down: gridfan deadletters redrive %s once the cause is mended, gridfan deadletters drop %s for those that are done with, or raise storage.maxBytes", name, name)),
	}
	w.retries = &share{
		limit: b.RetryShare(), most: retriesMost, count: retries(b, name),
		every: countRetryEvery, log: w.log,
		changed: report("retries", "no further events are sent to it until some retries have come due: see why its attempts fail"),
	}
}

// roomToRetry waits until a failed attempt would have a place in RETRY, or
// answers false when ctx ends. Deliveries must not wait for it in their slots:
// the retries that make room need slots too.
func (w *worker) roomToRetry(ctx context.Context) bool {
	for w.retries.spent(ctx) {
		t := time.NewTimer(roomEvery)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return false
		}
	}
	return true
}

// stopAll is Stop for what serves now.
func (w *worker) stopAll(grace time.Duration) {
	w.stop()
	timer := time.AfterFunc(grace, w.abandon)
	defer timer.Stop()
	settled := make(chan struct{})
	go func() {
		w.fetching.Wait()
		w.sending.Wait()
		close(settled)
	}()
	select {
	case <-settled:
	case <-time.After(grace + settleGrace):
		// The broker does not take the settlements: the events come again.
		w.log.Warn("stopped with unsettled deliveries; they will be repeated", "count", w.held())
	}
	w.abandon()
	w.leave()
	w.slots.close()
	if p := w.parts.Positions; p != nil {
		p.leave(w)
	}
	w.conn.Close()
}

// settleGrace is how long a stop waits for the broker to store settlements.
const settleGrace = 5 * time.Second

// held counts the deliveries in this process's hands.
func (w *worker) held() int {
	n := 0
	for _, l := range w.lanes {
		l.mu.Lock()
		n += len(l.held)
		l.mu.Unlock()
	}
	return n
}

// sleep waits, or returns false when the worker is stopping.
func (w *worker) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-w.stopped.Done():
		return false
	}
}

// jitter spreads d by a tenth either way, so that what failed together does
// not come back together.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.9 + 0.2*rand.Float64()))
}
