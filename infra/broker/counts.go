package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
)

// The server counts messages by subject and tells the counts with a stream's
// state, at most 100,000 subjects in one answer (nats-server v2.15.2,
// server/jetstream_api.go: JSMaxSubjectDetails), as JSON. Each event on the retry
// lane has a subject of its own, so a list of 100,000 waiting ones is several
// megabytes and takes a third of a second of CPU time, while their number is in
// every answer and takes a sixth of that: whoever wants only the number asks for
// a page behind the end.

// SubjectCounts counts a stream's messages by subject, for the subjects that
// match filter. Where there are more than one answer holds, messages that come or
// go meanwhile may be in it or not; all others are. Whoever wants to know only how
// many there are calls CountSubjects.
func (b *Broker) SubjectCounts(ctx context.Context, stream, filter string) (map[string]uint64, error) {
	return subjectCounts(pageOverlap, func(offset int) (*streamInfo, error) { return b.ask(ctx, stream, filter, offset) })
}

// Counted is how many subjects match, and what the whole stream holds.
type Counted struct {
	Subjects        uint64
	Messages, Bytes uint64
}

// CountSubjects counts a stream's subjects that match filter, however many there
// are.
func (b *Broker) CountSubjects(ctx context.Context, stream, filter string) (Counted, error) {
	info, err := b.ask(ctx, stream, filter, behindAll)
	if err != nil {
		return Counted{}, err
	}
	return Counted{uint64(info.Total), info.State.Messages, info.State.Bytes}, nil
}

// behindAll is a page that no list of subjects reaches.
const behindAll = math.MaxInt32

// streamInfo is what we read of the server's answer.
type streamInfo struct {
	Error   *jetstream.APIError `json:"error"`
	Total   int                 `json:"total"` // subjects that match
	Created time.Time           `json:"created"`
	State   struct {
		Messages    uint64            `json:"messages"`
		Bytes       uint64            `json:"bytes"`
		FirstSeq    uint64            `json:"first_seq"`
		LastSeq     uint64            `json:"last_seq"`
		NumSubjects uint64            `json:"num_subjects"`
		Subjects    map[string]uint64 `json:"subjects"` // a page of them, in order of their names
	} `json:"state"`
}

// askPatience is how long an answer may take: one of a million subjects takes
// some seconds on a busy machine.
const askPatience = 30 * time.Second

// ask asks for a stream's state and a page of the subjects that match filter; an
// empty one asks for none. The client's own method has no offset.
func (b *Broker) ask(ctx context.Context, stream, filter string, offset int) (*streamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	var req []byte
	if filter != "" {
		var err error
		req, err = json.Marshal(struct {
			Filter string `json:"subjects_filter"`
			Offset int    `json:"offset"`
		}{filter, offset})
		if err != nil {
			return nil, err
		}
	}
	m, err := b.control.RequestWithContext(ctx, "$JS.API.STREAM.INFO."+stream, req)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", stream, err)
	}
	var info streamInfo
	if err := json.Unmarshal(m.Data, &info); err != nil {
		return nil, fmt.Errorf("stream %s: %w", stream, err)
	}
	if info.Error != nil {
		return nil, fmt.Errorf("stream %s: %w", stream, info.Error)
	}
	return &info, nil
}

const (
	// pageOverlap is how many subjects two pages share, so that none is left out
	// because others before it went meanwhile and it moved up.
	pageOverlap = 10_000
	// pagesMost bounds a listing of what changes faster than it can be read.
	pagesMost = 1000
)

// subjectCounts puts pages together. Each must begin no later than the one before
// ended: then whatever was there all the time is in one of them.
func subjectCounts(overlap int, page func(offset int) (*streamInfo, error)) (map[string]uint64, error) {
	all := map[string]uint64{}
	last := ""
	for offset, tries := 0, 0; tries < pagesMost; tries++ {
		info, err := page(offset)
		if err != nil {
			return nil, err
		}
		n := len(info.State.Subjects)
		if offset == 0 && n >= info.Total {
			return info.State.Subjects, nil
		}
		first, end := bounds(info.State.Subjects)
		if offset > 0 && (n == 0 || first > last) {
			offset = max(0, offset-overlap) // more went than pages share
			continue
		}
		maps.Copy(all, info.State.Subjects)
		last = end
		if offset+n >= info.Total {
			return all, nil
		}
		offset = max(offset+n-overlap, offset+1)
	}
	return nil, errors.New("its subjects change faster than they can be listed; try again later")
}

// bounds gives the first and the last in order.
func bounds(subjects map[string]uint64) (first, last string) {
	for s := range subjects {
		if first == "" || s < first {
			first = s
		}
		last = max(last, s)
	}
	return first, last
}

// Retries is how many events a subscriber has on the retry lane.
type Retries struct {
	All    uint64
	Behind uint64 // those of All that wait behind others of their line
}

// retryCounts remembers how many events subscribers have on the retry lane, for as
// long as nothing has changed there.
type retryCounts struct {
	mu   sync.Mutex // guards all below; held while the server is asked
	at   laneState
	of   map[string]Retries
	rest int
	// complete: of knows everybody, and not only those who were asked for.
	complete bool
}

// laneState tells whether a stream has changed: what comes moves last on, and
// what goes, without anything coming, leaves fewer.
type laneState struct {
	created        time.Time
	last, messages uint64
}

// A list takes about 3 µs of CPU time a subject and a count 0.5 µs, but each count
// about 100 µs besides. So up to these numbers of subjects, for few subscribers and
// for each of many, it is less work to list them all than to count each one's.
const (
	listMost     = 5000
	listMostEach = 30
)

// counters is how many subscribers are counted at once: a server that is not in
// this process is a way away.
const counters = 8

// RetryCounts counts the events that some subscribers have on the retry lane. rest
// is how many subjects there are besides; when retries come and go at this moment
// it may be off by those.
func (b *Broker) RetryCounts(ctx context.Context, subscribers []string) (of map[string]Retries, rest int, err error) {
	c := &b.retries
	c.mu.Lock()
	defer c.mu.Unlock()
	info, err := b.ask(ctx, StreamRetry, "", 0)
	if err != nil {
		return nil, 0, err
	}
	at := laneState{info.Created, info.State.LastSeq, info.State.Messages}
	if at != c.at || !c.knows(subscribers) {
		c.at = laneState{} // in case that it fails
		if info.State.NumSubjects <= max(listMost, listMostEach*uint64(len(subscribers))) {
			err = b.listRetries(ctx, c)
		} else {
			err = b.countRetries(ctx, c, subscribers, info.State.NumSubjects)
		}
		if err != nil {
			return nil, 0, err
		}
		c.at = at
	}
	of, rest = make(map[string]Retries, len(subscribers)), c.rest
	for _, name := range subscribers {
		of[name] = c.of[name]
	}
	for name, n := range c.of {
		if _, asked := of[name]; !asked {
			rest += int(n.All)
		}
	}
	return of, rest, nil
}

// knows says whether all of these have been counted. The caller holds mu.
func (c *retryCounts) knows(subscribers []string) bool {
	return c.complete || !slices.ContainsFunc(subscribers, func(name string) bool {
		_, ok := c.of[name]
		return !ok
	})
}

// listRetries counts by a list of all. The caller holds c.mu.
func (b *Broker) listRetries(ctx context.Context, c *retryCounts) error {
	counts, err := b.SubjectCounts(ctx, StreamRetry, subjectRetry+">")
	if err != nil {
		return err
	}
	c.of, c.rest, c.complete = map[string]Retries{}, 0, true
	for subject, n := range counts {
		name := SubscriberOf(subject)
		if name == "" {
			c.rest++
			continue
		}
		r := c.of[name]
		switch {
		case subject == RetryDue(name):
			r.All += n
		case isBehind(subject):
			r.Behind++
			fallthrough
		default: // an event's own, once, even if somebody died while moving it
			r.All++
		}
		c.of[name] = r
	}
	return nil
}

// countRetries counts one after another. The caller holds c.mu.
func (b *Broker) countRetries(ctx context.Context, c *retryCounts, subscribers []string, subjects uint64) error {
	due, err := b.SubjectCounts(ctx, StreamRetry, RetryDue("*"))
	if err != nil {
		return err
	}
	// Hardly ever is there anything behind, because it takes order.
	behind, err := b.CountSubjects(ctx, StreamRetry, subjectRetry+"behind.>")
	if err != nil {
		return err
	}
	c.of, c.rest, c.complete = map[string]Retries{}, int(subjects), false
	var mu sync.Mutex // guards c.of and c.rest
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(counters)
	for _, name := range slices.Compact(slices.Sorted(slices.Values(subscribers))) {
		g.Go(func() error {
			own, err := b.CountSubjects(ctx, StreamRetry, retryOwn(name))
			if err != nil {
				return err
			}
			r, taken := Retries{All: own.Subjects + due[RetryDue(name)]}, int(own.Subjects)
			if due[RetryDue(name)] > 0 {
				taken++
			}
			if behind.Subjects > 0 && own.Subjects > 0 {
				n, err := b.CountSubjects(ctx, StreamRetry, RetryBehindAll(name))
				if err != nil {
					return err
				}
				r.Behind = n.Subjects
			}
			mu.Lock()
			defer mu.Unlock()
			c.of[name] = r
			c.rest -= taken
			return nil
		})
	}
	return g.Wait()
}

// CountRetries counts the events that one subscriber has on the retry lane, and
// what the whole lane holds.
func (b *Broker) CountRetries(ctx context.Context, subscriber string) (events uint64, lane Counted, err error) {
	lane, err = b.CountSubjects(ctx, StreamRetry, retryOwn(subscriber))
	if err != nil {
		return 0, lane, err
	}
	due, err := b.SubjectCounts(ctx, StreamRetry, RetryDue(subscriber))
	return lane.Subjects + due[RetryDue(subscriber)], lane, err
}
