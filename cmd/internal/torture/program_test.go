//go:build torture && linux

package torture_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/cmd/internal/admin"
)

// process is a program that runs beside the tests.
type process struct {
	cmd  *exec.Cmd
	gone chan struct{} // closed when it has ended

	mu  sync.Mutex // guards log
	log []string
}

// spawn runs a program. line sees each line of its log as it comes.
func spawn(t testing.TB, line func(string), name string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(name, args...), gone: make(chan struct{})}
	// It must not outlive tests that are killed themselves.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.gone)
		for s := bufio.NewReader(stderr); ; {
			text, err := s.ReadString('\n')
			if text != "" && !asManyAsTheLoad.MatchString(text) {
				p.mu.Lock()
				p.log = append(p.log, strings.TrimSpace(text))
				p.mu.Unlock()
				line(text)
			}
			if err != nil {
				break
			}
		}
		_ = p.cmd.Wait() // ProcessState has how it ended
	}()
	t.Cleanup(p.kill)
	return p
}

// asManyAsTheLoad are lines that would hide the others.
var asManyAsTheLoad = regexp.MustCompile(`"msg":"(dead letter|element quarantined|not stored, and its sender was told so)"`)

// kill ends it as kill -9 does, and returns when it has gone.
func (p *process) kill() {
	_ = p.cmd.Process.Signal(syscall.SIGKILL) // it may have gone by itself
	<-p.gone
}

// halt stops all its threads where they are, or as soon as they come back from
// the kernel.
func (p *process) halt() {
	_ = p.cmd.Process.Signal(syscall.SIGSTOP) // it may have gone by itself
	eventually(100*time.Millisecond, func() bool {
		stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
		for _, name := range stats {
			b, err := os.ReadFile(name)
			_, rest, _ := strings.Cut(string(b), ") ")
			if err == nil && !strings.HasPrefix(rest, "T") && !strings.HasPrefix(rest, "D") {
				return false
			}
		}
		return true
	})
}

func (p *process) alive() bool {
	select {
	case <-p.gone:
		return false
	default:
		return true
	}
}

// tail gives the last lines of its log.
func (p *process) tail(n int) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.log[max(0, len(p.log)-n):], "\n")
}

// logged says whether some line of its log holds a text.
func (p *process) logged(text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.log {
		if strings.Contains(strings.ToLower(l), text) {
			return true
		}
	}
	return false
}

// gridfan is a running gridfan.
type gridfan struct {
	*process
	t       testing.TB
	started time.Time
	ready   chan message  // has the line that says that it is up
	up      time.Duration // until it said that it is up
	public  string
	admin   *admin.Client
	natsURL string
}

// message is a line of its log.
type message struct{ Msg, Ingress, Admin, NATS string }

// begin starts gridfan with a configuration file.
func begin(t testing.TB, file string) *gridfan {
	t.Helper()
	g := &gridfan{t: t, started: time.Now(), ready: make(chan message, 1)}
	g.process = spawn(t, func(line string) {
		var m message
		if json.Unmarshal([]byte(line), &m) == nil && m.Msg == "gridfan is up" {
			g.ready <- m
		}
	}, *gridfanBinary, "serve", "--log-format", "json", "--config", file)
	return g
}

// await returns when it is up, or has ended; then up is 0.
func (g *gridfan) await() {
	g.t.Helper()
	select {
	case m := <-g.ready:
		g.up = time.Since(g.started)
		g.public, g.natsURL, g.admin = m.Ingress, m.NATS, &admin.Client{URL: "http://" + m.Admin}
	case <-g.gone:
	case <-time.After(patience):
		g.t.Fatalf("gridfan is not up after %v:\n%s", patience, g.tail(40))
	}
}

// stop ends it as an operator does and tells its exit code.
func (g *gridfan) stop(within time.Duration) int {
	g.t.Helper()
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		g.t.Fatal(err)
	}
	select {
	case <-g.gone:
	case <-time.After(within):
		g.t.Fatalf("gridfan has not stopped within %v", within)
	}
	return g.cmd.ProcessState.ExitCode()
}

// health asks /healthz.
func (g *gridfan) health() (status int, text string) {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get("http://" + g.public + "/healthz")
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, strings.TrimSpace(string(b))
}

// unwell waits until /healthz says so and gives its words.
func (g *gridfan) unwell() string {
	g.t.Helper()
	var text string
	waitFor(g.t, "/healthz tells of the trouble", func() bool {
		var status int
		status, text = g.health()
		return status == http.StatusServiceUnavailable
	})
	return text
}

// drained waits until no subscriber has anything to come.
func (g *gridfan) drained() {
	g.t.Helper()
	var left string
	began, told := time.Now(), 10*time.Second
	if !eventually(patience, func() bool {
		if took := time.Since(began); took > told {
			told += 10 * time.Second
			g.t.Logf("still to be delivered after %v:%s", took.Round(time.Second), left)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		list, err := g.admin.Subscribers(ctx)
		if err != nil {
			left = err.Error()
			return false
		}
		left = ""
		for _, s := range list {
			// One that is not served at all has no backlog to show.
			if s.Backlog.Pending+s.Backlog.Retry > 0 || s.Breaker == nil {
				left += fmt.Sprintf(" %s %d+%d (%s)", s.Definition.Name, s.Backlog.Pending, s.Backlog.Retry, s.State)
			}
		}
		return left == ""
	}) {
		g.t.Fatalf("there is still a backlog:%s", left)
	}
}

// read calls each for every message of a stream, as another NATS client reads
// it.
func (g *gridfan) read(stream string, each func(seq uint64, header nats.Header, data []byte)) {
	g.t.Helper()
	nc, err := nats.Connect(g.natsURL)
	if err != nil {
		g.t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := js.Stream(ctx, stream)
	if err != nil {
		g.t.Fatalf("stream %s: %v", stream, err)
	}
	state := s.CachedInfo().State
	if state.Msgs == 0 {
		return
	}
	c, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		g.t.Fatal(err)
	}
	for last := uint64(0); ; {
		batch, err := c.Fetch(500, jetstream.FetchMaxWait(5*time.Second))
		if err != nil {
			g.t.Fatalf("read %s: %v", stream, err)
		}
		was := last
		for m := range batch.Messages() {
			meta, err := m.Metadata()
			if err != nil {
				g.t.Fatal(err)
			}
			last = meta.Sequence.Stream
			each(last, m.Headers(), m.Data())
			if last >= state.LastSeq || meta.NumPending == 0 {
				return
			}
		}
		if err := batch.Error(); err != nil || last == was {
			g.t.Fatalf("read %s after %d of %d: %v", stream, last, state.LastSeq, err)
		}
	}
}
