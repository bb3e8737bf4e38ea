package ingress

import (
	"net/http"
	"strconv"
	"sync"
	"time"
)

// risk watches a source's requests as Event Grid sees them: after repeated
// failures it delays new events too, for hours ("probation"; Event Grid docs,
// delivery-and-retry; read 2026-11). It keeps five minutes.
type risk struct {
	mu      sync.Mutex // guards all below
	minutes [riskMinutes]minute
}

type minute struct {
	at          int64 // Unix minute
	total, bad  int
	maxDelivery int // highest aeg-delivery-count
}

const riskMinutes = 5

// tooSlow is when Event Grid stops waiting and repeats.
const tooSlow = 30 * time.Second

// add books one answered request.
func (k *risk) add(r *http.Request, code int, took time.Duration, now time.Time) {
	count, _ := strconv.Atoi(r.Header.Get("aeg-delivery-count")) // 0 without one
	k.mu.Lock()
	defer k.mu.Unlock()
	m := &k.minutes[now.Unix()/60%riskMinutes]
	if m.at != now.Unix()/60 {
		*m = minute{at: now.Unix() / 60}
	}
	m.total++
	if code < 200 || code > 204 || took > tooSlow {
		m.bad++
	}
	m.maxDelivery = max(m.maxDelivery, count)
}

// read tells the share of bad answers and the highest delivery count of the
// last five minutes.
func (k *risk) read(now time.Time) (share float64, deliveries int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	total, bad := 0, 0
	for _, m := range k.minutes {
		if m.at <= now.Unix()/60-riskMinutes {
			continue
		}
		total += m.total
		bad += m.bad
		deliveries = max(deliveries, m.maxDelivery)
	}
	if total > 0 {
		share = float64(bad) / float64(total)
	}
	return share, deliveries
}
