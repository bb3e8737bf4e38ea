// Package deploy_test holds the tests of what gridfan is deployed with: the NATS
// cluster's configuration and cloud-init (bicep/modules), the scripts of infra/nats, the
// local stack of infra/compose and the unit of infra/systemd. The servers are real, each
// a process of its own that can be killed.
package deploy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker/brokertest"
)

// root is the repository.
const root = "../../.."

// patience is how long a test waits for what must come: far longer than it takes on a
// machine that is busy with something else.
const patience = 2 * time.Minute

// The secrets of the clusters here.
const (
	gridfanPassword = "gridfan-gridfan-gridfan"
	sysPassword     = "sys-sys-sys-sys-sys"
	routePassword   = "route-route-route-route"
)

const natsVariable = "GRIDFAN_TEST_NATS"

// TestMain lets the test's own binary stand in for nats-server.
func TestMain(m *testing.M) {
	if os.Getenv(natsVariable) != "" {
		os.Exit(natsServer())
	}
	os.Exit(m.Run())
}

// natsServer is what nats-server's main does (nats-server v2.15.2, main.go), with the
// same flags.
func natsServer() int {
	opts, err := server.ConfigureOptions(flag.NewFlagSet("nats-server", flag.ExitOnError), os.Args[1:], func() {}, func() {}, func() {})
	if err != nil {
		fmt.Fprintln(os.Stderr, "nats-server:", err)
		return 1
	}
	if opts.CheckConfig {
		fmt.Fprintf(os.Stderr, "nats-server: configuration file %s is valid (%s)\n", opts.ConfigFile, opts.ConfigDigest())
		return 0
	}
	s, err := server.NewServer(opts)
	if err != nil {
		fmt.Fprintln(os.Stderr, "nats-server:", err)
		return 1
	}
	s.ConfigureLogger()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // until the test has ended, however it does
		s.Shutdown()
	}()
	if err := server.Run(s); err != nil {
		fmt.Fprintln(os.Stderr, "nats-server:", err)
		return 1
	}
	s.WaitForShutdown()
	return 0
}

// read gives a file of the repository.
func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// render replaces words as Bicep does.
func render(t testing.TB, text string, words map[string]string) string {
	t.Helper()
	for word, value := range words {
		if !strings.Contains(text, "__"+word+"__") {
			t.Errorf("there is no __%s__ to replace", word)
		}
		text = strings.ReplaceAll(text, "__"+word+"__", value)
	}
	if left := regexp.MustCompile(`__[A-Z0-9_]+__`).FindString(text); left != "" {
		t.Errorf("%s is left after rendering", left)
	}
	return text
}

// node is one server of a cluster.
type node struct {
	t                         testing.TB
	name, zone                string
	client, route, monitoring int // ports
	conf, store, certs        string
	env                       []string

	mu   sync.Mutex // guards log
	log  bytes.Buffer
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
}

func (n *node) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.log.Write(p)
}

func (n *node) logged() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.log.String()
}

// command runs the server's program on the node's configuration.
func (n *node) command(args ...string) *exec.Cmd {
	n.t.Helper()
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command(self, append([]string{"-c", n.conf}, args...)...)
	cmd.Env = append(append(os.Environ(), natsVariable+"=1"), n.env...)
	return cmd
}

func (n *node) start() {
	n.t.Helper()
	n.cmd, n.done = n.command(), make(chan struct{})
	n.cmd.Stderr = n
	input, err := n.cmd.StdinPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait() // it is killed
		input.Close()
		close(done)
	}(n.cmd, n.done)
}

// kill ends it as kill -9 does.
func (n *node) kill() {
	_ = n.cmd.Process.Kill() // it may have ended by itself
	<-n.done
}

// signal asks it for something.
func (n *node) signal(s syscall.Signal) {
	n.t.Helper()
	if err := n.cmd.Process.Signal(s); err != nil {
		n.t.Fatal(err)
	}
}

// cluster is the template, rendered, on this machine.
type cluster struct {
	t     testing.TB
	ca    *brokertest.Authority
	nodes []*node
}

// zoned prepares one node in each of the zones, as Bicep renders it. Only these are
// then other than in Azure: all nodes are 127.0.0.1, so the ports 4222, 6222 and 8222
// are free ones, and the store and the certificates are in folders of the test's.
func zoned(t testing.TB, zones ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, ca: brokertest.NewAuthority(t)}
	var routes []string
	for i, zone := range zones {
		n := &node{t: t, name: fmt.Sprint("nats-", i+1), zone: zone, store: t.TempDir(), certs: t.TempDir()}
		n.client, n.route, n.monitoring = port(t), port(t), port(t)
		c.ca.Node(n.certs, "127.0.0.1")
		routes = append(routes, fmt.Sprintf(`"tls://127.0.0.1:%d"`, n.route))
		c.nodes = append(c.nodes, n)
	}
	for _, n := range c.nodes {
		text := render(t, read(t, "bicep/modules/nats.conf.tmpl"), map[string]string{
			"NODE": n.name, "ZONE": n.zone, "IP": "127.0.0.1", "ROUTES": strings.Join(routes, ", "), "CLUSTER": "gridfan",
		})
		moved := map[string]string{
			`"127.0.0.1:4222"`:  fmt.Sprintf(`"127.0.0.1:%d"`, n.client),
			`"127.0.0.1:8222"`:  fmt.Sprintf(`"127.0.0.1:%d"`, n.monitoring),
			`"/etc/nats/certs/`: `"` + n.certs + "/",
			`"/var/lib/nats"`:   `"` + n.store + `"`,
		}
		if len(zones) == 1 {
			text, _, _ = strings.Cut(text, "\ncluster {")
		} else {
			moved[`"127.0.0.1:6222"`] = fmt.Sprintf(`"127.0.0.1:%d"`, n.route)
		}
		for from, to := range moved {
			if !strings.Contains(text, from) {
				t.Errorf("the template has no %s", from)
			}
			text = strings.ReplaceAll(text, from, to)
		}
		n.conf = filepath.Join(t.TempDir(), "nats.conf")
		if err := os.WriteFile(n.conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		n.env = environment(text)
	}
	return c
}

// environment is what cloud-init's nats-secrets makes for systemd.
func environment(conf string) []string {
	env := []string{
		`NATS_PASSWORD="` + gridfanPassword + `"`, `NATS_SYS_PASSWORD="` + sysPassword + `"`, `NATS_ROUTE_PASSWORD="` + routePassword + `"`,
		"NATS_MAX_STORE=21474836480",
	}
	if m := regexp.MustCompile(`(?m)^ *#routes: (\[.*\])`).FindStringSubmatch(conf); m != nil {
		env = append(env, "NATS_ROUTES="+strings.ReplaceAll(m[1], "tls://", "tls://route:"+routePassword+"@"))
	}
	return env
}

// port is a free one.
func port(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// start starts all nodes and waits until each has all it should have.
func (c *cluster) start() {
	c.t.Helper()
	for _, n := range c.nodes {
		n.start()
		c.t.Cleanup(n.kill)
	}
	c.wait()
}

// wait returns when a leader knows all nodes, and all are well.
func (c *cluster) wait() {
	c.t.Helper()
	eventually(c.t, "the cluster is complete", func() error {
		leaders := 0
		for _, n := range c.nodes {
			if err := n.get("/healthz", nil); err != nil {
				return err
			}
			var jsz struct {
				Meta struct {
					Leader string `json:"leader"`
					Size   int    `json:"cluster_size"`
				} `json:"meta_cluster"`
			}
			if err := n.get("/jsz", &jsz); err != nil {
				return err
			}
			if jsz.Meta.Size != len(c.nodes) {
				return fmt.Errorf("%s knows %d nodes", n.name, jsz.Meta.Size)
			}
			if jsz.Meta.Leader == n.name {
				leaders++
			}
		}
		if leaders != 1 {
			return fmt.Errorf("%d leaders", leaders)
		}
		return nil
	})
}

// get asks a node's monitoring port.
func (n *node) get(path string, to any) error {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", n.monitoring, path))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s%s: HTTP %d", n.name, path, resp.StatusCode)
	}
	if to == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	return json.NewDecoder(resp.Body).Decode(to)
}

// eventually tries until it works, and fails with the last error and the nodes' logs
// when it does not.
func eventually(t testing.TB, what string, try func() error) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited for: %s; last: %v", what, err)
		}
		<-tick.C
	}
}

// connect is a client of a node; it ends with the test.
func (c *cluster) connect(n *node, user, password string, more ...nats.Option) (*nats.Conn, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.ca.PEM)
	nc, err := nats.Connect(fmt.Sprintf("tls://127.0.0.1:%d", n.client), append([]nats.Option{
		nats.UserInfo(user, password), nats.Secure(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}), nats.MaxReconnects(-1),
	}, more...)...)
	if err == nil {
		c.t.Cleanup(nc.Close)
	}
	return nc, err
}

// js is gridfan's view of JetStream.
func (c *cluster) js(n *node) jetstream.JetStream {
	c.t.Helper()
	nc, err := c.connect(n, "gridfan", gridfanPassword)
	if err != nil {
		c.t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		c.t.Fatal(err)
	}
	return js
}

// of gives the node of a name.
func (c *cluster) of(name string) *node {
	c.t.Helper()
	for _, n := range c.nodes {
		if n.name == name {
			return n
		}
	}
	c.t.Fatalf("no node is called %q", name)
	return nil
}

// spread names the nodes that a stream is on.
func (c *cluster) spread(ctx context.Context, js jetstream.JetStream, stream string) []*node {
	c.t.Helper()
	s, err := js.Stream(ctx, stream)
	if err != nil {
		c.t.Fatal(err)
	}
	info, err := s.Info(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	on := []*node{c.of(info.Cluster.Leader)}
	for _, r := range info.Cluster.Replicas {
		on = append(on, c.of(r.Name))
	}
	return on
}

func atoi(t testing.TB, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
