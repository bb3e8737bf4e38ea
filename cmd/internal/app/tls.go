package app

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/config"
)

// certificates gives the listener its certificate and client authorities, and
// reads the files again when they have changed, so that a renewal needs no
// restart.
type certificates struct {
	cfg    config.TLS
	key    string // where cfg stands in the file
	protos []string
	log    *slog.Logger

	mu      sync.Mutex // guards all below
	checked time.Time
	stamp   string // sizes and times of the files
	current *tls.Config
}

// certCheck is how often the files are looked at, at most.
const certCheck = 10 * time.Second

// newTLS reads the files and makes the listener's configuration. key is where cfg
// stands in the file, protos are the protocols that are offered.
func newTLS(cfg config.TLS, key string, protos []string, log *slog.Logger) (*tls.Config, error) {
	c := &certificates{cfg: cfg, key: key, protos: protos, log: log}
	var err error
	if c.current, err = c.load(); err != nil {
		return nil, err
	}
	c.stamp, c.checked = c.look(), time.Now()
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: protos,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return c.get(), nil
		},
	}, nil
}

func (c *certificates) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(c.cfg.Cert, c.cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.key, err)
	}
	t := &tls.Config{
		MinVersion:   tls.VersionTLS12,
		NextProtos:   c.protos,
		Certificates: []tls.Certificate{cert},
	}
	if c.cfg.ClientCA != "" {
		pem, err := os.ReadFile(c.cfg.ClientCA)
		if err != nil {
			return nil, fmt.Errorf("%s.clientCA: %w", c.key, err)
		}
		t.ClientCAs = x509.NewCertPool()
		if !t.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s.clientCA: no certificate in the file; want PEM", c.key)
		}
		// Whether a source needs one is the source's affair: other sources on
		// the same listener may use keys.
		t.ClientAuth = tls.VerifyClientCertIfGiven
	}
	return t, nil
}

// look tells whether the files may have changed.
func (c *certificates) look() string {
	var s strings.Builder
	for _, name := range []string{c.cfg.Cert, c.cfg.Key, c.cfg.ClientCA} {
		if info, err := os.Stat(name); err == nil {
			fmt.Fprintf(&s, "%d %d;", info.Size(), info.ModTime().UnixNano())
		}
	}
	return s.String()
}

func (c *certificates) get() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.checked) < certCheck {
		return c.current
	}
	c.checked = time.Now()
	if stamp := c.look(); stamp != c.stamp {
		// A half-written renewal is tried again at the next look.
		t, err := c.load()
		if err != nil {
			c.log.Error("certificate not renewed, the old one stays", "error", err)
			return c.current
		}
		c.current, c.stamp = t, stamp
		c.log.Info("certificate renewed", "file", c.cfg.Cert)
	}
	return c.current
}
