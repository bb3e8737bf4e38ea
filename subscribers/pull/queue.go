package pull

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

const (
	// idleAfter is how long events are still fetched after the last receiver went:
	// one that asks again at once finds them ready.
	idleAfter = 2 * time.Second
	// gatherFor is how long a receiver that has one event waits for another, and
	// gatherMost for all it asked for: events are handed out a few milliseconds
	// after each other, and an answer must not be late.
	gatherFor  = 5 * time.Millisecond
	gatherMost = 25 * time.Millisecond
	// lockWithin is how long the broker may take to store locks before a receiver is
	// told to come back.
	lockWithin = 15 * time.Second
	// maxReceivers that wait at once in this process for one subscriber: each holds
	// a connection and some memory.
	maxReceivers = 2000
)

// Errors of a receiver that is not served.
var (
	errStopping = errors.New("stopping")
	errCrowded  = errors.New("too many receivers wait")
	errStalled  = errors.New("the broker does not store the locks")
)

// Item is an event that a receiver holds.
type Item struct {
	Event *event.Event
	deliver.Lock
}

// queue brings the events of one subscriber and its receivers together. It is the
// subscriber's Sender.
type queue struct {
	server *Server
	name   string
	cfg    Config
	door   Door

	closed chan struct{}

	mu      sync.Mutex // guards all below
	worker  *deliver.Worker
	waiting list.List // of *receiver, who came first first
	offers  list.List // of *offer, while nobody waits
	count   int       // of receivers
	idle    bool      // no events are fetched
	timer   *time.Timer
	shut    bool
}

// receiver is one call that waits for events.
type receiver struct {
	q    *queue
	want int           // how many more; 0 once it takes no more
	in   *list.Element // of waiting; nil when it is not there
	news chan struct{} // holds one token when something below has changed

	// Guarded by q.mu.
	promised int // claimed, and not locked yet
	items    []Item
	gone     bool // it will not look again
}

// offer is an event that waits for a receiver.
type offer struct {
	e     *event.Event
	taken chan *receiver // gets one, nil for nobody
}

func newQueue(s *Server, name string, cfg Config, door Door) *queue {
	return &queue{server: s, name: name, cfg: cfg, door: door, closed: make(chan struct{}), idle: true}
}

// Send is not how events go out; see Offer.
func (q *queue) Send(context.Context, *event.Event) deliver.Attempt {
	return deliver.Attempt{Outcome: deliver.Aborted, Reason: "its receivers fetch events"}
}

// Close lets go of all receivers.
func (q *queue) Close() {
	q.server.remove(q)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.shut {
		return
	}
	q.shut = true
	if q.timer != nil {
		q.timer.Stop()
	}
	close(q.closed)
	q.letGo()
}

// Terms are for how long an event is lent, and how often at most.
func (q *queue) Terms() (lock time.Duration, most int) {
	return q.cfg.LockDuration.Std(), q.cfg.MaxDeliveryCount
}

// Serve is told by whom events are brought.
func (q *queue) Serve(w *deliver.Worker) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.worker = w
	w.Wanted(!q.idle)
}

func (q *queue) serving() *deliver.Worker {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.worker
}

// Offer waits for a receiver.
func (q *queue) Offer(ctx context.Context, e *event.Event) (handed func(*deliver.Lock)) {
	q.mu.Lock()
	if q.idle || q.shut {
		q.mu.Unlock()
		return nil
	}
	if first := q.waiting.Front(); first != nil {
		r := first.Value.(*receiver)
		r.promise()
		q.mu.Unlock()
		return r.receives(e)
	}
	o := &offer{e, make(chan *receiver, 1)}
	at := q.offers.PushBack(o)
	q.mu.Unlock()
	select {
	case r := <-o.taken:
		if r == nil {
			return nil
		}
		return r.receives(e)
	case <-ctx.Done():
	}
	q.mu.Lock()
	q.offers.Remove(at) // nothing happens to one that was taken
	q.mu.Unlock()
	select {
	case r := <-o.taken:
		if r != nil {
			return r.receives(e) // whatever becomes of it, r is told
		}
	default:
	}
	return nil
}

// promise counts an event that r is to get. The caller holds mu.
func (r *receiver) promise() {
	r.promised++
	if r.want--; r.want == 0 {
		r.leave()
	}
	r.tell()
}

// leave takes r from those that wait. The caller holds mu.
func (r *receiver) leave() {
	r.want = 0
	if r.in == nil {
		return
	}
	r.q.waiting.Remove(r.in)
	r.in = nil
}

func (r *receiver) tell() {
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// receives gives what is called when the event is locked for r, or is not.
func (r *receiver) receives(e *event.Event) func(*deliver.Lock) {
	return func(l *deliver.Lock) {
		r.q.mu.Lock()
		r.promised--
		gone := r.gone
		if l != nil && !gone {
			r.items = append(r.items, Item{e, *l})
		}
		r.q.mu.Unlock()
		r.tell()
		if l != nil && gone {
			go r.q.release(*l)
		}
	}
}

// release gives an event back that its receiver never saw.
func (q *queue) release(l deliver.Lock) {
	w := q.serving()
	if w == nil {
		return // it runs out
	}
	ctx, cancel := context.WithTimeout(context.Background(), settleWithin)
	defer cancel()
	if err := w.EndLock(ctx, l.Token, deliver.Release, 0); err != nil {
		q.server.log.Debug("an event that its receiver never saw waits until its lock runs out", "subscriber", q.name, "error", err)
	}
}

// join makes r wait. The caller does not hold mu.
func (q *queue) join(n int) (*receiver, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.shut:
		return nil, errStopping
	case q.count >= maxReceivers:
		return nil, errCrowded
	}
	r := &receiver{q: q, want: n, news: make(chan struct{}, 1)}
	q.count++
	q.server.metrics.waiting.WithLabelValues(q.name).Inc()
	if q.timer != nil {
		q.timer.Stop()
	}
	if q.idle {
		q.idle = false
		if q.worker != nil {
			q.worker.Wanted(true)
		}
	}
	r.in = q.waiting.PushBack(r)
	for r.want > 0 && q.offers.Len() > 0 {
		o := q.offers.Remove(q.offers.Front()).(*offer)
		r.promise()
		o.taken <- r
	}
	return r, nil
}

// part ends r. What is locked for it and was not taken over is given back.
func (q *queue) part(r *receiver) {
	q.mu.Lock()
	r.leave()
	r.gone = true
	left := r.items
	r.items = nil
	if q.count--; q.count == 0 && !q.shut {
		q.timer = time.AfterFunc(idleAfter, q.rest)
	}
	q.mu.Unlock()
	q.server.metrics.waiting.WithLabelValues(q.name).Dec()
	for _, item := range left {
		go q.release(item.Lock)
	}
}

// rest stops the fetching of events when nobody has asked for a while.
func (q *queue) rest() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.count > 0 || q.shut || q.idle {
		return
	}
	q.idle = true
	if q.worker != nil {
		q.worker.Wanted(false)
	}
	q.letGo()
}

// letGo gives all offers back. The caller holds mu.
func (q *queue) letGo() {
	for q.offers.Len() > 0 {
		q.offers.Remove(q.offers.Front()).(*offer).taken <- nil
	}
}

// receive waits for up to n events, and answers as soon as there is one with those
// that come at once. None, without an error, when the wait ends. What it returned
// the caller holds.
func (q *queue) receive(ctx context.Context, n int, wait time.Duration) ([]Item, error) {
	r, err := q.join(n)
	if err != nil {
		return nil, err
	}
	defer q.part(r)
	limit := time.NewTimer(wait)
	defer limit.Stop()
	for {
		select {
		case <-r.news:
		case <-limit.C:
			return r.collect(ctx)
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-q.closed:
			return r.collect(ctx)
		case <-q.server.stopping:
			return r.collect(ctx)
		}
		if r.any() {
			break
		}
	}
	most := time.NewTimer(gatherMost)
	defer most.Stop()
	pause := time.NewTimer(gatherFor)
	defer pause.Stop()
	for !r.full() {
		select {
		case <-r.news:
			pause.Reset(gatherFor)
			continue
		case <-pause.C:
		case <-most.C:
		case <-ctx.Done():
		}
		break
	}
	return r.collect(ctx)
}

func (r *receiver) any() bool {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	return r.promised > 0 || len(r.items) > 0
}

func (r *receiver) full() bool {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	return r.want == 0
}

// collect takes no more, and waits until what was promised is locked.
func (r *receiver) collect(ctx context.Context) ([]Item, error) {
	r.q.mu.Lock()
	r.leave()
	r.q.mu.Unlock()
	limit := time.NewTimer(lockWithin)
	defer limit.Stop()
	for {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if items, done := r.take(false); done {
			return items, nil
		}
		select {
		case <-r.news:
		case <-ctx.Done():
		case <-limit.C:
			// What comes later is given back.
			if items, _ := r.take(true); len(items) > 0 {
				return items, nil
			}
			return nil, errStalled
		}
	}
}

// take hands over what is locked for r, if nothing more is to come or it is to be
// now.
func (r *receiver) take(now bool) (items []Item, done bool) {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	if r.promised > 0 && !now {
		return nil, false
	}
	items, r.items = r.items, nil
	// They were locked side by side; within an answer they are in order again.
	slices.SortFunc(items, func(a, b Item) int { return cmp.Compare(a.Sequence, b.Sequence) })
	return items, true
}
