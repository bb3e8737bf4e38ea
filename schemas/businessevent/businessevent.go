// Package businessevent reads the business events of Dynamics 365 Finance &
// Operations: the flat JSON object that F&O posts to an HTTPS endpoint, and the
// same object inside an Event Grid or CloudEvents envelope, where data may be
// the object or, as F&O itself sends it, a JSON string that holds the object.
//
// One business event has one identity and one digest by whatever road it comes,
// because both are taken from the flat object:
//
//	EventId                      id, upper case, without braces
//	BusinessEventId              type; the subject's name loses "BusinessEvent"
//	EventTimeIso8601, EventTime  time, else the envelope's, never 1900-01-01
//	LegalEntity and others       extension legalentity, lower case
//	ControlNumber                extension sequence
//	ContextRecordSubject         subject, where no envelope has one
//
// source is /d365/fno/<source>; what the envelope says otherwise is kept in
// extensions envelopesource, envelopetype, envelopeid and envelopedataschema,
// and its own extensions carry over.
//
// data is the flat object byte for byte, but that strings of the form
// /Date(1572495135000)/ are rewritten to RFC 3339 in UTC. Nothing else is
// changed and nothing is dropped. What is not shown of an envelope is what
// package eventgrid names, its content type, and its id, type, source or
// extensions where they differ from the event's only in case or braces.
//
// Sources of the facts, unless said otherwise, all read 2026-11:
// MicrosoftDocs/dynamics-365-unified-operations-public,
// articles/fin-ops-core/dev-itpro/business-events, and the captures in testdata.
package businessevent

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

// testEvent is what F&O sends when an endpoint is activated (seen as
// BusinessEventId in public receivers, 2026-11).
const testEvent = "BusinessEventsTestEndpointContract"

// suffix is how nearly every BusinessEventId ends; in a subject it says nothing.
const suffix = "BusinessEvent"

// Parse reads a request body: one business event or an array of them, each
// flat or in an envelope. source is the name of the configured source; header
// is the request's and only sharpens faults. The results follow the order of
// the elements; an empty array has none, and a body that is not JSON has one,
// a fault. Events share body's memory. Parse is pure and safe for concurrent
// use.
func Parse(source string, header map[string][]string, body []byte) []event.Result {
	elems, _, err := rawjson.Elements(body)
	if err != nil {
		return []event.Result{{Raw: body, Fault: event.Faultf(event.FaultNotJSON, "%v", err)}}
	}
	results := make([]event.Result, len(elems))
	for i, raw := range elems {
		results[i] = eventgrid.ParseInside(source, header, raw, func(flat []byte, members []rawjson.Member, env *event.Event) event.Result {
			return build(source, flat, members, env)
		})
		results[i].Raw = raw
	}
	return results
}

func fault(f *event.Fault) event.Result { return event.Result{Fault: f} }

// notBusinessEvent tells an operator what this source is for: most often a
// subscription was pointed at the wrong one.
func notBusinessEvent(inEnvelope bool) *event.Fault {
	if inEnvelope {
		return event.Faultf(event.FaultNotEvent, "data is no F&O business event; this source's kind is fno, and kind eventgrid is for other events")
	}
	return event.Faultf(event.FaultNotEvent, "neither BusinessEventId nor EventId is there; a source of kind fno takes F&O business events, bare or in an Event Grid or CloudEvents envelope")
}

// build makes the event from the flat object and its envelope, nil if it came
// without one.
func build(source string, flat []byte, members []rawjson.Member, env *event.Event) event.Result {
	known := func(name string) bool { return rawjson.Find(members, name) != nil }
	if !known("BusinessEventId") && known("PrimaryEntityName") && (known("InputParameters") || known("MessageName")) {
		return fault(event.Faultf(event.FaultUnsupported, "a Dataverse execution context, where a business event was expected; sources of kind dataverse take these"))
	}
	if !known("BusinessEventId") && !known("EventId") && !known("ControlNumber") {
		return fault(notBusinessEvent(env != nil))
	}
	name, f := text(members, "BusinessEventId")
	if f != nil {
		return fault(f)
	}
	eventID, f := text(members, "EventId")
	if f != nil {
		return fault(f)
	}
	eventID = normalID(eventID)
	if name == "" && env != nil {
		name = env.Type
	}
	if name == "" && eventID == "" {
		return fault(missing(members))
	}
	if strings.EqualFold(name, testEvent) {
		return event.Result{Control: &event.Control{Kind: event.Test}}
	}

	data := rawjson.RewritePrefixed(flat, datePrefix, rfc3339)
	if f := event.CheckDepth(data); f != nil {
		return fault(f)
	}
	e := &event.Event{
		ID:              eventID,
		Source:          "/d365/fno/" + source,
		Type:            name,
		Time:            occurred(members),
		DataContentType: "application/json",
		DataSchema:      SchemaID,
		Data:            data,
		DataJSON:        true,
	}
	if e.Type == "" {
		e.Type = suffix // one event of 2019 has no BusinessEventId
	}
	if env != nil {
		mergeEnvelope(e, env, eventgrid.DefaultSource(source))
	}
	if e.Subject == "" {
		e.Subject = textOf(members, "ContextRecordSubject")
	}
	if e.ID == "" {
		// Authors trim EventId off; the content is all that identifies it then.
		e.ID = "sha256-" + event.Digest("", "", flat, true)
	}
	entity := strings.ToLower(legalEntity(members))
	if entity == "" && env != nil {
		entity = strings.ToLower(subjectEntity(env.Subject, name))
		if entity == "" {
			entity = strings.ToLower(env.Get(event.ExtLegalEntity))
		}
	}
	own(e, event.ExtLegalEntity, entity)
	own(e, event.ExtSequence, controlNumber(members))
	own(e, event.ExtAction, "occurred")
	if e.Get(event.ExtPartitionKey) == "" {
		e.Set(event.ExtPartitionKey, e.Subject)
	}
	if err := e.Validate(); err != nil {
		return fault(event.FaultOf(err))
	}
	r := event.Result{
		Event: e,
		Scope: entity,
		Name:  name,
		Key:   "fno\n" + e.ID,
		// Without the subject: only an envelope has one.
		Digest: event.Digest(e.Type, "", data, true),
	}
	if short := strings.TrimSuffix(name, suffix); short != "" {
		r.Name = short
	}
	return r
}

func missing(members []rawjson.Member) *event.Fault {
	for _, name := range []string{"EventTime", "EventTimeIso8601"} {
		if t, ok := parseTime(textOf(members, name)); ok && event.IsNullTime(t) {
			return event.Faultf(event.FaultMissing, "BusinessEventId and EventId are empty and %s is 1900-01-01: this is a schema sample (\"Download schema\" in F&O), not an event", name)
		}
	}
	return event.Faultf(event.FaultMissing, "BusinessEventId and EventId are both missing or empty; F&O sends both with every business event")
}

// mergeEnvelope takes over what the envelope says beyond the flat object.
func mergeEnvelope(e, env *event.Event, defaultSource string) {
	e.Subject = env.Subject
	e.Extensions = slices.Clone(env.Extensions)
	if e.Time.IsZero() {
		e.Time = env.Time
	}
	switch id := env.ID; {
	case e.ID == "" && isGUID(id):
		e.ID = normalID(id)
	case e.ID == "":
		e.ID = id
	case normalID(id) != e.ID:
		eventgrid.Keep(e, "envelopeid", id)
	}
	if !strings.EqualFold(env.Type, e.Type) {
		eventgrid.Keep(e, "envelopetype", env.Type)
	}
	if env.Source != defaultSource && !strings.EqualFold(env.Source, e.Source) {
		eventgrid.Keep(e, "envelopesource", env.Source)
	}
	if env.DataSchema != SchemaID {
		eventgrid.Keep(e, "envelopedataschema", env.DataSchema)
	}
}

// own sets an extension that is read from the flat object. If the envelope's
// sender had set it to something else, that is kept beside it.
func own(e *event.Event, name, value string) {
	if value == "" {
		return
	}
	if sent := e.Get(name); sent != "" && !strings.EqualFold(sent, value) {
		eventgrid.Keep(e, "envelope"+name, sent)
	}
	e.Set(name, value)
}

// SetBusinessKey makes the values of members of e's data its subject and
// partition key, joined by "/": the purchase order a confirmation is about, for
// one. The subject that the sender gave is kept as extension "envelopesubject".
// Without members, or when one of them is not there or no scalar, e stays as it
// is and the answer is false.
func SetBusinessKey(e *event.Event, members []string) bool {
	if len(members) == 0 {
		return false
	}
	all, err := rawjson.Members(e.Data)
	if err != nil {
		return false
	}
	var parts []string
	for _, name := range members {
		v := rawjson.Find(all, name)
		if v == nil || rawjson.IsNull(v) || v[0] == '{' || v[0] == '[' {
			return false
		}
		s, ok := rawjson.Text(v)
		if !ok {
			s = string(v) // a number's digits as they came
		}
		parts = append(parts, s)
	}
	key := strings.Join(parts, "/")
	if key == "" {
		return false
	}
	if e.Subject != "" && e.Subject != key {
		eventgrid.Keep(e, "envelopesubject", e.Subject)
	}
	if e.Get(event.ExtPartitionKey) == e.Subject {
		e.Set(event.ExtPartitionKey, key)
	}
	e.Subject = key
	return true
}

// findFold is rawjson.Find without regard to case.
func findFold(members []rawjson.Member, name string) []byte {
	for _, m := range members {
		if strings.EqualFold(m.Name, name) {
			return m.Value
		}
	}
	return nil
}

// text gives a string member; absent and null are empty, all else is a fault.
func text(members []rawjson.Member, name string) (string, *event.Fault) {
	v := rawjson.Find(members, name)
	if v == nil || rawjson.IsNull(v) {
		return "", nil
	}
	s, ok := rawjson.Text(v)
	if !ok {
		return "", event.Faultf(event.FaultType, "member %s: want a string, got %s", name, rawjson.Kind(v))
	}
	return s, nil
}

// textOf gives a string member, and an empty string for any other value.
func textOf(members []rawjson.Member, name string) string {
	s, _ := rawjson.Text(rawjson.Find(members, name))
	return s
}

// normalID makes one of the notations of a GUID: F&O sends upper case, older
// versions with braces.
func normalID(s string) string {
	if strings.HasPrefix(s, "{") && strings.HasSuffix(s, "}") {
		s = s[1 : len(s)-1]
	}
	return strings.ToUpper(s)
}

func isGUID(s string) bool {
	s = normalID(s)
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case (c < '0' || c > '9') && (c < 'A' || c > 'F'):
			return false
		}
	}
	return true
}

// occurred gives the event's time, zero if it names none. EventTimeIso8601 has
// seven digits of a second where EventTime has whole seconds.
func occurred(members []rawjson.Member) time.Time {
	for _, name := range []string{"EventTimeIso8601", "EventTime"} {
		if t, ok := parseTime(textOf(members, name)); ok && !event.IsNullTime(t) {
			return t
		}
	}
	return time.Time{}
}

func parseTime(s string) (time.Time, bool) {
	if t, ok := parseDate(s); ok {
		return t, true
	}
	t, err := event.ParseTime(s)
	return t, err == nil
}

// The years that RFC 3339 can write.
var (
	minMillis = time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	maxMillis = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli() - 1
)

const datePrefix = "/Date("

// parseDate reads /Date(ms)/ and /Date(ms±HHMM)/, .NET's old JSON notation.
// The offset tells the sender's zone and does not move the instant
// (learn.microsoft.com/dotnet/framework/wcf/feature-details/stand-alone-json-serialization,
// "DateTime Wire Format"; read 2026-11).
func parseDate(s string) (time.Time, bool) {
	s, ok := strings.CutPrefix(s, datePrefix)
	if !ok {
		return time.Time{}, false
	}
	if s, ok = strings.CutSuffix(s, ")/"); !ok || s == "" {
		return time.Time{}, false
	}
	if i := strings.LastIndexAny(s, "+-"); i > 0 {
		offset := s[i+1:]
		if len(offset) != 4 || strings.Trim(offset, "0123456789") != "" {
			return time.Time{}, false
		}
		s = s[:i]
	} else if s[0] == '+' {
		return time.Time{}, false
	}
	ms, err := strconv.ParseInt(s, 10, 64)
	if err != nil || ms < minMillis || ms > maxMillis {
		return time.Time{}, false
	}
	return time.UnixMilli(ms).UTC(), true
}

func rfc3339(s string) (string, bool) {
	t, ok := parseDate(s)
	if !ok {
		return "", false
	}
	return event.FormatTime(t), true
}

// legalEntity finds the company in the flat object. Every contract author
// chose a name of their own, and alerts have none at all.
func legalEntity(members []rawjson.Member) string {
	for _, name := range []string{"LegalEntity", "BusinessEventLegalEntity", "DataAreaId", "Company"} {
		for _, m := range members {
			if !strings.EqualFold(m.Name, name) {
				continue
			}
			if s, _ := rawjson.Text(m.Value); s != "" {
				return s
			}
		}
	}
	return targetEntity(rawjson.Find(members, "InputParameters"))
}

// targetEntity finds the company among the columns of the record that a data
// event carries: InputParameters[Target].Attributes[dataAreaId]. The virtual
// table's column is mserp_dataareaid (seen with F&O 10.0.48, 2026-11).
func targetEntity(parameters []byte) string {
	target, err := rawjson.Members(pair(parameters, "Target"))
	if err != nil {
		return ""
	}
	attributes := rawjson.Find(target, "Attributes")
	for _, column := range []string{"dataAreaId", "mserp_dataareaid"} {
		if s, _ := rawjson.Text(pair(attributes, column)); s != "" {
			return s
		}
	}
	return ""
}

// pair gives the value of the first {"key":…,"value":…} of an array that has
// the key, nil if there is none.
func pair(array []byte, key string) []byte {
	elems, isArray, err := rawjson.Elements(array)
	if err != nil || !isArray {
		return nil
	}
	for _, elem := range elems {
		members, err := rawjson.Members(elem)
		if err != nil {
			continue
		}
		if k, _ := rawjson.Text(findFold(members, "key")); strings.EqualFold(k, key) {
			return findFold(members, "value")
		}
	}
	return nil
}

// subjectEntity finds the company in the subject F&O gives an Event Grid event:
// Category_BusinessEventId_LEGALENTITY. Category and id may hold underscores
// themselves, so the id must stand right before the last part.
func subjectEntity(subject, businessEventID string) string {
	i := strings.LastIndexByte(subject, '_')
	if i < 0 || businessEventID == "" {
		return ""
	}
	head := strings.ToLower(subject[:i])
	id := strings.ToLower(businessEventID)
	if head != id && !strings.HasSuffix(head, "_"+id) {
		return ""
	}
	return subject[i+1:]
}

// controlNumber gives ControlNumber's digits. It grows with time but has gaps
// and is not a true sequence; 0 stands in samples only.
func controlNumber(members []rawjson.Member) string {
	s := string(rawjson.Find(members, "ControlNumber"))
	if n, err := strconv.ParseInt(s, 10, 64); err != nil || n == 0 {
		return ""
	}
	return s
}
