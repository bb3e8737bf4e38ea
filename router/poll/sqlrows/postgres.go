package sqlrows

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/gridfan/gridfan/infra/credentials"
)

// postgresScope is what tokens for Azure Database for PostgreSQL are for; they take
// the password's place (learn.microsoft.com/azure/service-connector/
// how-to-integrate-postgres; read 2026-11-23).
const postgresScope = "https://ossrdbms-aad.database.windows.net/.default"

type postgres struct{}

func (postgres) open(c Config, creds *credentials.Credentials) (*sql.DB, error) {
	p, err := c.postgres()
	if err != nil {
		return nil, err
	}
	// Prepared statements would get lost behind a pooler that hands out another
	// connection for each transaction.
	p.DefaultQueryExecMode = pgx.QueryExecModeExec
	p.StatementCacheCapacity, p.DescriptionCacheCapacity = 0, 0
	// A row comes in one message.
	p.MaxProtocolMessageBodyLen = int(c.MaxBytes) + 1<<20
	if p.RuntimeParams["application_name"] == "" {
		p.RuntimeParams["application_name"] = "gridfan"
	}
	var opts []stdlib.OptionOpenDB
	if creds != nil {
		opts = append(opts, stdlib.OptionBeforeConnect(func(ctx context.Context, p *pgx.ConnConfig) error {
			t, err := creds.Azure().GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{postgresScope}})
			p.Password = t.Token
			return err
		}))
	}
	return sql.OpenDB(stdlib.GetConnector(*p, opts...)), nil
}

// begin begins a transaction that sees one state of the database: what it says of
// its counters is about the very rows that it reads.
func (postgres) begin(ctx context.Context, db *sql.DB, c Config) (*sql.Tx, error) {
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	settings := []struct{ name, value string }{
		{"statement_timeout", milliseconds(c.Timeout)},
		{"lock_timeout", milliseconds(c.Timeout)},
		{"idle_in_transaction_session_timeout", milliseconds(2 * c.Timeout)},
		{"TimeZone", "UTC"}, {"DateStyle", "ISO, YMD"}, {"IntervalStyle", "iso_8601"},
		{"extra_float_digits", "1"}, {"bytea_output", "hex"},
	}
	calls, args := make([]string, len(settings)), make([]any, 0, 2*len(settings))
	for i, s := range settings {
		calls[i] = fmt.Sprintf("set_config($%d, $%d, true)", 2*i+1, 2*i+2)
		args = append(args, s.name, s.value)
	}
	calls = append(calls, postgresEncoding)
	if _, err := tx.ExecContext(ctx, "SELECT "+strings.Join(calls, ", "), args...); err != nil {
		_ = tx.Rollback() // the statement's error says more
		return nil, err
	}
	return tx, nil
}

// postgresEncoding has a database that does not know its encoding send what it has:
// asked for UTF-8 it refuses the whole page for the sake of one text.
const postgresEncoding = "set_config('client_encoding', CASE WHEN current_setting('server_encoding') = 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END, true)"

// postgresColumns finds columns with the type below a domain, if they have one.
const postgresColumns = `SELECT a.attname, b.typname, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull, b.typcategory::text
FROM pg_catalog.pg_attribute AS a
  JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
  JOIN pg_catalog.pg_type AS b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END
WHERE a.attrelid = to_regclass($1::text) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum`

func (d postgres) columns(ctx context.Context, tx *sql.Tx, t Table) ([]column, error) {
	rows, err := tx.QueryContext(ctx, postgresColumns, d.quote(t.Schema)+"."+d.quote(t.Name))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []column
	for rows.Next() {
		var c column
		if err := rows.Scan(&c.name, &c.base, &c.declared, &c.nullable, &c.category); err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, rows.Err()
}

func (postgres) quote(name string) string { return quoteWith(`"`, `"`, name) }

func (postgres) param(n int) string { return fmt.Sprintf("$%d::text", n) }

func (postgres) text(ref string, _ column) string { return ref + "::text" }

func (postgres) fromText(param string, c column) string {
	return "CAST(" + param + " AS " + c.declared + ")"
}

func (postgres) value(ref string, c column) (string, form) {
	switch c.base {
	case "bool":
		return ref + "::text", asBool
	case "int2", "int4", "int8", "oid", "xid", "xid8", "numeric", "float4", "float8":
		return ref + "::text", asNumber
	case "json", "jsonb":
		return ref + "::text", asJSON
	case "bytea":
		return "encode(" + ref + ", 'base64')", asBase64
	case "timestamp":
		return ref + "::text", asStamp
	case "timestamptz":
		return ref + "::text", asZoned
	}
	if c.category == "A" || c.category == "C" { // arrays and composites
		return "to_json(" + ref + ")::text", asJSON
	}
	return ref + "::text", asText
}

func (postgres) after(refs, values []string) string {
	return "(" + strings.Join(refs, ", ") + ") > (" + strings.Join(values, ", ") + ")"
}

func (postgres) limit(n int) (head, tail string) { return "", fmt.Sprintf("\nLIMIT %d", n) }

func (postgres) window(ref string, _ column, low string) (highest, sum string) {
	when := "isfinite(" + ref + ")"
	if low != "" {
		when += " AND " + ref + " >= " + low
	}
	return "MAX(" + ref + ")::text",
		"COALESCE(SUM(CASE WHEN " + when + " THEN (extract(epoch FROM " + ref + ") * 1000000)::bigint END), 0)::text"
}

func (postgres) now() string { return "clock_timestamp()::text" }

// postgresBound is where every transaction below has ended, and where no transaction
// below begins any more.
const postgresBound = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text, pg_snapshot_xmax(pg_current_snapshot())::text"

// postgresServer tells whose counter of transactions it is: a restored database
// counts anew, and one that took over from another may have lost the last ones.
const (
	postgresMayAsk = "SELECT has_function_privilege('pg_control_system()', 'EXECUTE') AND has_function_privilege('pg_control_checkpoint()', 'EXECUTE')"
	postgresServer = "SELECT s.system_identifier::text || '/' || c.timeline_id::text FROM pg_control_system() AS s, pg_control_checkpoint() AS c"
)
