package rawjson_test

import (
	"strings"
	"testing"

	"github.com/gridfan/gridfan/schemas/rawjson"
)

const order = `{"id":"9ac1b4f3-7f0a-4c57-8f2b-1","topic":"/subscriptions/319a9601-1ec0-0000-aebc-8fe82724c81e/resourceGroups/orders/providers/Microsoft.EventGrid/topics/orders","subject":"/companies/usmf/orders/SO-1","eventType":"Contoso.Sales.OrderConfirmed","eventTime":"2026-03-14T09:26:53.5897932Z","dataVersion":"1.0","metadataVersion":"1","data":{"orderNumber":"SO-1","company":"usmf","confirmed":true,"customer":{"account":"US-001","name":"Contoso Retail San Diego","contact":{"name":"Fünke Göbel","email":"orders@contoso.example","phone":null}},"amount":{"currency":"USD","net":1249.50,"tax":237.405},"lines":[{"item":"D0001","quantity":12,"price":49.90,"text":"Speaker, \"mid-range\", walnut"},{"item":"D0004","quantity":1,"price":650.70,"text":"Cabinet, two doors, walnut"}],"delivery":{"mode":"20","date":"2026-03-21","address":"123 Coffee Street, Suite 300, Redmond, WA 98052"},"tags":["b2b","priority"],"recordId":5637144576,"url":"https://usmf.operations.dynamics.example/?cmp=usmf&mi=SalesTableDetails&order=SO-1"}}`

func BenchmarkElements(b *testing.B) {
	body := []byte("[" + strings.Repeat(order+",", 99) + order + "]")
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := rawjson.Elements(body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMembers(b *testing.B) {
	obj := []byte(order)
	b.SetBytes(int64(len(obj)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := rawjson.Members(obj); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSum(b *testing.B) {
	obj := []byte(order)
	b.SetBytes(int64(len(obj)))
	b.ReportAllocs()
	for b.Loop() {
		rawjson.Sum(obj)
	}
}

func BenchmarkCompact(b *testing.B) {
	for name, v := range map[string]string{"compact": order, "spaced": strings.ReplaceAll(order, `,"`, `, "`)} {
		b.Run(name, func(b *testing.B) {
			obj := []byte(v)
			b.SetBytes(int64(len(obj)))
			b.ReportAllocs()
			for b.Loop() {
				if len(rawjson.Compact(obj)) != len(order) {
					b.Fatal("not compact")
				}
			}
		})
	}
}
