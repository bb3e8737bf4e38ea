package webhook

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/egress"
	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// scripted is a server whose answers to the requests of a connection are written
// here, byte by byte.
type scripted struct {
	addr        string
	connections atomic.Int32
	requests    atomic.Int32
	ended       chan struct{} // one for each connection that has ended
}

// script serves connections: each request is read whole and answered by what serve
// writes. It gets the number of the connection and of the request in it, both from 1,
// and ends the connection by false.
func script(t *testing.T, serve func(c net.Conn, connection, request int) bool) *scripted {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s := &scripted{addr: l.Addr().String(), ended: make(chan struct{}, 1000)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n := int(s.connections.Add(1))
			go func() {
				defer func() { c.Close(); s.ended <- struct{}{} }()
				in := bufio.NewReader(c)
				for i := 1; ; i++ {
					req, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					if _, err := io.Copy(io.Discard, req.Body); err != nil {
						return
					}
					s.requests.Add(1)
					if !serve(c, n, i) {
						return
					}
				}
			}()
		}
	}()
	return s
}

// awaitEnds waits until n connections have ended.
func (s *scripted) awaitEnds(t *testing.T, n int) {
	t.Helper()
	for range n {
		select {
		case <-s.ended:
		case <-time.After(20 * time.Second):
			t.Fatal("a connection stays open")
		}
	}
}

func plainSender(t *testing.T, addr string, concurrency int) *Sender {
	t.Helper()
	s, err := New(Config{URL: "http://" + addr + "/"}, Options{Concurrency: concurrency})
	if err != nil {
		t.Fatal(err)
	}
	if s.plain == nil {
		t.Fatal("it would go by the transport")
	}
	t.Cleanup(s.Close)
	return s
}

// TestPlainOrNot: what only the transport can do is left to it.
func TestPlainOrNot(t *testing.T) {
	proxied, err := egress.New(egress.Config{Proxy: secret.New("http://127.0.0.1:1")})
	if err != nil {
		t.Fatal(err)
	}
	direct, err := egress.New(egress.Config{Proxy: secret.New(egress.None)})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		url  string
		way  *egress.Way
		want bool
	}{
		{"http://wms.example.com/in", direct.Way(false), true},
		{"http://wms.example.com/in", direct.Way(true), true},
		{"http://[::1]:8080/in", direct.Way(true), true},
		{"https://wms.example.com/in", direct.Way(false), false},
		{"http://wms.example.com/in", proxied.Way(false), false},
		{"http://bücher.example/in", direct.Way(false), false},
		{"http://[fe80::1%25en0]/in", direct.Way(false), false},
	} {
		s, err := New(Config{URL: tt.url}, Options{Egress: tt.way})
		if err != nil {
			t.Errorf("%s: %v", tt.url, err)
			continue
		}
		if got := s.plain != nil; got != tt.want {
			t.Errorf("%s: plain is %v, want %v", tt.url, got, tt.want)
		}
	}
}

// TestPlainAsTransport: requests are what the transport would have made of them.
func TestPlainAsTransport(t *testing.T) {
	came := make(chan string, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var h strings.Builder
		_ = r.Header.Write(&h) // sorted by name
		came <- fmt.Sprintf("%s %s %s\n%s %d %q %v\n%s\n%s", r.Method, r.RequestURI, r.Proto, r.Host, r.ContentLength, r.TransferEncoding, r.Close, h.String(), body)
	}))
	defer srv.Close()
	full := &event.Event{
		ID: "ü 1\r\nX: y", Source: "/s", Type: "t", Subject: strings.Repeat("s", 5000), Time: time.Unix(1, 0), DataContentType: "application/json",
		Data: []byte(`{"a": "` + strings.Repeat("x", 20<<10) + `"}`), DataJSON: true,
	}
	full.Set(event.ExtPartitionKey, "\u2028 key")
	for _, path := range []string{"", "/", "/a%2Fb%20c/ü?q=1&r=%20;s", "//x/../y?", "/?code=" + url.QueryEscape(canaryKey)} {
		for _, format := range Formats {
			for _, e := range []*event.Event{small, full} {
				for _, keys := range [][]Key{nil, {oldKey}} {
					u := strings.Replace(srv.URL, "http://", "http://user:pass%20word@", 1) + path
					s, err := New(Config{URL: u, Format: format, Headers: map[string]string{"X-Own": "{{id}}", "X-Fixed": "a b"}}, Options{Version: "1", Keys: keys})
					if err != nil {
						t.Fatal(err)
					}
					if keys != nil {
						s.signer = nil // has the time in it
						s.secrets = hide(s.request.URL, keys, nil)
					}
					a := s.Send(t.Context(), e)
					if a.Outcome != deliver.Delivered {
						t.Fatalf("%s, %s, %d bytes: %+v", path, format, len(e.Data), a)
					}
					byPlain := <-came
					s.Close()
					s.plain = nil
					b := s.Send(t.Context(), e)
					s.Close()
					if a != b {
						t.Fatalf("%s, %s, %d bytes: %+v, and by the transport %+v", path, format, len(e.Data), a, b)
					}
					got := <-came
					if d := cmp.Diff(got, byPlain); d != "" {
						t.Errorf("%s, %s, %d bytes (-transport +plain):\n%s", path, format, len(e.Data), d)
					}
				}
			}
		}
	}
}

// TestPlainAnswers: what is an answer, and whether its connection is used again.
func TestPlainAnswers(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	for _, tt := range []struct {
		name, answer string
		status       int
		kept         bool
	}{
		{"with its length", ok, 200, true},
		{"empty", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, true},
		{"no content", "HTTP/1.1 204 No Content\r\n\r\n", 204, true},
		{"in chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n", 200, true},
		{"a refusal", "HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno", 503, true},
		{"a long refusal", "HTTP/1.1 503 No\r\nContent-Length: 60000\r\n\r\n" + strings.Repeat("x", 60000), 503, true},
		{"after informational ones", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok, 200, true},
		{"HTTP/1.0, kept", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", 200, true},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, false},
		{"the last one", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 200, false},
		{"more than its length", ok + "HTTP/1.1 500 Whose\r\nContent-Length: 0\r\n\r\n", 200, false},
		{"more than no content", "HTTP/1.1 204 No Content\r\n\r\nx", 204, false},
		{"another protocol", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 101, false},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", 0, false},
		{"no status", "HTTP/1.1 \r\n\r\n", 0, false},
		{"no HTTP", "220 mail.example.com ESMTP\r\n", 0, false},
		{"too many informational ones", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 20) + ok, 0, false},
		{"a large header", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxReply) + "\r\n\r\n", 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := script(t, func(c net.Conn, _, _ int) bool {
				_, err := io.WriteString(c, tt.answer)
				return err == nil
			})
			s := plainSender(t, srv.addr, 4)
			const sends = 3
			for range sends {
				if a := s.Send(t.Context(), small); a.Status != tt.status {
					t.Errorf("got %+v, want status %d", a, tt.status)
				}
			}
			if n := srv.requests.Load(); n != sends {
				t.Errorf("%d requests for %d attempts", n, sends)
			}
			if n := srv.connections.Load(); (n == 1) != tt.kept || n != 1 && n != sends {
				t.Errorf("%d connections for %d requests; kept should be %v", n, sends, tt.kept)
			}
			s.Close()
			srv.awaitEnds(t, int(srv.connections.Load()))
		})
	}
}

// TestPlainUntilItsEnd: an answer without a length ends with its connection.
func TestPlainUntilItsEnd(t *testing.T) {
	srv := script(t, func(c net.Conn, _, _ int) bool {
		_, _ = io.WriteString(c, "HTTP/1.1 500 Oh\r\n\r\nwhat a pity")
		return false
	})
	s := plainSender(t, srv.addr, 1)
	for range 2 {
		if a := s.Send(t.Context(), small); a.Reason != "HTTP 500: what a pity" {
			t.Errorf("got %+v", a)
		}
	}
}

// TestPlainClosedWhileIdle: a server ends connections after each answer without
// saying so, or says something that nobody asked for. The next attempt takes another
// one, and the subscriber sees each event once.
func TestPlainClosedWhileIdle(t *testing.T) {
	for name, end := range map[string]func(net.Conn){
		"closed": func(c net.Conn) { c.Close() },
		"reset": func(c net.Conn) {
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
		},
		"half closed": func(c net.Conn) { _ = c.(*net.TCPConn).CloseWrite() },
		"timed out": func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			answered, idle := make(chan struct{}), make(chan struct{})
			srv := script(t, func(c net.Conn, _, _ int) bool {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				<-answered
				end(c)
				idle <- struct{}{}
				return true
			})
			s := plainSender(t, srv.addr, 4)
			const sends = 5
			for i := range sends {
				if a := s.Send(t.Context(), small); a.Outcome != deliver.Delivered {
					t.Errorf("attempt %d: got %+v", i, a)
				}
				answered <- struct{}{}
				<-idle
				// What was done there is to be seen here; on one machine it is at once,
				// or nearly.
				s.plain.mu.Lock()
				c := s.plain.idle[0]
				s.plain.mu.Unlock()
				deadline := time.Now().Add(20 * time.Second)
				for c.quiet() {
					if time.Now().After(deadline) {
						t.Fatal("the end of an idle connection is not seen")
					}
					runtime.Gosched()
				}
			}
			if n := srv.requests.Load(); n != sends {
				t.Errorf("%d requests for %d attempts", n, sends)
			}
			if n := srv.connections.Load(); n != sends {
				t.Errorf("%d connections for %d attempts", n, sends)
			}
		})
	}
}

// TestPlainNeverTwice: a kept connection ends after it has taken a request. Whether
// the event was processed is not known: the attempt has failed, and is not repeated.
func TestPlainNeverTwice(t *testing.T) {
	for _, size := range []int{10, 1 << 20} {
		srv := script(t, func(c net.Conn, _, request int) bool {
			if request%2 == 0 {
				return false
			}
			_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			return err == nil
		})
		s := plainSender(t, srv.addr, 1)
		e := &event.Event{ID: "1", Source: "/s", Type: "t", Data: bytes.Repeat([]byte("x"), size)}
		for i := range 6 {
			a := s.Send(t.Context(), e)
			if i%2 == 0 && a.Outcome != deliver.Delivered || i%2 == 1 && (a.Outcome != deliver.Failed || a.Fault != deliver.FaultNetwork) {
				t.Errorf("%d bytes, attempt %d: got %+v", size, i, a)
			}
		}
		if n := srv.requests.Load(); n != 6 {
			t.Errorf("%d bytes: %d requests for 6 attempts", size, n)
		}
	}
}

// TestPlainEarlyAnswer: a server that does not want a request says so before its end
// and reads no further. Its answer counts, at once.
func TestPlainEarlyAnswer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = c.Read(make([]byte, 4096))
				_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
				<-over
			}()
		}
	}()
	s := plainSender(t, l.Addr().String(), 1)
	before := runtime.NumGoroutine()
	e := &event.Event{ID: "1", Source: "/s", Type: "t", Data: bytes.Repeat([]byte("x"), 8<<20)}
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		a := s.Send(ctx, e)
		if a.Status != http.StatusRequestEntityTooLarge || a.Reason != "HTTP 413: big" || ctx.Err() != nil {
			t.Errorf("got %+v", a)
		}
		cancel()
	}
	settle(t, before+3) // those of the server
}

// settle waits until there are no more goroutines than n.
func settle(t *testing.T, n int) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for runtime.NumGoroutine() > n {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, want at most %d", runtime.NumGoroutine(), n)
		}
		runtime.Gosched()
	}
}

// TestPlainGivesUp: attempts that are stopped, or time out, at each point leave
// neither connections nor goroutines behind, and do not spoil those after them.
func TestPlainGivesUp(t *testing.T) {
	silent := make(chan struct{}, 100)
	srv := script(t, func(c net.Conn, _, request int) bool {
		if request > 1 {
			silent <- struct{}{}
			_, _ = io.Copy(io.Discard, c) // until the other side has gone
			return false
		}
		_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		return err == nil
	})
	s := plainSender(t, srv.addr, 1)
	before := runtime.NumGoroutine()
	for range 5 {
		if a := s.Send(t.Context(), small); a.Outcome != deliver.Delivered {
			t.Fatalf("got %+v", a)
		}
		ctx, cancel := context.WithCancel(t.Context())
		waiting := make(chan deliver.Attempt)
		go func() {
			<-silent
			// The one connection there may be is taken.
			short, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer stop()
			a := s.Send(short, small)
			cancel()
			waiting <- a
		}()
		if a := s.Send(ctx, small); a.Outcome != deliver.Aborted || a.Status != 0 {
			t.Errorf("stopped: got %+v", a)
		}
		if a := <-waiting; a.Outcome != deliver.Failed || a.Fault != deliver.FaultTimeout {
			t.Errorf("without a free connection: got %+v", a)
		}
	}
	if n := srv.requests.Load(); n != 10 {
		t.Errorf("%d requests, want 10", n)
	}
	srv.awaitEnds(t, 5)
	s.Close()
	settle(t, before)
}

// TestPlainIdle: a connection that nobody needs is given up.
func TestPlainIdle(t *testing.T) {
	t.Parallel()
	srv := script(t, func(c net.Conn, _, _ int) bool {
		_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		return err == nil
	})
	s := plainSender(t, srv.addr, 8)
	done := make(chan deliver.Attempt)
	for range 8 {
		go func() { done <- s.Send(t.Context(), small) }()
	}
	for range 8 {
		if a := <-done; a.Outcome != deliver.Delivered {
			t.Errorf("got %+v", a)
		}
	}
	srv.awaitEnds(t, int(srv.connections.Load()))
	s.plain.mu.Lock()
	defer s.plain.mu.Unlock()
	if len(s.plain.idle) != 0 {
		t.Errorf("%d are kept", len(s.plain.idle))
	}
}

// TestPlainLines: a header that net/http refuses is refused, and not shown.
func TestPlainLines(t *testing.T) {
	for _, h := range []http.Header{
		{"X-A": {"canary\r\nX-B: 1"}}, {"X-A": {"canary\nX"}}, {"X-A": {"canary\x00"}}, {"X-A: 1\r\nX-B": {"canary"}}, {"": {"canary"}}, {"X A": {"canary"}},
	} {
		lines, err := plainLines(nil, h)
		if err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%q: got %q, %v", h, lines, err)
		}
	}
	lines, err := plainLines(nil, http.Header{"X-A": {" a ", "b"}, "Content-Length": {"7"}, "Transfer-Encoding": {"chunked"}, "Host": {"elsewhere"}})
	if err != nil || !slices.Equal(lines, []byte("X-A: a\r\nX-A: b\r\n")) {
		t.Errorf("got %q, %v", lines, err)
	}
}
