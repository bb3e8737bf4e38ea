package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/time/rate"
)

// node is the server inside this process. After a disk failure another server
// on the same store takes its place; connections find it by themselves.
type node struct {
	log  *slog.Logger
	dir  string
	lock *dirLock // held as long as the node is ours
	opts server.Options
	// These are restored before each start.
	states states
	blocks blocks
	// Only where subscribers' clients are let in: who they are, and the loopback
	// address, which the server's own listener does not serve then.
	door     *door
	loopback net.Listener

	mu  sync.Mutex     // guards srv
	srv *server.Server // nil while there is none
}

var errNoServer = errors.New("the embedded broker is being restarted")

// newNode takes the store for this process. always makes the server sync each
// message by itself.
func newNode(cfg Config, log *slog.Logger) (*node, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("broker.embedded.dir %q: %w", cfg.Dir, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("broker.embedded.dir: %w", err)
	}
	// The server itself starts happily on a store that another one has open.
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	n := &node{log: log, dir: dir, lock: lock, states: states{dir: dir}, blocks: blocks{dir}, opts: server.Options{
		ServerName:             "gridfan",
		StoreDir:               dir,
		JetStream:              true,
		JetStreamMaxStore:      cfg.MaxBytes,
		JetStreamMaxMemory:     64 << 20, // leases and views only
		MaxPayload:             MaxPayload,
		MaxPending:             256 << 20, // several prefetched messages of MaxPayload
		NoSigs:                 true,      // or it would exit on SIGINT by itself
		DisableJetStreamBanner: true,
		DontListen:             true,
	}}
	if cfg.Clients.Listen != "" {
		n.door = newDoor(log)
	}
	if err := n.listen(cfg.Listen); err != nil {
		lock.release()
		return nil, err
	}
	if n.door != nil {
		if err := n.admitClients(cfg.Clients); err != nil {
			n.close()
			return nil, err
		}
	}
	return n, nil
}

// admitClients gives the server a listener for subscribers' clients.
func (n *node) admitClients(cfg ClientsConfig) error {
	host, port, err := probe("broker.embedded.clients.listen", cfg.Listen)
	if err != nil {
		return err
	}
	n.opts.DontListen, n.opts.Host, n.opts.Port = false, host, port
	n.opts.TLSConfig = cfg.TLS
	n.opts.CustomClientAuthentication = n.door
	n.opts.AlwaysEnableNonce = true // the challenge that clients sign
	n.opts.AuthTimeout = authSeconds
	return nil
}

// probe reads an address and sees whether it is free: the server's own answer to
// a taken port is to exit.
func probe(key, addr string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("%s %q: %w", key, addr, err)
	}
	port, err = strconv.Atoi(text)
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("%s %q: want a port number", key, addr)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", 0, fmt.Errorf("%s: %w", key, err)
	}
	l.Close()
	if port == 0 {
		port = server.RANDOM_PORT
	}
	return host, port, nil
}

// listen decides the address for other NATS clients.
func (n *node) listen(configured string) error {
	if configured == "none" {
		return nil
	}
	addr := configured
	if addr == "" {
		addr = DefaultListen
	}
	host, port, err := probe("broker.embedded.listen", addr)
	var taken *net.OpError
	if errors.As(err, &taken) && configured == "" {
		n.log.Warn("the broker has no address for other NATS clients: the default one is taken",
			"address", addr, "fix", `set broker.embedded.listen to a free address, or to "none"`)
		return nil
	}
	if err != nil {
		return err
	}
	if n.door == nil {
		n.opts.DontListen, n.opts.Host, n.opts.Port = false, host, port
		return nil
	}
	if n.loopback, err = net.Listen("tcp", addr); err != nil {
		return fmt.Errorf("broker.embedded.listen: %w", err)
	}
	go n.forward(n.loopback)
	return nil
}

// start runs a server and waits until it answers.
func (n *node) start() error {
	if err := errors.Join(n.states.restore(n.log), n.blocks.restore(n.log)); err != nil {
		return err
	}
	opts := n.opts.Clone()
	s, err := server.NewServer(opts)
	if err != nil {
		return fmt.Errorf("start the embedded broker: %w", err)
	}
	s.SetLoggerV2(serverLog{n.log.With("component", "nats-server"), &rate.Sometimes{Interval: 10 * time.Second}}, false, false, false)
	if n.door != nil {
		n.door.at(s)
	}
	s.Start()
	// A million stored messages are recovered in under a second.
	if !s.ReadyForConnections(60*time.Second) || !s.JetStreamEnabled() {
		s.Shutdown()
		s.WaitForShutdown()
		return fmt.Errorf("start the embedded broker: it cannot open its store %s; the log above has its reason", n.dir)
	}
	if addr, ok := s.Addr().(*net.TCPAddr); ok && !opts.DontListen {
		n.opts.Port = addr.Port // the same after a restart
	}
	n.mu.Lock()
	n.srv = s
	n.mu.Unlock()
	return nil
}

// stop ends the server, if there is one.
func (n *node) stop() {
	n.mu.Lock()
	s := n.srv
	n.srv = nil
	n.mu.Unlock()
	if s != nil {
		s.Shutdown()
		s.WaitForShutdown()
	}
}

// close ends the server and gives the store free.
func (n *node) close() {
	if n.loopback != nil {
		n.loopback.Close()
	}
	n.stop()
	n.lock.release()
}

// server gives the one that runs, nil for none.
func (n *node) server() *server.Server {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.srv
}

// InProcessConn connects a client to the server that runs now.
func (n *node) InProcessConn() (net.Conn, error) {
	s := n.server()
	if s == nil {
		return nil, errNoServer
	}
	return s.InProcessConn()
}

// url is where other clients connect, empty if nowhere.
func (n *node) url() string {
	switch s := n.server(); {
	case s == nil:
		return ""
	case n.loopback != nil:
		return "nats://" + n.loopback.Addr().String()
	case n.opts.DontListen || n.door != nil:
		return ""
	default:
		return s.ClientURL()
	}
}

// serverLog hands the server's log lines to slog. The server speaks of its
// every start step as a notice, so those are debug lines here.
type serverLog struct {
	log *slog.Logger
	// clients bounds what strangers can make the log grow by: every try of theirs
	// that is refused is a line of the server's.
	clients *rate.Sometimes
}

func (l serverLog) Noticef(f string, v ...any) { l.log.Debug(fmt.Sprintf(f, v...)) }
func (l serverLog) Warnf(f string, v ...any)   { l.tell(slog.LevelWarn, fmt.Sprintf(f, v...)) }
func (l serverLog) Errorf(f string, v ...any)  { l.tell(slog.LevelError, fmt.Sprintf(f, v...)) }

// tell passes a line on. Those about a client, which begin with its address and
// number (nats-server v2.15.2, server/client.go), are no errors of ours, and one in
// ten seconds is enough.
func (l serverLog) tell(level slog.Level, line string) {
	if !strings.Contains(line, " - cid:") {
		l.log.Log(context.Background(), level, line)
		return
	}
	l.clients.Do(func() { l.log.Warn(line, "note", "at most one such line in ten seconds") })
}

func (l serverLog) Fatalf(f string, v ...any) { l.log.Error(fmt.Sprintf(f, v...)) }
func (l serverLog) Debugf(string, ...any)     {}
func (l serverLog) Tracef(string, ...any)     {}
