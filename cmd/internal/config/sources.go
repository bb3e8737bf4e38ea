package config

import (
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"fmt"
	"hash"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/ingress"
	"github.com/gridfan/gridfan/router/receive"
	"github.com/gridfan/gridfan/schemas/custom"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// Sources are where events come from, by how they come. One source may be in several.
type Sources struct {
	Pushed   []ingress.Source
	Polled   []Polled
	Received []receive.Source
	// Completed are those whose events are completed.
	Completed []Completed
}

// From gives all sources.
func (c *Config) From() Sources { return Sources{c.Sources, c.Polled, c.Received, c.Completed} }

// Names are those of all sources, sorted.
func (s Sources) Names() []string {
	names := s.NotPushed()
	for _, p := range s.Pushed {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	return names
}

// NotPushed are the names of those that send nothing to the ingress themselves, sorted.
func (s Sources) NotPushed() []string {
	var names []string
	for _, p := range s.Polled {
		names = append(names, p.Name)
	}
	for _, r := range s.Received {
		names = append(names, r.Name)
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		return slices.ContainsFunc(s.Pushed, func(p ingress.Source) bool { return p.Name == name })
	})
	slices.Sort(names)
	return slices.Compact(names)
}

// Count is how many sources there are.
func (c *Config) Count() int { return len(c.From().Names()) }

// Changes says what makes other sources of these: by name, without secrets.
func (s Sources) Changes(to Sources) []registry.Change {
	was, is := s.byName(), to.byName()
	names := map[string]bool{}
	for _, all := range []map[string]*parts{was, is} {
		for name := range all {
			names[name] = true
		}
	}
	changes := []registry.Change{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		a, b := was[name], is[name]
		c := registry.Change{Kind: "source", Name: name}
		switch {
		case a == nil:
			c.What = registry.Added
		case b == nil:
			c.What = registry.Removed
		default:
			if c.Keys = a.differences(b); len(c.Keys) == 0 {
				continue
			}
			c.What = registry.Changed
		}
		changes = append(changes, c)
	}
	return changes
}

// parts is one source.
type parts struct {
	pushed   *ingress.Source
	received *receive.Source
	polled   []*Polled
	complete *Completed
}

func (s Sources) byName() map[string]*parts {
	all := map[string]*parts{}
	of := func(name string) *parts {
		if all[name] == nil {
			all[name] = &parts{}
		}
		return all[name]
	}
	for i := range s.Pushed {
		of(s.Pushed[i].Name).pushed = &s.Pushed[i]
	}
	for i := range s.Received {
		of(s.Received[i].Name).received = &s.Received[i]
	}
	for i := range s.Polled {
		p := of(s.Polled[i].Name)
		p.polled = append(p.polled, &s.Polled[i])
	}
	for i := range s.Completed {
		of(s.Completed[i].Source).complete = &s.Completed[i]
	}
	return all
}

// What a Difference shows of a part that is more than one value, and may be secret.
const (
	partBefore  = "as it was"
	partChanged = "changed"
)

// keys are a source's keys with what is shown of them, and what they are.
func (p *parts) keys() map[string][2]string {
	keys := map[string][2]string{}
	plain := func(key, v string) {
		if v != "" && v != "0" {
			keys[key] = [2]string{v, v}
		}
	}
	whole := func(key string, v any) { keys[key] = [2]string{"", digest(v)} }
	pattern, rationale := Push, ""
	if s := p.pushed; s != nil {
		plain("kind", s.Kind)
		plain("environment", s.Environment)
		rationale = s.Rationale
		plain("limits.body", strconv.FormatInt(s.Limits.Body, 10))
		plain("limits.concurrency", strconv.Itoa(s.Limits.Concurrency))
		if s.Limits.Rate > 0 {
			plain("limits.rate", fmt.Sprint(deliver.Rate(s.Limits.Rate)))
		}
		whole("push", []any{s.Auth, s.Origins, s.Subscriptions, s.Validation})
		p.forms(whole, s.BusinessKeys, s.Mapping)
	}
	if r := p.received; r != nil {
		plain("kind", r.Kind)
		plain("environment", r.Environment)
		rationale = r.Rationale
		plain("limits.body", strconv.FormatInt(r.Body, 10))
		if r.From != nil {
			whole("receive", r.From)
		}
		if r.DeadLetters != nil {
			whole("deadLetters", r.DeadLetters)
		}
		p.forms(whole, r.Options.BusinessKeys, r.Options.Mapping)
	}
	for _, t := range p.polled {
		plain("kind", t.Kind)
		plain("environment", t.Environment)
		rationale, pattern = t.Rationale, t.Pattern
		// Whether there are others changes nothing in it.
		one := *t
		one.Only, one.Rationale, one.Pattern = false, "", ""
		whole("poll "+t.Table, one)
	}
	if p.complete != nil {
		whole("complete", *p.complete)
	}
	plain("pattern", string(pattern))
	plain("rationale", rationale)
	return keys
}

// forms are the keys that say what stands where in a body.
func (p *parts) forms(whole func(string, any), business map[string][]string, mapping *custom.Mapping) {
	if len(business) > 0 {
		whole("businessKeys", business)
	}
	if mapping != nil {
		whole("mapping", mapping)
	}
}

// differences are the keys in which two differ.
func (p *parts) differences(to *parts) []registry.Difference {
	a, b := p.keys(), to.keys()
	keys := map[string]bool{}
	for _, m := range []map[string][2]string{a, b} {
		for key := range m {
			keys[key] = true
		}
	}
	var all []registry.Difference
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		x, inA := a[key]
		y, inB := b[key]
		if x[1] == y[1] {
			continue
		}
		d := registry.Difference{Key: key, From: x[0], To: y[0]}
		switch {
		case !inA && y[0] == "":
			d.To = "added"
		case !inB && x[0] == "":
			d.To = "removed"
		case x[0] == "" && y[0] == "":
			d.From, d.To = partBefore, partChanged
		}
		all = append(all, d)
	}
	return all
}

// digest stands for all of a value, secrets among it, and tells nothing of it. Members
// without JSON are left out.
func digest(v any) string {
	h := sha256.New()
	write(h, reflect.ValueOf(v))
	return hex.EncodeToString(h.Sum(nil)[:8])
}

func write(h hash.Hash, v reflect.Value) {
	if !v.IsValid() {
		fmt.Fprint(h, "nil;")
		return
	}
	fmt.Fprintf(h, "%s;", v.Type())
	if s, ok := v.Interface().(secret.String); ok {
		fmt.Fprintf(h, "%q;", s.Reveal())
		return
	}
	switch v.Kind() {
	case reflect.String: // whatever its type would print of itself
		fmt.Fprintf(h, "%q;", v.String())
		return
	case reflect.Pointer, reflect.Interface:
		write(h, v.Elem())
		return
	case reflect.Slice, reflect.Array:
		fmt.Fprintf(h, "%d;", v.Len())
		for i := range v.Len() {
			write(h, v.Index(i))
		}
		return
	case reflect.Map:
		keys := v.MapKeys() // texts
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		fmt.Fprintf(h, "%d;", len(keys))
		for _, key := range keys {
			write(h, key)
			write(h, v.MapIndex(key))
		}
		return
	case reflect.Struct:
		if m, ok := v.Interface().(encoding.TextMarshaler); ok {
			text, err := m.MarshalText()
			fmt.Fprintf(h, "%q %v;", text, err)
			return
		}
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() && f.Tag.Get("json") != "-" {
				fmt.Fprintf(h, "%s:", f.Name)
				write(h, v.Field(i))
			}
		}
		return
	}
	fmt.Fprintf(h, "%#v;", v.Interface())
}
