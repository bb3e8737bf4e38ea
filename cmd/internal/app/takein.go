package app

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/complete"
	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/router/quarantine"
	"github.com/gridfan/gridfan/router/receive"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/books"
)

// takeIn is how events come in. In a process that takes none in there is only the
// quarantine, to be looked at.
type takeIn struct {
	app        *App
	now        atomic.Pointer[config.Sources] // those at work
	rows       map[string]*rows               // what events are completed from, by source
	held       *quarantine.Metrics
	books      *books.Books // nil in a router
	ingress    *ingress.Ingress
	tally      *publish.Tally
	publisher  *publish.Publisher
	inboxes    *receive.Receivers
	poller     *poll.Poller
	completer  *complete.Completer
	quarantine *quarantine.Store
}

// newTakeIn makes what answers senders before there is a broker.
func (a *App) newTakeIn(cfg *config.Config, started time.Time, metrics prometheus.Registerer) (*takeIn, error) {
	t := &takeIn{app: a, rows: map[string]*rows{}}
	t.now.Store(new(cfg.From()))
	if !a.role.takesIn() {
		return t, nil
	}
	t.tally = publish.NewTally()
	var err error
	t.ingress, err = ingress.New(ingress.Config{
		Sources: cfg.Sources, Pulled: cfg.From().NotPushed(), TrustedProxies: cfg.Listen.TrustedProxies, Tally: t.tally, Since: started,
	}, ingress.NewMetrics(metrics), a.report, a.log)
	return t, err
}

// openTakeIn makes all that stores events, and lets those be stored that wait.
func (a *App) openTakeIn(ctx context.Context, cfg *config.Config, t *takeIn, metrics prometheus.Registerer) (err error) {
	t.held = quarantine.NewMetrics(metrics, cfg.From().Names()...)
	if !a.role.takesIn() {
		return a.settle(ctx, "quarantine", func() (err error) {
			t.quarantine, err = quarantine.Open(ctx, a.broker, nil, nil, t.held)
			return err
		})
	}
	if err := a.settle(ctx, "counts of the sources", func() error { return t.tally.Start(ctx, a.broker, a.log) }); err != nil {
		return err
	}
	a.onStop("counts of the sources", func(ctx context.Context) error { t.tally.Stop(ctx); return nil })

	publishing := publish.Config{Dedup: cfg.Dedup, Tally: t.tally, Log: a.log}
	if a.broker.Embedded() {
		publishing.IndexDir = filepath.Join(cfg.Broker.Dir, "dedup")
	}
	if cfg.Spool != nil {
		if publishing.Spool, err = broker.OpenSpool(ctx, *cfg.Spool, a.log); err != nil {
			return err
		}
		a.onStop("spool", func(context.Context) error { publishing.Spool.Close(); return nil })
		if d := publishing.Spool.Durability(); d.Warning {
			a.warnings.add("broker.spool: " + d.Detail)
			a.log.Warn("the spool may be lost", "detail", d.Detail)
		}
		publishing.IndexDir = filepath.Join(cfg.Spool.Dir, "dedup")
	}
	if err := a.settle(ctx, "publisher", func() (err error) {
		t.publisher, err = publish.New(ctx, a.broker, publishing)
		return err
	}); err != nil {
		return err
	}
	a.onStop("publisher", func(context.Context) error { return t.publisher.Close() })
	a.publisher.Store(t.publisher)
	metrics.MustRegister(t.publisher.Metrics())
	// Whoever takes events in gives them to the completer. It asks sources within the
	// budgets of the poller, which gives it what was polled.
	t.poller = poll.New(poll.Parts{Broker: a.broker, Publish: marked(func(ctx context.Context, o publish.Origin, results []event.Result) ([]publish.Status, error) {
		return t.completer.Publish(ctx, o, results)
	}), Metrics: poll.NewMetrics(metrics), Log: a.log})
	if err := t.openCompleter(ctx, cfg, metrics); err != nil {
		return err
	}
	if t.inboxes, err = a.receivers(cfg, t.completer, metrics); err != nil {
		return err
	}
	if err := a.settle(ctx, "quarantine", func() (err error) {
		t.quarantine, err = quarantine.Open(ctx, a.broker, t.publisher, reparse(t.ingress, t.current, t.inboxes), t.held)
		return err
	}); err != nil {
		return err
	}
	asked, err := a.polled(cfg.Polled)
	if err != nil {
		return err
	}
	if err := a.settle(ctx, "polling", func() error { return t.poller.Start(ctx) }); err != nil {
		return fmt.Errorf("polling: %w", err)
	}
	a.onStop("pollers", func(ctx context.Context) error { t.poller.Stop(ctx); return nil })
	t.poller.Apply(asked)
	t.completer.Start()
	t.ingress.Publish(t.completer.Publish)
	return nil
}

// receive begins to take events from other brokers.
func (t *takeIn) receive(a *App) {
	if t.inboxes == nil {
		return
	}
	t.inboxes.Start()
	a.onStop("inboxes", func(context.Context) error { t.inboxes.Stop(); return nil })
}
