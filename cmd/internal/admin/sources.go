package admin

import (
	"cmp"
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
	// Poll is how polling it goes; nil for a source that is not polled. Of several
	// tables it is what is to be said of the one that fares worst, with the counts of
	// all.
	Poll *poll.Status `json:"poll,omitempty"`
	// Tables are those of a source that has several.
	Tables []poll.Status `json:"tables,omitempty"`
	// Receive is how it is received from a broker; nil for a source that is not.
	Receive *receive.Status `json:"receive,omitempty"`
	// DeadLetters is how those are read back that Event Grid could not deliver; nil for
	// a source that names no container of them.
	DeadLetters *receive.DeadLetterStatus `json:"deadLetters,omitempty"`
	// Complete is how its events are completed; nil for a source whose are not.
	Complete *complete.Status `json:"complete,omitempty"`
}

// Source is one source in full, or one table of it.
type Source struct {
	SourceStatus
	// Table is the one that was asked for.
	Table string `json:"table,omitempty"`
	// Reads says what is polled, and how; nil for a source that is not polled, and for
	// all of one with several tables.
	Reads *config.Reading `json:"reads,omitempty"`
}

// Label names the source, or its table, as commands take it.
func (s *Source) Label() string {
	if s.Table == "" {
		return s.Name
	}
	return s.Name + "/" + s.Table
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
		return s.source(r.Context(), r.PathValue("name"), r.URL.Query().Get("table"))
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
	list, declared := []SourceStatus{}, s.Sources()
	says := "nobody has told yet how polling it goes"
	if s.Ingress == nil {
		list, says = s.elsewhere(ctx), "a router polls it, and can tell how that goes"
	} else {
		for _, src := range s.Ingress.Status() {
			list = append(list, SourceStatus{SourceStatus: src})
		}
		list = withReceived(list, declared.Received, s.Receivers)
	}
	polled := map[string]poll.Status{}
	if len(declared.Polled) > 0 && s.Poller != nil {
		ctx, cancel := context.WithTimeout(ctx, pollStatusWait)
		defer cancel()
		for _, st := range s.Poller.Status(ctx) {
			polled[poll.ID(st.Source, st.Table)] = st
		}
	}
	for _, p := range declared.Polled {
		i := slices.IndexFunc(list, func(o SourceStatus) bool { return o.Name == p.Name })
		if i < 0 {
			i = len(list)
			list = append(list, SourceStatus{SourceStatus: ingress.SourceStatus{
				Name: p.Name, Kind: p.Kind, Environment: p.Environment, Rationale: p.Rationale,
			}})
		}
		list[i].Pattern = string(p.Pattern)
		st, ok := polled[p.ID()]
		if !ok {
			st = poll.Status{Source: p.Name, Table: p.Table, State: poll.Starting, Says: says}
		}
		list[i].Tables = append(list[i].Tables, st)
	}
	var completing map[string]complete.Status
	if s.Completer != nil {
		var err error
		if completing, err = s.Completer.Status(ctx); err != nil {
			s.Log.Debug("how completing goes is not known", "error", err)
		}
	}
	for i := range list {
		switch tables := list[i].Tables; len(tables) {
		case 0:
		case 1:
			list[i].Poll, list[i].Tables = &tables[0], nil
		default:
			list[i].Poll = together(tables)
		}
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
	list, declared := []SourceStatus{}, s.Sources()
	add := func(name, kind, environment, rationale string) {
		if !slices.ContainsFunc(list, func(o SourceStatus) bool { return o.Name == name }) {
			list = append(list, SourceStatus{SourceStatus: ingress.SourceStatus{Name: name, Kind: kind, Environment: environment, Pattern: "push", Rationale: rationale}})
		}
	}
	for _, c := range declared.Pushed {
		add(c.Name, c.Kind, c.Environment, c.Rationale)
	}
	for _, c := range declared.Received {
		add(c.Name, c.Kind, c.Environment, c.Rationale)
	}
	for _, c := range declared.Polled {
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

// worst are the states of a table, the best first.
var worst = []poll.State{
	poll.Polling, poll.Elsewhere, poll.Waiting, poll.Resyncing, poll.Baselining, poll.Starting, poll.HeldOff, poll.Unconfirmed, poll.Failing,
}

// together is what is to be said of several tables: what the one says that fares worst,
// and the counts of all.
func together(tables []poll.Status) *poll.Status {
	sum := slices.MaxFunc(tables, func(a, b poll.Status) int {
		return cmp.Compare(slices.Index(worst, a.State), slices.Index(worst, b.State))
	})
	sum.Says = sum.Table + ": " + sum.Says
	for _, t := range tables {
		if t.Table == sum.Table {
			continue
		}
		sum.Here = sum.Here || t.Here
		sum.Rate += t.Rate
		sum.Requests += t.Requests
		sum.Polls += t.Polls
		sum.EmptyPolls += t.EmptyPolls
		sum.Rows += t.Rows
		sum.Published += t.Published
		sum.Duplicate += t.Duplicate
		sum.Unchanged += t.Unchanged
		sum.Quarantined += t.Quarantined
		sum.Remembered += t.Remembered
		sum.Throttles += t.Throttles
		sum.Lost += t.Lost
		sum.Missing += t.Missing
		sum.Cursor = sum.Cursor && t.Cursor
		if sum.Known >= 0 && t.Known >= 0 {
			sum.Known += t.Known
		} else {
			sum.Known = -1
		}
		if t.Last.Before(sum.Last) {
			sum.Last = t.Last
		}
		if t.Next.Before(sum.Next) && !t.Next.IsZero() || sum.Next.IsZero() {
			sum.Next = t.Next
		}
		if t.Newest.After(sum.Newest) {
			sum.Newest, sum.Freshness = t.Newest, t.Freshness
		}
		if t.Bound.Before(sum.Bound) {
			sum.Bound, sum.BoundAge = t.Bound, t.BoundAge
		}
	}
	return &sum
}

// source gives one source, or with a table's name that alone.
func (s *server) source(ctx context.Context, name, table string) (*Source, error) {
	list, err := s.sources(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list, func(st SourceStatus) bool { return st.Name == name })
	if i < 0 {
		return nil, problem(http.StatusNotFound, "no-such-source", fmt.Sprintf("no source is called %.80q; see gridfan sources list", name))
	}
	src := &Source{SourceStatus: list[i], Table: table}
	tables := s.tables(name)
	if table != "" {
		one := slices.DeleteFunc(slices.Clone(tables), func(p config.Polled) bool { return p.Table != table })
		if len(one) == 0 {
			return nil, noSuchTable(name, table, tables)
		}
		if tables = one; src.Tables != nil {
			of := slices.IndexFunc(src.Tables, func(st poll.Status) bool { return st.Table == table })
			if of < 0 {
				return nil, noSuchTable(name, table, nil) // the configuration has changed meanwhile
			}
			src.Poll, src.Tables = &src.Tables[of], nil
		}
	}
	if len(tables) == 1 {
		src.Reads = tables[0].Reading()
	}
	return src, nil
}

func noSuchTable(name, table string, tables []config.Polled) error {
	var have []string
	for _, p := range tables {
		have = append(have, p.Table)
	}
	text := fmt.Sprintf("of source %.80q no table %.80q is polled", name, table)
	if len(have) > 0 {
		text += ", but " + strings.Join(have, ", ")
	}
	return problem(http.StatusNotFound, "no-such-table", text)
}

// tables are what is polled of a source.
func (s *server) tables(name string) []config.Polled {
	var all []config.Polled
	for _, p := range s.Sources().Polled {
		if p.Name == name {
			all = append(all, p)
		}
	}
	return all
}

// commanded has the Poller do something with a source's tables, or with the one that
// the request names, and gives the source as it is then.
func (s *server) commanded(r *http.Request, name string, do func(ctx context.Context, id string) error) (*Source, error) {
	ctx, table := r.Context(), r.URL.Query().Get("table")
	tables := s.tables(name)
	if len(tables) == 0 {
		if _, err := s.source(ctx, name, ""); err != nil {
			return nil, err
		}
		return nil, problem(http.StatusConflict, "not-polled", fmt.Sprintf("source %s is not polled: it sends its events itself; set its pattern to poll or hybrid, with poll beside it", name))
	}
	done := 0
	for _, p := range tables {
		if table != "" && p.Table != table {
			continue
		}
		err := do(ctx, p.ID())
		if errors.Is(err, poll.ErrNothingToConfirm) && table == "" && len(tables) > 1 {
			continue // of another table, perhaps
		}
		if err != nil {
			return nil, sourceProblem(&p, err)
		}
		done++
	}
	switch {
	case done == 0 && table != "":
		return nil, noSuchTable(name, table, tables)
	case done == 0:
		return nil, sourceProblem(&config.Polled{Config: poll.Config{Name: name, Only: true}}, poll.ErrNothingToConfirm)
	}
	return s.source(ctx, name, table)
}

// sourceProblem words what a Poller says of a command to a table.
func sourceProblem(p *config.Polled, err error) error {
	at := ""
	if !p.Only {
		at = p.Label() + ": "
	}
	fault, isFault := errors.AsType[*poll.Fault](err)
	throttled, isThrottled := errors.AsType[*poll.Throttled](err)
	switch {
	case errors.Is(err, poll.ErrUnknown):
		return problem(http.StatusConflict, "not-polled", at+err.Error()+" by this version of the configuration; see gridfan sources list")
	case errors.Is(err, poll.ErrNobody):
		return problem(http.StatusServiceUnavailable, "nobody-polls", at+err.Error()+"; try again in a minute, and see gridfan sources show")
	case errors.Is(err, poll.ErrCannotRewind):
		return problem(http.StatusConflict, "cannot-rewind", at+err.Error()+"; read all again: gridfan sources rewind "+p.Label()+" --to beginning, or gridfan sources baseline "+p.Label())
	case isFault:
		return problem(http.StatusConflict, "source-"+string(fault.Kind), at+fault.Error())
	case isThrottled:
		return problem(http.StatusServiceUnavailable, "source-throttled", at+throttled.Error())
	}
	return err
}

func (s *server) pollNow(_ http.ResponseWriter, r *http.Request) (any, error) {
	name := r.PathValue("name")
	return s.commanded(r, name, s.Poller.PollNow)
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
	if len(s.tables(name)) == 0 || order.Partition != "" {
		return s.rewindPartitions(r, name, order, to)
	}
	src, err := s.commanded(r, name, func(ctx context.Context, id string) error { return s.Poller.Rewind(ctx, id, to) })
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
	src, err := s.commanded(r, name, func(ctx context.Context, id string) error {
		if order.Confirm {
			return s.Poller.Confirm(ctx, id)
		}
		return s.Poller.Baseline(ctx, id, order.Mode)
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

// Source asks for one, or for one table of it by NAME/TABLE.
func (c *Client) Source(ctx context.Context, name string) (*Source, error) {
	var s Source
	return &s, c.call(ctx, http.MethodGet, sourcePath(name, ""), nil, &s)
}

// PollNow has one polled as soon as that may be, or one table of it by NAME/TABLE.
func (c *Client) PollNow(ctx context.Context, name string) (*Source, error) {
	var s Source
	return &s, c.call(ctx, http.MethodPost, sourcePath(name, "/poll-now"), nil, &s)
}

// Rewind has one, or one table by NAME/TABLE, read again from a time, from
// FromBeginning, or from an event on.
func (c *Client) Rewind(ctx context.Context, name string, order RewindOrder) (*Source, error) {
	var s Source
	return &s, c.call(ctx, http.MethodPost, sourcePath(name, "/rewind"), order, &s)
}

// Baseline has all rows of one, or of one table by NAME/TABLE, read again, or confirms
// what the last time found.
func (c *Client) Baseline(ctx context.Context, name string, order BaselineOrder) (*Source, error) {
	var s Source
	return &s, c.call(ctx, http.MethodPost, sourcePath(name, "/baseline"), order, &s)
}

// sourcePath is the path of a source, or of its table, and what is to be done with it.
func sourcePath(name, do string) string {
	name, table, of := strings.Cut(name, "/")
	path := "/api/v1/sources/" + url.PathEscape(name) + do
	if of {
		path += "?table=" + url.QueryEscape(table)
	}
	return path
}
