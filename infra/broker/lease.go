package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// Lease is the right to do what only one replica may do at a time. It is
// renewed until Release, and lost when the server can't be reached for a while.
type Lease struct {
	b        *Broker
	key      string
	log      *slog.Logger
	ctx      context.Context
	lose     context.CancelFunc
	running  sync.WaitGroup
	revision uint64 // only renew touches it
}

const (
	// leaseTTL is how long a lease outlives its holder. It is longer than a
	// message of the holder's stays with it (deliver.ackWait), so that whoever
	// comes next finds all of them given back.
	leaseTTL   = 6 * time.Second
	leaseRenew = leaseTTL / 3
	// leaseMargin is how much earlier than the server a holder thinks that its
	// lease has ended: by its own monotonic clock, counted from before it asked.
	leaseMargin = leaseTTL / 6
	// leaseRetry is how often somebody else asks.
	leaseRetry = time.Second
)

// Lease waits until key is free and takes it. The caller calls Release. The
// error is ctx's.
func (b *Broker) Lease(ctx context.Context, key string, log *slog.Logger) (*Lease, error) {
	warned := false
	for {
		l, err := b.tryLease(ctx, key, log)
		switch {
		case err == nil:
			return l, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, jetstream.ErrKeyExists):
		case !warned:
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

func (b *Broker) tryLease(ctx context.Context, key string, log *slog.Logger) (*Lease, error) {
	ask, cancel := context.WithTimeout(ctx, leaseRenew)
	defer cancel()
	kv, err := b.js.KeyValue(ask, BucketLeases)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		if err = b.DeclareBuckets(ask); err == nil {
			kv, err = b.js.KeyValue(ask, BucketLeases)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", BucketLeases, err)
	}
	asked := time.Now()
	holder := Instance() + " " + nuid.Next()
	revision, err := kv.Create(ask, key, []byte(holder), jetstream.KeyTTL(leaseTTL))
	if err != nil {
		return nil, err
	}
	l := &Lease{b: b, key: key, log: log, revision: revision}
	l.ctx, l.lose = context.WithCancel(context.Background())
	l.running.Go(func() { l.renew(asked, holder) })
	return l, nil
}

// Context ends when the lease is lost or released. What it allows must have
// stopped within a second then.
func (l *Lease) Context() context.Context { return l.ctx }

// Release gives it to the next one.
func (l *Lease) Release() {
	l.lose()
	l.running.Wait()
}

// renew keeps the lease until it is lost or released.
func (l *Lease) renew(asked time.Time, holder string) {
	defer l.lose()
	t := time.NewTicker(leaseRenew)
	defer t.Stop()
	for valid := asked.Add(leaseTTL - leaseMargin); ; {
		end := time.NewTimer(time.Until(valid))
		select {
		case <-l.ctx.Done():
			end.Stop()
			l.drop()
			return
		case <-end.C:
			l.log.Warn("lease lost: the broker could not be reached in time", "lease", l.key)
			return
		case <-t.C:
			end.Stop()
		}
		began := time.Now()
		ctx, cancel := context.WithDeadline(l.ctx, valid)
		revision, err := l.put(ctx, holder)
		cancel()
		switch {
		case err == nil:
			l.revision, valid = revision, began.Add(leaseTTL-leaseMargin)
		case taken(err):
			l.log.Warn("lease lost: somebody else has it", "lease", l.key, "error", err)
			return
		case l.ctx.Err() == nil:
			l.log.Debug("lease not renewed, trying again", "lease", l.key, "error", err)
		}
	}
}

// put renews the key with its time. The client's Update can't set one.
func (l *Lease) put(ctx context.Context, holder string) (uint64, error) {
	m := nats.NewMsg("$KV." + BucketLeases + "." + l.key)
	m.Data = []byte(holder)
	m.Header.Set(jetstream.MsgTTLHeader, leaseTTL.String())
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(l.revision, 10))
	ack, err := l.b.js.PublishMsg(ctx, m, jetstream.WithRetryAttempts(0))
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// taken says whether the key has changed under us.
func taken(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == wrongLastConstant)
}

// wrongLastConstant is the other code for a sequence that is not the last
// (nats-server v2.15.2, server/errors.json: JSStreamWrongLastSequenceConstantErr).
const wrongLastConstant = 10164

// drop lets the next one have it at once.
func (l *Lease) drop() {
	ctx, cancel := context.WithTimeout(context.Background(), leaseRenew)
	defer cancel()
	kv, err := l.b.js.KeyValue(ctx, BucketLeases)
	if err == nil {
		err = kv.Purge(ctx, l.key, jetstream.LastRevision(l.revision), jetstream.PurgeTTL(leaseTTL))
	}
	if err != nil {
		l.log.Debug("lease not given back; it ends by itself", "lease", l.key, "error", err)
	}
}
