package admin

import (
	"slices"

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
