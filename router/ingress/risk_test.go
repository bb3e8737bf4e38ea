package ingress_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gridfan/gridfan/router/ingress"
)

// gauge reads one series of a source.
func (e *edge) gauge(name, source string) float64 {
	e.t.Helper()
	families, err := e.reg.Gather()
	if err != nil {
		e.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "source" && l.GetValue() == source {
					return m.GetGauge().GetValue()
				}
			}
		}
	}
	e.t.Fatalf("no %s of source %s", name, source)
	return 0
}

// TestRiskGauges show a source as Event Grid sees it.
func TestRiskGauges(t *testing.T) {
	e := open(t)
	want := func(source string, share, deliveries float64) {
		t.Helper()
		if got := e.gauge("gridfan_ingress_failed_share", source); got != share {
			t.Errorf("%s: failed share %v, want %v", source, got, share)
		}
		if got := e.gauge("gridfan_ingress_delivery_count", source); got != deliveries {
			t.Errorf("%s: delivery count %v, want %v", source, got, deliveries)
		}
	}
	for _, source := range []string{"eg", "fo", "shop"} {
		want(source, 0, 0) // they exist from the start
	}
	send := func(deliveries, body string) {
		e.do(request{path: "/ingress/eg", header: map[string]string{"aeg-delivery-count": deliveries}, body: text(body)})
	}
	send("0", good("g1"))
	send("3", good("g2"))
	send("2", "kept in quarantine, which Event Grid counts as delivered")
	send("many", good("g3"))
	want("eg", 0, 3)
	send("7", strings.Repeat(" ", 5<<20)) // 413
	want("eg", 0.2, 7)
	// Strangers are not what Event Grid sees.
	e.do(request{path: "/ingress/shop", header: map[string]string{"aeg-delivery-count": "9"}, body: text(good("g4"))})
	want("shop", 0, 0)
	e.do(request{method: http.MethodOptions, path: "/ingress/eg"}) // no delivery
	want("eg", 0.2, 7)
	want("fo", 0, 0)
}

// TestRiskWindow forgets after five minutes.
func TestRiskWindow(t *testing.T) {
	at := time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)
	type answer struct {
		after time.Duration
		code  int
		took  time.Duration
		count int
	}
	for _, tt := range []struct {
		name       string
		answers    []answer
		read       time.Duration
		share      float64
		deliveries int
	}{
		{name: "nothing"},
		{name: "200 to 204 in time", answers: []answer{{0, 200, 30 * time.Second, 0}, {0, 204, 0, 0}}},
		{name: "too slow", answers: []answer{{0, 200, 30*time.Second + 1, 0}, {0, 200, time.Second, 0}}, share: .5},
		{name: "what Event Grid counts as failed", answers: []answer{{0, 205, 0, 0}, {0, 302, 0, 0}, {0, 401, 0, 0}, {0, 413, 0, 0}, {0, 503, 0, 0}}, share: 1},
		{name: "the highest delivery count", answers: []answer{{0, 200, 0, 4}, {time.Minute, 200, 0, 2}}, read: 2 * time.Minute, deliveries: 4},
		{name: "within five minutes", answers: []answer{{0, 503, 0, 9}, {2 * time.Minute, 200, 0, 1}}, read: 4*time.Minute + 59*time.Second, share: .5, deliveries: 9},
		{name: "after five minutes", answers: []answer{{0, 503, 0, 9}, {2 * time.Minute, 200, 0, 1}}, read: 5 * time.Minute, deliveries: 1},
		{name: "a minute is used again", answers: []answer{{0, 503, 0, 9}, {5 * time.Minute, 200, 0, 1}}, read: 5 * time.Minute, deliveries: 1},
		{name: "long after", answers: []answer{{0, 503, 0, 9}}, read: time.Hour},
	} {
		var k ingress.Risk
		for _, a := range tt.answers {
			r := httptest.NewRequest(http.MethodPost, "/", nil)
			r.Header.Set("aeg-delivery-count", strconv.Itoa(a.count))
			k.Add(r, a.code, a.took, at.Add(a.after))
		}
		if share, deliveries := k.Read(at.Add(tt.read)); fmt.Sprint(share, deliveries) != fmt.Sprint(tt.share, tt.deliveries) {
			t.Errorf("%s: share %v, deliveries %v; want %v, %v", tt.name, share, deliveries, tt.share, tt.deliveries)
		}
	}
}
