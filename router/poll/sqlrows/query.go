package sqlrows

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/gridfan/gridfan/infra/credentials"
)

// dialect is what one kind of database has of its own. Its texts contain names,
// quoted, types from the catalogue and the operator's filter; whatever comes from
// rows is a parameter.
type dialect interface {
	// open makes connections, which are not connected yet.
	open(c Config, creds *credentials.Credentials) (*sql.DB, error)
	// begin begins a transaction that changes nothing, with all that the session
	// needs.
	begin(ctx context.Context, db *sql.DB, c Config) (*sql.Tx, error)
	// columns lists a table's columns; none if there is no such table, or it is not
	// to be seen.
	columns(ctx context.Context, tx *sql.Tx, t Table) ([]column, error)

	quote(name string) string
	// param is the n-th parameter (from 1).
	param(n int) string
	// text is an expression for the exact text of a key or cursor column, and
	// fromText the value of a parameter that has such a text.
	text(ref string, c column) string
	fromText(param string, c column) string
	// value is an expression for a column of a row, and how it becomes JSON.
	value(ref string, c column) (string, form)
	// after is the condition that refs are behind values, in the order of refs.
	after(refs, values []string) string
	// limit is what makes a query end after n rows: behind SELECT, and at the end.
	limit(n int) (head, tail string)
	// window are aggregates of times: the highest one's text, and of those at or above
	// low (empty: of all) a sum, which changes when one of them does.
	window(ref string, c column, low string) (highest, sum string)
	// now is an expression for the text of the time in UTC, with an offset.
	now() string
}

// query is a statement in the making.
type query struct {
	d    dialect
	args []any
}

// arg adds a parameter.
func (q *query) arg(v any) string {
	q.args = append(q.args, v)
	return q.d.param(len(q.args))
}

// texts adds parameters with the texts of columns.
func (q *query) texts(values []string, columns []column) []string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i] = q.d.fromText(q.arg(v), columns[i])
	}
	return all
}

// plan is what a query reads: of every row the texts of its key, then what the cursor
// needs, then the row's columns.
type plan struct {
	d       dialect
	c       Config
	table   []column // all columns there are
	key     []column
	cursor  column // without a name for ChangeTracking
	data    []column
	times   []column // Created and Modified, those that are set
	forms   []form   // of data
	created bool     // times[0] is Created
}

// from is the table itself, by the name of t.
func (p *plan) from() string {
	return p.d.quote(p.c.Table.Schema) + "." + p.d.quote(p.c.Table.Name)
}

func (p *plan) ref(alias string, c column) string { return alias + "." + p.d.quote(c.name) }

func (p *plan) refs(alias string, columns []column) []string {
	all := make([]string, len(columns))
	for i, c := range columns {
		all[i] = p.ref(alias, c)
	}
	return all
}

// filtered is the condition of the operator, on lines of its own, so that a comment
// in it ends. Nil: there is none.
func (p *plan) filtered() []string {
	if p.c.Table.Filter == "" {
		return nil
	}
	return []string{"(\n" + p.c.Table.Filter + "\n)"}
}

// nullKeys are conditions that find the rows that no key orders: they would be
// behind no other row.
func (p *plan) nullKeys() []string {
	var all []string
	for _, c := range p.key {
		if c.nullable {
			all = append(all, p.ref("t", c)+" IS NULL")
		}
	}
	return all
}

// behind is the condition for what comes after a row.
func (p *plan) behind(refs, values []string) string {
	return "(" + strings.Join(append([]string{p.d.after(refs, values)}, p.nullKeys()...), " OR ") + ")"
}

// rows are the expressions for what every query reads of a row: the columns of data
// and then the times.
func (p *plan) rows(alias string) []string {
	p.forms = p.forms[:0]
	var all []string
	for _, c := range p.data {
		expr, as := p.d.value(p.ref(alias, c), c)
		all, p.forms = append(all, expr), append(p.forms, as)
	}
	for _, c := range p.times {
		all = append(all, p.d.text(p.ref(alias, c), c))
	}
	return all
}

func (p *plan) keyTexts(alias string) []string {
	var all []string
	for _, c := range p.key {
		all = append(all, p.d.text(p.ref(alias, c), c))
	}
	return all
}

// statement puts the parts together. Every reference has an alias: an ORDER BY must
// not mean the text of a column that is selected by its name.
func (p *plan) statement(exprs []string, from string, where, order []string, rows int) string {
	head, tail := p.d.limit(rows)
	var b strings.Builder
	b.WriteString("SELECT " + head + strings.Join(exprs, ",\n  "))
	b.WriteString("\nFROM " + from)
	if len(where) > 0 {
		b.WriteString("\nWHERE " + strings.Join(where, "\n  AND "))
	}
	b.WriteString("\nORDER BY " + strings.Join(order, ", ") + tail)
	return b.String()
}

// list reads all rows in the order of their key.
func (p *plan) list(after []string, rows int) (string, []any) {
	q := &query{d: p.d}
	position := "NULL"
	from := p.from() + " AS t"
	if p.cursor.name != "" {
		position = p.d.text(p.ref("t", p.cursor), p.cursor)
	}
	where := p.filtered()
	order := p.refs("t", p.key)
	if after != nil {
		where = append(where, p.behind(order, q.texts(after, p.key)))
	}
	exprs := append(append(p.keyTexts("t"), position), p.rows("t")...)
	return p.statement(exprs, from, where, order, rows), q.args
}

// span reads rows whose cursor is low or higher and below high, in its order.
// Inclusive takes in high itself. An empty bound is none.
func (p *plan) span(low, high string, inclusive bool, after []string, rows int) (string, []any) {
	q := &query{d: p.d}
	at := p.ref("t", p.cursor)
	where := p.filtered()
	if low != "" {
		where = append(where, at+" >= "+p.d.fromText(q.arg(low), p.cursor))
	}
	if high != "" {
		where = append(where, at+map[bool]string{false: " < ", true: " <= "}[inclusive]+p.d.fromText(q.arg(high), p.cursor))
	}
	columns := append([]column{p.cursor}, p.key...)
	order := p.refs("t", columns)
	if after != nil {
		where = append(where, p.behind(order, q.texts(after, columns)))
	}
	exprs := append(append(p.keyTexts("t"), p.d.text(at, p.cursor)), p.rows("t")...)
	return p.statement(exprs, p.from()+" AS t", where, order, rows), q.args
}

// tracked reads what SQL Server's change tracking has recorded after version low and
// up to high. Of a row it has the newest version only. The table's own row is there
// unless it was deleted or does not fulfil the filter.
func (p *plan) tracked(low, high uint64, after []string, rows int) (string, []any) {
	q := &query{d: p.d}
	version := column{name: "SYS_CHANGE_VERSION", base: "bigint", declared: "bigint"}
	// A parameter of its own type and no CAST: CHANGETABLE is documented with a variable
	// or a constant there.
	from := "CHANGETABLE(CHANGES " + p.from() + ", " + q.arg(int64(low)) + ") AS ct"
	on := make([]string, len(p.key))
	for i, c := range p.key {
		on[i] = p.ref("t", c) + " = " + p.ref("ct", c)
	}
	own := p.from()
	if f := p.filtered(); f != nil {
		own = "(SELECT * FROM " + own + " WHERE " + f[0] + ")"
	}
	from += "\n  LEFT JOIN " + own + " AS t ON " + strings.Join(on, " AND ")
	at := "ct.SYS_CHANGE_VERSION"
	where := []string{at + " <= " + p.d.fromText(q.arg(strconv.FormatUint(high, 10)), version)}
	order := append([]string{at}, p.refs("ct", p.key)...)
	if after != nil {
		where = append(where, p.d.after(order, q.texts(after, append([]column{version}, p.key...))))
	}
	exprs := append(p.keyTexts("ct"), p.d.text(at, version), "ct.SYS_CHANGE_OPERATION",
		"CASE WHEN "+p.ref("t", p.key[0])+" IS NULL THEN 0 ELSE 1 END")
	return p.statement(append(exprs, p.rows("t")...), from, where, order, rows), q.args
}

// tail asks what there is at or above a time: how much, up to when, and a print of it.
// With a top it asks as well how many rows there are at all and how many above top.
func (p *plan) tail(low, top string, total bool) (string, []any) {
	q := &query{d: p.d}
	at := p.ref("t", p.cursor)
	where := p.filtered()
	from := ""
	if low != "" {
		from = p.d.fromText(q.arg(low), p.cursor)
	}
	count := "COUNT(*)"
	if p.c.Driver == SQLServer {
		count = "COUNT_BIG(*)"
	}
	all, fresh := "0", "0"
	switch {
	case total:
		all, fresh = count, count
		if top != "" {
			fresh = strings.Replace(count, "*", "CASE WHEN "+at+" > "+p.d.fromText(q.arg(top), p.cursor)+" THEN 1 END", 1)
		}
	case from != "":
		where = append(where, at+" >= "+from)
		from = ""
	}
	highest, sum := p.d.window(at, p.cursor, from)
	if from != "" {
		count = strings.Replace(count, "*", "CASE WHEN "+at+" >= "+from+" THEN 1 END", 1)
	}
	text := "SELECT " + strings.Join([]string{count, highest, sum, all, fresh, p.d.now()}, ",\n  ") + "\nFROM " + p.from() + " AS t"
	if len(where) > 0 {
		text += "\nWHERE " + strings.Join(where, "\n  AND ")
	}
	return text, q.args
}

// unstamped asks for a row without a time, which no span would have.
func (p *plan) unstamped() string {
	head, tail := p.d.limit(1)
	where := append(p.filtered(), p.ref("t", p.cursor)+" IS NULL")
	return "SELECT " + head + "1\nFROM " + p.from() + " AS t\nWHERE " + strings.Join(where, "\n  AND ") + tail
}

// below writes the text of a time as the cursor's column wants it. It is cut to the
// second (to the minute for smalldatetime), because some types know no less: never up.
func below(t time.Time, c column) string {
	t = t.Truncate(time.Second)
	if c.base == "smalldatetime" {
		t = t.Truncate(time.Minute)
	}
	if zoned(c) {
		return t.Format("2006-01-02T15:04:05Z07:00")
	}
	return t.Format("2006-01-02T15:04:05")
}

// zoned says whether a column's times have an offset.
func zoned(c column) bool { return c.base == "timestamptz" || c.base == "datetimeoffset" }

// stamped says whether a column holds times.
func stamped(c column) bool {
	switch c.base {
	case "timestamptz", "timestamp", "datetimeoffset", "datetime2", "datetime", "smalldatetime":
		return true
	}
	return false
}

// formOf is how the text of a time is read.
func formOf(c column) form {
	if zoned(c) {
		return asZoned
	}
	return asStamp
}

// find gives a table's column by its name.
func find(columns []column, name string) (column, bool) {
	for _, c := range columns {
		if c.name == name {
			return c, true
		}
	}
	return column{}, false
}

func names(columns []column) []string {
	all := make([]string, len(columns))
	for i, c := range columns {
		all[i] = c.name
	}
	return all
}

func quoteWith(left, right, name string) string {
	return left + strings.ReplaceAll(name, right, right+right) + right
}

// milliseconds writes a duration for a setting.
func milliseconds(d time.Duration) string { return fmt.Sprint(max(1, d.Milliseconds())) }
