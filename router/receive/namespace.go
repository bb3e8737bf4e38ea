package receive

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/eventgrid/aznamespaces"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

const (
	// gridScope is that of tokens for Event Grid, as the client asks for (aznamespaces
	// v1.0.0).
	gridScope = "https://eventgrid.azure.net/.default"

	// firstWait is how long the first request may be held: until it is answered
	// nobody knows whether it is allowed.
	firstWait = leastWait

	// namespaceLock is what locks are taken for: a subscription's are 60 seconds
	// unless it says otherwise (learn.microsoft.com, event-grid pull-delivery-overview,
	// receiveLockDurationInSeconds, 60 to 300; read 2026-11), and no answer says how
	// long they are.
	namespaceLock = 20 * time.Second

	// namespaceTimeout bounds requests that are not held.
	namespaceTimeout = 30 * time.Second
)

// namespace is a subscription of an Event Grid namespace. It is an inbox, and one for
// as long as the program runs: there is no connection to be lost.
type namespace struct {
	source   *source
	cfg      Namespace
	client   *aznamespaces.ReceiverClient
	identity azcore.TokenCredential // nil with a key
	secrets  *secret.Veil
	ask      int
	asked    bool
	renewed  time.Time
}

func (s *source) equipNamespace(cfg Namespace) error {
	target, err := url.Parse(cfg.Endpoint)
	if err != nil {
		return err // Validate has parsed it
	}
	s.transport = newTransport(s.parts.Egress, target)
	s.close = append(s.close, s.transport.CloseIdleConnections)
	n := &namespace{source: s, cfg: cfg, secrets: secret.NewVeil(cfg.Auth.Secrets()...), ask: cfg.Batch}
	o := &aznamespaces.ReceiverClientOptions{ClientOptions: s.clientOptions(s.transport)}
	if tokens := cfg.Auth.Credentials(s.parts.Log); tokens != nil {
		n.identity = tokens.Azure()
		s.close = append(s.close, tokens.Close)
		n.client, err = aznamespaces.NewReceiverClient(cfg.Endpoint, cfg.Topic, cfg.Subscription, n.identity, o)
	} else {
		n.client, err = aznamespaces.NewReceiverClientWithSharedKeyCredential(cfg.Endpoint, cfg.Topic, cfg.Subscription, azcore.NewKeyCredential(cfg.Auth.Key), o)
	}
	if err != nil {
		return err
	}
	s.open = func(ctx context.Context, _ int) (inbox, error) {
		n.asked = false
		return n, nil
	}
	return nil
}

func (*namespace) proven() bool      { return false }
func (*namespace) deadLetters() bool { return false }
func (*namespace) close()            {}

// request makes one and judges what came of it.
func (n *namespace) request(ctx context.Context, timeout time.Duration, send func(context.Context) error) (*kept, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	secrets := n.secrets
	if n.identity != nil {
		t, err := n.identity.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{gridScope}, EnableCAE: true})
		if err != nil {
			return nil, noToken(err, secrets)
		}
		secrets = secrets.And(t.Token)
	}
	ctx, k := keep(ctx)
	if err := send(ctx); err != nil && (k.status < 200 || k.status > 299) {
		return k, k.fault(err, "topic or subscription in the namespace, or it is not of delivery mode queue", secrets)
	} else if err != nil {
		return k, k.fault(err, "", secrets)
	}
	return k, nil
}

func (n *namespace) receive(ctx context.Context) ([]*message, error) {
	wait := n.cfg.Wait
	if !n.asked {
		wait = firstWait
	}
	seconds, most := int32(wait/time.Second), int32(n.ask)
	k, err := n.request(ctx, wait+namespaceTimeout, func(ctx context.Context) error {
		_, err := n.client.ReceiveEvents(ctx, &aznamespaces.ReceiveEventsOptions{MaxEvents: &most, MaxWaitTime: &seconds})
		return err
	})
	if k != nil && errors.Is(k.err, errAnswerTooLarge) {
		n.ask = max(1, n.ask/4)
	}
	// The client knows CloudEvents of its own making; what came is read as it came,
	// so that nothing of it is lost and one odd event does not keep the others.
	if err != nil && (k == nil || k.status != 200) {
		return nil, err
	}
	all, bad := details(k.body)
	if bad != nil {
		return nil, &Fault{Kind: Answer, Reason: "HTTP 200, and what came with it is no answer to this: " + n.secrets.Printable(bad.Error(), maxReason)}
	}
	n.asked, n.renewed = true, time.Now()
	if len(all) > 0 {
		n.ask = min(n.cfg.Batch, max(1, 2*n.ask))
	}
	return all, nil
}

// details takes an answer to receive apart: value[], each with event and
// brokerProperties (Event Grid REST 2024-06-01; shared sample of rest-api-specs).
func details(body []byte) ([]*message, error) {
	members, err := rawjson.Members(body)
	if err != nil {
		return nil, err
	}
	var all []*message
	found := false
	for _, m := range members {
		if m.Name != "value" {
			continue
		}
		found = true
		elements, isArray, err := rawjson.Elements(m.Value)
		if err != nil {
			return nil, err
		}
		if !isArray && len(elements) > 0 {
			return nil, errors.New("value is not an array")
		}
		for i, e := range elements {
			one := &message{header: map[string][]string{"Content-Type": {event.MediaStructured}}}
			parts, err := rawjson.Members(e)
			if err != nil {
				return nil, fmt.Errorf("value[%d]: %w", i, err)
			}
			for _, p := range parts {
				switch p.Name {
				case "event":
					one.body = p.Value
				case "brokerProperties":
					inner, err := rawjson.Members(p.Value)
					if err != nil {
						return nil, fmt.Errorf("value[%d].brokerProperties: %w", i, err)
					}
					for _, q := range inner {
						if q.Name == "lockToken" {
							one.id, _ = rawjson.Text(q.Value)
						}
					}
				}
			}
			if one.id == "" || one.body == nil {
				return nil, fmt.Errorf("value[%d] has no event or no lock token", i)
			}
			all = append(all, one)
		}
	}
	if !found {
		return nil, errors.New("there is no value")
	}
	return all, nil
}

func (n *namespace) locked(all []*message) (time.Duration, bool) {
	for _, m := range all {
		if !m.lost {
			return time.Until(n.renewed.Add(namespaceLock)), true
		}
	}
	return 0, false
}

// tokens are the locks of messages that are not lost.
func tokens(all []*message) []string {
	var list []string
	for _, m := range all {
		if !m.lost {
			list = append(list, m.id)
		}
	}
	return list
}

// lose marks the messages of locks that the service does not know any more.
func lose(all []*message, failed []aznamespaces.FailedLockToken) {
	for _, f := range failed {
		for _, m := range all {
			if f.LockToken != nil && *f.LockToken == m.id {
				m.lost = true
			}
		}
	}
}

func (n *namespace) renew(ctx context.Context, all []*message) {
	var answer aznamespaces.RenewEventLocksResponse
	_, err := n.request(ctx, namespaceTimeout, func(ctx context.Context) (err error) {
		answer, err = n.client.RenewEventLocks(ctx, tokens(all), nil)
		return err
	})
	n.renewed = time.Now()
	if err == nil {
		lose(all, answer.FailedLockTokens)
	}
}

func (n *namespace) settle(ctx context.Context, all []*message) error {
	list := tokens(all)
	if len(list) == 0 {
		return nil
	}
	var answer aznamespaces.AcknowledgeEventsResponse
	_, err := n.request(ctx, namespaceTimeout, func(ctx context.Context) (err error) {
		answer, err = n.client.AcknowledgeEvents(ctx, list, nil)
		return err
	})
	if err != nil {
		for _, m := range all {
			m.lost = true // they come again, and are recognised
		}
		return err
	}
	lose(all, answer.FailedLockTokens)
	return nil
}

func (n *namespace) giveBack(ctx context.Context, all []*message) {
	if list := tokens(all); len(list) > 0 {
		_, _ = n.request(ctx, namespaceTimeout, func(ctx context.Context) error { // their locks end by themselves
			_, err := n.client.ReleaseEvents(ctx, list, nil)
			return err
		})
	}
}
