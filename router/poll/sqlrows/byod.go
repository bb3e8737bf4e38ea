package sqlrows

import (
	"fmt"
	"time"

	"github.com/gridfan/gridfan/router/poll"
)

// A full push of Finance and Operations deletes all rows and inserts them again. While
// it is under way, rows are not there that have not been deleted; afterwards all have
// a new time, although few have changed.
const (
	// gone is the fall of the number of rows that tells that a push is under way.
	gone = 0.20
	// renewed is the share of rows with a new time that tells that there was one. If
	// it was none and so much has changed, comparing all rows is right, too.
	renewed = 0.80
	// settled is how long a lower number has to stay what it is for those rows to be
	// taken for deleted.
	settled = 15 * time.Minute
	// quiet is how long nothing has to happen for a push to be over. Its inserts come
	// in the course of seconds.
	quiet = 2 * time.Minute
)

// waiting is what is remembered of a full push. It is lost with the process, which
// then only waits anew.
type waiting struct {
	print     string
	since     time.Time
	disturbed bool // a listing was under way
}

// check says whether rows can be read now. s is changed only if they can.
func (w *waiting) check(s *state, t tail, now time.Time) error {
	fallen := float64(t.rows) < (1-gone)*float64(s.Rows)
	pushed := !s.Listing && s.After == nil && s.Rows > 0 && t.rows > 0 && float64(t.fresh) >= renewed*float64(t.rows)
	w.disturbed = w.disturbed || fallen && s.Listing && s.After != nil
	if fallen || pushed {
		if w.since.IsZero() || w.print != t.print {
			w.print, w.since = t.print, now
		}
		still := quiet
		if fallen {
			still = settled
		}
		if left := still - now.Sub(w.since); left > 0 {
			return &poll.Fault{Kind: poll.Unavailable, Reason: fmt.Sprintf(
				"a full push seems to be under way: %d rows are there, where %d were, and %d are new; waiting until nothing has happened for %v more",
				t.rows, s.Rows, t.fresh, left.Round(time.Second))}
		}
	}
	disturbed := w.disturbed
	*w = waiting{}
	// All rows are compared with what is known: only what differs is published. A
	// listing that was under way may have passed rows by that were away.
	if pushed || disturbed {
		return poll.ErrExpired
	}
	if fallen {
		s.Rows = t.rows
	}
	// It only falls once that has settled: else a push would be taken for many small
	// falls.
	s.Rows = max(s.Rows, t.rows)
	return nil
}
