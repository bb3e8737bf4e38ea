package eventgrid_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/eventgrid/azeventgrid"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/eventgrid/azsystemevents"
	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/eventgrid"
	"github.com/gridfan/gridfan/schemas/schematest"
)

func TestAppendEvent(t *testing.T) {
	at := time.Date(2026, 11, 5, 15, 42, 46, 344065500, time.FixedZone("", 2*60*60))
	for _, tt := range []struct {
		name string
		e    event.Event
		want string
	}{
		{
			"required attributes alone", event.Event{ID: "1", Source: "/s", Type: "t"},
			`{"id":"1","topic":"/s","subject":"","eventType":"t","eventTime":"1900-01-01T00:00:00Z","dataVersion":"","metadataVersion":"1","data":null}`,
		},
		{
			"its own versions, and the time of its acceptance", event.Event{ID: "1", Source: "/s", Type: "t", Subject: "ü\"", Extensions: []event.Extension{
				{Name: "count", Value: "-5", Type: event.Integer}, {Name: "dataversion", Value: "2", Type: event.Integer},
				{Name: "metadataversion", Value: "7"}, {Name: "recordedtime", Value: "2026-11-05T13:42:46Z"},
			}, Data: []byte(`{"a":1}`), DataJSON: true, DataContentType: "application/json"},
			`{"id":"1","topic":"/s","subject":"ü\"","eventType":"t","eventTime":"2026-11-05T13:42:46Z","dataVersion":"2","metadataVersion":"7","count":-5,"recordedtime":"2026-11-05T13:42:46Z","data":{"a":1}}`,
		},
		{
			"names that are taken", event.Event{ID: "1", Source: "/s", Type: "t", Time: at, DataSchema: "urn:x", Extensions: []event.Extension{
				{Name: "cetopic", Value: "a"}, {Name: "egsource", Value: "e"}, {Name: "eventtype", Value: "b"}, {Name: "topic", Value: "c"},
			}, Data: []byte("<a>é</a>"), DataContentType: "application/xml"},
			`{"id":"1","topic":"/s","subject":"","eventType":"t","eventTime":"2026-11-05T15:42:46.3440655+02:00","dataVersion":"","metadataVersion":"1","datacontenttype":"application/xml","dataschema":"urn:x","cetopic":"a","source":"e","ceeventtype":"b","cecetopic":"c","data":"<a>é</a>"}`,
		},
		{
			"bytes", event.Event{ID: "1", Source: "/s", Type: "t", Time: at.UTC(), Data: []byte{0, 255}, DataContentType: "image/png"},
			`{"id":"1","topic":"/s","subject":"","eventType":"t","eventTime":"2026-11-05T13:42:46.3440655Z","dataVersion":"","metadataVersion":"1","datacontenttype":"image/png","data":"AP8="}`,
		},
		{
			"what could not be mapped", event.Event{ID: "1", Source: "/s", Type: "t", Time: at.UTC(), Extensions: []event.Extension{{Name: "unmapped", Value: `{"A-b":1,"o":{"x":[]}}`}}},
			`{"id":"1","topic":"/s","subject":"","eventType":"t","eventTime":"2026-11-05T13:42:46.3440655Z","dataVersion":"","metadataVersion":"1","A-b":1,"o":{"x":[]},"data":null}`,
		},
		{
			"what could not, and would take a place", event.Event{ID: "1", Source: "/s", Type: "t", Time: at.UTC(), Extensions: []event.Extension{{Name: "a", Value: "1"}, {Name: "unmapped", Value: `{"A":2}`}}},
			`{"id":"1","topic":"/s","subject":"","eventType":"t","eventTime":"2026-11-05T13:42:46.3440655Z","dataVersion":"","metadataVersion":"1","a":"1","unmapped":"{\"A\":2}","data":null}`,
		},
		{
			"what calls itself another event", event.Event{ID: "1", Source: "/s", Type: "t", Time: at.UTC(), Extensions: []event.Extension{{Name: "unmapped", Value: `{"specversion":"1.0","type":"x"}`}}},
			`{"id":"1","topic":"/s","subject":"","eventType":"t","eventTime":"2026-11-05T13:42:46.3440655Z","dataVersion":"","metadataVersion":"1","unmapped":"{\"specversion\":\"1.0\",\"type\":\"x\"}","data":null}`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := string(eventgrid.AppendEvent(nil, &tt.e))
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			if array := string(eventgrid.AppendArray([]byte("x"), &tt.e, &tt.e)); array != "x["+got+","+got+"]" {
				t.Errorf("in an array: %s", array)
			}
		})
	}
}

// again reads what AppendArray wrote of one event.
func again(t *testing.T, e *event.Event) *event.Event {
	t.Helper()
	body := eventgrid.AppendArray(nil, e)
	r := eventgrid.Parse(schematest.Source, nil, body)
	if len(r) != 1 || r[0].Event == nil {
		t.Fatalf("not an event any more: %+v: %s", r, body)
	}
	return r[0].Event
}

// What came as an Event Grid event goes out as it came: reading it once more
// gives the same, and each member of the schema is as its sender wrote it.
func TestSentBack(t *testing.T) {
	compared := 0
	for _, g := range schematest.Load(t) {
		elems := schematest.Elements(t, g.Body)
		for i, r := range eventgrid.Parse(schematest.Source, g.Header, g.Body) {
			var sent map[string]json.RawMessage
			if err := json.Unmarshal(elems[i], &sent); err != nil || r.Event == nil || sent["eventType"] == nil {
				continue
			}
			compared++
			want, got := r.Event.Clone(), again(t, r.Event)
			if want.Get("metadataversion") == "" {
				want.Set("metadataversion", "1")
			}
			if want.Data == nil {
				want.Data, want.DataJSON, want.DataContentType = []byte("null"), true, "application/json"
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s: -first +again:\n%s", g.Name, d)
			}
			var back map[string]json.RawMessage
			if err := json.Unmarshal(eventgrid.AppendEvent(nil, r.Event), &back); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"id", "eventType", "subject", "topic", "data", "dataVersion"} {
				if sent[name] != nil && string(sent[name]) != "null" && !equalJSON(sent[name], back[name]) {
					t.Errorf("%s: %s was %s and is %s", g.Name, name, sent[name], back[name])
				}
			}
		}
	}
	if compared < 10 {
		t.Errorf("only %d events in testdata", compared)
	}
}

func equalJSON(a, b []byte) bool {
	var x, y bytes.Buffer
	if json.Compact(&x, a) != nil || json.Compact(&y, b) != nil {
		return false
	}
	return x.String() == y.String()
}

// Microsoft's own types read every event that we know to make, whatever it came as.
func TestStockTypes(t *testing.T) {
	read := 0
	for _, g := range schematest.Load(t) {
		for _, r := range eventgrid.Parse(schematest.Source, g.Header, g.Body) {
			if r.Event == nil {
				continue
			}
			read++
			e, body := r.Event, eventgrid.AppendArray(nil, r.Event)
			var system []azsystemevents.EventGridEvent
			var custom []azeventgrid.Event
			if err := json.Unmarshal(body, &system); err != nil {
				t.Fatalf("%s: azsystemevents: %v: %s", g.Name, err, body)
			}
			if err := json.Unmarshal(body, &custom); err != nil {
				t.Fatalf("%s: azeventgrid: %v", g.Name, err)
			}
			data, metadata := eventgrid.Versions(e)
			want := []string{e.ID, e.Source, e.Subject, e.Type, data, metadata}
			s, c := system[0], custom[0]
			if d := cmp.Diff(want, []string{*s.ID, *s.Topic, *s.Subject, *s.EventType, *s.DataVersion, *s.MetadataVersion}); d != "" {
				t.Errorf("%s: azsystemevents: %s", g.Name, d)
			}
			if d := cmp.Diff(want, []string{*c.ID, *c.Topic, *c.Subject, *c.EventType, *c.DataVersion, *c.MetadataVersion}); d != "" {
				t.Errorf("%s: azeventgrid: %s", g.Name, d)
			}
			if !e.Time.IsZero() && (!s.EventTime.Equal(e.Time) || !c.EventTime.Equal(e.Time)) {
				t.Errorf("%s: eventTime %v and %v, want %v", g.Name, s.EventTime, c.EventTime, e.Time)
			}
		}
	}
	if read < 20 {
		t.Errorf("only %d events in testdata", read)
	}
}

func TestValidation(t *testing.T) {
	const code = "512d38b6-c7b8-40c8-89fe-f46f9e9622b6"
	body := eventgrid.AppendArray(nil, eventgrid.Validation("/gridfan/wms", code, time.Now()))
	r := eventgrid.Parse("src", nil, body)
	if len(r) != 1 || r[0].Control == nil || r[0].Control.Kind != event.Validation || r[0].Control.ValidationCode != code {
		t.Errorf("we read our own as %+v: %s", r, body)
	}
	var stock []azsystemevents.EventGridEvent
	if err := json.Unmarshal(body, &stock); err != nil {
		t.Fatal(err)
	}
	var data azsystemevents.SubscriptionValidationEventData
	raw, _ := stock[0].Data.([]byte) // as that package leaves it to its user
	err := json.Unmarshal(raw, &data)
	if err != nil || *stock[0].EventType != string(azsystemevents.TypeSubscriptionValidation) || *data.ValidationCode != code {
		t.Errorf("%v: %+v", err, stock[0])
	}
	for answer, ok := range map[string]bool{
		`{"validationResponse":"` + code + `"}`:         true,
		`{"ValidationResponse":"` + code + `", "x": 1}`: true,
		`{"validationResponse":"other"}`:                false,
		`"` + code + `"`:                                false,
		code:                                            false,
		``:                                              false,
		`{}`:                                            false,
		`{"validationResponse":["` + code + `"]}`: false,
	} {
		if eventgrid.Confirmed([]byte(answer), code) != ok {
			t.Errorf("%s: want %v", answer, ok)
		}
	}
	if eventgrid.Confirmed([]byte(`{}`), "") {
		t.Error("no code is no agreement")
	}
}

// Whatever is an event stays one, with its identity, when it goes out in this
// schema.
func FuzzAppendEvent(f *testing.F) {
	for _, g := range schematest.Load(f) {
		f.Add([]byte(g.Body))
	}
	f.Add([]byte(`{"id":"\ud83d\ude00","eventType":"T","Topic":1,"EVENTTYPE":"x","unmapped":"{","a-b":{},"source":"x","topic":"y","eventTime":"never","dataVersion":2}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, r := range eventgrid.Parse(schematest.Source, nil, body) {
			if r.Event == nil {
				continue
			}
			want, got := r.Event, again(t, r.Event)
			if got.ID != want.ID || got.Type != want.Type || got.Source != want.Source || got.Subject != want.Subject {
				t.Errorf("%+v became %+v", want, got)
			}
			for _, x := range want.Extensions {
				if value := got.Get(x.Name); value != x.Value && x.Name != "unmapped" && !strings.HasPrefix(x.Name, "ce") && x.Name != "topic" && x.Name != "eventtype" && x.Name != "eventtime" && x.Name != "originaltime" {
					t.Errorf("extension %s was %q and is %q", x.Name, x.Value, value)
				}
			}
		}
	})
}
