package record_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/record"
	"github.com/gridfan/gridfan/schemas/schematest"
)

const guid = "a2a2a2a2-0000-4000-8000-000000000001"

var second = time.Date(2026, 11, 2, 11, 30, 15, 0, time.UTC)

func accounts() *record.Shape {
	return &record.Shape{Kind: event.KindDataverse, Source: schematest.Source, Table: "account"}
}

func made(t *testing.T, s *record.Shape, r record.Row) event.Result {
	t.Helper()
	got := s.Event(r)
	if got.Event == nil {
		t.Fatalf("%+v: %v", r, got.Fault)
	}
	return got
}

// A row that was read has the match key and the subject of the same change when it
// was pushed, and data that a filter on columns takes for the same.
func TestPushTwin(t *testing.T) {
	pushed := dataverse.Parse(schematest.Source, nil, []byte(`{"MessageName":"Update","PrimaryEntityName":"account","PrimaryEntityId":"`+strings.ToUpper(guid)+`",
		"OperationId":"08fec203-ec78-4f7a-a024-c96e329a64fe","OwningExtension":{"Id":"3db800fe-0963-e811-a95a-000d3af24324"},
		"InputParameters":[{"key":"Target","value":{"__type":"Entity:http://schemas.microsoft.com/xrm/2011/Contracts","LogicalName":"account","Id":"`+guid+`","Attributes":[
			{"key":"name","value":"Contoso"},{"key":"modifiedon","value":"/Date(1793619015000)/"},
			{"key":"primarycontactid","value":{"__type":"EntityReference:http://schemas.microsoft.com/xrm/2011/Contracts","LogicalName":"contact","Id":"b2b2b2b2-0000-4000-8000-000000000002","Name":"Ann"}}]}}]}`))[0]
	if pushed.Event == nil {
		t.Fatal(pushed.Fault)
	}
	polled := made(t, accounts(), record.Row{Key: guid, Version: "7", Ordered: true, Created: second.Add(-time.Hour), Modified: second, Data: json.RawMessage(`{
		"name":"Contoso","modifiedon":"2026-11-02T11:30:15Z",
		"_primarycontactid_value":"b2b2b2b2-0000-4000-8000-000000000002",
		"_primarycontactid_value@OData.Community.Display.V1.FormattedValue":"Ann",
		"_primarycontactid_value@Microsoft.Dynamics.CRM.lookuplogicalname":"contact"}`)})
	subject := func(r event.Result) string {
		return event.Subject(event.KindDataverse, schematest.Source, r.Scope, r.Name)
	}
	if subject(pushed) != subject(polled) || subject(polled) != "events.dataverse.src.account.Update" {
		t.Errorf("subjects %s and %s", subject(pushed), subject(polled))
	}
	for _, name := range []string{event.ExtMatchKey, event.ExtAction, event.ExtPartitionKey} {
		if a, b := pushed.Event.Get(name), polled.Event.Get(name); a == "" || a != b {
			t.Errorf("%s: %q and %q", name, a, b)
		}
	}
	for _, e := range []*event.Event{pushed.Event, polled.Event} {
		if e.Type != "dataverse.account.Update" || e.Source != "/d365/dataverse/src/account" || e.Subject != guid || !e.Time.Equal(second) {
			t.Errorf("got %s", e.JSON())
		}
		var data struct {
			Columns struct {
				Name    string
				Contact struct{ Table, ID, Name string } `json:"primarycontactid"`
			}
		}
		if err := json.Unmarshal(e.Data, &data); err != nil {
			t.Fatal(err)
		}
		if c := data.Columns; c.Name != "Contoso" || c.Contact.Table != "contact" || c.Contact.Name != "Ann" || !strings.HasPrefix(c.Contact.ID, "b2b2") {
			t.Errorf("got %s", e.Data)
		}
	}
}

// Who reads a row again finds the same event; who reads another version of it,
// another, also when both are of one second.
func TestIdentity(t *testing.T) {
	s := accounts()
	r := record.Row{Key: guid, Version: "7", Ordered: true, Modified: second, Data: json.RawMessage(`{"name":"a"}`)}
	first := made(t, s, r)
	same := r
	same.Data, same.Key = json.RawMessage(`{"name":"a","_x_value@OData.Community.Display.V1.FormattedValue":"renamed"}`), strings.ToUpper(guid)
	if got := made(t, s, same); got.Key != first.Key || got.Digest != first.Digest || got.Event.ID != first.Event.ID {
		t.Errorf("the same version: %s %s, then %s %s", first.Key, first.Digest, got.Key, got.Digest)
	}
	later := r
	later.Version = "8"
	if got := made(t, s, later); got.Key == first.Key && got.Digest == first.Digest {
		t.Error("another version of the same second has the same identity")
	}
	unversioned := record.Row{Key: guid, Data: json.RawMessage(`{"name":"a"}`)}
	a := made(t, s, unversioned)
	unversioned.Data = json.RawMessage(`{"name":"b"}`)
	if b := made(t, s, unversioned); a.Key == b.Key {
		t.Error("without versions, other content has the same identity")
	}
	if a.Event.Get(event.ExtMatchKey) != "" {
		t.Error("without a version there is a match key")
	}
	gone := made(t, s, record.Row{Key: guid, Deleted: true})
	if gone.Key == first.Key || gone.Event.Get(event.ExtMatchKey) != dataverse.MatchKey("account", guid, time.Time{}) {
		t.Errorf("deleted: %+v", gone.Event)
	}
}

// Tables of one name in two databases have nothing to do with each other, also in one
// environment.
func TestCustomSourcesAreApart(t *testing.T) {
	r := record.Row{Key: "1", Version: "1", Data: json.RawMessage(`{"id":1}`)}
	a := made(t, &record.Shape{Kind: event.KindCustom, Source: "a", Table: "orders"}, r)
	b := made(t, &record.Shape{Kind: event.KindCustom, Source: "b", Table: "orders"}, r)
	if a.Key == b.Key || a.Event.Get(event.ExtMatchKey) == b.Event.Get(event.ExtMatchKey) {
		t.Errorf("got %s and %s", a.Key, b.Key)
	}
	// A version cannot be mistaken for part of a key.
	c := made(t, &record.Shape{Kind: event.KindCustom, Source: "a", Table: "orders"}, record.Row{Key: "1/version=2", Version: "3", Data: json.RawMessage(`{}`)})
	d := made(t, &record.Shape{Kind: event.KindCustom, Source: "a", Table: "orders"}, record.Row{Key: "1", Version: "2/version=3", Data: json.RawMessage(`{}`)})
	if c.Event.ID == d.Event.ID {
		t.Error("two rows have one id")
	}
}

func FuzzEvent(f *testing.F) {
	for _, g := range schematest.Load(f) {
		var rows []row
		if json.Unmarshal(g.Body, &rows) == nil {
			for _, r := range rows {
				f.Add(r.Key, r.Version, r.Deleted, r.Modified.Unix(), []byte(r.Data))
			}
		}
	}
	f.Add("k", "\xff", false, int64(0), []byte(`{"_a_value":"x","_a_value@":1,"@":{},"a@@":[1e400],"\ud800":"\udc00"}`))
	f.Add("k", "9", false, int64(1)<<62, []byte(`{"_a_value":1,"__a_value_value":null,"a":"1900-01-01T12:00:00Z"}`))
	f.Fuzz(func(t *testing.T, key, version string, deleted bool, modified int64, data []byte) {
		r := record.Row{Key: key, Version: version, Deleted: deleted, Data: data}
		if modified > 0 && modified < 1<<37 {
			r.Modified = time.Unix(modified, 0)
		}
		before := string(data)
		for _, s := range []*record.Shape{
			accounts(),
			{Kind: event.KindFnO, Source: schematest.Source, Table: "Entity", Key: []string{"dataAreaId", "a"}},
			{Kind: event.KindCustom, Source: schematest.Source, Table: "t.u", ScopeColumn: "a", Key: []string{"a"}},
		} {
			got := s.Event(r)
			schematest.Invariants{Kind: s.Kind}.Check(t, got)
			validate(t, got)
			if again := s.Event(r); again.Key != got.Key || again.Digest != got.Digest {
				t.Errorf("identity changes: %q, then %q", got.Key, again.Key)
			}
		}
		if string(data) != before {
			t.Error("the row was changed")
		}
	})
}
