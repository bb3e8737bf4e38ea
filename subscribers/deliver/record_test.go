package deliver

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestRecordLine compares a line with what encoding/json makes of the record,
// which everybody who reads ATTEMPTS relies on.
func TestRecordLine(t *testing.T) {
	at := time.Date(2026, 11, 1, 10, 0, 0, 120_000_000, time.FixedZone("", 3600))
	next := at.Add(time.Minute)
	for _, r := range []Record{
		{},
		{Subscriber: "erp", Sequence: 1<<64 - 1, Hop: -1, ID: "e-1", Subject: "events.a", Outcome: RecordDelivered, Attempts: 1, Status: 200, Millis: 12, Time: at},
		{
			Subscriber: "erp", Sequence: 7, Hop: 3, ID: `a "quoted" \ id` + "\n\x00\u00e9\U0001f600", Subject: "events.a", Outcome: RecordRetry, Attempts: 4,
			Status: 503, Fault: FaultServer, Reason: "HTTP 503: \"busy\"", Millis: 5, Cause: "exhausted", Probe: true, Time: at, Next: &next,
			Earlier: []Try{{Time: at, Status: 500, Fault: FaultServer, Reason: "HTTP 500", Millis: 1}, {Time: at.UTC(), Fault: FaultTimeout}},
		},
	} {
		want, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		got := string(r.appendTo([]byte("before ")))
		if d := cmp.Diff("before "+string(want)+"\n", got); d != "" {
			t.Errorf("-want +got\n%s", d)
		}
	}
	// What JSON can't hold is replaced, and what HTML would mind is not escaped.
	line := (&Record{Reason: "<a & b> \xff"}).appendTo(nil)
	records, err := ParseRecords(line)
	if err != nil || len(records) != 1 || records[0].Reason != "<a & b> \ufffd" {
		t.Errorf("%s: %+v, %v", line, records, err)
	}
}
