package egress

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
)

// Trouble is what kept a request from its answer.
type Trouble string

// The kinds of trouble.
const (
	AddressTrouble Trouble = "address" // the rules do not let it be dialled
	DNSTrouble     Trouble = "dns"
	NetworkTrouble Trouble = "network"
	TLSTrouble     Trouble = "tls"
	Timeout        Trouble = "timeout" // of an answer, not of a connection
)

// Explain puts a transport error into few words. Only what may have reached the
// other side is a Timeout: whoever fears to repeat a request need not fear one whose
// connection did not come about. printable makes foreign text of at most so many bytes
// fit to be shown.
func Explain(err error, printable func(text string, most int) string) (Trouble, string) {
	text := err.Error()
	refused, isRefused := errors.AsType[*RefusedError](err)
	_, isUnresolved := errors.AsType[*UnresolvedError](err)
	dns, isDNS := errors.AsType[*net.DNSError](err)
	op, isOp := errors.AsType[*net.OpError](err)
	record, isRecord := errors.AsType[tls.RecordHeaderError](err)
	timeout, isNet := errors.AsType[net.Error](err)
	switch {
	case isRefused:
		return AddressTrouble, printable(refused.Error(), 512)
	case isUnresolved:
		return DNSTrouble, "name lookup failed here, where the address is judged before a proxy is asked; if only the proxy can look names up, set egress.proxyResolves"
	case isDNS && dns.IsNotFound:
		return DNSTrouble, "no such host"
	case isDNS && dns.IsTimeout:
		return DNSTrouble, "name lookup timed out"
	case isDNS:
		return DNSTrouble, "name lookup failed"
	case isOp && op.Op == "proxyconnect":
		return NetworkTrouble, "the proxy cannot be reached"
	case strings.Contains(text, "TLS handshake timeout"): // net/http has no type for it
		return NetworkTrouble, "TLS: handshake timed out after " + ConnectTimeout.String()
	case isOp && op.Op == "dial" && op.Timeout():
		return NetworkTrouble, "connecting timed out after " + ConnectTimeout.String()
	case isNet && timeout.Timeout():
		return Timeout, "timed out"
	case errors.Is(err, syscall.ECONNREFUSED):
		return NetworkTrouble, "connection refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return NetworkTrouble, "connection reset"
	case errors.Is(err, syscall.EHOSTUNREACH):
		return NetworkTrouble, "no route to host"
	case errors.Is(err, syscall.ENETUNREACH):
		return NetworkTrouble, "network unreachable"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		strings.Contains(text, "server closed idle connection"):
		return NetworkTrouble, "connection closed without an answer"
	case isRecord && string(record.RecordHeader[:]) == "HTTP/":
		return TLSTrouble, "TLS: the other side speaks plain HTTP"
	case isRecord:
		return TLSTrouble, "TLS: the other side does not speak it"
	case strings.Contains(text, "://"): // the address of a proxy may hold a password
		return NetworkTrouble, "the request could not be sent"
	}
	for _, prefix := range []string{"x509: ", "tls: "} {
		if _, rest, ok := strings.Cut(text, prefix); ok {
			return TLSTrouble, "TLS: " + printable(rest, 256)
		}
	}
	return NetworkTrouble, "transport error: " + printable(text, 256)
}
