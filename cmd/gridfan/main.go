// Command gridfan routes events of Dynamics 365 and Azure Event Grid to many
// subscribers, each behind its own circuit breaker.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	// Zones of schedules and the authorities that subscribers' certificates are from,
	// for machines that have neither, as a container image of one file. Where there
	// are files of both, those count.
	_ "time/tzdata"

	_ "golang.org/x/crypto/x509roots/fallback"
	"golang.org/x/term"

	"github.com/gridfan/gridfan/cmd/internal/cli"
)

// version is set by the linker (see Makefile).
var version = "dev"

func main() { os.Exit(run()) }

func run() int {
	// The first signal asks to stop in good order; after it the default is back,
	// so a second one ends the process at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return cli.Main(ctx, os.Args[1:], cli.Env{
		Out: os.Stdout, Err: os.Stderr, Version: version, Getenv: os.Getenv,
		OutIsTerminal: isTerminal(os.Stdout), Terminal: terminal(),
	})
}

// terminal gives the screen and keyboard of this process, nil unless it has both.
func terminal() *cli.Terminal {
	in, out := int(os.Stdin.Fd()), int(os.Stdout.Fd())
	if !term.IsTerminal(in) || !term.IsTerminal(out) || !term.IsTerminal(int(os.Stderr.Fd())) {
		return nil
	}
	return &cli.Terminal{
		Keys: os.Stdin,
		Raw: func() (func(), error) {
			was, err := term.MakeRaw(in)
			if err != nil {
				return nil, err
			}
			return func() { _ = term.Restore(in, was) }, nil // it fails only when the terminal is gone
		},
		Width: func() int {
			w, _, _ := term.GetSize(out) // 0 if unknown
			return w
		},
	}
}

// isTerminal says whether f is a screen rather than a pipe or a file.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
