package app_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gridfan/gridfan/cmd/internal/admin"
)

// TestIsolation serves fifty subscribers of which one refuses connections and
// one never answers. The other 48 must not notice, and the dead one gets
// everything when it is back.
func TestIsolation(t *testing.T) {
	const healthy, events = 48, 60
	in := newInbox(t)
	hanging := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if _, err := read(r); err == nil {
			wait(r, patience)
		}
	}))
	t.Cleanup(hanging.Close)
	// An address where nobody listens, yet.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	deadAddr := l.Addr().String()
	l.Close()

	const failing = "limits: { timeout: 1s }, breaker: { failures: 3, openFor: 300ms, maxOpenFor: 1s }, " + quickRetry
	var parts strings.Builder
	parts.WriteString("subscribers:\n" + subscriber("dead", "http://"+deadAddr+"/dead", failing) + subscriber("hanging", hanging.URL, failing))
	var well []string
	for i := range healthy {
		name := fmt.Sprintf("well-%d", i)
		well = append(well, name)
		parts.WriteString(subscriber(name, in.url+"/"+name, ""))
	}
	g := start(t, sources, parts.String())

	// Half of the events come before the breakers open, half after.
	first, second := names("FIRST", events/2), names("SECOND", events/2)
	g.accept(first...)
	for _, name := range []string{"dead", "hanging"} {
		waitFor(t, "the breaker of "+name+" is open", func() bool {
			s, err := g.admin.Subscriber(t.Context(), name)
			return err == nil && s.Breaker != nil && s.Breaker.State != "closed"
		})
	}
	g.accept(second...)
	all := append(first, second...)
	for _, name := range well {
		in.wantOnce(t, name, all)
		if got := len(in.of(name)); got != len(all) {
			t.Errorf("%s got %d requests for %d events", name, got, len(all))
		}
		s, err := g.admin.Subscriber(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if s.Breaker.State != "closed" {
			t.Errorf("the breaker of %s is %s", name, s.Breaker.State)
		}
	}
	if got := in.of("dead"); len(got) > 0 {
		t.Fatalf("somebody answers for the dead one: %v", got)
	}

	// It comes back on the same port.
	if l, err = net.Listen("tcp", deadAddr); err != nil {
		t.Fatal(err)
	}
	back := &httptest.Server{Listener: l, Config: &http.Server{Handler: in}}
	back.Start()
	t.Cleanup(back.Close)
	in.wantOnce(t, "dead", all)
	waitFor(t, "the breaker of dead is closed and nothing is left", func() bool {
		s, err := g.admin.Subscriber(t.Context(), "dead")
		return err == nil && s.Breaker.State == "closed" && s.Backlog.Pending+s.Backlog.Retry == 0
	})
	if got := len(in.of("dead")); got != len(all) {
		t.Errorf("dead got %d requests for %d events", got, len(all))
	}
	var s *admin.Subscriber
	waitFor(t, "every event is kept for the hanging one", func() bool { // one that goes into retry counts twice for a moment
		var err error
		s, err = g.admin.Subscriber(t.Context(), "hanging")
		return err == nil && s.Breaker.State != "closed" && s.Backlog.Pending+s.Backlog.Retry == len(all) && s.Backlog.DeadLetters == 0
	})
	if !strings.Contains(s.Breaker.LastError, "timed out") {
		t.Errorf("hanging: the breaker says %q", s.Breaker.LastError)
	}
}
