package registry

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/eventgrid"
	"github.com/gridfan/gridfan/subscribers/native"
	"github.com/gridfan/gridfan/subscribers/pull"
	"github.com/gridfan/gridfan/subscribers/servicebus"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// canary is what no way out may show.
const canary = "canary-of-a-way-out"

// everyWay has each way out once, with secrets, but for nats, which has none.
func everyWay() map[string]Deliver {
	return map[string]Deliver{
		"webhook":   {Webhook: &webhook.Config{URL: "https://example.com/?code=" + canary, Format: webhook.Structured}},
		"pull":      {Pull: &pull.Config{LockDuration: deliver.Duration(time.Minute), MaxDeliveryCount: 10, Keys: []string{canary}}},
		"nats":      {Nats: &native.Config{AckWait: deliver.Duration(time.Minute), MaxDeliver: 10, MaxAckPending: 1, Overlap: deliver.Duration(time.Hour)}},
		"eventGrid": {EventGrid: &eventgrid.Config{Endpoint: "https://t.example.com/", Schema: eventgrid.CloudEvents, Auth: credentials.AzureAuth{Key: canary}}},
		"eventGridNamespace": {EventGridNamespace: &eventgrid.NamespaceConfig{
			Endpoint: "https://n.example.com/", Topic: "orders", Auth: credentials.AzureAuth{Key: canary},
		}},
		"serviceBus": {ServiceBus: &servicebus.Config{
			Queue: "orders", Session: servicebus.ByPartition,
			Auth: credentials.AzureAuth{ConnectionString: "Endpoint=sb://h.example.com/;SharedAccessKeyName=n;SharedAccessKey=" + canary},
		}},
	}
}

// Every way out is checked, hides its secrets, gives them back to the same place, and
// survives the bucket.
func TestWays(t *testing.T) {
	if d := cmp.Diff(len(ways), len(everyWay())); d != "" {
		t.Error("a way out is in no test")
	}
	for _, name := range ways {
		to := everyWay()[name]
		d := Definition{Name: "x", Subjects: []string{"events.>"}, Deliver: to}
		if err := d.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff([]string{name}, to.Kinds()); d != "" {
			t.Error(d)
		}
		b, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		var back Definition
		if err := json.Unmarshal(b, &back); err != nil || cmp.Diff(d, back) != "" {
			t.Errorf("%s: out of the bucket comes %v, %s", name, err, cmp.Diff(d, back))
		}

		shown := d.Redacted()
		if b, err := json.Marshal(shown); err != nil || strings.Contains(string(b), canary) {
			t.Errorf("%s: shows %s, %v", name, b, err)
		}
		if name != "nats" && shown.Validate() == nil {
			t.Errorf("%s: a hidden secret is taken for one", name)
		}
		shown.Reveal(d)
		if d := cmp.Diff(d, shown); d != "" {
			t.Errorf("%s: sent back, it is another: %s", name, d)
		}
		if d := cmp.Diff(everyWay()[name], to); d != "" {
			t.Errorf("%s: hiding has changed it: %s", name, d)
		}

		// A secret goes to no other place, nor another way, unless it is given anew.
		text := strings.NewReplacer("example.com", "attacker.example.net").Replace(string(must(json.Marshal(d.Redacted()))))
		var moved Definition
		if err := json.Unmarshal([]byte(text), &moved); err != nil {
			t.Fatal(err)
		}
		moved.Reveal(d)
		// Who fetches comes from anywhere. A connection string is hidden whole, and says
		// itself where it leads.
		if b := must(json.Marshal(moved)); name != "pull" && name != "serviceBus" && strings.Contains(string(b), canary) {
			t.Errorf("%s: elsewhere goes %s", name, b)
		}
		for _, other := range ways {
			if other == name {
				continue
			}
			otherWay := Definition{Deliver: everyWay()[other].redacted()}
			otherWay.Reveal(d)
			if b := must(json.Marshal(otherWay)); strings.Contains(string(b), canary) {
				t.Errorf("%s is revealed in %s", name, other)
			}
		}

		if name == "nats" {
			continue
		}
		// A changed secret is a difference that shows nothing.
		next := d
		next.Deliver = d.Deliver.Clone()
		text = strings.ReplaceAll(string(must(json.Marshal(next))), canary, canary+"2")
		if err := json.Unmarshal([]byte(text), &next); err != nil {
			t.Fatal(err)
		}
		diffs := Differences(d, next)
		if len(diffs) != 1 || !strings.HasPrefix(diffs[0].Key, "deliver."+name+".") || strings.Contains(diffs[0].To+diffs[0].From, canary) {
			t.Errorf("%s: %+v", name, diffs)
		}
	}
	d := Definition{Name: "x", Subjects: []string{"events.>"}, Deliver: everyWay()["webhook"]}
	d.Deliver.EventGrid = everyWay()["eventGrid"].EventGrid
	if err := d.Validate(); err == nil || !strings.HasPrefix(err.Error(), "subscribers.x.deliver: webhook and eventGrid exclude each other") {
		t.Errorf("two ways: %v", err)
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		return []byte(err.Error())
	}
	return b
}
