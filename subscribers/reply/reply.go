// Package reply turns what a destination answered, or how it failed to, into a
// deliver.Attempt, for all Senders: what a status means, what a transport error is
// called, and what of an answer an operator may see. HTTP is the transport for those
// that go through other people's clients.
package reply

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/infra/retryafter"
	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// maxExcerpt is how much of an answer may stand in a Reason.
const maxExcerpt = 512

// Judge turns a status and the beginning of an answer's body into an Attempt. 2xx
// is delivered; 408, 425, 429 and 5xx are tried again, and so are 407 and 511,
// which never got to the destination; any other is a rejection. Redirects are one
// too: an event and its credentials are not for any host that an answer names.
func (s *Secrets) Judge(status int, header http.Header, body []byte) deliver.Attempt {
	a := deliver.Attempt{Status: status}
	switch {
	case status >= 200 && status < 300:
		a.Outcome = deliver.Delivered
		return a
	case status >= 300 && status < 400:
		a.Outcome, a.Fault = deliver.Rejected, deliver.FaultAddress
		a.Reason = code(status) + ": redirects are not followed" + s.location(header)
		return a
	case status < 200:
		a.Outcome, a.Fault = deliver.Failed, deliver.FaultServer
		a.Reason = code(status) + ": not an answer to a POST"
		return a
	}
	words := code(status)
	a.Outcome, a.Fault = deliver.Rejected, deliver.FaultRefused
	switch status {
	case http.StatusProxyAuthRequired, http.StatusNetworkAuthenticationRequired:
		a.Outcome, a.Fault = deliver.Failed, deliver.FaultNetwork
		words += " of a proxy on the way"
	case http.StatusRequestTimeout, http.StatusTooEarly:
		a.Outcome, a.Fault = deliver.Failed, deliver.FaultServer
	case http.StatusTooManyRequests:
		a.Outcome, a.Fault = deliver.Failed, deliver.FaultThrottled
	case http.StatusUnauthorized, http.StatusForbidden:
		a.Fault = deliver.FaultAccess
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusGone:
		a.Fault = deliver.FaultAddress
	default:
		if status >= 500 {
			a.Outcome, a.Fault = deliver.Failed, deliver.FaultServer
		}
	}
	if a.Outcome == deliver.Failed {
		a.RetryAfter = retryafter.Parse(header.Get("Retry-After"), time.Now())
	}
	a.Reason = words
	if text := s.Printable(string(body), maxExcerpt); text != "" {
		a.Reason += ": " + text
	}
	return a
}

func code(status int) string { return "HTTP " + strconv.Itoa(status) }

func (s *Secrets) location(header http.Header) string {
	u, err := url.Parse(header.Get("Location"))
	if err != nil {
		return " (its Location is no URL)"
	}
	if u.Host == "" {
		return ""
	}
	return " (this one leads to " + s.Printable(u.Host, 256) + ")"
}

// NoAnswer turns the lack of an answer into an Attempt that took so long. It is
// worth another try in every case: a wrong certificate or name is somebody's to
// repair, and the event waits until then.
func (s *Secrets) NoAnswer(ctx context.Context, err error, took time.Duration) deliver.Attempt {
	switch ctx.Err() {
	case context.Canceled:
		return deliver.Attempt{Outcome: deliver.Aborted, Reason: "stopped before there was an answer"}
	case context.DeadlineExceeded:
		return deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultTimeout, Reason: "timed out after " + roundOff(took)}
	}
	trouble, reason := egress.Explain(err, s.Printable)
	return deliver.Attempt{Outcome: deliver.Failed, Fault: faults[trouble], Reason: reason}
}

// faults are what kinds of trouble are called in an Attempt.
var faults = map[egress.Trouble]deliver.Fault{
	egress.AddressTrouble: deliver.FaultAddress, egress.DNSTrouble: deliver.FaultDNS, egress.NetworkTrouble: deliver.FaultNetwork,
	egress.TLSTrouble: deliver.FaultTLS, egress.Timeout: deliver.FaultTimeout,
}

// NoToken is the Attempt of which nothing was sent for want of a token. Neither the
// destination nor the event is to blame, which waits as while the destination is down.
func (s *Secrets) NoToken(ctx context.Context, err error, took time.Duration) deliver.Attempt {
	if e, ok := errors.AsType[*credentials.Error](err); ok && ctx.Err() != context.Canceled {
		return deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultCredentials, Reason: e.Reason, RetryAfter: e.Wait}
	}
	if ctx.Err() != nil {
		return s.NoAnswer(ctx, err, took)
	}
	// The first line says what failed; what follows quotes requests and answers.
	first, _, _ := strings.Cut(err.Error(), "\n")
	return deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultCredentials, Reason: credentials.NoToken + ": " + s.Printable(first, 256)}
}

// roundOff writes d with two or three digits.
func roundOff(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Millisecond).String()
}

// Secrets are a Sender's, which are struck out of foreign text.
type Secrets struct{ *secret.Veil }

// Hide makes Secrets of texts.
func Hide(texts ...string) *Secrets { return &Secrets{secret.NewVeil(texts...)} }

// And adds texts that are secret for a while.
func (s *Secrets) And(texts ...string) *Secrets { return &Secrets{s.Veil.And(texts...)} }
