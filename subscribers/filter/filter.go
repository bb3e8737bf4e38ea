// Package filter decides by a CEL expression whether a subscriber wants an event.
//
//	event.data.PurchaseOrderAmount > 1000
//	event.legalentity in ["usmf", "demf"] && event.type.startsWith("PurchaseOrder")
//	has(event.data.Vendor) && event.data.lines.exists(l, l.qty > 5.5)
//	event.data.?Priority.orValue("low") == "high"
//	event.time > timestamp("2026-01-01T00:00:00Z")
//
// The one variable is event: its CloudEvents attributes by name (event.time is a
// timestamp), its extensions (event.legalentity, event.action…), and event.data.
// An attribute that is not set is absent, and reading what is absent is an error:
// guard it with has(event.subject) or take a default by
// event.?subject.orValue(""). The same holds for members of data. JSON null is
// null, and there: has is true of it.
//
// # Data
//
// Data in JSON are read where the expression looks, and no further; an expression
// about attributes costs the same whatever the data. Whole JSON numbers are int,
// those beyond 64 bits with a sign uint, those beyond and with a point or an
// exponent double; comparisons work across the three, so that x > 1000 and
// x > 1000.0 mean the same. Data that are not JSON are a string if they are text,
// else bytes. Where the schema of the data is known (see Schema), names and types
// are checked when the filter is compiled; elsewhere they are dynamic.
//
// # Limits
//
// Filters are configuration, data come from strangers. An expression has at most
// 4,096 bytes, at most 4 loops in each other, and an estimated cost below the limit. A
// run that comes to more than that limit ends as an error. Values that an
// expression builds hold nothing but scalars and parts of the event, so that they
// cannot grow by sharing. Regular expressions (RE2) have a limit of their own.
// Functions whose result may be many times what they read (replace, join, format)
// are not available.
package filter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/gridfan/gridfan/schemas/event"
)

const (
	// maxExpression is how long an expression may be, in bytes.
	maxExpression = 4096
	// maxCost bounds a run, in CEL's units: 100 to 400 ns each (measured
	// 2026-11), so some 50 ms. A loop takes about ten for each element.
	maxCost = 250_000
	// maxEstimate bounds what an expression may cost with lists and texts of the
	// usual size (see sizes), at the worst.
	maxEstimate = 1_000_000
	// deadline is for what costs more time than CEL believes. Far beyond what
	// maxCost allows: a busy machine must not change what a filter says.
	deadline = 30 * time.Second
)

// Filter is a compiled expression. It is immutable and safe for concurrent use.
type Filter struct {
	program cel.Program
	source  *checked
	loops   bool
	notes   []string
}

// Compile checks an expression and makes it ready to run. Where schemas are
// given, the data follow one of them, and what none of them knows is an error.
// Errors name line and column.
func Compile(expr string, schemas ...*Schema) (*Filter, error) {
	var first error
	var found *Filter
	if len(schemas) == 0 {
		schemas = []*Schema{nil}
	}
	for _, s := range schemas {
		f, err := compile(expr, s)
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		if found == nil {
			found = f
		}
	}
	if found == nil {
		return nil, first
	}
	return found, nil
}

func compile(expr string, s *Schema) (*Filter, error) {
	if len(expr) > maxExpression {
		return nil, fmt.Errorf("the expression has %d bytes; at most %d are allowed", len(expr), maxExpression)
	}
	env, err := environment(s)
	if err != nil {
		return nil, err
	}
	c, err := check(env, expr, s)
	if err != nil {
		return nil, err
	}
	program, err := env.Program(c.ast, programOptions(c.loops)...)
	if err != nil {
		return nil, c.explain(err)
	}
	return &Filter{program: program, source: c, loops: c.loops, notes: c.notes}, nil
}

// Notes are what looks like a mistake but need not be one.
func (f *Filter) Notes() []string { return f.notes }

// Match says whether e passes the filter. The error says where in the expression
// it arose, and quotes nothing of the event.
func (f *Filter) Match(e *event.Event) (bool, error) {
	v := &view{event: e}
	if !f.loops {
		out, _, err := f.program.Eval(v)
		return f.result(out, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	out, _, err := f.program.ContextEval(ctx, v)
	return f.result(out, err)
}

func (f *Filter) result(out any, err error) (bool, error) {
	if err != nil {
		return false, f.source.runtime(err)
	}
	b, ok := out.(types.Bool)
	if !ok {
		return false, errors.New("the result is not true or false")
	}
	return bool(b), nil
}
