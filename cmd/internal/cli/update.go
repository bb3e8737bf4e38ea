package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/subscribers/registry"
)

func newUpdate(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "update NAME", Short: "Change a subscriber that was added by subscribe",
		Long: `update changes what the flags say, and nothing else, on every replica. What waits
is delivered in the new way. New subjects hold for the events that come from now
on; those that came before go by the old ones.

--subject replaces all subjects. --auth changes what it says and keeps the rest, or
replaces all if it is of another kind. An empty value takes a setting's default again.`,
		Example: `  gridfan subscribers update warehouse --rate 200/s --concurrency 4
  gridfan subscribers update warehouse --subject 'events.fno.*.usmf.>' --subject 'events.dataverse.>'
  gridfan subscribers update warehouse --rate none
  gridfan subscribers update erp --auth oauth2.clientSecret=@/run/secrets/erp-next`,
		Args: exactly("NAME"),
	}
	client := adminFlags(c, env)
	apply := definitionFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print the subscriber as JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		s, changed, same, err := change(cmd, client(), args[0], apply)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(env.Out, s)
		}
		if same {
			_, err := fmt.Fprintf(env.Out, "%s is so already; nothing is changed\n", args[0])
			return failed(err)
		}
		fmt.Fprintf(env.Out, "%s is updated\n", args[0])
		writeDifferences(env.Out, changed)
		writeKey(env.Out, s)
		if slices.ContainsFunc(changed, func(d registry.Difference) bool { return d.Key == "subjects" }) && len(s.Epochs) > 0 {
			fmt.Fprintf(env.Out, "The new subjects hold from event %d on.\n", s.Epochs[len(s.Epochs)-1].From)
		}
		_, err = fmt.Fprintf(env.Out, "See how it is doing:  gridfan subscribers show %s\n", args[0])
		return failed(err)
	}
	return c
}

// change reads a subscriber, applies the flags and writes it back. It does so
// again when somebody else has changed something else in between. same says that
// all was so before; a change of a secret alone is not seen in changed.
func change(cmd *cobra.Command, client *admin.Client, name string, apply func(*registry.Definition) ([]string, error)) (next *admin.Subscriber, changed []registry.Difference, same bool, err error) {
	ctx := cmd.Context()
	var first *registry.Definition
	for {
		s, tag, err := client.Read(ctx, name)
		if err != nil {
			return nil, nil, false, failed(err)
		}
		read := s.Definition
		wanted := copyOf(read)
		keys, err := apply(&wanted)
		if err != nil {
			return nil, nil, false, err
		}
		if len(keys) == 0 {
			return nil, nil, false, errors.New("say what to change, as in --rate 200/s; see --help")
		}
		if first != nil {
			for _, d := range registry.Differences(*first, read) {
				if slices.Contains(keys, d.Key) {
					return nil, nil, false, failed(fmt.Errorf("somebody else has just changed %s to %s; look at it and try again", d.Key, cmp.Or(d.To, "its default")))
				}
			}
		}
		first = &read
		next, after, err := client.Replace(ctx, wanted, tag)
		if admin.IsStale(err) {
			continue
		}
		if err != nil {
			return nil, nil, false, failed(err)
		}
		return next, registry.Differences(read, next.Definition), after == tag, nil
	}
}

// copyOf copies what the flags change in place.
func copyOf(d registry.Definition) registry.Definition {
	d.Deliver = d.Deliver.Clone()
	return d
}

// writeDifferences prints one line for each key.
func writeDifferences(out io.Writer, changed []registry.Difference) {
	width := 0
	for _, d := range changed {
		width = max(width, len(d.Key))
	}
	for _, d := range changed {
		fmt.Fprintf(out, "  %s  %s → %s\n", d.Key+strings.Repeat(" ", width-len(d.Key)), cmp.Or(d.From, "-"), cmp.Or(d.To, "-"))
	}
}
