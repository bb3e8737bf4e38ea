package servicebus

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"github.com/gridfan/gridfan/infra/azureamqp"
)

const (
	// openTimeout bounds everything from the TCP connection to the link: it is
	// below the default deadline of an attempt (30 s).
	openTimeout = 20 * time.Second

	// closeTimeout is how long the service may take to say goodbye.
	closeTimeout = 2 * time.Second

	// leastLimit is what a batch takes of every tier; mostLimit is that of the
	// largest (learn.microsoft.com, service-bus-quotas; read 2026-11).
	leastLimit = 256_000
	mostLimit  = 1 << 20
)

// link is a connection with a client over it, or the making of one.
type link struct {
	ready  chan struct{} // closed once the fields below stand
	err    error
	client *azservicebus.Client
	sender *azservicebus.Sender

	stop context.CancelFunc // ends the opening
	last atomic.Int64       // when the service said something, Unix nanoseconds
	// doubts counts errors that left open whether the link is gone.
	doubts atomic.Int32

	mu     sync.Mutex // guards all below
	conn   net.Conn
	failed error // what the network first complained of
	over   bool
}

// connected gives the link there is, or waits for a new one until ctx ends. Its
// error is that of the opening, if there is a link, which is dropped already.
func (s *Sender) connected(ctx context.Context) (*link, error) {
	s.mu.Lock()
	l := s.link
	if s.closed {
		s.mu.Unlock()
		return nil, net.ErrClosed
	}
	if l == nil {
		// Not the context of whoever comes first: the others wait for it, too.
		opening, cancel := context.WithTimeout(context.Background(), openTimeout)
		l = &link{ready: make(chan struct{}), stop: cancel}
		s.link = l
		s.background.Go(func() {
			defer cancel()
			defer close(l.ready)
			if l.err = l.open(opening, s); l.err != nil {
				s.drop(l)
			}
		})
	}
	s.mu.Unlock()
	select {
	case <-l.ready:
		return l, l.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// open makes the connection and everything over it that a message needs.
func (l *link) open(ctx context.Context, s *Sender) error {
	l.heard()
	var err error
	if l.client, err = s.newLink(l); err != nil {
		return err
	}
	if l.sender, err = l.client.NewSender(s.entity, nil); err != nil {
		return err
	}
	limit, err := l.limit(ctx)
	if err == nil {
		s.limit.Store(int64(limit))
		l.heard()
	}
	return err
}

// limit finds out how much a batch takes. The client knows and does not say, but it
// refuses what is too much; asking for a batch also opens the link.
func (l *link) limit(ctx context.Context) (int, error) {
	fits := func(n int) (bool, error) {
		batch, err := l.sender.NewMessageBatch(ctx, nil)
		if err != nil {
			return false, err
		}
		err = batch.AddMessage(&azservicebus.Message{Body: make([]byte, n)}, nil)
		if errors.Is(err, azservicebus.ErrMessageTooLarge) {
			return false, nil
		}
		return err == nil, err
	}
	if ok, err := fits(mostLimit); ok || err != nil {
		return mostLimit, err
	}
	low, high := 0, mostLimit
	for high-low > 1<<10 {
		middle := (low + high) / 2
		ok, err := fits(middle)
		if err != nil {
			return 0, err
		}
		if ok {
			low = middle
		} else {
			high = middle
		}
	}
	return low, nil
}

// drop takes a link out of use, and lets go of it in the background.
func (s *Sender) drop(l *link) {
	s.mu.Lock()
	was := s.link == l
	if was {
		s.link = nil
	}
	s.mu.Unlock()
	if was {
		s.background.Go(func() { l.close(false) })
	}
}

// close lets go of the connection. Politely means that the service may answer; else
// whatever still goes over it ends now.
func (l *link) close(politely bool) {
	l.stop()
	if !politely {
		l.hangUp()
	}
	<-l.ready
	if l.client != nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		// Not even the SDK's own goodbye may take longer.
		defer time.AfterFunc(closeTimeout, l.hangUp).Stop()
		_ = l.client.Close(ctx) // the connection ends in any case
	}
	l.hangUp()
}

func (l *link) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	if l.conn != nil {
		l.conn.Close()
	}
}

// heard notes that the service said something about a message.
func (l *link) heard() {
	l.last.Store(time.Now().UnixNano())
	l.doubts.Store(0)
}

// doubted notes an error that may be the end of the link. The second in a row is
// taken for it: what is gone says the same again.
func (l *link) doubted() bool { return l.doubts.Add(1) > 1 }

// silentSince says whether the service has said nothing about any message since t.
func (l *link) silentSince(t time.Time) bool { return l.last.Load() < t.UnixNano() }

// trouble is what the network complained of, if it did.
func (l *link) trouble() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

func (l *link) complain(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == nil && !l.over {
		l.failed = err
	}
}

// dial opens the connection.
func (l *link) dial(ctx context.Context, d azureamqp.Dialer) (net.Conn, error) {
	c, err := d.Dial(ctx)
	if err != nil {
		l.complain(err)
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		c.Close()
		return nil, net.ErrClosed
	}
	l.conn = c
	return &watched{Conn: c, link: l}, nil
}

// watched remembers why a connection ended, because the client's errors do not tell,
// and ends it before the client gets an outcome that it would misread.
type watched struct {
	net.Conn
	link     *link
	outcomes outcomes // for Read, which the client calls one after another
}

// Read implements net.Conn.
func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if w.outcomes.neither(b[:n]) {
		w.link.complain(errNeither)
		w.Close()
		return 0, errNeither
	}
	if err != nil {
		w.link.complain(err)
	}
	return n, err
}

// Write implements net.Conn.
func (w *watched) Write(b []byte) (int, error) {
	n, err := w.Conn.Write(b)
	if err != nil {
		w.link.complain(err)
	}
	return n, err
}
