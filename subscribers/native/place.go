package native

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// errTaken means that another replica records for the subscriber.
var errTaken = errors.New("another replica has taken over")

func decodePlace(u jetstream.KeyValueEntry) (place, error) {
	var p place
	if err := json.Unmarshal(u.Value(), &p); err != nil {
		return p, fmt.Errorf("place of subscriber %q: %w", u.Key(), err)
	}
	return p, nil
}

// find reads the place reached, and notes the first one.
func (c *Consumer) find(ctx context.Context) error {
	s, err := c.js.Stream(ctx, broker.StreamEvents)
	if err != nil {
		return err
	}
	stream := s.CachedInfo().Created
	first := place{Created: c.sub.Created, Stream: stream, Through: max(c.sub.StartSequence, 1) - 1}
	for {
		u, err := c.kv.Get(ctx, c.sub.Name)
		switch {
		case errors.Is(err, jetstream.ErrKeyNotFound):
			c.revision = 0
		case err != nil:
			return fmt.Errorf("place of subscriber %q: %w", c.sub.Name, err)
		default:
			p, err := decodePlace(u)
			if err != nil {
				return err
			}
			if c.revision = u.Revision(); p.Created.Equal(c.sub.Created) && p.Stream.Equal(stream) {
				c.place = p
				return nil
			}
			if p.Created.Equal(c.sub.Created) {
				// Somebody deleted the stream: its numbers say nothing of this one's.
				first.Through = 0
			}
		}
		err = c.note(ctx, first)
		if !errors.Is(err, errTaken) {
			return err
		}
	}
}

// note writes a place down; errTaken means that somebody else was quicker.
func (c *Consumer) note(ctx context.Context, p place) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	revision := c.revision
	err = c.parts.Broker.Change(ctx, func() error {
		var err error
		if c.revision == 0 {
			revision, err = c.kv.Create(ctx, c.sub.Name, text)
		} else {
			revision, err = c.kv.Update(ctx, c.sub.Name, text, c.revision)
		}
		return err
	})
	if errors.Is(err, jetstream.ErrKeyExists) { // how a stale revision is called
		return errTaken
	}
	if err != nil {
		return fmt.Errorf("place of subscriber %q: %w", c.sub.Name, err)
	}
	c.place, c.revision = p, revision
	return nil
}

// recallWindow is how far back from the last record those may lie whose place was
// not noted any more: they are written within a step.
const recallWindow = step + 45*time.Second

// recall reads what was recorded behind the place reached.
func (c *Consumer) recall(ctx context.Context) error {
	c.recorded = map[uint64]bool{}
	s, err := c.js.Stream(ctx, broker.StreamAttempts)
	if err != nil {
		return err
	}
	state := s.CachedInfo().State
	if state.Msgs == 0 {
		return nil
	}
	from := state.LastTime.Add(-recallWindow)
	o, err := c.js.OrderedConsumer(ctx, broker.StreamAttempts, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &from,
	})
	if err != nil {
		return err
	}
	name, err := json.Marshal(c.sub.Name)
	if err != nil {
		return err
	}
	needle := append([]byte(`"subscriber":`), name...)
	for {
		// Blocks of up to 512 KiB: few at once.
		batch, err := o.Fetch(32, jetstream.FetchMaxWait(5*time.Second))
		if err != nil {
			return err
		}
		for m := range batch.Messages() {
			meta, err := m.Metadata()
			if err != nil {
				return err
			}
			if bytes.Contains(m.Data(), needle) {
				c.remember(m.Data())
			}
			if meta.Sequence.Stream >= state.LastSeq {
				return nil
			}
		}
		if err := batch.Error(); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

func (c *Consumer) remember(block []byte) {
	records, err := deliver.ParseRecords(block)
	if err != nil {
		c.log.Warn("unreadable block of attempts", "error", err)
	}
	for _, r := range records {
		if r.Subscriber == c.sub.Name && r.Hop == 0 && r.Sequence > c.place.Through && r.Time.After(c.sub.Created) {
			c.recorded[r.Sequence] = true
		}
	}
}
