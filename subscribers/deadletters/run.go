package deadletters

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/time/rate"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// start begins to follow the bucket and to work on what is in it.
func (s *Store) start() error {
	// The context of a watcher ends the watcher.
	w, err := s.jobs.WatchAll(s.ctx)
	if err != nil {
		return fmt.Errorf("watch the jobs: %w", err)
	}
	s.watcher = w
	s.running.Go(s.watch)
	return nil
}

// Close stops working. A portion under way is finished if that takes less than
// closeGrace; jobs go on in the next process.
func (s *Store) Close() {
	s.stop()
	t := time.AfterFunc(closeGrace, s.abandon)
	s.running.Wait()
	t.Stop()
	s.abandon()
}

// closeGrace is how long a portion may take that was begun before a stop.
const closeGrace = 5 * time.Second

// watch keeps the list of active jobs, and a worker for each subscriber that
// has some.
func (s *Store) watch() {
	defer s.watcher.Stop()
	loaded := false
	for {
		var u jetstream.KeyValueEntry
		ok := false
		select {
		case <-s.ctx.Done():
		case u, ok = <-s.watcher.Updates():
		}
		if !ok {
			return // stopped
		}
		if u == nil { // the end of what there was
			loaded = true
			s.mu.Lock()
			for _, k := range s.active {
				s.attend(k.job.Subscriber)
			}
			s.mu.Unlock()
			continue
		}
		var j Job
		if u.Operation() == jetstream.KeyValuePut {
			var err error
			if j, err = decodeJob(u); err != nil {
				s.Log.Error("unreadable job, left alone", "error", err)
				continue
			}
		}
		s.mu.Lock()
		if j.State.active() {
			s.active[u.Key()] = known{j, u.Revision()}
			if loaded { // else another one may come first
				s.attend(j.Subscriber)
			}
		} else {
			delete(s.active, u.Key())
		}
		s.mu.Unlock()
	}
}

// attend sees to it that a subscriber's jobs are worked on. The caller holds mu.
func (s *Store) attend(subscriber string) {
	if !s.workers[subscriber] {
		s.workers[subscriber] = true
		s.running.Go(func() { s.serve(subscriber) })
	}
}

// known is an active job as the watcher saw it last.
type known struct {
	job      Job
	revision uint64
}

// known gives what the watcher knows of an active job.
func (s *Store) known(id string) (known, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, ok := s.active[id]
	return k, ok
}

// ended takes a job off the list that is known to be over at a revision. The
// watcher may still be behind that, or already further.
func (s *Store) ended(id string, revision uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active[id].revision <= revision {
		delete(s.active, id)
	}
}

// turn gives the job of a subscriber whose turn it is: they go one after the
// other, so that no event is sent by two of them, and one with a portion that a
// crash may have left unfinished before all others. Without one its worker is
// forgotten.
func (s *Store) turn(subscriber string) (id string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for other, k := range s.active {
		if k.job.Subscriber != subscriber {
			continue
		}
		begun, was := len(k.job.Open) > 0, len(s.active[id].job.Open) > 0
		if id == "" || begun && !was || begun == was && number(other) < number(id) {
			id = other
		}
	}
	if id == "" {
		delete(s.workers, subscriber)
	}
	return id, id != ""
}

// leaseTTL is how long after a crash somebody else goes on with a job.
const leaseTTL = 10 * time.Second

// serve works on the jobs of one subscriber while there are some and nobody else
// does.
func (s *Store) serve(subscriber string) {
	for s.ctx.Err() == nil {
		id, ok := s.turn(subscriber)
		if !ok {
			return
		}
		again := s.leaseTTL / 4
		l, err := s.Broker.TryLease(s.hard, "jobs."+subscriber, s.leaseTTL)
		switch {
		case err != nil:
			s.Log.Debug("lease of jobs", "subscriber", subscriber, "error", err)
		case l != nil:
			ctx, cancel := context.WithCancel(l.Context())
			unhook := context.AfterFunc(s.hard, cancel)
			revision, err := s.work(ctx, id)
			unhook()
			cancel()
			if errors.Is(err, errDied) { // a test's crash: nothing is tidied up
				l.Abandon()
				return
			}
			l.Release()
			switch {
			case err == nil:
				s.ended(id, revision)
				again = 0
			case s.ctx.Err() == nil:
				s.Log.Warn("job interrupted, going on", "job", id, "subscriber", subscriber, "error", err, "in", again)
			}
		}
		_ = sleep(s.ctx, again) // the loop asks
	}
}

// sleep waits, or gives the error of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

var (
	errTaken   = errors.New("another replica has taken the job")
	errResumed = errors.New("resumed while it stopped")
	errGone    = errors.New("the subscriber was deleted")
	errDied    = errors.New("died for a test")
)

// failure is what no repetition mends.
type failure struct{ error }

func (f *failure) Unwrap() error { return f.error }

// run is the work on one job by one holder of the lease.
type run struct {
	s        *Store
	job      Job
	revision uint64
	claimed  bool // the entry names us as its owner
	filter   func(*event.Event) (bool, error)
	source   *source // nil for a selection by sequences
	span     span    // of a replay; its entry is of all
	busy     busy    // of a replay
	limit    *rate.Limiter
	moved    time.Time // when a portion was done last
	before   int       // on the lane before that
	lane     int       // and after it; 0: unknown
	window   int
	asked    time.Time // when position was
	position uint64    // of ATTEMPTS
}

// work brings a job to an end or a stop, or gives an error after which it goes
// on. revision is the entry's when there is nothing left to do.
func (s *Store) work(ctx context.Context, id string) (revision uint64, err error) {
	r := &run{s: s, moved: time.Now()}
	r.job, r.revision, err = s.job(ctx, id)
	switch {
	case errors.Is(err, ErrNoJob):
		return math.MaxUint64, nil
	case err != nil || !r.job.State.active():
		return r.revision, err
	case r.job.Owner != "" && r.job.Owner != s.owner && !s.Broker.Embedded():
		// An external server that lost its memory has given the lease away,
		// perhaps while somebody still believes in it.
		if err := sleep(ctx, s.leaseTTL); err != nil {
			return 0, err
		}
	}
	r.job.Owner = s.owner
	if r.job.Rate > 0 {
		// A quarter of a second's worth at once: less often is not looked.
		r.limit = rate.NewLimiter(rate.Limit(r.job.Rate), int(max(1, math.Ceil(float64(r.job.Rate)/4))))
	}
	err = r.begin(ctx)
	if err == nil {
		err = r.loop(ctx)
	}
	if r.source != nil {
		r.source.close()
	}
	if f, ok := errors.AsType[*failure](err); ok {
		err = r.end(ctx, Failed, f.Error())
	}
	return r.revision, err
}

// begin claims the job, does the portion once more that another one may have
// left unfinished, and finds where to go on.
func (r *run) begin(ctx context.Context) error {
	if err := r.alive(ctx); err != nil {
		return err
	}
	var err error
	expression := ""
	if r.job.Kind == Replay {
		expression = r.job.Range.Filter
	} else {
		expression = r.job.Selection.Filter
	}
	if r.filter, err = r.s.filter(expression); err != nil {
		return &failure{err}
	}
	if err := r.save(ctx); err != nil {
		return err
	}
	r.claimed = true
	if len(r.job.Open) > 0 {
		if err := r.repeat(ctx); err != nil {
			return err
		}
		r.job.Open = nil
	}
	// From here on it is the newest: another replay may have sent the same events
	// while this one was stopped, and what has a smaller hop than that would pass
	// for settled. It is stored with the next portion, whose copies have it.
	r.job.Number = r.revision
	switch sel := r.job.Selection; {
	case r.job.State == Stopping:
	case r.job.Kind == Replay:
		if r.busy, err = r.s.busy(ctx, r.job.Subscriber); err != nil {
			return err
		}
		r.source = r.span.source(r.s.js, r.job.Cursor+1, true)
	case len(sel.Sequences) == 0:
		r.source = &source{
			js: r.s.js, stream: broker.StreamDeadLetters, subjects: []string{sel.subject(r.job.Subscriber)}, from: r.job.Cursor + 1,
			headers: r.job.Kind == Drop && r.filter == nil,
		}
	}
	return nil
}

// alive fails when the subscriber is not there any more.
func (r *run) alive(ctx context.Context) error {
	e, err := r.s.Registry.Get(ctx, r.job.Subscriber)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		// What was put on its lane a moment ago would wait for another
		// subscriber of the name.
		retries, err := r.s.js.Stream(ctx, broker.StreamRetry)
		if err != nil {
			return err
		}
		err = r.s.Broker.Change(ctx, func() error {
			return retries.Purge(ctx, jetstream.WithPurgeSubject(broker.RetryDue(r.job.Subscriber)))
		})
		if err != nil {
			return err
		}
		return &failure{errGone}
	case err != nil:
		return err
	case !e.Created.Equal(r.job.Added):
		return &failure{errGone}
	}
	r.span.entry = e
	if r.job.Kind == Replay {
		r.span.subjects, r.span.subject = deliver.MinimiseSubjects(e.Definition.Subjects), r.job.Range.Subject
	}
	return nil
}

// save stores the job as it is now. Orders that came meanwhile stay.
func (r *run) save(ctx context.Context) error {
	r.job.Updated = time.Now().UTC()
	for {
		revision, err := r.s.write(ctx, &r.job, r.revision)
		if err == nil {
			r.revision = revision
			return nil
		}
		if !errors.Is(err, jetstream.ErrKeyExists) { // how a stale revision is called
			return err
		}
		now, revision, err := r.s.job(ctx, r.job.ID)
		switch {
		case errors.Is(err, ErrNoJob), err == nil && r.claimed && now.Owner != r.s.owner:
			return errTaken
		case err != nil:
			return err
		case r.job.State == Stopped && now.State == Running:
			return errResumed
		case r.job.State.active():
			r.job.State = now.State
		}
		r.revision = revision
	}
}

// ordered takes over what the watcher knows of orders.
func (r *run) ordered() {
	if k, ok := r.s.known(r.job.ID); ok && k.revision > r.revision && k.job.Owner == r.s.owner {
		r.job.State, r.revision = k.job.State, k.revision
	}
}

// How long is waited for room on the lane: at first hardly, because a subscriber
// may be quick, and ever longer while nothing changes; then how long for what
// people must do; how long after a portion smaller than minWindow, because each
// costs some syncs of the disk; and after what time people are told.
const (
	minPoll    = 2 * time.Millisecond
	maxPoll    = 250 * time.Millisecond
	slowPoll   = time.Second
	smallPause = 20 * time.Millisecond
	tellAfter  = 2 * time.Second
)

// portionMost and portionBytes bound what is begun at once.
const (
	portionMost  = 256
	portionBytes = 16 << 20
)

// lookMost is how long is looked for the next portion before it is said how far
// that has come.
const lookMost = time.Second

// loop does one portion after the other.
func (r *run) loop(ctx context.Context) error {
	poll := minPoll
	for {
		r.ordered()
		if r.job.State == Stopping {
			return r.end(ctx, Stopped, r.job.Error)
		}
		if err := r.s.ctx.Err(); err != nil {
			// The next process need not wait for anything.
			r.job.Owner, r.job.Waiting = "", ""
			return errors.Join(err, r.save(ctx))
		}
		n, why, err := r.room(ctx)
		if err != nil {
			return err
		}
		if n == 0 {
			if err := r.tell(ctx, why.text); err != nil {
				return err
			}
			if why.wait > 0 {
				_ = sleep(r.s.ctx, min(why.wait, slowPoll)) // the loop asks
				continue
			}
			_ = sleep(r.s.ctx, poll) // the loop asks
			poll = min(2*poll, maxPoll)
			continue
		}
		items, more, err := r.next(ctx, n)
		if err != nil {
			return err
		}
		if len(items) > 0 || more {
			if err := r.portion(ctx, items); err != nil {
				return err
			}
			poll = minPoll
			if more && len(items) < minWindow {
				_ = sleep(r.s.ctx, smallPause) // the loop asks
			}
		}
		if !more {
			return r.end(ctx, Done, r.job.Error)
		}
	}
}

// tell notes why the job does not get on, when that lasts.
func (r *run) tell(ctx context.Context, why string) error {
	if time.Since(r.moved) < tellAfter || r.job.Waiting == why {
		return nil
	}
	r.job.Waiting = why
	return r.save(ctx)
}

// why says why there is no room.
type why struct {
	text string
	wait time.Duration // until it is worth another look; 0: nobody knows
}

// The window is how many messages may be on a subscriber's lane. It is at least
// minWindow, or twice its slots; as many as it takes in windowTime if that is
// more, so that a quick one does not wait for syncs of the disk; and while it has
// fresh events waiting no more than will fill one in restOf of its slots.
const (
	minWindow  = 16
	windowTime = 250 * time.Millisecond
	restOf     = 8
)

// widen sets the window by how fast the lane's messages go.
func (r *run) widen(now time.Time, least, onLane int) {
	r.window = max(r.window, least)
	if r.lane == 0 { // nothing was sent since
		return
	}
	if onLane == 0 {
		r.window = min(2*r.window, max(least, portionMost)) // it could have taken more
	} else {
		perSecond := float64(r.lane-onLane) / now.Sub(r.moved).Seconds()
		r.window = min(max(least, int(perSecond*windowTime.Seconds())), max(least, portionMost))
	}
}

// room tells how many may be sent now. The lane is first come, first served, so
// whatever is on it before, such as real retries, goes first; and because a
// job's messages take no more slots than there are messages, few of them are all
// it takes to leave the slots to live traffic.
func (r *run) room(ctx context.Context) (n int, _ why, err error) {
	if err := r.alive(ctx); err != nil {
		return 0, why{}, err
	}
	if r.job.Kind == Drop {
		return portionMost, why{}, nil
	}
	if err := r.s.Broker.Room(); err != nil {
		return 0, why{err.Error(), slowPoll}, nil
	}
	e, name := r.span.entry, r.job.Subscriber
	slots := e.Definition.Limits.Concurrency
	now, narrow, text := time.Now(), 0, "its retry lane is full"
	breaker, ok := r.s.Fleet.Breaker(name)
	switch {
	case e.Orphaned:
		return 0, why{"the subscriber is parked: declare it again", slowPoll}, nil
	case e.Paused:
		return 0, why{"the subscriber is paused: gridfan subscribers resume " + name, slowPoll}, nil
	case ok && breaker.State != "closed":
		// One is enough to find out whether it is back. There may be nothing
		// else to try with.
		narrow, text = 1, "its breaker is "+breaker.State+": "+breaker.LastError
	default:
		fresh, err := r.pending(ctx, broker.StreamEvents)
		if err != nil {
			return 0, why{}, err
		}
		if fresh.waiting > 0 {
			narrow, text = max(1, slots/restOf), "fresh events go first"
		}
	}
	lane, err := r.pending(ctx, broker.StreamRetry)
	if err != nil {
		return 0, why{}, err
	}
	onLane := lane.waiting + lane.inHand
	r.widen(now, max(minWindow, 2*slots), onLane)
	window := r.window
	if narrow > 0 {
		window, r.window = narrow, 0
	}
	if n = window - onLane; n < (window+1)/2 {
		return 0, why{fmt.Sprintf("%s (%d on the lane)", text, onLane), 0}, nil
	}
	r.before = onLane
	n = min(n, portionMost)
	if r.limit != nil {
		// Each portion costs some syncs of the disk, so not for every single one.
		n = min(n, r.limit.Burst())
		if missing := float64(n) - r.limit.Tokens(); missing > 0 {
			wait := time.Duration(missing / float64(r.limit.Limit()) * float64(time.Second))
			return 0, why{"its rate is " + r.job.Rate.String(), max(minPoll, wait)}, nil
		}
	}
	return n, why{}, nil
}

// queue is what a cursor has before it.
type queue struct{ waiting, inHand int }

func (r *run) pending(ctx context.Context, stream string) (queue, error) {
	c, err := r.s.js.Consumer(ctx, stream, r.job.Subscriber)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return queue{}, nil // its worker is about to make one
	}
	if err != nil {
		return queue{}, err
	}
	info := c.CachedInfo()
	return queue{int(info.NumPending), info.NumAckPending}, nil
}

// next looks for up to n more to work on, and says whether there may be more
// after them. The job notes how far that came.
func (r *run) next(ctx context.Context, n int) (items []item, more bool, err error) {
	j := r.job
	j.Skipped = maps.Clone(j.Skipped)
	began, size := time.Now(), 0
	for more = true; more && len(items) < n && size < portionBytes && time.Since(began) < lookMost; {
		m, seq, err := r.read(ctx, j.Cursor)
		if err != nil {
			return nil, false, err
		}
		if seq == 0 || seq > j.Through {
			more = false
			break
		}
		j.Cursor = seq
		j.Looked++
		it, skip, err := r.pick(m)
		switch {
		case err != nil:
			j.Failed++
			if j.Error == "" {
				j.Error = fmt.Sprintf("the filter cannot judge %d: %v", seq, err)
			}
		case skip != "":
			j.skip(skip)
		case it != nil:
			items = append(items, *it)
			size += m.size
			j.Done++
		}
	}
	r.job = j
	return items, more, nil
}

// read gives the next message to look at and its sequence: no message when it is
// gone, sequence 0 at the end.
func (r *run) read(ctx context.Context, after uint64) (*stored, uint64, error) {
	if r.source != nil {
		m, err := r.source.next(ctx)
		if err != nil || m == nil {
			return nil, 0, err
		}
		return m, m.sequence, nil
	}
	for _, seq := range r.job.Selection.Sequences {
		if seq <= after {
			continue
		}
		m, err := get(ctx, r.s.letters, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil, seq, nil
		}
		return m, seq, err
	}
	return nil, 0, nil
}

// portion writes down what is begun, and does it. Without items it only says how
// far the search has come.
func (r *run) portion(ctx context.Context, items []item) error {
	r.job.Waiting, r.job.Open = "", nil
	for _, it := range items {
		r.job.Open = append(r.job.Open, it.m.sequence)
	}
	if len(items) > 0 {
		var err error
		if r.job.Attempts, err = r.recordsFrom(ctx); err != nil {
			return err
		}
	}
	if err := r.save(ctx); err != nil {
		return err
	}
	r.moved = time.Now()
	if len(items) == 0 {
		return nil
	}
	if r.limit != nil {
		r.limit.AllowN(time.Now(), len(items))
	}
	if err := r.s.died(&r.job, "opened"); err != nil {
		return err
	}
	if err := r.perform(ctx, items); err != nil {
		return err
	}
	r.job.Open = nil
	r.lane, r.moved = r.before+len(items), time.Now()
	return nil
}

// positionFor is how long an answer about how far ATTEMPTS is filled is good
// enough: an older one means only that more is read after a crash.
const positionFor = time.Second

// recordsFrom gives a sequence of ATTEMPTS after which all is recorded that is
// not recorded yet.
func (r *run) recordsFrom(ctx context.Context) (uint64, error) {
	if time.Since(r.asked) < positionFor {
		return r.position, nil
	}
	asked := time.Now()
	info, err := r.s.attempts.Info(ctx)
	if err != nil {
		return 0, err
	}
	r.asked, r.position = asked, info.State.LastSeq
	return r.position, nil
}

// end says that the job is over, or stopped.
func (r *run) end(ctx context.Context, state State, message string) error {
	now := time.Now().UTC()
	r.job.State, r.job.Error, r.job.Ended, r.job.Waiting, r.job.Owner = state, message, &now, "", ""
	if err := r.save(ctx); err != nil {
		return err
	}
	attrs := map[string]any{"job": r.job.ID, "kind": r.job.Kind, "done": r.job.Done, "looked": r.job.Looked}
	if message != "" {
		attrs["error"] = message
	}
	r.s.Broker.Report("job."+string(state), r.job.Subscriber, attrs)
	return nil
}

// died lets a test end the work after a step.
func (s *Store) died(j *Job, step string) error {
	if s.step == nil {
		return nil
	}
	return s.step(j, step)
}
