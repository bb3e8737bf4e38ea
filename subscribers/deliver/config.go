package deliver

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Config is how one subscriber is served. The zero value of a field means its
// default; Validate fills them in.
type Config struct {
	Limits  Limits  `json:"limits"`
	Retry   Retry   `json:"retry"`
	Breaker Breaker `json:"breaker"`
}

// Limits bound what one subscriber may take of the machine.
type Limits struct {
	// Concurrency is how many attempts run at once. Default 8.
	Concurrency int `json:"concurrency"`
	// Timeout is the deadline of one attempt. Default 30s, which is also what
	// Event Grid gives a webhook.
	Timeout Duration `json:"timeout"`
	// Backlog bounds what it may hold back in the stream.
	Backlog Backlog `json:"backlog,omitzero"`
}

// Backlog bounds the events that one subscriber has not got. Past a bound its
// oldest ones, except those in flight and in retry, become dead letters.
type Backlog struct {
	// Age is how old its oldest undelivered event may be. 0 means any age.
	Age Duration `json:"age,omitempty"`
	// Bytes is the space in EVENTS from its oldest undelivered event on. 0
	// means half of EVENTS' limit, so that no subscriber can fill it alone.
	Bytes Size `json:"bytes,omitempty"`
}

const (
	minBacklogAge   = time.Minute
	maxBacklogAge   = 365 * 24 * time.Hour
	minBacklogBytes = 1 << 20 // less would be a single event
)

// Retry says when a failed delivery is tried again.
type Retry struct {
	// Schedule holds the waits between attempts; after the last one fails, the
	// event becomes a dead letter.
	Schedule []Duration `json:"schedule"`
}

// Breaker says when a subscriber counts as down, and for how long.
type Breaker struct {
	// Failures in a row open the breaker. Default 5.
	Failures int `json:"failures"`
	// OpenFor is the pause after the first trip; it doubles with every failed
	// probe up to MaxOpenFor. Defaults 10s and 5m.
	OpenFor    Duration `json:"openFor"`
	MaxOpenFor Duration `json:"maxOpenFor"`
}

// DefaultSchedule covers a restart (seconds), a deployment (minutes) and an
// outage over a working day (hours).
func DefaultSchedule() []Duration {
	s := time.Second
	return []Duration{
		Duration(1 * s), Duration(5 * s), Duration(30 * s), Duration(2 * time.Minute),
		Duration(10 * time.Minute), Duration(time.Hour), Duration(6 * time.Hour), Duration(24 * time.Hour),
	}
}

// Validate sets defaults and reports every problem, each beginning with the
// path of its key below path.
func (c *Config) Validate(path string) error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s.%s: %s", path, key, fmt.Sprintf(format, args...)))
	}
	if c.Limits.Concurrency == 0 {
		c.Limits.Concurrency = 8
	}
	if n := c.Limits.Concurrency; n < 1 || n > 1024 {
		bad("limits.concurrency", "want 1 to 1024, got %d", n)
	}
	setDefault(&c.Limits.Timeout, 30*time.Second)
	if t := c.Limits.Timeout; t.Std() < 10*time.Millisecond || t.Std() > 10*time.Minute {
		bad("limits.timeout", "want 10ms to 10m, got %s", t)
	}
	if a := c.Limits.Backlog.Age.Std(); a != 0 && (a < minBacklogAge || a > maxBacklogAge) {
		bad("limits.backlog.age", "want 1m to 365d, got %s", c.Limits.Backlog.Age)
	}
	if n := c.Limits.Backlog.Bytes; n != 0 && n < minBacklogBytes {
		bad("limits.backlog.bytes", "want at least 1MiB, got %s", n)
	}
	if len(c.Retry.Schedule) == 0 {
		c.Retry.Schedule = DefaultSchedule()
	}
	if n := len(c.Retry.Schedule); n > 100 {
		bad("retry.schedule", "want at most 100 waits, got %d", n)
	}
	for i, d := range c.Retry.Schedule {
		if d.Std() < time.Millisecond || d.Std() > 30*24*time.Hour {
			bad(fmt.Sprintf("retry.schedule[%d]", i), "want 1ms to 30d, got %s", d)
		}
	}
	if c.Breaker.Failures == 0 {
		c.Breaker.Failures = 5
	}
	if n := c.Breaker.Failures; n < 1 || n > 10000 {
		bad("breaker.failures", "want 1 to 10000, got %d", n)
	}
	setDefault(&c.Breaker.OpenFor, 10*time.Second)
	setDefault(&c.Breaker.MaxOpenFor, max(5*time.Minute, c.Breaker.OpenFor.Std()))
	if d := c.Breaker.OpenFor; d.Std() < 10*time.Millisecond || d.Std() > 24*time.Hour {
		bad("breaker.openFor", "want 10ms to 1d, got %s", d)
	}
	if d := c.Breaker.MaxOpenFor; d.Std() < c.Breaker.OpenFor.Std() || d.Std() > 24*time.Hour {
		bad("breaker.maxOpenFor", "want at least openFor and at most 1d, got %s", d)
	}
	return errors.Join(errs...)
}

func setDefault(d *Duration, to time.Duration) {
	if *d == 0 {
		*d = Duration(to)
	}
}

// Duration is a time.Duration that is written with a unit, days among them:
// "200ms", "1m30s", "7d".
type Duration time.Duration

// Std gives d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

func (d Duration) String() string {
	const day = 24 * time.Hour
	if t := d.Std(); t != 0 && t%day == 0 {
		return strconv.FormatInt(int64(t/day), 10) + "d"
	}
	s := d.Std().String()
	if t := d.Std(); t != 0 && t%time.Minute == 0 {
		s = strings.TrimSuffix(s, "0s")
		if t%time.Hour == 0 {
			s = strings.TrimSuffix(s, "0m")
		}
	}
	return s
}

// MarshalText writes d with its unit.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// ParseDuration reads a positive duration with a unit: those of
// time.ParseDuration, and d for days of 24 hours.
func ParseDuration(s string) (time.Duration, error) {
	err := fmt.Errorf("%q is not a duration: write a number with a unit, as in 200ms, 30s, 5m, 12h, 7d", s)
	whole, rest := time.Duration(0), s
	if days, after, ok := strings.Cut(s, "d"); ok {
		n, e := strconv.ParseUint(days, 10, 15)
		if e != nil {
			return 0, err
		}
		whole, rest = time.Duration(n)*24*time.Hour, after
		if rest == "" {
			return whole, nil
		}
	}
	d, e := time.ParseDuration(rest)
	if e != nil || d < 0 || rest == "0" || rest == "+0" {
		return 0, err
	}
	return whole + d, nil
}

// Size is a number of bytes that is written with a unit: "512KiB", "8GiB".
type Size int64

// units are the accepted ones; powers of ten as on a disk's label, powers of
// two as in memory.
var units = map[string]int64{
	"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
	"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}

func (s Size) String() string {
	for _, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if n := units[unit]; s != 0 && int64(s)%n == 0 {
			return strconv.FormatInt(int64(s)/n, 10) + unit
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

// MarshalText writes s with its unit.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (s *Size) UnmarshalText(b []byte) error {
	v, err := ParseSize(string(b))
	*s = Size(v)
	return err
}

// ParseSize reads a whole number of bytes with a unit.
func ParseSize(s string) (int64, error) {
	unit := strings.TrimLeft(s, "0123456789")
	factor := units[unit]
	n, err := strconv.ParseInt(strings.TrimSuffix(s, unit), 10, 64)
	if err != nil || factor == 0 || n > math.MaxInt64/factor {
		return 0, fmt.Errorf("%q is not a size: write a whole number with B, KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (powers of 1024), as in 8GiB", s)
	}
	return n * factor, nil
}
