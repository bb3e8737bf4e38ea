package credentials

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// maxPEM bounds a file: the system's bundle of all public authorities has 250 KB.
const maxPEM = 1 << 20

// How often files are looked at: a renewal is in use after some seconds, and what
// is missing is found soon after it is there.
const (
	lookEvery   = 5 * time.Second
	brokenEvery = time.Second
)

// readFile reads a file that somebody named: no pipe that never ends, no device.
func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, fileError(name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fileError(name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	switch {
	case err != nil:
		return nil, fileError(name, err)
	case len(b) > maxPEM:
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxPEM)
	}
	return b, nil
}

func fileError(name string, err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err
	}
	return fmt.Errorf("%s: %w", name, err)
}

// loadPair reads a certificate and its key, from one file if key is empty. Its
// errors name files and show nothing of them.
func loadPair(cert, key string) (*tls.Certificate, error) {
	certPEM, err := readFile(cert)
	if err != nil {
		return nil, err
	}
	keyPEM := certPEM
	if key != "" {
		if keyPEM, err = readFile(key); err != nil {
			return nil, err
		}
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		what := strings.TrimPrefix(err.Error(), "tls: ")
		if strings.Contains(string(keyPEM), "ENCRYPTED") {
			what = "its key is encrypted; store it without a passphrase"
		}
		return nil, fmt.Errorf("%s with the key in %s: %s", cert, keyFile(cert, key), what)
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, fmt.Errorf("%s: not a certificate", cert)
		}
	}
	return &pair, nil
}

// Transport sends requests by what t says, and reads its files again when they have
// changed: new requests then go over new connections, and those that run end on
// theirs. It is safe for concurrent use.
type Transport struct {
	base *http.Transport
	cfg  TLS
	log  *slog.Logger

	current atomic.Pointer[loaded]
	mu      sync.Mutex // held while files are looked at
}

// loaded is what the files held at one time.
type loaded struct {
	via   *http.Transport
	leaf  *x509.Certificate // nil: none is shown
	err   error             // nil: via is usable
	stamp string            // of the files
	next  time.Time         // when to look at them again
}

// NewTransport makes a Transport of a valid t, like base in all else. Files that
// cannot be read make its requests fail until they can.
func NewTransport(base *http.Transport, t TLS, log *slog.Logger) *Transport {
	r := &Transport{base: base, cfg: t, log: log}
	r.current.Store(r.load(nil, time.Now()))
	return r
}

// load reads the files, or goes on with before when they are half written.
func (r *Transport) load(before *loaded, now time.Time) *loaded {
	stamp := r.stamp()
	if before != nil && before.stamp == stamp && before.err == nil {
		same := *before
		same.next = now.Add(lookEvery)
		return &same
	}
	cfg, leaf, err := r.read()
	if err != nil {
		if before != nil && before.err == nil {
			r.log.Warn("certificate not renewed, the old one stays", "error", err)
			same := *before
			same.stamp, same.next = "", now.Add(lookEvery)
			return &same
		}
		return &loaded{err: &Error{Reason: "TLS: " + err.Error(), Wait: brokenEvery}, stamp: stamp, next: now.Add(brokenEvery)}
	}
	via := r.base.Clone()
	via.TLSClientConfig = cfg
	if before != nil {
		r.log.Info("certificates read again", "cert", r.cfg.Cert, "ca", r.cfg.CA)
		if before.via != nil {
			before.via.CloseIdleConnections()
		}
	}
	return &loaded{via: via, leaf: leaf, stamp: stamp, next: now.Add(lookEvery)}
}

func (r *Transport) read() (*tls.Config, *x509.Certificate, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: r.cfg.ServerName}
	var leaf *x509.Certificate
	if r.cfg.Cert != "" {
		pair, err := loadPair(r.cfg.Cert, r.cfg.Key)
		if err != nil {
			return nil, nil, err
		}
		// Whichever authorities the server names: it knows what it accepts, and
		// its answer says more than a request without a certificate.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
		leaf = pair.Leaf
	}
	if r.cfg.CA != "" {
		b, err := readFile(r.cfg.CA)
		if err != nil {
			return nil, nil, err
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(b) {
			return nil, nil, fmt.Errorf("%s: no certificate in it; want PEM", r.cfg.CA)
		}
	}
	return cfg, leaf, nil
}

// stamp changes when the files do.
func (r *Transport) stamp() string {
	var s strings.Builder
	for _, name := range []string{r.cfg.Cert, r.cfg.Key, r.cfg.CA} {
		if info, err := os.Stat(name); err == nil {
			fmt.Fprintf(&s, "%d %d", info.Size(), info.ModTime().UnixNano())
		}
		s.WriteByte(';')
	}
	return s.String()
}

func (r *Transport) get() *loaded {
	l, now := r.current.Load(), time.Now()
	if now.Before(l.next) {
		return l
	}
	if l.err == nil {
		// Who looks does so for all; the others go on with what there is.
		if !r.mu.TryLock() {
			return l
		}
	} else {
		r.mu.Lock()
	}
	defer r.mu.Unlock()
	if l = r.current.Load(); now.Before(l.next) {
		return l
	}
	l = r.load(l, now)
	r.current.Store(l)
	return l
}

// RoundTrip sends a request; see http.RoundTripper. Its error is an *Error when
// there are no certificates to send it with.
func (r *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	l := r.get()
	if l.err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, l.err
	}
	return l.via.RoundTrip(req)
}

// CloseIdleConnections gives them up.
func (r *Transport) CloseIdleConnections() {
	if l := r.current.Load(); l.via != nil {
		l.via.CloseIdleConnections()
	}
}

// Certificate says in words how the certificate that is shown stands, for those
// whose peer has refused it; empty if none is shown.
func (r *Transport) Certificate(now time.Time) string {
	l := r.current.Load()
	switch {
	case l.leaf == nil:
		return ""
	case now.After(l.leaf.NotAfter):
		return "it has expired on " + l.leaf.NotAfter.UTC().Format(time.RFC3339)
	case now.Before(l.leaf.NotBefore):
		return "it is valid from " + l.leaf.NotBefore.UTC().Format(time.RFC3339)
	}
	return "it is valid until " + l.leaf.NotAfter.UTC().Format(time.RFC3339)
}
