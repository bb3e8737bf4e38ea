package jq

import (
	"slices"
	"strconv"
	"strings"

	"github.com/itchyny/gojq"
)

// A Step leads from a value to one inside it, or with Iterate to all of them.
type Step struct {
	Name     string // member
	Index    int    // element, if Element is set; negative counts from the end
	Element  bool
	Iterate  bool
	Optional bool // a value of another kind has no result, where it is an error otherwise
}

// plainPath gives the steps of a query that only leads to members and elements.
func plainPath(q *gojq.Query) ([]Step, bool) {
	switch {
	case q.Meta != nil || len(q.Imports)+len(q.FuncDefs)+len(q.Patterns) > 0:
		return nil, false
	case q.Term != nil:
		return termSteps(q.Term)
	case q.Op == gojq.OpPipe:
		left, ok := plainPath(q.Left)
		if !ok {
			return nil, false
		}
		right, ok := plainPath(q.Right)
		return slices.Concat(left, right), ok
	}
	return nil, false
}

func termSteps(t *gojq.Term) ([]Step, bool) {
	var steps []Step
	switch t.Type {
	case gojq.TermTypeIdentity:
	case gojq.TermTypeIndex:
		s, ok := indexStep(t.Index)
		if !ok {
			return nil, false
		}
		steps = append(steps, s)
	default:
		return nil, false
	}
	for _, suffix := range t.SuffixList {
		switch {
		case suffix.Iter:
			steps = append(steps, Step{Iterate: true})
		case suffix.Optional && len(steps) > 0:
			// In gojq it is about the step before it alone.
			steps[len(steps)-1].Optional = true
		case suffix.Index != nil:
			s, ok := indexStep(suffix.Index)
			if !ok {
				return nil, false
			}
			steps = append(steps, s)
		default:
			return nil, false
		}
	}
	return steps, true
}

func indexStep(x *gojq.Index) (Step, bool) {
	switch {
	case x.IsSlice:
	case x.Name != "":
		return Step{Name: x.Name}, true
	case x.Str != nil:
		return Step{Name: x.Str.Str}, x.Str.Queries == nil
	case x.Start != nil:
		if s, ok := literal(x.Start); ok {
			return Step{Name: s}, true
		}
		if n, ok := integer(x.Start); ok {
			return Step{Index: n, Element: true}, true
		}
	}
	return Step{}, false
}

// literal gives the text of a string without interpolation.
func literal(q *gojq.Query) (string, bool) {
	t := q.Term
	if t == nil || len(q.FuncDefs) > 0 || t.Type != gojq.TermTypeString || len(t.SuffixList) > 0 || t.Str.Queries != nil {
		return "", false
	}
	return t.Str.Str, true
}

// integer gives the value of a number literal that has no point or exponent.
func integer(q *gojq.Query) (int, bool) {
	t, sign := q.Term, 1
	if t != nil && t.Type == gojq.TermTypeUnary && len(t.SuffixList) == 0 && t.Unary.Op == gojq.OpSub {
		t, sign = t.Unary.Term, -1
	}
	if t == nil || len(q.FuncDefs) > 0 || t.Type != gojq.TermTypeNumber || len(t.SuffixList) > 0 {
		return 0, false
	}
	n, err := strconv.ParseInt(t.Number, 10, 32)
	return sign * int(n), err == nil
}

// givesPaths says whether all results of an expression are places in its input,
// as those of .items[] | select(.x) are and those of {x} are not. It errs on
// the side of no.
func givesPaths(q *gojq.Query) bool {
	switch {
	case q == nil:
		return true
	case len(q.FuncDefs) > 0:
		return false
	case q.Term != nil:
		return termGivesPaths(q.Term)
	case len(q.Patterns) > 0:
		return givesPaths(q.Right)
	case q.Op == gojq.OpPipe || q.Op == gojq.OpComma || q.Op == gojq.OpAlt:
		return givesPaths(q.Left) && givesPaths(q.Right)
	}
	return false
}

func termGivesPaths(t *gojq.Term) bool {
	for _, suffix := range t.SuffixList {
		if suffix.Index == nil {
			continue
		}
		if _, ok := indexStep(suffix.Index); !ok {
			return false
		}
	}
	switch t.Type {
	case gojq.TermTypeIdentity, gojq.TermTypeRecurse:
		return true
	case gojq.TermTypeIndex:
		_, ok := indexStep(t.Index)
		return ok
	case gojq.TermTypeQuery:
		return givesPaths(t.Query)
	case gojq.TermTypeTry:
		return givesPaths(t.Try.Body) && givesPaths(t.Try.Catch)
	case gojq.TermTypeIf:
		for _, elif := range t.If.Elif {
			if !givesPaths(elif.Then) {
				return false
			}
		}
		return givesPaths(t.If.Then) && givesPaths(t.If.Else)
	case gojq.TermTypeFunc:
		switch name := t.Func.Name; len(t.Func.Args) {
		case 0:
			return strings.Contains(" empty first last recurse values nulls strings numbers booleans arrays objects scalars ", " "+name+" ")
		case 1:
			return name == "select" || name == "first" && givesPaths(t.Func.Args[0])
		}
	}
	return false
}
