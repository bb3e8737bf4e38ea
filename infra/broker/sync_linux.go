package broker

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// syncer flushes the file system that a directory is on.
type syncer struct{ dir *os.File }

// newSyncer says for which file systems and kernels one syncfs is as good as an
// fsync of every file; reason tells why not.
func newSyncer(dir string) (s *syncer, reason string, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, "", fmt.Errorf("uname: %w", err)
	}
	// Older kernels do not report a failed write from syncfs (syncfs(2),
	// since Linux 5.8).
	if !atLeast(unix.ByteSliceToString(u.Release[:]), 5, 8) {
		return nil, "the kernel is older than 5.8, whose syncfs hides failures", nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, "", err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, "", fmt.Errorf("statfs %s: %w", dir, err)
	}
	if name, ok := journalled[int64(st.Type)]; !ok {
		f.Close()
		return nil, fmt.Sprintf("file system type %#x is not among those known to flush whole", st.Type), nil
	} else if name == "tmpfs" {
		f.Close()
		return nil, inMemory, nil
	}
	return &syncer{f}, "", nil
}

// inMemory is the reason for a store that no sync can save.
const inMemory = "the store is on tmpfs, which is memory"

// passing says why a folder does not outlive its container, and is empty if it does
// as far as can be seen: an empty directory that a platform has mounted for a
// replica looks like any disk.
func passing(dir string) string {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) == nil && st.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return "the store is in the container's own file system, which goes with the container"
	}
	return ""
}

// journalled are the file systems whose syncfs writes and commits everything,
// by statfs(2) type.
var journalled = map[int64]string{
	unix.EXT4_SUPER_MAGIC:      "ext4",
	unix.XFS_SUPER_MAGIC:       "xfs",
	unix.BTRFS_SUPER_MAGIC:     "btrfs",
	unix.F2FS_SUPER_MAGIC:      "f2fs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay",
	unix.TMPFS_MAGIC:           "tmpfs",
}

func (s *syncer) sync() error {
	if err := unix.Syncfs(int(s.dir.Fd())); err != nil {
		return fmt.Errorf("syncfs %s: %w", s.dir.Name(), err)
	}
	return nil
}

func (s *syncer) close() { s.dir.Close() }

// atLeast compares a kernel release such as 6.1.0-13-amd64.
func atLeast(release string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(release, "%d.%d", &a, &b); n != 2 {
		return false
	}
	return a > major || a == major && b >= minor
}
