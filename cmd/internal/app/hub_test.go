package app_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/Azure/go-amqp"

	"github.com/gridfan/gridfan/infra/amqptest"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
)

// hubSource is a source that reads event hub orders.
func hubSource(srv *amqptest.Server) string {
	return fmt.Sprintf(`sources:
  shop:
    kind: cloudevents
    receive: { eventHub: { hub: orders, batch: 10, auth: { connectionString: "Endpoint=sb://%s;SharedAccessKeyName=n;SharedAccessKey=a2V5LWtleS1rZXk=;UseDevelopmentEmulator=true" } } }
`, srv.Addr)
}

// fill puts n events into each partition of a hub, and gives their ids.
func fill(hub *amqptest.Hub, partitions, round, n int) (ids []string) {
	for p := range partitions {
		for i := range n {
			id := fmt.Sprintf("HUB-%d-%d-%d", round, p, i)
			ids = append(ids, id)
			hub.Put(p, &amqp.Message{Data: [][]byte{fmt.Appendf(nil, `{"specversion":"1.0","id":%q,"source":"/s","type":"t"}`, id)}})
		}
	}
	return ids
}

// given counts the events that a hub's readers were given, each time again.
func given(hub *amqptest.Hub) (n int) {
	for _, r := range hub.Reads() {
		n += r.Given
	}
	return n
}

// oneAtATime wants that whoever began to read a partition shut the one before out.
func oneAtATime(t *testing.T, hub *amqptest.Hub) {
	t.Helper()
	type turn struct {
		partition string
		epoch     int64
	}
	readers, last := map[turn]string{}, map[string]int64{}
	for _, r := range hub.Reads() {
		at := turn{r.Partition, r.Epoch}
		if who := readers[at]; who != "" && who != r.Reader {
			t.Errorf("partition %s, epoch %d: %s and %s", r.Partition, r.Epoch, who, r.Reader)
		}
		readers[at] = r.Reader
		if r.Epoch < last[r.Partition] {
			t.Errorf("partition %s: epoch %d after %d", r.Partition, r.Epoch, last[r.Partition])
		}
		last[r.Partition] = r.Epoch
	}
}

// TestHubKill kills gridfan again and again while it reads an event hub, and wants
// every event at the subscriber. A kill comes at any point between an event's receipt
// and the checkpoint behind it.
func TestHubKill(t *testing.T) {
	const kills, each, partitions = 10, 40, 2
	srv := amqptest.Start(t, amqptest.Options{})
	hub := srv.Hub("orders", amqptest.HubOptions{Partitions: partitions})
	in := newInbox(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "gridfan.yaml")
	text := configuration(filepath.Join(dir, "data"), hubSource(srv), "subscribers:\n"+subscriber("all", in.url+"/all", quickRetry))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var want []string
	for round := range kills {
		before := given(hub)
		want = append(want, fill(hub, partitions, round, each)...)
		g := startChild(t, childGridfan, file)
		deadline := time.Now().Add(30 * time.Second)
		for given(hub) < before+each/2 {
			if time.Now().After(deadline) {
				g.kill()
				t.Fatalf("round %d: %d events were read\n%s", round, given(hub)-before, g.stderr.Bytes())
			}
			time.Sleep(time.Millisecond) // sleep: the kill comes anywhere
		}
		g.kill()
	}
	startChild(t, childGridfan, file)
	in.wantAll(t, "all", want)
	if n := given(hub); n == len(want) {
		t.Error("no kill came before a checkpoint: this shows nothing")
	}
	oneAtATime(t, hub)
}

// TestHubReplicasKilled has three replicas on one broker read an event hub, kills one
// after the other while events come, and wants all of them at the subscriber, and
// each partition read by one at a time.
func TestHubReplicasKilled(t *testing.T) {
	const kills, each, partitions = 3, 20, 5
	srv := amqptest.Start(t, amqptest.Options{})
	hub := srv.Hub("orders", amqptest.HubOptions{Partitions: partitions})
	in := newInbox(t)
	broker := brokertest.NewServer(t)
	file := filepath.Join(t.TempDir(), "gridfan.yaml")
	text := fmt.Sprintf("listen: { public: { addr: \"127.0.0.1:0\" }, admin: { addr: \"127.0.0.1:0\" } }\nbroker: { url: %q, durability: sync-always }\n%ssubscribers:\n%s",
		broker.URL(), hubSource(srv), subscriber("all", in.url+"/all", quickRetry))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	all := []*child{startChild(t, childGridfan, file), startChild(t, childGridfan, file), startChild(t, childGridfan, file)}
	// read waits until all partitions are read, by so many replicas at least.
	read := func(replicas int) {
		t.Helper()
		waitFor(t, "all partitions are read", func() bool {
			now := map[string]string{}
			for _, r := range hub.Reads() {
				now[r.Partition] = r.Reader
			}
			who := map[string]bool{}
			for p := range partitions {
				if hub.Readers(p) != 1 {
					return false
				}
				who[now[fmt.Sprint(p)]] = true
			}
			return len(who) >= replicas
		})
	}
	read(3)
	var want []string
	for round := range kills {
		want = append(want, fill(hub, partitions, 2*round, each)...)
		time.Sleep(time.Duration(round*3) * time.Millisecond) // sleep: the kill comes anywhere
		all[round%3].kill()
		want = append(want, fill(hub, partitions, 2*round+1, each)...)
		read(2)
		all[round%3] = startChild(t, childGridfan, file)
		read(3)
	}
	in.wantAll(t, "all", want)
	oneAtATime(t, hub)
}
