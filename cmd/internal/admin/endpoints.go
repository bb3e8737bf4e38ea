package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// Endpoint is an endpoint as people see it: no secrets.
type Endpoint struct {
	registry.Endpoint
	Origin registry.Origin `json:"origin"`
	// Users are the subscribers that it belongs to, by name.
	Users []string `json:"users"`
}

// Endpoints is the answer to GET /api/v1/endpoints.
type Endpoints struct {
	Endpoints []Endpoint `json:"endpoints"`
}

func (s *server) endpointRoutes(api *routes) {
	api.Handle("GET /api/v1/endpoints", handle(s.endpointList))
	api.Handle("GET /api/v1/endpoints/{name}", handle(s.endpointShow))
	api.Handle("PUT /api/v1/endpoints/{name}", handle(s.endpointPut))
	api.Handle("DELETE /api/v1/endpoints/{name}", handle(s.endpointDelete))
}

func endpointView(e registry.EndpointEntry, users map[string][]string) Endpoint {
	v := Endpoint{Endpoint: e.Redacted(), Origin: e.Origin, Users: users[e.Name]}
	if v.Users == nil {
		v.Users = []string{}
	}
	return v
}

func (s *server) endpointList(_ http.ResponseWriter, r *http.Request) (any, error) {
	all, err := s.Registry.Endpoints(r.Context())
	if err != nil {
		return nil, err
	}
	users, err := s.Registry.EndpointUsers(r.Context())
	list := Endpoints{Endpoints: []Endpoint{}}
	for _, e := range all {
		list.Endpoints = append(list.Endpoints, endpointView(e, users))
	}
	return list, err
}

func (s *server) endpointAnswer(w http.ResponseWriter, r *http.Request, e registry.EndpointEntry, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	users, err := s.Registry.EndpointUsers(r.Context())
	setETag(w, e.Revision)
	return endpointView(e, users), err
}

func (s *server) endpointShow(w http.ResponseWriter, r *http.Request) (any, error) {
	e, err := s.Registry.Endpoint(r.Context(), r.PathValue("name"))
	return s.endpointAnswer(w, r, e, err)
}

func (s *server) endpointPut(w http.ResponseWriter, r *http.Request) (any, error) {
	e := registry.Endpoint{Name: r.PathValue("name")}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxDefinition))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		return nil, problem(http.StatusBadRequest, "bad-definition", "the body is no endpoint: "+err.Error())
	}
	if e.Name != r.PathValue("name") {
		return nil, problem(http.StatusBadRequest, "bad-definition", "the name in the body is not the one in the path")
	}
	revision, conditional, err := ifMatch(r)
	if err != nil {
		return nil, err
	}
	if now, err := s.Registry.Endpoint(r.Context(), e.Name); err == nil && e.URL == secret.URL(now.URL) {
		e.URL = now.URL // as it was shown
	}
	if err := validated(e.Validate()); err != nil {
		return nil, err
	}
	if err := s.reachable(nil, []registry.Endpoint{e}); err != nil {
		return nil, err
	}
	entry, err := s.Registry.SetEndpoint(r.Context(), e, revision, conditional)
	return s.endpointAnswer(w, r, entry, err)
}

func (s *server) endpointDelete(_ http.ResponseWriter, r *http.Request) (any, error) {
	revision, _, err := ifMatch(r)
	if err != nil {
		return nil, err
	}
	return struct{}{}, s.Registry.DeleteEndpoint(r.Context(), r.PathValue("name"), revision)
}

func endpointPath(name string) string { return "/api/v1/endpoints/" + url.PathEscape(name) }

// Endpoints lists all endpoints by name.
func (c *Client) Endpoints(ctx context.Context) ([]Endpoint, error) {
	var list Endpoints
	err := c.call(ctx, http.MethodGet, "/api/v1/endpoints", nil, &list)
	return list.Endpoints, err
}

// Endpoint asks for one with the ETag of its version.
func (c *Client) Endpoint(ctx context.Context, name string) (*Endpoint, string, error) {
	var e Endpoint
	tag, err := c.do(ctx, http.MethodGet, endpointPath(name), "", nil, &e)
	return &e, tag, err
}

// SetEndpoint adds an endpoint, or with a tag moves the version that it names. It
// gives the ETag of the new one.
func (c *Client) SetEndpoint(ctx context.Context, e registry.Endpoint, tag string) (*Endpoint, string, error) {
	var set Endpoint
	tag, err := c.do(ctx, http.MethodPut, endpointPath(e.Name), tag, e, &set)
	return &set, tag, err
}

// DeleteEndpoint deletes one that nobody uses.
func (c *Client) DeleteEndpoint(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, endpointPath(name), nil, &struct{}{})
}
