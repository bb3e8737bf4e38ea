package dataverse_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/rawjson"
	"github.com/gridfan/gridfan/schemas/schematest"
)

// one parses a body of one element that must give an event.
func one(t *testing.T, body string) event.Result {
	t.Helper()
	r := dataverse.Parse("src", nil, []byte(body))
	if len(r) != 1 || r[0].Event == nil {
		t.Fatalf("%.200s\nno event: %.500s", body, schematest.Briefs(r))
	}
	invariants.Check(t, r[0])
	return r[0]
}

const (
	operation = "08fec203-ec78-4f7a-a024-c96e329a64fe"
	step      = "3db800fe-0963-e811-a95a-000d3af24324"
	record    = "ec4e2f7d-9d60-e811-a95a-000d3af24950"
	zeros     = "00000000-0000-0000-0000-000000000000"

	ids     = `"OperationId":"` + operation + `","OwningExtension":{"Id":"` + step + `","LogicalName":"sdkmessageprocessingstep"}`
	names   = `"MessageName":"Update","PrimaryEntityName":"Account"`
	id      = `"PrimaryEntityId":"` + record + `"`
	typed   = `"__type":"%s:http://schemas.microsoft.com/xrm/2011/Contracts"`
	atLeast = `{` + names + `,"InputParameters":[]`
)

// of writes __type as .NET does.
func of(name string) string { return fmt.Sprintf(typed, name) }

// target writes an Update's InputParameters with Target's columns.
func target(columns string) string {
	return `"InputParameters":[{"key":"Target","value":{` + of("Entity") + `,"Attributes":[` + columns + `],"LogicalName":"account","Id":"` + record + `"}}]`
}

func pair(key, value string) string { return `{"key":"` + key + `","value":` + value + `}` }

func TestFaultsAndControls(t *testing.T) {
	const (
		notContext = `not-an-event: none of MessageName, PrimaryEntityName and InputParameters is there; a source of kind dataverse takes Dataverse execution contexts, bare or in an Event Grid or CloudEvents envelope`
		notInner   = `not-an-event: data is no Dataverse execution context; this source's kind is dataverse, and kind eventgrid is for other events`
		fno        = `not-an-event: F&O business event; this source's kind is dataverse, and kind fno is for business events`
		fix        = `; set the message format of the service endpoint to JSON in the Plug-in Registration Tool (messageformat 2 of table serviceendpoint)`
		always     = ` is missing or empty; Dataverse sends it with every context, even one over the size limit`
		notPairs   = `want an array of key/value pairs, got `
	)
	deep := func(open, end string, n int) string { return strings.Repeat(open, n) + strings.Repeat(end, n) }
	tests := []struct {
		name, body string
		want       []string
	}{
		{"empty array", `[]`, nil},
		{"cut off", `{"MessageName":"Update"`, []string{`not-json: the JSON ends early, at byte 23`}},
		{"empty", ``, []string{`not-json: the body is empty`}},
		{"NUL", "\x00", []string{`not-json: not JSON at byte 0`}},
		{"binary XML", "@\x15RemoteExecutionContext\x08", []string{`not-json: the body is .NET binary XML, the default of Dataverse's service endpoints` + fix}},
		{"XML", " <RemoteExecutionContext/>", []string{`not-json: the body is XML` + fix}},
		{"not objects", `[1,"x"]`, []string{`not-an-event: want a JSON object, got a number`, `not-an-event: want a JSON object, got a string`}},
		{"a bad byte", "{\"MessageName\":\"\xff\"}", []string{`not-an-event: the text is not valid UTF-8`}},

		{"another object", `{"a":1}`, []string{notContext}},
		{"business event", `{"BusinessEventId":"A","EventId":"1"}`, []string{fno}},
		{"business event in an envelope", `{"id":"1","eventType":"A","data":"{\"EventId\":\"1\"}"}`, []string{fno}},
		{"another kind's event", `{"id":"1","topic":"/t","eventType":"Microsoft.Storage.BlobCreated","data":{"api":"PutBlob"}}`, []string{notInner}},
		{"text in an envelope", `{"id":"1","eventType":"A","data":"hello"}`, []string{notInner}},
		{"array in an envelope", `{"id":"1","eventType":"A","data":[` + atLeast + `}]}`, []string{notInner}},
		{"envelope without data", `{"id":"1","topic":"/t","eventType":"A"}`, []string{notInner}},
		{"envelope's own fault", `{"eventType":"A","data":` + atLeast + `}}`, []string{`missing-member: member id is missing or empty`}},

		{"no message", `{"PrimaryEntityName":"account"}`, []string{`missing-member: member MessageName` + always}},
		{"empty message", `{"MessageName":"","PrimaryEntityName":"account"}`, []string{`missing-member: member MessageName` + always}},
		{"no table", `{"MessageName":"Update","InputParameters":[]}`, []string{`missing-member: member PrimaryEntityName` + always}},
		{"null table", `{"MessageName":"Update","PrimaryEntityName":null}`, []string{`missing-member: member PrimaryEntityName` + always}},

		{"message", `{"MessageName":7}`, []string{`wrong-type: member MessageName: want a string, got a number`}},
		{"half a surrogate pair", `{"MessageName":"\ud800"}`, []string{`wrong-type: member MessageName holds half of a surrogate pair, which is no text`}},
		{"table", `{"PrimaryEntityName":["a"]}`, []string{`wrong-type: member PrimaryEntityName: want a string, got an array`}},
		{"record", atLeast + `,"PrimaryEntityId":true}`, []string{`wrong-type: member PrimaryEntityId: want a string, got a boolean`}},
		{"operation", atLeast + `,"OperationId":{}}`, []string{`wrong-type: member OperationId: want a string, got an object`}},
		{"step", atLeast + `,"OwningExtension":"x"}`, []string{`wrong-type: member OwningExtension: want an object, got a string`}},
		{"step's id", atLeast + `,"OwningExtension":{"Id":1}}`, []string{`wrong-type: member OwningExtension.Id: want a string, got a number`}},
		{"parameters", `{"InputParameters":{}}`, []string{`wrong-type: member InputParameters: ` + notPairs + `an object`}},
		{"a parameter", `{"InputParameters":[1]}`, []string{`wrong-type: member InputParameters: ` + notPairs + `something else in it`}},
		{"half a pair", `{"InputParameters":[{"key":"Target"}]}`, []string{`wrong-type: member InputParameters: ` + notPairs + `something else in it`}},
		{"three of a pair", `{"InputParameters":[{"key":"a","value":1,"more":2}]}`, []string{`wrong-type: member InputParameters: ` + notPairs + `something else in it`}},
		{"images", atLeast + `,"PostEntityImages":"x"}`, []string{`wrong-type: member PostEntityImages: ` + notPairs + `a string`}},
		{"parent", atLeast + `,"ParentContext":[]}`, []string{`wrong-type: member ParentContext: want an object, got an array`}},
		{"in a parent", atLeast + `,"ParentContext":{"ParentContext":{"MessageName":1}}}`, []string{`wrong-type: member ParentContext.ParentContext.MessageName: want a string, got a number`}},
		{"far up", atLeast + strings.Repeat(`,"ParentContext":{"a":1`, 10) + `,"OutputParameters":1` + strings.Repeat("}", 11), []string{
			`wrong-type: member …` + strings.Repeat("ParentContext.", 8) + `OutputParameters: ` + notPairs + `a number`}},
		{"target", `{` + names + `,"InputParameters":[{"key":"Target","value":1}]}`, []string{`wrong-type: member InputParameters.Target: want an Entity or an EntityReference, got a number`}},
		{"target of another type", `{` + names + `,"InputParameters":[{"key":"Target","value":{` + of("Money") + `,"Value":1}}]}`, []string{`wrong-type: member InputParameters.Target is neither an Entity nor an EntityReference`}},
		{"columns", `{` + names + `,"InputParameters":[{"key":"Target","value":{"LogicalName":"a","Attributes":{}}}]}`, []string{`wrong-type: member InputParameters.Target.Attributes: ` + notPairs + `an object`}},

		{"member twice with different values", `{"MessageName":"a","MessageName":"b"}`, []string{`not-an-event: member "MessageName" stands twice with different values`}},
		{"the same inside an envelope", `{"id":"1","eventType":"A","data":"{\"MessageName\":\"a\",\"MessageName\":\"b\"}"}`, []string{`not-an-event: data: member "MessageName" stands twice with different values`}},
		{"the same inside", atLeast + `,"x":[{"` + strings.Repeat("a", 65) + `":1,"` + strings.Repeat("a", 65) + `":2}]}`, []string{`ambiguous: member "` + strings.Repeat("a", 64) + `…" stands twice with different values`}},
		{"parameter twice", `{` + names + `,"InputParameters":[` + pair("a", "1") + `,` + pair("a", "2") + `]}`, []string{`ambiguous: member InputParameters: key "a" stands twice with different values`}},
		{"column twice", `{` + names + `,` + target(pair("a", "1")+`,`+pair("a", "null")) + `}`, []string{`ambiguous: member InputParameters.Target.Attributes: key "a" stands twice with different values`}},
		{"nested too deep", atLeast + `,"x":` + deep("[", "]", 9998) + `}`, []string{`invalid-event: the JSON is nested deeper than an event can carry`}},
		{"parents too deep", `{"MessageName":"a","PrimaryEntityName":"b"` + strings.Repeat(`,"ParentContext":{"a":1`, 9998) + strings.Repeat("}", 9999), []string{`invalid-event: the JSON is nested deeper than an event can carry`}},

		{"validation", `[{"id":"1","topic":"/t","subject":"","data":{"validationCode":"c"},"eventType":"Microsoft.EventGrid.SubscriptionValidationEvent"}]`, []string{`validation c`}},
		{"deletion", `{"specversion":"1.0","id":"1","source":"/s","type":"Microsoft.EventGrid.SubscriptionDeletedEvent","data":{"eventSubscriptionId":"e"}}`, []string{`deletion e`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := schematest.Briefs(dataverse.Parse("src", nil, []byte(tt.body)))
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestNeighbours: one bad element costs the others nothing.
func TestNeighbours(t *testing.T) {
	body := "[{\"MessageName\":\"\xff\"}," + atLeast + `,` + ids + `},{"id":"3","eventType":"A","data":` + atLeast + `,` + ids + `}},7]`
	var got []string
	for _, r := range dataverse.Parse("src", nil, []byte(body)) {
		if r.Event != nil {
			got = append(got, r.Key)
		} else {
			got = append(got, string(r.Fault.Code))
		}
	}
	key := "dataverse\n" + operation + "-" + step
	if d := cmp.Diff([]string{"not-an-event", key, key, "not-an-event"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestAttributes(t *testing.T) {
	context := func(more string) string { return `{` + names + `,` + ids + `,` + id + `,` + more + `}` }
	wrap := func(data, more string) string {
		return `{"id":"1","eventType":"A","subject":"S","eventTime":"2020-01-01T00:00:00Z","data":` + data + more + `}`
	}
	message := func(m string) string {
		return `{"MessageName":"` + m + `","PrimaryEntityName":"account",` + id + `,` + target(pair("modifiedon", `"/Date(1527757524999)/"`)) + `}`
	}
	// What the tests ask for, by name: an attribute, an extension, or a part
	// of the result.
	value := func(r event.Result, name string) string {
		switch name {
		case "id":
			return r.Event.ID
		case "type":
			return r.Event.Type
		case "source":
			return r.Event.Source
		case "subject":
			return r.Event.Subject
		case "time":
			if r.Event.Time.IsZero() {
				return ""
			}
			return event.FormatTime(r.Event.Time)
		case "scope":
			return r.Scope
		case "name":
			return r.Name
		}
		return r.Event.Get(name)
	}
	const (
		empty = `"InputParameters":[]`
		sent  = `"OperationCreatedOn":"/Date(1506409448000-0700)/"`
	)
	modified := pair("modifiedon", `"/Date(1527757524000)/"`)
	image := func(columns string) string {
		return `"PostEntityImages":[` + pair("A", `{"LogicalName":"account","Attributes":[`+columns+`],"RowVersion":"77"}`) + `]`
	}
	tests := []struct {
		about, body, attribute, want string
	}{
		{"operation and step", context(empty), "id", operation + "-" + step},
		{"braces and case", `{` + names + `,"OperationId":"{` + strings.ToUpper(operation) + `}","OwningExtension":{"Id":"{` + strings.ToUpper(step) + `}"}}`, "id", operation + "-" + step},
		{"wrapped", `{` + names + `,"OperationId":{"__type":"Guid:#System","__value":"` + operation + `"},"OwningExtension":{"Id":{"__type":"Guid:#System","__value":"` + step + `"}}}`, "id", operation + "-" + step},
		{"type", context(empty), "type", "dataverse.account.Update"},
		{"source", context(empty), "source", "/d365/dataverse/src/account"},
		{"scope", context(empty), "scope", "account"},
		{"name", context(empty), "name", "Update"},

		{"record", context(empty), "subject", record},
		{"record in braces", `{` + names + `,"PrimaryEntityId":"{` + strings.ToUpper(record) + `}"}`, "subject", record},
		{"record by Target", `{` + names + `,"PrimaryEntityId":"` + zeros + `",` + target("") + `}`, "subject", record},
		{"record by a wrapped Id", `{` + names + `,"InputParameters":[{"key":"Target","value":{` + of("EntityReference") + `,"Id":{"__type":"Guid:#System","__value":"` + record + `"}}}]}`, "subject", record},
		{"no record", `{` + names + `,` + empty + `}`, "subject", ""},
		{"partition key", context(empty), "partitionkey", record},
		{"no partition key", `{` + names + `,` + empty + `}`, "partitionkey", ""},

		{"time", context(target(modified) + `,` + sent), "time", "2018-05-31T09:05:24Z"},
		{"wrapped time", context(target(pair("modifiedon", `{"__type":"DateTime:#System","__value":"\/Date(1527757524000)\/"}`))), "time", "2018-05-31T09:05:24Z"},
		{"ISO time", context(target(pair("modifiedon", `"2018-05-31T09:05:24Z"`))), "time", "2018-05-31T09:05:24Z"},
		{"time of a post-image", context(target("") + `,` + image(modified) + `,` + sent), "time", "2018-05-31T09:05:24Z"},
		{"not of a pre-image", context(target("") + `,"Pre` + image(modified)[5:]), "time", ""},
		{"null date", context(target(pair("modifiedon", `"/Date(-2208988800000)/"`)) + `,` + image(modified)), "time", "2018-05-31T09:05:24Z"},
		{"west of Greenwich", context(empty + `,` + sent), "time", "2017-09-26T00:04:08Z"},
		{"east of it", context(empty + `,"OperationCreatedOn":"/Date(1724647396000+0530)/"`), "time", "2024-08-26T10:13:16Z"},
		{"at it", context(empty + `,"OperationCreatedOn":"/Date(1722582039123+0000)/"`), "time", "2024-08-02T07:00:39.123Z"},
		{"no offset", context(empty + `,"OperationCreatedOn":"/Date(1722582039123)/"`), "time", "2024-08-02T07:00:39.123Z"},
		{"ISO operation time", context(empty + `,"OperationCreatedOn":"2024-08-02T07:00:39Z"`), "time", "2024-08-02T07:00:39Z"},
		{"null operation time", context(empty + `,"OperationCreatedOn":"/Date(-62135596800000)/"`), "time", ""},
		{"operation time of another type", context(empty + `,"OperationCreatedOn":5`), "time", ""},
		{"last instant and an offset", context(empty + `,"OperationCreatedOn":"/Date(253402300799999+0100)/"`), "time", "9999-12-31T23:59:59.999Z"},

		{"create", message("Create"), "action", "created"},
		{"update", message("Update"), "action", "updated"},
		{"delete", message("Delete"), "action", "deleted"},
		{"create of a virtual table", message("OnExternalCreated"), "action", "created"},
		{"update of one", message("OnExternalUpdated"), "action", "updated"},
		{"delete of one", message("onexternaldeleted"), "action", "deleted"},
		{"many updates", message("UpdateMultiple"), "action", "updated"},
		{"another message", message("Assign"), "action", "occurred"},
		{"a longer one", message("CreateException"), "action", "occurred"},

		{"version", message("Create"), "matchkey", "account/" + record + "/2018-05-31T09:05:24Z"},
		{"version of a virtual table", message("OnExternalUpdated"), "matchkey", "account/" + record + "/2018-05-31T09:05:24Z"},
		{"end of versions", message("Delete"), "matchkey", "account/" + record + "/deleted"},
		{"no version", context(empty + `,` + sent), "matchkey", ""},
		{"no change of a row", message("Assign"), "matchkey", ""},

		{"row version", context(target(pair("versionnumber", "9223372036854775807"))), "sequence", "9223372036854775807"},
		{"wrapped row version", context(target(pair("versionnumber", `{"__type":"Int64:#System","__value":915244}`))), "sequence", "915244"},
		{"row version as text", context(target(pair("versionnumber", `"915244"`))), "sequence", "915244"},
		{"of a post-image", context(target("") + `,` + image(pair("versionnumber", "915244"))), "sequence", "915244"},
		{"of 65 bits", context(target(pair("versionnumber", "9223372036854775808"))), "sequence", ""},
		{"no number", context(target(pair("versionnumber", "1e3"))), "sequence", ""},
		{"the version a client expects", context(`"InputParameters":[{"key":"Target","value":{` + of("EntityReference") + `,"RowVersion":"5948260"}}]`), "sequence", ""},

		{"legal entity", context(target(pair("mserp_dataareaid", `"USMF"`))), "legalentity", "usmf"},
		{"of other letters", context(target(pair("DataAreaId", `"USMF"`))), "legalentity", "usmf"},
		{"of a post-image", context(target("") + `,` + image(pair("dataareaid", `"usmf"`))), "legalentity", "usmf"},
		{"of a pre-image", context(target("") + `,"Pre` + image(pair("dataareaid", `"usmf"`))[5:]), "legalentity", "usmf"},
		{"empty and odd ones are passed over", context(target(pair("dataareaid", `""`) + `,` + pair("mserp_dataareaid", `7`))), "legalentity", ""},

		{"organization", context(empty + `,"OrganizationName":"Org"`), "organization", "Org"},
		{"correlation", context(empty + `,"CorrelationId":"{` + strings.ToUpper(record) + `}"`), "correlationid", record},
		{"correlation of zeros", context(empty + `,"CorrelationId":"` + zeros + `"`), "correlationid", ""},

		{"complete", context(target("")), "incomplete", ""},
		{"no parameters", context(sent), "incomplete", "true"},
		{"null parameters", context(`"InputParameters":null`), "incomplete", "true"},
		{"no target", context(empty), "incomplete", "true"},
		{"a message without parameters", `{"MessageName":"new_Ping","PrimaryEntityName":"none",` + empty + `}`, "incomplete", ""},
		{"many targets", `{"MessageName":"UpdateMultiple","PrimaryEntityName":"account","InputParameters":[` + pair("Targets", `{`+of("EntityCollection")+`,"Entities":[]}`) + `]}`, "incomplete", ""},

		{"envelope's id", wrap(context(empty), ""), "envelopeid", "1"},
		{"the same id", `{"id":"` + operation + "-" + step + `","eventType":"A","data":` + context(empty) + `}`, "envelopeid", ""},
		{"envelope's type", wrap(context(empty), ""), "envelopetype", "A"},
		{"envelope's source", wrap(context(empty), `,"topic":"/t"`), "envelopesource", "/t"},
		{"no source", wrap(context(empty), ""), "envelopesource", ""},
		{"envelope's subject", wrap(context(empty), ""), "envelopesubject", "S"},
		{"the record as subject", `{"id":"1","eventType":"A","subject":"{` + strings.ToUpper(record) + `}","data":` + context(empty) + `}`, "envelopesubject", ""},
		{"not the partition key", wrap(context(empty), ""), "partitionkey", record},
		{"partition key of the sender", wrap(context(empty), `,"partitionkey":"k"`), "envelopepartitionkey", "k"},
		{"subject without a record", wrap(`{`+names+`}`, ""), "subject", "S"},
		{"partition key without a record", wrap(`{`+names+`}`, `,"partitionkey":"k"`), "partitionkey", "k"},
		{"envelope's time", wrap(context(empty), ""), "time", "2020-01-01T00:00:00Z"},
		{"envelope's other time", wrap(context(target(modified)), ""), "envelopetime", "2020-01-01T00:00:00Z"},
		{"schema of the envelope", `{"specversion":"1.0","id":"1","source":"/s","type":"A","dataschema":"#","data":` + context(empty) + `}`, "envelopedataschema", "#"},
		{"versions of the envelope", wrap(context(empty), `,"dataVersion":"1.2"`), "dataversion", "1.2"},
		{"an extension named like ours", wrap(context(empty), `,"topic":"/t","envelopesource":"/u"`), "envelopesource", "/u"},
		{"ours beside it", wrap(context(empty), `,"topic":"/t","envelopesource":"/u"`), "unmapped", `{"envelopesource":"/t"}`},
		{"a flag of the sender", wrap(context(empty), `,"incomplete":false`), "envelopeincomplete", "false"},
	}
	for _, tt := range tests {
		t.Run(tt.about, func(t *testing.T) {
			if got := value(one(t, tt.body), tt.attribute); got != tt.want {
				t.Errorf("%s: got %q, want %q", tt.attribute, got, tt.want)
			}
		})
	}
}

// TestOversized: Dataverse says in a header or a property that parts are gone.
func TestOversized(t *testing.T) {
	body := []byte(`{` + names + `,` + target("") + `}`)
	for _, name := range []string{"x-ms-dynamics-msg-size-exceeded", "X-Ms-Dynamics-Msg-Size-Exceeded", "MessageMaxSizeExceeded"} {
		x := dataverse.Parse("src", map[string][]string{name: {"true"}}, body)[0].Event.Extensions
		if !slices.Contains(x, event.Extension{Name: "incomplete", Value: "true", Type: event.Boolean}) {
			t.Errorf("%s: got %v", name, x)
		}
	}
	if x := dataverse.Parse("src", map[string][]string{"x-ms-dynamics-organization": {"o"}}, body)[0].Event; x.Get("incomplete") != "" {
		t.Error("incomplete without a reason")
	}
}

func TestMatchKey(t *testing.T) {
	zone := time.FixedZone("", 2*3600)
	for _, tt := range []struct {
		id       string
		modified time.Time
		want     string
	}{
		{record, time.Date(2018, 5, 31, 9, 5, 24, 0, time.UTC), "account/" + record + "/2018-05-31T09:05:24Z"},
		{"{" + strings.ToUpper(record) + "}", time.Date(2018, 5, 31, 11, 5, 24, 999, zone), "account/" + record + "/2018-05-31T09:05:24Z"},
		{record, time.Time{}, "account/" + record + "/deleted"},
	} {
		if got := dataverse.MatchKey("Account", tt.id, tt.modified); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

// TestValues sends a value as a column and reads it in data.
func TestValues(t *testing.T) {
	row := func(more string) string {
		return `{` + of("Entity") + `,"Attributes":[` + pair("a", "1") + `],"EntityState":null,"FormattedValues":[],"Id":"i","KeyAttributes":[],"LogicalName":"t","RelatedEntities":[],"RowVersion":null` + more + `}`
	}
	untyped := func(more string) string { return strings.Replace(row(more), of("Entity")+`,`, "", 1) }
	collection := func(rows, more string) string {
		return `{` + of("EntityCollection") + `,"Entities":[` + rows + `],` + more + `}`
	}
	const quiet = `"EntityName":"t","MinActiveRowVersion":"-1","MoreRecords":false,"PagingCookie":null,"TotalRecordCount":-1,"TotalRecordCountLimitExceeded":false`
	const list = `{"__type":"KeyValuePairOfstringstring:#System.Collections.Generic","key":"%s","value":"%s"}`
	tests := []struct{ name, sent, want string }{
		{"null", `null`, `null`},
		{"int64", `9223372036854775807`, `9223372036854775807`},
		{"least int64", `-9223372036854775808`, `-9223372036854775808`},
		{"number text", `[0.10,1e400,-0]`, `[0.10,1e400,-0]`},
		{"boolean", `false`, `false`},
		{"text keeps its escapes", `"\u0041\/\ud800"`, `"\u0041\/\ud800"`},
		{"white space", " { \"x\" : [ 1 , 2 ] } ", `{"x":[1,2]}`},

		{"date", `"\/Date(1527757524000)\/"`, `"2018-05-31T09:05:24Z"`},
		{"milliseconds", `"/Date(1527757530151)/"`, `"2018-05-31T09:05:30.151Z"`},
		{"before 1970", `"/Date(-1)/"`, `"1969-12-31T23:59:59.999Z"`},
		{"an offset moves nothing here", `"/Date(1506409448000-0700)/"`, `"2017-09-26T07:04:08Z"`},
		{"last and first date", `["/Date(253402300799999)/","/Date(-62135596800000)/"]`, `["9999-12-31T23:59:59.999Z","0001-01-01T00:00:00Z"]`},
		{"nothing like dates", `["/Date(1)/ ","Date(1)","/Date()/","/Date(x)/","/Date(+1)/","/Date(1+1)/","/Date(1+01:00)/","/Date(253402300800000)/","/Date(-62135596800001)/"]`,
			`["/Date(1)/ ","Date(1)","/Date()/","/Date(x)/","/Date(+1)/","/Date(1+1)/","/Date(1+01:00)/","/Date(253402300800000)/","/Date(-62135596800001)/"]`},

		{"wrapped GUID", `{"__type":"Guid:#System","__value":"` + record + `"}`, `"` + record + `"`},
		{"wrapped date", `{"__type":"DateTime:#System","__value":"/Date(0)/"}`, `"1970-01-01T00:00:00Z"`},
		{"wrapped decimal", `{"__type":"Decimal:#System","__value":10.120}`, `10.120`},
		{"wrapped null", `{"__type":"Guid:#System","__value":null}`, `null`},
		{"wrapped with more", `{"__type":"Guid:#System","__value":"a","x":"/Date(0)/"}`, `{"__type":"Guid:#System","__value":"a","x":"/Date(0)/"}`},
		{"wrapped object", `{"__type":"Guid:#System","__value":{}}`, `{"__type":"Guid:#System","__value":{}}`},

		{"option", `{` + of("OptionSetValue") + `,"Value":342490000}`, `342490000`},
		{"escaped type", `{"__type":"OptionSetValue:http:\/\/schemas.microsoft.com\/xrm\/2011\/Contracts","Value":1}`, `1`},
		{"options", `[{` + of("OptionSetValue") + `,"Value":1},{` + of("OptionSetValue") + `,"Value":2}]`, `[1,2]`},
		{"option with more", `{` + of("OptionSetValue") + `,"Value":1,"x":2}`, `{` + of("OptionSetValue") + `,"Value":1,"x":2}`},
		{"option without a value", `{` + of("OptionSetValue") + `}`, `{` + of("OptionSetValue") + `}`},
		{"money", `{` + of("Money") + `,"Value":922337203685477.5807}`, `922337203685477.5807`},
		{"money's zeros", `{` + of("Money") + `,"Value":100.00}`, `100.00`},
		{"unknown type", `{` + of("BooleanManagedProperty") + `, "Value":true,"At":"/Date(0)/"}`, `{` + of("BooleanManagedProperty") + `, "Value":true,"At":"/Date(0)/"}`},
		{"known name, another namespace", `{"__type":"Money:http://example.com","Value":1}`, `{"__type":"Money:http://example.com","Value":1}`},

		{"reference", `{` + of("EntityReference") + `,"Id":"i","KeyAttributes":[],"LogicalName":"t","Name":null,"RowVersion":null}`, `{"table":"t","id":"i","name":null}`},
		{"reference by a key", `{` + of("EntityReference") + `,"Id":"` + zeros + `","KeyAttributes":[` + pair("k", `"/Date(0)/"`) + `],"LogicalName":"t","Name":"n","RowVersion":"7"}`,
			`{"table":"t","id":"` + zeros + `","name":"n","keyAttributes":{"k":"1970-01-01T00:00:00Z"},"rowVersion":"7"}`},
		{"reference with more", `{` + of("EntityReference") + `,"Id":"i","LogicalName":"t","Extra":{"a":1}}`, `{"table":"t","id":"i","Extra":{"a":1}}`},
		{"reference with our names", `{` + of("EntityReference") + `,"Id":"i","LogicalName":"t","table":"x"}`, `{` + of("EntityReference") + `,"Id":"i","LogicalName":"t","table":"x"}`},
		{"reference with odd members", `{` + of("EntityReference") + `,"Id":1}`, `{` + of("EntityReference") + `,"Id":1}`},
		{"empty reference", `{` + of("EntityReference") + `}`, `{}`},
		{"row", row(""), `{"table":"t","id":"i","columns":{"a":1}}`},
		{"row without a type", untyped(""), `{"table":"t","id":"i","columns":{"a":1}}`},
		{"row with more", row(`,"HasLazyFileAttribute":false`), `{"table":"t","id":"i","columns":{"a":1},"HasLazyFileAttribute":false}`},
		{"row that says all", `{` + of("Entity") + `,"Attributes":[],"EntityState":1,"FormattedValues":[` + pair("a", `"one"`) + `],"KeyAttributes":[` + pair("k", "1") + `],"RelatedEntities":[{"key":{"SchemaName":"s"},"value":` + collection(untyped(""), quiet) + `}],"RowVersion":"7"}`,
			`{"columns":{},"formatted":{"a":"one"},"entityState":1,"keyAttributes":{"k":1},"relatedEntities":[{"key":{"SchemaName":"s"},"value":[{"table":"t","id":"i","columns":{"a":1}}]}],"rowVersion":"7"}`},
		{"row with a column twice", strings.Replace(row(""), pair("a", "1"), pair("a", "1")+`,`+pair("a", "1"), 1), `{"table":"t","id":"i","columns":{"a":1}}`},
		{"row with two of a column", strings.Replace(untyped(""), pair("a", "1"), pair("a", "1")+`,`+pair("a", "2"), 1),
			`{"Attributes":[{"key":"a","value":1},{"key":"a","value":2}],"EntityState":null,"FormattedValues":[],"Id":"i","KeyAttributes":[],"LogicalName":"t","RelatedEntities":[],"RowVersion":null}`},

		{"rows", collection(untyped(""), quiet), `[{"table":"t","id":"i","columns":{"a":1}}]`},
		{"no rows", collection("", quiet), `[]`},
		{"more rows", collection(untyped(""), strings.Replace(quiet, "false", "true", 1)),
			`{"entities":[{"table":"t","id":"i","columns":{"a":1}}],"EntityName":"t","MinActiveRowVersion":"-1","MoreRecords":true,"PagingCookie":null,"TotalRecordCount":-1,"TotalRecordCountLimitExceeded":false}`},
		{"rows of another table", collection(untyped(""), `"EntityName":"u"`), `{"entities":[{"table":"t","id":"i","columns":{"a":1}}],"EntityName":"u"}`},
		{"no collection", `{` + of("EntityCollection") + `,"Entities":1}`, `{` + of("EntityCollection") + `,"Entities":1}`},

		{"list of pairs", `[` + fmt.Sprintf(list, "account", "Update") + `,` + fmt.Sprintf(list, "lead", "Update") + `]`, `{"account":"Update","lead":"Update"}`},
		{"list that repeats a key", `[` + fmt.Sprintf(list, "a", "1") + `,` + fmt.Sprintf(list, "a", "2") + `]`, `[` + fmt.Sprintf(list, "a", "1") + `,` + fmt.Sprintf(list, "a", "2") + `]`},
		{"list that repeats a pair", `[` + pair("a", "1") + `,` + pair("a", "1") + `]`, `[{"key":"a","value":1},{"key":"a","value":1}]`},
		{"pairs in other letters", `[{"Key":"a","Value":{` + of("Money") + `,"Value":1.50}}]`, `{"a":1.50}`},
		{"empty list", `[]`, `[]`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			data := one(t, `{`+names+`,`+target(pair("c", tt.sent))+`}`).Event.Data
			got := string(rawjson.Find(schematest.Members(t, rawjson.Find(schematest.Members(t, data), "columns")), "c"))
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// TestData shows the members of data that the goldens do not.
func TestData(t *testing.T) {
	tests := []struct{ name, body, member, want string }{
		{"columns in order", `{` + names + `,` + target(pair("b", "1")+`,`+pair(`\u0061`, "null")) + `}`, "changed", `["b","\u0061"]`},
		{"columns", `{` + names + `,` + target(pair("b", "1")+`,`+pair("a", "null")) + `}`, "columns", `{"b":1,"a":null}`},
		{"no id", `{` + names + `}`, "id", `null`},
		{"Target's other id and table", `{` + names + `,"PrimaryEntityId":"` + operation + `",` + strings.Replace(target(""), `"account"`, `"contact"`, 1) + `}`, "target", `{"table":"contact","id":"` + record + `"}`},
		{"what else Target says", `{` + names + `,` + strings.Replace(target(""), `"Id"`, `"Name":"n","RowVersion":"7","x":[],"Id"`, 1) + `}`, "target", `{"name":"n","rowVersion":"7","x":[]}`},
		{"nothing else", `{` + names + `,` + target("") + `}`, "target", ``},
		{"an action's own Target", `{"MessageName":"new_Aim","PrimaryEntityName":"none","InputParameters":[` + pair("Target", `"moon"`) + `]}`, "inputParameters", `{"Target":"moon"}`},
		{"null Target", `{` + names + `,"InputParameters":[` + pair("Target", `null`) + `]}`, "inputParameters", `{"Target":null}`},
		{"output", `{` + names + `,"OutputParameters":[` + pair("id", `"x"`) + `]}`, "outputParameters", `{"id":"x"}`},
		{"image that is none", `{` + names + `,"PreEntityImages":[` + pair("A", `7`) + `]}`, "preImages", `{"A":7}`},
		{"parent", `{` + names + `,"ParentContext":{"MessageName":"M","Depth":2,"ParentContext":null}}`, "parent", `{"table":null,"message":"M","id":null,"changed":[],"columns":{},"preImages":{},"postImages":{},"context":{"Depth":2}}`},
		{"what is not known", `{` + names + `,"table":1,"Newer":{"at":"/Date(0)/"},"SharedVariables":[],"Other":[],"OperationCreatedOn":"/Date(7200000-0200)/"}`, "context",
			`{"table":1,"Newer":{"at":"1970-01-01T00:00:00Z"},"SharedVariables":{},"Other":[],"OperationCreatedOn":"1970-01-01T00:00:00Z"}`},
		{"member twice", `{` + names + `,"Depth":1,"Depth":1}`, "context", `{"Depth":1}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := string(rawjson.Find(schematest.Members(t, one(t, tt.body).Event.Data), tt.member)); got != tt.want {
				t.Errorf("%s: got %s, want %s", tt.member, got, tt.want)
			}
		})
	}
}

// TestContentID: without an operation or a step the content is the identity,
// whatever its layout.
func TestContentID(t *testing.T) {
	for _, missing := range []string{
		`"OperationId":"` + zeros + `","OwningExtension":{"Id":"` + step + `"}`,
		`"OperationId":"` + operation + `","OwningExtension":null`,
	} {
		a := one(t, `{`+names+`,`+missing+`,"N":1}`)
		b := one(t, `{ "N": 1,`+missing+`, "PrimaryEntityName":"ACCOUNT","MessageName":"Update"}`)
		c := one(t, `{`+names+`,`+missing+`,"N":2}`)
		if a.Event.ID != b.Event.ID || a.Digest != b.Digest || !strings.HasPrefix(a.Event.ID, "sha256-") {
			t.Errorf("got %s and %s", a.Event.ID, b.Event.ID)
		}
		if a.Event.ID == c.Event.ID {
			t.Error("different contents have the same id")
		}
	}
}

// TestOneEventByThreeRoads: bare and in both envelopes an event has the same
// identity and data, and so it has by both serializers.
func TestOneEventByThreeRoads(t *testing.T) {
	bodies := map[string]string{}
	for _, g := range schematest.Load(t) {
		bodies[g.Name] = string(g.Body)
	}
	var members []string
	for _, m := range schematest.Members(t, []byte(bodies["account-delete-sync"])) {
		if m.Name != "ParentContext" {
			members = append(members, strconv.Quote(m.Name)+":"+string(m.Value))
		}
	}
	first := one(t, "{"+strings.Join(members, ",")+"}")
	for _, name := range []string{"eventgrid-account-delete-object-assembled", "cloudevents-account-delete-string-assembled"} {
		r := one(t, bodies[name])
		if r.Key != first.Key || r.Digest != first.Digest || r.Scope != first.Scope || r.Name != first.Name || string(r.Event.Data) != string(first.Event.Data) {
			t.Errorf("%s: got %q %s, want %q %s", name, r.Key, r.Digest, first.Key, first.Digest)
		}
	}
	wrapped := one(t, bodies["account-update-typed-guid-datetime"])
	plain := bodies["servicebus-account-update"]
	start := strings.Index(plain, `{
      "key": "TargetReference"`)
	end := start + strings.Index(plain[start:], "\n  ],")
	plain = strings.TrimRight(plain[:start], " ,\n") + plain[end:]
	if r := one(t, plain); r.Key != wrapped.Key || r.Digest != wrapped.Digest {
		t.Errorf("serializers: got %q %s, want %q %s", r.Key, r.Digest, wrapped.Key, wrapped.Digest)
	}
}

// TestHostile sends what Dataverse never does. Whatever the text, it must come
// through unharmed, and no NATS subject may become a wildcard or a second line.
func TestHostile(t *testing.T) {
	for _, text := range []string{
		`\u0000`, `a\r\nb`, `*`, `>`, `a.>`, `..`, ` `, `%`, `%0A`, `/../x?y#z`, `\u2028`, `é😀`, `\"\\`, strings.Repeat("x", 64<<10), strings.Repeat("a.", 32<<10),
	} {
		for _, member := range []string{"MessageName", "PrimaryEntityName", "PrimaryEntityId", "OperationId", "OrganizationName", "CorrelationId", "column", "value", "alias"} {
			values := map[string]string{"MessageName": "M", "PrimaryEntityName": "t", "PrimaryEntityId": "i", "OperationId": "o", "OrganizationName": "n", "CorrelationId": "c", "column": "c", "value": "v", "alias": "a"}
			values[member] = text
			var body strings.Builder
			body.WriteString(`{"n":0`)
			for _, name := range []string{"MessageName", "PrimaryEntityName", "PrimaryEntityId", "OperationId", "OrganizationName", "CorrelationId"} {
				body.WriteString(`,"` + name + `":"` + values[name] + `"`)
			}
			column := pair(values["column"], `"`+values["value"]+`"`)
			body.WriteString(`,` + target(column) + `,"PreEntityImages":[` + pair(values["alias"], "1") + `]}`)
			data := string(one(t, body.String()).Event.Data)
			plain, _ := rawjson.Text([]byte(`"` + text + `"`))
			if member == "PrimaryEntityName" {
				plain = strings.ToLower(plain)
			}
			if !slices.ContainsFunc(schematest.LeavesAndNulls(t, "", []byte(data)), func(l schematest.Leaf) bool { return l.Text == plain || strings.Contains(l.Path, "/"+plain) }) {
				t.Errorf("%s %.40q is gone", member, text)
			}
		}
	}
}

// TestDeep also shows that the time does not grow with depth times length.
func TestDeep(t *testing.T) {
	for _, open := range []string{`[`, `{"a":`, `{"LogicalName":"t","Attributes":[],"x":`} {
		end := map[byte]string{'[': "]", '{': "}"}[open[0]]
		long := strings.Repeat(`"/Date(0)/",`, 50_000)
		body := `{` + names + `,"x":` + strings.Repeat(open, 4500) + `[` + long + `1]` + strings.Repeat(end, 4500) + `}`
		data := string(one(t, body).Event.Data)
		if n := strings.Count(data, `"1970-01-01T00:00:00Z"`); n != 50_000 {
			t.Errorf("%s: %d dates of 50000", open, n)
		}
	}
	parents := strings.Repeat(`,"ParentContext":{"Depth":1`, 4000)
	data := string(one(t, `{`+names+parents+strings.Repeat("}", 4001)).Event.Data)
	if n := strings.Count(data, `"Depth":1`); n != 4000 {
		t.Errorf("%d parents of 4000", n)
	}
}

// TestDuplicateIDs: two events of one operation and step both survive, one
// event sent twice does not.
func TestDuplicateIDs(t *testing.T) {
	context := func(n string) string { return `{` + names + `,` + ids + `,"N":` + n + `}` }
	r := dataverse.Parse("src", nil, []byte(`[`+context("1")+`,`+context("2")+`, `+context(" 1 ")+`]`))
	if len(r) != 3 || r[0].Key != r[1].Key || r[0].Digest == r[1].Digest || r[0].Digest != r[2].Digest {
		t.Errorf("got %+v", r)
	}
}
