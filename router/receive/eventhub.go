package receive

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"

	"github.com/gridfan/gridfan/infra/azureamqp"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/schemas/event"
)

const (
	// hubWait is how long one call waits for an event, and makes the link before;
	// between two a reader looks whether it still is one.
	hubWait = 5 * time.Second
	// hubGather is how long others are waited for once an event is there.
	hubGather = 10 * time.Millisecond
	// hubSilence is how long a link may bring nothing although there is something.
	hubSilence = time.Minute
)

// place names what is received from.
func (c *EventHub) place() string {
	name := c.Hub + "/" + c.ConsumerGroup
	a, err := azureamqp.Locate(c.Namespace, c.Auth, c.Hub)
	if err != nil {
		return name
	}
	return a.Host() + "/" + name
}

// hubDoor opens connections to an event hub.
type hubDoor struct {
	source   *source
	cfg      EventHub
	start    Position
	dialer   azureamqp.Dialer
	address  azureamqp.Address
	secrets  *secret.Veil
	identity azcore.TokenCredential   // nil with a connection string
	tokens   *credentials.Credentials // what identity gets them by
}

func (s *source) equipHub(cfg EventHub) error {
	address, err := azureamqp.Locate(cfg.Namespace, cfg.Auth, cfg.Hub)
	if err != nil {
		return err // Validate has looked
	}
	start, err := startOf(cfg.Start)
	if err != nil {
		return err
	}
	d := &hubDoor{
		source: s, cfg: cfg, start: start, address: address, dialer: azureamqp.NewDialer(address, s.parts.Egress),
		secrets: secret.NewVeil(azureamqp.Secrets(cfg.Auth)...),
	}
	if d.tokens = cfg.Auth.Credentials(s.parts.Log); d.tokens != nil {
		d.identity = d.tokens.Azure()
		s.close = append(s.close, d.tokens.Close)
	}
	s.hub = newHub(s, d)
	return nil
}

// hubClient is a connection to an event hub.
type hubClient struct {
	*hubDoor
	wire
	client *azeventhubs.ConsumerClient
}

// dial makes a client, which connects when it is used.
func (d *hubDoor) dial(ctx context.Context) (*hubClient, error) {
	if d.identity != nil {
		// Asked for here, the reason is not mistaken for an answer of the service. The
		// client asks again and gets what is kept.
		if _, err := d.identity.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{azureamqp.HubsScope}}); err != nil {
			return nil, noToken(err, d.secrets)
		}
	}
	l := &hubClient{hubDoor: d}
	o := &azeventhubs.ConsumerClientOptions{
		ApplicationID: "gridfan",
		InstanceID:    "gridfan-" + d.source.hub.me,             // the service tells others who took their place
		RetryOptions:  azeventhubs.RetryOptions{MaxRetries: -1}, // when to try again is ours to say
		NewWebSocketConn: func(ctx context.Context, _ azeventhubs.WebSocketConnParams) (net.Conn, error) {
			return l.reach(ctx, d.dialer)
		},
	}
	if v := d.source.parts.Version; v != "" {
		o.ApplicationID += "/" + v
	}
	var err error
	switch {
	case d.identity != nil:
		l.client, err = azeventhubs.NewConsumerClient(d.address.Host(), d.cfg.Hub, d.cfg.ConsumerGroup, d.identity, o)
	case azureamqp.NamesEntity(d.cfg.Auth.ConnectionString):
		l.client, err = azeventhubs.NewConsumerClientFromConnectionString(d.cfg.Auth.ConnectionString, "", d.cfg.ConsumerGroup, o)
	default:
		l.client, err = azeventhubs.NewConsumerClientFromConnectionString(d.cfg.Auth.ConnectionString, d.cfg.Hub, d.cfg.ConsumerGroup, o)
	}
	if err != nil {
		return nil, l.fault(err)
	}
	return l, nil
}

func (l *hubClient) fault(err error) *Fault { return amqpFault(err, l.said(), l.secrets, ofHubs) }

// asking bounds a question to the hub, some of which the client asks without end
// (azeventhubs v2.0.2, getPartitionPropertiesInternal).
func (l *hubClient) asking(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	stop := context.AfterFunc(ctx, l.hangUp)
	return ctx, func() { stop(); cancel() }
}

// properties asks for those of the hub.
func (l *hubClient) properties(ctx context.Context) (azeventhubs.EventHubProperties, error) {
	ctx, done := l.asking(ctx)
	defer done()
	l.refill()
	p, err := l.client.GetEventHubProperties(ctx, nil)
	if err != nil {
		return p, l.fault(err)
	}
	return p, nil
}

// partition asks for the properties of one.
func (l *hubClient) partition(ctx context.Context, id string) (azeventhubs.PartitionProperties, error) {
	ctx, done := l.asking(ctx)
	defer done()
	l.refill()
	p, err := l.client.GetPartitionProperties(ctx, id, nil)
	if err != nil {
		return p, l.fault(err)
	}
	return p, nil
}

func (l *hubClient) close() {
	ctx, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	// Not even the client's own goodbye may take longer.
	defer time.AfterFunc(goodbye, l.hangUp).Stop()
	_ = l.client.Close(ctx) // the connection ends in any case
	l.hangUp()
}

// partitionLink is a link that reads a partition. It is an inbox, whose settling is
// to move the checkpoint.
type partitionLink struct {
	*hubClient
	part   *partition
	reader *azeventhubs.PartitionClient

	checkpoint checkpoint
	revision   uint64
	next       int64 // the sequence number that is expected, -1 for any
	missed     int64 // and is not in checkpoint yet
	heard      time.Time
}

// open begins to read the partition where its checkpoint says.
func (p *partition) open(ctx context.Context) (_ inbox, err error) {
	c, revision, err := p.hub.shelf.load(ctx, p.id)
	if err != nil {
		return nil, unkept(err)
	}
	client, err := p.hub.door.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			client.close()
		}
	}()
	whole, err := client.properties(ctx)
	if err != nil {
		return nil, err
	}
	now, err := client.partition(ctx, p.id)
	if err != nil {
		return nil, err
	}
	if revision == 0 {
		start := p.hub.door.start
		if !p.initial {
			start = Position{}
		}
		c.at(start, now)
	}
	lost := c.settleOn(whole.CreatedOn, now)
	c.Generation++
	c.Reader = broker.Instance()
	if revision, err = p.hub.shelf.save(ctx, p.id, c, revision); err != nil {
		return nil, unkept(err)
	}
	p.moved(revision, c)
	p.belongs(whole.CreatedOn)
	p.newest(now)
	if lost != nil {
		p.lost(lost)
	}
	l := &partitionLink{hubClient: client, part: p, checkpoint: c, revision: revision, next: -1, heard: time.Now()}
	if c.Sequence != nil {
		l.next = *c.Sequence + 1
	}
	l.reader, err = client.client.NewPartitionClient(p.id, &azeventhubs.PartitionClientOptions{
		StartPosition: c.start(p.bySequence, now.BeginningSequenceNumber),
		OwnerLevel:    &c.Generation,
		Prefetch:      -1, // what comes is what was asked for
	})
	if err != nil {
		return nil, client.fault(err)
	}
	return l, nil
}

// unkept is the error of a checkpoint that is not to be had or to be moved.
func unkept(err error) error {
	if errors.Is(err, errAgain) {
		return errAgain
	}
	return &Fault{Kind: Storage, Reason: "the checkpoint: " + err.Error()}
}

func (*partitionLink) proven() bool { return false }

func (l *partitionLink) receive(ctx context.Context) ([]*message, error) {
	p := l.part
	if !p.current(l.revision) {
		return nil, errAgain
	}
	if last, ok := p.waiting(); !ok {
		l.heard = time.Now()
	} else if silent := time.Since(l.heard); silent > p.hub.silence {
		return nil, &Fault{Kind: Unavailable, Reason: fmt.Sprintf("the link has brought nothing for %s although the partition has events up to %d", silent.Round(time.Second), last)}
	}
	l.refill()
	got, err := l.read(ctx, 1, p.hub.wait)
	if err != nil {
		return nil, err
	}
	if len(got) == 0 {
		return nil, nil
	}
	l.heard = time.Now()
	ask := p.ask(l.cfg.Batch)
	if ask > 1 {
		// An error comes again when there is nothing else.
		more, _ := l.read(ctx, ask-1, hubGather)
		got = append(got, more...)
	}
	if err := l.gaps(ctx, got); err != nil {
		return nil, err
	}
	largest := 1
	all := make([]*message, len(got))
	for i, e := range got {
		all[i] = l.message(e)
		largest = max(largest, len(all[i].body))
	}
	p.fit(largest)
	return all, nil
}

// read gets up to n events; none is no error.
func (l *partitionLink) read(ctx context.Context, n int, wait time.Duration) ([]*azeventhubs.ReceivedEventData, error) {
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	got, err := l.reader.ReceiveEvents(waiting, n, nil)
	if err == nil || waiting.Err() != nil && l.said() == nil {
		return got, nil
	}
	if condition, _, ok := azureamqp.Said(err); ok && condition == invalidOffset && !l.part.bySequence {
		l.part.bySequence = true // the namespace is replicated since; both name the same event
		return nil, errAgain
	}
	if l.said() != nil {
		l.part.fit(maxRead) // it may have ended because they were too many
	}
	return nil, l.fault(err)
}

// gaps looks for events that are missing between others. Numbers are left out where
// a hub is compacted; that is no loss, unless the partition begins behind them.
func (l *partitionLink) gaps(ctx context.Context, got []*azeventhubs.ReceivedEventData) error {
	next := l.next
	var first int64
	asked := false
	for _, e := range got {
		if next >= 0 && e.SequenceNumber > next {
			if !asked {
				now, err := l.partition(ctx, l.part.id)
				if err != nil {
					return err
				}
				asked, first = true, now.BeginningSequenceNumber
			}
			if n := min(first, e.SequenceNumber) - next; n > 0 {
				l.missed += n
				l.part.lost(&loss{gone(next, next+n-1), n})
			}
		}
		next = e.SequenceNumber + 1
	}
	l.next = next
	return nil
}

func (l *partitionLink) message(e *azeventhubs.ReceivedEventData) *message {
	one := &message{id: fmt.Sprintf("%s/%d", l.part.id, e.SequenceNumber), handle: e}
	if e.EnqueuedTime != nil {
		one.enqueued = *e.EnqueuedTime
	}
	contentType := ""
	if e.ContentType != nil {
		contentType = *e.ContentType
	}
	one.header = headers(contentType, e.Properties)
	if e.RawAMQPMessage == nil {
		one.fault = event.Faultf(event.FaultUnsupported, "it is no AMQP message")
		return one
	}
	raw := e.RawAMQPMessage.Body
	one.body, one.fault = bodyOf(raw.Data, raw.Value, raw.Sequence)
	return one
}

// Events of a hub have no locks.

func (*partitionLink) locked([]*message) (time.Duration, bool) { return 0, false }
func (*partitionLink) renew(context.Context, []*message)       {}
func (*partitionLink) giveBack(context.Context, []*message)    {}
func (*partitionLink) deadLetters() bool                       { return false }

// settle moves the checkpoint behind messages.
func (l *partitionLink) settle(ctx context.Context, all []*message) error {
	e, ok := all[len(all)-1].handle.(*azeventhubs.ReceivedEventData)
	if !ok {
		return nil // receive gives no others
	}
	c := l.checkpoint
	c.Sequence, c.Offset, c.From, c.Chosen = &e.SequenceNumber, e.Offset, time.Time{}, false
	if e.EnqueuedTime != nil {
		c.Enqueued = e.EnqueuedTime.UTC()
	}
	c.Missed += l.missed
	revision, err := l.part.hub.shelf.save(ctx, l.part.id, c, l.revision)
	if err != nil {
		for _, m := range all {
			m.lost = true // they come again, and are recognised
		}
		return unkept(err)
	}
	l.checkpoint, l.revision, l.missed = c, revision, 0
	l.part.moved(revision, c)
	return nil
}

func (l *partitionLink) close() {
	ctx, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	defer time.AfterFunc(goodbye, l.hangUp).Stop()
	_ = l.reader.Close(ctx) // the connection ends in any case
	l.hubClient.close()
}
