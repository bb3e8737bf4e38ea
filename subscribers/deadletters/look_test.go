package deadletters_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deadletters"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
)

func TestGroups(t *testing.T) {
	g := newRig(t)
	g.bury(10)
	g.answers(func(*event.Event) deliver.Attempt {
		return deliver.Attempt{Outcome: deliver.Rejected, Status: 400, Reason: "HTTP 400: bad"}
	})
	g.publish(10, 2)
	g.waitFor("dead letters", func() bool { return g.letters() == 12 && g.idle() })
	s := g.open()
	for _, who := range []string{name, ""} {
		got, err := s.Groups(t.Context(), who)
		if err != nil || len(got.Groups) != 2 || got.Total != 12 || !got.Complete {
			t.Fatalf("%+v, %v", got, err)
		}
		a, b := got.Groups[0], got.Groups[1]
		if a.Count != 10 || a.Subscriber != name || a.Cause != "rejected" || a.Reason != "HTTP 422: order … is unknown" ||
			a.Example.ID == "" || a.Oldest.After(a.Newest) || a.Newest.After(b.Oldest) {
			t.Errorf("%+v", a)
		}
		if b.Count != 2 || b.Reason != "HTTP 400: bad" {
			t.Errorf("%+v", b)
		}
	}
	if got, err := s.Groups(t.Context(), "nobody"); err != nil || len(got.Groups) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestAlike(t *testing.T) {
	for reason, want := range map[string]string{
		"":                          "",
		"HTTP 503":                  "HTTP 503",
		"HTTP 422: order A-1234":    "HTTP 422: order …",
		"id 6f9619ff-8b86-d011 bad": "id … bad",
		"timed out after 30s":       "timed out after 30s",
		"müßig 12345":               "müßig …",
	} {
		if got := deadletters.Alike(reason); got != want {
			t.Errorf("%q: got %q, want %q", reason, got, want)
		}
	}
}

func TestShow(t *testing.T) {
	// The next attempt is far enough off for the search to leap there.
	g := newRig(t, func(d *registry.Definition) {
		d.Retry.Schedule = []deliver.Duration{deliver.Duration(50 * time.Millisecond), deliver.Duration(50 * time.Millisecond)}
		d.Breaker.Failures = 100
	})
	g.answers(down)
	g.publish(0, 3)
	g.waitFor("dead letters", func() bool { return g.letters() == 3 && g.idle() })
	s := g.open()
	letters, err := s.List(t.Context(), name, deadletters.Selection{}, 0, 10)
	if err != nil || len(letters) != 3 {
		t.Fatalf("%+v, %v", letters, err)
	}
	d, err := s.Show(t.Context(), name, letters[1].Sequence)
	if err != nil {
		t.Fatal(err)
	}
	if d.ID == "" || d.Cause != "exhausted" || d.Data != `{"n":1}` || d.Binary || d.Truncated || d.Attributes["type"] != "Order.Placed" ||
		d.Attributes["recordedtime"] == "" || d.Headers[deliver.HeaderHop] == nil {
		t.Errorf("%+v", d)
	}
	var outcomes []string
	for _, r := range d.History.Records {
		if r.ID != d.ID {
			t.Errorf("a record of another event: %+v", r)
		}
		outcomes = append(outcomes, fmt.Sprint(r.Outcome, " ", r.Hop))
	}
	if want := []string{"retry 0", "retry 1", "dead-letter 2"}; cmp.Diff(want, outcomes) != "" || !d.History.Complete {
		t.Errorf("history %v, complete %v; want %v", outcomes, d.History.Complete, want)
	}
	for who, seq := range map[string]uint64{name: 999, "nobody": letters[0].Sequence} {
		if _, err := s.Show(t.Context(), who, seq); !errors.Is(err, deadletters.ErrNotFound) && !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("%s %d: %v", who, seq, err)
		}
	}
}

// TestOddLetters looks at dead letters that hold no event, large or binary data,
// or no origin.
func TestOddLetters(t *testing.T) {
	g := newRig(t)
	g.waitFor("its cursor", g.idle)
	put := func(h nats.Header, data []byte) {
		t.Helper()
		if _, err := g.js.PublishMsg(t.Context(), &nats.Msg{Subject: broker.DeadLetter(name, "undecodable"), Header: h, Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	put(nats.Header{}, []byte("nothing"))
	put(nats.Header{deliver.HeaderOriginSequence: {"7"}, deliver.HeaderHop: {"-1"}, deliver.HeaderReason: {"%zz"}, deliver.HeaderStatus: {"x"}}, bytes.Repeat([]byte("ü"), 60_000))
	put(nats.Header{deliver.HeaderOriginSequence: {"8"}}, []byte{0xff, 0xfe, 0x00})
	s := g.open()
	letters, err := s.List(t.Context(), name, deadletters.Selection{}, 0, 10)
	if err != nil || len(letters) != 3 {
		t.Fatalf("%+v, %v", letters, err)
	}
	for i, want := range []struct{ truncated, binary bool }{{}, {truncated: true}, {binary: true}} {
		d, err := s.Show(t.Context(), name, letters[i].Sequence)
		if err != nil || d.Truncated != want.truncated || d.Binary != want.binary || d.Undecodable == "" || len(d.Data) > 64<<10 {
			t.Errorf("%d: %+v, %v", i, d.Letter, err)
		}
	}
	// Two have no place in EVENTS: sent anew they would be taken for others.
	p, err := s.Preview(t.Context(), name, deadletters.Selection{All: true})
	if err != nil || p.Selected != 3 || p.Skipped["its event is not known by its place"] != 2 {
		t.Errorf("%+v, %v", p, err)
	}
	j := g.await(s, g.redrive(s, deadletters.Selection{All: true}).ID)
	if j.Done != 1 || j.Skipped["its event is not known by its place"] != 2 {
		t.Errorf("%+v", j)
	}
	g.waitFor("it is a dead letter again", func() bool { return g.letters() == 3 && g.idle() })
	d, err := s.Drop(t.Context(), name, deadletters.Selection{All: true})
	if err != nil {
		t.Fatal(err)
	}
	if j := g.await(s, d.ID); j.Done != 3 || g.letters() != 0 {
		t.Errorf("%+v, %d left", j, g.letters())
	}
}

// TestNeedle wants records to begin as they are searched for.
func TestNeedle(t *testing.T) {
	var block bytes.Buffer
	for _, seq := range []uint64{1, 12, 123} {
		line, err := json.Marshal(deliver.Record{Subscriber: name, Sequence: seq, Hop: 3, Outcome: deliver.RecordRetry, Reason: `{"subscriber":"shop","seq":12,"hop":`})
		if err != nil {
			t.Fatal(err)
		}
		block.Write(append(line, '\n'))
	}
	got, err := deadletters.Records(block.Bytes(), deadletters.Needle(name, 12))
	if err != nil || len(got) != 1 || got[0].Sequence != 12 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestReplay(t *testing.T) {
	g := newRig(t, func(d *registry.Definition) {
		d.Subjects = []string{"events.eventgrid.*.shop.even", "events.eventgrid.files.>"}
	})
	// Six are there, one of them a dead letter and one in retry.
	g.answers(func(e *event.Event) deliver.Attempt {
		if e.ID == "order-00002" {
			return refused(e)
		}
		return delivered(e)
	})
	ids := g.publish(0, 6)
	g.waitFor("deliveries", func() bool { return len(g.received()) == 5 && g.letters() == 1 && g.idle() })
	if _, err := g.js.PublishMsg(t.Context(), &nats.Msg{
		Subject: broker.RetryWaiting(name, 4), Data: []byte("{}"),
		Header: nats.Header{"Nats-Schedule": {"@at " + time.Now().Add(time.Hour).UTC().Format(time.RFC3339Nano)}, "Nats-Schedule-Target": {broker.RetryDue(name)}},
	}); err != nil {
		t.Fatal(err)
	}
	// Not one of its subjects.
	if _, err := g.js.Publish(t.Context(), "events.fno.x.y.Z", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	s := g.open()
	stream, err := g.js.Stream(t.Context(), broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	at := func(seq uint64) deadletters.Point {
		m, err := stream.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		return deadletters.Point{Time: m.Time}
	}
	seq := func(n uint64) deadletters.Point { return deadletters.Point{Sequence: n} }
	const letter, waits = "is a dead letter: redrive it", "waits for its next attempt anyway"
	for _, tt := range []struct {
		name    string
		r       deadletters.Range
		want    int
		skipped map[string]int
	}{
		{"all", deadletters.Range{From: seq(1)}, 6, map[string]int{letter: 1, waits: 1}},
		{"by sequence", deadletters.Range{From: seq(2), To: seq(3)}, 2, map[string]int{letter: 1}},
		{"by time", deadletters.Range{From: at(5), To: at(5)}, 1, map[string]int{}},
		{"mixed", deadletters.Range{From: at(5), To: seq(6)}, 2, map[string]int{}},
		{"subject", deadletters.Range{From: seq(1), Subject: "events.eventgrid.files.*.odd"}, 3, map[string]int{waits: 1}},
		{"another subject", deadletters.Range{From: seq(1), Subject: "events.fno.>"}, 0, map[string]int{}},
		{"filter", deadletters.Range{From: seq(1), Filter: "id order-00001"}, 1, map[string]int{}},
		{"beyond the end", deadletters.Range{From: seq(100)}, 0, map[string]int{}},
	} {
		p, err := s.PreviewReplay(t.Context(), name, tt.r)
		if err != nil || p.Selected != tt.want || cmp.Diff(tt.skipped, p.Skipped) != "" || len(p.Examples) != min(3, tt.want) {
			t.Errorf("%s: %+v, %v", tt.name, p, err)
		}
	}
	j, notes, err := s.Replay(t.Context(), name, deadletters.Range{From: seq(1)}, 0)
	if err != nil || len(notes) != 0 {
		t.Fatal(notes, err)
	}
	now := g.await(s, j.ID)
	if d := cmp.Diff(deadletters.Counts{Total: 6, Looked: 6, Done: 4, Skipped: map[string]int{letter: 1, waits: 1}}, now.Counts); d != "" {
		t.Errorf("counts (-want +got):\n%s", d)
	}
	g.waitFor("the end", func() bool { return len(g.received()) == 5 && g.backlog().Retry == 1 })
	want := map[string]int{ids[0]: 2, ids[1]: 2, ids[3]: 1, ids[4]: 2, ids[5]: 2}
	if d := cmp.Diff(want, g.received()); d != "" {
		t.Errorf("delivered (-want +got):\n%s", d)
	}
	g.mu.Lock()
	if d := cmp.Diff(map[string]int{"": 5, "replay": 4}, g.vias); d != "" {
		t.Errorf("via (-want +got):\n%s", d)
	}
	g.mu.Unlock()

	// Once more: another job, and hops beyond those of the first.
	j, _, err = s.Replay(t.Context(), name, deadletters.Range{From: seq(1), Subject: "events.eventgrid.files.shop.odd"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	g.await(s, j.ID)
	g.waitFor("the second", func() bool { return g.received()[ids[5]] == 3 && g.received()[ids[1]] == 3 })
	if j, _, err := s.Replay(t.Context(), name, deadletters.Range{From: seq(100)}, 0); j != nil || err != nil {
		t.Errorf("a replay of nothing: %+v, %v", j, err)
	}
}

// TestReplayOfUndelivered does not send what comes by itself.
func TestReplayOfUndelivered(t *testing.T) {
	g := newRig(t)
	g.publish(0, 5)
	g.waitFor("deliveries", func() bool { return len(g.received()) == 5 && g.idle() })
	if _, err := g.registry.SetPaused(t.Context(), name, true); err != nil {
		t.Fatal(err)
	}
	s := g.open()
	// The pause takes a moment: until then more events come by themselves.
	first := regexp.MustCompile(`from event (\d+) on it is getting them for the first time`)
	var said []string
	for published := 5; said == nil; published += 5 {
		if published > 1000 {
			t.Fatal("it never pauses")
		}
		g.publish(published, 5)
		p, err := s.PreviewReplay(t.Context(), name, deadletters.Range{From: deadletters.Point{Sequence: 4}})
		if err != nil {
			t.Fatal(err)
		}
		if said = first.FindStringSubmatch(strings.Join(p.Notes, "\n")); said == nil {
			continue
		}
		if next, err := strconv.Atoi(said[1]); err != nil || next < 6 || p.Selected != next-4 {
			t.Errorf("%+v, %v", p, err)
		}
	}
}

// TestStructured replays an event whose attributes are in its body.
func TestStructured(t *testing.T) {
	g := newRig(t)
	e := &event.Event{ID: "big", Source: "/s", Type: "T", DataContentType: "application/json", Data: []byte(`{"a":1}`), DataJSON: true}
	e.Set("filler", strings.Repeat("x", 40<<10))
	h, body := e.Encode()
	if got := h["content-type"][0]; got != event.MediaStructured {
		t.Fatal(got)
	}
	if _, err := g.js.PublishMsg(t.Context(), &nats.Msg{Subject: "events.eventgrid.files.shop.x", Header: h, Data: body}); err != nil {
		t.Fatal(err)
	}
	g.waitFor("the delivery", func() bool { return g.received()["big"] == 1 && g.idle() })
	s := g.open()
	if _, _, err := s.Replay(t.Context(), name, deadletters.Range{From: deadletters.Point{Sequence: 1}}, 0); err != nil {
		t.Fatal(err)
	}
	g.waitFor("the replay", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.vias["replay"] == 1
	})
}
