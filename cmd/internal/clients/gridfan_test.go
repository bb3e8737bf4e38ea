//go:build clients

package clients_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/admin"
)

// Keys of the tests.
const (
	senderKey   = "c2VuZGVycyBzaWduIHdpdGggdGhpcw==" // base64, because SAS wants that
	receiverKey = "a-key-of-the-receivers"
	wrongKey    = "canary-canary-canary"
)

// sources take all that the senders of these tests send.
const sources = `
sources:
  topic: { kind: eventgrid, push: { auth: { anyOf: [ { key: "` + senderKey + `" }, { sas: { keys: "` + senderKey + `" } } ] } } }
  shop: { kind: cloudevents, push: { auth: { anyOf: [ { key: "` + senderKey + `" } ] } } }
  own: { kind: custom, mapping: { id: .no, type: .kind }, push: { auth: { anyOf: [ { key: "` + senderKey + `" } ] } } }
subscribers:
`

// gridfan is one that runs, as a process.
type gridfan struct {
	t      *testing.T
	dir    string
	public string // https://host:port
	nats   string // tls://host:port, of subscribers' own clients
	admin  *admin.Client
	client *http.Client // knows its certificate
	env    string       // lets Node.js know it

	cmd  *exec.Cmd
	gone chan struct{} // closed when it has ended
	mu   sync.Mutex    // guards log
	log  bytes.Buffer
}

// start runs gridfan with these subscribers, indented by two, until the test has
// ended.
func start(t *testing.T, subscribers string) *gridfan {
	t.Helper()
	g := &gridfan{t: t, dir: t.TempDir()}
	cert, key := g.certificate()
	g.nats = "tls://" + freeAddress(t)
	public := freeAddress(t)
	g.public = "https://" + public
	config := fmt.Sprintf(`listen:
  public: { addr: %q, tls: { cert: %q, key: %q } }
  admin: { addr: "127.0.0.1:0" }
broker:
  embedded:
    dir: %q
    listen: none
    clients: { listen: %q, tls: { cert: %q, key: %q } }
`, public, cert, key, filepath.Join(g.dir, "data"), strings.TrimPrefix(g.nats, "tls://"), cert, key)
	if err := os.WriteFile(filepath.Join(g.dir, "gridfan.yaml"), []byte(config+sources+subscribers), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			g.mu.Lock()
			defer g.mu.Unlock()
			t.Logf("gridfan's log:\n%s", g.log.Bytes())
		}
	})
	g.run()
	t.Cleanup(g.stop)
	return g
}

// run starts the process and waits until it is up.
func (g *gridfan) run() {
	g.t.Helper()
	g.cmd = exec.Command(gridfanBinary, "serve", "--log-format", "json", "--config", filepath.Join(g.dir, "gridfan.yaml"))
	stderr, err := g.cmd.StderrPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	up := make(chan string, 1)
	gone := make(chan struct{})
	g.gone = gone
	go func() {
		defer close(gone)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			g.mu.Lock()
			g.log.Write(append(lines.Bytes(), '\n'))
			g.mu.Unlock()
			var line struct{ Msg, Admin string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "gridfan is up" {
				up <- line.Admin
			}
		}
		_ = g.cmd.Wait() // ProcessState has how it ended
	}()
	select {
	case addr := <-up:
		g.admin = &admin.Client{URL: "http://" + addr}
	case <-gone:
		g.t.Fatal("gridfan does not start")
	case <-time.After(patience):
		g.kill()
		g.t.Fatal("gridfan is not up")
	}
}

// kill ends it as kill -9 does.
func (g *gridfan) kill() {
	_ = g.cmd.Process.Kill() // it may have gone by itself
	<-g.gone
}

// stop ends it as an operator does.
func (g *gridfan) stop() {
	_ = g.cmd.Process.Signal(os.Interrupt) // it may have gone by itself
	select {
	case <-g.gone:
	case <-time.After(patience):
		g.kill()
	}
	if code := g.cmd.ProcessState.ExitCode(); code != 0 {
		g.t.Errorf("gridfan ended with %d", code)
	}
}

// certificate makes an authority and a certificate of it for 127.0.0.1.
func (g *gridfan) certificate() (cert, key string) {
	g.t.Helper()
	sign := func(c, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			g.t.Fatal(err)
		}
		if parent == nil {
			parent, signer = c, k
		}
		c.SerialNumber = big.NewInt(time.Now().UnixNano())
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, c, parent, &k.PublicKey, signer)
		if err != nil {
			g.t.Fatal(err)
		}
		if c, err = x509.ParseCertificate(der); err != nil {
			g.t.Fatal(err)
		}
		return c, k
	}
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(g.dir, name)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			g.t.Fatal(err)
		}
		return file
	}
	ca, caKey := sign(&x509.Certificate{Subject: pkix.Name{CommonName: "authority of a test"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	// NATS's clients for JavaScript look for localhost where a URL has an address.
	c, k := sign(&x509.Certificate{Subject: pkix.Name{CommonName: "gridfan"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ca, caKey)
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		g.t.Fatal(err)
	}
	g.env = "NODE_EXTRA_CA_CERTS=" + write("ca.crt", "CERTIFICATE", ca.Raw)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	g.client = &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	g.t.Cleanup(g.client.CloseIdleConnections)
	return write("gridfan.crt", "CERTIFICATE", c.Raw), write("gridfan.key", "PRIVATE KEY", der)
}

// freeAddress gives an address that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// cli runs a command of gridfan with --json.
func (g *gridfan) cli(into any, args ...string) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, gridfanBinary, append(args, "--json", "--admin", g.admin.URL)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		g.t.Fatalf("gridfan %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	if err := json.Unmarshal(out, into); err != nil {
		g.t.Fatalf("gridfan %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// post sends a body to a source, which must take it.
func (g *gridfan) post(source, contentType, body string) {
	g.t.Helper()
	r, err := http.NewRequestWithContext(g.t.Context(), http.MethodPost, g.public+"/ingress/"+source, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("X-Gridfan-Key", senderKey)
	resp, err := g.client.Do(r)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || bytes.Contains(answer, []byte(`"faults"`)) {
		g.t.Fatalf("HTTP %d: %s, %v", resp.StatusCode, answer, err)
	}
}

// structured posts CloudEvents of these ids to the source shop.
func (g *gridfan) structured(ids ...string) {
	g.t.Helper()
	for _, id := range ids {
		g.post("shop", "application/cloudevents+json", fmt.Sprintf(`{"specversion":"1.0","id":%q,"source":"/shop","type":"order.placed","data":{"no":%q}}`, id, id))
	}
}

// subscriber asks the admin API.
func (g *gridfan) subscriber(name string) *admin.Subscriber {
	g.t.Helper()
	s, err := g.admin.Subscriber(g.t.Context(), name)
	if err != nil {
		g.t.Fatal(err)
	}
	return s
}

// settled waits until a subscriber has nothing left to get.
func (g *gridfan) settled(name string) {
	g.t.Helper()
	waitFor(g.t, name+" has got everything", func() bool {
		s := g.subscriber(name)
		return s.Backlog.Pending+s.Backlog.Retry == 0
	})
}

// metrics gives all of them as they are scraped.
func (g *gridfan) metrics() string {
	g.t.Helper()
	resp, err := http.Get(g.admin.URL + "/metrics")
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		g.t.Fatalf("metrics: HTTP %d, %v", resp.StatusCode, err)
	}
	return string(b)
}
