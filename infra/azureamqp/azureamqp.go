// Package azureamqp is what clients of Azure's AMQP services (Service Bus, Event Hubs)
// have in common here, whichever way messages go: where a namespace is, how a
// connection to it is made under the rules of egress, and what the service said when
// it refused something.
package azureamqp

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"strings"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/egress"
)

// The scopes of tokens, as the clients ask for (azservicebus v1.11.0 and azeventhubs
// v2.0.2, internal/sbauth; 2026-11).
const (
	Scope     = "https://servicebus.azure.net//.default"
	HubsScope = "https://eventhubs.azure.net//.default"
)

// The ports of AMQP, secure and plain.
const (
	securePort = "5671"
	plainPort  = "5672"
)

// Address is where a namespace is.
type Address struct {
	// HostPort is what to dial.
	HostPort string
	// Plain says that it is an emulator without TLS.
	Plain bool
}

// Host is the address without its port.
func (a Address) Host() string {
	host, _, _ := net.SplitHostPort(a.HostPort)
	return host
}

// Locate finds the namespace: a connection string in auth says which, or else
// namespace, a host. entity is the one a connection string may name. The error quotes
// nothing secret.
func Locate(namespace string, auth credentials.AzureAuth, entity string) (Address, error) {
	host, port, plain := namespace, securePort, false
	if s := auth.ConnectionString; s != "" {
		p := connection(s)
		if p["endpoint"] == "" || p["sharedaccesssignature"] == "" && (p["sharedaccesskeyname"] == "" || p["sharedaccesskey"] == "") {
			// It holds the key: it is not repeated.
			return Address{}, errors.New("want Endpoint=sb://HOST/;SharedAccessKeyName=NAME;SharedAccessKey=KEY, as the portal shows it")
		}
		u, err := url.Parse(p["endpoint"])
		if err != nil || u.Host == "" || u.Scheme != "sb" {
			return Address{}, errors.New("its Endpoint is no address such as sb://contoso.servicebus.windows.net/")
		}
		if path := p["entitypath"]; path != "" && path != entity {
			return Address{}, errors.New("its EntityPath is another queue, topic or hub")
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
		return Address{}, errors.New("want a host, as in contoso.servicebus.windows.net, without sb:// and without a path")
	}
	return Address{net.JoinHostPort(host, port), plain}, nil
}

// NamesEntity says whether a connection string names the queue, topic or hub that it
// is for.
func NamesEntity(connectionString string) bool {
	return connection(connectionString)["entitypath"] != ""
}

// Secrets are the texts in auth that nobody may see, and the keys in a connection
// string by themselves.
func Secrets(auth credentials.AzureAuth) []string {
	all := auth.Secrets()
	p := connection(auth.ConnectionString)
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

// maxEntityLen is that of a path (learn.microsoft.com, service-bus-quotas; read 2026-11).
const maxEntityLen = 260

// ValidEntity says whether name can be that of a queue, topic or subscription.
func ValidEntity(name string) bool {
	return name != "" && len(name) <= maxEntityLen && !strings.HasPrefix(name, "/") && !strings.HasSuffix(name, "/") &&
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./") == ""
}

// EntityRule says what ValidEntity wants.
const EntityRule = "a name is up to 260 letters, digits, dots, dashes, underscores and slashes"

// Dialer knows where the service is. It makes the connections that an SDK asks for by
// its NewWebSocketConn, the SDKs' door for connections of one's own: plain AMQP like
// theirs, but under the rules of egress.
type Dialer struct {
	// TLS is nil for an emulator, which speaks in the clear.
	TLS     *tls.Config
	address string
	way     *egress.Way
}

// NewDialer makes the Dialer of an address; a nil way leads wherever it is.
func NewDialer(a Address, way *egress.Way) Dialer {
	d := Dialer{address: a.HostPort, way: way}
	if !a.Plain {
		d.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: a.Host()}
	}
	return d
}

// Dial opens a connection.
func (d Dialer) Dial(ctx context.Context) (net.Conn, error) {
	c, err := d.way.DialContext(ctx, "tcp", d.address)
	if err != nil || d.TLS == nil {
		return c, err
	}
	secure := tls.Client(c, d.TLS)
	if err := secure.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return secure, nil
}
