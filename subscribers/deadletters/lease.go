package deadletters

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// leaseTTL is how long the server keeps a lease that is not renewed: after a
// crash somebody else goes on that much later. A holder renews it four times in
// that time, and believes in it a fifth less than the server does.
const leaseTTL = 10 * time.Second

// lease is the right to do what only one replica may do at a time. The server
// forgets it by itself, counting from each renewal; the holder counts from the
// moment before it asked, on its own monotonic clock, and stops earlier. So two
// never hold it at once, whatever their wall clocks say, unless a process stands
// still between looking at its clock and acting on it, or the server loses what
// it keeps in memory. What depends on a lease bears that: see Job.Open.
type lease struct {
	js     jetstream.JetStream
	kv     jetstream.KeyValue
	bucket string
	key    string
	holder string
	ttl    time.Duration

	// ctx ends when the lease is lost or given back.
	ctx      context.Context
	cancel   context.CancelFunc
	end      *time.Timer // cancels ctx when the holder may not believe in it any more
	revision uint64
	done     chan struct{}
}

// acquire takes a lease, or gives nil when somebody else has it. It ends with
// ctx. The caller gives it back with release.
func acquire(ctx context.Context, js jetstream.JetStream, kv jetstream.KeyValue, key, holder string, ttl time.Duration) (*lease, error) {
	asked := time.Now()
	revision, err := kv.Create(ctx, key, []byte(holder), jetstream.KeyTTL(ttl))
	if errors.Is(err, jetstream.ErrKeyExists) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	l := &lease{js: js, kv: kv, bucket: kv.Bucket(), key: key, holder: holder, ttl: ttl, revision: revision, done: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(ctx)
	l.end = time.AfterFunc(l.belief(asked), l.cancel)
	go l.keep()
	return l, nil
}

// keep renews the lease until it ends.
func (l *lease) keep() {
	defer close(l.done)
	defer l.cancel()
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
		ack, err := l.js.Publish(ctx, "$KV."+l.bucket+"."+l.key, []byte(l.holder),
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
func (l *lease) belief(asked time.Time) time.Duration {
	return max(0, time.Until(asked.Add(l.ttl/5*4)))
}

// release gives the lease back, so that nobody has to wait for its end.
func (l *lease) release() {
	l.cancel()
	<-l.done
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	// If it can't be deleted it ends by itself.
	_ = l.kv.Delete(ctx, l.key, jetstream.LastRevision(l.revision))
}
