package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/gridfan/gridfan/infra/broker"
	"github.com/gridfan/gridfan/infra/broker/brokertest"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/registry"
)

// patience is how long a test waits for what must come.
const patience = 2 * time.Minute

// radio is the API with listeners only, on a broker of its own.
type radio struct {
	t      *testing.T
	broker *broker.Broker
	l      *listening
	client *Client
	server *httptest.Server
	stop   context.CancelFunc
}

// newRadio starts one on a server whose own limits are far shorter than a
// listener stays.
func newRadio(t *testing.T) *radio {
	t.Helper()
	b := brokertest.New(t)
	reg, err := registry.Open(t.Context(), b, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	stopping, stop := context.WithCancel(t.Context())
	l := &listening{
		Parts:  Parts{Broker: b, Registry: reg, Stopping: stopping},
		places: make(chan struct{}, 3), heartbeat: 20 * time.Millisecond, stalled: patience, filter: newFilter,
	}
	mux := newRoutes()
	l.routes(mux)
	s := httptest.NewUnstartedServer(mux)
	s.Config.ReadTimeout, s.Config.WriteTimeout = 300*time.Millisecond, 300*time.Millisecond
	s.Start()
	t.Cleanup(s.Close)
	t.Cleanup(s.CloseClientConnections)
	return &radio{t: t, broker: b, l: l, client: &Client{URL: s.URL}, server: s, stop: stop}
}

// sample is an event whose data has line feeds between its values.
func sample(id string) *event.Event {
	e := &event.Event{
		ID: id, Source: "/shop", Type: "placed", Subject: "<orders> & more", DataContentType: "application/json", DataJSON: true,
		Data: []byte("{\n\t\"n\": 10000000000000000000001,\r\n\t\"s\": \"a\\nb <&>\"\n}"),
	}
	e.SetExtension(event.Extension{Name: "sequence", Value: "7", Type: event.Integer})
	return e
}

// publish stores events and returns the sequence of the last.
func (r *radio) publish(subject string, events ...*event.Event) (last uint64) {
	r.t.Helper()
	for _, e := range events {
		header, body := e.Encode()
		last = r.raw(&nats.Msg{Subject: subject, Header: header, Data: body})
	}
	return last
}

func (r *radio) raw(m *nats.Msg) uint64 {
	r.t.Helper()
	ack, err := r.broker.JetStream().PublishMsg(r.t.Context(), m)
	if err != nil {
		r.t.Fatal(err)
	}
	return ack.Sequence
}

// hear listens until yield answers false.
func (r *radio) hear(o Listen, yield func(Heard) bool) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	enough := errors.New("enough")
	err := r.client.Listen(ctx, o, func(h Heard) error {
		if yield(h) {
			return nil
		}
		return enough
	})
	if !errors.Is(err, enough) {
		r.t.Fatalf("%+v: %v", o, err)
	}
}

// events listens for n events.
func (r *radio) events(o Listen, n int) []Heard {
	r.t.Helper()
	var got []Heard
	r.hear(o, func(h Heard) bool {
		if h.Heartbeat.IsZero() {
			got = append(got, h)
		}
		return len(got) < n
	})
	return got
}

// cursors names the consumers on EVENTS.
func (r *radio) cursors() []*jetstream.ConsumerInfo {
	r.t.Helper()
	s, err := r.broker.JetStream().Stream(r.t.Context(), broker.StreamEvents)
	if err != nil {
		r.t.Fatal(err)
	}
	var list []*jetstream.ConsumerInfo
	for info := range s.ListConsumers(r.t.Context()).Info() {
		list = append(list, info)
	}
	return list
}

func (r *radio) waitFor(what string, ok func() bool) {
	r.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			r.t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func (r *radio) gone() {
	r.t.Helper()
	r.waitFor("no cursor is left", func() bool { return len(r.cursors()) == 0 })
}

// TestListenTellsWhatAWebhookGets compares what is heard with the body of a
// structured post.
func TestListenTellsWhatAWebhookGets(t *testing.T) {
	r := newRadio(t)
	e := sample("a")
	seq := r.publish("events.custom.shop.-.placed", e)
	got := r.events(Listen{From: "beginning"}, 1)[0]
	want := strings.NewReplacer("\n", " ", "\r", " ").Replace(string(e.JSON()))
	if d := cmp.Diff(want, string(got.Event)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if got.Sequence != seq || got.Subject != "events.custom.shop.-.placed" || time.Since(got.Stored) > time.Hour || got.Problem != "" {
		t.Errorf("got %+v", got)
	}
	back, err := event.ParseJSON(got.Event)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, string(back.JSON())); d != "" {
		t.Errorf("read and written again (-want +got):\n%s", d)
	}

	one, err := r.client.Event(t.Context(), seq)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(got, *one); d != "" {
		t.Errorf("asked for by its sequence (-heard +got):\n%s", d)
	}
	r.gone()
}

// TestListenFrom begins where it is told, and hears what the subjects match.
func TestListenFrom(t *testing.T) {
	r := newRadio(t)
	r.publish("events.custom.shop.-.placed", sample("1"), sample("2"))
	r.publish("events.custom.shop.-.paid", sample("3"))
	last := r.publish("events.fno.prod.usmf.X", sample("4"))
	first := r.events(Listen{From: "beginning"}, 1)[0]
	var id string
	r.hear(Listen{}, func(h Heard) bool { id = h.Stream; return false })

	const next = "next"
	for _, tt := range []struct {
		name string
		o    Listen
		want string // ids, with the one that is published once listening has begun
	}{
		{"now", Listen{}, "new"},
		{"beginning", Listen{From: "beginning"}, "1 2 3 4 new"},
		{"zero", Listen{From: "0"}, "1 2 3 4 new"},
		{"the next sequence", Listen{From: next}, "new"},
		{"a sequence", Listen{From: "3"}, "3 4 new"},
		{"a while ago", Listen{From: "1h"}, "1 2 3 4 new"},
		{"a time", Listen{From: first.Stored.Add(-time.Second).Format(time.RFC3339)}, "1 2 3 4 new"},
		{"a time to come", Listen{From: time.Now().Add(time.Hour).Format(time.RFC3339)}, "new"},
		{"the same store", Listen{From: "3", Stream: id}, "3 4 new"},
		{"another store", Listen{From: "400", Stream: "another"}, "1 2 3 4 new"},
		{"a subject", Listen{From: "beginning", Subjects: []string{"events.custom.*.-.placed"}}, "1 2 new"},
		{"subjects that overlap", Listen{From: "beginning", Subjects: []string{"events.custom.>", "events.custom.shop.-.paid", "events.custom.*.-.paid"}}, "1 2 3 new"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.o.From == next {
				tt.o.From = fmt.Sprint(last + 1)
			}
			var got []string
			published := false
			r.hear(tt.o, func(h Heard) bool {
				if !h.Heartbeat.IsZero() {
					if !published {
						published = true
						last = r.publish("events.custom.shop.-.placed", sample("new"))
					}
					return true
				}
				got = append(got, idOf(t, h))
				return h.Sequence != last || !published
			})
			if d := cmp.Diff(tt.want, strings.Join(got, " ")); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			// The other cases do not hear it.
			s, err := r.broker.JetStream().Stream(t.Context(), broker.StreamEvents)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.DeleteMsg(t.Context(), last); err != nil {
				t.Fatal(err)
			}
		})
	}
	r.gone()
}

func idOf(t *testing.T, h Heard) string {
	t.Helper()
	var e struct{ ID string }
	if err := json.Unmarshal(h.Event, &e); err != nil {
		t.Fatalf("%+v: %v", h, err)
	}
	return e.ID
}

func TestListenRefuses(t *testing.T) {
	r := newRadio(t)
	r.publish("events.custom.shop.-.placed", sample("1"))
	for _, tt := range []struct {
		name, path, site string
		status           int
		code             string
	}{
		{"a pattern that matches nothing", "?subject=orders.>", "", 400, "bad-parameter"},
		{"too many patterns", "?subject=events.a" + strings.Repeat("&subject=events.a", maxPatterns), "", 400, "bad-parameter"},
		{"no beginning", "?from=yesterday", "", 400, "bad-parameter"},
		{"what is to come", "?from=3", "", 400, "bad-parameter"},
		{"no filter", "?filter=event.type+%3D%3D", "", 400, "bad-parameter"},
		{"pages from elsewhere", "", "cross-site", 403, "wrong-site"},
		{"an event that is not there", "/2", "", 404, "no-such-event"},
		{"what is no number", "/x", "", 400, "bad-parameter"},
		{"no event", "/0", "", 400, "bad-parameter"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.server.URL+"/api/v1/listen"+tt.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if tt.site != "" {
				req.Header.Set("Sec-Fetch-Site", tt.site)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var p Problem
			if err := json.NewDecoder(resp.Body).Decode(&p); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status || p.Code != tt.code || p.Detail == "" {
				t.Errorf("HTTP %d %+v", resp.StatusCode, p)
			}
		})
	}
	if len(r.l.places) != 0 {
		t.Errorf("%d places are taken by those who were refused", len(r.l.places))
	}
	r.gone()
}

// TestListenPlaces gives a place back when its listener goes.
func TestListenPlaces(t *testing.T) {
	r := newRadio(t)
	var leave []context.CancelFunc
	for range cap(r.l.places) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		leave = append(leave, cancel)
		here := make(chan struct{}, 100)
		go func() {
			_ = r.client.Listen(ctx, Listen{}, func(Heard) error { // it ends with ctx
				select {
				case here <- struct{}{}:
				default:
				}
				return nil
			})
		}()
		<-here
	}
	listen := func() error {
		return r.client.Listen(t.Context(), Listen{}, func(Heard) error { return io.EOF })
	}
	var p *Problem
	if err := listen(); !errors.As(err, &p) || p.Status != http.StatusServiceUnavailable || p.Code != "too-many-listeners" {
		t.Fatalf("one too many: %v", err)
	}
	leave[1]()
	r.waitFor("there is a place again", func() bool { return errors.Is(listen(), io.EOF) })
}

// TestListenOutlivesTheServersLimits stays far longer than the server lets
// others read and write, and says that it is alive.
func TestListenOutlivesTheServersLimits(t *testing.T) {
	r := newRadio(t)
	begin, beats := time.Now(), 0
	r.hear(Listen{}, func(h Heard) bool {
		if h.Heartbeat.IsZero() || h.Next != 1 || h.Stream == "" {
			t.Errorf("got %+v", h)
		}
		beats++
		return time.Since(begin) < 4*r.server.Config.WriteTimeout
	})
	if beats < 3 {
		t.Errorf("%d heartbeats", beats)
	}
}

// TestListenEnds tells why.
func TestListenEnds(t *testing.T) {
	r := newRadio(t)
	seq := r.publish("events.custom.shop.-.placed", sample("1"))
	err := r.client.Listen(t.Context(), Listen{From: "beginning"}, func(h Heard) error {
		if h.Sequence == seq {
			r.stop()
		}
		return nil
	})
	var ended *Ended
	if !errors.As(err, &ended) || ended.Why != errStopping.Error() {
		t.Errorf("got %v", err)
	}
	r.gone()
	if len(r.l.places) != 0 {
		t.Error("its place is still taken")
	}
}

// TestListenSurvivesItsCursor loses nothing when the cursor is deleted.
func TestListenSurvivesItsCursor(t *testing.T) {
	r := newRadio(t)
	const n = 20
	next := r.publish("events.custom.shop.-.placed", sample("e"))
	r.hear(Listen{From: "beginning"}, func(h Heard) bool {
		if !h.Heartbeat.IsZero() {
			return true
		}
		if h.Sequence != next {
			t.Fatalf("event %d is heard, want %d", h.Sequence, next)
		}
		// The next one comes while there is no cursor.
		for _, c := range r.cursors() {
			if err := r.broker.JetStream().DeleteConsumer(t.Context(), broker.StreamEvents, c.Name); err != nil {
				t.Fatal(err)
			}
		}
		next = r.publish("events.custom.shop.-.placed", sample("e"))
		return h.Sequence < n
	})
	r.gone()
}

// TestListenWaitsForTheSlow fetches nothing for a listener that takes nothing,
// and cuts it off in the end. It comes back where it was.
func TestListenWaitsForTheSlow(t *testing.T) {
	r := newRadio(t)
	r.l.stalled = time.Second
	const n, size = 300, 256 << 10
	big := sample("big")
	big.Data = fmt.Appendf(nil, "%q", strings.Repeat("x", size))
	for range n {
		r.publish("events.custom.shop.-.placed", big)
	}
	// However much the system would take on for a listener.
	small := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, addr)
		if err == nil {
			err = c.(*net.TCPConn).SetReadBuffer(64 << 10)
		}
		return c, err
	}}}
	resp, err := small.Get(r.server.URL + "/api/v1/listen?from=beginning")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReaderSize(resp.Body, 64<<10)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	// The network takes some, then nothing moves.
	most := uint64(0)
	r.waitFor("it is cut off", func() bool {
		for _, c := range r.cursors() {
			most = max(most, c.Delivered.Stream)
		}
		return len(r.l.places) == 0
	})
	if most == 0 || most > n/2 {
		t.Errorf("%d of %d events were fetched for a listener that takes none", most, n)
	}
	heard := uint64(0)
	for {
		var h Heard
		line, err := lines.ReadBytes('\n')
		if err != nil {
			break
		}
		if err := json.Unmarshal(line, &h); err != nil {
			t.Fatal(err)
		}
		if h.Sequence > 0 {
			if h.Sequence != heard+1 {
				t.Fatalf("event %d came after %d", h.Sequence, heard)
			}
			heard = h.Sequence
		}
	}
	r.l.stalled = patience // a busy machine is slow as well
	for _, h := range r.events(Listen{From: fmt.Sprint(heard + 1)}, int(n-heard)) {
		if heard++; h.Sequence != heard {
			t.Fatalf("event %d came, want %d", h.Sequence, heard)
		}
	}
	r.gone()
}

// TestListenFilters hands on what the filter wants, says where it fails, and
// gets on where it wants nothing.
func TestListenFilters(t *testing.T) {
	r := newRadio(t)
	r.l.filter = func(expression string) (func(*event.Event) (bool, error), error) {
		if expression != "id > 2" {
			t.Errorf("got %q", expression)
		}
		return func(e *event.Event) (bool, error) {
			if e.ID == "bad" {
				return false, errors.New("no such member")
			}
			return e.ID > "2", nil
		}, nil
	}
	r.publish("events.custom.shop.-.placed", sample("1"), sample("3"))
	last := r.publish("events.custom.shop.-.placed", sample("bad"), sample("2"))
	r.raw(&nats.Msg{Subject: "events.custom.other", Data: []byte("hello")})
	o := Listen{From: "beginning", Filter: "id > 2", Subjects: []string{"events.custom.shop.>"}}
	var got []Heard
	r.hear(o, func(h Heard) bool {
		if h.Heartbeat.IsZero() {
			got = append(got, h)
			return true
		}
		return h.Next <= last
	})
	if len(got) != 2 || idOf(t, got[0]) != "3" || got[1].Problem != "filter: no such member" || idOf(t, got[1]) != "bad" {
		t.Errorf("got %+v", got)
	}
}

// TestListenTellsWhatIsNoEvent does not stop at what somebody else published.
func TestListenTellsWhatIsNoEvent(t *testing.T) {
	r := newRadio(t)
	r.raw(&nats.Msg{Subject: "events.custom.other", Data: []byte("hello")})
	r.publish("events.custom.shop.-.placed", sample("1"))
	got := r.events(Listen{From: "beginning"}, 2)
	if got[0].Event != nil || !strings.HasPrefix(got[0].Problem, "not an event of ours: ") || idOf(t, got[1]) != "1" {
		t.Errorf("got %+v", got)
	}
}
