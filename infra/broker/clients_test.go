package broker_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/gridfan/gridfan/infra/broker"
)

// openDoor starts a broker with a door for clients.
func openDoor(t *testing.T, cfg broker.Config) *broker.Broker {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	cfg.MaxBytes = 1 << 30
	if cfg.Clients.Listen == "" {
		cfg.Clients.Listen = "127.0.0.1:0"
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := broker.Open(t.Context(), cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// user makes a key and what connects with it.
func user(t *testing.T) (public string, connect func(*broker.Broker, string, ...nats.Option) (*nats.Conn, chan error, error)) {
	t.Helper()
	public, seed, err := broker.NewClientKey()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := nkeys.FromSeed([]byte(seed))
	if err != nil {
		t.Fatal(err)
	}
	return public, func(b *broker.Broker, name string, opts ...nats.Option) (*nats.Conn, chan error, error) {
		refused := make(chan error, 64)
		nc, err := nats.Connect(b.ClientsURL(), append([]nats.Option{
			nats.Nkey(public, pair.Sign), nats.CustomInboxPrefix(broker.ClientInbox(name)),
			nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }),
		}, opts...)...)
		if nc != nil {
			t.Cleanup(nc.Close)
		}
		return nc, refused, err
	}
}

// consumer makes a subscriber's consumer and gives it events.
func consumer(t *testing.T, b *broker.Broker, name string, events ...string) {
	t.Helper()
	_, err := b.JetStream().CreateConsumer(t.Context(), broker.StreamEvents, jetstream.ConsumerConfig{
		Durable: name, FilterSubject: "events." + name + ".>", AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if _, err := b.JetStream().Publish(t.Context(), "events."+name+"."+e, []byte(e)); err != nil {
			t.Fatal(err)
		}
	}
}

// A client gets to its own consumer, and to nothing else whatever it tries.
func TestClientReachesItsConsumerOnly(t *testing.T) {
	b := openDoor(t, broker.Config{Listen: "none"})
	key, connect := user(t)
	consumer(t, b, "mine", "a.b.c", "a.b.d", "a.b.e")
	consumer(t, b, "other", "a.b.c")
	b.Admit(broker.Client{Name: "mine", Keys: map[string]time.Time{key: {}}})
	b.Admitting()
	nc, refused, err := connect(b, "mine")
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	c, err := js.Consumer(t.Context(), broker.StreamEvents, "mine")
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Next(jetstream.FetchMaxWait(5 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.DoubleAck(t.Context()); err != nil {
		t.Errorf("not acknowledged: %v", err)
	}

	before := counts(t, b)
	ask := func(what, subject, reply, body string) {
		t.Helper()
		if err := nc.PublishRequest(subject, reply, []byte(body)); err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-refused:
			if !strings.Contains(strings.ToLower(err.Error()), "permissions violation") {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s: not refused", what)
		}
	}
	for _, q := range []struct{ what, subject, body string }{
		{"publish an event", "events.mine.x.y.z", "forged"},
		{"read another's consumer", "$JS.API.CONSUMER.MSG.NEXT.EVENTS.other", "1"},
		{"look at another's consumer", "$JS.API.CONSUMER.INFO.EVENTS.other", ""},
		{"acknowledge for another", "$JS.ACK.EVENTS.other.1.4.1.1.0", "+ACK"},
		{"purge", "$JS.API.STREAM.PURGE.EVENTS", ""},
		{"delete the stream", "$JS.API.STREAM.DELETE.EVENTS", ""},
		{"read by sequence", "$JS.API.STREAM.MSG.GET.EVENTS", `{"seq":1}`},
		{"read directly", "$JS.API.DIRECT.GET.EVENTS", `{"seq":4}`},
		{"delete an event", "$JS.API.STREAM.MSG.DELETE.EVENTS", `{"seq":1}`},
		{"create a consumer", "$JS.API.CONSUMER.CREATE.EVENTS.spy.events.>", `{"stream_name":"EVENTS","config":{"name":"spy"}}`},
		{"create a durable", "$JS.API.CONSUMER.DURABLE.CREATE.EVENTS.mine", `{"stream_name":"EVENTS","config":{"durable_name":"mine"}}`},
		{"delete its consumer", "$JS.API.CONSUMER.DELETE.EVENTS.mine", ""},
		{"pause its consumer", "$JS.API.CONSUMER.PAUSE.EVENTS.mine", "{}"},
		{"reset its consumer", "$JS.API.CONSUMER.RESET.EVENTS.mine", "{}"},
		{"list streams", "$JS.API.STREAM.NAMES", ""},
		{"read a bucket", "$JS.API.DIRECT.GET.KV_gridfan_subscribers.$KV.gridfan_subscribers.mine", ""},
		{"write a bucket", "$KV.gridfan_subscribers.mine", "{}"},
		{"publish a retry", "gridfan.retry.due.mine", "x"},
		{"forge an advisory", "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.EVENTS.other", "{}"},
		{"ask the system", "$SYS.REQ.SERVER.PING", ""},
	} {
		ask(q.what, q.subject, broker.ClientInbox("mine")+".x", q.body)
	}
	for _, subject := range []string{">", "events.>", "_INBOX.>", "_INBOX_other.>", "$JS.>", "gridfan.>", "$KV.>"} {
		if _, err := nc.SubscribeSync(subject); err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-refused:
		case <-time.After(5 * time.Second):
			t.Errorf("may subscribe to %s", subject)
		}
	}
	// Where an answer goes is not asked by the server.
	for _, q := range []struct{ subject, reply, body string }{
		{"$JS.API.CONSUMER.INFO.EVENTS.mine", "events.mine.x.y.z", ""},
		{"$JS.API.CONSUMER.MSG.NEXT.EVENTS.mine", "events.mine.x.y.z", `{"batch":1,"no_wait":true}`},
		{"$JS.API.CONSUMER.MSG.NEXT.EVENTS.mine", "$JS.API.STREAM.PURGE.EVENTS", `{"batch":1,"no_wait":true}`},
		{"$JS.API.CONSUMER.INFO.EVENTS.mine", "gridfan.retry.due.mine", ""},
	} {
		if err := nc.PublishRequest(q.subject, q.reply, []byte(q.body)); err != nil {
			t.Fatal(err)
		}
	}
	// They were worked on when the client's next question is answered.
	if _, err := c.Info(t.Context()); err != nil {
		t.Error(err)
	}
	if d := counts(t, b); d != before {
		t.Errorf("the streams have changed: %+v before, %+v now", before, d)
	}
	if nc.Status() != nats.CONNECTED {
		t.Errorf("the client is %v", nc.Status())
	}
}

type held struct{ events, first, retry, advisories uint64 }

func counts(t *testing.T, b *broker.Broker) (h held) {
	t.Helper()
	for name, n := range map[string]*uint64{broker.StreamEvents: &h.events, broker.StreamRetry: &h.retry, broker.StreamAdvisories: &h.advisories} {
		s, err := b.JetStream().Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		*n = s.CachedInfo().State.Msgs
		if name == broker.StreamEvents {
			h.first = s.CachedInfo().State.FirstSeq
		}
	}
	return h
}

// Only those get in who are known and hold their key.
func TestClientsAtTheDoor(t *testing.T) {
	b := openDoor(t, broker.Config{Listen: "none"})
	consumer(t, b, "mine")
	key, connect := user(t)
	_, stranger := user(t)
	b.Admit(broker.Client{Name: "mine", Keys: map[string]time.Time{key: {}}})
	b.Admitting()
	if _, _, err := stranger(b, "mine"); err == nil {
		t.Error("a stranger is let in")
	}
	if _, err := nats.Connect(b.ClientsURL()); err == nil {
		t.Error("somebody without a key is let in")
	}
	if _, err := nats.Connect(b.ClientsURL(), nats.UserInfo("gridfan", "")); err == nil {
		t.Error("somebody with a name is let in")
	}
	if _, err := nats.Connect(b.ClientsURL(), nats.Nkey(key, func([]byte) ([]byte, error) { return make([]byte, 64), nil })); err == nil {
		t.Error("somebody is let in with a key that is not his")
	}
	nc, _, err := connect(b, "mine", nats.MaxReconnects(2), nats.ReconnectWait(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	// A second key overlaps; the first one ends while its client is connected.
	second, again := user(t)
	b.Admit(broker.Client{Name: "mine", Keys: map[string]time.Time{key: {}, second: {}}})
	nc2, _, err := again(b, "mine")
	if err != nil {
		t.Fatal(err)
	}
	if nc.Status() != nats.CONNECTED {
		t.Error("the first key's client was cut off by the second key")
	}
	b.Admit(broker.Client{Name: "mine", Keys: map[string]time.Time{second: {}}})
	wait(t, "the old key's client to be cut off", nc.IsClosed)
	if _, _, err := connect(b, "mine"); err == nil {
		t.Error("the old key still opens")
	}
	if nc2.Status() != nats.CONNECTED {
		t.Error("the new key's client was cut off")
	}
	// A time that comes.
	b.Admit(broker.Client{Name: "mine", Keys: map[string]time.Time{key: time.Now().Add(300 * time.Millisecond), second: {}}})
	if nc, _, err = connect(b, "mine", nats.MaxReconnects(2), nats.ReconnectWait(10*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	wait(t, "the key to expire", nc.IsClosed)
	b.Dismiss("mine")
	wait(t, "the dismissed client to be cut off", func() bool { return nc2.Status() != nats.CONNECTED })
	if _, _, err := again(b, "mine"); err == nil {
		t.Error("a dismissed client is let in")
	}
}

// A client that comes before everybody is known waits.
func TestClientWaitsForTheDoorToOpen(t *testing.T) {
	b := openDoor(t, broker.Config{Listen: "none"})
	key, connect := user(t)
	came := make(chan error, 1)
	go func() {
		_, _, err := connect(b, "mine", nats.Timeout(8*time.Second))
		came <- err
	}()
	select {
	case err := <-came:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	b.Admit(broker.Client{Name: "mine", Keys: map[string]time.Time{key: {}}})
	b.Admitting()
	if err := <-came; err != nil {
		t.Error(err)
	}
}

// The loopback address is as it was, beside the one for clients, and outlives the
// server's own restarts.
func TestLoopbackBesideClients(t *testing.T) {
	b := openDoor(t, broker.Config{Listen: "127.0.0.1:0"})
	b.Admitting()
	if b.URL() == b.ClientsURL() {
		t.Fatalf("both are at %s", b.URL())
	}
	nc, err := nats.Connect(b.URL(), nats.ReconnectWait(20*time.Millisecond), nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "events.a.b.c.d", []byte("x")); err != nil {
		t.Fatal(err)
	}
	broker.Restart(t, b)
	wait(t, "the client to be back", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := js.Publish(ctx, "events.a.b.c.d", []byte("y"))
		return err == nil
	})
}

// Over TLS, and with nothing else.
func TestClientsOverTLS(t *testing.T) {
	cert, pool := selfSigned(t)
	b := openDoor(t, broker.Config{Listen: "127.0.0.1:0", Clients: broker.ClientsConfig{
		Listen: "127.0.0.1:0", Encrypted: true, TLS: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
	}})
	key, connect := user(t)
	consumer(t, b, "mine", "a.b.c")
	b.Admit(broker.Client{Name: "mine", Keys: map[string]time.Time{key: {}}})
	b.Admitting()
	if !strings.HasPrefix(b.ClientsURL(), "tls://") {
		t.Errorf("clients are told %s", b.ClientsURL())
	}
	if _, _, err := connect(b, "mine"); err == nil {
		t.Error("connected although the certificate is not trusted")
	}
	nc, _, err := connect(b, "mine", nats.Secure(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nc.TLSConnectionState(); err != nil {
		t.Error(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	c, err := js.Consumer(t.Context(), broker.StreamEvents, "mine")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Next(jetstream.FetchMaxWait(5 * time.Second)); err != nil {
		t.Error(err)
	}
	// The loopback address has none.
	plain, err := nats.Connect(b.URL())
	if err != nil {
		t.Fatal(err)
	}
	plain.Close()
}

func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// A request that stays with the server for long is answered in the end.
func TestClientWaitsForAnEvent(t *testing.T) {
	b := openDoor(t, broker.Config{Listen: "none"})
	key, connect := user(t)
	consumer(t, b, "mine")
	b.Admit(broker.Client{Name: "mine", Keys: map[string]time.Time{key: {}}})
	b.Admitting()
	nc, _, err := connect(b, "mine")
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	c, err := js.Consumer(t.Context(), broker.StreamEvents, "mine")
	if err != nil {
		t.Fatal(err)
	}
	batch, err := c.Fetch(3, jetstream.FetchMaxWait(20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		time.Sleep(500 * time.Millisecond) // sleep: the request waits meanwhile
		if _, err := b.JetStream().Publish(t.Context(), "events.mine.a.b.c", []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
		select {
		case m := <-batch.Messages():
			if m == nil || m.Data()[0] != byte(i) {
				t.Fatalf("got %v", m)
			}
			if err := m.Ack(); err != nil {
				t.Error(err)
			}
		case <-time.After(2 * time.Second):
			t.Fatal("an event did not come, though it was asked for")
		}
	}
}

func TestClientsConfig(t *testing.T) {
	for _, q := range []struct {
		name string
		cfg  broker.ClientsConfig
		want string // "" is well
	}{
		{"none", broker.ClientsConfig{}, ""},
		{"loopback", broker.ClientsConfig{Listen: "127.0.0.1:4223"}, ""},
		{"encrypted", broker.ClientsConfig{Listen: "0.0.0.0:4223", Encrypted: true, URL: "tls://events.example.com:4223"}, ""},
		{"open", broker.ClientsConfig{Listen: "0.0.0.0:4223"}, "broker.embedded.clients.tls: missing"},
		{"open by default", broker.ClientsConfig{Listen: ":4223"}, "broker.embedded.clients.tls: missing"},
		{"no port", broker.ClientsConfig{Listen: "localhost"}, "broker.embedded.clients.listen: want"},
		{"nowhere", broker.ClientsConfig{Encrypted: true}, "broker.embedded.clients.listen: missing"},
		{"secret", broker.ClientsConfig{Listen: "localhost:1", URL: "tls://a:b@host"}, "broker.embedded.clients.url: want"},
		{"http", broker.ClientsConfig{Listen: "localhost:1", URL: "https://host"}, "broker.embedded.clients.url: want"},
	} {
		t.Run(q.name, func(t *testing.T) {
			c := broker.Config{Clients: q.cfg}
			err := c.Validate()
			if q.want == "" && err != nil || q.want != "" && (err == nil || !strings.Contains(err.Error(), q.want)) {
				t.Errorf("got %v, want %q", err, q.want)
			}
		})
	}
}

func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
		time.Sleep(10 * time.Millisecond) // sleep: polling with a deadline
	}
}

// The log does not grow with what a client tries.
func TestRefusedClientsInTheLog(t *testing.T) {
	var log lines
	cfg := broker.Config{Dir: t.TempDir(), Listen: "none", MaxBytes: 1 << 30, Clients: broker.ClientsConfig{Listen: "127.0.0.1:0"}}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := broker.Open(t.Context(), cfg, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	b.Admitting()
	for range 50 {
		if nc, err := nats.Connect(b.ClientsURL()); err == nil {
			nc.Close()
			t.Fatal("a stranger is let in")
		}
	}
	if n := log.count("cid:"); n < 1 || n > 2 {
		t.Errorf("%d lines about 50 tries", n)
	}
}

// lines counts what is written.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

// What docs/native-nats.md tells the operator of an external server works, and
// keeps a client where it belongs.
func TestDocumentedAccounts(t *testing.T) {
	text, err := os.ReadFile("../../docs/native-nats.md")
	if err != nil {
		t.Fatal(err)
	}
	_, conf, ok := strings.Cut(string(text), "\naccounts {")
	conf, _, end := strings.Cut(conf, "\n```")
	if !ok || !end {
		t.Fatal("no accounts in docs/native-nats.md")
	}
	own, seed, err := broker.NewClientKey()
	if err != nil {
		t.Fatal(err)
	}
	public, clientSeed, err := broker.NewClientKey()
	if err != nil {
		t.Fatal(err)
	}
	conf = fmt.Sprintf("listen: \"127.0.0.1:-1\"\njetstream { store_dir: %q }\naccounts {", t.TempDir()) + strings.NewReplacer("UGRIDFAN…", own, "UERP…", public).Replace(conf)
	opts := &server.Options{NoSigs: true, NoLog: true}
	if err := opts.ProcessConfigString(conf); err != nil {
		t.Fatalf("%v in\n%s", err, conf)
	}
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	sign := func(seed string) func([]byte) ([]byte, error) {
		pair, err := nkeys.FromSeed([]byte(seed))
		if err != nil {
			t.Fatal(err)
		}
		return pair.Sign
	}
	gridfan, err := nats.Connect(s.ClientURL(), nats.Nkey(own, sign(seed)))
	if err != nil {
		t.Fatal(err)
	}
	defer gridfan.Close()
	js, err := jetstream.New(gridfan)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: broker.StreamEvents, Subjects: []string{broker.SubjectEvents}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateConsumer(t.Context(), broker.StreamEvents, jetstream.ConsumerConfig{Durable: "erp", AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "events.a.b.c.d", []byte("x")); err != nil {
		t.Fatal(err)
	}
	refused := make(chan error, 8)
	nc, err := nats.Connect(s.ClientURL(), nats.Nkey(public, sign(clientSeed)), nats.CustomInboxPrefix(broker.ClientInbox("erp")),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	its, err := jetstream.NewWithAPIPrefix(nc, "GRIDFAN.API")
	if err != nil {
		t.Fatal(err)
	}
	c, err := its.Consumer(t.Context(), broker.StreamEvents, "erp")
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Next(jetstream.FetchMaxWait(5 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.DoubleAck(t.Context()); err != nil {
		t.Error(err)
	}
	if err := nc.Publish("events.x.y.z.w", nil); err != nil {
		t.Fatal(err)
	}
	if err := nc.PublishRequest("GRIDFAN.API.CONSUMER.INFO.EVENTS.erp", "events.x.y.z.w", nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-refused:
	case <-time.After(5 * time.Second):
		t.Error("it may publish events")
	}
	if _, err := c.Info(t.Context()); err != nil {
		t.Error(err)
	}
	stream, err := js.Stream(t.Context(), broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("%d events are stored, want 1", n)
	}
	// And gridfan itself works with such an account, advisories and all.
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "A", Subjects: []string{"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.EVENTS.*"}}); err != nil {
		t.Error(err)
	}
}
