package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/native"
)

// Fleet runs a Worker for every subscriber of the bucket, or for some of them, and
// follows their changes. Each subscriber has a keeper of its own, so one that is slow to stop
// does not hold up a change to another.
type Fleet struct {
	registry  *Registry
	parts     deliver.Parts
	newSender func(d Definition, strange bool) (deliver.Sender, error)
	mine      func(Definition) bool // nil: all are
	log       *slog.Logger

	watcher jetstream.KeyWatcher
	moves   jetstream.KeyWatcher // of endpoints
	watched sync.WaitGroup

	mu      sync.Mutex // guards keepers
	keepers map[string]*keeper

	placing   sync.Mutex // guards endpoints
	endpoints map[string]place
}

// place is an endpoint and whether a stranger named it.
type place struct {
	Endpoint
	strange bool
}

// StartFleet starts the workers of all subscribers there are, and returns when
// each has started or failed once; failed ones are tried again.
//
// newSender makes the way out of a definition, whose endpoint stands in it as a URL.
// strange says that where it leads came by API and not from gridfan's own file.
func StartFleet(ctx context.Context, r *Registry, parts deliver.Parts, newSender func(d Definition, strange bool) (deliver.Sender, error), log *slog.Logger) (*Fleet, error) {
	return StartFleetOf(ctx, r, parts, newSender, nil, log)
}

// StartFleetOf is StartFleet for a process that does not serve everybody: mine says
// whom it does. Those that no process serves wait.
func StartFleetOf(ctx context.Context, r *Registry, parts deliver.Parts, newSender func(d Definition, strange bool) (deliver.Sender, error), mine func(Definition) bool, log *slog.Logger) (*Fleet, error) {
	// The context of a watcher ends the watcher, so it must outlive ctx.
	w, err := r.kv.WatchAll(context.Background())
	if err != nil {
		return nil, fmt.Errorf("watch the subscribers: %w", err)
	}
	moves, err := r.endpoints.WatchAll(context.Background())
	if err != nil {
		_ = w.Stop() // it fails only when the connection is gone
		return nil, fmt.Errorf("watch the endpoints: %w", err)
	}
	f := &Fleet{
		registry: r, parts: parts, newSender: newSender, mine: mine, log: log,
		watcher: w, moves: moves, keepers: map[string]*keeper{}, endpoints: map[string]place{},
	}
	// First where they are, then who they are.
	known := make(chan struct{})
	f.watched.Go(func() { f.follow(known) })
	select {
	case <-known:
	case <-ctx.Done():
		f.Stop(0)
		return nil, ctx.Err()
	}
	loaded := make(chan struct{})
	f.watched.Go(func() { f.watch(loaded) })
	select {
	case <-loaded:
	case <-ctx.Done():
		f.Stop(0)
		return nil, ctx.Err()
	}
	parts.Broker.Admitting()
	return f, nil
}

// watch hands every change to its keeper. It closes loaded when the entries
// there were at the start have their workers.
func (f *Fleet) watch(loaded chan struct{}) {
	var first sync.WaitGroup
	for u := range f.watcher.Updates() {
		if u == nil { // the end of what there was
			first.Wait()
			close(loaded)
			continue
		}
		var want *Entry
		if u.Operation() == jetstream.KeyValuePut {
			e, err := decodeEntry(u.Key(), u.Value(), u.Revision())
			if err != nil {
				f.log.Error("unreadable subscriber, left as it was", "error", err)
				continue
			}
			if f.mine == nil || f.mine(e.Definition) {
				want = &e
			}
		}
		k := f.keeper(u.Key(), want != nil)
		if k == nil {
			continue
		}
		first.Add(1)
		k.set(want, first.Done)
	}
}

// follow keeps the endpoints, and tells the keepers whose own has moved. It closes
// known when it has those there were at the start.
func (f *Fleet) follow(known chan struct{}) {
	for u := range f.moves.Updates() {
		if u == nil { // the end of what there was
			close(known)
			continue
		}
		f.placing.Lock()
		was := f.endpoints[u.Key()]
		delete(f.endpoints, u.Key())
		if u.Operation() == jetstream.KeyValuePut {
			e, err := decodeEndpoint(u)
			if err != nil {
				f.log.Error("unreadable endpoint, left as it was", "error", err)
				f.endpoints[u.Key()] = was
			} else {
				f.endpoints[u.Key()] = place{e.Endpoint, strange(e.Origin, e.Sent)}
			}
		}
		moved := f.endpoints[u.Key()] != was
		f.placing.Unlock()
		f.mu.Lock()
		for _, k := range f.keepers {
			if moved && k.uses(u.Key()) {
				k.nudge()
			}
		}
		f.mu.Unlock()
	}
}

// keeper finds a subscriber's keeper, or makes it.
func (f *Fleet) keeper(name string, create bool) *keeper {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := f.keepers[name]
	if k == nil && create {
		k = &keeper{fleet: f, name: name, wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
		f.keepers[name] = k
		go k.run()
	}
	return k
}

// Breaker tells how a subscriber's breaker stands in this process; ok is false
// for one that has no worker here, or is parked.
func (f *Fleet) Breaker(name string) (s deliver.BreakerStatus, ok bool) {
	f.with(name, func(k *keeper, w worker) {
		if sending, is := w.(*deliver.Worker); is && !k.parked {
			s, ok = sending.Breaker(), true
		}
	})
	return s, ok
}

// Serving says whether this replica serves a subscriber: where order is kept, only
// one of several does. ok is false for one that has no worker here that sends, or is
// parked.
func (f *Fleet) Serving(name string) (serving, ok bool) {
	f.with(name, func(k *keeper, w worker) {
		if sending, is := w.(*deliver.Worker); is && !k.parked {
			serving, ok = sending.Serving(), true
		}
	})
	return serving, ok
}

// Views tells how the other replicas find a subscriber; see deliver.Board.Views.
func (f *Fleet) Views(name string) []deliver.View { return f.parts.Board.Views(name) }

// RetryNow lets a subscriber be tried at once that waits for its next probe; see
// deliver.Worker.RetryNow. false means that it has no worker here, or one that
// sends nothing.
func (f *Fleet) RetryNow(name string) (ok bool) {
	f.with(name, func(_ *keeper, w worker) {
		if sending, is := w.(*deliver.Worker); is {
			sending.RetryNow()
			ok = true
		}
	})
	return ok
}

// Expire makes a subscriber's worker give up the oldest of its backlog; see
// deliver.Worker.Expire. false means that it has no worker here.
func (f *Fleet) Expire(name string, through uint64) bool {
	return f.with(name, func(_ *keeper, w worker) { w.Expire(through) })
}

// Shed makes it drop the oldest of its backlog; see deliver.Worker.Shed.
func (f *Fleet) Shed(name string, through uint64) bool {
	return f.with(name, func(_ *keeper, w worker) { w.Shed(through) })
}

// GivenUp counts what the workers of this process gave up since the start, by
// subscriber.
func (f *Fleet) GivenUp() map[string]deliver.GivenUp {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[string]deliver.GivenUp{}
	for name, k := range f.keepers {
		k.mu.Lock()
		g := k.before
		if k.worker != nil {
			now := k.worker.GivenUp()
			g.Expired += now.Expired
			g.Shed += now.Shed
		}
		k.mu.Unlock()
		all[name] = g
	}
	return all
}

// with calls do while the worker stays, and says whether there is one.
func (f *Fleet) with(name string, do func(*keeper, worker)) bool {
	f.mu.Lock()
	k := f.keepers[name]
	f.mu.Unlock()
	if k == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.worker == nil {
		return false
	}
	do(k, k.worker)
	return true
}

// Stop stops all workers at once; see deliver.Worker.Stop.
func (f *Fleet) Stop(grace time.Duration) {
	_ = f.watcher.Stop() // it fails only when the connection is gone
	_ = f.moves.Stop()
	f.watched.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range f.keepers {
		k.stop(grace)
	}
	for _, k := range f.keepers {
		<-k.done
	}
}

// worker serves one subscriber: it sends events, or keeps account of those that
// the subscriber's own client takes.
type worker interface {
	SetPaused(bool)
	Expire(through uint64)
	Shed(through uint64)
	GivenUp() deliver.GivenUp
	Stop(grace time.Duration)
}

// keeper keeps one subscriber's worker as its entry wants it.
type keeper struct {
	fleet *Fleet
	name  string
	wake  chan struct{} // holds at most one token
	quit  chan struct{}
	done  chan struct{}

	mu      sync.Mutex // guards all below
	want    *Entry     // nil: none
	applied []func()   // called once want has been tried
	worker  worker
	parked  bool            // the worker never sends
	before  deliver.GivenUp // by the workers before this one
	grace   time.Duration

	// Only run touches what follows.
	have   *Entry           // what worker was started with
	at     place            // where its endpoint was then
	narrow <-chan time.Time // when its cursor's filter may be narrowed; nil: never
	expiry <-chan time.Time // when a key of its stops signing; nil: never
}

func (k *keeper) set(want *Entry, applied func()) {
	k.mu.Lock()
	k.want = want
	k.applied = append(k.applied, applied)
	k.mu.Unlock()
	k.nudge()
}

// nudge makes the keeper look again at what is wanted.
func (k *keeper) nudge() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// uses says whether the subscriber is reached by an endpoint.
func (k *keeper) uses(endpoint string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.want != nil && k.want.Definition.endpoint() == endpoint
}

func (k *keeper) stop(grace time.Duration) {
	k.mu.Lock()
	k.grace = grace
	k.mu.Unlock()
	close(k.quit)
}

// changeGrace is how long attempts under way may take when a definition
// changes; longer ones are given up and made again by the new worker.
const changeGrace = 5 * time.Second

func (k *keeper) run() {
	defer close(k.done)
	wait := time.Duration(0)
	var again <-chan time.Time
	for {
		select {
		case <-k.quit:
			k.mu.Lock()
			grace := k.grace
			k.mu.Unlock()
			k.end(grace)
			return
		case <-k.wake:
			wait = 0
		case <-again:
		case <-k.narrow:
			k.narrowed()
			continue
		case <-k.expiry:
			k.expired()
			continue
		}
		k.mu.Lock()
		want, applied := k.want, k.applied
		k.applied = nil
		k.mu.Unlock()
		again = nil
		if err := k.apply(want); err != nil {
			wait = min(max(2*wait, 200*time.Millisecond), 10*time.Second)
			k.fleet.log.Error("subscriber not started, trying again", "subscriber", k.name, "error", err, "in", wait)
			again = time.After(wait)
		}
		for _, f := range applied {
			f()
		}
	}
}

// settleTimeout is ample for a change of subjects.
const settleTimeout = quietWait + 10*time.Second

// narrowEvery is how long a cursor's filter may be wider than it need be: what it
// lets through in vain is acked and costs little.
const narrowEvery = 30 * time.Second

// narrowed takes what the subscriber has got past from its cursor's filter.
func (k *keeper) narrowed() {
	k.narrow = nil
	if k.have == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	done, err := k.fleet.registry.narrow(ctx, *k.have)
	switch {
	case errors.Is(err, errLacking):
		k.end(changeGrace)
		k.nudge()
	case err != nil || !done:
		k.fleet.log.Debug("a cursor's filter stays as wide as it is", "subscriber", k.name, "error", err)
		k.narrow = time.After(narrowEvery)
	}
}

// expired has the keys dropped that are no longer good; the watcher brings the rest.
func (k *keeper) expired() {
	k.expiry = nil
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := k.fleet.registry.expireKeys(ctx, k.name); err != nil && !errors.Is(err, ErrNotFound) {
		k.fleet.log.Warn("an old key is still good, trying again", "subscriber", k.name, "error", err)
		k.expiry = time.After(10 * time.Second)
	}
}

// apply makes the worker what the entry wants.
func (k *keeper) apply(want *Entry) error {
	if want == nil {
		k.end(changeGrace)
		k.fleet.parts.Metrics.Forget(k.name)
		k.fleet.parts.Recorder.Forget(k.name)
		k.fleet.parts.Broker.Dismiss(k.name)
		return nil
	}
	if !want.settled() {
		// Its beginning is where all workers have stopped.
		k.end(changeGrace)
		ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
		defer cancel()
		if _, err := k.fleet.registry.settle(ctx, k.name); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		return nil // the watcher brings the settled one
	}
	f := k.fleet
	f.placing.Lock()
	at := f.endpoints[want.Definition.endpoint()]
	f.placing.Unlock()
	// Where nobody knows where it is, it is parked: an endpoint may be missing
	// for a moment only.
	lost := want.Definition.endpoint() != "" && at == (place{})
	held := want.Paused || want.Orphaned || lost
	// One that was deleted and added again is another, with a new cursor.
	if k.have != nil && reflect.DeepEqual(k.have.Definition, want.Definition) && k.have.Created.Equal(want.Created) &&
		k.have.Orphaned == want.Orphaned && strange(k.have.Origin, k.have.Sent) == strange(want.Origin, want.Sent) && slices.EqualFunc(k.have.Epochs, want.Epochs, Epoch.Equal) && slices.EqualFunc(k.have.Keys, want.Keys, Key.equal) && k.at == at {
		k.worker.SetPaused(held)
		k.have = want
		return nil
	}
	k.end(changeGrace)
	if want.Definition.Native() {
		return k.applyNative(want, held)
	}
	// A parked subscriber gets nothing, but what it holds back has its limits.
	sender := deliver.Sender(mute{})
	switch {
	case want.Orphaned:
	case lost:
		f.log.Warn("subscriber parked: its endpoint is not defined", "subscriber", k.name, "endpoint", want.Definition.endpoint(),
			"fix", "gridfan endpoints set "+want.Definition.endpoint()+" URL")
	default:
		d, stranger, err := want.Definition, strange(want.Origin, want.Sent), error(nil)
		if d.endpoint() != "" {
			stranger = at.strange
			d, err = d.at(at.Endpoint)
		}
		if err == nil {
			sender, err = f.newSender(want.signed(d, time.Now()), stranger)
		}
		if err != nil {
			return err
		}
	}
	match, apply, err := want.Definition.functions()
	if err != nil {
		sender.Close()
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	serving := k.fleet.registry.serves(k.name)
	serving.Lock()
	defer serving.Unlock()
	filter, err := k.fleet.registry.prepare(ctx, *want)
	if err != nil {
		sender.Close()
		return err
	}
	judge := &judge{registry: k.fleet.registry, entry: *want}
	w, err := deliver.Start(ctx, deliver.Subscriber{
		Name: k.name, Subjects: filter, Wants: judge.wants,
		StartSequence: want.StartSequence, Created: want.Created, Paused: held,
		Filter: match, Transform: apply,
		Config: want.Definition.Config, Sender: sender,
	}, k.fleet.parts)
	if err != nil {
		sender.Close()
		return err
	}
	serving.worker = true
	k.at = at
	k.started(want, w, want.Orphaned || lost)
	return nil
}

// applyNative serves a subscriber whose own client takes the events.
func (k *keeper) applyNative(want *Entry, held bool) error {
	f := k.fleet
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	serving := f.registry.serves(k.name)
	serving.Lock()
	defer serving.Unlock()
	filter, err := f.registry.prepare(ctx, *want)
	if err != nil {
		return err
	}
	judge := &judge{registry: f.registry, entry: *want}
	w, err := native.Start(ctx, native.Subscriber{
		Name: k.name, Filter: filter, Subjects: want.filter(), Wants: judge.wants,
		StartSequence: want.StartSequence, Created: want.Created, Paused: held,
		Config: *want.Definition.Deliver.Nats, Keys: want.opens(),
	}, native.Parts{Broker: f.parts.Broker, Recorder: f.parts.Recorder, Log: f.log})
	if err != nil {
		return err
	}
	k.at = place{}
	k.started(want, w, want.Orphaned)
	return nil
}

// started notes what serves the subscriber now.
func (k *keeper) started(want *Entry, w worker, parked bool) {
	k.mu.Lock()
	k.worker, k.parked = w, parked
	k.mu.Unlock()
	k.have = want
	if at := want.nextExpiry(); !at.IsZero() {
		k.expiry = time.After(time.Until(at))
	}
	if len(want.Epochs) > 1 {
		k.narrow = time.After(narrowEvery)
	}
	k.fleet.log.Info("subscriber started", "subscriber", k.name, "subjects", want.Definition.Subjects, "paused", want.Paused, "parked", parked)
}

// mute is the sender of a parked subscriber. It is never called.
type mute struct{}

func (mute) Send(context.Context, *event.Event) deliver.Attempt {
	return deliver.Attempt{Outcome: deliver.Aborted, Reason: "parked"}
}

func (mute) Close() {}

// end stops the worker, if there is one.
func (k *keeper) end(grace time.Duration) {
	k.mu.Lock()
	w := k.worker
	k.worker = nil
	k.mu.Unlock()
	if w == nil {
		return
	}
	k.have, k.narrow, k.expiry = nil, nil, nil
	// Not when all is settled: that may wait for what a change of subjects finds
	// out once nobody asks for events.
	serving := k.fleet.registry.serves(k.name)
	serving.Lock()
	serving.worker = false
	serving.Unlock()
	w.Stop(grace)
	given := w.GivenUp()
	k.mu.Lock()
	k.before.Expired += given.Expired
	k.before.Shed += given.Shed
	k.mu.Unlock()
	k.fleet.log.Info("subscriber stopped", "subscriber", k.name)
}
