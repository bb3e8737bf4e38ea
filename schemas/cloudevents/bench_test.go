package cloudevents_test

import (
	"testing"

	"github.com/gridfan/gridfan/schemas/cloudevents"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/schematest"
)

const (
	data = `{"orderNumber":"SO-%d","company":"usmf","confirmed":true,"customer":{"account":"US-001","name":"Contoso Retail San Diego","contact":{"name":"Fünke Göbel","email":"orders@contoso.example","phone":null}},"amount":{"currency":"USD","net":1249.50,"tax":237.405},"lines":[{"item":"D0001","quantity":12,"price":49.90,"text":"Speaker, \"mid-range\", walnut"},{"item":"D0004","quantity":1,"price":650.70,"text":"Cabinet, two doors, walnut"}],"delivery":{"mode":"20","date":"2026-03-21","address":"123 Coffee Street, Suite 300, Redmond, WA 98052"},"tags":["b2b","priority"],"recordId":5637144576,"url":"https://usmf.operations.dynamics.example/?cmp=usmf&mi=SalesTableDetails&order=SO-%d"}`

	order = `{"id":"9ac1b4f3-7f0a-4c57-8f2b-%d","specversion":"1.0","source":"/subscriptions/319a9601-1ec0-0000-aebc-8fe82724c81e/resourceGroups/orders/providers/Microsoft.EventGrid/topics/orders","subject":"/companies/usmf/orders/SO-%d","type":"Contoso.Sales.OrderConfirmed","time":"2026-03-14T09:26:53.5897932Z","datacontenttype":"application/json","traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01","data":` + data + `}`
)

func BenchmarkParse(b *testing.B) {
	b.Run("batch=100", func(b *testing.B) {
		header := map[string][]string{"Content-Type": {event.MediaBatch}}
		schematest.Bench(b, cloudevents.Parse, header, schematest.Batch(order, 100), 100)
	})
	b.Run("binary", func(b *testing.B) {
		schematest.Bench(b, cloudevents.Parse, map[string][]string{
			"Host": {"gridfan.example"}, "User-Agent": {"Go-http-client/1.1"}, "Content-Length": {"800"},
			"Content-Type": {"application/json"}, "Ce-Specversion": {"1.0"}, "Ce-Id": {"9ac1b4f3-7f0a-4c57-8f2b-1"},
			"Ce-Source": {"/contoso/orders"}, "Ce-Type": {"Contoso.Sales.OrderConfirmed"},
			"Ce-Subject": {"/companies/usmf/orders/SO-1"}, "Ce-Time": {"2026-03-14T09:26:53.5897932Z"},
			"Ce-Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
		}, []byte(data), 1)
	})
}
