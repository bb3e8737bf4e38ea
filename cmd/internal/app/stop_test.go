package app_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestStop stops gridfan under load, as SIGTERM does, and wants what was
// accepted delivered by the next start.
func TestStop(t *testing.T) {
	const attempts = 3 * time.Second // within the usual grace
	in := newInbox(t)
	var stuck atomic.Int64 // requests to the subscriber that does not answer in time
	in.handle = func(_ http.ResponseWriter, r *http.Request, got received) bool {
		switch got.subscriber {
		case "slow":
			wait(r, 50*time.Millisecond)
		case "stuck":
			// The first ones take longer than the grace and are made again.
			if stuck.Add(1) <= 4 {
				wait(r, patience)
				return true
			}
		}
		return false
	}
	subscribers := []string{"quick", "slow", "stuck"}
	var parts strings.Builder
	parts.WriteString("subscribers:\n")
	for _, name := range subscribers {
		parts.WriteString(subscriber(name, in.url+"/"+name, "limits: { concurrency: 16, timeout: 1m }, "+quickRetry))
	}
	g := start(t, sources, parts.String())
	g.attempts = attempts
	g.restart(sources, parts.String())

	addr := g.app.PublicAddr()
	var mu sync.Mutex // guards accepted, other
	var accepted, other []string
	var refused, unreachable atomic.Int64
	stop := make(chan struct{})
	var sending sync.WaitGroup
	for s := range 8 {
		sending.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				id := fmt.Sprintf("S-%d-%d", s, n)
				a, err := send(addr, "fo", nil, businessEvent(id))
				mu.Lock()
				switch {
				case err != nil:
					if unreachable.Add(1) > 1000 {
						mu.Unlock()
						return
					}
				case a.status == http.StatusOK:
					accepted = append(accepted, id)
				case a.status == http.StatusServiceUnavailable:
					refused.Add(1)
				default:
					other = append(other, fmt.Sprintf("HTTP %d %s", a.status, a.body))
				}
				mu.Unlock()
			}
		})
	}
	waitFor(t, "there is load", func() bool { return len(in.of("quick")) > 100 })
	begin := time.Now()
	g.stop()
	took := time.Since(begin)
	close(stop)
	sending.Wait()
	// It took the time it gave to the stuck one, and ended by itself before the grace
	// did: Stop would have said otherwise.
	if took < attempts {
		t.Errorf("the stop took %v, and attempts under way had %v", took, attempts)
	}
	if refused.Load() == 0 || unreachable.Load() > 0 && refused.Load() < unreachable.Load() {
		t.Errorf("%d senders were told to come back, and %d found a closed door", refused.Load(), unreachable.Load())
	}
	if len(other) > 0 {
		t.Errorf("senders were told something else than 200 and 503: %v", other)
	}

	g.run(sources, parts.String())
	for _, name := range subscribers {
		in.wantAll(t, name, accepted)
	}
	g.drained()
	// What a quick subscriber had answered was settled before the end.
	in.wantOnce(t, "quick", accepted)
	in.wantOnce(t, "slow", accepted)
	t.Logf("stopped in %v; %d accepted, %d answered 503, %d not connected", took.Round(time.Millisecond), len(accepted), refused.Load(), unreachable.Load())
}
