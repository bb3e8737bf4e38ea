package businessevent_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/businessevent"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/schematest"
)

// one parses a body of one element that must give an event.
func one(t *testing.T, body string) event.Result {
	t.Helper()
	r := businessevent.Parse("src", nil, []byte(body))
	if len(r) != 1 || r[0].Event == nil {
		t.Fatalf("%.200s\nno event: %.500s", body, schematest.Briefs(r))
	}
	invariants.Check(t, r[0])
	return r[0]
}

const guid = "C44538B7-49EF-4DC6-A39A-FEF12FD2E093"

func TestFaultsAndControls(t *testing.T) {
	const (
		test     = `"BusinessEventId":"BusinessEventsTestEndpointContract","EventId":"8D1220EB-E514-4E35-844E-E062DEF0C05D"`
		notFlat  = `not-an-event: neither BusinessEventId nor EventId is there; a source of kind fno takes F&O business events, bare or in an Event Grid or CloudEvents envelope`
		notInner = `not-an-event: data is no F&O business event; this source's kind is fno, and kind eventgrid is for other events`
		neither  = `missing-member: BusinessEventId and EventId are both missing or empty; F&O sends both with every business event`
		context  = `unsupported: a Dataverse execution context, where a business event was expected; sources of kind dataverse take these`
	)
	tests := []struct {
		name, body string
		want       []string
	}{
		{"empty array", `[]`, nil},
		{"cut off", `{"BusinessEventId":"A","EventId":"1"`, []string{`not-json: the JSON ends early, at byte 36`}},
		{"NUL", "\x00", []string{`not-json: not JSON at byte 0`}},
		{"not objects", `[1,"x"]`, []string{`not-an-event: want a JSON object, got a number`, `not-an-event: want a JSON object, got a string`}},
		{"another object", `{"a":1}`, []string{notFlat}},
		{"an eventType alone is no envelope", `{"eventType":"x","id":"1"}`, []string{notFlat}},
		{"wrong types", `[{"BusinessEventId":7,"EventId":"1"},{"BusinessEventId":"A","EventId":{}}]`, []string{
			`wrong-type: member BusinessEventId: want a string, got a number`, `wrong-type: member EventId: want a string, got an object`}},
		{"both absent", `{"ControlNumber":5}`, []string{neither}},
		{"both empty", `{"BusinessEventId":"","EventId":"","EventTime":"/Date(1572495135000)/"}`, []string{neither}},
		{"braces without an id", `{"EventId":"{}"}`, []string{neither}},
		{"sample with ISO time only", `{"BusinessEventId":"","EventId":"","EventTimeIso8601":"1900-01-01T00:00:00Z"}`, []string{
			`missing-member: BusinessEventId and EventId are empty and EventTimeIso8601 is 1900-01-01: this is a schema sample ("Download schema" in F&O), not an event`}},
		{"twice with different values", `[{"EventId":"1","EventId":"2"}]`, []string{`not-an-event: member "EventId" stands twice with different values`}},
		{"the same inside", `{"id":"1","eventType":"A","data":"{\"EventId\":\"1\",\"EventId\":\"2\"}"}`, []string{`not-an-event: data: member "EventId" stands twice with different values`}},
		{"a bad byte", "{\"EventId\":\"\xff\"}", []string{`not-an-event: the text is not valid UTF-8`}},
		{"execution context", `{"MessageName":"Update","PrimaryEntityName":"account","InputParameters":[]}`, []string{context}},
		{"execution context over 256 KB", `{"MessageName":"Update","PrimaryEntityName":"account","PrimaryEntityId":"x"}`, []string{context}},
		{"execution context in an envelope", `{"id":"1","eventType":"A","data":{"PrimaryEntityName":"account","InputParameters":[]}}`, []string{context}},
		{"another kind's event", `{"id":"1","topic":"/t","eventType":"Microsoft.Storage.BlobCreated","data":{"api":"PutBlob"}}`, []string{notInner}},
		{"text in an envelope", `{"id":"1","eventType":"A","data":"hello"}`, []string{notInner}},
		{"array in an envelope", `{"id":"1","eventType":"A","data":[{"EventId":"1"}]}`, []string{notInner}},
		{"string in a string", `{"id":"1","eventType":"A","data":"\"{}\""}`, []string{notInner}},
		{"envelope without data", `{"id":"1","topic":"/t","eventType":"A"}`, []string{notInner}},
		{"envelope's own fault", `{"eventType":"A","data":{"EventId":"1"}}`, []string{`missing-member: member id is missing or empty`}},
		{"nested too deep", `{"EventId":"1","x":` + strings.Repeat("[", 9998) + strings.Repeat("]", 9998) + `}`, []string{`invalid-event: the JSON is nested deeper than an event can carry`}},

		{"test event", `{` + test + `,"ControlNumber":-9223372036854775808}`, []string{`test `}},
		{"test event as object", `{"id":"1","eventType":"A","data":{` + test + `}}`, []string{`test `}},
		{"test event as string", `{"specversion":"1.0","id":"1","source":"/s","type":"A","data":` + strconv.Quote(`{`+test+`}`) + `}`, []string{`test `}},
		{"test event by its envelope", `{"id":"1","eventType":"BusinessEventsTestEndpointContract","data":{"EventId":"1"}}`, []string{`test `}},
		{"validation", `[{"id":"1","topic":"/t","subject":"","data":{"validationCode":"c"},"eventType":"Microsoft.EventGrid.SubscriptionValidationEvent"}]`, []string{`validation c`}},
		{"deletion", `{"specversion":"1.0","id":"1","source":"/s","type":"Microsoft.EventGrid.SubscriptionDeletedEvent","data":{"eventSubscriptionId":"e"}}`, []string{`deletion e`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := schematest.Briefs(businessevent.Parse("src", nil, []byte(tt.body)))
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestNeighbours: one bad element costs the others nothing.
func TestNeighbours(t *testing.T) {
	r := businessevent.Parse("src", nil, []byte("[{\"EventId\":\"\xff\"},{\"EventId\":\"2\"},{\"id\":\"3\",\"eventType\":\"A\",\"data\":{\"EventId\":\"3\"}},7]"))
	var got []string
	for _, r := range r {
		if r.Event != nil {
			got = append(got, r.Key)
		} else {
			got = append(got, string(r.Fault.Code))
		}
	}
	if d := cmp.Diff([]string{"not-an-event", "fno\n2", "fno\n3", "not-an-event"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestAttributes(t *testing.T) {
	const ids = `"BusinessEventId":"A_BBusinessEvent","EventId":"` + guid + `"`
	flat := func(more string) string { return `{` + ids + more + `}` }
	wrap := func(data, more string) string {
		return `{"id":"` + guid + `","eventType":"A_BBusinessEvent","data":` + data + more + `}`
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
		case "data":
			return string(r.Event.Data)
		}
		return r.Event.Get(name)
	}
	const dated = `,"EventTime":"/Date(1572495135000)/"`
	tests := []struct {
		about, body, attribute, want string
	}{
		{"braces and case", `{"BusinessEventId":"A","EventId":"{c44538b7-49ef-4dc6-a39a-fef12fd2e093}"}`, "id", guid},
		{"envelope's id", wrap(`{"BusinessEventId":"A"}`, ""), "id", guid},
		{"envelope's id in another notation", `{"id":"{c44538b7-49ef-4dc6-a39a-fef12fd2e093}","eventType":"A","data":{"BusinessEventId":"A"}}`, "id", guid},
		{"envelope's id that is no GUID", `{"id":"aBc","eventType":"A","data":{"BusinessEventId":"A"}}`, "id", "aBc"},
		{"two ids", `{"id":"aBc","eventType":"A","data":` + flat("") + `}`, "envelopeid", "aBc"},
		{"two notations of one id", `{"id":"{c44538b7-49ef-4dc6-a39a-fef12fd2e093}","eventType":"A","data":` + flat("") + `}`, "envelopeid", ""},

		{"source", flat(""), "source", "/d365/fno/src"},
		{"envelope's source", wrap(flat(""), `,"topic":"/t"`), "envelopesource", "/t"},
		{"no source", wrap(flat(""), ""), "envelopesource", ""},
		{"type", flat(""), "type", "A_BBusinessEvent"},
		{"two types", `{"id":"1","eventType":"Other","data":` + flat("") + `}`, "envelopetype", "Other"},
		{"one type in two cases", `{"id":"1","eventType":"a_bbusinessEVENT","data":` + flat("") + `}`, "envelopetype", ""},
		{"no type", `{"EventId":"1"}`, "type", "BusinessEvent"},
		{"no type, so no name", `{"BusinessEventId":"","EventId":"1"}`, "name", ""},
		{"type of the envelope", wrap(`{"EventId":"1"}`, ""), "type", "A_BBusinessEvent"},
		{"name of the envelope", wrap(`{"EventId":"1"}`, ""), "name", "A_B"},
		{"name", flat(""), "name", "A_B"},
		{"name that is the suffix", `{"BusinessEventId":"BusinessEvent","EventId":"1"}`, "name", "BusinessEvent"},

		{"subject", flat(`,"ContextRecordSubject":"PO 1"`), "subject", "PO 1"},
		{"subject of the envelope", wrap(flat(`,"ContextRecordSubject":"PO 1"`), `,"subject":"S"`), "subject", "S"},
		{"partition key", flat(`,"ContextRecordSubject":"PO 1"`), "partitionkey", "PO 1"},
		{"partition key of the sender", wrap(flat(""), `,"subject":"S","partitionkey":"k"`), "partitionkey", "k"},
		{"no subject, no key", flat(""), "partitionkey", ""},
		{"action", flat(""), "action", "occurred"},

		{"ISO time first", flat(`,"EventTimeIso8601":"2023-10-16T15:42:46.3440655Z"` + dated), "time", "2023-10-16T15:42:46.3440655Z"},
		{"EventTime", flat(dated), "time", "2019-10-31T04:12:15Z"},
		{"null ISO time", flat(`,"EventTimeIso8601":"1900-01-01T00:00:00Z"` + dated), "time", "2019-10-31T04:12:15Z"},
		{"bad ISO time", flat(`,"EventTimeIso8601":"soon"` + dated), "time", "2019-10-31T04:12:15Z"},
		{"time of another type", flat(`,"EventTime":1572495135000`), "time", ""},
		{"an offset moves nothing", flat(`,"EventTime":"\/Date(1572495135123+0930)\/"`), "time", "2019-10-31T04:12:15.123Z"},
		{"already RFC 3339", flat(`,"EventTime":"2019-10-31T04:12:15Z"`), "time", "2019-10-31T04:12:15Z"},
		{"envelope's time", wrap(flat(`,"EventTime":"/Date(-2208988800000)/"`), `,"eventTime":"2020-01-01T00:00:00Z"`), "time", "2020-01-01T00:00:00Z"},
		{"no time", wrap(flat(`,"EventTime":"/Date(-62135596800000)/"`), `,"eventTime":"1900-01-01T00:00:00Z"`), "time", ""},

		{"legal entity", flat(`,"Company":"c","DataAreaId":"d","BusinessEventLegalEntity":"b","LegalEntity":"USMF"`), "legalentity", "usmf"},
		{"it is the scope", flat(`,"LegalEntity":"USMF"`), "scope", "usmf"},
		{"empty and odd ones are passed over", flat(`,"LegalEntity":"","BusinessEventLegalEntity":7,"dataareaid":"D1"`), "legalentity", "d1"},
		{"company", flat(`,"company":"C"`), "legalentity", "c"},
		{"virtual table's column", flat(`,"InputParameters":[7,{"key":"x","value":1},{"key":"Target","value":{"Attributes":[{"key":"mserp_dataareaid","value":"USRT"}]}}]`), "legalentity", "usrt"},
		{"odd parameters", flat(`,"InputParameters":{"Target":1}`), "legalentity", ""},
		{"from the subject", wrap(flat(""), `,"subject":"Cat_x_A_BBusinessEvent_USMF"`), "legalentity", "usmf"},
		{"subject without a category", wrap(flat(""), `,"subject":"A_BBusinessEvent_USMF"`), "legalentity", "usmf"},
		{"subject in another case", wrap(flat(""), `,"subject":"Cat_a_bbusinessevent_USMF"`), "legalentity", "usmf"},
		{"subject of another event", wrap(flat(""), `,"subject":"Cat_XA_BBusinessEvent_USMF"`), "legalentity", ""},
		{"subject without a company", wrap(flat(""), `,"subject":"Cat_A_BBusinessEvent"`), "legalentity", ""},
		{"subject with an empty company", wrap(flat(""), `,"subject":"Cat_A_BBusinessEvent_"`), "legalentity", ""},
		{"the envelope's extension", wrap(flat(""), `,"legalentity":"USMF"`), "scope", "usmf"},
		{"and the one beside ours", wrap(flat(`,"LegalEntity":"A"`), `,"legalentity":"B"`), "envelopelegalentity", "B"},
		{"none", flat(""), "scope", ""},

		{"control number", flat(`,"ControlNumber":9223372036854775807`), "sequence", "9223372036854775807"},
		{"least control number", flat(`,"ControlNumber":-9223372036854775808`), "sequence", "-9223372036854775808"},
		{"no control number", flat(`,"ControlNumber":0`), "sequence", ""},
		{"control number of 65 bits", flat(`,"ControlNumber":9223372036854775808`), "sequence", ""},
		{"control number that is none", flat(`,"ControlNumber":1e400`), "sequence", ""},
		{"control number as text", flat(`,"ControlNumber":"7"`), "sequence", ""},

		{"versions of the envelope", wrap(flat(""), `,"dataVersion":"1.2"`), "dataversion", "1.2"},
		{"more of the envelope", wrap(flat(""), `,"deliveryAttempts":3,"Deep":{"a":1}`), "unmapped", `{"Deep":{"a":1}}`},
		{"an extension named like ours", wrap(flat(""), `,"topic":"/t","envelopesource":"/u"`), "envelopesource", "/u"},
		{"ours beside it", wrap(flat(""), `,"topic":"/t","envelopesource":"/u"`), "unmapped", `{"envelopesource":"/t"}`},
		{"and beside what was there", wrap(flat(""), `,"topic":"/t","envelopesource":"/u","X":{}`), "unmapped", `{"envelopesource":"/t","unmapped":"{\"X\":{}}"}`},
		{"schema of the envelope", `{"specversion":"1.0","id":"1","source":"/s","type":"A","dataschema":"#","data":` + flat("") + `}`, "envelopedataschema", "#"},

		{"data keeps every byte", flat(` , "n" : [ -9223372036854775808 , 1e400, 0.10 ], "s":"\u0041\/"`), "data", flat(` , "n" : [ -9223372036854775808 , 1e400, 0.10 ], "s":"\u0041\/"`)},
		{"but dates", flat(`,"a":"/Date(1572495135000)/","b":["\/Date(-1-0100)\/"],"c":{"d":"/Date(-2208988800000)/"}`), "data",
			flat(`,"a":"2019-10-31T04:12:15Z","b":["1969-12-31T23:59:59.999Z"],"c":{"d":"1900-01-01T00:00:00Z"}`)},
		{"and nothing like dates", flat(`,"/Date(1)/":["/Date(1)/ ","Date(1)","/Date()/","/Date(x)/","/Date(+1)/","/Date(1+1)/","/Date(1+01:00)/","/Date(99999999999999999999)/","/Date(253402300800000)/","/Date(-62135596800001)/"]`), "data",
			flat(`,"/Date(1)/":["/Date(1)/ ","Date(1)","/Date()/","/Date(x)/","/Date(+1)/","/Date(1+1)/","/Date(1+01:00)/","/Date(99999999999999999999)/","/Date(253402300800000)/","/Date(-62135596800001)/"]`)},
		{"last and first date", flat(`,"a":"/Date(253402300799999)/","b":"/Date(-62135596800000)/"`), "data", flat(`,"a":"9999-12-31T23:59:59.999Z","b":"0001-01-01T00:00:00Z"`)},
		{"data out of a string", wrap(strconv.Quote(` `+flat("")+` `), ""), "data", flat("")},
		{"data that CloudEvents calls text", `{"specversion":"1.0","id":"1","source":"/s","type":"A","datacontenttype":"text/plain","data":` + strconv.Quote(flat("")) + `}`, "data", flat("")},
	}
	for _, tt := range tests {
		t.Run(tt.about, func(t *testing.T) {
			if got := value(one(t, tt.body), tt.attribute); got != tt.want {
				t.Errorf("%s: got %q, want %q", tt.attribute, got, tt.want)
			}
		})
	}
}

// TestContentID: without an EventId the content is the identity, whatever its
// layout.
func TestContentID(t *testing.T) {
	a := one(t, `{"BusinessEventId":"A","N":1}`)
	b := one(t, `{ "N": 1, "BusinessEventId": "A", "N": 1, "EventId": "" }`)
	c := one(t, `{"N":1,"BusinessEventId":"A"}`)
	if a.Event.ID != c.Event.ID || a.Digest != c.Digest || !strings.HasPrefix(a.Event.ID, "sha256-") {
		t.Errorf("got %s and %s", a.Event.ID, c.Event.ID)
	}
	if a.Event.ID == b.Event.ID {
		t.Error("different contents have the same id")
	}
}

// TestOneEventByThreeRoads: bare and in both envelopes an event has the same
// identity and data.
func TestOneEventByThreeRoads(t *testing.T) {
	var all []event.Result
	for _, g := range schematest.Load(t) {
		switch g.Name {
		case "cust-free-text-invoice-posted", "eventgrid-free-text-invoice-array-assembled", "eventgrid-free-text-invoice-object-data-assembled":
			all = append(all, one(t, string(g.Body)))
		}
	}
	if len(all) != 3 {
		t.Fatalf("%d of 3 golden files", len(all))
	}
	for _, r := range all {
		if r.Key != all[0].Key || r.Digest != all[0].Digest || r.Scope != all[0].Scope || r.Name != all[0].Name {
			t.Errorf("got %q %s, want %q %s", r.Key, r.Digest, all[0].Key, all[0].Digest)
		}
	}
	// What gridfan published, sent to another gridfan, is still that event.
	if r := one(t, string(all[1].Event.JSON())); r.Key != all[0].Key || r.Digest != all[0].Digest {
		t.Errorf("again: got %q %s, want %q %s", r.Key, r.Digest, all[0].Key, all[0].Digest)
	}
}

// TestHostile sends what F&O never does. Whatever the text, it must come
// through unharmed, and no NATS subject may become a wildcard or a second line.
func TestHostile(t *testing.T) {
	for _, text := range []string{
		`\u0000`, `a\r\nb`, `*`, `>`, `a.>`, `..`, ` `, `%`, `%0A`, `\u2028`, `é😀`, `\"\\`, strings.Repeat("x", 64<<10), strings.Repeat("a.", 32<<10),
	} {
		for _, member := range []string{"BusinessEventId", "EventId", "LegalEntity", "ContextRecordSubject"} {
			values := map[string]string{"BusinessEventId": "A", "EventId": "1", "LegalEntity": "l", "ContextRecordSubject": "s"}
			values[member] = text
			var body strings.Builder
			body.WriteString(`{"n":0`)
			for _, name := range []string{"BusinessEventId", "EventId", "LegalEntity", "ContextRecordSubject"} {
				body.WriteString(`,"` + name + `":"` + values[name] + `"`)
			}
			if r := one(t, body.String()+"}"); string(r.Event.Data) != body.String()+"}" {
				t.Errorf("%s %.40q: data was changed", member, text)
			}
		}
	}
}

func TestDeep(t *testing.T) {
	body := `{"EventId":"1","x":` + strings.Repeat(`{"a":`, 9000) + `"/Date(0)/"` + strings.Repeat("}", 9000) + `}`
	want := strings.Replace(body, "/Date(0)/", "1970-01-01T00:00:00Z", 1)
	if got := string(one(t, body).Event.Data); got != want {
		t.Error("deep data was changed")
	}
	if got := string(one(t, `{"id":"1","eventType":"A","data":`+strconv.Quote(body)+`}`).Event.Data); got != want {
		t.Error("deep data in a string was changed")
	}
}

// TestDuplicateIDs: two events under one EventId both survive, one event sent
// twice does not.
func TestDuplicateIDs(t *testing.T) {
	r := businessevent.Parse("src", nil, []byte(`[{"EventId":"1","n":1},{"EventId":"1","n":2},{"n":1,"EventId":"1"}]`))
	if len(r) != 3 || r[0].Key != r[1].Key || r[0].Digest == r[1].Digest || r[0].Digest != r[2].Digest {
		t.Errorf("got %+v", r)
	}
}
