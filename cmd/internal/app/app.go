// Package app wires the parts of gridfan together, starts them in the order of
// the flow and stops them in the same order: listeners first, so that nothing
// new comes in, then workers, then the broker's connection.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/infra/telemetry"
	"github.com/gridfan/gridfan/router/auth"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// Options are what a start needs besides the configuration.
type Options struct {
	Version string
	Log     *slog.Logger
	// Role is the part of the work that this process does. Default All.
	Role Role
	// Grace is how long Stop takes at most; the default is the configuration's.
	Grace time.Duration
	// Attempts is how much of it attempts under way may take; longer ones are made
	// again by the next start. Default four fifths.
	Attempts time.Duration
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
	role   Role
	log    *slog.Logger
	broker *broker.Broker
	front  front
	// tenants are the keys that tokens of receivers are checked with.
	tenants *auth.Keys
	// reached is broker once there is one, for those who ask before.
	reached   atomic.Pointer[broker.Broker]
	publisher atomic.Pointer[publish.Publisher] // the same
	up        atomic.Bool                       // all has started
	warnings  warnings

	public, admin net.Listener
	failed        chan error // a listener that ended by itself
	stops         []stopStep
	attempts      time.Time // until when attempts under way may take; set by Stop

	rules *egress.Rules
}

type stopStep struct {
	name string
	stop func(context.Context) error
}

// New starts everything. When it returns without an error, both listeners
// answer and every subscriber is served. The caller calls Stop.
func New(ctx context.Context, cfg *config.Config, opts Options) (*App, error) {
	if opts.Role == "" {
		opts.Role = All
	}
	if opts.Grace == 0 {
		opts.Grace = cfg.Shutdown.Grace.Std()
	}
	if opts.Attempts == 0 {
		opts.Attempts = opts.Grace / 5 * 4
	}
	if err := opts.Role.Fits(cfg); err != nil {
		return nil, err
	}
	a := &App{opts: opts, role: opts.Role, log: opts.Log, failed: make(chan error, 2)}
	if err := a.start(ctx, cfg); err != nil {
		// What had started is stopped again.
		return nil, errors.Join(err, a.Stop())
	}
	return a, nil
}

// start is deliberately one straight line: it is the map of the program. What only
// some roles do is in takein.go and deliver.go.
// Steps push how they are undone; Stop undoes the last one first.
func (a *App) start(ctx context.Context, cfg *config.Config) error {
	started := time.Now()
	for _, w := range cfg.Warnings {
		a.log.Warn(w.String())
	}
	if err := a.listen(cfg); err != nil {
		return err
	}
	metrics := telemetry.NewRegistry(a.opts.Version)
	in, err := a.newTakeIn(cfg, started, metrics)
	if err != nil {
		return err
	}
	if err := a.openFront(cfg, metrics, in.ingress); err != nil {
		return err
	}

	if err := a.reach(ctx, cfg); err != nil {
		return err
	}
	stopAnnouncing := a.broker.Announce(broker.Process{Instance: broker.Instance(), Role: string(a.role), Version: a.opts.Version, Started: started.UTC()})
	a.onStop("announcement", func(context.Context) error { stopAnnouncing(); return nil })
	metrics.MustRegister(broker.NewMetrics(a.broker, a.log))

	// A broker that is there may still elect leaders, so what is asked of it from here on
	// is asked again for a while.
	var subscribers *registry.Registry
	if err := a.settle(ctx, "registry", func() (err error) {
		subscribers, err = registry.Open(ctx, a.broker, a.log)
		return err
	}); err != nil {
		return err
	}
	fleet, recorder, err := a.serveSubscribers(ctx, cfg, subscribers, metrics)
	if err != nil {
		return err
	}
	// Begun before anything is published and ended after: what is counted in the
	// books is compared with what is in the streams.
	out, err := a.openDelivery(ctx, cfg, subscribers, fleet, recorder, in.tally, metrics)
	if err != nil {
		return err
	}
	if err := a.openTakeIn(ctx, cfg, in, metrics); err != nil {
		return err
	}
	in.books = out.books

	a.onStop("requests", a.front.closeDoors)
	in.receive(a)
	sections := a.opts.Sections
	if sections == nil {
		sections = cfg.Sections()
	}
	live := config.NewLive(config.Following{
		File: a.opts.File, Load: a.opts.Load, Started: cfg, Sections: sections, Take: in.take,
		Registry: subscribers, Declares: a.role.delivers(), Report: a.broker.Report, Log: a.log,
	})
	a.background("configuration", func(ctx context.Context) { live.Run(ctx, a.opts.Reload) })
	listening, stopListening := context.WithCancel(context.Background())
	a.openAPI(admin.NewHandler(admin.Parts{
		Version: a.opts.Version, Role: string(a.role), Started: started, Broker: a.broker, Health: a.probes(),
		Sources: in.current, Ingress: in.ingress, Poller: in.poller, Completer: in.completer, Receivers: in.inboxes, Publisher: in.publisher, Quarantine: in.quarantine,
		Registry: subscribers, Fleet: fleet, Egress: a.rules, Config: live, DeadLetters: out.dead, Books: out.books, Gatherer: metrics, Log: a.log, Stopping: listening,
	}, cfg.Listen.AdminToken), stopListening)
	a.up.Store(true)

	a.log.Info("gridfan is up", "version", a.opts.Version, "role", a.role,
		"ingress", a.public.Addr().String(), "admin", a.admin.Addr().String(), "nats", a.broker.URL(), "clients", a.broker.ClientsURL(),
		"sources", cfg.Count(), "took", time.Since(started).Round(time.Millisecond))
	return nil
}

// listen takes the addresses: a taken one should show before anything is written.
func (a *App) listen(cfg *config.Config) error {
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
	return nil
}

// reach starts or reaches the broker, and says what its acks are worth.
func (a *App) reach(ctx context.Context, cfg *config.Config) error {
	settings := cfg.Broker
	var err error
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
		a.warnings.add("durability " + string(d.Mode) + ": " + d.Detail)
		a.log.Warn("durability "+string(d.Mode), "detail", d.Detail)
	}
	if !a.broker.Embedded() {
		if n := a.broker.MaxPayload(); n < broker.MaxPayload {
			a.log.Warn("the external broker takes smaller messages than the embedded one; larger events are refused with 413, which is final for their senders",
				"max_payload", n, "fix", fmt.Sprintf("set max_payload: %d on every server", broker.MaxPayload))
		}
	}
	return nil
}

// serveSubscribers starts the workers of this role. A router serves those whose
// receivers fetch their events: they come to its public listener.
func (a *App) serveSubscribers(ctx context.Context, cfg *config.Config, subscribers *registry.Registry, metrics prometheus.Registerer) (*registry.Fleet, *deliver.Recorder, error) {
	var recorder *deliver.Recorder
	err := a.settle(ctx, "recorder", func() (err error) {
		recorder, err = deliver.NewRecorder(ctx, a.broker, a.log)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	a.onStop("recorder", func(context.Context) error { recorder.Close(); return nil })

	// A broker in this process has it from us how far subscribers have come.
	var positions *deliver.Positions
	if a.broker.Embedded() {
		if positions, err = deliver.OpenPositions(ctx, cfg.Broker.Dir, a.broker, recorder, a.log); err != nil {
			return nil, nil, err
		}
		a.onStop("positions", func(context.Context) error { positions.Close(); return nil })
	}

	mine := func(d registry.Definition) bool { return d.Deliver.Pull != nil }
	if a.role.delivers() {
		mine = nil
		if err := a.declare(ctx, cfg, subscribers); err != nil {
			return nil, nil, err
		}
	}
	var board *deliver.Board
	if err := a.settle(ctx, "breakers' board", func() (err error) {
		board, err = deliver.NewBoard(ctx, a.broker, a.log)
		return err
	}); err != nil {
		return nil, nil, err
	}
	a.onStop("breakers' board", func(context.Context) error { board.Close(); return nil })
	working := deliver.Parts{
		Broker: a.broker, Recorder: recorder, Metrics: deliver.NewMetrics(metrics), Board: board, Positions: positions, Log: a.log,
	}
	var fleet *registry.Fleet
	if err := a.settle(ctx, "workers", func() (err error) {
		fleet, err = registry.StartFleetOf(ctx, subscribers, working, a.newSender, mine, a.log)
		return err
	}); err != nil {
		return nil, nil, err
	}
	a.onStop("subscribers", func(context.Context) error { fleet.Stop(time.Until(a.attempts)); return nil })
	a.front.pull.Ready()
	return fleet, recorder, nil
}

// warnings are what should be known and stops nothing. They are safe for concurrent
// use.
type warnings struct {
	mu   sync.Mutex // guards list
	list []string
}

func (w *warnings) add(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, text)
}

func (w *warnings) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.list)
}

// background runs something until the program stops.
func (a *App) background(name string, run func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); run(ctx) }()
	a.onStop(name, func(context.Context) error { cancel(); <-done; return nil })
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
	b := a.reached.Load()
	switch {
	case b == nil:
		return broker.ErrAway
	case !a.up.Load():
		return errors.New("starting")
	}
	return b.Health(ctx)
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

// Stop stops everything, last started first, and joins what went wrong. It returns
// when the grace is over, whatever goes on by then: the process is killed soon
// after, and a kill loses nothing.
func (a *App) Stop() error {
	start := time.Now()
	a.attempts = start.Add(a.opts.Attempts)
	ctx, cancel := context.WithTimeout(context.Background(), a.opts.Grace)
	defer cancel()
	var at atomic.Pointer[string]
	done := make(chan error, 1)
	go func() {
		var errs []error
		for i := len(a.stops) - 1; i >= 0; i-- {
			step := a.stops[i]
			at.Store(&step.name)
			ctx, cancel := context.WithTimeout(ctx, stepTimeout)
			if err := step.stop(ctx); err != nil {
				errs = append(errs, fmt.Errorf("stop %s: %w", step.name, err))
			}
			cancel()
		}
		done <- errors.Join(errs...)
	}()
	select {
	case err := <-done:
		a.stops = nil
		a.log.Info("gridfan has stopped", "took", time.Since(start).Round(time.Millisecond))
		return err
	case <-ctx.Done():
		return fmt.Errorf("the grace of %v is over while it stops %s; nothing is lost, and the next start goes on; shutdown.grace gives it longer", a.opts.Grace, *at.Load())
	}
}

// stepTimeout keeps one part that does not stop from taking all of the grace.
const stepTimeout = 15 * time.Second

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
