package sqlrows

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	mssql "github.com/microsoft/go-mssqldb"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/router/poll"
)

func configuration(format string, args ...any) error {
	return &poll.Fault{Kind: poll.Configuration, Reason: fmt.Sprintf(format, args...)}
}

// bound makes foreign text printable and short enough for a Fault.
func bound(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case unicode.IsPrint(r):
			return r
		default:
			return utf8.RuneError
		}
	}, s)
	if len(s) <= poll.MaxReason {
		return s
	}
	return strings.ToValidUTF8(s[:poll.MaxReason-len("…")], "") + "…"
}

// secrets strikes a DSN's secrets out of what a driver or a server says, in every
// spelling in which it may.
func (c Config) secrets() *strings.Replacer {
	const redacted = "<redacted>"
	var pairs []string
	add := func(s string) {
		for _, form := range []string{s, url.QueryEscape(s), url.PathEscape(s)} {
			if form != "" {
				pairs = append(pairs, form, redacted)
			}
		}
	}
	// The longest first: of two that begin at one place, that one is struck.
	add(c.DSN.Reveal())
	if a, err := c.address(); err == nil {
		add(a.password)
	}
	return strings.NewReplacer(pairs...)
}

// fault says what an error means, without secrets.
func (f *Fetcher) fault(ctx context.Context, err error) error {
	switch {
	case err == nil, errors.Is(err, poll.ErrExpired), errors.Is(err, poll.ErrCursor):
		return err
	case errors.Is(ctx.Err(), context.Canceled): // the caller's own doing
		return ctx.Err()
	}
	var fault *poll.Fault
	var throttled *poll.Throttled
	switch {
	case errors.As(err, &fault):
	case errors.As(err, &throttled):
		throttled.Reason = bound(f.hide.Replace(throttled.Reason))
		return throttled
	default:
		err = f.judge(ctx, err)
		if !errors.As(err, &fault) {
			return f.fault(ctx, err)
		}
	}
	fault.Reason = bound(f.hide.Replace(fault.Reason))
	return fault
}

// judge makes a Fault or Throttled of any error.
func (f *Fetcher) judge(ctx context.Context, err error) error {
	if e, ok := errors.AsType[*credentials.Error](err); ok {
		return &poll.Fault{Kind: poll.Credentials, Reason: e.Reason}
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return f.postgresFault(e)
	}
	if e, ok := errors.AsType[mssql.Error](err); ok {
		return f.sqlserverFault(e)
	}
	if _, ok := errors.AsType[*pgproto3.ExceededMaxBodyLenErr](err); ok {
		return tooLong(f.c.MaxBytes)
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return f.slow()
	}
	where := f.c.Host()
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return &poll.Fault{Kind: poll.Unavailable, Reason: fmt.Sprintf("the name %s is not found (%s); check the host in dsn", e.Name, e.Err)}
	}
	return &poll.Fault{Kind: poll.Unavailable, Reason: fmt.Sprintf("no connection to %s, or it broke: %s", where, plain(err))}
}

// plain is an error's innermost cause, which has no connection string in it.
func plain(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err.Error()
		}
		err = next
	}
}

func (f *Fetcher) slow() error {
	return &poll.Fault{Kind: poll.Unavailable, Reason: fmt.Sprintf("no answer within %v; an index on %s helps, or a smaller pageSize, or a longer timeout", f.c.Timeout, f.index())}
}

// index names the columns by which queries go.
func (f *Fetcher) index() string {
	key := strings.Join(f.c.Table.Key, ", ")
	if f.c.Cursor.Column == "" {
		return "(" + key + ")"
	}
	return "(" + f.c.Cursor.Column + ", " + key + ")"
}

// postgresFault tells by the code of an error
// (postgresql.org/docs/current/errcodes-appendix.html; read 2026-11-23).
func (f *Fetcher) postgresFault(e *pgconn.PgError) error {
	said := fmt.Sprintf("%s (SQLSTATE %s)", e.Message, e.Code)
	kind, fix := poll.Answer, ""
	switch {
	case e.Code == "57014": // query_canceled: the timeout
		return f.slow()
	case strings.HasPrefix(e.Code, "28"):
		kind, fix = poll.Credentials, "check user and password in dsn, and pg_hba.conf"
	case e.Code == "42501":
		kind, fix = poll.Credentials, "GRANT USAGE on the schema and SELECT on the table"
	case e.Code == "3D000":
		kind, fix = poll.Configuration, "check the database in dsn"
	case e.Code == "42883" && strings.Contains(e.Message, "pg_current_snapshot"):
		kind, fix = poll.Configuration, "a cursor of kind transaction wants PostgreSQL 13 or later"
	case strings.HasPrefix(e.Code, "42"), strings.HasPrefix(e.Code, "22"):
		kind, fix = poll.Configuration, "check table and table.filter"
	case strings.HasPrefix(e.Code, "08"), strings.HasPrefix(e.Code, "53"), strings.HasPrefix(e.Code, "57"),
		strings.HasPrefix(e.Code, "58"), strings.HasPrefix(e.Code, "40"), strings.HasPrefix(e.Code, "55"), e.Code == "25P03":
		kind = poll.Unavailable
	}
	return faulty(kind, said, fix)
}

func faulty(kind poll.FaultKind, said, fix string) error {
	// The fix is to be read whatever the server says.
	if fix != "" {
		if most := poll.MaxReason - len(fix) - len("; ") - len("…"); len(said) > most {
			said = strings.ToValidUTF8(said[:most], "") + "…"
		}
		said += "; " + fix
	}
	return &poll.Fault{Kind: kind, Reason: said}
}

// throttledFor is what Azure SQL advises to wait (learn.microsoft.com/azure/azure-sql/
// database/troubleshoot-common-errors-issues; read 2026-11-23).
const throttledFor = 10 * time.Second

// sqlserverFault tells by the number of an error (learn.microsoft.com/sql/
// relational-databases/errors-events/database-engine-events-and-errors and
// azure-sql/database/troubleshoot-common-errors-issues; read 2026-11-23).
func (f *Fetcher) sqlserverFault(e mssql.Error) error {
	said := fmt.Sprintf("%s (error %d)", e.Message, e.Number)
	kind, fix := poll.Answer, ""
	switch e.Number {
	case 10928, 10929, 40501, 49918, 49919, 49920: // resource limits of Azure SQL
		return &poll.Throttled{After: throttledFor, Reason: said}
	case 18456, 18452, 18470, 18486, 18487, 18488:
		kind, fix = poll.Credentials, "check user and password in dsn, or the database user of the identity"
	case 229, 230, 262, 297, 300, 916:
		kind, fix = poll.Credentials, "GRANT SELECT on the table (and VIEW CHANGE TRACKING for changeTracking)"
	case 4060:
		kind, fix = poll.Configuration, "check the database in dsn, and that the login has a user in it"
	case 40615, 40532:
		kind, fix = poll.Configuration, "open the server's firewall for this address, and check the server in dsn"
	case 208, 207, 209, 102, 105, 156, 170, 195, 245, 241, 4104, 8114, 8115:
		kind, fix = poll.Configuration, "check table and table.filter"
	case 3952:
		kind, fix = poll.Configuration, "run ALTER DATABASE CURRENT SET ALLOW_SNAPSHOT_ISOLATION ON, which changeTracking needs"
	case 22105:
		kind, fix = poll.Configuration, "run ALTER TABLE … ENABLE CHANGE_TRACKING"
	case 1222: // lock request time out
		return f.slow()
	case 1205, 3961, 3960, 40197, 40613, 40143, 40166, 40540, 4221, 615, 926, 701, 802, 8645, 8651, 233, 6005, 983:
		kind = poll.Unavailable
	}
	return faulty(kind, said, fix)
}
