package config

import (
	"slices"
	"strings"

	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/native"
	"github.com/gridfan/gridfan/subscribers/pull"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// delivery reads how a subscriber is served.
func (d *decoder) delivery(v *value) deliver.Config {
	limits, retry, breaker := v.get("limits"), v.get("retry"), v.get("breaker")
	return deliver.Config{
		Ordering: deliver.Ordering(d.choice(v.get("ordering"))),
		Limits: deliver.Limits{
			Concurrency: d.integer(limits.get("concurrency")),
			Timeout:     d.duration(limits.get("timeout")),
			Rate:        deliver.Rate(d.rate(limits.get("rate"))),
			Batch: deliver.Batch{
				Events: d.integer(limits.get("batch", "events")),
				Bytes:  deliver.Size(d.size(limits.get("batch", "bytes"))),
				Linger: d.duration(limits.get("batch", "linger")),
			},
			Backlog: deliver.Backlog{
				Age:   d.duration(limits.get("backlog", "age")),
				Bytes: deliver.Size(d.size(limits.get("backlog", "bytes"))),
			},
		},
		Retry: deliver.Retry{
			Schedule:      d.durations(retry.get("schedule")),
			MaxAge:        d.duration(retry.get("maxAge")),
			MaxRetryAfter: d.duration(retry.get("maxRetryAfter")),
			Faults:        d.faults(retry.get("faults")),
		},
		Breaker: deliver.Breaker{
			Failures:   d.integer(breaker.get("failures")),
			Ratio:      d.fraction(breaker.get("ratio")),
			Window:     d.duration(breaker.get("window")),
			OpenFor:    d.duration(breaker.get("openFor")),
			MaxOpenFor: d.duration(breaker.get("maxOpenFor")),
			Probes:     d.integer(breaker.get("probes")),
			RampUp:     d.durationOrNone(breaker.get("rampUp")),
		},
	}
}

func (d *decoder) endpoint(f *field) registry.Endpoint {
	e := registry.Endpoint{Name: f.name, URL: d.text(f.value.get("url"))}
	d.validated(e.Validate(), f.value, "endpoints."+f.name)
	return e
}

// placed warns of a subscriber whose endpoint is not in the file: it may have been
// made by API, or be a typing error.
func (d *decoder) placed(subscriber *field, endpoints []registry.Endpoint) {
	v := subscriber.value.get("deliver", "webhook", "endpoint")
	if v == nil || v.kind != text || d.troubled("endpoints") {
		return
	}
	if slices.ContainsFunc(endpoints, func(e registry.Endpoint) bool { return e.Name == v.text }) || strings.Contains(v.text, "$") {
		return
	}
	d.warnings = append(d.warnings, Problem{d.file, v.at.line, v.at.column, v.path,
		"this file has no such endpoint; unless it was added with gridfan endpoints set, the subscriber is parked"})
}

// signing reads true, false, or a mapping, which means true.
func (d *decoder) signing(v *value) webhook.Signing {
	switch {
	case v == nil:
		return webhook.Signing{}
	case v.kind == boolean:
		return webhook.Signing{On: d.boolean(v)}
	case v.kind == text && (v.text == string(webhook.Ed25519) || v.text == string(webhook.HMAC)):
		return webhook.Signing{On: true, Algorithm: webhook.Algorithm(v.text)}
	case v.kind != mapping:
		// It may be a key: it is not repeated.
		d.problem(v.at, v.path, `want true, ed25519, or { keys: [ "${env:NAME}" ] }`)
		return webhook.Signing{}
	}
	s := webhook.Signing{On: true, Algorithm: webhook.Algorithm(d.text(v.get("algorithm"))), Overlap: d.duration(v.get("overlap"))}
	for _, key := range d.secrets(v.get("keys")) {
		s.Keys = append(s.Keys, key.Reveal())
	}
	return s
}

// handshake reads true, false, or a mapping, which means true.
func (d *decoder) handshake(v *value) webhook.Handshake {
	switch {
	case v == nil:
		return webhook.Handshake{}
	case v.kind == mapping:
		return webhook.Handshake{On: true, Origin: d.text(v.get("origin"))}
	}
	return webhook.Handshake{On: d.boolean(v)}
}

// headers reads own headers. Validate knows what may stand in them.
func (d *decoder) headers(v *value) map[string]string {
	switch {
	case v == nil:
		return nil
	case v.kind != mapping:
		d.problem(v.at, v.path, `want a mapping, as in { X-Company: "{{legalentity}}" }, got %s`, v.kind)
		return nil
	}
	headers := map[string]string{}
	for _, f := range v.fields {
		if f.value.kind == null {
			d.problem(f.at, f.value.path, "empty; give a value or leave the header out")
			continue
		}
		headers[f.name] = d.text(f.value)
	}
	return headers
}

// pull reads how a subscriber fetches its events. The key alone means all defaults.
func (d *decoder) pull(v *value) *pull.Config {
	if v == nil {
		return nil
	}
	p := &pull.Config{
		LockDuration:     d.duration(v.get("lockDuration")),
		MaxDeliveryCount: d.integer(v.get("maxDeliveryCount")),
		Overlap:          d.duration(v.get("overlap")),
	}
	if !d.mappingOrTrue(v, `{ keys: [ "${env:NAME}" ] }`) {
		return p
	}
	for _, key := range d.secrets(v.get("keys")) {
		p.Keys = append(p.Keys, key.Reveal())
	}
	if e := v.get("entra"); e != nil {
		p.Entra = &pull.Entra{
			Tenant:    d.text(e.get("tenant")),
			Audience:  d.textOrTexts(e.get("audience")),
			Roles:     d.textOrTexts(e.get("roles")),
			Callers:   d.textOrTexts(e.get("callers")),
			Authority: d.text(e.get("authority")),
		}
	}
	return p
}

// mappingOrTrue says whether v is a mapping, which like says how to write. What is
// neither one nor true is a problem; it may be a key, and is not repeated.
func (d *decoder) mappingOrTrue(v *value, like string) bool {
	if v.kind != mapping && (v.kind != boolean || v.text != "true") {
		d.problem(v.at, v.path, "want true, or %s", like)
	}
	return v.kind == mapping
}

func (d *decoder) native(v *value) *native.Config {
	if !d.mappingOrTrue(v, "a mapping with some of: keys, overlap, ackWait, maxDeliver, maxAckPending") {
		return &native.Config{}
	}
	return &native.Config{
		Keys: d.textOrTexts(v.get("keys")), Overlap: d.duration(v.get("overlap")), AckWait: d.duration(v.get("ackWait")),
		MaxDeliver: d.integer(v.get("maxDeliver")), MaxAckPending: d.integer(v.get("maxAckPending")),
	}
}

// start reads where a new subscriber begins. A sequence needs no quotes.
func (d *decoder) start(v *value) registry.Start {
	if v != nil && v.kind == number {
		return registry.Start(v.text)
	}
	return registry.Start(d.text(v))
}

// faults reads the rules for kinds of failure. Validate knows their names.
func (d *decoder) faults(v *value) map[deliver.Fault]deliver.Rule {
	if v == nil || v.kind != mapping {
		return nil
	}
	rules := map[deliver.Fault]deliver.Rule{}
	for _, f := range v.fields {
		rule := v.get(f.name) // Validate reports one that says nothing
		rules[deliver.Fault(f.name)] = deliver.Rule{
			Schedule: d.durations(rule.get("schedule")),
			GiveUp:   d.boolean(rule.get("giveUp")),
		}
	}
	return rules
}

func (d *decoder) durations(v *value) []deliver.Duration {
	var all []deliver.Duration
	for _, item := range d.items(v) {
		all = append(all, d.duration(item)) // in its place even if unreadable
	}
	return all
}

// durationOrNone reads a duration that can be switched off.
func (d *decoder) durationOrNone(v *value) deliver.Duration {
	if v != nil && v.kind == text && v.text == deliver.None.String() {
		return deliver.None
	}
	return d.duration(v)
}

func (d *decoder) boolean(v *value) bool {
	if v == nil {
		return false
	}
	s := v.text
	switch v.kind {
	case boolean:
	case text:
		if s = d.text(v); s == "" {
			return false
		}
	default:
		d.problem(v.at, v.path, "want true or false, got %s", v.kind)
		return false
	}
	switch s {
	case "true":
		return true
	case "false":
	default:
		d.problem(v.at, v.path, "want true or false, got %q", s)
	}
	return false
}
