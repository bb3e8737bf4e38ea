package delta_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/poll/delta"
	"github.com/gridfan/gridfan/router/poll/request"
)

const canary = "canary-key-0123456789"

func config(url string) delta.Config {
	return delta.Config{
		Target: request.Target{URL: url, MaxPage: 64 << 10, Auth: &credentials.Auth{APIKey: &credentials.APIKey{Query: "code", Value: canary}}},
		Items:  ".items[]", Key: []string{".id"}, Table: "Shipment",
	}
}

func fetcher(t *testing.T, cfg delta.Config) *delta.Fetcher {
	t.Helper()
	if err := cfg.Validate("p"); err != nil {
		t.Fatal(err)
	}
	f, err := delta.New(cfg, request.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.URL
}

// summary is a page on one line.
func summary(p *poll.Page) string {
	var b strings.Builder
	for _, r := range p.Rows {
		fmt.Fprintf(&b, "%s@%s", r.Key, r.Version)
		if r.Deleted {
			b.WriteString("-")
		}
		b.WriteByte(' ')
	}
	for _, flag := range []struct {
		set  bool
		name string
	}{{p.More, "more"}, {p.Listing, "listing"}, {p.Listed, "listed"}} {
		if flag.set {
			b.WriteString(flag.name + " ")
		}
	}
	return strings.TrimSpace(b.String())
}

// rounds fetches n times.
func rounds(t *testing.T, f *delta.Fetcher, n int) (all []string, cursor json.RawMessage) {
	t.Helper()
	for range n {
		page, err := f.Fetch(t.Context(), cursor)
		if err != nil {
			t.Fatalf("after %q: %v", all, err)
		}
		all, cursor = append(all, summary(page)), page.Next
	}
	return all, cursor
}

// A log that is asked with a number: the kind with cursor and limit.
func TestCursor(t *testing.T) {
	log := []string{
		`{"id":"a","rev":1,"at":"2026-11-01T00:00:00Z","big":9007199254740993}`, `{"id":"b/c","rev":2}`, `{"id":"a","rev":3,"gone":true}`, `{"id":"d","rev":4,"gone":"2026-11-02T00:00:00Z"}`,
		`{"id":"e","rev":5,"gone":false}`,
	}
	var seen []string
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.URL.Query().Get("since")+r.Header.Get("X-Since"))
		if r.URL.Query().Get("code") != canary {
			t.Error("without credentials")
		}
		from, _ := strconv.Atoi(r.URL.Query().Get("since"))
		to := min(from+2, len(log))
		fmt.Fprintf(w, `{"items":[%s],"last":%d}`, strings.Join(log[from:to], ","), to)
	})
	cfg := config(url)
	cfg.Cursor, cfg.Query, cfg.Headers = ".last", map[string]string{"since": "{cursor}"}, map[string]string{"X-Since": "<{cursor}>"}
	cfg.Version, cfg.VersionGrows, cfg.Modified, cfg.Deleted = ".rev", true, ".at", ".gone"
	f := fetcher(t, cfg)
	got, cursor := rounds(t, f, 4)
	want := []string{"a@1 b%2Fc@2 more listing", "a@3- d@4- more listing", "e@5 more listing", "listing listed"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	log = append(log, `{"id":"a","rev":6}`)
	page, err := f.Fetch(t.Context(), cursor)
	if err != nil || summary(page) != "a@6 more" {
		t.Errorf("got %s, %v", summary(page), err)
	}
	if d := cmp.Diff([]string{"", "2<2>", "4<4>", "5<5>", "5<5>"}, seen); d != "" {
		t.Error(d)
	}
	first, err := f.Fetch(t.Context(), nil)
	if err != nil || !strings.Contains(string(first.Rows[0].Data), "9007199254740993") || first.Rows[0].Modified.IsZero() || !first.Rows[0].Ordered {
		t.Errorf("got %+v, %v", first, err)
	}
}

// Links: to pages relative, and to what comes later absolute; the key of the
// credentials, which some servers repeat in them, is not kept.
func TestLinks(t *testing.T) {
	n := 0
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if got := r.URL.Query()["code"]; len(got) != 1 || got[0] != canary {
			t.Errorf("%s: key %q", r.RequestURI, got)
		}
		n++
		switch {
		case r.URL.Path == "/v1/changes":
			fmt.Fprint(w, `{"items":[{"id":1}],"next":"page/2?code=`+canary+`&x=%2520"}`)
		case r.URL.Path == "/v1/page/2" && strings.HasPrefix(r.URL.RawQuery, "x=%2520&"):
			fmt.Fprintf(w, `{"items":[{"id":2}],"delta":"http://%s/v1/delta?t=1&code=%s"}`, r.Host, canary)
		case r.URL.Path == "/v1/delta" && r.URL.Query().Get("t") == "1":
			fmt.Fprintf(w, `{"items":[{"id":3}],"delta":"?t=2"}`)
		case r.URL.Path == "/v1/delta" && r.URL.Query().Get("t") == "2":
			w.WriteHeader(204)
		default:
			t.Errorf("asked for %s", r.RequestURI)
		}
	})
	cfg := config(url + "/v1/changes")
	cfg.Next, cfg.Resume = ".next", ".delta"
	got, cursor := rounds(t, fetcher(t, cfg), 5)
	if d := cmp.Diff([]string{"1@ more listing", "2@ listing listed", "3@", "", ""}, got); d != "" {
		t.Error(d)
	}
	if strings.Contains(string(cursor), "canary") {
		t.Errorf("the cursor has the key: %s", cursor)
	}
}

// An endpoint without a cursor is read whole each time, for the price of a 304 if it
// knows ETags.
func TestETag(t *testing.T) {
	tag := `"1"`
	var statuses []int
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", tag)
		status := 200
		if r.Header.Get("If-None-Match") == tag {
			status = 304
		}
		statuses = append(statuses, status)
		w.WriteHeader(status)
		if status == 200 {
			fmt.Fprint(w, `[{"id":"x","v":`+tag+`},{"id":"y","v":null}]`)
		}
	})
	cfg := config(url)
	cfg.Items, cfg.Version = ".", ".v"
	f := fetcher(t, cfg)
	got, cursor := rounds(t, f, 2)
	tag = `"2"`
	page, err := f.Fetch(t.Context(), cursor)
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, summary(page))
	if d := cmp.Diff([]string{"x@1 y@ listing listed", "", "x@2 y@ listing listed"}, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]int{200, 304, 200}, statuses); d != "" {
		t.Error(d)
	}
}

// A server that holds the request and then says nothing has nothing to say. One that
// is dead is noticed.
func TestHold(t *testing.T) {
	release := make(chan struct{})
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-r.Context().Done():
		case <-release:
			fmt.Fprint(w, `{"items":[{"id":1}],"c":"2"}`)
		}
	})
	cfg := config(url)
	cfg.Method, cfg.Body, cfg.Start, cfg.Cursor, cfg.Begins = "POST", `{"since":"{cursor}"}`, `a"b`, ".c", true
	cfg.Hold = time.Millisecond
	f := fetcher(t, cfg)
	silent := func(cursor json.RawMessage) (*poll.Page, error) {
		// The caller's time ends the wait, which is longer than Hold.
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		return f.Fetch(ctx, cursor)
	}
	var cursor json.RawMessage
	n := 0
	for ; n < 100; n++ {
		page, err := silent(cursor)
		if err != nil {
			if fault, ok := errors.AsType[*poll.Fault](err); !ok || fault.Kind != poll.Unavailable {
				t.Errorf("got %v", err)
			}
			break
		}
		if summary(page) != "" {
			t.Fatalf("got %s", summary(page))
		}
		cursor = page.Next
	}
	if n != 10 {
		t.Errorf("noticed after %d times", n)
	}
	close(release)
	page, err := f.Fetch(t.Context(), cursor)
	if err != nil || summary(page) != "1@ more" {
		t.Errorf("got %+v, %v", page, err)
	}
}

// What a POST says: the cursor is text in JSON.
func TestBody(t *testing.T) {
	var bodies []string
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		bodies = append(bodies, r.Header.Get("Content-Type")+" "+string(b))
		fmt.Fprint(w, `{"items":[],"c":"x\"y\\"}`)
	})
	cfg := config(url)
	cfg.Method, cfg.Body, cfg.Start, cfg.Cursor, cfg.Begins = "POST", `{"since":"{cursor}","n":{cursor}}`, `0`, ".c", true
	rounds(t, fetcher(t, cfg), 2)
	if d := cmp.Diff([]string{`application/json {"since":"0","n":0}`, `application/json {"since":"x\"y\\","n":x\"y\\}`}, bodies); d != "" {
		t.Error(d)
	}
}

func TestBadAnswers(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		status     int
		kind       poll.FaultKind
		want       string
	}{
		{"HTML", "<html>", 200, poll.Answer, "HTML"},
		{"truncated", `{"items":[{"id":1},`, 200, poll.Answer, "cannot be read"},
		{"no items", `{"data":[]}`, 200, poll.Answer, "items: want an array"},
		{"items a text", `{"items":"x"}`, 200, poll.Answer, "items: want an array"},
		{"no key", `{"items":[{"name":"x"}]}`, 200, poll.Configuration, "none of 1 rows can be read; the first: key[0] gives nothing"},
		{"no object", `{"items":[7]}`, 200, poll.Configuration, "none of 1 rows"},
		{"no cursor", `{"items":[{"id":1}],"more":false}`, 200, poll.Answer, "has rows and no cursor"},
		{"more of the same", `{"items":[{"id":1}],"c":"","more":true}`, 200, poll.Answer, "in a circle"},
		{"long cursor", `{"items":[],"c":"` + strings.Repeat("x", 20<<10) + `"}`, 200, poll.Answer, "cursor has 20480 bytes"},
		{"cursor an object", `{"items":[],"c":{}}`, 200, poll.Answer, "cursor: the result is an object"},
		{"too long", `{"items":["` + strings.Repeat("x", 70<<10) + `"]}`, 200, poll.Answer, "longer than"},
		{"other host", `{"items":[],"next":"http://169.254.169.254/x","more":true}`, 200, poll.Answer, "leads to http://169.254.169.254 and not"},
		{"refused", `{"error":"bad ` + canary + ` and secret-in-query"}`, 401, poll.Credentials, "bad <redacted> and <redacted>"},
		{"expired at once", ``, 410, poll.Configuration, "Gone"},
		{"down", `oops`, 503, poll.Unavailable, "oops"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tt.status)
				fmt.Fprint(w, tt.body)
			})
			cfg := config(url + "/?sig=secret-in-query")
			cfg.Cursor, cfg.More, cfg.Next, cfg.Query = ".c", ".more", ".next", map[string]string{"c": "{cursor}"}
			_, err := fetcher(t, cfg).Fetch(t.Context(), nil)
			fault, ok := errors.AsType[*poll.Fault](err)
			if !ok || fault.Kind != tt.kind || !strings.Contains(fault.Reason, tt.want) || len(fault.Reason) > 512 || errors.Is(err, poll.ErrExpired) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestThrottledAndExpired(t *testing.T) {
	status, after := 200, ""
	url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if after != "" {
			w.Header().Set("Retry-After", after)
		}
		w.WriteHeader(status)
		fmt.Fprint(w, `{"items":[],"c":"1"}`)
	})
	cfg := config(url)
	cfg.Cursor, cfg.Query, cfg.Expired = ".c", map[string]string{"c": "{cursor}"}, []int{422}
	f := fetcher(t, cfg)
	_, cursor := rounds(t, f, 1)
	status, after = 429, "17"
	for _, s := range []int{429, 503} {
		status = s
		_, err := f.Fetch(t.Context(), cursor)
		if throttled, ok := errors.AsType[*poll.Throttled](err); !ok || throttled.After != 17*time.Second || throttled.Status != s {
			t.Errorf("got %v", err)
		}
	}
	after = time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)
	status = 429
	_, err := f.Fetch(t.Context(), cursor)
	if throttled, ok := errors.AsType[*poll.Throttled](err); !ok || throttled.After < 59*time.Minute || throttled.After > time.Hour {
		t.Errorf("got %v", err)
	}
	after = ""
	for _, s := range []int{410, 422} {
		status = s
		if _, err := f.Fetch(t.Context(), cursor); !errors.Is(err, poll.ErrExpired) {
			t.Errorf("%d: got %v", s, err)
		}
	}
	if _, err := f.Fetch(t.Context(), json.RawMessage(`{"query":"other"}`)); !errors.Is(err, poll.ErrCursor) {
		t.Errorf("got %v", err)
	}
}

// A link to a next page that is refused is given up, and its round begun again where
// it began: at once for changes, after a minute for all rows. If the next link is
// refused as well, that is a fault.
func TestRefusedLink(t *testing.T) {
	for _, status := range []int{400, 404, 410} {
		lies, asked := true, 0
		url := serve(t, func(w http.ResponseWriter, r *http.Request) {
			switch q := r.URL.Query(); {
			case q.Get("page") == "none":
				w.WriteHeader(status)
			case q.Get("page") == "2":
				fmt.Fprint(w, `{"items":[{"id":2}],"delta":"?t=2"}`)
			case lies:
				fmt.Fprint(w, `{"items":[{"id":1}],"next":"?page=none"}`)
			case q.Get("t") == "2":
				asked++
				fmt.Fprint(w, `{"items":[{"id":1}],"next":"?page=2"}`)
			default:
				fmt.Fprint(w, `{"items":[{"id":1}],"next":"?page=2"}`)
			}
		})
		cfg := config(url + "/v1/changes")
		cfg.Next, cfg.Resume = ".next", ".delta"
		f := fetcher(t, cfg)
		now := time.Now()
		f.SetNow(func() time.Time { return now })
		var at json.RawMessage
		fetch := func(want string) {
			t.Helper()
			page, err := f.Fetch(t.Context(), at)
			if err != nil {
				t.Fatalf("%d: %v", status, err)
			}
			if got := summary(page); got != want {
				t.Errorf("%d: got %q, want %q", status, got, want)
			}
			at = page.Next
		}
		refused := func(expired bool) {
			t.Helper()
			_, err := f.Fetch(t.Context(), at)
			if fault, ok := errors.AsType[*poll.Fault](err); !ok || fault.Status != status || errors.Is(err, poll.ErrExpired) != expired {
				t.Errorf("%d: got %v", status, err)
			}
		}
		fetch("1@ more listing")
		refused(status == 410) // it may be a gateway for a moment
		now = now.Add(2 * time.Minute)
		fetch("more listing")
		lies = false
		fetch("1@ more listing")
		fetch("2@ listing listed")
		lies = true
		fetch("1@ more")
		fetch("more") // at once
		fetch("1@ more")
		refused(status == 410)
		lies = false
		now = now.Add(time.Hour)
		fetch("more")
		fetch("1@ more") // from where the round began
		fetch("2@")
		if asked != 1 {
			t.Errorf("%d: the link to later changes was asked for %d times", status, asked)
		}
	}
}

func TestRows(t *testing.T) {
	url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"items":[
			{"id":1,"site":"a","body":{"n":1.10}},
			{"id":2,"site":"b","gone":1,"body":null},
			{"id":3,"body":{}},
			{"id":4,"site":"c","body":[{}]},
			{"id":5,"site":"d","body":{},"at":"yesterday"},
			{"id":6,"site":"e","body":{},"rev":"x"}
		],"c":"1","more":false}`)
	})
	cfg := config(url)
	cfg.Cursor, cfg.Query, cfg.More = ".c", map[string]string{"c": "{cursor}"}, ".more"
	cfg.Key, cfg.Data, cfg.Deleted, cfg.Modified, cfg.Version, cfg.VersionGrows = []string{".site", ".id"}, ".body", ".gone", ".at", ".rev", true
	page, err := fetcher(t, cfg).Fetch(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := summary(page); got != "a/1@ b/2@- listing listed" || string(page.Rows[0].Data) != `{"n":1.10}` || page.Rows[1].Data != nil {
		t.Errorf("got %s", got)
	}
	var reasons []string
	for _, r := range page.Rejected {
		reasons = append(reasons, r.Reason)
	}
	want := []string{
		"key[0] gives nothing: a row needs a key; name another member in poll.delta.key",
		"the row is an array; want an object (see data)",
		"modified is no RFC 3339 time; seconds since 1970 become one by | todate",
		"version is no whole number, though versionGrows is set",
	}
	if d := cmp.Diff(want, reasons); d != "" {
		t.Error(d)
	}
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		change func(*delta.Config)
		want   string
	}{
		{func(*delta.Config) {}, ""},
		{func(c *delta.Config) { c.URL = "" }, "p.url: missing"},
		{func(c *delta.Config) { c.Method = "PUT" }, "p.method: want GET or POST"},
		{func(c *delta.Config) { c.Body = "{}" }, "p.body: a GET has none"},
		{func(c *delta.Config) { c.Method, c.Body, c.Cursor = "POST", "{cursor}", ".c" }, "p.start: missing"},
		{func(c *delta.Config) { c.Items = "" }, "p.items: missing"},
		{func(c *delta.Config) { c.Items = "$.items" }, "p.items: "},
		{func(c *delta.Config) { c.Key = nil }, "p.key: want 1 to 16"},
		{func(c *delta.Config) { c.Key = []string{".id", "env"} }, "p.key[1]: "},
		{func(c *delta.Config) { c.Cursor = ".c" }, "p.cursor: it is sent nowhere"},
		{func(c *delta.Config) { c.Query = map[string]string{"c": "{cursor}"} }, "p.cursor: missing"},
		{func(c *delta.Config) { c.Begins = true }, "p.begins: only with cursor or resume"},
		{func(c *delta.Config) { c.Table = "" }, "p.table: missing"},
		{func(c *delta.Config) { c.Table = "a b" }, "p.table: want at most 128 bytes"},
		{func(c *delta.Config) { c.VersionGrows = true }, "p.versionGrows: only with version"},
		{func(c *delta.Config) { c.Hold = time.Hour }, "p.hold: want up to 10m"},
		{func(c *delta.Config) { c.Expired = []int{200} }, "p.expired[0]: want up to 20 statuses"},
		{func(c *delta.Config) { c.Headers = map[string]string{"authorization": canary} }, "p.headers.authorization: it is not set here"},
		{func(c *delta.Config) { c.Headers = map[string]string{"a b": "x"} }, `p.headers: "a b" is not the name`},
		{func(c *delta.Config) { c.Headers = map[string]string{"a": "x\ny"} }, "p.headers.a: want at most"},
	} {
		cfg := config("https://h/")
		tt.change(&cfg)
		err := cfg.Validate("p")
		switch {
		case tt.want == "" && err != nil:
			t.Error(err)
		case tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want) && !strings.Contains(err.Error(), "\n"+tt.want)):
			t.Errorf("got %v, want %s", err, tt.want)
		case err != nil && strings.Contains(err.Error(), "canary"):
			t.Errorf("it shows a secret: %v", err)
		}
	}
}

func TestRedacted(t *testing.T) {
	cfg := config("https://h/?sig=" + canary)
	cfg.Query, cfg.Headers, cfg.Body = map[string]string{"k": canary, "c": "{cursor}"}, map[string]string{"X": canary}, canary
	b, err := json.Marshal(cfg.Redacted())
	if err != nil || strings.Contains(string(b), "canary") || !strings.Contains(string(b), "{cursor}") || cfg.Query["k"] != canary {
		t.Errorf("got %s, %v", b, err)
	}
}
