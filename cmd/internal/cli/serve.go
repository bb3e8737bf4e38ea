package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/spf13/cobra"

	"github.com/gridfan/gridfan/cmd/internal/app"
	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/infra/telemetry"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

func newServe(env Env) *cobra.Command {
	var file, data, format, level, role string
	var grace time.Duration
	c := &cobra.Command{
		Use:   "serve -c FILE",
		Short: "Run the router and its subscribers",
		Long: `serve runs everything that the configuration file declares, until SIGTERM or
Ctrl-C: it then refuses new events (senders repeat them), lets deliveries under
way end, and exits with 0, all within shutdown.grace. What was accepted is
delivered by the next start.

When the file changes, its subscribers and endpoints are taken over within seconds;
SIGHUP does so at once. A file with mistakes changes nothing, and the log says where
they are. Other sections are read at the next start.

Around an external broker the work can be split: --role router takes events in, and
--role subscribers delivers them. Both take the same file.`,
		Example: "  gridfan serve -c gridfan.yaml --data /var/lib/gridfan\n  gridfan serve -c gridfan.yaml --role router --grace 55s",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := telemetry.NewLogger(env.Err, format, level)
			if err != nil {
				return err
			}
			part, err := app.ParseRole(role)
			if err != nil {
				return fmt.Errorf("--role: %w", err)
			}
			at := &grace
			if !cmd.Flags().Changed("grace") {
				at = nil
			}
			// Libraries that log by themselves do so in our log's form.
			slog.SetDefault(log)
			err = serve(cmd.Context(), file, data, part, at, env.Version, log)
			if err != nil && strings.EqualFold(format, "json") {
				return &logged{logError(log, err)}
			}
			return err
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "the configuration file")
	_ = c.MarkFlagRequired("config") // it fails only for an unknown flag
	c.Flags().StringVar(&data, "data", "", "where the embedded broker stores events; overrides broker.embedded.dir")
	c.Flags().StringVar(&role, "role", string(app.All), "what this process does: all, router or subscribers")
	c.Flags().DurationVar(&grace, "grace", 0, "how long stopping may take; overrides shutdown.grace (default 25s)")
	c.Flags().StringVar(&format, "log-format", "text", "text or json")
	c.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return c
}

// serve runs gridfan until ctx ends. data and grace stand for what the file says of
// them, unless they are empty and nil.
func serve(ctx context.Context, file, data string, role app.Role, grace *time.Duration, version string, log *slog.Logger) error {
	cfg, err := config.Load(file)
	if err != nil {
		return err
	}
	if err := role.Fits(cfg); err != nil {
		return err
	}
	if grace != nil {
		cfg.Shutdown.Grace = deliver.Duration(*grace)
		if err := cfg.Shutdown.Validate(); err != nil {
			return fmt.Errorf("--grace: %w", err)
		}
	}
	options := app.Options{
		Version: version, Log: log, Role: role,
		File: file, Load: func() (*config.Config, error) { return config.Load(file) }, Sections: cfg.Sections(),
	}
	if data != "" {
		if cfg.Broker.URL != "" {
			return fmt.Errorf("--data: the configuration names an external broker (broker.url), which keeps the data")
		}
		cfg.Broker.Dir = data
	}
	limitMemory(log)
	switch {
	case cfg.Broker.URL == "":
		telemetry.KeepCrashes(cfg.Broker.Dir, log)
	case cfg.Spool != nil:
		telemetry.KeepCrashes(cfg.Spool.Dir, log)
	}
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	defer signal.Stop(reload)
	options.Reload = reload
	a, err := app.New(ctx, cfg, options)
	if err != nil {
		return failed(err)
	}
	err = a.Wait(ctx)
	if err == nil {
		log.Info("stopping: new events are refused, deliveries under way may end")
	}
	if stopErr := a.Stop(); err == nil {
		err = stopErr
	}
	return failed(err)
}

// memoryShare is how much of a container's memory Go may fill before it collects
// garbage whatever that costs. The rest is for what it does not count: the kernel's
// buffers of connections, and files that are being written.
const memoryShare = 0.9

// limitMemory has Go keep to the memory limit of the container, of which it knows
// nothing by itself (of the limit on processors it does, since Go 1.25): a burst then
// costs time and not the process. GOMEMLIMIT, and AUTOMEMLIMIT=off, have precedence.
func limitMemory(log *slog.Logger) {
	limit, err := memlimit.Set(memlimit.WithRatio(memoryShare))
	switch {
	case err != nil: // no Linux, or no control groups
		log.Debug("no memory limit is known", "reason", err)
	case limit < math.MaxInt64:
		log.Info("Go collects garbage sooner near the memory limit", "limit_bytes", limit)
	}
}

// logError writes why serve ends to its log, for who reads nothing but JSON: each
// mistake of a configuration file as a line of its own.
func logError(log *slog.Logger, err error) error {
	var bad config.Errors
	if errors.As(err, &bad) {
		for _, p := range bad {
			log.Error("mistake in the configuration", "file", p.File, "line", p.Line, "column", p.Column, "path", p.Path, "error", p.Message)
		}
		return err
	}
	log.Error("gridfan ends", "error", err)
	return err
}

func newConfig(env Env) *cobra.Command {
	var file string
	var offline bool
	check := &cobra.Command{
		Use:     "check -c FILE",
		Short:   "Say what is wrong in a configuration file",
		Long:    "check reads a configuration file as serve does, references included, and reports\neverything that is wrong in it, each with file, line and column. It exits with 2\nif there is anything.\n\n--offline asks no key vault: what ${keyvault:…} stands for is then not looked at.",
		Example: "  gridfan config check -c gridfan.yaml\n  gridfan config check -c gridfan.yaml --offline",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			load := config.Load
			if offline {
				load = config.LoadOffline
			}
			cfg, err := load(file)
			if err != nil {
				return err
			}
			if cfg.Unread > 0 {
				fmt.Fprintf(env.Err, "%s to Key Vault not looked at\n", plural(cfg.Unread, "reference"))
			}
			for _, w := range cfg.Warnings {
				fmt.Fprintln(env.Err, "warning:", w)
			}
			_, err = fmt.Fprintf(env.Out, "%s is fine: %s, %s\n", file,
				plural(cfg.Count(), "source"), plural(len(cfg.Subscribers), "subscriber"))
			return failed(err)
		},
	}
	check.Flags().StringVarP(&file, "config", "c", "", "the configuration file")
	_ = check.MarkFlagRequired("config") // it fails only for an unknown flag
	check.Flags().BoolVar(&offline, "offline", false, "do not ask key vaults")
	return group(&cobra.Command{Use: "config", Short: "Check, compare and apply a configuration file"}, check, newConfigDiff(env), newConfigApply(env))
}
