package deliver

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/schemas/event"
)

// Metrics are those of all workers; docs/metrics.md describes them.
type Metrics struct {
	attempts    *prometheus.CounterVec
	attemptTime *prometheus.HistogramVec
	settled     *prometheus.CounterVec
	accepted    *prometheus.HistogramVec
	endToEnd    *prometheus.HistogramVec
	breaker     *prometheus.GaugeVec
	inFlight    *prometheus.GaugeVec
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	quick := prometheus.ExponentialBuckets(.001, 2, 16) // 1 ms to 33 s
	long := []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86400}
	m := &Metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gridfan_deliver_attempts_total", Help: "Attempts by subscriber and outcome.",
		}, []string{"subscriber", "outcome"}),
		attemptTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gridfan_deliver_attempt_seconds", Help: "Time one attempt took.", Buckets: quick,
		}, []string{"subscriber"}),
		settled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gridfan_deliver_settled_total", Help: "Recorded settlements by subscriber and outcome: delivered, filtered, retry, behind, dead-letter, shed.",
		}, []string{"subscriber", "outcome"}),
		accepted: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gridfan_deliver_accepted_to_delivered_seconds", Help: "From acceptance of an event to its delivery.", Buckets: long,
		}, []string{"subscriber"}),
		endToEnd: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gridfan_deliver_source_to_delivered_seconds", Help: "From the event's own time to its delivery.", Buckets: long,
		}, []string{"subscriber"}),
		breaker: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gridfan_deliver_breaker_open", Help: "1 while the subscriber's breaker is open or half open, or it refuses everything.",
		}, []string{"subscriber"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gridfan_deliver_attempts_in_flight", Help: "Attempts running now.",
		}, []string{"subscriber"}),
	}
	reg.MustRegister(m.attempts, m.attemptTime, m.settled, m.accepted, m.endToEnd, m.breaker, m.inFlight)
	return m
}

// series are the metrics of one subscriber: looking them up by name costs more
// than counting.
type series struct {
	attempts    map[Outcome]prometheus.Counter
	attemptTime prometheus.Observer
	settled     map[string]prometheus.Counter
	accepted    prometheus.Observer
	endToEnd    prometheus.Observer
	breaker     prometheus.Gauge
	inFlight    prometheus.Gauge
}

// of gives a subscriber's series, which exist from then on.
func (m *Metrics) of(subscriber string) *series {
	s := &series{
		attempts: map[Outcome]prometheus.Counter{}, settled: map[string]prometheus.Counter{},
		attemptTime: m.attemptTime.WithLabelValues(subscriber), accepted: m.accepted.WithLabelValues(subscriber),
		endToEnd: m.endToEnd.WithLabelValues(subscriber), breaker: m.breaker.WithLabelValues(subscriber), inFlight: m.inFlight.WithLabelValues(subscriber),
	}
	for _, o := range []Outcome{Delivered, Failed, Rejected, Aborted} {
		s.attempts[o] = m.attempts.WithLabelValues(subscriber, string(o))
	}
	for _, o := range []string{RecordDelivered, RecordFiltered, RecordRetry, RecordLocked, RecordBehind, RecordDeadLetter, RecordShed} {
		s.settled[o] = m.settled.WithLabelValues(subscriber, o)
	}
	s.breaker.Set(0)
	s.inFlight.Set(0)
	return s
}

// Forget drops the series of a subscriber that is gone.
func (m *Metrics) Forget(subscriber string) {
	l := prometheus.Labels{"subscriber": subscriber}
	for _, v := range []interface{ DeletePartialMatch(prometheus.Labels) int }{
		m.attempts, m.attemptTime, m.settled, m.accepted, m.endToEnd, m.breaker, m.inFlight,
	} {
		v.DeletePartialMatch(l)
	}
}

func (s *series) attempted(o Outcome, took time.Duration) {
	if c := s.attempts[o]; c != nil { // a Sender may say anything
		c.Inc()
	}
	s.attemptTime.Observe(took.Seconds())
}

func (s *series) delivered(e *event.Event, accepted, now time.Time) {
	if !accepted.IsZero() {
		s.accepted.Observe(max(0, now.Sub(accepted).Seconds()))
	}
	if !e.Time.IsZero() {
		s.endToEnd.Observe(max(0, now.Sub(e.Time).Seconds()))
	}
}
