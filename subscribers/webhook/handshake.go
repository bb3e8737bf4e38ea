package webhook

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gridfan/gridfan/schemas/eventgrid"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// Handshake says whether the endpoint is asked before it is sent anything: in the
// way of CloudEvents (HTTP 1.1 Web Hooks for Event Delivery 1.0.2 §4), and with
// format EventGrid in that of Event Grid
// (learn.microsoft.com/azure/event-grid/end-point-validation-event-grid-events-schema;
// both read 2026-11).
type Handshake struct {
	On bool
	// Origin is who asks, a DNS name that stands for all replicas. Default
	// "gridfan". It has no part in Event Grid's handshake.
	Origin string
}

const defaultOrigin = "gridfan"

// IsZero says whether there is no handshake.
func (h Handshake) IsZero() bool { return !h.On }

type handshakeForm struct {
	Origin string `json:"origin,omitempty"`
}

// MarshalJSON writes true, false, or what there is to say.
func (h Handshake) MarshalJSON() ([]byte, error) {
	if !h.On || h.Origin == "" {
		return json.Marshal(h.On)
	}
	return json.Marshal(handshakeForm{h.Origin})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (h *Handshake) UnmarshalJSON(b []byte) error {
	*h = Handshake{}
	if json.Unmarshal(b, &h.On) == nil {
		return nil
	}
	var more handshakeForm
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&more); err != nil {
		return errors.New(`handshake: want true, or { "origin": "events.example.com" }`)
	}
	h.On, h.Origin = true, more.Origin
	return nil
}

func (h *Handshake) validate(path string) error {
	for label := range strings.SplitSeq(h.Origin, ".") {
		if h.Origin == "" {
			break
		}
		if len(h.Origin) > 253 || label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" {
			return fmt.Errorf("%s.origin: want a DNS name such as events.example.com, got %.100q", path, h.Origin)
		}
	}
	return nil
}

// The headers of the CloudEvents handshake, as net/http has them.
const (
	headerRequestOrigin = "Webhook-Request-Origin"
	headerRequestRate   = "Webhook-Request-Rate"
	headerAllowedOrigin = "Webhook-Allowed-Origin"
	headerAllowedRate   = "Webhook-Allowed-Rate"
)

// agreement is what the endpoint has said. A Sender asks once: it is made anew at
// each start and for each URL.
type agreement struct {
	origin string
	rate   float64 // to ask for, a second; 0 asks for none

	reached atomic.Bool
	allowed atomic.Uint64 // float64 bits: attempts a second; 0 is any number

	mu     sync.Mutex // guards asking
	asking *question  // nil while nobody asks
}

// question is one handshake under way, for all who wait for it.
type question struct {
	answered chan struct{}   // closed when attempt is set
	attempt  deliver.Attempt // Delivered: it agrees
}

// Rate is how many attempts a second the endpoint has allowed, 0 for any number;
// see deliver.Limited.
func (s *Sender) Rate() float64 {
	if s.agreement == nil {
		return 0
	}
	return math.Float64frombits(s.agreement.allowed.Load())
}

// agreed asks the endpoint unless it has agreed already. When it does not, ok is
// false and the attempt says why. Attempts that come meanwhile share the answer.
func (s *Sender) agreed(ctx context.Context) (a deliver.Attempt, ok bool) {
	g := s.agreement
	if g == nil || g.reached.Load() {
		return a, true
	}
	g.mu.Lock()
	if g.reached.Load() {
		g.mu.Unlock()
		return a, true
	}
	q := g.asking
	if q != nil {
		g.mu.Unlock()
		start := time.Now()
		select {
		case <-q.answered:
		case <-ctx.Done():
			return s.noAnswer(ctx, ctx.Err(), time.Since(start)), false
		}
		return q.attempt, q.attempt.Outcome == deliver.Delivered
	}
	q = &question{answered: make(chan struct{})}
	g.asking = q
	g.mu.Unlock()
	q.attempt = deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultServer, Reason: "handshake: it broke off"}
	defer func() {
		g.mu.Lock()
		g.reached.Store(q.attempt.Outcome == deliver.Delivered)
		g.asking = nil
		g.mu.Unlock()
		close(q.answered)
	}()
	q.attempt = s.ask(ctx)
	return q.attempt, q.attempt.Outcome == deliver.Delivered
}

// ask makes the handshake of the format. Delivered means that the endpoint agrees.
func (s *Sender) ask(ctx context.Context) deliver.Attempt {
	if s.format == EventGrid {
		return s.askGrid(ctx)
	}
	g := s.agreement
	// No credentials but those in the URL: the answer is about whether there may be
	// deliveries, not who may make them (§4).
	h := http.Header{"User-Agent": s.header["User-Agent"], headerRequestOrigin: {g.origin}}
	if g.rate > 0 {
		h[headerRequestRate] = []string{strconv.FormatInt(max(1, int64(math.Ceil(g.rate*60))), 10)}
	}
	resp, body, a := s.exchange(ctx, http.MethodOptions, h, nil)
	if resp == nil {
		return a
	}
	// The status means nothing: whoever answers OPTIONS anyway has not agreed by
	// that, and who agrees says so in this header (§4.2).
	allowed := strings.TrimSpace(resp.Header.Get(headerAllowedOrigin))
	if allowed != "*" && !strings.EqualFold(allowed, g.origin) {
		why := "the answer to OPTIONS has no WebHook-Allowed-Origin, so deliveries are not wanted"
		if allowed != "" {
			why = "WebHook-Allowed-Origin is not " + g.origin + ": " + s.secrets.Printable(allowed, 100)
		}
		return s.refused(resp, body, why)
	}
	rate, err := allowedRate(resp.Header.Get(headerAllowedRate))
	if err != nil {
		return s.refused(resp, nil, err.Error())
	}
	g.allowed.Store(math.Float64bits(rate))
	return deliver.Attempt{Outcome: deliver.Delivered, Status: resp.StatusCode}
}

// allowedRate reads requests per minute as attempts a second, 0 for any number. An
// agreement need not name a rate unless it was asked for one, and many that are do
// not: that is read as any.
func allowedRate(value string) (float64, error) {
	value = strings.TrimSpace(value)
	if value == "" || value == "*" {
		return 0, nil
	}
	n, err := strconv.ParseUint(value, 10, 31)
	if err != nil || n == 0 {
		return 0, errors.New("WebHook-Allowed-Rate is neither * nor a number of requests per minute from 1")
	}
	return float64(n) / 60, nil
}

// askGrid makes Event Grid's handshake: an event with a code that is to come back.
// Anything but 200 is a refusal there, 202 included.
func (s *Sender) askGrid(ctx context.Context) deliver.Attempt {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails (Go 1.24)
	code := hex.EncodeToString(random[:])
	e := eventgrid.Validation(s.topic, code, time.Now())
	h, _, body := s.one(e, nil)
	h.Set(eventgrid.HeaderEventType, eventgrid.EventTypeValidation)
	if s.signer != nil {
		s.signer.sign(h, webhookID(e.ID), body, time.Now())
	}
	if s.access.tokens != nil {
		// A refusal does not use the token up: the first delivery tells.
		if _, _, err := s.token(ctx, h, true); err != nil {
			return s.noAnswer(ctx, err, 0)
		}
	}
	resp, answer, a := s.exchange(ctx, http.MethodPost, h, body)
	switch {
	case resp == nil:
		return a
	case resp.StatusCode == http.StatusOK && eventgrid.Confirmed(answer, code):
		return deliver.Attempt{Outcome: deliver.Delivered, Status: resp.StatusCode}
	case resp.StatusCode == http.StatusOK:
		return s.refused(resp, nil, "the answer to the validation event has not its code as validationResponse")
	case resp.StatusCode < 300:
		return s.refused(resp, nil, "a validation event is answered 200 with its code as validationResponse, and with no other status")
	}
	return s.refused(resp, answer, "the validation event was not taken")
}

// exchange makes one request and reads its answer, within limits. Without an answer
// resp is nil and the attempt says why.
func (s *Sender) exchange(ctx context.Context, method string, header http.Header, body []byte) (resp *http.Response, answer []byte, a deliver.Attempt) {
	start := time.Now()
	resp, answer, err := s.roundTrip(ctx, method, header, nil, body, true)
	if err != nil {
		a = s.noAnswer(ctx, err, time.Since(start))
		a.Reason = "handshake: " + a.Reason
		return nil, nil, a
	}
	return resp, answer, deliver.Attempt{}
}

// refused judges an answer that is no agreement. What only says that the endpoint is
// in trouble is no refusal either.
func (s *Sender) refused(resp *http.Response, body []byte, why string) deliver.Attempt {
	if a := s.judge(resp, body); a.Outcome == deliver.Failed {
		a.Reason = "handshake, " + a.Reason
		return a
	}
	return deliver.Attempt{
		Outcome: deliver.Rejected, Fault: deliver.FaultHandshake, Status: resp.StatusCode,
		Reason: "handshake refused, HTTP " + strconv.Itoa(resp.StatusCode) + ": " + why,
	}
}

// newAgreement prepares the handshake of cfg; nil for none.
func newAgreement(cfg Config, opts Options) *agreement {
	if !cfg.Handshake.On {
		return nil
	}
	g := &agreement{origin: cfg.Handshake.Origin, rate: opts.Rate}
	if g.origin == "" {
		g.origin = defaultOrigin
	}
	return g
}
