package receive

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/google/go-cmp/cmp"
)

// docs/receiving.md lists the metrics there are, and no others.
func TestMetricsTable(t *testing.T) {
	doc, err := os.ReadFile("../../docs/receiving.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented, there []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(gridfan_[a-z_]+)`").FindAllStringSubmatch(string(doc), -1) {
		documented = append(documented, m[1])
	}
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	m.init("s")
	m.initBlobs("s")
	m.blobRound("s", true)
	m.faults.WithLabelValues("s", string(Storage))
	m.waited.WithLabelValues("s")
	m.reads.WithLabelValues("s")
	m.lag.WithLabelValues("s", "0")
	m.behind.WithLabelValues("s", "0")
	m.missed.WithLabelValues("s")
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		there = append(there, f.GetName())
	}
	slices.Sort(documented)
	slices.Sort(there)
	if d := cmp.Diff(there, documented); d != "" {
		t.Errorf("(-there +documented):\n%s", d)
	}
}
