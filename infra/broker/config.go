package broker

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/gridfan/gridfan/infra/secret"
)

// Config says which NATS server to use: an embedded one, unless URL is set.
type Config struct {
	// Dir is where the embedded server stores everything. Default "./data".
	Dir string
	// Ephemeral is the operator's word that Dir does not outlive the machine or
	// container: what was accepted may be lost with it, and everybody who asks is
	// told so.
	Ephemeral bool
	// Listen is the address at which other NATS clients reach the embedded
	// server: "host:port", or "none" for no listener. Nobody is asked who they are
	// and everything is allowed there, so it must be a loopback address. The default is 127.0.0.1:4222; when
	// that default is taken, the server goes without and says so.
	Listen string

	// Clients is where subscribers take their events by themselves.
	Clients ClientsConfig

	// URL names external servers, comma-separated. Dir, Listen and Clients then
	// have no meaning.
	URL string
	// Credentials is the text of a NATS .creds file for the external server.
	Credentials secret.String
	// User and Password log in at all of the external servers, those included that
	// the first one tells of; what is in the URL holds for its own server only.
	User     string
	Password secret.String
	// TLS is for external servers.
	TLS TLSConfig
	// Replicas is how many servers of a cluster keep each stream: 1 to 5,
	// default 1. The embedded server is one.
	Replicas int

	// Durability is Barrier or SyncAlways. For the embedded server it overrides
	// what its store is best served by; for an external one SyncAlways is the
	// operator's word that every server of it syncs before it acks.
	Durability Mode
	// Monitoring are the monitoring addresses of the external servers
	// (http://host:8222), to verify how they sync.
	Monitoring []string

	// MaxBytes is the disk space for all streams together. Default 8 GiB.
	MaxBytes int64
}

// DefaultListen is where `nats sub` finds the embedded server.
const DefaultListen = "127.0.0.1:4222"

// DefaultMaxBytes leaves room for about eight million events of 1 KB.
const DefaultMaxBytes = 8 << 30

// minMaxBytes is what the streams need to be of any use.
const minMaxBytes = 64 << 20

// Validate sets defaults and reports every problem, each beginning with the
// path of its key in the configuration file.
func (c *Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		c.Dir = "./data"
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = DefaultMaxBytes
	}
	if c.MaxBytes < minMaxBytes {
		errs = append(errs, errors.New("storage.maxBytes: want at least 64MiB"))
	}
	if c.Replicas == 0 {
		c.Replicas = 1
	}
	if c.Replicas < 1 || c.Replicas > 5 {
		errs = append(errs, fmt.Errorf("broker.replicas: want 1 to 5, got %d", c.Replicas))
	}
	switch {
	case c.Durability == "", c.Durability == SyncAlways, c.Durability == Barrier && c.URL == "":
	case c.Durability == Barrier:
		errs = append(errs, errors.New("broker.durability: barrier needs the embedded server; an external one must sync by itself: sync-always"))
	default:
		errs = append(errs, fmt.Errorf("broker.durability: want barrier or sync-always, got %q", c.Durability))
	}
	for i, u := range c.Monitoring {
		if p, err := url.Parse(u); err != nil || p.Scheme != "http" && p.Scheme != "https" || p.Host == "" || p.User != nil {
			errs = append(errs, fmt.Errorf("broker.monitoring[%d]: want the address of a server's monitoring port, as in http://nats-0:8222", i))
		}
	}
	if c.URL == "" {
		if len(c.Monitoring) > 0 {
			errs = append(errs, errors.New("broker.monitoring: only an external server (broker.url) is asked how it syncs"))
		}
		if c.Replicas != 1 {
			errs = append(errs, errors.New("broker.replicas: the embedded server is a single node; set broker.url to use a cluster"))
		}
		if !c.Credentials.IsZero() {
			errs = append(errs, errors.New("broker.credentials: only an external server (broker.url) asks for credentials"))
		}
		if c.User != "" {
			errs = append(errs, errors.New("broker.user: only an external server (broker.url) asks for a user"))
		}
		if !c.Password.IsZero() {
			errs = append(errs, errors.New("broker.password: only an external server (broker.url) asks for a password"))
		}
		if !c.TLS.isZero() {
			errs = append(errs, errors.New("broker.tls: only connections to an external server (broker.url) are encrypted; broker.embedded.clients.tls is for subscribers' own NATS clients"))
		}
		if c.Listen != "" && c.Listen != "none" {
			host, _, err := net.SplitHostPort(c.Listen)
			ip := net.ParseIP(host)
			if err != nil {
				errs = append(errs, errors.New(`broker.embedded.listen: want "host:port" or "none"`))
			} else if host != "localhost" && (ip == nil || !ip.IsLoopback()) {
				errs = append(errs, errors.New("broker.embedded.listen: the embedded server has no password there, so only a loopback address is allowed; broker.embedded.clients is for subscribers' own NATS clients, an external server (broker.url) for others"))
			}
		}
		return errors.Join(append(errs, c.Clients.validate()...)...)
	}
	switch {
	case c.User != "" && c.Password.IsZero():
		errs = append(errs, errors.New("broker.password: missing; give it by reference, as in ${env:NATS_PASSWORD}"))
	case c.User == "" && !c.Password.IsZero():
		errs = append(errs, errors.New("broker.user: missing; want the name that the password is for"))
	case c.User != "" && !c.Credentials.IsZero():
		errs = append(errs, errors.New("broker.credentials: gridfan logs in as broker.user already; remove one of the two"))
	}
	errs = append(errs, c.TLS.validate()...)
	for u := range strings.SplitSeq(c.URL, ",") {
		if u = strings.TrimSpace(u); !strings.HasPrefix(u, "nats://") && !strings.HasPrefix(u, "tls://") {
			errs = append(errs, errors.New("broker.url: want nats://host:port or tls://host:port, several separated by commas"))
			break
		}
	}
	return errors.Join(errs...)
}
