package app_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/gridfan/gridfan/infra/broker"
)

// wanted is one event that a payload must become. It was written down by hand
// from the payload and from the table of attributes and subjects in the
// documentation.
type wanted struct {
	element int // of the request
	id      string
	typ     string
	time    string // empty: the sender names none
	subject string // on NATS
	entity  string // legal entity
}

// payloadCase is one file of testdata/payloads, posted to a source.
type payloadCase struct {
	file   string
	source string
	events []wanted
	// What else the answer counts, and the code a validation is answered with.
	duplicate, control, quarantined int
	validation                      string
}

const reusedID = "7b11c4ce-1c34-4416-848b-1730e766f126"

var payloads = []payloadCase{
	{file: "eventgrid/acs-incoming-call-not-in-array", source: "eg", events: []wanted{
		{0, "e80026e7-e298-46ba-bc42-dab0eda92581", "Microsoft.Communication.IncomingCall", "2023-04-04T17:18:42.5542219Z", "events.eventgrid.eg.{communication-services-resource-name}.Microsoft.Communication.IncomingCall", ""},
	}},
	// The third element is the second one once more, byte for byte.
	{file: "eventgrid/batch-of-three", source: "eg", duplicate: 1, events: []wanted{
		{0, "602a88ef-0001-00e6-1233-1646070610ea", "Microsoft.Storage.BlobCreated", "2017-08-16T01:57:26.005121Z", "events.eventgrid.eg.myaccount.Microsoft.Storage.BlobCreated", ""},
		{1, "4c2359fe-001e-00ba-0e04-58586806d298", "Microsoft.Storage.BlobDeleted", "2017-11-07T20:09:22.5674003Z", "events.eventgrid.eg.xstoretestaccount.Microsoft.Storage.BlobDeleted", ""},
	}},
	{file: "eventgrid/custom-topic-2017-no-versions", source: "eg", events: []wanted{
		{0, "b68529f3-68cd-4744-baa4-3c0498ec19e2", "recordInserted", "2017-06-26T18:41:00.9584103Z", "events.eventgrid.eg.myeventgridtopic.recordInserted", ""},
	}},
	{file: "eventgrid/dead-letter-blob-created", source: "eg", events: []wanted{
		{0, "93902694-901e-008f-6f95-7153a806873c", "Microsoft.Storage.BlobCreated", "2020-08-13T17:18:13.1647262Z", "events.eventgrid.eg.myegteststgfoo.Microsoft.Storage.BlobCreated", ""},
	}},
	{file: "eventgrid/eventhub-capture-mixed-case-type", source: "eg", events: []wanted{
		{0, "14e87d03-6fbf-4bb2-9a21-92bd1281f247", "microsoft.EventHUB.CaptureFileCreated", "2017-08-31T19:12:46.0498024Z", "events.eventgrid.eg.tfdatamigratens.microsoft.EventHUB.CaptureFileCreated", ""},
	}},
	{file: "eventgrid/functions-batch-duplicate-ids", source: "eg", events: []wanted{
		{0, reusedID, "captureFileCreated", "2017-07-14T23:10:27.7689666Z", "events.eventgrid.eg.canaryeh.captureFileCreated", ""},
		{1, reusedID + "~", "captureFileCreated", "2017-07-14T23:10:27.7689666Z", "events.eventgrid.eg.canaryeh.captureFileCreated", ""},
	}},
	{file: "eventgrid/functions-batch-string-data", source: "eg", events: []wanted{
		{0, reusedID, "captureFileCreated", "2017-07-14T23:10:27.7689666Z", "events.eventgrid.eg.canaryeh.captureFileCreated", ""},
		{1, reusedID + "~", "captureFileCreated", "2017-07-14T23:10:27.7689666Z", "events.eventgrid.eg.canaryeh.captureFileCreated", ""},
	}},
	{file: "eventgrid/iot-device-deleted-arcus", source: "eg", events: []wanted{
		{0, "c8dbb6f7-4a80-f4a1-7875-040e3e909d71", "Microsoft.Devices.DeviceDeleted", "2018-03-16T06:15:42.5023869Z", "events.eventgrid.eg.savanh-eventgrid-iothub.Microsoft.Devices.DeviceDeleted", ""},
	}},
	{file: "eventgrid/iothub-device-telemetry", source: "eg", events: []wanted{
		{0, "877f0b10-a086-98ec-27b8-6ae2dfbf5f67", "Microsoft.Devices.DeviceTelemetry", "2018-07-03T23:20:52.646434Z", "events.eventgrid.eg.egtesthub1.Microsoft.Devices.DeviceTelemetry", ""},
	}},
	{file: "eventgrid/keyvalue-modified", source: "eg", events: []wanted{
		{0, "56afc886-767b-d359-d59e-0da7877166b2", "Microsoft.AppConfiguration.KeyValueModified", "2018-01-02T19:17:44.4383997Z", "events.eventgrid.eg.test1.Microsoft.AppConfiguration.KeyValueModified", ""},
	}},
	{file: "eventgrid/machinelearning-run-status-changed", source: "eg", events: []wanted{
		{0, "1280a0fd-90dc-52d2-b26a-8baf5e268b26", "Microsoft.MachineLearningServices.RunStatusChanged", "2021-04-28T04:33:45.5390469Z", "events.eventgrid.eg.my_workspace.Microsoft.MachineLearningServices.RunStatusChanged", ""},
	}},
	{file: "eventgrid/policyinsights-state-changed", source: "eg", events: []wanted{
		{0, "25b3b0d0-d79b-44d5-9963-440d4e6a9bba", "Microsoft.PolicyInsights.PolicyStateChanged", "2017-08-16T03:54:38.2696833Z", "events.eventgrid.eg.{subscription-id}.Microsoft.PolicyInsights.PolicyStateChanged", ""},
	}},
	{file: "eventgrid/resource-write-success", source: "eg", events: []wanted{
		{0, "25b3b0d0-d79b-44d5-9963-440d4e6a9bba", "Microsoft.Resources.ResourceWriteSuccess", "2017-08-16T03:54:38.2696833Z", "events.eventgrid.eg.subscription-id.Microsoft.Resources.ResourceWriteSuccess", ""},
	}},
	{file: "eventgrid/servicebus-active-messages-no-listeners", source: "eg", events: []wanted{
		{0, "dede87b0-3656-419c-acaf-70c95ddc60f5", "Microsoft.ServiceBus.ActiveMessagesAvailableWithNoListeners", "2018-02-14T05:12:53.4133526Z", "events.eventgrid.eg.testns1.Microsoft.ServiceBus.ActiveMessagesAvailableWithNoListeners", ""},
	}},
	{file: "eventgrid/storage-blob-created", source: "eg", events: []wanted{
		{0, "602a88ef-0001-00e6-1233-1646070610ea", "Microsoft.Storage.BlobCreated", "2017-08-16T01:57:26.005121Z", "events.eventgrid.eg.myaccount.Microsoft.Storage.BlobCreated", ""},
	}},
	{file: "eventgrid/storage-blob-deleted-extra-property", source: "eg", events: []wanted{
		{0, "4c2359fe-001e-00ba-0e04-58586806d298", "Microsoft.Storage.BlobDeleted", "2017-11-07T20:09:22.5674003Z", "events.eventgrid.eg.xstoretestaccount.Microsoft.Storage.BlobDeleted", ""},
	}},
	{file: "eventgrid/storage-blob-deleted-not-in-array", source: "eg", events: []wanted{
		{0, "4c2359fe-001e-00ba-0e04-58586806d298", "Microsoft.Storage.BlobDeleted", "2017-11-07T20:09:22.5674003Z", "events.eventgrid.eg.xstoretestaccount.Microsoft.Storage.BlobDeleted", ""},
	}},
	{file: "eventgrid/subscription-deleted", source: "eg", control: 1},
	{file: "eventgrid/subscription-validation", source: "eg", control: 1, validation: "512d38b6-c7b8-40c8-89fe-f46f9e9622b6"},
	{file: "eventgrid/web-app-updated", source: "eg", events: []wanted{
		{0, "602a88ef-0001-00e6-1233-1646070610ea", "Microsoft.Web.AppUpdated", "2017-08-16T01:57:26.005121Z", "events.eventgrid.eg.testsite01.Microsoft.Web.AppUpdated", ""},
	}},

	// No member of this one names a company.
	{file: "fno-business-events/alert-location-changed", source: "fo", events: []wanted{
		{0, "D60A8657-E87C-43A8-8D7D-826EBF0490D7", "BusinessEventsAlertEvent", "2019-10-11T04:54:41Z", "events.fno.fo.-.BusinessEventsAlertEvent", ""},
	}},
	{file: "fno-business-events/batch-job-schema-sample", source: "fo", quarantined: 1},
	{file: "fno-business-events/cust-free-text-invoice-posted", source: "fo", events: []wanted{
		{0, "C44538B7-49EF-4DC6-A39A-FEF12FD2E093", "CustFreeTextInvoicePostedBusinessEvent", "2019-10-31T04:12:15Z", "events.fno.fo.usmf.CustFreeTextInvoicePosted", "usmf"},
	}},
	{file: "fno-business-events/customer-changed-ffy", source: "fo", events: []wanted{
		{0, "9C091AF1-5BAF-4CA9-B0A4-94D6E59A0D1C", "FFYCustomerChangedBusinessEvent", "2023-10-16T15:42:46.3440655Z", "events.fno.fo.0031.FFYCustomerChanged", "0031"},
	}},
	{file: "fno-business-events/data-event-documented-shape", source: "fo", events: []wanted{
		{0, "0F8FAD5B-D9CB-469F-A165-70867728950E", "CustCustomerV3Entity_DataEvent_Create", "2024-07-03T09:46:40Z", "events.fno.fo.usmf.CustCustomerV3Entity_DataEvent_Create", "usmf"},
	}},
	{file: "fno-business-events/dmf-import-status-navax", source: "fo", events: []wanted{
		{0, "E6471158-09E3-4BDA-A508-924A8FE7A43B", "NAVAXDMFImportStatusBusinessEvent", "2020-05-29T07:55:30Z", "events.fno.fo.usmf.NAVAXDMFImportStatus", "usmf"},
	}},
	{file: "fno-business-events/dmf-import-status-schema-sample", source: "fo", quarantined: 1},
	// Its author trimmed the EventId off.
	{file: "fno-business-events/production-order-released-trimmed", source: "fo", events: []wanted{
		{0, "sha256-", "ProductionOrderReleasedBusinessEvent", "2025-11-27T10:51:18Z", "events.fno.fo.500.ProductionOrderReleased", "500"},
	}},
	{file: "fno-business-events/purchase-order-confirmed", source: "fo", events: []wanted{
		{0, "55A81094-A14E-46A6-A12C-07ED5C5990C6", "PurchaseOrderConfirmedBusinessEvent", "2021-11-18T14:44:15Z", "events.fno.fo.brmf.PurchaseOrderConfirmed", "brmf"},
	}},
	{file: "fno-business-events/versioned-10-11-hexalith", source: "fo", events: []wanted{
		{0, "3C47A4CD-6EDC-4319-B893-3F862EED65FD", "DummyBusinessEvent1", "2022-12-30T13:51:15.2942742Z", "events.fno.fo.so01.DummyBusinessEvent1", "so01"},
	}},

	{file: "fno-over-eventgrid/alert-field-changed-array", source: "fo", events: []wanted{
		{0, "190EDA73-8E8C-4D4F-A0E3-8330B4E5A4E3", "BusinessEventsAlertEvent", "2019-10-10T08:50:40Z", "events.fno.fo.usmf.BusinessEventsAlertEvent", "usmf"},
	}},
	{file: "fno-over-eventgrid/alert-field-changed-object", source: "fo", events: []wanted{
		{0, "190EDA73-8E8C-4D4F-A0E3-8330B4E5A4E3", "BusinessEventsAlertEvent", "2019-10-10T08:50:40Z", "events.fno.fo.usmf.BusinessEventsAlertEvent", "usmf"},
	}},
	{file: "fno-over-eventgrid/free-text-invoice-array-assembled", source: "fo", events: []wanted{
		{0, "C44538B7-49EF-4DC6-A39A-FEF12FD2E093", "CustFreeTextInvoicePostedBusinessEvent", "2019-10-31T04:12:15Z", "events.fno.fo.usmf.CustFreeTextInvoicePosted", "usmf"},
	}},
	{file: "fno-over-eventgrid/free-text-invoice-object-data-assembled", source: "fo", events: []wanted{
		{0, "C44538B7-49EF-4DC6-A39A-FEF12FD2E093", "CustFreeTextInvoicePostedBusinessEvent", "2019-10-31T04:12:15Z", "events.fno.fo.usmf.CustFreeTextInvoicePosted", "usmf"},
	}},

	{file: "cloudevents/acs-router-job-classification-failed", source: "eg", events: []wanted{
		{0, "e80026e7-e298-46ba-bc42-dab0eda92581", "Microsoft.Communication.RouterJobClassificationFailed", "2022-02-17T00:55:25.1736293Z", "events.eventgrid.eg.{communication-services-resource-name}.Microsoft.Communication.RouterJobClassificationFailed", ""},
	}},
	{file: "cloudevents/apimanagement-gateway-api-added", source: "eg", events: []wanted{
		{0, "92c502f2-a966-42a7-a428-d3b319844544", "Microsoft.ApiManagement.GatewayAPIAdded", "2021-07-02T00:47:47.8536532Z", "events.eventgrid.eg.{your-apim-instance}.Microsoft.ApiManagement.GatewayAPIAdded", ""},
	}},
	// Two of them have one id but different sources: they are two events.
	{file: "cloudevents/batch-three-sources-same-id", source: "eg", events: []wanted{
		{0, "831e1650-001e-001b-66ab-eeb76e069631", "Microsoft.Storage.BlobCreated", "2017-06-26T18:41:00.9584103Z", "events.eventgrid.eg.my-storage-account.Microsoft.Storage.BlobCreated", ""},
		{1, "831e1650-001e-001b-66ab-eeb76e069631", "ImagePushed", "2018-04-25T21:39:47.6549614Z", "events.eventgrid.eg.<name%3E.ImagePushed", ""},
		{2, "14e87d03-6fbf-4bb2-9a21-92bd1281f247", "Microsoft.EventHub.CaptureFileCreated", "2017-08-31T19:12:46.0498024Z", "events.eventgrid.eg.tfdatamigratens.Microsoft.EventHub.CaptureFileCreated", ""},
	}},
	{file: "cloudevents/iothub-telemetry-delivered", source: "eg", events: []wanted{
		{0, "05ae2c06-d9f6-ef8f-d994-0dcbb8d1879e", "Microsoft.Devices.DeviceTelemetry", "2019-12-18T23:27:22.272Z", "events.eventgrid.eg.az-220-hub-cp1119.Microsoft.Devices.DeviceTelemetry", ""},
	}},
	{file: "cloudevents/storage-blob-created-structured", source: "eg", events: []wanted{
		{0, "9aeb0fdf-c01e-0131-0922-9eb54906e209", "Microsoft.Storage.BlobCreated", "2019-11-18T15:13:39.4589254Z", "events.eventgrid.eg.{storage-account}.Microsoft.Storage.BlobCreated", ""},
	}},
	{file: "cloudevents/storage-blob-deleted-array", source: "eg", events: []wanted{
		{0, "994bc3f8-c90c-6fc3-9e83-6783db2221d5", "Microsoft.Storage.BlobDeleted", "2017-08-16T01:57:26.005121Z", "events.eventgrid.eg.subject-0.Microsoft.Storage.BlobDeleted", ""},
	}},
	{file: "cloudevents/storage-blob-deleted-extra-attribute", source: "eg", events: []wanted{
		{0, "994bc3f8-c90c-6fc3-9e83-6783db2221d5", "Microsoft.Storage.BlobDeleted", "", "events.eventgrid.eg.subject-0.Microsoft.Storage.BlobDeleted", ""},
	}},
	{file: "cloudevents/storage-blob-deleted-object", source: "eg", events: []wanted{
		{0, "4c2359fe-001e-00ba-0e04-58586806d298", "Microsoft.Storage.BlobDeleted", "2017-11-07T20:09:22.5674003Z", "events.eventgrid.eg.xstoretestaccount.Microsoft.Storage.BlobDeleted", ""},
	}},
	{file: "cloudevents/subscription-deleted-cloudevents", source: "eg", control: 1},
	{file: "cloudevents/subscription-validation-cloudevents", source: "eg", control: 1, validation: "512d38b6-c7b8-40c8-89fe-f46f9e9622b6"},
}

// TestPayloads posts every body that Microsoft or a user published, as it was
// sent, and looks at what two subscribers and a plain NATS client get.
func TestPayloads(t *testing.T) {
	tested := map[string]bool{}
	for _, c := range payloads {
		tested[c.file+".json"] = true
		t.Run(c.file, c.test)
	}
	files, err := filepath.Glob("testdata/payloads/*/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		name := strings.TrimPrefix(filepath.ToSlash(file), "testdata/payloads/")
		if !tested[name] && !strings.HasSuffix(name, ".response.json") {
			t.Errorf("%s is not in the table", name)
		}
	}
}

func (c payloadCase) test(t *testing.T) {
	t.Parallel() // each has a program of its own and waits for its disk
	body, err := os.ReadFile("testdata/payloads/" + c.file + ".json")
	if err != nil {
		t.Fatal(err)
	}
	header := requestHeader(t, "testdata/payloads/"+c.file+".headers")
	in := newInbox(t)
	g := start(t, sources, "subscribers:\n"+subscriber("structured", in.url+"/structured", "")+
		fmt.Sprintf("  binary: { subjects: [ \"events.>\" ], deliver: { webhook: { url: %q, format: cloudevents-binary } } }\n", in.url+"/binary"))
	nc, _ := g.nats()
	seen, err := nc.SubscribeSync("events.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}

	c.wantAnswer(t, g.post(c.source, header, body), false)
	g.drained()
	elements := elementsOf(t, body)
	for _, subscriber := range []string{"structured", "binary"} {
		got := in.of(subscriber)
		if len(got) != len(c.events) {
			t.Fatalf("%s got %d events, want %d", subscriber, len(got), len(c.events))
		}
		for _, w := range c.events {
			w.check(t, subscriber, pick(t, got, w), elements[w.element], c.source)
		}
	}
	c.checkSubjects(t, seen)
	if got := len(g.stored(broker.StreamEvents)); got != len(c.events) {
		t.Errorf("%d events are stored, want %d", got, len(c.events))
	}
	held := g.stored(broker.StreamQuarantine)
	if len(held) != c.quarantined {
		t.Errorf("%d elements are in quarantine, want %d", len(held), c.quarantined)
	}
	for _, m := range held {
		if !bytes.Equal(bytes.TrimSpace(m.Data), bytes.TrimSpace(body)) {
			t.Errorf("quarantine changed the body:\n%s", m.Data)
		}
	}

	// Event Grid repeats what it believes was lost.
	c.wantAnswer(t, g.post(c.source, header, body), true)
	g.drained()
	if got := len(g.stored(broker.StreamEvents)); got != len(c.events) {
		t.Errorf("after a repetition %d events are stored, want %d", got, len(c.events))
	}
	for _, subscriber := range []string{"structured", "binary"} {
		if got := len(in.of(subscriber)); got != len(c.events) {
			t.Errorf("after a repetition %s got %d events, want %d", subscriber, got, len(c.events))
		}
	}
}

// requestHeader reads a request's own headers; the connection's are ours.
func requestHeader(t *testing.T, file string) http.Header {
	h := http.Header{}
	b, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return h
	}
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), ":")
		if !ok {
			continue
		}
		switch strings.ToLower(name) {
		case "host", "content-length", "connection", "accept-encoding":
		default:
			h.Set(name, strings.TrimSpace(value))
		}
	}
	return h
}

func (c payloadCase) wantAnswer(t *testing.T, a answer, again bool) {
	t.Helper()
	if a.status != http.StatusOK || a.header.Get("Content-Type") != "application/json" {
		t.Fatalf("answer: HTTP %d %s %s", a.status, a.header.Get("Content-Type"), a.body)
	}
	got := a.json(t)
	if c.validation != "" {
		if d := cmp.Diff(map[string]any{"validationResponse": c.validation}, got); d != "" {
			t.Errorf("answer (-want +got):\n%s", d)
		}
		return
	}
	delete(got, "faults") // for people
	published, duplicate := len(c.events), c.duplicate
	if again {
		published, duplicate = 0, published+duplicate
	}
	want := map[string]any{
		"received":  float64(len(c.events) + c.duplicate + c.control + c.quarantined),
		"published": float64(published), "duplicate": float64(duplicate),
		"control": float64(c.control), "quarantined": float64(c.quarantined),
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("answer (-want +got):\n%s", d)
	}
}

// elementsOf gives the objects of a body.
func elementsOf(t *testing.T, body []byte) []map[string]any {
	t.Helper()
	v, err := decode(body)
	if err != nil {
		t.Fatal(err)
	}
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	elements := make([]map[string]any, len(list))
	for i := range list {
		elements[i] = list[i].(map[string]any)
	}
	return elements
}

var (
	madeUpID   = regexp.MustCompile(`^sha256-[0-9a-f]{16,}$`)
	reusedTail = regexp.MustCompile(`^~[0-9a-f]{16}$`)
)

// is says whether id is the one wanted, of which some end in a digest.
func (w wanted) is(id string) bool {
	switch {
	case w.id == "sha256-":
		return madeUpID.MatchString(id)
	case strings.HasSuffix(w.id, "~"):
		own, tail := strings.TrimSuffix(w.id, "~"), id[min(len(id), len(w.id)-1):]
		return strings.HasPrefix(id, own) && reusedTail.MatchString(tail)
	}
	return id == w.id
}

func pick(t *testing.T, got []received, w wanted) received {
	t.Helper()
	var found []received
	for _, r := range got {
		if w.is(r.id()) && r.attributes["type"] == w.typ {
			found = append(found, r)
		}
	}
	if len(found) != 1 {
		t.Fatalf("event %s of type %s came %d times, want once; all: %v", w.id, w.typ, len(found), got)
	}
	return found[0]
}

func (w wanted) check(t *testing.T, subscriber string, got received, element map[string]any, source string) {
	t.Helper()
	attribute := func(name string) string {
		if v, ok := got.attributes[name]; ok {
			return fmt.Sprint(v)
		}
		return ""
	}
	same := func(name, want string) {
		t.Helper()
		if got := attribute(name); got != want {
			t.Errorf("%s: %s is %q, want %q", subscriber, name, got, want)
		}
	}
	same("specversion", "1.0")
	same("type", w.typ)
	same("gridfansource", source)
	same("via", "push")
	same("legalentity", w.entity)
	if before, ok := strings.CutSuffix(w.id, "~"); ok {
		same("originalid", before)
	} else {
		same("originalid", "")
	}
	if !sameInstant(attribute("time"), w.time) {
		t.Errorf("%s: time is %q, want %q", subscriber, attribute("time"), w.time)
	}
	if _, err := time.Parse(time.RFC3339Nano, attribute("recordedtime")); err != nil {
		t.Errorf("%s: recordedtime: %v", subscriber, err)
	}

	// Every member of the element is there, with every digit.
	data := any(element)
	envelopeOf, fo := map[string]string{"topic": "source", "eventType": "type", "eventTime": "time"}, source == "fo"
	if _, flat := element["BusinessEventId"]; !flat {
		data = element["data"]
		if text, ok := data.(string); ok && fo {
			inner, err := decode([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			data = inner
		}
		if fo {
			envelopeOf["topic"] = "envelopesource"
		}
		for name, value := range element {
			if name == "data" || notShown(name, value) {
				continue
			}
			to, ok := envelopeOf[name]
			if !ok {
				to = strings.ToLower(name)
			}
			switch sent := fmt.Sprint(value); {
			case to == "time" && sameInstant(attribute("time"), sent):
			case to == "id" && strings.HasSuffix(w.id, "~"):
			case attribute(to) != sent:
				t.Errorf("%s: member %s %q became attribute %s %q", subscriber, name, sent, to, attribute(to))
			}
		}
	}
	if fo {
		data = withDates(data)
	}
	gotData, err := decode(got.data)
	if err != nil {
		t.Fatalf("%s: data %q: %v", subscriber, got.data, err)
	}
	if d := cmp.Diff(data, gotData); d != "" {
		t.Errorf("%s: data (-sent +got):\n%s", subscriber, d)
	}
}

// notShown says whether an envelope's member may be missing, as the package
// comment of schemas/eventgrid says.
func notShown(name string, value any) bool {
	switch name {
	case "topic", "source", "subject", "dataVersion":
		return value == nil || value == ""
	case "eventTime":
		return value == nil || value == "" || strings.HasPrefix(fmt.Sprint(value), "1900-01-01T00:00:00") || strings.HasPrefix(fmt.Sprint(value), "0001-01-01T00:00:00")
	}
	return value == nil
}

func sameInstant(a, b string) bool {
	if a == "" || b == "" {
		return a == b
	}
	ta, errA := time.Parse(time.RFC3339Nano, a)
	tb, errB := time.Parse(time.RFC3339Nano, b)
	return errA == nil && errB == nil && ta.Equal(tb)
}

var oldDate = regexp.MustCompile(`^/Date\((-?\d+)\)/$`)

// withDates rewrites /Date(ms)/ as the package comment of
// schemas/businessevent says.
func withDates(v any) any {
	switch v := v.(type) {
	case string:
		if m := oldDate.FindStringSubmatch(v); m != nil {
			ms, _ := json.Number(m[1]).Int64()
			return time.UnixMilli(ms).UTC().Format(time.RFC3339Nano)
		}
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = withDates(v[i])
		}
		return list
	case map[string]any:
		m := map[string]any{}
		for name, value := range v {
			m[name] = withDates(value)
		}
		return m
	}
	return v
}

// checkSubjects looks at what a plain NATS client saw of the first request. It
// also sees what the stream then recognises as a duplicate.
func (c payloadCase) checkSubjects(t *testing.T, seen *nats.Subscription) {
	t.Helper()
	type place struct{ subject, id string }
	places := map[place]bool{}
	for {
		n, _, err := seen.Pending()
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		m, err := seen.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		id, err := url.PathUnescape(m.Header.Get("ce-id"))
		if err != nil {
			t.Fatal(err)
		}
		places[place{m.Subject, id}] = true
	}
	for _, w := range c.events {
		found := false
		for p := range places {
			found = found || p.subject == w.subject && w.is(p.id)
		}
		if !found {
			t.Errorf("no event %s on %s; seen %v", w.id, w.subject, places)
		}
	}
	for p := range places {
		known := false
		for _, w := range c.events {
			known = known || p.subject == w.subject
		}
		if !known {
			t.Errorf("an event on %s", p.subject)
		}
	}
}
