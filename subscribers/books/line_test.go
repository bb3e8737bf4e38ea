package books

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

func block(t testing.TB, records ...deliver.Record) []byte {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, r := range records {
		if err := enc.Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func TestLine(t *testing.T) {
	at := time.Date(2026, 11, 23, 5, 0, 0, 123456789, time.FixedZone("", 3600))
	tests := []struct {
		name string
		r    deliver.Record
		want line
	}{
		{"delivered", deliver.Record{Subscriber: "a", Sequence: 17, ID: `x"y\`, Outcome: deliver.RecordDelivered, Attempts: 1, Status: 200, Time: at},
			line{outcome: []byte("delivered"), sequence: 17, attempts: 1}},
		{"earlier ones", deliver.Record{Subscriber: "a", Sequence: 1, Hop: 3, Outcome: deliver.RecordRetry, Attempts: 9, Status: 503,
			Reason: `said {"earlier":[{},{}]}`, Earlier: []deliver.Try{{Reason: `}{"`}, {Reason: "]"}}, Time: at, Next: &at},
			line{outcome: []byte("retry"), sequence: 1, hop: 3, attempts: 3}},
		{"broken", deliver.Record{Subscriber: "a", Sequence: 18446744073709551615, Hop: -1, Outcome: deliver.RecordDeadLetter, Time: at},
			line{outcome: []byte("dead-letter"), sequence: 18446744073709551615, hop: -1}},
		{"refused", deliver.Record{Subscriber: "a", Outcome: deliver.RecordDeadLetter, Status: 422, Millis: 3, Fault: deliver.FaultRefused, Time: at},
			line{outcome: []byte("dead-letter"), attempts: 1}},
		{"filtered", deliver.Record{Subscriber: "a", Outcome: deliver.RecordFiltered, Time: at}, line{outcome: []byte("filtered")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.want.subscriber, tt.want.time = []byte("a"), at
			var got []line
			if n := eachLine(append(block(t, tt.r), "\n{\"subscriber\":\"b\"}\n[]\n"...), func(l line) { got = append(got, l) }); n != 2 {
				t.Errorf("%d unreadable lines, want 2", n)
			}
			if d := cmp.Diff([]line{tt.want}, got, cmp.AllowUnexported(line{}), cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// FuzzLine compares the quick way with encoding/json's.
func FuzzLine(f *testing.F) {
	for _, r := range []deliver.Record{
		{Subscriber: "a", Sequence: 17, ID: `x"y\`, Outcome: "delivered", Attempts: 1, Status: 200, Time: time.Unix(1, 2).UTC()},
		{Subscriber: "b", Sequence: 1, Hop: -1, Outcome: "retry", Fault: "tls", Earlier: []deliver.Try{{Reason: `}{"`}}, Time: time.Unix(1, 2)},
	} {
		f.Add(bytes.TrimSpace(block(f, r)))
	}
	f.Add([]byte(`{"subscriber":"a","seq":17,"hop":0,"outcome":"` + "\xff" + `delivered","time":"1970-01-01T00:00:01Z"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		quick, ok := scanLine(text)
		if !ok || !json.Valid(text) {
			return // then encoding/json decides
		}
		var members map[string]json.RawMessage
		if json.Unmarshal(text, &members) != nil || bytes.Count(text, []byte(`":`)) != len(members) {
			return // a name twice, or objects inside: nobody writes that
		}
		slow, ok := decodeLine(text)
		if !ok {
			return
		}
		if d := cmp.Diff(slow, quick, cmp.AllowUnexported(line{}), cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })); d != "" {
			t.Errorf("%s (-encoding/json +quick):\n%s", text, d)
		}
	})
}

// BenchmarkFoldEvents is what one event costs when it is folded, with so many
// subscribers of which all want it, and a hundred subjects.
func BenchmarkFoldEvents(b *testing.B) {
	for _, n := range []int{3, 100, 1000} {
		b.Run(fmt.Sprintf("subscribers=%d", n), func(b *testing.B) {
			f := newFold(&sums{})
			for i := range n {
				a := &account{Name: fmt.Sprintf("s%d", i), Interest: []registry.Epoch{{From: 1, Subjects: []string{"events.fno.prod.>"}}}}
				f.Accounts = append(f.Accounts, a)
			}
			f.index()
			subjects := make([]string, 100)
			for i := range subjects {
				subjects[i] = fmt.Sprintf("events.fno.prod.usmf.Thing%d", i)
			}
			now := time.Now()
			b.ReportAllocs()
			seq := uint64(1)
			for b.Loop() {
				f.event(seq, subjects[seq%100], "prod", false, now)
				seq++
				if seq%eventsBatch == 0 {
					f.flush()
				}
			}
		})
	}
}

// BenchmarkFoldRecords is what one record costs.
func BenchmarkFoldRecords(b *testing.B) {
	for _, n := range []int{3, 100, 1000} {
		b.Run(fmt.Sprintf("subscribers=%d", n), func(b *testing.B) {
			f := newFold(&sums{})
			var records []deliver.Record
			for i := range n {
				f.Accounts = append(f.Accounts, &account{Name: fmt.Sprintf("s%d", i)})
			}
			f.index()
			for i := range 1000 {
				records = append(records, deliver.Record{
					Subscriber: fmt.Sprintf("s%d", i%n), Sequence: uint64(i), ID: "5F3C6E0A-7B7D-4B6B-9C0B-7D2E0A5C1B11",
					Subject: "events.fno.prod.usmf.PurchaseOrderConfirmed", Outcome: deliver.RecordDelivered, Attempts: 1, Status: 200, Millis: 12, Time: time.Now(),
				})
			}
			text := block(b, records...)
			b.SetBytes(int64(len(text) / 1000))
			b.ReportAllocs()
			for b.Loop() {
				eachLine(text, f.record)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/record")
		})
	}
}

// TestEpochs changes what a subscriber wants from some event on, before and
// after the fold has passed it.
func TestEpochs(t *testing.T) {
	to := []registry.Epoch{
		{From: 3, Subjects: []string{"events.a.x"}}, {From: 10, Subjects: []string{"events.>"}}, {From: 20, Subjects: []string{"events.b.x"}},
	}
	count := func(epochs []registry.Epoch) (n int64) {
		for seq := uint64(1); seq <= 30; seq++ {
			if registry.Wants(epochs, []string{"events.a.x", "events.b.x"}[seq%2], seq) {
				n++
			}
		}
		return n
	}
	for at := uint64(1); at <= 31; at++ {
		f := newFold(&sums{Events: position{Next: 1}})
		a := &account{Name: "s", Interest: to[:1]}
		f.Accounts = append(f.Accounts, a)
		f.index()
		for seq := uint64(1); seq <= 30; seq++ {
			if seq == at {
				f.flush()
				a.change(to, f.Events.Next)
				f.index()
			}
			f.event(seq, []string{"events.a.x", "events.b.x"}[seq%2], "", true, time.Time{})
			f.Events.Next = seq + 1
		}
		f.flush()
		if at == 31 {
			a.change(to, f.Events.Next)
		}
		for len(a.Gaps) > 0 {
			for seq := a.Gaps[0].From; seq <= a.Gaps[0].Through; seq++ {
				a.recount([]string{"events.a.x", "events.b.x"}[seq%2], seq)
			}
			a.Gaps = a.Gaps[1:]
		}
		if want := count(to); a.Counts.Matched != want {
			t.Errorf("changed at %d: matched %d, want %d", at, a.Counts.Matched, want)
		}
	}
}
