package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/admin"
)

func newDrain(env Env) *cobra.Command {
	var asJSON, wait bool
	c := &cobra.Command{
		Use: "drain NAME", Short: "Let a subscriber have what waits for it, and nothing new",
		Long: `drain stops what is new: an event that is accepted from now on is not the
subscriber's. What was accepted before is delivered, retries among it. Once nothing
is left it is drained, and can be deleted or resumed.

With --wait it returns when nothing is left.`,
		Example: `  gridfan subscribers drain warehouse --wait && gridfan subscribers delete warehouse
  gridfan subscribers resume warehouse`,
		Args: exactly("NAME"),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&wait, "wait", false, "return when nothing is left to deliver")
	c.Flags().BoolVar(&asJSON, "json", false, "print the subscriber as JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := client().Drain(cmd.Context(), args[0])
		if err == nil && wait {
			s, err = drained(cmd.Context(), env, client(), s)
		}
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, s)
		}
		left := plural(s.Backlog.Pending+s.Backlog.Retry, "event") + " to go"
		next := "See how far it is:  gridfan subscribers show " + args[0]
		switch s.State {
		case admin.Drained:
			left, next = "it is drained", "It is done with:  gridfan subscribers delete "+args[0]
		case admin.Paused:
			next = "It is paused, so they wait. Go on with them first:  gridfan subscribers resume " + args[0] + ", then drain it again"
		}
		_, err = fmt.Fprintf(env.Out, "%s gets nothing new; %s\n%s\n", args[0], left, next)
		return failed(err)
	}
	return c
}

// drainPoll is how often a waiting drain looks.
const drainPoll = 500 * time.Millisecond

// drained waits until nothing is left, and tells now and then how much is.
func drained(ctx context.Context, env Env, client *admin.Client, s *admin.Subscriber) (*admin.Subscriber, error) {
	said := -1
	for next := time.Now(); s.State == admin.Draining; {
		if n := s.Backlog.Pending + s.Backlog.Retry; n != said && time.Now().After(next) {
			fmt.Fprintf(env.Err, "%s to go\n", plural(n, "event"))
			said, next = n, time.Now().Add(10*drainPoll)
		}
		select {
		case <-time.After(drainPoll):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		var err error
		if s, err = client.Subscriber(ctx, s.Definition.Name); err != nil {
			return nil, err
		}
	}
	if s.State != admin.Drained {
		return nil, errors.New("not drained: it is " + s.State)
	}
	return s, nil
}
