package webhook

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
)

// Format is the form in which an event goes out.
type Format string

// The formats.
const (
	Structured Format = "cloudevents"        // CloudEvents 1.0, one JSON object
	Binary     Format = "cloudevents-binary" // CloudEvents 1.0, attributes in ce- headers, data as body
	EventGrid  Format = "eventgrid"          // the Event Grid schema, an array also of one
	Original   Format = "original"           // the data as body, and nothing else
)

// Formats are all there are.
var Formats = []Format{Structured, Binary, EventGrid, Original}

// settle sets the default and reports a format that there is not.
func (f *Format) settle(path string) error {
	if *f == "" {
		*f = Structured
	}
	if !slices.Contains(Formats, *f) {
		return fmt.Errorf("%s: want %s, %s, %s or %s, got %q", path, Structured, Binary, EventGrid, Original, *f)
	}
	return nil
}

// ValidateBatch reports, by the path of its key below path, what keeps several
// events from going out in one request. c is valid.
func (c Config) ValidateBatch(path string) error {
	var errs []error
	if c.Format == Binary || c.Format == Original {
		errs = append(errs, fmt.Errorf("%s.format: %s has room for one event in a request; want %s or %s beside limits.batch, or no batch", path, c.Format, Structured, EventGrid))
	}
	headers, _ := parseHeaders(c.Headers, "")
	for _, h := range headers {
		if h.dynamic() {
			errs = append(errs, fmt.Errorf("%s.headers.%s: several events in a request have no one value; take the {{…}} out of it, or no batch", path, h.name))
		}
	}
	return errors.Join(errs...)
}

// Preview writes an event as Send would, or as an array as SendBatch would, without
// a signature. The result is the caller's.
func (s *Sender) Preview(e *event.Event, batch bool) (header http.Header, body []byte) {
	if batch {
		header, _, body = s.array([]*event.Event{e})
	} else {
		header, _, body = s.one(e, nil)
	}
	header = header.Clone()
	s.addOwn(header, e)
	return header, body
}

// one writes a single event, into room if that is not nil: the body is then good until
// the room is used again. own says that the header is this request's and not shared.
func (s *Sender) one(e *event.Event, room *[]byte) (header http.Header, own bool, body []byte) {
	switch s.format {
	case EventGrid:
		return s.gridHeader([]*event.Event{e}), true, eventgrid.AppendArray(make([]byte, 0, roomFor(e)), e)
	case Original:
		header = s.withRoom(s.header)
		delete(header, "Content-Type")
		if contentType := bodyType(e); contentType != "" && httpguts.ValidHeaderFieldValue(contentType) && e.Data != nil {
			header["Content-Type"] = []string{contentType}
		}
		// What a receiver knows a repetition by, as it is where requests are signed.
		header["Webhook-Id"] = []string{webhookID(e.ID)}
		return header, true, e.Data
	case Binary:
		if header, ok := s.binaryHeader(e); ok {
			return header, true, e.Data
		}
	}
	if room == nil {
		return s.header, false, e.JSON()
	}
	body = e.AppendJSON((*room)[:0])
	if cap(body) <= maxRoom {
		*room = body
	}
	return s.header, false, body
}

// array writes several events.
func (s *Sender) array(events []*event.Event) (header http.Header, own bool, body []byte) {
	size := 2
	for _, e := range events {
		size += roomFor(e)
	}
	body = make([]byte, 0, size)
	if s.format == EventGrid {
		return s.gridHeader(events), true, eventgrid.AppendArray(body, events...)
	}
	body = append(body, '[')
	for i, e := range events {
		if i > 0 {
			body = append(body, ',')
		}
		body = e.AppendJSON(body)
	}
	return s.batch, false, append(body, ']')
}

func roomFor(e *event.Event) int { return 512 + e.HeaderSize() + len(e.Data) }

// withRoom copies a header that more is added to.
func (s *Sender) withRoom(h http.Header) http.Header {
	own := make(http.Header, len(h)+4+len(s.own))
	maps.Copy(own, h)
	return own
}

// gridHeader gives the header of an array in the Event Grid schema, as Event Grid
// sends it. There is no aeg-delivery-count: which attempt it is, of how many
// replicas, is not known here, and a wrong count is worse than none. The versions
// are those of all events, if they have the same.
func (s *Sender) gridHeader(events []*event.Event) http.Header {
	h := s.withRoom(s.header)
	h["Content-Type"] = []string{eventgrid.MediaType}
	h.Set(eventgrid.HeaderEventType, eventgrid.EventTypeNotification)
	data, metadata := eventgrid.Versions(events[0])
	for _, e := range events[1:] {
		d, m := eventgrid.Versions(e)
		if d != data {
			data = ""
		}
		if m != metadata {
			metadata = ""
		}
	}
	for name, value := range map[string]string{
		eventgrid.HeaderSubscription: s.subscription, eventgrid.HeaderDataVersion: data, eventgrid.HeaderMetadataVersion: metadata,
	} {
		if value = headerValue(value); value != "" {
			h.Set(name, value)
		}
	}
	return h
}

// binaryHeader gives e's headers in binary mode, or false when e must go in
// structured mode.
func (s *Sender) binaryHeader(e *event.Event) (http.Header, bool) {
	if e.HeaderSize()+s.ownSize > maxHeader || isCloudEvents(e.DataContentType) && !e.DataJSON || !httpguts.ValidHeaderFieldValue(bodyType(e)) {
		return nil, false
	}
	h := make(http.Header, len(s.header)+8+len(e.Extensions)+3+len(s.own)) // and a signature
	maps.Copy(h, s.header)
	h.Del("Content-Type")
	e.Header(h)
	// e.Header sets it in lower case; one request must not have it twice.
	delete(h, "content-type")
	if contentType := bodyType(e); contentType != "" {
		h["Content-Type"] = []string{contentType}
	}
	return h, true
}

// bodyType is the content type of a body that is e's data alone.
//
// Some publishers say application/cloudevents+json of their data
// (@azure/eventgrid-namespaces 1.0.0; 2026-11). As the Content-Type of a request
// that means structured mode, and the receiver would look for attributes in the
// data.
func bodyType(e *event.Event) string {
	if isCloudEvents(e.DataContentType) && e.DataJSON || e.DataContentType == "" && e.DataJSON && e.Data != nil {
		return "application/json"
	}
	return e.DataContentType
}

func isCloudEvents(contentType string) bool {
	const prefix = "application/cloudevents"
	s := strings.TrimSpace(contentType)
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}
