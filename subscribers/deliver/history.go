package deliver

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
)

// History is what the ATTEMPTS stream tells of one subscriber, newest first.
type History struct {
	Records []Record
	// Since is how far back was read. ATTEMPTS forgets its oldest when it is
	// full.
	Since time.Time
	// Complete: everything that is still there was read.
	Complete bool
}

// ReadHistory reads the records of a subscriber with an outcome, at most limit
// of them. It stops early, without an error, when ctx ends.
func ReadHistory(ctx context.Context, b *broker.Broker, subscriber, outcome string, limit int) (History, error) {
	h := History{Since: time.Now()}
	s, err := b.JetStream().Stream(ctx, broker.StreamAttempts)
	if err != nil {
		return h, err
	}
	state := s.CachedInfo().State
	// Most blocks have nothing of it, and a search is quicker than decoding.
	needle := []byte(`"outcome":"` + outcome + `"`)
	for seq := state.LastSeq; seq >= state.FirstSeq && seq > 0; seq-- {
		m, err := s.GetMsg(ctx, seq)
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
			continue
		case ctx.Err() != nil:
			return h, nil
		case err != nil:
			return h, err
		}
		h.Since = m.Time
		if !bytes.Contains(m.Data, needle) {
			continue
		}
		records, err := ParseRecords(m.Data)
		if err != nil {
			return h, err
		}
		for i := len(records) - 1; i >= 0; i-- {
			if r := records[i]; r.Subscriber == subscriber && r.Outcome == outcome {
				if len(h.Records) == limit {
					return h, nil
				}
				h.Records = append(h.Records, r)
			}
		}
	}
	h.Complete = true
	return h, nil
}
