// Package normalise reads bodies as the kind of their source says, for every way in
// by which they come: pushed over HTTP or received from a broker. It is a table from
// kinds to the parsers below schemas, and what a source's configuration adds to them.
package normalise

import (
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/gridfan/gridfan/schemas/businessevent"
	"github.com/gridfan/gridfan/schemas/cloudevents"
	"github.com/gridfan/gridfan/schemas/custom"
	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
)

// Parser turns a body into results; source is the configured name, header what came
// beside the body, as an http.Header has it. It is pure and safe for concurrent use.
type Parser func(source string, header map[string][]string, body []byte) []event.Result

// Options are what the configuration of a source says besides its kind.
type Options struct {
	// BusinessKeys names, for an F&O BusinessEventId, the members of the event that
	// are its business key. Kind fno only.
	BusinessKeys map[string][]string
	// Mapping says where a custom body has what. Kind custom only, and never nil
	// there.
	Mapping *custom.Mapping
}

// kinds makes the parser of a source of each kind.
var kinds = map[string]func(Options) (Parser, error){
	event.KindCloudEvents: always(cloudevents.Parse),
	event.KindDataverse:   always(dataverse.Parse),
	event.KindEventGrid:   always(eventgrid.Parse),
	event.KindFnO:         newFnO,
	event.KindCustom:      newCustom,
}

// Kinds lists the kinds there are, sorted.
func Kinds() []string { return slices.Sorted(maps.Keys(kinds)) }

// Known says whether kind is one of Kinds.
func Known(kind string) bool { return kinds[kind] != nil }

// New makes the parser of a source.
func New(kind string, o Options) (Parser, error) {
	make := kinds[kind]
	if make == nil {
		return nil, fmt.Errorf("kind %q is not known", kind)
	}
	return make(o)
}

func always(p Parser) func(Options) (Parser, error) {
	return func(Options) (Parser, error) { return p, nil }
}

// newCustom reads mapped bodies. A topic whose input schema is custom delivers
// such bodies too, but Event Grid itself speaks of the subscription in its own
// schema and says so in a header.
func newCustom(o Options) (Parser, error) {
	p, err := custom.Compile(*o.Mapping)
	if err != nil {
		return nil, err
	}
	return func(source string, header map[string][]string, body []byte) []event.Result {
		switch http.Header(header).Get("aeg-event-type") {
		case "SubscriptionValidation", "SubscriptionDeletion", "Unsubscribe":
			results := eventgrid.Parse(source, header, body)
			if !slices.ContainsFunc(results, func(r event.Result) bool { return r.Control == nil }) {
				return results
			}
		}
		return p.Parse(source, header, body)
	}, nil
}

// newFnO reads business events, and the data events that F&O sends through
// Dataverse as execution contexts.
func newFnO(o Options) (Parser, error) {
	return func(source string, header map[string][]string, body []byte) []event.Result {
		results := businessevent.Parse(source, header, body)
		for i := range results {
			r := &results[i]
			switch {
			case r.Event != nil:
				businessevent.SetBusinessKey(r.Event, o.BusinessKeys[r.Event.Type])
			case r.Fault != nil && r.Fault.Code == event.FaultUnsupported:
				if as := dataverse.Parse(source, header, r.Raw); len(as) == 1 && as[0].Fault == nil {
					as[0].Raw = r.Raw
					// The table is the entity and its company the scope, as
					// with business events.
					if e := as[0].Event; e != nil {
						as[0].Name = as[0].Scope + "." + as[0].Name
						as[0].Scope = e.Get(event.ExtLegalEntity)
					}
					*r = as[0]
				}
			}
		}
		return results
	}, nil
}
