package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/keyvault"
	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/auth"
	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/schemas/custom"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/retention"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// decoder collects what is wrong and goes on, so that one run shows it all.
type decoder struct {
	file   string
	lookup Lookup

	problems []Problem
	warnings []Problem
	trouble  []string // paths with a problem; Validate need not repeat them
	hidden   []hidden
	files    []string // that were referred to

	reading    *keyvault.Reading // nil until it is known how vaults are reached
	references []Reference
	kept       []Problem // values that could not be read again
	unread     int       // references that were not looked up
}

func (d *decoder) problem(at pos, path, format string, args ...any) {
	d.trouble = append(d.trouble, path)
	d.problems = append(d.problems, Problem{d.file, at.line, at.column, path, d.hide(fmt.Sprintf(format, args...))})
}

// config reads the whole tree. Its result has a meaning only without problems.
func (d *decoder) config(root *value) *Config {
	c := &Config{}
	c.Secrets = d.secretStores(root.get("secrets"), root)
	d.reading = d.lookup.vaults().Read(c.Secrets.KeyVault)

	listen := root.get("listen")
	c.Listen.Public = d.text(listen.get("public", "addr"))
	c.Listen.TrustedProxies = d.networks(listen.get("public", "trustedProxies"))
	if t := listen.get("public", "tls"); t != nil {
		c.Listen.TLS = &TLS{
			Cert:     d.text(t.get("cert")),
			Key:      d.text(t.get("key")),
			ClientCA: d.text(t.get("clientCA")),
		}
	}
	c.Listen.Admin = d.text(listen.get("admin", "addr"))
	c.Listen.AdminToken = d.secret(listen.get("admin", "token"))
	d.validated(c.Listen.Validate(), root, "")

	b := root.get("broker")
	c.Broker.Dir = d.text(b.get("embedded", "dir"))
	c.Broker.Ephemeral = d.boolean(b.get("embedded", "ephemeral"))
	c.Broker.Listen = d.text(b.get("embedded", "listen"))
	clients := b.get("embedded", "clients")
	c.Broker.Clients.Listen = d.text(clients.get("listen"))
	c.Broker.Clients.URL = d.text(clients.get("url"))
	if t := clients.get("tls"); t != nil {
		c.ClientsTLS = &TLS{Cert: d.text(t.get("cert")), Key: d.text(t.get("key"))}
		c.Broker.Clients.Encrypted = true
		d.validated(c.ClientsTLS.validate("broker.embedded.clients.tls"), root, "")
	}
	c.Broker.Replicas = d.integer(b.get("replicas"))
	c.Broker.Durability = broker.Mode(d.choice(b.get("durability"), string(broker.Barrier), string(broker.SyncAlways)))
	c.Broker.Monitoring = d.textOrTexts(b.get("monitoring"))
	c.Broker.Credentials = d.credentials(b.get("credentials"))
	c.Broker.User = d.text(b.get("user"))
	c.Broker.Password = d.secret(b.get("password"))
	c.Broker.TLS = broker.TLSConfig{CA: d.text(b.get("tls", "ca")), Cert: d.text(b.get("tls", "cert")), Key: d.text(b.get("tls", "key"))}
	if url := b.get("url"); url != nil {
		// An unreadable URL is an external server still, and the keys beside it
		// are judged as such.
		c.Broker.URL = cmp.Or(d.text(url), "nats://unreadable")
		if embedded := b.get("embedded"); embedded != nil {
			d.problem(embedded.at, embedded.path, "the embedded server and an external one (broker.url) exclude each other; remove one")
		}
	}
	if spool := b.get("spool"); spool != nil {
		c.Spool = &broker.SpoolConfig{Dir: d.text(spool.get("dir")), MaxBytes: d.size(spool.get("maxBytes"))}
		d.validated(c.Spool.Validate(), root, "")
		if b.get("url") == nil {
			d.problem(spool.at, spool.path, "only an external server (broker.url) can be away; remove the key")
		}
	}
	storage := root.get("storage")
	c.Dedup.Horizon = d.duration(storage.get("dedup", "horizon")).Std()
	c.Dedup.Memory = d.size(storage.get("dedup", "memory"))
	d.validated(c.Dedup.Validate(), root, "")
	c.Broker.MaxBytes = d.size(storage.get("maxBytes"))
	d.validated(c.Broker.Validate(), root, "")
	c.Retention.Replay = d.duration(storage.get("replay"))
	c.Retention.OnFull = retention.Policy(d.choice(storage.get("onFull")))
	d.validated(c.Retention.Validate(), root, "")

	c.Shutdown.Grace = d.duration(root.get("shutdown", "grace"))
	d.validated(c.Shutdown.Validate(), root, "")

	out := root.get("egress")
	c.Egress.Allow = d.texts(out.get("allow"))
	c.Egress.Proxy = d.proxy(out.get("proxy"))
	c.Egress.NoProxy = d.texts(out.get("noProxy"))
	c.Egress.ProxyResolves = d.boolean(out.get("proxyResolves"))
	d.validated(c.Egress.Validate(), root, "")

	for _, f := range sorted(root.get("sources")) {
		pattern := d.pattern(f.value)
		var asked *Polled
		if pattern != Push {
			tables := d.polled(f, pattern)
			c.Polled = append(c.Polled, tables...)
			// Rows are read as the first table that is read over OData.
			if i := slices.IndexFunc(tables, func(p Polled) bool { return p.OData != nil }); i >= 0 {
				asked = &tables[i]
			}
		}
		if pattern == Poll {
			continue
		}
		if to := d.completed(f, asked); to != nil {
			c.Completed = append(c.Completed, *to)
		}
		if r, ok := d.received(f); ok {
			c.Received = append(c.Received, r)
			if !pushed(f.value) {
				continue
			}
		}
		s := d.source(f)
		d.verifiable(s.Auth, f.value, c.Listen.TLS)
		c.Sources = append(c.Sources, s)
	}
	if c.Count() == 0 && !d.troubled("sources") {
		at, path, _ := root.locate("sources")
		d.problem(at, path, "want at least one source (%s)", example)
	}
	for _, f := range sorted(root.get("endpoints")) {
		c.Endpoints = append(c.Endpoints, d.endpoint(f))
	}
	for _, f := range sorted(root.get("subscribers")) {
		c.Subscribers = append(c.Subscribers, d.subscriber(f))
		d.placed(f, c.Endpoints)
	}
	return c
}

// sorted lists the named mappings below v by name. One that is something else
// was reported; one that is null lacks everything, which Validate reports.
func sorted(v *value) []*field {
	if v == nil {
		return nil
	}
	var fields []*field
	for _, f := range v.fields {
		if k := f.value.kind; k == mapping || k == null {
			fields = append(fields, f)
		}
	}
	slices.SortFunc(fields, func(a, b *field) int { return cmp.Compare(a.name, b.name) })
	return fields
}

func (d *decoder) source(f *field) ingress.Source {
	return d.sourceOf(f, nil)
}

// sourceOf reads a source. Nobody pushes to one whose door is given.
func (d *decoder) sourceOf(f *field, door *auth.Config) ingress.Source {
	v := f.value
	push, limits := v.get("push"), v.get("limits")
	s := ingress.Source{
		Name:          f.name,
		Kind:          d.choice(v.get("kind")),
		Environment:   d.text(v.get("environment")),
		Rationale:     d.text(v.get("rationale")),
		Auth:          d.auth(push.get("auth")),
		Origins:       d.texts(push.get("origins")),
		Subscriptions: d.texts(push.get("subscriptions")),
		Validation:    ingress.Validation(d.choice(push.get("validation"))),
		BusinessKeys:  d.businessKeys(v.get("businessKeys")),
		Mapping:       d.mapping(v.get("mapping")),
		Limits: ingress.Limits{
			Body:        d.size(limits.get("body")),
			Rate:        d.rate(limits.get("rate")),
			Concurrency: d.integer(limits.get("concurrency")),
		},
	}
	if door != nil {
		s.Auth = *door
	}
	d.validated(s.Validate(), v, "sources."+f.name)
	return s
}

func (d *decoder) businessKeys(v *value) map[string][]string {
	if v == nil || v.kind != mapping {
		return nil
	}
	keys := map[string][]string{}
	for _, f := range v.fields {
		keys[f.name] = nil // Validate reports one without members
		if v := v.get(f.name); v != nil {
			keys[f.name] = d.textOrTexts(v)
		}
	}
	return keys
}

func (d *decoder) mapping(v *value) *custom.Mapping {
	if v == nil {
		return nil
	}
	m := &custom.Mapping{
		Each:         d.expression(v.get("each")),
		ID:           d.expression(v.get("id")),
		Type:         d.expression(v.get("type")),
		Time:         d.expression(v.get("time")),
		Scope:        d.expression(v.get("scope")),
		Subject:      d.expression(v.get("subject")),
		Name:         d.expression(v.get("name")),
		PartitionKey: d.expression(v.get("partitionKey")),
		LegalEntity:  d.expression(v.get("legalEntity")),
		Action:       d.expression(v.get("action")),
	}
	extensions := v.get("extensions")
	if extensions == nil || extensions.kind != mapping {
		return m
	}
	m.Extensions = map[string]string{}
	for _, f := range extensions.fields {
		if !event.ValidExtensionName(f.name) {
			d.problem(f.at, f.value.path, "want a name of lower-case letters and digits that is no attribute of CloudEvents' own")
			continue
		}
		m.Extensions[f.name] = d.expression(extensions.get(f.name)) // Validate reports an empty one
	}
	return m
}

func (d *decoder) subscriber(f *field) registry.Definition {
	v := f.value
	s := registry.Definition{
		Name:      f.name,
		Subjects:  d.textOrTexts(v.get("subjects")),
		Filter:    d.expression(v.get("filter")),
		Transform: d.expression(v.get("transform")),
		Start:     d.start(v.get("start")),
		Drain:     d.boolean(v.get("drain")),
	}
	if w := v.get("deliver", "webhook"); w != nil {
		s.Deliver.Webhook = &webhook.Config{
			URL:       d.text(w.get("url")),
			Endpoint:  d.text(w.get("endpoint")),
			Path:      d.text(w.get("path")),
			Headers:   d.headers(w.get("headers")),
			Handshake: d.handshake(w.get("handshake")),
			Sign:      d.signing(w.get("sign")),
			Auth:      d.credential(w.get("auth")),
			TLS:       d.clientTLS(w.get("tls")),
			Format:    webhook.Format(d.choice(w.get("format"))),
		}
	}
	s.Deliver.Pull = d.pull(v.get("deliver", "pull"))
	d.azureWays(v.get("deliver"), &s.Deliver)
	if n := v.get("deliver", "nats"); n != nil {
		s.Deliver.Nats = d.native(n)
	}
	s.Config = d.delivery(v)
	d.validated(s.Validate(), v, "subscribers."+f.name)
	return s
}

// validated puts what a Validate function reports back on its line. Each error
// begins with prefix, which is where v stands.
func (d *decoder) validated(err error, v *value, prefix string) {
	for _, err := range flatten(err) {
		rest, ok := strings.CutPrefix(err.Error(), prefix)
		at, path, message := v.locate(rest)
		if !ok || message == "" {
			d.problem(v.at, v.path, "%s", err)
			continue
		}
		// A bad name is not explained by what is wrong below it.
		if path != v.path && d.troubled(path) {
			continue
		}
		// Not through problem: one Validate may say two things about one key.
		d.problems = append(d.problems, Problem{d.file, at.line, at.column, path, d.hide(message)})
	}
}

func flatten(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, flatten(e)...)
		}
		return all
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// troubled says whether a problem is known at the path, above it or below it.
func (d *decoder) troubled(path string) bool {
	within := func(a, b string) bool {
		rest, ok := strings.CutPrefix(a, b)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	}
	return slices.ContainsFunc(d.trouble, func(t string) bool {
		// A problem of a whole source or subscriber, such as a second one of the
		// same name, hides nothing.
		return within(t, path) || within(path, t) && strings.Count(t, ".") > 1
	})
}

// The readers below take nil for a key that is not in the file and return its
// zero value, as they do after a problem.

func (d *decoder) text(v *value) string {
	s, _ := d.scalar(v)
	return s
}

// scalar returns a text with its references resolved, and their number.
func (d *decoder) scalar(v *value) (string, int) {
	switch {
	case v == nil:
		return "", 0
	case v.kind == number || v.kind == boolean:
		d.problem(v.at, v.path, "want a text, got %s; put it in quotes", v.kind)
		return "", 0
	case v.kind != text:
		d.problem(v.at, v.path, "want a text, got %s", v.kind)
		return "", 0
	case v.text == "":
		d.problem(v.at, v.path, "empty; give a value or leave the key out")
		return "", 0
	}
	s, references, ok := d.resolve(v, v.text)
	if !ok {
		return "", 0
	}
	return s, references
}

// secret reads a text that is better not in the file.
func (d *decoder) secret(v *value) secret.String {
	s, references := d.scalar(v)
	if s != "" && references == 0 {
		d.warnings = append(d.warnings, Problem{d.file, v.at.line, v.at.column, v.path,
			"keys in the file are readable by everyone who can read it; use ${env:NAME}, ${file:/path} or ${keyvault:vault/name}"})
	}
	return secret.New(s)
}

// proxy reads the address of a proxy, which is secret only with a password in it.
func (d *decoder) proxy(v *value) secret.String {
	s, references := d.scalar(v)
	if u, err := url.Parse(s); err == nil && u.User != nil && references == 0 {
		d.warnings = append(d.warnings, Problem{d.file, v.at.line, v.at.column, v.path,
			"passwords in the file are readable by everyone who can read it; use ${env:NAME} or ${file:/path}"})
	}
	return secret.New(s)
}

// expression reads a jq or CEL expression as it stands: $ and braces have a meaning of
// their own there.
func (d *decoder) expression(v *value) string {
	if v != nil && v.kind == text && v.text != "" {
		return v.text
	}
	return d.text(v)
}

// textOrTexts reads one text, or a list of them.
func (d *decoder) textOrTexts(v *value) []string {
	if v != nil && v.kind == text {
		return []string{d.text(v)}
	}
	return d.texts(v)
}

// credentials reads the text of a .creds file, not its path.
func (d *decoder) credentials(v *value) secret.String {
	if v == nil {
		return secret.String{}
	}
	s := d.secret(v).Reveal()
	if s != "" && !strings.Contains(s, "\n") {
		d.problem(v.at, v.path, "want the text of a NATS .creds file; refer to it as ${file:/run/secrets/nats.creds}")
		return secret.String{}
	}
	if s != "" && !strings.HasSuffix(s, "\n") {
		s += "\n" // nats-io/nkeys finds no seed in a file without it
	}
	return secret.New(s)
}

// choice reads one word. Without any words Validate knows which.
func (d *decoder) choice(v *value, words ...string) string {
	s := d.text(v)
	if s == "" {
		return ""
	}
	if len(words) > 0 && !slices.Contains(words, s) {
		d.problem(v.at, v.path, "want %s, got %q", strings.Join(words, " or "), s)
		return ""
	}
	return s
}

func (d *decoder) texts(v *value) []string {
	var all []string
	for _, item := range d.items(v) {
		all = append(all, d.text(item)) // in its place even if unreadable
	}
	return all
}

// networks reads a list of networks, of which one may be a single address.
func (d *decoder) networks(v *value) []netip.Prefix {
	var all []netip.Prefix
	for _, item := range d.items(v) {
		all = append(all, d.network(item)) // in its place even if unreadable
	}
	return all
}

func (d *decoder) network(v *value) netip.Prefix {
	s := d.text(v)
	if s == "" {
		return netip.Prefix{}
	}
	network, err := netip.ParsePrefix(s)
	if addr, e := netip.ParseAddr(s); e == nil && addr.Zone() == "" {
		network, err = netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	switch {
	case err != nil:
		d.problem(v.at, v.path, "%q is not a network: write 10.20.0.0/16, 2001:db8::/32 or a single address", s)
	case network.Addr().Is4In6():
		d.problem(v.at, v.path, "%q never matches: write an IPv4 network as such, as in 10.20.0.0/16", s)
	case network != network.Masked():
		d.problem(v.at, v.path, "%q has bits beyond its length: write %s, or %s for the one address", s, network.Masked(), network.Addr())
	default:
		return network
	}
	return netip.Prefix{}
}

func (d *decoder) items(v *value) []*value {
	switch {
	case v == nil:
	case v.kind != list:
		d.problem(v.at, v.path, "want a list, got %s; write [ … ]", v.kind)
	case len(v.items) == 0:
		d.problem(v.at, v.path, "the list is empty; fill it or leave the key out")
	default:
		return v.items
	}
	return nil
}

// numeric reads the text of a number; ok is false after a problem, and for a key
// that is not there. kind says what it should be.
func (d *decoder) numeric(v *value, kind string) (s string, ok bool) {
	if v == nil {
		return "", false
	}
	s, ok = v.text, v.kind == number
	if v.kind == text {
		var references int
		if s, references = d.scalar(v); s == "" {
			return "", false
		}
		ok = references > 0 // ${env:N} can be nothing but a text
	}
	if !ok {
		d.problem(v.at, v.path, "want %s, got %s", kind, v.kind)
	}
	return s, ok
}

func (d *decoder) integer(v *value) int {
	const kind = "a whole number"
	s, ok := d.numeric(v, kind)
	if !ok {
		return 0
	}
	switch n, err := strconv.Atoi(s); {
	case err != nil:
		d.problem(v.at, v.path, "want %s, got %q", kind, s)
	case n < 1:
		d.problem(v.at, v.path, "want at least 1, got %d; leave the key out for its default", n)
	default:
		return n
	}
	return 0
}

// fraction reads a number with a point, as in 0.5.
func (d *decoder) fraction(v *value) float64 {
	const kind = "a number"
	s, ok := d.numeric(v, kind)
	if !ok {
		return 0
	}
	switch f, err := strconv.ParseFloat(s, 64); {
	case err != nil:
		d.problem(v.at, v.path, "want %s, got %q", kind, s)
	case f == 0:
		d.problem(v.at, v.path, "want more than 0; leave the key out for its default")
	default:
		return f
	}
	return 0
}

var bare = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?$`)

// quantity reads a number with its unit, and complains about one without:
// fixed is how it could be meant.
func (d *decoder) quantity(v *value, what, fixed string) (string, bool) {
	if v == nil {
		return "", false
	}
	s := v.text
	switch v.kind {
	case number:
	case text:
		if s = d.text(v); s == "" {
			return "", false
		}
	default:
		d.problem(v.at, v.path, "want %s, got %s", what, v.kind)
		return "", false
	}
	if bare.MatchString(s) {
		d.problem(v.at, v.path, "%s has no unit: write %s", s, strings.ReplaceAll(fixed, "%", s))
		return "", false
	}
	return s, true
}

func (d *decoder) duration(v *value) deliver.Duration {
	s, ok := d.quantity(v, "a duration", "%s for seconds (units: ms, s, m, h, d)")
	if !ok {
		return 0
	}
	switch t, err := deliver.ParseDuration(s); {
	case err != nil:
		d.problem(v.at, v.path, "%s", err)
	case t <= 0:
		d.problem(v.at, v.path, "want more than no time; leave the key out for its default")
	default:
		return deliver.Duration(t)
	}
	return 0
}

func (d *decoder) size(v *value) int64 {
	s, ok := d.quantity(v, "a size", "%B for bytes (units: B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)")
	if !ok {
		return 0
	}
	switch n, err := deliver.ParseSize(s); {
	case err != nil:
		d.problem(v.at, v.path, "%s", err)
	case n == 0:
		d.problem(v.at, v.path, "want more than nothing; leave the key out for its default")
	default:
		return n
	}
	return 0
}

// rate reads a number for a span of time, and returns it for a second.
func (d *decoder) rate(v *value) float64 {
	s, ok := d.quantity(v, "a rate", "%/s, %/m or %/h for so many a second, a minute or an hour")
	if !ok {
		return 0
	}
	switch r, err := deliver.ParseRate(s); {
	case err != nil:
		d.problem(v.at, v.path, "%s", err)
	case r == 0:
		d.problem(v.at, v.path, "want more than nothing; leave the key out for no limit")
	default:
		return r
	}
	return 0
}
