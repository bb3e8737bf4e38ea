// Package record makes events of rows that were read from a source: by polling it,
// or by looking at it again.
//
// A row says how things are, not what happened: which of its columns were written,
// and what was there before, is not known. Otherwise its event is that of the row's
// push twin, where there is one, on the same subject and with data of the same
// shape, so that a repair reaches the same subscribers. Attribute via tells the two
// apart.
//
// Rows of Dataverse (kind dataverse) are as package dataverse has changes:
//
//	subject of NATS  events.dataverse.<source>.<table>.<Create|Update|Delete>:
//	                 Delete for a deletion, Create only when createdon equals
//	                 modifiedon
//	message          the same word; action created, updated or deleted
//	id               the row's GUID, lower case without braces
//	changed          every column: any of them may have been written
//	columns          the row, {} for a deletion. A lookup _x_value is column x, as {"table","id",
//	                 "name"}, null where the row does not tell; with a column x
//	                 beside it it keeps its own name
//	formatted        the annotations …@OData.Community.Display.V1.FormattedValue
//	preImages,       {}
//	postImages
//	context          every other annotation under its own name: @odata.etag, …; and
//	                 of a deletion what the source says of it
//
// Values are as the Web API writes them: choices are their numbers, money a number
// with the digits sent, times RFC 3339. A column of several choices is the text
// "1,2", where a pushed event has an array, because nothing in a row tells it from a
// text.
//
// Rows of F&O (kind fno) are events.fno.<source>.<company>.<Entity>.Changed, and rows
// of databases and other services (kind custom) are
// events.custom.<source>.<scope>.<Table>.Changed, or Deleted. Their data has a schema
// of its own (Schema):
//
//	table            the entity or table
//	change           Changed or Deleted
//	id               the row's key as one text
//	company          F&O: lower case, null if the row has none
//	key              the key columns by name, as far as they are known
//	columns          the row, {} for a deletion of which no more is known
//	annotations      F&O: members whose names have an @, if any
//
// F&O's enums are names. Its empty dates, 1900-01-01 at 00:00 or, of columns that
// hold a date only, at 12:00, are null.
//
// In all of them numbers keep their text and nothing is dropped. The attributes:
//
//	id               "sha256-" and a hash of the match key or, where the row has no
//	                 version, of its content
//	time             when the row was modified, if that is known
//	subject,         the row's key
//	partitionkey
//	matchkey         what a pushed and a polled event of one change share
//	sequence         the row's version, where it is a number that grows
//	action           created, updated, deleted; unset where nobody knows which
//	legalentity      the company, lower case
package record

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

// Row is one row in the version in which it was read.
type Row struct {
	// Key names the row among those of its table, in a spelling that is always the
	// same for it.
	Key string
	// Deleted says that the row is gone. Of a deleted row nothing but Key need be
	// known.
	Deleted bool
	// Version tells this version of the row from others. Empty: its content does.
	Version string
	// Ordered says that Version is a whole number in decimal that grows with each
	// change of a row.
	Ordered bool
	// ByContent says that Version only tells changes apart, because a reading of all
	// rows does not have it: whether a row is what it was, its content tells.
	ByContent bool
	// Created and Modified are when; zero for unknown.
	Created, Modified time.Time
	// Data is the row as the source sent it, a JSON object. Nil for a deleted row
	// of which nothing more is known.
	Data json.RawMessage
}

// Shape is what rows of one table become events by. It is not changed once it is in
// use, and then safe for concurrent use.
type Shape struct {
	// Kind is event.KindDataverse, KindFnO or KindCustom.
	Kind string
	// Source is the configured name.
	Source string
	// Table is the logical name of a Dataverse table, the public name of an F&O
	// entity, or what a custom table is called in subjects.
	Table string
	// Scope is the fourth token of custom subjects; empty: none, shown as "-".
	Scope string
	// ScopeColumn names a column that has it, row by row, instead. F&O: the
	// company, by default dataAreaId; not used for Dataverse.
	ScopeColumn string
	// Key are the columns that make a row's key, shown in data.key; not used for
	// Dataverse.
	Key []string
}

// Changed and Deleted are what rows of other kinds than Dataverse say of
// themselves, and the last token of their subjects.
const (
	Changed = "Changed"
	Deleted = "Deleted"
)

// defaultCompany is the column of F&O's data entities that has the company
// (MicrosoftDocs/dynamics-365-unified-operations-public, articles/fin-ops-core/
// dev-itpro/data-entities/odata.md, "Cross-company behavior"; read 2026-11).
const defaultCompany = "dataAreaId"

// Event makes the event of a row: a result with either an event or a fault, whose
// Raw is the row's Data. It is pure.
func (s *Shape) Event(r Row) event.Result {
	result := event.Result{Raw: r.Data}
	if result.Fault = s.build(&r, &result); result.Fault != nil {
		result.Event = nil
	}
	return result
}

func (s *Shape) build(r *Row, result *event.Result) *event.Fault {
	switch {
	case r.Key == "":
		return event.Faultf(event.FaultMissing, "the row has no key; name the key columns of table %s in the source's configuration", s.Table)
	case !utf8.Valid(r.Data) || !utf8.ValidString(r.Key):
		return event.Faultf(event.FaultNotEvent, "the row's text is not valid UTF-8")
	}
	var members []rawjson.Member
	if len(r.Data) > 0 && !(r.Deleted && rawjson.IsNull(r.Data)) {
		if kind := rawjson.Kind(r.Data); kind != "an object" {
			return event.Faultf(event.FaultType, "the row is %s; want an object", kind)
		}
		var err error
		if members, err = rawjson.Members(r.Data); err != nil {
			return event.Faultf(event.FaultAmbiguous, "%v", err)
		}
	} else if !r.Deleted {
		return event.Faultf(event.FaultMissing, "the row has no columns")
	}
	e := &event.Event{
		Subject:         r.Key,
		DataContentType: "application/json",
		DataJSON:        true,
	}
	if !event.IsNullTime(r.Modified) {
		e.Time = r.Modified.UTC()
	}
	var matchKey string
	switch s.Kind {
	case event.KindDataverse:
		matchKey = s.dataverse(e, r, members, result)
	default:
		matchKey = s.other(e, r, members, result)
	}
	if f := event.CheckDepth(e.Data); f != nil {
		return f
	}
	e.Set(event.ExtPartitionKey, e.Subject)
	e.Set(event.ExtMatchKey, matchKey)
	if r.Ordered {
		e.Set(event.ExtSequence, r.Version)
	}
	// One version is one change, however its row is written: a name that a lookup
	// leads to may have changed since.
	result.Digest = event.Digest("", "", e.Data, true)
	if r.Version != "" || r.Deleted {
		result.Digest = event.Digest("", e.Subject, []byte(r.Version), false)
	}
	identity := matchKey
	if identity == "" {
		identity = strings.ToLower(s.Table) + "/" + r.Key + "/content=" + result.Digest
	}
	sum := sha256.Sum256([]byte(identity))
	e.ID = "sha256-" + hex.EncodeToString(sum[:16])
	result.Key = s.Kind + "\n" + e.ID
	if s.Kind == event.KindCustom {
		// Keys of one database say nothing about those of another.
		result.Key = s.Kind + "\n" + s.Source + "\n" + e.ID
	}
	if err := e.Validate(); err != nil {
		return event.FaultOf(err)
	}
	result.Event = e
	return nil
}

// actionOf tells what happened to a row, as far as its times tell it.
func actionOf(r *Row) string {
	switch {
	case r.Deleted:
		return "deleted"
	case r.Created.IsZero() || r.Modified.IsZero():
		return ""
	case r.Created.Equal(r.Modified):
		return "created"
	}
	return "updated"
}

// other makes events of F&O and custom rows, and gives their match key.
func (s *Shape) other(e *event.Event, r *Row, members []rawjson.Member, result *event.Result) (matchKey string) {
	fno := s.Kind == event.KindFnO
	change := Changed
	if r.Deleted {
		change = Deleted
	}
	scope, column := s.Scope, s.ScopeColumn
	if fno && column == "" {
		column = defaultCompany
	}
	if column != "" {
		if text := scalarText(find(members, column)); text != "" {
			scope = text
		}
	}
	prefix := "/gridfan/"
	owner := s.Source + "/"
	if fno {
		scope = strings.ToLower(scope)
		e.Set(event.ExtLegalEntity, scope)
		prefix, owner = "/d365/fno/", ""
	}
	e.Source = prefix + s.Source + "/" + url.PathEscape(s.Table)
	e.Type = s.Kind + "." + s.Table + "." + change
	e.DataSchema = SchemaID
	e.Set(event.ExtAction, actionOf(r))
	result.Scope, result.Name = scope, s.Table+"."+change

	b := make([]byte, 0, len(r.Data)+256)
	b = appendText(append(b, `{"table":`...), s.Table)
	b = appendText(append(b, `,"change":`...), change)
	b = appendText(append(b, `,"id":`...), r.Key)
	if fno {
		b = appendText(append(b, `,"company":`...), scope)
	}
	b = append(b, `,"key":`...)
	keys := newObject(b)
	for _, name := range s.Key {
		if v := find(members, name); v != nil {
			keys.add(name, v)
		}
	}
	b = append(keys.end(), `,"columns":`...)
	columns := newObject(b)
	for _, m := range members {
		switch {
		case fno && strings.Contains(m.Name, "@"):
		case fno && nullDate(m.Value):
			columns.add(m.Name, []byte("null"))
		default:
			columns.add(m.Name, m.Value)
		}
	}
	b = columns.end()
	if fno {
		b = appendSome(b, "annotations", members, func(name string) bool { return strings.Contains(name, "@") })
	}
	e.Data = append(b, '}')

	base := owner + strings.ToLower(s.Table) + "/" + r.Key + "/"
	switch {
	case r.Deleted && r.Version != "":
		return base + "deleted=" + url.PathEscape(r.Version)
	case r.Deleted:
		return base + "deleted"
	case fno && !r.Modified.IsZero():
		return base + r.Modified.UTC().Format(time.RFC3339Nano)
	case r.Version != "":
		return base + "version=" + url.PathEscape(r.Version)
	case !r.Modified.IsZero():
		return base + r.Modified.UTC().Format(time.RFC3339Nano)
	}
	return ""
}

// appendSome adds a member with those of members that are wanted, if any.
func appendSome(b []byte, name string, members []rawjson.Member, wanted func(name string) bool) []byte {
	begin := len(b)
	b = append(append(append(b, `,"`...), name...), `":`...)
	o := newObject(b)
	for _, m := range members {
		if wanted(m.Name) {
			o.add(m.Name, m.Value)
		}
	}
	if o.n == 0 {
		return b[:begin]
	}
	return o.end()
}

// nullDate says whether v is how F&O writes an empty date.
func nullDate(v []byte) bool {
	const day = `"1900-01-01T`
	if len(v) < len(day) || string(v[:len(day)]) != day {
		return false
	}
	text, _ := rawjson.Text(v)
	t, err := event.ParseTime(text)
	return err == nil && (event.IsNullTime(t) || event.IsNullTime(t.Add(-12*time.Hour)))
}

// find gives a member's value; a name in another case does if there is none of this.
func find(members []rawjson.Member, name string) []byte {
	if v := rawjson.Find(members, name); v != nil {
		return v
	}
	for _, m := range members {
		if strings.EqualFold(m.Name, name) {
			return m.Value
		}
	}
	return nil
}

// scalarText gives the text of a string or number, empty for all else.
func scalarText(v []byte) string {
	if len(v) == 0 {
		return ""
	}
	if s, ok := rawjson.Text(v); ok {
		return s
	}
	if c := v[0]; c == '-' || c >= '0' && c <= '9' {
		return string(v)
	}
	return ""
}

// object writes members one by one.
type object struct {
	b []byte
	n int
}

func newObject(b []byte) *object { return &object{b: append(b, '{')} }

func (o *object) add(name string, value []byte) {
	if o.n++; o.n > 1 {
		o.b = append(o.b, ',')
	}
	o.b = append(appendString(o.b, name), ':')
	o.b = append(o.b, value...)
}

func (o *object) end() []byte { return append(o.b, '}') }

func appendString(b []byte, s string) []byte {
	b, _ = jsontext.AppendQuote(b, s)
	return b
}

// appendText writes s, and an empty s as null.
func appendText(b []byte, s string) []byte {
	if s == "" {
		return append(b, "null"...)
	}
	return appendString(b, s)
}

// The messages that rows of Dataverse stand for.
const (
	create = "Create"
	update = "Update"
	remove = "Delete"
)

// The annotations that have a place of their own in data
// (MicrosoftDocs/powerapps-docs, powerapps-docs/developer/data-platform/webapi/
// query/select-columns.md, "Formatted values" and "Lookup properties"; read 2026-11).
const (
	formattedValue  = "@OData.Community.Display.V1.FormattedValue"
	lookupTableName = "@Microsoft.Dynamics.CRM.lookuplogicalname"
)

// lookup gives the column that _x_value is the lookup of.
func lookup(name string) (column string, ok bool) {
	inner, ok := strings.CutPrefix(name, "_")
	if !ok {
		return "", false
	}
	inner, ok = strings.CutSuffix(inner, "_value")
	return inner, ok && inner != ""
}

// dataverse makes events of Dataverse rows, and gives their match key.
func (s *Shape) dataverse(e *event.Event, r *Row, members []rawjson.Member, result *event.Result) (matchKey string) {
	table := strings.ToLower(s.Table)
	message, action := update, "updated"
	switch {
	case r.Deleted:
		message, action = remove, "deleted"
	case !r.Created.IsZero() && r.Created.Equal(r.Modified):
		message, action = create, "created"
	}
	id := strings.ToLower(strings.Trim(r.Key, "{}"))
	e.Source = "/d365/dataverse/" + s.Source + "/" + url.PathEscape(table)
	e.Type = "dataverse." + table + "." + message
	e.Subject = id
	e.DataSchema = dataverse.SchemaID
	e.Set(event.ExtAction, action)
	result.Scope, result.Name = table, message
	for _, name := range []string{"mserp_dataareaid", "dataareaid"} {
		if company := scalarText(find(members, name)); company != "" {
			e.Set(event.ExtLegalEntity, strings.ToLower(company))
			break
		}
	}
	e.Data = appendChange(make([]byte, 0, len(r.Data)+512), table, message, id, members)
	switch {
	case r.Deleted:
		return dataverse.MatchKey(table, id, time.Time{})
	case !r.Modified.IsZero():
		return dataverse.MatchKey(table, id, r.Modified)
	case r.Version != "":
		// A table without modifiedon: nothing that was pushed has this version.
		return table + "/" + id + "/version=" + url.PathEscape(r.Version)
	}
	return ""
}

// A field is one column of a row with its annotations.
type field struct {
	name      string // as data has it
	value     []byte
	reference bool   // value is the id of a row
	formatted []byte // nil: none
	table     []byte // of a reference; nil: none
}

// appendChange writes a row as package dataverse has changes.
func appendChange(b []byte, table, message, id string, members []rawjson.Member) []byte {
	byName := make(map[string]int, len(members))
	var fields []field
	for _, m := range members {
		// What is said of a deleted row is none of its columns.
		if message != remove && !strings.Contains(m.Name, "@") {
			byName[m.Name] = len(fields)
			fields = append(fields, field{name: m.Name, value: m.Value})
		}
	}
	for i := range fields {
		f := &fields[i]
		if column, ok := lookup(f.name); ok && (f.value[0] == '"' || f.value[0] == 'n') {
			if _, taken := byName[column]; !taken {
				f.name, f.reference = column, true
			}
		}
	}
	var rest []rawjson.Member
	for _, m := range members {
		if _, column := byName[m.Name]; column {
			continue
		}
		base, _, _ := strings.Cut(m.Name, "@")
		at := len(base)
		i, known := byName[base]
		switch annotation := m.Name[at:]; {
		case known && annotation == formattedValue && !(fields[i].reference && rawjson.IsNull(fields[i].value)):
			fields[i].formatted = m.Value
		case known && annotation == lookupTableName && fields[i].reference && !rawjson.IsNull(fields[i].value):
			fields[i].table = m.Value
		default:
			rest = append(rest, m)
		}
	}

	b = appendText(append(b, `{"table":`...), table)
	b = appendText(append(b, `,"message":`...), message)
	b = appendText(append(b, `,"id":`...), id)
	b = append(b, `,"changed":[`...)
	for i := range fields {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, fields[i].name)
	}
	b = append(b, `],"columns":`...)
	columns := newObject(b)
	for i := range fields {
		f := &fields[i]
		if !f.reference || rawjson.IsNull(f.value) {
			columns.add(f.name, f.value)
			continue
		}
		to := newObject(nil)
		to.add("table", orNull(f.table))
		to.add("id", f.value)
		to.add("name", orNull(f.formatted))
		columns.add(f.name, to.end())
	}
	b = columns.end()
	texts := newObject(append(b, `,"formatted":`...))
	for i := range fields {
		if f := &fields[i]; f.formatted != nil && !f.reference {
			texts.add(f.name, f.formatted)
		}
	}
	if texts.n > 0 {
		b = texts.end()
	}
	context := newObject(append(b, `,"preImages":{},"postImages":{},"context":`...))
	for _, m := range rest {
		context.add(m.Name, m.Value)
	}
	return append(context.end(), '}')
}

func orNull(v []byte) []byte {
	if v == nil {
		return []byte("null")
	}
	return v
}
