// Package pull serves subscribers that fetch their events, by HTTP in the shape of
// Event Grid namespaces, so that stock Azure clients work:
//
//	POST /topics/events/eventsubscriptions/{subscriber}:receive
//	POST /topics/events/eventsubscriptions/{subscriber}:acknowledge
//	POST /topics/events/eventsubscriptions/{subscriber}:release
//	POST /topics/events/eventsubscriptions/{subscriber}:reject
//	POST /topics/events/eventsubscriptions/{subscriber}:renewLock
//	GET  /topics/events/eventsubscriptions/{subscriber}:stream
//
// # How an event is lent
//
// A receiver that asks is matched with an event that the subscriber's worker holds
// ready. Before it is told, a copy of the event is stored on the retry lane, due
// when the lock ends, with the number of the hand-out and the lock's secret, and
// the hand-out is recorded (package deliver, lend.go). From then on nothing in this
// process knows of the lock:
//
//   - The lock runs out because that copy comes due, here or at another replica,
//     whether or not this process still lives. Nothing is lost, and the count is on
//     the disk.
//   - The token names the event and the secret. Any replica looks the copy up by it,
//     so a token is good across restarts and replicas, and nobody can make one up.
//   - Whoever ends the lock replaces the copy on the condition that it is still the
//     one. Of two that try, one succeeds; after the lock's end nobody does. So an
//     event never has two holders, nor two ends.
//   - The answer to an acknowledge, release or reject comes after its record is on
//     the disk: what was answered as settled stays settled, and the books balance.
//
// The other way, a Send that waits until its event is acknowledged, would hold a
// slot and a sign of life to the broker twice a second for every lock, and a lock
// would end with the process: its event would go to somebody else while the first
// still works on it.
//
// # What waiting costs
//
// A receiver that waits is an entry in a list. Events are fetched only while
// somebody asks, and for two seconds after that; a subscriber whose receivers are
// away costs nothing, however much waits for it. Then an event whose last lock ran
// out stays on the retry lane too, and becomes a dead letter at the next receive.
//
// There is no breaker: nobody is called. Order is not offered: events under lock
// come back in any order.
package pull

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Topic is the one topic there is; the name of the subscriber says all.
const Topic = "events"

// Path is where a subscriber's events are fetched; a colon and an operation follow.
func Path(subscriber string) string {
	return "/topics/" + Topic + "/eventsubscriptions/" + subscriber
}

// A Door decides who may receive a subscriber's events. It is safe for concurrent
// use.
type Door interface {
	// Admit answers nil, *Denied or *Unavailable.
	Admit(r *http.Request) error
}

// Denied means that a request may not receive.
type Denied struct {
	// Reason is for the log, without secrets.
	Reason string
	// Challenges are values of WWW-Authenticate.
	Challenges []string
}

func (e *Denied) Error() string { return "denied: " + e.Reason }

// Unavailable means that nobody can say now whether it may.
type Unavailable struct {
	Reason     string // for the log
	RetryAfter time.Duration
}

func (e *Unavailable) Error() string { return "cannot authenticate: " + e.Reason }

// Server answers receivers. It is safe for concurrent use.
type Server struct {
	log      *slog.Logger
	metrics  *Metrics
	stopping chan struct{}
	stop     sync.Once
	streams  streams

	mu     sync.Mutex // guards all below
	queues map[string]*queue
	ready  bool
	logged map[string]time.Time // when a refusal was, by subscriber
}

// New makes a Server that knows nobody yet. It answers 503 until Ready.
func New(metrics *Metrics, log *slog.Logger) *Server {
	return &Server{
		log: log, metrics: metrics, stopping: make(chan struct{}),
		queues: map[string]*queue{}, logged: map[string]time.Time{},
	}
}

// Open makes the Sender of a subscriber. Its receivers are served from when a
// worker has it until it is closed.
func (s *Server) Open(name string, cfg Config, door Door) *Queue {
	q := newQueue(s, name, cfg, door)
	s.metrics.init(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queues[name] = q
	return q
}

// Queue is the Sender of one subscriber.
type Queue = queue

func (s *Server) remove(q *queue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queues[q.name] == q {
		delete(s.queues, q.name)
	}
}

func (s *Server) find(name string) (q *queue, ready bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queues[name], s.ready
}

// Ready says that all subscribers there are have been opened: who is not known now
// does not exist.
func (s *Server) Ready() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = true
}

// Stop answers all receivers that wait, and every further request 503.
func (s *Server) Stop() { s.stop.Do(func() { close(s.stopping) }) }

func (s *Server) stopped() bool {
	select {
	case <-s.stopping:
		return true
	default:
		return false
	}
}

// refused logs a refusal, once a minute for each subscriber.
func (s *Server) refused(name string, err error) {
	s.mu.Lock()
	last := s.logged[name]
	now := time.Now()
	if now.Sub(last) >= time.Minute {
		s.logged[name] = now
	}
	s.mu.Unlock()
	if now.Sub(last) >= time.Minute {
		s.log.Warn("receiver refused; further ones within a minute are not logged", "subscriber", name, "reason", err)
	}
}

// Metrics are those of a Server; docs/metrics.md describes them.
type Metrics struct {
	waiting  *prometheus.GaugeVec
	requests *prometheus.CounterVec
	ends     *prometheus.CounterVec
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gridfan_pull_receivers_waiting", Help: "Receivers that wait for events now, streams among them.",
		}, []string{"subscriber"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gridfan_pull_requests_total", Help: "Answered requests of receivers by subscriber, operation and status; subscriber unknown for those of nobody.",
		}, []string{"subscriber", "operation", "code"}),
		ends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gridfan_pull_tokens_total", Help: "Lock tokens that came back, by subscriber, operation and result: done, lost, bad, busy.",
		}, []string{"subscriber", "operation", "result"}),
	}
	reg.MustRegister(m.waiting, m.requests, m.ends)
	return m
}

// init makes a subscriber's series exist from the start.
func (m *Metrics) init(subscriber string) {
	m.waiting.WithLabelValues(subscriber).Add(0)
	m.requests.WithLabelValues(subscriber, "receive", "200").Add(0)
	m.ends.WithLabelValues(subscriber, "acknowledge", "done").Add(0)
}

// ended says whether a request's own end is why something failed.
func ended(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, ctx.Err())
}

var errNoOperation = fmt.Errorf("want POST %s:receive, :acknowledge, :release, :reject or :renewLock, or GET %s:stream", Path("{subscriber}"), Path("{subscriber}"))
