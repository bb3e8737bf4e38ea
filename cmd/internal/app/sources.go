package app

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// current gives the sources at work.
func (t *takeIn) current() config.Sources { return *t.now.Load() }

// take makes other sources those at work. What cannot be made shows before anything is
// changed. What is pushed is never refused for it: a request has its source as it was,
// or as it is. Pollers and receivers that are not as they were are stopped, with what
// they are storing stored and settled, before others take their places; that is waited
// for as long as ctx lasts, and goes on after it. A process that takes in no events only
// knows of them. One call at a time.
func (t *takeIn) take(ctx context.Context, next config.Sources) error {
	names := next.Names()
	if t.ingress == nil {
		t.known(names, next)
		return nil
	}
	polled, err := t.app.polled(next.Polled)
	if err != nil {
		return err
	}
	pushed, err := t.ingress.Prepare(next.Pushed, next.NotPushed(), time.Now())
	if err != nil {
		return err
	}
	completed, opened, err := t.completed(next.Completed)
	if err != nil {
		return err
	}
	received, err := t.inboxes.Prepare(next.Received)
	if err != nil {
		t.keepOnly(t.rows, opened)
		return err
	}
	was := t.known(names, next)
	t.completer.Replace(completed)
	t.keepOnly(opened, t.rows)
	t.rows = opened
	pushed()
	var changing sync.WaitGroup
	changing.Go(received)
	changing.Go(func() { t.poller.Apply(polled) })
	done := make(chan struct{})
	go func() { defer close(done); changing.Wait() }()
	select {
	case <-done:
	case <-ctx.Done():
		t.app.log.Warn("sources that are removed or have changed still store what they have; others take their places then")
	}
	t.tell(was.Changes(next))
	return nil
}

// known has all who only keep count know of sources, and gives those that were.
func (t *takeIn) known(names []string, next config.Sources) (was *config.Sources) {
	if t.books != nil {
		t.books.Declare(names)
	}
	t.held.Declare(names)
	return t.now.Swap(&next)
}

// tell says what has changed.
func (t *takeIn) tell(changes []registry.Change) {
	for _, c := range changes {
		attrs := map[string]any{}
		switch c.What {
		case registry.Removed:
			attrs["means"] = fmt.Sprintf("nothing comes of it any more; what it has sent stays, and it goes on where it was when it is in the file again. What is pushed to it is answered 503 for %v, then 404", ingress.RolloutGrace)
			t.app.report("source.parked", c.Name, attrs)
			continue
		case registry.Changed:
			var keys []string
			for _, d := range c.Keys {
				keys = append(keys, d.Key)
			}
			attrs["keys"] = keys
		}
		t.app.report("source."+c.What, c.Name, attrs)
	}
}
