package auth

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gridfan/gridfan/infra/secret"
)

// Config says who may send to one source.
type Config struct {
	// AnyOf are the methods; the first that accepts a request lets it in.
	AnyOf []Method
	// None lets everybody in who comes from Allow. It is the operator's
	// explicit word and excludes AnyOf.
	None bool
	// Allow narrows AnyOf and None to senders in these networks. None at all
	// means every address.
	Allow []netip.Prefix
}

// Method is one way to authenticate. Exactly one field is set.
type Method struct {
	// Key is a shared secret of at least 16 characters, taken from the headers
	// aeg-sas-key and X-Gridfan-Key, from Authorization: SharedAccessKey, and
	// from the query parameters code and key. List two while one replaces the
	// other.
	Key   secret.String
	SAS   *SAS
	Entra *Entra
	HMAC  *HMAC
	MTLS  *MTLS
}

// SAS accepts Event Grid's shared access signatures, in the header
// aeg-sas-token or as Authorization: SharedAccessSignature.
type SAS struct {
	// Keys are what senders sign with, as they have them: in base64. Any one
	// of them will do.
	Keys []secret.String
	// Resource is the source's URL as senders have it, when that is not how
	// requests arrive here: behind a proxy that changes paths, or to bind
	// tokens to a host. Default: the path must be that of the request, on any
	// host.
	Resource string
}

// Entra accepts access tokens of one Microsoft Entra tenant, as Authorization:
// Bearer, of version 1.0 and 2.0.
type Entra struct {
	// Tenant is the directory's ID, a GUID.
	Tenant string
	// Audiences are what the aud claim may be, compared exactly: the app
	// registration's client ID or its app ID URI.
	Audiences []string
	// Roles are app roles of which the token must have one. None asks for no
	// role.
	Roles []string
	// Callers are the client IDs that may send. CallerEventGrid stands for
	// Event Grid's own; CallerAny, for every client of the tenant that has one
	// of Roles. Default CallerEventGrid: any app of a tenant gets a token for
	// any audience of it, and the role that Event Grid needs is also given to
	// whoever creates event subscriptions.
	Callers []string
	// Authority is the base URL of the login service. Default
	// PublicAuthority. It is https unless its host is a loopback.
	Authority string
}

// Values of Entra.Callers that are no client ID.
const (
	CallerEventGrid = "eventgrid"
	CallerAny       = "any"
)

// PublicAuthority is Entra's login service outside the national clouds.
const PublicAuthority = "https://login.microsoftonline.com"

// HMAC accepts requests whose body is signed with a shared secret.
type HMAC struct {
	// Preset is the sender's scheme: PresetGitHub, PresetStripe or
	// PresetStandardWebhooks. Empty means that Header and the fields after it
	// describe it: a signature of the bare body.
	Preset string
	// Secrets are what senders sign with; any one of them will do. With
	// PresetStandardWebhooks they are base64, with or without whsec_;
	// otherwise their text is the key.
	Secrets []secret.String
	// Tolerance is how far a signed timestamp may be from now. Default 5 min,
	// what Stripe and Standard Webhooks recommend; other schemes have no
	// timestamp, so that what was once sent can be sent again (and is then
	// dropped as a duplicate).
	Tolerance time.Duration

	// Header is where the signature is.
	Header string
	// Algorithm is sha256 (default) or sha512.
	Algorithm string
	// Encoding is hex (default) or base64.
	Encoding string
	// Prefix is what stands before the signature, such as "sha256=".
	Prefix string
}

// The presets of HMAC.
const (
	PresetGitHub           = "github"
	PresetStripe           = "stripe"
	PresetStandardWebhooks = "standard-webhooks"
)

// MTLS accepts client certificates that the listener has verified against its
// client CA. One that matches any of the fields is accepted; a name is only
// worth what the CA checks before it signs one.
type MTLS struct {
	CN     []string // the subject's common name, compared exactly
	DNS    []string // a DNS name among the alternative names, in any case; * is no wildcard
	URI    []string // a URI among the alternative names, compared exactly
	SHA256 []string // the certificate's SHA-256 in hex, colons allowed
}

const (
	// minSecret characters of base64 are 96 bits: out of reach for guessing.
	minSecret = 16
	// minSASKey is 128 bits; Event Grid's own keys are longer.
	minSASKey = 16
	// maxTolerance keeps a recorded request from being good for long.
	maxTolerance = time.Hour
)

func (c Config) clone() Config {
	c.AnyOf = slices.Clone(c.AnyOf)
	c.Allow = slices.Clone(c.Allow)
	for i := range c.AnyOf {
		m := &c.AnyOf[i]
		m.SAS, m.Entra, m.HMAC, m.MTLS = shallow(m.SAS), shallow(m.Entra), shallow(m.HMAC), shallow(m.MTLS)
		if m.MTLS != nil {
			m.MTLS.SHA256 = slices.Clone(m.MTLS.SHA256)
		}
	}
	return c
}

func shallow[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

// Validate sets defaults and reports every problem, each beginning with the
// path of its key below path. It quotes no secret.
func (c *Config) Validate(path string) error {
	p := &problems{}
	switch {
	case c.None && len(c.AnyOf) > 0:
		p.add(path, "none and anyOf exclude each other")
	case !c.None && len(c.AnyOf) == 0:
		p.add(path, `say who may send: anyOf: [ { key: "${env:…}" } ], or none`)
	}
	for i := range c.AnyOf {
		c.AnyOf[i].validate(p, fmt.Sprintf("%s.anyOf[%d]", path, i))
	}
	for i, prefix := range c.Allow {
		at := fmt.Sprintf("%s.allow[%d]", path, i)
		switch {
		case !prefix.IsValid():
			p.add(at, "want a network such as 10.20.0.0/16 or 2001:db8::/32")
		case prefix.Addr().Is4In6():
			p.add(at, "write an IPv4 network as such: %s is compared with IPv4 addresses", prefix)
		case prefix != prefix.Masked():
			// 10.0.0.5/8 may be meant as 10.0.0.5/32.
			p.add(at, "%s has bits beyond its length; want %s", prefix, prefix.Masked())
		}
	}
	return errors.Join(p.list...)
}

// problems collects what is wrong, each with the path of its key.
type problems struct{ list []error }

func (p *problems) add(path, format string, args ...any) {
	p.list = append(p.list, fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...)))
}

// secrets reports an empty list and secrets that can be guessed.
func (p *problems) secrets(path string, list []secret.String, check func(string) string) {
	if len(list) == 0 {
		p.add(path, "missing; want at least one")
	}
	for i, s := range list {
		if problem := check(s.Reveal()); problem != "" {
			p.add(fmt.Sprintf("%s[%d]", path, i), "%s", problem)
		}
	}
}

// texts reports empty texts of a list.
func (p *problems) texts(path string, list []string) {
	for i, s := range list {
		if strings.TrimSpace(s) == "" || s != strings.TrimSpace(s) {
			p.add(fmt.Sprintf("%s[%d]", path, i), "empty, or with space around it")
		}
	}
}

func longEnough(s string) string {
	if len(s) < minSecret {
		return fmt.Sprintf("want at least %d characters", minSecret)
	}
	return ""
}

func (m *Method) validate(p *problems, path string) {
	n := 0
	for _, set := range []bool{!m.Key.IsZero(), m.SAS != nil, m.Entra != nil, m.HMAC != nil, m.MTLS != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		p.add(path, "want exactly one of key, sas, entra, hmac, mtls")
	}
	if !m.Key.IsZero() {
		if problem := longEnough(m.Key.Reveal()); problem != "" {
			p.add(path+".key", "%s", problem)
		}
	}
	if m.SAS != nil {
		m.SAS.validate(p, path+".sas")
	}
	if m.Entra != nil {
		m.Entra.validate(p, path+".entra")
	}
	if m.HMAC != nil {
		m.HMAC.validate(p, path+".hmac")
	}
	if m.MTLS != nil {
		m.MTLS.validate(p, path+".mtls")
	}
}

func (c *SAS) validate(p *problems, path string) {
	p.secrets(path+".keys", c.Keys, func(s string) string {
		if key, err := base64.StdEncoding.DecodeString(s); err != nil || len(key) < minSASKey {
			return fmt.Sprintf("want base64 of at least %d bytes, as Event Grid's own topic keys are", minSASKey)
		}
		return ""
	})
	if c.Resource != "" {
		u, err := url.Parse(c.Resource)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			p.add(path+".resource", "want the source's URL as senders have it: https://host/path, without a query")
		}
	}
}

func (c *Entra) validate(p *problems, path string) {
	c.Tenant = strings.ToLower(c.Tenant)
	if !isGUID(c.Tenant) {
		// "common" and domain names have no issuer to compare with.
		p.add(path+".tenant", "want the directory's ID, a GUID")
	}
	if len(c.Audiences) == 0 {
		p.add(path+".audience", "missing; want the app registration's client ID or its app ID URI")
	}
	p.texts(path+".audience", c.Audiences)
	p.texts(path+".roles", c.Roles)
	if len(c.Callers) == 0 {
		c.Callers = []string{CallerEventGrid}
	}
	for i, caller := range c.Callers {
		if caller != CallerEventGrid && caller != CallerAny && !isGUID(strings.ToLower(caller)) {
			p.add(fmt.Sprintf("%s.callers[%d]", path, i), "want a client ID (a GUID), %s or %s", CallerEventGrid, CallerAny)
		}
	}
	if slices.Contains(c.Callers, CallerAny) && len(c.Roles) == 0 {
		p.add(path+".callers", "%s needs roles: every app of the tenant gets a token for this audience", CallerAny)
	}
	if c.Authority == "" {
		c.Authority = PublicAuthority
	}
	c.Authority = strings.TrimRight(c.Authority, "/")
	u, err := url.Parse(c.Authority)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http":
		p.add(path+".authority", "want https://host, such as %s", PublicAuthority)
	case u.Scheme == "http" && !loopback(u.Hostname()):
		p.add(path+".authority", "want https: whoever can change the keys on their way can send")
	}
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// isGUID says whether s is a lower-case GUID with dashes.
func isGUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
				return false
			}
		}
	}
	return true
}

func (c *HMAC) validate(p *problems, path string) {
	timed := false
	check := longEnough
	switch c.Preset {
	case "":
		if c.Algorithm == "" {
			c.Algorithm = "sha256"
		}
		if c.Encoding == "" {
			c.Encoding = "hex"
		}
		if !isToken(c.Header) {
			p.add(path+".header", "want the header that holds the signature, or a preset: %s, %s, %s", PresetGitHub, PresetStripe, PresetStandardWebhooks)
		}
		if c.Algorithm != "sha256" && c.Algorithm != "sha512" {
			p.add(path+".algorithm", "want sha256 or sha512, got %q", c.Algorithm)
		}
		if c.Encoding != "hex" && c.Encoding != "base64" {
			p.add(path+".encoding", "want hex or base64, got %q", c.Encoding)
		}
	case PresetGitHub:
	case PresetStripe:
		timed = true
	case PresetStandardWebhooks:
		timed = true
		check = func(s string) string {
			// Standard Webhooks asks for 24 to 64 bytes (spec, "Signature
			// scheme"; read 2026-11), we for less: not all senders follow it.
			if key, err := standardKey(s); err != nil || len(key) < minSASKey {
				return fmt.Sprintf("want base64 of at least %d bytes, with or without whsec_ before it", minSASKey)
			}
			return ""
		}
	default:
		p.add(path+".preset", "want %s, %s or %s, got %q", PresetGitHub, PresetStripe, PresetStandardWebhooks, c.Preset)
	}
	if c.Preset != "" && (c.Header != "" || c.Algorithm != "" || c.Encoding != "" || c.Prefix != "") {
		p.add(path, "a preset says what header, algorithm, encoding and prefix are; leave them out")
	}
	c.Header = http.CanonicalHeaderKey(c.Header)
	p.secrets(path+".secrets", c.Secrets, check)
	switch {
	case !timed && c.Tolerance != 0:
		p.add(path+".tolerance", "this scheme has no timestamp; leave it out")
	case timed && c.Tolerance == 0:
		c.Tolerance = 5 * time.Minute
	case timed && (c.Tolerance < 10*time.Second || c.Tolerance > maxTolerance):
		p.add(path+".tolerance", "want 10s to %s", maxTolerance)
	}
}

// isToken says whether s can be the name of a header.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
}

func (c *MTLS) validate(p *problems, path string) {
	if len(c.CN)+len(c.DNS)+len(c.URI)+len(c.SHA256) == 0 {
		p.add(path, "say which certificates: cn, dns, uri or sha256")
	}
	p.texts(path+".cn", c.CN)
	p.texts(path+".dns", c.DNS)
	p.texts(path+".uri", c.URI)
	for i, s := range c.SHA256 {
		c.SHA256[i] = strings.ToLower(strings.ReplaceAll(s, ":", ""))
		if sum, err := hex.DecodeString(c.SHA256[i]); err != nil || len(sum) != 32 {
			p.add(fmt.Sprintf("%s.sha256[%d]", path, i), "want 64 hex digits, with or without colons")
		}
	}
}
