package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
)

// inPlace is the wait before the one repetition that is made on the spot: long
// enough for a connection that was just closed, short enough to hold a slot.
// Whatever takes longer than quick is not repeated on the spot.
const (
	inPlace = 150 * time.Millisecond
	quick   = time.Second
)

// work brings what a slot has taken to the subscriber: one event or a batch.
func (w *worker) work(ds []*delivery) {
	defer func() {
		for _, d := range ds {
			d.endProbe()
		}
	}()
	ready := make([]*delivery, 0, len(ds))
	for _, d := range ds {
		if w.prepare(d) {
			ready = append(ready, d)
		}
	}
	if w.lender != nil {
		for _, d := range ready {
			w.lend(d)
		}
		return
	}
	for len(ready) > 0 {
		n := w.fit(ready)
		w.send(ready[:n])
		ready = ready[n:]
	}
}

// prepare makes an event ready to be sent, or settles it or gives it back.
func (w *worker) prepare(d *delivery) bool {
	if !w.onDisk(d) {
		d.lane.giveBack(d)
		return false
	}
	if w.settledElsewhere(d) {
		d.lane.settled(d)
		w.ended(d)
		return false
	}
	if w.lender != nil && w.returned(d) {
		return false
	}
	e, err := d.decode()
	if err = errors.Join(d.broken, err); err != nil {
		d.event = &event.Event{ID: d.get("ce-id")}
		w.deadLetter(d, causeUndecodable, Attempt{Reason: "not an event of ours: " + err.Error()}, 0)
		return false
	}
	d.event, d.out = e, e
	if !w.wants(d) {
		w.skip(d)
		return false
	}
	if age := w.age(d); w.tooOld(age) {
		w.deadLetter(d, causeExpired, Attempt{Reason: tooOldFor(age, w.sub.Config.Retry.MaxAge)}, 0)
		return false
	}
	if w.sub.Filter != nil {
		wanted, err := guarded(func() (bool, error) { return w.sub.Filter(e) })
		switch {
		case err != nil:
			w.deadLetter(d, causeFilter, Attempt{Reason: "the filter fails: " + err.Error()}, 0)
			return false
		case !wanted:
			w.settle(d, Record{Outcome: RecordFiltered, Attempts: d.attempts, Time: time.Now()})
			return false
		}
	}
	if w.sub.Transform != nil {
		if d.out, err = guarded(func() (*event.Event, error) { return w.sub.Transform(e) }); err != nil {
			w.deadLetter(d, causeTransform, Attempt{Reason: "the transform fails: " + err.Error()}, 0)
			return false
		}
	}
	return true
}

// settledElsewhere says whether another replica settled what comes again and
// died before its ack arrived. Without a second look the books would have it
// twice.
func (w *worker) settledElsewhere(d *delivery) bool {
	if !d.repeat || d.broken != nil || w.parts.Broker.Embedded() {
		return false
	}
	ctx, cancel := context.WithTimeout(w.stopped, 5*time.Second)
	defer cancel()
	if err := w.parts.Recorder.refresh(ctx); err != nil {
		w.log.Debug("records of other replicas not read", "error", err)
	}
	p, ok := w.parts.Recorder.recall(w.sub.Name, d.origin.sequence, w.sub.Created)
	return ok && p.passed(d.hop())
}

// guarded runs what an operator wrote: whatever it does costs the one event.
func guarded[T any](f func() (T, error)) (v T, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return f()
}

// wants says whether an event is meant for the subscriber. It is asked for those
// that are on the disk: until then another event could take the place.
func (w *worker) wants(d *delivery) bool {
	return w.sub.Wants == nil || d.lane.stream != broker.StreamEvents || w.sub.Wants(d.subject(), d.origin.sequence)
}

// skip lets an event go that is not meant for the subscriber: it was accepted
// before or after its subject was subscribed to.
func (w *worker) skip(d *delivery) {
	w.settled.put(d.origin.sequence, progress{final: true})
	d.lane.settled(d)
	w.ended(d)
}

// onDisk waits until the event itself is on the disk. Until then a power cut
// can take it back and give its place in the stream to another event, which
// would then count as settled. false means the worker is stopping, or nobody
// knows.
func (w *worker) onDisk(d *delivery) bool {
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

// fit says how many of the events fit into one attempt.
func (w *worker) fit(ds []*delivery) int {
	most := int64(w.sub.Config.Limits.Batch.Bytes)
	size := int64(0)
	for i, d := range ds {
		// Data that is not JSON grows by a third.
		size += int64(len(d.out.Data))*4/3 + int64(d.out.HeaderSize())
		if i > 0 && size > most {
			ds = ds[:i]
			break
		}
	}
	p, limited := w.sub.Sender.(Packer)
	if !limited || len(ds) < 2 {
		return len(ds)
	}
	return min(max(p.Pack(outs(ds)), 1), len(ds))
}

// outs gives the events as they go out.
func outs(ds []*delivery) []*event.Event {
	events := make([]*event.Event, len(ds))
	for i, d := range ds {
		events[i] = d.out
	}
	return events
}

// send makes an attempt, or some, and settles.
func (w *worker) send(ds []*delivery) {
	for try := 0; ; try++ {
		p, done, ok := w.permit(ds)
		if !ok {
			giveBack(ds)
			return
		}
		for _, d := range ds {
			d.attempts++
		}
		a, took := w.attempt(ds, p)
		parked := p.report(a)
		done()
		switch {
		case a.Outcome == Aborted:
			giveBack(ds)
			return
		case a.Outcome == Delivered:
			for _, d := range ds {
				w.delivered(d, a, took)
			}
			return
		case a.Outcome == Rejected && len(ds) > 1 && !parked:
			// Which of them is not wanted shows one at a time.
			for i, d := range ds {
				d.note(a, took)
				w.send(ds[i : i+1])
			}
			return
		}
		if a.Outcome == Failed && try == 0 && !p.probe && took < quick && a.RetryAfter == 0 && w.breaker.closed() && w.sleep(inPlace) {
			for _, d := range ds {
				d.note(a, took)
			}
			continue
		}
		again := false
		for _, d := range ds {
			again = w.failed(d, a, took, p.probe || parked) || again
		}
		if !again {
			return
		}
		// In strict order the one event stays in hand.
	}
}

func giveBack(ds []*delivery) {
	for _, d := range ds {
		d.lane.giveBack(d)
	}
}

// note keeps what is known of an attempt for the record.
func (d *delivery) note(a Attempt, took time.Duration) {
	d.tries = append(d.tries, Try{Time: time.Now(), Status: a.Status, Fault: a.Fault, Reason: a.Reason, Millis: took.Milliseconds()})
}

// permit waits for the leave to make one attempt, or says that the events are to
// be given back. The caller calls done after the attempt.
func (w *worker) permit(ds []*delivery) (p permit, done func(), ok bool) {
	w.limit()
	if err := w.limiter.Wait(w.stopped); err != nil {
		return p, nil, false
	}
	if w.gate == nil {
		leave, err := w.breaker.enter(w.stopped)
		if err != nil {
			return p, nil, false
		}
		if p, ok = w.breaker.allow(ds[0].probed != nil); !ok {
			leave()
		}
		return p, leave, ok
	}
	// What stands in a line keeps its place while the subscriber is down.
	for {
		running, resume, err := w.pause.wait(w.stopped)
		if err != nil {
			return p, nil, false
		}
		_, probing, turned, err := w.breaker.turn(running)
		resume()
		if err != nil {
			if w.stopped.Err() != nil {
				return p, nil, false
			}
			continue // paused
		}
		leave, err := w.breaker.enter(w.stopped)
		if err != nil {
			turned()
			return p, nil, false
		}
		if p, ok = w.breaker.allow(probing); ok {
			return p, func() { leave(); turned() }, true
		}
		leave()
		turned()
		if !w.sleep(time.Millisecond) {
			return p, nil, false
		}
	}
}

// limit sets how many attempts may begin: as many as the operator lets, and no more
// than the destination has asked for.
func (w *worker) limit() {
	s, ok := w.sub.Sender.(Limited)
	if !ok {
		return
	}
	r := float64(w.sub.Config.Limits.Rate)
	if asked := s.Rate(); asked > 0 && (r == 0 || asked < r) {
		r = asked
	}
	if limit := limitOf(r); limit != w.limiter.Limit() {
		w.limiter.SetBurst(burstOf(limit))
		w.limiter.SetLimit(limit)
	}
}

// attempt makes one try under a deadline.
func (w *worker) attempt(ds []*delivery, p permit) (Attempt, time.Duration) {
	w.metrics.inFlight.Inc()
	defer w.metrics.inFlight.Dec()
	ctx, cancel := context.WithTimeout(w.abandoned, w.sub.Config.Limits.Timeout.Std())
	defer cancel()
	start := time.Now()
	a := Attempt{Outcome: Failed, Fault: FaultServer, Reason: "panic in the sender"}
	func() {
		defer func() {
			if r := recover(); r != nil {
				w.log.Error("panic in a sender", "panic", fmt.Sprint(r))
			}
		}()
		if w.sub.Config.Limits.Batch.Events == 0 {
			a = w.sub.Sender.Send(ctx, ds[0].out)
			return
		}
		a = w.sub.Sender.(BatchSender).SendBatch(ctx, outs(ds))
	}()
	took := time.Since(start)
	w.metrics.attempted(a.Outcome, took)
	if w.log.Enabled(ctx, slog.LevelDebug) {
		w.log.Debug("delivery attempted", "event", ds[0].event.ID, "type", ds[0].event.Type, "events", len(ds), "probe", p.probe,
			"outcome", a.Outcome, "status", a.Status, "fault", a.Fault, "reason", a.Reason, "took", took)
	}
	return a, took
}

// clock is when the process started, by the wall and by the monotonic clock.
var clock = time.Now()

// steady is the time by a clock that nobody moves while the process runs.
func steady() time.Time { return clock.Add(time.Since(clock)) }

// age is how long ago an event was accepted, or sent out anew; 0 if it does not
// say.
func (w *worker) age(d *delivery) time.Duration {
	t := d.accepted()
	if text := d.get(HeaderAnew); text != "" {
		t, _ = event.ParseTime(text) // or it does not say
	}
	if t.IsZero() {
		return 0
	}
	return max(0, steady().Sub(t))
}

// accepted is when the event was, the zero time if it does not say.
func (d *delivery) accepted() time.Time {
	if !d.dated {
		d.dated = true
		d.date, _ = event.ParseTime(d.event.Get(event.ExtRecordedTime)) // or it does not say
	}
	return d.date
}

func (w *worker) tooOld(age time.Duration) bool {
	most := w.sub.Config.Retry.MaxAge.Std()
	return most > 0 && age > most
}

func tooOldFor(age time.Duration, most Duration) string {
	return fmt.Sprintf("accepted %s ago, and retry.maxAge is %s", age.Round(time.Second), most)
}
