package ingress

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the ingress's own; docs/metrics.md describes them.
type Metrics struct {
	requests    *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	events      *prometheus.CounterVec
	sourceDelay *prometheus.HistogramVec
}

// delayBuckets reach from a push that came at once to a replay of last week.
var delayBuckets = []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86400, 604800}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gridfan_ingress_requests_total", Help: "Requests by source and status code.",
		}, []string{"source", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gridfan_ingress_request_seconds", Help: "Time to answer a request.",
			Buckets: prometheus.ExponentialBuckets(.0005, 2, 16),
		}, []string{"source"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gridfan_ingress_events_total", Help: "Elements of stored requests by result: received = published + duplicate + quarantined + control.",
		}, []string{"source", "result"}),
		sourceDelay: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gridfan_ingress_source_delay_seconds", Help: "From the event's own time to its acceptance.",
			Buckets: delayBuckets,
		}, []string{"source"}),
	}
	reg.MustRegister(m.requests, m.duration, m.events, m.sourceDelay)
	return m
}

// init makes a source's series exist from the start, so that rate() works on
// the first event.
func (m *Metrics) init(source string) {
	for _, result := range []string{"received", "published", "duplicate", "quarantined", "control"} {
		m.events.WithLabelValues(source, result)
	}
}
