package ingress_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
)

// TestAnswers is the table of answers: what came, and what its sender is told.
func TestAnswers(t *testing.T) {
	e := open(t)
	withKey := map[string]string{"aeg-sas-key": key}
	const big = 10 << 20
	for _, tt := range []struct {
		name      string
		request   request
		status    int
		code      string  // of an error
		published float64 // of a success
		duplicate float64
	}{
		{name: "stored", request: request{path: "/ingress/eg", body: text(good("a1"))}, status: 200, published: 1},
		{name: "again", request: request{path: "/ingress/eg", body: text(good("a1"))}, status: 200, duplicate: 1},
		{name: "stored with a key", request: request{path: "/ingress/shop", header: withKey, body: text(good("a2"))}, status: 200, published: 1},
		{name: "no key", request: request{path: "/ingress/shop", body: text(good("a3"))}, status: 401, code: "unauthorized"},
		{name: "wrong key", request: request{path: "/ingress/shop", header: map[string]string{"aeg-sas-key": canary}, body: text(good("a4"))}, status: 401, code: "unauthorized"},
		{name: "unknown source", request: request{path: "/ingress/nobody", body: text(good("a5"))}, status: 404, code: "unknown-source"},
		{name: "handshake of an unknown source", request: request{method: "OPTIONS", path: "/ingress/nobody"}, status: 404, code: "unknown-source"},
		{name: "ten megabytes", request: request{path: "/ingress/eg", body: bytes.NewReader(make([]byte, big))}, status: 413, code: "body-too-large"},
		{name: "ten megabytes in chunks", request: request{path: "/ingress/eg", body: onlyReader{bytes.NewReader(make([]byte, big))}}, status: 413, code: "body-too-large"},
		{name: "GET", request: request{method: "GET", path: "/ingress/eg"}, status: 405, code: "method-not-allowed"},
		{name: "PUT", request: request{method: "PUT", path: "/ingress/eg", body: text(good("a6"))}, status: 405, code: "method-not-allowed"},
		{name: "the root", request: request{path: "/", body: text(good("a7"))}, status: 404, code: "not-found"},
		{name: "below a source", request: request{path: "/ingress/eg/more", body: text(good("a8"))}, status: 404, code: "not-found"},
		{name: "double slashes", request: request{path: "//ingress//eg", body: text(good("a9"))}, status: 404, code: "not-found"},
		{name: "a slash at the end", request: request{path: "/ingress/eg/", body: text(good("a10"))}, status: 404, code: "not-found"},
		{name: "an encoded slash", request: request{path: "/ingress/eg%2F..%2Fshop", body: text(good("a11"))}, status: 404, code: "unknown-source"},
		{name: "API version of stock clients", request: request{path: "/ingress/eg?api-version=2018-01-01", body: text(good("a12"))}, status: 200, published: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e.t = t
			a := e.do(tt.request)
			if tt.code != "" {
				a.wantError(t, tt.status, tt.code)
				if tt.status == http.StatusUnauthorized && a.header.Get("WWW-Authenticate") == "" {
					t.Error("no WWW-Authenticate")
				}
				if tt.status == http.StatusMethodNotAllowed && a.header.Get("Allow") == "" {
					t.Error("no Allow")
				}
			} else if a.status != tt.status || a.field(t, "published") != tt.published || a.field(t, "duplicate") != tt.duplicate {
				t.Errorf("HTTP %d %s", a.status, a.body)
			}
			e.works()
		})
	}
	e.t = t
	if held := e.stored(broker.StreamQuarantine); len(held) != 0 {
		t.Errorf("%d entries in quarantine", len(held))
	}
}

// TestUnknownSourceDuringRollout: a sender that was configured first must not
// give its events up.
func TestUnknownSourceDuringRollout(t *testing.T) {
	cfg := config()
	cfg.Since = time.Now()
	e := open(t)
	young := newEdge(t, e.broker, cfg)
	young.do(request{path: "/ingress/nobody", body: text(good("r1"))}).wantError(t, 503, "unknown-source")
	young.do(request{method: "OPTIONS", path: "/ingress/nobody"}).wantError(t, 503, "unknown-source")
	e.do(request{path: "/ingress/nobody", body: text(good("r2"))}).wantError(t, 404, "unknown-source")
	young.works()
}

// TestSourceThatIsNotPushed tells who pushes to a source that gridfan asks itself
// what is the matter, and stores nothing.
func TestSourceThatIsNotPushed(t *testing.T) {
	cfg := config()
	cfg.Pulled = []string{"erp"}
	e := newEdge(t, brokertest.New(t), cfg)
	cfg.Since = time.Now()
	young := newEdge(t, e.broker, cfg)
	for _, r := range []request{{path: "/ingress/erp", body: text(good("p1"))}, {method: "OPTIONS", path: "/ingress/erp"}, {path: "/topics/erp:publish", body: text(good("p2"))}} {
		young.do(r).wantError(t, 503, "source-not-pushed")
		e.do(r).wantError(t, 404, "source-not-pushed")
	}
	e.works()
	if n := len(e.stored(broker.StreamEvents)); n != 1 {
		t.Errorf("%d events are stored, want the one that was pushed elsewhere", n)
	}
}

// TestKeys lets nobody in with a wrong key, and shows none to anybody.
func TestKeys(t *testing.T) {
	e := open(t)
	ways := func(k string) map[string]request {
		return map[string]request{
			"aeg-sas-key":   {path: "/ingress/shop", header: map[string]string{"aeg-sas-key": k}},
			"X-Gridfan-Key": {path: "/ingress/shop", header: map[string]string{"X-Gridfan-Key": k}},
			"Authorization": {path: "/ingress/shop", header: map[string]string{"Authorization": "SharedAccessKey " + k}},
			"code":          {path: "/ingress/shop?code=" + k},
			"key":           {path: "/ingress/shop?api-version=1&key=" + k},
		}
	}
	for name, r := range ways(canary) {
		r.body = text(good("refused"))
		a := e.do(r)
		a.wantError(t, 401, "unauthorized")
		if strings.Contains(string(a.body)+fmt.Sprint(a.header), canary) {
			t.Errorf("%s: the answer shows the key: %v %s", name, a.header, a.body)
		}
	}
	if n := len(e.stored(broker.StreamEvents)) + len(e.stored(broker.StreamQuarantine)); n != 0 {
		t.Errorf("%d messages are stored for strangers", n)
	}
	if n := strings.Count(e.log.text(), "sender refused"); n != 1 {
		t.Errorf("%d log lines for refusals within a minute, want 1", n)
	}
	// Bearer tokens and prefixes of the key are no keys.
	for _, r := range []request{
		{path: "/ingress/shop", header: map[string]string{"Authorization": "Bearer " + key}},
		{path: "/ingress/shop", header: map[string]string{"aeg-sas-key": key[:31]}},
		{path: "/ingress/shop?code="},
	} {
		r.body = text(good("refused"))
		e.do(r).wantError(t, 401, "unauthorized")
	}
	// The right key, with a body that goes to quarantine: its headers are kept
	// there, but not this one.
	for name, r := range ways(key) {
		r.body = text("no JSON, by way of " + name)
		if a := e.do(r); a.status != http.StatusOK || a.field(t, "quarantined") != 1.0 {
			t.Errorf("%s: HTTP %d %s", name, a.status, a.body)
		} else if strings.Contains(string(a.body)+fmt.Sprint(a.header), key) {
			t.Errorf("%s: the answer shows the key", name)
		}
	}
	held := e.stored(broker.StreamQuarantine)
	if len(held) != 5 {
		t.Errorf("%d entries in quarantine, want 5", len(held))
	}
	for _, m := range held {
		if strings.Contains(fmt.Sprint(m.Header)+string(m.Data), key) {
			t.Errorf("an entry in quarantine shows the key: %v", m.Header)
		}
	}
	if log := e.log.text(); strings.Contains(log, canary) || strings.Contains(log, key) {
		t.Errorf("the log shows a key:\n%s", log)
	}
}

// TestHandshake answers the OPTIONS request of CloudEvents' abuse protection.
func TestHandshake(t *testing.T) {
	e := open(t)
	ask := func(origin string) answer {
		r := request{method: "OPTIONS", path: "/ingress/shop", header: map[string]string{}}
		if origin != "" {
			r.header["WebHook-Request-Origin"] = origin
		}
		return e.do(r)
	}
	for _, origin := range []string{"eventgrid.azure.net", "one.example", "ONE.example"} {
		a := ask(origin)
		if a.status != http.StatusOK || a.header.Get("WebHook-Allowed-Origin") != origin || a.header.Get("WebHook-Allowed-Rate") != "*" {
			t.Errorf("%s: HTTP %d %v", origin, a.status, a.header)
		}
		if a.header.Get("Allow") != "POST, OPTIONS" || a.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %v", origin, a.header)
		}
	}
	for _, origin := range []string{"evil.example", "*", "eventgrid.azure.net.evil.example"} {
		a := ask(origin)
		a.wantError(t, 401, "origin-not-allowed")
		if a.header.Get("WebHook-Allowed-Origin") != "" {
			t.Errorf("%s is allowed", origin)
		}
	}
	if a := ask(""); a.status != http.StatusOK || a.header.Get("WebHook-Allowed-Origin") != "" {
		t.Errorf("without an origin: HTTP %d %v", a.status, a.header)
	}
	// Whoever asks without end is slowed down.
	for range 1000 {
		if a := ask("one.example"); a.status != http.StatusOK {
			a.wantError(t, 503, "too-many-handshakes")
			e.works()
			return
		}
	}
	t.Error("a thousand handshakes were answered")
}

// TestFull answers 503 while there is no room, so that senders keep their
// events, and goes on when there is.
func TestFull(t *testing.T) {
	e := open(t)
	e.limit(broker.StreamQuarantine, func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 2 })
	for i := range 2 {
		if a := e.do(request{path: "/ingress/eg", body: text(fmt.Sprint("bad ", i))}); a.status != http.StatusOK {
			t.Fatalf("HTTP %d %s", a.status, a.body)
		}
	}
	e.do(request{path: "/ingress/eg", body: text("bad 3")}).wantError(t, 503, "quarantine-full")
	// The quota is one source's own, and good events need none of it.
	if a := e.do(request{path: "/ingress/fo", body: text("bad 4")}); a.status != http.StatusOK {
		t.Errorf("another source: HTTP %d %s", a.status, a.body)
	}
	e.works()

	size := int64(0)
	e.limit(broker.StreamEvents, func(c *jetstream.StreamConfig) { size, c.MaxBytes = c.MaxBytes, 1024 })
	e.do(request{path: "/ingress/eg", body: text(withMember("full", "data", `"`+strings.Repeat("x", 2048)+`"`))}).wantError(t, 503, "storage-full")
	e.limit(broker.StreamEvents, func(c *jetstream.StreamConfig) { c.MaxBytes = size })
	e.works()
}

// TestBrokerAway: events must wait at their senders, handshakes need no broker.
func TestBrokerAway(t *testing.T) {
	e := open(t)
	e.works()
	e.broker.Close()
	e.do(request{path: "/ingress/eg", body: text(good("w1"))}).wantError(t, 503, "broker-unavailable")
	e.do(request{path: "/ingress/eg", body: text("bad")}).wantError(t, 503, "broker-unavailable")
	a := e.do(request{method: "OPTIONS", path: "/ingress/shop", header: map[string]string{"WebHook-Request-Origin": "eventgrid.azure.net"}})
	if a.status != http.StatusOK || a.header.Get("WebHook-Allowed-Origin") != "eventgrid.azure.net" {
		t.Errorf("handshake: HTTP %d %v", a.status, a.header)
	}
	e.do(request{path: "/ingress/shop", body: text(good("w2"))}).wantError(t, 401, "unauthorized")
}

// TestStopping answers everything with 503: the next process is on its way.
func TestStopping(t *testing.T) {
	e := open(t)
	e.in.Stop()
	for _, r := range []request{
		{path: "/ingress/eg", body: text(good("s1"))},
		{path: "/ingress/shop", body: text(good("s2"))},
		{path: "/ingress/nobody", body: text(good("s3"))},
		{method: "OPTIONS", path: "/ingress/eg"},
	} {
		e.do(r).wantError(t, 503, "stopping")
	}
	if n := len(e.stored(broker.StreamEvents)); n != 0 {
		t.Errorf("%d events are stored", n)
	}
}

// TestQueueFull holds the broker's answers back until no more events may wait.
func TestQueueFull(t *testing.T) {
	cfg := broker.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	server, err := broker.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	line := newLine(t, strings.TrimPrefix(server.URL(), "nats://"))
	ext := broker.Config{URL: "nats://" + line.addr}
	if err := ext.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := broker.Open(t.Context(), ext, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	e := newEdge(t, b, config())
	e.works()

	line.hold.Store(true)
	// Four requests of what goes together take up all of a source's share.
	const requests, events = 4, 256
	stalled := make(chan answer, requests)
	for r := range requests {
		var batch strings.Builder
		for i := range events {
			fmt.Fprintf(&batch, `,{"id":"b%d-%d","eventType":"T"}`, r, i)
		}
		go func() {
			resp, err := http.Post(e.url+"/ingress/eg", "application/json", text("["+batch.String()[1:]+"]"))
			if err != nil {
				stalled <- answer{}
				return
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body) // a short one fails the test below
			stalled <- answer{resp.StatusCode, resp.Header, body}
		}()
	}
	waitFor(t, "the first is on its way", func() bool { return line.held.Load() > 0 })
	time.Sleep(time.Second) // sleep: nothing tells when the last one is, too
	e.do(request{path: "/ingress/eg", body: text(good("too-many"))}).wantError(t, 503, "overloaded")
	// Nobody has said that the batches are stored, so their senders are told to
	// repeat.
	for range requests {
		(<-stalled).wantError(t, 503, "broker-unavailable")
	}
	line.hold.Store(false)
	// The client may have taken the silence for a dead connection.
	waitFor(t, "events are taken again", func() bool {
		return e.do(request{path: "/ingress/eg", body: text(good("after"))}).status == http.StatusOK
	})
	e.works()
}

// line is a network in front of a server that can hold back what is sent to it.
type line struct {
	addr string
	hold atomic.Bool
	held atomic.Int64 // bytes that came while it held
}

func newLine(t *testing.T, server string) *line {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &line{addr: l.Addr().String()}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // the test has ended
			}
			up, err := net.Dial("tcp", server)
			if err != nil {
				client.Close()
				continue
			}
			go func() {
				defer client.Close()
				_, _ = io.Copy(client, up) // until either side closes
			}()
			go func() {
				defer up.Close()
				p.forward(up, client)
			}()
		}
	}()
	return p
}

// forward drops nothing: it stops reading to hold.
func (p *line) forward(up io.Writer, client io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := client.Read(buf)
		if p.hold.Load() {
			p.held.Add(int64(n))
			tick := time.NewTicker(5 * time.Millisecond)
			for p.hold.Load() {
				<-tick.C
			}
			tick.Stop()
		}
		if _, werr := up.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}
