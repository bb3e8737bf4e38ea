package pull

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// Config is how one subscriber fetches its events.
type Config struct {
	// LockDuration is for how long an event is lent. Default 60s, as with Event
	// Grid namespaces.
	LockDuration deliver.Duration `json:"lockDuration"`
	// MaxDeliveryCount is how often an event is handed out before it becomes a dead
	// letter. Default 10, as with Event Grid namespaces.
	MaxDeliveryCount int `json:"maxDeliveryCount"`
	// Keys let a receiver in, any one of them. They are secret. None, and no Entra
	// either, means that gridfan makes them and keeps them itself.
	Keys []string `json:"keys,omitempty"`
	// Overlap is how long a key of gridfan's own still lets receivers in beside the
	// one that takes its place. Default 24h.
	Overlap deliver.Duration `json:"overlap,omitempty"`
	// Entra lets in who has a token of a tenant; nil for nobody.
	Entra *Entra `json:"entra,omitempty"`
}

// Entra accepts access tokens of one Microsoft Entra tenant.
type Entra struct {
	// Tenant is the directory's ID, a GUID.
	Tenant string `json:"tenant"`
	// Audience are what the aud claim may be. Stock Event Grid clients ask for
	// tokens for https://eventgrid.azure.net.
	Audience []string `json:"audience"`
	// Roles are app roles of which the token must have one.
	Roles []string `json:"roles,omitempty"`
	// Callers are the client IDs that may receive. None means every client that has
	// one of Roles.
	Callers []string `json:"callers,omitempty"`
	// Authority is the base URL of the login service. Default that of the public
	// cloud.
	Authority string `json:"authority,omitempty"`
}

const (
	minLock = time.Second
	maxLock = time.Hour
	// maxDeliveries is far more than helps: an event that many holders lost is bad.
	maxDeliveries = 1000
	maxKeys       = 5
	// minKey characters of base64 are 96 bits: out of reach for guessing.
	minKey     = 16
	maxKey     = 256
	maxOverlap = 30 * 24 * time.Hour
	maxListed  = 50
	maxText    = 512
)

// OwnKeys says whether gridfan makes the keys.
func (c Config) OwnKeys() bool { return len(c.Keys) == 0 && c.Entra == nil }

// Validate sets defaults and reports every problem, each beginning with the path
// of its key below path. It quotes no secret.
func (c *Config) Validate(path string) error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s.%s: %s", path, key, fmt.Sprintf(format, args...)))
	}
	if c.LockDuration == 0 {
		c.LockDuration = deliver.Duration(time.Minute)
	}
	if d := c.LockDuration.Std(); d < minLock || d > maxLock {
		bad("lockDuration", "want 1s to 1h, got %s", c.LockDuration)
	}
	if c.MaxDeliveryCount == 0 {
		c.MaxDeliveryCount = 10
	}
	if n := c.MaxDeliveryCount; n < 1 || n > maxDeliveries {
		bad("maxDeliveryCount", "want 1 to %d, got %d", maxDeliveries, n)
	}
	if n := len(c.Keys); n > maxKeys {
		bad("keys", "want at most %d, got %d", maxKeys, n)
	}
	for i, key := range c.Keys {
		switch {
		case len(key) < minKey || len(key) > maxKey:
			bad(fmt.Sprintf("keys[%d]", i), "want %d to %d characters", minKey, maxKey)
		case strings.Trim(key, printable) != "":
			bad(fmt.Sprintf("keys[%d]", i), "want letters, digits and signs of ASCII, and no blank: it travels in a header")
		}
	}
	switch d := c.Overlap.Std(); {
	case !c.OwnKeys() && d != 0:
		bad("overlap", "only for keys that gridfan makes; of these, each is good as long as it is here")
	case c.OwnKeys() && d == 0:
		c.Overlap = deliver.Duration(24 * time.Hour)
	case d < 0 || d > maxOverlap:
		bad("overlap", "want up to 30d, got %s", c.Overlap)
	}
	if c.Entra != nil {
		c.Entra.validate(bad)
	}
	return errors.Join(errs...)
}

const printable = "!#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_`abcdefghijklmnopqrstuvwxyz{|}~"

func (e *Entra) validate(bad func(key, format string, args ...any)) {
	if !isGUID(e.Tenant) {
		bad("entra.tenant", "want the directory's ID, a GUID")
	}
	lists := []struct {
		key  string
		list []string
	}{{"audience", e.Audience}, {"roles", e.Roles}, {"callers", e.Callers}}
	for _, l := range lists {
		if len(l.list) > maxListed {
			bad("entra."+l.key, "want at most %d, got %d", maxListed, len(l.list))
		}
		for i, text := range l.list {
			if text == "" || len(text) > maxText {
				bad(fmt.Sprintf("entra.%s[%d]", l.key, i), "want 1 to %d characters", maxText)
			}
		}
	}
	if len(e.Audience) == 0 {
		bad("entra.audience", "missing; want what tokens are issued for, https://eventgrid.azure.net for stock Event Grid clients")
	}
	for i, id := range e.Callers {
		if id != "" && !isGUID(id) {
			bad(fmt.Sprintf("entra.callers[%d]", i), "want the client ID of an app or managed identity, a GUID")
		}
	}
	if len(e.Callers) == 0 && len(e.Roles) == 0 {
		// Any app of a tenant gets a token for any audience of it.
		bad("entra.callers", "missing; want the client IDs that may receive, or roles of which they have one")
	}
	if e.Authority != "" {
		u, err := url.Parse(e.Authority)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			bad("entra.authority", "want the URL of a login service, as in https://login.microsoftonline.us")
		} else if u.Scheme == "http" && !slices.Contains([]string{"127.0.0.1", "::1", "localhost"}, u.Hostname()) {
			bad("entra.authority", "want https")
		}
	}
}

func isGUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || !dash && !strings.ContainsRune("0123456789abcdefABCDEF", rune(c)) {
			return false
		}
	}
	return true
}

// Redacted returns c with its keys hidden.
func (c Config) Redacted() Config {
	c.Keys = slices.Clone(c.Keys)
	for i, key := range c.Keys {
		c.Keys[i] = secret.New(key).String()
	}
	return c
}
