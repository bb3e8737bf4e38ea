package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/Azure/go-amqp"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/amqptest"
	"github.com/gridfan/gridfan/router/receive"
)

// TestReceiveKill kills gridfan again and again while it receives from a queue, and
// wants every message of the queue at the subscriber. A kill comes at any point
// between a message's receipt and its settlement.
func TestReceiveKill(t *testing.T) {
	const kills, each = 12, 60
	srv := amqptest.Start(t, amqptest.Options{})
	// A lock as short as this comes back between two kills.
	q := srv.Queue("orders", amqptest.QueueOptions{Lock: 500 * time.Millisecond, MaxDeliveries: 1000})
	in := newInbox(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "gridfan.yaml")
	from := fmt.Sprintf(`sources:
  shop:
    kind: cloudevents
    receive: { serviceBus: { queue: orders, batch: 10, auth: { connectionString: "Endpoint=sb://%s;SharedAccessKeyName=n;SharedAccessKey=a2V5LWtleS1rZXk=;UseDevelopmentEmulator=true" } } }
`, srv.Addr)
	text := configuration(filepath.Join(dir, "data"), from, "subscribers:\n"+subscriber("all", in.url+"/all", quickRetry))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var want []string
	for round := range kills {
		settled := len(q.Settlements())
		for i := range each {
			id := fmt.Sprintf("RCV-%d-%d", round, i)
			want = append(want, id)
			q.Put(&amqp.Message{
				Properties: &amqp.MessageProperties{MessageID: id},
				Data:       [][]byte{fmt.Appendf(nil, `{"specversion":"1.0","id":%q,"source":"/s","type":"t"}`, id)},
			})
		}
		g := startChild(t, childGridfan, file)
		deadline := time.Now().Add(30 * time.Second)
		for len(q.Settlements()) < settled+each/3 {
			if time.Now().After(deadline) {
				g.kill()
				t.Fatalf("round %d: %d settled\n%s", round, len(q.Settlements())-settled, g.stderr.Bytes())
			}
			time.Sleep(time.Millisecond) // sleep: the kill comes anywhere
		}
		g.kill()
	}
	if n := q.Len(); n == 0 {
		t.Error("no kill came before a settlement: this shows nothing")
	}
	g := startChild(t, childGridfan, file)
	in.wantAll(t, "all", want)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for q.Len() > 0 && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond) // sleep: between two looks
	}
	resp, err := http.Get("http://" + g.addresses.Admin + "/api/v1/sources/shop")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var src admin.Source
	if err := json.NewDecoder(resp.Body).Decode(&src); err != nil {
		t.Fatal(err)
	}
	if r := src.Receive; r == nil || r.State != receive.Receiving || q.Len() != 0 || q.DeadLetters.Len() != 0 || src.Kind != "cloudevents" || src.Pattern != "push" {
		t.Errorf("%d left, %d dead letters, source %+v, %+v", q.Len(), q.DeadLetters.Len(), src.SourceStatus, src.Receive)
	}
}
