package receive

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"

	"github.com/gridfan/gridfan/infra/azureamqp"
	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/router/normalise"
)

// Source is one source whose events wait in a broker.
type Source struct {
	// Name, Kind and Environment are the source's, as its events have them.
	Name, Kind, Environment string
	// Rationale is the operator's reason for the pattern, shown in status.
	Rationale string
	// Options are what the source's configuration says of bodies of its kind.
	Options normalise.Options
	// Body is the largest body in bytes. 0 means 4 MiB.
	Body int64

	// From is what it is received from; nil: it is not, and only its dead letters are
	// read here.
	From *Config
	// DeadLetters are where what could not be delivered is; nil: where From keeps
	// them.
	DeadLetters *DeadLetters
}

// Config is one broker to receive from; exactly one field is set.
type Config struct {
	ServiceBus         *ServiceBus `json:"serviceBus,omitempty"`
	EventGridNamespace *Namespace  `json:"eventGridNamespace,omitempty"`
	EventHub           *EventHub   `json:"eventHub,omitempty"`
}

// ServiceBus is a queue, or a subscription of a topic, of Azure Service Bus.
type ServiceBus struct {
	// Namespace is its host, as in contoso.servicebus.windows.net. A connection
	// string takes its place.
	Namespace string `json:"namespace,omitempty"`
	// Queue, or Topic and Subscription.
	Queue        string `json:"queue,omitempty"`
	Topic        string `json:"topic,omitempty"`
	Subscription string `json:"subscription,omitempty"`
	// Sessions says that the queue or subscription requires sessions.
	Sessions bool `json:"sessions,omitempty"`
	// Batch is how many messages are asked for at once. Default 100.
	Batch int `json:"batch"`
	// Concurrency is how many connections receive, each for itself: with sessions
	// so many are worked on at once. Default 4 with sessions, and 1 without, which
	// keeps messages in order as far as the service does.
	Concurrency int `json:"concurrency"`
	// Auth is a connection string, or an identity with the role Azure Service Bus
	// Data Receiver.
	Auth credentials.AzureAuth `json:"auth"`
}

// Namespace is a subscription, of delivery mode queue, to a topic of an Event Grid
// namespace.
type Namespace struct {
	// Endpoint is the namespace's address, https.
	Endpoint     string `json:"endpoint"`
	Topic        string `json:"topic"`
	Subscription string `json:"subscription"`
	// Batch is how many events are asked for at once. Default and most 100.
	Batch int `json:"batch"`
	// Wait is how long the service holds a request without events. Default 60s.
	Wait time.Duration `json:"wait"`
	// Auth is a key, or an identity with the role EventGrid Data Receiver.
	Auth credentials.AzureAuth `json:"auth"`
}

// EventHub is an event hub of Azure Event Hubs, read as one of its consumer groups.
type EventHub struct {
	// Namespace is its host, as in contoso.servicebus.windows.net. A connection
	// string takes its place.
	Namespace string `json:"namespace,omitempty"`
	// Hub is its name.
	Hub string `json:"hub"`
	// ConsumerGroup is whose place in the hub this is; nobody else may read as it.
	// Default $Default.
	ConsumerGroup string `json:"consumerGroup"`
	// Start is where a partition is begun that was never read: "beginning" (the
	// default), "now", a time (RFC 3339), or the sequence number of the first event
	// to be read. Partitions that are added later are read from their beginning.
	Start string `json:"start"`
	// Batch is how many events of a partition are asked for at once. Default 100.
	Batch int `json:"batch"`
	// Auth is a connection string, or an identity with the role Azure Event Hubs
	// Data Receiver.
	Auth credentials.AzureAuth `json:"auth"`
}

const (
	defaultBody = 4 << 20

	// defaultBatch messages of 1 KB are 100 KB, for one sync of the disk.
	defaultBatch    = 100
	mostBatch       = 1000
	mostConcurrency = 64

	// The bounds of the service (aznamespaces v1.0.0, ReceiveEventsOptions).
	mostNamespaceBatch = 100
	leastWait          = 10 * time.Second
	mostWait           = 120 * time.Second
)

// Validate sets defaults and reports every problem, each beginning with the path of
// its key below path, which is where the source stands.
func (s *Source) Validate(path string) error {
	var errs []error
	if s.Environment == "" {
		s.Environment = s.Name
	}
	if s.Body == 0 {
		s.Body = defaultBody
	}
	if s.From != nil {
		errs = append(errs, s.From.validate(path+".receive"))
	}
	if s.DeadLetters != nil {
		errs = append(errs, s.DeadLetters.validate(path+".deadLetters"))
	}
	return errors.Join(errs...)
}

func (c *Config) validate(path string) error {
	set := 0
	var errs []error
	if c.ServiceBus != nil {
		set++
		errs = append(errs, c.ServiceBus.validate(path+".serviceBus"))
	}
	if c.EventGridNamespace != nil {
		set++
		errs = append(errs, c.EventGridNamespace.validate(path+".eventGridNamespace"))
	}
	if c.EventHub != nil {
		set++
		errs = append(errs, c.EventHub.validate(path+".eventHub"))
	}
	switch set {
	case 0:
		errs = append(errs, fmt.Errorf("%s: want serviceBus, eventGridNamespace or eventHub", path))
	case 1:
	default:
		errs = append(errs, fmt.Errorf("%s: serviceBus, eventGridNamespace and eventHub exclude each other; keep one, and make a source of the other", path))
	}
	return errors.Join(errs...)
}

// problems collects what is wrong below a path.
type problems struct {
	path string
	errs []error
}

func (p *problems) report(key, format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf("%s%s: %w", p.path, key, fmt.Errorf(format, args...)))
}

// whole sets a default, and reports a number out of bounds.
func (p *problems) whole(key string, n *int, fallback, least, most int) {
	if *n == 0 {
		*n = fallback
	}
	if *n < least || *n > most {
		p.report(key, "want %d to %d, got %d", least, most, *n)
	}
}

// amqp looks at what leads to a namespace of AMQP.
func (p *problems) amqp(namespace, entity string, auth credentials.AzureAuth) {
	if err := auth.Validate(p.path+".auth", append([]credentials.AzureMethod{credentials.AzureConnectionString}, credentials.AzureIdentities...)...); err != nil {
		p.errs = append(p.errs, err)
		return
	}
	switch _, err := azureamqp.Locate(namespace, auth, entity); {
	case auth.ConnectionString != "" && namespace != "":
		p.report(".namespace", "the connection string says which; leave the key out")
	case auth.ConnectionString != "" && err != nil:
		p.report(".auth.connectionString", "%w", err)
	case namespace == "" && err != nil:
		p.report(".namespace", "missing; want the host, as in contoso.servicebus.windows.net")
	case err != nil:
		p.report(".namespace", "%w", err)
	}
}

func (c *ServiceBus) validate(path string) error {
	p := &problems{path: path}
	name := func(key, s string) {
		if s != "" && !azureamqp.ValidEntity(s) {
			p.report(key, "%s", azureamqp.EntityRule)
		}
	}
	switch {
	case c.Queue == "" && c.Topic == "":
		p.report("", "want queue, or topic and subscription: where messages wait")
	case c.Queue != "" && c.Topic != "":
		p.report(".topic", "queue and topic exclude each other; keep one")
	case c.Queue != "" && c.Subscription != "":
		p.report(".subscription", "a queue has none; remove the key")
	case c.Topic != "" && c.Subscription == "":
		p.report(".subscription", "missing; nobody receives from a topic, but from one of its subscriptions")
	}
	name(".queue", c.Queue)
	name(".topic", c.Topic)
	name(".subscription", c.Subscription)
	p.whole(".batch", &c.Batch, defaultBatch, 1, mostBatch)
	p.whole(".concurrency", &c.Concurrency, map[bool]int{true: 4, false: 1}[c.Sessions], 1, mostConcurrency)
	p.amqp(c.Namespace, c.Queue+c.Topic, c.Auth)
	return errors.Join(p.errs...)
}

// entity is the path of what is received from, as the client writes it (azservicebus
// v1.11.0, receiver.go).
func (c *ServiceBus) entity() string {
	if c.Queue != "" {
		return c.Queue
	}
	return c.Topic + "/Subscriptions/" + c.Subscription
}

func (c *Namespace) validate(path string) error {
	p := &problems{path: path}
	p.https(".endpoint", c.Endpoint, "https://NAMESPACE.REGION-1.eventgrid.azure.net")
	for _, n := range []struct{ key, name string }{{"topic", c.Topic}, {"subscription", c.Subscription}} {
		// Event Grid itself allows 3 to 50 (learn.microsoft.com, resource-name-rules;
		// read 2026-11): it says so if a name is none of its.
		const most = 128
		switch {
		case n.name == "":
			p.report("."+n.key, "missing; want the name of a %s in the namespace", n.key)
		case len(n.name) > most || strings.Trim(n.name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" || strings.Trim(n.name, ".") == "":
			p.report("."+n.key, "a name is up to %d letters, digits and dashes", most)
		}
	}
	p.whole(".batch", &c.Batch, mostNamespaceBatch, 1, mostNamespaceBatch)
	if c.Wait == 0 {
		c.Wait = 60 * time.Second
	}
	if c.Wait < leastWait || c.Wait > mostWait {
		p.report(".wait", "want 10s to 2m, got %s", c.Wait)
	}
	if err := c.Auth.Validate(path+".auth", append([]credentials.AzureMethod{credentials.AzureKey}, credentials.AzureIdentities...)...); err != nil {
		p.errs = append(p.errs, err)
	}
	return errors.Join(p.errs...)
}

// The places where a partition can be begun, beside times and numbers.
const (
	StartBeginning = "beginning"
	StartNow       = "now"
)

func (c *EventHub) validate(path string) error {
	p := &problems{path: path}
	switch {
	case c.Hub == "":
		p.report(".hub", "missing; want the name of the event hub")
	case !azureamqp.ValidEntity(c.Hub) || strings.Contains(c.Hub, "/"):
		p.report(".hub", "a name is up to 260 letters, digits, dots, dashes and underscores")
	}
	if c.ConsumerGroup == "" {
		c.ConsumerGroup = azeventhubs.DefaultConsumerGroup
	}
	// 50 characters over AMQP (learn.microsoft.com, event-hubs-quotas; read 2026-11).
	const mostGroup = 50
	if g := strings.TrimPrefix(c.ConsumerGroup, "$"); len(g) > mostGroup || strings.Contains(g, "/") || !azureamqp.ValidEntity(g) {
		p.report(".consumerGroup", "a name is up to %d letters, digits, dots, dashes and underscores", mostGroup)
	}
	if _, err := startOf(c.Start); err != nil {
		p.report(".start", "%w", err)
	}
	if c.Start == "" {
		c.Start = StartBeginning
	}
	p.whole(".batch", &c.Batch, defaultBatch, 1, mostBatch)
	p.amqp(c.Namespace, c.Hub, c.Auth)
	return errors.Join(p.errs...)
}

// startOf reads a Start.
func startOf(s string) (Position, error) {
	switch {
	case s == "" || s == StartBeginning:
		return Position{}, nil
	case s == StartNow:
		return Position{now: true}, nil
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && n >= 0 {
		return Position{Sequence: &n}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return Position{}, fmt.Errorf("want beginning, now, a time as in 2026-11-01T10:00:00Z, or a sequence number, got %.40q", s)
	}
	return Position{Time: t}, nil
}

// https checks an address, which has no place for a secret, so it can be shown.
func (p *problems) https(key, raw, example string) *url.URL {
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		p.report(key, "missing; want the address, as in %s", example)
	case err != nil || u.Host == "" || u.Opaque != "":
		// It may be a key that lost its place: it is not repeated.
		p.report(key, "want %s", example)
	case u.Scheme != "https":
		p.report(key, "want https; keys and tokens are sent over nothing else")
	case u.User != nil, u.RawQuery != "", u.ForceQuery, u.Fragment != "":
		p.report(key, "want no user, ?query or #fragment; what lets gridfan in belongs below auth")
	default:
		return u
	}
	return nil
}

// Redacted returns s without its secrets.
func (s Source) Redacted() Source {
	if s.From != nil {
		from := *s.From
		if b := from.ServiceBus; b != nil {
			c := *b
			c.Auth, from.ServiceBus = c.Auth.Redacted(), &c
		}
		if n := from.EventGridNamespace; n != nil {
			c := *n
			c.Auth, from.EventGridNamespace = c.Auth.Redacted(), &c
		}
		if h := from.EventHub; h != nil {
			c := *h
			c.Auth, from.EventHub = c.Auth.Redacted(), &c
		}
		s.From = &from
	}
	if d := s.DeadLetters; d != nil && d.Blob != nil {
		c := *d.Blob
		c.Auth = c.Auth.Redacted()
		s.DeadLetters = &DeadLetters{Blob: &c}
	}
	return s
}
