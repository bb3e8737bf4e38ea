package odata_test

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/poll/odata"
	"github.com/gridfan/gridfan/router/poll/odata/odatatest"
	"github.com/gridfan/gridfan/router/poll/request"
	"github.com/gridfan/gridfan/schemas/event"
)

const canary = "canary-key-0123456789"

func newClock() *odatatest.Clock { return odatatest.NewClock(start) }

// accounts makes a Fetcher on a server, with an API key.
func accounts(t *testing.T, cursor odata.Cursor, serve http.HandlerFunc) (*odata.Fetcher, *httptest.Server) {
	t.Helper()
	srv := httptest.NewServer(serve)
	t.Cleanup(srv.Close)
	return fetcher(t, odatatest.NewClock(start), odata.Config{
		Kind: event.KindDataverse, Table: "account", Cursor: cursor,
		Target: request.Target{URL: srv.URL, MaxPage: 64 << 10, Auth: &credentials.Auth{APIKey: &credentials.APIKey{Header: "X-Key", Value: canary}}},
	}), srv
}

const row = `{"@odata.etag":"W/\"7\"","accountid":"a2a2a2a2-0000-4000-8000-000000000001","modifiedon":"2026-01-01T00:00:00Z","createdon":"2026-01-01T00:00:00Z"}`

// Every answer that is none is a fault that says what is wrong, without secrets, and
// the same call may be made again.
func TestBadAnswers(t *testing.T) {
	huge := `{"value":[{"accountid":"` + strings.Repeat("x", 70<<10) + `"}]}`
	for _, tt := range []struct {
		name   string
		status int
		body   string
		kind   poll.FaultKind
		want   string
	}{
		{"HTML page", 200, "<!doctype html><title>Sign in</title>", poll.Answer, "HTML or XML page"},
		{"nothing", 200, "", poll.Answer, "empty"},
		{"text", 200, "hello", poll.Answer, "not JSON"},
		{"truncated", 200, `{"value":[` + row + `,{"accountid":`, poll.Answer, "ends early"},
		{"an array", 200, `[` + row + `]`, poll.Answer, "want an object with a member value"},
		{"no value", 200, `{"@odata.context":"x"}`, poll.Answer, "member value is missing"},
		{"value null", 200, `{"value":null}`, poll.Answer, "member value is null"},
		{"value an object", 200, `{"value":{}}`, poll.Answer, "member value is an object"},
		{"value a text", 200, `{"value":"rows"}`, poll.Answer, "member value is a string"},
		{"an error with 200", 200, `{"error":{"code":"0x1","message":"sorry ` + canary + `"}}`, poll.Answer, "0x1: sorry <redacted>"},
		{"link a number", 200, `{"value":[],"@odata.nextLink":7}`, poll.Answer, "@odata.nextLink is a number"},
		{"link to another host", 200, `{"value":[` + row + `],"@odata.nextLink":"https://metadata.example/latest?key=secret"}`, poll.Answer, "leads to https://metadata.example and not to the source's own origin: refused"},
		{"link to another port", 200, `{"value":[],"@odata.nextLink":"http://127.0.0.1:1/"}`, poll.Answer, "refused"},
		{"link with another scheme", 200, `{"value":[],"@odata.nextLink":"file:///etc/passwd"}`, poll.Answer, "refused"},
		{"link with a user", 200, `{"value":[],"@odata.deltaLink":"//a@HOST/x"}`, poll.Answer, "refused"},
		{"link with a line feed", 200, `{"value":[],"@odata.deltaLink":"/x\r\nX: y"}`, poll.Answer, "control character"},
		{"no delta link", 200, `{"value":[` + row + `],"@odata.count":99}`, poll.Answer, "no delta link"},
		{"value twice", 200, `{"value":[],"value":[` + row + `]}`, poll.Answer, "stands twice"},
		{"too long", 200, huge, poll.Answer, "longer than 65536 bytes"},
		{"no keys", 200, `{"value":[{"name":"a"},{"accountid":null}]}`, poll.Configuration, "none of 2 rows can be read; the first: key column accountid is missing or null"},
		{"no objects", 200, `{"value":[1,"a",null]}`, poll.Configuration, "none of 3 rows"},
		{"refused", 401, `{"error":{"code":"0x80072560","message":"The user is not a member of the organization. ` + canary + `"}}`, poll.Credentials, "not a member of the organization. <redacted>"},
		{"forbidden", 403, "", poll.Credentials, "Forbidden"},
		{"redirect", 302, "", poll.Configuration, "redirects are not followed (this one leads to login.example)"},
		{"no such table", 404, `{"error":{"code":"0x80060888","message":"Resource not found"}}`, poll.Configuration, "Resource not found"},
		{"no such column", 400, `{"error":{"code":"0x0","message":"Could not find a property named 'x'"}}`, poll.Configuration, "Could not find a property"},
		{"broken", 500, "<html>", poll.Unavailable, "Internal Server Error"},
		{"gateway", 502, `{"error":{"message":"An error has occurred.","innererror":{"message":"really"}}}`, poll.Unavailable, "An error has occurred. really"},
		{"gone at once", 410, "", poll.Configuration, "Gone"}, // there was no cursor to forget
	} {
		t.Run(tt.name, func(t *testing.T) {
			var asked atomic.Int32
			f, srv := accounts(t, odata.ChangeTracking, func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				if r.Header.Get("X-Key") != canary {
					t.Error("without credentials")
				}
				w.Header().Set("Preference-Applied", "odata.track-changes")
				w.Header().Set("Location", "https://login.example/?secret=1")
				w.WriteHeader(tt.status)
				fmt.Fprint(w, strings.ReplaceAll(tt.body, "HOST", r.Host))
			})
			for range 2 {
				page, err := f.Fetch(t.Context(), nil)
				fault, ok := errors.AsType[*poll.Fault](err)
				if !ok || page != nil {
					t.Fatalf("got %+v, %v", page, err)
				}
				if fault.Kind != tt.kind || !strings.Contains(fault.Reason, tt.want) || len(fault.Reason) > 512 || strings.Contains(fault.Reason, "canary") {
					t.Errorf("got %s %q", fault.Kind, fault.Reason)
				}
				if errors.Is(err, poll.ErrExpired) {
					t.Error("a first request has expired")
				}
			}
			if asked.Load() != 2 {
				t.Errorf("%d requests at %s", asked.Load(), srv.URL)
			}
		})
	}
}

// A page of 2 GB is not read, packed or not.
func TestHugePage(t *testing.T) {
	for _, packed := range []bool{false, true} {
		var sent atomic.Int64
		f, _ := accounts(t, odata.Modified, func(w http.ResponseWriter, _ *http.Request) {
			var to io.Writer = w
			if packed {
				w.Header().Set("Content-Encoding", "gzip")
				z := gzip.NewWriter(w)
				defer z.Close()
				to = z
			}
			fmt.Fprint(to, `{"value":[`)
			chunk := []byte(strings.Repeat(" ", 1<<20))
			for range 2 << 10 {
				n, err := to.Write(chunk)
				if sent.Add(int64(n)); err != nil {
					return
				}
			}
		})
		_, err := f.Fetch(t.Context(), nil)
		if fault, ok := errors.AsType[*poll.Fault](err); !ok || !strings.Contains(fault.Reason, "longer than") {
			t.Fatalf("got %v", err)
		}
		if !packed && sent.Load() > 512<<20 {
			t.Errorf("%d bytes were sent", sent.Load())
		}
	}
}

// Links that lead in a circle, long or short, and pages without end come to one.
func TestCircles(t *testing.T) {
	for _, length := range []int{1, 2, 7, 50} {
		n := 0
		f, _ := accounts(t, odata.Modified, func(w http.ResponseWriter, _ *http.Request) {
			n++
			fmt.Fprintf(w, `{"value":[%s],"@odata.nextLink":"?page=%d"}`, row, n%length)
		})
		if pages, err := toTheEnd(t, f); err == nil || !strings.Contains(err.Error(), "circle") || pages > 4*length+4 {
			t.Errorf("length %d: %d pages, %v", length, pages, err)
		}
	}
	n := 0
	f, _ := accounts(t, odata.Version, func(w http.ResponseWriter, _ *http.Request) {
		n++
		fmt.Fprintf(w, `{"value":[],"@odata.nextLink":"?page=%d"}`, n)
	})
	if pages, err := toTheEnd(t, f); err == nil || !strings.Contains(err.Error(), "no rows") || pages > 2000 {
		t.Errorf("%d empty pages, %v", pages, err)
	}
	f, _ = accounts(t, odata.Version, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"value":[%s],"@odata.nextLink":"?page=1"}`, row)
	})
	if pages, err := toTheEnd(t, f); err == nil || !strings.Contains(err.Error(), "order") || pages != 1 {
		t.Errorf("the same rows again: %d pages, %v", pages, err)
	}
}

func toTheEnd(t *testing.T, f *odata.Fetcher) (pages int, err error) {
	t.Helper()
	var cursor json.RawMessage
	for pages = range 10_000 {
		page, err := f.Fetch(t.Context(), cursor)
		if err != nil {
			return pages, err
		}
		if cursor = page.Next; !page.More {
			return pages + 1, nil
		}
	}
	return pages, nil
}

// One row without a key costs no other.
func TestRejectedRow(t *testing.T) {
	f, _ := accounts(t, odata.Modified, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"value":[%s,{"name":"a"},{"accountid":"b2b2b2b2-0000-4000-8000-000000000001","a":1,"a":2},[]]}`, row)
	})
	page, err := f.Fetch(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Rows) != 1 || len(page.Rejected) != 3 || string(page.Rejected[0].Raw) != `{"name":"a"}` || !strings.Contains(page.Rejected[0].Reason, "accountid") {
		t.Errorf("got %+v", page)
	}
}

// Where the table is not tracked, or the server does not know what that is, there is
// no reading as if it were.
func TestNotTracked(t *testing.T) {
	f, _ := accounts(t, odata.ChangeTracking, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"value":[%s],"@odata.deltaLink":"?x"}`, row)
	})
	if _, err := f.Fetch(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "does not track changes of accounts") {
		t.Errorf("got %v", err)
	}
}

// A cursor is of one configuration.
func TestCursorOfAnother(t *testing.T) {
	serve := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Preference-Applied", "odata.track-changes")
		fmt.Fprintf(w, `{"value":[%s],"@odata.deltaLink":"?$deltatoken=1"}`, row)
	}
	f, srv := accounts(t, odata.ChangeTracking, serve)
	page, err := f.Fetch(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	other := fetcher(t, odatatest.NewClock(start), odata.Config{Kind: event.KindDataverse, Table: "account", Select: []string{"name"}, Target: request.Target{URL: srv.URL}})
	for _, cursor := range []string{string(page.Next), "{}", "[", `"x"`, `{"query":"` + "0" + `"}`} {
		if _, err := other.Fetch(t.Context(), json.RawMessage(cursor)); !errors.Is(err, poll.ErrCursor) {
			t.Errorf("%s: got %v", cursor, err)
		}
	}
	smaller := fetcher(t, odatatest.NewClock(start), odata.Config{Kind: event.KindDataverse, Table: "account", PageSize: 10, Target: request.Target{URL: srv.URL}})
	if _, err := smaller.Fetch(t.Context(), page.Next); err != nil {
		t.Errorf("another page size: %v", err)
	}
}

// A rewound cursor reads what was modified since, and is no listing.
func TestRewind(t *testing.T) {
	for _, cursor := range []odata.Cursor{odata.ChangeTracking, odata.Version, odata.Modified} {
		clock := odatatest.NewClock(start)
		d := odatatest.NewDataverse(clock, 1)
		srv := httptest.NewServer(d)
		defer srv.Close()
		d.URL = srv.URL
		f := fetcher(t, clock, odata.Config{Kind: event.KindDataverse, Table: "account", Cursor: cursor, PageSize: 2, Overlap: time.Minute, Target: request.Target{URL: srv.URL}})
		var ids []string
		for range 9 {
			id, commit := d.Create("a")
			commit()
			ids = append(ids, id)
			clock.Sleep(time.Hour)
		}
		c, err := f.Rewind(t.Context(), start.Add(5*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		read := func() {
			for {
				page, err := f.Fetch(t.Context(), c)
				if err != nil {
					t.Fatal(err)
				}
				if page.Listing || page.Listed {
					t.Errorf("%s: a listing", cursor)
				}
				for _, r := range page.Rows {
					seen[r.Key] = true
				}
				if c = page.Next; !page.More {
					return
				}
			}
		}
		read()
		for i, id := range ids {
			if seen[id] != (i >= 5) {
				t.Errorf("%s: row %d: %v", cursor, i, seen[id])
			}
		}
		d.Update(ids[0], "b")()
		if read(); !seen[ids[0]] {
			t.Errorf("%s: what follows is not read", cursor)
		}
	}
}

// The link to a next page that the source has forgotten is asked for again for a
// while; then the round begins anew and nothing is lost.
func TestForgottenPage(t *testing.T) {
	clock := odatatest.NewClock(start)
	d := odatatest.NewDataverse(clock, 1)
	var forget atomic.Bool
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if forget.Load() && strings.Contains(r.RequestURI, "skiptoken") {
			w.WriteHeader(400)
			return
		}
		d.ServeHTTP(w, r)
	}))
	defer srv.Close()
	d.URL = srv.URL
	for range 5 {
		_, commit := d.Create("a")
		commit()
	}
	f := fetcher(t, clock, odata.Config{Kind: event.KindDataverse, Table: "account", Cursor: odata.Modified, PageSize: 2, Target: request.Target{URL: srv.URL}})
	page, err := f.Fetch(t.Context(), nil)
	if err != nil || !page.More {
		t.Fatalf("got %+v, %v", page, err)
	}
	forget.Store(true)
	if _, err := f.Fetch(t.Context(), page.Next); err == nil {
		t.Error("no fault at first")
	}
	clock.Sleep(2 * time.Minute)
	page, err = f.Fetch(t.Context(), page.Next)
	if err != nil || !page.More || !page.Listing || len(page.Rows) != 0 {
		t.Fatalf("got %+v, %v", page, err)
	}
	forget.Store(false)
	rows := 0
	for more := true; more; {
		if page, err = f.Fetch(t.Context(), page.Next); err != nil {
			t.Fatal(err)
		}
		rows, more = rows+len(page.Rows), page.More
	}
	if rows != 5 || !page.Listed {
		t.Errorf("%d rows, %+v", rows, page)
	}
}

// A link to a next page of changes that is refused is given up at once, the first time:
// the round begins at the delta link again, or where it began by time or version. A
// link of the new beginning that is refused as well is a fault, and not tried without
// end; when that is over, all goes on.
func TestMadeUpLink(t *testing.T) {
	for _, cursor := range []odata.Cursor{odata.ChangeTracking, odata.Version, odata.Modified} {
		for _, status := range []int{400, 404, 410} {
			t.Run(fmt.Sprint(cursor, status), func(t *testing.T) {
				clock := odatatest.NewClock(start)
				d := odatatest.NewDataverse(clock, 1)
				var lies atomic.Bool
				srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					switch {
					case strings.Contains(r.RequestURI, "made-up"):
						w.WriteHeader(status)
					case lies.Load():
						fmt.Fprintf(w, `{"value":[],"@odata.nextLink":"http://%s/api/data/v9.2/accounts?made-up=1"}`, r.Host)
					default:
						d.ServeHTTP(w, r)
					}
				}))
				defer srv.Close()
				d.URL = srv.URL
				f := fetcher(t, clock, odata.Config{Kind: event.KindDataverse, Table: "account", Cursor: cursor, PageSize: 2, Target: request.Target{URL: srv.URL}})
				var at json.RawMessage
				read := func() (rows int) {
					t.Helper()
					for more := true; more; {
						page, err := f.Fetch(t.Context(), at)
						if err != nil {
							t.Fatal(err)
						}
						at, rows, more = page.Next, rows+len(page.Rows), page.More
					}
					return rows
				}
				read()
				clock.Sleep(time.Hour)
				_, commit := d.Create("a")
				commit()
				one := func() (*poll.Page, error) {
					page, err := f.Fetch(t.Context(), at)
					if err == nil {
						at = page.Next
					}
					return page, err
				}
				lies.Store(true)
				for i := range 3 { // the link, that it is refused, and another one
					if page, err := one(); err != nil || !page.More || len(page.Rows) > 0 {
						t.Fatalf("%d: %+v, %v", i, page, err)
					}
				}
				for range 2 {
					_, err := one()
					if fault, ok := errors.AsType[*poll.Fault](err); !ok || fault.Kind != poll.Configuration || !strings.Contains(fault.Reason, "did so before") {
						t.Fatalf("got %v", err)
					}
				}
				lies.Store(false)
				clock.Sleep(time.Hour)
				if n := read(); n != 1 {
					t.Errorf("%d rows were read then", n)
				}
			})
		}
	}
}

// A version that is committed late, between two rounds, is read: also if that is just
// when what was seen becomes old enough.
func TestLateCommit(t *testing.T) {
	clock := odatatest.NewClock(start)
	d := odatatest.NewDataverse(clock, 1)
	srv := httptest.NewServer(d)
	defer srv.Close()
	d.URL = srv.URL
	f := fetcher(t, clock, odata.Config{Kind: event.KindDataverse, Table: "account", Cursor: odata.Version, Overlap: time.Minute, Target: request.Target{URL: srv.URL}})
	var cursor json.RawMessage
	seen := map[string]bool{}
	round := func() {
		page, err := f.Fetch(t.Context(), cursor)
		if err != nil || page.More {
			t.Fatalf("got %+v, %v", page, err)
		}
		for _, r := range page.Rows {
			seen[r.Key] = true
		}
		cursor = page.Next
	}
	round()
	late, commit := d.Create("late")
	_, at := d.Create("higher")
	at()
	round() // sees the higher one
	clock.Sleep(50 * time.Second)
	round()
	clock.Sleep(5 * time.Second)
	commit() // 55 s after its statement
	clock.Sleep(6 * time.Second)
	round() // 61 s after the higher one was seen
	if !seen[late] {
		t.Error("a late commit is missed")
	}
}

// A clock that is wrong, and a row from the future, hide nothing.
func TestClocks(t *testing.T) {
	for name, skew := range map[string]time.Duration{"ahead": 48 * time.Hour, "behind": -48 * time.Hour} {
		now := time.Now().UTC().Truncate(time.Second)
		var since []string
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", now.Add(skew).Format(http.TimeFormat))
			since = append(since, r.URL.Query().Get("$filter"))
			fmt.Fprintf(w, `{"value":[{"accountid":"a2a2a2a2-0000-4000-8000-000000000001","modifiedon":"%s"}]}`, now.Add(1000*time.Hour).Format(time.RFC3339))
		}))
		defer srv.Close()
		cfg := odata.Config{Kind: event.KindDataverse, Table: "account", Cursor: odata.Modified, Target: request.Target{URL: srv.URL}}
		f := fetcher(t, odatatest.NewClock(now), cfg)
		page, err := f.Fetch(t.Context(), nil)
		if err == nil {
			_, err = f.Fetch(t.Context(), page.Next)
		}
		if err != nil {
			t.Fatal(err)
		}
		at, err := time.Parse(time.RFC3339, strings.TrimPrefix(since[1], "modifiedon ge "))
		if err != nil || at.After(now.Add(-4*time.Minute)) || page.Bound.After(now) {
			t.Errorf("%s: the next round begins with %q", name, since[1])
		}
	}
}
