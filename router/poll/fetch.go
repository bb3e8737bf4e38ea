// Package poll asks sources for what has changed.
//
// A Poller has one goroutine for each source. It waits for the source's lease, so that
// one replica polls it, reads the checkpoint, and then, at the pace that rows arrive
// and within the budget that all sources of one identity share, asks its Fetcher for a
// page. The page's rows become events, which are published; then it is written down
// which rows are known; and then the checkpoint moves: each of them on disk before the
// next. So a crash at any moment repeats a page and never skips one, and repeated rows
// are recognised by publish. A checkpoint is written only over the one that was read,
// so a replica that does not know yet that it has lost its lease cannot move it.
package poll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gridfan/gridfan/schemas/record"
)

// Fetcher reads the changes of one table of one source, page by page. It keeps
// nothing that a cursor does not hold, so another process can go on where this one
// stopped. Fetch is called by one goroutine at a time; Close ends its connections.
type Fetcher interface {
	// Fetch makes one request (or query). A nil cursor asks from the beginning: all
	// rows there are, and how to go on with what changes after that. cursor is what
	// a Page of an equal configuration has said, perhaps in a process of long ago;
	// one that is of another configuration, or not understood, is ErrCursor.
	//
	// An error is a *Throttled, a *Fault, wraps ErrExpired or ErrCursor, or is of
	// the connection and the like; whatever it is, the same call may be made again.
	Fetch(ctx context.Context, cursor json.RawMessage) (*Page, error)
	Close()
}

// Page is what one request brought.
type Page struct {
	// Rows are in the order of their changes, as far as the source has one. The same
	// version of a row may come again, on this page or later.
	Rows []record.Row
	// Next is the cursor to go on with once all rows are safe. It is never nil and
	// at most MaxCursor long.
	Next json.RawMessage
	// More says that there is a further page already.
	More bool
	// Listing says that this page belongs to a reading of all rows, which ends with
	// the first page that has Listed.
	Listing, Listed bool
	// Bound is up to when changes are certainly in what was read so far: behind it
	// nothing can come any more. Zero: the source does not tell.
	Bound time.Time
	// Columns are the names that rows have in this page; nil for unknown.
	Columns []string
	// Rejected are rows that could not be read, as they came: they go to quarantine.
	Rejected []Rejected
}

// Rejected is a row that is none, and why.
type Rejected struct {
	Raw    []byte
	Reason string // one sentence, naming the column and the fix
}

// MaxCursor bounds a cursor; a longer one is a Fault.
const MaxCursor = 64 << 10

// What a Fetcher says besides rows.
var (
	// ErrExpired: the source does not know the cursor any more. All rows must be read
	// again, and compared with what is known.
	ErrExpired = errors.New("the source has forgotten the cursor")
	// ErrCursor: the cursor is not one of this configuration.
	ErrCursor = errors.New("the cursor is of another configuration")
)

// Throttled is a source's answer that it is asked too much.
type Throttled struct {
	Status int
	// After is how long it wants to be left alone; 0: it does not say.
	After time.Duration
	// Reason is in its words, without secrets.
	Reason string
}

func (t *Throttled) Error() string {
	if t.After == 0 {
		return fmt.Sprintf("throttled, HTTP %d: %s", t.Status, t.Reason)
	}
	return fmt.Sprintf("throttled, HTTP %d, for %v: %s", t.Status, t.After, t.Reason)
}

// FaultKind says whose move it is after a Fault.
type FaultKind string

// The kinds of faults.
const (
	Credentials   FaultKind = "credentials"   // refused, or none to be had
	Configuration FaultKind = "configuration" // no such table, column, database
	Answer        FaultKind = "answer"        // an answer that is none
	Unavailable   FaultKind = "unavailable"   // it cannot now: 5xx, connection
)

// Fault is an answer that does not do, for reasons that people may have to look
// into. It is shown in the source's status.
type Fault struct {
	Kind FaultKind
	// Status is of HTTP, or 0.
	Status int
	// Reason says what is wrong and the fix, without secrets, in at most MaxReason
	// bytes.
	Reason string
}

// MaxReason bounds what is shown of an error.
const MaxReason = 512

// Faultf makes a Fault, whose reason it cuts where it is too long.
func Faultf(kind FaultKind, status int, format string, args ...any) *Fault {
	reason := fmt.Sprintf(format, args...)
	if len(reason) > MaxReason {
		reason = strings.ToValidUTF8(reason[:MaxReason], "")
	}
	return &Fault{Kind: kind, Status: status, Reason: reason}
}

func (f *Fault) Error() string {
	if f.Status != 0 {
		return fmt.Sprintf("%s, HTTP %d: %s", f.Kind, f.Status, f.Reason)
	}
	return fmt.Sprintf("%s: %s", f.Kind, f.Reason)
}
