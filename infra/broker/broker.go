// Package broker connects gridfan to NATS JetStream: to a server inside this
// process, or to one outside it. It declares the streams everything else uses
// and knows nothing of what is in them.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// MaxPayload is the largest message of the embedded server, headers included.
// The server warns above this (nats-server v2.15.2, server/opts.go).
const MaxPayload = 8 << 20

// Broker is a running or reached NATS server with its streams declared.
// All methods are safe for concurrent use.
type Broker struct {
	cfg      Config
	log      *slog.Logger
	embedded *server.Server // nil for an external one
	lock     *dirLock       // held while the embedded server runs
	url      string         // where other clients reach it, empty if nowhere

	control *nats.Conn
	js      jetstream.JetStream

	mu    sync.Mutex // guards conns
	conns []*nats.Conn
}

// Open starts or reaches the server and declares the streams. cfg must be
// valid. The caller closes the Broker.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*Broker, error) {
	b := &Broker{cfg: cfg, log: log}
	if cfg.URL == "" {
		if err := b.startEmbedded(); err != nil {
			return nil, err
		}
	}
	err := b.connect(ctx)
	if err == nil {
		err = b.declare(ctx)
	}
	if err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

func (b *Broker) startEmbedded() error {
	dir, err := filepath.Abs(b.cfg.Dir)
	if err != nil {
		return fmt.Errorf("broker.embedded.dir %q: %w", b.cfg.Dir, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("broker.embedded.dir: %w", err)
	}
	// The server itself starts happily on a store that another one has open.
	if b.lock, err = lockDir(dir); err != nil {
		return err
	}
	opts := &server.Options{
		ServerName: "gridfan",
		StoreDir:   dir,
		JetStream:  true,
		// An ack then means that the message is on the disk, not in the page
		// cache; without it a power cut loses streams whole.
		SyncAlways:             true,
		JetStreamMaxStore:      b.cfg.MaxBytes,
		JetStreamMaxMemory:     64 << 20, // nothing of ours is kept in memory
		MaxPayload:             MaxPayload,
		MaxPending:             256 << 20, // several prefetched messages of MaxPayload
		NoSigs:                 true,      // or it would exit on SIGINT by itself
		DisableJetStreamBanner: true,
		DontListen:             true,
	}
	if err := b.listen(opts); err != nil {
		b.lock.release()
		return err
	}
	s, err := server.NewServer(opts)
	if err != nil {
		b.lock.release()
		return fmt.Errorf("start the embedded broker: %w", err)
	}
	s.SetLoggerV2(serverLog{b.log.With("component", "nats-server")}, false, false, false)
	s.Start()
	b.embedded = s
	// A million stored messages are recovered in under a second.
	if !s.ReadyForConnections(60*time.Second) || !s.JetStreamEnabled() {
		b.Close()
		return fmt.Errorf("start the embedded broker: no answer within a minute; its store is %s", dir)
	}
	if !opts.DontListen {
		b.url = s.ClientURL()
	}
	return nil
}

// listen decides the address for other NATS clients.
func (b *Broker) listen(opts *server.Options) error {
	addr := b.cfg.Listen
	if addr == "none" {
		return nil
	}
	if addr == "" {
		addr = DefaultListen
	}
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("broker.embedded.listen %q: %w", addr, err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil || port < 0 || port > 65535 {
		return fmt.Errorf("broker.embedded.listen %q: want a port number", addr)
	}
	// The server's own answer to a taken port is to exit: try it first.
	l, err := net.Listen("tcp", addr)
	if err != nil {
		if b.cfg.Listen == "" {
			b.log.Warn("the broker has no address for other NATS clients: the default one is taken",
				"address", addr, "fix", `set broker.embedded.listen to a free address, or to "none"`)
			return nil
		}
		return fmt.Errorf("broker.embedded.listen: %w", err)
	}
	l.Close()
	opts.DontListen, opts.Host, opts.Port = false, host, port
	if port == 0 {
		opts.Port = server.RANDOM_PORT
	}
	return nil
}

func (b *Broker) connect(ctx context.Context) error {
	nc, err := b.dial("gridfan-control")
	if err != nil {
		return err
	}
	b.control = nc
	if b.js, err = jetstream.New(nc); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := b.js.AccountInfo(ctx); err != nil {
		return fmt.Errorf("broker %s: JetStream: %w", b.where(), err)
	}
	return nil
}

func (b *Broker) where() string {
	if b.embedded != nil {
		return "embedded"
	}
	return b.control.ConnectedUrlRedacted()
}

// dial opens one more connection.
func (b *Broker) dial(name string) (*nats.Conn, error) {
	opts := []nats.Option{
		nats.Name(name),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(200 * time.Millisecond),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			b.log.Warn("broker connection", "connection", name, "error", err)
		}),
	}
	url := b.cfg.URL
	if b.embedded != nil {
		opts, url = append(opts, nats.InProcessServer(b.embedded)), ""
	} else {
		opts = append(opts,
			nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
				if err != nil {
					b.log.Warn("broker away", "connection", name, "error", err)
				}
			}),
			nats.ReconnectHandler(func(nc *nats.Conn) {
				b.log.Info("broker back", "connection", name, "url", nc.ConnectedUrlRedacted())
			}))
		if !b.cfg.Credentials.IsZero() {
			opts = append(opts, nats.UserCredentialBytes([]byte(b.cfg.Credentials.Reveal())))
		}
	}
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to the broker: %w", err)
	}
	b.mu.Lock()
	// A subscriber's connection closes with its worker; don't collect them.
	b.conns = append(slices.DeleteFunc(b.conns, (*nats.Conn).IsClosed), nc)
	b.mu.Unlock()
	return nc, nil
}

// Connect opens a connection of its own for one purpose, so that a flood on
// one does not hold up another. The Broker closes it.
func (b *Broker) Connect(name string, opts ...jetstream.JetStreamOpt) (*nats.Conn, jetstream.JetStream, error) {
	nc, err := b.dial("gridfan-" + name)
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(nc, opts...)
	return nc, js, err
}

// JetStream is the API on the control connection: for declaring and asking,
// not for bulk.
func (b *Broker) JetStream() jetstream.JetStream { return b.js }

// MaxPayload is the largest message the server takes, headers included.
func (b *Broker) MaxPayload() int64 { return b.control.MaxPayload() }

// URL is where other NATS clients reach the server; empty if nowhere.
func (b *Broker) URL() string {
	if b.embedded == nil {
		return b.control.ConnectedUrlRedacted()
	}
	return b.url
}

// Embedded says whether the server runs in this process.
func (b *Broker) Embedded() bool { return b.embedded != nil }

// Connected says whether the server answers at all.
func (b *Broker) Connected() bool { return b.control.IsConnected() }

// Health reports what is wrong with the server or its streams, nil if nothing.
func (b *Broker) Health(ctx context.Context) error {
	if !b.Connected() {
		return errors.New("broker: not connected")
	}
	if b.embedded != nil {
		// A write error freezes a stream until a restart; Healthz knows.
		if h := b.embedded.Healthz(&server.HealthzOptions{JSEnabledOnly: false}); h.Status != "ok" {
			return fmt.Errorf("broker: %s", h.Error)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := b.js.Stream(ctx, StreamEvents); err != nil {
		return fmt.Errorf("broker: stream %s: %w", StreamEvents, err)
	}
	return nil
}

// SubjectCounts counts a stream's messages by subject, for the subjects that
// match filter.
func (b *Broker) SubjectCounts(ctx context.Context, stream, filter string) (map[string]uint64, error) {
	s, err := b.js.Stream(ctx, stream)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", stream, err)
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", stream, err)
	}
	return info.State.Subjects, nil
}

// StreamUse is how full one stream is.
type StreamUse struct {
	Stream   string `json:"stream"`
	Messages uint64 `json:"messages"`
	Bytes    uint64 `json:"bytes"`
	MaxBytes int64  `json:"maxBytes"` // -1: only the store's own limit
}

// Use tells how full the streams are.
func (b *Broker) Use(ctx context.Context) ([]StreamUse, error) {
	var use []StreamUse
	for _, name := range []string{StreamEvents, StreamRetry, StreamDeadLetters, StreamQuarantine, StreamAttempts, StreamOps} {
		s, err := b.js.Stream(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", name, err)
		}
		info := s.CachedInfo()
		use = append(use, StreamUse{name, info.State.Msgs, info.State.Bytes, info.Config.MaxBytes})
	}
	return use, nil
}

// Close closes all connections and stops the embedded server. Whoever uses the
// Broker stops first.
func (b *Broker) Close() {
	b.mu.Lock()
	conns := b.conns
	b.conns = nil
	b.mu.Unlock()
	for _, nc := range conns {
		nc.Close()
	}
	if b.embedded != nil {
		b.embedded.Shutdown()
		b.embedded.WaitForShutdown()
	}
	if b.lock != nil {
		b.lock.release()
		b.lock = nil
	}
}

// serverLog hands the server's log lines to slog. The server speaks of its
// every start step as a notice, so those are debug lines here.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Noticef(f string, v ...any) { l.log.Debug(fmt.Sprintf(f, v...)) }
func (l serverLog) Warnf(f string, v ...any)   { l.log.Warn(fmt.Sprintf(f, v...)) }
func (l serverLog) Errorf(f string, v ...any)  { l.log.Error(fmt.Sprintf(f, v...)) }
func (l serverLog) Fatalf(f string, v ...any)  { l.log.Error(fmt.Sprintf(f, v...)) }
func (l serverLog) Debugf(string, ...any)      {}
func (l serverLog) Tracef(string, ...any)      {}
