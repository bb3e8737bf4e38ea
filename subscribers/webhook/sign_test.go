package webhook

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

var (
	oldKey   = Key{shared: []byte("canary-old-key-of-24-bytes")}
	newerKey = Key{shared: []byte("canary-newer-key-with-some-more-bytes")}
)

// verifying lets through what the official library finds well signed under one
// key, as a receiver uses it.
func verifying(t *testing.T, next http.Handler, key Key) http.Handler {
	hook, err := standardwebhooks.NewWebhook(key.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the Sender went away
		}
		if err := hook.Verify(body, r.Header); err != nil {
			t.Errorf("%v: %v", r.Header, err)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, r)
	})
}

// captured is one request.
type captured struct {
	header http.Header
	body   []byte
}

func (c *captured) serve(_ http.ResponseWriter, r *http.Request) {
	c.header = r.Header.Clone()
	c.body, _ = io.ReadAll(r.Body)
}

// text is the request without what every one has.
func (c *captured) text() string {
	h := c.header.Clone()
	for _, name := range []string{"User-Agent", "Accept-Encoding", "Content-Length"} {
		h.Del(name)
	}
	var b strings.Builder
	_ = h.Write(&b) // sorted by name
	return strings.ReplaceAll(b.String(), "\r\n", "\n") + string(c.body)
}

// sender makes one whose endpoint is handler.
func sender(t *testing.T, handler http.HandlerFunc, cfg Config, opts Options) *Sender {
	t.Helper()
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	cfg.URL = srv.URL
	s, err := New(cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func capture(t *testing.T, format Format, keys ...Key) (*Sender, *captured) {
	t.Helper()
	got := &captured{}
	return sender(t, got.serve, Config{Format: format}, Options{Concurrency: 32, Version: "1.2.3", Keys: keys}), got
}

func signedEvent(id string) *event.Event {
	return &event.Event{ID: id, Source: "/s", Type: "t", DataContentType: "application/json", Data: []byte(`{"a.b":1}`), DataJSON: true}
}

// A receiver with any of the keys verifies, one with another does not, nor does
// any receiver what was changed on the way.
func TestSignature(t *testing.T) {
	send := map[string]func(*Sender) deliver.Attempt{
		"single": func(s *Sender) deliver.Attempt { return s.Send(t.Context(), signedEvent("4711")) },
		"no data": func(s *Sender) deliver.Attempt {
			return s.Send(t.Context(), &event.Event{ID: "4711", Source: "/s", Type: "t"})
		},
		"batch": func(s *Sender) deliver.Attempt {
			return s.SendBatch(t.Context(), []*event.Event{signedEvent("1"), signedEvent("2")})
		},
	}
	for _, format := range []Format{Structured, Binary} {
		for name, send := range send {
			t.Run(string(format)+"/"+name, func(t *testing.T) {
				s, got := capture(t, format, newerKey, oldKey)
				for range 3 { // hashes are used again
					if a := send(s); a.Outcome != deliver.Delivered {
						t.Fatalf("got %+v", a)
					}
					for _, key := range []Key{newerKey, oldKey} {
						hook, _ := standardwebhooks.NewWebhook(key.Reveal())
						if err := hook.Verify(got.body, got.header); err != nil {
							t.Errorf("with a valid key: %v", err)
						}
						if err := hook.Verify(append(got.body, ' '), got.header); err == nil {
							t.Error("a changed body verifies")
						}
						for _, name := range []string{"Webhook-Id", "Webhook-Timestamp"} {
							h := got.header.Clone()
							h.Set(name, h.Get(name)+"1")
							if err := hook.VerifyIgnoringTimestamp(got.body, h); err == nil {
								t.Errorf("a changed %s verifies", name)
							}
						}
					}
					hook, _ := standardwebhooks.NewWebhook(NewKey(HMAC).Reveal())
					if err := hook.Verify(got.body, got.header); err == nil {
						t.Error("another key verifies")
					}
				}
				if n := len(strings.Fields(got.header.Get("Webhook-Signature"))); n != 2 {
					t.Errorf("%d signatures, want one for each key", n)
				}
				newest, _ := standardwebhooks.NewWebhookRaw(newerKey.shared)
				at, _ := strconv.ParseInt(got.header.Get("Webhook-Timestamp"), 10, 64)
				first, _ := newest.Sign(got.header.Get("Webhook-Id"), time.Unix(at, 0), got.body)
				if !strings.HasPrefix(got.header.Get("Webhook-Signature"), first+" ") {
					t.Errorf("got %s, want that of the newest key first", got.header.Get("Webhook-Signature"))
				}
				if id := got.header.Get("Webhook-Id"); name != "batch" && id != "4711" {
					t.Errorf("webhook-id is %s, want the event's id", id)
				}
			})
		}
	}
}

// One request's headers stay out of the next.
func TestSignatureLeavesNothingBehind(t *testing.T) {
	s, _ := capture(t, Structured, newerKey)
	s.Send(t.Context(), signedEvent("1"))
	s.SendBatch(t.Context(), []*event.Event{signedEvent("1")})
	if len(s.header) != 2 || len(s.batch) != 2 {
		t.Errorf("the shared headers have become %v and %v", s.header, s.batch)
	}
	s, got := capture(t, Structured)
	s.Send(t.Context(), signedEvent("1"))
	for _, name := range []string{"Webhook-Id", "Webhook-Timestamp", "Webhook-Signature"} {
		if v := got.header.Values(name); v != nil {
			t.Errorf("%s: %s without a key", name, v)
		}
	}
}

func TestBatchRequest(t *testing.T) {
	s, got := capture(t, Structured)
	a, b := signedEvent("1"), signedEvent("ü")
	b.Data, b.DataJSON, b.DataContentType = []byte("x"), false, "text/plain"
	s.SendBatch(t.Context(), []*event.Event{a, b})
	if ct := got.header.Get("Content-Type"); ct != "application/cloudevents-batch+json; charset=utf-8" {
		t.Errorf("Content-Type %s", ct)
	}
	if want := "[" + string(a.JSON()) + "," + string(b.JSON()) + "]"; string(got.body) != want {
		t.Errorf("got  %s\nwant %s", got.body, want)
	}
	if l := got.header.Get("Content-Length"); l != strconv.Itoa(len(got.body)) {
		t.Errorf("Content-Length %s, want %d", l, len(got.body))
	}
}

func TestWebhookID(t *testing.T) {
	long := strings.Repeat("x", maxID)
	for id, want := range map[string]string{
		"4711":                                 "4711",
		"0F8FAD5B-D9CB-469F-A165-70867728950E": "0F8FAD5B-D9CB-469F-A165-70867728950E",
		"a~1f/b:c":                             "a~1f/b:c",
		"a.1.{}":                               "a%2E1%2E{}",
		"a b\"%\x00\r\n\x7fü":                  "a%20b%22%25%00%0D%0A%7F%C3%BC",
		long:                                   long,
		long + "x":                             "sha256-",
		strings.Repeat(".", maxID):             "sha256-",
	} {
		got := webhookID(id)
		if want == "sha256-" {
			if !strings.HasPrefix(got, want) || len(got) != len(want)+43 {
				t.Errorf("%.20q: got %q, want a digest", id, got)
			}
		} else if got != want {
			t.Errorf("%q: got %q, want %q", id, got, want)
		}
		if strings.Contains(got, ".") {
			t.Errorf("%q has a full stop", got)
		}
	}
}

func TestBatchID(t *testing.T) {
	of := func(ids ...string) string {
		var events []*event.Event
		for i := 0; i < len(ids); i += 2 {
			events = append(events, &event.Event{Source: ids[i], ID: ids[i+1]})
		}
		return batchID(events)
	}
	seen := map[string]string{}
	for _, ids := range [][]string{
		{"s", "1"}, {"s", "2"}, {"t", "1"}, {"s", "1", "s", "2"}, {"s", "2", "s", "1"}, {"s", "12"}, {"s1", "2"}, {"s", "1s2"}, {"s", "1", "s2", ""},
	} {
		id := of(ids...)
		if other, ok := seen[id]; ok {
			t.Errorf("%q and %q have the same id", ids, other)
		}
		seen[id] = fmt.Sprint(ids)
		if id != of(ids...) || strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			t.Errorf("%q: %s", ids, id)
		}
	}
}

func BenchmarkSign(b *testing.B) {
	s, err := newSigner([]Key{newerKey})
	if err != nil {
		b.Fatal(err)
	}
	body, h, now := make([]byte, 1024), http.Header{}, time.Now()
	b.ReportAllocs()
	for b.Loop() {
		s.sign(h, "0F8FAD5B-D9CB-469F-A165-70867728950E", body, now)
	}
}
