package servicebus

import (
	"errors"
	"fmt"

	"github.com/gridfan/gridfan/infra/azureamqp"
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
	case !azureamqp.ValidEntity(c.Queue + c.Topic):
		report(map[bool]string{true: ".queue", false: ".topic"}[c.Queue != ""],
			azureamqp.EntityRule)
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
	switch _, err := c.address(); {
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

// Host is that of the address; empty unless c is valid.
func (c Config) Host() string {
	address, err := c.address()
	if err != nil {
		return ""
	}
	return address.Host()
}

func (c Config) address() (azureamqp.Address, error) {
	return azureamqp.Locate(c.Namespace, c.Auth, c.Queue+c.Topic)
}

// Redacted returns c without its secrets.
func (c Config) Redacted() Config {
	c.Auth = c.Auth.Redacted()
	return c
}

// Reveal puts the secrets of was in the place of those that Redacted has hidden. A
// connection string says itself where it leads.
func (c *Config) Reveal(was Config) { c.Auth.Reveal(was.Auth) }
