// Package egress says where gridfan may connect to when a stranger names the
// host, and by which proxy.
//
// A URL that somebody adds while gridfan runs makes it send requests from where it
// stands: inside a network, beside services that trust whoever reaches them, and
// on a cloud's machine, whose metadata address hands out its identity. The Rules
// keep such requests to the Internet and to what the operator has named.
//
// What is judged is the address, when it is dialled: a name is looked up, each
// address that comes back is judged, and the connection goes to one that passed and
// to no other, without a second look-up. So it does not matter what a name meant
// when it was added, nor how an address is written: mapped into IPv6, as 6to4,
// NAT64 or Teredo, it is judged by the address inside. A connection that is kept is
// to an address that passed.
//
// Three kinds of address are told apart: those of the Internet, those that need the
// operator's leave (private, loopback, shared, unique local), and those that nobody
// opens (link-local, metadata, multicast, reserved). See the table in ranges.go.
//
// A proxy is the operator's word and not judged. What it is to reach is: by the
// addresses that this machine finds for the name, all of which must pass, because
// the proxy chooses for itself. That is as far as it goes: the proxy looks the name
// up once more.
package egress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/gridfan/gridfan/infra/secret"
)

// ConnectTimeout is how long it may take until there is a connection, look-up
// included, whatever the number of addresses. It is below the default deadline of
// an attempt (30 s), so that a host that drops packets is told from one that
// answers slowly.
const ConnectTimeout = 10 * time.Second

// Config is what the operator says. The zero value allows nothing beside the
// Internet and takes the proxy of the environment.
type Config struct {
	// Allow are networks (10.20.0.0/16), addresses and host names that need leave
	// and have it. A name such as *.corp.example stands for all below it.
	Allow []string
	// Proxy is Environment, None, or the URL of a proxy: http, https or socks5. It
	// may carry a password. Default Environment.
	Proxy secret.String
	// NoProxy are hosts that are reached without that URL: names, with all below
	// them, addresses and networks. Loopback addresses always are.
	NoProxy []string
	// ProxyResolves leaves it to the proxy to find and judge the addresses of a
	// name. Addresses in a URL are judged here all the same.
	ProxyResolves bool
}

// What Config.Proxy can say beside a URL.
const (
	// Environment: HTTP_PROXY, HTTPS_PROXY and NO_PROXY, as most programs read them.
	Environment = "environment"
	None        = "none"
)

// Validate reports every problem, each beginning with the path of its key in the
// configuration file.
func (c Config) Validate() error {
	var errs []error
	for i, text := range c.Allow {
		if _, err := parseAllowed(text); err != nil {
			errs = append(errs, fmt.Errorf("egress.allow[%d]: %w", i, err))
		}
	}
	proxy := c.Proxy.Reveal()
	own := proxy != "" && proxy != Environment && proxy != None
	if own {
		u, err := url.Parse(proxy)
		// It may hold a password: it is not repeated.
		if err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) {
			errs = append(errs, fmt.Errorf("egress.proxy: want %s, %s, or http://host:port, https://host:port or socks5://host:port", Environment, None))
		}
	}
	for i, host := range c.NoProxy {
		if host == "" || strings.ContainsAny(host, " \t\r\n,;/*@") && !isNetwork(host) {
			errs = append(errs, fmt.Errorf("egress.noProxy[%d]: want a host name, an address or a network such as 10.20.0.0/16, got %q", i, host))
		}
	}
	if len(c.NoProxy) > 0 && !own {
		errs = append(errs, errors.New("egress.noProxy: only beside the URL of a proxy (egress.proxy); for that of the environment, set NO_PROXY"))
	}
	if c.ProxyResolves && proxy == None {
		errs = append(errs, errors.New("egress.proxyResolves: there is no proxy (egress.proxy: none); remove one of the two"))
	}
	return errors.Join(errs...)
}

func isNetwork(s string) bool {
	_, err := netip.ParsePrefix(s)
	return err == nil
}

// allowed is one entry of Config.Allow: a network or a name.
type allowed struct {
	network netip.Prefix
	name    string // lower case
	below   bool   // not name itself but all below it
}

func parseAllowed(text string) (allowed, error) {
	const hint = "want a network such as 10.20.0.0/16, an address, or a host name"
	network, err := netip.ParsePrefix(text)
	if a, e := netip.ParseAddr(text); e == nil {
		network, err = netip.PrefixFrom(a.WithZone(""), a.BitLen()), nil
	}
	if err == nil {
		return allowed{network: network}, checkNetwork(network)
	}
	name, below := strings.CutPrefix(strings.ToLower(text), "*.")
	name, _, odd := spelled(name)
	switch {
	case strings.ContainsAny(text, "/:@"), name == "", len(name) > 253,
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "", strings.Contains("."+name+".", ".."):
		return allowed{}, fmt.Errorf("%q is none of what may stand here: %s", text, hint)
	case odd:
		return allowed{}, fmt.Errorf("%q is a number and no host name: write an address with four decimal numbers", text)
	}
	return allowed{name: name, below: below}, nil
}

// checkNetwork refuses an entry that would have no effect, or another one than it
// seems to.
func checkNetwork(n netip.Prefix) error {
	carried, _ := inside(n.Addr())
	switch {
	case n.Addr().Is4In6(), len(carried) > 0 && !nat64Local.Overlaps(n):
		return fmt.Errorf("%s holds IPv4 addresses, which are judged as such: write the IPv4 network", n)
	case n != n.Masked():
		return fmt.Errorf("%s has bits beyond its length: write %s, or %s for the one address", n, n.Masked(), n.Addr())
	}
	if i := slices.IndexFunc(blocks, func(b block) bool { return b.prefix.Overlaps(n) && b.prefix.Bits() <= n.Bits() }); i >= 0 && blocks[i].never {
		return fmt.Errorf("%s is %s, which is always refused", n, blocks[i])
	}
	if !slices.ContainsFunc(blocks, func(b block) bool { return !b.never && b.prefix.Overlaps(n) }) {
		return fmt.Errorf("%s needs no leave: only private, shared and loopback addresses do", n)
	}
	return nil
}

// Rules are a Config at work. They are safe for concurrent use. The zero value is
// that of the zero Config without a proxy.
type Rules struct {
	allow         []allowed
	proxy         func(*url.URL) (*url.URL, error) // nil: none
	proxyResolves bool

	// Set by tests, which cannot have a public address answer.
	resolver *net.Resolver
}

// New makes Rules of a valid cfg. The environment is read once.
func New(cfg Config) (*Rules, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	r := &Rules{proxyResolves: cfg.ProxyResolves}
	for _, text := range cfg.Allow {
		a, err := parseAllowed(text)
		if err != nil {
			return nil, err // Validate has parsed it
		}
		r.allow = append(r.allow, a)
	}
	switch proxy := cfg.Proxy.Reveal(); proxy {
	case "", Environment:
		r.proxy = httpproxy.FromEnvironment().ProxyFunc()
	case None:
	default:
		c := httpproxy.Config{HTTPProxy: proxy, HTTPSProxy: proxy, NoProxy: strings.Join(cfg.NoProxy, ",")}
		r.proxy = c.ProxyFunc()
	}
	return r, nil
}

// RefusedPrefix begins the text of every RefusedError.
const RefusedPrefix = "not sent: "

// RefusedError means that the rules keep gridfan from connecting to a host.
// Nothing was sent.
type RefusedError struct {
	// Host is the one in the URL.
	Host string
	// Addr is the address that decided; invalid when it was the name.
	Addr netip.Addr
	// Why says what it is.
	Why string
	// Final: no entry of Config.Allow would change it.
	Final bool
}

func (e *RefusedError) Error() string {
	text := RefusedPrefix + e.Host
	if e.Addr.IsValid() && e.Addr.String() != e.Host {
		text += " leads to " + e.Addr.String() + ","
	} else {
		text += " is"
	}
	text += " " + e.Why
	switch {
	case !e.Final:
		text += " that egress.allow does not name"
	case e.Addr.IsValid():
		text += ", which is always refused"
	}
	return text
}

// UnresolvedError means that a host's addresses cannot be found here, where they
// are to be judged before a proxy is asked.
type UnresolvedError struct {
	Err error
}

func (e *UnresolvedError) Error() string {
	return e.Err.Error() + "; behind a proxy that looks names up itself, set egress.proxyResolves: true"
}

func (e *UnresolvedError) Unwrap() error { return e.Err }

// Check judges what a URL's host says by itself, without a look-up: an address, or
// a name of this machine. The error is a *RefusedError.
func (r *Rules) Check(u *url.URL) error {
	_, _, err := r.look(u.Hostname())
	return err
}

// look gives the host as it is dialled, and its address if it is one. The error is
// a *RefusedError.
func (r *Rules) look(host string) (name string, addr netip.Addr, err error) {
	name, addr, odd := spelled(host)
	if odd {
		why := "a number and no host name"
		if a, ok := meant(name); ok {
			why += "; write it as " + a.String() + " if that is meant"
		}
		return name, addr, &RefusedError{Host: name, Why: why, Final: true}
	}
	if a := addr; a.IsValid() {
		return name, a, r.judge(name, a)
	}
	if a, ok := known(name); ok {
		return name, addr, r.judge(name, a)
	}
	return name, addr, nil
}

// judge decides on one address of a host.
func (r *Rules) judge(name string, a netip.Addr) error {
	named := slices.ContainsFunc(r.allow, func(e allowed) bool {
		return e.name != "" && (name == e.name && !e.below || e.below && strings.HasSuffix(name, "."+e.name))
	})
	b, is := strictest(a, func(a netip.Addr) bool {
		return named || slices.ContainsFunc(r.allow, func(e allowed) bool { return e.name == "" && e.network.Contains(a) })
	})
	if !is {
		return nil
	}
	return &RefusedError{Host: name, Addr: a, Why: b.String(), Final: b.never}
}

// Way is how connections are made to the host of one URL. The zero value, and a nil
// Way, connect to wherever it leads, by the proxy of the environment.
type Way struct {
	rules  *Rules
	judged bool
}

// Way gives the one for URLs that are to be judged, or for the operator's own.
func (r *Rules) Way(judged bool) *Way { return &Way{rules: r, judged: judged} }

// Equip sets how t connects, and by which proxy, for requests to target. They are
// all that t may be used for: a transport whose requests go to several hosts would
// not know which of its connections is to a proxy.
func (w *Way) Equip(t *http.Transport, target *url.URL) {
	var rules *Rules
	judged := false
	if w != nil {
		rules, judged = w.rules, w.judged
	}
	if rules == nil {
		rules = &Rules{proxy: httpproxy.FromEnvironment().ProxyFunc()}
	}
	t.DialContext = (&net.Dialer{Timeout: ConnectTimeout}).DialContext
	t.Proxy = nil
	var proxy *url.URL
	var err error
	if rules.proxy != nil {
		proxy, err = rules.proxy(target)
	}
	switch {
	case proxy != nil || err != nil:
		// Every connection is to the proxy. This is called for each request, also
		// where one is kept.
		t.Proxy = func(req *http.Request) (*url.URL, error) {
			if judged && err == nil {
				if err := rules.judgeAll(req.Context(), req.URL.Hostname()); err != nil {
					return nil, err
				}
			}
			return proxy, err
		}
	case judged:
		t.DialContext = rules.DialContext
	}
}

// DialContext connects to a host without any proxy, for protocols that those do not
// speak.
func (w *Way) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if w != nil && w.judged {
		return w.rules.DialContext(ctx, network, address)
	}
	return (&net.Dialer{Timeout: ConnectTimeout}).DialContext(ctx, network, address)
}

// judgeAll decides on all addresses of a host that a proxy is to reach.
func (r *Rules) judgeAll(ctx context.Context, host string) error {
	name, addr, err := r.look(host)
	if err != nil || addr.IsValid() || r.proxyResolves {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, ConnectTimeout)
	defer cancel()
	all, err := r.lookup(ctx, name)
	if err != nil {
		return &UnresolvedError{err}
	}
	for _, a := range all {
		if err := r.judge(name, a); err != nil {
			return err
		}
	}
	return nil
}

// lookup finds the addresses of a name, in the order in which to try them.
func (r *Rules) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	all, err := cmp.Or(r.resolver, net.DefaultResolver).LookupNetIP(ctx, "ip", name)
	if err != nil {
		return nil, err
	}
	for i := range all {
		all[i] = plain(all[i])
	}
	return all, nil
}
