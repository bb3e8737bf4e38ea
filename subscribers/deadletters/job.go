package deadletters

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// Kind is what a job does.
type Kind string

// The kinds.
const (
	Redrive Kind = "redrive" // send dead letters out anew
	Drop    Kind = "drop"    // delete dead letters for good
	Replay  Kind = "replay"  // send stored events once more
)

// State is how a job stands.
type State string

// The states. Jobs that stopped or failed can be resumed.
const (
	Running  State = "running"
	Stopping State = "stopping" // told to stop; what it has begun is finished first
	Stopped  State = "stopped"
	Done     State = "done"
	Failed   State = "failed"
)

func (s State) active() bool { return s == Running || s == Stopping }

// Job is an order that takes long. It is one entry of a bucket, which the
// replica that works on it keeps up to date.
type Job struct {
	ID         string `json:"id"`
	Kind       Kind   `json:"kind"`
	Subscriber string `json:"subscriber"`
	// Added is when the subscriber was added: one that was deleted and added
	// again under its name is another.
	Added time.Time `json:"added"`
	// Selection is for dead letters, Range for a replay.
	Selection *Selection `json:"selection,omitempty"`
	Range     *Range     `json:"range,omitempty"`
	// Rate is the most in a time; 0 means as fast as the subscriber takes them.
	Rate deliver.Rate `json:"rate,omitempty"`

	State State `json:"state"`
	// Waiting says why it does not get on although it runs.
	Waiting string `json:"waiting,omitempty"`
	// Error says why it failed, or what the filter could not judge.
	Error string `json:"error,omitempty"`
	Counts
	Created time.Time  `json:"created"`
	Updated time.Time  `json:"updated"`
	Ended   *time.Time `json:"ended,omitempty"`

	// Cursor is the sequence up to which everything was looked at, in
	// DEADLETTERS or for a replay in EVENTS; Through is where it ends: what
	// came later is for another job.
	Cursor  uint64 `json:"cursor"`
	Through uint64 `json:"through"`
	// Number makes the hops of a replay, see hop.
	Number uint64 `json:"number,omitempty"`
	// Owner works on it, or did when it died.
	Owner string `json:"owner,omitempty"`
	// Open is the portion that was begun last, by sequences up to Cursor. It is
	// written before anything is done about it, with how far ATTEMPTS was
	// filled at that time. Whoever goes on after a crash does it once more, and
	// finds in ATTEMPTS from there on what was recorded already: so everything
	// is recorded once. That it is not sent twice is the broker's word, which
	// knows copies again for an hour, and ATTEMPTS's after that.
	Open     []uint64 `json:"open,omitempty"`
	Attempts uint64   `json:"attempts,omitempty"`
}

// Counts is how far a job has come.
type Counts struct {
	// Total is how many there were to look at, and Looked how many have been.
	Total  int `json:"total"`
	Looked int `json:"looked"`
	// Done were selected and are sent or dropped.
	Done int `json:"done"`
	// Skipped were selected and are not, by why.
	Skipped map[string]int `json:"skipped,omitempty"`
	// Failed could not be judged by the filter and are left alone.
	Failed int `json:"failed,omitempty"`
}

func (c *Counts) skip(why string) {
	if c.Skipped == nil {
		c.Skipped = map[string]int{}
	}
	c.Skipped[why]++
}

// hopStride is more hops than one replay of an event can take.
const hopStride = 1_000_000

// hop is that of the events a replay sends. The number of a job is the bucket's
// revision when it was begun, or gone on with, which only grows, so it is far
// beyond every hop that an event has had before.
func (j *Job) hop() int { return int(j.Number) * hopStride }

// keepJobs is how many ended jobs stay listed.
const keepJobs = 100

// Jobs lists all jobs, newest first.
func (s *Store) Jobs(ctx context.Context) ([]Job, error) {
	jobs := []Job{}
	err := broker.EachEntry(ctx, s.jobs, jetstream.AllKeys, func(u jetstream.KeyValueEntry) error {
		j, err := decodeJob(u)
		if err != nil {
			return err
		}
		jobs = append(jobs, j)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(jobs, func(a, b Job) int { return number(b.ID) - number(a.ID) })
	return jobs, nil
}

func number(id string) int {
	n, _ := strconv.Atoi(id) // ours are numbers
	return n
}

func decodeJob(e jetstream.KeyValueEntry) (Job, error) {
	var j Job
	if err := json.Unmarshal(e.Value(), &j); err != nil {
		return j, fmt.Errorf("job %s: %w", e.Key(), err)
	}
	return j, nil
}

// Job gives one job.
func (s *Store) Job(ctx context.Context, id string) (Job, error) {
	j, _, err := s.job(ctx, id)
	return j, err
}

func (s *Store) job(ctx context.Context, id string) (Job, uint64, error) {
	e, err := s.jobs.Get(ctx, id)
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrInvalidKey) {
		return Job{}, 0, fmt.Errorf("job %q: %w", id, ErrNoJob)
	}
	if err != nil {
		return Job{}, 0, err
	}
	j, err := decodeJob(e)
	return j, e.Revision(), err
}

// Stop tells a job to stop. What it has begun is finished first, so it may take
// a moment until its state is Stopped.
func (s *Store) Stop(ctx context.Context, id string) (Job, error) {
	return s.order(ctx, id, func(j *Job) error {
		switch j.State {
		case Running:
			j.State = Stopping
		case Done, Failed:
			return fmt.Errorf("job %s is %s: %w", id, j.State, ErrEnded)
		}
		return nil
	})
}

// Resume lets a job go on that was stopped or failed, from where it was.
func (s *Store) Resume(ctx context.Context, id string) (Job, error) {
	return s.order(ctx, id, func(j *Job) error {
		if j.State == Done {
			return fmt.Errorf("job %s is done: %w", id, ErrEnded)
		}
		j.State, j.Ended, j.Waiting = Running, nil, ""
		return nil
	})
}

// order changes a job, again from the start when somebody else was quicker.
func (s *Store) order(ctx context.Context, id string, change func(*Job) error) (Job, error) {
	for {
		j, revision, err := s.job(ctx, id)
		if err != nil {
			return j, err
		}
		was := j.State
		if err := change(&j); err != nil || j.State == was {
			return j, err
		}
		j.Updated = time.Now().UTC()
		_, err = s.write(ctx, &j, revision)
		if !errors.Is(err, jetstream.ErrKeyExists) { // how a stale revision is called
			return j, err
		}
	}
}

// write stores a job; revision 0 makes a new one.
func (s *Store) write(ctx context.Context, j *Job, revision uint64) (next uint64, err error) {
	b, err := json.Marshal(j)
	if err != nil {
		return 0, err
	}
	err = s.Broker.Change(ctx, func() error {
		if revision == 0 {
			next, err = s.jobs.Create(ctx, j.ID, b)
		} else {
			next, err = s.jobs.Update(ctx, j.ID, b, revision)
		}
		return err
	})
	return next, err
}

// add gives a job its number and stores it.
func (s *Store) add(ctx context.Context, j Job) (*Job, error) {
	j.State, j.Created = Running, time.Now().UTC()
	j.Updated = j.Created
	jobs, err := s.Jobs(ctx)
	if err != nil {
		return nil, err
	}
	last := 0
	if len(jobs) > 0 {
		last = number(jobs[0].ID)
	}
	s.forget(ctx, jobs, keepJobs)
	for {
		last++
		j.ID = strconv.Itoa(last)
		_, err := s.write(ctx, &j, 0)
		switch {
		case errors.Is(err, jetstream.ErrKeyExists):
			continue // somebody was quicker
		case broker.IsFull(err):
			// Large selections: the ended ones make room.
			s.forget(ctx, jobs, 0)
			_, err = s.write(ctx, &j, 0)
		}
		if err != nil {
			return nil, err
		}
		s.Broker.Report("job.started", j.Subscriber, map[string]any{"job": j.ID, "kind": j.Kind, "total": j.Total})
		return &j, nil
	}
}

// forget removes the oldest ended jobs beyond keep of them.
func (s *Store) forget(ctx context.Context, newestFirst []Job, keep int) {
	stream, err := s.js.Stream(ctx, "KV_"+broker.BucketJobs)
	if err != nil {
		s.Log.Warn("old jobs stay listed", "error", err)
		return
	}
	for _, j := range newestFirst {
		if j.State.active() {
			continue
		}
		if keep--; keep >= 0 {
			continue
		}
		// Not the bucket's own Delete, which leaves a marker behind.
		if err := stream.Purge(ctx, jetstream.WithPurgeSubject("$KV."+broker.BucketJobs+"."+j.ID)); err != nil {
			s.Log.Warn("an old job stays listed", "job", j.ID, "error", err)
		}
	}
}

// Redrive starts a job that sends the selected dead letters out anew, oldest
// first. The job is nil when there is none to look at.
func (s *Store) Redrive(ctx context.Context, subscriber string, sel Selection, rate deliver.Rate) (*Job, error) {
	return s.letterJob(ctx, Redrive, subscriber, sel, rate)
}

// Drop starts a job that deletes the selected dead letters for good.
func (s *Store) Drop(ctx context.Context, subscriber string, sel Selection) (*Job, error) {
	return s.letterJob(ctx, Drop, subscriber, sel, 0)
}

func (s *Store) letterJob(ctx context.Context, kind Kind, subscriber string, sel Selection, rate deliver.Rate) (*Job, error) {
	e, causes, err := s.check(ctx, subscriber, &sel)
	if err != nil {
		return nil, err
	}
	if kind == Redrive && e.Definition.Native() {
		return nil, fmt.Errorf("subscriber %q: %w", subscriber, ErrNative)
	}
	info, err := s.letters.Info(ctx)
	if err != nil {
		return nil, err
	}
	j := Job{Kind: kind, Subscriber: subscriber, Added: e.Created, Selection: &sel, Rate: rate, Through: info.State.LastSeq}
	switch {
	case len(sel.Sequences) > 0:
		for _, seq := range sel.Sequences {
			if _, err := s.one(ctx, subscriber, seq); err != nil {
				return nil, err
			}
		}
		j.Total = len(sel.Sequences)
	case sel.Cause != "":
		j.Total = int(causes[sel.Cause])
	default:
		for _, n := range causes {
			j.Total += int(n)
		}
	}
	if j.Total == 0 {
		return nil, nil
	}
	return s.add(ctx, j)
}

// notes say what else to know before a subscriber gets events anew.
func notes(e registry.Entry) []string {
	var notes []string
	if o := e.Definition.Ordering; o != "" && o != deliver.Unordered {
		notes = append(notes, fmt.Sprintf("%s wants order (%s): what is sent now comes later than what followed it then", e.Definition.Name, o))
	}
	switch {
	case e.Orphaned:
		notes = append(notes, e.Definition.Name+" is parked, because the configuration file no longer declares it: nothing is sent until it is declared again")
	case e.Paused:
		notes = append(notes, e.Definition.Name+" is paused: nothing is sent until gridfan subscribers resume "+e.Definition.Name)
	}
	return notes
}

// Notes says what else to know before a subscriber gets events anew.
func (s *Store) Notes(ctx context.Context, subscriber string) ([]string, error) {
	e, err := s.Registry.Get(ctx, subscriber)
	if err != nil {
		return nil, err
	}
	return notes(e), nil
}
