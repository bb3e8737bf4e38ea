package receive

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"github.com/gridfan/gridfan/infra/azureamqp"
)

// wire is the connection under a client of AMQP, of which there is one at a time.
type wire struct {
	conn    atomic.Pointer[metered]
	trouble atomic.Pointer[error] // the first of the network's
}

// reach opens a connection for the client.
func (w *wire) reach(ctx context.Context, d azureamqp.Dialer) (net.Conn, error) {
	c, err := d.Dial(ctx)
	if err != nil {
		w.trouble.CompareAndSwap(nil, &err)
		return nil, err
	}
	m := &metered{Conn: c, wire: w, gone: make(chan struct{})}
	m.left.Store(maxRead)
	w.conn.Store(m)
	return m, nil
}

// said is what the network complained of, nil if it did not.
func (w *wire) said() error {
	if p := w.trouble.Load(); p != nil {
		return *p
	}
	return nil
}

// refill lets as much come again as one call may bring.
func (w *wire) refill() {
	if c := w.conn.Load(); c != nil {
		c.left.Store(maxRead)
	}
}

// hangUp ends the connection, whatever the client is waiting for.
func (w *wire) hangUp() {
	if c := w.conn.Load(); c != nil {
		c.Close()
	}
}

// metered bounds what is read, and remembers why a connection ended, because the
// client's errors do not tell.
type metered struct {
	net.Conn
	wire *wire
	left atomic.Int64
	gone chan struct{} // closed when nothing more comes
	end  sync.Once
}

// errTooMuch ends a connection over which more comes than can be kept.
var errTooMuch = errors.New("the service sends more at once than was asked for")

// Read implements net.Conn.
func (m *metered) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	if m.left.Add(-int64(n)) < 0 {
		err = errTooMuch
		m.Close()
	}
	if err != nil {
		m.wire.trouble.CompareAndSwap(nil, &err)
		m.end.Do(func() { close(m.gone) })
	}
	return n, err
}
