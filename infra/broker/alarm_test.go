package broker_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
)

// An operator is told at 70 and at 85 per cent, once each, and when it is over.
func TestAlarms(t *testing.T) {
	b := brokertest.OpenSmall(t, t.TempDir())
	s, err := b.JetStream().Stream(t.Context(), broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	limit := uint64(s.CachedInfo().Config.MaxBytes)
	body := make([]byte, 1<<20)
	fill := func(percent uint64) {
		t.Helper()
		for {
			info, err := s.Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if info.State.Bytes >= limit/100*percent {
				break
			}
			if _, err := b.JetStream().Publish(t.Context(), "events.x", body); err != nil {
				t.Fatal(err)
			}
		}
		broker.Alarm(b)
		broker.Alarm(b) // nothing new
	}
	fill(60)
	fill(71)
	fill(86)
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	broker.Alarm(b)

	want := []string{"gridfan.storage.filling 70", "gridfan.storage.filling 85", "gridfan.storage.easing 0"}
	var got []string
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); len(got) < len(want) && time.Now().Before(deadline); <-tick.C {
		got = reports(t, b)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("reports about EVENTS (-want +got):\n%s", d)
	}
}

// reports are the levels that were reported for EVENTS, to the last one passed.
func reports(t *testing.T, b *broker.Broker) (list []string) {
	t.Helper()
	ops, err := b.JetStream().Stream(t.Context(), broker.StreamOps)
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(1); seq <= ops.CachedInfo().State.LastSeq; seq++ {
		m, err := ops.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		if m.Header.Get("ce-subject") != broker.StreamEvents {
			continue
		}
		var attrs struct{ Percent int }
		if err := json.Unmarshal(m.Data, &attrs); err != nil {
			t.Fatal(err)
		}
		level := 0
		for _, l := range []int{70, 85} {
			if attrs.Percent >= l {
				level = l
			}
		}
		list = append(list, fmt.Sprint(m.Header.Get("ce-type"), " ", level))
	}
	return list
}
