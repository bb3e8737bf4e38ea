//go:build torture && linux

package torture_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// disk is an ext4 file system of its own in a file.
type disk struct {
	t     testing.TB
	image string
	dir   string // where it is mounted
}

func newDisk(t testing.TB, size int64) *disk {
	t.Helper()
	d := &disk{t: t, image: filepath.Join(t.TempDir(), "image"), dir: filepath.Join(t.TempDir(), "disk")}
	if err := d.make(size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = d.control(fiThaw, 0) // it is not frozen unless a test ended early
		if err := d.unmount(); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount: %v", err)
		}
	})
	return d
}

func (d *disk) make(size int64) error {
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		return err
	}
	f, err := os.Create(d.image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	// Without blocks for root alone: the tests run as root and fill it.
	if err := command("mkfs.ext4", "-q", "-F", "-m", "0", d.image); err != nil {
		return err
	}
	return d.mount()
}

// mount mounts the disk; the kernel replays its journal.
func (d *disk) mount() error {
	return command("mount", "-o", "loop,errors=remount-ro", d.image, d.dir)
}

// unmount takes the disk away. A process that was killed lets go of it a
// moment later.
func (d *disk) unmount() error {
	var err error
	eventually(20*time.Second, func() bool {
		err = unix.Unmount(d.dir, 0)
		return !errors.Is(err, unix.EBUSY)
	})
	return err
}

func (d *disk) remount() {
	d.t.Helper()
	if err := d.unmount(); err != nil {
		d.t.Fatalf("unmount after a crash: %v", err)
	}
	if err := d.mount(); err != nil {
		d.t.Fatalf("mount after a crash: %v", err)
	}
}

// Calls of the kernel that golang.org/x/sys/unix does not name.
const (
	ext4Shutdown = 0x8004587d // EXT4_IOC_SHUTDOWN
	noLogFlush   = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
	fiFreeze     = 0xc0045877 // FIFREEZE
	fiThaw       = 0xc0045878 // FITHAW
)

func (d *disk) control(request uint, value int) error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetPointerInt(int(f.Fd()), request, value)
}

// die stops the disk dead: nothing that is not on it by now will be, its journal
// included, and every call fails.
func (d *disk) die() {
	d.t.Helper()
	if err := d.control(ext4Shutdown, noLogFlush); err != nil {
		d.t.Fatalf("shut the file system down: %v", err)
	}
}

func (d *disk) freeze() {
	d.t.Helper()
	if err := d.control(fiFreeze, 0); err != nil {
		d.t.Fatalf("freeze the file system: %v", err)
	}
}

func (d *disk) thaw() {
	d.t.Helper()
	if err := d.control(fiThaw, 0); err != nil {
		d.t.Fatalf("thaw the file system: %v", err)
	}
}

// fail makes ext4 believe that it has found an error in itself. It then allows
// no more writes until it is mounted anew. (The kernel refuses to make a file
// system read-only that has files open for writing.)
func (d *disk) fail() {
	d.t.Helper()
	out, err := exec.Command("findmnt", "-no", "SOURCE", d.dir).Output()
	if err != nil {
		d.t.Fatalf("findmnt: %v", err)
	}
	trigger := filepath.Join("/sys/fs/ext4", filepath.Base(strings.TrimSpace(string(out))), "trigger_fs_error")
	if err := os.WriteFile(trigger, []byte("a test"), 0o200); err != nil {
		d.t.Fatal(err)
	}
}

func (d *disk) free() uint64 {
	d.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		d.t.Fatal(err)
	}
	return st.Bavail * uint64(st.Bsize)
}

// fill takes room until only so much is left, and gives the file to delete.
func (d *disk) fill(leave uint64) (ballast string) {
	d.t.Helper()
	ballast = filepath.Join(d.dir, "ballast")
	f, err := os.OpenFile(ballast, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	end := int64(0)
	for step := int64(64 << 20); step >= 4096; {
		free := int64(d.free()) - int64(leave)
		if leave > 0 && free < step {
			step /= 2
			continue
		}
		err := unix.Fallocate(int(f.Fd()), 0, end, step)
		switch {
		case err == nil:
			end += step
		case errors.Is(err, unix.ENOSPC):
			step /= 2
		case !errors.Is(err, unix.EINTR):
			d.t.Fatalf("fill the disk: %v", err)
		}
	}
	return ballast
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// honest says whether this kernel admits that a sync of a file system that was
// shut down has failed. Older ones call it a success.
var honest bool

// canMount tries all that the disks of the tests need.
func canMount(dir string) error {
	d := &disk{image: filepath.Join(dir, "image"), dir: filepath.Join(dir, "disk")}
	if err := d.make(64 << 20); err != nil {
		return err
	}
	err := func() error {
		f, err := os.Open(d.dir)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := d.control(ext4Shutdown, noLogFlush); err != nil {
			return fmt.Errorf("EXT4_IOC_SHUTDOWN: %w", err)
		}
		honest = unix.Syncfs(int(f.Fd())) != nil
		return nil
	}()
	return errors.Join(err, d.unmount())
}
