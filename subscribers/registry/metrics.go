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
	draining *prometheus.Desc
	held     *prometheus.Desc
	oldest   *prometheus.Desc

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
		pending:  desc("pending_events", "Events not delivered yet, those in retry not among them."),
		retry:    desc("retry_events", "Events waiting for their next attempt."),
		dead:     desc("dead_letters", "Events given up and kept."),
		paused:   desc("paused", "1 while the subscriber is paused or parked."),
		draining: desc("draining", "1 while the subscriber gets nothing new, until it is resumed."),
		held:     desc("held_bytes", "Space in EVENTS from the subscriber's oldest undelivered event on, estimated."),
		oldest:   desc("oldest_undelivered_seconds", "Age of the subscriber's oldest undelivered event, 0 when there is none."),
	}
}

func (m *backlogMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.pending, m.retry, m.dead, m.paused, m.draining, m.held, m.oldest} {
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
	states, err := m.registry.States(ctx)
	if err != nil {
		return err
	}
	m.last, m.at = nil, time.Now()
	for _, s := range states {
		held, oldest := 0.0, 0.0
		if s.Held != nil {
			held, oldest = float64(s.Held.Bytes), m.at.Sub(s.Held.Since).Seconds()
		}
		for d, v := range map[*prometheus.Desc]float64{
			m.pending: float64(s.Backlog.Pending), m.retry: float64(s.Backlog.Retry), m.dead: float64(s.Backlog.DeadLetters),
			m.paused:   map[bool]float64{true: 1}[s.Paused || s.Orphaned || s.Missing != ""],
			m.draining: map[bool]float64{true: 1}[s.Drains()], m.held: held, m.oldest: max(0, oldest),
		} {
			m.last = append(m.last, prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, s.Definition.Name))
		}
	}
	return nil
}
