// Package brokertest gives tests a real broker: an embedded server with a
// store of its own, started in milliseconds.
package brokertest

import (
	"context"
	"io"
	"log/slog"
	"testing"

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
	cfg := broker.Config{Dir: dir, Listen: "none", MaxBytes: 1 << 30}
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
