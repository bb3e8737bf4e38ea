package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/subscribers/deadletters"
)

func newReplay(env Env) *cobra.Command {
	var order admin.ReplayOrder
	var from, to, rate string
	var asJSON, detach bool
	c := &cobra.Command{
		Use: "replay SUBSCRIBER --from TIME|SEQUENCE", Short: "Send stored events once more to one subscriber",
		Long: `replay sends events that are still stored to one subscriber once more, oldest
first: those of its own subjects, from a time or a place in EVENTS on. They carry
via=replay and keep their ids. Its filter and transform apply as always.

What it has not got yet, what waits for its next attempt, and what is among its
dead letters is left out: the first two come by themselves, the last by
gridfan deadletters redrive.

They go over the subscriber's retry lane, a few at a time: what it gets besides
goes first. To a subscriber that wants order they come late.

This command follows the job to its end. Ctrl-C leaves the job running; it also
outlives a restart of gridfan.`,
		Example: "  gridfan replay warehouse --from 2h --dry-run\n  gridfan replay warehouse --from '2026-11-01 10:00' --to '2026-11-01 11:00' --subject 'events.fno.*.usmf.>' --rate 200/s\n  gridfan replay warehouse --from 12345 --to 12345",
		Args:    exactly("SUBSCRIBER"),
	}
	client := adminFlags(c, env)
	c.Flags().StringVar(&from, "from", "", "the first one: a time, how long ago (2h), or a sequence in EVENTS")
	c.Flags().StringVar(&to, "to", "", "the last one, in the same way (default: the last there is)")
	c.Flags().StringVar(&order.Subject, "subject", "", "only events whose subject matches this pattern too")
	c.Flags().StringVar(&order.Filter, "filter", "", "only events that this expression (CEL) lets through")
	c.Flags().StringVar(&rate, "rate", "", "the most in a time, as in 200/s (default: as fast as the subscriber takes them)")
	c.Flags().BoolVar(&order.DryRun, "dry-run", false, "only say which, with three examples")
	c.Flags().BoolVar(&detach, "detach", false, "start the job and do not follow it")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	_ = c.MarkFlagRequired("from") // it fails only for an unknown flag
	c.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		if order.From, err = point("--from", from); err != nil {
			return err
		}
		if order.To, err = point("--to", to); err != nil {
			return err
		}
		if order.Rate, err = rateFlag(rate); err != nil {
			return err
		}
		if err := order.Range.Validate(); err != nil {
			return errors.New(strings.TrimPrefix(err.Error(), deadletters.ErrBadSelection.Error()+": "))
		}
		o, err := client().Replay(cmd.Context(), args[0], order)
		if err != nil {
			return failed(err)
		}
		return ordered(cmd, env, client(), o, asJSON, detach, things{"stored event", "for " + args[0]})
	}
	return c
}

// point reads a place in EVENTS: a sequence, a time, or how long ago.
func point(flag, s string) (deadletters.Point, error) {
	if n, err := strconv.ParseUint(s, 10, 63); err == nil {
		if n == 0 {
			return deadletters.Point{}, fmt.Errorf("%s: the first event is 1", flag)
		}
		return deadletters.Point{Sequence: n}, nil
	}
	t, err := when(flag, s)
	return deadletters.Point{Time: t}, err
}
