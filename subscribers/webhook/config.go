package webhook

import (
	"errors"
	"fmt"
	"net/url"

	"github.com/gridfan/gridfan/infra/secret"
)

// Config is where and how events are posted.
type Config struct {
	// URL is the endpoint, http or https. Its query may carry a key, so show
	// it only through Redacted.
	URL string `json:"url"`
	// Format is how an event is written. Default Structured.
	Format Format `json:"format"`
}

// Format is the form in which an event goes out.
type Format string

// The formats: CloudEvents 1.0 over HTTP in its two content modes.
const (
	Structured Format = "cloudevents"        // one JSON object
	Binary     Format = "cloudevents-binary" // attributes in ce- headers, data as body
)

// Validate sets defaults and reports every problem, each beginning with the
// path of its key below path.
func (c *Config) Validate(path string) error {
	var errs []error
	u, err := url.Parse(c.URL)
	switch {
	case c.URL == "":
		errs = append(errs, fmt.Errorf("%s.url: missing; want the http or https URL that events are posted to", path))
	case err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https"):
		// The URL itself may hold a key: it is not repeated.
		errs = append(errs, fmt.Errorf("%s.url: want http://host/path or https://host/path", path))
	case u.Fragment != "":
		errs = append(errs, fmt.Errorf("%s.url: a #fragment is never sent; leave it out", path))
	}
	switch c.Format {
	case "":
		c.Format = Structured
	case Structured, Binary:
	default:
		errs = append(errs, fmt.Errorf("%s.format: want %s or %s, got %q", path, Structured, Binary, c.Format))
	}
	return errors.Join(errs...)
}

// ValidateBatch reports, by the path of its key below path, what keeps several
// events from going out in one request. c is valid.
func (c Config) ValidateBatch(path string) error {
	if c.Format == Binary {
		return fmt.Errorf("%s.format: %s has room for one event in a request; want %s beside limits.batch, or no batch", path, Binary, Structured)
	}
	return nil
}

// Redacted returns c with the secret parts of its URL hidden.
func (c Config) Redacted() Config {
	c.URL = secret.URL(c.URL)
	return c
}
