package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/cmd/internal/app"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deliver"
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
	fmt.Fprintf(env.Out, "gridfan %s on %s, %sup %s, %s\n", s.Version, s.Instance, roleWords(s.Role), deliver.Roughly(now.Sub(s.Started)), health)
	for _, w := range s.Warnings {
		fmt.Fprintln(env.Out, "WARNING: "+w)
	}
	if len(s.Processes) > 0 {
		fmt.Fprintln(env.Out, processWords(s.Processes))
	}
	for _, k := range s.Config.Kept {
		fmt.Fprintln(env.Out, "secret not read again, the old value is kept: "+k)
	}
	for _, p := range s.Config.Problems {
		fmt.Fprintln(env.Out, "configuration not taken over: "+p)
	}
	if len(s.Config.NeedsRestart) > 0 {
		fmt.Fprintf(env.Out, "configuration: %s changed and need a restart\n", strings.Join(s.Config.NeedsRestart, ", "))
	}
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
	if sp := s.Broker.Spool; sp != nil && sp.Active {
		fmt.Fprintf(env.Out, "spool: %d events wait for the broker, %s of %s\n", sp.Waiting, size(sp.Bytes), size(uint64(sp.MaxBytes)))
	}
	if known := s.Broker.Dedup; known != nil {
		fmt.Fprintf(env.Out, "repeats of events of the last %s are recognised: %d known, %s of memory\n", deliver.Roughly(now.Sub(known.Since)), known.IDs, size(uint64(known.Bytes)))
		if known.Forgotten > 0 {
			fmt.Fprintf(env.Out, "%d were forgotten early: raise storage.dedup.memory\n", known.Forgotten)
		}
	} else {
		fmt.Fprintln(env.Out, "events are taken in by routers; the counts of sources are those of all of them")
	}
	fmt.Fprintln(env.Out)

	w := tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SOURCE\tKIND\tRECEIVED\tPUBLISHED\tDUPLICATE\tCONTROL\tQUARANTINED\tIN QUARANTINE\tLAST EVENT")
	for _, src := range s.Sources {
		n := eventsOf(src)
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\n", src.Name, src.Kind,
			n.received, n.published, n.duplicate, src.Control, n.quarantined, src.InQuarantine, lastEvent(src, now))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := writePolled(env.Out, s.Sources, now); err != nil {
		return err
	}
	writeReceived(env.Out, s.Sources, now)
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
	fmt.Fprintln(w, "STREAM\tMESSAGES\tSIZE\tOF\tFULL")
	for _, u := range s.Broker.Streams {
		limit, full := "the store's limit", "-"
		if u.MaxBytes > 0 {
			limit, full = size(uint64(u.MaxBytes)), fmt.Sprintf("%d %%", percent(u))
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", u.Stream, u.Messages, size(u.Bytes), limit, full)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if holders := whoHolds(s, now); holders != "" {
		_, err := fmt.Fprintln(env.Out, "\n"+holders)
		return err
	}
	return nil
}

// roleWords says what a process does that does not do everything.
func roleWords(role string) string {
	if role == "" || role == string(app.All) {
		return ""
	}
	return "role " + role + ", "
}

// processWords lists the processes on the broker by role.
func processWords(list []broker.Process) string {
	var words []string
	for i := 0; i < len(list); {
		j := i
		var names []string
		for ; j < len(list) && list[j].Role == list[i].Role; j++ {
			name := list[j].Instance
			if list[j].Version != list[i].Version {
				name += " (" + list[j].Version + ")"
			}
			names = append(names, name)
		}
		words = append(words, fmt.Sprintf("%d %s (%s)", j-i, cmp.Or(list[i].Role, "of an unknown role"), strings.Join(names, ", ")))
		i = j
	}
	return "processes on this broker: " + strings.Join(words, "; ")
}

func percent(u broker.StreamUse) int { return int(u.Bytes * 100 / uint64(u.MaxBytes)) }

// fillingAt is the level from which status says who holds the space; the broker
// reports the same one as storage.filling.
const fillingAt = 70

// whoHolds says who makes us keep what is in EVENTS, most first, and what to do
// about it. It is empty while there is room.
func whoHolds(s *admin.Status, now time.Time) string {
	i := slices.IndexFunc(s.Broker.Streams, func(u broker.StreamUse) bool { return u.Stream == broker.StreamEvents })
	if i < 0 || s.Broker.Streams[i].MaxBytes <= 0 || percent(s.Broker.Streams[i]) < fillingAt {
		return ""
	}
	full := percent(s.Broker.Streams[i])
	var holders []admin.Subscriber
	for _, sub := range s.Subscribers {
		if sub.Held != nil {
			holders = append(holders, sub)
		}
	}
	if len(holders) == 0 {
		return fmt.Sprintf("EVENTS is %d %% full of what everybody has got; it is trimmed when room is short.", full)
	}
	slices.SortStableFunc(holders, func(a, b admin.Subscriber) int { return cmp.Compare(b.Held.Bytes, a.Held.Bytes) })
	var lines strings.Builder
	fmt.Fprintf(&lines, "EVENTS is %d %% full. It is held by:\n", full)
	for _, sub := range holders {
		name := sub.Definition.Name
		fix := "see gridfan subscribers show " + name
		switch sub.State {
		case admin.Paused:
			fix = "gridfan subscribers resume " + name
		case admin.Parked:
			fix = "declare it again, or gridfan subscribers delete " + name
			if sub.Why != "" && sub.Why != admin.Undeclared {
				fix = sub.Why + "; gridfan endpoints list shows those there are"
			}
		}
		fmt.Fprintf(&lines, "  %s  %s, its oldest event %s old: %s\n", name, size(uint64(sub.Held.Bytes)), deliver.Roughly(now.Sub(sub.Held.Since)), fix)
	}
	lines.WriteString("Otherwise raise storage.maxBytes, lower their limits.backlog, or delete them.")
	return lines.String()
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
