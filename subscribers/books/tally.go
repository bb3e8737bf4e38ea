package books

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
)

// past are the tallies of processes that are gone, added up.
type past struct {
	Events  time.Time                     `json:"events"`
	Sources map[string]broker.SourceTally `json:"sources"`
	// Killed counts the processes that ended without saying what they had counted.
	Killed int `json:"killed,omitempty"`
	// Taken are the keys that are part of it and may be there still.
	Taken []string `json:"taken,omitempty"`
}

// run is the tally of one process.
type run struct {
	broker.Tally
	key      string
	revision uint64
}

// dead says whether a process is gone, after what it last saved.
func (r run) dead(now time.Time) bool { return r.Final || now.Sub(r.Saved) > 3*broker.TallyAlive }

// runs gives what is saved, and the tallies that are not part of it.
func (b *Books) runs(ctx context.Context) (p past, revision uint64, runs []run, err error) {
	if revision, err = b.readKey(ctx, keyPast, &p); err != nil {
		return p, 0, nil, err
	}
	err = broker.EachEntry(ctx, b.kv, broker.TallyPrefix+"*", func(u jetstream.KeyValueEntry) error {
		t, err := broker.ParseTally(u.Key(), u.Value())
		if err != nil {
			return err
		}
		if !slices.Contains(p.Taken, u.Key()) {
			runs = append(runs, run{t, u.Key(), u.Revision()})
		}
		return nil
	})
	if err != nil {
		return p, 0, nil, err
	}
	return p, revision, runs, nil
}

// counted is what all routers have counted that stored to the stream of now.
type counted struct {
	sources map[string]broker.SourceTally
	killed  int
}

// SourceTallies gives what all routers have counted and saved, by source, since the books
// were opened.
func (b *Books) SourceTallies(ctx context.Context) (map[string]broker.SourceTally, error) {
	c, err := b.tallies(ctx)
	return c.sources, err
}

func (b *Books) tallies(ctx context.Context) (counted, error) {
	c := counted{sources: map[string]broker.SourceTally{}}
	p, _, runs, err := b.runs(ctx)
	if err != nil {
		return c, err
	}
	b.mu.Lock()
	events := b.fold.Events.Created
	b.mu.Unlock()
	add := func(sources map[string]broker.SourceTally) {
		for name, n := range sources {
			sum := c.sources[name]
			sum.Add(n)
			c.sources[name] = sum
		}
	}
	if p.Events.Equal(events) {
		c.killed += p.Killed
		add(p.Sources)
	}
	now := time.Now()
	for _, r := range runs {
		if !r.Events.Equal(events) {
			continue
		}
		add(r.Sources)
		later := func(o run) bool { return o.Instance == r.Instance && o.Started.After(r.Started) }
		if !r.Final && (r.dead(now) || slices.ContainsFunc(runs, later)) {
			c.killed++
		}
	}
	return c, nil
}

// gather adds the tallies of processes that are gone to the past, so that a
// process that starts every minute does not leave a key each time.
func (b *Books) gather(ctx context.Context) error {
	p, revision, runs, err := b.runs(ctx)
	if err != nil {
		return err
	}
	b.mu.Lock()
	events := b.fold.Events.Created
	b.mu.Unlock()
	if events.IsZero() {
		return nil
	}
	if len(p.Taken) > 0 {
		// A process that died between the two steps below, or another replica.
		if err := b.forget(ctx, p.Taken); err != nil {
			return err
		}
	}
	had := len(p.Taken) > 0
	p.Taken = nil
	if !p.Events.Equal(events) {
		p = past{Events: events}
	}
	if p.Sources == nil {
		p.Sources = map[string]broker.SourceTally{}
	}
	now := time.Now()
	for _, r := range runs {
		if !r.dead(now) {
			continue
		}
		p.Taken = append(p.Taken, r.key)
		if !r.Events.Equal(events) {
			continue // it counted for a stream that is gone
		}
		if !r.Final {
			p.Killed++
		}
		for name, n := range r.Sources {
			sum := p.Sources[name]
			sum.Add(n)
			p.Sources[name] = sum
		}
	}
	if len(p.Taken) == 0 && !had {
		return nil
	}
	err = b.writeKey(ctx, keyPast, p, revision)
	if errors.Is(err, jetstream.ErrKeyExists) {
		return nil // another replica does it
	}
	if err != nil || len(p.Taken) == 0 {
		return err
	}
	return b.forget(ctx, p.Taken)
}

// forget removes keys without leaving a mark.
func (b *Books) forget(ctx context.Context, keys []string) error {
	s, err := b.js.Stream(ctx, "KV_"+broker.BucketBooks)
	if err != nil {
		return err
	}
	for _, key := range keys {
		if !strings.HasPrefix(key, broker.TallyPrefix) {
			continue
		}
		if err := s.Purge(ctx, jetstream.WithPurgeSubject("$KV."+broker.BucketBooks+"."+key)); err != nil {
			return err
		}
	}
	return nil
}
