package registry_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/registry"
)

func TestStart(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	g.publish("events.a.b.c.D", "1", "2", "3")
	time.Sleep(5 * time.Millisecond) // sleep: the clock moves between two events
	middle := time.Now().UTC()
	g.publish("events.a.b.c.D", "4", "5")
	s, err := g.broker.JetStream().Stream(ctx, broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	add := func(name string, start registry.Start) (registry.Entry, error) {
		d := definition(name, "events.>")
		d.Start = start
		return g.r.Add(ctx, d)
	}
	check := func(n int, start registry.Start, from uint64, note string) {
		t.Helper()
		name := fmt.Sprint("n", n)
		e, err := add(name, start)
		if err != nil {
			t.Errorf("%s: %v", start, err)
			return
		}
		if e.StartSequence != from || e.Epochs[0].From != from || (e.Note == "") != (note == "") || !strings.Contains(e.Note, note) {
			t.Errorf("%s: begins at %d, note %q", start, e.StartSequence, e.Note)
		}
		var want []string
		for i := from; i <= 5; i++ {
			want = append(want, fmt.Sprint(i))
		}
		if want != nil {
			g.want(name, want...)
		}
		// The same once more is fine, although now is another time.
		if _, err := add(name, start); err != nil {
			t.Errorf("%s again: %v", start, err)
		}
	}
	check(1, registry.Now, 6, "")
	check(2, registry.Beginning, 1, "")
	check(3, "2", 2, "")
	check(4, "6", 6, "")
	check(5, registry.Start(middle.Format(time.RFC3339Nano)), 4, "")
	check(6, "2001-02-03T04:05:06+07:00", 1, "")
	check(7, registry.Start(time.Now().Format(time.RFC3339Nano)), 6, "")
	for start, why := range map[registry.Start]string{
		"7": "event 7 is not stored yet, the last one is 5", "2999-01-01T00:00:00Z": "is in the future", "yesterday": "want now, beginning", "0": "want now",
	} {
		if _, err := add("bad", start); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", start, err)
		}
	}
	if _, err := add("bad", "7"); !errors.Is(err, registry.ErrStart) {
		t.Errorf("got %v", err)
	}
	if err := s.Purge(ctx, jetstream.WithPurgeSequence(3)); err != nil {
		t.Fatal(err)
	}
	check(8, "1", 3, "it begins with event 3, the oldest that is stored")
	check(9, "2001-02-03T04:05:06Z", 3, "it begins with event 3, the oldest that is stored")
	check(10, registry.Beginning, 3, "")
}

func TestStartJSON(t *testing.T) {
	for in, want := range map[string]registry.Start{`"now"`: "now", `17`: "17", `"17"`: "17", `null`: "", `"2026-11-01T00:00:00Z"`: "2026-11-01T00:00:00Z"} {
		var got registry.Start
		if err := json.Unmarshal([]byte(in), &got); err != nil || got != want {
			t.Errorf("%s: got %q, %v", in, got, err)
		}
	}
}
