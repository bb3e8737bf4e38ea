package credentials

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/infra/retryafter"
	"github.com/gridfan/gridfan/infra/secret"
)

const (
	// maxAnswer is how long a token server's answer may be. Entra's tokens, with
	// their groups left out beyond 200, stay below 10 KiB.
	maxAnswer = 64 << 10

	// maxToken is the longest token that is used: more does not fit into the
	// request head that servers take (8 to 64 KiB).
	maxToken = 16 << 10

	// maxWords is how much of a token server's words may stand in a reason.
	maxWords = 256
)

// exchange carries one token request and the round trips that belong to it, and
// remembers what a reason needs. Libraries put whole answers into their errors, so
// none of their words is used.
type exchange struct {
	base http.RoundTripper
	hide *secret.Veil // of what is ours

	host    string // that was asked last
	status  int    // of the last answer; 0: none
	words   string // of an answer that is none, fit for a reason
	wait    time.Duration
	tooLong bool
	err     error // of the last round trip
}

var errTooLong = errors.New("the answer is too long")

// client follows no redirect: a token request carries a secret, which is for the
// host that the configuration names.
func (x *exchange) client() *http.Client {
	return &http.Client{
		Transport:     x,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// RoundTrip bounds the answer. One exchange makes one at a time.
func (x *exchange) RoundTrip(req *http.Request) (*http.Response, error) {
	x.host, x.status, x.words, x.wait, x.err = req.URL.Host, 0, "", 0, nil
	resp, err := x.base.RoundTrip(req)
	if err != nil {
		x.err = err
		return nil, err
	}
	defer resp.Body.Close()
	x.status = resp.StatusCode
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		x.err = err
	case len(body) > maxAnswer:
		x.tooLong, err = true, errTooLong
	}
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	if bytes.HasPrefix(bytes.TrimSpace(body), []byte("{")) {
		// Some servers forget to say so, and x/oauth2 would take it for a form.
		resp.Header.Set("Content-Type", "application/json")
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 || bytes.Contains(body, []byte(`"error"`)) {
		x.words = x.hide.Printable(serverWords(body), maxWords)
		x.wait = retryafter.Parse(resp.Header.Get("Retry-After"), time.Now())
	}
	return resp, nil
}

// serverWords finds what a refusal says: RFC 6749 §5.2, and the like of Azure.
func serverWords(body []byte) string {
	var r struct {
		Error       json.RawMessage `json:"error"`
		Description string          `json:"error_description"`
		Message     string          `json:"message"`
	}
	if json.Unmarshal(body, &r) != nil {
		return "" // a page; its words help nobody
	}
	var code string
	if json.Unmarshal(r.Error, &code) != nil {
		var inner struct{ Code, Message string }
		if json.Unmarshal(r.Error, &inner) == nil {
			code, r.Message = inner.Code, inner.Message
		}
	}
	if r.Description == "" {
		r.Description = r.Message
	}
	return strings.Trim(code+": "+r.Description, ": ")
}

// failure says why there is no token.
func (x *exchange) failure(ctx context.Context, fallback string) *Error {
	e := &Error{Wait: x.wait}
	host := x.host
	switch {
	case host == "":
		e.Reason = NoToken + ": " + fallback
		return e
	case ctx.Err() != nil:
		e.Reason = NoToken + " from " + host + ": no whole answer within " + fetchTimeout.String()
		return e
	case x.tooLong:
		e.Reason = NoToken + " from " + host + ": its answer is longer than " + strconv.Itoa(maxAnswer>>10) + " KiB"
		return e
	case x.err != nil:
		_, words := egress.Explain(x.err, x.hide.Printable)
		e.Reason = NoToken + " from " + host + ": " + words
		return e
	}
	code := "HTTP " + strconv.Itoa(x.status)
	switch {
	case x.status >= 300 && x.status < 400:
		code += ": redirects are not followed"
		e.refused = true
	case x.words != "":
		code += ": " + x.words
		fallthrough
	case x.status >= 400:
		e.refused = x.status < 500 && x.status != http.StatusTooManyRequests && x.status != http.StatusRequestTimeout
	default:
		code += ": " + fallback
	}
	e.Reason = NoToken + " from " + host + ": " + code
	return e
}

// checkToken says what keeps a token from being sent; empty for nothing.
func checkToken(value, kind string) string {
	switch {
	case value == "":
		return "its answer has no token"
	case kind != "" && !strings.EqualFold(kind, "bearer"):
		return "its token is not a bearer token"
	case len(value) > maxToken:
		return "its token is longer than " + strconv.Itoa(maxToken>>10) + " KiB"
	case strings.ContainsFunc(value, func(r rune) bool { return !inToken(r) }):
		return "its token has characters that no token has"
	}
	return ""
}
