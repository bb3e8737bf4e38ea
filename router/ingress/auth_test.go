package ingress_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/auth"
	"github.com/gridfan/gridfan/router/auth/authtest"
	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/schemas/event"
)

// tenant and audience are what tokens must be of and for.
const (
	tenant       = authtest.Tenant
	audience     = "api://gridfan"
	eventGridApp = "4962773b-9cdb-44cf-a8bf-237846a00ab7" // Microsoft.EventGrid
	hmacSecret   = "hmac-" + canary
)

var sasKey = base64.StdEncoding.EncodeToString([]byte("sas-" + canary))

// bearer is a header with a token of Event Grid's own application.
func bearer(t *testing.T, l *authtest.Login, key *rsa.PrivateKey, audience string) string {
	t.Helper()
	return "Bearer " + l.Token(t, key, audience, map[string]any{
		"sub": canary, "azp": eventGridApp, "roles": []string{"AzureEventGridSecureWebhookSubscriber"},
	})
}

// sasToken is one as the Go client's test makes it.
func sasToken(resource, key string, end time.Time) string {
	raw, _ := base64.StdEncoding.DecodeString(key)
	text := "r=" + url.QueryEscape(resource) + "&e=" + url.QueryEscape(end.UTC().Format(time.RFC3339))
	mac := hmac.New(sha256.New, raw)
	mac.Write([]byte(text))
	return text + "&s=" + url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil)))
}

func githubSignature(secret, body string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// guarded has a source for each method but mTLS, and one that takes any.
func guarded(l *authtest.Login) ingress.Config {
	cfg := config()
	methods := map[string]auth.Method{
		"sas":   {SAS: &auth.SAS{Keys: []secret.String{secret.New(sasKey)}}},
		"entra": {Entra: &auth.Entra{Tenant: tenant, Audiences: []string{audience}, Roles: []string{"AzureEventGridSecureWebhookSubscriber"}, Authority: l.URL}},
		"hmac":  {HMAC: &auth.HMAC{Preset: auth.PresetGitHub, Secrets: []secret.String{secret.New(hmacSecret)}}},
	}
	all := []auth.Method{{Key: secret.New(key)}}
	for name, m := range methods {
		cfg.Sources = append(cfg.Sources, ingress.Source{Name: name, Kind: event.KindEventGrid, Auth: auth.Config{AnyOf: []auth.Method{m}}})
		all = append(all, m)
	}
	cfg.Sources = append(cfg.Sources, ingress.Source{Name: "all", Kind: event.KindEventGrid, Auth: auth.Config{AnyOf: all}})
	return cfg
}

// TestMethods: each lets in who has what it asks for, and nobody else, on its
// own source and on the one that takes any; nothing shows what was sent.
func TestMethods(t *testing.T) {
	l := authtest.NewLogin(t)
	e := newEdge(t, brokertest.New(t), guarded(l))
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(time.Hour)
	otherKey := base64.StdEncoding.EncodeToString([]byte("another key of the same length"))
	n := 0
	for _, tt := range []struct {
		name, source string
		header       func(path, body string) map[string]string
		in           bool
	}{
		{"SAS token", "sas", func(p, _ string) map[string]string {
			return map[string]string{"aeg-sas-token": sasToken("https://gridfan.example"+p, sasKey, end)}
		}, true},
		{"SAS token in Authorization", "sas", func(p, _ string) map[string]string {
			return map[string]string{"Authorization": "SharedAccessSignature " + sasToken("https://gridfan.example"+p, sasKey, end)}
		}, true},
		{"SAS token of another source", "sas", func(p, _ string) map[string]string {
			return map[string]string{"aeg-sas-token": sasToken("https://gridfan.example"+p+"x", sasKey, end)}
		}, false},
		{"SAS token that has expired", "sas", func(p, _ string) map[string]string {
			return map[string]string{"aeg-sas-token": sasToken("https://gridfan.example"+p, sasKey, time.Now().Add(-time.Hour))}
		}, false},
		{"SAS token of another key", "sas", func(p, _ string) map[string]string {
			return map[string]string{"aeg-sas-token": sasToken("https://gridfan.example"+p, otherKey, end)}
		}, false},
		{"SAS key instead of a token", "sas", func(string, string) map[string]string { return map[string]string{"aeg-sas-key": sasKey} }, false},
		{"Entra", "entra", func(string, string) map[string]string {
			return map[string]string{"Authorization": bearer(t, l, l.Key, audience)}
		}, true},
		{"Entra, for another audience", "entra", func(string, string) map[string]string {
			return map[string]string{"Authorization": bearer(t, l, l.Key, "api://other")}
		}, false},
		{"Entra, signed by somebody else", "entra", func(string, string) map[string]string {
			return map[string]string{"Authorization": bearer(t, l, other, audience)}
		}, false},
		{"no token at all", "entra", func(string, string) map[string]string {
			return map[string]string{"Authorization": "Bearer " + canary}
		}, false},
		{"signature", "hmac", func(_, b string) map[string]string {
			return map[string]string{"X-Hub-Signature-256": githubSignature(hmacSecret, b)}
		}, true},
		{"signature of another body", "hmac", func(_, b string) map[string]string {
			return map[string]string{"X-Hub-Signature-256": githubSignature(hmacSecret, b+" ")}
		}, false},
		{"signature with another secret", "hmac", func(_, b string) map[string]string {
			return map[string]string{"X-Hub-Signature-256": githubSignature("another-"+canary, b)}
		}, false},
		{"secret instead of a signature", "hmac", func(string, string) map[string]string {
			return map[string]string{"X-Hub-Signature-256": "sha256=" + hmacSecret}
		}, false},
		{"nothing", "hmac", func(string, string) map[string]string { return nil }, false},
	} {
		for _, source := range []string{tt.source, "all"} {
			t.Run(fmt.Sprint(tt.name, " to ", source), func(t *testing.T) {
				e.t = t
				n++
				path, content := "/ingress/"+source, good(fmt.Sprint("m", n))
				header := tt.header(path, content)
				a := e.do(request{path: path, header: header, body: text(content)})
				if strings.Contains(string(a.body)+fmt.Sprint(a.header), canary) {
					t.Errorf("the answer shows what was sent: %v %s", a.header, a.body)
				}
				if !tt.in {
					a.wantError(t, 401, "unauthorized")
				} else if a.status != http.StatusOK || a.field(t, "published") != 1.0 {
					t.Errorf("HTTP %d %s", a.status, a.body)
				}
			})
		}
	}
	e.t = t
	// What is kept of a request in quarantine holds no credentials either.
	for source, header := range map[string]map[string]string{
		"sas":   {"aeg-sas-token": sasToken("https://gridfan.example/ingress/sas", sasKey, end)},
		"entra": {"Authorization": bearer(t, l, l.Key, audience)},
		"hmac":  {"X-Hub-Signature-256": githubSignature(hmacSecret, "no JSON")},
	} {
		if a := e.do(request{path: "/ingress/" + source, header: header, body: text("no JSON")}); a.status != http.StatusOK || a.field(t, "quarantined") != 1.0 {
			t.Errorf("%s: HTTP %d %s", source, a.status, a.body)
		}
		for _, sent := range header {
			for _, m := range e.stored(broker.StreamQuarantine) {
				if strings.Contains(fmt.Sprint(m.Header)+string(m.Data), sent) {
					t.Errorf("%s: quarantine shows the credentials: %v", source, m.Header)
				}
			}
		}
	}
	if lines := e.log.text(); strings.Contains(lines, canary) || strings.Contains(lines, sasKey) || strings.Contains(lines, "eyJ") {
		t.Errorf("the log shows what was sent:\n%s", lines)
	}
}

// TestSignatureOverGzip is made over the body as it came, before it is
// unpacked.
func TestSignatureOverGzip(t *testing.T) {
	e := newEdge(t, brokertest.New(t), guarded(authtest.NewLogin(t)))
	packed := gzipped(good("hz"))
	for signed, status := range map[string]int{packed: 200, good("hz"): 401} {
		a := e.do(request{path: "/ingress/hmac", header: map[string]string{
			"Content-Encoding": "gzip", "X-Hub-Signature-256": githubSignature(hmacSecret, signed),
		}, body: text(packed)})
		if a.status != status {
			t.Errorf("HTTP %d %s, want %d", a.status, a.body, status)
		}
	}
}

// TestKeyServerAway: who may be right is asked to come back, who has a key
// needs no key server, and who shows nothing is refused.
func TestKeyServerAway(t *testing.T) {
	l := authtest.NewLogin(t)
	l.Away.Store(true)
	e := newEdge(t, brokertest.New(t), guarded(l))
	sent := map[string]string{"Authorization": bearer(t, l, l.Key, audience)}
	for _, source := range []string{"entra", "all"} {
		a := e.do(request{path: "/ingress/" + source, header: sent, body: text(good("j1"))})
		a.wantError(t, 503, "cannot-authenticate")
		if after, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || after < 1 || after > 60 {
			t.Errorf("Retry-After %q", a.header.Get("Retry-After"))
		}
	}
	if a := e.do(request{path: "/ingress/all", header: map[string]string{"aeg-sas-key": key}, body: text(good("j2"))}); a.status != http.StatusOK || a.field(t, "published") != 1.0 {
		t.Errorf("with a key: HTTP %d %s", a.status, a.body)
	}
	e.do(request{path: "/ingress/all", body: text(good("j3"))}).wantError(t, 401, "unauthorized")
	if n := len(e.stored(broker.StreamEvents)); n != 1 {
		t.Errorf("%d events are stored, want 1", n)
	}
}

// untouched is a body that nobody may read.
type untouched struct{ t *testing.T }

func (b untouched) Read([]byte) (int, error) {
	b.t.Error("the body of a stranger is read")
	return 0, io.EOF
}

// TestStrangersBody is not read: megabytes of it cost nothing.
func TestStrangersBody(t *testing.T) {
	l := authtest.NewLogin(t)
	e := newEdge(t, brokertest.New(t), guarded(l))
	for _, tt := range []struct {
		path, name, value string
		status            int
	}{
		{"/ingress/shop", "aeg-sas-key", canary, 401},
		{"/ingress/shop", "X-Hub-Signature-256", githubSignature(hmacSecret, ""), 401},
		{"/ingress/sas", "aeg-sas-token", "r=x&e=y&s=z", 401},
		{"/ingress/entra", "Authorization", bearer(t, l, l.Key, "api://other"), 401},
		{"/ingress/hmac", "aeg-sas-key", canary, 401}, // no signature, so nothing to compare it with
		{"/ingress/all", "aeg-sas-key", canary, 401},
		{"/topics/shop:publish", "Authorization", "SharedAccessKey " + canary, 401},
		{"/ingress/nobody", "aeg-sas-key", key, 404},
	} {
		for _, length := range []int64{-1, 1 << 20} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, tt.path, untouched{t})
			r.ContentLength = length
			r.Header.Set(tt.name, tt.value)
			w := httptest.NewRecorder()
			e.in.ServeHTTP(w, r)
			if w.Code != tt.status {
				t.Errorf("%s with %s: HTTP %d, want %d", tt.path, tt.name, w.Code, tt.status)
			}
		}
	}
	// A body over the limit is refused by its announced length, signed or not.
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/ingress/hmac", untouched{t})
	r.ContentLength = 100 << 20
	r.Header.Set("X-Hub-Signature-256", githubSignature(hmacSecret, ""))
	w := httptest.NewRecorder()
	e.in.ServeHTTP(w, r)
	answer{w.Code, w.Header(), w.Body.Bytes()}.wantError(t, 413, "body-too-large")
}

// clientCert makes one, signed by ca or by itself.
func clientCert(t *testing.T, name string, ca *tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		IsCA: ca == nil, BasicConstraintsValid: true,
	}
	parent, signer := template, any(key)
	if ca != nil {
		parent, signer = ca.Leaf, ca.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// TestClientCertificates goes through real handshakes.
func TestClientCertificates(t *testing.T) {
	cfg := with(ingress.Source{Name: "certs", Auth: auth.Config{AnyOf: []auth.Method{{MTLS: &auth.MTLS{CN: []string{"erp"}}}}}})
	e := newEdge(t, brokertest.New(t), cfg)
	ca := clientCert(t, "our CA", nil)
	s := httptest.NewUnstartedServer(e.in)
	s.TLS = &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: x509.NewCertPool()}
	s.TLS.ClientCAs.AddCert(ca.Leaf)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // a handshake fails on purpose
	s.StartTLS()
	defer s.Close()
	for name, tt := range map[string]struct {
		cert   *tls.Certificate
		status int // 0: the connection fails
	}{
		"listed":        {new(clientCert(t, "erp", &ca)), 200},
		"not listed":    {new(clientCert(t, "crm", &ca)), 401},
		"none":          {nil, 401},
		"of another CA": {new(clientCert(t, "erp", nil)), 0},
	} {
		transport := s.Client().Transport.(*http.Transport).Clone()
		if tt.cert != nil {
			// Certificates would leave out one of a CA that was not asked for.
			transport.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return tt.cert, nil }
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/ingress/certs", text(good("cert")))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			if tt.status != 0 {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		resp.Body.Close()
		transport.CloseIdleConnections()
		if resp.StatusCode != tt.status {
			t.Errorf("%s: HTTP %d, want %d", name, resp.StatusCode, tt.status)
		}
	}
	if a := e.do(request{path: "/ingress/certs", body: text(good("plain"))}); a.status != http.StatusUnauthorized {
		t.Errorf("without TLS: HTTP %d", a.status)
	}
}
