package receive

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/amqptest"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
)

// Messages become events, and are completed once those are stored.
func TestQueue(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	q := srv.Queue("orders", amqptest.QueueOptions{})
	q.Put(orders(250)...)
	h := newHall(t, queueSource(srv))
	h.Start()
	h.eventually("all is settled", func() bool { return q.Len() == 0 })
	for i := range 50 { // the same come again, and others
		q.Put(order(fmt.Sprint("o-", i)), order(fmt.Sprint("p-", i)))
	}
	h.eventually("all is settled", func() bool { return q.Len() == 0 })
	h.eventually("all is counted", func() bool { return h.one("shop").Settled == 350 })
	st := h.one("shop")
	if st.State != Receiving || st.Messages != 350 || st.Published != 300 || st.Duplicate != 50 || st.Received != 350 || st.Held != 0 || st.Lost != 0 || st.Way != "serviceBus" || st.From != "127.0.0.1/orders" || st.LastEvent == nil {
		t.Errorf("status %+v", st)
	}
	all := h.stored(broker.StreamEvents)
	if len(all) != 300 {
		t.Fatalf("%d events are stored", len(all))
	}
	first := all[0]
	got := map[string]string{"subject": first.Subject, "data": string(first.Data)}
	for _, name := range []string{"ce-id", "ce-source", "ce-gridfansource", "ce-via"} {
		got[name] = first.Header.Get(name)
	}
	want := map[string]string{
		"subject": "events.cloudevents.shop.orders.order.placed", "data": `{"n":9007199254740993}`,
		"ce-id": "o-0", "ce-source": "/crm/orders", "ce-gridfansource": "shop", "ce-via": "push",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	// What arrives between two calls the client itself gives back.
	for i, s := range q.Settlements() {
		if s.As != amqptest.Completed && s.As != amqptest.Released || s.Lost {
			t.Errorf("settlement %d: %+v", i, s)
		}
	}
	if made, _ := srv.Connections(); made != 1 {
		t.Errorf("%d connections", made)
	}
}

// What nothing can be made of is quarantined here and completed there; bodies come in
// every shape that AMQP has.
func TestBodies(t *testing.T) {
	dataverse, err := os.ReadFile("../../schemas/dataverse/testdata/account-delete-sync.txtar")
	if err != nil {
		t.Fatal(err)
	}
	_, context, _ := strings.Cut(string(dataverse), "-- body.json --\n")
	context, _, _ = strings.Cut(context, "\n-- ")
	contentType := func(s string) *amqp.MessageProperties {
		return &amqp.MessageProperties{MessageID: "m", ContentType: &s}
	}
	structured := string(order("s-1").Data[0])
	for name, tt := range map[string]struct {
		kind    string
		message *amqp.Message
		want    []string // attributes of the event, or code and part of the detail of the fault
	}{
		"in one part":  {event.KindCloudEvents, order("s-1"), []string{"id s-1", "subject o/1"}},
		"in two parts": {event.KindCloudEvents, &amqp.Message{Data: [][]byte{[]byte(structured[:40]), []byte(structured[40:])}}, []string{"id s-1"}},
		"as text":      {event.KindCloudEvents, &amqp.Message{Value: structured}, []string{"id s-1"}},
		"as bytes":     {event.KindCloudEvents, &amqp.Message{Value: []byte(structured)}, []string{"id s-1"}},
		"batch":        {event.KindCloudEvents, &amqp.Message{Properties: contentType("application/cloudevents-batch+json"), Data: [][]byte{[]byte("[" + structured + "]")}}, []string{"id s-1"}},
		"as number":    {event.KindCloudEvents, &amqp.Message{Value: int64(7)}, []string{"unsupported", "AMQP value"}},
		"as sequence":  {event.KindCloudEvents, &amqp.Message{Sequence: [][]any{{"a"}}}, []string{"unsupported", "AMQP sequence"}},
		"without":      {event.KindCloudEvents, &amqp.Message{Data: [][]byte{{}}}, []string{"not-json", ""}},
		"of properties": {event.KindCloudEvents, &amqp.Message{
			Properties: contentType("text/plain"), Data: [][]byte{[]byte("any bytes")},
			ApplicationProperties: map[string]any{
				"cloudEvents:specversion": "1.0", "cloudEvents:id": "b-1", "cloudEvents:source": "/s", "cloudEvents:type": "t",
				"cloudEvents:subject": "50% café", "cloudEvents:tenant": int32(7), "cloudEvents:time": time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC), "other": true,
			},
		}, []string{"id b-1", "subject 50% café", "tenant 7", "time 2026-11-01T10:00:00Z", "data any bytes"}},
		"of properties with underscores": {event.KindCloudEvents, &amqp.Message{
			Data:                  [][]byte{[]byte("{}")},
			ApplicationProperties: map[string]any{"cloudEvents_specversion": "1.0", "cloudEvents_id": "b-2", "cloudEvents_source": "/s", "cloudEvents_type": "t"},
		}, []string{"id b-2"}},
		"Event Grid": {event.KindEventGrid, &amqp.Message{Data: [][]byte{[]byte(`{"id":"k","topic":"/t","subject":"o/1","eventType":"T","eventTime":"2026-11-01T10:00:00Z","data":{},"dataVersion":"1"}`)}}, []string{"id k", "subject o/1"}},
		"Dataverse":  {event.KindDataverse, &amqp.Message{Properties: contentType("application/json"), Data: [][]byte{[]byte(context)}}, []string{"type dataverse.account.Delete", "incomplete "}},
		"Dataverse, too large for all of it": {event.KindDataverse, &amqp.Message{
			Properties: contentType("application/json"), Data: [][]byte{[]byte(context)}, ApplicationProperties: map[string]any{"MessageMaxSizeExceeded": true},
		}, []string{"type dataverse.account.Delete", "incomplete true"}},
		"Dataverse in .NET binary": {event.KindDataverse, &amqp.Message{Properties: contentType("application/msbin1"), Data: [][]byte{[]byte("@\x16RemoteExecutionContext\x08@http://schemas.microsoft.com/xrm/2011/Contracts")}}, []string{"unsupported", "set Message Format to JSON"}},
		"without its content type": {event.KindDataverse, &amqp.Message{Data: [][]byte{[]byte("@\x16RemoteExecutionContext\x08")}}, []string{"unsupported", ".NET binary"}},
		"Dataverse in XML":         {event.KindDataverse, &amqp.Message{Data: [][]byte{[]byte("\ufeff<RemoteExecutionContext/>")}}, []string{"unsupported", "XML format"}},
		"F&O":                      {event.KindFnO, &amqp.Message{Data: [][]byte{[]byte(`{"BusinessEventId":"OrderPostedBusinessEvent","BusinessEventLegalEntity":"USMF","ControlNumber":5637144576,"EventId":"55A81094-A14E-46A6-A12C-07ED5C5990C6","EventTimeIso8601":"2026-11-01T10:00:00Z"}`)}}, []string{"legalentity usmf", "sequence 5637144576"}},
		"larger than the limit":    {event.KindCloudEvents, &amqp.Message{Data: [][]byte{make([]byte, 9000)}}, []string{"too-large", "limits.body"}},
	} {
		t.Run(name, func(t *testing.T) {
			srv := amqptest.Start(t, amqptest.Options{})
			q := srv.Queue("orders", amqptest.QueueOptions{})
			src := queueSource(srv)
			src.Kind, src.Body = tt.kind, 8192
			h := newHall(t, src)
			h.Start()
			q.Put(tt.message)
			h.eventually("it is settled", func() bool { return len(q.Settlements()) == 1 })
			if s := q.Settlements()[0]; s.As != amqptest.Completed {
				t.Errorf("settled %+v", s)
			}
			if all := h.stored(broker.StreamQuarantine); len(all) == 1 && len(tt.want) == 2 {
				if got := publish.DecodeQuarantine(all[0].Header); string(got.Reason) != tt.want[0] || !strings.Contains(got.Detail, tt.want[1]) {
					t.Errorf("quarantined for %q, %s", got.Reason, got.Detail)
				}
				kept := publish.DecodeQuarantine(all[0].Header).Request
				if _, results, ok := h.Reparse("shop", kept, all[0].Data); !ok || len(results) == 0 || results[0].Fault == nil {
					t.Errorf("read again: %+v", results)
				}
				return
			}
			all := h.stored(broker.StreamEvents)
			if len(all) != 1 {
				t.Fatalf("%d events are stored, %d entries in quarantine", len(all), len(h.stored(broker.StreamQuarantine)))
			}
			e, err := event.Decode(all[0].Header, all[0].Data)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range tt.want {
				name, want, _ := strings.Cut(w, " ")
				got := e.Get(name)
				switch name {
				case "id":
					got = e.ID
				case "type":
					got = e.Type
				case "subject":
					got = e.Subject
				case "time":
					got = e.Time.Format(time.RFC3339)
				case "data":
					got = string(e.Data)
				}
				if got != want {
					t.Errorf("%s: got %q, want %q", name, got, want)
				}
			}
		})
	}
}

// While nothing can be stored, nothing is settled, nothing more is received, and no
// delivery is used up, although the locks would have ended long ago.
func TestNothingCanBeStored(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	q := srv.Queue("orders", amqptest.QueueOptions{Lock: 400 * time.Millisecond})
	h := newHall(t, queueSource(srv))
	h.failing(publish.ErrStorageFull)
	q.Put(order("o-0"))
	h.Start()
	h.eventually("it is tried", func() bool { return h.attempts() > 3 })
	q.Put(orders(100)[1:]...)
	begin := time.Now()
	h.eventually("the locks would be over", func() bool { return time.Since(begin) > 1500*time.Millisecond && q.Renewals() > 3 })
	if st := h.one("shop"); st.State != Holding || st.Kind != Storage || st.Reason != "the storage is full" || st.Held == 0 || st.Settled != 0 {
		t.Errorf("status %+v", st)
	}
	if n := q.Deliveries(); n != 1 {
		t.Errorf("%d deliveries of one message", n)
	}
	if n := q.Given(); n > 3 {
		t.Errorf("%d messages were given out", n)
	}
	if len(q.Settlements()) != 0 {
		t.Errorf("settled: %+v", q.Settlements())
	}
	h.failing(nil)
	h.eventually("all is settled", func() bool { return q.Len() == 0 })
	if n := len(h.stored(broker.StreamEvents)); n != 100 {
		t.Errorf("%d events are stored", n)
	}
	if n := q.DeadLetters.Len(); n != 0 {
		t.Errorf("%d dead letters", n)
	}
	if d := cmp.Diff([]string{"source.receiving shop", "source.receive-holding shop"}, h.reported()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// A lock that is lost before the settlement costs nothing but a repetition.
func TestLockLost(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	q := srv.Queue("orders", amqptest.QueueOptions{})
	h := newHall(t, queueSource(srv))
	h.failing(publish.ErrBroker)
	q.Put(order("o-0"))
	h.Start()
	h.eventually("it is tried", func() bool { return h.attempts() > 1 })
	q.Freeze(true)
	q.Lose()
	h.failing(nil)
	h.eventually("it is stored", func() bool { return h.one("shop").Lost == 1 })
	q.Freeze(false)
	h.eventually("it comes again", func() bool { return q.Len() == 0 && h.one("shop").Settled == 1 })
	if st := h.one("shop"); st.Published != 1 || st.Duplicate != 1 || st.State != Receiving {
		t.Errorf("status %+v", st)
	}
	if n := len(h.stored(broker.StreamEvents)); n != 1 {
		t.Errorf("%d events are stored", n)
	}
}

// Connections that end do not matter.
func TestConnectionsEnd(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	q := srv.Queue("orders", amqptest.QueueOptions{Lock: 300 * time.Millisecond, MaxDeliveries: 1000})
	h := newHall(t, queueSource(srv))
	h.Start()
	for i := range 20 {
		q.Put(orders(500)[25*i : 25*(i+1)]...)
		h.eventually("some are stored", func() bool { return h.one("shop").Published >= int64(25*i) })
		srv.Drop()
	}
	h.eventually("all is settled", func() bool { return q.Len() == 0 })
	seen := map[string]bool{}
	for _, m := range h.stored(broker.StreamEvents) {
		seen[m.Header.Get("ce-id")] = true
	}
	if len(seen) != 500 || len(h.stored(broker.StreamEvents)) != 500 {
		t.Errorf("%d of 500 events are stored, %d in all", len(seen), len(h.stored(broker.StreamEvents)))
	}
}

// Sessions take turns, and each keeps its order.
func TestSessions(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	q := srv.Queue("orders", amqptest.QueueOptions{Sessions: true, Lock: 2 * time.Second})
	src := queueSource(srv)
	src.From.ServiceBus.Sessions = true
	src.From.ServiceBus.Concurrency = 3
	h := newHall(t, src)
	h.Start()
	for i := range 60 {
		m := order(fmt.Sprintf("%d-%02d", i%6, i/6))
		session := fmt.Sprint("s", i%6)
		m.Properties.GroupID = &session
		q.Put(m)
	}
	h.eventually("all is settled", func() bool { return q.Len() == 0 })
	last, n := map[string]string{}, 0
	for _, m := range h.stored(broker.StreamEvents) {
		id := m.Header.Get("ce-id")
		if key, before := id[:1], last[id[:1]]; before >= id {
			t.Errorf("session %s: %s after %s", key, id, before)
		}
		last[id[:1]] = id
		n++
	}
	if n != 60 {
		t.Errorf("%d events are stored", n)
	}
	if st := h.one("shop"); st.State != Receiving || st.Lost != 0 {
		t.Errorf("status %+v", st)
	}
}

// What the service says, a source's status says, and other sources go on.
func TestRefusals(t *testing.T) {
	good := amqptest.Start(t, amqptest.Options{})
	fine := good.Queue("orders", amqptest.QueueOptions{})
	for name, tt := range map[string]struct {
		opts     amqptest.Options
		queue    amqptest.QueueOptions
		sessions bool
		none     bool
		kind     Kind
		want     string
	}{
		"wrong key": {opts: amqptest.Options{Claim: func(string, string) int { return 401 }}, kind: Credentials, want: "HTTP 401 for the key or identity"},
		"no queue":  {none: true, kind: Configuration, want: "there is no such queue"},
		"may not": {opts: amqptest.Options{Attach: func(string) *amqptest.Error {
			return &amqptest.Error{Condition: "amqp:unauthorized-access", Description: "Listen claim; SharedAccessKey=x"}
		}}, kind: Credentials, want: "SharedAccessKey=<redacted>"},
		"disabled":        {opts: amqptest.Options{Attach: func(string) *amqptest.Error { return &amqptest.Error{Condition: "com.microsoft:entity-disabled"} }}, kind: Configuration, want: "disabled"},
		"sessions wanted": {queue: amqptest.QueueOptions{Sessions: true}, kind: Configuration, want: "sessions: true"},
		"busy":            {opts: amqptest.Options{Attach: func(string) *amqptest.Error { return &amqptest.Error{Condition: "com.microsoft:server-busy"} }}, kind: Throttled, want: "busy"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := amqptest.Start(t, tt.opts)
			if !tt.none {
				srv.Queue("orders", tt.queue)
			}
			bad := queueSource(srv)
			bad.Name, bad.From.ServiceBus.Sessions = "bad", tt.sessions
			h := newHall(t, queueSource(good), bad)
			h.Start()
			h.eventually("it is told", func() bool { return h.one("bad").State == Failing })
			st := h.one("bad")
			if st.Kind != tt.kind || !strings.Contains(st.Reason, tt.want) || st.Next == nil || strings.Contains(st.Reason, canaryKey) {
				t.Errorf("status %+v", st)
			}
			fine.Put(order("o-" + name))
			h.eventually("the other one receives", func() bool { return h.one("shop").Published == 1 })
			if tt.kind == Throttled && time.Until(*st.Next) < 5*time.Second {
				t.Errorf("asked again at once: %v", time.Until(*st.Next))
			}
		})
	}
}

// A queue that is made later is received from, without a restart.
func TestMended(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	h := newHall(t, queueSource(srv))
	h.Start()
	h.eventually("it fails", func() bool { return h.one("shop").State == Failing })
	q := srv.Queue("orders", amqptest.QueueOptions{})
	q.Put(order("o-1"))
	h.eventually("it receives", func() bool { return h.one("shop").State == Receiving && q.Len() == 0 })
	if d := cmp.Diff([]string{"source.receive-failing shop", "source.receiving shop"}, h.reported()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// What is larger than anything here can hold goes to the dead letters there, and a
// note of it to quarantine. All others around it are stored.
func TestTooLargeForQuarantine(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{MaxMessage: 32 << 20})
	q := srv.Queue("orders", amqptest.QueueOptions{})
	huge := order("huge")
	huge.Data = [][]byte{make([]byte, 9<<20)}
	q.Put(order("o-1"), huge, order("o-2"))
	h := newHall(t, queueSource(srv))
	h.Start()
	h.eventually("all is settled", func() bool { return q.Len() == 0 && q.DeadLetters.Len() == 1 })
	held := h.stored(broker.StreamQuarantine)
	if len(held) != 1 || len(held[0].Data) != excerpt {
		t.Fatalf("%d entries in quarantine", len(held))
	}
	if e := publish.DecodeQuarantine(held[0].Header); e.Reason != event.FaultTooLarge || !strings.Contains(e.Detail, "dead-letter queue of 127.0.0.1/orders") {
		t.Errorf("entry %+v", e)
	}
	dead := q.DeadLetters.Messages()[0]
	if dead.ApplicationProperties["DeadLetterReason"] != "gridfan: too-large" || len(dead.Data[0]) != 9<<20 {
		t.Errorf("dead letter %v", dead.ApplicationProperties)
	}
	h.eventually("it is counted", func() bool { st := h.one("shop"); return st.DeadLettered == 1 && st.Settled == 2 })
	if n := len(h.stored(broker.StreamEvents)); n != 2 {
		t.Errorf("%d events are stored", n)
	}
}

// A message that the client itself cannot take does not end the process, and those
// around it are received.
func TestClientPanics(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	q := srv.Queue("orders", amqptest.QueueOptions{Lock: 200 * time.Millisecond, MaxDeliveries: 3})
	poison := order("poison")
	poison.ApplicationProperties = map[string]any{"DeadLetterReason": int64(7)}
	q.Put(order("o-1"), poison, order("o-2"), order("o-3"))
	h := newHall(t, queueSource(srv))
	h.Start()
	h.eventually("all others are stored", func() bool { return h.one("shop").Published == 3 && q.Len() == 0 })
	if n := q.DeadLetters.Len(); n != 1 {
		t.Errorf("%d dead letters", n)
	}
}

// When the program stops, what is here and not stored is given back at once.
func TestStop(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	q := srv.Queue("orders", amqptest.QueueOptions{Lock: time.Hour})
	h := newHall(t, queueSource(srv))
	h.failing(publish.ErrBroker)
	q.Put(order("o-1"))
	h.Start()
	h.eventually("it is tried", func() bool { return h.attempts() > 1 })
	h.Stop()
	if d := cmp.Diff([]amqptest.Settlement{{MessageID: "m-o-1", As: amqptest.Abandoned}}, q.Settlements()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if st := h.one("shop"); st.State != Stopped || st.Returned != 1 || st.Held != 0 {
		t.Errorf("status %+v", st)
	}
	other := h.receivers(queueSource(srv))
	h.failing(nil)
	other.Start()
	h.eventually("another process has it", func() bool { return q.Len() == 0 })
}

// Sources that are put in the place of others: what is being stored is stored and
// settled, what cannot be stored is given back, and what has not changed is not touched.
func TestPrepare(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	same, other := srv.Queue("orders", amqptest.QueueOptions{}), srv.Queue("other", amqptest.QueueOptions{MaxDeliveries: 100})
	one := queueSource(srv)
	two := queueSource(srv)
	two.Name, two.From = "two", &Config{ServiceBus: new(*one.From.ServiceBus)}
	two.From.ServiceBus.Queue = "other"
	h := newHall(t, one, two)
	h.Start()
	same.Put(orders(20)...)
	other.Put(order("a-1"))
	h.eventually("all is settled", func() bool { return same.Len()+other.Len() == 0 })
	connections := func() int { _, open := srv.Connections(); return open }
	made, _ := srv.Connections()

	// While nothing can be stored, messages are held; they are given back.
	h.failing(publish.ErrStorageFull)
	other.Put(order("a-2"), order("a-3"))
	h.eventually("it holds", func() bool { return h.one("two").State == Holding })
	changed := two
	changed.From = &Config{ServiceBus: new(*two.From.ServiceBus)}
	changed.From.ServiceBus.Batch = 7
	prepare := func(sources ...Source) {
		t.Helper()
		for i := range sources {
			if err := sources[i].Validate("sources." + sources[i].Name); err != nil {
				t.Fatal(err)
			}
		}
		take, err := h.Prepare(sources)
		if err != nil {
			t.Fatal(err)
		}
		take()
	}
	prepare(one, changed)
	h.failing(nil)
	h.eventually("all is settled", func() bool { return other.Len() == 0 })
	h.eventually("all is counted", func() bool { return h.one("two").Settled == 3 })
	if st := h.one("two"); st.Returned == 0 || st.Published != 3 || st.Held != 0 || st.State != Receiving {
		t.Errorf("%+v", st)
	}
	if st := h.one("shop"); st.Settled != 20 || st.State != Receiving {
		t.Errorf("%+v", st)
	}
	if n, _ := srv.Connections(); n != made+1 {
		t.Errorf("%d connections more; one is not touched", n-made)
	}

	// One is gone, and comes back.
	prepare(one)
	other.Put(order("a-4"))
	same.Put(order("b-1"))
	h.eventually("the other one goes on", func() bool { return same.Len() == 0 })
	h.eventually("its connection is gone", func() bool { return connections() == 1 })
	if n := len(h.Receivers.Status()); n != 1 || other.Len() != 1 {
		t.Errorf("%d sources, %d messages", n, other.Len())
	}
	if _, err := h.Recover(t.Context(), "two", true, 1); err == nil {
		t.Error("a source that is gone")
	}
	prepare(one, two)
	h.eventually("all is settled", func() bool { return other.Len() == 0 })
	bad := two
	bad.Kind = "nothing"
	if _, err := h.Prepare([]Source{bad}); err == nil {
		t.Error("a kind that there is not")
	}
}
