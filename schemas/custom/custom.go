// Package custom makes events of JSON that has no schema of ours: what a Power
// Automate HTTP action posts, or any webhook. A Mapping says, with one jq
// expression for each, where an event's attributes stand in a body.
//
//	each: .orders[]                    the elements; by default those of an array, or the one value
//	id: .orderId                       by default derived from the content
//	type: '"order." + .status'
//	time: .changed | todate            seconds since 1970; text is read as it is
//	subject: '.customer.no // .email'
//	name: '"Changed"'                  a constant is a jq string
//
// An expression that is only a path (.a.b[0], .["x y"]) is looked up in the
// bytes as they came. All else is evaluated by gojq, as far as the sandbox lets
// it (below). A string, number or boolean gives its text; null, an empty string
// and nothing leave the attribute unset; an object, an array or more than one
// result is a fault that names the mapping's field.
//
// Numbers. A number that an expression only picks keeps every digit, of 64 bits
// or of 640, 1.10 as 1.10. Arithmetic is exact on integers of any size up to
// 1,024 digits; as soon as a number with a point or an exponent takes part, it
// is done in float64 and may round: 1.10 + 0 gives 1.1.
//
// data is the element, byte for byte. Only where Each builds new values, as in
// .orders[] as $o | $o.lines[] | {order: $o.id, line: .}, is there no such text:
// then data is written compactly with its members sorted, numbers as above.
// source is /gridfan/<source>. Nothing is dropped: what is not mapped stays in
// data. Two elements without a mapped id that say the same are one event.
//
// # Sandbox
//
// A mapping is configuration, but bodies come from strangers, and no body may
// stop the router. So expressions run in the sandbox of package jq: they see the
// element and nothing else, and every run has a budget of steps that grows with
// the body; to spend them all takes some 10 ms and half a second for every MiB of
// body. There are no definitions, no reduce, foreach, label, assignments or
// functions that generate (range, repeat, until…), and - * % take numbers only.
// What there is:
//
//	paths, .., slices, | , // ? and or not + - * / % == != < <= > >=
//	if, try, as $x, [ ], { }, "\(…)", @base64 @base64d @csv @html @json @sh @text @tsv @uri @urid
//	abs add all any arrays ascii_downcase ascii_upcase booleans ceil contains
//	empty endswith first flatten floor fromdate fromjson gsub has isempty join
//	keys last length ltrim ltrimstr map max min mktime not nulls numbers objects
//	recurse reverse round rtrim rtrimstr scalars select sort split startswith
//	strftime strings strptime sub test to_entries toboolean todate tojson
//	tonumber tostring trim trimstr trunc type unique values
//
// contains is about text only. gsub, join, strftime, strptime, sub and test take
// their pattern, separator or format as a literal string.
package custom

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

// Mapping says where an event's attributes stand in a body. Every field is a jq
// expression, evaluated on the body (Each) or on one element of it (the others).
// Empty means the default.
type Mapping struct {
	Each         string // elements of a body; default: of an array each, of all else the one value
	ID           string // default: "sha256-" and a digest of the element
	Type         string // default: "custom"
	Time         string // RFC 3339; default: unset. A text that is no time is kept as extension originaltime
	Scope        string // fourth token of the NATS subject; default: none, shown as "-"
	Subject      string // attribute subject; default: unset
	Name         string // last tokens of the NATS subject; default: the type
	PartitionKey string // default: the subject
	LegalEntity  string // company, made lower case; default: unset
	Action       string // created, updated, deleted or occurred; default: unset
	// Extensions are further extension attributes by name.
	Extensions map[string]string
}

// DefaultType is the type of an event whose mapping gives none.
const DefaultType = "custom"

// maxText is how long a mapped text may be, in bytes. Attributes name things;
// beyond this an expression picks the wrong member.
const maxText = 64 << 10

// Parser makes events of bodies by one mapping. It is immutable and safe for
// concurrent use.
type Parser struct {
	each   *expression // nil: the default
	fields []field     // those that are mapped, in the order of Mapping
}

// A field is one mapped attribute.
type field struct {
	path string // as configuration names it: "mapping.id"
	expr *expression
	set  func(d *draft, text string)
}

// draft collects what the fields give.
type draft struct {
	event       event.Event
	time        string
	scope, name string
}

// ours are extensions that have a field of their own or that the router sets.
var ours = map[string]string{
	event.ExtPartitionKey: "use mapping.partitionKey",
	event.ExtLegalEntity:  "use mapping.legalEntity",
	event.ExtAction:       "use mapping.action",
	event.ExtSource:       "the router sets it",
	event.ExtVia:          "the router sets it",
	event.ExtRecordedTime: "the router sets it",
	event.ExtOriginalID:   "the router sets it",
	event.ExtMatchKey:     "the router sets it",
}

// Compile checks every expression of m and makes a Parser. The error joins all
// that is wrong, in the order of the fields; each begins with the field's path,
// "mapping.id: …".
func Compile(m Mapping) (*Parser, error) {
	p := &Parser{}
	var errs []error
	if m.Each != "" {
		var err error
		if p.each, err = compile(m.Each, true); err != nil {
			errs = append(errs, fmt.Errorf("mapping.each: %w", err))
		}
	}
	add := func(path, text string, set func(*draft, string)) {
		if text == "" {
			return
		}
		expr, err := compile(text, false)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
			return
		}
		p.fields = append(p.fields, field{path, expr, set})
	}
	extension := func(name string) func(*draft, string) {
		return func(d *draft, text string) { d.event.Set(name, text) }
	}
	add("mapping.id", m.ID, func(d *draft, text string) { d.event.ID = text })
	add("mapping.type", m.Type, func(d *draft, text string) { d.event.Type = text })
	add("mapping.time", m.Time, func(d *draft, text string) { d.time = text })
	add("mapping.scope", m.Scope, func(d *draft, text string) { d.scope = text })
	add("mapping.subject", m.Subject, func(d *draft, text string) { d.event.Subject = text })
	add("mapping.name", m.Name, func(d *draft, text string) { d.name = text })
	add("mapping.partitionKey", m.PartitionKey, extension(event.ExtPartitionKey))
	add("mapping.legalEntity", m.LegalEntity, func(d *draft, text string) {
		d.event.Set(event.ExtLegalEntity, strings.ToLower(text))
	})
	add("mapping.action", m.Action, extension(event.ExtAction))
	for _, name := range slices.Sorted(maps.Keys(m.Extensions)) {
		path := "mapping.extensions." + name
		switch why, taken := ours[name]; {
		case taken:
			errs = append(errs, fmt.Errorf("%s: %s", path, why))
		case !event.ValidExtensionName(name):
			errs = append(errs, fmt.Errorf("mapping.extensions: name %.64q: want lower-case letters and digits, and no attribute of CloudEvents' own", name))
		case m.Extensions[name] == "":
			errs = append(errs, fmt.Errorf("%s: the expression is empty", path))
		default:
			add(path, m.Extensions[name], extension(name))
		}
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	return p, nil
}

// Parse reads a request body. source is the name of the configured source;
// header is the request's (an http.Header will do) and only sharpens faults.
// The results follow the order of the elements; an empty array has none, and a
// body that is not JSON or that Each fails on has one, a fault. Events share
// body's memory unless Each builds new values. Parse is pure and safe for
// concurrent use.
func (p *Parser) Parse(source string, header map[string][]string, body []byte) []event.Result {
	elems, _, err := rawjson.Elements(body)
	if err != nil {
		return []event.Result{{Raw: body, Fault: notJSON(header, err)}}
	}
	if p.each != nil && elems != nil {
		root := bytes.TrimSpace(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")))
		var f *event.Fault
		if elems, f = p.each.elements(root); f != nil {
			f.Detail = "mapping.each: " + f.Detail
			return []event.Result{{Raw: body, Fault: f}}
		}
	}
	results := make([]event.Result, len(elems))
	for i, raw := range elems {
		results[i] = p.parseElement(source, raw)
		results[i].Raw = raw
	}
	return results
}

func notJSON(header map[string][]string, err error) *event.Fault {
	for _, name := range slices.Sorted(maps.Keys(header)) {
		values := header[name]
		if !strings.EqualFold(name, "content-type") || len(values) == 0 || values[0] == "" || event.IsJSONMedia(values[0]) {
			continue
		}
		return event.Faultf(event.FaultNotJSON, "%v; its Content-Type is %.64q: let the sender post application/json", err, values[0])
	}
	return event.Faultf(event.FaultNotJSON, "%v", err)
}

func (p *Parser) parseElement(source string, raw []byte) event.Result {
	fault := func(f *event.Fault) event.Result { return event.Result{Fault: f} }
	switch {
	case rawjson.IsNull(raw):
		return fault(event.Faultf(event.FaultNotEvent, "the element is null"))
	case !utf8.Valid(raw):
		return fault(event.Faultf(event.FaultNotEvent, "the text is not valid UTF-8"))
	}
	if f := event.CheckDepth(raw); f != nil {
		return fault(f)
	}
	in := newInput(raw)
	d := &draft{event: event.Event{
		Source:          "/gridfan/" + source,
		DataContentType: "application/json",
		Data:            raw,
		DataJSON:        true,
	}}
	for _, field := range p.fields {
		text, f := field.expr.text(in)
		if f != nil {
			f.Detail = field.path + ": " + f.Detail
			return fault(f)
		}
		if text != "" {
			field.set(d, text)
		}
	}
	e := &d.event
	if e.ID == "" {
		e.ID = "sha256-" + event.Digest("", "", raw, true)
	}
	e.Type = cmp.Or(e.Type, DefaultType)
	if d.time != "" {
		e.SetTime(d.time)
	}
	if e.Get(event.ExtPartitionKey) == "" {
		e.Set(event.ExtPartitionKey, e.Subject)
	}
	if err := e.Validate(); err != nil {
		return fault(event.FaultOf(err))
	}
	return event.Result{
		Event:  e,
		Scope:  d.scope,
		Name:   cmp.Or(d.name, e.Type),
		Key:    e.ID,
		Digest: event.Digest(e.Type, e.Subject, raw, true),
	}
}
