package deliver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
)

// pullReader reads through a durable JetStream consumer, by the protocol of pull
// requests (nats-architecture-and-design, adr/ADR-13.md; nats-server v2.15.2,
// server/consumer.go; 2026-11).
//
// It is not the client's own Fetch, because that makes a subscription, a goroutine,
// two channels and a timer for each message anew for every request: a twelfth of the
// CPU of a delivery. And what had come to one that was stopped came again only after
// ackWait; here it is given back. Nor is it Consume, which can lose its last request
// and stop for 30 seconds (nats.go v1.55.0, jetstream/pull.go). A request here is
// waited for by whoever made it, to its end, and there is one at a time on a
// subscription.
type pullReader struct {
	nc   *nats.Conn
	link *link
	// next is where requests go; most is how many messages one brings.
	next string
	most int

	mu   sync.Mutex // guards free
	free *inbox     // of the last fetch, if no request is open there
}

// inbox is a subscription on which messages and words about requests come.
type inbox struct {
	sub     *nats.Subscription
	subject string // of requests, without their number
	number  uint64 // of the request before
	came    chan *nats.Msg
	timer   *time.Timer
}

// inboxRoom is room beside messages, for what the server has to say.
const inboxRoom = 64

func newPullReader(nc *nats.Conn, l *link, stream, consumer string, most int) *pullReader {
	return &pullReader{
		nc: nc, link: l, most: max(most, readyBatch),
		next: "$JS.API.CONSUMER.MSG.NEXT." + stream + "." + consumer,
	}
}

// pullRequest is what the server is asked for.
type pullRequest struct {
	Expires   time.Duration `json:"expires,omitempty"`
	Batch     int           `json:"batch"`
	MaxBytes  int           `json:"max_bytes,omitempty"`
	NoWait    bool          `json:"no_wait,omitempty"`
	Heartbeat time.Duration `json:"idle_heartbeat,omitempty"`
}

// fetchBeat is how often the server says that a long request is still with it. The
// lack of two ends it.
const fetchBeat = 5 * time.Second

// overdue is how much later than it should be the end of a request may come.
const overdue = time.Second

func (r *pullReader) fetch(ctx context.Context, max int, wait time.Duration, yield func(message)) error {
	ctx, unlink := r.link.with(ctx)
	defer unlink()
	r.mu.Lock()
	in := r.free
	r.free = nil
	r.mu.Unlock()
	if in == nil {
		var err error
		if in, err = r.open(); err != nil {
			return err
		}
	}
	req := pullRequest{Expires: wait, Batch: min(max, r.most), MaxBytes: fetchBytes}
	if wait >= 2*fetchBeat {
		req.Heartbeat = fetchBeat
	}
	_, over, err := r.request(ctx, in, req, yield)
	if !over {
		in.close(r.nc)
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.free = in
	return nil
}

// readyBatch bounds the memory of one request, which can have no limit of bytes:
// 16 messages of the largest kind fit the connection's own limit.
const readyBatch = 16

// ready does not use a deadline: what the server had sent when it ended would
// come again. Here the server says when there is no more.
func (r *pullReader) ready(ctx context.Context, max int, yield func(message)) error {
	in, err := r.open()
	if err != nil {
		return err
	}
	defer in.close(r.nc)
	for max > 0 && ctx.Err() == nil {
		n := min(max, readyBatch)
		came, over, err := r.request(ctx, in, pullRequest{Batch: n, NoWait: true}, yield)
		if err != nil || !over || came < n {
			return err
		}
		max -= n
	}
	return nil
}

func (r *pullReader) open() (*inbox, error) {
	in := &inbox{subject: r.nc.NewInbox() + ".", came: make(chan *nats.Msg, r.most+inboxRoom), timer: time.NewTimer(time.Hour)}
	var err error
	in.sub, err = r.nc.ChanSubscribe(in.subject+"*", in.came)
	return in, err
}

// close ends an inbox and gives back what has come and nobody has taken.
func (in *inbox) close(nc *nats.Conn) {
	in.timer.Stop()
	_ = in.sub.Unsubscribe() // it fails where the connection is closed
	for {
		select {
		case m := <-in.came:
			if p, err := pulledFrom(nc, m); err == nil {
				_ = p.release() // or it comes again after ackWait
			}
		default:
			return
		}
	}
}

// request asks for messages and yields them as they come. over says that the server
// is done with the request, so that what comes next belongs to another one.
func (r *pullReader) request(ctx context.Context, in *inbox, req pullRequest, yield func(message)) (came int, over bool, err error) {
	in.number++
	reply := in.subject + strconv.FormatUint(in.number, 10)
	body, err := json.Marshal(req)
	if err != nil {
		return 0, false, err
	}
	if err := r.nc.PublishRequest(r.next, reply, body); err != nil {
		return 0, false, err
	}
	silence := req.Expires + overdue
	if req.Heartbeat > 0 {
		silence = 2 * req.Heartbeat
	}
	begun, heard, completed := time.Now(), 0, false
	in.timer.Reset(silence)
	for {
		if ctx.Err() != nil {
			return came, false, nil // what has come is given back
		}
		var m *nats.Msg
		select {
		case m = <-in.came:
		default:
			select {
			case m = <-in.came:
			case <-ctx.Done():
				return came, false, nil
			case <-in.timer.C:
				switch {
				case req.Heartbeat == 0 || completed:
					return came, false, nil
				case came == heard:
					return came, false, jetstream.ErrNoHeartbeat
				}
				heard = came
				in.timer.Reset(silence)
				continue
			}
		}
		if strings.HasPrefix(m.Subject, in.subject) && len(m.Data) == 0 {
			if m.Subject != reply {
				continue // of one that is over
			}
			if completes(m) {
				completed = true
				in.timer.Reset(overdue)
				continue
			}
			if over, err := ends(m); over || err != nil {
				return came, over, err
			}
			// It is still with the server.
			if left := req.Expires + overdue - time.Since(begun); left < silence {
				silence = max(left, 0)
			}
			in.timer.Reset(silence)
			continue
		}
		p, err := pulledFrom(r.nc, m)
		if err != nil {
			return came, false, fmt.Errorf("metadata of a fetched message: %w", err)
		}
		yield(p)
		if came++; came == req.Batch {
			return came, true, nil
		}
	}
}

// completes says whether the server has sent all that a request with a limit of bytes
// is for. Where several servers keep the cursor that overtakes the last of the
// messages, which waits for the quorum (nats-server v2.15.2, consumer.go, deliverMsg
// and JsPullRequestRemainingBytesT; seen 2026-11): they are waited for.
func completes(m *nats.Msg) bool {
	return m.Header.Get("Status") == "409" && strings.EqualFold(m.Header.Get("Description"), "Batch Completed")
}

// ends reads what the server says of a request: that it is over, or why it was not
// taken. Neither means that it is still with the server.
func ends(m *nats.Msg) (over bool, err error) {
	status, why := m.Header.Get("Status"), strings.ToLower(m.Header.Get("Description"))
	switch status {
	case "100":
		return false, nil
	case "404", "408":
		return true, nil
	case "503":
		return false, nats.ErrNoResponders
	case "409":
		switch {
		case strings.Contains(why, "exceeds maxbytes"):
			return true, nil // those that fitted have come
		case strings.Contains(why, "consumer deleted"):
			return false, jetstream.ErrConsumerDeleted
		case strings.Contains(why, "leadership change"):
			return false, jetstream.ErrConsumerLeadershipChanged
		case strings.Contains(why, "server shutdown"):
			return false, jetstream.ErrServerShutdown
		}
	}
	return false, fmt.Errorf("the server refuses a request for messages: %.3s %.100q", status, why)
}

// pulled is a message with what its reply subject says.
type pulled struct {
	m        *nats.Msg
	nc       *nats.Conn
	reply    string
	raw      []byte      // headers as they came; nil: as m has them
	names    nats.Header // of raw, once somebody wants to have them as a map
	data     []byte
	stream   uint64 // sequence in the stream
	consumer uint64 // number of the delivery
	repeated bool
}

var errNoMetadata = errors.New("its reply subject is not that of a consumer's message")

// pulledFrom reads the reply subject, in the form of today and in the one to come
// (nats-architecture-and-design, adr/ADR-15.md; 2026-11):
//
//	$JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.<consumer sequence>.<time>.<pending>
//	$JS.ACK.<domain>.<account>.<stream>.<consumer>.<delivered>.<stream sequence>.…
func pulledFrom(nc *nats.Conn, m *nats.Msg) (*pulled, error) {
	reply, raw, body := broker.Handed(m)
	rest, ok := strings.CutPrefix(reply, "$JS.ACK.")
	before := 2 // tokens
	switch n := strings.Count(rest, "."); {
	case !ok || n < 6 || n == 7:
		return nil, errNoMetadata
	case n > 7:
		before = 4
	}
	for range before {
		_, rest, _ = strings.Cut(rest, ".")
	}
	var numbers [3]uint64
	for i := range numbers {
		var text string
		text, rest, _ = strings.Cut(rest, ".")
		var err error
		if numbers[i], err = strconv.ParseUint(text, 10, 64); err != nil {
			return nil, errNoMetadata
		}
	}
	return &pulled{m: m, nc: nc, reply: reply, raw: raw, data: body, repeated: numbers[0] > 1, stream: numbers[1], consumer: numbers[2]}, nil
}

func (p *pulled) header() nats.Header {
	if p.raw == nil {
		return p.m.Header
	}
	if p.names == nil {
		// What is broken has none: it becomes a dead letter.
		if p.names, _ = nats.DecodeHeadersMsg(p.raw); p.names == nil {
			p.names = nats.Header{}
		}
	}
	return p.names
}

func (p *pulled) get(name string) string {
	if p.raw == nil || p.names != nil {
		return p.header().Get(name)
	}
	for rest := p.raw; ; {
		line, after, more := bytes.Cut(rest, []byte("\n"))
		line, _ = bytes.CutSuffix(line, []byte("\r"))
		if len(line) > len(name) && line[len(name)] == ':' && string(line[:len(name)]) == name {
			return string(bytes.TrimLeft(line[len(name)+1:], " \t"))
		}
		if !more || len(line) == 0 {
			return ""
		}
		rest = after
	}
}

func (p *pulled) decode() (*event.Event, error) {
	if p.raw == nil || p.names != nil {
		return event.Decode(p.header(), p.data)
	}
	var room [32]event.Field
	fields, ok := fieldsOf(room[:0], string(p.raw))
	if !ok {
		return event.Decode(p.header(), p.data) // whatever the client makes of it
	}
	return event.DecodeFields(fields, p.data)
}

// fieldsOf appends the headers of a block to fields. It understands what the client
// writes, and says so.
func fieldsOf(fields []event.Field, block string) ([]event.Field, bool) {
	rest, ok := strings.CutPrefix(block, "NATS/1.0\r\n")
	for ok {
		end := strings.IndexByte(rest, '\n')
		if end < 1 || rest[end-1] != '\r' {
			break
		}
		var line string
		if line, rest = rest[:end-1], rest[end+1:]; line == "" {
			return fields, rest == ""
		}
		colon := strings.IndexByte(line, ':')
		if colon < 1 {
			break
		}
		fields = append(fields, event.Field{Name: line[:colon], Value: strings.TrimLeft(line[colon+1:], " \t")})
	}
	return fields, false
}

func (p *pulled) body() []byte     { return p.data }
func (p *pulled) subject() string  { return p.m.Subject }
func (p *pulled) sequence() uint64 { return p.stream }
func (p *pulled) serial() uint64   { return p.consumer }
func (p *pulled) again() bool      { return p.repeated }

// What the server is told of a message (server/consumer.go, processAck).
var (
	wordAck     = []byte("+ACK")
	wordHold    = []byte("+WPI")
	wordRelease = []byte("-NAK")
)

func (p *pulled) ack() error     { return p.nc.Publish(p.reply, wordAck) }
func (p *pulled) hold() error    { return p.nc.Publish(p.reply, wordHold) }
func (p *pulled) release() error { return p.nc.Publish(p.reply, wordRelease) }
