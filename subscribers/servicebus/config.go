package servicebus

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/gridfan/gridfan/infra/credentials"
)

// Config is a queue or topic of a Service Bus namespace.
type Config struct {
	// Namespace is its host, as in contoso.servicebus.windows.net. A connection
	// string takes its place.
	Namespace string `json:"namespace,omitempty"`
	// Queue or Topic, one of them.
	Queue string `json:"queue,omitempty"`
	Topic string `json:"topic,omitempty"`
	// Session says what becomes the session of a message. Default NoSession.
	Session Session `json:"session"`
	// Auth is a connection string, or an identity with the role Azure Service Bus
	// Data Sender.
	Auth credentials.AzureAuth `json:"auth"`
}

// Session is what becomes the session of a message.
type Session string

// The sessions.
const (
	NoSession   Session = "none"
	ByPartition Session = "partitionkey"
)

// maxEntityLen is that of a path (learn.microsoft.com, service-bus-quotas; read 2026-11).
const maxEntityLen = 260

// Validate sets defaults and reports every problem, each beginning with the path of
// its key below path.
func (c *Config) Validate(path string) error {
	var errs []error
	report := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s"+key+": "+format, append([]any{path}, args...)...))
	}
	switch {
	case c.Queue == "" && c.Topic == "":
		report("", "want queue or topic, the name of where messages go")
	case c.Queue != "" && c.Topic != "":
		report(".topic", "queue and topic exclude each other; keep one")
	case !validEntity(c.Queue + c.Topic):
		report(map[bool]string{true: ".queue", false: ".topic"}[c.Queue != ""],
			"a name is up to %d letters, digits, dots, dashes, underscores and slashes", maxEntityLen)
	}
	switch c.Session {
	case "":
		c.Session = NoSession
	case NoSession, ByPartition:
	default:
		report(".session", "want %s or %s, got %q", NoSession, ByPartition, c.Session)
	}
	if err := c.Auth.Validate(path+".auth", append([]credentials.AzureMethod{credentials.AzureConnectionString}, credentials.AzureIdentities...)...); err != nil {
		return errors.Join(append(errs, err)...)
	}
	switch _, _, err := c.address(); {
	case c.Auth.ConnectionString != "" && c.Namespace != "":
		report(".namespace", "the connection string says which; leave the key out")
	case c.Auth.ConnectionString != "" && err != nil:
		report(".auth.connectionString", "%w", err)
	case c.Namespace == "" && err != nil:
		report(".namespace", "missing; want the host, as in contoso.servicebus.windows.net")
	case err != nil:
		report(".namespace", "%w", err)
	}
	return errors.Join(errs...)
}

func validEntity(name string) bool {
	return len(name) <= maxEntityLen && !strings.HasPrefix(name, "/") && !strings.HasSuffix(name, "/") &&
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./") == ""
}

// Host is that of the address; empty unless c is valid.
func (c Config) Host() string {
	address, _, err := c.address()
	if err != nil {
		return ""
	}
	host, _, _ := net.SplitHostPort(address)
	return host
}

// The ports of AMQP, secure and plain.
const (
	securePort = "5671"
	plainPort  = "5672"
)

// address is where the service is; plain says that it is an emulator without TLS.
func (c Config) address() (hostport string, plain bool, err error) {
	host, port := c.Namespace, securePort
	if s := c.Auth.ConnectionString; s != "" {
		p := connection(s)
		if p["endpoint"] == "" || p["sharedaccesssignature"] == "" && (p["sharedaccesskeyname"] == "" || p["sharedaccesskey"] == "") {
			// It holds the key: it is not repeated.
			return "", false, errors.New("want Endpoint=sb://HOST/;SharedAccessKeyName=NAME;SharedAccessKey=KEY, as the portal shows it")
		}
		u, err := url.Parse(p["endpoint"])
		if err != nil || u.Host == "" || u.Scheme != "sb" {
			return "", false, errors.New("its Endpoint is no address such as sb://contoso.servicebus.windows.net/")
		}
		if path := p["entitypath"]; path != "" && path != c.Queue+c.Topic {
			return "", false, errors.New("its EntityPath is another queue or topic")
		}
		host, plain = u.Host, strings.EqualFold(p["usedevelopmentemulator"], "true")
	}
	if plain {
		port = plainPort
	}
	if h, p, err := net.SplitHostPort(host); err == nil {
		host, port = h, p
	}
	if host == "" || len(host) > 253 || strings.Trim(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.:") != "" ||
		port == "" || strings.Trim(port, "0123456789") != "" {
		return "", false, errors.New("want a host, as in contoso.servicebus.windows.net, without sb:// and without a path")
	}
	return net.JoinHostPort(host, port), plain, nil
}

// Redacted returns c without its secrets.
func (c Config) Redacted() Config {
	c.Auth = c.Auth.Redacted()
	return c
}

// Reveal puts the secrets of was in the place of those that Redacted has hidden. A
// connection string says itself where it leads.
func (c *Config) Reveal(was Config) { c.Auth.Reveal(was.Auth) }

// secrets are what no Reason may show.
func (c Config) secrets() []string {
	all := c.Auth.Secrets()
	p := connection(c.Auth.ConnectionString)
	for _, s := range []string{p["sharedaccesskey"], p["sharedaccesssignature"]} {
		if s != "" {
			all = append(all, s)
		}
	}
	return all
}

// connection takes a connection string apart. Its keys, in lower case here, are of
// any.
func connection(s string) map[string]string {
	parts := map[string]string{}
	for part := range strings.SplitSeq(s, ";") {
		if key, value, ok := strings.Cut(part, "="); ok {
			parts[strings.ToLower(strings.TrimSpace(key))] = strings.TrimSpace(value)
		}
	}
	return parts
}
