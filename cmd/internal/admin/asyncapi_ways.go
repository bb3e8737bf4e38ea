package admin

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/asyncapi"
	"github.com/gridfan/gridfan/schemas/event"
	wire "github.com/gridfan/gridfan/schemas/eventgrid"
	"github.com/gridfan/gridfan/subscribers/eventgrid"
	"github.com/gridfan/gridfan/subscribers/pull"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// way is how one subscriber gets its events.
type way struct {
	// write gives an event's message as it goes out: its headers in lower case,
	// its body, and its content type.
	write func(e *event.Event) (headers map[string]string, body []byte, mediaType string)
	// service is told where it leads, and in its Description what it is.
	service asyncapi.Service
	// about are further paragraphs of the description.
	about []string
}

// way finds out how a subscriber gets its events.
func (s *server) way(ctx context.Context, d registry.Definition) (way, error) {
	to := "What gridfan delivers to " + d.Name + ", each event at least once: "
	switch out := d.Deliver; {
	case out.Webhook != nil:
		return s.webhookWay(ctx, d, to)
	case out.Pull != nil:
		return way{write: structured, service: asyncapi.Service{
			Description: "What receivers of " + d.Name + " get, each event at least once: dedupe on source and id. " +
				"An answer to receive holds several, each as `event` beside its `brokerProperties`; the stream has one for each `data`.",
			Protocol: "http", Address: pull.Path(d.Name) + ":receive", Method: http.MethodPost,
			Envelope: asyncapi.CloudEvent, ContentType: event.MediaStructured,
		}}, nil
	case out.EventGrid != nil:
		w := way{write: structured, service: asyncapi.Service{
			Description: to + "dedupe on source and id.", Envelope: asyncapi.CloudEvent, ContentType: event.MediaStructured, Method: http.MethodPost,
			ServerDescription: "The Event Grid topic that gets the events of " + d.Name + ".",
		}}
		if out.EventGrid.Schema == eventgrid.EventGrid {
			w.write = func(e *event.Event) (map[string]string, []byte, string) {
				return nil, wire.AppendArray(nil, e), "application/json"
			}
			w.service.Envelope, w.service.ContentType = asyncapi.EventGrid, "application/json"
		}
		w.leads(out.EventGrid.Endpoint, "")
		return w, nil
	case out.EventGridNamespace != nil:
		w := way{write: structured, service: asyncapi.Service{
			Description: to + "dedupe on source and id.", Envelope: asyncapi.CloudEvent, ContentType: event.MediaStructured, Method: http.MethodPost,
			ServerDescription: "The Event Grid namespace that gets the events of " + d.Name + ", on its topic " + out.EventGridNamespace.Topic + ".",
		}}
		w.leads(out.EventGridNamespace.Endpoint, "/topics/"+out.EventGridNamespace.Topic+":publish")
		return w, nil
	case out.ServiceBus != nil:
		c := out.ServiceBus
		return way{write: structured, service: asyncapi.Service{
			Description: to + "dedupe on source and id, or let the queue do it by the message's id. The attributes are application properties, too, under `cloudEvents:` and their names.",
			Protocol:    "amqps", Host: c.Host(), Address: cmp.Or(c.Queue, c.Topic), Envelope: asyncapi.CloudEvent, ContentType: event.MediaStructured,
			ServerDescription: "The Service Bus namespace that gets the events of " + d.Name + ".",
		}}, nil
	default:
		return way{write: attributes, service: asyncapi.Service{
			Description: "What the NATS client of " + d.Name + " gets, each event at least once: dedupe on source and id.",
			Protocol:    "nats", Address: "$JS.API.CONSUMER.MSG.NEXT." + broker.StreamEvents + "." + d.Name, Envelope: asyncapi.Attributes,
		}}, nil
	}
}

// leads notes where a way leads that goes by HTTP, without what may be secret.
func (w *way) leads(to, path string) {
	if u, err := url.Parse(to); err == nil { // Validate has parsed it
		w.service.Protocol, w.service.Host, w.service.Address = u.Scheme, u.Host, cmp.Or(path, u.EscapedPath(), "/")
	}
}

// structured gives an event as CloudEvents' structured mode has it.
func structured(e *event.Event) (headers map[string]string, body []byte, mediaType string) {
	return nil, e.JSON(), event.MediaStructured
}

// attributes gives an event as it stands in the stream: its attributes are headers.
func attributes(e *event.Event) (headers map[string]string, body []byte, mediaType string) {
	h, body := e.Encode()
	headers = map[string]string{}
	for name, values := range h {
		headers[strings.ToLower(name)] = strings.Join(values, ", ")
	}
	return headers, body, e.DataContentType
}

func (s *server) webhookWay(ctx context.Context, d registry.Definition, to string) (way, error) {
	c := d.Deliver.Webhook
	// Only what decides the form of a message: no address and no secret.
	form := webhook.Config{URL: "https://subscriber.invalid/", Format: c.Format, Headers: map[string]string{}}
	for name, shown := range c.Redacted().Headers {
		if shown == c.Headers[name] {
			form.Headers[name] = shown
		}
	}
	sender, err := webhook.New(form, webhook.Options{Subscriber: d.Name}) // it never sends
	if err != nil {
		return way{}, err
	}
	batch := d.Limits.Batch.Events > 0
	w := way{service: asyncapi.Service{Description: to + "dedupe on source and id, or on webhook-id.", Method: http.MethodPost}}
	w.write = func(e *event.Event) (map[string]string, []byte, string) {
		header, body := sender.Preview(e, batch)
		mediaType, _, _ := strings.Cut(header.Get("Content-Type"), ";")
		header.Del("Content-Type")
		header.Del("User-Agent")
		var headers map[string]string
		for name, values := range header {
			if headers == nil {
				headers = map[string]string{}
			}
			headers[strings.ToLower(name)] = strings.Join(values, ", ")
		}
		return headers, body, mediaType
	}
	switch {
	case c.Format == webhook.EventGrid:
		w.service.Envelope, w.service.ContentType = asyncapi.EventGrid, "application/json"
	case c.Format == webhook.Original:
		w.service.Envelope = asyncapi.Data
	case batch:
		w.service.Envelope, w.service.ContentType = asyncapi.CloudEvents, event.MediaBatch
	case c.Format == webhook.Binary:
		w.service.Envelope = asyncapi.Attributes
	default:
		w.service.Envelope, w.service.ContentType = asyncapi.CloudEvent, event.MediaStructured
	}
	if c.Sign.On {
		w.about = append(w.about, "Requests are signed as Standard Webhooks says.")
	}
	at, err := s.target(ctx, c)
	if err != nil {
		return way{}, err
	}
	if at != "" {
		w.leads(at, "")
		w.service.ServerDescription = "Where " + d.Name + " takes its events."
	}
	return w, nil
}

// target is where a webhook leads; empty if its endpoint has no address.
func (s *server) target(ctx context.Context, w *webhook.Config) (string, error) {
	if w.Endpoint == "" {
		return w.URL, nil
	}
	e, err := s.Registry.Endpoint(ctx, w.Endpoint)
	if errors.Is(err, registry.ErrNoEndpoint) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	placed, err := w.At(e.URL)
	if err != nil {
		return "", nil // the path does not fit it; the subscriber is parked for that
	}
	return placed.URL, nil
}
