// Package app wires the parts of gridfan together, starts them in the order of
// the flow and stops them in the same order: listeners first, so that nothing
// new comes in, then workers, then the broker's connection.
package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/infra/telemetry"
	"github.com/gridfan/gridfan/router/auth"
	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/router/quarantine"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/books"
	"github.com/gridfan/gridfan/subscribers/deadletters"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/eventgrid"
	"github.com/gridfan/gridfan/subscribers/filter"
	"github.com/gridfan/gridfan/subscribers/pull"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/retention"
	"github.com/gridfan/gridfan/subscribers/servicebus"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// Options are what a start needs besides the configuration.
type Options struct {
	Version string
	Log     *slog.Logger
	// Grace is how long attempts under way may take when gridfan stops; longer
	// ones are made again by the next start. Default 20 s: container platforms
	// kill after 30.
	Grace time.Duration
	// File is the configuration's, and Load reads it again; both empty if there is
	// none to follow. Reload asks for that at once. Sections are digests of the
	// configuration as it is in the file; nil means as it is.
	File     string
	Load     func() (*config.Config, error)
	Reload   <-chan os.Signal
	Sections map[string]string
}

// App is a running gridfan.
type App struct {
	opts   Options
	log    *slog.Logger
	broker *broker.Broker
	pull   *pull.Server
	// tenants are the keys that tokens of receivers are checked with.
	tenants *auth.Keys
	// reached is broker once there is one, for those who ask before.
	reached   atomic.Pointer[broker.Broker]
	publisher atomic.Pointer[publish.Publisher] // the same

	public, admin net.Listener
	failed        chan error // a listener that ended by itself
	stops         []stopStep

	rules *egress.Rules
}

type stopStep struct {
	name string
	stop func(context.Context) error
}

// New starts everything. When it returns without an error, both listeners
// answer and every subscriber is served. The caller calls Stop.
func New(ctx context.Context, cfg *config.Config, opts Options) (*App, error) {
	if opts.Grace == 0 {
		opts.Grace = 20 * time.Second
	}
	a := &App{opts: opts, log: opts.Log, failed: make(chan error, 2)}
	if err := a.start(ctx, cfg); err != nil {
		// What had started is stopped again.
		return nil, errors.Join(err, a.Stop())
	}
	return a, nil
}

// start is deliberately one straight line: it is the map of the program.
// Steps push how they are undone; Stop undoes the last one first.
func (a *App) start(ctx context.Context, cfg *config.Config) error {
	started := time.Now()
	for _, w := range cfg.Warnings {
		a.log.Warn(w.String())
	}

	// Addresses first: a taken one should show before anything is written.
	var err error
	if a.rules, err = egress.New(cfg.Egress); err != nil {
		return err
	}
	if a.public, err = net.Listen("tcp", cfg.Listen.Public); err != nil {
		return fmt.Errorf("listen.public.addr: %w", err)
	}
	a.onStop("public listener", func(context.Context) error { return ignoreClosed(a.public.Close()) })
	if a.admin, err = net.Listen("tcp", cfg.Listen.Admin); err != nil {
		return fmt.Errorf("listen.admin.addr: %w", err)
	}
	a.onStop("admin listener", func(context.Context) error { return ignoreClosed(a.admin.Close()) })

	public := a.public
	if cfg.Listen.TLS != nil {
		t, err := newTLS(*cfg.Listen.TLS, "listen.public.tls", []string{"h2", "http/1.1"}, a.log)
		if err != nil {
			return err
		}
		public = tls.NewListener(a.public, t)
	}

	// The public listener answers from here on, because the broker may be away:
	// handshakes need none, and events get 503 and not a closed door.
	metrics := telemetry.NewRegistry(a.opts.Version)
	tally := publish.NewTally()
	in, err := ingress.New(ingress.Config{Sources: cfg.Sources, Pulled: cfg.From().NotPushed(), TrustedProxies: cfg.Listen.TrustedProxies, Tally: tally, Since: started},
		ingress.NewMetrics(metrics), a.report, a.log)
	if err != nil {
		return err
	}
	probes := http.NewServeMux()
	admin.Probes(probes, a.health, in.Stopping)
	a.pull = pull.New(pull.NewMetrics(metrics), a.log)
	a.tenants = auth.NewKeys(nil, a.log, nil)
	stopPublic := a.serve("public", public, &http.Server{
		Handler: route(probes, a.pull, in),
		// A sender that dawdles over its headers or body holds a connection
		// and no more: Event Grid itself gives up after 30 seconds.
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       60 * time.Second,
		WriteTimeout:      90 * time.Second,
		IdleTimeout:       2 * time.Minute,
		// Event Grid can add ten headers of 4 KiB.
		MaxHeaderBytes: 64 << 10,
	})

	settings := cfg.Broker
	if cfg.ClientsTLS != nil {
		if settings.Clients.TLS, err = newTLS(*cfg.ClientsTLS, "broker.embedded.clients.tls", nil, a.log); err != nil {
			return err
		}
	}
	if a.broker, err = a.openBroker(ctx, settings); err != nil {
		return err
	}
	a.reached.Store(a.broker)
	a.onStop("broker", func(context.Context) error { a.broker.Close(); return nil })
	if d := a.broker.Durability(); d.Warning {
		a.log.Warn("durability "+string(d.Mode), "detail", d.Detail)
	}
	if !a.broker.Embedded() {
		if n := a.broker.MaxPayload(); n < broker.MaxPayload {
			a.log.Warn("the external broker takes smaller messages than the embedded one; larger events are refused with 413, which is final for their senders",
				"max_payload", n, "fix", fmt.Sprintf("set max_payload: %d on every server", broker.MaxPayload))
		}
	}

	// A broker that is there may still elect leaders, so what is asked of it from here
	// on is asked again for a while.
	var recorder *deliver.Recorder
	if err := a.settle(ctx, "recorder", func() (err error) {
		recorder, err = deliver.NewRecorder(ctx, a.broker, a.log)
		return err
	}); err != nil {
		return err
	}
	a.onStop("recorder", func(context.Context) error { recorder.Close(); return nil })

	// A broker in this process has it from us how far subscribers have come.
	var positions *deliver.Positions
	if a.broker.Embedded() {
		if positions, err = deliver.OpenPositions(ctx, cfg.Broker.Dir, a.broker, recorder, a.log); err != nil {
			return err
		}
		a.onStop("positions", func(context.Context) error { positions.Close(); return nil })
	}

	var subscribers *registry.Registry
	if err := a.settle(ctx, "subscribers", func() (err error) {
		if subscribers, err = registry.Open(ctx, a.broker, a.log); err != nil {
			return err
		}
		if err := subscribers.Sweep(ctx); err != nil {
			return fmt.Errorf("clear deleted subscribers: %w", err)
		}
		return nil
	}); err != nil {
		return err
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
	metrics.MustRegister(registry.NewBacklogMetrics(subscribers, a.log))
	var board *deliver.Board
	if err := a.settle(ctx, "breakers' board", func() (err error) {
		board, err = deliver.NewBoard(ctx, a.broker, a.log)
		return err
	}); err != nil {
		return err
	}
	a.onStop("breakers' board", func(context.Context) error { board.Close(); return nil })
	working := deliver.Parts{
		Broker: a.broker, Recorder: recorder, Metrics: deliver.NewMetrics(metrics), Board: board, Positions: positions, Log: a.log,
	}
	var fleet *registry.Fleet
	if err := a.settle(ctx, "workers", func() (err error) {
		fleet, err = registry.StartFleet(ctx, subscribers, working, a.newSender, a.log)
		return err
	}); err != nil {
		return err
	}
	a.onStop("subscribers", func(context.Context) error { fleet.Stop(a.opts.Grace); return nil })
	a.pull.Ready()
	var dead *deadletters.Store
	if err := a.settle(ctx, "dead letters", func() (err error) {
		dead, err = deadletters.Open(ctx, deadletters.Parts{
			Broker: a.broker, Recorder: recorder, Registry: subscribers, Fleet: fleet, Compile: compile, Log: a.log,
		})
		return err
	}); err != nil {
		return err
	}
	a.onStop("jobs", func(context.Context) error { dead.Close(); return nil })
	metrics.MustRegister(broker.NewMetrics(a.broker, a.log))
	room := retention.Start(cfg.Retention, a.broker, subscribers, fleet, retention.NewMetrics(metrics), a.log)
	a.onStop("retention", func(context.Context) error { room.Stop(); return nil })

	// Begun before anything is published and ended after: what is counted here
	// is compared with what is in the streams.
	names := cfg.From().Names()
	var kept *books.Books
	if err := a.settle(ctx, "books", func() (err error) {
		kept, err = books.Open(ctx, books.Parts{
			Broker: a.broker, Registry: subscribers, Sources: names, Log: a.log, Breaker: fleet.Breaker, Counted: tally.Save, Spooled: a.spooled,
		})
		return err
	}); err != nil {
		return err
	}
	a.onStop("books", func(ctx context.Context) error { kept.Close(ctx); return nil })
	metrics.MustRegister(kept.Metrics())
	if err := a.settle(ctx, "counts of the sources", func() error { return tally.Start(ctx, a.broker, a.log) }); err != nil {
		return err
	}
	a.onStop("counts of the sources", func(ctx context.Context) error { tally.Stop(ctx); return nil })

	publishing := publish.Config{Dedup: cfg.Dedup, Tally: tally, Log: a.log}
	if a.broker.Embedded() {
		publishing.IndexDir = filepath.Join(cfg.Broker.Dir, "dedup")
	}
	if cfg.Spool != nil {
		if publishing.Spool, err = broker.OpenSpool(ctx, *cfg.Spool, a.log); err != nil {
			return err
		}
		a.onStop("spool", func(context.Context) error { publishing.Spool.Close(); return nil })
		publishing.IndexDir = filepath.Join(cfg.Spool.Dir, "dedup")
	}
	var publisher *publish.Publisher
	if err := a.settle(ctx, "publisher", func() (err error) {
		publisher, err = publish.New(ctx, a.broker, publishing)
		return err
	}); err != nil {
		return err
	}
	a.onStop("publisher", func(context.Context) error { return publisher.Close() })
	a.publisher.Store(publisher)
	metrics.MustRegister(publisher.Metrics())
	inboxes, err := a.receivers(cfg, publisher, metrics)
	if err != nil {
		return err
	}
	from := &sources{app: a, ingress: in, inboxes: inboxes, books: kept, held: quarantine.NewMetrics(metrics, names...)}
	from.now.Store(new(cfg.From()))
	var held *quarantine.Store
	if err := a.settle(ctx, "quarantine", func() (err error) {
		held, err = quarantine.Open(ctx, a.broker, publisher, reparse(in, from.current, inboxes), from.held)
		return err
	}); err != nil {
		return err
	}

	polled, err := a.polled(cfg.Polled)
	if err != nil {
		return err
	}
	poller := poll.New(poll.Parts{Broker: a.broker, Publish: marked(publisher), Metrics: poll.NewMetrics(metrics), Log: a.log})
	if err := a.settle(ctx, "polling", func() error { return poller.Start(ctx) }); err != nil {
		return fmt.Errorf("polling: %w", err)
	}
	a.onStop("pollers", func(ctx context.Context) error { poller.Stop(ctx); return nil })
	poller.Apply(polled)
	from.poller = poller

	in.Publish(publisher)
	a.onStop("public server", stopPublic)
	a.onStop("ingress", func(context.Context) error { in.Stop(); return nil })
	a.onStop("receivers", func(context.Context) error { a.pull.Stop(); return nil })
	inboxes.Start()
	a.onStop("inboxes", func(context.Context) error { inboxes.Stop(); return nil })
	sections := a.opts.Sections
	if sections == nil {
		sections = cfg.Sections()
	}
	live := config.NewLive(config.LiveParts{File: a.opts.File, Load: a.opts.Load, Started: cfg, Sections: sections, Take: from.take}, subscribers, a.broker.Report, a.log)
	a.background("configuration", func(ctx context.Context) { live.Run(ctx, a.opts.Reload) })
	stopping, stop := context.WithCancel(context.Background())
	api := &http.Server{
		Handler: admin.NewHandler(admin.Parts{
			Version: a.opts.Version, Started: started, Broker: a.broker, Ingress: in, Poller: poller, Sources: from.current, Receivers: inboxes, Publisher: publisher, Quarantine: held,
			Registry: subscribers, Fleet: fleet, Egress: a.rules, Config: live, DeadLetters: dead, Books: kept, Gatherer: metrics, Log: a.log, Stopping: stopping,
		}, cfg.Listen.AdminToken),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      60 * time.Second,
	}
	api.RegisterOnShutdown(stop)
	a.serve("admin", a.admin, api)

	a.log.Info("gridfan is up", "version", a.opts.Version,
		"ingress", a.public.Addr().String(), "admin", a.admin.Addr().String(), "nats", a.broker.URL(), "clients", a.broker.ClientsURL(),
		"sources", len(names), "took", time.Since(started).Round(time.Millisecond))
	return nil
}

// background runs something until the program stops.
func (a *App) background(name string, run func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); run(ctx) }()
	a.onStop(name, func(context.Context) error { cancel(); <-done; return nil })
}

// route serves the probes and those who fetch events beside the ingress. All other
// paths reach the ingress as they came: ServeMux would answer one with double
// slashes by a redirect, which stock Azure clients take for success.
func route(probes, receivers, in http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.Path; {
		case path == "/livez", path == "/readyz", path == "/healthz":
			probes.ServeHTTP(w, r)
		case pull.Owns(path):
			receivers.ServeHTTP(w, r)
		default:
			in.ServeHTTP(w, r)
		}
	})
}

// openBroker starts or reaches the broker. An external one that does not answer
// is waited for: it may be starting together with us.
func (a *App) openBroker(ctx context.Context, cfg broker.Config) (*broker.Broker, error) {
	for wait := time.Second; ; wait = min(2*wait, 10*time.Second) {
		b, err := broker.Open(ctx, cfg, a.log)
		if !errors.Is(err, broker.ErrAway) {
			return b, err
		}
		a.log.Warn("the broker does not answer; handshakes are answered, and events are told to come back", "error", err, "again_in", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// settleFor is how long a start asks a broker again that does not do what it needs at the
// moment: a cluster elects a leader within seconds, and a server that is restarted is
// back within a minute. After it the start fails, and whoever runs gridfan knows.
const settleFor = 2 * time.Minute

// settle does a step of the start until the broker does its part, and says so. A step
// that has failed has left nothing behind.
func (a *App) settle(ctx context.Context, what string, step func() error) error {
	began := time.Now()
	for wait := 250 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := step()
		if err == nil || ctx.Err() != nil || !broker.Away(err) || time.Since(began) > settleFor {
			return err
		}
		a.log.Warn("the broker does not do what the start needs, trying again", "step", what, "error", err, "again_in", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}

// report passes on what happened to the ingress once there is a broker.
func (a *App) report(what, about string, attrs map[string]any) {
	if b := a.reached.Load(); b != nil {
		b.Report(what, about, attrs)
		return
	}
	a.log.Info(what, "about", about, "attrs", attrs)
}

func (a *App) health(ctx context.Context) error {
	if b := a.reached.Load(); b != nil {
		return b.Health(ctx)
	}
	return broker.ErrAway
}

// spooled tells how many events of this process wait for the broker.
func (a *App) spooled(ctx context.Context) uint64 {
	p := a.publisher.Load()
	if p == nil {
		return 0
	}
	spool, _ := p.Spool(ctx)
	return spool.Waiting
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
		return a.pull.Open(d.Name, *to.Pull, door), nil
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

// serve answers on l. It returns what stops it, which it also pushes.
func (a *App) serve(name string, l net.Listener, s *http.Server) (stop func(context.Context) error) {
	s.ErrorLog = slog.NewLogLogger(a.log.Handler(), slog.LevelDebug)
	go func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			a.failed <- fmt.Errorf("%s listener: %w", name, err)
		}
	}()
	stop = func(ctx context.Context) error {
		if err := s.Shutdown(ctx); err != nil {
			return errors.Join(err, s.Close())
		}
		return nil
	}
	a.onStop(name+" server", stop)
	return stop
}

func (a *App) onStop(name string, stop func(context.Context) error) {
	a.stops = append(a.stops, stopStep{name, stop})
}

// Wait returns when ctx ends, or with the error of a part that failed.
func (a *App) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-a.failed:
		return err
	}
}

// Stop stops everything, last started first, and joins what went wrong.
func (a *App) Stop() error {
	start := time.Now()
	var errs []error
	for i := len(a.stops) - 1; i >= 0; i-- {
		step := a.stops[i]
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		if err := step.stop(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", step.name, err))
		}
		cancel()
	}
	a.stops = nil
	a.log.Info("gridfan has stopped", "took", time.Since(start).Round(time.Millisecond))
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// PublicAddr is where events are posted.
func (a *App) PublicAddr() string { return a.public.Addr().String() }

// AdminAddr is where the admin API answers.
func (a *App) AdminAddr() string { return a.admin.Addr().String() }

// BrokerURL is where NATS clients connect; empty if nowhere.
func (a *App) BrokerURL() string { return a.broker.URL() }
