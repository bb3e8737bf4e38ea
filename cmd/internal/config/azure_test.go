package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/subscribers/eventgrid"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/servicebus"
)

// inAzure has every key of the ways out that lead to Azure.
const inAzure = `
sources: { prod: { kind: fno, push: { auth: none } } }
subscribers:
  grid:
    subjects: events.>
    deliver: { eventGrid: { endpoint: "https://t.example.com/api/events", schema: eventgrid, auth: { key: "${env:KEY}" } } }
  grid-sas: { subjects: events.>, deliver: { eventGrid: { endpoint: "https://t.example.com/api/events", auth: { sas: "${env:KEY}" } } } }
  grid-mi: { subjects: events.>, deliver: { eventGrid: { endpoint: "https://t.example.com/", auth: { managedIdentity: { clientID: 11111111-2222-3333-4444-555555555555 } } } } }
  grid-wi: { subjects: events.>, deliver: { eventGrid: { endpoint: "https://t.example.com/", auth: { workloadIdentity: { clientID: 11111111-2222-3333-4444-555555555555, tenant: example.com } } } } }
  grid-who: { subjects: events.>, deliver: { eventGrid: { endpoint: "https://t.example.com/", auth: { default: true } } } }
  space: { subjects: events.>, deliver: { eventGridNamespace: { endpoint: "https://${env:HOST}", topic: orders, auth: { key: "${env:KEY}" } } } }
  space-mi: { subjects: events.>, deliver: { eventGridNamespace: { endpoint: "https://n.example.com", topic: orders, auth: { managedIdentity: { clientID: 11111111-2222-3333-4444-555555555555 } } } } }
  space-own: { subjects: events.>, deliver: { eventGridNamespace: { endpoint: "https://n.example.com", topic: orders, auth: { managedIdentity: {} } } } }
  space-wi: { subjects: events.>, deliver: { eventGridNamespace: { endpoint: "https://n.example.com", topic: orders, auth: { workloadIdentity: { clientID: 11111111-2222-3333-4444-555555555555, tenant: example.com } } } } }
  space-who: { subjects: events.>, deliver: { eventGridNamespace: { endpoint: "https://n.example.com", topic: orders, auth: { default: true } } } }
  bus: { subjects: events.>, deliver: { serviceBus: { queue: orders, session: partitionkey, auth: { connectionString: "${env:BUS}" } } } }
  bus-mi: { subjects: events.>, deliver: { serviceBus: { namespace: b.example.com, topic: orders, auth: { managedIdentity: { clientID: 11111111-2222-3333-4444-555555555555 } } } } }
  bus-wi: { subjects: events.>, deliver: { serviceBus: { namespace: b.example.com, topic: orders, auth: { workloadIdentity: { clientID: 11111111-2222-3333-4444-555555555555, tenant: example.com } } } } }
  bus-who: { subjects: events.>, deliver: { serviceBus: { namespace: b.example.com, topic: orders, auth: { default: true } } } }
`

func TestParseAzure(t *testing.T) {
	c, err := Parse("gridfan.yaml", []byte(inAzure), fake)
	if err != nil {
		t.Fatal(err)
	}
	const topic, root, space = "https://t.example.com/api/events", "https://t.example.com/", "https://n.example.com"
	key := credentials.AzureAuth{Key: "key-key-key-key-key"}
	managed := credentials.AzureAuth{ManagedIdentity: &credentials.ManagedIdentity{ClientID: "11111111-2222-3333-4444-555555555555"}}
	workload := credentials.AzureAuth{WorkloadIdentity: &credentials.WorkloadIdentity{ClientID: "11111111-2222-3333-4444-555555555555", Tenant: "example.com"}}
	grid := func(endpoint string, schema eventgrid.Schema, auth credentials.AzureAuth) registry.Deliver {
		return registry.Deliver{EventGrid: &eventgrid.Config{Endpoint: endpoint, Schema: schema, Auth: auth}}
	}
	namespace := func(endpoint string, auth credentials.AzureAuth) registry.Deliver {
		return registry.Deliver{EventGridNamespace: &eventgrid.NamespaceConfig{Endpoint: endpoint, Topic: "orders", Auth: auth}}
	}
	bus := func(auth credentials.AzureAuth) registry.Deliver {
		return registry.Deliver{ServiceBus: &servicebus.Config{Namespace: "b.example.com", Topic: "orders", Session: servicebus.NoSession, Auth: auth}}
	}
	want := map[string]registry.Deliver{
		"grid":      grid(topic, eventgrid.EventGrid, key),
		"grid-sas":  grid(topic, eventgrid.CloudEvents, credentials.AzureAuth{SAS: key.Key}),
		"grid-mi":   grid(root, eventgrid.CloudEvents, managed),
		"grid-wi":   grid(root, eventgrid.CloudEvents, workload),
		"grid-who":  grid(root, eventgrid.CloudEvents, credentials.AzureAuth{Default: true}),
		"space":     namespace("https://wms.example.com", key),
		"space-mi":  namespace(space, managed),
		"space-own": namespace(space, credentials.AzureAuth{ManagedIdentity: &credentials.ManagedIdentity{}}),
		"space-wi":  namespace(space, workload),
		"space-who": namespace(space, credentials.AzureAuth{Default: true}),
		"bus": {ServiceBus: &servicebus.Config{
			Queue: "orders", Session: servicebus.ByPartition, Auth: credentials.AzureAuth{ConnectionString: "Endpoint=sb://b.example.com/;SharedAccessKeyName=n;SharedAccessKey=canary"},
		}},
		"bus-mi":  bus(managed),
		"bus-wi":  bus(workload),
		"bus-who": bus(credentials.AzureAuth{Default: true}),
	}
	got := map[string]registry.Deliver{}
	for _, s := range c.Subscribers {
		got[s.Name] = s.Deliver
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}
