package app

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/router/complete"
	"github.com/gridfan/gridfan/router/receive"
)

// receivers makes those that get events from brokers. Where those are is the
// configuration file's, and so the operator's own word.
func (a *App) receivers(cfg *config.Config, pub *complete.Completer, metrics prometheus.Registerer) (*receive.Receivers, error) {
	return receive.New(cfg.Received, receive.Parts{
		Broker: a.broker, Publish: pub.Publish, Metrics: receive.NewMetrics(metrics), Report: a.broker.Report,
		Egress: a.rules.Way(false), Version: a.opts.Version, Log: a.log,
	})
}
