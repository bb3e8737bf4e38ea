package sqlrows

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	mssql "github.com/microsoft/go-mssqldb"
	"github.com/microsoft/go-mssqldb/msdsn"

	"github.com/gridfan/gridfan/infra/credentials"
)

// sqlserverScope is what tokens for Azure SQL are for (learn.microsoft.com/azure/
// azure-sql/database/authentication-aad-overview; read 2026-11-23).
const sqlserverScope = "https://database.windows.net/.default"

type sqlserver struct{}

func (sqlserver) open(c Config, creds *credentials.Credentials) (*sql.DB, error) {
	p, err := c.sqlserver()
	if err != nil {
		return nil, err
	}
	if _, ok := p.Parameters[msdsn.AppName]; !ok {
		p.AppName = "gridfan"
	}
	if creds == nil {
		return sql.OpenDB(mssql.NewConnectorConfig(p)), nil
	}
	connector, err := mssql.NewSecurityTokenConnector(p, func(ctx context.Context) (string, error) {
		t, err := creds.Azure().GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{sqlserverScope}})
		return t.Token, err
	})
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// begin begins a transaction that ends without a change. Change tracking needs one
// state of the database for what it recorded and the rows themselves. The other
// cursors must not have one: their bound is asked first, and a row below it has been
// committed by then, but perhaps after a state that was there before.
func (sqlserver) begin(ctx context.Context, db *sql.DB, c Config) (*sql.Tx, error) {
	level := sql.LevelReadCommitted
	if c.Cursor.Kind == ChangeTracking {
		level = sql.LevelSnapshot
	}
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: level})
	if err != nil {
		return nil, err
	}
	// Without parameters it is the session's, and not that of one statement.
	if _, err := tx.ExecContext(ctx, fmt.Sprintf("SET NOCOUNT ON; SET TEXTSIZE %d; SET LOCK_TIMEOUT %s; SET DATEFORMAT ymd", c.textSize(), milliseconds(c.Timeout))); err != nil {
		_ = tx.Rollback() // the statement's error says more
		return nil, err
	}
	return tx, nil
}

// textSize is where the server cuts values off, so that a value of 2 GB does not come
// over the wire. One that has this size may have been cut and is a fault. It is even:
// half a character of nvarchar would be none.
func (c Config) textSize() int64 { return (c.MaxBytes + 2) &^ 1 }

// sqlserverColumns finds columns with the type below an alias type. Types of the CLR
// have names of their own only.
const sqlserverColumns = `SELECT c.name, LOWER(COALESCE(TYPE_NAME(NULLIF(c.system_type_id, 240)), ty.name)),
  CONVERT(int, c.max_length), CONVERT(int, c.precision), CONVERT(int, c.scale), c.is_nullable, COALESCE(c.collation_name, ''),
  CONVERT(bit, CASE WHEN EXISTS (SELECT 1 FROM sys.indexes AS i JOIN sys.index_columns AS ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id
    WHERE i.object_id = c.object_id AND i.is_primary_key = 1 AND ic.column_id = c.column_id) THEN 1 ELSE 0 END)
FROM sys.columns AS c JOIN sys.types AS ty ON ty.user_type_id = c.user_type_id
WHERE c.object_id = OBJECT_ID(@p1)
ORDER BY c.column_id`

func (d sqlserver) columns(ctx context.Context, tx *sql.Tx, t Table) ([]column, error) {
	rows, err := tx.QueryContext(ctx, sqlserverColumns, d.quote(t.Schema)+"."+d.quote(t.Name))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []column
	for rows.Next() {
		var c column
		var length, precision, scale int
		if err := rows.Scan(&c.name, &c.base, &length, &precision, &scale, &c.nullable, &c.collation, &c.primary); err != nil {
			return nil, err
		}
		if c.base == "timestamp" {
			c.base = "rowversion" // its other name in the catalogue; it is no time
		}
		c.declared = declaration(c.base, length, precision, scale)
		if strings.Trim(c.collation, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
			return nil, fmt.Errorf("the collation of %s has no valid name", c.name)
		}
		all = append(all, c)
	}
	return all, rows.Err()
}

// declaration writes a type as CAST wants it. Lengths are in bytes, -1 for max.
func declaration(base string, length, precision, scale int) string {
	sized := func(n int) string {
		if length < 0 {
			return base + "(max)"
		}
		return fmt.Sprintf("%s(%d)", base, n)
	}
	switch base {
	case "decimal", "numeric":
		return fmt.Sprintf("%s(%d,%d)", base, precision, scale)
	case "char", "varchar", "binary", "varbinary":
		return sized(length)
	case "nchar", "nvarchar":
		return sized(length / 2)
	case "datetime2", "datetimeoffset", "time":
		return fmt.Sprintf("%s(%d)", base, scale)
	case "rowversion":
		return "binary(8)"
	default:
		return base
	}
}

func (sqlserver) quote(name string) string { return quoteWith("[", "]", name) }

func (sqlserver) param(n int) string { return fmt.Sprintf("@p%d", n) }

// text converts with styles that depend on no language and lose no digit
// (learn.microsoft.com/sql/t-sql/functions/cast-and-convert-transact-sql; read
// 2026-11-23): 126 is ISO 8601, 23 a date, 2 money with four digits, 1 binary as 0x….
func (sqlserver) text(ref string, c column) string {
	switch c.base {
	case "rowversion":
		return "CONVERT(varchar(20), CONVERT(bigint, " + ref + "))"
	case "binary", "varbinary":
		return "CONVERT(varchar(max), " + ref + ", 1)"
	case "char", "varchar", "nchar", "nvarchar":
		return "CONVERT(nvarchar(max), " + ref + ")"
	case "uniqueidentifier":
		return "LOWER(CONVERT(char(36), " + ref + "))"
	case "date":
		return "CONVERT(varchar(10), " + ref + ", 23)"
	case "datetime", "datetime2", "smalldatetime", "datetimeoffset":
		return "CONVERT(varchar(40), " + ref + ", 126)"
	case "money", "smallmoney":
		return "CONVERT(varchar(30), " + ref + ", 2)"
	default:
		return "CONVERT(varchar(50), " + ref + ")"
	}
}

// fromText gives a text the column's own type and collation. Compared as nvarchar,
// varchar would be in another order than the one it is sorted by, and rows be skipped.
func (sqlserver) fromText(param string, c column) string {
	switch c.base {
	case "rowversion":
		return "CONVERT(binary(8), CONVERT(bigint, " + param + "))"
	case "binary", "varbinary":
		return "CONVERT(" + c.declared + ", " + param + ", 1)"
	case "char", "varchar", "nchar", "nvarchar":
		if c.collation != "" {
			return "CAST(" + param + " COLLATE " + c.collation + " AS " + c.declared + ") COLLATE " + c.collation
		}
	}
	return "CAST(" + param + " AS " + c.declared + ")"
}

func (d sqlserver) value(ref string, c column) (string, form) {
	switch c.base {
	case "bit":
		return ref, asBool
	case "tinyint", "smallint", "int", "bigint":
		return ref, asNumber
	case "float":
		return ref, asFloat
	case "real":
		return ref, asReal
	case "decimal", "numeric", "money", "smallmoney":
		return d.text(ref, c), asNumber
	case "char", "varchar":
		return ref, asText
	case "nchar", "nvarchar":
		return ref, asWide
	case "binary", "varbinary", "rowversion":
		return ref, asBytes
	case "image", "geometry", "geography":
		return "CONVERT(varbinary(max), " + ref + ")", asBytes
	case "datetime", "datetime2", "smalldatetime":
		return d.text(ref, c), asStamp
	case "datetimeoffset":
		return d.text(ref, c), asZoned
	case "date", "time", "uniqueidentifier":
		return d.text(ref, c), asText
	case "json":
		return "CONVERT(nvarchar(max), " + ref + ")", asJSON
	case "hierarchyid":
		return "CONVERT(nvarchar(4000), " + ref + ")", asWide
	default: // xml, text, ntext, sql_variant, vector
		return "CONVERT(nvarchar(max), " + ref + ")", asWide
	}
}

// after spells out a comparison of rows, which T-SQL does not have, so that an index
// serves its first column.
func (sqlserver) after(refs, values []string) string {
	n := len(refs) - 1
	text := refs[n] + " > " + values[n]
	for i := n - 1; i >= 0; i-- {
		text = refs[i] + " >= " + values[i] + " AND (" + refs[i] + " > " + values[i] + " OR (" + text + "))"
	}
	return "(" + text + ")"
}

func (sqlserver) limit(n int) (head, tail string) { return fmt.Sprintf("TOP (%d) ", n), "" }

func (d sqlserver) window(ref string, c column, low string) (highest, sum string) {
	moment := "CAST(DATEDIFF_BIG(microsecond, '20000101', " + ref + ") AS decimal(38, 0))"
	if low != "" {
		moment = "CASE WHEN " + ref + " >= " + low + " THEN " + moment + " END"
	}
	return d.text("MAX("+ref+")", c), "CONVERT(varchar(50), COALESCE(SUM(" + moment + "), 0))"
}

func (sqlserver) now() string { return "CONVERT(varchar(40), SYSDATETIMEOFFSET(), 126)" }

// sqlserverBound is the first rowversion whose transaction may not have ended, and
// the one that is given out next. It has to be asked in a statement of its own before
// the rows: within one statement, rows could be of a state in which the transaction
// had not ended when the bound was taken in one in which it had.
const sqlserverBound = "SELECT CONVERT(varchar(20), CONVERT(bigint, MIN_ACTIVE_ROWVERSION())), CONVERT(varchar(20), CONVERT(bigint, @@DBTS) + 1)"

// sqlserverVersions are change tracking's: the newest, and the oldest from which it
// still knows all changes of the table. NULL: it is off, or not to be seen.
const sqlserverVersions = "SELECT CONVERT(varchar(20), CHANGE_TRACKING_CURRENT_VERSION()), CONVERT(varchar(20), CHANGE_TRACKING_MIN_VALID_VERSION(OBJECT_ID(@p1)))"
