package sqlrows

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/gridfan/gridfan/router/poll"
)

// state is what a cursor holds.
type state struct {
	// Of is the digest of the configuration that it belongs to.
	Of string `json:"of"`
	// Server is which server's counter it counts by, as far as that tells.
	Server string `json:"server,omitempty"`
	// Listing says that all rows are being read. After it come the changes since Lo
	// (or Top), which was noted before it began.
	Listing bool `json:"listing,omitempty"`
	// After is where the listing or round goes on: the cursor's column, unless it is
	// a listing, and the key of the last row. Nil: at the beginning.
	After []string `json:"after,omitempty"`

	// Lo is up to where changes have been read, by Transaction, RowVersion and
	// ChangeTracking: those before it have, and for ChangeTracking it itself, too.
	Lo uint64 `json:"lo,omitempty"`
	// Hi is where the round under way ends. 0: the next one begins.
	Hi uint64 `json:"hi,omitempty"`
	// Marks are when the counter was seen where, the oldest first.
	Marks []mark `json:"marks,omitempty"`

	// Top is the highest time read, by Timestamp and BYOD. Empty: the table was empty.
	Top string `json:"top,omitempty"`
	// End is the highest time of the round under way, and Cap the database's own time
	// when it began: a time of tomorrow must not hide what is written today.
	End string `json:"end,omitempty"`
	Cap string `json:"cap,omitempty"`
	// Print tells whether there is anything new above Top less the overlap: what the
	// last finished round found there. Next is that of the round under way.
	Print string `json:"print,omitempty"`
	Next  string `json:"next,omitempty"`
	// Rows is how many rows the table had, for BYOD.
	Rows int64 `json:"rows,omitempty"`
}

// mark says that at a time the counter had come to a value: all that was committed
// until then counts less.
type mark struct {
	To uint64 `json:"to"`
	At int64  `json:"at"` // Unix milliseconds of our clock
}

// maxMarks are as many as tell the age of a bound well enough: the first is the
// oldest transaction's, the last is now.
const maxMarks = 16

// seen notes a mark. Where there are too many, the one goes that tells least.
func (s *state) seen(to uint64, at time.Time) {
	if n := len(s.Marks); n > 0 && s.Marks[n-1].To == to {
		s.Marks[n-1].At = max(s.Marks[n-1].At, at.UnixMilli())
		return
	}
	s.Marks = append(s.Marks, mark{to, at.UnixMilli()})
	if len(s.Marks) <= maxMarks {
		return
	}
	least := 1
	for i := 1; i < len(s.Marks)-1; i++ {
		if s.Marks[i+1].At-s.Marks[i-1].At < s.Marks[least+1].At-s.Marks[least-1].At {
			least = i
		}
	}
	s.Marks = slices.Delete(s.Marks, least, least+1)
}

// bound is when the counter was last seen at or below what has been read.
func (s *state) bound() time.Time {
	var at time.Time
	last := -1
	for i, m := range s.Marks {
		if m.To <= s.Lo {
			at, last = time.UnixMilli(m.At).UTC(), i
		}
	}
	if last > 0 {
		s.Marks = slices.Delete(s.Marks, 0, last)
	}
	return at
}

// state decodes a cursor. Nil is the beginning.
func (f *Fetcher) state(raw json.RawMessage) (*state, error) {
	if raw == nil {
		return nil, nil
	}
	var s state
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil || s.Of != f.digest {
		return nil, poll.ErrCursor
	}
	if n := len(s.After); n != 0 && n != len(f.c.Table.Key) && n != len(f.c.Table.Key)+1 {
		return nil, poll.ErrCursor
	}
	return &s, nil
}

func (s *state) encode() (json.RawMessage, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode cursor: %w", err)
	}
	if len(b) > poll.MaxCursor {
		return nil, &poll.Fault{Kind: poll.Configuration, Reason: fmt.Sprintf("the key of a row has %d bytes; choose key columns that are shorter", len(b))}
	}
	return b, nil
}

// counter reads a counter of the database, which is not negative.
func counter(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, &poll.Fault{Kind: poll.Answer, Reason: "the database's counter is no number: " + short(text)}
	}
	return n, nil
}
