package filter

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cel.dev/cel-go/common/types"
)

// Schema is what is known of the data of some events. It is immutable and safe
// for concurrent use.
type Schema struct {
	title   string
	root    *types.Type
	objects map[string]*shape // by the names of their types
}

// shape is an object with known members.
type shape struct {
	fields map[string]*types.Type
	closed bool // there are no others
}

func (s *shape) names() []string { return slices.Sorted(maps.Keys(s.fields)) }

func (s *shape) field(name string) (*types.Type, bool) {
	t, ok := s.fields[name]
	if !ok && !s.closed {
		return types.DynType, true
	}
	return t, ok
}

// object finds a shape by the name of its type; s may be nil.
func (s *Schema) object(name string) *shape {
	if s == nil {
		return nil
	}
	return s.objects[name]
}

// node is the part of JSON Schema that says something a filter can be checked by.
type node struct {
	Ref                  string           `json:"$ref"`
	ID                   string           `json:"$id"`
	Title                string           `json:"title"`
	Defs                 map[string]*node `json:"$defs"`
	Type                 any              `json:"type"` // a text or a list of them
	Properties           map[string]*node `json:"properties"`
	AdditionalProperties json.RawMessage  `json:"additionalProperties"`
	Items                *node            `json:"items"`
}

// ReadSchema reads a JSON Schema. What has no counterpart in CEL's types is
// dynamic.
func ReadSchema(text []byte) (*Schema, error) {
	var root node
	if err := json.Unmarshal(text, &root); err != nil {
		return nil, fmt.Errorf("read JSON Schema: %w", err)
	}
	s := &Schema{title: root.ID, objects: map[string]*shape{}}
	r := reader{s, root.Defs}
	s.root = r.typeOf(&root, "data")
	return s, nil
}

type reader struct {
	schema *Schema
	defs   map[string]*node
}

// typeOf gives a node's type. path names it, unless a reference does.
func (r *reader) typeOf(n *node, path string) *types.Type {
	if def, ok := strings.CutPrefix(n.Ref, "#/$defs/"); ok {
		target := r.defs[def]
		if target == nil {
			return types.DynType
		}
		return r.typeOf(target, def)
	}
	kinds, nullable := r.kinds(n)
	if len(kinds) != 1 {
		return types.DynType
	}
	scalar := func(t *types.Type) *types.Type {
		if nullable {
			return types.NewNullableType(t)
		}
		return t
	}
	switch {
	case kinds[0] == "string":
		return scalar(types.StringType)
	case kinds[0] == "boolean":
		return scalar(types.BoolType)
	case nullable:
		// A whole number may be beyond int, and CEL has no nullable lists.
		return types.DynType
	case kinds[0] == "array":
		if n.Items == nil {
			return types.NewListType(types.DynType)
		}
		return types.NewListType(r.typeOf(n.Items, path+".items"))
	case kinds[0] == "object" && n.Properties != nil:
		return r.object(n, path)
	case kinds[0] == "object":
		return types.NewMapType(types.StringType, types.DynType)
	}
	return types.DynType
}

func (r *reader) object(n *node, path string) *types.Type {
	name := "gridfan." + path
	t := types.NewObjectType(name)
	if r.schema.objects[name] != nil {
		return t // by a reference to itself
	}
	o := &shape{fields: map[string]*types.Type{}, closed: string(n.AdditionalProperties) == "false"}
	r.schema.objects[name] = o
	for member, p := range n.Properties {
		o.fields[member] = r.typeOf(p, path+"."+member)
	}
	return t
}

// kinds gives a node's JSON types without null.
func (*reader) kinds(n *node) (kinds []string, nullable bool) {
	var all []any
	switch t := n.Type.(type) {
	case string:
		all = []any{t}
	case []any:
		all = t
	}
	for _, k := range all {
		if k == "null" {
			nullable = true
		} else if k, ok := k.(string); ok {
			kinds = append(kinds, k)
		}
	}
	return kinds, nullable
}
