package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Names of the streams and buckets. docs/broker.md describes them for people
// who look in with the nats CLI.
const (
	StreamEvents      = "EVENTS"      // every accepted event, in order
	StreamRetry       = "RETRY"       // deliveries waiting for their next attempt
	StreamDeadLetters = "DEADLETTERS" // deliveries given up
	StreamQuarantine  = "QUARANTINE"  // accepted and not understood
	StreamAttempts    = "ATTEMPTS"    // settlements and attempts, in blocks
	StreamOps         = "OPS"         // what happened to gridfan itself
	StreamAdvisories  = "ADVISORIES"  // what subscribers' own clients gave up
	StreamKnown       = "KNOWN"       // which rows of polled sources were seen, in blocks
	StreamHeld        = "HELD"        // accepted, and to be completed before they are events

	BucketSubscribers = "gridfan_subscribers"
	BucketEndpoints   = "gridfan_endpoints" // named addresses of subscribers
	BucketBreakers    = "gridfan_breakers"  // how each replica sees each subscriber
	BucketLeases      = "gridfan_leases"    // who does what only one replica may do
	BucketJobs        = "gridfan_jobs"      // redrives and replays
	BucketBooks       = "gridfan_books"     // sums, and how far they reach
	BucketNative      = "gridfan_native"    // how far subscribers' own clients have come
	BucketPolls       = "gridfan_polls"     // how far polled sources and event hubs are read

	streamSpool = "SPOOL" // in a server of its own, see OpenSpool
)

// Subjects of the streams beside EVENTS. Source and subscriber names are safe
// as tokens.
const (
	SubjectEvents      = "events.>"
	subjectRetry       = "gridfan.retry."
	subjectDeadLetters = "gridfan.deadletters."
	subjectQuarantine  = "gridfan.quarantine."
	subjectAttempts    = "gridfan.attempts."
	subjectOps         = "gridfan.ops."
	subjectKnown       = "gridfan.known."
	subjectPoll        = "gridfan.poll."
	subjectHeld        = "gridfan.held."
)

// The server's advisories about a consumer of EVENTS (nats-server v2.15.2,
// server/jetstream_api.go).
const (
	advisoryMaxDeliveries = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES." + StreamEvents + "."
	advisoryTerminated    = "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED." + StreamEvents + "."
	subjectFence          = "gridfan.fence."
)

// AdvisoriesOf matches what the server said of the events that a subscriber's
// client gave up.
func AdvisoriesOf(subscriber string) string {
	return "$JS.EVENT.ADVISORY.CONSUMER.*." + StreamEvents + "." + subscriber
}

// Fence is a subject of the stream of advisories: when a message on it is stored,
// so are the advisories sent before.
func Fence(subscriber string) string { return subjectFence + subscriber }

// RetryDue is where a subscriber's retries arrive when their time has come.
func RetryDue(subscriber string) string { return subjectRetry + "due." + subscriber }

// RetryWaiting is where the retry of one event waits, until the server moves
// it to RetryDue: each scheduled message needs a subject of its own.
func RetryWaiting(subscriber string, sequence uint64) string {
	return subjectRetry + "waiting." + subscriber + "." + strconv.FormatUint(sequence, 10)
}

// Where a subscriber wants order, every event on the retry lane has a subject of
// its own, which ends in the line that the event stands in: what stands in which
// line can be told without reading a message.

// RetryWaitingIn is RetryWaiting for an event of a line.
func RetryWaitingIn(subscriber string, sequence uint64, line string) string {
	return RetryWaiting(subscriber, sequence) + "." + line
}

// RetryDueIn is RetryDue for an event of a line.
func RetryDueIn(subscriber string, sequence uint64, line string) string {
	return RetryDue(subscriber) + "." + strconv.FormatUint(sequence, 10) + "." + line
}

// RetryBehind is where an event of a line waits until those before it are
// settled.
func RetryBehind(subscriber string, sequence uint64, line string) string {
	return subjectRetry + "behind." + subscriber + "." + strconv.FormatUint(sequence, 10) + "." + line
}

// RetryWaitingAll matches all waiting retries of a subscriber.
func RetryWaitingAll(subscriber string) string { return subjectRetry + "waiting." + subscriber + ".>" }

// RetryBehindAll matches all events of a subscriber that wait behind others.
func RetryBehindAll(subscriber string) string { return subjectRetry + "behind." + subscriber + ".>" }

// RetryDueAll matches all due retries of a subscriber's lines. Those without a
// line are on RetryDue itself.
func RetryDueAll(subscriber string) string { return RetryDue(subscriber) + ".>" }

// retryOwn matches all that a subscriber has on the retry lane under a subject of
// its own: what waits, what waits behind others, and what is due in a line.
func retryOwn(subscriber string) string { return subjectRetry + "*." + subscriber + ".>" }

// isBehind says whether a subject is that of an event that waits behind others.
func isBehind(subject string) bool { return strings.HasPrefix(subject, subjectRetry+"behind.") }

// RetryAll are patterns of all that a subscriber has on the retry lane.
func RetryAll(subscriber string) []string {
	return []string{RetryWaitingAll(subscriber), RetryBehindAll(subscriber), RetryDue(subscriber), RetryDueAll(subscriber)}
}

// RetrySequence gives the event that a message of the retry lane stands in for,
// where its subject tells.
func RetrySequence(subject string) (sequence uint64, ok bool) {
	for _, kind := range []string{"waiting.", "behind.", "due."} {
		rest, is := strings.CutPrefix(subject, subjectRetry+kind)
		if !is {
			continue
		}
		_, rest, _ = strings.Cut(rest, ".") // the subscriber
		number, _, _ := strings.Cut(rest, ".")
		sequence, err := strconv.ParseUint(number, 10, 64)
		return sequence, err == nil
	}
	return 0, false
}

// DeadLetter is where one subscriber's dead letters of one cause are kept.
func DeadLetter(subscriber, cause string) string {
	return subjectDeadLetters + subscriber + "." + cause
}

// DeadLetterAll matches all dead letters of a subscriber.
func DeadLetterAll(subscriber string) string { return subjectDeadLetters + subscriber + ".*" }

// SubscriberOf gives the subscriber from one of the subjects above, empty for
// any other subject.
func SubscriberOf(subject string) string {
	for _, prefix := range []string{subjectRetry + "due.", subjectRetry + "waiting.", subjectRetry + "behind.", subjectDeadLetters} {
		if rest, ok := strings.CutPrefix(subject, prefix); ok {
			name, _, _ := strings.Cut(rest, ".")
			return name
		}
	}
	return ""
}

// Quarantine is where what a source sent and nobody understood is kept.
func Quarantine(source string) string { return subjectQuarantine + source }

// Attempts is where one process writes its blocks of attempts.
func Attempts(instance string) string { return subjectAttempts + instance }

// Ops is where one process reports what happened to it.
func Ops(instance, what string) string { return subjectOps + instance + "." + what }

// Known is where the rows of a polled source are remembered.
func Known(source string) string { return subjectKnown + source }

// PollCommand is where the process that polls a source is told what to do; "*" for
// all sources. No stream keeps it.
func PollCommand(source string) string { return subjectPoll + source }

// Held is where the events of one record of a source wait for their completion; line
// stands for the record, "*" for all of them, and so it is with source.
func Held(source, line string) string { return subjectHeld + source + "." + line }

// HeldSource gives the source from a subject of Held.
func HeldSource(subject string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(subject, subjectHeld), ".")
	return name
}

// Headers of what waits in HELD, beside those of the event.
const (
	// HeldUntil is when it is published as it is (RFC 3339).
	HeldUntil = "Gridfan-Held-Until"
	// HeldFor is "completion" or, of an event that waits for one before it, "order".
	HeldFor = "Gridfan-Held-For"
	// HeldSince is when it was accepted (RFC 3339).
	HeldSince = "Gridfan-Held-Since"
)

// DedupWindow is how long the broker itself recognises a repeated event. It
// settles races between replicas and what a crash left unsaid; the publisher's
// index covers the rest of the day in a fifth of the memory, and must never be
// further behind the stream than this.
const DedupWindow = 2 * time.Minute

// settleWindow is how long a repeated retry, dead letter or quarantine entry
// is recognised. They repeat only when a process died between writing one and
// acknowledging its event, so it covers the longest restart, not a retry span.
const settleWindow = time.Hour

// QuarantinePerSource is how many entries one source may have in quarantine;
// beyond it the source gets 503.
const QuarantinePerSource = 10_000

// layout is the version of everything declared here. A higher one on the
// server means a newer gridfan was here, and this one would undo its work.
const layout = 2

const layoutKey = "gridfan.layout"

func (b *Broker) declare(ctx context.Context) error {
	if b.spool {
		return b.declareSpool(ctx)
	}
	// RETRY has no limit of its own: the server allows schedules only with
	// discard-old, which would drop waiting retries (nats-server v2.15.2
	// server/stream.go). The store's limit bounds it: a publish then fails and
	// the event stays with its subscriber's cursor.
	share := func(percent int64) int64 { return b.cfg.MaxBytes / 100 * percent }
	configs := []jetstream.StreamConfig{
		{
			Name: StreamEvents, Subjects: []string{SubjectEvents},
			Description: "gridfan: every accepted event",
			Discard:     jetstream.DiscardNew, MaxBytes: share(60),
			Duplicates: DedupWindow, AllowDirect: true,
		},
		{
			Name: StreamRetry, Subjects: []string{subjectRetry + ">"},
			Description: "gridfan: deliveries waiting for their next attempt",
			Retention:   jetstream.WorkQueuePolicy,
			MaxBytes:    -1, Duplicates: settleWindow,
			AllowMsgSchedules: true, AllowMsgTTL: true,
		},
		{
			Name: StreamDeadLetters, Subjects: []string{subjectDeadLetters + ">"},
			Description: "gridfan: deliveries given up, by subscriber and cause",
			Discard:     jetstream.DiscardNew, MaxBytes: share(15),
			Duplicates: settleWindow, AllowDirect: true,
		},
		{
			Name: StreamQuarantine, Subjects: []string{subjectQuarantine + ">"},
			Description: "gridfan: accepted and not understood, by source",
			Discard:     jetstream.DiscardNew, MaxBytes: share(5),
			MaxMsgsPerSubject: QuarantinePerSource, DiscardNewPerSubject: true,
			Duplicates: settleWindow, AllowDirect: true,
		},
		{
			Name: StreamAttempts, Subjects: []string{subjectAttempts + ">"},
			Description: "gridfan: settlements and attempts, in blocks of JSON lines",
			Discard:     jetstream.DiscardOld, MaxBytes: share(4),
			Compression: jetstream.S2Compression, AllowDirect: true,
		},
		{
			// Not to be read directly: a replica that is behind would say of a record
			// that none of its events waits.
			Name: StreamHeld, Subjects: []string{subjectHeld + ">"},
			Description: "gridfan: accepted, and to be completed before they are events",
			Discard:     jetstream.DiscardNew, MaxBytes: share(1), Duplicates: settleWindow,
		},
		{
			Name: StreamOps, Subjects: []string{subjectOps + ">"},
			Description: "gridfan: breakers, pauses and other changes of state, as CloudEvents",
			Discard:     jetstream.DiscardOld, MaxBytes: share(1), AllowDirect: true,
		},
		{
			Name: StreamAdvisories, Subjects: []string{advisoryMaxDeliveries + "*", advisoryTerminated + "*", subjectFence + "*"},
			Description: "gridfan: events that subscribers' own NATS clients gave up, until they are dead letters",
			Discard:     jetstream.DiscardOld, MaxBytes: share(1), Compression: jetstream.S2Compression,
		},
		{
			Name: StreamKnown, Subjects: []string{subjectKnown + ">"},
			Description: "gridfan: which rows of polled sources were seen, in blocks",
			Discard:     jetstream.DiscardNew, MaxBytes: share(2), Duplicates: DedupWindow, AllowDirect: true,
		},
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, c := range configs {
		if err := b.declareStream(ctx, c); err != nil {
			return fmt.Errorf("declare stream %s: %w", c.Name, err)
		}
	}
	return b.declareBuckets(ctx, false)
}

// DeclareBuckets makes those buckets that are kept in memory, if they are not
// there: they go with a server's restart. Whoever misses one calls it.
func (b *Broker) DeclareBuckets(ctx context.Context) error { return b.declareBuckets(ctx, true) }

// declareBuckets makes the buckets. What is in those of leases and breakers is a
// matter of seconds and kept in memory: after a restart of the server nobody
// holds anything, and they have to be made again.
func (b *Broker) declareBuckets(ctx context.Context, memoryOnly bool) error {
	share := func(parts int64) int64 { return b.cfg.MaxBytes / 800 * parts }
	for _, c := range []jetstream.KeyValueConfig{
		{Bucket: BucketSubscribers, Description: "gridfan: who subscribes to what", History: 5, MaxBytes: share(8)},
		{Bucket: BucketEndpoints, Description: "gridfan: named addresses of subscribers", History: 5, MaxBytes: share(1)},
		{Bucket: BucketJobs, Description: "gridfan: redrives and replays", History: 1, MaxBytes: share(1)},
		{Bucket: BucketBooks, Description: "gridfan: sums, and how far they reach", History: 1, MaxBytes: share(4)},
		{Bucket: BucketNative, Description: "gridfan: how far subscribers' own NATS clients have come", History: 1, MaxBytes: share(1)},
		{Bucket: BucketPolls, Description: "gridfan: how far polled sources are read", History: 1, MaxBytes: share(4)},
		{Bucket: BucketBreakers, Description: "gridfan: how each replica sees each subscriber", History: 1, MaxBytes: memoryBucket, TTL: breakerTTL, Storage: jetstream.MemoryStorage},
		{Bucket: BucketLeases, Description: "gridfan: who does what only one replica may do", History: 1, MaxBytes: memoryBucket, LimitMarkerTTL: time.Second, Storage: jetstream.MemoryStorage},
	} {
		if memoryOnly && c.Storage != jetstream.MemoryStorage {
			continue
		}
		c.Replicas = b.cfg.Replicas
		if _, err := b.js.CreateOrUpdateKeyValue(ctx, c); err != nil {
			return fmt.Errorf("declare bucket %s: %w", c.Bucket, err)
		}
	}
	return nil
}

// memoryBucket bounds a bucket that is kept in memory: a few hundred bytes for
// each of ten thousand subscribers.
const memoryBucket = 8 << 20

// breakerTTL is how long a replica's view of a subscriber counts without being
// renewed.
const breakerTTL = 30 * time.Second

// spoolWindow is how long a repeated event is recognised in the spool. It is as
// long as the longest outage that senders repeat through.
const spoolWindow = 24 * time.Hour

// declareSpool makes the one stream of a spool. It takes the very messages that
// the real broker is to get.
func (b *Broker) declareSpool(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := b.declareStream(ctx, jetstream.StreamConfig{
		Name: streamSpool, Subjects: []string{SubjectEvents, subjectQuarantine + ">"},
		Description: "gridfan: accepted while the broker was away",
		// Room for the server's own files.
		Discard: jetstream.DiscardNew, MaxBytes: b.cfg.MaxBytes / 100 * 90,
		Duplicates: spoolWindow, AllowDirect: true,
	})
	if err != nil {
		return fmt.Errorf("declare stream %s: %w", streamSpool, err)
	}
	return nil
}

func (b *Broker) declareStream(ctx context.Context, c jetstream.StreamConfig) error {
	c.Storage = jetstream.FileStorage
	c.Replicas = b.cfg.Replicas
	c.Metadata = map[string]string{layoutKey: strconv.Itoa(layout)}
	s, err := b.js.Stream(ctx, c.Name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		_, err = b.js.CreateStream(ctx, c)
		return err
	case err != nil:
		return err
	}
	have := s.CachedInfo().Config
	if have.Storage != jetstream.FileStorage || have.PersistMode == jetstream.AsyncPersistMode {
		return errors.New("it is kept in memory, or acks before it writes (persist mode async): an answered event would not be safe; delete the stream, or give gridfan an account of its own")
	}
	v, err := strconv.Atoi(have.Metadata[layoutKey])
	if err != nil {
		return errors.New("a stream of this name exists that gridfan did not make; give gridfan an account of its own")
	}
	if v > layout {
		return fmt.Errorf("made by a newer gridfan (layout %d, this one knows %d); use that version or newer", v, layout)
	}
	if have.MaxBytes > c.MaxBytes && c.Discard == jetstream.DiscardNew {
		if used := int64(s.CachedInfo().State.Bytes); used > c.MaxBytes {
			return fmt.Errorf("storage.maxBytes: %d bytes are in use, the new share is %d; nothing may be dropped, so choose a higher value", used, c.MaxBytes)
		}
	}
	if sameSettings(have, c) {
		return nil // nothing to write, nothing that a power cut can spoil
	}
	_, err = b.js.UpdateStream(ctx, c)
	return err
}

// sameSettings compares what we set; the server adds defaults and metadata.
func sameSettings(have, want jetstream.StreamConfig) bool {
	return slices.Equal(have.Subjects, want.Subjects) && have.Description == want.Description &&
		have.Retention == want.Retention && have.Discard == want.Discard && have.MaxBytes == want.MaxBytes &&
		have.MaxMsgsPerSubject == max(want.MaxMsgsPerSubject, -1) && have.DiscardNewPerSubject == want.DiscardNewPerSubject &&
		have.Duplicates == want.Duplicates && have.AllowDirect == want.AllowDirect && have.Compression == want.Compression &&
		have.AllowMsgSchedules == want.AllowMsgSchedules && have.AllowMsgTTL == want.AllowMsgTTL &&
		have.Replicas == want.Replicas && have.Metadata[layoutKey] == want.Metadata[layoutKey]
}
