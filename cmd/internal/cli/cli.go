// Package cli is the command line: one file per group of commands.
//
// Exit codes are stable: 0 fine, 1 a failure at run time, 2 a mistake in the
// command line or the configuration, 3 books that do not balance.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/infra/secret"
)

// The exit codes.
const (
	exitOK         = 0
	exitFailure    = 1
	exitUsage      = 2
	exitUnbalanced = 3
)

// Env is what a command knows of the world.
type Env struct {
	Out, Err      io.Writer
	Version       string
	Getenv        func(string) string
	OutIsTerminal bool
	// Terminal is nil unless a person sits before input, output and errors.
	Terminal *Terminal
}

// Terminal is a screen with a keyboard.
type Terminal struct {
	Keys io.Reader
	// Raw makes keys arrive as they are pressed, without being shown and without
	// a meaning of their own, until restore is called. Lines then need a
	// carriage return.
	Raw func() (restore func(), err error)
	// Width is in characters, 0 if unknown.
	Width func() int
}

// color says whether escape sequences may go to Out (no-color.org).
func (e Env) color() bool {
	return e.OutIsTerminal && e.Getenv("NO_COLOR") == "" && e.Getenv("TERM") != "dumb"
}

// failure is an error of a command that was called rightly.
type failure struct{ error }

func (f *failure) Unwrap() error { return f.error }

// logged is an error that stands in the log already.
type logged struct{ error }

func (l *logged) Unwrap() error { return l.error }

// Main runs the command line args and returns the exit code.
func Main(ctx context.Context, args []string, env Env) int {
	root := newRoot(env)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	var told *logged
	if errors.As(err, &told) {
		env.Err = io.Discard
	}
	if errors.Is(err, errUnbalanced) {
		fmt.Fprintf(env.Err, "gridfan: %v\n", err)
		return exitUnbalanced
	}
	var bad config.Errors
	var p *admin.Problem
	var f *failure
	switch {
	case errors.As(err, &bad):
		fmt.Fprintln(env.Err, err)
		n := len(bad)
		fmt.Fprintf(env.Err, "gridfan: %d %s in the configuration; docs/configuration.md has every key\n", n, map[bool]string{true: "mistake", false: "mistakes"}[n == 1])
		return exitUsage
	case errors.As(err, &p) && (p.Code == "bad-definition" || p.Code == "bad-selection" || p.Code == "forbidden-address"):
		fmt.Fprintf(env.Err, "gridfan: %v\n", err)
		return exitUsage
	case errors.As(err, &f):
		fmt.Fprintf(env.Err, "gridfan: %v\n", err)
		return exitFailure
	}
	fmt.Fprintf(env.Err, "gridfan: %v\nSee '%s --help'.\n", err, cmd.CommandPath())
	return exitUsage
}

func newRoot(env Env) *cobra.Command {
	root := &cobra.Command{
		Use:   "gridfan",
		Short: "Fan Dynamics 365 and Event Grid events out to many subscribers",
		Long: `gridfan takes business events of Dynamics 365 Finance & Operations and events
of Azure Event Grid in by webhook, stores them durably on NATS JetStream
subjects, and delivers each to every system that subscribes to its subject,
each behind a circuit breaker of its own.

Try it in a minute:  gridfan dev
Run it:              gridfan serve -c gridfan.yaml`,
		Version:       env.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(env.Out)
	root.SetErr(env.Err)
	root.SetVersionTemplate("gridfan {{.Version}}\n")
	root.AddCommand(
		newServe(env), newDev(env),
		newSubscribe(env), newSubscribers(env), newEndpoints(env),
		newSources(env), newStatus(env), newBooks(env), newWhy(env), newTrigger(env), newListen(env), newQuarantine(env), newConfig(env),
		newDeadLetters(env), newReplay(env), newJobs(env),
	)
	return root
}

// group makes a command that only has others below it; called alone or with a
// word it does not know, it says what there is.
func group(c *cobra.Command, below ...*cobra.Command) *cobra.Command {
	c.AddCommand(below...)
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(cmd *cobra.Command, args []string) error {
		var names []string
		for _, b := range cmd.Commands() {
			if b.IsAvailableCommand() {
				names = append(names, b.Name())
			}
		}
		if len(args) > 0 {
			return fmt.Errorf("unknown command %q for %q; want one of %s", args[0], cmd.CommandPath(), strings.Join(names, ", "))
		}
		return fmt.Errorf("%q needs a command: %s", cmd.CommandPath(), strings.Join(names, ", "))
	}
	return c
}

// adminFlags adds the flags of a command that asks a running gridfan, and
// returns what makes its client.
func adminFlags(c *cobra.Command, env Env) func() *admin.Client {
	url := env.Getenv("GRIDFAN_ADMIN")
	if url == "" {
		url = "http://127.0.0.1:8081"
	}
	c.Flags().StringVar(&url, "admin", url, "where the admin listener is; also GRIDFAN_ADMIN. Its token, if it has one, comes from GRIDFAN_ADMIN_TOKEN")
	return func() *admin.Client {
		if !strings.Contains(url, "://") {
			url = "http://" + url
		}
		return &admin.Client{URL: url, Token: secret.New(env.Getenv("GRIDFAN_ADMIN_TOKEN"))}
	}
}

// failed marks an error as one of a command that was called rightly.
func failed(err error) error {
	if err == nil {
		return nil
	}
	return &failure{err}
}

// printJSON writes v for programs.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return failed(enc.Encode(v))
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// printable shows a body on a screen: control characters could do things there.
func printable(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(string(b), "\uFFFD"))
}
