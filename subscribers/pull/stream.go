package pull

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gridfan/gridfan/subscribers/deliver"
)

// Server-sent events (HTML Living Standard, 9.2; read 2026-11) tell a server
// nothing of what has arrived, but for one thing: a client that was cut off names
// the last event it got when it comes back, by itself, in Last-Event-ID. That is
// what settles events here. The server ends the connection when a window of events
// is out, or when the first of them has been out for a while; the client comes
// back within a tenth of a second, and what it got is acknowledged. What it did not
// get is given to it anew. A client that does not come back loses its locks.

const (
	// streamWindow is how many events are out before the client has to say what it
	// got.
	streamWindow = 100
	// confirmAfter is how long the first of them is, at most; half the lock if that
	// is shorter.
	confirmAfter = 10 * time.Second
	// heartbeatEvery is how often something is written, for proxies that cut what is
	// silent and to notice clients that are gone. Many proxies wait for a minute.
	heartbeatEvery = 15 * time.Second
	// reconnectAfter is what clients are told to wait.
	reconnectAfter = 100 * time.Millisecond
	// maxTrips bounds the memory for connections that ended and whose clients have
	// not come back: 100 tokens of 45 bytes each.
	maxTrips = 1000
)

// streams remembers what went out over which connection.
type streams struct {
	mu    sync.Mutex // guards all below
	trips []*trip    // the oldest first
	of    map[string]*trip
}

// trip is one connection.
type trip struct {
	of     *queue
	tokens []string // in the order they were sent
	end    context.CancelFunc
}

// begin notes a new connection.
func (s *streams) begin(q *queue, end context.CancelFunc) *trip {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &trip{of: q, end: end}
	s.trips = append(s.trips, t)
	if len(s.trips) > maxTrips {
		s.drop(s.trips[0])
	}
	return t
}

// sent notes what is about to go out over it.
func (s *streams) sent(t *trip, token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = map[string]*trip{}
	}
	t.tokens = append(t.tokens, token)
	s.of[token] = t
}

// drop forgets a connection. The caller holds mu.
func (s *streams) drop(t *trip) {
	for _, token := range t.tokens {
		if s.of[token] == t {
			delete(s.of, token)
		}
	}
	s.trips = slices.DeleteFunc(s.trips, func(o *trip) bool { return o == t })
}

// ended forgets a connection over which nothing is out.
func (s *streams) ended(t *trip) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(t.tokens) == 0 {
		s.drop(t)
	}
}

// confirmed tells what a client got that names its last event, and what went out
// after that, and ends its old connection if that still stands. Of another
// process's connection nothing is known but the event itself.
func (s *streams) confirmed(q *queue, last string) (got, lost []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.of[last]
	if t == nil || t.of.name != q.name {
		return []string{last}, nil
	}
	s.drop(t)
	t.end()
	i := slices.Index(t.tokens, last) + 1
	return t.tokens[:i], t.tokens[i:]
}

func (s *Server) stream(w http.ResponseWriter, r *http.Request, q *queue) error {
	manual := false
	switch ack := r.URL.Query().Get("ack"); ack {
	case "", "auto":
	case "manual":
		manual = true
	default:
		return refuse(http.StatusBadRequest, "bad-parameter", "ack: want auto or manual")
	}
	window, err := number(r, "maxEvents", 1, maxEvents, streamWindow)
	if err != nil {
		return err
	}
	worker := q.serving()
	if worker == nil {
		return later("starting", "the subscriber is being started; send it again", time.Second)
	}
	last := r.Header.Get("Last-Event-ID")
	if len(last) > 200 {
		return refuse(http.StatusBadRequest, "bad-parameter", "Last-Event-ID: that is no id of a stream's event")
	}
	if last != "" && !manual {
		got, lost := s.streams.confirmed(q, last)
		ctx, cancel := context.WithTimeout(r.Context(), settleWithin)
		q.confirm(ctx, worker, got, deliver.Acknowledge)
		q.confirm(ctx, worker, lost, deliver.Release)
		cancel()
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would keep events back (its docs, proxy_buffering; read 2026-11)
	h.Set("X-Content-Type-Options", "nosniff")
	unhurried(w)
	out := http.NewResponseController(w)
	write := func(text []byte) error {
		hurried(w)
		if _, err := w.Write(text); err != nil {
			return err
		}
		return out.Flush()
	}
	w.WriteHeader(http.StatusOK)
	if write(fmt.Appendf(nil, "retry: %d\n\n", reconnectAfter.Milliseconds())) != nil {
		return nil
	}
	t := s.streams.begin(q, cancel)
	defer s.streams.ended(t)
	confirm := min(confirmAfter, q.cfg.LockDuration.Std()/2)
	var first time.Time // when the first event went out that is not confirmed
	for sent := 0; ; {
		wait := heartbeatEvery
		if !first.IsZero() {
			wait = min(wait, time.Until(first.Add(confirm)))
		}
		if wait <= 0 {
			return nil
		}
		n := window
		if !manual {
			n = min(window-sent, maxEvents)
		}
		items, err := q.receive(ctx, n, wait)
		if err != nil {
			return nil // the client has gone, or comes back
		}
		var text bytes.Buffer
		for _, item := range items {
			if !manual {
				s.streams.sent(t, item.Token)
			}
			writeEvent(&text, item)
		}
		if len(items) == 0 {
			if s.stopped() || q.over() {
				return nil
			}
			text.WriteString(":\n\n")
		}
		if write(text.Bytes()) != nil {
			for _, item := range items {
				go q.release(item.Lock)
			}
			return nil
		}
		if manual || len(items) == 0 {
			continue
		}
		if first.IsZero() {
			first = time.Now()
		}
		if sent += len(items); sent >= window {
			return nil
		}
	}
}

// comesBack says whether an EventSource is to be told of an error that passes in the
// only way after which it comes back: by an empty stream. Any status but 200 ends it
// for good (HTML Living Standard, 9.2.3; read 2026-11), and a page with it, whenever
// gridfan is restarted. Other clients do not say that they accept a stream, and get
// the status.
func comesBack(r *http.Request, err error) bool {
	var e *httpError
	return r.Method == http.MethodGet && errors.As(err, &e) && e.status == http.StatusServiceUnavailable &&
		strings.Contains(strings.Join(r.Header.Values("Accept"), ","), "text/event-stream")
}

// writeComeBack ends a stream that has not begun, and says when to try again. The
// client names its last event once more then.
func writeComeBack(w http.ResponseWriter, err error) {
	var e *httpError
	errors.As(err, &e) // comesBack has seen that it is one
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	hurried(w)
	w.WriteHeader(http.StatusOK)
	_, _ = fmt.Fprintf(w, "retry: %d\n: %s\n\n", max(time.Second, e.retryAfter).Milliseconds(), e.code) // the client is gone if this fails
}

// over says whether the queue is closed.
func (q *queue) over() bool {
	select {
	case <-q.closed:
		return true
	default:
		return false
	}
}

// confirm ends locks. Those that are lost are no matter: their events come again.
func (q *queue) confirm(ctx context.Context, w *deliver.Worker, tokens []string, end deliver.LockEnd) {
	var group errgroup.Group
	group.SetLimit(settleAtOnce)
	for _, token := range tokens {
		group.Go(func() error {
			result := "done"
			if err := w.EndLock(ctx, token, end, 0); err != nil {
				result = "lost"
				q.server.log.Debug("an event of a stream comes again", "subscriber", q.name, "error", err)
			}
			q.server.metrics.ends.WithLabelValues(q.name, "stream", result).Inc()
			return nil
		})
	}
	_ = group.Wait() // none answers an error
}

// writeEvent writes an event as one message, whose id is its lock token.
func writeEvent(b *bytes.Buffer, item Item) {
	// In JSON an end of line can only be a blank between two tokens.
	text := strings.NewReplacer("\r", " ", "\n", " ").Replace(string(item.Event.JSON()))
	b.WriteString("id: " + item.Token + "\ndata: " + text + "\n\n")
}
