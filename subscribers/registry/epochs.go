package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// Epoch says which events a subscriber wants from one sequence of EVENTS on,
// until the next epoch begins.
//
// A change of subjects appends one. It takes two steps, because workers anywhere
// may be taking events at that moment: first the epoch is stored without its
// beginning, which makes every replica stop its worker; then the cursor's filter
// is widened, the end of the stream is read, and the epoch begins behind it. So
// what is delivered does not depend on when a replica hears of a change: the
// beginning is data, and an event is judged by its sequence alone.
//
// What the server does, measured with nats-server 2.15.2: a cursor whose filter
// changes goes on where it was, which may be the end of the stream also when it
// last delivered long before; after a restart it goes on behind what it last
// delivered; unacked messages come again whether or not the filter still matches
// them. So a widened filter never misses what is stored later, and may bring
// what is older than the epoch: see Wants.
type Epoch struct {
	// From is its first event; 0 while it is not known.
	From uint64 `json:"from"`
	// Subjects are empty while the subscriber is drained.
	Subjects []string `json:"subjects"`
}

// maxEpochs bounds the filter of a cursor: hundreds of subjects in one are
// discouraged (nats-io/nats-server issue 6046).
const maxEpochs = 16

// nothing is a filter that matches no event: those have five tokens or more. A
// cursor without a filter would get everything.
const nothing = "events.none"

// Wants says whether an event is one of the subscriber's. Its filter has no part
// in it.
func (e Entry) Wants(subject string, sequence uint64) bool {
	return Wants(e.Epochs, subject, sequence)
}

// Wants is Entry.Wants for whoever keeps a subscriber's epochs.
func Wants(epochs []Epoch, subject string, sequence uint64) bool {
	for _, epoch := range slices.Backward(epochs) {
		if epoch.From == 0 || epoch.From > sequence {
			continue
		}
		return slices.ContainsFunc(epoch.Subjects, func(pattern string) bool { return deliver.MatchSubject(pattern, subject) })
	}
	return false
}

// inForce gives the subjects that new events should be judged by.
func (e Entry) inForce() []string {
	if e.Drains() {
		return []string{}
	}
	return e.Definition.Subjects
}

// Drains says whether the subscriber is to get what waits for it and nothing new.
func (e Entry) Drains() bool { return e.Draining || e.Definition.Drain }

// last gives the epoch that new events are, or will be, judged by.
func (e Entry) last() Epoch { return e.Epochs[len(e.Epochs)-1] }

// settled says whether it is known where the last epoch begins.
func (e Entry) settled() bool { return e.last().From > 0 }

// end is the first event after an epoch, 0 if it goes on or that is not known.
func (e Entry) end(i int) uint64 {
	if i+1 < len(e.Epochs) {
		return e.Epochs[i+1].From
	}
	return 0
}

// open gives the epochs that may have events behind the floor, the last always
// among them.
func (e Entry) open(floor uint64) Entry {
	for e.end(0) > 0 && e.end(0)-1 <= floor {
		e.Epochs = e.Epochs[1:]
	}
	return e
}

// filter gives the subjects of all epochs of e together, as a cursor's filter.
func (e Entry) filter() []string {
	var all []string
	for _, epoch := range e.Epochs {
		all = append(all, epoch.Subjects...)
	}
	if all = deliver.MinimiseSubjects(all); len(all) == 0 {
		return []string{nothing}
	}
	return all
}

// lacks says whether a filter does not have all subjects of the last change.
// Nothing of ours leaves a cursor so, but somebody else may, or a power cut; the
// cursor can then have passed events of the last epoch.
func (e Entry) lacks(filter []string) bool {
	if e.last().From <= e.StartSequence {
		return false
	}
	return slices.ContainsFunc(e.last().Subjects, func(s string) bool {
		return !slices.ContainsFunc(filter, func(f string) bool { return deliver.CoversSubject(f, s) })
	})
}

// passed gives the sequence up to which a cursor has got everything.
func passed(cursor *jetstream.ConsumerInfo, last uint64) uint64 {
	if cursor.NumPending == 0 && cursor.NumAckPending == 0 {
		return max(cursor.AckFloor.Stream, last) // a quiet subscriber's cursor stands still
	}
	return cursor.AckFloor.Stream
}

// turn appends an epoch if other subjects are in force than before. It fails
// when there are too many epochs that the subscriber has not got past.
func (r *Registry) turn(ctx context.Context, e *Entry) error {
	if sameSubjects(e.last().Subjects, e.inForce()) {
		return nil
	}
	if len(e.Epochs) >= maxEpochs {
		space, cursor, err := r.cursor(ctx, e.Definition.Name)
		if err != nil {
			return err
		}
		// What is trimmed is asked for by nobody; what is only passed goes
		// because room is short.
		for e.end(0) > 0 && e.end(0) <= space.First {
			e.Epochs = e.Epochs[1:]
		}
		if cursor != nil && len(e.Epochs) >= maxEpochs {
			open := e.open(passed(cursor, space.Last))
			e.Epochs = e.Epochs[max(0, min(len(e.Epochs)-len(open.Epochs), len(e.Epochs)-maxEpochs+1)):]
		}
		if len(e.Epochs) >= maxEpochs {
			return ErrEpochs
		}
	}
	e.Epochs = append(slices.Clip(e.Epochs), Epoch{Subjects: e.inForce()})
	return nil
}

// sameSubjects says whether two lists match the same events.
func sameSubjects(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(deliver.MinimiseSubjects(a))), slices.Sorted(slices.Values(deliver.MinimiseSubjects(b))))
}

// cursor gives a subscriber's cursor on EVENTS, nil if there is none, and the
// space of EVENTS a moment before.
func (r *Registry) cursor(ctx context.Context, name string) (Space, *jetstream.ConsumerInfo, error) {
	space, err := r.Space(ctx)
	if err != nil {
		return space, nil, err
	}
	c, err := space.stream.Consumer(ctx, name)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		return space, nil, nil
	case err != nil:
		return space, nil, err
	}
	return space, c.CachedInfo(), nil
}

// How long a change of subjects waits for workers that still ask for events:
// until none has for a moment, and no longer than a worker takes to stop.
const (
	quietPoll = 20 * time.Millisecond
	quietFor  = 100 * time.Millisecond
	quietWait = changeGrace + 2*time.Second
)

// settle finds the beginning of an epoch that has none. Several may do it at
// once, and whoever finds one unsettled should: the process that stored it may
// have died.
func (r *Registry) settle(ctx context.Context, name string) (Entry, error) {
	for until := time.Now().Add(quietWait); ; {
		e, err := r.Get(ctx, name)
		if err != nil || e.settled() {
			return e, err
		}
		// A client that asks by itself does not stop for us, and need not: what it
		// gets that it no longer wants has no record.
		native := e.Definition.Native()
		if !native {
			if err := r.quiet(ctx, name, until); err != nil {
				return e, err
			}
		}
		settled, err := r.trySettle(ctx, &e, native || time.Now().After(until))
		if settled || err != nil && !errors.Is(err, jetstream.ErrKeyExists) { // how a stale revision is called
			return e, err
		}
	}
}

// trySettle does so if nobody asks for events, or in any case.
func (r *Registry) trySettle(ctx context.Context, e *Entry, anyway bool) (settled bool, err error) {
	s := r.serves(e.Definition.Name)
	s.Lock()
	defer s.Unlock()
	space, cursor, err := r.cursor(ctx, e.Definition.Name)
	if err != nil {
		return false, err
	}
	if busy := s.worker || cursor != nil && cursor.NumWaiting > 0; busy && !anyway {
		return false, nil
	}
	if cursor != nil {
		// Passed epochs stay in: they do no harm, and the cursor may fall back.
		if err := r.refilter(ctx, cursor.Config, e.filter()); err != nil {
			return false, err
		}
	}
	// From here on the cursor passes nothing that the new subjects match.
	if space, err = r.Space(ctx); err != nil {
		return false, err
	}
	e.begin(max(space.Last+1, e.StartSequence))
	err = r.store(ctx, e)
	return err == nil, err
}

// begin settles the last epoch. One before it that has no event of its own goes.
func (e *Entry) begin(from uint64) {
	last := Epoch{From: from, Subjects: e.last().Subjects}
	n := len(e.Epochs) - 1
	for n > 0 && e.Epochs[n-1].From >= from {
		n--
	}
	e.Epochs = append(slices.Clone(e.Epochs[:n]), last)
}

// quiet waits until nobody has asked for the subscriber's events for a moment, or
// it is no use to wait any longer.
func (r *Registry) quiet(ctx context.Context, name string, until time.Time) error {
	tick := time.NewTicker(quietPoll)
	defer tick.Stop()
	for since := time.Now(); time.Now().Before(until); {
		_, cursor, err := r.cursor(ctx, name)
		if err != nil {
			return err
		}
		if cursor != nil && cursor.NumWaiting > 0 {
			since = time.Now()
		}
		if time.Since(since) >= quietFor {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// refilter gives a cursor other subjects. It goes on where it is.
func (r *Registry) refilter(ctx context.Context, cursor jetstream.ConsumerConfig, subjects []string) error {
	if slices.Equal(cursor.FilterSubjects, subjects) {
		return nil
	}
	cursor.FilterSubject, cursor.FilterSubjects = "", subjects
	err := r.broker.Change(ctx, func() error {
		_, err := r.broker.JetStream().UpdateConsumer(ctx, broker.StreamEvents, cursor)
		return err
	})
	if errors.Is(err, jetstream.ErrConsumerDoesNotExist) {
		return nil // it will be made with the right ones
	}
	return err
}

// prepare makes a subscriber's cursor fit to be read, and gives the filter that
// it has, or is to be made with. e is settled.
func (r *Registry) prepare(ctx context.Context, e Entry) ([]string, error) {
	name := e.Definition.Name
	_, cursor, err := r.cursor(ctx, name)
	if err != nil || cursor == nil {
		return e.filter(), err
	}
	have := filters(cursor.Config)
	if slices.Contains(have, ">") {
		return e.filter(), nil // not by us
	}
	if !e.lacks(have) {
		// As it is: another replica may know of a change before this one.
		return have, nil
	}
	// Rather some twice than one never.
	filter, at := e.open(cursor.AckFloor.Stream).filter(), max(1, min(e.last().From, cursor.AckFloor.Stream+1))
	r.log.Warn("the cursor's filter lacked subjects, so the cursor is set back; some events may be delivered twice",
		"subscriber", name, "to", at, "was", cursor.Delivered.Stream)
	config := cursor.Config
	config.FilterSubject, config.FilterSubjects = "", filter
	config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverByStartSequencePolicy, at
	return filter, r.broker.Change(ctx, func() error {
		js := r.broker.JetStream()
		if err := js.DeleteConsumer(ctx, broker.StreamEvents, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return err
		}
		_, err := js.CreateConsumer(ctx, broker.StreamEvents, config)
		return err
	})
}

// narrow takes the subjects of epochs that a running worker's subscriber has got
// past from its cursor's filter. done says that no more will be to take; an
// error, among others, that the worker has to start anew.
func (r *Registry) narrow(ctx context.Context, e Entry) (done bool, err error) {
	s := r.serves(e.Definition.Name)
	s.Lock()
	defer s.Unlock()
	if now, err := r.latest(ctx, e.Definition.Name); err != nil || now.Revision != e.Revision {
		return false, err // its keeper is about to hear of it
	}
	space, cursor, err := r.cursor(ctx, e.Definition.Name)
	if err != nil || cursor == nil {
		return false, err
	}
	if e.lacks(filters(cursor.Config)) {
		return false, errLacking
	}
	open := e.open(passed(cursor, space.Last))
	return len(open.Epochs) == 1, r.refilter(ctx, cursor.Config, open.filter())
}

var errLacking = errors.New("the cursor's filter lacks subjects")

func filters(c jetstream.ConsumerConfig) []string {
	if c.FilterSubject != "" {
		return []string{c.FilterSubject}
	}
	if len(c.FilterSubjects) == 0 {
		return []string{">"}
	}
	return c.FilterSubjects
}

// judge decides for one worker which events its subscriber wants.
type judge struct {
	registry *Registry

	looking sync.Mutex // one look serves all who wait

	mu    sync.Mutex // guards all below
	entry Entry
	// sure is how far the stream is judged by entry for ever: every epoch that
	// comes after those in it begins later.
	sure uint64
}

// judgeWait is how long a worker waits to know.
const judgeWait = 10 * time.Second

// wants is Entry.Wants for a worker that may not have heard of a change yet. That
// an event is not wanted is only said after looking: it is gone then.
func (j *judge) wants(subject string, sequence uint64) bool {
	if want, sure := j.known(subject, sequence); want || sure {
		return want
	}
	j.looking.Lock()
	defer j.looking.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), judgeWait)
	defer cancel()
	for wait := quietPoll; ; wait = min(2*wait, time.Second) {
		if want, sure := j.known(subject, sequence); want || sure {
			return want
		}
		if j.look(ctx) == nil {
			continue
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			// Rather one too many than one too few.
			j.registry.log.Warn("it can't be found out whether an event is wanted, so it is sent", "event", sequence, "subject", subject)
			return true
		}
	}
}

func (j *judge) known(subject string, sequence uint64) (want, sure bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.entry.Wants(subject, sequence), sequence <= j.sure
}

// look reads how far the stream goes, and then whether the epochs are still
// those.
func (j *judge) look(ctx context.Context) error {
	r := j.registry
	j.mu.Lock()
	was := j.entry
	j.mu.Unlock()
	space, err := r.Space(ctx)
	if err != nil {
		return err
	}
	now, err := r.latest(ctx, was.Definition.Name)
	switch {
	case errors.Is(err, ErrNotFound), err == nil && !now.Created.Equal(was.Created):
		now = was // it is deleted, and its worker about to stop
	case err != nil:
		return err
	case !now.settled():
		return errUnsettled
	}
	j.mu.Lock()
	j.entry, j.sure = now, space.Last
	j.mu.Unlock()
	return nil
}

var errUnsettled = errors.New("its subjects are changing")

// latest reads an entry from the server that decides about it: in a cluster, Get
// may be answered by one that is a moment behind.
func (r *Registry) latest(ctx context.Context, name string) (Entry, error) {
	const bucket = "KV_" + broker.BucketSubscribers
	ask, err := json.Marshal(map[string]string{"last_by_subj": "$KV." + broker.BucketSubscribers + "." + name})
	if err != nil {
		return Entry{}, err
	}
	m, err := r.broker.JetStream().Conn().RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+bucket, ask)
	if err != nil {
		return Entry{}, err
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message *struct {
			Data     []byte `json:"data"`
			Sequence uint64 `json:"seq"`
		} `json:"message"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return Entry{}, fmt.Errorf("entry of subscriber %q: %w", name, err)
	}
	const noMessage = 10037
	switch {
	case answer.Error != nil && answer.Error.ErrorCode == noMessage:
		return Entry{}, ErrNotFound
	case answer.Error != nil:
		return Entry{}, answer.Error
	case answer.Message == nil || len(answer.Message.Data) == 0: // how a deleted key is kept
		return Entry{}, ErrNotFound
	}
	return decodeEntry(name, answer.Message.Data, answer.Message.Sequence)
}
