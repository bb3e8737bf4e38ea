package ingress

import (
	"net/http"
	"slices"

	"github.com/gridfan/gridfan/schemas/businessevent"
	"github.com/gridfan/gridfan/schemas/cloudevents"
	"github.com/gridfan/gridfan/schemas/custom"
	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
)

// parser turns a request body into results; source is the configured name.
type parser func(source string, header map[string][]string, body []byte) []event.Result

// kinds makes the parser of a source of each kind.
var kinds = map[string]func(Source) (parser, error){
	event.KindCloudEvents: always(cloudevents.Parse),
	event.KindDataverse:   always(dataverse.Parse),
	event.KindEventGrid:   always(eventgrid.Parse),
	event.KindFnO:         newFnO,
	event.KindCustom:      newCustom,
}

func always(p parser) func(Source) (parser, error) {
	return func(Source) (parser, error) { return p, nil }
}

// newCustom reads mapped bodies. A topic whose input schema is custom delivers
// such bodies too, but Event Grid itself speaks of the subscription in its own
// schema and says so in a header.
func newCustom(s Source) (parser, error) {
	p, err := custom.Compile(*s.Mapping)
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
func newFnO(s Source) (parser, error) {
	return func(source string, header map[string][]string, body []byte) []event.Result {
		results := businessevent.Parse(source, header, body)
		for i := range results {
			r := &results[i]
			switch {
			case r.Event != nil:
				businessevent.SetBusinessKey(r.Event, s.BusinessKeys[r.Event.Type])
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
