package odata_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/poll/odata"
	"github.com/gridfan/gridfan/router/poll/odata/odatatest"
	"github.com/gridfan/gridfan/router/poll/request"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/record"
)

// The clock of the stand-ins begins before that of this machine, which is not
// believed where it is behind.
var start = time.Date(2026, 1, 1, 8, 0, 0, 0, time.UTC)

// overlap is that of the tests, and maxLate the longest transaction.
const (
	overlap = 60 * time.Second
	maxLate = 50 * time.Second
)

// loop fetches as the poller does, but for its schedule.
type loop struct {
	t      *testing.T
	clock  *odatatest.Clock
	f      *odata.Fetcher
	cursor json.RawMessage
	w      *writer
	// page is told of each.
	page func(*poll.Page)
	// known is what was read so far.
	known map[string]record.Row
	// listed are the keys of a listing that is under way.
	listed map[string]bool

	expired, throttled, crashed int
	rand                        *rand.Rand
}

// sleep lets time pass, in which transactions end when they are due.
func (l *loop) sleep(d time.Duration) {
	for end := l.clock.Now().Add(d); l.clock.Now().Before(end); {
		l.clock.Sleep(min(time.Second, end.Sub(l.clock.Now())))
		l.w.commit(false)
	}
}

// poll fetches until there is no more.
func (l *loop) poll() {
	l.t.Helper()
	for pages := 0; ; pages++ {
		if pages > 100_000 {
			l.t.Fatal("there is no end")
		}
		page, err := l.f.Fetch(l.t.Context(), l.cursor)
		if throttled, ok := errors.AsType[*poll.Throttled](err); ok {
			if throttled.After <= 0 {
				l.t.Fatalf("no time in %v", throttled)
			}
			l.throttled++
			l.sleep(throttled.After)
			continue
		}
		if errors.Is(err, poll.ErrExpired) {
			l.expired++
			l.cursor = nil
			continue
		}
		if err != nil {
			l.t.Fatal(err)
		}
		l.sleep(time.Duration(l.rand.IntN(300)) * time.Millisecond)
		if l.rand.IntN(20) == 0 {
			l.crashed++ // before anything of the page was kept: it is read again
			continue
		}
		l.take(page)
		l.cursor = page.Next
		if !page.More {
			return
		}
	}
}

func (l *loop) take(page *poll.Page) {
	l.t.Helper()
	if len(page.Rejected) > 0 {
		l.t.Fatalf("rejected: %+v", page.Rejected[0])
	}
	if page.Listing && l.listed == nil {
		l.listed = map[string]bool{}
	}
	for _, r := range page.Rows {
		if l.listed != nil && page.Listing {
			l.listed[r.Key] = true
		}
		was, ok := l.known[r.Key]
		if ok && !r.Deleted && r.Ordered && !was.Deleted {
			a, _ := strconv.ParseInt(was.Version, 10, 64)
			b, _ := strconv.ParseInt(r.Version, 10, 64)
			if b < a {
				continue // an older version, which was read again
			}
		}
		r.Data = slices.Clone(r.Data)
		l.known[r.Key] = r
	}
	if page.Listed {
		for key, r := range l.known {
			if !l.listed[key] && !r.Deleted {
				l.known[key] = record.Row{Key: key, Deleted: true}
			}
		}
		l.listed = nil
	}
	if l.page != nil {
		l.page(page)
	}
}

// fetcher makes a Fetcher on a stand-in.
func fetcher(t *testing.T, clock *odatatest.Clock, cfg odata.Config) *odata.Fetcher {
	t.Helper()
	if err := cfg.Validate("poll.odata"); err != nil {
		t.Fatal(err)
	}
	f, err := odata.New(cfg, request.Options{})
	if err != nil {
		t.Fatal(err)
	}
	f.SetNow(clock.Now)
	t.Cleanup(f.Close)
	return f
}

// transaction is one that is open.
type transaction struct {
	at     time.Time
	key    string
	commit func()
}

// writer writes at random, with some transactions that stay open for long.
type writer struct {
	clock  *odatatest.Clock
	rand   *rand.Rand
	create func(name string) (string, func())
	update func(key, name string) func()
	remove func(key string)

	n      int
	keys   []string
	locked map[string]bool
	open   []transaction
	late   int
}

// step does n things in some seconds.
func (w *writer) step(n int, deletes bool) {
	for range n {
		w.clock.Sleep(time.Duration(w.rand.IntN(400)) * time.Millisecond)
		w.commit(false)
		w.n++
		name := fmt.Sprintf("n%d", w.n)
		if len(w.keys) < 20 || w.rand.IntN(10) < 3 {
			key, commit := w.create(name)
			w.begin(key, commit)
			continue
		}
		i := w.rand.IntN(len(w.keys))
		key := w.keys[i]
		switch {
		case w.locked[key]:
		case deletes && w.rand.IntN(8) == 0:
			w.remove(key)
			w.keys = slices.Delete(w.keys, i, i+1)
		default:
			w.begin(key, w.update(key, name))
		}
	}
}

func (w *writer) begin(key string, commit func()) {
	if w.rand.IntN(20) > 0 {
		commit()
		if !slices.Contains(w.keys, key) {
			w.keys = append(w.keys, key)
		}
		return
	}
	w.late++
	w.locked[key] = true
	w.open = append(w.open, transaction{w.clock.Now().Add(time.Duration(w.rand.Int64N(int64(maxLate)))), key, commit})
}

// commit ends transactions that are due, or all.
func (w *writer) commit(all bool) {
	w.open = slices.DeleteFunc(w.open, func(x transaction) bool {
		if !all && w.clock.Now().Before(x.at) {
			return false
		}
		x.commit()
		delete(w.locked, x.key)
		if !slices.Contains(w.keys, x.key) {
			w.keys = append(w.keys, x.key)
		}
		return true
	})
}

// changes is how many creates, updates and deletes each writer makes.
const changes = 10_000

// run lets the writer write and the loop read, beginning in the middle.
func run(l *loop, w *writer, late func()) {
	for w.n < changes {
		w.step(1+w.rand.IntN(100), w.n > changes/10)
		// The first reading begins early, while transactions are open, and is over
		// before rows are deleted.
		l.sleep(time.Duration(w.rand.IntN(5000)) * time.Millisecond)
		l.poll()
		if late != nil {
			late()
		}
	}
	w.commit(true)
	for range 4 {
		l.clock.Sleep(overlap)
		l.poll()
	}
}

func TestDataverseMissesNothing(t *testing.T) {
	for _, cursor := range []odata.Cursor{odata.ChangeTracking, odata.Version, odata.Modified} {
		t.Run(string(cursor), func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			clock := odatatest.NewClock(start)
			d := odatatest.NewDataverse(clock, seed)
			d.StampLast = true
			srv := httptest.NewServer(d)
			t.Cleanup(srv.Close)
			d.URL = srv.URL
			r := rand.New(rand.NewPCG(seed, 3))
			cfg := odata.Config{
				Kind: event.KindDataverse, Target: request.Target{URL: srv.URL}, Table: "account", Cursor: cursor, PageSize: 40, Overlap: overlap,
			}
			l := &loop{t: t, clock: clock, known: map[string]record.Row{}, rand: r, f: fetcher(t, clock, cfg)}
			w := &writer{clock: clock, rand: r, create: d.Create, update: d.Update, remove: d.Delete, locked: map[string]bool{}}
			l.w = w
			w.step(500, false)
			// The first reading, with changes between its pages.
			l.page = func(p *poll.Page) {
				if p.Listing {
					w.step(3, false)
				}
			}
			l.poll()
			l.page = nil
			d.Throttle(40)
			expiries := 0
			run(l, w, func() {
				if cursor == odata.ChangeTracking && r.IntN(15) == 0 {
					d.Expire()
					expiries++
				}
			})
			deleted := 0
			for id, version := range d.Versions() {
				got, ok := l.known[id]
				switch {
				case version == 0 && cursor == odata.ChangeTracking:
					if deleted++; ok && !got.Deleted {
						t.Errorf("%s was deleted, and nobody was told", id)
					}
				case version != 0 && (!ok || got.Deleted || got.Version != fmt.Sprint(version)):
					t.Errorf("%s has version %d, read was %q (deleted: %v)", id, version, got.Version, got.Deleted)
				}
			}
			denied, early := d.Throttled()
			if early > 0 {
				t.Errorf("%d requests came before a Retry-After had ended", early)
			}
			if denied == 0 || w.late == 0 || l.crashed == 0 || cursor == odata.ChangeTracking && (deleted == 0 || expiries == 0 || l.expired == 0) {
				t.Errorf("nothing happened: %d 429s, %d late commits, %d crashes, %d deletes, %d expiries", denied, w.late, l.crashed, deleted, l.expired)
			}
			t.Logf("%d requests, %d 429s, %d late commits, %d crashes, %d expired tokens", d.Requests, denied, w.late, l.crashed, l.expired)
		})
	}
}

func TestFnOMissesNothing(t *testing.T) {
	for _, number := range []string{"RecId", ""} {
		t.Run("number "+number, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			clock := odatatest.NewClock(start)
			d := odatatest.NewFnO(clock, seed)
			srv := httptest.NewServer(d)
			t.Cleanup(srv.Close)
			d.URL = srv.URL
			r := rand.New(rand.NewPCG(seed, 4))
			l := &loop{t: t, clock: clock, known: map[string]record.Row{}, rand: r, f: fetcher(t, clock, odata.Config{
				Kind: event.KindFnO, Target: request.Target{URL: srv.URL}, Entity: "Orders", Key: []string{"dataAreaId", "OrderNumber"},
				ModifiedColumn: "ModifiedDateTime", NumberColumn: number, PageSize: 50, Overlap: overlap,
			})}
			w := &writer{clock: clock, rand: r, locked: map[string]bool{}, update: d.Update, remove: d.Delete, create: func(name string) (string, func()) {
				return d.Create([]string{"usmf", "demf"}[r.IntN(2)], name)
			}}
			l.w = w
			w.step(500, false)
			l.page = func(*poll.Page) { w.step(1, false) }
			l.poll()
			l.page = nil
			d.Throttle(40)
			bulk := 0
			run(l, w, func() {
				if bulk++; bulk%40 == 0 {
					// Many rows of one time, some of which change while they are read.
					var free []string
					for _, key := range w.keys {
						if !w.locked[key] {
							free = append(free, key)
						}
					}
					d.UpdateAll(free, fmt.Sprintf("bulk%d", bulk))
					clock.Sleep(time.Second)
					l.page = func(*poll.Page) { w.step(r.IntN(80), true) }
					l.poll()
					l.page = nil
				}
			})
			for key, text := range d.Texts() {
				got, ok := l.known[key]
				if !ok || !strings.Contains(string(got.Data), `"Text":"`+text+`"`) {
					t.Errorf("%s is %s, read was %s", key, text, got.Data)
				}
			}
			denied, early := d.Throttled()
			if early > 0 || denied == 0 || w.late == 0 {
				t.Errorf("%d early requests, %d 429s, %d late commits", early, denied, w.late)
			}
			t.Logf("%d requests, %d 429s, %d late commits", d.Requests, denied, w.late)
		})
	}
}
