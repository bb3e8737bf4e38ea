package app_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/cmd/internal/app"
	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/subscribers/books"
)

// TestMain lets the test's own binary stand in for other processes: a gridfan
// that can be killed, and receivers whose work is not counted as gridfan's.
func TestMain(m *testing.M) {
	switch os.Getenv(childVariable) {
	case childGridfan:
		os.Exit(gridfanChild())
	case childReceivers:
		os.Exit(receiversChild())
	case childPoster:
		os.Exit(posterChild())
	}
	os.Exit(m.Run())
}

// patience is how long a test waits for what must come: far longer than it
// takes on a machine that is busy with something else.
const patience = 2 * time.Minute

// gridfan is a running program with its store.
type gridfan struct {
	t        testing.TB
	dir      string
	log      *slog.Logger
	attempts time.Duration

	app     *app.App // nil while stopped
	admin   *admin.Client
	natsURL string
}

// start runs gridfan on an empty store until the test ends. parts are the
// sources and subscribers of its configuration, in YAML.
func start(t testing.TB, parts ...string) *gridfan {
	t.Helper()
	g := &gridfan{t: t, dir: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	t.Cleanup(g.stop)
	g.run(parts...)
	return g
}

// run starts gridfan on the store it has.
func (g *gridfan) run(parts ...string) {
	g.t.Helper()
	g.runWith(parse(g.t, g.dir, parts...))
}

// runWith is run with a configuration of the test's own.
func (g *gridfan) runWith(cfg *config.Config) {
	g.t.Helper()
	a, err := app.New(context.Background(), cfg, app.Options{Version: "test", Log: g.log, Attempts: g.attempts})
	if err != nil {
		g.t.Fatal(err)
	}
	g.app = a
	g.admin = &admin.Client{URL: "http://" + a.AdminAddr()}
	g.natsURL = a.BrokerURL()
}

// stop stops gridfan. The store stays.
func (g *gridfan) stop() {
	g.t.Helper()
	if g.app == nil {
		return
	}
	if err := g.app.Stop(); err != nil {
		g.t.Error(err)
	}
	g.app = nil
}

// restart stops gridfan and starts it on the same store.
func (g *gridfan) restart(parts ...string) {
	g.t.Helper()
	g.stop()
	g.run(parts...)
}

// configuration is a whole file for a store in dir. Subscribers that are added by
// API may be on this machine.
func configuration(dir string, parts ...string) string {
	return fmt.Sprintf(`listen:
  public: { addr: "127.0.0.1:0" }
  admin: { addr: "127.0.0.1:0" }
broker:
  embedded: { dir: %q, listen: "127.0.0.1:0" }
egress: { allow: [ 127.0.0.1 ] }
`, dir) + strings.Join(parts, "\n")
}

func parse(t testing.TB, dir string, parts ...string) *config.Config {
	t.Helper()
	cfg, err := config.Parse("gridfan.yaml", []byte(configuration(dir, parts...)), config.System())
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// sources are two that everybody may send to.
const sources = `sources:
  eg: { kind: eventgrid, push: { auth: none } }
  fo: { kind: fno, push: { auth: none } }
`

// subscriber is one entry below subscribers; more is the rest of its mapping.
func subscriber(name, url, more string) string {
	if more == "" {
		more = "start: now"
	}
	return fmt.Sprintf("  %s: { subjects: [ \"events.>\" ], deliver: { webhook: { url: %q } }, %s }\n", name, url, more)
}

// quickRetry keeps failed deliveries coming.
const quickRetry = "retry: { schedule: [100ms, 200ms, 500ms, 1s, 2s, 2s, 2s, 2s, 2s, 2s, 5s, 5s, 5s, 5s, 5s, 5s] }"

// answer is what a sender sees.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// json decodes the answer's body.
func (a answer) json(t testing.TB) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(a.body, &m); err != nil {
		t.Fatalf("answer %q: %v", a.body, err)
	}
	return m
}

// sender posts like a program that keeps its connections.
var sender = &http.Client{
	Timeout:   30 * time.Second,
	Transport: &http.Transport{MaxIdleConnsPerHost: 64},
}

// send posts one request and returns what came back.
func send(addr, source string, header http.Header, body []byte) (answer, error) {
	req, err := http.NewRequest(http.MethodPost, "http://"+addr+"/ingress/"+source, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if header != nil {
		req.Header = header.Clone()
	}
	if req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := sender.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, b}, err
}

// post is send for a request that must get through.
func (g *gridfan) post(source string, header http.Header, body []byte) answer {
	g.t.Helper()
	a, err := send(g.app.PublicAddr(), source, header, body)
	if err != nil {
		g.t.Fatal(err)
	}
	return a
}

// accept posts F&O events and wants each accepted.
func (g *gridfan) accept(ids ...string) {
	g.t.Helper()
	for _, id := range ids {
		if a := g.post("fo", nil, businessEvent(id)); a.status != http.StatusOK {
			g.t.Fatalf("event %s: HTTP %d %s", id, a.status, a.body)
		}
	}
}

// businessEvent is an F&O event as F&O posts it.
func businessEvent(id string) []byte {
	return fmt.Appendf(nil, `{"BusinessEventId":"PurchaseOrderConfirmedBusinessEvent","ControlNumber":5637144576,"EventId":%q,"EventTime":"/Date(1637246655000)/","LegalEntity":"usmf","MajorVersion":0,"MinorVersion":0,"PurchaseOrderNumber":"PO-%s","TransactionCurrencyAmount":90055.6}`, id, id)
}

// names gives ids such as "A-0" to "A-9": upper case, as F&O's are.
func names(prefix string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	return list
}

// drained waits until nobody has anything to come.
func (g *gridfan) drained() {
	g.t.Helper()
	waitFor(g.t, "every backlog is empty", func() bool {
		list, err := g.admin.Subscribers(g.t.Context())
		if err != nil {
			return false
		}
		for _, s := range list {
			if s.Backlog.Pending+s.Backlog.Retry > 0 {
				return false
			}
		}
		// A consumer learns of an event a moment after the stream has it, and is
		// empty until then. The books count what is in the stream.
		kept, err := g.admin.Books(g.t.Context())
		if err != nil {
			return false
		}
		for _, s := range kept.Subscribers {
			if s.State != books.StateDeleted && (s.Balance != 0 || s.Pending+s.InRetry+s.Parked > 0) {
				return false
			}
		}
		return true
	})
}

// stored reads all messages of a stream as another NATS client would.
func (g *gridfan) stored(stream string) []*jetstream.RawStreamMsg {
	g.t.Helper()
	_, js := g.nats()
	s, err := js.Stream(g.t.Context(), stream)
	if err != nil {
		g.t.Fatal(err)
	}
	state := s.CachedInfo().State
	var list []*jetstream.RawStreamMsg
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		m, err := s.GetMsg(g.t.Context(), seq)
		if err != nil {
			g.t.Fatalf("%s %d: %v", stream, seq, err)
		}
		list = append(list, m)
	}
	return list
}

// nats connects a client of somebody else's.
func (g *gridfan) nats() (*nats.Conn, jetstream.JetStream) {
	g.t.Helper()
	nc, err := nats.Connect(g.natsURL, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		g.t.Fatal(err)
	}
	return nc, js
}

// waitFor polls until ok.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !eventually(ok) {
		t.Fatalf("not within %v: %s", patience, what)
	}
}

func eventually(ok func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// received is one request a subscriber got.
type received struct {
	subscriber string // the request's path without its slash
	attributes map[string]any
	data       []byte
	at         time.Time
	answered   bool // the sender was still there to hear the answer
}

func (r received) id() string { return fmt.Sprint(r.attributes["id"]) }

// inbox is a server for any number of subscribers, one a path.
type inbox struct {
	url string
	// handle may answer in place of the inbox; false leaves it to it. It is set
	// before anything comes.
	handle func(http.ResponseWriter, *http.Request, received) bool

	mu  sync.Mutex // guards got
	got []received
}

func newInbox(t testing.TB) *inbox {
	in := &inbox{}
	s := httptest.NewServer(in)
	t.Cleanup(s.Close)
	in.url = s.URL
	return in
}

func (in *inbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	got, err := read(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	in.mu.Lock()
	i := len(in.got)
	in.got = append(in.got, got)
	in.mu.Unlock()
	if in.handle == nil || !in.handle(w, r, got) {
		w.WriteHeader(http.StatusNoContent)
	}
	in.mu.Lock()
	in.got[i].answered = r.Context().Err() == nil
	in.mu.Unlock()
}

// read takes a CloudEvent apart, in either content mode.
func read(r *http.Request) (received, error) {
	got := received{subscriber: strings.Trim(r.URL.Path, "/"), attributes: map[string]any{}, at: time.Now()}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return got, err
	}
	if media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); media == "application/cloudevents+json" {
		d := json.NewDecoder(bytes.NewReader(body))
		d.UseNumber()
		var members map[string]json.RawMessage
		if err := d.Decode(&members); err != nil {
			return got, err
		}
		for name, raw := range members {
			if name == "data" {
				got.data = raw
				continue
			}
			if got.attributes[name], err = decode(raw); err != nil {
				return got, err
			}
		}
		return got, nil
	}
	got.data = body
	if contentType := r.Header.Get("Content-Type"); contentType != "" {
		got.attributes["datacontenttype"] = contentType
	}
	for name, values := range r.Header {
		if name, ok := strings.CutPrefix(strings.ToLower(name), "ce-"); ok {
			if got.attributes[name], err = url.PathUnescape(values[0]); err != nil {
				return got, err
			}
		}
	}
	return got, nil
}

// decode reads JSON without losing a digit.
func decode(b []byte) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	err = d.Decode(&v)
	return v, err
}

// of gives what one subscriber got so far.
func (in *inbox) of(subscriber string) []received {
	in.mu.Lock()
	defer in.mu.Unlock()
	var list []received
	for _, r := range in.got {
		if r.subscriber == subscriber {
			list = append(list, r)
		}
	}
	return list
}

// counts tells how often a subscriber got each id.
func (in *inbox) counts(subscriber string) map[string]int {
	counts := map[string]int{}
	for _, r := range in.of(subscriber) {
		counts[r.id()]++
	}
	return counts
}

// wantOnce waits until a subscriber has all ids, and wants each there once.
// Others it may have as well.
func (in *inbox) wantOnce(t testing.TB, subscriber string, ids []string) {
	t.Helper()
	counts := in.wantAll(t, subscriber, ids)
	for _, id := range ids {
		if counts[id] > 1 {
			t.Errorf("%s got %s %d times", subscriber, id, counts[id])
		}
	}
}

// wantAll waits until a subscriber has all ids, however often.
func (in *inbox) wantAll(t testing.TB, subscriber string, ids []string) map[string]int {
	t.Helper()
	var counts map[string]int
	missing := ""
	if !eventually(func() bool {
		counts, missing = in.counts(subscriber), ""
		for _, id := range ids {
			if counts[id] == 0 {
				missing = id
				return false
			}
		}
		return true
	}) {
		t.Fatalf("%s has not got %s; it has %d of %d", subscriber, missing, len(counts), len(ids))
	}
	return counts
}
