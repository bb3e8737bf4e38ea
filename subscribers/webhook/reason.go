package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/subscribers/credentials"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// noAnswer turns the lack of a status into an Attempt. It is worth another try
// in every case: a wrong certificate or name is somebody's to repair, and the
// event waits until then.
func (s *Sender) noAnswer(ctx context.Context, err error, took time.Duration) deliver.Attempt {
	if e, ok := errors.AsType[*credentials.Error](err); ok {
		return withoutCredentials(ctx, e)
	}
	switch ctx.Err() {
	case context.Canceled:
		return deliver.Attempt{Outcome: deliver.Aborted, Reason: "stopped before there was an answer"}
	case context.DeadlineExceeded:
		return deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultTimeout, Reason: "timed out after " + roundOff(took)}
	}
	fault, reason := s.classify(err)
	return deliver.Attempt{Outcome: deliver.Failed, Fault: fault, Reason: reason}
}

// classify puts a transport error into few words. Of errors it does not know it
// shows the text, but never one with a URL in it: the address of a proxy may
// hold a password.
//
// Only what may have reached the subscriber is a time-out: a connection or TLS
// handshake that did not come about in time is the network's fault, and whoever
// fears to repeat a request need not fear that one.
func (s *Sender) classify(err error) (deliver.Fault, string) {
	text := err.Error()
	refused, isRefused := errors.AsType[*egress.RefusedError](err)
	_, isUnresolved := errors.AsType[*egress.UnresolvedError](err)
	dns, isDNS := errors.AsType[*net.DNSError](err)
	op, isOp := errors.AsType[*net.OpError](err)
	record, isRecord := errors.AsType[tls.RecordHeaderError](err)
	timeout, isNet := errors.AsType[net.Error](err)
	switch {
	case isRefused:
		return deliver.FaultAddress, s.printable(refused.Error(), 512)
	case isUnresolved:
		return deliver.FaultDNS, "name lookup failed here, where the address is judged before a proxy is asked; if only the proxy can look names up, set egress.proxyResolves"
	case isDNS && dns.IsNotFound:
		return deliver.FaultDNS, "no such host"
	case isDNS && dns.IsTimeout:
		return deliver.FaultDNS, "name lookup timed out"
	case isDNS:
		return deliver.FaultDNS, "name lookup failed"
	case isOp && op.Op == "proxyconnect":
		return deliver.FaultNetwork, "the proxy cannot be reached"
	case strings.Contains(text, "TLS handshake timeout"): // net/http has no type for it
		return deliver.FaultNetwork, "TLS: handshake timed out after " + roundOff(connectTimeout)
	case isOp && op.Op == "dial" && op.Timeout():
		return deliver.FaultNetwork, "connecting timed out after " + roundOff(connectTimeout)
	case isNet && timeout.Timeout():
		return deliver.FaultTimeout, "timed out"
	case errors.Is(err, syscall.ECONNREFUSED):
		return deliver.FaultNetwork, "connection refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return deliver.FaultNetwork, "connection reset"
	case errors.Is(err, syscall.EHOSTUNREACH):
		return deliver.FaultNetwork, "no route to host"
	case errors.Is(err, syscall.ENETUNREACH):
		return deliver.FaultNetwork, "network unreachable"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), strings.Contains(text, "server closed idle connection"):
		return deliver.FaultNetwork, "connection closed without an answer"
	case isOp && op.Op == "remote error":
		_, alert, _ := strings.Cut(text, "tls: ")
		return deliver.FaultTLS, s.refusedTLS(s.printable(alert, 256))
	case isRecord && string(record.RecordHeader[:]) == "HTTP/":
		return deliver.FaultTLS, "TLS: the subscriber speaks plain HTTP"
	case strings.Contains(text, "://"):
		return deliver.FaultNetwork, "the request could not be sent"
	}
	for _, prefix := range []string{"x509: ", "tls: "} {
		if _, rest, ok := strings.Cut(text, prefix); ok {
			return deliver.FaultTLS, "TLS: " + s.printable(rest, 256)
		}
	}
	return deliver.FaultNetwork, "transport error: " + s.printable(text, 256)
}

// printable makes foreign text fit for a log line: without our secrets, valid
// UTF-8, no control or formatting characters, on one line, of at most n bytes.
func (s *Sender) printable(text string, n int) string {
	if s.secrets != nil {
		text = s.secrets.Replace(text)
	}
	b := make([]byte, 0, min(len(text), n))
	for _, r := range text {
		if unicode.IsSpace(r) {
			if len(b) == 0 || b[len(b)-1] == ' ' {
				continue
			}
			r = ' '
		} else if !unicode.IsPrint(r) {
			r = utf8.RuneError
		}
		if len(b)+utf8.RuneLen(r) > n {
			break
		}
		b = utf8.AppendRune(b, r)
	}
	return strings.TrimRight(string(b), " ")
}

// roundOff writes d with two or three digits: nobody wants 30.000417s.
func roundOff(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Millisecond).String()
}
