package books

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// Reading is all books at one moment, balanced.
type Reading struct {
	At time.Time `json:"at"`
	// Since is when these books were opened.
	Since time.Time `json:"since"`
	// Balanced: nothing is missing and nothing is there twice, as far as can be
	// told while events move.
	Balanced bool `json:"balanced"`
	// Settled: nothing moved while it was read.
	Settled     bool         `json:"settled"`
	Lag         Lag          `json:"lag"`
	Losses      []Loss       `json:"losses,omitempty"`
	Subscribers []Subscriber `json:"subscribers"`
	Sources     []Source     `json:"sources"`
}

// Subscriber is one subscriber's book:
//
//	matched + replayed + broken =
//	delivered + filtered + deadLetters + dropped + shed + inRetry + pending + parked
type Subscriber struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	// State is active, paused, parked, open (its breaker is) or deleted.
	State string `json:"state"`
	Counts
	// DeadLetters are there now. InRetry wait for their next attempt, Behind of
	// them for events before them; Pending were never tried, or are being tried.
	DeadLetters int64 `json:"deadLetters"`
	InRetry     int64 `json:"inRetry"`
	Behind      int64 `json:"behind"`
	Pending     int64 `json:"pending"`
	// Parked takes the place of InRetry and Pending while the subscriber is held
	// back.
	Parked int64 `json:"parked"`
	Verdict
}

// Source is one source's book:
//
//	received + redriven + direct = published + duplicate + quarantined + control
//
// Published, Direct and Quarantined are counted in the streams, the others by
// the routers.
type Source struct {
	Name        string `json:"name"`
	Received    int64  `json:"received"`
	Redriven    int64  `json:"redriven"`
	Direct      int64  `json:"direct"` // stored by NATS clients
	Published   int64  `json:"published"`
	Duplicate   int64  `json:"duplicate"`
	Quarantined int64  `json:"quarantined"`
	Control     int64  `json:"control"`
	// Refused were not stored; their sender was told to repeat them.
	Refused int64 `json:"refused"`
	// InQuarantine are there now.
	InQuarantine int64 `json:"inQuarantine"`
	// Completing were accepted and are to be completed; they are in none of the sums
	// before they are published.
	Completing int64 `json:"completing"`
	Verdict
}

// Verdict is how the two sides of a book compare.
type Verdict struct {
	// Balance is left less right, without what was carried: more than 0 is
	// missing, less than 0 is there twice.
	Balance int64 `json:"balance"`
	// Settled: it is certain. Moving is by how much the balance swayed while it
	// was read; it is 0 when settled.
	Settled bool  `json:"settled"`
	Moving  int64 `json:"moving,omitempty"`
	// Carried is a difference from before CarriedAt, when something was lost
	// that had not been counted, or that somebody has accepted.
	Carried   int64      `json:"carried,omitempty"`
	CarriedAt *time.Time `json:"carriedAt,omitempty"`
	// Incomplete: something was lost then before it was counted.
	Incomplete *time.Time `json:"incomplete,omitempty"`
	// Problems say what does not balance and what to do, Notes what else to know.
	Problems []string `json:"problems,omitempty"`
	Notes    []string `json:"notes,omitempty"`

	still   bool // the last two times that it was read it was the same
	touched bool // the balance was zero once, or on both sides of it
}

// The states of a subscriber in the books.
const (
	StateActive  = "active"
	StatePaused  = "paused" // by an operator
	StateParked  = "parked" // the configuration file no longer declares it
	StateOpen    = "open"   // its breaker is
	StateDeleted = "deleted"
)

func (s *Subscriber) row() string { return subscriberRow(s.Name, s.Created) }

func subscriberRow(name string, created time.Time) string {
	return fmt.Sprintf("subscriber/%s/%d", name, created.UnixNano())
}

func (s *Source) row() string { return "source/" + s.Name }

// total is left less right.
func (s *Subscriber) total() int64 {
	return s.Matched + s.Replayed + s.Broken -
		(s.Delivered + s.Filtered + s.DeadLetters + s.Dropped + s.Shed + s.InRetry + s.Pending + s.Parked)
}

// dead is what the records say should be among the dead letters, less what is.
func (s *Subscriber) dead() int64 {
	return s.DeadLettered + s.Broken - s.Redriven - s.Dropped - s.DeadLetters
}

func (s *Source) total() int64 {
	return s.Received + s.Redriven + s.Direct - (s.Published + s.Duplicate + s.Quarantined + s.Control)
}

// How long a reading waits for a quiet moment, and how long a difference must
// stand to be believed: a lost ack shows for as long as the broker waits for it,
// and what routers have counted is seen two seconds later.
const (
	readPatience = 7 * time.Second
	believeAfter = 3 * time.Second
	foldPatience = 2 * time.Second
)

// Read balances the books. It reads at least twice, and again for some seconds
// if anything moves or does not balance.
func (b *Books) Read(ctx context.Context) (*Reading, error) { return b.read(ctx, readPatience) }

// seen is what is known of a row while it is read again and again.
type seen struct {
	what        string
	since       time.Time
	quiet       bool  // the same as the time before
	least, most int64 // of the balance
}

func (b *Books) read(ctx context.Context, patience time.Duration) (*Reading, error) {
	began := time.Now()
	rows := map[string]*seen{}
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		r, settledRows, err := b.take(ctx)
		if err != nil {
			return nil, err
		}
		now := time.Now()
		certain := true
		look := func(row, what string, v *Verdict) {
			s := rows[row]
			if s == nil || s.what != what || !settledRows(row) {
				n := &seen{what: what, since: now, least: v.Balance, most: v.Balance}
				if s != nil {
					n.least, n.most = min(s.least, v.Balance), max(s.most, v.Balance)
				}
				s = n
				rows[row] = s
			} else {
				s.quiet = true
			}
			v.Settled = s.quiet && (v.Balance == 0 && len(v.Problems) == 0 || now.Sub(s.since) >= b.believe)
			v.still, v.touched = s.quiet, s.least <= 0 && s.most >= 0
			if !v.Settled {
				v.Moving = max(s.most, -s.least, s.most-s.least)
				certain = false
			}
		}
		for i := range r.Subscribers {
			s := &r.Subscribers[i]
			if s.State == StateDeleted {
				s.Settled = true
				continue
			}
			what := *s
			what.Verdict, what.State = Verdict{}, ""
			look(s.row(), fmt.Sprintf("%+v", what), &s.Verdict)
		}
		for i := range r.Sources {
			s := &r.Sources[i]
			what := *s
			what.Verdict = Verdict{}
			look(s.row(), fmt.Sprintf("%+v", what), &s.Verdict)
		}
		if certain || time.Since(began) >= patience {
			return b.conclude(ctx, r)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		}
	}
}

// conclude words what a reading has found. Problems of what still moves are
// none.
func (b *Books) conclude(ctx context.Context, r *Reading) (*Reading, error) {
	r.Settled, r.Balanced = true, true
	verdict := func(v *Verdict) {
		if !v.Settled {
			r.Settled = false
			v.Problems = nil
		}
		r.Balanced = r.Balanced && len(v.Problems) == 0
	}
	for i := range r.Subscribers {
		verdict(&r.Subscribers[i].Verdict)
	}
	for i := range r.Sources {
		verdict(&r.Sources[i].Verdict)
	}
	return r, nil
}

// take reads everything once. settled says of which rows the sums are certain.
func (b *Books) take(ctx context.Context) (r *Reading, settled func(row string) bool, err error) {
	if b.Counted != nil {
		if err := b.Counted(ctx); err != nil {
			return nil, nil, err
		}
	}
	waiting, cancel := context.WithTimeout(ctx, foldPatience)
	behind := b.Wait(waiting) != nil
	cancel()
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	stocks, err := b.stocks(ctx)
	if err != nil {
		return nil, nil, err
	}
	counted, err := b.tallies(ctx)
	if err != nil {
		return nil, nil, err
	}
	carried, _, err := b.carried(ctx)
	if err != nil {
		return nil, nil, err
	}
	spooled := uint64(0)
	if b.Spooled != nil {
		spooled = b.Spooled(ctx)
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.fold
	f.flush()
	r = &Reading{
		At: time.Now().UTC(), Since: f.Since, Lag: b.lag, Losses: slices.Clone(f.Losses),
		Subscribers: []Subscriber{}, Sources: []Source{},
	}
	entries := map[key]registry.Entry{}
	for _, e := range b.entered {
		entries[key{e.Definition.Name, e.Created.UnixNano()}] = e
	}
	open := map[string]bool{} // with gaps
	for _, a := range f.Accounts {
		s := Subscriber{Name: a.Name, Created: a.Created, State: StateDeleted, Counts: a.Counts}
		e, there := entries[a.key()]
		if !there || a.Deleted != nil {
			r.Subscribers = append(r.Subscribers, s)
			continue
		}
		stock := stocks[a.Name]
		s.DeadLetters, s.InRetry, s.Behind, s.Pending = stock.deadLetters, stock.retry, stock.behind, stock.pending
		s.State = b.state(e)
		if s.State != StateActive {
			s.Parked = s.InRetry + s.Pending
			s.InRetry, s.Behind, s.Pending = 0, 0, 0
		}
		s.Incomplete = a.Incomplete
		c := carried[s.row()]
		s.carry(c)
		s.Balance = s.total() - c.Balance
		s.judge(s.dead()-c.Dead, len(a.Gaps) > 0, stock)
		open[s.row()] = len(a.Gaps) > 0
		r.Subscribers = append(r.Subscribers, s)
	}
	for name := range counted.sources {
		f.source(name, time.Now())
	}
	for name, src := range f.Sources {
		n := counted.sources[name]
		s := Source{
			Name: name, Received: n.Received, Redriven: n.Redriven, Direct: src.Direct, Published: src.Published,
			Duplicate: n.Duplicate, Quarantined: src.Quarantined, Control: n.Control, Refused: n.Refused,
			InQuarantine: stocks["source/"+name].quarantine, Completing: stocks["source/"+name].completing,
		}
		if s.Completing > 0 {
			s.Notes = append(s.Notes, fmt.Sprintf("%d accepted events are still to be completed, and are in no sum before they are published: gridfan sources show %s", s.Completing, name))
		}
		s.Incomplete = src.Incomplete
		c := carried[s.row()]
		s.carry(c)
		s.Balance = s.total() - c.Balance
		s.judge(counted.killed, spooled)
		r.Sources = append(r.Sources, s)
	}
	slices.SortFunc(r.Sources, func(a, b Source) int { return strings.Compare(a.Name, b.Name) })
	slices.SortStableFunc(r.Subscribers, func(a, b Subscriber) int {
		if (a.State == StateDeleted) != (b.State == StateDeleted) {
			return map[bool]int{true: 1, false: -1}[a.State == StateDeleted]
		}
		return strings.Compare(a.Name, b.Name)
	})
	return r, func(row string) bool { return !behind && !open[row] }, nil
}

func (b *Books) state(e registry.Entry) string {
	switch {
	case e.Orphaned:
		return StateParked
	case e.Paused:
		return StatePaused
	case b.Breaker != nil:
		if s, ok := b.Breaker(e.Definition.Name); ok && !s.Flowing() {
			return StateOpen
		}
	}
	return StateActive
}

func (v *Verdict) carry(c opening) {
	if !c.At.IsZero() {
		v.Carried, v.CarriedAt = c.Balance, &c.At
	}
	if c.Balance != 0 || c.Dead != 0 {
		v.Notes = append(v.Notes, fmt.Sprintf("a difference of %d is carried since %s: %s", c.Balance, c.At.Local().Format(time.DateTime), c.Why))
	}
}

func events(n int64) string {
	if n == 1 {
		return "1 event"
	}
	return fmt.Sprintf("%d events", n)
}

// judge words what a subscriber's numbers say. dead is by how much the dead
// letters differ from their records.
func (s *Subscriber) judge(dead int64, counting bool, stock stock) {
	problem := func(format string, args ...any) { s.Problems = append(s.Problems, fmt.Sprintf(format, args...)) }
	accept := fmt.Sprintf("gridfan books accept %s carries the difference on", s.Name)
	switch {
	case dead > 0:
		problem("%d of its dead letters were removed by other means than gridfan, such as nats stream purge, so nobody can say what became of them; if that was meant, %s", dead, accept)
	case dead < 0:
		problem("%d more dead letters are there than were recorded; see gridfan why for one of them", -dead)
	}
	switch rest := s.Balance - dead; {
	case dead != 0 && rest == 0:
	case rest > 0:
		problem("%s matched its subjects and are neither settled nor waiting: messages or consumers on the broker were deleted by other means than gridfan; gridfan why ID tells of one, gridfan replay sends them again, %s", events(rest), accept)
	case rest < 0 && stock.overlap && s.Pending+s.Parked > 0:
		s.Notes = append(s.Notes, fmt.Sprintf("what waits is counted too high, by %d: the broker counts an event twice that two of its subjects match", -rest))
		s.Balance = 0
	case rest < 0 && -rest <= stock.inHand && s.State != StateActive:
		// Some that were settled, or are not wanted any more, and whose ack did not
		// arrive: nobody looks at them before it goes on.
		s.Notes = append(s.Notes, fmt.Sprintf("%s among what waits may be settled: they were given back when it stopped, and are looked at when it goes on", events(-rest)))
		s.Balance = 0
	case rest < 0:
		problem("%s more are settled or waiting than matched: its consumer was made anew or changed by other means than gridfan, so events went out twice; %s", events(-rest), accept)
	}
	if counting {
		s.Notes = append(s.Notes, "its past is still being counted")
	}
	if stock.cursorless {
		s.Notes = append(s.Notes, "its worker has not made its consumer on EVENTS yet; see the log if that stays")
	}
	if s.Broken > 0 {
		s.Notes = append(s.Notes, fmt.Sprintf("%d dead letters came from messages on the retry lane that gridfan did not make", s.Broken))
	}
	if s.Incomplete != nil && s.CarriedAt == nil {
		s.Notes = append(s.Notes, "incomplete since "+s.Incomplete.Local().Format(time.DateTime)+": records or events were gone before they were counted; the difference is carried on at the next quiet moment")
	}
}

// judge words what a source's numbers say. killed counts routers that ended
// without saying what they had counted.
func (s *Source) judge(killed int, spooled uint64) {
	switch n := s.Balance; {
	case n > 0 && spooled >= uint64(n):
		s.Notes = append(s.Notes, fmt.Sprintf("%s wait in the spool for the broker", events(int64(spooled))))
		s.Balance = 0
	case n > 0:
		s.Problems = append(s.Problems, fmt.Sprintf("%s were counted by a router and are in no stream; if streams or messages were deleted by hand, gridfan books accept %s carries the difference on", events(n), s.Name))
	case n < 0 && killed > 0:
		s.Notes = append(s.Notes, fmt.Sprintf("%s were stored by a process that was killed before it saved its counts; none is missing", events(-n)))
		s.Balance = 0
	case n < 0:
		s.Problems = append(s.Problems, fmt.Sprintf("%s more are stored than routers have counted: they were stored and their acknowledgement was lost; none is missing, and gridfan books accept %s carries the difference on", events(-n), s.Name))
	}
	if s.Direct > 0 {
		s.Notes = append(s.Notes, fmt.Sprintf("%s were stored by NATS clients and not by a router", events(s.Direct)))
	}
	if s.Incomplete != nil && s.CarriedAt == nil {
		s.Notes = append(s.Notes, "incomplete since "+s.Incomplete.Local().Format(time.DateTime)+": the difference is carried on at the next quiet moment")
	}
}

// stock is what waits on the broker for one subscriber.
type stock struct {
	deadLetters, retry, behind, pending int64
	inHand                              int64 // given to a worker and not acknowledged
	quarantine, completing              int64 // of a source
	cursorless                          bool
	// overlap: two subjects of the cursor's filter match the same events, neither
	// covering the other. What nats-server 2.15.2 says is pending then counts them
	// twice (measured 2026-11-23); it delivers them once.
	overlap bool
}

// stocks asks the broker what waits, by subscriber, and by source after
// "source/".
func (b *Books) stocks(ctx context.Context) (map[string]stock, error) {
	all := map[string]stock{}
	b.mu.Lock()
	var accounts []account
	for _, a := range b.fold.Accounts {
		if a.Deleted == nil {
			accounts = append(accounts, *a)
		}
	}
	b.mu.Unlock()
	names := make([]string, 0, len(accounts))
	for _, a := range accounts {
		names = append(names, a.Name)
	}
	retries, _, err := b.Broker.RetryCounts(ctx, names)
	if err != nil {
		return nil, err
	}
	for name, n := range retries {
		all[name] = stock{retry: int64(n.All), behind: int64(n.Behind)}
	}
	for _, q := range []struct {
		stream string
		add    func(subject string, n int64)
	}{
		{broker.StreamDeadLetters, func(subject string, n int64) {
			name := broker.SubscriberOf(subject)
			s := all[name]
			s.deadLetters += n
			all[name] = s
		}},
		{broker.StreamQuarantine, func(subject string, n int64) {
			name := "source/" + strings.TrimPrefix(subject, broker.Quarantine(""))
			s := all[name]
			s.quarantine += n
			all[name] = s
		}},
		{broker.StreamHeld, func(subject string, n int64) {
			name := "source/" + broker.HeldSource(subject)
			s := all[name]
			s.completing += n
			all[name] = s
		}},
	} {
		counts, err := b.Broker.SubjectCounts(ctx, q.stream, ">")
		if err != nil {
			return nil, err
		}
		for subject, n := range counts {
			q.add(subject, int64(n))
		}
	}
	cursors := map[string]*jetstream.ConsumerInfo{}
	for _, name := range []string{broker.StreamEvents, broker.StreamRetry} {
		stream, err := b.js.Stream(ctx, name)
		if err != nil {
			return nil, err
		}
		list := stream.ListConsumers(ctx)
		for info := range list.Info() {
			s := all[info.Name]
			s.inHand += int64(info.NumAckPending)
			all[info.Name] = s
			if name == broker.StreamEvents {
				cursors[info.Name] = info
			}
		}
		if err := list.Err(); err != nil {
			return nil, err
		}
	}
	b.mu.Lock()
	entries := b.entered
	b.mu.Unlock()
	own, err := b.Registry.Unrecorded(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name := e.Definition.Name
		s := all[name]
		n, native := own[name]
		if !native {
			n, err = b.Registry.Pending(ctx, e, cursors[name])
		} // else its client acknowledges in any order, and is recorded in one
		if err != nil {
			return nil, err
		}
		s.pending, s.cursorless = int64(n), cursors[name] == nil
		for _, epoch := range interest(e) {
			for i, a := range epoch.Subjects {
				s.overlap = s.overlap || slices.ContainsFunc(epoch.Subjects[:i], func(b string) bool { return deliver.OverlapSubjects(a, b) })
			}
		}
		all[name] = s
	}
	return all, nil
}
