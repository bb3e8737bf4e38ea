package broker

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// EachEntry calls each with every entry of a bucket whose key matches a pattern, such
// as "poll.*" or jetstream.AllKeys, as they are now, in one go however many there are.
// Deleted ones are left out. It ends with the first error.
func EachEntry(ctx context.Context, kv jetstream.KeyValue, pattern string, each func(jetstream.KeyValueEntry) error) error {
	w, err := kv.Watch(ctx, pattern, jetstream.IgnoreDeletes())
	if err != nil {
		return err
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case u, ok := <-w.Updates():
			switch {
			case !ok:
				return fmt.Errorf("the list of %s broke off", kv.Bucket())
			case u == nil: // the end of what there is
				return nil
			}
			if err := each(u); err != nil {
				return err
			}
		}
	}
}
