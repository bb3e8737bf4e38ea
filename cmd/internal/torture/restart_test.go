//go:build torture && linux

package torture_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestTerminate stops gridfan under load, as a platform does.
func TestTerminate(t *testing.T) {
	d := newDisk(t, 1<<30)
	w := newWorld(t, d.dir, everybody...)
	w.load.start(usual)
	for range 3 {
		w.start()
		w.load.more(500)
		began := time.Now()
		// The grace is 20 seconds, container platforms kill after 30.
		if code := w.g.stop(28 * time.Second); code != 0 {
			t.Errorf("exit code %d", code)
		}
		w.load.to.Store(nil)
		t.Logf("stopped in %v", time.Since(began).Round(time.Millisecond))
	}
	w.start()
	w.load.more(1)
	w.settle()
}

// TestBacklog kills gridfan with a full backlog, and wants it to be up soon and
// all of the backlog delivered.
func TestBacklog(t *testing.T) {
	d := newDisk(t, 2<<30)
	w := newWorld(t, d.dir, "late")
	w.start()
	w.load.start(pace{batch: time.Millisecond, size: 200})
	waitFor(t, "there is a backlog", func() bool { return w.load.count() >= *backlog })
	w.load.stop()
	w.kill()
	w.start()
	if limit := 5 * time.Second; w.g.up > limit {
		t.Errorf("up after %v, want %v at most", w.g.up, limit)
	}
	began := time.Now()
	w.in.open.Store(true)
	waitFor(t, "the backlog is delivered", func() bool { return w.in.took("late") >= w.load.count() })
	took := time.Since(began)
	w.settle()
	t.Logf("up in %v with %d events to deliver, which took %v (%.0f/s)", w.g.up.Round(time.Millisecond), w.load.count(), took.Round(time.Millisecond), float64(w.load.count())/took.Seconds())
}

// TestExternalBroker kills the broker that gridfan is connected to, under load.
func TestExternalBroker(t *testing.T) {
	d := newDisk(t, 4<<30) // the server keeps a quarter free
	port, monitor := freePort(t), freePort(t)
	file := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(file, fmt.Appendf(nil, `
listen: "127.0.0.1:%d"
http: "127.0.0.1:%d"
max_payload: 8MB
jetstream { store_dir: %q, sync_interval: always }
`, port, monitor, filepath.Join(d.dir, "nats")), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func() *process {
		p := spawn(t, func(string) {}, *natsBinary, "-c", file)
		waitFor(t, "nats-server is up", func() bool {
			resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", monitor))
			if err != nil {
				return false
			}
			resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		})
		return p
	}
	p := run()
	w := newWorld(t, d.dir, everybody...)
	w.broker = fmt.Sprintf("{ url: \"nats://127.0.0.1:%d\", durability: sync-always, monitoring: [ \"http://127.0.0.1:%d\" ] }", port, monitor)
	w.start()
	w.load.start(usual)
	var gaps []time.Duration
	for range 5 {
		w.load.more(200)
		anyMoment(0, time.Second)
		p.kill()
		anyMoment(500*time.Millisecond, 2*time.Second)
		w.still()
		p = run()
		gaps = append(gaps, w.load.more(200))
	}
	w.still()
	w.settle()
	t.Logf("accepted again within %v of the broker's restart at most", slices.Max(gaps).Round(time.Millisecond))
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// TestSpoiled takes something off the end of EVENTS while gridfan does not run.
// A start then either has all that was accepted, or fails and says where and
// what to do.
func TestSpoiled(t *testing.T) {
	spoils := []struct {
		name  string
		spoil func(f *os.File, size int64) error
	}{
		{"one byte", func(f *os.File, size int64) error { return f.Truncate(size - 1) }},
		{"half a message", func(f *os.File, size int64) error { return f.Truncate(size - 300) }},
		{"many messages", func(f *os.File, size int64) error { return f.Truncate(size / 2) }},
		{"all of it", func(f *os.File, _ int64) error { return f.Truncate(0) }},
		{"zeros", func(f *os.File, size int64) error {
			_, err := f.WriteAt(make([]byte, 4096), size-4096)
			return err
		}},
		{"the file", func(f *os.File, _ int64) error { return os.Remove(f.Name()) }},
	}
	for _, end := range []struct {
		name        string
		subscribers []string
		end         func(*world)
	}{
		{"stopped", []string{"fast"}, func(w *world) {
			w.g.drained()
			if code := w.g.stop(patience); code != 0 {
				w.t.Errorf("exit code %d", code)
			}
		}},
		{"killed", []string{"fast"}, func(w *world) {
			w.g.drained()
			w.g.kill()
		}},
		// Nothing was written after the last event.
		{"killed at once", nil, func(w *world) { w.g.kill() }},
	} {
		t.Run(end.name, func(t *testing.T) {
			d := newDisk(t, 1<<30)
			w := newWorld(t, d.dir, end.subscribers...)
			w.start()
			w.load.start(usual)
			w.load.more(1000)
			w.load.stop()
			end.end(w)
			good := filepath.Join(d.dir, "good")
			store := filepath.Join(d.dir, "data")
			if err := os.Rename(store, good); err != nil {
				t.Fatal(err)
			}
			for _, s := range spoils {
				t.Run(s.name, func(t *testing.T) {
					if err := command("cp", "-a", good, store); err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() {
						if err := os.RemoveAll(store); err != nil {
							t.Error(err)
						}
					})
					spoilEvents(t, store, s.spoil)
					w.t = t
					w.startsWholeOrNot(store)
				})
			}
			w.t = t
		})
	}
}

// spoilEvents works on the last block of EVENTS.
func spoilEvents(t *testing.T, store string, spoil func(*os.File, int64) error) {
	t.Helper()
	blocks, err := filepath.Glob(filepath.Join(store, "jetstream/*/streams/EVENTS/msgs/*.blk"))
	if err != nil || len(blocks) == 0 {
		t.Fatalf("no blocks of EVENTS: %v", err)
	}
	slices.SortFunc(blocks, func(a, b string) int { return len(a)*1000 - len(b)*1000 + strings.Compare(a, b) })
	f, err := os.OpenFile(blocks[len(blocks)-1], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := spoil(f, info.Size()); err != nil {
		t.Fatal(err)
	}
}

// startsWholeOrNot starts gridfan on a spoilt store.
func (w *world) startsWholeOrNot(store string) {
	w.t.Helper()
	g := w.launch()
	defer g.kill()
	if g.up == 0 {
		text := g.tail(5)
		if code := g.cmd.ProcessState.ExitCode(); code <= 0 || !strings.Contains(text, store) || !strings.Contains(text, "backup") {
			w.t.Errorf("exit code %d, want above 0, the folder and a remedy in\n%s", code, text)
		}
		_, reason, _ := strings.Cut(text, "gridfan: ")
		w.t.Logf("refused: %s", reason)
		return
	}
	w.g = g
	b := w.readEvents()
	w.checkAccepted(b)
	w.t.Logf("up with %d events of %d accepted", len(b.events), w.load.count())
}
