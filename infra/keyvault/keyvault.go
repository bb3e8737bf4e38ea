// Package keyvault reads secrets from Azure Key Vault.
//
// What it guarantees:
//
//   - A secret is asked for once in a Reading, whoever wants it. A vault that does not
//     answer is not asked for its other secrets in the same one.
//   - No request follows a redirect, and each takes ten seconds at most.
//   - A value that was read once is kept: when the vault or the identity is away, the
//     next Reading gives it again and says so. What the vault itself refuses is an
//     error.
//   - No value is in an error, and none of the words of an answer but its code.
package keyvault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"github.com/gridfan/gridfan/infra/credentials"
)

// Config says how vaults are reached.
type Config struct {
	// Suffix follows the names of vaults. Default DefaultSuffix.
	Suffix string
	// Auth is who gridfan is towards them. Its zero value is whatever the Azure SDK's
	// DefaultAzureCredential finds.
	Auth credentials.AzureAuth
}

// Value is what a secret is.
type Value struct {
	Text string
	// Kept says why it could not be read again; Text is then what it was before.
	Kept error
}

// Options are what a Store is made with; the zero value is good.
type Options struct {
	// Log gets what happens to tokens. Nil means nothing.
	Log *slog.Logger
	// Transport takes the place of the usual one to the vaults, and Credential that of
	// what Config.Auth says.
	Transport  http.RoundTripper
	Credential azcore.TokenCredential
}

// Store reads secrets and keeps what it has read, in memory. It is safe for
// concurrent use and lasts as long as the process.
type Store struct {
	opts   Options
	client *http.Client

	mu     sync.Mutex // guards all below
	cfg    *Config    // what the rest was made with; nil: nothing yet
	cred   *credentials.Credentials
	vaults map[string]*azsecrets.Client // by host
	values map[string]string            // by key
}

// Bounds of one secret's request. The service allows 25 KB for a value; the rest is
// attributes and tags.
const (
	connectTimeout = 5 * time.Second
	tryTimeout     = 10 * time.Second
	getTimeout     = 25 * time.Second
	maxAnswer      = 256 << 10
)

// NewStore makes a Store that asks for nothing yet.
func NewStore(opts Options) *Store {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Transport == nil {
		opts.Transport = &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: connectTimeout}).DialContext,
			TLSHandshakeTimeout: connectTimeout,
			ForceAttemptHTTP2:   true,
			IdleConnTimeout:     30 * time.Second,
		}
	}
	return &Store{opts: opts, values: map[string]string{}, client: &http.Client{
		Transport: bounded{opts.Transport},
		// Its token is for this vault alone.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// bounded cuts answers off that are no secret.
type bounded struct{ base http.RoundTripper }

func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.base.RoundTrip(req)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	}
	return resp, err
}

// Reading is one time that secrets are read together. It serves one goroutine.
type Reading struct {
	store  *Store
	cfg    Config
	values map[string]Value
	errs   map[string]error // by key
	away   map[string]error // by host
}

// Read begins a Reading. cfg must be valid.
func (s *Store) Read(cfg Config) *Reading {
	if cfg.Suffix == "" {
		cfg.Suffix = DefaultSuffix
	}
	if len(cfg.Auth.Methods()) == 0 {
		cfg.Auth.Default = true
	}
	return &Reading{store: s, cfg: cfg, values: map[string]Value{}, errs: map[string]error{}, away: map[string]error{}}
}

// Get gives a secret. Its error says what to do, and fits after the reference.
func (r *Reading) Get(ctx context.Context, ref Reference) (Value, error) {
	host := ref.host(r.cfg.Suffix)
	key := host + "/" + strings.ToLower(ref.Name) + "/" + ref.Version
	if v, ok := r.values[key]; ok {
		return v, nil
	}
	if err, ok := r.errs[key]; ok {
		return Value{}, err
	}
	err := r.away[host]
	if err == nil {
		var text string
		if text, err = r.store.get(ctx, r.cfg, host, ref); err == nil {
			r.store.keep(key, text)
			r.values[key] = Value{Text: text}
			return r.values[key], nil
		}
	}
	if gone, ok := errors.AsType[*awayError](err); ok {
		r.away[host] = gone
		if text, had := r.store.kept(key); had {
			r.values[key] = Value{Text: text, Kept: gone}
			return r.values[key], nil
		}
	}
	r.errs[key] = err
	return Value{}, err
}

// awayError is of a vault or an identity that may be back later.
type awayError struct{ error }

func (s *Store) keep(key, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[key] = text
}

func (s *Store) kept(key string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, ok := s.values[key]
	return text, ok
}

// vault gives the client of a vault, which keeps what the vault's challenge said.
func (s *Store) vault(cfg Config, host string) (*azsecrets.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg == nil || !same(*s.cfg, cfg) {
		if s.cred != nil {
			s.cred.Close()
		}
		s.cfg, s.cred, s.vaults = &cfg, cfg.Auth.Credentials(s.opts.Log), map[string]*azsecrets.Client{}
	}
	if c := s.vaults[host]; c != nil {
		return c, nil
	}
	identity := s.opts.Credential
	if identity == nil {
		identity = s.cred.Azure()
	}
	c, err := azsecrets.NewClient("https://"+host, identity, &azsecrets.ClientOptions{ClientOptions: azcore.ClientOptions{
		Transport: s.client,
		Retry:     policy.RetryOptions{MaxRetries: 2, TryTimeout: tryTimeout, RetryDelay: 500 * time.Millisecond, MaxRetryDelay: 3 * time.Second, ShouldRetry: again},
		Telemetry: policy.TelemetryOptions{Disabled: true},
	}})
	if err != nil {
		return nil, err
	}
	s.vaults[host] = c
	return c, nil
}

// again says whether another try may help: not with a host that there is not, which is
// most often a wrong name.
func again(resp *http.Response, err error) bool {
	if err != nil {
		dns, ok := errors.AsType[*net.DNSError](err)
		return !ok || !dns.IsNotFound
	}
	return resp.StatusCode == http.StatusRequestTimeout || resp.StatusCode == http.StatusTooManyRequests ||
		resp.StatusCode >= 500 && resp.StatusCode != http.StatusNotImplemented
}

func same(a, b Config) bool {
	return a.Suffix == b.Suffix && fmt.Sprintf("%+v%+v", a.Auth.ManagedIdentity, a.Auth.WorkloadIdentity) == fmt.Sprintf("%+v%+v", b.Auth.ManagedIdentity, b.Auth.WorkloadIdentity) &&
		a.Auth.Default == b.Auth.Default
}

func (s *Store) get(ctx context.Context, cfg Config, host string, ref Reference) (text string, err error) {
	// The SDK takes a challenge apart without looking how much of it there is
	// (keyvault/internal v1.2.0, parseTenant).
	defer func() {
		if recover() != nil {
			text, err = "", fmt.Errorf("what answers at %s is no vault", host)
		}
	}()
	client, err := s.vault(cfg, host)
	if err != nil {
		return "", fmt.Errorf("vault %s cannot be used: %w", host, err)
	}
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	resp, err := client.GetSecret(ctx, ref.Name, ref.Version, nil)
	if err != nil {
		return "", explain(host, ref, err)
	}
	if resp.Value == nil {
		return "", nil
	}
	return *resp.Value, nil
}

// code is how the service calls what is wrong, at most.
var code = regexp.MustCompile(`^[A-Za-z]{1,60}$`)

// explain says what an error means and what to do. Those of the SDK hold the whole
// answer, so none of their words is used.
func explain(host string, ref Reference, err error) error {
	var refused *azcore.ResponseError
	var noToken *credentials.Error
	switch {
	case errors.As(err, &noToken):
		return &awayError{fmt.Errorf("%s: in Azure give the app a managed identity, and name a user-assigned one in AZURE_CLIENT_ID; elsewhere sign in with az login; config check --offline asks no vault", noToken.Reason)}
	case errors.As(err, &refused):
		said := fmt.Sprintf("vault %s answers HTTP %d", host, refused.StatusCode)
		if code.MatchString(refused.ErrorCode) {
			said += " " + refused.ErrorCode
		}
		switch {
		case refused.StatusCode == http.StatusNotFound && ref.Version != "":
			return fmt.Errorf("%s: it has no such version of this secret", said)
		case refused.StatusCode == http.StatusNotFound:
			return fmt.Errorf("%s: it has no such secret; az keyvault secret list shows those there are", said)
		case refused.StatusCode == http.StatusForbidden:
			return fmt.Errorf("%s: give gridfan's identity the role Key Vault Secrets User at the vault, let this network through its firewall, and see that the secret is enabled and has not expired", said)
		case refused.StatusCode == http.StatusUnauthorized:
			return fmt.Errorf("%s: it does not accept the token of gridfan's identity; is that of the vault's tenant and cloud (secrets.keyvault.suffix, AZURE_AUTHORITY_HOST)?", said)
		case refused.StatusCode >= 300 && refused.StatusCode < 400:
			return fmt.Errorf("%s: redirects are not followed; is this the vault's own address?", said)
		case refused.StatusCode == http.StatusTooManyRequests || refused.StatusCode >= 500:
			return &awayError{fmt.Errorf("%s; try again later", said)}
		}
		return errors.New(said)
	}
	var dns *net.DNSError
	var transport *url.Error
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return &awayError{fmt.Errorf("there is no host %s: is the vault's name right, and the cloud's suffix (secrets.keyvault.suffix)?", host)}
	case errors.Is(err, context.DeadlineExceeded):
		return &awayError{fmt.Errorf("vault %s does not answer in time", host)}
	case errors.As(err, &transport):
		return &awayError{fmt.Errorf("vault %s is not reached: %w", host, transport.Err)}
	case strings.Contains(err.Error(), "WWW-Authenticate") || strings.Contains(err.Error(), "challenge resource"):
		// The words are the SDK's own and name nothing secret, but are long.
		return fmt.Errorf("what answers at %s asks for a token for somebody else, so it gets none; is this the vault's own address?", host)
	}
	return &awayError{fmt.Errorf("vault %s gives no usable answer", host)}
}
