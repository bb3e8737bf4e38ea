package app

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/infra/telemetry"
	"github.com/gridfan/gridfan/router/auth"
	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/subscribers/pull"
)

// front is what answers HTTP. It does so from the first moment, because the broker
// may be away: handshakes need none, events get 503 and not a closed door, and
// probes must not have us killed for what is not our fault.
type front struct {
	in   *ingress.Ingress // nil where no events are taken in
	pull *pull.Server

	public   *http.Server
	requests gate
	admin    swap
	orders   gate // of the admin API
	stopping atomic.Bool
}

// openFront begins to answer on both listeners.
func (a *App) openFront(cfg *config.Config, metrics prometheus.Registerer, in *ingress.Ingress) error {
	f := &a.front
	f.in, f.pull = in, pull.New(pull.NewMetrics(metrics), a.log)
	a.tenants = auth.NewKeys(nil, a.log, nil)
	public := a.public
	if cfg.Listen.TLS != nil {
		t, err := newTLS(*cfg.Listen.TLS, "listen.public.tls", []string{"h2", "http/1.1"}, a.log)
		if err != nil {
			return err
		}
		public = tls.NewListener(a.public, t)
	}
	events := http.Handler(elsewhere{})
	if in != nil {
		events = in
	}
	probes := http.NewServeMux()
	admin.Probes(probes, a.probes())
	f.public = &http.Server{
		Handler: f.requests.count(route(probes, f.pull, events)),
		// A sender that dawdles over its headers or body holds a connection
		// and no more: Event Grid itself gives up after 30 seconds.
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       60 * time.Second,
		WriteTimeout:      90 * time.Second,
		IdleTimeout:       2 * time.Minute,
		// Event Grid can add ten headers of 4 KiB.
		MaxHeaderBytes: 64 << 10,
	}
	a.serve("public", public, f.public)

	f.admin.set(admin.NotUp(a.probes()))
	a.serve("admin", a.admin, &http.Server{
		Handler:           &f.admin,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      60 * time.Second,
	})
	return nil
}

// probes are what the health endpoints of both listeners ask.
func (a *App) probes() admin.Health {
	return admin.Health{
		Broker: a.health, Warnings: a.warnings.all,
		Unready: func() string {
			switch {
			case a.front.stopping.Load():
				return "stopping"
			case a.front.in == nil && !a.up.Load():
				// Nothing is delivered yet, so the process before is still needed. Who
				// takes events in is ready without a broker: it answers handshakes.
				return "starting"
			}
			return ""
		},
	}
}

// closeDoors answers what comes from now on with 503, so that senders come back to
// the next process, and waits for the requests under way. The listener stays open
// until the end: a closed door teaches a sender less.
func (f *front) closeDoors(ctx context.Context) error {
	f.stopping.Store(true)
	f.public.SetKeepAlivesEnabled(false)
	if f.in != nil {
		f.in.Stop()
	}
	f.pull.Stop()
	return f.requests.drain(ctx)
}

// openAPI has the admin listener answer with h from now on. listening ends answers of
// it that go on.
func (a *App) openAPI(h http.Handler, listening context.CancelFunc) {
	f := &a.front
	f.admin.set(f.orders.count(h))
	a.onStop("admin API", func(ctx context.Context) error {
		f.stopping.Store(true)
		f.admin.set(admin.NotUp(a.probes()))
		listening()
		return f.orders.drain(ctx)
	})
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

// elsewhere answers events that came to a process that takes none in. It is a mistake
// of whoever leads them here, and no reason for their sender to give them up.
type elsewhere struct{}

func (elsewhere) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	const code, detail = "other-role", "this process delivers events and takes none in; send them to a router (gridfan serve --role router)"
	body, _ := json.Marshal(map[string]any{ // texts and a number: it cannot fail
		"type": "about:blank", "title": http.StatusText(http.StatusServiceUnavailable), "status": http.StatusServiceUnavailable,
		"code": code, "detail": detail, "error": map[string]string{"code": code, "message": detail},
	})
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("x-ms-error-code", code)
	h.Set("Retry-After", "30")
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = w.Write(append(body, '\n')) // the sender is gone if this fails
}

// gate counts the requests under way, so that a stop can wait for them without
// closing the listener.
type gate struct {
	mu     sync.Mutex // guards all below
	closed bool
	n      int
	idle   chan struct{} // closed when the last one has gone
}

// count wraps next.
func (g *gate) count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g.enter() {
			defer g.leave()
		}
		next.ServeHTTP(w, r)
	})
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.n++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n--; g.closed && g.n == 0 {
		close(g.idle)
	}
}

// drain waits for the requests that came before the call.
func (g *gate) drain(ctx context.Context) error {
	g.mu.Lock()
	if !g.closed {
		g.closed, g.idle = true, make(chan struct{})
		if g.n == 0 {
			close(g.idle)
		}
	}
	idle := g.idle
	g.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// swap is a handler that can be exchanged.
type swap struct{ now atomic.Pointer[http.Handler] }

func (s *swap) set(h http.Handler) { s.now.Store(&h) }

func (s *swap) ServeHTTP(w http.ResponseWriter, r *http.Request) { (*s.now.Load()).ServeHTTP(w, r) }

// serve answers on l. Its listener is closed last of all, and nothing may be under way
// by then.
func (a *App) serve(name string, l net.Listener, s *http.Server) {
	s.ErrorLog = telemetry.HTTPLog(a.log)
	go func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			a.failed <- fmt.Errorf("%s listener: %w", name, err)
		}
	}()
	a.onStop(name+" server", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, lastWord)
		defer cancel()
		if s.Shutdown(ctx) != nil {
			return s.Close()
		}
		return nil
	})
}

// lastWord is how long an answer may take that is under way when all else has
// stopped: those are refusals and probes.
const lastWord = time.Second
