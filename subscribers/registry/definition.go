// Package registry knows the subscribers: their definitions in a KV bucket,
// shared by every replica, and the workers that serve them.
package registry

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
	"github.com/gridfan/gridfan/subscribers/deliver"
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

// Native says whether the subscriber's own NATS client takes the events.
func (d Definition) Native() bool { return d.Deliver.Nats != nil }

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
	if err := d.Deliver.validate(path+".deliver", d.Limits.Batch.Events > 0); err != nil {
		errs = append(errs, err)
	}
	if w, most := d.Deliver.Webhook, int64(eventgrid.MaxBatch); w != nil && w.Format == webhook.EventGrid && d.Limits.Batch.Events > 0 && int64(d.Limits.Batch.Bytes) > most {
		errs = append(errs, fmt.Errorf("%s.limits.batch.bytes: with format %s want at most %s, which is what receivers of Event Grid are ready for, got %s",
			path, webhook.EventGrid, deliver.Size(most), d.Limits.Batch.Bytes))
	}
	if d.Deliver.Pull != nil && len(d.Deliver.Kinds()) == 1 {
		errs = append(errs, d.fetched(path))
	}
	if d.Native() && len(d.Deliver.Kinds()) == 1 {
		errs = append(errs, d.plain(path))
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

// fetched refuses what is about attempts of ours: it has no meaning for a subscriber
// that fetches its events. Defaults are no offence.
func (d *Definition) fetched(path string) error {
	var errs []error
	refuse := func(key, why string) { errs = append(errs, fmt.Errorf("%s.%s: %s", path, key, why)) }
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

// plain refuses what has no meaning where the client reads the stream itself.
// Defaults are no offence.
func (d *Definition) plain(path string) error {
	var errs []error
	for key, set := range map[string]bool{"filter": d.Filter != "", "transform": d.Transform != ""} {
		if set {
			errs = append(errs, fmt.Errorf("%s.%s: deliver.nats gives events as they are stored, so they can't be filtered or transformed on the way; narrow the subjects, or let the client do it", path, key))
		}
	}
	given, plain := d.Config, deliver.Config{}
	plain.Limits.Backlog = given.Limits.Backlog
	if given.Validate(path) != nil || plain.Validate(path) != nil {
		return errors.Join(errs...) // reported by itself
	}
	for _, difference := range differences(plain, given, plain, given) {
		errs = append(errs, fmt.Errorf("%s.%s: has no meaning for deliver.nats, where the client asks for events when it likes; remove the key (deliver.nats has ackWait, maxDeliver and maxAckPending)", path, difference.Key))
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// Redacted returns d without its secrets, for people to see.
func (d Definition) Redacted() Definition {
	d.Deliver = d.Deliver.redacted()
	return d
}

// Reveal puts the secrets of a stored definition in the place of those that
// Redacted has hidden in d, so that what was read can be changed and sent back.
func (d *Definition) Reveal(stored Definition) { d.Deliver.reveal(stored.Deliver) }

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
