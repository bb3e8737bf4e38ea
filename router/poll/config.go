package poll

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/record"
)

// Source is one polled source, or one table of it: how it is polled, who reads it, and what its rows
// become.
type Source struct {
	Config
	// Version stands for all of the source's configuration, the Fetcher's
	// included. Apply leaves a source alone whose Version is what it was.
	Version string
	// Open makes the source's Fetcher. It is called when this process begins to
	// poll the source, and after each loss of the lease; ctx bounds the call only.
	// An error is a Fault, or counts as one.
	Open func(ctx context.Context) (Fetcher, error)
	// Event makes the event of a row. A row that cannot be one is a Result with a
	// Fault, which goes to quarantine. It does not block, and is called by one
	// goroutine at a time.
	Event func(record.Row) event.Result
}

// Config says when and how one source is polled.
type Config struct {
	// Name is the source's; Kind and Environment are what its events get, as in
	// publish.Origin. Environment defaults to Name.
	Name, Kind, Environment string
	// Table names what is read, where a source reads several tables: each has its own
	// Config, with the same Name, and a checkpoint of its own, which stays its own
	// whatever others there are. Empty: the source itself is the only one.
	Table string
	// Only says that the source has no other table, so that its name is enough for
	// people.
	Only bool
	// First is true for one table of a source: it goes on from a checkpoint that was
	// written when checkpoints named no table, if there is such a one.
	First bool `json:"-"`
	// Identity names who the source sees asking: environment and credential, without
	// a secret in it. Sources of one Identity share one budget, and all of them wait
	// when one is told to. Default: Environment.
	Identity string

	// Every is how long to wait between two polls.
	Every Every
	// Windows are when to poll at all; none: always.
	Windows []Window
	// Tolerance is how old a change may become unnoticed, in 95 of 100 cases. It
	// sets Every.Max where that is not given. 0: nobody said.
	Tolerance time.Duration
	// RetryMax is the longest wait after a failure. Default 1m.
	RetryMax time.Duration
	// Timeout is how long one request may take. Default 2m: long-polling servers
	// hold a request for half a minute, and Dataverse takes up to two for a page.
	Timeout time.Duration
	// Pages is how many requests one poll makes before other sources of its
	// Identity have their turn. What is left is fetched in the next poll, which
	// then begins at once. Default 100.
	Pages int
	// Budget is how many requests a second all sources of an Identity make together,
	// in the mean. Default 1, which is 5 % of what Dataverse allows a user (6,000 in
	// 5 minutes; learn.microsoft.com, "Service protection API limits", read
	// 2026-11). The lowest among the sources of an Identity counts.
	Budget float64
	// Baseline is what becomes of the rows that are there at the first poll.
	// Default Silent.
	Baseline Baseline
}

// Every is how long to wait between two polls. With Min = Max the interval is
// fixed, and else it follows the rate at which rows arrive.
type Every struct {
	Min, Max time.Duration // default 5s and 2m
}

// Fixed says whether the interval does not adapt.
func (e Every) Fixed() bool { return e.Min == e.Max }

// Window is a span of time in which a source is polled.
type Window struct {
	// Start is when it begins: a cron expression of five fields, or a word like
	// "@daily".
	Start string
	// For is how long it lasts. 0: one poll, of all pages, at each Start.
	For time.Duration
	// Zone is an IANA time zone for Start. Default UTC.
	Zone string

	schedule cron.Schedule // set by Validate
}

// Baseline is what becomes of the rows that are there when a source is read for
// the first time, or from the beginning.
type Baseline string

// What a baseline does.
const (
	// Silent remembers rows and publishes nothing: what follows are changes.
	Silent Baseline = "silent"
	// Publish publishes every row.
	Publish Baseline = "publish"
	// Compare publishes rows that differ from what is known, and deletions of
	// those that are gone. It is for a later reading only.
	Compare Baseline = "compare"
)

// Defaults and bounds of a Config. The adaptive minimum is what polling every
// table of a large estate leaves of a budget; the maximum is what people wait for
// an event without calling it lost.
const (
	DefaultMin      = 5 * time.Second
	DefaultMax      = 2 * time.Minute
	DefaultRetryMax = time.Minute
	DefaultTimeout  = 2 * time.Minute
	DefaultPages    = 100
	DefaultBudget   = 1.0

	leastInterval = 100 * time.Millisecond
	mostInterval  = 31 * 24 * time.Hour
	mostWindows   = 50
)

// tolerated is the share of the interval within which 95 of 100 changes are seen
// that come at any time in it.
const tolerated = 0.95

// ID names one table of a source among all that are polled: the source's name, and
// behind a slash the table's, in characters that keys and subjects of the broker have.
func ID(source, table string) string {
	if table == "" {
		return source
	}
	var b strings.Builder
	for i := range len(table) {
		switch c := table[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "=%02X", c)
		}
	}
	text := b.String()
	if len(text) > mostTable {
		sum := sha256.Sum256([]byte(table))
		text = text[:mostTable-17] + "=" + hex.EncodeToString(sum[:8])
	}
	return source + "/" + text
}

// mostTable bounds what a table takes of a subject, which has 512 bytes.
const mostTable = 128

// ID is that of its source and table.
func (c *Config) ID() string { return ID(c.Name, c.Table) }

// Label names the table for people, as commands take it.
func (c *Config) Label() string {
	if c.Only || c.Table == "" {
		return c.Name
	}
	return c.Name + "/" + c.Table
}

// Validate sets defaults and reports every problem, each beginning with path and
// the key, as in "sources.crm.poll.every.min: …".
func (c *Config) Validate(path string) error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s.%s: %s", path, key, fmt.Sprintf(format, args...)))
	}
	if c.Name == "" {
		errs = append(errs, fmt.Errorf("%s: a polled source has no name", path))
	}
	if c.Environment == "" {
		c.Environment = c.Name
	}
	if c.Identity == "" {
		c.Identity = c.Environment
	}
	if c.Tolerance < 0 || c.Tolerance > mostInterval {
		bad("tolerance", "want up to 31d, got %s", c.Tolerance)
		c.Tolerance = 0
	}
	fit := time.Duration(float64(c.Tolerance) / tolerated).Round(time.Millisecond)
	switch {
	case c.Every.Max == 0 && c.Tolerance > 0:
		c.Every.Max = max(fit, leastInterval)
	case c.Every.Max == 0:
		c.Every.Max = max(DefaultMax, c.Every.Min)
	case c.Tolerance > 0 && c.Every.Max > fit+time.Second:
		bad("every.max", "polling every %s misses a tolerance of %s: want at most %s, or leave it out", c.Every.Max, c.Tolerance, fit)
	}
	if c.Every.Min == 0 {
		c.Every.Min = min(DefaultMin, c.Every.Max)
	}
	switch {
	case c.Every.Min < leastInterval || c.Every.Min > mostInterval:
		bad("every.min", "want 100ms to 31d, got %s", c.Every.Min)
	case c.Every.Max < leastInterval || c.Every.Max > mostInterval:
		bad("every.max", "want 100ms to 31d, got %s", c.Every.Max)
	case c.Every.Min > c.Every.Max:
		bad("every", "min (%s) is more than max (%s)", c.Every.Min, c.Every.Max)
	}
	if len(c.Windows) > mostWindows {
		bad("windows", "want at most %d, got %d", mostWindows, len(c.Windows))
		c.Windows = c.Windows[:mostWindows]
	}
	for i := range c.Windows {
		if err := c.Windows[i].validate(fmt.Sprintf("%s.windows[%d]", path, i)); err != nil {
			errs = append(errs, err)
		}
	}
	if c.RetryMax == 0 {
		c.RetryMax = DefaultRetryMax
	}
	if c.RetryMax < time.Second || c.RetryMax > 24*time.Hour {
		bad("retry.max", "want 1s to 24h, got %s", c.RetryMax)
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Timeout < time.Second || c.Timeout > time.Hour {
		bad("timeout", "want 1s to 1h, got %s", c.Timeout)
	}
	if c.Pages == 0 {
		c.Pages = DefaultPages
	}
	if c.Pages < 1 || c.Pages > 100_000 {
		bad("pages", "want 1 to 100000, got %d", c.Pages)
	}
	if c.Budget == 0 {
		c.Budget = DefaultBudget
	}
	// Written so that NaN is refused.
	if !(c.Budget >= 1.0/3600 && c.Budget <= 1000) {
		bad("budget", "want 1/h to 1000/s, got %g/s", c.Budget)
	}
	switch c.Baseline {
	case "":
		c.Baseline = Silent
	case Silent, Publish:
	default:
		bad("baseline", "want silent or publish, got %.40q", c.Baseline)
	}
	return errors.Join(errs...)
}

// cronText is what an expression is made of. Above all it has no "=": a zone has a
// key of its own, and the parser's own "TZ=" panics without a blank after it
// (robfig/cron issue 554).
var cronText = regexp.MustCompile(`^[0-9A-Za-z*/,?@ -]{1,200}$`)

// validate sets defaults and what was parsed.
func (w *Window) validate(path string) error {
	zone := time.UTC
	if w.Zone != "" {
		z, err := time.LoadLocation(w.Zone)
		if err != nil || w.Zone == "Local" {
			return fmt.Errorf("%s.zone: %.60q is no IANA time zone, as Europe/Berlin is", path, w.Zone)
		}
		zone = z
	}
	if w.For < 0 || w.For > mostInterval {
		return fmt.Errorf("%s.for: want up to 31d, got %s", path, w.For)
	}
	if !cronText.MatchString(w.Start) || strings.HasPrefix(w.Start, "@every") {
		return fmt.Errorf(`%s.start: want a cron expression of five fields, as "0 6 * * 1-5" is 6 o'clock on working days, got %.60q`, path, w.Start)
	}
	s, err := cron.ParseStandard(w.Start)
	if err != nil {
		return fmt.Errorf(`%s.start: %w; want a cron expression of five fields, as "0 6 * * 1-5" is 6 o'clock on working days`, path, err)
	}
	if spec, ok := s.(*cron.SpecSchedule); ok {
		spec.Location = zone
	}
	if s.Next(time.Now()).IsZero() {
		return fmt.Errorf("%s.start: %q never comes", path, w.Start)
	}
	w.schedule = s
	return nil
}

// from gives t when it is in the window, and else when the window opens next.
func (w *Window) from(t time.Time) time.Time {
	if w.For > 0 {
		if opened := w.schedule.Next(t.Add(-w.For)); !opened.After(t) {
			return t
		}
	}
	return w.schedule.Next(t)
}

// within gives the first time from t on at which a source may be polled.
func (c *Config) within(t time.Time) time.Time {
	var first time.Time
	for i := range c.Windows {
		if at := c.Windows[i].from(t); !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	if first.IsZero() { // there are none
		return t
	}
	return first
}

// goOn gives when to fetch what a poll has left: when a window is open, or at once
// where one poll is to bring all that there is.
func (c *Config) goOn(t time.Time) time.Time {
	if slices.ContainsFunc(c.Windows, func(w Window) bool { return w.For == 0 }) {
		return t
	}
	return c.within(t)
}
