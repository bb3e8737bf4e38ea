package poll

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
)

// Parts are what a Poller works with.
type Parts struct {
	Broker *broker.Broker
	// Publish stores events, as publish.Publisher's does.
	Publish func(context.Context, publish.Origin, []event.Result) ([]publish.Status, error)
	Metrics *Metrics     // nil: none
	Log     *slog.Logger // nil: nothing is logged
}

// Poller polls sources. All methods are safe for concurrent use.
type Poller struct {
	parts  Parts
	keeper keeper
	closer func() // of the keeper
	sub    *nats.Subscription
	report func(what, about string, attrs map[string]any)
	ttl    time.Duration // of leases; 0: by the number of sources

	hard context.Context // ends what stores pages
	kill context.CancelFunc

	applying sync.Mutex // one Apply or Stop at a time; guards stopped
	stopped  bool
	mu       sync.Mutex          // guards all below
	sources  map[string]*running // by ID
	budgets  map[string]*budget  // by identity
}

// running is a source and its goroutine.
type running struct {
	*source
	stop context.CancelFunc
	done chan struct{}
}

// Rewinder is a Fetcher whose cursor can begin at a time.
type Rewinder interface {
	// Rewind gives the cursor that reads all changes since a time, and perhaps
	// older ones. The error says why the source cannot.
	Rewind(ctx context.Context, to time.Time) (json.RawMessage, error)
}

// Errors of commands to a source.
var (
	// ErrUnknown: no source of this name is polled.
	ErrUnknown = errors.New("no source of this name is polled")
	// ErrNobody: no process polls it at the moment, so none can be told.
	ErrNobody = errors.New("no router polls this source at the moment")
	// ErrCannotRewind: its cursor has no times.
	ErrCannotRewind = errors.New("its cursor cannot go back to a time")
	// ErrNothingToConfirm: it is not Unconfirmed.
	ErrNothingToConfirm = errors.New("none of its rows is missing, so there is nothing to confirm")
)

// New makes a Poller without sources. The caller calls Start.
func New(parts Parts) *Poller {
	if parts.Log == nil {
		parts.Log = slog.New(slog.DiscardHandler)
	}
	p := &Poller{parts: parts, sources: map[string]*running{}, budgets: map[string]*budget{}, report: parts.Broker.Report}
	p.hard, p.kill = context.WithCancel(context.Background())
	if parts.Metrics != nil {
		parts.Metrics.poller.Store(p)
	}
	return p
}

// Start opens what the Poller needs on the broker and begins to listen for
// commands of other processes. The caller calls Stop.
func (p *Poller) Start(ctx context.Context) error {
	k, err := openKeeper(ctx, p.parts.Broker)
	if err != nil {
		return err
	}
	p.keeper, p.closer = k, k.close
	if p.sub, err = k.conn.Subscribe(broker.PollCommand("*"), p.answer); err != nil {
		k.close()
		return fmt.Errorf("commands to polled sources: %w", err)
	}
	return nil
}

// Apply makes sources the ones that are polled: new ones begin, spread over a
// while; those that are not named stop; those whose Version has changed stop and
// begin again with their checkpoint. Every Config must be valid and every ID be
// there once. It returns when what was to stop has stopped. It follows Start, and
// does nothing after Stop.
func (p *Poller) Apply(sources []Source) {
	p.applying.Lock()
	defer p.applying.Unlock()
	if p.stopped {
		return
	}
	want := make(map[string]Source, len(sources))
	for _, s := range sources {
		want[s.ID()] = s
	}
	var ending []*running
	p.mu.Lock()
	for id, r := range p.sources {
		if s, ok := want[id]; ok && s.Version == r.Version {
			delete(want, id)
			continue
		}
		r.stop()
		ending = append(ending, r)
		delete(p.sources, id)
	}
	p.mu.Unlock()
	for _, r := range ending {
		<-r.done
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range want {
		p.begin(s, len(want), len(sources))
	}
	p.share()
}

// share tells budgets whom they are for. The caller holds mu.
func (p *Poller) share() {
	all, lowest := map[string]int{}, map[string]float64{}
	for _, r := range p.sources {
		if all[r.Identity]++; all[r.Identity] == 1 || r.Budget < lowest[r.Identity] {
			lowest[r.Identity] = r.Budget
		}
	}
	for identity, b := range p.budgets {
		if all[identity] > 0 {
			b.declare(all[identity], lowest[identity])
		}
	}
}

// begin starts one of n sources. The caller holds mu.
func (p *Poller) begin(cfg Source, n, all int) {
	b := p.budgets[cfg.Identity]
	if b == nil {
		b = newBudget(cfg.Identity, cfg.Budget)
		p.budgets[cfg.Identity] = b
	}
	ttl := p.ttl
	if ttl == 0 {
		ttl = leaseFor(all)
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &running{
		source: &source{
			Source: cfg, parts: &p.parts, keeper: p.keeper, budget: b, report: p.report, log: p.parts.Log.With("source", cfg.Label()), hard: p.hard,
			delay: randomDelay(n), ttl: ttl, wake: make(chan struct{}, 1), commands: make(chan command),
		},
		stop: stop, done: make(chan struct{}),
	}
	p.sources[cfg.ID()] = r
	go func() {
		defer close(r.done)
		r.run(ctx)
	}()
}

// Stop ends polling: a page that is being stored is finished if ctx lasts, a
// request is given up. Leases are given back at once, so that another process goes
// on. Checkpoints stay. A Poller that was not started can be stopped.
func (p *Poller) Stop(ctx context.Context) {
	p.applying.Lock()
	defer p.applying.Unlock()
	p.stopped = true
	if p.sub != nil {
		_ = p.sub.Unsubscribe() // the connection is closed below
	}
	defer context.AfterFunc(ctx, p.kill)()
	p.mu.Lock()
	all := p.sources
	p.sources = map[string]*running{}
	p.mu.Unlock()
	for _, r := range all {
		r.stop()
	}
	for _, r := range all {
		<-r.done
	}
	p.kill()
	if p.closer != nil {
		p.closer()
		p.closer = nil
	}
}

// Status tells how all sources are doing, by name and table. Of those that another process
// polls it tells what that process says. It asks the broker, within ctx.
func (p *Poller) Status(ctx context.Context) []Status {
	now := time.Now()
	here := p.here(now)
	if !slices.ContainsFunc(here, func(st Status) bool { return !st.Here }) {
		return here
	}
	notes, err := p.parts.Broker.LeaseNotes(ctx, leaseKey("*"))
	if err != nil {
		p.parts.Log.Debug("what other routers poll is not known", "error", err)
		return here
	}
	for i := range here {
		note, ok := notes[leaseKey(ID(here[i].Source, here[i].Table))]
		if here[i].Here || !ok {
			continue
		}
		st := Status{Says: "another router begins to poll it"}
		if note.Note != nil && json.Unmarshal(note.Note, &st) != nil {
			st = Status{Says: "another router polls it, in a version that says so in other words"}
		}
		if st.State == "" {
			st.State = Elsewhere
		}
		st.Source, st.Table, st.Holder, st.Here = here[i].Source, here[i].Table, note.Holder, false
		st.Age = seconds(max(0, now.Sub(note.At)))
		st.age(now)
		here[i] = st
	}
	return here
}

// here tells what this process knows, by name and table.
func (p *Poller) here(now time.Time) []Status {
	p.mu.Lock()
	all := make([]Status, 0, len(p.sources))
	for _, r := range p.sources {
		all = append(all, r.status(now))
	}
	p.mu.Unlock()
	slices.SortFunc(all, func(a, b Status) int {
		return cmp.Or(strings.Compare(a.Source, b.Source), strings.Compare(a.Table, b.Table))
	})
	return all
}

// PollNow polls a table, by its ID, as soon as its budget and a Retry-After let it,
// also outside of its windows, in whichever process holds it. It returns when that
// process has begun to see to it, not when it has polled.
func (p *Poller) PollNow(ctx context.Context, id string) error {
	return p.tell(ctx, id, command{Do: doPoll})
}

// Rewind makes the next poll begin at a time, or, with the zero time, at the
// beginning, where every row counts as changed. What was published before is
// published again only where dedup has forgotten it. It returns when the new
// checkpoint is durable.
func (p *Poller) Rewind(ctx context.Context, id string, to time.Time) error {
	return p.tell(ctx, id, command{Do: doRewind, To: to})
}

// Baseline reads all rows again. With Silent they are remembered and not
// published, with Publish all are published, with Compare those that differ from
// what is known. It returns when that is durably begun.
func (p *Poller) Baseline(ctx context.Context, id string, mode Baseline) error {
	return p.tell(ctx, id, command{Do: doBaseline, Mode: mode})
}

// Confirm says of an Unconfirmed source that its missing rows are deleted: all rows
// are read once more, the deletions are published and polling goes on. It returns
// when that is durably begun.
func (p *Poller) Confirm(ctx context.Context, id string) error {
	return p.tell(ctx, id, command{Do: doConfirm})
}

// commandWait is how long a holder may take for a command: to give up a request, to
// finish a page and to write the checkpoint.
const commandWait = 45 * time.Second

// tell gives a command to the process that polls the source.
func (p *Poller) tell(ctx context.Context, id string, c command) error {
	p.mu.Lock()
	r := p.sources[id]
	p.mu.Unlock()
	if r == nil {
		return ErrUnknown
	}
	ctx, cancel := context.WithTimeout(ctx, commandWait)
	defer cancel()
	if err := r.tell(ctx, c); !errors.Is(err, ErrNobody) {
		return err
	}
	// First who holds it: those that do not, do not answer.
	notes, err := p.parts.Broker.LeaseNotes(ctx, leaseKey(id))
	if err != nil {
		return err
	}
	if _, ok := notes[leaseKey(id)]; !ok {
		return ErrNobody
	}
	body, err := json.Marshal(c)
	if err != nil {
		return err
	}
	m, err := p.parts.Broker.Ask(ctx, broker.PollCommand(id), body)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNobody, err)
	}
	var said reply
	if err := json.Unmarshal(m, &said); err != nil {
		return fmt.Errorf("the router that polls it answered %.60q", m)
	}
	return said.err()
}

// reply is how a command went, between processes.
type reply struct {
	Error string `json:"error,omitempty"`
}

func (r reply) err() error {
	if r.Error == "" {
		return nil
	}
	for _, known := range []error{ErrCannotRewind, ErrNothingToConfirm} {
		if r.Error == known.Error() {
			return known
		}
	}
	return errors.New(r.Error)
}

// answer sees to a command of another process, if this one polls the source.
func (p *Poller) answer(m *nats.Msg) {
	var c command
	if json.Unmarshal(m.Data, &c) != nil {
		return
	}
	p.mu.Lock()
	r := p.sources[strings.TrimPrefix(m.Subject, broker.PollCommand(""))]
	p.mu.Unlock()
	if r == nil {
		return
	}
	// Not here: a page may have to be finished first, and other sources' commands
	// would wait behind it.
	go func() {
		ctx, cancel := context.WithTimeout(p.hard, commandWait)
		defer cancel()
		err := r.tell(ctx, c)
		if errors.Is(err, ErrNobody) {
			return
		}
		var said reply
		if err != nil {
			said.Error = bounded(err.Error())
		}
		if body, err := json.Marshal(said); err == nil {
			_ = m.Respond(body) // who asked gives up by itself
		}
	}()
}
