package publish_test

import (
	"testing"

	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
)

// One change that is pushed and polled is published once, whichever comes first,
// by whichever replica and after a restart; two pushes that are steps of one
// change are two events, and so are two versions that polls saw within a second.
func TestPushedAndPolledAreOneChange(t *testing.T) {
	b, dir := brokertest.New(t), t.TempDir()
	p := openPublisher(t, b, publish.Config{IndexDir: dir})
	other := openPublisher(t, b, publish.Config{})
	defer func() { other.Close() }()
	change := func(id, data, match string) event.Result {
		r := result(id, data)
		r.Event.Set(event.ExtMatchKey, match)
		return r
	}
	put := func(p *publish.Publisher, via, env, kind string, want publish.Status, r event.Result) {
		t.Helper()
		o := origin("crm", env)
		o.Via, o.Kind = via, kind
		got, err := p.Publish(t.Context(), o, []event.Result{r})
		if err != nil {
			t.Fatal(err)
		}
		if got[0] != want {
			t.Errorf("%s of %s by %s: %s, want %s", r.Event.Get(event.ExtMatchKey), r.Event.ID, via, got[0], want)
		}
	}
	const kind = "dataverse"

	// Pushed first: two steps of one change, then the row.
	put(p, "push", "env", kind, publish.Published, change("step 1", "1", "account/1/a"))
	put(p, "push", "env", kind, publish.Published, change("step 2", "2", "account/1/a"))
	put(p, "poll", "env", kind, publish.Duplicate, change("row 1", "3", "account/1/a"))
	put(p, "reconcile", "env", kind, publish.Duplicate, change("row 1 again", "3", "account/1/a"))

	// Polled first: two versions within a second, then the pushes.
	put(p, "poll", "env", kind, publish.Published, change("row 2", "4", "account/2/a"))
	put(p, "poll", "env", kind, publish.Published, change("row 2 changed", "5", "account/2/a"))
	put(p, "push", "env", kind, publish.Duplicate, change("step 3", "6", "account/2/a"))
	// A push that was held back says nothing: the version after it is still seen.
	put(p, "poll", "env", kind, publish.Published, change("row 2 changed again", "7", "account/2/a"))

	// Other environments and kinds are other changes, and so is what has no key.
	put(p, "push", "other", kind, publish.Published, change("step 4", "8", "account/2/a"))
	put(p, "push", "env", "cloudevents", publish.Published, change("step 5", "9", "account/2/a"))
	put(p, "push", "env", kind, publish.Published, change("step 6", "10", ""))
	put(p, "poll", "env", kind, publish.Published, change("row 3", "11", ""))

	last := lastSequence(t, b)
	waitFor(t, "the other replica has read along", func() bool { return other.Dedup().Covered == last })
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	fromLog, fromStream := openPublisher(t, b, publish.Config{IndexDir: dir}), openPublisher(t, b, publish.Config{})
	for _, p := range []*publish.Publisher{other, fromLog, fromStream} {
		put(p, "poll", "env", kind, publish.Duplicate, change("row 4", "12", "account/1/a"))
		put(p, "push", "env", kind, publish.Duplicate, change("step 7", "13", "account/2/a"))
	}
	for _, p := range []*publish.Publisher{fromLog, fromStream} {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n := lastSequence(t, b); n != last {
		t.Errorf("%d events in the stream, want %d", n, last)
	}
}
