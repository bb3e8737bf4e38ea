package broker_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

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
