package event_test

import (
	"testing"
	"time"

	"github.com/gridfan/gridfan/schemas/event"
)

const orderData = `{"orderNumber":"SO-1","company":"usmf","confirmed":true,"customer":{"account":"US-001","name":"Contoso Retail San Diego","contact":{"name":"Fünke Göbel","email":"orders@contoso.example","phone":null}},"amount":{"currency":"USD","net":1249.50,"tax":237.405},"lines":[{"item":"D0001","quantity":12,"price":49.90,"text":"Speaker, \"mid-range\", walnut"},{"item":"D0004","quantity":1,"price":650.70,"text":"Cabinet, two doors, walnut"}],"delivery":{"mode":"20","date":"2026-03-21","address":"123 Coffee Street, Suite 300, Redmond, WA 98052"},"tags":["b2b","priority"],"recordId":5637144576,"url":"https://usmf.operations.dynamics.example/?cmp=usmf&mi=SalesTableDetails&order=SO-1"}`

// order is an event as the router publishes it.
func order() *event.Event {
	e := &event.Event{
		ID: "9ac1b4f3-7f0a-4c57-8f2b-1", Type: "Contoso.Sales.OrderConfirmed",
		Source:          "/subscriptions/319a9601-1ec0-0000-aebc-8fe82724c81e/resourceGroups/orders/providers/Microsoft.EventGrid/topics/orders",
		Subject:         "/companies/usmf/orders/SO-1",
		Time:            time.Date(2026, 3, 14, 9, 26, 53, 589793200, time.UTC),
		DataContentType: "application/json", Data: []byte(orderData), DataJSON: true,
	}
	e.Set("dataversion", "1.0")
	e.Set("metadataversion", "1")
	e.Set(event.ExtPartitionKey, e.Subject)
	e.Set(event.ExtSource, "orders")
	e.Set(event.ExtVia, "push")
	e.Set(event.ExtRecordedTime, "2026-03-14T09:26:53.998Z")
	return e
}

func BenchmarkEncode(b *testing.B) {
	e := order()
	b.ReportAllocs()
	for b.Loop() {
		e.Encode()
	}
}

func BenchmarkDecode(b *testing.B) {
	header, body := order().Encode()
	header["Nats-Msg-Id"] = []string{"Zm9vYmFyYmF6cXV4Zm9vYmFy"}
	header["Gridfan-Digest"] = []string{"cd2731f3b0aab4f7b05dfdd621f1f8e1"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := event.Decode(header, body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSubject(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		event.Subject(event.KindEventGrid, "orders", "orders", "Contoso.Sales.OrderConfirmed")
	}
}

func BenchmarkDigest(b *testing.B) {
	e := order()
	b.ReportAllocs()
	for b.Loop() {
		event.Digest(e.Type, e.Subject, e.Data, true)
	}
}

func BenchmarkJSON(b *testing.B) {
	e := order()
	b.ReportAllocs()
	for b.Loop() {
		e.JSON()
	}
}
