package ingress

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"
)

// httpError is what a sender is told. Everything else a handler returns shows
// as "internal" outside.
type httpError struct {
	status     int
	code       string // stable; docs/http.md lists them
	detail     string // what to do about it
	retryAfter time.Duration
}

func (e *httpError) Error() string { return e.code + ": " + e.detail }

func refuse(status int, code, detail string) error {
	return &httpError{status: status, code: code, detail: detail}
}

// retryLater answers 503: the one code after which Event Grid, Dataverse and
// the Azure SDKs all send again.
func retryLater(code, detail string, after time.Duration) error {
	return &httpError{status: http.StatusServiceUnavailable, code: code, detail: detail, retryAfter: after}
}

// errorBody holds RFC 9457 problem members, and the error object that stock
// Azure clients read, which want application/json as its type.
type errorBody struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Code   string `json:"code"`
	Error  struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

func writeError(w http.ResponseWriter, err error) {
	var e *httpError
	if !errors.As(err, &e) {
		e = &httpError{status: http.StatusServiceUnavailable, code: "internal", detail: "an internal error; send it again", retryAfter: 30 * time.Second}
	}
	if e.retryAfter > 0 {
		// Go's Azure client gives up above 60 seconds, JavaScript's hammers on 0.
		seconds := min(60, max(1, int(e.retryAfter/time.Second)))
		w.Header().Set("Retry-After", strconv.Itoa(seconds))
	}
	body := errorBody{
		Type: "about:blank", Title: http.StatusText(e.status), Status: e.status,
		Detail: e.detail, Code: e.code,
	}
	body.Error.Code, body.Error.Message = e.code, e.detail
	b, _ := json.Marshal(body) // strings and numbers: it cannot fail
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Ms-Error-Code", e.code)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(e.status)
	_, _ = w.Write(append(b, '\n'))
}
