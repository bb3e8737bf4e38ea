package cli

import (
	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/dev"
	"github.com/gridfan/gridfan/infra/telemetry"
)

func newDev(env Env) *cobra.Command {
	var level string
	o := dev.Options{Out: env.Out, Color: env.color(), Version: env.Version}
	c := &cobra.Command{
		Use:   "dev",
		Short: "Try everything here, now, with sample events",
		Long: `dev runs a whole gridfan on this machine's loopback with a temporary store: two
sources, a healthy, a slow and a failing subscriber, and sample events posted
through the real ingress. It prints every delivery as it happens and says what
to try next. Ctrl-C ends it and removes the store.`,
		Example: "  gridfan dev",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := telemetry.NewLogger(env.Err, "text", level)
			if err != nil {
				return err
			}
			o.Log = log
			return failed(dev.Run(cmd.Context(), o))
		},
	}
	c.Flags().StringVar(&o.Public, "public", "", "address of the ingress (default 127.0.0.1:8080, or a free one)")
	c.Flags().StringVar(&o.Admin, "admin", "", "address of the admin API (default 127.0.0.1:8081, or a free one)")
	c.Flags().StringVar(&o.NATS, "nats", "", "address of the broker (default 127.0.0.1:4222, or a free one)")
	c.Flags().StringVar(&level, "log-level", "error", "debug, info, warn or error, for gridfan's own log")
	return c
}
