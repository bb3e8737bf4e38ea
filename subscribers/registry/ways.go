package registry

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/gridfan/gridfan/subscribers/eventgrid"
	"github.com/gridfan/gridfan/subscribers/native"
	"github.com/gridfan/gridfan/subscribers/pull"
	"github.com/gridfan/gridfan/subscribers/servicebus"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// Deliver chooses the way out; exactly one field is set.
type Deliver struct {
	Webhook *webhook.Config `json:"webhook,omitempty"`
	// Pull: its receivers fetch the events.
	Pull               *pull.Config               `json:"pull,omitempty"`
	EventGrid          *eventgrid.Config          `json:"eventGrid,omitempty"`
	EventGridNamespace *eventgrid.NamespaceConfig `json:"eventGridNamespace,omitempty"`
	ServiceBus         *servicebus.Config         `json:"serviceBus,omitempty"`
	// Nats: its own NATS client takes the events from a consumer.
	Nats *native.Config `json:"nats,omitempty"`
}

// ways are the names of all ways out.
var ways = []string{"webhook", "pull", "eventGrid", "eventGridNamespace", "serviceBus", "nats"}

// Kinds names the ways that are set; a valid Deliver has one.
func (d Deliver) Kinds() []string {
	set := map[string]bool{
		"webhook": d.Webhook != nil, "pull": d.Pull != nil, "eventGrid": d.EventGrid != nil, "eventGridNamespace": d.EventGridNamespace != nil,
		"serviceBus": d.ServiceBus != nil, "nats": d.Nats != nil,
	}
	return slices.DeleteFunc(slices.Clone(ways), func(name string) bool { return !set[name] })
}

// validate sets defaults and reports every problem; batch says that several events
// are to go out at once.
func (d Deliver) validate(path string, batch bool) error {
	var errs []error
	switch kinds := d.Kinds(); {
	case len(kinds) == 0:
		errs = append(errs, fmt.Errorf("%s: missing; want webhook: { url: … }, or another way out", path))
	case len(kinds) > 1:
		errs = append(errs, fmt.Errorf("%s: %s and %s exclude each other; events go one way, and another subscriber can go the other", path, kinds[0], kinds[1]))
	}
	if w := d.Webhook; w != nil {
		errs = append(errs, validateWebhook(w, path+".webhook", batch))
	}
	if p := d.Pull; p != nil {
		errs = append(errs, p.Validate(path+".pull"))
		for i, key := range p.Keys {
			if key == hidden {
				errs = append(errs, fmt.Errorf("%s.pull.keys[%d]: it is hidden, and there are others than before; give them all", path, i))
			}
		}
	}
	if c := d.EventGrid; c != nil {
		errs = append(errs, c.Validate(path+".eventGrid"))
	}
	if c := d.EventGridNamespace; c != nil {
		errs = append(errs, c.Validate(path+".eventGridNamespace"))
	}
	if c := d.ServiceBus; c != nil {
		errs = append(errs, c.Validate(path+".serviceBus"))
	}
	if c := d.Nats; c != nil {
		errs = append(errs, c.Validate(path+".nats"))
	}
	return errors.Join(errs...)
}

func validateWebhook(w *webhook.Config, path string, batch bool) error {
	errs := []error{w.Validate(path)}
	if batch {
		errs = append(errs, w.ValidateBatch(path))
	}
	if w.Endpoint != "" && !validName(w.Endpoint) {
		errs = append(errs, fmt.Errorf("%s.endpoint: want the name of an endpoint: lower-case letters, digits and dashes", path))
	}
	if strings.Contains(w.Path, hidden) {
		errs = append(errs, fmt.Errorf("%s.path: its secret part is hidden, and it is another path than before; give the whole", path))
	}
	if strings.Contains(w.URL, hidden) {
		errs = append(errs, fmt.Errorf("%s.url: its secret part is hidden, and it is another URL than before; give the whole", path))
	}
	for _, name := range slices.Sorted(maps.Keys(w.Headers)) {
		if strings.Contains(w.Headers[name], hidden) {
			errs = append(errs, fmt.Errorf("%s.headers.%.100s: its value is hidden, and there was no such header before; give the value", path, name))
		}
	}
	return errors.Join(errs...)
}

// Clone copies d, so that the copy can be changed.
func (d Deliver) Clone() Deliver {
	if d.Webhook = clone(d.Webhook); d.Webhook != nil {
		d.Webhook.Auth, d.Webhook.Headers = d.Webhook.Auth.Clone(), maps.Clone(d.Webhook.Headers)
		d.Webhook.Sign.Keys = slices.Clone(d.Webhook.Sign.Keys)
	}
	if d.Pull = clone(d.Pull); d.Pull != nil {
		d.Pull.Keys, d.Pull.Entra = slices.Clone(d.Pull.Keys), clone(d.Pull.Entra)
	}
	if d.Nats = clone(d.Nats); d.Nats != nil {
		d.Nats.Keys = slices.Clone(d.Nats.Keys)
	}
	d.EventGrid, d.EventGridNamespace, d.ServiceBus = clone(d.EventGrid), clone(d.EventGridNamespace), clone(d.ServiceBus)
	return d
}

func clone[C any](c *C) *C {
	if c == nil {
		return nil
	}
	return new(*c)
}

// redacted returns d without its secrets.
func (d Deliver) redacted() Deliver {
	d = d.Clone()
	if c := d.Webhook; c != nil {
		*c = c.Redacted()
	}
	if c := d.Pull; c != nil {
		*c = c.Redacted()
	}
	if c := d.EventGrid; c != nil {
		*c = c.Redacted()
	}
	if c := d.EventGridNamespace; c != nil {
		*c = c.Redacted()
	}
	if c := d.ServiceBus; c != nil {
		*c = c.Redacted()
	}
	return d
}

// reveal puts the secrets of was in the place of those that redacted has hidden.
func (d Deliver) reveal(was Deliver) {
	if now, was := d.EventGrid, was.EventGrid; now != nil && was != nil {
		now.Reveal(*was)
	}
	if now, was := d.EventGridNamespace, was.EventGridNamespace; now != nil && was != nil {
		now.Reveal(*was)
	}
	if now, was := d.ServiceBus, was.ServiceBus; now != nil && was != nil {
		now.Reveal(*was)
	}
	if now, was := d.Pull, was.Pull; now != nil && was != nil && slices.Equal(now.Keys, was.Redacted().Keys) {
		now.Keys = slices.Clone(was.Keys)
	}
	w, then := d.Webhook, was.Webhook
	if w == nil || then == nil {
		return
	}
	shown := then.Redacted()
	if w.URL == shown.URL {
		w.URL = then.URL
	}
	if w.Path == shown.Path {
		w.Path = then.Path
	}
	for name, value := range w.Headers {
		if before, ok := then.Headers[name]; ok && value == shown.Headers[name] {
			w.Headers[name] = before
		}
	}
	w.Auth.Reveal(then.Auth, w.Endpoint != then.Endpoint || host(w.URL) != host(then.URL))
	if slices.Equal(w.Sign.Keys, shown.Sign.Keys) {
		w.Sign.Keys = then.Sign.Keys
	}
}

// host is the part of a URL that says who gets what is posted to it.
func host(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	return u.Scheme + "://" + u.Host
}
