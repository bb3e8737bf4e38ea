// Package eventgrid publishes events to Azure Event Grid, through the clients of its
// SDK: to topics (azeventgrid), as CloudEvents or in the Event Grid schema, and to
// topics of namespaces (aznamespaces), as CloudEvents. Both Senders are a
// deliver.BatchSender.
//
// What an attempt guarantees:
//
//   - One Send, or SendBatch, is one request. The client's own repetitions are off
//     and no redirect is followed: the clients would take a key to any host, and an
//     event that a redirect turned into a GET for a published one. (Only a token
//     that the service refuses with a challenge is got anew, once.)
//   - The status decides, as package reply says.
//   - What is over the service's limit is refused here and never sent, be it one
//     event or a batch; Pack says how much fits.
//   - No Reason shows a key, a signature or a token.
//
// The clients write JSON anew: numbers and texts arrive as they were, blanks between
// them do not, and < > & as escapes.
package eventgrid

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/messaging"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/eventgrid/azeventgrid"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/eventgrid/aznamespaces"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/reply"
)

// What the service takes in one request (learn.microsoft.com, event-grid
// quotas-limits; read 2026-11): 1 MB, both for an event and for a batch, and so many
// events.
const (
	maxRequest         = 1 << 20
	maxTopicEvents     = 5000
	maxNamespaceEvents = 1000
)

// scope is that of tokens for Event Grid, as both clients ask for.
const scope = "https://eventgrid.azure.net/.default"

// Options are what a Sender is told besides its configuration.
type Options struct {
	// Concurrency is how many Sends run at once. 0 means any number.
	Concurrency int
	// Version of gridfan, for the User-Agent. Empty leaves it out.
	Version string
	// Egress is how connections are made. Nil: to wherever the endpoint leads, by the
	// proxy of the environment. Azure's own token endpoints are reached without it.
	Egress *egress.Way
	// Log gets what happens to tokens. Nil means nothing.
	Log *slog.Logger
	// Identity takes the place of the identity that the configuration names. Nil
	// leaves it.
	Identity azcore.TokenCredential
}

// Sender publishes to one topic. It is safe for concurrent use.
type Sender struct {
	http     *reply.HTTP
	identity azcore.TokenCredential   // nil with a key
	tokens   *credentials.Credentials // nil unless identity is theirs
	most     int                      // events in a request

	one  func(context.Context, *event.Event) error
	many func(context.Context, []*event.Event) error
}

var _ interface {
	deliver.BatchSender
	deliver.Packer
	deliver.Renewer
} = (*Sender)(nil)

// New makes a Sender to a topic for a valid cfg; it opens no connection yet. The
// caller closes it.
func New(cfg Config, opts Options) (*Sender, error) {
	if err := cfg.Validate("eventGrid"); err != nil {
		return nil, err
	}
	s, err := newSender(cfg.Endpoint, cfg.Auth, opts, maxTopicEvents)
	if err != nil {
		return nil, err
	}
	o := &azeventgrid.ClientOptions{ClientOptions: s.clientOptions(opts)}
	var client *azeventgrid.Client
	switch {
	case s.identity != nil:
		client, err = azeventgrid.NewClient(cfg.Endpoint, s.identity, o)
	case cfg.Auth.SAS != "":
		client, err = azeventgrid.NewClientWithSAS(cfg.Endpoint, azcore.NewSASCredential(cfg.Auth.SAS), o)
	default:
		client, err = azeventgrid.NewClientWithSharedKeyCredential(cfg.Endpoint, azcore.NewKeyCredential(cfg.Auth.Key), o)
	}
	if err != nil {
		return nil, err
	}
	s.many = func(ctx context.Context, events []*event.Event) error {
		if cfg.Schema == EventGrid {
			_, err := client.PublishEvents(ctx, eventGridEvents(events, time.Now()), nil)
			return err
		}
		all := make([]messaging.CloudEvent, len(events))
		for i, e := range events {
			all[i] = cloudEvent(e)
		}
		_, err := client.PublishCloudEvents(ctx, all, nil)
		return err
	}
	// A topic takes nothing but lists.
	s.one = func(ctx context.Context, e *event.Event) error { return s.many(ctx, []*event.Event{e}) }
	return s, nil
}

// NewNamespace is New for a topic of a namespace.
func NewNamespace(cfg NamespaceConfig, opts Options) (*Sender, error) {
	if err := cfg.Validate("eventGridNamespace"); err != nil {
		return nil, err
	}
	s, err := newSender(cfg.Endpoint, cfg.Auth, opts, maxNamespaceEvents)
	if err != nil {
		return nil, err
	}
	o := &aznamespaces.SenderClientOptions{ClientOptions: s.clientOptions(opts)}
	var client *aznamespaces.SenderClient
	if s.identity != nil {
		client, err = aznamespaces.NewSenderClient(cfg.Endpoint, cfg.Topic, s.identity, o)
	} else {
		client, err = aznamespaces.NewSenderClientWithSharedKeyCredential(cfg.Endpoint, cfg.Topic, azcore.NewKeyCredential(cfg.Auth.Key), o)
	}
	if err != nil {
		return nil, err
	}
	s.one = func(ctx context.Context, e *event.Event) error {
		ce := cloudEvent(e)
		_, err := client.SendEvent(ctx, &ce, nil)
		return err
	}
	s.many = func(ctx context.Context, events []*event.Event) error {
		all := make([]*messaging.CloudEvent, len(events))
		for i, e := range events {
			ce := cloudEvent(e)
			all[i] = &ce
		}
		_, err := client.SendEvents(ctx, all, nil)
		return err
	}
	return s, nil
}

func newSender(endpoint string, auth credentials.AzureAuth, opts Options, most int) (*Sender, error) {
	target, err := url.Parse(endpoint)
	if err != nil {
		return nil, err // Validate has parsed it
	}
	s := &Sender{
		http:     reply.NewHTTP(reply.Hide(secrets(auth)...), opts.Concurrency, maxRequest, opts.Egress, target),
		identity: opts.Identity,
		most:     most,
	}
	if s.identity != nil {
		return s, nil
	}
	if s.tokens = auth.Credentials(opts.Log); s.tokens != nil {
		s.identity = s.tokens.Azure()
	}
	return s, nil
}

func (s *Sender) clientOptions(opts Options) policy.ClientOptions {
	id := "gridfan"
	if opts.Version != "" {
		id += "/" + opts.Version
	}
	return policy.ClientOptions{
		Transport: s.http,
		Retry:     policy.RetryOptions{MaxRetries: -1}, // when to try again is the worker's decision
		Telemetry: policy.TelemetryOptions{ApplicationID: id[:min(len(id), 24)]},
	}
}

// Send publishes e once; see deliver.Sender.
func (s *Sender) Send(ctx context.Context, e *event.Event) deliver.Attempt {
	return s.attempt(ctx, func(ctx context.Context) error { return s.one(ctx, e) })
}

// SendBatch publishes events once, in the order given; see deliver.BatchSender.
func (s *Sender) SendBatch(ctx context.Context, events []*event.Event) deliver.Attempt {
	if len(events) > s.most {
		return deliver.Attempt{
			Outcome: deliver.Rejected, Fault: deliver.FaultRefused, Status: http.StatusRequestEntityTooLarge,
			Reason: "not sent: more events than the service takes at once",
		}
	}
	return s.attempt(ctx, func(ctx context.Context) error { return s.many(ctx, events) })
}

func (s *Sender) attempt(ctx context.Context, send func(context.Context) error) deliver.Attempt {
	token := ""
	if s.identity != nil && ctx.Err() == nil {
		// Asked for here, the reason is not mistaken for an answer of the topic.
		// The client asks again and gets what is kept.
		start := time.Now()
		t, err := s.identity.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{scope}, EnableCAE: true})
		if err != nil {
			return s.http.NoToken(ctx, err, time.Since(start))
		}
		token = t.Token
	}
	return s.http.Attempt(ctx, token, send)
}

// Pack implements deliver.Packer.
func (s *Sender) Pack(events []*event.Event) int {
	size := 2
	for i, e := range events {
		size += jsonSize(e) + 1
		if i > 0 && (size > maxRequest || i >= s.most) {
			return i
		}
	}
	return len(events)
}

// RetryNow implements deliver.Renewer.
func (s *Sender) RetryNow() {
	if s.tokens != nil {
		s.tokens.RetryNow()
	}
}

// Close gives up idle connections; see deliver.Sender.
func (s *Sender) Close() {
	s.http.Close()
	if s.tokens != nil {
		s.tokens.Close()
	}
}
