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
		keyed, space("space-mi", managed), space("space-who", credentials.AzureAuth{Default: true}), space("space-wi", workload),
	}
	if d := cmp.Diff(want, c.Received); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if len(c.Sources) != 1 || c.Sources[0].Name != "bus-who" || c.Count() != 8 {
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
