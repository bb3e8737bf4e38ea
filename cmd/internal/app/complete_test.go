package app_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/amqptest"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// cutShort is an event from which Dataverse took out what is large, of an asynchronous
// step.
func cutShort(message, id string, operation int, at time.Time) []byte {
	return fmt.Appendf(nil, `{"MessageName":%q,"PrimaryEntityName":"account","PrimaryEntityId":%q,"OperationId":"11111111-0000-4000-8000-%012d","OwningExtension":{"Id":"22222222-0000-4000-8000-000000000001"},
		"Stage":40,"Mode":1,"IsInTransaction":false,"OperationCreatedOn":"/Date(%d)/"}`, message, id, operation, at.UnixMilli())
}

// notCut is one with its Target.
func notCut(id, name string, operation int, at time.Time) []byte {
	return fmt.Appendf(nil, `{"MessageName":"Update","PrimaryEntityName":"account","PrimaryEntityId":%q,"OperationId":"11111111-0000-4000-8000-%012d","OwningExtension":{"Id":"22222222-0000-4000-8000-000000000001"},
		"Stage":40,"Mode":1,"OperationCreatedOn":"/Date(%d)/","InputParameters":[{"key":"Target","value":{"LogicalName":"account","Id":%q,"Attributes":[{"key":"name","value":%q}]}}]}`,
		id, operation, at.UnixMilli(), id, name)
}

var tooLarge = http.Header{"X-Ms-Dynamics-Msg-Size-Exceeded": {"true"}}

// completing is an entry below sources for pushed events that are completed at e.
func completing(e *estate, within string) string {
	return fmt.Sprintf("sources:\n  crm: { kind: dataverse, push: { auth: none }, complete: { url: %q, within: %s, budget: 1000/s } }\n", e.url, within)
}

// down has an estate answer 503 until its result is called.
func (e *estate) down() (up func()) {
	answer := func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	e.answer.Store(&answer)
	return func() { e.answer.Store(nil) }
}

// account is a row that is there.
func (e *estate) account(name string) (id string) {
	e.tick()
	id, commit := e.Create(name)
	commit()
	return id
}

// inOrder is a subscriber that wants each record's events one after the other.
const inOrder = "ordering: key, start: now"

// An event that Dataverse cut short reaches every subscriber with its row, which is
// read once; while Dataverse is down it waits, and says so.
func TestCompleted(t *testing.T) {
	in, e := newInbox(t), newEstate(t)
	g := start(t, completing(e, "1h"), "subscribers:\n"+subscriber("one", in.url+"/one", inOrder)+subscriber("two", in.url+"/two", inOrder))
	id := e.account("contoso")
	up := e.down()
	a := g.post("crm", tooLarge, cutShort("Update", id, 1, time.Now()))
	if a.status != http.StatusOK || a.json(t)["completing"] != 1.0 {
		t.Fatalf("answered %d %s", a.status, a.body)
	}
	if a := g.post("crm", nil, notCut(id, "next", 2, time.Now())); a.json(t)["completing"] != 1.0 {
		t.Errorf("the next of the record: %s", a.body)
	}
	var src *admin.Source
	waitFor(t, "its source tells", func() bool {
		var err error
		src, err = g.admin.Source(t.Context(), "crm")
		return err == nil && src.Complete != nil && src.Complete.Kind == "unavailable" && src.Complete.Held == 2
	})
	if src.Completing != 2 || src.Received != 2 || src.Complete.Within != 3600 {
		t.Errorf("source %+v, %+v", src.SourceStatus, src.Complete)
	}
	why, err := g.admin.Why(t.Context(), id, deliver.Duration(time.Hour))
	if err != nil || len(why.Held) != 2 || why.Held[0].For != "completion" || why.Held[1].For != "order" || why.Held[0].Source != "crm" {
		t.Errorf("why: %+v, %v", why, err)
	}
	asked := e.Asked()
	up()
	waitFor(t, "both subscribers have both", func() bool { return len(in.of("one")) == 2 && len(in.of("two")) == 2 })
	for _, name := range []string{"one", "two"} {
		got := in.of(name)
		first, second := got[0].attributes, got[1].attributes
		if first["completed"] == nil || first["incomplete"] != nil || !strings.Contains(string(got[0].data), `"contoso"`) || !strings.Contains(string(got[1].data), `"next"`) || second["completed"] != nil {
			t.Errorf("%s got %v %s, %v %s", name, first, got[0].data, second, got[1].data)
		}
	}
	// The definition of the table and the row, whoever subscribes.
	if n := e.Asked() - asked; n != 2 {
		t.Errorf("%d requests were answered", n)
	}
	g.drained()
	kept, err := g.admin.Books(t.Context())
	if err != nil || !kept.Balanced {
		t.Errorf("the books: %+v, %v", kept, err)
	}
	why, err = g.admin.Why(t.Context(), id, deliver.Duration(time.Hour))
	if err != nil || len(why.Held) != 0 || len(why.Events) != 2 || why.Events[1].Completed == nil {
		t.Errorf("why afterwards: %+v, %v", why, err)
	}
}

// A source that is polled has credentials already. Where Dataverse stays down, or
// says that it is asked too much, the event comes as it is when its time is over.
func TestCompletedInTime(t *testing.T) {
	for name, answer := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"down": func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true },
		"throttled": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Retry-After", "300")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			in, e := newInbox(t), newEstate(t)
			id := e.account("contoso")
			hybrid := strings.Replace(e.source("crm", ""), "poll: {", "pattern: hybrid, push: { auth: none }, complete: { within: 5s }, poll: {", 1)
			g := start(t, "sources:\n"+hybrid, "subscribers:\n"+subscriber("all", in.url+"/all", inOrder))
			g.state("crm", "polling")
			e.answer.Store(&answer)
			g.post("crm", tooLarge, cutShort("Update", id, 1, time.Now()))
			g.post("crm", nil, notCut(id, "next", 2, time.Now()))
			waitFor(t, "both come", func() bool { return len(in.of("all")) == 2 })
			if got := in.of("all"); got[0].attributes["incompletereason"] != "late" || got[0].attributes["incomplete"] != true || !strings.Contains(string(got[1].data), `"next"`) {
				t.Errorf("got %v, %v", got[0].attributes, got[1].attributes)
			}
		})
	}
}

// A kill -9 while events are kept loses none, and does not change the order of any
// record.
func TestCompleteKill(t *testing.T) {
	in, e := newInbox(t), newEstate(t)
	var ids []string
	for i := range 5 {
		ids = append(ids, e.account(fmt.Sprint("row ", i)))
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "gridfan.yaml")
	text := configuration(filepath.Join(dir, "data"), completing(e, "1h"), "subscribers:\n"+subscriber("all", in.url+"/all", "ordering: key, "+quickRetry))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	operation := 0
	want := map[string][]string{}
	for round := range 4 {
		c := startChild(t, childGridfan, file)
		up := e.down()
		if round%2 == 1 {
			up() // the kill comes while some are just being completed
		}
		for i := range 40 {
			operation++
			id := ids[i%len(ids)]
			body := cutShort("Update", id, operation, time.Now())
			if i%3 == 0 {
				body = notCut(id, "x", operation, time.Now())
			}
			resp, err := http.Post("http://"+c.addresses.Public+"/ingress/crm", "application/json", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("answered %d", resp.StatusCode)
			}
			want[id] = append(want[id], fmt.Sprintf("11111111-0000-4000-8000-%012d", operation))
		}
		c.kill()
		up()
	}
	startChild(t, childGridfan, file)
	waitFor(t, "all come", func() bool {
		seen := map[any]bool{}
		for _, got := range in.of("all") {
			seen[got.attributes["id"]] = true
		}
		return len(seen) == operation
	})
	order := map[string][]string{}
	for _, got := range in.of("all") {
		id, record := fmt.Sprint(got.attributes["id"])[:36], fmt.Sprint(got.attributes["subject"])
		if !slices.Contains(order[record], id) { // a kill repeats deliveries
			order[record] = append(order[record], id)
		}
		if got.attributes["incomplete"] != nil {
			t.Errorf("incomplete: %v", got.attributes)
		}
	}
	for id := range want {
		if !slices.Equal(order[id], want[id]) {
			t.Errorf("record %s:\n got %v\nwant %v", id, order[id], want[id])
		}
	}
}

// Messages of a queue are completed, too; they are settled before that.
func TestCompleteReceived(t *testing.T) {
	srv := amqptest.Start(t, amqptest.Options{})
	q := srv.Queue("crm", amqptest.QueueOptions{})
	in, e := newInbox(t), newEstate(t)
	id := e.account("contoso")
	up := e.down()
	g := start(t, fmt.Sprintf(`sources:
  crm:
    kind: dataverse
    receive: { serviceBus: { queue: crm, auth: { connectionString: "Endpoint=sb://%s;SharedAccessKeyName=n;SharedAccessKey=a2V5LWtleS1rZXk=;UseDevelopmentEmulator=true" } } }
    complete: { url: %q, within: 1h }
`, srv.Addr, e.url), "subscribers:\n"+subscriber("all", in.url+"/all", ""))
	q.Put(&amqp.Message{
		Properties:            &amqp.MessageProperties{MessageID: "1"},
		ApplicationProperties: map[string]any{"MessageMaxSizeExceeded": true},
		Data:                  [][]byte{cutShort("Update", id, 1, time.Now())},
	})
	waitFor(t, "the message is settled", func() bool { return q.Len() == 0 })
	s, err := g.admin.Source(t.Context(), "crm")
	if err != nil || s.Receive.Completing != 1 || len(in.of("all")) != 0 {
		t.Errorf("source %+v, %v", s, err)
	}
	up()
	waitFor(t, "it comes", func() bool { return len(in.of("all")) == 1 })
	if got := in.of("all")[0]; got.attributes["completed"] == nil || !strings.Contains(string(got.data), `"contoso"`) {
		t.Errorf("got %v %s", got.attributes, got.data)
	}
}
