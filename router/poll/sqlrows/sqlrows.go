// Package sqlrows polls tables of PostgreSQL and SQL Server (and Azure SQL).
//
// A first reading takes all rows in the order of their key. Where changes begin that
// it may have missed is noted before it starts. Then each round reads what has changed
// since, in the order of the changes, up to a bound that is taken when it begins.
// What the bound is makes the difference (see Kind):
//
//   - Transaction and RowVersion stop below the oldest transaction that has not ended.
//     A change that is committed late is above the bound and comes with the next
//     round; none can come from below. One forgotten transaction holds the bound
//     back, which Page.Bound tells.
//   - ChangeTracking reads what the server has recorded of committed transactions,
//     deletions among it. What it has forgotten is poll.ErrExpired.
//   - Timestamp and BYOD read an overlap again in each round, unless an aggregate
//     says that nothing in it has changed. What is committed later than that is
//     missed.
//
// A counter that goes backwards, or a PostgreSQL server that has become another one,
// is poll.ErrExpired, too: the database was restored, or another one has taken over.
//
// Every page is a transaction of its own that changes nothing, with a timeout on the
// server, and is bounded by rows and by bytes. Names are quoted; what comes from rows
// is a parameter. Nothing secret is in an error: the connection string's secrets are
// struck from all that a database says.
package sqlrows

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/schemas/record"
)

// Fetcher reads one table. It is not safe for concurrent use, as poll.Fetcher says.
type Fetcher struct {
	c      Config
	d      dialect
	db     *sql.DB
	creds  *credentials.Credentials
	hide   *strings.Replacer
	digest string
	zone   *time.Location

	mayAsk  bool // the server may be asked who it is
	asked   bool // mayAsk is known
	waiting waiting
}

var _ poll.Fetcher = (*Fetcher)(nil)

// Options are what a Fetcher is told besides its Config.
type Options struct {
	// Log gets what happens to tokens. Nil means nothing.
	Log *slog.Logger

	connect func(Config) (*sql.DB, error) // stands in for the driver, in tests
}

// idleConnection is how long a connection is kept without use: longer than the
// shortest interval of polls, and not for as long as the longest.
const idleConnection = 30 * time.Second

// connectionLife bounds how old a connection becomes, so that it follows a server
// that has moved.
const connectionLife = 15 * time.Minute

// New makes a Fetcher of a valid Config. It connects to nothing yet. The caller
// closes it.
func New(c Config, opts Options) (*Fetcher, error) {
	f := &Fetcher{c: c, d: postgres{}, digest: c.digest(), hide: c.secrets()}
	if c.Driver == SQLServer {
		f.d = sqlserver{}
	}
	var err error
	if f.zone, err = time.LoadLocation(c.Table.Timezone); err != nil {
		return nil, err
	}
	if c.Auth != nil {
		f.creds = c.Auth.Credentials(opts.Log)
	}
	if opts.connect != nil {
		f.db, err = opts.connect(c)
	} else {
		f.db, err = f.d.open(c, f.creds)
	}
	if err != nil {
		f.closeCredentials()
		return nil, f.fault(context.Background(), err)
	}
	f.db.SetMaxOpenConns(1)
	f.db.SetMaxIdleConns(1)
	f.db.SetConnMaxIdleTime(idleConnection)
	f.db.SetConnMaxLifetime(connectionLife)
	return f, nil
}

// Close ends the connection.
func (f *Fetcher) Close() {
	_ = f.db.Close() // there is nobody to tell, and nothing was written
	f.closeCredentials()
}

func (f *Fetcher) closeCredentials() {
	if f.creds != nil {
		f.creds.Close()
	}
}

// Fetch reads one page; see poll.Fetcher.
func (f *Fetcher) Fetch(ctx context.Context, cursor json.RawMessage) (*poll.Page, error) {
	s, err := f.state(cursor)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	// The server gives up first and says why.
	ctx, cancel := context.WithTimeout(ctx, f.c.Timeout+connectGrace)
	defer cancel()
	tx, err := f.d.begin(ctx, f.db, f.c)
	if err != nil {
		return nil, f.fault(ctx, err)
	}
	r := &reading{f: f, ctx: ctx, cancel: cancel, tx: tx, began: began, s: s}
	page, err := r.page()
	if err != nil {
		err = f.fault(ctx, err) // before Rollback: it asks ctx why
	}
	_ = tx.Rollback() // it has changed nothing
	return page, err
}

// connectGrace is what connecting and the answer's way may take besides the query.
const connectGrace = 10 * time.Second

// Rewind gives the cursor that reads what has changed since a time. Only cursors of
// times can.
func (f *Fetcher) Rewind(ctx context.Context, to time.Time) (json.RawMessage, error) {
	if f.c.Cursor.Kind != Timestamp && f.c.Cursor.Kind != BYOD {
		return nil, errNoTimes
	}
	ctx, cancel := context.WithTimeout(ctx, f.c.Timeout+connectGrace)
	defer cancel()
	tx, err := f.d.begin(ctx, f.db, f.c)
	if err != nil {
		return nil, f.fault(ctx, err)
	}
	defer func() { _ = tx.Rollback() }()
	r := &reading{f: f, ctx: ctx, tx: tx, began: time.Now()}
	if err := r.describe(); err != nil {
		return nil, f.fault(ctx, err)
	}
	return (&state{Of: f.digest, Top: below(to.Add(time.Second).In(f.zone), r.p.cursor)}).encode()
}

var errNoTimes = errors.New("its cursor cannot go back to a time")

// reading is one page in the making.
type reading struct {
	f      *Fetcher
	ctx    context.Context
	cancel context.CancelFunc
	tx     *sql.Tx
	began  time.Time
	s      *state
	p      *plan
}

func (r *reading) page() (*poll.Page, error) {
	switch r.f.c.Cursor.Kind {
	case Transaction, RowVersion:
		return r.counted()
	case ChangeTracking:
		return r.tracked()
	default:
		return r.stamped()
	}
}

// counted reads by a counter of transactions or row versions.
func (r *reading) counted() (*poll.Page, error) {
	// First of all: see sqlserverBound.
	low, high, err := r.bound()
	if err != nil {
		return nil, err
	}
	server, err := r.server()
	if err != nil {
		return nil, err
	}
	if err := r.describe(); err != nil {
		return nil, err
	}
	s := r.s
	if s == nil {
		s = &state{Of: r.f.digest, Listing: true, Lo: low, Server: server}
		s.seen(high, r.began)
	}
	if low < s.Lo || low < s.Hi || s.Server != "" && server != "" && s.Server != server {
		return nil, poll.ErrExpired
	}
	s.Server = server
	if s.Listing {
		return r.list(s)
	}
	s.seen(high, r.began)
	if s.Hi == 0 {
		s.Hi = low
	}
	if s.Hi == s.Lo {
		s.Hi = 0
		return r.finish(s, &poll.Page{})
	}
	text, args := r.p.span(strconv.FormatUint(s.Lo, 10), strconv.FormatUint(s.Hi, 10), false, s.After, r.f.c.PageSize+1)
	page, err := r.read(text, args, s, false)
	if err != nil {
		return nil, err
	}
	if !page.More {
		s.Lo, s.Hi, s.After = s.Hi, 0, nil
	}
	return r.finish(s, page)
}

// bound asks up to where all is committed, and where the counter is now.
func (r *reading) bound() (low, high uint64, err error) {
	text := postgresBound
	if r.f.c.Driver == SQLServer {
		text = sqlserverBound
	}
	var a, b string
	if err := r.tx.QueryRowContext(r.ctx, text).Scan(&a, &b); err != nil {
		return 0, 0, err
	}
	if low, err = counter(a); err != nil {
		return 0, 0, err
	}
	high, err = counter(b)
	return low, max(low, high), err
}

// server asks PostgreSQL which one it is; empty if it may not be asked.
func (r *reading) server() (string, error) {
	if r.f.c.Driver != Postgres {
		return "", nil
	}
	if !r.f.asked {
		if err := r.tx.QueryRowContext(r.ctx, postgresMayAsk).Scan(&r.f.mayAsk); err != nil {
			return "", err
		}
		r.f.asked = true
	}
	var id string
	if !r.f.mayAsk {
		return "", nil
	}
	err := r.tx.QueryRowContext(r.ctx, postgresServer).Scan(&id)
	return id, err
}

// tracked reads SQL Server's change tracking.
func (r *reading) tracked() (*poll.Page, error) {
	table := r.f.d.quote(r.f.c.Table.Schema) + "." + r.f.d.quote(r.f.c.Table.Name)
	var now, oldest sql.NullString
	if err := r.tx.QueryRowContext(r.ctx, sqlserverVersions, table).Scan(&now, &oldest); err != nil {
		return nil, err
	}
	if err := r.describe(); err != nil { // says more, if there is no such table
		return nil, err
	}
	switch {
	case !now.Valid:
		return nil, configuration("change tracking is off in this database; run ALTER DATABASE CURRENT SET CHANGE_TRACKING = ON (CHANGE_RETENTION = 7 DAYS, AUTO_CLEANUP = ON)")
	case !oldest.Valid:
		return nil, configuration("change tracking is off for %s, or not to be seen; run ALTER TABLE %s ENABLE CHANGE_TRACKING, and GRANT VIEW CHANGE TRACKING and SELECT on it", table, table)
	}
	if primary := slices.Sorted(slices.Values(r.primary())); !slices.Equal(primary, slices.Sorted(slices.Values(r.f.c.Table.Key))) {
		return nil, configuration("change tracking knows rows by the primary key; set table.key to %s", strings.Join(r.primary(), ", "))
	}
	high, err := counter(now.String)
	if err != nil {
		return nil, err
	}
	low, err := counter(oldest.String)
	if err != nil {
		return nil, err
	}
	s := r.s
	if s == nil {
		s = &state{Of: r.f.digest, Listing: true, Lo: high}
	}
	if low > s.Lo || high < s.Lo || high < s.Hi {
		return nil, poll.ErrExpired
	}
	if s.Listing {
		return r.list(s)
	}
	if s.Hi == 0 {
		s.Hi = high
	}
	if s.Hi == s.Lo {
		s.Hi = 0
		return r.finish(s, &poll.Page{Bound: r.began})
	}
	text, args := r.p.tracked(s.Lo, s.Hi, s.After, r.f.c.PageSize+1)
	page, err := r.read(text, args, s, true)
	if err != nil {
		return nil, err
	}
	if !page.More {
		// Nothing is committed between the version and the state that is read.
		if s.Hi == high {
			page.Bound = r.began
		}
		s.Lo, s.Hi, s.After = s.Hi, 0, nil
	}
	return r.finish(s, page)
}

func (r *reading) primary() []string {
	var all []string
	for _, c := range r.p.table {
		if c.primary {
			all = append(all, c.name)
		}
	}
	return all
}

// stamped reads by times.
func (r *reading) stamped() (*poll.Page, error) {
	if err := r.describe(); err != nil {
		return nil, err
	}
	s := r.s
	if s == nil {
		s = &state{Of: r.f.digest, Listing: true}
	}
	from, err := r.from(s)
	if err != nil {
		return nil, err
	}
	byod := r.f.c.Cursor.Kind == BYOD
	if s.After == nil || byod {
		t, err := r.tail(from, s.Top, byod)
		if err != nil {
			return nil, err
		}
		if byod {
			if err := r.f.waiting.check(s, t, r.began); err != nil {
				return nil, err
			}
		}
		if s.After == nil {
			r.begin(s, t)
			if !s.Listing && s.Next == s.Print {
				s.End, s.Cap, s.Next = "", "", ""
				return r.finish(s, &poll.Page{})
			}
		}
	}
	if s.Listing {
		return r.list(s)
	}
	text, args := r.p.span(from, s.End, true, s.After, r.f.c.PageSize+1)
	page, err := r.read(text, args, s, false)
	if err != nil {
		return nil, err
	}
	if !page.More {
		s.Top, s.Print = r.lower(s.End, s.Cap), s.Next
		s.After, s.End, s.Cap, s.Next = nil, "", "", ""
	}
	return r.finish(s, page)
}

// from is where a round begins: the overlap before the highest time.
func (r *reading) from(s *state) (string, error) {
	if s.Top == "" || s.Listing {
		return "", nil
	}
	top, err := parseTime(s.Top, formOf(r.p.cursor), r.f.zone)
	if err != nil {
		return "", poll.ErrCursor // the column has become another type
	}
	return below(top.Add(-r.f.c.Cursor.Overlap), r.p.cursor), nil
}

// tail is what there is above a time.
type tail struct {
	print string
	end   string
	cap   string
	rows  int64
	fresh int64
}

func (r *reading) tail(from, top string, total bool) (tail, error) {
	if r.p.cursor.nullable {
		var one int
		switch err := r.tx.QueryRowContext(r.ctx, r.p.unstamped()).Scan(&one); {
		case err == nil:
			return tail{}, configuration("%s is NULL in some rows, which would never be read as changed; fill it, or exclude them with table.filter", r.p.cursor.name)
		case !errors.Is(err, sql.ErrNoRows):
			return tail{}, err
		}
	}
	var t tail
	var count int64
	var highest sql.NullString
	var sum, now string
	text, args := r.p.tail(from, top, total)
	if err := r.tx.QueryRowContext(r.ctx, text, args...).Scan(&count, &highest, &sum, &t.rows, &t.fresh, &now); err != nil {
		return tail{}, err
	}
	at, err := parseTime(now, asZoned, r.f.zone)
	if err != nil {
		return tail{}, &poll.Fault{Kind: poll.Answer, Reason: "the database's time is none: " + short(now)}
	}
	t.print, t.end, t.cap = fmt.Sprintf("%d/%s/%s", count, highest.String, sum), highest.String, below(at.In(r.f.zone), r.p.cursor)
	return t, nil
}

// begin begins a listing or a round.
func (r *reading) begin(s *state, t tail) {
	if s.Listing {
		s.Top = r.lower(t.end, t.cap)
		return
	}
	s.End, s.Cap, s.Next = t.end, t.cap, t.print
	if t.end == "" { // nothing is there any more
		s.Next = s.Print
	}
}

// lower is the lower of two times, the second if the first is none, like infinity.
func (r *reading) lower(a, b string) string {
	if a == "" {
		return ""
	}
	x, err := parseTime(a, formOf(r.p.cursor), r.f.zone)
	y, err2 := parseTime(b, formOf(r.p.cursor), r.f.zone)
	if err == nil && (err2 != nil || x.Before(y)) {
		return a
	}
	return b
}

// list reads a page of all rows.
func (r *reading) list(s *state) (*poll.Page, error) {
	text, args := r.p.list(s.After, r.f.c.PageSize+1)
	page, err := r.read(text, args, s, false)
	if err != nil {
		return nil, err
	}
	page.Listing, page.Listed = true, !page.More
	if page.Listed {
		s.Listing, s.After = false, nil
	}
	return r.finish(s, page)
}

// finish completes a page with the cursor behind it.
func (r *reading) finish(s *state, page *poll.Page) (*poll.Page, error) {
	switch r.f.c.Cursor.Kind {
	case Transaction, RowVersion:
		if !s.Listing {
			page.Bound = s.bound()
		}
	}
	page.Columns = names(r.p.data)
	var err error
	page.Next, err = s.encode()
	return page, err
}

// describe looks the table's columns up. It is done for every page: a column that
// was added in between is read, and one that is gone is a fault with its name.
func (r *reading) describe() error {
	t := r.f.c.Table
	all, err := r.f.d.columns(r.ctx, r.tx, t)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return configuration("there is no table or view %s in schema %s, or it is not to be seen; check table.schema and table.name (names are spelt as in the catalogue), and GRANT SELECT on it", t.Name, t.Schema)
	}
	p := &plan{d: r.f.d, c: r.f.c, table: all}
	need := func(key, name string) (column, error) {
		c, ok := find(all, name)
		if !ok {
			hint := ""
			if i := slices.IndexFunc(all, func(c column) bool { return strings.EqualFold(c.name, name) }); i >= 0 {
				hint = "; it is spelt " + all[i].name
			}
			return c, configuration("%s has no column %s%s; check table.%s", t.Name, name, hint, key)
		}
		return c, nil
	}
	wanted := map[string]bool{}
	for _, name := range t.Key {
		c, err := need("key", name)
		if err != nil {
			return err
		}
		if unfit(c) {
			return configuration("column %s of the key has type %s, which does not tell rows apart for certain; choose another for table.key", name, c.base)
		}
		p.key, wanted[name] = append(p.key, c), true
	}
	for _, name := range t.Columns {
		if _, err := need("columns", name); err != nil {
			return err
		}
		wanted[name] = true
	}
	if r.f.c.Cursor.Kind != ChangeTracking {
		c, ok := find(all, r.f.c.Cursor.Column)
		if !ok {
			return configuration("%s has no column %s; check cursor.column", t.Name, r.f.c.Cursor.Column)
		}
		if err := fits(c, r.f.c.Cursor.Kind); err != nil {
			return err
		}
		p.cursor = c
		if r.f.c.Cursor.Kind == Timestamp {
			wanted[c.name] = true // rows are told apart by their content
		}
	}
	for _, c := range all {
		if len(t.Columns) == 0 && !(r.f.c.Cursor.Kind == BYOD && slices.Contains(volatile, c.name)) || wanted[c.name] {
			p.data = append(p.data, c)
		}
	}
	modified := t.Modified
	if modified == "" && stamped(p.cursor) {
		modified = p.cursor.name
	}
	for _, time := range []struct{ key, name string }{{"created", t.Created}, {"modified", modified}} {
		if time.name == "" {
			continue
		}
		c, err := need(time.key, time.name)
		if err != nil {
			return err
		}
		if !stamped(c) {
			return configuration("column %s has type %s; table.%s wants a date with a time", time.name, c.base, time.key)
		}
		p.times = append(p.times, c)
	}
	p.created = t.Created != ""
	r.p = p
	return nil
}

// unfit says whether a column does not do as a part of a key: its text may stand for
// two values, or it has no order.
func unfit(c column) bool {
	switch c.base {
	case "float4", "float8", "float", "real", "json", "jsonb", "xml", "ntext", "image", "sql_variant", "geometry", "geography", "hierarchyid", "vector":
		return true
	}
	return c.category == "A" || c.category == "C"
}

// fits says why a column cannot carry a cursor.
func fits(c column, k Kind) error {
	ok, want := stamped(c), "a date with a time"
	switch k {
	case Transaction:
		ok, want = c.base == "xid8" || c.base == "int8", "xid8, or bigint with the same numbers"
	case RowVersion:
		ok, want = c.base == "rowversion", "rowversion"
	case Timestamp, BYOD, ChangeTracking:
	}
	if !ok {
		return configuration("column %s has type %s; a cursor of kind %s wants %s", c.name, c.base, k, want)
	}
	return nil
}

// read runs a query and makes rows of what it brings. s goes behind the last one.
func (r *reading) read(text string, args []any, s *state, tracked bool) (*poll.Page, error) {
	rows, err := r.tx.QueryContext(r.ctx, text, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	keys := len(r.p.key)
	lead := keys + 1
	if tracked {
		lead += 2
	}
	fields := make([]any, lead+len(r.p.data)+len(r.p.times))
	targets := make([]any, len(fields))
	for i := range fields {
		targets[i] = &fields[i]
	}
	page := &poll.Page{}
	var total int64
	var last []string
	for n := 0; rows.Next(); n++ {
		if err := rows.Scan(targets...); err != nil {
			return nil, err
		}
		at, err := r.position(fields[:keys+1])
		if err != nil {
			return nil, err
		}
		if n > 0 && slices.Equal(at[1:], last[1:]) && (s.Listing || at[0] == last[0]) {
			return nil, configuration("two rows have the same key %s; set table.key to columns that tell rows apart, as the primary key does", strings.Join(r.f.c.Table.Key, ", "))
		}
		bytes, err := r.weigh(fields, fields[lead:lead+len(r.p.data)])
		if err != nil {
			return nil, err
		}
		if n == r.f.c.PageSize || n > 0 && total+bytes > r.f.c.MaxBytes {
			page.More = true
			r.cancelRest(n)
			break
		}
		total += bytes
		last = at
		if tracked {
			op, _ := textOf(fields[keys+1])
			present, _ := fields[keys+2].(int64)
			if op != "D" && present == 0 {
				continue // it does not fulfil the filter
			}
			if op == "D" {
				page.Rows = append(page.Rows, record.Row{Key: keyOf(at[1:]), Deleted: true, Version: at[0], Ordered: true})
				continue
			}
		}
		row, rejected := r.row(at, fields[lead:])
		if rejected != nil {
			page.Rejected = append(page.Rejected, *rejected)
		} else {
			page.Rows = append(page.Rows, row)
		}
	}
	if !page.More {
		if err := rows.Err(); err != nil {
			return nil, err
		}
	}
	if page.More {
		s.After = last
		if s.Listing {
			s.After = last[1:]
		}
	}
	return page, nil
}

// cancelRest keeps the driver from reading to the end what is not wanted, where that
// is much.
func (r *reading) cancelRest(n int) {
	if n < r.f.c.PageSize {
		r.cancel()
	}
}

// position gives the cursor and the key of a row as texts.
func (r *reading) position(fields []any) ([]string, error) {
	keys := len(r.p.key)
	at := make([]string, 1, keys+1)
	at[0], _ = textOf(fields[keys])
	for i, c := range r.p.key {
		s, ok := textOf(fields[i])
		if !ok {
			return nil, configuration("column %s of the key is NULL in some rows; choose columns for table.key that never are, or exclude those rows with table.filter", c.name)
		}
		if !utf8.ValidString(s) {
			return nil, configuration("column %s of the key is not UTF-8 in some rows; choose other columns for table.key, or exclude those rows with table.filter", c.name)
		}
		at = append(at, s)
	}
	return at, nil
}

// textOf gives a text that the driver has as a string or as bytes; false for NULL.
func textOf(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case []byte:
		return string(v), true
	case int64:
		return strconv.FormatInt(v, 10), true
	default:
		return "", false
	}
}

// weigh adds up a row. One that is too long, or that the server has cut, is a fault:
// it cannot be passed by, and nobody would see the rest.
func (r *reading) weigh(fields, data []any) (int64, error) {
	var total int64
	for _, v := range fields {
		total += size(v)
	}
	long := total > r.f.c.MaxBytes
	if r.f.c.Driver == SQLServer {
		for i, v := range data {
			long = long || (r.p.forms[i] == asWide || r.p.forms[i] == asJSON) && cut(v, r.f.c.textSize())
		}
	}
	if long {
		return 0, tooLong(r.f.c.MaxBytes)
	}
	return total, nil
}

func tooLong(most int64) error {
	return &poll.Fault{Kind: poll.Answer, Reason: fmt.Sprintf("a row has more than %d bytes; leave its long columns out with table.columns, or raise maxBytes", most)}
}

// row makes a row of data and times.
func (r *reading) row(at []string, fields []any) (record.Row, *poll.Rejected) {
	row := record.Row{Key: keyOf(at[1:])}
	var wrong []string
	b := []byte{'{'}
	for i, c := range r.p.data {
		if i > 0 {
			b = append(b, ',')
		}
		b, _ = appendText(b, c.name, asText, nil) // a name of the catalogue is text
		b = append(b, ':')
		var err error
		if b, err = appendJSON(b, fields[i], r.p.forms[i], r.f.zone); err != nil {
			wrong = append(wrong, "column "+c.name+" "+err.Error())
		}
	}
	row.Data = append(b, '}')
	if wrong != nil {
		return row, &poll.Rejected{Raw: row.Data, Reason: bound(strings.Join(wrong, "; "))}
	}
	for i, c := range r.p.times {
		s, ok := textOf(fields[len(r.p.data)+i])
		if !ok {
			continue
		}
		t, err := parseTime(s, formOf(c), r.f.zone)
		if err != nil {
			continue // infinity
		}
		if i == 0 && r.p.created {
			row.Created = t
		} else {
			row.Modified = t
		}
	}
	switch r.f.c.Cursor.Kind {
	case Transaction, RowVersion, ChangeTracking:
		// Without one, it has not changed since it is counted.
		row.Version, row.Ordered = at[0], at[0] != ""
		row.ByContent = r.f.c.Cursor.Kind == ChangeTracking
	case Timestamp, BYOD:
	}
	return row, nil
}
