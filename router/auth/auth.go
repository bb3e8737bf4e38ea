// Package auth decides whether a request may send events to a source.
//
// A source names the methods it accepts, any one of which suffices: a key, an
// Event Grid SAS token, a token of Microsoft Entra, a signature over the body,
// a client certificate. An optional list of networks narrows all of them.
//
// There are three answers, because a sender treats them differently: allowed;
// *Denied, a 401, which Event Grid takes as final; and *Unavailable, a 503,
// when nothing accepted the request but a method could not decide, such as
// when Entra's signing keys cannot be read. A stranger costs no I/O beyond a
// bounded number of key refreshes, and learns nothing of why: reasons are for
// the log.
package auth

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gridfan/gridfan/infra/secret"
)

// Skew is how far a sender's clock may be from ours. Entra's own libraries
// allow five minutes (IdentityModel, TokenValidationParameters.ClockSkew; read
// 2026-11); servers that keep time need less.
const Skew = 2 * time.Minute

// Denied means that the request may not send: answer 401.
type Denied struct {
	// Reason is for the log and never for the sender. It holds no key, no
	// token and nothing a stranger wrote; what it quotes of a token was
	// signed by the tenant.
	Reason string
}

func (e *Denied) Error() string { return "denied: " + e.Reason }

// Unavailable means that nobody could decide: answer 503, so that the sender
// comes back.
type Unavailable struct {
	// Reason is for the log, under the same rule as that of Denied.
	Reason string
	// RetryAfter is when another try makes sense. It is 1 to 30 seconds.
	RetryAfter time.Duration
	// Err is the cause, if there is one.
	Err error
}

func (e *Unavailable) Error() string {
	if e.Err == nil {
		return "cannot authenticate: " + e.Reason
	}
	return "cannot authenticate: " + e.Reason + ": " + e.Err.Error()
}

func (e *Unavailable) Unwrap() error { return e.Err }

// Deps is what an Authenticator works with.
type Deps struct {
	// HTTP fetches Entra's signing keys. Nil means a client with the default
	// transport. Redirects are not followed, whatever it says.
	HTTP *http.Client
	// Log hears when keys were refreshed or could not be. Nil discards.
	Log *slog.Logger
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
	// Keys are the tenants' signing keys. Give all Authenticators the same,
	// across reloads too: a tenant is then asked once for all its sources, and
	// a reload while Entra is away forgets nothing. Nil means its own, fetched
	// with HTTP.
	Keys *Keys
}

// Authenticator decides for one source. It is safe for concurrent use, holds
// nothing that needs closing, and never changes: a new configuration makes a
// new one.
type Authenticator struct {
	none    bool
	allow   []netip.Prefix
	methods []method
	now     func() time.Time
}

// method is one way to authenticate.
type method interface {
	check(*request) verdict
	// rank orders methods by what they cost: those that may wait for a
	// network come last.
	rank() int
}

// request is what methods look at.
type request struct {
	*http.Request
	body  []byte
	now   time.Time
	query url.Values
}

type outcome int

const (
	absent    outcome = iota // the request does not use this method
	refused                  // it does, wrongly
	undecided                // it does, and we could not tell
	accepted
)

// verdict is what one method says of a request.
type verdict struct {
	outcome
	reason string       // of absent and refused
	cause  *Unavailable // of undecided
}

func refusedf(format string, args ...any) verdict {
	return verdict{outcome: refused, reason: fmt.Sprintf(format, args...)}
}

// New makes an Authenticator. It validates its own copy of cfg and does no
// I/O: Entra's keys are fetched when the first token comes.
func New(cfg Config, deps Deps) (*Authenticator, error) {
	cfg = cfg.clone()
	if err := cfg.Validate("auth"); err != nil {
		return nil, err
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.Keys == nil {
		deps.Keys = NewKeys(deps.HTTP, deps.Log, deps.Now)
	}
	a := &Authenticator{none: cfg.None, allow: cfg.Allow, now: deps.Now}
	var keys keyMethod
	for _, m := range cfg.AnyOf {
		switch {
		case m.SAS != nil:
			a.methods = append(a.methods, newSAS(m.SAS))
		case m.Entra != nil:
			a.methods = append(a.methods, newEntra(m.Entra, deps.Keys))
		case m.HMAC != nil:
			a.methods = append(a.methods, newHMAC(m.HMAC))
		case m.MTLS != nil:
			a.methods = append(a.methods, newMTLS(m.MTLS))
		default:
			keys = append(keys, m.Key)
		}
	}
	if len(keys) > 0 {
		a.methods = append(a.methods, keys)
	}
	slices.SortStableFunc(a.methods, func(a, b method) int { return cmp.Compare(a.rank(), b.rank()) })
	return a, nil
}

// Check says whether r may send: nil, *Denied or *Unavailable. remote is the
// sender's address, as seen behind trusted proxies. body is the whole body as
// it came; it is looked at only if WantsBody. Check may wait up to five
// seconds for Entra's keys, or until r's context ends.
func (a *Authenticator) Check(r *http.Request, remote netip.Addr, body []byte) error {
	if !a.admits(remote) {
		return &Denied{fmt.Sprintf("address %s is not in allow", remote)}
	}
	if a.none {
		return nil
	}
	req := &request{Request: r, body: body, now: a.now(), query: r.URL.Query()}
	var reasons [undecided][]string
	var cause *Unavailable
	for _, m := range a.methods {
		v := m.check(req)
		switch v.outcome {
		case accepted:
			return nil
		case undecided:
			cause = v.cause
		default:
			if !slices.Contains(reasons[v.outcome], v.reason) {
				reasons[v.outcome] = append(reasons[v.outcome], v.reason)
			}
		}
	}
	if cause != nil {
		return cause
	}
	// What was tried and failed tells more than what was not tried.
	return &Denied{strings.Join(append(reasons[refused], reasons[absent]...), "; ")}
}

// admits says whether the address is one that may send.
func (a *Authenticator) admits(remote netip.Addr) bool {
	// An IPv4 client of a dual-stack listener appears as ::ffff:a.b.c.d; a
	// prefix contains no address with a zone.
	remote = remote.Unmap().WithZone("")
	return len(a.allow) == 0 || slices.ContainsFunc(a.allow, func(p netip.Prefix) bool { return p.Contains(remote) })
}

// WantsBody says whether the body of this very request can matter: a method
// signs bodies, and the request comes from an allowed address and carries the
// header of a signature. If not, Check can be asked before the body is read, so
// that strangers cannot make us read megabytes.
func (a *Authenticator) WantsBody(r *http.Request, remote netip.Addr) bool {
	return a.admits(remote) && slices.ContainsFunc(a.methods, func(m method) bool {
		h, ok := m.(*hmacMethod)
		return ok && r.Header.Get(h.header) != ""
	})
}

// Challenges are the values of WWW-Authenticate that belong into a 401. They
// are none where no HTTP authentication scheme would help.
func (a *Authenticator) Challenges() []string {
	var list []string
	for _, m := range a.methods {
		var c string
		switch m.(type) {
		case keyMethod:
			c = `SharedAccessKey realm="gridfan"`
		case *sasMethod:
			c = `SharedAccessSignature realm="gridfan"`
		case *entraMethod:
			c = `Bearer realm="gridfan"`
		default:
			continue
		}
		if !slices.Contains(list, c) {
			list = append(list, c)
		}
	}
	return list
}

const twoAuthorizations = "more than one Authorization header"

// authorization returns the credentials that stand in the Authorization header
// after scheme. Two headers are no credentials: proxies and servers disagree
// on which one counts.
func (r *request) authorization(scheme string) (value string, ok bool) {
	values := r.Header["Authorization"]
	if len(values) != 1 {
		return "", false
	}
	got, value, _ := strings.Cut(values[0], " ")
	return strings.Trim(value, " "), strings.EqualFold(got, scheme)
}

// unused is the verdict on a request that shows no credentials of a method
// which reads the Authorization header.
func (r *request) unused(reason string) verdict {
	if len(r.Header["Authorization"]) > 1 {
		return refusedf(twoAuthorizations)
	}
	return verdict{outcome: absent, reason: reason}
}

// keyMethod accepts any one of its keys.
type keyMethod []secret.String

func (keyMethod) rank() int { return 0 }

// Senders put a key where they can: Event Grid into the URL's query or a
// delivery property header, F&O and Dataverse into the URL, the Azure SDKs into
// aeg-sas-key or Authorization.
func (m keyMethod) check(r *request) verdict {
	sent := []string{
		r.Header.Get("Aeg-Sas-Key"),
		r.Header.Get("X-Gridfan-Key"),
		r.query.Get("code"),
		r.query.Get("key"),
	}
	if key, ok := r.authorization("SharedAccessKey"); ok {
		sent = append(sent, key)
	}
	found, ok := false, false
	for _, candidate := range sent {
		if candidate == "" {
			continue
		}
		found = true
		for _, key := range m {
			// No early way out: the time must not tell which key came close.
			if key.Equal(candidate) {
				ok = true
			}
		}
	}
	switch {
	case ok:
		return verdict{outcome: accepted}
	case found:
		return refusedf("key: not one of the source's")
	}
	return r.unused("no key")
}
