package publish_test

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
)

// saved gives the tallies in the bucket, oldest first.
func saved(t *testing.T, b *broker.Broker) (keys []string, tallies []broker.Tally) {
	t.Helper()
	kv, err := b.JetStream().KeyValue(t.Context(), broker.BucketBooks)
	if err != nil {
		t.Fatal(err)
	}
	w, err := kv.Watch(t.Context(), broker.TallyPrefix+"*", jetstream.IgnoreDeletes())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for u := range w.Updates() {
		if u == nil {
			break
		}
		tally, err := broker.ParseTally(u.Key(), u.Value())
		if err != nil {
			t.Fatal(err)
		}
		keys, tallies = append(keys, u.Key()), append(tallies, tally)
	}
	return keys, tallies
}

func TestTally(t *testing.T) {
	ctx := t.Context()
	b := brokertest.New(t)
	tally := publish.NewTally()
	p, err := publish.New(ctx, b, publish.Config{Tally: tally})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	fault := func() event.Result {
		return event.Result{Fault: event.Faultf(event.FaultNotEvent, "so"), Raw: []byte("{}")}
	}
	send := func(want error, results ...event.Result) {
		t.Helper()
		if _, err := p.Publish(ctx, origin("prod", "env"), results); !errors.Is(err, want) {
			t.Errorf("publish: %v, want %v", err, want)
		}
	}
	// Before it is started it counts already.
	tally.Control("prod", 2)
	send(nil, result("1", "1"), result("1", "1"), fault(), event.Result{Control: &event.Control{Kind: event.Test}})
	if err := tally.Start(ctx, b, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	want := func(what string, runs ...broker.SourceTally) (keys []string) {
		t.Helper()
		if err := tally.Save(ctx); err != nil {
			t.Fatal(err)
		}
		keys, tallies := saved(t, b)
		var got []broker.SourceTally
		for _, r := range tallies {
			got = append(got, r.Sources["prod"])
		}
		if d := cmp.Diff(runs, got, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
		return keys
	}
	sum := broker.SourceTally{Received: 6, Published: 1, Duplicate: 1, Quarantined: 1, Control: 3}
	want("at first", sum)

	// What is in quarantine already makes no entry.
	send(nil, fault())
	sum.Add(broker.SourceTally{Received: 1, Duplicate: 1})
	want("a fault again", sum)

	// A request that fails when a part of it is stored, and is repeated.
	huge := fault()
	huge.Raw = []byte(strings.Repeat("x", broker.MaxPayload))
	send(publish.ErrTooLarge, result("2", "2"), result("3", "3"), huge)
	sum.Add(broker.SourceTally{Received: 2, Published: 2, Refused: 1})
	want("failed in the end", sum)
	send(nil, result("2", "2"), result("3", "3"), result("4", "4"))
	sum.Add(broker.SourceTally{Received: 3, Published: 1, Duplicate: 2})
	want("repeated", sum)

	// What comes out of quarantine was counted when it came.
	o := origin("prod", "env")
	o.Redriven = true
	if _, err := p.Publish(ctx, o, []event.Result{result("5", "5"), result("2", "2")}); err != nil {
		t.Fatal(err)
	}
	sum.Add(broker.SourceTally{Redriven: 2, Published: 1, Duplicate: 1})
	keys := want("redriven", sum)

	// The books took this process for dead and its counts over.
	s, err := b.JetStream().Stream(ctx, "KV_"+broker.BucketBooks)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(ctx, jetstream.WithPurgeSubject("$KV."+broker.BucketBooks+"."+keys[0])); err != nil {
		t.Fatal(err)
	}
	send(nil, result("6", "6"))
	if again := want("goes on from there", broker.SourceTally{Received: 1, Published: 1}); len(again) != 1 || again[0] == keys[0] {
		t.Errorf("keys %v, before %v", again, keys)
	}
	send(nil, result("6", "6"))
	tally.Stop(ctx)
	if _, all := saved(t, b); len(all) != 1 || !all[0].Final || all[0].Sources["prod"] != (broker.SourceTally{Received: 2, Published: 1, Duplicate: 1}) {
		t.Errorf("at the end: %+v", all)
	}
}
