package odata

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/router/poll/request"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/record"
)

// Config is one table of Dataverse or one entity of F&O, and how to tell what has
// changed in it.
type Config struct {
	// Kind is that of the source: event.KindDataverse or KindFnO. It is no key.
	Kind string `json:"-"`

	// Target's URL is the environment's, as in https://org.crm.dynamics.com; to a
	// URL without a path the one of the API is added: /api/data/v9.2 or /data.
	// OAuth2, managed and workload identities without a scope get the one of the
	// environment.
	request.Target

	// Table is the logical name of a Dataverse table, as in account.
	Table string `json:"table,omitempty"`
	// Entity is the name of the entity set, as in accounts or
	// PurchaseOrderHeadersV2. For Dataverse it defaults to the plural of Table.
	Entity string `json:"entity,omitempty"`
	// Cursor is how changes are found. Default: ChangeTracking for Dataverse,
	// Modified for F&O, which has no other.
	Cursor Cursor `json:"cursor,omitempty"`
	// Key are the columns that tell rows apart. For Dataverse it is one, by default
	// <table>id. For F&O it is all that the entity's key has, dataAreaId among them.
	Key []string `json:"key,omitempty"`
	// ModifiedColumn has the time of the last change. For Dataverse it defaults to
	// modifiedon, and NoColumn is for the few tables without one. Entities of F&O
	// have none, or one that is called as its maker liked: SysModifiedDateTime,
	// ModifiedDateTime1, …
	ModifiedColumn string `json:"modified,omitempty"`
	// CreatedColumn has the time of creation: a row in which it equals the time of
	// the last change is a new one. Default for Dataverse createdon, or NoColumn;
	// F&O's entities need none.
	CreatedColumn string `json:"created,omitempty"`
	// NumberColumn is a whole number that is unique in the entity, as RecId is where
	// an entity of F&O shows it. With it, rows that were modified in one second are
	// told apart at little cost.
	NumberColumn string `json:"number,omitempty"`
	// Select are the columns to read; those above are read in any case. Empty: all.
	Select []string `json:"select,omitempty"`
	// Filter is a condition in OData that rows must fulfil, the operator's own word.
	// A row that stops fulfilling it is not told. Change tracking has none.
	Filter string `json:"filter,omitempty"`
	// PageSize is how many rows one request asks for. Default 1000; Dataverse gives
	// 5,000 at most, F&O 10,000.
	PageSize int `json:"pageSize,omitempty"`
	// Overlap is how far back ModifiedOn and Version read again, for changes that
	// were committed later than their stamps say, and what ChangeTracking reads once
	// after its first reading. It is to be longer than any transaction lasts.
	// Default 5m.
	Overlap time.Duration `json:"overlap,omitempty"`
	// CrossCompany reads the rows of all companies of F&O that the credentials may
	// see. Default true; false: those of the user's own company.
	CrossCompany *bool `json:"crossCompany,omitempty"`
	// Annotations asks Dataverse for the texts of values and the tables of lookups.
	// Default true, but false with ChangeTracking: with them some versions give no
	// delta link (microsoft/powerapps-docs issue 439).
	Annotations *bool `json:"annotations,omitempty"`
}

// Cursor is a way to find changes.
type Cursor string

// The cursors, the best first.
const (
	// ChangeTracking is Dataverse's own record of changes. It alone shows deletions
	// and misses nothing, however late it is committed. The table must have "Track
	// changes" on.
	ChangeTracking Cursor = "changeTracking"
	// Version reads what has a higher versionnumber than what was highest some time
	// ago (Overlap), because a change gets its number before it is committed.
	Version Cursor = "version"
	// Modified reads what was modified since the last time, and some time (Overlap)
	// before it.
	Modified Cursor = "modified"
)

// NoColumn in the place of a column of times says that the table has none.
const NoColumn = "none"

// Bounds.
const (
	defaultPageSize    = 1000
	dataversePageSize  = 5000  // "Page results using OData", powerapps-docs; read 2026-11
	fnoPageSize        = 10000 // odata.md of unified-operations; read 2026-11
	defaultOverlap     = 5 * time.Minute
	maxOverlap         = 24 * time.Hour
	maxColumns         = 1024 // of a table of Dataverse and SQL Server
	maxName            = 128
	maxFilter          = 4096
	dataversePath      = "/api/data/v9.2"
	fnoPath            = "/data"
	defaultModified    = "modifiedon"
	defaultCreated     = "createdon"
	versionNumber      = "versionnumber"
	defaultScopeSuffix = "/.default"
)

func (c *Config) dataverse() bool { return c.Kind == event.KindDataverse }

// Validate sets defaults and reports every problem, each beginning with the path of
// its key below path. Kind is set before.
func (c *Config) Validate(path string) error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s.%s: %s", path, key, fmt.Sprintf(format, args...)))
	}
	if c.Kind != event.KindDataverse && c.Kind != event.KindFnO {
		return fmt.Errorf("%s: OData is for sources of kind %s and %s, this one's is %s; want delta or sql", path, event.KindDataverse, event.KindFnO, c.Kind)
	}
	c.complete()
	if err := c.Target.Validate(path); err != nil {
		errs = append(errs, err)
	} else if u, err := url.Parse(c.URL); err == nil && u.RawQuery != "" {
		bad("url", "a ?query is gridfan's to write; leave it out")
	}
	if c.dataverse() {
		c.validateDataverse(bad)
	} else {
		c.validateFnO(bad)
	}
	for _, n := range []struct{ key, name, want string }{
		{"entity", c.Entity, "the name of the entity set, as in PurchaseOrderHeadersV2"},
	} {
		switch {
		case n.name == "":
			if !c.dataverse() {
				bad(n.key, "missing; want %s", n.want)
			}
		case !identifier(n.name):
			bad(n.key, "want a name of letters, digits and _, got %.64q", n.name)
		}
	}
	for _, n := range []struct{ key, name string }{{"modified", c.ModifiedColumn}, {"created", c.CreatedColumn}, {"number", c.NumberColumn}} {
		if n.name != "" && !identifier(n.name) {
			bad(n.key, "want the name of a column, got %.64q", n.name)
		}
	}
	for _, list := range []struct {
		key   string
		names []string
	}{{"key", c.Key}, {"select", c.Select}} {
		if len(list.names) > maxColumns {
			bad(list.key, "want at most %d columns, got %d", maxColumns, len(list.names))
			continue
		}
		for i, name := range list.names {
			switch {
			case !identifier(name):
				bad(fmt.Sprintf("%s[%d]", list.key, i), "want the name of a column, got %.64q", name)
			case slices.Contains(list.names[:i], name):
				bad(fmt.Sprintf("%s[%d]", list.key, i), "%s stands twice", name)
			}
		}
	}
	if len(c.Filter) > maxFilter {
		bad("filter", "want at most %d bytes, got %d", maxFilter, len(c.Filter))
	} else if strings.ContainsFunc(c.Filter, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		bad("filter", "it has a control character")
	}
	most := fnoPageSize
	if c.dataverse() {
		most = dataversePageSize
	}
	if c.PageSize < 1 || c.PageSize > most {
		bad("pageSize", "want 1 to %d, got %d", most, c.PageSize)
	}
	if c.Overlap < time.Second || c.Overlap > maxOverlap {
		bad("overlap", "want 1s to 24h, got %s", c.Overlap)
	}
	return errors.Join(errs...)
}

// complete sets defaults.
func (c *Config) complete() {
	if u, err := url.Parse(c.URL); err == nil && u.Host != "" {
		if strings.Trim(u.Path, "/") == "" && u.RawQuery == "" {
			if c.dataverse() {
				c.URL = strings.TrimRight(c.URL, "/") + dataversePath
			} else {
				c.URL = strings.TrimRight(c.URL, "/") + fnoPath
			}
		}
		c.URL = strings.TrimRight(c.URL, "/")
		c.scope(u.Scheme + "://" + u.Host)
	}
	if c.PageSize == 0 {
		c.PageSize = defaultPageSize
	}
	if c.Overlap == 0 {
		c.Overlap = defaultOverlap
	}
	if !c.dataverse() {
		if c.Cursor == "" {
			c.Cursor = Modified
		}
		if c.CrossCompany == nil {
			c.CrossCompany = new(true)
		}
		return
	}
	if c.Cursor == "" {
		c.Cursor = ChangeTracking
	}
	c.Table = strings.ToLower(c.Table)
	if c.Entity == "" {
		c.Entity = plural(c.Table)
	}
	if c.Key == nil && c.Table != "" {
		c.Key = []string{c.Table + "id"}
	}
	if c.ModifiedColumn == "" {
		c.ModifiedColumn = defaultModified
	}
	if c.CreatedColumn == "" {
		c.CreatedColumn = defaultCreated
	}
	if c.Annotations == nil {
		c.Annotations = new(c.Cursor != ChangeTracking)
	}
}

// scope gives identities the scope of the environment (client credentials and
// https://<org>.crm.dynamics.com/.default: "Use OAuth authentication with Dataverse",
// powerapps-docs; read 2026-11).
func (c *Config) scope(origin string) {
	if c.Auth == nil {
		return
	}
	c.Auth = c.Auth.Clone()
	switch a := c.Auth; {
	case a.OAuth2 != nil && a.OAuth2.Scope == "" && a.OAuth2.Audience == "" && a.OAuth2.Params["resource"] == "":
		a.OAuth2.Scope = origin + defaultScopeSuffix
	case a.ManagedIdentity != nil && a.ManagedIdentity.Scope == "":
		a.ManagedIdentity = &credentials.ManagedIdentity{ClientID: a.ManagedIdentity.ClientID, Scope: origin}
	case a.WorkloadIdentity != nil && a.WorkloadIdentity.Scope == "":
		a.WorkloadIdentity = &credentials.WorkloadIdentity{ClientID: a.WorkloadIdentity.ClientID, Tenant: a.WorkloadIdentity.Tenant, Scope: origin}
	}
}

// plural is how Dataverse names the entity set of a new table.
func plural(table string) string {
	if table == "" {
		return ""
	}
	for _, end := range []string{"s", "x", "z", "ch", "sh"} {
		if strings.HasSuffix(table, end) {
			return table + "es"
		}
	}
	if inner, ok := strings.CutSuffix(table, "y"); ok && inner != "" && !strings.ContainsAny(inner[len(inner)-1:], "aeiou") {
		return inner + "ies"
	}
	return table + "s"
}

func (c *Config) validateDataverse(bad func(key, format string, args ...any)) {
	switch c.Cursor {
	case ChangeTracking:
		if c.Filter != "" {
			bad("filter", "Dataverse takes none beside change tracking; filter at the subscriber, or set cursor: version")
		}
	case Version:
	case Modified:
		if c.ModifiedColumn == NoColumn {
			bad("modified", "cursor modified needs the column; want cursor: version or changeTracking")
		}
	default:
		bad("cursor", "want changeTracking, version or modified, got %.40q", string(c.Cursor))
	}
	switch {
	case c.Table == "":
		bad("table", "missing; want the table's logical name, as in account")
	case !identifier(c.Table):
		bad("table", "want a logical name of letters, digits and _, got %.64q", c.Table)
	}
	if c.Table != "" && len(c.Key) != 1 {
		bad("key", "want one column, the table's primary key, got %d", len(c.Key))
	}
	if c.NumberColumn != "" {
		bad("number", "only F&O needs it; leave it out")
	}
	if c.CrossCompany != nil {
		bad("crossCompany", "only F&O has companies; leave it out")
	}
}

func (c *Config) validateFnO(bad func(key, format string, args ...any)) {
	if c.Cursor != Modified {
		bad("cursor", "/data has no other than modified, got %.40q; change tracking of F&O is reached through Dataverse's virtual tables, by a source of kind dataverse", string(c.Cursor))
	}
	if c.ModifiedColumn == "" || c.ModifiedColumn == NoColumn {
		bad("modified", "missing; want the entity's column with the time of the last change, as in SysModifiedDateTime. An entity without one can be read through Dataverse's virtual tables")
	}
	if len(c.Key) == 0 {
		bad("key", "missing; want the columns of the entity's key, as in [dataAreaId, PurchaseOrderNumber]")
	}
	if c.CreatedColumn == NoColumn {
		bad("created", "leave it out where the entity has none")
	}
	if c.Table != "" {
		bad("table", "F&O has entities; want entity")
	}
	if c.Annotations != nil {
		bad("annotations", "F&O has none; leave it out")
	}
}

// identifier says whether s can be a name of OData
// (OData Version 4.01 CSDL XML, §15.2 "Simple Identifier").
func identifier(s string) bool {
	return s != "" && len(s) <= maxName && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == "" && !strings.ContainsAny(s[:1], "0123456789")
}

// Redacted returns a copy without secrets.
func (c Config) Redacted() Config {
	c.Auth = c.Auth.Redacted()
	return c
}

// Identity names whom the source sees asking: its origin and the credentials. It has
// no secret in it. Sources of one Identity share the limits of the environment.
func (c *Config) Identity() string { return c.Target.Identity() }

// Shape is what rows become events by. source is the name of the source.
func (c *Config) Shape(source string) *record.Shape {
	if c.dataverse() {
		return &record.Shape{Kind: c.Kind, Source: source, Table: c.Table}
	}
	return &record.Shape{Kind: c.Kind, Source: source, Table: c.Entity, Key: c.Key}
}

// hash stands for what a cursor depends on: a link is bound to its query.
func (c *Config) hash() string {
	h := sha256.New()
	for _, part := range []string{
		c.Kind, c.URL, c.Entity, string(c.Cursor), strings.Join(c.Key, ","), strings.Join(c.columns(), ","), c.Filter,
		c.ModifiedColumn, c.CreatedColumn, c.NumberColumn, fmt.Sprint(c.CrossCompany == nil || *c.CrossCompany),
	} {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// columns gives what $select has: what was selected and what gridfan needs. None:
// all.
func (c *Config) columns() []string {
	if len(c.Select) == 0 {
		return nil
	}
	all := slices.Clone(c.Select)
	need := slices.Clone(c.Key)
	for _, name := range []string{c.ModifiedColumn, c.CreatedColumn, c.NumberColumn} {
		if name != "" && name != NoColumn {
			need = append(need, name)
		}
	}
	if c.Cursor == Version {
		need = append(need, versionNumber)
	}
	for _, name := range need {
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}
