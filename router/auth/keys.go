package auth

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/lestrrat-go/jwx/v3/jwk"
)

const (
	// fetchTimeout bounds a whole refresh, and so how long a request waits for
	// one. Event Grid gives an endpoint 30 s to answer.
	fetchTimeout = 5 * time.Second
	// freshFor is how often the keys are read again though nobody asks for a
	// new one, which is also how long a withdrawn key is trusted: "every 24
	// hours" (Entra docs, access-tokens; read 2026-11).
	freshFor = 24 * time.Hour
	// keepFor is how long keys serve that could not be read again: over a
	// weekend of broken egress. Beyond that a withdrawn key is the greater
	// danger.
	keepFor = 72 * time.Hour
	// refreshEvery is the least time between two refreshes. Whoever knows the
	// tenant can cause one with any made-up key ID.
	refreshEvery = 30 * time.Second
	// retryEvery is that while there are no keys at all and everybody waits.
	retryEvery = 5 * time.Second
	// maxKeysBody is ten times the discovery document and the keys of a
	// tenant, 20 KB with their certificates.
	maxKeysBody = 256 << 10
	// minModulus refuses RSA keys that can be factored. So does jwk, until
	// somebody configures it otherwise for the whole process.
	minModulus = 2048
)

// Keys holds the signing keys of Entra tenants. It is safe for concurrent use
// and holds nothing that needs closing; a refresh under way ends by itself
// within five seconds.
type Keys struct {
	client *http.Client
	log    *slog.Logger
	now    func() time.Time

	mu      sync.Mutex // guards tenants
	tenants map[string]*tenantKeys
}

// NewKeys makes a Keys that has none yet: the first token fetches them. Each
// argument may be nil, as in Deps.
func NewKeys(client *http.Client, log *slog.Logger, now func() time.Time) *Keys {
	k := &Keys{client: &http.Client{}, log: log, now: now, tenants: map[string]*tenantKeys{}}
	if client != nil {
		*k.client = *client
	}
	// The login service redirects nobody who asks for keys; who does is not it.
	k.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	if k.now == nil {
		k.now = time.Now
	}
	return k
}

func (k *Keys) tenant(authority, tenant string) *tenantKeys {
	k.mu.Lock()
	defer k.mu.Unlock()
	id := authority + "/" + tenant
	if k.tenants[id] == nil {
		k.tenants[id] = &tenantKeys{Keys: k, authority: authority, tenant: tenant}
	}
	return k.tenants[id]
}

// tenantKeys are the keys of one tenant.
type tenantKeys struct {
	*Keys
	authority, tenant string

	mu      sync.Mutex // guards what follows
	keys    map[string]signingKey
	fetched time.Time     // when the fetch of keys began; zero before the first
	next    time.Time     // no other fetch before this
	err     error         // of the last fetch
	running chan struct{} // closed when the fetch under way ends; nil without one
}

type signingKey struct {
	*rsa.PublicKey
	alg string // what the set says it is for; empty for any
}

var errUnknownKey = errors.New("signed with a key that the tenant does not have")

// find returns the key that a token issued at the given time names: that key,
// errUnknownKey or *Unavailable. It fetches the keys if need be and then waits.
func (t *tenantKeys) find(ctx context.Context, kid string, issued time.Time) (signingKey, error) {
	key, wait, err := t.look(kid, issued)
	if wait == nil {
		return key, err
	}
	select {
	case <-wait:
	case <-ctx.Done():
		return signingKey{}, &Unavailable{Reason: "the request ended while signing keys were fetched", RetryAfter: time.Second}
	}
	key, _, err = t.look(kid, issued)
	return key, err
}

// look is find without waiting. A wait that is not nil is closed when it makes
// sense to look again.
func (t *tenantKeys) look(kid string, issued time.Time) (key signingKey, wait <-chan struct{}, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	age := now.Sub(t.fetched)
	if t.fetched.IsZero() || age >= keepFor {
		t.keys = nil
	}
	key, ok := t.keys[kid]
	if ok && age < freshFor {
		return key, nil, nil
	}
	if t.running == nil && !now.Before(t.next) {
		t.running = make(chan struct{})
		go t.refresh(now, t.running)
	}
	if ok {
		return key, nil, nil // an old key is good while a new set is fetched
	}
	later := max(time.Second, t.next.Sub(now))
	switch {
	case t.err != nil:
		// With keys too: this one may have come since.
		err = &Unavailable{Reason: "signing keys of the tenant could not be fetched", RetryAfter: later, Err: t.err}
	case issued.After(t.fetched):
		// The token is younger than our keys, and so may its key be. A 401
		// would lose events for good, at a moment that a flood of made-up key
		// IDs could choose.
		err = &Unavailable{Reason: "the token names a signing key that may be newer than those we have", RetryAfter: later}
	default:
		err = errUnknownKey
	}
	return signingKey{}, t.running, err
}

// refresh fetches the keys. It runs apart from any request, so that a sender
// who hangs up does not cost the others their keys.
func (t *tenantKeys) refresh(started time.Time, done chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	keys, err := t.fetch(ctx)

	t.mu.Lock()
	t.err = err
	changed := false
	if err == nil {
		changed = !slices.Equal(slices.Sorted(maps.Keys(keys)), slices.Sorted(maps.Keys(t.keys)))
		t.keys, t.fetched = keys, started
	}
	have := len(t.keys)
	// Counted from the end: a login service that hangs is left alone between
	// two tries too.
	t.next = t.now().Add(refreshEvery)
	if have == 0 {
		t.next = t.now().Add(retryEvery)
	}
	t.running = nil
	t.mu.Unlock()
	defer close(done)

	switch {
	case err != nil:
		t.log.Warn("signing keys not fetched", "tenant", t.tenant, "keys_kept", have, "error", err)
	case changed:
		t.log.Info("signing keys changed", "tenant", t.tenant, "keys", have)
	}
}

// fetch reads the tenant's discovery document (OpenID Connect Discovery 1.0
// §4) and the keys that it points to, those of version 1.0 tokens too (Entra
// docs, access-tokens, "Validate the signature"; read 2026-11). Apps with
// signing keys of their own, which claims mapping can give them, are not
// supported.
func (t *tenantKeys) fetch(ctx context.Context) (map[string]signingKey, error) {
	body, err := t.get(ctx, t.authority+"/"+t.tenant+"/v2.0/.well-known/openid-configuration")
	if err != nil {
		return nil, err
	}
	var doc struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return nil, fmt.Errorf("read discovery document: %w", err)
	}
	if want := t.authority + "/" + t.tenant + "/v2.0"; doc.Issuer != want {
		return nil, fmt.Errorf("discovery document: issuer is %.200q, want %q", doc.Issuer, want)
	}
	ours, err := url.Parse(t.authority)
	if err != nil {
		return nil, err
	}
	if u, err := url.Parse(doc.JWKSURI); err != nil || u.Scheme != ours.Scheme || u.Host != ours.Host || u.User != nil {
		return nil, fmt.Errorf("discovery document: jwks_uri is not at %s", t.authority)
	}
	if body, err = t.get(ctx, doc.JWKSURI); err != nil {
		return nil, err
	}
	return t.parseKeys(body)
}

func (t *tenantKeys) get(ctx context.Context, target string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := t.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %q: answered %d", target, resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxKeysBody+1))
	if err != nil {
		return nil, fmt.Errorf("get %q: %w", target, err)
	}
	if len(body) > maxKeysBody {
		return nil, fmt.Errorf("get %q: answer is over %d bytes", target, maxKeysBody)
	}
	return body, nil
}

// parseKeys keeps the keys of a set that can sign the tenant's tokens. Others,
// of kinds we do not know, are no reason to do without these.
func (t *tenantKeys) parseKeys(body []byte) (map[string]signingKey, error) {
	set, err := jwk.Parse(body, jwk.WithIgnoreParseError(true), jwk.WithMaxKeys(100))
	if err != nil {
		return nil, fmt.Errorf("read key set: %w", err)
	}
	keys := map[string]signingKey{}
	for i := range set.Len() {
		key, _ := set.Key(i)
		kid, _ := key.KeyID()
		pub, ok := key.(jwk.RSAPublicKey)
		if !ok || kid == "" || !t.issues(key) {
			continue
		}
		if use, ok := key.KeyUsage(); ok && use != "sig" {
			continue
		}
		var raw rsa.PublicKey
		if err := jwk.Export(pub, &raw); err != nil || raw.N.BitLen() < minModulus {
			continue
		}
		k := signingKey{PublicKey: &raw}
		if alg, ok := key.Algorithm(); ok {
			k.alg = alg.String()
		}
		// Of two keys with one ID neither is the right one.
		if _, twice := keys[kid]; twice {
			return nil, errors.New("read key set: two keys have the same ID")
		}
		keys[kid] = k
	}
	if len(keys) == 0 {
		return nil, errors.New("read key set: no RSA signing key in it")
	}
	return keys, nil
}

// issues says whether a key signs for our tenant. Keys can name the issuer they
// are for, with {tenantid} for any tenant (Entra docs, access-tokens, "Validate
// the signing key issuer"; read 2026-11): the same sets hold those of personal
// accounts.
func (t *tenantKeys) issues(key jwk.Key) bool {
	var issuer string
	if !key.Has("issuer") {
		return true
	}
	if err := key.Get("issuer", &issuer); err != nil {
		return false
	}
	issuer = strings.ReplaceAll(issuer, "{tenantid}", t.tenant)
	return issuer == issuerV2(t.authority, t.tenant) || issuer == issuerV1(t.authority, t.tenant)
}
