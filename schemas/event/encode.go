package event

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/gridfan/gridfan/schemas/rawjson"
)

// SpecVersion is the CloudEvents version of every event here.
const SpecVersion = "1.0"

// Media types of the JSON event format.
const (
	MediaStructured = "application/cloudevents+json"
	MediaBatch      = "application/cloudevents-batch+json"
)

const (
	headerPrefix      = "ce-"
	headerContentType = "content-type"

	// CloudEvents' binary mode forgets the types of extensions and whether
	// data was JSON in spite of its content type; these two headers, on NATS
	// only, remember them where the default would be wrong.
	headerTypes = "Gridfan-Types"
	headerData  = "Gridfan-Data"
)

// maxHeader is how many bytes of attributes go into headers before Encode
// takes the structured form instead. JetStream refuses a header block over
// 65,535 bytes (nats-server v2.15.2 server/stream.go, MaxUint16 check); half
// of that leaves room for the headers of the router and of the broker.
const maxHeader = 32 << 10

// Encode gives the headers and body of e's NATS message: CloudEvents binary
// mode, or the structured form when the attributes are too big for headers or
// when data is itself a structured event, whose content type would be taken for
// the message's. Header names are lower case, as the NATS binding has them.
//
// The map has room for as many headers as a publisher adds.
func (e *Event) Encode() (header map[string][]string, body []byte) {
	if !e.fits(maxHeader) || mediaType(e.DataContentType) == MediaStructured {
		return map[string][]string{headerContentType: {MediaStructured}}, e.JSON()
	}
	header = make(map[string][]string, 12+len(e.Extensions))
	e.Header(header)
	var types []string
	for _, x := range e.Extensions {
		switch x.Type {
		case Integer:
			types = append(types, x.Name+"=integer")
		case Boolean:
			types = append(types, x.Name+"=boolean")
		}
	}
	if types != nil {
		header[headerTypes] = []string{strings.Join(types, ",")}
	}
	if e.Data != nil && e.DataJSON != IsJSONMedia(e.DataContentType) {
		header[headerData] = []string{map[bool]string{true: "json", false: "bytes"}[e.DataJSON]}
	}
	return header, e.Data
}

// fits says whether HeaderSize is at most limit, most often without counting
// what has to be encoded.
func (e *Event) fits(limit int) bool {
	n := len(e.ID) + len(e.Source) + len(e.Type) + len(e.Subject) + len(e.DataContentType) + len(e.DataSchema)
	names := 256
	for _, x := range e.Extensions {
		n += len(x.Value)
		names += len(x.Name) + 8
	}
	return names+3*n <= limit || e.HeaderSize() <= limit
}

// HeaderSize is at least how many bytes Header adds, and not much more.
func (e *Event) HeaderSize() int {
	n := 256
	for _, s := range []string{e.ID, e.Source, e.Type, e.Subject, e.DataContentType, e.DataSchema} {
		n += encodedLen(s)
	}
	for _, x := range e.Extensions {
		n += len(x.Name) + 8 + encodedLen(x.Value)
	}
	return n
}

// Header sets the CloudEvents binary mode headers on h, replacing what stands
// there under their names.
func (e *Event) Header(h map[string][]string) {
	// One slice holds all values, and one string what has to be written.
	values := make([]string, 0, 8+len(e.Extensions))
	set := func(header, value string) {
		if value != "" {
			n := len(values)
			values = append(values, value)
			h[header] = values[n : n+1 : n+1]
		}
	}
	var text strings.Builder
	size := len(time.RFC3339Nano)
	for _, x := range e.Extensions {
		size += len(headerPrefix) + len(x.Name)
	}
	text.Grow(size)
	set(headerPrefix+"specversion", SpecVersion)
	set(headerPrefix+"id", percentEncode(e.ID))
	set(headerPrefix+"source", percentEncode(e.Source))
	set(headerPrefix+"type", percentEncode(e.Type))
	set(headerPrefix+"subject", percentEncode(e.Subject))
	if !e.Time.IsZero() {
		var room [len(time.RFC3339Nano)]byte
		text.Write(e.Time.AppendFormat(room[:0], time.RFC3339Nano))
		set(headerPrefix+"time", text.String())
	}
	set(headerPrefix+"dataschema", percentEncode(e.DataSchema))
	set(headerContentType, e.DataContentType)
	for _, x := range e.Extensions {
		start := text.Len()
		text.WriteString(headerPrefix)
		text.WriteString(x.Name)
		set(text.String()[start:], percentEncode(x.Value))
	}
}

// Field is one header of a message.
type Field struct{ Name, Value string }

// Decode reads a NATS message back: what Encode wrote, or any CloudEvent in
// binary or structured mode that another client published.
func Decode(header map[string][]string, body []byte) (*Event, error) {
	var room [32]Field
	fields := room[:0]
	for name, values := range header {
		if len(values) > 0 {
			fields = append(fields, Field{name, values[0]})
		}
	}
	return DecodeFields(fields, body)
}

// DecodeFields is Decode for headers in the order in which they came. Of those of the
// same name the first counts. The event keeps parts of their texts.
func DecodeFields(fields []Field, body []byte) (*Event, error) {
	ct := fieldOf(fields, headerContentType)
	if mediaType(ct) == MediaStructured {
		return ParseJSON(body)
	}
	e := &Event{DataContentType: ct}
	spec, types, isJSON := "", "", ""
	var seen [8]bool
	first := func(i int) bool {
		was := seen[i]
		seen[i] = true
		return !was
	}
	for _, f := range fields {
		name := f.Name
		if len(name) <= len(headerPrefix) || name[:len(headerPrefix)] != headerPrefix && !strings.EqualFold(name[:len(headerPrefix)], headerPrefix) {
			switch {
			case len(name) == len(headerTypes) && strings.EqualFold(name, headerTypes):
				types = fieldOf(fields, headerTypes)
			case len(name) == len(headerData) && strings.EqualFold(name, headerData):
				isJSON = fieldOf(fields, headerData)
			}
			continue
		}
		value, err := percentDecode(f.Value)
		if err != nil {
			return nil, fmt.Errorf("header %.64s: %w", name, err)
		}
		switch name := strings.ToLower(name[len(headerPrefix):]); name {
		case "specversion":
			if first(0) {
				spec = value
			}
		case "id":
			if first(1) {
				e.ID = value
			}
		case "source":
			if first(2) {
				e.Source = value
			}
		case "type":
			if first(3) {
				e.Type = value
			}
		case "subject":
			if first(4) {
				e.Subject = value
			}
		case "dataschema":
			if first(5) {
				e.DataSchema = value
			}
		case "datacontenttype":
			if first(6) && ct == "" {
				e.DataContentType = value
			}
		case "time":
			if !first(7) {
				continue
			}
			if e.Time, err = ParseTime(value); err != nil {
				return nil, fmt.Errorf("attribute time: %w", err)
			}
		default:
			if _, twice := e.find(name); !twice && value != "" { // an empty header is no attribute; Header sends none
				e.SetExtension(Extension{Name: name, Value: value})
			}
		}
	}
	if spec != SpecVersion {
		return nil, fmt.Errorf("not a CloudEvents %s message: specversion is %.16q", SpecVersion, spec)
	}
	e.setTypes(types)
	if len(body) > 0 {
		e.Data = body
		e.DataJSON = IsJSONMedia(e.DataContentType)
		switch isJSON {
		case "json":
			e.DataJSON = true
		case "bytes":
			e.DataJSON = false
		default:
			// Somebody else's message: its word on JSON is not ours.
			if e.DataJSON && e.Get(ExtSource) == "" {
				e.DataJSON = rawjson.Valid(body)
			}
		}
	}
	return e, e.Validate()
}

// setTypes gives extensions the types that Encode wrote down, but only those
// whose value is of the type: another client's word for it could make JSON that
// is none.
func (e *Event) setTypes(pairs string) {
	if pairs == "" {
		return
	}
	types := parseTypes(pairs)
	for i, x := range e.Extensions {
		switch t := types[x.Name]; {
		case t == Integer && isInt32(x.Value), t == Boolean && (x.Value == "true" || x.Value == "false"):
			e.Extensions[i].Type = t
		}
	}
}

func parseTypes(s string) map[string]ExtensionType {
	types := map[string]ExtensionType{}
	for pair := range strings.SplitSeq(s, ",") {
		switch name, t, _ := strings.Cut(pair, "="); t {
		case "integer":
			types[name] = Integer
		case "boolean":
			types[name] = Boolean
		}
	}
	return types
}

// fieldOf finds a header whatever its case: NATS keeps the case it was sent with.
// The one that is spelled as here goes first.
func fieldOf(fields []Field, name string) string {
	value, found := "", false
	for _, f := range fields {
		if len(f.Name) != len(name) {
			continue
		}
		if f.Name == name {
			return f.Value
		}
		if !found && strings.EqualFold(f.Name, name) {
			value, found = f.Value, true
		}
	}
	return value
}

func mediaType(contentType string) string {
	m, _, _ := strings.Cut(contentType, ";")
	return strings.ToLower(strings.TrimSpace(m))
}

// IsJSONMedia says whether a content type promises JSON.
func IsJSONMedia(contentType string) bool {
	m := mediaType(contentType)
	return strings.HasSuffix(m, "/json") || strings.HasSuffix(m, "+json")
}

// JSON gives e in CloudEvents' JSON format (structured mode).
func (e *Event) JSON() []byte { return e.AppendJSON(make([]byte, 0, 512+e.HeaderSize()+len(e.Data))) }

// AppendJSON appends e in CloudEvents' JSON format to b.
func (e *Event) AppendJSON(b []byte) []byte {
	member := func(name, value string) {
		if value == "" {
			return
		}
		b = append(b, ',', '"')
		b = append(b, name...)
		b = append(b, '"', ':')
		b, _ = jsontext.AppendQuote(b, value)
	}
	b = append(b, `{"specversion":"`+SpecVersion+`"`...)
	member("id", e.ID)
	member("source", e.Source)
	member("type", e.Type)
	member("subject", e.Subject)
	if !e.Time.IsZero() {
		member("time", FormatTime(e.Time))
	}
	member("datacontenttype", e.DataContentType)
	member("dataschema", e.DataSchema)
	for _, x := range e.Extensions {
		if x.Type == String {
			member(x.Name, x.Value)
			continue
		}
		b = append(b, `,"`+x.Name+`":`+x.Value...)
	}
	switch {
	case e.Data == nil:
	case e.DataJSON:
		b = append(b, `,"data":`...)
		b = append(b, e.Data...)
	case e.DataContentType != "" && !IsJSONMedia(e.DataContentType) && utf8.Valid(e.Data):
		b = append(b, `,"data":`...)
		b, _ = jsontext.AppendQuote(b, e.Data)
	default:
		b = append(b, `,"data_base64":"`...)
		b = base64.StdEncoding.AppendEncode(b, e.Data)
		b = append(b, '"')
	}
	return append(b, '}')
}

// ParseJSON reads one event in CloudEvents' JSON format. The error, if any, is
// a *Fault.
//
// Attributes whose value is null count as not set (CloudEvents 1.0.2,
// formats/json-format.md §2.2). A member that is no valid attribute is kept:
// see Unmapped.
func ParseJSON(raw []byte) (*Event, error) {
	members, err := rawjson.Members(raw)
	if err != nil {
		return nil, Faultf(FaultNotEvent, "%v", err)
	}
	return FromMembers(members)
}

// FromMembers is ParseJSON for the members of one event, as rawjson.Members
// gives them.
func FromMembers(members []rawjson.Member) (*Event, error) {
	e := &Event{}
	var texts rawjson.Texts
	texts.Grow(members)
	var extra []rawjson.Member
	var data, data64 []byte
	spec := ""
	for _, m := range members {
		var dst *string
		switch m.Name {
		case "specversion":
			dst = &spec
		case "id":
			dst = &e.ID
		case "source":
			dst = &e.Source
		case "type":
			dst = &e.Type
		case "subject":
			dst = &e.Subject
		case "datacontenttype":
			dst = &e.DataContentType
		case "dataschema":
			dst = &e.DataSchema
		case "time":
			if err := e.parseTimeMember(m.Value); err != nil {
				return nil, err
			}
			continue
		case "data":
			data = m.Value
			continue
		case "data_base64":
			data64 = m.Value
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
			return nil, Faultf(FaultType, "attribute %s: want a string, got %s", m.Name, rawjson.Kind(m.Value))
		}
		*dst = s
	}
	if spec != SpecVersion {
		return nil, Faultf(FaultUnsupported, "specversion is %.16q; only CloudEvents %s is understood", spec, SpecVersion)
	}
	for _, a := range []struct{ name, value string }{{"id", e.ID}, {"source", e.Source}, {"type", e.Type}} {
		if a.value == "" {
			return nil, Faultf(FaultMissing, "attribute %s is missing or empty", a.name)
		}
	}
	e.Unmapped(extra)
	if err := e.setData(data, data64); err != nil {
		return nil, err
	}
	if err := e.Validate(); err != nil {
		return nil, Faultf(FaultInvalid, "%v", err)
	}
	return e, nil
}

// parseTimeMember keeps a time nobody can read as extension "originaltime":
// a publisher's bad clock text is no reason to lose its event.
func (e *Event) parseTimeMember(v []byte) error {
	if rawjson.IsNull(v) {
		return nil
	}
	s, ok := rawjson.Text(v)
	if !ok {
		return Faultf(FaultType, "attribute time: want a string, got %s", rawjson.Kind(v))
	}
	e.SetTime(s)
	return nil
}

// SetTime sets the time attribute from a sender's text: null dates leave it
// unset, and what is no time at all is kept as extension "originaltime".
func (e *Event) SetTime(s string) {
	t, err := ParseTime(s)
	switch {
	case err != nil:
		e.Set("originaltime", s)
	case !IsNullTime(t):
		e.Time = t
	}
}

func (e *Event) setData(data, data64 []byte) error {
	switch {
	case data64 != nil && !rawjson.IsNull(data64):
		if data != nil && !rawjson.IsNull(data) {
			return Faultf(FaultAmbiguous, "both data and data_base64 are set")
		}
		s, ok := rawjson.Text(data64)
		if !ok {
			return Faultf(FaultType, "data_base64: want a string, got %s", rawjson.Kind(data64))
		}
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			return Faultf(FaultType, "data_base64 is not base64")
		}
		e.Data = b
		e.DataJSON = IsJSONMedia(e.DataContentType) && rawjson.Valid(b)
	case data != nil:
		e.Data, e.DataJSON = data, true
		if e.DataContentType == "" {
			e.DataContentType = "application/json"
		}
		if s, ok := rawjson.Text(data); ok && !IsJSONMedia(e.DataContentType) {
			e.Data, e.DataJSON = []byte(s), false
		}
	}
	if len(e.Data) == 0 {
		e.Data = nil // a message with an empty body cannot tell the two apart
	}
	return nil
}

// Unmapped keeps envelope members that have no attribute of their own, so that
// nothing is dropped: a scalar whose lower-cased name is a valid extension name
// becomes that extension; all else goes, as one JSON object, into the extension
// "unmapped". Nulls count as not set. An extension that exists already is not
// overwritten.
func (e *Event) Unmapped(members []rawjson.Member) {
	var rest []byte
	keep := func(m rawjson.Member) {
		rest = append(rest, map[bool]byte{true: '{', false: ','}[rest == nil])
		rest, _ = jsontext.AppendQuote(rest, m.Name)
		rest = append(rest, ':')
		rest = append(rest, rawjson.Compact(m.Value)...)
	}
	// An event that has been here before brings its "unmapped" along: it stays
	// as it is unless there is more to put into it.
	var before *rawjson.Member
	for i := range members {
		m := &members[i]
		if rawjson.IsNull(m.Value) {
			continue
		}
		x, ok := extensionOf(*m)
		_, taken := e.find(x.Name)
		switch {
		case m.Name == "unmapped" && ok && x.Type == String:
			before = m
		case ok && !taken && x.Name != "unmapped":
			e.SetExtension(x)
		default:
			keep(*m)
		}
	}
	switch {
	case rest != nil:
		if before != nil {
			keep(*before)
		}
		e.Set("unmapped", string(append(rest, '}')))
	case before != nil:
		x, _ := extensionOf(*before)
		e.SetExtension(x)
	}
}

func extensionOf(m rawjson.Member) (Extension, bool) {
	x := Extension{Name: lower(m.Name)}
	if !ValidExtensionName(x.Name) || len(m.Name) > 32 {
		return x, false
	}
	switch m.Value[0] {
	case '"':
		x.Value, _ = rawjson.Text(m.Value)
		// An empty header is no header: it would not survive the way out.
		return x, x.Value != ""
	case 't', 'f':
		x.Value, x.Type = string(m.Value), Boolean
		return x, true
	case '{', '[':
		return x, false
	}
	// CloudEvents has only whole numbers of 32 bits; others go as text.
	x.Value, x.Type = string(m.Value), String
	if isInt32(x.Value) {
		x.Type = Integer
	}
	return x, true
}

// lower is strings.ToLower, free for the two names that every event in the
// Event Grid schema has.
func lower(name string) string {
	switch name {
	case "dataVersion":
		return "dataversion"
	case "metadataVersion":
		return "metadataversion"
	}
	return strings.ToLower(name)
}

// isInt32 says whether s is a whole number of 32 bits as JSON writes it.
func isInt32(s string) bool {
	n, err := strconv.ParseInt(s, 10, 32)
	return err == nil && strconv.FormatInt(n, 10) == s
}

// plain says which bytes may stand in a header value as they are (CloudEvents
// 1.0.2, bindings/http-protocol-binding.md §3.1.3.2).
var plain = func() (t [256]bool) {
	for c := byte(0x21); c < 0x7f; c++ {
		t[c] = c != '"' && c != '%'
	}
	return t
}()

func encodedLen(s string) int {
	n := len(s)
	for i := range len(s) {
		if !plain[s[i]] {
			n += 2
		}
	}
	return n
}

func percentEncode(s string) string {
	i := 0
	for i < len(s) && plain[s[i]] {
		i++
	}
	if i == len(s) {
		return s
	}
	const hexDigits = "0123456789ABCDEF"
	b := append(make([]byte, 0, encodedLen(s)), s[:i]...)
	for ; i < len(s); i++ {
		if c := s[i]; plain[c] {
			b = append(b, c)
		} else {
			b = append(b, '%', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return string(b)
}

func percentDecode(s string) (string, error) {
	if !strings.Contains(s, "%") {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", errors.New("bad percent-encoding")
		}
		hi, lo := unhex(s[i+1]), unhex(s[i+2])
		if hi < 0 || lo < 0 {
			return "", errors.New("bad percent-encoding")
		}
		b = append(b, byte(hi<<4|lo))
		i += 2
	}
	return string(b), nil
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
