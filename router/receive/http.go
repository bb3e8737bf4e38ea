package receive

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

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/infra/retryafter"
	"github.com/gridfan/gridfan/infra/secret"
)

// maxAnswer is what an answer of a service may have: a hundred events of 1 MB would
// be more, and then fewer are asked for.
const maxAnswer = 64 << 20

// transport sends the requests of an SDK, each once: no redirect is followed, because
// keys would go with it, and of an answer only so much is read. What came is kept for
// whoever asks for it with keep.
type transport struct {
	*http.Transport
	limit int64 // bytes of an answer
}

func newTransport(way *egress.Way, target *url.URL) *transport {
	t := &transport{limit: maxAnswer, Transport: &http.Transport{
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    egress.ConnectTimeout,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		ForceAttemptHTTP2:      true,
		// Without pings a dead HTTP/2 connection goes on taking requests until the
		// kernel gives up after 15 minutes.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
	}}
	way.Equip(t.Transport, target)
	return t
}

// errAnswerTooLarge says that an answer has more bytes than are read.
var errAnswerTooLarge = errors.New("the answer is larger than is read")

type keptKey struct{}

// kept is what came of a request.
type kept struct {
	status int
	header http.Header
	body   []byte
	err    error // of the transport
}

// keep makes ctx keep what comes of the one request that is made with it.
func keep(ctx context.Context) (context.Context, *kept) {
	k := &kept{}
	return context.WithValue(ctx, keptKey{}, k), k
}

// Do implements policy.Transporter.
func (t *transport) Do(req *http.Request) (*http.Response, error) {
	k, _ := req.Context().Value(keptKey{}).(*kept)
	if k == nil {
		k = &kept{}
	}
	// The transport itself and not an http.Client, because that follows redirects.
	resp, err := t.RoundTrip(req)
	if err != nil {
		k.err = err
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, t.limit+1))
	if err == nil && int64(len(body)) > t.limit {
		err = errAnswerTooLarge
	}
	if err != nil {
		k.err = err
		return nil, err
	}
	k.status, k.header, k.body = resp.StatusCode, resp.Header, body
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// clientOptions are those of every SDK over HTTP.
func (s *source) clientOptions(t *transport) azcore.ClientOptions {
	id := "gridfan"
	if v := s.parts.Version; v != "" {
		id += "/" + v
	}
	return azcore.ClientOptions{
		Transport: t,
		Retry:     policy.RetryOptions{MaxRetries: -1}, // when to try again is ours to say
		Telemetry: policy.TelemetryOptions{ApplicationID: id[:min(len(id), 24)]},
	}
}

// fault judges what came of a request whose client says err. what names what is
// asked.
func (k *kept) fault(err error, what string, secrets *secret.Veil) *Fault {
	switch {
	case k.err != nil:
		if errors.Is(k.err, errAnswerTooLarge) {
			return &Fault{Kind: Answer, Reason: k.err.Error()}
		}
		return &Fault{Kind: Unavailable, Reason: explain(k.err, secrets)}
	case k.status == 0:
		return &Fault{Kind: Unavailable, Reason: secrets.Printable(err.Error(), maxReason)}
	}
	f := &Fault{Kind: Unavailable, Reason: fmt.Sprintf("HTTP %d", k.status), After: min(mostAfter, retryafter.Parse(k.header.Get("Retry-After"), time.Now()))}
	switch k.status {
	case http.StatusUnauthorized, http.StatusForbidden:
		f.Kind = Credentials
		f.Reason += ": the key or identity may not do this"
	case http.StatusNotFound, http.StatusGone, http.StatusMethodNotAllowed:
		f.Kind = Configuration
		f.Reason += ": there is no such " + what
	case http.StatusTooManyRequests:
		f.Kind = Throttled
	case http.StatusBadRequest:
		f.Kind = Configuration
	case http.StatusRequestTimeout:
	default:
		switch {
		case k.status >= 300 && k.status < 400:
			f.Kind = Configuration
			f.Reason += ": redirects are not followed; is it the right address?"
		case k.status < 300:
			f.Kind = Answer
			f.Reason += ", and what came with it is no answer to this: " + secrets.Printable(err.Error(), 200)
			return f
		}
	}
	if code := k.header.Get("X-Ms-Error-Code"); code != "" {
		// Storage says the same in XML (learn.microsoft.com, rest/api/storageservices/
		// status-and-error-codes2; read 2026-11).
		f.Reason += ": " + secrets.Printable(code, 128)
	} else if text := secrets.Printable(string(k.body[:min(len(k.body), 4096)]), maxReason); text != "" {
		f.Reason += ": " + text
	}
	return f
}

// mostAfter bounds what a service may ask for.
const mostAfter = 10 * time.Minute
