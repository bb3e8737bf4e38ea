package app

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/router/complete"
	"github.com/gridfan/gridfan/router/poll/odata"
	"github.com/gridfan/gridfan/router/poll/request"
)

// rows are where events of one source are completed from.
type rows struct {
	*odata.Rows
	version string // of the configuration
}

// openCompleter makes the one that completes events, through which all ways in publish.
// It asks within the budgets of the poller.
func (t *takeIn) openCompleter(ctx context.Context, cfg *config.Config, metrics prometheus.Registerer) error {
	a := t.app
	sources, opened, err := t.completed(cfg.Completed)
	if err != nil {
		return err
	}
	t.rows = opened
	a.onStop("rows", func(context.Context) error {
		for _, r := range t.rows {
			r.Close()
		}
		return nil
	})
	parts := complete.Parts{
		Broker: a.broker, Publish: t.publisher.Publish, Known: t.publisher.Known, Spool: cfg.Spool != nil, Tally: t.tally,
		Metrics: complete.NewMetrics(metrics), Report: a.broker.Report, Log: a.log,
	}
	if err := a.settle(ctx, "completing", func() (err error) {
		t.completer, err = complete.New(ctx, sources, parts)
		return err
	}); err != nil {
		return fmt.Errorf("completing: %w", err)
	}
	a.onStop("completing", func(context.Context) error { t.completer.Stop(); return nil })
	return nil
}

// completed makes of the configuration what events are completed from. What is as it
// was is what it was.
func (t *takeIn) completed(all []config.Completed) ([]complete.Source, map[string]*rows, error) {
	a := t.app
	var sources []complete.Source
	opened := map[string]*rows{}
	for _, s := range all {
		r := t.rows[s.Source]
		if v := s.Version(); r == nil || r.version != v {
			asked, err := odata.NewRows(s.RowsConfig, t.poller.Allowance(s.Identity(), s.Budget), s.Timeout, request.Options{Egress: a.rules.Way(false), Log: a.log.With("source", s.Source)})
			if err != nil {
				t.keepOnly(t.rows, opened)
				return nil, nil, fmt.Errorf("source %q: complete: %w", s.Source, err)
			}
			r = &rows{asked, v}
		}
		opened[s.Source] = r
		sources = append(sources, complete.Source{Name: s.Source, Within: s.Within, Read: r.Row})
	}
	return sources, opened, nil
}

// keepOnly closes those of all that are not to be kept.
func (*takeIn) keepOnly(keep, all map[string]*rows) {
	for name, r := range all {
		if keep[name] != r {
			r.Close()
		}
	}
}
