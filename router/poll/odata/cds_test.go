//go:build cds

package odata_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/poll/odata"
	"github.com/gridfan/gridfan/router/poll/request"
	"github.com/gridfan/gridfan/schemas/event"
)

var cdsDir = flag.String("cds", "", "a copy of testdata/cds in which its packages are installed")

// cds starts a real OData server, SAP's @sap/cds, on a port of this machine. Its
// traps: links to pages are relative and count rows; times are shown in seconds and
// compared in milliseconds; track-changes and maxpagesize are ignored with 200.
func cds(t *testing.T) (url string) {
	t.Helper()
	cmd := exec.Command("node", filepath.Join(*cdsDir, "node_modules", "@sap", "cds", "bin", "serve.js"), "--in-memory")
	cmd.Dir = *cdsDir
	cmd.Env = append(os.Environ(), "PORT=0", "CDS_TELEMETRY_DISABLED=true")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	found := make(chan string, 1)
	go func() {
		listening := regexp.MustCompile(`listening on .*http://localhost:(\d+)`)
		for s := bufio.NewScanner(out); s.Scan(); {
			if m := listening.FindStringSubmatch(s.Text()); m != nil {
				found <- "http://localhost:" + m[1]
			}
		}
		close(found)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	select {
	case url = <-found:
	case <-time.After(time.Minute):
	}
	if url == "" {
		_ = cmd.Process.Kill()
		t.Fatalf("the server does not start: %s", &said)
	}
	return url
}

// call makes a request of the writer.
func call(t *testing.T, method, url string, body map[string]any) {
	t.Helper()
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			t.Error(err)
			return
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, url, content)
	if err != nil {
		t.Error(err)
		return
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(resp.Body)
	if resp.StatusCode > 299 {
		t.Errorf("%s %s: %s %s", method, url, resp.Status, said)
	}
}

func TestCDS(t *testing.T) {
	url := cds(t)
	cfg := odata.Config{
		Kind: event.KindFnO, Target: request.Target{URL: url + "/data"}, Entity: "Orders", Key: []string{"dataAreaId", "OrderNumber"},
		ModifiedColumn: "ModifiedDateTime", PageSize: 40, Overlap: 3 * time.Second,
	}
	if err := cfg.Validate("p"); err != nil {
		t.Fatal(err)
	}
	f, err := odata.New(cfg, request.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	// The writer goes on while rows are read.
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 5))
	want := map[string]string{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var keys []string
		for i := range 1500 {
			text := fmt.Sprintf("t%d", i)
			if len(keys) < 50 || r.IntN(3) == 0 {
				company, number := []string{"usmf", "demf"}[r.IntN(2)], fmt.Sprintf("PO %d/é", i)
				call(t, http.MethodPost, url+"/data/Orders", map[string]any{"dataAreaId": company, "OrderNumber": number, "RecId": i, "Text": text})
				key := company + "/" + number
				keys, want[key] = append(keys, key), text
				continue
			}
			j := r.IntN(len(keys))
			company, number, _ := strings.Cut(keys[j], "/")
			at := url + "/data/Orders(dataAreaId='" + company + "',OrderNumber='" + strings.NewReplacer(" ", "%20", "/", "%2F", "é", "%C3%A9").Replace(number) + "')"
			if r.IntN(10) == 0 {
				call(t, http.MethodDelete, at, nil)
				delete(want, keys[j])
				keys = append(keys[:j], keys[j+1:]...)
				continue
			}
			call(t, http.MethodPatch, at, map[string]any{"Text": text})
			want[keys[j]] = text
		}
	}()

	got := map[string]string{}
	var cursor json.RawMessage
	pages, rounds := 0, 0
	round := func() {
		for more := true; more; pages++ {
			page, err := f.Fetch(t.Context(), cursor)
			if err != nil {
				t.Fatal(err)
			}
			for _, row := range page.Rows {
				var data struct{ DataAreaID, OrderNumber, Text string }
				if err := json.Unmarshal(row.Data, &data); err != nil {
					t.Fatal(err)
				}
				got[data.DataAreaID+"/"+data.OrderNumber] = data.Text
			}
			cursor, more = page.Next, page.More
		}
		rounds++
	}
	for writing := true; writing; {
		select {
		case <-done:
			writing = false
		default:
		}
		round()
	}
	round()
	for key, text := range want {
		if got[key] != text {
			t.Errorf("%s is %s, read was %q", key, text, got[key])
		}
	}
	t.Logf("%d rows, %d rounds, %d pages", len(want), rounds, pages)
	if rounds < 3 || len(want) < 100 {
		t.Error("there was nothing to read while it was written")
	}
}

// A server that ignores what it was asked for is not taken for one that does it.
func TestCDSDoesNotTrack(t *testing.T) {
	url := cds(t)
	const rows = 1100 // more than it gives on one page
	for i := range rows {
		call(t, http.MethodPost, url+"/data/Orders", map[string]any{"dataAreaId": "usmf", "OrderNumber": fmt.Sprint(i), "RecId": i})
	}
	cfg := odata.Config{
		Kind: event.KindDataverse, Target: request.Target{URL: url + "/data"}, Table: "order", Entity: "Orders", Key: []string{"OrderNumber"},
		ModifiedColumn: "ModifiedDateTime", CreatedColumn: odata.NoColumn,
	}
	tracking := fetcher(t, newClock(), cfg)
	_, err := tracking.Fetch(t.Context(), nil)
	if fault, ok := errors.AsType[*poll.Fault](err); !ok || fault.Kind != poll.Configuration || !strings.Contains(fault.Reason, "does not track changes") {
		t.Errorf("got %v", err)
	}
	cfg.Cursor = odata.Version
	_, err = fetcher(t, newClock(), cfg).Fetch(t.Context(), nil)
	if fault, ok := errors.AsType[*poll.Fault](err); !ok || fault.Kind != poll.Configuration || fault.Status != 400 {
		t.Errorf("without versionnumber: got %v", err)
	}
	cfg.Cursor, cfg.Entity = odata.Modified, "Absent"
	_, err = fetcher(t, newClock(), cfg).Fetch(t.Context(), nil)
	if fault, ok := errors.AsType[*poll.Fault](err); !ok || fault.Kind != poll.Configuration || fault.Status != 404 {
		t.Errorf("no such entity: got %v", err)
	}
	cfg.Entity = "Orders"
	f := fetcher(t, newClock(), cfg)
	// Its links are relative.
	page, err := f.Fetch(t.Context(), nil)
	if err != nil || !page.More {
		t.Fatalf("got %v", err)
	}
	next, err := f.Fetch(t.Context(), page.Next)
	if err != nil || len(page.Rows)+len(next.Rows) != rows || next.More {
		t.Errorf("got %d and %v", len(page.Rows), err)
	}
}
