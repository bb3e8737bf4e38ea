// Package receive takes events in from brokers where they wait: queues and
// subscriptions of Azure Service Bus, subscriptions of Event Grid namespaces, and
// consumer groups of Event Hubs.
//
// What it guarantees:
//
//   - A message is settled only when all that is in it is durable here, as events or
//     in quarantine. Whatever fails before, the broker still has it.
//   - While nothing can be stored, nothing is received: the messages at hand are kept,
//     their locks renewed, and tried again, so that an outage of ours does not use up
//     their deliveries. Even when their locks are lost they are stored first; they
//     come again then and are recognised.
//   - A message that is not understood goes to quarantine and is completed at the
//     broker: it is kept once, here. Only a message that is too large for quarantine is
//     dead-lettered at the broker, which then is the one place that has it; a note in
//     quarantine says so. Nothing else is ever dead-lettered or rejected.
//   - A broker that refuses, or cannot be reached, is asked again after waits that
//     grow; its source says why, and no other source is affected.
//   - No secret is in an error, a log line or a status.
//
// Each source has one worker or several; a worker is a loop around an inbox, which is
// one broker's side of it: get messages, read them, publish, settle.
//
// An event hub settles nothing: its events stay, and how far a partition is read is
// remembered here. A partition is a worker. See hub for who reads which, and
// checkpoint for what makes sure that it is one.
package receive

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"sync"
	"time"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/router/normalise"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
)

// Parts are what Receivers work with.
type Parts struct {
	Broker *broker.Broker
	// Publish stores events, as publish.Publisher's does.
	Publish func(context.Context, publish.Origin, []event.Result) ([]publish.Status, error)
	Metrics *Metrics
	// Report tells the operator what happened; see broker.Broker.Report.
	Report func(what, about string, attrs map[string]any)
	// Egress is how connections are made; nil: to wherever the configuration says.
	Egress *egress.Way
	// Version of gridfan, by which services can tell who asks. Empty leaves it out.
	Version string
	Log     *slog.Logger
}

// Receivers receive for sources. They are safe for concurrent use.
type Receivers struct {
	parts Parts

	changing sync.Mutex   // one change at a time
	mu       sync.RWMutex // guards all below
	sources  map[string]*source
	names    []string
	started  bool
}

// source is one Source at work.
type source struct {
	Source
	parts  *Parts
	parse  normalise.Parser
	open   func(ctx context.Context, worker int) (inbox, error)
	hub    *hub // in the place of open, for an event hub
	status *board
	// transport is that of a source over HTTP, nil for others.
	transport *transport
	// blobs are its dead letters; nil: there are none but its broker's.
	blobs *blobs
	close []func()

	stop    context.CancelFunc // nil until it is started
	working sync.WaitGroup

	// least and most bound the waits between attempts, renew those between renewals
	// of a lock; tests are in a hurry.
	least, most, renew time.Duration
}

// New makes Receivers for valid sources; they do nothing until Start.
func New(sources []Source, parts Parts) (*Receivers, error) {
	r := &Receivers{parts: parts, sources: map[string]*source{}}
	take, err := r.Prepare(sources)
	if err != nil {
		return nil, err
	}
	take()
	return r, nil
}

// Prepare makes what is needed for valid sources in the place of those that there are;
// take then puts it there. Sources that are what they were go on untouched. Of others
// and of those that are gone, what is being stored is stored and settled first, and
// other messages are given back, as at a Stop; so take may be as slow as one. What a
// source has counted stays.
func (r *Receivers) Prepare(sources []Source) (take func(), err error) {
	r.mu.RLock()
	was := r.sources
	r.mu.RUnlock()
	now := map[string]*source{}
	var names []string
	for _, cfg := range sources {
		s := was[cfg.Name]
		if s == nil || !reflect.DeepEqual(s.Source, cfg) {
			if s, err = r.newSource(cfg); err != nil {
				for name, s := range now {
					if s != was[name] {
						s.end()
					}
				}
				return nil, fmt.Errorf("source %q: %w", cfg.Name, err)
			}
		}
		now[cfg.Name] = s
		names = append(names, cfg.Name)
	}
	return func() { r.take(now, names) }, nil
}

// take puts other sources in the place of those that there are.
func (r *Receivers) take(now map[string]*source, names []string) {
	r.changing.Lock()
	defer r.changing.Unlock()
	r.mu.RLock()
	was, started := r.sources, r.started
	r.mu.RUnlock()
	var ending sync.WaitGroup
	for name, s := range was {
		if now[name] != s {
			ending.Go(s.end)
		}
	}
	ending.Wait()
	for name, s := range now {
		before := was[name]
		if before == s {
			continue
		}
		if before != nil {
			s.status.goOn(before.status)
		}
		s.status.show()
		if started {
			s.start()
		}
	}
	for name, s := range was {
		if now[name] == nil {
			s.status.gone()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sources, r.names = now, names
}

// source is one of now, nil for none of that name.
func (r *Receivers) source(name string) *source {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.sources[name]
}

func (r *Receivers) newSource(cfg Source) (*source, error) {
	parse, err := normalise.New(cfg.Kind, cfg.Options)
	if err != nil {
		return nil, err
	}
	s := &source{Source: cfg, parts: &r.parts, parse: parse, least: 500 * time.Millisecond, most: time.Minute, renew: time.Second}
	s.status = newBoard(cfg, r.parts.Metrics)
	if err := s.equip(); err != nil {
		return nil, err
	}
	return s, nil
}

// equip finds out what the source is received from.
func (s *source) equip() error {
	if d := s.DeadLetters; d != nil {
		var err error
		if s.blobs, err = s.newBlobs(*d.Blob); err != nil {
			return err
		}
	}
	switch from := s.From; {
	case from == nil:
	case from.ServiceBus != nil:
		return s.equipServiceBus(*from.ServiceBus)
	case from.EventGridNamespace != nil:
		return s.equipNamespace(*from.EventGridNamespace)
	case from.EventHub != nil:
		return s.equipHub(*from.EventHub)
	}
	return nil
}

// Start begins to receive. The caller calls Stop.
func (r *Receivers) Start() {
	r.changing.Lock()
	defer r.changing.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.started = true
	for _, s := range r.sources {
		s.start()
	}
}

// start begins to receive one source.
func (s *source) start() {
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	if s.hub != nil {
		s.working.Go(func() { s.hub.run(ctx) })
	}
	if b := s.blobs; b != nil && b.cfg.Every != Never {
		s.working.Go(func() { b.sweep(ctx) })
	}
	if s.open == nil {
		return
	}
	for i := range s.workers() {
		s.working.Go(func() {
			s.work(ctx, i, func(ctx context.Context) (inbox, error) { return s.open(ctx, i) })
		})
	}
}

// end ends receiving one source, if it was begun.
func (s *source) end() {
	if s.stop != nil {
		s.stop()
		s.working.Wait()
	}
	for _, f := range s.close {
		f()
	}
	s.close = nil
}

func (s *source) workers() int {
	if bus := s.From.ServiceBus; bus != nil {
		return bus.Concurrency
	}
	return 1
}

// Stop ends receiving: what is being stored is stored and settled, if that takes no
// longer than a few seconds, and other messages are given back.
func (r *Receivers) Stop() {
	r.changing.Lock()
	defer r.changing.Unlock()
	r.mu.Lock()
	all := r.sources
	r.started = false
	r.mu.Unlock()
	var ending sync.WaitGroup
	for _, s := range all {
		ending.Go(s.end)
	}
	ending.Wait()
}

// Reparse reads a body from quarantine as its source would today; ok is false for a
// source that is not among these.
func (r *Receivers) Reparse(name string, header map[string]string, body []byte) (publish.Origin, []event.Result, bool) {
	s := r.source(name)
	if s == nil {
		return publish.Origin{}, nil, false
	}
	h := map[string][]string{}
	for k, v := range header {
		h[k] = []string{v}
	}
	return s.origin(time.Time{}), s.read(&message{header: h, body: body}), true
}

// origin is that of what is received now.
func (s *source) origin(accepted time.Time) publish.Origin {
	// The source has pushed it, to a broker that stands in between.
	return publish.Origin{Source: s.Name, Kind: s.Kind, Environment: s.Environment, Via: "push", Accepted: accepted}
}

// inbox is a worker's side of a broker. It is used by one goroutine at a time, but
// for locked and renew.
type inbox interface {
	// proven says whether the broker has shown that there is something to receive from.
	proven() bool
	// receive waits for messages until ctx ends, or for some time: none is no error.
	receive(ctx context.Context) ([]*message, error)
	// locked says how long messages are still locked for us, and whether they are at
	// all. renew locks them anew and marks those that are lost. Both are called while
	// others wait.
	locked(all []*message) (time.Duration, bool)
	renew(ctx context.Context, all []*message)
	// settle does with messages as their verdicts say, and marks those that are lost.
	// An error says that the connection is no longer of use.
	settle(ctx context.Context, all []*message) error
	// giveBack lets others have messages at once.
	giveBack(ctx context.Context, all []*message)
	// deadLetters says whether the broker keeps what has the verdict tooLarge.
	deadLetters() bool
	close()
}

const (
	// renewMost bounds the time between renewals, because a lock's end is by the
	// clock of the service: the shortest lock of Service Bus is 5 seconds, the usual
	// one 30 or 60.
	renewMost = 10 * time.Second
	// grace is how long what is being stored may go on when the program stops, and
	// goodbye how long the broker may take to be told.
	grace   = 5 * time.Second
	goodbye = 2 * time.Second
)

// errAgain ends a session that begins anew at once.
var errAgain = errors.New("the place where it is read has moved")

// work receives until ctx ends.
func (s *source) work(ctx context.Context, worker int, open func(context.Context) (inbox, error)) {
	for failures := 0; ctx.Err() == nil; {
		err := s.session(ctx, worker, open, func() { failures = 0 })
		switch {
		case ctx.Err() != nil || err == nil: // its time was over
		case errors.Is(err, errAgain):
			pause(ctx, s.least/5)
		default:
			pause(ctx, s.failed(worker, faultOf(err), failures))
			failures++
		}
	}
	s.status.stopped(worker)
}

// failed tells people that a worker cannot receive, and gives how long to leave the
// broker alone.
func (s *source) failed(worker int, f *Fault, failures int) time.Duration {
	wait := s.wait(f, failures)
	if s.status.failed(worker, f, wait) {
		s.parts.Log.Warn("nothing can be received", "source", s.Name, "from", s.status.from, "reason", f.Error(), "again_in", wait.Round(time.Millisecond))
		s.parts.Report("source.receive-failing", s.Name, map[string]any{"from": s.status.from, "kind": string(f.Kind), "reason": f.Reason})
	}
	return wait
}

// wait is how long to leave a broker alone after so many failures in a row: longer
// where people have to do something first.
func (s *source) wait(f *Fault, failures int) time.Duration {
	most := s.most
	if f.Kind == Credentials || f.Kind == Configuration {
		most *= 5
	}
	d := min(s.least<<min(failures, 20), most)
	d = max(d/2+rand.N(d/2+1), f.After)
	return d
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// session opens an inbox and receives from it until it fails. well is called when the
// broker has shown that it works.
func (s *source) session(ctx context.Context, worker int, open func(context.Context) (inbox, error), well func()) error {
	in, err := open(ctx)
	if err != nil {
		return err
	}
	defer in.close()
	receiving := func() {
		well()
		if s.status.receiving(worker) {
			s.parts.Log.Info("messages are received", "source", s.Name, "from", s.status.from)
			s.parts.Report("source.receiving", s.Name, map[string]any{"from": s.status.from})
		}
	}
	if in.proven() {
		receiving()
	}
	for empty := 0; ctx.Err() == nil; {
		start := time.Now()
		all, err := in.receive(ctx)
		switch {
		case ctx.Err() != nil && len(all) > 0:
			s.back(in, all)
			return nil
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case len(all) == 0 && time.Since(start) < s.least/5:
			// Clients that mend a link by themselves say nothing of it.
			if empty++; empty > 5 {
				return &Fault{Kind: Unavailable, Reason: "the service ends the link each time as soon as it is there"}
			}
			continue
		}
		empty = 0
		receiving()
		if len(all) == 0 {
			continue
		}
		if err := s.take(ctx, worker, in, all); err != nil {
			return err
		}
	}
	return nil
}

// back gives messages back when the program stops.
func (s *source) back(in inbox, all []*message) {
	ctx, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	in.giveBack(ctx, all)
	s.status.settled("returned", len(all))
}

// take stores messages and settles them. It comes back only when they are stored, or
// the program stops.
func (s *source) take(ctx context.Context, worker int, in inbox, all []*message) error {
	s.status.held(len(all))
	defer s.status.held(-len(all))
	// What is being stored when the program stops may be stored.
	storing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })()

	renewing, enough := context.WithCancel(storing)
	var renewals sync.WaitGroup
	renewals.Go(func() {
		for {
			left, ok := in.locked(all)
			if !ok {
				return
			}
			pause(renewing, min(max(left/2, s.renew), renewMost))
			if renewing.Err() != nil {
				return
			}
			in.renew(renewing, all)
		}
	})
	defer renewals.Wait()
	defer enough()

	for failures := 0; ; failures++ {
		err := s.store(storing, in, all)
		if err == nil {
			s.status.stored(worker)
			break
		}
		if ctx.Err() != nil {
			enough()
			renewals.Wait()
			s.back(in, all)
			return nil
		}
		wait := s.wait(&Fault{}, failures)
		if s.status.holding(worker, err) {
			s.parts.Log.Warn("received messages cannot be stored: they are kept locked, and no others are received", "source", s.Name, "messages", len(all), "error", err)
			s.parts.Report("source.receive-holding", s.Name, map[string]any{"from": s.status.from, "reason": storageReason(err)})
		}
		pause(ctx, wait)
	}
	enough()
	renewals.Wait()
	settling, done := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer done()
	err := in.settle(settling, all)
	s.count(all)
	return err
}

// count books what became of messages.
func (s *source) count(all []*message) {
	for _, m := range all {
		switch {
		case m.lost:
			s.status.settled("lost", 1)
		case m.verdict == tooLarge:
			s.status.settled("dead-lettered", 1)
		default:
			s.status.settled("settled", 1)
		}
	}
}

// read makes results of a message.
func (s *source) read(m *message) []event.Result {
	fault := m.fault
	if fault == nil && s.Body > 0 && int64(len(m.body)) > s.Body {
		fault = event.Faultf(event.FaultTooLarge, "the body has %d bytes, and the source's limit is %d; see sources.*.limits.body", len(m.body), s.Body)
	}
	if fault == nil {
		contentType := ""
		if v := m.header["Content-Type"]; len(v) > 0 {
			contentType = v[0]
		} else if v := m.header["content-type"]; len(v) > 0 {
			contentType = v[0]
		}
		fault = unreadable(s.Kind, contentType, m.body)
	}
	if fault != nil {
		return []event.Result{{Raw: m.body, Fault: fault}}
	}
	return s.parse(s.Name, m.header, m.body)
}

// store makes everything in messages durable and gives each its verdict. With an
// error some may be stored already; they are recognised when it is called again.
func (s *source) store(ctx context.Context, in inbox, all []*message) error {
	o := s.origin(time.Now())
	o.Late = len(all) > 0 && all[0].late
	var tell func(publish.Status)
	if r, ok := in.(recovering); ok {
		tell = r.out.count
	}
	var events []event.Result
	var whose []*message
	var faulty []*message
	for _, m := range all {
		if m.verdict != undecided {
			continue
		}
		whose = append(whose, m)
		results := s.read(m)
		bad := false
		for i := range results {
			if results[i].Fault != nil {
				bad = true
				continue
			}
			events = append(events, results[i])
		}
		if bad {
			faulty = append(faulty, m)
		}
	}
	if err := s.publish(ctx, o, events, tell); errors.Is(err, publish.ErrTooLarge) && len(whose) > 1 {
		// It does not say which; all but that one are stored, and recognised.
		for _, m := range whose {
			if err := s.store(ctx, in, []*message{m}); err != nil {
				return err
			}
		}
		return nil
	} else if err != nil {
		return s.oversize(ctx, in, o, whose, err)
	}
	for _, m := range faulty {
		o := o
		o.Header = quarantineHeaders(m.header)
		for i, r := range s.read(m) {
			if r.Fault == nil || i < m.quarantined {
				continue
			}
			s.parts.Log.Warn("element quarantined", "source", s.Name, "message", m.id, "code", r.Fault.Code, "detail", r.Fault.Detail)
			if err := s.publish(ctx, o, []event.Result{r}, tell); err != nil {
				if err := s.oversize(ctx, in, o, []*message{m}, err); err != nil {
					return err
				}
			}
			m.quarantined = i + 1
		}
	}
	for _, m := range whose {
		if m.verdict == undecided {
			m.verdict = stored
		}
		s.status.message(m, o.Accepted)
	}
	return nil
}

// excerpt is how much of a message too large for quarantine is kept there.
const excerpt = 4 << 10

// oversize deals with the one message that publish says is too large for the broker.
// Where its own broker keeps dead letters, that is where it goes, with a note here;
// otherwise it waits, and all behind it, for a larger max_payload. Other errors it
// gives back.
func (s *source) oversize(ctx context.Context, in inbox, o publish.Origin, whose []*message, err error) error {
	if !errors.Is(err, publish.ErrTooLarge) || len(whose) != 1 || !in.deadLetters() {
		return err
	}
	m := whose[0]
	m.reason = event.Faultf(event.FaultTooLarge, "message %.64q has %d bytes, more than the broker stores; only its beginning is here, the whole is in the dead-letter queue of %s; raise the broker's max_payload, then gridfan sources recover %s",
		m.id, len(m.body), s.status.from, s.Name)
	o.Header = quarantineHeaders(m.header)
	if err := s.publish(ctx, o, []event.Result{{Raw: m.body[:min(len(m.body), excerpt)], Fault: m.reason}}, nil); err != nil {
		return err
	}
	m.verdict = tooLarge
	return nil
}

// publish stores results and counts them, and tells what became of each, if tell is
// not nil.
func (s *source) publish(ctx context.Context, o publish.Origin, results []event.Result, tell func(publish.Status)) error {
	if len(results) == 0 {
		return nil
	}
	statuses, err := s.parts.Publish(ctx, o, results)
	if err != nil {
		return err
	}
	for i, st := range statuses {
		s.status.element(st, o.Accepted)
		if tell != nil {
			tell(st)
		}
		if c := results[i].Control; c != nil && c.Kind == event.Deletion {
			s.parts.Report("source.subscription-deleted", s.Name, map[string]any{"subscription": c.Subscription})
		}
	}
	return nil
}

// storageReason says in few words why nothing can be stored.
func storageReason(err error) string {
	switch {
	case errors.Is(err, publish.ErrQuarantineFull):
		return "the source's quarantine is full; redrive or drop entries"
	case errors.Is(err, broker.ErrDiskFull):
		return "the disk under the store is almost full"
	case errors.Is(err, publish.ErrStorageFull):
		return "the storage is full"
	case errors.Is(err, publish.ErrTooLarge):
		return "a message is more than the broker stores; raise its max_payload"
	case errors.Is(err, publish.ErrOverloaded):
		return "too many events are waiting"
	}
	return "the broker does not answer"
}
