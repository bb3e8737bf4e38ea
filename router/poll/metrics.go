package poll

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the figures of the sources that this process polls; docs/metrics.md
// describes them. Those that another process polls are told by that one.
type Metrics struct {
	poller atomic.Pointer[Poller]
}

// NewMetrics registers the metrics. They show nothing before they are given to New.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{}
	reg.MustRegister(m)
	return m
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("gridfan_poll_"+name, help, append([]string{"source", "table"}, labels...), nil)
}

var (
	descHeld      = desc("held", "1 while this process polls the source.")
	descRequests  = desc("requests_total", "Requests to the source.")
	descPolls     = desc("polls_total", "Polls, by whether they brought a row: rows, empty.", "result")
	descRows      = desc("rows_total", "Rows read, by what became of them: published, duplicate, unchanged, quarantined, remembered.", "result")
	descThrottles = desc("throttled_total", "Answers of 429 and the like.")
	descLost      = desc("throttled_seconds_total", "Time in which the source could not be polled because of them.")
	descInterval  = desc("interval_seconds", "Time between two polls now.")
	descFreshness = desc("freshness_seconds", "Age of the newest change seen; it grows while nothing happens.")
	descBound     = desc("bound_age_seconds", "Age of the time up to which all changes are certainly read.")
	descFailing   = desc("failing", "1 while requests fail or what they bring cannot be stored.")
	descStopped   = desc("unconfirmed", "1 while many rows are gone and an operator has to say that this is so.")
)

// Describe sends what there is.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descHeld, descRequests, descPolls, descRows, descThrottles, descLost, descInterval, descFreshness, descBound, descFailing, descStopped} {
		ch <- d
	}
}

// Collect sends the figures of now.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	p := m.poller.Load()
	if p == nil {
		return
	}
	for _, st := range p.here(time.Now()) {
		gauge := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, st.Source, st.Table)
		}
		count := func(d *prometheus.Desc, v float64, result ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, append([]string{st.Source, st.Table}, result...)...)
		}
		yes := func(b bool) float64 {
			if b {
				return 1
			}
			return 0
		}
		gauge(descHeld, yes(st.Here))
		count(descRequests, float64(st.Requests))
		count(descPolls, float64(st.Polls-st.EmptyPolls), "rows")
		count(descPolls, float64(st.EmptyPolls), "empty")
		for result, n := range map[string]int64{
			"published": st.Published, "duplicate": st.Duplicate, "unchanged": st.Unchanged, "quarantined": st.Quarantined, "remembered": st.Remembered,
		} {
			count(descRows, float64(n), result)
		}
		count(descThrottles, float64(st.Throttles))
		count(descLost, float64(st.Lost))
		gauge(descFailing, yes(st.Here && st.State == Failing))
		gauge(descStopped, yes(st.Here && st.State == Unconfirmed))
		if !st.Here {
			continue
		}
		gauge(descInterval, float64(st.Interval))
		if !st.Newest.IsZero() {
			gauge(descFreshness, float64(st.Freshness))
		}
		if !st.Bound.IsZero() {
			gauge(descBound, float64(st.BoundAge))
		}
	}
}
