package deploy_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/infra/secret"
)

// The server takes the rendered file as it is for Azure; only its certificates have to be
// somewhere on this machine.
func TestNATSConfigurationIsValid(t *testing.T) {
	for _, n := range zoned(t, "1", "2", "3").nodes {
		out, err := n.command("-t").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "is valid") {
			t.Errorf("%s: %v\n%s", n.name, err, out)
		}
	}
}

// What gridfan relies on is in the template.
func TestNATSConfigurationMatchesGridfan(t *testing.T) {
	text := read(t, "bicep/modules/nats.conf.tmpl")
	m := regexp.MustCompile(`(?m)^max_payload: (\d+)$`).FindStringSubmatch(text)
	if m == nil || m[1] != strconv.Itoa(broker.MaxPayload) {
		t.Errorf("max_payload is %v, gridfan needs %d", m, broker.MaxPayload)
	}
	for _, s := range []string{gridfanPassword, sysPassword, routePassword} {
		if strings.Contains(text, s) {
			t.Error("a secret is in the template")
		}
	}
}

func TestNATSCluster(t *testing.T) {
	c := zoned(t, "1", "2", "3")
	c.start()
	ctx := t.Context()
	js := c.js(c.nodes[0])

	t.Run("replicas are in three zones", func(t *testing.T) {
		if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "three", Subjects: []string{"gridfan.three"}, Replicas: 3}); err != nil {
			t.Fatal(err)
		}
		var zones []string
		for _, n := range c.spread(ctx, js, "three") {
			zones = append(zones, n.zone)
		}
		slices.Sort(zones)
		if !slices.Equal(zones, []string{"1", "2", "3"}) {
			t.Errorf("the replicas are in the zones %v", zones)
		}
	})
	t.Run("what the servers say of themselves", func(t *testing.T) {
		for _, n := range c.nodes {
			var varz struct {
				MaxPayload int      `json:"max_payload"`
				Tags       []string `json:"tags"`
				URLs       []string `json:"connect_urls"`
				JetStream  struct {
					Config struct {
						SyncAlways bool   `json:"sync_always"`
						UniqueTag  string `json:"unique_tag"`
						MaxStore   int64  `json:"max_storage"`
					} `json:"config"`
				} `json:"jetstream"`
			}
			if err := n.get("/varz", &varz); err != nil {
				t.Fatal(err)
			}
			cfg := varz.JetStream.Config
			if !cfg.SyncAlways || cfg.UniqueTag != "az:" || cfg.MaxStore != 21474836480 || varz.MaxPayload != broker.MaxPayload || !slices.Equal(varz.Tags, []string{"az:" + n.zone}) {
				t.Errorf("%s: %+v", n.name, varz)
			}
		}
	})
	t.Run("who may do what", func(t *testing.T) { testPermissions(t, c) })
	t.Run("routes", func(t *testing.T) { testRoutes(t, c) })
	t.Run("certificates are renewed without a restart", func(t *testing.T) { testRenewal(t, c) })
	t.Run("a lame duck", func(t *testing.T) {
		n := c.nodes[2]
		n.signal(syscall.SIGUSR2)
		select {
		case <-n.done:
		case <-time.After(patience):
			t.Fatal("the node does not stop")
		}
		if !strings.Contains(n.logged(), "lame duck") {
			t.Errorf("it stopped, but not as a lame duck:\n%s", n.logged())
		}
		n.start()
		c.wait()
	})
}

// testPermissions: gridfan's user can do what gridfan does (the test of the whole program
// shows that) and not more.
func testPermissions(t *testing.T, c *cluster) {
	n := c.nodes[0]
	for name, login := range map[string][2]string{
		"nobody": {"", ""}, "a stranger": {"stranger", gridfanPassword}, "wrong password": {"gridfan", "wrong"}, "user of the routes": {"route", routePassword},
	} {
		if _, err := c.connect(n, login[0], login[1]); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := nats.Connect(fmt.Sprintf("tls://127.0.0.1:%d", n.client), nats.UserInfo("gridfan", gridfanPassword)); err == nil {
		t.Error("a client that does not know the authority has connected")
	}
	violations := make(chan error, 10)
	nc, err := c.connect(n, "gridfan", gridfanPassword, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { violations <- err }))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, do func() error) {
		t.Helper()
		if err := do(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		select {
		case err := <-violations:
			if !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(patience):
			t.Errorf("%s is not refused", what)
		}
	}
	for _, subject := range []string{"$JS.API.STREAM.DELETE.three", "$JS.API.STREAM.SNAPSHOT.three", "$JS.API.ACCOUNT.PURGE.X", "$JS.API.META.LEADER.STEPDOWN", "$SYS.REQ.SERVER.PING", "other"} {
		refused("publishing to "+subject, func() error { return errors.Join(nc.Publish(subject, nil), nc.Flush()) })
	}
	for _, subject := range []string{">", "$SYS.>", "$JS.>", "$KV.>"} {
		refused("subscribing to "+subject, func() error {
			_, err := nc.SubscribeSync(subject)
			return errors.Join(err, nc.Flush())
		})
	}
	// The operator's account sees the servers and no event.
	sys, err := c.connect(n, "sys", sysPassword)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sys.Request("$SYS.REQ.SERVER.PING", nil, patience); err != nil {
		t.Errorf("the system account: %v", err)
	}
	js, err := jetstream.New(sys)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Stream(t.Context(), "three"); err == nil {
		t.Error("the system account sees a stream")
	}
}

// testRoutes: a stranger does not become a node.
func testRoutes(t *testing.T, c *cluster) {
	n := c.nodes[0]
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.ca.PEM)
	greet := func(conf *tls.Config, password string) string {
		t.Helper()
		// Between nodes nothing is said in the clear.
		conf.RootCAs, conf.MinVersion = roots, tls.VersionTLS12
		conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", n.route), conf)
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "CONNECT {\"user\":\"route\",\"pass\":%q,\"tls_required\":true,\"name\":\"X\",\"cluster\":\"gridfan\"}\r\nPING\r\n", password)
		answer := ""
		for !strings.Contains(answer, "PONG") && !strings.Contains(answer, "-ERR") {
			b := make([]byte, 4096)
			k, err := conn.Read(b)
			answer += string(b[:k])
			if err != nil {
				return answer + err.Error()
			}
		}
		return answer
	}
	shown, err := tls.LoadX509KeyPair(filepath.Join(n.certs, "node.pem"), filepath.Join(n.certs, "node-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	brokertest.NewAuthority(t).Node(dir, "127.0.0.1")
	foreign, err := tls.LoadX509KeyPair(filepath.Join(dir, "node.pem"), filepath.Join(dir, "node-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if got := greet(&tls.Config{Certificates: []tls.Certificate{shown}}, routePassword); !strings.Contains(got, "PONG") && !strings.Contains(got, "INFO") || strings.Contains(got, "-ERR") {
		t.Errorf("a node is answered %q", got)
	}
	if got := greet(&tls.Config{Certificates: []tls.Certificate{shown}}, "wrong"); !strings.Contains(got, "Authorization Violation") {
		t.Errorf("a wrong password is answered %q", got)
	}
	for name, conf := range map[string]*tls.Config{
		"no certificate":      {},
		"another authority's": {GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &foreign, nil }},
	} {
		if got := greet(conf, routePassword); strings.Contains(got, "PONG") || strings.Contains(got, "INFO") {
			t.Errorf("%s: answered %q", name, got)
		}
	}
}

// testRenewal: nats-secrets writes new files and sends SIGHUP. Routes that are up go on,
// new connections see the new certificate.
func testRenewal(t *testing.T, c *cluster) {
	for _, n := range c.nodes {
		c.ca.Node(n.certs, "127.0.0.1", "renewed.example.com")
		before := strings.Count(n.logged(), "Reloaded server configuration")
		n.signal(syscall.SIGHUP)
		eventually(t, n.name+" reads its configuration again", func() error {
			if strings.Count(n.logged(), "Reloaded server configuration") == before {
				return errors.New(n.logged())
			}
			return nil
		})
		nc, err := c.connect(n, "gridfan", gridfanPassword)
		if err != nil {
			t.Fatal(err)
		}
		state, err := nc.TLSConnectionState()
		if err != nil {
			t.Fatal(err)
		}
		if names := state.PeerCertificates[0].DNSNames; !slices.Contains(names, "renewed.example.com") {
			t.Errorf("%s shows a certificate for %v", n.name, names)
		}
		nc.Close()
	}
	c.wait()
}

// Where two nodes share a zone, no stream has two replicas there: three are refused, and
// two are spread.
func TestNATSZonesAreHonoured(t *testing.T) {
	c := zoned(t, "1", "2", "2")
	c.start()
	ctx := t.Context()
	js := c.js(c.nodes[0])
	_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "three", Subjects: []string{"gridfan.three"}, Replicas: 3})
	var api *jetstream.APIError
	if !errors.As(err, &api) || api.ErrorCode != 10005 || !strings.Contains(err.Error(), "tags not unique") && !strings.Contains(err.Error(), "no suitable peers") {
		t.Errorf("three replicas in two zones: %v", err)
	}
	for i := range 8 {
		name := fmt.Sprint("two", i)
		if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: name, Subjects: []string{"gridfan." + name}, Replicas: 2}); err != nil {
			t.Fatal(err)
		}
		if on := c.spread(ctx, js, name); len(on) != 2 || on[0].zone == on[1].zone {
			t.Errorf("%s is on %s in zone %s and %s in zone %s", name, on[0].name, on[0].zone, on[1].name, on[1].zone)
		}
	}
	// gridfan says what is the matter, too, and does not wait for it to pass.
	cfg := c.broker()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	b, err := broker.Open(ctx, cfg, slog.New(slog.DiscardHandler))
	if err == nil {
		b.Close()
		t.Fatal("gridfan keeps three replicas in two zones")
	}
	if errors.Is(err, broker.ErrAway) || !strings.Contains(err.Error(), "no suitable peers for placement") {
		t.Errorf("gridfan says %q", err)
	}
}

// A single node has no cluster block, and keeps streams once.
func TestNATSSingleNode(t *testing.T) {
	c := zoned(t, "1")
	c.nodes[0].start()
	t.Cleanup(c.nodes[0].kill)
	eventually(t, "the node is well", func() error { return c.nodes[0].get("/healthz", nil) })
	cfg := c.broker()
	cfg.Replicas = 1
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := broker.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
}

// broker is gridfan's configuration for the cluster.
func (c *cluster) broker() broker.Config {
	return broker.Config{
		URL: fmt.Sprintf("tls://127.0.0.1:%d", c.nodes[0].client), User: "gridfan", Password: secret.New(gridfanPassword),
		TLS: broker.TLSConfig{CA: filepath.Join(c.nodes[0].certs, "ca.pem")}, Replicas: 3, MaxBytes: 1 << 30,
	}
}
