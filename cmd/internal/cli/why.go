package cli

import (
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/trace"
)

func newWhy(env Env) *cobra.Command {
	var asJSON bool
	since := "24h"
	c := &cobra.Command{
		Use: "why ID | RECORD", Short: "Tell what became of an event, from its source to every attempt",
		Long: `why looks for an event by its id, or for the events of a record: by business key,
record id, match key or partition key, in any case, or a part of one between
slashes; of a GUID its first eight digits will do. For each event it tells where it came from and what every subscriber's
every attempt said. There is no index, so it reads back through what is stored:
about 70,000 events a second.`,
		Example: "  gridfan why 5637144576\n  gridfan why USMF/PO-000123 --since 7d\n  gridfan why 6f9619ff-8b86-d011-b42d-00c04fc964ff --json",
		Args:    exactly("ID or RECORD"),
	}
	client := adminFlags(c, env)
	c.Flags().StringVar(&since, "since", since, "how far back to look, such as 90m, 24h or 7d")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		back, err := deliver.ParseDuration(since)
		if err != nil {
			return fmt.Errorf("--since: %w", err)
		}
		a, err := client().Why(cmd.Context(), args[0], deliver.Duration(back))
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, a)
		}
		_, err = fmt.Fprint(env.Out, writeWhy(a))
		return failed(err)
	}
	return c
}

// clock shows when something happened: with the day and milliseconds, because
// the pieces of a timeline come close together.
func clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05.000") }

func writeWhy(a *trace.Answer) string {
	var s strings.Builder
	for i, e := range a.Events {
		if i > 0 {
			s.WriteString("\n")
		}
		writeTraced(&s, e)
	}
	for _, q := range a.Quarantined {
		fmt.Fprintf(&s, "Entry %d of the quarantine has it: source %s, %s, %s: %s\n  See it:  gridfan quarantine show %d\n",
			q.Sequence, q.Source, clock(q.Stored), q.Reason, oneLine(q.Detail), q.Sequence)
	}
	for _, h := range a.Held {
		words := "to be completed by its row"
		if h.For == "order" {
			words = "behind one of its record that is to be completed"
		}
		fmt.Fprintf(&s, "%s  %s of source %s is not published yet: it was accepted at %s and waits %s, until %s at the latest\n  See why:  gridfan sources show %s\n",
			oneLine(h.ID), oneLine(h.Type), h.Source, clock(h.Since), words, clock(h.Until), h.Source)
	}
	if len(a.Events)+len(a.Quarantined)+len(a.Held) == 0 {
		fmt.Fprintf(&s, "Nothing was found of %q in %s since %s, nor in %s of the quarantine.\n", a.What,
			plural(a.Looked.Events, "event"), a.Looked.Since.Local().Format(time.DateTime), entries(a.Looked.Quarantine))
		s.WriteString(`Try:  a longer --since, such as --since 7d
      the id as the sender shows it, or the record's key or GUID
      gridfan books, which says whether its source's events arrive at all
`)
	}
	for _, n := range a.Notes {
		s.WriteString("Note: " + n + "\n")
	}
	return s.String()
}

func writeTraced(s *strings.Builder, e trace.Event) {
	fmt.Fprintf(s, "%s  %s  event %d\n", oneLine(e.ID), e.Subject, e.Sequence)
	w := tabwriter.NewWriter(s, 0, 0, 2, ' ', 0)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "  %s\t%s\n", name, oneLine(value))
		}
	}
	from := e.Source
	if from == "" {
		from = "a NATS client"
	}
	if e.Via != "" {
		from += " (" + e.Via + ")"
	}
	line("from", from)
	line("type", e.Type)
	line("about", e.About)
	line("sender's id", e.OriginalID)
	line("match key", e.MatchKey)
	if e.PartitionKey != e.About {
		line("partition key", e.PartitionKey)
	}
	if e.Time != nil {
		line("happened", clock(*e.Time))
	}
	if at := e.Accepted; at != nil {
		after := ""
		if e.Time != nil && at.After(*e.Time) {
			after = fmt.Sprintf(", %s later", at.Sub(*e.Time).Round(time.Millisecond))
		}
		line("accepted", clock(*at)+after)
	}
	line("stored", clock(e.Stored))
	if e.Completed != nil {
		line("completed", "by its row, read at "+clock(*e.Completed))
	}
	switch e.Incomplete {
	case "":
	case "unasked":
		line("incomplete", "its source cut it short; see sources.*.complete")
	default:
		line("incomplete", "its source cut it short, and it was not completed: "+e.Incomplete)
	}
	_ = w.Flush() // into memory
	if len(e.Deliveries) == 0 {
		s.WriteString("  There are no subscribers.\n")
	}
	for _, d := range e.Deliveries {
		writeDelivery(s, d)
	}
}

func writeDelivery(s *strings.Builder, d trace.Delivery) {
	words := []string{d.State}
	if d.Took != "" {
		words[0] += " after " + d.Took
	}
	if d.Attempts > 0 {
		words = append(words, plural(d.Attempts, "attempt"))
	}
	if d.Next != nil && d.State == trace.Retry {
		words = append(words, "next at "+clock(*d.Next))
	}
	if d.Next != nil && d.State == trace.Locked {
		words = append(words, "by a receiver until "+clock(*d.Next))
	}
	if d.DeadLetter > 0 {
		words = append(words, fmt.Sprintf("entry %d of DEADLETTERS", d.DeadLetter))
	}
	if d.Detail != "" {
		words = append(words, d.Detail)
	}
	fmt.Fprintf(s, "  %s: %s\n", d.Subscriber, oneLine(strings.Join(words, "; ")))
	w := tabwriter.NewWriter(s, 0, 0, 2, ' ', 0)
	for _, p := range d.Steps {
		try := "-"
		if p.Attempt > 0 {
			try = "attempt " + strconv.Itoa(p.Attempt)
		}
		answer := "-"
		if p.Status > 0 {
			answer = strconv.Itoa(p.Status)
		}
		more := p.Reason
		for _, extra := range []string{p.Cause, string(p.Fault)} {
			if extra != "" {
				more = strings.TrimSuffix(extra+": "+more, ": ")
			}
		}
		if p.Probe {
			more = strings.TrimSuffix("to see whether it is back; "+more, "; ")
		}
		switch {
		case p.Next != nil && p.Outcome == trace.Locked:
			more = strings.TrimPrefix(more+"; until "+clock(*p.Next), "; ")
		case p.Next != nil:
			more = strings.TrimPrefix(more+"; next at "+clock(*p.Next), "; ")
		}
		fmt.Fprintf(w, "    %s\t%s\t%s\t%s\t%d ms\t%s\n", clock(p.Time), try, p.Outcome, answer, p.Millis, oneLine(more))
	}
	_ = w.Flush() // into memory
}
