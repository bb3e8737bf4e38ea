package app_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gridfan/gridfan/cmd/internal/app"
	"github.com/gridfan/gridfan/cmd/internal/config"
)

// What a copy of the test's binary is to be.
const (
	childVariable  = "GRIDFAN_TEST_CHILD"
	childGridfan   = "gridfan"
	childReceivers = "receivers"
	childPoster    = "poster"
)

// child is another process of this binary. It ends when it is killed, or when
// this process has gone, because it reads its standard input to the end.
type child struct {
	cmd    *exec.Cmd
	input  io.Closer
	stderr bytes.Buffer // read it after the end

	addresses addresses
}

// addresses is what a child prints when it is ready.
type addresses struct{ Public, Admin, NATS, Receivers string }

// startChild runs a copy and waits until it is ready.
func startChild(t testing.TB, what string, args ...string) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: exec.Command(self, args...)}
	c.cmd.Env = append(os.Environ(), childVariable+"="+what)
	c.cmd.Stderr = &c.stderr
	if c.input, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	output, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	line, err := bufio.NewReader(output).ReadBytes('\n')
	if err != nil {
		c.kill()
		t.Fatalf("%s did not start: %v\n%s", what, err, c.stderr.Bytes())
	}
	if err := json.Unmarshal(line, &c.addresses); err != nil {
		t.Fatalf("%s printed %q", what, line)
	}
	return c
}

// kill ends the child as kill -9 does. It can be called again.
func (c *child) kill() {
	if c.cmd.ProcessState != nil {
		return
	}
	_ = c.cmd.Process.Kill() // it may have gone by itself
	_ = c.cmd.Wait()         // it was killed, so this says so
	c.input.Close()
}

// end stops the child as an operator does, and waits for it.
func (c *child) end() {
	c.input.Close()
	_ = c.cmd.Wait() // a child that stops badly says so on its standard error
}

func ready(a addresses) {
	b, _ := json.Marshal(a) // strings: it cannot fail
	fmt.Printf("%s\n", b)
}

// gridfanChild is a gridfan with the configuration file of its first argument, and
// the role of its second one, if there is one.
func gridfanChild() int {
	role := app.All
	if len(os.Args) > 2 {
		role = app.Role(os.Args[2])
	}
	cfg, err := config.Load(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	a, err := app.New(context.Background(), cfg, app.Options{Version: "test", Role: role, Log: log})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ready(addresses{Public: a.PublicAddr(), Admin: a.AdminAddr(), NATS: a.BrokerURL()})
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test has ended
	if err := a.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// answers waits until a gridfan's public listener answers, and tells since when.
func answers(t testing.TB, addr string) time.Time {
	t.Helper()
	waitFor(t, "the listener answers", func() bool {
		resp, err := http.Get("http://" + addr + "/livez")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return time.Now()
}

// receiversChild serves subscribers in a process of their own. POST /ok takes an
// event whose id begins with the time it was sent, POST /take takes one and does
// not count it, POST /refuse refuses it unless it is of type Wanted, which counts as
// for /ok, POST /array takes an array of them, POST /hang never answers,
// and GET /await answers with figures when n events have come since it last did.
func receiversChild() int {
	var mu sync.Mutex // guards took
	var took []time.Duration
	more := sync.NewCond(&mu)
	mux := http.NewServeMux()
	take := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		sent, _, _ := strings.Cut(r.Header.Get("ce-id"), "-")
		ns, _ := strconv.ParseInt(sent, 10, 64)
		mu.Lock()
		took = append(took, time.Since(time.Unix(0, ns)))
		mu.Unlock()
		more.Broadcast()
		w.WriteHeader(http.StatusNoContent)
	}
	mux.HandleFunc("POST /ok/{name}", take)
	// Receivers of arrays take them apart, as far as needed to count.
	mux.HandleFunc("POST /array/{name}", func(w http.ResponseWriter, r *http.Request) {
		var events []json.RawMessage
		if err := json.NewDecoder(r.Body).Decode(&events); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		mu.Lock()
		took = append(took, make([]time.Duration, len(events))...)
		mu.Unlock()
		more.Broadcast()
		w.WriteHeader(http.StatusNoContent)
	})
	trouble := newTroubles(func() {
		mu.Lock()
		took = append(took, 0)
		mu.Unlock()
		more.Broadcast()
	})
	mux.HandleFunc("POST /trouble/{kind}/{name}", trouble.serve)
	mux.HandleFunc("POST /troubles", trouble.change)
	mux.HandleFunc("POST /take", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /refuse", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("ce-type") == "Wanted" {
			take(w, r)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusUnprocessableEntity)
	})
	mux.HandleFunc("POST /hang", func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		wait(r, patience)
	})
	mux.HandleFunc("GET /await", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.URL.Query().Get("n"))
		mu.Lock()
		defer mu.Unlock()
		for len(took) < n {
			more.Wait()
		}
		if len(took) == 0 {
			_, _ = io.WriteString(w, "{}")
			return
		}
		slices.Sort(took)
		at := func(q float64) time.Duration { return took[int(q*float64(len(took)-1))] }
		b, _ := json.Marshal(figures{N: len(took), Least: took[0], P50: at(.5), P99: at(.99), Most: at(1)})
		took = nil
		_, _ = w.Write(b)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() { _ = http.Serve(l, mux) }() // until the process ends
	ready(addresses{Receivers: l.Addr().String()})
	_, _ = io.Copy(io.Discard, os.Stdin) // until the benchmark has ended
	return 0
}

// figures are about deliveries: how many, and how long after they were sent.
type figures struct {
	N                     int
	Least, P50, P99, Most time.Duration
}

// posterChild posts over many connections for a while, as its arguments say, and
// prints how it went. It is a process of its own, so that its CPU time is not
// counted as gridfan's.
func posterChild() int {
	var p posting
	if err := json.Unmarshal([]byte(os.Args[1]), &p); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	client := &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: p.Connections}}
	var mu sync.Mutex // guards took and failed
	var took []time.Duration
	failed := ""
	var wg sync.WaitGroup
	end := time.Now().Add(p.For)
	for range p.Connections {
		wg.Go(func() {
			var mine []time.Duration
			fill := template(p.PerPost)
			for time.Now().Before(end) && (p.Posts == 0 || len(mine) < p.Posts) {
				body := fill()
				began := time.Now()
				resp, err := client.Post(p.URL, "application/json", bytes.NewReader(body))
				if err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					if resp.StatusCode != http.StatusOK {
						err = fmt.Errorf("HTTP %d", resp.StatusCode)
					}
				}
				if err != nil {
					mu.Lock()
					failed = err.Error()
					mu.Unlock()
					return
				}
				mine = append(mine, time.Since(began))
			}
			mu.Lock()
			took = append(took, mine...)
			mu.Unlock()
		})
	}
	began := time.Now()
	wg.Wait()
	slices.Sort(took)
	at := func(q float64) time.Duration { return took[int(q*float64(max(1, len(took))-1))] }
	r := posted{Failed: failed}
	if len(took) > 0 {
		r = posted{N: len(took) * p.PerPost, Took: time.Since(began), P50: at(.5), P99: at(.99), Failed: failed}
	}
	b, _ := json.Marshal(r) // numbers: it cannot fail
	fmt.Printf("%s\n", b)
	return 0
}

// template is batch for a sender that is to cost little: the ids are written into
// one body over and over.
func template(n int) (fill func() []byte) {
	body := batch(n)
	var at []int // where each id begins
	const before = `{"id":"`
	for i := 0; ; {
		j := bytes.Index(body[i:], []byte(before))
		if j < 0 {
			break
		}
		i += j + len(before)
		at = append(at, i)
	}
	own := fmt.Sprintf("%010x", rand.Uint64()>>24) // stamped ids are longer than it and the number
	next := 0
	return func() []byte {
		for _, i := range at {
			next++
			copy(body[i:], own)
			copy(body[i+len(own):], strconv.Itoa(1e8+next))
		}
		return body
	}
}

// posting is what a poster does.
type posting struct {
	URL         string
	Connections int
	PerPost     int
	For         time.Duration
	Posts       int // at most so many over each connection; 0: as many as there is time for
}

// posted is how it went.
type posted struct {
	N        int // events
	Took     time.Duration
	P50, P99 time.Duration // of a request
	Failed   string
}

// post runs a poster to its end.
func (p posting) post(t testing.TB) posted {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, string(args))
	cmd.Env = append(os.Environ(), childVariable+"="+childPoster)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var r posted
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("the poster printed %q", out)
	}
	if r.Failed != "" {
		t.Fatalf("the poster: %s", r.Failed)
	}
	return r
}
