package asyncapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/gridfan/gridfan/schemas/asyncapi"
)

func service(e asyncapi.Envelope) asyncapi.Service {
	return asyncapi.Service{
		Subscriber: "erp", Version: "7", Description: "What finance gets.", Protocol: "https", Host: "hooks.example.com:8443", Pathname: "/in",
		Address: "/in/orders", Method: "POST", Subjects: []string{"events.fno.>"}, ContentType: "application/cloudevents+json", Envelope: e,
	}
}

func sample(i int, e asyncapi.Envelope, eventType, data string) asyncapi.Sample {
	s := asyncapi.Sample{Type: eventType, Data: json.RawMessage(data)}
	ce := fmt.Sprintf(`{"specversion":"1.0","id":"e-%d","source":"/s","type":%q,"data":%s}`, i, eventType, data)
	switch e {
	case asyncapi.CloudEvent:
		s.Body = json.RawMessage(ce)
	case asyncapi.CloudEvents:
		s.Body = json.RawMessage("[" + ce + "]")
	case asyncapi.EventGrid:
		s.Body = json.RawMessage(fmt.Sprintf(`[{"id":"e-%d","topic":"t","subject":"s","eventType":%q,"eventTime":"2026-11-01T10:00:00Z","dataVersion":"1","data":%s}]`, i, eventType, data))
	case asyncapi.Attributes:
		s.Headers = map[string]string{"ce-id": fmt.Sprint("e-", i), "ce-type": eventType}
		s.Body = s.Data
	default:
		s.Body = s.Data
	}
	return s
}

// official is the JSON Schema of documents.
func official(t *testing.T) *jsonschema.Schema {
	t.Helper()
	text, err := os.ReadFile("testdata/asyncapi-3.0.0.json")
	if err != nil {
		t.Fatal(err)
	}
	return compile(t, "asyncapi.json", text, "")
}

func compile(t *testing.T, name string, text []byte, at string) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft7)
	if err := c.AddResource(name, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(name + at)
	if err != nil {
		t.Fatalf("%s%s: %v", name, at, err)
	}
	return s
}

func validate(t *testing.T, s *jsonschema.Schema, text []byte) error {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return s.Validate(doc)
}

// TestDocument holds documents of all envelopes to the official schema, and their
// examples to the document's own.
func TestDocument(t *testing.T) {
	rules := official(t)
	for _, e := range []asyncapi.Envelope{asyncapi.CloudEvent, asyncapi.CloudEvents, asyncapi.Attributes, asyncapi.EventGrid, asyncapi.Data} {
		t.Run(string(e), func(t *testing.T) {
			samples := []asyncapi.Sample{
				sample(1, e, "Order.Placed", `{"number":1,"lines":[{"item":"A","qty":2}],"at":"2026-11-01T10:00:00Z"}`),
				sample(2, e, "Order.Placed", `{"number":1.5,"lines":[],"note":null,"at":"2026-11-02T10:00:00Z"}`),
				sample(3, e, "Order.Placed", `{"number":3,"lines":[{"item":"B"}],"note":"late","at":"2026-11-02T10:00:00Z"}`),
				sample(4, e, "Order/Placed", `[1]`),
				sample(5, e, "Order_Placed", `"text"`),
				sample(6, e, "ü", `7`),
			}
			doc, err := asyncapi.Document(service(e), nil, samples)
			if err != nil {
				t.Fatal(err)
			}
			if err := validate(t, rules, doc); err != nil {
				t.Fatalf("%v\n%s", err, doc)
			}
			var got struct {
				Components struct {
					Messages map[string]struct {
						Name     string
						Examples []struct{ Payload json.RawMessage }
					}
				}
			}
			if err := json.Unmarshal(doc, &got); err != nil {
				t.Fatal(err)
			}
			if len(got.Components.Messages) != 4 {
				t.Errorf("%d messages", len(got.Components.Messages))
			}
			for key, m := range got.Components.Messages {
				own := compile(t, "doc.json", doc, "#/components/messages/"+key+"/payload")
				if want := map[bool]int{true: 2, false: 1}[m.Name == "Order.Placed"]; len(m.Examples) != want {
					t.Errorf("%s: %d examples, want %d", m.Name, len(m.Examples), want)
				}
				for _, example := range m.Examples {
					if err := validate(t, own, example.Payload); err != nil {
						t.Errorf("%s: %v", key, err)
					}
				}
				// The schema can refuse something.
				if m.Name == "Order.Placed" {
					wrong := sample(9, e, "Order.Placed", `{"number":"one","lines":[],"at":"2026-11-02T10:00:00Z"}`)
					if validate(t, own, wrong.Body) == nil {
						t.Errorf("%s: takes anything", key)
					}
				}
			}
			for _, bad := range []string{"Order/Placed\":", "\"ü\":"} {
				if strings.Contains(string(doc), bad) {
					t.Errorf("%s is a key", bad)
				}
			}
		})
	}
}

// TestDocumentWithoutEvents is a document all the same.
func TestDocumentWithoutEvents(t *testing.T) {
	rules := official(t)
	for _, e := range []asyncapi.Envelope{asyncapi.CloudEvent, asyncapi.EventGrid, asyncapi.Attributes} {
		s := service(e)
		s.Host, s.Method = "", ""
		doc, err := asyncapi.Document(s, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(t, rules, doc); err != nil {
			t.Errorf("%v\n%s", err, doc)
		}
		if !strings.Contains(string(doc), "No event") {
			t.Errorf("it does not say so: %s", doc)
		}
	}
}

// TestKnownSchema takes gridfan's own schema of the data in the place of a guess.
func TestKnownSchema(t *testing.T) {
	const id = "urn:gridfan:schema:dataverse-change:v1"
	known := map[string][]byte{id: []byte(`{"$schema":"https://json-schema.org/draft/2020-12/schema","$id":"` + id + `","type":"object"}`)}
	s := sample(1, asyncapi.CloudEvent, "Dataverse.Update", `{"anything":1}`)
	s.DataSchema = id
	doc, err := asyncapi.Document(service(asyncapi.CloudEvent), known, []asyncapi.Sample{s})
	if err != nil {
		t.Fatal(err)
	}
	if err := validate(t, official(t), doc); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"$ref": "#/components/schemas/dataverse-change.v1"`, `"$ref": "#/components/schemas/CloudEvent"`} {
		if !strings.Contains(string(doc), want) {
			t.Errorf("without %s", want)
		}
	}
	if strings.Contains(string(doc), "Inferred") || strings.Contains(string(doc), "$id") {
		t.Errorf("%s", doc)
	}
}

// TestBounds has many types, a huge event, and deep and wide data.
func TestBounds(t *testing.T) {
	var samples []asyncapi.Sample
	for i := range 500 {
		samples = append(samples, sample(i, asyncapi.Data, fmt.Sprint("T", i), `1`))
	}
	var wide strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&wide, `,"m%d":%d`, i, i)
	}
	for range 3 {
		samples = append(samples,
			sample(0, asyncapi.Data, "wide", `{`+wide.String()[1:]+`}`),
			sample(0, asyncapi.Data, "deep", strings.Repeat("[", 5000)+strings.Repeat("]", 5000)),
			sample(0, asyncapi.Data, "huge", `"`+strings.Repeat("x", 1<<20)+`"`))
	}
	doc, err := asyncapi.Document(service(asyncapi.Data), nil, samples)
	if err != nil {
		t.Fatal(err)
	}
	if len(doc) > 2<<20 {
		t.Errorf("%d bytes", len(doc))
	}
	if err := validate(t, official(t), doc); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"303 rarer types are left out", "There are more members"} {
		if !strings.Contains(string(doc), want) {
			t.Errorf("without %q", want)
		}
	}
}
