package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/subscribers/registry"
)

func newConfigDiff(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "diff [FILE]", Short: "Compare a configuration file with a running gridfan",
		Long: `diff says what applying a file would change: the sources, subscribers and endpoints that
are added, changed key by key, and no longer declared; and the other sections, by name,
if they differ and so need a restart. Secrets are compared and not shown; in the
other sections they are not compared. Of a FILE the sources are such a section: they are
taken over from gridfan's own file alone.

References in FILE are resolved here. Without FILE, gridfan compares its own file as
it is now. It exits with 1 if there is a difference.`,
		Example: "  gridfan config diff gridfan.yaml\n  gridfan config diff --json | jq '.changes[].name'",
		Args:    cobra.MaximumNArgs(1),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		req, err := declared(args)
		if err != nil {
			return err
		}
		req.DryRun = true
		res, err := client().Apply(cmd.Context(), req)
		if err != nil {
			return failed(err)
		}
		if asJSON {
			err = printJSON(env.Out, res)
		} else {
			err = failed(writePlan(env.Out, res, "gridfan config apply "+strings.Join(args, " ")))
		}
		if n := differences(res); n > 0 && err == nil {
			return failed(errors.New(plural(n, "difference")))
		}
		return err
	}
	return c
}

func newConfigApply(env Env) *cobra.Command {
	var asJSON, prune, yes, dryRun bool
	c := &cobra.Command{
		Use: "apply [FILE]", Short: "Have a running gridfan take a configuration file over",
		Long: `apply makes the subscribers and endpoints that are declared in a file those of the
file, on every replica and without a restart. Those added with subscribe stay. One
that is no longer declared is parked: its events wait. --prune deletes the parked
ones with all that they have not got, after listing that.

Without FILE, gridfan reads its own file again, which it also does by itself within
seconds of a change, and at SIGHUP; its sources are taken over, too. With FILE, that file is read here, its references
resolved here, and its definitions sent; they hold until gridfan's own file changes.

Other sections (listen, broker, storage, egress, shutdown) are compared and need a restart. The
sources of FILE are compared only: who may use the API is not to say where gridfan goes
with its credentials.`,
		Example: "  gridfan config apply\n  gridfan config apply gridfan.yaml --dry-run\n  gridfan config apply gridfan.yaml --prune --yes",
		Args:    cobra.MaximumNArgs(1),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&prune, "prune", false, "delete the subscribers that are no longer declared, and what they have not got")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask before deleting")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would change")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		req, err := declared(args)
		if err != nil {
			return err
		}
		req.Prune = prune
		if prune && !yes && !dryRun {
			if err := mayPrune(cmd, env, client(), req); err != nil {
				return err
			}
		}
		req.DryRun = dryRun
		res, err := client().Apply(cmd.Context(), req)
		if err != nil {
			return failed(err)
		}
		if asJSON {
			err = printJSON(env.Out, res)
		} else if dryRun {
			err = failed(writePlan(env.Out, res, "gridfan config apply "+strings.Join(args, " ")))
		} else {
			err = failed(writeApplied(env.Out, res))
		}
		if err == nil && len(res.Problems) > 0 {
			return failed(errors.New(strings.Join(res.Problems, "\n")))
		}
		return err
	}
	return c
}

// declared reads the file of a command, if there is one.
func declared(args []string) (admin.ApplyRequest, error) {
	if len(args) == 0 {
		return admin.ApplyRequest{}, nil
	}
	cfg, err := config.Load(args[0])
	if err != nil {
		return admin.ApplyRequest{}, err
	}
	return admin.ApplyRequest{Declared: &admin.Declared{
		Endpoints: cfg.Endpoints, Subscribers: cfg.Subscribers, Sections: cfg.Sections(),
	}}, nil
}

// mayPrune lists what a prune would delete, and asks.
func mayPrune(cmd *cobra.Command, env Env, client *admin.Client, req admin.ApplyRequest) error {
	req.DryRun = true
	plan, err := client.Apply(cmd.Context(), req)
	if err != nil {
		return failed(err)
	}
	n := 0
	for _, c := range plan.Changes {
		if c.Kind != "subscriber" || c.What != registry.Removed && c.What != registry.Parked {
			continue
		}
		if n++; n == 1 {
			fmt.Fprintln(env.Err, "These subscribers are no longer declared. Deleting them discards:")
		}
		fmt.Fprintf(env.Err, "  %s: %s\n", c.Name, backlogWords(*c.Backlog))
	}
	if n == 0 {
		return nil
	}
	fmt.Fprintf(env.Err, "Delete %s? [y/N] ", plural(n, "subscriber"))
	answer, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	fmt.Fprintln(env.Err)
	if err != nil && !errors.Is(err, io.EOF) {
		return failed(err)
	}
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return failed(errors.New("nothing is changed; without --prune they are parked, and --yes does not ask"))
	}
	return nil
}

func backlogWords(b registry.Backlog) string {
	return fmt.Sprintf("%d pending, %d in retry, %s", b.Pending, b.Retry, plural(b.DeadLetters, "dead letter"))
}

// differences counts what is not as in the file.
func differences(res *admin.Applied) int {
	n := len(res.NeedsRestart) + len(res.NeedsFile)
	for _, c := range res.Changes {
		if c.What != registry.Parked {
			n++
		}
	}
	return n
}

// writePlan says what would change.
func writePlan(out io.Writer, res *admin.Applied, apply string) error {
	writeChanges(out, res)
	if differences(res) == 0 {
		_, err := fmt.Fprintln(out, "gridfan runs what the file says.")
		return err
	}
	_, err := fmt.Fprintln(out, "\nTake it over:  "+strings.TrimSpace(apply))
	return err
}

func writeApplied(out io.Writer, res *admin.Applied) error {
	if differences(res) == 0 && len(res.Pruned) == 0 {
		_, err := fmt.Fprintln(out, "gridfan runs what the file says; nothing is changed.")
		return err
	}
	writeChanges(out, res)
	for _, c := range res.Pruned {
		fmt.Fprintf(out, "deleted %s; discarded: %s\n", c.Name, backlogWords(*c.Backlog))
	}
	_, err := fmt.Fprintln(out, "\nDone. See how they are doing:  gridfan subscribers list")
	return err
}

func writeChanges(out io.Writer, res *admin.Applied) {
	marks := map[string]string{registry.Added: "+", registry.Changed: "~", registry.Removed: "-", registry.Parked: " "}
	for _, c := range res.Changes {
		note := ""
		switch {
		case c.What == registry.Removed && c.Kind == "subscriber":
			note = ": parked (" + backlogWords(*c.Backlog) + ")"
		case c.What == registry.Removed && c.Kind == "source":
			note = ": parked; what it has sent stays, and so does how far it was read"
		case c.What == registry.Removed:
			note = ": deleted once nobody uses it"
		case c.What == registry.Parked:
			note = ": parked before (" + backlogWords(*c.Backlog) + "); --prune deletes it"
		}
		fmt.Fprintf(out, "%s %s %s%s\n", marks[c.What], c.Kind, c.Name, note)
		if c.What == registry.Changed {
			writeDifferences(out, c.Keys)
		}
	}
	for _, section := range res.NeedsRestart {
		fmt.Fprintf(out, "! section %s differs: it needs a restart\n", section)
	}
	for _, section := range res.NeedsFile {
		fmt.Fprintf(out, "! section %s differs: gridfan takes it over when its own file changes\n", section)
	}
}
