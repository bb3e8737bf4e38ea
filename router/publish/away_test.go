package publish_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
)

// keyed is an event that must stay in order with others of its key.
func keyed(key, id string) event.Result {
	r := result(id, `"`+id+`"`)
	r.Event.Set(event.ExtPartitionKey, key)
	return r
}

// batchOf is the nth batch of a key's events, numbered on.
func batchOf(key, n, size int) []event.Result {
	var batch []event.Result
	for i := range size {
		batch = append(batch, keyed(fmt.Sprint("k", key), fmt.Sprintf("k%d-%d", key, n*size+i)))
	}
	return batch
}

// inOrder reads EVENTS and wants the ids of each key in the order of their
// numbers, each once, and says how many there are.
func inOrder(t *testing.T, b *broker.Broker) int {
	t.Helper()
	last := map[string]int{}
	n := lastSequence(t, b)
	for seq := uint64(1); seq <= n; seq++ {
		e, _ := stored(t, b, broker.StreamEvents, seq)
		var number int
		key, rest, _ := strings.Cut(e.ID, "-")
		if _, err := fmt.Sscan(rest, &number); err != nil {
			t.Fatalf("event %q: %v", e.ID, err)
		}
		if was, ok := last[key]; ok && number <= was {
			t.Errorf("%s is stored after number %d", e.ID, was)
		}
		last[key] = number
	}
	return int(n)
}

// The broker goes away and comes back while events come in: whoever is patient
// gets through, nothing is stored twice, and each key stays in order.
func TestBrokerRestarts(t *testing.T) {
	s := brokertest.NewServer(t)
	b := s.Connect()
	p := openPublisher(t, b, publish.Config{})
	defer p.Close()
	const keys, batches, perBatch = 4, 30, 8
	var wg sync.WaitGroup
	for k := range keys {
		wg.Go(func() {
			for n := range batches {
				batch := batchOf(k, n, perBatch)
				for {
					_, err := p.Publish(t.Context(), origin("prod", "env"), batch)
					if err == nil {
						break
					}
					if !errors.Is(err, publish.ErrBroker) {
						t.Error(err)
						return
					}
				}
				time.Sleep(10 * time.Millisecond) // sleep: spread over the restarts
			}
		})
	}
	for range 3 {
		time.Sleep(100 * time.Millisecond) // sleep: any moment will do
		s.Stop()
		s.Start()
	}
	wg.Wait()
	waitFor(t, "the control connection is back", b.Connected)
	if n := inOrder(t, b); n != keys*batches*perBatch {
		t.Errorf("%d events are stored, want %d", n, keys*batches*perBatch)
	}
}

// A cluster of three loses the leader of EVENTS, twice: the events of those
// seconds wait and are stored, once and in order.
func TestClusterLosesLeader(t *testing.T) {
	c := brokertest.NewCluster(t)
	b := c.Connect()
	if d := b.Durability(); d.Mode != broker.SyncAlways {
		t.Errorf("durability %+v", d)
	}
	p := openPublisher(t, b, publish.Config{})
	defer p.Close()
	const keys, batches, perBatch = 3, 40, 5
	var wg sync.WaitGroup
	for k := range keys {
		wg.Go(func() {
			for n := range batches {
				batch := batchOf(k, n, perBatch)
				if _, err := p.Publish(t.Context(), origin("prod", "env"), batch); err != nil {
					t.Error(err) // an election is waited for
					return
				}
				time.Sleep(50 * time.Millisecond) // sleep: spread over the elections
			}
		})
	}
	for range 2 {
		time.Sleep(500 * time.Millisecond) // sleep: any moment will do
		again := c.StopLeader(broker.StreamEvents)
		time.Sleep(time.Second) // sleep: the others elect
		again()
		waitFor(t, "the cluster has a leader", func() bool {
			s, err := b.JetStream().Stream(t.Context(), broker.StreamEvents)
			return err == nil && s.CachedInfo().Cluster.Leader != ""
		})
	}
	wg.Wait()
	if n := inOrder(t, b); n != keys*batches*perBatch {
		t.Errorf("%d events are stored, want %d", n, keys*batches*perBatch)
	}
}

// While the broker is away events go to the spool, also over a restart of the
// process, and are brought over in order when it is back, behind what was
// stored before and ahead of what comes later.
func TestSpool(t *testing.T) {
	s, dir := brokertest.NewServer(t), t.TempDir()
	b := s.Connect()
	spool := brokertest.NewSpool(t, dir)
	p := openPublisher(t, b, publish.Config{Spool: spool})
	mustPublish(t, p, publish.Published, keyed("k", "k-0"))

	s.Stop()
	waitFor(t, "the broker is away", func() bool { return !b.Connected() })
	for i := 1; i <= 300; i++ {
		mustPublish(t, p, publish.Published, keyed("k", fmt.Sprint("k-", i)))
	}
	mustPublish(t, p, publish.Duplicate, keyed("k", "k-0"), keyed("k", "k-300")) // known before, and only in the spool
	mustPublish(t, p, publish.Quarantined, event.Result{Fault: event.Faultf(event.FaultNotEvent, "so so"), Raw: []byte("{}")})
	if st, ok := p.Spool(t.Context()); !ok || !st.Active || st.Waiting != 301 {
		t.Errorf("spool %+v, %v; want 301 waiting", st, ok)
	}

	// The process dies.
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	spool.Close()
	s.Start()
	b = s.Connect()
	spool = brokertest.NewSpool(t, dir)
	p = openPublisher(t, b, publish.Config{Spool: spool})
	defer p.Close()
	for i := 301; i <= 320; i++ {
		mustPublish(t, p, publish.Published, keyed("k", fmt.Sprint("k-", i)))
	}
	waitFor(t, "the spool is empty", func() bool { st, _ := p.Spool(t.Context()); return !st.Active })
	if n := inOrder(t, b); n != 321 {
		t.Errorf("%d events are stored, want 321", n)
	}
	q, err := b.SubjectCounts(t.Context(), broker.StreamQuarantine, broker.Quarantine("*"))
	if err != nil || q[broker.Quarantine("prod")] != 1 {
		t.Errorf("quarantine has %v, %v", q, err)
	}
	// What was spooled is known now, and the next outage begins anew.
	mustPublish(t, p, publish.Duplicate, keyed("k", "k-5"), keyed("k", "k-320"))
	s.Stop()
	waitFor(t, "the broker is away again", func() bool { return !b.Connected() })
	mustPublish(t, p, publish.Published, keyed("k", "k-321"))
	s.Start()
	waitFor(t, "the spool is empty again", func() bool { st, _ := p.Spool(t.Context()); return !st.Active })
	if n := inOrder(t, b); n != 322 {
		t.Errorf("%d events are stored, want 322", n)
	}
}

// Two different events under one id, one stored before the outage and one in
// the spool, both survive.
func TestSpoolKeepsReusedIDs(t *testing.T) {
	s := brokertest.NewServer(t)
	b := s.Connect()
	p := openPublisher(t, b, publish.Config{Spool: brokertest.NewSpool(t, t.TempDir())})
	defer p.Close()
	replica := openPublisher(t, b, publish.Config{}) // its event is not in our index yet
	defer replica.Close()
	mustPublish(t, replica, publish.Published, result("1", `{"a":1}`))
	s.Stop()
	waitFor(t, "the broker is away", func() bool { return !b.Connected() })
	mustPublish(t, p, publish.Published, result("1", `{"a":2}`))
	s.Start()
	waitFor(t, "the spool is empty", func() bool { st, _ := p.Spool(t.Context()); return !st.Active })
	if n := lastSequence(t, b); n != 2 {
		t.Fatalf("%d events are stored, want 2", n)
	}
	if e, _ := stored(t, b, broker.StreamEvents, 2); !strings.HasPrefix(e.ID, "1~") || string(e.Data) != `{"a":2}` {
		t.Errorf("the second is stored as %q with %s", e.ID, e.Data)
	}
}

func TestSpoolFull(t *testing.T) {
	s := brokertest.NewServer(t)
	b := s.Connect()
	p := openPublisher(t, b, publish.Config{Spool: brokertest.NewSmallSpool(t, t.TempDir())})
	defer p.Close()
	s.Stop()
	waitFor(t, "the broker is away", func() bool { return !b.Connected() })
	big := strings.Repeat("x", 4<<20)
	accepted := 0
	for i := range 32 {
		_, err := p.Publish(t.Context(), origin("prod", "env"), []event.Result{keyed("k", fmt.Sprintf("k-%d", i)), result(fmt.Sprintf("b-%d", i), `"`+big+`"`)})
		if errors.Is(err, publish.ErrStorageFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		accepted++
	}
	if accepted == 0 || accepted == 32 {
		t.Fatalf("%d batches of 4 MiB fit into 64 MiB", accepted)
	}
	s.Start()
	waitFor(t, "the spool is empty", func() bool { st, _ := p.Spool(t.Context()); return !st.Active })
	// The last batch may have been stored in part.
	if n := inOrder(t, b); n < 2*accepted || n > 2*accepted+1 {
		t.Errorf("%d events are stored of %d batches of two", n, accepted)
	}
}
