// Package azure holds what gridfan shows to Azure services to be let in: keys, and
// the identities of Microsoft Entra ID through azidentity.
package azure

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/gridfan/gridfan/infra/secret"
)

// Auth says who gridfan is towards a service; exactly one field is set. Key, SAS
// and ConnectionString are secret, so show it only through Redacted.
type Auth struct {
	// Key is an access key of the resource.
	Key string `json:"key,omitempty"`
	// SAS is a shared access signature that somebody else has made.
	SAS string `json:"sas,omitempty"`
	// ConnectionString is the one that the portal shows beside a policy.
	ConnectionString string `json:"connectionString,omitempty"`
	// ManagedIdentity is that of the machine or app gridfan runs on.
	ManagedIdentity *ManagedIdentity `json:"managedIdentity,omitempty"`
	// WorkloadIdentity is that of a Kubernetes service account.
	WorkloadIdentity *WorkloadIdentity `json:"workloadIdentity,omitempty"`
	// Default tries what there is, in the order of azidentity's
	// DefaultAzureCredential: environment, workload and managed identity, and the
	// tools a developer is signed in with.
	Default bool `json:"default,omitempty"`
}

// ManagedIdentity is an identity that Azure gives to what runs on it.
type ManagedIdentity struct {
	// ClientID is that of a user-assigned identity. Empty: the system-assigned one.
	ClientID string `json:"clientId,omitempty"`
}

// WorkloadIdentity is an identity that a token in a file stands for. What is empty
// is taken from the environment, where the webhook of AKS puts it.
type WorkloadIdentity struct {
	ClientID  string `json:"clientId,omitempty"`
	TenantID  string `json:"tenantId,omitempty"`
	TokenFile string `json:"tokenFile,omitempty"`
}

// Method is one way to be let in, by the name of its key.
type Method string

// The methods.
const (
	Key              Method = "key"
	SAS              Method = "sas"
	ConnectionString Method = "connectionString"
	Managed          Method = "managedIdentity"
	Workload         Method = "workloadIdentity"
	Default          Method = "default"
)

// Identities are the methods by which a token of Entra ID is got.
var Identities = []Method{Managed, Workload, Default}

// Methods are those that a has set; a valid Auth has one.
func (a Auth) Methods() []Method {
	var set []Method
	for _, m := range []struct {
		set  bool
		name Method
	}{
		{a.Key != "", Key}, {a.SAS != "", SAS}, {a.ConnectionString != "", ConnectionString},
		{a.ManagedIdentity != nil, Managed}, {a.WorkloadIdentity != nil, Workload}, {a.Default, Default},
	} {
		if m.set {
			set = append(set, m.name)
		}
	}
	return set
}

// Secrets are the texts in a that nobody may see.
func (a Auth) Secrets() []string {
	return slices.DeleteFunc([]string{a.Key, a.SAS, a.ConnectionString}, func(s string) bool { return s == "" })
}

// maxSecret is far above what any service gives out.
const maxSecret = 4 << 10

// hidden is how a secret is shown.
var hidden = secret.New("x").String()

// Validate reports every problem, each beginning with the path of its key below
// path. allowed are the methods that the service knows.
func (a Auth) Validate(path string, allowed ...Method) error {
	var errs []error
	set := a.Methods()
	names := make([]string, len(allowed))
	for i, m := range allowed {
		names[i] = string(m)
	}
	switch {
	case len(set) == 0:
		errs = append(errs, fmt.Errorf("%s: missing; want one of %s", path, strings.Join(names, ", ")))
	case len(set) > 1:
		errs = append(errs, fmt.Errorf("%s: %s and %s exclude each other; keep one", path, set[0], set[1]))
	case !slices.Contains(allowed, set[0]):
		errs = append(errs, fmt.Errorf("%s.%s: not known to this service; want one of %s", path, set[0], strings.Join(names, ", ")))
	}
	for _, s := range []struct {
		name Method
		text string
	}{{Key, a.Key}, {SAS, a.SAS}, {ConnectionString, a.ConnectionString}} {
		switch {
		case s.text == hidden:
			errs = append(errs, fmt.Errorf("%s.%s: it is hidden, and it is not to be kept, since it goes elsewhere than before; give the whole", path, s.name))
		case len(s.text) > maxSecret:
			errs = append(errs, fmt.Errorf("%s.%s: want at most %d bytes, got %d", path, s.name, maxSecret, len(s.text)))
		case strings.ContainsFunc(s.text, func(r rune) bool { return r <= ' ' && s.name != ConnectionString || r < ' ' || r > '~' }):
			errs = append(errs, fmt.Errorf("%s.%s: want printable ASCII without blanks; was it copied whole?", path, s.name))
		}
	}
	if m := a.ManagedIdentity; m != nil {
		errs = append(errs, identifier(path+".managedIdentity.clientId", m.ClientID))
	}
	if w := a.WorkloadIdentity; w != nil {
		errs = append(errs, identifier(path+".workloadIdentity.clientId", w.ClientID), identifier(path+".workloadIdentity.tenantId", w.TenantID))
		if strings.ContainsRune(w.TokenFile, 0) || w.TokenFile != "" && !strings.HasPrefix(w.TokenFile, "/") {
			errs = append(errs, fmt.Errorf("%s.workloadIdentity.tokenFile: want an absolute path, as in /var/run/secrets/azure/tokens/azure-identity-token", path))
		}
	}
	return errors.Join(errs...)
}

// identifier checks an id of Entra ID; a tenant can also be a domain.
func identifier(path, id string) error {
	if len(id) > 253 || strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.") != "" {
		return fmt.Errorf("%s: want an id such as 00000000-0000-0000-0000-000000000000", path)
	}
	return nil
}

// Redacted returns a with its secrets hidden.
func (a Auth) Redacted() Auth {
	a.Key, a.SAS, a.ConnectionString = secret.New(a.Key).String(), secret.New(a.SAS).String(), secret.New(a.ConnectionString).String()
	return a
}

// Reveal puts the secrets of was in the place of those that Redacted has hidden.
func (a *Auth) Reveal(was Auth) {
	for _, s := range []struct{ now, was *string }{{&a.Key, &was.Key}, {&a.SAS, &was.SAS}, {&a.ConnectionString, &was.ConnectionString}} {
		if *s.now == hidden {
			*s.now = *s.was
		}
	}
}

// Credential gives the identity that a names; nil if it is a key. It sends nothing
// yet. client sends the requests for tokens; nil means the SDK's own.
func (a Auth) Credential(client *http.Client) (azcore.TokenCredential, error) {
	opts := policy.ClientOptions{}
	if client != nil {
		opts.Transport = client
	}
	switch {
	case a.ManagedIdentity != nil:
		o := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: opts}
		if id := a.ManagedIdentity.ClientID; id != "" {
			o.ID = azidentity.ClientID(id)
		}
		return made(azidentity.NewManagedIdentityCredential(o))
	case a.WorkloadIdentity != nil:
		w := a.WorkloadIdentity
		return made(azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
			ClientOptions: opts, ClientID: w.ClientID, TenantID: w.TenantID, TokenFilePath: w.TokenFile,
		}))
	case a.Default:
		return made(azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: opts}))
	}
	return nil, nil
}

// made keeps a nil pointer from becoming a credential.
func made[C azcore.TokenCredential](c C, err error) (azcore.TokenCredential, error) {
	if err != nil {
		return nil, err
	}
	return newPatient(c), nil
}
