package webhook

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// judged makes a Sender for a URL that came by API.
func judged(t *testing.T, rawURL string, allow ...string) *Sender {
	t.Helper()
	rules, err := egress.New(egress.Config{Allow: allow, Proxy: secret.New(egress.None)})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{URL: rawURL}, Options{Concurrency: 4, Egress: rules.Way(true)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// countConnections starts a server that must not be reached.
func countConnections(t *testing.T) (srv *httptest.Server, connections *atomic.Int32) {
	t.Helper()
	connections = &atomic.Int32{}
	srv = httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	return srv, connections
}

var small = &event.Event{ID: "1", Source: "/s", Type: "t"}

// TestForbiddenAddress: nothing is connected to, the attempt says why, and shows no
// secret of the URL.
func TestForbiddenAddress(t *testing.T) {
	srv, connections := countConnections(t)
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	tests := map[string]string{
		"http://127.0.0.1:" + port:          "not sent: 127.0.0.1 is a loopback address (RFC 1122) that egress.allow does not name",
		"http://[::ffff:127.0.0.1]:" + port: "not sent: ::ffff:127.0.0.1 leads to 127.0.0.1, a loopback address (RFC 1122) that egress.allow does not name",
		"http://localhost:" + port:          "not sent: localhost leads to 127.0.0.1, a loopback address (RFC 1122) that egress.allow does not name",
		"http://2130706433:" + port:         "not sent: 2130706433 is a number and no host name; write it as 127.0.0.1 if that is meant",
		"https://169.254.169.254":           "not sent: 169.254.169.254 is a link-local address (RFC 3927), which is always refused",
	}
	for raw, want := range tests {
		s := judged(t, withCanaries(t, raw))
		for _, a := range []deliver.Attempt{s.Send(t.Context(), small), s.SendBatch(t.Context(), []*event.Event{small, small})} {
			if a != (deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultAddress, Reason: want}) {
				t.Errorf("%s: got %+v", raw, a)
			}
		}
	}
	if n := connections.Load(); n != 0 {
		t.Errorf("%d connections were made", n)
	}
	if a := judged(t, srv.URL, "127.0.0.1").Send(t.Context(), small); a.Status != 404 || connections.Load() != 1 {
		t.Errorf("with leave: got %+v", a)
	}
}

// TestRedirectsInward: a subscriber that may be reached sends us to one that may
// not, with every redirect there is.
func TestRedirectsInward(t *testing.T) {
	inside, connections := countConnections(t)
	_, port, _ := net.SplitHostPort(inside.Listener.Addr().String())
	for _, target := range []string{inside.URL, "http://localhost:" + port, "http://2130706433:" + port, "//127.0.0.1:" + port + "/latest", "http://169.254.169.254/latest/meta-data/"} {
		for _, status := range []int{301, 302, 303, 307, 308} {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", target)
				w.WriteHeader(status)
			}))
			a := judged(t, srv.URL, "127.0.0.1").Send(t.Context(), small)
			srv.Close()
			if a.Outcome != deliver.Rejected || a.Fault != deliver.FaultAddress || a.Status != status || !strings.Contains(a.Reason, "redirects are not followed") {
				t.Errorf("%d to %s: got %+v", status, target, a)
			}
		}
	}
	if n := connections.Load(); n != 0 {
		t.Errorf("%d connections were made to where redirects lead", n)
	}
}

// TestBehindProxy: what only a proxy can look up is a matter of names.
func TestBehindProxy(t *testing.T) {
	proxy, connections := countConnections(t)
	rules, err := egress.New(egress.Config{Proxy: secret.New("http://user:canary-proxy@" + proxy.Listener.Addr().String())})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{URL: "http://nowhere.invalid/"}, Options{Egress: rules.Way(true)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a := s.Send(t.Context(), small)
	if a.Outcome != deliver.Failed || a.Fault != deliver.FaultDNS || !strings.Contains(a.Reason, "egress.proxyResolves") || strings.Contains(a.Reason, "canary") || connections.Load() != 0 {
		t.Errorf("got %+v after %d connections", a, connections.Load())
	}
}

// endless writes to c as long as it is read, and counts.
func endless(c net.Conn, text string, written *atomic.Int64) {
	for {
		n, err := io.WriteString(c, text)
		written.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// TestFloods: answers that never come to an end before their status. They are given
// up after some kilobytes, long before the deadline.
func TestFloods(t *testing.T) {
	const deadline = 30 * time.Second
	tests := map[string]string{
		"early hints":                  "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
		"continue":                     "HTTP/1.1 100 Continue\r\n\r\n",
		"headers of one early hint":    "",
		"one header that does not end": "",
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			var written atomic.Int64
			addr := listen(t, func(c net.Conn) {
				switch name {
				case "headers of one early hint":
					_, _ = io.WriteString(c, "HTTP/1.1 103 Early Hints\r\n")
					text = "Link: </a>\r\n"
				case "one header that does not end":
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX: ")
					text = strings.Repeat("x", 4096)
				}
				endless(c, text, &written)
			})
			s := newSender(t, Structured, "http://"+addr)
			defer s.Close()
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			a := s.Send(ctx, small)
			if ctx.Err() != nil || a.Outcome != deliver.Failed || a.Status != 0 || len(a.Reason) > 512 {
				t.Errorf("got %+v", a)
			}
			// What buffers of the kernel hold is written and not read.
			if n := written.Load(); n > 16<<20 {
				t.Errorf("%d bytes went over", n)
			}
		})
	}
	t.Run("early hints, HTTP/2", func(t *testing.T) {
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// Once: the server writes hints while this goes on.
			w.Header().Set("Link", "</"+strings.Repeat("a", 1000)+">")
			for r.Context().Err() == nil {
				w.WriteHeader(http.StatusEarlyHints)
			}
		}))
		quiet(srv)
		srv.EnableHTTP2 = true
		srv.StartTLS()
		defer srv.Close()
		s := newSender(t, Structured, srv.URL)
		defer s.Close()
		s.transport.TLSClientConfig.RootCAs = rootsOf(srv)
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		defer cancel()
		if a := s.Send(ctx, small); ctx.Err() != nil || a.Outcome != deliver.Failed || a.Status != 0 {
			t.Errorf("got %+v", a)
		}
	})
}

// TestHeaderInjection: whatever stands in an event's attributes, in binary mode they
// are one header each, and the request is one request.
func TestHeaderInjection(t *testing.T) {
	heads := make(chan string, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			var head strings.Builder
			for r := bufio.NewReader(c); ; {
				line, err := r.ReadString('\n')
				head.WriteString(line)
				if err != nil || line == "\r\n" {
					break
				}
			}
			heads <- head.String()
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
			c.Close()
		}
	}()
	for _, poison := range []string{
		"a\r\nX-Injected: 1", "a\nX-Injected: 1", "a\rX-Injected: 1", "\r\n\r\nPOST /other HTTP/1.1\r\nHost: x\r\n\r\n", "a\x00b", "a\u2028X-Injected: 1", "a\u010d\u010aX-Injected: 1",
		"a\x7f\x1b[31m", "%0d%0aX-Injected: 1",
	} {
		e := &event.Event{ID: poison, Source: "/s" + poison, Type: poison, Subject: poison, DataSchema: "urn:" + poison, DataContentType: "text/plain", Data: []byte("x")}
		e.Set(event.ExtPartitionKey, poison)
		e.Set(event.ExtTraceParent, poison)
		s := newSender(t, Binary, "http://"+l.Addr().String(), NewKey(HMAC))
		a := s.Send(t.Context(), e)
		s.Close()
		if a.Outcome != deliver.Delivered {
			t.Fatalf("%q: got %+v", poison, a)
		}
		head := <-heads
		lines := strings.Split(strings.TrimSuffix(head, "\r\n\r\n"), "\r\n")
		for i, line := range lines {
			name, _, _ := strings.Cut(strings.ToLower(line), ":")
			known := strings.HasPrefix(name, "ce-") || strings.HasPrefix(name, "webhook-") ||
				slices.Contains([]string{"host", "user-agent", "content-length", "content-type"}, name)
			if i == 0 && line != "POST / HTTP/1.1" || i > 0 && !known || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r >= 0x7f }) {
				t.Errorf("%q: header %q", poison, line)
			}
		}
	}
}

// TestContentTypeInjection: the one attribute that goes into a header of its own
// name.
func TestContentTypeInjection(t *testing.T) {
	var hits atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		if r.Header.Get("X-Injected") != "" {
			t.Error("a header was injected")
		}
		if e, err := io.ReadAll(r.Body); err != nil || !strings.Contains(string(e), "x") {
			t.Errorf("body %q, %v", e, err)
		}
	}))
	defer srv.Close()
	s := newSender(t, Binary, srv.URL)
	defer s.Close()
	for _, contentType := range []string{"text/plain\r\nX-Injected: 1", "text/plain\nX-Injected: 1", "text/plain\x00"} {
		e := &event.Event{ID: "1", Source: "/s", Type: "t", DataContentType: contentType, Data: []byte("x")}
		if a := s.Send(t.Context(), e); a.Outcome != deliver.Delivered {
			t.Errorf("%q: got %+v", contentType, a)
		}
	}
	if hits.Load() != 3 {
		t.Errorf("%d requests", hits.Load())
	}
}

// TestBadCertificates: what is wrong with one stands in the reason, and nothing is
// sent.
func TestBadCertificates(t *testing.T) {
	ca, caKey := authority(t)
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	now := time.Now()
	tests := map[string]struct {
		change func(*x509.Certificate)
		want   string // begins so; empty for delivered
	}{
		"good":          {func(*x509.Certificate) {}, ""},
		"expired":       {func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Hour) }, "TLS: certificate has expired or is not yet valid"},
		"not yet valid": {func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }, "TLS: certificate has expired or is not yet valid"},
		"another host": {func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"other.example"} },
			"TLS: cannot validate certificate for 127.0.0.1 because it doesn't contain any IP SANs"},
		"for clients": {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} },
			"TLS: certificate specifies an incompatible key usage"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var hits atomic.Int32
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
			quiet(srv)
			srv.TLS = &tls.Config{Certificates: []tls.Certificate{leaf(t, ca, caKey, tt.change)}}
			srv.StartTLS()
			defer srv.Close()
			s := newSender(t, Structured, withCanaries(t, srv.URL))
			defer s.Close()
			s.transport.TLSClientConfig.RootCAs = roots
			a := s.Send(t.Context(), small)
			if tt.want == "" {
				if a.Outcome != deliver.Delivered {
					t.Errorf("got %+v", a)
				}
				return
			}
			if a.Outcome != deliver.Failed || a.Fault != deliver.FaultTLS || !strings.HasPrefix(a.Reason, tt.want) {
				t.Errorf("got %+v, want %s", a, tt.want)
			}
			if hits.Load() != 0 {
				t.Error("it got a request all the same")
			}
		})
	}
}

func authority(t *testing.T) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func leaf(t *testing.T, ca *x509.Certificate, caKey *ecdsa.PrivateKey, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "subscriber"},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, ca, &key.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestEquipped: the Sender's transport has nothing of its own that would go around
// the rules.
func TestEquipped(t *testing.T) {
	s := judged(t, "https://wms.example.com/")
	if s.transport.DialTLSContext != nil || s.transport.Proxy != nil {
		t.Error("there is another way out than the judged one")
	}
	u, err := url.Parse("http://127.0.0.1:1/")
	if err != nil {
		t.Fatal(err)
	}
	// Even a request for another host than the Sender's is judged.
	if _, err := s.transport.RoundTrip((&http.Request{Method: http.MethodGet, URL: u, Header: http.Header{}}).WithContext(t.Context())); err == nil || !strings.HasPrefix(err.Error(), egress.RefusedPrefix) {
		t.Errorf("got %v", err)
	}
}
