package servicebus

import (
	"errors"
	"fmt"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/Azure/go-amqp"

	"github.com/gridfan/gridfan/infra/azureamqp"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/reply"
)

// meaning is what a condition says about an attempt. The status is its counterpart in
// HTTP.
type meaning struct {
	outcome deliver.Outcome
	fault   deliver.Fault
	status  int
}

// conditions are those of AMQP and the service's own. There is no list of them in the
// service's documentation; these are the ones that its clients know (azservicebus
// v1.11.0, internal/errors.go; AmqpErrorCondition of Azure's Java core, and the retry
// policy of its Python client; 2026-11). What is said about them here is our reading
// of their names. Of one that is not here the event is not to blame.
var conditions = map[amqp.ErrCond]meaning{
	amqp.ErrCondUnauthorizedAccess: {deliver.Rejected, deliver.FaultAccess, 401},
	"com.microsoft:auth-failed":    {deliver.Rejected, deliver.FaultAccess, 401},

	amqp.ErrCondNotFound:        {deliver.Rejected, deliver.FaultAddress, 404},
	amqp.ErrCondResourceDeleted: {deliver.Rejected, deliver.FaultAddress, 410},

	amqp.ErrCondInvalidField:              {deliver.Rejected, deliver.FaultRefused, 400},
	amqp.ErrCondDecodeError:               {deliver.Rejected, deliver.FaultRefused, 400},
	amqp.ErrCondNotAllowed:                {deliver.Rejected, deliver.FaultRefused, 400}, // no session where one is wanted
	amqp.ErrCondNotImplemented:            {deliver.Rejected, deliver.FaultRefused, 400},
	amqp.ErrCondPreconditionFailed:        {deliver.Rejected, deliver.FaultRefused, 412},
	amqp.ErrCondMessageSizeExceeded:       {deliver.Rejected, deliver.FaultRefused, 413},
	"com.microsoft:argument-error":        {deliver.Rejected, deliver.FaultRefused, 400},
	"com.microsoft:argument-out-of-range": {deliver.Rejected, deliver.FaultRefused, 400},
	"com.microsoft:server-busy":           {deliver.Failed, deliver.FaultThrottled, 429},
	"com.microsoft:timeout":               {deliver.Failed, deliver.FaultServer, 408},
	"com.microsoft:operation-cancelled":   {deliver.Failed, deliver.FaultServer, 503},
	"com.microsoft:entity-disabled":       {deliver.Failed, deliver.FaultServer, 503}, // somebody has switched it off, and will switch it on
	amqp.ErrCondResourceLimitExceeded:     {deliver.Failed, deliver.FaultServer, 507}, // it is full
	amqp.ErrCondInternalError:             {deliver.Failed, deliver.FaultServer, 500},
	amqp.ErrCondDetachForced:              {deliver.Failed, deliver.FaultNetwork, 0},
	amqp.ErrCondConnectionForced:          {deliver.Failed, deliver.FaultNetwork, 0},
	amqp.ErrCondLinkRedirect:              {deliver.Rejected, deliver.FaultAddress, 302}, // not followed
	amqp.ErrCondConnectionRedirect:        {deliver.Rejected, deliver.FaultAddress, 302},
	"com.microsoft:container-close":       {deliver.Failed, deliver.FaultNetwork, 0},
	"com.microsoft:partition-not-owned":   {deliver.Failed, deliver.FaultServer, 503},
	"com.microsoft:store-lock-lost":       {deliver.Failed, deliver.FaultServer, 503},
}

// busyFor is how long a busy service is left alone, as the .NET client does
// (learn.microsoft.com, service-bus-messaging-exceptions-latest, ServiceBusy: 10
// seconds; 2026-11): AMQP has no Retry-After.
const busyFor = 10 * time.Second

// state is what an error says about a link.
type state int

// The states.
const (
	alive  state = iota // the error was about the message
	unsure              // the client does not tell whether the link is gone, too
	broken
)

// judge turns the client's error into an Attempt. With status 0 nobody has said
// anything about the message.
func judge(secrets *reply.Secrets, err error, size int, limit int64) (deliver.Attempt, state) {
	switch {
	case errors.Is(err, azservicebus.ErrMessageTooLarge):
		return reply.TooBig(int64(size), limit), alive
	case errors.Is(err, errSessions):
		return deliver.Attempt{Outcome: deliver.Rejected, Fault: deliver.FaultRefused, Status: 400, Reason: "not sent: " + err.Error()}, alive
	}
	if status, ok := azureamqp.ClaimStatus(err); ok {
		a := secrets.Judge(status, nil, nil)
		// What the service says of a token may quote it.
		a.Reason = fmt.Sprintf("HTTP %d for the key or identity", status)
		if a.Outcome == deliver.Delivered {
			a = deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultServer, Reason: "the service's answer about the key or identity makes no sense"}
		}
		return a, broken
	}
	condition, description, ok := azureamqp.Said(err)
	if !ok {
		return deliver.Attempt{}, broken
	}
	m, known := conditions[condition]
	if !known {
		m = meaning{deliver.Failed, deliver.FaultServer, 500}
	}
	a := deliver.Attempt{Outcome: m.outcome, Fault: m.fault, Status: m.status, Reason: secrets.Printable(string(condition), 64)}
	if m.fault == deliver.FaultThrottled {
		a.RetryAfter = busyFor
	}
	if text := secrets.Printable(azureamqp.Unsigned(description), 512); text != "" {
		a.Reason += ": " + text
	}
	switch _, wrapped := errors.AsType[*azservicebus.Error](err); {
	case m.status == 0, ended(err):
		return a, broken
	case wrapped:
		return a, unsure
	}
	return a, alive
}

// unsigned is err without signatures: the client quotes answers.
func unsigned(err error) error {
	if text := err.Error(); azureamqp.Unsigned(text) != text {
		return errors.New(azureamqp.Unsigned(text))
	}
	return err
}

// ended says whether err is the end of a link, session or connection.
func ended(err error) bool {
	for _, end := range []any{new(*amqp.LinkError), new(*amqp.ConnError), new(*amqp.SessionError)} {
		if errors.As(err, end) {
			return true
		}
	}
	return false
}
