package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Start is where in the stored stream a new subscriber begins: Now, Beginning, a
// time in RFC 3339 (the first event that was stored then or later), or the
// sequence of an event. It is looked up once, when the subscriber is added.
type Start string

// The start positions in words.
const (
	Now       Start = "now"       // events accepted after it was added
	Beginning Start = "beginning" // everything still stored
)

// ErrStart means that a subscriber can't begin where it should.
var ErrStart = errors.New("no place to begin")

// UnmarshalJSON reads a text, and a sequence also as a number.
func (s *Start) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		var n json.Number
		if err := json.Unmarshal(b, &n); err != nil {
			return errors.New("start: want a text or a number")
		}
		text = n.String()
	}
	*s = Start(text)
	return nil
}

// sequence gives the sequence, if it is one.
func (s Start) sequence() (uint64, bool) {
	n, err := strconv.ParseUint(string(s), 10, 63)
	return n, err == nil && n > 0
}

func (s Start) time() (time.Time, bool) {
	t, err := time.Parse(time.RFC3339, string(s))
	return t, err == nil
}

func (s Start) validate() error {
	_, sequence := s.sequence()
	_, at := s.time()
	if s == Now || s == Beginning || sequence || at {
		return nil
	}
	return fmt.Errorf("want now, beginning, a time such as 2026-11-01T00:00:00Z, or the sequence of an event, got %q", string(s))
}

// from finds the first event of a subscriber that is added now. note says what
// its operator may not expect.
func (r *Registry) from(ctx context.Context, d Definition) (sequence uint64, note string, err error) {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: subscribers.%s.start: %s", ErrStart, d.Name, fmt.Sprintf(format, args...))
	}
	space, err := r.Space(ctx)
	if err != nil {
		return 0, "", err
	}
	if d.Start == Now {
		return space.Last + 1, "", nil
	}
	first := max(1, space.First)
	if d.Start == Beginning {
		return first, "", nil
	}
	const short = "it begins with event %d, the oldest that is stored: what came before is gone"
	if n, ok := d.Start.sequence(); ok {
		switch {
		case n > space.Last+1:
			return 0, "", bad("event %d is not stored yet, the last one is %d; use now", n, space.Last)
		case n < first:
			return first, fmt.Sprintf(short, first), nil
		}
		return n, "", nil
	}
	at, _ := d.Start.time()
	if at.After(time.Now()) {
		return 0, "", bad("%s is in the future; use now", d.Start)
	}
	before, err := space.Before(ctx, at)
	if err != nil {
		return 0, "", err
	}
	// Event 1 and what came before it are nothing that is gone.
	if before < first && first > 1 {
		return first, fmt.Sprintf(short, first), nil
	}
	return max(before+1, first), "", nil
}
