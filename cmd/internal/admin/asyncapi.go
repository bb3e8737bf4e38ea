package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/schemas/asyncapi"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/filter"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/transform"
)

// From how many events a document is written.
const (
	defaultAsyncAPI = 1000
	maxAsyncAPI     = 10_000
)

// asyncAPI answers what a subscriber gets, as an AsyncAPI document. Its examples
// are stored events, so it is as confidential as they are.
func (s *server) asyncAPI(_ http.ResponseWriter, r *http.Request) (any, error) {
	last := defaultAsyncAPI
	if text := r.URL.Query().Get("last"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxAsyncAPI {
			return nil, problem(http.StatusBadRequest, "bad-parameter", fmt.Sprintf("last: want 1 to %d", maxAsyncAPI))
		}
		last = n
	}
	e, err := s.Registry.Get(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	d, err := newDescriber(e.Definition)
	if err != nil {
		return nil, err
	}
	if d.way, err = s.way(r.Context(), e.Definition); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), trialTimeout)
	defer cancel()
	if _, err := s.readStored(ctx, e.Definition.Subjects, nil, last, d.message); err != nil {
		return nil, err
	}
	known := map[string][]byte{}
	for _, s := range schemas {
		if s.id != event.SchemaID {
			known[s.id] = s.text
		}
	}
	doc, err := asyncapi.Document(d.service(e), known, d.samples)
	return json.RawMessage(doc), err
}

// describer collects what a subscriber gets of stored events.
type describer struct {
	definition registry.Definition
	filter     *filter.Filter
	transform  *transform.Transform
	way        way
	samples    []asyncapi.Sample
	bytes      int
	mediaType  string // of the newest
}

// describeMost bounds the memory of one document; the newest events count.
const describeMost = 32 << 20

func newDescriber(d registry.Definition) (*describer, error) {
	known, err := registry.Schemas(d.Subjects)
	if err != nil {
		return nil, err
	}
	s := &describer{definition: d}
	if d.Filter != "" {
		if s.filter, err = filter.Compile(d.Filter, known...); err != nil {
			return nil, err
		}
	}
	if d.Transform != "" {
		if s.transform, err = transform.Compile(d.Transform); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// message takes a stored event into account, if the subscriber would get it.
func (d *describer) message(m jetstream.Msg) error {
	e, err := event.Decode(m.Headers(), m.Data())
	if err != nil {
		return nil // it would be a dead letter
	}
	if verdict, _ := judge(d.filter, e); verdict != verdictMatched {
		return nil
	}
	if d.transform != nil {
		if e, err = d.transform.Apply(e); err != nil {
			return nil // likewise
		}
	}
	headers, body, mediaType := d.way.write(e)
	d.mediaType = mediaType
	sample := asyncapi.Sample{Type: e.Type, DataSchema: e.DataSchema, Headers: headers, Body: inJSON(body)}
	if e.DataJSON {
		sample.Data = e.Data
	}
	d.samples = append(d.samples, sample)
	d.bytes += len(body) + len(sample.Data)
	for d.bytes > describeMost && len(d.samples) > 1 {
		d.bytes -= len(d.samples[0].Body) + len(d.samples[0].Data)
		d.samples = d.samples[1:]
	}
	return nil
}

// inJSON gives a body as it can stand in a document: as it is, as a text, or not at
// all.
func inJSON(body []byte) json.RawMessage {
	switch {
	case len(body) == 0:
		return nil
	case json.Valid(body):
		return body
	case utf8.Valid(body):
		text, _ := json.Marshal(string(body)) // a string: it cannot fail
		return text
	}
	return nil
}

// service says how the subscriber gets its events.
func (d *describer) service(e registry.Entry) asyncapi.Service {
	s := d.way.service
	s.Subscriber, s.Version, s.Subjects = e.Definition.Name, strconv.FormatUint(e.Revision, 10), e.Definition.Subjects
	s.ContentType = cmp.Or(s.ContentType, d.mediaType, "application/json")
	about := append([]string{s.Description}, d.way.about...)
	if e.Definition.Filter != "" {
		about = append(about, "Only events that its filter lets through: `"+e.Definition.Filter+"`.")
	}
	if o := e.Definition.Ordering; o != "" {
		about = append(about, "Ordering: "+string(o)+".")
	}
	s.Description = strings.Join(about, "\n\n")
	return s
}

// AsyncAPI gives a subscriber's AsyncAPI document, from its newest events: last of
// them, or as many as is usual for 0.
func (c *Client) AsyncAPI(ctx context.Context, name string, last int) (json.RawMessage, error) {
	path := "/api/v1/subscribers/" + url.PathEscape(name) + "/asyncapi"
	if last > 0 {
		path += "?last=" + strconv.Itoa(last)
	}
	var doc json.RawMessage
	return doc, c.call(ctx, http.MethodGet, path, nil, &doc)
}
