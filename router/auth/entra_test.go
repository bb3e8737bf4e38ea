package auth_test

import (
	"context"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // for RS384 and RS512
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gridfan/gridfan/router/auth"
)

const (
	tenant   = "8eaef023-2b34-4da1-9baa-8bc8c9d6a490"
	stranger = "82229342-1101-4ab6-817b-70c0747630f3"
	audience = "api://gridfan"
	role     = "AzureEventGridSecureWebhookSubscriber"
	// eventGrid is Microsoft.EventGrid in the public cloud.
	eventGrid = "4962773b-9cdb-44cf-a8bf-237846a00ab7"
)

// rsaKeys are made once: each takes a tenth of a second, more under -race.
var rsaKeys = sync.OnceValue(func() [3]*rsa.PrivateKey {
	var keys [3]*rsa.PrivateKey
	for i := range keys {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		keys[i] = key
	}
	return keys
})

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func jwkOf(kid string, key *rsa.PublicKey) map[string]any {
	return map[string]any{
		"kty": "RSA", "use": "sig", "kid": kid,
		"n": b64(key.N.Bytes()), "e": b64(big.NewInt(int64(key.E)).Bytes()),
	}
}

// issuer is an Entra tenant whose keys can be rotated and taken away.
type issuer struct {
	srv   *httptest.Server
	fetch atomic.Int64 // of the key set
	docs  atomic.Int64 // of the discovery document

	mu      sync.Mutex // guards what follows
	keys    []map[string]any
	down    bool
	hang    chan struct{} // not nil: answers wait until it is closed
	replace func(path string) (body string, ok bool)
}

func newIssuer(t testing.TB) *issuer {
	is := &issuer{}
	is.srv = httptest.NewTLSServer(is)
	t.Cleanup(is.srv.Close)
	is.serve(jwkOf("k0", &rsaKeys()[0].PublicKey))
	return is
}

func (is *issuer) serve(keys ...map[string]any) { is.set(func() { is.keys = keys }) }

func (is *issuer) set(change func()) {
	is.mu.Lock()
	defer is.mu.Unlock()
	change()
}

func (is *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	is.mu.Lock()
	keys, down, hang, replace := is.keys, is.down, is.hang, is.replace
	is.mu.Unlock()
	discovery := r.URL.Path == "/"+tenant+"/v2.0/.well-known/openid-configuration"
	if discovery {
		is.docs.Add(1)
	} else {
		is.fetch.Add(1)
	}
	if hang != nil {
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	}
	if replace != nil {
		if body, ok := replace(r.URL.Path); ok {
			fmt.Fprint(w, body)
			return
		}
	}
	switch {
	case down:
		http.Error(w, "down", http.StatusServiceUnavailable)
	case discovery:
		json.NewEncoder(w).Encode(map[string]any{"issuer": is.srv.URL + "/" + tenant + "/v2.0", "jwks_uri": is.srv.URL + "/" + tenant + "/discovery/v2.0/keys"})
	case r.URL.Path == "/"+tenant+"/discovery/v2.0/keys":
		json.NewEncoder(w).Encode(map[string]any{"keys": keys})
	default:
		http.NotFound(w, r)
	}
}

// method is a configuration that trusts the issuer.
func (is *issuer) method() *auth.Entra {
	return &auth.Entra{Tenant: tenant, Audiences: []string{"other", audience}, Roles: []string{"x", role}, Authority: is.srv.URL}
}

func (is *issuer) authenticator(t testing.TB, c *clock, log *buffer) *auth.Authenticator {
	t.Helper()
	return must(t, auth.Config{AnyOf: []auth.Method{{Entra: is.method()}}}, auth.Deps{HTTP: is.srv.Client(), Log: log.logger(), Now: c.now})
}

type obj map[string]any

// with returns a copy with changes; a nil takes a name away.
func (o obj) with(changes obj) obj {
	c := maps.Clone(o)
	for k, v := range changes {
		if v == nil {
			delete(c, k)
		} else {
			c[k] = v
		}
	}
	return c
}

// v2 are the claims that Event Grid's token of version 2.0 has, by what is
// documented: no real one was seen.
func (is *issuer) v2(c *clock) obj {
	now := c.now().Unix()
	return obj{
		"iss": is.srv.URL + "/" + tenant + "/v2.0", "aud": audience, "tid": tenant, "ver": "2.0",
		"iat": now - 300, "nbf": now - 300, "exp": now + 3600,
		"azp": eventGrid, "azpacr": "2", "oid": canary, "sub": canary, "uti": canary, "roles": []string{role},
	}
}

// v1 are those of version 1.0.
func (is *issuer) v1(c *clock) obj {
	return is.v2(c).with(obj{"iss": "https://sts.windows.net/" + tenant + "/", "ver": "1.0", "azp": nil, "azpacr": nil, "appid": eventGrid, "appidacr": "2"})
}

var plain = obj{"typ": "JWT", "alg": "RS256", "kid": "k0"}

// canary stands in tokens and secrets and must not be seen again.
const canary = "cAnArY-9f3b1"

func raw(v any) string {
	switch v := v.(type) {
	case string:
		return v
	default:
		b, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return string(b)
	}
}

// token signs anything as RS256, and as RS384 or RS512 if the header says so.
func token(header, claims any, key *rsa.PrivateKey) string {
	signed := b64([]byte(raw(header))) + "." + b64([]byte(raw(claims)))
	hash := crypto.SHA256
	if h, ok := header.(obj); ok && h["alg"] == "RS384" {
		hash = crypto.SHA384
	} else if ok && h["alg"] == "RS512" {
		hash = crypto.SHA512
	}
	h := hash.New()
	h.Write([]byte(signed))
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, hash, h.Sum(nil))
	if err != nil {
		panic(err)
	}
	return signed + "." + b64(sig)
}

func bearer(token string) *http.Request {
	return post("/ingress/a", "Authorization", "Bearer "+token)
}

func TestEntraAccepts(t *testing.T) {
	c, is, log := newClock(), newIssuer(t), &buffer{}
	a := is.authenticator(t, c, log)
	key := rsaKeys()[0]
	v1, v2 := is.v1(c), is.v2(c)
	for name, tok := range map[string]string{
		"version 2.0":            token(plain, v2, key),
		"version 1.0":            token(plain, v1, key),
		"government's app":       token(plain, v2.with(obj{"azp": "54316b56-3481-47f9-8f30-0300f5542a7b"}), key),
		"RS512":                  token(plain.with(obj{"alg": "RS512"}), v2, key),
		"no typ":                 token(plain.with(obj{"typ": nil}), v2, key),
		"at+jwt":                 token(plain.with(obj{"typ": "application/AT+jwt"}), v2, key),
		"x5t beside kid":         token(plain.with(obj{"x5t": "k0"}), v1, key),
		"list of audiences":      token(plain, v2.with(obj{"aud": []string{"a", audience}}), key),
		"one of two roles":       token(plain, v2.with(obj{"roles": []string{"a", role}}), key),
		"expired within skew":    token(plain, v2.with(obj{"exp": c.now().Unix() - 119}), key),
		"begins within skew":     token(plain, v2.with(obj{"nbf": c.now().Unix() + 119, "iat": c.now().Unix() + 119}), key),
		"fractional times":       token(plain, v2.with(obj{"exp": float64(c.now().Unix()) + 60.5}), key),
		"no nbf and no iat":      token(plain, v2.with(obj{"nbf": nil, "iat": nil}), key),
		"24 hours":               token(plain, v2.with(obj{"exp": c.now().Add(24 * time.Hour).Unix()}), key),
		"names in another case":  token(plain, v2.with(obj{"EXP": 1, "Aud": "x"}), key),
		"own key in its header":  token(plain.with(obj{"jwk": jwkOf("k0", &rsaKeys()[1].PublicKey)}), v2, key),
		"a set's URL in its jku": token(plain.with(obj{"jku": is.srv.URL + "/evil", "x5u": is.srv.URL + "/evil"}), v2, key),
	} {
		if got := reason(t, a.Check(bearer(tok), home, nil)); got != "" {
			t.Errorf("%s: got %q", name, got)
		}
	}
	if got := reason(t, a.Check(post("/ingress/a", "Authorization", "bearer   "+token(plain, v2, key)), home, nil)); got != "" {
		t.Errorf("scheme in lower case: got %q", got)
	}
	if docs, sets := is.docs.Load(), is.fetch.Load(); docs != 1 || sets != 1 {
		t.Errorf("fetched %d discovery documents and %d key sets, want 1 and 1", docs, sets)
	}
	if !strings.Contains(log.String(), "signing keys changed") {
		t.Errorf("the log says nothing of new keys: %s", log)
	}
}

// TestEntraRefuses is the attack corpus.
func TestEntraRefuses(t *testing.T) {
	c, is, log := newClock(), newIssuer(t), &buffer{}
	keys := rsaKeys()
	key, other := keys[0], keys[1]
	is.serve(jwkOf("k0", &key.PublicKey), jwkOf("k1", &other.PublicKey))
	a := is.authenticator(t, c, log)
	now := c.now().Unix()
	v1, v2 := is.v1(c), is.v2(c)
	good := token(plain, v2, key)
	if err := a.Check(bearer(good), home, nil); err != nil {
		t.Fatal(err)
	}

	segments := strings.Split(good, ".")
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	hs256 := func(secret []byte) string {
		signed := b64([]byte(raw(plain.with(obj{"alg": "HS256"})))) + "." + segments[1]
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(signed))
		return signed + "." + b64(mac.Sum(nil))
	}
	// 2048 bits sign 256 bytes, whose last base64url digit has spare bits.
	malleable := func() string {
		const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		last := strings.IndexByte(digits, good[len(good)-1])
		return good[:len(good)-1] + string(digits[last^1])
	}
	const (
		algorithm = "bearer token: alg is none of RS256, RS384, RS512"
		mismatch  = "bearer token: signature does not match its key"
		origin    = "bearer token: issuer (iss) is not the configured tenant"
		version   = "bearer token: version (ver) is not that of the issuer"
		unsigned  = "bearer token: not a signed JWT"
	)
	for _, tc := range []struct{ name, token, want string }{
		// Signature and header.
		{"alg none", b64([]byte(`{"typ":"JWT","alg":"none","kid":"k0"}`)) + "." + segments[1] + ".", algorithm},
		{"alg None with a signature", token(plain.with(obj{"alg": "None"}), v2, key), algorithm},
		{"no alg", token(plain.with(obj{"alg": nil}), v2, key), algorithm},
		{"HS256 with the public key (DER)", hs256(der), algorithm},
		{"HS256 with the public key (PEM)", hs256(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), algorithm},
		{"HS256 with the modulus", hs256(key.N.Bytes()), algorithm},
		{"alg in lower case", token(plain.with(obj{"alg": "rs256"}), v2, key), algorithm},
		{"PS256", token(plain.with(obj{"alg": "PS256"}), v2, key), algorithm},
		{"RS512 claimed, RS256 made", b64([]byte(raw(plain.with(obj{"alg": "RS512"})))) + "." + segments[1] + "." + segments[2], mismatch},
		{"wrong typ", token(plain.with(obj{"typ": "dpop+jwt"}), v2, key), "bearer token: typ is not JWT"},
		{"typ of an ID token's kind", token(plain.with(obj{"typ": canary}), v2, key), "bearer token: typ is not JWT"},
		{"crit", token(plain.with(obj{"crit": []string{"exp"}}), v2, key), "bearer token: header asks for extensions (crit, b64)"},
		{"crit null", token(`{"typ":"JWT","alg":"RS256","kid":"k0","crit":null}`, v2, key), "bearer token: header asks for extensions (crit, b64)"},
		{"b64", token(plain.with(obj{"b64": false}), v2, key), "bearer token: header asks for extensions (crit, b64)"},
		{"no kid", token(plain.with(obj{"kid": nil}), v2, key), "bearer token: header names no key (kid)"},
		{"kid of another key", token(plain.with(obj{"kid": "k1"}), v2, key), mismatch},
		{"kid is a path", token(plain.with(obj{"kid": "../../dev/null"}), v2, key), "bearer token: signed with a key that the tenant does not have"},
		{"kid is a number", token(plain.with(obj{"kid": 0}), v2, key), "bearer token: header: a value has the wrong type"},
		{"two kids", token(`{"typ":"JWT","alg":"RS256","kid":"k1","kid":"k0"}`, v2, key), "bearer token: header: a name stands twice"},
		{"stranger's key embedded", token(plain.with(obj{"jwk": jwkOf("k0", &keys[2].PublicKey)}), v2, keys[2]), mismatch},
		{"stranger's key set linked", token(plain.with(obj{"jku": is.srv.URL + "/evil", "kid": "evil"}), v2, keys[2]), "bearer token: signed with a key that the tenant does not have"},
		{"claims changed", segments[0] + "." + b64([]byte(raw(v2.with(obj{"azp": stranger})))) + "." + segments[2], mismatch},
		{"signature cut", good[:len(good)-len(segments[2])+172], mismatch},
		{"signature empty", segments[0] + "." + segments[1] + ".", mismatch},
		{"signature in another spelling", malleable(), "bearer token: signature: not base64url"},
		{"signature padded", good + "==", "bearer token: signature: not base64url"},
		{"signature with a line break", good[:len(good)-4] + "\n" + good[len(good)-4:], unsigned},

		// Shape.
		{"garbage", "garbage", unsigned},
		{"nothing", "", unsigned},
		{"dots", "..", "bearer token: header: not JSON"},
		{"five parts", good + ".a.b", unsigned},
		{"header no base64", "!." + segments[1] + "." + segments[2], "bearer token: header: not base64url"},
		{"header no object", b64([]byte(`[]`)) + "." + segments[1] + "." + segments[2], "bearer token: header: a value has the wrong type"},
		{"JSON serialization", `{"payload":"` + segments[1] + `","signatures":[]}`, unsigned},
		{"claims no JSON", token(plain, "{", key), "bearer token: claims: not JSON"},
		{"two tokens", good + ", " + good, unsigned},
		{"oversized", token(plain, v2.with(obj{"groups": strings.Repeat("g", 13<<10)}), key), "bearer token: longer than 16 KiB"},
		{"deep", token(plain, `{"iss":`+strings.Repeat("[", 11000), key), "bearer token: claims: not JSON"},
		{"invalid UTF-8", token(plain, "{\"iss\":\"\xff\"}", key), "bearer token: claims: not JSON"},

		// Origin.
		{"another issuer", token(plain, v2.with(obj{"iss": "https://evil.example/" + tenant + "/v2.0"}), key), origin},
		{"another tenant's issuer", token(plain, v2.with(obj{"iss": is.srv.URL + "/" + stranger + "/v2.0", "tid": stranger}), key), origin},
		{"no issuer", token(plain, v2.with(obj{"iss": nil}), key), origin},
		{"issuer with more behind it", token(plain, v2.with(obj{"iss": is.srv.URL + "/" + tenant + "/v2.0/"}), key), origin},
		{"another tid", token(plain, v2.with(obj{"tid": stranger}), key), "bearer token: tenant (tid) is not the configured one"},
		{"no tid", token(plain, v2.with(obj{"tid": nil}), key), "bearer token: tenant (tid) is not the configured one"},
		{"issuer of 2.0, version 1.0", token(plain, v2.with(obj{"ver": "1.0", "appid": eventGrid}), key), version},
		{"issuer of 1.0, version 2.0", token(plain, v1.with(obj{"ver": "2.0", "azp": eventGrid}), key), version},
		{"no version", token(plain, v2.with(obj{"ver": nil}), key), version},
		{"issuer twice", token(plain, strings.Replace(raw(v2), "{", `{"iss":"https://evil.example",`, 1), key), "bearer token: claims: a name stands twice"},
		{"issuer a list", token(plain, v2.with(obj{"iss": []string{is.srv.URL + "/" + tenant + "/v2.0"}}), key), "bearer token: claims: a value has the wrong type"},

		// Times.
		{"expired", token(plain, v2.with(obj{"exp": now - 120}), key), "bearer token: expired"},
		{"no exp", token(plain, v2.with(obj{"exp": nil}), key), "bearer token: expiry (exp) is missing or no number"},
		{"exp null", token(plain, strings.Replace(raw(v2.with(obj{"exp": nil})), "{", `{"exp":null,`, 1), key), "bearer token: expiry (exp) is missing or no number"},
		{"exp a string", token(plain, v2.with(obj{"exp": fmt.Sprint(now + 3600)}), key), "bearer token: expiry (exp) is missing or no number"},
		{"exp in milliseconds", token(plain, v2.with(obj{"exp": (now + 3600) * 1000}), key), "bearer token: expiry (exp) is further away than Entra's tokens live"},
		{"exp beyond int64", token(plain, strings.Replace(raw(v2.with(obj{"exp": nil})), "{", `{"exp":1e300,`, 1), key), "bearer token: expiry (exp) is further away than Entra's tokens live"},
		{"exp beyond float64", token(plain, strings.Replace(raw(v2.with(obj{"exp": nil})), "{", `{"exp":1e999,`, 1), key), "bearer token: expiry (exp) is further away than Entra's tokens live"},
		{"exp far below zero", token(plain, strings.Replace(raw(v2.with(obj{"exp": nil})), "{", `{"exp":-1e999,`, 1), key), "bearer token: expired"},
		{"exp twice", token(plain, strings.Replace(raw(v2), "{", `{"exp":1,`, 1), key), "bearer token: claims: a name stands twice"},
		{"not valid yet", token(plain, v2.with(obj{"nbf": now + 121}), key), "bearer token: not valid yet (nbf)"},
		{"nbf a string", token(plain, v2.with(obj{"nbf": "0"}), key), "bearer token: start (nbf) is no number"},
		{"issued tomorrow", token(plain, v2.with(obj{"iat": now + 121}), key), "bearer token: issue time (iat) is in the future or after exp"},
		{"issued after it expired", token(plain, v2.with(obj{"iat": now + 60, "exp": now + 30}), key), "bearer token: issue time (iat) is in the future or after exp"},
		{"iat an object", token(plain, v2.with(obj{"iat": obj{}}), key), "bearer token: issue time (iat) is no number"},

		// What it is for.
		{"another audience", token(plain, v2.with(obj{"aud": "api://gridfan2"}), key), `bearer token: audience (aud) is "api://gridfan2": none of those configured`},
		{"audience in another case", token(plain, v2.with(obj{"aud": "API://gridfan"}), key), `bearer token: audience (aud) is "API://gridfan": none of those configured`},
		{"audience with a slash", token(plain, v2.with(obj{"aud": audience + "/"}), key), `bearer token: audience (aud) is "api://gridfan/": none of those configured`},
		{"no audience", token(plain, v2.with(obj{"aud": nil}), key), "bearer token: audience (aud) is missing"},
		{"empty list of audiences", token(plain, v2.with(obj{"aud": []string{}}), key), "bearer token: audience (aud) is missing: none of those configured"},
		{"audience an object", token(plain, v2.with(obj{"aud": obj{audience: 1}}), key), "bearer token: audience (aud) is no text"},
		{"another app", token(plain, v2.with(obj{"azp": stranger}), key), `bearer token: calling app (appid, azp) is "` + stranger + `": none of the callers configured`},
		{"version 1.0's claim in 2.0", token(plain, v2.with(obj{"azp": nil, "appid": eventGrid}), key), `bearer token: calling app (appid, azp) is "": none of the callers configured`},
		{"version 2.0's claim in 1.0", token(plain, v1.with(obj{"appid": nil, "azp": eventGrid}), key), `bearer token: calling app (appid, azp) is "": none of the callers configured`},
		{"missing role", token(plain, v2.with(obj{"roles": []string{"reader", "a\nb"}}), key), `bearer token: roles are "reader", "a\nb": none of those configured`},
		{"no roles", token(plain, v2.with(obj{"roles": nil}), key), "bearer token: roles are missing: none of those configured"},
		{"roles a string", token(plain, v2.with(obj{"roles": role}), key), "bearer token: claims: a value has the wrong type"},
		{"role as scope", token(plain, v2.with(obj{"roles": nil, "scp": role}), key), "bearer token: roles are missing: none of those configured"},
		{"long audience", token(plain, v2.with(obj{"aud": strings.Repeat("é", 500)}), key), `bearer token: audience (aud) is "` + strings.Repeat("é", 50) + `": none of those configured`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := reason(t, a.Check(bearer(tc.token), home, nil))
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			seen(t, got+log.String(), tc.token)
		})
	}

	for _, tc := range []struct {
		name string
		r    *http.Request
		want string
	}{
		{"in the query", post("/ingress/a?access_token=" + good + "&token=" + good + "&code=" + good), "no bearer token"},
		{"in another header", post("/ingress/a", "X-Authorization", "Bearer "+good, "aeg-sas-token", good), "no bearer token"},
		{"in a cookie", post("/ingress/a", "Cookie", "Authorization=Bearer "+good), "no bearer token"},
		{"another scheme", post("/ingress/a", "Authorization", "Basic "+good), "no bearer token"},
		{"two Authorization headers", post("/ingress/a", "Authorization", "Bearer "+good, "Authorization", "Bearer "+good), "more than one Authorization header"},
	} {
		got := reason(t, a.Check(tc.r, home, nil))
		if got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
		seen(t, got+log.String(), good)
	}
}

// seen fails when text shows a part of a token or a canary.
func seen(t *testing.T, text, token string) {
	t.Helper()
	if strings.Contains(text, canary) {
		t.Errorf("the canary shows: %s", text)
	}
	for part := range strings.FieldsFuncSeq(token, func(r rune) bool { return r == '.' || r == ' ' || r == ',' }) {
		if len(part) > 8 && strings.Contains(text, part[:8]) {
			t.Errorf("a part of the token shows: %s", text)
		}
	}
}

func TestEntraCallersAndRoles(t *testing.T) {
	c, is := newClock(), newIssuer(t)
	mine := is.v2(c).with(obj{"azp": stranger})
	for _, tc := range []struct {
		name    string
		callers []string
		roles   []string
		claims  obj
		ok      bool
	}{
		{"a listed app", []string{strings.ToUpper(stranger)}, nil, mine, true},
		{"a listed app instead of Event Grid", []string{stranger}, nil, is.v2(c), false},
		{"both", []string{auth.CallerEventGrid, stranger}, nil, is.v2(c), true},
		{"any with the role", []string{auth.CallerAny}, []string{role}, mine, true},
		{"any without the role", []string{auth.CallerAny}, []string{"other"}, mine, false},
		{"a user's token through a listed app", []string{stranger}, []string{role}, mine.with(obj{"roles": nil, "scp": "x"}), false},
	} {
		m := is.method()
		m.Callers, m.Roles = tc.callers, tc.roles
		a := must(t, auth.Config{AnyOf: []auth.Method{{Entra: m}}}, auth.Deps{HTTP: is.srv.Client(), Now: c.now})
		if err := a.Check(bearer(token(plain, tc.claims, rsaKeys()[0])), home, nil); (err == nil) != tc.ok {
			t.Errorf("%s: got %v, want ok %v", tc.name, err, tc.ok)
		}
	}
}

func TestRotation(t *testing.T) {
	c, is, log := newClock(), newIssuer(t), &buffer{}
	a := is.authenticator(t, c, log)
	keys := rsaKeys()
	check := func(kid string, key *rsa.PrivateKey) string {
		return reason(t, a.Check(bearer(token(plain.with(obj{"kid": kid}), is.v2(c), key)), home, nil))
	}
	if got := check("k0", keys[0]); got != "" {
		t.Fatal(got)
	}
	c.advance(time.Hour)
	is.serve(jwkOf("k1", &keys[1].PublicKey))
	if got := check("k1", keys[1]); got != "" {
		t.Errorf("the new key: got %q", got)
	}
	if got := check("k0", keys[0]); got != "bearer token: signed with a key that the tenant does not have" {
		t.Errorf("the old key: got %q", got)
	}
	if got := is.fetch.Load(); got != 2 {
		t.Errorf("%d fetches, want 2", got)
	}

	// A withdrawn key goes within a day even if nobody uses a new one.
	c.advance(25 * time.Hour)
	is.serve(jwkOf("k2", &keys[2].PublicKey))
	if got := check("k1", keys[1]); got != "" {
		t.Errorf("while new keys are fetched: got %q", got)
	}
	eventually(t, func() bool { return check("k1", keys[1]) != "" })
	if got := check("k2", keys[2]); got != "" {
		t.Errorf("got %q", got)
	}
}

func eventually(t *testing.T, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); {
		if time.Now().After(end) {
			t.Fatal("it did not happen within 10 s")
		}
		time.Sleep(time.Millisecond) // sleep: between two looks, until the deadline
	}
}

func TestFloodOfUnknownKeys(t *testing.T) {
	c, is, log := newClock(), newIssuer(t), &buffer{}
	a := is.authenticator(t, c, log)
	keys := rsaKeys()
	good := token(plain, is.v2(c), keys[0])
	if err := a.Check(bearer(good), home, nil); err != nil {
		t.Fatal(err)
	}
	flood := func(claims obj, n int) map[string]int {
		var mu sync.Mutex
		got := map[string]int{}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for j := range n / 8 {
					tok := token(plain.with(obj{"kid": fmt.Sprintf("%s-%d-%d", canary, i, j)}), claims, keys[2])
					err := a.Check(bearer(tok), home, nil)
					mu.Lock()
					got[reason(t, err)]++
					mu.Unlock()
					if err := a.Check(bearer(good), home, nil); err != nil {
						t.Errorf("a good token during the flood: %v", err)
					}
				}
			})
		}
		wg.Wait()
		return got
	}
	const (
		unknown = "bearer token: signed with a key that the tenant does not have"
		younger = "503 the token names a signing key that may be newer than those we have"
	)
	if got := flood(is.v2(c), 400); got[unknown] != 400 {
		t.Errorf("got %v", got)
	}
	for range 3 {
		c.advance(31 * time.Second)
		flood(is.v2(c), 80)
	}
	// 1 for the good token and 3 for 31 s each; none within 30 s of the first.
	if got := is.fetch.Load(); got != 4 {
		t.Errorf("%d fetches, want 4", got)
	}

	// A flood uses up the refresh, then the tenant rotates. The first tokens of
	// the new key are asked to come back, not refused for good.
	c.advance(10 * time.Second)
	is.serve(jwkOf("k0", &keys[0].PublicKey), jwkOf("k1", &keys[1].PublicKey))
	fresh := token(plain.with(obj{"kid": "k1"}), is.v2(c).with(obj{"iat": c.now().Unix(), "nbf": c.now().Unix()}), keys[1])
	if got := reason(t, a.Check(bearer(fresh), home, nil)); got != younger {
		t.Errorf("got %q, want %q", got, younger)
	}
	c.advance(21 * time.Second)
	if got := reason(t, a.Check(bearer(fresh), home, nil)); got != "" {
		t.Errorf("after the pause: got %q", got)
	}
	if strings.Contains(log.String(), canary) {
		t.Errorf("the log shows key IDs of strangers: %s", log)
	}

	// Whoever cannot even name the tenant makes us fetch nothing at all.
	c.advance(time.Minute)
	before := is.docs.Load()
	flood(is.v2(c).with(obj{"tid": stranger}), 40)
	if got := is.docs.Load() - before; got != 0 {
		t.Errorf("%d fetches for another tenant's tokens", got)
	}
}

func TestKeyServerDown(t *testing.T) {
	c, is, log := newClock(), newIssuer(t), &buffer{}
	cfg := auth.Config{AnyOf: []auth.Method{{Entra: is.method()}, {Key: keys().AnyOf[0].Key}}}
	a := must(t, cfg, auth.Deps{HTTP: is.srv.Client(), Log: log.logger(), Now: c.now})
	good := func() *http.Request { return bearer(token(plain, is.v2(c), rsaKeys()[0])) }
	const down = "503 signing keys of the tenant could not be fetched"

	is.set(func() { is.down = true })
	for range 20 {
		if got := reason(t, a.Check(good(), home, nil)); got != down {
			t.Fatalf("got %q, want %q", got, down)
		}
	}
	if got := is.docs.Load(); got != 1 {
		t.Errorf("%d tries, want 1", got)
	}
	// Others are decided all the same: by another method, or without keys.
	withKey := good()
	withKey.Header.Set("aeg-sas-key", oldKey)
	if got := reason(t, a.Check(withKey, home, nil)); got != "" {
		t.Errorf("a key while Entra is away: got %q", got)
	}
	if got := reason(t, a.Check(bearer("garbage"), home, nil)); got != "bearer token: not a signed JWT; no key" {
		t.Errorf("garbage while Entra is away: got %q", got)
	}
	c.advance(5 * time.Second)
	is.set(func() { is.down = false })
	if got := reason(t, a.Check(good(), home, nil)); got != "" {
		t.Errorf("after a pause of 5 s: got %q", got)
	}

	// With keys in hand, days may pass.
	is.set(func() { is.down = true })
	for range 71 {
		c.advance(time.Hour)
		if got := reason(t, a.Check(good(), home, nil)); got != "" {
			t.Fatalf("got %q, want the keys kept", got)
		}
	}
	eventually(t, func() bool { return strings.Contains(log.String(), "signing keys not fetched") })
	unknown := bearer(token(plain.with(obj{"kid": "k9"}), is.v2(c), rsaKeys()[0]))
	if got := reason(t, a.Check(unknown, home, nil)); got != down {
		t.Errorf("a key that may have come since: got %q, want %q", got, down)
	}
	c.advance(2 * time.Hour)
	if got := reason(t, a.Check(good(), home, nil)); got != down {
		t.Errorf("after three days: got %q, want %q", got, down)
	}
	is.set(func() { is.down = false })
	c.advance(5 * time.Second)
	if got := reason(t, a.Check(good(), home, nil)); got != "" {
		t.Errorf("when it is back: got %q", got)
	}
}

func TestKeyServerHangs(t *testing.T) {
	c, is := newClock(), newIssuer(t)
	release := make(chan struct{})
	is.set(func() { is.hang = release })
	a := is.authenticator(t, c, &buffer{})
	good := token(plain, is.v2(c), rsaKeys()[0])

	// A sender that goes away does not end the fetch that others wait for.
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan error)
	go func() { gone <- a.Check(bearer(good).WithContext(ctx), home, nil) }()
	eventually(t, func() bool { return is.docs.Load() == 1 })
	cancel()
	if got := reason(t, <-gone); got != "503 the request ended while signing keys were fetched" {
		t.Errorf("got %q", got)
	}
	results := make(chan error)
	for range 50 {
		go func() { results <- a.Check(bearer(good), home, nil) }()
	}
	close(release)
	for range 50 {
		if err := <-results; err != nil {
			t.Errorf("got %v", err)
		}
	}
	if docs, sets := is.docs.Load(), is.fetch.Load(); docs != 1 || sets != 1 {
		t.Errorf("%d and %d fetches for 51 requests, want 1 and 1", docs, sets)
	}
}

func TestKeyServerNeverAnswers(t *testing.T) {
	is := newIssuer(t)
	c := newClock()
	never := make(chan struct{})
	is.set(func() { is.hang = never })
	t.Cleanup(func() { close(never) })
	a := is.authenticator(t, c, &buffer{})
	start := time.Now()
	got := reason(t, a.Check(bearer(token(plain, is.v2(c), rsaKeys()[0])), home, nil))
	if took := time.Since(start); took < 4*time.Second || took > 15*time.Second {
		t.Errorf("it took %s, want about 5 s", took)
	}
	if got != "503 signing keys of the tenant could not be fetched" {
		t.Errorf("got %q", got)
	}
}

// TestKeyServerLies checks what is not taken from whoever answers.
func TestKeyServerLies(t *testing.T) {
	keys := rsaKeys()
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	evil := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{"keys": []any{jwkOf("k0", &keys[2].PublicKey)}})
	}))
	t.Cleanup(evil.Close)
	set := func(list ...map[string]any) string {
		return raw(map[string]any{"keys": append([]map[string]any{}, list...)})
	}
	with := func(changes obj) map[string]any { return obj(jwkOf("k0", &keys[0].PublicKey)).with(changes) }
	const wellKnown = "/" + tenant + "/v2.0/.well-known/openid-configuration"
	const jwks = "/" + tenant + "/discovery/v2.0/keys"
	for _, tc := range []struct {
		name, path, body string
		key              *rsa.PrivateKey
		want             string // in the error; empty: accepted
	}{
		{"templated issuer of a key", jwks, set(with(obj{"issuer": "ISSUER/{tenantid}/v2.0"})), keys[0], ""},
		{"other keys beside", jwks, set(map[string]any{"kty": "XYZ", "kid": "a"}, map[string]any{"kty": "EC", "kid": "b", "crv": "P-256"}, with(nil)), keys[0], ""},
		{"alg given", jwks, set(with(obj{"alg": "RS256"})), keys[0], ""},

		{"discovery no JSON", wellKnown, "<html>", keys[0], "read discovery document"},
		{"another issuer", wellKnown, `{"issuer":"https://evil.example/v2.0","jwks_uri":"ISSUER` + jwks + `"}`, keys[0], "issuer is"},
		{"keys elsewhere", wellKnown, `{"issuer":"ISSUER/` + tenant + `/v2.0","jwks_uri":"` + evil.URL + `"}`, keys[2], "jwks_uri is not at"},
		{"keys without TLS", wellKnown, `{"issuer":"ISSUER/` + tenant + `/v2.0","jwks_uri":"http://127.0.0.1` + jwks + `"}`, keys[0], "jwks_uri is not at"},
		{"keys no JSON", jwks, "<html>", keys[0], "read key set"},
		{"no keys", jwks, set(), keys[0], "no RSA signing key"},
		{"small key", jwks, set(jwkOf("k0", &small.PublicKey)), small, "no RSA signing key"},
		{"symmetric key", jwks, set(map[string]any{"kty": "oct", "kid": "k0", "k": b64(keys[0].N.Bytes())}), keys[0], "no RSA signing key"},
		{"key for encryption", jwks, set(with(obj{"use": "enc"})), keys[0], "no RSA signing key"},
		{"key of personal accounts", jwks, set(with(obj{"issuer": "https://login.microsoftonline.com/9188040d-6c67-4c5b-b112-36a304b66dad/v2.0"})), keys[0], "no RSA signing key"},
		{"two keys with one ID", jwks, set(with(nil), jwkOf("k0", &keys[2].PublicKey)), keys[0], "two keys have the same ID"},
		{"too large", jwks, set(with(obj{"x": strings.Repeat("x", 300<<10)})), keys[0], "is over 262144 bytes"},
		{"key for another algorithm", jwks, set(with(obj{"alg": "RS512"})), keys[0], "alg is not that of the key"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, is := newClock(), newIssuer(t)
			is.set(func() {
				is.replace = func(path string) (string, bool) {
					return strings.ReplaceAll(tc.body, "ISSUER", is.srv.URL), path == tc.path
				}
			})
			// One client that would trust the evil server too.
			roots := x509.NewCertPool()
			roots.AddCert(is.srv.Certificate())
			roots.AddCert(evil.Certificate())
			client := is.srv.Client()
			client.Transport.(*http.Transport).TLSClientConfig.RootCAs = roots
			a := must(t, auth.Config{AnyOf: []auth.Method{{Entra: is.method()}}}, auth.Deps{HTTP: client, Now: c.now})
			err := a.Check(bearer(token(plain, is.v2(c), tc.key)), home, nil)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}

	t.Run("redirect", func(t *testing.T) {
		c, is := newClock(), newIssuer(t)
		srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, is.srv.URL+r.URL.Path, http.StatusFound)
		}))
		defer srv.Close()
		m := is.method()
		m.Authority = srv.URL
		a := must(t, auth.Config{AnyOf: []auth.Method{{Entra: m}}}, auth.Deps{HTTP: srv.Client(), Now: c.now})
		claims := is.v2(c).with(obj{"iss": srv.URL + "/" + tenant + "/v2.0"})
		if err := a.Check(bearer(token(plain, claims, keys[0])), home, nil); err == nil || !strings.Contains(err.Error(), "answered 302") {
			t.Errorf("got %v", err)
		}
		if got := is.docs.Load() + is.fetch.Load(); got != 0 {
			t.Errorf("the redirect was followed")
		}
	})
	t.Run("unknown certificate", func(t *testing.T) {
		c, is := newClock(), newIssuer(t)
		is.srv.Config.ErrorLog = (&buffer{}).std()
		a := must(t, auth.Config{AnyOf: []auth.Method{{Entra: is.method()}}}, auth.Deps{Now: c.now})
		if err := a.Check(bearer(token(plain, is.v2(c), keys[0])), home, nil); err == nil || !strings.Contains(err.Error(), "x509") {
			t.Errorf("got %v", err)
		}
	})
}

// TestSharedKeys: many sources of one tenant, and reloads, ask it once.
func TestSharedKeys(t *testing.T) {
	c, is := newClock(), newIssuer(t)
	shared := auth.NewKeys(is.srv.Client(), nil, c.now)
	good := token(plain, is.v2(c), rsaKeys()[0])
	for range 5 {
		a := must(t, auth.Config{AnyOf: []auth.Method{{Entra: is.method()}}}, auth.Deps{Keys: shared, Now: c.now})
		if err := a.Check(bearer(good), home, nil); err != nil {
			t.Fatal(err)
		}
		is.set(func() { is.down = true })
	}
	if got := is.docs.Load(); got != 1 {
		t.Errorf("%d fetches, want 1", got)
	}
}

// TestConcurrency is for the race detector: checks, rotations and outages at
// once.
func TestConcurrency(t *testing.T) {
	c, is, log := newClock(), newIssuer(t), &buffer{}
	a := is.authenticator(t, c, log)
	keys := rsaKeys()
	both := []map[string]any{jwkOf("k0", &keys[0].PublicKey), jwkOf("k1", &keys[1].PublicKey)}
	is.serve(both...)
	tokens := []string{token(plain, is.v2(c), keys[0]), token(plain.with(obj{"kid": "k1"}), is.v1(c), keys[1])}
	if err := a.Check(bearer(tokens[0]), home, nil); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				if err := a.Check(bearer(tokens[(i+j)%2]), home, nil); err != nil {
					t.Errorf("got %v", err)
				}
				_ = a.Check(bearer(token(plain.with(obj{"kid": "kx"}), is.v2(c), keys[2])), home, nil)
			}
		})
	}
	wg.Go(func() {
		for i := range 20 {
			c.advance(31 * time.Second)
			is.set(func() { is.down = i%2 == 0 })
		}
	})
	wg.Wait()
}

// TestRememberedTokens: what is remembered of a token is only its signature.
func TestRememberedTokens(t *testing.T) {
	c, is := newClock(), newIssuer(t)
	a := is.authenticator(t, c, &buffer{})
	keys := rsaKeys()
	good := token(plain, is.v2(c), keys[0])
	check := func(token string) string { return reason(t, a.Check(bearer(token), home, nil)) }
	for range 3 {
		if got := check(good); got != "" {
			t.Fatal(got)
		}
	}
	if got := check(good[:len(good)-8] + "AAAAAAA" + good[len(good)-1:]); got != "bearer token: signature does not match its key" {
		t.Errorf("another signature on it: got %q", got)
	}
	// Many others do not lose it.
	for i := range 300 {
		if got := check(token(plain, is.v2(c).with(obj{"uti": i}), keys[0])); got != "" {
			t.Fatal(got)
		}
		if got := check(good); got != "" {
			t.Fatal(got)
		}
	}
	// The key goes: the tenant withdrew it and gave its ID to another.
	c.advance(time.Minute)
	is.serve(jwkOf("k0", &keys[1].PublicKey))
	check(token(plain.with(obj{"kid": "kx"}), is.v2(c), keys[2])) // causes a refresh
	if got := check(good); got != "bearer token: signature does not match its key" {
		t.Errorf("after its key was withdrawn: got %q", got)
	}
	is.serve(jwkOf("k0", &keys[0].PublicKey))
	c.advance(time.Minute)
	check(token(plain.with(obj{"kid": "ky"}), is.v2(c), keys[2]))
	if got := check(good); got != "" {
		t.Errorf("when its key is back: got %q", got)
	}
	c.advance(2 * time.Hour)
	if got := check(good); got != "bearer token: expired" {
		t.Errorf("after its time: got %q", got)
	}
}

// BenchmarkBearer is the price of a token of 1.2 KB, as Entra's are: new, seen
// before, and forged.
func BenchmarkBearer(b *testing.B) {
	c, is := newClock(), newIssuer(b)
	claims := is.v2(c).with(obj{"rh": strings.Repeat("x", 300)})
	run := func(name string, ok bool, requests ...*http.Request) {
		b.Run(name, func(b *testing.B) {
			a := is.authenticator(b, c, &buffer{})
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := a.Check(requests[i%len(requests)], home, nil); (err == nil) != ok {
					b.Fatal(err)
				}
			}
		})
	}
	var fresh []*http.Request
	for i := range 1000 { // more than are remembered
		fresh = append(fresh, bearer(token(plain, claims.with(obj{"uti": i}), rsaKeys()[0])))
	}
	run("new", true, fresh...)
	run("remembered", true, fresh[0])
	run("forged", false, bearer(token(plain, claims, rsaKeys()[1])))
	run("garbage", false, bearer(strings.Repeat("a", 1200)))
}

// BenchmarkKey is that of two keys.
func BenchmarkKey(b *testing.B) {
	a := must(b, keys(), auth.Deps{})
	r := post("/ingress/a", "aeg-sas-key", oldKey)
	for b.Loop() {
		if err := a.Check(r, home, nil); err != nil {
			b.Fatal(err)
		}
	}
}
