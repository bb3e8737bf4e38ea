package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
)

// Everything that ends a delivery is in this file, and all of it keeps one
// rule: what an ack depends on is stored before the ack is sent, because an
// ack outlives a message that was not yet on the disk.

// Headers of messages on the retry lane and of dead letters.
const (
	HeaderSubscriber     = "Gridfan-Subscriber"
	HeaderOriginSequence = "Gridfan-Origin-Sequence" // place in EVENTS
	HeaderOriginSubject  = "Gridfan-Origin-Subject"
	HeaderHop            = "Gridfan-Hop"      // trips over the retry lane
	HeaderRounds         = "Gridfan-Rounds"   // waits of the schedule used up
	HeaderAttempts       = "Gridfan-Attempts" // attempts made in all
	HeaderCause          = "Gridfan-Cause"
	HeaderStatus         = "Gridfan-Status" // of the last attempt
	HeaderReason         = "Gridfan-Reason" // of the last attempt, percent-encoded
	HeaderFailedAt       = "Gridfan-Failed-At"
)

// Causes of dead letters, part of their subject.
const (
	causeRejected    = "rejected"    // the subscriber does not want this event
	causeExhausted   = "exhausted"   // the last attempt of the schedule failed
	causeUndecodable = "undecodable" // not a CloudEvent
	causeBacklog     = "backlog"     // the oldest of more than the subscriber may hold back
)

// maxRetryAfter caps what a subscriber may ask us to wait.
const maxRetryAfter = time.Hour

// origin says which event a message carries and what has been tried.
type origin struct {
	sequence uint64 // in EVENTS
	subject  string
	hop      int
	rounds   int
	attempts int
}

func eventOrigin(m message) (origin, error) {
	return origin{sequence: m.sequence(), subject: m.subject()}, nil
}

func retryOrigin(m message) (origin, error) {
	h := m.header()
	o := origin{subject: h.Get(HeaderOriginSubject)}
	var errs [4]error
	o.sequence, errs[0] = strconv.ParseUint(h.Get(HeaderOriginSequence), 10, 64)
	o.hop, errs[1] = strconv.Atoi(h.Get(HeaderHop))
	o.rounds, errs[2] = strconv.Atoi(h.Get(HeaderRounds))
	o.attempts, errs[3] = strconv.Atoi(h.Get(HeaderAttempts))
	if err := errors.Join(errs[:]...); err != nil {
		// Named by its place on the lane, so that it is mistaken for no other.
		return origin{sequence: m.sequence(), hop: -1}, fmt.Errorf("on the retry lane without its origin: %w", err)
	}
	return o, nil
}

// delivered settles an event that the subscriber has.
func (w *Worker) delivered(d *delivery, e *event.Event, a Attempt, attempts int, took time.Duration) {
	now := time.Now()
	w.parts.Metrics.delivered(w.sub.Name, e, now)
	w.settle(d, e, Record{Outcome: RecordDelivered, Attempts: attempts, Status: a.Status, Millis: took.Milliseconds(), Time: now})
}

// retry settles a failed attempt: the event waits in the retry lane, or is
// given up when its schedule is used up.
func (w *Worker) retry(d *delivery, e *event.Event, probe bool, a Attempt, attempts int, took time.Duration) {
	schedule := w.sub.Config.Retry.Schedule
	rounds := d.origin.rounds
	var wait time.Duration
	if probe {
		// The attempt was ours to make, to see whether the subscriber is
		// back; it uses up nothing, and the event is at hand for the next one.
		wait = min(schedule[min(rounds, len(schedule)-1)].Std(), w.sub.Config.Breaker.MaxOpenFor.Std())
	} else {
		if rounds >= len(schedule) {
			w.deadLetter(d, e, causeExhausted, a, attempts, took)
			return
		}
		wait = schedule[rounds].Std()
		rounds++
	}
	wait = max(jitter(wait), min(a.RetryAfter, maxRetryAfter))
	now := time.Now()
	next := now.Add(wait)
	hop := d.origin.hop + 1

	h := w.carry(d)
	h.Set(HeaderHop, strconv.Itoa(hop))
	h.Set(HeaderRounds, strconv.Itoa(rounds))
	h.Set(HeaderAttempts, strconv.Itoa(attempts))
	// The client's option cuts the time to whole seconds, which is early.
	h.Set("Nats-Schedule", "@at "+next.UTC().Format(time.RFC3339Nano))
	h.Set("Nats-Schedule-Target", broker.RetryDue(w.sub.Name))
	h.Set(nats.MsgIdHdr, fmt.Sprintf("%s-%d-%d", w.sub.Name, d.origin.sequence, hop))
	m := &nats.Msg{Subject: broker.RetryWaiting(w.sub.Name, d.origin.sequence), Header: h, Data: d.body()}
	switch w.store(d, m) {
	case unstored:
		d.lane.giveBack(d)
		return
	case unwanted:
		w.shed(d, e, a, attempts, took)
		return
	}
	// No fresh events are fetched without room for retries, so this one has
	// some, or is one of the last that were fetched.
	w.retries.add(w.stopped, sizeOf(m))
	w.settle(d, e, Record{
		Outcome: RecordRetry, Attempts: attempts, Status: a.Status, Reason: a.Reason,
		Millis: took.Milliseconds(), Time: now, Next: &next,
	})
}

// deadLetter settles an event that is given up for this subscriber. It waits for
// room among the subscriber's dead letters. false means that the event was given
// back: the worker is stopping, or the event is surplus and there is no room.
func (w *Worker) deadLetter(d *delivery, e *event.Event, cause string, a Attempt, attempts int, took time.Duration) bool {
	now := time.Now()
	h := w.carry(d)
	h.Set(HeaderCause, cause)
	h.Set(HeaderAttempts, strconv.Itoa(attempts))
	h.Set(HeaderStatus, strconv.Itoa(a.Status))
	h.Set(HeaderReason, url.PathEscape(a.Reason))
	h.Set(HeaderFailedAt, event.FormatTime(now.UTC()))
	h.Set(nats.MsgIdHdr, fmt.Sprintf("%s-%d-%d", w.sub.Name, d.origin.sequence, d.origin.hop))
	m := &nats.Msg{Subject: broker.DeadLetter(w.sub.Name, cause), Header: h, Data: d.body()}
	verdict := w.room(d, sizeOf(m))
	if verdict == stored {
		if verdict = w.store(d, m); verdict != stored {
			w.dead.give(sizeOf(m))
		}
	}
	switch verdict {
	case unstored:
		d.lane.giveBack(d)
		return false
	case unwanted:
		w.shed(d, e, a, attempts, took)
		return true
	}
	level := slog.LevelWarn
	if d.surplus {
		level = slog.LevelDebug // thousands of them; they are reported together
	}
	w.log.Log(context.Background(), level, "dead letter", "event", e.ID, "type", e.Type, "cause", cause, "attempts", attempts, "status", a.Status, "reason", a.Reason)
	w.settle(d, e, Record{
		Outcome: RecordDeadLetter, Attempts: attempts, Status: a.Status, Reason: cause + ": " + a.Reason,
		Millis: took.Milliseconds(), Time: now,
	})
	return true
}

// shed settles an event that goes for the sake of all: its record is all that
// stays.
func (w *Worker) shed(d *delivery, e *event.Event, a Attempt, attempts int, took time.Duration) {
	w.settle(d, e, Record{
		Outcome: RecordShed, Attempts: attempts, Status: a.Status, Reason: a.Reason,
		Millis: took.Milliseconds(), Time: time.Now(),
	})
}

// carry copies an event's headers for a message that stands in for it.
func (w *Worker) carry(d *delivery) nats.Header {
	h := maps.Clone(d.header())
	if h == nil {
		h = nats.Header{}
	}
	for k := range h {
		// The broker's own instructions were for the old message.
		if strings.HasPrefix(k, "Nats-") {
			delete(h, k)
		}
	}
	h.Set(HeaderSubscriber, w.sub.Name)
	h.Set(HeaderOriginSequence, strconv.FormatUint(d.origin.sequence, 10))
	h.Set(HeaderOriginSubject, d.origin.subject)
	return h
}

// storing is how an attempt to store something for a delivery ended.
type storing int

const (
	stored   storing = iota
	unstored         // give the delivery back
	unwanted         // shed it: others need the room it holds
)

// roomEvery is how often a delivery looks whether there is room for it.
const roomEvery = 500 * time.Millisecond

// room waits until there is room for a dead letter in the subscriber's share.
// Meanwhile the delivery keeps its slot.
func (w *Worker) room(d *delivery, size int64) storing {
	for !w.dead.take(w.stopped, size) {
		if v := w.patience(d, roomEvery); v != stored {
			return v
		}
	}
	return stored
}

// store publishes m and waits until it is on the disk. While the broker can't
// take it, the delivery keeps its slot, so that a full store slows this
// subscriber down and drops nothing.
func (w *Worker) store(d *delivery, m *nats.Msg) storing {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := w.parts.Broker.Store(ctx, w.js, m)
		cancel()
		if err == nil {
			return stored
		}
		w.log.Warn("not stored, trying again", "subject", m.Subject, "error", err, "in", wait)
		if v := w.patience(d, wait); v != stored {
			return v
		}
	}
}

// patience waits before something is tried once more, and says whether it is
// worth trying.
func (w *Worker) patience(d *delivery, wait time.Duration) storing {
	// The attempt is over: another one may find out whether the subscriber is
	// still up.
	d.endProbe()
	for until := time.Now().Add(wait); ; {
		if w.toShed(d) {
			return unwanted
		}
		left := time.Until(until)
		switch {
		case d.surplus:
			return unstored // it waits in the stream
		case left <= 0:
			return stored
		case !w.sleep(min(left, roomEvery)):
			return unstored
		}
	}
}

// dropRetry removes the retry of an event that ends now. There is one when a
// process died between storing the retry and recording it, so that the event
// came again.
func (w *Worker) dropRetry(d *delivery) {
	ctx, cancel := context.WithTimeout(w.gone, 5*time.Second)
	defer cancel()
	s, err := w.js.Stream(ctx, broker.StreamRetry)
	if err == nil {
		err = s.Purge(ctx, jetstream.WithPurgeSubject(broker.RetryWaiting(w.sub.Name, d.origin.sequence)))
	}
	if err != nil {
		w.log.Warn("a stale retry may be delivered", "event", d.origin.sequence, "error", err)
	}
}

// settle records how a delivery ended and then acks it. It is the only way to
// an ack.
func (w *Worker) settle(d *delivery, e *event.Event, r Record) {
	if d.again() && r.Outcome != RecordRetry {
		w.dropRetry(d)
	}
	r.Subscriber, r.Sequence, r.Hop = w.sub.Name, d.origin.sequence, d.origin.hop
	r.ID, r.Subject = e.ID, d.origin.subject
	w.parts.Recorder.add(r, func() {
		w.parts.Metrics.settled.WithLabelValues(w.sub.Name, r.Outcome).Inc()
		switch {
		case r.Outcome == RecordShed:
			w.surplus.gone.Add(1)
		case d.surplus:
			w.surplus.expired.Add(1)
		}
		if d.lane == w.lanes[1] {
			w.retries.give(sizeOf(&nats.Msg{Subject: d.subject(), Header: d.header(), Data: d.body()}))
		}
		// Before the ack: the same may be coming again at this moment.
		if d.broken == nil {
			if p, ok := r.progress(); ok {
				w.settled.put(r.Sequence, p)
			}
		}
		d.lane.settled(d)
	})
}
