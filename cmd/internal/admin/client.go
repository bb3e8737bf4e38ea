package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// Client calls the admin API. Its zero value lacks the URL.
type Client struct {
	// URL is the admin listener's, as in http://127.0.0.1:8081.
	URL   string
	Token secret.String
}

// Status asks for the whole picture.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var s Status
	return &s, c.call(ctx, http.MethodGet, "/api/v1/status", nil, &s)
}

// Subscribers lists all subscribers by name.
func (c *Client) Subscribers(ctx context.Context) ([]Subscriber, error) {
	var list struct{ Subscribers []Subscriber }
	err := c.call(ctx, http.MethodGet, "/api/v1/subscribers", nil, &list)
	return list.Subscribers, err
}

// Subscriber asks for one.
func (c *Client) Subscriber(ctx context.Context, name string) (*Subscriber, error) {
	var s Subscriber
	return &s, c.call(ctx, http.MethodGet, path(name), nil, &s)
}

// Subscribe adds one. Adding the same once more is fine.
func (c *Client) Subscribe(ctx context.Context, d registry.Definition) (*Subscriber, error) {
	var s Subscriber
	return &s, c.call(ctx, http.MethodPut, path(d.Name), d, &s)
}

// SetPaused pauses one, or resumes it after a pause or a drain.
func (c *Client) SetPaused(ctx context.Context, name string, paused bool) (*Subscriber, error) {
	var s Subscriber
	verb := map[bool]string{true: "/pause", false: "/resume"}[paused]
	return &s, c.call(ctx, http.MethodPost, path(name)+verb, nil, &s)
}

// Drain lets one have what waits and nothing new.
func (c *Client) Drain(ctx context.Context, name string) (*Subscriber, error) {
	var s Subscriber
	return &s, c.call(ctx, http.MethodPost, path(name)+"/drain", nil, &s)
}

// Probe lets one whose breaker is open be tried at once.
func (c *Client) Probe(ctx context.Context, name string) (*Subscriber, error) {
	var s Subscriber
	return &s, c.call(ctx, http.MethodPost, path(name)+"/probe", nil, &s)
}

// Delete deletes one; discard says that its backlog may go too.
func (c *Client) Delete(ctx context.Context, name string, discard bool) (*Deleted, error) {
	var d Deleted
	p := path(name)
	if discard {
		p += "?discard=true"
	}
	return &d, c.call(ctx, http.MethodDelete, p, nil, &d)
}

// Shed lists what was dropped for one to make room, newest first; limit 0 means
// the server's default.
func (c *Client) Shed(ctx context.Context, name string, limit int) (*Shed, error) {
	var s Shed
	p := path(name) + "/shed"
	if limit > 0 {
		p += "?limit=" + strconv.Itoa(limit)
	}
	return &s, c.call(ctx, http.MethodGet, p, nil, &s)
}

func path(name string) string { return "/api/v1/subscribers/" + url.PathEscape(name) }

// httpClient gives up after the server does.
var httpClient = &http.Client{Timeout: 30 * time.Second}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	_, err := c.do(ctx, method, path, "", in, out)
	return err
}

// do makes one request, for the version that match names if it is not empty, and
// gives the ETag of the answer.
func (c *Client) do(ctx context.Context, method, path, match string, in, out any) (tag string, err error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return "", err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimRight(c.URL, "/")+path, body)
	if err != nil {
		return "", fmt.Errorf("admin URL %q: %w", c.URL, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if match != "" {
		req.Header.Set("If-Match", match)
	}
	if !c.Token.IsZero() {
		req.Header.Set("Authorization", "Bearer "+c.Token.Reveal())
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return "", fmt.Errorf("no gridfan answers at %s: %w; start one with gridfan serve, or say where it is with --admin", c.URL, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return "", fmt.Errorf("read the answer of %s: %w", c.URL, err)
	}
	if resp.StatusCode != http.StatusOK {
		p := &Problem{}
		if json.Unmarshal(b, p) != nil || p.Detail == "" {
			return "", fmt.Errorf("%s answers HTTP %d, not like a gridfan's admin listener; check --admin", c.URL, resp.StatusCode)
		}
		return "", p
	}
	if err := json.Unmarshal(b, out); err != nil {
		return "", fmt.Errorf("%s does not answer like a gridfan of this version: %w", c.URL, err)
	}
	return resp.Header.Get("ETag"), nil
}
