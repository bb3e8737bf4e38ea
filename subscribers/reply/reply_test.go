package reply

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
	"time"

	"github.com/gridfan/gridfan/subscribers/deliver"
)

func TestClassify(t *testing.T) {
	timeout := &net.OpError{Op: "dial", Net: "tcp", Err: context.DeadlineExceeded}
	tests := []struct {
		err   error
		fault deliver.Fault
		want  string
	}{
		{&net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "h", IsNotFound: true}}, deliver.FaultDNS, "no such host"},
		{&net.OpError{Op: "dial", Err: &net.DNSError{Err: "i/o timeout", Name: "h", IsTimeout: true}}, deliver.FaultDNS, "name lookup timed out"},
		{&net.OpError{Op: "dial", Err: &net.DNSError{Err: "server misbehaving", Name: "h"}}, deliver.FaultDNS, "name lookup failed"},
		{timeout, deliver.FaultNetwork, "connecting timed out after 10s"},
		{&net.OpError{Op: "proxyconnect", Err: timeout}, deliver.FaultNetwork, "the proxy cannot be reached"},
		{errors.New("net/http: TLS handshake timeout"), deliver.FaultNetwork, "TLS: handshake timed out after 10s"},
		{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, deliver.FaultTimeout, "timed out"},
		{fmt.Errorf("x: %w", io.ErrUnexpectedEOF), deliver.FaultNetwork, "connection closed without an answer"},
		{x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"a.example"}}, Host: "b.example"}, deliver.FaultTLS, "TLS: certificate is valid for a.example, not b.example"},
		{&url.Error{Op: "Post", URL: "https://h/?k=v", Err: errors.New("odd")}, deliver.FaultNetwork, "the request could not be sent"},
		{errors.New(`invalid proxy address "http://u:p@proxy:1"`), deliver.FaultNetwork, "the request could not be sent"},
		{errors.New("code " + "canary-key" + " is bad\n"), deliver.FaultNetwork, "transport error: code <redacted> is bad"},
	}
	s := Hide("canary-key")
	for _, tt := range tests {
		if fault, got := s.classify(tt.err); got != tt.want || fault != tt.fault {
			t.Errorf("%v: got %q (%s), want %q (%s)", tt.err, got, fault, tt.want, tt.fault)
		}
	}
}

func TestRoundOff(t *testing.T) {
	for d, want := range map[time.Duration]string{
		30*time.Second + 417*time.Microsecond: "30s", 2512 * time.Millisecond: "2.5s", 50417 * time.Microsecond: "50ms",
	} {
		if got := roundOff(d); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
