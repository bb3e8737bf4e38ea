package config

import (
	"github.com/gridfan/gridfan/router/auth"
	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/router/normalise"
	"github.com/gridfan/gridfan/router/receive"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// pushed says whether a source's events come over HTTP.
func pushed(v *value) bool { return v.get("push") != nil || v.get("receive") == nil }

// received reads how a source is received from a broker, and where its dead letters
// are; false for one that has neither.
func (d *decoder) received(f *field) (receive.Source, bool) {
	v := f.value
	from, dead := v.get("receive"), v.get("deadLetters")
	if from == nil && dead == nil {
		return receive.Source{}, false
	}
	var s ingress.Source
	if pushed(v) {
		before, warned := len(d.problems), len(d.warnings)
		s = d.sourceOf(f, nil)
		d.problems, d.warnings = d.problems[:before], d.warnings[:warned] // they are reported for the ingress
	} else {
		for _, key := range []string{"rate", "concurrency"} {
			if k := v.get("limits", key); k != nil {
				d.problem(k.at, k.path, "this bounds what is pushed, and nothing is: remove the key, or add push; receive has bounds of its own")
			}
		}
		s = d.sourceOf(f, &auth.Config{None: true})
	}
	r := receive.Source{
		Name: s.Name, Kind: s.Kind, Environment: s.Environment, Rationale: s.Rationale, Body: s.Limits.Body,
		Options: normalise.Options{BusinessKeys: s.BusinessKeys, Mapping: s.Mapping},
	}
	if from != nil {
		r.From = d.broker(from)
	}
	if dead != nil {
		r.DeadLetters = d.deadLetters(dead)
	}
	d.validated(r.Validate("sources."+f.name), v, "sources."+f.name)
	return r, true
}

// deadLetters reads where a source's dead letters are.
func (d *decoder) deadLetters(v *value) *receive.DeadLetters {
	b := v.get("blob")
	if b == nil {
		return &receive.DeadLetters{}
	}
	c := &receive.BlobContainer{
		Account:   d.text(b.get("account")),
		Container: d.text(b.get("container")),
		Prefix:    d.text(b.get("prefix")),
		Keep:      d.boolean(b.get("keep")),
		Auth:      d.azureAuth(b.get("auth")),
	}
	if every := d.durationOrNone(b.get("every")); every == deliver.None {
		c.Every = receive.Never
	} else {
		c.Every = every.Std()
	}
	return &receive.DeadLetters{Blob: c}
}

// broker reads what a source is received from.
func (d *decoder) broker(v *value) *receive.Config {
	c := &receive.Config{}
	if w := v.get("serviceBus"); w != nil {
		c.ServiceBus = &receive.ServiceBus{
			Namespace:    d.text(w.get("namespace")),
			Queue:        d.text(w.get("queue")),
			Topic:        d.text(w.get("topic")),
			Subscription: d.text(w.get("subscription")),
			Sessions:     d.boolean(w.get("sessions")),
			Batch:        d.integer(w.get("batch")),
			Concurrency:  d.integer(w.get("concurrency")),
			Auth:         d.azureAuth(w.get("auth")),
		}
	}
	if w := v.get("eventGridNamespace"); w != nil {
		c.EventGridNamespace = &receive.Namespace{
			Endpoint:     d.text(w.get("endpoint")),
			Topic:        d.text(w.get("topic")),
			Subscription: d.text(w.get("subscription")),
			Batch:        d.integer(w.get("batch")),
			Wait:         d.duration(w.get("wait")).Std(),
			Auth:         d.azureAuth(w.get("auth")),
		}
	}
	if w := v.get("eventHub"); w != nil {
		c.EventHub = &receive.EventHub{
			Namespace:     d.text(w.get("namespace")),
			Hub:           d.text(w.get("hub")),
			ConsumerGroup: d.text(w.get("consumerGroup")),
			Batch:         d.integer(w.get("batch")),
			Auth:          d.azureAuth(w.get("auth")),
		}
		if start := w.get("start"); start != nil && start.kind == number {
			c.EventHub.Start = start.text
		} else {
			c.EventHub.Start = d.text(start)
		}
	}
	return c
}
