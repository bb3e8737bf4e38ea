package eventgrid

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

// MediaType is the content type of events in the Event Grid schema, as Event Grid
// sends it.
const MediaType = "application/json; charset=utf-8"

// MaxBatch is the most bytes that Event Grid puts into, and takes in, one array
// (learn.microsoft.com/azure/event-grid/delivery-and-retry, "Output batching", and
// event-schema; read 2026-11).
const MaxBatch = 1 << 20

// Headers of Event Grid's deliveries
// (learn.microsoft.com/azure/event-grid/receive-events, includes/event-grid-message-headers;
// captures of deliveries to webhooks have all of these; read 2026-11).
const (
	HeaderEventType       = "aeg-event-type"
	HeaderSubscription    = "aeg-subscription-name" // in upper case
	HeaderDataVersion     = "aeg-data-version"
	HeaderMetadataVersion = "aeg-metadata-version"

	EventTypeNotification = "Notification"
	EventTypeValidation   = "SubscriptionValidation"
)

// noTime is how Azure writes that there is no time; see event.IsNullTime.
const noTime = "1900-01-01T00:00:00Z"

// AppendArray appends events as Event Grid posts them, an array also of one.
func AppendArray(b []byte, events ...*event.Event) []byte {
	b = append(b, '[')
	for i, e := range events {
		if i > 0 {
			b = append(b, ',')
		}
		b = AppendEvent(b, e)
	}
	return append(b, ']')
}

// AppendEvent appends e in the Event Grid schema
// (learn.microsoft.com/azure/event-grid/event-schema; read 2026-11), the other way
// round from Parse: an event that came in that schema has its members again.
//
//	topic                         source
//	id, eventType, subject        id, type, subject; the subject may be empty
//	eventTime                     time; without one, when gridfan accepted it; and
//	                              without that 1900-01-01, which stands for no time
//	dataVersion, metadataVersion  extensions of these names, else "" and "1", as
//	                              Event Grid's own events have them
//	data                          data as it is; text as a string, what is no text in
//	                              base64, and null for none
//
// Every other attribute is one more member under its own name, which is in lower
// case: stock clients skip what they do not know. Those whose name differs only in
// case from a member of the schema have "ce" before it. datacontenttype goes out
// only if it is not application/json. What Parse has put into unmapped is members
// again, unless one of them takes the place of another.
func AppendEvent(b []byte, e *event.Event) []byte {
	text := func(name, value string) {
		b = append(b, ',', '"')
		b = append(b, name...)
		b = append(b, '"', ':')
		b, _ = jsontext.AppendQuote(b, value)
	}
	b = append(b, `{"id":`...)
	b, _ = jsontext.AppendQuote(b, e.ID)
	text("topic", e.Source)
	text("subject", e.Subject)
	text("eventType", e.Type)
	text("eventTime", eventTime(e))
	data, metadata := Versions(e)
	text("dataVersion", data)
	text("metadataVersion", metadata)
	if e.DataContentType != "" && e.DataContentType != "application/json" {
		text("datacontenttype", e.DataContentType)
	}
	if e.DataSchema != "" {
		text("dataschema", e.DataSchema)
	}
	for _, x := range e.Extensions {
		name := x.Name
		switch name {
		case "dataversion", "metadataversion":
			continue
		case extTopicSource:
			name = "source"
		case "topic", "eventtype", "eventtime":
			for name = "ce" + name; e.Get(name) != ""; {
				name = "ce" + name
			}
		case "unmapped":
			if members := unmapped(e, x.Value); members != nil {
				for _, m := range members {
					b = append(b, ',')
					b, _ = jsontext.AppendQuote(b, m.Name)
					b = append(append(b, ':'), m.Value...)
				}
				continue
			}
		}
		if x.Type == event.String {
			text(name, x.Value)
			continue
		}
		b = append(b, `,"`+name+`":`+x.Value...)
	}
	b = append(b, `,"data":`...)
	switch {
	case e.Data == nil:
		b = append(b, `null`...)
	case e.DataJSON:
		b = append(b, e.Data...)
	case e.DataContentType != "" && !event.IsJSONMedia(e.DataContentType) && utf8.Valid(e.Data):
		b, _ = jsontext.AppendQuote(b, e.Data)
	default:
		b = append(b, '"')
		b = base64.StdEncoding.AppendEncode(b, e.Data)
		b = append(b, '"')
	}
	return append(b, '}')
}

// Versions gives dataVersion and metadataVersion of e in the Event Grid schema.
func Versions(e *event.Event) (data, metadata string) {
	if metadata = e.Get("metadataversion"); metadata == "" {
		metadata = "1"
	}
	return e.Get("dataversion"), metadata
}

func eventTime(e *event.Event) string {
	if !e.Time.IsZero() {
		return event.FormatTime(e.Time)
	}
	if recorded := e.Get(event.ExtRecordedTime); recorded != "" {
		return recorded
	}
	return noTime
}

// unmapped gives the members that could not be attributes, or nil if they must
// stay together.
func unmapped(e *event.Event, object string) []rawjson.Member {
	members, err := rawjson.Members([]byte(object))
	if err != nil {
		return nil
	}
	for _, m := range members {
		switch name := strings.ToLower(m.Name); name {
		case "id", "topic", "subject", "eventtype", "eventtime", "dataversion", "metadataversion", "data",
			"specversion", "source", "type", "datacontenttype", "dataschema", "unmapped":
			return nil
		default:
			if e.Get(name) != "" {
				return nil
			}
		}
	}
	return members
}

// Validation makes the event by which Event Grid asks an endpoint whether it wants
// to be sent events; see Confirmed.
func Validation(topic, code string, now time.Time) *event.Event {
	data, _ := json.Marshal(map[string]string{"validationCode": code}) // a map of texts
	e := &event.Event{
		ID: code, Source: topic, Type: typeValidation, Time: now.UTC(), DataContentType: "application/json", Data: data, DataJSON: true,
	}
	e.Set("dataversion", "2")
	return e
}

// Confirmed says whether body is the answer of an endpoint that agrees: an object
// whose validationResponse is the code
// (learn.microsoft.com/azure/event-grid/end-point-validation-event-grid-events-schema;
// read 2026-11).
func Confirmed(body []byte, code string) bool {
	var answer struct{ ValidationResponse string } // in any case, as serializers have it
	return code != "" && json.Unmarshal(body, &answer) == nil && answer.ValidationResponse == code
}
