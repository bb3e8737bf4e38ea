package deliver

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is how one subscriber is served. The zero value of a field means its
// default; Validate fills them in.
type Config struct {
	// Ordering is the order that is kept. Default Unordered.
	Ordering Ordering `json:"ordering,omitempty"`
	Limits   Limits   `json:"limits"`
	Retry    Retry    `json:"retry"`
	Breaker  Breaker  `json:"breaker"`
}

// Ordering says what may overtake what, in the order of the stream.
type Ordering string

// The orders.
const (
	Unordered Ordering = "none"   // anything may overtake anything
	ByKey     Ordering = "key"    // no event overtakes one of its own partition key
	Strict    Ordering = "strict" // one event after another
)

// Limits bound what one subscriber may take of the machine.
type Limits struct {
	// Concurrency is how many attempts run at once. Default 8.
	Concurrency int `json:"concurrency"`
	// Timeout is the deadline of one attempt. Default 30s, which is also what
	// Event Grid gives a webhook.
	Timeout Duration `json:"timeout"`
	// Rate is how many attempts may begin in a time, over all replicas that
	// serve it together if there is only one, else by each. 0 means any number.
	Rate Rate `json:"rate,omitempty"`
	// Batch puts several events into one attempt. Its zero value means one
	// event an attempt.
	Batch Batch `json:"batch,omitzero"`
	// Backlog bounds what it may hold back in the stream.
	Backlog Backlog `json:"backlog,omitzero"`
}

// Batch bounds what goes out in one attempt. The first bound that is reached
// sends it.
type Batch struct {
	// Events are the most in one attempt, 2 to 1000. 0 means no batches.
	Events int `json:"events,omitempty"`
	// Bytes of data and attributes in one attempt. Default 1MiB, which is what
	// Event Grid takes. One larger event goes alone.
	Bytes Size `json:"bytes,omitempty"`
	// Linger is how long the first event may wait for others. Default 50ms.
	Linger Duration `json:"linger,omitempty"`
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
	// MaxAge is how long after its acceptance an event is still tried. 0 means
	// as long as the schedule.
	MaxAge Duration `json:"maxAge,omitempty"`
	// MaxRetryAfter caps what a subscriber may ask us to wait. Default 1h.
	MaxRetryAfter Duration `json:"maxRetryAfter,omitempty"`
	// Faults has rules for some kinds of failure; the schedule is for the
	// others, except that FaultRefused, FaultAddress and FaultAccess are given
	// up at once unless they have a rule.
	Faults map[Fault]Rule `json:"faults,omitempty"`
}

// Rule is what follows one kind of failure. Exactly one field is set.
type Rule struct {
	// Schedule takes the place of Retry.Schedule.
	Schedule []Duration `json:"schedule,omitempty"`
	// GiveUp makes a dead letter at once.
	GiveUp bool `json:"giveUp,omitempty"`
}

// Breaker says when a subscriber counts as down, and for how long.
type Breaker struct {
	// Failures in a row open the breaker. Default 5.
	Failures int `json:"failures"`
	// Ratio of failed attempts among those of the last Window opens it too, when
	// there were at least twice Failures. Defaults 0.5 and 30s.
	Ratio  float64  `json:"ratio"`
	Window Duration `json:"window"`
	// OpenFor is the pause after the first trip; it doubles with every failed
	// probe up to MaxOpenFor. Defaults 10s and 5m.
	OpenFor    Duration `json:"openFor"`
	MaxOpenFor Duration `json:"maxOpenFor"`
	// Probes is how many attempts in a row must succeed to close it. Default 1.
	Probes int `json:"probes"`
	// RampUp is how long it takes after a recovery until all of
	// Limits.Concurrency may run. Default 30s; None switches it off.
	RampUp Duration `json:"rampUp"`
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
	if r := c.Limits.Rate; r < 0 || r > maxRate {
		bad("limits.rate", "want 1/h to %s, got %s", Rate(maxRate), r)
	}
	c.Limits.Batch.validate(bad)
	if a := c.Limits.Backlog.Age.Std(); a != 0 && (a < minBacklogAge || a > maxBacklogAge) {
		bad("limits.backlog.age", "want 1m to 365d, got %s", c.Limits.Backlog.Age)
	}
	if n := c.Limits.Backlog.Bytes; n != 0 && n < minBacklogBytes {
		bad("limits.backlog.bytes", "want at least 1MiB, got %s", n)
	}
	if len(c.Retry.Schedule) == 0 {
		c.Retry.Schedule = DefaultSchedule()
	}
	c.Retry.validate(bad)
	if c.Breaker.Failures == 0 {
		c.Breaker.Failures = 5
	}
	if n := c.Breaker.Failures; n < 1 || n > 10000 {
		bad("breaker.failures", "want 1 to 10000, got %d", n)
	}
	if c.Breaker.Ratio == 0 {
		c.Breaker.Ratio = 0.5
	}
	if r := c.Breaker.Ratio; !(r > 0 && r <= 1) {
		bad("breaker.ratio", "want more than 0 and at most 1, got %v", r)
	}
	setDefault(&c.Breaker.Window, 30*time.Second)
	if d := c.Breaker.Window; d.Std() < time.Second || d.Std() > time.Hour {
		bad("breaker.window", "want 1s to 1h, got %s", d)
	}
	setDefault(&c.Breaker.OpenFor, 10*time.Second)
	setDefault(&c.Breaker.MaxOpenFor, max(5*time.Minute, c.Breaker.OpenFor.Std()))
	if d := c.Breaker.OpenFor; d.Std() < 10*time.Millisecond || d.Std() > 24*time.Hour {
		bad("breaker.openFor", "want 10ms to 1d, got %s", d)
	}
	if d := c.Breaker.MaxOpenFor; d.Std() < c.Breaker.OpenFor.Std() || d.Std() > 24*time.Hour {
		bad("breaker.maxOpenFor", "want at least openFor and at most 1d, got %s", d)
	}
	if c.Breaker.Probes == 0 {
		c.Breaker.Probes = 1
	}
	if n := c.Breaker.Probes; n < 1 || n > 100 {
		bad("breaker.probes", "want 1 to 100, got %d", n)
	}
	setDefault(&c.Breaker.RampUp, 30*time.Second)
	if d := c.Breaker.RampUp; d != None && (d.Std() < 0 || d.Std() > time.Hour) {
		bad("breaker.rampUp", "want at most 1h, or none, got %s", d)
	}
	switch c.Ordering {
	case "":
		c.Ordering = Unordered
	case Unordered, ByKey, Strict:
	default:
		bad("ordering", "want none, key or strict, got %q", c.Ordering)
	}
	if c.Ordering == Strict && c.Limits.Batch.Events > 0 {
		bad("limits.batch", "strict order sends one event after another; use ordering key or none, or remove the batch")
	}
	return errors.Join(errs...)
}

func (b *Batch) validate(bad func(key, format string, args ...any)) {
	if *b == (Batch{}) {
		return
	}
	if n := b.Events; n < 2 || n > 1000 {
		bad("limits.batch.events", "want 2 to 1000, got %d", n)
	}
	if b.Bytes == 0 {
		b.Bytes = 1 << 20
	}
	if n := b.Bytes; n < 1<<10 || n > 64<<20 {
		bad("limits.batch.bytes", "want 1KiB to 64MiB, got %s", n)
	}
	setDefault(&b.Linger, 50*time.Millisecond)
	if d := b.Linger; d.Std() < time.Millisecond || d.Std() > time.Minute {
		bad("limits.batch.linger", "want 1ms to 1m, got %s", d)
	}
}

func (r *Retry) validate(bad func(key, format string, args ...any)) {
	waits := func(key string, schedule []Duration) {
		if n := len(schedule); n > 100 {
			bad(key, "want at most 100 waits, got %d", n)
		}
		for i, d := range schedule {
			if d.Std() < time.Millisecond || d.Std() > 30*24*time.Hour {
				bad(fmt.Sprintf("%s[%d]", key, i), "want 1ms to 30d, got %s", d)
			}
		}
	}
	waits("retry.schedule", r.Schedule)
	if d := r.MaxAge; d != 0 && (d.Std() < time.Second || d.Std() > 365*24*time.Hour) {
		bad("retry.maxAge", "want 1s to 365d, got %s", d)
	}
	setDefault(&r.MaxRetryAfter, time.Hour)
	if d := r.MaxRetryAfter; d.Std() < time.Second || d.Std() > 24*time.Hour {
		bad("retry.maxRetryAfter", "want 1s to 1d, got %s", d)
	}
	for _, f := range slices.Sorted(maps.Keys(r.Faults)) {
		key, rule := "retry.faults."+string(f), r.Faults[f]
		if !slices.Contains(Faults, f) {
			bad(key, "no such fault; want one of %s", joinFaults())
			continue
		}
		if rule.GiveUp && f == FaultHandshake {
			bad(key+".giveUp", "what was not sent cannot be given up for that: it waits until the subscriber agrees; give a schedule, or leave the rule out")
			continue
		}
		if rule.GiveUp == (len(rule.Schedule) > 0) {
			bad(key, "want either schedule: [ … ] or giveUp: true")
		}
		waits(key+".schedule", rule.Schedule)
	}
}

func joinFaults() string {
	words := make([]string, len(Faults))
	for i, f := range Faults {
		words[i] = string(f)
	}
	return strings.Join(words, ", ")
}

// Rate is a number of attempts in a second. It is written with a unit: "200/s",
// "6000/m", "10/h".
type Rate float64

const maxRate = 1e6

func (r Rate) String() string {
	for _, u := range []struct {
		name string
		span float64
	}{{"s", 1}, {"m", 60}, {"h", 3600}} {
		if n := float64(r) * u.span; n >= 1 && math.Abs(n-math.Round(n)) < 1e-6 {
			return strconv.FormatFloat(math.Round(n), 'f', -1, 64) + "/" + u.name
		}
	}
	return strconv.FormatFloat(float64(r)*3600, 'g', 4, 64) + "/h"
}

// MarshalText writes r with its unit.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (r *Rate) UnmarshalText(b []byte) error {
	v, err := ParseRate(string(b))
	*r = Rate(v)
	return err
}

// ParseRate reads a whole number for a span of time, and returns it for a
// second.
func ParseRate(s string) (float64, error) {
	number, unit, _ := strings.Cut(s, "/")
	span := map[string]float64{"s": 1, "m": 60, "h": 3600}[unit]
	n, err := strconv.ParseUint(number, 10, 53)
	if err != nil || span == 0 {
		return 0, fmt.Errorf("%q is not a rate: write a whole number with /s, /m or /h, as in 200/s or 6000/m", s)
	}
	return float64(n) / span, nil
}

func setDefault(d *Duration, to time.Duration) {
	if *d == 0 {
		*d = Duration(to)
	}
}

// Duration is a time.Duration that is written with a unit, days among them:
// "200ms", "1m30s", "7d".
type Duration time.Duration

// None is how a span of time is switched off that has a default. It is written
// "none".
const None Duration = -1

// Std gives d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

func (d Duration) String() string {
	if d == None {
		return "none"
	}
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
	if string(b) == None.String() {
		*d = None
		return nil
	}
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

// Roughly rounds a duration to what one would say: "4 min". Less than a second, or
// than nothing after a clock was set back, is one.
func Roughly(d time.Duration) string {
	switch d = max(0, d); {
	case d < 1500*time.Millisecond:
		return "1 s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()+0.5))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()+0.5))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()+0.5))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24+0.5))
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
