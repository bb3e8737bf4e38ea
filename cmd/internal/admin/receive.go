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

// withReceived adds how sources are received, and those that nobody pushes to. The
// counts of a source are those of both its ways.
func withReceived(list []SourceStatus, configured []receive.Source, received []receive.Status) []SourceStatus {
	for _, st := range received {
		i := slices.IndexFunc(list, func(s SourceStatus) bool { return s.Name == st.Source })
		if i < 0 {
			i = len(list)
			list = append(list, SourceStatus{SourceStatus: ingress.SourceStatus{Name: st.Source, Pattern: "push"}})
			if c := slices.IndexFunc(configured, func(s receive.Source) bool { return s.Name == st.Source }); c >= 0 {
				list[i].Kind, list[i].Environment, list[i].Rationale = configured[c].Kind, configured[c].Environment, configured[c].Rationale
			}
		}
		src := &list[i]
		src.Receive = &st
		src.Received += st.Received
		src.Published += st.Published
		src.Duplicate += st.Duplicate
		src.Quarantined += st.Quarantined
		src.Control += st.Control
		if st.LastEvent != nil && (src.LastEvent == nil || src.LastEvent.Before(*st.LastEvent)) {
			src.LastEvent = st.LastEvent
		}
	}
	return list
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
	case errors.Is(err, receive.ErrNoDeadLetters):
		return nil, problem(http.StatusConflict, "no-dead-letters", fmt.Sprintf("%.80q: %v", name, err))
	case errors.As(err, &f):
		return nil, problem(http.StatusBadGateway, "source-failing", f.Error())
	}
	return out, err
}

// Recover reads dead letters of a source back, up to RecoverMost of them.
func (c *Client) Recover(ctx context.Context, name string, dryRun bool) (*receive.Recovery, error) {
	var out receive.Recovery
	return &out, c.call(ctx, http.MethodPost, sourcePath(name, "/recover")+"?dryRun="+strconv.FormatBool(dryRun), nil, &out)
}
