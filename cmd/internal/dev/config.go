package dev

import (
	"cmp"
	_ "embed"
	"fmt"
	"net"
	"strconv"
	"strings"
	"text/template"
)

// The references in the configuration that stand for the keys.
const (
	prodKey  = "FO_KEY"
	filesKey = "FILES_KEY"
)

//go:embed gridfan.yaml.tmpl
var configTemplate string

var configText = template.Must(template.New("gridfan.yaml").Funcs(template.FuncMap{"quote": quoteYAML}).Parse(configTemplate))

// settings fill the configuration in.
type settings struct {
	Public, Admin, NATS    string // addresses
	Data                   string // a folder
	Healthy, Slow, Failing string // URLs
}

func (s settings) yaml() ([]byte, error) {
	var b strings.Builder
	err := configText.Execute(&b, s)
	return []byte(b.String()), err
}

// quoteYAML writes a text that may hold anything, a folder's name being what
// its user likes.
func quoteYAML(s string) string {
	return strings.ReplaceAll(strconv.Quote(s), "${", "$${")
}

// addresses are the three to listen at.
type addresses struct {
	public, admin, nats string
	// chosen says that a port among them is one that was free a moment ago, and
	// that another choice is worth a try if it is not any more.
	chosen bool
	// notes say in words which default was taken.
	notes []string
}

// standard is where everything is unless something else is there already.
var standard = addresses{public: "127.0.0.1:8080", admin: "127.0.0.1:8081", nats: "127.0.0.1:4222"}

// choose finds the addresses. One that the caller asked for is used or fails;
// a default that is taken gives way to a free port.
func choose(o Options, standard addresses) (addresses, error) {
	var a addresses
	var held []net.Listener
	defer func() {
		for _, l := range held {
			_ = l.Close() // it was only to hold the port
		}
	}()
	for _, want := range []struct {
		to                    *string
		asked, standard, what string
	}{
		{&a.public, o.Public, standard.public, "ingress"},
		{&a.admin, o.Admin, standard.admin, "admin API"},
		{&a.nats, o.NATS, standard.nats, "broker"},
	} {
		*want.to = cmp.Or(want.asked, want.standard)
		host, port, err := net.SplitHostPort(*want.to)
		if err != nil || want.asked != "" && port != "0" {
			continue // the configuration checks it
		}
		l, err := net.Listen("tcp", *want.to)
		if err != nil && want.asked == "" {
			l, err = net.Listen("tcp", net.JoinHostPort(host, "0"))
		}
		if err != nil {
			return a, fmt.Errorf("find a free port for the %s: %w", want.what, err)
		}
		held = append(held, l)
		if got := l.Addr().String(); got != *want.to {
			a.chosen = true
			if want.asked == "" {
				a.notes = append(a.notes, fmt.Sprintf("%s is taken, so the %s is at %s", *want.to, want.what, got))
			}
			*want.to = got
		}
	}
	return a, nil
}

// baseURL is how this machine reaches a listener.
func baseURL(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		addr = net.JoinHostPort("127.0.0.1", port)
	}
	return "http://" + addr
}
