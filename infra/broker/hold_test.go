package broker_test

import (
	"testing"
	"time"

	"github.com/gridfan/gridfan/infra/broker/brokertest"
)

// What one replica says holds for all, until its time is over; what holds longer stays.
func TestHold(t *testing.T) {
	s := brokertest.NewServer(t)
	a, b := s.Connect(), s.Connect()
	ctx := t.Context()
	if left, _, err := b.Held(ctx, "x"); left != 0 || err != nil {
		t.Fatalf("%s, %v", left, err)
	}
	for range 2 { // the second time where the first one has ended
		began := time.Now()
		first, err := a.Hold(ctx, "x", 1500*time.Millisecond)
		if err != nil || first == 0 {
			t.Fatal(err)
		}
		if n, err := b.Hold(ctx, "x", time.Second); n != 0 || err != nil {
			t.Errorf("a shorter one: %d, %v", n, err)
		}
		left, n, err := b.Held(ctx, "x")
		if err != nil || n != first || left <= 0 || left > 1500*time.Millisecond {
			t.Errorf("%s, %d, %v", left, n, err)
		}
		if left, _, err := b.Held(ctx, "y"); left != 0 || err != nil {
			t.Errorf("another key: %s, %v", left, err)
		}
		for left > 0 {
			time.Sleep(left) // sleep: as one does who is told to wait
			if left, _, err = b.Held(ctx, "x"); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took < 1500*time.Millisecond {
			t.Errorf("it held for %s", took)
		}
	}
	if _, err := a.Hold(ctx, "x", time.Second); err != nil {
		t.Fatal(err)
	}
	if n, err := b.Hold(ctx, "x", time.Hour); n == 0 || err != nil {
		t.Errorf("a longer one: %d, %v", n, err)
	}
	if left, _, err := a.Held(ctx, "x"); left < 59*time.Minute || err != nil {
		t.Errorf("%s, %v", left, err)
	}
}
