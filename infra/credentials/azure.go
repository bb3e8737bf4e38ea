package credentials

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/gridfan/gridfan/infra/secret"
)

// defaultScope is the suffix by which Entra gives a token for all that the identity
// may do at an application (learn.microsoft.com/entra/identity-platform/
// scopes-oidc#the-default-scope; 2026-11).
const defaultScope = "/.default"

func withDefault(scope string) string {
	if strings.HasSuffix(scope, defaultScope) {
		return scope
	}
	return scope + defaultScope
}

// clientOptions make an SDK send by x, and once: the waits between attempts are
// the source's.
func clientOptions(x *exchange) azcore.ClientOptions {
	return azcore.ClientOptions{Transport: x.client(), Retry: policy.RetryOptions{MaxRetries: -1}}
}

// fetchManaged asks the machine's or container's own token endpoint once. Which one
// that is, the process's environment says (IDENTITY_ENDPOINT and the like), and
// otherwise it is the instance metadata service.
func fetchManaged(ctx context.Context, m *ManagedIdentity, base http.RoundTripper, scope string) (string, time.Time, error) {
	x := &exchange{base: base, hide: secret.NewVeil(os.Getenv("IDENTITY_HEADER"), os.Getenv("MSI_SECRET"))}
	opts := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: clientOptions(x)}
	if m.ClientID != "" {
		opts.ID = azidentity.ClientID(m.ClientID)
	}
	cred, err := azidentity.NewManagedIdentityCredential(opts)
	if err != nil {
		return "", time.Time{}, x.failure(ctx, "this machine's managed identity cannot be used: "+x.hide.Printable(err.Error(), maxWords))
	}
	// Claims of any kind make the library pass its own cache by, which all
	// credentials of the process share (MSAL for Go 1.10.1).
	return azureToken(ctx, x, cred, policy.TokenRequestOptions{Scopes: []string{withDefault(scope)}, Claims: "{}"}, notToken)
}

// fetchWorkload exchanges the pod's token for one of Entra. Each has a credential
// of its own, because that keeps tokens longer than we want to use them.
func fetchWorkload(ctx context.Context, w *WorkloadIdentity, base http.RoundTripper, scope string) (string, time.Time, error) {
	pod, _ := readFile(os.Getenv("AZURE_FEDERATED_TOKEN_FILE")) // the credential says what is wrong with it
	x := &exchange{base: base, hide: secret.NewVeil(strings.TrimSpace(string(pod)))}
	cred, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
		ClientOptions: clientOptions(x), ClientID: w.ClientID, TenantID: w.Tenant,
		// The authority is the pod's environment's: there is nobody to ask whether
		// it is a known one.
		DisableInstanceDiscovery: true,
	})
	if err != nil {
		return "", time.Time{}, x.failure(ctx, "this pod has no workload identity: "+x.hide.Printable(err.Error(), maxWords))
	}
	return azureToken(ctx, x, cred, policy.TokenRequestOptions{Scopes: []string{withDefault(scope)}}, "the service account's token cannot be read")
}

// fetchFound asks whatever DefaultAzureCredential finds: the environment, the pod's or
// the machine's identity, and the tools that a developer is signed in with.
func fetchFound(ctx context.Context, base http.RoundTripper, scope string) (string, time.Time, error) {
	x := &exchange{base: base, hide: secret.NewVeil(os.Getenv("AZURE_CLIENT_SECRET"), os.Getenv("IDENTITY_HEADER"), os.Getenv("MSI_SECRET"))}
	const none = "nothing that DefaultAzureCredential of the Azure SDK tries has a token here"
	cred, err := azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: clientOptions(x)})
	if err != nil {
		return "", time.Time{}, x.failure(ctx, none)
	}
	return azureToken(ctx, x, cred, policy.TokenRequestOptions{Scopes: []string{withDefault(scope)}}, none)
}

const notToken = "its answer is no token"

// azureToken asks once. unasked says what is wrong when nobody was asked.
func azureToken(ctx context.Context, x *exchange, cred azcore.TokenCredential, opts policy.TokenRequestOptions, unasked string) (string, time.Time, error) {
	t, err := cred.GetToken(ctx, opts)
	if err != nil {
		fallback := notToken
		if x.host == "" {
			fallback = unasked
		}
		return "", time.Time{}, x.failure(ctx, fallback)
	}
	if problem := checkToken(t.Token, ""); problem != "" {
		return "", time.Time{}, x.failure(ctx, problem)
	}
	if t.ExpiresOn.Before(time.Now()) {
		return "", time.Time{}, x.failure(ctx, "its token has expired already")
	}
	return t.Token, t.ExpiresOn, nil
}

// maxScopes bounds what one subscriber's SDK can ask for; a client of one service
// asks for one.
const maxScopes = 8

// azureCredential is what SDKs of Azure take. It keeps tokens as Credentials do.
type azureCredential struct {
	c *Credentials

	mu     sync.Mutex // guards sources
	scopes map[string]*source
}

var _ azcore.TokenCredential = (*azureCredential)(nil)

// GetToken gives a token for the one scope that is asked for; see
// azcore.TokenCredential. Its error is an *Error.
func (a *azureCredential) GetToken(ctx context.Context, opts policy.TokenRequestOptions) (azcore.AccessToken, error) {
	if len(opts.Scopes) != 1 {
		return azcore.AccessToken{}, errors.New("want one scope")
	}
	s, err := a.source(opts.Scopes[0])
	if err != nil {
		return azcore.AccessToken{}, err
	}
	t, err := s.get(ctx)
	if err != nil {
		return azcore.AccessToken{}, err
	}
	return azcore.AccessToken{Token: t.value, ExpiresOn: t.until, RefreshOn: t.refresh}, nil
}

func (a *azureCredential) source(scope string) (*source, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.scopes[scope]
	if s == nil {
		if len(a.scopes) == maxScopes {
			return nil, errors.New("too many scopes")
		}
		s = newSource(func(ctx context.Context) (string, time.Time, error) { return a.c.fetch(ctx, scope) }, a.c.log)
		a.scopes[scope] = s
	}
	return s, nil
}

func (a *azureCredential) each(do func(*source)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.scopes {
		do(s)
	}
}
