package receive

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/gridfan/gridfan/infra/credentials"
)

// DeadLetters say where a source's dead letters are that its broker does not keep
// itself.
type DeadLetters struct {
	Blob *BlobContainer `json:"blob,omitempty"`
}

// BlobContainer is a container of Azure Storage into which Event Grid puts the events
// that it could not deliver.
type BlobContainer struct {
	// Account is the address of the account's blobs, as in
	// https://contoso.blob.core.windows.net. A connection string takes its place.
	Account   string `json:"account,omitempty"`
	Container string `json:"container"`
	// Prefix is what the names of blobs begin with that are this source's. Event Grid
	// names them TOPIC/SUBSCRIPTION/year/month/day/hour/id.json, or without the topic,
	// with the subscription in upper case. Empty: all are.
	Prefix string `json:"prefix,omitempty"`
	// Every is how often they are read. Default 5m; Never: only when somebody says so.
	Every time.Duration `json:"every"`
	// Keep marks blobs that were read in place of deleting them.
	Keep bool `json:"keep,omitempty"`
	// Auth is a connection string, a shared access signature that may list, read and
	// delete (with Keep: write), or an identity with the role Storage Blob Data
	// Contributor.
	Auth credentials.AzureAuth `json:"auth"`
}

// Never in the place of BlobContainer.Every.
const Never = time.Duration(-1)

const (
	defaultBlobEvery = 5 * time.Minute // Event Grid itself waits as long
	leastBlobEvery   = time.Second
	mostBlobEvery    = 24 * time.Hour
)

func (d *DeadLetters) validate(path string) error {
	if d.Blob == nil {
		return fmt.Errorf("%s: want blob: where Event Grid puts what it could not deliver", path)
	}
	return d.Blob.validate(path + ".blob")
}

func (c *BlobContainer) validate(path string) error {
	p := &problems{path: path}
	methods := append([]credentials.AzureMethod{credentials.AzureConnectionString, credentials.AzureSAS}, credentials.AzureIdentities...)
	switch err := c.Auth.Validate(path+".auth", methods...); {
	case err != nil:
		p.errs = append(p.errs, err)
	case c.Auth.ConnectionString != "" && c.Account != "":
		p.report(".account", "the connection string says which; leave the key out")
	case c.Auth.ConnectionString != "":
		// The client reads it; here only whether it would send keys in the clear.
		if u := connectionEndpoint(c.Auth.ConnectionString); u != nil && u.Scheme != "https" && !onThisMachine(u) {
			p.report(".auth.connectionString", "want DefaultEndpointsProtocol=https: keys are sent over nothing else")
		}
	default:
		if u := p.account(c.Account); u != nil && strings.Trim(u.Path, "/") != "" && !onThisMachine(u) {
			p.report(".account", "want the address without a path; the container has a key of its own")
		}
	}
	// The rules of the service (learn.microsoft.com, "Naming and referencing containers,
	// blobs, and metadata"; read 2026-11).
	switch {
	case c.Container == "":
		p.report(".container", "missing; want the container that the event subscription names for dead letters")
	case len(c.Container) < 3 || len(c.Container) > 63 || strings.Trim(c.Container, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || strings.Contains(c.Container, "--") || strings.Trim(c.Container, "-") != c.Container:
		p.report(".container", "a name is 3 to 63 lower-case letters, digits and single dashes")
	}
	if len(c.Prefix) > 1024 || strings.HasPrefix(c.Prefix, "/") || strings.ContainsFunc(c.Prefix, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		p.report(".prefix", "want up to 1024 characters without a slash before them, as in MYTOPIC/MYSUBSCRIPTION/")
	}
	switch {
	case c.Every == 0:
		c.Every = defaultBlobEvery
	case c.Every == Never:
	case c.Every < leastBlobEvery || c.Every > mostBlobEvery:
		p.report(".every", "want 1s to 24h, or none, got %s", c.Every)
	}
	return errors.Join(p.errs...)
}

// account checks an account's address. On this machine it may be http, as Azurite
// speaks it.
func (p *problems) account(raw string) *url.URL {
	if u, err := url.Parse(raw); err == nil && u.Scheme == "http" && onThisMachine(u) && u.User == nil && u.RawQuery == "" && u.Fragment == "" {
		return u
	}
	return p.https(".account", raw, "https://contoso.blob.core.windows.net")
}

// onThisMachine says whether a URL leads to this machine whatever a name server says.
func onThisMachine(u *url.URL) bool {
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// connectionEndpoint gives where a connection string leads to, nil if it cannot be
// told.
func connectionEndpoint(text string) *url.URL {
	parts := map[string]string{}
	for part := range strings.SplitSeq(text, ";") {
		name, value, _ := strings.Cut(part, "=")
		parts[strings.ToLower(strings.TrimSpace(name))] = strings.TrimSpace(value)
	}
	raw := parts["blobendpoint"]
	if raw == "" {
		raw = parts["defaultendpointsprotocol"] + "://" + parts["accountname"]
	}
	u, err := url.Parse(raw)
	if err != nil || u.Scheme == "" {
		return nil
	}
	return u
}
