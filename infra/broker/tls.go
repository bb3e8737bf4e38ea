package broker

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
)

// TLSConfig is how connections to an external server are encrypted. Its files are
// read again at every connection that is made, so that a renewal needs no restart.
// The zero value leaves it to the scheme of the URL and to the server.
type TLSConfig struct {
	// CA is a PEM file of the authorities that a server's certificate may be of.
	// Empty: those that the system trusts.
	CA string
	// Cert and Key are PEM files with the certificate that servers are shown, and
	// its key. Empty: none is shown.
	Cert, Key string
}

func (t *TLSConfig) isZero() bool { return *t == TLSConfig{} }

func (t *TLSConfig) validate() []error {
	const path = "broker.tls"
	var errs []error
	for _, f := range []struct{ name, file string }{{"ca", t.CA}, {"cert", t.Cert}, {"key", t.Key}} {
		if strings.ContainsAny(f.file, "\n\r") || strings.Contains(f.file, "-----BEGIN") {
			errs = append(errs, fmt.Errorf("%s.%s: want the path of a PEM file, not its content; write /run/secrets/tls.pem, not ${file:/run/secrets/tls.pem}", path, f.name))
		}
	}
	switch {
	case t.Cert != "" && t.Key == "":
		errs = append(errs, errors.New(path+".key: missing; want the path of a PEM file with the certificate's key"))
	case t.Key != "" && t.Cert == "":
		errs = append(errs, errors.New(path+".cert: missing; want the path of a PEM file with the certificate and those of its issuers"))
	}
	return errs
}

// identity reads the files of a TLSConfig for all connections of a Broker.
type identity struct {
	cfg TLSConfig
	log *slog.Logger

	mu    sync.Mutex // guards what was read last
	roots *x509.CertPool
	pair  *tls.Certificate
}

// options encrypt a connection.
func (i *identity) options() []nats.Option {
	var roots nats.RootCAsHandler
	var pair nats.TLSCertHandler
	if i.cfg.CA != "" {
		roots = i.readRoots
	}
	if i.cfg.Cert != "" {
		pair = i.readPair
	}
	return []nats.Option{nats.ClientTLSConfig(pair, roots)}
}

func (i *identity) readRoots() (*x509.CertPool, error) {
	pem, err := os.ReadFile(i.cfg.CA)
	roots := x509.NewCertPool()
	if err == nil && !roots.AppendCertsFromPEM(pem) {
		err = fmt.Errorf("no certificate in %s; want PEM", i.cfg.CA)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if err != nil && i.roots == nil {
		return nil, fmt.Errorf("broker.tls.ca: %w", err)
	}
	if err != nil {
		// Half written perhaps.
		i.log.Warn("the broker's authorities are not renewed, the old ones stay", "error", err)
		return i.roots, nil
	}
	i.roots = roots
	return roots, nil
}

func (i *identity) readPair() (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(i.cfg.Cert, i.cfg.Key)
	i.mu.Lock()
	defer i.mu.Unlock()
	if err != nil && i.pair == nil {
		return tls.Certificate{}, fmt.Errorf("broker.tls.cert: %w", err)
	}
	if err != nil {
		i.log.Warn("the certificate for the broker is not renewed, the old one stays", "error", err)
		return *i.pair, nil
	}
	i.pair = &pair
	return pair, nil
}

// refused says whether one of both was not content with the other's certificate:
// the server is there, and waiting for it changes nothing.
func refused(err error) bool {
	_, byUs := errors.AsType[*tls.CertificateVerificationError](err)
	return byUs || alerted(err)
}

// alerted says whether the server said what it did not like.
func alerted(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}

// explain says what to do about a connection that was refused, by us or by the
// server; ok is false for any other error.
func (c *Config) explain(err error) (explained error, ok bool) {
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	name, misnamed := errors.AsType[x509.HostnameError](err)
	switch {
	case unknown && c.TLS.CA != "":
		return fmt.Errorf("broker.tls.ca: the server's certificate is of none of the authorities in %s: %w", c.TLS.CA, err), true
	case unknown:
		return fmt.Errorf("broker.tls.ca: missing; the server's certificate is of no authority that this system knows, so name the file of the one that it is of: %w", err), true
	case misnamed:
		return fmt.Errorf("broker.url: the server's certificate is not for %s; call it by a name or address in its certificate: %w", name.Host, err), true
	case alerted(err), errors.Is(err, nats.ErrTLS) && strings.Contains(err.Error(), "closed by remote after TLS handshake"):
		// Whether its alert or its end of the connection is seen first is a matter of
		// luck (TLS 1.3; nats.go v1.55.0, nats.go). A server that stops just then ends
		// it, too, so the second may pass and is waited for.
		return fmt.Errorf("broker.tls.cert: the server refuses the certificate that it is shown, or that it is shown none: %w", err), true
	case errors.Is(err, nats.ErrSecureConnWanted):
		return fmt.Errorf("broker.url, broker.tls: the server does not encrypt; give it a certificate, or leave tls out here: %w", err), true
	case errors.Is(err, nats.ErrAuthorization):
		return fmt.Errorf("broker.user, broker.password, broker.credentials: the server does not let this user in: %w", err), true
	case errors.Is(err, nats.ErrTLS):
		return err, true
	}
	return err, false
}
