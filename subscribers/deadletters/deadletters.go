// Package deadletters looks after what was given up: it lists dead letters by
// what went wrong, shows one with every attempt that was made, sends them out
// anew, and deletes them when somebody says so. It also sends stored events
// once more to one subscriber.
//
// What takes long is a Job: it is kept in a bucket and outlives the request and
// the process. One replica at a time works on the jobs of a subscriber, in small
// portions, and each portion is written down before it begins, so that whoever
// goes on after a crash knows what may have been done and what was not.
//
// Jobs send nothing themselves. They put copies on the subscriber's retry lane,
// a few at a time, and its worker delivers them as it does retries.
package deadletters

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// Errors that callers tell apart.
var (
	ErrNotFound     = errors.New("no such dead letter")
	ErrNoJob        = errors.New("no such job")
	ErrEnded        = errors.New("the job has ended")
	ErrBadSelection = errors.New("bad selection")
	ErrNative       = errors.New("its own NATS client takes its events, so none can be sent to it anew")
)

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrBadSelection, fmt.Sprintf(format, args...))
}

// Parts are what a Store works with.
type Parts struct {
	Broker   *broker.Broker
	Recorder *deliver.Recorder
	Registry *registry.Registry
	// Fleet tells how breakers stand in this process; nil with Idle.
	Fleet *registry.Fleet
	// Idle takes orders and works on none: processes that deliver do. Recorder and
	// Fleet are not needed then.
	Idle bool
	// Compile makes a filter of an expression.
	Compile func(expression string) (func(*event.Event) (bool, error), error)
	Log     *slog.Logger
}

// Store is the dead letters of all subscribers, and the jobs. It is safe for
// concurrent use.
type Store struct {
	Parts
	// owner names this Store in jobs.
	owner    string
	leaseTTL time.Duration
	conn     *nats.Conn
	js       jetstream.JetStream
	letters  jetstream.Stream
	events   jetstream.Stream
	attempts jetstream.Stream
	jobs     jetstream.KeyValue
	// step is called after each step of a portion; an error there ends the
	// work as a crash would. Only tests set it.
	step func(*Job, string) error

	ctx     context.Context // ends when Close is called
	stop    context.CancelFunc
	hard    context.Context // ends when Close waits no longer
	abandon context.CancelFunc
	watcher jetstream.KeyWatcher
	running sync.WaitGroup

	mu      sync.Mutex       // guards all below
	active  map[string]known // by job
	workers map[string]bool  // by subscriber
}

// Open finds the streams and buckets, which the broker has declared, and begins
// to work on the jobs that are there. The caller closes the Store before the
// recorder.
func Open(ctx context.Context, p Parts) (*Store, error) {
	s, err := open(ctx, p)
	if err != nil {
		return nil, err
	}
	if p.Idle {
		return s, nil
	}
	if err := s.start(); err != nil {
		s.conn.Close()
		return nil, err
	}
	return s, nil
}

func open(ctx context.Context, p Parts) (*Store, error) {
	// Jobs have a connection of their own: a large redrive must not hold up
	// what others ask the broker.
	nc, js, err := p.Broker.Connect("deadletters")
	if err != nil {
		return nil, err
	}
	opened := false
	defer func() {
		if !opened {
			nc.Close()
		}
	}()
	s := &Store{
		Parts: p, conn: nc, owner: broker.Instance() + "-" + nuid.Next(), leaseTTL: leaseTTL, js: js,
		active: map[string]known{}, workers: map[string]bool{},
	}
	for name, stream := range map[string]*jetstream.Stream{
		broker.StreamDeadLetters: &s.letters, broker.StreamEvents: &s.events, broker.StreamAttempts: &s.attempts,
	} {
		if *stream, err = js.Stream(ctx, name); err != nil {
			return nil, fmt.Errorf("stream %s: %w", name, err)
		}
	}
	if s.jobs, err = js.KeyValue(ctx, broker.BucketJobs); err != nil {
		return nil, fmt.Errorf("bucket %s: %w", broker.BucketJobs, err)
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.hard, s.abandon = context.WithCancel(context.Background())
	opened = true
	return s, nil
}

// Letter is one event that was given up for one subscriber.
type Letter struct {
	// Sequence names it: its place in the DEADLETTERS stream.
	Sequence   uint64 `json:"sequence"`
	Subscriber string `json:"subscriber"`
	// Cause is why it was given up; Status and Reason tell of the last attempt.
	Cause    string    `json:"cause"`
	Status   int       `json:"status,omitempty"`
	Reason   string    `json:"reason"`
	Failed   time.Time `json:"failed"`
	Attempts int       `json:"attempts"`
	// ID, Type and Source are the event's, and empty where its attributes are
	// in its body, which only Show reads.
	ID     string `json:"id"`
	Type   string `json:"type,omitempty"`
	Source string `json:"source,omitempty"`
	// Event is its place in EVENTS, and Subject where it was published.
	Event   uint64 `json:"event"`
	Subject string `json:"subject"`
	Hop     int    `json:"hop"`
	Size    int    `json:"size"`
}

// unknownOrigin marks a letter whose event is not known by its place.
const unknownOrigin = -1

// read gives the letter that a message is.
func (m *stored) letter() Letter {
	l := Letter{
		Sequence: m.sequence, Subscriber: broker.SubscriberOf(m.subject), Cause: m.subject[strings.LastIndexByte(m.subject, '.')+1:],
		Failed: m.time, Subject: m.header.Get(deliver.HeaderOriginSubject), Size: m.size,
	}
	if reason, err := url.PathUnescape(m.header.Get(deliver.HeaderReason)); err == nil {
		l.Reason = reason
	}
	if t, err := event.ParseTime(m.header.Get(deliver.HeaderFailedAt)); err == nil {
		l.Failed = t
	}
	// What is not a number is told as 0.
	l.Status, _ = strconv.Atoi(m.header.Get(deliver.HeaderStatus))
	l.Attempts, _ = strconv.Atoi(m.header.Get(deliver.HeaderAttempts))
	var err error
	if l.Event, err = strconv.ParseUint(m.header.Get(deliver.HeaderOriginSequence), 10, 64); err != nil {
		l.Hop = unknownOrigin
	} else if hop := m.header.Get(deliver.HeaderHop); hop != "" {
		if l.Hop, err = strconv.Atoi(hop); err != nil {
			l.Hop = unknownOrigin
		}
	}
	if e, err := event.Decode(m.header, m.data); err == nil {
		l.ID, l.Type, l.Source = e.ID, e.Type, e.Source
	} else {
		l.ID = firstHeader(m.header, "ce-id")
	}
	return l
}

// firstHeader finds a header that was written in lower case.
func firstHeader(h nats.Header, name string) string {
	if v := h[name]; len(v) > 0 {
		return v[0]
	}
	return h.Get(name)
}

// Selection says which dead letters of a subscriber are meant: those that are
// named, or those that all of the other fields let through.
type Selection struct {
	Sequences []uint64 `json:"sequences,omitempty"`
	// All: every one. It stands alone.
	All   bool   `json:"all,omitempty"`
	Cause string `json:"cause,omitempty"`
	// Reason is a part of the reason, in upper or lower case.
	Reason string `json:"reason,omitempty"`
	// Since and Until bound when it was given up.
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`
	// Filter is an expression over the event.
	Filter string `json:"filter,omitempty"`
}

// maxSequences bounds a selection by name: it is kept with its job.
const maxSequences = 1000

// Validate sorts the sequences and reports what is wrong.
func (sel *Selection) Validate() error {
	criteria := sel.Cause != "" || sel.Reason != "" || !sel.Since.IsZero() || !sel.Until.IsZero() || sel.Filter != ""
	switch {
	case len(sel.Sequences) > 0 && (sel.All || criteria), sel.All && criteria:
		return bad("say which in one way: sequences, or all, or what they have in common")
	case len(sel.Sequences) == 0 && !sel.All && !criteria:
		return bad("say which: sequences, or all, or a cause, reason, time or filter")
	case len(sel.Sequences) > maxSequences:
		return bad("sequences: at most %d, got %d; select by cause, reason or time instead", maxSequences, len(sel.Sequences))
	case slices.Contains(sel.Sequences, 0):
		return bad("sequences: 0 names no dead letter")
	case !sel.Since.IsZero() && !sel.Until.IsZero() && sel.Since.After(sel.Until):
		return bad("since (%s) is after until (%s)", event.FormatTime(sel.Since), event.FormatTime(sel.Until))
	case strings.Trim(sel.Cause, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
		return bad("cause: %q is none; gridfan deadletters list shows them", sel.Cause)
	}
	slices.Sort(sel.Sequences)
	sel.Sequences = slices.Compact(sel.Sequences)
	return nil
}

// matches says whether the headers let a letter through.
func (sel *Selection) matches(l Letter) bool {
	return (sel.Cause == "" || l.Cause == sel.Cause) &&
		(sel.Reason == "" || strings.Contains(strings.ToLower(l.Reason), strings.ToLower(sel.Reason))) &&
		(sel.Since.IsZero() || !l.Failed.Before(sel.Since)) &&
		(sel.Until.IsZero() || !l.Failed.After(sel.Until))
}

// subject is what the selection's letters are under.
func (sel *Selection) subject(subscriber string) string {
	if sel.Cause != "" {
		return broker.DeadLetter(subscriber, sel.Cause)
	}
	return broker.DeadLetterAll(subscriber)
}

// filter compiles an expression; nil for none.
func (s *Store) filter(expression string) (func(*event.Event) (bool, error), error) {
	if expression == "" {
		return nil, nil
	}
	f, err := s.Compile(expression)
	if err != nil {
		return nil, bad("filter: %v", err)
	}
	return f, nil
}

// wants says whether a filter wants a message's event.
func wants(filter func(*event.Event) (bool, error), m *stored) (bool, error) {
	if filter == nil {
		return true, nil
	}
	e, err := event.Decode(m.header, m.data)
	if err != nil {
		return false, err
	}
	return filter(e)
}

// causes counts a subscriber's dead letters by cause.
func (s *Store) causes(ctx context.Context, subscriber string) (map[string]uint64, error) {
	counts, err := s.Broker.SubjectCounts(ctx, broker.StreamDeadLetters, broker.DeadLetterAll(subscriber))
	if err != nil {
		return nil, err
	}
	causes := map[string]uint64{}
	for subject, n := range counts {
		causes[subject[strings.LastIndexByte(subject, '.')+1:]] += n
	}
	return causes, nil
}

// check wants a subscriber that exists, a selection that is well formed, and a
// cause that there is.
func (s *Store) check(ctx context.Context, subscriber string, sel *Selection) (registry.Entry, map[string]uint64, error) {
	if err := sel.Validate(); err != nil {
		return registry.Entry{}, nil, err
	}
	if _, err := s.filter(sel.Filter); err != nil {
		return registry.Entry{}, nil, err
	}
	e, err := s.Registry.Get(ctx, subscriber)
	if err != nil {
		return e, nil, fmt.Errorf("subscriber %q: %w", subscriber, err)
	}
	causes, err := s.causes(ctx, subscriber)
	if err != nil {
		return e, nil, err
	}
	if sel.Cause != "" && causes[sel.Cause] == 0 {
		var have []string
		for _, c := range slices.Sorted(maps.Keys(causes)) {
			have = append(have, fmt.Sprintf("%s (%d)", c, causes[c]))
		}
		if have == nil {
			return e, nil, bad("cause: %s has no dead letters at all", subscriber)
		}
		return e, nil, bad("cause: %s has no dead letters of the cause %q; there are: %s", subscriber, sel.Cause, strings.Join(have, ", "))
	}
	return e, causes, nil
}
