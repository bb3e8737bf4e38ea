// Package authtest stands in for Microsoft Entra in tests: it publishes a tenant's
// keys and issues access tokens.
package authtest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// Tenant is the one tenant there is.
const Tenant = "8eaef023-2b34-4da1-9baa-8bc8c9d6a490"

// Login is a login service. It is safe for concurrent use.
type Login struct {
	// URL is its authority.
	URL string
	// Key signs its tokens.
	Key *rsa.PrivateKey
	// Away makes it answer 502.
	Away atomic.Bool
}

// NewLogin starts one that ends with the test.
func NewLogin(t testing.TB) *Login {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	l := &Login{Key: key}
	mux := http.NewServeMux()
	answer := func(path string, body func() any) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			if l.Away.Load() {
				http.Error(w, "away", http.StatusBadGateway)
				return
			}
			if err := json.NewEncoder(w).Encode(body()); err != nil {
				t.Error(err)
			}
		})
	}
	answer("/"+Tenant+"/v2.0/.well-known/openid-configuration", func() any {
		return map[string]any{"issuer": l.URL + "/" + Tenant + "/v2.0", "jwks_uri": l.URL + "/keys"}
	})
	answer("/keys", func() any {
		return map[string]any{"keys": []any{map[string]any{
			"kty": "RSA", "use": "sig", "kid": "k0",
			"n": base64.RawURLEncoding.EncodeToString(key.N.Bytes()),
			"e": base64.RawURLEncoding.EncodeToString(big.NewInt(int64(key.E)).Bytes()),
		}}}
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	l.URL = s.URL
	return l
}

// Token is an access token of version 2.0 for an audience, with claims besides or in
// place of the usual ones, signed by key.
func (l *Login) Token(t testing.TB, key *rsa.PrivateKey, audience string, claims map[string]any) string {
	t.Helper()
	now := time.Now().Unix()
	all := map[string]any{
		"iss": l.URL + "/" + Tenant + "/v2.0", "aud": audience, "tid": Tenant, "ver": "2.0",
		"iat": now - 300, "nbf": now - 300, "exp": now + 3600,
	}
	maps.Copy(all, claims)
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := part(map[string]any{"typ": "JWT", "alg": "RS256", "kid": "k0"}) + "." + part(all)
	sum := sha256.Sum256([]byte(signed))
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(sig)
}
