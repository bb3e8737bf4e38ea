package sqlrows

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"io"
	"strings"
	"testing"
)

// newFetcher makes a Fetcher of a Config that has to be valid.
func newFetcher(t testing.TB, c Config, opts Options) *Fetcher {
	t.Helper()
	if err := c.Validate("sql"); err != nil {
		t.Fatal(err)
	}
	f, err := New(c, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

// fake stands in for a database of which there is no server to test with: it notes
// what it is asked and gives the answers that a test has for it.
type fake struct {
	t   testing.TB
	log strings.Builder
	// table is what the catalogue says of the table's columns.
	table []column
	// answer gives the rows for any other query, which begins with SELECT.
	answer func(text string, args []any) ([][]driver.Value, error)
	// refuse is what connecting ends with.
	refuse error
}

func (f *fake) connect(Config) (*sql.DB, error) { return sql.OpenDB(f), nil }

func (f *fake) Connect(context.Context) (driver.Conn, error) {
	if f.refuse != nil {
		return nil, f.refuse
	}
	return fakeConn{f}, nil
}

func (f *fake) Driver() driver.Driver { return nil }

func (f *fake) note(text string, args []driver.NamedValue) []any {
	values := make([]any, len(args))
	for i, a := range args {
		values[i] = a.Value
	}
	fmt.Fprintf(&f.log, "%s\n", text)
	for i, v := range values {
		fmt.Fprintf(&f.log, "-- %d: %#v\n", i+1, v)
	}
	f.log.WriteString("\n")
	return values
}

type fakeConn struct{ f *fake }

func (c fakeConn) Prepare(text string) (driver.Stmt, error) {
	return nil, fmt.Errorf("%s: it is prepared", text)
}
func (c fakeConn) Close() error              { return nil }
func (c fakeConn) Begin() (driver.Tx, error) { return c, nil }
func (c fakeConn) Commit() error             { c.f.t.Error("something was committed"); return nil }

func (c fakeConn) Rollback() error {
	c.f.log.WriteString("ROLLBACK\n\n")
	return nil
}

func (c fakeConn) BeginTx(_ context.Context, opts driver.TxOptions) (driver.Tx, error) {
	fmt.Fprintf(&c.f.log, "BEGIN %v%s\n\n", sql.IsolationLevel(opts.Isolation), map[bool]string{true: ", read only"}[opts.ReadOnly])
	return c, nil
}

func (c fakeConn) ExecContext(_ context.Context, text string, args []driver.NamedValue) (driver.Result, error) {
	c.f.note(text, args)
	return driver.RowsAffected(0), nil
}

func (c fakeConn) QueryContext(ctx context.Context, text string, args []driver.NamedValue) (driver.Rows, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	values := c.f.note(text, args)
	var rows [][]driver.Value
	switch text {
	case sqlserverColumns:
		for _, col := range c.f.table {
			base, sizes, _ := strings.Cut(strings.TrimSuffix(col.declared, ")"), "(")
			var length, precision, scale int64
			switch {
			case sizes == "max":
				length = -1
			case base == "decimal":
				if _, err := fmt.Sscanf(sizes, "%d,%d", &precision, &scale); err != nil {
					return nil, err
				}
			case sizes != "":
				if _, err := fmt.Sscanf(sizes, "%d", &length); err != nil {
					return nil, err
				}
				scale = length
				if strings.HasPrefix(base, "n") {
					length *= 2
				}
			}
			rows = append(rows, []driver.Value{col.name, base, length, precision, scale, col.nullable, col.collation, col.primary})
		}
	case postgresColumns:
		for _, col := range c.f.table {
			rows = append(rows, []driver.Value{col.name, col.base, col.declared, col.nullable, col.category})
		}
	default:
		var err error
		if rows, err = c.f.answer(text, values); err != nil {
			return nil, err
		}
	}
	return &fakeRows{rows: rows}, nil
}

type fakeRows struct{ rows [][]driver.Value }

func (r *fakeRows) Columns() []string {
	if len(r.rows) == 0 {
		return nil
	}
	return make([]string, len(r.rows[0]))
}

func (r *fakeRows) Close() error { return nil }

func (r *fakeRows) Next(to []driver.Value) error {
	if len(r.rows) == 0 {
		return io.EOF
	}
	copy(to, r.rows[0])
	r.rows = r.rows[1:]
	return nil
}
