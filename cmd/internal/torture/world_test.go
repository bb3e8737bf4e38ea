//go:build torture && linux

package torture_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/quarantine"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/registry"
	"github.com/gridfan/gridfan/subscribers/webhook"
)

// everybody are the subscribers of most tests.
var everybody = []string{"fast", "slow", "flaky", "picky"}

// world is a gridfan with all that is around it, over as many starts as a test
// wants.
type world struct {
	t           testing.TB
	broker      string // of the configuration
	subscribers []string
	// misread: the mapping of the source shop is wrong, so that its events go
	// to quarantine.
	misread bool
	// trims: room is short, so events that everybody has may go.
	trims bool

	in   *inbox
	load *load
	g    *gridfan
	live map[string]time.Time // subscribers added through the API, and when

	ups []time.Duration // from the start to "gridfan is up"
}

// newWorld makes one whose store is in dir.
func newWorld(t testing.TB, dir string, subscribers ...string) *world {
	t.Helper()
	w := &world{
		t: t, subscribers: subscribers, live: map[string]time.Time{},
		broker: fmt.Sprintf("embedded: { dir: %q, listen: \"127.0.0.1:0\" }", filepath.Join(dir, "data")),
		in:     newInbox(t), load: newLoad(t),
	}
	t.Cleanup(func() {
		if t.Failed() && w.g != nil {
			t.Logf("the last lines of gridfan's log:\n%s", w.g.tail(40))
		}
	})
	return w
}

// retries never give up while a test runs.
var retries = "100ms, 200ms, 500ms" + strings.Repeat(", 1s", 90)

func (w *world) configuration() string {
	kind := map[bool]string{false: ".status", true: ".status | tonumber | tostring"}[w.misread]
	var b strings.Builder
	fmt.Fprintf(&b, `listen:
  public: { addr: "127.0.0.1:0" }
  admin: { addr: "127.0.0.1:0" }
broker:
  %s
storage: { maxBytes: 2GiB }
egress: { allow: [ 127.0.0.1 ] }
sources:
  fo: { kind: fno, push: { auth: none } }
  eg: { kind: eventgrid, push: { auth: none } }
  shop: { kind: custom, push: { auth: none }, mapping: { id: .orderId, type: %q } }
subscribers:
`, w.broker, kind)
	for _, name := range w.subscribers {
		fmt.Fprintf(&b, `  %s:
    subjects: "events.>"
    start: beginning
    deliver: { webhook: { url: "%s/%s", format: cloudevents-binary } }
    limits: { concurrency: 32 }
    retry: { schedule: [ %s ] }
    breaker: { failures: 20, openFor: 50ms, maxOpenFor: 200ms }
`, name, w.in.url, name, retries)
	}
	return b.String()
}

// begin starts gridfan and does not wait.
func (w *world) begin() *gridfan {
	w.t.Helper()
	file := filepath.Join(w.t.TempDir(), "gridfan.yaml")
	if err := os.WriteFile(file, []byte(w.configuration()), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return begin(w.t, file)
}

// launch starts gridfan, which may not succeed.
func (w *world) launch() *gridfan {
	w.t.Helper()
	g := w.begin()
	g.await()
	return g
}

// start starts gridfan and lets the senders find it.
func (w *world) start() {
	w.t.Helper()
	w.g = w.launch()
	if w.g.up == 0 {
		w.t.Fatalf("gridfan has not started, exit code %d:\n%s", w.g.cmd.ProcessState.ExitCode(), w.g.tail(20))
	}
	w.ups = append(w.ups, w.g.up)
	w.load.to.Store(&w.g.public)
}

// kill ends gridfan as kill -9 does.
func (w *world) kill() {
	w.g.kill()
	w.load.to.Store(nil)
}

// still wants the process that was started last to be alive.
func (w *world) still() {
	w.t.Helper()
	if !w.g.alive() {
		w.t.Fatalf("gridfan has ended with exit code %d", w.g.cmd.ProcessState.ExitCode())
	}
}

// books are what the streams say in the end.
type books struct {
	events   map[uint64]string // ids by sequence
	sequence map[string]uint64 // and the reverse
}

// settle ends the load, waits until everything is delivered, and then wants
// nothing lost, nothing stored twice, and books that are right.
func (w *world) settle() {
	w.t.Helper()
	w.load.stop()
	began := time.Now()
	w.redriveAll()
	w.g.drained()
	drained := time.Since(began)
	b := w.readEvents()
	w.checkAccepted(b)
	w.checkDelivered(b)
	w.checkRecords(b)
	w.checkQuarantine()
	slices.Sort(w.ups)
	refusals, why := w.load.refused("")
	w.t.Logf("%d events accepted and none lost, if nothing else is said; %d stored, %d deliveries made again, %d unreadable bodies in quarantine; delivered %v after the end of the load; up in %v, at most %v; %d times 503, slowest answer %v%s",
		w.load.count(), len(b.events), w.in.repeated(), len(w.load.quarantined), drained.Round(time.Millisecond),
		w.ups[len(w.ups)/2].Round(time.Millisecond), w.ups[len(w.ups)-1].Round(time.Millisecond), refusals, w.load.slowest.Round(time.Millisecond), why)
}

// redriveAll brings the orders out of quarantine that were misread.
func (w *world) redriveAll() {
	w.t.Helper()
	waitFor(w.t, "no order is in quarantine", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		list, err := w.g.admin.Quarantine(ctx, "shop", 0, 1)
		if err != nil {
			w.t.Logf("list the quarantine: %v", err)
			return false
		}
		if len(list.Entries) == 0 {
			return true
		}
		if res, err := w.g.admin.Redrive(ctx, quarantine.Selection{Source: "shop"}, false); err != nil || res.Problem != "" {
			w.t.Logf("redrive: %v, %+v", err, res)
		}
		return false
	})
}

func (w *world) readEvents() books {
	w.t.Helper()
	b := books{events: map[uint64]string{}, sequence: map[string]uint64{}}
	w.g.read(broker.StreamEvents, func(seq uint64, header nats.Header, _ []byte) {
		id := eventID(w.t, header)
		if other, twice := b.sequence[id]; twice {
			w.t.Errorf("%s is stored twice, at %d and %d", id, other, seq)
		}
		b.events[seq], b.sequence[id] = id, seq
	})
	return b
}

func eventID(t testing.TB, header nats.Header) string {
	t.Helper()
	id, err := url.PathUnescape(header.Get("ce-id"))
	if err != nil || id == "" {
		t.Errorf("a message without a readable id: %v", header)
	}
	return id
}

// some cuts a long list of what is wrong.
func some(list []string) string {
	slices.Sort(list)
	if len(list) > 10 {
		return fmt.Sprintf("%v and %d more", list[:10], len(list)-10)
	}
	return fmt.Sprint(list)
}

func (w *world) checkAccepted(b books) {
	w.t.Helper()
	var lost []string
	for id := range w.load.accepted {
		if b.sequence[id] == 0 && !(w.trims && w.everybodyHas(id)) {
			lost = append(lost, id)
		}
	}
	if len(lost) > 0 {
		w.t.Errorf("LOST: %d of %d accepted events are not stored: %s", len(lost), len(w.load.accepted), some(lost))
	}
}

func (w *world) everybodyHas(id string) bool {
	for _, name := range w.subscribers {
		if w.in.has(name, id) == 0 && !(name == "picky" && tenth(id, 1)) {
			return false
		}
	}
	return true
}

// checkDelivered wants every event that is stored at every subscriber, or among
// its dead letters.
func (w *world) checkDelivered(b books) {
	w.t.Helper()
	dead := map[string]int{}
	w.g.read(broker.StreamDeadLetters, func(_ uint64, header nats.Header, _ []byte) {
		id := eventID(w.t, header)
		if name := header.Get(deliver.HeaderSubscriber); name != "picky" {
			w.t.Errorf("%s is a dead letter of %s: %s", id, name, header.Get(deliver.HeaderReason))
			return
		}
		dead[id]++
		if _, stored := b.sequence[id]; !stored && w.trims {
			return
		}
		if got, want := header.Get(deliver.HeaderOriginSequence), strconv.FormatUint(b.sequence[id], 10); got != want {
			w.t.Errorf("the dead letter of %s says that it is event %s, but it is %s", id, got, want)
		}
	})
	for _, name := range w.subscribers {
		var missing []string
		for _, id := range b.events {
			if name == "picky" && tenth(id, 1) {
				if dead[id] != 1 {
					missing = append(missing, fmt.Sprintf("%s (%d dead letters)", id, dead[id]))
				}
			} else if w.in.has(name, id) == 0 {
				missing = append(missing, id)
			}
		}
		if len(missing) > 0 {
			w.t.Errorf("LOST: %s has not got %d of %d events: %s", name, len(missing), len(b.events), some(missing))
		}
	}
	for name, added := range w.live {
		var missing []string
		for id, sent := range w.load.accepted {
			if strings.HasPrefix(id, "F-") && sent.After(added) && w.in.has(name, id) == 0 {
				missing = append(missing, id)
			}
		}
		if len(missing) > 0 {
			w.t.Errorf("LOST: %s, added through the API, has not got %d events that were sent after it was added: %s", name, len(missing), some(missing))
		}
	}
}

// checkRecords wants one final record for each event and subscriber, and none
// that speaks of another event.
func (w *world) checkRecords(b books) {
	w.t.Helper()
	type delivery struct {
		subscriber string
		sequence   uint64
	}
	final := map[delivery][]string{}
	var mixed []string
	w.g.read(broker.StreamAttempts, func(_ uint64, _ nats.Header, data []byte) {
		records, err := deliver.ParseRecords(data)
		if err != nil {
			w.t.Errorf("a block of records: %v", err)
		}
		for _, r := range records {
			if id, stored := b.events[r.Sequence]; id != r.ID && (stored || !w.trims) {
				mixed = append(mixed, fmt.Sprintf("%s at %d is %q", r.ID, r.Sequence, b.events[r.Sequence]))
			}
			if r.Outcome != deliver.RecordRetry {
				d := delivery{r.Subscriber, r.Sequence}
				final[d] = append(final[d], fmt.Sprintf("%s hop %d attempt %d", r.Outcome, r.Hop, r.Attempts))
			}
		}
	})
	if len(mixed) > 0 {
		w.t.Errorf("%d records speak of another event than the stream: %s", len(mixed), some(mixed))
	}
	var wrong []string
	for _, name := range w.subscribers {
		for seq, id := range b.events {
			d := delivery{name, seq}
			if len(final[d]) == 0 {
				wrong = append(wrong, fmt.Sprintf("none of %s for %s", id, name))
			}
		}
	}
	for d, list := range final {
		if len(list) > 1 {
			wrong = append(wrong, fmt.Sprintf("of %s for %s: %q", b.events[d.sequence], d.subscriber, list))
		}
	}
	if len(wrong) > 0 {
		w.t.Errorf("%d deliveries have not one final record: %s", len(wrong), some(wrong))
	}
}

// checkQuarantine wants each body there that nobody can read.
func (w *world) checkQuarantine() {
	w.t.Helper()
	held := map[string]int{}
	w.g.read(broker.StreamQuarantine, func(_ uint64, _ nats.Header, data []byte) { held[string(data)]++ })
	var wrong []string
	for body := range w.load.quarantined {
		if held[body] != 1 {
			wrong = append(wrong, fmt.Sprintf("%s (%d times)", body, held[body]))
		}
	}
	if len(wrong) > 0 {
		w.t.Errorf("LOST: %d of %d unreadable bodies are not in quarantine once: %s", len(wrong), len(w.load.quarantined), some(wrong))
	}
}

// operator makes changes through the admin API while gridfan crashes, and
// remembers what it was answered.
type operator struct {
	w      *world
	next   int
	known  map[string]bool // whether a subscriber must be there; without an answer there is no entry
	paused *bool           // whether slow must be; nil without an answer
}

// work orders things until ctx ends.
func (o *operator) work(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		switch i % 4 {
		case 0:
			o.subscribe(ctx)
		case 1, 3:
			o.pause(ctx, i%4 == 1)
		case 2:
			// What becomes of the events is seen in the end.
			_, _ = o.w.g.admin.Redrive(ctx, quarantine.Selection{Source: "shop"}, false)
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// subscribe adds one subscriber and deletes the one before the last.
func (o *operator) subscribe(ctx context.Context) {
	name := fmt.Sprintf("live-%d", o.next)
	o.next++
	_, err := o.w.g.admin.Subscribe(ctx, registry.Definition{
		Name: name, Subjects: []string{"events.fno.>"},
		Deliver: registry.Deliver{Webhook: &webhook.Config{URL: o.w.in.url + "/" + name, Format: "cloudevents-binary"}},
	})
	if err == nil {
		o.known[name] = true
		o.w.live[name] = time.Now()
	}
	old := fmt.Sprintf("live-%d", o.next-3)
	if _, there := o.known[old]; !there {
		return
	}
	delete(o.known, old)
	delete(o.w.live, old)
	if _, err := o.w.g.admin.Delete(ctx, old, true); err == nil {
		o.known[old] = false
	}
}

func (o *operator) pause(ctx context.Context, paused bool) {
	o.paused = nil
	if s, err := o.w.g.admin.SetPaused(ctx, "slow", paused); err == nil && (s.State == admin.Paused) == paused {
		o.paused = &paused
	}
}

// check wants everything as it was answered.
func (o *operator) check() {
	o.w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	list, err := o.w.g.admin.Subscribers(ctx)
	if err != nil {
		o.w.t.Fatalf("list the subscribers after a crash: %v", err)
	}
	there := map[string]bool{}
	for _, s := range list {
		there[s.Definition.Name] = true
		if s.Definition.Name == "slow" && o.paused != nil && (s.State == admin.Paused) != *o.paused {
			o.w.t.Errorf("slow is %s after a crash, though paused=%v was answered", s.State, *o.paused)
		}
	}
	for name, want := range o.known {
		if there[name] != want {
			o.w.t.Errorf("subscriber %s: there is %v, want %v, as was answered before the crash", name, there[name], want)
		}
	}
}

// leave undoes what would keep a backlog for ever.
func (o *operator) leave() {
	o.w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := o.w.g.admin.SetPaused(ctx, "slow", false)
	list, listErr := o.w.g.admin.Subscribers(ctx)
	if err := errors.Join(err, listErr); err != nil {
		o.w.t.Fatal(err)
	}
	for _, s := range list {
		name := s.Definition.Name
		if _, kept := o.w.live[name]; kept || slices.Contains(o.w.subscribers, name) {
			continue
		}
		// Nobody was told that it is there.
		if _, err := o.w.g.admin.Delete(ctx, name, true); err != nil {
			o.w.t.Fatal(err)
		}
	}
}
