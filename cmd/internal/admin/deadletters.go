package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/gridfan/gridfan/subscribers/deadletters"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// LetterList is the answer to GET /api/v1/subscribers/{name}/deadletters.
type LetterList struct {
	DeadLetters []deadletters.Letter `json:"deadLetters"`
	// Next is the parameter after for the next page; 0 on the last one.
	Next uint64 `json:"next,omitempty"`
}

// LetterOrder is the body of POST …/deadletters/redrive and …/deadletters/drop.
type LetterOrder struct {
	deadletters.Selection
	// Rate is the most in a time, as in "200/s"; without it they go as fast as
	// the subscriber takes them. Dropping has none.
	Rate   *deliver.Rate `json:"rate,omitempty"`
	DryRun bool          `json:"dryRun,omitempty"`
}

// ReplayOrder is the body of POST /api/v1/subscribers/{name}/replay.
type ReplayOrder struct {
	deadletters.Range
	Rate   *deliver.Rate `json:"rate,omitempty"`
	DryRun bool          `json:"dryRun,omitempty"`
}

// Ordered is the answer to an order.
type Ordered struct {
	// Job works on it; nil for a dry run, and when there is nothing to do.
	Job *deadletters.Job `json:"job"`
	// Preview is the answer to a dry run.
	Preview *deadletters.Preview `json:"preview,omitempty"`
	// Notes say what else to know.
	Notes []string `json:"notes,omitempty"`
}

// lookTime bounds how long is looked through dead letters or events: an answer
// that says that it is not complete is better than none.
const lookTime = 15 * time.Second

func (s *server) deadLetterRoutes(api *routes) {
	api.Handle("GET /api/v1/deadletters", handle(s.letterGroups))
	api.Handle("GET /api/v1/subscribers/{name}/deadletters", handle(s.letterList))
	api.Handle("GET /api/v1/subscribers/{name}/deadletters/{sequence}", handle(s.letterShow))
	api.Handle("POST /api/v1/subscribers/{name}/deadletters/redrive", handle(s.letterRedrive))
	api.Handle("POST /api/v1/subscribers/{name}/deadletters/drop", handle(s.letterDrop))
	api.Handle("POST /api/v1/subscribers/{name}/replay", handle(s.replay))
	api.Handle("GET /api/v1/jobs", handle(s.jobList))
	api.Handle("GET /api/v1/jobs/{id}", handle(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return s.DeadLetters.Job(r.Context(), r.PathValue("id"))
	}))
	api.Handle("POST /api/v1/jobs/{id}/stop", handle(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return s.DeadLetters.Stop(r.Context(), r.PathValue("id"))
	}))
	api.Handle("POST /api/v1/jobs/{id}/resume", handle(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return s.DeadLetters.Resume(r.Context(), r.PathValue("id"))
	}))
}

func (s *server) letterGroups(_ http.ResponseWriter, r *http.Request) (any, error) {
	name := r.URL.Query().Get("subscriber")
	if name != "" {
		if _, err := s.Registry.Get(r.Context(), name); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), lookTime)
	defer cancel()
	return s.DeadLetters.Groups(ctx, name)
}

func (s *server) letterList(_ http.ResponseWriter, r *http.Request) (any, error) {
	q := r.URL.Query()
	after, limit, err := page(r)
	if err != nil {
		return nil, err
	}
	sel := deadletters.Selection{Cause: q.Get("cause"), Reason: q.Get("reason"), Filter: q.Get("filter")}
	for name, dst := range map[string]*time.Time{"since": &sel.Since, "until": &sel.Until} {
		if v := q.Get(name); v != "" {
			t, err := time.Parse(time.RFC3339Nano, v)
			if err != nil {
				return nil, problem(http.StatusBadRequest, "bad-parameter", name+": want a time as in 2026-11-01T10:00:00Z")
			}
			*dst = t
		}
	}
	letters, err := s.DeadLetters.List(r.Context(), r.PathValue("name"), sel, after, limit)
	list := LetterList{DeadLetters: letters}
	if len(letters) == limit {
		list.Next = letters[len(letters)-1].Sequence
	}
	return list, err
}

func (s *server) letterShow(_ http.ResponseWriter, r *http.Request) (any, error) {
	seq, err := strconv.ParseUint(r.PathValue("sequence"), 10, 63)
	if err != nil {
		return nil, problem(http.StatusBadRequest, "bad-parameter", "a dead letter is named by its number")
	}
	return s.DeadLetters.Show(r.Context(), r.PathValue("name"), seq)
}

// readOrder reads the body of an order.
func readOrder(w http.ResponseWriter, r *http.Request, order any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxDefinition))
	dec.DisallowUnknownFields()
	if err := dec.Decode(order); err != nil {
		return problem(http.StatusBadRequest, "bad-selection", "the body is no order: "+err.Error())
	}
	return nil
}

// rateOf gives the rate of an order; 0 is no way to say "slowly".
func rateOf(rate *deliver.Rate) (deliver.Rate, error) {
	switch {
	case rate == nil:
		return 0, nil
	case *rate <= 0:
		return 0, problem(http.StatusBadRequest, "bad-selection", "rate: want more than 0, as in 200/s; pause the subscriber to hold everything back")
	}
	return *rate, nil
}

func (s *server) letterRedrive(w http.ResponseWriter, r *http.Request) (any, error) {
	var order LetterOrder
	if err := readOrder(w, r, &order); err != nil {
		return nil, err
	}
	rate, err := rateOf(order.Rate)
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	if order.DryRun {
		return s.letterPreview(r.Context(), name, order.Selection)
	}
	job, err := s.DeadLetters.Redrive(r.Context(), name, order.Selection, rate)
	if err != nil {
		return nil, err
	}
	notes, err := s.DeadLetters.Notes(r.Context(), name)
	return Ordered{Job: job, Notes: notes}, err
}

func (s *server) letterPreview(ctx context.Context, name string, sel deadletters.Selection) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	p, err := s.DeadLetters.Preview(ctx, name, sel)
	return Ordered{Preview: &p, Notes: p.Notes}, err
}

func (s *server) letterDrop(w http.ResponseWriter, r *http.Request) (any, error) {
	var order LetterOrder
	if err := readOrder(w, r, &order); err != nil {
		return nil, err
	}
	if order.Rate != nil {
		return nil, problem(http.StatusBadRequest, "bad-selection", "rate: dropping has none")
	}
	if order.DryRun {
		return s.letterPreview(r.Context(), r.PathValue("name"), order.Selection)
	}
	job, err := s.DeadLetters.Drop(r.Context(), r.PathValue("name"), order.Selection)
	return Ordered{Job: job}, err
}

func (s *server) replay(w http.ResponseWriter, r *http.Request) (any, error) {
	var order ReplayOrder
	if err := readOrder(w, r, &order); err != nil {
		return nil, err
	}
	rate, err := rateOf(order.Rate)
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	if order.DryRun {
		ctx, cancel := context.WithTimeout(r.Context(), lookTime)
		defer cancel()
		p, err := s.DeadLetters.PreviewReplay(ctx, name, order.Range)
		return Ordered{Preview: &p, Notes: p.Notes}, err
	}
	job, notes, err := s.DeadLetters.Replay(r.Context(), name, order.Range, rate)
	return Ordered{Job: job, Notes: notes}, err
}

func (s *server) jobList(_ http.ResponseWriter, r *http.Request) (any, error) {
	jobs, err := s.DeadLetters.Jobs(r.Context())
	return map[string]any{"jobs": jobs}, err
}

// DeadLetterGroups counts the dead letters of one subscriber, or of all for an
// empty name, by what went wrong.
func (c *Client) DeadLetterGroups(ctx context.Context, subscriber string) (*deadletters.Groups, error) {
	p := "/api/v1/deadletters"
	if subscriber != "" {
		p += "?" + url.Values{"subscriber": {subscriber}}.Encode()
	}
	var g deadletters.Groups
	return &g, c.call(ctx, http.MethodGet, p, nil, &g)
}

// DeadLetters lists those of one subscriber; see deadletters.Store.List.
func (c *Client) DeadLetters(ctx context.Context, subscriber string, sel deadletters.Selection, after uint64, limit int) (*LetterList, error) {
	q := url.Values{"limit": {strconv.Itoa(limit)}, "after": {strconv.FormatUint(after, 10)}}
	for name, value := range map[string]string{"cause": sel.Cause, "reason": sel.Reason, "filter": sel.Filter} {
		if value != "" {
			q.Set(name, value)
		}
	}
	for name, value := range map[string]time.Time{"since": sel.Since, "until": sel.Until} {
		if !value.IsZero() {
			q.Set(name, value.Format(time.RFC3339Nano))
		}
	}
	var list LetterList
	return &list, c.call(ctx, http.MethodGet, path(subscriber)+"/deadletters?"+q.Encode(), nil, &list)
}

// DeadLetter asks for one with all that is known of it.
func (c *Client) DeadLetter(ctx context.Context, subscriber string, sequence uint64) (*deadletters.Detail, error) {
	var d deadletters.Detail
	return &d, c.call(ctx, http.MethodGet, path(subscriber)+"/deadletters/"+strconv.FormatUint(sequence, 10), nil, &d)
}

// RedriveDeadLetters sends dead letters out anew.
func (c *Client) RedriveDeadLetters(ctx context.Context, subscriber string, order LetterOrder) (*Ordered, error) {
	var o Ordered
	return &o, c.call(ctx, http.MethodPost, path(subscriber)+"/deadletters/redrive", order, &o)
}

// DropDeadLetters deletes dead letters for good.
func (c *Client) DropDeadLetters(ctx context.Context, subscriber string, order LetterOrder) (*Ordered, error) {
	var o Ordered
	return &o, c.call(ctx, http.MethodPost, path(subscriber)+"/deadletters/drop", order, &o)
}

// Replay sends stored events once more.
func (c *Client) Replay(ctx context.Context, subscriber string, order ReplayOrder) (*Ordered, error) {
	var o Ordered
	return &o, c.call(ctx, http.MethodPost, path(subscriber)+"/replay", order, &o)
}

// Jobs lists jobs, newest first.
func (c *Client) Jobs(ctx context.Context) ([]deadletters.Job, error) {
	var list struct{ Jobs []deadletters.Job }
	err := c.call(ctx, http.MethodGet, "/api/v1/jobs", nil, &list)
	return list.Jobs, err
}

// Job asks for one job.
func (c *Client) Job(ctx context.Context, id string) (*deadletters.Job, error) {
	var j deadletters.Job
	return &j, c.call(ctx, http.MethodGet, jobPath(id), nil, &j)
}

// StopJob tells a job to stop.
func (c *Client) StopJob(ctx context.Context, id string) (*deadletters.Job, error) {
	var j deadletters.Job
	return &j, c.call(ctx, http.MethodPost, jobPath(id)+"/stop", nil, &j)
}

// ResumeJob lets a job go on.
func (c *Client) ResumeJob(ctx context.Context, id string) (*deadletters.Job, error) {
	var j deadletters.Job
	return &j, c.call(ctx, http.MethodPost, jobPath(id)+"/resume", nil, &j)
}

func jobPath(id string) string { return "/api/v1/jobs/" + url.PathEscape(id) }
