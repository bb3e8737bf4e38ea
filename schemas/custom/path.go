package custom

import (
	"bytes"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/jq"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

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
			k.fault = jq.TwoValues(name)
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
func walk(n *node, steps []jq.Step, f func(*node) *event.Fault) *event.Fault {
	for i, s := range steps {
		c := n.raw[0]
		if s.Optional && (s.Iterate && c != '[' && c != '{' || s.Element && c != '[' && c != 'n' || !s.Iterate && !s.Element && c != '{' && c != 'n') {
			return nil
		}
		if s.Iterate {
			return n.each(func(kid *node) *event.Fault { return walk(kid, steps[i+1:], f) })
		}
		var fault *event.Fault
		if s.Element {
			n, fault = n.element(s.Index)
		} else {
			n, fault = n.member(s.Name)
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
