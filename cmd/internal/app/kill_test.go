package app_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// TestKill kills gridfan fifty times in the middle of its work and wants every
// event whose sender was told 200 at every subscriber.
//
// In every fifth round a subscriber also holds back its answer to one event
// until gridfan is dead. That event must be there again two seconds after the
// next gridfan answers: the broker's ack wait, not more.
func TestKill(t *testing.T) {
	const (
		kills     = 50
		markEvery = 5
		senders   = 4
		within    = 2 * time.Second
	)
	in := newInbox(t)
	var held sync.Map // ids of marked events that were held back once
	in.handle = func(_ http.ResponseWriter, r *http.Request, got received) bool {
		switch got.subscriber {
		case "slow":
			wait(r, 50*time.Millisecond)
		case "fast":
			if strings.HasPrefix(got.id(), "MARK-") {
				if _, again := held.LoadOrStore(got.id(), true); !again {
					wait(r, patience)
					return true
				}
			}
		}
		return false
	}
	subscribers := []string{"fast", "slow", "third"}
	var parts strings.Builder
	parts.WriteString("subscribers:\n")
	for _, name := range subscribers {
		parts.WriteString(subscriber(name, in.url+"/"+name, "limits: { concurrency: 16 }, "+quickRetry))
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "gridfan.yaml")
	if err := os.WriteFile(file, []byte(configuration(filepath.Join(dir, "data"), sources, parts.String())), 0o600); err != nil {
		t.Fatal(err)
	}

	// The senders repeat each event until it is accepted, as F&O does.
	var addr atomic.Pointer[string]
	var mu sync.Mutex // guards accepted
	var accepted []string
	stop := make(chan struct{})
	var sending sync.WaitGroup
	for s := range senders {
		sending.Go(func() {
			pace := time.NewTicker(20 * time.Millisecond)
			defer pace.Stop()
			for n := 0; ; {
				select {
				case <-stop:
					return
				case <-pace.C:
				}
				to := addr.Load()
				if to == nil {
					continue
				}
				id := fmt.Sprintf("K-%d-%d", s, n)
				a, err := send(*to, "fo", nil, businessEvent(id))
				if err != nil || a.status == http.StatusServiceUnavailable {
					continue
				}
				if a.status != http.StatusOK {
					t.Errorf("event %s: HTTP %d %s", id, a.status, a.body)
					continue
				}
				mu.Lock()
				accepted = append(accepted, id)
				mu.Unlock()
				n++
			}
		})
	}
	// Whatever happens, the senders end before the test does.
	defer func() {
		select {
		case <-stop:
		default:
			close(stop)
		}
		sending.Wait()
	}()

	var slowest time.Duration
	late := 0
	mark := "" // sent and not answered before the last kill
	var c *child
	for round := 0; ; round++ {
		c = startChild(t, childGridfan, file)
		up := answers(t, c.addresses.Public)
		addr.Store(&c.addresses.Public)
		if mark != "" {
			var took time.Duration
			waitFor(t, mark+" comes again", func() bool { return in.counts("fast")[mark] > 1 })
			for _, r := range in.of("fast") {
				if r.id() == mark {
					took = r.at.Sub(up)
				}
			}
			slowest = max(slowest, took)
			if took > within {
				late++
			}
			mark = ""
		}
		if round == kills {
			break
		}
		time.Sleep(50*time.Millisecond + rand.N(250*time.Millisecond)) // sleep: any moment will do for a kill
		if round%markEvery == 0 {
			mark = fmt.Sprintf("MARK-%d", round)
			if a, err := send(c.addresses.Public, "fo", nil, businessEvent(mark)); err != nil || a.status != http.StatusOK {
				t.Fatalf("event %s: HTTP %d, %v", mark, a.status, err)
			}
			mu.Lock()
			accepted = append(accepted, mark)
			mu.Unlock()
			waitFor(t, mark+" is under way", func() bool { return in.counts("fast")[mark] > 0 })
		}
		c.kill()
	}
	// A machine that stands still for a moment may make one late.
	if late > 1 {
		t.Errorf("%d events in flight came again more than %v after the restart, the last of them %v", late, within, slowest)
	}

	close(stop)
	sending.Wait()
	g := &gridfan{t: t, admin: &admin.Client{URL: "http://" + c.addresses.Admin}, natsURL: c.addresses.NATS}
	g.drained()
	repeated := 0
	for _, name := range subscribers {
		answered := map[string]int{}
		for _, r := range in.of(name) {
			if r.answered {
				answered[r.id()]++
			}
		}
		missing := 0
		for _, id := range accepted {
			if answered[id] == 0 {
				missing++
				t.Logf("%s has never got %s", name, id)
			}
			repeated += max(0, answered[id]-1)
		}
		if missing > 0 {
			t.Errorf("%s: %d of %d accepted events are missing", name, missing, len(accepted))
		}
	}
	stored := map[string]int{}
	for _, m := range g.stored(broker.StreamEvents) {
		stored[m.Header.Get("ce-id")]++
	}
	for id, n := range stored {
		if n > 1 {
			t.Errorf("%s is stored %d times", id, n)
		}
	}
	// The books: each delivery is recorded as delivered once.
	type delivery struct {
		subscriber string
		sequence   uint64
	}
	recorded := map[delivery]int{}
	for _, m := range g.stored(broker.StreamAttempts) {
		records, err := deliver.ParseRecords(m.Data)
		if err != nil {
			t.Error(err)
		}
		for _, r := range records {
			if r.Outcome == deliver.RecordDelivered {
				recorded[delivery{r.Subscriber, r.Sequence}]++
			}
		}
	}
	if got, want := len(recorded), len(stored)*len(subscribers); got != want {
		t.Errorf("%d deliveries are recorded, want %d", got, want)
	}
	for d, n := range recorded {
		if n > 1 {
			t.Errorf("event %d is recorded as delivered to %s %d times", d.sequence, d.subscriber, n)
		}
	}
	kept, err := g.admin.Books(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !kept.Balanced || len(kept.Losses) > 0 {
		t.Errorf("the books do not balance: %+v", kept)
	}
	for _, s := range kept.Subscribers {
		if s.Matched != int64(len(stored)) || s.Delivered != s.Matched || s.Balance != 0 {
			t.Errorf("the book of %s, of %d events: %+v", s.Name, len(stored), s)
		}
	}
	for _, s := range kept.Sources {
		if s.Name == "fo" {
			t.Logf("the book of the source: %+v", s)
			if s.Published != int64(len(stored)) {
				t.Errorf("%d events are stored, published are %d", len(stored), s.Published)
			}
		}
	}
	t.Logf("%d events accepted over %d kills, %d stored; %d of %d deliveries were made twice; an event in flight came again at most %v after the restart",
		len(accepted), kills, len(stored), repeated, len(accepted)*len(subscribers), slowest.Round(time.Millisecond))
}

// wait holds a request for a while, or until its sender has gone.
func wait(r *http.Request, d time.Duration) {
	select {
	case <-r.Context().Done():
	case <-time.After(d):
	}
}
