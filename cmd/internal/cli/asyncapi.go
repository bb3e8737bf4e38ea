package cli

import (
	"bytes"
	"fmt"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
)

func newAsyncAPI(env Env) *cobra.Command {
	var asYAML bool
	var last int
	c := &cobra.Command{
		Use: "asyncapi NAME", Short: "Describe what a subscriber gets, as an AsyncAPI document",
		Long: "asyncapi prints an AsyncAPI 3.0 document for the team behind a subscriber: where and how\n" +
			"events come, and of each type that was stored lately a schema and real examples, after\n" +
			"the subscriber's filter and transform. Its examples are as confidential as the events.",
		Example: "  gridfan subscribers asyncapi warehouse > warehouse.asyncapi.json\n  gridfan subscribers asyncapi warehouse --yaml --last 5000",
		Args:    exactly("NAME"),
	}
	client := adminFlags(c, env)
	c.Flags().BoolVar(&asYAML, "yaml", false, "print YAML")
	c.Flags().IntVar(&last, "last", 1000, "from how many of the newest events, up to 10000")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		doc, err := client().AsyncAPI(cmd.Context(), args[0], last)
		if err != nil {
			return failed(err)
		}
		if asYAML {
			if doc, err = yaml.JSONToYAML(doc); err != nil {
				return failed(err)
			}
		}
		_, err = fmt.Fprintf(env.Out, "%s\n", bytes.TrimSpace(doc))
		return failed(err)
	}
	return c
}
