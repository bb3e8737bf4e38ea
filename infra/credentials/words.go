package credentials

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/gridfan/gridfan/infra/secret"
)

// NoAnswer puts an error without an answer into few words, none of them a URL: that
// of a proxy may hold a password.
func NoAnswer(hide *secret.Veil, err error) string {
	text := err.Error()
	dns, isDNS := errors.AsType[*net.DNSError](err)
	timeout, isNet := errors.AsType[net.Error](err)
	_, isRecord := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case isDNS && dns.IsNotFound:
		return "no such host"
	case isDNS:
		return "name lookup failed"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "connection reset"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "it cannot be reached"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed without a whole answer"
	case isNet && timeout.Timeout():
		return "timed out"
	case isRecord:
		return "TLS: it speaks something else"
	}
	for _, prefix := range []string{"x509: ", "tls: "} {
		if _, rest, ok := strings.Cut(text, prefix); ok {
			return "TLS: " + hide.Printable(rest, maxWords)
		}
	}
	if strings.Contains(text, "://") {
		return "the request could not be sent"
	}
	return hide.Printable(text, maxWords)
}
