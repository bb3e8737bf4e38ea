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

// Attempt is what a Sender reports.
type Attempt struct {
	Outcome Outcome
	// Status is the protocol's status, for HTTP its code; 0 without an answer.
	Status int
	// Reason says what went wrong, in words for an operator: no secrets, no
	// payload, at most 512 bytes of the subscriber's answer.
	Reason string
	// RetryAfter is how long the subscriber asked us to wait; 0 if it did not.
	RetryAfter time.Duration
}
