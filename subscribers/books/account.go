package books

import (
	"slices"
	"time"

	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// Counts are what one subscriber's book says, since it was added.
type Counts struct {
	// Matched are the events of its subjects, from its first one on.
	Matched int64 `json:"matched"`
	// Replayed were sent once more because somebody asked.
	Replayed int64 `json:"replayed"`
	// Delivered, Filtered, Shed and Dropped are settlements, each recorded once.
	// Dropped are dead letters that were deleted.
	Delivered int64 `json:"delivered"`
	Filtered  int64 `json:"filtered"`
	Shed      int64 `json:"shed"`
	Dropped   int64 `json:"dropped"`
	// DeadLettered and Redriven count what went into the dead letters, and what
	// was sent out anew from there.
	DeadLettered int64 `json:"deadLettered"`
	Redriven     int64 `json:"redriven"`
	// Retries are settlements of failed attempts, Tried are failures that were
	// kept in hand; Attempts are all that were made.
	Retries  int64 `json:"retries"`
	Tried    int64 `json:"tried"`
	Attempts int64 `json:"attempts"`
	// Broken are dead letters of what lay on the retry lane without its origin:
	// nobody can say which event that was.
	Broken int64 `json:"broken"`
}

// interest is what an entry of the registry wants, and from which event on. What
// has not begun is not in it.
func interest(e registry.Entry) []registry.Epoch {
	var begun []registry.Epoch
	for _, epoch := range e.Epochs {
		if epoch.From > 0 {
			begun = append(begun, registry.Epoch{From: epoch.From, Subjects: deliver.MinimiseSubjects(epoch.Subjects)})
		}
	}
	return begun
}

// account is one subscriber's book. One that was deleted and added again under
// its name is another.
type account struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	// Deleted is when it was found to be gone.
	Deleted *time.Time `json:"deleted,omitempty"`
	// Interest is what Matched was counted with.
	Interest []registry.Epoch `json:"interest"`
	// Gaps are parts of EVENTS that are still to be counted.
	Gaps   []gap  `json:"gaps,omitempty"`
	Counts Counts `json:"counts"`
	// Incomplete: something was lost before it was counted.
	Incomplete *time.Time `json:"incomplete,omitempty"`
}

// gap is a part of EVENTS that the fold had passed when it learned what a
// subscriber wants of it.
type gap struct {
	From    uint64 `json:"from"`
	Through uint64 `json:"through"`
	// Was is what was counted until now, nothing for a new subscriber; Now is
	// what is to be counted.
	Was []registry.Epoch `json:"was,omitempty"`
	Now []registry.Epoch `json:"now"`
}

// key names an account among all there were.
type key struct {
	name    string
	created int64
}

func (a *account) key() key { return key{a.Name, a.Created.UnixNano()} }

// start is its first event.
func (a *account) start() uint64 {
	if len(a.Interest) == 0 {
		return 1
	}
	return a.Interest[0].From
}

// change makes the account count with other epochs; next is the first event that
// the fold has not counted.
func (a *account) change(to []registry.Epoch, next uint64) {
	if slices.EqualFunc(a.Interest, to, registry.Epoch.Equal) {
		return
	}
	// From the first difference on: what is before was counted rightly.
	first := ^uint64(0)
	for i := range max(len(a.Interest), len(to)) {
		if i < len(a.Interest) && i < len(to) && a.Interest[i].Equal(to[i]) {
			continue
		}
		for _, epochs := range [][]registry.Epoch{a.Interest, to} {
			if i < len(epochs) {
				first = min(first, epochs[i].From)
			}
		}
		break
	}
	if first < next {
		a.Gaps = append(a.Gaps, gap{From: first, Through: next - 1, Was: a.Interest, Now: to})
	}
	a.Interest = to
}

// source is one source's part of the streams.
type source struct {
	Published   int64 `json:"published"`
	Quarantined int64 `json:"quarantined"`
	// Direct are those of Published that no router stored.
	Direct int64 `json:"direct,omitempty"`
	// Last is when an event of it was last stored.
	Last time.Time `json:"last"`
	// Incomplete: something was lost before it was counted.
	Incomplete *time.Time `json:"incomplete,omitempty"`
}

// Loss is a part of a stream that was gone before it was counted.
type Loss struct {
	Stream  string    `json:"stream"`
	From    uint64    `json:"from"`
	Through uint64    `json:"through"`
	Noticed time.Time `json:"noticed"`
}

// position is how far a stream was folded.
type position struct {
	Created time.Time `json:"created"`
	// Next is the first message that is not in the sums.
	Next uint64 `json:"next"`
}

// sums are all books, as far as they are kept.
type sums struct {
	// Since is when these books were opened.
	Since      time.Time          `json:"since"`
	Events     position           `json:"events"`
	Attempts   position           `json:"attempts"`
	Quarantine position           `json:"quarantine"`
	Accounts   []*account         `json:"accounts"`
	Sources    map[string]*source `json:"sources"`
	Losses     []Loss             `json:"losses,omitempty"`
	// Unknown counts records of nobody that is known, Unreadable those that are
	// none.
	Unknown    int64 `json:"unknown,omitempty"`
	Unreadable int64 `json:"unreadable,omitempty"`
}

// reaches says whether s is at least as far as o in every stream.
func (s *sums) reaches(o *sums) bool {
	for _, p := range [][2]position{{s.Events, o.Events}, {s.Attempts, o.Attempts}, {s.Quarantine, o.Quarantine}} {
		// A stream made later is a newer one.
		if p[0].Created.Before(p[1].Created) || p[0].Created.Equal(p[1].Created) && p[0].Next < p[1].Next {
			return false
		}
	}
	return true
}
