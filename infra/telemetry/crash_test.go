package telemetry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gridfan/gridfan/infra/telemetry"
)

// crashVariable makes the test's binary a process that dies of a panic, and names
// its folder.
const crashVariable = "TELEMETRY_TEST_CRASH"

func TestMain(m *testing.M) {
	dir := os.Getenv(crashVariable)
	if dir == "" {
		os.Exit(m.Run())
	}
	telemetry.KeepCrashes(dir, slog.New(slog.NewJSONHandler(os.Stdout, nil)))
	go blowUp()
	select {}
}

func blowUp() { panic("a bug of ours") }

func TestKeepCrashes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "yet", "there")
	crash := func() string {
		t.Helper()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashVariable+"="+dir)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if e, ok := errors.AsType[*exec.ExitError](err); !ok || e.ExitCode() != 2 || !strings.Contains(stderr.String(), "panic: a bug of ours") {
			t.Fatalf("it does not die of its panic: %v\n%s", err, stderr.String())
		}
		return string(out)
	}
	if out := crash(); out != "" {
		t.Errorf("the first run logs %q", out)
	}
	var r struct{ Level, Msg, Panic, Stack, File string }
	if out := crash(); strings.Count(out, "\n") != 1 || json.Unmarshal([]byte(out), &r) != nil {
		t.Fatalf("the second run logs %q, want one JSON object", out)
	}
	if r.Level != "ERROR" || r.Msg != "the last run ended in a crash" || r.Panic != "panic: a bug of ours" || !strings.Contains(r.Stack, "blowUp") {
		t.Errorf("got %+v", r)
	}
	whole, err := os.ReadFile(r.File)
	if err != nil || !strings.Contains(string(whole), "blowUp") {
		t.Errorf("%s has %q, %v", r.File, whole, err)
	}

	// What is told is told once, and a huge one is cut.
	log := func() string {
		var b bytes.Buffer
		telemetry.KeepCrashes(dir, slog.New(slog.NewJSONHandler(&b, nil)))
		return b.String()
	}
	if out := log(); strings.Count(out, "\n") != 1 {
		t.Errorf("got %q, want the second crash", out)
	}
	if out := log(); out != "" {
		t.Errorf("told once more: %q", out)
	}
	if err := os.WriteFile(filepath.Join(dir, "crash.txt"), []byte("fatal error: "+strings.Repeat("\t", 1<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := log(); len(out) < 8<<10 || len(out) > 32<<10 {
		t.Errorf("a crash of a megabyte is a line of %d bytes", len(out))
	}
	if info, err := os.Stat(filepath.Join(dir, "crash.previous.txt")); err != nil || info.Size() < 1<<20 {
		t.Errorf("it is not kept whole: %v, %v", info, err)
	}
}

func TestKeepCrashesWithoutFolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	telemetry.KeepCrashes(filepath.Join(file, "below"), slog.New(slog.NewTextHandler(&b, nil)))
	if !strings.Contains(b.String(), "level=WARN") {
		t.Errorf("got %q", b.String())
	}
}
