package app_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deadletters"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// TestRedriveKilled kills gridfan several times while it sends dead letters out
// anew. The next process goes on by itself; in the end each was delivered, and
// recorded as sent once. As after every crash, what was being delivered may come
// twice.
func TestRedriveKilled(t *testing.T) {
	const n, kills = 600, 5
	in := newInbox(t)
	var refuse atomic.Bool
	refuse.Store(true)
	in.handle = func(w http.ResponseWriter, _ *http.Request, _ received) bool {
		if refuse.Load() {
			w.WriteHeader(http.StatusUnprocessableEntity)
		}
		return refuse.Load()
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "gridfan.yaml")
	config := configuration(filepath.Join(dir, "data"), sources, "subscribers:\n"+subscriber("shop", in.url+"/shop", ""))
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	c := startChild(t, childGridfan, file)
	api := func() *admin.Client { return &admin.Client{URL: "http://" + c.addresses.Admin} }
	for range n / 100 {
		mustPost(t, c.addresses.Public, "eg", batch(100))
	}
	waitFor(t, "dead letters", func() bool {
		s, err := api().Subscriber(t.Context(), "shop")
		return err == nil && s.Backlog.DeadLetters == n && s.Backlog.Pending == 0
	})
	var ids []string
	for id := range in.counts("shop") {
		ids = append(ids, id)
	}
	in.mu.Lock()
	in.got = nil
	in.mu.Unlock()
	refuse.Store(false)

	rate := deliver.Rate(n / 3)
	o, err := api().RedriveDeadLetters(t.Context(), "shop", admin.LetterOrder{Selection: deadletters.Selection{All: true}, Rate: &rate})
	if err != nil {
		t.Fatal(err)
	}
	job := func() deadletters.Job {
		j, err := api().Job(t.Context(), o.Job.ID)
		if err != nil {
			t.Fatal(err)
		}
		return *j
	}
	for k := range kills {
		waitFor(t, "some are done", func() bool { return job().Done >= (k+1)*n/(kills+2) })
		c.kill()
		c = startChild(t, childGridfan, file)
	}
	waitFor(t, "the job is done", func() bool { return job().State == deadletters.Done })
	if j := job(); j.Done != n || j.Looked != n {
		t.Errorf("%+v", j)
	}
	in.wantAll(t, "shop", ids)
	waitFor(t, "nothing is left", func() bool {
		s, err := api().Subscriber(t.Context(), "shop")
		return err == nil && s.Backlog.Empty()
	})

	g := &gridfan{t: t, natsURL: c.addresses.NATS}
	redriven, delivered := map[string]int{}, map[string]int{}
	for _, m := range g.stored(broker.StreamAttempts) {
		records, err := deliver.ParseRecords(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			switch r.Outcome {
			case deliver.RecordRedriven:
				redriven[r.ID]++
			case deliver.RecordDelivered:
				delivered[fmt.Sprint(r.ID, " ", r.Hop)]++
			}
		}
	}
	for _, id := range ids {
		if redriven[id] != 1 || delivered[id+" 2"] != 1 {
			t.Errorf("%s: %d times recorded as sent anew, %d times as delivered", id, redriven[id], delivered[id+" 2"])
		}
	}
	again := 0
	for _, times := range in.counts("shop") {
		again += times - 1
	}
	t.Logf("%d of %d came again after %d kills", again, n, kills)
}
