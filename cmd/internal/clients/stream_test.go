//go:build clients

package clients_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"
)

// told is what an EventSource tells.
type told struct {
	Name, Kind, ID, Data string
	Code                 int
	Closed               bool
}

// stream is a program with EventSources.
type stream struct {
	*program
	token map[string]string // of the last message, by event
}

// id waits for the next message and gives the id of its event. Openings and the
// errors that a connection's end is to an EventSource pass by.
func (s *stream) id() string {
	s.t.Helper()
	for {
		var m told
		s.next(&m)
		if m.Kind == "error" && m.Closed {
			s.t.Fatalf("the EventSource has given up: HTTP %d", m.Code)
		}
		if m.Kind != "message" {
			continue
		}
		var ev struct{ SpecVersion, ID, Type string }
		if err := json.Unmarshal([]byte(m.Data), &ev); err != nil || ev.SpecVersion != "1.0" || ev.Type != "order.placed" {
			s.t.Fatalf("message %q: %v", m.Data, err)
		}
		s.token[ev.ID] = m.ID
		return ev.ID
	}
}

// ids waits for messages of these events, once each and in any order.
func (s *stream) ids(want ...string) {
	s.t.Helper()
	var got []string
	for len(got) < len(want) {
		got = append(got, s.id())
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		s.t.Fatalf("got %q, want %q", got, want)
	}
}

// TestEventSource reads a stream with the package eventsource, which is an
// EventSource as browsers have it.
func TestEventSource(t *testing.T) {
	g := start(t, `
  screen: { subjects: "events.cloudevents.shop.>", deliver: { pull: { lockDuration: 60s, keys: `+receiverKey+` } } }
  board: { subjects: "events.cloudevents.shop.>", deliver: { pull: { lockDuration: 60s, keys: `+receiverKey+` } } }
`)
	at := g.public + "/topics/events/eventsubscriptions/"
	s := &stream{node(t, "stream.js", g.env), map[string]string{}}

	// Two events end a connection here; the client comes back and names the last.
	s.do(nil, "open", "screen", at+"screen:stream?maxEvents=2&key="+receiverKey, nil)
	g.structured("S-1", "S-2", "S-3", "S-4", "S-5")
	s.ids("S-1", "S-2", "S-3", "S-4", "S-5")
	// The fifth is confirmed after ten seconds, when the connection ends.
	g.settled("screen")

	// gridfan dies, or is restarted, and the client comes back by itself: it names what
	// it got, and that alone is settled of what went out over the lost connection.
	for i, end := range []func(){g.kill, g.stop, g.kill} {
		id := fmt.Sprintf("S-%d", 6+i)
		g.structured(id)
		s.ids(id)
		end()
		g.run()
		g.settled("screen")
	}
	s.do(nil, "close", "screen")

	// With ack=manual the receiver settles by the messages' ids; the key can also be
	// a header.
	s.do(nil, "open", "board", at+"board:stream?ack=manual", map[string]string{"Authorization": "SharedAccessKey " + receiverKey})
	clear(s.token)
	s.ids("S-1", "S-2", "S-3", "S-4", "S-5", "S-6", "S-7", "S-8")
	tokens := slices.Collect(maps.Values(s.token))
	r := g.receiver(node(t, "namespaces.js", g.env), "board", receiverKey)
	r.end("acknowledgeEvents", tokens, make([]string, len(tokens)))
	g.settled("board")
	s.do(nil, "close", "board")

	// A wrong key ends an EventSource for good.
	s.do(nil, "open", "stranger", at+"screen:stream?key="+wrongKey, nil)
	began := time.Now()
	for {
		var m told
		s.next(&m)
		if m.Name == "stranger" {
			if m.Kind != "error" || m.Code != 401 || !m.Closed {
				t.Errorf("a stranger is told %+v", m)
			}
			break
		}
		if time.Since(began) > patience {
			t.Fatal("a stranger is told nothing")
		}
	}
}
