// Package request asks a source for a page over HTTP, and judges what it answers:
// what the pollers of OData and of other HTTP services have in common.
//
// A Client belongs to one source. It shows the source's credentials to the origin of
// its URL and to no other, follows no redirect, reads no more of an answer than it
// may, and puts what goes wrong into the words of package poll, without secrets.
package request

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/infra/retryafter"
	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/poll"
)

// DefaultMaxPage is how large a page may be by default: 5,000 rows of 12 KiB. It is
// in memory for as long as it is worked on.
const (
	DefaultMaxPage = 64 << 20
	leastMaxPage   = 64 << 10
	mostMaxPage    = 1 << 30
)

// maxWords is how much of an answer may stand in a reason, and maxRefusal how much
// of it is read to find that.
const (
	maxWords   = 256
	maxRefusal = 64 << 10
)

// Target is what a Client asks. It is part of the configuration of sources.
type Target struct {
	// URL is where the source is.
	URL string `json:"url"`
	// Auth is what it is shown. Nil: nothing.
	Auth *credentials.Auth `json:"auth,omitempty"`
	// TLS is how its certificate is verified and which one it is shown.
	TLS *credentials.TLS `json:"tls,omitempty"`
	// MaxPage is how many bytes one answer may have, unpacked. Default 64 MiB.
	MaxPage int64 `json:"maxPage,omitempty"`
}

// Validate sets defaults and reports every problem, each beginning with the path of
// its key below path.
func (t *Target) Validate(path string) error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s.%s: %s", path, key, fmt.Sprintf(format, args...)))
	}
	u, err := url.Parse(t.URL)
	switch {
	case t.URL == "":
		bad("url", "missing; want the https URL of the source")
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		// The URL itself may hold a key: it is not repeated.
		bad("url", "want https://host/path")
	case u.User != nil:
		bad("url", "a user and password do not belong here; use auth.basic")
	case u.Fragment != "":
		bad("url", "a #fragment is never sent; leave it out")
	case u.Scheme == "http" && t.Auth != nil && !loopback(u.Hostname()):
		bad("url", "want https: the credentials go over this connection")
	case u.Scheme == "http" && t.TLS != nil:
		bad("tls", "the URL is http; write https, or leave tls out")
	}
	if t.Auth != nil {
		if err := t.Auth.Validate(path + ".auth"); err != nil {
			errs = append(errs, err)
		}
	}
	if t.TLS != nil {
		if err := t.TLS.Validate(path + ".tls"); err != nil {
			errs = append(errs, err)
		}
	}
	if t.MaxPage == 0 {
		t.MaxPage = DefaultMaxPage
	}
	if t.MaxPage < leastMaxPage || t.MaxPage > mostMaxPage {
		bad("maxPage", "want 64KiB to 1GiB, got %d bytes", t.MaxPage)
	}
	return errors.Join(errs...)
}

// loopback says whether a host is this machine whatever a name server says.
func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// Options are what a Client is told besides its Target.
type Options struct {
	// Egress is how the source is reached. Nil: wherever its URL leads, by the
	// proxies of the environment.
	Egress *egress.Way
	// Log gets what happens to tokens and certificates. Nil means nothing.
	Log *slog.Logger
}

// Client asks one source. It is safe for concurrent use.
type Client struct {
	target  Target
	base    *url.URL
	client  *http.Client
	idle    func()
	creds   *credentials.Credentials // nil: none
	header  http.Header              // of every request
	query   url.Values               // of every request
	secrets *secret.Veil
}

// New makes a Client of a valid target; it asks for nothing yet. The caller closes it.
func New(target Target, opts Options) (*Client, error) {
	u, err := url.Parse(target.URL)
	if err != nil {
		return nil, errors.New("url: want https://host/path")
	}
	log := opts.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	transport := &http.Transport{
		TLSHandshakeTimeout:    egress.ConnectTimeout,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    2,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
	}
	opts.Egress.Equip(transport, u)
	c := &Client{target: target, base: u, idle: transport.CloseIdleConnections, header: http.Header{}}
	var via http.RoundTripper = transport
	if target.TLS != nil {
		t := credentials.NewTransport(transport, *target.TLS, log)
		via, c.idle = t, t.CloseIdleConnections
	}
	c.client = &http.Client{
		Transport:     via,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if target.Auth != nil {
		c.creds = credentials.New(target.Auth, credentials.Options{Egress: opts.Egress, Log: log})
		c.header, c.query = c.creds.Static()
		c.secrets = secret.NewVeil(target.Auth.Secrets()...)
	}
	return c, nil
}

// Close ends connections that are kept. No Do follows.
func (c *Client) Close() {
	if c.creds != nil {
		c.creds.Close()
	}
	c.idle()
}

// Answer is one answer, read whole.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	// Asked is when the request went out, by this machine's clock; Date is the
	// source's clock when it answered, zero if it does not tell.
	Asked, Date time.Time

	words *secret.Veil
}

// ErrSilent is wrapped by the error of a request that was not answered in its time,
// not even by a status.
var ErrSilent = errors.New("no answer in time")

// silence is a Fault that wraps ErrSilent, too.
type silence struct{ fault *poll.Fault }

func (e *silence) Error() string   { return e.fault.Error() }
func (e *silence) Unwrap() []error { return []error{e.fault, ErrSilent} }

// Do makes one request to link, an absolute URL of the source's own origin, and
// gives its answer, whatever its status. With a token that is no longer taken it asks
// a second time, with another. An error is a *poll.Fault, or that of a ctx that was
// canceled.
func (c *Client) Do(ctx context.Context, method, link string, header http.Header, body []byte) (*Answer, error) {
	for again := true; ; again = false {
		a, renewed, err := c.once(ctx, method, link, header, body)
		if err != nil || !renewed || !again {
			return a, err
		}
	}
}

func (c *Client) once(ctx context.Context, method, link string, header http.Header, body []byte) (_ *Answer, renewed bool, _ error) {
	var content io.Reader
	if body != nil {
		content = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.withKey(link), content)
	if err != nil {
		return nil, false, poll.Faultf(poll.Answer, 0, "a link that cannot be asked for")
	}
	if !c.Own(req.URL) {
		return nil, false, poll.Faultf(poll.Answer, 0, "a link leads to another origin than the source's: refused")
	}
	for _, h := range []http.Header{header, c.header} {
		maps.Copy(req.Header, h)
	}
	words := c.secrets
	var token *credentials.Token
	if c.creds != nil && c.creds.Tokens() {
		if token, err = c.creds.Apply(ctx, req.Header); err != nil {
			if ctx.Err() == context.Canceled {
				return nil, false, ctx.Err()
			}
			return nil, false, poll.Faultf(poll.Credentials, 0, "%s", words.Printable(err.Error(), maxWords))
		}
	}
	asked := time.Now()
	resp, err := c.client.Do(req)
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, false, &silence{poll.Faultf(poll.Unavailable, 0, "no answer within %s", time.Since(asked).Round(100*time.Millisecond))}
		}
		return nil, false, c.failed(ctx, err, asked)
	}
	defer resp.Body.Close()
	a := &Answer{Status: resp.StatusCode, Header: resp.Header, Asked: asked, words: words}
	if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		a.Date = at
	}
	most := c.target.MaxPage
	if a.Status < 200 || a.Status > 299 {
		most = maxRefusal
	} else if resp.ContentLength > most {
		return nil, false, c.tooLong(a.Status)
	}
	a.Body, err = io.ReadAll(io.LimitReader(resp.Body, most+1))
	switch {
	case a.Status > 299 || a.Status < 200:
		// What is there of a refusal will do.
		a.Body = a.Body[:min(int64(len(a.Body)), most)]
		if token != nil {
			a.Body = token.Hide(a.Body)
		}
	case err != nil:
		return nil, false, c.failed(ctx, err, asked)
	case int64(len(a.Body)) > most:
		return nil, false, c.tooLong(a.Status)
	}
	if token != nil {
		renewed = c.creds.Answered(token, a.Status)
	}
	return a, renewed, nil
}

func (c *Client) failed(ctx context.Context, err error, asked time.Time) error {
	switch ctx.Err() {
	case context.Canceled:
		return ctx.Err()
	case context.DeadlineExceeded:
		return poll.Faultf(poll.Unavailable, 0, "no whole answer within %s", time.Since(asked).Round(100*time.Millisecond))
	}
	trouble, words := egress.Explain(err, c.secrets.Printable)
	if trouble == egress.AddressTrouble {
		return poll.Faultf(poll.Configuration, 0, "%s", words)
	}
	return poll.Faultf(poll.Unavailable, 0, "%s", words)
}

func (c *Client) tooLong(status int) error {
	return poll.Faultf(poll.Answer, status, "the page is longer than %d bytes; ask for fewer rows (pageSize) or columns, or raise maxPage", c.target.MaxPage)
}

// withKey adds the parameters of the credentials to a link that lacks them.
func (c *Client) withKey(link string) string {
	for name := range c.query {
		link = without(link, name)
		sep := "?"
		if strings.Contains(link, "?") {
			sep = "&"
		}
		link += sep + url.QueryEscape(name) + "=" + url.QueryEscape(c.query.Get(name))
	}
	return link
}

// without takes a parameter out of a link and leaves all else as it is.
func without(link, name string) string {
	head, query, ok := strings.Cut(link, "?")
	if !ok {
		return link
	}
	var kept []string
	for part := range strings.SplitSeq(query, "&") {
		key, _, _ := strings.Cut(part, "=")
		if plain, err := url.QueryUnescape(key); err != nil || plain != name {
			kept = append(kept, part)
		}
	}
	if len(kept) == 0 {
		return head
	}
	return head + "?" + strings.Join(kept, "&")
}

// Own says whether a URL is of the source's origin: scheme, host and port.
func (c *Client) Own(u *url.URL) bool {
	return strings.EqualFold(u.Scheme, c.base.Scheme) && strings.EqualFold(u.Hostname(), c.base.Hostname()) && port(u) == port(c.base)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if strings.EqualFold(u.Scheme, "https") {
		return "443"
	}
	return "80"
}

// Follow gives the absolute form of a link in an answer to a request for from:
// what is relative is completed, and an absolute one stays as it is, byte for byte,
// but for a key of the credentials, which does not belong into a checkpoint. what is
// the link's name, for the error, a *poll.Fault.
func (c *Client) Follow(from, link, what string) (string, error) {
	plain := make([]byte, 0, len(link))
	for i := range len(link) {
		// What no request line may hold is encoded; nothing else is touched.
		switch b := link[i]; {
		case b == ' ' || b >= 0x7f:
			plain = fmt.Appendf(plain, "%%%02X", b)
		case b < ' ':
			return "", poll.Faultf(poll.Answer, 200, "%s has a control character", what)
		default:
			plain = append(plain, b)
		}
	}
	u, err := url.Parse(string(plain))
	if err != nil || link == "" {
		return "", poll.Faultf(poll.Answer, 200, "%s is no URL", what)
	}
	if u.Scheme == "" {
		base, err := url.Parse(from)
		if err != nil {
			return "", poll.Faultf(poll.Answer, 200, "%s is no URL", what)
		}
		u = base.ResolveReference(u)
		plain = []byte(u.String())
	}
	if !c.Own(u) || u.User != nil {
		return "", poll.Faultf(poll.Answer, 200, "%s leads to %s and not to the source's own origin: refused", what, c.secrets.Printable(u.Scheme+"://"+u.Host, maxWords))
	}
	absolute := string(plain)
	for name := range c.query {
		absolute = without(absolute, name)
	}
	return absolute, nil
}

// Refusal is what an answer says that is not a page.
type Refusal struct {
	Code    string
	Message string
}

// Refusal reads the words of an answer: {"error":{"code","message"}}, as OData and
// Azure have it, {"error","message"} or problem details. Those of a page in HTML
// help nobody.
func (a *Answer) Refusal() Refusal {
	var r struct {
		Error   json.RawMessage `json:"error"`
		Code    json.RawMessage `json:"code"`
		Message string          `json:"message"`
		Title   string          `json:"title"`
		Detail  string          `json:"detail"`
	}
	if json.Unmarshal(a.Body, &r) != nil {
		if text := strings.TrimSpace(string(a.Body)); text != "" && !strings.HasPrefix(text, "<") && !strings.HasPrefix(text, "{") {
			return Refusal{Message: a.words.Printable(text, maxWords)}
		}
		return Refusal{}
	}
	out := Refusal{Code: scalar(r.Code), Message: r.Message}
	if text := scalar(r.Error); text != "" {
		out.Code = text
	} else if len(r.Error) > 0 {
		var inner struct {
			Code       json.RawMessage `json:"code"`
			Message    json.RawMessage `json:"message"`
			InnerError struct {
				Message string `json:"message"`
			} `json:"innererror"`
		}
		if json.Unmarshal(r.Error, &inner) == nil {
			out.Code, out.Message = scalar(inner.Code), scalar(inner.Message)
			// F&O says "An error has occurred." and means what is inside.
			if m := inner.InnerError.Message; m != "" && m != out.Message {
				out.Message = strings.TrimSpace(out.Message + " " + m)
			}
		}
	}
	if out.Message == "" {
		out.Message = strings.Trim(r.Title+": "+r.Detail, ": ")
	}
	out.Code, out.Message = a.words.Printable(out.Code, 64), a.words.Printable(out.Message, maxWords)
	return out
}

func scalar(v json.RawMessage) string {
	var s string
	if json.Unmarshal(v, &s) == nil {
		return s
	}
	var n json.Number
	if json.Unmarshal(v, &n) == nil {
		return n.String()
	}
	return ""
}

// Judge says what an answer other than a page means: a *poll.Throttled or a
// *poll.Fault, nil for 2xx.
func (a *Answer) Judge() error {
	switch {
	case a.Status >= 200 && a.Status <= 299:
		return nil
	case a.Status >= 300 && a.Status <= 399:
		to := ""
		if u, err := url.Parse(a.Header.Get("Location")); err == nil && u.Host != "" {
			to = " (this one leads to " + a.words.Printable(u.Host, maxWords) + ")"
		}
		return poll.Faultf(poll.Configuration, a.Status, "redirects are not followed%s; is it the right URL, and does it take these credentials?", to)
	case a.Status < 200:
		return poll.Faultf(poll.Answer, a.Status, "not an answer")
	}
	r := a.Refusal()
	reason := strings.Trim(r.Code+": "+r.Message, ": ")
	if reason == "" {
		reason = http.StatusText(a.Status)
	}
	now := a.Date
	if now.IsZero() {
		now = time.Now()
	}
	after := retryafter.Parse(a.Header.Get("Retry-After"), now)
	switch {
	case a.Status == http.StatusTooManyRequests,
		// F&O and gateways say so when they mean the same.
		a.Status == http.StatusServiceUnavailable && after > 0:
		return &poll.Throttled{Status: a.Status, After: after, Reason: reason}
	case a.Status == http.StatusUnauthorized, a.Status == http.StatusForbidden:
		return poll.Faultf(poll.Credentials, a.Status, "%s", reason)
	case a.Status == http.StatusRequestTimeout, a.Status == http.StatusTooEarly, a.Status == http.StatusProxyAuthRequired,
		a.Status == http.StatusNetworkAuthenticationRequired, a.Status >= 500:
		return poll.Faultf(poll.Unavailable, a.Status, "%s", reason)
	}
	return poll.Faultf(poll.Configuration, a.Status, "%s", reason)
}

// NotJSON says what a body is that was to be JSON and is not; nil if it may be.
func (a *Answer) NotJSON() error {
	body := bytes.TrimSpace(bytes.TrimPrefix(a.Body, []byte("\xef\xbb\xbf")))
	switch {
	case len(body) == 0:
		return poll.Faultf(poll.Answer, a.Status, "the answer is empty; want JSON")
	case body[0] == '<':
		return poll.Faultf(poll.Answer, a.Status, "the answer is an HTML or XML page, not JSON: is the URL that of the API, and is there a sign-in page or a proxy before it?")
	case body[0] != '{' && body[0] != '[':
		return poll.Faultf(poll.Answer, a.Status, "the answer is not JSON")
	}
	return nil
}

// Identity names whom the source sees asking: its origin and the credentials. It has
// no secret in it.
func (t *Target) Identity() string {
	u, err := url.Parse(t.URL)
	if err != nil {
		return ""
	}
	h := sha256.New()
	if t.Auth != nil {
		// Without the secrets, of which even a hash says something. Two keys that
		// differ in nothing else share their limits, which does no harm.
		_ = json.NewEncoder(h).Encode(t.Auth.Redacted())
	}
	if t.TLS != nil {
		_ = json.NewEncoder(h).Encode(t.TLS)
	}
	return strings.ToLower(u.Scheme+"://"+u.Host) + "#" + hex.EncodeToString(h.Sum(nil)[:6])
}
