// Package odatatest stands in for the two OData services that gridfan polls, with the
// habits that lose rows: change tracking, expiring tokens and paging cookies of
// Dataverse, $skip links of F&O, transactions that are committed late, whole seconds,
// and 429. What of this is documented, and where, stands in package odata and beside
// the code here.
//
// Time is the test's: it advances only by Sleep, so that hours of it take seconds.
package odatatest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Clock is a test's time. It is safe for concurrent use.
type Clock struct {
	mu  sync.Mutex // guards now
	now time.Time
}

// NewClock gives a Clock that stands at a time.
func NewClock(start time.Time) *Clock { return &Clock{now: start} }

// Now is the time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Sleep moves the time on.
func (c *Clock) Sleep(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// limits are what both services do to callers who ask too much.
type limits struct {
	clock  *Clock
	rand   *rand.Rand
	until  time.Time
	left   int // answers before the next 429
	burst  int // 429s in a row
	Early  int // requests that came before a Retry-After had ended
	Denied int // 429s
	Every  int // so many requests are answered, on average; 0: all
}

// refuses answers with 429 now and then, and counts who does not wait.
func (l *limits) refuses(w http.ResponseWriter, code, message string) bool {
	now := l.clock.Now()
	if now.Before(l.until) {
		l.Early++
	}
	if l.Every == 0 {
		return false
	}
	if l.burst == 0 {
		if l.left--; l.left > 0 {
			return false
		}
		l.burst, l.left = 1+l.rand.IntN(3), 1+l.rand.IntN(2*l.Every)
	}
	l.burst--
	l.Denied++
	wait := 1 + l.rand.IntN(30)
	l.until = now.Add(time.Duration(wait) * time.Second)
	header := strconv.Itoa(wait)
	if l.rand.IntN(2) == 0 {
		// An HTTP date has whole seconds: from the one that the answer is dated with.
		l.until = now.Truncate(time.Second).Add(time.Duration(wait) * time.Second)
		header = l.until.UTC().Format(http.TimeFormat)
	}
	w.Header().Set("Retry-After", header)
	refuse(w, http.StatusTooManyRequests, code, message)
	return true
}

// refuse answers as OData does (OData JSON Format Version 4.01 §21).
func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json; odata.metadata=minimal")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": code, "message": message}})
}

// answer writes a page.
func answer(w http.ResponseWriter, members map[string]any) {
	w.Header().Set("Content-Type", "application/json; odata.metadata=minimal")
	_ = json.NewEncoder(w).Encode(members)
}

func date(w http.ResponseWriter, c *Clock) {
	w.Header().Set("Date", c.Now().UTC().Format(http.TimeFormat))
}

func stamp(t time.Time) string { return t.UTC().Truncate(time.Second).Format(time.RFC3339) }

func guid(r *rand.Rand) string {
	return fmt.Sprintf("%08x-%04x-4%03x-8%03x-%012x", r.Uint32(), r.Uint32()&0xffff, r.Uint32()&0xfff, r.Uint32()&0xfff, r.Uint64()&0xffffffffffff)
}
