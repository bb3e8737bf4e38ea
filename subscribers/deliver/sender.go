package deliver

import (
	"context"
	"time"

	"github.com/gridfan/gridfan/schemas/event"
)

// A Sender brings events to one subscriber. Implementations are safe for
// concurrent use and pass subscribers/sendertest.
type Sender interface {
	// Send makes exactly one attempt to hand e over, within ctx, and says how
	// it went. It does not retry: whether to try again is in the Attempt, when
	// is the worker's decision.
	Send(ctx context.Context, e *event.Event) Attempt
	// Close gives up idle connections. No Send runs or follows.
	Close()
}

// Outcome is how an attempt ended.
type Outcome string

// The outcomes of an attempt.
const (
	// Delivered: the subscriber has the event.
	Delivered Outcome = "delivered"
	// Failed: the subscriber could not take it now (time-out, transport error,
	// 5xx, 429); it counts against the breaker and the event is tried again.
	Failed Outcome = "retry"
	// Rejected: the subscriber is up and does not want this event (other
	// 4xx, redirects); the event becomes a dead letter.
	Rejected Outcome = "rejected"
	// Aborted: we stopped before there was an answer; nothing is known.
	Aborted Outcome = "aborted"
)

// Fault is the kind of a failure, as rules and causes name it.
type Fault string

// The faults.
const (
	FaultTimeout   Fault = "timeout"   // no answer in time
	FaultNetwork   Fault = "network"   // not reached, or cut off before an answer
	FaultDNS       Fault = "dns"       // its name was not found
	FaultTLS       Fault = "tls"       // certificates or protocol do not fit
	FaultThrottled Fault = "throttled" // it asks for less (429)
	FaultServer    Fault = "server"    // it says that it is in trouble (5xx, 408, 425)
	FaultAccess    Fault = "access"    // it does not let us in (401, 403)
	FaultAddress   Fault = "address"   // nothing takes events there (404, 405, 410, redirects), or we may not go there
	FaultRefused   Fault = "refused"   // it does not want this event (other 4xx)
	// It has not agreed to be sent events, so this one was not sent: it cannot be
	// the event's fault, and waits.
	FaultHandshake Fault = "handshake"
	// FaultCredentials: we have nothing to show it, or nothing that it takes any
	// longer. It has not seen the event, or will take it with the next token.
	FaultCredentials Fault = "credentials"
)

// Faults are all there are.
var Faults = []Fault{
	FaultTimeout, FaultNetwork, FaultDNS, FaultTLS, FaultThrottled, FaultServer, FaultAccess, FaultAddress, FaultRefused, FaultHandshake, FaultCredentials,
}

// A BatchSender can hand over several events in one attempt.
type BatchSender interface {
	Sender
	// SendBatch is Send for several events, which all share the outcome.
	SendBatch(ctx context.Context, events []*event.Event) Attempt
}

// Limited is a Sender whose destination may say how much it takes.
type Limited interface {
	Sender
	// Rate is how many attempts a second may begin, 0 for any number. It is asked
	// before each attempt, and may change.
	Rate() float64
}

// A Renewer is a Sender that puts off what has failed, apart from the attempts it is
// asked for.
type Renewer interface {
	// RetryNow makes the next Send try that again without waiting any longer.
	RetryNow()
}

// A Packer is a BatchSender whose destination limits what it takes at once.
type Packer interface {
	BatchSender
	// Pack says how many of events, counted from the first, go into one SendBatch:
	// at least 1, even of what is too big. It blocks for nothing.
	Pack(events []*event.Event) int
}

// Attempt is what a Sender reports.
type Attempt struct {
	Outcome Outcome
	// Fault is the kind of failure; empty unless Outcome is Failed or Rejected.
	Fault Fault
	// Status is the protocol's status, for HTTP its code; 0 without an answer.
	Status int
	// Reason says what went wrong, in words for an operator: no secrets, no
	// payload, at most 512 bytes of the subscriber's answer.
	Reason string
	// RetryAfter is how long the subscriber, or who issues credentials for it,
	// asked us to wait; 0 if nobody did.
	RetryAfter time.Duration
}

// forbidden says that rules of our own keep us from the subscriber's address: a
// Sender says so by Failed with FaultAddress. Nothing was sent, and nothing will be
// until somebody changes the address or the rules.
func (a Attempt) forbidden() bool { return a.Outcome == Failed && a.Fault == FaultAddress }
