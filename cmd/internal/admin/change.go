package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// etag names one version of a subscriber or an endpoint; empty for none.
func etag(revision uint64) string {
	if revision == 0 {
		return ""
	}
	return strconv.Quote(strconv.FormatUint(revision, 10))
}

func setETag(w http.ResponseWriter, revision uint64) {
	if revision > 0 {
		w.Header().Set("ETag", etag(revision))
	}
}

// ifMatch reads which version the caller has in mind: conditional says that it
// names one, and revision is 0 for any that is there.
func ifMatch(r *http.Request) (revision uint64, conditional bool, err error) {
	sent := strings.TrimSpace(r.Header.Get("If-Match"))
	if sent == "" || sent == "*" {
		return 0, sent != "", nil
	}
	number, err := strconv.Unquote(sent)
	if err == nil {
		revision, err = strconv.ParseUint(number, 10, 64)
	}
	if err != nil || revision == 0 {
		return 0, false, problem(http.StatusBadRequest, "bad-parameter", "If-Match: want the ETag of an answer, as in \"17\", or *")
	}
	return revision, true, nil
}

// validated makes a problem of what Validate says.
func validated(err error) error {
	if err == nil {
		return nil
	}
	p := problem(http.StatusBadRequest, "bad-definition", "the definition is not valid")
	p.Errors = strings.Split(err.Error(), "\n")
	return p
}

// reachable refuses what leads where nothing is ever sent for a URL that came by
// API, as far as the URL says so itself. Names are judged when they are dialled.
func (s *server) reachable(definitions []registry.Definition, endpoints []registry.Endpoint) error {
	var errs []string
	check := func(path, raw string) {
		u, err := url.Parse(raw)
		if raw == "" || err != nil {
			return // an endpoint has the URL, or Validate has refused it
		}
		if err := s.Egress.Check(u); err != nil {
			errs = append(errs, path+": "+strings.TrimPrefix(err.Error(), egress.RefusedPrefix))
		}
	}
	for _, e := range endpoints {
		check("endpoints."+e.Name+".url", e.URL)
	}
	for _, d := range definitions {
		path, to := "subscribers."+d.Name+".deliver.", d.Deliver
		if w := to.Webhook; w != nil {
			check(path+"webhook.url", w.URL)
			if w.Auth != nil && w.Auth.OAuth2 != nil {
				check(path+"webhook.auth.oauth2.tokenURL", w.Auth.OAuth2.TokenURL)
			}
		}
		if c := to.EventGrid; c != nil {
			check(path+"eventGrid.endpoint", c.Endpoint)
		}
		if c := to.EventGridNamespace; c != nil {
			check(path+"eventGridNamespace.endpoint", c.Endpoint)
		}
		if c := to.ServiceBus; c != nil {
			key := "serviceBus.namespace"
			if c.Auth.ConnectionString != "" {
				key = "serviceBus.auth.connectionString"
			}
			check(path+key, (&url.URL{Scheme: "amqps", Host: c.Host()}).String())
		}
	}
	if len(errs) == 0 {
		return nil
	}
	p := problem(http.StatusUnprocessableEntity, "forbidden-address",
		"gridfan does not send there for a URL that is added by API; egress.allow in its configuration can name private addresses, and what that file itself declares may lead anywhere")
	p.Errors = errs
	return p
}

// misplaced makes a mistake in a definition of an endpoint that there is not.
func misplaced(err error) error {
	if errors.Is(err, registry.ErrNoEndpoint) {
		return problem(http.StatusBadRequest, "bad-definition", err.Error()+"; add it first: gridfan endpoints set NAME URL")
	}
	return err
}

// replace gives a subscriber another definition.
func (s *server) replace(w http.ResponseWriter, r *http.Request, d registry.Definition, revision uint64) (any, error) {
	e, err := s.Registry.Get(r.Context(), d.Name)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return nil, &registry.StaleError{}
	case err != nil:
		return nil, err
	case revision > 0 && e.Revision != revision:
		return nil, &registry.StaleError{Revision: e.Revision}
	}
	if d.Start != "" && d.Start != e.Definition.Start {
		return nil, problem(http.StatusBadRequest, "bad-definition", "start: it has begun; leave start out, or delete it and add it again")
	}
	d.Reveal(e.Definition)
	if err := validated(d.Validate()); err != nil {
		return nil, err
	}
	if err := s.reachable([]registry.Definition{d}, nil); err != nil {
		return nil, err
	}
	e, changed, err := s.Registry.Replace(r.Context(), d, revision)
	if err != nil {
		return nil, misplaced(err)
	}
	s.Log.Info("subscriber updated", "subscriber", d.Name, "changes", len(changed))
	return s.one(w, r, e)
}

// RotateRequest is the body of POST /api/v1/subscribers/{name}/rotate-key.
type RotateRequest struct {
	// Overlap is how long the keys before still sign; empty means as the
	// definition says.
	Overlap *deliver.Duration `json:"overlap,omitempty"`
}

func (s *server) rotateKey(w http.ResponseWriter, r *http.Request) (any, error) {
	var req RotateRequest
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxDefinition))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil && !errors.Is(err, io.EOF) {
		return nil, problem(http.StatusBadRequest, "bad-parameter", "the body is no order to rotate a key: "+err.Error())
	}
	overlap := time.Duration(-1)
	if req.Overlap != nil {
		overlap = req.Overlap.Std()
		if overlap < 0 || overlap > maxOverlap {
			return nil, problem(http.StatusBadRequest, "bad-parameter", "overlap: want up to 30d")
		}
	}
	e, err := s.Registry.RotateKey(r.Context(), r.PathValue("name"), overlap)
	if err != nil {
		return nil, err
	}
	return s.one(w, r, e)
}

const maxOverlap = 30 * 24 * time.Hour

// RotateKey makes a new signing key for one; overlap is how long those before it
// still sign, nil as its definition says.
func (c *Client) RotateKey(ctx context.Context, name string, overlap *deliver.Duration) (*Subscriber, error) {
	var s Subscriber
	return &s, c.call(ctx, http.MethodPost, path(name)+"/rotate-key", RotateRequest{overlap}, &s)
}

// Read asks for one subscriber with the ETag of its version.
func (c *Client) Read(ctx context.Context, name string) (*Subscriber, string, error) {
	var s Subscriber
	tag, err := c.do(ctx, http.MethodGet, path(name), "", nil, &s)
	return &s, tag, err
}

// Replace gives a subscriber another definition, if it is still the version that
// tag names, and gives the ETag of the new one. Secrets that were not shown may
// stay as they are shown.
func (c *Client) Replace(ctx context.Context, d registry.Definition, tag string) (*Subscriber, string, error) {
	var s Subscriber
	tag, err := c.do(ctx, http.MethodPut, path(d.Name), tag, d, &s)
	return &s, tag, err
}

// IsStale says whether an error is that of a version that is not there any more.
func IsStale(err error) bool {
	var p *Problem
	return errors.As(err, &p) && p.Status == http.StatusPreconditionFailed
}
