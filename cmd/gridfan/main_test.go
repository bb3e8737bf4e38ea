package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/gridfan/gridfan/infra/amqptest"
	"github.com/gridfan/gridfan/infra/blobtest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"gridfan": func() { os.Exit(run()) }})
}

// The command line as a user types it: testdata/script.
func TestScripts(t *testing.T) {
	dead := blobtest.Start(t, "deadletters")
	bus := amqptest.Start(t, amqptest.Options{})
	queue := bus.Queue("orders", amqptest.QueueOptions{})
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			for _, name := range []string{"PUBLIC", "ADMIN", "NATS", "RECEIVER", "CHANGES"} {
				addr, err := freeAddr()
				if err != nil {
					return err
				}
				e.Setenv(name, addr)
			}
			e.Setenv("GRIDFAN_ADMIN", "http://"+e.Getenv("ADMIN"))
			e.Setenv("GRIDFAN_INGRESS", "http://"+e.Getenv("PUBLIC"))
			e.Setenv("BLOBS", dead.ConnectionString())
			e.Setenv("BUS", "Endpoint=sb://"+bus.Addr+";SharedAccessKeyName=n;SharedAccessKey=a2V5LWtleS1rZXk=;UseDevelopmentEmulator=true")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"up":       cmdUp,
			"expect":   cmdExpect,
			"receive":  cmdReceive,
			"received": cmdReceived,
			"changes":  cmdChanges,
			"purge":    cmdPurge,
			"post":     cmdPost,
			"json":     cmdJSON,
			"dead": func(ts *testscript.TestScript, not bool, args []string) {
				cmdDead(ts, not, args, dead, queue)
			},
		},
		RequireExplicitExec: true,
	})
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// cmdUp waits until a URL answers 200.
func cmdUp(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(poll(func() error { return answers(args[0]) }))
}

func answers(url string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %d", url, resp.StatusCode)
	}
	return nil
}

// cmdJSON looks whether every line of stdout, stderr or a file is a log record in
// JSON, and whether there is one.
func cmdJSON(ts *testscript.TestScript, _ bool, args []string) {
	lines := strings.SplitSeq(strings.TrimSuffix(ts.ReadFile(args[0]), "\n"), "\n")
	for line := range lines {
		var r struct {
			Time       time.Time
			Level, Msg string
		}
		ts.Logf("%s", line)
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			ts.Fatalf("%q: %v", line, err)
		}
		if r.Time.IsZero() || r.Level == "" || r.Msg == "" {
			ts.Fatalf("no time, level or msg in %s", line)
		}
	}
}

// cmdExpect runs a command of gridfan until it prints what a pattern matches.
func cmdExpect(ts *testscript.TestScript, _ bool, args []string) {
	pattern, err := regexp.Compile(args[0])
	ts.Check(err)
	ts.Check(poll(func() error {
		if err := ts.Exec(args[1], args[2:]...); err != nil {
			return err
		}
		if !pattern.MatchString(ts.ReadFile("stdout")) {
			return fmt.Errorf("no match for %q", pattern)
		}
		return nil
	}))
}

// cmdChanges starts an endpoint on $CHANGES that answers with the file changes.json.
func cmdChanges(ts *testscript.TestScript, _ bool, _ []string) {
	l, err := net.Listen("tcp", ts.Getenv("CHANGES"))
	ts.Check(err)
	file := ts.MkAbs("changes.json")
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		text, err := os.ReadFile(file)
		if err != nil {
			http.Error(w, "gone fishing", http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(text) // the client is gone if this fails
	})}
	go s.Serve(l) // it ends with Close
	ts.Defer(func() { s.Close() })
}

// cmdReceive starts an endpoint on $RECEIVER that takes every event, and refuses
// it while there is a file called refuse.
func cmdReceive(ts *testscript.TestScript, _ bool, _ []string) {
	l, err := net.Listen("tcp", ts.Getenv("RECEIVER"))
	ts.Check(err)
	refuse := ts.MkAbs("refuse")
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		posted.Store(r.Host+r.URL.Path, true)
		if _, err := os.Stat(refuse); err == nil {
			http.Error(w, "unknown order", http.StatusUnprocessableEntity)
		}
	})}
	go s.Serve(l) // it ends with Close
	ts.Defer(func() { s.Close() })
}

// posted has the addresses and paths at which endpoints got something.
var posted sync.Map

// cmdReceived runs a command until something has come to a path of $RECEIVER.
func cmdReceived(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(poll(func() error {
		if _, ok := posted.Load(ts.Getenv("RECEIVER") + args[0]); ok {
			return nil
		}
		if err := ts.Exec(args[1], args[2:]...); err != nil {
			return err
		}
		return fmt.Errorf("nothing has come to %s", args[0])
	}))
}

// cmdDead puts a file where senders put what they gave up: "dead blob NAME FILE" into
// the container of $BLOBS, "dead queue FILE" into the dead letters of queue orders of
// $BUS. "! dead blob" and "! dead queue" want that there are none.
func cmdDead(ts *testscript.TestScript, not bool, args []string, container *blobtest.Server, queue *amqptest.Queue) {
	switch {
	case not && args[0] == "blob":
		if left := container.Names(); len(left) > 0 {
			ts.Fatalf("left: %q", left)
		}
	case not:
		if n := queue.DeadLetters.Len(); n > 0 {
			ts.Fatalf("%d are left", n)
		}
	case args[0] == "blob":
		container.Put(args[1], ts.ReadFile(args[2]))
	default:
		queue.DeadLetters.Put(&amqp.Message{
			Data: [][]byte{[]byte(ts.ReadFile(args[1]))}, ApplicationProperties: map[string]any{"DeadLetterReason": "MaxDeliveryCountExceeded"},
		})
	}
}

// cmdPurge does what "nats stream purge STREAM --subject SUBJECT" does.
func cmdPurge(ts *testscript.TestScript, _ bool, args []string) {
	nc, err := nats.Connect("nats://" + ts.Getenv("NATS"))
	ts.Check(err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	ts.Check(err)
	s, err := js.Stream(context.Background(), args[0])
	ts.Check(err)
	ts.Check(s.Purge(context.Background(), jetstream.WithPurgeSubject(args[1])))
}

// cmdPost posts a JSON file, and wants 200.
func cmdPost(ts *testscript.TestScript, _ bool, args []string) {
	resp, err := http.Post(args[0], "application/json", strings.NewReader(ts.ReadFile(args[1])))
	ts.Check(err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		ts.Fatalf("%s answers %d", args[0], resp.StatusCode)
	}
}

// poll repeats f until it succeeds, for at most half a minute.
func poll(f func() error) error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond) // sleep: polling with a deadline
	}
}
