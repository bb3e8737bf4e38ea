package complete

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/infra/broker"
)

// Status is how completing one source goes.
type Status struct {
	Source string `json:"source"`
	// Held are the events that are kept, whether for their completion or behind one.
	Held int64 `json:"held"`
	// Within is for how many seconds at most.
	Within float64 `json:"within"`
	// Kind and Reason say why rows cannot be read at the moment, since Since, and
	// Next when it is tried again.
	Kind   string     `json:"kind,omitempty"`
	Reason string     `json:"reason,omitempty"`
	Since  *time.Time `json:"since,omitempty"`
	Next   *time.Time `json:"next,omitempty"`
}

// said is what the router that completes says of its sources.
type said struct {
	Kind   string    `json:"kind"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Next   time.Time `json:"next,omitzero"`
}

// trouble is what the matter is with each source that has trouble.
func (w *worker) trouble() map[string]said {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := map[string]said{}
	for name, a := range w.sources {
		if a.kind != "" {
			all[name] = said{a.kind, a.reason, a.since.UTC(), a.next.UTC()}
		}
	}
	return all
}

// mostSaid bounds how many sources a note tells of: it has 4 KiB.
const mostSaid = 5

// note is trouble for other routers.
func (w *worker) note() []byte {
	all := w.trouble()
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	some := map[string]said{}
	for _, name := range names[:min(len(names), mostSaid)] {
		some[name] = all[name]
	}
	b, err := json.Marshal(some)
	if err != nil {
		return nil
	}
	return b
}

// Status tells how completing goes, by source; of what another router does, too.
func (c *Completer) Status(ctx context.Context) (map[string]Status, error) {
	list := map[string]Status{}
	c.mu.RLock()
	sources := c.sources
	c.mu.RUnlock()
	if len(sources) == 0 {
		return list, nil
	}
	counts, err := c.parts.Broker.SubjectCounts(ctx, broker.StreamHeld, broker.Held("*", "*"))
	if err != nil {
		return nil, err
	}
	trouble := map[string]said{}
	if w := c.work.Load(); w != nil {
		trouble = w.trouble()
	} else if notes, err := c.parts.Broker.LeaseNotes(ctx, leaseKey); err == nil && notes[leaseKey].Note != nil {
		_ = json.Unmarshal(notes[leaseKey].Note, &trouble) // of another version: nothing is known
	}
	for name, s := range sources {
		st := Status{Source: name, Within: s.Within.Seconds()}
		if t, ok := trouble[name]; ok {
			st.Kind, st.Reason, st.Since = t.Kind, t.Reason, &t.Since
			if t.Next.After(time.Now()) {
				st.Next = &t.Next
			}
		}
		list[name] = st
	}
	for subject, n := range counts {
		name := broker.HeldSource(subject)
		if st, ok := list[name]; ok {
			st.Held += int64(n)
			list[name] = st
		}
	}
	return list, nil
}

// Metrics are those of completing; docs/metrics.md describes them.
type Metrics struct {
	events   *prometheus.CounterVec
	requests *prometheus.CounterVec
	held     *prometheus.GaugeVec
	wait     *prometheus.HistogramVec
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gridfan_complete_events_total", Help: "Events that Dataverse had cut short, and those that waited behind them, by result: completed, behind, duplicate, or the reason why one was published as it came.",
		}, []string{"source", "result"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gridfan_complete_requests_total", Help: "Rows that were asked for to complete events, by result: row, gone, throttled, or the kind of a failure.",
		}, []string{"source", "result"}),
		held: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gridfan_complete_held_events", Help: "Events that this router keeps until they are completed, or until those before them are.",
		}, []string{"source"}),
		wait: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gridfan_complete_wait_seconds", Help: "How long events were kept.",
			Buckets: []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600},
		}, []string{"source"}),
	}
	reg.MustRegister(m.events, m.requests, m.held, m.wait)
	return m
}

// init makes a source's series exist from the start.
func (m *Metrics) init(source string) {
	for result := range strings.FieldsSeq("completed behind duplicate " + reasonLate + " " + reasonGone) {
		m.events.WithLabelValues(source, result)
	}
	for result := range strings.FieldsSeq("row gone throttled") {
		m.requests.WithLabelValues(source, result)
	}
	m.held.WithLabelValues(source)
	m.wait.WithLabelValues(source)
}

func (m *Metrics) event(source, result string) { m.events.WithLabelValues(source, result).Inc() }

func (m *Metrics) request(source, result string) { m.requests.WithLabelValues(source, result).Inc() }

func (m *Metrics) hold(source string, n int) { m.held.WithLabelValues(source).Add(float64(n)) }

func (m *Metrics) waited(source string, d time.Duration) {
	m.wait.WithLabelValues(source).Observe(max(0, d.Seconds()))
}
