package app_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/poll/odata/odatatest"
)

// polledThroughKills polls a source in a process that is killed again and again, and
// writes to it before, while and after nobody polls. It gives the last process.
func polledThroughKills(t *testing.T, in *inbox, source string, write func(*rand.Rand)) *gridfan {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "gridfan.yaml")
	text := configuration(filepath.Join(dir, "data"), "sources:\n"+source, "subscribers:\n"+subscriber("all", in.url+"/all", "start: now, "+quickRetry))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func() (*child, *gridfan) {
		t.Helper()
		c := startChild(t, childGridfan, file)
		return c, &gridfan{t: t, admin: &admin.Client{URL: "http://" + c.addresses.Admin}}
	}
	random := rand.New(rand.NewPCG(5, 6))
	for range 10 {
		write(random) // what is there before is no change
	}
	c, g := run()
	g.state("way", poll.Polling)
	if n := len(in.of("all")); n > 0 {
		t.Errorf("%d events came of what was there before", n)
	}
	for range 4 {
		for n := random.IntN(40); n >= 0; n-- {
			write(random)
			<-time.After(time.Duration(random.IntN(10)) * time.Millisecond)
		}
		c.kill()
		for range 10 {
			write(random) // while nobody asks
		}
		c, g = run()
	}
	return g
}

// wantStates waits until the subscriber has had every state that is wanted, as
// texts that state makes of events, and gives the events by state.
func wantStates(t *testing.T, in *inbox, want []string, state func(data map[string]any) string) map[string]received {
	t.Helper()
	got := map[string]received{}
	missing := ""
	if !eventually(func() bool {
		for _, r := range in.of("all") {
			var data map[string]any
			if err := json.Unmarshal(r.data, &data); err != nil {
				t.Fatalf("%v: %s", err, r.data)
			}
			got[state(data)] = r
		}
		for _, w := range want {
			if _, ok := got[w]; !ok {
				missing = w
				return false
			}
		}
		return true
	}) {
		keys := slices.Sorted(maps.Keys(got))
		t.Fatalf("the subscriber has not got %s, but %d others: %q", missing, len(keys), keys)
	}
	return got
}

// company is F&O as it is served, in the time of this machine.
type company struct {
	*odatatest.FnO
	mu    sync.Mutex // guards both below
	clock *odatatest.Clock
	keys  []string
}

func (c *company) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.tick()
	c.FnO.ServeHTTP(w, r)
}

func (c *company) tick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clock.Sleep(time.Since(c.clock.Now()))
}

// Orders of all companies come with F&O's enums as names and its empty dates as null,
// and none is lost over kills.
func TestPolledFnO(t *testing.T) {
	in := newInbox(t)
	clock := odatatest.NewClock(time.Now())
	f := &company{FnO: odatatest.NewFnO(clock, 1), clock: clock}
	srv := httptest.NewServer(f)
	defer srv.Close()
	f.URL = srv.URL
	n := 0
	write := func(r *rand.Rand) {
		f.tick()
		f.mu.Lock()
		defer f.mu.Unlock()
		n++
		if len(f.keys) == 0 || r.IntN(2) == 0 {
			key, commit := f.Create([]string{"usmf", "frrt", "demf"}[r.IntN(3)], fmt.Sprint("text ", n))
			commit()
			f.keys = append(f.keys, key)
			return
		}
		f.Update(f.keys[r.IntN(len(f.keys))], fmt.Sprint("text ", n))()
	}
	before := map[string]string{}
	count := 0
	g := polledThroughKills(t, in, fmt.Sprintf(`  way: { kind: fno, environment: contoso, poll: { odata: { url: %q, entity: Orders, key: [ dataAreaId, OrderNumber ], modified: ModifiedDateTime, number: RecId, pageSize: 7, overlap: 5s }, every: 100ms, budget: 1000/s, retry: { max: 1s } } }
`, srv.URL), func(r *rand.Rand) {
		write(r)
		if count++; count == 10 {
			before = f.Texts()
		}
	})
	var want []string
	for key, text := range f.Texts() {
		if before[key] != text {
			want = append(want, key+" "+text)
		}
	}
	if len(want) < 30 {
		t.Fatalf("only %d orders have changed: this shows nothing", len(want))
	}
	got := wantStates(t, in, want, func(data map[string]any) string {
		columns := data["columns"].(map[string]any)
		if v, there := columns["ConfirmedDate"]; !there || v != nil || columns["Status"] != "Backorder" {
			t.Errorf("columns %v", columns)
		}
		return fmt.Sprint(data["company"], "/", columns["OrderNumber"], " ", columns["Text"])
	})
	companies := map[any]bool{}
	for _, r := range got {
		a := r.attributes
		companies[a["legalentity"]] = true
		if a["type"] != "fno.Orders.Changed" || a["via"] != "poll" || a["gridfansource"] != "way" || a["matchkey"] == nil || a["source"] != "/d365/fno/way/Orders" {
			t.Errorf("attributes %v", a)
		}
	}
	if len(companies) != 3 {
		t.Errorf("companies %v", slices.Collect(maps.Keys(companies)))
	}
	s := g.state("way", poll.Polling)
	if s.Poll.Remembered != 0 {
		t.Errorf("after kills %d rows were taken for a baseline", s.Poll.Remembered)
	}
}

// changes is an endpoint of somebody's own that tells what has changed after a
// cursor.
type changes struct {
	mu  sync.Mutex // guards all below
	log []change
	at  map[int]int // revision by item
	is  map[int]bool
}

type change struct {
	ID      int    `json:"id"`
	Rev     int    `json:"rev"`
	Name    string `json:"name,omitempty"`
	Deleted bool   `json:"deleted,omitempty"`
}

func (c *changes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer open-sesame" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	after, _ := strconv.Atoi(r.URL.Query().Get("after"))
	c.mu.Lock()
	defer c.mu.Unlock()
	page := c.log[min(after, len(c.log)):]
	page = page[:min(5, len(page))]
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{ // the client is gone if this fails
		"items": append([]change{}, page...), "cursor": strconv.Itoa(after + len(page)), "more": after+len(page) < len(c.log),
	})
}

// What an endpoint of one's own tells comes whole, its deletions too, over kills.
func TestPolledDelta(t *testing.T) {
	in := newInbox(t)
	c := &changes{at: map[int]int{}, is: map[int]bool{}}
	srv := httptest.NewServer(c)
	defer srv.Close()
	var first int
	count := 0
	g := polledThroughKills(t, in, fmt.Sprintf(`  way: { kind: custom, poll: { delta: { url: %q, query: { after: "{cursor}" }, start: "0", items: ".items[]", cursor: .cursor, more: .more, key: .id, version: .rev, versionGrows: true, deleted: .deleted, table: Shipment, auth: { bearer: { token: open-sesame } } }, every: 100ms, budget: 1000/s, retry: { max: 1s } } }
`, srv.URL), func(r *rand.Rand) {
		c.mu.Lock()
		defer c.mu.Unlock()
		id := r.IntN(30)
		c.at[id]++
		one := change{ID: id, Rev: c.at[id], Name: fmt.Sprint("shipment ", id, " in revision ", c.at[id])}
		if c.is[id] && r.IntN(4) == 0 {
			one.Name, one.Deleted = "", true
		}
		c.is[id] = !one.Deleted
		c.log = append(c.log, one)
		if count++; count == 10 {
			first = len(c.log)
		}
	})
	c.mu.Lock()
	want := []string{}
	for _, one := range c.log[first:] {
		want = append(want, fmt.Sprint(one.ID, " ", one.Rev, " ", one.Deleted))
	}
	c.mu.Unlock()
	// It tells every change, and so each is an event.
	wantStates(t, in, want, func(data map[string]any) string {
		columns := data["columns"].(map[string]any)
		return fmt.Sprint(columns["id"], " ", columns["rev"], " ", data["change"] == "Deleted")
	})
	for _, r := range in.of("all") {
		a := r.attributes
		if !strings.HasPrefix(fmt.Sprint(a["type"]), "custom.Shipment.") || a["via"] != "poll" || a["source"] != "/gridfan/way/Shipment" || (a["action"] == "deleted") != strings.HasSuffix(fmt.Sprint(a["type"]), ".Deleted") {
			t.Errorf("attributes %v", a)
		}
	}
	if s := g.state("way", poll.Polling); s.Poll.Remembered != 0 || s.Reads.Way != "delta" {
		t.Errorf("%+v", s.Poll)
	}
}
