package retention

import (
	"errors"
	"fmt"
	"time"

	"github.com/gridfan/gridfan/subscribers/deliver"
)

// Config says what EVENTS keeps. The zero value of a field means its default;
// Validate fills them in.
type Config struct {
	// Replay is how long an event that every subscriber has got is kept all the
	// same, for new subscribers and people who look. It is a wish: when EVENTS is
	// nearly full, room for new events goes first. Default 24h.
	Replay deliver.Duration
	// OnFull is what happens when EVENTS fills up with what subscribers have not
	// got. Default Reject.
	OnFull Policy
}

// Policy is what happens when nothing can be trimmed and EVENTS is full.
type Policy string

// The policies.
const (
	Reject Policy = "reject" // senders are told to come back; nothing is dropped
	Shed   Policy = "shed"   // the oldest events go, each with a record
)

const (
	defaultReplay = 24 * time.Hour // as long as Event Grid repeats, so that one day can be looked at
	minReplay     = time.Minute
	maxReplay     = 365 * 24 * time.Hour
)

// Validate sets defaults and reports every problem, each beginning with the
// path of its key in the configuration file.
func (c *Config) Validate() error {
	var errs []error
	if c.Replay == 0 {
		c.Replay = deliver.Duration(defaultReplay)
	}
	if r := c.Replay.Std(); r < minReplay || r > maxReplay {
		errs = append(errs, fmt.Errorf("storage.replay: want 1m to 365d, got %s", c.Replay))
	}
	switch c.OnFull {
	case "":
		c.OnFull = Reject
	case Reject, Shed:
	default:
		errs = append(errs, fmt.Errorf("storage.onFull: want reject or shed, got %q", c.OnFull))
	}
	return errors.Join(errs...)
}
