package app_test

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// TestAsyncAPI holds the documents of subscribers of all formats to the official
// schema, and looks for what they got.
func TestAsyncAPI(t *testing.T) {
	in := newInbox(t)
	g := start(t, sources, "subscribers:\n",
		subscriber("shaped", in.url+"/shaped?code=canary", `filter: event.data.TransactionCurrencyAmount > 1000.0, transform: '{order: .PurchaseOrderNumber}'`),
		"  binary: { subjects: [ \"events.>\" ], deliver: { webhook: { url: \""+in.url+"/b\", format: cloudevents-binary, headers: { X-Company: \"{{legalentity}}\" } } } }\n",
		"  grid: { subjects: [ \"events.>\" ], deliver: { webhook: { url: \""+in.url+"/g\", format: eventgrid } }, limits: { batch: { events: 10 } } }\n",
		"  batch: { subjects: [ \"events.>\" ], deliver: { webhook: { url: \""+in.url+"/a\", sign: true } }, limits: { batch: { events: 10 } } }\n",
		"  plain: { subjects: [ \"events.>\" ], deliver: { webhook: { url: \""+in.url+"/o\", format: original } } }\n",
		"  fetched: { subjects: [ \"events.>\" ], deliver: { pull: {} } }\n",
		"  topic: { subjects: [ \"events.>\" ], deliver: { eventGrid: { endpoint: \"https://topic.invalid/api/events\", auth: { key: canary } } } }\n",
		"  oldtopic: { subjects: [ \"events.>\" ], deliver: { eventGrid: { endpoint: \"https://topic.invalid/api/events\", schema: eventgrid, auth: { key: canary } } } }\n",
		"  namespace: { subjects: [ \"events.>\" ], deliver: { eventGridNamespace: { endpoint: \"https://namespace.invalid\", topic: orders, auth: { key: canary } } } }\n",
		"  queue: { subjects: [ \"events.>\" ], deliver: { serviceBus: { queue: orders, auth: { connectionString: \"Endpoint=sb://queue.invalid/;SharedAccessKeyName=n;SharedAccessKey=canary\" } } } }\n",
		"  native: { subjects: [ \"events.>\" ], deliver: { nats: {} } }\n",
		"  none: { subjects: [ \"events.nowhere.>\" ], deliver: { webhook: { url: \""+in.url+"/n\" } } }\n",
	)
	g.accepting("D", 500, 2000)
	text, err := os.ReadFile("../../../schemas/asyncapi/testdata/asyncapi-3.0.0.json")
	if err != nil {
		t.Fatal(err)
	}
	schema, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft7)
	if err := c.AddResource("asyncapi.json", schema); err != nil {
		t.Fatal(err)
	}
	official := c.MustCompile("asyncapi.json")
	for name, wants := range map[string][]string{
		"shaped":    {`"order":"PO-D-2000"`, `"address":"/shaped"`, `"protocol":"http"`, "event.data.TransactionCurrencyAmount \\u003e 1000.0"},
		"binary":    {`"x-company":"usmf"`, `"ce-id":"D-500"`},
		"grid":      {`"eventType":`, `"aeg-event-type":"Notification"`},
		"batch":     {`"application/cloudevents-batch+json"`, "Standard Webhooks"},
		"plain":     {`"payload":{"BusinessEventId"`},
		"fetched":   {`"address":"/topics/events/eventsubscriptions/fetched:receive"`, `"id":"D-500"`, "brokerProperties"},
		"topic":     {`"host":"topic.invalid"`, `"address":"/api/events"`, `"specversion":"1.0"`},
		"oldtopic":  {`"host":"topic.invalid"`, `"eventType":`},
		"namespace": {`"host":"namespace.invalid"`, `"address":"/topics/orders:publish"`, `"specversion":"1.0"`},
		"queue":     {`"host":"queue.invalid"`, `"protocol":"amqps"`, `"address":"orders"`, `"specversion":"1.0"`},
		"native":    {`"address":"$JS.API.CONSUMER.MSG.NEXT.EVENTS.native"`, `"ce-id":"D-500"`},
		"none":      {"No event on them was stored"},
	} {
		doc, err := g.admin.AsyncAPI(t.Context(), name, 0)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var small bytes.Buffer
		if err := json.Compact(&small, doc); err != nil {
			t.Fatal(err)
		}
		parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(doc))
		if err != nil {
			t.Fatal(err)
		}
		if err := official.Validate(parsed); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, want := range wants {
			if !strings.Contains(small.String(), want) {
				t.Errorf("%s: without %s:\n%s", name, want, small.String())
			}
		}
		if strings.Contains(small.String(), "canary") {
			t.Errorf("%s: tells a secret:\n%s", name, small.String())
		}
	}
	if doc, err := g.admin.AsyncAPI(t.Context(), "shaped", 0); err != nil || bytes.Contains(doc, []byte("D-500")) {
		t.Errorf("it has what the filter keeps away: %s, %v", doc, err)
	}
	if _, err := g.admin.AsyncAPI(t.Context(), "nobody", 0); err == nil {
		t.Error("a document for nobody")
	}
	if _, err := g.admin.AsyncAPI(t.Context(), "shaped", 10_001); err == nil {
		t.Error("from more events than allowed")
	}
}
