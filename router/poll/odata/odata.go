// Package odata reads what has changed in a table of Dataverse, or in an entity of
// F&O, over OData.
//
// # Dataverse
//
// ChangeTracking asks for all rows with "Prefer: odata.track-changes", follows
// @odata.nextLink until the last page has @odata.deltaLink, and asks for changes by
// that from then on. Links are followed verbatim. A last page without a delta link is
// a fault and never the end, or all changes after it would be lost. Whether what
// changes while all rows are read is in the first delta is not documented (asked in
// MicrosoftDocs/powerapps-docs issue 3862), so after the first reading the rows that
// were modified since its beginning are read once more. A delta link is good for some
// days (ExpireChangeTrackingInDays); one that has expired is poll.ErrExpired.
//
// Version reads rows by their versionnumber, upwards. It is a rowversion of SQL
// Server, given when a statement runs and seen when its transaction is committed:
// what is committed late appears below what was seen already. So every round begins
// not at the highest version but at one that was the highest long enough ago: at v,
// seen at t, only once a round that began at t + Overlap or later has read from below
// v to its end. (To begin at what was highest Overlap ago is not enough: what is
// committed between the last round before that time and the next one would be
// missed.) A change whose transaction lasts longer than Overlap is missed.
//
// Modified reads rows by modifiedon, which has whole seconds, and is at home with
// imports that set it back. See Overlap.
//
// # F&O
//
// /data pages by $skip without a snapshot: a row that is updated behind the reader
// shifts another one past it. So its links are not followed. The next page is asked
// for from where the last one ended, by the time of modification and the number that
// breaks ties (NumberColumn). Without one, it is asked for from the last time
// inclusively and, where more rows than a page have the same time, by a $skip that
// goes back a little: the page must show a row that was seen, or the rows of that
// time are read again from the first.
//
// # Clocks
//
// A round of Modified ends at the source's own clock, the Date header of its first
// answer, and the next one begins Overlap before that. It does not end at the highest
// time that was seen: rows without changes would be read again for ever, and one row
// from the future would hide what comes after it. A Date that is ahead of this
// machine's clock is not believed. Without a Date, it ends at the highest time seen.
//
// # What goes wrong
//
// A nextLink or deltaLink to another origin is refused; one that comes again, or page
// after page without rows, is a fault. A page that is no JSON, ends early, has no
// rows member, or whose rows are not in the order that was asked for, is a fault:
// no row is skipped. A row without its key is rejected by itself, but all rows of a
// page without it are a wrong configuration.
//
// Sources, all read 2026-11: MicrosoftDocs/powerapps-docs, powerapps-docs/developer/
// data-platform, files use-change-tracking-synchronize-data-external-systems.md,
// webapi/query/page-results.md and api-limits.md; MicrosoftDocs/dynamics-365-unified-
// operations-public, articles/fin-ops-core/dev-itpro/data-entities/odata.md.
package odata

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/poll/request"
)

// Fetcher reads one table or entity. See poll.Fetcher.
type Fetcher struct {
	cfg    Config
	hash   string
	client *request.Client
	now    func() time.Time // of this machine; tests set it
}

var (
	_ poll.Fetcher  = (*Fetcher)(nil)
	_ poll.Rewinder = (*Fetcher)(nil)
)

// New makes a Fetcher of a valid cfg; it asks for nothing yet. The caller closes it.
func New(cfg Config, opts request.Options) (*Fetcher, error) {
	client, err := request.New(cfg.Target, opts)
	if err != nil {
		return nil, err
	}
	return &Fetcher{cfg: cfg, hash: cfg.hash(), client: client, now: time.Now}, nil
}

// Close ends connections.
func (f *Fetcher) Close() { f.client.Close() }

// cursor is where reading goes on.
type cursor struct {
	// Query is the hash of what the cursor depends on.
	Query string `json:"query"`
	Phase phase  `json:"phase"`
	// Link is the next page's, verbatim. Empty: the request is to be written.
	Link string `json:"link,omitempty"`
	// Got is when there was a Link.
	Got time.Time `json:"got,omitzero"`
	// Again is when this round was begun again, because such a link was refused.
	Again time.Time `json:"again,omitzero"`
	// Delta is where the changes after those that were read are asked for.
	Delta string `json:"delta,omitempty"`
	// From is set where older changes are left out, because somebody went back to a
	// time.
	From time.Time `json:"from,omitzero"`
	// Began is when the first request of this round went out.
	Began time.Time `json:"began,omitzero"`
	// Bound is that of the last round.
	Bound time.Time `json:"bound,omitzero"`

	// Since is the least time of modification of this round, End where it ends: the
	// source's time when it began.
	Since time.Time `json:"since,omitzero"`
	End   time.Time `json:"end,omitzero"`
	// Newest is the highest time of modification seen in it.
	Newest time.Time `json:"newest,omitzero"`
	At     *place    `json:"at,omitempty"`

	Versions *versions `json:"versions,omitempty"`

	Guard request.Guard `json:"guard"`
}

// phase is what a round is for.
type phase string

const (
	listing phase = "listing" // all rows
	again   phase = "again"   // those that changed while all were read
	changes phase = "changes"
)

// Fetch makes one request. See poll.Fetcher.
func (f *Fetcher) Fetch(ctx context.Context, raw json.RawMessage) (*poll.Page, error) {
	c := &cursor{Query: f.hash, Phase: listing}
	if raw != nil {
		c = &cursor{}
		if err := json.Unmarshal(raw, c); err != nil || c.Query != f.hash {
			return nil, fmt.Errorf("%s: %w", f.cfg.Entity, poll.ErrCursor)
		}
	}
	switch c.Phase {
	case listing, again, changes:
	default:
		return nil, fmt.Errorf("%s: %w", f.cfg.Entity, poll.ErrCursor)
	}
	var page *poll.Page
	var err error
	switch {
	case f.cfg.Cursor == ChangeTracking:
		page, err = f.track(ctx, c)
	case f.cfg.Cursor == Version:
		page, err = f.versions(ctx, c)
	case f.cfg.dataverse():
		page, err = f.modified(ctx, c)
	default:
		page, err = f.keyset(ctx, c)
	}
	if err != nil {
		return nil, err
	}
	if page.Next, err = json.Marshal(c); err != nil {
		return nil, err
	}
	if len(page.Next) > poll.MaxCursor {
		return nil, poll.Faultf(poll.Answer, 200, "the link to the next page makes a cursor of %d bytes; at most %d can be kept", len(page.Next), poll.MaxCursor)
	}
	return page, nil
}

// Rewind gives the cursor that reads what was modified since a time. Change tracking
// and versions know no times: all rows are read for it, and older ones left out; it
// shows no deletions before the new cursor.
func (f *Fetcher) Rewind(_ context.Context, to time.Time) (json.RawMessage, error) {
	c := &cursor{Query: f.hash, Phase: listing, From: to}
	if f.cfg.Cursor == Modified {
		c.Phase, c.From, c.Since = changes, time.Time{}, to.UTC().Truncate(time.Second)
	} else if f.cfg.ModifiedColumn == NoColumn {
		return nil, fmt.Errorf("%s has no column with the time of the last change (modified: none)", f.cfg.Entity)
	}
	return json.Marshal(c)
}

// notFound says whether a code is that of a row which does not exist, as
// 0x80040217 is ("Web service error codes", powerapps-docs; read 2026-11), and not
// that of a table which does not.
func notFound(code string) bool { return strings.EqualFold(code, "0x80040217") }

// parameters writes a query. Blanks are %20, which every server reads, and the $ of
// names stays.
func parameters(pairs ...string) string {
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('&')
		}
		b.WriteString(pairs[i] + "=" + strings.ReplaceAll(url.QueryEscape(pairs[i+1]), "+", "%20"))
	}
	return b.String()
}

// query writes a link to a page of the entity.
func (f *Fetcher) query(filter, order string, more ...string) string {
	pairs := []string{"$select", strings.Join(f.cfg.columns(), ",")}
	switch {
	case f.cfg.Filter != "" && filter != "":
		filter = "(" + f.cfg.Filter + ") and (" + filter + ")"
	case filter == "":
		filter = f.cfg.Filter
	}
	pairs = append(pairs, "$filter", filter, "$orderby", order)
	link := f.cfg.URL + "/" + f.cfg.Entity
	if q := parameters(append(pairs, more...)...); q != "" {
		link += "?" + q
	}
	return link
}

func (f *Fetcher) header(track bool) http.Header {
	h := http.Header{
		"Accept":           {"application/json"},
		"Odata-Maxversion": {"4.0"},
		"Odata-Version":    {"4.0"},
	}
	if !f.cfg.dataverse() {
		return h
	}
	var prefer []string
	if track {
		prefer = append(prefer, "odata.track-changes")
	}
	prefer = append(prefer, "odata.maxpagesize="+strconv.Itoa(f.cfg.PageSize))
	if f.cfg.Annotations != nil && *f.cfg.Annotations {
		prefer = append(prefer, `odata.include-annotations="*"`)
	}
	h["Prefer"] = []string{strings.Join(prefer, ",")}
	return h
}

// ask gets a page. given says that the source has given the link.
func (f *Fetcher) ask(ctx context.Context, link string, track, given bool) (*request.Answer, *answer, error) {
	a, err := f.client.Do(ctx, http.MethodGet, link, f.header(track), nil)
	if err != nil {
		return nil, nil, err
	}
	if err := a.Judge(); err != nil {
		if track && given && forgotten(a) {
			return a, nil, fmt.Errorf("%w: %w", err, poll.ErrExpired)
		}
		return a, nil, err
	}
	p, err := f.parse(a, link)
	return a, p, err
}

// forgotten says whether an answer means that a delta link has expired. The code is
// of the organisation service (ExpiredVersionStamp, "Web service error codes",
// powerapps-docs), the text what it says; with which HTTP status both come is not
// documented, so any will do, and 410 is what OData has for it (OData Version 4.01
// Protocol §11.4.2; all read 2026-11).
func forgotten(a *request.Answer) bool {
	if a.Status == http.StatusGone {
		return true
	}
	r := a.Refusal()
	return strings.EqualFold(r.Code, "0x80044352") || r.Code == "-2147204270" ||
		strings.Contains(strings.ToLower(r.Message), "version stamp associated with the client has expired")
}

// staleAfter is how long a link is asked for that is refused while all rows are read:
// a gateway may say so for a moment, and to begin again is dear then. againAfter is how
// long a source is left with its refusal, when it has refused a link of the new
// beginning as well; until then that is a fault, which people see.
const (
	staleAfter = time.Minute
	againAfter = 10 * time.Minute
)

// stale says whether to begin a round again because the link to its next page, which
// the source has given, is refused: it may have forgotten it, or have made it up. It
// clears the link then. A second refusal before the round has ended is a fault.
func (f *Fetcher) stale(c *cursor, err error) bool {
	refused, ok := errors.AsType[*poll.Fault](err)
	if !ok || c.Link == "" || !request.Gone(refused.Status) {
		return false
	}
	now := f.now()
	switch {
	case c.Phase == listing && now.Sub(c.Got) < staleAfter:
		return false
	case !c.Again.IsZero() && now.Sub(c.Again) < againAfter:
		*refused = *poll.Faultf(poll.Configuration, refused.Status, "the source refuses the link to the next page that it has given, and did so before: %s", refused.Reason)
		return false
	}
	c.Link, c.Guard, c.Again = "", request.Guard{}, now.UTC()
	return true
}

// follow makes link the one of the next page, after that at from with n rows.
func (f *Fetcher) follow(c *cursor, from, link string, n int) error {
	c.Link, c.Got = link, f.now().UTC()
	return c.Guard.Follow(from, link, n)
}

// clock gives the end of a round of Modified: what of the two clocks is behind; zero
// where the source's is not known.
func clock(a *request.Answer) time.Time {
	if a.Date.IsZero() || a.Date.Before(a.Asked) {
		return a.Date
	}
	return a.Asked.UTC().Truncate(time.Second)
}
