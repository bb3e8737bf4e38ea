package deliver_test

import (
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// A process stored the retry of an event and died before it recorded that. The next
// one delivers the event and takes the retry away, without a question to the broker
// for each of the other events.
func TestLeftOverByADeadProcess(t *testing.T) {
	dir, added := t.TempDir(), time.Now()
	var stop func()
	open := func(b *broker.Broker, s deliver.Sender) *rig {
		r := openRig(t, b)
		p, err := deliver.OpenPositions(t.Context(), dir, b, r.parts.Recorder, r.parts.Log)
		if err != nil {
			t.Fatal(err)
		}
		r.parts.Positions = p
		w, err := deliver.Start(t.Context(), deliver.Subscriber{Name: "a", Subjects: []string{"events.>"}, Created: added, Config: fastConfig(), Sender: s}, r.parts)
		if err != nil {
			t.Fatal(err)
		}
		stop = func() {
			w.Stop(time.Second)
			p.Close()
		}
		return r
	}
	r := open(brokertest.Open(t, dir), newSender(ok))
	r.publish(0, 1)
	waitFor(t, "the first event", func() bool { return r.settled("delivered") == 1 })
	stop()
	r.publish(1, 61)
	leave := func(sequence int) {
		e := event.Event{ID: strconv.Itoa(sequence - 1), Source: "/s", Type: "t"}
		headers, body := e.Encode()
		h := nats.Header(headers)
		for name, value := range map[string]string{
			deliver.HeaderAdded: deliver.Added(added), deliver.HeaderOriginSequence: strconv.Itoa(sequence), deliver.HeaderOriginSubject: "events.fno.test.usmf.Thing",
			deliver.HeaderHop: "1", deliver.HeaderRounds: "1", deliver.HeaderAttempts: "1",
			"Nats-Schedule": "@at " + time.Now().Add(time.Hour).UTC().Format(time.RFC3339Nano), "Nats-Schedule-Target": broker.RetryDue("a"),
		} {
			h.Set(name, value)
		}
		m := &nats.Msg{Subject: broker.RetryWaiting("a", uint64(sequence)), Header: h, Data: body}
		if _, err := r.b.JetStream().PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	leave(2)
	leave(40)
	r.b.Close()

	var asked atomic.Int64
	s := newSender(ok)
	b := brokertest.Open(t, dir)
	nc, _, err := b.Connect("watch")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Subscribe("$JS.API.STREAM.MSG.GET."+broker.StreamRetry, func(*nats.Msg) { asked.Add(1) }); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	r = open(b, s)
	defer stop()
	waitFor(t, "all others", func() bool { n, _ := s.count(); return n == 60 })
	waitFor(t, "an empty retry lane", func() bool { return len(r.stored(broker.StreamRetry)) == 0 })
	if _, tries := s.count(); tries != 60 {
		t.Errorf("%d attempts, want 60", tries)
	}
	if n := asked.Load(); n == 0 || n > 8 {
		t.Errorf("the retry lane was searched %d times for 60 events, of which two had something there", n)
	}
}
