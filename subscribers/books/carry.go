package books

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
)

// What routers have counted, and differences that are carried on, are not part
// of the sums: they are other processes' or people's word, and have keys of
// their own in the bucket.

// keyCarried holds the openings, keyPast the tallies of processes that are gone.
const (
	keyCarried = "carried"
	keyPast    = "past"
)

// opening is a difference that is carried on.
type opening struct {
	At      time.Time `json:"at"`
	Balance int64     `json:"balance"`
	Dead    int64     `json:"dead,omitempty"`
	Why     string    `json:"why"`
}

// carried gives the openings by row.
func (b *Books) carried(ctx context.Context) (map[string]opening, uint64, error) {
	all := map[string]opening{}
	revision, err := b.readKey(ctx, keyCarried, &all)
	b.mu.Lock()
	since := b.fold.Since
	b.mu.Unlock()
	// What was carried in books before these means nothing here.
	maps.DeleteFunc(all, func(_ string, o opening) bool { return o.At.Before(since) })
	return all, revision, err
}

// readKey reads one key, if it is there.
func (b *Books) readKey(ctx context.Context, key string, to any) (revision uint64, err error) {
	v, err := b.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return 0, nil
	}
	if err == nil {
		revision, err = v.Revision(), json.Unmarshal(v.Value(), to)
	}
	if err != nil {
		return 0, fmt.Errorf("key %s of bucket %s: %w", key, broker.BucketBooks, err)
	}
	return revision, nil
}

// writeKey writes one key that was read at a revision, or gives ErrKeyExists when
// somebody else was quicker.
func (b *Books) writeKey(ctx context.Context, key string, v any, revision uint64) error {
	value, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Broker.Change(ctx, func() (err error) {
		if revision == 0 {
			_, err = b.kv.Create(ctx, key, value)
		} else {
			_, err = b.kv.Update(ctx, key, value, revision)
		}
		return err
	})
}

// carryOn adds openings, and forgets those of rows that are no more.
func (b *Books) carryOn(ctx context.Context, rows map[string]bool, add map[string]opening) error {
	for {
		all, revision, err := b.carried(ctx)
		if err != nil {
			return err
		}
		maps.DeleteFunc(all, func(row string, _ opening) bool { return !rows[row] })
		for row, o := range add {
			was := all[row]
			o.Balance += was.Balance
			o.Dead += was.Dead
			all[row] = o
		}
		if err := b.writeKey(ctx, keyCarried, all, revision); !errors.Is(err, jetstream.ErrKeyExists) {
			return err
		}
	}
}

func (r *Reading) rows() map[string]bool {
	rows := map[string]bool{}
	for i := range r.Subscribers {
		rows[r.Subscribers[i].row()] = r.Subscribers[i].State != StateDeleted
	}
	for i := range r.Sources {
		rows[r.Sources[i].row()] = true
	}
	return rows
}

// ErrMoving means that a difference can't be told for sure now.
var ErrMoving = errors.New("events are moving, so the difference is not certain; try again at a quiet moment")

// ErrNoBook means that nobody of a name is in the books.
var ErrNoBook = errors.New("no subscriber or source of this name is in the books")

// Accept carries the difference of a subscriber or source on: from now on only
// new ones count. It gives what was accepted.
func (b *Books) Accept(ctx context.Context, name string) (int64, error) {
	r, err := b.Read(ctx)
	if err != nil {
		return 0, err
	}
	now := time.Now().UTC()
	add, sum, found := map[string]opening{}, int64(0), false
	check := func(row string, v *Verdict, dead int64) error {
		found = true
		if !v.Settled {
			return fmt.Errorf("%q: %w", name, ErrMoving)
		}
		if len(v.Problems) == 0 {
			return nil
		}
		sum += v.Balance
		add[row] = opening{At: now, Balance: v.Balance, Dead: dead, Why: "accepted by an operator"}
		return nil
	}
	carried, _, err := b.carried(ctx)
	if err != nil {
		return 0, err
	}
	for i := range r.Subscribers {
		if s := &r.Subscribers[i]; s.Name == name && s.State != StateDeleted {
			if err := check(s.row(), &s.Verdict, s.dead()-carried[s.row()].Dead); err != nil {
				return 0, err
			}
		}
	}
	for i := range r.Sources {
		if s := &r.Sources[i]; s.Name == name {
			if err := check(s.row(), &s.Verdict, 0); err != nil {
				return 0, err
			}
		}
	}
	if !found {
		return 0, fmt.Errorf("%q: %w", name, ErrNoBook)
	}
	if len(add) == 0 {
		return 0, nil
	}
	if err := b.carryOn(ctx, r.rows(), add); err != nil {
		return 0, err
	}
	b.Broker.Report("books.accepted", name, map[string]any{"difference": sum})
	return sum, nil
}
