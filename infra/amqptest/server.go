// Package amqptest plays Azure Service Bus and Event Hubs for tests: an AMQP 1.0
// server on a loopback address that the unchanged azservicebus client sends to and
// receives from, and that the unchanged azeventhubs client reads. It knows what those
// clients ask for (v1.11.0, v2.0.2; 2026-11): SASL, the claims of $cbs, the links to
// $management, links that messages come in by, in several frames or in batches, and
// links that they go out by: with locks, sessions and dead letters (see Queue), or
// from a position in a partition on, with epochs (see Hub).
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
	queues   map[string]*Queue
	hubs     map[string]*Hub

	over chan struct{} // closed when the test ends
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
	s := &Server{Addr: l.Addr().String(), opts: opts, listener: l, conns: map[net.Conn]bool{}, queues: map[string]*Queue{}, hubs: map[string]*Hub{}, over: make(chan struct{})}
	s.running.Go(s.accept)
	t.Cleanup(func() {
		l.Close()
		close(s.over)
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
			defer c.leave()
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

	mu   sync.Mutex       // guards all below
	next uint32           // id of our next transfer
	out  map[uint32]*link // that a transfer of ours went by
}

type link struct {
	conn     *conn
	on       *session
	channel  uint16
	handle   uint32
	name     string
	address  string
	fromThem bool // they send
	whole    []byte
	format   uint64
	id       uint32
	count    uint32

	// Of a link that a Queue sends by, which guards them.
	queue   *Queue
	session string
	room    int             // credit that is left
	sent    map[uint32]sent // by id of the transfer
	gone    bool

	// Of a link that a Hub sends by, which guards them, and room and gone.
	hub       *Hub
	partition *partition
	group     string // its consumer group
	reader    string
	epoch     int64
	next      int64 // sequence number of what it gets next
	number    int   // among the Hub's reads
}

// sent is a message that was given out.
type sent struct {
	tag       [16]byte
	messageID any
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
		c.sessions[f.channel] = &session{links: map[uint32]*link{}, out: map[uint32]*link{}}
		c.write(frameAMQP, f.channel, codeBegin, []any{f.channel, uint32(0), uint32(1 << 30), uint32(1 << 30), uint32(65535)}, nil)
	case codeAttach:
		c.attach(f.channel, s, f)
	case codeTransfer:
		return c.transfer(f.channel, s, f)
	case codeFlow:
		if handle := f.field(4); s != nil && handle != nil {
			c.allow(s.links[uint32(number(handle))], uint32(number(f.field(5))), uint32(number(f.field(6))))
		}
	case codeDisposition:
		c.disposition(f.channel, s, f)
	case codeDetach:
		handle := uint32(number(f.field(0)))
		if l := s.links[handle]; l != nil {
			ended := l.leave()
			delete(s.links, handle)
			if ended {
				return nil // this is their answer
			}
			c.write(frameAMQP, f.channel, codeDetach, []any{handle, true}, nil)
		}
	case codeEnd:
		for _, l := range s.links {
			l.leave()
		}
		delete(c.sessions, f.channel)
		c.write(frameAMQP, f.channel, codeEnd, nil, nil)
	case codeClose:
		c.write(frameAMQP, 0, codeClose, nil, nil)
		return errDone
	}
	return nil
}

// leave takes all links from their queues.
func (c *conn) leave() {
	for _, s := range c.sessions {
		for _, l := range s.links {
			l.leave()
		}
	}
}

// leave takes a link from its queue or hub; ended says that we took it down before.
func (l *link) leave() (ended bool) {
	switch {
	case l.hub != nil:
		return l.part()
	case l.queue != nil:
		l.queue.mu.Lock()
		l.gone = true
		l.queue.mu.Unlock()
		l.queue.leave(l)
	}
	return false
}

// allow takes note of how much they can take (part 2, §2.6.7 of the transport).
func (c *conn) allow(l *link, count, credit uint32) {
	if l != nil && l.hub != nil {
		l.allowed(count + credit)
		return
	}
	if l == nil || l.queue == nil {
		return
	}
	l.queue.mu.Lock()
	l.room = int(int32(count + credit - l.count))
	l.queue.mu.Unlock()
	l.queue.pump()
}

// send sends a message over a link of which they are the receiver, in frames of a
// size that they can take.
func (c *conn) send(l *link, tag, message []byte, settled bool) (id uint32) {
	const most = 16 << 10
	l.on.mu.Lock()
	defer l.on.mu.Unlock()
	id = l.on.next
	l.on.next++
	l.count++
	if !settled {
		l.on.out[id] = l
	}
	for first := true; first || len(message) > 0; first = false {
		part := message[:min(len(message), most)]
		message = message[len(part):]
		fields := []any{l.handle, nil, nil, nil, nil, len(message) > 0}
		if first {
			fields = []any{l.handle, id, tag, uint32(0), settled, len(message) > 0}
		}
		c.write(frameAMQP, l.channel, codeTransfer, fields, part)
	}
	return id
}

// disposition is what they do with what we sent.
func (c *conn) disposition(channel uint16, s *session, f frame) {
	first, last := uint32(number(f.field(1))), uint32(number(f.field(1)))
	if f.field(2) != nil {
		last = uint32(number(f.field(2)))
	}
	state, value := undescribed(f.field(4))
	fields, err := items(value)
	if err != nil {
		fields = nil
	}
	as, reason, description := Completed, "", ""
	switch state {
	case codeReleased:
		as = Released
	case codeModified:
		as = Abandoned
	case codeRejected:
		as = DeadLettered
		if len(fields) > 0 {
			if e := inside(fields[0]); len(e) > 2 {
				info := pairs(e[2])
				reason, description = text(info["DeadLetterReason"]), text(info["DeadLetterErrorDescription"])
			}
		}
	}
	for id := first; id <= last; id++ {
		s.mu.Lock()
		l := s.out[id]
		delete(s.out, id)
		s.mu.Unlock()
		if l == nil || l.queue == nil {
			continue
		}
		answer := described{codeAccepted, nil}
		switch {
		case l.queue.settle(l, id, as, reason, description):
			answer = described{codeRejected, []any{condition(Error{"com.microsoft:message-lock-lost", "The lock supplied is invalid."})}}
		case as == DeadLettered:
			answer = described{codeRejected, nil}
		}
		c.write(frameAMQP, channel, codeDisposition, []any{false, id, id, true, answer}, nil)
	}
}

// attach answers with the same link, seen from our side.
func (c *conn) attach(channel uint16, s *session, f frame) {
	handle := uint32(number(f.field(1)))
	l := &link{conn: c, on: s, channel: channel, handle: handle, name: text(f.field(0)), fromThem: !truth(f.field(2)), sent: map[uint32]sent{}}
	source, target := any(f.field(5)), any(f.field(6))
	l.address = address(f.field(6))
	if !l.fromThem {
		l.address = address(f.field(5))
	}
	entity := l.address != "$cbs" && l.address != "$management" && !strings.HasSuffix(l.address, "/$management")
	var refused *Error
	if c.server.opts.Attach != nil && entity {
		refused = c.server.opts.Attach(l.address)
	}
	if !l.fromThem && entity && refused == nil {
		var found bool
		if refused, found = c.server.read(l, f); found {
			// refused says it
		} else if l.queue = c.server.queue(l.address); l.queue == nil {
			refused = &Error{"amqp:not-found", "The messaging entity '" + l.address + "' could not be found."}
		}
	}
	answer := func(source, target any, properties any, refused *Error) {
		if refused != nil {
			source, target = nil, nil
		}
		var first any // delivery-count, of whoever sends
		if !l.fromThem {
			first = uint32(0)
		}
		// The settle modes come back as they were asked for, or the client hangs up.
		c.write(frameAMQP, channel, codeAttach, []any{
			l.name, handle, l.fromThem, f.field(3), f.field(4), source, target, nil, false, first, c.server.opts.MaxMessage, nil, nil, properties,
		}, nil)
		if refused != nil {
			c.write(frameAMQP, channel, codeDetach, []any{handle, true, condition(*refused)}, nil)
		}
	}
	if l.queue != nil && refused == nil {
		s.links[handle] = l
		if l.queue.opts.Sessions {
			c.answers.Go(func() { c.accept(l, f, target, answer) })
			return
		}
		l.queue.mu.Lock()
		l.queue.links = append(l.queue.links, l)
		l.queue.mu.Unlock()
	}
	answer(source, target, nil, refused)
	if refused != nil {
		return
	}
	s.links[handle] = l
	switch {
	case l.fromThem:
		c.credit(channel, handle, l)
	case l.hub != nil:
		l.join()
	}
}

// accept waits for a session and then lets a receiver have it.
func (c *conn) accept(l *link, f frame, target any, answer func(source, target, properties any, refused *Error)) {
	const name, code, ticksOfEpoch = "com.microsoft:session-filter", 0x137000000c, 621355968000000000
	wanted, anySession := "", true
	var filters map[string]raw
	if fields := inside(f.field(5)); len(fields) > 7 {
		filters = pairs(fields[7])
	}
	filter, ok := filters[name]
	if !ok {
		answer(nil, nil, nil, &Error{"amqp:not-allowed", "It is not possible for an entity that requires sessions to create a non-sessionful message receiver."})
		return
	}
	if _, v := undescribed(filter); len(v) > 0 && v[0] != 0x40 {
		wanted, anySession = text(v), false
	}
	wait := time.Minute
	if ms := number(pairs(f.field(13))["com.microsoft:timeout"]); ms > 0 {
		wait = time.Duration(ms) * time.Millisecond
	}
	deadline := time.After(wait)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		q := l.queue
		if id, ok := q.next(l, wanted, anySession); ok {
			q.mu.Lock()
			l.session = id
			gone := l.gone
			if !gone {
				q.links = append(q.links, l)
			}
			q.mu.Unlock()
			if gone {
				q.leave(l)
				return
			}
			answer(described{codeSource, []any{l.address, nil, nil, nil, nil, nil, nil, dictionary{name, tagged{code, id}}}}, target,
				dictionary{"com.microsoft:locked-until-utc", ticksOfEpoch + time.Now().Add(q.opts.Lock).UnixNano()/100}, nil)
			return
		}
		if !anySession {
			answer(nil, nil, nil, &Error{"com.microsoft:session-cannot-be-locked", "The requested session is locked by another receiver."})
			return
		}
		select {
		case <-tick.C:
		case <-c.over:
			return
		case <-deadline:
			answer(nil, nil, nil, &Error{"com.microsoft:timeout", "There is no session with messages."})
			return
		}
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
	if l.address == "$management" {
		value, status, text := c.server.describe(message)
		c.reply(channel, s, l, message, value, status, text)
		return nil
	}
	if entity, ok := strings.CutSuffix(l.address, "/$management"); ok {
		value, status, text := any(nil), int32(404), "There is no such entity."
		if q := c.server.queue(entity); q != nil {
			value, status, text = q.manage(message)
		}
		c.reply(channel, s, l, message, value, status, text)
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

// claim judges a token and says so.
func (c *conn) claim(channel uint16, s *session, id uint32, request *amqp.Message) {
	audience, _ := request.ApplicationProperties["name"].(string)
	token, _ := request.Value.(string)
	status := 202
	if c.server.opts.Claim != nil {
		status = c.server.opts.Claim(audience, token)
	}
	c.reply(channel, s, &link{address: "$cbs", id: id}, request, nil, int32(status), "judged: "+token)
}

// reply answers a request on the link that the client receives answers by.
func (c *conn) reply(channel uint16, s *session, asked *link, request *amqp.Message, value any, status int32, text string) {
	c.write(frameAMQP, channel, codeDisposition, []any{true, asked.id, asked.id, true, described{codeAccepted, nil}}, nil)
	// Service Bus and Event Hubs spell these in two ways.
	answer := &amqp.Message{
		Properties: &amqp.MessageProperties{CorrelationID: request.Properties.MessageID},
		ApplicationProperties: map[string]any{
			"status-code": status, "status-description": text, "statusCode": status, "statusDescription": text,
		},
		Value: value,
	}
	b, err := answer.MarshalBinary()
	if err != nil {
		c.tcp.Close()
		return
	}
	for _, l := range s.links {
		if !l.fromThem && l.address == asked.address {
			c.send(l, []byte{1}, b, true)
			return
		}
	}
}
