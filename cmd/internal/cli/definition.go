package cli

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/native"
	"github.com/gridfan/gridfan/subscribers/pull"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// setting is a flag that sets a part of a definition.
type setting struct {
	flag string
	// keys are those of the definition that it changes.
	keys  []string
	usage string
	set   func(d *registry.Definition, v string) error
}

// settings are the flags that subscribe and update share. An empty value takes
// the default again.
var settings = []setting{
	{"url", []string{"deliver.webhook.url", "deliver.webhook.endpoint", "deliver.webhook.path"}, "http or https URL that events are posted to", func(d *registry.Definition, v string) error {
		d.Deliver = registry.Deliver{Webhook: hook(d)}
		hook(d).URL, hook(d).Endpoint, hook(d).Path = v, "", ""
		return nil
	}},
	{"endpoint", []string{"deliver.webhook.url", "deliver.webhook.endpoint"}, "name of an endpoint, in the place of --url; see gridfan endpoints", func(d *registry.Definition, v string) error {
		d.Deliver = registry.Deliver{Webhook: hook(d)}
		hook(d).URL, hook(d).Endpoint = "", v
		return nil
	}},
	{"path", []string{"deliver.webhook.path"}, "path that is added to that of the endpoint, as in /orders", func(d *registry.Definition, v string) error {
		hook(d).Path = v
		return nil
	}},
	{"format", []string{"deliver.webhook.format"}, formatUsage, func(d *registry.Definition, v string) error {
		hook(d).Format = webhook.Format(v)
		return nil
	}},
	{"handshake", []string{"deliver.webhook.handshake"}, "ask the endpoint whether it wants these events before it is sent any; a DNS name says who asks; =false stops it", func(d *registry.Definition, v string) error {
		on, err := strconv.ParseBool(v)
		hook(d).Handshake = webhook.Handshake{On: on}
		if err != nil && v != "" {
			hook(d).Handshake = webhook.Handshake{On: true, Origin: v}
		}
		return nil
	}},
	{"sign", []string{"deliver.webhook.sign"}, "sign posts (Standard Webhooks) with a key that is made and shown once, or with =ed25519 a pair whose public key is shown; =false stops it", func(d *registry.Definition, v string) error {
		on, algorithm := true, webhook.Algorithm("")
		switch a := webhook.Algorithm(v); a {
		case webhook.HMAC, webhook.Ed25519:
			algorithm = a
		default:
			var err error
			if on, err = strconv.ParseBool(v); err != nil {
				return fmt.Errorf("want true, false, %s or %s, got %q", webhook.HMAC, webhook.Ed25519, v)
			}
		}
		switch s := &hook(d).Sign; {
		case on != s.On:
			*s = webhook.Signing{On: on, Algorithm: algorithm}
		case algorithm != "":
			*s = webhook.Signing{On: true, Algorithm: algorithm, Overlap: s.Overlap}
		}
		return nil
	}},
	{"pull", []string{"deliver.pull"}, "its receivers fetch the events, as from Event Grid namespaces, with a key that is made and shown once", func(d *registry.Definition, v string) error {
		if on, err := strconv.ParseBool(v); err != nil || !on {
			return fmt.Errorf("want true, or --url in its place, got %q", v)
		}
		fetched(d)
		return nil
	}},
	{"lock", []string{"deliver.pull.lockDuration"}, "how long an event is its receiver's, with --pull (default 60s)", func(d *registry.Definition, v string) error {
		return span(v, &fetched(d).LockDuration)
	}},
	{"max-deliveries", []string{"deliver.pull.maxDeliveryCount"}, "how often an event is handed out before it becomes a dead letter, with --pull (default 10)", func(d *registry.Definition, v string) error {
		return number(v, &fetched(d).MaxDeliveryCount)
	}},
	{"nats", []string{"deliver.nats"}, "its own NATS client takes the events from a consumer, in the place of --url; docs/native-nats.md", func(d *registry.Definition, v string) error {
		on, err := strconv.ParseBool(v)
		if err != nil || !on {
			return fmt.Errorf("want true, got %q", v)
		}
		consumer(d)
		return nil
	}},
	{"client-key", []string{"deliver.nats.keys", "deliver.nats.overlap"}, "public nkeys of its NATS client, with commas between (default one that is made, its seed shown once)", func(d *registry.Definition, v string) error {
		consumer(d).Keys = nil
		if v != "" {
			consumer(d).Keys, consumer(d).Overlap = strings.Split(v, ","), 0
		}
		return nil
	}},
	{"ack-wait", []string{"deliver.nats.ackWait"}, "how long its NATS client may take over an event (default 30s)", func(d *registry.Definition, v string) error {
		return span(v, &consumer(d).AckWait)
	}},
	{"max-deliver", []string{"deliver.nats.maxDeliver"}, "how often its NATS client is handed an event (default 10)", func(d *registry.Definition, v string) error {
		return number(v, &consumer(d).MaxDeliver)
	}},
	{"max-ack-pending", []string{"deliver.nats.maxAckPending"}, "how many events its NATS client may have in hand (default 1000)", func(d *registry.Definition, v string) error {
		return number(v, &consumer(d).MaxAckPending)
	}},
	{"filter", []string{"filter"}, "CEL expression over the event; others are not sent; try it with gridfan subscribers test", func(d *registry.Definition, v string) error {
		d.Filter = v
		return nil
	}},
	{"transform", []string{"transform"}, "jq expression that gives the data to send", func(d *registry.Definition, v string) error {
		d.Transform = v
		return nil
	}},
	{"ordering", []string{"ordering"}, "none, key (events of one partition key in their order) or strict (one after another)", func(d *registry.Definition, v string) error {
		d.Ordering = deliver.Ordering(v)
		return nil
	}},
	{"concurrency", []string{"limits.concurrency"}, "posts at once (default 8)", func(d *registry.Definition, v string) error {
		return number(v, &d.Limits.Concurrency)
	}},
	{"rate", []string{"limits.rate"}, "posts begun, on average, as in 200/s or 6000/m (default no limit)", func(d *registry.Definition, v string) error {
		d.Limits.Rate = 0
		if limit(v) == "" {
			return nil
		}
		return d.Limits.Rate.UnmarshalText([]byte(v))
	}},
	{"timeout", []string{"limits.timeout"}, "deadline of one post (default 30s)", func(d *registry.Definition, v string) error {
		return span(v, &d.Limits.Timeout)
	}},
	{"batch", []string{"limits.batch.events", "limits.batch.bytes", "limits.batch.linger"}, "events in one post, at most (default one event a post)", func(d *registry.Definition, v string) error {
		if limit(v) == "" {
			d.Limits.Batch = deliver.Batch{}
			return nil
		}
		return number(v, &d.Limits.Batch.Events)
	}},
	{"backlog-age", []string{"limits.backlog.age"}, "how old its oldest undelivered event may be, as in 7d (default any age)", func(d *registry.Definition, v string) error {
		return span(limit(v), &d.Limits.Backlog.Age)
	}},
	{"backlog-bytes", []string{"limits.backlog.bytes"}, "how much of EVENTS it may hold back, as in 1GiB (default half)", func(d *registry.Definition, v string) error {
		d.Limits.Backlog.Bytes = 0
		if limit(v) == "" {
			return nil
		}
		return d.Limits.Backlog.Bytes.UnmarshalText([]byte(v))
	}},
	{"retry", []string{"retry.schedule"}, "waits between attempts, as in 1s,30s,5m (default 1s,5s,30s,2m,10m,1h,6h,24h)", func(d *registry.Definition, v string) error {
		d.Retry.Schedule = nil
		for wait := range strings.SplitSeq(v, ",") {
			if v == "" {
				break
			}
			var w deliver.Duration
			if err := span(strings.TrimSpace(wait), &w); err != nil {
				return err
			}
			d.Retry.Schedule = append(d.Retry.Schedule, w)
		}
		return nil
	}},
	{"max-age", []string{"retry.maxAge"}, "how long after its acceptance an event is still tried (default as long as the waits)", func(d *registry.Definition, v string) error {
		return span(limit(v), &d.Retry.MaxAge)
	}},
}

// formatUsage is that of --format, wherever it is.
const formatUsage = "cloudevents (one JSON object), cloudevents-binary (attributes as headers), eventgrid (Event Grid schema) or original (the data alone)"

// headerFlag reads headers as curl takes them. A lone empty one means none.
func headerFlag(d *registry.Definition, lines []string) error {
	hook(d).Headers = nil
	for _, line := range lines {
		if line == "" && len(lines) == 1 {
			return nil
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			// It may be a secret: it is not repeated.
			return errors.New(`want "Name: value"`)
		}
		if _, twice := hook(d).Headers[name]; twice {
			return fmt.Errorf("%.100q is there twice", name)
		}
		if hook(d).Headers == nil {
			hook(d).Headers = map[string]string{}
		}
		hook(d).Headers[name] = strings.TrimSpace(value)
	}
	return nil
}

// azureWays are the flags that say where events go in Azure.
var azureWays = []string{"event-grid", "event-grid-namespace", "service-bus", "connection-string"}

// limit reads none as the default of a limit, which is that there is none.
func limit(v string) string {
	if v == "none" {
		return ""
	}
	return v
}

func hook(d *registry.Definition) *webhook.Config {
	if d.Deliver.Webhook == nil {
		d.Deliver = registry.Deliver{Webhook: &webhook.Config{}}
	}
	return d.Deliver.Webhook
}

func fetched(d *registry.Definition) *pull.Config {
	if d.Deliver.Pull == nil {
		d.Deliver = registry.Deliver{Pull: &pull.Config{}}
	}
	return d.Deliver.Pull
}

func consumer(d *registry.Definition) *native.Config {
	if d.Deliver.Nats == nil {
		d.Deliver = registry.Deliver{Nats: &native.Config{}}
	}
	return d.Deliver.Nats
}

func number(v string, to *int) error {
	if *to = 0; v == "" {
		return nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		return fmt.Errorf("want a whole number from 1, got %q", v)
	}
	*to = n
	return nil
}

func span(v string, to *deliver.Duration) error {
	if *to = 0; v == "" {
		return nil
	}
	d, err := deliver.ParseDuration(v)
	*to = deliver.Duration(d)
	return err
}

// definitionFlags adds the settings to a command. apply puts those that were
// given into a definition, and says which of its keys they are.
func definitionFlags(c *cobra.Command) (apply func(*registry.Definition) (keys []string, err error)) {
	var subjects, headers, auth, tls []string
	c.Flags().StringArrayVar(&subjects, "subject", nil, "subject pattern; may be given several times")
	c.Flags().StringArrayVar(&headers, "header", nil, `header of every post, as in "X-Company: {{legalentity}}"; may be given several times; replaces those there were`)
	c.Flags().StringArrayVar(&auth, "auth", nil, authUsage)
	c.Flags().StringArrayVar(&tls, "tls", nil, tlsUsage)
	settings := slices.Concat(azureSettings, settings)
	for _, s := range settings {
		c.Flags().String(s.flag, "", s.usage)
	}
	c.Flags().Lookup("sign").NoOptDefVal = "true"
	c.Flags().Lookup("handshake").NoOptDefVal = "true"
	c.Flags().Lookup("pull").NoOptDefVal = "true"
	c.Flags().Lookup("nats").NoOptDefVal = "true"
	groups := [][]string{
		{"url", "endpoint", "path", "format", "sign", "header", "handshake", "auth", "tls"},
		{"pull", "lock", "max-deliveries"},
		{"nats", "client-key", "ack-wait", "max-deliver", "max-ack-pending"},
		azureWays,
	}
	for i, some := range groups {
		for _, flag := range some {
			for _, other := range slices.Concat(groups[i+1:]...) {
				c.MarkFlagsMutuallyExclusive(flag, other)
			}
		}
	}
	c.MarkFlagsMutuallyExclusive("url", "endpoint")
	c.MarkFlagsMutuallyExclusive("url", "path")
	c.MarkFlagsMutuallyExclusive(azureWays...)
	c.MarkFlagsMutuallyExclusive("access-key", "sas", "connection-string", "identity")
	c.MarkFlagsMutuallyExclusive("queue", "topic")
	return func(d *registry.Definition) (keys []string, err error) {
		if c.Flags().Changed("subject") {
			d.Subjects, keys = subjects, append(keys, "subjects")
		}
		if c.Flags().Changed("header") {
			if err := headerFlag(d, headers); err != nil {
				return keys, fmt.Errorf("--header: %w", err)
			}
			keys = append(keys, "deliver.webhook.headers")
		}
		for _, s := range settings {
			if !c.Flags().Changed(s.flag) {
				continue
			}
			v, err := c.Flags().GetString(s.flag)
			if err == nil {
				err = s.set(d, v)
			}
			if err != nil {
				return keys, fmt.Errorf("--%s: %w", s.flag, err)
			}
			keys = append(keys, s.keys...)
		}
		for _, f := range []struct {
			name  string
			given []string
			set   func(*registry.Definition, []string) ([]string, error)
		}{{"auth", auth, setAuth}, {"tls", tls, setTLS}} {
			if !c.Flags().Changed(f.name) {
				continue
			}
			changed, err := f.set(d, f.given)
			if err != nil {
				return keys, fmt.Errorf("--%s: %w", f.name, err)
			}
			keys = append(keys, changed...)
		}
		return keys, nil
	}
}
