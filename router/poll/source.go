package poll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/publish"
)

// source is one polled source in this process. One goroutine, run, does everything;
// what others may see or ask is below mu, wake and commands.
type source struct {
	Source
	parts  *Parts
	keeper keeper
	budget *budget
	log    *slog.Logger
	delay  time.Duration // before the first try of the lease
	ttl    time.Duration // of the lease
	hard   context.Context
	report func(what, about string, attrs map[string]any)

	// Only run's, good while the lease is held:
	lease     held
	key       string // of the checkpoint and of what is known
	fetcher   Fetcher
	pace      *pace
	cp        checkpoint
	revision  uint64
	savedAt   time.Time
	unsaved   bool // the cursor has moved over nothing
	lastBlock uint64
	seen      overlap
	columns   columns
	list      *allRows        // all rows are being compared
	chain     map[uint64]bool // where pages have led that were stored
	next      time.Time
	failures  int
	throttles int    // in a row
	looping   bool   // its pages led in a circle; it is well again when they end
	looks     int    // at a source that is unconfirmed
	counted   int    // changes since the pace was told
	purged    uint64 // known rows, before this block

	wake     chan struct{} // holds at most one
	commands chan command
	waiting  atomic.Int32 // commands on their way

	mu        sync.Mutex // guards all below
	stat      Status
	holding   bool
	interrupt context.CancelFunc // ends the request under way; nil: there is none
}

// allRows is a reading of all rows that is compared with what is known. It is in
// memory alone: after a crash it begins again, and finds what it has published known.
type allRows struct {
	index  *index
	cursor json.RawMessage
	pages  int64
	since  time.Time
}

// Whether a command interrupts a request is decided by what it does.
type command struct {
	Do   string    `json:"do"`
	To   time.Time `json:"to,omitzero"`
	Mode Baseline  `json:"mode,omitempty"`
	done chan error
}

// What a command does.
const (
	doPoll     = "poll"
	doRewind   = "rewind"
	doBaseline = "baseline"
	doConfirm  = "confirm"
)

// errInterrupted ends a poll for a command's sake.
var errInterrupted = errors.New("interrupted")

// run polls whenever the lease can be had, until stopping ends.
func (s *source) run(stopping context.Context) {
	if sleep(stopping, s.delay) != nil {
		return
	}
	defer s.budget.away(s.ID(), false)
	for stopping.Err() == nil {
		l, err := s.keeper.lease(stopping, s.ID(), s.ttl)
		if l == nil {
			if err == nil {
				s.budget.away(s.ID(), true)
			}
			if err != nil && stopping.Err() == nil {
				s.log.Debug("lease not taken, trying again", "error", err)
			}
			if sleep(stopping, spread(s.ttl/4)) != nil {
				return
			}
			continue
		}
		s.budget.away(s.ID(), false)
		s.hold(stopping, l)
		l.Release()
	}
}

// hold polls as long as the lease lasts.
func (s *source) hold(stopping context.Context, l held) {
	work, end := context.WithCancel(l.Context())
	defer end()
	defer context.AfterFunc(s.hard, end)()
	asking, endAsking := context.WithCancel(work)
	defer endAsking()
	defer context.AfterFunc(stopping, endAsking)()

	s.lease, s.pace = l, newPace(s.Every)
	s.seen, s.columns, s.list, s.chain, s.failures, s.throttles, s.looks = overlap{}, columns{}, nil, nil, 0, 0, 0
	s.counted, s.purged, s.looping = 0, 0, false
	s.budget.join(s.pace)
	s.setHolding(true)
	defer func() {
		s.setHolding(false)
		s.budget.leave(s.pace)
		if s.fetcher != nil {
			s.fetcher.Close()
			s.fetcher = nil
		}
		s.lease = nil
	}()
	for {
		err := s.takeOver(work)
		if err == nil {
			break
		}
		if work.Err() != nil {
			return
		}
		s.failed("storage", fmt.Errorf("its checkpoint cannot be taken over: %w", err))
		if sleep(asking, time.Until(s.next)) != nil {
			return
		}
	}
	s.next = s.within(time.Now())
	for {
		s.show()
		c, err := s.pause(asking)
		switch {
		case err != nil:
			s.flush(work)
			return
		case c != nil:
			err = s.obey(work, c)
			c.done <- err
		default:
			err = s.poll(asking, work)
		}
		if errors.Is(err, errFenced) {
			s.log.Info("another router has taken the source over")
			return
		}
	}
}

// takeOver reads the checkpoint and makes it this process's.
func (s *source) takeOver(ctx context.Context) error {
	key, cp, revision, err := s.find(ctx)
	if err != nil {
		return err
	}
	s.key = key
	if cp.Phase == phaseNew {
		cp = checkpoint{Phase: phaseBaseline, Mode: s.Baseline, Since: time.Now().UTC()}
	}
	cp.Layout, cp.Holder, cp.Table = layout, broker.Instance(), s.Table
	if s.lastBlock, err = s.keeper.last(ctx, s.key); err != nil {
		return err
	}
	s.cp, s.revision = cp, revision
	return s.save(ctx)
}

// find reads the checkpoint. It is kept by the table's own name, so that other tables
// of the source may come and go; one that was written when checkpoints had their
// source's name alone is gone on with where it is.
func (s *source) find(ctx context.Context) (key string, c checkpoint, revision uint64, err error) {
	key = s.ID()
	if c, revision, err = s.keeper.load(ctx, key); err != nil || revision > 0 || s.Table == "" {
		return key, c, revision, err
	}
	old, at, err := s.keeper.load(ctx, s.Name)
	if err == nil && at > 0 && (old.Table == s.Table || old.Table == "" && s.First) {
		return s.Name, old, at, nil
	}
	return key, c, 0, err
}

// tellOf reports what happened to the source, with its table.
func (s *source) tellOf(what string, attrs map[string]any) {
	if s.Table != "" {
		attrs["table"] = s.Table
	}
	s.report(what, s.Name, attrs)
}

// save makes the checkpoint durable.
func (s *source) save(ctx context.Context) error {
	revision, err := s.keeper.save(ctx, s.key, s.cp, s.revision)
	if err != nil {
		return err
	}
	s.revision, s.savedAt, s.unsaved = revision, time.Now(), false
	return nil
}

// flush saves a cursor that has moved over nothing, for the next holder's sake.
func (s *source) flush(ctx context.Context) {
	if s.unsaved && ctx.Err() == nil {
		if err := s.save(ctx); err != nil {
			s.log.Debug("cursor not saved; the next router asks from an older one", "error", err)
		}
	}
}

// pause waits until it is time to poll, or gives a command.
func (s *source) pause(ctx context.Context) (*command, error) {
	wait := time.Until(s.next)
	if s.waiting.Load() > 0 {
		wait = max(wait, time.Second) // it comes at once
	}
	t := time.NewTimer(max(0, wait))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case c := <-s.commands:
		return &c, nil
	case <-s.wake:
	case <-t.C:
	}
	return nil, ctx.Err()
}

// tell gives a command to run, and its answer.
func (s *source) tell(ctx context.Context, c command) error {
	s.mu.Lock()
	holding := s.holding
	s.mu.Unlock()
	if !holding {
		return ErrNobody
	}
	if c.Do == doPoll {
		select {
		case s.wake <- struct{}{}:
		default: // somebody has asked already
		}
		return nil
	}
	c.done = make(chan error, 1)
	s.waiting.Add(1)
	defer s.waiting.Add(-1)
	s.mu.Lock()
	if s.interrupt != nil {
		s.interrupt()
	}
	s.mu.Unlock()
	select {
	case s.commands <- c:
	case <-ctx.Done():
		return ErrNobody
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// obey does what a command wants.
func (s *source) obey(ctx context.Context, c *command) error {
	before := s.cp
	again := func() {
		s.list, s.chain, s.seen = nil, nil, overlap{}
		s.cp.Cursor, s.cp.Since, s.cp.Rows, s.cp.Pages = nil, time.Now().UTC(), 0, 0
		s.cp.Reason, s.cp.Missing, s.cp.Confirmed = "it was asked for", 0, false
	}
	switch {
	case c.Do == doRewind && !c.To.IsZero():
		if err := s.open(ctx); err != nil {
			return err
		}
		r, ok := s.fetcher.(Rewinder)
		if !ok {
			return ErrCannotRewind
		}
		cursor, err := r.Rewind(ctx, c.To)
		if err != nil {
			return err
		}
		if err := checkCursor(cursor); err != nil {
			return err
		}
		again()
		s.cp.Phase, s.cp.Cursor, s.cp.Reason = phaseChanges, cursor, ""
		s.seen.exact = true
	case c.Do == doBaseline && c.Mode == Compare:
		again()
		s.cp.Phase = phaseResync
	case c.Do == doRewind, c.Do == doBaseline && (c.Mode == Silent || c.Mode == Publish):
		again()
		s.cp.Phase, s.cp.Mode = phaseBaseline, c.Mode
		if c.Do == doRewind {
			s.cp.Mode = Publish
		}
		s.cp.Known = known{From: s.lastBlock + 1}
	case c.Do == doConfirm && s.cp.Phase != phaseUnconfirmed:
		return ErrNothingToConfirm
	case c.Do == doConfirm && s.cp.Known.Full:
		again()
		s.cp.Phase, s.cp.Mode, s.cp.Known = phaseBaseline, Publish, known{From: s.lastBlock + 1}
	case c.Do == doConfirm:
		s.list, s.chain = nil, nil
		s.cp.Phase, s.cp.Confirmed = phaseResync, true
	default:
		return fmt.Errorf("unknown command %.40q", c.Do)
	}
	if err := s.save(ctx); err != nil {
		s.cp = before
		return err
	}
	s.next = time.Now()
	s.tellOf("source."+c.Do, map[string]any{"phase": string(s.cp.Phase), "mode": string(s.cp.Mode), "to": c.To})
	return nil
}

// open makes the Fetcher, unless there is one.
func (s *source) open(ctx context.Context) error {
	if s.fetcher != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	f, err := s.Open(ctx)
	if err != nil {
		return err
	}
	s.fetcher = f
	return nil
}

// poll fetches and stores what there is, up to so many pages. It sets when to come
// again. The error is not to be shown: it ends the hold, or is none.
func (s *source) poll(asking, work context.Context) error {
	if s.cp.Phase == phaseUnconfirmed && s.cp.Known.Full {
		s.next = time.Now().Add(mostLook) // nothing to be found out by looking
		return nil
	}
	s.seen.rotate()
	rows := 0
	for page := 0; ; page++ {
		if page == s.Pages {
			s.next = s.goOn(time.Now()) // others have their turn first
			break
		}
		began, p, err := s.ask(asking)
		switch {
		case err == nil:
		case errors.Is(err, errInterrupted) || asking.Err() != nil:
			return nil
		default:
			return s.refused(work, began, err)
		}
		got, err := s.take(work, p)
		switch {
		case work.Err() != nil || errors.Is(err, errFenced):
			return err
		case err != nil:
			s.trouble(err)
			return nil
		}
		s.passed(p)
		if s.looping = s.looping && p.More; !s.looping {
			s.recovered()
		}
		rows += got.rows
		s.counted += got.changes
		s.show()
		if s.cp.Phase == phaseUnconfirmed && s.list == nil {
			s.chain = nil
			s.next = time.Now().Add(spread(min(mostLook, firstLook<<min(s.looks, 10))))
			s.looks++
			break
		}
		if !p.More {
			s.chain = nil
			now := time.Now()
			s.budget.observe(now, s.pace, s.counted)
			s.counted = 0
			d, _, _ := s.budget.interval(now, s.pace)
			s.next = s.within(now.Add(spread(d)))
			break
		}
	}
	s.update(func(st *Status) {
		st.Polls++
		st.Last = time.Now().UTC()
		if rows == 0 {
			st.EmptyPolls++
		}
	})
	return s.tidy(work)
}

// How soon a source whose rows were missing is looked at again, without being told
// to: a full push takes minutes.
const (
	firstLook = 5 * time.Minute
	mostLook  = time.Hour
)

// ask makes one request.
func (s *source) ask(asking context.Context) (began time.Time, _ *Page, _ error) {
	ctx, cancel := context.WithCancel(asking)
	defer cancel()
	s.mu.Lock()
	s.interrupt = cancel
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.interrupt = nil
		s.mu.Unlock()
	}()
	if s.waiting.Load() > 0 {
		return began, nil, errInterrupted
	}
	lost, err := s.budget.wait(ctx)
	s.update(func(st *Status) { st.Lost += seconds(lost) })
	if err != nil {
		return began, nil, errInterrupted
	}
	if until, held := s.budget.elsewhereHeld(ctx, s.keeper, s.log); held {
		return began, nil, &heldOff{until}
	}
	began = time.Now()
	if err := s.open(ctx); err != nil {
		if ctx.Err() != nil {
			return began, nil, errInterrupted
		}
		return began, nil, err
	}
	cursor := s.cp.Cursor
	if s.list != nil {
		cursor = s.list.cursor
	} else if s.cp.Phase == phaseResync || s.cp.Phase == phaseUnconfirmed {
		cursor = nil
	}
	limited, done := context.WithTimeout(ctx, s.Timeout)
	defer done()
	s.update(func(st *Status) { st.Requests++ })
	p, err := s.fetcher.Fetch(limited, cursor)
	switch {
	case err != nil && ctx.Err() != nil:
		return began, nil, errInterrupted
	case err != nil && limited.Err() != nil:
		err = &Fault{Kind: Unavailable, Reason: fmt.Sprintf("no answer within %s; raise poll.timeout if it needs longer", s.Timeout)}
	case err == nil:
		err = s.check(cursor, p)
	}
	if err != nil {
		return began, nil, err
	}
	return began, p, nil
}

// heldOff is the error of a request that was not made, because another process was told
// to wait.
type heldOff struct{ until time.Time }

func (*heldOff) Error() string { return "another router was told to wait" }

// check holds a page to what a Fetcher promises.
func (s *source) check(asked json.RawMessage, p *Page) error {
	if p == nil {
		return &Fault{Kind: Answer, Reason: "the answer has no page"}
	}
	if err := checkCursor(p.Next); err != nil {
		return err
	}
	if !p.More {
		return nil
	}
	// A chain of pages that comes back to where it was never ends.
	if s.chain[fingerprint('c', p.Next)] || string(asked) == string(p.Next) {
		s.chain, s.looping = nil, true
		return &Fault{Kind: Answer, Reason: "the source's pages lead back to one that was read already, so they never end"}
	}
	return nil
}

// passed notes a page that was stored, and that there are more.
func (s *source) passed(p *Page) {
	if s.chain == nil {
		s.chain = map[uint64]bool{}
	}
	if len(s.chain) < mostChain {
		s.chain[fingerprint('c', p.Next)] = true
	}
}

// mostChain bounds the pages that are remembered of one chain.
const mostChain = 100_000

func checkCursor(c json.RawMessage) error {
	switch {
	case len(c) == 0:
		return &Fault{Kind: Answer, Reason: "the answer does not say how to go on"}
	case len(c) > MaxCursor:
		return &Fault{Kind: Answer, Reason: fmt.Sprintf("the source's cursor is %d bytes long; more than %d cannot be kept", len(c), MaxCursor)}
	case !json.Valid(c):
		return &Fault{Kind: Answer, Reason: "the cursor is not JSON"}
	}
	return nil
}

// refused sees to a request that brought no page.
func (s *source) refused(work context.Context, began time.Time, err error) error {
	now := time.Now()
	var throttled *Throttled
	var held *heldOff
	switch {
	case errors.As(err, &held):
		s.next = held.until
		s.update(func(st *Status) { st.Lost += seconds(s.next.Sub(now)) })
		return nil
	case errors.As(err, &throttled):
		after := throttled.After
		if after <= 0 {
			after = min(time.Second<<min(s.throttles, 20), s.RetryMax)
		}
		s.throttles++
		s.next = s.budget.throttled(now, began, after)
		s.budget.tell(work, s.keeper, s.next.Sub(now), s.log)
		s.update(func(st *Status) {
			st.Throttles++
			st.Lost += seconds(s.next.Sub(now))
			st.Kind, st.Error = "throttled", bounded(throttled.Error())
			if st.Since.IsZero() {
				st.Since = now.UTC()
			}
		})
		return nil
	case errors.Is(err, ErrExpired), errors.Is(err, ErrCursor):
		return s.forgotten(work, err)
	}
	kind, reason := Unavailable, err
	if f, ok := errors.AsType[*Fault](err); ok {
		kind = f.Kind
	} else if u, ok := errors.AsType[*url.Error](err); ok {
		reason = u.Err // not the URL: its query may hold a secret
	}
	s.failed(string(kind), reason)
	return nil
}

// forgotten begins a reading of all rows, because the cursor is worth nothing.
func (s *source) forgotten(work context.Context, cause error) error {
	reason := "the source has forgotten the cursor"
	if errors.Is(cause, ErrCursor) {
		reason = "the source's configuration has changed"
	}
	s.list, s.chain = nil, nil
	before := s.cp
	if s.cp.Phase != phaseChanges {
		// In the midst of a reading of all rows: it begins anew, but not without end,
		// nor without a pause when its first page is there each time.
		s.looping = true
		s.failed(string(Answer), fmt.Errorf("%s while all rows were being read: %w", reason, cause))
		if s.cp.Phase == phaseBaseline {
			s.cp.Cursor, s.cp.Rows, s.cp.Pages = nil, 0, 0
			return s.saveOr(work, before)
		}
		return nil
	}
	s.cp.Phase, s.cp.Since, s.cp.Rows, s.cp.Pages, s.cp.Reason = phaseResync, time.Now().UTC(), 0, 0, reason
	s.cp.Confirmed, s.cp.Missing = false, 0
	if s.cp.Known.Full {
		s.cp.Phase = phaseUnconfirmed
	}
	if err := s.saveOr(work, before); err != nil {
		return err
	}
	s.next = time.Now()
	if s.cp.Phase == phaseResync {
		s.tellOf("source.resync", map[string]any{"reason": reason, "known": s.cp.Known.Live})
	} else if before.Phase == phaseChanges {
		s.tellOf("source.unconfirmed", map[string]any{"reason": reason + ", and its rows are too many to be compared"})
	}
	return nil
}

// saveOr saves, or goes back to what was. Only errFenced is given back.
func (s *source) saveOr(work context.Context, before checkpoint) error {
	err := s.save(work)
	if err == nil {
		return nil
	}
	s.cp = before
	if errors.Is(err, errFenced) {
		return err
	}
	s.trouble(err)
	return nil
}

// trouble sees to a page that could not be stored: the cursor has not moved, and the
// page is fetched again.
func (s *source) trouble(err error) {
	kind := "storage"
	if f, ok := errors.AsType[*Fault](err); ok {
		kind = string(f.Kind)
	}
	s.failed(kind, err)
}

// failed notes a failure, and when to try again. It is reported when people have to
// do something, or when it lasts.
func (s *source) failed(kind string, err error) {
	s.failures++
	s.next = time.Now().Add(retryAfter(s.failures, s.RetryMax))
	text := bounded(err.Error())
	other := false
	s.update(func(st *Status) {
		other = st.Kind != kind
		st.Error, st.Kind, st.Failures = text, kind, s.failures
		if st.Since.IsZero() {
			st.Since = time.Now().UTC()
		}
	})
	const lasts = 3
	if s.failures == lasts || other && kind != string(Unavailable) && kind != "storage" {
		s.tellOf("source.failing", map[string]any{"kind": kind, "reason": text, "failures": s.failures})
	} else {
		s.log.Debug("poll failed", "kind", kind, "error", text, "failures", s.failures)
	}
}

// recovered notes that a page was fetched and stored.
func (s *source) recovered() {
	s.throttles = 0
	if s.failures == 0 {
		s.update(func(st *Status) { st.Error, st.Kind, st.Since = "", "", time.Time{} })
		return
	}
	var since time.Time
	s.update(func(st *Status) {
		since = st.Since
		st.Error, st.Kind, st.Since, st.Failures = "", "", time.Time{}, 0
	})
	s.failures = 0
	s.tellOf("source.recovered", map[string]any{"after": time.Since(since).Round(time.Second).String()})
}

func bounded(text string) string {
	if len(text) > MaxReason {
		text = text[:MaxReason-3] + "..."
	}
	return text
}

// sleep waits, or gives ctx's error.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(max(0, d))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// startSpread is how long after Apply the last of n sources begins: 33 a second, so
// that the requests, and those of the leases, do not come together.
func startSpread(n int) time.Duration {
	return min(30*time.Second, time.Duration(n)*30*time.Millisecond)
}

// leaseFor is how long a lease outlives its holder when there are n sources: a
// process renews each four times in that, which is 133 renewals a second at most.
func leaseFor(n int) time.Duration {
	return max(6*time.Second, min(30*time.Second, time.Duration(n)*30*time.Millisecond))
}

func randomDelay(n int) time.Duration {
	return time.Duration(rand.Float64() * float64(startSpread(n)))
}

// origin is what is said of the rows to publish.
func (s *source) origin() publish.Origin {
	return publish.Origin{Source: s.Name, Kind: s.Kind, Environment: s.Environment, Via: "poll", Accepted: time.Now()}
}
