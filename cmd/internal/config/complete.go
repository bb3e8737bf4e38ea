package config

import (
	"cmp"
	"time"

	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/poll/odata"
	"github.com/gridfan/gridfan/schemas/event"
)

// Completed is a source whose events are completed by reading their rows.
type Completed struct {
	Source string
	odata.RowsConfig
	// Within is how long an event may be kept for that.
	Within time.Duration
	// Budget is how many requests a second may be made where the source is not
	// polled, too, and Timeout how long each may take.
	Budget  float64
	Timeout time.Duration
}

// Bounds of Completed.
const (
	// defaultWithin is the window over which Dataverse counts requests, and so about
	// the longest that it throttles anybody for ("Service protection API limits",
	// powerapps-docs; read 2026-11).
	defaultWithin = 5 * time.Minute
	leastWithin   = 5 * time.Second
	// mostWithin is for how long a repeated event is recognised while it is kept.
	mostWithin = time.Hour
)

// redacted is c without secrets.
func (c Completed) redacted() Completed {
	c.RowsConfig = c.RowsConfig.Redacted()
	return c
}

// Version stands for all of it, its secrets among it.
func (c Completed) Version() string { return digest(c) }

// completed reads how a source's events are completed; nil for a source whose are not.
// polled is how it is polled; nil: it is not.
func (d *decoder) completed(f *field, polled *Polled) *Completed {
	v := f.value.get("complete")
	path := "sources." + f.name + ".complete"
	kind := d.kindOf(f)
	switch {
	case v == nil && (kind != event.KindDataverse || polled == nil || polled.OData == nil):
		return nil
	case v != nil && kind != "" && kind != event.KindDataverse:
		d.problem(v.at, v.path, "only Dataverse cuts events short that can be completed by a row, and this source's kind is %s: remove the key", kind)
		return nil
	case v != nil && v.kind != mapping:
		if d.boolean(v) {
			d.problem(v.at, v.path, "want false, or a mapping, as in { url: https://contoso.crm4.dynamics.com, auth: { managedIdentity: {} } }")
		}
		return nil
	}
	c := &Completed{Source: f.name}
	if polled != nil && polled.OData != nil {
		c.Target, c.Table = polled.OData.Target, polled.OData
		c.Budget, c.Timeout = polled.Budget, polled.Timeout
	}
	if v != nil {
		c.Within = d.duration(v.get("within")).Std()
		if b := v.get("budget"); b != nil {
			c.Budget = d.rate(b)
		}
		if t := v.get("timeout"); t != nil {
			c.Timeout = d.duration(t).Std()
		}
	}
	own := v.get("url") != nil || v.get("auth") != nil || v.get("tls") != nil
	if own || c.Table == nil {
		// Elsewhere, the table may have other columns.
		c.Target, c.Table = d.target(v), nil
		d.validated(c.RowsConfig.Validate(path), v, path)
	}
	c.Within = cmp.Or(c.Within, defaultWithin)
	c.Budget = cmp.Or(c.Budget, poll.DefaultBudget)
	c.Timeout = cmp.Or(c.Timeout, poll.DefaultTimeout)
	if v == nil {
		return c // the rest is poll's, which is judged there
	}
	bad := func(key, format string, args ...any) {
		at, where, _ := v.locate("." + key)
		d.problem(at, where, format, args...)
	}
	if c.Within < leastWithin || c.Within > mostWithin {
		bad("within", "want 5s to 1h, got %s", c.Within)
	}
	// Written so that NaN is refused.
	if v.get("budget") != nil && !(c.Budget >= 1.0/3600 && c.Budget <= 1000) {
		bad("budget", "want 1/h to 1000/s, got %g/s", c.Budget)
	}
	if v.get("timeout") != nil && (c.Timeout < time.Second || c.Timeout > time.Hour) {
		bad("timeout", "want 1s to 1h, got %s", c.Timeout)
	}
	return c
}

// kindOf gives a source's kind, if it can be read; it is judged elsewhere.
func (d *decoder) kindOf(f *field) string {
	problems, trouble := len(d.problems), len(d.trouble)
	kind := d.choice(f.value.get("kind"))
	d.problems, d.trouble = d.problems[:problems], d.trouble[:trouble]
	return kind
}
