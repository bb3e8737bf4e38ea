package receive

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/router/publish"
	"github.com/gridfan/gridfan/schemas/event"
)

// space plays the subscription of an Event Grid namespace (wire.md's §5; REST API
// 2024-06-01).
type space struct {
	*httptest.Server
	lock time.Duration

	mu       sync.Mutex // guards all below
	waiting  []string   // events
	locked   map[string]held
	count    map[string]int
	token    int
	renewals int
	released int
	answer   func(http.ResponseWriter, *http.Request) bool // true: it has answered
	asked    []string
}

type held struct {
	event string
	until time.Time
}

func newSpace(t *testing.T) *space {
	s := &space{lock: time.Minute, locked: map[string]held{}, count: map[string]int{}}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *space) put(events ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = append(s.waiting, events...)
}

func (s *space) left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting) + len(s.locked)
}

func (s *space) expire() {
	for token, h := range s.locked {
		if time.Now().After(h.until) {
			delete(s.locked, token)
			s.waiting = append(s.waiting, h.event)
		}
	}
}

func (s *space) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answer != nil && s.answer(w, r) {
		return
	}
	if got := r.Header.Get("Authorization"); got != "SharedAccessKey "+canaryKey {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, `{"error":{"code":"Unauthorized","message":"not %s"}}`, got)
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/topics/orders/eventsubscriptions/all:")
	if !ok || r.URL.Query().Get("api-version") != "2024-06-01" {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if path == "receive" {
		most, _ := strconv.Atoi(r.URL.Query().Get("maxEvents"))
		s.asked = append(s.asked, r.URL.Query().Get("maxWaitTime"))
		for range 20 { // a second at most: tests do not wait
			s.expire()
			if len(s.waiting) > 0 {
				break
			}
			s.mu.Unlock()
			select {
			case <-time.After(50 * time.Millisecond):
			case <-r.Context().Done():
			}
			s.mu.Lock()
		}
		var list []string
		for len(s.waiting) > 0 && len(list) < most {
			e := s.waiting[0]
			s.waiting = s.waiting[1:]
			s.token++
			token := fmt.Sprint("token-", s.token)
			s.locked[token] = held{e, time.Now().Add(s.lock)}
			s.count[e]++
			list = append(list, fmt.Sprintf(`{"brokerProperties":{"lockToken":%q,"deliveryCount":%d},"event":%s}`, token, s.count[e], e))
		}
		fmt.Fprintf(w, `{"value":[%s]}`, strings.Join(list, ","))
		return
	}
	var body struct{ LockTokens []string }
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.expire()
	good, bad := []string{}, []string{}
	for _, token := range body.LockTokens {
		h, ok := s.locked[token]
		if !ok {
			bad = append(bad, fmt.Sprintf(`{"lockToken":%q,"error":{"code":"TokenLost","message":"expired"}}`, token))
			continue
		}
		good = append(good, strconv.Quote(token))
		switch path {
		case "acknowledge":
			delete(s.locked, token)
		case "release":
			delete(s.locked, token)
			s.waiting = append(s.waiting, h.event)
			s.released++
		case "renewLock":
			s.locked[token] = held{h.event, time.Now().Add(s.lock)}
			s.renewals++
		}
	}
	fmt.Fprintf(w, `{"failedLockTokens":[%s],"succeededLockTokens":[%s]}`, strings.Join(bad, ","), strings.Join(good, ","))
}

func (s *space) source() Source {
	return Source{Name: "shop", Kind: event.KindCloudEvents, From: &Config{EventGridNamespace: &Namespace{
		Endpoint: s.URL, Topic: "orders", Subscription: "all", Auth: credentials.AzureAuth{Key: canaryKey},
	}}}
}

func trusting(h *hall, srv *httptest.Server) *hall {
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	for _, s := range h.sources {
		s.transport.TLSClientConfig.RootCAs = pool
	}
	return h
}

func gridEvent(id string) string {
	return fmt.Sprintf(`{"specversion":"1.0","id":%q,"source":"/crm/orders","type":"order.placed","subject":"o/1","tenant":9007199254740993,"data":{"n":9007199254740993}}`, id)
}

// Events of a namespace are stored as they came, and acknowledged once they are.
func TestNamespace(t *testing.T) {
	s := newSpace(t)
	for i := range 250 {
		s.put(gridEvent(fmt.Sprint("e-", i)))
	}
	s.put(`{"specversion":"1.0","id":"odd"}`)
	h := trusting(newHall(t, s.source()), s.Server)
	h.Start()
	h.eventually("all is acknowledged", func() bool { return s.left() == 0 && h.one("shop").Settled == 251 })
	st := h.one("shop")
	if st.State != Receiving || st.Published != 250 || st.Quarantined != 1 || st.Way != "eventGridNamespace" || !strings.HasSuffix(st.From, "/orders/all") {
		t.Errorf("status %+v", st)
	}
	all := h.stored(broker.StreamEvents)
	if len(all) != 250 || string(all[0].Data) != `{"n":9007199254740993}` || all[0].Header.Get("ce-tenant") != "9007199254740993" {
		t.Errorf("%d events; the first one: %v %s", len(all), all[0].Header, all[0].Data)
	}
	if s.asked[0] != "10" || !slices.Contains(s.asked, "60") {
		t.Errorf("waits %v", s.asked)
	}
}

// While nothing can be stored, the locks are renewed and nothing else is asked for.
func TestNamespaceHolds(t *testing.T) {
	s := newSpace(t)
	h := trusting(newHall(t, s.source()), s.Server)
	h.failing(publish.ErrStorageFull)
	s.put(gridEvent("e-1"))
	h.Start()
	h.eventually("it is tried", func() bool { return h.attempts() > 3 })
	s.mu.Lock()
	if len(s.locked) != 1 || s.count[gridEvent("e-1")] != 1 {
		t.Errorf("locked %v, deliveries %v", s.locked, s.count)
	}
	s.mu.Unlock()
	h.failing(nil)
	h.eventually("it is acknowledged", func() bool { return s.left() == 0 })
	// A lock that ends meanwhile costs a repetition.
	h.failing(publish.ErrStorageFull)
	before := h.attempts()
	s.put(gridEvent("e-2"))
	h.eventually("it is tried", func() bool { return h.attempts() > before+1 })
	s.mu.Lock()
	for token, l := range s.locked {
		s.locked[token] = held{l.event, time.Now().Add(-time.Second)}
	}
	s.mu.Unlock()
	h.failing(nil)
	h.eventually("it is acknowledged", func() bool { return s.left() == 0 })
	h.eventually("it is counted", func() bool { st := h.one("shop"); return st.Lost == 1 && st.Duplicate == 1 && st.Published == 2 })
	// And when the program stops, what is not stored is released.
	h.failing(publish.ErrStorageFull)
	before = h.attempts()
	s.put(gridEvent("e-3"))
	h.eventually("it is tried", func() bool { return h.attempts() > before+1 })
	h.Stop()
	if s.released != 1 {
		t.Errorf("%d were released", s.released)
	}
}

// Locks are renewed at the service.
func TestNamespaceRenews(t *testing.T) {
	s := newSpace(t)
	s.put(gridEvent("e-1"))
	src := s.source()
	h := trusting(newHall(t, src), s.Server)
	in, err := h.sources["shop"].open(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	all, err := in.receive(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("%v %v", all, err)
	}
	in.renew(t.Context(), all)
	left, ok := in.locked(all)
	if s.renewals != 1 || !ok || left < namespaceLock/2 || all[0].lost {
		t.Errorf("%d renewals, %v left", s.renewals, left)
	}
	s.mu.Lock()
	clear(s.locked)
	s.mu.Unlock()
	in.renew(t.Context(), all)
	if _, ok := in.locked(all); ok || !all[0].lost {
		t.Error("the lock is lost, and it is not told")
	}
}

// What is no answer, or no leave, is told; nothing is lost.
func TestNamespaceRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request) bool
		kind   Kind
		want   string
	}{
		"wrong key": {func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(401)
			fmt.Fprint(w, `{"error":{"message":"no, not `+canaryKey+`"}}`)
			return true
		}, Credentials, "HTTP 401"},
		"no topic": {func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(404); return true }, Configuration, "there is no such topic or subscription"},
		"busy": {func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(429)
			return true
		}, Throttled, "HTTP 429"},
		"redirect": {func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Location", "https://elsewhere.example.com/")
			w.WriteHeader(302)
			return true
		}, Configuration, "redirects are not followed"},
		"HTML": {func(w http.ResponseWriter, _ *http.Request) bool {
			fmt.Fprint(w, `<html>maintenance</html>`)
			return true
		}, Answer, "no answer to this"},
		"truncated": {func(w http.ResponseWriter, _ *http.Request) bool { fmt.Fprint(w, `{"value":[{"event":{}`); return true }, Answer, "no answer to this"},
		"no value":  {func(w http.ResponseWriter, _ *http.Request) bool { fmt.Fprint(w, `{}`); return true }, Answer, "there is no value"},
		"no token": {func(w http.ResponseWriter, _ *http.Request) bool {
			fmt.Fprint(w, `{"value":[{"event":{},"brokerProperties":{}}]}`)
			return true
		}, Answer, "no lock token"},
		"hangs up": {func(w http.ResponseWriter, _ *http.Request) bool { panic(http.ErrAbortHandler) }, Unavailable, ""},
		"endless": {func(w http.ResponseWriter, r *http.Request) bool {
			fmt.Fprint(w, `{"value":[`)
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					break
				}
			}
			return true
		}, Answer, "larger than is read"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSpace(t)
			s.put(gridEvent("e-1"))
			s.mu.Lock()
			s.answer = tt.answer
			s.mu.Unlock()
			h := trusting(newHall(t, s.source()), s.Server)
			h.sources["shop"].transport.limit = 8 << 20
			h.Start()
			h.eventually("it is told", func() bool { return h.one("shop").State == Failing })
			if st := h.one("shop"); st.Kind != tt.kind || !strings.Contains(st.Reason, tt.want) || strings.Contains(st.Reason, canaryKey) {
				t.Errorf("status %+v", st)
			}
			if st := h.one("shop"); tt.kind == Throttled {
				if time.Until(*st.Next) < 20*time.Second {
					t.Errorf("asked again at %v", st.Next)
				}
				return
			}
			s.mu.Lock()
			s.answer = nil
			s.mu.Unlock()
			h.eventually("it is received", func() bool { return s.left() == 0 && h.one("shop").State == Receiving })
			if d := cmp.Diff([]string{"source.receive-failing shop", "source.receiving shop"}, h.reported()); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}
