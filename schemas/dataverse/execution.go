package dataverse

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

// An execution is one execution context, sorted into what data shows apart.
type execution struct {
	table, message, id string

	target        *entity // nil when there is none
	input, output []member
	pre, post     []member // images by alias
	parent        *execution
	rest          []member // all other members

	hasInput     bool
	operation    string // OperationId
	step         string // OwningExtension.Id
	organization string
	correlation  string
	created      time.Time // OperationCreatedOn, its offset set right
}

// A place says for faults where a member stands: so many parents up.
type place int

// name gives a member's path, shortened, for a hostile sender can nest
// thousands of parents.
func (p place) name(member string) string {
	const most = 8
	if p > most {
		return "…" + strings.Repeat("ParentContext.", most) + member
	}
	return strings.Repeat("ParentContext.", int(p)) + member
}

// readExecution sorts a context or, at another place than 0, one of its
// parents.
func readExecution(v value, at place) (*execution, *event.Fault) {
	if !v.object() {
		return nil, wrongType((at - 1).name("ParentContext"), "an object", v)
	}
	x := &execution{}
	var target member
	for _, m := range v.inside.members {
		var f *event.Fault
		var text string
		switch m.name {
		case "MessageName":
			x.message, f = textMember(m, at)
		case "PrimaryEntityName":
			text, f = textMember(m, at)
			x.table = strings.ToLower(text)
		case "PrimaryEntityId":
			text, f = textMember(m, at)
			x.id = guid(text)
		case "InputParameters":
			x.hasInput = !m.null()
			var all []member
			all, f = dictionary(m, at)
			for _, p := range all {
				if p.name == "Target" && !p.null() {
					target = p
				} else {
					x.input = append(x.input, p)
				}
			}
		case "OutputParameters":
			x.output, f = dictionary(m, at)
		case "PreEntityImages":
			x.pre, f = dictionary(m, at)
		case "PostEntityImages":
			x.post, f = dictionary(m, at)
		case "ParentContext":
			if !m.null() {
				x.parent, f = readExecution(m.value, at+1)
			}
		case "OperationId":
			text, f = textMember(m, at)
			x.operation = guid(text)
			x.rest = append(x.rest, m)
		case "OwningExtension":
			x.step, f = stepID(m, at)
			x.rest = append(x.rest, m)
		case "OrganizationName":
			x.organization = m.text()
			x.rest = append(x.rest, m)
		case "CorrelationId":
			x.correlation = guid(m.text())
			x.rest = append(x.rest, m)
		case "OperationCreatedOn":
			x.created, m.value = createdOn(m.value)
			x.rest = append(x.rest, m)
		default:
			x.rest = append(x.rest, m)
		}
		if f != nil {
			return nil, f
		}
	}
	if target.raw != nil {
		if e, ok := readEntity(target.value); ok {
			x.target = e
		} else if actionOf(x.message) != occurred {
			return nil, targetFault(target.value, at.name("InputParameters.Target"))
		} else {
			x.input = append(x.input, target) // an action's own parameter
		}
	}
	if x.id == "" && x.target != nil {
		x.id = guid(x.target.id.text())
	}
	return x, nil
}

func wrongType(path, want string, got value) *event.Fault {
	return event.Faultf(event.FaultType, "member %s: want %s, got %s", path, want, rawjson.Kind(got.raw))
}

// textMember gives a string; null is empty, all else is a fault.
func textMember(m member, at place) (string, *event.Fault) { return textAt(m.value, at.name(m.name)) }

func textAt(v value, path string) (string, *event.Fault) {
	v = v.scalar()
	if v.null() {
		return "", nil
	}
	s, ok := rawjson.Text(v.raw)
	switch {
	case ok:
		return s, nil
	case v.raw[0] == '"':
		return "", event.Faultf(event.FaultType, "member %s holds half of a surrogate pair, which is no text", path)
	}
	return "", wrongType(path, "a string", v)
}

// dictionary gives the pairs of a member, none if it is null.
func dictionary(m member, at place) ([]member, *event.Fault) {
	pairs, err := m.pairs()
	if err != nil {
		return nil, pairsFault(at.name(m.name), err)
	}
	return pairs, nil
}

func pairsFault(path string, err error) *event.Fault {
	if _, twice := errors.AsType[*repeatedError](err); twice {
		return event.Faultf(event.FaultAmbiguous, "member %s: %v", path, err)
	}
	return event.Faultf(event.FaultType, "member %s: %v", path, err)
}

// targetFault says why v is no row and no reference.
func targetFault(v value, path string) *event.Fault {
	if !v.object() {
		return wrongType(path, "an Entity or an EntityReference", v)
	}
	for _, name := range []string{"Attributes", "FormattedValues", "KeyAttributes"} {
		if _, err := v.find(name).pairs(); err != nil {
			return pairsFault(path+"."+name, err)
		}
	}
	return event.Faultf(event.FaultType, "member %s is neither an Entity nor an EntityReference", path)
}

// stepID gives the id of the registered step, OwningExtension.Id.
func stepID(m member, at place) (string, *event.Fault) {
	if !m.null() && !m.object() {
		return "", wrongType(at.name(m.name), "an object", m.value)
	}
	s, f := textAt(m.find("Id"), at.name(m.name)+".Id")
	return guid(s), f
}

// createdOn reads OperationCreatedOn, and gives it as data shows it. See the
// package comment for its trap.
func createdOn(v value) (time.Time, value) {
	s := v.text()
	t, offset, ok := parseDate(s)
	if !ok {
		t, err := event.ParseTime(s)
		if err != nil || event.IsNullTime(t) {
			return time.Time{}, v
		}
		return t, v
	}
	if moved := t.Add(offset); inYears(moved) {
		t = moved
	}
	quoted, _ := jsontext.AppendQuote(nil, event.FormatTime(t))
	if event.IsNullTime(t) {
		t = time.Time{}
	}
	return t, value{raw: quoted}
}

// rows gives the rows that show the record as it is now.
func (x *execution) rows() []*entity {
	var rows []*entity
	if x.target != nil {
		rows = append(rows, x.target)
	}
	return appendRows(rows, x.post)
}

func appendRows(rows []*entity, named []member) []*entity {
	for _, m := range named {
		if e, ok := readEntity(m.value); ok {
			rows = append(rows, e)
		}
	}
	return rows
}

// modified gives the modifiedon of the record as it is now, zero if that is not
// told. The images of before the change have an old one.
func (x *execution) modified() time.Time {
	for _, row := range x.rows() {
		s := row.column("modifiedon").text()
		t, _, ok := parseDate(s)
		if !ok {
			var err error
			t, err = event.ParseTime(s)
			ok = err == nil
		}
		if ok && !event.IsNullTime(t) {
			return t
		}
	}
	return time.Time{}
}

// version gives the record's versionnumber. Target's RowVersion is none: on an
// update it is the version that the client expected to find, and so the one
// before (agentstatus-update-async in testdata has it in the parent's request
// too).
func (x *execution) version() string {
	for _, row := range x.rows() {
		v := row.column("versionnumber").scalar()
		s := string(v.raw)
		if text, ok := rawjson.Text(v.raw); ok {
			s = text
		}
		if n, err := strconv.ParseInt(s, 10, 64); err == nil && n > 0 {
			return s
		}
	}
	return ""
}

// legalEntity gives the company of a record that belongs to one: F&O's virtual
// tables have it in mserp_dataareaid. A deletion has no columns, but F&O sends
// the row as it was as parameter PreImage.
func (x *execution) legalEntity() string {
	rows := appendRows(x.rows(), x.input)
	for _, row := range appendRows(rows, x.pre) {
		for _, c := range row.columns {
			if strings.EqualFold(c.name, "mserp_dataareaid") || strings.EqualFold(c.name, "dataareaid") {
				if s := c.text(); s != "" {
					return strings.ToLower(s)
				}
			}
		}
	}
	return ""
}

// incomplete says whether the context lacks what Dataverse takes out of one
// that is too big: ParentContext, InputParameters and images. Of these only
// InputParameters is there in every other context, and what creates, updates or
// deletes has a Target in them or, if it does so with many rows, Targets.
func (x *execution) incomplete(action string) bool {
	return !x.hasInput || action != occurred && x.target == nil && len(x.input) == 0
}

// append writes x as data shows it.
func (x *execution) append(b []byte) []byte {
	b = appendText(append(b, `{"table":`...), x.table)
	b = appendText(append(b, `,"message":`...), x.message)
	b = appendText(append(b, `,"id":`...), x.id)

	target := x.target
	if target == nil {
		target = &entity{}
	}
	b = append(b, `,"changed":[`...)
	for i, c := range target.columns {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, c.quoted...)
	}
	b = append(b, ']')
	b = appendObject(append(b, `,"columns":`...), target.columns)
	if len(target.formatted) > 0 {
		b = appendObject(append(b, `,"formatted":`...), target.formatted)
	}
	if more := x.moreOfTarget(target); len(more) > 0 {
		b = appendObject(append(b, `,"target":`...), more)
	}
	b = appendObject(append(b, `,"preImages":`...), x.pre)
	b = appendObject(append(b, `,"postImages":`...), x.post)
	if len(x.input) > 0 {
		b = appendObject(append(b, `,"inputParameters":`...), x.input)
	}
	if len(x.output) > 0 {
		b = appendObject(append(b, `,"outputParameters":`...), x.output)
	}
	if x.parent != nil {
		b = x.parent.append(append(b, `,"parent":`...))
	}
	b = append(b, `,"context":{`...)
	for i, m := range x.rest {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(b, m.quoted...), ':')
		if m.name == "SharedVariables" && m.empty() {
			b = append(b, '{', '}') // an object like those that hold some
			continue
		}
		b = m.append(b)
	}
	return append(b, '}', '}')
}

// moreOfTarget gives what Target says beyond table, id and columns.
func (x *execution) moreOfTarget(target *entity) []member {
	var more []member
	if s := target.table.text(); s != "" && !strings.EqualFold(s, x.table) {
		more = append(more, named("table", target.table))
	}
	if s := guid(target.id.text()); s != "" && s != x.id {
		more = append(more, named("id", target.id))
	}
	if !target.name.null() {
		more = append(more, named("name", target.name))
	}
	return append(more, target.rest...)
}

// appendText writes s, and an empty s as null.
func appendText(b []byte, s string) []byte {
	if s == "" {
		return append(b, "null"...)
	}
	b, _ = jsontext.AppendQuote(b, s)
	return b
}
