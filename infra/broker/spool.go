package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
)

// SpoolConfig says where events are kept while an external server is away.
type SpoolConfig struct {
	// Dir is a folder on a disk that outlives the process. Required.
	Dir string
	// MaxBytes bounds it. Default 1 GiB.
	MaxBytes int64
}

// defaultSpool holds a million events of 1 KB: an hour and a half at 200 a
// second.
const defaultSpool = 1 << 30

// Validate sets defaults and reports every problem, each beginning with the
// path of its key in the configuration file.
func (c *SpoolConfig) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("broker.spool.dir: missing; name a folder on a disk that outlives the process, or remove broker.spool: then senders are told to come back"))
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = defaultSpool
	}
	if c.MaxBytes < minMaxBytes {
		errs = append(errs, fmt.Errorf("broker.spool.maxBytes: want at least %dMiB", minMaxBytes>>20))
	}
	return errors.Join(errs...)
}

// OpenSpool starts a server in this process that takes events while an external
// one is away: its own store, lock, barrier and limits, and one stream for the
// very messages that the real broker is to get. cfg must be valid. The caller
// closes it.
func OpenSpool(ctx context.Context, cfg SpoolConfig, log *slog.Logger) (*Broker, error) {
	b, err := open(ctx, &Broker{
		cfg:   Config{Dir: cfg.Dir, MaxBytes: cfg.MaxBytes, Listen: "none", Replicas: 1},
		spool: true,
		log:   log.With("store", "spool"),
	})
	if err != nil {
		return nil, fmt.Errorf("broker.spool: %w", err)
	}
	return b, nil
}
