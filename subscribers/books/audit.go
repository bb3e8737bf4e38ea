package books

import (
	"context"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// quickly is how long an audit looks for a quiet moment when all is well.
const quickly = 300 * time.Millisecond

// audit balances the books now and then, so that a difference is noticed that
// nobody asked for.
func (b *Books) audit() {
	reported := map[string]string{}
	for wait := 5 * b.Every; ; wait = auditRounds * b.Every {
		t := time.NewTimer(wait)
		select {
		case <-b.ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if err := b.auditOnce(b.ctx, reported); err != nil && b.ctx.Err() == nil {
			b.Log.Debug("books not balanced this time", "error", err)
		}
	}
}

func (b *Books) auditOnce(ctx context.Context, reported map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := b.gather(ctx); err != nil {
		return err
	}
	r, err := b.read(ctx, quickly)
	if err != nil {
		return err
	}
	if r.doubtful() {
		if r, err = b.Read(ctx); err != nil {
			return err
		}
	}
	known, add := map[string]int64{}, map[string]opening{}
	now := time.Now().UTC()
	found := map[string]string{}
	look := func(row, name string, v *Verdict, dead int64) {
		if !v.Settled {
			if v.touched {
				known[row] = 0 // as far as can be told
			}
			return
		}
		if v.Incomplete != nil && (v.CarriedAt == nil || v.CarriedAt.Before(*v.Incomplete)) {
			add[row] = opening{At: now, Balance: v.Balance, Dead: dead, Why: "records or events were gone before they were counted"}
			known[row] = 0
			return
		}
		known[row] = v.Balance
		if len(v.Problems) > 0 {
			found[row] = strings.Join(v.Problems, "; ")
			if reported[row] != found[row] {
				b.Broker.Report("books.unbalanced", name, map[string]any{"balance": v.Balance, "problem": found[row]})
			}
		}
	}
	carried, _, err := b.carried(ctx)
	if err != nil {
		return err
	}
	for i := range r.Subscribers {
		if s := &r.Subscribers[i]; s.State != StateDeleted {
			look(s.row(), s.Name, &s.Verdict, s.dead()-carried[s.row()].Dead)
		}
	}
	for i := range r.Sources {
		s := &r.Sources[i]
		look(s.row(), s.Name, &s.Verdict, 0)
	}
	clear(reported)
	maps.Copy(reported, found)
	rows := r.rows()
	b.mu.Lock()
	for row := range b.known {
		// What moves keeps its last balance.
		if _, now := known[row]; !now && rows[row] {
			known[row] = b.known[row]
		}
	}
	b.known = known
	b.mu.Unlock()
	if len(add) > 0 {
		return b.carryOn(ctx, rows, add)
	}
	return nil
}

// doubtful says whether a longer look may find out more: something stands still
// and does not balance.
func (r *Reading) doubtful() bool {
	in := func(v Verdict) bool { return !v.Settled && v.still }
	return slices.ContainsFunc(r.Subscribers, func(s Subscriber) bool { return in(s.Verdict) }) ||
		slices.ContainsFunc(r.Sources, func(s Source) bool { return in(s.Verdict) })
}

// Metrics gives the books' figures; docs/metrics.md describes them.
func (b *Books) Metrics() prometheus.Collector { return collector{b} }

type collector struct{ b *Books }

var (
	descEvents    = prometheus.NewDesc("gridfan_books_subscriber_events_total", "Events by what the books say of them.", []string{"subscriber", "result"}, nil)
	descAttempts  = prometheus.NewDesc("gridfan_books_attempts_total", "Attempts by the records of them.", []string{"subscriber"}, nil)
	descBalance   = prometheus.NewDesc("gridfan_books_balance", "What is missing (above 0) or there twice (below 0); NaN until it is known.", []string{"subscriber"}, nil)
	descSources   = prometheus.NewDesc("gridfan_books_source_events_total", "Events in the streams by source: published, quarantined.", []string{"source", "result"}, nil)
	descSourceBal = prometheus.NewDesc("gridfan_books_source_balance", "What routers counted and no stream has (above 0), or the reverse; NaN until it is known.", []string{"source"}, nil)
	descLag       = prometheus.NewDesc("gridfan_books_lag_events", "Events that are not in the books yet.", nil, nil)
	descLosses    = prometheus.NewDesc("gridfan_books_losses", "Parts of streams that were gone before they were counted.", nil, nil)
)

// Describe sends what there is.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descEvents, descAttempts, descBalance, descSources, descSourceBal, descLag, descLosses} {
		ch <- d
	}
}

// Collect sends the figures of now.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	b := c.b
	b.mu.Lock()
	defer b.mu.Unlock()
	counter := func(d *prometheus.Desc, n int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	balance := func(row string) float64 {
		if v, ok := b.known[row]; ok {
			return float64(v)
		}
		return math.NaN()
	}
	b.fold.flush()
	for _, a := range b.fold.Accounts {
		if a.Deleted != nil {
			continue
		}
		n := a.Counts
		for _, q := range []struct {
			result string
			n      int64
		}{
			{"matched", n.Matched}, {"replayed", n.Replayed}, {"delivered", n.Delivered}, {"filtered", n.Filtered},
			{"dead-letter", n.DeadLettered}, {"redriven", n.Redriven}, {"dropped", n.Dropped}, {"shed", n.Shed},
			{"retry", n.Retries}, {"tried", n.Tried},
		} {
			counter(descEvents, q.n, a.Name, q.result)
		}
		counter(descAttempts, n.Attempts, a.Name)
		gauge(descBalance, balance(subscriberRow(a.Name, a.Created)), a.Name)
	}
	for name, s := range b.fold.Sources {
		counter(descSources, s.Published, name, "published")
		counter(descSources, s.Quarantined, name, "quarantined")
		gauge(descSourceBal, balance("source/"+name), name)
	}
	gauge(descLag, float64(b.lag.Events))
	gauge(descLosses, float64(len(b.fold.Losses)))
}
