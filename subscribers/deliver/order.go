package deliver

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
)

// What the gate wants done is done here, and so is everything else that moves
// events about on the retry lane.

// do does what the gate says.
func (w *worker) do(t todo) {
	for _, d := range t.send {
		d.lane.enqueue(d)
	}
	if w.stopped.Err() != nil {
		giveBack(t.put)
		return // what is on the retry lane is found there by the next one
	}
	for _, d := range t.put {
		d.lane.unqueue(1)
		w.sending.Go(func() { w.putBehind(d) })
	}
	if len(t.bring) > 0 {
		w.sending.Go(func() { w.bring(t.line, t.bring) })
	}
}

// moved notes that d has a place on the retry lane now.
func (w *worker) moved(d *delivery, at spot) {
	if w.gate != nil && d.line != "" {
		w.do(w.gate.retried(d, at))
	}
}

// ended notes that d is settled for good.
func (w *worker) ended(d *delivery) {
	if w.gate != nil && d.line != "" {
		w.do(w.gate.ended(d.line, d.origin.sequence))
	}
}

// putBehind puts an event on the retry lane that has to wait for others of its
// line, so that it holds no place in this process's hands.
func (w *worker) putBehind(d *delivery) {
	if !w.onDisk(d) {
		d.lane.giveBack(d)
		return
	}
	var err error
	if d.event, err = d.decode(); err != nil {
		// It does not need to wait for anybody.
		d.event = &event.Event{ID: d.get("ce-id")}
		w.deadLetter(d, causeUndecodable, Attempt{Reason: "not an event of ours: " + err.Error()}, 0)
		return
	}
	if !w.wants(d) {
		w.skip(d)
		return
	}
	h := w.carry(d)
	h.Set(HeaderRounds, strconv.Itoa(d.origin.rounds))
	m := &nats.Msg{Subject: broker.RetryBehind(w.sub.Name, d.origin.sequence, d.line), Header: h, Data: d.body()}
	switch w.store(d, m) {
	case unstored:
		d.lane.giveBack(d)
		return
	case unwanted:
		w.shed(d, Attempt{}, 0)
		return
	}
	w.retries.add(w.stopped, sizeOf(m))
	if w.mayWait(d) {
		w.purge(broker.RetryWaitingIn(w.sub.Name, d.origin.sequence, d.line))
	}
	w.settle(d, Record{Outcome: RecordBehind, Time: time.Now()})
}

// bring brings events of a line back that waited behind others.
func (w *worker) bring(line string, sequences []uint64) {
	for _, sequence := range sequences {
		from, to := broker.RetryBehind(w.sub.Name, sequence, line), broker.RetryDueIn(w.sub.Name, sequence, line)
		found, ok := w.haulUntilDone(from, to)
		if !ok {
			return // the next one finds it there
		}
		if !found {
			w.log.Error("an event that waited behind others is gone from the retry lane; somebody deleted it", "event", sequence)
			w.do(w.gate.ended(line, sequence))
		}
	}
}

// haulUntilDone is haul until the broker takes it. ok is false when the worker
// stops before.
func (w *worker) haulUntilDone(from, to string) (found, ok bool) {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		found, err := w.haul(from, to)
		if err == nil {
			return found, true
		}
		if w.stopped.Err() != nil {
			return false, false
		}
		w.log.Warn("not moved on the retry lane, trying again", "subject", from, "error", err, "in", wait)
		if !w.sleep(wait) {
			return false, false
		}
	}
}

// haul moves a message of the retry lane to another subject of it. Whoever dies
// in between leaves two; the worker takes the second for what it is.
func (w *worker) haul(from, to string) (found bool, err error) {
	ctx, cancel := context.WithTimeout(w.gone, 10*time.Second)
	defer cancel()
	s, err := w.js.Stream(ctx, broker.StreamRetry)
	if err != nil {
		return false, err
	}
	m, err := s.GetLastMsgForSubject(ctx, from)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	h := maps.Clone(m.Header)
	id := h.Get(nats.MsgIdHdr)
	for k := range h {
		if strings.HasPrefix(k, "Nats-") {
			delete(h, k)
		}
	}
	// Another one than that of the message itself, or it would be a duplicate.
	h.Set(nats.MsgIdHdr, id+"-hauled-"+strconv.FormatUint(m.Sequence, 10))
	if err := w.parts.Broker.Store(ctx, w.js, &nats.Msg{Subject: to, Header: h, Data: m.Data}); err != nil {
		return false, err
	}
	return true, s.DeleteMsg(ctx, m.Sequence)
}

// sortRetries tells the gate what is on the retry lane. What was put there when
// another order was wanted, or none, comes as soon as it can and stands in no
// line.
func (w *worker) sortRetries(ctx context.Context) error {
	name := w.sub.Name
	for _, part := range []struct {
		pattern, prefix string
		at              spot
	}{
		{broker.RetryBehindAll(name), strings.TrimSuffix(broker.RetryBehindAll(name), ">"), behind},
		{broker.RetryWaitingAll(name), strings.TrimSuffix(broker.RetryWaitingAll(name), ">"), waiting},
		{broker.RetryDueAll(name), strings.TrimSuffix(broker.RetryDueAll(name), ">"), waiting},
	} {
		if w.gate == nil && part.at != behind {
			continue // they come by themselves
		}
		counts, err := w.parts.Broker.SubjectCounts(ctx, broker.StreamRetry, part.pattern)
		if err != nil {
			return err
		}
		var strange errgroup.Group
		strange.SetLimit(haulers)
		var lined []stand
		for subject := range counts {
			number, line, in := strings.Cut(strings.TrimPrefix(subject, part.prefix), ".")
			sequence, err := strconv.ParseUint(number, 10, 64)
			switch {
			case err != nil || part.at == waiting && !in:
			case w.gate != nil && (line == strictLine) == (w.sub.Config.Ordering == Strict):
				lined = append(lined, stand{sequence, line})
			case part.pattern != broker.RetryDueAll(name):
				strange.Go(func() error {
					_, err := w.haul(subject, broker.RetryDue(name))
					return err
				})
			}
		}
		// In order, so that each is put at the end of its line: a hundred thousand
		// may stand in one.
		slices.SortFunc(lined, func(a, b stand) int { return cmp.Compare(a.sequence, b.sequence) })
		for _, p := range lined {
			w.gate.known(p.line, p.sequence, part.at)
		}
		if err := strange.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// stand is where an event stands.
type stand struct {
	sequence uint64
	line     string
}

// haulers is how many messages are moved at once: they share the sync.
const haulers = 32

// outage remembers what was put on the retry lane while the subscriber was
// getting worse or down, so that it need not wait there when it is back.
type outage struct {
	mu       sync.Mutex // guards subjects
	subjects []string
}

// outageMost bounds what is remembered; what fails before that was likely in
// some other trouble and comes at its own time.
const outageMost = 4096

func (o *outage) add(subject string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.subjects) == outageMost {
		o.subjects = append(o.subjects[:0], o.subjects[outageMost/2:]...)
	}
	o.subjects = append(o.subjects, subject)
}

func (o *outage) take() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.subjects
	o.subjects = nil
	return all
}

// hasten lets what failed in an outage go now that the subscriber is back.
func (w *worker) hasten() {
	prefix := strings.TrimSuffix(broker.RetryWaitingAll(w.sub.Name), ">")
	var g errgroup.Group
	g.SetLimit(haulers)
	for _, from := range w.outage.take() {
		if w.stopped.Err() != nil {
			break
		}
		to := broker.RetryDue(w.sub.Name)
		if _, line, ok := strings.Cut(strings.TrimPrefix(from, prefix), "."); ok && line != "" {
			to += "." + strings.TrimPrefix(from, prefix)
		}
		g.Go(func() error {
			if _, err := w.haul(from, to); err != nil && w.stopped.Err() == nil {
				w.log.Debug("a retry waits for its time although the subscriber is back", "subject", from, "error", err)
			}
			return nil
		})
	}
	_ = g.Wait() // nothing answers an error
}
