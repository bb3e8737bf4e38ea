package pull

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gridfan/gridfan/subscribers/deliver"
)

// The bounds of the operations are those of Event Grid namespaces (aznamespaces
// v1.0.0, options.go; read 2026-11), but that any delay up to an hour will do.
const (
	maxEvents   = 100
	minWait     = 10 * time.Second
	maxWait     = 120 * time.Second
	defaultWait = 60 * time.Second

	// maxBody is more than maxTokens take.
	maxBody   = 128 << 10
	maxTokens = 1000
	// settleAtOnce tokens of one request share their syncs of the disk.
	settleAtOnce = 64
	// settleWithin is how long the broker may take; stock clients repeat after a 503.
	settleWithin = 20 * time.Second
)

// Codes of tokens that could not be settled.
const (
	codeLost = "TokenLost"
	codeBad  = "BadToken"
	codeBusy = "ServerBusy"
)

// Owns says whether a path is one of a Server's.
func Owns(path string) bool {
	rest, ok := strings.CutPrefix(path, "/topics/")
	_, rest, found := strings.Cut(rest, "/")
	return ok && found && strings.HasPrefix(rest, "eventsubscriptions/")
}

// request is what a path and method say.
type request struct {
	topic, subscriber, operation string
}

func parsePath(r *http.Request) (request, error) {
	parts := strings.Split(strings.TrimPrefix(r.URL.EscapedPath(), "/topics/"), "/")
	if len(parts) != 3 || parts[1] != "eventsubscriptions" {
		return request{}, errNoOperation
	}
	// A colon of the name itself would come escaped.
	name, operation, _ := strings.Cut(parts[2], ":")
	topic, err := url.PathUnescape(parts[0])
	if err == nil {
		name, err = url.PathUnescape(name)
	}
	return request{topic, name, operation}, err
}

// httpError is what a receiver is told.
type httpError struct {
	status     int
	code       string // stable; docs/pull.md lists them
	detail     string
	retryAfter time.Duration
}

func (e *httpError) Error() string { return e.code + ": " + e.detail }

func refuse(status int, code, format string, args ...any) error {
	return &httpError{status: status, code: code, detail: fmt.Sprintf(format, args...)}
}

func later(code, detail string, after time.Duration) error {
	return &httpError{status: http.StatusServiceUnavailable, code: code, detail: detail, retryAfter: after}
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec := &recorder{ResponseWriter: w, code: http.StatusOK}
	label, operation := "unknown", "unknown"
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic while serving a receiver", "subscriber", label, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			if !rec.begun {
				writeError(rec, later("internal", "an internal error; send it again", 30*time.Second))
			}
		}
		s.metrics.requests.WithLabelValues(label, operation, strconv.Itoa(rec.code)).Inc()
	}()
	req, err := parsePath(r)
	if err != nil {
		writeError(rec, refuse(http.StatusNotFound, "not-found", "%s", errNoOperation))
		return
	}
	serve, method := s.operation(req.operation)
	q, err := s.admit(rec, r, req, serve != nil, method)
	if q != nil {
		label, operation = q.name, req.operation
	}
	if err == nil {
		err = serve(rec, r, q)
	}
	switch {
	case err == nil || rec.begun:
	case req.operation == "stream" && comesBack(r, err):
		writeComeBack(rec, err)
	default:
		writeError(rec, err)
	}
}

type operation func(w http.ResponseWriter, r *http.Request, q *queue) error

func (s *Server) operation(name string) (serve operation, method string) {
	switch name {
	case "receive":
		return s.receive, http.MethodPost
	case "acknowledge":
		return s.ends(name, deliver.Acknowledge), http.MethodPost
	case "release":
		return s.ends(name, deliver.Release), http.MethodPost
	case "reject":
		return s.ends(name, deliver.Reject), http.MethodPost
	case "renewLock":
		return s.renew, http.MethodPost
	case "stream":
		return s.stream, http.MethodGet
	}
	return nil, ""
}

// admit finds the subscriber and asks whether the request may have its events.
// Strangers learn nothing else.
func (s *Server) admit(w http.ResponseWriter, r *http.Request, req request, known bool, method string) (*queue, error) {
	q, ready := s.find(req.subscriber)
	switch {
	case s.stopped():
		return nil, later("stopping", "this process is stopping; send it again", 5*time.Second)
	case req.topic != Topic:
		return nil, refuse(http.StatusNotFound, "unknown-topic", "there is one topic, %s; what it gives is said by the subscriber's name", Topic)
	case !known:
		return nil, refuse(http.StatusNotFound, "not-found", "%s", errNoOperation)
	case q == nil && !ready:
		return nil, later("starting", "this process is starting; send it again", 5*time.Second)
	case q == nil:
		return nil, refuse(http.StatusNotFound, "unknown-subscriber", "there is no subscriber of this name that fetches its events, or it is parked")
	}
	err := q.door.Admit(r)
	var denied *Denied
	var unavailable *Unavailable
	switch {
	case errors.As(err, &denied):
		s.refused(q.name, err)
		for _, c := range denied.Challenges {
			w.Header().Add("WWW-Authenticate", c)
		}
		return q, refuse(http.StatusUnauthorized, "unauthorized", "the subscriber does not accept the request's credentials; docs/pull.md says how to send them")
	case errors.As(err, &unavailable):
		s.refused(q.name, err)
		return q, &httpError{http.StatusServiceUnavailable, "cannot-authenticate", "authentication is not possible at the moment; send it again", unavailable.RetryAfter}
	case err != nil:
		return q, err
	case r.Method != method:
		w.Header().Set("Allow", method)
		return q, refuse(http.StatusMethodNotAllowed, "method-not-allowed", "want %s", method)
	}
	return q, nil
}

// number reads a whole number from the query, or gives its default.
func number(r *http.Request, name string, least, most, otherwise int) (int, error) {
	values := r.URL.Query()[name]
	if len(values) == 0 {
		return otherwise, nil
	}
	n, err := strconv.Atoi(values[0])
	if err != nil || len(values) > 1 || n < least || n > most {
		return 0, refuse(http.StatusBadRequest, "bad-parameter", "%s: want a whole number from %d to %d", name, least, most)
	}
	return n, nil
}

// received is the answer to receive.
type received struct {
	Value []detail `json:"value"`
}

type detail struct {
	Broker struct {
		LockToken     string `json:"lockToken"`
		DeliveryCount int    `json:"deliveryCount"`
	} `json:"brokerProperties"`
	Event json.RawMessage `json:"event"`
}

func (s *Server) receive(w http.ResponseWriter, r *http.Request, q *queue) error {
	n, err := number(r, "maxEvents", 1, maxEvents, 1)
	if err != nil {
		return err
	}
	seconds, err := number(r, "maxWaitTime", int(minWait.Seconds()), int(maxWait.Seconds()), int(defaultWait.Seconds()))
	if err != nil {
		return err
	}
	// There is none; reading it to its end lets the server notice when the receiver
	// goes.
	if _, err := readBody(w, r); err != nil {
		return err
	}
	unhurried(w)
	items, err := q.receive(r.Context(), n, time.Duration(seconds)*time.Second)
	if err != nil {
		return q.unserved(r.Context(), err)
	}
	answer := received{Value: make([]detail, len(items))}
	for i, item := range items {
		d := &answer.Value[i]
		d.Broker.LockToken, d.Broker.DeliveryCount = item.Token, item.Count
		d.Event = item.Event.JSON()
	}
	if err := writeJSON(w, answer); err != nil {
		for _, item := range items {
			go q.release(item.Lock)
		}
	}
	return nil
}

// unserved says why a receiver gets nothing.
func (q *queue) unserved(ctx context.Context, err error) error {
	switch {
	case ended(ctx, err):
		return later("cancelled", "the request ended before there was an event", time.Second)
	case errors.Is(err, errStopping):
		return later("starting", "the subscriber is being changed; send it again", time.Second)
	case errors.Is(err, errCrowded):
		return later("too-many-receivers", fmt.Sprintf("%d receivers wait for this subscriber's events already", maxReceivers), 10*time.Second)
	}
	return later("broker-unavailable", "the broker does not answer; send it again", 5*time.Second)
}

// unhurried takes the server's deadlines, which are made for senders, from a
// request that waits.
func unhurried(w http.ResponseWriter) {
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Time{})  // a writer without deadlines has none
	_ = c.SetWriteDeadline(time.Time{}) // the same
}

// hurried gives a request that has waited a time for its answer.
func hurried(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeWithin)) // a writer without deadlines has none
}

// writeWithin is how long a receiver may take for an answer.
const writeWithin = 30 * time.Second

// settled is the answer to the other operations. Its lists are never null.
type settled struct {
	Failed    []failedToken `json:"failedLockTokens"`
	Succeeded []string      `json:"succeededLockTokens"`
}

type failedToken struct {
	LockToken string     `json:"lockToken"`
	Error     tokenError `json:"error"`
}

type tokenError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (s *Server) ends(name string, end deliver.LockEnd) operation {
	return func(w http.ResponseWriter, r *http.Request, q *queue) error {
		delay := 0
		if end == deliver.Release {
			var err error
			if delay, err = number(r, "releaseDelayInSeconds", 0, int(deliver.MaxReleaseDelay.Seconds()), 0); err != nil {
				return err
			}
		}
		return s.settle(w, r, q, name, func(ctx context.Context, token string) error {
			return q.serving().EndLock(ctx, token, end, time.Duration(delay)*time.Second)
		})
	}
}

func (s *Server) renew(w http.ResponseWriter, r *http.Request, q *queue) error {
	return s.settle(w, r, q, "renewLock", func(ctx context.Context, token string) error {
		return q.serving().Renew(ctx, token)
	})
}

// settle does something with each token of the body. It answers 200 even if all
// failed: which ones is in the body.
func (s *Server) settle(w http.ResponseWriter, r *http.Request, q *queue, name string, do func(context.Context, string) error) error {
	tokens, err := readTokens(w, r)
	if err != nil {
		return err
	}
	if q.serving() == nil {
		return later("starting", "the subscriber is being started; send it again", time.Second)
	}
	// Whoever hangs up has still said it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), settleWithin)
	defer cancel()
	answer := settled{Failed: []failedToken{}, Succeeded: []string{}}
	var mu sync.Mutex // guards answer and away
	away := 0
	var group errgroup.Group
	group.SetLimit(settleAtOnce)
	for _, token := range tokens {
		group.Go(func() error {
			err := do(ctx, token)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				answer.Succeeded = append(answer.Succeeded, token)
				s.metrics.ends.WithLabelValues(q.name, name, "done").Inc()
				return nil
			}
			e, result := tokenError{codeBusy, deliver.ErrLockBusy.Error()}, "busy"
			switch {
			case errors.Is(err, deliver.ErrLockLost):
				e, result = tokenError{codeLost, err.Error()}, "lost"
			case errors.Is(err, deliver.ErrLockToken):
				e, result = tokenError{codeBad, err.Error()}, "bad"
			default:
				away++
				s.log.Debug("lock not ended", "subscriber", q.name, "operation", name, "error", err)
			}
			s.metrics.ends.WithLabelValues(q.name, name, result).Inc()
			answer.Failed = append(answer.Failed, failedToken{shorten(token), e})
			return nil
		})
	}
	_ = group.Wait() // none answers an error
	if len(tokens) > 0 && away == len(tokens) {
		// Stock clients repeat it.
		return later("broker-unavailable", "nothing could be stored; send it again", time.Second)
	}
	_ = writeJSON(w, answer) // it is done, whether or not its receiver hears of it
	return nil
}

// shorten keeps what is no token from filling an answer.
func shorten(token string) string {
	const most = 200
	if len(token) <= most {
		return token
	}
	return strings.ToValidUTF8(token[:most], "") + "…"
}

func readTokens(w http.ResponseWriter, r *http.Request) ([]string, error) {
	body, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	var sent struct {
		// Go's client sends null for none.
		LockTokens []string `json:"lockTokens"`
	}
	if err := json.Unmarshal(body, &sent); err != nil {
		return nil, refuse(http.StatusBadRequest, "bad-body", `the body is not what it should be: want {"lockTokens":["…"]}`)
	}
	if n := len(sent.LockTokens); n > maxTokens {
		return nil, refuse(http.StatusBadRequest, "bad-body", "lockTokens: want at most %d, got %d", maxTokens, n)
	}
	return sent.LockTokens, nil
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return nil, refuse(http.StatusRequestEntityTooLarge, "body-too-large", "the body is over %d bytes", maxBody)
	case err != nil:
		return nil, later("body-incomplete", "the body did not arrive whole; send it again", time.Second)
	}
	return body, nil
}

// recorder keeps what was answered.
type recorder struct {
	http.ResponseWriter
	code  int
	begun bool
}

func (r *recorder) WriteHeader(code int) {
	r.code, r.begun = code, true
	r.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// errorBody holds RFC 9457 problem members, and the error object that stock Azure
// clients read, which want application/json as its type.
type errorBody struct {
	Type   string     `json:"type"`
	Title  string     `json:"title"`
	Status int        `json:"status"`
	Detail string     `json:"detail"`
	Code   string     `json:"code"`
	Error  tokenError `json:"error"`
}

func writeError(w http.ResponseWriter, err error) {
	var e *httpError
	if !errors.As(err, &e) {
		e = &httpError{http.StatusServiceUnavailable, "internal", "an internal error; send it again", 30 * time.Second}
	}
	if e.retryAfter > 0 {
		// Go's Azure client gives up above 60 seconds, JavaScript's hammers on 0.
		w.Header().Set("Retry-After", strconv.Itoa(min(60, max(1, int(e.retryAfter/time.Second)))))
	}
	b, _ := json.Marshal(errorBody{ // texts and numbers: it cannot fail
		Type: "about:blank", Title: http.StatusText(e.status), Status: e.status,
		Detail: e.detail, Code: e.code, Error: tokenError{e.code, e.detail},
	})
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Ms-Error-Code", e.code)
	h.Set("X-Content-Type-Options", "nosniff")
	hurried(w)
	w.WriteHeader(e.status)
	_, _ = w.Write(append(b, '\n')) // the receiver is gone if this fails
}

func writeJSON(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	hurried(w)
	w.WriteHeader(http.StatusOK)
	if _, err = w.Write(append(b, '\n')); err == nil {
		err = http.NewResponseController(w).Flush()
	}
	return err
}
