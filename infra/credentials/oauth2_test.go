package credentials

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/egress"
)

const canary = "canary-secret/+&<x>"

// seen is one token request.
type seen struct {
	form           url.Values
	user, password string
	basic          bool
}

// tokenServer answers with tokens that last for an hour.
func tokenServer(t *testing.T) (*httptest.Server, *[]seen, *sync.Mutex) {
	t.Helper()
	var mu sync.Mutex
	var all []seen
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if err := r.ParseForm(); err != nil || r.Method != http.MethodPost {
			t.Errorf("%s: %v", r.Method, err)
		}
		s := seen{form: r.PostForm}
		s.user, s.password, s.basic = r.BasicAuth()
		all = append(all, s)
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":"canary-token-%d","token_type":"Bearer","expires_in":3600}`, len(all))
	}))
	t.Cleanup(srv.Close)
	return srv, &all, &mu
}

// apply makes a request's header, and fails the test without a token.
func apply(t *testing.T, c *Credentials) string {
	t.Helper()
	h := http.Header{}
	if _, err := c.Apply(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	return h.Get("Authorization")
}

func TestOAuth2Requests(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  OAuth2
		want seen
	}{
		{"secret in the header", OAuth2{ClientSecret: canary, Scope: "a b"}, seen{
			form: url.Values{"grant_type": {"client_credentials"}, "scope": {"a b"}},
			user: "gridfan", password: url.QueryEscape(canary), basic: true,
		}},
		{"secret in the body", OAuth2{ClientSecret: canary, SecretIn: InBody, Audience: "https://x/", Params: map[string]Secret{"resource": "r"}}, seen{
			form: url.Values{
				"grant_type": {"client_credentials"}, "client_id": {"gridfan"}, "client_secret": {canary},
				"audience": {"https://x/"}, "resource": {"r"},
			},
		}},
		{"assertion", OAuth2{Assertion: "a.b.c"}, seen{
			form: url.Values{
				"grant_type": {"client_credentials"}, "client_id": {"gridfan"}, "client_assertion": {"a.b.c"},
				"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
			},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv, all, _ := tokenServer(t)
			tt.cfg.ClientID, tt.cfg.TokenURL = "gridfan", srv.URL+"/token"
			a := &Auth{OAuth2: &tt.cfg}
			if err := a.Validate("auth"); err != nil {
				t.Fatal(err)
			}
			c := New(a, Options{})
			defer c.Close()
			for range 3 {
				if got := apply(t, c); got != "Bearer canary-token-1" {
					t.Errorf("got %s", got)
				}
			}
			if d := cmp.Diff([]seen{tt.want}, *all, cmp.AllowUnexported(seen{})); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// A certificate signs an assertion that its public key verifies.
func TestOAuth2Certificate(t *testing.T) {
	ca := newAuthority(t, "ca")
	for _, tt := range []struct{ kind, algorithm, want, problem string }{
		{"rsa", "", "RS256", ""},
		{"rsa", "PS256", "PS256", ""},
		{"p256", "", "ES256", ""},
		{"p384", "ES384", "ES384", ""},
		{"ed25519", "", "EdDSA", ""},
		{"p256", "ES384", "", "does not fit the algorithm ES384"},
		{"p256", "RS256", "", "does not fit the algorithm RS256"},
		{"ed25519", "ES256", "", "does not fit the algorithm ES256"},
	} {
		t.Run(tt.kind+tt.algorithm, func(t *testing.T) {
			srv, all, _ := tokenServer(t)
			cert, key := ca.issue(t, "client", tt.kind, time.Now().Add(time.Hour))
			o := &OAuth2{
				ClientID: "gridfan", TokenURL: srv.URL + "/token?p=x", Algorithm: tt.algorithm,
				Cert: write(t, filepath.Join(t.TempDir(), "client.pem"), cert, key),
			}
			c := New(&Auth{OAuth2: o}, Options{})
			defer c.Close()
			if tt.problem != "" {
				if _, err := c.Apply(t.Context(), http.Header{}); err == nil || !strings.Contains(err.Error(), tt.problem) {
					t.Errorf("got %v, want %s", err, tt.problem)
				}
				return
			}
			apply(t, c)
			pair, err := loadPair(o.Cert, "")
			if err != nil {
				t.Fatal(err)
			}
			token, err := jwt.Parse((*all)[0].form.Get("client_assertion"), func(*jwt.Token) (any, error) { return pair.Leaf.PublicKey, nil },
				jwt.WithValidMethods([]string{tt.want}), jwt.WithAudience(srv.URL+"/token"), jwt.WithIssuer("gridfan"), jwt.WithSubject("gridfan"), jwt.WithExpirationRequired())
			if err != nil {
				t.Fatal(err)
			}
			if token.Header["x5t#S256"] == nil || token.Header["x5t"] == nil || token.Claims.(jwt.MapClaims)["jti"] == "" {
				t.Errorf("header %v", token.Header)
			}
		})
	}
	o := &OAuth2{ClientID: "gridfan", TokenURL: "https://127.0.0.1:1/", Cert: "/does/not/exist"}
	if _, _, err := fetchOAuth2(t.Context(), o, newTransport(), ""); err == nil || err.Error() != "no token: /does/not/exist: no such file or directory" {
		t.Errorf("got %v", err)
	}
}

// A thousand attempts over real connections make one token request.
func TestOAuth2OneRequest(t *testing.T) {
	srv, all, mu := tokenServer(t)
	c := New(&Auth{OAuth2: &OAuth2{TokenURL: srv.URL, ClientID: "g", ClientSecret: canary, SecretIn: InHeader}}, Options{})
	defer c.Close()
	var group sync.WaitGroup
	for range 1000 {
		group.Go(func() {
			if _, err := c.Apply(t.Context(), http.Header{}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	mu.Lock()
	defer mu.Unlock()
	if len(*all) != 1 {
		t.Errorf("%d requests", len(*all))
	}
}

// Whatever a token server does, the reason is clear, short and without secrets, and
// there is one.
func TestOAuth2Failures(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the secret went elsewhere") }))
	defer elsewhere.Close()
	echo := func(r *http.Request) string {
		body, _ := io.ReadAll(r.Body)
		b, _ := json.Marshal(r.Header.Get("Authorization") + " " + string(body) + " " + canary + " \x00\n\u202e")
		return string(b)
	}
	for _, tt := range []struct {
		name    string
		answer  func(w http.ResponseWriter, r *http.Request)
		want    string
		refused bool
		wait    time.Duration
	}{
		{"refusal", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(401)
			fmt.Fprint(w, `{"error":"invalid_client","error_description":"AADSTS7000215: wrong secret"}`)
		}, "HTTP 401: invalid_client: AADSTS7000215: wrong secret", true, 0},
		{"refusal that quotes", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(400)
			fmt.Fprintf(w, `{"error":"invalid_client","error_description":%s}`, echo(r))
		}, "HTTP 400: invalid_client: Basic <redacted>", true, 0},
		{"refusal with 200", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"error":"invalid_scope"}`) }, "HTTP 200: invalid_scope", true, 0},
		{"Azure's form", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(400)
			fmt.Fprint(w, `{"error":{"code":"bad","message":"why"}}`)
		}, "HTTP 400: bad: why", true, 0},
		{"in trouble", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "30")
			http.Error(w, "<html>"+canary, http.StatusServiceUnavailable)
		}, "HTTP 503", false, 30 * time.Second},
		{"throttled", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429) }, "HTTP 429", false, 0},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, "HTTP 307: redirects are not followed", true, 0},
		{"page", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>"+canary) }, "HTTP 200: its answer is no token", false, 0},
		{"nothing", func(http.ResponseWriter, *http.Request) {}, "HTTP 200: its answer is no token", false, 0},
		{"no token", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":"x"}`) }, "HTTP 200: its answer is no token", false, 0},
		{"another type", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"access_token":"canary-token","token_type":"DPoP"}`)
		}, "HTTP 200: its token is not a bearer token", false, 0},
		{"header injection", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"access_token":"canary\r\nX-Y: z","token_type":"bearer"}`)
		}, "HTTP 200: its token has characters that no token has", false, 0},
		{"huge token", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"access_token":"canary%s"}`, strings.Repeat("x", maxToken))
		}, "HTTP 200: its token is longer than 16 KiB", false, 0},
		{"dead token", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"access_token":"canary","expires_in":-10}`)
		}, "HTTP 200: its token has expired already", false, 0},
		{"endless", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(bytes.Repeat([]byte("canary"), 1000)); err != nil {
					return
				}
			}
		}, "its answer is longer than 64 KiB", false, 0},
		{"stalls", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // until then nobody notices that the client is gone
			_, _ = w.Write([]byte(`{"access_token":`))
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, "no whole answer within 10s", false, 0},
		{"cut off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("{"))
		}, "connection closed without an answer", false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(http.HandlerFunc(tt.answer))
			defer srv.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			if tt.name == "stalls" {
				ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
			}
			defer cancel()
			o := &OAuth2{TokenURL: srv.URL + "/?code=canary-code", ClientID: "g", ClientSecret: canary, SecretIn: InHeader}
			_, _, err := fetchOAuth2(ctx, o, newTransport(), "")
			e, ok := errors.AsType[*Error](err)
			if !ok {
				t.Fatalf("got %v", err)
			}
			host := strings.TrimPrefix(srv.URL, "http://")
			if !strings.HasPrefix(e.Reason, "no token from "+host+": "+tt.want) || len(e.Reason) > 400 {
				t.Errorf("got %q, want %q", e.Reason, tt.want)
			}
			for _, s := range []string{"canary", url.QueryEscape(canary), "\n", "\u202e"} {
				if strings.Contains(e.Reason, s) {
					t.Errorf("shows %q: %q", s, e.Reason)
				}
			}
			if e.refused != tt.refused || e.Wait != tt.wait {
				t.Errorf("refused %v, wait %v", e.refused, e.Wait)
			}
		})
	}
}

func TestOAuth2NotReached(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	ca := newAuthority(t, "ca")
	srv := ca.secure(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"access_token":"canary","expires_in":"3600"}`)
	}), nil, "x", time.Now().Add(time.Hour))
	expired := ca.secure(t, http.NotFoundHandler(), nil, "x", time.Now().Add(-time.Minute))
	pem := write(t, filepath.Join(t.TempDir(), "ca.pem"), ca.pem())
	for _, tt := range []struct{ name, url, ca, want string }{
		{"closed", closed.URL, "", "connection refused"},
		{"unknown authority", srv.URL, "", "TLS: certificate signed by unknown authority"},
		{"expired", expired.URL, pem, "TLS: certificate has expired or is not yet valid"},
		{"plain", strings.Replace(srv.URL, "https", "http", 1), "", "HTTP 400"},
		{"no file", srv.URL, "/does/not/exist", "TLS: /does/not/exist: no such file or directory"},
		{"good", srv.URL, pem, ""},
	} {
		c := New(&Auth{OAuth2: &OAuth2{TokenURL: tt.url, ClientID: "g", ClientSecret: canary, SecretIn: InHeader, CA: tt.ca}}, Options{})
		_, err := c.Apply(t.Context(), http.Header{})
		c.Close()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), ": "+tt.want)) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

// What the rules of egress forbid is not asked for a token.
func TestForbiddenTokenServer(t *testing.T) {
	srv, all, _ := tokenServer(t)
	rules, err := egress.New(egress.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, judged := range []bool{true, false} {
		c := New(&Auth{OAuth2: &OAuth2{TokenURL: srv.URL, ClientID: "g", ClientSecret: canary, SecretIn: InHeader}}, Options{Egress: rules.Way(judged)})
		_, err := c.Apply(t.Context(), http.Header{})
		c.Close()
		if judged && (err == nil || !strings.Contains(err.Error(), egress.RefusedPrefix) || len(*all) != 0) {
			t.Errorf("got %v after %d requests", err, len(*all))
		}
		if !judged && err != nil {
			t.Errorf("the operator's own word: %v", err)
		}
	}
}

// Nothing that fmt or slog can print has a secret.
func TestSecretsDoNotPrint(t *testing.T) {
	a := &Auth{
		OAuth2: &OAuth2{TokenURL: "https://h/?x=y", ClientSecret: canary, Assertion: canary, Params: map[string]Secret{"p": canary}},
		APIKey: &APIKey{Value: canary}, Basic: &Basic{Password: canary}, Bearer: &Bearer{Token: canary},
	}
	var b strings.Builder
	for _, part := range []any{a.OAuth2, *a.OAuth2, a.APIKey, *a.Basic, *a.Bearer} {
		fmt.Fprintf(&b, "%v %+v %#v %s %q\n", part, part, part, part, part)
		slog.New(slog.NewTextHandler(&b, nil)).Info("x", "part", part)
	}
	shown, err := json.Marshal(a.Redacted())
	if err != nil {
		t.Fatal(err)
	}
	b.Write(shown)
	if strings.Contains(b.String(), "canary") || !strings.Contains(b.String(), "redacted") {
		t.Error(b.String())
	}
	kept, err := json.Marshal(a)
	if err != nil || strings.Count(string(kept), "canary") != 6 {
		t.Errorf("not kept: %s, %v", kept, err)
	}
	b.Reset()
	for _, s := range a.Secrets() {
		b.WriteString(s + "\n")
	}
	if strings.Count(b.String(), canary) != 6 {
		t.Errorf("not all to hide: %s", &b)
	}
}

// What is read can be sent back, but its secrets go nowhere else.
func TestReveal(t *testing.T) {
	stored := func() *Auth {
		return &Auth{OAuth2: &OAuth2{TokenURL: "https://h/t?k=v", ClientID: "g", ClientSecret: canary, Params: map[string]Secret{"p": "q", "r": "s"}}}
	}
	a := stored().Redacted()
	a.OAuth2.Scope = "new"
	delete(a.OAuth2.Params, "r")
	a.Reveal(stored(), true)
	want := stored()
	want.OAuth2.Scope = "new"
	delete(want.OAuth2.Params, "r")
	if d := cmp.Diff(want, a); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	a = stored().Redacted()
	a.OAuth2.TokenURL = "https://evil/t"
	a.Reveal(stored(), false)
	if err := a.Validate("auth"); err == nil || a.OAuth2.ClientSecret != hidden || !strings.Contains(err.Error(), "auth.oauth2.clientSecret: it is hidden") ||
		!strings.Contains(err.Error(), "auth.oauth2.params.p: it is hidden") {
		t.Errorf("the secret goes elsewhere: %v", err)
	}
	for _, was := range []*Auth{{Bearer: &Bearer{Token: canary}}, {Basic: &Basic{Username: "u", Password: canary}}, {APIKey: &APIKey{Query: "q", Value: canary}}} {
		a := was.Redacted()
		a.Reveal(was, true)
		if err := a.Validate("auth"); err == nil || !strings.Contains(err.Error(), "it is hidden") {
			t.Errorf("%s: the secret goes elsewhere: %v", was.Kind(), err)
		}
		a.Reveal(was, false)
		if d := cmp.Diff(was, a); d != "" {
			t.Errorf("-want +got:\n%s", d)
		}
	}
	(*Auth)(nil).Reveal(stored(), false)
	stored().Reveal(nil, false)
}
