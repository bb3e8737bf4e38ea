package publish

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics gives p's figures; docs/metrics.md describes them.
func (p *Publisher) Metrics() prometheus.Collector { return collector{p} }

type collector struct{ p *Publisher }

var (
	descIDs    = prometheus.NewDesc("gridfan_publish_dedup_ids", "Events that are recognised when they come again.", nil, nil)
	descBytes  = prometheus.NewDesc("gridfan_publish_dedup_bytes", "Memory of the index of published events.", nil, nil)
	descReach  = prometheus.NewDesc("gridfan_publish_dedup_reach_seconds", "How far back every published event is recognised; storage.dedup.horizon unless memory is short.", nil, nil)
	descResent = prometheus.NewDesc("gridfan_publish_resent_total", "Events that had to be sent to the broker again.", nil, nil)
	descSpool  = prometheus.NewDesc("gridfan_publish_spooled_events", "Events that wait in the spool for the broker.", nil, nil)
)

// Describe sends what there is.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descIDs, descBytes, descReach, descResent, descSpool} {
		ch <- d
	}
}

// Collect sends the figures of now.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	st := c.p.Dedup()
	gauge(descIDs, float64(st.IDs))
	gauge(descBytes, float64(st.Bytes))
	gauge(descReach, time.Since(st.Since).Seconds())
	ch <- prometheus.MustNewConstMetric(descResent, prometheus.CounterValue, float64(c.p.main.resent.Load()))
	ctx, cancel := context.WithTimeout(context.Background(), ackTimeout)
	defer cancel()
	spool, _ := c.p.Spool(ctx)
	gauge(descSpool, float64(spool.Waiting))
}
