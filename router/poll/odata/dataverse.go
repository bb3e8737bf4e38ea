package odata

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/poll/request"
)

// track reads by change tracking.
func (f *Fetcher) track(ctx context.Context, c *cursor) (*poll.Page, error) {
	if c.Phase == again {
		return f.reread(ctx, c)
	}
	link, first := c.Link, c.Link == ""
	switch {
	case !first:
	case c.Phase == changes && c.Delta == "":
		return nil, fmt.Errorf("%s: %w", f.cfg.Entity, poll.ErrCursor)
	case c.Phase == changes:
		link, c.Began = c.Delta, f.now().UTC()
	default:
		link, c.Began = f.query("", ""), f.now().UTC()
	}
	a, p, err := f.ask(ctx, link, true, c.Phase == changes || !first)
	if f.stale(c, err) {
		if c.Phase == listing { // from the first row; poll.Poller compares
			return nil, fmt.Errorf("%w: %w", err, poll.ErrExpired)
		}
		return &poll.Page{More: true, Bound: c.Bound}, nil
	}
	if err != nil {
		return nil, err
	}
	if first && c.Phase == listing {
		c.End = clock(a)
	}
	if first && c.Phase == listing && !strings.Contains(strings.ToLower(strings.Join(a.Header.Values("Preference-Applied"), ",")), "track-changes") {
		return nil, poll.Faultf(poll.Configuration, a.Status, `the source does not track changes of %s (no "Preference-Applied: odata.track-changes"): switch on "Track changes" of the table, or set cursor: version`, f.cfg.Entity)
	}
	page := c.page(p)
	page.Listing = c.Phase == listing && c.From.IsZero()
	switch {
	case p.next != "":
		page.More = true
		return page, f.follow(c, link, p.next, p.n())
	case p.delta == "":
		// To go on without would lose every change from here on.
		return nil, poll.Faultf(poll.Answer, a.Status, "the last page has no delta link, so it is not known where to go on; leave annotations out, or set cursor: version")
	}
	c.Link, c.Delta, c.Again, c.Guard = "", p.delta, time.Time{}, request.Guard{}
	if c.Phase == changes {
		c.Bound = c.Began
		page.Bound = c.Bound
		return page, nil
	}
	page.Listed = page.Listing
	c.Phase, c.From = changes, time.Time{}
	if f.cfg.ModifiedColumn != NoColumn {
		c.Phase, page.More = again, true
		from := c.Began
		if !c.End.IsZero() && c.End.Before(from) {
			from = c.End
		}
		c.Since = from.Add(-f.cfg.Overlap).Truncate(time.Second)
	}
	c.End = time.Time{}
	return page, nil
}

// reread reads what was modified since the first reading began.
func (f *Fetcher) reread(ctx context.Context, c *cursor) (*poll.Page, error) {
	link := c.Link
	if link == "" {
		link = f.since(c.Since)
	}
	_, p, err := f.ask(ctx, link, false, c.Link != "")
	if f.stale(c, err) {
		return &poll.Page{More: true, Bound: c.Bound}, nil
	}
	if err != nil {
		return nil, err
	}
	page := c.page(p)
	if p.next != "" {
		page.More = true
		return page, f.follow(c, link, p.next, p.n())
	}
	c.Phase, c.Link, c.Since, c.Again, c.Guard = changes, "", time.Time{}, time.Time{}, request.Guard{}
	c.Bound = c.Began
	page.Bound = c.Bound
	return page, nil
}

// since asks for what was modified at a time or later. Times have no quotes
// (OData Version 4.01 URL Conventions §5.1.1.14.1): with them Dataverse says that
// Edm.DateTimeOffset and Edm.String do not go together.
func (f *Fetcher) since(t time.Time) string {
	filter := ""
	if !t.IsZero() {
		filter = f.cfg.ModifiedColumn + " ge " + t.UTC().Format(time.RFC3339)
	}
	return f.query(filter, f.cfg.ModifiedColumn+" asc,"+f.cfg.Key[0]+" asc")
}

// modified reads by the time of modification. Dataverse's links hold the last row of
// a page and no number of rows to skip, so they are followed.
func (f *Fetcher) modified(ctx context.Context, c *cursor) (*poll.Page, error) {
	link, first := c.Link, c.Link == ""
	if first {
		link, c.Began, c.Newest = f.since(c.Since), f.now().UTC(), time.Time{}
	}
	a, p, err := f.ask(ctx, link, false, !first)
	if f.stale(c, err) {
		return &poll.Page{More: true, Listing: c.Phase == listing, Bound: c.Bound}, nil
	}
	if err != nil {
		return nil, err
	}
	if first {
		c.End = clock(a)
	}
	page := c.page(p)
	page.Listing = c.Phase == listing
	c.note(p)
	if p.next != "" {
		page.More = true
		return page, f.follow(c, link, p.next, p.n())
	}
	f.end(c, page)
	return page, nil
}

// note remembers the highest time of a page.
func (c *cursor) note(p *answer) {
	for _, r := range p.rows {
		if r.Modified.After(c.Newest) {
			c.Newest = r.Modified
		}
	}
}

// end ends a round by times, and says where the next one begins.
func (f *Fetcher) end(c *cursor, page *poll.Page) {
	page.Listed = page.Listing
	end := c.End
	if end.IsZero() { // the source does not tell its time
		if end = c.Newest; end.After(c.Began) {
			end = c.Began
		}
	}
	if !end.IsZero() {
		c.Since = end.Add(-f.cfg.Overlap).UTC().Truncate(time.Second)
		c.Bound = c.Since
		page.Bound = c.Bound
	}
	c.Phase, c.Link, c.At, c.Guard = changes, "", nil, request.Guard{}
	c.End, c.Newest, c.Again = time.Time{}, time.Time{}, time.Time{}
}

// versions is where reading by versionnumber stands.
type versions struct {
	// Floor is where a round begins: nothing at it or below can come any more.
	Floor int64 `json:"floor"`
	// At is the highest version of this round, High of all.
	At   int64 `json:"at"`
	High int64 `json:"high"`
	// Fresh says that the first reading has come to rows that were modified shortly
	// before it began.
	Fresh bool   `json:"fresh,omitempty"`
	Marks []mark `json:"marks,omitempty"`
}

// mark says that a version was the highest at a time.
type mark struct {
	Time    time.Time `json:"t"`
	Version int64     `json:"v"`
}

// marksPerOverlap is how finely marks are set: the floor lags behind by up to this
// part of Overlap more than it must.
const marksPerOverlap = 16

// versions reads by versionnumber.
func (f *Fetcher) versions(ctx context.Context, c *cursor) (*poll.Page, error) {
	if c.Versions == nil {
		c.Versions = &versions{}
	}
	v := c.Versions
	if c.Began.IsZero() {
		c.Began, v.At = f.now().UTC(), v.Floor
	}
	link := c.Link
	if link == "" {
		link = f.query(versionNumber+" gt "+strconv.FormatInt(v.At, 10), versionNumber+" asc")
	}
	a, p, err := f.ask(ctx, link, false, c.Link != "")
	if f.stale(c, err) { // from At, which is behind all that was read
		return &poll.Page{More: true, Listing: c.Phase == listing && c.From.IsZero(), Bound: c.Bound}, nil
	}
	if err != nil {
		return nil, err
	}
	if c.End.IsZero() {
		if c.End = clock(a); c.End.IsZero() || c.End.After(c.Began) {
			c.End = c.Began
		}
	}
	before := v.At
	for _, r := range p.rows {
		n, err := strconv.ParseInt(r.Version, 10, 64)
		if err != nil || !r.Ordered {
			return nil, poll.Faultf(poll.Configuration, a.Status, "rows of %s have no versionnumber; set cursor: modified", f.cfg.Entity)
		}
		if n <= v.At {
			return nil, poll.Faultf(poll.Answer, a.Status, "the rows are not in the order of their versionnumber that was asked for")
		}
		v.At = n
		if c.Phase == listing {
			// What is committed while all rows are read, or was given its version
			// shortly before, may lie below others that were seen.
			v.Fresh = v.Fresh || r.Modified.IsZero() || !r.Modified.Before(c.End.Add(-2*f.cfg.Overlap))
			if !v.Fresh {
				v.Floor = n
			}
		}
	}
	v.High = max(v.High, v.At)
	page := c.page(p)
	page.Listing = c.Phase == listing && c.From.IsZero()
	if p.next != "" {
		page.More = true
		err := f.follow(c, link, p.next, p.n())
		if v.At > before {
			c.Link = "" // the version is a better place to go on from
		}
		return page, err
	}
	page.Listed = page.Listing
	v.end(c.Began, f.now().UTC(), f.cfg.Overlap)
	c.Bound = c.Began.Add(-f.cfg.Overlap)
	page.Bound = c.Bound
	c.Phase, c.Link, c.Guard = changes, "", request.Guard{}
	c.From, c.Began, c.End, c.Again = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	return page, nil
}

// end ends a round that read everything above Floor from began to now. What was the
// highest version Overlap before it began has nothing uncommitted below it that this
// round has not seen.
func (v *versions) end(began, now time.Time, overlap time.Duration) {
	passed := 0
	for i, m := range v.Marks {
		if m.Time.After(began.Add(-overlap)) {
			break
		}
		v.Floor, passed = max(v.Floor, m.Version), i+1
	}
	v.Marks = v.Marks[passed:]
	n := len(v.Marks)
	if v.High > v.Floor && (n == 0 || v.High > v.Marks[n-1].Version && now.Sub(v.Marks[n-1].Time) >= overlap/marksPerOverlap) {
		v.Marks = append(v.Marks, mark{now, v.High})
	}
}
