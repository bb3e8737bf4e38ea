package broker

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// TallyPrefix begins the keys in BucketBooks under which routers keep what they
// have counted; one key for each run of a process.
const TallyPrefix = "tally."

// TallyAlive is how often a running router saves its Tally although nothing has
// changed. One that is much older belongs to a process that is dead.
const TallyAlive = 5 * time.Minute

// Tally is what one run of a router has counted since its start. Routers write
// it and the books read it: what is stored can be counted in the streams, but
// only the router sees what is not.
type Tally struct {
	Instance string    `json:"instance"`
	Started  time.Time `json:"started"`
	Saved    time.Time `json:"saved"`
	// Final: the process has ended and counted everything.
	Final bool `json:"final,omitempty"`
	// Events is when the EVENTS stream was made that it stored to.
	Events  time.Time              `json:"events"`
	Sources map[string]SourceTally `json:"sources"`
}

// SourceTally counts the elements of one source's requests:
//
//	received + redriven = published + duplicate + quarantined + control
type SourceTally struct {
	// Received are those that were taken, whatever became of them.
	Received    int64 `json:"received,omitempty"`
	Published   int64 `json:"published,omitempty"`
	Duplicate   int64 `json:"duplicate,omitempty"`   // published, or in quarantine, before
	Quarantined int64 `json:"quarantined,omitempty"` // entries made
	Control     int64 `json:"control,omitempty"`     // for the router itself
	// Redriven were taken out of quarantine and read again.
	Redriven int64 `json:"redriven,omitempty"`
	// Refused were not stored, and their sender was told to repeat them.
	Refused int64 `json:"refused,omitempty"`
}

// Add adds u to t.
func (t *SourceTally) Add(u SourceTally) {
	t.Received += u.Received
	t.Published += u.Published
	t.Duplicate += u.Duplicate
	t.Quarantined += u.Quarantined
	t.Control += u.Control
	t.Redriven += u.Redriven
	t.Refused += u.Refused
}

// Sub takes u away from t.
func (t *SourceTally) Sub(u SourceTally) {
	t.Received -= u.Received
	t.Published -= u.Published
	t.Duplicate -= u.Duplicate
	t.Quarantined -= u.Quarantined
	t.Control -= u.Control
	t.Redriven -= u.Redriven
	t.Refused -= u.Refused
}

// ParseTally reads the value of a key that begins with TallyPrefix.
func ParseTally(key string, value []byte) (Tally, error) {
	var t Tally
	if !strings.HasPrefix(key, TallyPrefix) {
		return t, fmt.Errorf("key %q of bucket %s is no tally", key, BucketBooks)
	}
	if err := json.Unmarshal(value, &t); err != nil {
		return t, fmt.Errorf("key %q of bucket %s: %w", key, BucketBooks, err)
	}
	return t, nil
}
