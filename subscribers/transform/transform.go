// Package transform makes new data of an event by a jq program.
//
//	{order: .PurchaseOrderId, amount: .PurchaseOrderAmount, company: $event.legalentity}
//	.lines |= map(select(.qty > 0) | {item, qty})
//	del(.InitiatingUserAADObjectId)
//
// The input is the event's data, and $event its attributes as an object (id,
// source, type, subject, time as RFC 3339, extensions such as legalentity; an
// attribute that is not set is null). The one output is the new data. All
// attributes stay as they are, so that the event keeps its identity, except two:
// datacontenttype becomes application/json, and dataschema goes, because the data
// no longer follow it. No output, or more than one, is an error.
//
// Data that are not JSON come in as a text if they are one, and are an error
// otherwise; without data the input is null.
//
// Numbers that are only moved keep every digit, of 64 bits or of 640, 1.10 as
// 1.10. Arithmetic is exact on whole numbers up to 1,024 digits; as soon as a
// number with a point or an exponent takes part, it is done in float64. The new
// data are written compactly, members sorted by name.
//
// # Sandbox
//
// Programs are configuration, data come from strangers. A program sees the event
// and nothing else (no environment, file, clock, module or further input), and has
// a budget of steps that grows with the data; see package jq. Loops that do not
// end, and results that explode, end as an error after some 20 ms, and half a
// second with the largest of events. What there is besides the language itself
// (paths, | , // ? and or not + - * / % comparisons, = |= += -= *= /= %= //=, if,
// try, as, reduce, foreach, label, def, [ ], { }, "\(…)", @base64 @base64d @csv
// @html @json @sh @text @tsv @uri @urid):
//
//	abs add all any arrays ascii_downcase ascii_upcase booleans capture ceil
//	contains del delpaths empty endswith error exp explode first flatten floor
//	from_entries fromdate fromdateiso8601 fromjson getpath gmtime group_by gsub
//	has implode isempty iterables join keys last length limit log log10 log2
//	ltrim ltrimstr map map_values match max max_by min min_by mktime not nth
//	nulls numbers objects path paths pick pow range recurse repeat reverse round
//	rtrim rtrimstr scalars scan select setpath skip sort sort_by split splits
//	sqrt startswith strftime strings strptime sub test to_entries toboolean
//	todate todateiso8601 tojson tonumber tostring trim trimstr trunc type unique
//	unique_by until utf8bytelength values walk while with_entries
//
// contains is about text only. capture, error, gsub, join, match, scan, splits,
// split with flags, strftime, strptime, sub and test take their pattern, text,
// separator or format as a literal string.
package transform

import (
	"encoding/json"
	"errors"
	"unicode/utf8"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/jq"
)

// MaxData is how large new data may be, in bytes: what an event can have come
// with.
const MaxData = 4 << 20

// Transform is a compiled program. It is immutable and safe for concurrent use.
type Transform struct {
	program *jq.Program
	event   bool // it names $event
}

// Compile checks a program and makes it ready to run. What fails whatever the
// data is an error here.
func Compile(expr string) (*Transform, error) {
	q, err := jq.Transform.Parse(expr)
	if err != nil {
		return nil, err
	}
	// The results are looked through when they are written.
	p, err := q.Compile(jq.Values)
	if err != nil {
		return nil, err
	}
	t := &Transform{program: p, event: p.Uses("$event")}
	return t, t.probe()
}

// probe runs the program on values of every kind that data can lack a member in.
// What fails on all of them in a way that no other data can mend is a mistake in
// the program.
func (t *Transform) probe() error {
	var last *event.Fault
	for _, data := range []string{"null", "{}", "[]", `""`} {
		_, f := t.apply(&event.Event{ID: "id", Source: "/source", Type: "type", Data: []byte(data), DataJSON: true})
		if f == nil || f.Code == event.FaultType {
			return nil
		}
		last = f
	}
	return errors.New(last.Detail)
}

// Apply gives a copy of e with new data. e stays as it is. The error quotes
// nothing of the event.
func (t *Transform) Apply(e *event.Event) (*event.Event, error) {
	data, f := t.apply(e)
	if f != nil {
		return nil, errors.New(f.Detail)
	}
	c := e.Clone()
	c.Data, c.DataJSON = data, true
	c.DataContentType, c.DataSchema = "application/json", ""
	return c, nil
}

func (t *Transform) apply(e *event.Event) ([]byte, *event.Fault) {
	input, f := decode(e)
	if f != nil {
		return nil, f
	}
	var about any
	if t.event {
		about = attributes(e)
	}
	var data []byte
	n := 0
	f = t.program.Run(input, len(e.Data), func(v any) *event.Fault {
		if n++; n > 1 {
			return event.Faultf(event.FaultAmbiguous, "the transform gives more than one result; collect them with [ … ], or take one with first(…)")
		}
		var f *event.Fault
		data, f = jq.Append(nil, v, MaxData)
		return f
	}, about)
	if f == nil && n == 0 {
		f = event.Faultf(event.FaultInvalid, "the transform gives no result; give null for no data, and leave events out with a filter")
	}
	return data, f
}

// decode gives the data as a program sees them.
func decode(e *event.Event) (any, *event.Fault) {
	switch {
	case e.Data == nil:
		return nil, nil
	case e.DataJSON:
		return jq.Decode(e.Data)
	case utf8.Valid(e.Data):
		return string(e.Data), nil
	}
	return nil, event.Faultf(event.FaultType, "the data are neither JSON nor text (datacontenttype %.64q)", e.DataContentType)
}

// attributes gives e's attributes as a program sees them in $event.
func attributes(e *event.Event) map[string]any {
	m := make(map[string]any, 8+len(e.Extensions))
	for _, a := range []struct{ name, value string }{
		{"specversion", event.SpecVersion}, {"id", e.ID}, {"source", e.Source}, {"type", e.Type}, {"subject", e.Subject},
		{"datacontenttype", e.DataContentType}, {"dataschema", e.DataSchema},
	} {
		if a.value != "" {
			m[a.name] = a.value
		}
	}
	if !e.Time.IsZero() {
		m["time"] = event.FormatTime(e.Time)
	}
	for _, x := range e.Extensions {
		switch x.Type {
		case event.Integer:
			m[x.Name] = json.Number(x.Value)
		case event.Boolean:
			m[x.Name] = x.Value == "true"
		default:
			m[x.Name] = x.Value
		}
	}
	return m
}
