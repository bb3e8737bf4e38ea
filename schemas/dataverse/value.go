package dataverse

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

// A value is a JSON value taken apart, all levels in one go: to split it level
// by level would read the innermost once for each level around it. The zero
// value is an absent one.
type value struct {
	raw    []byte // as it was sent
	inside *inside
}

// inside is what an object or an array holds. It stands apart because most
// values are neither.
type inside struct {
	members []member
	elems   []value
}

// A member is a named value: of an object or, as .NET writes its dictionaries,
// of an array of {"key":…,"value":…}.
type member struct {
	name   string
	quoted []byte // the name as it was sent
	value
}

func named(name string, v value) member {
	return member{name: name, quoted: []byte(`"` + name + `"`), value: v}
}

// parseValue takes apart raw, which must be valid JSON. The error is a name
// that stands twice with different values.
func parseValue(raw []byte) (value, error) {
	d := jsontext.NewDecoder(bytes.NewBuffer(raw), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	return nextValue(d, raw)
}

func nextValue(d *jsontext.Decoder, raw []byte) (value, error) {
	kind := d.PeekKind()
	if kind != '{' && kind != '[' {
		return scalarOf(d, raw)
	}
	if _, err := d.ReadToken(); err != nil {
		return value{}, err
	}
	start := int(d.InputOffset()) - 1
	in := &inside{}
	for d.PeekKind() != '}' && d.PeekKind() != ']' {
		var m member
		var err error
		if kind == '{' {
			name, err := scalarOf(d, raw)
			if err != nil {
				return value{}, err
			}
			m.quoted, m.name = name.raw, decodeName(name.raw)
		}
		if m.value, err = nextValue(d, raw); err != nil {
			return value{}, err
		}
		if kind == '{' {
			if in.members == nil {
				in.members = make([]member, 0, 2) // most are a key and a value
			}
			in.members = append(in.members, m)
		} else {
			in.elems = append(in.elems, m.value)
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return value{}, err
	}
	var err error
	if in.members, err = dedupe(in.members); err != nil {
		return value{}, fmt.Errorf("member %w", err)
	}
	end := int(d.InputOffset())
	return value{raw: raw[start:end:end], inside: in}, nil
}

func scalarOf(d *jsontext.Decoder, raw []byte) (value, error) {
	v, err := d.ReadValue()
	if err != nil {
		return value{}, err
	}
	// The decoder reads ahead in its own buffer: point into raw.
	end := int(d.InputOffset())
	return value{raw: raw[end-len(v) : end : end]}, nil
}

// decodeName gives a name's text. One with half of a surrogate pair has none,
// and keeps its quotes.
func decodeName(quoted []byte) string {
	// Most of a context are these; they need no memory of their own.
	switch string(quoted) {
	case `"key"`:
		return "key"
	case `"value"`:
		return "value"
	case `"__type"`:
		return "__type"
	case `"Id"`:
		return "Id"
	case `"LogicalName"`:
		return "LogicalName"
	case `"Name"`:
		return "Name"
	case `"KeyAttributes"`:
		return "KeyAttributes"
	case `"RowVersion"`:
		return "RowVersion"
	}
	if s, ok := rawjson.Text(quoted); ok {
		return s
	}
	return string(quoted)
}

// A repeatedError names what stands twice with different values.
type repeatedError struct{ name string }

func (e *repeatedError) Error() string {
	name := e.name
	if len(name) > 64 {
		name = strings.ToValidUTF8(name[:64], "") + "…"
	}
	return fmt.Sprintf("%q stands twice with different values", name)
}

// dedupe leaves each name once. The error is a *repeatedError.
func dedupe(members []member) ([]member, error) {
	if len(members) <= 32 && !repeats(members) {
		return members, nil // as nearly all: no map for so few
	}
	seen := make(map[string]int, len(members))
	out := members[:0]
	for _, m := range members {
		i, twice := seen[m.name]
		if !twice {
			seen[m.name] = len(out)
			out = append(out, m)
			continue
		}
		if rawjson.Sum(out[i].raw) != rawjson.Sum(m.raw) {
			return nil, &repeatedError{m.name}
		}
	}
	return out, nil
}

// repeats says whether a name stands twice. It compares each with each.
func repeats(members []member) bool {
	for i := range members {
		for j := range i {
			if members[i].name == members[j].name {
				return true
			}
		}
	}
	return false
}

// null says whether v is absent or null.
func (v value) null() bool { return v.raw == nil || rawjson.IsNull(v.raw) }

func (v value) nullOrText() bool {
	_, ok := rawjson.Text(v.raw)
	return ok || v.null()
}

func (v value) object() bool { return v.inside != nil && v.raw[0] == '{' }
func (v value) array() bool  { return v.inside != nil && v.raw[0] == '[' }

// empty says whether v is [].
func (v value) empty() bool { return v.array() && len(v.inside.elems) == 0 }

// find gives the member of an object, absent if there is none.
func (v value) find(name string) value {
	if v.object() {
		for _, m := range v.inside.members {
			if m.name == name {
				return m.value
			}
		}
	}
	return value{}
}

// text gives a string, empty for any other value.
func (v value) text() string {
	s, _ := rawjson.Text(v.scalar().raw)
	return s
}

// scalar gives the value that {"__type":"Guid:#System","__value":…} wraps, as
// one serializer does with scalars whose static type is object
// (account-update-typed-guid-datetime in testdata), and any other v itself.
func (v value) scalar() value {
	if name, namespace := v.typeName(); name != "" && namespace == "#System" && len(v.inside.members) == 2 {
		if wrapped := v.find("__value"); wrapped.raw != nil && wrapped.inside == nil {
			return wrapped
		}
	}
	return v
}

// typeName splits the __type that .NET's serializer puts in front of an
// object's members: "Entity:http://schemas.microsoft.com/xrm/2011/Contracts".
func (v value) typeName() (name, namespace string) {
	s, _ := rawjson.Text(v.find("__type").raw)
	name, namespace, _ = strings.Cut(s, ":")
	return name, namespace
}

// contracts is the namespace of Dataverse's own types.
const contracts = "http://schemas.microsoft.com/xrm/2011/Contracts"

// pairs reads a dictionary: an array of {"key":"…","value":…}. A key that
// stands twice with one value counts once; with two it is a *repeatedError,
// because a dictionary cannot hold it.
func (v value) pairs() ([]member, error) {
	if v.null() {
		return nil, nil
	}
	if !v.array() {
		return nil, fmt.Errorf("want an array of key/value pairs, got %s", rawjson.Kind(v.raw))
	}
	pairs := make([]member, 0, len(v.inside.elems))
	for _, elem := range v.inside.elems {
		p, ok := elem.pair()
		if !ok {
			return nil, errors.New("want an array of key/value pairs, got something else in it")
		}
		pairs = append(pairs, p)
	}
	pairs, err := dedupe(pairs)
	if err != nil {
		return nil, fmt.Errorf("key %w", err)
	}
	return pairs, nil
}

// pair reads one {"key":"…","value":…}, whichever case a serializer prefers.
// Lists of pairs, which are no dictionaries, give each one a __type.
func (v value) pair() (p member, ok bool) {
	if !v.object() {
		return member{}, false
	}
	for _, m := range v.inside.members {
		switch {
		case m.name == "__type" && strings.HasPrefix(m.text(), "KeyValuePairOf"):
		case strings.EqualFold(m.name, "key") && p.quoted == nil && m.raw[0] == '"':
			p.quoted, p.name = m.raw, decodeName(m.raw)
		case strings.EqualFold(m.name, "value") && p.raw == nil:
			p.value = m.value
		default:
			return member{}, false
		}
	}
	return p, p.quoted != nil && p.raw != nil
}

// append writes v as data shows it. See the package comment.
func (v value) append(b []byte) []byte {
	switch {
	case v.array():
		return v.appendArray(b)
	case !v.object():
		return v.appendScalar(b)
	}
	name, namespace := v.typeName()
	switch {
	case namespace == "#System":
		if s := v.scalar(); s.inside == nil {
			return s.appendScalar(b)
		}
	case namespace == contracts && (name == "OptionSetValue" || name == "Money"):
		if inner := v.find("Value"); inner.raw != nil && inner.inside == nil && len(v.inside.members) == 2 {
			return append(b, inner.raw...)
		}
	case namespace == contracts && name == "EntityCollection":
		if c, ok := v.appendCollection(b); ok {
			return c
		}
	default:
		if e, ok := readEntity(v); ok {
			return e.append(b)
		}
		if v.find("__type").raw == nil {
			return appendObject(b, v.inside.members)
		}
	}
	return append(b, v.raw...)
}

func (v value) appendScalar(b []byte) []byte {
	// A date begins with a slash, which nearly all senders escape.
	if len(v.raw) < 2 || v.raw[1] != '/' && v.raw[1] != '\\' {
		return append(b, v.raw...)
	}
	if s, ok := rawjson.Text(v.raw); ok {
		if t, _, ok := parseDate(s); ok {
			b, _ = jsontext.AppendQuote(b, event.FormatTime(t))
			return b
		}
	}
	return append(b, v.raw...)
}

func (v value) appendArray(b []byte) []byte {
	// A list may repeat a key, and then must stay one.
	if pairs, err := v.pairs(); err == nil && len(pairs) > 0 && len(pairs) == len(v.inside.elems) {
		return appendObject(b, pairs)
	}
	return appendElems(b, v.inside.elems)
}

func appendElems(b []byte, elems []value) []byte {
	b = append(b, '[')
	for i, elem := range elems {
		if i > 0 {
			b = append(b, ',')
		}
		b = elem.append(b)
	}
	return append(b, ']')
}

// appendObject writes members, whose names differ.
func appendObject(b []byte, members []member) []byte {
	b = append(b, '{')
	for i, m := range members {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(b, m.quoted...), ':')
		b = m.append(b)
	}
	return append(b, '}')
}

// An entity is a row (Entity) or the name of one (EntityReference).
type entity struct {
	row                bool
	table, id, name    value
	columns, formatted []member
	rest               []member // by the names they are shown under
}

// shown are the names that an entity is written with: what has a member of such
// a name already is none.
var shown = []string{"table", "id", "name", "columns", "formatted", "keyAttributes", "rowVersion", "entityState", "relatedEntities"}

// readEntity reads a row or a reference. Images, the rows of a collection and
// OwningExtension have no __type; their members tell what they are.
func readEntity(v value) (*entity, bool) {
	if !v.object() {
		return nil, false
	}
	name, namespace := v.typeName()
	e := &entity{row: name == "Entity"}
	typed := v.find("__type").raw != nil
	if typed && (namespace != contracts || name != "Entity" && name != "EntityReference") {
		return nil, false
	}
	for _, m := range v.inside.members {
		var err error
		switch m.name {
		case "__type":
		case "LogicalName":
			if e.table = m.value; !e.table.nullOrText() {
				return nil, false
			}
		case "Id":
			if e.id = m.scalar(); !e.id.nullOrText() {
				return nil, false
			}
		case "Name":
			if e.name = m.value; m.inside != nil {
				return nil, false
			}
		case "Attributes":
			e.row = true
			e.columns, err = m.pairs()
		case "FormattedValues":
			e.formatted, err = m.pairs()
		case "KeyAttributes":
			var pairs []member
			if pairs, err = m.pairs(); len(pairs) > 0 {
				e.rest = append(e.rest, named("keyAttributes", m.value))
			}
		case "RowVersion", "EntityState", "RelatedEntities":
			if !m.null() && !m.empty() {
				e.rest = append(e.rest, named(strings.ToLower(m.name[:1])+m.name[1:], m.value))
			}
		default:
			if slices.Contains(shown, m.name) {
				return nil, false
			}
			e.rest = append(e.rest, m)
		}
		if err != nil {
			return nil, false
		}
	}
	return e, typed || e.table.raw != nil && (e.row || e.id.raw != nil)
}

// column gives a column's value, absent if the row does not tell it.
func (e *entity) column(name string) value {
	for _, c := range e.columns {
		if c.name == name {
			return c.value
		}
	}
	return value{}
}

func (e *entity) append(b []byte) []byte {
	sep := byte('{')
	next := func(quoted string) {
		b = append(append(append(b, sep), quoted...), ':')
		sep = ','
	}
	for _, m := range []member{named("table", e.table), named("id", e.id), named("name", e.name)} {
		if m.raw != nil {
			next(string(m.quoted))
			b = m.append(b)
		}
	}
	if e.row {
		next(`"columns"`)
		b = appendObject(b, e.columns)
	}
	if len(e.formatted) > 0 {
		next(`"formatted"`)
		b = appendObject(b, e.formatted)
	}
	for _, m := range e.rest {
		next(string(m.quoted))
		b = m.append(b)
	}
	if sep == '{' {
		b = append(b, sep)
	}
	return append(b, '}')
}

// appendCollection writes the rows of an EntityCollection. ok is false when v
// is none after all; b is then as it was.
func (v value) appendCollection(b []byte) (_ []byte, ok bool) {
	rows := v.find("Entities")
	if !rows.array() || v.find("entities").raw != nil {
		return b, false
	}
	quiet := true
	for _, m := range v.inside.members {
		switch m.name {
		case "__type", "Entities":
		case "EntityName":
			quiet = quiet && (m.null() || !slices.ContainsFunc(rows.inside.elems, func(row value) bool {
				return row.find("LogicalName").text() != m.text()
			}))
		case "MoreRecords", "TotalRecordCountLimitExceeded":
			quiet = quiet && string(m.raw) == "false"
		case "TotalRecordCount", "MinActiveRowVersion":
			quiet = quiet && (string(m.raw) == "-1" || string(m.raw) == `"-1"`)
		case "PagingCookie":
			quiet = quiet && (m.null() || m.text() == "" && m.raw[0] == '"')
		default:
			quiet = false
		}
	}
	if quiet {
		return appendElems(b, rows.inside.elems), true
	}
	b = appendElems(append(b, `{"entities":`...), rows.inside.elems)
	for _, m := range v.inside.members {
		if m.name != "__type" && m.name != "Entities" {
			b = append(append(append(b, ','), m.quoted...), ':')
			b = m.append(b)
		}
	}
	return append(b, '}'), true
}

const noGUID = "00000000-0000-0000-0000-000000000000"

// guid makes one of the notations of a GUID: lower case, without braces. All
// zeros mean none, and give "". What is no GUID comes back as it is.
func guid(s string) string {
	g := s
	if strings.HasPrefix(g, "{") && strings.HasSuffix(g, "}") {
		g = g[1 : len(g)-1]
	}
	if len(g) != len(noGUID) {
		return s
	}
	g = strings.ToLower(g)
	for i := range len(g) {
		switch c := g[i]; {
		case noGUID[i] == '-':
			if c != '-' {
				return s
			}
		case (c < '0' || c > '9') && (c < 'a' || c > 'f'):
			return s
		}
	}
	if g == noGUID {
		return ""
	}
	return g
}

// The instants that RFC 3339 can write.
var (
	minTime = time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)
	maxTime = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC).Add(-time.Millisecond)
)

func inYears(t time.Time) bool { return !t.Before(minTime) && !t.After(maxTime) }

// parseDate reads /Date(ms)/ and /Date(ms±HHMM)/, .NET's old JSON notation. By
// its rule the offset tells the sender's zone and does not move the instant
// (learn.microsoft.com/dotnet/framework/wcf/feature-details/stand-alone-json-serialization,
// "DateTime Wire Format"; read 2026-11).
func parseDate(s string) (t time.Time, offset time.Duration, ok bool) {
	s, ok = strings.CutPrefix(s, "/Date(")
	if !ok {
		return time.Time{}, 0, false
	}
	if s, ok = strings.CutSuffix(s, ")/"); !ok || s == "" {
		return time.Time{}, 0, false
	}
	if i := strings.LastIndexAny(s, "+-"); i > 0 {
		hhmm := s[i+1:]
		if len(hhmm) != 4 || strings.Trim(hhmm, "0123456789") != "" {
			return time.Time{}, 0, false
		}
		n, _ := strconv.Atoi(hhmm)
		offset = time.Duration(n/100)*time.Hour + time.Duration(n%100)*time.Minute
		if s[i] == '-' {
			offset = -offset
		}
		s = s[:i]
	} else if s[0] == '+' {
		return time.Time{}, 0, false
	}
	ms, err := strconv.ParseInt(s, 10, 64)
	if err != nil || ms < minTime.UnixMilli() || ms > maxTime.UnixMilli() {
		return time.Time{}, 0, false
	}
	return time.UnixMilli(ms).UTC(), offset, true
}
