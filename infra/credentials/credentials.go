// Package credentials shows others who gridfan is: subscribers over HTTP, and Azure
// for the Senders that go there by its SDKs.
//
// What it guarantees:
//
//   - A token is asked for once, whoever waits for it, and again before it runs out:
//     at seven to eight tenths of its life. Until then nobody waits. When the token
//     server fails, the old token is used as long as it lives, and the server is
//     asked again after a wait that grows (a second to a minute; a quarter of a
//     minute to five when it has said no).
//   - A token that a subscriber refuses is given up before its time at most every
//     five minutes; see Answered.
//   - A token request follows no redirect, takes ten seconds at most and reads at
//     most 64 KiB.
//   - No secret and no token is in an error or a log line, even if a token server
//     quotes it.
//   - Files are read again when they change: certificates within seconds, a client's
//     certificate for tokens each time one is asked for.
package credentials

import (
	"context"
	"encoding/base64"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"

	"github.com/gridfan/gridfan/infra/egress"
)

// Options are what Credentials are told besides their Auth.
type Options struct {
	// Egress is how the token server of an oauth2 Auth is reached. Nil: wherever
	// its URL leads, by the proxies of the environment. Azure's own token endpoints
	// are those of the process's environment and reached without it.
	Egress *egress.Way
	// Log gets what happens to tokens. Nil means nothing.
	Log *slog.Logger

	found bool // AzureAuth.Default, in the place of an Auth

	// identity stands in for the transport to Azure's endpoints, in tests.
	identity *http.Transport
}

// Credentials apply one Auth. They are safe for concurrent use.
type Credentials struct {
	auth  *Auth
	log   *slog.Logger
	fetch func(ctx context.Context, scope string) (string, time.Time, error) // nil: no tokens
	idle  func()

	tokens *source // nil: no tokens
	azure  *azureCredential
}

// connectTimeout leaves time to say which part of a token request took so long.
const connectTimeout = 5 * time.Second

func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: connectTimeout}).DialContext,
		TLSHandshakeTimeout: connectTimeout,
		ForceAttemptHTTP2:   true,
		// One request in an hour: a kept connection would be dead by the next.
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: maxAnswer,
	}
}

// New makes Credentials of a valid a; it asks for nothing yet. The caller closes
// them.
func New(a *Auth, opts Options) *Credentials {
	c := &Credentials{auth: a, log: opts.Log, idle: func() {}}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	identity := opts.identity
	scope := ""
	switch {
	case a.OAuth2 != nil:
		transport := newTransport()
		if u, err := url.Parse(a.OAuth2.TokenURL); err == nil { // a is valid
			opts.Egress.Equip(transport, u)
		}
		c.idle = transport.CloseIdleConnections
		var base http.RoundTripper = transport
		if a.OAuth2.CA != "" {
			t := NewTransport(transport, TLS{CA: a.OAuth2.CA}, c.log)
			base, c.idle = t, t.CloseIdleConnections
		}
		c.fetch = func(ctx context.Context, scope string) (string, time.Time, error) {
			return fetchOAuth2(ctx, a.OAuth2, base, scope)
		}
	case a.ManagedIdentity != nil:
		if identity == nil {
			identity = newTransport()
			identity.Proxy = nil // it is on this machine's side of every proxy
		}
		scope = a.ManagedIdentity.Scope
		c.fetch = func(ctx context.Context, scope string) (string, time.Time, error) {
			return fetchManaged(ctx, a.ManagedIdentity, identity, scope)
		}
	case a.WorkloadIdentity != nil:
		if identity == nil {
			identity = newTransport()
		}
		scope = a.WorkloadIdentity.Scope
		c.fetch = func(ctx context.Context, scope string) (string, time.Time, error) {
			return fetchWorkload(ctx, a.WorkloadIdentity, identity, scope)
		}
	case opts.found:
		if identity == nil {
			identity = newTransport()
		}
		c.fetch = func(ctx context.Context, scope string) (string, time.Time, error) {
			return fetchFound(ctx, identity, scope)
		}
	default:
		return c
	}
	c.tokens = newSource(func(ctx context.Context) (string, time.Time, error) { return c.fetch(ctx, scope) }, c.log)
	c.azure = &azureCredential{c: c, scopes: map[string]*source{}}
	return c
}

// Static gives what is the same for every request: a header, or a parameter of the
// query. Both are empty for those who have tokens.
func (c *Credentials) Static() (header http.Header, query url.Values) {
	header, query = http.Header{}, url.Values{}
	switch a := c.auth; {
	case a.APIKey != nil && a.APIKey.Header != "":
		header.Set(a.APIKey.Header, string(a.APIKey.Value))
	case a.APIKey != nil:
		query.Set(a.APIKey.Query, string(a.APIKey.Value))
	case a.Basic != nil:
		header.Set("Authorization", "Basic "+basic(a.Basic.Username, string(a.Basic.Password)))
	case a.Bearer != nil:
		header.Set("Authorization", "Bearer "+string(a.Bearer.Token))
	}
	return header, query
}

func basic(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

// Tokens says whether requests have tokens, which Apply adds to each.
func (c *Credentials) Tokens() bool { return c.tokens != nil }

// Apply adds a token to the header of a request, which is the request's own. It
// waits only when there is no valid token. The error is an *Error. What becomes of
// the request is to be told to Answered, if there is an answer.
func (c *Credentials) Apply(ctx context.Context, h http.Header) (*Token, error) {
	t, err := c.tokens.get(ctx)
	if err != nil {
		return nil, err
	}
	h["Authorization"] = t.header
	return t, nil
}

// Answered tells the status of an answer to a request with a token of Apply. again
// says that the token is no longer accepted although it was, or has run out on the
// way: the next attempt has another, and this one says nothing of the event.
func (c *Credentials) Answered(t *Token, status int) (again bool) {
	return c.tokens.answered(t, status)
}

// RetryNow makes the next attempt ask for a token that could not be had, or that
// nobody has accepted, without waiting any longer.
func (c *Credentials) RetryNow() {
	if c.tokens == nil {
		return
	}
	c.tokens.retryNow()
	c.azure.each((*source).retryNow)
}

// Azure gives what the SDKs of Azure take, nil without tokens. It lasts as long as
// c.
func (c *Credentials) Azure() azcore.TokenCredential {
	if c.azure == nil {
		return nil
	}
	return c.azure
}

// Close gives up what is under way. No Apply follows.
func (c *Credentials) Close() {
	if c.tokens == nil {
		return
	}
	c.tokens.stop()
	c.azure.each(func(s *source) { s.stop() })
	c.idle()
}
