package trace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// standing is where the subscribers' consumers stand.
type standing map[string]*jetstream.ConsumerInfo

func (f *Finder) standing(ctx context.Context) (standing, error) {
	s, err := f.Broker.JetStream().Stream(ctx, broker.StreamEvents)
	if err != nil {
		return nil, err
	}
	all := standing{}
	list := s.ListConsumers(ctx)
	for info := range list.Info() {
		all[info.Name] = info
	}
	return all, list.Err()
}

// deliveries tells of one event for every subscriber, those that are gone among
// them if they have records.
func (f *Finder) deliveries(ctx context.Context, h hit, e Event, entries []registry.Entry, records []deliver.Record, stand standing, complete bool) ([]Delivery, error) {
	by := map[string][]deliver.Record{}
	for _, r := range records {
		by[r.Subscriber] = append(by[r.Subscriber], r)
	}
	list := []Delivery{}
	for _, entry := range entries {
		name := entry.Definition.Name
		d := newDelivery(name, by[name], e.accepted())
		delete(by, name)
		if len(d.Steps) == 0 && !entry.Wants(h.subject, h.sequence) {
			d.State = NotMatched
			if d.Detail = "another subject than it wants"; h.sequence < entry.StartSequence {
				d.Detail = "it was added later, and begins with event " + strconv.FormatUint(entry.StartSequence, 10)
			}
			list = append(list, d)
			continue
		}
		if err := f.where(ctx, &d, h, entry, stand[name], complete); err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	for name, records := range by {
		d := newDelivery(name, records, e.accepted())
		d.Detail = strings.TrimPrefix(d.Detail+"; the subscriber is not there any more", "; ")
		list = append(list, d)
	}
	slices.SortStableFunc(list, func(a, b Delivery) int {
		if (a.State == NotMatched) != (b.State == NotMatched) {
			return map[bool]int{true: 1, false: -1}[a.State == NotMatched]
		}
		return strings.Compare(a.Subscriber, b.Subscriber)
	})
	return list, nil
}

// newDelivery is what records say.
func newDelivery(name string, records []deliver.Record, accepted time.Time) Delivery {
	d := Delivery{Subscriber: name, State: Unknown, Steps: []Step{}}
	slices.SortStableFunc(records, func(a, b deliver.Record) int { return a.Time.Compare(b.Time) })
	for _, r := range records {
		made := 0
		switch r.Outcome {
		case deliver.RecordRedriven, deliver.RecordReplayed, deliver.RecordDropped, deliver.RecordFiltered:
		default:
			made = r.Attempts
		}
		for i, t := range r.Earlier {
			d.Steps = append(d.Steps, Step{
				Time: t.Time, Outcome: failed, Hop: r.Hop, Attempt: max(0, made-len(r.Earlier)+i),
				Status: t.Status, Fault: t.Fault, Reason: t.Reason, Millis: t.Millis,
			})
		}
		s := Step{
			Time: r.Time, Outcome: r.Outcome, Hop: r.Hop, Status: r.Status, Fault: r.Fault, Reason: r.Reason,
			Millis: r.Millis, Cause: r.Cause, Probe: r.Probe, Next: r.Next,
		}
		if r.Outcome == Delivered || r.Outcome == deliver.RecordRetry || r.Outcome == deliver.RecordTried || r.Outcome == Locked || r.Status != 0 || r.Fault != "" {
			s.Attempt = made
		}
		d.Attempts = max(d.Attempts, made)
		d.Steps = append(d.Steps, s)
		switch r.Outcome {
		case deliver.RecordTried:
			d.State = Waiting
		case deliver.RecordRetry, Locked:
			d.State, d.Next = r.Outcome, r.Next
		case deliver.RecordRedriven, deliver.RecordReplayed:
			d.State = Redriven
		default:
			d.State, d.Next = r.Outcome, nil
		}
		if r.Outcome == Delivered {
			d.Took = r.Time.Sub(accepted).Round(time.Millisecond).String()
		}
	}
	return d
}

// where looks on the broker for an event that its records do not end, or whose
// dead letter may be there.
func (f *Finder) where(ctx context.Context, d *Delivery, h hit, entry registry.Entry, cursor *jetstream.ConsumerInfo, complete bool) error {
	if entry.Definition.Native() && (d.State == Delivered || d.State == Unknown) {
		if known, err := f.own(ctx, d, h, entry, cursor); known || err != nil {
			return err
		}
	}
	switch d.State {
	case Delivered, Filtered, Shed, Dropped:
		return nil
	case DeadLetter:
		last := d.Steps[len(d.Steps)-1].Time
		err := read(ctx, f.Broker.JetStream(), broker.StreamDeadLetters, window{since: last.Add(-skew - time.Minute), headers: true, filter: broker.DeadLetterAll(d.Subscriber)},
			func(m jetstream.Msg, meta *jetstream.MsgMetadata) bool {
				if carries(m.Headers(), h.sequence) {
					d.DeadLetter = meta.Sequence.Stream
				}
				return d.DeadLetter == 0
			})
		if err == nil && d.DeadLetter == 0 {
			d.Detail = "it is not among the dead letters any more"
		}
		return err
	}
	m, err := f.last(ctx, broker.RetryWaiting(d.Subscriber, h.sequence), broker.RetryWaitingIn(d.Subscriber, h.sequence, "*"))
	if err != nil {
		return err
	}
	if m != nil {
		d.State = Retry
		if at, ok := strings.CutPrefix(m.Header.Get("Nats-Schedule"), "@at "); ok {
			if t, err := time.Parse(time.RFC3339Nano, at); err == nil {
				d.Next = &t
			}
		}
		if until, err := time.Parse(time.RFC3339Nano, m.Header.Get(deliver.HeaderLockUntil)); err == nil {
			d.State, d.Next = Locked, &until
			return nil
		}
		d.Detail = held(f, entry)
		return nil
	}
	if m, err = f.last(ctx, broker.RetryBehind(d.Subscriber, h.sequence, "*")); err != nil {
		return err
	}
	if m != nil {
		d.State = Behind
		d.Detail, err = f.before(ctx, d.Subscriber, h, m.Header)
		return err
	}
	due, err := f.due(ctx, d.Subscriber, h.sequence)
	switch {
	case err != nil:
		return err
	case due:
		d.State, d.Next, d.Detail = Retry, nil, strings.TrimSuffix("its next attempt is due; "+held(f, entry), "; ")
	case cursor == nil:
		d.State, d.Detail = Waiting, "its worker has not made its consumer on EVENTS yet; see the log if that stays"
	case len(d.Steps) == 0 && cursor.AckFloor.Stream < h.sequence && cursor.NumPending+uint64(cursor.NumAckPending) > 0:
		d.State, d.Detail = Waiting, held(f, entry)
	case len(d.Steps) == 0 && !complete:
		d.Detail = "its records were not read or are not there any more"
	case len(d.Steps) == 0:
		d.Detail = "there is no record of it, and it does not wait; see gridfan books " + d.Subscriber
	default:
		d.Detail = strings.TrimSuffix("its next attempt is being made, or its record was not read; "+held(f, entry), "; ")
	}
	return nil
}

// own tells of an event that the subscriber's own client takes, as far as the state
// of its consumer does. known means that there is no more to find out.
func (f *Finder) own(ctx context.Context, d *Delivery, h hit, entry registry.Entry, cursor *jetstream.ConsumerInfo) (known bool, err error) {
	if d.State == Delivered {
		d.Detail = "its own client acknowledged it, at this time at the latest"
		return true, nil
	}
	recorded, err := f.Registry.Recorded(ctx, entry)
	if err != nil || h.sequence <= recorded {
		return false, err
	}
	d.State = Waiting
	switch asks := "; the client asks for nothing now"; {
	case cursor == nil:
		d.Detail = "it has no consumer on EVENTS yet; see the log if that stays"
	case cursor.Delivered.Stream < h.sequence:
		d.Detail = "its own client has not asked for it yet"
		if cursor.NumWaiting > 0 {
			asks = ""
		}
		d.Detail += asks
	case cursor.AckFloor.Stream < h.sequence && cursor.NumAckPending > 0:
		d.Detail = fmt.Sprintf("its own client has it in hand, or has acknowledged it and not an older one; %d are not acknowledged, all up to event %d are", cursor.NumAckPending, cursor.AckFloor.Stream)
	default:
		d.Detail = "the broker has settled it a moment ago, and its record is about to be written"
	}
	if why := held(f, entry); why != "" {
		d.Detail += "; " + why
	}
	return true, nil
}

// held says why a subscriber gets nothing now; empty if nothing holds it back.
func held(f *Finder, e registry.Entry) string {
	switch {
	case e.Orphaned:
		return "the subscriber is parked: the configuration file no longer declares it"
	case e.Paused:
		return "the subscriber is paused: gridfan subscribers resume " + e.Definition.Name
	case f.Breaker == nil:
		return ""
	}
	s, ok := f.Breaker(e.Definition.Name)
	if !ok || s.State == "closed" {
		return ""
	}
	return fmt.Sprintf("its breaker is %s after %d failures, the last one: %s", s.State, s.Failures, s.LastError)
}

// last gives the message of one of some subjects of RETRY, nil if there is none.
func (f *Finder) last(ctx context.Context, subjects ...string) (*jetstream.RawStreamMsg, error) {
	s, err := f.Broker.JetStream().Stream(ctx, broker.StreamRetry)
	if err != nil {
		return nil, err
	}
	for _, subject := range subjects {
		m, err := s.GetLastMsgForSubject(ctx, subject)
		if !errors.Is(err, jetstream.ErrMsgNotFound) {
			return m, err
		}
	}
	return nil, nil
}

// maxDue and maxBefore bound how many messages are looked at one by one.
const (
	maxDue    = 1000
	maxBefore = 100
)

// due looks among the retries whose time has come.
func (f *Finder) due(ctx context.Context, subscriber string, sequence uint64) (bool, error) {
	s, err := f.Broker.JetStream().Stream(ctx, broker.StreamRetry)
	if err != nil {
		return false, err
	}
	if m, err := f.last(ctx, broker.RetryDueIn(subscriber, sequence, "*")); err != nil || m != nil {
		return m != nil, err
	}
	for next, n := uint64(1), 0; n < maxDue; n++ {
		m, err := s.GetMsg(ctx, next, jetstream.WithGetMsgSubject(broker.RetryDue(subscriber)))
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
			return false, nil
		case err != nil:
			return false, err
		case carries(m.Header, sequence):
			return true, nil
		}
		next = m.Sequence + 1
	}
	return false, nil
}

// carries says whether a message stands in for an event.
func carries(h nats.Header, sequence uint64) bool {
	return h.Get(deliver.HeaderOriginSequence) == strconv.FormatUint(sequence, 10)
}

// before names the event that another one waits behind: the latest of its key
// that waits for a retry.
func (f *Finder) before(ctx context.Context, subscriber string, h hit, header nats.Header) (string, error) {
	counts, err := f.Broker.SubjectCounts(ctx, broker.StreamRetry, broker.RetryWaitingAll(subscriber))
	if err != nil {
		return "", err
	}
	var earlier []uint64
	for subject := range counts {
		if n, ok := broker.RetrySequence(subject); ok && n < h.sequence {
			earlier = append(earlier, n)
		}
	}
	slices.Sort(earlier)
	slices.Reverse(earlier)
	key := header.Get("ce-partitionkey")
	for _, n := range earlier[:min(len(earlier), maxBefore)] {
		m, err := f.last(ctx, broker.RetryWaiting(subscriber, n), broker.RetryWaitingIn(subscriber, n, "*"))
		if err != nil {
			return "", err
		}
		if m != nil && m.Header.Get("ce-partitionkey") == key {
			return fmt.Sprintf("it waits behind event %s (%d), which is to be tried again", plain(m.Header.Get("ce-id")), n), nil
		}
	}
	return "it waits for an earlier event of its key", nil
}
