// Package quarantine looks after what was accepted and not understood: it
// lists and shows entries, reads them again with today's configuration, and
// drops them when somebody says so.
package quarantine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
)

// Errors that callers tell apart.
var (
	ErrNotFound = errors.New("no such entry in quarantine")
	ErrNoSource = errors.New("its source is no longer configured")
)

// Entry is one body, or element of a body, in quarantine.
type Entry struct {
	// Sequence names it: its place in the QUARANTINE stream.
	Sequence uint64 `json:"sequence"`
	publish.Quarantine
	Size int `json:"size"`
	// Body is what the sender sent; only Show fills it in.
	Body []byte `json:"body,omitempty"`
}

// Parse reads a body as its source would today; ok is false for a source that
// is not configured.
type Parse func(source string, header map[string]string, body []byte) (o publish.Origin, results []event.Result, ok bool)

// Store is the quarantine. It is safe for concurrent use.
type Store struct {
	broker *broker.Broker
	stream jetstream.Stream
	pub    *publish.Publisher
	parse  Parse
	m      *Metrics
}

// Open finds the stream, which the broker has declared.
func Open(ctx context.Context, b *broker.Broker, pub *publish.Publisher, parse Parse, m *Metrics) (*Store, error) {
	s, err := b.JetStream().Stream(ctx, broker.StreamQuarantine)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", broker.StreamQuarantine, err)
	}
	return &Store{broker: b, stream: s, pub: pub, parse: parse, m: m}, nil
}

// List gives up to limit entries of one source, or of all for an empty source,
// oldest first, that come after a sequence. Bodies are left out.
func (s *Store) List(ctx context.Context, source string, after uint64, limit int) ([]Entry, error) {
	entries := []Entry{}
	for len(entries) < limit {
		e, err := s.next(ctx, source, after)
		if errors.Is(err, ErrNotFound) {
			break
		}
		if err != nil {
			return nil, err
		}
		after = e.Sequence
		e.Body = nil
		entries = append(entries, e)
	}
	return entries, nil
}

// next gives the first entry after a sequence, with its body.
func (s *Store) next(ctx context.Context, source string, after uint64) (Entry, error) {
	subject := broker.Quarantine("*")
	if source != "" {
		subject = broker.Quarantine(source)
	}
	m, err := s.stream.GetMsg(ctx, after+1, jetstream.WithGetMsgSubject(subject))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Entry{}, ErrNotFound
	}
	if err != nil {
		return Entry{}, err
	}
	return decode(m), nil
}

func decode(m *jetstream.RawStreamMsg) Entry {
	return Entry{
		Sequence:   m.Sequence,
		Quarantine: publish.DecodeQuarantine(m.Header),
		Size:       len(m.Data),
		Body:       m.Data,
	}
}

// Show gives one entry with its body.
func (s *Store) Show(ctx context.Context, sequence uint64) (Entry, error) {
	m, err := s.stream.GetMsg(ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Entry{}, fmt.Errorf("entry %d: %w", sequence, ErrNotFound)
	}
	if err != nil {
		return Entry{}, err
	}
	return decode(m), nil
}

// Selection says which entries are meant: those named, or all of a source.
// Neither means none.
type Selection struct {
	Sequences []uint64 `json:"sequences,omitempty"`
	Source    string   `json:"source,omitempty"`
}

// each calls f for every selected entry there was when it began.
func (s *Store) each(ctx context.Context, sel Selection, f func(Entry) error) error {
	for _, seq := range sel.Sequences {
		e, err := s.Show(ctx, seq)
		if err != nil {
			return err
		}
		if err := f(e); err != nil {
			return err
		}
	}
	if sel.Source == "" {
		return nil
	}
	info, err := s.stream.Info(ctx)
	if err != nil {
		return err
	}
	for after := uint64(0); ; {
		e, err := s.next(ctx, sel.Source, after)
		if errors.Is(err, ErrNotFound) || err == nil && e.Sequence > info.State.LastSeq {
			return nil // what came since is for the next time
		}
		if err != nil {
			return err
		}
		if err := f(e); err != nil {
			return err
		}
		after = e.Sequence
	}
}

// Outcome is what became of one entry.
type Outcome struct {
	Sequence uint64 `json:"sequence"`
	Source   string `json:"source"`
	// Published, Duplicate and Control count its elements that are understood
	// now.
	Published int `json:"published"`
	Duplicate int `json:"duplicate"`
	Control   int `json:"control"`
	// Faults are the reasons of those that are not. An entry none of whose
	// elements is understood stays as it is; of another, what is not
	// understood becomes an entry of its own.
	Faults []string `json:"faults,omitempty"`
	// Gone: the entry itself is not in quarantine any more.
	Gone bool `json:"gone"`
}

// Redrive reads the selected entries again, publishes what is understood now,
// and then deletes them. With dryRun it only says what it would do. done is
// called for each entry; the error is the first that stopped it, and what was
// done until then stays done.
func (s *Store) Redrive(ctx context.Context, sel Selection, dryRun bool, done func(Outcome)) error {
	return s.each(ctx, sel, func(e Entry) error {
		o, err := s.redrive(ctx, e, dryRun)
		if err != nil {
			return fmt.Errorf("entry %d of source %q: %w", e.Sequence, e.Source, err)
		}
		done(o)
		return nil
	})
}

func (s *Store) redrive(ctx context.Context, e Entry, dryRun bool) (Outcome, error) {
	out := Outcome{Sequence: e.Sequence, Source: e.Source}
	origin, results, ok := s.parse(e.Source, e.Request, e.Body)
	if !ok {
		return out, ErrNoSource
	}
	understood := 0
	for _, r := range results {
		if r.Fault != nil {
			out.Faults = append(out.Faults, r.Fault.Error())
			continue
		}
		understood++
		if r.Control != nil {
			out.Control++
		} else if dryRun {
			out.Published++
		}
	}
	if dryRun || understood == 0 {
		return out, nil
	}
	origin.Accepted = time.Now()
	origin.Header = e.Request
	origin.Redriven = true
	statuses, err := s.pub.Publish(ctx, origin, results)
	if err != nil {
		return out, err
	}
	for _, st := range statuses {
		switch st {
		case publish.Published:
			out.Published++
		case publish.Duplicate:
			out.Duplicate++
		}
	}
	// Only now: what it held is stored elsewhere.
	if err := s.stream.DeleteMsg(ctx, e.Sequence); err != nil {
		return out, err
	}
	out.Gone = true
	s.m.redrove(out)
	return out, nil
}

// Drop deletes the selected entries and says how many. They are gone.
func (s *Store) Drop(ctx context.Context, sel Selection) (int, error) {
	n := 0
	err := s.broker.Change(ctx, func() error {
		return s.each(ctx, sel, func(e Entry) error {
			if err := s.stream.DeleteMsg(ctx, e.Sequence); err != nil {
				return fmt.Errorf("entry %d: %w", e.Sequence, err)
			}
			n++
			s.m.dropped.WithLabelValues(e.Source).Inc()
			return nil
		})
	})
	return n, err
}
