// Package servicebus sends events to a queue or topic of Azure Service Bus, through
// the SDK's client (azservicebus) over AMQP 1.0. Its Sender is a deliver.BatchSender.
//
// A message is a CloudEvent in structured mode. Its id is a digest of the event's
// source and id, the same for every attempt, so that a queue or topic that detects
// duplicates drops what it has already; its session can be the partition key.
//
// What an attempt guarantees:
//
//   - One Send is one message and one SendBatch one batch, both given to the service
//     once. The SDK's own repetitions are off, except that it opens a link anew that
//     the service has taken down, and sends what was not settled again, with the same
//     id.
//   - The service's word on the message decides: see conditions. Without a word the
//     attempt failed, or was aborted when the caller stopped it. So it did when the
//     service gave the message back (released, modified), which the SDK would take for
//     success: that ends the connection, see outcomes.
//   - What is over the service's limit is refused here; Pack says how much fits.
//   - No Reason shows a key, a signature or a token.
//
// A Sender has one connection, which its Sends share. It is made with the first of
// them, and again after it broke or went silent; whoever waits for it has the
// deadline of the attempt.
package servicebus

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"github.com/gridfan/gridfan/infra/azureamqp"
	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/reply"
)

// Options are what a Sender is told besides its configuration.
type Options struct {
	// Version of gridfan, by which the service can tell who sends. Empty leaves it out.
	Version string
	// Egress is how connections are made; AMQP knows no proxies. Nil: to wherever the
	// namespace leads. Azure's own token endpoints are reached without it.
	Egress *egress.Way
	// Log gets what happens to tokens. Nil means nothing.
	Log *slog.Logger
	// Identity takes the place of the identity that the configuration names. Nil
	// leaves it.
	Identity azcore.TokenCredential
}

// Sender sends to one queue or topic. It is safe for concurrent use.
type Sender struct {
	entity   string
	session  Session
	secrets  *reply.Secrets
	identity azcore.TokenCredential   // nil with a connection string
	tokens   *credentials.Credentials // nil unless identity is theirs
	dialer   azureamqp.Dialer
	newLink  func(*link) (*azservicebus.Client, error)
	limit    atomic.Int64 // bytes of a batch

	mu     sync.Mutex // guards link and closed
	link   *link      // nil: there is none
	closed bool

	background sync.WaitGroup // links that open and close
}

var _ interface {
	deliver.BatchSender
	deliver.Packer
	deliver.Renewer
} = (*Sender)(nil)

// New makes a Sender for a valid cfg; it opens no connection yet. The caller closes
// it.
func New(cfg Config, opts Options) (*Sender, error) {
	if err := cfg.Validate("serviceBus"); err != nil {
		return nil, err
	}
	address, err := cfg.address()
	if err != nil {
		return nil, err // Validate has looked
	}
	s := &Sender{
		entity:   cfg.Queue + cfg.Topic,
		session:  cfg.Session,
		secrets:  reply.Hide(azureamqp.Secrets(cfg.Auth)...),
		identity: opts.Identity,
		dialer:   azureamqp.NewDialer(address, opts.Egress),
	}
	s.limit.Store(leastLimit)
	if s.identity == nil {
		if s.tokens = cfg.Auth.Credentials(opts.Log); s.tokens != nil {
			s.identity = s.tokens.Azure()
		}
	}
	s.newLink = func(l *link) (*azservicebus.Client, error) {
		o := &azservicebus.ClientOptions{
			ApplicationID: "gridfan",
			RetryOptions:  azservicebus.RetryOptions{MaxRetries: -1}, // when to try again is the worker's decision
			// The SDK's door for connections of one's own. Ours is plain AMQP like
			// the SDK's, but can be watched and broken off.
			NewWebSocketConn: func(ctx context.Context, _ azservicebus.NewWebSocketConnArgs) (net.Conn, error) {
				return l.dial(ctx, s.dialer)
			},
		}
		if opts.Version != "" {
			o.ApplicationID += "/" + opts.Version
		}
		if s.identity != nil {
			return azservicebus.NewClient(address.Host(), s.identity, o)
		}
		return azservicebus.NewClientFromConnectionString(cfg.Auth.ConnectionString, o)
	}
	return s, nil
}

// Send sends e once; see deliver.Sender.
func (s *Sender) Send(ctx context.Context, e *event.Event) deliver.Attempt {
	m, size := s.message(e)
	return s.attempt(ctx, func(ctx context.Context, l *link) (int, error) {
		return size, l.sender.SendMessage(ctx, m, nil)
	})
}

// SendBatch sends events once, in the order given; see deliver.BatchSender.
func (s *Sender) SendBatch(ctx context.Context, events []*event.Event) deliver.Attempt {
	if len(events) == 1 {
		return s.Send(ctx, events[0]) // a message may be larger than a batch
	}
	return s.attempt(ctx, func(ctx context.Context, l *link) (int, error) {
		batch, err := l.sender.NewMessageBatch(ctx, nil)
		if err != nil {
			return 0, err
		}
		total := 0
		for i, e := range events {
			m, size := s.message(e)
			if total += size; i > 0 && s.session == ByPartition && sessionID(e) != sessionID(events[0]) {
				return 0, errSessions
			}
			if err = cmp.Or(err, batch.AddMessage(m, nil)); err != nil && !errors.Is(err, azservicebus.ErrMessageTooLarge) {
				return 0, err
			}
		}
		if err != nil {
			return total, err
		}
		return total, l.sender.SendMessageBatch(ctx, batch, nil)
	})
}

// errSessions: the envelope of a batch has the properties of its first message, the
// session among them (azservicebus v1.11.0, createBatchEnvelope), and no document says
// that the service looks at those of the others.
var errSessions = errors.New("events of several sessions cannot share a batch")

// Pack implements deliver.Packer.
func (s *Sender) Pack(events []*event.Event) int {
	most, total := int(s.limit.Load()), 0
	for i, e := range events {
		_, size := s.message(e)
		if i == 0 {
			total = size - len(e.Data) // the envelope repeats its properties
		}
		total += size + 8
		if i > 0 && (total > most || s.session == ByPartition && sessionID(e) != sessionID(events[0])) {
			return i
		}
	}
	return len(events)
}

// attempt runs send over the connection there is, or a new one, and judges what came
// of it. send says how many bytes it had.
func (s *Sender) attempt(ctx context.Context, send func(context.Context, *link) (int, error)) deliver.Attempt {
	start := time.Now()
	took := func() time.Duration { return time.Since(start) }
	if ctx.Err() != nil {
		return s.secrets.NoAnswer(ctx, ctx.Err(), took())
	}
	secrets := s.secrets
	if s.identity != nil {
		token, err := s.identity.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{azureamqp.Scope}})
		if err != nil {
			return secrets.NoToken(ctx, err, took())
		}
		secrets = secrets.And(token.Token)
	}
	l, err := s.connected(ctx)
	if l == nil { // no time, or nothing to wait for
		return secrets.NoAnswer(ctx, err, took())
	}
	size := 0
	if err == nil {
		size, err = send(ctx, l)
	}
	if err == nil {
		l.heard()
		return deliver.Attempt{Outcome: deliver.Delivered, Status: 200}
	}
	if ctx.Err() != nil {
		if l.silentSince(start) {
			s.drop(l) // the next one need not wait for it, too
		}
		return secrets.NoAnswer(ctx, ctx.Err(), took())
	}
	a, state := judge(secrets, err, size, s.limit.Load())
	if state == alive {
		l.heard()
	}
	if state == broken || state == unsure && l.doubted() {
		s.drop(l)
	}
	if a.Status == 0 && a.Reason == "" {
		return secrets.NoAnswer(ctx, cmp.Or(l.trouble(), unsigned(err)), took())
	}
	return a
}

// RetryNow implements deliver.Renewer.
func (s *Sender) RetryNow() {
	if s.tokens != nil {
		s.tokens.RetryNow()
	}
}

// Close ends the connection; see deliver.Sender.
func (s *Sender) Close() {
	s.mu.Lock()
	l := s.link
	s.link, s.closed = nil, true
	s.mu.Unlock()
	if l != nil {
		s.background.Go(func() { l.close(true) })
	}
	s.background.Wait()
	if s.tokens != nil {
		s.tokens.Close()
	}
}
