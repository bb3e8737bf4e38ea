package broker_test

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/infra/secret"
)

// password has all that a URL would have to escape.
const password = "p@ss:w/rd?#%&"

// external is a server with one user, that shows the certificate in dir, or none
// where dir is empty.
type external struct {
	t        *testing.T
	dir      string
	verifies bool // asks clients for theirs
	port     int
	store    string
	s        *server.Server
}

func (e *external) start() {
	e.t.Helper()
	conf := fmt.Sprintf("listen: \"127.0.0.1:%d\"\njetstream { store_dir: %q }\nauthorization { user: gridfan, password: %q }\n", e.port, e.store, password)
	if e.dir != "" {
		conf += fmt.Sprintf("tls { cert_file: %q, key_file: %q, ca_file: %q, verify: %v }\n",
			filepath.Join(e.dir, "node.pem"), filepath.Join(e.dir, "node-key.pem"), filepath.Join(e.dir, "ca.pem"), e.verifies)
	}
	opts := &server.Options{NoSigs: true, NoLog: true}
	if err := opts.ProcessConfigString(conf); err != nil {
		e.t.Fatal(err)
	}
	s, err := server.NewServer(opts)
	if err != nil {
		e.t.Fatal(err)
	}
	e.s = s
	s.Start()
	e.t.Cleanup(e.stop)
	if !s.ReadyForConnections(20 * time.Second) {
		e.t.Fatal("the server does not start")
	}
	e.port = s.Addr().(*net.TCPAddr).Port
}

func (e *external) stop() {
	e.s.Shutdown()
	e.s.WaitForShutdown()
}

func newExternal(t *testing.T, dir string, verifies bool) *external {
	t.Helper()
	e := &external{t: t, dir: dir, verifies: verifies, port: server.RANDOM_PORT, store: t.TempDir()}
	e.start()
	return e
}

// nodeFiles are those of a certificate for hosts.
func nodeFiles(t *testing.T, a *brokertest.Authority, hosts ...string) string {
	t.Helper()
	dir := t.TempDir()
	a.Node(dir, hosts...)
	return dir
}

func TestExternalTLS(t *testing.T) {
	ours, theirs := brokertest.NewAuthority(t), brokertest.NewAuthority(t)
	good, foreign := nodeFiles(t, ours, "127.0.0.1"), nodeFiles(t, theirs, "127.0.0.1")
	elsewhere := nodeFiles(t, ours, "nats.example.com")
	notPEM := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(notPEM, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	in := func(dir, name string) string { return filepath.Join(dir, name) }
	ca := broker.TLSConfig{CA: in(good, "ca.pem")}
	shown := broker.TLSConfig{CA: in(good, "ca.pem"), Cert: in(good, "node.pem"), Key: in(good, "node-key.pem")}
	const refusedByServer = "broker.tls.cert: the server refuses"
	tests := []struct {
		name     string
		dir      string // what the server shows
		verifies bool
		tls      broker.TLSConfig
		password string
		scheme   string
		want     string // part of the error; empty: it works
	}{
		{name: "authority", dir: good, tls: ca, scheme: "tls"},
		{name: "authority without tls in the URL", dir: good, tls: ca, scheme: "nats"},
		{name: "certificate", dir: good, verifies: true, tls: shown, scheme: "tls"},
		{name: "wrong authority", dir: good, tls: broker.TLSConfig{CA: in(foreign, "ca.pem")}, scheme: "tls",
			want: "broker.tls.ca: the server's certificate is of none of the authorities in " + in(foreign, "ca.pem")},
		{name: "no authority", dir: good, scheme: "tls", want: "broker.tls.ca: missing"},
		{name: "no file", dir: good, tls: broker.TLSConfig{CA: in(good, "nothing.pem")}, scheme: "tls", want: "broker.tls.ca: open " + in(good, "nothing.pem")},
		{name: "no certificate in the file", dir: good, tls: broker.TLSConfig{CA: notPEM}, scheme: "tls", want: "broker.tls.ca: no certificate in " + notPEM},
		{name: "name not in the certificate", dir: elsewhere, tls: ca, scheme: "tls", want: "broker.url: the server's certificate is not for 127.0.0.1"},
		{name: "none shown", dir: good, verifies: true, tls: ca, scheme: "tls", want: refusedByServer},
		{name: "one of another authority shown", dir: good, verifies: true, scheme: "tls",
			tls: broker.TLSConfig{CA: in(good, "ca.pem"), Cert: in(foreign, "node.pem"), Key: in(foreign, "node-key.pem")}, want: refusedByServer},
		{name: "key of another certificate", dir: good, scheme: "tls",
			tls: broker.TLSConfig{CA: in(good, "ca.pem"), Cert: in(good, "node.pem"), Key: in(foreign, "node-key.pem")}, want: "broker.tls.cert: tls: private key does not match"},
		{name: "server without TLS", tls: ca, scheme: "nats", want: "the server does not encrypt"},
		{name: "wrong password", dir: good, tls: ca, scheme: "tls", password: "another", want: "broker.user, broker.password, broker.credentials: the server does not let this user in"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := newExternal(t, tt.dir, tt.verifies)
			cfg := broker.Config{
				URL: fmt.Sprintf("%s://127.0.0.1:%d", tt.scheme, e.port), MaxBytes: 1 << 30,
				User: "gridfan", Password: secret.New(password), TLS: tt.tls,
			}
			if tt.password != "" {
				cfg.Password = secret.New(tt.password)
			}
			if err := cfg.Validate(); err != nil {
				t.Fatal(err)
			}
			b, err := broker.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
			if err == nil {
				defer b.Close()
			}
			switch {
			case tt.want == "" && err != nil:
				t.Fatal(err)
			case tt.want == "":
				if _, err := b.JetStream().Conn().TLSConnectionState(); err != nil {
					t.Errorf("not encrypted: %v", err)
				}
			case err == nil:
				t.Fatal("it works")
			case !strings.Contains(err.Error(), tt.want):
				t.Errorf("got %q, want %q", err, tt.want)
			case errors.Is(err, broker.ErrAway) && tt.want != refusedByServer:
				t.Errorf("%q counts as a server that is away: gridfan would wait for it", err)
			case strings.Contains(err.Error(), password) || strings.Contains(err.Error(), "another"):
				t.Errorf("%q shows the password", err)
			}
		})
	}
}

// Authorities are exchanged while gridfan runs: the file has both for a while. What is
// half written does no harm.
func TestExternalTLSIsRenewed(t *testing.T) {
	before, after := brokertest.NewAuthority(t), brokertest.NewAuthority(t)
	old, renewed := nodeFiles(t, before, "127.0.0.1"), nodeFiles(t, after, "127.0.0.1")
	e := newExternal(t, old, false)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write := func(content []byte) {
		t.Helper()
		if err := os.WriteFile(ca, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(before.PEM)
	cfg := broker.Config{
		URL: fmt.Sprintf("tls://127.0.0.1:%d", e.port), MaxBytes: 1 << 30,
		User: "gridfan", Password: secret.New(password), TLS: broker.TLSConfig{CA: ca},
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := broker.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	restart := func() {
		t.Helper()
		e.stop()
		e.start()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for deadline := time.Now().Add(time.Minute); b.Health(t.Context()) != nil; <-tick.C {
			if time.Now().After(deadline) {
				t.Fatal("gridfan does not come back")
			}
		}
	}
	write(before.PEM[:40])
	restart()
	write(append(append([]byte{}, before.PEM...), after.PEM...))
	e.dir = renewed
	restart()
	state, err := b.JetStream().Conn().TLSConnectionState()
	if err != nil {
		t.Fatal(err)
	}
	if err := state.PeerCertificates[0].CheckSignatureFrom(mustCert(t, after)); err != nil {
		t.Errorf("the connection is not with the renewed certificate: %v", err)
	}
}

func mustCert(t *testing.T, a *brokertest.Authority) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(a.PEM)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
