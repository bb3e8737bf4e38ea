package broker_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
)

func TestLeaseGoesFromOneToTheNext(t *testing.T) {
	s := brokertest.NewServer(t)
	a, b := s.Connect(), s.Connect()
	log := slog.New(slog.DiscardHandler)
	first, err := a.Lease(t.Context(), "x", log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second) // longer than it lasts unrenewed
	defer cancel()
	if l, err := b.Lease(ctx, "x", log); err == nil {
		l.Release()
		t.Fatal("two hold it")
	}
	if first.Context().Err() != nil {
		t.Fatal("it was lost although nobody else could have it")
	}
	first.Release()
	second, err := b.Lease(t.Context(), "x", log)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Release()
	other, err := a.Lease(t.Context(), "y", log)
	if err != nil {
		t.Fatal(err)
	}
	other.Release()
}

func TestLeaseIsLostWithTheServer(t *testing.T) {
	s := brokertest.NewServer(t)
	a := s.Connect()
	l, err := a.Lease(t.Context(), "x", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	s.Stop()
	select {
	case <-l.Context().Done():
	case <-time.After(10 * time.Second):
		t.Fatal("still held without a server")
	}
}

func TestTryLease(t *testing.T) {
	s := brokertest.NewServer(t)
	one, two, third := s.Connect(), s.Connect(), s.Connect()
	ctx := t.Context()
	kv, err := two.JetStream().KeyValue(ctx, broker.BucketLeases)
	if err != nil {
		t.Fatal(err)
	}
	const ttl = time.Second
	take := func(b *broker.Broker) *broker.Lease {
		t.Helper()
		l, err := b.TryLease(ctx, "k", ttl)
		if err != nil || l == nil {
			t.Fatalf("not taken: %v, %v", l, err)
		}
		return l
	}
	held := func(l *broker.Lease) bool { return l.Context().Err() == nil }
	try := func() bool {
		t.Helper()
		l, err := two.TryLease(ctx, "k", ttl)
		if err != nil {
			t.Fatal(err)
		}
		if l != nil {
			l.Release()
		}
		return l != nil
	}
	waitFor := func(what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !done(); {
			if time.Now().After(deadline) {
				t.Fatalf("timed out waiting for %s", what)
			}
			time.Sleep(5 * time.Millisecond) // sleep: polling with a deadline
		}
	}
	// It outlives its time while it is renewed.
	a := take(one)
	for end := time.Now().Add(2 * ttl); time.Now().Before(end); {
		if try() {
			t.Fatal("two hold it")
		}
		time.Sleep(20 * time.Millisecond) // sleep: over two of its lives
	}
	if !held(a) {
		t.Fatal("lost although it was renewed")
	}
	// Given back it is free at once; not renewed it is free after a while.
	a.Release()
	if !try() {
		t.Error("not free after it was given back")
	}
	a = take(one)
	a.Abandon()
	if try() {
		t.Error("free while the dead holder could still be alive")
	}
	waitFor("its end", try)

	// Taken away, its holder notices.
	a = take(one)
	if err := kv.Delete(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	waitFor("the holder notices", func() bool { return !held(a) })
	a.Release()

	// Cut off from the server, the holder gives up before the server does.
	a = take(third)
	third.Close()
	for {
		_, err := kv.Get(ctx, "k")
		still := held(a)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			if still {
				t.Error("the server gave it up before its holder")
			}
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond) // sleep: until the server gives it up
	}
	a.Release()
}
