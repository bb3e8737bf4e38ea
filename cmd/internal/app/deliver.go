package app

import (
	"context"
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/router/auth"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/books"
	"github.com/gridfan/gridfan/subscribers/deadletters"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/eventgrid"
	"github.com/gridfan/gridfan/subscribers/filter"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/retention"
	"github.com/gridfan/gridfan/subscribers/servicebus"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// declare takes over who the configuration file says is to be served. Only processes
// that deliver do: two that follow files of different versions would undo each
// other's work, and routers are the ones that are replaced most often.
func (a *App) declare(ctx context.Context, cfg *config.Config, subscribers *registry.Registry) error {
	if err := a.settle(ctx, "subscribers", func() error { return subscribers.Sweep(ctx) }); err != nil {
		return fmt.Errorf("clear deleted subscribers: %w", err)
	}
	var refused *registry.RefusedError
	if err := a.settle(ctx, "configuration file", func() error {
		return subscribers.Sync(ctx, cfg.Endpoints, cfg.Subscribers)
	}); errors.As(err, &refused) {
		// One subscriber does not keep the others from being served.
		a.log.Error("the configuration file is not taken over as a whole", "problem", err)
	} else if err != nil {
		return err
	}
	return nil
}

// delivery is what looks after what is delivered.
type delivery struct {
	dead  *deadletters.Store
	books *books.Books // nil in a router
}

// openDelivery starts what looks after what is delivered. A router only gives orders
// about dead letters. tally is nil where no events are taken in.
func (a *App) openDelivery(ctx context.Context, cfg *config.Config, subscribers *registry.Registry, fleet *registry.Fleet, recorder *deliver.Recorder, tally *publish.Tally, metrics prometheus.Registerer) (out delivery, err error) {
	err = a.settle(ctx, "dead letters", func() (err error) {
		out.dead, err = deadletters.Open(ctx, deadletters.Parts{
			Broker: a.broker, Recorder: recorder, Registry: subscribers, Fleet: fleet, Compile: compile, Idle: !a.role.delivers(), Log: a.log,
		})
		return err
	})
	if err != nil {
		return out, err
	}
	a.onStop("jobs", func(context.Context) error { out.dead.Close(); return nil })
	if !a.role.delivers() {
		return out, nil
	}
	metrics.MustRegister(registry.NewBacklogMetrics(subscribers, a.log))
	room := retention.Start(cfg.Retention, a.broker, subscribers, fleet, retention.NewMetrics(metrics), a.log)
	a.onStop("retention", func(context.Context) error { room.Stop(); return nil })

	parts := books.Parts{Broker: a.broker, Registry: subscribers, Sources: cfg.From().Names(), Log: a.log, Breaker: fleet.Breaker, Spooled: a.spooled}
	if tally != nil {
		parts.Counted = tally.Save
	}
	if err := a.settle(ctx, "books", func() (err error) {
		out.books, err = books.Open(ctx, parts)
		return err
	}); err != nil {
		return out, err
	}
	a.onStop("books", func(ctx context.Context) error { out.books.Close(ctx); return nil })
	metrics.MustRegister(out.books.Metrics())
	return out, nil
}

// newSender makes the way out that a definition asks for. Where a stranger says
// where it leads, the addresses are judged.
func (a *App) newSender(d registry.Definition, strange bool) (deliver.Sender, error) {
	way, log := a.rules.Way(strange), a.log.With("subscriber", d.Name)
	switch to := d.Deliver; {
	case to.Pull != nil:
		door, err := newDoor(*to.Pull, auth.Deps{Keys: a.tenants, Log: a.log})
		if err != nil {
			return nil, err
		}
		return a.front.pull.Open(d.Name, *to.Pull, door), nil
	case to.EventGrid != nil:
		return eventgrid.New(*to.EventGrid, eventgrid.Options{Concurrency: d.Limits.Concurrency, Version: a.opts.Version, Egress: way, Log: log})
	case to.EventGridNamespace != nil:
		return eventgrid.NewNamespace(*to.EventGridNamespace, eventgrid.Options{Concurrency: d.Limits.Concurrency, Version: a.opts.Version, Egress: way, Log: log})
	case to.ServiceBus != nil:
		return servicebus.New(*to.ServiceBus, servicebus.Options{Version: a.opts.Version, Egress: way, Log: log})
	case to.Webhook == nil:
		return nil, errors.New("its definition names no way out that this version knows")
	}
	keys, err := d.Deliver.Webhook.Sign.Parse()
	if err != nil {
		return nil, err
	}
	return webhook.New(*d.Deliver.Webhook, webhook.Options{
		Concurrency: d.Limits.Concurrency, Version: a.opts.Version, Keys: keys, Subscriber: d.Name, Rate: float64(d.Limits.Rate),
		Log: log, Egress: way,
	})
}

// compile makes a filter of what an operator wrote.
func compile(expression string) (func(*event.Event) (bool, error), error) {
	f, err := filter.Compile(expression)
	if err != nil {
		return nil, err
	}
	return f.Match, nil
}
