package deadletters_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deadletters"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// rig is a broker with one subscriber whose behaviour the test decides.
type rig struct {
	t        testing.TB
	broker   *broker.Broker
	js       jetstream.JetStream // for publishing
	registry *registry.Registry
	recorder *deliver.Recorder
	fleet    *registry.Fleet
	parts    deadletters.Parts

	mu     sync.Mutex // guards all below
	answer func(*event.Event) deliver.Attempt
	hang   chan struct{}
	got    map[string]int // delivered, by id
	vias   map[string]int // delivered, by via
}

const name = "shop"

func newRig(t testing.TB, change ...func(*registry.Definition)) *rig {
	t.Helper()
	return newRigOn(t, brokertest.New(t), change...)
}

func newRigOn(t testing.TB, b *broker.Broker, change ...func(*registry.Definition)) *rig {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	g := &rig{t: t, broker: b, got: map[string]int{}, vias: map[string]int{}, answer: delivered}
	var err error
	if _, g.js, err = b.Connect("test"); err != nil {
		t.Fatal(err)
	}
	if g.registry, err = registry.Open(t.Context(), b, log); err != nil {
		t.Fatal(err)
	}
	if g.recorder, err = deliver.NewRecorder(t.Context(), b, log); err != nil {
		t.Fatal(err)
	}
	g.fleet, err = registry.StartFleet(t.Context(), g.registry, deliver.Parts{
		Broker: b, Recorder: g.recorder, Metrics: deliver.NewMetrics(prometheus.NewRegistry()), Log: log,
	}, func(registry.Definition, bool) (deliver.Sender, error) { return sender{g}, nil }, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.fleet.Stop(time.Second)
		g.recorder.Close()
	})
	g.parts = deadletters.Parts{Broker: b, Recorder: g.recorder, Registry: g.registry, Fleet: g.fleet, Compile: compile, Log: log}
	d := registry.Definition{
		Name: name, Subjects: []string{"events.eventgrid.>"}, Start: registry.Beginning,
		Deliver: registry.Deliver{Webhook: &webhook.Config{URL: "https://example.com/"}},
	}
	d.Retry.Schedule = []deliver.Duration{deliver.Duration(20 * time.Millisecond)}
	d.Breaker.OpenFor, d.Breaker.MaxOpenFor = deliver.Duration(50*time.Millisecond), deliver.Duration(100*time.Millisecond)
	for _, f := range change {
		f(&d)
	}
	if _, err := g.registry.Add(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	return g
}

// compile makes filters of a handful of words.
func compile(expression string) (func(*event.Event) (bool, error), error) {
	word, arg, _ := strings.Cut(expression, " ")
	switch word {
	case "id":
		return func(e *event.Event) (bool, error) { return e.ID == arg, nil }, nil
	case "fails-on":
		return func(e *event.Event) (bool, error) {
			if e.ID == arg {
				return false, errors.New("no such field")
			}
			return true, nil
		}, nil
	}
	return nil, fmt.Errorf("unknown word %q", word)
}

func (g *rig) open() *deadletters.Store { return g.openMortal(nil) }

// openMortal opens a store that dies when a test says so.
func (g *rig) openMortal(die func(*deadletters.Job, string) bool) *deadletters.Store {
	g.t.Helper()
	s, err := deadletters.OpenMortal(g.t.Context(), g.parts, die)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(s.Close)
	return s
}

type sender struct{ g *rig }

func (s sender) Send(ctx context.Context, e *event.Event) deliver.Attempt {
	s.g.mu.Lock()
	hang, answer := s.g.hang, s.g.answer
	s.g.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return deliver.Attempt{Outcome: deliver.Aborted}
		}
	}
	a := answer(e)
	if a.Outcome == deliver.Delivered {
		s.g.mu.Lock()
		s.g.got[e.ID]++
		s.g.vias[e.Get(event.ExtVia)]++
		s.g.mu.Unlock()
	}
	return a
}

func (sender) Close() {}

func delivered(*event.Event) deliver.Attempt {
	return deliver.Attempt{Outcome: deliver.Delivered, Status: 200}
}

func refused(e *event.Event) deliver.Attempt {
	return deliver.Attempt{Outcome: deliver.Rejected, Status: 422, Reason: "HTTP 422: order " + e.ID + " is unknown"}
}

func down(*event.Event) deliver.Attempt {
	return deliver.Attempt{Outcome: deliver.Failed, Status: 503, Reason: "HTTP 503"}
}

func (g *rig) answers(f func(*event.Event) deliver.Attempt) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answer = f
}

func (g *rig) hangs(hang chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hang = hang
}

func (g *rig) received() map[string]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.got)
}

// publish stores events and gives their ids.
func (g *rig) publish(from, n int) []string {
	g.t.Helper()
	var ids []string
	for i := from; i < from+n; i++ {
		e := &event.Event{
			ID: fmt.Sprintf("order-%05d", i), Source: "/topics/shop", Type: "Order.Placed", DataContentType: "application/json",
			Data: []byte(`{"n":1}`), DataJSON: true,
		}
		e.Set(event.ExtRecordedTime, event.FormatTime(time.Now().UTC()))
		h, body := e.Encode()
		kind := map[bool]string{true: "even", false: "odd"}[i%2 == 0]
		if _, err := g.js.PublishMsg(g.t.Context(), &nats.Msg{Subject: "events.eventgrid.files.shop." + kind, Header: h, Data: body}); err != nil {
			g.t.Fatal(err)
		}
		ids = append(ids, e.ID)
	}
	return ids
}

// bury makes dead letters of n events.
func (g *rig) bury(n int) []string {
	g.t.Helper()
	g.answers(refused)
	ids := g.publish(0, n)
	g.waitFor("dead letters", func() bool { return g.letters() == n })
	g.waitFor("acks", g.idle)
	g.answers(delivered)
	return ids
}

func (g *rig) backlog() registry.Backlog {
	g.t.Helper()
	b, err := g.registry.Backlog(g.t.Context(), name)
	if err != nil {
		g.t.Fatal(err)
	}
	return b
}

func (g *rig) letters() int { return g.backlog().DeadLetters }

// idle says whether nothing is on its way.
func (g *rig) idle() bool {
	b := g.backlog()
	return b.Pending == 0 && b.Retry == 0
}

func (g *rig) waitFor(what string, done func() bool) {
	g.t.Helper()
	deadline := time.Now().Add(3 * time.Minute)
	for !done() {
		if time.Now().After(deadline) {
			g.t.Fatalf("timed out waiting for %s", what)
		}
		time.Sleep(5 * time.Millisecond) // sleep: polling with a deadline
	}
}

// await waits until a job is over or stopped.
func (g *rig) await(s *deadletters.Store, id string) deadletters.Job {
	g.t.Helper()
	var j deadletters.Job
	g.waitFor("job "+id, func() bool {
		var err error
		if j, err = s.Job(g.t.Context(), id); err != nil {
			g.t.Fatal(err)
		}
		return j.State != deadletters.Running && j.State != deadletters.Stopping
	})
	return j
}

// records counts what ATTEMPTS has, by outcome and hop.
func (g *rig) records() map[string]int {
	g.t.Helper()
	stream, err := g.js.Stream(g.t.Context(), broker.StreamAttempts)
	if err != nil {
		g.t.Fatal(err)
	}
	all := map[string]int{}
	info, err := stream.Info(g.t.Context())
	if err != nil {
		g.t.Fatal(err)
	}
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq && seq > 0; seq++ {
		m, err := stream.GetMsg(g.t.Context(), seq)
		if err != nil {
			g.t.Fatal(err)
		}
		records, err := deliver.ParseRecords(m.Data)
		if err != nil {
			g.t.Fatal(err)
		}
		for _, r := range records {
			hop := fmt.Sprint(r.Hop)
			if r.Hop >= 1_000_000 {
				hop = fmt.Sprint("R+", r.Hop%1_000_000)
			}
			all[r.Outcome+" "+hop]++
		}
	}
	return all
}

func every(ids []string, n int) map[string]int {
	all := map[string]int{}
	for _, id := range ids {
		all[id] = n
	}
	return all
}

func (g *rig) redrive(s *deadletters.Store, sel deadletters.Selection) *deadletters.Job {
	g.t.Helper()
	j, err := s.Redrive(g.t.Context(), name, sel, 0)
	if err != nil {
		g.t.Fatal(err)
	}
	if j == nil {
		g.t.Fatal("no job")
	}
	return j
}

func TestRedrive(t *testing.T) {
	g := newRig(t)
	ids := g.bury(300)
	s := g.open()

	// They fail again: the dead letters are new ones, of a later hop.
	g.answers(refused)
	j := g.await(s, g.redrive(s, deadletters.Selection{All: true}).ID)
	want := deadletters.Counts{Total: 300, Looked: 300, Done: 300}
	if d := cmp.Diff(want, j.Counts); d != "" || j.State != deadletters.Done {
		t.Errorf("state %s, counts (-want +got):\n%s", j.State, d)
	}
	g.waitFor("dead letters again", func() bool { return g.letters() == 300 && g.idle() })

	g.answers(delivered)
	g.await(s, g.redrive(s, deadletters.Selection{All: true}).ID)
	g.waitFor("the end of all retries", g.idle)
	if d := cmp.Diff(every(ids, 1), g.received()); d != "" {
		t.Errorf("delivered (-want +got):\n%s", d)
	}
	if n := g.letters(); n != 0 {
		t.Errorf("%d dead letters are left", n)
	}
	wantRecords := map[string]int{
		"dead-letter 0": 300, "redriven 0": 300, "dead-letter 2": 300, "redriven 2": 300, "delivered 4": 300,
	}
	if d := cmp.Diff(wantRecords, g.records()); d != "" {
		t.Errorf("records (-want +got):\n%s", d)
	}
	// With nothing left there is nothing to do.
	if j, err := s.Redrive(t.Context(), name, deadletters.Selection{All: true}, 0); j != nil || err != nil {
		t.Errorf("redrive of nothing: %+v, %v", j, err)
	}
}

// TestCrash ends the work after each step of a portion. Whoever goes on must
// neither lose nor repeat anything, neither an event nor a record.
func TestCrash(t *testing.T) {
	for _, tt := range []struct {
		kind  deadletters.Kind
		steps []string
		want  map[string]int // records
	}{
		{deadletters.Redrive, []string{"opened", "sent", "recorded", "removing", "removed"},
			map[string]int{"dead-letter 0": 60, "redriven 0": 60, "delivered 2": 60}},
		{deadletters.Drop, []string{"opened", "recorded", "removing", "removed"},
			map[string]int{"dead-letter 0": 60, "dropped 0": 60}},
		{deadletters.Replay, []string{"opened", "recorded", "sent"},
			map[string]int{"delivered 0": 60, "replayed R+0": 60, "delivered R+0": 60}},
	} {
		for _, step := range tt.steps {
			for _, stopped := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/stopped=%v", tt.kind, step, stopped), func(t *testing.T) {
					t.Parallel()
					crash(t, newRig(t), tt.kind, step, stopped, tt.want)
				})
			}
		}
		t.Run(string(tt.kind)+"/external", func(t *testing.T) {
			t.Parallel()
			crash(t, newRigOn(t, brokertest.NewServer(t).Connect()), tt.kind, "recorded", false, tt.want)
		})
	}
}

func crash(t *testing.T, g *rig, kind deadletters.Kind, step string, stopped bool, want map[string]int) {
	var ids []string
	if kind == deadletters.Replay {
		ids = g.publish(0, 60)
		g.waitFor("deliveries", func() bool { return len(g.received()) == 60 && g.idle() })
	} else {
		ids = g.bury(60)
	}
	died := make(chan struct{})
	var once sync.Once
	portions := 0
	first := g.openMortal(func(j *deadletters.Job, at string) bool {
		if at == "opened" {
			portions++
		}
		// Not in the first portion, unless it is the only one.
		if at != step || portions < 2 && j.Kind != deadletters.Drop {
			return false
		}
		once.Do(func() { close(died) })
		return true
	})
	var j *deadletters.Job
	var err error
	sel := deadletters.Selection{All: true}
	if step == "removing" { // one after the other, and not all at once
		sel = deadletters.Selection{}
		for i := range 60 {
			sel.Sequences = append(sel.Sequences, uint64(i+1))
		}
	}
	switch kind {
	case deadletters.Redrive:
		j = g.redrive(first, sel)
	case deadletters.Drop:
		j, err = first.Drop(t.Context(), name, sel)
	case deadletters.Replay:
		j, _, err = first.Replay(t.Context(), name, deadletters.Range{From: deadletters.Point{Sequence: 1}}, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	<-died
	first.Close()
	second := g.open()
	if stopped {
		// The order to stop does not leave the portion half done.
		if _, err := second.Stop(t.Context(), j.ID); err != nil {
			t.Fatal(err)
		}
		now := g.await(second, j.ID)
		if now.State != deadletters.Stopped || len(now.Open) > 0 {
			t.Errorf("after the stop: %s, open %v", now.State, now.Open)
		}
		g.waitFor("the portion", g.idle)
		// What is done so far is consistent: as many sent as recorded, and no
		// more left than was not.
		done := g.records()
		if kind == deadletters.Redrive && (done["redriven 0"] != now.Done || done["delivered 2"] != now.Done || g.letters() != 60-now.Done) {
			t.Errorf("%d done, %d left, records %v", now.Done, g.letters(), done)
		}
		if kind == deadletters.Replay && (done["replayed R+0"] != now.Done || done["delivered R+0"] != now.Done) {
			t.Errorf("%d done, records %v", now.Done, done)
		}
		if _, err := second.Resume(t.Context(), j.ID); err != nil {
			t.Fatal(err)
		}
	}
	now := g.await(second, j.ID)
	if d := cmp.Diff(deadletters.Counts{Total: 60, Looked: 60, Done: 60}, now.Counts); d != "" || now.State != deadletters.Done {
		t.Errorf("state %s %s, counts (-want +got):\n%s", now.State, now.Error, d)
	}
	g.waitFor("the end of all deliveries", g.idle)
	wantGot := map[deadletters.Kind]map[string]int{
		deadletters.Redrive: every(ids, 1), deadletters.Drop: {}, deadletters.Replay: every(ids, 2),
	}[kind]
	if d := cmp.Diff(wantGot, g.received()); d != "" {
		t.Errorf("delivered (-want +got):\n%s", d)
	}
	if d := cmp.Diff(want, g.records()); d != "" {
		t.Errorf("records (-want +got):\n%s", d)
	}
	if n := g.letters(); n != 0 {
		t.Errorf("%d dead letters are left", n)
	}
}

func TestStopAndResume(t *testing.T) {
	g := newRig(t)
	ids := g.bury(100)
	s := g.open()
	hang := make(chan struct{})
	g.hangs(hang)
	j := g.redrive(s, deadletters.Selection{All: true})
	g.waitFor("a full lane", func() bool { return g.backlog().Retry >= 16 })
	if _, err := s.Stop(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	now := g.await(s, j.ID)
	// The window is what bounds a job that nobody takes anything from.
	if now.State != deadletters.Stopped || now.Done != 16 || g.letters() != 84 || now.Ended == nil {
		t.Errorf("%+v, %d left", now, g.letters())
	}
	close(hang)
	g.waitFor("what was sent", func() bool { return len(g.received()) == 16 && g.idle() })

	// Another process goes on.
	s.Close()
	s = g.open()
	if _, err := s.Resume(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	if now = g.await(s, j.ID); now.State != deadletters.Done || now.Done != 100 {
		t.Errorf("%+v", now)
	}
	g.waitFor("everything", func() bool { return g.idle() })
	if d := cmp.Diff(every(ids, 1), g.received()); d != "" {
		t.Errorf("delivered (-want +got):\n%s", d)
	}
	for _, order := range []func(context.Context, string) (deadletters.Job, error){s.Stop, s.Resume} {
		if _, err := order(t.Context(), j.ID); !errors.Is(err, deadletters.ErrEnded) {
			t.Errorf("order to a job that is done: %v", err)
		}
		if _, err := order(t.Context(), "99"); !errors.Is(err, deadletters.ErrNoJob) {
			t.Errorf("order to no job: %v", err)
		}
	}
}

// TestReplaysOverlap resumes a replay after another one has sent the same events:
// each of the two is delivered all the same, and recorded.
func TestReplaysOverlap(t *testing.T) {
	g := newRig(t)
	ids := g.publish(0, 100)
	g.waitFor("the first time", func() bool { return len(g.received()) == 100 && g.idle() })
	s := g.open()
	replay := func() *deadletters.Job {
		t.Helper()
		j, _, err := s.Replay(t.Context(), name, deadletters.Range{From: deadletters.Point{Sequence: 1}}, 0)
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	hang := make(chan struct{})
	g.hangs(hang)
	first := replay()
	g.waitFor("a full lane", func() bool { return g.backlog().Retry >= 16 })
	if _, err := s.Stop(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	if now := g.await(s, first.ID); now.State != deadletters.Stopped || now.Done >= 100 {
		t.Fatalf("%+v", now)
	}
	close(hang)
	g.waitFor("what was sent", g.idle)
	if now := g.await(s, replay().ID); now.State != deadletters.Done || now.Done != 100 {
		t.Fatalf("%+v", now)
	}
	g.waitFor("the second replay", g.idle)
	if _, err := s.Resume(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	if now := g.await(s, first.ID); now.State != deadletters.Done || now.Done != 100 {
		t.Fatalf("%+v", now)
	}
	g.waitFor("everything", g.idle)
	if d := cmp.Diff(every(ids, 3), g.received()); d != "" {
		t.Errorf("delivered (-want +got):\n%s", d)
	}
}

// TestFreshFirst leaves the slots to fresh events while there are some: of eight
// slots a job takes one.
func TestFreshFirst(t *testing.T) {
	g := newRig(t)
	ids := g.bury(40)
	hang := make(chan struct{})
	g.hangs(hang)
	ids = append(ids, g.publish(40, 100)...)
	s := g.open()
	j := g.redrive(s, deadletters.Selection{All: true})
	var now deadletters.Job
	g.waitFor("a word", func() bool {
		var err error
		if now, err = s.Job(t.Context(), j.ID); err != nil {
			t.Fatal(err)
		}
		return strings.Contains(now.Waiting, "fresh events go first")
	})
	if now.Done != 1 {
		t.Errorf("%d are on the lane, want 1", now.Done)
	}
	close(hang)
	if now = g.await(s, j.ID); now.State != deadletters.Done || now.Done != 40 {
		t.Errorf("%+v", now)
	}
	g.waitFor("everything", func() bool { return len(g.received()) == len(ids) })
}

// TestForgotten keeps the list of jobs short.
func TestForgotten(t *testing.T) {
	g := newRig(t)
	g.bury(1)
	kv, err := g.js.KeyValue(t.Context(), broker.BucketJobs)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 105; i++ {
		state := map[bool]string{true: "stopped", false: "done"}[i == 105]
		if _, err := kv.PutString(t.Context(), fmt.Sprint(i), fmt.Sprintf(`{"id":"%d","kind":"drop","subscriber":"shop","state":%q}`, i, state)); err != nil {
			t.Fatal(err)
		}
	}
	s := g.open()
	j := g.redrive(s, deadletters.Selection{All: true})
	jobs, err := s.Jobs(t.Context())
	if err != nil || j.ID != "106" || len(jobs) != 101 || jobs[0].ID != "106" || jobs[100].ID != "6" {
		t.Errorf("job %s, %d jobs, %v", j.ID, len(jobs), err)
	}
}

// TestRate holds a job to its rate.
func TestRate(t *testing.T) {
	g := newRig(t)
	g.bury(60)
	s := g.open()
	began := time.Now()
	j, err := s.Redrive(t.Context(), name, deadletters.Selection{All: true}, 40)
	if err != nil {
		t.Fatal(err)
	}
	g.await(s, j.ID)
	// A quarter of a second's worth goes at once.
	if took, least := time.Since(began), 50*time.Second/40; took < least {
		t.Errorf("60 at 40/s took %s, want at least %s", took, least)
	}
}

// TestReplicas has two replicas and several jobs of one subscriber: one works on
// them, one after the other.
func TestReplicas(t *testing.T) {
	g := newRig(t)
	ids := g.bury(200)
	a, b := g.open(), g.open()
	first := g.redrive(a, deadletters.Selection{All: true})
	second := g.redrive(b, deadletters.Selection{All: true})
	third, _, err := b.Replay(t.Context(), name, deadletters.Range{From: deadletters.Point{Sequence: 1}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	one, two, three := g.await(a, first.ID), g.await(a, second.ID), g.await(b, third.ID)
	if one.Done+two.Done != 200 || one.State != deadletters.Done || two.State != deadletters.Done {
		t.Errorf("%d and %d done of 200", one.Done, two.Done)
	}
	g.waitFor("the end", g.idle)
	// What was on the lane when the replay began is not sent by it.
	if n := three.Done + three.Skipped["waits for its next attempt anyway"]; n != 200 {
		t.Errorf("the replay: %+v", three.Counts)
	}
	total := 0
	for id, n := range g.received() {
		if !slices.Contains(ids, id) || n > 2 {
			t.Errorf("%s came %d times", id, n)
		}
		total += n
	}
	if total != 200+three.Done {
		t.Errorf("%d deliveries, want 200 and %d", total, three.Done)
	}
	r := g.records()
	if r["redriven 0"] != 200 || r["replayed R+0"] != three.Done || r["delivered R+0"] != three.Done {
		t.Errorf("records %v", r)
	}
	jobs, err := a.Jobs(t.Context())
	if err != nil || len(jobs) != 3 || jobs[0].ID != "3" || jobs[2].ID != "1" {
		t.Errorf("jobs %+v, %v", jobs, err)
	}
}

// TestDown redrives to a subscriber that is still down: nothing is lost, the
// breaker lets one try through at a time, and when it is back all of them go.
func TestDown(t *testing.T) {
	g := newRig(t)
	ids := g.bury(40)
	g.answers(down)
	s := g.open()
	j := g.redrive(s, deadletters.Selection{All: true})
	g.waitFor("a word", func() bool {
		now, err := s.Job(t.Context(), j.ID)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(now.Waiting, "its breaker is")
	})
	g.answers(delivered)
	if now := g.await(s, j.ID); now.State != deadletters.Done {
		t.Errorf("%+v", now)
	}
	g.waitFor("all of them", func() bool { return len(g.received())+g.letters() == len(ids) })
}

func TestPausedAndDeleted(t *testing.T) {
	g := newRig(t)
	g.bury(30)
	s := g.open()
	if _, err := g.registry.SetPaused(t.Context(), name, true); err != nil {
		t.Fatal(err)
	}
	p, err := s.Preview(t.Context(), name, deadletters.Selection{All: true})
	if err != nil || len(p.Notes) != 1 || !strings.Contains(p.Notes[0], "paused") {
		t.Errorf("notes %q, %v", p.Notes, err)
	}
	j := g.redrive(s, deadletters.Selection{All: true})
	g.waitFor("a word", func() bool {
		now, err := s.Job(t.Context(), j.ID)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(now.Waiting, "paused: gridfan subscribers resume shop")
	})
	if n := g.letters(); n != 30 {
		t.Errorf("%d dead letters, want all", n)
	}
	if _, err := g.registry.Delete(t.Context(), name, true); err != nil {
		t.Fatal(err)
	}
	now := g.await(s, j.ID)
	if now.State != deadletters.Failed || now.Error != "the subscriber was deleted" {
		t.Errorf("%+v", now)
	}
	// One that is added under the name is another.
	d := registry.Definition{Name: name, Subjects: []string{"events.>"}, Deliver: registry.Deliver{Webhook: &webhook.Config{URL: "https://example.com/"}}}
	if _, err := g.registry.Add(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resume(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	if now = g.await(s, j.ID); now.State != deadletters.Failed {
		t.Errorf("resumed for another subscriber: %+v", now)
	}
}

func TestSelections(t *testing.T) {
	g := newRig(t)
	ids := g.bury(20)
	g.answers(down)
	g.publish(20, 1)
	before := time.Now()
	g.waitFor("an exhausted one", func() bool { return g.letters() == 21 && g.idle() })
	g.answers(delivered)
	s := g.open()
	letters, err := s.List(t.Context(), name, deadletters.Selection{}, 0, 100)
	if err != nil || len(letters) != 21 {
		t.Fatalf("%d letters, %v", len(letters), err)
	}
	last := letters[20]
	if last.ID != "order-00020" || last.Cause != "exhausted" || last.Status != 503 || last.Attempts < 2 || last.Event != 21 || last.Subject != "events.eventgrid.files.shop.even" || last.Size != 7 {
		t.Errorf("%+v", last)
	}
	page, err := s.List(t.Context(), name, deadletters.Selection{Cause: "rejected"}, letters[9].Sequence, 5)
	if err != nil || len(page) != 5 || page[0].Sequence != letters[10].Sequence {
		t.Errorf("page %+v, %v", page, err)
	}
	for _, tt := range []struct {
		name string
		sel  deadletters.Selection
		want int
	}{
		{"all", deadletters.Selection{All: true}, 21},
		{"cause", deadletters.Selection{Cause: "rejected"}, 20},
		{"part of the reason", deadletters.Selection{Reason: "ORDER-00007"}, 1},
		{"since", deadletters.Selection{Since: before}, 1},
		{"until", deadletters.Selection{Until: before}, 20},
		{"filter", deadletters.Selection{Filter: "id order-00003"}, 1},
		{"filter and cause", deadletters.Selection{Filter: "id order-00003", Cause: "exhausted"}, 0},
		{"sequences, one twice", deadletters.Selection{Sequences: []uint64{letters[2].Sequence, letters[0].Sequence, letters[2].Sequence}}, 2},
	} {
		p, err := s.Preview(t.Context(), name, tt.sel)
		if err != nil || p.Selected != tt.want || len(p.Examples) != min(3, tt.want) || !p.Complete {
			t.Errorf("%s: %+v, %v", tt.name, p, err)
		}
	}

	// A filter that cannot judge leaves alone what it cannot judge, and says so.
	j := g.await(s, g.redrive(s, deadletters.Selection{Filter: "fails-on order-00005"}).ID)
	if j.State != deadletters.Done || j.Done != 20 || j.Failed != 1 || !strings.Contains(j.Error, "no such field") {
		t.Errorf("%+v", j)
	}
	g.waitFor("the end", g.idle)
	want := every(slices.Concat(ids, []string{"order-00020"}), 1)
	delete(want, "order-00005")
	if d := cmp.Diff(want, g.received()); d != "" {
		t.Errorf("delivered (-want +got):\n%s", d)
	}
	// By its number, while another one of the list is gone.
	letters, err = s.List(t.Context(), name, deadletters.Selection{}, 0, 100)
	if err != nil || len(letters) != 1 {
		t.Fatalf("%+v, %v", letters, err)
	}
	g.await(s, g.redrive(s, deadletters.Selection{Sequences: []uint64{letters[0].Sequence}}).ID)
	g.waitFor("the last", func() bool { return g.letters() == 0 && g.idle() })
}

func TestBadInput(t *testing.T) {
	g := newRig(t)
	g.bury(3)
	s := g.open()
	now := time.Now()
	for _, tt := range []struct {
		name string
		sel  deadletters.Selection
		want string
	}{
		{"nothing", deadletters.Selection{}, "say which"},
		{"two ways", deadletters.Selection{All: true, Cause: "rejected"}, "in one way"},
		{"unknown cause", deadletters.Selection{Cause: "bored"}, `no dead letters of the cause "bored"; there are: rejected (3)`},
		{"a cause that is a pattern", deadletters.Selection{Cause: "*"}, `"*" is none`},
		{"since after until", deadletters.Selection{Since: now, Until: now.Add(-time.Hour)}, "is after until"},
		{"number 0", deadletters.Selection{Sequences: []uint64{0}}, "0 names no dead letter"},
		{"too many", deadletters.Selection{Sequences: make([]uint64, 1001)}, "at most 1000"},
		{"filter that is none", deadletters.Selection{Filter: "what"}, `unknown word "what"`},
	} {
		_, err := s.Redrive(t.Context(), name, tt.sel, 0)
		if !errors.Is(err, deadletters.ErrBadSelection) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if _, err := s.Preview(t.Context(), name, tt.sel); err == nil {
			t.Errorf("%s: a preview accepts it", tt.name)
		}
	}
	if _, err := s.Redrive(t.Context(), name, deadletters.Selection{Sequences: []uint64{99}}, 0); !errors.Is(err, deadletters.ErrNotFound) {
		t.Errorf("unknown sequence: %v", err)
	}
	if _, err := s.Drop(t.Context(), "nobody", deadletters.Selection{All: true}); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("unknown subscriber: %v", err)
	}
	point := func(s string) deadletters.Point {
		p, err := deadletters.ParsePoint(s)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, tt := range []struct {
		name string
		r    deadletters.Range
		want string
	}{
		{"no from", deadletters.Range{}, "from: missing"},
		{"from after to", deadletters.Range{From: point("9"), To: point("8")}, "from (9) is after to (8)"},
		{"times the wrong way", deadletters.Range{From: point("2020-01-02T00:00:00Z"), To: point("2020-01-01T00:00:00Z")}, "is after to"},
		{"still to come", deadletters.Range{From: point("2999-01-01T00:00:00Z")}, "still to come"},
		{"no subject", deadletters.Range{From: point("1"), Subject: "orders.>"}, "no pattern of events"},
		{"bad subject", deadletters.Range{From: point("1"), Subject: "events..x"}, "no pattern of events"},
		{"bad filter", deadletters.Range{From: point("1"), Filter: "what"}, "unknown word"},
	} {
		if _, _, err := s.Replay(t.Context(), name, tt.r, 0); !errors.Is(err, deadletters.ErrBadSelection) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	for _, text := range []string{"yesterday", "", "0", "-1", "2026-13-01T00:00:00Z"} {
		if p, err := deadletters.ParsePoint(text); err == nil {
			t.Errorf("%q is the point %v", text, p)
		}
	}
}
