package credentials

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newKey(t *testing.T, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "rsa":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case "p384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

var serial atomic.Int64

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{key: newKey(t, "p256")}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial.Add(1)), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// issue gives a certificate and its key in PEM, valid until then.
func (a *authority) issue(t *testing.T, name, kind string, until time.Time) (cert, key []byte) {
	t.Helper()
	k := newKey(t, kind)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial.Add(1)), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: until.Add(-24 * time.Hour), NotAfter: until, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, k.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

func write(t *testing.T, path string, content ...[]byte) string {
	t.Helper()
	next := path + ".next"
	if err := os.WriteFile(next, bytes.Join(content, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// secure starts a server with a certificate of a, that may want one of clients.
func (a *authority) secure(t *testing.T, h http.Handler, clients *authority, name string, until time.Time) *httptest.Server {
	t.Helper()
	cert, key := a.issue(t, name, "p256", until)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	if clients != nil {
		srv.TLS.ClientAuth, srv.TLS.ClientCAs = tls.RequireAndVerifyClientCert, clients.pool()
	}
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

// now makes a Transport look at its files with the next request.
func (r *Transport) now() {
	l := *r.current.Load()
	l.next = time.Time{}
	r.current.Store(&l)
}

func get(r http.RoundTripper, url string) (*http.Response, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := r.RoundTrip(req)
	if err == nil {
		resp.Body.Close()
	}
	return resp, err
}

// Certificates are read again when they change, whole or not at all.
func TestCertificatesAreReadAgain(t *testing.T) {
	servers, clients := newAuthority(t, "servers"), newAuthority(t, "clients")
	var shown atomic.Value
	srv := servers.secure(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		shown.Store(r.TLS.PeerCertificates[0].Subject.CommonName + r.Proto)
	}), clients, "wms.example.com", time.Now().Add(time.Hour))
	dir := t.TempDir()
	cfg := TLS{Cert: filepath.Join(dir, "c.pem"), Key: filepath.Join(dir, "k.pem"), CA: filepath.Join(dir, "ca.pem"), ServerName: "wms.example.com"}
	var log bytes.Buffer
	r := NewTransport(&http.Transport{ForceAttemptHTTP2: true}, cfg, slog.New(slog.NewTextHandler(&log, nil)))
	defer r.CloseIdleConnections()
	failing := func(want string) {
		t.Helper()
		r.now()
		_, err := get(r, srv.URL)
		if e, ok := errors.AsType[*Error](err); !ok || !strings.Contains(e.Reason, want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	working := func(want string) {
		t.Helper()
		r.now()
		if _, err := get(r, srv.URL); err != nil || shown.Load() != want+"HTTP/2.0" {
			t.Errorf("got %v, %v, want %s", err, shown.Load(), want)
		}
	}
	failing("c.pem: no such file")
	cert, key := clients.issue(t, "one", "p256", time.Now().Add(time.Hour))
	write(t, cfg.Cert, cert)
	failing("k.pem: no such file")
	write(t, cfg.Key, []byte("canary"))
	failing("failed to find any PEM data")
	write(t, cfg.Key, key)
	failing("ca.pem: no such file")
	write(t, cfg.CA, []byte("canary"))
	failing("no certificate in it")
	write(t, cfg.CA, servers.pem())
	working("one")
	if got := r.Certificate(time.Now()); !strings.HasPrefix(got, "it is valid until ") {
		t.Error(got)
	}
	if got := r.Certificate(time.Now().Add(2 * time.Hour)); !strings.HasPrefix(got, "it has expired on ") {
		t.Error(got)
	}

	// Half a renewal.
	cert, key = clients.issue(t, "two", "rsa", time.Now().Add(time.Hour))
	write(t, cfg.Cert, cert)
	working("one")
	working("one")
	write(t, cfg.Key, key)
	working("two")

	// All in one file.
	both := NewTransport(&http.Transport{}, TLS{Cert: write(t, filepath.Join(dir, "both.pem"), cert, key), CA: cfg.CA}, slog.New(slog.DiscardHandler))
	defer both.CloseIdleConnections()
	if _, err := get(both, srv.URL); err != nil {
		t.Error(err)
	}
	if strings.Contains(log.String(), "canary") || !strings.Contains(log.String(), "certificate not renewed") {
		t.Errorf("log:\n%s", &log)
	}
}

// A new authority counts, and the old one no longer, although connections are open.
func TestAuthorityIsReplaced(t *testing.T) {
	old, next := newAuthority(t, "old"), newAuthority(t, "next")
	srv := old.secure(t, http.NotFoundHandler(), nil, "x", time.Now().Add(time.Hour))
	ca := write(t, filepath.Join(t.TempDir(), "ca.pem"), old.pem())
	r := NewTransport(&http.Transport{}, TLS{CA: ca}, slog.New(slog.DiscardHandler))
	defer r.CloseIdleConnections()
	if _, err := get(r, srv.URL); err != nil {
		t.Fatal(err)
	}
	write(t, ca, next.pem())
	r.now()
	if _, err := get(r, srv.URL); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("got %v", err)
	}
}

// What is no file is not waited for.
func TestOddFiles(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	f, err := os.Create(big)
	if err == nil {
		err = errors.Join(f.Truncate(maxPEM+1), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	ca := newAuthority(t, "x")
	cert, _ := ca.issue(t, "x", "p256", time.Now().Add(time.Hour))
	encrypted := write(t, filepath.Join(dir, "encrypted"), cert, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("canary")}))
	for path, want := range map[string]string{dir: "is not a file", "/dev/zero": "is not a file", big: "is larger than", encrypted: "its key is encrypted"} {
		if _, err := loadPair(path, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", path, err, want)
		}
	}
}
