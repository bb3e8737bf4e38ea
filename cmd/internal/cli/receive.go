package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/router/receive"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// writeReceived tells how sources are received from brokers, in a line each.
func writeReceived(w io.Writer, sources []admin.SourceStatus, now time.Time) {
	for _, src := range sources {
		if r := src.Receive; r != nil {
			fmt.Fprintf(w, "%s is received from %s: %s\n", src.Name, r.From, receivingWords(*r, now))
		}
	}
}

// receivingWords says what the matter is, if anything.
func receivingWords(r receive.Status, now time.Time) string {
	s := fmt.Sprintf("%s for %s", r.State, deliver.Roughly(now.Sub(r.Since)))
	if r.State == receive.Holding {
		s += ", " + plural(int(r.Held), "message") + " here"
	}
	if r.Lag != nil && *r.Lag > 0 {
		s += ", " + plural(int(*r.Lag), "event") + " behind"
	}
	if r.Reason != "" {
		s += ": " + r.Reason
	}
	if r.Next != nil {
		s += "; again in " + deliver.Roughly(max(0, r.Next.Sub(now)))
	}
	return s
}

// writePartitions tells of each partition of an event hub.
func writePartitions(line func(string, string, ...any), r receive.Status, now time.Time) {
	for _, p := range r.Partitions {
		words := "read by nobody"
		switch {
		case p.Here:
			words = fmt.Sprintf("%s here", p.State)
		case p.Reader != "":
			words = fmt.Sprintf("%s at %s", cmp.Or(p.State, receive.Connecting), p.Reader)
		}
		if p.Sequence != nil {
			words += fmt.Sprintf(", stored up to event %d", *p.Sequence)
		}
		if p.Enqueued != nil {
			words += fmt.Sprintf(" of %s ago", deliver.Roughly(max(0, now.Sub(*p.Enqueued))))
		}
		if p.Lag != nil {
			words += fmt.Sprintf(", %d behind", *p.Lag)
		}
		if p.Missed > 0 {
			words += fmt.Sprintf(", %d may be missing", p.Missed)
		}
		if p.Reason != "" {
			words += ": " + p.Reason
		}
		line("partition "+p.Partition, "%s", words)
	}
}

func newSourceRecover(env Env) *cobra.Command {
	var dryRun, asJSON bool
	c := &cobra.Command{
		Use: "recover NAME", Short: "Read back what a source's broker has given up on",
		Long: `recover publishes the messages in the dead-letter queue of a Service Bus queue or
subscription, and the events in the container of blobs into which Event Grid puts what it
could not deliver (deadLetters.blob), with the extension late. Each is taken out there once
it is stored here, so it can be stopped, and called again, at any time. What was published
before is recognised.`,
		Example: "  gridfan sources recover crm --dry-run\n  gridfan sources recover crm",
		Args:    exactly("NAME"),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only say what is there")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON, an object for every thousand messages")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		for {
			r, err := client().Recover(cmd.Context(), args[0], dryRun)
			if err != nil {
				return failed(err)
			}
			if asJSON {
				if err := printJSON(env.Out, r); err != nil {
					return err
				}
			} else if err := writeRecovery(env.Out, r); err != nil {
				return failed(err)
			}
			switch {
			case r.Problem != "":
				return failed(errors.New("stopped before the end: " + r.Problem))
			case dryRun || !r.More || r.Messages == r.TooLarge:
				return nil
			}
		}
	}
	return c
}

func writeRecovery(w io.Writer, r *receive.Recovery) error {
	verb := "published"
	if r.DryRun {
		verb = "can be published"
	}
	more := ""
	if r.More {
		more = ", and perhaps there are more"
	}
	what := plural(r.Messages, "message")
	if r.Blobs > 0 {
		what = plural(r.Messages, "event") + " of " + plural(r.Blobs, "blob")
	}
	completing := ""
	if r.Completing > 0 {
		completing = fmt.Sprintf(", %d to be completed first", r.Completing)
	}
	_, err := fmt.Fprintf(w, "%s in %s%s: %d %s%s, %d published before, %d not understood, %d too large\n",
		what, r.From, more, r.Published, verb, completing, r.Duplicate, r.Quarantined, r.TooLarge)
	counts := map[string]string{}
	for why, n := range r.Reasons {
		counts[why] = fmt.Sprint(n)
	}
	for _, why := range sortedKeys(counts) {
		if err == nil {
			_, err = fmt.Fprintf(w, "  %s  %s\n", counts[why], printable([]byte(why)))
		}
	}
	return err
}
