package odata

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/poll/request"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/record"
)

// RowsConfig says where rows of a Dataverse are read one by one.
type RowsConfig struct {
	// Target's URL is as Config's.
	request.Target
	// Table is one whose entity set, key and columns are known; nil: all are asked
	// for.
	Table *Config
}

// Validate sets defaults and reports every problem, each beginning with the path of
// its key below path. Table is valid, if it is there.
func (c *RowsConfig) Validate(path string) error {
	as := Config{Kind: event.KindDataverse, Target: c.Target}
	as.complete()
	c.Target = as.Target
	if err := c.Target.Validate(path); err != nil {
		return err
	}
	if u, err := url.Parse(c.URL); err == nil && u.RawQuery != "" {
		return fmt.Errorf("%s.url: a ?query is gridfan's to write; leave it out", path)
	}
	return nil
}

// Redacted returns a copy without secrets.
func (c RowsConfig) Redacted() RowsConfig {
	c.Auth = c.Auth.Redacted()
	if c.Table != nil {
		c.Table = new(c.Table.Redacted())
	}
	return c
}

// Rows reads rows of tables of Dataverse one by one, as they are now. It is safe for
// concurrent use.
type Rows struct {
	cfg       RowsConfig
	client    *request.Client
	allowance *poll.Allowance
	timeout   time.Duration // of a request

	mu     sync.Mutex // guards tables
	tables map[string]*Fetcher
}

// maxTables bounds the tables that are remembered; an environment has some hundreds.
const maxTables = 10_000

// NewRows makes Rows of a valid cfg, whose requests take no longer than timeout each
// and wait for the allowance. It asks for nothing yet. The caller closes it.
func NewRows(cfg RowsConfig, allowance *poll.Allowance, timeout time.Duration, opts request.Options) (*Rows, error) {
	client, err := request.New(cfg.Target, opts)
	if err != nil {
		return nil, err
	}
	r := &Rows{cfg: cfg, client: client, allowance: allowance, timeout: timeout, tables: map[string]*Fetcher{}}
	if t := cfg.Table; t != nil {
		known := *t
		known.Target, known.Annotations = cfg.Target, new(true)
		r.tables[known.Table] = &Fetcher{cfg: known, client: client, now: time.Now}
	}
	return r, nil
}

// Close ends connections. No Row follows.
func (r *Rows) Close() { r.client.Close() }

// Row reads one row of a table as it is now. Of a row that is gone the result is
// Deleted. Errors are those of a poll.Fetcher, or ctx's.
func (r *Rows) Row(ctx context.Context, table, id string) (record.Row, error) {
	id = strings.ToLower(strings.Trim(id, "{}"))
	if len(id) != 36 || strings.Trim(id, "0123456789abcdef-") != "" {
		return record.Row{}, poll.Faultf(poll.Configuration, 0, "%.64q is not the id of a row", id)
	}
	f, err := r.table(ctx, strings.ToLower(table))
	if err != nil {
		return record.Row{}, err
	}
	link := f.cfg.URL + "/" + f.cfg.Entity + "(" + id + ")"
	if columns := f.cfg.columns(); columns != nil {
		link += "?" + parameters("$select", strings.Join(columns, ","))
	}
	a, err := r.ask(ctx, link)
	if gone := (*goneError)(nil); errors.As(err, &gone) {
		return record.Row{Key: id, Deleted: true}, nil
	}
	if err != nil {
		return record.Row{}, err
	}
	row, reason := f.row(a.Body)
	if reason == "" && row.Key != id {
		reason = "the answer is another row than the one that was asked for"
	}
	if reason != "" {
		return record.Row{}, poll.Faultf(poll.Answer, a.Status, "%s", reason)
	}
	return row, nil
}

// goneError says that there is no such row.
type goneError struct{ error }

func (e *goneError) Unwrap() error { return e.error }

// ask makes one request when the allowance lets it.
func (r *Rows) ask(ctx context.Context, link string) (*request.Answer, error) {
	if err := r.allowance.Wait(ctx); err != nil {
		return nil, err
	}
	began := time.Now()
	limited, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	header := http.Header{
		"Accept": {"application/json"}, "Odata-Maxversion": {"4.0"}, "Odata-Version": {"4.0"},
		"Prefer": {`odata.include-annotations="*"`},
	}
	a, err := r.client.Do(limited, http.MethodGet, link, header, nil)
	if err != nil {
		return nil, err
	}
	if a.Status == http.StatusNotFound && notFound(a.Refusal().Code) {
		return nil, &goneError{a.Judge()}
	}
	err = a.Judge()
	if throttled, ok := errors.AsType[*poll.Throttled](err); ok {
		r.allowance.Throttled(began, throttled.After)
	}
	if err == nil {
		err = a.NotJSON()
	}
	if err != nil {
		return nil, err
	}
	if body := bytes.TrimSpace(a.Body); len(body) == 0 || body[0] != '{' {
		return nil, poll.Faultf(poll.Answer, a.Status, "the answer is no row")
	}
	return a, nil
}

// table finds out what a table's rows are read by: its entity set and its key. Neither
// follows from its name: rows of table task are in tasks, and their key is activityid
// ("Retrieve table definitions by name or MetadataId" and the reference of
// EntityMetadata, learn.microsoft.com; read 2026-11).
func (r *Rows) table(ctx context.Context, name string) (*Fetcher, error) {
	r.mu.Lock()
	f := r.tables[name]
	r.mu.Unlock()
	if f != nil {
		return f, nil
	}
	if !identifier(name) {
		return nil, poll.Faultf(poll.Configuration, 0, "%.64q is not the name of a table", name)
	}
	a, err := r.ask(ctx, r.cfg.URL+"/EntityDefinitions(LogicalName='"+name+"')?"+parameters("$select", "LogicalName,EntitySetName,PrimaryIdAttribute"))
	if err != nil {
		if gone := (*goneError)(nil); errors.As(err, &gone) {
			err = poll.Faultf(poll.Configuration, http.StatusNotFound, "the source knows no table %s", name)
		}
		return nil, err
	}
	var d struct{ LogicalName, EntitySetName, PrimaryIDAttribute string }
	if err := json.Unmarshal(a.Body, &d); err != nil || !strings.EqualFold(d.LogicalName, name) || !identifier(d.EntitySetName) || !identifier(d.PrimaryIDAttribute) {
		return nil, poll.Faultf(poll.Answer, a.Status, "the definition of table %s does not name its entity set and key", name)
	}
	cfg := Config{Kind: event.KindDataverse, Target: r.cfg.Target, Table: name, Entity: d.EntitySetName, Key: []string{d.PrimaryIDAttribute}, Annotations: new(true)}
	cfg.complete()
	f = &Fetcher{cfg: cfg, client: r.client, now: time.Now}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.tables) >= maxTables {
		clear(r.tables)
	}
	r.tables[name] = f
	return f, nil
}
