package webhook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// validateAuth checks what the endpoint is shown. u is the URL, nil if it is none.
func (c *Config) validateAuth(path string, u *url.URL) error {
	var errs []error
	if c.Auth != nil {
		if err := c.Auth.Validate(path + ".auth"); err != nil {
			errs = append(errs, err)
		} else if u != nil && u.User != nil && c.Auth.InAuthorization() {
			errs = append(errs, fmt.Errorf("%s.auth: the URL has a user and password, which go into the same header; take them out of it", path))
		}
	}
	for name := range c.Headers {
		if c.Auth != nil && (c.Auth.InAuthorization() && strings.EqualFold(name, "Authorization") ||
			c.Auth.APIKey != nil && strings.EqualFold(name, c.Auth.APIKey.Header)) {
			errs = append(errs, fmt.Errorf("%s.headers.%s: auth sets this header; give it in one place", path, name))
		}
	}
	if c.TLS != nil {
		if err := c.TLS.Validate(path + ".tls"); err != nil {
			errs = append(errs, err)
		} else if u != nil && u.Scheme == "http" {
			errs = append(errs, fmt.Errorf("%s.tls: the URL is http; write https, or leave tls out", path))
		}
	}
	return errors.Join(errs...)
}

// access is how a Sender gets in: what its requests have besides their content.
type access struct {
	via    http.RoundTripper        // what requests go by
	tls    *credentials.Transport   // via, if it has certificates of its own; or nil
	tokens *credentials.Credentials // nil: none to add
}

// authorize makes ready how s gets in. What is the same for every request goes into
// the headers that all share, so that it costs a delivery nothing. It is called
// before there are copies of s.header, and gives the secrets to hide.
func (s *Sender) authorize(cfg Config, opts Options, u *url.URL) (secrets []string) {
	if cfg.Auth == nil {
		return nil
	}
	c := credentials.New(cfg.Auth, credentials.Options{Egress: opts.Egress, Log: opts.Log})
	if c.Tokens() {
		s.access.tokens = c
	}
	header, query := c.Static()
	maps.Copy(s.header, header)
	for name := range query {
		q := url.QueryEscape(name) + "=" + url.QueryEscape(query.Get(name))
		if u.RawQuery != "" {
			q = u.RawQuery + "&" + q
		}
		u.RawQuery = q
	}
	return cfg.Auth.Secrets()
}

// connect chooses what requests go by.
func (s *Sender) connect(cfg Config, opts Options) {
	s.access.via = s.transport
	if cfg.TLS != nil {
		log := opts.Log
		if log == nil {
			log = slog.New(slog.DiscardHandler)
		}
		s.access.tls = credentials.NewTransport(s.transport, *cfg.TLS, log)
		s.access.via = s.access.tls
	}
}

// token adds one to header, which it copies unless it is the request's own.
func (s *Sender) token(ctx context.Context, header http.Header, own bool) (http.Header, *credentials.Token, error) {
	if !own {
		header = s.withRoom(header)
	}
	t, err := s.access.tokens.Apply(ctx, header)
	return header, t, err
}

// learn tells the tokens how one of theirs was received. A refusal of one that was
// good before is not the event's: it is tried again, with another.
func (s *Sender) learn(t *credentials.Token, a deliver.Attempt) deliver.Attempt {
	if s.access.tokens.Answered(t, a.Status) {
		return deliver.Attempt{
			Outcome: deliver.Failed, Fault: deliver.FaultCredentials, Status: a.Status,
			Reason: fmt.Sprintf("HTTP %d: it no longer takes the token; the next attempt has another", a.Status),
		}
	}
	return a
}

// refusedTLS says that it was the other side that ended the handshake, and how our
// certificate stands.
func (s *Sender) refusedTLS(alert string) string {
	reason := "TLS: refused by the subscriber: " + alert
	if s.access.tls != nil {
		if how := s.access.tls.Certificate(time.Now()); how != "" {
			return reason + " (our certificate: " + how + ")"
		}
	}
	return reason
}

// RetryNow lets the next attempt ask for a token at once; see deliver.Renewer.
func (s *Sender) RetryNow() {
	if s.access.tokens != nil {
		s.access.tokens.RetryNow()
	}
}

// closeAccess gives up what access has of its own.
func (s *Sender) closeAccess() {
	if s.access.tls != nil {
		s.access.tls.CloseIdleConnections()
	}
	if s.access.tokens != nil {
		s.access.tokens.Close()
	}
}
