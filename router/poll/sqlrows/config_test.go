package sqlrows

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/secret"
)

const (
	postgresDSN  = "postgres://reader:canary%20p%40ss@db.example.net:5433/shop"
	sqlserverDSN = "sqlserver://reader:canary%20p%40ss@sql.example.net:1434?database=shop"
)

// orders is a valid Config.
func orders(d Driver, k Kind, column string) Config {
	dsn := postgresDSN
	if d == SQLServer {
		dsn = sqlserverDSN
	}
	return Config{
		Driver: d, DSN: secret.New(dsn), Table: Table{Name: "orders", Key: []string{"id"}},
		Cursor: Cursor{Kind: k, Column: column},
	}
}

func TestValidate(t *testing.T) {
	pg := func(change func(*Config)) Config {
		c := orders(Postgres, Transaction, "tx")
		change(&c)
		return c
	}
	ms := func(change func(*Config)) Config {
		c := orders(SQLServer, RowVersion, "rv")
		change(&c)
		return c
	}
	dsn := func(s string) func(*Config) { return func(c *Config) { c.DSN = secret.New(s) } }
	for _, tt := range []struct {
		name string
		c    Config
		want string // beginnings of lines; none: valid
	}{
		{"postgres", pg(func(*Config) {}), ""},
		{"keywords", pg(dsn("host=db.example.net user=reader password='canary pass' dbname=shop")), ""},
		{"socket", pg(dsn("host=/var/run/postgresql user=reader dbname=shop")), ""},
		{"sqlserver", ms(func(*Config) {}), ""},
		{"ado", ms(dsn("server=sql.example.net;user id=reader;password=canary;database=shop")), ""},
		{"byod", orders(SQLServer, BYOD, ""), ""},
		{"identity", ms(func(c *Config) {
			c.DSN = secret.New("sqlserver://sql.example.net?database=shop")
			c.Auth = &credentials.AzureAuth{ManagedIdentity: &credentials.ManagedIdentity{}}
		}), ""},
		{"nothing", Config{}, `sql.driver: missing; want postgres or sqlserver
sql.table.name: missing
sql.table.key: missing
sql.cursor.kind: missing`},
		{"driver", Config{Driver: "mysql", Table: Table{Name: "t", Key: []string{"id"}}, Cursor: Cursor{Kind: Timestamp, Column: "at"}}, `sql.driver: want postgres or sqlserver, got "mysql"`},
		{"no dsn", pg(dsn("")), "sql.dsn: missing; want the driver's connection string"},
		{"long dsn", pg(dsn(strings.Repeat("canary", 1000))), "sql.dsn: want at most 4096 bytes"},
		{"no dsn at all", pg(dsn("canary")), "sql.dsn: it is no connection string of PostgreSQL"},
		{"bad url", pg(dsn("postgres://reader:canary%zz@h/shop")), "sql.dsn: it is no connection string of PostgreSQL"},
		{"bad port", pg(dsn("postgres://reader:canary@h:port/shop")), "sql.dsn: it is no connection string of PostgreSQL"},
		{"no host", pg(dsn("postgres:///shop?password=canary")), "sql.dsn: it names no host"},
		{"no database", pg(dsn("postgres://reader:canary@h")), "sql.dsn: it names no database"},
		{"bad mode", pg(dsn("postgres://reader:canary@h/shop?sslmode=canary")), "sql.dsn: it is no connection string of PostgreSQL"},
		{"sqlserver's", ms(dsn("sqlserver://reader:canary@h?database=shop&encrypt=canary")), "sql.dsn: it is no connection string of SQL Server"},
		{"sqlserver without database", ms(dsn("sqlserver://reader:canary@h")), "sql.dsn: it names no database"},
		{"two credentials", ms(func(c *Config) { c.Auth = &credentials.AzureAuth{Default: true} }), "sql.dsn: it has a password although auth gets tokens"},
		{"key", ms(func(c *Config) { c.Auth = &credentials.AzureAuth{Key: "canary"} }), "sql.dsn: it has a password although\nsql.auth.key: not known to this service"},
		{"kind of the other", pg(func(c *Config) { c.Cursor.Kind = RowVersion }), `sql.cursor.kind: want one of transaction, timestamp, byod with postgres, got "rowversion"`},
		{"kind of the other", ms(func(c *Config) { c.Cursor.Kind = Transaction }), "sql.cursor.kind: want one of changeTracking, rowversion, timestamp, byod with sqlserver"},
		{"column", ms(func(c *Config) { c.Cursor.Kind = ChangeTracking }), "sql.cursor.column: changeTracking has none; remove the key"},
		{"overlap", ms(func(c *Config) { c.Cursor.Overlap = time.Hour }), "sql.cursor.overlap: rowversion misses nothing"},
		{"long overlap", ms(func(c *Config) { c.Cursor = Cursor{Timestamp, "at", 30 * 24 * time.Hour} }), "sql.cursor.overlap: want 1s to 168h0m0s, got 720h0m0s"},
		{"names", pg(func(c *Config) {
			c.Table.Schema, c.Table.Name = "a\nb", strings.Repeat("n", 129)
			c.Table.Key, c.Table.Columns = []string{"id", "id", ""}, []string{"a", "b", "a"}
			c.Table.Created, c.Table.Modified, c.Cursor.Column = "\x00", "\xff", "\x01"
		}), `sql.table.schema: a name has 1 to 128 printable characters, got "a\nb"
sql.table.name: a name has 1 to 128 printable characters, got "nnn
sql.table.key[1]: "id" is there twice
sql.table.key[2]: missing
sql.table.columns[2]: "a" is there twice
sql.table.created: a name has
sql.table.modified: a name has
sql.cursor.column: a name has`},
		{"key of many", pg(func(c *Config) { c.Table.Key = strings.Split("abcdefghijklmnopq", "") }), "sql.table.key: want at most 16 columns, got 17"},
		{"filter", pg(func(c *Config) { c.Table.Filter = strings.Repeat("a", 5000) }), "sql.table.filter: want at most 4096 bytes, got 5000"},
		{"filter", pg(func(c *Config) { c.Table.Filter = "a = 1\x00" }), "sql.table.filter: want printable text"},
		{"filter", pg(func(c *Config) { c.Table.Filter = "a = 1; DROP TABLE orders" }), "sql.table.filter: want one condition"},
		{"zone", pg(func(c *Config) { c.Table.Timezone = "Local" }), `sql.table.timezone: want an IANA name such as Europe/Berlin, got "Local"`},
		{"sizes", pg(func(c *Config) { c.PageSize, c.MaxBytes, c.Timeout = 1e6, 1, time.Hour }),
			"sql.pageSize: want 1 to 100000, got 1000000\nsql.maxBytes: want 65536 to 1073741824, got 1\nsql.timeout: want 1s to 10m0s, got 1h0m0s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if err := tt.c.Validate("sql"); err != nil {
				got = err.Error()
			}
			lines, want := strings.Split(got, "\n"), strings.Split(tt.want, "\n")
			ok := len(lines) == len(want) && (got == "") == (tt.want == "")
			for i := range min(len(lines), len(want)) {
				ok = ok && strings.HasPrefix(lines[i], want[i])
			}
			if !ok || strings.Contains(got, "canary") && !strings.Contains(tt.want, "canary") {
				t.Errorf("got %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	c := orders(SQLServer, BYOD, "")
	if err := c.Validate("sql"); err != nil {
		t.Fatal(err)
	}
	if c.Table.Schema != "dbo" || c.Table.Timezone != "UTC" || c.Cursor.Column != "SYNCSTARTDATETIME" || c.Cursor.Overlap != time.Hour ||
		c.PageSize != 1000 || c.MaxBytes != 64<<20 || c.Timeout != 30*time.Second {
		t.Errorf("got %+v", c)
	}
	c = orders(Postgres, Timestamp, "at")
	if err := c.Validate("sql"); err != nil || c.Table.Schema != "public" || c.Cursor.Overlap != 5*time.Minute {
		t.Errorf("got %+v, %v", c, err)
	}
}

// Who is asked and by whom can be shown; the secret cannot.
func TestNothingShowsTheDSN(t *testing.T) {
	for _, tt := range []struct {
		c              Config
		host, identity string
	}{
		{orders(Postgres, Transaction, "tx"), "db.example.net:5433", "postgres://reader@db.example.net:5433/shop"},
		{orders(SQLServer, RowVersion, "rv"), "sql.example.net:1434", "sqlserver://reader@sql.example.net:1434/shop"},
	} {
		if tt.c.Host() != tt.host || tt.c.Identity() != tt.identity {
			t.Errorf("got %s, %s", tt.c.Host(), tt.c.Identity())
		}
		j, err := json.Marshal(tt.c)
		if err != nil {
			t.Fatal(err)
		}
		r := tt.c.Redacted()
		for _, s := range []string{string(j), fmt.Sprintf("%v %+v %#v", tt.c, tt.c, tt.c), r.DSN.Reveal()} {
			if strings.Contains(s, "canary") || !strings.Contains(s, "redacted") {
				t.Errorf("got %s", s)
			}
		}
	}
}

// What leads to another machine is encrypted for a server that proves who it is,
// unless the operator says otherwise.
func TestTLSByDefault(t *testing.T) {
	for dsn, want := range map[string]string{ // the name that the certificate has to have
		postgresDSN: "db.example.net",
		"host=db.example.net dbname=shop user=u password=p":                 "db.example.net",
		"postgres://u:p@db.example.net/shop?sslmode=disable":                "",
		"host=db.example.net dbname=shop user=u password=p sslmode=disable": "",
	} {
		p, err := Config{Driver: Postgres, DSN: secret.New(dsn)}.postgres()
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if p.TLSConfig != nil && !p.TLSConfig.InsecureSkipVerify && len(p.Fallbacks) == 0 {
			got = p.TLSConfig.ServerName
		}
		if got != want {
			t.Errorf("%s: certificate of %q, want %q", dsn, got, want)
		}
	}
	for dsn, want := range map[string]bool{
		sqlserverDSN:                  true,
		"sqlserver://u:p@h/instance":  true,
		"server=h;user id=u;":         true,
		"odbc:server=h;user id=u":     true,
		sqlserverDSN + "&encrypt=no":  false,
		"server=h;encrypt=disable":    false,
		"sqlserver://u:p@127.0.0.1":   false,
		"sqlserver://u:p@localhost:1": false,
	} {
		p, err := Config{Driver: SQLServer, DSN: secret.New(dsn)}.sqlserver()
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Encryption == 1 && p.TLSConfig != nil && !p.TLSConfig.InsecureSkipVerify; got != want {
			t.Errorf("%s: encrypted for whom it should be: %v, want %v", dsn, got, want)
		}
	}
}

// A cursor belongs to what it was made of: whose rows, which, and what of them.
func TestDigest(t *testing.T) {
	base := orders(Postgres, Transaction, "tx")
	for name, change := range map[string]func(*Config){
		"host":    func(c *Config) { c.DSN = secret.New("postgres://reader:x@other.example.net/shop") },
		"base":    func(c *Config) { c.DSN = secret.New("postgres://reader:x@db.example.net:5433/other") },
		"table":   func(c *Config) { c.Table.Name = "lines" },
		"columns": func(c *Config) { c.Table.Columns = []string{"a"} },
		"filter":  func(c *Config) { c.Table.Filter = "a = 1" },
		"cursor":  func(c *Config) { c.Cursor.Column = "ty" },
	} {
		c := base
		if change(&c); c.digest() == base.digest() || c.digest() == "" {
			t.Errorf("%s: the same digest", name)
		}
	}
	c := base
	c.DSN, c.PageSize, c.Timeout = secret.New("postgres://somebody:else@db.example.net:5433/shop"), 7, time.Minute
	if c.digest() != base.digest() {
		t.Error("another password, page size or timeout makes another cursor")
	}
}
