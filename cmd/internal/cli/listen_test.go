package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gridfan/gridfan/cmd/internal/app"
	"github.com/gridfan/gridfan/cmd/internal/config"
	"github.com/gridfan/gridfan/schemas/event"
	"github.com/gridfan/gridfan/subscribers/deliver"
)

// patience is how long a test waits for what must come.
const patience = 2 * time.Minute

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// TestKeys reads keys as terminals send them.
func TestKeys(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     []key
	}{
		{"letters", "rp q", []key{'r', 'p', ' ', 'q'}},
		{"arrows", "\x1b[A\x1b[B\x1bOA\x1bOB", []key{keyUp, keyDown, keyUp, keyDown}},
		{"arrows with Shift", "\x1b[1;2A", []key{keyUp}},
		{"what means nothing here", "\x1b[C\x1b[3~\x1b[15~\x00\x7f\tx", []key{'x'}},
		{"Esc, then a key", "\x1b\x1b[Ax\x1bxr", []key{keyUp, 'x', 'r'}},
		{"Ctrl-C, Ctrl-D, Ctrl-\\", "\x03\x04\x1c", []key{keyInterrupt, keyInterrupt, keyInterrupt}},
		{"Enter", "\r\n", []key{keyEnter, keyEnter}},
		{"beyond ASCII", "ä9", []key{'ä', '9'}},
		{"no UTF-8", "\xff9", []key{'\uFFFD', '9'}},
		{"an end in the middle", "\x1b[", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// One byte at a time, as over a slow line.
			for _, in := range []io.Reader{strings.NewReader(tt.in), &dribble{tt.in}} {
				var got []key
				if err := readKeys(in, func(k key) bool { got = append(got, k); return true }); !errors.Is(err, io.EOF) {
					t.Error(err)
				}
				if d := cmp.Diff(tt.want, got); d != "" {
					t.Errorf("(-want +got):\n%s", d)
				}
			}
		})
	}
	if err := readKeys(strings.NewReader("qr"), func(k key) bool { return k != 'q' }); err != nil {
		t.Errorf("after the last key that is wanted: %v", err)
	}
}

type dribble struct{ rest string }

func (d *dribble) Read(p []byte) (int, error) {
	if d.rest == "" {
		return 0, io.EOF
	}
	p[0], d.rest = d.rest[0], d.rest[1:]
	return 1, nil
}

// TestConsole keeps the bottom line below everything else, and away from what is
// not a terminal.
func TestConsole(t *testing.T) {
	var b bytes.Buffer
	c := &console{out: &b, err: &b}
	c.set("unseen")
	c.print("plain\n")
	c.open(func() int { return 24 })
	c.set("bottom")
	c.print("one\ntwo\n")
	c.set("bottom")
	c.set("a bottom line that is too long")
	c.say("three\n")
	c.close()
	c.close()
	c.print("plain\n")
	want := "plain\n" +
		"\x1b[2mbottom\x1b[0m" +
		"\r\x1b[Kone\r\ntwo\r\n\x1b[2mbottom\x1b[0m" +
		"\r\x1b[K\x1b[2ma bottom line that is …\x1b[0m" +
		"\r\x1b[Kthree\r\n\x1b[2ma bottom line that is …\x1b[0m" +
		"\r\x1b[Kplain\n"
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestForwardURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://h/x":          "https://h/x",
		"localhost:3000/hook":  "http://localhost:3000/hook",
		":3000/hook":           "http://localhost:3000/hook",
		"3000":                 "http://localhost:3000",
		"3000/hook?code=12345": "http://localhost:3000/hook?code=12345",
		"wms.example.com":      "http://wms.example.com",
		"127.0.0.1:9/":         "http://127.0.0.1:9/",
		"ftp://h":              "ftp://h", // and is refused
	} {
		if got := forwardURL(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestListenUsage(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"--subject orders.>", "--subject: "},
		{"--from yesterday", `--from: "yesterday": want now, `},
		{"--concurrency 0", "--concurrency: want at least 1"},
		{"--count -1", "--count: want at least 0"},
		{"--timeout 5", "--timeout: "},
		{"--resend 5", "--resend needs --forward"},
		{"--forward ftp://h/?key=hunter2", "--forward.url: want http://"},
		{"--forward localhost --format xml", "--forward.format: want cloudevents"},
		{"more", "unknown command"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			var errs bytes.Buffer
			code := Main(t.Context(), append([]string{"listen", "--admin", "127.0.0.1:1"}, strings.Fields(tt.args)...),
				Env{Out: io.Discard, Err: &errs, Getenv: func(string) string { return "" }})
			if code != exitUsage || !strings.Contains(errs.String(), tt.want) || strings.Contains(errs.String(), "hunter2") {
				t.Errorf("exit code %d: %s", code, errs.String())
			}
		})
	}
}

func TestInShort(t *testing.T) {
	for _, tt := range []struct {
		a                     deliver.Attempt
		took                  time.Duration
		result, reason, color string
	}{
		{deliver.Attempt{Outcome: deliver.Delivered, Status: 200}, 23 * time.Millisecond, "200 (23ms)", "", green},
		{deliver.Attempt{Outcome: deliver.Delivered, Status: 204}, 300 * time.Microsecond, "204 (<1ms)", "", green},
		{deliver.Attempt{Outcome: deliver.Failed, Status: 503, Reason: "HTTP 503: no room"}, 1234 * time.Millisecond, "503 (1.2s)", "no room", yellow},
		{deliver.Attempt{Outcome: deliver.Failed, Status: 500, Reason: "HTTP 500"}, time.Second, "500 (1.0s)", "", yellow},
		{deliver.Attempt{Outcome: deliver.Rejected, Status: 400, Reason: "HTTP 400: what?"}, time.Millisecond, "400 (1ms)", "what?", red},
		{deliver.Attempt{Outcome: deliver.Failed, Reason: "connection refused"}, time.Millisecond, "--- (1ms)", "connection refused", yellow},
		{deliver.Attempt{Outcome: deliver.Aborted, Reason: "context canceled"}, time.Millisecond, "--- (1ms)", "given up before there was an answer", yellow},
	} {
		if result, reason, color := inShort(tt.a, tt.took); result != tt.result || reason != tt.reason || color != tt.color {
			t.Errorf("%+v: got %q %q %s", tt.a, result, reason, color)
		}
	}
}

// TestPanicMendsTheTerminal lets a panic go on, but not leave a terminal behind
// on which nobody sees what he types.
func TestPanicMendsTheTerminal(t *testing.T) {
	l := &listener{}
	mended := 0
	l.back = func() { mended++ }
	func() {
		defer func() {
			if r := recover(); r != "oh" {
				t.Errorf("recovered %v", r)
			}
		}()
		defer l.guard()
		panic("oh") // panic: what is tested
	}()
	l.leave()
	if mended != 1 {
		t.Errorf("the terminal was mended %d times", mended)
	}
}

// text is an output that a test reads while it is written.
type text struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (o *text) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *text) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// estate is a gridfan that can be stopped and started at the same addresses, and
// a program that events are forwarded to.
type estate struct {
	t      *testing.T
	config string
	app    *app.App

	url    string
	mu     sync.Mutex // guards all below
	got    []string   // ids
	answer func(id string) int
}

func newEstate(t *testing.T) *estate {
	t.Helper()
	addr := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	e := &estate{t: t, config: fmt.Sprintf(`
listen: { public: { addr: %q }, admin: { addr: %q } }
broker: { embedded: { dir: %q, listen: none } }
sources: { ce: { kind: cloudevents, push: { auth: none } } }
`, addr(), addr(), t.TempDir())}
	e.start()
	t.Cleanup(func() { e.stop() })
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		ev, err := event.ParseJSON(b)
		if err != nil {
			t.Error(err)
			return
		}
		e.mu.Lock()
		e.got = append(e.got, ev.ID)
		answer := e.answer
		e.mu.Unlock()
		if answer != nil {
			w.WriteHeader(answer(ev.ID))
		}
	}))
	t.Cleanup(s.Close)
	e.url = s.URL
	return e
}

func (e *estate) start() {
	e.t.Helper()
	cfg, err := config.Parse("gridfan.yaml", []byte(e.config), config.System())
	if err != nil {
		e.t.Fatal(err)
	}
	if e.app, err = app.New(context.Background(), cfg, app.Options{Log: slog.New(slog.DiscardHandler)}); err != nil {
		e.t.Fatal(err)
	}
}

func (e *estate) stop() {
	e.t.Helper()
	if e.app == nil {
		return
	}
	if err := e.app.Stop(); err != nil {
		e.t.Error(err)
	}
	e.app = nil
}

func (e *estate) post(ids ...string) {
	e.t.Helper()
	for _, id := range ids {
		resp, err := http.Post("http://"+e.app.PublicAddr()+"/ingress/ce", "application/cloudevents+json",
			strings.NewReader(fmt.Sprintf(`{"specversion":"1.0","id":%q,"source":"/shop","type":"placed","data":{"n":1}}`, id)))
		if err != nil {
			e.t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			e.t.Fatalf("HTTP %d", resp.StatusCode)
		}
	}
}

func (e *estate) ids() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.got)
}

// run is a gridfan listen that runs in this process.
type run struct {
	out, err text
	cancel   context.CancelFunc
	ended    chan int
}

func (e *estate) listen(terminal *Terminal, args ...string) *run {
	ctx, cancel := context.WithCancel(e.t.Context())
	r := &run{cancel: cancel, ended: make(chan int, 1)}
	args = append([]string{"listen", "--admin", e.app.AdminAddr()}, args...)
	go func() {
		r.ended <- Main(ctx, args, Env{
			Out: &r.out, Err: &r.err, Terminal: terminal, OutIsTerminal: terminal != nil, Getenv: func(string) string { return "" },
		})
	}()
	e.t.Cleanup(cancel)
	waitFor(e.t, "it listens", func() bool { return strings.Contains(r.err.String(), "listening at") })
	return r
}

func (r *run) end(t *testing.T) int {
	t.Helper()
	select {
	case code := <-r.ended:
		return code
	case <-time.After(patience):
		t.Fatalf("it does not end\n%s%s", r.out.String(), r.err.String())
		return -1
	}
}

// TestListenGoesOn forwards everything once and in order, while gridfan is
// stopped and started.
func TestListenGoesOn(t *testing.T) {
	e := newEstate(t)
	r := e.listen(nil, "--forward", e.url+"/?code=hunter2")
	var want []string
	for round := range 3 {
		for i := range 5 {
			want = append(want, fmt.Sprintf("%d-%d", round, i))
		}
		e.post(want[len(want)-5:]...)
		if round == 1 {
			// Some are still to come.
			e.stop()
			waitFor(t, "it notices", func() bool { return strings.Contains(r.err.String(), "the connection is lost: gridfan is stopping") })
			e.start()
		}
	}
	waitFor(t, "all are forwarded and answered", func() bool { return strings.Count(r.out.String(), "\n") >= len(want) })
	r.cancel()
	if code := r.end(t); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if d := cmp.Diff(want, e.ids()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	lines := strings.Split(strings.TrimSpace(r.out.String()), "\n")
	ok := regexp.MustCompile(`^\d\d:\d\d:\d\d +\d+  events\.cloudevents\.ce\.shop\.placed  \d-\d +200 \(.*s\)$`)
	for _, l := range lines {
		if !ok.MatchString(l) {
			t.Errorf("got %q", l)
		}
	}
	if len(lines) != len(want) {
		t.Errorf("%d lines", len(lines))
	}
	for _, s := range []string{"it is back after ", "\n15 events\n", "Go on where this ended:  gridfan listen --from 16\n"} {
		if !strings.Contains(r.err.String(), s) {
			t.Errorf("%q is missing in\n%s", s, r.err.String())
		}
	}
	if strings.Contains(r.out.String()+r.err.String(), "hunter2") {
		t.Error("the key shows")
	}
}

// TestListenCounts ends by itself, with the code that a script wants.
func TestListenCounts(t *testing.T) {
	e := newEstate(t)
	e.answer = func(id string) int {
		if id == "bad" {
			return http.StatusBadRequest
		}
		return http.StatusNoContent
	}
	e.post("a", "b", "bad")
	if code := e.listen(nil, "--from", "beginning", "--count", "2", "--forward", e.url, "--concurrency", "2").end(t); code != exitOK {
		t.Errorf("two that are taken: exit code %d", code)
	}
	r := e.listen(nil, "--from", "beginning", "--count", "3", "--forward", e.url, "--json")
	if code := r.end(t); code != exitFailure || !strings.Contains(r.err.String(), "1 of 3 events failed") {
		t.Errorf("one that is not: exit code %d, %s", code, r.err.String())
	}
	var got []line
	for d := json.NewDecoder(strings.NewReader(r.out.String())); ; {
		var l line
		if err := d.Decode(&l); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		got = append(got, l)
	}
	if len(got) != 3 || got[0].ID != "a" || got[0].Attempt.Status != 204 || got[2].Attempt.Outcome != deliver.Rejected || got[0].Event != nil {
		t.Errorf("got %+v", got)
	}

	for sequence, want := range map[string]int{"1": exitOK, "3": exitFailure, "9": exitFailure} {
		var errs bytes.Buffer
		code := Main(t.Context(), []string{"listen", "--admin", e.app.AdminAddr(), "--resend", sequence, "--forward", e.url},
			Env{Out: io.Discard, Err: &errs, Getenv: func(string) string { return "" }})
		if code != want {
			t.Errorf("resend %s: exit code %d, %s", sequence, code, errs.String())
		}
	}
}

// keyboard is a terminal whose keys a test presses.
type keyboard struct {
	press    *io.PipeWriter
	restored chan struct{}
}

func newKeyboard() (*keyboard, *Terminal) {
	in, press := io.Pipe()
	k := &keyboard{press: press, restored: make(chan struct{})}
	return k, &Terminal{
		Keys:  in,
		Raw:   func() (func(), error) { return func() { close(k.restored) }, nil },
		Width: func() int { return 200 },
	}
}

func (k *keyboard) hit(t *testing.T, keys string) {
	t.Helper()
	if _, err := io.WriteString(k.press, keys); err != nil {
		t.Fatal(err)
	}
}

// TestListenKeys presses every key.
func TestListenKeys(t *testing.T) {
	e := newEstate(t)
	k, terminal := newKeyboard()
	r := e.listen(terminal, "--forward", e.url)
	shows := func(what string) {
		t.Helper()
		waitFor(t, fmt.Sprintf("%q shows", what), func() bool { return strings.Contains(r.out.String(), what) })
	}
	shows("waiting for events")
	e.post("a", "b", "c")
	shows("[1] 3 ")
	sent := func(want ...string) {
		t.Helper()
		waitFor(t, strings.Join(want, " "), func() bool { return slices.Equal(want, e.ids()) })
	}
	sent("a", "b", "c")
	k.hit(t, "r")
	sent("a", "b", "c", "c")
	k.hit(t, "\x1b[A\x1b[A\x1b[A") // no further than the oldest
	shows("[3] 1 ")
	k.hit(t, "r")
	sent("a", "b", "c", "c", "a")
	k.hit(t, "\x1b[B")
	shows("[2] 2 ")
	k.hit(t, "p")
	shows(`"id": "b"`)
	k.hit(t, "?\r")
	shows("r send again")
	shows("> [2] 2 ")

	// Those that come move the selected one, which stays selected.
	k.hit(t, " ")
	shows("PAUSED")
	e.post("d")
	k.hit(t, "3r")
	sent("a", "b", "c", "c", "a", "a")
	k.hit(t, " ")
	sent("a", "b", "c", "c", "a", "a", "d")
	shows("[4] 1 ")
	k.hit(t, "r1r")
	sent("a", "b", "c", "c", "a", "a", "d", "a", "d")
	if strings.Contains(strings.ReplaceAll(r.out.String(), "\r\n", ""), "\n") {
		t.Error("a line without a carriage return")
	}

	k.hit(t, "\x03")
	if code := r.end(t); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	<-k.restored
	if !strings.Contains(r.err.String(), "4 events, 5 sent again\n") {
		t.Errorf("got %s", r.err.String())
	}
}

// TestListenMendsTheTerminal on every way out.
func TestListenMendsTheTerminal(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(*estate, *keyboard, *run)
		code int
	}{
		{"q", func(_ *estate, k *keyboard, _ *run) { k.hit(t, "q") }, exitFailure}, // before --count is reached
		{"a signal", func(_ *estate, _ *keyboard, r *run) { r.cancel() }, exitFailure},
		{"enough", func(e *estate, _ *keyboard, _ *run) { e.post("a", "b") }, exitOK},
		{"an error", func(e *estate, _ *keyboard, _ *run) {
			// It comes back with a token that nobody here knows.
			e.stop()
			e.config = strings.Replace(e.config, "admin: { addr", "admin: { token: 0123456789abcdef0123456789abcdef, addr", 1)
			e.start()
		}, exitFailure},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEstate(t)
			k, terminal := newKeyboard()
			r := e.listen(terminal, "--count", "2")
			waitFor(t, "there is a bottom line", func() bool { return strings.Contains(r.out.String(), "waiting for events") })
			tt.end(e, k, r)
			if code := r.end(t); code != tt.code {
				t.Errorf("exit code %d: %s", code, r.err.String())
			}
			select {
			case <-k.restored:
			default:
				t.Error("it has ended with the terminal as it was")
			}
			if !strings.HasSuffix(r.out.String(), "\r\x1b[K") {
				t.Errorf("the bottom line stays: %q", r.out.String())
			}
		})
	}
}
