package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/gridfan/gridfan/infra/secret"
)

func rules(t *testing.T, cfg Config) *Rules {
	t.Helper()
	if cfg.Proxy.IsZero() {
		cfg.Proxy = secret.New(None) // not that of whoever runs the test
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAddresses(t *testing.T) {
	const fine, leave, refused = "", "leave", "refused"
	tests := map[string]string{
		"8.8.8.8": fine, "1.1.1.1": fine, "168.63.129.15": fine, "172.32.0.1": fine, "100.128.0.1": fine, "192.31.196.1": fine,
		"2606:4700::1111": fine, "2a00:1450:4001::1": fine, "2003::1": fine,

		"10.0.0.1": leave, "172.16.0.1": leave, "172.31.255.255": leave, "192.168.1.1": leave, "127.0.0.1": leave, "127.9.9.9": leave,
		"100.64.0.1": leave, "100.127.255.255": leave, "::1": leave, "fc00::1": leave, "fd12:3456::1": leave,

		"0.0.0.0": refused, "0.1.2.3": refused, "169.254.169.254": refused, "169.254.0.23": refused, "168.63.129.16": refused,
		"100.100.100.200": refused, "192.0.0.192": refused, "192.0.2.1": refused, "192.88.99.1": refused, "198.18.0.1": refused,
		"198.19.255.255": refused, "198.51.100.1": refused, "203.0.113.1": refused, "224.0.0.1": refused, "239.255.255.250": refused,
		"240.0.0.1": refused, "255.255.255.255": refused,
		"::": refused, "::2": refused, "fe80::1": refused, "fe80::a9fe:a9fe%eth0": refused, "fec0::1": refused, "ff02::1": refused,
		"fd00:ec2::254": refused, "fd00:ec2::23": refused, "fd20:ce::254": refused, "fd00:42::42": refused, "100::1": refused,
		"2001:db8::1": refused, "2001:2::1": refused, "2001:10::1": refused, "3fff::1": refused, "5f00::1": refused, "4000::1": refused,
		"c000::1": refused,

		// By the address inside.
		"::ffff:8.8.8.8": fine, "::ffff:10.0.0.1": leave, "::ffff:127.0.0.1": leave, "::ffff:169.254.169.254": refused, "::ffff:a9fe:a9fe": refused,
		"::8.8.8.8": refused, "::127.0.0.1": refused, "::ffff:0:127.0.0.1": refused,
		"64:ff9b::8.8.8.8": fine, "64:ff9b::10.0.0.1": leave, "64:ff9b::169.254.169.254": refused, "64:ff9b::168.63.129.16": refused,
		"64:ff9b:1::8.8.8.8": leave, "64:ff9b:1::169.254.169.254": refused,
		"2002:808:808::1": fine, "2002:a00:1::1": leave, "2002:7f00:1::": leave, "2002:a9fe:a9fe::1": refused,
		"2001::f7f7:f7f7":                         refused, // its server is 0.0.0.0
		"2001:0:808:808::f7f7:f7f7":               fine,
		"2001:0:808:808::f5ff:fffe":               leave,   // client 10.0.0.1
		"2001:0:a9fe:a9fe::f7f7:f7f7":             refused, // server 169.254.169.254
		"2001:0:808:808::5601:5601":               refused, // client 169.254.169.254
		"2606:4700::5efe:10.0.0.1":                leave,
		"2606:4700::200:5efe:169.254.169.254":     refused,
		"2606:4700::5efe:8.8.8.8":                 fine,
		"fd12::5efe:8.8.8.8":                      leave,
		"2001:4860:4860::8888":                    fine,
		"2002:6440:1::1":                          leave, // 100.64.0.1
		"2002:a83f:8110::1":                       refused,
		"0:0:0:0:0:ffff:192.168.0.1":              leave,
		"2001:0000:4136:e378:8000:63bf:3fff:fdd2": refused, // RFC 4380's own example: 192.0.2.45
		"0000:0000:0000:0000:0000:0000:0000:0001": leave,
		"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": refused,
		"fe80:0000:0000:0000:0000:0000:a9fe:a9fe": refused,
		"64:ff9b:0:0:0:0:192.168.0.1":             leave,
		"2002:c0a8:0001:0000:0000:0000:0000:0001": leave,
	}
	shut, open := rules(t, Config{}), rules(t, Config{Allow: []string{
		"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "100.64.0.0/10", "::1", "fc00::/7", "64:ff9b:1::/48", "0.0.0.0/0", "::/0",
	}})
	for text, want := range tests {
		a := netip.MustParseAddr(text)
		judge := func(r *Rules) string {
			err, _ := r.judge("h.example", a).(*RefusedError)
			switch {
			case err == nil:
				return fine
			case err.Final:
				return refused
			}
			return leave
		}
		if got := judge(shut); got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
		if got := judge(open); (got == fine) != (want != refused) {
			t.Errorf("%s, with all leave there is: got %q, without it %q", text, got, want)
		}
		if Public(a) != (want == fine) {
			t.Errorf("%s: Public is %v", text, Public(a))
		}
	}
	if Public(netip.Addr{}) {
		t.Error("no address is public")
	}
}

// TestSpellings: however a host is written in a URL, it is refused before anything
// is looked up.
func TestSpellings(t *testing.T) {
	refused := map[string]string{
		"http://127.0.0.1/":                                  "not sent: 127.0.0.1 is a loopback address (RFC 1122) that egress.allow does not name",
		"http://127.0.0.1./":                                 "not sent: 127.0.0.1 is a loopback address (RFC 1122) that egress.allow does not name",
		"http://example.com@127.0.0.1:80/":                   "not sent: 127.0.0.1 is a loopback address (RFC 1122) that egress.allow does not name",
		"http://2130706433/":                                 "not sent: 2130706433 is a number and no host name; write it as 127.0.0.1 if that is meant",
		"http://017700000001/":                               "not sent: 017700000001 is a number and no host name; write it as 127.0.0.1 if that is meant",
		"http://0x7f000001/":                                 "not sent: 0x7f000001 is a number and no host name; write it as 127.0.0.1 if that is meant",
		"http://0X7F.1/":                                     "not sent: 0x7f.1 is a number and no host name; write it as 127.0.0.1 if that is meant",
		"http://0177.0.0.01/":                                "not sent: 0177.0.0.01 is a number and no host name; write it as 127.0.0.1 if that is meant",
		"http://127.1/":                                      "not sent: 127.1 is a number and no host name; write it as 127.0.0.1 if that is meant",
		"http://169.16689662/":                               "not sent: 169.16689662 is a number and no host name; write it as 169.254.169.254 if that is meant",
		"http://0xa9fea9fe/":                                 "not sent: 0xa9fea9fe is a number and no host name; write it as 169.254.169.254 if that is meant",
		"http://0251.0376.0251.0376/":                        "not sent: 0251.0376.0251.0376 is a number and no host name; write it as 169.254.169.254 if that is meant",
		"http://0x/":                                         "not sent: 0x is a number and no host name; write it as 0.0.0.0 if that is meant",
		"http://4294967296/":                                 "not sent: 4294967296 is a number and no host name",
		"http://1.2.3.4.5/":                                  "not sent: 1.2.3.4.5 is a number and no host name",
		"http://example.1/":                                  "not sent: example.1 is a number and no host name",
		"http://１２７.0.0.1/":                                  "not sent: 127.0.0.1 is a loopback address (RFC 1122) that egress.allow does not name",
		"http://①②⑦.⓪.⓪.①/":                                  "not sent: 127.0.0.1 is a loopback address (RFC 1122) that egress.allow does not name",
		"http://127。0。0。1/":                                  "not sent: 127.0.0.1 is a loopback address (RFC 1122) that egress.allow does not name",
		"http://[::1]/":                                      "not sent: ::1 is a loopback address (RFC 4291) that egress.allow does not name",
		"http://[0:0:0:0:0:ffff:7f00:1]/":                    "not sent: ::ffff:127.0.0.1 leads to 127.0.0.1, a loopback address (RFC 1122) that egress.allow does not name",
		"http://[::ffff:169.254.169.254]/":                   "not sent: ::ffff:169.254.169.254 leads to 169.254.169.254, a link-local address (RFC 3927), which is always refused",
		"http://[64:ff9b::a9fe:a9fe]/":                       "not sent: 64:ff9b::a9fe:a9fe is a link-local address (RFC 3927), which is always refused",
		"http://[2002:a9fe:a9fe::]/":                         "not sent: 2002:a9fe:a9fe:: is a link-local address (RFC 3927), which is always refused",
		"http://[fe80::1%25eth0]/":                           "not sent: fe80::1%eth0 leads to fe80::1, a link-local address (RFC 4291), which is always refused",
		"http://169.254.169.254/latest/meta-data/":           "not sent: 169.254.169.254 is a link-local address (RFC 3927), which is always refused",
		"http://[fd00:ec2::254]/":                            "not sent: fd00:ec2::254 is a metadata address (AWS), which is always refused",
		"http://168.63.129.16:32526/":                        "not sent: 168.63.129.16 is a platform address of Azure (its wire server), which is always refused",
		"http://100.100.100.200/":                            "not sent: 100.100.100.200 is a metadata address (Alibaba Cloud), which is always refused",
		"http://LOCALHOST:8081/api/v1/status":                "not sent: localhost leads to 127.0.0.1, a loopback address (RFC 1122) that egress.allow does not name",
		"http://a.localhost./":                               "not sent: a.localhost leads to 127.0.0.1, a loopback address (RFC 1122) that egress.allow does not name",
		"http://metadata.google.internal/computeMetadata/v1": "not sent: metadata.google.internal leads to 169.254.169.254, a link-local address (RFC 3927), which is always refused",
	}
	r := rules(t, Config{})
	for raw, want := range refused {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		err = r.Check(u)
		if _, ok := errors.AsType[*RefusedError](err); !ok || err.Error() != want {
			t.Errorf("%s:\n got %v\nwant %v", raw, err, want)
		}
		// And so it is when it is dialled, by the form that net/http makes of it.
		tr := &http.Transport{}
		r.Way(true).Equip(tr, u)
		_, err = tr.RoundTrip(&http.Request{Method: http.MethodGet, URL: u, Header: http.Header{}})
		if refused, ok := errors.AsType[*RefusedError](err); !ok || refused.Error() != want {
			t.Errorf("%s, dialled:\n got %v\nwant %v", raw, err, want)
		}
	}
	for _, raw := range []string{"https://wms.example.com/", "http://8.8.8.8/", "http://[2606:4700::1]/", "http://bücher.example/", "http://0x7f.example/", "http://a_b.example/", "http://wms/"} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Check(u); err != nil {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

func TestAllow(t *testing.T) {
	r := rules(t, Config{Allow: []string{"10.20.0.0/16", "127.0.0.1", "fd12::/16", "WMS.corp.example.", "*.lab.example"}})
	tests := []struct {
		name, addr string
		ok         bool
	}{
		{"h", "10.20.1.2", true},
		{"h", "10.21.1.2", false},
		{"h", "127.0.0.1", true},
		{"h", "127.0.0.2", false},
		{"h", "fd12::1", true},
		{"h", "fd13::1", false},
		{"h", "64:ff9b::10.20.1.2", true},
		{"h", "64:ff9b::10.21.1.2", false},
		{"h", "::ffff:10.20.1.2", true},
		{"wms.corp.example", "192.168.0.1", true},
		{"wms.corp.example", "127.0.0.1", true},
		{"wms.corp.example", "169.254.169.254", false},
		{"wms.corp.example", "fd00:ec2::254", false},
		{"a.wms.corp.example", "192.168.0.1", false},
		{"corp.example", "192.168.0.1", false},
		{"a.lab.example", "100.64.0.1", true},
		{"a.b.lab.example", "::1", true},
		{"lab.example", "::1", false},
		{"evil-lab.example", "::1", false},
	}
	for _, tt := range tests {
		if err := r.judge(tt.name, netip.MustParseAddr(tt.addr)); (err == nil) != tt.ok {
			t.Errorf("%s at %s: %v", tt.name, tt.addr, err)
		}
	}
}

func TestValidate(t *testing.T) {
	cfg := Config{
		Allow: []string{
			"10.0.0.0/8", "10.0.0.1/8", "::ffff:10.0.0.0/104", "8.8.8.8", "169.254.0.0/16", "169.254.169.254", "100.100.100.200", "fd00:ec2::254",
			"2002:a00::/24", "64:ff9b::/96", "https://h.example/", "h:80", "a..b", "", "*", "127.1", "wms", "*.corp.example", "fe80::1%eth0", "64:ff9b:1::/48",
		},
		Proxy:   secret.New("ftp://user:canary@proxy"),
		NoProxy: []string{"a.example", "10.0.0.0/8", "a,b"},
	}
	want := `egress.allow[1]: 10.0.0.1/8 has bits beyond its length: write 10.0.0.0/8, or 10.0.0.1 for the one address
egress.allow[2]: ::ffff:10.0.0.0/104 holds IPv4 addresses, which are judged as such: write the IPv4 network
egress.allow[3]: 8.8.8.8/32 needs no leave: only private, shared and loopback addresses do
egress.allow[4]: 169.254.0.0/16 is a link-local address (RFC 3927), which is always refused
egress.allow[5]: 169.254.169.254/32 is a link-local address (RFC 3927), which is always refused
egress.allow[6]: 100.100.100.200/32 is a metadata address (Alibaba Cloud), which is always refused
egress.allow[7]: fd00:ec2::254/128 is a metadata address (AWS), which is always refused
egress.allow[8]: 2002:a00::/24 holds IPv4 addresses, which are judged as such: write the IPv4 network
egress.allow[9]: 64:ff9b::/96 holds IPv4 addresses, which are judged as such: write the IPv4 network
egress.allow[10]: "https://h.example/" is none of what may stand here: want a network such as 10.20.0.0/16, an address, or a host name
egress.allow[11]: "h:80" is none of what may stand here: want a network such as 10.20.0.0/16, an address, or a host name
egress.allow[12]: "a..b" is none of what may stand here: want a network such as 10.20.0.0/16, an address, or a host name
egress.allow[13]: "" is none of what may stand here: want a network such as 10.20.0.0/16, an address, or a host name
egress.allow[14]: "*" is none of what may stand here: want a network such as 10.20.0.0/16, an address, or a host name
egress.allow[15]: "127.1" is a number and no host name: write an address with four decimal numbers
egress.allow[18]: fe80::1/128 is a link-local address (RFC 4291), which is always refused
egress.proxy: want environment, none, or http://host:port, https://host:port or socks5://host:port
egress.noProxy[2]: want a host name, an address or a network such as 10.20.0.0/16, got "a,b"`
	err := cfg.Validate()
	if d := cmp.Diff(strings.Split(want, "\n"), strings.Split(fmt.Sprint(err), "\n")); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for want, cfg := range map[string]Config{
		"egress.noProxy: only beside the URL of a proxy (egress.proxy); for that of the environment, set NO_PROXY": {NoProxy: []string{"a"}},
		"egress.proxyResolves: there is no proxy (egress.proxy: none); remove one of the two":                      {Proxy: secret.New(None), ProxyResolves: true},
	} {
		if _, err := New(cfg); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if err := (Config{}).Validate(); err != nil {
		t.Error(err)
	}
}

// nameserver answers with what the test says, each look-up anew.
type nameserver struct {
	resolver *net.Resolver
	lookups  atomic.Int32 // of IPv4 addresses
}

func startNameserver(t *testing.T, answer func(name string, lookup int) []string) *nameserver {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	n := &nameserver{resolver: &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", pc.LocalAddr().String())
	}}}
	go func() {
		buf := make([]byte, 1500)
		for {
			size, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:size]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
			if q.Type == dnsmessage.TypeA {
				all := answer(strings.TrimSuffix(q.Name.String(), "."), int(n.lookups.Add(1)))
				if all == nil {
					m.RCode = dnsmessage.RCodeNameError
				}
				for _, a := range all {
					m.Answers = append(m.Answers, dnsmessage.Resource{
						Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
						Body:   &dnsmessage.AResource{A: netip.MustParseAddr(a).As4()},
					})
				}
			}
			if b, err := m.Pack(); err == nil {
				_, _ = pc.WriteTo(b, from)
			}
		}
	}()
	return n
}

// client makes one that a Way has equipped for one URL. It keeps no connections,
// so that every request dials.
func client(t *testing.T, w *Way, raw string) func() (*http.Response, error) {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DisableKeepAlives: true}
	w.Equip(tr, u)
	return func() (*http.Response, error) {
		resp, err := tr.RoundTrip((&http.Request{Method: http.MethodPost, URL: u, Header: http.Header{}}).WithContext(t.Context()))
		if err == nil {
			resp.Body.Close()
		}
		return resp, err
	}
}

// serve answers 204 and counts.
func serve(t *testing.T) (port string, hits *atomic.Int32) {
	t.Helper()
	hits = &atomic.Int32{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		hits.Add(1)
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(srv.Close)
	_, port, _ = net.SplitHostPort(srv.Listener.Addr().String())
	return port, hits
}

// TestRebinding: a name that is permitted when it is looked up and something else a
// moment later. What was judged is what is dialled.
func TestRebinding(t *testing.T) {
	port, hits := serve(t)
	t.Run("after the judgement", func(t *testing.T) {
		dns := startNameserver(t, func(_ string, lookup int) []string {
			if lookup == 1 {
				return []string{"127.0.0.1"}
			}
			return []string{"127.0.0.99"}
		})
		r := rules(t, Config{Allow: []string{"127.0.0.1"}})
		r.resolver = dns.resolver
		post := client(t, r.Way(true), "http://rebind.example:"+port+"/")
		if resp, err := post(); err != nil || resp.StatusCode != http.StatusNoContent {
			t.Fatalf("got %v, %v", resp, err)
		}
		if n := dns.lookups.Load(); n != 1 || hits.Load() != 1 {
			t.Errorf("%d look-ups and %d requests for one attempt", n, hits.Load())
		}
		_, err := post()
		if refused, ok := errors.AsType[*RefusedError](err); !ok || refused.Addr.String() != "127.0.0.99" {
			t.Errorf("the next attempt: %v", err)
		}
	})
	t.Run("the other way round", func(t *testing.T) {
		dns := startNameserver(t, func(_ string, lookup int) []string {
			if lookup == 1 {
				return []string{"8.8.8.8"} // as it was when it was added
			}
			return []string{"127.0.0.1"}
		})
		r := rules(t, Config{})
		r.resolver = dns.resolver
		if _, err := r.lookup(t.Context(), "rebind.example"); err != nil {
			t.Fatal(err)
		}
		before := hits.Load()
		for range 3 {
			_, err := client(t, r.Way(true), "http://rebind.example:"+port+"/")()
			const want = "not sent: rebind.example leads to 127.0.0.1, a loopback address (RFC 1122) that egress.allow does not name"
			if err == nil || err.Error() != want {
				t.Errorf("got %v, want %s", err, want)
			}
		}
		if hits.Load() != before {
			t.Error("the server behind the forbidden address got a request")
		}
	})
}

// TestSeveralAddresses: those that are permitted are tried, the others are not.
func TestSeveralAddresses(t *testing.T) {
	port, hits := serve(t)
	tests := map[string]struct {
		answer []string
		want   string // of the error
	}{
		"a forbidden one first":     {[]string{"169.254.169.254", "10.0.0.1", "127.0.0.1"}, ""},
		"one where nobody listens":  {[]string{"127.0.0.2", "127.0.0.1"}, ""},
		"all forbidden":             {[]string{"10.0.0.1", "169.254.169.254"}, "not sent: many.example leads to 10.0.0.1, a private address (RFC 1918) that egress.allow does not name"},
		"no such name":              {nil, "no such host"},
		"nobody listens at the one": {[]string{"127.0.0.2"}, "connection refused"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := rules(t, Config{Allow: []string{"127.0.0.1", "127.0.0.2"}})
			r.resolver = startNameserver(t, func(string, int) []string { return tt.answer }).resolver
			before := hits.Load()
			resp, err := client(t, r.Way(true), "http://many.example:"+port+"/")()
			switch {
			case tt.want == "" && (err != nil || resp.StatusCode != http.StatusNoContent || hits.Load() != before+1):
				t.Errorf("got %v, %v", resp, err)
			case tt.want != "" && (err == nil || !strings.HasSuffix(err.Error(), tt.want)):
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
	if _, err := rules(t, Config{}).DialContext(t.Context(), "tcp", "h.example:99999"); err == nil || err.Error() != "dial tcp: address 99999: invalid port" {
		t.Errorf("got %v", err)
	}
}

// TestOperatorsWord: what the operator has written goes anywhere, as before.
func TestOperatorsWord(t *testing.T) {
	t.Setenv("HTTP_PROXY", "")
	t.Setenv("http_proxy", "")
	port, hits := serve(t)
	for i, w := range []*Way{rules(t, Config{}).Way(false), nil, {}} {
		if _, err := client(t, w, "http://127.0.0.1:"+port+"/")(); err != nil || hits.Load() != int32(i+1) {
			t.Errorf("way %d: %v", i, err)
		}
	}
}

func TestProxy(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r.Method+" "+r.Host)
		if r.Method == http.MethodConnect {
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	defer proxy.Close()
	dns := startNameserver(t, func(name string, _ int) []string {
		return map[string][]string{
			"good.example": {"8.8.8.8"}, "bad.example": {"169.254.169.254"}, "mixed.example": {"8.8.8.8", "10.0.0.1"}, "inside.corp.example": {"10.0.0.1"},
		}[name]
	})
	tests := []struct {
		name     string
		url      string
		resolves bool
		env      bool
		own      bool // the operator's word
		asked    string
		want     string
	}{
		{name: "plain", url: "http://good.example/", asked: "POST good.example"},
		{name: "from the environment", url: "http://good.example/", env: true, asked: "POST good.example"},
		{name: "tunnel", url: "https://good.example/", asked: "CONNECT good.example:443", want: "Bad Gateway"},
		{name: "forbidden", url: "http://bad.example/", want: "not sent: bad.example leads to 169.254.169.254, a link-local address (RFC 3927), which is always refused"},
		{name: "forbidden, from the environment", url: "http://bad.example/", env: true, want: "not sent: bad.example leads to 169.254.169.254, a link-local address (RFC 3927), which is always refused"},
		{name: "forbidden, tunnel", url: "https://bad.example/", want: "not sent: bad.example leads to 169.254.169.254, a link-local address (RFC 3927), which is always refused"},
		{name: "one of two forbidden", url: "http://mixed.example/", want: "not sent: mixed.example leads to 10.0.0.1, a private address (RFC 1918) that egress.allow does not name"},
		{name: "allowed", url: "http://inside.corp.example/", asked: "POST inside.corp.example"},
		{name: "unknown here", url: "http://unknown.example/", want: "no such host; behind a proxy that looks names up itself, set egress.proxyResolves: true"},
		{name: "the proxy resolves", url: "http://unknown.example/", resolves: true, asked: "POST unknown.example"},
		{name: "the proxy resolves, address", url: "http://169.254.169.254/", resolves: true, want: "not sent: 169.254.169.254 is a link-local address (RFC 3927), which is always refused"},
		{name: "the proxy resolves, number", url: "http://0xa9fea9fe/", resolves: true, want: "not sent: 0xa9fea9fe is a number and no host name; write it as 169.254.169.254 if that is meant"},
		{name: "the proxy resolves, metadata's name", url: "http://metadata.google.internal/", resolves: true, want: "not sent: metadata.google.internal leads to 169.254.169.254, a link-local address (RFC 3927), which is always refused"},
		{name: "the proxy resolves, mapped", url: "http://[::ffff:10.0.0.1]/", resolves: true, want: "not sent: ::ffff:10.0.0.1 leads to 10.0.0.1, a private address (RFC 1918) that egress.allow does not name"},
		// A URL that names the proxy does not get its leave.
		{name: "the proxy itself", url: proxy.URL, want: "not sent: 127.0.0.1 is a loopback address (RFC 1122) that egress.allow does not name"},
		{name: "not by the proxy", url: "http://direct.example/", want: "no such host"},
		{name: "the operator's word", url: "http://bad.example/", own: true, asked: "POST bad.example"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := Config{Allow: []string{"inside.corp.example"}, Proxy: secret.New(proxy.URL), NoProxy: []string{"direct.example"}, ProxyResolves: tt.resolves}
			if tt.env {
				cfg.Proxy, cfg.NoProxy = secret.New(Environment), nil
				for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY"} {
					t.Setenv(name, proxy.URL)
					t.Setenv(strings.ToLower(name), proxy.URL)
				}
				t.Setenv("NO_PROXY", "")
				t.Setenv("no_proxy", "")
				t.Setenv("REQUEST_METHOD", "")
			}
			r := rules(t, cfg)
			r.resolver = dns.resolver
			mu.Lock()
			asked = nil
			mu.Unlock()
			_, err := client(t, r.Way(!tt.own), tt.url)()
			mu.Lock()
			defer mu.Unlock()
			if got := strings.Join(asked, ","); got != tt.asked {
				t.Errorf("the proxy was asked for %q, want %q", got, tt.asked)
			}
			if (err == nil) != (tt.want == "") || err != nil && !strings.HasSuffix(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// TestKeptProxyConnection: with a plain proxy, requests share a connection and the
// proxy looks up each one's name, so each is judged.
func TestKeptProxyConnection(t *testing.T) {
	var hits atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	defer proxy.Close()
	r := rules(t, Config{Proxy: secret.New(proxy.URL)})
	r.resolver = startNameserver(t, func(_ string, lookup int) []string {
		if lookup == 1 {
			return []string{"8.8.8.8"}
		}
		return []string{"10.0.0.1"}
	}).resolver
	u, _ := url.Parse("http://rebind.example/")
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	r.Way(true).Equip(tr, u)
	for i, want := range []bool{true, false} {
		resp, err := tr.RoundTrip((&http.Request{Method: http.MethodGet, URL: u, Header: http.Header{}}).WithContext(t.Context()))
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		if (err == nil) != want {
			t.Errorf("request %d: %v", i, err)
		}
	}
	if hits.Load() != 1 {
		t.Errorf("the proxy got %d requests", hits.Load())
	}
}

func TestAlternate(t *testing.T) {
	var all []netip.AddrPort
	for _, s := range []string{"[2003::1]:1", "[2003::2]:1", "[2003::3]:1", "8.8.8.8:1", "8.8.4.4:1"} {
		all = append(all, netip.MustParseAddrPort(s))
	}
	var got []string
	for _, a := range alternate(all) {
		got = append(got, a.String())
	}
	if d := cmp.Diff([]string{"[2003::1]:1", "8.8.8.8:1", "[2003::2]:1", "8.8.4.4:1", "[2003::3]:1"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// conn is one end of nothing that knows whether it was closed.
type conn struct {
	net.Conn
	address string
	closed  atomic.Bool
}

func (c *conn) Close() error { c.closed.Store(true); return nil }

// TestRace is about addresses that do not answer at all.
func TestRace(t *testing.T) {
	addrs := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:1"), netip.MustParseAddrPort("192.0.2.3:1")}
	// answer says what an address does, and when.
	type answer struct {
		after time.Duration
		err   error
	}
	silent := answer{after: time.Hour}
	broken := errors.New("connection refused")
	tests := map[string]struct {
		answers []answer
		want    string // address, or error
		took    time.Duration
	}{
		"the first":                      {[]answer{{after: 10 * time.Millisecond}, {}, {}}, "192.0.2.1:1", 10 * time.Millisecond},
		"silent, then one":               {[]answer{silent, {after: 10 * time.Millisecond}, silent}, "192.0.2.2:1", 260 * time.Millisecond},
		"silent, refused, then one":      {[]answer{silent, {err: broken}, {after: 5 * time.Millisecond}}, "192.0.2.3:1", 255 * time.Millisecond},
		"slow beats silent":              {[]answer{{after: 3 * time.Second}, silent, silent}, "192.0.2.1:1", 3 * time.Second},
		"all refused":                    {[]answer{{err: broken}, {err: errors.New("other")}, {err: errors.New("other")}}, "connection refused", 0},
		"all silent":                     {[]answer{silent, silent, silent}, "dial tcp: context deadline exceeded", ConnectTimeout},
		"refused, and all others silent": {[]answer{{err: broken}, silent, silent}, "dial tcp: connection refused", ConnectTimeout},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), ConnectTimeout)
				defer cancel()
				begin := time.Now()
				c, err := race(ctx, "tcp", addrs, func(ctx context.Context, _, address string) (net.Conn, error) {
					i := address[len("192.0.2.")] - '1'
					select {
					case <-time.After(tt.answers[i].after):
					case <-ctx.Done():
						return nil, ctx.Err()
					}
					if tt.answers[i].err != nil {
						return nil, tt.answers[i].err
					}
					return &conn{address: address}, nil
				})
				took := time.Since(begin)
				got := fmt.Sprint(err)
				if err == nil {
					got = c.(*conn).address
				}
				if got != tt.want || took != tt.took {
					t.Errorf("got %s after %v, want %s after %v", got, took, tt.want, tt.took)
				}
			})
		})
	}
	t.Run("a loser that connects is closed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var late *conn
			c, err := race(t.Context(), "tcp", addrs[:2], func(_ context.Context, _, address string) (net.Conn, error) {
				c := &conn{address: address}
				if address == "192.0.2.1:1" {
					<-time.After(time.Second) // deaf to its context
					late = c
				}
				return c, nil
			})
			if err != nil || c.(*conn).address != "192.0.2.2:1" {
				t.Fatalf("got %v, %v", c, err)
			}
			<-time.After(2 * time.Second)
			synctest.Wait()
			if !late.closed.Load() || c.(*conn).closed.Load() {
				t.Error("the late connection stays open, or the first one does not")
			}
		})
	})
}

// TestDocumented holds the table of docs/egress.md to blocks.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/egress.md")
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for line := range strings.Lines(string(text)) {
		if strings.HasSuffix(line, "| never |\n") || strings.HasSuffix(line, "| by leave |\n") {
			got = append(got, strings.TrimSuffix(line, "\n"))
		}
	}
	for _, b := range append(slices.Clone(blocks), unassigned) {
		addresses, leave := "`"+b.prefix.String()+"`", "by leave"
		if b.never {
			leave = "never"
		}
		if b == unassigned {
			addresses = "all else of IPv6 outside `" + global.String() + "`"
		}
		want = append(want, fmt.Sprintf("| %s | %s | %s | %s |", addresses, b.what, b.source, leave))
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("docs/egress.md (-want +got):\n%s", d)
	}
}
