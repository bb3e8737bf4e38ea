// Package samples holds named sample events in the wire shapes that Dynamics
// 365 Finance & Operations and Azure Event Grid really send. The CLI posts them
// so that one can see a route work before any of the two is connected.
//
// A body in bodies/ is what SOURCES.md says it is, with placeholders where
// every event differs; Request fills them in:
//
//	{{ID}} {{id}} {{id2}} {{id3}}   GUIDs; ID is upper case, as F&O writes them
//	{{request}} and 2, 3            the storage request that made event id
//	{{HEX}}                         32 hexadecimal digits
//	{{iso}}                         2026-11-02T12:00:00.1234567Z
//	{{utc}} {{stamp}}               2026-11-02T12:00:00Z, and without the Z
//	{{date}} {{day}} {{due}}        /Date(ms)/: the second, its day, 10 days on
//	{{number}}                      a business key
//	{{control}} {{sequencer}}       numbers that grow with time
package samples

import (
	"bytes"
	"crypto/rand"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gridfan/gridfan/schemas/businessevent"
	"github.com/gridfan/gridfan/schemas/cloudevents"
	"github.com/gridfan/gridfan/schemas/custom"
	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
)

// Sample is one kind of event, or batch of them, that can be posted.
type Sample struct {
	// Name is what people call it by: purchase-order-confirmed.
	Name string
	// Kind is the kind of source it is for: event.KindFnO or
	// event.KindEventGrid.
	Kind string
	// Description says in one line what it is.
	Description string
	// Control says that it is addressed to the router: it is answered, and no
	// subscriber gets it.
	Control bool

	header map[string]string
}

//go:embed bodies
var bodies embed.FS

// The headers of the senders; see SOURCES.md.
var (
	fno = map[string]string{"Content-Type": "application/json; charset=utf-8"}

	flow = map[string]string{"Content-Type": "application/json"}

	dataverseHeader = map[string]string{
		"Content-Type":                "application/json; charset=utf-8",
		"X-Ms-Dynamics-Organization":  "org94971a24.crm.dynamics.com",
		"X-Ms-Dynamics-Entity-Name":   "account",
		"X-Ms-Dynamics-Request-Name":  "Update",
		"X-Ms-Correlation-Request-Id": "39499111-e689-42a1-ae8a-5b14a84514ce",
	}

	binary = map[string]string{
		"Content-Type":   "application/json",
		"Ce-Specversion": "1.0",
		"Ce-Id":          "{{id}}",
		"Ce-Source":      "/shop/orders",
		"Ce-Type":        "com.example.placed",
		"Ce-Time":        "{{utc}}",
		"Ce-Subject":     "SO-{{number}}",
	}

	notification = eventGrid("Notification", "")
	cloudEvents  = map[string]string{
		"Content-Type":          "application/cloudevents+json; charset=utf-8",
		"Origin":                "eventgrid.azure.net",
		"Aeg-Event-Type":        "Notification",
		"Aeg-Subscription-Name": "MYEVENTSUB",
		"Aeg-Delivery-Count":    "0",
		"Aeg-Data-Version":      "",
		"Aeg-Metadata-Version":  "1",
	}
)

func eventGrid(eventType, dataVersion string) map[string]string {
	return map[string]string{
		"Content-Type":          "application/json; charset=utf-8",
		"Aeg-Event-Type":        eventType,
		"Aeg-Subscription-Name": "MYEVENTSUB",
		"Aeg-Delivery-Count":    "0",
		"Aeg-Data-Version":      dataVersion,
		"Aeg-Metadata-Version":  "1",
	}
}

// all is sorted by name.
var all = []Sample{
	{"account-updated", event.KindDataverse, "Dataverse account updated, the execution context of a synchronous webhook step", false, dataverseHeader},
	{"alert", event.KindFnO, "F&O alert on a changed field; the one business event without a legal entity", false, fno},
	{"batch-of-three", event.KindEventGrid, "one blob created and two deleted, in one array", false, notification},
	{"blob-created", event.KindEventGrid, "a file was written to blob storage, Event Grid schema", false, notification},
	{"blob-created-cloudevents", event.KindEventGrid, "the same, delivered in the CloudEvents schema", false, cloudEvents},
	{"blob-deleted", event.KindEventGrid, "a file was deleted from blob storage", false, notification},
	{"customer-changed", event.KindFnO, "F&O customer changed, with a nested address and the envelope of 2022 and later", false, fno},
	{"dmf-import-status", event.KindFnO, "F&O data import ended, partially succeeded", false, fno},
	{"endpoint-test", event.KindFnO, "control: what F&O sends when a business event endpoint is activated", true, fno},
	{"flow-shipment-posted", event.KindCustom, "what an HTTP action of a Power Automate flow may post; needs a mapping: id .runId, type .event, time .sentAt", false, flow},
	{"free-text-invoice-posted", event.KindFnO, "F&O free text invoice posted for a customer", false, fno},
	{"invoice-over-eventgrid", event.KindFnO, "the same through F&O's Event Grid endpoint: the event as text inside the envelope", false, eventGrid("Notification", "0.0")},
	{"order-placed-binary", event.KindCloudEvents, "a CloudEvent in binary mode: attributes in headers", false, binary},
	{"purchase-order-confirmed", event.KindFnO, "F&O purchase order confirmed", false, fno},
	{"resource-write-success", event.KindEventGrid, "an Azure resource was created or changed", false, notification},
	{"subscription-deleted", event.KindEventGrid, "control: the Event Grid subscription is gone", true, eventGrid("SubscriptionDeletion", "1")},
	{"validation", event.KindEventGrid, "control: the handshake by which Event Grid asks whether its events are wanted", true, eventGrid("SubscriptionValidation", "1")},
}

// All lists the samples by name. The caller may change the list.
func All() []Sample { return slices.Clone(all) }

// Find gives the sample of that name.
func Find(name string) (Sample, bool) {
	i, ok := slices.BinarySearchFunc(all, name, func(s Sample, name string) int { return strings.Compare(s.Name, name) })
	if !ok {
		return Sample{}, false
	}
	return all[i], true
}

// Names lists the names, sorted.
func Names() []string {
	names := make([]string, len(all))
	for i, s := range all {
		names[i] = s.Name
	}
	return names
}

// Request gives the headers and body of one new event that happens at now.
// Each call makes another event. It is safe for concurrent use, and s must come
// from All or Find.
func (s Sample) Request(now time.Time) (header http.Header, body []byte) {
	header = http.Header{}
	values := fresh(now.UTC())
	for name, value := range s.header {
		header.Set(name, values.Replace(value))
	}
	template, _ := bodies.ReadFile("bodies/" + s.Name + ".json") // a test reads them all
	body = []byte(values.Replace(string(template)))
	var compact bytes.Buffer
	if json.Compact(&compact, body) == nil { // it is JSON: a test parses them all
		body = compact.Bytes()
	}
	return header, body
}

// Stored is a sample's event as it is kept: with the subject it gets.
type Stored struct {
	Subject string
	Event   *event.Event
}

// Events gives what the sample becomes when it is posted to a source of that
// name; controls become nothing. A sample of kind custom is read with the mapping
// that its description names.
func (s Sample) Events(source string, now time.Time) ([]Stored, error) {
	header, body := s.Request(now)
	var results []event.Result
	switch s.Kind {
	case event.KindFnO:
		results = businessevent.Parse(source, header, body)
	case event.KindDataverse:
		results = dataverse.Parse(source, header, body)
	case event.KindCloudEvents:
		results = cloudevents.Parse(source, header, body)
	case event.KindCustom:
		p, err := custom.Compile(custom.Mapping{ID: ".runId", Type: ".event", Time: ".sentAt"})
		if err != nil {
			return nil, err
		}
		results = p.Parse(source, header, body)
	default:
		results = eventgrid.Parse(source, header, body)
	}
	var events []Stored
	for _, r := range results {
		switch {
		case r.Fault != nil:
			return nil, fmt.Errorf("sample %s: %w", s.Name, r.Fault)
		case r.Event != nil:
			// As publish does.
			r.Event.Set(event.ExtSource, source)
			r.Event.Set(event.ExtVia, "push")
			r.Event.Set(event.ExtRecordedTime, event.FormatTime(now.UTC()))
			events = append(events, Stored{event.Subject(s.Kind, source, r.Scope, r.Name), r.Event})
		}
	}
	return events, nil
}

// fresh makes what fills the placeholders in.
func fresh(now time.Time) *strings.Replacer {
	date := func(t time.Time) string { return "/Date(" + strconv.FormatInt(t.UnixMilli(), 10) + ")/" }
	second := now.Truncate(time.Second)
	day := now.Truncate(24 * time.Hour)
	id := guid()
	pairs := []string{
		"{{ID}}", strings.ToUpper(id),
		"{{HEX}}", strings.ToUpper(strings.ReplaceAll(guid(), "-", "")),
		"{{iso}}", now.Format("2006-01-02T15:04:05.0000000Z"),
		"{{utc}}", second.Format(time.RFC3339),
		"{{stamp}}", second.Format("2006-01-02T15:04:05"),
		"{{date}}", date(second),
		"{{day}}", date(day),
		"{{due}}", date(day.AddDate(0, 0, 10)),
		"{{number}}", fmt.Sprintf("%08d", mathrand.IntN(1e8)),
		// 5637144576 is where F&O's record ids begin.
		"{{control}}", strconv.FormatInt(5637144576+now.UnixMilli()/100, 10),
		"{{sequencer}}", fmt.Sprintf("%032X", now.UnixNano()),
	}
	for _, n := range []string{"", "2", "3"} {
		pairs = append(pairs,
			"{{id"+n+"}}", id,
			// Storage makes an event's id from its request's.
			"{{request"+n+"}}", id[:len(id)-6]+"000000")
		id = guid()
	}
	return strings.NewReplacer(pairs...)
}

// guid makes a random one (RFC 9562, version 4).
func guid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	s := hex.EncodeToString(b[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
