package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/subscribers/books"
)

// errUnbalanced has an exit code of its own, for monitors.
var errUnbalanced = errors.New("the books do not balance")

func newBooks(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "books [SUBSCRIBER | SOURCE]", Short: "Show what became of every event, and whether anything is missing",
		Long: `books compares, for every subscriber, the events that matched its subjects with
those that were delivered, filtered, shed, given up or still wait, and for every
source what it sent with what was stored. All of it is counted from what is on
disk. It takes some seconds when events are moving or something does not balance.

It exits with 0 when the books balance and with 3 when they do not.`,
		Example: "  gridfan books\n  gridfan books warehouse --json\n  gridfan books accept warehouse",
		Args:    cobra.MaximumNArgs(1),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := client().Books(cmd.Context())
		if err != nil {
			return failed(err)
		}
		if len(args) > 0 {
			if err := only(r, args[0]); err != nil {
				return failed(err)
			}
		}
		if asJSON {
			err = printJSON(env.Out, r)
		} else {
			err = failed(writeBooks(env, r))
		}
		if err == nil && !r.Balanced {
			return errUnbalanced
		}
		return err
	}
	c.AddCommand(newBooksAccept(env))
	return c
}

func newBooksAccept(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "accept SUBSCRIBER | SOURCE", Short: "Carry a known difference on",
		Long: `accept is for a difference that is explained, such as dead letters that were
purged by hand: it is carried on and named, and from then on only what comes after
it counts.`,
		Example: "  gridfan books accept warehouse",
		Args:    exactly("SUBSCRIBER or SOURCE"),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		a, err := client().AcceptBook(cmd.Context(), args[0])
		switch {
		case err != nil:
			return failed(err)
		case asJSON:
			return printJSON(env.Out, a)
		case a.Difference == 0:
			_, err = fmt.Fprintf(env.Out, "the book of %s balances; there is nothing to accept\n", a.Name)
		default:
			_, err = fmt.Fprintf(env.Out, "a difference of %d in the book of %s is carried on from now\n", a.Difference, a.Name)
		}
		return failed(err)
	}
	return c
}

// only keeps one name's books.
func only(r *books.Reading, name string) error {
	r.Subscribers = slices.DeleteFunc(r.Subscribers, func(s books.Subscriber) bool { return s.Name != name })
	r.Sources = slices.DeleteFunc(r.Sources, func(s books.Source) bool { return s.Name != name })
	if len(r.Subscribers)+len(r.Sources) == 0 {
		return fmt.Errorf("no subscriber or source %q is in the books; see gridfan books", name)
	}
	r.Settled, r.Balanced = true, true
	for _, v := range verdicts(r) {
		r.Settled = r.Settled && v.Settled
		r.Balanced = r.Balanced && len(v.Problems) == 0
	}
	return nil
}

// verdict is that of one row.
type verdict struct {
	name string
	books.Verdict
}

func verdicts(r *books.Reading) []verdict {
	var all []verdict
	for _, s := range r.Subscribers {
		all = append(all, verdict{s.Name, s.Verdict})
	}
	for _, s := range r.Sources {
		all = append(all, verdict{"source " + s.Name, s.Verdict})
	}
	return all
}

// balance words a verdict for a table.
func balance(v books.Verdict) string {
	switch {
	case !v.Settled:
		return fmt.Sprintf("moving: ±%d", v.Moving)
	case v.Balance == 0:
		return "0"
	}
	return fmt.Sprintf("%+d", v.Balance)
}

func writeBooks(env Env, r *books.Reading) error {
	w := tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
	if len(r.Subscribers) > 0 {
		fmt.Fprintln(w, "SUBSCRIBER\tMATCHED\tREPLAYED\tDELIVERED\tFILTERED\tDEAD LETTERS\tDROPPED\tSHED\tIN RETRY\tPENDING\tPARKED\tATTEMPTS\tBALANCE\tSTATE")
		for _, s := range r.Subscribers {
			state, sum := s.State, balance(s.Verdict)
			switch state {
			case books.StateOpen:
				state = "breaker open"
			case books.StateDeleted:
				sum = "-"
			}
			fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t%s\n", s.Name, s.Matched, s.Replayed, s.Delivered,
				s.Filtered, s.DeadLetters, s.Dropped, s.Shed, s.InRetry, s.Pending, s.Parked, s.Attempts, sum, state)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(r.Subscribers) > 0 && len(r.Sources) > 0 {
		fmt.Fprintln(env.Out)
	}
	if len(r.Sources) > 0 {
		fmt.Fprintln(w, "SOURCE\tRECEIVED\tREDRIVEN\tDIRECT\tPUBLISHED\tDUPLICATE\tQUARANTINED\tCONTROL\tREFUSED\tIN QUARANTINE\tBALANCE")
		for _, s := range r.Sources {
			fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\n", s.Name, s.Received, s.Redriven, s.Direct, s.Published,
				s.Duplicate, s.Quarantined, s.Control, s.Refused, s.InQuarantine, balance(s.Verdict))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(r.Subscribers)+len(r.Sources) > 0 {
		fmt.Fprintln(env.Out)
	}
	_, err := fmt.Fprintln(env.Out, conclusion(r))
	return err
}

// conclusion says what the tables mean and what to do.
func conclusion(r *books.Reading) string {
	var lines []string
	for _, v := range verdicts(r) {
		for _, p := range v.Problems {
			lines = append(lines, fmt.Sprintf("%s DOES NOT BALANCE: %s", v.name, p))
		}
		for _, n := range v.Notes {
			lines = append(lines, v.name+": "+n)
		}
	}
	for _, l := range r.Losses {
		lines = append(lines, fmt.Sprintf("%s lost its messages %d to %d before they were counted, as noticed at %s; what they said is not in these books", l.Stream, l.From, l.Through, l.Noticed.Local().Format(time.DateTime)))
	}
	if r.Lag.Events+r.Lag.Blocks > 0 {
		lines = append(lines, fmt.Sprintf("%d events and %d blocks of records are not counted yet.", r.Lag.Events, r.Lag.Blocks))
	}
	switch {
	case !r.Balanced:
		lines = append(lines, "docs/books.md says how to read a difference. What became of one event:  gridfan why ID")
	case !r.Settled:
		lines = append(lines, "Events are moving; as far as can be told the books balance. What became of one event:  gridfan why ID")
	case len(r.Subscribers) == 0:
		lines = append(lines, "The books balance. Nobody subscribes yet:  gridfan subscribe NAME --subject 'events.>' --url URL")
	default:
		lines = append(lines, "The books balance. What became of one event:  gridfan why ID")
	}
	return strings.Join(lines, "\n")
}
