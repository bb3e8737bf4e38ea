package complete

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/record"
)

// leaseKey names the lease of the one router that completes.
const leaseKey = "complete"

const (
	// asks is how many rows of one source are read at once. The budget is what bounds
	// them; this is for one that is slow to answer.
	asks = 4
	// workers is how many lines are worked on at once.
	workers = 64
	// The waits between two tries to read, or to store, grow from least to most.
	leastWait = time.Second
	mostWait  = 30 * time.Second
	// believe is after how long a row that is not there is believed to be gone, of
	// an event that was sent before its transaction was committed: one lasts two
	// minutes at most (learn.microsoft.com, "Analyze plug-in performance" and
	// "Scalable customization design"; read 2026-11).
	believe = 2 * time.Minute
	// grace is how long what is being stored may go on when the program stops.
	grace = 5 * time.Second
)

// line is the events of one record that are kept, in order.
type line struct {
	queue []entry
	busy  bool
	next  time.Time // not before
	tries int
	// reason is why the head has not been completed so far, if it is its row's own.
	reason string

	// row is as it was when read, zero for never.
	row  record.Row
	read time.Time
}

// asking is how reading a source goes.
type asking struct {
	under    int // requests under way
	next     time.Time
	failures int
	kind     string
	reason   string
	since    time.Time
	told     bool // people were
}

// worker completes while it has the lease.
type worker struct {
	c    *Completer
	kick chan struct{} // holds at most one

	mu      sync.Mutex // guards all below, and what is in it
	lines   map[string]*line
	order   []*line // by arrival
	busy    int
	sources map[string]*asking
}

// run completes whenever the lease can be had, until ctx ends.
func (c *Completer) run(ctx context.Context) {
	for ctx.Err() == nil {
		l, err := c.parts.Broker.Lease(ctx, leaseKey, c.parts.Log)
		if err != nil {
			return
		}
		if err := c.hold(ctx, l); err != nil && ctx.Err() == nil {
			c.parts.Log.Debug("events are not completed, trying again", "error", err)
			pause(ctx, c.least)
		}
		l.Release()
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(max(0, d))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// hold completes until ctx ends, the lease is lost, or the store was opened again.
func (c *Completer) hold(ctx context.Context, l *broker.Lease) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.Context(), cancel)()
	epoch := c.parts.Broker.Epoch()
	w := &worker{c: c, kick: make(chan struct{}, 1), lines: map[string]*line{}, sources: map[string]*asking{}}
	cons, err := c.js.OrderedConsumer(ctx, broker.StreamHeld, jetstream.OrderedConsumerConfig{HeadersOnly: true})
	if err != nil {
		return err
	}
	messages, err := cons.Messages(jetstream.PullMaxMessages(512))
	if err != nil {
		return err
	}
	c.work.Store(w)
	defer w.leave()
	defer c.work.Store(nil)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	defer messages.Stop()
	failed := make(chan error, 1)
	all.Go(func() {
		for {
			m, err := messages.Next(jetstream.NextContext(ctx))
			if err == nil {
				var meta *jetstream.MsgMetadata
				if meta, err = m.Metadata(); err == nil {
					w.add(entryOf(meta.Sequence.Stream, m.Subject(), m.Headers()))
					continue
				}
			}
			failed <- err
			return
		}
	})
	look := time.NewTicker(leastWait)
	defer look.Stop()
	for {
		now := time.Now()
		todo, ask, again := w.pick(now)
		if todo != nil {
			all.Go(func() { w.do(ctx, todo, ask) })
			continue
		}
		t := time.NewTimer(min(max(0, again.Sub(now)), time.Minute))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case err := <-failed:
			t.Stop()
			return err
		case <-w.kick:
		case <-t.C:
		case <-look.C:
			if c.parts.Broker.Epoch() != epoch {
				t.Stop()
				return errors.New("the store was opened again")
			}
			l.Note(w.note())
		}
		t.Stop()
	}
}

// leave counts what is still kept as somebody else's.
func (w *worker) leave() {
	for subject, l := range w.lines {
		w.c.parts.Metrics.hold(broker.HeldSource(subject), -len(l.queue))
	}
}

// wake has the loop look again.
func (w *worker) wake() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

func (w *worker) add(e entry) {
	w.mu.Lock()
	l := w.lines[e.subject]
	if l == nil {
		l = &line{}
		w.lines[e.subject] = l
		w.order = append(w.order, l)
	}
	if n := len(l.queue); n == 0 || l.queue[n-1].sequence < e.sequence {
		l.queue = append(l.queue, e)
	}
	w.c.parts.Metrics.hold(e.source(), 1)
	w.mu.Unlock()
	w.wake()
}

// asking gives that of a source. The caller holds mu.
func (w *worker) asking(name string) *asking {
	a := w.sources[name]
	if a == nil {
		a = &asking{}
		w.sources[name] = a
	}
	return a
}

// due is when the row of an entry may be read.
func (s *source) due(e *entry) time.Time {
	if e.uncommitted {
		return e.since.Add(s.settle)
	}
	return e.since
}

// pick gives the next line to work on, and whether its row is to be read; none: look
// again at a time.
func (w *worker) pick(now time.Time) (todo *line, ask bool, again time.Time) {
	again = now.Add(time.Hour)
	sooner := func(t time.Time) {
		if t.Before(again) {
			again = t
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy >= workers {
		return nil, false, again // the next that is done wakes
	}
	for _, l := range w.order {
		if l.busy {
			continue
		}
		e := &l.queue[0]
		if l.next.After(now) {
			sooner(l.next)
			continue
		}
		s := w.c.source(e.source())
		if e.why == forCompletion && s != nil && now.Before(e.until) && !l.readFor(s, e) {
			a := w.asking(s.Name)
			sooner(e.until)
			switch due := s.due(e); {
			case due.After(now):
				sooner(due)
				continue
			case a.next.After(now):
				sooner(a.next)
				continue
			case a.under >= asks:
				continue
			}
			a.under++
			ask = true
		}
		l.busy = true
		w.busy++
		return l, ask, again
	}
	return nil, false, again
}

// readFor says whether the row was read late enough for an entry.
func (l *line) readFor(s *source, e *entry) bool {
	return !l.read.IsZero() && !l.read.Before(s.due(e))
}

// do works on the head of a line.
func (w *worker) do(ctx context.Context, l *line, ask bool) {
	w.mu.Lock()
	e := l.queue[0]
	w.mu.Unlock()
	gone, err := w.settle(ctx, l, &e, ask)
	w.mu.Lock()
	if ask {
		w.asking(e.source()).under--
	}
	l.busy = false
	w.busy--
	switch {
	case gone:
		l.queue = l.queue[1:]
		l.next, l.tries, l.reason = time.Time{}, 0, ""
		w.c.parts.Metrics.hold(e.source(), -1)
		if len(l.queue) == 0 {
			delete(w.lines, e.subject)
			w.order = slices.DeleteFunc(w.order, func(o *line) bool { return o == l })
		}
	case err != nil:
		l.tries++
		l.next = time.Now().Add(w.c.backoff(l.tries))
	}
	w.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		w.c.parts.Log.Warn("an event that was kept is not published yet", "source", e.source(), "sequence", e.sequence, "error", err)
	}
	w.wake()
}

func (c *Completer) backoff(tries int) time.Duration {
	return min(mostWait, c.least<<min(tries-1, 20))
}

// settle does for an entry what can be done now. gone says that it is not in HELD any
// more; an error that it is to be tried again. Neither: its line or its source knows
// when.
func (w *worker) settle(ctx context.Context, l *line, e *entry, ask bool) (gone bool, _ error) {
	c := w.c
	m, err := c.held.GetMsg(ctx, e.sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && m.Subject != e.subject {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	s := c.source(e.source())
	o, r, err := decode(m)
	result := "behind"
	switch {
	case err != nil:
		// It cannot be what was kept; somebody has to look at it.
		r = event.Result{Raw: m.Data, Fault: event.Faultf(event.FaultNotEvent, "it was kept to be completed, and cannot be read any more: %v", err)}
		o.Source, o.Accepted, result = e.source(), time.Now(), "quarantined"
	case e.why != forCompletion:
	case s == nil:
		result = reasonOff
	default:
		if ask {
			w.read(ctx, s, l, e, &r)
		}
		if result = w.complete(s, l, e, &r); result == "" {
			return false, nil
		}
	}
	if e.why == forCompletion && r.Event != nil && result != resultCompleted {
		r.Event = incomplete(r.Event, result)
	}
	storing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })()
	statuses, err := c.parts.Publish(storing, o, []event.Result{r})
	if err != nil {
		return false, err
	}
	// Only now: it is on disk elsewhere.
	if err := c.held.DeleteMsg(storing, e.sequence); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, fmt.Errorf("take it out of %s: %w", broker.StreamHeld, err)
	}
	if statuses[0] == publish.Duplicate {
		result = "duplicate"
	}
	c.parts.Metrics.event(o.Source, result)
	c.parts.Metrics.waited(o.Source, time.Since(e.since))
	return true, nil
}

// resultCompleted is that of an event which is whole now. Others are reasons.
const resultCompleted = "completed"

// complete puts the line's row into an event, and says how that went; empty: it is
// not known yet.
func (w *worker) complete(s *source, l *line, e *entry, r *event.Result) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	over := !now.Before(e.until)
	if !l.readFor(s, e) {
		if !over {
			return ""
		}
		if l.reason != "" {
			return l.reason
		}
		return reasonLate
	}
	later := func(reason string) string {
		if over {
			return reason
		}
		// Read it again, after a while.
		l.read, l.reason, l.tries = time.Time{}, reason, l.tries+1
		l.next = now.Add(w.c.backoff(l.tries))
		if l.next.After(e.until) {
			l.next = e.until
		}
		return ""
	}
	switch {
	case l.row.Deleted && e.uncommitted && now.Before(e.since.Add(believe)):
		return later(reasonGone)
	case l.row.Deleted:
		return reasonGone
	case e.uncommitted && !l.row.Modified.IsZero() && l.row.Modified.Before(r.Event.Time.Add(-s.old)):
		return later(reasonOld)
	}
	shape := &record.Shape{Kind: event.KindDataverse, Source: s.Name, Table: r.Scope}
	whole, fault := shape.Complete(r.Event, l.row, l.read)
	switch {
	case fault != nil:
		w.c.parts.Log.Warn("a row that was read makes no event", "source", s.Name, "record", r.Event.Subject, "fault", fault)
		return reasonUnread
	case !w.c.fits(whole):
		return reasonLarge
	}
	r.Event = whole
	return resultCompleted
}

// read asks for the row of an entry.
func (w *worker) read(ctx context.Context, s *source, l *line, e *entry, r *event.Result) {
	reading, cancel := context.WithDeadline(ctx, e.until)
	defer cancel()
	began := time.Now() // the row is as it was then, or newer
	row, err := s.Read(reading, r.Scope, r.Event.Subject)
	at := time.Now()
	if ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	a := w.asking(s.Name)
	throttled, isThrottled := errors.AsType[*poll.Throttled](err)
	fault, isFault := errors.AsType[*poll.Fault](err)
	var kind string
	switch {
	case err == nil:
		l.row, l.read, l.reason = row, began, ""
		w.c.parts.Metrics.request(s.Name, map[bool]string{true: "gone", false: "row"}[row.Deleted])
	case reading.Err() != nil:
		// Its time was over while it waited for the budget, or for an answer.
		kind = "budget"
		if a.kind != "" {
			kind = a.kind
		}
	case isThrottled:
		kind = "throttled"
		a.next = at.Add(max(throttled.After, w.c.least))
	case isFault && (fault.Kind == poll.Answer || fault.Kind == poll.Configuration):
		// This row's own trouble, and perhaps that of others; they find out.
		kind, l.reason = string(fault.Kind), reasonUnread
		l.tries++
		l.next = at.Add(w.c.backoff(l.tries))
		if l.next.After(e.until) {
			l.next = e.until
		}
	default:
		kind = string(poll.Unavailable)
		if isFault {
			kind = string(fault.Kind)
		}
		a.next = at.Add(w.c.backoff(a.failures + 1))
	}
	tell, well := false, false
	if err == nil {
		well = a.told
		*a = asking{under: a.under}
	} else {
		if kind != "budget" && reading.Err() == nil {
			w.c.parts.Metrics.request(s.Name, kind)
		}
		if a.failures++; a.since.IsZero() {
			a.since = at
		}
		a.kind, a.reason = kind, bounded(err.Error())
		if kind == "budget" {
			a.reason = "more rows are to be read than the budget lets; raise complete.budget or poll.budget"
		}
		// What passes by itself is told when it lasts.
		passes := kind == string(poll.Unavailable) || kind == "throttled"
		tell = !a.told && (!passes || a.failures >= 3)
		a.told = a.told || tell
	}
	reason := a.reason
	w.mu.Unlock()
	switch {
	case tell:
		w.c.parts.Report("source.completing-failing", s.Name, map[string]any{"kind": kind, "reason": reason})
	case well:
		w.c.parts.Report("source.completing", s.Name, nil)
	}
}

func bounded(text string) string { return text[:min(len(text), poll.MaxReason)] }
