package broker

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// fillMetrics asks the server when it is scraped.
type fillMetrics struct {
	broker  *Broker
	log     *slog.Logger
	bytes   *prometheus.Desc
	limit   *prometheus.Desc
	free    *prometheus.Desc
	reserve *prometheus.Desc

	mu   sync.Mutex // guards all below
	at   time.Time
	last []StreamUse
}

// freshFor bounds what scrapers cost the server, however many there are.
const freshFor = 5 * time.Second

// NewMetrics makes the collector of how full the streams and the disk are.
func NewMetrics(b *Broker, log *slog.Logger) prometheus.Collector {
	stream := []string{"stream"}
	return &fillMetrics{
		broker: b, log: log,
		bytes:   prometheus.NewDesc("gridfan_broker_stream_bytes", "Size of each stream.", stream, nil),
		limit:   prometheus.NewDesc("gridfan_broker_stream_limit_bytes", "Limit of each stream that has one.", stream, nil),
		free:    prometheus.NewDesc("gridfan_broker_disk_free_bytes", "Free space of the disk under the embedded server's store.", nil, nil),
		reserve: prometheus.NewDesc("gridfan_broker_disk_reserve_bytes", "What is kept free: below it no event is accepted.", nil, nil),
	}
}

func (m *fillMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.bytes, m.limit, m.free, m.reserve} {
		ch <- d
	}
	m.broker.watch.syncs.Describe(ch)
}

func (m *fillMetrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, u := range m.use() {
		gauge(m.bytes, float64(u.Bytes), u.Stream)
		if u.MaxBytes > 0 {
			gauge(m.limit, float64(u.MaxBytes), u.Stream)
		}
	}
	if m.broker.Embedded() {
		m.broker.watch.syncs.Collect(ch)
		s := m.broker.Space()
		gauge(m.free, float64(s.Free))
		gauge(m.reserve, float64(s.Reserve))
	}
}

func (m *fillMetrics) use() []StreamUse {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.at) < freshFor {
		return m.last
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	use, err := m.broker.Use(ctx)
	if err != nil {
		// Old numbers would look like a broker that is well.
		m.log.Warn("metrics of the streams", "error", err)
		return nil
	}
	m.last, m.at = use, time.Now()
	return use
}
