package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/native"
)

// Entry is what the bucket keeps of one subscriber.
type Entry struct {
	Definition Definition `json:"definition"`
	// Origin says where the definition is kept: in a configuration file, where
	// it must be changed, or here.
	Origin Origin `json:"origin"`
	// Orphaned: it was declared in a file that no longer names it. It is
	// parked until it is declared again or deleted.
	Orphaned bool `json:"orphaned,omitempty"`
	// Sent: the file was sent by API, and not read by gridfan itself.
	Sent bool `json:"sent,omitempty"`
	// Paused is run-time state, whatever the origin.
	Paused bool `json:"paused,omitempty"`
	// Draining is too. A definition can say the same.
	Draining bool `json:"draining,omitempty"`
	// StartSequence is its first event in EVENTS.
	StartSequence uint64 `json:"startSequence"`
	// Epochs say which events it wanted when, the oldest first. There is always
	// one.
	Epochs  []Epoch   `json:"epochs,omitempty"`
	Created time.Time `json:"created"`
	// Keys are those that gridfan made for it, the newest first.
	Keys []Key `json:"keys,omitempty"`
	// NewKey is one of them that was just made: it can be shown this once.
	NewKey *Key `json:"-"`
	// Note says what is to know of one that was just added, empty if nothing.
	Note string `json:"-"`
	// Revision is that of the key in the bucket: it grows with every change.
	Revision uint64 `json:"-"`
}

// Origin is where a definition comes from.
type Origin string

// The origins.
const (
	FromFile Origin = "file"
	FromAPI  Origin = "api"
)

// strange says whether a way out came by API, from whoever may use that: the
// operator's word is only what gridfan's own file says.
func strange(o Origin, sent bool) bool { return o == FromAPI || sent }

// says tells whether gridfan's own file has said that d goes there. It stays said
// when somebody repeats it.
func (e Entry) says(d Definition) bool {
	return !strange(e.Origin, e.Sent) && reflect.DeepEqual(e.Definition.Deliver, d.Deliver)
}

func (e EndpointEntry) says(to Endpoint) bool {
	return e.Revision > 0 && !strange(e.Origin, e.Sent) && e.Endpoint == to
}

// Strange gives those of what SyncSent is to take over that lead where gridfan's
// own file does not. All are valid.
func (r *Registry) Strange(ctx context.Context, endpoints []Endpoint, subscribers []Definition) ([]Endpoint, []Definition, error) {
	places, err := r.Endpoints(ctx)
	if err != nil {
		return nil, nil, err
	}
	entries, err := r.List(ctx)
	if err != nil {
		return nil, nil, err
	}
	endpoints = slices.DeleteFunc(slices.Clone(endpoints), func(e Endpoint) bool {
		return slices.ContainsFunc(places, func(is EndpointEntry) bool { return is.Name == e.Name && is.says(e) })
	})
	subscribers = slices.DeleteFunc(slices.Clone(subscribers), func(d Definition) bool {
		return slices.ContainsFunc(entries, func(is Entry) bool { return is.Definition.Name == d.Name && is.says(d) })
	})
	return endpoints, subscribers, nil
}

// Errors of the registry that callers tell apart.
var (
	ErrNotFound      = errors.New("no such subscriber")
	ErrFileDeclared  = errors.New("declared in the configuration file, so it is changed there")
	ErrExists        = errors.New("a subscriber of this name exists with another definition")
	ErrBacklog       = errors.New("there are undelivered events")
	ErrWay           = errors.New("the way of delivery can't be changed: what it has got is known in another way; delete it and add it anew, or add another one and drain this one")
	ErrDrainDeclared = errors.New("its definition drains it")
	ErrEpochs        = fmt.Errorf("its subjects changed %d times, and it has not got past the first change", maxEpochs)
)

// StaleError means that somebody else has changed what was to be changed.
type StaleError struct {
	// Revision is the one that is there now, 0 if there is none.
	Revision uint64
}

func (e *StaleError) Error() string {
	if e.Revision == 0 {
		return "it does not exist, or not any more"
	}
	return "somebody else has changed it since it was read"
}

// Registry keeps the subscribers in a KV bucket that every replica watches.
// It is safe for concurrent use.
type Registry struct {
	broker    *broker.Broker
	kv        jetstream.KeyValue
	endpoints jetstream.KeyValue
	log       *slog.Logger
	profile   profile

	synced atomic.Bool // with the file, once

	mu      sync.Mutex          // guards all below
	found   map[string]oldest   // by name
	serving map[string]*serving // by name
}

// serving keeps a worker's start and a change of its subjects in this process
// apart: both set the cursor's filter.
type serving struct {
	sync.Mutex      // held while the filter is set
	worker     bool // one is running; guarded by the above
}

func (r *Registry) serves(name string) *serving {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.serving[name]
	if s == nil {
		s = &serving{}
		r.serving[name] = s
	}
	return s
}

// Open reads the bucket, which the broker has declared.
func Open(ctx context.Context, b *broker.Broker, log *slog.Logger) (*Registry, error) {
	kv, err := b.JetStream().KeyValue(ctx, broker.BucketSubscribers)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", broker.BucketSubscribers, err)
	}
	endpoints, err := b.JetStream().KeyValue(ctx, broker.BucketEndpoints)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", broker.BucketEndpoints, err)
	}
	return &Registry{broker: b, kv: kv, endpoints: endpoints, log: log, found: map[string]oldest{}, serving: map[string]*serving{}}, nil
}

// List gives all entries by name.
func (r *Registry) List(ctx context.Context) ([]Entry, error) {
	entries := []Entry{}
	err := broker.EachEntry(ctx, r.kv, jetstream.AllKeys, func(u jetstream.KeyValueEntry) error {
		e, err := decodeEntry(u.Key(), u.Value(), u.Revision())
		entries = append(entries, e)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		return strings.Compare(a.Definition.Name, b.Definition.Name)
	})
	return entries, nil
}

// Get gives one entry, or ErrNotFound.
func (r *Registry) Get(ctx context.Context, name string) (Entry, error) {
	v, err := r.kv.Get(ctx, name)
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrInvalidKey) {
		return Entry{}, ErrNotFound
	}
	if err != nil {
		return Entry{}, err
	}
	return decodeEntry(name, v.Value(), v.Revision())
}

func decodeEntry(name string, b []byte, revision uint64) (Entry, error) {
	e := Entry{Revision: revision}
	if err := json.Unmarshal(b, &e); err != nil {
		return e, fmt.Errorf("entry of subscriber %q: %w", name, err)
	}
	// Defaults of fields that a later version added.
	if err := e.Definition.settle(); err != nil {
		return e, fmt.Errorf("entry of subscriber %q: %w", name, err)
	}
	if len(e.Epochs) == 0 {
		e.Epochs = []Epoch{{From: max(1, e.StartSequence), Subjects: e.Definition.Subjects}}
	}
	return e, nil
}

// Add adds a subscriber by API. An equal one that exists already is fine, so
// the call can be repeated. d is validated.
func (r *Registry) Add(ctx context.Context, d Definition) (Entry, error) {
	if err := d.Validate(); err != nil {
		return Entry{}, err
	}
	for {
		e, err := r.Get(ctx, d.Name)
		switch {
		case err == nil && e.Origin == FromFile:
			return Entry{}, fmt.Errorf("subscriber %q: %w", d.Name, ErrFileDeclared)
		case err == nil && reflect.DeepEqual(e.Definition, d):
			return e, nil
		case err == nil:
			return Entry{}, fmt.Errorf("subscriber %q: %w", d.Name, ErrExists)
		case !errors.Is(err, ErrNotFound):
			return Entry{}, err
		}
		if err := r.known(ctx, d); err != nil {
			return Entry{}, fmt.Errorf("subscribers.%s.deliver.webhook.endpoint: %w", d.Name, err)
		}
		e, err = r.create(ctx, d, FromAPI, false)
		if err == nil && d.Native() {
			r.await(ctx, d.Name)
		}
		if !errors.Is(err, jetstream.ErrKeyExists) { // somebody was quicker: with what?
			return e, err
		}
	}
}

// await waits a moment until a client can get in and has a consumer to ask, so
// that it can be started as soon as it has its key. Without a fleet anywhere there
// is neither.
func (r *Registry) await(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for {
		if _, err := r.broker.JetStream().Consumer(ctx, broker.StreamEvents, name); err == nil {
			return
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

func (r *Registry) create(ctx context.Context, d Definition, o Origin, sent bool) (Entry, error) {
	e := Entry{Definition: d, Origin: o, Sent: sent, Created: time.Now().UTC()}
	var err error
	if e.StartSequence, e.Note, err = r.from(ctx, d); err != nil {
		return e, err
	}
	if e.Note != "" {
		r.log.Warn("a new subscriber does not begin where it should", "subscriber", d.Name, "start", d.Start, "detail", e.Note)
	}
	e.Epochs = []Epoch{{From: e.StartSequence, Subjects: e.inForce()}}
	e.key(e.Created)
	b, err := json.Marshal(e)
	if err != nil {
		return e, err
	}
	return e, r.broker.Change(ctx, func() error {
		e.Revision, err = r.kv.Create(ctx, d.Name, b)
		return err
	})
}

// store puts a changed entry in the place of the one it was read as.
func (r *Registry) store(ctx context.Context, e *Entry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return r.broker.Change(ctx, func() error {
		revision, err := r.kv.Update(ctx, e.Definition.Name, b, e.Revision)
		if err == nil {
			e.Revision = revision
		}
		return err
	})
}

// Replace gives a subscriber that was added by API another definition, which is
// validated. revision is that of the entry that was read before; with any other
// one now it is a StaleError. 0 means whatever is there. What waits is delivered
// by the new definition, as far as its subjects wanted it when it came.
func (r *Registry) Replace(ctx context.Context, d Definition, revision uint64) (Entry, []Difference, error) {
	if err := d.Validate(); err != nil {
		return Entry{}, nil, err
	}
	if err := r.known(ctx, d); err != nil {
		return Entry{}, nil, fmt.Errorf("subscribers.%s.deliver.webhook.endpoint: %w", d.Name, err)
	}
	var changed []Difference
	e, err := r.update(ctx, d.Name, func(e *Entry) error {
		switch {
		case e.Origin == FromFile:
			return fmt.Errorf("subscriber %q: %w", d.Name, ErrFileDeclared)
		case revision > 0 && e.Revision != revision:
			return &StaleError{e.Revision}
		}
		if d.Native() != e.Definition.Native() {
			return fmt.Errorf("subscribers.%s.deliver: %w", d.Name, ErrWay)
		}
		d.Start = e.Definition.Start // past: it has begun
		changed = Differences(e.Definition, d)
		e.Definition = d
		return nil
	})
	if errors.Is(err, ErrNotFound) {
		return e, nil, &StaleError{}
	}
	if err == nil && len(changed) > 0 {
		keys := make([]string, len(changed))
		for i, c := range changed {
			keys[i] = c.Key
		}
		r.broker.Report("subscriber.updated", d.Name, map[string]any{"keys": keys})
	}
	return e, changed, err
}

// update changes an entry, again from the start when somebody else was quicker.
// When it returns, events are judged by the subjects that are then in force.
func (r *Registry) update(ctx context.Context, name string, change func(*Entry) error) (Entry, error) {
	for {
		e, err := r.Get(ctx, name)
		if err != nil {
			return e, err
		}
		if !e.settled() {
			if _, err := r.settle(ctx, name); err != nil {
				return e, err
			}
			continue
		}
		before := e
		if err := change(&e); err != nil {
			return e, err
		}
		e.key(time.Now())
		if err := r.turn(ctx, &e); err != nil {
			return before, err
		}
		if reflect.DeepEqual(before, e) {
			return e, nil
		}
		err = r.store(ctx, &e)
		if errors.Is(err, jetstream.ErrKeyExists) { // how a stale revision is called
			continue
		}
		if err != nil || e.settled() {
			return e, err
		}
		settled, err := r.settle(ctx, name)
		settled.NewKey = e.NewKey
		return settled, err
	}
}

// SetPaused pauses or resumes a subscriber on every replica.
func (r *Registry) SetPaused(ctx context.Context, name string, paused bool) (Entry, error) {
	changed := false
	e, err := r.update(ctx, name, func(e *Entry) error {
		changed = e.Paused != paused
		e.Paused = paused
		return nil
	})
	if err == nil && changed {
		what := map[bool]string{true: "subscriber.paused", false: "subscriber.resumed"}[paused]
		r.broker.Report(what, name, map[string]any{})
	}
	return e, err
}

// Drain lets a subscriber have what waits for it and nothing that comes from now
// on.
func (r *Registry) Drain(ctx context.Context, name string) (Entry, error) {
	changed := false
	e, err := r.update(ctx, name, func(e *Entry) error {
		changed = !e.Draining
		e.Draining = true
		return nil
	})
	if err == nil && changed {
		r.broker.Report("subscriber.draining", name, map[string]any{"before": e.last().From})
	}
	return e, err
}

// Resume ends a pause and a drain. What came during the drain is not the
// subscriber's: the Note of the answer says so.
func (r *Registry) Resume(ctx context.Context, name string) (Entry, error) {
	var paused, drained bool
	e, err := r.update(ctx, name, func(e *Entry) error {
		if e.Definition.Drain && !e.Paused {
			return fmt.Errorf("subscriber %q: %w", name, ErrDrainDeclared)
		}
		paused, drained = e.Paused, e.Draining && !e.Definition.Drain
		e.Paused, e.Draining = false, false
		return nil
	})
	if err != nil || !paused && !drained {
		return e, err
	}
	attrs := map[string]any{}
	if n := len(e.Epochs); drained && n > 1 && len(e.Epochs[n-2].Subjects) == 0 {
		from, to := e.Epochs[n-2].From, e.last().From-1
		attrs["gapFrom"], attrs["gapTo"] = from, to
		e.Note = fmt.Sprintf("it was drained: it does not get what was stored as event %d to %d", from, to)
	}
	r.broker.Report("subscriber.resumed", name, attrs)
	return e, nil
}

// SyncFile brings the bucket up to date with the subscribers declared in the
// configuration file. One that the file no longer names is parked, not
// deleted: its backlog may be somebody's only copy.
//
// One that can't be as declared now is left as it is, with a RefusedError after
// all others are done.
func (r *Registry) SyncFile(ctx context.Context, declared []Definition) error {
	return r.syncFile(ctx, declared, false)
}

func (r *Registry) syncFile(ctx context.Context, declared []Definition, sent bool) error {
	names := map[string]bool{}
	var mu sync.Mutex // guards refused
	var refused []error
	group, all := errgroup.WithContext(ctx)
	group.SetLimit(syncAtOnce)
	for _, d := range declared {
		names[d.Name] = true
		group.Go(func() error {
			err := r.declare(all, d, sent)
			if errors.Is(err, ErrEpochs) || errors.Is(err, ErrStart) || errors.Is(err, ErrWay) {
				mu.Lock()
				defer mu.Unlock()
				refused = append(refused, err)
				return nil
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := r.orphan(ctx, names); err != nil {
		return err
	}
	r.synced.Store(true)
	if len(refused) > 0 {
		slices.SortFunc(refused, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		return &RefusedError{refused}
	}
	return nil
}

// syncAtOnce is how many subscribers are brought up to date at once: a change of
// subjects waits for workers.
const syncAtOnce = 16

// declare makes a subscriber what the file says.
func (r *Registry) declare(ctx context.Context, d Definition, sent bool) error {
	adopt := func(e *Entry) error {
		if d.Native() != e.Definition.Native() {
			return fmt.Errorf("subscribers.%s.deliver: %w", d.Name, ErrWay)
		}
		sent := sent && !e.says(d)
		if e.Origin != FromFile {
			r.log.Info("the configuration file now declares a subscriber that was added by API", "subscriber", d.Name)
		}
		start := e.Definition.Start // past: it has begun
		e.Definition, e.Origin, e.Orphaned, e.Sent = d, FromFile, false, sent
		e.Definition.Start = start
		return nil
	}
	e, err := r.update(ctx, d.Name, adopt)
	if errors.Is(err, ErrNotFound) {
		e, err = r.create(ctx, d, FromFile, sent)
	}
	if errors.Is(err, jetstream.ErrKeyExists) { // another replica with the same file was quicker
		e, err = r.update(ctx, d.Name, adopt)
	}
	if err != nil {
		return fmt.Errorf("subscriber %q: %w", d.Name, err)
	}
	if e.Paused && !r.synced.Load() {
		r.log.Warn("subscriber is paused", "subscriber", d.Name, "fix", "gridfan subscribers resume "+d.Name)
	}
	return nil
}

// orphan parks those that the file no longer names.
func (r *Registry) orphan(ctx context.Context, names map[string]bool) error {
	entries, err := r.List(ctx)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Definition.Name
		if e.Origin != FromFile || names[name] {
			continue
		}
		if !e.Orphaned {
			r.broker.Report("subscriber.orphaned", name, map[string]any{"why": "no longer in the configuration file"})
		}
		if _, err := r.update(ctx, name, func(e *Entry) error { e.Orphaned = true; return nil }); err != nil {
			return fmt.Errorf("subscriber %q: %w", name, err)
		}
		if e.Orphaned && r.synced.Load() {
			continue // it was said before
		}
		r.log.Warn("subscriber parked: the configuration file no longer declares it", "subscriber", name,
			"fix", "declare it again, or gridfan subscribers delete "+name)
	}
	return nil
}

// Backlog counts what one subscriber has not got.
type Backlog struct {
	Pending     int `json:"pending"`     // never tried, or being tried
	Retry       int `json:"retry"`       // waiting for the next attempt
	DeadLetters int `json:"deadLetters"` // given up
}

// Empty says whether nothing would be lost with the subscriber.
func (b Backlog) Empty() bool { return b == Backlog{} }

// Backlog counts what name has not got.
func (r *Registry) Backlog(ctx context.Context, name string) (Backlog, error) {
	var b Backlog
	e, err := r.Get(ctx, name)
	if err != nil {
		return b, err
	}
	space, cursor, err := r.cursor(ctx, name)
	if err != nil {
		return b, err
	}
	reached, err := r.reached(ctx, e)
	if err != nil {
		return b, err
	}
	if b.Pending, err = r.pending(ctx, space, e, cursor, reached); err != nil {
		return b, err
	}
	return b, r.kept(ctx, name, &b)
}

// kept counts the retries and dead letters of one subscriber.
func (r *Registry) kept(ctx context.Context, name string, b *Backlog) error {
	retries, _, err := r.broker.CountRetries(ctx, name)
	if err != nil {
		return err
	}
	letters, err := r.broker.SubjectCounts(ctx, broker.StreamDeadLetters, broker.DeadLetterAll(name))
	if err != nil {
		return err
	}
	b.Retry = int(retries)
	for _, n := range letters {
		b.DeadLetters += int(n)
	}
	return nil
}

// counts counts the retries of some subscribers at once, and all dead letters. rest
// is as for broker.RetryCounts.
func (r *Registry) counts(ctx context.Context, names []string) (all map[string]Backlog, rest int, err error) {
	retries, rest, err := r.broker.RetryCounts(ctx, names)
	if err != nil {
		return nil, 0, err
	}
	letters, err := r.broker.SubjectCounts(ctx, broker.StreamDeadLetters, ">")
	if err != nil {
		return nil, 0, err
	}
	all = map[string]Backlog{}
	for name, n := range retries {
		all[name] = Backlog{Retry: int(n.All)}
	}
	for subject, n := range letters {
		name := broker.SubscriberOf(subject)
		b := all[name]
		b.DeadLetters += int(n)
		all[name] = b
	}
	return all, rest, nil
}

// Delete removes a subscriber on every replica, with its cursor. When there is
// a backlog, discard must say that it may go too; what is discarded is
// returned. A file-declared one is deleted by taking it out of the file first.
func (r *Registry) Delete(ctx context.Context, name string, discard bool) (Backlog, error) {
	return r.DeleteIf(ctx, name, discard, 0)
}

// DeleteIf is Delete for the entry that was read; revision is as for Replace.
func (r *Registry) DeleteIf(ctx context.Context, name string, discard bool, revision uint64) (Backlog, error) {
	e, err := r.Get(ctx, name)
	if err != nil {
		return Backlog{}, err
	}
	if revision > 0 && e.Revision != revision {
		return Backlog{}, &StaleError{e.Revision}
	}
	if e.Origin == FromFile && !e.Orphaned {
		return Backlog{}, fmt.Errorf("subscriber %q: %w", name, ErrFileDeclared)
	}
	b, err := r.Backlog(ctx, name)
	if err != nil {
		return b, err
	}
	if !b.Empty() && !discard {
		return b, fmt.Errorf("subscriber %q: %w: %d pending, %d in retry, %d dead letters", name, ErrBacklog, b.Pending, b.Retry, b.DeadLetters)
	}
	err = r.broker.Change(ctx, func() error {
		return r.kv.Delete(ctx, name, jetstream.LastRevision(e.Revision))
	})
	if err != nil {
		return b, err
	}
	if err := r.broker.Change(ctx, func() error { return r.clear(ctx, name) }); err != nil {
		return b, err
	}
	r.broker.Report("subscriber.deleted", name, map[string]any{
		"discardedPending": b.Pending, "discardedRetry": b.Retry, "discardedDeadLetters": b.DeadLetters,
	})
	return b, nil
}

// deletionAnswer is how long the deletion of a cursor is waited for before it is asked
// for again. On a cluster the cursor's leader answers, and one that was made just now
// has none: it goes, and nobody says so (nats-server v2.15.2,
// server/jetstream_cluster.go, processClusterDeleteConsumer; seen 2026-11).
const deletionAnswer = time.Second

// clear removes what a deleted subscriber leaves on the broker.
func (r *Registry) clear(ctx context.Context, name string) error {
	js := r.broker.JetStream()
	drop := func(stream string) error {
		for {
			asking, cancel := context.WithTimeout(ctx, deletionAnswer)
			err := js.DeleteConsumer(asking, stream, name)
			cancel()
			switch {
			case errors.Is(err, jetstream.ErrConsumerNotFound):
				return nil
			case ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded):
				return err
			}
		}
	}
	if err := drop(broker.StreamEvents); err != nil {
		return err
	}
	if err := native.Forget(ctx, r.broker, name); err != nil {
		return err
	}
	for stream, subjects := range map[string][]string{
		broker.StreamRetry:       broker.RetryAll(name),
		broker.StreamDeadLetters: {broker.DeadLetterAll(name)},
	} {
		s, err := js.Stream(ctx, stream)
		if err != nil {
			return err
		}
		for _, subject := range subjects {
			if err := s.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
				return err
			}
		}
	}
	// Last, because Sweep knows an unfinished deletion by it.
	return drop(broker.StreamRetry)
}

// left gives the names that something is kept for, of which the known ones may be
// any.
func (r *Registry) left(ctx context.Context, known []string) (map[string]bool, error) {
	names := map[string]bool{}
	counts, rest, err := r.counts(ctx, known)
	if err != nil {
		return nil, err
	}
	for name := range counts {
		names[name] = true
	}
	if rest == 0 {
		return names, nil
	}
	// Somebody else's, or they come and go at this moment.
	subjects, err := r.broker.SubjectCounts(ctx, broker.StreamRetry, ">")
	for subject := range subjects {
		names[broker.SubscriberOf(subject)] = true
	}
	return names, err
}

// Sweep clears what a process left that died while it deleted a subscriber.
func (r *Registry) Sweep(ctx context.Context) error {
	entries, err := r.List(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, e := range entries {
		known[e.Definition.Name] = true
	}
	s, err := r.broker.JetStream().Stream(ctx, broker.StreamRetry)
	if err != nil {
		return err
	}
	// Every cursor on RETRY is a subscriber's; people make theirs on EVENTS.
	var gone []string
	names := s.ConsumerNames(ctx)
	for name := range names.Name() {
		if !known[name] {
			gone = append(gone, name)
		}
	}
	if err := names.Err(); err != nil {
		return err
	}
	// Where cursors are kept in memory, only what they left tells of them.
	left, err := r.left(ctx, slices.Collect(maps.Keys(known)))
	if err != nil {
		return err
	}
	for name := range left {
		if !known[name] && name != "" && !slices.Contains(gone, name) {
			gone = append(gone, name)
		}
	}
	reached, err := native.Through(ctx, r.broker)
	if err != nil {
		return err
	}
	for name := range reached {
		if !known[name] && !slices.Contains(gone, name) {
			gone = append(gone, name)
		}
	}
	for _, name := range gone {
		r.log.Info("clearing what a deleted subscriber left", "subscriber", name)
		if err := r.clear(ctx, name); err != nil {
			return err
		}
	}
	return nil
}
