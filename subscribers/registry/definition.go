// Package registry knows the subscribers: their definitions in a KV bucket,
// shared by every replica, and the workers that serve them.
package registry

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/pull"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// Definition is one subscriber: what it wants, where it is, how it is served.
type Definition struct {
	Name string `json:"name"`
	// Subjects are NATS subject patterns below "events."; an event that
	// matches several is delivered once.
	Subjects []string `json:"subjects"`
	// Drain stops what is new: no event is wanted from now on, and what waits is
	// delivered.
	Drain bool `json:"drain,omitempty"`
	// Filter is a CEL expression over an event; see package filter. Empty: all
	// events of the subjects.
	Filter string `json:"filter,omitempty"`
	// Transform is a jq expression that gives the data to send; see package
	// transform. Empty: the event as it is.
	Transform string  `json:"transform,omitempty"`
	Deliver   Deliver `json:"deliver"`
	// Start is where a new subscriber begins. Default Now. It has no meaning
	// for one that exists already.
	Start Start `json:"start"`

	deliver.Config
}

// Deliver chooses the way out; exactly one field is set.
type Deliver struct {
	Webhook *webhook.Config `json:"webhook,omitempty"`
	// Pull: its receivers fetch the events.
	Pull *pull.Config `json:"pull,omitempty"`
}

// Validate sets defaults and reports every problem, each beginning with the
// path of its key in the configuration file. It compiles the expressions.
func (d *Definition) Validate() error {
	_, _, err := d.compile()
	return errors.Join(d.settle(), err)
}

// settle is Validate without the expressions: a stored definition whose
// expression this version refuses must not hide the others.
func (d *Definition) settle() error {
	path := "subscribers." + d.Name
	var errs []error
	if !validName(d.Name) {
		errs = append(errs, fmt.Errorf("%s: a name is 1 to 63 lower-case letters, digits and dashes, and begins with a letter or digit", path))
	}
	if len(d.Subjects) == 0 {
		errs = append(errs, fmt.Errorf("%s.subjects: missing; want patterns such as \"events.fno.*.usmf.>\"", path))
	}
	for i, s := range d.Subjects {
		if err := ValidSubject(s); err != nil {
			errs = append(errs, fmt.Errorf("%s.subjects[%d]: %w", path, i, err))
		}
	}
	switch {
	case d.Deliver.Webhook == nil && d.Deliver.Pull == nil:
		errs = append(errs, fmt.Errorf("%s.deliver: missing; want webhook: { url: … } or pull: {}", path))
	case d.Deliver.Webhook != nil && d.Deliver.Pull != nil:
		errs = append(errs, fmt.Errorf("%s.deliver: webhook and pull exclude each other; keep one", path))
	case d.Deliver.Pull != nil:
		errs = append(errs, d.settlePull(path))
	default:
		if err := d.Deliver.Webhook.Validate(path + ".deliver.webhook"); err != nil {
			errs = append(errs, err)
		}
		if d.Limits.Batch.Events > 0 {
			if err := d.Deliver.Webhook.ValidateBatch(path + ".deliver.webhook"); err != nil {
				errs = append(errs, err)
			}
			if most := int64(eventgrid.MaxBatch); d.Deliver.Webhook.Format == webhook.EventGrid && int64(d.Limits.Batch.Bytes) > most {
				errs = append(errs, fmt.Errorf("%s.limits.batch.bytes: with format %s want at most %s, which is what receivers of Event Grid are ready for, got %s",
					path, webhook.EventGrid, deliver.Size(most), d.Limits.Batch.Bytes))
			}
		}
		if name := d.endpoint(); name != "" && !validName(name) {
			errs = append(errs, fmt.Errorf("%s.deliver.webhook.endpoint: want the name of an endpoint: lower-case letters, digits and dashes", path))
		}
		if strings.Contains(d.Deliver.Webhook.Path, hidden) {
			errs = append(errs, fmt.Errorf("%s.deliver.webhook.path: its secret part is hidden, and it is another path than before; give the whole", path))
		}
		if strings.Contains(d.Deliver.Webhook.URL, hidden) {
			errs = append(errs, fmt.Errorf("%s.deliver.webhook.url: its secret part is hidden, and it is another URL than before; give the whole", path))
		}
		for _, name := range slices.Sorted(maps.Keys(d.Deliver.Webhook.Headers)) {
			if strings.Contains(d.Deliver.Webhook.Headers[name], hidden) {
				errs = append(errs, fmt.Errorf("%s.deliver.webhook.headers.%.100s: its value is hidden, and there was no such header before; give the value", path, name))
			}
		}
	}
	if d.Start == "" {
		d.Start = Now
	}
	if err := d.Start.validate(); err != nil {
		errs = append(errs, fmt.Errorf("%s.start: %w", path, err))
	}
	if err := d.Config.Validate(path); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// settlePull is settle for what is about a subscriber that fetches its events. What
// is about attempts of ours has no meaning for it and is refused, unless it is the
// default.
func (d *Definition) settlePull(path string) error {
	errs := []error{d.Deliver.Pull.Validate(path + ".deliver.pull")}
	refuse := func(key, why string) { errs = append(errs, fmt.Errorf("%s.%s: %s", path, key, why)) }
	for i, key := range d.Deliver.Pull.Keys {
		if key == hidden {
			refuse(fmt.Sprintf("deliver.pull.keys[%d]", i), "it is hidden, and there are others than before; give them all")
		}
	}
	var usual deliver.Config
	_ = usual.Validate("") // of defaults alone
	same := func(got, usual any) bool {
		return reflect.ValueOf(got).IsZero() || reflect.DeepEqual(got, usual)
	}
	if !same(d.Ordering, usual.Ordering) {
		refuse("ordering", "a subscriber that fetches its events gets them in no order; remove the key, or deliver to a webhook")
	}
	if !same(d.Limits.Concurrency, usual.Limits.Concurrency) {
		refuse("limits.concurrency", "its receivers take as many events at once as they ask for; remove the key")
	}
	if !same(d.Limits.Timeout, usual.Limits.Timeout) {
		refuse("limits.timeout", "an event is its receiver's for deliver.pull.lockDuration; remove the key")
	}
	if !same(d.Limits.Batch, usual.Limits.Batch) {
		refuse("limits.batch", "its receivers say how many events they want; remove the key")
	}
	if !same(d.Retry.Schedule, usual.Retry.Schedule) {
		refuse("retry.schedule", "an event comes again when its lock runs out or it is released, deliver.pull.maxDeliveryCount times in all; remove the key")
	}
	if !same(d.Retry.Faults, usual.Retry.Faults) {
		refuse("retry.faults", "a lock that runs out is the only failure; remove the key")
	}
	if !same(d.Retry.MaxRetryAfter, usual.Retry.MaxRetryAfter) {
		refuse("retry.maxRetryAfter", "its receivers say how long a released event waits; remove the key")
	}
	if !same(d.Breaker, usual.Breaker) {
		refuse("breaker", "nobody is called, so there is nothing to break; remove the key")
	}
	return errors.Join(errs...)
}

// Redacted returns d without its secrets, for people to see.
func (d Definition) Redacted() Definition {
	if d.Deliver.Webhook != nil {
		w := d.Deliver.Webhook.Redacted()
		d.Deliver.Webhook = &w
	}
	if d.Deliver.Pull != nil {
		p := d.Deliver.Pull.Redacted()
		d.Deliver.Pull = &p
	}
	return d
}

// Reveal puts the secrets of a stored definition in the place of those that
// Redacted has hidden in d, so that what was read can be changed and sent back.
func (d *Definition) Reveal(stored Definition) {
	if p, was := d.Deliver.Pull, stored.Deliver.Pull; p != nil && was != nil && slices.Equal(p.Keys, was.Redacted().Keys) {
		p.Keys = slices.Clone(was.Keys)
	}
	w, was := d.Deliver.Webhook, stored.Deliver.Webhook
	if w == nil || was == nil {
		return
	}
	if w.URL == was.Redacted().URL {
		w.URL = was.URL
	}
	if w.Path == was.Redacted().Path {
		w.Path = was.Path
	}
	hiddenHeaders := was.Redacted().Headers
	for name, value := range w.Headers {
		if before, ok := was.Headers[name]; ok && value == hiddenHeaders[name] {
			w.Headers[name] = before
		}
	}
	w.Auth.Reveal(was.Auth, w.Endpoint != was.Endpoint || host(w.URL) != host(was.URL))
	if slices.Equal(w.Sign.Keys, was.Redacted().Sign.Keys) {
		w.Sign.Keys = was.Sign.Keys
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

// hidden is how a secret is shown; no URL can have it.
var hidden = secret.New("x").String()

func validName(name string) bool {
	if name == "" || len(name) > 63 || name[0] == '-' {
		return false
	}
	return strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// ValidSubject checks a subject pattern as NATS reads it, and that it can
// match an event at all.
func ValidSubject(s string) error {
	const hint = `want a NATS pattern below "events.", as in events.fno.*.usmf.> (* is one token, > the rest)`
	if s == "" || len(s) > event.MaxSubject {
		return fmt.Errorf("%d bytes long; %s", len(s), hint)
	}
	tokens := strings.Split(s, ".")
	for i, t := range tokens {
		switch {
		case t == "":
			return fmt.Errorf("%q has an empty token; %s", s, hint)
		case strings.ContainsAny(t, " \t\r\n\x00"):
			return fmt.Errorf("%q has a blank; %s", s, hint)
		case t == ">" && i < len(tokens)-1:
			return fmt.Errorf("%q: > can only stand last; %s", s, hint)
		case len(t) > 1 && strings.ContainsAny(t, "*>"):
			return fmt.Errorf("%q: * and > stand alone between dots; %s", s, hint)
		}
	}
	if tokens[0] != event.SubjectPrefix || len(tokens) < 2 {
		return fmt.Errorf("%q matches no event; %s", s, hint)
	}
	return nil
}
