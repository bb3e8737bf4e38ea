package config

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/router/normalise"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/poll/delta"
	"github.com/gridfan/gridfan/router/poll/odata"
	"github.com/gridfan/gridfan/router/poll/sqlrows"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/record"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// Pattern says how a source's events come.
type Pattern string

// The patterns.
const (
	Push   Pattern = "push"   // the source sends them
	Poll   Pattern = "poll"   // gridfan asks for them
	Hybrid Pattern = "hybrid" // both; what comes both ways is published once
)

// Polled is one table of a source that is asked, and what it is asked for. Exactly one
// of the ways is set.
type Polled struct {
	poll.Config
	Pattern   Pattern // Poll or Hybrid
	Rationale string  // the operator's reason for the pattern

	OData *odata.Config
	Delta *delta.Config
	SQL   *sqlrows.Config
}

// Reading says what is polled and how, for people: no secrets.
type Reading struct {
	// Way is odata, delta or sql, From where that is, and Of what is read there.
	Way  string `json:"way"`
	From string `json:"from"`
	Of   string `json:"of"`
	// Cursor is how changes are told from what was read.
	Cursor string `json:"cursor"`
	// Identity is who the source sees asking; sources with the same one share
	// Budget.
	Identity string       `json:"identity"`
	Budget   deliver.Rate `json:"budget"`
	// Min and Max bound the time between two polls; equal ones fix it.
	Min deliver.Duration `json:"min"`
	Max deliver.Duration `json:"max"`
	// Windows are when it is polled; none: always.
	Windows   []string         `json:"windows,omitempty"`
	Tolerance deliver.Duration `json:"tolerance,omitempty"`
	RetryMax  deliver.Duration `json:"retryMax"`
	Timeout   deliver.Duration `json:"timeout"`
	Pages     int              `json:"pages"`
	Baseline  poll.Baseline    `json:"baseline"`
}

// Reading describes what is polled.
func (p *Polled) Reading() *Reading {
	r := &Reading{
		Identity: p.Identity, Budget: deliver.Rate(p.Budget),
		Min: deliver.Duration(p.Every.Min), Max: deliver.Duration(p.Every.Max), Tolerance: deliver.Duration(p.Tolerance),
		RetryMax: deliver.Duration(p.RetryMax), Timeout: deliver.Duration(p.Timeout), Pages: p.Pages, Baseline: p.Baseline,
	}
	switch {
	case p.OData != nil:
		r.Way, r.From, r.Of, r.Cursor = "odata", origin(p.OData.URL), p.OData.Entity, string(p.OData.Cursor)
	case p.Delta != nil:
		r.Way, r.From, r.Of, r.Cursor = "delta", origin(p.Delta.URL), p.Delta.Table, "what the endpoint gives"
	case p.SQL != nil:
		r.Way, r.From, r.Of, r.Cursor = "sql", string(p.SQL.Driver)+" at "+p.SQL.Host(), p.SQL.Table.Schema+"."+p.SQL.Table.Name, string(p.SQL.Cursor.Kind)
		if p.SQL.Cursor.Column != "" {
			r.Cursor += " by " + p.SQL.Cursor.Column
		}
	}
	for _, w := range p.Windows {
		text := w.Start
		if w.For > 0 {
			text += " for " + deliver.Duration(w.For).String()
		}
		if w.Zone != "" {
			text += " " + w.Zone
		}
		r.Windows = append(r.Windows, text)
	}
	return r
}

// origin is where a URL leads, without what may be secret in it.
func origin(link string) string {
	u, err := url.Parse(link)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host + u.Path
}

// Shape is what rows become events by.
func (p *Polled) Shape() *record.Shape {
	if p.OData != nil {
		return p.OData.Shape(p.Name)
	}
	if p.Delta != nil {
		return p.Delta.Shape(p.Name)
	}
	return &record.Shape{Kind: p.Kind, Source: p.Name, Scope: p.SQL.Table.Schema, Table: p.SQL.Table.Name, Key: p.SQL.Table.Key}
}

// redacted is p without secrets.
func (p Polled) redacted() Polled {
	if p.OData != nil {
		p.OData = new(p.OData.Redacted())
	}
	if p.Delta != nil {
		p.Delta = new(p.Delta.Redacted())
	}
	if p.SQL != nil {
		p.SQL = new(p.SQL.Redacted())
	}
	return p
}

// Version stands for all of the source's configuration, its secrets among it.
func (p *Polled) Version() string { return digest(p) }

// pattern reads how a source's events come, and complains about keys that do not
// go with it. Without a word of the operator's the keys tell.
func (d *decoder) pattern(v *value) Pattern {
	push, polled := v.get("push"), v.get("poll")
	if push == nil {
		push = v.get("receive") // pushed to a broker in between
	}
	said := Pattern(d.choice(v.get("pattern"), string(Push), string(Poll), string(Hybrid)))
	switch {
	case said == "" && polled == nil:
		return Push
	case said == "" && push == nil:
		said = Poll
	case said == "":
		return Hybrid
	case said == Push && polled != nil:
		d.problem(polled.at, polled.path, "pattern push asks the source for nothing: set pattern to hybrid, or remove poll")
	case said == Poll && polled == nil, said == Hybrid && polled == nil:
		at, path, _ := v.locate(".poll")
		d.problem(at, path, "missing; pattern %s asks the source: poll: { odata: { … } }, delta or sql", said)
	}
	if said != Poll {
		return said
	}
	for _, key := range []string{"push", "receive", "complete", "deadLetters", "limits", "businessKeys", "mapping"} {
		if k := v.get(key); k != nil {
			d.problem(k.at, k.path, "this is about what is pushed, and nothing is with pattern poll: set pattern to hybrid, or remove the key")
		}
	}
	return said
}

// pollable are the kinds whose rows have a form of their own.
var pollable = []string{event.KindDataverse, event.KindFnO, event.KindCustom}

// polled reads how gridfan asks a source: for one table, or for several.
func (d *decoder) polled(f *field, pattern Pattern) []Polled {
	v, at := f.value.get("poll"), "sources."+f.name
	if pattern == Poll { // else the ingress's Validate says so
		if !ingress.ValidName(f.name) {
			d.problem(f.at, f.value.path, "a name is 1 to 63 lower-case letters, digits and dashes, and begins with a letter or digit")
		}
		if f.value.get("kind") == nil && !d.troubled(f.value.path+".kind") {
			here, path, _ := f.value.locate(".kind")
			d.problem(here, path, "missing; want %s", either(pollable))
		}
	}
	kind := d.text(f.value.get("kind"))
	if k := f.value.get("kind"); k != nil && kind != "" && !slices.Contains(pollable, kind) && (pattern == Poll || normalise.Known(kind)) {
		d.problem(k.at, k.path, "want %s for a source that is polled, got %q", either(pollable), kind)
	}
	if v == nil || v.kind != list {
		p := d.table(f, v, pattern, at+".poll")
		p.Only, p.First = true, true
		return []Polled{p}
	}
	var all []Polled
	for i, item := range d.items(v) {
		p := d.table(f, item, pattern, fmt.Sprintf("%s.poll[%d]", at, i))
		if j := slices.IndexFunc(all, func(o Polled) bool { return o.Table == p.Table && p.Table != "" }); j >= 0 {
			d.problem(item.at, item.path, "poll[%d] reads %s as well: name each table once; a filter can hold several conditions", j, p.Table)
		}
		p.Only, p.First = len(v.items) == 1, i == 0
		all = append(all, p)
	}
	return all
}

// table reads how gridfan asks for one table, which stands at path.
func (d *decoder) table(f *field, v *value, pattern Pattern, path string) Polled {
	p := Polled{Pattern: pattern, Rationale: d.text(f.value.get("rationale")), Config: poll.Config{
		Name:        f.name,
		Kind:        d.text(f.value.get("kind")),
		Environment: d.text(f.value.get("environment")),
		Tolerance:   d.duration(v.get("tolerance")).Std(),
		RetryMax:    d.duration(v.get("retry", "max")).Std(),
		Timeout:     d.duration(v.get("timeout")).Std(),
		Pages:       d.integer(v.get("pages")),
		Budget:      d.rate(v.get("budget")),
		Baseline:    poll.Baseline(d.choice(v.get("baseline"))),
	}}
	if every := v.get("every"); every != nil && every.kind == mapping {
		p.Every = poll.Every{Min: d.duration(every.get("min")).Std(), Max: d.duration(every.get("max")).Std()}
	} else if every != nil {
		fixed := d.duration(every).Std()
		p.Every = poll.Every{Min: fixed, Max: fixed}
	}
	for _, w := range d.items(v.get("windows")) {
		// In its place even if unreadable: Validate counts them.
		p.Windows = append(p.Windows, poll.Window{
			Start: d.text(w.get("start")), For: d.duration(w.get("for")).Std(), Zone: d.text(w.get("zone")),
		})
	}
	d.ways(v, &p, path)
	p.Table = p.name()
	d.validated(p.Validate(path), f.value, "sources."+f.name)
	return p
}

// name is what the table is called among those of its source. Its checkpoint is kept
// by that, so it depends on nothing but what is read.
func (p *Polled) name() string {
	switch {
	case p.OData != nil && p.OData.Table != "":
		return p.OData.Table
	case p.OData != nil:
		return p.OData.Entity
	case p.Delta != nil:
		return p.Delta.Table
	case p.SQL != nil && p.SQL.Table.Schema != p.SQL.Driver.Schema():
		return p.SQL.Table.Schema + "." + p.SQL.Table.Name
	case p.SQL != nil:
		return p.SQL.Table.Name
	}
	return ""
}

func either(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// Every words the time between two polls.
func (r *Reading) Every() string {
	if r.Min == r.Max {
		return fmt.Sprint(r.Min)
	}
	return fmt.Sprintf("%s to %s", r.Min, r.Max)
}
