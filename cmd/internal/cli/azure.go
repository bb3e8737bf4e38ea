package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/gridfan/gridfan/infra/azure"
	"github.com/gridfan/gridfan/subscribers/eventgrid"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// azureSettings are those of subscribers in Azure. The first of them choose the way.
var azureSettings = []setting{
	{"event-grid", []string{"deliver.eventGrid.endpoint"}, "endpoint of an Event Grid topic, in the place of --url, as in https://T.REGION-1.eventgrid.azure.net/api/events", func(d *registry.Definition, v string) error {
		c := d.Deliver.EventGrid
		if c == nil {
			c = &eventgrid.Config{}
		}
		c.Endpoint = v
		d.Deliver = registry.Deliver{EventGrid: c}
		return nil
	}},
	{"event-grid-namespace", []string{"deliver.eventGridNamespace.endpoint"}, "endpoint of an Event Grid namespace, in the place of --url; with --topic", func(d *registry.Definition, v string) error {
		c := d.Deliver.EventGridNamespace
		if c == nil {
			c = &eventgrid.NamespaceConfig{}
		}
		c.Endpoint = v
		d.Deliver = registry.Deliver{EventGridNamespace: c}
		return nil
	}},
	{"topic", []string{"deliver.eventGridNamespace.topic"}, "topic in the namespace", func(d *registry.Definition, v string) error {
		if d.Deliver.EventGridNamespace == nil {
			return errors.New("only with --event-grid-namespace")
		}
		d.Deliver.EventGridNamespace.Topic = v
		return nil
	}},
	{"schema", []string{"deliver.eventGrid.schema"}, "what the Event Grid topic was made for: cloudevents (default) or eventgrid", func(d *registry.Definition, v string) error {
		if d.Deliver.EventGrid == nil {
			return errors.New("only with --event-grid")
		}
		d.Deliver.EventGrid.Schema = eventgrid.Schema(v)
		return nil
	}},
	authSetting("access-key", "key", "access key of the Event Grid topic or namespace", func(a *azure.Auth, v string) error {
		a.Key = v
		return nil
	}),
	authSetting("sas", "sas", "shared access signature for the Event Grid topic", func(a *azure.Auth, v string) error {
		a.SAS = v
		return nil
	}),
	authSetting("identity", "managedIdentity", "identity of gridfan in Azure: managed, managed:CLIENT-ID, workload or default", func(a *azure.Auth, v string) error {
		name, id, _ := strings.Cut(v, ":")
		switch {
		case name == "managed":
			a.ManagedIdentity = &azure.ManagedIdentity{ClientID: id}
		case v == "workload":
			a.WorkloadIdentity = &azure.WorkloadIdentity{}
		case v == "default":
			a.Default = true
		default:
			return fmt.Errorf("want managed, managed:CLIENT-ID, workload or default, got %q", v)
		}
		return nil
	}),
}

// authSetting takes the place of every other way to be let in.
func authSetting(flag, key, usage string, set func(*azure.Auth, string) error) setting {
	var keys []string
	for _, way := range []string{"eventGrid", "eventGridNamespace"} {
		keys = append(keys, "deliver."+way+".auth."+key)
	}
	return setting{flag, keys, usage, func(d *registry.Definition, v string) error {
		var to *azure.Auth
		switch {
		case d.Deliver.EventGrid != nil:
			to = &d.Deliver.EventGrid.Auth
		case d.Deliver.EventGridNamespace != nil:
			to = &d.Deliver.EventGridNamespace.Auth
		default:
			return errors.New("only of subscribers in Azure: --event-grid, --event-grid-namespace")
		}
		*to = azure.Auth{}
		return set(to, v)
	}}
}

// azureRows tell of a subscriber in Azure where events go and as who; no rows of any
// other.
func azureRows(to registry.Deliver) [][2]string {
	switch {
	case to.EventGrid != nil:
		return [][2]string{
			{"event grid", to.EventGrid.Endpoint},
			{"schema", string(to.EventGrid.Schema)},
			{"as", who(to.EventGrid.Auth)},
		}
	case to.EventGridNamespace != nil:
		return [][2]string{
			{"event grid", to.EventGridNamespace.Endpoint},
			{"topic", to.EventGridNamespace.Topic},
			{"as", who(to.EventGridNamespace.Auth)},
		}
	}
	return nil
}

// who tells in words how gridfan is let in.
func who(a azure.Auth) string {
	switch {
	case a.Key != "":
		return "holder of an access key"
	case a.SAS != "":
		return "holder of a shared access signature"
	case a.ConnectionString != "":
		return "holder of a connection string"
	case a.ManagedIdentity != nil && a.ManagedIdentity.ClientID != "":
		return "managed identity " + a.ManagedIdentity.ClientID
	case a.ManagedIdentity != nil:
		return "managed identity of the system"
	case a.WorkloadIdentity != nil:
		return strings.TrimSpace("workload identity " + a.WorkloadIdentity.ClientID)
	}
	return "whoever DefaultAzureCredential finds"
}
