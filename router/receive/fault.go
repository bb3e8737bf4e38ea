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

// conditions are those that a receiver of AMQP can meet; see the Sender's in
// subscribers/servicebus for where they are from.
var conditions = map[amqp.ErrCond]struct {
	kind Kind
	hint string
}{
	amqp.ErrCondUnauthorizedAccess:           {Credentials, "the key or identity may not receive here; it needs Listen, or the role of a Data Receiver"},
	"com.microsoft:auth-failed":              {Credentials, "the key or identity may not receive here; it needs Listen, or the role of a Data Receiver"},
	amqp.ErrCondNotFound:                     {Configuration, "there is no such queue or subscription"},
	amqp.ErrCondResourceDeleted:              {Configuration, "the queue or subscription was deleted"},
	amqp.ErrCondNotAllowed:                   {Configuration, "not allowed; set sessions: true if and only if the queue or subscription requires sessions"},
	"com.microsoft:entity-disabled":          {Configuration, "the queue or subscription is disabled for receiving"},
	"com.microsoft:server-busy":              {Throttled, "the service is busy"},
	"com.microsoft:session-cannot-be-locked": {Unavailable, "another receiver has the session"},
}

// busyFor is how long a busy service is left alone; see subscribers/servicebus.
const busyFor = 10 * time.Second

// amqpFault judges an error of a client of AMQP. trouble is what the network
// complained of, nil if it did not.
func amqpFault(err, trouble error, secrets *secret.Veil) *Fault {
	if f, ok := errors.AsType[*Fault](err); ok {
		return f
	}
	if status, ok := azureamqp.ClaimStatus(err); ok {
		f := &Fault{Kind: Unavailable, Reason: fmt.Sprintf("HTTP %d for the key or identity", status)}
		switch status {
		case http.StatusUnauthorized, http.StatusForbidden:
			f.Kind = Credentials
		case http.StatusNotFound:
			f.Kind, f.Reason = Configuration, f.Reason+": there is no such queue or subscription"
		}
		return f
	}
	if condition, description, ok := azureamqp.Said(err); ok {
		f := &Fault{Kind: Unavailable, Reason: secrets.Printable(string(condition), 64)}
		if c, known := conditions[condition]; known {
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
