//go:build postgres && linux

package sqlrows

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/poll"
)

const ordersTable = `CREATE TABLE orders (
  id bigint PRIMARY KEY, note text,
  tx xid8 NOT NULL DEFAULT pg_current_xact_id(), at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.tx := pg_current_xact_id(); NEW.at := clock_timestamp(); RETURN NEW; END $$;
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE INDEX ON orders (tx, id); CREATE INDEX ON orders (at, id)`

func byTransaction() Config {
	return Config{Table: Table{Name: "orders", Key: []string{"id"}}, Cursor: Cursor{Kind: Transaction, Column: "tx"}}
}

// The rows of a listing, and then what has changed, in pages.
func TestPages(t *testing.T) {
	s := newDatabase(t)
	s.exec(ordersTable)
	for _, c := range []Cursor{{Kind: Transaction, Column: "tx"}, {Kind: Timestamp, Column: "at", Overlap: time.Second}} {
		t.Run(string(c.Kind), func(t *testing.T) {
			s.exec(`TRUNCATE orders`)
			s.exec(`INSERT INTO orders SELECT i, 'n' || i FROM generate_series(1, 25) AS i`)
			config := byTransaction()
			config.Cursor, config.PageSize = c, 10
			f := s.fetcher(config)
			var cursor json.RawMessage
			var keys []string
			for n := range 3 {
				page, err := f.Fetch(t.Context(), cursor)
				if err != nil {
					t.Fatal(err)
				}
				last := n == 2
				if page.More == last || !page.Listing || page.Listed != last || strings.Join(page.Columns, " ") != "id note tx at" {
					t.Errorf("page %d: %+v", n, page)
				}
				for _, r := range page.Rows {
					keys = append(keys, r.Key)
				}
				cursor = page.Next
			}
			if len(keys) != 25 || keys[0] != "1" || keys[24] != "25" {
				t.Errorf("got %v", keys)
			}
			// What is known comes again at most, until nothing has changed.
			_, cursor, _ = read(t, f, cursor)
			rows, cursor, _ := read(t, f, cursor)
			if len(rows) != 0 {
				t.Errorf("got %d rows although nothing has changed", len(rows))
			}
			s.exec(`UPDATE orders SET note = 'changed' WHERE id % 2 = 1`)
			s.exec(`INSERT INTO orders VALUES (100, 'new')`)
			rows, _, page := read(t, s.fetcher(config), cursor) // another process goes on
			got := map[string]string{}
			for _, r := range rows {
				got[r.Key] = string(r.Data)
			}
			if page.Listing || !strings.Contains(got["100"], `"note":"new"`) || !strings.Contains(got["25"], `"note":"changed"`) || c.Kind == Transaction && len(rows) != 14 {
				t.Errorf("got %d rows: %v", len(rows), got)
			}
		})
	}
}

// Without a loss: numbers keep their digits, times get an offset, bytes are base64,
// JSON stays what it was.
func TestTypes(t *testing.T) {
	s := newDatabase(t)
	s.exec(`CREATE TYPE mood AS ENUM ('fine'); CREATE DOMAIN amount AS numeric; CREATE TYPE pair AS (a int, b text);
CREATE TABLE types (id uuid PRIMARY KEY, tx xid8 DEFAULT '5', i8 bigint, n numeric, nan numeric, f float8, r real, b bool, t text, c char(4), d date,
  ts timestamp, tz timestamptz, inf timestamptz, tm time, iv interval, by bytea, js json, jb jsonb, a int[], e mood, dm amount, p pair, ip inet, nothing text, "strange ""name" int)`)
	s.exec(`INSERT INTO types VALUES ('A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', '7', 9223372036854775807, 12345678901234567890.12345678901234567890, 'NaN', 0.1, 0.1, true,
  E'a "quote" \\ \n ü 😀 </b>', 'ab', '2026-11-23', '2026-07-01 12:00:00.123456', '2026-07-01 12:00:00.5+02', 'infinity', '23:59:59.5', '1 day 2 hours',
  '\x00ff10', '{"b": 1.10,  "a":[1e400]}', '{"n": 1.10}', '{1,2}', 'fine', 1.50, (1,'x'), '10.0.0.1', NULL, 3)`)
	f := s.fetcher(Config{Table: Table{Name: "types", Key: []string{"id"}, Timezone: "Europe/Berlin", Modified: "tz", Created: "ts"}, Cursor: Cursor{Kind: Transaction, Column: "tx"}})
	rows, _, page := read(t, f, nil)
	const want = `{"id":"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11","tx":7,"i8":9223372036854775807,"n":12345678901234567890.12345678901234567890,"nan":"NaN","f":0.1,"r":0.1,"b":true,` +
		`"t":"a \"quote\" \\ \n ü 😀 </b>","c":"ab","d":"2026-11-23","ts":"2026-07-01T12:00:00.123456+02:00","tz":"2026-07-01T10:00:00.5Z","inf":"infinity","tm":"23:59:59.5","iv":"P1DT2H",` +
		`"by":"AP8Q","js":{"b": 1.10,  "a":[1e400]},"jb":{"n": 1.10},"a":[1,2],"e":"fine","dm":1.50,"p":{"a":1,"b":"x"},"ip":"10.0.0.1/32","nothing":null,"strange \"name":3}`
	if len(rows) != 1 || string(rows[0].Data) != want {
		t.Errorf("got  %s\nwant %s", rows[0].Data, want)
	}
	r := rows[0]
	if r.Key != "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11" || r.Version != "7" || !r.Ordered || !r.Modified.Equal(time.Date(2026, 7, 1, 10, 0, 0, 5e8, time.UTC)) ||
		!r.Created.Equal(time.Date(2026, 7, 1, 10, 0, 0, 123456000, time.UTC)) {
		t.Errorf("got %+v", r)
	}
	if len(page.Columns) != 26 || page.Columns[25] != `strange "name` {
		t.Errorf("got %q", page.Columns)
	}
}

// Every type of a key can be read from where it was, text in the order of its
// collation.
func TestKeys(t *testing.T) {
	s := newDatabase(t)
	for _, tt := range []struct{ typ, values string }{
		{"int", "(-5), (0), (3), (2147483647)"},
		{"numeric(20,5)", "(-1.5), (0), (0.00001), (99999)"},
		{"text", "(''), ('a'), ('A'), ('ä'), ('a b'), ('-a'), ('a''b'), ('%'), ('a,b')"},
		{`text COLLATE "und-x-icu"`, "('a'), ('A'), ('ä'), ('-a'), ('b'), ('a-b')"},
		{"char(3)", "('a'), ('b'), ('abc')"},
		{"uuid", "(gen_random_uuid()), (gen_random_uuid()), (gen_random_uuid())"},
		{"timestamptz", "('2026-01-01 00:00:00.000001Z'), ('2026-01-01 00:00:00.000002Z'), ('-infinity'), ('infinity')"},
		{"timestamp", "('2026-01-01 00:00:00.000001'), ('0044-03-15 BC'), ('2026-01-01')"},
		{"date", "('2026-01-01'), ('2025-01-01'), ('infinity')"},
		{"bytea", `('\x00'), ('\x'), ('\xff00')`},
		{"bool", "(true), (false)"},
		{"mood", "('good'), ('bad'), ('fair')"},
	} {
		t.Run(tt.typ, func(t *testing.T) {
			s.exec(`DROP TABLE IF EXISTS keys; DROP TYPE IF EXISTS mood; CREATE TYPE mood AS ENUM ('bad', 'good', 'fair')`)
			s.exec(`CREATE TABLE keys (k ` + tt.typ + ` PRIMARY KEY, tx xid8 NOT NULL DEFAULT pg_current_xact_id())`)
			config := Config{Table: Table{Name: "keys", Key: []string{"k"}}, Cursor: Cursor{Kind: Transaction, Column: "tx"}, PageSize: 1}
			_, cursor, _ := read(t, s.fetcher(config), nil)
			s.exec(`INSERT INTO keys VALUES ` + tt.values)
			n := strings.Count(tt.values, "(") - strings.Count(tt.values, "()")
			for name, cursor := range map[string]json.RawMessage{"listing": nil, "changes": cursor} {
				rows, _, _ := read(t, s.fetcher(config), cursor)
				seen := map[string]bool{}
				for _, r := range rows {
					seen[r.Key] = true
				}
				if len(rows) != n || len(seen) != n {
					t.Errorf("%s: got %d rows, %d keys, want %d: %v", name, len(rows), len(seen), n, seen)
				}
			}
		})
	}
}

func TestPostgresFaults(t *testing.T) {
	s := newDatabase(t)
	s.exec(ordersTable)
	s.exec(`INSERT INTO orders SELECT i, 'n' FROM generate_series(1, 3) AS i`)
	s.exec(`CREATE TABLE doubles (id int, part int, tx xid8 DEFAULT pg_current_xact_id(), at timestamp);
INSERT INTO doubles VALUES (1, 1), (1, 2), (2, NULL);
CREATE TABLE large (id int PRIMARY KEY, t text, tx xid8 DEFAULT pg_current_xact_id()); INSERT INTO large SELECT 1, repeat('x', 3000000);
CREATE VIEW slow AS SELECT id, tx, pg_sleep(10)::text AS nap FROM orders;
CREATE ROLE visitor LOGIN PASSWORD 'canary guest'; CREATE SCHEMA hidden; CREATE TABLE hidden.t (id int PRIMARY KEY, tx xid8);
CREATE VIEW odd AS SELECT id, tx, 1 / (id - 2) AS q FROM orders`)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := free.Addr().(*net.TCPAddr).Port
	_ = free.Close()
	for _, tt := range []struct {
		name   string
		change func(*Config)
		kind   poll.FaultKind
		want   string
	}{
		{"password", func(c *Config) { c.DSN = secret.New(s.dsn("owner", "canary%20wrong")) }, poll.Credentials, "password authentication failed"},
		{"user", func(c *Config) { c.DSN = secret.New(s.dsn("stranger", "canary%20wrong")) }, poll.Credentials, "check user and password in dsn"},
		{"database", func(c *Config) {
			c.DSN = secret.New(strings.Replace(s.dsn("owner", escaped), s.name, "elsewhere", 1))
		}, poll.Configuration, `database "elsewhere" does not exist (SQLSTATE 3D000); check the database in dsn`},
		{"nobody there", func(c *Config) {
			c.DSN = secret.New(fmt.Sprintf("postgres://owner:%s@127.0.0.1:%d/postgres", escaped, nobody))
		}, poll.Unavailable, "connection refused"},
		{"no such host", func(c *Config) { c.DSN = secret.New("postgres://owner:canary@db.invalid/postgres?sslmode=disable") }, poll.Unavailable, "db.invalid"},
		{"TLS", func(c *Config) {
			c.DSN = secret.New(strings.Replace(s.dsn("owner", escaped), "disable", "verify-full", 1))
		}, poll.Unavailable, "TLS"},
		{"table", func(c *Config) { c.Table.Name = "Orders" }, poll.Configuration, "there is no table or view Orders in schema public"},
		{"schema", func(c *Config) { c.Table.Schema = "else" }, poll.Configuration, "there is no table"},
		{"key", func(c *Config) { c.Table.Key = []string{"ID"} }, poll.Configuration, "orders has no column ID; it is spelt id; check table.key"},
		{"column", func(c *Config) { c.Table.Columns = []string{"gone"} }, poll.Configuration, "orders has no column gone; check table.columns"},
		{"cursor", func(c *Config) { c.Cursor.Column = "gone" }, poll.Configuration, "orders has no column gone; check cursor.column"},
		{"type of the cursor", func(c *Config) { c.Cursor.Column = "note" }, poll.Configuration, "column note has type text; a cursor of kind transaction wants xid8"},
		{"type of the time", func(c *Config) { c.Cursor = Cursor{Kind: Timestamp, Column: "tx"} }, poll.Configuration, "wants a date with a time"},
		{"modified", func(c *Config) { c.Table.Modified = "note" }, poll.Configuration, "table.modified wants"},
		{"filter", func(c *Config) { c.Table.Filter = "nonsense > 1" }, poll.Configuration, `column "nonsense" does not exist (SQLSTATE 42703); check table and table.filter`},
		{"filter's end", func(c *Config) { c.Table.Filter = "true) OR (true" }, "", ""},
		{"filter's comment", func(c *Config) { c.Table.Filter = "id = 1 -- only" }, "", ""},
		{"permission", func(c *Config) { c.DSN = secret.New(s.dsn("visitor", "canary%20guest")) }, poll.Credentials, "permission denied for table orders (SQLSTATE 42501); GRANT USAGE on the schema and SELECT"},
		{"permission for the schema", func(c *Config) {
			c.DSN, c.Table.Schema, c.Table.Name = secret.New(s.dsn("visitor", "canary%20guest")), "hidden", "t"
		}, poll.Credentials, "permission denied for schema hidden"},
		{"key twice", func(c *Config) { c.Table.Name = "doubles" }, poll.Configuration, "two rows have the same key id; set table.key"},
		{"no key", func(c *Config) { c.Table.Name, c.Table.Key, c.PageSize = "doubles", []string{"id", "part"}, 1 }, poll.Configuration, "column part of the key is NULL in some rows"},
		{"no time", func(c *Config) {
			c.Table.Name, c.Table.Key, c.Cursor = "doubles", []string{"id", "part"}, Cursor{Kind: Timestamp, Column: "at"}
		}, poll.Configuration, "at is NULL in some rows"},
		{"long row", func(c *Config) { c.Table.Name, c.MaxBytes = "large", 1<<20 }, poll.Answer, "a row has more than 1048576 bytes; leave its long columns out"},
		{"long row of many messages", func(c *Config) { c.Table.Name, c.MaxBytes = "large", 2_900_000 }, poll.Answer, "a row has more than 2900000 bytes"},
		{"slow", func(c *Config) { c.Table.Name, c.Timeout = "slow", time.Second }, poll.Unavailable, "no answer within 1s; an index on (tx, id) helps"},
		{"its own fault", func(c *Config) { c.Table.Name = "odd" }, poll.Configuration, "division by zero"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := byTransaction()
			tt.change(&c)
			f := s.fetcher(c)
			for range 2 { // it is not another one when it is asked again
				var err error
				page := &poll.Page{}
				for err == nil && !page.Listed {
					cursor := page.Next
					page, err = f.Fetch(t.Context(), cursor)
				}
				switch {
				case tt.kind != "":
					isFault(t, err, tt.kind, tt.want)
				case err != nil:
					t.Error(err)
				}
			}
		})
	}
	// Large columns that are left out are not read.
	c := byTransaction()
	c.Table.Name, c.MaxBytes, c.Table.Columns = "large", 1<<20, []string{"tx"}
	if rows, _, _ := read(t, s.fetcher(c), nil); len(rows) != 1 || strings.Contains(string(rows[0].Data), "xxx") {
		t.Errorf("got %v", rows)
	}
}

// A page ends before it would be too long.
func TestLongPages(t *testing.T) {
	s := newDatabase(t)
	s.exec(`CREATE TABLE large (id int PRIMARY KEY, t text, tx xid8 DEFAULT pg_current_xact_id()); INSERT INTO large SELECT i, repeat('x', 60000) FROM generate_series(1, 50) AS i`)
	f := s.fetcher(Config{Table: Table{Name: "large", Key: []string{"id"}}, Cursor: Cursor{Kind: Transaction, Column: "tx"}, MaxBytes: 200_000})
	page, err := f.Fetch(t.Context(), nil)
	if err != nil || len(page.Rows) != 3 || !page.More {
		t.Fatalf("got %d rows, %v", len(page.Rows), err)
	}
	if rows, _, _ := read(t, f, page.Next); len(rows) != 47 {
		t.Errorf("got %d further rows, want 47", len(rows))
	}
}

// Text of a database that does not know its encoding goes to quarantine where it is
// none, and does not hold up the others.
func TestNotUTF8(t *testing.T) {
	s := newDatabase(t)
	s.exec(`CREATE DATABASE old_` + s.name + ` ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE 'C'`)
	c := byTransaction()
	c.DSN = secret.New(strings.Replace(s.dsn("owner", escaped), s.name, "old_"+s.name, 1))
	f := s.fetcher(c)
	for _, text := range []string{ordersTable, `INSERT INTO orders VALUES (1, 'ok')`, `INSERT INTO orders SELECT 2, convert_from('\xfffe41', 'SQL_ASCII')`, `INSERT INTO orders VALUES (3, 'ok')`} {
		if _, err := f.db.ExecContext(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	page, err := f.Fetch(t.Context(), nil)
	if err != nil || len(page.Rows) != 2 || len(page.Rejected) != 1 {
		t.Fatalf("got %+v, %v", page, err)
	}
	bad := page.Rejected[0]
	if !json.Valid(bad.Raw) || !strings.Contains(string(bad.Raw), `"note":{"base64":"//5B"}`) || !strings.HasPrefix(bad.Reason, "column note is not UTF-8; repair the value") {
		t.Errorf("got %s: %s", bad.Raw, bad.Reason)
	}
}

// A transaction that somebody forgot holds the bound back, and its age shows.
func TestForgottenTransaction(t *testing.T) {
	s := newDatabase(t)
	s.exec(ordersTable)
	f := s.fetcher(byTransaction())
	_, cursor, _ := read(t, f, nil)
	tx, err := s.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), `INSERT INTO orders VALUES (1, 'forgotten')`); err != nil {
		t.Fatal(err)
	}
	_, cursor, page := read(t, f, cursor)
	opened := time.Now()
	if age := opened.Sub(page.Bound); age > 5*time.Second || age < 0 {
		t.Errorf("the bound's age is %v although nothing was committed since", age)
	}
	held := time.Time{}
	for i := 2; i < 40; i++ {
		s.exec(`INSERT INTO orders VALUES ($1, 'behind it')`, i)
		var rows int
		got, next, page := read(t, f, cursor)
		if rows, cursor = len(got), next; rows != 0 {
			t.Fatalf("got %s", got[0].Data)
		}
		if i == 2 {
			held = page.Bound
		}
		if !page.Bound.Equal(held) || page.Bound.After(opened) {
			t.Errorf("the bound moves from %v to %v", held, page.Bound)
		}
		if len(cursor) > 1500 {
			t.Fatalf("the cursor grows: %s", cursor)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	rows, _, page := read(t, f, cursor)
	if len(rows) != 39 || rows[0].Key != "1" || !page.Bound.After(opened) {
		t.Errorf("got %d rows, bound %v", len(rows), page.Bound)
	}
}

// A server that was restored, or that has taken over, does not go on counting where
// the cursor is.
func TestAnotherServer(t *testing.T) {
	s := newDatabase(t)
	s.exec(ordersTable)
	f := s.fetcher(byTransaction())
	_, cursor, _ := read(t, f, nil)
	var st state
	if err := json.Unmarshal(cursor, &st); err != nil || st.Server == "" {
		t.Fatalf("got %s, %v", cursor, err)
	}
	encode := func(change func(*state)) json.RawMessage {
		other := st
		change(&other)
		b, err := json.Marshal(other)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, tt := range map[string]struct {
		cursor json.RawMessage
		want   error
	}{
		"counts less":      {encode(func(s *state) { s.Lo += 1000 }), poll.ErrExpired},
		"ends later":       {encode(func(s *state) { s.Hi = s.Lo + 1000 }), poll.ErrExpired},
		"is another":       {encode(func(s *state) { s.Server = "1/1" }), poll.ErrExpired},
		"took over":        {encode(func(s *state) { s.Server = strings.Replace(s.Server, "/1", "/2", 1) }), poll.ErrExpired},
		"was not known":    {encode(func(s *state) { s.Server = "" }), nil},
		"of another table": {encode(func(s *state) { s.Of = "x" }), poll.ErrCursor},
		"no JSON":          {json.RawMessage(`{"of"`), poll.ErrCursor},
		"of later times":   {json.RawMessage(`{"of":"` + st.Of + `","unheard":1}`), poll.ErrCursor},
		"half a key":       {encode(func(s *state) { s.After = []string{"1", "2", "3"} }), poll.ErrCursor},
	} {
		if _, err := f.Fetch(t.Context(), tt.cursor); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", name, err, tt.want)
		}
	}
	// Whoever may only read may ask that, too.
	s.exec(`CREATE ROLE guest LOGIN PASSWORD 'guest'; GRANT SELECT ON orders TO guest`)
	c := byTransaction()
	c.DSN = secret.New(s.dsn("guest", "guest"))
	if _, cursor, _ := read(t, s.fetcher(c), nil); !strings.Contains(string(cursor), st.Server) {
		t.Errorf("got %s", cursor)
	}
}

// A server that dies amid a listing costs time only.
func TestServerDies(t *testing.T) {
	s := newServer(t).open(t, "postgres")
	s.exec(ordersTable)
	s.exec(`INSERT INTO orders SELECT i, 'n' FROM generate_series(1, 100) AS i`)
	c := byTransaction()
	c.PageSize = 10
	f := s.fetcher(c)
	seen := map[string]bool{}
	var cursor json.RawMessage
	for n := 0; ; n++ {
		if n == 4 {
			s.stop()
			_, err := f.Fetch(t.Context(), cursor)
			isFault(t, err, poll.Unavailable, "")
			if err := s.start(); err != nil {
				t.Fatal(err)
			}
		}
		page, err := f.Fetch(t.Context(), cursor)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page.Rows {
			seen[r.Key] = true
		}
		if cursor = page.Next; page.Listed {
			break
		}
	}
	if len(seen) != 100 {
		t.Errorf("got %d rows", len(seen))
	}
}

// Only cursors of times go back to a time.
func TestRewind(t *testing.T) {
	s := newDatabase(t)
	s.exec(`CREATE TABLE orders (id int PRIMARY KEY, tx xid8, at timestamp NOT NULL)`)
	s.exec(`INSERT INTO orders SELECT i, '9', '2026-11-01'::timestamp + i * interval '1 hour' FROM generate_series(0, 99) AS i`)
	c := byTransaction()
	if _, err := s.fetcher(c).Rewind(t.Context(), time.Now()); err == nil {
		t.Error("a transaction has a time")
	}
	c.Cursor, c.Table.Timezone = Cursor{Kind: Timestamp, Column: "at", Overlap: time.Minute}, "Europe/Berlin"
	f := s.fetcher(c)
	cursor, err := f.Rewind(t.Context(), time.Date(2026, 11, 4, 23, 0, 0, 0, time.UTC)) // midnight in Berlin
	if err != nil {
		t.Fatal(err)
	}
	rows, _, page := read(t, f, cursor)
	if len(rows) != 4 || rows[0].Key != "96" || page.Listing || !rows[0].Modified.Equal(time.Date(2026, 11, 4, 23, 0, 0, 0, time.UTC)) {
		t.Errorf("got %d rows, %v", len(rows), rows)
	}
}

// A time of the future hides nothing that is written today.
func TestTimeOfTheFuture(t *testing.T) {
	s := newDatabase(t)
	s.exec(`CREATE TABLE orders (id int PRIMARY KEY, at timestamptz NOT NULL)`)
	s.exec(`INSERT INTO orders VALUES (1, now()), (2, '9999-01-01Z'), (3, 'infinity')`)
	f := s.fetcher(Config{Table: Table{Name: "orders", Key: []string{"id"}}, Cursor: Cursor{Kind: Timestamp, Column: "at", Overlap: time.Second}})
	rows, cursor, _ := read(t, f, nil)
	if len(rows) != 3 {
		t.Errorf("got %d rows", len(rows))
	}
	for i := 4; i < 8; i++ {
		s.exec(`INSERT INTO orders VALUES ($1, clock_timestamp())`, i)
		var keys []string
		rows, cursor, _ = read(t, f, cursor)
		for _, r := range rows {
			keys = append(keys, r.Key)
		}
		if !strings.Contains(" "+strings.Join(keys, " ")+" ", fmt.Sprintf(" %d ", i)) {
			t.Errorf("row %d is not among %v", i, keys)
		}
	}
}

// Columns that come are read, and one that goes is named.
func TestDrift(t *testing.T) {
	s := newDatabase(t)
	s.exec(ordersTable)
	f := s.fetcher(byTransaction())
	_, cursor, page := read(t, f, nil)
	s.exec(`ALTER TABLE orders ADD COLUMN extra int; INSERT INTO orders (id, extra) VALUES (1, 2)`)
	rows, cursor, after := read(t, f, cursor)
	if len(after.Columns) != len(page.Columns)+1 || !strings.Contains(string(rows[0].Data), `"extra":2`) {
		t.Errorf("got %v, %s", after.Columns, rows[0].Data)
	}
	s.exec(`ALTER TABLE orders DROP COLUMN extra, DROP COLUMN tx`)
	_, err := f.Fetch(t.Context(), cursor)
	isFault(t, err, poll.Configuration, "orders has no column tx; check cursor.column")
}
