package webhook

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/schemas/event"
)

// Own headers are texts in which {{name}} stands for an attribute of the event.
// Nothing else can be said in them: what a header is for, telling events apart
// before the body is read, needs no more, and a value that is looked up cannot fail,
// run long or be wrong about types. ${…} would be shorter, but is how the
// configuration file refers to variables and files, in these very values.

// Bounds of own headers. A server refuses a request with too large a head, 8 KiB
// for many (nginx large_client_header_buffers, Apache LimitRequestFieldSize; 2026-11),
// and a refusal would cost the event. Event Grid has ten of 4 KiB for the same
// (learn.microsoft.com/azure/event-grid/delivery-properties; 2026-11).
const (
	maxHeaders     = 20
	maxHeaderName  = 100
	maxHeaderValue = 4 << 10
	maxHeadersSize = 8 << 10
)

// ownHeader is one, parsed.
type ownHeader struct {
	name  string // canonical
	parts []headerPart
}

// headerPart is an attribute, or a text if that is empty.
type headerPart struct{ text, attribute string }

func (h ownHeader) dynamic() bool {
	return slices.ContainsFunc(h.parts, func(p headerPart) bool { return p.attribute != "" })
}

// parseHeaders reads own headers, sorted by name. Its error reports every problem,
// by the path of its key below path, and shows no value.
func parseHeaders(headers map[string]string, path string) ([]ownHeader, error) {
	var errs []error
	if n := len(headers); n > maxHeaders {
		errs = append(errs, fmt.Errorf("%s: want at most %d, got %d", path, maxHeaders, n))
	}
	var all []ownHeader
	seen, size := map[string]string{}, 0
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		problem := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("%s.%.100s: %s", path, name, fmt.Sprintf(format, args...)))
		}
		if name == "" || len(name) > maxHeaderName || strings.Trim(name, tokenBytes) != "" {
			errs = append(errs, fmt.Errorf("%s: %.100q is no name of a header: want letters, digits and dashes, up to %d", path, name, maxHeaderName))
			continue
		}
		h := ownHeader{name: http.CanonicalHeaderKey(name)}
		if why := reserved(h.name); why != "" {
			problem("%s", why)
			continue
		}
		if other, twice := seen[h.name]; twice {
			problem("is the same header as %s", other)
			continue
		}
		seen[h.name] = name
		var err error
		if h.parts, err = parseTemplate(headers[name]); err != nil {
			problem("%v", err)
			continue
		}
		size += len(name) + len(headers[name])
		all = append(all, h)
	}
	if size > maxHeadersSize {
		errs = append(errs, fmt.Errorf("%s: want at most %d bytes in all, got %d", path, maxHeadersSize, size))
	}
	return all, errors.Join(errs...)
}

// tokenBytes are those of which a header's name consists (RFC 9110 §5.6.2).
const tokenBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~"

// reserved says why a header cannot be set, and nothing for one that can.
func reserved(canonical string) string {
	for _, prefix := range []string{"Ce-", "Webhook-", "Aeg-"} {
		if strings.HasPrefix(canonical, prefix) {
			return "headers that begin with " + strings.ToLower(prefix) + " are those of the event's format; take another name"
		}
	}
	switch canonical {
	case "Host", "Content-Type", "Content-Length", "Content-Encoding", "User-Agent", "Expect", "Date":
		return "gridfan sets it itself"
	case "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings":
		return "it is between two neighbours on the way (hop by hop) and never gets to the subscriber"
	}
	return ""
}

// parseTemplate reads a value. Its error does not show it.
func parseTemplate(value string) ([]headerPart, error) {
	switch {
	case value == "":
		return nil, errors.New("empty; give a value or leave the header out")
	case len(value) > maxHeaderValue:
		return nil, fmt.Errorf("want at most %d bytes, got %d", maxHeaderValue, len(value))
	case strings.Trim(value, " ") != value:
		return nil, errors.New("a blank at its beginning or end does not get through")
	}
	for i := range len(value) {
		if c := value[i]; c < ' ' || c > '~' {
			return nil, errors.New("want printable ASCII: nothing else is safe in a header")
		}
	}
	var parts []headerPart
	for rest := value; rest != ""; {
		before, after, found := strings.Cut(rest, "{{")
		if strings.Contains(before, "}}") {
			return nil, errors.New("}} without {{ before it")
		}
		if before != "" {
			parts = append(parts, headerPart{text: before})
		}
		if !found {
			break
		}
		name, more, closed := strings.Cut(after, "}}")
		name = strings.TrimSpace(name)
		switch {
		case !closed:
			return nil, errors.New("{{ without }} behind it")
		case !isAttribute(name):
			return nil, errors.New("between {{ and }} want the name of an attribute, which has lower-case letters and digits only, as in {{type}} or {{legalentity}}")
		}
		parts = append(parts, headerPart{attribute: name})
		rest = more
	}
	return parts, nil
}

func isAttribute(name string) bool {
	switch name {
	case "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "specversion":
		return true
	}
	return event.ValidExtensionName(name)
}

// attribute gives the text of an attribute, empty if it is not set.
func attribute(e *event.Event, name string) string {
	switch name {
	case "id":
		return e.ID
	case "source":
		return e.Source
	case "type":
		return e.Type
	case "subject":
		return e.Subject
	case "time":
		if e.Time.IsZero() {
			return ""
		}
		return event.FormatTime(e.Time)
	case "datacontenttype":
		return e.DataContentType
	case "dataschema":
		return e.DataSchema
	case "specversion":
		return event.SpecVersion
	}
	return e.Get(name)
}

// headerValue makes a foreign text fit for a header: what is not printable ASCII,
// quotes, blanks and per cent are percent-encoded, as in ce- headers.
func headerValue(s string) string {
	n := 0
	for i := range len(s) {
		if unfit(s[i]) {
			n += 2
		}
	}
	if n == 0 {
		return s
	}
	b := make([]byte, 0, len(s)+n)
	for i := range len(s) {
		if c := s[i]; unfit(c) {
			b = append(b, '%', hexDigits[c>>4], hexDigits[c&15])
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}

func unfit(c byte) bool { return c <= ' ' || c >= 0x7f || c == '"' || c == '%' }

// value gives the header for an event, empty for none. A value that is too long is
// none either: a piece of an attribute says something else.
func (h ownHeader) value(e *event.Event) string {
	var b strings.Builder
	for _, p := range h.parts {
		text := p.text
		if p.attribute != "" {
			if text = attribute(e, p.attribute); len(text) > maxHeaderValue {
				return ""
			}
			text = headerValue(text)
		}
		b.WriteString(text)
		if b.Len() > maxHeaderValue {
			return ""
		}
	}
	return strings.Trim(b.String(), " ")
}

// setHeaders sorts own headers into those that are the same for every request,
// which are set at once, and those that are not.
func (s *Sender) setHeaders(headers []ownHeader) {
	for _, h := range headers {
		if h.dynamic() {
			s.own = append(s.own, h)
			s.ownSize += len(h.name) + maxHeaderValue
			continue
		}
		value := h.value(nil)
		s.header.Set(h.name, value)
		s.ownSize += len(h.name) + len(value)
	}
	s.ownSize = min(s.ownSize, maxHeadersSize)
	s.ownRoom = maxHeadersSize
	for _, h := range headers {
		if !h.dynamic() {
			s.ownRoom -= len(h.name) + len(h.value(nil))
		}
	}
}

// addOwn adds the headers that depend on the event, those for which there is room.
func (s *Sender) addOwn(h http.Header, e *event.Event) {
	room := s.ownRoom
	for _, own := range s.own {
		value := own.value(e)
		if size := len(own.name) + len(value); value != "" && size <= room {
			room -= size
			h[own.name] = []string{value}
		}
	}
}

// redactHeaders hides the values that may be secret: all in which something other
// than attributes and what parts them stands.
func redactHeaders(headers map[string]string) map[string]string {
	if headers == nil {
		return nil
	}
	shown := make(map[string]string, len(headers))
	for name, value := range headers {
		shown[name] = secret.New(value).String()
		parts, err := parseTemplate(value)
		if err == nil && !slices.ContainsFunc(parts, func(p headerPart) bool { return strings.Trim(p.text, " -_/.:,;|") != "" }) {
			shown[name] = value
		}
	}
	return shown
}

// secretsOf are the parts of own headers that no Reason may show.
func secretsOf(headers []ownHeader) []string {
	var all []string
	for _, h := range headers {
		for _, p := range h.parts {
			for _, word := range append(strings.Fields(p.text), strings.TrimSpace(p.text)) {
				if word != "Bearer" && word != "Basic" {
					all = append(all, word)
				}
			}
		}
	}
	return all
}
