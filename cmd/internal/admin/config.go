package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// ApplyRequest is the body of POST /api/v1/config/apply. Without Declared, gridfan
// reads its own file again.
type ApplyRequest struct {
	Declared *Declared `json:"declared,omitempty"`
	// Prune deletes what is parked because no file declares it any more, and what
	// it has not got.
	Prune bool `json:"prune,omitempty"`
	// DryRun only says what would change.
	DryRun bool `json:"dryRun,omitempty"`
}

// Declared is what a file says, with its secrets.
type Declared struct {
	Endpoints   []registry.Endpoint   `json:"endpoints"`
	Subscribers []registry.Definition `json:"subscribers"`
	// Sections are digests of the rest; see config.Config.Sections.
	Sections map[string]string `json:"sections,omitempty"`
}

// Applied is the answer to it.
type Applied struct {
	config.Result
	// Pruned are the subscribers that were deleted.
	Pruned []registry.Change `json:"pruned,omitempty"`
}

func (s *server) configRoutes(api *routes) {
	api.Handle("GET /api/v1/config", handle(s.configShow))
	api.Handle("POST /api/v1/config/apply", handle(s.configApply))
}

func (s *server) configShow(http.ResponseWriter, *http.Request) (any, error) {
	return s.Config.State(), nil
}

// maxDeclared is above what a file of the largest size says.
const maxDeclared = 8 << 20

// applyTimeout is below the client's own.
const applyTimeout = 25 * time.Second

func (s *server) configApply(w http.ResponseWriter, r *http.Request) (any, error) {
	var req ApplyRequest
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxDeclared))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil && !errors.Is(err, io.EOF) {
		return nil, problem(http.StatusBadRequest, "bad-definition", "the body is no configuration to apply: "+err.Error())
	}
	// Half of a file is worse than a caller who does not wait.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), applyTimeout)
	defer cancel()
	var res Applied
	var err error
	if d := req.Declared; d != nil {
		if err := validated(validDeclared(d)); err != nil {
			return nil, err
		}
		if err := s.reachableNew(ctx, d); err != nil {
			return nil, err
		}
		res.Result, err = s.Config.Apply(ctx, d.Endpoints, d.Subscribers, d.Sections, req.DryRun)
	} else {
		res.Result, err = s.Config.Reload(ctx, req.DryRun)
	}
	if err != nil {
		return nil, configProblem(err)
	}
	if req.Prune && !req.DryRun {
		res.Pruned, err = s.Registry.Prune(ctx)
	}
	return res, err
}

// reachableNew is reachable for what of a file is not already gridfan's own.
func (s *server) reachableNew(ctx context.Context, d *Declared) error {
	endpoints, subscribers, err := s.Registry.Strange(ctx, d.Endpoints, d.Subscribers)
	if err != nil {
		return err
	}
	return s.reachable(subscribers, endpoints)
}

func validDeclared(d *Declared) error {
	var errs []error
	seen := map[string]bool{}
	name := func(kind, name string) {
		if seen[kind+name] {
			errs = append(errs, fmt.Errorf("%s.%s: it is there twice", kind, name))
		}
		seen[kind+name] = true
	}
	for i := range d.Endpoints {
		name("endpoints", d.Endpoints[i].Name)
		errs = append(errs, d.Endpoints[i].Validate())
	}
	for i := range d.Subscribers {
		name("subscribers", d.Subscribers[i].Name)
		errs = append(errs, d.Subscribers[i].Validate())
	}
	return errors.Join(errs...)
}

func configProblem(err error) error {
	var bad config.Errors
	switch {
	case errors.Is(err, config.ErrNoFile):
		return problem(http.StatusConflict, "no-file", err.Error()+"; send what is to be applied: gridfan config apply FILE")
	case errors.As(err, &bad):
		p := problem(http.StatusConflict, "bad-file", "the file has mistakes, so nothing of it is taken over")
		p.Errors = strings.Split(bad.Error(), "\n")
		return p
	}
	return err
}

// Config tells how the configuration file of the running gridfan stands.
func (c *Client) Config(ctx context.Context) (*config.State, error) {
	var s config.State
	return &s, c.call(ctx, http.MethodGet, "/api/v1/config", nil, &s)
}

// Apply takes a file over, or says what that would change.
func (c *Client) Apply(ctx context.Context, req ApplyRequest) (*Applied, error) {
	var a Applied
	return &a, c.call(ctx, http.MethodPost, "/api/v1/config/apply", req, &a)
}
