// Package jq evaluates jq expressions that are configuration on JSON that comes
// from strangers. gojq does the evaluating; this package puts it into a sandbox,
// and is the only one that calls it.
//
// An expression sees its input and the variables of its dialect and nothing
// else: no environment, file, module, clock or time zone. Every run has a budget
// of steps that grows with the input. Every instruction costs one, and before a
// function that looks through a value, the size of that value is charged. Steps
// are counted and time is not, because the same input must give the same result
// on a busy machine too. What would take more room or time than the guards can
// know of is refused when the expression is compiled.
//
// There are two dialects. A Mapping names an attribute: it has no loops and
// keeps to a few dozen functions (see schemas/custom). A Transform is a whole
// program (see subscribers/transform).
//
// # How it is done
//
// The guards are functions of ours that are put into the expression's syntax
// tree wherever a value passes into something native. They give back their input,
// or an error. An assignment is rewritten so that each path and each new value
// passes one too. The budget is also the run's context, which gojq asks before
// every instruction.
package jq

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/itchyny/gojq"

	"github.com/gridfan/gridfan/schemas/event"
)

// Dialect is what an expression may say and take.
type Dialect struct {
	place      string // as messages call it
	expression int    // how long an expression may be, in bytes
	rules      map[string]rule
	full       bool // with definitions, loops and assignments
	variables  []string

	steps        int // of every run
	stepsPerByte int // of input, besides
	sizeLimit    int // the largest input that counts; 0 means any
	depth        int // of values that functions look through; 0 means any
}

// Mapping is the dialect of expressions that give one attribute.
var Mapping = &Dialect{
	place: "a mapping",
	rules: basic,
	// Real ones have a line; the sandbox's arithmetic relies on there being an
	// end.
	expression: 1024,
	// Some 10 ms of gojq on an idle core (35 ns a step, measured 2026-11); an
	// expression of a line takes a few hundred.
	steps: 1 << 18,
	// To look at every element of a body: to choose one by two members takes
	// some hundred, and few have less than ten bytes.
	stepsPerByte: 16,
}

// Transform is the dialect of programs that make new data. Besides the input,
// they have the variable $event.
var Transform = &Dialect{
	place:      "a transform",
	rules:      full,
	full:       true,
	variables:  []string{"$event"},
	expression: 4096,
	// Some 20 ms.
	steps: 1 << 19,
	// To build a new element from one of a hundred bytes takes a few hundred.
	stepsPerByte: 8,
	// A transform can store 100 bytes in a step at the worst. This keeps it
	// below 1 GiB, and 0.4 s, for the largest of events.
	sizeLimit: 1 << 20,
	// gojq compares, merges and writes values by recursion.
	depth: 1000,
}

// Query is an expression that was read and not yet checked.
type Query struct {
	dialect *Dialect
	q       *gojq.Query
}

// Parse reads an expression.
func (d *Dialect) Parse(text string) (*Query, error) {
	trimmed := strings.TrimSpace(text)
	switch {
	case trimmed == "":
		return nil, errors.New("the expression is empty")
	case len(text) > d.expression:
		return nil, fmt.Errorf("the expression has %d bytes; at most %d are allowed", len(text), d.expression)
	case trimmed == "$" || strings.HasPrefix(trimmed, "$.") || strings.HasPrefix(trimmed, "$["):
		path := trimmed[1:]
		if !strings.HasPrefix(path, ".") {
			path = "." + path
		}
		return nil, fmt.Errorf("%.64q is JSONPath; jq's path has no $: write %.64s", trimmed, path)
	}
	q, err := gojq.Parse(text)
	if err != nil {
		if e, ok := errors.AsType[*gojq.ParseError](err); ok {
			return nil, fmt.Errorf("not jq: %v, near byte %d", e, e.Offset)
		}
		return nil, fmt.Errorf("not jq: %v", err)
	}
	return &Query{d, q}, nil
}

// Path gives the steps of an expression that only leads to members and
// elements. Such a one need not be evaluated by gojq, whose numbers do not keep
// their bytes.
func (q *Query) Path() ([]Step, bool) { return plainPath(q.q) }

// GivesPaths says whether all results of an expression are places in its input,
// as those of .items[] | select(.x) are and those of {x} are not. It errs on
// the side of no.
func (q *Query) GivesPaths() bool { return givesPaths(q.q) }

// Results is in which form a program gives its results.
type Results int

// The forms of results.
const (
	Texts  Results = iota // values that the caller only looks at from outside
	Values                // values that the caller looks through, charged for
	Paths                 // where in the input they are, as arrays of names and indices
)

// Program is a compiled expression. It is immutable and safe for concurrent use.
type Program struct {
	dialect *Dialect
	code    *gojq.Code
	used    map[string]bool
}

// Compile checks an expression and makes it ready to run. q is not used again.
func (q *Query) Compile(form Results) (*Program, error) {
	r := &restrictor{dialect: q.dialect, used: map[string]bool{}}
	if err := r.restrict(q.q); err != nil {
		return nil, err
	}
	whole := q.q
	switch form {
	case Paths:
		whole = &gojq.Query{Term: function("path", q.q)}
	case Values:
		whole = guarded(q.q, guardDeep)
	}
	preamble, err := r.preamble()
	if err != nil {
		return nil, err
	}
	if preamble != nil {
		whole = parenthesised(whole)
		whole.FuncDefs = preamble
	}
	code, err := gojq.Compile(whole, guards(q.dialect.variables)...)
	if err != nil {
		return nil, err
	}
	return &Program{q.dialect, code, r.used}, nil
}

// Uses says whether the program names a variable, as in "$event".
func (p *Program) Uses(variable string) bool { return p.used[variable] }

// OverBudget is the detail of the fault of a run that was ended.
const OverBudget = "the expression needs more steps than its budget for this body"

const interpreterFailed = "the jq interpreter failed on this expression; write it in another way"

// Run evaluates the program on v, which size bytes of JSON were decoded to, and
// hands every result to yield until that has a fault. variables are those of the
// dialect, in order. It changes nothing in v.
func (p *Program) Run(v any, size int, yield func(any) *event.Fault, variables ...any) (f *event.Fault) {
	defer func() {
		// gojq panics on states it believes impossible. A stranger's body must
		// not bring the router down if one is not.
		if recover() != nil {
			f = event.Faultf(event.FaultInvalid, "%s", interpreterFailed)
		}
	}()
	if limit := p.dialect.sizeLimit; limit > 0 {
		size = min(size, limit)
	}
	b := &budget{left: p.dialect.steps + p.dialect.stepsPerByte*size, depth: p.dialect.depth}
	results := p.code.RunWithContext(b, v, append([]any{b}, variables...)...)
	for {
		v, ok := results.Next()
		if b.left <= 0 {
			return event.Faultf(event.FaultInvalid, "%s", OverBudget)
		}
		if !ok {
			return nil
		}
		if err, failed := v.(error); failed {
			return event.Faultf(event.FaultType, "the expression fails: %s", withoutPayload(err))
		}
		if f := yield(v); f != nil {
			return f
		}
	}
}

// withoutPayload gives gojq's message up to the place where it quotes a value,
// which may be confidential.
func withoutPayload(err error) string {
	if e, ok := errors.AsType[sandboxError](err); ok {
		return e.Error()
	}
	msg := err.Error()
	if i := strings.IndexAny(msg, "\"([{-0123456789"); i >= 0 {
		msg = msg[:i]
	}
	if msg = strings.TrimRight(msg, " :"); msg == "" {
		return "a function refuses its input"
	}
	return msg
}

// Decode reads a JSON value for Run. Numbers stay as they are written. A member
// that stands twice with different values is a fault.
func Decode(raw []byte) (any, *event.Fault) {
	d := jsontext.NewDecoder(bytes.NewBuffer(raw), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	v, err := decodeValue(d)
	if f, ok := errors.AsType[*event.Fault](err); ok {
		return nil, f
	}
	if err != nil {
		return nil, event.Faultf(event.FaultNotJSON, "not JSON")
	}
	return v, nil
}

func decodeValue(d *jsontext.Decoder) (any, error) {
	tok, err := d.ReadToken()
	if err != nil {
		return nil, err
	}
	switch tok.Kind() {
	case 'n':
		return nil, nil
	case 't', 'f':
		return tok.Bool(), nil
	case '"':
		return tok.String(), nil
	case '0':
		return json.Number(tok.String()), nil
	case '[':
		list := []any{}
		for d.PeekKind() != ']' {
			v, err := decodeValue(d)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.ReadToken()
		return list, err
	}
	object := map[string]any{}
	for d.PeekKind() == '"' {
		name, err := d.ReadToken()
		if err != nil {
			return nil, err
		}
		key := name.String()
		v, err := decodeValue(d)
		if err != nil {
			return nil, err
		}
		if before, twice := object[key]; twice && !equal(before, v) {
			return nil, TwoValues(key)
		}
		object[key] = v
	}
	_, err = d.ReadToken()
	return object, err
}

// TwoValues is the fault of an object with two members of one name that differ.
func TwoValues(name string) *event.Fault {
	if len(name) > 64 {
		name = strings.ToValidUTF8(name[:64], "") + "…"
	}
	return event.Faultf(event.FaultAmbiguous, "member %q stands twice with different values", name)
}

// equal compares what decode makes. Numbers are equal when written alike.
func equal(a, b any) bool {
	switch a := a.(type) {
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, equal)
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for k, v := range a {
			if w, ok := b[k]; !ok || !equal(v, w) {
				return false
			}
		}
		return true
	}
	switch b.(type) {
	case []any, map[string]any:
		return false
	}
	return a == b
}

// Marshal writes a value that Run gave, compactly and with sorted members.
// Numbers stay as they are written, unless they were reckoned with.
func Marshal(v any) ([]byte, error) { return gojq.Marshal(v) }

// Text gives the text of a scalar that Run gave, empty for null; ok is false for
// arrays and objects.
func Text(v any) (text string, ok bool, f *event.Fault) {
	switch v := v.(type) {
	case nil:
		return "", true, nil
	case string:
		return v, true, nil
	case bool, int, json.Number:
		return fmt.Sprint(v), true, nil
	case *big.Int:
		if v.BitLen() > maxDigits*4 {
			return "", true, event.Faultf(event.FaultInvalid, "the result is %s", longNumber)
		}
		return v.String(), true, nil
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return "", true, event.Faultf(event.FaultInvalid, "the result is not a finite number")
		}
		text, err := gojq.Marshal(v)
		if err != nil {
			return "", true, event.Faultf(event.FaultInvalid, "the result cannot be written")
		}
		return string(text), true, nil
	}
	return "", false, nil
}
