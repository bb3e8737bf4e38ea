// Package webhook posts events to an HTTP endpoint: as CloudEvents in either content
// mode, in the Event Grid schema, or their data alone; one by one or, where the
// format has arrays, several at once. With keys requests are signed as Standard
// Webhooks says, and with a handshake the endpoint is asked first. It is one
// deliver.BatchSender.
//
// What an attempt guarantees:
//
//   - One Send, or SendBatch, is one POST, and before the first a handshake if there
//     is to be one. Nothing is repeated and no redirect is followed, so
//     neither the event nor the endpoint's key reaches a host that the
//     configuration does not name.
//   - The status decides, and decides alone: 2xx is delivered; 408, 425, 429 and
//     5xx are tried again, after Retry-After where the subscriber sent one, and
//     so is 407, which never got to the subscriber; any other 3xx or 4xx is a
//     rejection of this event. What follows the status can delay an attempt by a
//     second at most and changes nothing.
//   - Without a status the attempt failed, or was aborted when the caller
//     stopped it.
//   - What Options.Egress refuses is not connected to, and nothing is sent.
//   - No Reason shows the query or the user and password of the URL, a signing
//     key, a credential or a header of the configuration, even if the subscriber's
//     answer quotes them.
//
// In the formats of CloudEvents, attributes and data arrive exactly as they are in
// the event; for the others see the formats. Binary mode has two exceptions, both
// in the package's favour of being understood: attributes too big for headers go
// out in structured mode, and data never calls itself a CloudEvent (see Binary).
//
// Every Sender has its own connections: a subscriber that holds all of its own
// takes none of another's.
package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/reply"
)

const (
	// maxHeader is the size of attributes from which binary mode gives way to
	// structured. Node refuses a request head over 16 KiB with 431
	// (nodejs.org/api/cli.html, --max-http-header-size; 2026-11), and a refusal
	// would cost the event.
	maxHeader = 16 << 10

	// maxReply is how much of an answer is read so that its connection can be
	// used again; after a longer one a new connection is cheaper.
	maxReply = 64 << 10

	// replyGrace is how long the rest of an answer may take after its status:
	// ample for a few KiB from anywhere on Earth, little beside a deadline.
	replyGrace = time.Second

	// connectTimeout is that of the TCP connection, and once more of TLS.
	connectTimeout = egress.ConnectTimeout

	// idleTimeout is less than the 5 s after which Node and uvicorn close an
	// idle connection by default (nodejs.org/api/http.html,
	// server.keepAliveTimeout; uvicorn.org/settings, --timeout-keep-alive;
	// 2026-11). Had we kept it longer, a POST could meet the closing and fail
	// although the subscriber is well.
	idleTimeout = 4 * time.Second
)

// The media types spell the charset as the JavaScript SDK compares it, byte
// for byte (cloudevents 10.0.0; 2026-11).
const (
	mediaStructured = event.MediaStructured + "; charset=utf-8"
	mediaBatch      = event.MediaBatch + "; charset=utf-8"
)

// Options are what a Sender is told besides its Config.
type Options struct {
	// Concurrency is how many Sends run at once, and so the most connections
	// needed. 0 means any number.
	Concurrency int
	// Version of gridfan, for the User-Agent. Empty leaves it out.
	Version string
	// Keys sign every request, each with a signature of its own, so that a
	// receiver can go over from one to the next at any time between. The newest
	// comes first. None means unsigned.
	Keys []Key
	// Subscriber is the name of who gets the events, for those formats that tell
	// it. Empty leaves it out.
	Subscriber string
	// Rate is how many requests a second to ask leave for in a handshake. 0 asks
	// for none.
	Rate float64
	// Log gets what happens to tokens and certificates. Nil means nothing.
	Log *slog.Logger
	// Egress is how connections are made, also to token servers. Nil: to wherever
	// the URL leads, by the proxy of the environment.
	Egress *egress.Way
}

// Sender posts events to one endpoint. It is safe for concurrent use.
type Sender struct {
	format    Format
	transport *http.Transport
	plain     *plain // instead of the transport, where it can do that; or nil
	// request is what all requests have in common, header that of structured
	// ones, and batch that of batches. They are shared by running requests and
	// never changed.
	request *http.Request
	header  http.Header
	batch   http.Header
	// lines and batchLines are what header and batch are in a request.
	lines, batchLines []byte
	signer            *signer // nil without keys
	secrets           *reply.Secrets
	access            access

	// own are the headers of the configuration that depend on the event, for
	// which there are ownRoom bytes; ownSize is what all of the configuration's
	// may take.
	own              []ownHeader
	ownSize, ownRoom int

	agreement    *agreement // nil without a handshake
	topic        string     // where what we say ourselves in the Event Grid schema is from
	subscription string     // the subscriber's name as Event Grid would write it
}

var (
	_ deliver.BatchSender = (*Sender)(nil)
	_ deliver.Limited     = (*Sender)(nil)
)

// New makes a Sender for a valid cfg; it opens no connection yet. The caller
// closes it.
func New(cfg Config, opts Options) (*Sender, error) {
	if err := cfg.Validate("webhook"); err != nil {
		return nil, err
	}
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, err // Validate has parsed it
	}
	signer, err := newSigner(opts.Keys)
	if err != nil {
		return nil, err
	}
	headers, err := parseHeaders(cfg.Headers, "webhook.headers")
	if err != nil {
		return nil, err // Validate has parsed them
	}
	s := &Sender{
		format: cfg.Format,
		header: http.Header{"Content-Type": {mediaStructured}, "User-Agent": {"gridfan"}},
		signer: signer,

		agreement: newAgreement(cfg, opts),
		topic:     strings.TrimSuffix("/gridfan/"+opts.Subscriber, "/"), subscription: strings.ToUpper(opts.Subscriber),
	}
	s.secrets = hide(u, opts.Keys, append(secretsOf(headers), s.authorize(cfg, opts, u)...))
	if opts.Version != "" {
		s.header.Set("User-Agent", "gridfan/"+opts.Version)
	}
	if u.User != nil {
		// As a header it cannot come back in an error that quotes the URL.
		s.header.Set("Authorization", basicAuth(u.User))
		u.User = nil
	}
	s.setHeaders(headers)
	if s.agreement != nil && s.format != EventGrid {
		// Who has agreed is told by each delivery whose it is (§4.1.2).
		s.header[headerRequestOrigin] = []string{s.agreement.origin}
	}
	s.batch = s.header.Clone()
	s.batch.Set("Content-Type", mediaBatch)
	s.request = &http.Request{
		Method: http.MethodPost, URL: u, Host: u.Host,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	s.transport = &http.Transport{
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: connectTimeout,
		MaxConnsPerHost:     opts.Concurrency,
		MaxIdleConnsPerHost: max(opts.Concurrency, http.DefaultMaxIdleConnsPerHost),
		IdleConnTimeout:     idleTimeout,
		// Answers are thrown away or quoted: nothing to gain from gzip.
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxReply,
		ForceAttemptHTTP2:      true,
		// Without pings a dead HTTP/2 connection, which all requests share,
		// goes on taking them until the kernel gives up after 15 minutes.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
	}
	opts.Egress.Equip(s.transport, u)
	s.connect(cfg, opts)
	if s.lines, err = plainLines(nil, s.header); err != nil {
		return nil, err // Validate has seen them
	}
	if s.batchLines, err = plainLines(nil, s.batch); err != nil {
		return nil, err
	}
	if s.access.tls == nil {
		s.plain = newPlain(s.request, s.transport, opts.Concurrency)
	}
	return s, nil
}

// Send posts e once; see deliver.Sender.
func (s *Sender) Send(ctx context.Context, e *event.Event) deliver.Attempt {
	if a, ok := s.agreed(ctx); !ok {
		return a
	}
	var room *[]byte
	if s.plain != nil && s.format == Structured {
		// It has done with the body when it returns; the transport may not.
		room = bodies.Get().(*[]byte)
		defer bodies.Put(room)
	}
	header, own, body := s.one(e, room)
	if !own && (s.signer != nil || s.own != nil) {
		header, own = s.withRoom(header), true
	}
	s.addOwn(header, e)
	if s.signer != nil {
		s.signer.sign(header, webhookID(e.ID), body, time.Now())
	}
	return s.post(ctx, header, own, s.lines, body)
}

// bodies are rooms for the JSON of one event, of *[]byte.
var bodies = sync.Pool{New: func() any { return new([]byte) }}

// maxRoom is how large a room is kept.
const maxRoom = 64 << 10

// SendBatch posts events once, in the order given, as a JSON array; see
// deliver.BatchSender. It does so whatever the format is, see
// Config.ValidateBatch.
func (s *Sender) SendBatch(ctx context.Context, events []*event.Event) deliver.Attempt {
	if a, ok := s.agreed(ctx); !ok {
		return a
	}
	header, own, body := s.array(events)
	if s.signer != nil {
		if !own {
			header, own = s.withRoom(header), true
		}
		s.signer.sign(header, batchID(events), body, time.Now())
	}
	return s.post(ctx, header, own, s.batchLines, body)
}

// post makes the request; own says that header is this request's and not shared, and
// lines are those of a shared one.
func (s *Sender) post(ctx context.Context, header http.Header, own bool, lines, body []byte) deliver.Attempt {
	start := time.Now()
	var token *credentials.Token
	if s.access.tokens != nil {
		var err error
		if header, token, err = s.token(ctx, header, own); err != nil {
			return s.noAnswer(ctx, err, time.Since(start))
		}
		own = true
	}
	if own {
		lines = nil
	}
	resp, answer, err := s.roundTrip(ctx, http.MethodPost, header, lines, body, false)
	if err != nil {
		return s.noAnswer(ctx, err, time.Since(start))
	}
	if token != nil {
		return s.learn(token, s.judge(resp, token.Hide(answer)))
	}
	return s.judge(resp, answer)
}

// roundTrip makes one request and reads its answer, within limits; of a success only
// if whole is set. lines are those of header, or nil. There is either an answer or an
// error.
func (s *Sender) roundTrip(ctx context.Context, method string, header http.Header, lines, body []byte, whole bool) (*http.Response, []byte, error) {
	if s.plain != nil {
		return s.plain.do(ctx, method, header, lines, body, whole)
	}
	reqCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The transport itself and not an http.Client, because that follows
	// redirects, and answers one it cannot parse with an error in place of its
	// status.
	req := s.newRequest(reqCtx, header, body)
	req.Method = method
	resp, err := s.access.via.RoundTrip(req)
	if err != nil {
		return nil, nil, err
	}
	return resp, readReply(resp, cancel, whole), nil
}

// Close gives up idle connections; see deliver.Sender.
func (s *Sender) Close() {
	if s.plain != nil {
		s.plain.close()
	}
	s.transport.CloseIdleConnections()
	s.closeAccess()
}

func (s *Sender) newRequest(ctx context.Context, header http.Header, body []byte) *http.Request {
	req := s.request.WithContext(ctx)
	req.Header = header
	if len(body) == 0 {
		req.Body = http.NoBody
		return req
	}
	req.ContentLength = int64(len(body))
	// GetBody lets the transport take another connection when the first was
	// gone before anything was written to it.
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	req.Body, _ = req.GetBody()
	return req
}

// readReply reads the rest of an answer, within limits, so that the connection
// can be used again, and returns it unless it was a success and whole is not set. If
// time runs out, stop ends the request and what came so far must do.
func readReply(resp *http.Response, stop context.CancelFunc, whole bool) []byte {
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.Body == http.NoBody {
		return nil // after 101 follows no answer
	}
	defer time.AfterFunc(replyGrace, stop).Stop()
	if resp.StatusCode < 300 && !whole {
		_, _ = io.CopyN(io.Discard, resp.Body, maxReply) // the status has decided
		return nil
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxReply)) // likewise
	return body
}

// judge turns an answer into an Attempt.
func (s *Sender) judge(resp *http.Response, body []byte) deliver.Attempt {
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		if u, err := resp.Location(); err == nil { // one without a host leads to this one
			resp.Header.Set("Location", u.String())
		}
	}
	return s.secrets.Judge(resp.StatusCode, resp.Header, body)
}

func basicAuth(user *url.Userinfo) string {
	password, _ := user.Password()
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password))
}

// hide finds the secrets of u and strikes them out of texts, for the answers that
// quote their request. So it does with keys, which are in no request, but in the hands
// of whoever answers, and with more.
func hide(u *url.URL, keys []Key, more []string) *reply.Secrets {
	found := slices.Clone(more)
	add := func(s string) { found = append(found, s) }
	add(u.RawQuery)
	for part := range strings.FieldsFuncSeq(u.RawQuery, func(r rune) bool { return r == '&' || r == ';' }) {
		name, value, ok := strings.Cut(part, "=")
		if !ok {
			value = name // a bare key
		}
		add(value)
		if plain, err := url.QueryUnescape(value); err == nil {
			add(plain)
		}
	}
	if u.User != nil {
		add(u.User.String())
		add(u.User.Username())
		password, _ := u.User.Password()
		add(password)
		add(strings.TrimPrefix(basicAuth(u.User), "Basic "))
	}
	for _, key := range keys {
		for _, form := range key.secrets() {
			add(form)
		}
	}
	return reply.Hide(found...)
}
