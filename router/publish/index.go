package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/dedup"
)

// index knows what was published within the horizon. The broker itself
// recognises a Msg-Id for a few minutes only (broker.DedupWindow), which
// settles races and crashes; this covers the rest, in a fifth of the memory.
//
// What this process publishes goes in at once. What others publish, and what
// was under way in a crash, is read from the stream: a gap in the sequences
// tells that there is something. Any event that is not in the index yet is
// younger than the broker's window, so every replica gives the same answer.
type index struct {
	*dedup.Index
	t   *target
	log *slog.Logger

	ctx     context.Context // ends with close
	stop    context.CancelFunc
	running sync.WaitGroup
}

// followEvery is how often the index looks for what others have published: a
// fraction of the broker's window.
const followEvery = time.Second

// catchUpWait is how long a start waits for the index. After a restart a second
// or two of events are missing; without a log on disk it is the whole stream.
const catchUpWait = 10 * time.Second

func openIndex(ctx context.Context, cfg Config, t *target) (*index, error) {
	info, err := t.events.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", t.broker.Main(), err)
	}
	x := &index{t: t, log: cfg.Log}
	x.Index, err = dedup.Open(
		dedup.Config{Dir: cfg.IndexDir, Horizon: cfg.Dedup.Horizon, MaxBytes: cfg.Dedup.Memory},
		dedup.Stream{ID: info.Created.UTC().Format(time.RFC3339Nano), Last: info.State.LastSeq}, cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("index of published events: %w", err)
	}
	x.ctx, x.stop = context.WithCancel(context.Background())
	began := time.Now()
	caughtUp := make(chan struct{})
	x.running.Go(func() {
		x.follow(caughtUp)
	})
	wait := time.NewTimer(catchUpWait)
	defer wait.Stop()
	select {
	case <-caughtUp:
		x.log.Debug("index of published events is up to date", "ids", x.Stats().IDs, "took", time.Since(began))
	case <-wait.C:
		x.log.Warn("the index of published events is still being read from the stream; until it is done, an event repeated after more than the broker's own window is published again",
			"window", broker.DedupWindow, "read", x.Covered(), "of", info.State.LastSeq)
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), x.close())
	}
	return x, nil
}

func (x *index) close() error {
	x.stop()
	x.running.Wait()
	return x.Close()
}

// follow reads what is missing from the stream, first of all what came before
// the start. It closes caughtUp when it has that.
func (x *index) follow(caughtUp chan struct{}) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	stood := ^uint64(0) // how far it was when it last looked
	for {
		more, err := x.followOnce(stood)
		switch {
		case x.ctx.Err() != nil:
			return
		case err != nil:
			x.log.Debug("index of published events", "error", err)
		case more:
			continue
		case caughtUp != nil:
			close(caughtUp)
			caughtUp = nil
		}
		stood = x.Covered()
		select {
		case <-x.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// followOnce reads a part of what is missing, when the index stands where it
// stood: else this process's own events are just coming in. more says that there
// is more to read.
func (x *index) followOnce(stood uint64) (more bool, err error) {
	covered := x.Covered()
	if stood != ^uint64(0) && stood != covered {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(x.ctx, ackTimeout)
	defer cancel()
	epoch := x.t.broker.Epoch()
	info, err := x.t.events.Info(ctx)
	if err != nil || info.State.LastSeq <= covered {
		return false, err
	}
	if info.State.FirstSeq > covered+1 {
		x.Skip(info.State.FirstSeq - 1)
		covered = x.Covered()
	}
	// Only what cannot be lost any more may count as published.
	if x.t.broker.DurableThrough() < info.State.LastSeq {
		if err := x.t.broker.Durable(ctx, epoch, info.State.LastSeq); err != nil {
			return false, err
		}
	}
	if info.State.LastSeq <= covered {
		return false, nil
	}
	err = x.read(covered+1, info.State.LastSeq)
	return err == nil, err
}

// readAtMost bounds one read, so that a close does not wait for long.
const readAtMost = 20_000

// read puts the stream's messages of a range into the index, or the first of
// them.
func (x *index) read(from, through uint64) error {
	through = min(through, from+readAtMost-1)
	ctx, cancel := context.WithTimeout(x.ctx, 30*time.Second)
	defer cancel()
	c, err := x.t.js.OrderedConsumer(ctx, x.t.broker.Main(), jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from,
		HeadersOnly: true, InactiveThreshold: 10 * time.Second,
	})
	if err != nil {
		return err
	}
	for next := from; next <= through; {
		batch, err := c.Fetch(512, jetstream.FetchMaxWait(2*time.Second))
		if err != nil {
			return err
		}
		any := false
		for m := range batch.Messages() {
			any = true
			meta, err := m.Metadata()
			if err != nil {
				return err
			}
			// What is left of the fetch ends with the consumer.
			for ; next < meta.Sequence.Stream && next <= through; next++ {
				x.Cover(next) // deleted
			}
			if next <= through {
				x.take(next, m.Headers(), meta.Timestamp)
				next++
			}
			if meta.NumPending == 0 && next <= through {
				x.Skip(through) // deleted at the end
				next = through + 1
			}
			if next > through {
				return nil
			}
		}
		if err := batch.Error(); err != nil {
			return err
		}
		if !any {
			if _, err := x.t.events.GetMsg(ctx, next, jetstream.WithGetMsgSubject(">")); !errors.Is(err, jetstream.ErrMsgNotFound) {
				return fmt.Errorf("read the stream from %d on: %w", next, err)
			}
			x.Skip(through) // the rest was deleted
			return nil
		}
	}
	return nil
}

// take puts one stored message into the index.
func (x *index) take(sequence uint64, h nats.Header, at time.Time) {
	id, digest := h.Get(headerIdentity), h.Get(headerDigest)
	if id == "" {
		id = h.Get(headerMsgID)
	}
	if id == "" || digest == "" {
		x.Cover(sequence) // not one of ours
		return
	}
	x.known(sequence, dedup.KeyOf(id, digest), h.Get(headerMatch), at)
}
