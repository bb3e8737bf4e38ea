package eventgrid_test

import (
	"testing"

	"github.com/gridfan/gridfan/schemas/eventgrid"
	"github.com/gridfan/gridfan/schemas/schematest"
)

// order is an event of a custom topic: 1 KB, nested, with an escape and letters
// beyond ASCII.
const order = `{"id":"9ac1b4f3-7f0a-4c57-8f2b-%d","topic":"/subscriptions/319a9601-1ec0-0000-aebc-8fe82724c81e/resourceGroups/orders/providers/Microsoft.EventGrid/topics/orders","subject":"/companies/usmf/orders/SO-%d","eventType":"Contoso.Sales.OrderConfirmed","eventTime":"2026-03-14T09:26:53.5897932Z","dataVersion":"1.0","metadataVersion":"1","data":{"orderNumber":"SO-%d","company":"usmf","confirmed":true,"customer":{"account":"US-001","name":"Contoso Retail San Diego","contact":{"name":"Fünke Göbel","email":"orders@contoso.example","phone":null}},"amount":{"currency":"USD","net":1249.50,"tax":237.405},"lines":[{"item":"D0001","quantity":12,"price":49.90,"text":"Speaker, \"mid-range\", walnut"},{"item":"D0004","quantity":1,"price":650.70,"text":"Cabinet, two doors, walnut"}],"delivery":{"mode":"20","date":"2026-03-21","address":"123 Coffee Street, Suite 300, Redmond, WA 98052"},"tags":["b2b","priority"],"recordId":5637144576,"url":"https://usmf.operations.dynamics.example/?cmp=usmf&mi=SalesTableDetails&order=SO-%d"}}`

func BenchmarkParse(b *testing.B) {
	b.Run("batch=100", func(b *testing.B) {
		schematest.Bench(b, eventgrid.Parse, nil, schematest.Batch(order, 100), 100)
	})
	b.Run("batch=1", func(b *testing.B) {
		schematest.Bench(b, eventgrid.Parse, nil, schematest.Batch(order, 1), 1)
	})
}
