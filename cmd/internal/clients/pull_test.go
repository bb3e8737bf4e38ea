//go:build clients

package clients_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/subscribers/deadletters"
)

// received is what the client of Event Grid namespaces makes of an answer.
type received struct {
	Details []struct {
		BrokerProperties struct {
			LockToken     string
			DeliveryCount int
		}
		Event cloudEvent
	}
}

// cloudEvent is one as that client gives it; it drops extensions.
type cloudEvent struct {
	ID              string          `json:"id"`
	Type            string          `json:"type"`
	Source          string          `json:"source"`
	SpecVersion     string          `json:"specVersion"`
	Subject         string          `json:"subject"`
	Time            string          `json:"time"`
	DataContentType string          `json:"dataContentType"`
	DataSchema      string          `json:"dataSchema"`
	Data            json.RawMessage `json:"data"`
}

// ended is what that client makes of the answer to tokens.
type ended struct {
	FailedLockTokens []struct {
		LockToken string
		Error     struct{ Code, Message string }
	}
	SucceededLockTokens []string
}

// receiver is the stock client for one subscriber.
type receiver struct {
	*program
	who map[string]string
}

func (g *gridfan) receiver(p *program, subscriber, key string) *receiver {
	return &receiver{p, map[string]string{"endpoint": g.public, "subscription": subscriber, "key": key}}
}

// asks for events and does not wait.
func (r *receiver) asks(n int) (end func() received) {
	r.t.Helper()
	wait := r.begin("receiver", r.who, "receiveEvents", map[string]int{"maxEvents": n, "maxWaitTime": 50})
	return func() (got received) {
		r.t.Helper()
		if err := wait(&got); err != nil {
			r.t.Fatal(err)
		}
		return got
	}
}

// one receives one event, which must be of this id and count.
func (r *receiver) one(id string, count int) (token string) {
	r.t.Helper()
	got := r.asks(1)()
	if len(got.Details) != 1 {
		r.t.Fatalf("got %d events, want %s", len(got.Details), id)
	}
	d := got.Details[0]
	if d.Event.ID != id || d.BrokerProperties.DeliveryCount != count {
		r.t.Fatalf("got %s for the %dth time, want %s for the %dth", d.Event.ID, d.BrokerProperties.DeliveryCount, id, count)
	}
	return d.BrokerProperties.LockToken
}

// all receives the events of these ids, in any order.
func (r *receiver) all(ids ...string) (tokens map[string]string) {
	r.t.Helper()
	tokens = map[string]string{}
	for len(tokens) < len(ids) {
		for _, d := range r.asks(len(ids))().Details {
			if _, twice := tokens[d.Event.ID]; twice || !slices.Contains(ids, d.Event.ID) {
				r.t.Fatalf("got %s, after %v", d.Event.ID, tokens)
			}
			tokens[d.Event.ID] = d.BrokerProperties.LockToken
		}
	}
	return tokens
}

// end calls a method with tokens, which gives these codes for them; "" is success.
func (r *receiver) end(method string, tokens, codes []string, options ...any) {
	r.t.Helper()
	var got ended
	r.do(&got, "receiver", append([]any{r.who, method, tokens}, options...)...)
	var wantOK []string
	want := map[string]string{}
	for i, code := range codes {
		if code == "" {
			wantOK = append(wantOK, tokens[i])
		} else {
			want[tokens[i]] = code
		}
	}
	failed := map[string]string{}
	for _, f := range got.FailedLockTokens {
		failed[f.LockToken] = f.Error.Code
		if f.Error.Message == "" {
			r.t.Errorf("%s: %s without a message", method, f.Error.Code)
		}
	}
	slices.Sort(got.SucceededLockTokens)
	slices.Sort(wantOK)
	if !slices.Equal(got.SucceededLockTokens, wantOK) || !cmp.Equal(failed, want) {
		r.t.Fatalf("%s: succeeded %q, failed %v; want %q, %v", method, got.SucceededLockTokens, failed, wantOK, want)
	}
}

var ok = []string{""}

// TestReceiver fetches events with @azure/eventgrid-namespaces.
func TestReceiver(t *testing.T) {
	g := start(t, `
  nightly: { subjects: "events.cloudevents.shop.>", deliver: { pull: { lockDuration: 60s, keys: `+receiverKey+` } } }
  quick: { subjects: "events.cloudevents.shop.>", deliver: { pull: { lockDuration: 4s, maxDeliveryCount: 2, keys: `+receiverKey+` } } }
`)
	p := node(t, "namespaces.js", g.env)
	nightly, quick := g.receiver(p, "nightly", receiverKey), g.receiver(p, "quick", receiverKey)

	// A long poll ends with the event, long before its time is up.
	began := time.Now()
	end := nightly.asks(5)
	waitFor(t, "the receiver waits", func() bool {
		return strings.Contains(g.metrics(), `gridfan_pull_receivers_waiting{subscriber="nightly"} 1`)
	})
	g.post("shop", "application/cloudevents+json", `{"specversion":"1.0","id":"R-1","source":"/shop","type":"order.placed","subject":"orders/1","time":"2026-11-01T12:00:00.25+02:00","dataschema":"https://example.com/order.json","no":7,"data":{"amount":90055.6,"name":"Größe"}}`)
	got := end()
	if took := time.Since(began); took > 40*time.Second {
		t.Errorf("the long poll took %v", took)
	}
	if len(got.Details) != 1 {
		t.Fatalf("got %d events", len(got.Details))
	}
	if d := cmp.Diff(cloudEvent{
		ID: "R-1", Type: "order.placed", Source: "/shop", SpecVersion: "1.0", Subject: "orders/1", Time: "2026-11-01T10:00:00.250Z",
		DataContentType: "application/json", DataSchema: "https://example.com/order.json", Data: json.RawMessage(`{"amount":90055.6,"name":"Größe"}`),
	}, got.Details[0].Event); d != "" {
		t.Errorf("event (-want +got):\n%s", d)
	}
	first := got.Details[0].BrokerProperties.LockToken
	nightly.end("acknowledgeEvents", []string{first}, ok)
	nightly.end("acknowledgeEvents", []string{first, "nonsense"}, []string{"TokenLost", "BadToken"})

	// Released, at once and after a delay.
	g.structured("R-2")
	token := nightly.one("R-2", 1)
	nightly.end("releaseEvents", []string{token}, ok)
	token = nightly.one("R-2", 2)
	released := time.Now()
	nightly.end("releaseEvents", []string{token}, ok, map[string]string{"releaseDelay": "10"})
	token = nightly.one("R-2", 3)
	if took := time.Since(released); took < 9*time.Second {
		t.Errorf("released for 10 s, it came after %v", took)
	}
	nightly.end("rejectEvents", []string{token}, ok)
	letters := g.letters("nightly")
	if len(letters) != 1 || letters[0].ID != "R-2" || letters[0].Cause != "rejected" {
		t.Errorf("dead letters %+v", letters)
	}
	g.settled("nightly")

	// A lock that runs out: the event comes again with its count, and its first token
	// is worth nothing. Its second time is the last.
	tokens := quick.all("R-1", "R-2")
	lost, kept := tokens["R-1"], tokens["R-2"]
	// Renewed longer than the lock lasts, an event stays with its receiver.
	renewing := time.NewTicker(600 * time.Millisecond)
	defer renewing.Stop()
	for range 10 {
		<-renewing.C
		quick.end("renewEventLocks", []string{kept}, ok)
	}
	quick.end("acknowledgeEvents", []string{kept}, ok)
	second := quick.one("R-1", 2)
	quick.end("acknowledgeEvents", []string{lost}, []string{"TokenLost"})
	quick.end("releaseEvents", []string{second}, ok)
	letters = g.letters("quick")
	if len(letters) != 1 || letters[0].ID != "R-1" || letters[0].Cause != "exhausted" {
		t.Errorf("dead letters %+v", letters)
	}

	// A token outlives the process that gave it.
	g.structured("R-3")
	token = nightly.one("R-3", 1)
	g.kill()
	g.run()
	waitFor(t, "the token is taken", func() bool {
		var got ended
		err := p.try(&got, "receiver", nightly.who, "acknowledgeEvents", []string{token})
		return err == nil && slices.Equal(got.SucceededLockTokens, []string{token})
	})
	g.settled("nightly")
}

// TestReceiverRefused: what a client did wrong shows in its errors, and keys do not.
func TestReceiverRefused(t *testing.T) {
	g := start(t, `
  nightly: { subjects: "events.>", deliver: { pull: { keys: `+receiverKey+` } } }
  pushed: { subjects: "events.>", deliver: { webhook: { url: "http://127.0.0.1:9/" } } }
`)
	p := node(t, "namespaces.js", g.env)
	for _, tt := range []struct {
		name, subscriber, key, method string
		args                          []any
		status                        int
		code                          string
	}{
		{"wrong key", "nightly", wrongKey, "receiveEvents", nil, 401, "unauthorized"},
		{"wrong key of a settlement", "nightly", wrongKey, "acknowledgeEvents", []any{[]string{"x"}}, 401, "unauthorized"},
		{"unknown subscriber", "nobody", receiverKey, "receiveEvents", nil, 404, "unknown-subscriber"},
		{"pushed subscriber", "pushed", receiverKey, "receiveEvents", nil, 404, "unknown-subscriber"},
		{"too many events", "nightly", receiverKey, "receiveEvents", []any{map[string]int{"maxEvents": 1000}}, 400, "bad-parameter"},
		{"too long a wait", "nightly", receiverKey, "receiveEvents", []any{map[string]int{"maxWaitTime": 1000}}, 400, "bad-parameter"},
		{"too long a delay", "nightly", receiverKey, "releaseEvents", []any{[]string{"x"}, map[string]string{"releaseDelay": "7200"}}, 400, "bad-parameter"},
		{"too large a body", "nightly", receiverKey, "acknowledgeEvents", []any{[]string{strings.Repeat("x", 200_000)}}, 413, "body-too-large"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := g.receiver(p, tt.subscriber, tt.key)
			refused(t, p.try(nil, "receiver", append([]any{r.who, tt.method}, tt.args...)...), tt.status, tt.code)
		})
	}
}

// refused wants an error that shows gridfan's code and a message, and no key.
func refused(t *testing.T, err error, status int, code string) {
	t.Helper()
	f, is := errors.AsType[*fault](err)
	if !is {
		t.Fatalf("got %v", err)
	}
	if f.StatusCode != status || f.Code != code || f.Message == "" {
		t.Errorf("got %v, want HTTP %d, %s", f, status, code)
	}
	for _, key := range []string{senderKey, receiverKey, wrongKey} {
		if strings.Contains(f.Message, key) {
			t.Errorf("the message shows a key: %s", f.Message)
		}
	}
}

// letters lists a subscriber's dead letters.
func (g *gridfan) letters(subscriber string) []deadletters.Letter {
	g.t.Helper()
	var list struct{ DeadLetters []deadletters.Letter }
	waitFor(g.t, "a dead letter of "+subscriber, func() bool {
		g.cli(&list, "deadletters", "list", subscriber, "--each")
		return len(list.DeadLetters) > 0
	})
	return list.DeadLetters
}
