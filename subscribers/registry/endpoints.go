package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/secret"
)

// Endpoint is an address that several subscribers share by its name, so that it
// can be moved in one place.
type Endpoint struct {
	Name string `json:"name"`
	// URL is http or https. It may carry a key, so show it only through Redacted.
	URL string `json:"url"`
}

// EndpointEntry is what the bucket keeps of an endpoint.
type EndpointEntry struct {
	Endpoint
	Origin Origin `json:"origin"`
	// Orphaned: a file declared it and no longer does, and somebody still uses it.
	Orphaned bool `json:"orphaned,omitempty"`
	// Sent: the file was sent by API, and not read by gridfan itself.
	Sent bool `json:"sent,omitempty"`
	// Revision is that of the key in the bucket.
	Revision uint64 `json:"-"`
}

// Errors about endpoints that callers tell apart.
var (
	ErrNoEndpoint     = errors.New("no such endpoint")
	ErrEndpointExists = errors.New("an endpoint of this name exists with another URL")
	ErrEndpointInUse  = errors.New("the endpoint is in use")
)

// Validate reports every problem, each beginning with the path of its key in the
// configuration file.
func (e *Endpoint) Validate() error {
	path := "endpoints." + e.Name
	var errs []error
	if !validName(e.Name) {
		errs = append(errs, fmt.Errorf("%s: a name is 1 to 63 lower-case letters, digits and dashes, and begins with a letter or digit", path))
	}
	u, err := url.Parse(e.URL)
	switch {
	case e.URL == "":
		errs = append(errs, fmt.Errorf("%s.url: missing; want an http or https URL", path))
	case strings.Contains(e.URL, hidden):
		errs = append(errs, fmt.Errorf("%s.url: its secret part is hidden, and it is another URL than before; give the whole", path))
	case err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https"):
		// The URL itself may hold a key: it is not repeated.
		errs = append(errs, fmt.Errorf("%s.url: want http://host/path or https://host/path", path))
	case u.Fragment != "":
		errs = append(errs, fmt.Errorf("%s.url: a #fragment is never sent; leave it out", path))
	}
	return errors.Join(errs...)
}

// Redacted returns e without its secrets.
func (e Endpoint) Redacted() Endpoint {
	e.URL = secret.URL(e.URL)
	return e
}

// endpoint gives the name of the endpoint that a definition uses, empty for none.
func (d Definition) endpoint() string {
	if d.Deliver.Webhook == nil {
		return ""
	}
	return d.Deliver.Webhook.Endpoint
}

// at gives d with the URL of its endpoint in the place of its name.
func (d Definition) at(e Endpoint) (Definition, error) {
	w, err := d.Deliver.Webhook.At(e.URL)
	if err != nil {
		return d, fmt.Errorf("endpoint %q: %w", e.Name, err)
	}
	d.Deliver.Webhook = &w
	return d, nil
}

// Endpoints gives all endpoints by name.
func (r *Registry) Endpoints(ctx context.Context) ([]EndpointEntry, error) {
	all := []EndpointEntry{}
	err := broker.EachEntry(ctx, r.endpoints, jetstream.AllKeys, func(u jetstream.KeyValueEntry) error {
		e, err := decodeEndpoint(u)
		all = append(all, e)
		return err
	})
	slices.SortFunc(all, func(a, b EndpointEntry) int { return strings.Compare(a.Name, b.Name) })
	return all, err
}

// Endpoint gives one, or ErrNoEndpoint.
func (r *Registry) Endpoint(ctx context.Context, name string) (EndpointEntry, error) {
	u, err := r.endpoints.Get(ctx, name)
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrInvalidKey) {
		return EndpointEntry{}, fmt.Errorf("endpoint %q: %w", name, ErrNoEndpoint)
	}
	if err != nil {
		return EndpointEntry{}, err
	}
	return decodeEndpoint(u)
}

func decodeEndpoint(u jetstream.KeyValueEntry) (EndpointEntry, error) {
	e := EndpointEntry{Revision: u.Revision()}
	err := json.Unmarshal(u.Value(), &e)
	if err == nil {
		err = e.Validate()
	}
	if err != nil {
		return e, fmt.Errorf("entry of endpoint %q: %w", u.Key(), err)
	}
	return e, nil
}

// SetEndpoint adds an endpoint by API, or moves it if revision is that of the
// entry that was read before; with any other one now it is a StaleError. The same
// once more changes nothing. Every replica restarts the senders that use it.
func (r *Registry) SetEndpoint(ctx context.Context, e Endpoint, revision uint64, replace bool) (EndpointEntry, error) {
	if err := e.Validate(); err != nil {
		return EndpointEntry{}, err
	}
	return r.putEndpoint(ctx, e.Name, func(now *EndpointEntry) error {
		switch {
		case now.Revision == 0 && replace:
			return &StaleError{}
		case now.Revision == 0:
			*now = EndpointEntry{Endpoint: e, Origin: FromAPI}
			return nil
		case now.Origin == FromFile && !now.Orphaned:
			return fmt.Errorf("endpoint %q: %w", e.Name, ErrFileDeclared)
		case revision > 0 && now.Revision != revision:
			return &StaleError{now.Revision}
		case !replace && now.Endpoint != e:
			return fmt.Errorf("endpoint %q: %w", e.Name, ErrEndpointExists)
		}
		now.Endpoint, now.Origin, now.Orphaned, now.Sent = e, FromAPI, false, false
		return nil
	})
}

// putEndpoint changes an endpoint, or makes it: what change gets has no revision
// then.
func (r *Registry) putEndpoint(ctx context.Context, name string, change func(*EndpointEntry) error) (EndpointEntry, error) {
	for {
		e, err := r.Endpoint(ctx, name)
		if err != nil && !errors.Is(err, ErrNoEndpoint) {
			return e, err
		}
		before := e
		if err := change(&e); err != nil {
			return e, err
		}
		if reflect.DeepEqual(before, e) {
			return e, nil
		}
		b, err := json.Marshal(e)
		if err != nil {
			return e, err
		}
		err = r.broker.Change(ctx, func() error {
			if before.Revision == 0 {
				e.Revision, err = r.endpoints.Create(ctx, name, b)
			} else {
				e.Revision, err = r.endpoints.Update(ctx, name, b, before.Revision)
			}
			return err
		})
		if errors.Is(err, jetstream.ErrKeyExists) { // somebody was quicker
			continue
		}
		if err == nil && before.URL != e.URL {
			r.broker.Report("endpoint.set", name, map[string]any{"url": secret.URL(e.URL), "was": shown(before.URL)})
		}
		return e, err
	}
}

func shown(raw string) string {
	if raw == "" {
		return ""
	}
	return secret.URL(raw)
}

// DeleteEndpoint deletes one that nobody uses.
func (r *Registry) DeleteEndpoint(ctx context.Context, name string, revision uint64) error {
	e, err := r.Endpoint(ctx, name)
	switch {
	case err != nil:
		return err
	case revision > 0 && e.Revision != revision:
		return &StaleError{e.Revision}
	case e.Origin == FromFile && !e.Orphaned:
		return fmt.Errorf("endpoint %q: %w", name, ErrFileDeclared)
	}
	users, err := r.EndpointUsers(ctx)
	if err != nil {
		return err
	}
	if len(users[name]) > 0 {
		return fmt.Errorf("endpoint %q: %w by %s", name, ErrEndpointInUse, strings.Join(users[name], ", "))
	}
	err = r.broker.Change(ctx, func() error { return r.endpoints.Delete(ctx, name, jetstream.LastRevision(e.Revision)) })
	if err == nil {
		r.broker.Report("endpoint.deleted", name, map[string]any{})
	}
	return err
}

// EndpointUsers gives the subscribers of each endpoint, by name.
func (r *Registry) EndpointUsers(ctx context.Context) (map[string][]string, error) {
	entries, err := r.List(ctx)
	if err != nil {
		return nil, err
	}
	users := map[string][]string{}
	for _, e := range entries {
		if name := e.Definition.endpoint(); name != "" {
			users[name] = append(users[name], e.Definition.Name)
		}
	}
	return users, nil
}

// known refuses a definition whose endpoint there is not.
func (r *Registry) known(ctx context.Context, d Definition) error {
	name := d.endpoint()
	if name == "" {
		return nil
	}
	_, err := r.Endpoint(ctx, name)
	return err
}

// Sync brings the buckets up to date with what the configuration file declares;
// see SyncFile. An endpoint that the file no longer names stays as long as
// somebody uses it.
func (r *Registry) Sync(ctx context.Context, endpoints []Endpoint, subscribers []Definition) error {
	return r.sync(ctx, endpoints, subscribers, false)
}

// SyncSent is Sync for a file that was sent by API. Where it leads elsewhere than
// gridfan's own file, that is not the operator's word; see StartFleet.
func (r *Registry) SyncSent(ctx context.Context, endpoints []Endpoint, subscribers []Definition) error {
	return r.sync(ctx, endpoints, subscribers, true)
}

func (r *Registry) sync(ctx context.Context, endpoints []Endpoint, subscribers []Definition, sent bool) error {
	declared := map[string]bool{}
	for _, e := range endpoints {
		declared[e.Name] = true
		_, err := r.putEndpoint(ctx, e.Name, func(now *EndpointEntry) error {
			sent := sent && !now.says(e)
			now.Endpoint, now.Origin, now.Orphaned, now.Sent = e, FromFile, false, sent
			return nil
		})
		if err != nil {
			return fmt.Errorf("endpoint %q: %w", e.Name, err)
		}
	}
	var refused *RefusedError
	if err := r.syncFile(ctx, subscribers, sent); err != nil && !errors.As(err, &refused) {
		return err
	}
	all, err := r.Endpoints(ctx)
	if err != nil {
		return err
	}
	users, err := r.EndpointUsers(ctx)
	if err != nil {
		return err
	}
	for _, e := range all {
		switch {
		case e.Origin != FromFile || declared[e.Name]:
			continue
		case len(users[e.Name]) == 0:
			err = r.broker.Change(ctx, func() error { return r.endpoints.Delete(ctx, e.Name, jetstream.LastRevision(e.Revision)) })
		default:
			r.log.Warn("the configuration file no longer declares an endpoint that is in use, so it stays", "endpoint", e.Name, "used_by", users[e.Name])
			_, err = r.putEndpoint(ctx, e.Name, func(now *EndpointEntry) error { now.Orphaned = now.Revision > 0; return nil })
		}
		if err != nil && !errors.Is(err, jetstream.ErrKeyExists) {
			return fmt.Errorf("endpoint %q: %w", e.Name, err)
		}
	}
	if refused != nil {
		return refused
	}
	return nil
}
