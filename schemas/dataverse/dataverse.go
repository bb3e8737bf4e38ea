// Package dataverse reads the events of Microsoft Dataverse: the execution
// context (RemoteExecutionContext) that a webhook step posts, that F&O data
// events come as, and that a Service Bus or Event Hubs endpoint sends when its
// message format is JSON; bare, in an array, or inside an Event Grid or
// CloudEvents envelope, where data may be the object or a string that holds it.
//
// The attributes of an event:
//
//	OperationId-OwningExtension.Id   id; without both, a digest of the content
//	/d365/dataverse/<source>/<table> source
//	dataverse.<table>.<MessageName>  type
//	PrimaryEntityId, else Target.Id  subject and extension partitionkey
//	modifiedon, OperationCreatedOn   time: of Target, else of a post-image,
//	                                 else when the operation was created
//	MessageName                      extension action: created, updated,
//	                                 deleted, else occurred
//	mserp_dataareaid, dataareaid     extension legalentity, lower case
//	versionnumber                    extension sequence; of Target, else of a
//	                                 post-image
//	OrganizationName, CorrelationId  extensions organization, correlationid
//	MatchKey                         extension matchkey, where the change has
//	                                 a version or is a deletion
//	over the size limit              extension incomplete, the boolean true
//
// What an envelope says otherwise is kept in extensions envelopeid,
// envelopetype, envelopesource, envelopesubject, envelopetime and
// envelopedataschema, and its own extensions carry over.
//
// data is the context put in order:
//
//	table            PrimaryEntityName, lower case
//	message          MessageName
//	id               PrimaryEntityId, else Target's Id; null without either
//	changed          names of Target's columns in the order sent: those that
//	                 were written, whether or not their values differ
//	columns          Target's columns by name; {} for a deletion
//	formatted        their texts for people (FormattedValues), if any
//	target           what else Target says (its table and id where they differ
//	                 from those above, name, rowVersion, keyAttributes, …), if
//	                 anything
//	preImages        registered images by alias, each a row
//	postImages       likewise
//	inputParameters  the other parameters by name, if any
//	outputParameters likewise
//	parent           ParentContext, as data, if any
//	context          every other member under its own name: Stage, Mode, Depth,
//	                 UserId, SharedVariables, …
//
// and its values are written like this:
//
//	Entity           a row: {"table","id","columns"}, and where they say
//	                 something formatted, keyAttributes, rowVersion,
//	                 entityState, relatedEntities
//	EntityReference  {"table","id","name"}, likewise
//	EntityCollection an array of rows; {"entities"} and its members where one
//	                 of these says more than that nothing is left to page
//	OptionSetValue   its number; a multi-select is an array of numbers
//	Money            its number, with the digits sent
//	/Date(ms±HHMM)/  RFC 3339 in UTC
//	key/value arrays objects; an array that repeats a key and is no dictionary
//	                 stays one
//	Guid:#System …   the __value alone
//	anything else    as it was sent; an unknown __type with all it wraps
//
// Numbers keep their text, and nulls of columns stay: that a column was emptied
// is news. Not shown are the __type of what stands above; null and empty
// members of rows and references but for name; EntityName of a collection where
// its rows say the same or there are none; the case and braces of table and id,
// and an id of zeros, which means none; the zone of a /Date()/; a null parent;
// and of an envelope what package businessevent does not show either.
//
// OperationCreatedOn has a trap. Asynchronous steps send it with the server's
// offset, and its milliseconds are then wrong by just that: the instant is
// ms + offset. In Microsoft's own sample, /Date(1506409448000-0700)/ is seven
// hours after the modifiedon of the change it speaks of and one second after it
// when corrected; the other captures with an offset agree. Everywhere else the
// offset moves nothing, as in WCF.
//
// Sources of the facts, unless said otherwise, all read 2026-11:
// MicrosoftDocs/powerapps-docs, powerapps-docs/developer/data-platform, files
// use-webhooks.md and azure-integration.md, and the captures in testdata.
package dataverse

import (
	"bytes"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
	"github.com/gridfan/gridfan/schemas/rawjson"
)

// Extension attributes that only Dataverse events have so far.
const (
	extOrganization = "organization"
	// correlationid is the name of CloudEvents' correlation extension
	// (cloudevents/spec, cloudevents/extensions/correlation.md; read 2026-11).
	extCorrelationID = "correlationid"
)

// Extension attributes of events from which Dataverse took parts out.
const (
	// ExtIncomplete, the boolean true, says that they are missing, and
	// ExtIncompleteReason in a word why they were not read. Without a word nobody was
	// to read them.
	ExtIncomplete       = "incomplete"
	ExtIncompleteReason = "incompletereason"
	// ExtCompleted says that columns are those of the row as it was read, and when
	// that was; ExtNewer, the boolean true, that the row had changed since the event.
	ExtCompleted = "completed"
	ExtNewer     = "newer"
)

// MatchKey names one version of one row, so that a change which was pushed and
// the same change which was polled are known as one. modified is the row's
// modifiedon, of which whole seconds count, for Dataverse sends no more; the
// zero time stands for the row's deletion. Like every identity it holds within
// one environment.
func MatchKey(table, id string, modified time.Time) string {
	version := "deleted"
	if !modified.IsZero() {
		version = modified.UTC().Format("2006-01-02T15:04:05Z")
	}
	return strings.ToLower(table) + "/" + guid(id) + "/" + version
}

// Parse reads a request body: one execution context or an array of them, each
// bare or in an envelope. source is the name of the configured source; header
// is the request's (an http.Header will do), or the properties of a broker's
// message, and tells whether Dataverse left parts of a context out. The results
// follow the order of the elements; an empty array has none, and a body that is
// not JSON has one, a fault. Only Raw shares body's memory. Parse is pure and
// safe for concurrent use.
func Parse(source string, header map[string][]string, body []byte) []event.Result {
	elems, _, err := rawjson.Elements(body)
	if err != nil {
		return []event.Result{{Raw: body, Fault: notJSON(body, err)}}
	}
	results := make([]event.Result, len(elems))
	for i, raw := range elems {
		results[i] = eventgrid.ParseInside(source, header, raw, func(bare []byte, members []rawjson.Member, env *event.Event) event.Result {
			return build(source, header, bare, members, env)
		})
		results[i].Raw = raw
	}
	return results
}

// notJSON knows the two formats that a service endpoint can send instead of
// JSON: .NET's binary XML, which is the default and begins with a ShortElement
// record, 0x40 ([MC-NBFX]: .NET Binary Format: XML Data Structure), and XML. The
// choices of messageformat are in the same documentation,
// reference/entities/serviceendpoint.md.
func notJSON(body []byte, err error) *event.Fault {
	const fix = "; set the message format of the service endpoint to JSON in the Plug-in Registration Tool (messageformat 2 of table serviceendpoint)"
	switch body = bytes.TrimSpace(body); {
	case bytes.HasPrefix(body, []byte{0x40}):
		return event.Faultf(event.FaultNotJSON, "the body is .NET binary XML, the default of Dataverse's service endpoints"+fix)
	case bytes.HasPrefix(body, []byte("<")):
		return event.Faultf(event.FaultNotJSON, "the body is XML"+fix)
	}
	return event.Faultf(event.FaultNotJSON, "%v", err)
}

func fault(f *event.Fault) event.Result { return event.Result{Fault: f} }

// notContext tells an operator what this source is for: most often a
// subscription was pointed at the wrong one.
func notContext(members []rawjson.Member, inEnvelope bool) *event.Fault {
	for _, m := range members {
		if m.Name == "BusinessEventId" || m.Name == "EventId" {
			return event.Faultf(event.FaultNotEvent, "F&O business event; this source's kind is dataverse, and kind fno is for business events")
		}
	}
	if inEnvelope {
		return event.Faultf(event.FaultNotEvent, "data is no Dataverse execution context; this source's kind is dataverse, and kind eventgrid is for other events")
	}
	return event.Faultf(event.FaultNotEvent, "none of MessageName, PrimaryEntityName and InputParameters is there; a source of kind dataverse takes Dataverse execution contexts, bare or in an Event Grid or CloudEvents envelope")
}

// build makes the event from the context and its envelope, nil if it came
// without one.
func build(source string, header map[string][]string, bare []byte, members []rawjson.Member, env *event.Event) event.Result {
	known := func(m rawjson.Member) bool {
		return m.Name == "MessageName" || m.Name == "PrimaryEntityName" || m.Name == "InputParameters"
	}
	if !slices.ContainsFunc(members, known) {
		return fault(notContext(members, env != nil))
	}
	v, err := parseValue(bare)
	if err != nil {
		return fault(event.Faultf(event.FaultAmbiguous, "%v", err))
	}
	x, f := readExecution(v, 0)
	if f != nil {
		return fault(f)
	}
	for _, required := range []struct{ name, value string }{{"MessageName", x.message}, {"PrimaryEntityName", x.table}} {
		if required.value == "" {
			return fault(event.Faultf(event.FaultMissing, "member %s is missing or empty; Dataverse sends it with every context, even one over the size limit", required.name))
		}
	}
	data := x.append(make([]byte, 0, len(bare)))
	if f := event.CheckDepth(data); f != nil {
		return fault(f)
	}

	e := &event.Event{
		Source:          "/d365/dataverse/" + source + "/" + url.PathEscape(x.table),
		Type:            "dataverse." + x.table + "." + x.message,
		Subject:         x.id,
		DataContentType: "application/json",
		DataSchema:      SchemaID,
		Data:            data,
		DataJSON:        true,
	}
	modified := x.modified()
	if e.Time = modified; e.Time.IsZero() {
		e.Time = x.created
	}
	digest := event.Digest(e.Type, x.id, data, true)
	e.ID = "sha256-" + digest
	if x.operation != "" && x.step != "" {
		e.ID = x.operation + "-" + x.step
	}
	if env != nil {
		mergeEnvelope(e, env, eventgrid.DefaultSource(source))
	}
	action := actionOf(x.message)
	own(e, event.ExtAction, action)
	own(e, event.ExtLegalEntity, x.legalEntity())
	own(e, event.ExtSequence, x.version())
	own(e, event.ExtPartitionKey, x.id)
	own(e, extOrganization, x.organization)
	own(e, extCorrelationID, x.correlation)
	switch {
	case x.id == "":
	case action == deleted:
		own(e, event.ExtMatchKey, MatchKey(x.table, x.id, time.Time{}))
	case action != occurred && !modified.IsZero():
		own(e, event.ExtMatchKey, MatchKey(x.table, x.id, modified))
	}
	if x.incomplete(action) || oversized(header) {
		own(e, ExtIncomplete, "true")
		e.SetExtension(event.Extension{Name: ExtIncomplete, Value: "true", Type: event.Boolean})
	}
	if err := e.Validate(); err != nil {
		return fault(event.FaultOf(err))
	}
	return event.Result{
		Event:  e,
		Scope:  x.table,
		Name:   x.message,
		Key:    "dataverse\n" + e.ID,
		Digest: digest,
	}
}

// oversized says whether Dataverse tells that it took parts of a context out:
// a webhook by a header, over 256 KB, Service Bus by a property, over 192 KB.
func oversized(header map[string][]string) bool {
	for name := range header {
		if strings.EqualFold(name, "x-ms-dynamics-msg-size-exceeded") || strings.EqualFold(name, "MessageMaxSizeExceeded") {
			return true
		}
	}
	return false
}

// The actions of extension action.
const (
	created  = "created"
	updated  = "updated"
	deleted  = "deleted"
	occurred = "occurred"
)

// Missing says of an event of Parse whether parts were taken out of it, and then
// whether reading its row makes it whole: only what was created or updated has one
// that says what the event did not.
func Missing(e *event.Event) (missing, readable bool) {
	if e.Get(ExtIncomplete) != "true" {
		return false, false
	}
	action := e.Get(event.ExtAction)
	return true, (action == created || action == updated) && rowID.MatchString(e.Subject)
}

var rowID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// Uncommitted says of an event of Parse whether it was sent within the transaction of
// its change, as synchronous steps send theirs: who reads the row at once sees it as
// it was before.
func Uncommitted(e *event.Event) bool {
	members, err := rawjson.Members(e.Data)
	if err != nil {
		return false
	}
	context := rawjson.Find(members, "context")
	if rawjson.Kind(context) != "an object" {
		return false
	}
	if members, err = rawjson.Members(context); err != nil {
		return false
	}
	return string(rawjson.Find(members, "IsInTransaction")) == "true"
}

// actionOf tells what a message does to its row. OnExternal… are the messages
// of virtual tables, which F&O data events use; the …Multiple ones carry many
// rows, and so have neither record id nor match key.
func actionOf(message string) string {
	message = strings.ToLower(message)
	message = strings.TrimPrefix(message, "onexternal")
	switch strings.TrimSuffix(message, "multiple") {
	case "create", "created":
		return created
	case "update", "updated":
		return updated
	case "delete", "deleted":
		return deleted
	}
	return occurred
}

// mergeEnvelope takes over what the envelope says beyond the context.
func mergeEnvelope(e, env *event.Event, defaultSource string) {
	e.Extensions = slices.Clone(env.Extensions)
	switch {
	case e.Time.IsZero():
		e.Time = env.Time
	case !env.Time.IsZero() && !env.Time.Equal(e.Time):
		keep(e, "envelopetime", event.FormatTime(env.Time))
	}
	switch {
	case e.Subject == "":
		e.Subject = env.Subject
	case guid(env.Subject) != e.Subject:
		if e.Get(event.ExtPartitionKey) == env.Subject {
			e.Set(event.ExtPartitionKey, "") // package eventgrid's default
		}
		keep(e, "envelopesubject", env.Subject)
	}
	if guid(env.ID) != e.ID {
		keep(e, "envelopeid", env.ID)
	}
	if env.Type != e.Type {
		keep(e, "envelopetype", env.Type)
	}
	if env.Source != defaultSource && env.Source != e.Source {
		keep(e, "envelopesource", env.Source)
	}
	if env.DataSchema != SchemaID {
		keep(e, "envelopedataschema", env.DataSchema)
	}
}

// own sets an extension that is read from the context. If the envelope's sender
// had set it to something else, that is kept beside it.
func own(e *event.Event, name, value string) {
	if value == "" {
		return
	}
	if sent := e.Get(name); sent != "" && !strings.EqualFold(sent, value) {
		keep(e, "envelope"+name, sent)
	}
	e.Set(name, value)
}

// keep is eventgrid.Keep, but what the sender said already is not said twice.
func keep(e *event.Event, name, value string) {
	if e.Get(name) != value {
		eventgrid.Keep(e, name, value)
	}
}
