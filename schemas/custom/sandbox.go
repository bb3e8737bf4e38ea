package custom

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"
	"time"

	"github.com/itchyny/gojq"
)

// budget bounds one run of an expression. It is the run's context, because gojq
// asks its context before every instruction, and counts those questions; and it
// is the value of a variable, so that the guards below can charge it. It serves
// one goroutine.
type budget struct{ left int }

const (
	// baseSteps are some 10 ms of gojq on an idle core (35 ns a step, measured
	// 2026-11); an expression of a line takes a few hundred.
	baseSteps = 1 << 18
	// stepsPerByte let an expression look at every element of a body: to choose
	// one by two members takes some hundred, and few have less than ten bytes.
	stepsPerByte = 16
	// bytesPerStep is how much text a native function handles in the time of
	// an instruction, at the least.
	bytesPerStep = 4
	// maxDigits of a number: reading one takes time that grows with the square
	// of its length.
	maxDigits = 1024
	// maxProgram is how many instructions a pattern may compile to; those of
	// real ones have a few dozen.
	maxProgram = 1000
)

func newBudget(size int) *budget { return &budget{left: baseSteps + stepsPerByte*size} }

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
	if n >= b.left {
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
func (b *budget) deep(v any) error {
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
	case []any:
		if err := b.spend(len(v)); err != nil {
			return err
		}
		for _, v := range v {
			if err := b.deep(v); err != nil {
				return err
			}
		}
	case map[string]any:
		if err := b.spend(len(v)); err != nil {
			return err
		}
		for k, v := range v {
			if err := b.spend(len(k) / bytesPerStep); err != nil {
				return err
			}
			if err := b.deep(v); err != nil {
				return err
			}
		}
	}
	return nil
}

// Names of the guards. A guard gives back its input, or an error. No expression
// can name them: restrict lets only known functions pass.
const (
	guardDeep   = "gridfan_deep"   // charges for all that is inside
	guardFlat   = "gridfan_flat"   // charges for the next level only
	guardNumber = "gridfan_number" // wants a number
	guardText   = "gridfan_text"   // wants a string
	guardShort  = "gridfan_short"  // wants no string of more than maxDigits
	guardMatch  = "gridfan_match"  // charges for a pattern; see pattern

	budgetVariable = "$gridfan"
)

// sandbox gives the options that the guards need. There is no loader of
// environment, modules or input among them, and gojq has none by itself.
func sandbox() []gojq.CompilerOption {
	guard := func(name string, f func(b *budget, v any) error) gojq.CompilerOption {
		return gojq.WithFunction(name, 1, 1, func(v any, args []any) any {
			b, ok := args[0].(*budget)
			if !ok {
				return sandboxError("the budget is missing")
			}
			if err := f(b, v); err != nil {
				return err
			}
			return v
		})
	}
	return []gojq.CompilerOption{
		gojq.WithVariables([]string{budgetVariable}),
		guard(guardDeep, (*budget).deep),
		guard(guardFlat, func(b *budget, v any) error {
			switch v := v.(type) {
			case []any:
				return b.spend(len(v))
			case map[string]any:
				return b.spend(len(v))
			}
			return b.deep(v)
		}),
		guard(guardNumber, func(b *budget, v any) error {
			switch v.(type) {
			case int, float64, *big.Int, json.Number:
				return b.deep(v)
			}
			return sandboxError("want a number, got " + gojq.TypeOf(v))
		}),
		guard(guardText, func(b *budget, v any) error {
			if _, ok := v.(string); !ok {
				return sandboxError("want a string, got " + gojq.TypeOf(v))
			}
			return b.deep(v)
		}),
		guard(guardShort, func(b *budget, v any) error {
			if s, ok := v.(string); ok && len(s) > maxDigits {
				return sandboxError("the text is no number or boolean")
			}
			return b.deep(v)
		}),
		gojq.WithFunction(guardMatch, 3, 3, func(v any, args []any) any {
			b, ok := args[0].(*budget)
			s, isText := v.(string)
			size, isSize := args[1].(int)
			switch {
			case !ok || !isSize:
				return sandboxError("the budget is missing")
			case !isText:
				return sandboxError("want a string, got " + gojq.TypeOf(v))
			}
			steps := 8 + len(s)*size/bytesPerStep
			if args[2] == true {
				// Every match may look at all the text that is left.
				steps += len(s) * len(s) / 64 * size
			}
			if err := b.spend(steps); err != nil {
				return err
			}
			return v
		}),
	}
}

// function gives the call of a function.
func function(name string, args ...*gojq.Query) *gojq.Term {
	return &gojq.Term{Type: gojq.TermTypeFunc, Func: &gojq.Func{Name: name, Args: args}}
}

// call gives the call of a guard.
func call(guard string, args ...*gojq.Query) *gojq.Query {
	return &gojq.Query{Term: function(guard, append([]*gojq.Query{{Term: function(budgetVariable)}}, args...)...)}
}

// guarded gives (q | guard).
func guarded(q *gojq.Query, guard string, args ...*gojq.Query) *gojq.Query {
	return &gojq.Query{Term: &gojq.Term{Type: gojq.TermTypeQuery, Query: &gojq.Query{
		Left: &gojq.Query{Term: &gojq.Term{Type: gojq.TermTypeQuery, Query: q}}, Op: gojq.OpPipe, Right: call(guard, args...),
	}}}
}

// A rule is how a function may be called: the guard its input passes first, and
// for each argument a letter:
//
//	f  a filter, which the function evaluates as often as it likes
//	v  a value
//	t  a value that is a string
//	s  a literal string
//	r  a literal string that is a regular expression
//	R  the same, for all matches
//	o  a literal string of a regular expression's flags, without g
type rule struct{ in, args string }

// rules are the functions there are, by name and number of arguments. Missing
// are those that generate, that look outside, whose time grows faster than the
// guards charge, and those that nobody needs to name an attribute.
var rules = map[string]rule{
	"add/0":            {guardDeep, ""},
	"all/0":            {guardFlat, ""},
	"all/1":            {guardFlat, "f"},
	"all/2":            {"", "ff"},
	"any/0":            {guardFlat, ""},
	"any/1":            {guardFlat, "f"},
	"any/2":            {"", "ff"},
	"arrays/0":         {"", ""},
	"ascii_downcase/0": {guardDeep, ""},
	"ascii_upcase/0":   {guardDeep, ""},
	"booleans/0":       {"", ""},
	"contains/1":       {guardText, "t"},
	"empty/0":          {"", ""},
	"endswith/1":       {guardDeep, "v"},
	"first/0":          {"", ""},
	"first/1":          {"", "f"},
	"flatten/0":        {guardDeep, ""},
	"fromdate/0":       {guardDeep, ""},
	"fromjson/0":       {guardDeep, ""},
	"has/1":            {"", "v"},
	"isempty/1":        {"", "f"},
	"join/1":           {guardDeep, "s"},
	"keys/0":           {guardFlat, ""},
	"last/0":           {"", ""},
	"last/1":           {"", "f"},
	"length/0":         {guardFlat, ""},
	"ltrim/0":          {guardDeep, ""},
	"ltrimstr/1":       {guardDeep, "v"},
	"map/1":            {guardFlat, "f"},
	"max/0":            {guardDeep, ""},
	"min/0":            {guardDeep, ""},
	"mktime/0":         {guardDeep, ""},
	"not/0":            {"", ""},
	"nulls/0":          {"", ""},
	"numbers/0":        {"", ""},
	"objects/0":        {"", ""},
	"recurse/0":        {guardDeep, ""},
	"reverse/0":        {guardFlat, ""},
	"rtrim/0":          {guardDeep, ""},
	"rtrimstr/1":       {guardDeep, "v"},
	"scalars/0":        {"", ""},
	"select/1":         {"", "f"},
	"sort/0":           {guardDeep, ""},
	"split/1":          {guardDeep, "v"},
	"startswith/1":     {guardDeep, "v"},
	"strftime/1":       {guardDeep, "s"},
	"strings/0":        {"", ""},
	"strptime/1":       {guardDeep, "s"},
	"to_entries/0":     {guardFlat, ""},
	"toboolean/0":      {guardShort, ""},
	"todate/0":         {guardDeep, ""},
	"tojson/0":         {guardDeep, ""},
	"tonumber/0":       {guardShort, ""},
	"tostring/0":       {guardDeep, ""},
	"trim/0":           {guardDeep, ""},
	"trimstr/1":        {guardDeep, "v"},
	"type/0":           {"", ""},
	"unique/0":         {guardDeep, ""},
	"values/0":         {"", ""},

	"abs/0":   {guardNumber, ""},
	"ceil/0":  {guardNumber, ""},
	"floor/0": {guardNumber, ""},
	"round/0": {guardNumber, ""},
	"trunc/0": {guardNumber, ""},

	"gsub/2": {guardMatch, "Rf"},
	"gsub/3": {guardMatch, "Rfo"},
	"sub/2":  {guardMatch, "rf"},
	"sub/3":  {guardMatch, "rfo"},
	"test/1": {guardMatch, "r"},
	"test/2": {guardMatch, "ro"},
}

// restrict refuses what the sandbox does not have, and puts the guards in.
func restrict(q *gojq.Query) error {
	switch {
	case q == nil:
		return nil
	case q.Meta != nil || len(q.Imports) > 0:
		return errors.New("modules are not available in a mapping")
	case len(q.FuncDefs) > 0:
		return fmt.Errorf("def %.64s: definitions are not available in a mapping", q.FuncDefs[0].Name)
	case q.Term != nil:
		return restrictTerm(q.Term)
	case q.Left == nil || q.Right == nil:
		return errors.New("the expression is empty") // but for a comment
	}
	if len(q.Patterns) > 1 {
		return errors.New("?// is not available in a mapping")
	}
	for _, p := range q.Patterns {
		if err := restrictPattern(p); err != nil {
			return err
		}
	}
	if err := restrict(q.Left); err != nil {
		return err
	}
	if err := restrict(q.Right); err != nil {
		return err
	}
	guard := guardDeep
	switch q.Op {
	case gojq.OpPipe, gojq.OpComma, gojq.OpAnd, gojq.OpOr, gojq.OpAlt:
		return nil
	case gojq.OpAdd, gojq.OpDiv, gojq.OpEq, gojq.OpNe, gojq.OpGt, gojq.OpLt, gojq.OpGe, gojq.OpLe:
	case gojq.OpSub, gojq.OpMul, gojq.OpMod:
		// On arrays, texts and objects they take time or room without bound.
		guard = guardNumber
		for _, side := range []*gojq.Query{q.Left, q.Right} {
			if _, ok := literal(side); ok {
				return fmt.Errorf("%s works on numbers only in a mapping", q.Op)
			}
		}
	default:
		return fmt.Errorf("%s: assignments are not available in a mapping", q.Op)
	}
	if !constant(q.Left) {
		q.Left = guarded(q.Left, guard)
	}
	if !constant(q.Right) {
		q.Right = guarded(q.Right, guard)
	}
	return nil
}

// constant says whether q is a text, number, boolean or null that stands in the
// expression itself, and so is short.
func constant(q *gojq.Query) bool {
	if q.Term == nil || len(q.Term.SuffixList) > 0 {
		return false
	}
	switch q.Term.Type {
	case gojq.TermTypeString:
		return q.Term.Str.Queries == nil
	case gojq.TermTypeNumber, gojq.TermTypeTrue, gojq.TermTypeFalse, gojq.TermTypeNull:
		return true
	}
	return false
}

// variable refuses the variables that gojq or the sandbox sets.
func variable(name string) error {
	switch name {
	case "$ENV", "$__loc__", "$__prog_args", budgetVariable:
		return fmt.Errorf("variable %s is not available in a mapping", name)
	}
	return nil
}

func restrictPattern(p *gojq.Pattern) error {
	if err := variable(p.Name); err != nil {
		return err
	}
	for _, p := range p.Array {
		if err := restrictPattern(p); err != nil {
			return err
		}
	}
	for _, o := range p.Object {
		if o.KeyQuery != nil || o.KeyString != nil && o.KeyString.Queries != nil {
			return errors.New("a computed name in a pattern is not available in a mapping")
		}
		if err := variable(o.Key); err != nil {
			return err
		}
		if o.Val == nil {
			continue
		}
		if err := restrictPattern(o.Val); err != nil {
			return err
		}
	}
	return nil
}

func restrictTerm(t *gojq.Term) error {
	var err error
	switch t.Type {
	case gojq.TermTypeIdentity, gojq.TermTypeNull, gojq.TermTypeTrue, gojq.TermTypeFalse, gojq.TermTypeNumber:
	case gojq.TermTypeRecurse:
		before(t, guardDeep)
	case gojq.TermTypeIndex:
		// What is said of suffixes holds here too: make it one.
		t.SuffixList = append([]*gojq.Suffix{{Index: t.Index}}, t.SuffixList...)
		t.Type, t.Index = gojq.TermTypeIdentity, nil
	case gojq.TermTypeFunc:
		err = restrictFunc(t)
	case gojq.TermTypeObject:
		err = restrictObject(t.Object)
	case gojq.TermTypeArray:
		err = restrict(t.Array.Query)
	case gojq.TermTypeUnary:
		if err = restrictTerm(t.Unary.Term); err == nil {
			t.Unary.Term = guarded(&gojq.Query{Term: t.Unary.Term}, guardNumber).Term
		}
	case gojq.TermTypeFormat:
		if !strings.Contains(" @base64 @base64d @csv @html @json @sh @text @tsv @uri @urid ", " "+t.Format+" ") {
			return fmt.Errorf("format %.64s is not available in a mapping", t.Format)
		}
		if t.Str == nil {
			before(t, guardDeep)
		} else {
			err = restrictString(t.Str)
		}
	case gojq.TermTypeString:
		err = restrictString(t.Str)
	case gojq.TermTypeIf:
		list := []*gojq.Query{t.If.Cond, t.If.Then, t.If.Else}
		for _, elif := range t.If.Elif {
			list = append(list, elif.Cond, elif.Then)
		}
		err = restrictAll(list)
	case gojq.TermTypeTry:
		err = restrictAll([]*gojq.Query{t.Try.Body, t.Try.Catch})
	case gojq.TermTypeQuery:
		err = restrict(t.Query)
	default:
		err = errors.New("reduce, foreach, label and break are not available in a mapping")
	}
	if err != nil {
		return err
	}
	return restrictSuffixes(t)
}

func restrictAll(list []*gojq.Query) error {
	for _, q := range list {
		if err := restrict(q); err != nil {
			return err
		}
	}
	return nil
}

// before puts a guard in front of t, whose suffixes it keeps: t becomes
// (guard | t).
func before(t *gojq.Term, guard string, args ...*gojq.Query) {
	inner := *t
	inner.SuffixList = nil
	*t = gojq.Term{Type: gojq.TermTypeQuery, SuffixList: t.SuffixList, Query: &gojq.Query{
		Left: call(guard, args...), Op: gojq.OpPipe, Right: &gojq.Query{Term: &inner},
	}}
}

// restrictSuffixes guards what stands in front of each slice and iteration.
func restrictSuffixes(t *gojq.Term) error {
	suffixes := t.SuffixList
	t.SuffixList = nil
	for _, s := range suffixes {
		switch x := s.Index; {
		case s.Iter, x != nil && x.IsSlice:
			if x != nil {
				for _, bound := range []*gojq.Query{x.Start, x.End} {
					if bound == nil {
						continue
					}
					if _, ok := integer(bound); !ok {
						return errors.New("a slice's bounds are whole numbers in a mapping")
					}
				}
			}
			inner := *t
			*t = *guarded(&gojq.Query{Term: &inner}, guardFlat).Term
		case x != nil && x.Str != nil:
			if err := restrictString(x.Str); err != nil {
				return err
			}
		case x != nil && x.Start != nil:
			if _, ok := indexStep(x); ok {
				break
			}
			if err := restrict(x.Start); err != nil {
				return err
			}
			x.Start = guarded(x.Start, guardDeep)
		}
		t.SuffixList = append(t.SuffixList, s)
	}
	return nil
}

// restrictString guards what is put into a string.
func restrictString(s *gojq.String) error {
	for i, q := range s.Queries {
		if q.Term != nil && q.Term.Type == gojq.TermTypeString {
			continue // the text in between
		}
		if err := restrict(q); err != nil {
			return err
		}
		s.Queries[i] = guarded(q, guardDeep)
	}
	return nil
}

func restrictObject(o *gojq.Object) error {
	for _, kv := range o.KeyVals {
		if err := variable(kv.Key); err != nil {
			return err
		}
		if kv.KeyString != nil {
			if err := restrictString(kv.KeyString); err != nil {
				return err
			}
		}
		if err := restrictAll([]*gojq.Query{kv.KeyQuery, kv.Val}); err != nil {
			return err
		}
	}
	return nil
}

func restrictFunc(t *gojq.Term) error {
	f := t.Func
	if f.Name[0] == '$' {
		return variable(f.Name)
	}
	name := f.Name + "/" + strconv.Itoa(len(f.Args))
	r, ok := rules[name]
	switch {
	case !ok && len(f.Args) == 0:
		return fmt.Errorf("function %.64s is not available in a mapping; a member is .%.64s and a text %.64q", name, f.Name, f.Name)
	case !ok:
		return fmt.Errorf("function %.64s is not available in a mapping", name)
	}
	var match []*gojq.Query
	for i, arg := range f.Args {
		text, isLiteral := literal(arg)
		switch kind := r.args[i]; kind {
		case 's', 'r', 'R', 'o':
			if !isLiteral {
				return fmt.Errorf("%.64s: argument %d must be a literal string in a mapping", name, i+1)
			}
			switch kind {
			case 'r', 'R':
				size, err := program(text)
				if err != nil {
					return fmt.Errorf("%.64s: %w", name, err)
				}
				match = []*gojq.Query{
					{Term: &gojq.Term{Type: gojq.TermTypeNumber, Number: strconv.Itoa(size)}},
					{Term: &gojq.Term{Type: map[bool]gojq.TermType{true: gojq.TermTypeTrue, false: gojq.TermTypeFalse}[kind == 'R']}},
				}
			case 'o':
				for _, flag := range text {
					if flag != 'i' && flag != 'm' {
						return fmt.Errorf("%.64s: flag %q: want i or m; all matches are gsub's", name, flag)
					}
				}
			}
			continue
		}
		if err := restrict(arg); err != nil {
			return err
		}
		switch r.args[i] {
		case 'v':
			f.Args[i] = guarded(arg, guardDeep)
		case 't':
			f.Args[i] = guarded(arg, guardText)
		}
	}
	if r.in != "" {
		before(t, r.in, match...)
	}
	return nil
}

// program gives how many instructions a regular expression has, with the flags
// that make the most of them.
func program(pattern string) (int, error) {
	if _, err := regexp.Compile(pattern); err != nil {
		return 0, fmt.Errorf("not a regular expression: %w", err)
	}
	re, err := syntax.Parse("(?is)"+pattern, syntax.Perl)
	if err != nil {
		return 0, fmt.Errorf("not a regular expression: %w", err)
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return 0, fmt.Errorf("not a regular expression: %w", err)
	}
	if len(prog.Inst) > maxProgram {
		return 0, fmt.Errorf("the regular expression compiles to %d instructions; at most %d are allowed", len(prog.Inst), maxProgram)
	}
	return len(prog.Inst), nil
}
