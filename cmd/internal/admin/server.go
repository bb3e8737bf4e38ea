package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/complete"
	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/router/quarantine"
	"github.com/gridfan/gridfan/router/receive"
	"github.com/gridfan/gridfan/subscribers/books"
	"github.com/gridfan/gridfan/subscribers/deadletters"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// Parts are what the API speaks for.
type Parts struct {
	Version string
	// Role is what this process does: all, router or subscribers. What it does not
	// do is nil below.
	Role    string
	Started time.Time
	Broker  *broker.Broker
	Health  Health
	// Sources gives those of the configuration as they are now.
	Sources     func() config.Sources
	Ingress     *ingress.Ingress    // nil where no events are taken in
	Poller      *poll.Poller        // the same
	Completer   *complete.Completer // the same
	Receivers   *receive.Receivers  // the same
	Publisher   *publish.Publisher  // the same
	Quarantine  *quarantine.Store
	Registry    *registry.Registry
	Fleet       *registry.Fleet
	Config      *config.Live
	Egress      *egress.Rules
	DeadLetters *deadletters.Store
	Books       *books.Books // nil where not all subscribers are served
	Gatherer    prometheus.Gatherer
	Log         *slog.Logger
	// Stopping ends when the listener stops, so that answers that go on end.
	Stopping context.Context
}

// NewHandler serves the admin listener. An empty token lets everybody in who
// reaches it, which then must be this machine alone.
func NewHandler(p Parts, token secret.String) http.Handler {
	h, _ := newHandler(p, token)
	return h
}

// newHandler is NewHandler with the patterns of all routes.
func newHandler(p Parts, token secret.String) (http.Handler, []string) {
	s := &server{p}
	api := newRoutes()
	descriptionRoutes(api)
	api.Handle("GET /api/v1/status", handle(s.status))
	api.Handle("GET /api/v1/subscribers", handle(s.list))
	api.Handle("GET /api/v1/subscribers/{name}", handle(s.show))
	api.Handle("PUT /api/v1/subscribers/{name}", handle(s.put))
	api.Handle("DELETE /api/v1/subscribers/{name}", handle(s.delete))
	api.Handle("GET /api/v1/subscribers/{name}/asyncapi", handle(s.asyncAPI))
	api.Handle("GET /api/v1/subscribers/{name}/shed", handle(s.shed))
	api.Handle("POST /api/v1/subscribers/{name}/pause", handle(s.pause))
	api.Handle("POST /api/v1/subscribers/{name}/drain", handle(s.drain))
	api.Handle("POST /api/v1/subscribers/{name}/probe", handle(s.probe))
	api.Handle("POST /api/v1/subscribers/{name}/resume", handle(s.resume))
	api.Handle("POST /api/v1/subscribers/{name}/rotate-key", handle(s.rotateKey))
	s.sourceRoutes(api)
	s.endpointRoutes(api)
	s.configRoutes(api)
	s.quarantineRoutes(api)
	listenRoutes(api, p)
	s.trialRoutes(api)
	s.deadLetterRoutes(api)
	s.booksRoutes(api)
	schemaRoutes(api)
	api.Handle("GET /metrics", promhttp.HandlerFor(p.Gatherer, promhttp.HandlerOpts{}))
	api.Handle("/", handle(func(http.ResponseWriter, *http.Request) (any, error) {
		return nil, problem(http.StatusNotFound, "not-found", "there is nothing at this path; the API is under /api/v1/, see docs/admin-api.md")
	}))

	// A browser on this machine must not be made to order things by a page
	// from elsewhere.
	protected := http.NewCrossOriginProtection().Handler(api)
	all := newRoutes()
	all.Handle("/", guard(token, protected))
	all.probes(p.Health)
	return all, append(api.patterns, all.patterns...)
}

// routes is a mux that remembers what it serves, so that a test can compare
// that with the description.
type routes struct {
	*http.ServeMux
	patterns []string
}

func newRoutes() *routes { return &routes{ServeMux: http.NewServeMux()} }

// Handle hides the mux's own.
func (r *routes) Handle(pattern string, h http.Handler) {
	r.ServeMux.Handle(pattern, h)
	r.patterns = append(r.patterns, pattern)
}

// HandleFunc hides the mux's own.
func (r *routes) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	r.Handle(pattern, http.HandlerFunc(h))
}

// Health is what the health endpoints ask.
type Health struct {
	// Broker says what is wrong with it.
	Broker func(context.Context) error
	// Warnings are what a monitor should know of a process that is well.
	Warnings func() []string
	// Unready says in a word why no requests should be led here, and is empty if
	// they may be.
	Unready func() string
}

// Probes adds the health endpoints, which need no key and tell no secret.
func Probes(mux *http.ServeMux, health Health) {
	(&routes{ServeMux: mux}).probes(health)
}

// NotUp serves the admin listener of a process that starts or stops: the health
// endpoints answer, and all else is told to come back.
func NotUp(health Health) http.Handler {
	mux := http.NewServeMux()
	Probes(mux, health)
	mux.Handle("/", handle(func(w http.ResponseWriter, _ *http.Request) (any, error) {
		w.Header().Set("Retry-After", "5")
		if health.Unready() == "stopping" {
			return nil, problem(http.StatusServiceUnavailable, "stopping", "this process is stopping; ask another one, or the next")
		}
		return nil, problem(http.StatusServiceUnavailable, "starting", "this process is starting, and may wait for its broker: see /healthz")
	}))
	return mux
}

func (r *routes) probes(health Health) {
	plain := func(w http.ResponseWriter, code int, text string) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(code)
		_, _ = io.WriteString(w, text+"\n") // the prober is gone if this fails
	}
	r.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		plain(w, http.StatusOK, "ok")
	})
	// Ready means able to answer HTTP. It does not ask the broker: handshakes
	// are answered without one, and events with 503.
	r.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if why := health.Unready(); why != "" {
			plain(w, http.StatusServiceUnavailable, why)
			return
		}
		plain(w, http.StatusOK, "ok")
	})
	r.HandleFunc("GET /healthz", func(w http.ResponseWriter, req *http.Request) {
		if err := health.Broker(req.Context()); err != nil {
			plain(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		plain(w, http.StatusOK, strings.Join(append([]string{"ok"}, health.Warnings()...), "\nwarning: "))
	})
}

// guard asks for the token. Without one it takes only requests that were
// addressed to this machine by a name of its own, so that a page whose host
// name was pointed here cannot read anything.
func guard(token secret.String, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if token.IsZero() {
			host, _, err := net.SplitHostPort(r.Host)
			if err != nil {
				host = r.Host
			}
			if ip := net.ParseIP(strings.Trim(host, "[]")); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
				writeProblem(w, problem(http.StatusForbidden, "wrong-host", "without a token the admin API answers only to localhost and loopback addresses"))
				return
			}
		} else if scheme, sent, _ := strings.Cut(r.Header.Get("Authorization"), " "); !strings.EqualFold(scheme, "Bearer") || !token.Equal(strings.TrimSpace(sent)) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="gridfan"`)
			writeProblem(w, problem(http.StatusUnauthorized, "unauthorized", "send the admin token as Authorization: Bearer …; the CLI takes it from GRIDFAN_ADMIN_TOKEN"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

type server struct{ Parts }

// The roles, as package app calls them.
const (
	roleRouter      = "router"
	roleSubscribers = "subscribers"
)

// otherRole is the answer to what a process of another role is to be asked.
func otherRole(why, role string) *Problem {
	return problem(http.StatusConflict, "other-role", fmt.Sprintf("%s; ask the admin API of a process of gridfan serve --role %s, whose address gridfan takes by --admin", why, role))
}

// takesIn serves what only a process that takes events in can do.
func (s *server) takesIn(h func(http.ResponseWriter, *http.Request) (any, error)) http.Handler {
	return handle(func(w http.ResponseWriter, r *http.Request) (any, error) {
		if s.Ingress == nil {
			return nil, otherRole("this process takes no events in", roleRouter)
		}
		return h(w, r)
	})
}

// keepsBooks serves what only a process that keeps the books can do.
func (s *server) keepsBooks(h func(http.ResponseWriter, *http.Request) (any, error)) http.Handler {
	return handle(func(w http.ResponseWriter, r *http.Request) (any, error) {
		if s.Books == nil {
			return nil, otherRole("a router keeps no books", roleSubscribers)
		}
		return h(w, r)
	})
}

func (s *server) status(_ http.ResponseWriter, r *http.Request) (any, error) {
	ctx := r.Context()
	st := Status{
		Version: s.Version, Instance: broker.Instance(), Role: s.Role, Started: s.Started, Healthy: true,
		Config: s.Config.State(), Warnings: append([]string{}, s.Health.Warnings()...), Processes: []broker.Process{},
		Broker: BrokerStatus{Embedded: s.Broker.Embedded(), URL: s.Broker.URL(), Durability: s.Broker.Durability()},
	}
	if s.Publisher != nil {
		known := s.Publisher.Dedup()
		st.Broker.Dedup = &Dedup{known.IDs, known.Bytes, known.Since.UTC(), known.Dropped}
		if spool, ok := s.Publisher.Spool(ctx); ok {
			st.Broker.Spool = &spool
		}
	}
	if s.Broker.Embedded() {
		space := s.Broker.Space()
		st.Broker.Disk = &space
	}
	if err := s.Broker.Health(ctx); err != nil {
		// What does not need the broker is told all the same.
		st.Healthy, st.Problem = false, err.Error()
		st.Sources = s.withSources(ctx, nil)
		st.Subscribers = []Subscriber{}
		return st, nil
	}
	var err error
	if st.Broker.Streams, err = s.Broker.Use(ctx); err != nil {
		return nil, err
	}
	held, err := s.Broker.SubjectCounts(ctx, broker.StreamQuarantine, broker.Quarantine("*"))
	if err != nil {
		return nil, err
	}
	st.Sources = s.withSources(ctx, held)
	others, err := s.Broker.Processes(ctx)
	if err != nil {
		return nil, err
	}
	st.Processes = append(st.Processes, others...)
	st.Subscribers, err = s.subscribers(ctx)
	return st, err
}

func (s *server) subscribers(ctx context.Context) ([]Subscriber, error) {
	states, err := s.Registry.States(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]Subscriber, 0, len(states))
	for _, st := range states {
		list = append(list, s.view(st))
	}
	return list, nil
}

func (s *server) view(e registry.State) Subscriber {
	v := Subscriber{
		Definition: e.Definition.Redacted(), Origin: e.Origin, Created: e.Created, State: Active, Epochs: e.Epochs,
		Backlog: e.Backlog, Held: e.Held, Replicas: []Replica{},
	}
	for _, k := range e.Keys {
		v.Keys = append(v.Keys, SigningKey{k.ID, k.Public(), k.Created, k.Expires})
	}
	if w := e.Definition.Deliver.Webhook; w != nil {
		v.PublicKeys = w.Sign.PublicKeys()
	}
	if name := e.Definition.Name; e.Definition.Native() {
		v.Connect = &Connect{
			URL: s.Broker.ClientsURL(), Stream: broker.StreamEvents, Consumer: name, InboxPrefix: broker.ClientInbox(name),
			Publish: broker.ClientPublishes(name), Subscribe: []string{broker.ClientInbox(name) + ".>"}, Managed: s.Broker.Embedded(),
		}
	}
	switch {
	case e.Orphaned:
		v.State, v.Why = Parked, Undeclared
	case e.Missing != "":
		v.State, v.Why = Parked, "there is no endpoint "+e.Missing
	case e.Paused:
		v.State = Paused
	case e.Drains() && e.Backlog.Pending+e.Backlog.Retry > 0:
		v.State = Draining
	case e.Drains():
		v.State = Drained
	}
	if br, ok := s.Fleet.Breaker(e.Definition.Name); ok {
		v.Breaker = &br
	}
	if serving, ok := s.Fleet.Serving(e.Definition.Name); ok {
		v.Serving = &serving
	}
	for _, other := range s.Fleet.Views(e.Definition.Name) {
		v.Replicas = append(v.Replicas, Replica{other.Instance, other.Status.State, other.Status.Since})
	}
	return v
}

func (s *server) list(_ http.ResponseWriter, r *http.Request) (any, error) {
	list, err := s.subscribers(r.Context())
	return map[string]any{"subscribers": list}, err
}

// one answers with one subscriber and its ETag.
func (s *server) one(w http.ResponseWriter, r *http.Request, e registry.Entry) (any, error) {
	st, err := s.Registry.State(r.Context(), e)
	setETag(w, e.Revision)
	v := s.view(st)
	v.Note = e.Note
	switch to := e.Definition.Deliver; {
	case e.NewKey == nil:
	case to.Pull != nil:
		v.AccessKey = e.NewKey.Secret
	case to.Nats != nil:
		v.ClientSeed = e.NewKey.Secret
	default:
		v.SigningKey = e.NewKey.Shown()
	}
	return v, err
}

func (s *server) show(w http.ResponseWriter, r *http.Request) (any, error) {
	e, err := s.Registry.Get(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return s.one(w, r, e)
}

// maxDefinition is far above any real definition.
const maxDefinition = 256 << 10

func (s *server) put(w http.ResponseWriter, r *http.Request) (any, error) {
	var d registry.Definition
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxDefinition))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return nil, problem(http.StatusBadRequest, "bad-definition", "the body is no subscriber definition: "+err.Error())
	}
	if name := r.PathValue("name"); d.Name == "" {
		d.Name = name
	} else if d.Name != name {
		return nil, problem(http.StatusBadRequest, "bad-definition", "the name in the body is not the one in the path")
	}
	revision, conditional, err := ifMatch(r)
	if err != nil {
		return nil, err
	}
	if conditional {
		return s.replace(w, r, d, revision)
	}
	if err := validated(d.Validate()); err != nil {
		return nil, err
	}
	if err := s.reachable([]registry.Definition{d}, nil); err != nil {
		return nil, err
	}
	e, err := s.Registry.Add(r.Context(), d)
	if err != nil {
		return nil, misplaced(err)
	}
	s.Log.Info("subscriber added", "subscriber", d.Name, "subjects", d.Subjects, "start", d.Start)
	return s.one(w, r, e)
}

func (s *server) delete(_ http.ResponseWriter, r *http.Request) (any, error) {
	discard := false
	if v := r.URL.Query().Get("discard"); v != "" {
		var err error
		if discard, err = strconv.ParseBool(v); err != nil {
			return nil, problem(http.StatusBadRequest, "bad-parameter", "discard: want true or false")
		}
	}
	revision, _, err := ifMatch(r)
	if err != nil {
		return nil, err
	}
	b, err := s.Registry.DeleteIf(r.Context(), r.PathValue("name"), discard, revision)
	if err != nil {
		return nil, err
	}
	return Deleted{Discarded: b}, nil
}

// What one list of shed events has, and how long may be looked for them.
const (
	defaultShed = 100
	maxShed     = 10_000
	shedTimeout = 15 * time.Second
)

func (s *server) shed(_ http.ResponseWriter, r *http.Request) (any, error) {
	limit, err := limited(r, defaultShed, maxShed)
	if err != nil {
		return nil, err
	}
	e, err := s.Registry.Get(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), shedTimeout)
	defer cancel()
	h, err := deliver.ReadHistory(ctx, s.Broker, e.Definition.Name, deliver.RecordShed, limit)
	if err != nil {
		return nil, err
	}
	answer := Shed{Events: []ShedEvent{}, Since: h.Since.UTC(), Complete: h.Complete}
	for _, rec := range h.Records {
		answer.Events = append(answer.Events, ShedEvent{ID: rec.ID, Subject: rec.Subject, Sequence: rec.Sequence, Time: rec.Time})
	}
	return answer, nil
}

func (s *server) pause(w http.ResponseWriter, r *http.Request) (any, error) {
	e, err := s.Registry.SetPaused(r.Context(), r.PathValue("name"), true)
	if err != nil {
		return nil, err
	}
	return s.one(w, r, e)
}

func (s *server) drain(w http.ResponseWriter, r *http.Request) (any, error) {
	e, err := s.Registry.Drain(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return s.one(w, r, e)
}

func (s *server) resume(w http.ResponseWriter, r *http.Request) (any, error) {
	e, err := s.Registry.Resume(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return s.one(w, r, e)
}

func (s *server) probe(w http.ResponseWriter, r *http.Request) (any, error) {
	e, err := s.Registry.Get(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	if e.Definition.Native() {
		return nil, problem(http.StatusConflict, "native", "its own NATS client takes its events, so there is nothing to try; look whether that client runs")
	}
	if s.Role == roleRouter && e.Definition.Deliver.Pull == nil {
		return nil, otherRole("a router delivers to nobody", roleSubscribers)
	}
	if serving, _ := s.Fleet.Serving(e.Definition.Name); !serving || !s.Fleet.RetryNow(e.Definition.Name) {
		return nil, problem(http.StatusConflict, "not-served", "this replica does not serve it: it is parked, or about to start, or another replica serves it, which is then the one to ask")
	}
	return s.one(w, r, e)
}

// What one page of a list has.
const (
	defaultPage = 100
	maxPage     = 1000
)

// page reads which page of a list is asked for: at most limit, of those after a
// sequence.
func page(r *http.Request) (after uint64, limit int, err error) {
	if v := r.URL.Query().Get("after"); v != "" {
		if after, err = strconv.ParseUint(v, 10, 63); err != nil {
			return 0, 0, problem(http.StatusBadRequest, "bad-parameter", "after: want a number")
		}
	}
	limit, err = limited(r, defaultPage, maxPage)
	return after, limit, err
}

// limited reads how many are asked for.
func limited(r *http.Request, usual, most int) (int, error) {
	v := r.URL.Query().Get("limit")
	if v == "" {
		return usual, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > most {
		return 0, problem(http.StatusBadRequest, "bad-parameter", fmt.Sprintf("limit: want 1 to %d", most))
	}
	return n, nil
}

// handle writes what h returns as JSON, and its error as a problem.
func handle(h func(http.ResponseWriter, *http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 20*time.Second)
		defer cancel()
		v, err := h(w, r.WithContext(ctx))
		if err != nil {
			writeProblem(w, asProblem(err))
			return
		}
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			writeProblem(w, asProblem(err))
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(append(b, '\n')) // the caller is gone if this fails
	})
}

func problem(status int, code, detail string) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: detail}
}

// asProblem gives an error its status and code.
func asProblem(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	var stale *registry.StaleError
	if errors.As(err, &stale) {
		p := problem(http.StatusPreconditionFailed, "stale", fmt.Sprintf("%v; read it again and change that", err))
		p.ETag = etag(stale.Revision)
		return p
	}
	for _, known := range []struct {
		err    error
		status int
		code   string
		fix    string
	}{
		{registry.ErrNotFound, http.StatusNotFound, "no-such-subscriber", "see gridfan subscribers list"},
		{registry.ErrFileDeclared, http.StatusConflict, "file-declared", "edit the file, which is read again when it changes"},
		{registry.ErrExists, http.StatusConflict, "subscriber-exists", "change it with gridfan subscribers update (API: PUT with If-Match), or choose another name"},
		{quarantine.ErrNotFound, http.StatusNotFound, "no-such-entry", "see gridfan quarantine list"},
		{quarantine.ErrNoSource, http.StatusConflict, "no-such-source", "configure it again, or drop the entry"},
		{registry.ErrStart, http.StatusBadRequest, "bad-definition", "nothing was added"},
		{registry.ErrNotSigned, http.StatusConflict, "not-signed", "switch it on with sign: true (gridfan subscribers update NAME --sign)"},
		{registry.ErrKeysDeclared, http.StatusConflict, "keys-declared", "put the new key before the old ones there"},
		{registry.ErrTooManyKeys, http.StatusConflict, "too-many-keys", "wait until one expires, or let them all expire now: --overlap 0s"},
		{registry.ErrNoEndpoint, http.StatusNotFound, "no-such-endpoint", "see gridfan endpoints list; add it with gridfan endpoints set"},
		{registry.ErrEndpointExists, http.StatusConflict, "endpoint-exists", "move it with gridfan endpoints set (API: PUT with If-Match)"},
		{registry.ErrEndpointInUse, http.StatusConflict, "endpoint-in-use", "change or delete those first"},
		{registry.ErrDrainDeclared, http.StatusConflict, "drain-declared", "take drain: true out of the definition"},
		{registry.ErrEpochs, http.StatusConflict, "too-many-changes", "let it have its events first: resume it, or see why it does not take them"},
		{registry.ErrWay, http.StatusConflict, "other-way", "nothing is changed"},
		{deadletters.ErrNative, http.StatusConflict, "native", "add another subscriber that begins earlier: gridfan subscribe NAME --nats --subject … --start SEQUENCE; dead letters can be looked at and dropped"},
		{deadletters.ErrNotFound, http.StatusNotFound, "no-such-dead-letter", "see gridfan deadletters list"},
		{deadletters.ErrNoJob, http.StatusNotFound, "no-such-job", "see gridfan jobs list"},
		{deadletters.ErrEnded, http.StatusConflict, "job-ended", "see gridfan jobs list"},
		{books.ErrNoBook, http.StatusNotFound, "no-such-book", "see gridfan books"},
		{books.ErrMoving, http.StatusConflict, "moving", "gridfan books shows what moves"},
		{registry.ErrBacklog, http.StatusConflict, "backlog", "let them be delivered, or say that they may go: --discard (API: ?discard=true)"},
	} {
		if errors.Is(err, known.err) {
			return problem(known.status, known.code, fmt.Sprintf("%v; %s", err, known.fix))
		}
	}
	if errors.Is(err, deadletters.ErrBadSelection) {
		return problem(http.StatusBadRequest, "bad-selection", err.Error())
	}
	return problem(http.StatusServiceUnavailable, "unavailable", err.Error())
}

func writeProblem(w http.ResponseWriter, p *Problem) {
	b, _ := json.Marshal(p) // strings and numbers: it cannot fail
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if p.ETag != "" {
		w.Header().Set("ETag", p.ETag)
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(b, '\n'))
}
