package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	HeaderAdded          = "Gridfan-Added"           // which subscriber of that name, see Added
	HeaderOriginSequence = "Gridfan-Origin-Sequence" // place in EVENTS
	HeaderOriginSubject  = "Gridfan-Origin-Subject"
	HeaderHop            = "Gridfan-Hop"      // trips over the retry lane
	HeaderRounds         = "Gridfan-Rounds"   // waits of the schedule used up
	HeaderAttempts       = "Gridfan-Attempts" // attempts made in all
	HeaderAnew           = "Gridfan-Anew"     // when it was sent out anew: from then on it ages
	HeaderCause          = "Gridfan-Cause"
	HeaderStatus         = "Gridfan-Status" // of the last attempt
	HeaderReason         = "Gridfan-Reason" // of the last attempt, percent-encoded
	HeaderFailedAt       = "Gridfan-Failed-At"
)

// Causes of dead letters, part of their subject.
const (
	causeRejected    = "rejected"    // the subscriber does not want this event
	causeExhausted   = "exhausted"   // the last attempt of the schedule failed
	causeGivenUp     = "given-up"    // a rule says not to try again after such a failure
	causeExpired     = "expired"     // older than retry.maxAge
	causeFilter      = "filter"      // the filter could not be decided
	causeTransform   = "transform"   // the transform gave nothing to send
	causeUndecodable = "undecodable" // not a CloudEvent
	causeBacklog     = "backlog"     // the oldest of more than the subscriber may hold back
)

// origin says which event a message carries and what has been tried.
type origin struct {
	sequence uint64 // in EVENTS
	subject  string
	hop      int
	rounds   int
	attempts int
	added    string // as HeaderAdded; empty for the event itself
}

func eventOrigin(m message) (origin, error) {
	return origin{sequence: m.sequence(), subject: m.subject()}, nil
}

func retryOrigin(m message) (origin, error) {
	h := m.header()
	o := origin{subject: h.Get(HeaderOriginSubject), added: h.Get(HeaderAdded)}
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
func (w *worker) delivered(d *delivery, a Attempt, took time.Duration) {
	now := time.Now()
	w.metrics.delivered(d.event, d.accepted(), now)
	w.settle(d, Record{Outcome: RecordDelivered, Status: a.Status, Millis: took.Milliseconds(), Time: now})
}

// plan is what follows a failed attempt.
type plan struct {
	wait  time.Duration
	cause string // of a dead letter; empty: after wait comes the next attempt
	// rounds of the schedule that are used up then.
	rounds int
}

// next decides what follows an attempt. free says that it was ours to make, to
// see whether the subscriber is back, or that the trouble is not the event's: it
// uses up nothing, and the event is at hand for the next one.
func (r *Retry) next(a Attempt, rounds int, free bool, longest time.Duration) plan {
	rule, ok := r.Faults[a.Fault]
	schedule := r.Schedule
	switch {
	case ok && rule.GiveUp && a.Outcome == Failed && !free:
		return plan{cause: causeGivenUp}
	case ok && !rule.GiveUp:
		schedule = rule.Schedule
	case a.Outcome == Rejected && !free:
		return plan{cause: causeRejected}
	}
	p := plan{rounds: rounds}
	if free {
		p.wait = min(schedule[min(rounds, len(schedule)-1)].Std(), longest)
	} else {
		if rounds >= len(schedule) {
			if a.Outcome == Rejected {
				return plan{cause: causeRejected}
			}
			return plan{cause: causeExhausted}
		}
		p.wait = schedule[rounds].Std()
		p.rounds++
	}
	p.wait = max(jitter(p.wait), min(a.RetryAfter, r.MaxRetryAfter.Std()))
	return p
}

// failed settles an attempt that did not succeed: the event waits in the retry
// lane, or is given up. In strict order it waits here: true means that it is to
// be tried again.
func (w *worker) failed(d *delivery, a Attempt, took time.Duration, free bool) (again bool) {
	cfg := &w.sub.Config
	strict := cfg.Ordering == Strict && d.line != ""
	if strict && a.Outcome == Failed && !a.forbidden() {
		// The head is the only one to probe with, so what comes before its time
		// is free and what comes at its time is not: an outage makes no dead
		// letters soon, and an event that never succeeds is given up at last.
		free = time.Now().Before(d.due)
	}
	p := cfg.Retry.next(a, d.origin.rounds, free, cfg.Breaker.MaxOpenFor.Std())
	if age := w.age(d); p.cause == "" && w.tooOld(age+p.wait) {
		p.cause = causeExpired
		a.Reason += "; " + tooOldFor(age, cfg.Retry.MaxAge)
	}
	if p.cause != "" {
		w.deadLetter(d, p.cause, a, took)
		return false
	}
	if !strict {
		w.retry(d, p, a, took, free)
		return false
	}
	now := time.Now()
	if !free || d.due.IsZero() {
		d.due = now.Add(p.wait)
	}
	next := d.due
	r := w.record(d, Record{
		Outcome: RecordTried, Status: a.Status, Fault: a.Fault, Reason: a.Reason, Millis: took.Milliseconds(), Time: now, Next: &next, Probe: free,
	})
	w.parts.Recorder.add(r, false, func() {})
	d.tries, d.origin.rounds = nil, p.rounds
	for {
		if w.toShed(d) {
			w.shed(d, a, took)
			return false
		}
		left := time.Until(d.due)
		if left <= 0 || w.mayProbe(min(left, roomEvery)) {
			return true
		}
		if w.stopped.Err() != nil {
			d.lane.giveBack(d)
			return false
		}
	}
}

// mayProbe waits for a while, or until the breaker, if it is open, lets one
// attempt through.
func (w *worker) mayProbe(wait time.Duration) bool {
	if w.breaker.closed() {
		w.sleep(wait)
		return false
	}
	ctx, cancel := context.WithTimeout(w.stopped, wait)
	defer cancel()
	_, _, done, err := w.breaker.turn(ctx)
	if err == nil {
		done()
	}
	return err == nil
}

// retry puts an event on the retry lane, where it waits for its next attempt.
func (w *worker) retry(d *delivery, p plan, a Attempt, took time.Duration, free bool) {
	now := time.Now()
	next := now.Add(p.wait)
	h := w.carry(d)
	h.Set(HeaderRounds, strconv.Itoa(p.rounds))
	waiting, due := broker.RetryWaiting(w.sub.Name, d.origin.sequence), broker.RetryDue(w.sub.Name)
	if d.line != "" {
		waiting, due = broker.RetryWaitingIn(w.sub.Name, d.origin.sequence, d.line), broker.RetryDueIn(w.sub.Name, d.origin.sequence, d.line)
	}
	m := &nats.Msg{Subject: waiting, Header: h, Data: d.body()}
	// While the subscriber is down nothing is fetched but to probe with: there is no
	// time to wait for, and what waits for one costs the server a walk over all
	// cursors when it has come.
	if d.line == "" && a.RetryAfter == 0 && !w.breaker.closed() {
		m.Subject, waiting = due, ""
	} else {
		// The client's option cuts the time to whole seconds, which is early.
		h.Set("Nats-Schedule", "@at "+next.UTC().Format(time.RFC3339Nano))
		h.Set("Nats-Schedule-Target", due)
	}
	switch w.store(d, m) {
	case unstored:
		d.lane.giveBack(d)
		return
	case unwanted:
		w.shed(d, a, took)
		return
	}
	// No fresh events are fetched without room for retries, so this one has
	// some, or is one of the last that were fetched.
	w.retries.add(w.stopped, sizeOf(m))
	if d.line != "" && w.mayWait(d) {
		w.purge(broker.RetryBehind(w.sub.Name, d.origin.sequence, d.line))
	}
	if waiting != "" {
		w.outage.add(waiting)
	}
	w.settle(d, Record{
		Outcome: RecordRetry, Status: a.Status, Fault: a.Fault, Reason: a.Reason,
		Millis: took.Milliseconds(), Time: now, Next: &next, Probe: free,
	})
}

// deadLetter settles an event that is given up for this subscriber. It waits for
// room among the subscriber's dead letters. false means that the event was given
// back: the worker is stopping, or the event is surplus and there is no room.
func (w *worker) deadLetter(d *delivery, cause string, a Attempt, took time.Duration) bool {
	now := time.Now()
	h := w.carry(d)
	h.Set(HeaderHop, strconv.Itoa(d.hop()))
	h.Set(HeaderCause, cause)
	h.Set(HeaderStatus, strconv.Itoa(a.Status))
	h.Set(HeaderReason, url.PathEscape(a.Reason))
	h.Set(HeaderFailedAt, event.FormatTime(now.UTC()))
	h.Set(nats.MsgIdHdr, MsgID(w.sub.Name, w.sub.Created, d.origin.sequence, d.hop()))
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
		w.shed(d, a, took)
		return true
	}
	level := slog.LevelWarn
	if d.surplus {
		level = slog.LevelDebug // thousands of them; they are reported together
	}
	w.log.Log(context.Background(), level, "dead letter", "event", d.event.ID, "type", d.event.Type, "cause", cause, "attempts", d.attempts,
		"status", a.Status, "fault", a.Fault, "reason", a.Reason)
	w.settle(d, Record{
		Outcome: RecordDeadLetter, Cause: cause, Status: a.Status, Fault: a.Fault, Reason: a.Reason,
		Millis: took.Milliseconds(), Time: now,
	})
	return true
}

// shed settles an event that goes for the sake of all: its record is all that
// stays.
func (w *worker) shed(d *delivery, a Attempt, took time.Duration) {
	w.settle(d, Record{
		Outcome: RecordShed, Status: a.Status, Fault: a.Fault, Reason: a.Reason, Millis: took.Milliseconds(), Time: time.Now(),
	})
}

// carry copies an event's headers for a message that stands in for it, on the
// retry lane one hop further on.
func (w *worker) carry(d *delivery) nats.Header {
	h := cleaned(d.header())
	h.Set(HeaderSubscriber, w.sub.Name)
	h.Set(HeaderAdded, Added(w.sub.Created))
	h.Set(HeaderOriginSequence, strconv.FormatUint(d.origin.sequence, 10))
	h.Set(HeaderOriginSubject, d.origin.subject)
	h.Set(HeaderAttempts, strconv.Itoa(d.attempts))
	h.Set(HeaderHop, strconv.Itoa(d.hop()+1))
	h.Set(nats.MsgIdHdr, MsgID(w.sub.Name, w.sub.Created, d.origin.sequence, d.hop()+1))
	return h
}

// cleaned copies headers without the broker's own instructions, which were for the
// message they stood on.
func cleaned(h nats.Header) nats.Header {
	out := make(nats.Header, len(h)+8)
	for name, values := range h {
		if !strings.HasPrefix(name, "Nats-") {
			out[name] = values
		}
	}
	return out
}

// MsgID names a message that stands in for an event, so that the broker keeps it
// once however often it is stored. A subscriber that is deleted and added again
// is another one, with messages of its own.
func MsgID(subscriber string, created time.Time, sequence uint64, hop int) string {
	return fmt.Sprintf("%s-%s-%d-%d", subscriber, Added(created), sequence, hop)
}

// Added tells a subscriber from the one before it of the same name.
func Added(created time.Time) string { return strconv.FormatInt(created.UnixMilli(), 16) }

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
func (w *worker) room(d *delivery, size int64) storing {
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
func (w *worker) store(d *delivery, m *nats.Msg) storing {
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
func (w *worker) patience(d *delivery, wait time.Duration) storing {
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
func (w *worker) dropRetry(d *delivery) {
	name, sequence := w.sub.Name, d.origin.sequence
	subjects := []string{broker.RetryWaiting(name, sequence)}
	if d.line != "" {
		subjects = []string{broker.RetryWaitingIn(name, sequence, d.line), broker.RetryBehind(name, sequence, d.line)}
	}
	w.purge(subjects...)
}

// purge deletes what is on subjects of the retry lane.
func (w *worker) purge(subjects ...string) {
	ctx, cancel := context.WithTimeout(w.gone, 5*time.Second)
	defer cancel()
	s, err := w.js.Stream(ctx, broker.StreamRetry)
	for _, subject := range subjects {
		if err != nil {
			break
		}
		// There is hardly ever something, and a purge asks all cursors of the
		// stream.
		_, err = s.GetLastMsgForSubject(ctx, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			err = nil
		} else if err == nil {
			err = s.Purge(ctx, jetstream.WithPurgeSubject(subject))
		}
	}
	if err != nil {
		w.log.Warn("a stale retry may be delivered", "subject", subjects[0], "error", err)
	}
}

// record fills in what all records of a delivery have.
func (w *worker) record(d *delivery, r Record) Record {
	r.Subscriber, r.Sequence, r.Hop = w.sub.Name, d.origin.sequence, d.hop()
	r.ID, r.Subject, r.Attempts, r.Earlier = d.event.ID, d.origin.subject, d.attempts, d.tries
	return r
}

// settle records how a delivery ended and then acks it. It is the only way to
// an ack, but for what the subscriber was never meant to get.
func (w *worker) settle(d *delivery, r Record) {
	if r.Outcome != RecordRetry && r.Outcome != RecordBehind && r.Outcome != RecordLocked && w.mayWait(d) {
		w.dropRetry(d)
	}
	r = w.record(d, r)
	// Where order is wanted, the next one of the line waits for it; where events are
	// lent, who asks for them or settles them does.
	w.parts.Recorder.add(r, w.gate != nil || d.done != nil, func() {
		w.metrics.settled[r.Outcome].Inc()
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
		if p, ok := r.progress(); ok && d.broken == nil {
			w.settled.put(r.Sequence, p)
		}
		// And before the same can come another way.
		switch r.Outcome {
		case RecordRetry:
			w.moved(d, waiting)
		case RecordBehind:
			w.moved(d, behind)
		default:
			w.ended(d)
		}
		d.lane.settled(d)
	})
}
