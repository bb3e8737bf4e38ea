package deadletters

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// History is what the records tell of one event and one subscriber.
type History struct {
	Records []deliver.Record `json:"records"`
	// Complete: everything that is still there was read. ATTEMPTS forgets its
	// oldest when it is full.
	Complete bool `json:"complete"`
}

// What is skipped, and how long is looked, on the way from one record of an
// event to the next.
const (
	historyTime = 10 * time.Second
	// A record says when the next attempt is due. Wherever that is further off
	// than leap, what lies between is skipped; early covers clocks that differ.
	leap  = 30 * time.Second
	early = 5 * time.Second
	// A record is stored soon after it was made, also on a busy disk.
	late = time.Minute
)

// history reads the records of one event for one subscriber that were made from
// one time to another. It stops early, without an error, when there is no time
// left.
func (s *Store) history(ctx context.Context, subscriber string, sequence uint64, since, until time.Time) (History, error) {
	h := History{Records: []deliver.Record{}}
	ctx, cancel := context.WithTimeout(ctx, historyTime)
	defer cancel()
	r := s.blocks(1)
	if !since.IsZero() {
		r.from, r.since = 0, since.Add(-early)
	}
	defer func() { r.close() }()
	needle := needle(subscriber, sequence)
	for {
		m, err := r.next(ctx)
		switch {
		case ctx.Err() != nil:
			return h, nil
		case err != nil:
			return h, err
		case m == nil, m.time.After(until.Add(late)):
			h.Complete = true
			return h, nil
		}
		found, err := records(m.data, needle)
		if err != nil {
			return h, err
		}
		h.Records = append(h.Records, found...)
		if len(found) == 0 {
			continue
		}
		if next := found[len(found)-1].Next; next != nil && next.Sub(m.time) > leap {
			r.close()
			r = s.blocks(0)
			r.since = next.Add(-early)
		}
	}
}

// blocks reads ATTEMPTS from a sequence on.
func (s *Store) blocks(from uint64) *source {
	return &source{js: s.js, stream: broker.StreamAttempts, subjects: []string{broker.Attempts(">")}, from: from}
}

// needle is how every record of one event for one subscriber begins, and no
// other: deliver.Record's fields come in their order.
func needle(subscriber string, sequence uint64) []byte {
	name, _ := json.Marshal(subscriber) // a string: it cannot fail
	return fmt.Appendf(nil, `{"subscriber":%s,"seq":%d,"hop":`, name, sequence)
}

// records decodes the lines of a block that begin with the needle.
func records(block, needle []byte) ([]deliver.Record, error) {
	if !bytes.Contains(block, needle) {
		return nil, nil
	}
	var found []deliver.Record
	for line := range bytes.Lines(block) {
		if !bytes.HasPrefix(line, needle) {
			continue
		}
		r, err := deliver.ParseRecords(line)
		if err != nil {
			return found, err
		}
		found = append(found, r...)
	}
	return found, nil
}
