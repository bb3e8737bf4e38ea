package ingress_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/router/auth"
	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/schemas/custom"
	"github.com/gridfan/gridfan/schemas/event"
)

// Published bodies, kept where their own tests are.
const (
	payloadDir   = "../../cmd/internal/app/testdata/payloads"
	dataverseDir = "../../schemas/dataverse/testdata"
)

// everyKind has an open source of each kind.
func everyKind() ingress.Config {
	open := auth.Config{None: true}
	return ingress.Config{
		Since: time.Now().Add(-time.Hour),
		Sources: []ingress.Source{
			{Name: "ce", Kind: event.KindCloudEvents, Auth: open},
			{Name: "dv", Kind: event.KindDataverse, Auth: open},
			{Name: "eg", Kind: event.KindEventGrid, Auth: open},
			{Name: "fo", Kind: event.KindFnO, Auth: open, BusinessKeys: map[string][]string{
				"PurchaseOrderConfirmedBusinessEvent":    {"PurchaseOrderNumber", "TransactionCurrencyAmount"},
				"CustFreeTextInvoicePostedBusinessEvent": {"NoSuchMember"},
			}},
			{Name: "shipments", Kind: event.KindCustom, Auth: open, Mapping: &custom.Mapping{
				Each: ".shipments[]", ID: `"\(.id)-\(.version)"`, Type: `"shipment." + .status`, Time: ".changed",
				Scope: ".site", Subject: ".id", PartitionKey: ".customer // .id", LegalEntity: ".company",
				Action: `"updated"`, Extensions: map[string]string{"freight": ".freight"},
			}},
		},
	}
}

// body reads a published body, and its headers if there are any.
func body(t *testing.T, name string) (string, map[string]string) {
	t.Helper()
	header := map[string]string{}
	read := func(lines []byte) {
		for s := bufio.NewScanner(bytes.NewReader(lines)); s.Scan(); {
			name, value, _ := strings.Cut(s.Text(), ":")
			switch strings.ToLower(name) {
			case "", "host", "content-length", "connection", "accept-encoding":
				// The connection's, not the request's.
			default:
				header[name] = strings.TrimSpace(value)
			}
		}
	}
	if path.Ext(name) == ".txtar" {
		a, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text := ""
		for _, f := range a.Files {
			switch f.Name {
			case "body.json":
				text = string(f.Data)
			case "headers":
				read(f.Data)
			}
		}
		if text == "" {
			t.Fatalf("%s has no body.json", name)
		}
		return text, header
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := os.ReadFile(strings.TrimSuffix(name, ".json") + ".headers")
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	read(lines)
	return string(b), header
}

// TestKinds takes one body of each form through to the stream.
func TestKinds(t *testing.T) {
	e := newEdge(t, brokertest.New(t), everyKind())
	fixture := func(name string) string { b, _ := body(t, name); return b }
	const (
		structured = `{"specversion":"1.0","id":"s-1","source":"/crm/orders","type":"com.contoso.order.placed","time":"2026-11-01T10:00:00+02:00","subject":"o/1","tenant":7,"data":{"n":9007199254740993}}`
		shipments  = `{"shipments":[{"id":"SH-1","version":9007199254740993,"status":"posted","changed":"2026-11-01T10:00:00Z","site":"Hall 7","company":"USMF","freight":120.50}]}`
	)
	for _, tt := range []struct {
		name, source, body string
		header             map[string]string
		subject            string
		want               map[string]string // attributes
		data               string            // empty: not looked at
	}{
		{
			name: "CloudEvents structured", source: "ce", body: structured, header: map[string]string{"Content-Type": "application/cloudevents+json"},
			subject: "events.cloudevents.ce.orders.com.contoso.order.placed",
			want:    map[string]string{"id": "s-1", "source": "/crm/orders", "type": "com.contoso.order.placed", "subject": "o/1", "time": "2026-11-01T10:00:00+02:00", "tenant": "7", "partitionkey": "o/1", "gridfansource": "ce", "via": "push"},
			data:    `{"n":9007199254740993}`,
		},
		{
			name: "CloudEvents batch", source: "ce", body: "[" + strings.Replace(structured, "s-1", "s-2", 1) + "]", header: map[string]string{"Content-Type": "application/cloudevents-batch+json; charset=utf-8"},
			subject: "events.cloudevents.ce.orders.com.contoso.order.placed",
			want:    map[string]string{"id": "s-2"},
		},
		{
			name: "CloudEvents binary", source: "ce", body: "any bytes", header: map[string]string{
				"Content-Type": "text/plain", "ce-specversion": "1.0", "ce-id": "b-1", "ce-source": "/crm/orders", "ce-type": "order.placed", "ce-subject": "caf%C3%A9",
			},
			subject: "events.cloudevents.ce.orders.order.placed",
			want:    map[string]string{"id": "b-1", "subject": "café", "datacontenttype": "text/plain"},
			data:    "any bytes",
		},
		{
			name: "Event Grid schema", source: "eg", body: good("k-1"),
			subject: "events.eventgrid.eg.shop.Order.Placed",
			want:    map[string]string{"id": "k-1", "source": "/topics/shop", "subject": "orders/1", "dataversion": "1"},
			data:    `{"n":1}`,
		},
		{
			name: "custom", source: "shipments", body: shipments,
			subject: "events.custom.shipments.Hall%207.shipment.posted",
			want: map[string]string{
				"id": "SH-1-9007199254740993", "source": "/gridfan/shipments", "type": "shipment.posted", "subject": "SH-1", "time": "2026-11-01T10:00:00Z",
				"partitionkey": "SH-1", "legalentity": "usmf", "action": "updated", "freight": "120.50",
			},
		},
		{
			name: "Dataverse webhook", source: "dv", body: fixture(dataverseDir + "/account-delete-sync.txtar"),
			subject: "events.dataverse.dv.account.Delete",
			want:    map[string]string{"type": "dataverse.account.Delete", "subject": "01b5eeb5-455e-ee11-be6f-000d3a1aaa29", "action": "deleted"},
		},
		{
			name: "Dataverse over the size limit", source: "dv", body: fixture(dataverseDir + "/account-create-oversized-assembled.txtar"),
			header:  map[string]string{"x-ms-dynamics-msg-size-exceeded": "true"},
			subject: "events.dataverse.dv.account.Create",
			want:    map[string]string{"incomplete": "true", "action": "created"},
		},
		{
			name: "Dataverse in an Event Grid event", source: "dv", body: strings.ReplaceAll(fixture(dataverseDir+"/eventgrid-account-delete-object-assembled.txtar"), "071864f2", "171864f2"),
			subject: "events.dataverse.dv.account.Delete",
			want:    map[string]string{"action": "deleted", "envelopesubject": "account/delete"},
		},
		{
			name: "Dataverse as a string in a CloudEvent", source: "dv", body: strings.ReplaceAll(fixture(dataverseDir+"/cloudevents-account-delete-string-assembled.txtar"), "071864f2", "271864f2"),
			subject: "events.dataverse.dv.account.Delete",
			want:    map[string]string{"action": "deleted", "envelopesource": "/crm"},
		},
		{
			name: "F&O with a business key", source: "fo", body: fixture(payloadDir + "/fno-business-events/purchase-order-confirmed.json"),
			subject: "events.fno.fo.brmf.PurchaseOrderConfirmed",
			want: map[string]string{
				"id": "55A81094-A14E-46A6-A12C-07ED5C5990C6", "source": "/d365/fno/fo", "type": "PurchaseOrderConfirmedBusinessEvent",
				"subject": "BRMF-000018/90055.6", "partitionkey": "BRMF-000018/90055.6", "legalentity": "brmf", "sequence": "5637144576",
			},
		},
		{
			name: "F&O without the member that is its business key", source: "fo", body: fixture(payloadDir + "/fno-over-eventgrid/free-text-invoice-array-assembled.json"),
			subject: "events.fno.fo.usmf.CustFreeTextInvoicePosted",
			want:    map[string]string{"type": "CustFreeTextInvoicePostedBusinessEvent", "legalentity": "usmf"},
		},
		{
			name: "F&O data event through Dataverse", source: "fo", body: fixture(dataverseDir + "/fno-data-event-created-assembled.txtar"),
			subject: "events.fno.fo.alas.mserp_custcustomergroupentity.OnExternalCreated",
			want: map[string]string{
				"type": "dataverse.mserp_custcustomergroupentity.OnExternalCreated", "legalentity": "alas", "action": "created",
				"subject": "00004951-0000-0000-5e1a-005001000000", "gridfansource": "fo",
			},
		},
		{
			name: "Dataverse's Event Grid endpoint to an F&O source", source: "fo", body: fixture(dataverseDir + "/eventgrid-account-delete-object-assembled.txtar"),
			subject: "events.fno.fo.-.account.Delete",
			want:    map[string]string{"type": "dataverse.account.Delete"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e.t = t
			before := len(e.stored(broker.StreamEvents))
			a := e.do(request{path: "/ingress/" + tt.source, header: tt.header, body: text(tt.body)})
			if a.status != http.StatusOK || a.field(t, "received") != 1.0 || a.field(t, "published") != 1.0 {
				t.Fatalf("HTTP %d %s", a.status, a.body)
			}
			stored := e.stored(broker.StreamEvents)
			if len(stored) != before+1 {
				t.Fatalf("%d events more are stored, want 1", len(stored)-before)
			}
			m := stored[before]
			if m.Subject != tt.subject {
				t.Errorf("on %q, want %q", m.Subject, tt.subject)
			}
			got, err := event.Decode(m.Header, m.Data)
			if err != nil {
				t.Fatal(err)
			}
			if err := got.Validate(); err != nil {
				t.Error(err)
			}
			has := map[string]string{}
			for name := range tt.want {
				has[name] = attribute(got, name)
			}
			if d := cmp.Diff(tt.want, has); d != "" {
				t.Errorf("attributes (-want +got):\n%s", d)
			}
			if tt.data != "" && string(got.Data) != tt.data {
				t.Errorf("data %s, want %s", got.Data, tt.data)
			}
		})
	}
	e.t = t
	if held := e.stored(broker.StreamQuarantine); len(held) != 0 {
		t.Errorf("%d entries in quarantine", len(held))
	}
}

// attribute is an event's by CloudEvents name.
func attribute(e *event.Event, name string) string {
	switch name {
	case "id":
		return e.ID
	case "source":
		return e.Source
	case "type":
		return e.Type
	case "subject":
		return e.Subject
	case "time":
		return e.Time.Format(time.RFC3339Nano)
	case "datacontenttype":
		return e.DataContentType
	}
	return e.Get(name)
}

// TestPublishedBodies posts everything that Microsoft or a user published to
// the kinds of source it is for: it is answered 200 and understood.
func TestPublishedBodies(t *testing.T) {
	sources := map[string][]string{ // by folder
		"eventgrid":           {"eg"},
		"cloudevents":         {"ce", "eg"},
		"fno-business-events": {"fo"},
		"fno-over-eventgrid":  {"fo", "eg"},
		"dataverse":           {"dv"},
	}
	// Samples that are no events: schemas with empty values.
	quarantined := map[string]float64{
		"fno-business-events/batch-job-schema-sample.json":         1,
		"fno-business-events/dmf-import-status-schema-sample.json": 1,
	}
	var files []string
	collect := func(dir, ext string) {
		err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err == nil && path.Ext(name) == ext && !strings.HasSuffix(name, ".response.json") {
				files = append(files, filepath.ToSlash(name))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	collect(payloadDir, ".json")
	collect(dataverseDir, ".txtar")
	if len(files) < 50 {
		t.Fatalf("only %d published bodies found", len(files))
	}
	e := newEdge(t, brokertest.New(t), everyKind())
	for _, file := range files {
		content, header := body(t, file)
		name := strings.TrimPrefix(file, payloadDir+"/")
		folder := path.Dir(name)
		if path.Ext(file) == ".txtar" {
			name, folder = "dataverse/"+path.Base(file), "dataverse"
		}
		targets := sources[folder]
		if targets == nil {
			t.Errorf("%s: no source takes this folder", name)
		}
		if strings.HasPrefix(name, "dataverse/fno-") {
			targets = append(targets, "fo")
		}
		for _, source := range targets {
			t.Run(fmt.Sprint(name, " to ", source), func(t *testing.T) {
				e.t = t
				a := e.do(request{path: "/ingress/" + source, header: header, body: text(content)})
				if a.status != http.StatusOK {
					t.Fatalf("HTTP %d %s", a.status, a.body)
				}
				if strings.Contains(name, "subscription-validation") {
					if a.field(t, "validationResponse") == nil {
						t.Errorf("answer %s", a.body)
					}
				} else if a.field(t, "quarantined") != quarantined[name] || a.field(t, "received") == 0.0 {
					t.Errorf("answer %s", a.body)
				}
			})
		}
	}
}

// TestReparse reads what is in quarantine once more: with the headers that
// were kept, it is what it was.
func TestReparse(t *testing.T) {
	e := newEdge(t, brokertest.New(t), everyKind())
	content, _ := body(t, dataverseDir+"/account-delete-sync.txtar")
	header := map[string]string{"x-ms-dynamics-msg-size-exceeded": "1", "webhook-signature": canary}
	if a := e.do(request{path: "/ingress/eg", header: header, body: text(content)}); a.field(t, "quarantined") != 1.0 {
		t.Fatalf("answer %s", a.body)
	}
	held := e.stored(broker.StreamQuarantine)
	kept := map[string]string{}
	for name, values := range held[0].Header {
		if name, ok := strings.CutPrefix(name, "Gridfan-Request-"); ok {
			kept[strings.ToLower(name)] = values[0]
		}
	}
	if kept["x-ms-dynamics-msg-size-exceeded"] != "1" {
		t.Errorf("kept of the headers: %v", kept)
	}
	if strings.Contains(fmt.Sprint(kept), canary) {
		t.Errorf("a signature is kept: %v", kept)
	}
	o, results, ok := e.in.Reparse("dv", kept, held[0].Data)
	if !ok || o.Source != "dv" || o.Kind != event.KindDataverse || len(results) != 1 || results[0].Event == nil {
		t.Fatalf("read again: %+v %+v %v", o, results, ok)
	}
	if got := results[0].Event; got.Type != "dataverse.account.Delete" {
		t.Errorf("read again: %+v", got)
	}
	if _, _, ok := e.in.Reparse("nobody", nil, nil); ok {
		t.Error("a source that is gone reads")
	}
}

// TestCustomTopic: a topic with a custom input schema delivers mapped bodies,
// and still speaks of the subscription in Event Grid's own schema.
func TestCustomTopic(t *testing.T) {
	cfg := ingress.Config{Since: time.Now().Add(-time.Hour), Sources: []ingress.Source{
		{Name: "own", Kind: event.KindCustom, Auth: auth.Config{None: true}, Mapping: &custom.Mapping{ID: ".no", Type: ".what"}},
	}}
	e := newEdge(t, brokertest.New(t), cfg)
	const validation = `[{"id":"1","topic":"/t","subject":"","eventType":"Microsoft.EventGrid.SubscriptionValidationEvent","eventTime":"2026-11-01T10:00:00Z","data":{"validationCode":"c0de"}}]`
	a := e.do(request{path: "/ingress/own", header: map[string]string{"aeg-event-type": "SubscriptionValidation"}, body: text(validation)})
	if a.status != http.StatusOK || a.field(t, "validationResponse") != "c0de" {
		t.Errorf("validation: HTTP %d %s", a.status, a.body)
	}
	a = e.do(request{path: "/ingress/own", header: map[string]string{"aeg-event-type": "Notification"}, body: text(`[{"no":"7","what":"order.placed"}]`)})
	if a.status != http.StatusOK || a.field(t, "published") != 1.0 {
		t.Errorf("event: HTTP %d %s", a.status, a.body)
	}
	// The header alone makes no control event of a body that is none.
	a = e.do(request{path: "/ingress/own", header: map[string]string{"aeg-event-type": "SubscriptionValidation"}, body: text(`[{"no":"8","what":"order.placed"}]`)})
	if a.status != http.StatusOK || a.field(t, "published") != 1.0 {
		t.Errorf("event with a strange header: HTTP %d %s", a.status, a.body)
	}
}
