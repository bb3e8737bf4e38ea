package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// hold is what is kept under a key for as long as it holds.
type hold struct {
	For time.Duration `json:"for"`
	By  string        `json:"by"`
}

// holdPrefix keeps holds apart from leases, with which they share a bucket: both are
// forgotten by the server itself, so no two clocks have to agree.
const holdPrefix = "hold."

// Hold makes Held say of a key that it holds, on every replica, for d or a little longer,
// and gives the number by which Held will know that. One that holds longer already
// stays; the number is 0 then.
func (b *Broker) Hold(ctx context.Context, key string, d time.Duration) (number uint64, _ error) {
	const tries = 3 // others may say the same at this moment
	for try := 1; ; try++ {
		kv, err := b.leases(ctx)
		if err != nil {
			return 0, err
		}
		left, revision, err := look(ctx, kv, key)
		if err != nil || left >= d {
			return 0, err
		}
		value, err := json.Marshal(hold{d, Instance()})
		if err != nil {
			return 0, err
		}
		// The server counts in whole seconds, and drops what is left of one.
		ttl := (d + time.Second - 1).Truncate(time.Second)
		opts := []jetstream.PublishOpt{jetstream.WithMsgTTL(ttl)}
		if revision > 0 { // else the server's own mark of one that has ended may be there
			opts = append(opts, jetstream.WithExpectLastSequencePerSubject(revision))
		}
		ack, err := b.js.Publish(ctx, "$KV."+BucketLeases+"."+holdPrefix+key, value, opts...)
		var api *jetstream.APIError
		switch {
		case err == nil:
			return ack.Sequence, nil
		case !errors.As(err, &api) || try == tries:
			return 0, err
		}
	}
}

// Held says for how much longer a key holds, 0 if it does not, and by which number. It is
// not sure of the time, because clocks differ, so ask again when it is over.
func (b *Broker) Held(ctx context.Context, key string) (left time.Duration, number uint64, _ error) {
	kv, err := b.leases(ctx)
	if err != nil {
		return 0, 0, err
	}
	return look(ctx, kv, key)
}

// leastHold is what is left of a hold that is still there, when by this clock it is over.
const leastHold = 250 * time.Millisecond

func look(ctx context.Context, kv jetstream.KeyValue, key string) (left time.Duration, revision uint64, _ error) {
	e, err := kv.Get(ctx, holdPrefix+key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return 0, revision, nil
	}
	if err != nil {
		return 0, 0, err
	}
	var h hold
	if err := json.Unmarshal(e.Value(), &h); err != nil {
		return 0, 0, fmt.Errorf("what holds %s: %w", key, err)
	}
	return min(max(time.Until(e.Created().Add(h.For)), leastHold), h.For), e.Revision(), nil
}

// leases is the bucket of what the server forgets by itself. A server that keeps it in
// memory may have lost it.
func (b *Broker) leases(ctx context.Context) (jetstream.KeyValue, error) {
	kv, err := b.js.KeyValue(ctx, BucketLeases)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		if err = b.DeclareBuckets(ctx); err == nil {
			kv, err = b.js.KeyValue(ctx, BucketLeases)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", BucketLeases, err)
	}
	return kv, nil
}
