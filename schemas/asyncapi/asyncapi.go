// Package asyncapi describes what one subscriber gets, as an AsyncAPI 3.0
// document: where and how events come to it, which kinds of messages those were
// that it got lately, with a schema and real examples of each.
//
// Document knows nothing of how events are delivered; its caller tells with
// Samples that are bodies as they go out.
package asyncapi

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gridfan/gridfan/schemas/event"
)

// Version is that of the specification that documents follow
// (asyncapi.com/docs/reference/specification/v3.0.0; 2026-11).
const Version = "3.0.0"

// Service is the way by which a subscriber gets its events.
type Service struct {
	// Subscriber is its name, Version that of its definition, and Description
	// what people should know.
	Subscriber, Version, Description string
	// Protocol, Host and Pathname are of the server: the one that gets events
	// pushed, or gridfan where they are fetched. Without a Host there is no
	// server. They hold no secret.
	Protocol, Host, Pathname string
	// ServerDescription says whose it is.
	ServerDescription string
	// Address is where on the server: a path, a queue, a subject.
	Address string
	// Method is of HTTP requests; empty for other protocols.
	Method string
	// Subjects are those it subscribes to.
	Subjects []string
	// ContentType is that of a message, and Envelope what its body is.
	ContentType string
	Envelope    Envelope
}

// Envelope is what stands around the data of an event.
type Envelope string

// The envelopes.
const (
	CloudEvent  Envelope = "cloudevent"  // one event in CloudEvents' JSON format
	CloudEvents Envelope = "cloudevents" // an array of such
	Attributes  Envelope = "attributes"  // the body is the data, and attributes are headers
	EventGrid   Envelope = "eventgrid"   // an array of events in Event Grid's schema
	Data        Envelope = "data"        // the body is the data
)

// Sample is one event as the subscriber gets it.
type Sample struct {
	// Type is the event's, and DataSchema the id of its data's schema if it names
	// one.
	Type, DataSchema string
	// Headers tell the attributes; empty where the body does.
	Headers map[string]string
	// Body is the message, and Data the event's data in it, both JSON. Data is nil
	// for none, or if it is not JSON.
	Body, Data json.RawMessage
}

// What of the samples gets into a document.
const (
	maxTypes    = 200
	maxExamples = 2        // of one type
	maxExample  = 64 << 10 // bytes
	maxNesting  = 64       // of an example: each level is indented further
)

// Document writes the document as indented JSON. known are JSON Schemas by their
// ids, which samples refer to. Samples come oldest first; the newest become
// examples.
func Document(s Service, known map[string][]byte, samples []Sample) ([]byte, error) {
	d := &document{service: s, messages: map[string]any{}, schemas: map[string]any{}, names: map[string]bool{}}
	envelope, err := plain(event.Schema)
	if err != nil {
		return nil, err
	}
	switch s.Envelope {
	case CloudEvent, CloudEvents:
		d.schemas["CloudEvent"] = envelope
	case EventGrid:
		d.schemas["EventGridEvent"] = eventGridSchema
	}
	byType := map[string][]Sample{}
	var types []string
	for _, sample := range samples {
		if byType[sample.Type] == nil {
			types = append(types, sample.Type)
		}
		byType[sample.Type] = append(byType[sample.Type], sample)
	}
	// The commonest are told first, and kept if there are too many.
	slices.SortStableFunc(types, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(byType[b]), len(byType[a])), strings.Compare(a, b))
	})
	left := max(0, len(types)-maxTypes)
	for _, t := range types[:len(types)-left] {
		if err := d.message(t, byType[t], known); err != nil {
			return nil, err
		}
	}
	if len(types) == 0 {
		d.messages["Event"] = map[string]any{
			"name": "Event", "title": "Any event", "contentType": s.ContentType, "payload": d.payload(map[string]any{}, ""),
			"summary": "No event on its subjects is stored at present, so there is no example.",
		}
	}
	return d.write(len(samples), left)
}

// document is a document in the making.
type document struct {
	service  Service
	messages map[string]any // of components, by key
	schemas  map[string]any
	names    map[string]bool // keys in use
}

// key makes a name that can stand in a reference.
func (d *document) key(name string) string {
	// Keys of components match ^[\w\d.\-_]+$.
	key := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_' {
			return r
		}
		return '_'
	}, name)
	key = key[:min(len(key), 100)]
	if key == "" {
		key = "Event"
	}
	free := key
	for n := 2; d.names[free]; n++ {
		free = fmt.Sprintf("%s_%d", key, n)
	}
	d.names[free] = true
	return free
}

func ref(parts ...string) map[string]any {
	return map[string]any{"$ref": "#/" + strings.Join(parts, "/")}
}

// message describes the messages of one type.
func (d *document) message(name string, samples []Sample, known map[string][]byte) error {
	key := d.key(name)
	newest := samples[len(samples)-1]
	var data map[string]any
	note := ""
	if text, ok := known[newest.DataSchema]; ok {
		schema, err := plain(text)
		if err != nil {
			return fmt.Errorf("schema %s: %w", newest.DataSchema, err)
		}
		own := d.schemaKey(newest.DataSchema)
		d.schemas[own] = schema
		data = ref("components", "schemas", own)
	} else {
		var values []json.RawMessage
		for _, s := range samples {
			if s.Data != nil {
				values = append(values, s.Data)
			}
		}
		if schema, ok := Infer(values); ok {
			if schema["description"] == nil {
				schema["description"] = fmt.Sprintf("Inferred from %s; further members may come.", events(len(values)))
			}
			own := d.key(key + ".data")
			d.schemas[own] = schema
			data = ref("components", "schemas", own)
			note = " The schema of its data is inferred from them."
		}
	}
	m := map[string]any{
		"name": name, "title": name, "contentType": d.service.ContentType,
		"summary": fmt.Sprintf("%s of this type came lately.%s", upper(events(len(samples))), note),
		"payload": d.payload(data, name),
	}
	if headers := headerSchema(samples); headers != nil {
		m["headers"] = headers
	}
	var examples []any
	for _, s := range slices.Backward(samples) {
		if len(examples) == maxExamples {
			break
		}
		if len(s.Body) > maxExample || nesting(s.Body) > maxNesting {
			continue
		}
		example := map[string]any{}
		// A message without a body is told by its headers alone.
		if len(s.Body) > 0 {
			example["payload"] = s.Body
		}
		if len(s.Headers) > 0 {
			example["headers"] = s.Headers
		}
		if len(example) > 0 {
			examples = append(examples, example)
		}
	}
	if examples != nil {
		m["examples"] = examples
	}
	d.messages[key] = m
	return nil
}

// nesting is how deep the arrays and objects of a JSON text go, or more: brackets
// in texts count too.
func nesting(text []byte) int {
	depth, deepest := 0, 0
	for _, c := range text {
		switch c {
		case '[', '{':
			depth++
			deepest = max(deepest, depth)
		case ']', '}':
			depth--
		}
	}
	return deepest
}

// schemaKey is the key of a schema that several types may share.
func (d *document) schemaKey(id string) string {
	key := strings.ReplaceAll(strings.TrimPrefix(id, "urn:gridfan:schema:"), ":", ".")
	d.names[key] = true
	return key
}

// payload is the schema of a body that holds data in the envelope.
func (d *document) payload(data map[string]any, eventType string) map[string]any {
	inside := func(envelope, typeMember string) map[string]any {
		properties := map[string]any{}
		if eventType != "" {
			properties[typeMember] = map[string]any{"const": eventType}
		}
		if data != nil {
			properties["data"] = data
		}
		return map[string]any{"allOf": []any{ref("components", "schemas", envelope), map[string]any{"type": "object", "properties": properties}}}
	}
	switch d.service.Envelope {
	case CloudEvent:
		return inside("CloudEvent", "type")
	case CloudEvents:
		return map[string]any{"type": "array", "minItems": 1, "items": inside("CloudEvent", "type")}
	case EventGrid:
		return map[string]any{"type": "array", "minItems": 1, "items": inside("EventGridEvent", "eventType")}
	}
	if data == nil {
		return map[string]any{}
	}
	return data
}

// headerSchema describes headers that all samples have, or some.
func headerSchema(samples []Sample) map[string]any {
	counts := map[string]int{}
	for _, s := range samples {
		for name := range s.Headers {
			counts[name]++
		}
	}
	if len(counts) == 0 {
		return nil
	}
	properties, required := map[string]any{}, []string{}
	for name, n := range counts {
		properties[name] = map[string]any{"type": "string"}
		if n == len(samples) {
			required = append(required, name)
		}
	}
	slices.Sort(required)
	return map[string]any{"type": "object", "properties": properties, "required": required}
}

// plain gives a schema without the members that make it a document of its own.
func plain(text []byte) (map[string]any, error) {
	var schema map[string]any
	if err := json.Unmarshal(text, &schema); err != nil {
		return nil, err
	}
	delete(schema, "$schema")
	delete(schema, "$id")
	return schema, nil
}

// eventGridSchema is Event Grid's own envelope (learn.microsoft.com/azure/event-grid/event-schema;
// 2026-11).
var eventGridSchema = map[string]any{
	"title": "An event in the Event Grid event schema",
	"type":  "object",
	"properties": map[string]any{
		"id": map[string]any{"type": "string"}, "topic": map[string]any{"type": "string"}, "subject": map[string]any{"type": "string"},
		"eventType": map[string]any{"type": "string"}, "eventTime": map[string]any{"type": "string", "format": "date-time"},
		"dataVersion": map[string]any{"type": "string"}, "metadataVersion": map[string]any{"type": "string"},
	},
	"required": []string{"id", "subject", "eventType", "eventTime"},
}

func events(n int) string {
	if n == 1 {
		return "one event"
	}
	return fmt.Sprintf("%d events", n)
}

func upper(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// write puts the document together.
func (d *document) write(samples, left int) ([]byte, error) {
	s := d.service
	about := s.Description
	if len(s.Subjects) > 0 {
		about += "\n\nIts subjects: `" + strings.Join(s.Subjects, "`, `") + "`."
	}
	switch {
	case samples == 0:
		about += "\n\nNo event on them was stored when this was written."
	default:
		about += fmt.Sprintf("\n\nWritten from the newest %s on them; other types may come.", events(samples))
	}
	if left > 0 {
		about += fmt.Sprintf(" %d rarer types are left out.", left)
	}
	messages, refs := map[string]any{}, []any{}
	for key := range d.messages {
		messages[key] = ref("components", "messages", key)
	}
	for _, key := range slices.Sorted(maps.Keys(messages)) {
		refs = append(refs, ref("channels", "deliveries", "messages", key))
	}
	channel := map[string]any{
		"address": s.Address, "title": "Deliveries to " + s.Subscriber, "messages": messages,
	}
	operation := map[string]any{
		"action": "send", "channel": ref("channels", "deliveries"), "messages": refs,
		"summary": "gridfan hands events to " + s.Subscriber + ", each at least once: dedupe on source and id.",
	}
	if s.Method != "" {
		operation["bindings"] = map[string]any{"http": map[string]any{"method": s.Method, "bindingVersion": "0.3.0"}}
	}
	out := struct {
		AsyncAPI           string         `json:"asyncapi"`
		Info               map[string]any `json:"info"`
		DefaultContentType string         `json:"defaultContentType,omitempty"`
		Servers            map[string]any `json:"servers,omitempty"`
		Channels           map[string]any `json:"channels"`
		Operations         map[string]any `json:"operations"`
		Components         map[string]any `json:"components"`
	}{
		AsyncAPI:           Version,
		Info:               map[string]any{"title": "Events for " + s.Subscriber, "version": s.Version, "description": strings.TrimSpace(about)},
		DefaultContentType: s.ContentType,
		Channels:           map[string]any{"deliveries": channel},
		Operations:         map[string]any{"deliver": operation},
		Components:         map[string]any{"messages": d.messages, "schemas": d.schemas},
	}
	if s.Host != "" {
		server := map[string]any{"host": s.Host, "protocol": s.Protocol}
		if s.Pathname != "" {
			server["pathname"] = s.Pathname
		}
		if s.ServerDescription != "" {
			server["description"] = s.ServerDescription
		}
		out.Servers = map[string]any{"target": server}
		channel["servers"] = []any{ref("servers", "target")}
	}
	return json.MarshalIndent(out, "", "  ")
}
