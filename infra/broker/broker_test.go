package broker_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/infra/secret"
)

// log shows the broker's warnings with a test that fails.
func log(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func TestReopenKeepsEverything(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	b := brokertest.Open(t, dir)
	if _, err := b.JetStream().Publish(ctx, "events.x", []byte("1"), jetstream.WithMsgID("a")); err != nil {
		t.Fatal(err)
	}
	b.Close()
	b = brokertest.Open(t, dir)
	ack, err := b.JetStream().Publish(ctx, "events.x", []byte("1"), jetstream.WithMsgID("a"))
	if err != nil || !ack.Duplicate || ack.Sequence != 1 {
		t.Errorf("after a restart: %+v, %v; want a duplicate of sequence 1", ack, err)
	}
	if err := b.Health(ctx); err != nil {
		t.Errorf("health: %v", err)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	brokertest.Open(t, dir)
	cfg := broker.Config{Dir: dir, Listen: "none"}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := broker.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err == nil {
		b.Close()
		t.Fatal("a second server opened the same store")
	}
	if !strings.Contains(err.Error(), "in use by another gridfan") {
		t.Errorf("error %q does not say what to do", err)
	}
}

func TestOutsideClients(t *testing.T) {
	cfg := broker.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := broker.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)

	// The second broker is external from its own point of view.
	ext := broker.Config{URL: b.URL()}
	if err := ext.Validate(); err != nil {
		t.Fatal(err)
	}
	e, err := broker.Open(t.Context(), ext, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	if e.Embedded() || e.MaxPayload() != broker.MaxPayload {
		t.Errorf("embedded %v, max payload %d", e.Embedded(), e.MaxPayload())
	}
	nc, err := nats.Connect(b.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	sub, err := nc.SubscribeSync("events.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.JetStream().Publish(t.Context(), "events.fno.a.b.c", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if m, err := sub.NextMsg(5 * time.Second); err != nil || string(m.Data) != "x" {
		t.Errorf("a plain client got %v, %v", m, err)
	}
}

func TestListenAddressTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := broker.Config{Dir: t.TempDir(), Listen: l.Addr().String()}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	if b, err := broker.Open(t.Context(), cfg, slog.New(slog.DiscardHandler)); err == nil {
		b.Close()
		t.Error("no error although the configured address is taken")
	} else if !strings.Contains(err.Error(), "broker.embedded.listen") {
		t.Errorf("error %q does not name the key", err)
	}
}

func TestForeignStreamIsLeftAlone(t *testing.T) {
	b := brokertest.New(t)
	ctx := t.Context()
	if err := b.JetStream().DeleteStream(ctx, broker.StreamOps); err != nil {
		t.Fatal(err)
	}
	if _, err := b.JetStream().CreateStream(ctx, jetstream.StreamConfig{Name: broker.StreamOps, Subjects: []string{"theirs"}}); err != nil {
		t.Fatal(err)
	}
	if err := broker.Declare(ctx, b); err == nil || !strings.Contains(err.Error(), "gridfan did not make") {
		t.Errorf("got %v", err)
	}
}

func TestValidate(t *testing.T) {
	for want, c := range map[string]broker.Config{
		"storage.maxBytes":       {MaxBytes: 1},
		"broker.replicas":        {Replicas: 3},
		"broker.credentials":     {Credentials: secret.New("x")},
		"broker.embedded.listen": {Listen: "0.0.0.0:4222"},
		"broker.url":             {URL: "http://x"},
	} {
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want+": ") {
			t.Errorf("want an error at %s, got %v", want, err)
		}
	}
}

func TestServerLogGoesToSlog(t *testing.T) {
	var buf bytes.Buffer
	cfg := broker.Config{Dir: t.TempDir(), Listen: "none"}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := broker.Open(context.Background(), cfg, slog.New(slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	if !strings.Contains(buf.String(), "component=nats-server") {
		t.Error("no line of the server in the log")
	}
}
