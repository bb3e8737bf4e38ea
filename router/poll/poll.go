package poll

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
)

// Parts are what a Poller works with.
type Parts struct {
	Broker *broker.Broker
	// Publish stores events, as publish.Publisher's does.
	Publish func(context.Context, publish.Origin, []event.Result) ([]publish.Status, error)
	Metrics *Metrics     // nil: none
	Log     *slog.Logger // nil: nothing is logged
}

// Poller polls sources. All methods are safe for concurrent use.
type Poller struct {
	parts Parts
}

// Rewinder is a Fetcher whose cursor can begin at a time.
type Rewinder interface {
	// Rewind gives the cursor that reads all changes since a time, and perhaps
	// older ones. The error says why the source cannot.
	Rewind(ctx context.Context, to time.Time) (json.RawMessage, error)
}

// Errors of commands to a source.
var (
	// ErrUnknown: no source of this name is polled.
	ErrUnknown = errors.New("no source of this name is polled")
	// ErrNobody: no process polls it at the moment, so none can be told.
	ErrNobody = errors.New("no router polls this source at the moment")
	// ErrCannotRewind: its cursor has no times.
	ErrCannotRewind = errors.New("its cursor cannot go back to a time")
)

// New makes a Poller without sources. The caller calls Start.
func New(parts Parts) *Poller { return &Poller{parts: parts} }

// Start opens what the Poller needs on the broker and begins to listen for
// commands of other processes. The caller calls Stop.
func (p *Poller) Start(ctx context.Context) error { return nil }

// Apply makes sources the ones that are polled: new ones begin, spread over a
// while; those that are not named stop; those whose Version has changed stop and
// begin again with their checkpoint. Every Config must be valid and every Name be
// there once. It returns when what was to stop has stopped.
func (p *Poller) Apply(sources []Source) {}

// Stop ends polling: a page that is being stored is finished if ctx lasts, a
// request is given up. Leases are given back at once, so that another process goes
// on. Checkpoints stay.
func (p *Poller) Stop(ctx context.Context) {}

// Status tells how all sources are doing, by name. Of those that another process
// polls it tells what that process says. It asks the broker, within ctx.
func (p *Poller) Status(ctx context.Context) []Status { return nil }

// PollNow polls a source as soon as its budget and a Retry-After let it, also
// outside of its windows, in whichever process holds it. It returns when that
// process has begun to see to it, not when it has polled.
func (p *Poller) PollNow(ctx context.Context, source string) error { return nil }

// Rewind makes the next poll begin at a time, or, with the zero time, at the
// beginning, where every row counts as changed and is published if dedup does not
// know it. It returns when the new checkpoint is durable.
func (p *Poller) Rewind(ctx context.Context, source string, to time.Time) error { return nil }

// Baseline reads all rows again. With Silent they are remembered and not
// published, with Publish all are published, with Compare those that differ from
// what is known. It returns when that is durably begun.
func (p *Poller) Baseline(ctx context.Context, source string, mode Baseline) error { return nil }

// Confirm says of an Unconfirmed source that its missing rows are deleted: the
// deletions are published and polling goes on. It returns when that is durably
// begun.
func (p *Poller) Confirm(ctx context.Context, source string) error { return nil }
