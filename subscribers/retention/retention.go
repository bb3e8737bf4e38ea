// Package retention keeps room in EVENTS, so that what one subscriber does not
// take is not paid for by the others.
//
// Three things make room, in this order. Events that every subscriber has got
// are trimmed. A subscriber that holds back more than its limit has its oldest
// events moved to dead letters. And when EVENTS is nearly full all the same, and
// the operator chose that, the oldest events are shed. The first is done here;
// the others are orders to the workers, because only a worker settles. What they
// have settled is trimmed like everything else, so nothing is deleted that has
// no record.
//
// Everything is decided anew from what the server says, many times a minute:
// what a crash interrupts is taken up by the next process, and several replicas
// may do it at once.
package retention

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// Levels of EVENTS in per cent of its limit. Between the one at which something
// begins and the one it aims for lie a few seconds of the fastest intake on a
// store of the default size, so that it is not done for each event.
const (
	trimAt = 85 // replay counts no longer
	trimTo = 80
	shedAt = 90
	shedTo = 84 // a little below 85: sizes are estimated
)

// defaultBacklog is how much of EVENTS one subscriber may hold back in per cent:
// so much that a night's outage passes, and none can fill it alone.
const defaultBacklog = 50

const (
	// trimEvery is how often what is older than replay is trimmed.
	trimEvery = 30 * time.Second
	// pulse is how often the level is read: one small request, and soon enough
	// to notice when EVENTS fills up in seconds.
	pulse = 200 * time.Millisecond
	// soonest and latest bound the time between looks at all subscribers when all
	// is well. In between it is rarely times what a look takes. When room is short
	// or somebody over a limit, it is as long as a look takes, and twice as long
	// after each look that finds no progress, until it is rarely too.
	soonest, latest = time.Second, 30 * time.Second
	rarely          = 50
	// growth is how many per cent of its limit EVENTS may grow unseen.
	growth = 2
	// lag is how far behind a replica of the server may be when it lists the
	// subscribers.
	lag = time.Second
	// quiet is how long nothing more is given up before it counts as over.
	quiet       = time.Minute
	lookTimeout = 20 * time.Second
)

// Loop is the running retention of one process. Stop it once.
type Loop struct {
	cfg      Config
	broker   *broker.Broker
	registry *registry.Registry
	fleet    *registry.Fleet
	metrics  *Metrics
	log      *slog.Logger

	now  func() time.Time
	lag  time.Duration
	ctx  context.Context
	stop context.CancelFunc
	done sync.WaitGroup

	// Only the loop touches what follows.
	trimmed  time.Time // when what is older than replay was last trimmed
	shedding bool
	given    map[string]deliver.GivenUp // as far as reported or counted
	expiring map[string]*episode
	sheds    *episode
}

// episode is a time in which events were given up again and again. It is
// reported when it begins and when it ends.
type episode struct {
	began, last time.Time
	counts      map[string]uint64 // by subscriber
}

// Start begins to keep room. cfg must be valid.
func Start(cfg Config, b *broker.Broker, r *registry.Registry, f *registry.Fleet, m *Metrics, log *slog.Logger) *Loop {
	l := newLoop(cfg, b, r, f, m, log)
	l.done.Go(l.run)
	return l
}

func newLoop(cfg Config, b *broker.Broker, r *registry.Registry, f *registry.Fleet, m *Metrics, log *slog.Logger) *Loop {
	l := &Loop{
		cfg: cfg, broker: b, registry: r, fleet: f, metrics: m, log: log,
		given: map[string]deliver.GivenUp{}, expiring: map[string]*episode{},
		now: time.Now, lag: lag,
	}
	l.ctx, l.stop = context.WithCancel(context.Background())
	return l
}

// Stop ends it and reports what is under way. It returns when nothing runs.
func (l *Loop) Stop() {
	l.stop()
	l.done.Wait()
	l.account(time.Now())
	l.close(time.Now(), 0)
}

func (l *Loop) run() {
	var ended, next time.Time // of the last look; of the next one at the latest
	var took time.Duration
	var seen registry.Space
	times := 1
	for wait := pulse; ; {
		t := time.NewTimer(wait)
		select {
		case <-l.ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		wait = pulse
		now := time.Now()
		ctx, cancel := context.WithTimeout(l.ctx, lookTimeout)
		space, err := l.registry.Space(ctx)
		if err != nil {
			cancel()
			l.log.Debug("level of the stream", "stream", broker.StreamEvents, "error", err)
			continue
		}
		rising := space.Percent()-seen.Percent() >= growth || level(space) > level(seen)
		if now.Before(next) && !(rising && now.Sub(ended) >= took) {
			cancel()
			continue
		}
		if rising {
			times = 1
		}
		result, err := l.once(ctx)
		cancel()
		ended = time.Now()
		took = ended.Sub(now)
		seen = space
		switch {
		case err != nil && l.ctx.Err() == nil:
			l.log.Warn("no look at who has got what, so nothing is trimmed", "error", err)
			fallthrough
		case result == idle:
			times = 1
			next = ended.Add(min(max(rarely*took, soonest), latest))
		default:
			if result == progress {
				times = 1
			}
			next = ended.Add(min(time.Duration(times)*took, latest))
			wait = min(time.Duration(times)*took, pulse)
			times = min(2*times, rarely)
		}
	}
}

// level counts the marks that EVENTS has passed.
func level(s registry.Space) int {
	n := 0
	for _, mark := range []float64{trimAt, shedAt} {
		if s.Percent() >= mark {
			n++
		}
	}
	return n
}

// pressed says whether room is worth more than replay: EVENTS is nearly full, or
// senders are turned away because the disk is.
func (l *Loop) pressed(s registry.Space) bool {
	return s.Percent() >= trimAt || errors.Is(l.broker.Room(), broker.ErrDiskFull)
}

// result is what a look found.
type result int

const (
	idle     result = iota // nothing to do
	wanting                // room is short, or somebody is over a limit
	progress               // and it helps
)

// once looks, and does what there is to do.
func (l *Loop) once(ctx context.Context) (result, error) {
	now := l.now()
	look, err := l.registry.Look(ctx)
	if err != nil {
		return idle, err
	}
	over, err := l.expire(ctx, look, now)
	if err != nil {
		return idle, err
	}
	after, err := l.trim(ctx, look, now)
	if err != nil {
		return idle, err
	}
	l.shed(look, after)
	given := l.account(now)
	l.close(now, quiet)
	l.metrics.lastRun.SetToCurrentTime()
	switch {
	case !over && !l.pressed(look.Space):
		return idle, nil
	case given || after.First > look.First:
		return progress, nil
	}
	return wanting, nil
}

// expire orders those that hold back more than they may to give up their oldest,
// and says whether there are any.
func (l *Loop) expire(ctx context.Context, look registry.Look, now time.Time) (over bool, err error) {
	for _, p := range look.Positions {
		if p.Held == nil {
			continue
		}
		through := uint64(0)
		limits := p.Definition.Limits.Backlog
		bytes := int64(limits.Bytes)
		if bytes == 0 {
			bytes = look.Limit / 100 * defaultBacklog
		}
		if bytes > 0 && p.Held.Bytes > bytes {
			through = look.Past(bytes)
		}
		if age := limits.Age.Std(); age > 0 && now.Sub(p.Held.Since) > age {
			old, err := look.Before(ctx, now.Add(-age))
			if err != nil {
				return over, err
			}
			through = max(through, old)
		}
		if through < p.Held.Sequence {
			continue
		}
		over = true
		if !l.fleet.Expire(p.Definition.Name, through) {
			l.log.Debug("over the limit of its backlog, and without a worker here", "subscriber", p.Definition.Name)
		}
	}
	return over, nil
}

// bound is one of the things that keep events from being trimmed.
type bound struct {
	reason     string // for the metric
	subscriber string
	through    uint64 // what may go
}

// trim deletes what nobody needs any more and says how full EVENTS is then.
func (l *Loop) trim(ctx context.Context, look registry.Look, now time.Time) (registry.Space, error) {
	pressed := l.pressed(look.Space)
	if look.Last <= look.First || !pressed && now.Sub(l.trimmed) < trimEvery {
		return look.Space, nil
	}
	var old uint64
	if pressed {
		target := look.Bytes / 100 * trimTo // the disk is full, and EVENTS may be a small part of it
		if look.Percent() >= trimAt {
			target = look.Limit / 100 * trimTo
		}
		old = look.Past(target)
	} else {
		var err error
		if old, err = look.Before(ctx, now.Add(-l.cfg.Replay.Std())); err != nil {
			return look.Space, err
		}
	}
	// Never the last message that is on the disk: an empty stream could begin
	// its numbers again after a power cut.
	last := min(look.Last, l.broker.DurableThrough())
	bounds := []bound{
		{reason: "replay", through: old},
		{reason: "end", through: last - min(1, last)},
		// The newest subscriber may not be in the list yet.
		{reason: "end", through: look.Known(now.Add(-l.lag))},
	}
	for _, p := range look.Positions {
		bounds = append(bounds, bound{"subscriber", p.Definition.Name, p.Got})
	}
	least := bound{through: math.MaxUint64}
	for _, b := range bounds {
		if b.through < least.through {
			least = b
		}
	}
	after, err := l.delete(ctx, look, least.through, last)
	if err != nil {
		return look.Space, err
	}
	if !pressed {
		l.trimmed = now
	}
	l.metrics.stoppedBy(least.reason)
	gone := max(after.First, look.First) - look.First
	l.metrics.trimmed.Add(float64(gone))
	l.log.Debug("trimmed", "stream", broker.StreamEvents, "events", gone, "through", least.through, "last", look.Last,
		"stopped_by", least.reason, "subscriber", least.subscriber, "room_is_short", pressed)
	return after, nil
}

// delete deletes the events up to a sequence, if one after them stays that is on
// the disk.
func (l *Loop) delete(ctx context.Context, look registry.Look, through, durable uint64) (registry.Space, error) {
	if through < look.First {
		return look.Space, nil
	}
	stays, _, ok, err := look.Next(ctx, through+1, ">")
	if err != nil || !ok || stays > durable {
		return look.Space, err
	}
	if err := l.broker.Change(ctx, func() error { return look.Trim(ctx, through) }); err != nil {
		return look.Space, err
	}
	return l.registry.Space(ctx)
}

// shed orders the oldest events to be dropped when nothing else has helped.
func (l *Loop) shed(look registry.Look, now registry.Space) {
	if l.cfg.OnFull != Shed {
		return
	}
	percent := now.Percent()
	switch {
	case !l.shedding && percent >= shedAt:
		l.shedding = true
	case l.shedding && percent < trimAt:
		l.shedding = false
		for _, p := range look.Positions {
			l.fleet.Shed(p.Definition.Name, 0)
		}
	}
	if !l.shedding {
		return
	}
	through := min(now.Past(now.Limit/100*shedTo), look.Last)
	for _, p := range look.Positions {
		if p.Held != nil && p.Held.Sequence <= through && !l.fleet.Shed(p.Definition.Name, through) {
			l.log.Warn("events can't be shed: their subscriber has no worker here", "subscriber", p.Definition.Name)
		}
	}
}

// account adds what the workers gave up since the last time, and says whether
// there was any.
func (l *Loop) account(now time.Time) (given bool) {
	for name, g := range l.fleet.GivenUp() {
		was := l.given[name]
		if n := g.Expired - min(was.Expired, g.Expired); n > 0 {
			was.Expired, given = g.Expired, true
			if l.expiring[name] == nil {
				l.expiring[name] = &episode{began: now, counts: map[string]uint64{}}
				l.broker.Report("subscriber.backlog-expired", name, map[string]any{
					"phase": "begin", "deadLetters": n, "cause": "backlog",
					"fix": "resume it or see why it does not take events; or delete it, or raise its limits.backlog",
				})
			}
			l.expiring[name].add(name, n, now)
		}
		if n := g.Shed - min(was.Shed, g.Shed); n > 0 {
			was.Shed, given = g.Shed, true
			if l.sheds == nil {
				l.sheds = &episode{began: now, counts: map[string]uint64{}}
				l.broker.Report("storage.shed", broker.StreamEvents, map[string]any{
					"phase": "begin", "subscriber": name, "events": n,
					"fix": "gridfan status says who holds the space; gridfan subscribers shed NAME lists what is gone",
				})
			}
			l.sheds.add(name, n, now)
		}
		l.given[name] = was
	}
	return given
}

func (e *episode) add(name string, n uint64, now time.Time) {
	e.last = now
	e.counts[name] += n
}

// close reports the end of what has been quiet for a while.
func (l *Loop) close(now time.Time, quiet time.Duration) {
	for name, e := range l.expiring {
		if now.Sub(e.last) < quiet {
			continue
		}
		delete(l.expiring, name)
		l.broker.Report("subscriber.backlog-expired", name, map[string]any{
			"phase": "end", "deadLetters": e.counts[name], "since": e.began.UTC(),
		})
	}
	if e := l.sheds; e != nil && now.Sub(e.last) >= quiet {
		l.sheds = nil
		l.broker.Report("storage.shed", broker.StreamEvents, map[string]any{
			"phase": "end", "events": e.counts, "since": e.began.UTC(),
		})
	}
}

// Metrics are those of the retention; docs/metrics.md describes them.
type Metrics struct {
	trimmed prometheus.Counter
	lastRun prometheus.Gauge
	stopped *prometheus.GaugeVec
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		trimmed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gridfan_retention_trimmed_events_total", Help: "Events trimmed from EVENTS after everybody had got them.",
		}),
		lastRun: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gridfan_retention_last_run_timestamp_seconds", Help: "When it was last looked who has got what.",
		}),
		stopped: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gridfan_retention_stopped_by", Help: "1 for what kept the last trim from going further: replay, subscriber, end.",
		}, []string{"reason"}),
	}
	reg.MustRegister(m.trimmed, m.lastRun, m.stopped)
	m.stoppedBy("")
	return m
}

func (m *Metrics) stoppedBy(reason string) {
	for _, r := range []string{"replay", "subscriber", "end"} {
		m.stopped.WithLabelValues(r).Set(map[bool]float64{true: 1}[r == reason])
	}
}
