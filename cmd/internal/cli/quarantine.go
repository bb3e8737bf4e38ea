package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/router/quarantine"
)

func newQuarantine(env Env) *cobra.Command {
	return group(&cobra.Command{Use: "quarantine", Short: "Look after what was accepted and not understood"},
		newQuarantineList(env), newQuarantineShow(env), newQuarantineRedrive(env), newQuarantineDrop(env))
}

func newQuarantineList(env Env) *cobra.Command {
	var source string
	var limit int
	var after uint64
	var asJSON bool
	c := &cobra.Command{
		Use: "list", Short: "List the entries, oldest first",
		Long:    "list shows what is in quarantine: when it came, from which source, and why it was not\nunderstood.",
		Example: "  gridfan quarantine list --source prod",
		Args:    cobra.NoArgs,
	}
	client := adminFlags(c, env)
	c.Flags().StringVar(&source, "source", "", "only this source")
	c.Flags().IntVar(&limit, "limit", 50, "how many, at most 1000")
	c.Flags().Uint64Var(&after, "after", 0, "only entries after this one")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := client().Quarantine(cmd.Context(), source, after, limit)
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, list)
		}
		if len(list.Entries) == 0 {
			_, err := fmt.Fprintln(env.Out, "Nothing is in quarantine.")
			return failed(err)
		}
		w := tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "ENTRY\tRECEIVED\tSOURCE\tREASON\tSIZE\tDETAIL")
		for _, e := range list.Entries {
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", e.Sequence, e.Received.Local().Format(time.DateTime),
				e.Source, e.Reason, size(uint64(e.Size)), e.Detail)
		}
		if err := w.Flush(); err != nil {
			return failed(err)
		}
		next := "See one:  gridfan quarantine show ENTRY"
		if list.Next > 0 {
			next = fmt.Sprintf("There are more:  gridfan quarantine list --after %d", list.Next)
		}
		_, err = fmt.Fprintln(env.Out, "\n"+next)
		return failed(err)
	}
	return c
}

func newQuarantineShow(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "show ENTRY", Short: "Show one entry with its body",
		Long:    "show prints why an entry was not understood, the headers it came with, and its body as\nit was sent.",
		Example: "  gridfan quarantine show 17",
		Args:    exactly("ENTRY"),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON; the body is in base64")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		seq, err := entryNumber(args[0])
		if err != nil {
			return err
		}
		e, err := client().QuarantineEntry(cmd.Context(), seq)
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, e)
		}
		w := tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
		fmt.Fprintf(w, "entry\t%d\nsource\t%s\nreceived\t%s\nreason\t%s\ndetail\t%s\n", e.Sequence, e.Source, e.Received.Local().Format(time.DateTime), e.Reason, e.Detail)
		for _, name := range sortedKeys(e.Request) {
			fmt.Fprintf(w, "%s\t%s\n", name, e.Request[name])
		}
		if err := w.Flush(); err != nil {
			return failed(err)
		}
		_, err = fmt.Fprintf(env.Out, "\n%s\n\nOnce the cause is mended:  gridfan quarantine redrive %d\n", printable(e.Body), e.Sequence)
		return failed(err)
	}
	return c
}

func newQuarantineRedrive(env Env) *cobra.Command {
	var source string
	var dryRun, asJSON bool
	c := &cobra.Command{
		Use: "redrive ENTRY… | --source SOURCE", Short: "Read entries again and publish what is understood now",
		Long: `redrive reads entries as their source would read them today, publishes what is
understood, and then takes it out of quarantine. What is still not understood
stays. It exits with 1 if any of that is left.`,
		Example: "  gridfan quarantine redrive 17 18\n  gridfan quarantine redrive --source prod --dry-run",
		Args:    cobra.ArbitraryArgs,
	}
	client := adminFlags(c, env)
	c.Flags().StringVar(&source, "source", "", "all entries of this source")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would happen")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		sel, err := selection(args, source)
		if err != nil {
			return err
		}
		res, err := client().Redrive(cmd.Context(), sel, dryRun)
		if err != nil {
			return failed(err)
		}
		if asJSON {
			if err := printJSON(env.Out, res); err != nil {
				return err
			}
		} else if err := writeOutcomes(env, res.Outcomes, dryRun); err != nil {
			return failed(err)
		}
		left := 0
		for _, o := range res.Outcomes {
			left += len(o.Faults)
		}
		switch {
		case res.Problem != "":
			return failed(errors.New("stopped before the end: " + res.Problem))
		case left > 0:
			return failed(fmt.Errorf("%s still not understood", plural(left, "element")))
		}
		return nil
	}
	return c
}

func writeOutcomes(env Env, outcomes []quarantine.Outcome, dryRun bool) error {
	verb := "published"
	if dryRun {
		verb = "would be published"
	}
	for _, o := range outcomes {
		var words []string
		for _, p := range []struct {
			n    int
			what string
		}{{o.Published, verb}, {o.Duplicate, "published before"}, {o.Control, "addressed to the router"}} {
			if p.n > 0 {
				words = append(words, fmt.Sprintf("%d %s", p.n, p.what))
			}
		}
		for _, f := range o.Faults {
			words = append(words, "not understood: "+f)
		}
		if _, err := fmt.Fprintf(env.Out, "%d (%s): %s\n", o.Sequence, o.Source, strings.Join(words, "; ")); err != nil {
			return err
		}
	}
	if len(outcomes) == 0 {
		_, err := fmt.Fprintln(env.Out, "Nothing of it is in quarantine.")
		return err
	}
	return nil
}

func newQuarantineDrop(env Env) *cobra.Command {
	var source string
	var asJSON bool
	c := &cobra.Command{
		Use: "drop ENTRY… | --source SOURCE", Short: "Delete entries for good",
		Long:    "drop deletes entries. They are gone: see them first with list and show.",
		Example: "  gridfan quarantine drop 17\n  gridfan quarantine drop --source prod",
		Args:    cobra.ArbitraryArgs,
	}
	client := adminFlags(c, env)
	c.Flags().StringVar(&source, "source", "", "all entries of this source")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		sel, err := selection(args, source)
		if err != nil {
			return err
		}
		d, err := client().Drop(cmd.Context(), sel)
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, d)
		}
		_, err = fmt.Fprintf(env.Out, "dropped %s\n", entries(d.Dropped))
		return failed(err)
	}
	return c
}

func entries(n int) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}

func entryNumber(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%q is no entry; gridfan quarantine list shows their numbers", s)
	}
	return n, nil
}

func selection(args []string, source string) (quarantine.Selection, error) {
	sel := quarantine.Selection{Source: source}
	for _, a := range args {
		n, err := entryNumber(a)
		if err != nil {
			return sel, err
		}
		sel.Sequences = append(sel.Sequences, n)
	}
	if (len(args) == 0) == (source == "") {
		return sel, errors.New("say which entries: their numbers, or --source for all of a source")
	}
	return sel, nil
}
