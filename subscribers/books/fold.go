package books

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// fold adds messages to sums. It does no I/O and is not safe for concurrent use.
//
// What an event costs does not depend on how many subscribers there are: each
// subject is matched once and remembers for whom it is, events are counted by
// subject, and only a flush adds that to the accounts.
type fold struct {
	*sums
	// boundary is the next event from which on somebody wants something else:
	// until then what subjects remembers holds.
	boundary uint64
	subjects map[string]*subject
	dirty    []*subject // with events that no account has yet
	byName   map[string][]*account
	// anew: the books began again, so those there are have a past that is not in
	// them.
	anew bool
}

// subject is one subject of EVENTS and what was counted on it.
type subject struct {
	n        int64
	accounts []*account
	name     string // of the source in the third token
	source   *source
}

// maxSubjects bounds the memory for subjects: 100,000 take about 20 MB.
const maxSubjects = 100_000

// newFold goes on with s.
func newFold(s *sums) *fold {
	f := &fold{sums: s}
	if f.Sources == nil {
		f.Sources = map[string]*source{}
	}
	f.index()
	return f
}

// index makes what is derived from the accounts again.
func (f *fold) index() {
	f.subjects, f.dirty, f.boundary = map[string]*subject{}, nil, 0
	f.byName = map[string][]*account{}
	slices.SortFunc(f.Accounts, func(a, b *account) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), a.Created.Compare(b.Created))
	})
	for _, a := range f.Accounts {
		f.byName[a.Name] = append(f.byName[a.Name], a)
	}
}

// flush brings what was counted by subject into the accounts.
func (f *fold) flush() {
	for _, s := range f.dirty {
		for _, a := range s.accounts {
			a.Counts.Matched += s.n
		}
		s.n = 0
	}
	f.dirty = f.dirty[:0]
}

// How long the books of a deleted subscriber are kept, and how many: its last
// records come when it is gone, and people look where it went.
const (
	keepDeleted = 24 * time.Hour
	maxDeleted  = 1000
)

// follow opens and closes accounts as the registry says.
func (f *fold) follow(entries []registry.Entry, now time.Time) {
	f.flush()
	known := map[key]*account{}
	for _, a := range f.Accounts {
		known[a.key()] = a
	}
	there := map[key]bool{}
	for _, e := range entries {
		k := key{e.Definition.Name, e.Created.UnixNano()}
		there[k] = true
		a := known[k]
		if a == nil {
			a = &account{Name: e.Definition.Name, Created: e.Created}
			f.Accounts = append(f.Accounts, a)
		}
		if f.anew {
			a.Incomplete = &f.Since
		}
		a.Deleted = nil
		a.change(interest(e), f.Events.Next)
	}
	f.anew = false
	deleted := 0
	for _, a := range f.Accounts {
		if !there[a.key()] {
			if deleted++; a.Deleted == nil {
				a.Deleted, a.Gaps = &now, nil
			}
		}
	}
	f.Accounts = slices.DeleteFunc(f.Accounts, func(a *account) bool {
		if a.Deleted == nil || deleted <= maxDeleted && now.Sub(*a.Deleted) < keepDeleted {
			return false
		}
		deleted--
		return true
	})
	f.index()
}

// event counts one event. from is the source that its headers name, direct says
// that no router stored it.
func (f *fold) event(sequence uint64, on, from string, direct bool, at time.Time) {
	if sequence >= f.boundary {
		f.flush()
		clear(f.subjects)
		f.boundary = f.after(sequence)
	}
	s := f.subjects[on]
	if s == nil {
		s = f.learn(on, sequence, at)
	}
	if s.n++; s.n == 1 {
		f.dirty = append(f.dirty, s)
	}
	src := s.source
	if from != "" && from != s.name {
		src = f.source(from, at)
	}
	src.Published++
	if direct {
		src.Direct++
	}
	if at.After(src.Last) {
		src.Last = at
	}
}

// after is the first sequence behind one at which what somebody wants changes.
func (f *fold) after(sequence uint64) uint64 {
	next := uint64(math.MaxUint64)
	for _, a := range f.Accounts {
		for _, s := range a.Interest {
			if s.From > sequence {
				next = min(next, s.From)
			}
		}
	}
	return next
}

// learn finds out for whom a subject is.
func (f *fold) learn(on string, sequence uint64, at time.Time) *subject {
	if len(f.subjects) >= maxSubjects {
		f.flush()
		clear(f.subjects)
	}
	s := &subject{}
	for _, a := range f.Accounts {
		if a.Deleted == nil && registry.Wants(a.Interest, on, sequence) {
			s.accounts = append(s.accounts, a)
		}
	}
	s.name = sourceToken(on)
	s.source = f.source(s.name, at)
	f.subjects[strings.Clone(on)] = s
	return s
}

// sourceToken is the third token of a subject: events.<kind>.<source>.…
func sourceToken(on string) string {
	if tokens := strings.SplitN(on, ".", 4); len(tokens) > 2 && tokens[0] == event.SubjectPrefix {
		return tokens[2]
	}
	return "-"
}

// source finds the book of a source, or opens it for a message that was stored
// at a time.
func (f *fold) source(name string, at time.Time) *source {
	s := f.Sources[name]
	if s == nil {
		s = &source{}
		if at.Before(f.Since) {
			// Its router may have counted nothing yet.
			s.Incomplete = &f.Since
		}
		f.Sources[strings.Clone(name)] = s
	}
	return s
}

// recount does a part of an account's first gap.
func (a *account) recount(on string, sequence uint64) {
	g := &a.Gaps[0]
	if sequence > g.Through {
		return
	}
	if registry.Wants(g.Now, on, sequence) {
		a.Counts.Matched++
	}
	if registry.Wants(g.Was, on, sequence) {
		a.Counts.Matched--
	}
	g.From = sequence + 1
}

// skew is how far the clocks of two replicas may be apart: who was added on one
// of them may get its first event on the other a moment before.
const skew = 10 * time.Second

// handover is more than a worker takes to end after its subscriber was deleted.
const handover = 30 * time.Second

// find gives the account that a record belongs to, nil if there is none. Only
// the time tells a subscriber from an earlier one of its name.
func (f *fold) find(l line) *account {
	accounts := f.byName[string(l.subscriber)]
	for i := len(accounts) - 1; i >= 0; i-- {
		a := accounts[i]
		if l.time.Before(a.Created) && (i > 0 || l.time.Before(a.Created.Add(-skew)) || l.sequence < a.start()) {
			continue
		}
		// An attempt of the one before may end when this one is there. Later, an
		// event from before its start was replayed for it.
		if i > 0 && l.sequence < a.start() && (l.hop == 0 || l.time.Before(a.Created.Add(handover))) {
			continue
		}
		return a
	}
	return nil
}

// record counts one record.
func (f *fold) record(l line) {
	a := f.find(l)
	if a == nil {
		f.Unknown++
		return
	}
	c := &a.Counts
	c.Attempts += l.attempts
	switch string(l.outcome) {
	case deliver.RecordDelivered:
		c.Delivered++
	case deliver.RecordFiltered:
		c.Filtered++
	case deliver.RecordDeadLetter:
		if l.hop < 0 {
			c.Broken++
		} else {
			c.DeadLettered++
		}
	case deliver.RecordShed:
		c.Shed++
	case deliver.RecordDropped:
		c.Dropped++
	case deliver.RecordRedriven:
		c.Redriven++
	case deliver.RecordReplayed:
		c.Replayed++
	case deliver.RecordRetry:
		c.Retries++
	case deliver.RecordTried:
		c.Tried++
	case deliver.RecordBehind, deliver.RecordLocked:
		// They move an event, and the stock on the retry lane tells of those.
	default:
		f.Unreadable++
	}
}

// maxLosses bounds the list; the first ones matter most.
const maxLosses = 20

// lost books that messages were gone before they were counted.
func (f *fold) lost(stream string, from, through uint64, now time.Time) {
	f.flush()
	if n := len(f.Losses); n > 0 && f.Losses[n-1].Stream == stream && f.Losses[n-1].Through+1 == from {
		f.Losses[n-1].Through = through
	} else if n < maxLosses {
		f.Losses = append(f.Losses, Loss{stream, from, through, now})
	}
	if stream != broker.StreamAttempts {
		for _, s := range f.Sources {
			s.Incomplete = &now
		}
	}
	if stream == broker.StreamQuarantine {
		return
	}
	for _, a := range f.Accounts {
		if stream == broker.StreamEvents && a.start() > through {
			continue
		}
		a.Incomplete = &now
	}
}
