package ingress_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/auth"
	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
)

// key is that of the source "shop"; canary is a wrong one, to be searched for.
const (
	key    = "the-right-key-of-shop-0123456789"
	canary = "canary-key-that-must-not-show-up"
)

// shopKey lets key in.
var shopKey = auth.Config{AnyOf: []auth.Method{{Key: secret.New(key)}}}

// edge is an ingress that listens, in front of a real broker.
type edge struct {
	t      *testing.T
	broker *broker.Broker
	in     *ingress.Ingress
	url    string
	log    *journal
	reg    *prometheus.Registry
	posts  int
}

// config has a source of each kind that everybody may send to, and one with a
// key. It took effect an hour ago.
func config() ingress.Config {
	return ingress.Config{
		Since: time.Now().Add(-time.Hour),
		Sources: []ingress.Source{
			{Name: "eg", Kind: event.KindEventGrid, Auth: auth.Config{None: true}},
			{Name: "fo", Kind: event.KindFnO, Auth: auth.Config{None: true}},
			{Name: "shop", Kind: event.KindEventGrid, Auth: shopKey, Origins: []string{"one.example", "eventgrid.azure.net"}},
		},
	}
}

func newEdge(t *testing.T, b *broker.Broker, cfg ingress.Config) *edge {
	t.Helper()
	for i := range cfg.Sources {
		if err := cfg.Sources[i].Validate(); err != nil {
			t.Fatal(err)
		}
	}
	pub, err := publish.New(t.Context(), b, publish.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pub.Close() })
	e := &edge{t: t, broker: b, log: &journal{}, reg: prometheus.NewRegistry()}
	log := slog.New(slog.NewTextHandler(e.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	e.in, err = ingress.New(cfg, ingress.NewMetrics(e.reg), func(what, about string, attrs map[string]any) {
		log.Info(what, "about", about, "attrs", fmt.Sprint(attrs))
	}, log)
	if err != nil {
		t.Fatal(err)
	}
	e.in.Publish(pub.Publish)
	s := httptest.NewServer(e.in)
	t.Cleanup(s.Close)
	e.url = s.URL
	return e
}

func open(t *testing.T) *edge {
	t.Helper()
	return newEdge(t, brokertest.New(t), config())
}

// journal collects log lines.
type journal struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(b)
}

func (j *journal) text() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

// request is one that a sender makes; POST, unless it says otherwise.
type request struct {
	method string
	path   string
	header map[string]string
	body   io.Reader
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

// field reads a member of the answer's body; a dot leads into an object.
func (a answer) field(t *testing.T, path ...string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("answer %q: %v", a.body, err)
	}
	for _, name := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[name]
	}
	return v
}

func (e *edge) do(r request) answer {
	e.t.Helper()
	if r.method == "" {
		r.method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(e.t.Context(), r.method, e.url+r.path, r.body)
	if err != nil {
		e.t.Fatal(err)
	}
	for name, value := range r.header {
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, b}
}

// good is a proper Event Grid event.
func good(id string) string {
	return fmt.Sprintf(`[{"id":%q,"topic":"/topics/shop","subject":"orders/1","eventType":"Order.Placed","eventTime":"2026-11-01T10:00:00Z","data":{"n":1},"dataVersion":"1"}]`, id)
}

// works posts a good event: the connection to the broker must have survived
// whatever came before.
func (e *edge) works() {
	e.t.Helper()
	e.posts++
	a := e.do(request{path: "/ingress/eg", body: bytes.NewBufferString(good(fmt.Sprint("good-", e.posts)))})
	if a.status != http.StatusOK || a.field(e.t, "published") != 1.0 {
		e.t.Fatalf("a good event afterwards: HTTP %d %s", a.status, a.body)
	}
}

// wantError checks an answer that is an error: its status and code, in both
// forms, and that it is what a stock Azure client can read.
func (a answer) wantError(t *testing.T, status int, code string) {
	t.Helper()
	if a.status != status {
		t.Errorf("HTTP %d %s, want %d", a.status, a.body, status)
		return
	}
	if got := a.header.Get("Content-Type"); got != "application/json" {
		t.Errorf("content type %q", got)
	}
	for _, got := range []any{a.field(t, "code"), a.field(t, "error", "code"), a.header.Get("X-Ms-Error-Code")} {
		if got != code {
			t.Errorf("code %v, want %s", got, code)
		}
	}
	if a.field(t, "status") != float64(status) || a.field(t, "detail") == "" || a.field(t, "error", "message") == "" {
		t.Errorf("body %s", a.body)
	}
	if retry := a.header.Get("Retry-After"); (retry != "") != (status == http.StatusServiceUnavailable) {
		t.Errorf("HTTP %d with Retry-After %q", status, retry)
	}
}

// stored reads all messages of a stream.
func (e *edge) stored(name string) []*jetstream.RawStreamMsg {
	e.t.Helper()
	s, err := e.broker.JetStream().Stream(e.t.Context(), name)
	if err != nil {
		e.t.Fatal(err)
	}
	state := s.CachedInfo().State
	var list []*jetstream.RawStreamMsg
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		m, err := s.GetMsg(e.t.Context(), seq)
		if err != nil {
			e.t.Fatal(err)
		}
		list = append(list, m)
	}
	return list
}

// limit changes a stream's settings, as a full disk would.
func (e *edge) limit(name string, change func(*jetstream.StreamConfig)) {
	e.t.Helper()
	s, err := e.broker.JetStream().Stream(e.t.Context(), name)
	if err != nil {
		e.t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	change(&cfg)
	if _, err := e.broker.JetStream().UpdateStream(e.t.Context(), cfg); err != nil {
		e.t.Fatal(err)
	}
}
