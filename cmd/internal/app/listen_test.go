package app_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
)

// TestListenerIsForgotten: an external broker forgets the cursor of a listener
// whose gridfan was killed.
func TestListenerIsForgotten(t *testing.T) {
	s := brokertest.NewServer(t)
	file := filepath.Join(t.TempDir(), "gridfan.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `listen: { public: { addr: "127.0.0.1:0" }, admin: { addr: "127.0.0.1:0" } }
broker: { url: %q, durability: sync-always }
%s`, s.URL(), sources), 0o600); err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	listeners := func() (n int) {
		t.Helper()
		stream, err := js.Stream(t.Context(), broker.StreamEvents)
		if err != nil {
			t.Fatal(err)
		}
		list := stream.ConsumerNames(t.Context())
		for name := range list.Name() {
			if strings.HasPrefix(name, "gridfan_listen_") {
				n++
			}
		}
		if err := list.Err(); err != nil {
			t.Fatal(err)
		}
		return n
	}

	c := startChild(t, childGridfan, file)
	mustPost(t, c.addresses.Public, "fo", businessEvent(stamped()))
	client := &admin.Client{URL: "http://" + c.addresses.Admin}
	heard := errors.New("heard")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	gone := make(chan error, 1)
	here := make(chan struct{}, 1)
	go func() {
		gone <- client.Listen(ctx, admin.Listen{From: "beginning"}, func(h admin.Heard) error {
			if h.Sequence > 0 {
				here <- struct{}{}
			}
			return nil
		})
	}()
	select {
	case <-here:
	case err := <-gone:
		t.Fatal(err)
	}
	if n := listeners(); n != 1 {
		t.Errorf("%d cursors while somebody listens", n)
	}
	c.kill()
	if err := <-gone; err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("the listener is not told: %v", err)
	}
	waitFor(t, "the broker has forgotten it", func() bool { return listeners() == 0 })

	// One that comes back hears everything.
	c = startChild(t, childGridfan, file)
	client.URL = "http://" + c.addresses.Admin
	if err := client.Listen(ctx, admin.Listen{From: "1"}, func(h admin.Heard) error {
		if h.Sequence == 1 {
			return heard
		}
		return nil
	}); !errors.Is(err, heard) {
		t.Error(err)
	}
}
