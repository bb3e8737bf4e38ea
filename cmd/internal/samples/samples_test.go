package samples_test

import (
	"bytes"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/cmd/internal/samples"
	"github.com/gridfan/gridfan/schemas/businessevent"
	"github.com/gridfan/gridfan/schemas/cloudevents"
	"github.com/gridfan/gridfan/schemas/custom"
	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
)

var now = time.Date(2026, 11, 2, 12, 34, 56, 123456700, time.FixedZone("", 3600))

func parse(s samples.Sample, header http.Header, body []byte) []event.Result {
	switch s.Kind {
	case event.KindFnO:
		return businessevent.Parse("prod", header, body)
	case event.KindDataverse:
		return dataverse.Parse("crm", header, body)
	case event.KindCloudEvents:
		return cloudevents.Parse("shop", header, body)
	case event.KindCustom:
		// As its description says.
		p, err := custom.Compile(custom.Mapping{ID: ".runId", Type: ".event", Time: ".sentAt"})
		if err != nil {
			panic(err) // panic: the mapping is a constant
		}
		return p.Parse("wms", header, body)
	}
	return eventgrid.Parse("files", header, body)
}

// want is what each sample becomes: NATS subjects, or the kind of a control.
var want = map[string][]string{
	"account-updated":          {"events.dataverse.src.account.Update"},
	"flow-shipment-posted":     {"events.custom.src.-.shipment.posted"},
	"order-placed-binary":      {"events.cloudevents.src.orders.com.example.placed"},
	"alert":                    {"events.fno.src.-.BusinessEventsAlertEvent"},
	"batch-of-three":           {"events.eventgrid.src.myaccount.Microsoft.Storage.BlobCreated", "events.eventgrid.src.myaccount.Microsoft.Storage.BlobDeleted", "events.eventgrid.src.myaccount.Microsoft.Storage.BlobDeleted"},
	"blob-created":             {"events.eventgrid.src.myaccount.Microsoft.Storage.BlobCreated"},
	"blob-created-cloudevents": {"events.eventgrid.src.myaccount.Microsoft.Storage.BlobCreated"},
	"blob-deleted":             {"events.eventgrid.src.myaccount.Microsoft.Storage.BlobDeleted"},
	"customer-changed":         {"events.fno.src.0031.FFYCustomerChanged"},
	"dmf-import-status":        {"events.fno.src.usmf.NAVAXDMFImportStatus"},
	"endpoint-test":            {"test"},
	"free-text-invoice-posted": {"events.fno.src.usmf.CustFreeTextInvoicePosted"},
	"invoice-over-eventgrid":   {"events.fno.src.usmf.CustFreeTextInvoicePosted"},
	"purchase-order-confirmed": {"events.fno.src.usmf.PurchaseOrderConfirmed"},
	"resource-write-success":   {"events.eventgrid.src.319a9601-1ec0-0000-aebc-8fe82724c81e.Microsoft.Resources.ResourceWriteSuccess"},
	"subscription-deleted":     {"deletion"},
	"validation":               {"validation"},
}

func TestSamples(t *testing.T) {
	for _, s := range samples.All() {
		t.Run(s.Name, func(t *testing.T) {
			header, body := s.Request(now)
			if bytes.Contains(body, []byte("{{")) {
				t.Errorf("a placeholder is left in %s", body)
			}
			if header.Get("Content-Type") == "" {
				t.Error("no content type")
			}
			var got []string
			for _, r := range parse(s, header, body) {
				switch {
				case r.Fault != nil:
					t.Errorf("fault: %v", r.Fault)
				case r.Control != nil:
					got = append(got, string(r.Control.Kind))
				default:
					got = append(got, event.Subject(s.Kind, "src", r.Scope, r.Name))
					// /Date()/ in F&O's bodies has whole seconds.
					if d := now.Sub(r.Event.Time); d < 0 || d >= time.Second {
						t.Errorf("got time %s, want %s", r.Event.Time, now)
					}
				}
				if (r.Control != nil) != s.Control {
					t.Errorf("Control is %t", s.Control)
				}
			}
			if d := cmp.Diff(want[s.Name], got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestEvents: what a sample becomes without a gridfan is what it becomes with one.
func TestEvents(t *testing.T) {
	for _, s := range samples.All() {
		events, err := s.Events("src", now)
		if err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
		var got []string
		for _, e := range events {
			got = append(got, e.Subject)
			if err := e.Event.Validate(); err != nil {
				t.Errorf("%s: %v", s.Name, err)
			}
		}
		subjects := want[s.Name]
		if s.Control {
			subjects = nil
		}
		if d := cmp.Diff(subjects, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", s.Name, d)
		}
	}
}

func TestEachRequestIsAnotherEvent(t *testing.T) {
	for _, s := range samples.All() {
		keys := map[string]bool{}
		n := 0
		for range 2 {
			header, body := s.Request(now)
			for _, r := range parse(s, header, body) {
				if r.Event != nil {
					keys[r.Key] = true
					n++
				}
			}
		}
		if len(keys) != n {
			t.Errorf("%s: %d events have %d identities", s.Name, n, len(keys))
		}
	}
}

func TestNames(t *testing.T) {
	names := samples.Names()
	if sorted := slices.Compact(slices.Sorted(slices.Values(names))); !cmp.Equal(sorted, names) {
		t.Errorf("not sorted or not unique: %v", names)
	}
	var listed []string
	for _, s := range samples.All() {
		listed = append(listed, s.Name)
		if s.Description == "" || strings.Contains(s.Description, "\n") {
			t.Errorf("%s: got description %q, want one line", s.Name, s.Description)
		}
		if found, ok := samples.Find(s.Name); !ok || found.Name != s.Name {
			t.Errorf("%s is not found", s.Name)
		}
	}
	if d := cmp.Diff(names, listed); d != "" {
		t.Errorf("All lists others than Names (-names +all):\n%s", d)
	}
	if _, ok := samples.Find("purchase"); ok {
		t.Error("half a name is found")
	}

	var files []string
	paths, err := fs.Glob(os.DirFS("bodies"), "*")
	if err != nil {
		t.Fatal(err)
	}
	sources, err := os.ReadFile("SOURCES.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		name := strings.TrimSuffix(p, filepath.Ext(p))
		files = append(files, name)
		if !strings.Contains(string(sources), "| "+name+" |") {
			t.Errorf("SOURCES.md does not say where %s comes from", name)
		}
	}
	slices.Sort(files)
	if d := cmp.Diff(names, files); d != "" {
		t.Errorf("files in bodies (-names +files):\n%s", d)
	}
}
