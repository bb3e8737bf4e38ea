//go:build container && linux

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// Given by make, which builds as the user and runs as root.
	layout  = flag.String("layout", "", "the OCI layout of the image")
	version = flag.String("version", "", "its tag")
)

const (
	// soon is how long a start may take until it is ready, the best of a few: this
	// machine may be busy with something else.
	soon   = 2 * time.Second
	starts = 5
	// patience is for what must come, on any machine.
	patience = 90 * time.Second
	// platformGrace is after how long container platforms kill
	// (terminationGracePeriodSeconds of Kubernetes and of Container Apps).
	platformGrace = 30 * time.Second
)

// container is a start of the image, as a runtime would do it: process 1 of its own
// process namespace, not root, in a file system that is read-only but for one volume,
// and that has neither /tmp nor /proc nor /dev nor a shell.
type container struct {
	cmd  *exec.Cmd
	gone chan struct{} // closed when it has ended
	out  bytes.Buffer
	log  bytes.Buffer // to be read when it has gone
}

// mounted is the image's file system.
type mounted struct {
	image        opened
	root, volume string
}

func mount(t *testing.T, from, to string, flags uintptr) {
	t.Helper()
	if err := unix.Mount(from, to, "", flags, ""); err != nil {
		t.Fatalf("mount %s on %s: %v; run this by make container", from, to, err)
	}
	if flags&unix.MS_REMOUNT == 0 {
		t.Cleanup(func() { _ = unix.Unmount(to, unix.MNT_DETACH) })
	}
}

// assemble unpacks the image and mounts what docs/container.md says.
func assemble(t *testing.T, config string) *mounted {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("needs root: run make container")
	}
	top := t.TempDir()
	// Whoever is not root must get through to the root below.
	if err := os.Chmod(filepath.Dir(top), 0o755); err != nil {
		t.Fatal(err)
	}
	m := &mounted{image: open(t, os.DirFS(*layout), *version, runtime.GOARCH), root: filepath.Join(top, "root"), volume: filepath.Join(top, "volume")}
	settings := filepath.Join(top, "config")
	for _, dir := range []string{m.root, m.volume, settings} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.image.unpack(t, m.root)
	if err := os.Chown(m.volume, user, user); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(settings, "gridfan.yaml"), []byte(config), 0o444); err != nil {
		t.Fatal(err)
	}
	mount(t, m.root, m.root, unix.MS_BIND)
	mount(t, m.volume, filepath.Join(m.root, dataDir), unix.MS_BIND)
	mount(t, settings, filepath.Join(m.root, "etc/gridfan"), unix.MS_BIND)
	mount(t, "", filepath.Join(m.root, "etc/gridfan"), unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY)
	mount(t, "", m.root, unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY)
	if err := os.WriteFile(filepath.Join(m.root, "x"), nil, 0o600); err == nil {
		t.Fatal("the root file system can be written to; the test would show nothing")
	}
	return m
}

// start does what the image's configuration says, and writes the log as JSON.
func (m *mounted) start(t *testing.T) *container {
	t.Helper()
	is := m.image.config.Config
	var uid, gid uint32
	if _, err := fmt.Sscanf(is.User, "%d:%d", &uid, &gid); err != nil {
		t.Fatal(err)
	}
	c := &container{gone: make(chan struct{})}
	args := append(append(append([]string{}, is.Entrypoint...), is.Cmd...), "--log-format", "json")
	c.cmd = &exec.Cmd{
		Path: args[0], Args: args, Dir: is.WorkingDir, Env: append([]string{"SHOP_KEY=" + key}, is.Env...), Stdout: &c.out,
		SysProcAttr: &syscall.SysProcAttr{
			Chroot: m.root, Credential: &syscall.Credential{Uid: uid, Gid: gid}, Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL,
		},
	}
	stderr, err := c.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.gone)
		_, _ = io.Copy(&c.log, stderr) // it ends with the process
		_ = c.cmd.Wait()               // ProcessState has how it ended
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill() // it may have gone by itself
		<-c.gone
	})
	return c
}

// ready waits until a URL answers 200.
func (c *container) ready(t *testing.T, url string) {
	t.Helper()
	client := &http.Client{Timeout: time.Second}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) { // sleep: an address that nobody listens on yet cannot be waited for
		if resp, err := client.Get(url); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-c.gone:
			t.Fatalf("it ended: %v\n%s", c.cmd.ProcessState, c.log.Bytes())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer 200 within %v", url, patience)
		}
	}
}

// stop is a platform's: SIGTERM, and it must end by itself within the grace.
func (c *container) stop(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.gone:
	case <-time.After(platformGrace):
		t.Fatalf("still there %v after SIGTERM", platformGrace)
	}
	if code := c.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("it exits with %d (%v), want 0\n%s", code, c.cmd.ProcessState, c.log.Bytes())
	}
	return time.Since(began)
}

// records reads the log, which is JSON on every line, and nothing went to stdout.
func (c *container) records(t *testing.T) (all []map[string]any) {
	t.Helper()
	<-c.gone
	for lines := bufio.NewScanner(&c.log); lines.Scan(); {
		var r map[string]any
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Errorf("not a JSON object: %q", lines.Text())
			continue
		}
		for _, name := range []string{"time", "level", "msg"} {
			if s, _ := r[name].(string); s == "" {
				t.Errorf("no %s in %s", name, lines.Text())
			}
		}
		all = append(all, r)
	}
	if c.out.Len() > 0 {
		t.Errorf("standard output: %q", c.out.Bytes())
	}
	return all
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

const key = "0123456789abcdef0123456789abcdef"

func TestContainer(t *testing.T) {
	got := make(chan string, 16)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body) // what is cut has no id
		got <- string(b)
	}))
	defer receiver.Close()
	public, api := freeAddr(t), freeAddr(t)
	m := assemble(t, fmt.Sprintf(`
listen: { public: { addr: %q }, admin: { addr: %q } }
broker: { embedded: { listen: none } }
sources:
  shop: { kind: cloudevents, push: { auth: { anyOf: [ { key: "${env:SHOP_KEY}" } ] } } }
subscribers:
  all: { subjects: "events.>", deliver: { webhook: { url: %q } } }
`, public, api, receiver.URL))

	ready, well, slowest := time.Duration(1<<62), time.Duration(1<<62), time.Duration(0)
	for i := range starts {
		began := time.Now()
		c := m.start(t)
		c.ready(t, "http://"+public+"/readyz")
		ready = min(ready, time.Since(began))
		c.ready(t, "http://"+public+"/healthz")
		well = min(well, time.Since(began))
		c.ready(t, "http://"+api+"/readyz")

		// It takes events in, keeps and delivers them.
		id := fmt.Sprintf("order-%d", i)
		event := fmt.Sprintf(`{"specversion":"1.0","id":%q,"source":"/shop","type":"order.placed","data":{}}`, id)
		resp, err := http.Post("http://"+public+"/ingress/shop?code="+key, "application/cloudevents+json", strings.NewReader(event))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s is answered %d", id, resp.StatusCode)
		}
		select {
		case body := <-got:
			if !strings.Contains(body, id) {
				t.Errorf("delivered %s, want %s", body, id)
			}
		case <-time.After(patience):
			t.Fatalf("%s is not delivered within %v", id, patience)
		}
		m.inspect(t, c)
		slowest = max(slowest, c.stop(t))
		var up, down bool
		for _, r := range c.records(t) {
			up, down = up || r["msg"] == "gridfan is up", down || r["msg"] == "gridfan has stopped"
		}
		if !up || !down {
			t.Errorf("the log does not tell of start and stop:\n%s", c.log.Bytes())
		}
	}
	t.Logf("ready after %v, broker included after %v, the best of %d starts; stops within %v",
		ready.Round(time.Millisecond), well.Round(time.Millisecond), starts, slowest.Round(time.Millisecond))
	if well > soon {
		t.Errorf("all is well after %v, want %v", well, soon)
	}
}

// inspect looks at the running process from outside.
func (m *mounted) inspect(t *testing.T, c *container) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d", c.cmd.Process.Pid)
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"\nUid:\t65532\t65532\t65532\t65532\n", "\nGid:\t65532\t65532\t65532\t65532\n", "\nCapEff:\t0000000000000000\n", "\t1\nNSpgid:"} {
		if !bytes.Contains(status, []byte(line)) {
			t.Errorf("%q is not in its status:\n%s", strings.TrimSpace(line), status)
		}
	}
	fds, err := filepath.Glob(dir + "/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	for _, fd := range fds {
		name, err := os.Readlink(fd)
		if err != nil || !strings.HasPrefix(name, "/") {
			continue // a socket or a pipe, or closed since
		}
		if name == "/dev/null" { // its standard input
			continue
		}
		files++
		// Seen from outside the mounts, or with their place in front.
		if !strings.HasPrefix(name, m.volume) && !strings.Contains(name, "/"+dataDir) && !strings.Contains(name, "/etc/gridfan") {
			t.Errorf("it has %s open, which is not on its volume", name)
		}
	}
	if files == 0 {
		t.Error("it has no file open; the look at them shows nothing")
	}
}

// TestContainerWithoutVolume starts where nothing can be stored: it says so, in the
// log's form, and does not seem to run.
func TestContainerWithoutVolume(t *testing.T) {
	m := assemble(t, fmt.Sprintf("listen: { public: { addr: %q }, admin: { addr: %q } }\nbroker: { embedded: { listen: none } }\nsources: { shop: { kind: cloudevents, push: { auth: { anyOf: [ { key: \"${env:SHOP_KEY}\" } ] } } } }\n", freeAddr(t), freeAddr(t)))
	if err := os.Chown(m.volume, 0, 0); err != nil {
		t.Fatal(err)
	}
	c := m.start(t)
	select {
	case <-c.gone:
	case <-time.After(patience):
		t.Fatal("it runs without a place to store anything")
	}
	if code := c.cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("it exits with %d, want 1", code)
	}
	all := c.records(t)
	if len(all) == 0 || !strings.Contains(fmt.Sprint(all[len(all)-1]["error"]), "data") {
		t.Errorf("the last line does not name the folder: %v", all)
	}
}
