package dev

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/admin"
)

// watchEvery is how often the admin API is asked: a breaker stays open for
// seconds at least, so no opening is missed.
const watchEvery = 500 * time.Millisecond

// watcher tells in words what happens to the subscribers, as an operator's own
// script could: it only asks the admin API.
type watcher struct {
	client *admin.Client
	screen *screen
	opened chan struct{} // closed at the first open breaker

	mu    sync.Mutex // guards known
	known map[string]admin.Subscriber
}

func newWatcher(c *admin.Client, s *screen) *watcher {
	return &watcher{client: c, screen: s, opened: make(chan struct{}), known: map[string]admin.Subscriber{}}
}

// begin notes the subscribers there are, so that only changes are news.
func (w *watcher) begin(ctx context.Context) error {
	list, err := w.client.Subscribers(ctx)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range list {
		w.known[s.Definition.Name] = s
	}
	return nil
}

// run asks until ctx ends.
func (w *watcher) run(ctx context.Context) {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		list, err := w.client.Subscribers(ctx)
		if err != nil {
			continue // an admin listener that ended says so itself
		}
		w.look(list, time.Now())
	}
}

func (w *watcher) look(list []admin.Subscriber, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := map[string]bool{}
	for _, s := range list {
		name := s.Definition.Name
		seen[name] = true
		before, ok := w.known[name]
		switch {
		case !ok:
			w.screen.event(bold, fmt.Sprintf("%s: subscribed to %s", name, strings.Join(s.Definition.Subjects, " ")))
		case before.State != s.State && s.State == admin.Active:
			w.screen.event(bold, name+": resumed; its events go on")
		case before.State != s.State:
			w.screen.event(bold, fmt.Sprintf("%s: %s; its events wait", name, s.State))
		}
		if s.Breaker == nil || s.Breaker.State == "half-open" {
			// Not started, or a probe is on its way: what it had is the last
			// that is known.
			s.Breaker = before.Breaker
		}
		w.breaker(before, s, now)
		w.known[name] = s
	}
	for name := range w.known {
		if !seen[name] {
			w.screen.event(bold, name+": deleted")
			delete(w.known, name)
		}
	}
}

// breaker tells how s's breaker changed.
func (w *watcher) breaker(before, s admin.Subscriber, now time.Time) {
	wasOpen, isOpen := open(before), open(s)
	name := s.Definition.Name
	parked := plural(s.Backlog.Pending+s.Backlog.Retry, "event")
	switch b := s.Breaker; {
	case isOpen && !wasOpen:
		w.screen.event(yellow, fmt.Sprintf("%s: breaker open after %s (%s), next probe in %s; others are not affected",
			name, plural(b.Failures, "failure"), b.LastError, seconds(b.NextProbe.Sub(now))))
		select {
		case <-w.opened:
		default:
			close(w.opened)
		}
	case isOpen && !b.NextProbe.Equal(*before.Breaker.NextProbe):
		w.screen.event(yellow, fmt.Sprintf("%s: probe failed (%s), next in %s; %s parked",
			name, b.LastError, seconds(b.NextProbe.Sub(now)), parked))
	case wasOpen && !isOpen:
		rest := parked + " still to go"
		if s.Backlog.Pending+s.Backlog.Retry == 0 {
			rest = "it has all its events"
		}
		w.screen.event(yellow, fmt.Sprintf("%s: breaker closed, a probe got through; %s", name, rest))
	}
}

// open says whether the breaker is; a half-open one was replaced before.
func open(s admin.Subscriber) bool {
	return s.Breaker != nil && s.Breaker.NextProbe != nil
}

// nextProbe says in words when a subscriber is tried again.
func (w *watcher) nextProbe(name string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.known[name]; open(s) {
		return "with the next probe, in " + seconds(time.Until(*s.Breaker.NextProbe))
	}
	return "with the next attempt"
}
