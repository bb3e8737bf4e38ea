package app_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/poll/odata/odatatest"
)

// estate is a Dataverse that is served, in the time of this machine.
type estate struct {
	*odatatest.Dataverse
	url string

	asking   atomic.Int32 // requests under way
	together atomic.Int32 // that came while another one was
	// answer may answer in place of Dataverse.
	answer atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]

	mu    sync.Mutex // guards both below
	clock *odatatest.Clock
	ids   []string // of rows that are there
}

func newEstate(t testing.TB) *estate {
	clock := odatatest.NewClock(time.Now())
	e := &estate{Dataverse: odatatest.NewDataverse(clock, 1), clock: clock}
	s := httptest.NewServer(e)
	t.Cleanup(s.Close)
	e.url, e.URL = s.URL, s.URL
	return e
}

func (e *estate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if e.asking.Add(1) > 1 {
		e.together.Add(1)
	}
	defer e.asking.Add(-1)
	wait(r, 2*time.Millisecond) // long enough to be met by another one
	if answer := e.answer.Load(); answer != nil && (*answer)(w, r) {
		return
	}
	e.tick()
	e.Dataverse.ServeHTTP(w, r)
}

// tick sets Dataverse's clock.
func (e *estate) tick() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.clock.Sleep(time.Since(e.clock.Now()))
}

// write makes one change at random: it creates, updates or deletes a row.
func (e *estate) write(r *rand.Rand) {
	e.tick()
	e.mu.Lock()
	defer e.mu.Unlock()
	i := 0
	if len(e.ids) > 0 {
		i = r.IntN(len(e.ids))
	}
	switch n := r.IntN(10); {
	case n < 5 || len(e.ids) == 0:
		id, commit := e.Create(fmt.Sprint("row ", n))
		commit()
		e.ids = append(e.ids, id)
	case n < 9:
		e.Update(e.ids[i], fmt.Sprint("row ", r.Uint32()))()
	default:
		e.Delete(e.ids[i])
		e.ids = slices.Delete(e.ids, i, i+1)
	}
}

// published waits until a subscriber has the latest state of every row.
func (e *estate) published(t testing.TB, in *inbox, subscriber string) {
	t.Helper()
	want, missing := e.Versions(), ""
	if !eventually(func() bool {
		has := map[string]bool{}
		for _, got := range in.of(subscriber) {
			id := fmt.Sprint(got.attributes["subject"])
			has[id+" "+fmt.Sprint(got.attributes["sequence"])] = true
			if got.attributes["type"] == "dataverse.account.Delete" {
				has[id+" 0"] = true
			}
		}
		for id, version := range want {
			if missing = fmt.Sprint(id, " ", version); !has[missing] {
				return false
			}
		}
		return true
	}) {
		t.Fatalf("%s has not got row and version %s", subscriber, missing)
	}
}

// source is an entry below sources that polls an estate's accounts.
func (e *estate) source(name, more string) string {
	return fmt.Sprintf("  %s: { kind: dataverse, environment: %s, poll: { odata: { url: %q, table: account, pageSize: 7 %s }, every: 100ms, budget: 1000/s, retry: { max: 1s } } }\n", name, name, e.url, more)
}

// state waits until polling a source is in a state, and gives its status.
func (g *gridfan) state(source string, want poll.State) *admin.Source {
	g.t.Helper()
	var s *admin.Source
	var err error
	if !eventually(func() bool {
		s, err = g.admin.Source(g.t.Context(), source)
		return err == nil && s.Poll != nil && s.Poll.State == want
	}) {
		text, _ := json.Marshal(s)
		g.t.Fatalf("source %s is not %s: %s, %v", source, want, text, err)
	}
	return s
}

// Rows that change are events at subscribers; those that were there before are not,
// until they are asked for.
func TestPolledRows(t *testing.T) {
	in, e := newInbox(t), newEstate(t)
	random := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		e.write(random)
	}
	before := e.Versions()
	g := start(t, "sources:\n"+e.source("crm", ""), "subscribers:\n"+subscriber("all", in.url+"/all", ""))
	s := g.state("crm", poll.Polling)
	if s.Pattern != "poll" || !s.Poll.Here || s.Poll.Remembered == 0 || s.Poll.Published != 0 || s.Reads.Of != "accounts" || s.Reads.Cursor != "changeTracking" {
		t.Errorf("after the baseline: %+v, %+v", s.Poll, s.Reads)
	}
	e.tick()
	id, commit := e.Create("new")
	commit()
	waitFor(t, "the new row comes", func() bool { return len(in.of("all")) > 0 })
	got := in.of("all")[0]
	if got.attributes["type"] != "dataverse.account.Create" || got.attributes["subject"] != id || got.attributes["via"] != "poll" || got.attributes["gridfansource"] != "crm" || got.attributes["matchkey"] == nil {
		t.Errorf("got %v", got.attributes)
	}
	e.Delete(id)
	waitFor(t, "its deletion comes", func() bool {
		all := in.of("all")
		return all[len(all)-1].attributes["type"] == "dataverse.account.Delete"
	})
	if n := len(in.of("all")); n != 2 {
		t.Errorf("%d events came of one row; those of before are none", n)
	}

	// Nobody pushes to it.
	if a := g.post("crm", nil, []byte("{}")); a.status != http.StatusServiceUnavailable || a.json(t)["code"] != "source-not-pushed" {
		t.Errorf("a push to it is answered %d %s", a.status, a.body)
	}

	// All rows once more: those of before are published now.
	if _, err := g.admin.Rewind(t.Context(), "crm", admin.RewindOrder{To: admin.FromBeginning}); err != nil {
		t.Fatal(err)
	}
	alive := map[string]bool{}
	for id, version := range before {
		if version != 0 {
			alive[id] = true
		}
	}
	waitFor(t, "the rows of before come", func() bool {
		left := maps.Clone(alive)
		for _, got := range in.of("all") {
			delete(left, fmt.Sprint(got.attributes["subject"]))
		}
		return len(left) == 0
	})
	g.drained()
	kept, err := g.admin.Books(t.Context())
	if err != nil || !kept.Balanced {
		t.Errorf("the books: %+v, %v", kept, err)
	}
}

// A source of two tables: each is read by itself, their events have one source, and
// commands are for one of them or for both.
func TestPolledTables(t *testing.T) {
	in, a, c := newInbox(t), newEstate(t), newEstate(t)
	table := func(e *estate, name string) string {
		return fmt.Sprintf("      - { odata: { url: %q, table: %s, entity: accounts, key: accountid, pageSize: 7 }, every: 100ms, budget: 1000/s, retry: { max: 1s } }\n", e.url, name)
	}
	of := func(tables ...string) string {
		return "sources:\n  crm:\n    kind: dataverse\n    poll:\n" + strings.Join(tables, "")
	}
	subscribers := "subscribers:\n" + subscriber("all", in.url+"/all", "")
	a.tick()
	a.row("before")
	g := start(t, of(table(a, "account")), subscribers)
	g.state("crm", poll.Polling)
	// The second one resets nothing of the first one, wherever it stands.
	g.stop()
	changed := a.row("meanwhile")
	c.row("before")
	g.run(of(table(c, "contact"), table(a, "account")), subscribers)
	g.state("crm", poll.Polling)
	in.wantRows(t, "dataverse.account.Create "+changed)
	s := g.state("crm/account", poll.Polling)
	if s.Poll.Remembered != 0 || s.Reads.Of != "accounts" || s.Label() != "crm/account" || s.Tables != nil {
		t.Errorf("%+v, %+v", s, s.Poll)
	}
	id := c.row("new")
	in.wantRows(t, "dataverse.account.Create "+changed, "dataverse.contact.Create "+id)
	for _, got := range in.of("all") {
		if got.attributes["gridfansource"] != "crm" {
			t.Errorf("got %v", got.attributes)
		}
	}
	waitFor(t, "the counts of both", func() bool {
		s, err := g.admin.Source(t.Context(), "crm")
		return err == nil && len(s.Tables) == 2 && s.Reads == nil && s.Poll.Published == 2 && s.Poll.Known == 2 && s.Tables[0].Table == "contact"
	})

	// One is published anew, and then both.
	before := len(in.of("all"))
	if _, err := g.admin.Rewind(t.Context(), "crm/contact", admin.RewindOrder{To: admin.FromBeginning}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the row of before comes", func() bool { return len(in.of("all")) == before+1 })
	if _, err := g.admin.Rewind(t.Context(), "crm", admin.RewindOrder{To: admin.FromBeginning}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the row of before comes", func() bool { return len(in.of("all")) == before+2 })
	d := newDescribed(t, g.admin.URL)
	d.call("GET", "/api/v1/sources/crm", "", 200, "")
	d.call("GET", "/api/v1/sources", "", 200, "")
	d.call("GET", "/api/v1/sources/crm?table=account", "", 200, "")
	d.call("GET", "/api/v1/sources/crm?table=lead", "", 404, "no-such-table")
	d.call("POST", "/api/v1/sources/crm/poll-now?table=account", "", 200, "")
	d.call("POST", "/api/v1/sources/crm/baseline?table=lead", "{}", 404, "no-such-table")
	if _, err := g.admin.Baseline(t.Context(), "crm", admin.BaselineOrder{Confirm: true}); err == nil || !strings.Contains(err.Error(), poll.ErrNothingToConfirm.Error()) {
		t.Errorf("got %v", err)
	}

	// What is wrong with one says which, and stops the other one not.
	answer := func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusForbidden); return true }
	a.answer.Store(&answer)
	if s := g.state("crm", poll.Failing); s.Poll.Table != "account" || !strings.HasPrefix(s.Poll.Says, "account: fails") {
		t.Errorf("%+v", s.Poll)
	}
	c.row("new")
	waitFor(t, "the other one goes on", func() bool { return len(in.of("all")) == before+3 })
	metrics := g.get("/metrics")
	for _, want := range []string{`gridfan_poll_failing{source="crm",table="account"} 1`, `gridfan_poll_failing{source="crm",table="contact"} 0`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s", want)
		}
	}
}

// row creates one.
func (e *estate) row(name string) string {
	e.tick()
	id, commit := e.Create(name)
	commit()
	return id
}

// wantRows waits until a subscriber has events of rows, each a type and a row's id.
func (in *inbox) wantRows(t testing.TB, rows ...string) {
	t.Helper()
	var got []string
	if !eventually(func() bool {
		got = nil
		for _, r := range in.of("all") {
			got = append(got, fmt.Sprint(r.attributes["type"], " ", r.attributes["subject"]))
		}
		slices.Sort(got)
		slices.Sort(rows)
		return slices.Equal(got, rows)
	}) {
		t.Fatalf("got %q, want %q", got, rows)
	}
}

// What is pushed and polled is published once, whichever comes first.
func TestHybridSource(t *testing.T) {
	in, e := newInbox(t), newEstate(t)
	hybrid := strings.Replace(e.source("crm", ""), "poll: {", "pattern: hybrid, push: { auth: none }, poll: {", 1)
	g := start(t, "sources:\n"+hybrid, "subscribers:\n"+subscriber("all", in.url+"/all", ""))
	if s := g.state("crm", poll.Polling); s.Pattern != "hybrid" {
		t.Errorf("pattern %s", s.Pattern)
	}
	push := func(operation, id string, at time.Time) string {
		t.Helper()
		a := g.post("crm", nil, fmt.Appendf(nil, `{"MessageName":"Create","PrimaryEntityName":"account","PrimaryEntityId":%q,"OperationId":%q,"Stage":40,"Mode":0,
			"OperationCreatedOn":"/Date(%d)/","InputParameters":[{"key":"Target","value":{"LogicalName":"account","Id":%q,
			"Attributes":[{"key":"name","value":"pushed"},{"key":"modifiedon","value":"/Date(%d)/"}]}}]}`, id, operation, at.UnixMilli(), id, at.Truncate(time.Second).UnixMilli()))
		if a.status != http.StatusOK {
			t.Fatalf("a push is answered %d %s", a.status, a.body)
		}
		return fmt.Sprint(a.json(t))
	}
	create := func() (id string, at time.Time, commit func()) {
		e.tick()
		id, commit = e.Create("row")
		return id, e.clock.Now(), commit
	}

	// Polled first, then pushed.
	polled, at, commit := create()
	commit()
	waitFor(t, "the row comes by polling", func() bool { return len(in.of("all")) == 1 })
	if text := push("11111111-0000-0000-0000-000000000001", polled, at); !strings.Contains(text, "duplicate:1") {
		t.Errorf("the push of what was polled: %s", text)
	}
	// Pushed first, in two steps, then polled.
	pushed, at, commit := create()
	for _, operation := range []string{"11111111-0000-0000-0000-000000000002", "11111111-0000-0000-0000-000000000003"} {
		if text := push(operation, pushed, at); !strings.Contains(text, "published:1") {
			t.Errorf("a push: %s", text)
		}
	}
	commit()
	waitFor(t, "the poll finds what was pushed", func() bool {
		s, err := g.admin.Source(t.Context(), "crm")
		return err == nil && s.Poll.Duplicate > 0
	})
	g.drained()
	var vias []string
	for _, got := range in.of("all") {
		vias = append(vias, fmt.Sprint(got.attributes["via"], " ", got.attributes["subject"]))
	}
	slices.Sort(vias)
	want := []string{"poll " + polled, "push " + pushed, "push " + pushed}
	slices.Sort(want)
	if !slices.Equal(vias, want) {
		t.Errorf("got %v, want %v", vias, want)
	}
}

// A kill -9 in the middle of polling loses no row, and skips none.
func TestPollKill(t *testing.T) {
	in, e := newInbox(t), newEstate(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "gridfan.yaml")
	text := configuration(filepath.Join(dir, "data"), "sources:\n"+e.source("crm", ""), "subscribers:\n"+subscriber("all", in.url+"/all", ""))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func() (*child, *gridfan) {
		t.Helper()
		c := startChild(t, childGridfan, file)
		return c, &gridfan{t: t, admin: &admin.Client{URL: "http://" + c.addresses.Admin}}
	}
	c, g := run()
	g.state("crm", poll.Polling)
	random := rand.New(rand.NewPCG(3, 4))
	for range 6 {
		for n := random.IntN(60); n >= 0; n-- {
			e.write(random)
			<-time.After(time.Duration(random.IntN(10)) * time.Millisecond)
		}
		c.kill()
		for range 10 {
			e.write(random) // while nobody asks
		}
		c, g = run()
	}
	e.published(t, in, "all")
	s := g.state("crm", poll.Polling)
	if s.Poll.Remembered != 0 {
		t.Errorf("after kills %d rows were taken for a baseline", s.Poll.Remembered)
	}
	if n := e.together.Load(); n > 0 {
		t.Errorf("%d requests came together", n)
	}
}

// Three replicas on a cluster of three servers; one replica is killed every few seconds: each page is fetched by
// one at a time, and nothing is skipped.
func TestPollReplicas(t *testing.T) {
	broker := brokertest.NewCluster(t)
	in, e := newInbox(t), newEstate(t)
	file := filepath.Join(t.TempDir(), "gridfan.yaml")
	text := fmt.Sprintf(`listen: { public: { addr: "127.0.0.1:0" }, admin: { addr: "127.0.0.1:0" } }
broker: { url: %q, replicas: 3, durability: sync-always }
sources:
%ssubscribers:
%s`, broker.URL(), e.source("crm", ""), subscriber("all", in.url+"/all", ""))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	replicas := make([]*child, 3)
	for i := range replicas {
		replicas[i] = startChild(t, childGridfan, file)
	}
	client := func(i int) *gridfan {
		return &gridfan{t: t, admin: &admin.Client{URL: "http://" + replicas[i].addresses.Admin}}
	}
	// holder waits until one of them polls, and wants that all others know.
	holder := func() int {
		t.Helper()
		who := -1
		waitFor(t, "one replica polls", func() bool {
			who = -1
			polling := 0
			for i := range replicas {
				s, err := client(i).admin.Source(t.Context(), "crm")
				if err != nil || s.Poll.State != poll.Polling && s.Poll.State != poll.Elsewhere {
					return false
				}
				if s.Poll.Here {
					who = i
					polling++
				}
			}
			return polling == 1
		})
		return who
	}
	holder()
	random := rand.New(rand.NewPCG(5, 6))
	done := make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
				e.write(random)
			}
		}
	})
	for round := range 4 {
		i := holder()
		if round%2 == 1 {
			i = (i + 1) % 3 // one of those that do not poll
		}
		replicas[i].kill()
		replicas[i] = startChild(t, childGridfan, file)
	}
	close(done)
	writing.Wait()
	e.published(t, in, "all")
	// A command finds its way to the one that polls.
	i := holder()
	if s, err := client((i+1)%3).admin.PollNow(t.Context(), "crm"); err != nil || s.Poll.Here {
		t.Errorf("poll-now elsewhere: %+v, %v", s, err)
	}
	if n := e.together.Load(); n > 0 {
		t.Errorf("%d requests came together", n)
	}
}

// What a source answers badly shows in its status, and nothing of it is taken for
// rows; another source goes on, and so does this one once that is over.
func TestPollBadAnswers(t *testing.T) {
	const canary = "canary-secret-that-must-not-show-up"
	in, bad, good := newInbox(t), newEstate(t), newEstate(t)
	log := &lines{}
	g := &gridfan{t: t, dir: t.TempDir(), log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	t.Cleanup(g.stop)
	secured := ", maxPage: 64KiB, auth: { apiKey: { header: X-Key, value: " + canary + " } }"
	g.run("sources:\n"+bad.source("bad", secured)+good.source("good", ""), "subscribers:\n"+subscriber("all", in.url+"/all", ""))
	g.state("bad", poll.Polling)
	g.state("good", poll.Polling)
	random := rand.New(rand.NewPCG(7, 8))
	page := func(w http.ResponseWriter, text string) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Preference-Applied", "odata.track-changes")
		_, _ = io.WriteString(w, text)
	}
	tests := []struct {
		name   string
		answer func(http.ResponseWriter, *http.Request)
		kind   string
		says   string
	}{
		{"a page of HTML with 200", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, "<html><body>Sign in "+canary+"</body></html>")
		}, "answer", "HTML"},
		{"truncated JSON", func(w http.ResponseWriter, _ *http.Request) {
			page(w, `{"value":[{"accountid":"11111111-0000-0000-0000-000000000001","name":"ha`)
		}, "answer", ""},
		{"a link to another host", func(w http.ResponseWriter, _ *http.Request) {
			page(w, `{"value":[],"@odata.nextLink":"http://169.254.169.254/latest/meta-data"}`)
		}, "answer", "nextLink"},
		{"links without end", func(w http.ResponseWriter, r *http.Request) {
			page(w, fmt.Sprintf(`{"value":[],"@odata.nextLink":%q}`, bad.url+r.RequestURI))
		}, "answer", ""},
		{"a page without a delta link", func(w http.ResponseWriter, _ *http.Request) { page(w, `{"value":[]}`) }, "answer", ""},
		{"a page that does not end", func(w http.ResponseWriter, _ *http.Request) {
			page(w, `{"value":[`)
			for _, err := io.WriteString(w, "{}"); err == nil; _, err = io.WriteString(w, strings.Repeat(`,{"name":"x"}`, 1000)) {
			}
		}, "answer", "maxPage"},
		{"wrong credentials", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprintf(w, `{"error":{"code":"0x80040220","message":"the key %s is not known"}}`, r.Header.Get("X-Key"))
		}, "credentials", ""},
		{"no such table", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"error":{"code":"0x80060888","message":"Resource not found for the segment 'accounts'."}}`)
		}, "configuration", ""},
		{"an error of the server", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadGateway)
		}, "unavailable", "502"},
	}
	for _, tt := range tests {
		answer := func(w http.ResponseWriter, r *http.Request) bool { tt.answer(w, r); return true }
		bad.answer.Store(&answer)
		bad.write(random) // is not lost
		s := g.state("bad", poll.Failing)
		if p := s.Poll; p.Kind != tt.kind || !strings.Contains(p.Error, tt.says) || p.Failures == 0 || p.Since.IsZero() {
			t.Errorf("%s: %s: %s", tt.name, p.Kind, p.Error)
		}
		if text, _ := json.Marshal(s); bytes.Contains(text, []byte(canary)) {
			t.Errorf("%s: the status has the secret: %s", tt.name, text)
		}
		// The other source goes on meanwhile.
		good.write(random)
		good.published(t, in, "all")
		bad.answer.Store(nil)
		g.state("bad", poll.Polling)
		bad.published(t, in, "all")
	}

	// Asked to be left alone.
	var early atomic.Int32
	until := time.Now().Add(2 * time.Second)
	var asked atomic.Bool
	answer := func(w http.ResponseWriter, _ *http.Request) bool {
		if asked.Swap(true) && time.Now().Before(until) {
			early.Add(1)
		}
		if time.Now().Before(until) {
			w.Header().Set("Retry-After", "2")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		return false
	}
	bad.answer.Store(&answer)
	g.state("bad", poll.HeldOff)
	if s := g.state("bad", poll.Polling); s.Poll.Throttles == 0 || s.Poll.Lost == 0 {
		t.Errorf("after a 429: %+v", s.Poll)
	}
	if n := early.Load(); n > 0 {
		t.Errorf("%d requests before a Retry-After had ended", n)
	}

	metrics := g.get("/metrics")
	status := g.get("/api/v1/status")
	for name, text := range map[string]string{"log": log.text(), "metrics": metrics, "status": status, "sources": g.get("/api/v1/sources"), "config": g.get("/api/v1/config")} {
		if strings.Contains(text, canary) {
			t.Errorf("the secret is in %s", name)
		}
	}
	if !strings.Contains(metrics, `gridfan_poll_requests_total{source="bad",table="account"}`) {
		t.Error("no metrics of polling")
	}
}

// lines collects what is logged.
type lines struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// get reads a page of the admin listener.
func (g *gridfan) get(path string) string {
	g.t.Helper()
	resp, err := http.Get("http://" + g.app.AdminAddr() + path)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		g.t.Fatalf("%s: HTTP %d %v", path, resp.StatusCode, err)
	}
	return string(text)
}
