package webhook

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/secret"
)

// Config is where and how events are posted.
type Config struct {
	// URL is the endpoint, http or https. Its query may carry a key, so show
	// it only through Redacted.
	URL string `json:"url,omitempty"`
	// Endpoint takes the place of URL: the name of an address that is kept
	// elsewhere, and Path, which may be empty, what is added to it. See At.
	Endpoint string `json:"endpoint,omitempty"`
	Path     string `json:"path,omitempty"`
	// Format is how an event is written. Default Structured.
	Format Format `json:"format"`
	// Headers are added to every request: a text each, in which {{name}} stands
	// for an attribute of the event. Values may be secret.
	Headers map[string]string `json:"headers,omitempty"`
	// Handshake says whether the endpoint is asked before it is sent anything.
	Handshake Handshake `json:"handshake,omitzero"`
	// Sign says whether requests are signed. Its keys are secret.
	Sign Signing `json:"sign,omitzero"`
	// Auth is how the endpoint knows us, nil for not. Its secrets are secret.
	Auth *credentials.Auth `json:"auth,omitempty"`
	// TLS is how its certificate is verified and what it is shown, nil for as usual.
	TLS *credentials.TLS `json:"tls,omitempty"`
}

// Validate sets defaults and reports every problem, each beginning with the
// path of its key below path.
func (c *Config) Validate(path string) error {
	var errs []error
	u, err := url.Parse(c.URL)
	switch {
	case c.Endpoint != "":
		errs = append(errs, c.validateEndpoint(path))
	case c.Path != "":
		errs = append(errs, fmt.Errorf("%s.path: only with endpoint; it is a part of url", path))
	case c.URL == "":
		errs = append(errs, fmt.Errorf("%s.url: missing; want the http or https URL that events are posted to, or endpoint", path))
	case err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https"):
		// The URL itself may hold a key: it is not repeated.
		errs = append(errs, fmt.Errorf("%s.url: want http://host/path or https://host/path", path))
	case u.Fragment != "":
		errs = append(errs, fmt.Errorf("%s.url: a #fragment is never sent; leave it out", path))
	}
	if err := c.Format.settle(path + ".format"); err != nil {
		errs = append(errs, err)
	}
	if len(c.Headers) == 0 {
		c.Headers = nil // as it is when it was stored
	}
	if _, err := parseHeaders(c.Headers, path+".headers"); err != nil {
		errs = append(errs, err)
	}
	if err := c.Handshake.validate(path + ".handshake"); err != nil {
		errs = append(errs, err)
	}
	if err := c.Sign.validate(path + ".sign"); err != nil {
		errs = append(errs, err)
	}
	if err := c.validateAuth(path, u); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c *Config) validateEndpoint(path string) error {
	u, err := url.Parse(c.Path)
	switch {
	case c.URL != "":
		return fmt.Errorf("%s.url: url and endpoint exclude each other", path)
	case c.Path == "":
	case err != nil || u.Host != "" || u.Fragment != "" || !strings.HasPrefix(c.Path, "/"):
		return fmt.Errorf("%s.path: want a path such as /orders, which is added to that of the endpoint", path)
	}
	return nil
}

// At gives c with the URL of its endpoint, to whose path and query its own are
// added.
func (c Config) At(endpoint string) (Config, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return c, errors.New("not a URL") // it may hold a key
	}
	p, err := url.Parse(c.Path)
	if err != nil {
		return c, errors.New("not a path")
	}
	if c.Path != "" {
		u = u.JoinPath(p.EscapedPath())
		u.RawQuery = strings.Trim(u.RawQuery+"&"+p.RawQuery, "&")
	}
	c.URL, c.Endpoint, c.Path = u.String(), "", ""
	return c, nil
}

// Redacted returns c with the secret parts of its URL, of its headers and its keys
// hidden.
func (c Config) Redacted() Config {
	c.Sign = c.Sign.redacted()
	c.Headers = redactHeaders(c.Headers)
	c.Auth = c.Auth.Redacted()
	if c.URL != "" {
		c.URL = secret.URL(c.URL)
	}
	if path, _, query := strings.Cut(c.Path, "?"); query {
		c.Path = path + "?" + secret.New(c.Path).String()
	}
	return c
}
