package auth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gridfan/gridfan/router/auth"
)

// certificate makes one for the sender, signed by ca or by itself.
func certificate(t *testing.T, ca *tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "sender", Organization: []string{"Contoso"}},
		DNSNames:     []string{"Sender.Contoso.example"},
		URIs:         []*url.URL{{Scheme: "spiffe", Host: "contoso", Path: "/sender"}},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		IsCA:         ca == nil, BasicConstraintsValid: true,
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

// TestMTLS sends real handshakes.
func TestMTLS(t *testing.T) {
	ca := certificate(t, nil)
	trusted, stranger := certificate(t, &ca), certificate(t, nil)
	pool := x509.NewCertPool()
	pool.AddCert(ca.Leaf)
	sum := sha256.Sum256(trusted.Leaf.Raw)
	colons := strings.ToUpper(strings.TrimSuffix(strings.ReplaceAll(fmt.Sprintf("% x", sum[:]), " ", ":"), ":"))

	const unlisted = "client certificate: verified, but neither name nor fingerprint is listed"
	for _, c := range []struct {
		name   string
		method auth.MTLS
		client *tls.Certificate
		mode   tls.ClientAuthType
		now    time.Time
		want   string // the beginning
	}{
		{"common name", auth.MTLS{CN: []string{"x", "sender"}}, &trusted, tls.VerifyClientCertIfGiven, time.Now(), ""},
		{"DNS name", auth.MTLS{DNS: []string{"sender.contoso.example"}}, &trusted, tls.VerifyClientCertIfGiven, time.Now(), ""},
		{"URI", auth.MTLS{URI: []string{"spiffe://contoso/sender"}}, &trusted, tls.RequireAndVerifyClientCert, time.Now(), ""},
		{"fingerprint", auth.MTLS{SHA256: []string{colons}}, &trusted, tls.VerifyClientCertIfGiven, time.Now(), ""},
		{"another common name", auth.MTLS{CN: []string{"Sender"}}, &trusted, tls.VerifyClientCertIfGiven, time.Now(), unlisted},
		{"a domain is no name", auth.MTLS{DNS: []string{"contoso.example", "*.contoso.example"}}, &trusted, tls.VerifyClientCertIfGiven, time.Now(), unlisted},
		{"another fingerprint", auth.MTLS{SHA256: []string{strings.Repeat("00", 32)}}, &trusted, tls.VerifyClientCertIfGiven, time.Now(), unlisted},
		{"none shown", auth.MTLS{CN: []string{"sender"}}, nil, tls.VerifyClientCertIfGiven, time.Now(), "no client certificate"},
		{"not verified", auth.MTLS{CN: []string{"sender"}}, &trusted, tls.RequestClientCert, time.Now(), "client certificate: not verified"},
		{"self-signed, not verified", auth.MTLS{CN: []string{"sender"}}, &stranger, tls.RequireAnyClientCert, time.Now(), "client certificate: not verified"},
		{"expired on the way", auth.MTLS{CN: []string{"sender"}}, &trusted, tls.VerifyClientCertIfGiven, time.Now().Add(63 * time.Minute), "client certificate: expired since the connection began"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := must(t, auth.Config{AnyOf: []auth.Method{{MTLS: &c.method}}}, auth.Deps{Now: func() time.Time { return c.now }})
			result := make(chan error, 1)
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				result <- a.Check(r, netip.MustParseAddrPort(r.RemoteAddr).Addr(), nil)
			}))
			srv.TLS = &tls.Config{ClientAuth: c.mode, ClientCAs: pool}
			srv.StartTLS()
			defer srv.Close()
			client := srv.Client()
			if c.client != nil {
				client.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{*c.client}
			}
			resp, err := client.Get(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			got := reason(t, <-result)
			if (got == "") != (c.want == "") || !strings.HasPrefix(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	plain := must(t, auth.Config{AnyOf: []auth.Method{{MTLS: &auth.MTLS{CN: []string{"sender"}}}}}, auth.Deps{})
	if got := reason(t, plain.Check(post("/ingress/a", "X-Client-Cert", "sender"), home, nil)); got != "no client certificate" {
		t.Errorf("without TLS: got %q", got)
	}
}
