package jq

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"

	"github.com/itchyny/gojq"
)

// restrictor walks through one expression, refuses what its dialect does not
// have, and puts the guards in.
type restrictor struct {
	dialect *Dialect
	// defs are the functions defined where the walk is, innermost last, as
	// name/arity.
	defs []string
	// used are the functions of the prelude and the variables that the
	// expression names.
	used map[string]bool
	// trusted says that the walk is in the prelude.
	trusted bool
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
//	k  the same, where the function looks through each result
//	n  a value that is a number
//	p  a value that is a path, where something is stored
//	v  a value
//	t  a value that is a string
//	s  a literal string
//	r  a literal string that is a regular expression
//	R  the same, for all matches
//	o  a literal string of a regular expression's flags, without g
//
// out is a guard that each of its results passes.
type rule struct{ in, args, out string }

// basic are the functions of every dialect, by name and number of arguments.
// Missing are those that generate, that look outside, whose time grows faster
// than the guards charge, and those that nobody needs to name an attribute.
var basic = map[string]rule{
	"add/0":            {in: guardDeep},
	"all/0":            {in: guardFlat},
	"all/1":            {in: guardFlat, args: "f"},
	"all/2":            {args: "ff"},
	"any/0":            {in: guardFlat},
	"any/1":            {in: guardFlat, args: "f"},
	"any/2":            {args: "ff"},
	"arrays/0":         {},
	"ascii_downcase/0": {in: guardDeep},
	"ascii_upcase/0":   {in: guardDeep},
	"booleans/0":       {},
	"contains/1":       {in: guardText, args: "t"},
	"empty/0":          {},
	"endswith/1":       {in: guardDeep, args: "v"},
	"first/0":          {},
	"first/1":          {args: "f"},
	"flatten/0":        {in: guardDeep},
	"fromdate/0":       {in: guardDeep},
	"fromjson/0":       {in: guardDeep},
	"has/1":            {args: "v"},
	"isempty/1":        {args: "f"},
	"join/1":           {in: guardDeep, args: "s"},
	"keys/0":           {in: guardFlat},
	"last/0":           {},
	"last/1":           {args: "f"},
	"length/0":         {in: guardFlat},
	"ltrim/0":          {in: guardDeep},
	"ltrimstr/1":       {in: guardDeep, args: "v"},
	"map/1":            {in: guardFlat, args: "f"},
	"max/0":            {in: guardDeep},
	"min/0":            {in: guardDeep},
	"mktime/0":         {in: guardDeep},
	"not/0":            {},
	"nulls/0":          {},
	"numbers/0":        {},
	"objects/0":        {},
	"recurse/0":        {in: guardDeep},
	"reverse/0":        {in: guardFlat},
	"rtrim/0":          {in: guardDeep},
	"rtrimstr/1":       {in: guardDeep, args: "v"},
	"scalars/0":        {},
	"select/1":         {args: "f"},
	"sort/0":           {in: guardDeep},
	"split/1":          {in: guardDeep, args: "v"},
	"startswith/1":     {in: guardDeep, args: "v"},
	"strftime/1":       {in: guardDeep, args: "s"},
	"strings/0":        {},
	"strptime/1":       {in: guardDeep, args: "s"},
	"to_entries/0":     {in: guardFlat},
	"toboolean/0":      {in: guardShort},
	"todate/0":         {in: guardDeep},
	"tojson/0":         {in: guardDeep},
	"tonumber/0":       {in: guardShort},
	"tostring/0":       {in: guardDeep},
	"trim/0":           {in: guardDeep},
	"trimstr/1":        {in: guardDeep, args: "v"},
	"type/0":           {},
	"unique/0":         {in: guardDeep},
	"values/0":         {},

	"abs/0":   {in: guardNumber},
	"ceil/0":  {in: guardNumber},
	"floor/0": {in: guardNumber},
	"round/0": {in: guardNumber},
	"trunc/0": {in: guardNumber},

	"gsub/2": {in: guardMatch, args: "Rf"},
	"gsub/3": {in: guardMatch, args: "Rfo"},
	"sub/2":  {in: guardMatch, args: "rf"},
	"sub/3":  {in: guardMatch, args: "rfo"},
	"test/1": {in: guardMatch, args: "r"},
	"test/2": {in: guardMatch, args: "ro"},
}

// full are the functions that there are besides in a dialect for whole
// programs. Generators are among them: the budget ends them. Missing are those
// that look outside (input, env, now…), that hide what they take (indices,
// transpose, INDEX…), and those about streams of paths.
var full = func() map[string]rule {
	all := maps.Clone(basic)
	maps.Copy(all, map[string]rule{
		"abs/0":             {in: guardNumber},
		"capture/1":         {in: guardMatch, args: "r"},
		"capture/2":         {in: guardMatch, args: "ro"},
		"delpaths/1":        {in: guardDeep, args: "v"},
		"exp/0":             {in: guardNumber},
		"explode/0":         {in: guardDeep},
		"flatten/1":         {in: guardDeep, args: "n"},
		"from_entries/0":    {in: guardDeep},
		"fromdateiso8601/0": {in: guardDeep},
		"getpath/1":         {args: "v"},
		"gmtime/0":          {in: guardDeep},
		"group_by/1":        {in: guardFlat, args: "k"},
		"implode/0":         {in: guardDeep},
		"iterables/0":       {},
		"limit/2":           {args: "nf"},
		"log/0":             {in: guardNumber},
		"log10/0":           {in: guardNumber},
		"log2/0":            {in: guardNumber},
		"map_values/1":      {in: guardDeep, args: "k"},
		"match/1":           {in: guardMatch, args: "r"},
		"match/2":           {in: guardMatch, args: "ro"},
		"max_by/1":          {in: guardFlat, args: "k"},
		"min_by/1":          {in: guardFlat, args: "k"},
		"nth/1":             {args: "n"},
		"nth/2":             {args: "nf"},
		"path/1":            {args: "f", out: guardFlat},
		"pow/2":             {args: "nn"},
		"range/1":           {args: "n"},
		"range/2":           {args: "nn"},
		"range/3":           {args: "nnn"},
		"recurse/1":         {args: "f"},
		"recurse/2":         {args: "ff"},
		"repeat/1":          {args: "f"},
		"scan/1":            {in: guardMatch, args: "R"},
		"scan/2":            {in: guardMatch, args: "Ro"},
		"setpath/2":         {args: "pv"},
		"skip/2":            {args: "nf"},
		"sort_by/1":         {in: guardFlat, args: "k"},
		"split/2":           {in: guardMatch, args: "Ro"},
		"splits/1":          {in: guardMatch, args: "R"},
		"splits/2":          {in: guardMatch, args: "Ro"},
		"sqrt/0":            {in: guardNumber},
		"todateiso8601/0":   {in: guardDeep},
		"unique_by/1":       {in: guardFlat, args: "k"},
		"until/2":           {args: "ff"},
		"utf8bytelength/0":  {in: guardDeep},
		"walk/1":            {in: guardDeep, args: "k"},
		"while/2":           {args: "ff"},
	})
	return all
}()

// prelude are functions that jq has too, written so that the guards reach into
// them. Later ones may use earlier ones.
var prelude = []struct{ name, text string }{
	{"add/1", `def add(f): [f] | add;`},
	{"del/1", `def del(f): delpaths([path(f)]);`},
	{"paths/0", `def paths: path(..) | select(. != []);`},
	{"paths/1", `def paths(f): path(.. | select(f)) | select(. != []);`},
	{"pick/1", `def pick(f): . as $v | reduce path(f) as $p (null; setpath($p; $v | getpath($p)));`},
	{"with_entries/1", `def with_entries(f): to_entries | map(f) | from_entries;`},
}

func inPrelude(name string) bool {
	return slices.ContainsFunc(prelude, func(p struct{ name, text string }) bool { return p.name == name })
}

// preamble gives the definitions of the prelude that the expression uses.
func (r *restrictor) preamble() ([]*gojq.FuncDef, error) {
	var defs []*gojq.FuncDef
	trusted := restrictor{dialect: r.dialect, used: r.used, trusted: true}
	for _, p := range slices.Backward(prelude) {
		if !r.used[p.name] {
			continue
		}
		q, err := gojq.Parse(p.text + " .")
		if err != nil {
			return nil, err
		}
		def := q.FuncDefs[0]
		if err := trusted.define(def); err != nil {
			return nil, err
		}
		trusted.defs = nil
		defs = append(defs, def)
	}
	slices.Reverse(defs)
	return defs, nil
}

// refuse says that something is missing in the dialect.
func (r *restrictor) refuse(format string, args ...any) error {
	return fmt.Errorf(format+" in "+r.dialect.place, args...)
}

// restrict refuses what the dialect does not have, and puts the guards in.
func (r *restrictor) restrict(q *gojq.Query) error {
	switch {
	case q == nil:
		return nil
	case q.Meta != nil || len(q.Imports) > 0:
		return r.refuse("modules are not available")
	case len(q.FuncDefs) > 0 && !r.dialect.full:
		return r.refuse("def %.64s: definitions are not available", q.FuncDefs[0].Name)
	}
	defer func(n int) { r.defs = r.defs[:n] }(len(r.defs))
	for _, def := range q.FuncDefs {
		if err := r.define(def); err != nil {
			return err
		}
	}
	switch {
	case q.Term != nil:
		return r.term(q.Term)
	case q.Left == nil || q.Right == nil:
		return errors.New("the expression is empty") // but for a comment
	}
	if len(q.Patterns) > 1 {
		return r.refuse("?// is not available")
	}
	for _, p := range q.Patterns {
		if err := r.pattern(p); err != nil {
			return err
		}
	}
	if assignment(q.Op) {
		if !r.dialect.full {
			return r.refuse("%s: assignments are not available", q.Op)
		}
		return r.assign(q)
	}
	if err := r.restrict(q.Left); err != nil {
		return err
	}
	if err := r.restrict(q.Right); err != nil {
		return err
	}
	guard := guardDeep
	switch q.Op {
	case gojq.OpPipe, gojq.OpComma, gojq.OpAnd, gojq.OpOr, gojq.OpAlt:
		return nil
	case gojq.OpAdd:
		if r.dialect.full {
			guard = guardFlat
		}
	case gojq.OpDiv, gojq.OpEq, gojq.OpNe, gojq.OpGt, gojq.OpLt, gojq.OpGe, gojq.OpLe:
	case gojq.OpSub, gojq.OpMul, gojq.OpMod:
		if r.dialect.full && q.Op != gojq.OpMod {
			r.pair(q)
			return nil
		}
		// On arrays, texts and objects they take time or room without bound.
		guard = guardNumber
		for _, side := range []*gojq.Query{q.Left, q.Right} {
			if _, ok := literal(side); ok {
				return r.refuse("%s works on numbers only", q.Op)
			}
		}
	default:
		return r.refuse("%s is not available", q.Op)
	}
	if !constant(q.Left) {
		q.Left = guarded(q.Left, guard)
	}
	if !constant(q.Right) {
		q.Right = guarded(q.Right, guard)
	}
	return nil
}

// define restricts a definition, and keeps its name until the query ends that
// it stands in.
func (r *restrictor) define(def *gojq.FuncDef) error {
	if strings.HasPrefix(def.Name, "gridfan_") {
		return r.refuse("def %.64s: a name that begins with gridfan_ is not available", def.Name)
	}
	name := def.Name + "/" + strconv.Itoa(len(def.Args))
	if name[0] == '_' || name == "path/1" || name == "getpath/1" {
		return r.refuse("def %.64s: another definition of what assignments are made of is not available", name)
	}
	r.defs = append(r.defs, name)
	defer func(n int) { r.defs = r.defs[:n] }(len(r.defs))
	for _, arg := range def.Args {
		if err := r.variable(arg); err != nil {
			return err
		}
		if name := strings.TrimPrefix(arg, "$"); strings.HasPrefix(name, "gridfan_") {
			return r.refuse("def %.64s: a name that begins with gridfan_ is not available", def.Name)
		}
		r.defs = append(r.defs, strings.TrimPrefix(arg, "$")+"/0")
	}
	return r.restrict(def.Body)
}

func assignment(op gojq.Operator) bool {
	switch op {
	case gojq.OpAssign, gojq.OpModify, gojq.OpUpdateAdd, gojq.OpUpdateSub, gojq.OpUpdateMul, gojq.OpUpdateDiv, gojq.OpUpdateMod, gojq.OpUpdateAlt:
		return true
	}
	return false
}

var identity = &gojq.Query{Term: &gojq.Term{Type: gojq.TermTypeIdentity}}

// bound gives (value as $name | q).
func bound(value *gojq.Query, name string, q *gojq.Query) *gojq.Query {
	return &gojq.Query{Left: parenthesised(value), Patterns: []*gojq.Pattern{{Name: name}}, Op: gojq.OpPipe, Right: q}
}

func parenthesised(q *gojq.Query) *gojq.Query {
	return &gojq.Query{Term: &gojq.Term{Type: gojq.TermTypeQuery, Query: q}}
}

// become makes q what other is, in its place. Definitions of q stay in force.
func become(q, other *gojq.Query) {
	defs := q.FuncDefs
	*q = *other
	q.FuncDefs = append(defs, q.FuncDefs...)
}

// pair makes l op r, whose sides are restricted, into
//
//	r as $operand | l | guardPair($operand; op) | . op $operand
func (r *restrictor) pair(q *gojq.Query) {
	operand := &gojq.Query{Term: function(operandVariable)}
	text := &gojq.Query{Term: &gojq.Term{Type: gojq.TermTypeString, Str: &gojq.String{Str: q.Op.String()}}}
	become(q, bound(q.Right, operandVariable, &gojq.Query{
		Left: guarded(q.Left, guardPair, operand, text), Op: gojq.OpPipe,
		Right: &gojq.Query{Left: identity, Op: q.Op, Right: operand},
	}))
}

// assign makes an assignment into a call of what gojq makes of it, so that the
// guards see each path and each value:
//
//	l |= f    . as $root | _modify(getpath(path(l) | guardAlong($root)); f | guardDeep)
//	l = r     (r | guardDeep) as $operand | l |= $operand
//	l op= r   r as $operand | l |= . op $operand
func (r *restrictor) assign(q *gojq.Query) error {
	if err := r.restrict(q.Left); err != nil {
		return err
	}
	if err := r.restrict(q.Right); err != nil {
		return err
	}
	operand := &gojq.Query{Term: function(operandVariable)}
	root := &gojq.Query{Term: function(rootVariable)}
	value, update := q.Right, operand
	switch q.Op {
	case gojq.OpModify:
		value, update = nil, guarded(q.Right, guardDeep)
	case gojq.OpAssign:
		value = guarded(q.Right, guardDeep)
	default:
		op, ok := map[gojq.Operator]gojq.Operator{
			gojq.OpUpdateAdd: gojq.OpAdd, gojq.OpUpdateSub: gojq.OpSub, gojq.OpUpdateMul: gojq.OpMul,
			gojq.OpUpdateDiv: gojq.OpDiv, gojq.OpUpdateMod: gojq.OpMod, gojq.OpUpdateAlt: gojq.OpAlt,
		}[q.Op]
		if !ok {
			return r.refuse("%s is not available", q.Op)
		}
		update = &gojq.Query{Left: parenthesised(identity), Op: op, Right: parenthesised(operand)}
		trusted := restrictor{dialect: r.dialect, used: r.used, trusted: true}
		if err := trusted.restrict(update); err != nil {
			return err
		}
	}
	places := &gojq.Query{Term: function("getpath", guarded(&gojq.Query{Term: function("path", q.Left)}, guardAlong, root))}
	whole := bound(identity, rootVariable, &gojq.Query{Term: function("_modify", places, update)})
	if value != nil {
		whole = bound(value, operandVariable, whole)
	} else {
		// f may have no result: then the place is deleted, and gojq looks
		// through everything for what to delete.
		whole = &gojq.Query{Left: call(guardDeep), Op: gojq.OpPipe, Right: whole}
	}
	become(q, whole)
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

// folds says whether gojq may make one constant of q. All runs share it, and
// deleting writes to what it looks through.
func folds(q *gojq.Query) bool {
	if q.Term == nil {
		return q.Left != nil && q.Right != nil && len(q.Patterns) == 0 && folds(q.Left) && folds(q.Right)
	}
	switch q.Term.Type {
	case gojq.TermTypeObject, gojq.TermTypeArray, gojq.TermTypeUnary:
		return true
	case gojq.TermTypeQuery:
		return folds(q.Term.Query)
	}
	return constant(q)
}

// variable refuses the variables that gojq or the sandbox sets.
func (r *restrictor) variable(name string) error {
	reserved := strings.HasPrefix(name, budgetVariable) && !r.trusted
	if reserved || name == "$ENV" || name == "$__loc__" || name == "$__prog_args" {
		return r.refuse("variable %.64s is not available", name)
	}
	r.used[name] = true
	return nil
}

func (r *restrictor) pattern(p *gojq.Pattern) error {
	if err := r.variable(p.Name); err != nil {
		return err
	}
	for _, p := range p.Array {
		if err := r.pattern(p); err != nil {
			return err
		}
	}
	for _, o := range p.Object {
		if o.KeyQuery != nil || o.KeyString != nil && o.KeyString.Queries != nil {
			return r.refuse("a computed name in a pattern is not available")
		}
		if err := r.variable(o.Key); err != nil {
			return err
		}
		if o.Val == nil {
			continue
		}
		if err := r.pattern(o.Val); err != nil {
			return err
		}
	}
	return nil
}

func (r *restrictor) term(t *gojq.Term) error {
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
		err = r.function(t)
	case gojq.TermTypeObject:
		err = r.object(t.Object)
	case gojq.TermTypeArray:
		if q := t.Array.Query; q != nil {
			if err = r.restrict(q); err == nil && r.dialect.full && folds(q) {
				t.Array.Query = guarded(q, guardFlat)
			}
		}
	case gojq.TermTypeUnary:
		if err = r.term(t.Unary.Term); err == nil {
			t.Unary.Term = guarded(&gojq.Query{Term: t.Unary.Term}, guardNumber).Term
		}
	case gojq.TermTypeFormat:
		if !strings.Contains(" @base64 @base64d @csv @html @json @sh @text @tsv @uri @urid ", " "+t.Format+" ") {
			return r.refuse("format %.64s is not available", t.Format)
		}
		if t.Str == nil {
			before(t, guardDeep)
		} else {
			err = r.text(t.Str)
		}
	case gojq.TermTypeString:
		err = r.text(t.Str)
	case gojq.TermTypeIf:
		list := []*gojq.Query{t.If.Cond, t.If.Then, t.If.Else}
		for _, elif := range t.If.Elif {
			list = append(list, elif.Cond, elif.Then)
		}
		err = r.all(list...)
	case gojq.TermTypeTry:
		err = r.all(t.Try.Body, t.Try.Catch)
	case gojq.TermTypeQuery:
		err = r.restrict(t.Query)
	default:
		if !r.dialect.full {
			err = r.refuse("reduce, foreach, label and break are not available")
			break
		}
		err = r.loop(t)
	}
	if err != nil {
		return err
	}
	return r.suffixes(t)
}

// loop restricts what goes round or leaves early. Every round takes steps.
func (r *restrictor) loop(t *gojq.Term) error {
	var patterns []*gojq.Pattern
	var parts []*gojq.Query
	switch t.Type {
	case gojq.TermTypeReduce:
		patterns, parts = t.Reduce.Patterns, []*gojq.Query{t.Reduce.Query, t.Reduce.Start, t.Reduce.Update}
	case gojq.TermTypeForeach:
		patterns, parts = t.Foreach.Patterns, []*gojq.Query{t.Foreach.Query, t.Foreach.Start, t.Foreach.Update, t.Foreach.Extract}
	case gojq.TermTypeLabel:
		if err := r.variable(t.Label.Ident); err != nil {
			return err
		}
		parts = []*gojq.Query{t.Label.Body}
	case gojq.TermTypeBreak:
	default:
		return r.refuse("this is not available")
	}
	if len(patterns) > 1 {
		return r.refuse("?// is not available")
	}
	for _, p := range patterns {
		if err := r.pattern(p); err != nil {
			return err
		}
	}
	return r.all(parts...)
}

func (r *restrictor) all(list ...*gojq.Query) error {
	for _, q := range list {
		if err := r.restrict(q); err != nil {
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

// suffixes guards what stands in front of each slice and iteration.
func (r *restrictor) suffixes(t *gojq.Term) error {
	suffixes := t.SuffixList
	t.SuffixList = nil
	for _, s := range suffixes {
		switch x := s.Index; {
		case s.Iter, x != nil && x.IsSlice:
			if x != nil {
				if err := r.slice(x); err != nil {
					return err
				}
			}
			inner := *t
			*t = *guarded(&gojq.Query{Term: &inner}, guardFlat).Term
		case x != nil && x.Str != nil:
			if err := r.text(x.Str); err != nil {
				return err
			}
		case x != nil && x.Start != nil:
			if _, ok := indexStep(x); ok {
				break
			}
			if err := r.restrict(x.Start); err != nil {
				return err
			}
			x.Start = guarded(x.Start, guardKey)
		}
		t.SuffixList = append(t.SuffixList, s)
	}
	return nil
}

func (r *restrictor) slice(x *gojq.Index) error {
	for _, end := range []**gojq.Query{&x.Start, &x.End} {
		if *end == nil {
			continue
		}
		if _, ok := integer(*end); ok {
			continue
		}
		if !r.dialect.full {
			return r.refuse("a slice's bounds are whole numbers")
		}
		if err := r.restrict(*end); err != nil {
			return err
		}
		*end = guarded(*end, guardBound)
	}
	return nil
}

// text guards what is put into a string.
func (r *restrictor) text(s *gojq.String) error {
	for i, q := range s.Queries {
		if q.Term != nil && q.Term.Type == gojq.TermTypeString {
			continue // the text in between
		}
		if err := r.restrict(q); err != nil {
			return err
		}
		s.Queries[i] = guarded(q, guardDeep)
	}
	return nil
}

func (r *restrictor) object(o *gojq.Object) error {
	for i, kv := range o.KeyVals {
		if err := r.variable(kv.Key); err != nil {
			return err
		}
		if kv.KeyString != nil {
			if err := r.text(kv.KeyString); err != nil {
				return err
			}
		}
		if err := r.all(kv.KeyQuery, kv.Val); err != nil {
			return err
		}
		if i == 0 && r.dialect.full && kv.Val != nil && folds(kv.Val) {
			kv.Val = guarded(kv.Val, guardFlat)
		}
	}
	return nil
}

func (r *restrictor) function(t *gojq.Term) error {
	f := t.Func
	if f.Name[0] == '$' {
		return r.variable(f.Name)
	}
	name := f.Name + "/" + strconv.Itoa(len(f.Args))
	if slices.Contains(r.defs, name) {
		return r.all(f.Args...)
	}
	if r.dialect.full && inPrelude(name) {
		r.used[name] = true
		return r.all(f.Args...)
	}
	if r.dialect.full && name == "error/1" {
		return r.fail(t)
	}
	is, ok := r.dialect.rules[name]
	switch {
	case !ok && len(f.Args) == 0:
		return fmt.Errorf("function %.64s is not available in %s; a member is .%.64s and a text %.64q", name, r.dialect.place, f.Name, f.Name)
	case !ok:
		return r.refuse("function %.64s is not available", name)
	}
	var match []*gojq.Query
	stores := false
	for i, arg := range f.Args {
		text, isLiteral := literal(arg)
		switch kind := is.args[i]; kind {
		case 's', 'r', 'R', 'o':
			if !isLiteral {
				return r.refuse("%.64s: argument %d must be a literal string", name, i+1)
			}
			switch kind {
			case 'r', 'R':
				size, all, err := program(text)
				if err != nil {
					return fmt.Errorf("%.64s: %w", name, err)
				}
				if kind == 'r' {
					all = oneMatch
				}
				match = []*gojq.Query{numeral(size), numeral(int(all))}
			case 'o':
				for _, flag := range text {
					if flag != 'i' && flag != 'm' {
						return fmt.Errorf("%.64s: flag %q: want i or m; all matches are gsub's", name, flag)
					}
				}
			}
			continue
		}
		if err := r.restrict(arg); err != nil {
			return err
		}
		switch is.args[i] {
		case 'v', 'k':
			f.Args[i] = guarded(arg, guardDeep)
		case 't':
			f.Args[i] = guarded(arg, guardText)
		case 'n':
			f.Args[i] = guarded(arg, guardNumber)
		case 'p':
			f.Args[i] = guarded(arg, guardAlong, &gojq.Query{Term: function(rootVariable)})
			stores = true
		}
	}
	if is.in != "" {
		before(t, is.in, match...)
	}
	if is.out != "" {
		inner := *t
		inner.SuffixList = nil
		*t = gojq.Term{Type: gojq.TermTypeQuery, SuffixList: t.SuffixList, Query: guarded(&gojq.Query{Term: &inner}, is.out)}
	}
	if stores {
		inner := *t
		inner.SuffixList = nil
		*t = gojq.Term{Type: gojq.TermTypeQuery, SuffixList: t.SuffixList, Query: bound(identity, rootVariable, &gojq.Query{Term: &inner})}
	}
	return nil
}

// fail makes error("text") into an error of ours. Its text is the author's own
// and holds nothing of an event, so it can be shown.
func (r *restrictor) fail(t *gojq.Term) error {
	if _, ok := literal(t.Func.Args[0]); !ok {
		return r.refuse("error/1: argument 1 must be a literal string")
	}
	suffixes := t.SuffixList
	*t = *call(callFail, t.Func.Args[0]).Term
	t.SuffixList = suffixes
	return nil
}

func numeral(n int) *gojq.Query {
	return &gojq.Query{Term: &gojq.Term{Type: gojq.TermTypeNumber, Number: strconv.Itoa(n)}}
}

// maxProgram is how many instructions a pattern may compile to; those of
// real ones have a few dozen.
const maxProgram = 1000

// program gives how many instructions a regular expression has, with the flags
// that make the most of them, and how finding all its matches is charged.
func program(pattern string) (int, matching, error) {
	if _, err := regexp.Compile(pattern); err != nil {
		return 0, 0, fmt.Errorf("not a regular expression: %w", err)
	}
	re, err := syntax.Parse("(?is)"+pattern, syntax.Perl)
	if err != nil {
		return 0, 0, fmt.Errorf("not a regular expression: %w", err)
	}
	re = re.Simplify()
	prog, err := syntax.Compile(re)
	if err != nil {
		return 0, 0, fmt.Errorf("not a regular expression: %w", err)
	}
	if len(prog.Inst) > maxProgram {
		return 0, 0, fmt.Errorf("the regular expression compiles to %d instructions; at most %d are allowed", len(prog.Inst), maxProgram)
	}
	if plain(re) {
		return len(prog.Inst), plainMatches, nil
	}
	return len(prog.Inst), allMatches, nil
}

// plain says whether a pattern never looks beyond the match it then takes: a
// literal, a character of some class, or a row of them.
func plain(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpCharClass, syntax.OpAnyChar, syntax.OpAnyCharNotNL, syntax.OpLiteral:
		return true
	case syntax.OpPlus, syntax.OpStar:
		return re.Sub[0].Op == syntax.OpCharClass
	case syntax.OpCapture:
		return plain(re.Sub[0])
	}
	return false
}
