package deadletters

import (
	"context"
	"errors"
	"time"
)

// ShortLease lets a test's takeover take a second and not ten.
const ShortLease = time.Second

// OpenMortal opens a Store with short leases. What die answers yes to is the
// last thing that it does.
func OpenMortal(ctx context.Context, p Parts, die func(j *Job, step string) bool) (*Store, error) {
	s, err := open(ctx, p)
	if err != nil {
		return nil, err
	}
	s.leaseTTL = ShortLease
	s.step = func(j *Job, step string) error {
		if die != nil && die(j, step) {
			return errDied
		}
		return nil
	}
	return s, s.start()
}

// Alike, Needle, Covers and Records are tested by themselves.
var (
	Alike   = alike
	Needle  = needle
	Records = records
)

// ErrBroken is any error.
var ErrBroken = errors.New("broken")
