package broker_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
)

func open(t *testing.T, cfg broker.Config) (*broker.Broker, error) {
	t.Helper()
	cfg.Listen = "none"
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := broker.Open(t.Context(), cfg, log(t))
	if err == nil {
		t.Cleanup(b.Close)
	}
	return b, err
}

// accept stores an event as the publisher does.
func accept(t *testing.T, b *broker.Broker, id string) error {
	t.Helper()
	if err := b.Room(); err != nil {
		return err
	}
	epoch := b.Epoch()
	ack, err := b.JetStream().Publish(t.Context(), "events.x", []byte(id), jetstream.WithMsgID(id))
	if err != nil {
		b.Suspect(err)
		return err
	}
	return b.Durable(t.Context(), epoch, ack.Sequence)
}

func mustAccept(t *testing.T, b *broker.Broker, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := accept(t, b, id); err != nil {
			t.Fatalf("event %s: %v", id, err)
		}
	}
}

// waitAccept repeats an event until it is accepted, as senders do.
func waitAccept(t *testing.T, b *broker.Broker, id string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-tick.C {
		if err = accept(t, b, id); err == nil {
			return
		}
	}
	t.Fatalf("event %s is not accepted: %v", id, err)
}

func events(t *testing.T, b *broker.Broker) jetstream.StreamState {
	t.Helper()
	s, err := b.JetStream().Stream(t.Context(), broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State
}

func TestModeOfTheEmbeddedServer(t *testing.T) {
	b, err := open(t, broker.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	d := b.Durability()
	if runtime.GOOS == "linux" && d.Mode != broker.Barrier && !d.Warning && !strings.Contains(d.Detail, "file system type") {
		t.Errorf("on Linux: %+v", d)
	}
	b, err = open(t, broker.Config{Dir: t.TempDir(), Durability: broker.SyncAlways})
	if err != nil {
		t.Fatal(err)
	}
	if d := b.Durability(); d.Mode != broker.SyncAlways || d.Warning && !strings.Contains(d.Detail, "container's own") {
		t.Errorf("asked for: %+v", d)
	}
	mustAccept(t, b, "a")
	if b.DurableThrough() < 1 {
		t.Error("what the server has synced counts as not durable")
	}
}

func TestNoRoomInMemory(t *testing.T) {
	if _, err := os.Stat("/dev/shm"); err != nil {
		return // no such place to try
	}
	dir, err := os.MkdirTemp("/dev/shm", "gridfan")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b, err := open(t, broker.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if d := b.Durability(); d.Mode != broker.Unknown || !d.Warning {
		t.Errorf("a store in memory is %+v", d)
	}
	if _, err := open(t, broker.Config{Dir: dir + "/second", Durability: broker.Barrier}); err == nil || !strings.Contains(err.Error(), "broker.durability") {
		t.Errorf("a barrier in memory: %v", err)
	}
}

func TestModeOfAnExternalServer(t *testing.T) {
	url := brokertest.NewServer(t).URL()
	always := "true"
	monitoring := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/varz" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintf(w, `{"jetstream":{"config":{"max_memory":1,"sync_interval":120000000000,"sync_always":%s}}}`, always)
	}))
	defer monitoring.Close()
	for _, tt := range []struct {
		name       string
		stated     broker.Mode
		monitoring []string
		always     string
		mode       broker.Mode
		warning    bool
		err        string
	}{
		{name: "nobody knows", mode: broker.Unknown, warning: true},
		{name: "stated", stated: broker.SyncAlways, mode: broker.SyncAlways},
		{name: "verified", stated: broker.SyncAlways, monitoring: []string{monitoring.URL}, always: "true", mode: broker.SyncAlways},
		{name: "seen", monitoring: []string{monitoring.URL + "/"}, always: "true", mode: broker.SyncAlways},
		{name: "seen otherwise", monitoring: []string{monitoring.URL}, always: "false", mode: broker.Unknown, warning: true},
		{name: "stated and untrue", stated: broker.SyncAlways, monitoring: []string{monitoring.URL}, always: "false", err: "broker.durability"},
		{name: "stated and not to be verified", stated: broker.SyncAlways, monitoring: []string{monitoring.URL + "/x"}, mode: broker.SyncAlways, warning: true},
	} {
		always = tt.always
		b, err := open(t, broker.Config{URL: url, Durability: tt.stated, Monitoring: tt.monitoring, MaxBytes: 1 << 30})
		if tt.err != "" {
			if err == nil || !strings.HasPrefix(err.Error(), tt.err) {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if d := b.Durability(); d.Mode != tt.mode || d.Warning != tt.warning {
			t.Errorf("%s: %+v", tt.name, d)
		}
		b.Close()
	}
}

// After a failed sync nothing may be believed: what was not acknowledged is
// refused until the store was written again and opened anew, and nothing that
// was acknowledged is gone.
func TestFailedSync(t *testing.T) {
	b := brokertest.New(t)
	if b.Durability().Mode != broker.Barrier {
		t.Fatalf("the tests' disk has no barrier: %+v", b.Durability())
	}
	mustAccept(t, b, "a", "b")
	var fail atomic.Bool
	broker.WrapSync(b, func(real func() error) error {
		if fail.CompareAndSwap(true, false) { // once, as the kernel does
			return syscall.EIO
		}
		return real()
	})
	fail.Store(true)
	if err := accept(t, b, "c"); !errors.Is(err, syscall.EIO) {
		t.Fatalf("accepted in spite of a failed sync: %v", err)
	}
	waitAccept(t, b, "c")
	waitAccept(t, b, "d")
	if err := b.Health(t.Context()); err != nil {
		t.Errorf("health: %v", err)
	}
	if s := events(t, b); s.Msgs != 4 || s.LastSeq != 4 {
		t.Errorf("%d events through %d, want 4", s.Msgs, s.LastSeq)
	}
	if b.DurableThrough() != 4 {
		t.Errorf("durable through %d", b.DurableThrough())
	}
}

func TestServerSwitchesJetStreamOff(t *testing.T) {
	b := brokertest.New(t)
	mustAccept(t, b, "a")
	nc, js, err := b.Connect("test")
	if err != nil {
		t.Fatal(err)
	}
	if err := broker.SwitchOff(b); err != nil {
		t.Fatal(err)
	}
	waitAccept(t, b, "b")
	if s := events(t, b); s.LastSeq != 2 {
		t.Errorf("the stream ends at %d, want 2", s.LastSeq)
	}
	// Other connections find the new server too.
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		if err = b.Store(t.Context(), js, &nats.Msg{Subject: broker.Ops("test", "x"), Header: nats.Header{}}); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("connected %v: %v", nc.IsConnected(), err)
		}
	}
}

// A stream whose file was deleted under the server can't be written; the server
// keeps quiet about it.
func TestFrozenStream(t *testing.T) {
	b := brokertest.New(t)
	mustAccept(t, b, "a")
	b.Suspect(&jetstream.APIError{ErrorCode: 10077, Description: "maximum bytes exceeded"}) // only full
	if err := b.Room(); err != nil {
		t.Errorf("a limit counts as damage: %v", err)
	}
	b.Suspect(&jetstream.APIError{ErrorCode: 10077, Description: "write 1.blk: input/output error"})
	waitAccept(t, b, "b")
	if s := events(t, b); s.LastSeq != 2 {
		t.Errorf("the stream ends at %d, want 2", s.LastSeq)
	}
}

// cut shortens the last block of a stream.
func cut(t *testing.T, dir string, by int64) {
	t.Helper()
	msgs := filepath.Join(dir, "jetstream", "$G", "streams", broker.StreamEvents, "msgs")
	blocks, err := filepath.Glob(filepath.Join(msgs, "*.blk"))
	if err != nil || len(blocks) == 0 {
		t.Fatal("no blocks in", msgs, err)
	}
	last := blocks[len(blocks)-1]
	info, err := os.Stat(last)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(last, info.Size()-by); err != nil {
		t.Fatal(err)
	}
	// The index would tell the server what is missing; a cut by a disk takes
	// it along.
	if err := os.Remove(filepath.Join(msgs, "index.db")); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

func TestShorterStoreIsNotServed(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"last block cut":    func(t *testing.T, dir string) { cut(t, dir, 3) },
		"blocks gone":       func(t *testing.T, dir string) { remove(t, dir, "msgs") },
		"whole stream gone": func(t *testing.T, dir string) { remove(t, dir, "") },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			b := brokertest.Open(t, dir)
			mustAccept(t, b, "a", "b", "c")
			b.Close()
			damage(t, dir)
			_, err := open(t, broker.Config{Dir: dir, MaxBytes: 1 << 30})
			if err == nil {
				t.Fatal("started, silently shorter")
			}
			for _, want := range []string{"EVENTS", dir, "backup", broker.MarkName} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
			// The remedy it names works.
			if err := os.Remove(filepath.Join(dir, broker.MarkName)); err != nil {
				t.Fatal(err)
			}
			b, err = open(t, broker.Config{Dir: dir, MaxBytes: 1 << 30})
			if err != nil {
				t.Fatal(err)
			}
			mustAccept(t, b, "d")
		})
	}
}

func remove(t *testing.T, dir, what string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(dir, "jetstream", "$G", "streams", broker.StreamEvents, what)); err != nil {
		t.Fatal(err)
	}
}

// What was written and never acknowledged may be gone.
func TestUnacknowledgedEndMayGo(t *testing.T) {
	dir := t.TempDir()
	b := brokertest.Open(t, dir)
	mustAccept(t, b, "a", "b")
	if _, err := b.JetStream().Publish(t.Context(), "events.x", []byte("c")); err != nil {
		t.Fatal(err)
	}
	b.Close()
	cut(t, dir, 3)
	b = brokertest.Open(t, dir)
	if s := events(t, b); s.LastSeq != 2 {
		t.Errorf("the stream ends at %d, want 2", s.LastSeq)
	}
}

func TestUnreadableMark(t *testing.T) {
	dir := t.TempDir()
	b := brokertest.Open(t, dir)
	b.Close()
	if err := os.WriteFile(filepath.Join(dir, broker.MarkName), []byte("so it goes"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, broker.Config{Dir: dir, MaxBytes: 1 << 30}); err == nil || !strings.Contains(err.Error(), "delete the file") {
		t.Errorf("got %v", err)
	}
}

// A power cut can leave zeros in the place of what the server replaced just
// before. The consumer goes on where its copy was, and nothing is refused.
func TestSpoiltFilesAreRestored(t *testing.T) {
	dir := t.TempDir()
	b := brokertest.Open(t, dir)
	mustAccept(t, b, "a", "b", "c")
	c, err := b.JetStream().CreateConsumer(t.Context(), broker.StreamEvents, jetstream.ConsumerConfig{Durable: "d", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		m, err := c.Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := m.DoubleAck(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	b.Close()
	// A second life, so that the copies are of a consumer that has acked.
	copies := filepath.Join(dir, broker.StatesName)
	if err := os.Remove(copies); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	b = brokertest.Open(t, dir)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		if _, err := os.Stat(copies); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no copies are made")
		}
	}
	b.Close()
	stream := filepath.Join(dir, "jetstream", "$G", "streams", broker.StreamEvents)
	for _, name := range []string{"obs/d/o.dat", "obs/d/meta.inf", "meta.sum"} {
		name = filepath.Join(stream, filepath.FromSlash(name))
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, make([]byte, info.Size()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b = brokertest.Open(t, dir)
	c, err = b.JetStream().Consumer(t.Context(), broker.StreamEvents, "d")
	if err != nil {
		t.Fatal(err)
	}
	if info := c.CachedInfo(); info.AckFloor.Stream != 2 || info.NumPending != 1 {
		t.Errorf("the consumer is at %d with %d to come, want 2 and 1", info.AckFloor.Stream, info.NumPending)
	}

	// Without a copy the consumer begins again; it is not refused.
	b.Close()
	if err := os.Remove(filepath.Join(dir, broker.StatesName)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(stream, "obs", "d", "o.dat"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b = brokertest.Open(t, dir)
	if c, err = b.JetStream().Consumer(t.Context(), broker.StreamEvents, "d"); err != nil {
		t.Fatal(err)
	}
	if n := c.CachedInfo().NumPending; n != 3 {
		t.Errorf("without its state the consumer has %d to come, want 3", n)
	}
}

// A power cut can also spoil a block of messages that the server has just
// written anew. What was there before is put back.
func TestSpoiltBlockIsRestored(t *testing.T) {
	dir := t.TempDir()
	b := brokertest.Open(t, dir)
	mustAccept(t, b, "a", "b", "c")
	links := filepath.Join(dir, broker.LinksName)
	linked := func() bool {
		names, err := filepath.Glob(filepath.Join(links, "*"+broker.StreamEvents+"-1.blk"))
		return err == nil && len(names) == 1
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !linked(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("the block has no second name")
		}
	}
	b.Close()
	block := filepath.Join(dir, "jetstream", "$G", "streams", broker.StreamEvents, "msgs", "1.blk")
	info, err := os.Stat(block)
	if err != nil {
		t.Fatal(err)
	}
	for _, spoilt := range [][]byte{nil, make([]byte, info.Size())} {
		// As the server does it: a new file renamed over the old one.
		if err := os.WriteFile(block+".tmp", spoilt, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(block+".tmp", block); err != nil {
			t.Fatal(err)
		}
		b = brokertest.Open(t, dir)
		if s := events(t, b); s.Msgs != 3 || s.LastSeq != 3 {
			t.Errorf("%d events through %d, want 3", s.Msgs, s.LastSeq)
		}
		b.Close()
	}
	// One that was written anew and is whole stays, and what is gone lets go.
	b = brokertest.Open(t, dir)
	s, err := b.JetStream().Stream(t.Context(), broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); linked(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("a block that is gone keeps its second name")
		}
	}
	mustAccept(t, b, "d")
	b.Close()
	b = brokertest.Open(t, dir)
	if s := events(t, b); s.Msgs != 1 || s.LastSeq != 4 {
		t.Errorf("%d events through %d, want the last of 4", s.Msgs, s.LastSeq)
	}
}
