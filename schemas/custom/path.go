package custom

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/itchyny/gojq"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

// A step leads from a value to one inside it, or with iterate to all of them.
type step struct {
	name     string // member
	index    int    // element, if element is set; negative counts from the end
	element  bool
	iterate  bool
	optional bool // a value of another kind has no result, where it is an error otherwise
}

// plainPath gives the steps of an expression that only leads to members and
// elements. Such a one need not be evaluated by gojq, whose numbers do not keep
// their bytes.
func plainPath(q *gojq.Query) ([]step, bool) {
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

func termSteps(t *gojq.Term) ([]step, bool) {
	var steps []step
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
			steps = append(steps, step{iterate: true})
		case suffix.Optional && len(steps) > 0:
			// In gojq it is about the step before it alone.
			steps[len(steps)-1].optional = true
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

func indexStep(x *gojq.Index) (step, bool) {
	switch {
	case x.IsSlice:
	case x.Name != "":
		return step{name: x.Name}, true
	case x.Str != nil:
		return step{name: x.Str.Str}, x.Str.Queries == nil
	case x.Start != nil:
		if s, ok := literal(x.Start); ok {
			return step{name: s}, true
		}
		if n, ok := integer(x.Start); ok {
			return step{index: n, element: true}, true
		}
	}
	return step{}, false
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

// A node is a JSON value in a body, taken apart when somebody asks.
type node struct {
	raw  []byte
	kids *kids
}

// kids are the members of an object, by name and sorted by it, or the elements
// of an array.
type kids struct {
	byName map[string]*node
	names  []string
	elems  []node
	fault  *event.Fault
}

var nothing = &node{raw: []byte("null")}

// children takes n apart. A bad byte inside a member costs only whoever asks
// for that member.
func (n *node) children() *kids {
	if n.kids != nil {
		return n.kids
	}
	k := &kids{}
	n.kids = k
	if n.raw[0] == '[' {
		elems, _, err := rawjson.Elements(n.raw)
		if err != nil {
			k.fault = event.Faultf(event.FaultNotJSON, "%v", err)
			return k
		}
		k.elems = make([]node, len(elems))
		for i, raw := range elems {
			k.elems[i].raw = raw
		}
		return k
	}
	k.byName = map[string]*node{}
	d := jsontext.NewDecoder(bytes.NewBuffer(n.raw), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if _, err := d.ReadToken(); err != nil {
		k.fault = event.Faultf(event.FaultNotJSON, "not JSON")
		return k
	}
	for d.PeekKind() == '"' {
		tok, err := d.ReadToken()
		if err != nil {
			break
		}
		name := tok.String()
		v, err := d.ReadValue()
		if err != nil {
			break
		}
		// The decoder reads ahead in its own buffer: point into raw.
		end := int(d.InputOffset())
		kid := &node{raw: n.raw[end-len(v) : end : end]}
		if before, twice := k.byName[name]; !twice {
			k.names = append(k.names, name)
			k.byName[name] = kid
		} else if rawjson.Sum(before.raw) != rawjson.Sum(kid.raw) {
			k.fault = twoValues(name)
			return k
		}
	}
	if _, err := d.ReadToken(); err != nil {
		k.fault = event.Faultf(event.FaultNotJSON, "not JSON")
	}
	slices.Sort(k.names) // as gojq does
	return k
}

// member gives the member of an object, null if it has none of that name.
func (n *node) member(name string) (*node, *event.Fault) {
	switch n.raw[0] {
	case 'n':
		return nothing, nil
	case '{':
		k := n.children()
		if k.fault != nil {
			return nil, k.fault
		}
		if kid := k.byName[name]; kid != nil {
			return kid, nil
		}
		return nothing, nil
	}
	return nil, event.Faultf(event.FaultType, "want an object with member %.64q, got %s", name, rawjson.Kind(n.raw))
}

// element gives an element of an array, null if it has none of that index.
func (n *node) element(i int) (*node, *event.Fault) {
	switch n.raw[0] {
	case 'n':
		return nothing, nil
	case '[':
		k := n.children()
		if k.fault != nil {
			return nil, k.fault
		}
		if i < 0 {
			i += len(k.elems)
		}
		if i >= 0 && i < len(k.elems) {
			return &k.elems[i], nil
		}
		return nothing, nil
	}
	return nil, event.Faultf(event.FaultType, "want an array with element %d, got %s", i, rawjson.Kind(n.raw))
}

// each calls f for every value in an array or object.
func (n *node) each(f func(*node) *event.Fault) *event.Fault {
	if c := n.raw[0]; c != '[' && c != '{' {
		return event.Faultf(event.FaultType, "want an array, got %s", rawjson.Kind(n.raw))
	}
	k := n.children()
	if k.fault != nil {
		return k.fault
	}
	for i := range k.elems {
		if f := f(&k.elems[i]); f != nil {
			return f
		}
	}
	for _, name := range k.names {
		if f := f(k.byName[name]); f != nil {
			return f
		}
	}
	return nil
}

// walk follows steps from n and calls f for every value they lead to.
func walk(n *node, steps []step, f func(*node) *event.Fault) *event.Fault {
	for i, s := range steps {
		c := n.raw[0]
		if s.optional && (s.iterate && c != '[' && c != '{' || s.element && c != '[' && c != 'n' || !s.iterate && !s.element && c != '{' && c != 'n') {
			return nil
		}
		if s.iterate {
			return n.each(func(kid *node) *event.Fault { return walk(kid, steps[i+1:], f) })
		}
		var fault *event.Fault
		if s.element {
			n, fault = n.element(s.index)
		} else {
			n, fault = n.member(s.name)
		}
		if fault != nil {
			return fault
		}
	}
	return f(n)
}

// resolve follows a path as gojq's path function gives it.
func resolve(n *node, path []any) (*node, *event.Fault) {
	for _, key := range path {
		var f *event.Fault
		switch key := key.(type) {
		case string:
			n, f = n.member(key)
		case int:
			n, f = n.element(key)
		default:
			f = event.Faultf(event.FaultInvalid, "the expression leads to no single place in the body")
		}
		if f != nil {
			return nil, f
		}
	}
	return n, nil
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
