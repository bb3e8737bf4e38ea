package receive

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"github.com/gridfan/gridfan/infra/azureamqp"
	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/secret"
)

const (
	// busWait is how long one call waits for messages; it bounds nothing.
	busWait = 30 * time.Second

	// A session without messages is left after sessionIdle, and one that has always
	// some after sessionTurn, for others to have their turn.
	sessionIdle = 3 * time.Second
	sessionTurn = 30 * time.Second
	// sessionWait is how long to wait for a session that has messages. The service
	// itself waits a minute.
	sessionWait = 55 * time.Second

	// maxAtOnce is what the messages of one call should take together, and maxRead
	// what they may: a message has up to 100 MB (learn.microsoft.com,
	// service-bus-quotas, Premium; read 2026-11).
	maxAtOnce = 16 << 20
	maxRead   = 128 << 20

	// settlers is how many messages are settled at once: the service answers to each.
	settlers = 16
	// settleTimeout is how long it may take.
	settleTimeout = 10 * time.Second
	// openTimeout bounds everything from the TCP connection to the link.
	openTimeout = 30 * time.Second
)

// place names what is received from.
func (c *ServiceBus) place() string {
	a, err := azureamqp.Locate(c.Namespace, c.Auth, c.Queue+c.Topic)
	if err != nil {
		return c.entity()
	}
	return a.Host() + "/" + c.entity()
}

// bus opens connections to Service Bus.
type bus struct {
	source   *source
	cfg      ServiceBus
	dialer   azureamqp.Dialer
	address  azureamqp.Address
	secrets  *secret.Veil
	identity azcore.TokenCredential   // nil with a connection string
	tokens   *credentials.Credentials // what identity gets them by
}

func (s *source) newBus(cfg ServiceBus) (*bus, error) {
	address, err := azureamqp.Locate(cfg.Namespace, cfg.Auth, cfg.Queue+cfg.Topic)
	if err != nil {
		return nil, err // Validate has looked
	}
	b := &bus{
		source: s, cfg: cfg, address: address, dialer: azureamqp.NewDialer(address, s.parts.Egress),
		secrets: secret.NewVeil(azureamqp.Secrets(cfg.Auth)...),
	}
	if b.tokens = cfg.Auth.Credentials(s.parts.Log); b.tokens != nil {
		b.identity = b.tokens.Azure()
	}
	return b, nil
}

func (s *source) equipServiceBus(cfg ServiceBus) error {
	b, err := s.newBus(cfg)
	if err != nil {
		return err
	}
	s.close = append(s.close, b.forget)
	// How many messages to ask for outlasts a connection: it may have ended because
	// they were too many.
	asks := make([]int, cfg.Concurrency)
	s.open = func(ctx context.Context, worker int) (inbox, error) {
		l, err := b.connect(ctx)
		if err != nil {
			return nil, err
		}
		l.ask = &asks[worker]
		return l, nil
	}
	return nil
}

// busLink is a connection to Service Bus. It is an inbox.
type busLink struct {
	*bus
	wire
	client *azservicebus.Client
	ask    *int

	plain   *azservicebus.Receiver        // nil with sessions
	session *azservicebus.SessionReceiver // nil without one
	since   time.Time                     // of session
}

// busReceiver is what both kinds of receivers can do.
type busReceiver interface {
	ReceiveMessages(context.Context, int, *azservicebus.ReceiveMessagesOptions) ([]*azservicebus.ReceivedMessage, error)
	CompleteMessage(context.Context, *azservicebus.ReceivedMessage, *azservicebus.CompleteMessageOptions) error
	AbandonMessage(context.Context, *azservicebus.ReceivedMessage, *azservicebus.AbandonMessageOptions) error
	DeadLetterMessage(context.Context, *azservicebus.ReceivedMessage, *azservicebus.DeadLetterOptions) error
	Close(context.Context) error
}

// connect makes a client and, without sessions, a receiver.
func (b *bus) connect(ctx context.Context) (*busLink, error) {
	l, err := b.dial(ctx)
	if err != nil || b.cfg.Sessions {
		return l, err
	}
	if l.plain, err = l.receiver(0); err == nil {
		// A look at the first message opens the link, and so tells whether it can be.
		ctx, cancel := context.WithTimeout(ctx, openTimeout)
		defer cancel()
		_, err = l.plain.PeekMessages(ctx, 1, nil)
	}
	if err != nil {
		l.close()
		return nil, l.fault(err)
	}
	return l, nil
}

func (l *busLink) proven() bool { return l.plain != nil }

// dial makes a link that has no receiver yet.
func (b *bus) dial(ctx context.Context) (*busLink, error) {
	if b.identity != nil {
		// Asked for here, the reason is not mistaken for an answer of the service. The
		// client asks again and gets what is kept.
		if _, err := b.identity.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{azureamqp.Scope}}); err != nil {
			return nil, noToken(err, b.secrets)
		}
	}
	l := &busLink{bus: b, ask: new(int)}
	o := &azservicebus.ClientOptions{
		ApplicationID: "gridfan",
		RetryOptions:  azservicebus.RetryOptions{MaxRetries: -1}, // when to try again is ours to say
		NewWebSocketConn: func(ctx context.Context, _ azservicebus.NewWebSocketConnArgs) (net.Conn, error) {
			return l.reach(ctx, b.dialer)
		},
	}
	if v := b.source.parts.Version; v != "" {
		o.ApplicationID += "/" + v
	}
	var err error
	if b.identity != nil {
		l.client, err = azservicebus.NewClient(b.address.Host(), b.identity, o)
	} else {
		l.client, err = azservicebus.NewClientFromConnectionString(b.cfg.Auth.ConnectionString, o)
	}
	if err != nil {
		return nil, l.fault(err)
	}
	return l, nil
}

func (l *busLink) receiver(sub azservicebus.SubQueue) (*azservicebus.Receiver, error) {
	o := &azservicebus.ReceiverOptions{SubQueue: sub}
	if l.cfg.Queue != "" {
		return l.client.NewReceiverForQueue(l.cfg.Queue, o)
	}
	return l.client.NewReceiverForSubscription(l.cfg.Topic, l.cfg.Subscription, o)
}

func (l *busLink) fault(err error) *Fault {
	return amqpFault(err, l.said(), l.secrets, ofQueues)
}

// current gives the receiver there is, after waiting for a session; nil if there is
// none.
func (l *busLink) current(ctx context.Context) (busReceiver, time.Duration, error) {
	if l.plain != nil {
		return l.plain, busWait, nil
	}
	if l.session != nil && time.Since(l.since) > sessionTurn {
		l.leave()
	}
	if l.session == nil {
		ctx, cancel := context.WithTimeout(ctx, sessionWait)
		defer cancel()
		var err error
		if l.cfg.Queue != "" {
			l.session, err = l.client.AcceptNextSessionForQueue(ctx, l.cfg.Queue, nil)
		} else {
			l.session, err = l.client.AcceptNextSessionForSubscription(ctx, l.cfg.Topic, l.cfg.Subscription, nil)
		}
		if e, ok := errors.AsType[*azservicebus.Error](err); ok && e.Code == azservicebus.CodeTimeout || err != nil && ctx.Err() != nil {
			l.session = nil
			return nil, 0, nil
		}
		if err != nil {
			l.session = nil
			return nil, 0, l.fault(err)
		}
		l.since = time.Now()
	}
	return l.session, sessionIdle, nil
}

// leave lets others have the session.
func (l *busLink) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	_ = l.session.Close(ctx) // without an answer its lock ends by itself
	l.session = nil
}

func (l *busLink) receive(ctx context.Context) ([]*message, error) {
	r, wait, err := l.current(ctx)
	if r == nil {
		return nil, err
	}
	all, err := l.from(ctx, r, wait)
	if err == nil && len(all) == 0 && l.session != nil {
		l.leave()
	}
	return all, err
}

// from gets messages from one receiver.
func (l *busLink) from(ctx context.Context, r busReceiver, wait time.Duration) (all []*message, err error) {
	*l.ask = min(max(*l.ask, 1), max(l.cfg.Batch, 1))
	l.refill()
	defer func() {
		// The client takes properties of some names for texts, whatever they are
		// (azservicebus v1.11.0, newReceivedMessage: DeadLetterReason). One by one,
		// only that message stays behind.
		if p := recover(); p != nil {
			*l.ask = 1
			all, err = nil, &Fault{Kind: Answer, Reason: "the client cannot read a message: " + l.secrets.Printable(fmt.Sprint(p), maxReason)}
		}
	}()
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	got, err := r.ReceiveMessages(waiting, *l.ask, nil)
	if len(got) == 0 {
		if err == nil || waiting.Err() != nil {
			return nil, nil
		}
		if l.trouble.Load() != nil {
			*l.ask = 1
		}
		return nil, l.fault(err)
	}
	largest := 1
	for _, m := range got {
		one := l.message(m)
		largest = max(largest, len(one.body))
		all = append(all, one)
	}
	*l.ask = max(1, min(2*len(got), maxAtOnce/largest, l.cfg.Batch))
	return all, nil
}

func (l *busLink) message(m *azservicebus.ReceivedMessage) *message {
	one := &message{id: m.MessageID, handle: m}
	if m.EnqueuedTime != nil {
		one.enqueued = *m.EnqueuedTime
	}
	contentType := ""
	if m.ContentType != nil {
		contentType = *m.ContentType
	}
	one.header = headers(contentType, m.ApplicationProperties)
	raw := m.RawAMQPMessage.Body
	one.body, one.fault = bodyOf(raw.Data, raw.Value, raw.Sequence)
	return one
}

func (l *busLink) locked(all []*message) (time.Duration, bool) {
	if l.session != nil {
		return time.Until(l.session.LockedUntil()), !all[0].lost
	}
	left, any := time.Duration(0), false
	for _, m := range all {
		if r, ok := m.handle.(*azservicebus.ReceivedMessage); ok && !m.lost && r.LockedUntil != nil {
			if d := time.Until(*r.LockedUntil); !any || d < left {
				left, any = d, true
			}
		}
	}
	return left, any
}

func (l *busLink) renew(ctx context.Context, all []*message) {
	if l.session != nil {
		ctx, cancel := context.WithTimeout(ctx, settleTimeout)
		defer cancel()
		if err := l.session.RenewSessionLock(ctx, nil); err != nil && lockLost(err) {
			for _, m := range all {
				m.lost = true
			}
		}
		return
	}
	l.each(ctx, all, func(ctx context.Context, m *message, r *azservicebus.ReceivedMessage) {
		if m.lost {
			return
		}
		if err := l.plain.RenewMessageLock(ctx, r, nil); err != nil && lockLost(err) {
			m.lost = true
		}
	})
}

// lockLost says whether err is the end of a lock, and not of a connection.
func lockLost(err error) bool {
	e, ok := errors.AsType[*azservicebus.Error](err)
	if ok && e.Code == azservicebus.CodeLockLost {
		return true
	}
	status, ok := azureamqp.ClaimStatus(err)
	return ok && status == 410
}

// each does something with messages, several at once.
func (l *busLink) each(ctx context.Context, all []*message, do func(context.Context, *message, *azservicebus.ReceivedMessage)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, settlers)
	for _, m := range all {
		r, ok := m.handle.(*azservicebus.ReceivedMessage)
		if !ok {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, settleTimeout)
			defer cancel()
			do(ctx, m, r)
		})
	}
	wg.Wait()
}

// using is the receiver that messages are from.
func (l *busLink) using() busReceiver {
	if l.session != nil {
		return l.session
	}
	return l.plain
}

func (l *busLink) settle(ctx context.Context, all []*message) error {
	return l.settleOn(ctx, l.using(), all)
}

func (l *busLink) settleOn(ctx context.Context, on busReceiver, all []*message) error {
	// What was received over a connection that is gone comes again. The client would
	// open another and try for long.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if c := l.conn.Load(); c != nil {
		go func() {
			select {
			case <-c.gone:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	var mu sync.Mutex // guards failed
	var failed error
	l.each(ctx, all, func(ctx context.Context, m *message, r *azservicebus.ReceivedMessage) {
		if m.lost {
			return
		}
		var err error
		switch m.verdict {
		case stored:
			err = on.CompleteMessage(ctx, r, nil)
		case tooLarge:
			reason, text := "gridfan: "+string(m.reason.Code), m.reason.Detail
			err = on.DeadLetterMessage(ctx, r, &azservicebus.DeadLetterOptions{Reason: &reason, ErrorDescription: &text})
		}
		if err == nil {
			return
		}
		// It comes again, and is recognised.
		m.lost = true
		if !lockLost(err) {
			mu.Lock()
			defer mu.Unlock()
			if failed == nil {
				failed = l.fault(err)
			}
		}
	})
	return failed
}

func (l *busLink) giveBack(ctx context.Context, all []*message) {
	on := l.using()
	l.each(ctx, all, func(ctx context.Context, m *message, r *azservicebus.ReceivedMessage) {
		if !m.lost {
			_ = on.AbandonMessage(ctx, r, nil) // its lock ends by itself
		}
	})
}

func (*busLink) deadLetters() bool { return true }

func (l *busLink) close() {
	ctx, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	// Not even the client's own goodbye may take longer.
	defer time.AfterFunc(goodbye, l.hangUp).Stop()
	if l.client != nil {
		_ = l.client.Close(ctx) // the connection ends in any case
	}
	l.hangUp()
}
