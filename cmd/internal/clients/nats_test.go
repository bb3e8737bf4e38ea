//go:build clients

package clients_test

import (
	"slices"
	"strings"
	"testing"
)

// message is one in the hands of a NATS client.
type message struct {
	Seq         int
	Redelivered bool
	Count       int
	Headers     map[string]string
	Data        string
}

// TestNATS takes events with NATS's clients for JavaScript, with the key that
// gridfan subscribe shows, as docs/native-nats.md has it: over TLS, and after
// gridfan was killed.
func TestNATS(t *testing.T) {
	for _, library := range []string{"nats", "@nats-io"} {
		t.Run(library, func(t *testing.T) {
			g := start(t, `
  other: { subjects: "events.>", deliver: { nats: { } } }
`)
			var sub struct{ ClientSeed string }
			g.cli(&sub, "subscribe", "erp", "--subject", "events.cloudevents.shop.>", "--nats", "--ack-wait", "2s", "--max-deliver", "3")
			if !strings.HasPrefix(sub.ClientSeed, "SU") {
				t.Fatalf("no seed of a user was shown")
			}
			p := node(t, "nats.js", g.env)
			p.do(nil, "connect", library, object{"servers": g.nats, "seed": sub.ClientSeed, "inboxPrefix": "_INBOX_erp"})
			p.do(nil, "consumer", "EVENTS", "erp")

			// An event in binary mode, as docs/broker.md says.
			g.post("shop", "application/cloudevents+json", `{"specversion":"1.0","id":"N-1","source":"/shop","type":"order.placed","subject":"orders/1","time":"2026-11-01T12:00:00.25+02:00","number":7,"data":{"n":9007199254740993,"name":"Größe"}}`)
			g.structured("N-2", "N-3", "N-4")
			taken := map[string]message{}
			for len(taken) < 4 {
				var got []message
				p.do(&got, "fetch", 4-len(taken))
				for _, m := range got {
					taken[m.Headers["ce-id"]] = m
				}
			}
			first := taken["N-1"]
			for name, want := range map[string]string{"ce-specversion": "1.0", "ce-type": "order.placed", "ce-source": "/shop", "ce-subject": "orders/1", "ce-time": "2026-11-01T12:00:00.25+02:00", "ce-number": "7", "content-type": "application/json"} {
				if got := first.Headers[name]; got != want {
					t.Errorf("header %s is %q, want %q", name, got, want)
				}
			}
			if want := `{"n":9007199254740993,"name":"Größe"}`; first.Data != want || first.Redelivered || first.Count != 1 {
				t.Errorf("got %+v, want the data %s", first, want)
			}

			// Each way to end an event.
			p.do(nil, "end", first.Seq, "ackAck")
			p.do(nil, "end", taken["N-2"].Seq, "ack")
			p.do(nil, "end", taken["N-3"].Seq, "nak", 100)
			p.do(nil, "end", taken["N-4"].Seq, "term", "not an order of ours")

			// From here on one after another. What is refused for now comes again with its count,
			// and so does what is not answered.
			p.do(nil, "consume")
			var again message
			p.next(&again)
			if again.Headers["ce-id"] != "N-3" || !again.Redelivered || again.Count != 2 {
				t.Fatalf("got %+v, want N-3 for the second time", again)
			}
			p.next(&again)
			if again.Headers["ce-id"] != "N-3" || again.Count != 3 {
				t.Fatalf("got %+v, want N-3 for the third time", again)
			}
			p.do(nil, "end", again.Seq, "ack")
			g.settled("erp")
			letters := g.letters("erp")
			if len(letters) != 1 || letters[0].ID != "N-4" || letters[0].Cause != "rejected" || !strings.Contains(letters[0].Reason, "not an order of ours") {
				t.Errorf("dead letters %+v", letters)
			}

			// The server is away and comes back; the client goes on with what it has not
			// got.
			g.kill()
			g.run()
			ids := []string{"N-5", "N-6", "N-7"}
			g.structured(ids...)
			seen := map[string]bool{}
			for len(seen) < len(ids) {
				var m message
				p.next(&m)
				id := m.Headers["ce-id"]
				// What was acknowledged just before a crash can come once more.
				if !slices.Contains(append(ids, "N-3"), id) {
					t.Fatalf("got %+v", m)
				}
				if slices.Contains(ids, id) {
					seen[id] = true
				}
				p.do(nil, "end", m.Seq, "ack")
			}
			g.settled("erp")
			p.do(nil, "close")

			// The key opens nothing else.
			q := node(t, "nats.js", g.env)
			q.do(nil, "connect", library, object{"servers": g.nats, "seed": sub.ClientSeed, "inboxPrefix": "_INBOX_erp"})
			if err := q.try(nil, "consumer", "EVENTS", "other"); err == nil {
				t.Error("another subscriber's consumer was given")
			}
			if err := q.try(nil, "publish", "events.cloudevents.shop.-.order.placed", "{}"); err == nil {
				t.Error("an event was published")
			}
			q.do(nil, "close")
			stranger := node(t, "nats.js", g.env)
			var rotated struct{ ClientSeed string }
			g.cli(&rotated, "subscribers", "rotate-key", "erp", "--overlap", "0s")
			if err := stranger.try(nil, "connect", library, object{"servers": g.nats, "seed": sub.ClientSeed, "inboxPrefix": "_INBOX_erp"}); err == nil {
				t.Error("a key that has ended still opens")
			}
			stranger.do(nil, "connect", library, object{"servers": g.nats, "seed": rotated.ClientSeed, "inboxPrefix": "_INBOX_erp"})
			stranger.do(nil, "consumer", "EVENTS", "erp")
			stranger.do(nil, "close")
		})
	}
}
