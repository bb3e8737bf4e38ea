// Package cloudevents reads CloudEvents 1.0.2 as they come over HTTP, in all
// three modes: binary (attributes in ce- headers, data in the body), structured
// (one event in the JSON format) and batch (an array of them).
//
// The content type tells the mode, as the HTTP binding has it, and then the
// lenient part begins: an array where one event was announced, one event where
// an array was, and either with the content type application/json are read for
// what they are. A structured content type over a body that is no event, beside
// a full set of ce- headers, is binary mode whose data is so declared: a stock
// client declares data like that (see isDeclaredLikeEvent).
//
// An event keeps its attributes and extensions as they were sent, and its data
// byte for byte. What it does not show is: attributes that are null or empty;
// a time that stands for "no time" (1900-01-01, 0001-01-01); the notation of
// time, which is written as RFC 3339 with a zone and at most nine digits of a
// second; and headers beside a structured event, which repeat it. A time that
// nobody can read is kept as extension originaltime; a name that cannot be an
// attribute's is kept in extension unmapped (see event.Event.Unmapped); JSON in
// binary mode without a Content-Type is declared application/json. Where the
// sender sets no partitionkey, subject is it.
//
// Event Grid's validation and deletion of a subscription are no events to fan
// out but Controls. One bad element is a Fault and costs its neighbours nothing.
//
// Source of the rules, unless said otherwise: cloudevents/spec, version 1.0.2,
// spec.md, formats/json-format.md, bindings/http-protocol-binding.md; read
// 2026-11.
package cloudevents

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

// mediaPrefix begins the media type of every event format. The binding tells
// structured and batch mode by it.
const mediaPrefix = "application/cloudevents"

// Parse reads a request. source is the name of the configured source, which is
// not needed: a CloudEvent names its own. header is the request's (an http.Header
// will do), its names in any case. The results follow the order of the elements;
// an empty batch has none, and a body that cannot be read has one, a fault.
// Events share body's memory. Parse is pure and safe for concurrent use.
func Parse(source string, header map[string][]string, body []byte) []event.Result {
	h, f := gather(header)
	if f != nil {
		return failed(body, f)
	}
	media, charset := mediaType(h.contentType)
	switch format, isFormat := strings.CutPrefix(media, mediaPrefix); {
	case isFormat && isDeclaredLikeEvent(media, h, body):
		return []event.Result{parseBinary(h, body)}
	case format == "+json" || isFormat && format == "":
		// Without a suffix it is the one format that everybody must support.
		return parseJSON(body, charset, false, "")
	case format == "-batch+json" || format == "-batch":
		return parseJSON(body, charset, true, "")
	case isFormat && (format[0] == '+' || strings.HasPrefix(format, "-batch+")):
		return failed(body, event.Faultf(event.FaultUnsupported, "Content-Type %.64q: of the event formats only JSON is understood; send %s or %s, or binary mode",
			media, event.MediaStructured, event.MediaBatch))
	case h.attributes["specversion"] != "":
		return []event.Result{parseBinary(h, body)}
	case h.binary() && !looksStructured(body):
		return []event.Result{parseBinary(h, body)}
	}
	return parseJSON(body, charset, true, media)
}

func failed(raw []byte, f *event.Fault) []event.Result {
	return []event.Result{{Raw: raw, Fault: f}}
}

// headers is what of a request's headers can be a CloudEvent's.
type headers struct {
	contentType string
	// attributes are the values of the ce- headers, by name without ce-, in
	// lower case. Empty values are left out.
	attributes map[string]string
}

// binary says whether a sender means binary mode, be it incomplete.
func (h *headers) binary() bool {
	return h.attributes["id"] != "" || h.attributes["source"] != "" || h.attributes["type"] != ""
}

const prefix = "ce-"

// gather collects the headers. HTTP has them in any case and lets them repeat;
// an attribute has one value.
func gather(header map[string][]string) (*headers, *event.Fault) {
	h := &headers{attributes: make(map[string]string, len(header))}
	names := make([]string, 0, len(header))
	for name := range header {
		if len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix) || strings.EqualFold(name, "content-type") {
			names = append(names, name)
		}
	}
	// In order, so that the same request always has the same fault.
	slices.Sort(names)
	for _, sent := range names {
		name := strings.ToLower(sent)
		attribute, ok := strings.CutPrefix(name, prefix)
		for _, raw := range header[sent] {
			if !ok {
				value := strings.TrimSpace(raw)
				if h.contentType != "" && value != "" && value != h.contentType {
					return nil, event.Faultf(event.FaultAmbiguous, "header Content-Type stands twice with different values")
				}
				if value != "" {
					h.contentType = value
				}
				continue
			}
			value, err := decode(strings.Trim(raw, " \t"))
			if err != nil {
				return nil, event.Faultf(event.FaultInvalid, "header %.64q: %v", name, err)
			}
			if value == "" {
				continue
			}
			if before, twice := h.attributes[attribute]; twice && before != value {
				return nil, event.Faultf(event.FaultAmbiguous, "header %.64q stands twice with different values", name)
			}
			h.attributes[attribute] = value
		}
	}
	return h, nil
}

// decode undoes what the binding (§3.1.3.2) does to a value: a quoted string,
// which older senders write, and then one round of percent-encoding. A percent
// sign that begins no escape stands for itself: senders that do not encode at
// all exist, and "50% off" can mean nothing else. Bytes that are not UTF-8 must
// be refused.
func decode(s string) (string, error) {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		s = unquote(s[1 : len(s)-1])
	}
	if strings.Contains(s, "%") {
		b := make([]byte, 0, len(s))
		for i := 0; i < len(s); i++ {
			if s[i] == '%' && i+2 < len(s) {
				if hi, lo := unhex(s[i+1]), unhex(s[i+2]); hi >= 0 && lo >= 0 {
					b = append(b, byte(hi<<4|lo))
					i += 2
					continue
				}
			}
			b = append(b, s[i])
		}
		s = string(b)
	}
	if !utf8.ValidString(s) {
		return "", errors.New("the value is not UTF-8, percent-encoded or plain")
	}
	return s, nil
}

// unquote takes the backslashes out of a quoted string's inside (RFC 7230
// §3.2.6).
func unquote(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b = append(b, s[i])
	}
	return string(b)
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}

// mediaType splits a content type into its media type and charset, both in
// lower case.
func mediaType(contentType string) (media, charset string) {
	media, parameters, _ := strings.Cut(contentType, ";")
	for p := range strings.SplitSeq(parameters, ";") {
		name, value, _ := strings.Cut(p, "=")
		if strings.EqualFold(strings.TrimSpace(name), "charset") {
			charset = strings.ToLower(strings.Trim(strings.TrimSpace(value), `"'`))
		}
	}
	return strings.ToLower(strings.TrimSpace(media)), charset
}

// isDeclaredLikeEvent says whether a structured content type is only that of
// the data, in binary mode. @azure/eventgrid-namespaces 1.0.0 declares any data
// application/cloudevents+json unless told otherwise (recorded 2026-11), and
// whoever hands such an event on in binary mode sends that as Content-Type.
func isDeclaredLikeEvent(media string, h *headers, body []byte) bool {
	if media != event.MediaStructured {
		return false
	}
	for _, name := range []string{"specversion", "id", "source", "type"} {
		if h.attributes[name] == "" {
			return false
		}
	}
	return !looksStructured(body)
}

// looksStructured says whether body is an event in the JSON format or an array
// that begins with one.
func looksStructured(body []byte) bool {
	elems, _, err := rawjson.Elements(body)
	if err != nil || len(elems) == 0 {
		return false
	}
	members, err := rawjson.Members(elems[0])
	return err == nil && find(members, "specversion") != nil
}

// find gives the value of a member, nil if there is none or it is null.
func find(members []rawjson.Member, name string) []byte {
	for _, m := range members {
		if m.Name == name && !rawjson.IsNull(m.Value) {
			return m.Value
		}
	}
	return nil
}

// parseJSON reads one event in the JSON format or an array of them. media is
// the content type where it does not announce an event.
func parseJSON(body []byte, charset string, batch bool, media string) []event.Result {
	elems, _, err := rawjson.Elements(body)
	if foreign(charset) && (err != nil || !utf8.Valid(body)) {
		return failed(body, event.Faultf(event.FaultEncodedBody, "the body is in charset %.32q; JSON is read in UTF-8 only", charset))
	}
	switch {
	case err != nil && media != "" && media != "application/json":
		return failed(body, event.Faultf(event.FaultNotJSON, "%v; its Content-Type is %.64q, and there are no ce- headers that would make it an event in binary mode", err, media))
	case err != nil:
		return failed(body, event.Faultf(event.FaultNotJSON, "%v", err))
	case !batch && elems == nil && bytes.HasSuffix(bytes.TrimSpace(body), []byte("null")):
		return failed(body, event.Faultf(event.FaultNotEvent, "want a JSON object, got null"))
	}
	results := make([]event.Result, len(elems))
	var members []rawjson.Member // of one element after the other
	for i, raw := range elems {
		if members, err = rawjson.MembersIn(members, raw); err != nil {
			results[i] = event.Result{Raw: raw, Fault: event.Faultf(event.FaultNotEvent, "%v", err)}
			continue
		}
		results[i] = parseMembers(raw, members)
	}
	return results
}

// foreign says whether a charset is one that JSON is not read in.
func foreign(charset string) bool {
	switch charset {
	case "", "utf-8", "utf8", "us-ascii", "ascii":
		return false
	}
	return true
}

func parseMembers(raw []byte, members []rawjson.Member) event.Result {
	if find(members, "specversion") == nil {
		return event.Result{Raw: raw, Fault: noVersion(members)}
	}
	e, err := event.FromMembers(members)
	if err != nil {
		return event.Result{Raw: raw, Fault: event.FaultOf(err)}
	}
	return finish(e, raw)
}

func noVersion(members []rawjson.Member) *event.Fault {
	switch {
	case find(members, "eventType") != nil:
		return event.Faultf(event.FaultNotEvent, "an event in the Event Grid schema; this source's kind is cloudevents, and kind eventgrid takes both")
	case find(members, "id") != nil && find(members, "type") != nil && find(members, "source") != nil:
		return event.Faultf(event.FaultMissing, "attribute specversion is missing")
	}
	return event.Faultf(event.FaultNotEvent, "neither specversion (an event in the JSON format) nor ce- headers (binary mode) are there; send a CloudEvent")
}

// parseBinary reads an event in binary mode.
func parseBinary(h *headers, body []byte) event.Result {
	e := &event.Event{DataContentType: h.contentType}
	var extra []rawjson.Member
	for _, name := range slices.Sorted(maps.Keys(h.attributes)) {
		value := h.attributes[name]
		switch name {
		case "specversion":
		case "id":
			e.ID = value
		case "source":
			e.Source = value
		case "type":
			e.Type = value
		case "subject":
			e.Subject = value
		case "dataschema":
			e.DataSchema = value
		case "time":
			e.SetTime(value)
		case "datacontenttype":
			// Must not be there (§3.1.1); Content-Type stands for it.
			if e.DataContentType == "" {
				e.DataContentType = value
			} else if e.DataContentType != value {
				extra = append(extra, member(name, value))
			}
		default:
			extra = append(extra, member(name, value))
		}
	}
	fail := func(f *event.Fault) event.Result { return event.Result{Raw: body, Fault: f} }
	for _, name := range []string{"specversion", "id", "source", "type"} {
		if h.attributes[name] == "" {
			return fail(event.Faultf(event.FaultMissing, "header ce-%s is missing or empty", name))
		}
	}
	if v := h.attributes["specversion"]; v != event.SpecVersion {
		return fail(event.Faultf(event.FaultUnsupported, "specversion is %.16q; only CloudEvents %s is understood", v, event.SpecVersion))
	}
	e.Unmapped(extra)
	if len(body) > 0 {
		e.Data = body
		if isJSON := rawjson.Valid(body); isJSON && e.DataContentType == "" {
			e.DataContentType, e.DataJSON = "application/json", true
		} else {
			e.DataJSON = isJSON && event.IsJSONMedia(e.DataContentType)
		}
	}
	return finish(e, body)
}

func member(name, value string) rawjson.Member {
	quoted, _ := jsontext.AppendQuote(nil, value)
	return rawjson.Member{Name: name, Value: quoted}
}

// finish gives the result of an event that is read.
func finish(e *event.Event, raw []byte) event.Result {
	r := event.Result{Raw: raw}
	if e.DataJSON {
		if r.Fault = event.CheckDepth(e.Data); r.Fault != nil {
			return r
		}
	}
	if r.Control, r.Fault = eventgrid.Control(e); r.Control != nil || r.Fault != nil {
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
	r.Scope, r.Name = event.LastSegment(e.Source), e.Type
	r.Key = e.Source + "\n" + e.ID
	r.Digest = event.Digest(e.Type, e.Subject, e.Data, e.DataJSON)
	return r
}
