// Package delta reads what has changed from an HTTP endpoint of any make that tells
// it in JSON: it is asked with a cursor, and answers with rows and the next cursor, or
// with links. Config says where in an answer these stand.
//
// What it does for the endpoint's sake:
//
//   - Links may be relative. One to another origin is refused: the credentials are
//     for the source's own.
//   - A server may hold a request until there is something (Config.Hold). That it
//     does not answer in that time is no failure, unless it does not answer at all
//     for many times in a row.
//   - An ETag is sent back when the same request is made again, and 304 and 204 mean
//     that nothing has changed.
//   - 410 means that the cursor is forgotten, and that all rows must be read again.
//   - A link to a next page that is refused with 400, 404 or 410 is given up, and its
//     round of pages begun again, once; refused again it is a fault.
//
// An answer that is no JSON, ends early, has no rows where they are to stand, rows
// without a cursor, or a cursor that says there is more and does not move, is a fault.
// A row without a key is rejected by itself; all rows of an answer without one are a
// wrong configuration.
package delta

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/poll/request"
	"github.com/gridfan/gridfan/schemas/custom"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
	"github.com/gridfan/gridfan/schemas/record"
)

// Fetcher reads one endpoint. See poll.Fetcher.
type Fetcher struct {
	cfg     Config
	hash    string
	queries *queries
	client  *request.Client
	words   *secret.Veil
	now     func() time.Time // tests set it
}

var _ poll.Fetcher = (*Fetcher)(nil)

// New makes a Fetcher of a valid cfg; it asks for nothing yet. The caller closes it.
func New(cfg Config, opts request.Options) (*Fetcher, error) {
	q, err := cfg.compile("delta")
	if err != nil {
		return nil, err
	}
	client, err := request.New(cfg.Target, opts)
	if err != nil {
		return nil, err
	}
	return &Fetcher{cfg: cfg, hash: cfg.hash(), queries: q, client: client, words: secret.NewVeil(cfg.secrets()...), now: time.Now}, nil
}

// Close ends connections.
func (f *Fetcher) Close() { f.client.Close() }

// cursor is where reading goes on.
type cursor struct {
	Query string `json:"query"`
	// Cursor is what {cursor} stands for.
	Cursor string `json:"cursor,omitempty"`
	// Link is what to ask for in the place of the URL: the next page, or the source's
	// own link to what changes later. Next says which.
	Link string `json:"link,omitempty"`
	Next bool   `json:"next,omitempty"`
	// Mark is where this round of pages began, and Again when that was gone back to,
	// because the link to the next page was refused.
	Mark  *mark     `json:"mark,omitempty"`
	Again time.Time `json:"again,omitzero"`
	// Got is when there was a Link.
	Got time.Time `json:"got,omitzero"`
	// Listing: all rows are being read.
	Listing bool `json:"listing,omitempty"`
	// ETag is of an answer to the request with hash For.
	ETag string `json:"etag,omitempty"`
	For  uint64 `json:"for,omitempty"`
	// Silent is how often a request was held and not answered.
	Silent int `json:"silent,omitempty"`

	Guard request.Guard `json:"guard"`
}

// mark is what a round of pages was begun with.
type mark struct {
	Cursor string `json:"cursor,omitempty"`
	Link   string `json:"link,omitempty"`
}

// staleAfter is how long a link to a next page is asked for that is refused while all
// rows are read: a gateway may say so for a moment, and to begin again is dear then.
// againAfter is how long a source is left with its refusal, when it has refused a link
// of the new beginning as well; until then that is a fault, which people see.
const (
	staleAfter = time.Minute
	againAfter = 10 * time.Minute
)

// stale says whether to begin a round of pages again because the link to the next one,
// which the source has given, is refused: it may have forgotten it, or have made it
// up. It sets c back then. A second refusal before the round has ended is a fault.
func (f *Fetcher) stale(c *cursor, err error) bool {
	refused, ok := errors.AsType[*poll.Fault](err)
	if !ok || !c.Next || c.Mark == nil || !request.Gone(refused.Status) {
		return false
	}
	now := f.now()
	switch {
	case c.Listing && now.Sub(c.Got) < staleAfter:
		return false
	case !c.Again.IsZero() && now.Sub(c.Again) < againAfter:
		*refused = *poll.Faultf(poll.Configuration, refused.Status, "the source refuses the link to the next page that it has given, and did so before: %s", refused.Reason)
		return false
	}
	c.Cursor, c.Link, c.Next, c.ETag, c.For = c.Mark.Cursor, c.Mark.Link, false, "", 0
	c.Mark, c.Again, c.Guard = nil, now.UTC(), request.Guard{}
	return true
}

// maxSilent is how often in a row a server may let a request that it holds go
// unanswered.
const maxSilent = 10

// Fetch makes one request. See poll.Fetcher.
func (f *Fetcher) Fetch(ctx context.Context, raw json.RawMessage) (*poll.Page, error) {
	c := &cursor{Query: f.hash, Cursor: f.cfg.Start, Listing: !f.cfg.Begins}
	if raw != nil {
		c = &cursor{}
		if err := json.Unmarshal(raw, c); err != nil || c.Query != f.hash {
			return nil, fmt.Errorf("%s: %w", f.cfg.Table, poll.ErrCursor)
		}
	}
	page, err := f.fetch(ctx, c, raw != nil)
	if err != nil {
		if fault, ok := errors.AsType[*poll.Fault](err); ok {
			fault.Reason = f.words.Printable(fault.Reason, poll.MaxReason)
		}
		return nil, err
	}
	if page.Next, err = json.Marshal(c); err != nil {
		return nil, err
	}
	if len(page.Next) > poll.MaxCursor {
		return nil, poll.Faultf(poll.Answer, 200, "cursor and links have %d bytes together; at most %d can be kept", len(page.Next), poll.MaxCursor)
	}
	return page, nil
}

// ask is one request.
type ask struct {
	link   string
	header http.Header
	body   []byte
	sum    uint64 // of all that
}

func (f *Fetcher) ask(c *cursor) (*ask, error) {
	a := &ask{link: f.cfg.URL, header: http.Header{"Accept": {"application/json"}}}
	filled := func(values map[string]string, set func(name, value string)) {
		for name, v := range values {
			if hasCursor(v) {
				if c.Cursor == "" {
					continue
				}
				v = strings.ReplaceAll(v, placeholder, c.Cursor)
			}
			set(name, v)
		}
	}
	filled(f.cfg.Headers, a.header.Set)
	for _, values := range a.header {
		if !inHeader(values[0]) {
			return nil, poll.Faultf(poll.Answer, 0, "the cursor has a control character and does not fit into a header")
		}
	}
	if c.Link != "" {
		a.link = c.Link
	} else {
		query := url.Values{}
		filled(f.cfg.Query, query.Set)
		if len(query) > 0 {
			sep := "?"
			if strings.Contains(a.link, "?") {
				sep = "&"
			}
			a.link += sep + query.Encode()
		}
	}
	if f.cfg.Method == http.MethodPost {
		quoted, _ := json.Marshal(c.Cursor) // a string always can be
		a.body = []byte(strings.ReplaceAll(f.cfg.Body, placeholder, string(quoted[1:len(quoted)-1])))
		if a.header.Get("Content-Type") == "" {
			a.header.Set("Content-Type", "application/json")
		}
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(a.link)) // it never fails
	_, _ = h.Write(a.body)
	_, _ = h.Write([]byte(c.Cursor))
	a.sum = h.Sum64()
	if c.ETag != "" && c.For == a.sum {
		a.header.Set("If-None-Match", c.ETag)
	}
	return a, nil
}

func (f *Fetcher) fetch(ctx context.Context, c *cursor, going bool) (*poll.Page, error) {
	q, err := f.ask(c)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	if f.cfg.Hold > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.cfg.Hold+holdMargin)
		defer cancel()
	}
	a, err := f.client.Do(ctx, f.cfg.Method, q.link, q.header, q.body)
	if errors.Is(err, request.ErrSilent) && f.cfg.Hold > 0 && time.Since(begin) >= f.cfg.Hold && c.Silent < maxSilent {
		c.Silent++
		return &poll.Page{}, nil
	}
	if err != nil {
		return nil, err
	}
	refused := a.Judge()
	if f.stale(c, refused) {
		return &poll.Page{More: true, Listing: c.Listing}, nil
	}
	if (a.Status == http.StatusGone || slices.Contains(f.cfg.Expired, a.Status)) && going {
		return nil, fmt.Errorf("%w: %w", refused, poll.ErrExpired)
	}
	c.Silent = 0
	if a.Status == http.StatusNotModified && q.header.Get("If-None-Match") != "" || a.Status == http.StatusNoContent {
		return &poll.Page{}, nil
	}
	if refused != nil {
		return nil, refused
	}
	return f.page(c, q, a)
}

// page takes an answer apart and moves c on.
func (f *Fetcher) page(c *cursor, q *ask, a *request.Answer) (*poll.Page, error) {
	if err := a.NotJSON(); err != nil {
		return nil, err
	}
	if _, _, err := rawjson.Elements(a.Body); err != nil {
		return nil, poll.Faultf(poll.Answer, a.Status, "the answer cannot be read: %v", err)
	}
	body := bytes.TrimSpace(bytes.TrimPrefix(a.Body, []byte("\xef\xbb\xbf")))
	items, bad := f.queries.items.Elements(body)
	if bad != nil {
		return nil, poll.Faultf(poll.Answer, a.Status, "items: %s", bad.Detail)
	}
	page := &poll.Page{Listing: c.Listing}
	for _, raw := range items {
		row, reason := f.row(raw)
		if reason != "" {
			page.Rejected = append(page.Rejected, poll.Rejected{Raw: bytes.Clone(raw), Reason: reason})
			continue
		}
		page.Rows = append(page.Rows, row)
	}
	if len(page.Rows) == 0 && len(page.Rejected) > 0 {
		return nil, poll.Faultf(poll.Configuration, a.Status, "none of %d rows can be read; the first: %s", len(page.Rejected), page.Rejected[0].Reason)
	}
	var found struct{ cursor, next, resume, more string }
	for _, x := range []struct {
		key   string
		query *custom.Query
		to    *string
		most  int
	}{
		{"cursor", f.queries.cursor, &found.cursor, maxCursor}, {"next", f.queries.next, &found.next, maxCursor}, {"resume", f.queries.resume, &found.resume, maxCursor},
		{"more", f.queries.more, &found.more, 64},
	} {
		if x.query == nil {
			continue
		}
		if *x.to, bad = x.query.Text(body); bad != nil {
			return nil, poll.Faultf(poll.Answer, a.Status, "%s: %s", x.key, bad.Detail)
		}
		if len(*x.to) > x.most {
			return nil, poll.Faultf(poll.Answer, a.Status, "%s has %d bytes; at most %d can be kept", x.key, len(*x.to), x.most)
		}
	}
	for _, to := range []struct {
		name string
		link *string
	}{{"next", &found.next}, {"resume", &found.resume}} {
		if *to.link != "" {
			var err error
			if *to.link, err = f.client.Follow(q.link, *to.link, to.name); err != nil {
				return nil, err
			}
		}
	}
	moved := found.cursor != "" && found.cursor != c.Cursor
	switch {
	case f.queries.more != nil:
		page.More = truth(found.more)
	case f.queries.next != nil:
		page.More = found.next != ""
	default:
		page.More = moved && len(items) > 0
	}
	before, began := c.place(), &mark{c.Cursor, c.Link}
	if found.cursor != "" {
		c.Cursor = found.cursor
	}
	c.ETag, c.For = "", 0
	if page.More {
		if c.Got = f.now().UTC(); c.Mark == nil {
			c.Mark = began
		}
		if c.Link, c.Next = found.next, found.next != ""; found.next == "" && found.resume != "" {
			c.Link = found.resume
		}
		return page, c.Guard.Follow(before, c.place(), len(items))
	}
	c.Guard, c.Mark, c.Again, c.Got = request.Guard{}, nil, time.Time{}, time.Time{}
	switch {
	case found.resume != "":
		c.Link, c.Next = found.resume, false
	case f.queries.resume != nil && f.queries.cursor == nil && c.Next:
		// To ask for this page again would bring no changes.
		return nil, poll.Faultf(poll.Answer, a.Status, "the last page has no link to later changes (resume), so it is not known where to go on")
	case f.queries.cursor != nil && found.cursor == "" && len(items) > 0:
		return nil, poll.Faultf(poll.Answer, a.Status, "the answer has rows and no cursor, so it is not known where to go on")
	case c.Next:
		c.Link, c.Next = "", false
	}
	page.Listed = page.Listing
	// Who has neither is read whole each time.
	c.Listing = f.queries.cursor == nil && f.queries.resume == nil
	if etag := a.Header.Get("ETag"); etag != "" && len(etag) <= 1024 && inHeader(etag) {
		if again, err := f.ask(c); err == nil && again.sum == q.sum {
			c.ETag, c.For = etag, q.sum
		}
	}
	return page, nil
}

// place is what tells two requests of one round apart.
func (c *cursor) place() string { return c.Link + "\n" + c.Cursor }

// truth reads what a source calls yes: whatever is not null, false, 0 or empty.
func truth(text string) bool {
	return text != "" && !strings.EqualFold(text, "false") && text != "0"
}

// row reads one row. A reason says why it is none.
func (f *Fetcher) row(raw []byte) (row record.Row, reason string) {
	texts := map[string]string{}
	for _, x := range []struct {
		name  string
		query *custom.Query
	}{{"version", f.queries.version}, {"modified", f.queries.modified}, {"created", f.queries.created}, {"deleted", f.queries.deleted}} {
		if x.query == nil {
			continue
		}
		text, bad := x.query.Text(raw)
		if bad != nil {
			return row, x.name + ": " + bad.Detail
		}
		texts[x.name] = text
	}
	parts := make([]string, len(f.queries.key))
	for i, q := range f.queries.key {
		text, bad := q.Text(raw)
		switch {
		case bad != nil:
			return row, fmt.Sprintf("key[%d]: %s", i, bad.Detail)
		case text == "":
			return row, fmt.Sprintf("key[%d] gives nothing: a row needs a key; name another member in poll.delta.key", i)
		}
		parts[i] = url.PathEscape(text)
	}
	row.Key = strings.Join(parts, "/")
	if len(row.Key) > maxText {
		return row, fmt.Sprintf("the key has %d bytes; want at most %d", len(row.Key), maxText)
	}
	row.Version = texts["version"]
	if f.cfg.VersionGrows && row.Version != "" {
		if _, err := strconv.ParseUint(row.Version, 10, 64); err != nil {
			return row, "version is no whole number, though versionGrows is set"
		}
		row.Ordered = true
	}
	for _, at := range []struct {
		name string
		to   *time.Time
	}{{"modified", &row.Modified}, {"created", &row.Created}} {
		if text := texts[at.name]; text != "" {
			t, err := event.ParseTime(text)
			if err != nil {
				return row, at.name + " is no RFC 3339 time; seconds since 1970 become one by | todate"
			}
			if !event.IsNullTime(t) {
				*at.to = t.UTC()
			}
		}
	}
	row.Deleted = truth(texts["deleted"])
	row.Data = raw
	if f.queries.picked != nil {
		picked, bad := f.queries.picked.Values(raw)
		switch {
		case bad != nil:
			return row, "data: " + bad.Detail
		case len(picked) == 1:
			row.Data = picked[0]
		case row.Deleted:
			row.Data = nil
		default:
			return row, fmt.Sprintf("data gives %d values; want one object", len(picked))
		}
	}
	if row.Deleted && rawjson.IsNull(row.Data) {
		row.Data = nil
	}
	if row.Data != nil && row.Data[0] != '{' {
		return row, "the row is " + rawjson.Kind(row.Data) + "; want an object (see data)"
	}
	return row, ""
}
