package webhook

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/sync/semaphore"
)

// Requests over http without a proxy go by plain, not by http.Transport. That one has
// two goroutines for each connection, hands each request from one to another, and
// back, and guards what many callers may do with it: of the CPU of a delivery it took
// two fifths, most of it beside the calls of the kernel. Here one goroutine writes
// the request, and reads the answer with net/http's own reader. Over TLS the
// encryption costs more than that, and HTTP/2 is worth more.
//
// Why not fasthttp, which has a client of this kind: it knows no context, sends a
// POST once more when its connection was closed before the answer, and reads answers
// in a way of its own (github.com/valyala/fasthttp v1.69.0, client.go; 2026-11).

// plain makes requests to one host over HTTP/1.1. It is safe for concurrent use.
//
// It keeps what http.Transport promises where we rely on it: a request is repeated
// only if its connection was a kept one and had taken nothing of it; informational
// answers and headers are read up to maxReply bytes in all; a connection is kept only
// after a whole answer, with nothing behind it, to a request that was written whole.
type plain struct {
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	address string
	// target is what answers are to, and its prefix what begins a request to there
	// after the method.
	target *http.Request
	prefix string
	// running bounds the requests, and so the connections; nil for any number.
	running *semaphore.Weighted

	mu     sync.Mutex   // guards all below
	idle   []*plainConn // the one that was used last at the end
	reaper *time.Timer  // runs while there are idle ones; nil before the first
	closed bool
}

// plainInline is the size up to which a request is written before its answer is
// read. Any kernel takes that much for a connection on which nothing else is on its
// way. With more, an answer that comes before the end of the request would wait for
// whoever sent it to read the rest.
const plainInline = 16 << 10

// plainPatience is how long the end of a request is waited for whose answer is there.
const plainPatience = 50 * time.Millisecond

// newPlain gives nil for what is a matter of http.Transport: TLS, proxies, names in
// other scripts than ASCII, and what that one refuses. target and t are ready for
// requests.
func newPlain(target *http.Request, t *http.Transport, concurrency int) *plain {
	u := target.URL
	if !plainKnows || u.Scheme != "http" || t.Proxy != nil || strings.ContainsFunc(u.Host, func(r rune) bool { return r <= ' ' || r == '%' || r >= 0x7f }) {
		return nil
	}
	// net/http says how a URL is written in a request.
	var whole bytes.Buffer
	sample := &http.Request{Method: http.MethodPost, URL: u, Host: target.Host, Header: http.Header{"User-Agent": {""}}}
	if err := sample.Write(&whole); err != nil {
		return nil
	}
	line, rest, _ := strings.Cut(whole.String(), "\r\n")
	host, _, _ := strings.Cut(rest, "\r\n")
	prefix, ok := strings.CutPrefix(line, http.MethodPost)
	if !ok || !strings.HasPrefix(host, "Host: ") {
		return nil
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	p := &plain{dial: t.DialContext, address: net.JoinHostPort(u.Hostname(), port), target: target, prefix: prefix + "\r\n" + host + "\r\n"}
	if concurrency > 0 {
		p.running = semaphore.NewWeighted(int64(concurrency))
	}
	return p
}

// plainLines writes a header as it stands in a request. It refuses what net/http
// refuses.
func plainLines(b []byte, h http.Header) ([]byte, error) {
	for name, values := range h {
		switch name {
		case "Host", "Content-Length", "Transfer-Encoding", "Trailer":
			continue // not a header's to say
		}
		if !httpguts.ValidHeaderFieldName(name) {
			return b, fmt.Errorf("net/http: invalid header field name %q", name)
		}
		for _, value := range values {
			if !httpguts.ValidHeaderFieldValue(value) {
				return b, fmt.Errorf("net/http: invalid header field value for %q", name) // which may be secret
			}
			b = append(append(b, name...), ": "...)
			b = append(append(b, strings.Trim(value, " \t")...), "\r\n"...)
		}
	}
	return b, nil
}

// plainConn is one connection. Whoever has it taken is alone with it.
type plainConn struct {
	net.Conn
	in    *bufio.Reader
	left  int64     // bytes that may be read until the header of an answer is whole
	out   []byte    // room for a request
	used  bool      // there was a request before this one
	drop  func()    // ends what runs on it
	since time.Time // idle

	// see silent
	raw    syscall.RawConn // nil: it is not kept
	look   func(uintptr) bool
	silent bool
}

var (
	errPlainHead = fmt.Errorf("net/http: server response headers exceeded %d bytes; aborted", maxReply)
	errPlainGone = errors.New("the kept connection took nothing any more")
)

func (c *plainConn) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, errPlainHead
	}
	n, err := c.Conn.Read(b[:min(int64(len(b)), c.left)])
	c.left -= int64(n)
	return n, err
}

// do makes one request, and reads its answer within limits: of what follows the
// status, no more than replyGrace waits for, and nothing is kept of a success unless
// whole is set. lines are those of header, if they are known already. Without an
// answer there is an error; ctx says whether that is why.
func (p *plain) do(ctx context.Context, method string, header http.Header, lines, body []byte, whole bool) (*http.Response, []byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if p.running != nil {
		if err := p.running.Acquire(ctx, 1); err != nil {
			return nil, nil, err
		}
		defer p.running.Release(1)
	}
	for {
		c, err := p.take(ctx)
		if err != nil {
			return nil, nil, err
		}
		resp, answer, err := p.exchange(ctx, c, method, header, lines, body, whole)
		if err == errPlainGone && ctx.Err() == nil {
			continue // there are not many of these, and then a new one
		}
		return resp, answer, err
	}
}

// exchange is do on a connection, which it keeps or closes.
func (p *plain) exchange(ctx context.Context, c *plainConn, method string, header http.Header, lines, body []byte, whole bool) (resp *http.Response, answer []byte, err error) {
	keep := false
	stop := context.AfterFunc(ctx, c.drop)
	defer func() {
		if stop() && keep {
			p.put(c)
		} else {
			c.Close()
		}
	}()
	head := append(append(c.out[:0], method...), p.prefix...)
	if lines != nil {
		head = append(head, lines...)
	} else if head, err = plainLines(head, header); err != nil {
		return nil, nil, err
	}
	if len(body) > 0 || method == http.MethodPost {
		head = append(strconv.AppendInt(append(head, "Content-Length: "...), int64(len(body)), 10), "\r\n"...)
	}
	head = append(head, "\r\n"...)
	var writing chan error // tells how writing has ended; nil if it has
	if len(head)+len(body) <= plainInline {
		head = append(head, body...)
		n, failed := c.Write(head)
		if failed != nil {
			if n == 0 && c.used {
				return nil, nil, errPlainGone
			}
			err = failed
			c.SetReadDeadline(time.Now().Add(replyGrace)) // there may be an answer all the same
		}
		c.out = head
	} else {
		writing = make(chan error, 1)
		go func() {
			parts := net.Buffers{head, body}
			n, failed := parts.WriteTo(c.Conn)
			switch {
			case failed == nil:
			case n == 0 && c.used:
				failed = errPlainGone
				c.Close()
			default:
				c.SetReadDeadline(time.Now().Add(replyGrace))
			}
			writing <- failed
		}()
		// The body is the caller's again when this returns.
		defer func() {
			if writing != nil {
				c.Close()
				<-writing
			}
		}()
	}
	resp, failed := c.answer(p.target)
	if failed != nil {
		if writing != nil {
			c.Close()
			if err, writing = <-writing, nil; err == errPlainGone {
				return nil, nil, err
			}
		}
		if err == nil || errors.Is(err, net.ErrClosed) {
			err = failed
		}
		return nil, nil, fmt.Errorf("net/http: HTTP/1.x transport connection broken: %w", err)
	}
	answer, ended := c.rest(resp, whole)
	if ended && writing != nil {
		t := time.NewTimer(plainPatience)
		defer t.Stop()
		select {
		case err = <-writing:
			writing = nil
		case <-t.C:
			ended = false
		}
	}
	keep = ended && err == nil && !resp.Close && c.in.Buffered() == 0
	return resp, answer, nil
}

// maxInformational is how many informational answers may come before the one that
// counts.
const maxInformational = 5

// answer reads an answer's header.
func (c *plainConn) answer(to *http.Request) (*http.Response, error) {
	c.left = maxReply
	for range 1 + maxInformational {
		resp, err := http.ReadResponse(c.in, to)
		if err != nil {
			if c.left <= 0 {
				err = errPlainHead
			}
			return nil, err
		}
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, nil
		}
	}
	return nil, errors.New("net/http: too many 1xx informational responses")
}

// rest reads what follows the header, at most maxReply bytes and for replyGrace, and
// returns it unless it was a success and whole is not set. ended says that it came to
// its end.
func (c *plainConn) rest(resp *http.Response, whole bool) (body []byte, ended bool) {
	switch {
	case resp.StatusCode < 200:
		return nil, false // after 101 follows no answer
	case resp.Body == http.NoBody:
		return nil, true
	}
	success := resp.StatusCode < 300 && !whole
	if n := int(resp.ContentLength); success && n > 0 && n <= c.in.Buffered() {
		_, err := c.in.Discard(n)
		return nil, err == nil
	}
	c.left = 2 * maxReply // with what the parts of it are wrapped in
	c.SetReadDeadline(time.Now().Add(replyGrace))
	var err error
	if success {
		_, err = io.CopyN(io.Discard, resp.Body, maxReply)
		ended = err == io.EOF
	} else {
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxReply))
		ended = err == nil && len(body) < maxReply
	}
	if ended {
		ended = c.SetReadDeadline(time.Time{}) == nil
	}
	return body, ended
}

// take gives a kept connection that nothing has happened to, or a new one.
func (p *plain) take(ctx context.Context) (*plainConn, error) {
	now := time.Now()
	for {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			break
		}
		c := p.idle[n-1]
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		if now.Sub(c.since) < idleTimeout && c.quiet() {
			return c, nil
		}
		c.Close()
	}
	conn, err := p.dial(ctx, "tcp", p.address)
	if err != nil {
		return nil, err
	}
	c := &plainConn{Conn: conn}
	c.in = bufio.NewReader(c)
	c.drop = func() { conn.Close() }
	if s, ok := conn.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			c.raw, c.look = raw, c.peek
		}
	}
	return c, nil
}

// quiet says whether nothing has come on an idle connection: neither its end nor what
// nobody asked for.
func (c *plainConn) quiet() bool {
	c.silent = false
	return c.raw.Read(c.look) == nil && c.silent
}

// put keeps a connection for the next request.
func (p *plain) put(c *plainConn) {
	c.used = true
	c.since = time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || c.raw == nil {
		c.Close()
		return
	}
	p.idle = append(p.idle, c)
	if len(p.idle) > 1 {
		return // the reaper runs
	}
	if p.reaper == nil {
		p.reaper = time.AfterFunc(idleTimeout, p.reap)
	} else {
		p.reaper.Reset(idleTimeout)
	}
}

// reap closes connections that were idle for too long.
func (p *plain) reap() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	n := 0
	for n < len(p.idle) && now.Sub(p.idle[n].since) >= idleTimeout {
		p.idle[n].Close()
		n++
	}
	p.idle = append(p.idle[:0], p.idle[n:]...)
	if len(p.idle) > 0 {
		p.reaper.Reset(idleTimeout - now.Sub(p.idle[0].since))
	}
}

// close gives up idle connections, and those in use once they are not.
func (p *plain) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.idle {
		c.Close()
	}
	p.idle = nil
	if p.reaper != nil {
		p.reaper.Stop()
	}
}
