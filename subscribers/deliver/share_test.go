package deliver

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"
)

// A share is used up by messages as well as by bytes, and there is room again once
// a tenth of it has gone.
func TestShareOfMessages(t *testing.T) {
	ctx := t.Context()
	type said struct {
		full        bool
		used, count int64
	}
	saying := make(chan said, 1)
	there := uint64(3)
	s := &share{
		limit: 1 << 20, most: 10, every: time.Hour, log: slog.New(slog.DiscardHandler),
		count:   func(context.Context) (uint64, float64, error) { return there, 100, nil },
		changed: func(full bool, used, count int64) { saying <- said{full, used, count} },
	}
	if s.spent(ctx) {
		t.Error("spent before anything is known")
	}
	for i := range 7 { // beside the three that were there
		if s.spent(ctx) {
			t.Errorf("spent with %d", 3+i)
		}
		s.add(ctx, 100)
	}
	if !s.spent(ctx) {
		t.Error("not spent with as many as there may be")
	}
	if got := <-saying; got != (said{true, 1000, 10}) {
		t.Errorf("said %+v", got)
	}
	if s.take(ctx, 100) {
		t.Error("one more was taken")
	}
	s.give(100)
	if got := <-saying; got != (said{false, 900, 9}) {
		t.Errorf("said %+v", got)
	}
	if s.spent(ctx) || !s.take(ctx, 100) {
		t.Error("no room although one has gone")
	}

	// Others have stored as many as there may be: it is noticed at the next count.
	s.counted, there = time.Time{}, 10
	if s.take(ctx, 100) {
		t.Error("taken although another replica has used it up")
	}
	<-saying
	there, s.every = 2, 0
	if s.spent(ctx) {
		t.Error("spent although another replica's have gone")
	}
	<-saying
	s.count = func(context.Context) (uint64, float64, error) { return 0, 0, errors.New("away") }
	s.recount(ctx)
	if s.n != 2 {
		t.Errorf("%d after a count that failed, want what was known", s.n)
	}
}
