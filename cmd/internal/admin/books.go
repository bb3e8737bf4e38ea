package admin

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/gridfan/gridfan/subscribers/books"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/trace"
)

// Accepted is the answer to POST /api/v1/books/{name}/accept.
type Accepted struct {
	Name string `json:"name"`
	// Difference is what is carried on; 0: there was none.
	Difference int64 `json:"difference"`
}

// How far back GET /api/v1/why looks, and how many events it gives.
const (
	defaultSince = 24 * time.Hour
	maxSince     = 366 * 24 * time.Hour
	maxTraced    = 20
)

func (s *server) booksRoutes(api *routes) {
	api.Handle("GET /api/v1/books", s.keepsBooks(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return s.Books.Read(r.Context())
	}))
	api.Handle("POST /api/v1/books/{name}/accept", s.keepsBooks(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		name := r.PathValue("name")
		n, err := s.Books.Accept(r.Context(), name)
		return Accepted{name, n}, err
	}))
	api.Handle("GET /api/v1/why", handle(s.why))
}

func (s *server) why(_ http.ResponseWriter, r *http.Request) (any, error) {
	q := trace.Query{What: r.URL.Query().Get("id"), Since: defaultSince, Limit: maxTraced}
	if q.What == "" {
		return nil, problem(http.StatusBadRequest, "bad-parameter", "id: want an event's id, or a record")
	}
	if v := r.URL.Query().Get("since"); v != "" {
		d, err := deliver.ParseDuration(v)
		if err != nil || d <= 0 || d > maxSince {
			return nil, problem(http.StatusBadRequest, "bad-parameter", fmt.Sprintf("since: want a duration such as 24h or 7d, at most 366d, got %q", v))
		}
		q.Since = d
	}
	f := trace.Finder{Broker: s.Broker, Registry: s.Registry, Breaker: s.Fleet.Breaker}
	return f.Find(r.Context(), q)
}

// Books asks for all books; it takes some seconds while events move.
func (c *Client) Books(ctx context.Context) (*books.Reading, error) {
	var r books.Reading
	return &r, c.call(ctx, http.MethodGet, "/api/v1/books", nil, &r)
}

// AcceptBook carries a difference on; see books.Books.Accept.
func (c *Client) AcceptBook(ctx context.Context, name string) (*Accepted, error) {
	var a Accepted
	return &a, c.call(ctx, http.MethodPost, "/api/v1/books/"+url.PathEscape(name)+"/accept", nil, &a)
}

// Why looks for an event or a record, so far back; see trace.Finder.Find.
func (c *Client) Why(ctx context.Context, what string, since deliver.Duration) (*trace.Answer, error) {
	var a trace.Answer
	q := url.Values{"id": {what}, "since": {since.String()}}
	return &a, c.call(ctx, http.MethodGet, "/api/v1/why?"+q.Encode(), nil, &a)
}
