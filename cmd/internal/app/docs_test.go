package app_test

import (
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gridfan/gridfan/router/poll"
)

// TestMetricsTable wants docs/metrics.md to list the metrics there are, and no
// others.
func TestMetricsTable(t *testing.T) {
	doc, err := os.ReadFile("../../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(gridfan_[a-z_]+)`").FindAllStringSubmatch(string(doc), -1) {
		documented = append(documented, m[1])
	}
	in := newInbox(t)
	e := newEstate(t)
	_, commit := e.Create("a row")
	commit()
	g := start(t, sources+e.source("crm", ""), "subscribers:\n"+subscriber("a", in.url+"/a", "")+
		`  b: { subjects: [ "events.eventgrid.>" ], deliver: { pull: {} } }`)
	event := names("METRIC", 1)
	g.accept(event...)
	in.wantOnce(t, "a", event)
	g.drained()
	if s := g.state("crm", poll.Polling); s.Poll.Remembered == 0 {
		t.Errorf("no row was read: %+v", s.Poll)
	}
	resp, err := http.Get(g.admin.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var there []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 2 && f[1] == "TYPE" && strings.HasPrefix(f[2], "gridfan_") {
			there = append(there, f[2])
		}
	}
	slices.Sort(documented)
	slices.Sort(there)
	if !slices.Equal(documented, there) {
		t.Errorf("docs/metrics.md has\n%s\nand /metrics has\n%s", strings.Join(documented, "\n"), strings.Join(there, "\n"))
	}
}
