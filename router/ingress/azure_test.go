package ingress_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/messaging"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/eventgrid/azeventgrid"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/eventgrid/aznamespaces"
	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/auth"
	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/schemas/custom"
	"github.com/gridfan/gridfan/schemas/event"
)

// azure is an edge that Microsoft's own clients talk to, over TLS: they send
// credentials no other way.
type azure struct {
	*edge
	srv *httptest.Server
}

func newAzure(t *testing.T) *azure {
	t.Helper()
	cfg := config()
	anyKey := auth.Config{AnyOf: []auth.Method{{Key: secret.New(key)}, {SAS: &auth.SAS{Keys: []secret.String{secret.New(sasKey)}}}}}
	cfg.Sources = append(cfg.Sources,
		ingress.Source{Name: "topic", Kind: event.KindEventGrid, Auth: anyKey},
		ingress.Source{Name: "ce", Kind: event.KindCloudEvents, Auth: anyKey},
		ingress.Source{Name: "own", Kind: event.KindCustom, Auth: anyKey, Mapping: &custom.Mapping{ID: ".no", Type: `"own"`}},
		ingress.Source{Name: "few", Kind: event.KindCloudEvents, Auth: anyKey, Limits: ingress.Limits{Rate: 0.001}})
	a := &azure{edge: newEdge(t, brokertest.New(t), cfg)}
	a.srv = httptest.NewTLSServer(a.in)
	t.Cleanup(a.srv.Close)
	return a
}

func (a *azure) options() azcore.ClientOptions {
	return azcore.ClientOptions{Transport: a.srv.Client(), Retry: policy.RetryOptions{MaxRetries: -1}}
}

func (a *azure) publisher(source, k string) *azeventgrid.Client {
	a.t.Helper()
	c, err := azeventgrid.NewClientWithSharedKeyCredential(a.srv.URL+"/ingress/"+source, azcore.NewKeyCredential(k), &azeventgrid.ClientOptions{ClientOptions: a.options()})
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

func (a *azure) withSAS(source, token string) *azeventgrid.Client {
	a.t.Helper()
	c, err := azeventgrid.NewClientWithSAS(a.srv.URL+"/ingress/"+source, azcore.NewSASCredential(token), &azeventgrid.ClientOptions{ClientOptions: a.options()})
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

func (a *azure) sender(topic, k string) *aznamespaces.SenderClient {
	a.t.Helper()
	c, err := aznamespaces.NewSenderClientWithSharedKeyCredential(a.srv.URL, topic, azcore.NewKeyCredential(k), &aznamespaces.SenderClientOptions{ClientOptions: a.options()})
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

func cloudEvent(t *testing.T, id string) messaging.CloudEvent {
	t.Helper()
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.FixedZone("", 2*60*60))
	ce, err := messaging.NewCloudEvent("/shop/orders", "order.placed", map[string]any{"n": 9007199254740993}, &messaging.CloudEventOptions{Time: &at, Extensions: map[string]any{"tenant": "t1"}})
	if err != nil {
		t.Fatal(err)
	}
	ce.ID = id
	return ce
}

// TestAzureClients publishes with Microsoft's own clients, which believe that
// they talk to an Event Grid topic or namespace. Anything but 200 is an error
// for them, and a redirect loses the event.
func TestAzureClients(t *testing.T) {
	a := newAzure(t)
	at := time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)
	grid := func(id string) []azeventgrid.Event {
		return []azeventgrid.Event{{
			ID: &id, EventType: new("Order.Placed"), Subject: new("orders/1"), EventTime: &at,
			DataVersion: new("1.0"), Data: map[string]any{"amount": 90055.6},
		}}
	}
	topicToken := sasToken(a.srv.URL+"/ingress/topic", sasKey, time.Now().Add(time.Hour))
	const plain, json = `{"amount":90055.6}`, `{"n":9007199254740993}`
	for _, tt := range []struct {
		name    string
		publish func(context.Context) error
		stored  [][3]string // subject, id, data
	}{
		{"PublishEvents, key", func(ctx context.Context) error {
			_, err := a.publisher("topic", key).PublishEvents(ctx, grid("az-1"), nil)
			return err
		}, [][3]string{{"events.eventgrid.topic.-.Order.Placed", "az-1", plain}}},
		{"PublishEvents, SAS token", func(ctx context.Context) error {
			_, err := a.withSAS("topic", topicToken).PublishEvents(ctx, grid("az-2"), nil)
			return err
		}, [][3]string{{"events.eventgrid.topic.-.Order.Placed", "az-2", plain}}},
		{"PublishEvents of nothing", func(ctx context.Context) error {
			_, err := a.publisher("topic", key).PublishEvents(ctx, nil, nil)
			return err
		}, nil},
		{"PublishCloudEvents to an Event Grid source", func(ctx context.Context) error {
			_, err := a.publisher("topic", key).PublishCloudEvents(ctx, []messaging.CloudEvent{cloudEvent(t, "az-3")}, nil)
			return err
		}, [][3]string{{"events.eventgrid.topic.orders.order.placed", "az-3", json}}},
		{"PublishCloudEvents, SAS token", func(ctx context.Context) error {
			_, err := a.withSAS("ce", sasToken(a.srv.URL+"/ingress/ce", sasKey, time.Now().Add(time.Hour))).PublishCloudEvents(ctx, []messaging.CloudEvent{cloudEvent(t, "az-4"), cloudEvent(t, "az-5")}, nil)
			return err
		}, [][3]string{{"events.cloudevents.ce.orders.order.placed", "az-4", json}, {"events.cloudevents.ce.orders.order.placed", "az-5", json}}},
		{"PublishCustomEventEvents", func(ctx context.Context) error {
			_, err := a.publisher("own", key).PublishCustomEventEvents(ctx, []any{map[string]any{"no": "az-6"}, map[string]any{"no": 7}}, nil)
			return err
		}, [][3]string{{"events.custom.own.-.own", "az-6", `{"no":"az-6"}`}, {"events.custom.own.-.own", "7", `{"no":7}`}}},
		{"SendEvent", func(ctx context.Context) error {
			_, err := a.sender("ce", key).SendEvent(ctx, new(cloudEvent(t, "az-7")), nil)
			return err
		}, [][3]string{{"events.cloudevents.ce.orders.order.placed", "az-7", json}}},
		{"SendEvents", func(ctx context.Context) error {
			_, err := a.sender("ce", key).SendEvents(ctx, []*messaging.CloudEvent{new(cloudEvent(t, "az-8")), new(cloudEvent(t, "az-9"))}, nil)
			return err
		}, [][3]string{{"events.cloudevents.ce.orders.order.placed", "az-8", json}, {"events.cloudevents.ce.orders.order.placed", "az-9", json}}},
		{"SendEvent to an Event Grid source", func(ctx context.Context) error {
			_, err := a.sender("topic", key).SendEvent(ctx, new(cloudEvent(t, "az-10")), nil)
			return err
		}, [][3]string{{"events.eventgrid.topic.orders.order.placed", "az-10", json}}},
		{"SendEvents of nothing", func(ctx context.Context) error {
			_, err := a.sender("ce", key).SendEvents(ctx, nil, nil)
			return err
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a.t = t
			before := len(a.stored(broker.StreamEvents))
			var resp *http.Response
			if err := tt.publish(policy.WithCaptureResponse(t.Context(), &resp)); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != http.StatusOK {
				t.Errorf("HTTP %d", resp.StatusCode)
			}
			var got [][3]string
			for _, m := range a.stored(broker.StreamEvents)[before:] {
				ev, err := event.Decode(m.Header, m.Data)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, [3]string{m.Subject, ev.ID, string(ev.Data)})
				if strings.HasSuffix(m.Subject, "order.placed") && (ev.Source != "/shop/orders" || ev.Get("tenant") != "t1" || ev.Time.Format(time.RFC3339) != "2026-11-01T12:00:00+02:00") {
					t.Errorf("stored %+v", ev)
				}
			}
			if d := cmp.Diff(tt.stored, got); d != "" {
				t.Errorf("stored (-want +got):\n%s", d)
			}
		})
	}
	a.t = t
	if held := a.stored(broker.StreamQuarantine); len(held) != 0 {
		t.Errorf("%d entries in quarantine", len(held))
	}
}

// TestAzureClientErrors: what was wrong shows in the text of the clients'
// errors, and no credential does.
func TestAzureClientErrors(t *testing.T) {
	a := newAzure(t)
	grid := []azeventgrid.Event{{ID: new("e-1"), EventType: new("T")}}
	ce := cloudEvent(t, "e-2")
	if _, err := a.sender("few", key).SendEvent(t.Context(), &ce, nil); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		publish func() error
		status  int
		code    string
	}{
		{"wrong key", func() error { _, err := a.publisher("topic", canary).PublishEvents(t.Context(), grid, nil); return err }, 401, "unauthorized"},
		{"wrong SAS token", func() error {
			_, err := a.withSAS("topic", sasToken(a.srv.URL+"/ingress/other", sasKey, time.Now().Add(time.Hour))).PublishEvents(t.Context(), grid, nil)
			return err
		}, 401, "unauthorized"},
		{"unknown source", func() error { _, err := a.publisher("nobody", key).PublishEvents(t.Context(), grid, nil); return err }, 404, "unknown-source"},
		{"too large", func() error {
			_, err := a.publisher("own", key).PublishCustomEventEvents(t.Context(), []any{strings.Repeat("x", 5<<20)}, nil)
			return err
		}, 413, "body-too-large"},
		{"namespace, wrong key", func() error { _, err := a.sender("ce", canary).SendEvent(t.Context(), &ce, nil); return err }, 401, "unauthorized"},
		{"namespace, unknown topic", func() error { _, err := a.sender("my topic", key).SendEvent(t.Context(), &ce, nil); return err }, 404, "unknown-source"},
		{"namespace, rate limit", func() error {
			_, err := a.sender("few", key).SendEvents(t.Context(), []*messaging.CloudEvent{&ce}, nil)
			return err
		}, 503, "rate-limit"},
	} {
		err := tt.publish()
		re, ok := errors.AsType[*azcore.ResponseError](err)
		if !ok || re.StatusCode != tt.status || re.ErrorCode != tt.code {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if text := err.Error(); !strings.Contains(text, tt.code) || strings.Contains(text, canary) || strings.Contains(text, key) || strings.Contains(text, sasKey) {
			t.Errorf("%s: %s", tt.name, text)
		}
	}
	for range 2 {
		a.in.Stop()
		_, err := a.sender("ce", key).SendEvent(t.Context(), &ce, nil)
		if re, ok := errors.AsType[*azcore.ResponseError](err); !ok || re.ErrorCode != "stopping" || re.RawResponse.Header.Get("Retry-After") == "" {
			t.Errorf("stopping: %v", err)
		}
	}
}
