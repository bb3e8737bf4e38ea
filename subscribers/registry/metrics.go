package registry

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// backlogMetrics asks the broker when it is scraped: the backlog outlives the
// process, so no counter of ours could tell it.
type backlogMetrics struct {
	registry *Registry
	log      *slog.Logger
	pending  *prometheus.Desc
	retry    *prometheus.Desc
	dead     *prometheus.Desc
	paused   *prometheus.Desc

	mu   sync.Mutex // guards all below
	at   time.Time
	last []prometheus.Metric
}

// freshFor bounds what scrapers cost the broker, however many there are.
const freshFor = 5 * time.Second

// NewBacklogMetrics makes the collector of the subscribers' backlogs.
func NewBacklogMetrics(r *Registry, log *slog.Logger) prometheus.Collector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("gridfan_registry_"+name, help, []string{"subscriber"}, nil)
	}
	return &backlogMetrics{
		registry: r, log: log,
		pending: desc("pending_events", "Events not delivered yet, those in retry not among them."),
		retry:   desc("retry_events", "Events waiting for their next attempt."),
		dead:    desc("dead_letters", "Events given up and kept."),
		paused:  desc("paused", "1 while the subscriber is paused or parked."),
	}
}

func (m *backlogMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.pending, m.retry, m.dead, m.paused} {
		ch <- d
	}
}

func (m *backlogMetrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.at) > freshFor {
		if err := m.refresh(); err != nil {
			m.log.Warn("backlog metrics", "error", err)
			return
		}
	}
	for _, v := range m.last {
		ch <- v
	}
}

func (m *backlogMetrics) refresh() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	entries, err := m.registry.List(ctx)
	if err != nil {
		return err
	}
	backlogs, err := m.registry.Backlogs(ctx)
	if err != nil {
		return err
	}
	m.last, m.at = nil, time.Now()
	for _, e := range entries {
		name := e.Definition.Name
		b := backlogs[name]
		for d, v := range map[*prometheus.Desc]int{
			m.pending: b.Pending, m.retry: b.Retry, m.dead: b.DeadLetters,
			m.paused: map[bool]int{true: 1}[e.Paused || e.Orphaned],
		} {
			m.last = append(m.last, prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), name))
		}
	}
	return nil
}
