package cli

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/subscribers/eventgrid"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/servicebus"
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
	{"service-bus", []string{"deliver.serviceBus.namespace"}, "Service Bus namespace, in the place of --url, as in contoso.servicebus.windows.net; with --queue or --topic", func(d *registry.Definition, v string) error {
		bus(d).Namespace = v
		return nil
	}},
	{"connection-string", []string{"deliver.serviceBus.auth.connectionString", "deliver.serviceBus.namespace"}, "connection string of a Service Bus namespace, in the place of --service-bus", func(d *registry.Definition, v string) error {
		bus(d).Namespace, bus(d).Auth = "", credentials.AzureAuth{ConnectionString: v}
		return nil
	}},
	{"topic", []string{"deliver.eventGridNamespace.topic", "deliver.serviceBus.topic", "deliver.serviceBus.queue"}, "topic in the namespace of Event Grid or Service Bus", func(d *registry.Definition, v string) error {
		switch {
		case d.Deliver.EventGridNamespace != nil:
			d.Deliver.EventGridNamespace.Topic = v
		case d.Deliver.ServiceBus != nil:
			d.Deliver.ServiceBus.Topic, d.Deliver.ServiceBus.Queue = v, ""
		default:
			return errors.New("only with --event-grid-namespace, --service-bus or --connection-string")
		}
		return nil
	}},
	{"queue", []string{"deliver.serviceBus.queue", "deliver.serviceBus.topic"}, "queue in the Service Bus namespace", func(d *registry.Definition, v string) error {
		if d.Deliver.ServiceBus == nil {
			return errors.New("only with --service-bus or --connection-string")
		}
		d.Deliver.ServiceBus.Queue, d.Deliver.ServiceBus.Topic = v, ""
		return nil
	}},
	{"session", []string{"deliver.serviceBus.session"}, "what becomes the session of a Service Bus message: none (default) or partitionkey", func(d *registry.Definition, v string) error {
		if d.Deliver.ServiceBus == nil {
			return errors.New("only with --service-bus or --connection-string")
		}
		d.Deliver.ServiceBus.Session = servicebus.Session(v)
		return nil
	}},
	{"schema", []string{"deliver.eventGrid.schema"}, "what the Event Grid topic was made for: cloudevents (default) or eventgrid", func(d *registry.Definition, v string) error {
		if d.Deliver.EventGrid == nil {
			return errors.New("only with --event-grid")
		}
		d.Deliver.EventGrid.Schema = eventgrid.Schema(v)
		return nil
	}},
	authSetting("access-key", "key", "access key of the Event Grid topic or namespace", func(a *credentials.AzureAuth, v string) error {
		a.Key = v
		return nil
	}),
	authSetting("sas", "sas", "shared access signature for the Event Grid topic", func(a *credentials.AzureAuth, v string) error {
		a.SAS = v
		return nil
	}),
	authSetting("identity", "managedIdentity", "identity of gridfan in Azure: managed, managed:CLIENT-ID, workload or default", func(a *credentials.AzureAuth, v string) error {
		name, id, _ := strings.Cut(v, ":")
		switch {
		case name == "managed":
			a.ManagedIdentity = &credentials.ManagedIdentity{ClientID: id}
		case v == "workload":
			a.WorkloadIdentity = &credentials.WorkloadIdentity{}
		case v == "default":
			a.Default = true
		default:
			return fmt.Errorf("want managed, managed:CLIENT-ID, workload or default, got %q", v)
		}
		return nil
	}),
}

// bus makes a definition one of Service Bus.
func bus(d *registry.Definition) *servicebus.Config {
	c := d.Deliver.ServiceBus
	if c == nil {
		c = &servicebus.Config{}
	}
	d.Deliver = registry.Deliver{ServiceBus: c}
	return c
}

// authSetting takes the place of every other way to be let in.
func authSetting(flag, key, usage string, set func(*credentials.AzureAuth, string) error) setting {
	var keys []string
	for _, way := range []string{"eventGrid", "eventGridNamespace", "serviceBus"} {
		keys = append(keys, "deliver."+way+".auth."+key)
	}
	return setting{flag, keys, usage, func(d *registry.Definition, v string) error {
		var to *credentials.AzureAuth
		switch {
		case d.Deliver.EventGrid != nil:
			to = &d.Deliver.EventGrid.Auth
		case d.Deliver.EventGridNamespace != nil:
			to = &d.Deliver.EventGridNamespace.Auth
		case d.Deliver.ServiceBus != nil:
			to = &d.Deliver.ServiceBus.Auth
		default:
			return errors.New("only of subscribers in Azure: --event-grid, --event-grid-namespace, --service-bus")
		}
		*to = credentials.AzureAuth{}
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
	case to.ServiceBus != nil:
		c := to.ServiceBus
		rows := [][2]string{{"service bus", cmp.Or(c.Namespace, "as the connection string says")}}
		if c.Queue != "" {
			rows = append(rows, [2]string{"queue", c.Queue})
		} else {
			rows = append(rows, [2]string{"topic", c.Topic})
		}
		return append(rows, [2]string{"session", string(c.Session)}, [2]string{"as", who(c.Auth)})
	}
	return nil
}

// who tells in words how gridfan is let in.
func who(a credentials.AzureAuth) string {
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
