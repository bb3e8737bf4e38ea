package deliver

import (
	"context"
	"strconv"
	"strings"

	"github.com/gridfan/gridfan/infra/broker"
)

// leftovers are the events that had a message of their own on the retry lane when a
// worker began. A process that died between storing a retry and recording it leaves
// one for an event that comes once more.
//
// A cursor made anew hands out hundreds of events of which it is not known whether
// they came before. To ask the broker about each of them cost more than to deliver
// it.
type leftovers map[uint64]bool

// leftoversMost bounds what is listed, and remembered, at a start.
const leftoversMost = 20_000

// findLeftovers lists them, before anything is fetched.
func (w *worker) findLeftovers(ctx context.Context) error {
	if w.lanes[0].early == 0 && w.lanes[1].early == 0 {
		return nil // nothing comes that it would be asked about
	}
	b, name := w.parts.Broker, w.sub.Name
	_, lane, err := b.CountRetries(ctx, name)
	if err != nil || lane.Subjects > leftoversMost {
		return err
	}
	of := leftovers{}
	if lane.Subjects > 0 {
		for _, pattern := range []string{broker.RetryWaitingAll(name), broker.RetryBehindAll(name)} {
			subjects, err := b.SubjectCounts(ctx, broker.StreamRetry, pattern)
			if err != nil {
				return err
			}
			for subject := range subjects {
				number, _, _ := strings.Cut(strings.TrimPrefix(subject, strings.TrimSuffix(pattern, ">")), ".")
				if sequence, err := strconv.ParseUint(number, 10, 64); err == nil {
					of[sequence] = true
				}
			}
		}
	}
	w.leftovers.Store(&of)
	return nil
}

// mayWait says whether an event may have a message on the retry lane already, of a
// process that did not record it.
func (w *worker) mayWait(d *delivery) bool {
	if !d.repeat {
		return false
	}
	l := w.leftovers.Load()
	return l == nil || d.again() || (*l)[d.origin.sequence]
}
