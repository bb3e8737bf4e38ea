package odata

import (
	"context"
	"hash/fnv"
	"strconv"
	"strings"
	"time"

	"github.com/gridfan/gridfan/router/poll"
)

// place is where a page of F&O ended.
type place struct {
	// Stamp is the time of the last row, as the source writes it.
	Stamp string `json:"stamp"`
	// Number is the last row's, where there is a NumberColumn.
	Number string `json:"number,omitempty"`
	// Tied is how many rows with Stamp were read, Last are hashes of the keys of the
	// last of them. Both are for entities without a NumberColumn.
	Tied int      `json:"tied,omitempty"`
	Last []uint32 `json:"last,omitempty"`
}

// maxAnchors keeps a cursor short.
const maxAnchors = 64

// anchors is how many rows of before a page shows that goes on by $skip. One less of
// a time may be updated between two requests before they are all read again.
func (f *Fetcher) anchors() int { return min(maxAnchors, max(1, f.cfg.PageSize/2)) }

// keyset reads by the time of modification, from where the last page ended.
func (f *Fetcher) keyset(ctx context.Context, c *cursor) (*poll.Page, error) {
	first := c.At == nil
	if first {
		c.Began, c.Newest = f.now().UTC(), time.Time{}
	}
	skip := 0
	if !first && f.cfg.NumberColumn == "" {
		skip = max(0, c.At.Tied-f.anchors())
	}
	link := f.query(f.from(c), f.order(), "$top", strconv.Itoa(f.cfg.PageSize), "$skip", number(skip), "cross-company", f.companies())
	a, p, err := f.ask(ctx, link, false, false)
	if err != nil {
		return nil, err
	}
	if first {
		c.End = clock(a)
	}
	if err := f.inOrder(a.Status, c, p); err != nil {
		return nil, err
	}
	c.note(p)
	page := c.page(p)
	page.Listing = c.Phase == listing
	if skip > 0 && !c.At.shows(p) {
		// More rows than that were updated meanwhile, and moved the others up. Those
		// of this time have become fewer, so there is an end to it.
		c.At = &place{Stamp: c.At.Stamp}
		page.More = true
		return page, nil
	}
	if n := len(p.rows); n > 0 && (p.n() >= f.cfg.PageSize || p.next != "") {
		was := c.At
		if err := f.advance(a.Status, c, p, skip); err != nil {
			return nil, err
		}
		if was != nil && was.Stamp == c.At.Stamp && was.Number == c.At.Number && was.Tied == c.At.Tied {
			return nil, f.stuck(a.Status, c.At.Stamp)
		}
		page.More = true
		return page, nil
	}
	f.end(c, page)
	return page, nil
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func (f *Fetcher) companies() string {
	if *f.cfg.CrossCompany {
		return "true"
	}
	return ""
}

// from writes the condition of the page after c.
func (f *Fetcher) from(c *cursor) string {
	column := f.cfg.ModifiedColumn
	switch {
	case c.At == nil && c.Since.IsZero():
		return ""
	case c.At == nil:
		return column + " ge " + c.Since.UTC().Format(time.RFC3339)
	case f.cfg.NumberColumn == "":
		return column + " ge " + c.At.Stamp
	}
	return "(" + column + " gt " + c.At.Stamp + ") or (" + column + " eq " + c.At.Stamp + " and " + f.cfg.NumberColumn + " gt " + c.At.Number + ")"
}

func (f *Fetcher) order() string {
	order := f.cfg.ModifiedColumn + " asc"
	if f.cfg.NumberColumn != "" {
		return order + "," + f.cfg.NumberColumn + " asc"
	}
	for _, name := range f.cfg.Key {
		order += "," + name + " asc"
	}
	return order
}

// inOrder makes sure that the source has sorted rows by their time: to go on behind
// the last one would else pass others by.
func (f *Fetcher) inOrder(status int, c *cursor, p *answer) error {
	var last time.Time
	if c.At != nil {
		last = when(c.At.Stamp)
	}
	for i, r := range p.rows {
		if r.Modified.Before(last) {
			return poll.Faultf(poll.Answer, status, "the rows are not in the order of %s that was asked for", f.cfg.ModifiedColumn)
		}
		last = r.Modified
		if f.cfg.NumberColumn != "" && !digits(p.numbers[i]) {
			return poll.Faultf(poll.Configuration, status, "column %s (number) is missing or not a whole number in a row; leave number out", f.cfg.NumberColumn)
		}
	}
	return nil
}

func digits(s string) bool {
	s = strings.TrimPrefix(s, "-")
	return s != "" && len(s) <= 20 && strings.Trim(s, "0123456789") == ""
}

// advance moves c behind a full page.
func (f *Fetcher) advance(status int, c *cursor, p *answer, skip int) error {
	n := len(p.rows)
	stamp := p.stamps[n-1]
	if !literal(stamp) {
		return poll.Faultf(poll.Configuration, status, "column %s (modified) is missing, null or no time in a row; name another", f.cfg.ModifiedColumn)
	}
	at := &place{Stamp: stamp}
	if f.cfg.NumberColumn != "" {
		at.Number = p.numbers[n-1]
		c.At = at
		return nil
	}
	i := n
	for i > 0 && p.stamps[i-1] == stamp {
		i--
	}
	at.Tied = n - i
	if c.At != nil && c.At.Stamp == stamp {
		// All of the page is of this time, and begins behind those that were skipped.
		at.Tied = skip + n
	}
	for _, r := range p.rows[max(i, n-f.anchors()):] {
		at.Last = append(at.Last, hash(r.Key))
	}
	c.At = at
	return nil
}

// shows says whether a page has one of the rows that were read last, so that nothing
// is missing between them and the rest of it.
func (at *place) shows(p *answer) bool {
	last := map[uint32]bool{}
	for _, h := range at.Last {
		last[h] = true
	}
	for _, r := range p.rows {
		if last[hash(r.Key)] {
			return true
		}
	}
	return false
}

func hash(key string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key)) // it never fails
	return h.Sum32()
}

// literal says whether a text can stand as a time in a filter.
func literal(s string) bool {
	if len(s) > 40 || strings.Trim(s, "0123456789-:.TZ+") != "" {
		return false
	}
	_, err := time.Parse(time.RFC3339Nano, s)
	return err == nil
}

// stuck is the fault of a page that leads nowhere.
func (f *Fetcher) stuck(status int, stamp string) error {
	if f.cfg.NumberColumn == "" {
		return poll.Faultf(poll.Configuration, status, "a page of %d rows that were modified at %s leads to itself; raise pageSize", f.cfg.PageSize, stamp)
	}
	return poll.Faultf(poll.Configuration, status, "a page of %d rows leads to itself: %s and %s do not tell its rows apart", f.cfg.PageSize, f.cfg.ModifiedColumn, f.cfg.NumberColumn)
}
