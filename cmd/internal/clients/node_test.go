//go:build clients

package clients_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// program is one of testdata that runs.
type program struct {
	t      *testing.T
	input  io.Writer
	stderr *bytes.Buffer
	events chan json.RawMessage // what it tells without a call

	mu    sync.Mutex // guards all below, and writing to input
	calls int
	waits map[int]chan reply
	ended error // why there are no more replies
}

// reply is what a call came to.
type reply struct {
	ID    int             `json:"id"`
	Value json.RawMessage `json:"value"`
	Error *fault          `json:"error"`
	Event json.RawMessage `json:"event"`
}

// fault is an error of JavaScript, as a program sees it.
type fault struct {
	Name, Message string
	Code          any
	StatusCode    int
}

func (f *fault) Error() string {
	return fmt.Sprintf("%s: %s (code %v, HTTP %d)", f.Name, f.Message, f.Code, f.StatusCode)
}

// node runs a program until the test has ended, with env in its environment.
func node(t *testing.T, name string, env ...string) *program {
	t.Helper()
	cmd := exec.Command("node", filepath.Join(programs, name))
	// Azure's clients would ask a proxy for this machine, too.
	cmd.Env = append(append(os.Environ(), "NO_PROXY=*", "no_proxy=*"), env...)
	p := &program{t: t, stderr: new(bytes.Buffer), events: make(chan json.RawMessage, 1000), waits: map[int]chan reply{}}
	cmd.Stderr = p.stderr
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.input = input
	read := make(chan struct{})
	go func() {
		defer close(read)
		p.read(output)
	}()
	t.Cleanup(func() {
		input.Close() // it exits then
		timer := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		<-read
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, p.stderr)
		} else if p.stderr.Len() > 0 {
			t.Logf("%s: %s", name, p.stderr)
		}
	})
	return p
}

func (p *program) read(output io.Reader) {
	err := io.EOF
	for lines := bufio.NewReader(output); ; {
		line, e := lines.ReadBytes('\n')
		if e != nil {
			break
		}
		var r reply
		if e := json.Unmarshal(line, &r); e != nil {
			err = fmt.Errorf("%q: %w", line, e)
			break
		}
		if r.Event != nil {
			p.events <- r.Event
			continue
		}
		p.mu.Lock()
		p.waits[r.ID] <- r
		delete(p.waits, r.ID)
		p.mu.Unlock()
	}
	_, _ = io.Copy(io.Discard, output)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = err
	for _, wait := range p.waits {
		close(wait)
	}
	p.waits = nil
}

// begin calls and does not wait: end gives what it came to.
func (p *program) begin(call string, args ...any) (end func(into any) error) {
	p.t.Helper()
	if args == nil {
		args = []any{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	b, err := json.Marshal(map[string]any{"id": p.calls, "call": call, "args": args})
	if err != nil {
		p.t.Fatal(err)
	}
	if p.ended != nil {
		p.t.Fatalf("%s: the program has ended: %v", call, p.ended)
	}
	wait := make(chan reply, 1)
	p.waits[p.calls] = wait
	if _, err := p.input.Write(append(b, '\n')); err != nil {
		p.t.Fatalf("%s: %v", call, err)
	}
	return func(into any) error {
		p.t.Helper()
		select {
		case r, ok := <-wait:
			if !ok {
				p.t.Fatalf("%s: the program has ended: %v", call, p.ended)
			}
			if r.Error != nil {
				return r.Error
			}
			if into != nil {
				if err := decode(r.Value, into); err != nil {
					p.t.Fatalf("%s gives %s: %v", call, r.Value, err)
				}
			}
			return nil
		case <-time.After(patience):
			p.t.Fatalf("%s: no answer within %v", call, patience)
			return nil
		}
	}
}

// try calls and gives the error that the library throws.
func (p *program) try(into any, call string, args ...any) error {
	p.t.Helper()
	return p.begin(call, args...)(into)
}

// do calls what must work.
func (p *program) do(into any, call string, args ...any) {
	p.t.Helper()
	if err := p.try(into, call, args...); err != nil {
		p.t.Fatalf("%s: %v", call, err)
	}
}

// next waits for what the program tells.
func (p *program) next(into any) {
	p.t.Helper()
	select {
	case b := <-p.events:
		if err := decode(b, into); err != nil {
			p.t.Fatalf("%s: %v", b, err)
		}
	case <-time.After(patience):
		p.t.Fatalf("the program has told nothing for %v", patience)
	}
}

// decode keeps numbers as they are written.
func decode(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return d.Decode(into)
}
