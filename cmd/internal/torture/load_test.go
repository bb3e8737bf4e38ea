//go:build torture && linux

package torture_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// load is many senders. Each repeats what it sends until it is answered 200, as
// F&O, Dataverse and Event Grid do, and remembers what was.
type load struct {
	t    testing.TB
	to   atomic.Pointer[string] // where gridfan is; nil while it is down
	halt chan struct{}
	all  sync.WaitGroup
	// dead is since when no request may be answered 200 that begins later; 0
	// for no such time.
	dead atomic.Int64

	mu          sync.Mutex           // guards all below
	accepted    map[string]time.Time // when an event that was answered 200 was first sent
	quarantined map[string]bool      // bodies that nobody can read, answered 200
	codes       map[string]int       // of the problems that were answered
	details     map[string]string    // the last detail of each
	last        time.Time            // of the last 200
	slowest     time.Duration        // of the answers
}

func newLoad(t testing.TB) *load {
	l := &load{
		t: t, halt: make(chan struct{}), accepted: map[string]time.Time{}, quarantined: map[string]bool{},
		codes: map[string]int{}, details: map[string]string{},
	}
	t.Cleanup(l.stop)
	return l
}

// stop returns when all senders have ended.
func (l *load) stop() {
	l.mu.Lock()
	select {
	case <-l.halt:
	default:
		close(l.halt)
	}
	l.mu.Unlock()
	l.all.Wait()
}

// pace is how often each kind of sender sends; 0 for not at all.
type pace struct {
	single  time.Duration // F&O business events, from three senders
	batch   time.Duration // a hundred events of Event Grid in one request
	shop    time.Duration // of a source whose mapping is wrong in every second round
	garbage time.Duration // bodies that nobody can read
	size    int           // of the data of an event in a batch
}

// usual is a load that two slow cores carry.
var usual = pace{single: 25 * time.Millisecond, batch: 400 * time.Millisecond, shop: 60 * time.Millisecond, garbage: 150 * time.Millisecond, size: 200}

func (l *load) start(p pace) {
	for n := range 3 {
		l.send(p.single, "fo", func(i int) (string, []string) {
			id := fmt.Sprintf("F-%d-%d", n, i)
			return fmt.Sprintf(`{"BusinessEventId":"PurchaseOrderConfirmedBusinessEvent","ControlNumber":5637144576,"EventId":%q,"EventTime":"/Date(1637246655000)/","LegalEntity":"usmf","MajorVersion":0,"MinorVersion":0,"PurchaseOrderNumber":"PO-%s"}`, id, id), []string{id}
		})
	}
	l.send(p.batch, "eg", func(i int) (string, []string) {
		var b strings.Builder
		var ids []string
		for n := range 100 {
			id := fmt.Sprintf("B-%d-%d", i, n)
			ids = append(ids, id)
			fmt.Fprintf(&b, `,{"id":%q,"topic":"/subscriptions/x/store","subject":"blob","eventType":"Microsoft.Storage.BlobCreated","eventTime":"2026-01-02T03:04:05Z","dataVersion":"1","metadataVersion":"1","data":{"url":"%s"}}`, id, strings.Repeat("x", p.size))
		}
		return "[" + b.String()[1:] + "]", ids
	})
	l.send(p.shop, "shop", func(i int) (string, []string) {
		id := fmt.Sprintf("S-%d", i)
		return fmt.Sprintf(`{"orderId":%q,"status":"paid","amount":%d}`, id, i), []string{id}
	})
	l.send(p.garbage, "eg", func(i int) (string, []string) {
		return fmt.Sprintf("{no JSON G-%d", i), nil
	})
}

// send is one sender: make gives the body of its i-th request and the ids of
// the events in it, none for what must go to quarantine.
func (l *load) send(every time.Duration, source string, make func(i int) (body string, ids []string)) {
	if every == 0 {
		return
	}
	l.all.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for i := 0; ; i++ {
			body, ids := make(i)
			first := time.Now()
			for ok := false; !ok; {
				select {
				case <-l.halt:
					return
				case <-tick.C:
				}
				if to := l.to.Load(); to != nil {
					ok = l.post(*to, source, body)
				}
			}
			l.mu.Lock()
			for _, id := range ids {
				l.accepted[id] = first
			}
			if len(ids) == 0 {
				l.quarantined[body] = true
			}
			l.mu.Unlock()
		}
	})
}

// client is one that keeps its connections. No answer may take as long as Event
// Grid waits; what does is found out, not cut off.
var client = &http.Client{
	Timeout:   60 * time.Second,
	Transport: &http.Transport{MaxIdleConnsPerHost: 64},
}

// post sends one request, and says whether it was accepted.
func (l *load) post(to, source, body string) bool {
	began := time.Now()
	resp, err := client.Post("http://"+to+"/ingress/"+source, "application/json", strings.NewReader(body))
	if err != nil {
		return false // it was killed, or has not started yet
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slowest = max(l.slowest, time.Since(began))
	switch resp.StatusCode {
	case http.StatusOK:
		if dead := l.dead.Load(); dead != 0 && began.UnixNano() > dead {
			l.t.Errorf("a request that began %v after the disk was gone was answered 200 %s", time.Duration(began.UnixNano()-dead), bytes.TrimSpace(b))
		}
		l.last = time.Now()
		return true
	case http.StatusServiceUnavailable:
		var problem struct{ Code, Detail string }
		if err := json.Unmarshal(b, &problem); err != nil {
			l.t.Errorf("503 with %q", b)
		}
		l.codes[problem.Code]++
		l.details[problem.Code] = problem.Detail
	default:
		l.t.Errorf("HTTP %d %s", resp.StatusCode, b)
	}
	return false
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.accepted)
}

// refused says how often a code was answered, and its last detail. "" asks for
// all codes.
func (l *load) refused(code string) (n int, detail string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if code != "" {
		return l.codes[code], l.details[code]
	}
	for _, c := range slices.Sorted(maps.Keys(l.codes)) {
		n += l.codes[c]
		detail += fmt.Sprintf(" %s: %s;", c, l.details[c])
	}
	return n, detail
}

// more waits until n more events are accepted than now and tells how long the
// first took.
func (l *load) more(n int) time.Duration {
	l.t.Helper()
	began, was := time.Now(), l.count()
	var first time.Duration
	waitFor(l.t, fmt.Sprintf("%d more events are accepted", n), func() bool {
		now := l.count()
		if first == 0 && now > was {
			first = time.Since(began)
		}
		return now >= was+n
	})
	return first
}

// anyMoment lasts a random time.
func anyMoment(from, to time.Duration) {
	time.Sleep(from + rand.N(to-from)) // sleep: a crash comes at any moment
}
