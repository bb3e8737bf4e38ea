//go:build postgres && linux

package sqlrows

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	writers   = 8
	lateShare = 0.05 // of all transactions
	lateLeast = 500 * time.Millisecond
	lateMost  = 3 * time.Second
	pollEvery = 200 * time.Millisecond
)

// write has writers make changes, some of which stay open for a while, until the
// function that it returns is called. Each waits a little between two.
func write(t *testing.T, s *database, change func(r *rand.Rand, n int) (text string, args []any)) (end func()) {
	var all sync.WaitGroup
	stop := make(chan struct{})
	end = sync.OnceFunc(func() {
		close(stop)
		all.Wait()
	})
	t.Cleanup(end)
	for w := range writers {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 7))
			for n := w; ; n += writers {
				open := time.Duration(0)
				if r.Float64() < lateShare {
					open = lateLeast + time.Duration(r.Int64N(int64(lateMost-lateLeast)))
				}
				tx, err := s.db.BeginTx(context.Background(), nil)
				if err != nil {
					t.Error(err)
					return
				}
				text, args := change(r, n)
				if _, err := tx.Exec(text, args...); err != nil {
					t.Error(err)
					_ = tx.Rollback()
					return
				}
				if open > 0 {
					time.Sleep(open) // sleep: the transaction is to be late
				}
				finish := tx.Commit
				if r.Float64() < 0.02 {
					finish = tx.Rollback
				}
				if err := finish(); err != nil {
					t.Error(err)
				}
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(r.Int64N(int64(60 * time.Millisecond)))):
				}
			}
		})
	}
	return end
}

// reader is one way to ask for what is new.
type reader struct {
	name string
	ask  func() ([]string, error) // the keys of rows

	seen   map[string]int
	reread int
	polls  int
}

// TestLateCommits has the cursors that people use read the same table while some of
// its transactions take their time, and counts what each of them loses. The table of
// docs/sql-sources.md is what it prints.
func TestLateCommits(t *testing.T) {
	s := newDatabase(t)
	s.exec(`CREATE TABLE orders (id bigserial PRIMARY KEY, updated_at timestamptz NOT NULL DEFAULT clock_timestamp(), tx xid8 NOT NULL DEFAULT pg_current_xact_id());
CREATE INDEX ON orders (updated_at, id); CREATE INDEX ON orders (tx, id)`)
	simple := func(column, zero string) func() ([]string, error) {
		last := zero
		return func() ([]string, error) {
			rows, err := s.db.Query("SELECT id::text, "+column+"::text FROM orders WHERE "+column+" > $1 ORDER BY orders."+column, last)
			if err != nil {
				return nil, err
			}
			defer rows.Close()
			var keys []string
			for rows.Next() {
				var key string
				if err := rows.Scan(&key, &last); err != nil {
					return nil, err
				}
				keys = append(keys, key)
			}
			return keys, rows.Err()
		}
	}
	ours := func(c Cursor) func() ([]string, error) {
		f := s.fetcher(Config{Table: Table{Name: "orders", Key: []string{"id"}}, Cursor: c})
		var cursor json.RawMessage
		return func() ([]string, error) {
			var keys []string
			for {
				page, err := f.Fetch(context.Background(), cursor)
				if err != nil {
					return nil, err
				}
				for _, r := range page.Rows {
					keys = append(keys, r.Key)
				}
				if cursor = page.Next; !page.More {
					return keys, nil
				}
			}
		}
	}
	readers := []*reader{
		{name: "`id > last`", ask: simple("id", "0")},
		{name: "`updated_at > last`", ask: simple("updated_at", "-infinity")},
		{name: "`timestamp`, overlap 1s", ask: ours(Cursor{Kind: Timestamp, Column: "updated_at", Overlap: time.Second})},
		{name: "`timestamp`, overlap 5s", ask: ours(Cursor{Kind: Timestamp, Column: "updated_at", Overlap: 5 * time.Second})},
		{name: "`transaction`", ask: ours(Cursor{Kind: Transaction, Column: "tx"})},
	}
	inserted := map[string]bool{}
	for _, r := range readers { // there is nothing to list yet
		if _, err := r.ask(); err != nil {
			t.Fatal(err)
		}
	}
	end := write(t, s, func(*rand.Rand, int) (string, []any) { return `INSERT INTO orders DEFAULT VALUES`, nil })
	var asking sync.WaitGroup
	finish := make(chan struct{})
	for _, r := range readers {
		r.seen = map[string]int{}
		asking.Go(func() {
			for last := false; !last; {
				select {
				case <-finish:
					last = true // and once more
				case <-time.After(pollEvery):
				}
				keys, err := r.ask()
				if err != nil {
					t.Error(r.name, err)
					return
				}
				r.polls++
				for _, k := range keys {
					if r.seen[k]++; r.seen[k] > 1 {
						r.reread++
					}
				}
			}
		})
	}
	time.Sleep(20 * time.Second) // sleep: they write that long
	end()
	close(finish)
	asking.Wait()
	rows, err := s.db.Query(`SELECT id::text FROM orders`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var k string
		if err := rows.Scan(&k); err != nil {
			t.Fatal(err)
		}
		inserted[k] = true
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d rows by %d writers, %.0f %% of transactions open %v to %v, a poll every %v:\n\n| cursor | lost | read again |\n|---|---|---|\n",
		len(inserted), writers, lateShare*100, lateLeast, lateMost, pollEvery)
	for _, r := range readers {
		lost := 0
		for k := range inserted {
			if r.seen[k] == 0 {
				lost++
			}
		}
		fmt.Fprintf(&b, "| %s | %d | %d |\n", r.name, lost, r.reread)
		switch r.name {
		case "`transaction`":
			if lost != 0 || r.reread != 0 || len(r.seen) != len(inserted) || r.polls < 20 {
				t.Errorf("transaction lost %d of %d, read %d again in %d polls", lost, len(inserted), r.reread, r.polls)
			}
		case "`id > last`", "`updated_at > last`":
			// Else nothing was late, and the test shows nothing.
			if lost == 0 {
				t.Errorf("%s lost nothing: is anything late?", r.name)
			}
		}
	}
	t.Log("\n" + b.String())
}

// TestLatestStates has rows created and changed at random, some late, from the
// beginning of the listing on, while the reader is now and then replaced by another
// that begins at a cursor of a while ago. In the end the latest state of each row was
// read.
func TestLatestStates(t *testing.T) {
	s := newDatabase(t)
	s.exec(ordersTable)
	s.exec(`ALTER TABLE orders ADD COLUMN rev int NOT NULL DEFAULT 0; INSERT INTO orders SELECT i, 'old' FROM generate_series(1, 2000) AS i`)
	for _, c := range []Cursor{{Kind: Transaction, Column: "tx"}, {Kind: Timestamp, Column: "at", Overlap: 2 * lateMost}} {
		t.Run(string(c.Kind), func(t *testing.T) {
			end := write(t, s, func(r *rand.Rand, n int) (string, []any) {
				id := 1 + r.IntN(2500)
				return `INSERT INTO orders VALUES ($1, 'new') ON CONFLICT (id) DO UPDATE SET rev = orders.rev + 1`, []any{id}
			})
			config := byTransaction()
			config.Cursor, config.PageSize = c, 37
			f := s.fetcher(config)
			r := rand.New(rand.NewPCG(1, 1))
			newest := map[string]int{}
			var cursor, earlier json.RawMessage
			ended, quiet := time.Now().Add(8*time.Second), false
			for last := false; !last; {
				if !quiet && time.Now().After(ended) {
					end()
					quiet = true
				}
				last = quiet
				for more := true; more; {
					page, err := f.Fetch(t.Context(), cursor)
					if err != nil {
						t.Fatal(err)
					}
					for _, row := range page.Rows {
						var data struct {
							Rev int `json:"rev"`
						}
						if err := json.Unmarshal(row.Data, &data); err != nil {
							t.Fatal(err)
						}
						newest[row.Key] = max(newest[row.Key], data.Rev+1)
					}
					cursor, more = page.Next, page.More
					switch {
					case last:
					case r.IntN(20) == 0:
						earlier = cursor
					case r.IntN(40) == 0:
						f.Close()
						f, cursor = s.fetcher(config), earlier
					}
				}
			}
			rows, err := s.db.Query(`SELECT id, rev FROM orders`)
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			n, changed := 0, 0
			for rows.Next() {
				var id, rev int
				if err := rows.Scan(&id, &rev); err != nil {
					t.Fatal(err)
				}
				n++
				changed += min(rev, 1)
				if newest[strconv.Itoa(id)] != rev+1 {
					t.Errorf("row %d is at %d and was read at %d", id, rev, newest[strconv.Itoa(id)]-1)
				}
			}
			if n < 2000 || changed < 100 {
				t.Errorf("%d rows, %d changed: too few to show anything", n, changed)
			}
		})
	}
}
