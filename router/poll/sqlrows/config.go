package sqlrows

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // a container without zones has none that table.timezone could name
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/microsoft/go-mssqldb/msdsn"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/secret"
)

// Config is one table of a database, and how to tell what has changed in it.
type Config struct {
	Driver Driver `json:"driver"`
	// DSN is the connection string of the driver: a URL, or keywords with values. It
	// may hold the password.
	DSN secret.String `json:"dsn"`
	// Auth is an identity of Azure whose tokens take the place of a password. Nil:
	// the DSN says who gridfan is.
	Auth  *credentials.AzureAuth `json:"auth,omitempty"`
	Table Table                  `json:"table"`
	// Cursor tells how changes are found.
	Cursor Cursor `json:"cursor"`
	// PageSize is how many rows one query reads at most. Default 1000, which is some
	// hundred KiB of ordinary rows.
	PageSize int `json:"pageSize"`
	// MaxBytes is how many bytes of rows one query reads at most. A page ends before
	// it would be longer, and a single row that is longer is a fault. Default 64 MiB.
	MaxBytes int64 `json:"maxBytes"`
	// Timeout is how long one page may take, on the server, too. Default 30s.
	Timeout time.Duration `json:"timeout"`
}

// Driver is a kind of database.
type Driver string

// The drivers.
const (
	Postgres  Driver = "postgres"  // PostgreSQL 13 or later
	SQLServer Driver = "sqlserver" // SQL Server 2016 or later, Azure SQL
)

// Schema is where tables are that name none.
func (d Driver) Schema() string {
	if d == SQLServer {
		return "dbo"
	}
	return "public"
}

// Table is a table or view, and which of its rows and columns are read. Names are
// as the catalogue spells them, without quotes.
type Table struct {
	// Schema defaults to public for PostgreSQL and to dbo for SQL Server.
	Schema string `json:"schema"`
	Name   string `json:"name"`
	// Key are the columns that tell rows apart.
	Key []string `json:"key"`
	// Columns are what rows have, besides the key. Empty: all.
	Columns []string `json:"columns,omitempty"`
	// Filter is a condition in the database's SQL that rows must fulfil, the
	// operator's own word: it becomes part of the queries as it is. A row that stops
	// fulfilling it is not told.
	Filter string `json:"filter,omitempty"`
	// Created and Modified are columns with the times of a row. Modified defaults to
	// the cursor's column where that is a time.
	Created  string `json:"created,omitempty"`
	Modified string `json:"modified,omitempty"`
	// Timezone is the IANA zone of times whose column has none. Default UTC.
	Timezone string `json:"timezone"`
}

// Cursor is how changes are found.
type Cursor struct {
	Kind Kind `json:"kind"`
	// Column carries the cursor. ChangeTracking has none, and BYOD's defaults to
	// SYNCSTARTDATETIME.
	Column string `json:"column,omitempty"`
	// Overlap is how far behind the newest time Timestamp and BYOD read again: longer
	// than any transaction lasts and the clocks of those who write differ. Default
	// 5m; for BYOD 1h, because its times are those at which an export began.
	Overlap time.Duration `json:"overlap,omitempty"`
}

// Kind is a way to find changes.
type Kind string

// The kinds. All but Timestamp and BYOD miss no change, whenever it is committed;
// only ChangeTracking shows deletions.
const (
	// Transaction is PostgreSQL's: a column of type xid8 (or bigint) that a trigger
	// sets to pg_current_xact_id().
	Transaction Kind = "transaction"
	// RowVersion is SQL Server's: a column of type rowversion.
	RowVersion Kind = "rowversion"
	// ChangeTracking is SQL Server's own record of changes.
	ChangeTracking Kind = "changeTracking"
	// Timestamp is a column with the time of the last change. What is committed later
	// than Overlap after its time is missed.
	Timestamp Kind = "timestamp"
	// BYOD is a table that Finance and Operations exports to: SYNCSTARTDATETIME tells
	// its exports apart, and a full push deletes and inserts all rows.
	BYOD Kind = "byod"
)

// Defaults and bounds.
const (
	defaultPageSize = 1000
	maxPageSize     = 100_000
	defaultMaxBytes = 64 << 20
	maxMaxBytes     = 1 << 30 // neither database has larger values than 1 and 2 GiB
	minMaxBytes     = 64 << 10
	defaultTimeout  = 30 * time.Second
	maxTimeout      = 10 * time.Minute
	defaultOverlap  = 5 * time.Minute
	byodOverlap     = time.Hour
	maxOverlap      = 7 * 24 * time.Hour
	maxKey          = 16 // as many as an index has in SQL Server; 32 in PostgreSQL
	maxColumns      = 1600
	maxFilter       = 4 << 10
	maxName         = 128 // SQL Server's; PostgreSQL has 63
	maxDSN          = 4 << 10
)

// byodColumn is the one that an export to one's own database stamps its rows with.
const byodColumn = "SYNCSTARTDATETIME"

// volatile are the columns that such an export changes in rows that are otherwise
// what they were (learn.microsoft.com, fin-ops-core/dev-itpro/analytics/
// export-entities-to-your-own-database; read 2026-11).
var volatile = []string{byodColumn, "EXECUTIONID"}

// Validate sets defaults and reports every problem, each beginning with the path of
// its key below path. It connects to nothing.
func (c *Config) Validate(path string) error {
	var errs []error
	report := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s"+key+": "+format, append([]any{path}, args...)...))
	}
	switch c.Driver {
	case Postgres, SQLServer:
		if err := c.validDSN(); err != nil {
			report(".dsn", "%w", err)
		}
	case "":
		report(".driver", "missing; want %s or %s", Postgres, SQLServer)
	default:
		report(".driver", "want %s or %s, got %q", Postgres, SQLServer, string(c.Driver))
	}
	if c.Auth != nil {
		if err := c.Auth.Validate(path+".auth", credentials.AzureIdentities...); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, c.Table.validate(path+".table", c.Driver), c.Cursor.validate(path+".cursor", c.Driver))
	bounded(report, ".pageSize", &c.PageSize, defaultPageSize, 1, maxPageSize)
	bounded(report, ".maxBytes", &c.MaxBytes, defaultMaxBytes, minMaxBytes, maxMaxBytes)
	bounded(report, ".timeout", &c.Timeout, defaultTimeout, time.Second, maxTimeout)
	return errors.Join(errs...)
}

// bounded sets a default and checks the bounds.
func bounded[T int | int64 | time.Duration](report func(string, string, ...any), key string, v *T, fallback, least, most T) {
	switch {
	case *v == 0:
		*v = fallback
	case *v < least || *v > most:
		report(key, "want %v to %v, got %v", least, most, *v)
	}
}

func (t *Table) validate(path string, d Driver) error {
	var errs []error
	report := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s"+key+": "+format, append([]any{path}, args...)...))
	}
	if t.Schema == "" {
		t.Schema = d.Schema()
	}
	name := func(key, s string) {
		switch {
		case s == "":
			report(key, "missing; want a name")
		case !validName(s):
			report(key, "a name has 1 to %d printable characters, got %q", maxName, short(s))
		}
	}
	name(".schema", t.Schema)
	if t.Name == "" {
		report(".name", "missing; want the table's name, without its schema")
	} else {
		name(".name", t.Name)
	}
	switch {
	case len(t.Key) == 0:
		report(".key", "missing; want the columns that tell rows apart, as its primary key does")
	case len(t.Key) > maxKey:
		report(".key", "want at most %d columns, got %d", maxKey, len(t.Key))
	}
	if len(t.Columns) > maxColumns {
		report(".columns", "want at most %d columns, got %d", maxColumns, len(t.Columns))
	}
	for _, list := range []struct {
		key  string
		all  []string
		seen map[string]bool
	}{{".key", t.Key, map[string]bool{}}, {".columns", t.Columns, map[string]bool{}}} {
		for i, s := range list.all {
			at := fmt.Sprintf("%s[%d]", list.key, i)
			name(at, s)
			if list.seen[s] {
				report(at, "%q is there twice; keep one", short(s))
			}
			list.seen[s] = true
		}
	}
	if t.Created != "" {
		name(".created", t.Created)
	}
	if t.Modified != "" {
		name(".modified", t.Modified)
	}
	switch {
	case len(t.Filter) > maxFilter:
		report(".filter", "want at most %d bytes, got %d; a view can hold a longer condition", maxFilter, len(t.Filter))
	case !utf8.ValidString(t.Filter) || strings.ContainsFunc(t.Filter, func(r rune) bool { return unicode.IsControl(r) && !unicode.IsSpace(r) }):
		report(".filter", "want printable text")
	case strings.Contains(t.Filter, ";") && !strings.Contains(t.Filter, "'"):
		report(".filter", "want one condition, as after WHERE, without a semicolon")
	}
	if t.Timezone == "" {
		t.Timezone = "UTC"
	}
	if _, err := time.LoadLocation(t.Timezone); err != nil || t.Timezone == "Local" {
		report(".timezone", "want an IANA name such as Europe/Berlin, got %q", short(t.Timezone))
	}
	return errors.Join(errs...)
}

func (c *Cursor) validate(path string, d Driver) error {
	var errs []error
	report := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s"+key+": "+format, append([]any{path}, args...)...))
	}
	kinds := map[Driver][]Kind{Postgres: {Transaction, Timestamp, BYOD}, SQLServer: {ChangeTracking, RowVersion, Timestamp, BYOD}}[d]
	switch {
	case c.Kind == "":
		report(".kind", "missing; want one of %s", join(kinds))
	case kinds != nil && !slices.Contains(kinds, c.Kind):
		report(".kind", "want one of %s with %s, got %q", join(kinds), d, short(string(c.Kind)))
	}
	if c.Kind == BYOD && c.Column == "" {
		c.Column = byodColumn
	}
	switch {
	case c.Kind == ChangeTracking && c.Column != "":
		report(".column", "%s has none; remove the key", c.Kind)
	case c.Kind == ChangeTracking:
	case c.Kind == "" && c.Column == "": // which one it is depends on kind
	case c.Column == "":
		report(".column", "missing; want the column that %s reads", c.Kind)
	case !validName(c.Column):
		report(".column", "a name has 1 to %d printable characters, got %q", maxName, short(c.Column))
	}
	switch {
	case c.Kind == Timestamp:
		bounded(report, ".overlap", &c.Overlap, defaultOverlap, time.Second, maxOverlap)
	case c.Kind == BYOD:
		bounded(report, ".overlap", &c.Overlap, byodOverlap, time.Second, maxOverlap)
	case c.Kind == "": // whether there is one depends on kind
	case c.Overlap != 0:
		report(".overlap", "%s misses nothing that comes late; remove the key", c.Kind)
	}
	return errors.Join(errs...)
}

func join(kinds []Kind) string {
	all := make([]string, len(kinds))
	for i, k := range kinds {
		all[i] = string(k)
	}
	if len(all) == 0 {
		return "the kinds of the driver"
	}
	return strings.Join(all, ", ")
}

func validName(s string) bool {
	return s != "" && len(s) <= maxName && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// short bounds what an error repeats.
func short(s string) string {
	if len(s) <= 64 {
		return s
	}
	return strings.ToValidUTF8(s[:64], "") + "…"
}

// address is where a DSN leads, and for whom.
type address struct {
	host     string
	port     uint16
	database string
	user     string
	password string
}

// Errors of connection strings repeat nothing of them: they hold passwords.
var (
	errNoDSN    = errors.New("missing; want the driver's connection string, a reference such as ${env:ORDERS_DSN}")
	errLongDSN  = fmt.Errorf("want at most %d bytes", maxDSN)
	errPostgres = errors.New("it is no connection string of PostgreSQL; want postgres://USER:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full, with what is special in the password percent-encoded, or host=… port=… user=… password=… dbname=…")
	errServer   = errors.New("it is no connection string of SQL Server; want sqlserver://USER:PASSWORD@HOST:1433?database=DATABASE&encrypt=true, with what is special in the password percent-encoded, or server=…;user id=…;password=…;database=…")
	errNoHost   = errors.New("it names no host; what the environment names is not used")
	errNoBase   = errors.New("it names no database")
	errPassword = errors.New("it has a password although auth gets tokens; keep one of the two")
)

func (c Config) validDSN() error {
	dsn := c.DSN.Reveal()
	switch {
	case dsn == "":
		return errNoDSN
	case len(dsn) > maxDSN:
		return errLongDSN
	}
	a, err := c.address()
	switch {
	case err != nil:
		return err
	case a.host == "":
		return errNoHost
	case a.database == "":
		return errNoBase
	case c.Auth != nil && a.password != "":
		return errPassword
	}
	return nil
}

func (c Config) address() (address, error) {
	if c.Driver == SQLServer {
		p, err := c.sqlserver()
		if err != nil {
			return address{}, errServer
		}
		host := p.Host
		if p.Instance != "" {
			host += "\\" + p.Instance
		}
		return address{host: host, port: uint16(p.Port), database: p.Database, user: p.User, password: p.Password}, nil
	}
	p, err := c.postgres()
	if err != nil {
		return address{}, err
	}
	return address{host: p.Host, port: p.Port, database: p.Database, user: p.User, password: p.Password}, nil
}

var (
	keywordHost = regexp.MustCompile(`(?:^|\s)(?:host|hostaddr)\s*=`)
	keywordTLS  = regexp.MustCompile(`(?:^|\s)sslmode\s*=`)
	keywordBase = regexp.MustCompile(`(?:^|\s)dbname\s*=`)
)

// postgres parses the DSN. Where it says nothing of TLS and leads to another
// machine, the server has to prove who it is: what the driver does by itself
// ("prefer") sends the password to whoever answers.
func (c Config) postgres() (*pgx.ConnConfig, error) {
	dsn := c.DSN.Reveal()
	var host, base, secure bool
	u, err := url.Parse(dsn)
	isURL := strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://")
	if isURL {
		if err != nil {
			return nil, errPostgres
		}
		q := u.Query()
		host, base, secure = u.Host != "" || q.Has("host"), strings.Trim(u.Path, "/") != "" || q.Has("dbname"), q.Has("sslmode")
	} else {
		host, base, secure = keywordHost.MatchString(dsn), keywordBase.MatchString(dsn), keywordTLS.MatchString(dsn)
	}
	switch {
	case !isURL && !strings.Contains(dsn, "="):
		return nil, errPostgres
	case !host:
		return nil, errNoHost
	case !base:
		return nil, errNoBase
	}
	p, err := pgx.ParseConfig(dsn)
	if err == nil && !secure && !local(p.Host) {
		if isURL {
			q := u.Query()
			q.Set("sslmode", "verify-full")
			u.RawQuery = q.Encode()
			dsn = u.String()
		} else {
			dsn += " sslmode=verify-full"
		}
		p, err = pgx.ParseConfig(dsn)
	}
	if err != nil {
		return nil, errPostgres
	}
	return p, nil
}

// sqlserver parses the DSN. Where it says nothing of TLS and leads to another
// machine, everything is encrypted for a server that proves who it is: what the
// driver does by itself encrypts the login alone, for whoever answers.
func (c Config) sqlserver() (msdsn.Config, error) {
	dsn := c.DSN.Reveal()
	p, err := msdsn.Parse(dsn)
	if err != nil {
		return msdsn.Config{}, err
	}
	if _, ok := p.Parameters[msdsn.Encrypt]; !ok && !local(p.Host) {
		switch {
		case strings.HasPrefix(dsn, "sqlserver://") && strings.Contains(dsn, "?"):
			dsn += "&encrypt=true"
		case strings.HasPrefix(dsn, "sqlserver://"):
			dsn += "?encrypt=true"
		default:
			dsn = strings.TrimRight(dsn, "; ") + ";encrypt=true"
		}
		if p, err = msdsn.Parse(dsn); err != nil {
			return msdsn.Config{}, err
		}
	}
	p.LogFlags = 0 // it would log what rows hold
	return p, nil
}

// local says whether a host is this machine: TLS would protect from nobody.
func local(host string) bool {
	if host == "localhost" || host == "." || strings.HasPrefix(host, "/") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Host is where the database is, with its port if the DSN has one; empty unless c is
// valid.
func (c Config) Host() string {
	a, err := c.address()
	if err != nil {
		return ""
	}
	if a.port == 0 { // the driver's default, or what the browser of an instance says
		return a.host
	}
	return net.JoinHostPort(a.host, strconv.Itoa(int(a.port)))
}

// Identity names who the database sees asking, without a secret: host, database and
// user. Empty unless c is valid.
func (c Config) Identity() string {
	a, err := c.address()
	if err != nil {
		return ""
	}
	user := a.user
	if c.Auth != nil {
		user += fmt.Sprint(c.Auth.Methods())
	}
	return fmt.Sprintf("%s://%s@%s/%s", c.Driver, user, c.Host(), a.database)
}

// Redacted returns c without its secrets.
func (c Config) Redacted() Config {
	c.DSN = secret.New(c.DSN.String())
	if c.Auth != nil {
		a := c.Auth.Redacted()
		c.Auth = &a
	}
	return c
}

// digest stands for what a cursor depends on: whose rows are read, how, and what of
// them. Passwords, sizes and times are not among that.
func (c Config) digest() string {
	a, err := c.address()
	if err != nil {
		return "" // c is valid
	}
	b, err := json.Marshal(struct {
		Driver             Driver
		Host, Base         string
		Table              Table
		CursorKind         Kind
		CursorColumn, Note string
	}{c.Driver, c.Host(), a.database, c.Table, c.Cursor.Kind, c.Cursor.Column, "1"})
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:12])
}
