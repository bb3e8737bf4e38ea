package app_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/eventgrid/aznamespaces"

	"github.com/gridfan/gridfan/cmd/internal/admin"
	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/subscribers/deliver"
	"github.com/gridfan/gridfan/subscribers/pull"
)

const (
	pullKey  = "a-key-of-the-reader-0"
	otherKey = "a-key-of-another-one-0"
)

// fetching is one entry below subscribers whose receivers have pullKey.
func fetching(name, more string) string {
	return fmt.Sprintf("  %s: { subjects: [ \"events.>\" ], deliver: { pull: { keys: [ %q ], %s } } }\n", name, pullKey, more)
}

// secured runs gridfan with TLS, and gives a client that trusts it.
func secured(t *testing.T, parts ...string) (*gridfan, *http.Client) {
	t.Helper()
	return securedLogging(t, slog.DiscardHandler, parts...)
}

func securedLogging(t *testing.T, log slog.Handler, parts ...string) (*gridfan, *http.Client) {
	t.Helper()
	ca := newAuthority(t)
	g := &gridfan{t: t, dir: t.TempDir(), log: slog.New(log)}
	t.Cleanup(g.stop)
	cfg := parse(t, g.dir, parts...)
	files := ca.files(t.TempDir(), "gridfan")
	files.ClientCA = ""
	cfg.Listen.TLS = &files
	g.runWith(cfg)
	return g, ca.client()
}

// receiver is a stock client of Event Grid namespaces.
func receiver(t testing.TB, url, subscriber, key string, c *http.Client) *aznamespaces.ReceiverClient {
	t.Helper()
	o := &aznamespaces.ReceiverClientOptions{}
	o.Transport = c
	o.Retry.MaxRetries = -1
	r, err := aznamespaces.NewReceiverClientWithSharedKeyCredential(url, "events", subscriber, azcore.NewKeyCredential(key), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// heldEvent is what a receive call brought.
type heldEvent struct {
	id, token string
	count     int32
}

func take(t testing.TB, r *aznamespaces.ReceiverClient, n int) []heldEvent {
	t.Helper()
	got, err := r.ReceiveEvents(t.Context(), &aznamespaces.ReceiveEventsOptions{MaxEvents: new(int32(n)), MaxWaitTime: new(int32(20))})
	if err != nil {
		t.Fatal(err)
	}
	var all []heldEvent
	for _, d := range got.Details {
		all = append(all, heldEvent{d.Event.ID, *d.BrokerProperties.LockToken, *d.BrokerProperties.DeliveryCount})
	}
	return all
}

// takeAll receives until it has n.
func takeAll(t testing.TB, r *aznamespaces.ReceiverClient, n int) []heldEvent {
	t.Helper()
	var all []heldEvent
	for until := time.Now().Add(patience); len(all) < n && time.Now().Before(until); {
		all = append(all, take(t, r, n-len(all))...)
	}
	if len(all) != n {
		t.Fatalf("%d events received, want %d", len(all), n)
	}
	return all
}

func status(err error) (int, string) {
	if e, ok := errors.AsType[*azcore.ResponseError](err); ok {
		return e.StatusCode, e.ErrorCode
	}
	return 0, fmt.Sprint(err)
}

// TestPullStockClient runs each operation of Event Grid's own client, unmodified,
// over TLS, and wants the books to tell of all.
func TestPullStockClient(t *testing.T) {
	g, c := secured(t, sources, "subscribers:\n", fetching("reader", "lockDuration: 3s, maxDeliveryCount: 3"))
	url := "https://" + g.app.PublicAddr()
	r := receiver(t, url, "reader", pullKey, c)
	secureAccept := func(ids ...string) {
		t.Helper()
		for _, id := range ids {
			resp, err := c.Post(url+"/ingress/fo", "application/json", strings.NewReader(string(businessEvent(id))))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("HTTP %d", resp.StatusCode)
			}
		}
	}

	// A long poll is answered when an event comes, not when its wait ends.
	began := time.Now()
	go func() {
		time.Sleep(300 * time.Millisecond) // sleep: the receiver below is to wait before there is an event
		secureAccept("ONE")
	}()
	one := takeAll(t, r, 1)[0]
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("the event came after %v: at the end of the wait", took)
	}
	if one.id != "ONE" || one.count != 1 {
		t.Errorf("got %+v", one)
	}
	acked, err := r.AcknowledgeEvents(t.Context(), []string{one.token}, nil)
	if err != nil || !slices.Equal(acked.SucceededLockTokens, []string{one.token}) || len(acked.FailedLockTokens) != 0 {
		t.Fatalf("acknowledge: %+v, %v", acked, err)
	}
	// Once is once.
	for name, again := range map[string]func() ([]aznamespaces.FailedLockToken, error){
		"acknowledge": func() ([]aznamespaces.FailedLockToken, error) {
			a, err := r.AcknowledgeEvents(t.Context(), []string{one.token}, nil)
			return a.FailedLockTokens, err
		},
		"reject": func() ([]aznamespaces.FailedLockToken, error) {
			a, err := r.RejectEvents(t.Context(), []string{one.token}, nil)
			return a.FailedLockTokens, err
		},
		"release": func() ([]aznamespaces.FailedLockToken, error) {
			a, err := r.ReleaseEvents(t.Context(), []string{one.token}, nil)
			return a.FailedLockTokens, err
		},
		"renew": func() ([]aznamespaces.FailedLockToken, error) {
			a, err := r.RenewEventLocks(t.Context(), []string{one.token}, nil)
			return a.FailedLockTokens, err
		},
	} {
		failed, err := again()
		if err != nil || len(failed) != 1 || *failed[0].Error.Code != "TokenLost" || *failed[0].LockToken != one.token {
			t.Errorf("%s of what is acknowledged: %+v, %v", name, failed, err)
		}
	}

	// Released it comes again, with its count; rejected it is a dead letter.
	secureAccept("TWO")
	two := takeAll(t, r, 1)[0]
	if a, err := r.ReleaseEvents(t.Context(), []string{two.token}, nil); err != nil || len(a.SucceededLockTokens) != 1 {
		t.Fatalf("release: %+v, %v", a, err)
	}
	two = takeAll(t, r, 1)[0]
	if two.id != "TWO" || two.count != 2 {
		t.Errorf("after a release: %+v", two)
	}
	if a, err := r.RejectEvents(t.Context(), []string{two.token}, nil); err != nil || len(a.SucceededLockTokens) != 1 {
		t.Fatalf("reject: %+v, %v", a, err)
	}

	// A lock that is renewed outlives its first end; one that is not runs out, and
	// the event comes again with its count, three times in all.
	secureAccept("THREE")
	three := takeAll(t, r, 1)[0]
	for range 4 {
		time.Sleep(time.Second) // sleep: longer in all than the lock lasts
		if a, err := r.RenewEventLocks(t.Context(), []string{three.token}, nil); err != nil || len(a.SucceededLockTokens) != 1 {
			t.Fatalf("renew: %+v, %v", a, err)
		}
	}
	for count := int32(2); count <= 3; count++ {
		again := takeAll(t, r, 1)[0]
		if again.id != "THREE" || again.count != count || again.token == three.token {
			t.Errorf("after its lock ran out: %+v, want count %d", again, count)
		}
		if a, err := r.AcknowledgeEvents(t.Context(), []string{three.token}, nil); err != nil || len(a.FailedLockTokens) != 1 || *a.FailedLockTokens[0].Error.Code != "TokenLost" {
			t.Errorf("acknowledge with a lock that ran out: %+v, %v", a, err)
		}
		three = again
	}
	// Somebody has to ask for the last lock's end to be seen.
	secureAccept("FOUR")
	four := takeAll(t, r, 1)[0]
	if four.id != "FOUR" {
		t.Errorf("got %+v", four)
	}
	if a, err := r.AcknowledgeEvents(t.Context(), []string{four.token}, nil); err != nil || len(a.SucceededLockTokens) != 1 {
		t.Fatalf("acknowledge: %+v, %v", a, err)
	}
	if got, err := r.ReceiveEvents(t.Context(), &aznamespaces.ReceiveEventsOptions{MaxWaitTime: new(int32(10))}); err != nil || len(got.Details) != 0 {
		t.Errorf("received after all was settled: %+v, %v", got, err)
	}
	g.wantBooks("reader", 4, 2, 2)
	why, err := g.admin.Why(t.Context(), "THREE", deliver.Duration(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	var outcomes []string
	for _, s := range why.Events[0].Deliveries[0].Steps {
		outcomes = append(outcomes, s.Outcome)
	}
	if want := []string{"locked", "failed", "locked", "failed", "locked", "dead-letter"}; !slices.Equal(outcomes, want) {
		t.Errorf("steps of an event whose locks ran out: %q, want %q", outcomes, want)
	}

	// What is in one answer is in order.
	var posted []string
	for n := range 40 {
		posted = append(posted, fmt.Sprintf("ROW%02d", n))
	}
	secureAccept(posted...)
	for left := len(posted); left > 0; {
		row := take(t, r, left)
		if !slices.IsSortedFunc(row, func(a, b heldEvent) int { return strings.Compare(a.id, b.id) }) {
			t.Errorf("an answer out of order: %+v", row)
		}
		left -= len(row)
	}

	// Who may not gets nothing, and no hint.
	for key, want := range map[string]int{otherKey: http.StatusUnauthorized, "": http.StatusUnauthorized} {
		_, err := receiver(t, url, "reader", key, c).ReceiveEvents(t.Context(), nil)
		if code, word := status(err); code != want || word != "unauthorized" {
			t.Errorf("key %q: %d %s", key, code, word)
		}
	}
	_, err = receiver(t, url, "nobody", pullKey, c).ReceiveEvents(t.Context(), nil)
	if code, word := status(err); code != http.StatusNotFound || word != "unknown-subscriber" {
		t.Errorf("unknown subscriber: %d %s", code, word)
	}
}

// wantBooks wants the book of a subscriber to balance, with figures.
func (g *gridfan) wantBooks(name string, matched, delivered, dead int64) {
	g.t.Helper()
	var last any
	if !eventually(func() bool {
		kept, err := g.admin.Books(context.Background())
		if err != nil {
			last = err
			return false
		}
		for _, s := range kept.Subscribers {
			if s.Name == name {
				last = s
				return kept.Balanced && s.Matched == matched && s.Delivered == delivered && s.DeadLetters == dead && s.Balance == 0
			}
		}
		return false
	}) {
		g.t.Errorf("the book of %s: %+v; want %d matched, %d delivered, %d dead letters, balanced", name, last, matched, delivered, dead)
	}
}

// TestPullKill has ten thousand events fetched by three receivers while gridfan is
// killed again and again. Every event is acknowledged in the end; what was answered
// as acknowledged never comes again; nobody holds what somebody else holds; and the
// books have each event delivered once.
func TestPullKill(t *testing.T) {
	const (
		events    = 10_000
		kills     = 8
		receivers = 3
		lasts     = 2 * time.Second
	)
	dir := t.TempDir()
	file := filepath.Join(dir, "gridfan.yaml")
	text := configuration(filepath.Join(dir, "data"), sources, "subscribers:\n", fetching("reader", "lockDuration: 2s, maxDeliveryCount: 1000"))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var addr atomic.Pointer[string]
	c := startChild(t, childGridfan, file)
	addr.Store(&c.addresses.Public)
	answers(t, c.addresses.Public)
	for n := 0; n < events; n += 100 {
		if a, err := send(c.addresses.Public, "eg", nil, batch(100)); err != nil || a.status != http.StatusOK {
			t.Fatalf("HTTP %d %s, %v", a.status, a.body, err)
		}
	}

	type state struct {
		token string
		until time.Time // before that nobody else may have it
		count int32
		done  bool // it was answered that it is acknowledged
	}
	var mu sync.Mutex // guards all below
	held := map[string]*state{}
	done, repeated := 0, 0
	ctx, stop := context.WithTimeout(t.Context(), 2*patience)
	defer stop()
	var working sync.WaitGroup
	for range receivers {
		working.Go(func() {
			for ctx.Err() == nil {
				to := *addr.Load()
				got, err := fetch100(ctx, to)
				if err != nil {
					time.Sleep(20 * time.Millisecond) // sleep: gridfan is dead for a moment
					continue
				}
				tokens := []string{}
				mu.Lock()
				for _, h := range got {
					s := held[h.id]
					if s == nil {
						s = &state{}
						held[h.id] = s
					} else {
						repeated++
					}
					switch {
					case s.done:
						t.Errorf("event %s came again after it was acknowledged", h.id)
					case time.Now().Before(s.until):
						t.Errorf("event %s has two holders", h.id)
					case h.count <= s.count:
						t.Errorf("event %s: count %d after %d", h.id, h.count, s.count)
					}
					// It was locked up to a second before it arrived, if the machine is busy.
					s.token, s.until, s.count = h.token, time.Now().Add(lasts-time.Second), h.count
					tokens = append(tokens, h.token)
				}
				mu.Unlock()
				if rand.N(20) == 0 {
					continue // it dies with what it holds
				}
				// The same tokens, until somebody answers: at the next gridfan too.
				for len(tokens) > 0 && ctx.Err() == nil {
					succeeded, failed, err := acknowledge(ctx, *addr.Load(), tokens)
					if err != nil {
						time.Sleep(20 * time.Millisecond) // sleep: the same
						continue
					}
					mu.Lock()
					for _, h := range got {
						if s := held[h.id]; slices.Contains(succeeded, h.token) {
							s.done = true
							if done++; done == events {
								stop()
							}
						} else if slices.Contains(failed, h.token) && s.token == h.token {
							s.until = time.Time{}
						}
					}
					mu.Unlock()
					break
				}
			}
		})
	}
	lost := 0
	for range kills {
		time.Sleep(100*time.Millisecond + rand.N(500*time.Millisecond)) // sleep: any moment will do for a kill
		if ctx.Err() != nil {
			break
		}
		c.kill()
		c = startChild(t, childGridfan, file)
		addr.Store(&c.addresses.Public)
		lost++
	}
	// An acknowledge whose answer was cut off has happened, and nobody was told. What
	// is left is so, or still to come.
	g := &gridfan{t: t, admin: &admin.Client{URL: "http://" + c.addresses.Admin}, natsURL: c.addresses.NATS}
	waitFor(t, "every event is delivered", func() bool {
		kept, err := g.admin.Books(t.Context())
		if err != nil {
			return false
		}
		for _, s := range kept.Subscribers {
			if s.Delivered == events {
				return true
			}
		}
		return false
	})
	stop()
	working.Wait()
	g.wantBooks("reader", events, events, 0)
	recorded := map[uint64]int{}
	for _, m := range g.stored(broker.StreamAttempts) {
		records, err := deliver.ParseRecords(m.Data)
		if err != nil {
			t.Error(err)
		}
		for _, r := range records {
			if r.Outcome == deliver.RecordDelivered {
				recorded[r.Sequence]++
			}
		}
	}
	for sequence, n := range recorded {
		if n > 1 {
			t.Errorf("event %d is recorded as delivered %d times", sequence, n)
		}
	}
	if repeated == 0 {
		t.Error("no event came again, although some receivers died with what they held")
	}
	if len(recorded) != events || len(held) != events {
		t.Errorf("%d events are recorded as delivered and %d were received, want %d", len(recorded), len(held), events)
	}
	t.Logf("%d kills; %d of %d events were answered as acknowledged; %d came again", lost, done, events, repeated)
}

// fetch100 receives without a stock client: a connection that is cut is no reason to
// wait.
func fetch100(ctx context.Context, addr string) ([]heldEvent, error) {
	var answer struct {
		Value []struct {
			BrokerProperties struct {
				LockToken     string
				DeliveryCount int32
			}
			Event struct{ ID string }
		}
	}
	if err := operate(ctx, addr, "receive?maxEvents=100&maxWaitTime=10", nil, &answer); err != nil {
		return nil, err
	}
	var all []heldEvent
	for _, v := range answer.Value {
		all = append(all, heldEvent{v.Event.ID, v.BrokerProperties.LockToken, v.BrokerProperties.DeliveryCount})
	}
	return all, nil
}

func acknowledge(ctx context.Context, addr string, tokens []string) (succeeded, failed []string, err error) {
	body, err := json.Marshal(map[string]any{"lockTokens": tokens})
	if err != nil {
		return nil, nil, err
	}
	var answer struct {
		SucceededLockTokens []string
		FailedLockTokens    []struct {
			LockToken string
			Error     struct{ Code string }
		}
	}
	if err := operate(ctx, addr, "acknowledge", body, &answer); err != nil {
		return nil, nil, err
	}
	for _, f := range answer.FailedLockTokens {
		failed = append(failed, f.LockToken)
	}
	return answer.SucceededLockTokens, failed, nil
}

// operate makes one call for the subscriber reader.
func operate(ctx context.Context, addr, operation string, body []byte, answer any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+pull.Path("reader")+":"+operation, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "SharedAccessKey "+pullKey)
	resp, err := sender.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("HTTP %d", resp.StatusCode)
	}
	return json.NewDecoder(resp.Body).Decode(answer)
}
