package asyncapi

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"time"
)

// Bounds of an inferred schema. What is beyond them is left open.
const (
	maxDepth   = 12
	maxMembers = 300 // of one object
	maxItems   = 100 // of one array
)

// shape is what values of one place have in common.
type shape struct {
	seen    int
	types   map[string]bool
	members map[string]*shape // of objects
	objects int
	open    bool   // there were more members than are told
	items   *shape // of arrays
	times   bool   // all texts were times
}

// see takes one more value into account.
func (s *shape) see(v any, depth int) {
	s.seen++
	if s.types == nil {
		s.types, s.times = map[string]bool{}, true
	}
	switch v := v.(type) {
	case nil:
		s.types["null"] = true
	case bool:
		s.types["boolean"] = true
	case json.Number:
		s.types[numberType(v)] = true
	case string:
		s.types["string"] = true
		if s.times {
			_, err := time.Parse(time.RFC3339Nano, v)
			s.times = err == nil
		}
	case []any:
		s.types["array"] = true
		if depth == 0 {
			return
		}
		if s.items == nil {
			s.items = &shape{}
		}
		for _, item := range v[:min(len(v), maxItems)] {
			s.items.see(item, depth-1)
		}
	case map[string]any:
		s.types["object"] = true
		s.objects++
		if depth == 0 {
			return
		}
		if s.members == nil {
			s.members = map[string]*shape{}
		}
		for name, member := range v {
			if s.members[name] == nil {
				if len(s.members) == maxMembers {
					s.open = true
					continue
				}
				s.members[name] = &shape{}
			}
			s.members[name].see(member, depth-1)
		}
	}
}

func numberType(n json.Number) string {
	if f, err := n.Float64(); err == nil && f == math.Trunc(f) && !strings.ContainsAny(n.String(), ".eE") {
		return "integer"
	}
	return "number"
}

// schema is the JSON Schema (draft 07) of a shape. It allows more than was seen:
// members nobody has seen yet do not break a reader.
func (s *shape) schema() map[string]any {
	out := map[string]any{}
	if s.types["number"] {
		delete(s.types, "integer") // each is one
	}
	var types []string
	for t := range s.types {
		types = append(types, t)
	}
	slices.Sort(types)
	switch len(types) {
	case 0:
		return out
	case 1:
		out["type"] = types[0]
	default:
		out["type"] = types
	}
	if s.types["string"] && s.times {
		out["format"] = "date-time"
	}
	if s.items != nil && s.items.seen > 0 {
		out["items"] = s.items.schema()
	}
	if len(s.members) > 0 {
		properties, required := map[string]any{}, []string{}
		for name, m := range s.members {
			properties[name] = m.schema()
			if m.seen == s.objects {
				required = append(required, name)
			}
		}
		out["properties"] = properties
		if len(required) > 0 {
			slices.Sort(required)
			out["required"] = required
		}
		if s.open {
			out["description"] = "There are more members than are described here."
		}
	}
	return out
}

// Infer gives a JSON Schema that all the values match; those that are no JSON are
// left out, and ok is false if there is none left.
func Infer(values []json.RawMessage) (schema map[string]any, ok bool) {
	s := &shape{}
	for _, text := range values {
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		var v any
		if d.Decode(&v) == nil && !d.More() {
			s.see(v, maxDepth)
		}
	}
	return s.schema(), s.seen > 0
}
