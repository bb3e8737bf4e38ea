package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
)

// receiver is a demo subscriber: an HTTP server that prints what it gets.
type receiver struct {
	name   string
	delay  time.Duration // before it answers
	screen *screen
	kinds  map[string]string // of the sources, by name

	failing   atomic.Bool
	healed    func() // tells people what happens next; nil: cannot be healed
	delivered atomic.Int64

	url    string // ends in a slash
	server *http.Server
	served chan struct{}
}

// start listens and serves; stop ends it.
func (r *receiver) start(log *slog.Logger) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for the demo subscriber %q: %w", r.name, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{$}", r.receive)
	if r.healed != nil {
		mux.HandleFunc("POST /heal", r.heal)
	}
	r.url = "http://" + l.Addr().String() + "/"
	r.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	r.served = make(chan struct{})
	go func() {
		defer close(r.served)
		_ = r.server.Serve(l) // it ends by stop
	}()
	return nil
}

func (r *receiver) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := r.server.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, r.server.Close())
	}
	<-r.served
	return err
}

// maxBody is above what the broker stores as one event.
const maxBody = 16 << 20

func (r *receiver) receive(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxBody))
	if err != nil {
		http.Error(w, "the body did not arrive whole", http.StatusBadRequest)
		return
	}
	e, err := event.Decode(req.Header, body)
	if err != nil {
		http.Error(w, "not a CloudEvent: "+err.Error(), http.StatusBadRequest)
		return
	}
	if r.delay > 0 {
		t := time.NewTimer(r.delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-req.Context().Done():
			return // nobody waits for the answer any more
		}
	}
	status, c := http.StatusOK, green
	if r.failing.Load() {
		status, c = http.StatusServiceUnavailable, red
	} else {
		r.delivered.Add(1)
	}
	latency := "-"
	if accepted, err := event.ParseTime(e.Get(event.ExtRecordedTime)); err == nil {
		latency = roughly(time.Since(accepted))
	}
	r.screen.event(c, fmt.Sprintf(deliveryColumns, r.name, subject(e, r.kinds), status, latency, short(e.ID)))
	// The reason in words is in gridfan's own report; a body would be quoted.
	w.WriteHeader(status)
}

func (r *receiver) heal(w http.ResponseWriter, _ *http.Request) {
	if r.failing.Swap(false) {
		r.healed()
	}
	_, _ = io.WriteString(w, r.name+" answers 200 now\n") // who asked is gone if this fails
}

// subject gives the NATS subject e was published on. Subscribers are not told,
// but everything in it is in the event.
func subject(e *event.Event, kinds map[string]string) string {
	source := e.Get(event.ExtSource)
	kind := kinds[source]
	if kind == event.KindFnO {
		name := strings.TrimSuffix(e.Type, "BusinessEvent")
		if name == "" {
			name = e.Type
		}
		return event.Subject(kind, source, strings.ToLower(e.Get(event.ExtLegalEntity)), name)
	}
	scope := ""
	if e.Source != eventgrid.DefaultSource(source) {
		scope = event.LastSegment(e.Source)
	}
	return event.Subject(kind, source, scope, e.Type)
}
