package registry

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Difference is one key that two definitions have different values of. It shows
// no secret.
type Difference struct {
	// Key is as in the configuration file, below subscribers.<name>.
	Key string `json:"key"`
	// From and To are empty where there is no value.
	From string `json:"from"`
	To   string `json:"to"`
}

// Differences compares two definitions, in the order of their keys. Where one
// begins is left out: it has no meaning for one that has begun.
func Differences(from, to Definition) []Difference {
	return differences(from, to, from.Redacted(), to.Redacted(), "start", "name")
}

// differences compares two values of one type by the members of their JSON, and
// shows what stands in the redacted ones.
func differences(from, to, shownFrom, shownTo any, except ...string) []Difference {
	a, b, x, y := members(from), members(to), members(shownFrom), members(shownTo)
	keys := map[string]bool{}
	for _, m := range []map[string]string{a, b} {
		for key := range m {
			keys[key] = !slices.Contains(except, key)
		}
	}
	var all []Difference
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if !keys[key] || a[key] == b[key] {
			continue
		}
		d := Difference{key, x[key], y[key]}
		if d.From == d.To {
			d.To += " (its secret part is another)"
		}
		all = append(all, d)
	}
	return all
}

// members gives the members of v's JSON by their path, lists as one.
func members(v any) map[string]string {
	b, err := json.Marshal(v)
	var tree any
	if err == nil {
		err = json.Unmarshal(b, &tree)
	}
	all := map[string]string{}
	if err != nil {
		return all // not with the types here
	}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for key, below := range v {
				walk(strings.TrimPrefix(path+"."+key, "."), below)
			}
		case []any:
			words := make([]string, len(v))
			for i, item := range v {
				words[i] = fmt.Sprint(item)
			}
			all[path] = "[ " + strings.Join(words, ", ") + " ]"
		case nil:
		default:
			all[path] = fmt.Sprint(v)
		}
	}
	walk("", tree)
	return all
}
