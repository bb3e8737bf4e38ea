package app_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/cmd/internal/app"
	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/infra/amqptest"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/quarantine"
	"github.com/gridfan/gridfan/router/receive"
	"github.com/gridfan/gridfan/subscribers/books"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// filed is a gridfan that follows a file.
type filed struct {
	*gridfan
	file        string
	subscribers string
}

func startFiled(t *testing.T, sources, subscribers string) *filed {
	t.Helper()
	f := &filed{gridfan: &gridfan{t: t, dir: t.TempDir()}, subscribers: subscribers}
	f.file = filepath.Join(f.dir, "gridfan.yaml")
	f.write(sources)
	load := func() (*config.Config, error) { return config.Load(f.file) }
	cfg, err := load()
	if err != nil {
		t.Fatal(err)
	}
	if f.app, err = app.New(context.Background(), cfg, app.Options{Version: "test", Log: slog.New(slog.DiscardHandler), File: f.file, Load: load}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.stop)
	f.admin, f.natsURL = &admin.Client{URL: "http://" + f.app.AdminAddr()}, f.app.BrokerURL()
	return f
}

func (f *filed) write(sources string) {
	f.t.Helper()
	// Never half of it: the file is looked at every other second.
	text := configuration(filepath.Join(f.dir, "data"), "sources:\n"+sources, f.subscribers)
	if err := os.WriteFile(f.file+".new", []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(f.file+".new", f.file); err != nil {
		f.t.Fatal(err)
	}
}

// apply has other sources taken over, and gives what has changed, each in a word. It
// may be empty when gridfan has seen the file by itself.
func (f *filed) apply(sources string) []string {
	f.t.Helper()
	f.write(sources)
	res, err := f.admin.Apply(f.t.Context(), admin.ApplyRequest{})
	if err != nil || len(res.NeedsRestart) > 0 || len(res.NeedsFile) > 0 || len(res.Problems) > 0 {
		f.t.Fatalf("%+v, %v", res, err)
	}
	var changes []string
	for _, c := range res.Changes {
		changes = append(changes, c.What+" "+c.Kind+" "+c.Name)
	}
	return changes
}

// names are those of the sources that it knows.
func (f *filed) names() (names []string) {
	f.t.Helper()
	list, err := f.admin.Sources(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	for _, s := range list {
		names = append(names, s.Name)
	}
	return names
}

// Sources are added, changed and removed while events pour in by all ways: what was
// accepted arrives once, what is not touched goes on, and a queue or a table that was
// left for a while is gone on with where it was.
func TestSourcesUnderLoad(t *testing.T) {
	in, e := newInbox(t), newEstate(t)
	srv := amqptest.Start(t, amqptest.Options{})
	q := srv.Queue("orders", amqptest.QueueOptions{MaxDeliveries: 1000})
	bus := func(batch int) string {
		return fmt.Sprintf("  bus: { kind: cloudevents, receive: { serviceBus: { queue: orders, batch: %d, auth: { connectionString: \"Endpoint=sb://%s;SharedAccessKeyName=n;SharedAccessKey=a2V5LWtleS1rZXk=;UseDevelopmentEmulator=true\" } } } }\n", batch, srv.Addr)
	}
	fo := func(concurrency int) string {
		return fmt.Sprintf("  fo: { kind: fno, limits: { concurrency: %d }, push: { auth: none } }\n", concurrency)
	}
	const extra = "  extra: { kind: fno, push: { auth: none } }\n"
	f := startFiled(t, fo(256)+bus(10)+e.source("crm", ""), "subscribers:\n"+subscriber("all", in.url+"/all", quickRetry))
	f.state("crm", poll.Polling)
	l := f.begin("L")
	random := rand.New(rand.NewPCG(9, 9))
	var want []string
	work := func() {
		for range 40 {
			id := fmt.Sprintf("BUS-%d", len(want))
			want = append(want, id)
			q.Put(&amqp.Message{Properties: &amqp.MessageProperties{MessageID: id}, Data: [][]byte{fmt.Appendf(nil, `{"specversion":"1.0","id":%q,"source":"/s","type":"t"}`, id)}})
			e.write(random)
		}
		l.more(t, 10)
	}
	for round := range 5 {
		work()
		f.apply(fo(200+round) + bus(5+round) + extra) // without crm
		work()
		if got, want := f.names(), []string{"bus", "extra", "fo"}; !slices.Equal(got, want) {
			t.Fatalf("sources %v, want %v", got, want)
		}
		if a := f.post("extra", nil, businessEvent(fmt.Sprint("EXTRA-", round))); a.status != http.StatusOK {
			t.Errorf("a new source: %d %s", a.status, a.body)
		}
		want = append(want, fmt.Sprint("EXTRA-", round))
		f.apply(fo(200+round) + e.source("crm", "")) // without bus and extra
		work()
		if a := f.post("extra", nil, businessEvent("X")); a.status != http.StatusServiceUnavailable || a.json(t)["code"] != "unknown-source" {
			t.Errorf("a source that is gone: %d %s", a.status, a.body)
		}
	}
	// A file with a mistake changes nothing.
	f.write(fo(300) + "  bad: { kind: nothing }\n")
	if _, err := f.admin.Apply(t.Context(), admin.ApplyRequest{}); problemCode(err) != "bad-file" {
		t.Errorf("got %v", err)
	}
	work()
	f.apply(fo(300) + bus(20) + e.source("crm", ""))
	want = append(want, l.end()...)
	in.wantOnce(t, "all", want)
	e.published(t, in, "all")
	waitFor(t, "the queue is empty", func() bool { return q.Len() == 0 })
	if n := q.DeadLetters.Len(); n > 0 {
		t.Errorf("%d dead letters", n)
	}
	if s := f.state("crm", poll.Polling); s.Poll.Remembered != 0 {
		t.Errorf("%d rows were taken for a baseline, when it was there again", s.Poll.Remembered)
	}
	if n := e.together.Load(); n > 0 {
		t.Errorf("%d requests came together", n)
	}
	s, err := f.admin.Source(t.Context(), "bus")
	if err != nil || s.Receive.State != receive.Receiving || s.Receive.Held != 0 {
		t.Errorf("%+v, %v", s.Receive, err)
	}
	f.drained()
	kept, err := f.admin.Books(t.Context())
	if err != nil || !kept.Balanced {
		t.Errorf("%+v, %v", kept, err)
	}
	// What came of a source that is gone is still in the books, and its events are.
	if i := slices.IndexFunc(kept.Sources, func(s books.Source) bool { return s.Name == "extra" }); i < 0 || kept.Sources[i].Published != 5 {
		t.Errorf("%+v", kept.Sources)
	}
}

// What a change of sources is said to be, is what it is; another secret is one, and
// what is the same is none. A body from quarantine is read as its source would today.
func TestSourcesTakenOver(t *testing.T) {
	in := newInbox(t)
	custom := func(kind string) string {
		return "  own: { kind: custom, mapping: { type: " + kind + ", id: .id }, push: { auth: { anyOf: [ { key: key-of-own-0123456789 } ] } } }\n"
	}
	const fo = "  fo: { kind: fno, push: { auth: none } }\n"
	f := startFiled(t, fo+custom(".kind"), "subscribers:\n"+subscriber("all", in.url+"/all", ""))
	key := func(k string) http.Header { return http.Header{"Aeg-Sas-Key": {k}} }
	if a := f.post("own", key("key-of-own-0123456789"), []byte(`{"id":"A","kind":{},"sort":"x"}`)); a.status != http.StatusOK || !strings.Contains(string(a.body), `"quarantined":1`) {
		t.Fatalf("%d %s", a.status, a.body)
	}
	plan := func(sources string) string {
		t.Helper()
		f.write(sources)
		res, err := f.admin.Apply(t.Context(), admin.ApplyRequest{DryRun: true})
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for _, c := range res.Changes {
			fmt.Fprintf(&b, "%s %s %s;", c.What, c.Kind, c.Name)
			for _, d := range c.Keys {
				fmt.Fprintf(&b, " %s %s>%s", d.Key, d.From, d.To)
			}
		}
		return b.String()
	}
	// gridfan looks at its file by itself as well, so a plan may come too late.
	changed := func(sources, want string) {
		t.Helper()
		if got := plan(sources); got != want && got != "" {
			t.Errorf("got %q, want %q", got, want)
		}
		f.apply(sources)
		if got := plan(sources); got != "" {
			t.Errorf("again: %q", got)
		}
	}
	changed(fo+custom(".sort"), "changed source own; mapping as it was>changed")
	res, err := f.admin.Redrive(t.Context(), quarantine.Selection{Source: "own"}, false)
	if err != nil || len(res.Outcomes) != 1 || res.Outcomes[0].Published != 1 {
		t.Errorf("a redrive by the mapping of now: %+v, %v", res, err)
	}
	changed(fo+strings.Replace(custom(".sort"), "key-of-own", "new-key-of-own", 1), "changed source own; push as it was>changed")
	for k, status := range map[string]int{"key-of-own-0123456789": 401, "new-key-of-own-0123456789": 200} {
		if a := f.post("own", key(k), []byte(`{"id":"B","sort":"x"}`)); a.status != status {
			t.Errorf("%s: %d %s", k, a.status, a.body)
		}
	}
	changed(fo, "removed source own;")
	changed(fo+"  own: { kind: eventgrid, push: { auth: none } }\n", "added source own;")
	if s, err := f.admin.Source(t.Context(), "own"); err != nil || s.Kind != "eventgrid" {
		t.Errorf("%+v, %v", s, err)
	}
	if m := f.get("/metrics"); !strings.Contains(m, `gridfan_ingress_failed_share{source="own"}`) {
		t.Error("a new source has no metrics")
	}

	// By API a file's subscribers are taken over and its sources compared.
	cfg, err := config.Load(f.file)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Sources = cfg.Sources[:1]
	applied, err := f.admin.Apply(t.Context(), admin.ApplyRequest{Declared: &admin.Declared{Endpoints: cfg.Endpoints, Subscribers: cfg.Subscribers, Sections: cfg.Sections()}})
	if err != nil || !slices.Equal(applied.NeedsFile, []string{"sources"}) || len(applied.NeedsRestart) > 0 || len(f.names()) != 2 {
		t.Errorf("%+v, %v", applied, err)
	}

	// At a change of the file alone.
	f.write(fo + custom(".sort"))
	waitFor(t, "the file is followed", func() bool {
		s, err := f.admin.Source(t.Context(), "own")
		return err == nil && s.Kind == "custom"
	})
	if state, err := f.admin.Config(t.Context()); err != nil || len(state.NeedsRestart) > 0 || time.Since(state.Loaded) > time.Hour {
		t.Errorf("%+v, %v", state, err)
	}
	if c := f.apply(fo); len(c) > 0 && !slices.Equal(c, []string{registry.Removed + " source own"}) {
		t.Errorf("%v", c)
	}
}
