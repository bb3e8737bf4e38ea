package receive

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/Azure/go-amqp"

	"github.com/gridfan/gridfan/infra/azureamqp"
	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/infra/secret"
)

// Kind says whose move it is after a Fault.
type Kind string

// The kinds of faults.
const (
	Credentials   Kind = "credentials"   // refused, or none to be had
	Configuration Kind = "configuration" // no such queue or topic; sessions or not
	Throttled     Kind = "throttled"     // asked too much
	Answer        Kind = "answer"        // an answer that is none
	Unavailable   Kind = "unavailable"   // it cannot now, or is not reached
	Storage       Kind = "storage"       // nothing can be stored here
	Taken         Kind = "taken"         // another reader has it
)

// Fault is why nothing can be received. It is shown in the source's status.
type Fault struct {
	Kind Kind
	// Reason says what is wrong and the fix, without secrets.
	Reason string
	// After is how long the service wants to be left alone; 0: it does not say.
	After time.Duration
}

func (f *Fault) Error() string { return string(f.Kind) + ": " + f.Reason }

// faultOf gives the Fault that err is or wraps.
func faultOf(err error) *Fault {
	if f, ok := errors.AsType[*Fault](err); ok {
		return f
	}
	return &Fault{Kind: Unavailable, Reason: err.Error()}
}

// maxReason bounds foreign text in a Reason.
const maxReason = 400

// noToken is the Fault of credentials that give no token.
func noToken(err error, secrets *secret.Veil) *Fault {
	if e, ok := errors.AsType[*credentials.Error](err); ok {
		return &Fault{Kind: Credentials, Reason: e.Reason, After: e.Wait}
	}
	return &Fault{Kind: Credentials, Reason: credentials.NoToken + ": " + secrets.Printable(err.Error(), maxReason)}
}

// conditions are those that a receiver of AMQP can meet.
type conditions map[amqp.ErrCond]struct {
	kind Kind
	hint string
}

// ofQueues are those of Service Bus; see the Sender's in subscribers/servicebus for
// where they are from.
var ofQueues = conditions{
	amqp.ErrCondUnauthorizedAccess:           {Credentials, "the key or identity may not receive here; it needs Listen, or the role of a Data Receiver"},
	"com.microsoft:auth-failed":              {Credentials, "the key or identity may not receive here; it needs Listen, or the role of a Data Receiver"},
	amqp.ErrCondNotFound:                     {Configuration, "there is no such queue or subscription"},
	amqp.ErrCondResourceDeleted:              {Configuration, "the queue or subscription was deleted"},
	amqp.ErrCondNotAllowed:                   {Configuration, "not allowed; set sessions: true if and only if the queue or subscription requires sessions"},
	"com.microsoft:entity-disabled":          {Configuration, "the queue or subscription is disabled for receiving"},
	"com.microsoft:server-busy":              {Throttled, "the service is busy"},
	"com.microsoft:session-cannot-be-locked": {Unavailable, "another receiver has the session"},
}

// ofHubs are those of Event Hubs (learn.microsoft.com, event-hubs-messaging-exceptions
// and troubleshooting guides of the clients; azeventhubs v2.0.2, internal/errors.go;
// read 2026-11).
var ofHubs = conditions{
	amqp.ErrCondUnauthorizedAccess:        {Credentials, "the key or identity may not read here; it needs Listen, or the role Azure Event Hubs Data Receiver"},
	"com.microsoft:auth-failed":           {Credentials, "the key or identity may not read here; it needs Listen, or the role Azure Event Hubs Data Receiver"},
	amqp.ErrCondNotFound:                  {Configuration, "there is no such event hub or consumer group"},
	amqp.ErrCondResourceDeleted:           {Configuration, "the event hub was deleted"},
	amqp.ErrCondResourceLimitExceeded:     {Configuration, "the namespace's limit of connections, or of readers without an epoch in this consumer group, is reached"},
	"com.microsoft:entity-disabled":       {Configuration, "the event hub is disabled for receiving"},
	"com.microsoft:argument-out-of-range": {Unavailable, "there is no such partition any more"},
	"com.microsoft:server-busy":           {Throttled, "the namespace's throughput or processing units are used up"},
	linkStolen:                            {Taken, "another reader of this consumer group has the partition, and gridfan leaves it for a while; give gridfan a consumer group of its own"},
}

// Conditions that are looked for by name.
const (
	linkStolen    amqp.ErrCond = "amqp:link:stolen"
	invalidOffset amqp.ErrCond = "com.microsoft:georeplication:invalid-offset"
)

// busyFor is how long a busy service is left alone; see subscribers/servicebus.
const busyFor = 10 * time.Second

// amqpFault judges an error of a client of AMQP. trouble is what the network
// complained of, nil if it did not.
func amqpFault(err, trouble error, secrets *secret.Veil, known conditions) *Fault {
	if f, ok := errors.AsType[*Fault](err); ok {
		return f
	}
	if status, ok := azureamqp.ClaimStatus(err); ok {
		f := &Fault{Kind: Unavailable, Reason: fmt.Sprintf("HTTP %d for the key or identity", status)}
		switch status {
		case http.StatusUnauthorized, http.StatusForbidden:
			f.Kind = Credentials
		case http.StatusNotFound:
			f.Kind, f.Reason = Configuration, f.Reason+": "+known[amqp.ErrCondNotFound].hint
		}
		return f
	}
	if condition, description, ok := azureamqp.Said(err); ok {
		f := &Fault{Kind: Unavailable, Reason: secrets.Printable(string(condition), 64)}
		if c, ok := known[condition]; ok {
			f.Kind, f.Reason = c.kind, c.hint+" ("+f.Reason+")"
		}
		if text := secrets.Printable(azureamqp.Unsigned(description), maxReason); text != "" {
			f.Reason += ": " + text
		}
		if f.Kind == Throttled {
			f.After = busyFor
		}
		return f
	}
	if trouble != nil {
		err = trouble
	}
	return &Fault{Kind: Unavailable, Reason: azureamqp.Unsigned(explain(err, secrets))}
}

func explain(err error, secrets *secret.Veil) string {
	_, reason := egress.Explain(err, secrets.Printable)
	return reason
}
