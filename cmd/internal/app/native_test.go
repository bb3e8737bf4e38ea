package app_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// TestKillWithOwnClient kills gridfan, and with it the NATS server inside it,
// twenty times while a subscriber's own NATS client takes events from it. Every
// event whose sender was told 200 must come to the client, and have one record.
func TestKillWithOwnClient(t *testing.T) {
	const kills = 20
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "gridfan.yaml")
	address := freeAddress(t)
	text := strings.Replace(configuration(filepath.Join(dir, "data"), sources), `listen: "127.0.0.1:0" }
`, `listen: "127.0.0.1:0", clients: { listen: "`+address+`" } }
`, 1) + `
subscribers:
  own:
    subjects: events.>
    deliver: { nats: { keys: ` + public + `, ackWait: 2s, maxDeliver: 1000 } }
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	// The client goes on as one does that knows nothing of gridfan.
	var mu sync.Mutex // guards got
	got := map[string]int{}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var taking sync.WaitGroup
	taking.Go(func() {
		nc, err := nats.Connect("nats://"+address, nats.Nkey(public, pair.Sign), nats.CustomInboxPrefix("_INBOX_own"),
			nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
		if err != nil {
			t.Error(err)
			return
		}
		defer nc.Close()
		js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(time.Second))
		if err != nil {
			t.Error(err)
			return
		}
		for ctx.Err() == nil {
			if nc.IsClosed() {
				t.Error("the client has given up for good")
				return
			}
			c, err := js.Consumer(ctx, "EVENTS", "own")
			if err != nil {
				time.Sleep(20 * time.Millisecond) // sleep: the server is away
				continue
			}
			batch, err := c.Fetch(100, jetstream.FetchMaxWait(300*time.Millisecond))
			if err != nil {
				continue
			}
			for m := range batch.Messages() {
				mu.Lock()
				got[m.Headers()["ce-id"][0]]++
				mu.Unlock()
				_ = m.Ack() // it comes again otherwise
			}
		}
	})

	var accepted []string
	var c *child
	for round := 0; ; round++ {
		c = startChild(t, childGridfan, file)
		answers(t, c.addresses.Public)
		if round == kills {
			break
		}
		until := time.Now().Add(50*time.Millisecond + rand.N(400*time.Millisecond))
		for n := 0; time.Now().Before(until); n++ {
			id := fmt.Sprintf("N-%d-%d", round, n)
			a, err := send(c.addresses.Public, "fo", nil, businessEvent(id))
			if err != nil || a.status != http.StatusOK {
				t.Fatalf("event %s: HTTP %d, %v", id, a.status, err)
			}
			accepted = append(accepted, id)
		}
		c.kill()
	}
	client := &admin.Client{URL: "http://" + c.addresses.Admin}
	waitFor(t, "everything to be recorded", func() bool {
		s, err := client.Subscriber(t.Context(), "own")
		return err == nil && s.Backlog.Pending == 0
	})
	cancel()
	taking.Wait()
	missing, repeated := 0, 0
	for _, id := range accepted {
		if got[id] == 0 {
			missing++
			t.Logf("%s has never come", id)
		}
		repeated += max(0, got[id]-1)
	}
	if missing > 0 {
		t.Errorf("%d of %d accepted events are missing", missing, len(accepted))
	}
	g := &gridfan{t: t, admin: client, natsURL: c.addresses.NATS}
	recorded := map[uint64]int{}
	for _, m := range g.stored(broker.StreamAttempts) {
		records, err := deliver.ParseRecords(m.Data)
		if err != nil {
			t.Error(err)
		}
		for _, r := range records {
			if r.Subscriber == "own" && r.Outcome == deliver.RecordDelivered {
				recorded[r.Sequence]++
			} else {
				t.Errorf("a record of another kind: %+v", r)
			}
		}
	}
	stored := g.stored(broker.StreamEvents)
	if len(recorded) != len(stored) {
		t.Errorf("%d events have records, %d are stored", len(recorded), len(stored))
	}
	for sequence, n := range recorded {
		if n > 1 {
			t.Errorf("event %d is recorded %d times", sequence, n)
		}
	}
	books, err := client.Books(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range books.Subscribers {
		if s.Balance != 0 || len(s.Problems) > 0 || s.Delivered != int64(len(stored)) {
			t.Errorf("the book: %+v", s)
		}
	}
	why, err := client.Why(t.Context(), accepted[0], deliver.Duration(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if d := why.Events[0].Deliveries; len(d) != 1 || d[0].State != deliver.RecordDelivered || !strings.Contains(d[0].Detail, "its own client") {
		t.Errorf("why %s: %+v", accepted[0], d)
	}
	t.Logf("%d events accepted over %d kills, %d came twice", len(accepted), kills, repeated)
}
