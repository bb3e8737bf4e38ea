package schematest

import (
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// Bench measures what one event of a request costs a parser. The request must
// be n events.
func Bench(b *testing.B, p Parser, header map[string][]string, body []byte, n int) {
	b.Helper()
	for _, r := range p(Source, header, body) {
		if r.Event == nil {
			b.Fatalf("no event: %s", Brief(r))
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	events := 0
	for b.Loop() {
		events += len(p(Source, header, body))
	}
	runtime.ReadMemStats(&after)
	if events != n*b.N {
		b.Fatalf("got %d events of %d requests, want %d of each", events, b.N, n)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(events), "ns/event")
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(events), "allocs/event")
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(events), "B/event")
	b.ReportMetric(0, "ns/op")
}

// Batch repeats an element n times, as an array. Each has its number in place
// of every "%d".
func Batch(element string, n int) []byte {
	body := []byte{'['}
	for i := range n {
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, strings.ReplaceAll(element, "%d", strconv.Itoa(i))...)
	}
	return append(body, ']')
}
