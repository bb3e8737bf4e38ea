package cli

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/subscribers/deadletters"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

func newDeadLetters(env Env) *cobra.Command {
	return group(&cobra.Command{Use: "deadletters", Short: "Look after events that were given up for a subscriber", Aliases: []string{"deadletter", "dlq"}},
		newLetterList(env), newLetterShow(env), newLetterOrder(env, deadletters.Redrive), newLetterOrder(env, deadletters.Drop))
}

// letterFlags adds the flags that select dead letters.
func letterFlags(c *cobra.Command, sel *deadletters.Selection) (read func() error) {
	var since, until string
	c.Flags().StringVar(&sel.Cause, "cause", "", "only this cause, such as rejected or exhausted")
	c.Flags().StringVar(&sel.Reason, "reason", "", "only where the reason has this in it")
	c.Flags().StringVar(&since, "since", "", "only those given up since then: a time, or how long ago, as in 2h")
	c.Flags().StringVar(&until, "until", "", "only those given up until then")
	c.Flags().StringVar(&sel.Filter, "filter", "", "only events that this expression (CEL) lets through")
	return func() (err error) {
		if sel.Since, err = when("--since", since); err != nil {
			return err
		}
		sel.Until, err = when("--until", until)
		return err
	}
}

// when reads a time, or how long ago; empty means none.
func when(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := deliver.ParseDuration(s); err == nil {
		return time.Now().Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{time.DateTime, "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%s: %q is no time; write one as in 2026-11-01T10:00:00Z or '2026-11-01 10:00', or how long ago, as in 2h", flag, s)
}

func newLetterList(env Env) *cobra.Command {
	var sel deadletters.Selection
	var asJSON, each bool
	var after uint64
	var limit int
	c := &cobra.Command{
		Use: "list [NAME]", Short: "List dead letters by what went wrong, or one by one",
		Long: `list shows what was given up and why: one line for each subscriber, cause and
reason, the most frequent first. With --each, or with anything that selects some,
it lists a subscriber's dead letters one by one, oldest first.

In a reason, … stands for what differs from event to event.`,
		Example: "  gridfan deadletters list\n  gridfan deadletters list warehouse --each --cause rejected --since 2h",
		Args:    cobra.MaximumNArgs(1),
	}
	client := adminFlags(c, env)
	read := letterFlags(c, &sel)
	c.Flags().BoolVar(&each, "each", false, "one by one")
	c.Flags().IntVar(&limit, "limit", 50, "how many, at most 1000")
	c.Flags().Uint64Var(&after, "after", 0, "only those after this one")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if err := read(); err != nil {
			return err
		}
		for _, name := range []string{"cause", "reason", "since", "until", "filter", "limit", "after"} {
			each = each || cmd.Flags().Changed(name)
		}
		name := ""
		if len(args) > 0 {
			name = args[0]
		}
		if each && name == "" {
			return errors.New("say whose dead letters: gridfan deadletters list NAME")
		}
		if each {
			return listEach(cmd, env, client(), name, sel, after, limit, asJSON)
		}
		groups, err := client().DeadLetterGroups(cmd.Context(), name)
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, groups)
		}
		return failed(writeGroups(env, groups, time.Now()))
	}
	return c
}

func writeGroups(env Env, groups *deadletters.Groups, now time.Time) error {
	if len(groups.Groups) == 0 {
		_, err := fmt.Fprintln(env.Out, "No dead letters.")
		return err
	}
	w := tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SUBSCRIBER\tCAUSE\tCOUNT\tOLDEST\tNEWEST\tEXAMPLE\tREASON")
	for _, g := range groups.Groups {
		reason := printable([]byte(g.Reason))
		if reason == "" && g.Count > 1 {
			reason = "(other reasons)"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s ago\t%s ago\t%d\t%s\n", g.Subscriber, g.Cause, g.Count,
			deliver.Roughly(now.Sub(g.Oldest)), deliver.Roughly(now.Sub(g.Newest)), g.Example.Sequence, reason)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if !groups.Complete {
		fmt.Fprintf(env.Out, "\nThere are more than these %d; there was no time to look at all of them.\n", groups.Total)
	}
	g := groups.Groups[0]
	_, err := fmt.Fprintf(env.Out, `
See one:          gridfan deadletters show %[1]s %[2]d
Send out anew:    gridfan deadletters redrive %[1]s --cause %[3]s --dry-run
Delete for good:  gridfan deadletters drop %[1]s --cause %[3]s --dry-run
`, g.Subscriber, g.Example.Sequence, g.Cause)
	return err
}

func listEach(cmd *cobra.Command, env Env, client *admin.Client, name string, sel deadletters.Selection, after uint64, limit int, asJSON bool) error {
	list, err := client.DeadLetters(cmd.Context(), name, sel, after, limit)
	if err != nil {
		return failed(err)
	}
	if asJSON {
		return printJSON(env.Out, list)
	}
	if len(list.DeadLetters) == 0 {
		_, err := fmt.Fprintf(env.Out, "No such dead letters of %s.\n", name)
		return failed(err)
	}
	if err := writeLetters(env, list.DeadLetters); err != nil {
		return failed(err)
	}
	next := fmt.Sprintf("See one:  gridfan deadletters show %s NUMBER", name)
	if list.Next > 0 {
		next = fmt.Sprintf("There may be more:  add --after %d", list.Next)
	}
	_, err = fmt.Fprintln(env.Out, "\n"+next)
	return failed(err)
}

func writeLetters(env Env, letters []deadletters.Letter) error {
	w := tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NUMBER\tGIVEN UP\tCAUSE\tSTATUS\tATTEMPTS\tTYPE\tID\tREASON")
	for _, l := range letters {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", l.Sequence, l.Failed.Local().Format(time.DateTime), l.Cause, status(l.Status),
			l.Attempts, printable([]byte(l.Type)), printable([]byte(l.ID)), printable([]byte(l.Reason)))
	}
	return w.Flush()
}

func status(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

func letterNumber(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no dead letter; gridfan deadletters list NAME --each shows their numbers", s)
	}
	return n, nil
}

func newLetterShow(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "show NAME NUMBER", Short: "Show one dead letter with every attempt that was made",
		Long: `show prints the event as the subscriber should have got it, why it was given up,
and the attempts that were made, as far back as the records reach.`,
		Example: "  gridfan deadletters show warehouse 17",
		Args:    cobra.ExactArgs(2),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		seq, err := letterNumber(args[1])
		if err != nil {
			return err
		}
		d, err := client().DeadLetter(cmd.Context(), args[0], seq)
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, d)
		}
		return failed(writeLetter(env, d))
	}
	return c
}

func writeLetter(env Env, d *deadletters.Detail) error {
	w := tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
	row := func(name, value string) { fmt.Fprintf(w, "%s\t%s\n", name, printable([]byte(value))) }
	row("dead letter", strconv.FormatUint(d.Sequence, 10))
	row("subscriber", d.Subscriber)
	row("given up", d.Failed.Local().Format(time.DateTime))
	row("cause", d.Cause)
	row("reason", d.Reason)
	row("status", status(d.Status))
	row("attempts", strconv.Itoa(d.Attempts))
	row("event", fmt.Sprintf("%d in EVENTS, on %s", d.Event, d.Subject))
	if d.Undecodable != "" {
		row("undecodable", d.Undecodable)
	}
	for _, name := range slices.Sorted(maps.Keys(d.Attributes)) {
		row("ce "+name, d.Attributes[name])
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(env.Out, "\nAttempts:")
	if err := writeHistory(env, d.History); err != nil {
		return err
	}
	data, note := d.Data, ""
	switch {
	case d.Binary:
		note = " (base64)"
	case d.Size == 0:
		data = "(none)"
	}
	if d.Truncated {
		note += fmt.Sprintf(" (the beginning of %s)", size(uint64(d.Size)))
	}
	_, err := fmt.Fprintf(env.Out, "\nData%s:\n%s\n\nOnce the cause is mended:  gridfan deadletters redrive %s %d\n", note, printable([]byte(data)), d.Subscriber, d.Sequence)
	return err
}

func writeHistory(env Env, h deadletters.History) error {
	if len(h.Records) == 0 {
		why := "none are recorded any more: the records forget their oldest when they are full"
		if !h.Complete {
			why = "there was no time to find them"
		}
		_, err := fmt.Fprintln(env.Out, "  "+why)
		return err
	}
	w := tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
	line := func(at time.Time, outcome string, status_ int, ms int64, reason string, next *time.Time) {
		after := ""
		if next != nil {
			after = "next at " + next.Local().Format(time.DateTime)
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%d ms\t%s\t%s\n", at.Local().Format(time.DateTime), outcome, status(status_), ms, printable([]byte(reason)), after)
	}
	for _, r := range h.Records {
		for _, t := range r.Earlier {
			line(t.Time, "failed", t.Status, t.Millis, t.Reason, nil)
		}
		line(r.Time, r.Outcome, r.Status, r.Millis, r.Reason, r.Next)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if !h.Complete {
		_, err := fmt.Fprintln(env.Out, "  There was no time to look further.")
		return err
	}
	return nil
}

func newLetterOrder(env Env, kind deadletters.Kind) *cobra.Command {
	var sel deadletters.Selection
	var dryRun, asJSON, detach bool
	var rate string
	verb := string(kind)
	c := &cobra.Command{
		Use: verb + " NAME [NUMBER…]", Short: "Send dead letters out anew",
		Long: `redrive sends dead letters to their subscriber once more, oldest first: those that
are named, --all of them, or those that the other flags select together. Their
retries begin from the start. One that fails again becomes a dead letter again.

They go over the subscriber's retry lane, a few at a time: what it gets besides
goes first, and its breaker holds for them too. To a subscriber that wants order
they come late, after what followed them.

This command follows the job to its end. Ctrl-C leaves the job running; it also
outlives a restart of gridfan.`,
		Example: "  gridfan deadletters redrive warehouse 17\n  gridfan deadletters redrive warehouse --reason 'HTTP 422' --since 2h --dry-run\n  gridfan deadletters redrive warehouse --all --rate 200/s",
		Args:    cobra.MinimumNArgs(1),
	}
	if kind == deadletters.Drop {
		c.Short = "Delete dead letters for good"
		c.Long = `drop deletes dead letters: those that are named, --all of them, or those that the
other flags select together. They are gone; a record of each stays. See them
before with list, or with --dry-run.

This command follows the job to its end. Ctrl-C leaves the job running.`
		c.Example = "  gridfan deadletters drop warehouse 17 18\n  gridfan deadletters drop warehouse --cause backlog --dry-run"
	}
	client := adminFlags(c, env)
	read := letterFlags(c, &sel)
	c.Flags().BoolVar(&sel.All, "all", false, "all of them")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only say which, with three examples")
	c.Flags().BoolVar(&detach, "detach", false, "start the job and do not follow it")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	if kind == deadletters.Redrive {
		c.Flags().StringVar(&rate, "rate", "", "the most in a time, as in 200/s (default: as fast as the subscriber takes them)")
	}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		for _, a := range args[1:] {
			n, err := letterNumber(a)
			if err != nil {
				return err
			}
			sel.Sequences = append(sel.Sequences, n)
		}
		if err := read(); err != nil {
			return err
		}
		if err := sel.Validate(); err != nil {
			return errors.New(strings.TrimPrefix(err.Error(), deadletters.ErrBadSelection.Error()+": "))
		}
		order := admin.LetterOrder{Selection: sel, DryRun: dryRun}
		var err error
		if order.Rate, err = rateFlag(rate); err != nil {
			return err
		}
		ask := client().RedriveDeadLetters
		if kind == deadletters.Drop {
			ask = client().DropDeadLetters
		}
		o, err := ask(cmd.Context(), args[0], order)
		if err != nil {
			return failed(err)
		}
		return ordered(cmd, env, client(), o, asJSON, detach, things{"dead letter", "of " + args[0]})
	}
	return c
}

func rateFlag(s string) (*deliver.Rate, error) {
	if s == "" {
		return nil, nil
	}
	n, err := deliver.ParseRate(s)
	if err == nil && n <= 0 {
		err = fmt.Errorf("want more than 0, got %s", s)
	}
	if err != nil {
		return nil, fmt.Errorf("--rate: %w", err)
	}
	r := deliver.Rate(n)
	return &r, nil
}

// things are what an order is about, as in "dead letter", "of warehouse".
type things struct{ one, whose string }

func (t things) count(n int) string { return plural(n, t.one) + " " + t.whose }

// ordered says what became of an order, and follows its job.
func ordered(cmd *cobra.Command, env Env, client *admin.Client, o *admin.Ordered, asJSON, detach bool, what things) error {
	if asJSON && (o.Job == nil || detach) {
		return printJSON(env.Out, o)
	}
	if !asJSON {
		for _, n := range o.Notes {
			fmt.Fprintln(env.Out, "Note: "+printable([]byte(n)))
		}
	}
	switch {
	case o.Preview != nil:
		return failed(writePreview(env, *o.Preview, what))
	case o.Job == nil:
		_, err := fmt.Fprintf(env.Out, "There are no such %ss %s.\n", what.one, what.whose)
		return failed(err)
	case detach:
		_, err := fmt.Fprintf(env.Out, "Job %s has begun.\nFollow it:  gridfan jobs show --follow %s\nStop it:    gridfan jobs stop %s\n", o.Job.ID, o.Job.ID, o.Job.ID)
		return failed(err)
	}
	return followJob(cmd.Context(), env, client, o.Job, asJSON)
}

func writePreview(env Env, p deadletters.Preview, what things) error {
	if p.Selected == 0 && p.Complete {
		_, err := fmt.Fprintf(env.Out, "There are no such %ss %s.\n", what.one, what.whose)
		return err
	}
	atLeast := ""
	if !p.Complete {
		atLeast = "at least "
	}
	fmt.Fprintf(env.Out, "Selected: %s%s\n", atLeast, what.count(p.Selected))
	w := tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
	for _, counts := range []map[string]int{p.Causes, p.Subjects} {
		for _, k := range slices.Sorted(maps.Keys(counts)) {
			name := k
			if name == "" {
				name = "(others)"
			}
			fmt.Fprintf(w, "  %s\t%d\n", name, counts[k])
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, why := range slices.Sorted(maps.Keys(p.Skipped)) {
		fmt.Fprintf(env.Out, "%d of them would be skipped: %s\n", p.Skipped[why], why)
	}
	if p.Failed > 0 {
		fmt.Fprintf(env.Out, "%d besides are left alone: the filter cannot judge them\n", p.Failed)
	}
	fmt.Fprintln(env.Out, "\nThe first of them:")
	if len(p.Causes) > 0 {
		if err := writeLetters(env, p.Examples); err != nil {
			return err
		}
	} else {
		w := tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "EVENT\tTYPE\tID\tSUBJECT")
		for _, l := range p.Examples {
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", l.Event, printable([]byte(l.Type)), printable([]byte(l.ID)), l.Subject)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(env.Out, "\nNothing was done. Do it with the same command without --dry-run.")
	return err
}
