package auth

import (
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jws"
)

// eventGridApps are the first-party application Microsoft.EventGrid in the
// public cloud and in Azure Government (Event Grid docs, secure-webhook-delivery
// and its PowerShell script; read 2026-11).
var eventGridApps = []string{
	"4962773b-9cdb-44cf-a8bf-237846a00ab7",
	"54316b56-3481-47f9-8f30-0300f5542a7b",
}

const (
	// maxToken is several times what an app's token takes, 1 to 2 KB.
	maxToken = 16 << 10
	// maxLifetime is above the 24 h that a token policy can ask for and the 28 h
	// of tokens under continuous access evaluation (Entra docs,
	// configurable-token-lifetimes; read 2026-11). Who writes a later exp is
	// not Entra.
	maxLifetime = 48 * time.Hour
)

// algorithms are those that an Entra key can sign with; Entra uses RS256. A
// token does not choose beyond them: "none" and the HMACs, for which a public
// key would be the secret, are not there.
var algorithms = map[string]jwa.SignatureAlgorithm{
	"RS256": jwa.RS256(),
	"RS384": jwa.RS384(),
	"RS512": jwa.RS512(),
}

// issuerV1 is the iss of version 1.0 tokens, in US Government as in the public
// cloud; China has its own (spring-cloud-azure, AADJwtIssuerValidator; read
// 2026-11).
func issuerV1(authority, tenant string) string {
	if authority == "https://login.partner.microsoftonline.cn" || authority == "https://login.chinacloudapi.cn" {
		return "https://sts.chinacloudapi.cn/" + tenant + "/"
	}
	return "https://sts.windows.net/" + tenant + "/"
}

// issuerV2 is the iss of version 2.0 tokens (Entra docs,
// access-token-claims-reference; read 2026-11).
func issuerV2(authority, tenant string) string { return authority + "/" + tenant + "/v2.0" }

// entraMethod checks access tokens of one tenant.
type entraMethod struct {
	tenant    string
	v1, v2    string // issuers
	audiences []string
	roles     []string
	callers   []string // nil for any
	keys      *tenantKeys
	vouched   vouched
}

func newEntra(c *Entra, keys *Keys) *entraMethod {
	m := &entraMethod{
		tenant: c.Tenant,
		v1:     issuerV1(c.Authority, c.Tenant), v2: issuerV2(c.Authority, c.Tenant),
		audiences: slices.Clone(c.Audiences), roles: slices.Clone(c.Roles),
		keys: keys.tenant(c.Authority, c.Tenant),
	}
	for _, caller := range c.Callers {
		switch caller {
		case CallerEventGrid:
			m.callers = append(m.callers, eventGridApps...)
		case CallerAny:
		default:
			m.callers = append(m.callers, strings.ToLower(caller))
		}
	}
	if slices.Contains(c.Callers, CallerAny) {
		m.callers = nil
	}
	return m
}

func (*entraMethod) rank() int { return 3 }

func (m *entraMethod) check(r *request) verdict {
	// Nowhere else: tokens in URLs end up in logs.
	token, ok := r.authorization("Bearer")
	if !ok {
		return r.unused("no bearer token")
	}
	err := m.verify(r, token)
	if err == nil {
		return verdict{outcome: accepted}
	}
	if u, ok := errors.AsType[*Unavailable](err); ok {
		return verdict{outcome: undecided, cause: u}
	}
	return refusedf("bearer token: %v", err)
}

// header is what of a token's header matters. What it says of keys (jwk, jku,
// x5c, x5u) does not: a token cannot vouch for itself.
type header struct {
	Alg  string         `json:"alg"`
	Kid  string         `json:"kid"`
	Typ  string         `json:"typ"`
	Crit jsontext.Value `json:"crit"`
	B64  jsontext.Value `json:"b64"`
}

// claims is what of a token's content matters.
type claims struct {
	Iss   string         `json:"iss"`
	Tid   string         `json:"tid"`
	Ver   string         `json:"ver"`
	Aud   jsontext.Value `json:"aud"`
	Exp   jsontext.Value `json:"exp"`
	Nbf   jsontext.Value `json:"nbf"`
	Iat   jsontext.Value `json:"iat"`
	AppID string         `json:"appid"` // who asks, in version 1.0
	Azp   string         `json:"azp"`   // and in 2.0
	Roles []string       `json:"roles"`
}

// verify says why a token is not accepted. Until its signature is verified
// nothing of it is quoted.
func (m *entraMethod) verify(r *request, token string) error {
	if len(token) > maxToken {
		return errors.New("longer than 16 KiB")
	}
	id := sha256.Sum256([]byte(token))
	p := m.vouched.get(id)
	if p == nil {
		var err error
		if p, err = m.read(token); err != nil {
			return err
		}
	}
	issued, err := times(&p.claims, r.now)
	if err != nil {
		return err
	}
	key, err := m.keys.find(r.Context(), p.kid, issued)
	if err != nil {
		return err
	}
	if p.by == key.PublicKey {
		return m.permits(&p.claims)
	}
	if key.alg != "" && key.alg != p.alg.String() {
		return errors.New("alg is not that of the key")
	}
	// All segments are strictly base64url, so jws reads what we have read. Why
	// a signature is wrong says nothing, and its error might quote.
	if _, err := jws.Verify([]byte(token), jws.WithKey(p.alg, key.PublicKey), jws.WithCompact()); err != nil {
		return errors.New("signature does not match its key")
	}
	if err := m.permits(&p.claims); err != nil {
		return err
	}
	m.vouched.put(id, &parsed{kid: p.kid, alg: p.alg, claims: p.claims, by: key.PublicKey})
	return nil
}

// parsed is a token that has been read.
type parsed struct {
	kid    string
	alg    jwa.SignatureAlgorithm
	claims claims
	by     *rsa.PublicKey // whose signature on it was verified; nil: nobody's yet
}

// vouched remembers tokens whose signature was verified, by their hash. Event
// Grid sends one token with many deliveries, and the signature is nearly all
// of the cost: 90 µs, 3 µs when remembered. All else is checked each time: the
// times, that the tenant still has that key, and what the token is for. Only
// tokens that were accepted come in, so strangers cannot push them out.
type vouched struct {
	mu         sync.Mutex // guards what follows
	young, old map[[sha256.Size]byte]*parsed
}

// maxVouched is how many tokens are remembered at least, and half of how many
// at most. A sender needs one or two an hour.
const maxVouched = 128

func (v *vouched) get(id [sha256.Size]byte) *parsed {
	v.mu.Lock()
	defer v.mu.Unlock()
	if p := v.young[id]; p != nil {
		return p
	}
	p := v.old[id]
	if p != nil {
		v.add(id, p)
	}
	return p
}

func (v *vouched) put(id [sha256.Size]byte, p *parsed) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.add(id, p)
}

// add drops what was not used since the young were as many as can be.
func (v *vouched) add(id [sha256.Size]byte, p *parsed) {
	if len(v.young) >= maxVouched || v.young == nil {
		v.young, v.old = map[[sha256.Size]byte]*parsed{}, v.young
	}
	v.young[id] = p
}

// read takes a token apart and checks what can be seen without a key:
// strangers then cannot make us fetch keys without at least naming the tenant.
func (m *entraMethod) read(token string) (*parsed, error) {
	parts := strings.Split(token, ".")
	// Package base64 passes over line breaks, which a signature must not.
	if len(parts) != 3 || strings.ContainsAny(token, "\r\n") {
		return nil, errors.New("not a signed JWT")
	}
	var h header
	if err := decode(parts[0], &h); err != nil {
		return nil, within("header", err)
	}
	// Entra writes JWT; RFC 9068 at+jwt. Others, such as proof tokens, are not
	// meant as access tokens.
	if typ := strings.TrimPrefix(strings.ToLower(h.Typ), "application/"); typ != "" && typ != "jwt" && typ != "at+jwt" {
		return nil, errors.New("typ is not JWT")
	}
	alg, ok := algorithms[h.Alg]
	switch {
	case !ok:
		return nil, errors.New("alg is none of RS256, RS384, RS512")
	case h.Crit != nil || h.B64 != nil:
		return nil, errors.New("header asks for extensions (crit, b64)")
	case h.Kid == "":
		return nil, errors.New("header names no key (kid)")
	}
	p := &parsed{kid: h.Kid, alg: alg}
	if err := decode(parts[1], &p.claims); err != nil {
		return nil, within("claims", err)
	}
	if _, err := base64url.DecodeString(parts[2]); err != nil {
		return nil, errors.New("signature: not base64url")
	}
	return p, m.origin(&p.claims)
}

var base64url = base64.RawURLEncoding.Strict()

var errBase64 = errors.New("not base64url")

// decode reads a segment. Names in other case, duplicate names, invalid UTF-8
// and values of other types are refused: a claim has one meaning.
func decode(segment string, v any) error {
	b, err := base64url.DecodeString(segment)
	if err != nil {
		return errBase64
	}
	return json.Unmarshal(b, v)
}

// within describes a decoding error without the text it is about.
func within(where string, err error) error {
	var typeError *json.SemanticError
	switch {
	case errors.Is(err, errBase64):
		return errors.New(where + ": not base64url")
	case errors.Is(err, jsontext.ErrDuplicateName):
		return errors.New(where + ": a name stands twice")
	case errors.As(err, &typeError):
		return errors.New(where + ": a value has the wrong type")
	}
	return errors.New(where + ": not JSON")
}

// origin checks that the tenant issued the token and that its parts agree.
func (m *entraMethod) origin(c *claims) error {
	version := "1.0"
	switch c.Iss {
	case m.v1:
	case m.v2:
		version = "2.0"
	default:
		return errors.New("issuer (iss) is not the configured tenant")
	}
	if c.Tid != m.tenant {
		return errors.New("tenant (tid) is not the configured one")
	}
	if c.Ver != version {
		return errors.New("version (ver) is not that of the issuer")
	}
	return nil
}

// times checks when the token is valid and returns when it was issued, or when
// it became valid, or zero.
func times(c *claims, now time.Time) (time.Time, error) {
	exp, ok, err := number(c.Exp)
	switch {
	case err != nil || !ok:
		return time.Time{}, errors.New("expiry (exp) is missing or no number")
	case exp > seconds(now.Add(maxLifetime)):
		return time.Time{}, errors.New("expiry (exp) is further away than Entra's tokens live")
	case exp <= seconds(now.Add(-Skew)):
		return time.Time{}, errors.New("expired")
	}
	latest := seconds(now.Add(Skew))
	nbf, hasNbf, err := number(c.Nbf)
	switch {
	case err != nil:
		return time.Time{}, errors.New("start (nbf) is no number")
	case hasNbf && nbf > latest:
		return time.Time{}, errors.New("not valid yet (nbf)")
	}
	iat, hasIat, err := number(c.Iat)
	switch {
	case err != nil:
		return time.Time{}, errors.New("issue time (iat) is no number")
	case hasIat && (iat > latest || iat > exp):
		return time.Time{}, errors.New("issue time (iat) is in the future or after exp")
	case hasIat:
		return time.Unix(int64(max(0, iat)), 0), nil
	case hasNbf:
		return time.Unix(int64(max(0, nbf)), 0), nil
	}
	return time.Time{}, nil
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// number reads a NumericDate (RFC 7519 §2), which is never a string.
func number(v jsontext.Value) (f float64, ok bool, err error) {
	if v == nil {
		return 0, false, nil
	}
	if v.Kind() != '0' {
		return 0, false, errors.New("no number")
	}
	// Out of range is ±Inf, which compares as it should.
	if f, err = strconv.ParseFloat(string(v), 64); errors.Is(err, strconv.ErrRange) {
		err = nil
	}
	return f, true, err
}

// permits checks what a genuine token of the tenant is for, and says what it
// found: the tenant has signed it, and an operator needs it to set things right.
func (m *entraMethod) permits(c *claims) error {
	aud, err := audiences(c.Aud)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(aud, func(a string) bool { return slices.Contains(m.audiences, a) }) {
		return quoted("audience (aud) is", aud, "none of those configured")
	}
	caller := c.AppID
	if c.Ver == "2.0" {
		caller = c.Azp
	}
	if m.callers != nil && !slices.Contains(m.callers, strings.ToLower(caller)) {
		return quoted("calling app (appid, azp) is", []string{caller}, "none of the callers configured")
	}
	if len(m.roles) > 0 && !slices.ContainsFunc(c.Roles, func(r string) bool { return slices.Contains(m.roles, r) }) {
		return quoted("roles are", c.Roles, "none of those configured")
	}
	return nil
}

// audiences reads aud, a string or a list of them (RFC 7519 §4.1.3).
func audiences(v jsontext.Value) (list []string, err error) {
	switch {
	case v == nil:
		return nil, errors.New("audience (aud) is missing")
	case v.Kind() == '"':
		var one string
		err = json.Unmarshal(v, &one)
		list = []string{one}
	default:
		err = json.Unmarshal(v, &list)
	}
	if err != nil {
		return nil, errors.New("audience (aud) is no text")
	}
	return list, nil
}

// quoted says what stands in a verified token, within reason.
func quoted(what string, got []string, wrong string) error {
	var b strings.Builder
	for i, s := range got {
		if i == 5 {
			b.WriteString(", …")
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(strconv.Quote(s[:min(len(s), 100)]))
	}
	if len(got) == 0 {
		b.WriteString("missing")
	}
	return errors.New(what + " " + b.String() + ": " + wrong)
}
