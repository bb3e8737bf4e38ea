package pull_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/pull"
)

const patience = 30 * time.Second

// lock is the key of the door.
type lock string

func (l lock) Admit(r *http.Request) error {
	if r.Header.Get("Authorization") != "SharedAccessKey "+string(l) {
		return &pull.Denied{Reason: "wrong key", Challenges: []string{"SharedAccessKey"}}
	}
	return nil
}

// replica is one process's part of a gridfan.
type replica struct {
	t      *testing.T
	b      *broker.Broker
	parts  deliver.Parts
	server *pull.Server
	url    string
	worker map[string]*deliver.Worker
}

// created is when the subscribers of all replicas were added.
var created = time.Now().UTC()

func newReplica(t *testing.T, b *broker.Broker, cfg pull.Config, names ...string) *replica {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	rec, err := deliver.NewRecorder(t.Context(), b, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rec.Close)
	r := &replica{t: t, b: b, worker: map[string]*deliver.Worker{}, parts: deliver.Parts{
		Broker: b, Recorder: rec, Metrics: deliver.NewMetrics(prometheus.NewRegistry()), Log: log,
	}}
	r.server = pull.New(pull.NewMetrics(prometheus.NewRegistry()), log)
	for _, name := range names {
		r.begin(name, cfg)
	}
	r.server.Ready()
	s := httptest.NewServer(r.server)
	t.Cleanup(s.Close)
	t.Cleanup(r.server.Stop)
	r.url = s.URL
	return r
}

func (r *replica) begin(name string, cfg pull.Config) {
	r.t.Helper()
	if err := cfg.Validate("deliver.pull"); err != nil {
		r.t.Fatal(err)
	}
	var how deliver.Config
	if err := how.Validate(name); err != nil {
		r.t.Fatal(err)
	}
	w, err := deliver.Start(r.t.Context(), deliver.Subscriber{
		Name: name, Subjects: []string{"events.>"}, Created: created, Config: how, Sender: r.server.Open(name, cfg, lock("key")),
	}, r.parts)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { w.Stop(time.Second) })
	r.worker[name] = w
}

func publish(t *testing.T, b *broker.Broker, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		e := &event.Event{ID: fmt.Sprint(i), Source: "/s", Type: "t", Data: []byte("{\r\n\"a\": 1}"), DataJSON: true, DataContentType: "application/json"}
		h, body := e.Encode()
		m := &nats.Msg{Subject: "events.fno.test.usmf.Thing", Header: h, Data: body}
		if _, err := b.JetStream().PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
}

// call posts to an operation.
func (r *replica) call(ctx context.Context, name, operation, key string, body []byte) (status int, header http.Header, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url+pull.Path(name)+":"+operation, bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	req.Header.Set("Authorization", "SharedAccessKey "+key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, answer, err
}

type held struct {
	ID    string
	Token string
	Count int
}

func (r *replica) receive(ctx context.Context, name string, n int) ([]held, error) {
	status, _, body, err := r.call(ctx, name, fmt.Sprintf("receive?maxEvents=%d&maxWaitTime=10", n), "key", nil)
	if err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("receive: %d %s %v", status, body, err)
	}
	var answer struct {
		Value []struct {
			BrokerProperties struct {
				LockToken     string
				DeliveryCount int
			}
			Event struct{ ID string }
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, err
	}
	var all []held
	for _, v := range answer.Value {
		all = append(all, held{v.Event.ID, v.BrokerProperties.LockToken, v.BrokerProperties.DeliveryCount})
	}
	return all, nil
}

// must is receive until there is something.
func (r *replica) must(name string, n int) []held {
	r.t.Helper()
	for until := time.Now().Add(patience); time.Now().Before(until); {
		got, err := r.receive(r.t.Context(), name, n)
		if err != nil {
			r.t.Fatal(err)
		}
		if len(got) > 0 {
			return got
		}
	}
	r.t.Fatal("nothing was received")
	return nil
}

// end ends a lock. It gives the code of the failure, empty for none.
func (r *replica) end(name, operation, token string) (code string, err error) {
	body, _ := json.Marshal(map[string]any{"lockTokens": []string{token}})
	status, _, text, err := r.call(context.Background(), name, operation, "key", body)
	if err != nil || status != http.StatusOK {
		return "", fmt.Errorf("%s: %d %s %v", operation, status, text, err)
	}
	var answer struct {
		FailedLockTokens    []struct{ Error struct{ Code string } }
		SucceededLockTokens []string
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return "", err
	}
	if len(answer.FailedLockTokens) > 0 {
		return answer.FailedLockTokens[0].Error.Code, nil
	}
	if len(answer.SucceededLockTokens) != 1 || answer.SucceededLockTokens[0] != token {
		return "", fmt.Errorf("%s: %s", operation, text)
	}
	return "", nil
}

func records(t *testing.T, b *broker.Broker) []deliver.Record {
	t.Helper()
	s, err := b.JetStream().Stream(t.Context(), broker.StreamAttempts)
	if err != nil {
		t.Fatal(err)
	}
	state := s.CachedInfo().State
	var all []deliver.Record
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		m, err := s.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		rs, err := deliver.ParseRecords(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, rs...)
	}
	return all
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(until) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// TestReplicas has receivers at two replicas that acknowledge, release, reject and
// forget events, each at any replica. No event ever has two holders, its count
// grows, and each ends once.
func TestReplicas(t *testing.T) {
	t.Parallel()
	const n = 200
	server := brokertest.NewServer(t)
	cfg := pull.Config{LockDuration: deliver.Duration(2 * time.Second), MaxDeliveryCount: 1000}
	rs := []*replica{newReplica(t, server.Connect(), cfg, "a"), newReplica(t, server.Connect(), cfg, "a")}
	publish(t, rs[0].b, 0, n)

	type state struct {
		holder string    // a token
		until  time.Time // the earliest time at which its lock may end
		count  int
		ended  bool
	}
	var mu sync.Mutex
	events := map[string]*state{}
	ended, forgotten := 0, 0
	ctx, stop := context.WithTimeout(t.Context(), 2*patience)
	defer stop()
	var receivers sync.WaitGroup
	for i := range 6 {
		receivers.Go(func() {
			at, random := rs[i%2], rand.New(rand.NewPCG(uint64(i), 1))
			for ctx.Err() == nil {
				got, err := at.receive(ctx, "a", 1+random.IntN(20))
				if err != nil {
					if ctx.Err() == nil {
						t.Error(err)
					}
					return
				}
				for _, h := range got {
					mu.Lock()
					s := events[h.ID]
					if s == nil {
						s = &state{}
						events[h.ID] = s
					}
					switch {
					case s.ended:
						t.Errorf("event %s came again after its end", h.ID)
					case s.holder != "" && time.Now().Before(s.until):
						t.Errorf("event %s has two holders", h.ID)
					case h.Count <= s.count:
						t.Errorf("event %s: count %d after %d", h.ID, h.Count, s.count)
					}
					// It was locked a moment ago at most: the answer took that.
					s.holder, s.until, s.count = h.Token, time.Now().Add(time.Second), h.Count
					mu.Unlock()
				}
				for _, h := range got {
					operation := "acknowledge"
					switch random.IntN(10) {
					case 0:
						mu.Lock()
						forgotten++
						mu.Unlock()
						continue // it runs out
					case 1, 2:
						operation = "release"
					case 3:
						operation = "reject"
					}
					mu.Lock()
					if events[h.ID].holder == h.Token {
						events[h.ID].holder = "" // from here on somebody may have it
						events[h.ID].ended = operation != "release"
					}
					mu.Unlock()
					code, err := rs[random.IntN(2)].end("a", operation, h.Token)
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					if code != "" {
						// Too late: the machine is slow today.
						events[h.ID].ended = false
					} else if operation != "release" {
						if ended++; ended == n {
							stop()
						}
					}
					mu.Unlock()
				}
			}
		})
	}
	receivers.Wait()
	if ended != n {
		t.Fatalf("%d of %d events have ended", ended, n)
	}
	finals := map[uint64]int{}
	for _, r := range records(t, rs[0].b) {
		switch r.Outcome {
		case deliver.RecordDelivered, deliver.RecordDeadLetter:
			finals[r.Sequence]++
		}
	}
	for sequence, times := range finals {
		if times != 1 {
			t.Errorf("event %d is recorded as ended %d times", sequence, times)
		}
	}
	if len(finals) != n {
		t.Errorf("%d events are recorded as ended, want %d", len(finals), n)
	}
	t.Logf("%d locks were forgotten", forgotten)
}

// TestOneEnd lets several end each lock at once, at two replicas. One of them does.
func TestOneEnd(t *testing.T) {
	t.Parallel()
	const n = 60
	server := brokertest.NewServer(t)
	cfg := pull.Config{LockDuration: deliver.Duration(time.Minute)}
	rs := []*replica{newReplica(t, server.Connect(), cfg, "a"), newReplica(t, server.Connect(), cfg, "a")}
	publish(t, rs[0].b, 0, n)
	var all []held
	for len(all) < n {
		all = append(all, rs[len(all)%2].must("a", n-len(all))...)
	}
	for _, h := range all {
		var mu sync.Mutex
		done := map[string]int{}
		var ends sync.WaitGroup
		for i, operation := range []string{"acknowledge", "acknowledge", "reject", "release?releaseDelayInSeconds=3600"} {
			ends.Go(func() {
				code, err := rs[i%2].end("a", operation, h.Token)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				done[code]++
				mu.Unlock()
			})
		}
		ends.Wait()
		if done[""] != 1 || done["TokenLost"] != 3 {
			t.Fatalf("four ends of one lock: %v", done)
		}
	}
	seen := map[uint64]int{}
	for _, r := range records(t, rs[0].b) {
		if r.Outcome != deliver.RecordLocked {
			seen[r.Sequence]++
		}
	}
	for sequence, times := range seen {
		if times != 1 {
			t.Errorf("event %d has %d records of its end", sequence, times)
		}
	}
	if len(seen) != n {
		t.Errorf("%d events have records of their end, want %d", len(seen), n)
	}
}

// TestRestart ends locks at the process after the one that made them.
func TestRestart(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	cfg := pull.Config{LockDuration: deliver.Duration(time.Minute)}
	r := newReplica(t, b, cfg, "a")
	publish(t, b, 0, 2)
	var all []held
	for len(all) < 2 {
		all = append(all, r.must("a", 2-len(all))...)
	}
	r.worker["a"].Stop(0)
	r.begin("a", cfg)
	for i, operation := range []string{"renewLock", "acknowledge"} {
		if code, err := r.end("a", operation, all[i].Token); code != "" || err != nil {
			t.Errorf("%s after a restart: %q, %v", operation, code, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if got, err := r.receive(ctx, "a", 2); err == nil {
		t.Errorf("locked events were handed out after a restart: %v", got)
	}
}

// TestGone has receivers that hang up while they wait. What was on its way to them
// comes to others, and once nobody asks, nothing is fetched. Those that wait when
// the process stops are answered.
func TestGone(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	r := newReplica(t, b, pull.Config{LockDuration: deliver.Duration(3 * time.Second), MaxDeliveryCount: 100}, "a")
	var mu sync.Mutex // guards seen
	seen := map[string]bool{}
	take := func(got []held) {
		for _, h := range got {
			code, err := r.end("a", "acknowledge", h.Token)
			mu.Lock()
			switch {
			case err != nil:
				t.Error(err)
			case code == "" && seen[h.ID]:
				t.Errorf("event %s was acknowledged twice", h.ID)
			case code == "":
				seen[h.ID] = true
			}
			mu.Unlock()
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	for range 20 {
		waiting.Go(func() {
			if got, err := r.receive(ctx, "a", 10); err == nil { // else it was cut off
				take(got)
			}
		})
	}
	publish(t, b, 0, 300)
	cancel()
	waiting.Wait()
	for len(seen) < 300 {
		take(r.must("a", 100))
	}
	publish(t, b, 300, 500)
	r.must("a", 1)
	waitFor(t, "nothing is asked of the broker any more", func() bool {
		c, err := b.JetStream().Consumer(t.Context(), broker.StreamEvents, "a")
		if err != nil {
			t.Fatal(err)
		}
		return c.CachedInfo().NumWaiting == 0
	})
	if s := r.worker["a"].Breaker(); !s.Flowing() {
		t.Errorf("the breaker is %s", s.State)
	}
	for len(seen) < 500 {
		take(r.must("a", 100))
	}
	answered := make(chan error, 1)
	go func() {
		got, err := r.receive(context.Background(), "a", 1)
		if len(got) > 0 {
			err = fmt.Errorf("got %v", got)
		}
		answered <- err
	}()
	began := time.Now()
	time.Sleep(200 * time.Millisecond) // sleep: it is to wait when the end comes
	r.server.Stop()
	if err := <-answered; err != nil && !strings.Contains(err.Error(), "stopping") {
		t.Error(err)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("a receiver was answered %v after the stop, at the end of its wait", took)
	}
}

// TestBadInput wants every kind of nonsense refused, clearly.
func TestBadInput(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	r := newReplica(t, b, pull.Config{}, "a", "b")
	publish(t, b, 0, 1)
	own, other := r.must("a", 1)[0], r.must("b", 1)[0]
	tokens := func(list ...string) string {
		text, _ := json.Marshal(map[string]any{"lockTokens": list})
		return string(text)
	}
	flipped := own.Token[:len(own.Token)-1] + map[bool]string{true: "A", false: "Q"}[!strings.HasSuffix(own.Token, "A")]
	for name, tt := range map[string]struct {
		path, body string
		status     int
		code       string
	}{
		"no operation":        {pull.Path("a"), "", 404, "not-found"},
		"unknown operation":   {pull.Path("a") + ":purge", "", 404, "not-found"},
		"unknown topic":       {"/topics/other/eventsubscriptions/a:receive", "", 404, "unknown-topic"},
		"unknown subscriber":  {pull.Path("nobody") + ":receive", "", 404, "unknown-subscriber"},
		"deeper path":         {"/topics/events/eventsubscriptions/a/b:receive", "", 404, "not-found"},
		"escape":              {"/topics/events/eventsubscriptions/%2e%2e%2fa:receive", "", 404, "unknown-subscriber"},
		"too many events":     {pull.Path("a") + ":receive?maxEvents=101", "", 400, "bad-parameter"},
		"no events":           {pull.Path("a") + ":receive?maxEvents=0", "", 400, "bad-parameter"},
		"events in words":     {pull.Path("a") + ":receive?maxEvents=ten", "", 400, "bad-parameter"},
		"two numbers":         {pull.Path("a") + ":receive?maxEvents=1&maxEvents=2", "", 400, "bad-parameter"},
		"short wait":          {pull.Path("a") + ":receive?maxWaitTime=9", "", 400, "bad-parameter"},
		"long wait":           {pull.Path("a") + ":receive?maxWaitTime=121", "", 400, "bad-parameter"},
		"negative delay":      {pull.Path("a") + ":release?releaseDelayInSeconds=-1", tokens(own.Token), 400, "bad-parameter"},
		"long delay":          {pull.Path("a") + ":release?releaseDelayInSeconds=3601", tokens(own.Token), 400, "bad-parameter"},
		"no body":             {pull.Path("a") + ":acknowledge", "", 400, "bad-body"},
		"no JSON":             {pull.Path("a") + ":acknowledge", "lockTokens", 400, "bad-body"},
		"tokens are no list":  {pull.Path("a") + ":acknowledge", `{"lockTokens":"x"}`, 400, "bad-body"},
		"tokens are no texts": {pull.Path("a") + ":acknowledge", `{"lockTokens":[1]}`, 400, "bad-body"},
		"too many tokens":     {pull.Path("a") + ":acknowledge", tokens(make([]string, 1001)...), 400, "bad-body"},
		"oversized":           {pull.Path("a") + ":acknowledge", tokens(strings.Repeat("x", 200<<10)), 413, "body-too-large"},
		"oversized receive":   {pull.Path("a") + ":receive", strings.Repeat("x", 200<<10), 413, "body-too-large"},
		"bad stream":          {pull.Path("a") + ":stream", "", 405, "method-not-allowed"},
		"null":                {pull.Path("a") + ":acknowledge", `{"lockTokens":null}`, 200, ""},
		"none":                {pull.Path("a") + ":acknowledge", `{"lockTokens":[]}`, 200, ""},
		"another's token":     {pull.Path("a") + ":acknowledge", tokens(other.Token), 200, "BadToken"},
		"changed token":       {pull.Path("a") + ":acknowledge", tokens(flipped), 200, "TokenLost"},
		"garbage":             {pull.Path("a") + ":acknowledge", tokens("garbage"), 200, "BadToken"},
		"empty token":         {pull.Path("a") + ":renewLock", tokens(""), 200, "BadToken"},
		"long token":          {pull.Path("a") + ":reject", tokens(strings.Repeat("A", 5000)), 200, "BadToken"},
		"half a token":        {pull.Path("a") + ":release", tokens(own.Token[:20]), 200, "BadToken"},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "SharedAccessKey key")
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			var body struct {
				Error               struct{ Code, Message string }
				FailedLockTokens    *[]struct{ Error struct{ Code string } }
				SucceededLockTokens *[]string
			}
			if err := json.Unmarshal(text, &body); err != nil {
				t.Fatalf("%d %q: %v", resp.StatusCode, text, err)
			}
			if resp.StatusCode != tt.status || resp.Header.Get("Content-Type") != "application/json" {
				t.Errorf("got %d %s %s", resp.StatusCode, resp.Header.Get("Content-Type"), text)
			}
			if len(text) > 2000 {
				t.Errorf("the answer has %d bytes", len(text))
			}
			code := body.Error.Code
			if tt.status == 200 {
				if body.FailedLockTokens == nil || body.SucceededLockTokens == nil || len(*body.SucceededLockTokens) > 0 {
					t.Fatalf("got %s", text)
				}
				if len(*body.FailedLockTokens) > 0 {
					code = (*body.FailedLockTokens)[0].Error.Code
				}
			} else if body.Error.Message == "" || resp.Header.Get("X-Ms-Error-Code") != tt.code {
				t.Errorf("got %s, x-ms-error-code %q", text, resp.Header.Get("X-Ms-Error-Code"))
			}
			if code != tt.code {
				t.Errorf("code %q, want %q: %s", code, tt.code, text)
			}
		})
	}
	status, header, body, err := r.call(t.Context(), "a", "receive", "wrong", nil)
	if err != nil || status != http.StatusUnauthorized || header.Get("WWW-Authenticate") == "" {
		t.Errorf("wrong key: %d %s %v", status, body, err)
	}
	// None of this has touched the locks.
	for name, token := range map[string]string{"a": own.Token, "b": other.Token} {
		if code, err := r.end(name, "acknowledge", token); code != "" || err != nil {
			t.Errorf("acknowledge for %s: %q, %v", name, code, err)
		}
	}
	for _, want := range []string{"starting", "stopping"} {
		fresh := pull.New(pull.NewMetrics(prometheus.NewRegistry()), slog.New(slog.DiscardHandler))
		if want == "stopping" {
			fresh.Stop()
		}
		w := httptest.NewRecorder()
		fresh.ServeHTTP(w, httptest.NewRequest(http.MethodPost, pull.Path("a")+":receive", nil))
		if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), want) || w.Header().Get("Retry-After") == "" {
			t.Errorf("while it is %s: %d %s", want, w.Code, w.Body)
		}
		// An EventSource would be ended for good by the status; others get it.
		for accept, code := range map[string]int{"text/event-stream": http.StatusOK, "*/*": http.StatusServiceUnavailable} {
			w := httptest.NewRecorder()
			req := httptest.NewRequest(http.MethodGet, pull.Path("a")+":stream", nil)
			req.Header.Set("Accept", accept)
			fresh.ServeHTTP(w, req)
			if w.Code != code || !strings.Contains(w.Body.String(), want) {
				t.Errorf("a stream that accepts %s, while it is %s: %d %s", accept, want, w.Code, w.Body)
			}
			if code == http.StatusOK && (w.Header().Get("Content-Type") != "text/event-stream" || w.Body.String() != "retry: 5000\n: "+want+"\n\n") {
				t.Errorf("an EventSource, while it is %s: %v %q", want, w.Header(), w.Body)
			}
		}
	}
	// What does not pass does end it.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+pull.Path("a")+":stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("an EventSource without a key: %d", resp.StatusCode)
	}
}

// stream opens a stream of server-sent events, and gives the ids of messages and
// their events' as they come; it is closed when the connection ends.
func (r *replica) stream(ctx context.Context, query, last string) <-chan [2]string {
	r.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+pull.Path("a")+":stream"+query, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "SharedAccessKey key")
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		r.t.Fatalf("stream: %d", resp.StatusCode)
	}
	out := make(chan [2]string, 1000)
	go func() {
		defer close(out)
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		id := ""
		for lines.Scan() {
			if v, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
				id = v
			}
			if v, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var e struct{ ID string }
				if json.Unmarshal([]byte(v), &e) != nil {
					e.ID = "unreadable: " + v
				}
				out <- [2]string{id, e.ID}
			}
		}
	}()
	return out
}

// TestStream reads server-sent events as a browser does: what is named by
// Last-Event-ID, and all before it, is acknowledged; the rest comes anew.
func TestStream(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	r := newReplica(t, b, pull.Config{LockDuration: deliver.Duration(time.Hour)}, "a")
	const n = 30
	publish(t, b, 0, n)
	seen, last := map[string]int{}, ""
	var acknowledged []string
	for round := 0; len(acknowledged) < n && round < 50; round++ {
		var got [][2]string
		for m := range r.stream(t.Context(), "?maxEvents=7", last) {
			if got = append(got, m); len(acknowledged)+len(got) == n {
				break
			}
		}
		if len(got) == 0 {
			t.Fatal("the stream ended without an event")
		}
		// The last of each window did not arrive.
		if len(got) > 1 && len(acknowledged)+len(got) < n {
			got = got[:len(got)-1]
		}
		for _, m := range got {
			seen[m[1]]++
			acknowledged = append(acknowledged, m[1])
		}
		last = got[len(got)-1][0]
	}
	for id, times := range seen {
		if times != 1 {
			t.Errorf("event %s came %d times", id, times)
		}
	}
	if len(seen) != n {
		t.Errorf("%d events came, want %d: %v", len(seen), n, seen)
	}
	// One more connection names the last ones.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r.stream(ctx, "", last)
	delivered := func() int {
		n := 0
		for _, rec := range records(t, b) {
			if rec.Outcome == deliver.RecordDelivered {
				n++
			}
		}
		return n
	}
	waitFor(t, "all are delivered", func() bool { return delivered() == n })
	cancel()

	// With ack=manual the connection stays, and nothing is acknowledged but by
	// whoever says so.
	publish(t, b, n, n+3)
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	manual := r.stream(ctx, "?ack=manual&maxEvents=1", last)
	for range 3 {
		m, ok := <-manual
		if !ok {
			t.Fatal("the stream has ended")
		}
		if code, err := r.end("a", "acknowledge", m[0]); code != "" || err != nil {
			t.Errorf("acknowledge: %q, %v", code, err)
		}
	}
	if got := delivered(); got != n+3 {
		t.Errorf("%d are delivered, want %d", got, n+3)
	}
	var left jetstream.StreamInfo
	waitFor(t, "nothing waits", func() bool {
		s, err := b.JetStream().Stream(t.Context(), broker.StreamRetry)
		if err != nil {
			t.Fatal(err)
		}
		left = *s.CachedInfo()
		return left.State.Msgs == 0
	})
}
