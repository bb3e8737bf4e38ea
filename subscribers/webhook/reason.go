package webhook

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// noAnswer turns the lack of a status into an Attempt. It is worth another try
// in every case: a wrong certificate or name is somebody's to repair, and the
// event waits until then.
func (s *Sender) noAnswer(ctx context.Context, err error, took time.Duration) deliver.Attempt {
	if e, ok := errors.AsType[*credentials.Error](err); ok {
		return s.secrets.NoToken(ctx, e, took)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" && ctx.Err() == nil {
		_, alert, _ := strings.Cut(err.Error(), "tls: ")
		return deliver.Attempt{Outcome: deliver.Failed, Fault: deliver.FaultTLS, Reason: s.refusedTLS(s.secrets.Printable(alert, 256))}
	}
	return s.secrets.NoAnswer(ctx, err, took)
}
