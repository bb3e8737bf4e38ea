package receive

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/router/publish"
)

// State is what a source is doing, in a word.
type State string

// The states of a source. With several workers the worst counts.
const (
	// Connecting: the broker has not shown yet that it works.
	Connecting State = "connecting"
	// Receiving: all is well.
	Receiving State = "receiving"
	// Holding: messages are here and cannot be stored.
	Holding State = "holding"
	// Failing: the broker refuses, or is not reached.
	Failing State = "failing"
	// Stopped: the program is stopping.
	Stopped State = "stopped"
)

// Status is how one source is received; counts are since the start of this process.
type Status struct {
	Source string `json:"source"`
	// Way is the key of the configuration: serviceBus, eventGridNamespace.
	Way string `json:"way"`
	// From names the queue, subscription or hub.
	From  string `json:"from"`
	State State  `json:"state"`
	// Since is when State began.
	Since time.Time `json:"since"`
	// Kind and Reason say why it is failing or holding, and Next when it is tried
	// again.
	Kind   Kind       `json:"kind,omitempty"`
	Reason string     `json:"reason,omitempty"`
	Next   *time.Time `json:"next,omitempty"`

	// Messages were received, and of them Settled, DeadLettered, Returned (given back
	// when the program stopped) or Lost (their lock ended before they were settled;
	// they come again). Held are here and not settled yet.
	Messages     int64 `json:"messages"`
	Settled      int64 `json:"settled"`
	DeadLettered int64 `json:"deadLettered"`
	Returned     int64 `json:"returned"`
	Lost         int64 `json:"lost"`
	Held         int64 `json:"held"`

	// Received are the elements in them; received = published + duplicate +
	// quarantined + control.
	Received    int64 `json:"received"`
	Published   int64 `json:"published"`
	Duplicate   int64 `json:"duplicate"`
	Quarantined int64 `json:"quarantined"`
	Control     int64 `json:"control"`
	// LastEvent is when one was last published.
	LastEvent *time.Time `json:"lastEvent,omitempty"`
}

// board is what the workers of a source say.
type board struct {
	from    string
	metrics *Metrics

	mu      sync.Mutex // guards all below
	s       Status
	workers map[int]*worker
}

type worker struct {
	state    State
	reported State // the last of failing, holding and receiving that people were told
	fault    *Fault
	next     time.Time
}

func newBoard(cfg Source, m *Metrics) *board {
	b := &board{metrics: m, workers: map[int]*worker{}, s: Status{Source: cfg.Name, State: Connecting, Since: time.Now().UTC()}}
	switch from := cfg.From; {
	case from == nil:
		return b
	case from.ServiceBus != nil:
		b.s.Way, b.from = "serviceBus", from.ServiceBus.place()
	case from.EventGridNamespace != nil:
		n := from.EventGridNamespace
		b.s.Way, b.from = "eventGridNamespace", hostOf(n.Endpoint)+"/"+n.Topic+"/"+n.Subscription
	}
	b.s.From = b.from
	return b
}

// show makes the source's metrics exist.
func (b *board) show() {
	if b.from != "" {
		b.metrics.init(b.s.Source)
	}
}

// goOn takes over what a source has counted with another configuration.
func (b *board) goOn(before *board) {
	was := before.status()
	b.mu.Lock()
	defer b.mu.Unlock()
	is := b.s
	b.s = was
	b.s.Way, b.s.From, b.s.State, b.s.Since, b.s.Kind, b.s.Reason, b.s.Next, b.s.Held = is.Way, is.From, is.State, is.Since, "", "", nil, 0
}

// forget stops showing what stands of a source that is not received any more.
func (b *board) forget() {
	b.metrics.held.DeleteLabelValues(b.s.Source)
	b.metrics.up.DeleteLabelValues(b.s.Source)
}

func (b *board) worker(i int) *worker {
	w := b.workers[i]
	if w == nil {
		w = &worker{state: Connecting}
		b.workers[i] = w
	}
	return w
}

// set changes what a worker says; the caller holds mu.
func (b *board) set(w *worker, s State) {
	w.state = s
	if s == Receiving || s == Stopped {
		w.fault, w.next = nil, time.Time{}
	}
	worst := Stopped
	var of *worker
	order := []State{Stopped, Receiving, Connecting, Holding, Failing}
	for _, w := range b.workers {
		if of == nil || slices.Index(order, w.state) > slices.Index(order, worst) {
			worst, of = w.state, w
		}
	}
	if worst != b.s.State {
		b.s.State, b.s.Since = worst, time.Now().UTC()
	}
	b.s.Kind, b.s.Reason, b.s.Next = "", "", nil
	if of != nil && of.fault != nil {
		b.s.Kind, b.s.Reason = of.fault.Kind, of.fault.Reason
		if !of.next.IsZero() {
			next := of.next.UTC()
			b.s.Next = &next
		}
	}
	up := 0.0
	if worst == Receiving {
		up = 1
	}
	b.metrics.up.WithLabelValues(b.s.Source).Set(up)
}

// failed notes why a worker cannot receive, and for how long it waits.
func (b *board) failed(i int, f *Fault, wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.worker(i)
	w.fault, w.next = f, time.Now().Add(wait)
	b.set(w, Failing)
	b.metrics.faults.WithLabelValues(b.s.Source, string(f.Kind)).Inc()
}

// begun says whether nobody was told yet that the worker fails.
func (b *board) begun(i int) bool { return b.tell(i, Failing) }

// tell says whether people are to be told of a worker's state.
func (b *board) tell(i int, s State) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.worker(i)
	was := w.reported
	w.reported = s
	return was != s
}

// receiving notes that a worker receives. It says whether people are to be told.
func (b *board) receiving(i int) bool {
	b.mu.Lock()
	w := b.worker(i)
	b.set(w, Receiving)
	b.mu.Unlock()
	return b.tell(i, Receiving)
}

// holding notes that messages cannot be stored. It says whether people are to be
// told.
func (b *board) holding(i int, err error) bool {
	b.mu.Lock()
	w := b.worker(i)
	w.fault = &Fault{Kind: Storage, Reason: storageReason(err)}
	b.set(w, Holding)
	b.metrics.faults.WithLabelValues(b.s.Source, string(Storage)).Inc()
	b.mu.Unlock()
	return b.tell(i, Holding)
}

// stored notes that messages were stored.
func (b *board) stored(i int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set(b.worker(i), Receiving)
	b.worker(i).reported = Receiving
}

func (b *board) stopped(i int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set(b.worker(i), Stopped)
}

// held counts the messages that are here.
func (b *board) held(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.s.Held += int64(n)
	if n > 0 {
		b.s.Messages += int64(n)
	}
	b.metrics.held.WithLabelValues(b.s.Source).Add(float64(n))
}

// settled counts what became of messages at their broker.
func (b *board) settled(as string, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch as {
	case "settled":
		b.s.Settled += int64(n)
	case "dead-lettered":
		b.s.DeadLettered += int64(n)
	case "returned":
		b.s.Returned += int64(n)
	case "lost":
		b.s.Lost += int64(n)
	}
	b.metrics.messages.WithLabelValues(b.s.Source, as).Add(float64(n))
}

// message notes how long one waited at its broker.
func (b *board) message(m *message, accepted time.Time) {
	if !m.enqueued.IsZero() {
		b.metrics.waited.WithLabelValues(b.s.Source).Observe(max(0, accepted.Sub(m.enqueued).Seconds()))
	}
}

// element counts what became of one element.
func (b *board) element(st publish.Status, accepted time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.s.Received++
	switch st {
	case publish.Published:
		b.s.Published++
		t := accepted.UTC()
		b.s.LastEvent = &t
	case publish.Duplicate:
		b.s.Duplicate++
	case publish.Quarantined:
		b.s.Quarantined++
	case publish.Control:
		b.s.Control++
	}
	b.metrics.events.WithLabelValues(b.s.Source, "received").Inc()
	b.metrics.events.WithLabelValues(b.s.Source, string(st)).Inc()
}

func (b *board) status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.s
}

// Status tells how the sources are received that have something to be received from,
// in the order that they were given in.
func (r *Receivers) Status() []Status {
	list := []Status{}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, name := range r.names {
		if s := r.sources[name]; s.From != nil {
			list = append(list, s.status.status())
		}
	}
	return list
}

// Metrics are those of receiving; docs/metrics.md describes them.
type Metrics struct {
	messages *prometheus.CounterVec
	events   *prometheus.CounterVec
	faults   *prometheus.CounterVec
	held     *prometheus.GaugeVec
	up       *prometheus.GaugeVec
	waited   *prometheus.HistogramVec
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gridfan_receive_messages_total", Help: "Messages received from brokers by what became of them there: settled, dead-lettered, returned, lost.",
		}, []string{"source", "result"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gridfan_receive_events_total", Help: "Elements of received messages by result: received = published + duplicate + quarantined + control.",
		}, []string{"source", "result"}),
		faults: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gridfan_receive_faults_total", Help: "Failures to receive, and to store what was received, by kind.",
		}, []string{"source", "kind"}),
		held: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gridfan_receive_held_messages", Help: "Messages that are here and not settled at their broker.",
		}, []string{"source"}),
		up: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gridfan_receive_up", Help: "1 while a source's messages can be received and stored, else 0.",
		}, []string{"source"}),
		waited: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gridfan_receive_wait_seconds", Help: "How long messages waited at their broker until they were stored here.",
			Buckets: []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86400, 604800},
		}, []string{"source"}),
	}
	reg.MustRegister(m.messages, m.events, m.faults, m.held, m.up, m.waited)
	return m
}

// init makes a source's series exist from the start.
func (m *Metrics) init(source string) {
	for _, result := range []string{"settled", "dead-lettered", "returned", "lost"} {
		m.messages.WithLabelValues(source, result)
	}
	for _, result := range []string{"received", "published", "duplicate", "quarantined", "control"} {
		m.events.WithLabelValues(source, result)
	}
	m.held.WithLabelValues(source)
	m.up.WithLabelValues(source)
}
