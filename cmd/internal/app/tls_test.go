package app_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/app"
	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/router/auth"
)

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	a.cert, a.key = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

// sign makes a certificate; the first one signs itself.
func (a *authority) sign(c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

func (a *authority) write(file, kind string, der []byte) string {
	a.t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return file
}

// files writes a server certificate of a name and its key.
func (a *authority) files(dir, name string) config.TLS {
	cert, key := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return config.TLS{
		Cert:     a.write(filepath.Join(dir, "cert.pem"), "CERTIFICATE", cert.Raw),
		Key:      a.write(filepath.Join(dir, "key.pem"), "PRIVATE KEY", der),
		ClientCA: a.write(filepath.Join(dir, "ca.pem"), "CERTIFICATE", a.cert.Raw),
	}
}

func (a *authority) client(certs ...tls.Certificate) *http.Client {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: certs}, ForceAttemptHTTP2: true,
	}}
}

// TestTLS serves the public listener over HTTPS, tells a client certificate,
// and takes a renewed certificate up without a restart.
func TestTLS(t *testing.T) {
	ca := newAuthority(t)
	dir := t.TempDir()
	cfg := parse(t, t.TempDir(), sources)
	files := ca.files(dir, "first")
	cfg.Listen.TLS = &files
	cfg.Sources[0].Auth = auth.Config{AnyOf: []auth.Method{{MTLS: &auth.MTLS{CN: []string{"sender"}}}}}
	a, err := app.New(t.Context(), cfg, app.Options{Version: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Stop(); err != nil {
			t.Error(err)
		}
	})
	base := "https://" + a.PublicAddr()

	post := func(c *http.Client, source string) *http.Response {
		t.Helper()
		body := []byte(`[{"id":"1","eventType":"t","subject":"s","topic":"/t"}]`)
		if source == cfg.Sources[1].Name {
			body = businessEvent("TLS-1")
		}
		resp, err := c.Post(base+"/ingress/"+source, "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	stranger := ca.client()
	if resp := post(stranger, cfg.Sources[0].Name); resp.StatusCode != http.StatusUnauthorized || resp.ProtoMajor != 2 {
		t.Errorf("without a client certificate: HTTP/%d %d, want HTTP/2 401", resp.ProtoMajor, resp.StatusCode)
	}
	if resp := post(stranger, cfg.Sources[1].Name); resp.StatusCode != http.StatusOK {
		t.Errorf("a source that asks for none: HTTP %d", resp.StatusCode)
	}
	cert, key := ca.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "sender"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	known := ca.client(tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key})
	if resp := post(known, cfg.Sources[0].Name); resp.StatusCode != http.StatusOK {
		t.Errorf("with a client certificate: HTTP %d", resp.StatusCode)
	}
	// Go's server answers plain HTTP on a TLS port with 400, or not at all.
	if resp, err := http.Get("http://" + a.PublicAddr() + "/livez"); err == nil {
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			t.Error("plain HTTP is answered as well")
		}
	}

	ca.files(dir, "second")
	waitFor(t, "the renewed certificate", func() bool {
		c := ca.client()
		defer c.CloseIdleConnections()
		resp, err := c.Get(base + "/livez")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.TLS.PeerCertificates[0].Subject.CommonName == "second"
	})
}

// TestTLSFilesMissing says at start what is wrong with the files.
func TestTLSFilesMissing(t *testing.T) {
	cfg := parse(t, t.TempDir(), sources)
	cfg.Listen.TLS = &config.TLS{Cert: "none.pem", Key: "none.pem"}
	_, err := app.New(t.Context(), cfg, app.Options{Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "listen.public.tls") {
		t.Errorf("got %v", err)
	}
}
