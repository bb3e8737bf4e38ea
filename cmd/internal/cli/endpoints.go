package cli

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/subscribers/registry"
)

func newEndpoints(env Env) *cobra.Command {
	return group(&cobra.Command{Use: "endpoints", Short: "Name addresses that subscribers share, and move them", Aliases: []string{"endpoint"}},
		newEndpointList(env), newEndpointSet(env), newEndpointDelete(env))
}

func newEndpointList(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "list", Short: "List the endpoints",
		Long:    "list shows every endpoint, where it is, without its secrets, and who uses it.",
		Example: "  gridfan endpoints list",
		Args:    cobra.NoArgs,
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := client().Endpoints(cmd.Context())
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, list)
		}
		if len(list) == 0 {
			_, err := fmt.Fprintln(env.Out, "No endpoints yet. Add one:  gridfan endpoints set NAME URL")
			return failed(err)
		}
		w := tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "ENDPOINT\tURL\tDECLARED\tUSED BY")
		for _, e := range list {
			users := strings.Join(e.Users, " ")
			if users == "" {
				users = "nobody"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", e.Name, e.URL, map[registry.Origin]string{registry.FromFile: "in the file", registry.FromAPI: "by API"}[e.Origin], users)
		}
		if err := w.Flush(); err != nil {
			return failed(err)
		}
		_, err = fmt.Fprintln(env.Out, "\nMove one:  gridfan endpoints set NAME URL")
		return failed(err)
	}
	return c
}

func newEndpointSet(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "set NAME URL", Short: "Add an endpoint, or move it",
		Long: `set gives an address a name, or another address to a name. Whoever is reached by it
goes on at the new address within a second, on every replica: what was delivered
stays delivered, and what was not goes there.

A private or loopback address needs the leave of egress.allow in gridfan's
configuration. An endpoint that the configuration file declares is changed there.`,
		Example: "  gridfan endpoints set wms https://wms.example.com/events\n  gridfan subscribe orders --subject 'events.fno.>' --endpoint wms --path /orders",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("%q needs a NAME and a URL", cmd.CommandPath())
			}
			return nil
		},
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print the endpoint as JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		wanted := registry.Endpoint{Name: args[0], URL: args[1]}
		if err := wanted.Validate(); err != nil {
			return err
		}
		_, tag, err := client().Endpoint(cmd.Context(), wanted.Name)
		var p *admin.Problem
		if errors.As(err, &p) && p.Status == http.StatusNotFound {
			err = nil
		}
		if err != nil {
			return failed(err)
		}
		e, after, err := client().SetEndpoint(cmd.Context(), wanted, tag)
		if admin.IsStale(err) {
			err = errors.New("somebody else has just set it too; look at it with gridfan endpoints list and try again")
		}
		if err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, e)
		}
		what := map[bool]string{true: "is there already", false: "is now"}[tag == after]
		users := "Nobody uses it yet:  gridfan subscribe NAME --subject 'events.>' --endpoint " + e.Name
		if len(e.Users) > 0 {
			users = "used by " + strings.Join(e.Users, ", ")
		}
		_, err = fmt.Fprintf(env.Out, "%s %s %s\n%s\n", e.Name, what, e.URL, users)
		return failed(err)
	}
	return c
}

func newEndpointDelete(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "delete NAME", Short: "Delete an endpoint that nobody uses",
		Long:    "delete removes an endpoint. It refuses while subscribers use it, and names them.",
		Example: "  gridfan endpoints delete wms",
		Args:    exactly("NAME"),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if err := client().DeleteEndpoint(cmd.Context(), args[0]); err != nil {
			return failed(err)
		}
		if asJSON {
			return printJSON(env.Out, map[string]string{"deleted": args[0]})
		}
		_, err := fmt.Fprintf(env.Out, "%s is deleted\n", args[0])
		return failed(err)
	}
	return c
}
