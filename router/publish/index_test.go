package publish_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
)

// forget makes the broker's own window so short that only the index is left.
func forget(t *testing.T, b *broker.Broker) {
	t.Helper()
	s, err := b.JetStream().Stream(t.Context(), broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	cfg.Duplicates = 100 * time.Millisecond // the server's smallest
	if _, err := b.JetStream().UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	time.Sleep(250 * time.Millisecond) // sleep: until the window is over
}

func mustPublish(t *testing.T, p *publish.Publisher, want publish.Status, results ...event.Result) {
	t.Helper()
	got, err := p.Publish(t.Context(), origin("prod", "env"), results)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if got[i] != want {
			t.Errorf("event %d: %s, want %s", i, got[i], want)
		}
	}
}

func openPublisher(t *testing.T, b *broker.Broker, cfg publish.Config) *publish.Publisher {
	t.Helper()
	if err := cfg.Dedup.Validate(); err != nil {
		t.Fatal(err)
	}
	p, err := publish.New(t.Context(), b, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func lastSequence(t *testing.T, b *broker.Broker) uint64 {
	t.Helper()
	s, err := b.JetStream().Stream(t.Context(), broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.LastSeq
}

// What was published is recognised when the broker has long forgotten it: at
// once, after a restart with and without the index's log, by another replica,
// and when the stream was trimmed.
func TestDuplicatesBeyondTheBrokersWindow(t *testing.T) {
	b, dir := brokertest.New(t), t.TempDir()
	p := openPublisher(t, b, publish.Config{IndexDir: dir})
	other := openPublisher(t, b, publish.Config{}) // another replica, from the start
	defer func() { other.Close() }()
	first, second := result("1", `{"a":1}`), result("1", `{"a":2}`)
	mustPublish(t, p, publish.Published, first, result("2", "2"))
	forget(t, b)
	mustPublish(t, p, publish.Duplicate, first)
	mustPublish(t, p, publish.Published, second) // another event under a used id
	forget(t, b)
	mustPublish(t, p, publish.Duplicate, first, second)
	if e, _ := stored(t, b, broker.StreamEvents, 3); e.Get(event.ExtOriginalID) != "1" || e.ID == "1" {
		t.Errorf("the second event under one id is stored as %q", e.ID)
	}

	waitFor(t, "the other replica has read along", func() bool { return other.Dedup().Covered == 3 })
	mustPublish(t, other, publish.Duplicate, first, second, result("2", "2"))

	for name, cfg := range map[string]publish.Config{"log": {IndexDir: dir}, "stream": {}} {
		if name == "log" {
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
		}
		p := openPublisher(t, b, cfg)
		mustPublish(t, p, publish.Duplicate, first, second, result("2", "2"))
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s, err := b.JetStream().Stream(t.Context(), broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	p = openPublisher(t, b, publish.Config{IndexDir: dir})
	defer p.Close()
	mustPublish(t, p, publish.Duplicate, first, second, result("2", "2"))
	if n := lastSequence(t, b); n != 3 {
		t.Errorf("%d events in the stream, want 3", n)
	}
}

// A crash leaves a log that ends before the stream.
func TestIndexReadsTheTail(t *testing.T) {
	b, dir := brokertest.New(t), t.TempDir()
	p := openPublisher(t, b, publish.Config{IndexDir: dir})
	mustPublish(t, p, publish.Published, result("1", "1"))
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = openPublisher(t, b, publish.Config{}) // as one whose log is lost
	mustPublish(t, p, publish.Published, result("2", "2"), result("3", "3"))
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	forget(t, b)
	p = openPublisher(t, b, publish.Config{IndexDir: dir})
	defer p.Close()
	mustPublish(t, p, publish.Duplicate, result("1", "1"), result("2", "2"), result("3", "3"))
}

// Messages of others, and those that somebody deleted, don't hold the index up.
func TestIndexPassesWhatIsNotOurs(t *testing.T) {
	b := brokertest.New(t)
	p := openPublisher(t, b, publish.Config{})
	defer p.Close()
	for range 3 {
		if _, err := b.JetStream().Publish(t.Context(), "events.theirs", []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	mustPublish(t, p, publish.Published, result("1", "1"))
	s, err := b.JetStream().Stream(t.Context(), broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	for _, seq := range []uint64{2, 4} {
		if err := s.DeleteMsg(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "the index has passed them", func() bool { return p.Dedup().Covered == 4 })
	fresh := openPublisher(t, b, publish.Config{})
	defer fresh.Close()
	waitFor(t, "a fresh one too", func() bool { return fresh.Dedup().Covered == 4 })
}

func TestDedupConfig(t *testing.T) {
	for want, c := range map[string]publish.Dedup{
		"storage.dedup.horizon: want 2m to 30d, got 1m0s": {Horizon: time.Minute},
		"storage.dedup.memory: want at least 1MiB":        {Memory: 1},
	} {
		if err := c.Validate(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	var c publish.Dedup
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff(publish.Dedup{Horizon: 24 * time.Hour, Memory: 512 << 20}, c); d != "" {
		t.Errorf("defaults (-want +got):\n%s", d)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("not within a minute:", what)
		}
	}
}
