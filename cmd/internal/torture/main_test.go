//go:build torture && linux

package torture_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

var (
	kills   = flag.Int("kills", 25, "how often TestKill kills gridfan")
	cuts    = flag.Int("cuts", 20, "how often TestPowerCut cuts the power")
	backlog = flag.Int("backlog", 50_000, "how many events TestBacklog leaves undelivered")
	// Given by make, which builds as the user and runs as root.
	gridfanBinary = flag.String("gridfan", "", "the gridfan to test; built when empty")
	natsBinary    = flag.String("nats-server", "", "the nats-server to test with; built when empty")
)

// patience is how long a test waits for what must come: far longer than it
// takes on a machine that is busy with something else.
const patience = 90 * time.Second

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "torture")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	for _, b := range []struct {
		file *string
		pkg  string
	}{
		{gridfanBinary, "github.com/gridfan/gridfan/cmd/gridfan"},
		{natsBinary, "github.com/nats-io/nats-server/v2"},
	} {
		if *b.file != "" {
			continue
		}
		*b.file = filepath.Join(dir, filepath.Base(filepath.Dir(b.pkg))+"-"+filepath.Base(b.pkg))
		if out, err := exec.Command("go", "build", "-o", *b.file, b.pkg).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build %s: %v\n%s", b.pkg, err, out)
			return 1
		}
	}
	if err := canMount(dir); err != nil {
		fmt.Fprintln(os.Stderr, "the crash tests need root, a loop device, mkfs.ext4 and mount:", err)
		return 1
	}
	return m.Run()
}

// eventually polls until ok, within so long.
func eventually(within time.Duration, ok func() bool) bool {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(within); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !eventually(patience, ok) {
		t.Fatalf("not within %v: %s", patience, what)
	}
}
