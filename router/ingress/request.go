package ingress

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/gridfan/gridfan/router/auth"
)

// remote is the address of the sender: that of the connection, or, when that
// is a trusted proxy, the last address in X-Forwarded-For that is none.
func (in *Ingress) remote(r *http.Request) netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	addr = addr.Unmap().WithZone("")
	if !in.trusted(addr) {
		return addr
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop := strings.TrimSpace(hops[i])
		// Azure's gateways append the port.
		if ap, err := netip.ParseAddrPort(hop); err == nil {
			hop = ap.Addr().String()
		} else if strings.HasPrefix(hop, "[") && strings.HasSuffix(hop, "]") {
			hop = hop[1 : len(hop)-1]
		}
		a, err := netip.ParseAddr(hop)
		if err != nil {
			break // what stands before it was written by who knows whom
		}
		addr = a.Unmap().WithZone("")
		if !in.trusted(addr) {
			break
		}
	}
	return addr
}

func (in *Ingress) trusted(addr netip.Addr) bool {
	for _, p := range in.cfg.TrustedProxies {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// admit authenticates a request, takes it into its source's limits and returns
// its body. A stranger's body is not read, unless a signature over it is what
// the source asks for, and strangers use up nothing of the limits. The caller
// calls leave when there is no error.
func (in *Ingress) admit(w http.ResponseWriter, r *http.Request, s *source) (body []byte, leave func(), err error) {
	remote := in.remote(r)
	signed := s.auth.WantsBody(r, remote)
	if signed {
		if body, err = readBody(w, r, s.maxBody); err != nil {
			return nil, nil, err
		}
	}
	if err := s.auth.Check(r, remote, body); err != nil {
		return nil, nil, in.notAdmitted(w, s, remote, err)
	}
	if rec, ok := w.(*recorder); ok {
		rec.known = true
	}
	if err := in.fromAllowed(s, r, remote); err != nil {
		return nil, nil, err
	}
	if leave, err = s.enter(r.Context()); err != nil {
		return nil, nil, err
	}
	if !signed {
		body, err = readBody(w, r, s.maxBody)
	}
	if err == nil {
		body, err = unpack(r, body, s.maxBody)
	}
	if err != nil {
		leave()
		return nil, nil, err
	}
	return body, leave, nil
}

func (in *Ingress) notAdmitted(w http.ResponseWriter, s *source, remote netip.Addr, err error) error {
	if u, ok := errors.AsType[*auth.Unavailable](err); ok {
		if n, ok := s.undecided.allow(time.Now()); ok {
			in.log.Warn("sender could not be authenticated, asked to repeat", "source", s.Name, "reason", u.Reason, "error", u.Err, "not_logged_since_last_line", n)
		}
		return retryLater("cannot-authenticate", "authentication is not possible at the moment; send it again", u.RetryAfter)
	}
	if n, ok := s.refusals.allow(time.Now()); ok {
		reason := err.Error()
		if d, ok := errors.AsType[*auth.Denied](err); ok {
			reason = d.Reason
		}
		in.log.Warn("sender refused", "source", s.Name, "remote", remote, "reason", reason, "not_logged_since_last_line", n)
	}
	for _, c := range s.auth.Challenges() {
		w.Header().Add("WWW-Authenticate", c)
	}
	return refuse(http.StatusUnauthorized, "unauthorized", "this source does not accept the request's credentials; docs/http.md lists the ways to send them")
}

// fromAllowed checks the Event Grid subscription that delivers, if the source
// lists those it knows. Event Grid sends the name in upper case (captured
// delivery, AZ-220 course lab; read 2026-11).
func (in *Ingress) fromAllowed(s *source, r *http.Request, remote netip.Addr) error {
	if len(s.Subscriptions) == 0 {
		return nil
	}
	sent := r.Header.Get("aeg-subscription-name")
	for _, name := range s.Subscriptions {
		if strings.EqualFold(name, sent) {
			return nil
		}
	}
	if n, ok := s.refusals.allow(time.Now()); ok {
		in.log.Warn("sender refused", "source", s.Name, "remote", remote, "reason", "event subscription is not in push.subscriptions",
			"subscription", shorten(sent), "not_logged_since_last_line", n)
	}
	return refuse(http.StatusUnauthorized, "subscription-not-allowed", "the event subscription (aeg-subscription-name) is not in the source's push.subscriptions")
}

func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return nil, tooLarge(limit)
	case err != nil:
		// The sender went away or was too slow: whoever reads this answer
		// should repeat.
		return nil, retryLater("body-incomplete", "the body did not arrive whole; send it again", time.Second)
	}
	return body, nil
}

func tooLarge(limit int64) error {
	return refuse(http.StatusRequestEntityTooLarge, "body-too-large",
		fmt.Sprintf("the body is over this source's limit of %d bytes; see sources.*.limits.body", limit))
}

// unpack undoes gzip and takes the header off, so that what is kept in
// quarantine can be read again. Other encodings, and what is no gzip, stay as
// they are and are quarantined.
func unpack(r *http.Request, body []byte, limit int64) ([]byte, error) {
	if !strings.EqualFold(strings.TrimSpace(r.Header.Get("Content-Encoding")), "gzip") {
		return body, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return body, nil
	}
	plain, err := io.ReadAll(io.LimitReader(z, limit+1))
	switch {
	case err != nil:
		return body, nil
	case int64(len(plain)) > limit:
		return nil, tooLarge(limit)
	}
	r.Header.Del("Content-Encoding")
	return plain, nil
}

// enter takes a request into a source's limits; leave ends it. A source that
// floods waits for itself here, before it can take slots from others.
func (s *source) enter(ctx context.Context) (leave func(), err error) {
	if s.rate != nil && !s.rate.Allow() {
		// 429 would do for Event Grid; Dataverse repeats only 502 to 504.
		return nil, retryLater("rate-limit", "this source sends more than its limit; send it again", 5*time.Second)
	}
	if !s.slots.TryAcquire(1) {
		wait, cancel := context.WithTimeout(ctx, maxEntryWait)
		defer cancel()
		if s.slots.Acquire(wait, 1) != nil {
			return nil, retryLater("overloaded", "too many requests of this source are under way; send it again", 5*time.Second)
		}
	}
	return func() { s.slots.Release(1) }, nil
}

// maxEntryWait is how long a request waits for others of its source.
const maxEntryWait = 5 * time.Second
