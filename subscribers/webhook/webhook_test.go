package webhook

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/sendertest"
)

// What the endpoint's URL must keep to itself.
const (
	canaryKey      = "canary-key+/ÿ"
	canaryUser     = "canary-user"
	canaryPassword = "canary-pass word"
)

func withCanaries(t *testing.T, raw string) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/hook"
	u.User = url.UserPassword(canaryUser, canaryPassword)
	u.RawQuery = url.Values{"code": {canaryKey}, "v": {"1"}}.Encode()
	return u.String()
}

func newSender(t *testing.T, format Format, rawURL string, keys ...Key) *Sender {
	t.Helper()
	s, err := New(Config{URL: rawURL, Format: format}, Options{Concurrency: 32, Version: "1.2.3", Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSender(t *testing.T) {
	secrets := []string{
		canaryKey, url.QueryEscape(canaryKey), canaryUser, canaryPassword, url.PathEscape(canaryPassword),
		base64.StdEncoding.EncodeToString([]byte(canaryUser + ":" + canaryPassword)),
	}
	keys := []string{oldKey.Reveal(), newerKey.Reveal(), newerKey.Reveal()[len(sharedPrefix):]}
	for _, proto := range []string{"http", "http2", "signed", "handshake"} {
		formats := Formats
		switch proto {
		case "http2", "signed":
			formats = []Format{Structured, Binary}
		case "handshake":
			formats = []Format{Structured, EventGrid}
		}
		for _, format := range formats {
			h := sendertest.Harness{
				Secrets: secrets, Single: format == EventGrid,
				New: func(t *testing.T, respond sendertest.Respond) deliver.Sender {
					handler := sendertest.Handler(t, event.Decode, respond)
					switch format {
					case EventGrid:
						handler = readingGrid(t, handler)
					case Original:
						handler = sendertest.Handler(t, decodeOriginal, respond)
					}
					switch proto {
					case "signed":
						handler = verifying(t, handler, oldKey)
					case "handshake":
						handler = agreeing(handler)
					}
					srv := httptest.NewUnstartedServer(handler)
					quiet(srv)
					t.Cleanup(srv.Close)
					switch proto {
					case "http":
						srv.Start()
						return newSender(t, format, withCanaries(t, srv.URL))
					case "signed":
						srv.Start()
						return newSender(t, format, withCanaries(t, srv.URL), newerKey, oldKey)
					case "handshake":
						srv.Start()
						s, err := New(Config{URL: withCanaries(t, srv.URL), Format: format, Handshake: Handshake{On: true}}, Options{Concurrency: 32})
						if err != nil {
							t.Fatal(err)
						}
						return s
					}
					srv.EnableHTTP2 = true
					srv.StartTLS()
					s := newSender(t, format, withCanaries(t, srv.URL))
					s.transport.TLSClientConfig.RootCAs = rootsOf(srv)
					return s
				},
			}
			switch format {
			case Binary:
				h.Arrives = throughHeaders
			case EventGrid:
				h.Arrives, h.InBatch = throughGrid, throughGrid
			case Original:
				h.Arrives = asOriginal
			}
			if proto == "signed" {
				h.Secrets = slices.Concat(secrets, keys)
			}
			t.Run(fmt.Sprint(proto, "/", format), func(t *testing.T) { sendertest.Run(t, h) })
		}
	}
}

// throughHeaders is what binary mode makes of an event: all extensions are
// text.
func throughHeaders(e *event.Event) *event.Event {
	if e.HeaderSize() > maxHeader {
		return e
	}
	for i := range e.Extensions {
		e.Extensions[i].Type = event.String
	}
	return e
}

func rootsOf(srv *httptest.Server) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	return pool
}

// quiet keeps the handshakes that tests break off out of the test's output.
func quiet(srv *httptest.Server) {
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
}

func TestRequest(t *testing.T) {
	base := func() *event.Event {
		return &event.Event{
			ID: "1", Source: "/s", Type: "t", Subject: "é", DataContentType: "application/json",
			Data: []byte(`{}`), DataJSON: true,
			Extensions: []event.Extension{{Name: "count", Value: "5", Type: event.Integer}},
		}
	}
	edit := func(f func(*event.Event)) *event.Event { e := base(); f(e); return e }
	const ce = "Ce-Count: 5\nCe-Id: 1\nCe-Source: /s\nCe-Specversion: 1.0\nCe-Subject: %C3%A9\nCe-Type: t\n"
	common := "User-Agent: gridfan/1.2.3\n"
	auth := "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(canaryUser+":"+canaryPassword)) + "\n"
	tests := []struct {
		name   string
		format Format
		e      *event.Event
		want   string
	}{
		{"structured", Structured, base(), auth + "Content-Type: application/cloudevents+json; charset=utf-8\n" + common +
			`{"specversion":"1.0","id":"1","source":"/s","type":"t","subject":"é","datacontenttype":"application/json","count":5,"data":{}}`},
		{"binary", Binary, base(), auth + ce + "Content-Type: application/json\n" + common + "{}"},
		{"binary, JSON by default", Binary, edit(func(e *event.Event) { e.DataContentType = "" }),
			auth + ce + "Content-Type: application/json\n" + common + "{}"},
		{"binary, unknown type", Binary, edit(func(e *event.Event) { e.DataContentType, e.DataJSON = "", false }),
			auth + ce + "" + common + "{}"},
		{"binary, no data", Binary, edit(func(e *event.Event) { e.DataContentType, e.Data = "", nil }),
			auth + ce + "" + common},
		{"binary, data that calls itself an event", Binary, edit(func(e *event.Event) { e.DataContentType = "Application/CloudEvents+JSON; charset=utf-8" }),
			auth + ce + "Content-Type: application/json\n" + common + "{}"},
		{"binary, bytes that call themselves an event", Binary, edit(func(e *event.Event) {
			e.DataContentType, e.DataJSON = "application/cloudevents+avro", false
		}), auth + "Content-Type: application/cloudevents+json; charset=utf-8\n" + common +
			`{"specversion":"1.0","id":"1","source":"/s","type":"t","subject":"é","datacontenttype":"application/cloudevents+avro","count":5,"data":"{}"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got string
			var contentLength int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				if want := "/hook?code=" + url.QueryEscape(canaryKey) + "&v=1"; r.RequestURI != want {
					t.Errorf("got a request for %s, want %s", r.RequestURI, want)
				}
				r.Header.Del("Content-Length") // compared below
				var h strings.Builder
				_ = r.Header.Write(&h) // sorted by name
				got = strings.ReplaceAll(h.String(), "\r\n", "\n") + string(body)
				contentLength = r.ContentLength
			}))
			defer srv.Close()
			s := newSender(t, tt.format, withCanaries(t, srv.URL))
			defer s.Close()
			// Twice, for what one request leaves behind for the next.
			for range 2 {
				if a := s.Send(t.Context(), tt.e); a != (deliver.Attempt{Outcome: deliver.Delivered, Status: 200}) {
					t.Fatalf("got %+v", a)
				}
				_, body, _ := strings.Cut(tt.want, common)
				if contentLength != int64(len(body)) {
					t.Errorf("the request says %d bytes, want %d", contentLength, len(body))
				}
				if d := cmp.Diff(tt.want, got); d != "" {
					t.Errorf("(-want +got):\n%s", d)
				}
			}
		})
	}
}

func TestBinaryLimit(t *testing.T) {
	var mode atomic.Value
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { mode.Store(r.Header.Get("Content-Type")) }))
	defer srv.Close()
	s := newSender(t, Binary, srv.URL)
	defer s.Close()
	e := &event.Event{ID: "1", Source: "/s", Type: "t", DataContentType: "text/plain", Data: []byte("x")}
	e.Subject = strings.Repeat("s", maxHeader-e.HeaderSize())
	for _, want := range []string{"text/plain", mediaStructured} {
		if a := s.Send(t.Context(), e); a.Outcome != deliver.Delivered || mode.Load() != want {
			t.Errorf("attributes of %d bytes: got %v (%+v), want %s", e.HeaderSize(), mode.Load(), a, want)
		}
		e.Subject += "s"
	}
}

func TestReasons(t *testing.T) {
	tests := []struct {
		name   string
		status int
		header string
		body   string
		fault  deliver.Fault
		want   string
	}{
		{"empty", 503, "", "", deliver.FaultServer, "HTTP 503"},
		{"text", 400, "", " no such\n\torder \n", deliver.FaultRefused, "HTTP 400: no such order"},
		{"blank", 500, "", "\r\n", deliver.FaultServer, "HTTP 500"},
		{"proxy", 407, "", "who are you", deliver.FaultNetwork, "HTTP 407 of a proxy on the way: who are you"},
		{"captive portal", 511, "", "", deliver.FaultNetwork, "HTTP 511 of a proxy on the way"},
		{"control", 500, "", "a\x00b\x1b\xff", deliver.FaultServer, "HTTP 500: a\ufffdb\ufffd\ufffd"},
		{"long", 500, "", strings.Repeat("é", 1000), deliver.FaultServer, "HTTP 500: " + strings.Repeat("é", 256)},
		{"redirect", 302, "https://u:p@elsewhere.example:8443/x?k=v", "moved", deliver.FaultAddress,
			"HTTP 302: redirects are not followed (this one leads to elsewhere.example:8443)"},
		{"redirect nowhere", 304, "", "", deliver.FaultAddress, "HTTP 304: redirects are not followed"},
		{"redirect to nonsense", 307, "http://%zz", "", deliver.FaultAddress, "HTTP 307: redirects are not followed (its Location is no URL)"},
		{"echo", 404, "", "Cannot POST /hook?code=" + url.QueryEscape(canaryKey) + "&v=1 for " + canaryUser, deliver.FaultAddress,
			"HTTP 404: Cannot POST /hook?<redacted> for <redacted>"},
		{"echo of a signing key", 400, "", "bad signature with key " + newerKey.Reveal(), deliver.FaultRefused, "HTTP 400: bad signature with key whsec_<redacted>"},
		{"echo of the value", 404, "", `{"code":"` + canaryKey + `"}`, deliver.FaultAddress, `HTTP 404: {"code":"<redacted>"}`},
		{"echo across the cut", 404, "", strings.Repeat("-", 505) + canaryKey, deliver.FaultAddress,
			"HTTP 404: " + strings.Repeat("-", 505) + "<redact"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if tt.header != "" {
					w.Header().Set("Location", tt.header)
				}
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			}))
			defer srv.Close()
			s := newSender(t, Structured, withCanaries(t, srv.URL), newerKey)
			defer s.Close()
			got := s.Send(t.Context(), &event.Event{ID: "1", Source: "s", Type: "t"})
			want := deliver.Attempt{Outcome: deliver.Rejected, Fault: tt.fault, Status: tt.status, Reason: tt.want}
			if tt.fault == deliver.FaultServer || tt.fault == deliver.FaultNetwork {
				want.Outcome = deliver.Failed
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestTransportReasons(t *testing.T) {
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	quiet(secure)
	secure.StartTLS()
	defer secure.Close()
	old := httptest.NewUnstartedServer(http.NotFoundHandler())
	quiet(old)
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	old.StartTLS()
	defer old.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	garbage := listen(t, func(c net.Conn) { _, _ = io.WriteString(c, "220 "+canaryKey+"\r\n") })
	silent := listen(t, func(net.Conn) {})
	closed := listen(t, nil)

	tests := []struct {
		name, url string
		fault     deliver.Fault
		want      string
	}{
		{"refused", "http://" + closed, deliver.FaultNetwork, "connection refused"},
		{"closed", "http://" + silent, deliver.FaultNetwork, "connection closed without an answer"},
		{"not HTTP", "http://" + garbage, deliver.FaultNetwork, `transport error: net/http: HTTP/1.x transport connection broken: malformed HTTP status code "<redacted>"`},
		{"unknown authority", secure.URL, deliver.FaultTLS, "TLS: certificate signed by unknown authority"},
		{"old TLS", old.URL, deliver.FaultTLS, "TLS: refused by the subscriber: protocol version not supported"},
		{"HTTP behind https", strings.Replace(plain.URL, "http:", "https:", 1), deliver.FaultTLS, "TLS: the other side speaks plain HTTP"},
		{"no TLS behind https", "https://" + garbage, deliver.FaultTLS, "TLS: the other side does not speak it"},
		{"bad port", "http://127.0.0.1:99999", deliver.FaultNetwork, "transport error: dial tcp: address 99999: invalid port"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSender(t, Binary, withCanaries(t, tt.url))
			defer s.Close()
			got := s.Send(t.Context(), &event.Event{ID: "1", Source: "s", Type: "t", Data: []byte("x")})
			if got.Reason != tt.want || got.Fault != tt.fault || got.Outcome != deliver.Failed || got.Status != 0 {
				t.Errorf("got %+v, want %q (%s)", got, tt.want, tt.fault)
			}
		})
	}
}

// listen accepts connections, reads a request's beginning, and closes them
// after reply. With a nil reply nobody listens.
func listen(t *testing.T, reply func(net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if reply == nil {
		l.Close()
		return l.Addr().String()
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 64<<10))
			reply(c)
			c.Close()
		}
	}()
	return l.Addr().String()
}

func TestTimedOut(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body)
		<-r.Context().Done()
	}))
	defer srv.Close()
	s := newSender(t, Structured, srv.URL)
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	a := s.Send(ctx, &event.Event{ID: "1", Source: "s", Type: "t"})
	rest, ok := strings.CutPrefix(a.Reason, "timed out after ")
	d, err := time.ParseDuration(rest)
	if !ok || err != nil || d < 50*time.Millisecond || a.Outcome != deliver.Failed {
		t.Errorf("got %+v", a)
	}
}

func TestRedirectTakesNothingAlong(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("the redirect was followed: %s with Authorization %q", r.Method, r.Header.Get("Authorization"))
	}))
	defer elsewhere.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		var key string
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			key = r.Header.Get("Authorization")
			w.Header().Set("Location", elsewhere.URL+"/?"+r.URL.RawQuery)
			w.WriteHeader(status)
		}))
		s := newSender(t, Structured, withCanaries(t, srv.URL))
		a := s.Send(t.Context(), &event.Event{ID: "1", Source: "s", Type: "t"})
		if a.Outcome != deliver.Rejected || !strings.HasPrefix(key, "Basic ") {
			t.Errorf("status %d: got %+v after credentials %q", status, a, key)
		}
		s.Close()
		srv.Close()
	}
}

func TestConnections(t *testing.T) {
	// A machine that is too busy for it lets the client give a connection up that
	// it could have kept, and we see its end after the next one's beginning.
	const concurrency, most = 4, 8
	var opened, open atomic.Int32
	closed := make(chan struct{}, 100)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("x", maxReply-1))
	}))
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			opened.Add(1)
			if n := open.Add(1); n > most {
				t.Errorf("%d connections at once, want at most %d", n, most)
			}
		case http.StateClosed:
			open.Add(-1)
			closed <- struct{}{}
		}
	}
	srv.Start()
	defer srv.Close()
	s, err := New(Config{URL: srv.URL}, Options{Concurrency: concurrency})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	for range 16 {
		go func() {
			defer func() { done <- struct{}{} }()
			for range 25 {
				s.Send(t.Context(), &event.Event{ID: "1", Source: "s", Type: "t"})
			}
		}()
	}
	for range 16 {
		<-done
	}
	if n := opened.Load(); n > most {
		t.Errorf("400 requests opened %d connections, want %d used again and again", n, concurrency)
	}
	s.Close()
	for range opened.Load() {
		select {
		case <-closed:
		case <-time.After(20 * time.Second):
			t.Fatal("Close left a connection open")
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []Config{
		{},
		{URL: "ftp://h/?key=" + canaryKey},
		{URL: "https://h/%zz?key=" + canaryKey},
		{URL: "https://h", Format: "xml"},
	} {
		s, err := New(c, Options{})
		if err == nil || s != nil {
			t.Errorf("%+v: got no error", c)
		} else if strings.Contains(err.Error(), canaryKey) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
}

func TestUserAgent(t *testing.T) {
	for version, want := range map[string]string{"": "gridfan", "v1-dirty": "gridfan/v1-dirty"} {
		s, err := New(Config{URL: "http://h"}, Options{Version: version})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.header.Get("User-Agent"); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func BenchmarkSend(b *testing.B) {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer srv.Close()
	e := &event.Event{ID: "1", Source: "/d365/fno/prod", Type: "t", DataContentType: "application/json", Data: []byte(`{"order":"PO-1"}`), DataJSON: true}
	batch := make([]*event.Event, 100)
	for i := range batch {
		batch[i] = e
	}
	for _, format := range []Format{Structured, Binary, "batch of 100"} {
		for name, keys := range map[string][]Key{"unsigned": nil, "signed": {newerKey}, "signed twice": {newerKey, oldKey}} {
			b.Run(string(format)+"/"+name, func(b *testing.B) {
				cfg, isBatch := Config{URL: srv.URL, Format: format}, format == "batch of 100"
				if isBatch {
					cfg.Format = Structured
				}
				s, err := New(cfg, Options{Concurrency: 1, Keys: keys})
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				b.ReportAllocs()
				for b.Loop() {
					var a deliver.Attempt
					if isBatch {
						a = s.SendBatch(b.Context(), batch)
					} else {
						a = s.Send(b.Context(), e)
					}
					if a.Outcome != deliver.Delivered {
						b.Fatalf("got %+v", a)
					}
				}
			})
		}
	}
}
