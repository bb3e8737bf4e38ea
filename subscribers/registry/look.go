package registry

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/native"
)

// Look is what EVENTS holds and what each subscriber has got of it.
type Look struct {
	Space
	Positions []Position // by name
}

// Position is where one subscriber stands in EVENTS.
type Position struct {
	Entry
	Pending int // never tried, or being tried
	// Got is the sequence up to which it has everything, or did not want it.
	Got uint64
	// Held is what it makes us keep; nil when it has got everything.
	Held *Held
}

// Held is the part of EVENTS that one subscriber makes us keep.
type Held struct {
	// Sequence is its oldest event that it has not got, Since when that was
	// stored.
	Sequence uint64    `json:"sequence"`
	Since    time.Time `json:"since"`
	// Bytes estimates the space from that event on, whoever else's events are
	// in it: they can't be trimmed before.
	Bytes int64 `json:"bytes"`
}

// oldest remembers a search: the first event of a subscriber from one sequence
// on. It holds until the cursor has passed it.
type oldest struct {
	created  time.Time // the subscriber
	stream   time.Time
	epochs   []Epoch
	from     uint64
	sequence uint64 // 0: there is none up to through
	through  uint64
	since    time.Time
}

// Look asks the server for everything that trimming depends on, in this order:
// the end of the stream, who there is, how far each has come. Whoever is added
// meanwhile begins behind that end, and what a quiet subscriber is said to have
// ends there.
//
// It takes one list of the subscribers, one of the cursors, and a small request
// for each subscriber whose oldest event has changed.
func (r *Registry) Look(ctx context.Context) (Look, error) {
	space, err := r.Space(ctx)
	if err != nil {
		return Look{}, err
	}
	l := Look{Space: space}
	entries, err := r.List(ctx)
	if err != nil {
		return l, err
	}
	cursors := map[string]*jetstream.ConsumerInfo{}
	list := space.stream.ListConsumers(ctx)
	for info := range list.Info() {
		cursors[info.Name] = info
	}
	if err := list.Err(); err != nil {
		return l, err
	}
	reached, err := r.reached(ctx, entries...)
	if err != nil {
		return l, err
	}
	for _, e := range entries {
		p, err := r.position(ctx, space, e, cursors[e.Definition.Name], reached)
		if err != nil {
			return l, err
		}
		l.Positions = append(l.Positions, p)
	}
	r.forget(entries)
	return l, nil
}

// reached gives the place of each subscriber among those whose own client takes
// the events. A cursor says what the client has acknowledged, the place what of
// that is recorded, and before that nothing may go.
func (r *Registry) reached(ctx context.Context, entries ...Entry) (map[string]uint64, error) {
	if !slices.ContainsFunc(entries, func(e Entry) bool { return e.Definition.Native() }) {
		return nil, nil
	}
	all, err := native.Through(ctx, r.broker)
	if err != nil {
		return nil, err
	}
	reached := map[string]uint64{}
	for _, e := range entries {
		name := e.Definition.Name
		if !e.Definition.Native() {
			continue
		}
		reached[name] = e.StartSequence - min(1, e.StartSequence)
		if at, ok := all[name]; ok && at.Created.Equal(e.Created) {
			reached[name] = at.Through
		}
	}
	return reached, nil
}

// Recorded gives the event up to which everything has its record, for a subscriber
// whose own client takes the events.
func (r *Registry) Recorded(ctx context.Context, e Entry) (uint64, error) {
	reached, err := r.reached(ctx, e)
	return reached[e.Definition.Name], err
}

// Unrecorded counts, by name, the events that wait for subscribers whose own
// clients take them, those among them that are acknowledged and have no record
// yet.
func (r *Registry) Unrecorded(ctx context.Context) (map[string]int, error) {
	entries, err := r.List(ctx)
	if err != nil {
		return nil, err
	}
	reached, err := r.reached(ctx, entries...)
	if err != nil || len(reached) == 0 {
		return nil, err
	}
	space, err := r.Space(ctx)
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for _, e := range entries {
		if !e.Definition.Native() {
			continue
		}
		if counts[e.Definition.Name], err = r.pending(ctx, space, e, nil, reached); err != nil {
			return nil, err
		}
	}
	return counts, nil
}

func (r *Registry) position(ctx context.Context, s Space, e Entry, cursor *jetstream.ConsumerInfo, reached map[string]uint64) (Position, error) {
	p := Position{Entry: e}
	from := e.StartSequence
	if at, ok := reached[e.Definition.Name]; ok {
		from = max(from, at+1)
	} else if cursor != nil {
		if cursor.NumPending == 0 && cursor.NumAckPending == 0 {
			// A quiet subscriber's cursor stands still.
			p.Got = s.Last
			return p, nil
		}
		from = max(from, cursor.AckFloor.Stream+1)
		if cursor.NumAckPending == 0 {
			from = max(from, cursor.Delivered.Stream+1)
		}
	}
	o, err := r.oldest(ctx, s, e, max(from, s.First, 1))
	if err != nil {
		return p, err
	}
	if p.Pending, err = r.pending(ctx, s, e, cursor, reached); err != nil {
		return p, err
	}
	if o.sequence == 0 {
		p.Got = s.Last // what is pending came after the look, or is not wanted any more
		return p, nil
	}
	p.Got = o.sequence - 1
	p.Held = &Held{Sequence: o.sequence, Since: o.since, Bytes: s.From(o.sequence)}
	return p, nil
}

// oldest finds a subscriber's first event from a sequence on. An epoch whose
// beginning is not known begins behind the end of the stream.
func (r *Registry) oldest(ctx context.Context, s Space, e Entry, from uint64) (oldest, error) {
	name := e.Definition.Name
	r.mu.Lock()
	o, ok := r.found[name]
	r.mu.Unlock()
	if ok && o.created.Equal(e.Created) && o.stream.Equal(s.created) && slices.EqualFunc(o.epochs, e.Epochs, Epoch.Equal) && o.from <= from &&
		(from <= o.sequence || o.sequence == 0 && o.through == s.Last) {
		return o, nil
	}
	o = oldest{created: e.Created, stream: s.created, epochs: e.Epochs, from: from, through: s.Last}
	for i, epoch := range e.Epochs {
		end := s.Last
		if e.end(i) > 0 {
			end = min(end, e.end(i)-1)
		}
		if epoch.From == 0 || max(from, epoch.From) > end {
			continue
		}
		for _, subject := range deliver.MinimiseSubjects(epoch.Subjects) {
			sequence, since, ok, err := s.Next(ctx, max(from, epoch.From), subject)
			if err != nil {
				return o, err
			}
			if ok && sequence <= end && (o.sequence == 0 || sequence < o.sequence) {
				o.sequence, o.since = sequence, since
			}
		}
		if o.sequence > 0 {
			break
		}
	}
	r.mu.Lock()
	r.found[name] = o
	r.mu.Unlock()
	return o, nil
}

// Equal says whether two epochs are the same.
func (e Epoch) Equal(other Epoch) bool {
	return e.From == other.From && slices.Equal(e.Subjects, other.Subjects)
}

// pending counts the events that are not settled: never tried, or being tried.
func (r *Registry) pending(ctx context.Context, s Space, e Entry, cursor *jetstream.ConsumerInfo, reached map[string]uint64) (int, error) {
	if at, ok := reached[e.Definition.Name]; ok {
		return r.ahead(ctx, s, e.open(at), at)
	}
	if cursor == nil {
		return 0, nil // about to be made
	}
	if n, exact := counted(e, cursor); exact {
		return n, nil
	}
	return r.unsettled(ctx, s, e, cursor)
}

// Pending counts the events of a subscriber that are not settled: never tried, or
// being tried. cursor is its own on EVENTS, which may let through more than the
// subscriber wants while its subjects change; nil: it is about to be made.
func (r *Registry) Pending(ctx context.Context, e Entry, cursor *jetstream.ConsumerInfo) (int, error) {
	if cursor == nil {
		cursor = &jetstream.ConsumerInfo{}
	} else if n, exact := counted(e, cursor); exact {
		return n, nil
	}
	s, err := r.Space(ctx)
	if err != nil {
		return 0, err
	}
	return r.unsettled(ctx, s, e, cursor)
}

// counted gives what a cursor counts, and whether that is what its subscriber has
// to come.
func counted(e Entry, cursor *jetstream.ConsumerInfo) (n int, exact bool) {
	n = int(cursor.NumPending) + cursor.NumAckPending
	open := e.open(cursor.AckFloor.Stream)
	return n, n == 0 || len(open.Epochs) == 1 && slices.Equal(filters(cursor.Config), open.filter())
}

// unsettled counts by epochs: the cursor counts what any of them matches.
func (r *Registry) unsettled(ctx context.Context, s Space, e Entry, cursor *jetstream.ConsumerInfo) (int, error) {
	n, err := r.ahead(ctx, s, e.open(cursor.AckFloor.Stream), cursor.Delivered.Stream)
	return n + cursor.NumAckPending, err
}

// ahead counts the events behind a sequence that e wants.
func (r *Registry) ahead(ctx context.Context, s Space, e Entry, behind uint64) (n int, err error) {
	for i, epoch := range e.Epochs {
		from, end := max(epoch.From, behind+1), e.end(i)
		if epoch.From == 0 || from > s.Last || end > 0 && from >= end {
			continue
		}
		beyond := 0
		if end > 0 && end <= s.Last {
			if beyond, err = r.count(ctx, s, end, epoch.Subjects); err != nil {
				return 0, err
			}
		}
		all, err := r.count(ctx, s, from, epoch.Subjects)
		if err != nil {
			return 0, err
		}
		n += max(0, all-beyond)
	}
	return n, nil
}

// count counts the events from a sequence on, by a cursor that lives for no
// longer than that: the server counts in no other way.
func (r *Registry) count(ctx context.Context, s Space, from uint64, subjects []string) (int, error) {
	if len(subjects) == 0 {
		return 0, nil
	}
	c, err := s.stream.CreateConsumer(ctx, jetstream.ConsumerConfig{
		Description: "gridfan: counting", FilterSubjects: deliver.MinimiseSubjects(subjects),
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(1, from),
		AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, Replicas: 1, InactiveThreshold: 5 * time.Second,
	})
	if err != nil {
		return 0, err
	}
	info := c.CachedInfo()
	if err := s.stream.DeleteConsumer(ctx, info.Name); err != nil {
		r.log.Debug("a cursor that counted is left to its end", "error", err)
	}
	return int(info.NumPending), nil
}

// forget drops what is known of subscribers that are gone.
func (r *Registry) forget(entries []Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.found {
		if !slices.ContainsFunc(entries, func(e Entry) bool { return e.Definition.Name == name }) {
			delete(r.found, name)
		}
	}
}

// State is a subscriber with all that it has not got.
type State struct {
	Entry
	Backlog Backlog
	Held    *Held // nil: nothing
	// Missing is the endpoint that it uses and that there is not, empty if there
	// is. It is parked until then.
	Missing string
}

// State tells of one subscriber.
func (r *Registry) State(ctx context.Context, e Entry) (State, error) {
	st := State{Entry: e}
	space, cursor, err := r.cursor(ctx, e.Definition.Name)
	if err != nil {
		return st, err
	}
	reached, err := r.reached(ctx, e)
	if err != nil {
		return st, err
	}
	p, err := r.position(ctx, space, e, cursor, reached)
	if err != nil {
		return st, err
	}
	missing, err := r.missing(ctx, []Position{p})
	if err != nil {
		return st, err
	}
	st.Held, st.Backlog.Pending, st.Missing = p.Held, p.Pending, missing[e.Definition.Name]
	return st, r.kept(ctx, e.Definition.Name, &st.Backlog)
}

// States tells of all subscribers, sorted by name, in a handful of requests however
// many there are, unless very many events wait for a retry (see
// broker.RetryCounts).
func (r *Registry) States(ctx context.Context) ([]State, error) {
	look, err := r.Look(ctx)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(look.Positions))
	for _, p := range look.Positions {
		names = append(names, p.Definition.Name)
	}
	counts, _, err := r.counts(ctx, names)
	if err != nil {
		return nil, err
	}
	missing, err := r.missing(ctx, look.Positions)
	if err != nil {
		return nil, err
	}
	states := make([]State, 0, len(look.Positions))
	for _, p := range look.Positions {
		b := counts[p.Definition.Name]
		b.Pending = p.Pending
		states = append(states, State{p.Entry, b, p.Held, missing[p.Definition.Name]})
	}
	return states, nil
}

// missing gives the endpoints that subscribers use and that there are not.
func (r *Registry) missing(ctx context.Context, positions []Position) (map[string]string, error) {
	missing := map[string]string{}
	for _, p := range positions {
		if name := p.Definition.endpoint(); name != "" {
			missing[p.Definition.Name] = name
		}
	}
	if len(missing) == 0 {
		return nil, nil
	}
	all, err := r.Endpoints(ctx)
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(missing, func(_, name string) bool {
		return slices.ContainsFunc(all, func(e EndpointEntry) bool { return e.Name == name })
	})
	return missing, nil
}
