// Package dev is "gridfan dev": a whole gridfan on loopback with a temporary
// store, for a newcomer who has one minute.
//
// Nothing in it is simulated but the two ends. The configuration is a file as a
// user would write it, samples are posted over HTTP with the source's key, the
// demo subscribers are HTTP servers, and what is said of breakers comes from
// the admin API. One subscriber is healthy, one slow and one down, so that one
// sees what the program is for: each gets its events at its own pace.
package dev

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/cmd/internal/app"
	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/cmd/internal/samples"
	"github.com/gridfan/gridfan/schemas/event"
)

// Options say how dev runs. The zero value does with Out alone.
type Options struct {
	// Out gets what dev has to show, in whole lines, one Write at a time.
	Out io.Writer
	// Color allows escape sequences in Out.
	Color bool
	// Version is gridfan's, for its User-Agent and metrics.
	Version string
	// Log gets the log of the gridfan that runs. Default none.
	Log *slog.Logger

	// Public, Admin and NATS are addresses to listen at; port 0 is any free
	// one. NATS may be "none". Empty means 127.0.0.1 with port 8080, 8081 and
	// 4222, or a free port if that one is taken; one that is asked for must be
	// free.
	Public, Admin, NATS string

	// Once ends dev when the first round is told: healthy and slow have all
	// their events and the breaker of failing is open.
	Once bool
	// Interval is the time between samples after the first round. Default 5 s.
	Interval time.Duration
	// Program is how a copied command calls gridfan. Default bin/gridfan,
	// where make puts it.
	Program string
}

// Run runs the demonstration until ctx ends, and then returns nil. When it
// returns, all it started has stopped and its folder is gone.
func Run(ctx context.Context, o Options) error {
	o.Interval = cmp.Or(o.Interval, 5*time.Second)
	o.Program = cmp.Or(o.Program, "bin/gridfan")
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	d := &demo{
		Options: o,
		screen:  &screen{out: o.Out, color: o.Color},
		kinds:   map[string]string{},
		keys:    map[string]string{"prod": rand.Text(), "files": rand.Text()},
	}
	for kind, source := range sourceOf {
		d.kinds[source] = kind
	}
	running, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := d.start(running)
	if err == nil {
		var background sync.WaitGroup
		background.Go(func() { d.watcher.run(running) })
		background.Go(func() {
			if err := d.app.Wait(running); err != nil {
				cancel(err)
			}
		})
		err = d.play(running)
		cancel(nil)
		background.Wait()
	}
	if ctx.Err() != nil {
		err = nil // interrupted, which is how dev ends
	}
	return errors.Join(err, d.stop())
}

// demo is one run.
type demo struct {
	Options
	screen *screen
	kinds  map[string]string // of the sources, by name
	keys   map[string]string // of the sources, by name

	dir       string // of this run
	config    string // file in it
	addresses addresses
	receivers []*receiver
	app       *app.App
	client    *admin.Client
	watcher   *watcher
	poster    *poster
}

// start brings everything up. What had started when it fails, stop ends.
func (d *demo) start(ctx context.Context) error {
	var err error
	if d.dir, err = os.MkdirTemp("", "gridfan-dev-"); err != nil {
		return err
	}
	d.config = filepath.Join(d.dir, "gridfan.yaml")
	urls := map[string]string{}
	for _, r := range []*receiver{
		{name: "healthy"},
		{name: "slow", delay: 800 * time.Millisecond},
		{name: "failing", healed: d.healed},
		{name: "audit"},
	} {
		r.screen, r.kinds = d.screen, d.kinds
		r.failing.Store(r.name == "failing")
		if err := r.start(d.Log); err != nil {
			return err
		}
		d.receivers = append(d.receivers, r)
		urls[r.name] = r.url
	}

	const tries = 5 // of ports that were free a moment before
	for try := 1; ; try++ {
		if d.addresses, err = choose(d.Options, standard); err != nil {
			return err
		}
		err = d.startApp(ctx, settings{
			Public: d.addresses.public, Admin: d.addresses.admin, NATS: d.addresses.nats,
			Data:    filepath.Join(d.dir, "data"),
			Healthy: urls["healthy"], Slow: urls["slow"], Failing: urls["failing"],
		})
		if err == nil {
			break
		}
		if !d.addresses.chosen || !errors.Is(err, syscall.EADDRINUSE) || try == tries {
			return err
		}
	}
	d.client = &admin.Client{URL: baseURL(d.app.AdminAddr())}
	d.watcher = newWatcher(d.client, d.screen)
	d.poster = newPoster(baseURL(d.app.PublicAddr()), d.keys, d.screen)
	return d.watcher.begin(ctx)
}

// startApp writes the configuration and starts gridfan with it. The keys stay
// out of the file, as they should in everybody's.
func (d *demo) startApp(ctx context.Context, s settings) error {
	text, err := s.yaml()
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.config, text, 0o600); err != nil {
		return err
	}
	lookup := config.System()
	lookup.Env = func(name string) (string, bool) {
		key, ok := map[string]string{prodKey: d.keys["prod"], filesKey: d.keys["files"]}[name]
		return key, ok
	}
	cfg, err := config.Parse(d.config, text, lookup)
	if err != nil {
		return err
	}
	// What slow has at hand when dev ends takes 800 ms.
	d.app, err = app.New(ctx, cfg, app.Options{Version: d.Version, Log: d.Log, Attempts: 2 * time.Second})
	return err
}

// play is the demonstration itself. When ctx ends, it returns why.
func (d *demo) play(ctx context.Context) error {
	d.screen.text(d.opening()...)
	for _, name := range firstRound {
		if err := d.poster.post(ctx, name); err != nil {
			return err
		}
	}
	// The third failure comes after a fifth of a second. What to try next is
	// easier to find below all of the first round than in its middle.
	select {
	case <-d.watcher.opened:
	case <-time.After(3 * time.Second):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	hints, err := d.hints()
	if err != nil {
		return err
	}
	d.screen.text(hints...)
	if d.Once {
		return d.drained(ctx)
	}
	t := time.NewTicker(d.Interval)
	defer t.Stop()
	names := events()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
		if err := d.poster.post(ctx, names[i%len(names)]); err != nil {
			return err
		}
	}
}

// drained waits until everybody who can has everything.
func (d *demo) drained(ctx context.Context) error {
	const limit = 30 * time.Second // slow needs less than 3
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not everything was delivered within %s", limit))
	defer cancel()
	for {
		list, err := d.client.Subscribers(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		left := 0
		for _, s := range list {
			if s.Definition.Name != "failing" {
				left += s.Backlog.Pending + s.Backlog.Retry
			}
		}
		if err == nil && left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// healed is called when somebody healed the failing subscriber.
func (d *demo) healed() {
	d.screen.event(yellow, "failing: answers 200 from now on; gridfan finds out "+d.watcher.nextProbe("failing"))
}

// stop ends what start started and says how it went.
func (d *demo) stop() error {
	var errs []error
	var status *admin.Status
	if d.poster != nil {
		// A Status asked for now is the last one there is.
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s, err := d.client.Status(ctx)
		if err == nil {
			status = s
		}
		errs = append(errs, err)
		d.poster.close()
	}
	if d.app != nil {
		errs = append(errs, d.app.Stop())
	}
	for _, r := range d.receivers {
		errs = append(errs, r.stop())
	}
	if d.dir != "" {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	if status != nil {
		d.screen.text("", d.summary(status))
	}
	return errors.Join(errs...)
}

// summary tells in one line how the run went.
func (d *demo) summary(s *admin.Status) string {
	accepted := 0
	for _, src := range s.Sources {
		accepted += int(src.Published)
	}
	parked := 0
	for _, sub := range s.Subscribers {
		if sub.Definition.Name == "failing" {
			parked = sub.Backlog.Pending + sub.Backlog.Retry
		}
	}
	var delivered []string
	for _, r := range d.receivers {
		if n := r.delivered.Load(); n > 0 || r.name != "audit" {
			delivered = append(delivered, fmt.Sprintf("%s %d", r.name, n))
		}
	}
	return fmt.Sprintf("stopped: %s accepted; delivered: %s; still parked for failing: %d",
		plural(accepted, "event"), strings.Join(delivered, ", "), parked)
}

// opening says what runs, and where.
func (d *demo) opening() []string {
	lines := []string{
		d.screen.paint(bold, strings.TrimSpace("gridfan "+d.Version)+": everything in this process, in a temporary store"),
		"  ingress  " + d.poster.base + "/ingress/prod (kind fno) and /ingress/files (kind eventgrid)",
		"  admin    " + d.client.URL,
	}
	if url := d.app.BrokerURL(); url != "" {
		lines = append(lines, "  NATS     "+url)
	}
	lines = append(lines,
		"  config   "+d.config,
		"  subscribers: healthy answers at once, slow takes 800ms for each, failing answers 503")
	for _, note := range d.addresses.notes {
		lines = append(lines, d.screen.paint(yellow, "  "+note))
	}
	return append(lines, "")
}

// hints are commands to try next, ready to be copied.
func (d *demo) hints() ([]string, error) {
	adminFlag, ingressFlag, server := "", "", ""
	if d.app.AdminAddr() != standard.admin {
		adminFlag = " --admin " + d.client.URL
	}
	if d.app.PublicAddr() != standard.public {
		ingressFlag = " --ingress " + d.poster.base
	}
	broker := d.app.BrokerURL()
	if broker != "nats://"+standard.nats {
		server = " -s " + broker
	}
	urls := map[string]string{}
	for _, r := range d.receivers {
		urls[r.name] = r.url
	}
	order, _ := samples.Find("purchase-order-confirmed")
	_, body := order.Request(time.Now())
	file := filepath.Join(d.dir, "purchase-order.json")
	if err := os.WriteFile(file, append(body, '\n'), 0o600); err != nil {
		return nil, err
	}
	key := d.keys[sourceOf[event.KindFnO]]

	lines := []string{"", d.screen.paint(bold, "Try next, in another terminal:")}
	hint := func(why string, commands ...string) {
		lines = append(lines, "", "  # "+why)
		for _, c := range commands {
			lines = append(lines, "  "+c)
		}
	}
	hint("one more system, live, by subject; what it gets shows here as audit",
		d.Program+" subscribe audit --subject 'events.fno.*.usmf.>' --url "+urls["audit"]+adminFlag)
	hint("who gets what, and how the breakers stand",
		d.Program+" status"+adminFlag)
	hint("post a sample as Dynamics would",
		d.Program+" trigger free-text-invoice-posted --source prod --key "+key+ingressFlag)
	hint("the same with curl; once more it is a duplicate, and nobody gets it twice",
		fmt.Sprintf("curl -X POST %s/ingress/prod -H 'X-Gridfan-Key: %s' -H 'Content-Type: application/json' --data %s", d.poster.base, key, quoteShell("@"+file)))
	hint("heal the failing system; with the next probe its backlog drains",
		"curl -X POST "+urls["failing"]+"heal")
	hint("hold a system back, and let it go on",
		d.Program+" subscribers pause slow"+adminFlag,
		d.Program+" subscribers resume slow"+adminFlag)
	if broker != "" {
		hint("watch the subjects (nats is the command line of NATS)", "nats sub 'events.>'"+server)
	}
	hint("metrics for Prometheus", "curl "+d.client.URL+"/metrics")
	hint("this run's configuration, to begin your own with", "cat "+quoteShell(d.config))
	return append(lines, "", "Ctrl-C ends everything and removes "+d.dir+".", ""), nil
}

// quoteShell quotes only what needs it, for the eyes' sake.
func quoteShell(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./_-") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
