package credentials

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
)

// Identities have an id of their own in every test: the SDK shares its cache.
const identity = "11111111-2222-3333-4444-%012d"

// to leads every connection to a stand-in.
func to(srv *httptest.Server) *http.Transport {
	t := newTransport()
	t.Proxy = nil
	t.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, srv.Listener.Addr().String())
	}
	return t
}

// noEnvironment takes away what the machine of the test may have.
func noEnvironment(t *testing.T) {
	for _, name := range []string{
		"IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IDENTITY_SERVER_THUMBPRINT", "IMDS_ENDPOINT", "MSI_ENDPOINT", "MSI_SECRET",
		"AZURE_POD_IDENTITY_AUTHORITY_HOST", "AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_AUTHORITY_HOST",
		"AZURE_TOKEN_CREDENTIALS",
	} {
		t.Setenv(name, "")
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
}

// The instance metadata service of a VM, as learn.microsoft.com/entra/identity/
// managed-identities-azure-resources/how-to-use-vm-token has it (2026-11).
func TestManagedIdentityOfAVM(t *testing.T) {
	noEnvironment(t)
	var asked atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := asked.Add(1)
		q := r.URL.Query()
		if r.Host != "169.254.169.254" || r.URL.Path != "/metadata/identity/oauth2/token" || r.Header.Get("Metadata") != "true" ||
			q.Get("resource") != "api://wms" || q.Get("client_id") != fmt.Sprintf(identity, 1) {
			t.Errorf("%s %s %v", r.Host, r.URL, r.Header)
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":"canary-%d","client_id":"x","expires_in":"86400","expires_on":"%d","resource":"api://wms","token_type":"Bearer"}`,
			n, time.Now().Add(24*time.Hour).Unix())
	}))
	defer srv.Close()
	a := &Auth{ManagedIdentity: &ManagedIdentity{ClientID: fmt.Sprintf(identity, 1), Scope: "api://wms"}}
	if err := a.Validate("auth"); err != nil {
		t.Fatal(err)
	}
	c := New(a, Options{identity: to(srv)})
	defer c.Close()
	for range 3 {
		if got := apply(t, c); got != "Bearer canary-1" {
			t.Errorf("got %s", got)
		}
	}
	// The SDK's own cache does not stand in the way of a new one.
	c.RetryNow()
	if got := apply(t, c); got != "Bearer canary-2" {
		t.Errorf("got %s", got)
	}
	if life := time.Until(c.tokens.current.Load().expires); life < 23*time.Hour || life > 25*time.Hour {
		t.Errorf("lasts %v", life)
	}
}

// App Service and Container Apps name their endpoint in the environment
// (learn.microsoft.com/azure/app-service/overview-managed-identity; 2026-11).
func TestManagedIdentityOfAnApp(t *testing.T) {
	noEnvironment(t)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if r.URL.Path != "/msi/token" || r.Header.Get("X-IDENTITY-HEADER") != "canary-header" || q.Get("resource") != "api://app" || q.Get("client_id") != "" {
			t.Errorf("%s %v", r.URL, r.Header)
		}
		fmt.Fprintf(w, `{"access_token":"canary","expires_on":"%d","resource":"api://app","token_type":"Bearer"}`, time.Now().Add(time.Hour).Unix())
	}))
	defer srv.Close()
	t.Setenv("IDENTITY_ENDPOINT", srv.URL+"/msi/token")
	t.Setenv("IDENTITY_HEADER", "canary-header")
	c := New(&Auth{ManagedIdentity: &ManagedIdentity{Scope: "api://app/.default"}}, Options{})
	defer c.Close()
	if got := apply(t, c); got != "Bearer canary" {
		t.Errorf("got %s", got)
	}
}

func TestManagedIdentityFailures(t *testing.T) {
	noEnvironment(t)
	t.Setenv("IDENTITY_HEADER", "canary-header")
	closed := httptest.NewServer(nil)
	for i, tt := range []struct {
		name   string
		answer func(w http.ResponseWriter, r *http.Request)
		want   string
	}{
		{"none assigned", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(400)
			fmt.Fprint(w, `{"error":"invalid_request","error_description":"Identity not found"}`)
		}, "HTTP 400: invalid_request: Identity not found"},
		{"busy", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, "HTTP 503"},
		{"quotes", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(400)
			fmt.Fprintf(w, `{"statusCode":400,"message":"not canary-header but %s"}`, r.Header.Get("X-IDENTITY-HEADER"))
		}, "HTTP 400: not <redacted> but <redacted>"},
		{"page", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "canary") }, "HTTP 200: its answer is no token"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, closed.URL, http.StatusFound) }, "HTTP 302: redirects are not followed"},
		{"endless", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}, "its answer is longer than 64 KiB"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(tt.answer))
			defer srv.Close()
			t.Setenv("IDENTITY_ENDPOINT", srv.URL)
			m := &ManagedIdentity{ClientID: fmt.Sprintf(identity, 100+i), Scope: "api://x"}
			_, _, err := fetchManaged(t.Context(), m, newTransport(), m.Scope)
			if e, ok := errors.AsType[*Error](err); !ok || !strings.Contains(e.Reason, tt.want) || strings.Contains(e.Reason, "canary") || len(e.Reason) > 400 {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	closed.Close()
	t.Setenv("IDENTITY_ENDPOINT", closed.URL)
	if _, _, err := fetchManaged(t.Context(), &ManagedIdentity{}, newTransport(), "api://y"); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v", err)
	}
}

// The pod's token is exchanged at the authority of the environment, and read again
// when it is replaced (learn.microsoft.com/azure/aks/workload-identity-overview;
// 2026-11).
func TestWorkloadIdentity(t *testing.T) {
	noEnvironment(t)
	ca := newAuthority(t, "ca")
	var shown atomic.Value
	var refuse atomic.Bool
	host := ""
	srv := ca.secure(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		base := "https://" + host + "/contoso.com"
		switch r.URL.Path {
		case "/contoso.com/v2.0/.well-known/openid-configuration":
			_ = json.NewEncoder(w).Encode(map[string]string{
				"issuer": base + "/v2.0", "authorization_endpoint": base + "/oauth2/v2.0/authorize", "token_endpoint": base + "/oauth2/v2.0/token",
			})
		case "/contoso.com/oauth2/v2.0/token":
			if err := r.ParseForm(); err != nil {
				t.Error(err)
			}
			assertion := r.PostForm.Get("client_assertion")
			shown.Store(assertion)
			if refuse.Load() {
				w.WriteHeader(401)
				fmt.Fprintf(w, `{"error":"invalid_client","error_description":"AADSTS700213: no match for %s"}`, assertion)
				return
			}
			if got := r.PostForm.Get("scope"); !strings.Contains(got, "api://wms/.default") || r.PostForm.Get("client_id") != fmt.Sprintf(identity, 2) {
				t.Errorf("%v", r.PostForm)
			}
			fmt.Fprintf(w, `{"access_token":"canary for %s","expires_in":3599,"token_type":"Bearer"}`, assertion)
		default:
			t.Errorf("unexpected %s", r.URL)
			w.WriteHeader(404)
		}
	}), nil, "login.example.com", time.Now().Add(time.Hour))
	host = srv.Listener.Addr().String()
	transport := newTransport()
	transport.TLSClientConfig = srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	transport.TLSClientConfig.RootCAs = ca.pool()

	a := &Auth{WorkloadIdentity: &WorkloadIdentity{Scope: "api://wms"}}
	if err := a.Validate("auth"); err != nil {
		t.Fatal(err)
	}
	c := New(a, Options{identity: transport})
	defer c.Close()
	if _, err := c.Apply(t.Context(), http.Header{}); err == nil || !strings.Contains(err.Error(), "no token: this pod has no workload identity: no client ID specified") {
		t.Errorf("got %v", err)
	}
	file := filepath.Join(t.TempDir(), "token")
	t.Setenv("AZURE_CLIENT_ID", fmt.Sprintf(identity, 2))
	t.Setenv("AZURE_TENANT_ID", "contoso.com")
	t.Setenv("AZURE_AUTHORITY_HOST", "https://"+host+"/")
	t.Setenv("AZURE_FEDERATED_TOKEN_FILE", file)
	c.RetryNow()
	if _, err := c.Apply(t.Context(), http.Header{}); err == nil || !strings.Contains(err.Error(), "no token") {
		t.Errorf("got %v", err)
	}
	for _, pod := range []string{"canary-pod-1", "canary-pod-2"} {
		write(t, file, []byte(pod))
		c.RetryNow()
		if _, err := c.Apply(t.Context(), http.Header{}); err == nil {
			t.Error("a token with blanks")
		}
		if shown.Load() != pod {
			t.Errorf("shown %v", shown.Load())
		}
	}
	refuse.Store(true)
	c.RetryNow()
	_, err := c.Apply(t.Context(), http.Header{})
	if err == nil || !strings.Contains(err.Error(), "HTTP 401: invalid_client: AADSTS700213: no match for <redacted>") {
		t.Errorf("got %v", err)
	}
}

// What the SDKs take has tokens for the scope that they want, cached here.
func TestAzureCredential(t *testing.T) {
	srv, all, _ := tokenServer(t)
	a := &Auth{OAuth2: &OAuth2{TokenURL: srv.URL, ClientID: "g", ClientSecret: canary, Scope: "own"}}
	if err := a.ValidateAzure("auth"); err != nil {
		t.Fatal(err)
	}
	c := New(a, Options{})
	defer c.Close()
	cred := c.Azure()
	for range 3 {
		got, err := cred.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{"https://servicebus.azure.net/.default"}})
		if err != nil || got.Token != "canary-token-1" || time.Until(got.ExpiresOn) < 50*time.Minute {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	if got := (*all)[0].form.Get("scope"); got != "https://servicebus.azure.net/.default" || len(*all) != 1 {
		t.Errorf("%d requests, scope %q", len(*all), got)
	}
	for i := range maxScopes + 1 {
		_, err := cred.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{fmt.Sprint(i)}})
		if (err == nil) != (i < maxScopes-1) {
			t.Errorf("scope %d: %v", i, err)
		}
	}
	for _, a := range []*Auth{{Bearer: &Bearer{Token: "x"}}, {Basic: &Basic{}}, {APIKey: &APIKey{}}} {
		if err := a.ValidateAzure("auth"); err == nil || New(a, Options{}).Azure() != nil {
			t.Errorf("%s will do: %v", a.Kind(), err)
		}
	}
	if err := (&Auth{ManagedIdentity: &ManagedIdentity{}}).ValidateAzure("auth"); err != nil {
		t.Errorf("the SDK says the scope: %v", err)
	}
}

// What DefaultAzureCredential finds is asked for once and kept; where it finds nothing,
// the reason shows none of its pages of advice.
func TestFoundIdentity(t *testing.T) {
	noEnvironment(t)
	t.Setenv("PATH", t.TempDir()) // no tools of developers
	auth := AzureAuth{Default: true}
	if err := auth.Validate("x", AzureIdentities...); err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.Header.Get("X-IDENTITY-HEADER") != "canary-header" || r.URL.Query().Get("resource") != "https://found.example.net" {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"error":"no identity for canary-header"}`)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":"canary","expires_on":"%d","resource":"r","token_type":"Bearer"}`, time.Now().Add(24*time.Hour).Unix())
	}))
	defer srv.Close()
	t.Setenv("IDENTITY_ENDPOINT", srv.URL)
	t.Setenv("IDENTITY_HEADER", "canary-header")
	get := func(scope string) (string, error) {
		c := New(auth.identity(), Options{found: true, identity: to(srv)})
		defer c.Close()
		var value string
		for range 3 {
			token, err := c.Azure().GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{scope}})
			if err != nil {
				return "", err
			}
			value = token.Token
		}
		return value, nil
	}
	if token, err := get("https://found.example.net/.default"); err != nil || token != "canary" {
		t.Errorf("got %q, %v", token, err)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
	_, err := get("https://another.example.net/.default")
	if e, ok := errors.AsType[*Error](err); !ok || strings.Contains(e.Reason, "canary") || !strings.HasPrefix(e.Reason, NoToken) || len(e.Reason) > 512 {
		t.Errorf("got %v", err)
	}
	if (AzureAuth{Key: "k"}).Credentials(nil) != nil {
		t.Error("a key has credentials")
	}
}
