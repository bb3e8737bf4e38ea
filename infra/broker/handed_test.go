package broker

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
)

// piecewise is a connection on which bytes come in pieces.
type piecewise struct {
	net.Conn
	text  []byte
	piece func() int
}

func (p *piecewise) Read(b []byte) (int, error) {
	if len(p.text) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.piece())], p.text)
	p.text = p.text[n:]
	return n, nil
}

func handed(text []byte, piece, room func() int) []byte {
	c := &handingConn{Conn: &piecewise{text: text, piece: piece}, replies: []string{"$JS.ACK.EVENTS.one.", "$JS.ACK.RETRY.one."}}
	var out []byte
	b := make([]byte, 64<<10)
	for {
		n, err := c.Read(b[:room()])
		out = append(out, b[:n]...)
		if err != nil {
			return out
		}
	}
}

// TestHandingConn: what the server says comes through however it is cut, and only
// messages of the one consumer lose their announced headers.
func TestHandingConn(t *testing.T) {
	body := strings.Repeat("HMSG a 1 $JS.ACK.EVENTS.one.1 1 2\r\n", 3) // is no line
	const head = "NATS/1.0\r\nce-id: 1\r\n\r\n"
	announce := func(format string, args ...any) string { return fmt.Sprintf(format, args...) + "\r\n" }
	var in, want strings.Builder
	for i := range 200 {
		payload := strings.Repeat(body, i%7)
		all := len(head) + len(payload)
		same := []string{
			"INFO {\"max_payload\":1048576}\r\n", "PING\r\n", "+OK\r\n", "-ERR 'x y'\r\n",
			announce("MSG events.x 1 %d", len(payload)) + payload + "\r\n",
			announce("MSG events.x 1 $JS.ACK.EVENTS.one.1.2.3.4.5 %d", len(payload)) + payload + "\r\n",
			announce("HMSG _INBOX.x 1 %d %d", len(head), all) + head + payload + "\r\n",
			announce("HMSG events.x 1 $JS.ACK.EVENTS.other.1.2.3.4.5 %d %d", len(head), all) + head + payload + "\r\n",
			announce("HMSG events.x 1 $JS.ACK._.hash.EVENTS.one.1.2.3.4.5.x %d %d", len(head), all) + head + payload + "\r\n",
		}[i%9]
		in.WriteString(same)
		want.WriteString(same)
		stream := []string{"EVENTS", "RETRY"}[i%2]
		fmt.Fprintf(&in, "HMSG events.x 17 $JS.ACK.%s.one.1.2.3.4.%d %d %d\r\n%s%s\r\n", stream, i, len(head), all, head, payload)
		fmt.Fprintf(&want, "MSG events.x 17 $JS.ACK.%s.one.1.2.3.4.%d|%d  %d\r\n%s%s\r\n", stream, i, len(head), all, head, payload)
	}
	for _, room := range []int{1, 7, 100, handingRead, 32 << 10} {
		for _, piece := range []int{1, 3, 40, 4096, 1 << 20} {
			if got := handed([]byte(in.String()), func() int { return piece }, func() int { return room }); string(got) != want.String() {
				t.Errorf("in pieces of %d, read by %d: something else came", piece, room)
			}
		}
	}
	for range 20 {
		if got := handed([]byte(in.String()), func() int { return 1 + rand.IntN(5000) }, func() int { return 1 + rand.IntN(40000) }); string(got) != want.String() {
			t.Error("in random pieces: something else came")
		}
	}
}

func TestHanded(t *testing.T) {
	for _, tt := range []struct{ reply, data, wantReply, raw, body string }{
		{"$JS.ACK.EVENTS.one.1.2.3.4.5|4", "headbody", "$JS.ACK.EVENTS.one.1.2.3.4.5", "head", "body"},
		{"$JS.ACK.EVENTS.one.1.2.3.4.5", "headbody", "$JS.ACK.EVENTS.one.1.2.3.4.5", "", "headbody"},
		{"$JS.ACK.EVENTS.one.1.2.3.4.5|9", "headbody", "$JS.ACK.EVENTS.one.1.2.3.4.5|9", "", "headbody"},
		{"a|-1", "headbody", "a|-1", "", "headbody"},
		{"a|x", "headbody", "a|x", "", "headbody"},
		{"", "", "", "", ""},
	} {
		reply, raw, body := Handed(&nats.Msg{Reply: tt.reply, Data: []byte(tt.data)})
		if reply != tt.wantReply || string(raw) != tt.raw || string(body) != tt.body {
			t.Errorf("%q: got %q, %q, %q", tt.reply, reply, raw, body)
		}
	}
}

// FuzzHandingConn: whatever comes, as many bytes go on, at once, and however they are
// cut they are the same.
func FuzzHandingConn(f *testing.F) {
	f.Add([]byte("HMSG events.x 17 $JS.ACK.EVENTS.one.1.2.3.4.5 12 14\r\nNATS/1.0\r\n\r\nab\r\nPING\r\n"), 3)
	f.Add([]byte("HMSG a 1 $JS.ACK.EVENTS.one.1 x\r\n"), 1)
	f.Add([]byte("HMSG \r\nMSG \r\nMSG 99999999999999999999\r\n"), 1)
	f.Add([]byte("HMSG 1\n"), 1)
	f.Add(slices.Concat([]byte("HMSG "), bytes.Repeat([]byte("x"), 3*handingLine), []byte("\r\nPING\r\n")), 4000)
	f.Fuzz(func(t *testing.T, text []byte, piece int) {
		piece = 1 + (piece&0x7fffffff)%5000
		room := func() int { return 32 << 10 }
		got := handed(text, func() int { return piece }, room)
		if len(got) != len(text) {
			t.Errorf("%d bytes became %d", len(text), len(got))
		}
		if len(text) <= handingLine {
			if whole := handed(text, func() int { return len(text) }, room); !bytes.Equal(got, whole) {
				t.Errorf("in pieces of %d: %q, whole: %q", piece, got, whole)
			}
		}
	})
}
