package app_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"
)

// troubles are subscribers that are in trouble while they are told to, each in
// its own way, and well otherwise. They live in the receivers' process.
type troubles struct {
	ok func() // an event was taken

	mu    sync.Mutex // guards all below
	on    bool
	since time.Time
	posts map[string]*posts
}

// posts is what one of them has seen since the last change.
type posts struct {
	N       int       // attempts
	Early   int       // of them in the first 8 s
	Taken   int       // answered with success
	First   time.Time // success
	Last    time.Time // success
	Changed time.Time
}

func newTroubles(ok func()) *troubles { return &troubles{ok: ok, posts: map[string]*posts{}} }

// change switches the trouble on or off and answers with what was seen before.
func (t *troubles) change(w http.ResponseWriter, r *http.Request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, _ := json.Marshal(t.posts) // numbers: it cannot fail
	if on := r.URL.Query().Get("on"); on != "" {
		t.on, t.since, t.posts = on == "true", time.Now(), map[string]*posts{}
	}
	_, _ = w.Write(b)
}

func (t *troubles) serve(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	name := r.PathValue("name")
	t.mu.Lock()
	on := t.on
	p := t.posts[name]
	if p == nil {
		p = &posts{Changed: t.since}
		t.posts[name] = p
	}
	p.N++
	if time.Since(t.since) < 8*time.Second {
		p.Early++
	}
	t.mu.Unlock()
	taken := func() {
		t.mu.Lock()
		p.Taken++
		p.Last = time.Now()
		if p.First.IsZero() {
			p.First = p.Last
		}
		t.mu.Unlock()
		t.ok()
	}
	raw := func(text string, pause time.Duration) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		for i := range len(text) {
			if _, err := io.WriteString(c, text[i:i+1]); err != nil {
				return
			}
			time.Sleep(pause) // sleep: this is the trouble
		}
	}
	if !on {
		w.WriteHeader(http.StatusNoContent)
		taken()
		return
	}
	switch r.PathValue("kind") {
	case "dead":
		raw("", 0)
	case "slow":
		wait(r, 300*time.Millisecond)
		w.WriteHeader(http.StatusNoContent)
		taken()
	case "garbage":
		raw("\x00\x01\x02 garbage \xff\xfe\r\n\r\n", 0)
	case "open": // it never closes its response
		w.WriteHeader(http.StatusOK)
		_, _ = io.WriteString(w, "…")
		_ = http.NewResponseController(w).Flush() // a client that has gone is fine
		taken()
		wait(r, patience)
	case "drip":
		raw("HTTP/1.1 204 No Content\r\nX-Padding: "+fmt.Sprintf("%060d", 0)+"\r\n\r\n", 25*time.Millisecond)
	}
}

// troubled switches the trouble and returns what was seen before.
func (r *receivers) troubled(on string) map[string]*posts {
	r.b.Helper()
	resp, err := http.Post("http://"+r.addr+"/troubles?on="+on, "", nil)
	if err != nil {
		r.b.Fatal(err)
	}
	defer resp.Body.Close()
	var all map[string]*posts
	if err := json.NewDecoder(resp.Body).Decode(&all); err != nil {
		r.b.Fatal(err)
	}
	return all
}

// TestTroubles shows that each trouble is one.
func TestTroubles(t *testing.T) {
	r := startReceivers(t)
	client := http.Client{Timeout: 500 * time.Millisecond}
	for _, on := range []string{"false", "true"} {
		r.troubled(on)
		for kind, fails := range map[string]bool{"dead": true, "slow": false, "garbage": true, "open": false, "drip": true} {
			resp, err := client.Post("http://"+r.addr+"/trouble/"+kind+"/"+kind, "", nil)
			if err == nil {
				resp.Body.Close()
			}
			if want := on == "true" && fails; (err != nil) != want {
				t.Errorf("%s, trouble %s: got %v", kind, on, err)
			}
		}
	}
	if seen := r.troubled(""); seen["dead"] == nil || seen["dead"].Early != 1 || seen["slow"].Taken != 1 {
		t.Errorf("got %+v", seen)
	}
}
