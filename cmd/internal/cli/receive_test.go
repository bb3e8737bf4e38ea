package cli

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/router/receive"
)

func TestWritePartitions(t *testing.T) {
	now := time.Now()
	n := func(i int64) *int64 { return &i }
	before := now.Add(-3 * time.Minute)
	var got []string
	writePartitions(func(name, format string, args ...any) { got = append(got, name+": "+fmt.Sprintf(format, args...)) }, receive.Status{Partitions: []receive.PartitionStatus{
		{Partition: "0", Here: true, Reader: "a", State: receive.Receiving, Sequence: n(41), LastEnqueued: n(44), Lag: n(3), Enqueued: &before},
		{Partition: "1", Reader: "b", State: receive.Failing, Kind: receive.Taken, Reason: "another reader", Missed: 7},
		{Partition: "2", Reader: "b"},
		{Partition: "3", Sequence: n(0)},
	}}, now)
	want := []string{
		"partition 0: receiving here, stored up to event 41 of 3 min ago, 3 behind",
		"partition 1: failing at b, 7 may be missing: another reader",
		"partition 2: connecting at b",
		"partition 3: read by nobody, stored up to event 0",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
