package sqlrows

import (
	"context"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mssql "github.com/microsoft/go-mssqldb"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/schemas/record"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// There is no SQL Server to test with: what it is asked is held as text, to be read
// against its documentation, and what it answers is made up.
func TestStatements(t *testing.T) {
	const collation = "SQL_Latin1_General_CP1_CI_AS"
	orders := []column{
		{name: "region", declared: "varchar(10)", collation: collation, primary: true},
		{name: "number", declared: "int", primary: true},
		{name: "amount", declared: "decimal(18,2)", nullable: true},
		{name: "odd]name", declared: "nvarchar(max)", collation: "Latin1_General_100_CI_AS", nullable: true},
		{name: "changed", declared: "datetime2(7)"},
		{name: "rv", declared: "timestamp"},
	}
	for _, tt := range []struct {
		name   string
		cursor Cursor
		filter string
	}{
		{"rowversion", Cursor{Kind: RowVersion, Column: "rv"}, ""},
		{"changetracking", Cursor{Kind: ChangeTracking}, "amount > 0 -- of worth"},
		{"timestamp", Cursor{Kind: Timestamp, Column: "changed"}, "region <> 'x'"},
		{"byod", Cursor{Kind: BYOD, Column: "changed"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fake{t: t, table: orders}
			asked, rows := int64(2000), 0
			const at = "2026-11-23T10:00:00.1234567"
			f.answer = func(text string, _ []any) ([][]driver.Value, error) {
				asked += 5 // a counter, which goes on
				switch {
				case text == sqlserverBound:
					return [][]driver.Value{{fmt.Sprint(asked), fmt.Sprint(asked)}}, nil
				case text == sqlserverVersions:
					return [][]driver.Value{{fmt.Sprint(asked), "1"}}, nil
				case strings.Contains(text, "SYSDATETIMEOFFSET"):
					return [][]driver.Value{{int64(2), at, fmt.Sprint(asked), int64(2), int64(0), "2026-11-23T12:00:00.5000000+01:00"}}, nil
				}
				var all [][]driver.Value
				for n := range rows {
					row := []driver.Value{"EU, west", fmt.Sprint(7 + n), fmt.Sprint(2003 + n)}
					if stamped(column{base: map[Kind]string{Timestamp: "datetime2", BYOD: "datetime2"}[tt.cursor.Kind]}) {
						row[2] = at
					}
					if strings.Contains(text, "CHANGETABLE") {
						row = append(row, "U", int64(1))
					}
					row = append(row, "EU, west", int64(7), "1.50", "x", at, []byte{0, 0, 0, 0, 0, 0, 7, 0xd3})
					if row[2] == at {
						row = append(row, at) // the row's own time
					}
					all = append(all, row)
				}
				return all, nil
			}
			c := Config{
				Driver: SQLServer, DSN: secret.New(sqlserverDSN), Table: Table{Name: "orders", Key: []string{"region", "number"}, Filter: tt.filter},
				Cursor: tt.cursor, PageSize: 1,
			}
			fetcher := newFetcher(t, c, Options{connect: f.connect})
			var cursor json.RawMessage
			for _, n := range []int{2, 1, 2, 1} { // two pages of all rows, two of a round
				rows = n
				page, err := fetcher.Fetch(t.Context(), cursor)
				if err != nil {
					t.Fatal(err)
				}
				if len(page.Rows) != 1 || page.More != (n == 2) || page.Rows[0].Key != "EU%2C west,7" ||
					!strings.HasPrefix(string(page.Rows[0].Data), `{"region":"EU, west","number":7,"amount":1.50,"odd]name":"x","changed":"2026-11-23T10:00:00.1234567Z","rv":"AAAAAAAAB9M="`) {
					t.Errorf("got %+v", page)
				}
				cursor = page.Next
				fmt.Fprintf(&f.log, "-- cursor: %s\n\n", clock.ReplaceAll(cursor, []byte(`"at":0`)))
			}
			golden(t, tt.name, f.log.String())
		})
	}
}

// clock is the time of a mark.
var clock = regexp.MustCompile(`"at":\d+`)

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".sql")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got; go test -update rewrites it):\n%s", file, d)
	}
}

// trackedRow is a change as change tracking has it, of a table with the columns id and
// note.
func trackedRow(id, version int, op, note string) []driver.Value {
	present, own := int64(1), []driver.Value{int64(id), note}
	if note == "" {
		present, own = 0, []driver.Value{nil, nil}
	}
	return append([]driver.Value{fmt.Sprint(id), fmt.Sprint(version), op, present}, own...)
}

func TestChangeTracking(t *testing.T) {
	var now, oldest any = "100", "10"
	var rows [][]driver.Value
	f := &fake{t: t, table: []column{{name: "id", declared: "int", primary: true}, {name: "note", declared: "nvarchar(50)"}}}
	f.answer = func(text string, _ []any) ([][]driver.Value, error) {
		if text == sqlserverVersions {
			return [][]driver.Value{{now, oldest}}, nil
		}
		return rows, nil
	}
	c := orders(SQLServer, ChangeTracking, "")
	fetcher := newFetcher(t, c, Options{connect: f.connect})
	rows = [][]driver.Value{{"1", nil, int64(1), "a"}, {"2", nil, int64(2), "b"}}
	began := time.Now()
	page, err := fetcher.Fetch(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	// A listing has no versions.
	want := []record.Row{{Key: "1", Data: json.RawMessage(`{"id":1,"note":"a"}`), ByContent: true}, {Key: "2", Data: json.RawMessage(`{"id":2,"note":"b"}`), ByContent: true}}
	if d := cmp.Diff(want, page.Rows); d != "" || !page.Listed {
		t.Errorf("listed %v (-want +got):\n%s", page.Listed, d)
	}
	listed := page.Next

	// Nothing has changed: nothing is read, and all until now is known.
	rows = nil
	if page, err = fetcher.Fetch(t.Context(), listed); err != nil || len(page.Rows) != 0 || page.More || page.Bound.Before(began) {
		t.Errorf("got %+v, %v", page, err)
	}
	// A deletion is told; what does not fulfil the filter is not.
	now = "105"
	rows = [][]driver.Value{trackedRow(1, 101, "U", "c"), trackedRow(2, 102, "D", ""), trackedRow(3, 103, "I", "")}
	if page, err = fetcher.Fetch(t.Context(), listed); err != nil {
		t.Fatal(err)
	}
	want = []record.Row{
		{Key: "1", Version: "101", Ordered: true, ByContent: true, Data: json.RawMessage(`{"id":1,"note":"c"}`)},
		{Key: "2", Version: "102", Ordered: true, Deleted: true},
	}
	if d := cmp.Diff(want, page.Rows); d != "" || page.Bound.Before(began) {
		t.Errorf("bound %v (-want +got):\n%s", page.Bound, d)
	}

	for _, tt := range []struct {
		name        string
		now, oldest any
		want        error
	}{
		{"cleaned up or truncated", "200", "101", poll.ErrExpired},
		{"just not", "200", "100", nil},
		{"restored", "99", "10", poll.ErrExpired},
		{"off", nil, nil, &poll.Fault{Kind: poll.Configuration, Reason: "change tracking is off in this database; run ALTER DATABASE CURRENT SET CHANGE_TRACKING = ON (CHANGE_RETENTION = 7 DAYS, AUTO_CLEANUP = ON)"}},
		{"off for the table", "100", nil, &poll.Fault{Kind: poll.Configuration, Reason: "change tracking is off for [dbo].[orders], or not to be seen; run ALTER TABLE [dbo].[orders] ENABLE CHANGE_TRACKING, and GRANT VIEW CHANGE TRACKING and SELECT on it"}},
	} {
		now, oldest, rows = tt.now, tt.oldest, nil
		if _, err := fetcher.Fetch(t.Context(), listed); fmt.Sprint(err) != fmt.Sprint(tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
	now, oldest = "200", "10"
	f.table[1].primary = true
	_, err = fetcher.Fetch(t.Context(), nil)
	isFault(t, err, poll.Configuration, "set table.key to id, note")
	f.table = nil
	_, err = fetcher.Fetch(t.Context(), nil)
	isFault(t, err, poll.Configuration, "there is no table or view orders in schema dbo, or it is not to be seen")
}

// A bound that has not moved, or that has moved back.
func TestRowVersion(t *testing.T) {
	low, high := 2000, 2000
	var rows [][]driver.Value
	f := &fake{t: t, table: []column{{name: "id", declared: "int"}, {name: "rv", declared: "timestamp"}}}
	f.answer = func(text string, _ []any) ([][]driver.Value, error) {
		if text == sqlserverBound {
			return [][]driver.Value{{fmt.Sprint(low), fmt.Sprint(high)}}, nil
		}
		return rows, nil
	}
	fetcher := newFetcher(t, orders(SQLServer, RowVersion, "rv"), Options{connect: f.connect})
	began := time.Now()
	page, err := fetcher.Fetch(t.Context(), nil)
	if err != nil || !page.Listed || page.Bound.Before(began.Add(-time.Second)) {
		t.Fatalf("got %+v, %v", page, err)
	}
	held := time.Now().Truncate(time.Millisecond) // as a mark has it
	high = 2010                                   // a transaction is open
	if page, err = fetcher.Fetch(t.Context(), page.Next); err != nil || page.Bound.After(held) {
		t.Errorf("got %+v, %v", page, err)
	}
	low, high = 2010, 2010
	rows = [][]driver.Value{{"5", "2003", int64(5), []byte{0, 0, 0, 0, 0, 0, 7, 0xd3}}}
	if page, err = fetcher.Fetch(t.Context(), page.Next); err != nil || len(page.Rows) != 1 || page.Rows[0].Version != "2003" || !page.Rows[0].Ordered || page.Bound.Before(held) {
		t.Errorf("got %+v, %v", page, err)
	}
	low = 2009
	if _, err := fetcher.Fetch(t.Context(), page.Next); !errors.Is(err, poll.ErrExpired) {
		t.Errorf("got %v", err)
	}
	f.table[1].declared = "binary(8)"
	_, err = fetcher.Fetch(t.Context(), nil)
	isFault(t, err, poll.Configuration, "column rv has type binary; a cursor of kind rowversion wants rowversion")
}

// A full push deletes and inserts all rows: meanwhile nothing is read, and afterwards
// all are compared.
func TestFullPush(t *testing.T) {
	start := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	type step struct {
		after       time.Duration
		rows, fresh int64
		want        string // a part of the reason, or expired; empty: rows can be read
	}
	for name, tt := range map[string]struct {
		s     state
		steps []step
	}{
		"ordinary":    {state{Rows: 1000}, []step{{0, 1000, 0, ""}, {time.Minute, 1010, 10, ""}, {2 * time.Minute, 900, 0, ""}}},
		"small falls": {state{Rows: 1000}, []step{{0, 900, 0, ""}, {time.Minute, 810, 0, ""}, {2 * time.Minute, 790, 0, "790 rows are there, where 1000 were"}}},
		"push": {state{Rows: 1000}, []step{
			{0, 300, 0, "a full push seems to be under way: 300 rows are there, where 1000 were, and 0 are new; waiting until nothing has happened for 15m0s more"},
			{time.Minute, 0, 0, "0 rows"}, {2 * time.Minute, 500, 500, "500 are new"}, {3 * time.Minute, 1000, 1000, "for 2m0s more"},
			{4 * time.Minute, 1000, 1000, "for 1m0s more"}, {5 * time.Minute, 1000, 1000, "expired"},
		}},
		"push between two polls": {state{Rows: 1000}, []step{{0, 1001, 1001, "1001 are new"}, {2 * time.Minute, 1001, 1001, "expired"}}},
		"deleted indeed":         {state{Rows: 1000}, []step{{0, 500, 0, "500 rows"}, {14 * time.Minute, 500, 0, "for 1m0s more"}, {15 * time.Minute, 500, 0, ""}, {16 * time.Minute, 490, 0, ""}}},
		"amid a listing": {state{Rows: 1000, Listing: true, After: []string{"1"}}, []step{
			{0, 300, 0, "300 rows"}, {time.Minute, 1000, 1000, "expired"},
		}},
		"page of a round": {state{Rows: 1000, After: []string{"2026", "1"}}, []step{{0, 1000, 900, ""}}},
		"first rows":      {state{}, []step{{0, 0, 0, ""}, {time.Minute, 5000, 5000, ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			var w waiting
			for _, step := range tt.steps {
				got := ""
				if err := w.check(&tt.s, tail{rows: step.rows, fresh: step.fresh, print: fmt.Sprint(step.rows, step.fresh)}, start.Add(step.after)); errors.Is(err, poll.ErrExpired) {
					got = "expired"
				} else if err != nil {
					got = err.Error()
				}
				if !strings.Contains(got, step.want) || (got == "") != (step.want == "") {
					t.Errorf("after %v: got %q, want %q", step.after, got, step.want)
				}
			}
		})
	}
}

// What an export changes in every row is not one of its columns, and is its time.
func TestExportedRow(t *testing.T) {
	f := &fake{t: t, table: []column{{name: "ID", declared: "nvarchar(20)"}, {name: "SYNCSTARTDATETIME", declared: "datetime"}, {name: "EXECUTIONID", declared: "nvarchar(90)"}}}
	f.answer = func(text string, _ []any) ([][]driver.Value, error) {
		if strings.Contains(text, "SYSDATETIMEOFFSET") {
			return [][]driver.Value{{int64(1), "2026-11-23T10:00:00.123", "5", int64(1), int64(0), "2026-11-23T12:00:00.5000000+00:00"}}, nil
		}
		return [][]driver.Value{{"A1", "2026-11-23T10:00:00.123", "A1", "2026-11-23T10:00:00.123"}}, nil
	}
	c := orders(SQLServer, BYOD, "")
	c.Table.Key = []string{"ID"}
	page, err := newFetcher(t, c, Options{connect: f.connect}).Fetch(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []record.Row{{Key: "A1", Data: json.RawMessage(`{"ID":"A1"}`), Modified: time.Date(2026, 11, 23, 10, 0, 0, 123e6, time.UTC)}}
	if d := cmp.Diff(want, page.Rows); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// Values as go-mssqldb gives them.
func TestSQLServerValues(t *testing.T) {
	for _, tt := range []struct {
		declared string
		value    driver.Value
		want     string
	}{
		{"bit", true, "true"}, {"bigint", int64(9223372036854775807), "9223372036854775807"}, {"tinyint", int64(255), "255"},
		{"float", 0.1, "0.1"}, {"real", float64(float32(0.1)), "0.1"}, {"decimal(38,10)", "-0.1234567890", "-0.1234567890"}, {"money", "1.5000", "1.5000"},
		{"nvarchar(max)", "ü\n😀\"</a>", `"ü\n😀\"</a>"`}, {"varchar(10)", "a", `"a"`}, {"xml", "<a/>", `"<a/>"`}, {"json", `{"a": 1.10}`, `{"a": 1.10}`},
		{"uniqueidentifier", "6f9619ff-8b86-d011-b42d-00c04fc964ff", `"6f9619ff-8b86-d011-b42d-00c04fc964ff"`},
		{"varbinary(max)", []byte{0, 255}, `"AP8="`}, {"timestamp", []byte{0, 0, 0, 0, 0, 0, 7, 0xd3}, `"AAAAAAAAB9M="`},
		{"datetime", "2026-07-01T12:00:00.003", `"2026-07-01T12:00:00.003+02:00"`}, {"datetime2(7)", "2026-01-01T12:00:00.1234567", `"2026-01-01T12:00:00.1234567+01:00"`},
		{"smalldatetime", "2026-07-01T12:00:00", `"2026-07-01T12:00:00+02:00"`}, {"datetimeoffset(7)", "2026-07-01T12:00:00.5000000-07:00", `"2026-07-01T12:00:00.5-07:00"`},
		{"datetimeoffset(7)", "2026-07-01T12:00:00Z", `"2026-07-01T12:00:00Z"`},
		{"date", "2026-07-01", `"2026-07-01"`}, {"time(7)", "12:00:00.0000000", `"12:00:00.0000000"`}, {"int", nil, "null"},
	} {
		f := &fake{t: t, table: []column{{name: "id", declared: "int"}, {name: "v", declared: tt.declared, nullable: true}, {name: "rv", declared: "timestamp"}}}
		f.answer = func(text string, _ []any) ([][]driver.Value, error) {
			if text == sqlserverBound {
				return [][]driver.Value{{"1", "1"}}, nil
			}
			return [][]driver.Value{{"1", "1", int64(1), tt.value}}, nil
		}
		c := orders(SQLServer, RowVersion, "rv")
		c.Table.Columns, c.Table.Timezone = []string{"v"}, "Europe/Berlin"
		page, err := newFetcher(t, c, Options{connect: f.connect}).Fetch(t.Context(), nil)
		if err != nil || len(page.Rows) != 1 {
			t.Errorf("%s: got %+v, %v", tt.declared, page, err)
			continue
		}
		if want := `{"id":1,"v":` + tt.want + `}`; string(page.Rows[0].Data) != want {
			t.Errorf("%s: got %s, want %s", tt.declared, page.Rows[0].Data, want)
		}
	}
}

// The server cuts values off where a page would be too long: such a one is not taken
// for the whole.
func TestCutValues(t *testing.T) {
	for _, tt := range []struct {
		declared string
		value    any
		want     bool // a fault
	}{
		{"nvarchar(max)", strings.Repeat("x", minMaxBytes/2-10), false},
		{"nvarchar(max)", strings.Repeat("x", minMaxBytes/2+1), true},
		{"nvarchar(max)", strings.Repeat("😀", minMaxBytes/4+1), true},
		{"varchar(max)", strings.Repeat("x", minMaxBytes-100), false},
		{"varchar(max)", strings.Repeat("x", minMaxBytes+2), true},
		{"varbinary(max)", make([]byte, minMaxBytes+2), true},
	} {
		f := &fake{t: t, table: []column{{name: "id", declared: "int"}, {name: "v", declared: tt.declared}, {name: "rv", declared: "timestamp"}}}
		f.answer = func(text string, _ []any) ([][]driver.Value, error) {
			if text == sqlserverBound {
				return [][]driver.Value{{"1", "1"}}, nil
			}
			return [][]driver.Value{{"1", "1", int64(1), tt.value}}, nil
		}
		c := orders(SQLServer, RowVersion, "rv")
		c.Table.Columns, c.MaxBytes = []string{"v"}, minMaxBytes
		_, err := newFetcher(t, c, Options{connect: f.connect}).Fetch(t.Context(), nil)
		if tt.want {
			isFault(t, err, poll.Answer, "a row has more than 65536 bytes")
		} else if err != nil {
			t.Errorf("%s: %v", tt.declared, err)
		}
	}
}

func TestSQLServerFaults(t *testing.T) {
	for _, tt := range []struct {
		number int32
		said   string
		kind   poll.FaultKind
		want   string
	}{
		{18456, "Login failed for user 'reader' with password 'canary p@ss'.", poll.Credentials, "Login failed for user 'reader' with password '<redacted>'. (error 18456); check user and password in dsn"},
		{4060, `Cannot open database "shop"`, poll.Configuration, "check the database in dsn"},
		{40615, "Client with IP address '1.2.3.4' is not allowed", poll.Configuration, "open the server's firewall"},
		{208, "Invalid object name 'dbo.orders'.", poll.Configuration, "check table and table.filter"},
		{229, "The SELECT permission was denied", poll.Credentials, "GRANT SELECT"},
		{3952, "Snapshot isolation transaction failed", poll.Configuration, "SET ALLOW_SNAPSHOT_ISOLATION ON"},
		{22105, "Change tracking is not enabled", poll.Configuration, "ENABLE CHANGE_TRACKING"},
		{1205, "deadlocked", poll.Unavailable, "deadlocked (error 1205)"},
		{1222, "Lock request time out", poll.Unavailable, "no answer within 30s; an index on (rv, id) helps"},
		{40613, "Database 'shop' is not currently available", poll.Unavailable, "not currently available"},
		{50000, strings.Repeat("ü", 400) + "\x00\n", poll.Answer, "ü…"},
		{229, strings.Repeat("x", 2000), poll.Credentials, "x…; GRANT SELECT"},
	} {
		f := &fake{t: t, refuse: fmt.Errorf("login: %w", mssql.Error{Number: tt.number, Message: tt.said})}
		_, err := newFetcher(t, orders(SQLServer, RowVersion, "rv"), Options{connect: f.connect}).Fetch(t.Context(), nil)
		isFault(t, err, tt.kind, tt.want)
	}
	f := &fake{t: t, refuse: mssql.Error{Number: 40501, Message: "The service is currently busy. canary p@ss"}}
	_, err := newFetcher(t, orders(SQLServer, RowVersion, "rv"), Options{connect: f.connect}).Fetch(t.Context(), nil)
	if e, ok := errors.AsType[*poll.Throttled](err); !ok || e.After != 10*time.Second || !strings.Contains(e.Reason, "currently busy. <redacted>") {
		t.Errorf("got %v", err)
	}
	// What a broken connection quotes, in whatever spelling.
	f.refuse = errors.New("cannot reach " + sqlserverDSN + " or canary+p%40ss")
	_, err = newFetcher(t, orders(SQLServer, RowVersion, "rv"), Options{connect: f.connect}).Fetch(t.Context(), nil)
	isFault(t, err, poll.Unavailable, "no connection to sql.example.net:1434, or it broke: cannot reach <redacted> or <redacted>")
}

// Whoever gives up is told that, and not that the database has a fault.
func TestGivenUp(t *testing.T) {
	f := &fake{t: t}
	ctx, cancel := context.WithCancel(t.Context())
	f.answer = func(string, []any) ([][]driver.Value, error) {
		cancel()
		return nil, errors.New("broken")
	}
	_, err := newFetcher(t, orders(SQLServer, RowVersion, "rv"), Options{connect: f.connect}).Fetch(ctx, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func isFault(t *testing.T, err error, kind poll.FaultKind, reason string) {
	t.Helper()
	f, ok := errors.AsType[*poll.Fault](err)
	if !ok || f.Kind != kind || !strings.Contains(f.Reason, reason) {
		t.Errorf("got %v, want %s with %q", err, kind, reason)
	}
	if ok && (strings.Contains(f.Reason, "canary") || len(f.Reason) > poll.MaxReason) {
		t.Errorf("the reason shows too much: %s", f.Reason)
	}
}
