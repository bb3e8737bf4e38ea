package cloudevents_test

import (
	"testing"

	"github.com/gridfan/gridfan/schemas/cloudevents"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/schematest"
)

// Binary mode takes data with any layout.
var invariants = schematest.Invariants{Kind: event.KindCloudEvents, Layout: true}

func FuzzParse(f *testing.F) {
	for _, g := range schematest.Load(f) {
		f.Add(string(g.File("headers")), g.Body)
	}
	const all = "ce-specversion: 1.0\nce-id: 1\nce-source: /s\nce-type: t\n"
	f.Add(all+"Content-Type: text/plain\nce-subject: \"a\\\" %E2%82%AC%\"", []byte("\xff"))
	f.Add(all+"Content-Type: application/cloudevents+json\nCE-X-Y: 1\nce-data: 2", []byte(" [1] "))
	f.Add(all+"ce-time: soon\nce-unmapped: 1\nce-unmapped: 2", []byte{})
	f.Add("Content-Type: application/cloudevents+avro", []byte("null"))
	f.Add("content-type: APPLICATION/CLOUDEVENTS-BATCH+JSON;charset=utf-16", []byte(`[{"specversion":"1.0","id":"\ud800"},{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"AA==","Upper":[1]}]`))
	f.Fuzz(func(t *testing.T, head string, body []byte) {
		invariants.Request(t, cloudevents.Parse, schematest.Header(head), body)
	})
}
