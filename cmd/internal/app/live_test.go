package app_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// load accepts events until it is stopped.
type load struct {
	stop    chan struct{}
	running sync.WaitGroup

	mu       sync.Mutex // guards all below
	accepted []string
	posting  map[string]bool // on their way: stored or not, but not answered
}

// begin starts posting from several senders.
func (g *gridfan) begin(prefix string) *load {
	l := &load{stop: make(chan struct{}), posting: map[string]bool{}}
	addr := g.app.PublicAddr()
	for s := range 4 {
		l.running.Go(func() {
			pace := time.NewTicker(10 * time.Millisecond)
			defer pace.Stop()
			for n := 0; ; n++ {
				select {
				case <-l.stop:
					return
				case <-pace.C:
				}
				id := fmt.Sprintf("%s-%d-%d", prefix, s, n)
				l.mu.Lock()
				l.posting[id] = true
				l.mu.Unlock()
				a, err := send(addr, "fo", nil, businessEvent(id))
				if err != nil || a.status != http.StatusOK {
					g.t.Errorf("event %s: HTTP %d %s, %v", id, a.status, a.body, err)
					return
				}
				l.mu.Lock()
				delete(l.posting, id)
				l.accepted = append(l.accepted, id)
				l.mu.Unlock()
			}
		})
	}
	return l
}

// count tells how many are accepted.
func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.accepted)
}

// more waits until n more are accepted.
func (l *load) more(t testing.TB, n int) {
	t.Helper()
	want := l.count() + n
	waitFor(t, "more events are accepted", func() bool { return l.count() >= want })
}

// end stops posting and gives all ids that were accepted.
func (l *load) end() []string {
	close(l.stop)
	l.running.Wait()
	return l.accepted
}

func definition(name, url string) registry.Definition {
	return registry.Definition{
		Name: name, Subjects: []string{"events.>"},
		Deliver: registry.Deliver{Webhook: &webhook.Config{URL: url + "/" + name}},
	}
}

// problemCode gives the stable code of an error of the admin API.
func problemCode(err error) string {
	p, _ := errors.AsType[*admin.Problem](err)
	if p == nil {
		return ""
	}
	return p.Code
}

// TestSubscribeUnderLoad adds subscribers by subject while events pour in.
func TestSubscribeUnderLoad(t *testing.T) {
	ctx := t.Context()
	in := newInbox(t)
	g := start(t, sources)
	l := g.begin("L")
	l.more(t, 30)

	before := l.count()
	if _, err := g.admin.Subscribe(ctx, definition("late", in.url)); err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	after, posting := len(l.accepted), maps.Clone(l.posting)
	l.mu.Unlock()
	all := definition("all", in.url)
	all.Start = registry.Beginning
	if _, err := g.admin.Subscribe(ctx, all); err != nil {
		t.Fatal(err)
	}
	// The same once more changes nothing; another under its name is refused.
	if _, err := g.admin.Subscribe(ctx, all); err != nil {
		t.Errorf("the same definition again: %v", err)
	}
	other := all
	other.Subjects = []string{"events.fno.>"}
	if _, err := g.admin.Subscribe(ctx, other); problemCode(err) != "subscriber-exists" {
		t.Errorf("another definition: %v", err)
	}
	l.more(t, 30)

	// While one is paused nothing comes; afterwards everything.
	s, err := g.admin.SetPaused(ctx, "late", true)
	if err != nil || s.State != admin.Paused {
		t.Fatalf("pause: state %v, %v", s, err)
	}
	quiet(t, in, "late")
	had := len(in.of("late"))
	l.more(t, 30)
	if got := len(in.of("late")); got != had {
		t.Errorf("%d events came while late was paused", got-had)
	}
	if s, err = g.admin.Subscriber(ctx, "late"); err != nil || s.Backlog.Pending == 0 {
		t.Errorf("paused: backlog %+v, %v", s.Backlog, err)
	}
	if s, err = g.admin.SetPaused(ctx, "late", false); err != nil || s.State != admin.Active {
		t.Fatalf("resume: state %v, %v", s, err)
	}

	accepted := l.end()
	in.wantOnce(t, "all", accepted)
	// What was on its way while the call ran may be on either side: it can be stored
	// before the call and answered after it.
	wanted := slices.DeleteFunc(slices.Clone(accepted[after:]), func(id string) bool { return posting[id] })
	in.wantOnce(t, "late", wanted)
	early := in.counts("late")
	for _, id := range accepted[:before] {
		if early[id] > 0 {
			t.Errorf("late got %s, which was accepted before it was added", id)
		}
	}

	// A restart keeps both, and nothing comes twice.
	g.drained()
	g.restart(sources)
	more := names("M", 10)
	g.accept(more...)
	in.wantOnce(t, "all", append(accepted, more...))
	in.wantOnce(t, "late", append(wanted, more...))

	// One with a backlog is deleted only by who says so.
	g.drained()
	if _, err := g.admin.SetPaused(ctx, "all", true); err != nil {
		t.Fatal(err)
	}
	g.accept(names("LEFT", 3)...)
	if _, err := g.admin.Delete(ctx, "all", false); problemCode(err) != "backlog" {
		t.Errorf("delete with a backlog: %v", err)
	}
	d, err := g.admin.Delete(ctx, "all", true)
	if err != nil || d.Discarded != (registry.Backlog{Pending: 3}) {
		t.Errorf("discarded %+v, %v; want 3 pending", d, err)
	}
	if _, err := g.admin.Subscriber(ctx, "all"); problemCode(err) != "no-such-subscriber" {
		t.Errorf("after the deletion: %v", err)
	}
	in.wantAll(t, "late", names("LEFT", 3))
	if got := in.counts("all")["LEFT-0"]; got != 0 {
		t.Error("the deleted one got an event of its discarded backlog")
	}
}

// quiet waits until what is in flight to a subscriber has arrived.
func quiet(t testing.TB, in *inbox, subscriber string) {
	t.Helper()
	for n := -1; n != len(in.of(subscriber)); {
		n = len(in.of(subscriber))
		time.Sleep(300 * time.Millisecond) // sleep: to see that nothing more comes
	}
}

// TestFileDeclared takes a subscriber out of the file and puts it back.
func TestFileDeclared(t *testing.T) {
	ctx := t.Context()
	in := newInbox(t)
	declared := "subscribers:\n" + subscriber("filed", in.url+"/filed", "")
	g := start(t, sources, declared)
	g.accept(names("A", 3)...)
	in.wantOnce(t, "filed", names("A", 3))
	g.drained()

	for what, err := range map[string]error{
		"change": second(g.admin.Subscribe(ctx, definition("filed", in.url))),
		"delete": second(g.admin.Delete(ctx, "filed", true)),
	} {
		p, _ := errors.AsType[*admin.Problem](err)
		if p == nil || p.Status != http.StatusConflict || p.Code != "file-declared" {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Its run-time state is nobody's file.
	if s, err := g.admin.SetPaused(ctx, "filed", true); err != nil || s.State != admin.Paused {
		t.Errorf("pause: %v", err)
	}
	if s, err := g.admin.SetPaused(ctx, "filed", false); err != nil || s.State != admin.Active {
		t.Errorf("resume: %v", err)
	}

	// No longer declared: parked, with what comes kept for it.
	g.restart(sources)
	g.accept(names("B", 5)...)
	s, err := g.admin.Subscriber(ctx, "filed")
	if err != nil {
		t.Fatal(err)
	}
	if s.State != admin.Parked || s.Backlog != (registry.Backlog{Pending: 5}) || s.Breaker != nil {
		t.Errorf("parked: state %s, backlog %+v, breaker %v", s.State, s.Backlog, s.Breaker)
	}
	if got := len(in.of("filed")); got != 3 {
		t.Errorf("parked, it got %d events", got-3)
	}

	// Declared again: it goes on where it was.
	g.restart(sources, declared)
	in.wantOnce(t, "filed", append(names("A", 3), names("B", 5)...))
	if s, err := g.admin.Subscriber(ctx, "filed"); err != nil || s.State != admin.Active {
		t.Errorf("declared again: %+v, %v", s, err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestNATSClients has clients of the nats CLI's kind beside gridfan: what they
// read and keep is theirs.
func TestNATSClients(t *testing.T) {
	ctx := t.Context()
	in := newInbox(t)
	parts := "subscribers:\n" + subscriber("web", in.url+"/web", "")
	g := start(t, sources, parts)
	nc, js := g.nats()
	core, err := nc.SubscribeSync("events.fno.*.usmf.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	theirs, err := js.CreateConsumer(ctx, broker.StreamEvents, jetstream.ConsumerConfig{
		Durable: "theirs", AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: "events.fno.>", Description: "of somebody else", AckWait: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	g.accept(names("A", 5)...)
	for range 5 {
		m, err := core.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		if m.Subject != "events.fno.fo.usmf.PurchaseOrderConfirmed" || m.Header.Get("ce-type") != "PurchaseOrderConfirmedBusinessEvent" {
			t.Errorf("a core subscription got %s %v", m.Subject, m.Header)
		}
	}
	// It reads three and acks two of them.
	if d := cmp.Diff([]string{"A-0", "A-1", "A-2"}, fetch(ctx, t, theirs, 3, 2)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	in.wantOnce(t, "web", names("A", 5))

	g.restart(sources, parts)
	_, js = g.nats()
	if theirs, err = js.Consumer(ctx, broker.StreamEvents, "theirs"); err != nil {
		t.Fatalf("the other client's consumer: %v", err)
	}
	if got := theirs.CachedInfo().Config.Description; got != "of somebody else" {
		t.Errorf("the other client's consumer was changed: %q", got)
	}
	got := map[string]bool{}
	for _, id := range fetch(ctx, t, theirs, 3, 3) {
		got[id] = true
	}
	if d := cmp.Diff(map[string]bool{"A-2": true, "A-3": true, "A-4": true}, got); d != "" {
		t.Errorf("after the restart (-want +got):\n%s", d)
	}
	// It is no subscriber.
	list, err := g.admin.Subscribers(ctx)
	if err != nil || len(list) != 1 {
		t.Errorf("subscribers: %v, %v", list, err)
	}
}

// fetch reads n events and acks the first of them.
func fetch(ctx context.Context, t *testing.T, c jetstream.Consumer, n, acks int) []string {
	t.Helper()
	var ids []string
	for len(ids) < n {
		m, err := c.Next(jetstream.FetchMaxWait(patience))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, m.Headers().Get("ce-id"))
		if len(ids) <= acks {
			if err := m.DoubleAck(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	return ids
}
