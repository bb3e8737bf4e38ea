package credentials

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/gridfan/gridfan/infra/secret"
)

// AzureAuth says who gridfan is towards a service of Azure that is reached by one of
// its SDKs; exactly one field is set. Key, SAS and ConnectionString are secret, so
// show it only through Redacted.
type AzureAuth struct {
	// Key is an access key of the resource.
	Key string `json:"key,omitempty"`
	// SAS is a shared access signature that somebody else has made.
	SAS string `json:"sas,omitempty"`
	// ConnectionString is the one that the portal shows beside a policy.
	ConnectionString string `json:"connectionString,omitempty"`
	// ManagedIdentity and WorkloadIdentity get tokens. The SDK says what for: neither
	// has a scope.
	ManagedIdentity  *ManagedIdentity  `json:"managedIdentity,omitempty"`
	WorkloadIdentity *WorkloadIdentity `json:"workloadIdentity,omitempty"`
	// Default tries what there is, in the order of azidentity's
	// DefaultAzureCredential: environment, workload and managed identity, and the
	// tools a developer is signed in with.
	Default bool `json:"default,omitempty"`
}

// AzureMethod is one way of AzureAuth, by the name of its key.
type AzureMethod string

// The methods.
const (
	AzureKey              AzureMethod = "key"
	AzureSAS              AzureMethod = "sas"
	AzureConnectionString AzureMethod = "connectionString"
	AzureManaged          AzureMethod = "managedIdentity"
	AzureWorkload         AzureMethod = "workloadIdentity"
	AzureDefault          AzureMethod = "default"
)

// AzureIdentities are the methods by which a token of Entra ID is got.
var AzureIdentities = []AzureMethod{AzureManaged, AzureWorkload, AzureDefault}

// Methods are those that a has set; a valid Auth has one.
func (a AzureAuth) Methods() []AzureMethod {
	var set []AzureMethod
	for _, m := range []struct {
		set  bool
		name AzureMethod
	}{
		{a.Key != "", AzureKey}, {a.SAS != "", AzureSAS}, {a.ConnectionString != "", AzureConnectionString},
		{a.ManagedIdentity != nil, AzureManaged}, {a.WorkloadIdentity != nil, AzureWorkload}, {a.Default, AzureDefault},
	} {
		if m.set {
			set = append(set, m.name)
		}
	}
	return set
}

// Secrets are the texts in a that nobody may see.
func (a AzureAuth) Secrets() []string {
	return slices.DeleteFunc([]string{a.Key, a.SAS, a.ConnectionString}, func(s string) bool { return s == "" })
}

// Validate reports every problem, each beginning with the path of its key below
// path. allowed are the methods that the service knows.
func (a AzureAuth) Validate(path string, allowed ...AzureMethod) error {
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
		name AzureMethod
		text string
	}{{AzureKey, a.Key}, {AzureSAS, a.SAS}, {AzureConnectionString, a.ConnectionString}} {
		switch {
		case s.text == string(hidden):
			errs = append(errs, fmt.Errorf("%s.%s: it is hidden, and it is not to be kept, since it goes elsewhere than before; give the whole", path, s.name))
		case len(s.text) > maxSecret:
			errs = append(errs, fmt.Errorf("%s.%s: want at most %d bytes, got %d", path, s.name, maxSecret, len(s.text)))
		case strings.ContainsFunc(s.text, func(r rune) bool { return r <= ' ' && s.name != AzureConnectionString || r < ' ' || r > '~' }):
			errs = append(errs, fmt.Errorf("%s.%s: want printable ASCII without blanks; was it copied whole?", path, s.name))
		}
	}
	if (a.ManagedIdentity != nil) != (a.WorkloadIdentity != nil) {
		errs = append(errs, a.identity().ValidateAzure(path))
	}
	if m := a.ManagedIdentity; m != nil && m.Scope != "" {
		errs = append(errs, fmt.Errorf("%s.managedIdentity.scope: what the token is for is known; leave the key out", path))
	}
	if w := a.WorkloadIdentity; w != nil && w.Scope != "" {
		errs = append(errs, fmt.Errorf("%s.workloadIdentity.scope: what the token is for is known; leave the key out", path))
	}
	return errors.Join(errs...)
}

// identity gives a's own way to tokens.
func (a AzureAuth) identity() *Auth {
	return &Auth{ManagedIdentity: a.ManagedIdentity, WorkloadIdentity: a.WorkloadIdentity}
}

// Credentials gives those that get a's tokens; nil if it has a key. The caller closes
// them.
func (a AzureAuth) Credentials(log *slog.Logger) *Credentials {
	if a.ManagedIdentity == nil && a.WorkloadIdentity == nil && !a.Default {
		return nil
	}
	return New(a.identity(), Options{Log: log, found: a.Default})
}

// Redacted returns a with its secrets hidden.
func (a AzureAuth) Redacted() AzureAuth {
	a.Key, a.SAS, a.ConnectionString = secret.New(a.Key).String(), secret.New(a.SAS).String(), secret.New(a.ConnectionString).String()
	return a
}

// Reveal puts the secrets of was in the place of those that Redacted has hidden.
func (a *AzureAuth) Reveal(was AzureAuth) {
	for _, s := range []struct{ now, was *string }{{&a.Key, &was.Key}, {&a.SAS, &was.SAS}, {&a.ConnectionString, &was.ConnectionString}} {
		if *s.now == string(hidden) {
			*s.now = *s.was
		}
	}
}
