package app

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/quarantine"
	"github.com/gridfan/gridfan/router/receive"
	"github.com/gridfan/gridfan/subscribers/books"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// sources are those at work, and all that has to know of them.
type sources struct {
	app     *App
	ingress *ingress.Ingress
	inboxes *receive.Receivers
	poller  *poll.Poller
	books   *books.Books
	held    *quarantine.Metrics

	now atomic.Pointer[config.Sources]
}

// current gives those at work.
func (s *sources) current() config.Sources { return *s.now.Load() }

// take makes other sources those at work. What cannot be made shows before anything is
// changed. What is pushed is never refused for it: a request has its source as it was,
// or as it is. Pollers and receivers that are not as they were are stopped, with what
// they are storing stored and settled, before others take their places; that is waited
// for as long as ctx lasts, and goes on after it.
func (s *sources) take(ctx context.Context, next config.Sources) error {
	polled, err := s.app.polled(next.Polled)
	if err != nil {
		return err
	}
	pushed, err := s.ingress.Prepare(next.Pushed, next.NotPushed(), time.Now())
	if err != nil {
		return err
	}
	received, err := s.inboxes.Prepare(next.Received)
	if err != nil {
		return err
	}
	names := next.Names()
	s.books.Declare(names)
	s.held.Declare(names)
	was := s.now.Swap(&next)
	pushed()
	var changing sync.WaitGroup
	changing.Go(received)
	changing.Go(func() { s.poller.Apply(polled) })
	done := make(chan struct{})
	go func() { defer close(done); changing.Wait() }()
	select {
	case <-done:
	case <-ctx.Done():
		s.app.log.Warn("sources that are removed or have changed still store what they have; others take their places then")
	}
	s.tell(was.Changes(next))
	return nil
}

// tell says what has changed.
func (s *sources) tell(changes []registry.Change) {
	for _, c := range changes {
		attrs := map[string]any{}
		switch c.What {
		case registry.Removed:
			attrs["means"] = fmt.Sprintf("nothing comes of it any more; what it has sent stays, and it goes on where it was when it is in the file again. What is pushed to it is answered 503 for %v, then 404", ingress.RolloutGrace)
			s.app.report("source.parked", c.Name, attrs)
			continue
		case registry.Changed:
			var keys []string
			for _, d := range c.Keys {
				keys = append(keys, d.Key)
			}
			attrs["keys"] = keys
		}
		s.app.report("source."+c.What, c.Name, attrs)
	}
}
