package ingress_test

import (
	"net/http/httptest"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/messaging"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/eventgrid/azeventgrid"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
)

// TestAzureClient publishes with Microsoft's own client, which believes that it
// talks to an Event Grid topic.
func TestAzureClient(t *testing.T) {
	e := open(t)
	s := httptest.NewTLSServer(e.in) // it sends keys over TLS only
	defer s.Close()
	client := func(k string) *azeventgrid.Client {
		c, err := azeventgrid.NewClientWithSharedKeyCredential(s.URL+"/ingress/shop", azcore.NewKeyCredential(k), &azeventgrid.ClientOptions{
			ClientOptions: azcore.ClientOptions{
				Transport: s.Client(),
				Retry:     policy.RetryOptions{MaxRetries: -1},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	at := time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)
	events := []azeventgrid.Event{{
		ID: new("az-1"), EventType: new("Order.Placed"), Subject: new("orders/1"), EventTime: &at,
		DataVersion: new("1.0"), Data: map[string]any{"amount": 90055.6},
	}}
	if _, err := client(key).PublishEvents(t.Context(), events, nil); err != nil {
		t.Fatal(err)
	}
	ce, err := messaging.NewCloudEvent("/shop/orders", "order.placed", map[string]any{"n": 9007199254740993}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client(key).PublishCloudEvents(t.Context(), []messaging.CloudEvent{ce}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := client(canary).PublishEvents(t.Context(), events, nil); err == nil {
		t.Error("a wrong key is taken")
	} else if re, ok := err.(*azcore.ResponseError); !ok || re.StatusCode != 401 || re.ErrorCode != "unauthorized" {
		t.Errorf("a wrong key: %v", err)
	}

	stored := e.stored(broker.StreamEvents)
	if len(stored) != 2 {
		t.Fatalf("%d events are stored, want 2", len(stored))
	}
	for i, want := range []struct{ subject, id, source, data string }{
		{"events.eventgrid.shop.-.Order.Placed", "az-1", "/gridfan/shop", `{"amount":90055.6}`},
		{"events.eventgrid.shop.orders.order.placed", ce.ID, "/shop/orders", `{"n":9007199254740993}`},
	} {
		got, err := event.Decode(stored[i].Header, stored[i].Data)
		if err != nil {
			t.Fatal(err)
		}
		if stored[i].Subject != want.subject || got.ID != want.id || got.Source != want.source || string(got.Data) != want.data {
			t.Errorf("stored %+v with data %s on %s", got, got.Data, stored[i].Subject)
		}
	}
}
