package jq

import (
	"context"
	"encoding/json"
	"math"
	"math/big"
	"time"

	"github.com/itchyny/gojq"
)

// budget bounds one run of a program. It is the run's context, because gojq
// asks its context before every instruction, and counts those questions; and it
// is the value of a variable, so that the guards below can charge it. It serves
// one goroutine.
type budget struct {
	left  int
	depth int // how deep a value may be; 0 means any depth
}

const (
	// bytesPerStep is how much text a native function handles in the time of
	// an instruction, at the least.
	bytesPerStep = 4
	// maxDigits of a number: reading one takes time that grows with the square
	// of its length.
	maxDigits = 1024
)

// closed says "stop" to gojq.
var closed = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// Done implements [context.Context].
func (b *budget) Done() <-chan struct{} {
	if b.left--; b.left <= 0 {
		return closed
	}
	return nil
}

// Deadline implements [context.Context].
func (*budget) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value implements [context.Context].
func (*budget) Value(any) any { return nil }

// Err implements [context.Context].
func (b *budget) Err() error {
	if b.left <= 0 {
		return context.DeadlineExceeded
	}
	return nil
}

// spend takes n steps.
func (b *budget) spend(n int) error {
	if n < 0 || n >= b.left { // below 0: it was more than an int holds
		b.left = 0
		return sandboxError("the budget is spent")
	}
	b.left -= n
	return nil
}

// sandboxError is an error of ours inside gojq; it quotes no payload.
type sandboxError string

func (e sandboxError) Error() string { return string(e) }

const longNumber = "a number of more than 1024 digits"

// deep charges for a function that looks through all of v. gojq's values are
// shared: 40 times [., .] is small in memory and without end to look through.
func (b *budget) deep(v any) error { return b.within(v, 1) }

func (b *budget) within(v any, depth int) error {
	switch v := v.(type) {
	case string:
		return b.spend(len(v) / bytesPerStep)
	case json.Number:
		if len(v) > maxDigits {
			return sandboxError(longNumber)
		}
		return b.spend(len(v) / bytesPerStep)
	case *big.Int:
		if v.BitLen() > maxDigits*4 {
			return sandboxError(longNumber)
		}
		return nil
	case []any:
		if err := b.enter(len(v), depth); err != nil {
			return err
		}
		for _, v := range v {
			if err := b.within(v, depth+1); err != nil {
				return err
			}
		}
	case map[string]any:
		if err := b.enter(len(v), depth); err != nil {
			return err
		}
		for k, v := range v {
			if err := b.spend(len(k) / bytesPerStep); err != nil {
				return err
			}
			if err := b.within(v, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// enter charges for the members of a container.
func (b *budget) enter(members, depth int) error {
	if b.depth > 0 && depth > b.depth {
		return sandboxError("a value is nested too deep")
	}
	return b.spend(members)
}

// flat charges for a function that looks at the next level only.
func (b *budget) flat(v any) error {
	switch v := v.(type) {
	case []any:
		return b.spend(len(v))
	case map[string]any:
		return b.spend(len(v))
	}
	return b.deep(v)
}

// number wants one.
func (b *budget) number(v any) error {
	switch v.(type) {
	case int, float64, *big.Int, json.Number:
		return b.deep(v)
	}
	return sandboxError("want a number, got " + gojq.TypeOf(v))
}

// bound wants a number, or null for none.
func (b *budget) bound(v any) error {
	if v == nil {
		return nil
	}
	return b.number(v)
}

// text wants a string.
func (b *budget) text(v any) error {
	if _, ok := v.(string); !ok {
		return sandboxError("want a string, got " + gojq.TypeOf(v))
	}
	return b.deep(v)
}

// short wants no string of more than maxDigits.
func (b *budget) short(v any) error {
	if s, ok := v.(string); ok && len(s) > maxDigits {
		return sandboxError("the text is no number or boolean")
	}
	return b.deep(v)
}

// key wants the name of a member or the index of an element. jq also takes an
// array, and searches for it wherever it may begin.
func (b *budget) key(v any) error {
	if _, ok := v.([]any); ok {
		return sandboxError("want a name or a number in [ ], got array")
	}
	return b.deep(v)
}

// sample is how many elements of an array are copied in the time of a step.
const sample = 16

// along charges for storing something at a path in root: for the containers on
// the way, which may have to be copied, and for the elements that an index
// beyond the end would make.
func (b *budget) along(path, root any) error {
	keys, ok := path.([]any)
	if !ok {
		return sandboxError("want a path, got " + gojq.TypeOf(path))
	}
	if err := b.enter(len(keys), len(keys)); err != nil {
		return err
	}
	at := root
	for _, key := range keys {
		if err := b.deep(key); err != nil {
			return err
		}
		var next any
		switch v := at.(type) {
		case map[string]any:
			if err := b.spend(len(v) / 2); err != nil {
				return err
			}
			if name, ok := key.(string); ok {
				next = v[name]
			}
		case []any:
			if err := b.spend(len(v) / sample); err != nil {
				return err
			}
			i, isIndex := gojq.ToInt(key)
			if i < 0 {
				i += len(v)
			}
			if isIndex && i >= 0 && i < len(v) {
				next = v[i]
			}
		}
		if i, ok := gojq.ToInt(key); ok && i > 0 {
			have, _ := at.([]any)
			if err := b.spend(max(0, i-len(have))); err != nil {
				return err
			}
		}
		at = next
	}
	return nil
}

// pair charges for l op r where the time is no sum of what each side takes.
func (b *budget) pair(l, r any, op string) error {
	before := b.left
	if err := b.deep(l); err != nil {
		return err
	}
	left := before - b.left
	if err := b.deep(r); err != nil {
		return err
	}
	if op == "-" {
		if all, ok := l.([]any); ok {
			without, _ := r.([]any)
			// Each with each; one that is compared is looked through.
			return b.spend(times(len(all)+left, len(without)))
		}
		return nil
	}
	s, ok := l.(string)
	n := r
	if !ok {
		if s, ok = r.(string); !ok {
			return nil
		}
		n = l
	}
	f, ok := gojq.ToFloat64(n)
	if !ok || !(f > 0) {
		return nil
	}
	// A text as often as a number says.
	if f = float64(len(s)) * f / bytesPerStep; f > math.MaxInt32 {
		return b.spend(math.MaxInt32)
	}
	return b.spend(int(f))
}

func times(a, b int) int {
	if a > math.MaxInt32 || b > math.MaxInt32 {
		return -1
	}
	return a * b
}

// match charges for a pattern of size instructions on a text.
func (b *budget) match(v any, size int, all matching) error {
	s, ok := v.(string)
	if !ok {
		return sandboxError("want a string, got " + gojq.TypeOf(v))
	}
	steps := 8 + len(s)*size/bytesPerStep
	switch all {
	case oneMatch:
	case plainMatches:
		steps += len(s) * stepsPerMatch
	case allMatches:
		// Every match may look at all the text that is left.
		steps += len(s) * len(s) / 64 * size
	}
	return b.spend(steps)
}

// matching says how much of a text a pattern is looked for in.
type matching int

const (
	oneMatch     matching = iota
	plainMatches          // all of them, and none looks at more than it takes
	allMatches
)

// stepsPerMatch are what describing a match takes in time and room.
const stepsPerMatch = 32

// Names of the guards. A guard gives back its input, or an error. No expression
// can name them: restrict lets only known functions pass.
const (
	guardDeep   = "gridfan_deep"   // charges for all that is inside
	guardFlat   = "gridfan_flat"   // charges for the next level only
	guardNumber = "gridfan_number" // wants a number
	guardBound  = "gridfan_bound"  // wants a number or null
	guardText   = "gridfan_text"   // wants a string
	guardShort  = "gridfan_short"  // wants no string of more than maxDigits
	guardKey    = "gridfan_key"    // wants no array
	guardMatch  = "gridfan_match"  // charges for a pattern; see match
	guardAlong  = "gridfan_along"  // charges for a path; see along
	guardPair   = "gridfan_pair"   // charges for an operator; see pair

	callFail = "gridfan_fail" // no guard: it fails with its argument

	budgetVariable = "$gridfan"
	// Variables of rewritten expressions.
	rootVariable    = "$gridfan_root"
	operandVariable = "$gridfan_operand"
)

// guards gives the options that the guards need. There is no loader of
// environment, modules or input among them, and gojq has none by itself.
func guards(variables []string) []gojq.CompilerOption {
	guard := func(name string, args int, f func(b *budget, v any, args []any) error) gojq.CompilerOption {
		return gojq.WithFunction(name, args+1, args+1, func(v any, args []any) any {
			b, ok := args[0].(*budget)
			if !ok {
				return sandboxError("the budget is missing")
			}
			if err := f(b, v, args[1:]); err != nil {
				return err
			}
			return v
		})
	}
	simple := func(name string, f func(b *budget, v any) error) gojq.CompilerOption {
		return guard(name, 0, func(b *budget, v any, _ []any) error { return f(b, v) })
	}
	return []gojq.CompilerOption{
		gojq.WithVariables(append([]string{budgetVariable}, variables...)),
		simple(guardDeep, (*budget).deep),
		simple(guardFlat, (*budget).flat),
		simple(guardNumber, (*budget).number),
		simple(guardBound, (*budget).bound),
		simple(guardText, (*budget).text),
		simple(guardShort, (*budget).short),
		simple(guardKey, (*budget).key),
		guard(guardMatch, 2, func(b *budget, v any, args []any) error {
			size, _ := args[0].(int)
			all, _ := args[1].(int)
			return b.match(v, size, matching(all))
		}),
		guard(guardAlong, 1, func(b *budget, v any, args []any) error { return b.along(v, args[0]) }),
		guard(callFail, 1, func(_ *budget, _ any, args []any) error {
			text, _ := args[0].(string)
			return sandboxError(text)
		}),
		guard(guardPair, 2, func(b *budget, v any, args []any) error {
			op, _ := args[1].(string)
			return b.pair(v, args[0], op)
		}),
	}
}
