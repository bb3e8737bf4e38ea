package receive

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"github.com/gridfan/gridfan/router/publish"
)

// Recovery is what came of reading dead letters of a source back.
type Recovery struct {
	Source string `json:"source"`
	// From names the dead-letter queue, or the container of blobs, or both.
	From   string `json:"from"`
	DryRun bool   `json:"dryRun"`
	// Messages were read, and of them TooLarge left where they are. Of blobs these are
	// the events in them; TooLarge counts blobs then.
	Messages int `json:"messages"`
	Blobs    int `json:"blobs,omitempty"`
	TooLarge int `json:"tooLarge"`
	// Published, Duplicate, Quarantined and Control are what was in them. Of a dry
	// run Published are those that can be read.
	Published   int `json:"published"`
	Duplicate   int `json:"duplicate"`
	Quarantined int `json:"quarantined"`
	Control     int `json:"control"`
	Completing  int `json:"completing,omitempty"` // to be completed before they are published
	// Reasons counts the messages by why they were given up.
	Reasons map[string]int `json:"reasons"`
	// More says that there may be others: the limit, or the time, was reached.
	More bool `json:"more"`
	// Problem says why it stopped before the end; what was done until then stays
	// done.
	Problem string `json:"problem,omitempty"`
}

// Errors of Recover.
var (
	ErrUnknown       = errors.New("no source of this name is received from a broker, or has deadLetters")
	ErrNoDeadLetters = errors.New("its broker has no dead letters that can be read back; where Event Grid keeps them, name the container in deadLetters.blob")
	ErrBusy          = errors.New("another router is just reading its dead letters back; try again")
)

const (
	// recoverQuiet is after how long without a message the queue counts as empty.
	recoverQuiet = 3 * time.Second
	// recoverBatch is what is asked for at once.
	recoverBatch = 50
	// maxReasons bounds Recovery.Reasons; senders can make up any.
	maxReasons = 20
)

// Recover reads up to about limit dead letters of a source back, from its queue or
// subscription and from its container of blobs, and publishes them with the extension late. Each is completed there once it is durable
// here, so that it can be stopped, and called again, at any time. With dryRun it only
// looks: nothing is locked, counted as a delivery, or published. It stops when ctx
// ends and then says that there is more.
func (r *Receivers) Recover(ctx context.Context, name string, dryRun bool, limit int) (*Recovery, error) {
	s := r.source(name)
	if s == nil {
		return nil, ErrUnknown
	}
	out := &Recovery{Source: name, DryRun: dryRun, Reasons: map[string]int{}}
	queued := s.From != nil && s.From.ServiceBus != nil
	switch {
	case !queued && s.blobs == nil:
		return nil, ErrNoDeadLetters
	case queued:
		out.From = s.status.from + "/$DeadLetterQueue"
		if err := s.recoverQueue(ctx, dryRun, limit, out); err != nil {
			return nil, err
		}
		if s.blobs == nil || out.More {
			return out, nil
		}
		out.From += " and "
	}
	out.From += s.blobs.from
	before := out.Messages
	err := s.blobs.exclusively(ctx, func(ctx context.Context) error { return s.blobs.pass(ctx, dryRun, limit, out) })
	switch {
	case errors.Is(err, ErrBusy) && !queued:
		return nil, err
	case ctx.Err() != nil:
		out.More = true
	case err != nil && out.Messages == before && !queued:
		return nil, err
	case err != nil:
		out.More, out.Problem = true, faultOf(err).Reason
	}
	return out, nil
}

// recoverQueue reads the dead letters of a queue back.
func (s *source) recoverQueue(ctx context.Context, dryRun bool, limit int, out *Recovery) error {
	b, err := s.newBus(*s.From.ServiceBus)
	if err != nil {
		return err
	}
	defer b.forget()
	l, err := b.dial(ctx)
	if err != nil {
		return err
	}
	defer l.close()
	if l.plain, err = l.receiver(azservicebus.SubQueueDeadLetter); err != nil {
		return l.fault(err)
	}
	if dryRun {
		err = s.look(ctx, l, limit, out)
	} else {
		err = s.readBack(ctx, l, limit, out)
	}
	switch {
	case ctx.Err() != nil:
		out.More = true
	case err != nil && out.Messages == 0:
		return err
	case err != nil:
		out.More, out.Problem = true, faultOf(err).Reason
	}
	return nil
}

// forget gives up the tokens of a bus that was made for a while.
func (b *bus) forget() {
	if b.tokens != nil {
		b.tokens.Close()
	}
}

// reason counts why a message was given up.
func (out *Recovery) reason(m *azservicebus.ReceivedMessage) {
	why := ""
	if m.DeadLetterReason != nil {
		why = *m.DeadLetterReason
	}
	out.why(why)
}

// why counts a reason.
func (out *Recovery) why(reason string) { out.whys(reason, 1) }

func (out *Recovery) whys(why string, n int) {
	if why == "" {
		why = "unknown"
	}
	why = strings.ToValidUTF8(why[:min(len(why), 128)], "")
	if _, known := out.Reasons[why]; !known && len(out.Reasons) >= maxReasons {
		why = "others"
	}
	out.Reasons[why] += n
}

// add adds what another one has counted.
func (out *Recovery) add(o *Recovery) {
	out.Messages += o.Messages
	out.Blobs += o.Blobs
	out.TooLarge += o.TooLarge
	out.Published += o.Published
	out.Duplicate += o.Duplicate
	out.Quarantined += o.Quarantined
	out.Control += o.Control
	out.Completing += o.Completing
	for why, n := range o.Reasons {
		out.whys(why, n)
	}
}

// look peeks at dead letters.
func (s *source) look(ctx context.Context, l *busLink, limit int, out *Recovery) error {
	next := int64(0)
	for out.Messages < limit {
		all, err := l.plain.PeekMessages(ctx, min(recoverBatch, limit-out.Messages), &azservicebus.PeekMessagesOptions{FromSequenceNumber: &next})
		if err != nil {
			return l.fault(err)
		}
		if len(all) == 0 {
			return nil
		}
		for _, m := range all {
			if m.SequenceNumber != nil {
				next = *m.SequenceNumber + 1
			}
			out.Messages++
			out.reason(m)
			for _, r := range s.read(l.message(m)) {
				switch {
				case r.Fault != nil:
					out.Quarantined++
				case r.Control != nil:
					out.Control++
				default:
					out.Published++
				}
			}
		}
	}
	out.More = true
	return nil
}

// readBack publishes dead letters and completes them.
func (s *source) readBack(ctx context.Context, l *busLink, limit int, out *Recovery) error {
	var large []*message // locked until the end, so that they do not come again
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), goodbye)
		defer cancel()
		l.giveBack(ctx, large)
	}()
	l.cfg.Batch = recoverBatch
	for out.Messages < limit {
		l.cfg.Batch = min(l.cfg.Batch, limit-out.Messages)
		all, err := l.from(ctx, l.plain, recoverQuiet)
		if err != nil || len(all) == 0 {
			return err
		}
		var kept []*message
		for i, m := range all {
			m.late = true
			out.reason(m.handle.(*azservicebus.ReceivedMessage)) // from gives no others
			out.Messages++
			err := s.store(ctx, recovering{l, out}, []*message{m})
			if errors.Is(err, publish.ErrTooLarge) {
				out.TooLarge++
				large = append(large, m)
				continue
			}
			if err != nil {
				l.giveBack(context.WithoutCancel(ctx), all[i:])
				if s := l.settle(context.WithoutCancel(ctx), kept); s != nil {
					return s
				}
				return &Fault{Kind: Storage, Reason: storageReason(err)}
			}
			kept = append(kept, m)
		}
		settling, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
		err = l.settle(settling, kept)
		cancel()
		if err != nil {
			return err
		}
	}
	out.More = true
	return nil
}

// recovering is a link whose messages are dead letters already, and who is told what
// becomes of them.
type recovering struct {
	*busLink
	out *Recovery
}

func (recovering) deadLetters() bool { return false }

// count adds what became of an element.
func (out *Recovery) count(st publish.Status) {
	switch st {
	case publish.Published:
		out.Published++
	case publish.Duplicate:
		out.Duplicate++
	case publish.Quarantined:
		out.Quarantined++
	case publish.Control:
		out.Control++
	case publish.Completing:
		out.Completing++
	}
}
