package publish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/gridfan/gridfan/infra/broker"
)

// tallyEvery is how often counts are saved when they have changed: what a kill
// can cost the books, which then say so.
const tallyEvery = 2 * time.Second

// stopTimeout is how long a stop waits for a broker that does not answer.
const stopTimeout = 3 * time.Second

// Tally counts what became of the elements of all requests, for the books: what
// is in a stream can be counted there, but a repeated or refused element is seen
// here alone. It counts what was stored also when its request failed in the end,
// because the sender repeats it all and the stored part is then a duplicate.
//
// It is safe for concurrent use, and a nil one counts nothing.
type Tally struct {
	mu      sync.Mutex // guards sources, changed
	sources map[string]broker.SourceTally
	changed bool

	saving   sync.Mutex // guards all below
	broker   *broker.Broker
	kv       jetstream.KeyValue // nil until Start
	log      *slog.Logger
	key      string
	revision uint64 // 0: the key is to be made
	run      broker.Tally
	before   map[string]broker.SourceTally // counted by earlier runs of this process

	stop context.CancelFunc
	done sync.WaitGroup
}

// NewTally makes one that only counts until it is started.
func NewTally() *Tally { return &Tally{sources: map[string]broker.SourceTally{}} }

// add counts for one source.
func (t *Tally) add(source string, n broker.SourceTally) {
	if t == nil || n == (broker.SourceTally{}) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	sum := t.sources[source]
	sum.Add(n)
	t.sources[source] = sum
	t.changed = true
}

// Control counts elements that were for the router itself and are not given to
// Publish.
func (t *Tally) Control(source string, n int) {
	t.add(source, broker.SourceTally{Received: int64(n), Control: int64(n)})
}

// Refused counts elements that nobody could be given.
func (t *Tally) Refused(source string, n int) {
	t.add(source, broker.SourceTally{Refused: int64(n)})
}

// Repeated counts elements that came again and are not given to Publish.
func (t *Tally) Repeated(source string, n int) {
	t.add(source, broker.SourceTally{Received: int64(n), Duplicate: int64(n)})
}

// count counts one call of Publish. With an error only what was stored counts
// as taken.
func (t *Tally) count(o Origin, out []outgoing, all int, failed bool) {
	var n broker.SourceTally
	for i := range out {
		w := &out[i]
		switch {
		case failed && !w.kept, w.status == "":
			continue
		case w.status == Published, w.status == Duplicate && w.late:
			n.Published++
		case w.status == Quarantined && (!w.repeated || w.late):
			n.Quarantined++
		case w.status == Control:
			n.Control++
		default:
			n.Duplicate++
		}
		if o.Redriven {
			n.Redriven++
		} else {
			n.Received++
		}
	}
	if !o.Redriven && !o.Kept { // else it stays where it is, and nobody was told anything
		n.Refused = int64(all) - n.Received
	}
	t.add(o.Source, n)
}

// Start makes it save what it counts. The caller calls Stop.
func (t *Tally) Start(ctx context.Context, b *broker.Broker, log *slog.Logger) error {
	kv, err := b.JetStream().KeyValue(ctx, broker.BucketBooks)
	if err != nil {
		return fmt.Errorf("bucket %s: %w", broker.BucketBooks, err)
	}
	events, err := made(ctx, b)
	if err != nil {
		return err
	}
	t.saving.Lock()
	t.broker, t.kv, t.log, t.before = b, kv, log, map[string]broker.SourceTally{}
	t.begin(events)
	// At once, so that the books know of this process when it is killed.
	err = t.save(ctx, false)
	t.saving.Unlock()
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(context.Background())
	t.stop = stop
	t.done.Go(func() { t.follow(running) })
	return nil
}

func made(ctx context.Context, b *broker.Broker) (time.Time, error) {
	s, err := b.JetStream().Stream(ctx, broker.StreamEvents)
	if err != nil {
		return time.Time{}, fmt.Errorf("stream %s: %w", broker.StreamEvents, err)
	}
	return s.CachedInfo().Created.UTC(), nil
}

// begin begins a run; what was saved until now stays with the one before. The
// caller holds saving.
func (t *Tally) begin(events time.Time) {
	for name, n := range t.run.Sources {
		sum := t.before[name]
		sum.Add(n)
		t.before[name] = sum
	}
	t.key, t.revision = broker.TallyPrefix+nuid.Next(), 0
	t.run = broker.Tally{Instance: broker.Instance(), Started: time.Now().UTC(), Events: events}
}

func (t *Tally) follow(ctx context.Context) {
	tick := time.NewTicker(tallyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := t.Save(ctx); err != nil && ctx.Err() == nil {
			t.log.Debug("counts of the sources not saved, trying again", "error", err)
		}
	}
}

// Save saves what has changed since the last time, if anything.
func (t *Tally) Save(ctx context.Context) error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	changed := t.changed
	t.mu.Unlock()
	t.saving.Lock()
	defer t.saving.Unlock()
	if t.kv == nil || !changed && time.Since(t.run.Saved) < broker.TallyAlive {
		return nil
	}
	return t.save(ctx, false)
}

// save writes the counts. The caller holds saving.
func (t *Tally) save(ctx context.Context, final bool) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	t.mu.Lock()
	now := maps.Clone(t.sources)
	t.changed = false
	t.mu.Unlock()
	defer func() {
		if err != nil {
			t.mu.Lock()
			t.changed = true
			t.mu.Unlock()
		}
	}()
	events, err := made(ctx, t.broker)
	if err != nil {
		return err
	}
	if !events.Equal(t.run.Events) {
		// The stream was made anew: what was counted until now is not in it.
		t.begin(events)
	}
	for {
		run := t.run
		run.Saved, run.Final, run.Sources = time.Now().UTC(), final, map[string]broker.SourceTally{}
		for name, n := range now {
			n.Sub(t.before[name])
			run.Sources[name] = n
		}
		value, err := json.Marshal(run)
		if err != nil {
			return err
		}
		revision := uint64(0)
		err = t.broker.Change(ctx, func() (err error) {
			if t.revision == 0 {
				revision, err = t.kv.Create(ctx, t.key, value)
			} else {
				revision, err = t.kv.Update(ctx, t.key, value, t.revision)
			}
			return err
		})
		if err == nil {
			t.run, t.revision = run, revision
			return nil
		}
		if !errors.Is(err, jetstream.ErrKeyExists) { // how a stale revision is called
			return err
		}
		have, err := t.kv.Get(ctx, t.key)
		switch {
		case err == nil: // it is there, and only the answer was lost
			t.revision = have.Revision()
		case errors.Is(err, jetstream.ErrKeyNotFound):
			// This process was taken for dead, and what it had saved was taken
			// over by the books.
			t.begin(events)
		default:
			return err
		}
	}
}

// Stop saves all for the last time. When the broker does not take it, the books
// will say that this process was killed; no event depends on it.
func (t *Tally) Stop(ctx context.Context) {
	if t.stop == nil {
		return
	}
	t.stop()
	t.done.Wait()
	t.saving.Lock()
	defer t.saving.Unlock()
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := t.save(ctx, true); err != nil {
		t.log.Warn("counts of the sources not saved", "error", err)
	}
}

// recent remembers the ids of messages of which nobody knows whether they are
// stored: they were sent, and no answer came. When such a one comes again and is
// there, it is the first copy that was stored. It is bounded; what it forgets
// shows in the books as a difference.
type recent struct {
	mu    sync.Mutex // guards all below
	ids   map[string]bool
	order []string
	next  int
}

// maxRecent is what one process sends within the time of one publish.
const maxRecent = 4 * maxInFlight

func (r *recent) put(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ids == nil {
		r.ids = map[string]bool{}
	}
	if r.ids[id] {
		return
	}
	if len(r.order) < maxRecent {
		r.order = append(r.order, id)
	} else {
		delete(r.ids, r.order[r.next])
		r.order[r.next] = id
		r.next = (r.next + 1) % maxRecent
	}
	r.ids[id] = true
}

// take says whether an id is there, and forgets it.
func (r *recent) take(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	ok := r.ids[id]
	delete(r.ids, id)
	return ok
}
