package deadletters

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"mime"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// item is one message of a portion.
type item struct {
	m      *stored
	record deliver.Record
	hop    int // of what is sent
	// What a process that died has done of it already.
	recorded, sent bool
}

// pick judges a message: it is worked on, skipped for a reason, or not meant.
// The error is the filter's.
func (r *run) pick(m *stored) (it *item, skip string, err error) {
	if m == nil {
		return nil, whyGone, nil
	}
	var l Letter
	if r.job.Kind == Replay {
		if !r.span.has(m) {
			return nil, "", nil
		}
	} else if l = m.letter(); !r.job.Selection.matches(l) {
		return nil, "", nil
	}
	if ok, err := wants(r.filter, m); err != nil || !ok {
		return nil, "", err
	}
	if why := r.busy[m.sequence]; why != "" {
		return nil, why, nil
	}
	it, skip = r.item(m, l)
	return it, skip, nil
}

// item says what is to be done about a message, which for dead letters is read
// already.
func (r *run) item(m *stored, l Letter) (it *item, skip string) {
	now := time.Now()
	if r.job.Kind == Replay {
		e, err := event.Decode(m.header, m.data)
		if err != nil {
			return nil, whyBroken
		}
		return &item{m: m, hop: r.job.hop(), record: deliver.Record{
			Subscriber: r.job.Subscriber, Sequence: m.sequence, Hop: r.job.hop(), ID: e.ID, Subject: m.subject,
			Outcome: deliver.RecordReplayed, Time: now,
		}}, ""
	}
	outcome := deliver.RecordDropped
	if r.job.Kind == Redrive {
		outcome = deliver.RecordRedriven
		if l.Hop == unknownOrigin {
			return nil, whyNoOrigin
		}
	}
	return &item{m: m, hop: l.Hop + 2, record: deliver.Record{
		Subscriber: r.job.Subscriber, Sequence: l.Event, Hop: l.Hop, ID: l.ID, Subject: l.Subject,
		Outcome: outcome, Attempts: l.Attempts, Status: l.Status, Reason: l.Reason, Cause: l.Cause, Time: now,
	}}, ""
}

// perform works on a portion. Each step is on the disk before the next begins:
//
//   - A redrive stores the copies, then the records, then deletes the dead
//     letters: at no moment is an event nowhere.
//   - A drop records before it deletes, so that nothing goes without a record.
//   - A replay records before it stores the copies, so that nothing is ever
//     delivered that the books do not expect.
//
// Whatever step a crash comes after, the portion is done once more from its
// first step, see repeat.
func (r *run) perform(ctx context.Context, items []item) error {
	steps := map[Kind][]func(context.Context, []item) error{
		Redrive: {r.send, r.record, r.remove},
		Drop:    {r.record, r.remove},
		Replay:  {r.record, r.send},
	}
	for _, step := range steps[r.job.Kind] {
		if err := step(ctx, items); err != nil {
			return err
		}
	}
	return nil
}

// sendTimeout is how long a portion may take to be stored.
const sendTimeout = 10 * time.Second

// send stores the copies that are delivered, all with one sync of the disk.
func (r *run) send(ctx context.Context, items []item) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	err := r.s.Broker.Change(ctx, func() error {
		var stored []jetstream.PubAckFuture
		for _, it := range items {
			if it.sent {
				continue
			}
			m, err := r.copy(it)
			if err != nil {
				return err
			}
			f, err := r.s.js.PublishMsgAsync(m, jetstream.WithStallWait(time.Second))
			if err != nil {
				return err
			}
			stored = append(stored, f)
		}
		for _, f := range stored {
			select {
			case <-f.Ok():
			case err := <-f.Err():
				r.s.Broker.Suspect(err)
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("send %d: %w", len(items), err)
	}
	return r.s.died(&r.job, "sent")
}

// copy makes the message that a worker delivers as it does a retry.
func (r *run) copy(it item) (*nats.Msg, error) {
	h, body := nats.Header(maps.Clone(it.m.header)), it.m.data
	for k := range h {
		// The broker's own instructions were for the old message, and how it
		// failed is told anew if it does.
		if strings.HasPrefix(k, "Nats-") {
			delete(h, k)
		}
	}
	for _, k := range []string{deliver.HeaderCause, deliver.HeaderStatus, deliver.HeaderReason, deliver.HeaderFailedAt} {
		h.Del(k)
	}
	if r.job.Kind == Replay {
		var err error
		if body, err = replayed(h, body); err != nil {
			return nil, err
		}
	}
	h.Set(deliver.HeaderSubscriber, it.record.Subscriber)
	h.Set(deliver.HeaderAdded, deliver.Added(r.job.Added))
	h.Set(deliver.HeaderOriginSequence, strconv.FormatUint(it.record.Sequence, 10))
	h.Set(deliver.HeaderOriginSubject, it.record.Subject)
	h.Set(deliver.HeaderHop, strconv.Itoa(it.hop))
	h.Set(deliver.HeaderRounds, "0")
	h.Set(deliver.HeaderAnew, event.FormatTime(time.Now().UTC()))
	h.Set(deliver.HeaderAttempts, strconv.Itoa(it.record.Attempts))
	h.Set(nats.MsgIdHdr, deliver.MsgID(it.record.Subscriber, r.job.Added, it.record.Sequence, it.hop))
	return &nats.Msg{Subject: broker.RetryDue(it.record.Subscriber), Header: h, Data: body}, nil
}

// replayed marks an event as one that is sent once more.
func replayed(h nats.Header, body []byte) ([]byte, error) {
	const via, replay = "ce-" + event.ExtVia, "replay"
	if media, _, _ := mime.ParseMediaType(firstHeader(h, "content-type")); media != event.MediaStructured {
		for k := range h {
			if strings.EqualFold(k, via) {
				delete(h, k)
			}
		}
		h[via] = []string{replay}
		return body, nil
	}
	e, err := event.Decode(h, body)
	if err != nil {
		return nil, err
	}
	e.Set(event.ExtVia, replay)
	return e.JSON(), nil
}

// record stores the records that are not there yet, in one block.
func (r *run) record(ctx context.Context, items []item) error {
	var records []deliver.Record
	for _, it := range items {
		if !it.recorded {
			records = append(records, it.record)
		}
	}
	// The recorder goes on trying whatever becomes of the lease, so the portion
	// must not be done once more before it is known what became of the records.
	if err := r.s.Recorder.Write(r.s.hard, records...); err != nil {
		return fmt.Errorf("record %d: %w", len(records), err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return r.s.died(&r.job, "recorded")
}

// deleters is how many deletions are under way at once: each is a request.
const deleters = 8

// remove deletes the dead letters. What syncs the next portion's entry, or the
// job's end, brings that to the disk.
func (r *run) remove(ctx context.Context, items []item) error {
	if sel := r.job.Selection; len(sel.Sequences) == 0 && r.job.Looked == r.job.Done {
		// The job takes all there is, so everything up to its cursor goes: one
		// request, and not one for each.
		err := r.s.letters.Purge(ctx, jetstream.WithPurgeSubject(sel.subject(r.job.Subscriber)), jetstream.WithPurgeSequence(r.job.Cursor+1))
		if err != nil {
			return fmt.Errorf("delete dead letters up to %d: %w", r.job.Cursor, err)
		}
		return r.s.died(&r.job, "removed")
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(deleters)
	for i, it := range items {
		g.Go(func() error {
			err := r.s.letters.DeleteMsg(ctx, it.m.sequence)
			if err == nil {
				if i == 0 {
					err = r.s.died(&r.job, "removing")
				}
				return err
			}
			if _, e := get(ctx, r.s.letters, it.m.sequence); errors.Is(e, jetstream.ErrMsgNotFound) {
				return nil // it was gone
			}
			return fmt.Errorf("delete dead letter %d: %w", it.m.sequence, err)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return r.s.died(&r.job, "removed")
}

// repeat does the portion once more that a crash may have left unfinished. What
// is gone was finished; what was recorded is not recorded again. A copy that was
// stored is not stored again, because the broker knows its id for an hour; and
// whatever became of it since is in the records.
func (r *run) repeat(ctx context.Context) error {
	stream := r.s.letters
	if r.job.Kind == Replay {
		stream = r.s.events
	}
	var items []item
	for _, seq := range r.job.Open {
		m, err := get(ctx, stream, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		var l Letter
		if r.job.Kind != Replay {
			l = m.letter()
		}
		if it, skip := r.item(m, l); skip == "" {
			items = append(items, *it)
		}
	}
	if len(items) == 0 {
		return nil
	}
	if err := r.recall(ctx, items); err != nil {
		return err
	}
	return r.perform(ctx, items)
}

// recall finds out from ATTEMPTS what was done about items.
func (r *run) recall(ctx context.Context, items []item) error {
	of := map[uint64][]*item{} // by event
	for i := range items {
		of[items[i].record.Sequence] = append(of[items[i].record.Sequence], &items[i])
	}
	name, _ := json.Marshal(r.job.Subscriber) // a string: it cannot fail
	needle := fmt.Appendf(nil, `"subscriber":%s`, name)
	blocks := r.s.blocks(r.job.Attempts + 1)
	defer blocks.close()
	for {
		m, err := blocks.next(ctx)
		if err != nil || m == nil {
			return err
		}
		if !bytes.Contains(m.data, needle) {
			continue
		}
		records, err := deliver.ParseRecords(m.data)
		if err != nil {
			return fmt.Errorf("block %d of %s: %w", m.sequence, broker.StreamAttempts, err)
		}
		for _, rec := range records {
			if rec.Subscriber != r.job.Subscriber {
				continue
			}
			for _, it := range of[rec.Sequence] {
				switch {
				case rec.Outcome == it.record.Outcome && rec.Hop == it.record.Hop:
					it.recorded = true
					// A redrive records only what it has sent.
					it.sent = it.sent || r.job.Kind == Redrive
				case rec.Outcome != deliver.RecordRedriven && rec.Outcome != deliver.RecordReplayed && rec.Outcome != deliver.RecordDropped && rec.Hop >= it.hop:
					it.sent = true // and delivered, or tried
				}
			}
		}
	}
}
