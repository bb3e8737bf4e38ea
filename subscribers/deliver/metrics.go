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

// init makes a subscriber's series exist from the start.
func (m *Metrics) init(subscriber string) {
	for _, o := range []string{RecordDelivered, RecordFiltered, RecordRetry, RecordBehind, RecordDeadLetter, RecordShed} {
		m.settled.WithLabelValues(subscriber, o)
	}
	m.breaker.WithLabelValues(subscriber).Set(0)
	m.inFlight.WithLabelValues(subscriber).Set(0)
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

func (m *Metrics) delivered(subscriber string, e *event.Event, now time.Time) {
	if t, err := event.ParseTime(e.Get(event.ExtRecordedTime)); err == nil {
		m.accepted.WithLabelValues(subscriber).Observe(max(0, now.Sub(t).Seconds()))
	}
	if !e.Time.IsZero() {
		m.endToEnd.WithLabelValues(subscriber).Observe(max(0, now.Sub(e.Time).Seconds()))
	}
}
