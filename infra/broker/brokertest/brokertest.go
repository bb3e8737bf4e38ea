// Package brokertest gives tests a real broker: an embedded server with a
// store of its own, started in milliseconds.
package brokertest

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

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
	return connect(t, broker.Config{URL: newServer(t, maxPayload), MaxBytes: 1 << 30})
}

// NewServer starts a plain NATS server, as operators run them, and gives its
// URL.
func NewServer(t testing.TB) string {
	t.Helper()
	return newServer(t, broker.MaxPayload)
}

func newServer(t testing.TB, maxPayload int32) (url string) {
	t.Helper()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(),
		MaxPayload: maxPayload, NoSigs: true, NoLog: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	return s.ClientURL()
}
