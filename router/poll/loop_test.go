package poll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/record"
)

func want(t *testing.T, in *inbox, ids ...string) {
	t.Helper()
	if d := cmp.Diff(slices.Sorted(slices.Values(ids)), in.take()); d != "" {
		t.Errorf("published (-want +got):\n%s", d)
	}
}

func step(d time.Duration) {
	time.Sleep(d) // sleep: on the virtual clock of synctest
	synctest.Wait()
}

func TestBaselineThenChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, m, tab := &inbox{}, newMemory(), newTable("a", 120)
		p, r := newPoller(t, m, in)
		p.Apply([]Source{tab.source(nil)})
		step(5 * time.Second)
		want(t, in)
		if st := p.only(t); st.State != Polling || st.Remembered != 120 || st.Known != 120 || !st.Cursor {
			t.Errorf("after the baseline: %+v", st)
		}
		if r.count("source.read a") != 1 {
			t.Errorf("reports: %v", r.all)
		}
		tab.write("k00001")
		tab.write("new")
		tab.remove("k00002")
		step(2 * time.Second)
		want(t, in, "k00001@121", "new@122", "k00002@deleted")

		// Another process goes on where this one has stopped.
		p.Stop(context.Background())
		tab.write("k00003")
		q, _ := newPoller(t, m, in)
		q.Apply([]Source{tab.source(nil)})
		step(5 * time.Second)
		want(t, in, "k00003@124")
	})
}

func TestBaselinePublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, tab := &inbox{}, newTable("a", 3)
		p, _ := newPoller(t, newMemory(), in)
		p.Apply([]Source{tab.source(func(c *Config) { c.Baseline = Publish })})
		step(5 * time.Second)
		want(t, in, "k00000@1", "k00001@2", "k00002@3")
	})
}

func TestResyncPublishesOnlyWhatDiffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, tab := &inbox{}, newTable("a", 200)
		p, r := newPoller(t, newMemory(), in)
		p.Apply([]Source{tab.source(nil)})
		step(5 * time.Second)
		tab.write("k00001")
		step(2 * time.Second)
		want(t, in, "k00001@201")
		tab.answer = func(int) error { return &Fault{Kind: Unavailable, Reason: "down"} }
		tab.write("k00002")
		tab.write("new")
		tab.remove("k00003")
		tab.forget()
		step(3 * time.Second)
		tab.mu.Lock()
		tab.answer = nil
		tab.mu.Unlock()
		step(2 * time.Minute)
		want(t, in, "k00002@202", "new@203", "k00003@deleted")
		if st := p.only(t); st.State != Polling || st.Known != 200 {
			t.Errorf("%+v", st)
		}
		if r.count("source.resync a") != 1 || r.count("source.recovered a") != 1 {
			t.Errorf("reports: %v", r.all)
		}
		// And on from there.
		tab.write("k00004")
		step(2 * time.Second)
		want(t, in, "k00004@206")
	})
}

func TestShrunkenListingAsks(t *testing.T) {
	for _, confirm := range []bool{true, false} {
		t.Run(fmt.Sprint(confirm), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				in, tab := &inbox{}, newTable("a", 100)
				p, r := newPoller(t, newMemory(), in)
				p.Apply([]Source{tab.source(nil)})
				step(5 * time.Second)
				if err := p.Confirm(t.Context(), "a"); !errors.Is(err, ErrNothingToConfirm) {
					t.Errorf("nothing is missing, got %v", err)
				}
				var gone []string
				for i := range 30 {
					key := fmt.Sprintf("k%05d", i)
					tab.remove(key)
					gone = append(gone, key+"@deleted")
				}
				tab.forget()
				step(time.Minute)
				// Perhaps some deletions were seen before the cursor was forgotten.
				seen := in.take()
				st := p.only(t)
				if len(seen) == 0 && (st.State != Unconfirmed || st.Missing != 30) {
					t.Fatalf("%+v", st)
				}
				if len(seen) > 0 {
					t.Fatalf("published %v", seen)
				}
				if !strings.Contains(st.Says, "30 of 100") || !strings.Contains(st.Says, "--confirm") || r.count("source.unconfirmed a") != 1 {
					t.Errorf("%q, %v", st.Says, r.all)
				}
				if !confirm {
					// They come back, as after a full push: it goes on by itself.
					for i := range 30 {
						tab.write(fmt.Sprintf("k%05d", i))
					}
					step(2 * time.Hour)
					if st := p.only(t); st.State != Polling {
						t.Errorf("%+v", st)
					}
					if got := in.take(); len(got) != 30 {
						t.Errorf("got %v", got)
					}
					return
				}
				if err := p.Confirm(t.Context(), "a"); err != nil {
					t.Fatal(err)
				}
				step(time.Minute)
				want(t, in, gone...)
				if st := p.only(t); st.State != Polling || st.Known != 70 {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

func TestEmptyListingAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, tab := &inbox{}, newTable("a", 2)
		tab.lists = true
		p, _ := newPoller(t, newMemory(), in)
		p.Apply([]Source{tab.source(nil)})
		step(5 * time.Second)
		tab.remove("k00000")
		step(2 * time.Second)
		want(t, in, "k00000@deleted") // one of a handful may go
		tab.remove("k00001")
		step(5 * time.Second)
		want(t, in)
		if st := p.only(t); st.State != Unconfirmed {
			t.Errorf("%+v", st)
		}
	})
}

func TestSourceThatOnlyLists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, tab, m := &inbox{}, newTable("a", 120), newMemory()
		tab.lists = true
		p, _ := newPoller(t, m, in)
		p.Apply([]Source{tab.source(nil)})
		step(5 * time.Second)
		want(t, in)
		for i := range 3 {
			tab.write("k00001")
			tab.remove(fmt.Sprintf("k%05d", 10+i))
			step(3 * time.Second)
			want(t, in, fmt.Sprintf("k00001@%d", 121+2*i), fmt.Sprintf("k%05d@deleted", 10+i))
		}
		// What is known stays small although rows are listed every second.
		step(time.Hour)
		want(t, in)
		if n := len(m.blocks["a"]); n > 20 {
			t.Errorf("%d blocks", n)
		}
	})
}

func TestOverlapIsNotPublishedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, m := &inbox{}, newMemory()
		old := time.Now().Add(-30 * 24 * time.Hour)
		rows := []record.Row{{Key: "x", Version: "1", Modified: old}, {Key: "y", Version: "1", Modified: old}}
		f := fetchFunc(func(cursor json.RawMessage) (*Page, error) {
			return &Page{Rows: slices.Clone(rows), Next: json.RawMessage(`"same"`), Listing: cursor == nil, Listed: cursor == nil}, nil
		})
		src := newTable("a", 0).source(nil)
		src.Open = func(context.Context) (Fetcher, error) { return f, nil }
		run := func() {
			p, _ := newPoller(t, m, in)
			p.Apply([]Source{src})
			step(10 * time.Second)
			p.Stop(context.Background())
			in.mu.Lock()
			in.seen = nil // dedup's horizon is over
			in.mu.Unlock()
		}
		run()
		want(t, in)
		run() // a new process
		want(t, in)
		rows[0].Version = "2"
		run()
		want(t, in, "x@2")
		run()
		want(t, in)
		rows[0].Version = "1" // back to an earlier one is a change, too
		run()
		want(t, in, "x@1")
	})
}

// fetchFunc is a Fetcher.
type fetchFunc func(cursor json.RawMessage) (*Page, error)

func (f fetchFunc) Fetch(_ context.Context, c json.RawMessage) (*Page, error) { return f(c) }
func (f fetchFunc) Close()                                                    {}

func TestFaultsAreShownAndOthersGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := &inbox{}
		good := newTable("good", 1)
		sources := []Source{good.source(nil)}
		add := func(name string, f fetchFunc) {
			src := newTable(name, 0).source(nil)
			src.Open = func(context.Context) (Fetcher, error) { return f, nil }
			sources = append(sources, src)
		}
		n := 0
		add("html", func(json.RawMessage) (*Page, error) {
			return nil, &Fault{Kind: Answer, Status: 200, Reason: "it is HTML"}
		})
		add("login", func(json.RawMessage) (*Page, error) {
			return nil, &Fault{Kind: Credentials, Status: 401, Reason: "refused"}
		})
		add("loop", func(json.RawMessage) (*Page, error) {
			n++
			return &Page{Next: json.RawMessage(fmt.Sprintf(`%d`, n%3)), More: true}, nil
		})
		add("same", func(c json.RawMessage) (*Page, error) {
			return &Page{Next: json.RawMessage(`1`), More: true}, nil
		})
		add("mute", func(json.RawMessage) (*Page, error) { return &Page{}, nil })
		add("none", func(json.RawMessage) (*Page, error) { return nil, nil })
		add("long", func(json.RawMessage) (*Page, error) {
			return &Page{Next: json.RawMessage(`"` + strings.Repeat("x", MaxCursor) + `"`)}, nil
		})
		add("nojson", func(json.RawMessage) (*Page, error) { return &Page{Next: json.RawMessage(`{`)}, nil })
		add("gone", func(json.RawMessage) (*Page, error) { return nil, fmt.Errorf("dial: %w", errors.New("no such host")) })
		add("forgetful", func(json.RawMessage) (*Page, error) { return nil, ErrExpired })
		p, r := newPoller(t, newMemory(), in)
		p.Apply(sources)
		step(10 * time.Second)
		good.write("k00000")
		step(2 * time.Second)
		want(t, in, "k00000@2")
		step(2 * time.Minute)
		wantKind := map[string]string{
			"html": "answer", "login": "credentials", "loop": "answer", "same": "answer", "mute": "answer", "none": "answer",
			"long": "answer", "nojson": "answer", "gone": "unavailable", "forgetful": "answer",
		}
		for _, st := range p.here(time.Now()) {
			if st.Source == "good" {
				if st.State != Polling || st.Requests < 100 {
					t.Errorf("good: %+v", st)
				}
				continue
			}
			if st.State != Failing || st.Kind != wantKind[st.Source] || st.Error == "" || st.Since.IsZero() {
				t.Errorf("%s: %+v", st.Source, st)
			}
			if st.Requests > 100 { // a loop takes three to be seen
				t.Errorf("%s was asked %d times in two minutes", st.Source, st.Requests)
			}
			if got := r.count("source.failing " + st.Source); got < 1 || got > 2 {
				t.Errorf("%s was reported %d times", st.Source, got)
			}
		}
	})
}

func TestStorageTroubleMovesNothing(t *testing.T) {
	for _, trouble := range []error{publish.ErrStorageFull, publish.ErrBroker, publish.ErrOverloaded, publish.ErrQuarantineFull} {
		t.Run(trouble.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				in, tab := &inbox{}, newTable("a", 1)
				p, _ := newPoller(t, newMemory(), in)
				p.Apply([]Source{tab.source(nil)})
				step(5 * time.Second)
				in.fail(trouble)
				tab.write("x")
				tab.write("y")
				step(5 * time.Minute)
				if st := p.only(t); st.State != Failing || st.Kind != "storage" || st.Published != 0 {
					t.Errorf("%+v", st)
				}
				if n := len(tab.asked()); n > 40 {
					t.Errorf("the source was asked %d times for what cannot be stored", n)
				}
				in.fail(nil)
				step(2 * time.Minute)
				want(t, in, "x@2", "y@3")
				if st := p.only(t); st.State != Polling || st.Error != "" {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

func TestRejectedRowsGoToQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := &inbox{}
		n := 0
		f := fetchFunc(func(c json.RawMessage) (*Page, error) {
			n++
			p := &Page{Next: json.RawMessage(fmt.Sprint(n)), Listing: c == nil, Listed: c == nil}
			if n == 2 {
				p.Rows = []record.Row{{Data: json.RawMessage(`{}`)}, {Key: strings.Repeat("k", mostKey+1)}, {Key: "good", Version: "1"}}
				p.Rejected = []Rejected{{Raw: []byte("x"), Reason: "column id is missing"}}
			}
			return p, nil
		})
		src := newTable("a", 0).source(nil)
		src.Open = func(context.Context) (Fetcher, error) { return f, nil }
		p, _ := newPoller(t, newMemory(), in)
		p.Apply([]Source{src})
		step(10 * time.Second)
		want(t, in, "good@1", "fault missing-member: the row has no key; name its key columns in poll",
			"fault invalid-event: the row's key is 4097 bytes long, at most 4096 can be kept", "fault invalid-event: column id is missing")
		if st := p.only(t); st.Quarantined != 3 || st.Published != 1 {
			t.Errorf("%+v", st)
		}
	})
}

func TestSchemaDriftIsReportedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, tab := &inbox{}, newTable("a", 1)
		tab.columns = []string{"id", "name"}
		p, r := newPoller(t, newMemory(), in)
		p.Apply([]Source{tab.source(nil)})
		change := func(columns ...string) int {
			tab.mu.Lock()
			tab.columns = columns
			tab.mu.Unlock()
			for range 5 {
				tab.write("k00000")
				step(2 * time.Second)
			}
			return r.count("source.schema-changed a")
		}
		if n := change("id", "name"); n != 0 {
			t.Errorf("%d reports without a change", n)
		}
		if n := change("id", "name", "city"); n != 1 {
			t.Errorf("%d reports of a new column", n)
		}
		if n := change("id", "city"); n != 2 {
			t.Errorf("%d reports with one that has vanished", n)
		}
		if n := change("id", "city", "name"); n != 2 {
			t.Errorf("%d reports although it is known", n)
		}
	})
}

func TestCommands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, tab := &inbox{}, newTable("a", 10)
		p, _ := newPoller(t, newMemory(), in)
		slow := func(c *Config) { c.Every = Every{Min: time.Hour, Max: time.Hour} }
		p.Apply([]Source{tab.source(slow)})
		step(time.Minute)
		if err := p.PollNow(t.Context(), "b"); !errors.Is(err, ErrUnknown) {
			t.Errorf("got %v", err)
		}
		tab.write("k00001")
		if err := p.PollNow(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		step(time.Second)
		want(t, in, "k00001@11")
		if err := p.Rewind(t.Context(), "a", time.Now()); !errors.Is(err, ErrCannotRewind) {
			t.Errorf("got %v", err)
		}
		if err := p.Rewind(t.Context(), "a", time.Time{}); err != nil {
			t.Fatal(err)
		}
		step(time.Second)
		if got := in.take(); len(got) != 9 { // all but the one that dedup knows
			t.Errorf("got %v", got)
		}
		tab.write("k00002")
		if err := p.Baseline(t.Context(), "a", Silent); err != nil {
			t.Fatal(err)
		}
		step(time.Second)
		want(t, in)
		tab.write("k00003")
		tab.remove("k00004")
		if err := p.Baseline(t.Context(), "a", Compare); err != nil {
			t.Fatal(err)
		}
		step(time.Second)
		want(t, in, "k00003@13", "k00004@deleted")

		// A command does not wait for a request that is held.
		tab.mu.Lock()
		tab.hold = func(ctx context.Context) { <-ctx.Done() }
		tab.mu.Unlock()
		if err := p.PollNow(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		step(time.Second)
		began := time.Now()
		if err := p.Baseline(t.Context(), "a", Silent); err != nil || time.Since(began) > time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

func TestApplyLeavesAloneWhatIsTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := &inbox{}
		a, b := newTable("a", 1), newTable("b", 1)
		p, _ := newPoller(t, newMemory(), in)
		sa, sb := a.source(nil), b.source(nil)
		p.Apply([]Source{sa, sb})
		step(10 * time.Second)
		before := p.sources["a"]
		sb.Version = "2"
		p.Apply([]Source{sa, sb})
		step(10 * time.Second)
		if p.sources["a"] != before {
			t.Error("a was begun again")
		}
		p.Apply([]Source{sb})
		n := len(a.asked())
		step(10 * time.Second)
		if len(a.asked()) != n {
			t.Error("a is polled although it was removed")
		}
		b.write("x")
		step(5 * time.Second)
		want(t, in, "x@2")
	})
}

func TestRowsTooLargeForAnything(t *testing.T) {
	in := &inbox{}
	tries := 0
	s := &source{parts: &Parts{Publish: nil}}
	results := eventOf(record.Row{Key: "k", Version: "1"})
	results.Raw = make([]byte, tooLong+1)
	s.parts.Publish = func(ctx context.Context, o publish.Origin, r []event.Result) ([]publish.Status, error) {
		if tries++; len(r[0].Raw) > tooLong {
			return nil, publish.ErrTooLarge
		}
		return in.Publish(ctx, o, r)
	}
	if err := s.publish(t.Context(), []event.Result{results}); err != nil {
		t.Fatal(err)
	}
	if got := in.take(); len(got) != 1 || !strings.Contains(got[0], "too-large") || tries != 2 {
		t.Errorf("got %v after %d tries", got, tries)
	}
}

// Several tables of one source have each their own checkpoint and known rows: one
// that is added resets none. What was written when a source had one table, without
// its name, is gone on with by that one, wherever it stands among others.
func TestTables(t *testing.T) {
	if got, want := ID("crm", "sales.o/rders ü"), "crm/sales=2Eo=2Frders=20=C3=BC"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if a, b := ID("x", strings.Repeat("a", 200)), ID("x", strings.Repeat("a", 201)); a == b || len(a) > 140 {
		t.Errorf("got %s and %s", a, b)
	}
	synctest.Test(t, func(t *testing.T) {
		m, in := newMemory(), &inbox{}
		a, b := newTable("a", 60), newTable("b", 70)
		of := func(tab *table, name string, only, first bool) Source {
			return tab.source(func(c *Config) { c.Name, c.Table, c.Only, c.First = "s", name, only, first })
		}
		states := func(p *Poller) map[string]Status {
			step(time.Minute)
			all := map[string]Status{}
			for _, st := range p.here(time.Now()) {
				if st.State != Polling {
					t.Errorf("%s %s: %s", st.Source, st.Table, st.Says)
				}
				all[st.Table] = st
			}
			return all
		}
		remembered := func(p *Poller, table string, want int64) {
			t.Helper()
			if got := states(p)[table].Remembered; got != want {
				t.Errorf("%s: %d rows were remembered, want %d", table, got, want)
			}
		}
		// As it was kept before there were tables.
		p, _ := newPoller(t, m, in)
		p.Apply([]Source{of(a, "", false, false)})
		remembered(p, "", 60)
		p.Stop(t.Context())

		a.write("k00001")
		p, _ = newPoller(t, m, in)
		p.Apply([]Source{of(a, "a", true, true)})
		remembered(p, "a", 0)
		if d := cmp.Diff([]string{"k00001@61"}, in.take()); d != "" {
			t.Error(d)
		}
		// A second one, before it.
		a.write("k00002")
		p.Apply([]Source{of(b, "b", false, true), of(a, "a", false, false)})
		remembered(p, "b", 70)
		remembered(p, "a", 0)
		if d := cmp.Diff([]string{"k00002@62"}, in.take()); d != "" {
			t.Error(d)
		}
		b.write("k00003")
		a.write("k00003")
		p.Stop(t.Context())
		// Alone again, and then both.
		p, _ = newPoller(t, m, in)
		p.Apply([]Source{of(b, "b", true, true)})
		remembered(p, "b", 0)
		p.Apply([]Source{of(a, "a", false, true), of(b, "b", false, false)})
		if got := states(p); got["a"].Remembered != 0 || got["b"].Remembered != 0 || got["a"].Known != 60 || got["b"].Known != 70 {
			t.Errorf("got %+v", got)
		}
		if d := cmp.Diff([]string{"k00003@63", "k00003@71"}, in.take()); d != "" {
			t.Error(d)
		}
		// What is known of one is not compared with the other.
		a.forget()
		a.remove("k00004")
		if got := states(p); got["a"].Known != 59 || got["b"].Known != 70 {
			t.Errorf("got %+v", got)
		}
		if d := cmp.Diff([]string{"k00004@deleted"}, in.take()); d != "" {
			t.Error(d)
		}
		p.Stop(t.Context())
	})
}
