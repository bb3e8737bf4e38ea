package complete

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/router/poll"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/dataverse"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/schemas/record"
)

// patience is how long what must come may take on a busy machine.
const patience = 2 * time.Minute

// desk is a router with a Completer only, and the Dataverse it asks.
type desk struct {
	t      *testing.T
	broker *broker.Broker
	pub    *publish.Publisher
	*Completer
	metrics *prometheus.Registry

	mu      sync.Mutex // guards all below
	read    func(ctx context.Context, table, id string) (record.Row, error)
	reads   []string
	fail    error // what publishing says instead of doing it
	reports []string
}

func newDesk(t *testing.T, within time.Duration) *desk {
	t.Helper()
	d := &desk{t: t, broker: brokertest.New(t), read: func(context.Context, string, string) (record.Row, error) {
		return record.Row{}, poll.Faultf(poll.Unavailable, 503, "down")
	}}
	var err error
	if d.pub, err = publish.New(t.Context(), d.broker, publish.Config{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.pub.Close() })
	d.start(Source{Name: "crm", Within: within, Read: d.row})
	return d
}

// start makes a Completer, as a new process does.
func (d *desk) start(sources ...Source) {
	d.t.Helper()
	d.metrics = prometheus.NewRegistry()
	c, err := New(d.t.Context(), sources, Parts{
		Broker: d.broker, Publish: d.publish, Known: d.pub.Known, Metrics: NewMetrics(d.metrics), Log: slog.New(slog.DiscardHandler),
		Report: func(what, about string, attrs map[string]any) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.reports = append(d.reports, fmt.Sprint(what, " ", about, " ", attrs["kind"]))
		},
	})
	if err != nil {
		d.t.Fatal(err)
	}
	c.least = 20 * time.Millisecond
	for _, s := range c.sources {
		s.settle = 50 * time.Millisecond
	}
	c.Start()
	stop := sync.OnceFunc(c.Stop)
	d.t.Cleanup(stop)
	d.Completer = c
}

func (d *desk) row(ctx context.Context, table, id string) (record.Row, error) {
	d.mu.Lock()
	d.reads = append(d.reads, id)
	read := d.read
	d.mu.Unlock()
	return read(ctx, table, id)
}

// answers sets what Dataverse does.
func (d *desk) answers(read func(ctx context.Context, table, id string) (record.Row, error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.read = read
}

func (d *desk) publish(ctx context.Context, o publish.Origin, results []event.Result) ([]publish.Status, error) {
	d.mu.Lock()
	err := d.fail
	d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return d.pub.Publish(ctx, o, results)
}

func (d *desk) asked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.reads)
}

// send gives bodies to the Completer as they are pushed, and what became of each.
func (d *desk) send(bodies ...string) []publish.Status {
	d.t.Helper()
	statuses, err := d.try(bodies...)
	if err != nil {
		d.t.Fatal(err)
	}
	return statuses
}

func (d *desk) try(bodies ...string) ([]publish.Status, error) {
	var results []event.Result
	for _, body := range bodies {
		results = append(results, dataverse.Parse("crm", nil, []byte(body))...)
	}
	return d.Publish(d.t.Context(), publish.Origin{Source: "crm", Kind: event.KindDataverse, Environment: "e", Via: "push", Accepted: time.Now()}, results)
}

func (d *desk) eventually(what string, ok func() bool) {
	d.t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			d.t.Fatalf("%s: not within %s", what, patience)
		}
		time.Sleep(5 * time.Millisecond) // sleep: between two looks
	}
}

// events are those in EVENTS.
func (d *desk) events() []*event.Event {
	d.t.Helper()
	s, err := d.broker.JetStream().Stream(d.t.Context(), broker.StreamEvents)
	if err != nil {
		d.t.Fatal(err)
	}
	var all []*event.Event
	for seq := uint64(1); seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(d.t.Context(), seq)
		if err != nil {
			d.t.Fatal(err)
		}
		e, err := event.Decode(m.Header, m.Data)
		if err != nil {
			d.t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

// published waits for n events, and gives them.
func (d *desk) published(n int) []*event.Event {
	d.t.Helper()
	var all []*event.Event
	d.eventually(fmt.Sprintf("%d events are published", n), func() bool { all = d.events(); return len(all) >= n })
	if len(all) != n {
		d.t.Fatalf("%d events are published, want %d", len(all), n)
	}
	return all
}

// kept is how many events are in HELD.
func (d *desk) kept() uint64 {
	d.t.Helper()
	s, err := d.broker.JetStream().Stream(d.t.Context(), broker.StreamHeld)
	if err != nil {
		d.t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

// counted is how many events had a result.
func (d *desk) counted(result string) float64 {
	d.t.Helper()
	families, err := d.metrics.Gather()
	if err != nil {
		d.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "gridfan_complete_events_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "result" && l.GetValue() == result {
					return m.GetCounter().GetValue()
				}
			}
		}
	}
	return 0
}

var happened = time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)

func idOf(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }

// over is an event from which Dataverse took out what is large.
func over(message string, row, operation int, more string) string {
	return fmt.Sprintf(`{"MessageName":%q,"PrimaryEntityName":"account","PrimaryEntityId":%q,"OperationId":"11111111-0000-4000-8000-%012d",
		"OwningExtension":{"Id":"22222222-0000-4000-8000-000000000001"},"Stage":40,"OperationCreatedOn":"/Date(%d)/"%s}`,
		message, idOf(row), operation, happened.UnixMilli(), more)
}

// whole is one that is not too large.
func whole(row, operation int) string {
	return over("Update", row, operation, fmt.Sprintf(`,"InputParameters":[{"key":"Target","value":{"LogicalName":"account","Id":%q,"Attributes":[{"key":"name","value":"pushed"}]}}]`, idOf(row)))
}

// rowOf is a row as Dataverse has it.
func rowOf(id string, version int, modified time.Time) record.Row {
	return record.Row{
		Key: id, Version: fmt.Sprint(version), Ordered: true, Created: happened.Add(-time.Hour), Modified: modified,
		Data: fmt.Appendf(nil, `{"@odata.etag":"W/\"%d\"","accountid":%q,"name":"read","revenue":12.50,"revenue@OData.Community.Display.V1.FormattedValue":"€12.50","modifiedon":%q,"versionnumber":%d}`,
			version, id, modified.Format(time.RFC3339), version),
	}
}

func found(_ context.Context, _, id string) (record.Row, error) {
	return rowOf(id, 7, happened), nil
}

// An over-size event is published with its row, once, whoever repeats it when.
func TestCompletes(t *testing.T) {
	d := newDesk(t, time.Hour)
	release := make(chan struct{})
	d.answers(func(ctx context.Context, table, id string) (record.Row, error) {
		<-release
		return found(ctx, table, id)
	})
	if got := d.send(over("Update", 1, 1, ""), whole(2, 2)); !slices.Equal(got, []publish.Status{publish.Completing, publish.Published}) {
		t.Errorf("got %v", got)
	}
	if got := d.send(over("Update", 1, 1, "")); !slices.Equal(got, []publish.Status{publish.Duplicate}) {
		t.Errorf("repeated while it is kept: %v", got)
	}
	status, err := d.Status(t.Context())
	if err != nil || status["crm"].Held != 1 {
		t.Errorf("status %+v, %v", status, err)
	}
	close(release)
	e := d.published(2)[1]
	wantData := `{"table":"account","message":"Update","id":"` + idOf(1) + `","changed":["accountid","name","revenue","modifiedon","versionnumber"],` +
		`"columns":{"accountid":"` + idOf(1) + `","name":"read","revenue":12.50,"modifiedon":"2026-11-23T08:00:00Z","versionnumber":7},"formatted":{"revenue":"€12.50"},` +
		`"preImages":{},"postImages":{},"context":{"OperationId":"11111111-0000-4000-8000-000000000001","OwningExtension":{"Id":"22222222-0000-4000-8000-000000000001"},"Stage":40,"OperationCreatedOn":"2026-11-23T08:00:00Z","@odata.etag":"W/\"7\""}}`
	if got := string(e.Data); strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(wantData, " ", "") {
		t.Errorf("data (-want +got):\n%s", cmp.Diff(wantData, got))
	}
	if e.Get("incomplete") != "" || e.Get("completed") == "" || e.Get("newer") != "" || e.Get("sequence") != "7" || e.Get("via") != "push" ||
		e.Get("matchkey") != dataverse.MatchKey("account", idOf(1), happened) || !e.Time.Equal(happened) || e.ID != "11111111-0000-4000-8000-000000000001-22222222-0000-4000-8000-000000000001" {
		t.Errorf("attributes: %+v", e)
	}
	d.eventually("nothing is kept", func() bool { return d.kept() == 0 })
	if got := d.send(over("Update", 1, 1, "")); !slices.Equal(got, []publish.Status{publish.Duplicate}) {
		t.Errorf("repeated after it was published: %v", got)
	}
	d.eventually("it is counted", func() bool { return d.counted("completed") == 1 })
	if d.asked() != 1 {
		t.Errorf("asked %d times", d.asked())
	}
}

// Events of one record keep their order; those of others do not wait.
func TestOrder(t *testing.T) {
	d := newDesk(t, time.Hour)
	up := make(chan struct{})
	d.answers(func(ctx context.Context, table, id string) (record.Row, error) {
		select {
		case <-up:
			return found(ctx, table, id)
		default:
			return record.Row{}, poll.Faultf(poll.Unavailable, 503, "down")
		}
	})
	for i, tt := range []struct {
		body string
		want publish.Status
	}{
		{whole(1, 1), publish.Published},
		{over("Update", 1, 2, ""), publish.Completing},
		{whole(1, 3), publish.Completing},
		{whole(2, 4), publish.Published},
		{over("Update", 1, 5, ""), publish.Completing},
		{over("Delete", 1, 6, ""), publish.Completing}, // it has no row, but its turn
		{over("Update", 3, 7, ""), publish.Completing},
	} {
		if got := d.send(tt.body); got[0] != tt.want {
			t.Errorf("%d: %s, want %s", i+1, got[0], tt.want)
		}
	}
	// A batch is in order, too.
	if got := d.send(whole(4, 8), over("Update", 4, 9, ""), whole(4, 10), whole(5, 11)); !slices.Equal(got, []publish.Status{publish.Published, publish.Completing, publish.Completing, publish.Published}) {
		t.Errorf("a batch: %v", got)
	}
	if got := d.kept(); got != 7 {
		t.Errorf("%d are kept", got)
	}
	d.eventually("it was tried", func() bool { return d.asked() > 3 })
	close(up)
	order := map[string][]string{}
	for _, e := range d.published(11) {
		order[e.Subject] = append(order[e.Subject], strings.TrimLeft(e.ID[strings.LastIndex(e.ID[:36], "-")+1:36], "0")+map[bool]string{true: "!", false: ""}[e.Get("completed") != ""])
	}
	want := map[string][]string{idOf(1): {"1", "2!", "3", "5!", "6"}, idOf(2): {"4"}, idOf(3): {"7!"}, idOf(4): {"8", "9!", "10"}, idOf(5): {"11"}}
	if diff := cmp.Diff(want, order); diff != "" {
		t.Errorf("order by record (-want +got):\n%s", diff)
	}
	d.eventually("nothing is kept", func() bool { return d.kept() == 0 })
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Equal(d.reports, []string{"source.completing-failing crm unavailable", "source.completing crm <nil>"}) {
		t.Errorf("reported %q", d.reports)
	}
}

// Why events are published as they came.
func TestIncomplete(t *testing.T) {
	for _, tt := range []struct {
		name string
		body string
		read func(context.Context, string, string) (record.Row, error)
		want string
		asks bool
	}{
		{"down", over("Update", 1, 1, ""), func(context.Context, string, string) (record.Row, error) {
			return record.Row{}, poll.Faultf(poll.Unavailable, 503, "down")
		}, reasonLate, true},
		{"throttled", over("Update", 1, 1, ""), func(context.Context, string, string) (record.Row, error) {
			return record.Row{}, &poll.Throttled{Status: 429, After: time.Hour, Reason: "slower"}
		}, reasonLate, true},
		{"no answer", over("Update", 1, 1, ""), func(ctx context.Context, _, _ string) (record.Row, error) {
			<-ctx.Done()
			return record.Row{}, ctx.Err()
		}, reasonLate, true},
		{"refused", over("Update", 1, 1, ""), func(context.Context, string, string) (record.Row, error) {
			return record.Row{}, poll.Faultf(poll.Credentials, 403, "no")
		}, reasonLate, true},
		{"no table", over("Update", 1, 1, ""), func(context.Context, string, string) (record.Row, error) {
			return record.Row{}, poll.Faultf(poll.Configuration, 404, "no such table")
		}, reasonUnread, true},
		{"gone", over("Create", 1, 1, ""), func(_ context.Context, _, id string) (record.Row, error) {
			return record.Row{Key: id, Deleted: true}, nil
		}, reasonGone, true},
		{"no row", over("Update", 1, 1, ""), func(_ context.Context, _, id string) (record.Row, error) {
			return record.Row{Key: id, Data: []byte(`{"a":1,"a":2}`)}, nil
		}, reasonUnread, true},
		{"too large", over("Update", 1, 1, ""), func(_ context.Context, _, id string) (record.Row, error) {
			return record.Row{Key: id, Data: fmt.Appendf(nil, `{"a":%q}`, strings.Repeat("a", 9<<20))}, nil
		}, reasonLarge, true},
		{"rolled back", over("Update", 1, 1, `,"IsInTransaction":true`), func(_ context.Context, _, id string) (record.Row, error) {
			return rowOf(id, 6, happened.Add(-time.Hour)), nil
		}, reasonOld, true},
		{"deleted", over("Delete", 1, 1, ""), nil, reasonDeleted, false},
		{"an action", over("Assign", 1, 1, ""), nil, reasonParameters, false},
		{"many rows", strings.Replace(over("UpdateMultiple", 1, 1, ""), idOf(1), "00000000-0000-0000-0000-000000000000", 1), nil, reasonParameters, false},
		{"no id", strings.Replace(over("Update", 1, 1, ""), idOf(1), "", 1), nil, reasonParameters, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, 500*time.Millisecond)
			d.answers(tt.read)
			want := publish.Published
			if tt.asks {
				want = publish.Completing
			}
			if got := d.send(tt.body); got[0] != want {
				t.Errorf("got %v", got)
			}
			e := d.published(1)[0]
			if e.Get("incomplete") != "true" || e.Get("incompletereason") != tt.want || e.Get("completed") != "" {
				t.Errorf("attributes %+v", e.Extensions)
			}
			d.eventually("it is counted", func() bool { return d.counted(tt.want) == 1 })
			if asked := d.asked() > 0; asked != tt.asks {
				t.Errorf("asked %d times", d.asked())
			}
			// The next one of the record is not held up.
			d.eventually("nothing is kept", func() bool { return d.kept() == 0 })
			if got := d.send(whole(1, 2)); got[0] != publish.Published {
				t.Errorf("the next one: %v", got)
			}
		})
	}
}

// What is kept when a process dies is completed by the next one, in order; what the
// dead one had published is not published again.
func TestRestart(t *testing.T) {
	d := newDesk(t, time.Hour)
	d.send(over("Update", 1, 1, ""), whole(1, 2), over("Update", 2, 3, ""))
	d.eventually("it was tried", func() bool { return d.asked() > 0 })
	m, err := d.held.GetMsg(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	d.Stop()
	// As if it had been killed between publishing the first and taking it out.
	o, r, err := decode(m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.pub.Publish(t.Context(), o, []event.Result{r}); err != nil {
		t.Fatal(err)
	}
	d.answers(found)
	d.start(Source{Name: "crm", Within: time.Hour, Read: d.row})
	d.eventually("nothing is kept", func() bool { return d.kept() == 0 })
	var got []string
	for _, e := range d.published(3) {
		if e.Subject == idOf(1) {
			got = append(got, e.ID[:36])
		}
	}
	if want := []string{"11111111-0000-4000-8000-000000000001", "11111111-0000-4000-8000-000000000002"}; !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	d.eventually("the repeated one is counted", func() bool { return d.counted("duplicate") == 1 })
}

// A source that is not completed any more does not keep what it kept.
func TestSwitchedOff(t *testing.T) {
	d := newDesk(t, time.Hour)
	d.send(over("Update", 1, 1, ""), whole(1, 2))
	d.Stop()
	d.start()
	all := d.published(2)
	if all[0].Get("incompletereason") != reasonOff || all[1].Get("incomplete") != "" {
		t.Errorf("got %+v, %+v", all[0], all[1])
	}
	if got := d.send(over("Update", 1, 3, "")); got[0] != publish.Published {
		t.Errorf("got %v", got)
	}
}

// Nothing leaves HELD while it cannot be published.
func TestStorageFull(t *testing.T) {
	d := newDesk(t, 100*time.Millisecond)
	d.send(over("Update", 1, 1, ""))
	d.mu.Lock()
	d.fail = publish.ErrStorageFull
	d.mu.Unlock()
	// What has to go through is refused, and its sender keeps it.
	if _, err := d.try(whole(2, 2)); !errors.Is(err, publish.ErrStorageFull) {
		t.Errorf("got %v", err)
	}
	d.eventually("it was tried", func() bool { return d.asked() > 0 })
	d.mu.Lock()
	d.fail = nil
	d.mu.Unlock()
	d.published(1)
	d.eventually("nothing is kept", func() bool { return d.kept() == 0 })
}

// Where there is no room to keep an event, it is published as it is; one that would
// overtake is refused.
func TestNoRoom(t *testing.T) {
	d := newDesk(t, time.Hour)
	js := d.broker.JetStream()
	s, err := js.Stream(t.Context(), broker.StreamHeld)
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	cfg.MaxMsgs = 1
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	d.send(over("Update", 1, 1, ""))
	if got := d.send(over("Update", 2, 2, "")); got[0] != publish.Published {
		t.Errorf("got %v", got)
	}
	if e := d.published(1)[0]; e.Get("incompletereason") != reasonRoom {
		t.Errorf("attributes %+v", e.Extensions)
	}
	for _, body := range []string{whole(1, 3), over("Update", 1, 4, "")} {
		if _, err := d.try(body); !errors.Is(err, publish.ErrStorageFull) {
			t.Errorf("behind another: %v", err)
		}
	}
	if got := d.send(whole(3, 5)); got[0] != publish.Published {
		t.Errorf("another record: %v", got)
	}
}

// A repeated event is not taken for kept when it was taken out by hand.
func TestTakenOut(t *testing.T) {
	d := newDesk(t, time.Hour)
	d.send(over("Update", 1, 1, ""))
	s, err := d.broker.JetStream().Stream(t.Context(), broker.StreamHeld)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context(), jetstream.WithPurgeSubject("gridfan.held.crm.*")); err != nil {
		t.Fatal(err)
	}
	if got := d.send(over("Update", 1, 1, "")); got[0] != publish.Completing {
		t.Errorf("got %v", got)
	}
	d.answers(found)
	if e := d.published(1)[0]; e.Get("completed") == "" {
		t.Errorf("attributes %+v", e.Extensions)
	}
}

// One reading serves all events of a record that were there when it began.
func TestOneReading(t *testing.T) {
	d := newDesk(t, time.Hour)
	d.answers(func(context.Context, string, string) (record.Row, error) {
		return record.Row{}, &poll.Throttled{Status: 429, After: 200 * time.Millisecond}
	})
	for i := range 5 {
		d.send(over("Update", 1, i, ""))
	}
	before := d.asked()
	d.answers(found)
	for _, e := range d.published(5) {
		if e.Get("completed") == "" {
			t.Errorf("attributes %+v", e.Extensions)
		}
	}
	if n := d.asked() - before; n > 2 {
		t.Errorf("it was read %d times for five events", n)
	}
}

// A synchronous step sends before its transaction is committed: what is read then is
// the row of before.
func TestUncommitted(t *testing.T) {
	d := newDesk(t, time.Hour)
	var mu sync.Mutex
	n := map[string]int{}
	d.answers(func(_ context.Context, _, id string) (record.Row, error) {
		mu.Lock()
		defer mu.Unlock()
		n[id]++
		switch {
		case n[id] > 2:
			return rowOf(id, 8, happened.Add(2*time.Second)), nil
		case id == idOf(2):
			return record.Row{Key: id, Deleted: true}, nil
		}
		return rowOf(id, 7, happened.Add(-time.Minute)), nil
	})
	d.send(over("Update", 1, 1, `,"IsInTransaction":true`), over("Create", 2, 2, `,"IsInTransaction":true`), over("Update", 3, 3, `,"IsInTransaction":false`))
	for _, e := range d.published(3) {
		want := "8"
		if e.Subject == idOf(3) {
			want = "7" // committed: an old stamp is an import's
		}
		if e.Get("sequence") != want || (e.Get("newer") == "true") != (want == "8") {
			t.Errorf("row %s: %+v", e.Subject, e.Extensions)
		}
	}
}

// What is polled of a record does not overtake what is kept of it.
func TestPolledBehind(t *testing.T) {
	d := newDesk(t, time.Hour)
	d.send(over("Update", 1, 1, ""))
	shape := record.Shape{Kind: event.KindDataverse, Source: "crm", Table: "account"}
	o := publish.Origin{Source: "crm", Kind: event.KindDataverse, Environment: "e", Via: "poll", Accepted: time.Now()}
	results := []event.Result{shape.Event(record.Row{Key: idOf(1), Deleted: true}), shape.Event(rowOf(idOf(2), 3, happened))}
	if got, err := d.Publish(t.Context(), o, results); err != nil || !slices.Equal(got, []publish.Status{publish.Completing, publish.Published}) {
		t.Errorf("got %v, %v", got, err)
	}
	d.answers(func(_ context.Context, _, id string) (record.Row, error) {
		return record.Row{Key: id, Deleted: true}, nil
	})
	all := d.published(3)
	if all[1].Get("incompletereason") != reasonGone || all[2].Get("action") != "deleted" || all[2].Get("via") != "poll" {
		t.Errorf("got %+v, %+v", all[1], all[2])
	}
}

// Other sources go through, and what is for the router, or not understood, with them.
func TestThrough(t *testing.T) {
	d := newDesk(t, time.Hour)
	results := []event.Result{
		dataverse.Parse("x", nil, []byte(over("Update", 1, 1, "")))[0],
		{Control: &event.Control{Kind: event.Test}},
		{Raw: []byte("x"), Fault: event.Faultf(event.FaultNotJSON, "x")},
	}
	for _, source := range []string{"other", "crm"} {
		got, err := d.Publish(t.Context(), publish.Origin{Source: source, Kind: event.KindDataverse, Environment: source, Via: "push", Accepted: time.Now()}, results)
		want := []publish.Status{publish.Published, publish.Control, publish.Quarantined}
		if source == "crm" {
			want[0] = publish.Completing
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", source, got, err)
		}
	}
}
