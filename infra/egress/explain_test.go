package egress

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"testing"

	"github.com/gridfan/gridfan/infra/secret"
)

func TestExplain(t *testing.T) {
	timeout := &net.OpError{Op: "dial", Net: "tcp", Err: context.DeadlineExceeded}
	tests := []struct {
		err   error
		fault Trouble
		want  string
	}{
		{&net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "h", IsNotFound: true}}, DNSTrouble, "no such host"},
		{&net.OpError{Op: "dial", Err: &net.DNSError{Err: "i/o timeout", Name: "h", IsTimeout: true}}, DNSTrouble, "name lookup timed out"},
		{&net.OpError{Op: "dial", Err: &net.DNSError{Err: "server misbehaving", Name: "h"}}, DNSTrouble, "name lookup failed"},
		{timeout, NetworkTrouble, "connecting timed out after 10s"},
		{&net.OpError{Op: "proxyconnect", Err: timeout}, NetworkTrouble, "the proxy cannot be reached"},
		{errors.New("net/http: TLS handshake timeout"), NetworkTrouble, "TLS: handshake timed out after 10s"},
		{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, Timeout, "timed out"},
		{fmt.Errorf("x: %w", io.ErrUnexpectedEOF), NetworkTrouble, "connection closed without an answer"},
		{x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"a.example"}}, Host: "b.example"}, TLSTrouble, "TLS: certificate is valid for a.example, not b.example"},
		{&url.Error{Op: "Post", URL: "https://h/?k=v", Err: errors.New("odd")}, NetworkTrouble, "the request could not be sent"},
		{errors.New(`invalid proxy address "http://u:p@proxy:1"`), NetworkTrouble, "the request could not be sent"},
		{errors.New("code " + "canary-key" + " is bad\n"), NetworkTrouble, "transport error: code <redacted> is bad"},
	}
	s := secret.NewVeil("canary-key")
	for _, tt := range tests {
		if fault, got := Explain(tt.err, s.Printable); got != tt.want || fault != tt.fault {
			t.Errorf("%v: got %q (%s), want %q (%s)", tt.err, got, fault, tt.want, tt.fault)
		}
	}
}
