package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"
)

// A person's gridfan listen needs a terminal, which here is a pair of pseudo
// terminals: the test has the end where the screen and the keyboard are.

// pty is one such pair.
type pty struct {
	t            *testing.T
	screen, side *os.File

	mu   sync.Mutex // guards text
	text strings.Builder
}

func newPty(t *testing.T) *pty {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	side, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(side.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 200}); err != nil {
		t.Fatal(err)
	}
	p := &pty{t: t, screen: screen, side: side}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := screen.Read(b)
			if err != nil {
				return // the end of the test
			}
			p.mu.Lock()
			p.text.Write(b[:n])
			p.mu.Unlock()
		}
	}()
	t.Cleanup(func() { side.Close(); screen.Close() })
	return p
}

// shows waits until a text is on the screen so many times.
func (p *pty) shows(what string, times int) {
	p.t.Helper()
	check(p.t, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if n := strings.Count(p.text.String(), what); n < times {
			return fmt.Errorf("%q shows %d times, want %d:\n%s", what, n, times, p.text.String())
		}
		return nil
	})
}

func (p *pty) hit(keys string) {
	p.t.Helper()
	if _, err := p.screen.WriteString(keys); err != nil {
		p.t.Fatal(err)
	}
}

// mode is how the terminal treats lines.
func (p *pty) mode() unix.Termios {
	p.t.Helper()
	m, err := unix.IoctlGetTermios(int(p.side.Fd()), unix.TCGETS)
	if err != nil {
		p.t.Fatal(err)
	}
	return *m
}

func check(t *testing.T, f func() error) {
	t.Helper()
	if err := poll(f); err != nil {
		t.Fatal(err)
	}
}

// program runs this very program. It is killed at the end of the test.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// This name makes the test's binary gridfan.
	return &exec.Cmd{Path: self, Args: append([]string{"gridfan"}, args...), Env: os.Environ()}
}

func launch(t *testing.T, c *exec.Cmd) {
	t.Helper()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.ProcessState == nil {
			_ = c.Process.Kill() // it may have gone by itself
			_ = c.Wait()
		}
	})
}

// served is a gridfan in a process of its own.
type served struct {
	t                   *testing.T
	dir                 string
	public, admin, nats string
	cmd                 *exec.Cmd
}

func serve(t *testing.T) *served {
	t.Helper()
	s := &served{t: t, dir: t.TempDir()}
	for _, addr := range []*string{&s.public, &s.admin, &s.nats} {
		var err error
		if *addr, err = freeAddr(); err != nil {
			t.Fatal(err)
		}
	}
	file := fmt.Sprintf(`
listen: { public: { addr: %q }, admin: { addr: %q } }
broker: { embedded: { listen: %q } }
sources: { prod: { kind: fno, push: { auth: none } } }
subscribers: { idle: { subjects: [ "events.>" ], deliver: { webhook: { url: "http://127.0.0.1:1/" } } } }
`, s.public, s.admin, s.nats)
	if err := os.WriteFile(filepath.Join(s.dir, "gridfan.yaml"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	return s
}

func (s *served) start() {
	s.t.Helper()
	s.cmd = program(s.t, "serve", "-c", filepath.Join(s.dir, "gridfan.yaml"), "--data", filepath.Join(s.dir, "store"), "--log-level", "error")
	launch(s.t, s.cmd)
	check(s.t, func() error { return answers("http://" + s.admin + "/healthz") })
}

func (s *served) run(args ...string) string {
	s.t.Helper()
	c := program(s.t, args...)
	c.Env = append(c.Env, "GRIDFAN_ADMIN="+s.admin, "GRIDFAN_INGRESS="+s.public)
	out, err := c.CombinedOutput()
	if err != nil {
		s.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// cursors names the consumers on EVENTS, but for those with which gridfan reads
// what is stored for itself.
func (s *served) cursors() (names []string) {
	s.t.Helper()
	nc, err := nats.Connect(s.nats)
	if err != nil {
		s.t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	stream, err := js.Stream(ctx, "EVENTS")
	if err != nil {
		s.t.Fatal(err)
	}
	list := stream.ConsumerNames(ctx)
	for name := range list.Name() {
		if name == "idle" || strings.HasPrefix(name, "gridfan_listen_") {
			names = append(names, name)
		}
	}
	if err := list.Err(); err != nil {
		s.t.Fatal(err)
	}
	return names
}

// only waits until there is no cursor but the subscriber's.
func (s *served) only() {
	s.t.Helper()
	check(s.t, func() error {
		if names := s.cursors(); !cmp.Equal(names, []string{"idle"}) {
			return fmt.Errorf("cursors %v", names)
		}
		return nil
	})
}

// person starts gridfan listen on a terminal.
func (s *served) person(p *pty) *exec.Cmd {
	s.t.Helper()
	c := program(s.t, "listen", "--from", "beginning")
	c.Env = append(c.Env, "GRIDFAN_ADMIN="+s.admin, "TERM=xterm")
	c.Stdin, c.Stdout, c.Stderr = p.side, p.side, p.side
	// Signals of the terminal go to it, as from a shell.
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	launch(s.t, c)
	return c
}

// TestListenOnATerminal shows that keys work, and that the terminal is after
// every end as it was before.
func TestListenOnATerminal(t *testing.T) {
	s := serve(t)
	s.run("trigger", "purchase-order-confirmed", "--source", "prod")
	for _, tt := range []struct {
		name string
		end  func(*pty, *exec.Cmd) error
	}{
		{"q", func(p *pty, _ *exec.Cmd) error { p.hit("q"); return nil }},
		{"Ctrl-C", func(p *pty, _ *exec.Cmd) error { p.hit("\x03"); return nil }},
		{"SIGTERM", func(_ *pty, c *exec.Cmd) error { return c.Process.Signal(syscall.SIGTERM) }},
		{"SIGINT", func(_ *pty, c *exec.Cmd) error { return c.Process.Signal(syscall.SIGINT) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPty(t)
			before := p.mode()
			c := s.person(p)
			p.shows("[1] 1  events.fno.prod.usmf.PurchaseOrderConfirmed", 1)
			if during := p.mode(); during.Lflag&unix.ECHO != 0 || during.Lflag&unix.ICANON != 0 {
				t.Error("keys are shown, or wait for Enter")
			}
			p.hit("p")
			p.shows(`"BusinessEventId": "PurchaseOrderConfirmedBusinessEvent"`, 1)
			p.hit("\x1b[A?")
			p.shows("r send again", 1)
			if err := tt.end(p, c); err != nil {
				t.Fatal(err)
			}
			if err := c.Wait(); err != nil {
				t.Errorf("it ended with %v", err)
			}
			p.shows("1 event\r\n", 1)
			if d := cmp.Diff(before, p.mode()); d != "" {
				t.Errorf("the terminal is not as it was (-before +after):\n%s", d)
			}
		})
	}
}

// TestListenLeavesNothing shows that status and the cursors are the same after
// listeners have come and gone, however they went.
func TestListenLeavesNothing(t *testing.T) {
	s := serve(t)
	s.run("subscribers", "pause", "idle")
	s.run("trigger", "purchase-order-confirmed", "--source", "prod")
	s.only()
	type books struct {
		Broker      struct{ Streams []map[string]any }
		Subscribers []map[string]any
	}
	status := func() (b books) {
		t.Helper()
		if err := json.Unmarshal([]byte(s.run("status", "--json")), &b); err != nil {
			t.Fatal(err)
		}
		for _, sub := range b.Subscribers {
			delete(sub, "breaker") // as this process sees it, since it started
		}
		return b
	}
	before := status()
	if len(before.Broker.Streams) < 5 || len(before.Subscribers) != 1 {
		t.Fatalf("no status: %+v", before)
	}
	same := func() {
		t.Helper()
		s.only()
		if d := cmp.Diff(before, status()); d != "" {
			t.Errorf("(-before +after):\n%s", d)
		}
	}

	// One that ends by itself.
	s.run("listen", "--from", "beginning", "--count", "1")
	same()

	// One that is killed.
	p := newPty(t)
	c := s.person(p)
	p.shows("[1] 1 ", 1)
	if n := len(s.cursors()); n != 2 {
		t.Errorf("%d cursors while somebody listens, want 2", n)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // it was killed
	same()

	// One that was there when gridfan was killed: it comes back.
	p = newPty(t)
	c = s.person(p)
	p.shows("[1] 1 ", 1)
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = s.cmd.Wait() // it was killed
	p.shows("the connection is lost", 1)
	s.start()
	p.shows("it is back after", 1)
	p.hit("q")
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
	same()
}
