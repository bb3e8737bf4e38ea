package quarantine

import "github.com/prometheus/client_golang/prometheus"

// Metrics count what leaves the quarantine; docs/metrics.md describes them.
type Metrics struct {
	redriven *prometheus.CounterVec
	dropped  *prometheus.CounterVec
}

// NewMetrics registers the metrics. Those of the sources named exist from the
// start.
func NewMetrics(reg prometheus.Registerer, sources ...string) *Metrics {
	m := &Metrics{
		redriven: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gridfan_quarantine_redriven_total", Help: "Elements that a redrive understood, by what became of them: published, duplicate, control.",
		}, []string{"source", "result"}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gridfan_quarantine_dropped_total", Help: "Entries that an operator dropped.",
		}, []string{"source"}),
	}
	reg.MustRegister(m.redriven, m.dropped)
	m.Declare(sources)
	return m
}

// Declare makes the metrics of sources exist.
func (m *Metrics) Declare(sources []string) {
	for _, s := range sources {
		m.redrove(Outcome{Source: s})
		m.dropped.WithLabelValues(s)
	}
}

func (m *Metrics) redrove(o Outcome) {
	for result, n := range map[string]int{"published": o.Published, "duplicate": o.Duplicate, "control": o.Control} {
		m.redriven.WithLabelValues(o.Source, result).Add(float64(n))
	}
}
