package registry_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/registry"
)

func TestExpressions(t *testing.T) {
	tests := []struct {
		name, filter, transform string
		subjects                []string
		want                    []string
	}{
		{"none", "", "", []string{"events.>"}, nil},
		{"good", `event.data.PurchaseOrderAmount > 1000.0`, `{a: .b}`, []string{"events.fno.>"}, nil},
		{"both wrong", `event.data.x >`, `{`, []string{"events.>"}, []string{
			`subscribers.s.filter: 1:15: the expression ends early`,
			`subscribers.s.transform: not jq: unexpected EOF, near byte 1`,
		}},
		{"no such member", `event.data.tabel == "account"`, "", []string{"events.dataverse.>", "events.dataverse.crm.account.*"}, []string{
			`subscribers.s.filter: 1:11: undefined field 'tabel'; did you mean event.data.table?`,
		}},
		{"no such member, but who knows", `event.data.tabel == "account"`, "", []string{"events.dataverse.>", "events.custom.>"}, nil},
		{"no such member, any kind", `event.data.tabel == "account"`, "", []string{"events.*.crm.account.Update"}, nil},
		{"F&O sends two shapes", `event.data.table == "account" && event.data.changed.exists(c, c == "x")`, "", []string{"events.fno.>"}, nil},
		{"F&O sends no such type", `event.data.BusinessEventId > 5`, "", []string{"events.fno.>"}, []string{
			`subscribers.s.filter: 1:28: found no matching overload for '_>_' applied to '(string or null, int)'`,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := definition("s", tt.subjects...)
			d.Filter, d.Transform = tt.filter, tt.transform
			var got []string
			if err := d.Validate(); err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestRefusedLater: a stored definition whose filter this version refuses hides
// no other, and its events wait.
func TestRefusedLater(t *testing.T) {
	g := newRig(t)
	g.add(definition("good", "events.>"))
	bad := definition("bad", "events.>")
	bad.Filter = `no filter at all`
	b, err := json.Marshal(registry.Entry{Definition: bad, Origin: registry.FromAPI, StartSequence: 1})
	if err != nil {
		t.Fatal(err)
	}
	kv, err := g.broker.JetStream().KeyValue(t.Context(), broker.BucketSubscribers)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "bad", b); err != nil {
		t.Fatal(err)
	}
	g.publish("events.fno.prod.usmf.X", "1", "2")
	g.want("good", "1", "2")
	list, err := g.r.List(t.Context())
	if err != nil || len(list) != 2 {
		t.Fatalf("got %d entries, %v", len(list), err)
	}
	if got := g.of("bad"); got != nil {
		t.Errorf("bad got %v", got)
	}
	// Put right, it has everything.
	bad.Filter = `event.id == "2"`
	if b, err = json.Marshal(registry.Entry{Definition: bad, Origin: registry.FromAPI, StartSequence: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "bad", b); err != nil {
		t.Fatal(err)
	}
	g.want("bad", "2")
}
