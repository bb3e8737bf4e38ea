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
	"slices"
	"strings"
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
	cfg        Config
	spool      bool // takes events while the real broker is away
	log        *slog.Logger
	durability Durability
	identity   *identity // how external servers are met; nil without TLSConfig

	// Only with the server in this process, else nil.
	node    *node
	syncer  *syncer  // and only where one sync serves all
	barrier *barrier // the same
	mark    *mark

	control *nats.Conn
	js      jetstream.JetStream

	watch watch

	retries retryCounts

	mu    sync.Mutex // guards conns
	conns []*nats.Conn
}

// ErrAway means that no external server answers.
var ErrAway = errors.New("the broker does not answer")

// Open starts or reaches the server and declares the streams. cfg must be
// valid. The caller closes the Broker.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*Broker, error) {
	b := &Broker{cfg: cfg, log: log}
	if !cfg.TLS.isZero() {
		b.identity = &identity{cfg: cfg.TLS, log: log}
	}
	return open(ctx, b)
}

func open(ctx context.Context, b *Broker) (*Broker, error) {
	b.watch.init()
	if err := b.open(ctx); err != nil {
		b.Close()
		if b.cfg.URL != "" && Away(err) {
			err = fmt.Errorf("%w: %w", ErrAway, err)
		}
		return nil, err
	}
	return b, nil
}

// Away says whether an error is that of a server, or a cluster, that is not there, or has
// no leader, at the moment: what was asked may be asked again.
func Away(err error) bool {
	var dial *net.OpError
	var api *jetstream.APIError
	if refused(err) {
		return false
	}
	const (
		noLeader  = 10008 // JetStream system temporarily unavailable (these are of nats-server v2.15.2, server/errors.json)
		notLeader = 10009 // JetStream cluster can not handle request
		offline   = 10118 // stream is offline
	)
	if errors.As(err, &api) && (api.ErrorCode == noLeader || api.ErrorCode == notLeader || api.ErrorCode == offline) {
		return true
	}
	return errors.As(err, &dial) || errors.Is(err, nats.ErrNoServers) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrNoResponders) ||
		errors.Is(err, nats.ErrDisconnected) || errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, jetstream.ErrNoHeartbeat) ||
		errors.Is(err, context.DeadlineExceeded) ||
		// What a direct get is answered has lost its code (nats.go v1.55.0,
		// jetstream/stream.go convertDirectGetMsgResponseToMsg).
		err != nil && strings.Contains(err.Error(), "JetStream system temporarily unavailable")
}

func (b *Broker) open(ctx context.Context) error {
	var err error
	if b.cfg.URL == "" {
		if b.node, err = newNode(b.cfg, b.log); err != nil {
			return err
		}
		if err := b.chooseEmbedded(); err != nil {
			return err
		}
		if err := b.node.start(); err != nil {
			return err
		}
	}
	if err := b.connect(ctx); err != nil {
		return err
	}
	if b.node == nil {
		if err := b.chooseExternal(ctx); err != nil {
			return err
		}
		return b.declare(ctx)
	}
	if err := b.verify(ctx); err != nil {
		return err
	}
	if err := b.declare(ctx); err != nil {
		return err
	}
	if err := b.startBarrier(ctx); err != nil {
		return err
	}
	b.watch.running.Go(b.supervise)
	return nil
}

// startBarrier makes what Open has declared durable, and begins the mark.
func (b *Broker) startBarrier(ctx context.Context) error {
	if b.syncer != nil {
		// First what the mark is to stand for, then the mark.
		if err := b.syncer.sync(); err != nil {
			return err
		}
	}
	s, err := b.js.Stream(ctx, b.Main())
	if err != nil {
		return err
	}
	info := s.CachedInfo()
	b.mark, err = openMark(b.node.dir, marked{created: info.Created, last: info.State.LastSeq, deleted: uint64(info.State.NumDeleted)})
	if err != nil {
		return err
	}
	if b.syncer == nil {
		return nil
	}
	b.barrier = &barrier{
		flush: func() error { return b.watch.sync(b.syncer.sync) },
		done: func(through uint64) {
			b.mark.advance(through)
			if err := b.mark.write(); err != nil {
				b.trouble(err)
			}
		},
		broken: b.trouble,
	}
	return b.barrier.wait(ctx, 0, 0)
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
	if b.node != nil {
		return "embedded"
	}
	return b.control.ConnectedUrlRedacted()
}

// dial opens one more connection; more comes after the options that all have.
func (b *Broker) dial(name string, more ...nats.Option) (*nats.Conn, error) {
	opts := []nats.Option{
		nats.Name(name),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(200 * time.Millisecond),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			b.log.Warn("broker connection", "connection", name, "error", err)
		}),
	}
	url := b.cfg.URL
	if b.node != nil {
		opts, url = append(opts, nats.InProcessServer(b.node)), ""
	} else {
		// The client calls these one after another.
		said := ""
		opts = append(opts,
			nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
				if err != nil {
					b.log.Warn("broker away", "connection", name, "error", err)
				}
			}),
			nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
				// Five times a second: each trouble once.
				if err, ok := b.cfg.explain(err); ok && err.Error() != said {
					said = err.Error()
					b.log.Warn("broker not back", "connection", name, "error", err)
				}
			}),
			nats.ReconnectHandler(func(nc *nats.Conn) {
				said = ""
				b.log.Info("broker back", "connection", name, "url", nc.ConnectedUrlRedacted())
			}),
			// A server that is being set up anew may not know us for a moment: without
			// this the second refusal is final.
			nats.IgnoreAuthErrorAbort())
		if b.identity != nil {
			opts = append(opts, b.identity.options()...)
		}
		if b.cfg.User != "" {
			opts = append(opts, nats.UserInfo(b.cfg.User, b.cfg.Password.Reveal()))
		}
		if !b.cfg.Credentials.IsZero() {
			opts = append(opts, nats.UserCredentialBytes([]byte(b.cfg.Credentials.Reveal())))
		}
	}
	nc, err := nats.Connect(url, append(opts, more...)...)
	if err != nil {
		err, _ = b.cfg.explain(err)
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

// Ask sends a request to whoever listens on a subject, and gives the first answer.
// ctx bounds the wait and must have an end.
func (b *Broker) Ask(ctx context.Context, subject string, body []byte) ([]byte, error) {
	m, err := b.control.RequestWithContext(ctx, subject, body)
	if err != nil {
		return nil, err
	}
	return m.Data, nil
}

// JetStream is the API on the control connection: for declaring and asking,
// not for bulk.
func (b *Broker) JetStream() jetstream.JetStream { return b.js }

// MaxPayload is the largest message the server takes, headers included.
func (b *Broker) MaxPayload() int64 { return b.control.MaxPayload() }

// URL is where other NATS clients reach the server; empty if nowhere.
func (b *Broker) URL() string {
	if b.node == nil {
		return b.control.ConnectedUrlRedacted()
	}
	return b.node.url()
}

// Main is the stream that events are published to.
func (b *Broker) Main() string {
	if b.spool {
		return streamSpool
	}
	return StreamEvents
}

// Embedded says whether the server runs in this process.
func (b *Broker) Embedded() bool { return b.node != nil }

// Connected says whether the server answers at all.
func (b *Broker) Connected() bool { return b.control.IsConnected() }

// Health reports what is wrong with the server or its streams, nil if nothing.
func (b *Broker) Health(ctx context.Context) error {
	if err := b.watch.problem(); err != nil {
		return fmt.Errorf("broker: %w", err)
	}
	if !b.Connected() {
		return errors.New("broker: not connected")
	}
	if b.node != nil {
		s := b.node.server()
		if s == nil {
			return fmt.Errorf("broker: %w", errNoServer)
		}
		if err := healthz(ctx, s); err != nil {
			return fmt.Errorf("broker: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := b.js.Stream(ctx, b.Main()); err != nil {
		return fmt.Errorf("broker: stream %s: %w", b.Main(), err)
	}
	return nil
}

// healthz asks a server, which waits for its disk, how it is.
func healthz(ctx context.Context, s *server.Server) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		var err error
		if h := s.Healthz(&server.HealthzOptions{}); h.Status != "ok" {
			err = errors.New(h.Error)
		}
		answer <- err
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return errors.New("the store does not answer; its disk may be stalled")
	}
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
	names := []string{StreamEvents, StreamRetry, StreamDeadLetters, StreamQuarantine, StreamAttempts, StreamOps, StreamKnown, StreamHeld}
	if b.spool {
		names = []string{streamSpool}
	}
	for _, name := range names {
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
	b.watch.stop()
	b.watch.running.Wait()
	b.mu.Lock()
	conns := b.conns
	b.conns = nil
	b.mu.Unlock()
	for _, nc := range conns {
		nc.Close()
	}
	if b.node == nil {
		return
	}
	b.node.stop()
	if b.mark != nil {
		if err := b.mark.close(); err != nil {
			b.log.Warn("mark of the store not written", "error", err)
		}
	}
	if b.syncer != nil {
		if err := b.syncer.sync(); err != nil {
			b.log.Warn("last sync of the store", "error", err)
		}
		b.syncer.close()
	}
	b.node.close()
}
