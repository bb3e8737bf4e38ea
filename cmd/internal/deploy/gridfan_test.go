package deploy_test

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
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/cmd/internal/app"
	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/quarantine"
	"github.com/gridfan/gridfan/subscribers/deadletters"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/pull"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// buffer is a log that many write to.
type buffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// inbox is a subscriber that counts how often each event comes.
type inbox struct {
	mu  sync.Mutex // guards got
	got map[string]int
}

func (in *inbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get("ce-id")
	if id == "" {
		var e struct {
			ID string `json:"id"`
		}
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		id = e.ID
	}
	in.mu.Lock()
	in.got[id]++
	in.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

// lacks gives those of ids that have not come.
func (in *inbox) lacks(ids []string) []string {
	in.mu.Lock()
	defer in.mu.Unlock()
	var missing []string
	for _, id := range ids {
		if in.got[id] == 0 {
			missing = append(missing, id)
		}
	}
	return missing
}

// senders post events as Event Grid does: each until it is answered 200.
type senders struct {
	url      string
	stop     chan struct{}
	running  sync.WaitGroup
	accepted atomic.Int64
	repeated atomic.Int64 // posts that were not

	mu  sync.Mutex // guards ids
	ids []string
}

func (s *senders) start(n int) {
	for i := range n {
		s.running.Go(func() { s.send(i) })
	}
}

func (s *senders) send(sender int) {
	for k := 0; ; k++ {
		id := fmt.Sprintf("S%d-%d", sender, k)
		body := fmt.Sprintf(`{"specversion":"1.0","id":%q,"source":"/shop/orders","type":"com.example.placed","data":{"n":%d}}`, id, k)
		for {
			select {
			case <-s.stop:
				return
			default:
			}
			resp, err := http.Post(s.url, "application/cloudevents+json", strings.NewReader(body))
			if err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					break
				}
			}
			s.repeated.Add(1)
		}
		s.mu.Lock()
		s.ids = append(s.ids, id)
		s.mu.Unlock()
		s.accepted.Add(1)
	}
}

// The whole program on the cluster as it is deployed, over TLS and with the password by
// reference: while events are posted, the node that leads their stream is killed, twice.
// Nothing that was answered 200 is lost, nothing is stored twice, and gridfan's user
// may do all that gridfan does.
func TestGridfanOnTheCluster(t *testing.T) {
	c := zoned(t, "1", "2", "3")
	c.start()
	in := &inbox{got: map[string]int{}}
	subscriber := httptest.NewServer(in)
	defer subscriber.Close()
	t.Setenv("GRIDFAN_NATS_PASSWORD", gridfanPassword)
	// Only the first node is named: the others are learnt from it.
	text := fmt.Sprintf(`
listen: { public: { addr: "127.0.0.1:0" }, admin: { addr: "127.0.0.1:0" } }
broker:
  url: "tls://127.0.0.1:%d"
  user: gridfan
  password: "${env:GRIDFAN_NATS_PASSWORD}"
  tls: { ca: %q }
  replicas: 3
  durability: sync-always
  monitoring: [ "http://127.0.0.1:%d", "http://127.0.0.1:%d", "http://127.0.0.1:%d" ]
storage: { maxBytes: 1GiB }
sources: { shop: { kind: cloudevents, push: { auth: none } } }
subscribers:
  warehouse: { subjects: [ "events.>" ], deliver: { webhook: { url: %q } } }
  shop: { subjects: [ "events.cloudevents.shop.>" ], deliver: { webhook: { url: %q } }, ordering: key }
  erp: { subjects: [ "events.>" ], deliver: { nats: { keys: [ UAZ54254KHQ5WUVT6OUFBHWRWFMBS3I5CNCSA3MTJF3VKD63VZQC73ON ] } } }
`, c.nodes[0].client, filepath.Join(c.nodes[0].certs, "ca.pem"), c.nodes[0].monitoring, c.nodes[1].monitoring, c.nodes[2].monitoring, subscriber.URL, subscriber.URL)
	cfg, err := config.Parse("gridfan.yaml", []byte(text), config.System())
	if err != nil {
		t.Fatal(err)
	}
	log := &buffer{}
	a, err := app.New(t.Context(), cfg, app.Options{Version: "test", Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			if err := a.Stop(); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)

	s := &senders{url: "http://" + a.PublicAddr() + "/ingress/shop", stop: make(chan struct{})}
	s.start(4)
	done := sync.OnceFunc(func() { close(s.stop); s.running.Wait() })
	t.Cleanup(done)
	more := func(n int64) {
		t.Helper()
		want := s.accepted.Load() + n
		eventually(t, "events are accepted", func() error {
			if got := s.accepted.Load(); got < want {
				return fmt.Errorf("%d of %d", got, want)
			}
			return nil
		})
	}
	more(200)
	// Operators' commands need permissions, too.
	api := &admin.Client{URL: "http://" + a.AdminAddr()}
	exercise(t, api, s, c.js(c.nodes[0]))
	for range 2 {
		leader := c.leader(t, broker.StreamEvents)
		leader.kill()
		more(200)
		leader.start()
		c.wait()
	}
	done()
	t.Logf("%d accepted, %d posts repeated", len(s.ids), s.repeated.Load())

	eventually(t, "every event has come", func() error {
		if missing := in.lacks(s.ids); len(missing) > 0 {
			return fmt.Errorf("%d of %d are missing: %v", len(missing), len(s.ids), missing[:min(5, len(missing))])
		}
		return nil
	})
	stored := map[string]int{}
	for _, id := range c.stored(t) {
		stored[id]++
	}
	for _, id := range s.ids {
		if stored[id] != 1 {
			t.Errorf("%s is stored %d times", id, stored[id])
		}
	}
	status, err := api.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(fmt.Sprintf("%+v", status), "verified at") {
		t.Errorf("the servers' syncing is not verified: %+v", status)
	}
	stop()
	if text := log.String(); strings.Contains(strings.ToLower(text), "permissions violation") {
		t.Errorf("gridfan may not do what it does:\n%s", text)
	}
}

// exercise does what operators do: each of these asks the broker in a way of its own.
func exercise(t *testing.T, api *admin.Client, s *senders, js jetstream.JetStream) {
	t.Helper()
	ctx := t.Context()
	resp, err := http.Post(s.url, "application/cloudevents+json", strings.NewReader(`{"no":"event"}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	s.mu.Lock()
	first := s.ids[0]
	s.mu.Unlock()
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"books", func() error { _, err := api.Books(ctx); return err }},
		{"why", func() error { _, err := api.Why(ctx, first, deliver.Duration(time.Hour)); return err }},
		{"event", func() error { _, err := api.Event(ctx, 1); return err }},
		{"pause", func() error { _, err := api.SetPaused(ctx, "warehouse", true); return err }},
		{"resume", func() error { _, err := api.SetPaused(ctx, "warehouse", false); return err }},
		{"pause a client's consumer", func() error { _, err := api.SetPaused(ctx, "erp", true); return err }},
		{"replay", func() error {
			_, err := api.Replay(ctx, "warehouse", admin.ReplayOrder{Range: deadletters.Range{From: deadletters.Point{Sequence: 1}}})
			return err
		}},
		{"jobs", func() error { _, err := api.Jobs(ctx); return err }},
		{"dead letters", func() error { _, err := api.DeadLetterGroups(ctx, "warehouse"); return err }},
		{"quarantine", func() error {
			list, err := api.Quarantine(ctx, "shop", 0, 10)
			if err == nil && len(list.Entries) != 1 {
				err = fmt.Errorf("%d entries", len(list.Entries))
			}
			return err
		}},
		{"drop what is in quarantine", func() error { _, err := api.Drop(ctx, quarantine.Selection{Source: "shop"}); return err }},
		{"subscribe", func() error {
			_, err := api.Subscribe(ctx, registry.Definition{Name: "live", Subjects: []string{"events.>"}, Deliver: registry.Deliver{Pull: &pull.Config{}}})
			if err != nil && strings.Contains(err.Error(), "exists") {
				return nil // by a try before
			}
			return err
		}},
		// A consumer that is removed while it is being made answers neither request.
		{"the subscriber's consumers are there", func() error {
			_, err := js.Consumer(ctx, broker.StreamEvents, "live")
			_, err2 := js.Consumer(ctx, broker.StreamRetry, "live")
			return errors.Join(err, err2)
		}},
		{"delete", func() error { _, err := api.Delete(ctx, "live", true); return err }},
	} {
		// What was written a moment ago may be read from a replica that is behind.
		eventually(t, step.name, step.do)
	}
}

// leader is the node that leads a stream of gridfan's, as any other tells.
func (c *cluster) leader(t *testing.T, stream string) *node {
	t.Helper()
	var leader *node
	eventually(t, stream+" has a leader", func() error {
		on := c.spread(context.Background(), c.js(c.nodes[0]), stream)
		leader = on[0]
		return nil
	})
	return leader
}

// stored reads the ids of all events from the stream.
func (c *cluster) stored(t *testing.T) []string {
	t.Helper()
	s, err := c.js(c.nodes[1]).Stream(t.Context(), broker.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
		m, err := s.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, m.Header.Get("ce-id"))
	}
	return ids
}
