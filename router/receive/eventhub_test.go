package receive

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/go-amqp"
	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/amqptest"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
)

// hubSource reads CloudEvents from event hub orders.
func hubSource(srv *amqptest.Server) Source {
	return Source{Name: "shop", Kind: event.KindCloudEvents, From: &Config{EventHub: &EventHub{Hub: "orders", Auth: connectionTo(srv.Addr)}}}
}

// numbered makes the CloudEvents p-first to p-(first+n-1).
func numbered(prefix string, first, n int) []*amqp.Message {
	var all []*amqp.Message
	for i := range n {
		all = append(all, order(fmt.Sprintf("%s-%d", prefix, first+i)))
	}
	return all
}

// ids are those of the events that are stored.
func (h *hall) ids() []string {
	var all []string
	for _, m := range h.stored(broker.StreamEvents) {
		all = append(all, m.Header.Get("ce-id"))
	}
	return all
}

// caughtUp waits until a hub is read to its end, and that is kept.
func (h *hall) caughtUp(r *Receivers, hub *amqptest.Hub) {
	h.t.Helper()
	h.eventually("all is read", func() bool {
		st := r.Status()[0]
		for i, p := range st.Partitions {
			if last := hub.Last(i); p.Sequence == nil && last >= 0 || p.Sequence != nil && *p.Sequence != last || p.Lag == nil || *p.Lag != 0 {
				return false
			}
		}
		return len(st.Partitions) > 0 && *st.Lag == 0 && st.Held == 0
	})
}

// Events of all partitions are stored, in each in order, and those that come again
// are recognised.
func TestHub(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	hub := srv.Hub("orders", amqptest.HubOptions{Partitions: 3})
	for p := range 3 {
		hub.Put(p, numbered(fmt.Sprint("o-", p), 0, 250)...)
	}
	h := newHall(t, hubSource(srv))
	h.Start()
	h.eventually("all is stored", func() bool { return h.one("shop").Published == 750 })
	hub.Put(1, numbered("o-0", 0, 50)...)
	hub.Put(1, numbered("p", 0, 50)...)
	h.eventually("all is stored", func() bool { return h.one("shop").Settled == 850 })
	h.caughtUp(h.Receivers, hub)
	st := h.Status()[0]
	if st.State != Receiving || st.Published != 800 || st.Duplicate != 50 || st.Received != 850 || st.Held != 0 || st.Lost != 0 || st.Way != "eventHub" || st.From != "127.0.0.1/orders/$Default" || st.LastEvent == nil {
		t.Errorf("status %+v", st)
	}
	for i, want := range []int64{249, 349, 249} {
		p := st.Partitions[i]
		if p.Partition != fmt.Sprint(i) || !p.Here || p.Reader != broker.Instance() || p.State != Receiving || p.Sequence == nil || *p.Sequence != want || *p.LastEnqueued != want || p.Generation != 1 || p.Enqueued == nil || p.Missed != 0 {
			t.Errorf("partition %+v", p)
		}
	}
	all := h.stored(broker.StreamEvents)
	if m := all[0]; !strings.HasPrefix(m.Subject, "events.cloudevents.shop.") || m.Header.Get("ce-via") != "push" || string(m.Data) != `{"n":9007199254740993}` {
		t.Errorf("%s %v %s", m.Subject, m.Header, m.Data)
	}
	for p := range 3 {
		prefix := fmt.Sprintf("o-%d-", p)
		var got []string
		for _, id := range h.ids() {
			if strings.HasPrefix(id, prefix) {
				got = append(got, id)
			}
		}
		var want []string
		for i := range 250 {
			want = append(want, fmt.Sprint(prefix, i))
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("partition %d is not in order: %s", p, d)
		}
	}
	if d := cmp.Diff([]string{"source.receiving shop"}, h.reported()); d != "" {
		t.Error(d)
	}
	// A process of its own goes on where this one was.
	h.Stop()
	before := len(hub.Reads())
	next := h.receivers(hubSource(srv))
	next.Start()
	hub.Put(2, order("last"))
	h.eventually("the last one is stored", func() bool { return next.sources["shop"].status.status().Published == 1 })
	if st := next.sources["shop"].status.status(); st.Received != 1 {
		t.Errorf("it read others again: %+v", st)
	}
	for _, r := range hub.Reads()[before:] {
		if !strings.Contains(r.From, "x-opt-offset > '") || r.Epoch != 2 || !strings.HasPrefix(r.Reader, "gridfan-") {
			t.Errorf("%+v", r)
		}
	}
}

// What nothing can be made of is quarantined, with the reason, and read past.
func TestHubBodies(t *testing.T) {
	text := func(s string) *amqp.MessageProperties { return &amqp.MessageProperties{ContentType: &s} }
	structured := string(order("s-1").Data[0])
	for name, tt := range map[string]struct {
		kind    string
		message *amqp.Message
		want    string // an event's id, or the fault's code and part of its detail
	}{
		"structured":         {event.KindCloudEvents, order("s-1"), "s-1"},
		"in two sections":    {event.KindCloudEvents, &amqp.Message{Data: [][]byte{[]byte(structured[:40]), []byte(structured[40:])}}, "s-1"},
		"as text":            {event.KindCloudEvents, &amqp.Message{Value: structured}, "s-1"},
		"batch":              {event.KindCloudEvents, &amqp.Message{Properties: text("application/cloudevents-batch+json"), Data: [][]byte{[]byte("[" + structured + "]")}}, "s-1"},
		"binary":             {event.KindCloudEvents, &amqp.Message{Properties: text("text/plain"), Data: [][]byte{[]byte("x")}, ApplicationProperties: map[string]any{"cloudEvents:specversion": "1.0", "cloudEvents:id": "b-1", "cloudEvents:source": "/s", "cloudEvents:type": "t"}}, "b-1"},
		"binary, underscore": {event.KindCloudEvents, &amqp.Message{Data: [][]byte{[]byte("{}")}, ApplicationProperties: map[string]any{"cloudEvents_specversion": "1.0", "cloudEvents_id": "b-2", "cloudEvents_source": "/s", "cloudEvents_type": "t"}}, "b-2"},
		// Event Grid delivers to hubs with properties of its own (learn.microsoft.com,
		// event-grid handler-event-hubs; read 2026-11).
		"Event Grid": {event.KindEventGrid, &amqp.Message{
			Data:                  [][]byte{[]byte(`[{"id":"k","topic":"/t","subject":"o/1","eventType":"T","eventTime":"2026-11-01T10:00:00Z","data":{},"dataVersion":"1","metadataVersion":"1"}]`)},
			ApplicationProperties: map[string]any{"aeg-subscription-name": "HUB", "aeg-delivery-count": "0", "aeg-data-version": "1", "aeg-metadata-version": "1", "aeg-event-type": "Notification", "aeg-output-event-id": "k"},
		}, "k"},
		"Event Grid, CloudEvents":  {event.KindEventGrid, &amqp.Message{Properties: text("application/cloudevents+json; charset=utf-8"), Data: [][]byte{[]byte(structured)}}, "s-1"},
		"not JSON":                 {event.KindCloudEvents, &amqp.Message{Data: [][]byte{[]byte("{")}}, "not-json"},
		"empty":                    {event.KindCloudEvents, &amqp.Message{Data: [][]byte{{}}}, "not-json"},
		"a number":                 {event.KindCloudEvents, &amqp.Message{Value: int64(7)}, "unsupported AMQP value"},
		"a sequence":               {event.KindCloudEvents, &amqp.Message{Sequence: [][]any{{"a"}}}, "unsupported AMQP sequence"},
		"without id":               {event.KindCloudEvents, &amqp.Message{Data: [][]byte{[]byte(`{"specversion":"1.0","source":"/s","type":"t"}`)}}, "missing-member attribute id"},
		"Dataverse in .NET binary": {event.KindDataverse, &amqp.Message{Properties: text("application/msbin1"), Data: [][]byte{[]byte("@\x16RemoteExecutionContext\x08@http://schemas.microsoft.com/xrm/2011/Contracts")}}, "unsupported set Message Format to JSON"},
		"Dataverse in XML":         {event.KindDataverse, &amqp.Message{Data: [][]byte{[]byte("\ufeff<RemoteExecutionContext/>")}}, "unsupported XML format"},
		"larger than the limit":    {event.KindCloudEvents, &amqp.Message{Data: [][]byte{make([]byte, 9000)}}, "too-large limits.body"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := amqptest.Start(t, amqptest.Options{})
			hub := srv.Hub("orders", amqptest.HubOptions{})
			src := hubSource(srv)
			src.Kind, src.Body = tt.kind, 8192
			h := newHall(t, src)
			hub.Put(0, tt.message)
			h.Start()
			h.eventually("it is settled", func() bool { return h.one("shop").Settled == 1 })
			code, detail, _ := strings.Cut(tt.want, " ")
			if all := h.stored(broker.StreamEvents); len(all) == 1 {
				if id := all[0].Header.Get("ce-id"); id != tt.want {
					t.Errorf("id %s, want %s", id, tt.want)
				}
			} else if q := h.stored(broker.StreamQuarantine); len(q) != 1 {
				t.Errorf("%d events, %d in quarantine", len(all), len(q))
			} else if head, _ := url.PathUnescape(fmt.Sprint(q[0].Header)); !strings.Contains(head, code) || !strings.Contains(head, detail) {
				t.Errorf("in quarantine: %s", head)
			}
			h.caughtUp(h.Receivers, hub)
			if st := h.one("shop"); st.Received != st.Published+st.Duplicate+st.Quarantined+st.Control || st.Received != 1 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// Where partitions are begun that were never read.
func TestHubStart(t *testing.T) {
	for start, want := range map[string][]string{
		"":       {"a-0", "a-1", "a-2", "a-3", "b-0"},
		"now":    {"b-0"},
		"2":      {"a-2", "a-3", "b-0"},
		"@later": {"a-2", "a-3", "b-0"},
	} {
		t.Run("start "+start, func(t *testing.T) {
			srv := amqptest.Start(t, amqptest.Options{})
			hub := srv.Hub("orders", amqptest.HubOptions{})
			hub.Put(0, numbered("a", 0, 2)...)
			if start == "@later" {
				at := time.Now().Truncate(time.Second).Add(time.Second)
				start = at.Format(time.RFC3339)
				time.Sleep(time.Until(at)) // sleep: what comes then has a later second
			}
			hub.Put(0, numbered("a", 2, 2)...)
			src := hubSource(srv)
			src.From.EventHub.Start = start
			h := newHall(t, src)
			h.Start()
			h.eventually("it is read", func() bool { return hub.Readers(0) == 1 })
			// What comes before anything was stored is not skipped by a start "now".
			h.Stop()
			hub.Put(0, order("b-0"))
			next := h.receivers(src)
			next.Start()
			h.eventually("all is stored", func() bool { return len(h.ids()) >= len(want) })
			h.caughtUp(next, hub)
			if d := cmp.Diff(want, h.ids()); d != "" {
				t.Error(d)
			}
		})
	}
}

// What retention takes before it is read is counted and told, once.
func TestHubPositionLost(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	hub := srv.Hub("orders", amqptest.HubOptions{})
	hub.Put(0, numbered("a", 0, 3)...)
	h := newHall(t, hubSource(srv))
	h.Start()
	h.eventually("all is stored", func() bool { return len(h.ids()) == 3 })
	h.Stop()
	hub.Put(0, numbered("gone", 0, 7)...)
	hub.Put(0, numbered("b", 0, 2)...)
	hub.Expire(0, 10)
	for range 2 {
		r := h.receivers(hubSource(srv))
		r.Start()
		h.eventually("all is stored", func() bool { return len(h.ids()) == 5 })
		h.caughtUp(r, hub)
		if p := r.Status()[0].Partitions[0]; p.Missed != 7 || *p.Sequence != 11 {
			t.Errorf("%+v", p)
		}
		r.Stop()
	}
	// While nothing can be stored, too; and what a hub leaves out is no loss.
	r := h.receivers(hubSource(srv))
	r.Start()
	h.caughtUp(r, hub)
	hub.Skip(0, 100)
	hub.Put(0, order("c-0")) // 112
	h.eventually("all is stored", func() bool { return len(h.ids()) == 6 })
	hub.Freeze(true)
	hub.Put(0, numbered("gone", 7, 4)...) // 113 to 116
	hub.Put(0, order("c-1"))
	hub.Expire(0, 117)
	hub.Freeze(false)
	h.eventually("all is stored", func() bool { return len(h.ids()) == 7 })
	h.caughtUp(r, hub)
	if p := r.Status()[0].Partitions[0]; p.Missed != 11 || *p.Sequence != 117 {
		t.Errorf("%+v", p)
	}
	lost := slices.DeleteFunc(h.reported(), func(s string) bool { return s != "source.position-lost shop" })
	if len(lost) != 2 {
		t.Errorf("%d reports: %v", len(lost), h.reported())
	}
}

// A hub that is made anew is read from its beginning, though its numbers are those
// that were read before.
func TestHubMadeAnew(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	hub := srv.Hub("orders", amqptest.HubOptions{Partitions: 3})
	hub.Put(0, numbered("a", 0, 5)...)
	h := newHall(t, hubSource(srv))
	h.Start()
	h.eventually("all is stored", func() bool { return len(h.ids()) == 5 })
	h.eventually("all are read", func() bool { return len(h.Status()[0].Partitions) == 3 && hub.Readers(2) == 1 })
	hub.Recreate(2)
	hub.Put(0, numbered("b", 0, 9)...)
	h.eventually("all is stored", func() bool { return len(h.ids()) == 14 })
	h.eventually("the third partition is gone", func() bool { return len(h.Status()[0].Partitions) == 2 && h.one("shop").State == Receiving })
	if all := h.reported(); !slices.Contains(all, "source.position-lost shop") || !slices.Contains(all, "source.partition-gone shop") {
		t.Errorf("%v", all)
	}
}

// Partitions that are added are read from their beginning, whatever the start was.
func TestHubGrows(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	hub := srv.Hub("orders", amqptest.HubOptions{})
	src := hubSource(srv)
	src.From.EventHub.Start = StartNow
	h := newHall(t, src)
	h.Start()
	h.eventually("it is read", func() bool { return hub.Readers(0) == 1 })
	h.Stop()
	hub.Grow(3)
	hub.Put(2, order("new"))
	next := h.receivers(src)
	next.Start()
	h.eventually("it is stored", func() bool { return slices.Equal(h.ids(), []string{"new"}) })
}

// Offsets of before a namespace was replicated are refused by it; numbers are not.
func TestHubReplicated(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	hub := srv.Hub("orders", amqptest.HubOptions{})
	hub.Put(0, numbered("a", 0, 5)...)
	h := newHall(t, hubSource(srv))
	h.Start()
	h.eventually("all is stored", func() bool { return len(h.ids()) == 5 })
	h.Stop()
	hub.Replicate()
	hub.Put(0, order("b-0"))
	for i := range 2 {
		r := h.receivers(hubSource(srv))
		r.Start()
		hub.Put(0, order(fmt.Sprint("c-", i)))
		h.eventually("it is stored", func() bool { return len(h.ids()) == 7+i })
		if st := r.sources["shop"].status.status(); st.Duplicate != 0 || st.State != Receiving {
			t.Errorf("%+v", st)
		}
		r.Stop()
	}
	reads := hub.Reads()
	if last := reads[len(reads)-1].From; !strings.Contains(last, "x-opt-offset > 'geo:") {
		t.Errorf("at last it was read from %s", last)
	}
	if all := h.reported(); slices.Contains(all, "source.receive-failing shop") {
		t.Errorf("%v", all)
	}
}

// Whoever reads as the same consumer group takes the partition away: gridfan says so,
// and goes on when it has it back. Nothing is skipped.
func TestHubStolen(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	hub := srv.Hub("orders", amqptest.HubOptions{})
	hub.Put(0, numbered("a", 0, 5)...)
	h := newHall(t, hubSource(srv))
	h.Start()
	h.eventually("all is stored", func() bool { return len(h.ids()) == 5 })
	other, err := azeventhubs.NewConsumerClientFromConnectionString(connectionTo(srv.Addr).ConnectionString, "orders", "$Default", &azeventhubs.ConsumerClientOptions{InstanceID: "thief"})
	if err != nil {
		t.Fatal(err)
	}
	level, latest := int64(1000), true
	thief, err := other.NewPartitionClient("0", &azeventhubs.PartitionClientOptions{OwnerLevel: &level, StartPosition: azeventhubs.StartPosition{Latest: &latest}})
	if err != nil {
		t.Fatal(err)
	}
	// Until it is there nothing can be said of what it gets.
	h.eventually("it is stolen", func() bool {
		ctx, cancel := contextFor(t, 50*time.Millisecond)
		defer cancel()
		_, _ = thief.ReceiveEvents(ctx, 1, nil) // it waits in vain
		return h.one("shop").Kind == Taken
	})
	st := h.one("shop")
	if st.State != Failing || !strings.Contains(st.Reason, "consumer group of its own") || !strings.Contains(st.Reason, "'thief'") || st.Next == nil {
		t.Errorf("%+v", st)
	}
	hub.Put(0, numbered("b", 0, 5)...)
	ctx, cancel := contextFor(t, 5*time.Second)
	defer cancel()
	if err := errors.Join(thief.Close(ctx), other.Close(ctx)); err != nil {
		t.Fatal(err)
	}
	h.eventually("all is stored", func() bool { return len(h.ids()) == 10 && h.one("shop").State == Receiving })
	if all := h.reported(); !slices.Equal(all, []string{"source.receiving shop", "source.receive-failing shop", "source.receiving shop"}) {
		t.Errorf("%v", all)
	}
}

// What the service, the network and the storage do, and what becomes of it: nothing
// is skipped, and the source says what is the matter.
func TestHubTrouble(t *testing.T) {
	for name, tt := range map[string]struct {
		options  amqptest.Options
		begin    func(*amqptest.Server, *amqptest.Hub, *hall)
		end      func(*amqptest.Server, *amqptest.Hub, *hall)
		kind     Kind
		contains string
	}{
		"throttled": {
			begin: func(_ *amqptest.Server, hub *amqptest.Hub, _ *hall) {
				hub.RefuseManagement(&amqptest.Error{Condition: "com.microsoft:server-busy", Description: "wait"})
				hub.Detach(0, amqptest.Error{Condition: "com.microsoft:server-busy", Description: "The request was terminated because the entity is being throttled."})
			},
			end:      func(_ *amqptest.Server, hub *amqptest.Hub, _ *hall) { hub.RefuseManagement(nil) },
			contains: "",
		},
		"detached": {
			begin: func(_ *amqptest.Server, hub *amqptest.Hub, _ *hall) {
				hub.Detach(0, amqptest.Error{Condition: "amqp:link:detach-forced", Description: "upgrade"})
			},
		},
		"network": {begin: func(srv *amqptest.Server, _ *amqptest.Hub, _ *hall) { srv.Drop() }},
		"nothing can be stored": {
			begin:    func(_ *amqptest.Server, _ *amqptest.Hub, h *hall) { h.failing(publish.ErrStorageFull) },
			end:      func(_ *amqptest.Server, _ *amqptest.Hub, h *hall) { h.failing(nil) },
			kind:     Storage,
			contains: "storage is full",
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv := amqptest.Start(t, tt.options)
			hub := srv.Hub("orders", amqptest.HubOptions{})
			h := newHall(t, hubSource(srv))
			h.Start()
			hub.Put(0, numbered("a", 0, 50)...)
			h.eventually("some are stored", func() bool { return len(h.ids()) > 0 })
			tt.begin(srv, hub, h)
			hub.Put(0, numbered("a", 50, 50)...)
			if tt.kind != "" {
				h.eventually("it says so", func() bool {
					st := h.one("shop")
					return st.Kind == tt.kind && strings.Contains(st.Reason, tt.contains)
				})
			}
			if tt.end != nil {
				tt.end(srv, hub, h)
			}
			h.eventually("all is stored", func() bool { return h.one("shop").Published == 100 })
			h.caughtUp(h.Receivers, hub)
			if st := h.one("shop"); st.State != Receiving || st.Held != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// Refusals, and what people read of them.
func TestHubRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		options amqptest.Options
		change  func(*EventHub)
		kind    Kind
		want    string
	}{
		"key":           {options: amqptest.Options{Claim: func(string, string) int { return 401 }}, kind: Credentials, want: "HTTP 401"},
		"no such hub":   {change: func(c *EventHub) { c.Hub = "other" }, kind: Configuration, want: "there is no such event hub or consumer group"},
		"no such group": {change: func(c *EventHub) { c.ConsumerGroup = "other" }, kind: Configuration, want: "there is no such event hub or consumer group"},
		"no right": {options: amqptest.Options{Attach: func(string) *amqptest.Error {
			return &amqptest.Error{Condition: "amqp:unauthorized-access", Description: "Listen"}
		}}, kind: Credentials, want: "Azure Event Hubs Data Receiver"},
		"busy": {options: amqptest.Options{Attach: func(string) *amqptest.Error {
			return &amqptest.Error{Condition: "com.microsoft:server-busy", Description: "50002"}
		}}, kind: Throttled, want: "throughput or processing units"},
		"too many": {options: amqptest.Options{Attach: func(string) *amqptest.Error {
			return &amqptest.Error{Condition: "amqp:resource-limit-exceeded", Description: "5"}
		}}, kind: Configuration, want: "limit of connections"},
		"nobody at home": {options: amqptest.Options{Attach: func(string) *amqptest.Error {
			return &amqptest.Error{Condition: "amqp:internal-error", Description: "sorry"}
		}}, kind: Unavailable, want: "sorry"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := amqptest.Start(t, tt.options)
			srv.Hub("orders", amqptest.HubOptions{})
			src := hubSource(srv)
			if tt.change != nil {
				tt.change(src.From.EventHub)
			}
			h := newHall(t, src)
			h.Start()
			h.eventually("it says so", func() bool { return h.one("shop").State == Failing })
			if st := h.one("shop"); st.Kind != tt.kind || !strings.Contains(st.Reason, tt.want) || strings.Contains(st.Reason, canaryKey) {
				t.Errorf("%s: %s", st.Kind, st.Reason)
			}
		})
	}
}

// Partitions are read again from where somebody says.
func TestHubRewind(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	hub := srv.Hub("orders", amqptest.HubOptions{Partitions: 2})
	hub.Put(0, numbered("a", 0, 10)...)
	hub.Put(1, numbered("b", 0, 10)...)
	h := newHall(t, hubSource(srv))
	h.Start()
	h.eventually("all is stored", func() bool { return h.one("shop").Published == 20 })
	h.caughtUp(h.Receivers, hub)
	four := int64(4)
	if err := h.Rewind(t.Context(), "shop", "1", Position{Sequence: &four}); err != nil {
		t.Fatal(err)
	}
	h.eventually("six are read again", func() bool { return h.one("shop").Duplicate == 6 })
	if err := h.Rewind(t.Context(), "shop", AllPartitions, Position{}); err != nil {
		t.Fatal(err)
	}
	h.eventually("all are read again", func() bool { return h.one("shop").Duplicate == 26 })
	if err := h.Rewind(t.Context(), "shop", AllPartitions, Position{Time: time.Now().Add(-time.Hour)}); err != nil {
		t.Fatal(err)
	}
	h.eventually("all are read again", func() bool { return h.one("shop").Duplicate == 46 })
	h.caughtUp(h.Receivers, hub)
	if st := h.one("shop"); st.Published != 20 || slices.Contains(h.reported(), "source.position-lost shop") {
		t.Errorf("%+v, %v", st, h.reported())
	}
	for _, tt := range []struct {
		name, partition string
		want            error
	}{{"shop", "7", ErrNoPartition}, {"other", "0", ErrUnknown}} {
		if err := h.Rewind(t.Context(), tt.name, tt.partition, Position{}); !errors.Is(err, tt.want) {
			t.Errorf("%s %s: %v", tt.name, tt.partition, err)
		}
	}
}

// Replicas share partitions out; each is read by one at a time, and nothing is
// skipped while they come and go.
func TestHubReplicas(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	hub := srv.Hub("orders", amqptest.HubOptions{Partitions: 7})
	h := newHall(t)
	var all []*Receivers
	here := func(r *Receivers) int {
		n := 0
		for _, p := range r.Status()[0].Partitions {
			if p.Here {
				n++
			}
		}
		return n
	}
	next := 0
	put := func() {
		for p := range 7 {
			hub.Put(p, numbered(fmt.Sprint("e-", p), next, 10)...)
		}
		next += 10
	}
	for n := 1; n <= 3; n++ {
		r := h.receivers(hubSource(srv))
		r.Start()
		all = append(all, r)
		put()
		h.eventually("they share", func() bool {
			for _, r := range all {
				if got := here(r); got < 7/n || got > (7+n-1)/n {
					return false
				}
			}
			return true
		})
	}
	put()
	all[1].Stop()
	put()
	h.eventually("the others take its part", func() bool { return here(all[0])+here(all[2]) == 7 && here(all[0]) >= 3 && here(all[2]) >= 3 })
	put()
	h.eventually("all is stored", func() bool { return len(h.ids()) == 7*next })
	h.eventually("each tells of all", func() bool {
		st := all[0].Status()[0]
		return len(st.Partitions) == 7 && st.Lag != nil && !slices.ContainsFunc(st.Partitions, func(p PartitionStatus) bool {
			return p.Reader == "" || p.Sequence == nil || *p.Sequence != int64(next-1) || p.State != Receiving
		})
	})
	if n := hub.Stolen(); n != 0 {
		t.Errorf("%d links were taken over while somebody read", n)
	}
	last := map[string]int64{}
	for _, r := range hub.Reads() {
		if r.Epoch <= last[r.Partition] {
			t.Errorf("%+v after epoch %d", r, last[r.Partition])
		}
		last[r.Partition] = r.Epoch
	}
	// A quiet one stands by when there are more replicas than partitions.
	one := srv.Hub("one", amqptest.HubOptions{})
	src := hubSource(srv)
	src.Name, src.From.EventHub.Hub = "one", "one"
	a, b := h.receivers(src), h.receivers(src)
	a.Start()
	h.eventually("it is read", func() bool { return one.Readers(0) == 1 })
	b.Start()
	h.eventually("one stands by", func() bool { return b.Status()[0].State == Standby && len(b.Status()[0].Partitions) == 1 })
}

func TestPortion(t *testing.T) {
	for name, tt := range map[string]struct {
		counts           map[string]int
		partitions, free int
		give, take       int
	}{
		"alone":                     {map[string]int{"a": 0}, 5, 5, 0, 5},
		"alone, has all":            {map[string]int{"a": 5}, 5, 0, 0, 0},
		"another one comes":         {map[string]int{"a": 5, "b": 0}, 5, 0, 2, 0},
		"its share":                 {map[string]int{"a": 0, "b": 3}, 5, 2, 0, 2},
		"leaves the odd one":        {map[string]int{"a": 2, "b": 1}, 5, 1, 0, 0},
		"takes the odd one":         {map[string]int{"a": 2, "b": 2}, 5, 1, 0, 1},
		"gives to who has two less": {map[string]int{"a": 2, "b": 2, "c": 0}, 4, 0, 1, 0},
		"more than partitions":      {map[string]int{"a": 0, "b": 1, "c": 0}, 1, 0, 0, 0},
		"first come":                {map[string]int{"a": 0, "b": 0, "c": 0}, 1, 1, 0, 1},
		"balanced":                  {map[string]int{"a": 3, "b": 2, "c": 2}, 7, 0, 0, 0},
	} {
		if give, take := portion(tt.counts, "a", tt.partitions, tt.free); give != tt.give || take != tt.take {
			t.Errorf("%s: gives %d, takes %d, want %d, %d", name, give, take, tt.give, tt.take)
		}
	}
}

// A link that brings nothing although there is something is given up for another one.
func TestHubSilence(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	hub := srv.Hub("orders", amqptest.HubOptions{})
	h := newHall(t, hubSource(srv))
	h.sources["shop"].hub.silence = 300 * time.Millisecond
	hub.Freeze(true)
	hub.Put(0, numbered("a", 0, 3)...)
	h.Start()
	h.eventually("it says so", func() bool { return strings.Contains(h.one("shop").Reason, "has brought nothing for") })
	hub.Freeze(false)
	h.eventually("all is stored", func() bool { return slices.Equal(h.ids(), []string{"a-0", "a-1", "a-2"}) })
	h.caughtUp(h.Receivers, hub)
}
