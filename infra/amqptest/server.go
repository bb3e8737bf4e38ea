// Package amqptest plays Azure Service Bus for tests: an AMQP 1.0 server on a
// loopback address that the unchanged azservicebus client sends to. It knows what
// that client asks for (v1.11.0; 2026-11): SASL, the claims of $cbs, the link to
// $management, and links that messages come in by, in several frames or in batches.
package amqptest

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
)

// Error is a condition with its description, as the service gives one.
type Error struct {
	Condition   string
	Description string
}

// Delivery is what came in one transfer: a message, or those of a batch.
type Delivery struct {
	// Entity is the queue or topic.
	Entity   string
	Messages []*amqp.Message
	Batch    bool
}

// Fault is what goes wrong with the answer to a delivery.
type Fault string

// The faults.
const (
	Hangs    Fault = "hangs"    // no answer
	Trickles Fault = "trickles" // an answer that never gets to its end
	Resets   Fault = "resets"   // the connection is reset
	Detaches Fault = "detaches" // the link is taken down
)

// Verdict is the answer to a delivery. The zero value accepts it.
type Verdict struct {
	// Error rejects it.
	Error *Error
	// Released and Modified give it back.
	Released, Modified bool
	// Fault takes the place of the answer.
	Fault Fault
}

// Options are how a Server behaves.
type Options struct {
	// TLS makes connections secure. Nil means plain TCP, as the emulator speaks it.
	TLS *tls.Config
	// MaxMessage is the most bytes of a message. 0 means 1 MiB.
	MaxMessage uint64
	// Claim judges a token for an audience and gives a status as in HTTP. Nil
	// accepts every one.
	Claim func(audience, token string) int
	// Attach says why there is no link to an entity. Nil, or a nil answer, means
	// that there is one.
	Attach func(entity string) *Error
	// Receive judges what comes. It is called by several goroutines at once. Nil
	// accepts everything.
	Receive func(Delivery) Verdict
	// Mute makes the server accept connections and say nothing.
	Mute bool
}

// Server listens until its test ends.
type Server struct {
	// Addr is its address, host:port.
	Addr string

	opts     Options
	listener net.Listener
	running  sync.WaitGroup

	mu       sync.Mutex // guards all below
	conns    map[net.Conn]bool
	accepted int
	closed   bool
}

// Start starts a server for a test.
func Start(t testing.TB, opts Options) *Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if opts.MaxMessage == 0 {
		opts.MaxMessage = 1 << 20
	}
	s := &Server{Addr: l.Addr().String(), opts: opts, listener: l, conns: map[net.Conn]bool{}}
	s.running.Go(s.accept)
	t.Cleanup(func() {
		l.Close()
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		s.Drop()
		s.running.Wait()
	})
	return s
}

// Drop ends all connections there are, as a failing network does.
func (s *Server) Drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// Connections counts those that were accepted since the start, and those that are
// open.
func (s *Server) Connections() (accepted, open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted, len(s.conns)
}

func (s *Server) accept() {
	for {
		tcp, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			tcp.Close()
			return
		}
		s.accepted++
		s.conns[tcp] = true
		s.mu.Unlock()
		s.running.Go(func() {
			defer func() {
				tcp.Close()
				s.mu.Lock()
				delete(s.conns, tcp)
				s.mu.Unlock()
			}()
			c := &conn{server: s, tcp: tcp, net: tcp, sessions: map[uint16]*session{}, over: make(chan struct{})}
			if s.opts.TLS != nil {
				c.net = tls.Server(tcp, s.opts.TLS)
			}
			defer c.answers.Wait()
			defer close(c.over)
			c.serve()
		})
	}
}

// conn is one connection. What is not guarded is only the reader's.
type conn struct {
	server   *Server
	tcp, net net.Conn
	sessions map[uint16]*session
	answers  sync.WaitGroup
	over     chan struct{}

	writing sync.Mutex // guards writes and stuck
	stuck   bool       // amid a frame: nothing else is written
}

type session struct {
	links map[uint32]*link // by the client's handle, which is ours too
	next  uint32           // id of our next transfer
}

type link struct {
	name     string
	address  string
	fromThem bool // they send
	whole    []byte
	format   uint64
	id       uint32
	count    uint32
}

var (
	headSASL = []byte("AMQP\x03\x01\x00\x00")
	headAMQP = []byte("AMQP\x00\x01\x00\x00")
)

func (c *conn) write(kind uint8, channel uint16, code uint64, fields []any, payload []byte) {
	c.raw(appendFrame(nil, kind, channel, code, fields, payload))
}

func (c *conn) raw(b []byte) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.stuck {
		return
	}
	if _, err := c.net.Write(b); err != nil {
		c.tcp.Close() // the reader ends
	}
}

// serve speaks until the connection ends.
func (c *conn) serve() {
	if c.server.opts.Mute {
		_, _ = io.Copy(io.Discard, c.tcp)
		return
	}
	r := bufio.NewReader(c.net)
	head := make([]byte, 8)
	if _, err := io.ReadFull(r, head); err != nil || string(head) != string(headSASL) {
		return
	}
	c.raw(headSASL)
	c.write(frameSASL, 0, codeMechanisms, []any{symbol("ANONYMOUS")}, nil)
	if f, err := readFrame(r); err != nil || f.code != codeInit {
		return
	}
	c.write(frameSASL, 0, codeOutcome, []any{uint8(0)}, nil)
	if _, err := io.ReadFull(r, head); err != nil || string(head) != string(headAMQP) {
		return
	}
	c.raw(headAMQP)
	alive := time.NewTicker(10 * time.Second)
	defer alive.Stop()
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-alive.C:
				c.raw([]byte{0, 0, 0, 8, 2, 0, 0, 0}) // an empty frame
			case <-done:
				return
			}
		}
	}()
	for {
		f, err := readFrame(r)
		if err != nil || c.handle(f) != nil {
			return
		}
	}
}

var errDone = errors.New("closed")

func (c *conn) handle(f frame) error {
	s := c.sessions[f.channel]
	if s == nil && f.code >= codeAttach && f.code <= codeEnd {
		return errDone
	}
	switch f.code {
	case codeOpen:
		c.write(frameAMQP, 0, codeOpen, []any{"amqptest", nil, uint32(maxFrame), uint16(65535)}, nil)
	case codeBegin:
		c.sessions[f.channel] = &session{links: map[uint32]*link{}}
		c.write(frameAMQP, f.channel, codeBegin, []any{f.channel, uint32(0), uint32(1 << 30), uint32(1 << 30), uint32(65535)}, nil)
	case codeAttach:
		c.attach(f.channel, s, f)
	case codeTransfer:
		return c.transfer(f.channel, s, f)
	case codeDetach:
		handle := uint32(number(f.field(0)))
		if s.links[handle] != nil {
			delete(s.links, handle)
			c.write(frameAMQP, f.channel, codeDetach, []any{handle, true}, nil)
		}
	case codeEnd:
		delete(c.sessions, f.channel)
		c.write(frameAMQP, f.channel, codeEnd, nil, nil)
	case codeClose:
		c.write(frameAMQP, 0, codeClose, nil, nil)
		return errDone
	}
	return nil // flows and dispositions ask for no answer
}

// attach answers with the same link, seen from our side.
func (c *conn) attach(channel uint16, s *session, f frame) {
	handle := uint32(number(f.field(1)))
	l := &link{name: text(f.field(0)), fromThem: !truth(f.field(2))}
	source, target := f.field(5), f.field(6)
	l.address = address(target)
	if !l.fromThem {
		l.address = address(source)
	}
	var refused *Error
	if c.server.opts.Attach != nil && l.address != "$cbs" && !strings.HasSuffix(l.address, "/$management") {
		refused = c.server.opts.Attach(l.address)
	}
	if refused != nil {
		source, target = nil, nil
	}
	var first any // delivery-count, of whoever sends
	if !l.fromThem {
		first = uint32(0)
	}
	// The settle modes come back as they were asked for, or the client hangs up.
	c.write(frameAMQP, channel, codeAttach, []any{
		l.name, handle, l.fromThem, f.field(3), f.field(4), source, target, nil, false, first, c.server.opts.MaxMessage,
	}, nil)
	if refused != nil {
		c.write(frameAMQP, channel, codeDetach, []any{handle, true, condition(*refused)}, nil)
		return
	}
	s.links[handle] = l
	if l.fromThem {
		c.credit(channel, handle, l)
	}
}

// credit lets them send on.
func (c *conn) credit(channel uint16, handle uint32, l *link) {
	c.write(frameAMQP, channel, codeFlow, []any{uint32(0), uint32(1 << 30), uint32(0), uint32(1 << 30), handle, l.count, uint32(1000)}, nil)
}

func condition(e Error) described {
	// A frame has room for so much.
	return described{codeError, []any{symbol(e.Condition), e.Description[:min(len(e.Description), maxFrame-1024)]}}
}

// transfer gathers a delivery and answers when it is whole.
func (c *conn) transfer(channel uint16, s *session, f frame) error {
	handle := uint32(number(f.field(0)))
	l := s.links[handle]
	if l == nil {
		return nil // it was on the way when the link went down
	}
	if id := f.field(1); id != nil {
		l.id, l.format, l.whole = uint32(number(id)), number(f.field(3)), nil
	}
	l.whole = append(l.whole, f.payload...)
	if truth(f.field(5)) {
		return nil
	}
	if l.count++; l.count%500 == 0 {
		c.credit(channel, handle, l)
	}
	message := &amqp.Message{}
	if err := message.UnmarshalBinary(l.whole); err != nil {
		return err
	}
	const batch = 0x80013700
	d := Delivery{Entity: l.address, Messages: []*amqp.Message{message}}
	if l.format == batch {
		d.Batch, d.Messages = true, nil
		for _, b := range message.Data {
			one := &amqp.Message{}
			if err := one.UnmarshalBinary(b); err != nil {
				return err
			}
			d.Messages = append(d.Messages, one)
		}
	}
	if l.address == "$cbs" {
		c.claim(channel, s, l.id, message)
		return nil
	}
	id := l.id
	// The answer may wait for a test; other deliveries do not.
	c.answers.Go(func() {
		v := Verdict{}
		if c.server.opts.Receive != nil {
			v = c.server.opts.Receive(d)
		}
		c.answer(channel, handle, id, v)
	})
	return nil
}

func (c *conn) answer(channel uint16, handle, id uint32, v Verdict) {
	var state any = described{codeAccepted, nil}
	switch {
	case v.Error != nil:
		state = described{codeRejected, []any{condition(*v.Error)}}
	case v.Released:
		state = described{codeReleased, nil}
	case v.Modified:
		state = described{codeModified, []any{true, false}}
	}
	settled := appendFrame(nil, frameAMQP, channel, codeDisposition, []any{true, id, id, true, state}, nil)
	switch v.Fault {
	case Hangs:
	case Resets:
		if tcp, ok := c.tcp.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // Close then resets
		}
		c.tcp.Close()
	case Trickles:
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		c.writing.Lock()
		c.stuck = true
		c.writing.Unlock()
		for _, b := range settled[:len(settled)-1] {
			if _, err := c.net.Write([]byte{b}); err != nil {
				return
			}
			select {
			case <-tick.C:
			case <-c.over:
				return
			}
		}
		<-c.over
	case Detaches:
		c.write(frameAMQP, channel, codeDetach, []any{handle, true, condition(Error{"amqp:link:detach-forced", "idle"})}, nil)
	default:
		c.raw(settled)
	}
}

// claim judges a token and says so on the link that the client receives answers by.
func (c *conn) claim(channel uint16, s *session, id uint32, request *amqp.Message) {
	c.write(frameAMQP, channel, codeDisposition, []any{true, id, id, true, described{codeAccepted, nil}}, nil)
	audience, _ := request.ApplicationProperties["name"].(string)
	token, _ := request.Value.(string)
	status := 202
	if c.server.opts.Claim != nil {
		status = c.server.opts.Claim(audience, token)
	}
	reply := &amqp.Message{
		Properties:            &amqp.MessageProperties{CorrelationID: request.Properties.MessageID},
		ApplicationProperties: map[string]any{"status-code": int32(status), "status-description": "judged: " + token},
	}
	b, err := reply.MarshalBinary()
	if err != nil {
		c.tcp.Close()
		return
	}
	for handle, l := range s.links {
		if !l.fromThem && l.address == "$cbs" {
			c.write(frameAMQP, channel, codeTransfer, []any{handle, s.next, []byte{byte(s.next)}, uint32(0), true, false}, b)
			s.next++
			return
		}
	}
}
