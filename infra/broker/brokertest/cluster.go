package brokertest

import (
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/gridfan/gridfan/infra/broker"
)

// Cluster is three NATS servers in this process, as operators run them.
type Cluster struct {
	t       testing.TB
	options []*server.Options
	servers []*server.Server
}

// NewCluster starts one that ends with the test.
func NewCluster(t testing.TB) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	// Every server must list every route, so the ports are chosen before.
	var ports []int
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		l.Close()
	}
	var routes []*url.URL
	for _, p := range ports {
		routes = append(routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", p)})
	}
	for i, p := range ports {
		c.options = append(c.options, &server.Options{
			ServerName: fmt.Sprint("n", i), Host: "127.0.0.1", Port: server.RANDOM_PORT,
			JetStream: true, StoreDir: t.TempDir(), SyncAlways: true, MaxPayload: broker.MaxPayload,
			Cluster: server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: p}, Routes: routes,
			NoSigs: true, NoLog: true,
		})
	}
	c.start()
	return c
}

// start starts the servers and waits until a leader knows all of them.
func (c *Cluster) start() {
	c.t.Helper()
	for i, o := range c.options {
		s, err := server.NewServer(o.Clone())
		if err != nil {
			c.t.Fatal(err)
		}
		c.servers = append(c.servers, s)
		s.Start()
		c.t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		if !s.ReadyForConnections(20 * time.Second) {
			c.t.Fatalf("server %d does not start", i)
		}
		c.options[i].Port = s.Addr().(*net.TCPAddr).Port
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		for _, s := range c.servers {
			if s.JetStreamIsLeader() && len(s.JetStreamClusterPeers()) == len(c.servers) {
				return
			}
		}
		if time.Now().After(deadline) {
			c.t.Fatal("the cluster elects no leader")
		}
	}
}

// StopLeader stops the server that leads a stream, and gives what starts it
// again.
func (c *Cluster) StopLeader(stream string) (again func()) {
	c.t.Helper()
	for i, s := range c.servers {
		if s.JetStreamIsStreamLeader("$G", stream) {
			return c.stop(i)
		}
	}
	c.t.Fatalf("nobody leads %s", stream)
	return nil
}

// StopTwo stops two of the three servers, so that nothing can be led, and gives what
// starts them again.
func (c *Cluster) StopTwo() (again func()) {
	var one, two func()
	var stopping sync.WaitGroup // one that is alone waits for who is to lead in its place
	stopping.Go(func() { one = c.stop(0) })
	stopping.Go(func() { two = c.stop(1) })
	stopping.Wait()
	return func() { one(); two() }
}

// stop stops a server, and gives what starts it again.
func (c *Cluster) stop(i int) (again func()) {
	c.servers[i].Shutdown()
	c.servers[i].WaitForShutdown()
	return func() {
		s, err := server.NewServer(c.options[i].Clone())
		if err != nil {
			c.t.Error(err)
			return
		}
		c.servers[i] = s
		s.Start()
		c.t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	}
}

// URL is where NATS clients reach its servers, those that are stopped included.
func (c *Cluster) URL() string {
	var urls []string
	for _, o := range c.options {
		urls = append(urls, fmt.Sprintf("nats://127.0.0.1:%d", o.Port))
	}
	return strings.Join(urls, ",")
}

// Connect reaches the cluster as gridfan does, with three replicas of
// everything.
func (c *Cluster) Connect() *broker.Broker {
	c.t.Helper()
	return connect(c.t, broker.Config{URL: c.URL(), Replicas: 3, Durability: broker.SyncAlways, MaxBytes: 1 << 30})
}
