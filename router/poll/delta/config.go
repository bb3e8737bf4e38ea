package delta

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/poll/request"
	"github.com/gridfan/gridfan/schemas/custom"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/record"
)

// Config says how one endpoint is asked, and where in its answers things stand. What
// is an expression here is jq in the dialect of package custom: a path, most often.
type Config struct {
	// Target's URL may have a query, whose values are shown to nobody.
	request.Target

	// Method is GET or POST. Default GET.
	Method string `json:"method,omitempty"`
	// Query and Headers are added to each request, Body is that of a POST. In their
	// values, {cursor} stands for the cursor; without one, and without Start, what
	// has it is left out. In Body it is escaped for a JSON string.
	Query   map[string]string `json:"query,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
	Body    string            `json:"body,omitempty"`
	// Start is the cursor of the first request.
	Start string `json:"start,omitempty"`

	// Items gives the rows of an answer: .items[], or .items.
	Items string `json:"items"`
	// Cursor gives what {cursor} is in the next request. Next gives the link to the
	// next page, and Resume the link with which to ask for later changes; both may
	// be relative. More says whether there is a next page; by default there is one
	// if Next gives a link or, without Next, if there were rows and the cursor
	// is another. Without Cursor and Resume every poll reads all rows again.
	Cursor string `json:"cursor,omitempty"`
	Next   string `json:"next,omitempty"`
	Resume string `json:"resume,omitempty"`
	More   string `json:"more,omitempty"`

	// Key gives what names a row, each expression a part of it.
	Key []string `json:"key"`
	// Version gives what tells versions of a row apart. Default: its content does.
	Version string `json:"version,omitempty"`
	// VersionGrows says that Version is a whole number that grows with each change.
	VersionGrows bool `json:"versionGrows,omitempty"`
	// Modified and Created give times.
	Modified string `json:"modified,omitempty"`
	Created  string `json:"created,omitempty"`
	// Deleted says that a row is gone: whatever is not null, false, 0 or empty.
	Deleted string `json:"deleted,omitempty"`
	// Data gives the columns of a row, an object. Default: the row.
	Data string `json:"data,omitempty"`

	// Table is what rows are called in subjects, and Scope what stands before it,
	// or ScopeColumn the column of a row that has it.
	Table       string `json:"table"`
	Scope       string `json:"scope,omitempty"`
	ScopeColumn string `json:"scopeColumn,omitempty"`

	// Begins says that a request without a cursor gives what follows, and not all
	// rows there are.
	Begins bool `json:"begins,omitempty"`
	// Hold is how long the server holds a request for which there is nothing yet
	// (long polling). Without an answer some seconds later, nothing has changed.
	// 0: it answers at once.
	Hold time.Duration `json:"hold,omitempty"`
	// Expired are statuses, besides 410, by which the server says that it does not
	// know the cursor any more.
	Expired []int `json:"expired,omitempty"`
}

// Bounds.
const (
	maxText   = 2048
	maxBody   = 64 << 10
	maxParams = 50
	maxKeys   = 16
	maxHold   = 10 * time.Minute
	// maxCursor leaves room for links beside it.
	maxCursor = 16 << 10
)

// holdMargin is how long after Hold an answer may come: it has its way to go.
const holdMargin = 5 * time.Second

const placeholder = "{cursor}"

// taken are headers that are not the configuration's to set.
var taken = []string{
	"Authorization", "Connection", "Content-Length", "Host", "If-None-Match", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// Validate sets defaults and reports every problem, each beginning with the path of
// its key below path.
func (c *Config) Validate(path string) error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s.%s: %s", path, key, fmt.Sprintf(format, args...)))
	}
	if err := c.Target.Validate(path); err != nil {
		errs = append(errs, err)
	}
	if c.Method == "" {
		c.Method = http.MethodGet
	}
	switch {
	case c.Method != http.MethodGet && c.Method != http.MethodPost:
		bad("method", "want GET or POST, got %.20q", c.Method)
	case c.Body != "" && c.Method == http.MethodGet:
		bad("body", "a GET has none; set method: POST")
	case len(c.Body) > maxBody:
		bad("body", "want at most %d bytes, got %d", maxBody, len(c.Body))
	case strings.Contains(c.Body, placeholder) && c.Start == "":
		bad("start", "missing; want what {cursor} is in the body of the first request")
	}
	if len(c.Query) > maxParams {
		bad("query", "want at most %d, got %d", maxParams, len(c.Query))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Query)) {
		if name == "" || len(name) > maxText || len(c.Query[name]) > maxText {
			bad("query", "a name or value is empty or longer than %d bytes", maxText)
		}
	}
	if len(c.Headers) > maxParams {
		bad("headers", "want at most %d, got %d", maxParams, len(c.Headers))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		switch v := c.Headers[name]; {
		case name == "" || len(name) > 128 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "":
			bad("headers", "%.64q is not the name of a header", name)
		case slices.Contains(taken, http.CanonicalHeaderKey(name)):
			bad("headers."+name, "it is not set here; credentials belong into auth")
		case len(v) > maxText || !inHeader(v):
			bad("headers."+name, "want at most %d bytes without control characters", maxText)
		}
	}
	if len(c.Start) > maxText || !inHeader(c.Start) {
		bad("start", "want at most %d bytes without control characters", maxText)
	}
	_, err := c.compile(path)
	errs = append(errs, err)
	if c.Cursor == "" && c.Resume == "" {
		if c.Begins {
			bad("begins", "only with cursor or resume")
		}
		if slices.ContainsFunc(slices.Collect(maps.Values(c.Query)), hasCursor) || slices.ContainsFunc(slices.Collect(maps.Values(c.Headers)), hasCursor) || hasCursor(c.Body) {
			bad("cursor", "missing; want where an answer has what {cursor} stands for")
		}
	}
	if c.Cursor != "" && c.Next == "" && c.Resume == "" &&
		!slices.ContainsFunc(slices.Collect(maps.Values(c.Query)), hasCursor) && !slices.ContainsFunc(slices.Collect(maps.Values(c.Headers)), hasCursor) && !hasCursor(c.Body) {
		bad("cursor", "it is sent nowhere; put {cursor} into query, headers or body")
	}
	if c.VersionGrows && c.Version == "" {
		bad("versionGrows", "only with version")
	}
	switch {
	case c.Table == "":
		bad("table", "missing; want what rows are called in subjects, as in Shipment")
	case len(c.Table) > 128 || strings.ContainsFunc(c.Table, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		bad("table", "want at most 128 bytes without blanks, got %.64q", c.Table)
	}
	if len(c.Scope) > 128 || len(c.ScopeColumn) > 128 {
		bad("scope", "want at most 128 bytes")
	}
	if c.Hold < 0 || c.Hold > maxHold {
		bad("hold", "want up to 10m, got %s", c.Hold)
	}
	for i, status := range c.Expired {
		if status < 400 || status > 599 || status == 401 || status == 403 || status == 429 || len(c.Expired) > 20 {
			bad(fmt.Sprintf("expired[%d]", i), "want up to 20 statuses from 400 to 599 without 401, 403 and 429, got %d", status)
			break
		}
	}
	return errors.Join(errs...)
}

func hasCursor(s string) bool { return strings.Contains(s, placeholder) }

// inHeader says whether s can be a header's value.
func inHeader(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// queries are the expressions of a Config, compiled; nil for those that are empty.
type queries struct {
	items, cursor, next, resume, more           *custom.Query
	version, modified, created, deleted, picked *custom.Query
	key                                         []*custom.Query
}

func (c *Config) compile(path string) (*queries, error) {
	q := &queries{}
	var errs []error
	for _, x := range []struct {
		key, text string
		to        **custom.Query
		elements  bool
	}{
		{"items", c.Items, &q.items, true}, {"cursor", c.Cursor, &q.cursor, false}, {"next", c.Next, &q.next, false}, {"resume", c.Resume, &q.resume, false},
		{"more", c.More, &q.more, false}, {"version", c.Version, &q.version, false}, {"modified", c.Modified, &q.modified, false},
		{"created", c.Created, &q.created, false}, {"deleted", c.Deleted, &q.deleted, false}, {"data", c.Data, &q.picked, true},
	} {
		if x.text == "" {
			continue
		}
		compile := custom.CompileQuery
		if x.elements {
			compile = custom.CompileElements
		}
		var err error
		if *x.to, err = compile(x.text); err != nil {
			errs = append(errs, fmt.Errorf("%s.%s: %w", path, x.key, err))
		}
	}
	if c.Items == "" {
		errs = append(errs, fmt.Errorf("%s.items: missing; want where the rows of an answer stand, as in .items[]", path))
	}
	if len(c.Key) == 0 || len(c.Key) > maxKeys {
		errs = append(errs, fmt.Errorf("%s.key: want 1 to %d expressions that name a row, as in [.id], got %d", path, maxKeys, len(c.Key)))
		return q, errors.Join(errs...)
	}
	for i, text := range c.Key {
		x, err := custom.CompileQuery(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s.key[%d]: %w", path, i, err))
		}
		q.key = append(q.key, x)
	}
	return q, errors.Join(errs...)
}

// Redacted returns a copy without secrets: the values of the URL's query and of
// headers may be some, but for those that have the cursor.
func (c Config) Redacted() Config {
	c.Auth = c.Auth.Redacted()
	if c.URL != "" {
		c.URL = secret.URL(c.URL)
	}
	hide := func(values map[string]string) map[string]string {
		values = maps.Clone(values)
		for name, v := range values {
			if !hasCursor(v) {
				values[name] = secret.New(v).String()
			}
		}
		return values
	}
	c.Query, c.Headers, c.Body = hide(c.Query), hide(c.Headers), secret.New(c.Body).String()
	return c
}

// Identity names whom the source sees asking: its origin and the credentials.
func (c *Config) Identity() string { return c.Target.Identity() }

// Shape is what rows become events by. source is the name of the source.
func (c *Config) Shape(source string) *record.Shape {
	return &record.Shape{Kind: event.KindCustom, Source: source, Table: c.Table, Scope: c.Scope, ScopeColumn: c.ScopeColumn}
}

// secrets are the texts that nobody may see.
func (c *Config) secrets() []string {
	var all []string
	for _, values := range []map[string]string{c.Query, c.Headers} {
		for _, v := range values {
			if !hasCursor(v) {
				all = append(all, v)
			}
		}
	}
	if u, err := url.Parse(c.URL); err == nil {
		for _, values := range u.Query() {
			all = append(all, values...)
		}
	}
	// What is short is no secret, and would tear holes into every text.
	return slices.DeleteFunc(all, func(s string) bool { return len(s) < 8 })
}

// hash stands for what a cursor depends on. Credentials in it may be renewed: they
// do not count.
func (c *Config) hash() string {
	u, _, _ := strings.Cut(c.URL, "?")
	h := sha256.New()
	_ = json.NewEncoder(h).Encode([]any{
		u, c.Method, slices.Sorted(maps.Keys(c.Query)), slices.Sorted(maps.Keys(c.Headers)), c.Body, c.Start, c.Items, c.Cursor, c.Next, c.Resume, c.Key, c.Data, c.Begins,
	})
	return hex.EncodeToString(h.Sum(nil)[:8])
}
