package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/router/complete"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/receive"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

func newSources(env Env) *cobra.Command {
	return group(&cobra.Command{Use: "sources", Short: "Look after where events come from", Aliases: []string{"source"}},
		newSourceList(env), newSourceShow(env), newSourcePollNow(env), newSourceRewind(env), newSourceBaseline(env), newSourceRecover(env))
}

func newSourceList(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "list", Short: "List the sources, pushed and polled",
		Long: `list shows how events of each source come, how many there were, and how polling goes.
Counts are since the start of this process, and of a polled source since that of the
process that polls it.`,
		Example: "  gridfan sources list\n  gridfan sources list --json | jq '.[] | select(.poll.state == \"failing\").name'",
		Args:    cobra.NoArgs,
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := client().Sources(cmd.Context())
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, list)
		}
		now := time.Now()
		w := tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "SOURCE\tKIND\tPATTERN\tPUBLISHED\tDUPLICATE\tIN QUARANTINE\tLAST EVENT\tPOLLING")
		trouble, name := "", "NAME"
		for _, s := range list {
			n, polling := eventsOf(s), "-"
			if s.Poll != nil {
				if polling = pollingWord(*s.Poll, now); len(s.Tables) > 0 {
					polling = plural(len(s.Tables), "table")
				}
				if name == "NAME" {
					name = s.Name
				}
				if trouble == "" && troubled(*s.Poll) {
					if trouble = s.Name; len(s.Tables) > 0 {
						trouble += "/" + s.Poll.Table
					}
				}
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\n", s.Name, s.Kind, s.Pattern, n.published, n.duplicate, s.InQuarantine, lastEvent(s, now), polling)
			for _, t := range s.Tables {
				fmt.Fprintf(w, "%s/%s\t\t\t%d\t%d\t\t%s\t%s\n", s.Name, printable([]byte(t.Table)), t.Published, t.Duplicate, newestWord(t), pollingWord(t, now))
			}
		}
		if err := w.Flush(); err != nil {
			return failed(err)
		}
		next := "See one:  gridfan sources show " + name
		if trouble != "" {
			next = "See what is the matter:  gridfan sources show " + trouble
		}
		_, err = fmt.Fprintln(env.Out, "\n"+next)
		return failed(err)
	}
	return c
}

// counted is what came of a source, whichever way.
type counted struct{ received, published, duplicate, quarantined int64 }

func eventsOf(s admin.SourceStatus) counted {
	c := counted{s.Received, s.Published, s.Duplicate, s.Quarantined}
	if p := s.Poll; p != nil {
		c.received += p.Published + p.Duplicate + p.Quarantined
		c.published += p.Published
		c.duplicate += p.Duplicate
		c.quarantined += p.Quarantined
	}
	return c
}

// lastEvent says when a source had its last event, as far as that is known.
func lastEvent(s admin.SourceStatus, now time.Time) string {
	last := time.Time{}
	if s.LastEvent != nil {
		last = *s.LastEvent
	}
	if s.Poll != nil && s.Poll.Newest.After(last) {
		last = s.Poll.Newest
	}
	if last.IsZero() {
		return "none since the start"
	}
	return deliver.Roughly(now.Sub(last)) + " ago"
}

// troubled says whether somebody should look at a source.
func troubled(p poll.Status) bool {
	return p.State == poll.Failing || p.State == poll.Unconfirmed
}

// pollingWord is how polling goes, for a table.
func pollingWord(p poll.Status, now time.Time) string {
	switch word := string(p.State); {
	case p.State == poll.Failing && !p.Since.IsZero():
		return fmt.Sprintf("FAILING for %s: %s", deliver.Roughly(now.Sub(p.Since)), p.Kind)
	case p.State == poll.Unconfirmed:
		return fmt.Sprintf("UNCONFIRMED: %d rows are gone", p.Missing)
	case p.Progress != nil:
		return word + ", " + progressWord(*p.Progress)
	case !p.Next.IsZero() && p.Next.After(now):
		return fmt.Sprintf("%s, next in %s", word, deliver.Roughly(p.Next.Sub(now)))
	default:
		return word
	}
}

func progressWord(p poll.Progress) string {
	if p.Of > 0 {
		return fmt.Sprintf("%d of about %d rows", p.Rows, p.Of)
	}
	return fmt.Sprintf("%d rows", p.Rows)
}

func newSourceShow(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "show NAME[/TABLE]", Short: "Show one source, or a table of it",
		Long:    "show tells what is known of one source: what came, how it is polled, how fresh that is, and\nwhat is the matter, if anything is.",
		Example: "  gridfan sources show crm\n  gridfan sources show crm/account",
		Args:    exactly("NAME"),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := client().Source(cmd.Context(), args[0])
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, s)
		}
		return failed(writeSource(env.Out, s, time.Now()))
	}
	return c
}

func writeSource(out io.Writer, s *admin.Source, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		if text := fmt.Sprintf(format, args...); text != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, printable([]byte(text)))
		}
	}
	line("source", "%s", s.Label())
	line("kind", "%s", s.Kind)
	line("pattern", "%s", s.Pattern)
	line("environment", "%s", s.Environment)
	line("rationale", "%s", s.Rationale)
	line("last event", "%s", lastEvent(s.SourceStatus, now))
	line("in quarantine", "%d", s.InQuarantine)
	if s.Pattern != "poll" {
		line("pushed", "%d received: %d published, %d duplicates, %d quarantined, %d for the router", s.Received, s.Published, s.Duplicate, s.Quarantined, s.Control)
	}
	if r := s.Reads; r != nil {
		line("reads", "%s %s of %s", r.Way, r.Of, r.From)
		line("cursor", "%s", r.Cursor)
		line("every", "%s", r.Every())
		line("windows", "%s", strings.Join(r.Windows, ", "))
		if r.Tolerance > 0 {
			line("tolerance", "%s", r.Tolerance)
		}
		line("asks as", "%s, at most %s together with others", r.Identity, r.Budget)
	}
	if p := s.Poll; p != nil {
		writePolling(line, p, now, len(s.Tables) > 0)
	}
	if r := s.Receive; r != nil {
		line("received from", "%s", r.From)
		line("receiving", "%s", receivingWords(*r, now))
		line("messages", "%d received, %d settled, %d to come again, %d dead-lettered, %d here", r.Messages, r.Settled, r.Lost, r.DeadLettered, r.Held)
		writePartitions(line, *r, now)
	}
	if d := s.DeadLetters; d != nil {
		line("dead letters", "%s: %s", d.From, deadLetterWords(*d, now))
	}
	if c := s.Complete; c != nil {
		line("completing", "%s", completingWords(*c, now))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := writeTables(out, s.Tables, now); err != nil {
		return err
	}
	if next := sourceNext(s); next != "" {
		_, err := fmt.Fprintln(out, "\n"+next)
		return err
	}
	return nil
}

// deadLetterWords tells how a container of dead letters is read back.
func deadLetterWords(d receive.DeadLetterStatus, now time.Time) string {
	var s string
	switch {
	case d.Reason != "":
		return fmt.Sprintf("cannot be read for %s: %s", deliver.Roughly(now.Sub(*d.Since)), d.Reason)
	case d.Every == 0:
		s = "read when somebody says so"
	case !d.Reads:
		s = "read by another gridfan"
	case d.Last == nil:
		s = "about to be read"
	default:
		s = fmt.Sprintf("read %s ago, every %s", deliver.Roughly(now.Sub(*d.Last)), deliver.Roughly(time.Duration(d.Every*float64(time.Second))))
	}
	s += "; " + plural(int(d.Blobs), "blob") + " recovered"
	if d.Left > 0 {
		s += fmt.Sprintf(", %d too large", d.Left)
	}
	return s
}

// completingWords tells how events are completed that the source has cut short.
func completingWords(c complete.Status, now time.Time) string {
	s := fmt.Sprintf("%s kept, each for at most %s", plural(int(c.Held), "event"), deliver.Roughly(time.Duration(c.Within*float64(time.Second))))
	if c.Held == 0 {
		s = "none to be completed"
	}
	if c.Kind != "" {
		s += fmt.Sprintf("; rows cannot be read for %s: %s", deliver.Roughly(now.Sub(*c.Since)), c.Reason)
	}
	if c.Next != nil {
		s += "; again in " + deliver.Roughly(max(0, c.Next.Sub(now)))
	}
	return s
}

// writeTables shows how polling goes, a table a line.
func writeTables(out io.Writer, tables []poll.Status, now time.Time) error {
	if len(tables) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nTABLE\tREQUESTS\tROWS\tPUBLISHED\tKNOWN ROWS\tNEWEST CHANGE\tPOLLING")
	for _, t := range tables {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\t%s\n", printable([]byte(t.Table)), t.Requests, t.Rows, t.Published, knownWord(t), newestWord(t), pollingWord(t, now))
	}
	return w.Flush()
}

func knownWord(p poll.Status) string {
	if p.Known < 0 {
		return "too many to be remembered"
	}
	return strconv.FormatInt(p.Known, 10)
}

func newestWord(p poll.Status) string {
	if p.Newest.IsZero() {
		return "-"
	}
	return deliver.Roughly(p.Freshness.Duration()) + " ago"
}

// writePolling tells how polling a table goes, or, with several, what they have in
// common.
func writePolling(line func(string, string, ...any), p *poll.Status, now time.Time, several bool) {
	line("state", "%s: %s", p.State, p.Says)
	if several {
		line("polls", "%d in %d requests, %d empty", p.Polls, p.Requests, p.EmptyPolls)
		line("rows", "%d read: %d published, %d duplicates, %d unchanged, %d of a baseline, %d quarantined", p.Rows, p.Published, p.Duplicate, p.Unchanged, p.Remembered, p.Quarantined)
		return
	}
	switch {
	case p.Here:
		line("polled by", "this process")
	case p.Holder != "":
		line("polled by", "%s, as it said %s ago", p.Holder, deliver.Roughly(p.Age.Duration()))
	}
	if p.Error != "" {
		line("error", "%s, %d in a row since %s: %s", p.Kind, p.Failures, p.Since.Local().Format(time.DateTime), p.Error)
	}
	if g := p.Progress; g != nil {
		line("progress", "%s in %d pages since %s", progressWord(*g), g.Pages, g.Since.Local().Format(time.DateTime))
	}
	if !p.Last.IsZero() {
		line("last poll", "%s ago", deliver.Roughly(now.Sub(p.Last)))
	}
	if !p.Next.IsZero() {
		line("next poll", "in %s", deliver.Roughly(p.Next.Sub(now)))
	}
	if p.Interval > 0 {
		line("interval", "%s; %s", p.Interval.Duration().Round(100*time.Millisecond), p.Why)
	}
	line("rate", "%.3g rows a minute", p.Rate*60)
	if !p.Newest.IsZero() {
		line("newest change", "%s ago", deliver.Roughly(p.Freshness.Duration()))
	}
	if !p.Bound.IsZero() {
		line("complete up to", "%s ago", deliver.Roughly(p.BoundAge.Duration()))
	}
	line("polls", "%d in %d requests, %d empty", p.Polls, p.Requests, p.EmptyPolls)
	line("rows", "%d read: %d published, %d duplicates, %d unchanged, %d of a baseline, %d quarantined", p.Rows, p.Published, p.Duplicate, p.Unchanged, p.Remembered, p.Quarantined)
	if p.Throttles > 0 {
		line("throttled", "%d times, %s in all", p.Throttles, deliver.Roughly(p.Lost.Duration()))
	}
	line("known rows", "%s", knownWord(*p))
}

// sourceNext says what to do next.
func sourceNext(s *admin.Source) string {
	switch p := s.Poll; {
	case p != nil && len(s.Tables) > 0:
		return fmt.Sprintf("See one of them:  gridfan sources show %s/%s", s.Name, p.Table)
	case p != nil && p.State == poll.Unconfirmed:
		return fmt.Sprintf("If they are deleted indeed:  gridfan sources baseline %s --confirm\nIf the source was just being filled:  gridfan sources baseline %s", s.Label(), s.Label())
	case p != nil && p.State == poll.Failing:
		return "Once that is mended:  gridfan sources poll-now " + s.Label()
	case s.InQuarantine > 0:
		return "See what was not understood:  gridfan quarantine list --source " + s.Name
	case p != nil:
		return "Poll it at once:  gridfan sources poll-now " + s.Label()
	}
	return "What became of its events:  gridfan books " + s.Name
}

func newSourcePollNow(env Env) *cobra.Command {
	var asJSON, noWait bool
	c := &cobra.Command{
		Use: "poll-now NAME[/TABLE]", Short: "Poll a source now, or a table of it",
		Long: `poll-now polls a source as soon as its budget allows, also outside of its windows. It
waits for the end of the poll and says what came. A source that has asked to be left
alone is left alone.`,
		Example: "  gridfan sources poll-now crm\n  gridfan sources poll-now crm/account",
		Args:    exactly("NAME"),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&noWait, "no-wait", false, "do not wait for the end of the poll")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		before, err := client().Source(cmd.Context(), args[0])
		if err != nil {
			return failed(err)
		}
		s, err := client().PollNow(cmd.Context(), args[0])
		if err != nil {
			return failed(err)
		}
		if noWait {
			return shown(env, s, asJSON, fmt.Sprintf("source %s is polled next\nSee how it goes:  gridfan sources show %s", s.Label(), s.Label()))
		}
		was := *before.Poll
		s, err = watchSource(cmd.Context(), env, client(), s, asJSON, before, func(p, was poll.Status) bool {
			fails := p.Failures > 0 && (p.Failures != was.Failures || !p.Since.Equal(was.Since))
			return fails || p.State == poll.HeldOff || p.State == poll.Unconfirmed || p.Progress == nil && p.Last.After(was.Last)
		})
		if err != nil {
			return err
		}
		p := s.Poll
		if err := shown(env, s, asJSON, fmt.Sprintf("source %s: %d rows read, %d published\nSee it:  gridfan sources show %s", s.Label(), since(p.Rows, was.Rows), since(p.Published, was.Published), s.Label())); err != nil {
			return err
		}
		return sourceFailure(s)
	}
	return c
}

// since is by how much a count has grown; one that another process has begun anew
// counts as a whole.
func since(now, before int64) int64 {
	if now < before {
		return now
	}
	return now - before
}

// shown prints a source for programs, or a text for people.
func shown(env Env, s *admin.Source, asJSON bool, text string) error {
	if asJSON {
		return printJSON(env.Out, s)
	}
	_, err := fmt.Fprintln(env.Out, printable([]byte(text)))
	return failed(err)
}

// sourceFailure is the error of a command after which a source is not well.
func sourceFailure(s *admin.Source) error {
	switch p := s.Poll; {
	case p == nil:
		return nil
	case p.State == poll.Failing:
		return failed(fmt.Errorf("source %s: %s: %s; see gridfan sources show %s", s.Label(), p.Kind, p.Error, s.Label()))
	case p.State == poll.HeldOff, p.State == poll.Unconfirmed:
		return failed(fmt.Errorf("source %s: %s; see gridfan sources show %s", s.Label(), p.Says, s.Label()))
	}
	return nil
}

func newSourceRewind(env Env) *cobra.Command {
	var asJSON, follow bool
	var order admin.RewindOrder
	var sequence int64
	c := &cobra.Command{
		Use: "rewind NAME[/TABLE] --to TIME|beginning", Short: "Have a source polled, or its event hub read, again from a time on",
		Long: `rewind sets a source's cursor back. What changed since the time is read again, and
published unless it was published within the dedup horizon (24 hours unless set).
From the beginning, every row there is counts as changed.

TIME is one as in 2026-11-01T10:00:00Z or '2026-11-01 10:00', or how long ago, as in
2h. Not every cursor has times: a row version of a database has none. Of a source with
several tables all are set back, unless TABLE names one.

Of an event hub all partitions are read again, or the one of --partition: that one
also from an event on, with its --sequence.`,
		Example: "  gridfan sources rewind crm --to 2h\n  gridfan sources rewind crm/account --to beginning --follow\n  gridfan sources rewind hub --partition 3 --sequence 4711",
		Args:    exactly("NAME"),
	}
	client := adminFlags(c, env)
	c.Flags().StringVar(&order.To, "to", "", "the time to go back to, or beginning")
	c.Flags().StringVar(&order.Partition, "partition", "", "a partition of its event hub, or all")
	c.Flags().Int64Var(&sequence, "sequence", 0, "the number of the first event of the partition, in the place of --to")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&follow, "follow", false, "until all is read, of a source that is polled")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		from := order.To
		switch {
		case cmd.Flags().Changed("sequence") && (order.To != "" || order.Partition == ""):
			return errors.New("--sequence takes the place of --to and goes with --partition, which counts for itself")
		case cmd.Flags().Changed("sequence"):
			order.Sequence, from = &sequence, fmt.Sprintf("event %d of partition %s", sequence, order.Partition)
		case order.To == "":
			return errors.New("say how far: --to 2h, --to 2026-11-01T10:00:00Z, or --to beginning")
		case order.To != admin.FromBeginning:
			at, err := when("--to", order.To)
			if err != nil {
				return err
			}
			order.To = at.UTC().Format(time.RFC3339)
			from = order.To
		}
		s, err := client().Rewind(cmd.Context(), args[0], order)
		if err != nil {
			return failed(err)
		}
		if s.Poll == nil || order.Partition != "" {
			return shown(env, s, asJSON, fmt.Sprintf("source %s is read again from %s\nSee how far it is:  gridfan sources show %s", s.Label(), from, s.Label()))
		}
		return begun(cmd.Context(), env, client(), s, asJSON, follow, fmt.Sprintf("source %s is polled again from %s", s.Label(), from))
	}
	return c
}

func newSourceBaseline(env Env) *cobra.Command {
	var asJSON, follow, all, silent, confirm bool
	c := &cobra.Command{
		Use: "baseline NAME[/TABLE]", Short: "Read all rows of a source again, or confirm deletions",
		Long: `baseline reads all rows of a source again, compares them with those that are known,
and publishes what differs: rows that are new or changed, and deletions of those that
are gone. With --publish it publishes all of them. With --silent it publishes none
and only remembers them, so changes that were not yet polled are never told.

When many rows are gone at once, polling stops and asks: a table may just be in the
middle of being filled anew. --confirm says that they are deleted.

Of a source with several tables all are read again, unless TABLE names one.`,
		Example: "  gridfan sources baseline crm --follow\n  gridfan sources baseline crm --confirm",
		Args:    exactly("NAME"),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&all, "publish", false, "publish every row")
	c.Flags().BoolVar(&silent, "silent", false, "publish nothing")
	c.Flags().BoolVar(&confirm, "confirm", false, "the rows that are missing are deleted indeed")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&follow, "follow", false, "until all is read")
	c.MarkFlagsMutuallyExclusive("publish", "silent", "confirm")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		order, what := admin.BaselineOrder{Mode: poll.Compare}, "all rows of source %s are read again, and what differs is published"
		switch {
		case all:
			order.Mode, what = poll.Publish, "all rows of source %s are read again and published"
		case silent:
			order.Mode, what = poll.Silent, "all rows of source %s are read again and not published"
		case confirm:
			order, what = admin.BaselineOrder{Confirm: true}, "the missing rows of source %s are told as deleted"
		}
		s, err := client().Baseline(cmd.Context(), args[0], order)
		if err != nil {
			return failed(err)
		}
		return begun(cmd.Context(), env, client(), s, asJSON, follow, fmt.Sprintf(what, s.Label()))
	}
	return c
}

// begun says that a reading of a source has begun, and follows it if asked to.
func begun(ctx context.Context, env Env, client *admin.Client, s *admin.Source, asJSON, follow bool, what string) error {
	if !follow {
		return shown(env, s, asJSON, what+"\nSee how far it is:  gridfan sources show "+s.Label())
	}
	if !asJSON {
		fmt.Fprintln(env.Out, what)
	}
	s, err := watchSource(ctx, env, client, s, asJSON, s, func(p, was poll.Status) bool {
		if p.State == poll.Unconfirmed || p.State == poll.Failing && p.Failures > 2 {
			return true
		}
		return p.Progress == nil && p.Last.After(was.Last) && p.State != poll.Baselining && p.State != poll.Resyncing
	})
	if err != nil {
		return err
	}
	p := s.Poll
	if err := shown(env, s, asJSON, fmt.Sprintf("source %s: %d rows read since its process began, %d published\nSee it:  gridfan sources show %s", s.Label(), p.Rows, p.Published, s.Label())); err != nil {
		return err
	}
	return sourceFailure(s)
}

// tables are the tables of a source, or the only one.
func tables(s *admin.Source) []poll.Status {
	if len(s.Tables) > 0 {
		return s.Tables
	}
	return []poll.Status{*s.Poll}
}

// watchSource shows how polling a source goes on, until done says so of each of its
// tables, which it is told as they are and as they were before, or ctx ends.
func watchSource(
	ctx context.Context, env Env, client *admin.Client, s *admin.Source, asJSON bool, before *admin.Source, done func(is, was poll.Status) bool,
) (*admin.Source, error) {
	was := map[string]poll.Status{}
	for _, t := range tables(before) {
		was[t.Table] = t
	}
	goesOn := func(t poll.Status) bool { return !done(t, was[t.Table]) }
	var bar *progressbar.ProgressBar
	defer func() {
		if bar != nil {
			fmt.Fprintln(env.Out)
		}
	}()
	t := time.NewTicker(askEvery)
	defer t.Stop()
	said, last, label := time.Now(), "", s.Label()
	for slices.ContainsFunc(tables(s), goesOn) {
		select {
		case <-ctx.Done():
			return nil, failed(fmt.Errorf("polling goes on without this command; see gridfan sources show %s", s.Label()))
		case <-t.C:
		}
		now, err := client.Source(ctx, label)
		switch {
		case ctx.Err() != nil:
			continue
		case err != nil:
			return nil, failed(fmt.Errorf("polling goes on, but cannot be followed: %w", err))
		case now.Poll == nil:
			return nil, failed(fmt.Errorf("source %s is not polled any more", s.Label()))
		}
		s = now
		line := s.Label() + ": " + pollingWord(*s.Poll, time.Now())
		switch g := s.Poll.Progress; {
		case asJSON:
		case env.OutIsTerminal:
			if bar == nil {
				bar = progressbar.NewOptions64(-1, progressbar.OptionSetWriter(env.Out), progressbar.OptionShowCount(), progressbar.OptionShowIts(),
					progressbar.OptionSetItsString("rows"), progressbar.OptionThrottle(askEvery/3), progressbar.OptionEnableColorCodes(false))
			}
			if g != nil && g.Of > 0 && bar.GetMax64() != max(g.Of, g.Rows) {
				bar.ChangeMax64(max(g.Of, g.Rows))
			}
			bar.Describe(printable([]byte(line)))
			if g != nil {
				_ = bar.Set64(g.Rows) // a screen that is gone is noticed at the end
			}
		case time.Since(said) >= lineEvery && line != last:
			fmt.Fprintln(env.Out, printable([]byte(line)))
			said, last = time.Now(), line
		}
	}
	return s, nil
}

// writePolled shows how polling goes, for those that are polled.
func writePolled(out io.Writer, list []admin.SourceStatus, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "POLLED\tPATTERN\tREQUESTS\tROWS\tEMPTY POLLS\tTHROTTLED\tNEWEST CHANGE\tPOLLING")
	any := false
	for _, s := range list {
		p := s.Poll
		if p == nil {
			continue
		}
		any = true
		row := func(name string, p poll.Status) {
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\n", name, s.Pattern, p.Requests, p.Rows, p.EmptyPolls, p.Throttles, newestWord(p), pollingWord(p, now))
		}
		if len(s.Tables) == 0 {
			row(s.Name, *p)
		}
		for _, t := range s.Tables {
			row(s.Name+"/"+printable([]byte(t.Table)), t)
		}
	}
	if !any {
		return nil
	}
	if _, err := fmt.Fprintln(out); err != nil {
		return err
	}
	return w.Flush()
}
