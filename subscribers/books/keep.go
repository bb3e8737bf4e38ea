package books

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
)

// keySums is where the sums are kept in BucketBooks.
const keySums = "sums"

// plainSums is up to which size the sums are kept as plain JSON, for people who
// look with the nats CLI. A thousand subscribers take ten times as much.
const plainSums = 64 << 10

func encodeSums(s *sums) ([]byte, error) {
	text, err := json.Marshal(s)
	if err != nil || len(text) <= plainSums {
		return text, err
	}
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(text); err != nil {
		return nil, err
	}
	err = z.Close()
	return packed.Bytes(), err
}

func decodeSums(b []byte) (*sums, error) {
	if !bytes.HasPrefix(b, []byte("{")) {
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		if b, err = io.ReadAll(z); err != nil {
			return nil, err
		}
	}
	s := &sums{}
	return s, json.Unmarshal(b, s)
}

// stored gives the kept sums, nil when there are none.
func (b *Books) stored(ctx context.Context) (*sums, uint64, error) {
	v, err := b.kv.Get(ctx, keySums)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("key %s of bucket %s: %w", keySums, broker.BucketBooks, err)
	}
	s, err := decodeSums(v.Value())
	if err != nil {
		return nil, 0, fmt.Errorf("key %s of bucket %s: %w; delete it, and the books begin again", keySums, broker.BucketBooks, err)
	}
	return s, v.Revision(), nil
}

// load begins with what is kept.
func (b *Books) load(ctx context.Context) error {
	epoch := b.Broker.Epoch()
	s, revision, err := b.stored(ctx)
	if err != nil {
		return err
	}
	if s == nil {
		s = &sums{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fold = newFold(s)
	b.epoch, b.revision, b.changed, b.entries = epoch, revision, false, 0
	b.keptAt = time.Now()
	return nil
}

func (b *Books) saveSometimes(ctx context.Context) error {
	if time.Since(b.keptAt) < saveEvery {
		return nil
	}
	return b.save(ctx)
}

// save keeps the sums, if they have changed and no replica's reach further.
func (b *Books) save(ctx context.Context) error {
	b.mu.Lock()
	if !b.changed || b.fold.Since.IsZero() {
		b.mu.Unlock()
		return nil
	}
	b.fold.flush()
	value, err := encodeSums(b.fold.sums)
	mine := sums{Events: b.fold.Events, Attempts: b.fold.Attempts, Quarantine: b.fold.Quarantine}
	b.mu.Unlock()
	if err != nil {
		return err
	}
	b.keptAt = time.Now()
	for {
		err := b.Broker.Change(ctx, func() (err error) {
			if b.Broker.Epoch() != b.epoch {
				return broker.ErrReopened // what was folded may be gone
			}
			revision := uint64(0)
			if b.revision == 0 {
				revision, err = b.kv.Create(ctx, keySums, value)
			} else {
				revision, err = b.kv.Update(ctx, keySums, value, b.revision)
			}
			if err == nil {
				b.revision = revision
			}
			return err
		})
		if err == nil {
			b.mu.Lock()
			b.changed = false
			b.mu.Unlock()
			return nil
		}
		if !errors.Is(err, jetstream.ErrKeyExists) { // how a stale revision is called
			return fmt.Errorf("keep the books: %w", err)
		}
		theirs, revision, err := b.stored(ctx)
		if err != nil {
			return err
		}
		if b.revision = revision; theirs != nil && !mine.reaches(theirs) {
			return nil // another replica was quicker; the next time
		}
	}
}
