package eventgrid

import (
	"encoding/json"
	"time"
	"unicode/utf8"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/messaging"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/eventgrid/azeventgrid"

	"github.com/gridfan/gridfan/schemas/event"
)

// cloudEvent gives e as the SDK has it. Data and typed extensions go as the JSON that
// they are, so that no number changes.
func cloudEvent(e *event.Event) messaging.CloudEvent {
	ce := messaging.CloudEvent{ID: e.ID, Source: e.Source, SpecVersion: event.SpecVersion, Type: e.Type}
	for _, a := range []struct {
		to   **string
		text *string
	}{{&ce.Subject, &e.Subject}, {&ce.DataContentType, &e.DataContentType}, {&ce.DataSchema, &e.DataSchema}} {
		if *a.text != "" {
			*a.to = a.text
		}
	}
	if !e.Time.IsZero() {
		ce.Time = &e.Time
	}
	if len(e.Extensions) > 0 {
		ce.Extensions = make(map[string]any, len(e.Extensions))
	}
	for _, x := range e.Extensions {
		ce.Extensions[x.Name] = x.Value
		if x.Type != event.String {
			ce.Extensions[x.Name] = json.RawMessage(x.Value)
		}
	}
	switch {
	case e.Data == nil:
	case e.DataJSON:
		ce.Data = json.RawMessage(e.Data)
	case e.DataContentType != "" && !event.IsJSONMedia(e.DataContentType) && utf8.Valid(e.Data):
		ce.Data = string(e.Data)
	default:
		ce.Data = e.Data // in base64
	}
	return ce
}

// defaultDataVersion is that of data which says none: the schema wants one.
const defaultDataVersion = "1.0"

// eventGridEvents writes events in the Event Grid schema. It has no place for the
// source, which is the topic's, nor for extensions but dataversion.
func eventGridEvents(events []*event.Event, now time.Time) []azeventgrid.Event {
	all := make([]azeventgrid.Event, len(events))
	for i, e := range events {
		subject, version, at := e.Subject, e.Get("dataversion"), e.Time
		if subject == "" {
			subject = e.Source // the schema wants one
		}
		if version == "" {
			version = defaultDataVersion
		}
		if at.IsZero() {
			// An attempt that is repeated says the same.
			if accepted, err := event.ParseTime(e.Get(event.ExtRecordedTime)); err == nil {
				at = accepted
			} else {
				at = now
			}
		}
		all[i] = azeventgrid.Event{
			ID: &e.ID, EventType: &e.Type, Subject: &subject, EventTime: &at, DataVersion: &version, Data: json.RawMessage("null"),
		}
		switch {
		case e.Data == nil:
		case e.DataJSON:
			all[i].Data = json.RawMessage(e.Data)
		case utf8.Valid(e.Data):
			all[i].Data = string(e.Data)
		default:
			all[i].Data = e.Data // in base64
		}
	}
	return all
}

// jsonSize is at least how many bytes e has as the clients write it, and for what
// is usual not much more.
func jsonSize(e *event.Event) int {
	n := 256 + 2*len(defaultDataVersion)
	for _, s := range []string{e.ID, e.Source, e.Type, e.Subject, e.DataContentType, e.DataSchema} {
		n += textSize(s)
	}
	n += len(e.Source) // in the place of a subject
	for _, x := range e.Extensions {
		n += len(x.Name) + 6 + textSize(x.Value)
	}
	switch {
	case e.DataJSON:
		return n + rawSize(e.Data)
	case utf8.Valid(e.Data):
		return n + max(textSize(string(e.Data)), len(e.Data)*4/3+4)
	}
	return n + len(e.Data)*4/3 + 4
}

// textSize is the size of s as a JSON string.
func textSize(s string) int {
	n := rawSize(s) + 2
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ':
			n += 5 // \u001f
		case c == '"' || c == '\\':
			n++
		}
	}
	return n
}

// rawSize is the size of JSON that is written anew.
func rawSize[T string | []byte](b T) int {
	n := len(b)
	for i := range len(b) {
		switch c := b[i]; {
		case c == '<' || c == '>' || c == '&':
			n += 5
		case c == 0xe2 && i+2 < len(b) && b[i+1] == 0x80: // U+2028 and U+2029
			n += 3
		}
	}
	return n
}
