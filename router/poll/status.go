package poll

import "time"

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

// Status is how one source is doing. It is what the process that polls it says;
// counters begin with that process.
type Status struct {
	Source string `json:"source"`
	State  State  `json:"state"`
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
	Remembered  int64 `json:"remembered"`  // of a baseline, not published
	Throttles   int64 `json:"throttles"`   // answers of 429 and the like
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
