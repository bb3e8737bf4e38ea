package config

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/router/normalise"
	"github.com/gridfan/gridfan/router/receive"
)

// fromAzure has every key of the ways in through a broker.
const fromAzure = `
sources:
  bus:
    kind: dataverse
    environment: contoso
    rationale: "It is there already."
    limits: { body: 1MiB }
    receive: { serviceBus: { queue: crm, sessions: true, batch: 50, concurrency: 2, auth: { connectionString: "${env:BUS}" } } }
  bus-mi: { kind: fno, businessKeys: { A: B }, receive: { serviceBus: { namespace: b.example.com, topic: fo, subscription: all, auth: { managedIdentity: { clientID: 11111111-2222-3333-4444-555555555555 } } } } }
  bus-wi: { kind: fno, receive: { serviceBus: { namespace: b.example.com, queue: fo, auth: { workloadIdentity: { clientID: 11111111-2222-3333-4444-555555555555, tenant: example.com } } } } }
  bus-who: { kind: fno, push: { auth: none }, receive: { serviceBus: { namespace: b.example.com, queue: fo, auth: { default: true } } } }
  space: { kind: cloudevents, receive: { eventGridNamespace: { endpoint: "https://n.example.com", topic: orders, subscription: all, batch: 10, wait: 20s, auth: { key: "${env:KEY}" } } } }
  hub: { kind: eventgrid, receive: { eventHub: { hub: orders, consumerGroup: gridfan, start: 4711, batch: 20, auth: { connectionString: "${env:BUS}" } } } }
  hub-mi: { kind: eventgrid, receive: { eventHub: { namespace: b.example.com, hub: orders, start: 2026-11-01T10:00:00Z, auth: { managedIdentity: { clientID: 11111111-2222-3333-4444-555555555555 } } } } }
  hub-wi: { kind: eventgrid, receive: { eventHub: { namespace: b.example.com, hub: orders, start: now, auth: { workloadIdentity: { clientID: 11111111-2222-3333-4444-555555555555, tenant: example.com } } } } }
  hub-who: { kind: eventgrid, receive: { eventHub: { namespace: b.example.com, hub: orders, auth: { default: true } } } }
  space-mi: { kind: cloudevents, receive: { eventGridNamespace: { endpoint: "https://n.example.com", topic: orders, subscription: all, auth: { managedIdentity: { clientID: 11111111-2222-3333-4444-555555555555 } } } } }
  space-wi: { kind: cloudevents, receive: { eventGridNamespace: { endpoint: "https://n.example.com", topic: orders, subscription: all, auth: { workloadIdentity: { clientID: 11111111-2222-3333-4444-555555555555, tenant: example.com } } } } }
  space-who: { kind: cloudevents, receive: { eventGridNamespace: { endpoint: "https://n.example.com", topic: orders, subscription: all, auth: { default: true } } } }
`

func TestParseReceived(t *testing.T) {
	c, err := Parse("gridfan.yaml", []byte(fromAzure), fake)
	if err != nil {
		t.Fatal(err)
	}
	managed := credentials.AzureAuth{ManagedIdentity: &credentials.ManagedIdentity{ClientID: "11111111-2222-3333-4444-555555555555"}}
	workload := credentials.AzureAuth{WorkloadIdentity: &credentials.WorkloadIdentity{ClientID: "11111111-2222-3333-4444-555555555555", Tenant: "example.com"}}
	bus := func(name string, auth credentials.AzureAuth) receive.Source {
		return receive.Source{Name: name, Kind: "fno", Environment: name, Body: 4 << 20, From: &receive.Config{ServiceBus: &receive.ServiceBus{
			Namespace: "b.example.com", Queue: "fo", Batch: 100, Concurrency: 1, Auth: auth,
		}}}
	}
	space := func(name string, auth credentials.AzureAuth) receive.Source {
		return receive.Source{Name: name, Kind: "cloudevents", Environment: name, Body: 4 << 20, From: &receive.Config{EventGridNamespace: &receive.Namespace{
			Endpoint: "https://n.example.com", Topic: "orders", Subscription: "all", Batch: 100, Wait: time.Minute, Auth: auth,
		}}}
	}
	hub := func(name, start string, auth credentials.AzureAuth) receive.Source {
		return receive.Source{Name: name, Kind: "eventgrid", Environment: name, Body: 4 << 20, From: &receive.Config{EventHub: &receive.EventHub{
			Namespace: "b.example.com", Hub: "orders", ConsumerGroup: "$Default", Start: start, Batch: 100, Auth: auth,
		}}}
	}
	fully := hub("hub", "4711", credentials.AzureAuth{ConnectionString: "Endpoint=sb://b.example.com/;SharedAccessKeyName=n;SharedAccessKey=canary"})
	fully.From.EventHub.Namespace, fully.From.EventHub.ConsumerGroup, fully.From.EventHub.Batch = "", "gridfan", 20
	first := receive.Source{
		Name: "bus", Kind: "dataverse", Environment: "contoso", Rationale: "It is there already.", Body: 1 << 20,
		From: &receive.Config{ServiceBus: &receive.ServiceBus{Queue: "crm", Sessions: true, Batch: 50, Concurrency: 2, Auth: credentials.AzureAuth{
			ConnectionString: "Endpoint=sb://b.example.com/;SharedAccessKeyName=n;SharedAccessKey=canary",
		}}},
	}
	topic := bus("bus-mi", managed)
	topic.Options = normalise.Options{BusinessKeys: map[string][]string{"A": {"B"}}}
	topic.From.ServiceBus.Queue, topic.From.ServiceBus.Topic, topic.From.ServiceBus.Subscription = "", "fo", "all"
	keyed := space("space", credentials.AzureAuth{Key: "key-key-key-key-key"})
	keyed.From.EventGridNamespace.Batch, keyed.From.EventGridNamespace.Wait = 10, 20*time.Second
	want := []receive.Source{
		first, topic, bus("bus-who", credentials.AzureAuth{Default: true}), bus("bus-wi", workload),
		fully, hub("hub-mi", "2026-11-01T10:00:00Z", managed), hub("hub-who", "beginning", credentials.AzureAuth{Default: true}), hub("hub-wi", "now", workload),
		keyed, space("space-mi", managed), space("space-who", credentials.AzureAuth{Default: true}), space("space-wi", workload),
	}
	if d := cmp.Diff(want, c.Received); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if len(c.Sources) != 1 || c.Sources[0].Name != "bus-who" || c.Count() != 12 {
		t.Errorf("%d are pushed, %d in all", len(c.Sources), c.Count())
	}
	if text := fmt.Sprint(c.Sections()); strings.Contains(text, "canary") {
		t.Error("a secret is in the digests")
	}
}

// Mistakes are told where they stand, with the fix, and without secrets.
func TestReceivedMistakes(t *testing.T) {
	for name, tt := range map[string]struct{ source, want string }{
		"nothing":        {`{ kind: fno, receive: { serviceBus: { batch: 5 } } }`, "g.yaml:1:39: sources.x.receive.serviceBus: want queue, or topic and subscription"},
		"topic alone":    {`{ kind: fno, receive: { serviceBus: { namespace: h.example.com, topic: t, auth: { default: true } } } }`, "sources.x.receive.serviceBus.subscription: missing"},
		"queue and more": {`{ kind: fno, receive: { serviceBus: { namespace: h.example.com, queue: q, subscription: s, auth: { default: true } } } }`, "sources.x.receive.serviceBus.subscription: a queue has none"},
		"two brokers":    {`{ kind: fno, receive: { serviceBus: { namespace: h.example.com, queue: q, auth: { default: true } }, eventGridNamespace: { endpoint: "https://h", topic: t, subscription: s, auth: { default: true } } } }`, "exclude each other"},
		"batch":          {`{ kind: fno, receive: { serviceBus: { namespace: h.example.com, queue: q, batch: 5000, auth: { default: true } } } }`, "want 1 to 1000, got 5000"},
		"hub":            {`{ kind: fno, receive: { eventHub: { namespace: h.example.com, auth: { default: true } } } }`, "sources.x.receive.eventHub.hub: missing"},
		"hub's name":     {`{ kind: fno, receive: { eventHub: { namespace: h.example.com, hub: a/b, auth: { default: true } } } }`, "sources.x.receive.eventHub.hub: a name is"},
		"hub's group":    {`{ kind: fno, receive: { eventHub: { namespace: h.example.com, hub: a, consumerGroup: b/c, auth: { default: true } } } }`, "sources.x.receive.eventHub.consumerGroup: a name is"},
		"hub's start":    {`{ kind: fno, receive: { eventHub: { namespace: h.example.com, hub: a, start: soon, auth: { default: true } } } }`, "g.yaml:1:92: sources.x.receive.eventHub.start: want beginning, now, a time as in"},
		"hub's string":   {`{ kind: fno, receive: { eventHub: { hub: a, auth: { connectionString: "Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey=canary-canary;EntityPath=b" } } } }`, "its EntityPath is another"},
		"key":            {`{ kind: fno, receive: { eventGridNamespace: { endpoint: "http://h", topic: t, subscription: s, auth: { default: true } } } }`, "want https"},
		"wait":           {`{ kind: fno, receive: { eventGridNamespace: { endpoint: "https://h", topic: t, subscription: s, wait: 5s, auth: { default: true } } } }`, "want 10s to 2m"},
		"rate":           {`{ kind: fno, limits: { rate: 5/s }, receive: { serviceBus: { namespace: h.example.com, queue: q, auth: { default: true } } } }`, "sources.x.limits.rate: this bounds what is pushed"},
		"kind":           {`{ receive: { serviceBus: { namespace: h.example.com, queue: q, auth: { default: true } } } }`, "kind: missing"},
		"string":         {`{ kind: fno, receive: { serviceBus: { queue: q, auth: { connectionString: "Endpoint=sb://h/;SharedAccessKey=canary-canary" } } } }`, "auth.connectionString: want Endpoint=sb://HOST/"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("g.yaml", []byte("sources: { x: "+tt.source+" }"), fake)
			if err == nil || strings.Contains(err.Error(), "canary-canary") {
				t.Fatalf("%v", err)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}
