package config

import (
	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/subscribers/eventgrid"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/servicebus"
)

// azureWays reads the ways out that lead to Azure.
func (d *decoder) azureWays(v *value, to *registry.Deliver) {
	if w := v.get("eventGrid"); w != nil {
		to.EventGrid = &eventgrid.Config{
			Endpoint: d.text(w.get("endpoint")),
			Schema:   eventgrid.Schema(d.choice(w.get("schema"))),
			Auth:     d.azureAuth(w.get("auth")),
		}
	}
	if w := v.get("eventGridNamespace"); w != nil {
		to.EventGridNamespace = &eventgrid.NamespaceConfig{
			Endpoint: d.text(w.get("endpoint")),
			Topic:    d.text(w.get("topic")),
			Auth:     d.azureAuth(w.get("auth")),
		}
	}
	to.ServiceBus = d.queue(v.get("serviceBus"))
}

// queue reads a queue or topic of Service Bus.
func (d *decoder) queue(v *value) *servicebus.Config {
	if v == nil {
		return nil
	}
	return &servicebus.Config{
		Namespace: d.text(v.get("namespace")),
		Queue:     d.text(v.get("queue")),
		Topic:     d.text(v.get("topic")),
		Session:   servicebus.Session(d.choice(v.get("session"))),
		Auth:      d.azureAuth(v.get("auth")),
	}
}

// azureAuth reads who gridfan is towards an Azure service. Validate knows what the
// service lets in.
func (d *decoder) azureAuth(v *value) credentials.AzureAuth {
	a := credentials.AzureAuth{
		Key:              d.secret(v.get("key")).Reveal(),
		SAS:              d.secret(v.get("sas")).Reveal(),
		ConnectionString: d.secret(v.get("connectionString")).Reveal(),
		Default:          d.boolean(v.get("default")),
	}
	if m := v.get("managedIdentity"); m != nil {
		a.ManagedIdentity = &credentials.ManagedIdentity{ClientID: d.text(m.get("clientID"))}
	}
	if w := v.get("workloadIdentity"); w != nil {
		a.WorkloadIdentity = &credentials.WorkloadIdentity{
			ClientID: d.text(w.get("clientID")), Tenant: d.text(w.get("tenant")),
		}
	}
	return a
}
