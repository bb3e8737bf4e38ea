//go:build torture && linux

package torture_test

import (
	"hash/fnv"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// inbox is every subscriber, one a path, and remembers what each answered:
//
//	/fast, /live-…  take everything
//	/slow           takes its time
//	/flaky          answers 500 to the first three attempts of every tenth event
//	/picky          answers 400 to every tenth event
//	/late           answers 503 until open is set
type inbox struct {
	url  string
	open atomic.Bool

	mu       sync.Mutex                // guards all below
	taken    map[string]map[string]int // how often, by subscriber and event
	rejected map[string]int            // by picky
	failed   map[string]int            // attempts on flaky
}

func newInbox(t testing.TB) *inbox {
	in := &inbox{taken: map[string]map[string]int{}, rejected: map[string]int{}, failed: map[string]int{}}
	s := httptest.NewServer(in)
	t.Cleanup(s.Close)
	in.url = s.URL
	return in
}

func (in *inbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return // gridfan was killed
	}
	id, err := url.PathUnescape(r.Header.Get("ce-id"))
	if err != nil || id == "" {
		http.Error(w, "no id", http.StatusTeapot)
		return
	}
	name := strings.Trim(r.URL.Path, "/")
	if name == "slow" {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-r.Context().Done():
			return
		}
	}
	w.WriteHeader(in.answer(name, id))
}

func (in *inbox) answer(name, id string) int {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case name == "late" && !in.open.Load():
		return http.StatusServiceUnavailable
	case name == "picky" && tenth(id, 1):
		in.rejected[id]++
		return http.StatusBadRequest
	case name == "flaky" && tenth(id, 2) && in.failed[id] < 3:
		in.failed[id]++
		return http.StatusInternalServerError
	}
	if in.taken[name] == nil {
		in.taken[name] = map[string]int{}
	}
	in.taken[name][id]++
	return http.StatusNoContent
}

// tenth picks every tenth event.
func tenth(id string, which uint32) bool {
	h := fnv.New32a()
	_, _ = io.WriteString(h, id) // it cannot fail
	return h.Sum32()%10 == which
}

// has says how often a subscriber took an event.
func (in *inbox) has(name, id string) int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.taken[name][id]
}

// took counts the events of a subscriber.
func (in *inbox) took(name string) int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.taken[name])
}

// repeated counts the deliveries that were made once more.
func (in *inbox) repeated() (n int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, ids := range in.taken {
		for _, times := range ids {
			n += times - 1
		}
	}
	return n
}
