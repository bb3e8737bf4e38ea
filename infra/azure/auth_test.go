package azure

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
)

// authority answers in the place of Entra ID and of a machine's metadata service.
type authority func(*http.Request) (status int, body any)

func (a authority) RoundTrip(r *http.Request) (*http.Response, error) {
	status, body := a(r)
	b, err := json.Marshal(body)
	return &http.Response{
		StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(strings.NewReader(string(b))), Request: r,
	}, err
}

// The identities that a configuration names ask with the real client for the tokens
// that they should.
func TestCredential(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("assertion"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT", "IMDS_ENDPOINT", "AZURE_AUTHORITY_HOST"} {
		t.Setenv(name, "") // this is no machine in Azure
		os.Unsetenv(name)
	}
	for name, tt := range map[string]struct {
		auth Auth
		want string
	}{
		"managed":  {Auth{ManagedIdentity: &ManagedIdentity{ClientID: "11-22"}}, "client_id=11-22"},
		"system":   {Auth{ManagedIdentity: &ManagedIdentity{}}, "resource=https%3A%2F%2Feventgrid.azure.net"},
		"workload": {Auth{WorkloadIdentity: &WorkloadIdentity{ClientID: "11-22", TenantID: "33-44", TokenFile: file}}, "client_assertion=assertion"},
	} {
		var seen atomic.Value
		cred, err := tt.auth.Credential(&http.Client{Transport: authority(func(r *http.Request) (int, any) {
			if strings.HasSuffix(r.URL.Path, "/.well-known/openid-configuration") {
				base := "https://login.microsoftonline.com/33-44/"
				return 200, map[string]string{"authorization_endpoint": base + "a", "token_endpoint": base + "t", "issuer": base + "v2.0"}
			}
			body := []byte{}
			if r.Body != nil {
				body, _ = io.ReadAll(r.Body)
			}
			seen.Store(r.URL.RawQuery + "&" + string(body))
			return 200, map[string]any{"access_token": "canary", "expires_in": 3600, "expires_on": time.Now().Add(time.Hour).Unix(), "token_type": "Bearer"}
		})})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		token, err := cred.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{"https://eventgrid.azure.net/.default"}})
		if err != nil || token.Token != "canary" {
			t.Errorf("%s: %v", name, err)
		}
		if got, _ := seen.Load().(string); !strings.Contains(got, tt.want) {
			t.Errorf("%s: asked with %s, want %s", name, got, tt.want)
		}
	}
	if c, err := (Auth{Key: "k"}).Credential(nil); c != nil || err != nil {
		t.Errorf("a key has the identity %v, %v", c, err)
	}
	if c, err := (Auth{Default: true}).Credential(nil); c == nil || err != nil {
		t.Errorf("default: %v, %v", c, err)
	}
}

// slow gives a token when it may.
type slow struct {
	asked atomic.Int32
	may   chan struct{}
	err   error
}

func (s *slow) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	s.asked.Add(1)
	<-s.may
	return azcore.AccessToken{Token: "t"}, s.err
}

// Many ask once. Who has no time goes, even the first, and the others get the token.
func TestPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{may: make(chan struct{})}
		p := newPatient(s)
		opts := policy.TokenRequestOptions{Scopes: []string{"a"}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.GetToken(ctx, opts); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("at the deadline: %v", err)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if token, err := p.GetToken(t.Context(), opts); err != nil || token.Token != "t" {
					t.Errorf("got %v, %v", token, err)
				}
			})
		}
		synctest.Wait()
		close(s.may)
		wg.Wait()
		if n := s.asked.Load(); n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
		s.err = errors.New("no identity")
		if _, err := p.GetToken(t.Context(), opts); !errors.Is(err, s.err) {
			t.Errorf("got %v", err)
		}
	})
}
