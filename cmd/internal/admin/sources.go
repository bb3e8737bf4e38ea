package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/complete"
	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/receive"
)

// SourceStatus is a source with what it has in quarantine.
type SourceStatus struct {
	ingress.SourceStatus
	// InQuarantine counts the entries there now, whenever they came.
	InQuarantine int `json:"inQuarantine"`
	// Poll is how polling it goes; nil for a source that is not polled.
	Poll *poll.Status `json:"poll,omitempty"`
	// Receive is how it is received from a broker; nil for a source that is not.
	Receive *receive.Status `json:"receive,omitempty"`
	// DeadLetters is how those are read back that Event Grid could not deliver; nil for
	// a source that names no container of them.
	DeadLetters *receive.DeadLetterStatus `json:"deadLetters,omitempty"`
	// Complete is how its events are completed; nil for a source whose are not.
	Complete *complete.Status `json:"complete,omitempty"`
}

// Source is one source in full.
type Source struct {
	SourceStatus
	// Reads says what is polled, and how; nil for a source that is not polled.
	Reads *config.Reading `json:"reads,omitempty"`
}

// RewindOrder is the body of POST /api/v1/sources/{name}/rewind.
type RewindOrder struct {
	// To is a time (RFC 3339), or "beginning".
	To string `json:"to,omitempty"`
	// Partition is one of an event hub's, or receive.AllPartitions, which is what
	// none means.
	Partition string `json:"partition,omitempty"`
	// Sequence takes the place of To: the number of the first event of Partition to
	// be read again.
	Sequence *int64 `json:"sequence,omitempty"`
}

// FromBeginning is RewindOrder.To for all there is.
const FromBeginning = "beginning"

// BaselineOrder is the body of POST /api/v1/sources/{name}/baseline.
type BaselineOrder struct {
	// Mode says what becomes of the rows: compare (publish what differs from what
	// is known, the default), publish (all) or silent (none).
	Mode poll.Baseline `json:"mode,omitempty"`
	// Confirm says of a source whose state is unconfirmed that its missing rows are
	// deleted. It excludes Mode.
	Confirm bool `json:"confirm,omitempty"`
}

func (s *server) sourceRoutes(api *routes) {
	api.Handle("GET /api/v1/sources", handle(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		list, err := s.sources(r.Context())
		return map[string]any{"sources": list}, err
	}))
	api.Handle("GET /api/v1/sources/{name}", handle(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return s.source(r.Context(), r.PathValue("name"))
	}))
	api.Handle("POST /api/v1/sources/{name}/poll-now", s.takesIn(s.pollNow))
	api.Handle("POST /api/v1/sources/{name}/rewind", s.takesIn(s.rewind))
	api.Handle("POST /api/v1/sources/{name}/baseline", s.takesIn(s.baseline))
	api.Handle("POST /api/v1/sources/{name}/recover", s.takesIn(s.recover))
}

// sources lists all sources by name. Without a broker it tells what this process
// knows.
func (s *server) sources(ctx context.Context) ([]SourceStatus, error) {
	held := map[string]uint64{}
	if s.Broker.Health(ctx) == nil {
		var err error
		if held, err = s.Broker.SubjectCounts(ctx, broker.StreamQuarantine, broker.Quarantine("*")); err != nil {
			return nil, err
		}
	}
	return s.withSources(ctx, held), nil
}

// pollStatusWait is how long other processes are waited for that poll a source.
const pollStatusWait = 3 * time.Second

// withSources is sources, with what is in quarantine by subject.
func (s *server) withSources(ctx context.Context, held map[string]uint64) []SourceStatus {
	list := []SourceStatus{}
	says := "nobody has told yet how polling it goes"
	if s.Ingress == nil {
		list, says = s.elsewhere(ctx), "a router polls it, and can tell how that goes"
	} else {
		for _, src := range s.Ingress.Status() {
			list = append(list, SourceStatus{SourceStatus: src})
		}
		list = withReceived(list, s.Received, s.Receivers)
	}
	polled := map[string]*poll.Status{}
	if len(s.Polled) > 0 && s.Poller != nil {
		ctx, cancel := context.WithTimeout(ctx, pollStatusWait)
		defer cancel()
		for _, st := range s.Poller.Status(ctx) {
			polled[st.Source] = &st
		}
	}
	for _, p := range s.Polled {
		i := slices.IndexFunc(list, func(o SourceStatus) bool { return o.Name == p.Name })
		if i < 0 {
			i = len(list)
			list = append(list, SourceStatus{SourceStatus: ingress.SourceStatus{
				Name: p.Name, Kind: p.Kind, Environment: p.Environment, Rationale: p.Rationale,
			}})
		}
		list[i].Pattern = string(p.Pattern)
		list[i].Poll = polled[p.Name]
		if list[i].Poll == nil {
			list[i].Poll = &poll.Status{Source: p.Name, State: poll.Starting, Says: says}
		}
	}
	var completing map[string]complete.Status
	if s.Completer != nil {
		var err error
		if completing, err = s.Completer.Status(ctx); err != nil {
			s.Log.Debug("how completing goes is not known", "error", err)
		}
	}
	for i := range list {
		if st, ok := completing[list[i].Name]; ok {
			list[i].Complete = &st
		}
		list[i].InQuarantine = int(held[broker.Quarantine(list[i].Name)])
	}
	slices.SortFunc(list, func(a, b SourceStatus) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// elsewhere lists the sources whose events other processes take in. What those have
// counted is in the books.
func (s *server) elsewhere(ctx context.Context) []SourceStatus {
	list := []SourceStatus{}
	add := func(name, kind, environment, rationale string) {
		if !slices.ContainsFunc(list, func(o SourceStatus) bool { return o.Name == name }) {
			list = append(list, SourceStatus{SourceStatus: ingress.SourceStatus{Name: name, Kind: kind, Environment: environment, Pattern: "push", Rationale: rationale}})
		}
	}
	for _, c := range s.Pushed {
		add(c.Name, c.Kind, c.Environment, c.Rationale)
	}
	for _, c := range s.Received {
		add(c.Name, c.Kind, c.Environment, c.Rationale)
	}
	for _, c := range s.Polled {
		add(c.Name, c.Kind, c.Environment, c.Rationale)
	}
	if s.Books == nil {
		return list
	}
	counted, err := s.Books.SourceTallies(ctx)
	if err != nil {
		s.Log.Debug("what the routers have counted is not known", "error", err)
		return list
	}
	for i := range list {
		n := counted[list[i].Name]
		list[i].Received, list[i].Published, list[i].Duplicate, list[i].Quarantined, list[i].Control = n.Received, n.Published, n.Duplicate, n.Quarantined, n.Control
	}
	return list
}

func (s *server) source(ctx context.Context, name string) (*Source, error) {
	list, err := s.sources(ctx)
	if err != nil {
		return nil, err
	}
	for _, st := range list {
		if st.Name != name {
			continue
		}
		src := &Source{SourceStatus: st}
		if p := s.polled(name); p != nil {
			src.Reads = p.Reading()
		}
		return src, nil
	}
	return nil, problem(http.StatusNotFound, "no-such-source", fmt.Sprintf("no source is called %.80q; see gridfan sources list", name))
}

func (s *server) polled(name string) *config.Polled {
	for i := range s.Polled {
		if s.Polled[i].Name == name {
			return &s.Polled[i]
		}
	}
	return nil
}

// commanded has the Poller do something with a source, and gives the source as it
// is then.
func (s *server) commanded(ctx context.Context, name string, do func() error) (*Source, error) {
	if s.polled(name) == nil {
		if _, err := s.source(ctx, name); err != nil {
			return nil, err
		}
		return nil, problem(http.StatusConflict, "not-polled", fmt.Sprintf("source %s is not polled: it sends its events itself; set its pattern to poll or hybrid, with poll beside it", name))
	}
	if err := do(); err != nil {
		return nil, sourceProblem(err)
	}
	return s.source(ctx, name)
}

// sourceProblem words what a Poller says of a command.
func sourceProblem(err error) error {
	fault, isFault := errors.AsType[*poll.Fault](err)
	throttled, isThrottled := errors.AsType[*poll.Throttled](err)
	switch {
	case errors.Is(err, poll.ErrUnknown):
		return problem(http.StatusConflict, "not-polled", err.Error()+" by this version of the configuration; see gridfan sources list")
	case errors.Is(err, poll.ErrNobody):
		return problem(http.StatusServiceUnavailable, "nobody-polls", err.Error()+"; try again in a minute, and see gridfan sources show")
	case errors.Is(err, poll.ErrCannotRewind):
		return problem(http.StatusConflict, "cannot-rewind", err.Error()+"; read all again: gridfan sources rewind NAME --to beginning, or gridfan sources baseline NAME")
	case isFault:
		return problem(http.StatusConflict, "source-"+string(fault.Kind), fault.Error())
	case isThrottled:
		return problem(http.StatusServiceUnavailable, "source-throttled", throttled.Error())
	}
	return err
}

func (s *server) pollNow(_ http.ResponseWriter, r *http.Request) (any, error) {
	name := r.PathValue("name")
	return s.commanded(r.Context(), name, func() error { return s.Poller.PollNow(r.Context(), name) })
}

func (s *server) rewind(w http.ResponseWriter, r *http.Request) (any, error) {
	name := r.PathValue("name")
	var order RewindOrder
	if err := readOrder(w, r, &order); err != nil {
		return nil, err
	}
	var to time.Time
	switch {
	case order.Sequence != nil:
		switch {
		case order.To != "":
			return nil, problem(http.StatusBadRequest, "bad-parameter", "sequence and to exclude each other: send one of them")
		case *order.Sequence < 0:
			return nil, problem(http.StatusBadRequest, "bad-parameter", fmt.Sprintf("sequence: want 0 or more, got %d", *order.Sequence))
		case order.Partition == "" || order.Partition == receive.AllPartitions:
			return nil, problem(http.StatusBadRequest, "bad-parameter", "partition: missing; each counts for itself, so a sequence number is one partition's")
		}
	case order.To != FromBeginning:
		var err error
		if to, err = time.Parse(time.RFC3339, order.To); err != nil || to.IsZero() {
			return nil, problem(http.StatusBadRequest, "bad-parameter", fmt.Sprintf("to: want a time as in %s, or %q, got %.80q", time.Now().UTC().Format(time.RFC3339), FromBeginning, order.To))
		}
		if to.After(time.Now()) {
			return nil, problem(http.StatusBadRequest, "bad-parameter", fmt.Sprintf("to: %s is still to come: what changes until then would be skipped", order.To))
		}
	}
	// What is polled and received is polled again, unless a partition is named.
	if s.polled(name) == nil || order.Partition != "" {
		return s.rewindPartitions(r.Context(), name, order, to)
	}
	src, err := s.commanded(r.Context(), name, func() error { return s.Poller.Rewind(r.Context(), name, to) })
	if err == nil {
		s.Log.Info("source rewound", "source", name, "to", order.To)
	}
	return src, err
}

func (s *server) baseline(w http.ResponseWriter, r *http.Request) (any, error) {
	name := r.PathValue("name")
	var order BaselineOrder
	if err := readOrder(w, r, &order); err != nil {
		return nil, err
	}
	switch {
	case order.Confirm && order.Mode != "":
		return nil, problem(http.StatusBadRequest, "bad-parameter", "confirm answers a question that polling has asked, and mode begins anew: send one of them")
	case order.Mode == "":
		order.Mode = poll.Compare
	case !slices.Contains([]poll.Baseline{poll.Silent, poll.Publish, poll.Compare}, order.Mode):
		return nil, problem(http.StatusBadRequest, "bad-parameter", fmt.Sprintf("mode: want %s, %s or %s, got %.40q", poll.Compare, poll.Publish, poll.Silent, order.Mode))
	}
	src, err := s.commanded(r.Context(), name, func() error {
		if order.Confirm {
			return s.Poller.Confirm(r.Context(), name)
		}
		return s.Poller.Baseline(r.Context(), name, order.Mode)
	})
	if err == nil {
		s.Log.Info("source is read again from the beginning", "source", name, "mode", order.Mode, "confirmed", order.Confirm)
	}
	return src, err
}

// Sources lists all sources by name.
func (c *Client) Sources(ctx context.Context) ([]SourceStatus, error) {
	var list struct{ Sources []SourceStatus }
	err := c.call(ctx, http.MethodGet, "/api/v1/sources", nil, &list)
	return list.Sources, err
}

// Source asks for one.
func (c *Client) Source(ctx context.Context, name string) (*Source, error) {
	var s Source
	return &s, c.call(ctx, http.MethodGet, sourcePath(name), nil, &s)
}

// PollNow has one polled as soon as that may be.
func (c *Client) PollNow(ctx context.Context, name string) (*Source, error) {
	var s Source
	return &s, c.call(ctx, http.MethodPost, sourcePath(name)+"/poll-now", nil, &s)
}

// Rewind has one read again from a time, from FromBeginning, or from an event on.
func (c *Client) Rewind(ctx context.Context, name string, order RewindOrder) (*Source, error) {
	var s Source
	return &s, c.call(ctx, http.MethodPost, sourcePath(name)+"/rewind", order, &s)
}

// Baseline has all rows of one read again, or confirms what the last time found.
func (c *Client) Baseline(ctx context.Context, name string, order BaselineOrder) (*Source, error) {
	var s Source
	return &s, c.call(ctx, http.MethodPost, sourcePath(name)+"/baseline", order, &s)
}

func sourcePath(name string) string { return "/api/v1/sources/" + url.PathEscape(name) }
