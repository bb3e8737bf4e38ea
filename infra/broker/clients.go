package broker

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
)

// Who takes events by itself, as a NATS client over the network, gets an account
// of its own in the embedded server, and in it nothing but its consumer: to ask it
// for messages and about its state, and to acknowledge. Permissions alone are not
// enough. The server does not check where an answer is to go, so in one account
// with the streams a client could have its next message, or the state of its
// consumer, answered to events.x, and it was stored there as an event (nats-server
// v2.15.2, as seen). An answer into another account ends in that account.

// ClientsConfig says where such clients reach the embedded server.
type ClientsConfig struct {
	// Listen is "host:port". Empty: nowhere, which is the default.
	Listen string
	// URL is how the address is told to the operators of clients, as in
	// tls://events.example.com:4223; by default as Listen has it.
	URL string
	// Encrypted says that there will be a TLS. Without one only loopback
	// addresses are allowed.
	Encrypted bool
	// TLS is the listener's, when Encrypted.
	TLS *tls.Config `json:"-"`
}

func (c *ClientsConfig) validate() []error {
	const path = "broker.embedded.clients"
	var errs []error
	if c.Listen == "" {
		if c.URL != "" || c.Encrypted {
			errs = append(errs, errors.New(path+".listen: missing; want host:port, as in 0.0.0.0:4223"))
		}
		return errs
	}
	host, port, err := net.SplitHostPort(c.Listen)
	switch ip := net.ParseIP(host); {
	case err != nil || port == "":
		errs = append(errs, errors.New(path+`.listen: want "host:port", as in 0.0.0.0:4223`))
	case !c.Encrypted && host != "localhost" && (ip == nil || !ip.IsLoopback()):
		errs = append(errs, errors.New(path+".tls: missing; without it the events would go over the network for all to read, so only a loopback address is allowed"))
	}
	if scheme, rest, ok := strings.Cut(c.URL, "://"); c.URL != "" && (!ok || scheme != "nats" && scheme != "tls" || rest == "" || strings.ContainsAny(rest, "/@?# ")) {
		errs = append(errs, errors.New(path+".url: want tls://host:port, or nats://host:port without TLS"))
	}
	return errs
}

// Client is a subscriber that takes its events by itself.
type Client struct {
	// Name is the subscriber's and its consumer's.
	Name string
	// Keys are public nkeys of users, each valid until a time; zero is for ever.
	Keys map[string]time.Time
}

// NewClientKey makes a user's nkey: the public part, which is all that is kept,
// and the seed, which is the client's.
func NewClientKey() (public, seed string, err error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return "", "", err
	}
	defer pair.Wipe()
	if public, err = pair.PublicKey(); err != nil {
		return "", "", err
	}
	b, err := pair.Seed()
	return public, string(b), err
}

// ValidClientKey says whether a text is the public nkey of a user.
func ValidClientKey(public string) bool { return nkeys.IsValidPublicUserKey(public) }

// ClientInbox begins the subjects on which a client gets its answers.
func ClientInbox(name string) string { return "_INBOX_" + name }

// ClientPublishes are the subjects that a client has to publish to: those of its
// consumer and no others.
func ClientPublishes(name string) []string {
	return []string{
		"$JS.API.CONSUMER.MSG.NEXT." + StreamEvents + "." + name,
		"$JS.API.CONSUMER.INFO." + StreamEvents + "." + name,
		"$JS.ACK." + StreamEvents + "." + name + ".>",
	}
}

// Admit lets a subscriber's client in, with these keys and no longer with others:
// who is connected with one of those is cut off. With an external server it does
// nothing; there its operator decides.
func (b *Broker) Admit(c Client) {
	if b.node != nil && b.node.door != nil {
		b.node.door.admit(c.Name, c.Keys)
	}
}

// Dismiss lets a subscriber's client in no longer, and cuts it off.
func (b *Broker) Dismiss(name string) {
	if b.node != nil && b.node.door != nil {
		b.node.door.admit(name, nil)
	}
}

// Admitting says that everybody has been admitted who is known. Until then clients
// wait at the door: one that is refused twice gives up for good.
func (b *Broker) Admitting() {
	if b.node != nil && b.node.door != nil {
		b.node.door.opened.Do(func() { close(b.node.door.open) })
	}
}

// ClientsURL is where the clients of subscribers reach the server; empty if
// nowhere.
func (b *Broker) ClientsURL() string {
	if b.node == nil {
		return b.control.ConnectedUrlRedacted()
	}
	c := b.cfg.Clients
	if c.Listen == "" {
		return ""
	}
	if c.URL != "" {
		return c.URL
	}
	scheme, addr := "nats://", c.Listen
	if c.Encrypted {
		scheme = "tls://"
	}
	if s := b.node.server(); s != nil {
		if a, ok := s.Addr().(*net.TCPAddr); ok {
			host, _, _ := net.SplitHostPort(addr)
			addr = net.JoinHostPort(host, fmt.Sprint(a.Port))
		}
	}
	return scheme + addr
}

// doorWait is how long a client waits for the door to open, less than the
// server's patience with it (authSeconds).
const (
	doorWait    = 8 * time.Second
	authSeconds = 10
)

// door decides who is who at the embedded server. Over a socket come only the
// clients of subscribers; gridfan itself, and what it lets in at the loopback
// address, come in process.
type door struct {
	log    *slog.Logger
	open   chan struct{} // closed by Admitting
	opened sync.Once

	mu      sync.Mutex // guards all below
	srv     *server.Server
	clients map[string]map[string]time.Time // keys by name
}

func newDoor(log *slog.Logger) *door {
	return &door{log: log, open: make(chan struct{}), clients: map[string]map[string]time.Time{}}
}

// at tells which server runs now.
func (d *door) at(s *server.Server) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.srv = s
}

// Check says yes or no to a connection; the server calls it.
func (d *door) Check(c server.ClientAuthentication) bool {
	if c.Kind() != server.CLIENT {
		return false
	}
	// A pipe has no address of a network.
	if a := c.RemoteAddress(); a != nil && a.Network() == "pipe" {
		c.RegisterUser(&server.User{Username: "gridfan"})
		return true
	}
	select {
	case <-d.open:
	case <-time.After(doorWait):
		return false
	}
	o := c.GetOpts()
	if !signed(o.Nkey, o.Sig, c.GetNonce()) {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, keys := range d.clients {
		until, ok := keys[o.Nkey]
		if !ok || !until.IsZero() && !until.After(time.Now()) {
			continue
		}
		account, err := d.account(name)
		if err != nil {
			d.log.Error("no account for a subscriber's client", "subscriber", name, "error", err)
			return false
		}
		// Its account has nothing else to offer; these make the server say so
		// instead of being silent.
		c.RegisterUser(&server.User{
			Account: account, ConnectionDeadline: until,
			Permissions: &server.Permissions{
				Publish:   &server.SubjectPermission{Allow: ClientPublishes(name)},
				Subscribe: &server.SubjectPermission{Allow: []string{ClientInbox(name) + ".>"}},
			},
		})
		return true
	}
	return false
}

// signed says whether the owner of a key has signed the server's challenge.
func signed(public, signature string, nonce []byte) bool {
	if !nkeys.IsValidPublicUserKey(public) || len(nonce) == 0 {
		return false
	}
	sig, err := base64.RawURLEncoding.DecodeString(signature)
	if err != nil {
		// As the clients for Python write it; the server itself takes both
		// (nats-server v2.15.2, server/auth.go).
		if sig, err = base64.StdEncoding.DecodeString(signature); err != nil {
			return false
		}
	}
	pair, err := nkeys.FromPublicKey(public)
	return err == nil && pair.Verify(nonce, sig) == nil
}

// accountOf names a subscriber's account.
func accountOf(name string) string { return "subscriber-" + name }

// account gives a subscriber's account, and makes it if this server has none yet.
// One that is not needed any more has no users and does no harm. The caller holds
// mu.
func (d *door) account(name string) (*server.Account, error) {
	if a, err := d.srv.LookupAccount(accountOf(name)); err == nil {
		return a, nil
	}
	a, err := d.srv.RegisterAccount(accountOf(name))
	if err != nil {
		return nil, err
	}
	streams := d.srv.GlobalAccount()
	for i, subject := range ClientPublishes(name) {
		answers := server.Singleton
		if i == 0 {
			answers = server.Streamed // messages
		}
		if err := streams.AddServiceExportWithResponse(subject, answers, []*server.Account{a}); err != nil {
			return nil, fmt.Errorf("export %s: %w", subject, err)
		}
		if err := a.AddServiceImport(streams, subject, subject); err != nil {
			return nil, fmt.Errorf("import %s: %w", subject, err)
		}
	}
	return a, nil
}

// admit gives a subscriber other keys, none to dismiss it, and cuts off who came
// with one that is not among them.
func (d *door) admit(name string, keys map[string]time.Time) {
	d.mu.Lock()
	was := d.clients[name]
	delete(d.clients, name)
	if len(keys) > 0 {
		d.clients[name] = keys
	}
	s := d.srv
	d.mu.Unlock()
	var gone []string
	for key, until := range was {
		// One whose time ends earlier than it was told is cut off too; with the
		// same key it comes back until then.
		if now, ok := keys[key]; !ok || !now.Equal(until) {
			gone = append(gone, key)
		}
	}
	if len(gone) == 0 || s == nil {
		return
	}
	for offset := 0; ; {
		conns, err := s.Connz(&server.ConnzOptions{Username: true, Account: accountOf(name), Offset: offset})
		if err != nil || len(conns.Conns) == 0 {
			return
		}
		for _, c := range conns.Conns {
			if slices.Contains(gone, c.AuthorizedUser) {
				_ = s.DisconnectClientByID(c.Cid) // it fails if the client has just left
			}
		}
		offset += len(conns.Conns)
	}
}

// forward brings connections at the loopback address into the server, which then
// has its own listener for the clients of subscribers. It ends with l.
func (n *node) forward(l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			n.log.Warn("connection at the broker's loopback address", "error", err)
			time.Sleep(100 * time.Millisecond) // sleep: as when there are no more file descriptors
			continue
		}
		go func() {
			defer c.Close()
			inside, err := n.InProcessConn()
			if err != nil {
				return // the server is being restarted; the client tries again
			}
			defer inside.Close()
			done := make(chan struct{}, 2)
			for _, way := range [][2]net.Conn{{inside, c}, {c, inside}} {
				go func() {
					_, _ = io.Copy(way[0], way[1]) // either end may go at any time
					done <- struct{}{}
				}()
			}
			<-done
		}()
	}
}
