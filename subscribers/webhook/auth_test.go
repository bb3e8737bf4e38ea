package webhook

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/sendertest"
)

const canaryToken = "canary-token.x/y+z=="

// issuing is a token server whose nth token is canaryToken and n.
func issuing(t *testing.T) (url string, issued *atomic.Int32) {
	t.Helper()
	issued = &atomic.Int32{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":"%s%d","token_type":"bearer","expires_in":3600}`, canaryToken, issued.Add(1))
	}))
	t.Cleanup(srv.Close)
	return srv.URL, issued
}

func oauth2At(tokenURL string) *credentials.Auth {
	return &credentials.Auth{OAuth2: &credentials.OAuth2{TokenURL: tokenURL, ClientID: "gridfan", ClientSecret: "canary-client-secret"}}
}

// with makes a Sender with credentials, whose log must not show any.
func with(t *testing.T, format Format, target string, auth *credentials.Auth, t12 *credentials.TLS, keys ...Key) *Sender {
	t.Helper()
	var mu sync.Mutex
	var log bytes.Buffer
	s, err := New(Config{URL: target, Format: format, Auth: auth, TLS: t12}, Options{
		Concurrency: 32, Keys: keys, Log: slog.New(slog.NewTextHandler(locked{&mu, &log}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		if strings.Contains(log.String(), "canary") {
			t.Errorf("the log shows a secret:\n%s", &log)
		}
	})
	return s
}

type locked struct {
	mu *sync.Mutex
	to io.Writer
}

func (l locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.to.Write(b)
}

// renewed issues one token again and again.
func renewed(t *testing.T) *credentials.Auth {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"access_token":"%s","token_type":"bearer","expires_in":3600}`, canaryToken)
	}))
	t.Cleanup(srv.Close)
	return oauth2At(srv.URL)
}

// Senders with credentials of each kind keep all that a Sender promises, whatever the
// subscriber quotes.
func TestSenderWithCredentials(t *testing.T) {
	for _, tt := range []struct {
		name   string
		auth   func(t *testing.T) *credentials.Auth
		shows  func(r *http.Request) bool
		signed bool
		secret []string
	}{
		{"oauth2", renewed, func(r *http.Request) bool {
			return strings.HasPrefix(r.Header.Get("Authorization"), "Bearer "+canaryToken)
		}, false, []string{canaryToken, "canary-client-secret"}},
		{"oauth2 signed", renewed, func(r *http.Request) bool {
			return strings.HasPrefix(r.Header.Get("Authorization"), "Bearer "+canaryToken)
		}, true, []string{canaryToken, "canary-client-secret"}},
		{"bearer", func(*testing.T) *credentials.Auth {
			return &credentials.Auth{Bearer: &credentials.Bearer{Token: canaryToken}}
		}, func(r *http.Request) bool { return r.Header.Get("Authorization") == "Bearer "+canaryToken }, false, []string{canaryToken}},
		{"basic", func(*testing.T) *credentials.Auth {
			return &credentials.Auth{Basic: &credentials.Basic{Username: "grid fan", Password: canaryToken}}
		}, func(r *http.Request) bool {
			user, password, _ := r.BasicAuth()
			return user == "grid fan" && password == canaryToken
		}, false, []string{canaryToken, base64.StdEncoding.EncodeToString([]byte("grid fan:" + canaryToken))}},
		{"header", func(*testing.T) *credentials.Auth {
			return &credentials.Auth{APIKey: &credentials.APIKey{Header: "x-api-key", Value: canaryToken}}
		}, func(r *http.Request) bool { return r.Header.Get("X-Api-Key") == canaryToken }, false, []string{canaryToken}},
		{"query", func(*testing.T) *credentials.Auth {
			return &credentials.Auth{APIKey: &credentials.APIKey{Query: "c&d", Value: canaryToken}}
		}, func(r *http.Request) bool {
			return r.URL.Query().Get("c&d") == canaryToken && r.URL.Query().Get("v") == "1"
		}, false, []string{canaryToken, url.QueryEscape(canaryToken)}},
	} {
		for _, format := range []Format{Structured, Binary} {
			h := sendertest.Harness{
				Secrets: tt.secret,
				New: func(t *testing.T, respond sendertest.Respond) deliver.Sender {
					next := sendertest.Handler(t, event.Decode, respond)
					if tt.signed {
						next = verifying(t, next, oldKey)
					}
					var seen atomic.Int32
					srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if !tt.shows(r) {
							t.Errorf("without credentials: %s %v", r.URL, r.Header)
						}
						if n := seen.Add(1); n <= 2 {
							// A token that is taken and then refused is renewed; the next
							// refusals are as of any other credentials.
							w.WriteHeader(map[int32]int{1: 200, 2: 401}[n])
							return
						}
						next.ServeHTTP(w, r)
					}))
					quiet(srv)
					srv.Start()
					t.Cleanup(srv.Close)
					var keys []Key
					if tt.signed {
						keys = append(keys, oldKey)
					}
					s := with(t, format, srv.URL+"/?v=1", tt.auth(t), nil, keys...)
					s.Send(t.Context(), one())
					s.Send(t.Context(), one())
					return s
				},
			}
			if format == Binary {
				h.Arrives = throughHeaders
			}
			t.Run(fmt.Sprint(tt.name, "/", format), func(t *testing.T) { sendertest.Run(t, h) })
		}
	}
}

func one() *event.Event {
	return &event.Event{ID: "1", Source: "/s", Type: "t", DataContentType: "application/json", Data: []byte(`{}`), DataJSON: true}
}

// A thousand attempts at once make one token request, and what requests share stays
// as it was.
func TestTokensAreShared(t *testing.T) {
	u, issued := issuing(t)
	var posts atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+canaryToken+"1" {
			t.Errorf("got %v", r.Header)
		}
		posts.Add(1)
	}))
	defer srv.Close()
	s := with(t, Structured, srv.URL, oauth2At(u), nil)
	defer s.Close()
	var all sync.WaitGroup
	for range 1000 {
		all.Go(func() {
			if a := s.Send(t.Context(), one()); a.Outcome != deliver.Delivered {
				t.Errorf("got %+v", a)
			}
		})
	}
	all.Wait()
	if issued.Load() != 1 || posts.Load() != 1000 {
		t.Errorf("%d token requests for %d posts", issued.Load(), posts.Load())
	}
	if s.header["Authorization"] != nil || s.batch["Authorization"] != nil {
		t.Error("a token is in the header that all share")
	}
}

// Without tokens no header is copied, and with a fixed one neither.
func TestFixedCredentialsCostNothing(t *testing.T) {
	allocations := func(auth *credentials.Auth) float64 {
		s := with(t, Structured, "https://h/", auth, nil)
		defer s.Close()
		s.access.via = answers{}
		e := one()
		return testing.AllocsPerRun(200, func() { s.Send(context.Background(), e) })
	}
	without := allocations(nil)
	for _, auth := range []*credentials.Auth{
		{Bearer: &credentials.Bearer{Token: canaryToken}}, {APIKey: &credentials.APIKey{Header: "X-Key", Value: canaryToken}},
		{APIKey: &credentials.APIKey{Query: "k", Value: canaryToken}}, {Basic: &credentials.Basic{Username: "u", Password: canaryToken}},
	} {
		if got := allocations(auth); got > without {
			t.Errorf("%s: %v allocations, %v without", auth.Kind(), got, without)
		}
	}
}

// answers takes everything.
type answers struct{}

func (answers) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody, Request: req}, nil
}

// A token that is revoked costs no event: the attempt is to be made again, with the
// next. One that is never taken is a wrong configuration.
func TestRevokedToken(t *testing.T) {
	u, issued := issuing(t)
	var good atomic.Value
	good.Store(canaryToken + "1")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+good.Load().(string) {
			http.Error(w, "you sent "+r.Header.Get("Authorization"), http.StatusUnauthorized)
		}
	}))
	defer srv.Close()
	s := with(t, Binary, srv.URL, oauth2At(u), nil)
	defer s.Close()
	send := func(outcome deliver.Outcome, fault deliver.Fault) deliver.Attempt {
		t.Helper()
		a := s.Send(t.Context(), one())
		if a.Outcome != outcome || a.Fault != fault || strings.Contains(a.Reason, "canary") {
			t.Errorf("got %+v, want %s %s", a, outcome, fault)
		}
		return a
	}
	send(deliver.Delivered, "")
	good.Store(canaryToken + "2")
	if a := send(deliver.Failed, deliver.FaultCredentials); a.Status != 401 || a.RetryAfter != 0 {
		t.Errorf("got %+v", a)
	}
	send(deliver.Delivered, "")
	good.Store("none")
	for range 5 {
		if a := send(deliver.Rejected, deliver.FaultAccess); !strings.Contains(a.Reason, "you sent Bearer <redacted>") {
			t.Errorf("got %+v", a)
		}
	}
	if issued.Load() != 2 {
		t.Errorf("%d token requests", issued.Load())
	}
}

// Without a token the event is not sent, not rejected, and the reason is clear; when
// the token server is repaired, RetryNow is enough.
func TestNoToken(t *testing.T) {
	var broken atomic.Bool
	broken.Store(true)
	var asked atomic.Int32
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if broken.Load() {
			_, secret, _ := r.BasicAuth()
			w.WriteHeader(401)
			fmt.Fprintf(w, `{"error":"invalid_client","error_description":"%s is wrong"}`, secret)
			return
		}
		fmt.Fprint(w, `{"access_token":"canary","expires_in":60}`)
	}))
	defer tokens.Close()
	var posts atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { posts.Add(1) }))
	defer srv.Close()
	s := with(t, Structured, srv.URL, oauth2At(tokens.URL), nil)
	defer s.Close()
	want := "no token from " + strings.TrimPrefix(tokens.URL, "http://") + ": HTTP 401: invalid_client: <redacted> is wrong"
	for range 100 {
		a := s.Send(t.Context(), one())
		if a.Outcome != deliver.Failed || a.Fault != deliver.FaultCredentials || a.Status != 0 || a.Reason != want || a.RetryAfter < 10*time.Second {
			t.Fatalf("got %+v, want %s", a, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if a := s.Send(ctx, one()); a.Outcome != deliver.Aborted {
		t.Errorf("stopped: got %+v", a)
	}
	if asked.Load() != 1 || posts.Load() != 0 {
		t.Errorf("%d token requests, %d posts", asked.Load(), posts.Load())
	}
	broken.Store(false)
	var retry deliver.Renewer = s
	retry.RetryNow()
	if a := s.Send(t.Context(), one()); a.Outcome != deliver.Delivered {
		t.Errorf("got %+v", a)
	}
}

// certified makes an authority and gives what it issues, in PEM.
func certified(t *testing.T) (ca []byte, pool *x509.CertPool, issue func(name string, until time.Time) (cert, key []byte)) {
	t.Helper()
	parse := func(template, parent *x509.Certificate, public any, key any) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	caKey := newKey()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	root := parse(template, template, caKey.Public(), caKey)
	pool = x509.NewCertPool()
	pool.AddCert(root)
	serial := int64(1)
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	return block("CERTIFICATE", root.Raw), pool, func(name string, until time.Time) ([]byte, []byte) {
		serial++
		key := newKey()
		leaf := parse(&x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			NotBefore: until.Add(-2 * time.Hour), NotAfter: until, KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		}, root, key.Public(), caKey)
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return block("CERTIFICATE", leaf.Raw), block("PRIVATE KEY", der)
	}
}

// Wrong certificates on either side have clear reasons, and cost no event.
func TestCertificates(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, content ...[]byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, bytes.Join(content, nil), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	caPEM, pool, issue := certified(t)
	_, _, strange := certified(t)
	soon := time.Now().Add(30 * time.Minute)
	ca := file("ca.pem", caPEM)
	pair := func(name string, issue func(string, time.Time) ([]byte, []byte), until time.Time) string {
		cert, key := issue(name, until)
		return file(name+".pem", cert, key)
	}
	good, expired, stranger := pair("good", issue, soon), pair("expired", issue, time.Now().Add(-time.Minute)), pair("stranger", strange, soon)
	server := func(name string, until time.Time, clients bool) *httptest.Server {
		cert, key := issue(name, until)
		p, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if clients && r.TLS.PeerCertificates[0].Subject.CommonName != "good" {
				t.Error("let in")
			}
		}))
		quiet(srv)
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{p}}
		if clients {
			srv.TLS.ClientAuth, srv.TLS.ClientCAs = tls.RequireAndVerifyClientCert, pool
		}
		srv.StartTLS()
		t.Cleanup(srv.Close)
		return srv
	}
	mutual, old, plain := server("wms.example.com", soon, true), server("old.example.com", time.Now().Add(-time.Minute), false), server("plain.example.com", soon, false)
	for _, tt := range []struct {
		name string
		srv  *httptest.Server
		tls  credentials.TLS
		want string // of the reason; empty: delivered
	}{
		{"good", mutual, credentials.TLS{Cert: good, CA: ca}, ""},
		{"another name", mutual, credentials.TLS{Cert: good, CA: ca, ServerName: "wms.example.com"}, ""},
		{"wrong name", mutual, credentials.TLS{Cert: good, CA: ca, ServerName: "x.example.com"}, "TLS: certificate is valid for wms.example.com, not x.example.com"},
		{"none", mutual, credentials.TLS{CA: ca}, "TLS: refused by the subscriber: certificate required"},
		{"expired", mutual, credentials.TLS{Cert: expired, CA: ca}, "(our certificate: it has expired on "},
		{"of a stranger", mutual, credentials.TLS{Cert: stranger, CA: ca}, "(our certificate: it is valid until "},
		{"the system's authorities", plain, credentials.TLS{Cert: good}, "TLS: certificate signed by unknown authority"},
		{"expired server", old, credentials.TLS{CA: ca}, "TLS: certificate has expired or is not yet valid"},
		{"no file", mutual, credentials.TLS{Cert: "/does/not/exist", CA: ca}, "TLS: /does/not/exist: no such file or directory"},
		{"plain", plain, credentials.TLS{CA: ca}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := with(t, Structured, tt.srv.URL, nil, &tt.tls)
			defer s.Close()
			a := s.Send(t.Context(), one())
			switch {
			case tt.want == "":
				if a.Outcome != deliver.Delivered {
					t.Errorf("got %+v", a)
				}
			case a.Outcome != deliver.Failed || a.Fault != deliver.FaultTLS && a.Fault != deliver.FaultCredentials || !strings.Contains(a.Reason, tt.want):
				t.Errorf("got %+v, want %s", a, tt.want)
			}
		})
	}
}

// Senders with certificates of their own keep all that a Sender promises.
func TestSenderWithCertificates(t *testing.T) {
	ca, pool, issue := certified(t)
	dir := t.TempDir()
	cert, key := issue("client", time.Now().Add(30*time.Minute))
	files := &credentials.TLS{Cert: filepath.Join(dir, "c.pem"), CA: filepath.Join(dir, "ca.pem")}
	for path, content := range map[string][]byte{files.Cert: append(cert, key...), files.CA: ca} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	serverCert, serverKey := issue("server", time.Now().Add(30*time.Minute))
	pair, err := tls.X509KeyPair(serverCert, serverKey)
	if err != nil {
		t.Fatal(err)
	}
	sendertest.Run(t, sendertest.Harness{New: func(t *testing.T, respond sendertest.Respond) deliver.Sender {
		srv := httptest.NewUnstartedServer(sendertest.Handler(t, event.Decode, respond))
		quiet(srv)
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
		srv.StartTLS()
		t.Cleanup(srv.Close)
		return with(t, Structured, srv.URL, nil, files)
	}})
}
