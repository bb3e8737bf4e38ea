package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/router/receive"
)

// withReceived adds how sources are received, those that nobody pushes to, and how
// dead letters are read back. The counts of a source are those of all its ways.
func withReceived(list []SourceStatus, configured []receive.Source, receivers *receive.Receivers) []SourceStatus {
	find := func(name string) int {
		return slices.IndexFunc(list, func(s SourceStatus) bool { return s.Name == name })
	}
	for _, st := range receivers.Status() {
		i := find(st.Source)
		if i < 0 {
			i = len(list)
			list = append(list, SourceStatus{SourceStatus: ingress.SourceStatus{Name: st.Source, Pattern: "push"}})
			if c := slices.IndexFunc(configured, func(s receive.Source) bool { return s.Name == st.Source }); c >= 0 {
				list[i].Kind, list[i].Environment, list[i].Rationale = configured[c].Kind, configured[c].Environment, configured[c].Rationale
			}
		}
		list[i].Receive = &st
		list[i].count(st)
	}
	for _, st := range receivers.DeadLetters() {
		i := find(st.Source)
		if i < 0 {
			continue
		}
		list[i].DeadLetters = &st
		if list[i].Receive == nil { // else they are among those
			list[i].count(receivers.Counts(st.Source))
		}
	}
	return list
}

// count adds what a source's receiver has counted.
func (src *SourceStatus) count(st receive.Status) {
	src.Received += st.Received
	src.Published += st.Published
	src.Duplicate += st.Duplicate
	src.Quarantined += st.Quarantined
	src.Control += st.Control
	src.Completing += st.Completing
	if st.LastEvent != nil && (src.LastEvent == nil || src.LastEvent.Before(*st.LastEvent)) {
		src.LastEvent = st.LastEvent
	}
}

// RecoverMost is how many dead letters one order reads back at most, and recoverTime
// how long it may take: answers must come before the listener gives up.
const (
	RecoverMost = 1000
	recoverTime = 40 * time.Second
)

// recover reads dead letters of a source back.
func (s *server) recover(_ http.ResponseWriter, r *http.Request) (any, error) {
	dryRun := false
	if text := r.URL.Query().Get("dryRun"); text != "" {
		var err error
		if dryRun, err = strconv.ParseBool(text); err != nil {
			return nil, problem(http.StatusBadRequest, "bad-selection", "dryRun: want true or false")
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), recoverTime)
	defer cancel()
	name := r.PathValue("name")
	out, err := s.Receivers.Recover(ctx, name, dryRun, RecoverMost)
	var f *receive.Fault
	switch {
	case errors.Is(err, receive.ErrUnknown):
		return nil, problem(http.StatusNotFound, "no-such-source", fmt.Sprintf("%.80q: %v; see gridfan sources list", name, err))
	case errors.Is(err, receive.ErrBusy):
		return nil, problem(http.StatusServiceUnavailable, "busy", fmt.Sprintf("%.80q: %v", name, err))
	case errors.Is(err, receive.ErrNoDeadLetters):
		return nil, problem(http.StatusConflict, "no-dead-letters", fmt.Sprintf("%.80q: %v", name, err))
	case errors.As(err, &f):
		return nil, problem(http.StatusBadGateway, "source-failing", f.Error())
	}
	return out, err
}

// rewindPartitions has partitions of a source's event hub read again.
func (s *server) rewindPartitions(r *http.Request, name string, order RewindOrder, to time.Time) (any, error) {
	if order.Partition == "" {
		order.Partition = receive.AllPartitions
	}
	err := s.Receivers.Rewind(r.Context(), name, order.Partition, receive.Position{Time: to, Sequence: order.Sequence})
	switch {
	case errors.Is(err, receive.ErrUnknown):
		// Of no such name, or one that is neither polled nor received.
		return s.commanded(r, name, func(context.Context, string) error { return err })
	case errors.Is(err, receive.ErrNoPositions):
		return nil, problem(http.StatusConflict, "cannot-rewind", fmt.Sprintf("%.80q: %v", name, err))
	case errors.Is(err, receive.ErrNoPartition):
		return nil, problem(http.StatusConflict, "no-such-partition", fmt.Sprintf("%.80q: %v; see gridfan sources show %s", order.Partition, err, name))
	case err != nil:
		return nil, err
	}
	return s.source(r.Context(), name, "")
}

// Recover reads dead letters of a source back, up to RecoverMost of them.
func (c *Client) Recover(ctx context.Context, name string, dryRun bool) (*receive.Recovery, error) {
	var out receive.Recovery
	return &out, c.call(ctx, http.MethodPost, sourcePath(name, "/recover")+"?dryRun="+strconv.FormatBool(dryRun), nil, &out)
}
