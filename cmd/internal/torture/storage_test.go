//go:build torture && linux

package torture_test

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// again is how long gridfan may take to accept events after its disk works
// again. It looks every five seconds at most.
const again = 15 * time.Second

// TestDeadDisk takes the disk away and leaves the program alone with it: from
// then on nobody may be answered 200, although everything is still in memory.
func TestDeadDisk(t *testing.T) {
	if !honest {
		t.Fatal("this kernel reports success for a sync of a file system that was shut down, so the test means nothing here; it needs a newer one")
	}
	d := newDisk(t, 1<<30)
	w := newWorld(t, d.dir, everybody...)
	w.start()
	w.load.start(usual)
	w.load.more(500)
	d.die()
	w.load.dead.Store(time.Now().UnixNano())
	text := w.g.unwell()
	was, _ := w.load.refused("")
	waitFor(t, "senders are told 503", func() bool { n, _ := w.load.refused(""); return n > was+20 })
	w.still()
	t.Logf("healthz: %s", text)
	if !strings.Contains(text, "input/output error") {
		t.Errorf("/healthz does not say why: %s", text)
	}
	w.kill()
	d.remount()
	w.load.dead.Store(0)
	w.start()
	w.load.more(500)
	w.settle()
}

// TestDiskFills fills the disk by events until gridfan refuses more, before the
// disk does, and makes room again.
func TestDiskFills(t *testing.T) {
	d := newDisk(t, 192<<20)
	w := newWorld(t, d.dir, "fast", "flaky", "picky")
	w.trims = true
	w.start()
	// The reserve is 16 MiB.
	ballast := d.fill(24 << 20)
	big := usual
	big.size = 5000
	w.load.start(big)
	waitFor(t, "senders are told that the storage is full", func() bool { n, _ := w.load.refused("storage-full"); return n > 20 })
	w.still()
	if _, detail := w.load.refused("storage-full"); !strings.Contains(detail, "disk") {
		t.Errorf("the senders are not told that it is the disk: %q", detail)
	}
	if w.g.logged("no space left") {
		t.Error("it has come to a full disk before the senders were stopped")
	}
	t.Logf("%d events accepted until %d MiB were left", w.load.count(), d.free()>>20)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	w.recovers()
	w.settle()
}

// recovers wants events to be accepted again soon by the same process.
func (w *world) recovers() {
	w.t.Helper()
	took := w.load.more(100)
	w.still()
	if took > again {
		w.t.Errorf("events were accepted again after %v, want %v at most", took, again)
	}
	waitFor(w.t, "/healthz is well", func() bool { status, _ := w.g.health(); return status == http.StatusOK })
	w.t.Logf("accepted again after %v", took.Round(time.Millisecond))
}

// TestDiskFull takes the last byte at once, so that writes fail in the middle.
func TestDiskFull(t *testing.T) {
	d := newDisk(t, 192<<20)
	w := newWorld(t, d.dir, "fast", "flaky", "picky")
	w.trims = true
	w.start()
	w.load.start(usual)
	w.load.more(500)
	ballast := d.fill(0)
	was, _ := w.load.refused("")
	waitFor(t, "senders are told 503", func() bool { n, _ := w.load.refused(""); return n > was+50 })
	text := ""
	if eventually(3*time.Second, func() bool {
		var status int
		status, text = w.g.health()
		return status != http.StatusOK
	}) {
		t.Logf("healthz: %s", text)
	}
	w.still()
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	w.recovers()
	w.settle()
}

// TestDiskReadOnly lets ext4 find an error in itself, after which it takes no
// writes until it is mounted anew.
func TestDiskReadOnly(t *testing.T) {
	d := newDisk(t, 1<<30)
	w := newWorld(t, d.dir, everybody...)
	w.start()
	w.load.start(usual)
	w.load.more(500)
	d.fail()
	w.load.dead.Store(time.Now().UnixNano())
	text := w.g.unwell()
	was, _ := w.load.refused("")
	waitFor(t, "senders are told 503", func() bool { n, _ := w.load.refused(""); return n > was+20 })
	w.still()
	t.Logf("healthz: %s", text)
	// A sync that was under way fails otherwise than the writes after it.
	if !strings.Contains(text, "read-only file system") && !strings.Contains(text, "input/output error") {
		t.Errorf("/healthz does not say why: %s", text)
	}
	w.kill()
	d.remount()
	w.load.dead.Store(0)
	w.start()
	w.load.more(500)
	w.settle()
}

// TestDiskReadOnlyForAWhile makes every file of the store immutable, open ones
// too, and lets go of them again. It is the one way to a store that cannot be
// written for a while: the kernel makes no file system read-only that has files
// open for writing.
func TestDiskReadOnlyForAWhile(t *testing.T) {
	d := newDisk(t, 1<<30)
	w := newWorld(t, d.dir, everybody...)
	w.start()
	w.load.start(usual)
	w.load.more(500)
	store := d.dir + "/data"
	chattr := func(flag string) {
		// Files that go away meanwhile make it complain.
		if err := command("chattr", "-R", "-f", flag, store); err != nil {
			t.Log(err)
		}
	}
	t.Cleanup(func() { chattr("-i") })
	chattr("+i")
	text := w.g.unwell()
	was, _ := w.load.refused("")
	waitFor(t, "senders are told 503", func() bool { n, _ := w.load.refused(""); return n > was+20 })
	w.still()
	t.Logf("healthz: %s", text)
	chattr("-i")
	w.recovers()
	w.settle()
}

// TestStartOnReadOnly wants a start on a disk that cannot be written to say so.
func TestStartOnReadOnly(t *testing.T) {
	d := newDisk(t, 256<<20)
	w := newWorld(t, d.dir, "fast")
	w.start()
	if code := w.g.stop(patience); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	if err := command("mount", "-o", "remount,ro", d.dir); err != nil {
		t.Fatal(err)
	}
	g := w.launch()
	if g.up != 0 {
		t.Fatal("gridfan is up on a disk that it cannot write")
	}
	text := g.tail(5)
	if code := g.cmd.ProcessState.ExitCode(); code <= 0 || !strings.Contains(text, d.dir) || !strings.Contains(text, "read-only file system") {
		t.Errorf("exit code %d, want above 0 and the folder and the reason in\n%s", code, text)
	}
}

// TestDiskFreezes lets every write hang for a while.
func TestDiskFreezes(t *testing.T) {
	for _, tt := range []struct {
		name string
		hold time.Duration
	}{
		{"shortly", 4 * time.Second},
		{"longer than senders wait", 28 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			d := newDisk(t, 1<<30)
			w := newWorld(t, d.dir, everybody...)
			w.start()
			w.load.start(usual)
			w.load.more(500)
			d.freeze()
			w.load.dead.Store(time.Now().UnixNano())
			time.Sleep(tt.hold) // sleep: nothing happens meanwhile, which is the point
			w.still()
			status, text := w.g.health()
			t.Logf("healthz after %v: %d %s", tt.hold, status, text)
			w.load.dead.Store(0)
			d.thaw()
			w.recovers()
			w.settle()
			if w.load.slowest > 30*time.Second {
				t.Errorf("an answer took %v; Event Grid has given up after 30 seconds", w.load.slowest)
			}
		})
	}
}
