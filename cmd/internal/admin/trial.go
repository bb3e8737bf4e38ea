package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/filter"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/transform"
)

// TrialRequest is the body of POST /api/v1/test: a filter and a transform are run
// on stored events. Nothing is delivered and nothing changes.
type TrialRequest struct {
	// Subscriber, if given, lends what is not given below, and its present
	// filter is compared with another one.
	Subscriber string `json:"subscriber,omitempty"`
	// Subjects are those of the subscriber, or all.
	Subjects []string `json:"subjects,omitempty"`
	// Filter and Transform are the subscriber's when nil, and none when empty.
	Filter    *string `json:"filter,omitempty"`
	Transform *string `json:"transform,omitempty"`
	// Since is where to begin; without it the newest Last events are taken.
	Since *time.Time `json:"since,omitempty"`
	// Last is how many events at most, 1 to 100000. Default 1000, and with
	// Since 100000.
	Last int `json:"last,omitempty"`
}

// Trial is the answer to it.
type Trial struct {
	Subjects []string `json:"subjects"`
	// Events is how many on the subjects were looked at, From and Until when
	// the first and the last of them were stored.
	Events int        `json:"events"`
	From   *time.Time `json:"from,omitempty"`
	Until  *time.Time `json:"until,omitempty"`
	// Complete: all that was asked for was looked at. Otherwise Stopped says
	// what ended it.
	Complete bool   `json:"complete"`
	Stopped  string `json:"stopped,omitempty"`

	Counts
	BySubject []TrialSubject `json:"bySubject"`
	Failures  []TrialFailure `json:"failures"`
	// Shadow compares with the subscriber's present filter.
	Shadow *Shadow `json:"shadow,omitempty"`
	// Example is the newest event that was transformed.
	Example *TrialExample `json:"example,omitempty"`
	// Notes are what looks like a mistake in the filter, or in the subscriber's URL.
	Notes []string `json:"notes,omitempty"`
	// Origin is where the subscriber's definition is kept.
	Origin registry.Origin `json:"origin,omitempty"`
}

// Counts are what became of events: each is one of the three.
type Counts struct {
	Matched  int `json:"matched"`
	Filtered int `json:"filtered"`
	Failed   int `json:"failed"` // they would become dead letters
}

// TrialSubject is what became of the events of one subject.
type TrialSubject struct {
	Subject string `json:"subject"`
	Counts
}

// TrialFailure is a reason with one event that has it.
type TrialFailure struct {
	Stage    string `json:"stage"` // filter or transform
	Reason   string `json:"reason"`
	Count    int    `json:"count"`
	Sequence uint64 `json:"sequence,omitempty"`
	Subject  string `json:"subject"`
	ID       string `json:"id"`
}

// Shadow says what the subscriber's present filter makes of the same events.
type Shadow struct {
	Present Counts `json:"present"`
	// More are taken by the new filter only, Fewer by the present one only.
	More     int                `json:"more"`
	Fewer    int                `json:"fewer"`
	Examples []ShadowDifference `json:"examples"`
}

// ShadowDifference is an event that the two filters do not agree on. Present and
// New are matched, filtered or failed.
type ShadowDifference struct {
	Sequence uint64 `json:"sequence"`
	Subject  string `json:"subject"`
	ID       string `json:"id"`
	Present  string `json:"present"`
	New      string `json:"new"`
}

// TrialExample is an event before and after its transform, in CloudEvents' JSON
// format.
type TrialExample struct {
	Sequence uint64          `json:"sequence,omitempty"`
	Subject  string          `json:"subject"`
	Before   json.RawMessage `json:"before"`
	After    json.RawMessage `json:"after"`
}

// What one trial does at the most.
const (
	defaultTrial = 1000
	maxTrial     = 100_000
	trialTimeout = 15 * time.Second

	maxTrialSubjects = 100
	maxTrialReasons  = 20
	maxDifferences   = 10
	maxExample       = 64 << 10 // bytes of each side
)

// Trier runs a filter and a transform on events and counts. It serves one
// goroutine.
type Trier struct {
	filter, present *filter.Filter
	transform       *transform.Transform
	bySubject       map[string]*Counts
	failures        map[TrialFailure]*TrialFailure // by stage and reason
	others          Counts                         // of subjects beyond maxTrialSubjects
	trial           Trial
}

// NewTrier compiles the expressions; empty ones are none. With shadow, present
// is compared with the filter.
func NewTrier(subjects []string, filterText, transformText string, shadow bool, present string) (*Trier, error) {
	t := &Trier{bySubject: map[string]*Counts{}, failures: map[TrialFailure]*TrialFailure{}, trial: Trial{Subjects: subjects}}
	known, err := registry.Schemas(subjects)
	if err != nil {
		return nil, err
	}
	var errs []error
	if filterText != "" {
		if t.filter, err = filter.Compile(filterText, known...); err != nil {
			errs = append(errs, fmt.Errorf("filter: %w", err))
		} else {
			t.trial.Notes = t.filter.Notes()
		}
	}
	if transformText != "" {
		if t.transform, err = transform.Compile(transformText); err != nil {
			errs = append(errs, fmt.Errorf("transform: %w", err))
		}
	}
	if shadow {
		t.trial.Shadow = &Shadow{Examples: []ShadowDifference{}}
		if present != "" {
			if t.present, err = filter.Compile(present, known...); err != nil {
				errs = append(errs, fmt.Errorf("the present filter: %w", err))
			}
		}
	}
	return t, errors.Join(errs...)
}

// The verdicts of a filter.
const (
	verdictMatched  = "matched"
	verdictFiltered = "filtered"
	verdictFailed   = "failed"
)

// count adds an event with a verdict.
func (c *Counts) count(verdict string) {
	switch verdict {
	case verdictMatched:
		c.Matched++
	case verdictFiltered:
		c.Filtered++
	default:
		c.Failed++
	}
}

func judge(f *filter.Filter, e *event.Event) (string, error) {
	if f == nil {
		return verdictMatched, nil
	}
	wanted, err := f.Match(e)
	switch {
	case err != nil:
		return verdictFailed, err
	case wanted:
		return verdictMatched, nil
	}
	return verdictFiltered, nil
}

// Add tries one more event; events come in the order of the stream.
func (t *Trier) Add(sequence uint64, subject string, stored time.Time, e *event.Event) {
	stored = stored.UTC()
	t.trial.Events++
	if t.trial.From == nil {
		t.trial.From = &stored
	}
	t.trial.Until = &stored
	verdict, err := judge(t.filter, e)
	stage := "filter"
	if s := t.trial.Shadow; s != nil {
		before, _ := judge(t.present, e)
		s.Present.count(before)
		if before != verdict {
			switch {
			case verdict == verdictMatched:
				s.More++
			case before == verdictMatched:
				s.Fewer++
			}
			s.Examples = append(s.Examples, ShadowDifference{sequence, subject, e.ID, before, verdict})
			// The newest are the ones people remember.
			s.Examples = s.Examples[max(0, len(s.Examples)-maxDifferences):]
		}
	}
	if verdict == verdictMatched && t.transform != nil {
		var after *event.Event
		if after, err = t.transform.Apply(e); err != nil {
			verdict, stage = verdictFailed, "transform"
		} else {
			t.example(sequence, subject, e, after)
		}
	}
	t.trial.count(verdict)
	t.subject(subject).count(verdict)
	if err == nil {
		return
	}
	key := TrialFailure{Stage: stage, Reason: err.Error()}
	f := t.failures[key]
	if f == nil {
		if len(t.failures) == maxTrialReasons {
			return // they are in the counts
		}
		f = &TrialFailure{Stage: stage, Reason: key.Reason}
		t.failures[key] = f
	}
	f.Count++
	f.Sequence, f.Subject, f.ID = sequence, subject, e.ID
}

func (t *Trier) subject(name string) *Counts {
	c := t.bySubject[name]
	if c == nil {
		if len(t.bySubject) == maxTrialSubjects {
			return &t.others
		}
		c = &Counts{}
		t.bySubject[name] = c
	}
	return c
}

func (t *Trier) example(sequence uint64, subject string, before, after *event.Event) {
	if len(before.Data) > maxExample || len(after.Data) > maxExample {
		return
	}
	t.trial.Example = &TrialExample{sequence, subject, before.JSON(), after.JSON()}
}

// undecodable counts a message that is no event; deliveries of it become dead
// letters whatever the filter.
func (t *Trier) undecodable(sequence uint64, subject string, stored time.Time) {
	t.trial.Events++
	stored = stored.UTC()
	if t.trial.From == nil {
		t.trial.From = &stored
	}
	t.trial.Until = &stored
	t.trial.count(verdictFailed)
	t.subject(subject).count(verdictFailed)
	key := TrialFailure{Stage: "decode", Reason: "not an event"}
	if t.failures[key] == nil {
		t.failures[key] = &TrialFailure{Stage: key.Stage, Reason: key.Reason}
	}
	f := t.failures[key]
	f.Count++
	f.Sequence, f.Subject = sequence, subject
}

// Result gives what was counted.
func (t *Trier) Result() *Trial {
	r := t.trial
	r.BySubject = []TrialSubject{}
	for _, name := range slices.Sorted(maps.Keys(t.bySubject)) {
		r.BySubject = append(r.BySubject, TrialSubject{name, *t.bySubject[name]})
	}
	if t.others != (Counts{}) {
		r.BySubject = append(r.BySubject, TrialSubject{"(others)", t.others})
	}
	r.Failures = []TrialFailure{}
	for _, f := range t.failures {
		r.Failures = append(r.Failures, *f)
	}
	slices.SortFunc(r.Failures, func(a, b TrialFailure) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Stage+a.Reason, b.Stage+b.Reason))
	})
	return &r
}

func (s *server) trialRoutes(api *routes) {
	busy := make(chan struct{}, 1)
	api.Handle("POST /api/v1/test", handle(func(w http.ResponseWriter, r *http.Request) (any, error) {
		select {
		case busy <- struct{}{}:
			defer func() { <-busy }()
		default:
			// Each may take a core for as long as it is allowed to.
			return nil, problem(http.StatusServiceUnavailable, "busy", "another test is running here; try again in some seconds")
		}
		return s.try(w, r)
	}))
}

func (s *server) try(w http.ResponseWriter, r *http.Request) (any, error) {
	var req TrialRequest
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxDefinition))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return nil, problem(http.StatusBadRequest, "bad-parameter", "the body is no test: "+err.Error())
	}
	switch {
	case req.Last < 0 || req.Last > maxTrial:
		return nil, problem(http.StatusBadRequest, "bad-parameter", fmt.Sprintf("last: want 1 to %d", maxTrial))
	case req.Last == 0 && req.Since != nil:
		req.Last = maxTrial
	case req.Last == 0:
		req.Last = defaultTrial
	}
	var entry registry.Entry
	shadow := false
	if req.Subscriber != "" {
		var err error
		if entry, err = s.Registry.Get(r.Context(), req.Subscriber); err != nil {
			return nil, err
		}
		d := entry.Definition
		shadow = req.Filter != nil && *req.Filter != d.Filter
		if req.Filter == nil {
			req.Filter = &d.Filter
		}
		if req.Transform == nil {
			req.Transform = &d.Transform
		}
		if len(req.Subjects) == 0 {
			req.Subjects = d.Subjects
		}
	}
	if len(req.Subjects) == 0 {
		req.Subjects = []string{broker.SubjectEvents}
	}
	for i, subject := range req.Subjects {
		if err := registry.ValidSubject(subject); err != nil {
			return nil, problem(http.StatusBadRequest, "bad-parameter", fmt.Sprintf("subjects[%d]: %v", i, err))
		}
	}
	t, err := NewTrier(req.Subjects, deref(req.Filter), deref(req.Transform), shadow, entry.Definition.Filter)
	if err != nil {
		return nil, &Problem{
			Type: "about:blank", Title: http.StatusText(http.StatusBadRequest), Status: http.StatusBadRequest,
			Code: "bad-definition", Detail: "the expressions are not valid", Errors: strings.Split(err.Error(), "\n"),
		}
	}
	t.trial.Origin = entry.Origin
	if b, ok := s.Fleet.Breaker(entry.Definition.Name); ok && b.State == deliver.BreakerMisconfigured && strings.HasPrefix(b.LastError, egress.RefusedPrefix) {
		t.trial.Notes = append(t.trial.Notes, "whatever the filter takes, its events wait: "+b.LastError)
	}
	ctx, cancel := context.WithTimeout(r.Context(), trialTimeout)
	defer cancel()
	if err := s.tryStored(ctx, t, req); err != nil {
		return nil, err
	}
	return t.Result(), nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// Bounds of one request to the broker: events of the usual size come some
// thousand at a time, large ones a few.
const (
	trialFetchBytes = 16 << 20
	trialFetchWait  = time.Second
)

// tryStored tries the events that are asked for, oldest first.
func (s *server) tryStored(ctx context.Context, t *Trier, req TrialRequest) error {
	left, err := s.readStored(ctx, req.Subjects, req.Since, req.Last, t.message)
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil && left > 0:
		t.trial.Stopped = fmt.Sprintf("the time was up after %s, with %d events to go", trialTimeout, left)
	case left > 0:
		t.trial.Stopped = fmt.Sprintf("%d events were looked at, which is the most", req.Last)
	default:
		t.trial.Complete = true
	}
	return nil
}

// readStored gives up to last events on the subjects to yield, oldest first: those
// since a time, or the newest. left is how many there were besides, when it
// stops for their number or for the time.
func (s *server) readStored(ctx context.Context, subjects []string, since *time.Time, last int, yield func(jetstream.Msg) error) (left int, err error) {
	// A connection of its own: what it asks for does not stand before others.
	nc, js, err := s.Broker.Connect("test")
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	stream, err := js.Stream(ctx, broker.StreamEvents)
	if err != nil {
		return 0, err
	}
	state := stream.CachedInfo().State
	subjects = deliver.MinimiseSubjects(subjects)
	var c jetstream.Consumer
	skip := 0
	if since != nil {
		c, err = reader(ctx, stream, subjects, jetstream.ConsumerConfig{DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: since})
	} else {
		c, skip, err = newest(ctx, stream, subjects, state, last)
	}
	if err != nil {
		return 0, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = stream.DeleteConsumer(ctx, c.CachedInfo().Name) // otherwise it goes by itself
	}()
	left = int(c.CachedInfo().NumPending)
	for left > 0 && ctx.Err() == nil {
		batch, err := c.FetchBytes(trialFetchBytes, jetstream.FetchMaxWait(trialFetchWait))
		if err != nil {
			return left, err
		}
		got := false
		for m := range batch.Messages() {
			got = true
			switch {
			case skip > 0:
				skip--
			case last == 0:
				return left, nil
			default:
				last--
				if err := yield(m); err != nil {
					return left, err
				}
			}
			if left--; left == 0 || ctx.Err() != nil {
				break // what comes after was not there when this began
			}
		}
		if !got {
			if err := batch.Error(); err != nil && !errors.Is(err, nats.ErrTimeout) {
				return left, err
			}
			left = 0 // what was left is trimmed
		}
	}
	return left, nil
}

func (t *Trier) message(m jetstream.Msg) error {
	meta, err := m.Metadata()
	if err != nil {
		return err
	}
	e, err := event.Decode(m.Headers(), m.Data())
	if err != nil {
		t.undecodable(meta.Sequence.Stream, m.Subject(), meta.Timestamp)
		return nil
	}
	t.Add(meta.Sequence.Stream, m.Subject(), meta.Timestamp, e)
	return nil
}

// reader makes a cursor that goes when nobody asks it any more.
func reader(ctx context.Context, stream jetstream.Stream, subjects []string, c jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	c.FilterSubjects = subjects
	c.AckPolicy = jetstream.AckNonePolicy
	c.MemoryStorage = true
	c.Replicas = 1
	c.InactiveThreshold = time.Minute
	return stream.CreateConsumer(ctx, c)
}

// newest makes a cursor in front of at least the newest n events on the
// subjects, if there are so many, and says how many of what it gives to leave
// out. It asks the broker how many there are from further and further back.
func newest(ctx context.Context, stream jetstream.Stream, subjects []string, state jetstream.StreamState, n int) (jetstream.Consumer, int, error) {
	for span := uint64(n); ; span *= 4 {
		start := max(state.FirstSeq, 1)
		if state.LastSeq > span {
			start = max(start, state.LastSeq-span+1)
		}
		c, err := reader(ctx, stream, subjects, jetstream.ConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: start})
		if err != nil {
			return nil, 0, err
		}
		pending := int(c.CachedInfo().NumPending)
		if pending >= n || start <= max(state.FirstSeq, 1) {
			return c, max(0, pending-n), nil
		}
		if err := stream.DeleteConsumer(ctx, c.CachedInfo().Name); err != nil {
			return nil, 0, err
		}
	}
}

// Try runs a filter and a transform on stored events.
func (c *Client) Try(ctx context.Context, req TrialRequest) (*Trial, error) {
	var t Trial
	return &t, c.call(ctx, http.MethodPost, "/api/v1/test", req, &t)
}
