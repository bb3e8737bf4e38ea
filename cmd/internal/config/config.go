// Package config reads gridfan's configuration file into the Config of each
// package.
//
// The file is strict YAML: one document, known keys only, a unit on every
// duration and size, secrets by reference. Parse reports everything that is
// wrong at once, each problem with its line and column, because fixing a file
// one error and one restart at a time is how nights are lost. Three steps:
// tree.go turns YAML into values that know their place, decode.go puts them
// into the packages' types, and the packages' own Validate functions check
// them and set defaults; what those report is put back on its line.
//
// No problem ever shows a value that may be secret.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/infra/keyvault"
	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/router/receive"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/retention"
)

// Config is a whole configuration file, validated and with its defaults set.
type Config struct {
	Listen      Listen
	Broker      broker.Config
	Retention   retention.Config
	ClientsTLS  *TLS                // of the address for subscribers' own clients; nil: none
	Spool       *broker.SpoolConfig // nil: none
	Dedup       publish.Dedup
	Sources     []ingress.Source      // those that push, sorted by name
	Polled      []Polled              // the tables of those that are asked, sorted by name; of all kinds at least one
	Received    []receive.Source      // those that are received from a broker, sorted by name
	Completed   []Completed           // those whose events are completed, sorted by name
	Subscribers []registry.Definition // sorted by name; more can be added live
	Endpoints   []registry.Endpoint   // sorted by name; the same
	Egress      egress.Config
	Shutdown    Shutdown
	Secrets     Secrets

	// References are those whose values may change, in the order they were read.
	References []Reference
	// Kept are values that could not be read again and are as before.
	Kept []Problem
	// Unread counts references that were not looked up, see Lookup.Offline. With any,
	// the configuration can only be looked at.
	Unread int
	// Files are those that it refers to, sorted.
	Files []string
	// Warnings are what should be changed but stops nothing.
	Warnings []Problem
}

// Listen is where gridfan answers HTTP.
type Listen struct {
	// Public is the address of the ingress. Default ":8080".
	Public string
	// TLS makes the public listener speak HTTPS. Nil means plain HTTP, for a
	// proxy in front.
	TLS *TLS
	// TrustedProxies are networks whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix
	// Admin is the address of the admin API and metrics. Default
	// "127.0.0.1:8081".
	Admin string
	// AdminToken is asked of everybody who uses the admin API. It can only be
	// left out while Admin is a loopback address.
	AdminToken secret.String
}

// TLS names the files of a listener's certificate. They are read again
// when they change.
type TLS struct {
	Cert, Key string // PEM files
	// ClientCA is a PEM file of authorities whose client certificates are
	// verified. Empty: none are asked for.
	ClientCA string
}

// validate reports every problem; key is where t stands in the file.
func (t *TLS) validate(key string) error {
	var errs []error
	file := func(name, path, missing string) {
		switch {
		case path == "" && missing != "":
			errs = append(errs, fmt.Errorf("%s.%s: missing; %s", key, name, missing))
		case strings.ContainsAny(path, "\n\r") || strings.Contains(path, "-----BEGIN"):
			errs = append(errs, fmt.Errorf("%s.%s: want the path of a PEM file, not its content; write /run/secrets/tls.pem, not ${file:/run/secrets/tls.pem}", key, name))
		}
	}
	file("cert", t.Cert, "want the path of a PEM file with the certificate and those of its issuers")
	file("key", t.Key, "want the path of a PEM file with the certificate's key")
	file("clientCA", t.ClientCA, "")
	return errors.Join(errs...)
}

// minToken is 96 bits of base64: out of reach for guessing.
const minToken = 16

// Validate sets defaults and reports every problem, each beginning with the
// path of its key in the configuration file.
func (l *Listen) Validate() error {
	var errs []error
	if l.Public == "" {
		l.Public = ":8080"
	}
	if l.Admin == "" {
		l.Admin = "127.0.0.1:8081"
	}
	if _, err := splitAddr(l.Public); err != nil {
		errs = append(errs, fmt.Errorf("listen.public.addr: %w", err))
	}
	host, err := splitAddr(l.Admin)
	if err != nil {
		errs = append(errs, fmt.Errorf("listen.admin.addr: %w", err))
	} else if l.AdminToken.IsZero() && !loopback(host) {
		errs = append(errs, errors.New(`listen.admin.addr: other machines can reach this address, so it needs a token: set listen.admin.token: "${env:GRIDFAN_ADMIN_TOKEN}", or use 127.0.0.1`))
	}
	if n := len(l.AdminToken.Reveal()); n > 0 && n < minToken {
		errs = append(errs, fmt.Errorf("listen.admin.token: want at least %d characters", minToken))
	}
	if l.TLS != nil {
		if err := l.TLS.validate("listen.public.tls"); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func splitAddr(addr string) (host string, err error) {
	host, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return "", errors.New(`want "host:port", as in 127.0.0.1:8081, or ":port" for all addresses`)
	}
	return host, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Shutdown is how gridfan stops.
type Shutdown struct {
	// Grace is how long that takes at most. Default 25s: platforms kill after 30.
	Grace deliver.Duration
}

// What Grace may be: below, deliveries under way would hardly end, and above, nobody
// waits.
const (
	defaultGrace = 25 * time.Second
	minGrace     = 2 * time.Second
	maxGrace     = time.Hour
)

// Validate sets defaults and reports every problem, each beginning with the path of
// its key in the configuration file.
func (s *Shutdown) Validate() error {
	if s.Grace == 0 {
		s.Grace = deliver.Duration(defaultGrace)
	}
	if g := s.Grace.Std(); g < minGrace || g > maxGrace {
		return errors.New("shutdown.grace: want 2s to 1h")
	}
	return nil
}

// Secrets is how values are read that stand in the file as references.
type Secrets struct {
	KeyVault keyvault.Config
	// Refresh is how often vaults are asked whether a secret has changed.
	Refresh time.Duration
}

// maxFile bounds the file and every file it refers to. Two thousand subscribers
// need about 300 KB.
const maxFile = 1 << 20

// Load reads the file at path, with references resolved in this process's
// environment and file system. What is wrong in the file comes back as Errors.
func Load(path string) (*Config, error) {
	return load(path, System())
}

// LoadOffline is Load for looking at a file only: no vault is asked.
func LoadOffline(path string) (*Config, error) {
	lookup := System()
	lookup.Offline = true
	return load(path, lookup)
}

func load(path string, lookup Lookup) (*Config, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, text, lookup)
}

// Parse reads text, the content of the file called filename. The error, if any,
// is of type Errors.
func Parse(filename string, text []byte, lookup Lookup) (*Config, error) {
	d := &decoder{file: filename, lookup: lookup}
	var c *Config
	if root := d.parse(text); root != nil {
		c = d.config(root)
	}
	if len(d.problems) > 0 {
		return nil, Errors(inOrder(d.problems))
	}
	c.Warnings = inOrder(d.warnings)
	slices.Sort(d.files)
	c.Files = slices.Compact(d.files)
	c.References, c.Kept, c.Unread = d.references, inOrder(d.kept), d.unread
	return c, nil
}

// Lookup resolves references. Its results never show in a problem.
type Lookup struct {
	// Env gives the value of ${env:NAME}, and whether there is one.
	Env func(name string) (string, bool)
	// File gives the content of ${file:/path}.
	File func(path string) ([]byte, error)
	// Vaults give the secrets of ${keyvault:vault/name}. Nil means those of Azure, by
	// one Store for the process.
	Vaults *keyvault.Store
	// Offline asks no vault: what such a reference stands for is not known, and
	// nothing is said of it; see Config.Unread.
	Offline bool
}

var azure = sync.OnceValue(func() *keyvault.Store { return keyvault.NewStore(keyvault.Options{}) })

func (l Lookup) vaults() *keyvault.Store {
	if l.Vaults == nil {
		return azure()
	}
	return l.Vaults
}

// System looks into this process's environment and file system, and into Azure.
func System() Lookup { return Lookup{Env: os.LookupEnv, File: readFile} }

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s: larger than %d bytes", path, maxFile)
	}
	return b, err
}

// Problem is one thing wrong at one place of a configuration file.
type Problem struct {
	File         string
	Line, Column int    // from 1; columns count characters
	Path         string // as in sources.prod.push.auth; empty for the whole file
	Message      string
}

// String gives the problem in one line: file:line:column: path: message.
func (p Problem) String() string {
	s := fmt.Sprintf("%s:%d:%d: ", p.File, p.Line, p.Column)
	if p.Path != "" {
		s += p.Path + ": "
	}
	return strings.NewReplacer("\n", `\n`, "\r", `\r`).Replace(s + p.Message)
}

// Errors is everything wrong in a file, in the order of the file.
type Errors []Problem

// Error gives one problem per line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, p := range e {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

func inOrder(p []Problem) []Problem {
	slices.SortFunc(p, func(a, b Problem) int {
		return cmp.Or(
			cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column),
			cmp.Compare(a.Path, b.Path), cmp.Compare(a.Message, b.Message))
	})
	return slices.Compact(p)
}
