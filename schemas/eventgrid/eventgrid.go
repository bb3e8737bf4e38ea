// Package eventgrid reads the bodies that Azure Event Grid posts to a webhook
// and that Event Grid publisher clients post to a topic: events in the Event
// Grid schema, in CloudEvents' JSON format, or both mixed, alone or in an array.
//
// An Event Grid event becomes a CloudEvent like this:
//
//	id, eventType, subject, data    id, type, subject, data, as sent
//	topic, else source              source; without either, /gridfan/<source>
//	eventTime                       time
//	dataVersion, metadataVersion    extensions dataversion, metadataversion
//	any other member                an extension; see event.Event.Unmapped
//
// Nothing is dropped and data is passed on byte for byte. What an event does
// not show of its envelope is: members that are null; an empty topic, source,
// subject, eventTime or dataVersion; an eventTime that stands for "no time"
// (1900-01-01, 0001-01-01); and the notation of eventTime, which is written as
// RFC 3339 with a zone and at most nine digits of a second.
//
// The subscription's validation and deletion events are no events to fan out
// but Controls. One bad element is a Fault and costs its neighbours nothing.
//
// AppendArray goes the other way, for whoever sends on in this schema.
package eventgrid

import (
	"bytes"
	"strings"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

// Types of the events that Event Grid sends about the subscription itself
// (learn.microsoft.com/azure/event-grid/end-point-validation-event-grid-events-schema
// and Azure/azure-sdk-for-go azsystemevents v1.0.0; read 2026-11). Compared
// without case: Event Grid's own types come in odd case now and then.
const (
	typeValidation = "Microsoft.EventGrid.SubscriptionValidationEvent"
	typeDeletion   = "Microsoft.EventGrid.SubscriptionDeletedEvent"
)

// maxValidationCode is far above the 36 characters of a real code, and small
// enough that a stranger gains nothing from having it echoed.
const maxValidationCode = 1 << 10

// extTopicSource keeps a member "source" that stands beside a topic.
const extTopicSource = "egsource"

// DefaultSource is the source attribute of an event whose publisher names
// none: stock publisher clients leave topic to Event Grid to fill in.
func DefaultSource(source string) string { return "/gridfan/" + source }

// Parse reads a request body. source is the name of the configured source;
// header is the request's (an http.Header will do) and only sharpens faults.
// The results follow the order of the elements; an empty array has none, and a
// body that is not JSON has one, a fault. Events share body's memory. Parse is
// pure and safe for concurrent use.
func Parse(source string, header map[string][]string, body []byte) []event.Result {
	elems, _, err := rawjson.Elements(body)
	if err != nil {
		return []event.Result{{Raw: body, Fault: event.Faultf(event.FaultNotJSON, "%v", err)}}
	}
	results := make([]event.Result, len(elems))
	var members []rawjson.Member // of one element after the other
	for i, raw := range elems {
		if members, err = rawjson.MembersIn(members, raw); err != nil {
			results[i] = event.Result{Raw: raw, Fault: event.Faultf(event.FaultNotEvent, "%v", err)}
			continue
		}
		results[i] = parseMembers(source, header, raw, members)
	}
	return results
}

// parseMembers reads one element of a body. See Parse.
func parseMembers(source string, header map[string][]string, raw []byte, members []rawjson.Member) event.Result {
	r := event.Result{Raw: raw}
	var e *event.Event
	var sentSource string
	var err error
	switch schemaOf(members) {
	case cloudEvents:
		if e, err = event.FromMembers(members); err == nil {
			sentSource = e.Source
		}
	case eventGrid:
		e, sentSource, err = parseEventGrid(source, members)
	default:
		err = unknown(header)
	}
	if err != nil {
		r.Fault = event.FaultOf(err)
		return r
	}
	if r.Control, r.Fault = Control(e); r.Control != nil || r.Fault != nil {
		return r
	}
	if e.Get(event.ExtPartitionKey) == "" {
		e.Set(event.ExtPartitionKey, e.Subject)
	}
	if err := e.Validate(); err != nil {
		r.Fault = event.FaultOf(err)
		return r
	}
	r.Event = e
	r.Scope, r.Name = event.LastSegment(sentSource), e.Type
	r.Key = e.Source + "\n" + e.ID
	r.Digest = event.Digest(e.Type, e.Subject, e.Data, e.DataJSON)
	return r
}

type schema uint8

const (
	noSchema schema = iota
	cloudEvents
	eventGrid
)

// schemaOf tells the schemas apart by the member that only one of them has.
// An element that has both is the one whose type it gives.
func schemaOf(members []rawjson.Member) schema {
	var spec, typ, eventType bool
	for _, m := range members {
		switch m.Name {
		case "specversion":
			spec = !rawjson.IsNull(m.Value)
		case "type":
			typ = !rawjson.IsNull(m.Value)
		case "eventType":
			eventType = true
		}
	}
	switch {
	case spec && (typ || !eventType):
		return cloudEvents
	case eventType:
		return eventGrid
	}
	return noSchema
}

func unknown(header map[string][]string) *event.Fault {
	for name := range header {
		if strings.EqualFold(name, "ce-specversion") {
			return event.Faultf(event.FaultUnsupported, "CloudEvents in binary mode (ce- headers); sources of kind cloudevents take these, this one application/cloudevents+json")
		}
	}
	return event.Faultf(event.FaultNotEvent, "neither eventType (Event Grid schema) nor specversion (CloudEvents) is there; send one of these schemas")
}

// parseEventGrid reads an event in the Event Grid schema
// (learn.microsoft.com/azure/event-grid/event-schema; read 2026-11). It also
// gives the source as it was sent, empty if it was not. The error is a *Fault.
func parseEventGrid(name string, members []rawjson.Member) (e *event.Event, sentSource string, err error) {
	e = &event.Event{}
	var texts rawjson.Texts
	texts.Grow(members)
	var topic, eventTime string
	var ownSource []byte
	var room [4]rawjson.Member
	extra := room[:0] // of a system event, metadataVersion and perhaps dataVersion
	for _, m := range members {
		var dst *string
		switch m.Name {
		case "id":
			dst = &e.ID
		case "eventType":
			dst = &e.Type
		case "subject":
			dst = &e.Subject
		case "topic":
			dst = &topic
		case "eventTime":
			dst = &eventTime
		case "source":
			// Not of this schema, but Microsoft.PolicyInsights' samples have it
			// in the place of topic (azure-sdk-for-go azsystemevents v1.0.0,
			// system_events2_test.go; read 2026-11).
			ownSource = m.Value
			continue
		case "data":
			e.Data, e.DataJSON, e.DataContentType = m.Value, true, "application/json"
			continue
		case "dataVersion":
			if string(m.Value) == `""` {
				continue // most system events have none and say so like this
			}
			extra = append(extra, m)
			continue
		default:
			extra = append(extra, m)
			continue
		}
		if rawjson.IsNull(m.Value) {
			continue
		}
		s, ok := texts.Text(m.Value)
		if !ok {
			return nil, "", wrongType(m)
		}
		*dst = s
	}
	for _, a := range []struct{ name, value string }{{"id", e.ID}, {"eventType", e.Type}} {
		if a.value == "" {
			return nil, "", event.Faultf(event.FaultMissing, "member %s is missing or empty", a.name)
		}
	}
	sentSource = topic
	if s, ok := rawjson.Text(ownSource); ok && topic == "" {
		sentSource = s
	} else if ownSource != nil && string(ownSource) != `""` {
		extra = append(extra, rawjson.Member{Name: extTopicSource, Value: ownSource})
	}
	e.Source = sentSource
	if e.Source == "" {
		e.Source = DefaultSource(name)
	}
	if eventTime != "" {
		e.SetTime(eventTime)
	}
	e.Unmapped(extra)
	return e, sentSource, nil
}

func wrongType(m rawjson.Member) *event.Fault {
	if m.Value[0] == '"' {
		return event.Faultf(event.FaultType, "member %s holds half of a surrogate pair, which is no text", m.Name)
	}
	return event.Faultf(event.FaultType, "member %s: want a string, got %s", m.Name, rawjson.Kind(m.Value))
}

// Control recognises what Event Grid says to the endpoint itself, in whichever
// schema; both results are nil for any other event. A stranger's validation must
// not be echoed, but that is for whoever knows the request.
func Control(e *event.Event) (*event.Control, *event.Fault) {
	switch {
	case strings.EqualFold(e.Type, typeValidation):
		code := dataText(e, "validationCode")
		switch {
		case code == "":
			return nil, event.Faultf(event.FaultControlFailed, "data.validationCode is missing or not a string, so the subscription cannot be confirmed")
		case len(code) > maxValidationCode:
			return nil, event.Faultf(event.FaultControlFailed, "data.validationCode has %d bytes; at most %d are echoed", len(code), maxValidationCode)
		}
		return &event.Control{Kind: event.Validation, ValidationCode: code, ValidationURL: dataText(e, "validationUrl")}, nil
	case strings.EqualFold(e.Type, typeDeletion):
		return &event.Control{Kind: event.Deletion, Subscription: dataText(e, "eventSubscriptionId")}, nil
	}
	return nil, nil
}

// dataText gives a string member of e's data, empty when there is none.
func dataText(e *event.Event, name string) string {
	if !e.DataJSON {
		return ""
	}
	members, err := rawjson.Members(bytes.TrimSpace(e.Data))
	if err != nil {
		return ""
	}
	s, _ := rawjson.Text(rawjson.Find(members, name))
	return s
}
