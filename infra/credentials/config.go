package credentials

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/gridfan/gridfan/infra/secret"
)

// Auth is how gridfan shows a subscriber who it is. Exactly one field is set.
type Auth struct {
	OAuth2           *OAuth2           `json:"oauth2,omitempty"`
	ManagedIdentity  *ManagedIdentity  `json:"managedIdentity,omitempty"`
	WorkloadIdentity *WorkloadIdentity `json:"workloadIdentity,omitempty"`
	APIKey           *APIKey           `json:"apiKey,omitempty"`
	Basic            *Basic            `json:"basic,omitempty"`
	Bearer           *Bearer           `json:"bearer,omitempty"`
}

// OAuth2 gets tokens from a token server with the grant client_credentials
// (RFC 6749 §4.4). Of ClientSecret, Cert and Assertion exactly one is set.
type OAuth2 struct {
	// TokenURL is https, or http on this machine. Its query may carry a key, so
	// show it only through Redacted.
	TokenURL     string `json:"tokenURL"`
	ClientID     string `json:"clientID"`
	ClientSecret Secret `json:"clientSecret,omitempty"`
	// SecretIn is where the secret goes. Default InHeader.
	SecretIn SecretIn `json:"secretIn,omitempty"`
	// Cert is a PEM file with the client's certificate, and Key one with its
	// key, by default the same; they sign an assertion for every token
	// (private_key_jwt, RFC 7523). Both are read for each.
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
	// Algorithm of that signature. Default RS256, ES256 or the like, by the key.
	Algorithm string `json:"algorithm,omitempty"`
	// Assertion is a JWT that somebody else signed.
	Assertion Secret `json:"assertion,omitempty"`
	// Scope is one or more, with blanks between. Audience is the parameter that
	// some servers want in its place.
	Scope    string `json:"scope,omitempty"`
	Audience string `json:"audience,omitempty"`
	// Params are what else the token server wants. Shown without their values.
	Params map[string]Secret `json:"params,omitempty"`
	// CA is a PEM file of the authorities that may sign the token server's
	// certificate, in the place of the system's.
	CA string `json:"ca,omitempty"`
}

// SecretIn is where a token request has the client's secret.
type SecretIn string

// The places: those of RFC 6749 §2.3.1.
const (
	InHeader SecretIn = "header" // HTTP Basic
	InBody   SecretIn = "body"   // the form, with the client's id
)

// ManagedIdentity gets tokens for an identity that Azure has given to the machine
// or container.
type ManagedIdentity struct {
	// ClientID chooses a user-assigned identity. Empty: the system-assigned one.
	ClientID string `json:"clientID,omitempty"`
	// Scope is what the token is for: the subscriber's Application ID URI.
	Scope string `json:"scope"`
}

// WorkloadIdentity gets tokens from Entra for the service account of a pod, as AKS
// federates it. The token of the service account and Entra's address come from the
// pod's environment alone, so that no definition can have the one sent elsewhere.
type WorkloadIdentity struct {
	// ClientID and Tenant are by default those of the pod's environment.
	ClientID string `json:"clientID,omitempty"`
	Tenant   string `json:"tenant,omitempty"`
	// Scope is what the token is for: the subscriber's Application ID URI.
	Scope string `json:"scope"`
}

// APIKey is a key in a header or in the query; exactly one of the two is set.
type APIKey struct {
	Header string `json:"header,omitempty"`
	Query  string `json:"query,omitempty"`
	Value  Secret `json:"value"`
}

// Basic is HTTP Basic (RFC 7617).
type Basic struct {
	Username string `json:"username"`
	Password Secret `json:"password"`
}

// Bearer is a token that does not change.
type Bearer struct {
	Token Secret `json:"token"`
}

// TLS is how a subscriber's certificate is verified and which one it is shown. All
// are files as this process sees them, read again when they change.
type TLS struct {
	// Cert is a PEM file with the certificate to show and those of its issuers,
	// Key one with its key, by default the same file.
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
	// CA is a PEM file of the authorities that may sign the subscriber's
	// certificate, in the place of the system's.
	CA string `json:"ca,omitempty"`
	// ServerName is the name that the subscriber's certificate must have.
	// Default that of the URL.
	ServerName string `json:"serverName,omitempty"`
}

// Secret is a text that fmt, and with it logs, prints as <redacted>. Its JSON form
// is the text itself.
type Secret string

// Format hides the text from every verb.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, secret.New(string(s)).String()) }

// hidden is how a secret is shown.
var hidden = Secret(secret.New("x").String())

func (s Secret) redacted() Secret { return Secret(secret.New(string(s)).String()) }

// Bounds of what a definition may hold. Servers refuse a request head of more than
// 8 to 64 KiB, and a token is one of its lines.
const (
	maxText   = 2048
	maxSecret = 16 << 10
	maxParams = 20
)

// kinds are the ways of Auth, in the order in which they are listed.
func (a *Auth) kinds() []string {
	var all []string
	for _, k := range []struct {
		name string
		set  bool
	}{
		{"oauth2", a.OAuth2 != nil}, {"managedIdentity", a.ManagedIdentity != nil}, {"workloadIdentity", a.WorkloadIdentity != nil},
		{"apiKey", a.APIKey != nil}, {"basic", a.Basic != nil}, {"bearer", a.Bearer != nil},
	} {
		if k.set {
			all = append(all, k.name)
		}
	}
	return all
}

// Kind names the way that is set, as in the configuration file.
func (a *Auth) Kind() string { return strings.Join(a.kinds(), ", ") }

// checker collects problems below a path.
type checker struct {
	path string
	errs []error
}

func (c *checker) bad(key, format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf("%s.%s: %s", c.path, key, fmt.Sprintf(format, args...)))
}

// text checks something that must be there and goes into a form or a token.
func (c *checker) text(key, v, want string) {
	switch {
	case v == "" && want != "":
		c.bad(key, "missing; want %s", want)
	case len(v) > maxText:
		c.bad(key, "want at most %d bytes, got %d", maxText, len(v))
	case strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }):
		c.bad(key, "it has a control character")
	}
}

// secret checks one that must be there; fits says what characters it may have.
func (c *checker) secret(key string, v Secret, want string, fits func(rune) bool) {
	switch {
	case v == "":
		c.bad(key, "missing; want %s", want)
	case v == hidden:
		c.bad(key, "it is hidden, and where it goes to is not what it was; give it again")
	case len(v) > maxSecret:
		c.bad(key, "want at most %d bytes, got %d", maxSecret, len(v))
	case strings.ContainsFunc(string(v), func(r rune) bool { return !fits(r) }):
		c.bad(key, "it has characters that cannot be sent, such as a line feed at its end")
	}
}

// file checks the path of a PEM file.
func (c *checker) file(key, v string) {
	if strings.ContainsAny(v, "\n\r\x00") || strings.Contains(v, "-----BEGIN") {
		c.bad(key, "want the path of a PEM file, not its content; write /run/secrets/client.pem, not ${file:/run/secrets/client.pem}")
	} else if len(v) > maxText {
		c.bad(key, "want at most %d bytes, got %d", maxText, len(v))
	}
}

// What may stand in a header's value, in a token (RFC 6750 §2.1 in what servers
// issue), and in a form.
func inHeader(r rune) bool { return r >= ' ' && r != 0x7f }
func inToken(r rune) bool  { return r > ' ' && r < 0x7f }
func anything(rune) bool   { return true }

// Validate sets defaults and reports every problem, each beginning with the path of
// its key below path.
func (a *Auth) Validate(path string) error { return a.validate(path, true) }

// ValidateAzure is Validate for those who reach Azure by one of its SDKs, which
// says itself what scope it wants: only the ways that have tokens will do.
func (a *Auth) ValidateAzure(path string) error {
	if a.APIKey != nil || a.Basic != nil || a.Bearer != nil {
		return fmt.Errorf("%s: Azure takes tokens; want oauth2, managedIdentity or workloadIdentity, got %s", path, a.Kind())
	}
	return a.validate(path, false)
}

func (a *Auth) validate(path string, scoped bool) error {
	if kinds := a.kinds(); len(kinds) != 1 {
		return fmt.Errorf("%s: want exactly one of oauth2, managedIdentity, workloadIdentity, apiKey, basic, bearer; got %s", path, orNone(kinds))
	}
	c := &checker{path: path}
	scope := func(key, v string) {
		c.text(key, v, map[bool]string{true: "what the token is for: the subscriber's Application ID URI, as in api://wms"}[scoped])
		if strings.ContainsAny(v, " \t") {
			c.bad(key, "want one scope: Azure gives a token for one application")
		}
	}
	switch {
	case a.OAuth2 != nil:
		a.OAuth2.validate(c)
	case a.ManagedIdentity != nil:
		scope("managedIdentity.scope", a.ManagedIdentity.Scope)
		c.guid("managedIdentity.clientID", a.ManagedIdentity.ClientID)
	case a.WorkloadIdentity != nil:
		w := a.WorkloadIdentity
		scope("workloadIdentity.scope", w.Scope)
		c.guid("workloadIdentity.clientID", w.ClientID)
		if !validTenant(w.Tenant) {
			c.bad("workloadIdentity.tenant", "want the tenant's id or one of its domains, as in contoso.com")
		}
	case a.APIKey != nil:
		a.APIKey.validate(c)
	case a.Basic != nil:
		c.text("basic.username", a.Basic.Username, "the user's name")
		if strings.Contains(a.Basic.Username, ":") {
			c.bad("basic.username", "a colon ends the name (RFC 7617); take it out")
		}
		c.secret("basic.password", a.Basic.Password, `the password, as in "${env:NAME}"`, inHeader)
	case a.Bearer != nil:
		c.secret("bearer.token", a.Bearer.Token, `the token, as in "${env:NAME}"`, inToken)
	}
	return errors.Join(c.errs...)
}

func orNone(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, " and ")
}

// guid checks the id of an application, which may be left out.
func (c *checker) guid(key, v string) {
	if v != "" && (len(v) != 36 || strings.Trim(v, "0123456789abcdefABCDEF-") != "" || strings.Count(v, "-") != 4) {
		c.bad(key, "want the client id of the identity, as in 11111111-2222-3333-4444-555555555555")
	}
}

// validTenant keeps a tenant from being more than one segment of a path.
func validTenant(v string) bool {
	return len(v) <= 255 && strings.Trim(v, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-") == "" && strings.Trim(v, ".") == v
}

// reserved are the parameters of a token request that have keys of their own.
var reserved = []string{
	"grant_type", "client_id", "client_secret", "client_assertion", "client_assertion_type", "scope", "audience",
}

// algorithms are the signatures that RFC 7518 has for keys that sign.
var algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

func (o *OAuth2) validate(c *checker) {
	u, err := url.Parse(o.TokenURL)
	switch {
	case o.TokenURL == "":
		c.bad("oauth2.tokenURL", "missing; want the https URL of the token endpoint")
	case strings.Contains(o.TokenURL, string(hidden)):
		c.bad("oauth2.tokenURL", "its secret part is hidden, and it is another URL than before; give the whole")
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		// The URL itself may hold a key: it is not repeated.
		c.bad("oauth2.tokenURL", "want https://host/path")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		c.bad("oauth2.tokenURL", "want https: the client's secret and the token go over this connection (RFC 6749 §3.2)")
	case u.User != nil:
		c.bad("oauth2.tokenURL", "a user and password do not belong here; use clientID and clientSecret")
	case u.Fragment != "":
		c.bad("oauth2.tokenURL", "a #fragment is never sent; leave it out")
	}
	c.text("oauth2.clientID", o.ClientID, "the client's id at the token server")
	proofs := 0
	for _, set := range []bool{o.ClientSecret != "", o.Cert != "", o.Assertion != ""} {
		if set {
			proofs++
		}
	}
	switch {
	case proofs != 1:
		c.bad("oauth2", "want exactly one of clientSecret, cert and assertion, got %d of them", proofs)
	case o.ClientSecret != "":
		c.secret("oauth2.clientSecret", o.ClientSecret, "the client's secret", anything)
	case o.Assertion != "":
		c.secret("oauth2.assertion", o.Assertion, "a signed JWT", inToken)
	}
	switch o.SecretIn {
	case "", InHeader, InBody:
		if o.SecretIn == "" && o.ClientSecret != "" {
			o.SecretIn = InHeader
		} else if o.SecretIn != "" && o.ClientSecret == "" {
			c.bad("oauth2.secretIn", "only with clientSecret")
		}
	default:
		c.bad("oauth2.secretIn", "want %s or %s, got %q", InHeader, InBody, o.SecretIn)
	}
	c.file("oauth2.cert", o.Cert)
	c.file("oauth2.key", o.Key)
	c.file("oauth2.ca", o.CA)
	if o.Key != "" && o.Cert == "" {
		c.bad("oauth2.key", "only with cert")
	}
	switch {
	case o.Algorithm != "" && o.Cert == "":
		c.bad("oauth2.algorithm", "only with cert")
	case o.Algorithm != "" && !slices.Contains(algorithms, o.Algorithm):
		c.bad("oauth2.algorithm", "want one of %s, got %q", strings.Join(algorithms, ", "), o.Algorithm)
	}
	c.text("oauth2.scope", o.Scope, "")
	c.text("oauth2.audience", o.Audience, "")
	if n := len(o.Params); n > maxParams {
		c.bad("oauth2.params", "want at most %d, got %d", maxParams, n)
	}
	for _, name := range slices.Sorted(maps.Keys(o.Params)) {
		key := "oauth2.params." + name
		switch {
		case name == "" || !token(name):
			c.bad("oauth2.params", "a name has letters, digits and any of -_.")
			continue
		case slices.Contains(reserved, name):
			c.bad(key, "it is set by a key of its own or by gridfan; leave it out")
			continue
		}
		c.secret(key, o.Params[name], "a value", anything)
	}
}

// loopback says whether a host is this machine whatever a name server says.
func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// token says whether a text can be the name of a header (RFC 9110 §5.1) in all but
// its odd characters.
func token(s string) bool {
	return s != "" && len(s) <= 128 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
}

// taken are headers that say how a request is to be read, not who sends it.
var taken = []string{
	"connection", "content-encoding", "content-length", "content-type", "cookie", "date", "expect", "host", "keep-alive", "te", "trailer",
	"transfer-encoding", "upgrade", "user-agent",
}

func (k *APIKey) validate(c *checker) {
	name := strings.ToLower(k.Header)
	switch {
	case (k.Header == "") == (k.Query == ""):
		c.bad("apiKey", "want either header or query, the name of the one that has the key")
	case k.Header != "" && !token(k.Header):
		c.bad("apiKey.header", "want the name of a header, as in X-API-Key")
	case slices.Contains(taken, name) || strings.HasPrefix(name, "ce-") || strings.HasPrefix(name, "webhook-") || strings.HasPrefix(name, "proxy-"):
		c.bad("apiKey.header", "%s has a meaning of its own in a request; want another, as in X-API-Key", k.Header)
	case k.Query != "":
		c.text("apiKey.query", k.Query, "the name of a query parameter")
	}
	fits := inHeader
	if k.Query != "" {
		fits = anything // it is escaped
	}
	c.secret("apiKey.value", k.Value, `the key, as in "${env:NAME}"`, fits)
	if k.Header != "" && strings.TrimSpace(string(k.Value)) != string(k.Value) {
		c.bad("apiKey.value", "blanks around it do not arrive in a header; take them out")
	}
}

// Validate reports every problem, each beginning with the path of its key below
// path.
func (t *TLS) Validate(path string) error {
	c := &checker{path: path}
	c.file("cert", t.Cert)
	c.file("key", t.Key)
	c.file("ca", t.CA)
	switch {
	case *t == TLS{}:
		c.errs = append(c.errs, fmt.Errorf("%s: it says nothing; want cert, ca or serverName", path))
	case t.Key != "" && t.Cert == "":
		c.bad("cert", "missing; want the path of a PEM file with the certificate of the key")
	}
	if t.ServerName != "" && !validHost(t.ServerName) {
		c.bad("serverName", "want a host name or an address, without a port")
	}
	return errors.Join(c.errs...)
}

func validHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	return len(s) <= 253 && token(s[:min(len(s), 128)]) && token(s[max(0, len(s)-128):])
}

// InAuthorization says whether a is sent in the header Authorization.
func (a *Auth) InAuthorization() bool {
	return a.APIKey == nil || strings.EqualFold(a.APIKey.Header, "Authorization")
}

// Clone returns a deep copy, nil of nil.
func (a *Auth) Clone() *Auth {
	if a == nil {
		return nil
	}
	c := &Auth{}
	if a.OAuth2 != nil {
		o := *a.OAuth2
		o.Params = maps.Clone(o.Params)
		c.OAuth2 = &o
	}
	c.ManagedIdentity = clone(a.ManagedIdentity)
	c.WorkloadIdentity = clone(a.WorkloadIdentity)
	c.APIKey, c.Basic, c.Bearer = clone(a.APIKey), clone(a.Basic), clone(a.Bearer)
	return c
}

func clone[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

// Redacted returns a copy without its secrets, nil of nil.
func (a *Auth) Redacted() *Auth {
	c := a.Clone()
	if c == nil {
		return nil
	}
	if o := c.OAuth2; o != nil {
		o.ClientSecret, o.Assertion = o.ClientSecret.redacted(), o.Assertion.redacted()
		if o.TokenURL != "" {
			o.TokenURL = secret.URL(o.TokenURL)
		}
		for name, v := range o.Params {
			o.Params[name] = v.redacted()
		}
	}
	if c.APIKey != nil {
		c.APIKey.Value = c.APIKey.Value.redacted()
	}
	if c.Basic != nil {
		c.Basic.Password = c.Basic.Password.redacted()
	}
	if c.Bearer != nil {
		c.Bearer.Token = c.Bearer.Token.redacted()
	}
	return c
}

// Reveal puts the secrets of stored in the place of those that Redacted has hidden
// in a. It does so only where they go to whom they went before: the secrets of a
// token server to the same URL, and the others only if the subscriber is where it
// was. Otherwise who may read a definition could have its secrets sent to himself.
func (a *Auth) Reveal(stored *Auth, moved bool) {
	if a == nil || stored == nil {
		return
	}
	if o, was := a.OAuth2, stored.OAuth2; o != nil && was != nil {
		if o.TokenURL == secret.URL(was.TokenURL) {
			o.TokenURL = was.TokenURL
		}
		if o.TokenURL == was.TokenURL {
			reveal(&o.ClientSecret, was.ClientSecret)
			reveal(&o.Assertion, was.Assertion)
			for name, v := range o.Params {
				reveal(&v, was.Params[name])
				o.Params[name] = v
			}
		}
	}
	if moved {
		return
	}
	if a.APIKey != nil && stored.APIKey != nil {
		reveal(&a.APIKey.Value, stored.APIKey.Value)
	}
	if a.Basic != nil && stored.Basic != nil {
		reveal(&a.Basic.Password, stored.Basic.Password)
	}
	if a.Bearer != nil && stored.Bearer != nil {
		reveal(&a.Bearer.Token, stored.Bearer.Token)
	}
}

func reveal(shown *Secret, stored Secret) {
	if *shown == hidden && stored != "" {
		*shown = stored
	}
}

// Secrets are the texts that nobody may see, for those who make sure of it.
func (a *Auth) Secrets() []string {
	var all []string
	add := func(secrets ...Secret) {
		for _, s := range secrets {
			if s != "" {
				all = append(all, string(s))
			}
		}
	}
	if o := a.OAuth2; o != nil {
		add(o.ClientSecret, o.Assertion)
		add(slices.Collect(maps.Values(o.Params))...)
		if u, err := url.Parse(o.TokenURL); err == nil && u.RawQuery != "" {
			add(Secret(u.RawQuery))
		}
		if o.ClientSecret != "" {
			add(Secret(basic(url.QueryEscape(o.ClientID), url.QueryEscape(string(o.ClientSecret)))))
		}
	}
	if a.APIKey != nil {
		add(a.APIKey.Value)
	}
	if a.Basic != nil {
		add(a.Basic.Password, Secret(basic(a.Basic.Username, string(a.Basic.Password))))
	}
	if a.Bearer != nil {
		add(a.Bearer.Token)
	}
	return all
}
