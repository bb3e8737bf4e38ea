package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// Causes of dead letters; they are among those of package deliver.
const (
	causeRejected  = "rejected"  // the client refused it (+TERM)
	causeExhausted = "exhausted" // it was handed out as often as it may be
	causeBacklog   = "backlog"   // the oldest of more than the subscriber may hold back
)

// advisory is what the server said of an event that it gave up.
type advisory struct {
	messages   []uint64 // of the advisories' stream
	cause      string
	reason     string
	deliveries int
}

// maxReason bounds what a client may write into a record.
const maxReason = 512

// Types of advisories (nats-server v2.15.2, server/jetstream_events.go).
const (
	typeMaxDeliver = "io.nats.jetstream.advisory.v1.max_deliver"
	typeTerminated = "io.nats.jetstream.advisory.v1.terminated"
)

// listen reads the advisories that are there.
func (c *Consumer) listen(ctx context.Context) error {
	s, err := c.js.Stream(ctx, broker.StreamAdvisories)
	if err != nil {
		return err
	}
	for {
		m, err := s.GetMsg(ctx, c.read+1, jetstream.WithGetMsgSubject(broker.AdvisoriesOf(c.sub.Name)))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("advisories of subscriber %q: %w", c.sub.Name, err)
		}
		c.read = m.Sequence
		var said struct {
			Type       string `json:"type"`
			StreamSeq  uint64 `json:"stream_seq"`
			Deliveries int    `json:"deliveries"`
			Reason     string `json:"reason"`
		}
		if err := json.Unmarshal(m.Data, &said); err != nil {
			c.log.Error("unreadable advisory", "sequence", m.Sequence, "error", err)
			continue
		}
		a, ok := c.advisories[said.StreamSeq]
		a.messages = append(a.messages, m.Sequence)
		if !ok {
			a.deliveries = said.Deliveries
			switch said.Type {
			case typeTerminated:
				a.cause, a.reason = causeRejected, "its client refused it for good"
				if text := strings.ToValidUTF8(said.Reason, "�"); text != "" {
					a.reason += ": " + text[:min(len(text), maxReason)]
				}
			case typeMaxDeliver:
				a.cause, a.reason = causeExhausted, fmt.Sprintf("handed out %d times and never acknowledged", said.Deliveries)
			default:
				c.log.Error("unknown advisory", "sequence", m.Sequence, "type", said.Type)
				continue
			}
		}
		c.advisories[said.StreamSeq] = a
		if said.StreamSeq <= c.place.Through {
			// It has its record: this one was repeated.
			if err := c.drop(ctx, s, said.StreamSeq); err != nil {
				return err
			}
		}
	}
}

// drop removes an event's advisories.
func (c *Consumer) drop(ctx context.Context, s jetstream.Stream, sequence uint64) error {
	for _, m := range c.advisories[sequence].messages {
		if err := s.DeleteMsg(ctx, m); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) && !errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
			return err
		}
	}
	delete(c.advisories, sequence)
	return nil
}

// fence returns when every advisory is stored that was sent before the call.
func (c *Consumer) fence(ctx context.Context) error {
	if _, err := c.js.Publish(ctx, broker.Fence(c.sub.Name), nil); err != nil {
		return fmt.Errorf("fence behind the advisories: %w", err)
	}
	s, err := c.js.Stream(ctx, broker.StreamAdvisories)
	if err != nil {
		return err
	}
	return s.Purge(ctx, jetstream.WithPurgeSubject(broker.Fence(c.sub.Name)))
}

// taken is one event that has no record yet.
type taken struct {
	sequence uint64
	subject  string
	id       string
}

// giveUp does what Expire and Shed want.
func (c *Consumer) giveUp(ctx context.Context) error {
	expire, shed := c.expire.Swap(0), c.shed.Load()
	for _, q := range []struct {
		through uint64
		how     way
	}{{shed, c.drops}, {expire, c.expires}} {
		if q.through <= c.place.Through {
			continue
		}
		// The end of the stream is not given up: it may be on its way to the disk.
		through := min(q.through, c.parts.Broker.DurableThrough())
		if err := c.settle(ctx, through, q.how); err != nil {
			return err
		}
		k, err := c.js.Consumer(ctx, broker.StreamEvents, c.sub.Name)
		if err != nil {
			return err
		}
		// Only now: had it gone on before, what lay between would have counted as
		// acknowledged after a crash.
		if k.CachedInfo().AckFloor.Stream < c.place.Through {
			if err := c.reset(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// way says how an event ends of which the server said nothing.
type way func(*deliver.Record) *advisory

// expires makes a dead letter of it.
func (c *Consumer) expires(*deliver.Record) *advisory {
	return &advisory{cause: causeBacklog, reason: "over the limit of the backlog"}
}

// drops leaves a record of it and nothing else.
func (c *Consumer) drops(r *deliver.Record) *advisory {
	r.Outcome = deliver.RecordShed
	return nil
}

// settle records the events up to a sequence, which the server has settled; or
// which end in a way of ours.
func (c *Consumer) settle(ctx context.Context, through uint64, how way) error {
	r := reader{c: c, next: c.place.Through + 1}
	defer r.close()
	for c.place.Through < through {
		events, end, err := r.page(ctx, through)
		if err != nil {
			return err
		}
		// In this order: see the package's comment.
		if err := c.fence(ctx); err != nil {
			return err
		}
		if err := c.listen(ctx); err != nil {
			return err
		}
		reached, err := c.record(ctx, events, end, how)
		if err != nil {
			return err
		}
		if reached < end {
			return nil // no room
		}
	}
	return nil
}

// record settles events in a row, the last of what there is up to end, and says
// how far it came.
func (c *Consumer) record(ctx context.Context, events []taken, end uint64, how way) (reached uint64, err error) {
	s, err := c.js.Stream(ctx, broker.StreamAdvisories)
	if err != nil {
		return 0, err
	}
	reached = end
	var room room
	var records []deliver.Record
	var given deliver.GivenUp
	for _, e := range events {
		if c.recorded[e.sequence] || !c.sub.Wants(e.subject, e.sequence) {
			continue
		}
		r := deliver.Record{
			Subscriber: c.sub.Name, Sequence: e.sequence, ID: e.id, Subject: e.subject,
			Outcome: deliver.RecordDelivered, Attempts: 1, Time: time.Now(),
		}
		said, ok := c.advisories[e.sequence]
		up := &said
		if !ok {
			if up = nil; how != nil {
				up = how(&r)
			}
		}
		if up != nil {
			if room.unknown() {
				if err := room.look(ctx, c); err != nil {
					return 0, err
				}
			}
			stored, err := c.deadLetter(ctx, &r, *up, &room)
			if err != nil {
				return 0, err
			}
			if !stored {
				reached = e.sequence - 1
				break
			}
			if up.cause == causeBacklog {
				given.Expired++
			}
		}
		if r.Outcome == deliver.RecordShed {
			r.Attempts = 0
			given.Shed++
		}
		records = append(records, r)
	}
	c.fullness(&room, reached < end)
	if len(records) > 0 {
		// However long it takes: once they are queued they will be written, and
		// must not be queued again.
		if err := c.parts.Recorder.Write(c.serving, records...); err != nil {
			return 0, fmt.Errorf("settlements not recorded: %w", err)
		}
		c.given.expired.Add(given.Expired)
		c.given.shed.Add(given.Shed)
	}
	if reached <= c.place.Through {
		return reached, nil
	}
	p := c.place
	p.Through = reached
	if err := c.note(ctx, p); err != nil {
		return 0, err
	}
	maps.DeleteFunc(c.recorded, func(sequence uint64, _ bool) bool { return sequence <= reached })
	for sequence := range c.advisories {
		if sequence <= reached {
			if err := c.drop(ctx, s, sequence); err != nil {
				return 0, err
			}
		}
	}
	return reached, nil
}

// deadLetter keeps a copy of an event that is given up, as deliver does; false
// means that there is no room.
func (c *Consumer) deadLetter(ctx context.Context, r *deliver.Record, up advisory, room *room) (stored bool, err error) {
	s, err := c.js.Stream(ctx, broker.StreamEvents)
	if err != nil {
		return false, err
	}
	m, err := s.GetMsg(ctx, r.Sequence)
	if err != nil {
		return false, fmt.Errorf("event %d: %w", r.Sequence, err)
	}
	h := maps.Clone(m.Header)
	if h == nil {
		h = nats.Header{}
	}
	maps.DeleteFunc(h, func(name string, _ []string) bool { return strings.HasPrefix(name, "Nats-") })
	h.Set(deliver.HeaderSubscriber, c.sub.Name)
	h.Set(deliver.HeaderOriginSequence, strconv.FormatUint(r.Sequence, 10))
	h.Set(deliver.HeaderOriginSubject, r.Subject)
	h.Set(deliver.HeaderAttempts, strconv.Itoa(up.deliveries))
	h.Set(deliver.HeaderHop, "0")
	h.Set(deliver.HeaderCause, up.cause)
	h.Set(deliver.HeaderStatus, "0")
	h.Set(deliver.HeaderReason, url.PathEscape(up.reason))
	h.Set(deliver.HeaderFailedAt, event.FormatTime(r.Time.UTC()))
	h.Set(nats.MsgIdHdr, deliver.MsgID(c.sub.Name, c.sub.Created, r.Sequence, 0))
	letter := &nats.Msg{Subject: broker.DeadLetter(c.sub.Name, up.cause), Header: h, Data: m.Data}
	if !room.take(int64(letter.Size())) {
		return false, nil
	}
	if err := c.parts.Broker.Store(ctx, c.js, letter); err != nil {
		return false, fmt.Errorf("dead letter of event %d: %w", r.Sequence, err)
	}
	r.Outcome, r.Cause, r.Reason, r.Attempts = deliver.RecordDeadLetter, up.cause, up.reason, up.deliveries
	return true, nil
}

// room is what a subscriber has left of its share of DEADLETTERS, by the server's
// count and the mean size; it is asked once a page.
type room struct {
	known bool
	left  int64
	used  int64
}

func (r *room) unknown() bool { return !r.known }

func (r *room) look(ctx context.Context, c *Consumer) error {
	s, err := c.js.Stream(ctx, broker.StreamDeadLetters)
	if err != nil {
		return err
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(broker.DeadLetterAll(c.sub.Name)))
	if err != nil {
		return err
	}
	n := uint64(0)
	for _, count := range info.State.Subjects {
		n += count
	}
	r.known = true
	if info.State.Msgs > 0 {
		r.used = int64(float64(n) * float64(info.State.Bytes) / float64(info.State.Msgs))
	}
	r.left = c.parts.Broker.DeadLetterShare() - r.used
	return nil
}

// take reserves room. A message larger than a whole share goes when there is no
// other.
func (r *room) take(size int64) bool {
	if size > r.left && r.used > 0 {
		return false
	}
	r.left -= size
	r.used += size
	return true
}

// fullness reports when a share is used up, and when it is no longer.
func (c *Consumer) fullness(r *room, full bool) {
	if full == c.full || !full && r.unknown() {
		return
	}
	if c.full = full; !full {
		c.parts.Broker.Report("subscriber.deadletters-eased", c.sub.Name, map[string]any{"bytes": r.used})
		return
	}
	c.parts.Broker.Report("subscriber.deadletters-full", c.sub.Name, map[string]any{
		"bytes": r.used, "fix": "what its client gave up waits, and what came after it counts as pending: gridfan deadletters drop " + c.sub.Name + " for those that are done with, or raise storage.maxBytes",
	})
}

// reader reads the events that a subscriber may have got, in their order.
type reader struct {
	c    *Consumer
	next uint64
	k    jetstream.Consumer
	last uint64 // delivery of k
	left bool   // there is more
	read []taken
}

// page gives the next events up to a sequence, and up to which one these are all.
func (r *reader) page(ctx context.Context, through uint64) (events []taken, end uint64, err error) {
	if r.k == nil {
		if err := r.open(ctx); err != nil {
			return nil, 0, err
		}
	}
	for len(events) < page {
		for len(r.read) > 0 && len(events) < page {
			e := r.read[0]
			if e.sequence > through {
				return events, through, nil
			}
			events, r.read = append(events, e), r.read[1:]
		}
		if len(events) == page {
			break
		}
		if !r.left {
			return events, through, nil
		}
		if err := r.fetch(ctx); err != nil {
			return nil, 0, err
		}
	}
	return events, events[len(events)-1].sequence, nil
}

func (r *reader) open(ctx context.Context) error {
	var err error
	r.k, err = r.c.js.CreateConsumer(ctx, broker.StreamEvents, jetstream.ConsumerConfig{
		Description: "gridfan: what " + r.c.sub.Name + " has got", AckPolicy: jetstream.AckNonePolicy,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: r.next, FilterSubjects: r.c.sub.Subjects,
		HeadersOnly: true, MemoryStorage: true, Replicas: 1, InactiveThreshold: time.Minute,
	})
	if err != nil {
		return err
	}
	r.left = r.k.CachedInfo().NumPending > 0
	return nil
}

func (r *reader) fetch(ctx context.Context) error {
	batch, err := r.k.FetchNoWait(page)
	if err != nil {
		return err
	}
	came := false
	for m := range batch.Messages() {
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		if r.last++; meta.Sequence.Consumer != r.last {
			return errors.New("messages were missed on the way")
		}
		e := taken{sequence: meta.Sequence.Stream, subject: m.Subject()}
		if v := m.Headers()["ce-id"]; len(v) > 0 {
			e.id = v[0]
		} else if e.id, err = r.identity(ctx, e.sequence); err != nil {
			return err
		}
		r.read = append(r.read, e)
		came, r.left = true, meta.NumPending > 0
	}
	if err := batch.Error(); err != nil {
		return err
	}
	if !came {
		return errors.New("events that are there did not come")
	}
	return ctx.Err()
}

// identity reads the id of an event whose attributes are in its body.
func (r *reader) identity(ctx context.Context, sequence uint64) (string, error) {
	s, err := r.c.js.Stream(ctx, broker.StreamEvents)
	if err != nil {
		return "", err
	}
	m, err := s.GetMsg(ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	e, err := event.Decode(m.Header, m.Data)
	if err != nil {
		return "", nil // not a CloudEvent; its client got it as it is
	}
	return e.ID, nil
}

func (r *reader) close() {
	if r.k == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = r.c.js.DeleteConsumer(ctx, broker.StreamEvents, r.k.CachedInfo().Name) // it goes by itself
}
