// Package brokertest gives tests a real broker: an embedded server with a
// store of its own, started in milliseconds.
package brokertest

import (
	"context"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/gridfan/gridfan/infra/broker"
)

// New starts a broker that lives as long as the test.
func New(t testing.TB) *broker.Broker {
	t.Helper()
	return Open(t, t.TempDir())
}

// Open starts a broker on a given store, for tests that restart it.
func Open(t testing.TB, dir string) *broker.Broker {
	t.Helper()
	return connect(t, broker.Config{Dir: dir, Listen: "none", MaxBytes: 1 << 30})
}

// OpenSmall does so with so little space, 64 MiB, that a test can fill it: EVENTS
// gets 38 MiB of it, DEADLETTERS 9.
func OpenSmall(t testing.TB, dir string) *broker.Broker {
	t.Helper()
	return connect(t, broker.Config{Dir: dir, Listen: "none", MaxBytes: 64 << 20})
}

// OpenClients starts a broker on a given store that lets subscribers' own clients
// in at an address, 127.0.0.1:0 for any port.
func OpenClients(t testing.TB, dir, listen string) *broker.Broker {
	t.Helper()
	return connect(t, broker.Config{Dir: dir, Listen: "none", MaxBytes: 1 << 30, Clients: broker.ClientsConfig{Listen: listen}})
}

// OpenSmallClients does so with as little space as OpenSmall.
func OpenSmallClients(t testing.TB, dir string) *broker.Broker {
	t.Helper()
	return connect(t, broker.Config{Dir: dir, Listen: "none", MaxBytes: 64 << 20, Clients: broker.ClientsConfig{Listen: "127.0.0.1:0"}})
}

func connect(t testing.TB, cfg broker.Config) *broker.Broker {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := broker.Open(context.Background(), cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// NewExternal starts a plain NATS server with a given max_payload, as operators
// run them, and connects to it as to any external one.
func NewExternal(t testing.TB, maxPayload int32) *broker.Broker {
	t.Helper()
	s := &Server{t: t, dir: t.TempDir(), maxPayload: maxPayload, port: server.RANDOM_PORT}
	s.Start()
	return s.Connect()
}

// Server is a plain NATS server, as operators run them, that can be stopped and
// started again.
type Server struct {
	t          testing.TB
	dir        string
	maxPayload int32
	port       int
	s          *server.Server
}

// NewServer starts one that ends with the test.
func NewServer(t testing.TB) *Server {
	t.Helper()
	s := &Server{t: t, dir: t.TempDir(), maxPayload: broker.MaxPayload, port: server.RANDOM_PORT}
	s.Start()
	return s
}

// URL is where it can be reached, also after it was started again.
func (s *Server) URL() string { return s.s.ClientURL() }

// Start starts it on the store and at the address it had before.
func (s *Server) Start() {
	s.t.Helper()
	var err error
	s.s, err = server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: s.port, JetStream: true, StoreDir: s.dir, SyncAlways: true,
		MaxPayload: s.maxPayload, NoSigs: true, NoLog: true,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.s.Start()
	s.t.Cleanup(s.Stop)
	if !s.s.ReadyForConnections(10 * time.Second) {
		s.t.Fatal("the server does not start")
	}
	s.port = s.s.Addr().(*net.TCPAddr).Port
}

// Stop stops it. It can be called again.
func (s *Server) Stop() {
	s.s.Shutdown()
	s.s.WaitForShutdown()
}

// Connect reaches it as gridfan reaches an external server.
func (s *Server) Connect() *broker.Broker {
	s.t.Helper()
	return connect(s.t, broker.Config{URL: s.URL(), MaxBytes: 1 << 30})
}

// InProcess starts a plain server on a store, which syncs each message or leaves
// that to the system, and connects to it without a socket: what gridfan's own
// server is compared with.
func InProcess(t testing.TB, dir string, syncAlways bool) *nats.Conn {
	t.Helper()
	s, err := server.NewServer(&server.Options{
		DontListen: true, JetStream: true, StoreDir: dir, SyncAlways: syncAlways, NoSigs: true, NoLog: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// NewSpool opens a spool in a folder.
func NewSpool(t testing.TB, dir string) *broker.Broker {
	t.Helper()
	return newSpool(t, broker.SpoolConfig{Dir: dir})
}

// NewSmallSpool opens one that is soon full.
func NewSmallSpool(t testing.TB, dir string) *broker.Broker {
	t.Helper()
	return newSpool(t, broker.SpoolConfig{Dir: dir, MaxBytes: 64 << 20})
}

func newSpool(t testing.TB, cfg broker.SpoolConfig) *broker.Broker {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := broker.OpenSpool(context.Background(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}
