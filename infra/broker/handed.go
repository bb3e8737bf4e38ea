package broker

import (
	"bytes"
	"net"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The client makes a map of each message's headers, with a slice for each of them: a
// tenth of the CPU of a delivery, and then an event is made of the map. So who reads
// what a consumer hands out gets the headers as they came, where the server is in this
// process. The client has no setting for that, but it knows messages without headers.
// So the one line by which the server announces such a message
// (docs.nats.io/reference/nats-protocol/nats-protocol, HMSG; 2026-11)
//
//	HMSG <subject> <sid> <reply> <bytes of headers> <bytes in all>
//
// is given to the client as
//
//	MSG <subject> <sid> <reply>|<bytes of headers>  <bytes in all>
//
// which has as many bytes. Nothing else is changed, and whatever is not understood is
// left as it is, so that the worst that can happen is that the client makes its maps.

// ConnectReading is Connect for who reads what a durable consumer of that name hands
// out, on EVENTS and RETRY. Its messages are to be read by Handed.
func (b *Broker) ConnectReading(name, consumer string) (*nats.Conn, jetstream.JetStream, error) {
	if b.node == nil {
		return b.Connect(name)
	}
	var replies []string
	for _, stream := range []string{StreamEvents, StreamRetry} {
		replies = append(replies, "$JS.ACK."+stream+"."+consumer+".")
	}
	nc, err := b.dial("gridfan-"+name, nats.InProcessServer(handing{b.node, replies}))
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(nc)
	return nc, js, err
}

// Handed gives the parts of a message that came on a connection of ConnectReading:
// the subject to answer to, the headers, and the body. raw are the headers as they
// came, without a map; nil where m.Header has them.
func Handed(m *nats.Msg) (reply string, raw, body []byte) {
	at := strings.LastIndexByte(m.Reply, '|')
	if at < 0 {
		return m.Reply, nil, m.Data
	}
	n, err := strconv.Atoi(m.Reply[at+1:])
	if err != nil || n < 0 || n > len(m.Data) {
		return m.Reply, nil, m.Data // none of ours
	}
	return m.Reply[:at], m.Data[:n:n], m.Data[n:]
}

// handing is a node whose connections hand headers over as they are.
type handing struct {
	node    *node
	replies []string // how the replies of those messages begin
}

func (h handing) InProcessConn() (net.Conn, error) {
	c, err := h.node.InProcessConn()
	if err != nil {
		return nil, err
	}
	return &handingConn{Conn: c, replies: h.replies}, nil
}

// handingConn reads what the server says.
type handingConn struct {
	net.Conn
	replies []string
	kept    []byte // the beginning of a line whose end has not come
	ready   []byte // to be read next
	room    []byte // for who reads little at once
	skip    int    // bytes of a message that are still to come
	through bool   // something was not understood: nothing more is changed
}

const (
	// handingLine is more than any line of the protocol has that matters here.
	handingLine = 8 << 10
	// handingRead is the least that is read at once.
	handingRead = 2 * handingLine
)

func (c *handingConn) Read(p []byte) (int, error) {
	for {
		if len(c.ready) > 0 {
			n := copy(p, c.ready)
			c.ready = c.ready[n:]
			return n, nil
		}
		if c.through {
			return c.Conn.Read(p)
		}
		into := p
		if len(p) < handingRead {
			if c.room == nil {
				c.room = make([]byte, handingRead)
			}
			into = c.room
		}
		n := copy(into, c.kept)
		m, err := c.Conn.Read(into[n:])
		n += m
		whole := c.change(into[:n])
		c.kept = append(c.kept[:0], into[whole:n]...)
		if len(c.kept) > handingLine {
			c.through = true
		}
		if c.through || err != nil {
			whole = n
			c.kept = nil
		}
		if len(p) < handingRead {
			c.ready = into[:whole]
			whole = copy(p, c.ready)
			c.ready = c.ready[whole:]
		}
		if whole > 0 || err != nil {
			return whole, err
		}
	}
}

// change changes lines in b, and says up to where there are whole ones, or parts of
// messages.
func (c *handingConn) change(b []byte) int {
	i := 0
	for i < len(b) && !c.through {
		if c.skip > 0 {
			n := min(c.skip, len(b)-i)
			i += n
			c.skip -= n
			continue
		}
		n := bytes.IndexByte(b[i:], '\n')
		if n < 0 {
			break
		}
		c.line(b[i : i+n])
		i += n + 1
	}
	return i
}

var (
	opMsg        = []byte("MSG ")
	opMsgHeaders = []byte("HMSG ")
)

// line looks at one, without its end.
func (c *handingConn) line(line []byte) {
	headers := bytes.HasPrefix(line, opMsgHeaders)
	if !headers && !bytes.HasPrefix(line, opMsg) {
		return
	}
	rest, ok := bytes.CutSuffix(line, []byte("\r"))
	last := bytes.LastIndexByte(rest, ' ') // there is one
	size, err := strconv.ParseUint(string(rest[last+1:]), 10, 31)
	if !ok || err != nil {
		c.through = true
		return
	}
	c.skip = int(size) + len("\r\n")
	if !headers {
		return
	}
	before := bytes.LastIndexByte(rest[:last], ' ')
	if before < 0 {
		return
	}
	reply := rest[bytes.LastIndexByte(rest[:before], ' ')+1 : before]
	for _, prefix := range c.replies {
		if len(reply) > len(prefix) && string(reply[:len(prefix)]) == prefix {
			rest[before] = '|'
			copy(rest, rest[1:last])
			rest[last-1] = ' '
			return
		}
	}
}
