package native_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/books"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/native"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// rig is a process that serves native subscribers.
type rig struct {
	t      *testing.T
	broker *broker.Broker
	r      *registry.Registry
	fleet  *registry.Fleet
	books  *books.Books
	stop   func() // it can be called again
}

func open(t *testing.T, b *broker.Broker) *rig {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	g := &rig{t: t, broker: b}
	recorder, err := deliver.NewRecorder(t.Context(), b, log)
	if err != nil {
		t.Fatal(err)
	}
	if g.r, err = registry.Open(t.Context(), b, log); err != nil {
		t.Fatal(err)
	}
	if err := g.r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.fleet, err = registry.StartFleet(t.Context(), g.r, deliver.Parts{
		Broker: b, Recorder: recorder, Metrics: deliver.NewMetrics(prometheus.NewRegistry()), Log: log,
	}, func(registry.Definition, bool) (deliver.Sender, error) {
		return nil, errors.New("nothing is sent here")
	}, log)
	if err != nil {
		t.Fatal(err)
	}
	if g.books, err = books.Open(t.Context(), books.Parts{Broker: b, Registry: g.r, Log: log, Breaker: g.fleet.Breaker}); err != nil {
		t.Fatal(err)
	}
	g.stop = sync.OnceFunc(func() {
		g.books.Close(context.Background())
		g.fleet.Stop(time.Second)
		recorder.Close()
	})
	t.Cleanup(g.stop)
	return g
}

func (g *rig) add(d registry.Definition) (seed string) {
	g.t.Helper()
	if d.Deliver.Nats == nil {
		d.Deliver.Nats = &native.Config{}
	}
	if len(d.Subjects) == 0 {
		d.Subjects = []string{"events.t." + d.Name + ".>"}
	}
	e, err := g.r.Add(g.t.Context(), d)
	if err != nil {
		g.t.Fatal(err)
	}
	if e.NewKey == nil || !strings.HasPrefix(e.NewKey.Secret, "SU") {
		g.t.Fatalf("no key was made: %v", e.NewKey)
	}
	return e.NewKey.Secret
}

// publish stores events and gives their sequences.
func (g *rig) publish(subject string, ids ...string) (sequences []uint64) {
	g.t.Helper()
	w := g.broker.Begin()
	defer w.End()
	for _, id := range ids {
		e := event.Event{ID: id, Source: "/test", Type: "test"}
		h, body := e.Encode()
		ack, err := g.broker.JetStream().PublishMsg(g.t.Context(), &nats.Msg{Subject: subject, Header: h, Data: body})
		if err != nil {
			g.t.Fatal(err)
		}
		sequences = append(sequences, ack.Sequence)
	}
	if err := w.Durable(g.t.Context(), sequences[len(sequences)-1]); err != nil {
		g.t.Fatal(err)
	}
	return sequences
}

// client is a subscriber's own.
func client(t *testing.T, url, seed, name string) jetstream.Consumer {
	t.Helper()
	nc, err := nats.Connect(url, signIn(t, seed), nats.CustomInboxPrefix("_INBOX_"+name), nats.ReconnectWait(20*time.Millisecond), nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	c, err := js.Consumer(t.Context(), "EVENTS", name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func signIn(t *testing.T, seed string) nats.Option {
	t.Helper()
	pair, err := nkeys.FromSeed([]byte(seed))
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return nats.Nkey(public, pair.Sign)
}

// next takes n messages, which must come.
func next(t *testing.T, c jetstream.Consumer, n int) (list []jetstream.Msg) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); len(list) < n; {
		batch, err := c.Fetch(n-len(list), jetstream.FetchMaxWait(2*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		for m := range batch.Messages() {
			list = append(list, m)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d events came: %v", len(list), n, batch.Error())
		}
	}
	return list
}

func id(m jetstream.Msg) string { return m.Headers()["ce-id"][0] }

func (g *rig) wait(what string, done func() bool) {
	g.t.Helper()
	for deadline := time.Now().Add(40 * time.Second); !done(); {
		if time.Now().After(deadline) {
			g.t.Fatalf("timed out waiting for %s", what)
		}
		time.Sleep(20 * time.Millisecond) // sleep: polling with a deadline
	}
}

// reached waits until everything up to an event has its record.
func (g *rig) reached(name string, sequence uint64) {
	g.t.Helper()
	g.wait(fmt.Sprintf("%s to have its records up to %d", name, sequence), func() bool {
		all, err := native.Through(g.t.Context(), g.broker)
		return err == nil && all[name].Through >= sequence
	})
}

// records gives the outcome of each of a subscriber's records, by event.
func (g *rig) records(name string) map[uint64][]string {
	g.t.Helper()
	s, err := g.broker.JetStream().Stream(g.t.Context(), broker.StreamAttempts)
	if err != nil {
		g.t.Fatal(err)
	}
	all := map[uint64][]string{}
	for seq := uint64(1); seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(g.t.Context(), seq)
		if err != nil {
			g.t.Fatal(err)
		}
		list, err := deliver.ParseRecords(m.Data)
		if err != nil {
			g.t.Fatal(err)
		}
		for _, r := range list {
			if r.Subscriber == name {
				all[r.Sequence] = append(all[r.Sequence], strings.TrimSuffix(r.Outcome+" "+r.Cause, " "))
			}
		}
	}
	return all
}

// balanced wants the books to have no doubt.
func (g *rig) balanced(name string) books.Subscriber {
	g.t.Helper()
	var s books.Subscriber
	g.wait("the books of "+name, func() bool {
		r, err := g.books.Read(g.t.Context())
		if err != nil {
			g.t.Fatal(err)
		}
		for _, one := range r.Subscribers {
			if one.Name == name && one.State != books.StateDeleted {
				s = one
			}
		}
		return s.Settled
	})
	if s.Balance != 0 || len(s.Problems) > 0 {
		g.t.Errorf("the books of %s do not balance: %+v", name, s)
	}
	return s
}

// Acknowledged is delivered, whatever the order; refused and never acknowledged
// are dead letters with their cause; nothing is left out of the books.
func TestEveryEventHasItsRecord(t *testing.T) {
	b := brokertest.OpenClients(t, t.TempDir(), "127.0.0.1:0")
	g := open(t, b)
	seed := g.add(registry.Definition{Name: "own", Deliver: registry.Deliver{Nats: &native.Config{MaxDeliver: 2, AckWait: deliver.Duration(time.Second)}}})
	seq := g.publish("events.t.own.a.b", "e0", "e1", "e2", "e3", "e4")
	g.publish("events.t.other.a.b", "x")
	c := client(t, b.ClientsURL(), seed, "own")
	list := next(t, c, 5)
	// e0 is kept in hand: what comes after it is acknowledged and not recorded yet.
	for i, do := range []func() error{nil, list[1].Ack, func() error { return list[2].TermWithReason("no such order\n" + strings.Repeat("x", 2000)) }, nil, list[4].Ack} {
		if do != nil {
			if err := do(); err != nil {
				t.Fatalf("e%d: %v", i, err)
			}
		}
	}
	if s := g.balanced("own"); s.Matched != 5 || s.Pending != 5 || s.Delivered != 0 {
		t.Errorf("with the first event in hand: %+v", s)
	}
	// e3 is handed out a second time and not acknowledged then either.
	for _, m := range next(t, c, 2) {
		if id(m) == "e0" {
			if err := m.DoubleAck(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	// It is given up when the client asks for more.
	if m, err := c.Next(jetstream.FetchMaxWait(3 * time.Second)); err == nil {
		t.Errorf("%s came a third time", id(m))
	}
	g.reached("own", seq[4])
	got := g.records("own")
	for i, want := range []string{"delivered", "delivered", "dead-letter rejected", "dead-letter exhausted", "delivered"} {
		if len(got[seq[i]]) != 1 || got[seq[i]][0] != want {
			t.Errorf("e%d: %v, want %s", i, got[seq[i]], want)
		}
	}
	if s := g.balanced("own"); s.Delivered != 3 || s.DeadLetters != 2 || s.Pending != 0 || s.Matched != 5 {
		t.Errorf("the books: %+v", s)
	}
	for cause, want := range map[string]string{"rejected": "no such order", "exhausted": "handed out 2 times"} {
		s, err := b.JetStream().Stream(t.Context(), broker.StreamDeadLetters)
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.GetLastMsgForSubject(t.Context(), broker.DeadLetter("own", cause))
		if err != nil {
			t.Fatalf("%s: %v", cause, err)
		}
		reason := m.Header.Get(deliver.HeaderReason)
		if !strings.Contains(strings.ReplaceAll(reason, "%20", " "), want) || len(reason) > 3000 {
			t.Errorf("%s: reason %q", cause, reason)
		}
		if e, err := event.Decode(m.Header, m.Data); err != nil || e.Source != "/test" {
			t.Errorf("%s: the copy is %+v, %v", cause, e, err)
		}
	}
	// Nothing of the way there is left.
	s, err := b.JetStream().Stream(t.Context(), broker.StreamAdvisories)
	if err != nil {
		t.Fatal(err)
	}
	if n := s.CachedInfo().State.Msgs; n != 0 {
		t.Errorf("%d advisories are left", n)
	}
}

// What is not recorded is not trimmed, and says who holds it.
func TestHoldsWhatHasNoRecord(t *testing.T) {
	b := brokertest.OpenClients(t, t.TempDir(), "127.0.0.1:0")
	g := open(t, b)
	seed := g.add(registry.Definition{Name: "own"})
	g.publish("events.t.other.a.b", "x")
	seq := g.publish("events.t.own.a.b", "e0", "e1")
	got := func() uint64 {
		look, err := g.r.Look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return look.Positions[0].Got
	}
	c := client(t, b.ClientsURL(), seed, "own")
	list := next(t, c, 2)
	if at := got(); at != seq[0]-1 {
		t.Errorf("with both in hand it has got %d, want %d", at, seq[0]-1)
	}
	if err := list[1].DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	if at := got(); at != seq[0]-1 {
		t.Errorf("with the first in hand it has got %d, want %d", at, seq[0]-1)
	}
	if err := list[0].DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.reached("own", seq[1])
	last := g.publish("events.t.other.a.b", "y")
	if at := got(); at != last[0] {
		t.Errorf("with everything acknowledged it has got %d, want %d", at, last[0])
	}
}

// Pausing stops the server from handing out; resuming loses nothing.
func TestPause(t *testing.T) {
	b := brokertest.OpenClients(t, t.TempDir(), "127.0.0.1:0")
	g := open(t, b)
	seed := g.add(registry.Definition{Name: "own"})
	c := client(t, b.ClientsURL(), seed, "own")
	paused := func(want bool) {
		t.Helper()
		if _, err := g.r.SetPaused(t.Context(), "own", want); err != nil {
			t.Fatal(err)
		}
		g.wait("the pause", func() bool {
			k, err := b.JetStream().Consumer(t.Context(), broker.StreamEvents, "own")
			return err == nil && k.CachedInfo().Paused == want
		})
	}
	paused(true)
	seq := g.publish("events.t.own.a.b", "e0", "e1", "e2")
	if m, err := c.Next(jetstream.FetchMaxWait(time.Second)); err == nil {
		t.Fatalf("got %s while paused", id(m))
	}
	// A start of gridfan does not end it.
	g.stop()
	g = open(t, b)
	if m, err := c.Next(jetstream.FetchMaxWait(time.Second)); err == nil {
		t.Fatalf("got %s while paused, after a start", id(m))
	}
	paused(false)
	for _, m := range next(t, c, 3) {
		if err := m.Ack(); err != nil {
			t.Fatal(err)
		}
	}
	g.reached("own", seq[2])
	g.balanced("own")
}

// Other subjects hold for the events from then on, while the client goes on
// asking, and what waited is delivered.
func TestOtherSubjects(t *testing.T) {
	b := brokertest.OpenClients(t, t.TempDir(), "127.0.0.1:0")
	g := open(t, b)
	seed := g.add(registry.Definition{Name: "own", Subjects: []string{"events.t.one.>"}})
	g.publish("events.t.one.a.b", "one-1")
	g.publish("events.t.two.a.b", "two-1")
	c := client(t, b.ClientsURL(), seed, "own")
	e, err := g.r.Get(t.Context(), "own")
	if err != nil {
		t.Fatal(err)
	}
	d := e.Definition
	d.Subjects = []string{"events.t.two.>"}
	began := time.Now()
	asking := make(chan struct{})
	got := map[string]bool{}
	go func() {
		defer close(asking)
		for until := time.Now().Add(4 * time.Second); time.Now().Before(until); {
			m, err := c.Next(jetstream.FetchMaxWait(2 * time.Second))
			if err != nil {
				continue
			}
			got[id(m)] = true
			_ = m.Ack()
		}
	}()
	if _, _, err := g.r.Replace(t.Context(), d, 0); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("the change took %s although nobody has to stop", took)
	}
	g.publish("events.t.one.a.b", "one-2")
	last := g.publish("events.t.two.a.b", "two-2")
	<-asking
	if !got["one-1"] || !got["two-2"] {
		t.Errorf("got %v; want what waited of the old subjects and what came of the new ones", got)
	}
	g.reached("own", last[0])
	if s := g.balanced("own"); s.Matched != 2 || s.Delivered != 2 {
		t.Errorf("the books: %+v", s)
	}
}

// Beyond its limit the oldest go to the dead letters, also while they are in the
// client's hands; shed ones have a record.
func TestGivesUpItsBacklog(t *testing.T) {
	b := brokertest.OpenClients(t, t.TempDir(), "127.0.0.1:0")
	g := open(t, b)
	seed := g.add(registry.Definition{Name: "own"})
	seq := g.publish("events.t.own.a.b", "e0", "e1", "e2", "e3", "e4", "e5")
	c := client(t, b.ClientsURL(), seed, "own")
	list := next(t, c, 1)
	g.wait("e0 and e1 to be given up", func() bool {
		if !g.fleet.Expire("own", seq[1]) {
			t.Fatal("it has no worker")
		}
		all, err := native.Through(t.Context(), b)
		return err == nil && all["own"].Through >= seq[1]
	})
	g.fleet.Shed("own", seq[3])
	g.reached("own", seq[3])
	g.fleet.Shed("own", 0)
	if err := list[0].Ack(); err != nil { // too late
		t.Fatal(err)
	}
	g.wait("the consumer to go on behind", func() bool {
		k, err := b.JetStream().Consumer(t.Context(), broker.StreamEvents, "own")
		return err == nil && k.CachedInfo().NumPending == 2
	})
	for i, m := range next(t, c, 2) {
		if want := fmt.Sprint("e", 4+i); id(m) != want {
			t.Errorf("then came %s, want %s", id(m), want)
		}
		if err := m.Ack(); err != nil {
			t.Fatal(err)
		}
	}
	g.reached("own", seq[5])
	got := g.records("own")
	for i, want := range []string{"dead-letter backlog", "dead-letter backlog", "shed", "shed", "delivered", "delivered"} {
		if len(got[seq[i]]) != 1 || got[seq[i]][0] != want {
			t.Errorf("e%d: %v, want %s", i, got[seq[i]], want)
		}
	}
	if given := g.fleet.GivenUp()["own"]; given.Expired != 2 || given.Shed != 2 {
		t.Errorf("given up: %+v", given)
	}
	g.balanced("own")
}

// A deleted one leaves nothing, and one of its name is another.
func TestDelete(t *testing.T) {
	b := brokertest.OpenClients(t, t.TempDir(), "127.0.0.1:0")
	g := open(t, b)
	seed := g.add(registry.Definition{Name: "own"})
	g.publish("events.t.own.a.b", "e0")
	c := client(t, b.ClientsURL(), seed, "own")
	next(t, c, 1)
	if _, err := g.r.Delete(t.Context(), "own", false); !errors.Is(err, registry.ErrBacklog) {
		t.Errorf("deleted with an event in its client's hands: %v", err)
	}
	if _, err := g.r.Delete(t.Context(), "own", true); err != nil {
		t.Fatal(err)
	}
	g.wait("the key to open no longer", func() bool {
		nc, err := nats.Connect(b.ClientsURL(), signIn(t, seed))
		if err == nil {
			nc.Close()
		}
		return err != nil
	})
	if _, err := b.JetStream().Consumer(t.Context(), broker.StreamEvents, "own"); !errors.Is(err, jetstream.ErrConsumerNotFound) {
		t.Errorf("its consumer is left: %v", err)
	}
	if all, err := native.Through(t.Context(), b); err != nil || len(all) > 0 {
		t.Errorf("its place is left: %v, %v", all, err)
	}
	again := g.add(registry.Definition{Name: "own"})
	seq := g.publish("events.t.own.a.b", "e1")
	c = client(t, b.ClientsURL(), again, "own")
	m := next(t, c, 1)[0]
	if id(m) != "e1" {
		t.Errorf("the new one got %s", id(m))
	}
	if err := m.Ack(); err != nil {
		t.Fatal(err)
	}
	g.reached("own", seq[0])
	if s := g.balanced("own"); s.Delivered != 1 {
		t.Errorf("the books: %+v", s)
	}
}

// A new key opens at once, the old one for as long as it may, and the seed is kept
// nowhere.
func TestRotateKey(t *testing.T) {
	b := brokertest.OpenClients(t, t.TempDir(), "127.0.0.1:0")
	g := open(t, b)
	first := g.add(registry.Definition{Name: "own"})
	opens := func(seed string) bool {
		nc, err := nats.Connect(b.ClientsURL(), signIn(t, seed))
		if err == nil {
			nc.Close()
		}
		return err == nil
	}
	e, err := g.r.RotateKey(t.Context(), "own", -1)
	if err != nil {
		t.Fatal(err)
	}
	second := e.NewKey.Secret
	g.wait("the second key", func() bool { return opens(second) })
	if !opens(first) {
		t.Error("the first key ended at once")
	}
	if e, err = g.r.RotateKey(t.Context(), "own", 0); err != nil {
		t.Fatal(err)
	}
	third := e.NewKey.Secret
	g.wait("the third key", func() bool { return opens(third) })
	if opens(first) || opens(second) {
		t.Error("a key opens that ended")
	}
	kv, err := b.JetStream().KeyValue(t.Context(), broker.BucketSubscribers)
	if err != nil {
		t.Fatal(err)
	}
	history, err := kv.History(t.Context(), "own")
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range history {
		for _, seed := range []string{first, second, third} {
			if strings.Contains(string(u.Value()), seed) {
				t.Error("a seed is kept")
			}
		}
	}
}

// 3,000 events through a client that is cut off again and again while gridfan and
// the server stop and start on one store: each comes, and each has one record.
func TestNoneIsLostOverRestarts(t *testing.T) {
	dir := t.TempDir()
	b := brokertest.OpenClients(t, dir, "127.0.0.1:0")
	g := open(t, b)
	seed := g.add(registry.Definition{Name: "own", Deliver: registry.Deliver{Nats: &native.Config{AckWait: deliver.Duration(2 * time.Second), MaxDeliver: 100}}})
	url := b.ClientsURL()
	addr := strings.TrimPrefix(url, "nats://")

	nc, err := nats.Connect(url, signIn(t, seed), nats.CustomInboxPrefix("_INBOX_own"), nats.ReconnectWait(20*time.Millisecond), nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	var mu sync.Mutex
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			c, err := js.Consumer(ctx, "EVENTS", "own")
			if err != nil {
				time.Sleep(20 * time.Millisecond) // sleep: the server is away
				continue
			}
			batch, err := c.Fetch(50, jetstream.FetchMaxWait(time.Second))
			if err != nil {
				continue
			}
			for m := range batch.Messages() {
				mu.Lock()
				got[id(m)] = true
				mu.Unlock()
				_ = m.Ack()
			}
		}
	}()
	const rounds, each = 6, 500
	var last uint64
	for round := range rounds {
		for i := range each {
			last = g.publish("events.t.own.a.b", fmt.Sprintf("e%d-%d", round, i))[0]
		}
		g.stop()
		b.Close()
		b = brokertest.OpenClients(t, dir, addr)
		g = open(t, b)
	}
	g.reached("own", last)
	cancel()
	<-done
	if len(got) != rounds*each {
		t.Errorf("%d of %d events came", len(got), rounds*each)
	}
	records := g.records("own")
	if len(records) != rounds*each {
		t.Errorf("%d events have records, want %d", len(records), rounds*each)
	}
	for seq, list := range records {
		if len(list) != 1 || list[0] != "delivered" {
			t.Errorf("event %d: %v", seq, list)
		}
	}
	if s := g.balanced("own"); s.Delivered != rounds*each {
		t.Errorf("the books: %+v", s)
	}
}
