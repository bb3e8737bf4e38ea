package poll

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
)

// published gives the ids of all events in the stream, in order.
func published(t testing.TB, b *broker.Broker) (ids []string) {
	t.Helper()
	s, err := b.JetStream().Stream(t.Context(), broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= s.CachedInfo().State.LastSeq; i++ {
		m, err := s.GetMsg(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, m.Header.Get("ce-id"))
	}
	return ids
}

func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !done(); {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
		time.Sleep(5 * time.Millisecond) // sleep: polling with a deadline
	}
}

func newPublisher(t testing.TB, b *broker.Broker) *publish.Publisher {
	t.Helper()
	cfg := publish.Config{}
	if err := cfg.Dedup.Validate(); err != nil {
		t.Fatal(err)
	}
	p, err := publish.New(t.Context(), b, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// startPoller begins to poll sources on a broker.
func startPoller(t testing.TB, b *broker.Broker, pub func(context.Context, publish.Origin, []event.Result) ([]publish.Status, error), sources ...Source) *Poller {
	t.Helper()
	p := New(Parts{Broker: b, Publish: pub, Metrics: NewMetrics(prometheus.NewRegistry())})
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(context.Background()) })
	p.Apply(sources)
	return p
}

func fast(c *Config) { c.Every = Every{Min: leastInterval, Max: leastInterval} }

func TestOnTheBroker(t *testing.T) {
	b := brokertest.New(t)
	pub := newPublisher(t, b)
	tab := newTable("a", 300)
	p := startPoller(t, b, pub.Publish, tab.source(fast))
	waitFor(t, "the baseline", func() bool { return p.only(t).State == Polling })
	tab.write("k00001")
	tab.remove("k00002")
	waitFor(t, "two changes", func() bool { return p.only(t).Published == 2 })
	if d := cmp.Diff([]string{"k00001@301", "k00002@deleted"}, published(t, b)); d != "" {
		t.Error(d)
	}
	// What is known goes with the source to the next process.
	p.Stop(context.Background())
	tab.write("k00003")
	tab.remove("k00004")
	tab.forget()
	q := startPoller(t, b, pub.Publish, tab.source(fast))
	waitFor(t, "the resync", func() bool { st := q.only(t); return st.State == Polling && st.Published == 2 })
	if d := cmp.Diff([]string{"k00003@303", "k00004@deleted"}, published(t, b)[2:]); d != "" {
		t.Error(d)
	}
}

// Two routers on one broker, whose tables are of one identity: when one is told to wait,
// the other does not ask either, and a third one that starts in that time does not.
func TestRetryAfterOfAnother(t *testing.T) {
	b := brokertest.New(t)
	in := &inbox{}
	var until atomic.Int64 // the end of the Retry-After, in Unix nanoseconds
	var early atomic.Int32
	var tell atomic.Bool
	guarded := func(name string) *table {
		tab := newTable(name, 5)
		tab.answer = func(int) error {
			if end := until.Load(); time.Now().UnixNano() < end {
				early.Add(1)
			} else if name == "a" && tell.Swap(false) {
				until.Store(time.Now().Add(4 * time.Second).UnixNano())
				return &Throttled{Status: 429, After: 4 * time.Second}
			}
			return nil
		}
		return tab
	}
	source := func(name string) Source {
		return guarded(name).source(func(c *Config) { c.Identity, c.Every = "user", Every{time.Hour, time.Hour} })
	}
	p := startPoller(t, b, in.Publish, source("a"))
	q := startPoller(t, b, in.Publish, source("b"))
	waitFor(t, "both have polled", func() bool { return p.only(t).State == Polling && q.only(t).State == Polling })
	tell.Store(true)
	if err := p.PollNow(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "one is told to wait", func() bool { return p.only(t).State == HeldOff })
	r := startPoller(t, b, in.Publish, source("c"))
	if err := q.PollNow(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the others hear of it", func() bool { return q.only(t).State == HeldOff && r.only(t).State == HeldOff })
	if err := p.PollNow(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "all ask again", func() bool {
		return p.only(t).Polls >= 2 && q.only(t).Polls >= 2 && r.only(t).Polls >= 1
	})
	if n := early.Load(); n > 0 {
		t.Errorf("%d requests before the Retry-After had ended", n)
	}
	if st := q.only(t); st.Throttles != 0 || st.Lost == 0 {
		t.Errorf("%+v", st)
	}
}

func TestKnownRowsAreTidiedUp(t *testing.T) {
	b := brokertest.New(t)
	in := &inbox{}
	tab := newTable("a", 200)
	p := startPoller(t, b, in.Publish, tab.source(fast))
	waitFor(t, "the baseline", func() bool { return p.only(t).State == Polling })
	s, err := b.JetStream().Stream(t.Context(), broker.StreamKnown)
	if err != nil {
		t.Fatal(err)
	}
	use := func() uint64 {
		info, err := s.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return info.State.Bytes
	}
	most := uint64(0)
	for i := range 3000 {
		tab.write(fmt.Sprintf("k%05d", i%150))
		if i%100 == 0 {
			n := int64(i)
			waitFor(t, "changes", func() bool { return p.only(t).Rows > n })
			most = max(most, use())
		}
	}
	waitFor(t, "all changes", func() bool { return p.only(t).Rows >= 3200 })
	waitFor(t, "tidying up", func() bool { return use() < most })
	// Nothing was forgotten in it.
	tab.remove("k00199") // not written since the baseline
	tab.remove("k00000")
	tab.forget()
	in.take()
	waitFor(t, "the resync", func() bool { st := p.only(t); return st.State == Polling && st.Known == 198 })
	if d := cmp.Diff([]string{"k00000@deleted", "k00199@deleted"}, in.take()); d != "" {
		t.Error(d)
	}
}

func TestNoRoomForKnownRows(t *testing.T) {
	b := brokertest.OpenSmall(t, t.TempDir())
	in := &inbox{}
	tab := newTable("a", 0)
	tab.pageSize = 5000
	for i := range 15_000 { // 1.7 MB of entries, and there are 1.3 for all
		tab.write(fmt.Sprintf("%0100d", i))
	}
	p := startPoller(t, b, in.Publish, tab.source(fast))
	waitFor(t, "the baseline", func() bool { return p.only(t).State == Polling })
	if st := p.only(t); st.Known != -1 {
		t.Errorf("%+v", st)
	}
	tab.write("x")
	waitFor(t, "a change", func() bool { return p.only(t).Published == 1 })
	tab.forget()
	waitFor(t, "the question", func() bool { return p.only(t).State == Unconfirmed })
	if st := p.only(t); !strings.Contains(st.Says, "too many to be compared") {
		t.Errorf("%q", st.Says)
	}
	if err := p.Baseline(t.Context(), "a", Silent); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a new baseline", func() bool { return p.only(t).State == Polling })
	tab.write("y")
	waitFor(t, "another change", func() bool { return p.only(t).Published == 2 })
}

// crash is a keeper and a Publish that end the process, as far as a test can, before
// or after a step.
type crash struct {
	keeper
	inner func(context.Context, publish.Origin, []event.Result) ([]publish.Status, error)
	left  atomic.Int64 // steps to go, two for each call
	die   func()
}

var errCrashed = errors.New("crashed")

// at says whether the process ends here, or has ended.
func (c *crash) at() bool {
	n := c.left.Add(-1)
	if n == 0 {
		c.die()
	}
	return n <= 0
}

func (c *crash) lease(ctx context.Context, source string, _ time.Duration) (held, error) {
	// Its own; that leases work is another test's matter.
	return newMemory().lease(ctx, source, 0)
}

func (c *crash) save(ctx context.Context, source string, cp checkpoint, revision uint64) (uint64, error) {
	if c.at() {
		return 0, errCrashed
	}
	revision, err := c.keeper.save(ctx, source, cp, revision)
	if c.at() {
		return 0, errCrashed
	}
	return revision, err
}

func (c *crash) remember(ctx context.Context, source string, block []byte, behind uint64) (uint64, error) {
	if c.at() {
		return 0, errCrashed
	}
	sequence, err := c.keeper.remember(ctx, source, block, behind)
	if c.at() {
		return 0, errCrashed
	}
	return sequence, err
}

func (c *crash) forget(ctx context.Context, source string, before uint64) error {
	if c.at() {
		return errCrashed
	}
	return c.keeper.forget(ctx, source, before)
}

func (c *crash) Publish(ctx context.Context, o publish.Origin, r []event.Result) ([]publish.Status, error) {
	if c.at() {
		return nil, errCrashed
	}
	statuses, err := c.inner(ctx, o, r)
	if c.at() {
		return nil, errCrashed
	}
	return statuses, err
}

// TestCrashAtEachStep ends the process before and after each write, in all phases, and
// wants the stream to have each change once.
func TestCrashAtEachStep(t *testing.T) {
	b := brokertest.New(t)
	pub := newPublisher(t, b)
	k, err := openKeeper(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	for at := int64(1); ; at++ {
		name := fmt.Sprintf("s%d", at)
		tab := newTable(name, 0)
		tab.pageSize = 4
		key := func(i int) string { return fmt.Sprintf("%s-%d", name, i) }
		for i := range 10 {
			tab.write(key(i))
		}
		src := tab.source(fast)
		src.Pages = 100
		crashed := make(chan struct{})
		run := func(c *crash) (*Poller, func()) {
			p := New(Parts{Broker: b, Publish: c.Publish})
			p.keeper = c
			p.Apply([]Source{src})
			return p, sync.OnceFunc(func() { p.kill(); p.Stop(context.Background()) })
		}
		c := &crash{keeper: k, inner: pub.Publish, die: sync.OnceFunc(func() { close(crashed) })}
		c.left.Store(at)
		p, stop := run(c)
		// next goes on with another process once this one has crashed.
		next := func() {
			stop()
			c = &crash{keeper: k, inner: pub.Publish, die: func() {}}
			c.left.Store(1 << 40)
			p, stop = run(c)
		}
		survived := true
		await := func(what string, done func(st Status) bool) {
			waitFor(t, fmt.Sprintf("%s (crash at %d)", what, at), func() bool {
				select {
				case <-crashed:
					crashed, survived = nil, false
					next()
				default:
				}
				return done(p.only(t))
			})
		}
		load := func() checkpoint {
			cp, _, err := k.load(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			return cp
		}
		await("the baseline", func(Status) bool { return load().Phase == phaseChanges })
		for i := range 6 {
			tab.write(key(i))
		}
		tab.remove(key(9))
		var log place
		caughtUp := func(Status) bool {
			return json.Unmarshal(load().Cursor, &log) == nil && log.From == 17
		}
		await("changes", caughtUp)
		tab.mu.Lock()
		tab.log = append(tab.log, "")
		tab.oldest = len(tab.log)
		tab.log = append(tab.log, key(0), "new") // in one moment with the forgetting
		tab.rows[key(0)], tab.rows["new-"+name] = version{19, time.Now()}, version{20, time.Now()}
		tab.log[len(tab.log)-1] = "new-" + name
		delete(tab.rows, key(1))
		tab.mu.Unlock()
		await("the resync", func(Status) bool {
			return json.Unmarshal(load().Cursor, &log) == nil && log.From == 20 && load().Phase == phaseChanges
		})
		stop()
		want := []string{key(9) + "@deleted", key(0) + "@19", "new-" + name + "@20", key(1) + "@deleted"}
		for i := range 6 {
			want = append(want, fmt.Sprintf("%s@%d", key(i), 11+i))
		}
		var got []string
		for _, id := range published(t, b) {
			if strings.Contains(id, name+"-") || strings.Contains(id, "-"+name+"@") {
				got = append(got, id)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("crash at %d (-want +got):\n%s", at, d)
		}
		if survived {
			if at < 20 {
				t.Errorf("only %d steps", at)
			}
			return
		}
	}
}

func TestALateWriterIsFencedOff(t *testing.T) {
	b := brokertest.New(t)
	k, err := openKeeper(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	ctx := t.Context()
	rev, err := k.save(ctx, "a", checkpoint{Layout: layout, Holder: "one"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.save(ctx, "a", checkpoint{}, 0); !errors.Is(err, errFenced) {
		t.Errorf("made twice: %v", err)
	}
	seq, err := k.remember(ctx, "a", appendEntry(nil, "k", 1), 0)
	if err != nil {
		t.Fatal(err)
	}
	// Another one takes over.
	if _, err := k.save(ctx, "a", checkpoint{Layout: layout, Holder: "two"}, rev); err != nil {
		t.Fatal(err)
	}
	if _, err := k.remember(ctx, "a", appendEntry(nil, "k", 2), seq); err != nil {
		t.Fatal(err)
	}
	if _, err := k.save(ctx, "a", checkpoint{Holder: "one"}, rev); !errors.Is(err, errFenced) {
		t.Errorf("a late checkpoint: %v", err)
	}
	if _, err := k.remember(ctx, "a", appendEntry(nil, "k", 3), seq); !errors.Is(err, errFenced) {
		t.Errorf("a late block: %v", err)
	}
	if _, err := k.save(ctx, "new", checkpoint{Layout: layout + 1}, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := k.load(ctx, "new"); err == nil || !strings.Contains(err.Error(), "newer gridfan") {
		t.Errorf("a newer checkpoint: %v", err)
	}
}

func TestCommandsReachTheHolder(t *testing.T) {
	s := brokertest.NewServer(t)
	in := &inbox{}
	tab := newTable("a", 10)
	slow := func(c *Config) { c.Every = Every{Min: time.Hour, Max: time.Hour} }
	one := startPoller(t, s.Connect(), in.Publish, tab.source(slow))
	waitFor(t, "the baseline", func() bool { st := one.only(t); return st.State == Polling && st.Polls == 1 })
	two := startPoller(t, s.Connect(), in.Publish, tab.source(slow))
	waitFor(t, "its status", func() bool {
		all := two.Status(t.Context())
		return len(all) == 1 && all[0].State == Polling && !all[0].Here && all[0].Holder == broker.Instance() && all[0].Known == 10
	})
	tab.write("x")
	if err := two.PollNow(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the change", func() bool { return one.only(t).Published == 1 })
	if err := two.Rewind(t.Context(), "a", time.Now()); !errors.Is(err, ErrCannotRewind) {
		t.Errorf("got %v", err)
	}
	if err := two.Confirm(t.Context(), "a"); !errors.Is(err, ErrNothingToConfirm) {
		t.Errorf("got %v", err)
	}
	if err := two.Baseline(t.Context(), "a", Publish); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "all rows", func() bool { st := one.only(t); return st.Published+st.Duplicate == 12 })
	one.Stop(context.Background())
	waitFor(t, "the other one goes on", func() bool { return two.only(t).Here })
}

func TestMetrics(t *testing.T) {
	b := brokertest.New(t)
	in := &inbox{}
	tab := newTable("a", 3)
	reg := prometheus.NewPedanticRegistry()
	p := New(Parts{Broker: b, Publish: in.Publish, Metrics: NewMetrics(reg), Log: slog.New(slog.DiscardHandler)})
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer p.Stop(context.Background())
	p.Apply([]Source{tab.source(fast)})
	tab.write("x")
	waitFor(t, "polls", func() bool { return p.only(t).Polls > 2 })
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, f := range all {
		got[f.GetName()] = true
	}
	for _, name := range []string{
		"held", "requests_total", "polls_total", "rows_total", "throttled_total", "throttled_seconds_total", "interval_seconds",
		"freshness_seconds", "bound_age_seconds", "failing", "unconfirmed",
	} {
		if !got["gridfan_poll_"+name] {
			t.Errorf("gridfan_poll_%s is missing", name)
		}
	}
}

// childEnv has the address of the broker for a child.
const childEnv = "POLL_CHILD"

// TestChild is no test of its own: it is the process that TestKilledRouters kills.
func TestChild(t *testing.T) {
	url := os.Getenv(childEnv)
	if url == "" {
		return
	}
	cfg := broker.Config{URL: url, MaxBytes: 1 << 30}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := broker.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	pub := newPublisher(t, b)
	p := New(Parts{Broker: b, Publish: pub.Publish})
	p.ttl = time.Second
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	src := newTable("a", 0).source(fast)
	src.Open = func(context.Context) (Fetcher, error) { return remote(os.Getenv(childEnv + "_TABLE")), nil }
	p.Apply([]Source{src})
	select {} // until it is killed
}

// remote is a table in the parent process, by its URL.
type remote string

func (r remote) Close() {}

func (r remote) Fetch(ctx context.Context, cursor json.RawMessage) (*Page, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, string(r), bytes.NewReader(cursor))
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var p Page
	return &p, json.NewDecoder(resp.Body).Decode(&p)
}

// TestKilledRouters has three processes poll one source, kills one of them with
// SIGKILL every now and then, and wants each change once in the stream.
func TestKilledRouters(t *testing.T) {
	s := brokertest.NewServer(t)
	b := s.Connect()
	tab := newTable("a", 20)
	tab.pageSize = 7
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cursor, err := io.ReadAll(r.Body)
		if err != nil {
			return // the asker was killed
		}
		if len(cursor) == 0 {
			cursor = nil
		}
		p, err := tab.Fetch(r.Context(), cursor)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_ = json.NewEncoder(w).Encode(p) // the asker may have been killed
	}))
	defer srv.Close()
	// Asked together by two, a request would be seen.
	tab.hold = func(ctx context.Context) {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	spawn := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0], "-test.run=^TestChild$")
		cmd.Env = append(os.Environ(), childEnv+"="+s.URL(), childEnv+"_TABLE="+srv.URL)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	end := func(cmd *exec.Cmd) {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // it was killed
	}
	children := []*exec.Cmd{spawn(), spawn(), spawn()}
	defer func() {
		for _, c := range children {
			end(c)
		}
	}()
	kv, err := b.JetStream().KeyValue(t.Context(), broker.BucketPolls)
	if err != nil {
		t.Fatal(err)
	}
	load := func() (c checkpoint) {
		if e, err := kv.Get(t.Context(), "a"); err == nil && json.Unmarshal(e.Value(), &c) != nil {
			t.Fatal("the checkpoint is no JSON")
		}
		return c
	}
	waitFor(t, "the baseline", func() bool { return load().Phase == phaseChanges })
	holder := func() int {
		notes, err := b.LeaseNotes(t.Context(), leaseKey("*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(notes)
	}
	var want []string
	n := 20
	for range 5 {
		waitFor(t, "somebody has the lease", func() bool { return holder() == 1 })
		before := load().Cursor
		for range 40 {
			n++
			key := fmt.Sprintf("new%d", n)
			tab.write(key)
			want = append(want, fmt.Sprintf("%s@%d", key, n))
		}
		waitFor(t, "progress", func() bool { return string(load().Cursor) != string(before) })
		for i, c := range children { // whoever has it among them
			end(c)
			children[i] = spawn()
			if holder() == 0 {
				break
			}
		}
	}
	waitFor(t, "all changes", func() bool {
		var at place
		return json.Unmarshal(load().Cursor, &at) == nil && at.From == n
	})
	got := published(t, b)
	slices.Sort(got)
	slices.Sort(want)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("in the stream (-want +got):\n%s", d)
	}
	tab.mu.Lock() // they go on asking
	defer tab.mu.Unlock()
	if tab.together != 1 {
		t.Errorf("%d asked at once", tab.together)
	}
}
