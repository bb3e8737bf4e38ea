package eventgrid

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/gridfan/gridfan/infra/credentials"
)

// Config is a topic of Event Grid Basic: a custom topic, or one of a domain or
// partner that is reached at an address of its own.
type Config struct {
	// Endpoint is the topic's address, https, as the portal shows it.
	Endpoint string `json:"endpoint"`
	// Schema is the one the topic was made for. Default CloudEvents.
	Schema Schema `json:"schema"`
	// Auth is a key, a shared access signature or an identity with the role
	// EventGrid Data Sender.
	Auth credentials.AzureAuth `json:"auth"`
}

// Schema is what a topic takes.
type Schema string

// The schemas.
const (
	CloudEvents Schema = "cloudevents"
	EventGrid   Schema = "eventgrid"
)

// NamespaceConfig is a topic of an Event Grid namespace. It takes CloudEvents.
type NamespaceConfig struct {
	// Endpoint is the namespace's address, https.
	Endpoint string `json:"endpoint"`
	Topic    string `json:"topic"`
	// Auth is a key or an identity with the role EventGrid Data Sender.
	Auth credentials.AzureAuth `json:"auth"`
}

// Validate sets defaults and reports every problem, each beginning with the path of
// its key below path.
func (c *Config) Validate(path string) error {
	errs := []error{validEndpoint(path+".endpoint", c.Endpoint, "https://TOPIC.REGION-1.eventgrid.azure.net/api/events")}
	switch c.Schema {
	case "":
		c.Schema = CloudEvents
	case CloudEvents, EventGrid:
	default:
		errs = append(errs, fmt.Errorf("%s.schema: want %s or %s, got %q", path, CloudEvents, EventGrid, c.Schema))
	}
	errs = append(errs, c.Auth.Validate(path+".auth", append([]credentials.AzureMethod{credentials.AzureKey, credentials.AzureSAS}, credentials.AzureIdentities...)...))
	return errors.Join(errs...)
}

// Validate is Config.Validate for a namespace.
func (c *NamespaceConfig) Validate(path string) error {
	errs := []error{validEndpoint(path+".endpoint", c.Endpoint, "https://NAMESPACE.REGION-1.eventgrid.azure.net")}
	// Event Grid itself allows 3 to 50 (learn.microsoft.com,
	// resource-name-rules; read 2026-11): it says so if a name is none of its.
	const most = 128
	switch {
	case c.Topic == "":
		errs = append(errs, fmt.Errorf("%s.topic: missing; want the name of a topic in the namespace", path))
	case len(c.Topic) > most || strings.Trim(c.Topic, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" || strings.Trim(c.Topic, ".") == "":
		errs = append(errs, fmt.Errorf("%s.topic: a name is up to %d letters, digits and dashes", path, most))
	}
	errs = append(errs, c.Auth.Validate(path+".auth", append([]credentials.AzureMethod{credentials.AzureKey}, credentials.AzureIdentities...)...))
	return errors.Join(errs...)
}

// validEndpoint checks an address. It has no place for a secret, so it can be shown.
func validEndpoint(path, raw, example string) error {
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		return fmt.Errorf("%s: missing; want the address, as in %s", path, example)
	case err != nil || u.Host == "" || u.Opaque != "":
		// It may be a key that lost its place: it is not repeated.
		return fmt.Errorf("%s: want %s", path, example)
	case u.Scheme != "https":
		return fmt.Errorf("%s: want https; keys and tokens are sent over nothing else", path)
	case u.User != nil, u.RawQuery != "", u.ForceQuery, u.Fragment != "":
		return fmt.Errorf("%s: want no user, ?query or #fragment; what lets gridfan in belongs below auth", path)
	}
	return nil
}

// Redacted returns c without its secrets.
func (c Config) Redacted() Config {
	c.Auth = c.Auth.Redacted()
	return c
}

// Redacted returns c without its secrets.
func (c NamespaceConfig) Redacted() NamespaceConfig {
	c.Auth = c.Auth.Redacted()
	return c
}

// Reveal puts the secrets of was in the place of those that Redacted has hidden,
// unless they would go somewhere else.
func (c *Config) Reveal(was Config) {
	if c.Endpoint == was.Endpoint {
		c.Auth.Reveal(was.Auth)
	}
}

// Reveal is Config.Reveal for a namespace.
func (c *NamespaceConfig) Reveal(was NamespaceConfig) {
	if c.Endpoint == was.Endpoint {
		c.Auth.Reveal(was.Auth)
	}
}

// secrets are what no Reason may show: those of a, and the parts of a shared access
// signature.
func secrets(a credentials.AzureAuth) []string {
	all := a.Secrets()
	for part := range strings.SplitSeq(a.SAS, "&") {
		if _, value, ok := strings.Cut(part, "s="); ok && strings.HasPrefix(part, "s=") {
			all = append(all, value)
			if plain, err := url.QueryUnescape(value); err == nil {
				all = append(all, plain)
			}
		}
	}
	return slices.Compact(all)
}
