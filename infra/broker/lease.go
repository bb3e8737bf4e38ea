package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// Lease is the right to do what only one replica may do at a time. The server
// forgets it by itself, counting from each renewal; the holder counts from the
// moment before it asked, on its own monotonic clock, and stops earlier. So two
// never hold it at once, whatever their wall clocks say, unless a process stands
// still between looking at its clock and acting on it, or the server loses what
// it keeps in memory.
type Lease struct {
	b      *Broker
	kv     jetstream.KeyValue
	key    string
	holder string
	note   atomic.Pointer[[]byte]
	ttl    time.Duration

	// ctx ends when the lease is lost or given back.
	ctx      context.Context
	lose     context.CancelFunc
	end      *time.Timer // ends ctx when the holder may not believe in it any more
	revision uint64
	done     chan struct{}
}

const (
	// leaseTTL is how long a lease outlives its holder. It is longer than a
	// message of the holder's stays with it (deliver.ackWait), so that whoever
	// comes next finds all of them given back.
	leaseTTL = 6 * time.Second
	// leaseRetry is how often somebody else asks.
	leaseRetry = time.Second
)

// Lease waits until key is free and takes it. The caller calls Release. The
// error is ctx's; ctx bounds only the wait.
func (b *Broker) Lease(ctx context.Context, key string, log *slog.Logger) (*Lease, error) {
	warned := false
	for {
		l, err := b.TryLease(ctx, key, leaseTTL)
		switch {
		case l != nil:
			return l, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil && !warned:
			warned = true
			log.Warn("lease not taken, trying again", "lease", key, "error", err)
		}
		t := time.NewTimer(time.Duration(float64(leaseRetry) * (0.75 + rand.Float64()/2)))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		}
	}
}

// TryLease takes key, or gives nil when somebody else has it. After a crash
// somebody else can have it ttl later; a holder renews it four times in that
// time, and believes in it a fifth less. The caller calls Release. ctx bounds
// only the asking.
func (b *Broker) TryLease(ctx context.Context, key string, ttl time.Duration) (*Lease, error) {
	return b.tryLease(ctx, key, ttl, nil)
}

// tryLease is TryLease with a first Note, nil for none.
func (b *Broker) tryLease(ctx context.Context, key string, ttl time.Duration, note []byte) (*Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, ttl) // later it would be over
	defer cancel()
	kv, err := b.leases(ctx)
	if err != nil {
		return nil, err
	}
	l := &Lease{b: b, kv: kv, key: key, holder: Instance() + " " + nuid.Next(), ttl: ttl, done: make(chan struct{})}
	if note != nil {
		l.Note(note)
	}
	asked := time.Now()
	l.revision, err = kv.Create(ctx, key, l.value(), jetstream.KeyTTL(ttl))
	if errors.Is(err, jetstream.ErrKeyExists) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	l.ctx, l.lose = context.WithCancel(context.Background())
	l.end = time.AfterFunc(l.belief(asked), l.lose)
	go l.keep()
	return l, nil
}

// Context ends when the lease is lost or released. What it allows must have
// stopped within a fifth of its time then.
func (l *Lease) Context() context.Context { return l.ctx }

// Note sets what others read of the holder's work in LeaseNotes, from the next
// renewal on: at most maxNote bytes, what is longer is left out. It does not block.
func (l *Lease) Note(note []byte) { l.note.Store(&note) }

// maxNote bounds a note, as all leases are kept in memory.
const maxNote = 4 << 10

func (l *Lease) value() []byte {
	v := []byte(l.holder)
	if note := l.note.Load(); note != nil && len(*note) <= maxNote {
		v = append(append(v, '\n'), *note...)
	}
	return v
}

// LeaseNote is what the holder of a lease says.
type LeaseNote struct {
	Holder string // its Instance
	Note   []byte // nil: nothing yet
	At     time.Time
}

// LeaseNotes tells who holds the leases whose keys match a pattern, as in
// "poll.*", by key.
func (b *Broker) LeaseNotes(ctx context.Context, pattern string) (map[string]LeaseNote, error) {
	kv, err := b.js.KeyValue(ctx, BucketLeases)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", BucketLeases, err)
	}
	all := map[string]LeaseNote{}
	err = EachEntry(ctx, kv, pattern, func(u jetstream.KeyValueEntry) error {
		holder, note, _ := strings.Cut(string(u.Value()), "\n")
		holder, _, _ = strings.Cut(holder, " ")
		n := LeaseNote{Holder: holder, At: u.Created()}
		if note != "" {
			n.Note = []byte(note)
		}
		all[u.Key()] = n
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// keep renews the lease until it ends.
func (l *Lease) keep() {
	defer close(l.done)
	defer l.lose()
	defer l.end.Stop()
	t := time.NewTicker(l.ttl / 4)
	defer t.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-t.C:
		}
		asked := time.Now()
		ctx, cancel := context.WithTimeout(l.ctx, l.ttl/4)
		// Not the bucket's own Update: that one makes a key without an end.
		ack, err := l.b.js.Publish(ctx, "$KV."+BucketLeases+"."+l.key, l.value(),
			jetstream.WithMsgTTL(l.ttl), jetstream.WithExpectLastSequencePerSubject(l.revision), jetstream.WithRetryAttempts(1))
		cancel()
		var api *jetstream.APIError
		switch {
		case err == nil:
			l.revision = ack.Sequence
			// An end that came meanwhile stays the end.
			if l.end.Stop() {
				l.end.Reset(l.belief(asked))
			}
		case errors.As(err, &api):
			return // somebody else has it, or it is gone
		}
		// Otherwise nobody answered: another try, as long as there is time. If
		// the first one arrived, the next is refused and the lease is lost.
	}
}

// belief is how much longer the holder believes in a lease that it asked for at
// a time.
func (l *Lease) belief(asked time.Time) time.Duration {
	return max(0, time.Until(asked.Add(l.ttl/5*4)))
}

// Release gives it to the next one at once.
func (l *Lease) Release() {
	l.Abandon()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	// If it can't be deleted it ends by itself.
	_ = l.kv.Delete(ctx, l.key, jetstream.LastRevision(l.revision))
}

// Abandon leaves it to its end, as a crash does.
func (l *Lease) Abandon() {
	l.lose()
	<-l.done
}
