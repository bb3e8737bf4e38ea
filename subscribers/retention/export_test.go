package retention

import (
	"context"
	"log/slog"
	"time"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// NewIdle makes a Loop that does nothing by itself, on a clock of the test's.
func NewIdle(cfg Config, b *broker.Broker, r *registry.Registry, f *registry.Fleet, m *Metrics, now func() time.Time) *Loop {
	l := newLoop(cfg, b, r, f, m, slog.New(slog.DiscardHandler))
	l.now, l.lag = now, 0
	return l
}

// Once does what the loop does when a trim is due.
func (l *Loop) Once(ctx context.Context) error {
	l.trimmed = time.Time{}
	_, err := l.once(ctx)
	return err
}
