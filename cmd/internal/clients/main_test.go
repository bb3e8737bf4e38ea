//go:build clients

// Package clients_test holds the tests that try gridfan with clients of other languages,
// as their makers publish them: the official JavaScript packages of Azure Event Grid,
// CloudEvents, Standard Webhooks and NATS, and an EventSource. The Go tests beside
// the code use the Go clients; these show that what was learnt from them is no habit
// of Go's.
//
// gridfan runs as a process, with TLS. Each program of testdata is a few lines around
// one library: it answers calls, and all that is judged is judged here. "make
// clients" runs them; they need node and npm, which fetches the packages at the
// versions of testdata/package-lock.json.
package clients_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Where things are.
var (
	gridfanBinary string // what is tried
	programs      string // a copy of testdata, with the packages
)

// patience is how long a test waits for what must come: far longer than it takes on a
// machine that is busy with something else.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "clients")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	gridfanBinary, programs = filepath.Join(dir, "gridfan"), filepath.Join(dir, "programs")
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// prepare builds gridfan and installs the packages, exactly those of the lock file,
// which npm compares with their digests. Their install scripts do not run: a client
// that needs one is none of these.
func prepare() error {
	if err := command(".", "go", "build", "-o", gridfanBinary, "github.com/gridfan/gridfan/cmd/gridfan"); err != nil {
		return err
	}
	if err := os.CopyFS(programs, os.DirFS("testdata")); err != nil {
		return err
	}
	return command(programs, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
}

func command(dir, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), errors.Join(err, ctx.Err()), out)
	}
	return nil
}

func eventually(within time.Duration, ok func() bool) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(within); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if !eventually(patience, ok) {
		t.Fatalf("not within %v: %s", patience, what)
	}
}
