package ingress

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the ingress's own; docs/metrics.md describes them.
type Metrics struct {
	requests    *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	events      *prometheus.CounterVec
	sourceDelay *prometheus.HistogramVec
	risks       *riskMetrics
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
			Name: "gridfan_ingress_events_total", Help: "Elements of stored requests by result: received = published + duplicate + quarantined + control + completing.",
		}, []string{"source", "result"}),
		sourceDelay: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gridfan_ingress_source_delay_seconds", Help: "From the event's own time to its acceptance.",
			Buckets: delayBuckets,
		}, []string{"source"}),
	}
	m.risks = &riskMetrics{
		of: map[string]*risk{},
		share: prometheus.NewDesc("gridfan_ingress_failed_share",
			"Share of the requests of the last five minutes that Event Grid would count as failed: not 200 to 204, or slower than 30 seconds.",
			[]string{"source"}, nil),
		deliveries: prometheus.NewDesc("gridfan_ingress_delivery_count",
			"Highest aeg-delivery-count of the last five minutes: how often Event Grid had to repeat.",
			[]string{"source"}, nil),
	}
	reg.MustRegister(m.requests, m.duration, m.events, m.sourceDelay, m.risks)
	return m
}

// riskMetrics shows the sources as Event Grid sees them; see risk.
type riskMetrics struct {
	share, deliveries *prometheus.Desc

	mu sync.Mutex // guards of
	of map[string]*risk
}

func (m *riskMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.share
	ch <- m.deliveries
}

func (m *riskMetrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for source, k := range m.of {
		share, deliveries := k.read(now)
		ch <- prometheus.MustNewConstMetric(m.share, prometheus.GaugeValue, share, source)
		ch <- prometheus.MustNewConstMetric(m.deliveries, prometheus.GaugeValue, float64(deliveries), source)
	}
}

// init makes a source's series exist from the start, so that rate() works on
// the first event.
func (m *Metrics) init(source string, k *risk) {
	m.risks.mu.Lock()
	m.risks.of[source] = k
	m.risks.mu.Unlock()
	for _, result := range []string{"received", "published", "duplicate", "quarantined", "control", "completing"} {
		m.events.WithLabelValues(source, result)
	}
}

// forget stops showing what stands of a source that is not configured any more. What
// it has counted stays.
func (m *Metrics) forget(source string) {
	m.risks.mu.Lock()
	defer m.risks.mu.Unlock()
	delete(m.risks.of, source)
}
