package registry

import (
	"context"
	"errors"
	"fmt"

	"github.com/gridfan/gridfan/infra/secret"
)

// Change is one difference between what a file declares and what there is.
type Change struct {
	// Kind is source, subscriber or endpoint.
	Kind string `json:"kind"`
	Name string `json:"name"`
	// What is one of those below.
	What string `json:"what"`
	// Keys are those that differ, without secrets.
	Keys []Difference `json:"keys,omitempty"`
	// Backlog is what a subscriber has not got that is no longer declared.
	Backlog *Backlog `json:"backlog,omitempty"`
}

// What is to happen. A subscriber that is removed is parked; it is deleted only by
// Prune.
const (
	Added   = "added"
	Changed = "changed"
	Removed = "removed"
	Parked  = "parked" // it was removed before, so this is no difference
)

// declaredKey is the key of a Difference in who keeps a definition.
const declaredKey = "declared"

func takenOver(o Origin, orphaned bool) []Difference {
	switch {
	case o == FromAPI:
		return []Difference{{declaredKey, "by API", "in the file"}}
	case orphaned:
		return []Difference{{declaredKey, "no longer in the file", "in the file"}}
	}
	return nil
}

// Plan says what Sync would do, endpoints first, each kind by name.
func (r *Registry) Plan(ctx context.Context, endpoints []Endpoint, subscribers []Definition) ([]Change, error) {
	changes := []Change{}
	places, err := r.Endpoints(ctx)
	if err != nil {
		return nil, err
	}
	known := map[string]EndpointEntry{}
	for _, e := range places {
		known[e.Name] = e
	}
	declared := map[string]bool{}
	for _, e := range endpoints {
		declared[e.Name] = true
		was, ok := known[e.Name]
		keys := differences(was.Endpoint, e, was.Redacted(), e.Redacted(), "name")
		if ok {
			keys = append(takenOver(was.Origin, was.Orphaned), keys...)
		}
		changes = add(changes, "endpoint", e.Name, ok, keys)
	}
	for _, e := range places {
		if e.Origin == FromFile && !declared[e.Name] && !e.Orphaned {
			changes = append(changes, Change{Kind: "endpoint", Name: e.Name, What: Removed, Keys: []Difference{{"url", secret.URL(e.URL), ""}}})
		}
	}

	entries, err := r.List(ctx)
	if err != nil {
		return nil, err
	}
	is := map[string]Entry{}
	for _, e := range entries {
		is[e.Definition.Name] = e
	}
	clear(declared)
	for _, d := range subscribers {
		declared[d.Name] = true
		was, ok := is[d.Name]
		keys := Differences(was.Definition, d)
		if ok {
			keys = append(takenOver(was.Origin, was.Orphaned), keys...)
		}
		changes = add(changes, "subscriber", d.Name, ok, keys)
	}
	for _, e := range entries {
		if e.Origin != FromFile || declared[e.Definition.Name] {
			continue
		}
		c := Change{Kind: "subscriber", Name: e.Definition.Name, What: Removed}
		if e.Orphaned {
			c.What = Parked
		}
		b, err := r.Backlog(ctx, c.Name)
		if err != nil {
			return nil, err
		}
		c.Backlog = &b
		changes = append(changes, c)
	}
	return changes, nil
}

func add(changes []Change, kind, name string, is bool, keys []Difference) []Change {
	switch {
	case !is:
		return append(changes, Change{Kind: kind, Name: name, What: Added, Keys: keys})
	case len(keys) > 0:
		return append(changes, Change{Kind: kind, Name: name, What: Changed, Keys: keys})
	}
	return changes
}

// Prune deletes the subscribers that a file declared and no longer does, with all
// that they have not got.
func (r *Registry) Prune(ctx context.Context) ([]Change, error) {
	gone := []Change{}
	entries, err := r.List(ctx)
	if err != nil {
		return gone, err
	}
	for _, e := range entries {
		if !e.Orphaned {
			continue
		}
		b, err := r.DeleteIf(ctx, e.Definition.Name, true, e.Revision)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return gone, fmt.Errorf("subscriber %q: %w", e.Definition.Name, err)
		}
		gone = append(gone, Change{Kind: "subscriber", Name: e.Definition.Name, What: Removed, Backlog: &b})
	}
	return gone, nil
}

// RefusedError means that some of what a file declares could not be done. All the
// rest was.
type RefusedError struct{ Errors []error }

func (e *RefusedError) Error() string { return errors.Join(e.Errors...).Error() }

// Unwrap gives them all.
func (e *RefusedError) Unwrap() []error { return e.Errors }
