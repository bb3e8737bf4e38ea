package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/poll/delta"
	"github.com/gridfan/gridfan/router/poll/odata"
	"github.com/gridfan/gridfan/router/poll/request"
	"github.com/gridfan/gridfan/router/poll/sqlrows"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/router/quarantine"
	"github.com/gridfan/gridfan/router/receive"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/record"
)

// polled makes of the configuration what the Poller is to poll.
func (a *App) polled(sources []config.Polled) ([]poll.Source, error) {
	list := make([]poll.Source, 0, len(sources))
	for _, p := range sources {
		s := poll.Source{Config: p.Config, Version: p.Version()}
		log := a.log.With("source", p.Label())
		var err error
		if s.Open, s.Event, err = a.way(p, log); err != nil {
			return nil, fmt.Errorf("source %q: %w", p.Label(), err)
		}
		list = append(list, s)
	}
	return list, nil
}

// way makes what opens a source, and what makes events of its rows. Where it leads is
// the operator's own word.
func (a *App) way(p config.Polled, log *slog.Logger) (func(context.Context) (poll.Fetcher, error), func(record.Row) event.Result, error) {
	shape := p.Shape()
	switch {
	case p.OData != nil:
		return func(context.Context) (poll.Fetcher, error) {
			return odata.New(*p.OData, request.Options{Egress: a.rules.Way(false), Log: log})
		}, shape.Event, nil
	case p.Delta != nil:
		return func(context.Context) (poll.Fetcher, error) {
			return delta.New(*p.Delta, request.Options{Egress: a.rules.Way(false), Log: log})
		}, shape.Event, nil
	case p.SQL != nil:
		return func(context.Context) (poll.Fetcher, error) {
			return sqlrows.New(*p.SQL, sqlrows.Options{Log: log})
		}, shape.Event, nil
	}
	return nil, nil, errors.New("its configuration names no way to poll that this version knows")
}

// What entries in quarantine are marked with that were polled.
const (
	viaHeader = "gridfan-via"
	viaPoll   = "poll"
)

// marked publishes what was polled, so that it is known as such in quarantine.
func marked(pub ingress.Publish) ingress.Publish {
	return func(ctx context.Context, o publish.Origin, results []event.Result) ([]publish.Status, error) {
		o.Header = map[string]string{viaHeader: viaPoll}
		return pub(ctx, o, results)
	}
}

// reparse reads a body from quarantine as its source would today. A row that was
// polled is none: only the source can tell it whole, so it is read again there.
func reparse(in *ingress.Ingress, sources func() config.Sources, inboxes *receive.Receivers) quarantine.Parse {
	return func(name string, header map[string]string, body []byte) (publish.Origin, []event.Result, bool) {
		polled := sources().Polled
		i := slices.IndexFunc(polled, func(p config.Polled) bool { return p.Name == name })
		if i < 0 || header[viaHeader] != viaPoll {
			if o, results, ok := in.Reparse(name, header, body); ok {
				return o, results, ok
			}
			return inboxes.Reparse(name, header, body)
		}
		return publish.Origin{Source: name, Kind: polled[i].Kind, Environment: polled[i].Environment, Via: viaPoll}, []event.Result{{
			Raw:   body,
			Fault: event.Faultf(event.FaultNotEvent, "this is a row that was polled, and it is read again at its source: mend that or the configuration, then gridfan sources baseline %s, and drop this entry", name),
		}}, true
	}
}
