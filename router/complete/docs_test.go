package complete

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// docs/completing.md lists the metrics and the reasons there are, and no others.
func TestDocs(t *testing.T) {
	doc, err := os.ReadFile("../../docs/completing.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := func(pattern string) []string {
		var all []string
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(doc), -1) {
			all = append(all, m[1])
		}
		slices.Sort(all)
		return all
	}
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	m.init("s")
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var there []string
	for _, f := range families {
		there = append(there, f.GetName())
	}
	if d := cmp.Diff(there, documented("(?m)^\\| `(gridfan_[a-z_]+)`")); d != "" {
		t.Errorf("metrics (-there +documented):\n%s", d)
	}
	reasons := []string{reasonLate, reasonGone, reasonDeleted, reasonParameters, reasonLarge, reasonUnread, reasonOld, reasonRoom, reasonAway, reasonOff}
	slices.Sort(reasons)
	words := documented("(?m)^\\| `([a-z-]+)` \\| [a-zA-Z`]")
	words = slices.DeleteFunc(words, func(w string) bool {
		return slices.Contains([]string{"completed", "newer", "incomplete", "incompletereason"}, w)
	})
	if d := cmp.Diff(reasons, words); d != "" {
		t.Errorf("reasons (-there +documented):\n%s", d)
	}
}
