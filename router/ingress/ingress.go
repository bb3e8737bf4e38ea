// Package ingress takes events in over HTTP: POST /ingress/{source}.
//
// Its first duty is never to teach a sender to give up. Event Grid drops an
// event for good on 400, 401, 403, 404 and 413, and Dataverse repeats one only
// on 502 to 504, so what may pass is answered 503, and what will never be
// understood is answered 200 and kept in quarantine. docs/http.md has the
// whole table.
package ingress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/mux"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/auth"
	"github.com/gridfan/gridfan/router/normalise"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
)

// Report tells the operator what happened; see broker.Broker.Report.
type Report func(what, about string, attrs map[string]any)

// Ingress serves the public listener. It is safe for concurrent use.
type Ingress struct {
	cfg     Config // but for the sources, which may change
	roster  atomic.Pointer[roster]
	keys    *auth.Keys
	pub     atomic.Pointer[Publish] // nil until there is one
	metrics *Metrics
	log     *slog.Logger
	report  Report
	mux     *mux.Router

	confirmClient *http.Client
	confirming    atomic.Int32

	stopOnce sync.Once
	stopped  chan struct{}
}

// roster is what is configured at a time.
type roster struct {
	sources map[string]*source
	order   []*source
	pulled  []string
	since   time.Time
}

// source is one configured source and what it has done since the start.
type source struct {
	Source
	*past
	auth       *auth.Authenticator
	parser     normalise.Parser
	maxBody    int64
	handshakes *rate.Limiter
	rate       *rate.Limiter // nil for no limit
	slots      *semaphore.Weighted
}

// past is what stays of a source when its configuration changes.
type past struct {
	refusals  throttle
	undecided throttle
	risk      risk
	counts    tally
	last      atomic.Int64 // Unix milliseconds of the last accepted event
}

// New makes an Ingress for a valid cfg. It answers handshakes, and events with
// 503 until Publish is called.
func New(cfg Config, m *Metrics, report Report, log *slog.Logger) (*Ingress, error) {
	in := &Ingress{
		cfg: cfg, metrics: m, log: log, report: report, keys: auth.NewKeys(nil, log, nil),
		confirmClient: newConfirmClient(), stopped: make(chan struct{}),
	}
	in.roster.Store(&roster{})
	take, err := in.Prepare(cfg.Sources, cfg.Pulled, cfg.Since)
	if err != nil {
		return nil, err
	}
	take()
	r := mux.NewRouter()
	// Stock Azure clients take a redirect for success and lose the event.
	r.SkipClean(true)
	r.UseEncodedPath()
	in.registerIngressRoutes(r)
	in.registerTopicRoutes(r)
	r.NotFoundHandler = in.handle(func(http.ResponseWriter, *http.Request) error {
		return refuse(http.StatusNotFound, "not-found", "there is nothing at this path; events go to /ingress/{source}")
	})
	r.MethodNotAllowedHandler = in.handle(func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Allow", "POST, OPTIONS")
		return refuse(http.StatusMethodNotAllowed, "method-not-allowed", "events are sent by POST")
	})
	in.mux = r
	return in, nil
}

// Prepare makes what is needed for valid sources in the place of those that there are;
// take then puts it there, at once for all requests that begin after it. Requests under
// way end with what they have begun with. What a source has counted stays, and one that
// is what it was keeps its limits' state. pulled and since are as in Config. Only the
// last of several that are prepared may be taken.
func (in *Ingress) Prepare(sources []Source, pulled []string, since time.Time) (take func(), err error) {
	was := in.roster.Load()
	now := &roster{sources: map[string]*source{}, pulled: pulled, since: since}
	for _, cfg := range sources {
		s := was.sources[cfg.Name]
		if s == nil || !reflect.DeepEqual(s.Source, cfg) {
			var before *past
			if s != nil {
				before = s.past
			}
			if s, err = in.newSource(cfg, before); err != nil {
				return nil, fmt.Errorf("source %q: %w", cfg.Name, err)
			}
		}
		now.sources[cfg.Name] = s
		now.order = append(now.order, s)
	}
	return func() {
		for _, s := range now.order {
			in.metrics.init(s.Name, &s.risk)
		}
		in.roster.Store(now)
		for name := range was.sources {
			if now.sources[name] == nil {
				in.metrics.forget(name)
			}
		}
	}, nil
}

func (in *Ingress) newSource(cfg Source, before *past) (*source, error) {
	if before == nil {
		before = &past{}
	}
	s := &source{
		Source:  cfg,
		past:    before,
		maxBody: cfg.Limits.Body,
		// A handshake comes once per event subscription and again when it
		// changes; ten a second serve the largest deployment.
		handshakes: rate.NewLimiter(10, 20),
		slots:      semaphore.NewWeighted(int64(cfg.Limits.Concurrency)),
	}
	var err error
	if s.auth, err = auth.New(cfg.Auth, auth.Deps{Log: in.log, Keys: in.keys}); err != nil {
		return nil, err
	}
	if s.parser, err = normalise.New(cfg.Kind, normalise.Options{BusinessKeys: cfg.BusinessKeys, Mapping: cfg.Mapping}); err != nil {
		return nil, err
	}
	if cfg.Limits.Rate > 0 {
		// A burst of two seconds' worth: senders come in bursts.
		s.rate = rate.NewLimiter(rate.Limit(cfg.Limits.Rate), max(1, int(2*cfg.Limits.Rate)))
	}
	return s, nil
}

// source is a source of now, nil for none of that name.
func (in *Ingress) source(name string) *source { return in.roster.Load().sources[name] }

func (in *Ingress) registerIngressRoutes(r *mux.Router) {
	r.Handle("/ingress/{source}", in.handle(in.receive)).Methods(http.MethodPost)
	r.Handle("/ingress/{source}", in.handle(in.handshake)).Methods(http.MethodOptions)
}

// registerTopicRoutes serves the path that clients of Event Grid namespaces
// publish to (aznamespaces v1.0.0, recorded 2026-11).
func (in *Ingress) registerTopicRoutes(r *mux.Router) {
	r.Handle("/topics/{source:[^/:]+}:publish", in.handle(in.receive)).Methods(http.MethodPost)
}

// Publish stores events, as publish.Publisher's does.
type Publish func(context.Context, publish.Origin, []event.Result) ([]publish.Status, error)

// Publish makes it take events and give them to pub.
func (in *Ingress) Publish(pub Publish) { in.pub.Store(&pub) }

// publish stores results. What is addressed to the router itself, such as
// Event Grid's validation, needs no broker.
func (in *Ingress) publish(ctx context.Context, o publish.Origin, results []event.Result) ([]publish.Status, error) {
	statuses := make([]publish.Status, len(results))
	controls := 0
	for i := range results {
		if results[i].Control != nil {
			statuses[i] = publish.Control
			controls++
		}
	}
	if controls == len(results) {
		in.cfg.Tally.Control(o.Source, controls)
		return statuses, nil
	}
	pub := in.pub.Load()
	if pub == nil {
		in.cfg.Tally.Refused(o.Source, len(results))
		return nil, publish.ErrBroker
	}
	return (*pub)(ctx, o, results)
}

func (in *Ingress) ServeHTTP(w http.ResponseWriter, r *http.Request) { in.mux.ServeHTTP(w, r) }

// Stop makes every further request be answered 503, so that senders come back
// when the next process is up. Requests under way are finished by the server.
func (in *Ingress) Stop() { in.stopOnce.Do(func() { close(in.stopped) }) }

// Stopping says whether Stop was called.
func (in *Ingress) Stopping() bool {
	select {
	case <-in.stopped:
		return true
	default:
		return false
	}
}

// handle wraps a handler that returns an error, counts the answer and keeps a
// panic from costing the process.
func (in *Ingress) handle(h func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		name := in.label(mux.Vars(r)["source"])
		rec := &recorder{ResponseWriter: w, code: http.StatusOK}
		defer func() {
			if p := recover(); p != nil {
				in.log.Error("panic while serving", "source", name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				writeError(rec, retryLater("internal", "an internal error; send it again", 30*time.Second))
			}
			took := time.Since(start)
			in.metrics.requests.WithLabelValues(name, strconv.Itoa(rec.code)).Inc()
			in.metrics.duration.WithLabelValues(name).Observe(took.Seconds())
			// Strangers and their headers are not what Event Grid sees.
			if s := in.source(name); s != nil && rec.known {
				s.risk.add(r, rec.code, took, time.Now())
			}
		}()
		if in.Stopping() {
			writeError(rec, retryLater("stopping", "this process is stopping; send it again", 5*time.Second))
			return
		}
		if err := h(rec, r); err != nil {
			writeError(rec, err)
		}
	})
}

// label keeps strangers from making metric labels.
func (in *Ingress) label(source string) string {
	if in.source(source) == nil {
		return "unknown"
	}
	return source
}

type recorder struct {
	http.ResponseWriter
	code  int
	known bool // the sender has shown valid credentials
}

func (r *recorder) WriteHeader(code int) {
	r.code = code
	r.ResponseWriter.WriteHeader(code)
}

// find looks a request's source up.
func (in *Ingress) find(r *http.Request) (*source, error) {
	name := mux.Vars(r)["source"]
	now := in.roster.Load()
	s := now.sources[name]
	if s != nil {
		return s, nil
	}
	pulled := slices.Contains(now.pulled, name)
	if since := time.Since(now.since); since < RolloutGrace {
		// Its configuration may be on its way; a 404 would be final.
		if pulled {
			return nil, retryLater("source-not-pushed", "gridfan asks this source itself; send it again if that is about to change", 30*time.Second)
		}
		return nil, retryLater("unknown-source", "no source of this name is configured yet", 30*time.Second)
	}
	if pulled {
		return nil, refuse(http.StatusNotFound, "source-not-pushed", "gridfan asks this source itself and takes nothing that is pushed to it; its pattern would have to be push or hybrid")
	}
	return nil, refuse(http.StatusNotFound, "unknown-source", "no source of this name is configured")
}

// receive answers POST /ingress/{source}.
func (in *Ingress) receive(w http.ResponseWriter, r *http.Request) error {
	s, err := in.find(r)
	if err != nil {
		return err
	}
	body, leave, err := in.admit(w, r, s)
	if err != nil {
		return err
	}
	defer leave()
	accepted := time.Now()
	results := parse(s, r.Header, body)
	statuses, err := in.publish(r.Context(), publish.Origin{
		Source: s.Name, Kind: s.Kind, Environment: s.Environment,
		Via: "push", Accepted: accepted, Header: keptHeaders(r.Header),
	}, results)
	if err != nil {
		in.log.Warn("not stored, and its sender was told so", "source", s.Name, "error", err)
		return unavailable(err)
	}
	in.count(s, results, statuses, accepted)
	return in.answer(w, s, results, statuses)
}

func parse(s *source, header http.Header, body []byte) []event.Result {
	if enc := header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return []event.Result{{Raw: body, Fault: event.Faultf(event.FaultEncodedBody, "the body is encoded (Content-Encoding %.32q) in a way that is not read, or not what it says; plain bodies and gzip are read", enc)}}
	}
	return s.parser(s.Name, header, body)
}

// Reparse reads a body from quarantine as its source would today.
func (in *Ingress) Reparse(name string, header map[string]string, body []byte) (publish.Origin, []event.Result, bool) {
	s := in.source(name)
	if s == nil {
		return publish.Origin{}, nil, false
	}
	h := http.Header{}
	for k, v := range header {
		h.Set(k, v)
	}
	o := publish.Origin{Source: s.Name, Kind: s.Kind, Environment: s.Environment, Via: "push"}
	return o, parse(s, h, body), true
}

// count books a request that was stored: received = published + duplicate +
// quarantined + control + completing.
func (in *Ingress) count(s *source, results []event.Result, statuses []publish.Status, accepted time.Time) {
	s.counts.received.Add(int64(len(results)))
	in.metrics.events.WithLabelValues(s.Name, "received").Add(float64(len(results)))
	for i, status := range statuses {
		s.counts.of(status).Add(1)
		in.metrics.events.WithLabelValues(s.Name, string(status)).Inc()
		switch status {
		case publish.Published:
			s.last.Store(accepted.UnixMilli())
			if t := results[i].Event.Time; !t.IsZero() {
				in.metrics.sourceDelay.WithLabelValues(s.Name).Observe(max(0, accepted.Sub(t).Seconds()))
			}
		case publish.Quarantined:
			f := results[i].Fault
			in.log.Warn("element quarantined", "source", s.Name, "element", i, "code", f.Code, "detail", f.Detail)
		case publish.Control:
			in.controlled(s, results[i].Control)
		}
	}
}

func (in *Ingress) controlled(s *source, c *event.Control) {
	switch c.Kind {
	case event.Validation:
		if s.Validation == ValidateByURL {
			in.confirm(s, c.ValidationURL)
			return
		}
		in.report("source.validated", s.Name, map[string]any{"by": "validation event"})
	case event.Deletion:
		// Whoever did not do this on purpose wants to know at once.
		in.report("source.subscription-deleted", s.Name, map[string]any{"subscription": c.Subscription})
	case event.Test:
		in.report("source.tested", s.Name, map[string]any{"by": "endpoint test event"})
	}
}

// acceptedBody is the body of a 200 for people; senders read only the status.
type acceptedBody struct {
	Received    int       `json:"received"`
	Published   int       `json:"published"`
	Duplicate   int       `json:"duplicate"`
	Quarantined int       `json:"quarantined"`
	Control     int       `json:"control"`
	Completing  int       `json:"completing,omitempty"`
	Faults      []elemErr `json:"faults,omitempty"`
}

type elemErr struct {
	Element int             `json:"element"`
	Code    event.FaultCode `json:"code"`
	Detail  string          `json:"detail"`
}

// maxFaultsShown bounds the answer to a batch of thousands of bad elements.
const maxFaultsShown = 20

func (in *Ingress) answer(w http.ResponseWriter, s *source, results []event.Result, statuses []publish.Status) error {
	for i := range results {
		if c := results[i].Control; c != nil && c.Kind == event.Validation && s.Validation == ValidateInAnswer {
			// A single object, exactly 200: 202 is refused (Event Grid docs,
			// end-point-validation-event-grid-events-schema; read 2026-11).
			return writeJSON(w, http.StatusOK, map[string]string{"validationResponse": c.ValidationCode})
		}
	}
	body := acceptedBody{Received: len(results)}
	for i, status := range statuses {
		switch status {
		case publish.Published:
			body.Published++
		case publish.Duplicate:
			body.Duplicate++
		case publish.Control:
			body.Control++
		case publish.Completing:
			body.Completing++
		case publish.Quarantined:
			body.Quarantined++
			if len(body.Faults) < maxFaultsShown {
				body.Faults = append(body.Faults, elemErr{i, results[i].Fault.Code, results[i].Fault.Detail})
			}
		}
	}
	return writeJSON(w, http.StatusOK, body)
}

func shorten(s string) string {
	if len(s) > 128 {
		s = s[:128] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}

// throttle lets one log line a minute through.
type throttle struct {
	mu   sync.Mutex // guards all below
	last time.Time
	held int
}

// allow says whether to log now, and how many lines were held back before.
func (t *throttle) allow(now time.Time) (held int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.last.IsZero() && now.Sub(t.last) < time.Minute {
		t.held++
		return 0, false
	}
	held, t.held, t.last = t.held, 0, now
	return held, true
}

// keptHeaders picks what explains a quarantined body. Keys never are among it.
func keptHeaders(h http.Header) map[string]string {
	const maxValue, maxTotal = 1024, 16 << 10
	kept, total := map[string]string{}, 0
	for name, values := range h {
		name = strings.ToLower(name)
		switch {
		case name == "content-type", name == "content-encoding", name == "user-agent",
			strings.HasPrefix(name, "ce-"), strings.HasPrefix(name, "x-ms-dynamics-"),
			strings.HasPrefix(name, "webhook-") && name != "webhook-signature",
			strings.HasPrefix(name, "aeg-") && !strings.HasPrefix(name, "aeg-sas"):
			v := values[0]
			if len(v) > maxValue {
				v = v[:maxValue] + "…"
			}
			// Encoding may triple it.
			if total += len(name) + 3*len(v); total <= maxTotal && len(name) < 128 {
				kept[name] = v
			}
		}
	}
	return kept
}

// SourceStatus is a source as the status page shows it; the counts are since
// the start of this process.
type SourceStatus struct {
	Name        string `json:"name"`
	Kind        string `json:"kind"`
	Environment string `json:"environment"`
	Pattern     string `json:"pattern"`
	Rationale   string `json:"rationale,omitempty"`
	Received    int64  `json:"received"`
	Published   int64  `json:"published"`
	Duplicate   int64  `json:"duplicate"`
	Quarantined int64  `json:"quarantined"`
	Control     int64  `json:"control"`
	// Completing were kept until they are completed, or behind such a one.
	Completing int64      `json:"completing,omitempty"`
	LastEvent  *time.Time `json:"lastEvent,omitempty"`
}

// Status lists the sources by name.
func (in *Ingress) Status() []SourceStatus {
	now := in.roster.Load()
	list := make([]SourceStatus, 0, len(now.order))
	for _, s := range now.order {
		st := SourceStatus{
			Name: s.Name, Kind: s.Kind, Environment: s.Environment, Pattern: "push", Rationale: s.Rationale,
			Received: s.counts.received.Load(), Published: s.counts.published.Load(),
			Duplicate: s.counts.duplicate.Load(), Quarantined: s.counts.quarantined.Load(),
			Control: s.counts.control.Load(), Completing: s.counts.completing.Load(),
		}
		if ms := s.last.Load(); ms != 0 {
			t := time.UnixMilli(ms).UTC()
			st.LastEvent = &t
		}
		list = append(list, st)
	}
	return list
}

// tally is a source's book since the start.
type tally struct {
	received, published, duplicate, quarantined, control, completing atomic.Int64
}

func (c *tally) of(s publish.Status) *atomic.Int64 {
	switch s {
	case publish.Published:
		return &c.published
	case publish.Duplicate:
		return &c.duplicate
	case publish.Quarantined:
		return &c.quarantined
	case publish.Completing:
		return &c.completing
	}
	return &c.control
}

func unavailable(err error) error {
	switch {
	case errors.Is(err, publish.ErrQuarantineFull):
		return retryLater("quarantine-full", "the source's quarantine is full; redrive or drop entries", time.Minute)
	case errors.Is(err, broker.ErrDiskFull):
		return retryLater("storage-full", "the disk under the store is almost full", time.Minute)
	case errors.Is(err, publish.ErrStorageFull):
		return retryLater("storage-full", "the storage is full", time.Minute)
	case errors.Is(err, publish.ErrTooLarge):
		return refuse(http.StatusRequestEntityTooLarge, "body-too-large", "the body, or an element of it, is more than the broker stores in one message; raise its max_payload")
	case errors.Is(err, publish.ErrOverloaded):
		return retryLater("overloaded", "too many events are waiting; send it again", 5*time.Second)
	case errors.Is(err, context.Canceled):
		return retryLater("cancelled", "the request ended before its events were stored", time.Second)
	}
	return retryLater("broker-unavailable", "the broker does not answer; send it again", 30*time.Second)
}

func writeJSON(w http.ResponseWriter, code int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(b, '\n')) // the sender is gone if this fails
	return nil
}
