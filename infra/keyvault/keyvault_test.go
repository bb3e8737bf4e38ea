package keyvault

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// vault stands in for Key Vault's REST API: a request without a token is answered by
// a challenge (learn.microsoft.com/azure/key-vault/general/authentication-requests-and-responses;
// 2026-11), and one with a token by a secret or an error in its shape.
type vault struct {
	t      *testing.T
	server *httptest.Server

	mu        sync.Mutex        // guards all below
	secrets   map[string]string // by name, or name/version
	refuse    int               // a status for every request with a token; 0: none
	code      string
	resource  string // that tokens are to be for
	challenge string // in the place of the right one
	requests  []string
}

const token = "token-of-the-identity"

func newVault(t *testing.T) *vault {
	v := &vault{t: t, secrets: map[string]string{}, resource: "https://vault.azure.net"}
	v.server = httptest.NewTLSServer(v)
	t.Cleanup(v.server.Close)
	return v
}

func (v *vault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.requests = append(v.requests, r.Host+r.URL.Path)
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	refuse := func(status int, code string) {
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"error":{"code":%q,"message":"canary in the words of the vault"}}`, code)
	}
	if r.Header.Get("Authorization") == "" {
		challenge := v.challenge
		if challenge == "" {
			challenge = fmt.Sprintf(`Bearer authorization="https://login.microsoftonline.com/7fd0bc6a-6c0b-4a72-8f5c-000000000000", resource=%q`, v.resource)
		}
		w.Header().Set("WWW-Authenticate", challenge)
		refuse(http.StatusUnauthorized, "Unauthorized")
		return
	}
	name := strings.TrimPrefix(r.URL.Path, "/secrets/")
	name = strings.TrimSuffix(name, "/")
	value, ok := v.secrets[name]
	switch {
	case r.Header.Get("Authorization") != "Bearer "+token:
		refuse(http.StatusUnauthorized, "Unauthorized")
	case v.refuse >= 300 && v.refuse < 400:
		w.Header().Set("Location", "https://elsewhere.vault.azure.net"+r.URL.Path)
		w.WriteHeader(v.refuse)
	case v.refuse != 0:
		refuse(v.refuse, v.code)
	case !ok || r.URL.Query().Get("api-version") == "":
		refuse(http.StatusNotFound, "SecretNotFound")
	default:
		_ = json.NewEncoder(w).Encode(map[string]any{"value": value, "id": "https://" + r.Host + r.URL.Path})
	}
}

func (v *vault) set(change func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change()
}

// asked gives the requests since the last call.
func (v *vault) asked() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	list := v.requests
	v.requests = nil
	return list
}

// transport leads to the stand-in whatever the host is.
func (v *vault) transport() *http.Transport {
	t := v.server.Client().Transport.(*http.Transport).Clone()
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if strings.HasPrefix(addr, "gone.") {
			return nil, &net.DNSError{Err: "no such host", Name: "gone", IsNotFound: true}
		}
		return (&net.Dialer{}).DialContext(ctx, network, v.server.Listener.Addr().String())
	}
	// The certificate is for example.com.
	t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	return t
}

// identity stands in for the endpoint at which a container's managed identity gets its
// tokens (learn.microsoft.com/azure/container-apps/managed-identity
// #rest-endpoint-reference; 2026-11), and makes the process's environment lead there.
func identity(t *testing.T) (asked func() url.Values) {
	var mu sync.Mutex
	var last url.Values
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		last = r.URL.Query()
		mu.Unlock()
		if r.Header.Get("X-IDENTITY-HEADER") != "the-header" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"access_token":%q,"expires_on":"%d","resource":"https://vault.azure.net","token_type":"Bearer"}`,
			token, time.Now().Add(24*time.Hour).Unix())
	}))
	t.Cleanup(s.Close)
	t.Setenv("IDENTITY_ENDPOINT", s.URL)
	t.Setenv("IDENTITY_HEADER", "the-header")
	t.Setenv("AZURE_CLIENT_ID", "11111111-2222-3333-4444-555555555555")
	for _, name := range []string{"AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE", "MSI_ENDPOINT", "MSI_SECRET", "IMDS_ENDPOINT", "IDENTITY_SERVER_THUMBPRINT", "AZURE_TOKEN_CREDENTIALS"} {
		t.Setenv(name, "") // so that it comes back
		os.Unsetenv(name)
	}
	return func() url.Values {
		mu.Lock()
		defer mu.Unlock()
		return last
	}
}

func get(t *testing.T, r *Reading, text string) (Value, error) {
	t.Helper()
	ref, err := ParseReference(text)
	if err != nil {
		t.Fatal(err)
	}
	return r.Get(t.Context(), ref)
}

// A secret is asked for once in a reading, with a token of the app's identity for what
// the vault's challenge names, and its rotation is seen by the next one.
func TestGet(t *testing.T) {
	v, asked := newVault(t), identity(t)
	v.set(func() { v.secrets = map[string]string{"key": "one", "key/0123456789abcdef": "old", "other": "two"} })
	s := NewStore(Options{Transport: v.transport()})
	r := s.Read(Config{})
	for _, tt := range []struct{ ref, want string }{
		{"contoso/key", "one"}, {"contoso/key/0123456789abcdef", "old"}, {"Contoso.vault.azure.net/other", "two"},
		{"https://contoso.vault.azure.net/secrets/key", "one"}, {"contoso/KEY", "one"}, {"contoso/other", "two"},
	} {
		if got, err := get(t, r, tt.ref); err != nil || got.Text != tt.want || got.Kept != nil {
			t.Errorf("%s: got %+v, %v", tt.ref, got, err)
		}
	}
	// The first is the one that is challenged.
	want := []string{
		"contoso.vault.azure.net/secrets/key/", "contoso.vault.azure.net/secrets/key/",
		"contoso.vault.azure.net/secrets/key/0123456789abcdef", "contoso.vault.azure.net/secrets/other/",
	}
	if d := cmp.Diff(want, v.asked()); d != "" {
		t.Errorf("requests, -want +got:\n%s", d)
	}
	if q := asked(); q.Get("resource") != "https://vault.azure.net" || q.Get("client_id") != "11111111-2222-3333-4444-555555555555" {
		t.Errorf("the identity was asked for %v", q)
	}

	v.set(func() { v.secrets["key"] = "new" })
	if got, err := get(t, r, "contoso/key"); err != nil || got.Text != "one" {
		t.Errorf("within a reading: %+v, %v", got, err)
	}
	if got, err := get(t, s.Read(Config{}), "contoso/key"); err != nil || got.Text != "new" {
		t.Errorf("after a rotation: %+v, %v", got, err)
	}
}

// Another cloud's vaults have another suffix, and their tokens are for another resource.
func TestOtherCloud(t *testing.T) {
	v, asked := newVault(t), identity(t)
	v.set(func() { v.secrets["key"] = "one"; v.resource = "https://vault.azure.cn" })
	s := NewStore(Options{Transport: v.transport()})
	if got, err := get(t, s.Read(Config{Suffix: "vault.azure.cn"}), "contoso/key"); err != nil || got.Text != "one" {
		t.Errorf("got %+v, %v", got, err)
	}
	if q := asked(); q.Get("resource") != "https://vault.azure.cn" {
		t.Errorf("the identity was asked for %v", q)
	}
	// A token for the vaults of one cloud is not shown to a host of another.
	if _, err := get(t, s.Read(Config{}), "contoso/key"); err == nil || !strings.Contains(err.Error(), "asks for a token for somebody else") {
		t.Errorf("got %v", err)
	}
}

// What a vault refuses is an error that says what to do and repeats nothing of it.
func TestRefused(t *testing.T) {
	v := newVault(t)
	identity(t)
	for _, tt := range []struct {
		name           string
		set            func()
		ref, want      string
		requestsAtMost int
	}{
		{"missing", func() {}, "contoso/nothing", "it has no such secret", 2},
		{"missing version", func() {}, "contoso/key/abc", "it has no such version", 2},
		{"not allowed", func() { v.refuse, v.code = 403, "Forbidden" }, "contoso/key", "HTTP 403 Forbidden: give gridfan's identity the role Key Vault Secrets User", 2},
		{"another tenant's token", func() { v.refuse, v.code = 401, "Unauthorized" }, "contoso/key", "does not accept the token", 4},
		{"redirect", func() { v.refuse = 302 }, "contoso/key", "redirects are not followed", 2},
		{"words where a code should be", func() { v.refuse, v.code = 400, "canary bad" }, "contoso/key", "answers HTTP 400", 2},
		{"no challenge", func() { v.challenge = "Basic x" }, "contoso/key", "asks for a token for somebody else", 1},
		{"half a challenge", func() { v.challenge = `Bearer authorization="x", resource="https://vault.azure.net"` }, "contoso/key", "is no vault", 1},
		{"another's challenge", func() { v.resource = "https://evil.example" }, "contoso/key", "asks for a token for somebody else", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v.set(func() {
				v.secrets, v.refuse, v.code, v.challenge, v.resource = map[string]string{"key": "canary value"}, 0, "", "", "https://vault.azure.net"
				tt.set()
			})
			v.asked()
			got, err := get(t, NewStore(Options{Transport: v.transport()}).Read(Config{}), tt.ref)
			if err == nil || !strings.Contains(err.Error(), tt.want) || got.Text != "" {
				t.Errorf("got %+v, %v; want %s", got, err, tt.want)
			}
			if err != nil && (strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), token)) {
				t.Errorf("it says too much: %v", err)
			}
			if n := len(v.asked()); n > tt.requestsAtMost {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// While a vault or the identity is away, what was read before is kept, and the vault is
// asked once for all of its secrets.
func TestAway(t *testing.T) {
	v := newVault(t)
	identity(t)
	v.set(func() { v.secrets = map[string]string{"a": "one", "b": "two"} })
	s := NewStore(Options{Transport: v.transport()})
	r := s.Read(Config{})
	for _, ref := range []string{"contoso/a", "contoso/b"} {
		if _, err := get(t, r, ref); err != nil {
			t.Fatal(err)
		}
	}
	v.asked()
	v.set(func() { v.refuse, v.code = 503, "ServiceUnavailable" })
	r = s.Read(Config{})
	for ref, want := range map[string]string{"contoso/a": "one", "contoso/b": "two"} {
		got, err := get(t, r, ref)
		if err != nil || got.Text != want || got.Kept == nil || !strings.Contains(got.Kept.Error(), "HTTP 503 ServiceUnavailable") {
			t.Errorf("%s: got %+v, %v", ref, got, err)
		}
	}
	if n := len(v.asked()); n != 3 { // the first try and two more, of the first secret
		t.Errorf("%d requests", n)
	}
	if _, err := get(t, r, "contoso/new"); err == nil || !strings.Contains(err.Error(), "try again later") {
		t.Errorf("a secret that was never read: %v", err)
	}
	// A refusal is an answer, and nothing is kept against it.
	v.set(func() { v.refuse, v.code = 403, "Forbidden" })
	if _, err := get(t, s.Read(Config{}), "contoso/a"); err == nil {
		t.Error("what is no longer allowed is still given")
	}
	v.set(func() { v.refuse = 0 })
	if got, err := get(t, s.Read(Config{}), "contoso/a"); err != nil || got.Kept != nil {
		t.Errorf("after it is back: %+v, %v", got, err)
	}
	if _, err := get(t, s.Read(Config{}), "gone/a"); err == nil || !strings.Contains(err.Error(), "there is no host gone.vault.azure.net") {
		t.Errorf("a vault that there is not: %v", err)
	}
}

// Where there is no identity, the error says how to come by one.
func TestNoIdentity(t *testing.T) {
	v := newVault(t)
	identity(t)
	t.Setenv("IDENTITY_HEADER", "wrong")
	t.Setenv("AZURE_CLIENT_ID", "99999999-2222-3333-4444-555555555555") // the SDK keeps the tokens of the other
	t.Setenv("PATH", t.TempDir())                                       // nobody is signed in by a tool
	_, err := get(t, NewStore(Options{Transport: v.transport()}).Read(Config{}), "contoso/a")
	if err == nil || !strings.Contains(err.Error(), "AZURE_CLIENT_ID") || !strings.Contains(err.Error(), "--offline") {
		t.Errorf("got %v", err)
	}
	if gone, ok := errors.AsType[*awayError](err); !ok {
		t.Errorf("it may be back: %v", gone)
	}
}

func TestParse(t *testing.T) {
	for in, want := range map[string]Reference{
		"contoso/key":                            {"contoso", "key", ""},
		"contoso/key/0a1b":                       {"contoso", "key", "0a1b"},
		"v.vault.azure.cn/k":                     {"v.vault.azure.cn", "k", ""},
		"https://v.net:8443/k":                   {"v.net:8443", "k", ""},
		"https://v.vault.azure.net/secrets/k/0a": {"v.vault.azure.net", "k", "0a"},
	} {
		if got, err := ParseReference(in); err != nil || got != want {
			t.Errorf("%s: got %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "contoso", "contoso/", "/key", "c/key", "con toso/key", "contoso/k_y", "contoso/key/", "contoso/key/a/b", "-abc/key", "http://v.vault.azure.net/k", "https://u@v.net/k", "https:///k", "contoso/key?x"} {
		if got, err := ParseReference(in); err == nil {
			t.Errorf("%q: got %+v", in, got)
		}
	}
	for in, want := range map[string]string{"": "vault.azure.net", ".Vault.azure.cn": "vault.azure.cn", "https://contoso.vault.usgovcloudapi.net/": "vault.usgovcloudapi.net"} {
		if got, err := ParseSuffix(in); err != nil || got != want {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"vault", "a b.c", "https://x", "vault.azure.net/x"} {
		if got, err := ParseSuffix(in); err == nil {
			t.Errorf("%q: got %q", in, got)
		}
	}
}
