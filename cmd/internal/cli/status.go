package cli

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/admin"
)

func newStatus(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "status", Short: "Show sources, subscribers and the broker",
		Long: `status shows how a running gridfan is doing: what each source has sent since the
start, what each subscriber has not got yet and how its breaker stands, and how
full the broker is. It exits with 1 when the broker is not well.`,
		Example: "  gridfan status\n  gridfan status --json | jq '.subscribers[] | select(.breaker.state != \"closed\")'",
		Args:    cobra.NoArgs,
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := client().Status(cmd.Context())
		if err != nil {
			return failed(err)
		}
		if asJSON {
			err = printJSON(env.Out, s)
		} else {
			err = failed(writeStatus(env, s, time.Now()))
		}
		if err == nil && !s.Healthy {
			return failed(fmt.Errorf("not healthy: %s", s.Problem))
		}
		return err
	}
	return c
}

func writeStatus(env Env, s *admin.Status, now time.Time) error {
	health := "healthy"
	if !s.Healthy {
		health = "NOT HEALTHY: " + s.Problem
	}
	fmt.Fprintf(env.Out, "gridfan %s on %s, up %s, %s\n", s.Version, s.Instance, roughly(now.Sub(s.Started)), health)
	kind := "external"
	if s.Broker.Embedded {
		kind = "embedded"
	}
	at := s.Broker.URL
	if at == "" {
		at = "no address for other clients"
	}
	fmt.Fprintf(env.Out, "broker %s (%s), durability %s: %s\n", kind, at, s.Broker.Durability.Mode, s.Broker.Durability.Detail)
	if d := s.Broker.Disk; d != nil {
		fmt.Fprintf(env.Out, "disk: %s of %s free; %s are kept in reserve\n", size(d.Free), size(d.Total), size(d.Reserve))
	}
	fmt.Fprintln(env.Out)

	w := tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SOURCE\tKIND\tRECEIVED\tPUBLISHED\tDUPLICATE\tCONTROL\tQUARANTINED\tIN QUARANTINE\tLAST EVENT")
	for _, src := range s.Sources {
		last := "none since the start"
		if src.LastEvent != nil {
			last = roughly(now.Sub(*src.LastEvent)) + " ago"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\n", src.Name, src.Kind,
			src.Received, src.Published, src.Duplicate, src.Control, src.Quarantined, src.InQuarantine, last)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(env.Out)
	if !s.Healthy {
		fmt.Fprintln(env.Out, "The subscribers are on the broker, which does not answer.")
	} else if len(s.Subscribers) == 0 {
		fmt.Fprintln(env.Out, "No subscribers yet. Add one:  gridfan subscribe NAME --subject 'events.>' --url URL")
	} else if err := writeSubscribers(env, s.Subscribers, now); err != nil {
		return err
	}
	if len(s.Broker.Streams) == 0 {
		return nil
	}
	fmt.Fprintln(env.Out)
	w = tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STREAM\tMESSAGES\tSIZE\tOF")
	for _, u := range s.Broker.Streams {
		limit := "the store's limit"
		if u.MaxBytes > 0 {
			limit = size(uint64(u.MaxBytes))
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", u.Stream, u.Messages, size(u.Bytes), limit)
	}
	return w.Flush()
}

// size writes a number of bytes as one would say it.
func size(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/unit, 0
	for v >= unit && i < 3 {
		v, i = v/unit, i+1
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGT"[i])
}
