package app

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/router/complete"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/poll/odata"
	"github.com/gridfan/gridfan/router/poll/request"
	"github.com/gridfan/gridfan/router/publish"
)

// completer makes the one that completes events, through which all ways in publish.
// It asks within the budgets of the poller.
func (a *App) completer(ctx context.Context, cfg *config.Config, pub *publish.Publisher, poller *poll.Poller, tally *publish.Tally, metrics prometheus.Registerer) (*complete.Completer, error) {
	var sources []complete.Source
	for _, s := range cfg.Completed {
		rows, err := odata.NewRows(s.RowsConfig, poller.Allowance(s.Identity(), s.Budget), s.Timeout, request.Options{Egress: a.rules.Way(false), Log: a.log.With("source", s.Source)})
		if err != nil {
			return nil, fmt.Errorf("source %q: complete: %w", s.Source, err)
		}
		a.onStop("rows of "+s.Source, func(context.Context) error { rows.Close(); return nil })
		sources = append(sources, complete.Source{Name: s.Source, Within: s.Within, Read: rows.Row})
	}
	c, err := complete.New(ctx, sources, complete.Parts{
		Broker: a.broker, Publish: pub.Publish, Known: pub.Known, Spool: cfg.Spool != nil, Tally: tally,
		Metrics: complete.NewMetrics(metrics), Report: a.broker.Report, Log: a.log,
	})
	if err != nil {
		return nil, fmt.Errorf("completing: %w", err)
	}
	a.onStop("completing", func(context.Context) error { c.Stop(); return nil })
	return c, nil
}
