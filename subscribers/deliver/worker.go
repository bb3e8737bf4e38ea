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
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"

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
	Log      *slog.Logger
}

// Worker serves one subscriber. Start it once, Stop it once.
type Worker struct {
	sub   Subscriber
	parts Parts
	log   *slog.Logger
	conn  *nats.Conn
	js    jetstream.JetStream
	link  *link

	breaker *breaker
	slots   *semaphore.Weighted
	lanes   [2]*lane
	dead    *share // of DEADLETTERS
	retries *share // of RETRY
	surplus surplus
	settled settled

	stopped   context.Context // ends when no more may be fetched
	stop      context.CancelFunc
	abandoned context.Context // ends when attempts under way are given up
	abandon   context.CancelFunc
	fetching  sync.WaitGroup // the loops that take messages
	sending   sync.WaitGroup // deliveries, until their settlement is queued

	gone  context.Context // ends when Stop returns
	leave context.CancelFunc

	pause *pause
}

// Start makes the subscriber's cursors, if they are not there yet, and begins
// to deliver. ctx bounds only the start.
func Start(ctx context.Context, sub Subscriber, parts Parts) (*Worker, error) {
	nc, js, err := parts.Broker.Connect("deliver-" + sub.Name)
	if err != nil {
		return nil, err
	}
	w := &Worker{
		sub: sub, parts: parts, conn: nc, js: js, link: newLink(nc),
		log:   parts.Log.With("subscriber", sub.Name),
		slots: semaphore.NewWeighted(int64(sub.Config.Limits.Concurrency)),
		pause: newPause(),
	}
	w.breaker = newBreaker(sub.Config.Breaker, w.breakerChanged)
	w.stopped, w.stop = context.WithCancel(context.Background())
	w.abandoned, w.abandon = context.WithCancel(context.Background())
	w.gone, w.leave = context.WithCancel(context.Background())
	w.pause.set(sub.Paused)
	parts.Metrics.init(sub.Name)

	w.surplus.wake = make(chan struct{}, 1)
	w.shares()

	// Twice the prefetch: some are in the queue and some in slots.
	inFlight := 4*sub.Config.Limits.Concurrency + 16
	w.lanes = [2]*lane{
		// And two rounds of surplus: one being settled and one acked.
		newLane(w, broker.StreamEvents, consumerConfig(sub.Name, sub.Subjects, sub.StartSequence, inFlight+2*lastRound), eventOrigin),
		newLane(w, broker.StreamRetry, retryConfig(sub.Name, inFlight), retryOrigin),
	}
	for _, l := range w.lanes {
		if _, err := l.declare(ctx); err != nil {
			nc.Close()
			return nil, err
		}
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

// How old a count of a subscriber's messages may be when it says that there is
// no more room. RETRY's take long, because each message has a subject of its
// own; in return this process knows what it stored and what came due.
const (
	countDeadEvery  = 10 * time.Second
	countDeadAfter  = 1000
	countRetryEvery = time.Minute
)

func (w *Worker) shares() {
	name, b := w.sub.Name, w.parts.Broker
	report := func(what, fix string) func(bool, int64) {
		return func(full bool, used int64) {
			if !full {
				b.Report("subscriber."+what+"-eased", name, map[string]any{"bytes": used})
				return
			}
			b.Report("subscriber."+what+"-full", name, map[string]any{"bytes": used, "fix": fix})
		}
	}
	w.dead = &share{
		limit: b.DeadLetterShare(), count: counter(w.js, broker.StreamDeadLetters, broker.DeadLetterAll(name)),
		every: countDeadEvery, after: countDeadAfter, log: w.log,
		changed: report("deadletters", fmt.Sprintf("its further dead letters wait and slow it down: purge those that are done with (nats stream purge %s --subject '%s'), or raise storage.maxBytes",
			broker.StreamDeadLetters, broker.DeadLetterAll(name))),
	}
	w.retries = &share{
		limit: b.RetryShare(), count: counter(w.js, broker.StreamRetry, broker.RetryWaitingAll(name), broker.RetryDue(name)),
		every: countRetryEvery, log: w.log,
		changed: report("retries", "no further events are sent to it until some retries have come due: see why its attempts fail"),
	}
}

// roomToRetry waits until a failed attempt would have a place in RETRY, or
// answers false when ctx ends. Deliveries must not wait for it in their slots:
// the retries that make room need slots too.
func (w *Worker) roomToRetry(ctx context.Context) bool {
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

// Stop stops fetching, lets attempts under way end within grace, and returns
// when everything is settled or given back. Given back means that it comes
// again, to this process or the next.
func (w *Worker) Stop(grace time.Duration) {
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
	w.conn.Close()
	w.sub.Sender.Close()
}

// settleGrace is how long a stop waits for the broker to store settlements.
const settleGrace = 5 * time.Second

// held counts the deliveries in this process's hands.
func (w *Worker) held() int {
	n := 0
	for _, l := range w.lanes {
		l.mu.Lock()
		n += len(l.held)
		l.mu.Unlock()
	}
	return n
}

// SetPaused pauses or resumes fetching. Attempts under way are finished.
func (w *Worker) SetPaused(paused bool) { w.pause.set(paused) }

// Breaker tells how the subscriber is doing.
func (w *Worker) Breaker() BreakerStatus { return w.breaker.status() }

func (w *Worker) breakerChanged(s BreakerStatus) {
	open := s.State != "closed"
	w.parts.Metrics.breaker.WithLabelValues(w.sub.Name).Set(map[bool]float64{true: 1}[open])
	if open {
		w.parts.Broker.Report("breaker.opened", w.sub.Name, map[string]any{
			"failures": s.Failures, "lastError": s.LastError, "nextProbe": s.NextProbe,
		})
		return
	}
	w.parts.Broker.Report("breaker.closed", w.sub.Name, map[string]any{})
}

// inPlace is the wait before the one repetition that is made on the spot: long
// enough for a connection that was just closed, short enough to hold a slot.
// Whatever takes longer than quick is not repeated on the spot.
const (
	inPlace = 150 * time.Millisecond
	quick   = time.Second
)

// deliver makes an attempt, or two, and settles.
func (w *Worker) deliver(d *delivery) {
	if !w.onDisk(d) {
		d.lane.giveBack(d)
		return
	}
	e, err := event.Decode(d.header(), d.body())
	if err = errors.Join(d.broken, err); err != nil {
		w.deadLetter(d, &event.Event{ID: d.header().Get("ce-id")}, causeUndecodable, Attempt{Reason: "not an event of ours: " + err.Error()}, d.origin.attempts, 0)
		return
	}
	attempts := d.origin.attempts
	for try := 0; ; try++ {
		p, ok := w.breaker.allow(d.probed != nil)
		if !ok {
			d.lane.giveBack(d)
			return
		}
		attempts++
		a, took := w.attempt(e, p)
		switch a.Outcome {
		case Aborted:
			d.lane.giveBack(d)
			return
		case Delivered:
			w.delivered(d, e, a, attempts, took)
			return
		case Rejected:
			w.deadLetter(d, e, causeRejected, a, attempts, took)
			return
		}
		again := try == 0 && !p.probe && took < quick && a.RetryAfter == 0 && w.breaker.closed()
		if !again || !w.sleep(inPlace) {
			w.retry(d, e, p.probe, a, attempts, took)
			return
		}
	}
}

// onDisk waits until the event itself is on the disk. Until then a power cut
// can take it back and give its place in the stream to another event, which
// would then count as settled. false means the worker is stopping, or nobody
// knows.
func (w *Worker) onDisk(d *delivery) bool {
	if d.lane.stream != broker.StreamEvents || d.origin.sequence <= w.parts.Broker.DurableThrough() {
		return true
	}
	err := w.parts.Broker.Durable(w.abandoned, d.epoch, d.origin.sequence)
	if err != nil && w.stopped.Err() == nil {
		w.log.Debug("not delivered before it is on the disk", "error", err)
		w.sleep(inPlace) // it comes again at once
	}
	return err == nil
}

// attempt makes one try under a deadline and tells the breaker.
func (w *Worker) attempt(e *event.Event, p permit) (Attempt, time.Duration) {
	inFlight := w.parts.Metrics.inFlight.WithLabelValues(w.sub.Name)
	inFlight.Inc()
	defer inFlight.Dec()
	ctx, cancel := context.WithTimeout(w.abandoned, w.sub.Config.Limits.Timeout.Std())
	defer cancel()
	start := time.Now()
	a := Attempt{Outcome: Failed, Reason: "panic in the sender"}
	func() {
		defer func() {
			if r := recover(); r != nil {
				w.log.Error("panic in a sender", "panic", fmt.Sprint(r))
			}
		}()
		a = w.sub.Sender.Send(ctx, e)
	}()
	took := time.Since(start)
	switch a.Outcome {
	case Aborted:
		p.abort()
	case Failed:
		p.report(false, a.Reason)
	default:
		p.report(true, "")
	}
	w.parts.Metrics.attempts.WithLabelValues(w.sub.Name, string(a.Outcome)).Inc()
	w.parts.Metrics.attemptTime.WithLabelValues(w.sub.Name).Observe(took.Seconds())
	w.log.Debug("delivery attempted", "event", e.ID, "type", e.Type, "outcome", a.Outcome,
		"status", a.Status, "reason", a.Reason, "took", took)
	return a, took
}

// sleep waits, or returns false when the worker is stopping.
func (w *Worker) sleep(d time.Duration) bool {
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
