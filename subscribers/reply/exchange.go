package reply

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

const (
	// maxReply is how much of an answer is read.
	maxReply = 64 << 10

	// replyGrace is how long the rest of an answer may take after its status.
	replyGrace = time.Second

	// connectTimeout is that of the TCP connection, and once more of TLS.
	connectTimeout = egress.ConnectTimeout

	// idleTimeout is how long an unused connection is kept. Azure forgets one after
	// 4 minutes without a word, unless it is told otherwise (learn.microsoft.com,
	// virtual-network/ip-services/public-ip-addresses, idle timeout; 2026-11).
	idleTimeout = 30 * time.Second
)

// HTTP sends the requests of an SDK, each once, and keeps what came of it: no
// redirect is followed, of an answer only so much is read, and a body over the
// service's limit is not sent. It is the SDK's transport (policy.Transporter).
type HTTP struct {
	*Secrets
	// Transport may be changed before the first request.
	Transport *http.Transport
	limit     int64
}

// NewHTTP makes the transport of a Sender that runs so many attempts at once, 0 for
// any number, to a service at target that takes bodies of up to limit bytes. way is
// how its connections are made.
func NewHTTP(secrets *Secrets, concurrency int, limit int64, way *egress.Way, target *url.URL) *HTTP {
	h := &HTTP{
		Secrets: secrets,
		limit:   limit,
		Transport: &http.Transport{
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    connectTimeout,
			MaxConnsPerHost:        concurrency,
			MaxIdleConnsPerHost:    max(concurrency, http.DefaultMaxIdleConnsPerHost),
			IdleConnTimeout:        idleTimeout,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxReply,
			ForceAttemptHTTP2:      true,
			// Without pings a dead HTTP/2 connection goes on taking requests until
			// the kernel gives up after 15 minutes.
			HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
		},
	}
	way.Equip(h.Transport, target)
	return h
}

// exchange is what came of the one request of an attempt.
type exchange struct {
	status int
	header http.Header
	body   []byte
	err    error // of the transport
	size   int64 // of a body that is over the limit
}

type exchangeKey struct{}

var errTooBig = errors.New("over the limit of the service")

// Attempt runs send, which makes one request through h with the context it gets, and
// judges what came of it. token is the one that the request carries, empty if none.
func (h *HTTP) Attempt(ctx context.Context, token string, send func(context.Context) error) deliver.Attempt {
	start := time.Now()
	if ctx.Err() != nil {
		return h.NoAnswer(ctx, ctx.Err(), 0)
	}
	x := &exchange{}
	err := send(context.WithValue(ctx, exchangeKey{}, x))
	switch {
	case x.status != 0 && (x.status < 200 || x.status > 299) && token != "":
		return h.And(token).Judge(x.status, x.header, x.body)
	case x.status != 0:
		return h.Judge(x.status, x.header, x.body)
	case x.size > 0:
		return TooBig(x.size, h.limit)
	case x.err != nil:
		return h.NoAnswer(ctx, x.err, time.Since(start))
	case err == nil:
		err = errors.New("the client sent nothing")
	}
	return h.NoAnswer(ctx, err, time.Since(start))
}

// TooBig is the Attempt of which nothing was sent, because what there was to send
// has so many bytes, more than the service takes.
func TooBig(size, limit int64) deliver.Attempt {
	return deliver.Attempt{
		Outcome: deliver.Rejected, Fault: deliver.FaultRefused, Status: http.StatusRequestEntityTooLarge,
		Reason: fmt.Sprintf("not sent: %d bytes, and the service takes %d", size, limit),
	}
}

// Do implements policy.Transporter.
func (h *HTTP) Do(req *http.Request) (*http.Response, error) {
	x, ok := req.Context().Value(exchangeKey{}).(*exchange)
	if !ok {
		return nil, errors.New("a request outside of an attempt")
	}
	if req.ContentLength > h.limit {
		x.size = req.ContentLength
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, errTooBig
	}
	ctx, cancel := context.WithCancel(req.Context())
	defer cancel()
	// The transport itself and not an http.Client, because that follows redirects.
	resp, err := h.Transport.RoundTrip(req.WithContext(ctx))
	if err != nil {
		x.err = err
		return nil, err
	}
	x.status, x.header, x.body = resp.StatusCode, resp.Header, readReply(resp, cancel)
	resp.Body = io.NopCloser(bytes.NewReader(x.body))
	return resp, nil
}

// readReply reads an answer within limits, so that its connection can be used
// again. If time runs out, stop ends the request, and what came so far must do.
func readReply(resp *http.Response, stop context.CancelFunc) []byte {
	defer resp.Body.Close()
	if resp.StatusCode < 200 {
		return nil // 101: what follows is no answer
	}
	defer time.AfterFunc(replyGrace, stop).Stop()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxReply)) // the status has decided
	return body
}

// Close gives up idle connections.
func (h *HTTP) Close() { h.Transport.CloseIdleConnections() }
