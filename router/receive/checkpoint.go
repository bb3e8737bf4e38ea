package receive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
)

// checkpoint is how far a partition of an event hub is read. It moves only after
// everything before it is durable here. It is also what makes sure that one replica
// reads: who begins writes the next Generation, and only onto what it has read. So
// who still believes to be the reader cannot move it any more, and the service ends
// its link, because Generation is the epoch of the new one.
type checkpoint struct {
	Layout int `json:"layout"`
	// Created is when the hub was made: one that was made anew under its name begins
	// to count anew.
	Created time.Time `json:"created,omitzero"`
	// Generation counts those who began to read. Reader is the last of them.
	Generation int64  `json:"generation"`
	Reader     string `json:"reader"`

	// Sequence and Offset are those of the last event stored; without a Sequence it is
	// read from From on, and without that from the beginning. Offset may be missing.
	// In a namespace that is replicated it is a text that only the service
	// understands.
	Sequence *int64    `json:"sequence,omitempty"`
	Offset   string    `json:"offset,omitempty"`
	From     time.Time `json:"from,omitzero"`
	// Chosen says that somebody said to begin here: nothing is missed before it.
	Chosen bool `json:"chosen,omitempty"`
	// Enqueued is when the last event stored came to the hub.
	Enqueued time.Time `json:"enqueued,omitzero"`
	// Missed is how many events may have been gone before they could be read.
	Missed int64 `json:"missed,omitempty"`
}

// checkpointLayout is the version of checkpoints. A newer one is not touched.
const checkpointLayout = 1

// Position is a place in a partition; the zero Position is its beginning.
type Position struct {
	// Time is that of the first event to be read.
	Time time.Time
	// Sequence is the number of the first event to be read.
	Sequence *int64
	now      bool
}

// at makes a checkpoint begin somewhere. last is the newest event's.
func (c *checkpoint) at(p Position, last azeventhubs.PartitionProperties) {
	c.Sequence, c.Offset, c.From, c.Enqueued, c.Chosen = nil, "", p.Time, time.Time{}, true
	switch {
	case p.now && last.LastEnqueuedSequenceNumber >= 0:
		// The place and not the word: what comes from now on is not skipped, whatever
		// happens until the first of it is here.
		n := last.LastEnqueuedSequenceNumber
		c.Sequence, c.Enqueued = &n, last.LastEnqueuedOn
		if !last.IsEmpty {
			c.Offset = last.LastEnqueuedOffset
		}
	case p.Sequence != nil && *p.Sequence > 0:
		n := *p.Sequence - 1
		c.Sequence = &n
	}
}

// loss is what a partition no longer has of what was to be read.
type loss struct {
	reason string
	missed int64 // -1: nobody knows
}

// settleOn makes c a place that the partition has: where that is gone, its beginning.
// It says what may have been missed, nil for nothing.
func (c *checkpoint) settleOn(created time.Time, p azeventhubs.PartitionProperties) (lost *loss) {
	was := c.Created
	c.Created = created
	first, last := p.BeginningSequenceNumber, p.LastEnqueuedSequenceNumber
	if p.IsEmpty {
		first = last + 1
	}
	begin := func() {
		c.Sequence, c.Offset, c.From, c.Enqueued = nil, "", time.Time{}, time.Time{}
		if before := first - 1; before >= 0 {
			c.Sequence = &before
		}
	}
	chosen, read := c.Chosen, int64(-1)
	c.Chosen = false
	if c.Sequence != nil {
		read = *c.Sequence
	}
	switch {
	case !was.IsZero() && !was.Equal(created):
		begin()
		return &loss{"the event hub was made anew: it is read from its beginning", -1}
	case c.Sequence == nil && !c.From.IsZero():
	case read > last && p.IsEmpty: // nothing is there, so nothing is skipped either
		begin()
	case read > last:
		lost = &loss{fmt.Sprintf("event %d was read, and the newest that the partition has is %d: it is read from its beginning", read, last), -1}
		begin()
	case read+1 < first:
		lost = &loss{gone(read+1, first-1), first - read - 1}
		begin()
	}
	if chosen {
		return nil
	}
	if lost != nil {
		c.Missed += max(0, lost.missed)
	}
	return lost
}

// gone words what retention has taken.
func gone(first, last int64) string {
	return fmt.Sprintf("events %d to %d were removed, at the end of their retention, before they could be read", first, last)
}

// start is c as the client takes it. Offsets are what its own Processor goes by
// (azeventhubs v2.0.2, getStartPosition); by sequence numbers where the service
// does not take the offset.
func (c *checkpoint) start(bySequence bool, first int64) azeventhubs.StartPosition {
	switch {
	case c.Sequence != nil && c.Offset != "" && !bySequence:
		return azeventhubs.StartPosition{Offset: &c.Offset}
	case c.Sequence != nil && *c.Sequence >= first:
		return azeventhubs.StartPosition{SequenceNumber: c.Sequence}
	case c.Sequence == nil && !c.From.IsZero():
		return azeventhubs.StartPosition{EnqueuedTime: &c.From, Inclusive: true}
	}
	beginning := true
	return azeventhubs.StartPosition{Earliest: &beginning}
}

// record tells the partitions that there were when a source began.
type record struct {
	// Of names the hub and the consumer group, which are only a hash in keys.
	Of         string   `json:"of"`
	Partitions []string `json:"partitions"`
}

// place is what the keys of one consumer group of one hub begin with, for a source:
// of checkpoints, where no polled source's key has a dot, and of leases. Replicas
// whose configurations name two hubs do not meet.
func place(source, of string) string {
	sum := sha256.Sum256([]byte(of))
	return "hub." + source + "." + hex.EncodeToString(sum[:4])
}

// shelf is where the checkpoints of a hub are, below its record.
type shelf struct {
	broker *broker.Broker
	kv     jetstream.KeyValue
	of     string
	record string // its key
}

func openShelf(ctx context.Context, b *broker.Broker, source, of string) (*shelf, error) {
	kv, err := b.JetStream().KeyValue(ctx, broker.BucketPolls)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", broker.BucketPolls, err)
	}
	return &shelf{b, kv, of, place(source, of)}, nil
}

func (s *shelf) key(partition string) string { return s.record + "." + partition }

// read gives what is kept under a key, revision 0 for nothing.
func (s *shelf) read(ctx context.Context, key string, v any) (revision uint64, _ error) {
	e, err := s.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if err := json.Unmarshal(e.Value(), v); err != nil {
		return 0, fmt.Errorf("checkpoint %s: %w", key, err)
	}
	return e.Revision(), nil
}

func (s *shelf) load(ctx context.Context, partition string) (c checkpoint, revision uint64, err error) {
	revision, err = s.read(ctx, s.key(partition), &c)
	if err == nil && c.Layout > checkpointLayout {
		err = fmt.Errorf("checkpoint %s was written by a newer gridfan (layout %d, this one knows %d); use that version or newer", s.key(partition), c.Layout, checkpointLayout)
	}
	return c, revision, err
}

// write returns when v is durable. It fails with errAgain when something else was
// written after revision.
func (s *shelf) write(ctx context.Context, key string, v any, revision uint64) (now uint64, _ error) {
	value, err := json.Marshal(v)
	if err != nil {
		return 0, err
	}
	err = s.broker.Change(ctx, func() (err error) {
		if revision == 0 {
			now, err = s.kv.Create(ctx, key, value)
		} else {
			now, err = s.kv.Update(ctx, key, value, revision)
		}
		return err
	})
	if broker.IsFenced(err) {
		return 0, errAgain
	}
	return now, err
}

func (s *shelf) save(ctx context.Context, partition string, c checkpoint, revision uint64) (uint64, error) {
	c.Layout = checkpointLayout
	return s.write(ctx, s.key(partition), c, revision)
}

// shelved is a checkpoint with its revision.
type shelved struct {
	checkpoint
	revision uint64
}

// all gives the checkpoints by partition.
func (s *shelf) all(ctx context.Context) (map[string]shelved, error) {
	found := map[string]shelved{}
	err := broker.EachEntry(ctx, s.kv, s.key("*"), func(e jetstream.KeyValueEntry) error {
		c := shelved{revision: e.Revision()}
		if json.Unmarshal(e.Value(), &c.checkpoint) == nil { // whoever reads it says otherwise
			found[strings.TrimPrefix(e.Key(), s.key(""))] = c
		}
		return nil
	})
	return found, err
}

// begin gives the record, making one where there is none.
func (s *shelf) begin(ctx context.Context, partitions []string) (record, error) {
	for {
		var r record
		revision, err := s.read(ctx, s.record, &r)
		if err != nil || revision != 0 {
			return r, err
		}
		r = record{s.of, partitions}
		if _, err := s.write(ctx, s.record, r, 0); err == nil || !errors.Is(err, errAgain) {
			return r, err
		}
	}
}

// AllPartitions is the name of none, for Rewind.
const AllPartitions = "all"

// Errors of Rewind.
var (
	ErrNoPositions = errors.New("it is not an event hub's: what was received once is gone from there")
	ErrNoPartition = errors.New("no partition of this name was read yet")
)

// Rewind has partitions of a source's event hub read again from a position on:
// AllPartitions, or one. Whoever reads them notices within seconds. What was published
// before is published again only where dedup has forgotten it. It returns when that
// is durable.
func (r *Receivers) Rewind(ctx context.Context, name, partition string, to Position) error {
	s := r.source(name)
	if s == nil || s.From == nil {
		return ErrUnknown
	}
	if s.hub == nil {
		return ErrNoPositions
	}
	kept, err := openShelf(ctx, r.parts.Broker, name, s.status.from)
	if err != nil {
		return err
	}
	all, err := kept.all(ctx)
	if err != nil {
		return err
	}
	if _, ok := all[partition]; partition != AllPartitions && !ok || len(all) == 0 {
		return ErrNoPartition
	}
	for id := range all {
		if partition != AllPartitions && id != partition {
			continue
		}
		for {
			c, revision, err := kept.load(ctx, id)
			if err != nil {
				return err
			}
			c.at(to, azeventhubs.PartitionProperties{})
			if _, err := kept.save(ctx, id, c, revision); err == nil {
				break
			} else if !errors.Is(err, errAgain) {
				return err
			}
		}
	}
	r.parts.Log.Info("source rewound", "source", name, "partition", partition)
	return nil
}

// byNumber sorts partitions, whose names are numbers.
func byNumber(ids []string) []string {
	slices.SortFunc(ids, func(a, b string) int {
		n, errA := strconv.Atoi(a)
		m, errB := strconv.Atoi(b)
		if errA != nil || errB != nil {
			return strings.Compare(a, b)
		}
		return n - m
	})
	return ids
}
