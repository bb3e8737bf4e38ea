package businessevent_test

import (
	"testing"

	"github.com/gridfan/gridfan/schemas/businessevent"
	"github.com/gridfan/gridfan/schemas/schematest"
)

const (
	confirmed = `{"BusinessEventId":"PurchaseOrderConfirmedBusinessEvent","BusinessEventLegalEntity":"usmf","ContextRecordSubject":"","ControlNumber":5637144576,"EventId":"55A81094-A14E-46A6-A12C-%d","EventTime":"/Date(1637246655000)/","EventTimeIso8601":"2021-11-18T14:44:15.1234567Z","InitiatingUserAzureActiveDirectoryObjectId":"{B1A8D5B4-9F4C-4B7E-8E3F-5C1D2E3F4A5B}","LegalEntity":"usmf","MajorVersion":0,"MinorVersion":0,"ParentContextRecordSubjects":[],"PurchaseJournal":"USMF-000018-2","PurchaseOrderDate":"/Date(1637193600000)/","PurchaseOrderNumber":"USMF-000018","PurchaseType":"Purch","TransactionCurrencyAmount":90055.6,"TransactionCurrencyCode":"USD","VendorAccount":"USMF-000004"}`

	enveloped = `{"id":"55A81094-A14E-46A6-A12C-%d","topic":"/subscriptions/319a9601-1ec0-0000-aebc-8fe82724c81e/resourceGroups/erp/providers/Microsoft.EventGrid/topics/erp","subject":"Purch_PurchaseOrderConfirmedBusinessEvent_USMF","eventType":"PurchaseOrderConfirmedBusinessEvent","eventTime":"2021-11-18T14:44:15.1234567Z","dataVersion":"1","metadataVersion":"1","data":` + confirmed + `}`
)

func BenchmarkParse(b *testing.B) {
	b.Run("flat", func(b *testing.B) {
		schematest.Bench(b, businessevent.Parse, nil, schematest.Batch(confirmed, 1), 1)
	})
	b.Run("eventgrid batch=100", func(b *testing.B) {
		schematest.Bench(b, businessevent.Parse, nil, schematest.Batch(enveloped, 100), 100)
	})
}
