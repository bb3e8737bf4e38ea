// Package native serves subscribers that take their events by themselves: each
// has a durable consumer on EVENTS, which its own NATS client asks for messages
// and acknowledges to. Nothing is sent, so there is no attempt, no breaker and no
// retry lane; the server hands an event out again when its acknowledgement does
// not come.
//
// What became of an event is known to the server alone, and it tells little: up to
// which event everything is settled (the floor), and by an advisory when it gave
// one up, because it was handed out too often or the client refused it. From these
// the records are written that everything else counts by. In the order of the
// stream, for each event up to the floor: a dead letter if there is an advisory of
// it, else it was acknowledged and is delivered. Then the place reached is noted.
// Behind that place everything has its record, and before it everything is
// pending, whatever the client has done to it: what is acknowledged while an older
// event is not is recorded when the older one is settled. That place also holds
// EVENTS: an event is not trimmed before its record, or its copy among the dead
// letters, is on the disk.
//
// An advisory is a message without an acknowledgement, so it must be known to have
// come before its absence says that an event was delivered. Advisories are kept by
// a stream of their own. They are sent on the queue that also carries the messages
// of EVENTS to consumers, so after the events in question have been read through
// another consumer all of them are on their way to that stream, and when a message
// of ours is stored there after them, so are they. And a floor is believed only a
// second after it was seen, for servers where queues are not one (a cluster).
//
// A crash repeats and loses nothing: the place is noted after the records, which
// are recognised when they are to be written again; dead letters have an id that
// the broker recognises. The consumer's own state is in a file, which is up to a
// tenth of a second old after a crash: what was acknowledged last is handed out
// once more. After a power cut the server may know of events that are not in the
// stream any more: such a consumer is set back to the place reached.
//
// Only one replica records for a subscriber: the one with the lease.
package native

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// Subscriber is what a Consumer needs to know.
type Subscriber struct {
	Name string
	// Filter are the subjects of the consumer, Subjects all that it may have got
	// events of.
	Filter   []string
	Subjects []string
	// Wants says whether the subscriber wants an event at all; others that its
	// client got are not recorded.
	Wants func(subject string, sequence uint64) bool
	// StartSequence is its first event, Created when it was added.
	StartSequence uint64
	Created       time.Time
	Paused        bool
	Config        Config
	// Keys let its client in, each until a time; zero is for ever.
	Keys map[string]time.Time
}

// Parts are what all Consumers of a process share.
type Parts struct {
	Broker   *broker.Broker
	Recorder *deliver.Recorder
	Log      *slog.Logger
}

// Consumer serves one subscriber. Start it once, Stop it once.
type Consumer struct {
	sub   Subscriber
	parts Parts
	log   *slog.Logger
	js    jetstream.JetStream
	kv    jetstream.KeyValue

	paused       atomic.Bool
	expire, shed atomic.Uint64 // give up the events up to here; 0: none
	given        struct{ expired, shed atomic.Uint64 }
	wake         chan struct{} // holds at most one token

	stopping context.Context // ends when Stop is called
	halt     context.CancelFunc
	owning   sync.WaitGroup

	// Only the one with the lease touches what follows.
	serving    context.Context // ends with the lease
	place      place
	revision   uint64
	recorded   map[uint64]bool     // written before this replica took over, behind the place
	advisories map[uint64]advisory // by event
	read       uint64              // the last message of the advisories' stream that was read
	candidate  uint64              // a floor, and when it was seen
	seen       time.Time
	full       bool // no more room for dead letters
}

// place is how far a subscriber has come, as the bucket keeps it.
type place struct {
	// Created is the subscriber's: one that is added again begins anew.
	Created time.Time `json:"created"`
	// Stream is when EVENTS was made: the sequence is of that one.
	Stream time.Time `json:"stream"`
	// Through: everything up to here has its record.
	Through uint64 `json:"through"`
}

const (
	// tickEvery is how often the server is asked, by one small request.
	tickEvery = 500 * time.Millisecond
	// ripe is how long after it was seen a floor is believed.
	ripe = time.Second
	// page is how many events are recorded together: few enough for the memory,
	// enough that they share the syncs of the disk.
	page = 500
	// step bounds what one tick asks of the broker.
	step = 15 * time.Second
	// mostAdvisories is how many may wait for room among the dead letters. Then
	// the consumer is paused: their stream is small, and what it forgets would
	// count as delivered.
	mostAdvisories = 1000
	// forEver is a pause without an end.
	forEver = 100 * 365 * 24 * time.Hour
)

// Start makes the subscriber's consumer, if it is not there yet, lets its client
// in, and begins to record, as soon as this replica has the lease. ctx bounds only
// the start.
func Start(ctx context.Context, sub Subscriber, parts Parts) (*Consumer, error) {
	c := &Consumer{sub: sub, parts: parts, log: parts.Log.With("subscriber", sub.Name), js: parts.Broker.JetStream(), wake: make(chan struct{}, 1)}
	c.paused.Store(sub.Paused)
	var err error
	if c.kv, err = c.js.KeyValue(ctx, broker.BucketNative); err != nil {
		return nil, fmt.Errorf("bucket %s: %w", broker.BucketNative, err)
	}
	if err := c.find(ctx); err != nil {
		return nil, err
	}
	// First the door: who finds the consumer must get in.
	parts.Broker.Admit(broker.Client{Name: sub.Name, Keys: sub.Keys})
	if err := c.declare(ctx); err != nil {
		return nil, err
	}
	c.stopping, c.halt = context.WithCancel(context.Background())
	c.owning.Go(c.own)
	return c, nil
}

// Stop ends it and returns when nothing runs. The client goes on: its consumer is
// the server's.
func (c *Consumer) Stop(time.Duration) {
	c.halt()
	c.owning.Wait()
}

// SetPaused stops the server from handing out events, or lets it.
func (c *Consumer) SetPaused(paused bool) {
	c.paused.Store(paused)
	c.nudge()
}

// Expire makes dead letters of the events up to a sequence that have no record,
// with the cause backlog. What is in the client's hands is among them, because
// nobody can tell. It does not block: ask again until it is done.
func (c *Consumer) Expire(through uint64) {
	c.expire.Store(through)
	c.nudge()
}

// Shed drops them, each with its record; 0 ends that.
func (c *Consumer) Shed(through uint64) {
	c.shed.Store(through)
	c.nudge()
}

// GivenUp counts what Expire and Shed did since the start.
func (c *Consumer) GivenUp() deliver.GivenUp {
	return deliver.GivenUp{Expired: c.given.expired.Load(), Shed: c.given.shed.Load()}
}

func (c *Consumer) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Through gives the places that subscribers have reached, by name, each for the
// subscriber that was added at its time.
func Through(ctx context.Context, b *broker.Broker) (map[string]Reached, error) {
	kv, err := b.JetStream().KeyValue(ctx, broker.BucketNative)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", broker.BucketNative, err)
	}
	all := map[string]Reached{}
	err = broker.EachEntry(ctx, kv, jetstream.AllKeys, func(u jetstream.KeyValueEntry) error {
		p, err := decodePlace(u)
		if err != nil {
			return err
		}
		all[u.Key()] = Reached{p.Created, p.Through}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// Reached is where a subscriber stands: everything up to a sequence has its
// record.
type Reached struct {
	Created time.Time
	Through uint64
}

// Forget removes what is kept of a subscriber that is deleted, its consumer not
// among it.
func Forget(ctx context.Context, b *broker.Broker, name string) error {
	b.Dismiss(name)
	js := b.JetStream()
	kv, err := js.KeyValue(ctx, broker.BucketNative)
	if err != nil {
		return err
	}
	s, err := js.Stream(ctx, broker.StreamAdvisories)
	if err != nil {
		return err
	}
	for _, subject := range []string{broker.AdvisoriesOf(name), broker.Fence(name)} {
		if err := s.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
			return err
		}
	}
	// Last, because an unfinished deletion is known by it.
	return kv.Purge(ctx, name)
}

// own records whenever the lease is ours.
func (c *Consumer) own() {
	for {
		lease, err := c.parts.Broker.Lease(c.stopping, "native-"+c.sub.Name, c.log)
		if err != nil {
			return // stopping
		}
		ctx, cancel := context.WithCancel(lease.Context())
		stop := context.AfterFunc(c.stopping, cancel)
		if err := c.serve(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("what a native subscriber has got is not recorded, trying again", "error", err)
			t := time.NewTimer(time.Second)
			select {
			case <-t.C:
			case <-c.stopping.Done():
			}
			t.Stop()
		}
		stop()
		cancel()
		lease.Release()
	}
}

// serve records until ctx ends.
func (c *Consumer) serve(ctx context.Context) error {
	c.serving, c.advisories, c.read, c.candidate = ctx, map[uint64]advisory{}, 0, 0
	if err := c.within(ctx, c.find); err != nil {
		return err
	}
	if err := c.within(ctx, c.recall); err != nil {
		return err
	}
	if err := c.within(ctx, c.align); err != nil {
		return err
	}
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	failing := false
	for {
		if err := c.within(ctx, c.tick); err != nil && ctx.Err() == nil {
			if errors.Is(err, errTaken) {
				return err
			}
			if !failing {
				c.log.Warn("what a native subscriber has got is not recorded, trying again", "error", err)
			}
			failing = true
		} else {
			failing = false
		}
		select {
		case <-t.C:
		case <-c.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

func (c *Consumer) within(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	return do(ctx)
}

// tick looks how far the client is, and does what follows.
func (c *Consumer) tick(ctx context.Context) error {
	k, err := c.js.Consumer(ctx, broker.StreamEvents, c.sub.Name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		c.log.Warn("the consumer was deleted by other means than gridfan; it is made anew, and hands out again what has no record", "from", c.place.Through+1)
		c.candidate = 0
		return c.declare(ctx)
	}
	if err != nil {
		return err
	}
	info := k.CachedInfo()
	if err := c.pause(ctx, info); err != nil {
		return err
	}
	if err := c.giveUp(ctx); err != nil {
		return err
	}
	if c.candidate > c.place.Through && time.Since(c.seen) >= ripe {
		if err := c.settle(ctx, c.candidate, nil); err != nil {
			return err
		}
		c.candidate = 0
	}
	if floor := floorOf(info); floor > c.place.Through && c.candidate <= c.place.Through {
		c.candidate, c.seen = floor, time.Now()
	}
	return nil
}

// floorOf gives the event up to which the server has everything settled. The
// floor itself stands still while the consumer passes what its filter does not
// match.
func floorOf(info *jetstream.ConsumerInfo) uint64 {
	if info.NumAckPending == 0 {
		return max(info.AckFloor.Stream, info.Delivered.Stream)
	}
	return info.AckFloor.Stream
}

// pause makes the consumer wait, or not, as it should.
func (c *Consumer) pause(ctx context.Context, info *jetstream.ConsumerInfo) error {
	want := c.paused.Load() || len(c.advisories) >= mostAdvisories
	if want == info.Paused {
		return nil
	}
	until := time.Time{}
	if want {
		until = time.Now().Add(forEver)
	}
	return c.parts.Broker.Change(ctx, func() error {
		_, err := c.js.PauseConsumer(ctx, broker.StreamEvents, c.sub.Name, until)
		return err
	})
}

// align sets the consumer to the place reached where it is behind, or ahead of a
// stream that a power cut has shortened.
func (c *Consumer) align(ctx context.Context) error {
	s, err := c.js.Stream(ctx, broker.StreamEvents)
	if err != nil {
		return err
	}
	k, err := c.js.Consumer(ctx, broker.StreamEvents, c.sub.Name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return c.declare(ctx)
	}
	if err != nil {
		return err
	}
	info := k.CachedInfo()
	behind := info.Delivered.Stream < c.place.Through
	ahead := info.Delivered.Stream > s.CachedInfo().State.LastSeq
	if !behind && !ahead {
		return nil
	}
	c.log.Info("the consumer is set to where the records end", "to", c.place.Through+1, "was", info.Delivered.Stream)
	return c.reset(ctx)
}

// reset makes the consumer go on behind the place reached. What is in the client's
// hands from there on is handed out again.
func (c *Consumer) reset(ctx context.Context) error {
	c.candidate = 0
	return c.parts.Broker.Change(ctx, func() error {
		_, err := c.js.ResetConsumerToSequence(ctx, broker.StreamEvents, c.sub.Name, c.place.Through+1)
		return err
	})
}

// declare makes the consumer, or makes it as it should be.
func (c *Consumer) declare(ctx context.Context) error {
	k, err := c.js.Consumer(ctx, broker.StreamEvents, c.sub.Name)
	if err == nil {
		have := k.CachedInfo().Config
		want := c.consumerConfig(have.OptStartSeq)
		if !have.MemoryStorage && have.AckPolicy == want.AckPolicy && have.DeliverPolicy == want.DeliverPolicy {
			want.PauseUntil = have.PauseUntil // tick sees to it
			if sameSettings(have, want) {
				return nil
			}
			return c.parts.Broker.Change(ctx, func() error {
				_, err := c.js.UpdateConsumer(ctx, broker.StreamEvents, want)
				return err
			})
		}
		// Somebody else's, or left from another way of delivery.
		err = c.js.DeleteConsumer(ctx, broker.StreamEvents, c.sub.Name)
	}
	if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("consumer %q on %s: %w", c.sub.Name, broker.StreamEvents, err)
	}
	want := c.consumerConfig(c.place.Through + 1)
	if c.paused.Load() {
		want.PauseUntil = new(time.Now().Add(forEver))
	}
	err = c.parts.Broker.Change(ctx, func() error {
		_, err := c.js.CreateOrUpdateConsumer(ctx, broker.StreamEvents, want)
		return err
	})
	if err != nil {
		return fmt.Errorf("consumer %q on %s: %w", c.sub.Name, broker.StreamEvents, err)
	}
	return nil
}

func (c *Consumer) consumerConfig(from uint64) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:        c.sub.Name,
		Description:    "gridfan subscriber " + c.sub.Name + ", read by its own client",
		FilterSubjects: c.sub.Filter,
		DeliverPolicy:  jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:    from,
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        c.sub.Config.AckWait.Std(),
		MaxDeliver:     c.sub.Config.MaxDeliver,
		MaxAckPending:  c.sub.Config.MaxAckPending,
		// The embedded server remembers for two minutes where the answers to a
		// request from another account go (nats-server v2.15.2,
		// server/accounts.go, DEFAULT_SERVICE_EXPORT_RESPONSE_THRESHOLD).
		MaxRequestExpires: maxRequestFor,
	}
}

// sameSettings compares what can change of a consumer; the server adds defaults.
func sameSettings(have, want jetstream.ConsumerConfig) bool {
	filter := have.FilterSubjects
	if have.FilterSubject != "" {
		filter = []string{have.FilterSubject}
	}
	return have.Description == want.Description && slices.Equal(filter, want.FilterSubjects) && have.AckWait == want.AckWait &&
		have.MaxDeliver == want.MaxDeliver && have.MaxAckPending == want.MaxAckPending && have.MaxRequestExpires == want.MaxRequestExpires
}

// Keys gives the keys of a definition, which have no end.
func Keys(cfg Config) map[string]time.Time {
	keys := map[string]time.Time{}
	for _, k := range cfg.Keys {
		keys[k] = time.Time{}
	}
	return keys
}
