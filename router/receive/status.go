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
	// Standby: other replicas read all there is.
	Standby State = "standby"
	// Stopped: the program is stopping.
	Stopped State = "stopped"
)

// Status is how one source is received; counts are since the start of this process.
type Status struct {
	Source string `json:"source"`
	// Way is the key of the configuration: serviceBus, eventGridNamespace, eventHub.
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
	// quarantined + control + completing.
	Received    int64 `json:"received"`
	Published   int64 `json:"published"`
	Duplicate   int64 `json:"duplicate"`
	Quarantined int64 `json:"quarantined"`
	Control     int64 `json:"control"`
	// Completing were kept until they are completed, or behind such a one.
	Completing int64 `json:"completing,omitempty"`
	// LastEvent is when one was last published.
	LastEvent *time.Time `json:"lastEvent,omitempty"`

	// Partitions are those of an event hub, in order, whoever reads them.
	Partitions []PartitionStatus `json:"partitions,omitempty"`
	// Lag is how many events wait in them, as far as that is known.
	Lag *int64 `json:"lag,omitempty"`
}

// board is what the workers of a source say.
type board struct {
	from    string
	metrics *Metrics

	mu      sync.Mutex // guards all below
	s       Status
	workers map[int]*worker
	told    State // the last of failing, holding and receiving that people were told
}

type worker struct {
	state State
	fault *Fault
	next  time.Time
}

// worse has the states in the order in which they count.
var worse = []State{Stopped, Standby, Receiving, Connecting, Holding, Failing}

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
	case from.EventHub != nil:
		b.s.Way, b.from = "eventHub", from.EventHub.place()
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

// gone stops showing what stands of a source that is not received any more.
func (b *board) gone() {
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

// set changes what a worker says; the caller holds mu. It says whether people are to
// be told: when this is now the state of the whole, and was not when they last were.
func (b *board) set(w *worker, s State) (tell bool) {
	w.state = s
	if s == Receiving || s == Standby || s == Stopped {
		w.fault, w.next = nil, time.Time{}
	}
	b.sum()
	tell = s == b.s.State && s != b.told && slices.Contains([]State{Receiving, Holding, Failing}, s)
	if tell {
		b.told = s
	}
	return tell
}

// sum makes one state of all workers'; the caller holds mu.
func (b *board) sum() {
	worst := Stopped
	var of *worker
	for _, w := range b.workers {
		if of == nil || slices.Index(worse, w.state) > slices.Index(worse, worst) {
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

// failed notes why a worker cannot receive, and for how long it waits. It says
// whether people are to be told.
func (b *board) failed(i int, f *Fault, wait time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.worker(i)
	w.fault, w.next = f, time.Now().Add(wait)
	b.metrics.faults.WithLabelValues(b.s.Source, string(f.Kind)).Inc()
	return b.set(w, Failing)
}

// receiving notes that a worker receives. It says whether people are to be told.
func (b *board) receiving(i int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.set(b.worker(i), Receiving)
}

// holding notes that messages cannot be stored. It says whether people are to be
// told.
func (b *board) holding(i int, err error) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.worker(i)
	w.fault = &Fault{Kind: Storage, Reason: storageReason(err)}
	b.metrics.faults.WithLabelValues(b.s.Source, string(Storage)).Inc()
	return b.set(w, Holding)
}

// stored notes that messages were stored.
func (b *board) stored(i int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.set(b.worker(i), Receiving); b.s.State == Receiving {
		b.told = Receiving
	}
}

// standby notes that a worker has nothing to do because others do it.
func (b *board) standby(i int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set(b.worker(i), Standby)
}

// forget drops a worker that is no more.
func (b *board) forget(i int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.workers, i)
	b.sum()
}

// of gives what one worker says.
func (b *board) of(i int) (State, *Fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w := b.workers[i]; w != nil {
		return w.state, w.fault
	}
	return Connecting, nil
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
	case publish.Completing:
		b.s.Completing++
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
		s := r.sources[name]
		if s.From == nil {
			continue
		}
		st := s.status.status()
		if s.hub != nil {
			st.Partitions, st.Lag = s.hub.partitions()
		}
		list = append(list, st)
	}
	return list
}

// DeadLetters tells how reading containers of dead letters back goes, in the order
// that they were given in.
func (r *Receivers) DeadLetters() []DeadLetterStatus {
	list := []DeadLetterStatus{}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, name := range r.names {
		if b := r.sources[name].blobs; b != nil {
			b.mu.Lock()
			list = append(list, b.status)
			b.mu.Unlock()
		}
	}
	return list
}

// Counts tells what became of the elements of a source, whether they were received or
// read back. Only its counts have a meaning where it is not received.
func (r *Receivers) Counts(name string) Status {
	if s := r.source(name); s != nil {
		return s.status.status()
	}
	return Status{}
}

// Metrics are those of receiving; docs/metrics.md describes them.
type Metrics struct {
	messages *prometheus.CounterVec
	events   *prometheus.CounterVec
	faults   *prometheus.CounterVec
	held     *prometheus.GaugeVec
	up       *prometheus.GaugeVec
	waited   *prometheus.HistogramVec

	// Of event hubs.
	reads  *prometheus.GaugeVec
	lag    *prometheus.GaugeVec
	behind *prometheus.GaugeVec
	missed *prometheus.CounterVec

	// Of containers of dead letters.
	blobs  *prometheus.CounterVec
	rounds *prometheus.GaugeVec
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gridfan_receive_messages_total", Help: "Messages received from brokers by what became of them there: settled, dead-lettered, returned, lost.",
		}, []string{"source", "result"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gridfan_receive_events_total", Help: "Elements of received messages by result: received = published + duplicate + quarantined + control + completing.",
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
		reads: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gridfan_receive_partitions", Help: "Partitions of an event hub that this process reads.",
		}, []string{"source"}),
		lag: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gridfan_receive_lag_events", Help: "Events that wait in a partition that this process reads.",
		}, []string{"source", "partition"}),
		behind: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gridfan_receive_behind_seconds", Help: "Age of the last event stored of a partition that this process reads, 0 while none waits.",
		}, []string{"source", "partition"}),
		missed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gridfan_receive_missed_events_total", Help: "Events that may have been in an event hub and were gone before they could be read.",
		}, []string{"source"}),
	}
	m.blobs = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gridfan_receive_blobs_total", Help: "Blobs of dead letters by what became of them: recovered, or left because they are too large.",
	}, []string{"source", "result"})
	m.rounds = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "gridfan_receive_blobs_up", Help: "1 while this router can read the source's container of dead letters, 0 while it cannot; not there while another one does.",
	}, []string{"source"})
	reg.MustRegister(m.messages, m.events, m.faults, m.held, m.up, m.waited, m.reads, m.lag, m.behind, m.missed, m.blobs, m.rounds)
	return m
}

// initBlobs makes those of a container of dead letters exist from the start.
func (m *Metrics) initBlobs(source string) {
	for _, result := range []string{"recovered", "left"} {
		m.blobs.WithLabelValues(source, result)
	}
}

func (m *Metrics) blob(source, result string) { m.blobs.WithLabelValues(source, result).Inc() }

func (m *Metrics) blobRound(source string, ok bool) {
	up := 0.0
	if ok {
		up = 1
	}
	m.rounds.WithLabelValues(source).Set(up)
}

// init makes a source's series exist from the start.
func (m *Metrics) init(source string) {
	for _, result := range []string{"settled", "dead-lettered", "returned", "lost"} {
		m.messages.WithLabelValues(source, result)
	}
	for _, result := range []string{"received", "published", "duplicate", "quarantined", "control", "completing"} {
		m.events.WithLabelValues(source, result)
	}
	m.held.WithLabelValues(source)
	m.up.WithLabelValues(source)
}
