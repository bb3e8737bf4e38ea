package app_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// Events from 100 bytes to 4 MB, alone and in the largest batches Event Grid
// sends, arrive as they were sent.
func TestSizes(t *testing.T) {
	in := newInbox(t)
	g := start(t, `sources:
  eg: { kind: eventgrid, push: { auth: none }, limits: { body: 7MiB } }
  fo: { kind: fno, push: { auth: none } }
`, "subscribers:\n"+subscriber("all", in.url+"/all", ""))
	element := func(id string, size int) (body, data []byte) {
		data = fmt.Appendf(nil, `{"filler":%q}`, strings.Repeat("ü", (size+1)/2))
		return fmt.Appendf(nil, `{"id":%q,"topic":"/t","subject":"s/%s","eventType":"T","eventTime":"2026-11-01T10:00:00Z","dataVersion":"","data":%s}`, id, id, data), data
	}
	want := map[string][]byte{}
	post := func(ids []string, size int) {
		t.Helper()
		var elements [][]byte
		for _, id := range ids {
			body, data := element(id, size)
			elements = append(elements, body)
			want[id] = data
		}
		body := append(append([]byte("["), bytes.Join(elements, []byte(","))...), ']')
		if a := g.post("eg", nil, body); a.status != http.StatusOK {
			t.Fatalf("%d events of %d bytes: HTTP %d %s", len(ids), size, a.status, a.body)
		}
	}
	for _, size := range []int{100, 1 << 10, 64 << 10, 1 << 20, 4 << 20} {
		post(names(fmt.Sprint("one-", size), 1), size)
	}
	post(names("many", 5000), 20)   // Event Grid's largest number
	post(names("full", 15), 64<<10) // and its largest body, 1 MB
	post(names("large", 6), 1<<20)

	ids := make([]string, 0, len(want))
	for id := range want {
		ids = append(ids, id)
	}
	in.wantOnce(t, "all", ids)
	for _, r := range in.of("all") {
		if !bytes.Equal(r.data, want[r.id()]) {
			t.Errorf("%s arrived with %d bytes, want %d", r.id(), len(r.data), len(want[r.id()]))
		}
	}
}
