package telemetry

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
)

const (
	crashName    = "crash.txt"
	previousName = "crash.previous.txt"
	// maxCrash is how much of a crash is one line of the log. Container runtimes cut
	// longer lines than 16 KiB into several (containerd and Docker alike), which no
	// reader of JSON puts together again, and quoting can make text longer.
	maxCrash = 8 << 10
)

// KeepCrashes has what the runtime prints when the process dies of a panic, or of an
// error that ends it, written to crash.txt in dir too, beside standard error, where it
// is many lines and no JSON. If one is there from a run before, it is logged as one
// record, and kept as crash.previous.txt. The folder is made if there is none.
//
// What cannot be done is logged and stops nobody: gridfan runs without it.
func KeepCrashes(dir string, log *slog.Logger) {
	if err := keepCrashes(dir, log); err != nil {
		log.Warn("a crash of this process would be told on standard error alone", "error", err)
	}
}

func keepCrashes(dir string, log *slog.Logger) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	name := filepath.Join(dir, crashName)
	previous := filepath.Join(dir, previousName)
	text, err := head(name)
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(text)) > 0 {
		reason, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
		log.Error("the last run ended in a crash", "panic", reason, "stack", string(text), "file", previous)
		if err := os.Rename(name, previous); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close() // the runtime has a descriptor of its own
	return debug.SetCrashOutput(f, debug.CrashOptions{})
}

// head reads the beginning of a file; there is none of a file that does not exist.
func head(name string) ([]byte, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxCrash))
}
