package poll

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/gridfan/gridfan/infra/broker"
)

// State is what a source is doing, in a word.
type State string

// The states of a source.
const (
	// Starting: nobody has polled it yet, or not since this process began.
	Starting State = "starting"
	// Elsewhere: another process polls it.
	Elsewhere State = "elsewhere"
	// Baselining: it is read for the first time, or from the beginning.
	Baselining State = "baseline"
	// Polling: all is well.
	Polling State = "polling"
	// Resyncing: all rows are read again and compared, because the source has
	// forgotten the cursor, or the configuration has changed it.
	Resyncing State = "resync"
	// Waiting: outside its windows.
	Waiting State = "waiting"
	// HeldOff: the source has asked to be left alone for a while.
	HeldOff State = "held-off"
	// Failing: the last request failed, or what it brought could not be stored.
	Failing State = "failing"
	// Unconfirmed: many rows are gone, and an operator has to say that this is so.
	Unconfirmed State = "unconfirmed"
)

// Status is how one table of a source is doing. It is what the process that polls it says;
// counters begin with that process.
type Status struct {
	Source string `json:"source"`
	// Table is what is read of it.
	Table string `json:"table,omitempty"`
	State State  `json:"state"`
	// Says is State in a sentence, with what to do about it where there is
	// something to do.
	Says string `json:"says"`
	// Holder is the process that polls it; empty: none does.
	Holder string `json:"holder,omitempty"`
	// Here says that Holder is this process.
	Here bool `json:"here"`
	// Age is how old this Status is, as another process's is passed on.
	Age Seconds `json:"age,omitzero"`

	// Next is when it is polled next, and Interval the time between two polls now,
	// with the reason.
	Next     time.Time `json:"next,omitzero"`
	Interval Seconds   `json:"interval,omitzero"`
	Why      string    `json:"why,omitempty"`
	// Rate is how many rows arrive a second, as the schedule takes it.
	Rate float64 `json:"rate"`
	// Last is when the last poll ended.
	Last time.Time `json:"last,omitzero"`

	// Error is why the last request failed, Kind its FaultKind or "throttled" or
	// "storage", Since when that began, Failures how many there were in a row.
	Error    string    `json:"error,omitempty"`
	Kind     string    `json:"kind,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Failures int       `json:"failures,omitempty"`

	Requests    int64 `json:"requests"`
	Polls       int64 `json:"polls"`
	EmptyPolls  int64 `json:"emptyPolls"`
	Rows        int64 `json:"rows"`        // read
	Published   int64 `json:"published"`   // of them
	Duplicate   int64 `json:"duplicate"`   // published before
	Unchanged   int64 `json:"unchanged"`   // read again
	Quarantined int64 `json:"quarantined"` // could not be read
	// Completing wait behind a push of the same row that is to be completed.
	Completing int64 `json:"completing,omitempty"`
	Remembered int64 `json:"remembered"` // of a baseline, not published
	Throttles  int64 `json:"throttles"`  // answers of 429 and the like
	// Lost is the time in which the source could not be polled because of them.
	Lost Seconds `json:"lost"`

	// Newest is when the newest change that was seen was made, by the source's
	// clock. Freshness is its age; it grows while nothing happens, too.
	Newest    time.Time `json:"newest,omitzero"`
	Freshness Seconds   `json:"freshness,omitzero"`
	// Bound is up to when changes are certainly read, where the source tells.
	Bound    time.Time `json:"bound,omitzero"`
	BoundAge Seconds   `json:"boundAge,omitzero"`

	// Cursor says that there is one to go on from.
	Cursor bool `json:"cursor"`
	// Progress is of a reading of all rows that is under way.
	Progress *Progress `json:"progress,omitempty"`
	// Known is how many rows are remembered, for comparing; -1: they are too many.
	Known int64 `json:"known"`
	// Missing is how many of them a reading of all rows did not find, where State
	// is Unconfirmed.
	Missing int64 `json:"missing,omitempty"`
}

// Progress is how far a reading of all rows has come. How many there are is not
// known before its end, but perhaps how many there were.
type Progress struct {
	Since time.Time `json:"since"`
	Rows  int64     `json:"rows"`
	Pages int64     `json:"pages"`
	Of    int64     `json:"of,omitempty"` // rows known from before
}

// Seconds is a duration that JSON has in seconds.
type Seconds float64

// Duration gives it as Go has durations.
func (s Seconds) Duration() time.Duration { return time.Duration(float64(s) * float64(time.Second)) }

func seconds(d time.Duration) Seconds { return Seconds(d.Seconds()) }

// update changes what is shown.
func (s *source) update(change func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.stat)
}

// setHolding says whether this process polls the source. What was counted stays.
func (s *source) setHolding(holding bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holding = holding
	if st := &s.stat; holding {
		st.Holder = broker.Instance()
	} else {
		st.Holder, st.Error, st.Kind, st.Since, st.Failures = "", "", "", time.Time{}, 0
		st.Next, st.Progress = time.Time{}, nil
	}
}

// show tells other goroutines and other processes how the source is doing.
func (s *source) show() {
	now := time.Now()
	d, rate, why := s.budget.interval(now, s.pace)
	s.mu.Lock()
	st := &s.stat
	st.Next, st.Interval, st.Rate, st.Why = s.next.UTC(), seconds(d), rate, why
	st.Newest, st.Bound = s.cp.Newest, s.cp.Bound
	st.Cursor = s.cp.Cursor != nil
	st.Missing, st.Known = s.cp.Missing, s.cp.Known.Live
	if s.cp.Known.Full {
		st.Known = -1
	}
	st.Progress = nil
	if s.cp.Phase == phaseBaseline || s.cp.Phase == phaseResync {
		st.Progress = &Progress{Since: s.cp.Since, Rows: s.cp.Rows, Pages: s.cp.Pages}
		if s.cp.Phase == phaseResync {
			st.Progress.Of = s.cp.Known.Live
		}
	}
	st.State, st.Says = s.say(now, s.budget.heldUntil())
	note, err := json.Marshal(st)
	s.mu.Unlock()
	if err == nil { // a Status always is JSON
		s.lease.Note(note)
	}
}

// say puts the state in words. The caller holds mu.
func (s *source) say(now, held time.Time) (State, string) {
	in := func(t time.Time) string { return max(0, t.Sub(now)).Round(time.Second).String() }
	switch {
	case s.failures > 0:
		text := fmt.Sprintf("fails since %s (%d times in a row), next try in %s: %s", s.stat.Since.Format(time.RFC3339), s.failures, in(s.next), s.stat.Error)
		return Failing, text
	case s.cp.Phase == phaseUnconfirmed && s.cp.Known.Full:
		return Unconfirmed, fmt.Sprintf("the source has forgotten the cursor, and its rows are too many to be compared: gridfan sources baseline %s --confirm publishes all of them, gridfan sources baseline %[1]s goes on without", s.Label())
	case s.cp.Phase == phaseUnconfirmed:
		return Unconfirmed, fmt.Sprintf("%d of %d known rows are not there any more; nothing is published until they are back, next look in %s. If they are deleted indeed: gridfan sources baseline %s --confirm", s.cp.Missing, s.cp.Known.Live, in(s.next), s.Label())
	case held.After(now):
		return HeldOff, fmt.Sprintf("the source wants to be left alone for another %s", in(held))
	case s.next.After(now) && s.within(now).After(now):
		return Waiting, fmt.Sprintf("outside its windows, next poll in %s", in(s.next))
	case s.cp.Phase == phaseBaseline && s.cp.Mode == Publish:
		return Baselining, fmt.Sprintf("all rows are read and published: %d so far", s.cp.Rows)
	case s.cp.Phase == phaseBaseline:
		return Baselining, fmt.Sprintf("all rows are read and remembered, changes are published from then on: %d so far", s.cp.Rows)
	case s.cp.Phase == phaseResync:
		return Resyncing, fmt.Sprintf("%s, so all rows are read again and those that differ are published: %d so far", s.cp.Reason, s.cp.Rows)
	}
	return Polling, fmt.Sprintf("next poll in %s", in(s.next))
}

// status gives a copy of what show has set, as of now.
func (s *source) status(now time.Time) Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stat
	st.Source, st.Table, st.Here = s.Name, s.Table, s.holding
	if st.Progress != nil {
		p := *st.Progress
		st.Progress = &p
	}
	if !s.holding || st.State == "" { // or it has only just begun
		st.State, st.Says = Starting, "no router polls it yet; one begins within seconds, or after a kill when its lease has ended"
	}
	st.age(now)
	return st
}

// age sets what grows by itself.
func (st *Status) age(now time.Time) {
	if !st.Newest.IsZero() {
		st.Freshness = seconds(max(0, now.Sub(st.Newest)))
	}
	if !st.Bound.IsZero() {
		st.BoundAge = seconds(max(0, now.Sub(st.Bound)))
	}
}
