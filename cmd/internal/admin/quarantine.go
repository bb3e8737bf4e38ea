package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"

	"github.com/gridfan/gridfan/router/quarantine"
)

// QuarantineList is the answer to GET /api/v1/quarantine.
type QuarantineList struct {
	Entries []quarantine.Entry `json:"entries"`
	// Next is the parameter after for the next page; 0 on the last one.
	Next uint64 `json:"next,omitempty"`
}

// RedriveRequest is the body of POST /api/v1/quarantine/redrive, and without
// DryRun of POST /api/v1/quarantine/drop.
type RedriveRequest struct {
	quarantine.Selection
	DryRun bool `json:"dryRun,omitempty"`
}

// RedriveResult is the answer to it. Problem is what stopped it before the end,
// empty if nothing did.
type RedriveResult struct {
	Outcomes []quarantine.Outcome `json:"outcomes"`
	Problem  string               `json:"problem,omitempty"`
}

// Dropped is the answer to POST /api/v1/quarantine/drop.
type Dropped struct {
	Dropped int `json:"dropped"`
}

func (s *server) quarantineRoutes(api *routes) {
	api.Handle("GET /api/v1/quarantine", handle(s.quarantineList))
	api.Handle("GET /api/v1/quarantine/{sequence}", handle(s.quarantineShow))
	api.Handle("POST /api/v1/quarantine/redrive", s.takesIn(s.quarantineRedrive))
	api.Handle("POST /api/v1/quarantine/drop", handle(s.quarantineDrop))
}

func (s *server) quarantineList(_ http.ResponseWriter, r *http.Request) (any, error) {
	after, limit, err := page(r)
	if err != nil {
		return nil, err
	}
	entries, err := s.Quarantine.List(r.Context(), r.URL.Query().Get("source"), after, limit)
	if err != nil {
		return nil, err
	}
	list := QuarantineList{Entries: entries}
	if len(entries) == limit {
		list.Next = entries[len(entries)-1].Sequence
	}
	return list, nil
}

func (s *server) quarantineShow(_ http.ResponseWriter, r *http.Request) (any, error) {
	seq, err := strconv.ParseUint(r.PathValue("sequence"), 10, 63)
	if err != nil {
		return nil, problem(http.StatusBadRequest, "bad-parameter", "an entry of the quarantine is named by its number")
	}
	return s.Quarantine.Show(r.Context(), seq)
}

func readSelection(w http.ResponseWriter, r *http.Request) (RedriveRequest, error) {
	var req RedriveRequest
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxDefinition))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return req, problem(http.StatusBadRequest, "bad-selection", "the body is no selection: "+err.Error())
	}
	if len(req.Sequences) == 0 && req.Source == "" {
		return req, problem(http.StatusBadRequest, "bad-selection", "say which: sequences: [ … ], or source: \"…\" for all of a source")
	}
	return req, nil
}

func (s *server) quarantineRedrive(w http.ResponseWriter, r *http.Request) (any, error) {
	req, err := readSelection(w, r)
	if err != nil {
		return nil, err
	}
	res := RedriveResult{Outcomes: []quarantine.Outcome{}}
	err = s.Quarantine.Redrive(r.Context(), req.Selection, req.DryRun, func(o quarantine.Outcome) {
		res.Outcomes = append(res.Outcomes, o)
	})
	if err != nil {
		if len(res.Outcomes) == 0 {
			return nil, err
		}
		// What was done is done, and the caller should know of it.
		res.Problem = err.Error()
	}
	if !req.DryRun {
		s.Log.Info("quarantine redriven", "source", req.Source, "entries", len(res.Outcomes), "problem", res.Problem)
	}
	return res, nil
}

func (s *server) quarantineDrop(w http.ResponseWriter, r *http.Request) (any, error) {
	req, err := readSelection(w, r)
	if err != nil {
		return nil, err
	}
	if req.DryRun {
		return nil, problem(http.StatusBadRequest, "bad-selection", "dropping has no dryRun; list the entries instead")
	}
	n, err := s.Quarantine.Drop(r.Context(), req.Selection)
	if n > 0 {
		s.Broker.Report("quarantine.dropped", req.Source, map[string]any{"entries": n})
	}
	return Dropped{n}, err
}

// Quarantine lists entries; see quarantine.Store.List.
func (c *Client) Quarantine(ctx context.Context, source string, after uint64, limit int) (*QuarantineList, error) {
	q := url.Values{"limit": {strconv.Itoa(limit)}}
	if source != "" {
		q.Set("source", source)
	}
	if after > 0 {
		q.Set("after", strconv.FormatUint(after, 10))
	}
	var list QuarantineList
	return &list, c.call(ctx, http.MethodGet, "/api/v1/quarantine?"+q.Encode(), nil, &list)
}

// QuarantineEntry asks for one entry with its body.
func (c *Client) QuarantineEntry(ctx context.Context, sequence uint64) (*quarantine.Entry, error) {
	var e quarantine.Entry
	return &e, c.call(ctx, http.MethodGet, "/api/v1/quarantine/"+strconv.FormatUint(sequence, 10), nil, &e)
}

// Redrive reads entries again; see quarantine.Store.Redrive.
func (c *Client) Redrive(ctx context.Context, sel quarantine.Selection, dryRun bool) (*RedriveResult, error) {
	var res RedriveResult
	return &res, c.call(ctx, http.MethodPost, "/api/v1/quarantine/redrive", RedriveRequest{sel, dryRun}, &res)
}

// Drop deletes entries for good.
func (c *Client) Drop(ctx context.Context, sel quarantine.Selection) (*Dropped, error) {
	var d Dropped
	return &d, c.call(ctx, http.MethodPost, "/api/v1/quarantine/drop", RedriveRequest{Selection: sel}, &d)
}
