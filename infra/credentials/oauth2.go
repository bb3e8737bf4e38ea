package credentials

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/gridfan/gridfan/infra/secret"
)

// assertionLife is how long an assertion is valid: Entra wants five to ten minutes
// at most (learn.microsoft.com/entra/identity-platform/certificate-credentials;
// 2026-11).
const assertionLife = 5 * time.Minute

// assertionType is that of RFC 7523 §2.2.
const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// fetchOAuth2 asks o's token server once. An empty scope means that of o.
func fetchOAuth2(ctx context.Context, o *OAuth2, base http.RoundTripper, scope string) (string, time.Time, error) {
	x := &exchange{base: base, hide: secret.NewVeil((&Auth{OAuth2: o}).Secrets()...)}
	cfg := clientcredentials.Config{
		ClientID: o.ClientID, ClientSecret: string(o.ClientSecret), TokenURL: o.TokenURL,
		Scopes: strings.Fields(scope), EndpointParams: url.Values{}, AuthStyle: oauth2.AuthStyleInHeader,
	}
	if scope == "" {
		cfg.Scopes = strings.Fields(o.Scope)
	}
	for name, v := range o.Params {
		cfg.EndpointParams.Set(name, string(v))
	}
	if o.Audience != "" {
		cfg.EndpointParams.Set("audience", o.Audience)
	}
	if o.SecretIn != InHeader {
		cfg.AuthStyle = oauth2.AuthStyleInParams
	}
	assertion := string(o.Assertion)
	if o.Cert != "" {
		var err error
		if assertion, err = o.sign(time.Now()); err != nil {
			return "", time.Time{}, &Error{Reason: NoToken + ": " + err.Error(), refused: true}
		}
	}
	if assertion != "" {
		cfg.EndpointParams.Set("client_assertion_type", assertionType)
		cfg.EndpointParams.Set("client_assertion", assertion)
		x.hide = secret.NewVeil(append((&Auth{OAuth2: o}).Secrets(), assertion)...)
	}
	t, err := cfg.Token(context.WithValue(ctx, oauth2.HTTPClient, x.client()))
	if err != nil {
		return "", time.Time{}, x.failure(ctx, "its answer is no token")
	}
	if problem := checkToken(t.AccessToken, t.TokenType); problem != "" {
		return "", time.Time{}, x.failure(ctx, problem)
	}
	if !t.Expiry.IsZero() && t.Expiry.Before(time.Now()) {
		return "", time.Time{}, x.failure(ctx, "its token has expired already")
	}
	return t.AccessToken, t.Expiry, nil
}

// sign makes an assertion of who the client is (RFC 7523 §3).
func (o *OAuth2) sign(now time.Time) (string, error) {
	pair, err := loadPair(o.Cert, o.Key)
	if err != nil {
		return "", err
	}
	method, err := o.method(pair)
	if err != nil {
		return "", err
	}
	u, err := url.Parse(o.TokenURL)
	if err != nil {
		return "", fmt.Errorf("the token URL is not one") // Validate has parsed it
	}
	// The audience is who is asked, not what with.
	u.RawQuery = ""
	t := jwt.NewWithClaims(method, jwt.MapClaims{
		"aud": u.String(), "iss": o.ClientID, "sub": o.ClientID, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(assertionLife).Unix(),
	})
	// Entra finds the key by either; others by what they were given.
	sum1, sum256 := sha1.Sum(pair.Certificate[0]), sha256.Sum256(pair.Certificate[0])
	t.Header["x5t"] = base64.RawURLEncoding.EncodeToString(sum1[:])
	t.Header["x5t#S256"] = base64.RawURLEncoding.EncodeToString(sum256[:])
	signed, err := t.SignedString(pair.PrivateKey)
	if err != nil {
		return "", fmt.Errorf("%s cannot sign with %s", keyFile(o.Cert, o.Key), method.Alg())
	}
	return signed, nil
}

// method is the algorithm that is configured, or the usual one for the key.
func (o *OAuth2) method(pair *tls.Certificate) (jwt.SigningMethod, error) {
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the key in %s cannot sign", keyFile(o.Cert, o.Key))
	}
	usual, kind := "", ""
	switch key := signer.Public().(type) {
	case *rsa.PublicKey:
		usual, kind = "RS256", "RS PS"
	case *ecdsa.PublicKey:
		usual = map[int]string{256: "ES256", 384: "ES384", 521: "ES512"}[key.Curve.Params().BitSize]
		kind = usual
	case ed25519.PublicKey:
		usual, kind = "EdDSA", "Ed"
	}
	name := o.Algorithm
	if name == "" {
		name = usual
	}
	method := jwt.GetSigningMethod(name)
	if method == nil || usual == "" || !strings.Contains(kind, name[:2]) || strings.HasPrefix(name, "ES") && name != usual {
		return nil, fmt.Errorf("the key in %s does not fit the algorithm %s", keyFile(o.Cert, o.Key), name)
	}
	return method, nil
}

func keyFile(cert, key string) string {
	if key == "" {
		return cert
	}
	return key
}
